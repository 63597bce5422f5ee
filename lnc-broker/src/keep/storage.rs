//! The committed batches of this replica: those that have just been applied, the tail cache, and the segments.
//!
//! A batch reaches its partition together with others that came after it. To look up what belongs to one of a thousand
//! partitions is to wait for memory, several times for each batch: with some batches for each of them that is done
//! once for all. Whoever looks at a partition meanwhile finds everything there, since the look hands over first.

use crate::keep::tail_cache::TailCache;
use bytes::Bytes;
use lnc_log::segment::{PartitionKey, SegmentError, SegmentStore, StoredBatch};

/// Runs that wait at most. Their partitions take them in without a pause, which must stay short.
const MOST_RUNS: usize = 4096;

/// Bytes that wait at most.
const MOST_BYTES: u64 = 8 << 20;

/// Runs of this many bytes on average do not wait: they are not worth it, and the segments want to write them.
const LARGE_RUN: u64 = 16 << 10;

/// Consecutive batches of one partition, back to back as readers get them.
struct Run {
    base_offset: u64,
    end_offset: u64,
    bytes: Bytes,
}

/// See the module documentation.
pub(crate) struct Storage {
    cache: TailCache,
    segments: SegmentStore,
    /// For the cache and for the segments, what they have not been given yet, in the order of its application.
    runs: Vec<(PartitionKey, Run)>,
    batches: Vec<(PartitionKey, StoredBatch)>,
    bytes: u64,
    /// A batch does not fit behind what its partition has: nothing that is here may be relied on any more.
    failed: Option<SegmentError>,
}

impl Storage {
    pub(crate) fn new(cache: TailCache, segments: SegmentStore) -> Self {
        Self { cache, segments, runs: Vec::new(), batches: Vec::new(), bytes: 0, failed: None }
    }

    /// A committed batch, for the segments.
    pub(crate) fn append(&mut self, key: PartitionKey, batch: StoredBatch) {
        self.bytes += batch.len() as u64;
        self.batches.push((key, batch));
    }

    /// Committed batches with offsets `base_offset..end_offset`, for readers: the same that [`Storage::append`] gets.
    pub(crate) fn append_run(&mut self, key: PartitionKey, base_offset: u64, end_offset: u64, bytes: Bytes) {
        self.runs.push((key, Run { base_offset, end_offset, bytes }));
    }

    /// Give the partitions what has come for them.
    pub(crate) fn hand_over(&mut self) {
        // Stable: the order within a partition is that of the offsets.
        self.runs.sort_by_key(|(key, _)| *key);
        for (key, Run { base_offset, end_offset, bytes }) in self.runs.drain(..) {
            self.cache.append(key, base_offset, end_offset, bytes);
        }
        self.batches.sort_by_key(|(key, _)| *key);
        for (key, batch) in self.batches.drain(..) {
            if let Err(error) = self.segments.append(key, batch) {
                self.failed.get_or_insert(error);
            }
        }
        self.bytes = 0;
    }

