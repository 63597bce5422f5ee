//! The sparse index of a segment, by offset and by time, and its file.
//!
//! File: magic with the version; in version 2 topic id, partition and digest; base offset, end offset and length of the
//! segment, number of entries, the entries, CRC-32 of all that. The rest of the last block is padding and means nothing.
//! Version 2 is that of segments with a digest, and says in each entry what it is up to there.

use super::state::SegmentState;
use super::{Digest, PartitionKey};
use crate::disk::AlignedBuf;
use std::fmt;

const MAGIC: [[u8; 8]; 2] = [*b"LNCIDX\x00\x01", *b"LNCIDX\x00\x02"];
/// Lengths in bytes, by version.
const HEADER_LEN: [usize; 2] = [8 * 5, 8 * 8];
const ENTRY_LEN: [usize; 2] = [8 * 3, 8 * 4];
const CRC_LEN: usize = 4;

/// Where a stretch of a segment begins. It reaches to the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// First offset of the first batch of the stretch.
    pub offset: u64,
    /// Byte position of that batch in the file.
    pub position: u64,
    /// Latest timestamp in the stretch, in milliseconds.
    pub max_timestamp: i64,
    /// Digest of all batches of the segment before that batch.
    pub digest: Digest,
}

/// Account for a batch at the end of the segment; a new entry begins when `interval` bytes lie behind the last one.
pub(super) fn push(index: &mut Vec<IndexEntry>, interval: u64, batch: IndexEntry) {
    match index.last_mut() {
        Some(last) if batch.position - last.position < interval => {
            last.max_timestamp = last.max_timestamp.max(batch.max_timestamp);
        }
        _ => index.push(batch),
    }
}

/// The entry of the stretch that holds `offset`, and where the stretch ends.
pub(super) fn find_offset(index: &[IndexEntry], offset: u64) -> Option<(IndexEntry, Option<u64>)> {
    let at = index.partition_point(|entry| entry.offset <= offset).checked_sub(1)?;
    Some((index[at], index.get(at + 1).map(|next| next.position)))
}

/// The first stretch with a timestamp of at least `timestamp`, and where the stretch ends.
pub(super) fn find_timestamp(index: &[IndexEntry], timestamp: i64) -> Option<(IndexEntry, Option<u64>)> {
    let at = index.iter().position(|entry| entry.max_timestamp >= timestamp)?;
    Some((index[at], index.get(at + 1).map(|next| next.position)))
}

/// What an index file says of its segment.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    key: PartitionKey,
    digest: Digest,
    base_offset: u64,
    end_offset: u64,
    len: u64,
}

impl Head {
    fn of(key: PartitionKey, segment: &SegmentState) -> Self {
        let &SegmentState { base_offset, end_offset, len, .. } = segment;
        Self { key, digest: segment.digest.unwrap_or_default(), base_offset, end_offset, len }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, digest, base_offset, end_offset, len } = self;
        write!(f, "an index of partition {key}, offsets {base_offset} to {end_offset}, {len} bytes, digest {digest}")
    }
}

/// The index that `segment` should have, for people.
pub(super) fn describe(key: PartitionKey, segment: &SegmentState) -> String {
    Head::of(key, segment).to_string()
}

