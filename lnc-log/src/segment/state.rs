//! What a checkpoint says about a partition's files, and its encoding.

use super::Digest;
use super::index::IndexEntry;

/// Versions of the encoding: where no segment has a digest, and where one may.
const VERSIONS: [u8; 2] = [1, 2];

/// Bits of the word that says how a segment is.
const SEALED: u64 = 1;
const DIGEST: u64 = 2;

/// A partition as of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    /// First offset that is still kept.
    pub log_start_offset: u64,
    /// Offset of the next record.
    pub log_end_offset: u64,
    /// The segments in order, each beginning where the one before ends. Empty when everything was removed.
    pub segments: Vec<SegmentState>,
}

/// One segment as of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentState {
    /// Offset of its first record; also its file name.
    pub base_offset: u64,
    /// Offset after its last record.
    pub end_offset: u64,
    /// Bytes of its batches, without padding.
    pub len: u64,
    /// Latest timestamp of its records, in milliseconds.
    pub max_timestamp: i64,
    /// Append time of its first batch, in milliseconds.
    pub first_append_ms: u64,
    /// Latest append time of its batches, in milliseconds.
    pub last_append_ms: u64,
    /// Whether it is complete. Only the last segment of a partition may be incomplete.
    pub sealed: bool,
    /// Which leader epochs its batches carry, and from which offset on.
    pub epochs: Vec<EpochStart>,
    /// The sparse index; empty in the state of a sealed segment, whose index is in a file.
    pub index: Vec<IndexEntry>,
    /// The digest of its batches. `None` if they were written before there were digests and nobody has read them since; the
    /// digests in `index` mean nothing then.
    pub digest: Option<Digest>,
}

/// From `offset` on, up to the next entry, batches carry leader epoch `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// First offset of the first batch with this epoch.
    pub offset: u64,
    /// The epoch.
    pub epoch: i32,
}

/// Why bytes are not a partition state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Written by another version.
    #[error("encoding version {found}, this build reads {} and {}", VERSIONS[0], VERSIONS[1])]
    Version {
        /// The version found.
        found: u8,
    },
    /// The bytes end early, or go on where they should end.
    #[error("{0} bytes cannot be a whole state")]
    Length(usize),
    /// Fields contradict each other.
    #[error("segment {segment}: {rule} does not hold")]
    Inconsistent {
        /// Base offset of the segment concerned.
        segment: u64,
        /// The rule that is broken.
        rule: &'static str,
    },
}

impl SegmentState {
    /// The leader epoch of the batch at `offset`.
    pub(super) fn epoch_at(&self, offset: u64) -> Option<i32> {
        let after = self.epochs.partition_point(|start| start.offset <= offset);
        after.checked_sub(1).map(|at| self.epochs[at].epoch)
    }

    fn check(&self, last: bool) -> Result<(), &'static str> {
        let require = |holds: bool, rule| if holds { Ok(()) } else { Err(rule) };
        require(self.base_offset < self.end_offset, "base offset below end offset")?;
        require(self.len > 0, "length above zero")?;
        require(self.sealed || last, "only the last segment is open")?;
        require(self.epochs.first().is_some_and(|e| e.offset == self.base_offset), "an epoch for the first batch")?;
        require(self.epochs.windows(2).all(|w| w[0].offset < w[1].offset), "epochs in order")?;
        require(self.epochs.last().is_some_and(|e| e.offset < self.end_offset), "epochs within the segment")?;
        require(self.sealed || !self.index.is_empty(), "an index for the open segment")?;
        if let Some(first) = self.index.first() {
            require(first.offset == self.base_offset && first.position == 0, "an index from the first batch on")?;
        }
        require(self.index.windows(2).all(|w| w[0].offset < w[1].offset), "index offsets in order")?;
        require(self.index.windows(2).all(|w| w[0].position < w[1].position), "index positions in order")?;
        let inside = |e: &IndexEntry| e.position < self.len && e.offset < self.end_offset;
        require(self.index.last().is_none_or(inside), "an index within the segment")
    }
}

