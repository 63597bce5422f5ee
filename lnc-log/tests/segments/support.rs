//! A segment store on a memory disk, and batches to put into it.

use bytes::Bytes;
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::segment::{
    CheckpointId, PartitionKey, PartitionState, ReadDone, SegmentConfig, SegmentError, SegmentStore, StoredBatch,
};
use lnc_protocol::batch::{self, BatchHeader};
use lnc_protocol::{BatchBuilder, Codec};
use std::collections::BTreeMap;

pub(crate) const KEY: PartitionKey = PartitionKey { topic_id: 7, partition: 1 };

/// Small enough that a few batches fill a segment.
pub(crate) fn small() -> SegmentConfig {
    SegmentConfig {
        segment_bytes: 20_000,
        roll_ms: Some(1_000),
        index_interval_bytes: 1_500,
        write_block: 8192,
        max_open_files: 4,
        max_cached_indexes: 2,
        max_lanes: 2,
    }
}

/// A batch of `records` records with values of `value_len` bytes, all of them at time `timestamp`.
pub(crate) fn batch(base_offset: u64, records: usize, value_len: usize, timestamp: i64, epoch: i32) -> StoredBatch {
    let mut builder = BatchBuilder::new(Codec::None);
    for n in 0..records {
        let fill = (base_offset as usize * 31 + n) as u8;
        builder.append(timestamp, None, Some(&vec![fill; value_len]), &[]).unwrap();
    }
    let raw = builder.build();
    let header = BatchHeader::parse(&raw).unwrap();
    StoredBatch {
        base_offset,
        last_offset: base_offset + u64::from(header.last_offset_delta),
        max_timestamp: header.max_timestamp,
        append_ms: timestamp.unsigned_abs(),
        prefix: batch::stamped_prefix(&raw, base_offset, epoch),
        raw,
    }
}

pub(crate) fn stored(batch: &StoredBatch) -> Vec<u8> {
    batch.pieces().concat()
}

pub(crate) struct Harness {
    pub(crate) disk: MemoryDisk,
    pub(crate) store: SegmentStore,
    tickets: u64,
}

/// Each of the batches that lie one behind the other.
pub(crate) fn batches_of(bytes: &Bytes) -> Vec<Bytes> {
    let mut batches = Vec::new();
    let mut rest = bytes.clone();
    while !rest.is_empty() {
        batches.push(rest.split_to(BatchHeader::parse(&rest).unwrap().total_len()));
    }
    batches
}

impl Harness {
    pub(crate) fn new(config: SegmentConfig) -> Self {
        let mut harness = Self { disk: MemoryDisk::new(), store: SegmentStore::new(config), tickets: 0 };
        harness.store.keep_digests();
        harness.store.create_partition(KEY, None).unwrap();
        harness
    }

    /// Start again from what `disk` holds, of which nothing is lost. The disk given stops working.
    pub(crate) fn recover(
        config: SegmentConfig,
        mut disk: MemoryDisk,
        states: &[(PartitionKey, PartitionState)],
    ) -> Result<Self, SegmentError> {
        let mut disk = disk.crash(CrashChoice::Everything);
        let states: Vec<_> =
            states.iter().map(|(key, state)| (*key, PartitionState::decode(&state.encode()).unwrap(), None)).collect();
        let mut store = SegmentStore::recover(config, &mut disk, &states, &BTreeMap::new())?;
        store.keep_digests();
        Ok(Self { disk, store, tickets: 0 })
    }

    /// Append batches of these value lengths, three records each, one millisecond apart.
    pub(crate) fn append(&mut self, value_lens: &[usize], epoch: i32) -> Vec<StoredBatch> {
        let mut batches = Vec::new();
        for len in value_lens {
            let base = self.store.log_end_offset(KEY);
            let batch = batch(base, 3, *len, base as i64 / 3, epoch);
            self.store.append(KEY, batch.clone()).unwrap();
            batches.push(batch);
        }
        batches
    }

    /// Deliver completions until nothing is in flight.
    pub(crate) fn settle(&mut self) -> Result<Vec<ReadDone>, SegmentError> {
        let mut reads = Vec::new();
        loop {
            let mut done = Vec::new();
            self.disk.wait(&mut done);
            if done.is_empty() {
                return Ok(reads);
            }
            for completion in done {
                reads.extend(self.store.on_completion(&mut self.disk, completion)?);
            }
        }
    }

    pub(crate) fn write_out(&mut self) {
        self.store.write_out(&mut self.disk);
        assert!(self.settle().unwrap().is_empty());
    }

    /// A whole checkpoint.
    pub(crate) fn checkpoint(&mut self) -> (CheckpointId, Vec<(PartitionKey, PartitionState)>) {
        let id = self.store.begin_checkpoint(&mut self.disk);
        assert!(self.settle().unwrap().is_empty());
        assert!(self.store.checkpoint_done());
        (id, self.store.checkpoint_states())
    }

    pub(crate) fn release(&mut self) {
        self.store.release_removed(&mut self.disk);
        self.settle().unwrap();
    }

    pub(crate) fn read(&mut self, offset: u64, max_bytes: usize) -> Result<Vec<Bytes>, SegmentError> {
        self.read_key(KEY, offset, max_bytes)
    }

    pub(crate) fn read_key(
        &mut self,
        key: PartitionKey,
        offset: u64,
        max_bytes: usize,
    ) -> Result<Vec<Bytes>, SegmentError> {
        self.tickets += 1;
        self.store.read(&mut self.disk, key, offset, max_bytes, self.tickets)?;
        self.finish_read()
    }

    pub(crate) fn read_from_timestamp(&mut self, timestamp: i64) -> Result<Vec<Bytes>, SegmentError> {
        self.tickets += 1;
        self.store.read_from_timestamp(&mut self.disk, KEY, timestamp, 1, self.tickets)?;
        self.finish_read()
    }

    /// A read of at most `max_bytes` with all that is known of it.
    pub(crate) fn read_done(&mut self, offset: u64, max_bytes: usize) -> ReadDone {
        self.tickets += 1;
        self.store.read(&mut self.disk, KEY, offset, max_bytes, self.tickets).unwrap();
        self.settle().unwrap().remove(0)
    }

    fn finish_read(&mut self) -> Result<Vec<Bytes>, SegmentError> {
        let mut done = self.settle().unwrap();
        assert_eq!(done.len(), 1, "one read, one result");
        let done = done.remove(0);
        assert_eq!(done.ticket, self.tickets);
        done.result.map(|read| batches_of(&read.bytes))
    }

    /// Everything from the log start offset to the written offset.
    pub(crate) fn read_all(&mut self, key: PartitionKey, max_bytes: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut offset = self.store.log_start_offset(key);
        while offset < self.store.written_offset(key) {
            for batch in self.read_key(key, offset, max_bytes).unwrap() {
                offset = BatchHeader::parse(&batch).unwrap().last_offset() + 1;
                bytes.extend_from_slice(&batch);
            }
        }
        bytes
    }

    /// All files with their bytes.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.disk.paths().into_iter().map(|path| (path.clone(), self.disk.file(&path).unwrap())).collect()
    }
}

pub(crate) fn concat(batches: &[StoredBatch]) -> Vec<u8> {
    batches.iter().flat_map(stored).collect()
}

/// A generator of numbers, the same for the same seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % bound
    }
}