    /// Give the partitions what has come for them, if that is enough to be worth it. Says whether everything that they
    /// were ever given was in order: if not, the node must stop before it makes a checkpoint of them or answers a reader.
    pub(crate) fn turn(&mut self) -> Result<(), SegmentError> {
        let runs = self.runs.len();
        if runs >= MOST_RUNS || self.bytes >= MOST_BYTES || self.bytes >= runs as u64 * LARGE_RUN {
            self.hand_over();
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The segments with everything that is applied.
    pub(crate) fn segments(&mut self) -> &mut SegmentStore {
        self.hand_over();
        &mut self.segments
    }

    /// The cache with everything that is applied.
    pub(crate) fn cache(&mut self) -> &mut TailCache {
        self.hand_over();
        &mut self.cache
    }

    /// The segments as they are: without the batches that came since the last [`Storage::hand_over`].
    pub(crate) fn handed_over(&self) -> &SegmentStore {
        &self.segments
    }

    /// The log of a partition starts at `offset` now.
    pub(crate) fn trim(&mut self, key: PartitionKey, offset: u64) -> Result<(), SegmentError> {
        self.hand_over();
        self.cache.trim(key, offset);
        self.segments.trim(key, offset)
    }

    /// Nothing in these partitions was appended later than this.
    pub(crate) fn turn_back(
        &mut self,
        keys: impl Iterator<Item = PartitionKey>,
        time_ms: u64,
    ) -> Result<(), SegmentError> {
        self.hand_over();
        keys.into_iter().try_for_each(|key| self.segments.cap_append_times(key, time_ms))
    }

    /// A partition is gone.
    pub(crate) fn remove(&mut self, key: PartitionKey) -> Result<(), SegmentError> {
        self.hand_over();
        self.cache.remove(key);
        self.segments.remove_partition(key)
    }

    /// The segments for what is under way between them and the disk. They may lack the batches applied last.
    pub(crate) fn on_disk(&mut self) -> &mut SegmentStore {
        &mut self.segments
    }

    /// Forget cached batches that exceed the budget and can be read from segments.
    pub(crate) fn evict(&mut self) {
        let segments = &self.segments;
        self.cache.evict(|key| segments.written_offset(key));
    }

    /// Bytes in memory that are not in segment files for good.
    pub(crate) fn unwritten_bytes(&self) -> u64 {
        self.segments.pending_bytes() + self.bytes
    }

    /// Bytes that can be read without the disk.
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cache.bytes() + self.bytes as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use lnc_log::segment::SegmentConfig;
    use lnc_protocol::batch::{BatchBuilder, PREFIX_LEN, stamped_prefix};
    use lnc_protocol::codec::Codec;

    const KEYS: [PartitionKey; 2] =
        [PartitionKey { topic_id: 1, partition: 0 }, PartitionKey { topic_id: 2, partition: 0 }];

    fn storage() -> Storage {
        let mut segments = SegmentStore::new(SegmentConfig::default());
        for key in KEYS {
            segments.create_partition(key, None).unwrap();
        }
        Storage::new(TailCache::new(usize::MAX), segments)
    }

    /// A batch of one record with a value of `len` bytes.
    fn append(storage: &mut Storage, key: PartitionKey, offset: u64, len: usize) {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(1, None, Some(&vec![7; len]), &[]).unwrap();
        let built = builder.build();
        let prefix = stamped_prefix(&built, offset, 1);
        let mut raw = BytesMut::from(&built[..]);
        raw[..PREFIX_LEN].copy_from_slice(&prefix);
        let raw = raw.freeze();
        let batch = StoredBatch {
            base_offset: offset,
            last_offset: offset,
            max_timestamp: 1,
            append_ms: 1,
            prefix,
            raw: raw.clone(),
        };
        storage.append(key, batch);
        storage.append_run(key, offset, offset + 1, raw);
    }

    #[test]
    fn whoever_looks_finds_everything_and_in_order() {
        let mut storage = storage();
        for offset in 0..5 {
            for key in KEYS {
                append(&mut storage, key, offset, 10);
            }
        }
        storage.turn().unwrap();
        let (unwritten, cached) = (storage.unwritten_bytes(), storage.cached_bytes());
        assert_eq!(storage.on_disk().log_end_offset(KEYS[0]), 0, "small runs wait");
        for key in KEYS {
            let found = storage.cache().read(key, 0, usize::MAX).unwrap();
            assert_eq!((found.base_offset, found.end_offset), (0, 5));
            assert_eq!(storage.segments().log_end_offset(key), 5);
        }
        assert_eq!(
            (storage.unwritten_bytes(), storage.cached_bytes()),
            (unwritten, cached),
            "counted from the beginning"
        );
        storage.turn().unwrap();
    }

    #[test]
    fn large_runs_and_many_runs_do_not_wait() {
        let mut storage = storage();
        append(&mut storage, KEYS[0], 0, LARGE_RUN as usize);
        storage.turn().unwrap();
        assert_eq!(storage.on_disk().log_end_offset(KEYS[0]), 1);
        for offset in 0..MOST_RUNS as u64 {
            append(&mut storage, KEYS[1], offset, 10);
        }
        storage.turn().unwrap();
        assert_eq!(storage.on_disk().log_end_offset(KEYS[1]), MOST_RUNS as u64);
    }

    #[test]
    fn a_batch_that_does_not_fit_is_an_error_of_the_turn() {
        let mut storage = storage();
        append(&mut storage, KEYS[0], 0, 10);
        append(&mut storage, KEYS[0], 2, 10);
        storage.hand_over();
        let error = storage.turn().unwrap_err();
        assert!(matches!(error, SegmentError::OutOfOrder { expected: 1, base_offset: 2, .. }), "{error}");
    }
}
