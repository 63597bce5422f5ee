//! The sparse index of a segment, by offset and by time, and its file.
//!
//! File: magic, base offset, end offset and length of the segment, number of entries, the entries, CRC-32 of all that.
//! The rest of the last block is padding and means nothing.

use super::state::SegmentState;
use crate::disk::AlignedBuf;

const MAGIC: [u8; 8] = *b"LNCIDX\x00\x01";
const HEADER_LEN: usize = 8 * 5;
const ENTRY_LEN: usize = 8 * 3;
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

/// The content of the index file of `segment`.
pub(super) fn encode(segment: &SegmentState, index: &[IndexEntry]) -> AlignedBuf {
    let mut out = AlignedBuf::with_capacity(HEADER_LEN + index.len() * ENTRY_LEN + CRC_LEN);
    out.extend_from_slice(&MAGIC);
    for word in [segment.base_offset, segment.end_offset, segment.len, index.len() as u64] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for entry in index {
        out.extend_from_slice(&entry.offset.to_le_bytes());
        out.extend_from_slice(&entry.position.to_le_bytes());
        out.extend_from_slice(&entry.max_timestamp.to_le_bytes());
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.pad_to_block();
    out
}

/// The longest index file that a segment can have: an entry for each batch.
pub(super) fn max_file_len(segment: &SegmentState) -> u64 {
    let batches = segment.len / lnc_protocol::batch::HEADER_LEN as u64 + 1;
    super::block_ceil((HEADER_LEN + CRC_LEN) as u64 + batches * ENTRY_LEN as u64)
}

/// The index in a file's bytes, if it is the undamaged index of `segment`.
pub(super) fn decode(segment: &SegmentState, bytes: &[u8]) -> Option<Vec<IndexEntry>> {
    let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    if bytes.first_chunk() != Some(&MAGIC) {
        return None;
    }
    if (word(8)?, word(16)?, word(24)?) != (segment.base_offset, segment.end_offset, segment.len) {
        return None;
    }
    let crc_at = usize::try_from(word(32)?).ok()?.checked_mul(ENTRY_LEN)?.checked_add(HEADER_LEN)?;
    let crc = u32::from_le_bytes(*bytes.get(crc_at..)?.first_chunk()?);
    if crc32fast::hash(&bytes[..crc_at]) != crc {
        return None;
    }
    let index: Vec<IndexEntry> = (HEADER_LEN..crc_at)
        .step_by(ENTRY_LEN)
        .map(|at| Some(IndexEntry { offset: word(at)?, position: word(at + 8)?, max_timestamp: word(at + 16)? as i64 }))
        .collect::<Option<_>>()?;
    // A checksum does not make a foolish index wise.
    let first = index.first()?;
    let rising = index.windows(2).all(|w| w[0].offset < w[1].offset && w[0].position < w[1].position);
    let last = index.last()?;
    let inside = last.offset < segment.end_offset && last.position < segment.len;
    (first.offset == segment.base_offset && first.position == 0 && rising && inside).then_some(index)
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
        }
    }

    fn index() -> Vec<IndexEntry> {
        let mut index = Vec::new();
        for n in 0..100u64 {
            let max_timestamp = if n == 40 { 500 } else { n as i64 };
            push(&mut index, 1000, IndexEntry { offset: 100 + n, position: n * 100, max_timestamp });
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

    #[test]
    fn the_file_holds_the_index_and_any_damage_shows() {
        let (segment, index) = (segment(), index());
        let bytes = encode(&segment, &index);
        assert_eq!(decode(&segment, &bytes), Some(index.clone()));
        assert!(bytes.len() as u64 <= max_file_len(&segment));
        let used = HEADER_LEN + index.len() * ENTRY_LEN + CRC_LEN;
        for position in 0..used {
            let mut bad = bytes.to_vec();
            bad[position] ^= 0x10;
            assert_eq!(decode(&segment, &bad), None, "byte {position}");
            assert_eq!(decode(&segment, &bytes[..position]), None, "cut to {position}");
        }
        let other = SegmentState { len: 10_001, ..segment };
        assert_eq!(decode(&other, &bytes), None);
    }
}
