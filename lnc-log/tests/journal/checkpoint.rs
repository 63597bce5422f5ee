//! Checkpoint files: damage, a full disk, failing operations, leftovers, crashes at every operation.

use lnc_log::FileOwner;
use lnc_log::checkpoint::{
    Checkpoint, CheckpointError, CheckpointWriter, Facts, GroupCheckpoint, load_latest, load_own, write_now,
};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::disk::{Disk, MemoryDisk, Op};
use lnc_log::journal::GroupId;
use std::io;

fn checkpoint(number: u64) -> Checkpoint {
    let group = |id: u32, vote| GroupCheckpoint {
        group: GroupId(id),
        term: 3,
        vote,
        applied_index: number * 10,
        applied_term: 2,
        configuration: vec![7; 5 * id as usize].into(),
        state: vec![number as u8; 300 * id as usize].into(),
    };
    Checkpoint {
        number,
        journal_file: number + 5,
        facts: None,
        groups: vec![group(0, None), group(1, Some(0)), group(4, Some(9))],
    }
}

fn path(number: u64) -> String {
    format!("checkpoint/{number:020}.checkpoint")
}

/// Write one checkpoint to its end.
fn write(disk: &mut MemoryDisk, writer: &mut CheckpointWriter, number: u64) -> Result<Option<u64>, CheckpointError> {
    writer.start(disk, checkpoint(number));
    let mut safe = None;
    while writer.busy() {
        let mut done = Vec::new();
        disk.wait(&mut done);
        for completion in done {
            safe = safe.or(writer.on_completion(disk, completion)?);
        }
    }
    Ok(safe)
}

/// The newest checkpoint, of which both copies are whole.
fn load(disk: &mut MemoryDisk) -> Option<Checkpoint> {
    load_latest(disk).expect("intact").map(|loaded| {
        assert!(loaded.damage.is_none(), "{:?}", loaded.damage);
        loaded.checkpoint
    })
}

#[test]
fn the_newest_is_loaded_and_one_predecessor_kept() {
    let mut disk = MemoryDisk::new();
    assert_eq!(load(&mut disk), None);
    let mut writer = CheckpointWriter::new();
    for number in 1..=4 {
        assert_eq!(write(&mut disk, &mut writer, number).expect("healthy"), Some(number));
    }
    assert_eq!(disk.paths(), [path(3), path(4)]);
    let mut disk = disk.crash(CrashChoice::Nothing);
    assert_eq!(load(&mut disk), Some(checkpoint(4)));
    assert_eq!(load(&mut disk), Some(checkpoint(4)), "loading twice gives the same");
}

#[test]
fn no_flipped_bit_and_no_cut_goes_unnoticed() {
    let mut disk = MemoryDisk::new();
    load(&mut disk);
    let mut writer = CheckpointWriter::new();
    write(&mut disk, &mut writer, 1).expect("healthy");
    write(&mut disk, &mut writer, 2).expect("healthy");
    let len = disk.file(&path(2)).expect("written").len() as u64;
    for position in (0..len).step_by(3) {
        for bit in 0..8 {
            disk.corrupt(&path(2), position, 1 << bit);
            let loaded = load_latest(&mut disk).expect("the other copy is whole").expect("there is one");
            assert_eq!(loaded.checkpoint, checkpoint(2));
            let found = loaded.damage.unwrap_or_else(|| panic!("byte {position}, bit {bit} went unnoticed"));
            assert!(matches!(&found, CheckpointError::Damaged { path: p, .. } if *p == path(2)), "{found}");
            disk.corrupt(&path(2), (position + len / 2) % len, 1);
            assert!(matches!(load_latest(&mut disk), Err(CheckpointError::Lost { .. })), "byte {position}");
            disk.corrupt(&path(2), (position + len / 2) % len, 1);
            disk.corrupt(&path(2), position, 1 << bit);
        }
    }
    assert_eq!(load(&mut disk), Some(checkpoint(2)));
    let file = lnc_log::disk::Owner::Setup.file(1);
    disk.run(Op::Open { file, path: path(2), create: false, direct: false }).expect("open");
    for shorter in (0..len).rev().step_by(5) {
        disk.run(Op::SetLen { file, len: shorter }).expect("cut");
        match load_latest(&mut disk) {
            // The first copy may be whole still.
            Ok(Some(loaded)) => {
                assert!(loaded.damage.is_some() && loaded.checkpoint == checkpoint(2), "{shorter} bytes")
            }
            Err(CheckpointError::Lost { .. }) => assert!(shorter <= len / 2, "{shorter} bytes"),
            other => panic!("{shorter} bytes: {other:?}"),
        }
    }
}

