//! Digests of segments that were written before there were any: the scrub reads everything now and then, and what it has read
//! from the beginning of a segment to its end says which batches that one has.

use super::index::{self, IndexEntry};
use super::partition::Segment;
use super::read::Batches;
use super::store::SegmentStore;
use super::{PartitionKey, Place};
use lnc_protocol::batch::BatchHeader;

/// What was read of a segment so far, from its beginning on.
#[derive(Debug)]
pub(super) struct Learned {
    key: PartitionKey,
    base: u64,
    at: Place,
    index: Vec<IndexEntry>,
}

impl SegmentStore {
    /// From now on checkpoints and indexes say which batches a segment has: the cluster has [`super::DIGEST_FORMAT`].
    pub fn keep_digests(&mut self) {
        if std::mem::replace(&mut self.digests, true) {
            return;
        }
        // Their indexes lie in files without.
        let segments = self.partitions.values_mut().flat_map(|partition| &mut partition.segments);
        for segment in segments.filter(|segment| segment.state.sealed && segment.indexed) {
            segment.state.digest = None;
        }
    }

    /// These batches of a partition were read, and are sound. If they complete a segment that has no digest, it has one now.
    pub fn learn(&mut self, key: PartitionKey, batches: &Batches) {
        if !self.digests {
            return;
        }
        let learned = self.learned.take().filter(|l| l.key == key && l.at.offset == batches.base_offset);
        let Ok(partition) = self.live(key) else { return };
        let base = learned.as_ref().map_or(batches.base_offset, |learned| learned.base);
        let unknown = |segment: &&Segment| segment.state.digest.is_none();
        let Some(segment) = partition.segment(base).filter(unknown) else { return };
        let end = Place { position: segment.state.len, offset: segment.state.end_offset, ..segment.readable };
        let (on_file, sealed) = (segment.readable.position, segment.state.sealed);
        let mut learned = learned.unwrap_or(Learned { key, base, at: Place::start(base), index: Vec::new() });
        let mut rest = &batches.bytes[..];
        while let Ok(header) = BatchHeader::parse(rest) {
            let (Place { position, offset, digest }, max_timestamp) = (learned.at, header.max_timestamp);
            let entry = IndexEntry { offset, position, max_timestamp, digest };
            index::push(&mut learned.index, self.config.index_interval_bytes, entry);
            learned.at = learned.at.after(&header, header.total_len());
            rest = rest.get(header.total_len()..).unwrap_or_default();
        }
        // Of an open segment, nothing may wait that is in no file.
        if (learned.at.position, learned.at.offset) != (end.position, end.offset) || on_file != end.position {
            self.learned = Some(learned);
            return;
        }
        let Learned { at, index, .. } = learned;
        match sealed {
            true => {
                self.index_rebuilt((key, base), at.digest);
                self.cache_index((key, base), index);
            }
            false => {
                let Some(partition) = self.partitions.get_mut(&key) else { return };
                partition.learn(base, at.digest);
                if let Some(segment) = partition.segment_mut(base) {
                    segment.state.index = index;
                }
            }
        }
    }
}
