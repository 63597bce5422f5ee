//! Trimming, retention and removal.

use crate::support::{Harness, KEY, batch, batches_of, concat, small};
use lnc_log::disk::memory::Order;
use lnc_log::segment::{Allowance, PartitionKey, SegmentError};

fn log_files(replica: &Harness) -> Vec<String> {
    replica.disk.paths().into_iter().filter(|path| path.ends_with(".log")).collect()
}

#[test]
fn trimmed_files_go_once_a_later_checkpoint_is_durable() {
    let mut replica = Harness::new(small());
    let batches = replica.append(&[3000; 12], 1);
    let (_, states) = replica.checkpoint();
    let segments = states[0].1.segments.clone();
    let files = replica.files().len();
    let cut = segments[2].base_offset + 1;
    replica.store.trim(KEY, cut).unwrap();
    assert_eq!(replica.store.log_start_offset(KEY), cut);
    assert_eq!(replica.store.size_bytes(KEY), segments[2..].iter().map(|segment| segment.len).sum::<u64>());
    replica.release();
    assert_eq!(replica.files().len(), files, "the durable checkpoint names these files");
    // Nothing of it is on disk, so a start with it gives the partition back.
    let mut replica = Harness::recover(small(), replica.disk, &states).unwrap();
    assert!(replica.read_all(KEY, 1) == concat(&batches));
    replica.store.trim(KEY, cut).unwrap();

    let (_, states) = replica.checkpoint();
    replica.release();
    assert_eq!(replica.files().len(), files - 4);
    assert_eq!(states[0].1.log_start_offset, cut);
    let rest: Vec<_> = batches.into_iter().filter(|batch| batch.base_offset >= segments[2].base_offset).collect();
    assert!(replica.read_all(KEY, 1) == concat(&rest));
    // Going back is not possible, going past the end is not either.
    replica.store.trim(KEY, 3).unwrap();
    assert_eq!(replica.store.log_start_offset(KEY), cut);
    replica.store.trim(KEY, u64::MAX).unwrap();
    assert_eq!(replica.store.log_start_offset(KEY), replica.store.log_end_offset(KEY));
}

#[test]
fn a_checkpoint_in_progress_releases_nothing() {
    let mut replica = Harness::new(small());
    replica.append(&[3000; 12], 1);
    let (_, states) = replica.checkpoint();
    replica.store.trim(KEY, 30).unwrap();
    replica.append(&[3000], 1);
    replica.disk.set_order(Order::Held);
    replica.store.begin_checkpoint(&mut replica.disk);
    replica.store.release_removed(&mut replica.disk);
    replica.disk.release_all();
    replica.disk.set_order(Order::Immediate);
    // The checkpoint in progress is not durable yet: the one before it must still work.
    let mut replica = Harness::recover(small(), replica.disk, &states).unwrap();
    assert_eq!(replica.store.log_start_offset(KEY), 0);
    assert_eq!(replica.read(0, 1).unwrap().len(), 1);
}

#[test]
fn a_partition_that_expired_goes_on_with_a_new_segment() {
    let mut replica = Harness::new(small());
    replica.append(&[100, 200], 1);
    replica.checkpoint();
    replica.append(&[300], 1);
    replica.store.trim(KEY, 9).unwrap();
    assert_eq!((replica.store.size_bytes(KEY), replica.store.pending_bytes()), (0, 0));
    let (_, states) = replica.checkpoint();
    assert!(states[0].1.segments.is_empty());
    replica.release();
    assert!(replica.disk.paths().is_empty());
    for restarted in [false, true] {
        if restarted {
            replica = Harness::recover(small(), replica.disk, &states).unwrap();
        }
        let batches = replica.append(&[50], 1);
        let (_, states) = replica.checkpoint();
        assert_eq!(states[0].1.segments[0].base_offset, 9);
        assert!(replica.read_all(KEY, 1) == concat(&batches));
    }
}

#[test]
fn retention_by_age_and_size() {
    let mut replica = Harness::new(small());
    for base in 0..10 {
        replica.store.append(KEY, batch(base, 1, 15_000, base as i64 * 100, 1)).unwrap();
    }
    let state = replica.store.state(KEY).unwrap();
    assert_eq!(state.segments.len(), 10);
    let len = state.segments[0].len;
    let candidates =
        |oldest, bytes| replica.store.trim_candidates(KEY, oldest, bytes, &mut Allowance::UNLIMITED.clone());
    assert_eq!(candidates(None, None), None);
    assert_eq!(candidates(Some(0), None), None);
    assert_eq!(candidates(Some(1), None), Some(1));
    assert_eq!(candidates(Some(501), None), Some(6));
    assert_eq!(candidates(Some(5_000), None), Some(10), "the open segment expires too");
    assert_eq!(candidates(None, Some(len * 10)), None);
    assert_eq!(candidates(None, Some(len * 10 - 1)), Some(1));
    assert_eq!(candidates(None, Some(len * 4)), Some(6));
    assert_eq!(candidates(None, Some(0)), Some(9), "the open segment stays whatever its size");
    assert_eq!(candidates(Some(501), Some(len * 9)), Some(6));
    let unknown = PartitionKey { topic_id: 0, partition: 0 };
    let mut unlimited = Allowance::UNLIMITED;
    assert_eq!(replica.store.trim_candidates(unknown, Some(u64::MAX), Some(0), &mut unlimited), None);
    let few = |mut allowance: Allowance, bytes| {
        let candidate = replica.store.trim_candidates(KEY, Some(5_000), bytes, &mut allowance);
        (candidate, allowance)
    };
    let two = Allowance { bytes: len as i64 + 1, segments: 9 };
    assert_eq!(
        few(two, None),
        (Some(2), Allowance { bytes: 1 - len as i64, segments: 7 }),
        "the last one may exceed it"
    );
    assert_eq!(few(Allowance { bytes: i64::MAX, segments: 3 }, None).0, Some(3));
    assert_eq!(few(Allowance { bytes: 0, segments: 3 }, Some(len * 4)).0, Some(6), "what is too much goes at once");
}