impl PartitionState {
    /// Check that the parts fit together.
    pub fn check(&self) -> Result<(), StateError> {
        let last = self.segments.len().saturating_sub(1);
        for (n, segment) in self.segments.iter().enumerate() {
            let broken = |rule| StateError::Inconsistent { segment: segment.base_offset, rule };
            segment.check(n == last).map_err(broken)?;
            let end = self.segments.get(n + 1).map_or(self.log_end_offset, |next| next.base_offset);
            if segment.end_offset != end {
                return Err(broken("segments without gaps up to the log end offset"));
            }
        }
        let first = self.segments.first().map_or(self.log_end_offset, |segment| segment.base_offset);
        let first_end =
            self.segments.first().map_or(self.log_end_offset.saturating_add(1), |segment| segment.end_offset);
        if !(first..first_end).contains(&self.log_start_offset) {
            return Err(StateError::Inconsistent { segment: first, rule: "log start offset in the first segment" });
        }
        Ok(())
    }

    /// How many bytes [`PartitionState::encode`] gives.
    pub fn encoded_bytes(&self) -> usize {
        let digests = |s: &SegmentState| s.digest.map_or(0, |_| 8 + s.index.len() * 8);
        let segment = |s: &SegmentState| 9 * 8 + s.epochs.len() * 12 + s.index.len() * 24 + digests(s);
        1 + 3 * 8 + self.segments.iter().map(segment).sum::<usize>()
    }

    /// Bytes for a checkpoint. Without digests they are those that every version reads.
    pub fn encode(&self) -> Vec<u8> {
        let digests = self.segments.iter().any(|segment| segment.digest.is_some());
        let mut out = Vec::with_capacity(self.encoded_bytes());
        out.push(VERSIONS[usize::from(digests)]);
        put(&mut out, &[self.log_start_offset, self.log_end_offset, self.segments.len() as u64]);
        for s in &self.segments {
            let (epochs, index) = (s.epochs.len() as u64, s.index.len() as u64);
            put(&mut out, &[s.base_offset, s.end_offset, s.len, s.max_timestamp as u64, s.first_append_ms]);
            let flags = (u64::from(s.sealed) * SEALED) | (u64::from(s.digest.is_some()) * DIGEST);
            put(&mut out, &[s.last_append_ms, flags, epochs, index]);
            put(&mut out, s.digest.map(|digest| digest.0).as_slice());
            for e in &s.epochs {
                put(&mut out, &[e.offset]);
                out.extend_from_slice(&e.epoch.to_le_bytes());
            }
            for e in &s.index {
                put(&mut out, &[e.offset, e.position, e.max_timestamp as u64]);
                put(&mut out, s.digest.map(|_| e.digest.0).as_slice());
            }
        }
        out
    }

    /// The reverse of [`PartitionState::encode`]. Allocates no more than a small multiple of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let (&version, rest) = bytes.split_first().ok_or(StateError::Length(0))?;
        if !VERSIONS.contains(&version) {
            return Err(StateError::Version { found: version });
        }
        let mut rest = rest;
        let flags = if version == VERSIONS[0] { SEALED } else { SEALED | DIGEST };
        let state =
            take_partition(&mut rest, flags).filter(|_| rest.is_empty()).ok_or(StateError::Length(bytes.len()))?;
        state.check()?;
        Ok(state)
    }
}

fn put(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*word))
}

