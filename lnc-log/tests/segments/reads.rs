//! Reading by offset and by time.

use crate::support::{Harness, KEY, batch, batches_of, concat, small, stored};
use lnc_log::disk::Disk;
use lnc_log::disk::memory::Order;
use lnc_log::segment::{PartitionKey, SegmentConfig, SegmentError, StoredBatch};
use std::io;

fn filled() -> (Harness, Vec<StoredBatch>) {
    filled_with(small())
}

fn filled_with(config: SegmentConfig) -> (Harness, Vec<StoredBatch>) {
    let mut replica = Harness::new(config);
    let lens = [10, 900, 3000, 1, 1, 1, 2500, 40, 700, 6000, 5, 5, 12_000, 5, 1200, 9000, 30, 30, 2000];
    let batches = replica.append(&lens, 3);
    (replica, batches)
}

#[test]
fn every_offset_at_every_size() {
    let (mut replica, batches) = filled();
    let (_, states) = replica.checkpoint();
    for restarted in [false, true] {
        if restarted {
            replica = Harness::recover(small(), replica.disk, &states).unwrap();
        }
        for offset in 0..replica.store.log_end_offset(KEY) {
            let first = batches.iter().position(|batch| batch.last_offset >= offset).unwrap();
            for max_bytes in [0, 1, 500, 5_000, 1 << 20] {
                let read = replica.read(offset, max_bytes).unwrap();
                for (n, bytes) in read.iter().enumerate() {
                    assert!(bytes[..] == stored(&batches[first + n]));
                }
                let len: usize = read.iter().map(|bytes| bytes.len()).sum();
                assert!(read.len() == 1 || len <= max_bytes && !read.is_empty());
            }
        }
        assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
    }
}

#[test]
fn large_reads_are_filled_up_to_the_end_of_the_segment() {
    let (mut replica, batches) = filled();
    let (_, states) = replica.checkpoint();
    for segment in &states[0].1.segments {
        let read = replica.read(segment.base_offset, 1 << 20).unwrap();
        assert_eq!(read.iter().map(|bytes| bytes.len() as u64).sum::<u64>(), segment.len);
        let inside = batches.iter().find(|batch| batch.base_offset > segment.base_offset).unwrap();
        let limit = inside.len();
        assert!(replica.read(inside.base_offset, limit).unwrap()[0][..] == stored(inside));
    }
}

/// One goes in any case, however long; the others follow in their order, and all are answered.
#[test]
fn reads_beyond_the_budget_wait_for_their_turn() {
    // Files and indexes are at hand after the first time.
    let (mut replica, batches) = filled_with(SegmentConfig { max_open_files: 99, max_cached_indexes: 99, ..small() });
    let (_, states) = replica.checkpoint();
    let bases: Vec<u64> = states[0].1.segments.iter().map(|segment| segment.base_offset).collect();
    assert!(bases.len() >= 3, "more than one file");
    replica.read_all(KEY, 1 << 20);
    replica.store.set_read_budget(&mut replica.disk, 1);
    replica.disk.set_order(Order::Held);
    for (ticket, base) in bases.iter().enumerate() {
        replica.store.read(&mut replica.disk, KEY, *base, 1 << 20, ticket as u64).unwrap();
    }
    let mut answered = Vec::new();
    while answered.len() < bases.len() {
        assert!(replica.disk.in_flight().len() <= 1, "all at once");
        replica.disk.release_all();
        let mut completions = Vec::new();
        replica.disk.reap(&mut completions);
        for completion in completions {
            let done = replica.store.on_completion(&mut replica.disk, completion).unwrap();
            answered.extend(done.map(|done| (done.ticket, done.result.unwrap().base_offset)));
        }
    }
    let expected: Vec<(u64, u64)> = (0..).zip(bases.iter().copied()).collect();
    assert_eq!(answered, expected);
    // With room again, those that wait are begun at once.
    for base in &bases {
        replica.store.read(&mut replica.disk, KEY, *base, 1 << 20, 0).unwrap();
    }
    assert_eq!(replica.disk.in_flight().len(), 1);
    replica.store.set_read_budget(&mut replica.disk, usize::MAX);
    assert_eq!(replica.disk.in_flight().len(), bases.len());
    assert_eq!(replica.settle().unwrap().len(), bases.len());
    assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
}

