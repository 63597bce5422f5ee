//! Segment files and the state that a checkpoint has of them, both altered: recovery and reading end, and nothing is
//! handed out that is no whole, checked batch at its place.
//!
//! The input is a list of batches and a list of changes to what a store made of them.

use crate::batches::seal;
use crate::input::{Input, put, store};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::segment::{PartitionKey, PartitionState, ReadDone, SegmentConfig, SegmentStore, StoredBatch};
use lnc_protocol::batch::{self, BatchHeader};
use lnc_protocol::{BatchBuilder, Codec};
use std::collections::BTreeMap;

const KEY: PartitionKey = PartitionKey { topic_id: 7, partition: 1 };
const DIR: &str = "segments/7-1";
/// Most batches and most changes of one input.
const MAX_BATCHES: u8 = 12;
const MAX_CHANGES: usize = 24;

fn config() -> SegmentConfig {
    SegmentConfig {
        segment_bytes: 6_000,
        roll_ms: None,
        index_interval_bytes: 1_500,
        write_block: 8192,
        max_open_files: 2,
        max_cached_indexes: 1,
        max_lanes: 1,
    }
}

/// See the module.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (mut disk, mut state) = written(&mut input);
    for _ in 0..MAX_CHANGES {
        if input.is_empty() {
            break;
        }
        change(&mut input, &mut disk, &mut state);
    }
    let mut disk = disk.crash(CrashChoice::Everything);
    let Ok(state) = PartitionState::decode(&state) else { return };
    let Ok(mut store) = SegmentStore::recover(config(), &mut disk, &[(KEY, state, None)], &Default::default()) else {
        return;
    };
    read_all(&mut store, &mut disk);
    for timestamp in [i64::MIN, 0, input.word() as i64] {
        if store.read_from_timestamp(&mut disk, KEY, timestamp, 1, 1).is_ok() {
            assert_eq!(settle(&mut store, &mut disk).len(), 1, "one read, one result");
        }
    }
}

/// A store with the batches of an input, written to its files: the disk, and the partition's state.
fn written(input: &mut Input<'_>) -> (MemoryDisk, Vec<u8>) {
    let (mut disk, mut store) = (MemoryDisk::new(), SegmentStore::new(config()));
    store.create_partition(KEY, None).expect("a new partition");
    let first = input.byte();
    if first & 0x80 == 0 {
        store.keep_digests();
    }
    for n in 0..first % MAX_BATCHES + 1 {
        let value = vec![n; usize::from(input.byte()) * 16];
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(i64::from(n), None, Some(&value), &[]).expect("a small record");
        let raw = builder.build();
        let base_offset = store.log_end_offset(KEY);
        let prefix = batch::stamped_prefix(&raw, base_offset, 1 + i32::from(n) / 4);
        let max_timestamp = n.into();
        let batch =
            StoredBatch { base_offset, last_offset: base_offset, max_timestamp, append_ms: n.into(), prefix, raw };
        store.append(KEY, batch).expect("a batch that follows the last");
    }
    store.begin_checkpoint(&mut disk);
    settle(&mut store, &mut disk);
    let (_, state) = store.checkpoint_states().pop().expect("one partition");
    (disk, state.encode())
}

/// One change: to a byte of a file or of the state, with or without putting the checksum around it right.
fn change(input: &mut Input<'_>, disk: &mut MemoryDisk, state: &mut [u8]) {
    let (kind, which, at) = (input.byte(), usize::from(input.byte()), usize::from(input.short()));
    let mask = input.byte();
    if kind % 4 == 0 {
        if let Some(byte) = state.get_mut(at) {
            *byte ^= mask;
        }
        return;
    }
    let names = disk.paths();
    let Some(path) = names.get(which % names.len().max(1)) else { return };
    let mut bytes = disk.file(path).unwrap_or_default();
    if kind % 4 == 3 {
        bytes.truncate(at);
    } else if let Some(byte) = bytes.get_mut(at) {
        *byte ^= mask;
    }
    if kind % 4 == 2 && path.ends_with(".log") {
        seal_batch(&mut bytes, at);
    } else if kind % 4 == 2 {
        seal_index(&mut bytes);
    }
    let name = path.strip_prefix(DIR).and_then(|rest| rest.strip_prefix('/')).expect("all files are the partition's");
    store_again(disk, name, &bytes);
}

fn store_again(disk: &mut MemoryDisk, name: &str, bytes: &[u8]) {
    store(disk, DIR, name, bytes);
}

/// Puts the checksum of the batch around a position right, but not its length.
fn seal_batch(bytes: &mut [u8], at: usize) {
    let mut begin = 0;
    while let Ok(header) = BatchHeader::parse(&bytes[begin..]) {
        let end = begin + header.total_len();
        let Some(batch) = bytes.get_mut(begin..end) else { return };
        if at < end {
            return seal(batch);
        }
        begin = end;
    }
}

fn seal_index(bytes: &mut [u8]) {
    // With digests or without: lengths of the header and of an entry.
    let (header, entry) = if bytes.get(7) == Some(&2) { (64, 32) } else { (40, 24) };
    let Some(count) = bytes.get(header - 8..header).and_then(|raw| raw.first_chunk()) else { return };
    let end = u64::from_le_bytes(*count).saturating_mul(entry).saturating_add(header as u64);
    if let Some(covered) = usize::try_from(end).ok().and_then(|end| bytes.get(..end)) {
        let crc = crc32fast::hash(covered);
        put(bytes, end as usize, &crc.to_le_bytes());
    }
}

/// Reads from every offset on.
fn read_all(store: &mut SegmentStore, disk: &mut MemoryDisk) {
    let mut served = BTreeMap::new();
    for offset in 0..u64::from(MAX_BATCHES) + 1 {
        if store.read(disk, KEY, offset, 3000, offset).is_err() {
            continue;
        }
        let mut done = settle(store, disk);
        assert_eq!(done.len(), 1, "one read, one result");
        let done = done.remove(0);
        assert_eq!(done.ticket, offset);
        let Ok(batches) = done.result else { continue };
        assert!(!batches.bytes.is_empty(), "a read gives a batch or an error");
        let mut next = None;
        for bytes in batch::split(batches.bytes.clone()) {
            let bytes = bytes.expect("whole batches");
            let header = batch::check(&bytes).expect("a whole, checked batch");
            let (base, last) = (header.base_offset, header.last_offset());
            assert_eq!(next.unwrap_or(base), base, "offsets follow one another");
            assert!(next.is_some() || (base..=last).contains(&offset), "the first batch holds what was asked for");
            assert_eq!(*served.entry(base).or_insert_with(|| bytes.clone()), bytes, "the same bytes at an offset");
            next = Some(last + 1);
        }
        assert_eq!(next, Some(batches.end_offset), "it says where it ends");
    }
}

fn settle(store: &mut SegmentStore, disk: &mut MemoryDisk) -> Vec<ReadDone> {
    let mut reads = Vec::new();
    loop {
        let mut done = Vec::new();
        disk.wait(&mut done);
        if done.is_empty() {
            return reads;
        }
        for completion in done {
            reads.extend(store.on_completion(disk, completion).expect("a healthy disk"));
        }
    }
}
