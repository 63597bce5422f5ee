//! Full and failing disks.

use crate::support::{Harness, KEY, concat, small};
use lnc_log::disk::Op;
use lnc_log::segment::{SegmentError, SegmentStore};
use std::collections::BTreeMap;
use std::io;

#[test]
fn a_full_disk_keeps_the_data_in_memory() {
    for capacity in (0..60_000).step_by(4096) {
        let mut replica = Harness::new(small());
        let mut batches = replica.append(&[3000; 3], 1);
        let (_, durable) = replica.checkpoint();
        let durable_batches = batches.len();
        replica.disk.set_capacity(Some(replica.disk.used() + capacity));
        batches.extend(replica.append(&[3000; 9], 1));
        replica.write_out();
        replica.store.begin_checkpoint(&mut replica.disk);
        replica.settle().unwrap();
        assert_eq!(replica.store.is_full(), !replica.store.checkpoint_done());
        // The checkpoint from before still holds, and what is in the files can be read.
        let readable = replica.read_all(KEY, 1);
        assert!(concat(&batches).starts_with(&readable));
        let mut disk = replica.disk.clone();
        disk.set_capacity(None);
        if replica.store.is_full() {
            // Again and again, without losing anything.
            disk.set_capacity(Some(disk.used()));
            replica.write_out();
            assert!(replica.store.is_full() && !replica.store.checkpoint_done());
            disk.set_capacity(None);
            replica.write_out();
        }
        assert!(!replica.store.is_full() && replica.store.checkpoint_done());
        assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
        let states = replica.store.checkpoint_states();
        let crashed = disk.crash(lnc_log::disk::memory::CrashChoice::Nothing);
        let mut recovered = Harness::recover(small(), crashed, &states).unwrap();
        assert!(recovered.read_all(KEY, 1 << 20) == concat(&batches));
        let mut older = Harness::recover(small(), recovered.disk, &durable).unwrap();
        assert!(older.read_all(KEY, 1 << 20) == concat(&batches[..durable_batches]));
    }
}

#[test]
fn a_full_disk_is_forgotten_when_what_waits_is_trimmed() {
    let mut replica = Harness::new(small());
    replica.disk.set_capacity(Some(0));
    replica.append(&[3000; 3], 1);
    replica.write_out();
    assert!(replica.store.is_full());
    replica.store.trim(KEY, u64::MAX).unwrap();
    replica.write_out();
    assert!(!replica.store.is_full());
    assert_eq!(replica.store.pending_bytes(), 0);
}

#[test]
fn failed_writes_and_syncs_are_fatal() {
    let failing: [fn(&Op) -> bool; 5] = [
        |op| matches!(op, Op::Write { .. }),
        |op| matches!(op, Op::Sync { .. }),
        |op| matches!(op, Op::SyncDir { .. }),
        |op| matches!(op, Op::SetLen { .. }),
        |op| matches!(op, Op::CreateDir { .. }),
    ];
    for (n, fails) in failing.into_iter().enumerate() {
        let mut replica = Harness::new(small());
        replica.append(&[3000; 9], 1);
        let hook = move |_, op: &Op| fails(op).then(|| io::Error::other("injected"));
        replica.disk.inject(Some(Box::new(hook)));
        replica.store.begin_checkpoint(&mut replica.disk);
        let error = replica.settle().unwrap_err();
        assert!(matches!(error, SegmentError::Io { .. }), "case {n}: {error}");
        assert!(!replica.store.checkpoint_done());
    }
}

/// It is done again as a whole, from memory.
#[test]
fn a_durable_write_that_finds_the_disk_full_is_tried_again() {
    let mut replica = Harness::new(small());
    let batches = replica.append(&[300], 1);
    let hook = |_, op: &Op| matches!(op, Op::Write { durable: true, .. }).then(|| io::ErrorKind::StorageFull.into());
    replica.disk.inject(Some(Box::new(hook)));
    replica.store.begin_checkpoint(&mut replica.disk);
    replica.settle().unwrap();
    assert!(replica.store.is_full() && !replica.store.checkpoint_done());
    replica.disk.inject(None);
    replica.write_out();
    assert!(replica.store.checkpoint_done());
    let states = replica.store.checkpoint_states();
    let crashed = replica.disk.crash(lnc_log::disk::memory::CrashChoice::Nothing);
    let mut recovered = Harness::recover(small(), crashed, &states).unwrap();
    assert!(recovered.read_all(KEY, 1 << 20) == concat(&batches));
}

#[test]
fn a_sync_that_finds_the_disk_full_is_fatal() {
    let mut replica = Harness::new(small());
    replica.append(&[3000], 1);
    let hook = |_, op: &Op| matches!(op, Op::Sync { .. }).then(|| io::ErrorKind::StorageFull.into());
    replica.disk.inject(Some(Box::new(hook)));
    replica.store.begin_checkpoint(&mut replica.disk);
    assert!(matches!(replica.settle(), Err(SegmentError::Io { action: "sync", .. })));
}