#[test]
fn what_was_stamped_ahead_can_be_taken_back() {
    let mut replica = Harness::new(small());
    for (base, append_ms) in [(0, 100), (1, 90_000), (2, 90_000)] {
        replica.store.append(KEY, batch(base, 1, 15_000, append_ms, 1)).unwrap();
    }
    let oldest =
        |replica: &Harness, at| replica.store.trim_candidates(KEY, Some(at), None, &mut Allowance::UNLIMITED.clone());
    assert_eq!(oldest(&replica, 1_000), Some(1));
    replica.store.cap_append_times(KEY, 200).unwrap();
    let times: Vec<_> =
        replica.store.state(KEY).unwrap().segments.iter().map(|s| (s.first_append_ms, s.last_append_ms)).collect();
    assert_eq!(times, [(100, 100), (200, 200), (200, 200)]);
    assert_eq!(oldest(&replica, 201), Some(3));
}

#[test]
fn a_removed_partition_goes_with_its_directory() {
    let mut replica = Harness::new(small());
    let other = PartitionKey { topic_id: 8, partition: 0 };
    replica.store.create_partition(other, None).unwrap();
    replica.store.append(other, batch(0, 1, 10, 0, 1)).unwrap();
    replica.append(&[3000; 12], 1);
    let (_, before) = replica.checkpoint();
    replica.append(&[3000; 3], 1);
    replica.store.trim(KEY, 9).unwrap();
    replica.store.remove_partition(KEY).unwrap();
    assert!(matches!(replica.read(10, 1), Err(SegmentError::UnknownPartition { .. })));
    assert_eq!(replica.store.partitions().collect::<Vec<_>>(), [other]);
    replica.release();
    let mut replica = Harness::recover(small(), replica.disk, &before).unwrap();
    assert_eq!(replica.store.partitions().collect::<Vec<_>>(), [KEY, other]);
    replica.store.remove_partition(KEY).unwrap();
    let (_, states) = replica.checkpoint();
    assert_eq!(states.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [other]);
    replica.release();
    assert_eq!(log_files(&replica).len(), 1);
    assert!(replica.disk.paths().iter().all(|path| path.starts_with("segments/8-0/")));
    assert_eq!(replica.store.pending_bytes(), batch(0, 1, 10, 0, 1).len() as u64);
}

/// A checkpoint in progress names what is trimmed or removed meanwhile: it must be able to recover all the same.
#[test]
fn what_goes_while_a_checkpoint_is_in_progress_is_still_part_of_it() {
    for remove in [false, true] {
        for released in 0..12 {
            let mut replica = Harness::new(small());
            let batches = replica.append(&[3000; 12], 1);
            replica.disk.set_order(Order::Held);
            replica.store.begin_checkpoint(&mut replica.disk);
            for _ in 0..released {
                let Some((number, _)) = replica.disk.in_flight().first().copied() else { break };
                replica.disk.release(number);
                let mut done = Vec::new();
                lnc_log::disk::Disk::reap(&mut replica.disk, &mut done);
                for completion in done {
                    replica.store.on_completion(&mut replica.disk, completion).unwrap();
                }
            }
            match remove {
                true => replica.store.remove_partition(KEY).unwrap(),
                false => {
                    replica.store.trim(KEY, u64::MAX).unwrap();
                    replica.append(&[100], 1);
                }
            }
            replica.settle().unwrap();
            assert!(replica.store.checkpoint_done());
            let states = replica.store.checkpoint_states();
            replica.release();
            replica.disk.set_order(Order::Immediate);
            let mut recovered = Harness::recover(small(), replica.disk, &states).unwrap();
            assert!(recovered.read_all(KEY, 1 << 20) == concat(&batches));
        }
    }
}

#[test]
fn reads_under_way_outlive_what_they_read() {
    for remove in [false, true] {
        let mut replica = Harness::new(small());
        replica.append(&[3000; 12], 1);
        replica.checkpoint();
        replica.disk.set_order(Order::Held);
        replica.store.read(&mut replica.disk, KEY, 0, 1, 1).unwrap();
        match remove {
            true => replica.store.remove_partition(KEY).unwrap(),
            false => replica.store.trim(KEY, u64::MAX).unwrap(),
        }
        replica.store.begin_checkpoint(&mut replica.disk);
        replica.store.release_removed(&mut replica.disk);
        let done = replica.settle().unwrap();
        assert_eq!(batches_of(&done[0].result.as_ref().unwrap().bytes).len(), 1);
        replica.checkpoint();
        replica.release();
        assert!(replica.disk.paths().is_empty());
    }
}