/// The content of the index file of `segment`.
pub(super) fn encode(key: PartitionKey, segment: &SegmentState, index: &[IndexEntry]) -> AlignedBuf {
    let version = usize::from(segment.digest.is_some());
    let mut out = AlignedBuf::with_capacity(HEADER_LEN[version] + index.len() * ENTRY_LEN[version] + CRC_LEN);
    let put = |out: &mut AlignedBuf, words: &[u64]| {
        words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    };
    out.extend_from_slice(&MAGIC[version]);
    if let Some(digest) = segment.digest {
        put(&mut out, &[key.topic_id, u64::from(key.partition), digest.0]);
    }
    put(&mut out, &[segment.base_offset, segment.end_offset, segment.len, index.len() as u64]);
    for entry in index {
        put(&mut out, &[entry.offset, entry.position, entry.max_timestamp as u64]);
        put(&mut out, segment.digest.map(|_| entry.digest.0).as_slice());
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.pad_to_block();
    out
}

/// The length of an index file with so many entries.
pub(super) fn file_len(entries: usize) -> u64 {
    super::block_ceil((HEADER_LEN[1] + CRC_LEN + entries * ENTRY_LEN[1]) as u64)
}

/// The longest index file that a segment can have: an entry for each batch.
pub(super) fn max_file_len(segment: &SegmentState) -> u64 {
    let batches = segment.len / lnc_protocol::batch::HEADER_LEN as u64 + 1;
    super::block_ceil((HEADER_LEN[1] + CRC_LEN) as u64 + batches * ENTRY_LEN[1] as u64)
}

/// The index in a file's bytes, if it is the undamaged index of `segment`; else what they are.
pub(super) fn decode(key: PartitionKey, segment: &SegmentState, bytes: &[u8]) -> Result<Vec<IndexEntry>, String> {
    let (found, digests, index) = parse(key, bytes).ok_or("no index, or a damaged one")?;
    let mut expected = Head::of(key, segment);
    match (segment.digest, digests) {
        (None, true) => expected.digest = found.digest,
        (Some(_), false) => return Err(format!("{found} of an older version")),
        _ => {}
    }
    if found != expected {
        return Err(found.to_string());
    }
    is_sound(segment, &index).then_some(index).ok_or_else(|| "an index that contradicts itself".to_owned())
}

/// What a file says of its segment, whether it has digests, and the index. The first version does not name the partition.
fn parse(key: PartitionKey, bytes: &[u8]) -> Option<(Head, bool, Vec<IndexEntry>)> {
    let version = MAGIC.iter().position(|magic| bytes.starts_with(magic))?;
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let (header_len, entry_len) = (HEADER_LEN[version], ENTRY_LEN[version]);
    let crc_at = usize::try_from(word(header_len - 8)?).ok()?.checked_mul(entry_len)?.checked_add(header_len)?;
    let crc = u32::from_le_bytes(*bytes.get(crc_at..)?.first_chunk()?);
    if crc32fast::hash(&bytes[..crc_at]) != crc {
        return None;
    }
    let digests = version > 0;
    let (key, digest) = match digests {
        true => (PartitionKey { topic_id: word(8)?, partition: u32::try_from(word(16)?).ok()? }, Digest(word(24)?)),
        false => (key, Digest::default()),
    };
    let at = header_len - 32;
    let head = Head { key, digest, base_offset: word(at)?, end_offset: word(at + 8)?, len: word(at + 16)? };
    let entry = |at: usize| {
        let digest = if digests { Digest(word(at + 24)?) } else { Digest::default() };
        Some(IndexEntry { offset: word(at)?, position: word(at + 8)?, max_timestamp: word(at + 16)? as i64, digest })
    };
    let index: Option<Vec<IndexEntry>> = (header_len..crc_at).step_by(entry_len).map(entry).collect();
    Some((head, digests, index?))
}

/// A checksum does not make a foolish index wise.
fn is_sound(segment: &SegmentState, index: &[IndexEntry]) -> bool {
    let (Some(first), Some(last)) = (index.first(), index.last()) else { return false };
    let rising = index.windows(2).all(|w| w[0].offset < w[1].offset && w[0].position < w[1].position);
    let inside = last.offset < segment.end_offset && last.position < segment.len;
    let begins = first.offset == segment.base_offset && first.position == 0 && first.digest == Digest::default();
    begins && rising && inside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::EpochStart;

    fn segment() -> SegmentState {
        SegmentState {
            base_offset: 100,
            end_offset: 200,
            len: 10_000,
            max_timestamp: 50,
            first_append_ms: 0,
            last_append_ms: 0,
            sealed: true,
            epochs: vec![EpochStart { offset: 100, epoch: 1 }],
            index: Vec::new(),
            digest: Some(Digest(77)),
        }
    }

    fn index() -> Vec<IndexEntry> {
        let mut index = Vec::new();
        for n in 0..100u64 {
            let max_timestamp = if n == 40 { 500 } else { n as i64 };
            let digest = Digest(n * 3);
            push(&mut index, 1000, IndexEntry { offset: 100 + n, position: n * 100, max_timestamp, digest });
        }
        index
    }

    #[test]
    fn one_entry_per_interval() {
        let index = index();
        assert_eq!(index.len(), 10);
        assert_eq!(find_offset(&index, 99), None);
        assert_eq!(find_offset(&index, 119), Some((index[1], Some(2000))));
        assert_eq!(find_offset(&index, 199), Some((index[9], None)));
        assert_eq!(find_timestamp(&index, 19).unwrap().0, index[1]);
        assert_eq!(find_timestamp(&index, 50).unwrap().0, index[4]);
        assert_eq!(find_timestamp(&index, 501), None);
    }

    const KEY: PartitionKey = PartitionKey { topic_id: 4, partition: 2 };

    #[test]
    fn the_file_holds_the_index_and_any_damage_shows() {
        for digest in [Some(Digest(77)), None] {
            let segment = SegmentState { digest, ..segment() };
            let mut index = index();
            if digest.is_none() {
                index.iter_mut().for_each(|entry| entry.digest = Digest::default());
            }
            let version = usize::from(digest.is_some());
            let bytes = encode(KEY, &segment, &index);
            assert_eq!(bytes[..8], MAGIC[version]);
            assert_eq!(decode(KEY, &segment, &bytes), Ok(index.clone()));
            assert!(bytes.len() as u64 <= max_file_len(&segment));
            let used = HEADER_LEN[version] + index.len() * ENTRY_LEN[version] + CRC_LEN;
            for position in 0..used {
                let mut bad = bytes.to_vec();
                bad[position] ^= 0x10;
                assert!(decode(KEY, &segment, &bad).is_err(), "byte {position}");
                assert!(decode(KEY, &segment, &bytes[..position]).is_err(), "cut to {position}");
            }
            let other = SegmentState { len: 10_001, ..segment };
            assert!(decode(KEY, &other, &bytes).is_err());
        }
    }

    #[test]
    fn an_index_of_another_segment_is_none_of_this_one() {
        let (segment, index) = (segment(), index());
        let bytes = encode(KEY, &segment, &index);
        let elsewhere = PartitionKey { partition: 3, ..KEY };
        let error = decode(elsewhere, &segment, &bytes).unwrap_err();
        assert!(error.contains("partition 4-2, offsets 100 to 200"), "{error}");
        let older_life = SegmentState { digest: Some(Digest(78)), ..segment.clone() };
        let error = decode(KEY, &older_life, &bytes).unwrap_err();
        assert!(error.contains("digest 0x000000000000004d"), "{error}");
        // Of a segment that has a digest now, and had none when the index was written; and the other way round.
        let before = SegmentState { digest: None, ..segment.clone() };
        let error = decode(KEY, &segment, &encode(KEY, &before, &index)).unwrap_err();
        assert!(error.contains("older version"), "{error}");
        assert_eq!(decode(KEY, &before, &bytes), Ok(index));
    }
}