#[test]
fn a_removal_that_fails_is_left_to_the_next_start() {
    let mut replica = Harness::new(small());
    replica.append(&[3000; 9], 1);
    replica.checkpoint();
    replica.store.remove_partition(KEY).unwrap();
    let (_, states) = replica.checkpoint();
    let hook = |_, op: &Op| matches!(op, Op::Remove { .. }).then(|| io::Error::other("injected"));
    replica.disk.inject(Some(Box::new(hook)));
    replica.release();
    assert!(!replica.disk.paths().is_empty());
    replica.disk.inject(None);
    let recovered = Harness::recover(small(), replica.disk, &states).unwrap();
    assert!(recovered.disk.paths().is_empty());
}

/// Batches in several sealed segments and an open one, and the state that the last checkpoint has of them.
fn sealed() -> (Harness, Vec<lnc_log::segment::PartitionState>, u64) {
    let mut replica = Harness::new(small());
    replica.append(&[3000; 40], 1);
    let (_, states) = replica.checkpoint();
    let end = replica.store.log_end_offset(KEY);
    (replica, states.into_iter().map(|(_, state)| state).collect(), end)
}

/// The log says durably that they go: a start does not miss them, and does not need space to have them again.
#[test]
fn what_is_removed_early_is_not_missed_at_the_start() {
    let (mut replica, states, end) = sealed();
    let before = replica.disk.used();
    replica.store.remove_partition(KEY).unwrap();
    replica.settle().unwrap();
    replica.store.release_early(&mut replica.disk);
    replica.settle().unwrap();
    assert!(replica.disk.used() == 0 && before > 100_000, "{} bytes are left", replica.disk.used());
    let mut disk = replica.disk.crash(lnc_log::disk::memory::CrashChoice::Everything);
    disk.set_capacity(Some(0));
    disk.set_file_capacity(Some(disk.files()));
    let partitions = [(KEY, states[0].clone(), None)];
    let going = BTreeMap::from([(KEY, u64::MAX)]);
    let mut store = SegmentStore::recover(small(), &mut disk, &partitions, &going).unwrap();
    assert_eq!(store.log_end_offset(KEY), end);
    assert!(matches!(store.read(&mut disk, KEY, 0, 1, 1), Err(SegmentError::GivenUp { .. })));
    store.remove_partition(KEY).unwrap();
    assert_eq!(store.pending_bytes(), 0);
    // Without the word of the log, it is missed.
    disk.set_capacity(None);
    disk.set_file_capacity(None);
    let mut store = SegmentStore::recover(small(), &mut disk, &partitions, &BTreeMap::new()).unwrap();
    assert!(store.read(&mut disk, KEY, 0, 1, 1).is_ok(), "and told to be damaged by the read");
}

/// A replica that is behind goes on with what follows, whatever of its files went.
#[test]
fn a_replica_whose_old_segments_went_early_takes_in_what_comes() {
    let (mut replica, _, end) = sealed();
    let below = BTreeMap::from([(KEY, end)]);
    let (before, freed) = (replica.disk.used(), replica.store.could_give_up(&below));
    replica.store.give_up(&mut replica.disk, &below);
    replica.settle().unwrap();
    assert!(freed > 50_000 && replica.disk.used() + freed <= before);
    assert_eq!(replica.store.could_give_up(&below), 0);
    assert!(matches!(replica.store.read(&mut replica.disk, KEY, 0, 1, 1), Err(SegmentError::GivenUp { .. })));
    replica.append(&[3000; 20], 1);
    let (_, states) = replica.checkpoint();
    let mut disk = replica.disk.crash(lnc_log::disk::memory::CrashChoice::Nothing);
    let partitions: Vec<_> = states.into_iter().map(|(key, state)| (key, state, None)).collect();
    let mut store = SegmentStore::recover(small(), &mut disk, &partitions, &below).unwrap();
    store.trim(KEY, end).unwrap();
    assert!(store.log_end_offset(KEY) > end);
}

/// The checkpoint in progress waits for bytes that nobody needs any more.
#[test]
fn a_checkpoint_that_waits_for_space_can_be_given_up() {
    let mut replica = Harness::new(small());
    replica.append(&[3000; 3], 1);
    replica.disk.set_capacity(Some(0));
    replica.store.begin_checkpoint(&mut replica.disk);
    replica.settle().unwrap();
    assert!(replica.store.is_full() && !replica.store.checkpoint_done());
    replica.store.remove_partition(KEY).unwrap();
    replica.store.abandon_checkpoint(&mut replica.disk);
    replica.settle().unwrap();
    assert!(replica.store.checkpoint_done() && !replica.store.is_full());
    assert_eq!(replica.store.pending_bytes(), 0);
    replica.checkpoint();
}

#[test]
fn a_full_quota_is_a_full_disk() {
    let mut replica = Harness::new(small());
    let batches = replica.append(&[3000; 9], 1);
    let hook = |_, op: &Op| matches!(op, Op::Write { .. }).then(|| io::ErrorKind::QuotaExceeded.into());
    replica.disk.inject(Some(Box::new(hook)));
    replica.store.begin_checkpoint(&mut replica.disk);
    replica.settle().unwrap();
    assert!(replica.store.is_full());
    replica.disk.inject(None);
    replica.write_out();
    assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
}