/// Bytes behind what was written void nothing, and one copy that cannot be read is as good as one that reads wrong.
#[test]
fn appended_bytes_and_an_unreadable_copy_leave_the_other_copy_of_use() {
    let written = || {
        let mut disk = MemoryDisk::new();
        load(&mut disk);
        write(&mut disk, &mut CheckpointWriter::new(), 1).expect("healthy");
        let bytes = disk.file(&path(1)).expect("written");
        (disk, bytes)
    };
    for more in [1, 100, 4096, 4097, 3 * 4096] {
        let (mut disk, bytes) = written();
        disk.replace(&path(1), &[bytes, vec![b'x'; more]].concat());
        let loaded = load_latest(&mut disk).expect("both copies are whole").expect("there is one");
        assert_eq!(loaded.checkpoint, checkpoint(1));
        assert!(loaded.damage.is_some(), "{more} bytes more: a new one is to be written");
    }
    let (mut disk, bytes) = written();
    for copy in [0, bytes.len() / 2] {
        let mut disk = disk.crash(CrashChoice::Nothing);
        assert!(disk.make_unreadable(&path(1), copy as u64, 1));
        let loaded = load_latest(&mut disk).expect("the other copy is whole").expect("there is one");
        assert_eq!(loaded.checkpoint, checkpoint(1));
        assert!(loaded.damage.is_some(), "copy at {copy}");
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    assert!(disk.make_unreadable(&path(1), 0, bytes.len() as u64));
    let error = load_latest(&mut disk).expect_err("neither copy can be read").to_string();
    assert!(error.contains("both copies") && error.contains("the disk fails"), "{error}");
}

#[test]
fn a_checkpoint_says_whose_it_is_and_which_one_must_be_there() {
    let owner = |node| FileOwner { cluster: 9, node, incarnation: 5 };
    let mut disk = MemoryDisk::new();
    assert!(load_own(&mut disk, &owner(1), 0).expect("none is needed").is_none());
    let facts = Facts { owner: owner(1), needed_file: 8 };
    let ours = Checkpoint { facts: Some(facts), ..checkpoint(3) };
    write_now(&mut disk, ours.clone(), None).expect("healthy");
    let loaded = load_own(&mut disk, &owner(1), 3).expect("it is its own").expect("there is one");
    assert_eq!((loaded.checkpoint, loaded.damage.is_none()), (ours, true));
    let error = load_own(&mut disk, &owner(2), 3).expect_err("it is another's").to_string();
    assert!(error.contains(&owner(1).to_string()) && error.contains(&owner(2).to_string()), "{error}");
    for known in [4, 100] {
        let error = load_own(&mut disk, &owner(1), known).expect_err("a later one is known");
        assert!(matches!(error, CheckpointError::Gone { number, found: Some(3) } if number == known), "{error}");
    }
    // Without facts, as before format 3, any is taken.
    write_now(&mut disk, checkpoint(4), None).expect("healthy");
    assert!(load_own(&mut disk, &owner(2), 4).expect("nobody knows whose it is").is_some());
}

#[test]
fn every_crash_leaves_the_old_one_or_the_new_one() {
    let mut before = MemoryDisk::new();
    load(&mut before);
    let mut writer = CheckpointWriter::new();
    for number in 1..=2 {
        write(&mut before, &mut writer, number).expect("healthy");
    }
    for last in 0..12 {
        let mut disk = before.crash(CrashChoice::Nothing);
        disk.stop_after(last);
        let safe = write(&mut disk, &mut CheckpointWriter::new(), 3);
        let unsynced = disk.unsynced();
        assert!(unsynced < 8);
        let subsets = (0..1u64 << unsynced).map(CrashChoice::Subset);
        for choice in subsets.chain((0..16).map(CrashChoice::Torn)) {
            let mut crashed = disk.crash(choice);
            let loaded = load(&mut crashed);
            let number = loaded.as_ref().map(|c| c.number);
            assert!(number == Some(2) && !matches!(safe, Ok(Some(3))) || number == Some(3), "after {last}: {number:?}");
            assert_eq!(loaded, number.map(checkpoint));
            assert!(crashed.paths().iter().all(|path| !path.ends_with(".tmp")));
            // What was loaded must be safe to rely on, and the next attempt must work.
            let mut again = crashed.crash(CrashChoice::Nothing);
            assert_eq!(load(&mut again), loaded);
            assert_eq!(write(&mut again, &mut CheckpointWriter::new(), 4).expect("healthy"), Some(4));
        }
    }
}

/// A kill between the rename and the sync of the directory: what was loaded once stays.
#[test]
fn what_is_loaded_after_a_kill_survives_a_power_loss() {
    for last in 0..12 {
        let mut disk = MemoryDisk::new();
        load(&mut disk);
        write(&mut disk, &mut CheckpointWriter::new(), 1).expect("healthy");
        disk.stop_after(disk.operations() + last);
        // Fails where the disk stops; how far it came is what the next lines look at.
        let _ = write(&mut disk, &mut CheckpointWriter::new(), 2);
        let mut killed = disk.kill(0);
        let loaded = load(&mut killed);
        assert!(loaded.is_some());
        assert_eq!(load(&mut killed.crash(CrashChoice::Nothing)), loaded, "after {last}");
    }
}

#[test]
fn a_full_disk_keeps_the_old_one_and_may_be_retried() {
    let mut disk = MemoryDisk::new();
    load(&mut disk);
    disk.set_order(Order::Seeded(5));
    let mut writer = CheckpointWriter::new();
    write(&mut disk, &mut writer, 1).expect("healthy");
    disk.set_capacity(Some(disk.used() + 100));
    let error = write(&mut disk, &mut writer, 2).expect_err("no space");
    assert!(error.is_retriable() && !writer.busy(), "{error}");
    assert_eq!(disk.paths(), [path(1)], "the unfinished file is gone");
    assert_eq!(load(&mut disk), Some(checkpoint(1)));
    disk.set_capacity(None);
    assert_eq!(write(&mut disk, &mut writer, 2).expect("space again"), Some(2));
    assert_eq!(load(&mut disk), Some(checkpoint(2)));
}

#[test]
fn a_full_quota_is_a_full_disk() {
    let mut disk = MemoryDisk::new();
    load(&mut disk);
    let mut writer = CheckpointWriter::new();
    let failing: [fn(&Op) -> bool; 2] =
        [|op| matches!(op, Op::Open { create: true, .. }), |op| matches!(op, Op::Write { .. })];
    for failing in failing {
        disk.inject(Some(Box::new(move |_, op| failing(op).then(|| io::ErrorKind::QuotaExceeded.into()))));
        let error = write(&mut disk, &mut writer, 1).expect_err("no space");
        assert!(error.is_retriable() && !writer.busy(), "{error}");
    }
    disk.inject(None);
    assert_eq!(write(&mut disk, &mut writer, 1).expect("space again"), Some(1));
}

#[test]
fn any_other_failure_is_final_and_named() {
    for failing in 1..=7 {
        let mut disk = MemoryDisk::new();
        load(&mut disk);
        let base = disk.operations();
        disk.inject(Some(Box::new(move |number, _| {
            (number == base + failing).then(|| io::Error::from_raw_os_error(5))
        })));
        let result = write(&mut disk, &mut CheckpointWriter::new(), 1);
        let error = result.expect_err("an operation failed");
        assert!(matches!(&error, CheckpointError::Failed { .. }) && !error.is_retriable(), "{failing}: {error}");
    }
}

#[test]
fn a_file_under_another_number_is_refused() {
    let mut disk = MemoryDisk::new();
    load(&mut disk);
    write(&mut disk, &mut CheckpointWriter::new(), 1).expect("healthy");
    disk.run(Op::Rename { from: path(1), to: path(2) }).expect("rename");
    match load_latest(&mut disk) {
        Err(CheckpointError::Lost { first, .. }) => {
            assert!(matches!(*first, CheckpointError::Damaged { position: 8, .. }), "{first}");
        }
        other => panic!("{other:?}"),
    }
}