/// `count` items, collected without trusting the count: the bytes run out first.
fn take_list<T>(rest: &mut &[u8], count: u64, item: impl Fn(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    (0..count).map(|_| item(rest)).collect()
}

fn take_partition(rest: &mut &[u8], flags: u64) -> Option<PartitionState> {
    let (log_start_offset, log_end_offset, count) = (take(rest)?, take(rest)?, take(rest)?);
    let segments = take_list(rest, count, |rest| take_segment(rest, flags))?;
    Some(PartitionState { log_start_offset, log_end_offset, segments })
}

/// A segment, of which no flags but these may be set.
fn take_segment(rest: &mut &[u8], known: u64) -> Option<SegmentState> {
    let mut state = SegmentState {
        base_offset: take(rest)?,
        end_offset: take(rest)?,
        len: take(rest)?,
        max_timestamp: take(rest)? as i64,
        first_append_ms: take(rest)?,
        last_append_ms: take(rest)?,
        sealed: false,
        epochs: Vec::new(),
        index: Vec::new(),
        digest: None,
    };
    let flags = take(rest).filter(|flags| flags & !known == 0)?;
    let (epochs, index) = (take(rest)?, take(rest)?);
    state.sealed = flags & SEALED != 0;
    let has_digests = flags & DIGEST != 0;
    if has_digests {
        state.digest = Some(Digest(take(rest)?));
    }
    state.epochs = take_list(rest, epochs, |rest| {
        let offset = take(rest)?;
        let (epoch, after) = rest.split_first_chunk()?;
        *rest = after;
        Some(EpochStart { offset, epoch: i32::from_le_bytes(*epoch) })
    })?;
    state.index = take_list(rest, index, |rest| {
        let (offset, position, max_timestamp) = (take(rest)?, take(rest)?, take(rest)? as i64);
        let digest = if has_digests { Digest(take(rest)?) } else { Digest::default() };
        Some(IndexEntry { offset, position, max_timestamp, digest })
    })?;
    Some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> PartitionState {
        let segment = |base_offset, end_offset, sealed| SegmentState {
            base_offset,
            end_offset,
            len: 500,
            max_timestamp: -3,
            first_append_ms: 4,
            last_append_ms: 5,
            sealed,
            epochs: vec![EpochStart { offset: base_offset, epoch: 1 }, EpochStart { offset: end_offset - 1, epoch: 7 }],
            index: match sealed {
                true => Vec::new(),
                false => vec![
                    IndexEntry { offset: base_offset, position: 0, max_timestamp: -3, digest: Digest(0) },
                    IndexEntry { offset: base_offset + 3, position: 200, max_timestamp: -9, digest: Digest(8) },
                ],
            },
            digest: Some(Digest(base_offset)),
        };
        PartitionState {
            log_start_offset: 11,
            log_end_offset: 40,
            segments: vec![segment(10, 20, true), segment(20, 40, false)],
        }
    }

    fn older() -> PartitionState {
        let mut state = state();
        for segment in &mut state.segments {
            segment.digest = None;
            segment.index.iter_mut().for_each(|entry| entry.digest = Digest::default());
        }
        state
    }

    #[test]
    fn round_trip() {
        for state in [state(), older(), PartitionState::default()] {
            assert_eq!(state.encode().len(), state.encoded_bytes());
            assert_eq!(PartitionState::decode(&state.encode()), Ok(state));
        }
        let mut mixed = state();
        mixed.segments[0].digest = None;
        assert_eq!(PartitionState::decode(&mixed.encode()), Ok(mixed));
    }

    /// As versions before the digests write and read it.
    #[test]
    fn without_digests_the_bytes_are_those_of_before() {
        let bytes = older().encode();
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes.len(), 1 + 3 * 8 + 2 * (9 * 8 + 2 * 12) + 2 * 3 * 8);
        let sealed = 1 + 3 * 8 + 6 * 8;
        assert_eq!(bytes[sealed..sealed + 8], [1, 0, 0, 0, 0, 0, 0, 0]);
        let mut later = bytes;
        later[sealed] = 3;
        assert_eq!(PartitionState::decode(&later), Err(StateError::Length(later.len())));
    }

    #[test]
    fn epochs_are_found_by_offset() {
        let segment = &state().segments[0];
        assert_eq!([9, 10, 18, 19, 30].map(|o| segment.epoch_at(o)), [None, Some(1), Some(1), Some(7), Some(7)]);
    }

    #[test]
    fn cut_or_altered_bytes_never_panic() {
        for state in [state(), older()] {
            cut_and_alter(&state.encode());
        }
    }

    fn cut_and_alter(bytes: &[u8]) {
        for len in 0..bytes.len() {
            assert!(PartitionState::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(PartitionState::decode(&[bytes, &[0]].concat()).is_err());
        for position in 0..bytes.len() {
            for mask in [1, 0x80, 0xff] {
                let mut bad = bytes.to_vec();
                bad[position] ^= mask;
                if let Ok(other) = PartitionState::decode(&bad) {
                    assert_eq!(other.check(), Ok(()));
                }
            }
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let broken: [fn(&mut PartitionState); 7] = [
            |s| s.segments[0].end_offset = 21,
            |s| s.segments[0].sealed = false,
            |s| s.segments[1].index.clear(),
            |s| s.segments[1].index[1].position = 500,
            |s| s.segments[1].epochs[0].offset = 21,
            |s| s.log_start_offset = 20,
            |s| s.log_end_offset = 41,
        ];
        for (n, breaking) in broken.iter().enumerate() {
            let mut state = state();
            breaking(&mut state);
            assert!(matches!(state.check(), Err(StateError::Inconsistent { .. })), "case {n}");
        }
    }
}
