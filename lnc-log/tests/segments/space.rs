//! Full and failing disks.

use crate::support::{Harness, KEY, batch, concat, small};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::disk::{Disk, Op};
use lnc_log::segment::{PartitionKey, SegmentError, SegmentStore};
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

/// Batches of other partitions than [`KEY`], small enough that their segments stay open.
fn append_to(replica: &mut Harness, key: PartitionKey, value_lens: &[usize]) {
    for len in value_lens {
        let base = replica.store.log_end_offset(key);
        replica.store.append(key, batch(base, 3, *len, base as i64 / 3, 1)).unwrap();
    }
}

/// Whatever comes after the checkpoint began would take the space that it lacks.
#[test]
fn while_space_is_short_the_checkpoint_in_progress_comes_first() {
    const OTHER: PartitionKey = PartitionKey { partition: 0, ..KEY };
    for saves in [false, true] {
        let mut replica = Harness::new(small());
        replica.store.create_partition(OTHER, None).unwrap();
        replica.checkpoint();
        let batches = replica.append(&[2000; 5], 1);
        replica.disk.set_order(Order::Held);
        replica.store.begin_checkpoint(&mut replica.disk);
        replica.disk.set_capacity(Some(replica.disk.used() + 48_000));
        replica.store.save_space(saves.then_some(4096));
        append_to(&mut replica, OTHER, &[2000; 9]);
        replica.disk.set_order(Order::Immediate);
        replica.store.write_out(&mut replica.disk);
        // The other one is quick, the operation of the checkpoint slow.
        let mut done = Vec::new();
        replica.disk.reap(&mut done);
        while let Some(completion) = done.pop() {
            replica.store.on_completion(&mut replica.disk, completion).unwrap();
            replica.disk.reap(&mut done);
        }
        replica.settle().unwrap();
        replica.write_out();
        assert_eq!(replica.store.checkpoint_done(), saves, "saves: {saves}");
        // Later comes the other one, as far as there is space for it.
        replica.disk.set_capacity(None);
        replica.store.save_space(None);
        replica.write_out();
        replica.checkpoint();
        assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
        assert_eq!(replica.store.written_offset(OTHER), replica.store.log_end_offset(OTHER));
    }
}

/// What is left is for the file of the checkpoint itself, without which the space that it frees never comes.
#[test]
fn while_space_is_short_segments_leave_some_of_it() {
    for capacity in (0..90_000).step_by(4096) {
        let mut replica = Harness::new(small());
        let batches = replica.append(&[3000; 9], 1);
        replica.disk.set_capacity(Some(capacity));
        replica.store.save_space(Some(10_000));
        replica.store.begin_checkpoint(&mut replica.disk);
        replica.settle().unwrap();
        let free = replica.disk.free_bytes().unwrap();
        assert!(free >= 10_000.min(capacity), "{free} of {capacity}");
        assert_eq!(replica.store.is_full(), !replica.store.checkpoint_done());
        replica.disk.set_capacity(None);
        replica.write_out();
        assert!(!replica.store.is_full() && replica.store.checkpoint_done());
        assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
    }
}

#[test]
fn a_checkpoint_is_given_up_only_for_one_that_needs_less() {
    let mut replica = Harness::new(small());
    replica.append(&[3000; 3], 1);
    replica.disk.set_capacity(Some(0));
    replica.store.begin_checkpoint(&mut replica.disk);
    replica.settle().unwrap();
    assert!(!replica.store.another_needs_less(), "it would need as much");
    replica.append(&[3000; 6], 1);
    let end = replica.store.state(KEY).unwrap().segments[0].end_offset;
    replica.store.trim(KEY, end).unwrap();
    assert!(!replica.store.another_needs_less(), "more has come than was removed");
    replica.store.remove_partition(KEY).unwrap();
    assert!(replica.store.another_needs_less());
}

/// Neither in files nor in memory: it would take the space that was made.
#[test]
fn what_waits_in_memory_is_given_up_too() {
    let mut replica = Harness::new(small());
    replica.append(&[3000; 20], 1);
    replica.checkpoint();
    let end = replica.store.log_end_offset(KEY);
    let before = replica.store.state(KEY).unwrap();
    replica.append(&[3000; 10], 1);
    replica.disk.set_capacity(Some(replica.disk.used()));
    replica.store.begin_checkpoint(&mut replica.disk);
    replica.settle().unwrap();
    assert!(!replica.store.checkpoint_done() && replica.store.pending_bytes() > 60_000);
    // The segment that is open goes with the whole partition alone: others have more in it.
    let part = BTreeMap::from([(KEY, replica.store.log_end_offset(KEY))]);
    let all = BTreeMap::from([(KEY, u64::MAX)]);
    assert!(replica.store.could_give_up(&part) <= replica.store.could_give_up(&all));
    let free = replica.store.could_give_up(&all);
    replica.store.give_up(&mut replica.disk, &all);
    replica.settle().unwrap();
    assert!(replica.store.checkpoint_done() && !replica.store.is_full());
    assert_eq!((replica.store.pending_bytes(), replica.store.could_give_up(&all)), (0, 0));
    assert!(replica.disk.free_bytes().unwrap() >= free && replica.files().is_empty());
    assert!(matches!(replica.store.read(&mut replica.disk, KEY, end, 1, 1), Err(SegmentError::GivenUp { .. })));
    // What comes afterwards goes its way, after a start from either checkpoint too.
    let states = replica.store.checkpoint_states();
    replica.append(&[300; 3], 1);
    assert_eq!(replica.store.log_start_offset(KEY), 0);
    for state in [before, states[0].1.clone()] {
        let mut disk = replica.disk.crash(CrashChoice::Everything);
        let mut store = SegmentStore::recover(small(), &mut disk, &[(KEY, state.clone(), None)], &all).unwrap();
        assert_eq!(store.log_end_offset(KEY), state.log_end_offset);
        store.remove_partition(KEY).unwrap();
        assert_eq!(store.pending_bytes(), 0);
        replica.disk = disk;
    }
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
