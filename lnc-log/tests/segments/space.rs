//! Full and failing disks.

use crate::support::{Harness, KEY, concat, small};
use lnc_log::disk::Op;
use lnc_log::segment::SegmentError;
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