#[test]
fn what_is_not_in_the_files_is_out_of_range() {
    let (mut replica, _) = filled();
    let out_of_range = |result| matches!(result, Err(SegmentError::OutOfRange { .. }));
    assert!(out_of_range(replica.read(0, 1)), "nothing is written yet");
    replica.write_out();
    let written = replica.store.written_offset(KEY);
    assert!(written > 0 && written < replica.store.log_end_offset(KEY));
    replica.read(written - 1, 1).unwrap();
    assert!(out_of_range(replica.read(written, 1)));
    replica.checkpoint();
    replica.read(written, 1).unwrap();
    assert!(out_of_range(replica.read(replica.store.log_end_offset(KEY), 1)));
    replica.store.trim(KEY, 20).unwrap();
    assert!(out_of_range(replica.read(19, 1)));
    replica.read(20, 1).unwrap();
    let unknown = replica.read_key(PartitionKey { topic_id: 1, partition: 1 }, 0, 1);
    assert!(matches!(unknown, Err(SegmentError::UnknownPartition { .. })));
}

#[test]
fn records_are_found_by_time() {
    let mut replica = Harness::new(SegmentConfig { roll_ms: None, ..small() });
    // Producers' clocks differ: timestamps go up, but not in order.
    let timestamps: Vec<i64> = (0..200).map(|n| n * 10 + (n * 7919) % 83).collect();
    for (base, timestamp) in timestamps.iter().enumerate() {
        replica.store.append(KEY, batch(base as u64, 1, 400, *timestamp, 1)).unwrap();
    }
    let (_, states) = replica.checkpoint();
    for restarted in [false, true] {
        if restarted {
            replica = Harness::recover(small(), replica.disk, &states).unwrap();
        }
        for timestamp in (-5..2_100).step_by(3) {
            let expected = timestamps.iter().position(|t| *t >= timestamp);
            let bound = replica.store.offset_for_timestamp(KEY, timestamp).unwrap();
            match expected {
                Some(expected) => {
                    let read = replica.read_from_timestamp(timestamp).unwrap();
                    assert!(read[0][..] == stored(&batch(expected as u64, 1, 400, timestamps[expected], 1)));
                    let bound = bound.unwrap();
                    assert!((bound.offset..bound.before).contains(&(expected as u64)), "{timestamp}: {bound:?}");
                }
                None => {
                    assert_eq!(bound, None);
                    let read = replica.read_from_timestamp(timestamp);
                    assert!(matches!(read, Err(SegmentError::OutOfRange { offset: 200, .. })));
                }
            }
        }
    }
}

#[test]
fn a_time_that_is_only_in_memory_is_out_of_range() {
    let mut replica = Harness::new(SegmentConfig { segment_bytes: 1 << 20, index_interval_bytes: 1 << 20, ..small() });
    for base in 0..20 {
        replica.store.append(KEY, batch(base, 1, 1000, base as i64, 1)).unwrap();
    }
    replica.write_out();
    let written = replica.store.written_offset(KEY) as i64;
    assert!(written > 5 && written < 19);
    for timestamp in 0..20 {
        let read = replica.read_from_timestamp(timestamp);
        match read {
            Ok(batches) => assert!(timestamp < written && !batches.is_empty()),
            Err(error) => assert!(timestamp >= written && matches!(error, SegmentError::OutOfRange { .. }), "{error}"),
        }
    }
}

#[test]
fn reads_run_beside_each_other_and_beside_writes() {
    let (mut replica, batches) = filled();
    replica.checkpoint();
    let end = replica.store.log_end_offset(KEY);
    for offset in 0..end {
        replica.store.read(&mut replica.disk, KEY, offset, 1, offset).unwrap();
    }
    replica.append(&[4000; 4], 3);
    replica.store.write_out(&mut replica.disk);
    let mut done = replica.settle().unwrap();
    done.sort_by_key(|read| read.ticket);
    assert_eq!(done.iter().map(|read| read.ticket).collect::<Vec<_>>(), (0..end).collect::<Vec<_>>());
    for read in done {
        let expected = batches.iter().find(|batch| batch.last_offset >= read.ticket).unwrap();
        assert!(batches_of(&read.result.unwrap().bytes)[0][..] == stored(expected));
    }
}

#[test]
fn a_failed_read_concerns_that_read_only() {
    let (mut replica, _) = filled();
    replica.checkpoint();
    replica.disk.inject(Some(Box::new(|_, op| match op {
        lnc_log::disk::Op::Read { .. } => Some(io::Error::other("injected")),
        _ => None,
    })));
    assert!(matches!(replica.read(0, 1), Err(SegmentError::Damaged { .. })), "a place that cannot be read is damaged");
    replica.disk.inject(None);
    replica.read(0, 1).unwrap();
}
