//! The memory disk loses exactly what the contract of `Disk` lets a disk lose.

use lnc_log::disk::memory::{CrashChoice, Order, SECTOR};
use lnc_log::disk::{AlignedBuf, BLOCK, Disk, FileId, MemoryDisk, Op, Outcome, Owner, Token};
use std::io;

const FILE: FileId = FileId(1);

fn disk_with_file(durable_name: bool) -> MemoryDisk {
    let mut disk = MemoryDisk::new();
    disk.run(Op::CreateDir { path: "a/b".to_owned() }).expect("create");
    disk.run(Op::SyncDir { path: String::new() }).expect("sync");
    disk.run(Op::SyncDir { path: "a".to_owned() }).expect("sync");
    disk.run(Op::Open { file: FILE, path: "a/b/f".to_owned(), create: true, direct: true }).expect("open");
    if durable_name {
        disk.run(Op::SyncDir { path: "a/b".to_owned() }).expect("sync");
    }
    disk
}

fn write(position: u64, fill: u8, durable: bool) -> Op {
    Op::Write { file: FILE, position, buf: AlignedBuf::copy_of(&[fill; BLOCK]), durable }
}

fn rename(from: &str, to: &str) -> Op {
    Op::Rename { from: from.to_owned(), to: to.to_owned() }
}

#[test]
fn a_crash_loses_unsynced_writes_and_keeps_durable_ones() {
    let mut disk = disk_with_file(true);
    disk.run(write(0, 1, true)).expect("write");
    disk.run(write(BLOCK as u64, 2, false)).expect("write");
    assert_eq!(disk.unsynced(), 1);
    assert_eq!(disk.crash(CrashChoice::Nothing).file("a/b/f"), Some(vec![1; BLOCK]));
    assert_eq!(disk.crash(CrashChoice::Everything).file("a/b/f"), Some([[1; BLOCK], [2; BLOCK]].concat()));
}

#[test]
fn a_sync_covers_what_completed_before_it_was_submitted() {
    let mut disk = disk_with_file(true);
    disk.run(write(0, 1, false)).expect("write");
    disk.set_order(Order::Held);
    disk.submit(Token(1), Op::Sync { file: FILE });
    disk.submit(Token(2), write(BLOCK as u64, 2, false));
    let numbers: Vec<u64> = disk.in_flight().iter().map(|op| op.0).collect();
    assert!(disk.release(numbers[1]) && disk.release(numbers[0]) && !disk.release(numbers[0]));
    assert_eq!(disk.crash(CrashChoice::Nothing).file("a/b/f"), Some(vec![1; BLOCK]));
}

#[test]
fn names_survive_only_the_sync_of_their_directory() {
    let mut disk = disk_with_file(false);
    disk.run(write(0, 1, true)).expect("write");
    assert!(disk.crash(CrashChoice::Nothing).paths().is_empty(), "a durable write does not make the name durable");
    for (synced, kept, expected) in [
        ("", CrashChoice::Nothing, "a/b/f"),
        ("", CrashChoice::Subset(1), "a/b/g"),
        ("a", CrashChoice::Nothing, "a/b/f"),
        ("a/b", CrashChoice::Nothing, "a/b/g"),
    ] {
        let mut disk = disk_with_file(true);
        disk.run(rename("a/b/f", "a/b/g")).expect("rename");
        disk.run(Op::SyncDir { path: synced.to_owned() }).expect("sync");
        assert_eq!(disk.crash(kept).paths(), [expected], "synced {synced:?}, kept {kept:?}");
    }
}

#[test]
fn an_overlapped_write_never_undoes_a_durable_one() {
    let mut disk = disk_with_file(true);
    disk.run(write(0, 1, false)).expect("write");
    disk.run(write(0, 2, true)).expect("write");
    for choice in [CrashChoice::Nothing, CrashChoice::Everything, CrashChoice::Torn(4)] {
        assert_eq!(disk.crash(choice).file("a/b/f"), Some(vec![2; BLOCK]), "{choice:?}");
    }
}

#[test]
fn writes_in_flight_tear_between_sectors() {
    let mut disk = disk_with_file(true);
    disk.run(Op::ZeroFill { file: FILE, len: BLOCK as u64 }).expect("fill");
    disk.set_order(Order::Held);
    disk.submit(Token(1), write(0, 7, true));
    let mut torn = 0;
    for seed in 0..32 {
        let bytes = disk.crash(CrashChoice::Torn(seed)).file("a/b/f").expect("the file");
        assert_eq!(disk.crash(CrashChoice::Torn(seed)).file("a/b/f").as_ref(), Some(&bytes), "a seed repeats");
        let sectors: Vec<&[u8]> = bytes.chunks(SECTOR).collect();
        assert!(sectors.iter().all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        torn += usize::from(sectors.iter().any(|s| s[0] == 0) && sectors.iter().any(|s| s[0] == 7));
    }
    assert!(torn > 5, "{torn}");
}

#[test]
fn a_failed_sync_forgets_what_it_should_have_kept() {
    let mut lost = 0;
    for seed in 0..16 {
        let mut disk = disk_with_file(true);
        disk.set_order(Order::Seeded(seed));
        disk.run(write(0, 3, false)).expect("write");
        disk.inject(Some(Box::new(|_, op| matches!(op, Op::Sync { .. }).then(|| io::Error::from_raw_os_error(5)))));
        assert!(disk.run(Op::Sync { file: FILE }).is_err());
        disk.inject(None);
        disk.run(Op::Sync { file: FILE }).expect("the next sync claims that all is well");
        assert_eq!(disk.file("a/b/f"), Some(vec![3; BLOCK]));
        lost += usize::from(disk.crash(CrashChoice::Everything).file("a/b/f") == Some(Vec::new()));
    }
    assert!(lost > 2, "{lost}");
}

#[test]
fn capacity_alignment_and_the_stop_are_enforced() {
    let mut disk = disk_with_file(true);
    disk.set_capacity(Some(BLOCK as u64));
    disk.run(write(0, 1, true)).expect("fits");
    let error = disk.run(write(BLOCK as u64, 1, true)).expect_err("does not fit");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    disk.run(write(0, 2, true)).expect("an overwrite needs no space");
    assert!(disk.run(write(100, 1, true)).is_err(), "misaligned");
    disk.stop_after(disk.operations());
    assert!(disk.run(write(0, 9, true)).is_err() && disk.stopped());
    assert!(disk.run(write(0, 8, true)).is_err(), "submitted after the failure was seen");
    assert_eq!(disk.unsynced(), 1);
    assert_eq!(disk.crash(CrashChoice::Everything).file("a/b/f"), Some(vec![9; BLOCK]));
}

#[test]
fn a_close_does_not_take_the_file_from_what_was_submitted_before() {
    for seed in 0..8 {
        let mut disk = disk_with_file(true);
        disk.set_order(Order::Seeded(seed));
        disk.submit(Token(1), write(0, 5, true));
        disk.submit(Token(2), Op::Close { file: FILE });
        let mut done = Vec::new();
        while done.len() < 2 {
            disk.wait(&mut done);
        }
        assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
        assert_eq!(disk.file("a/b/f"), Some(vec![5; BLOCK]));
    }
}

#[test]
fn lists_hold_what_lies_in_a_directory() {
    let mut disk = disk_with_file(true);
    let mut list = |path: &str| match disk.run(Op::List { path: path.to_owned() }) {
        Ok(Outcome::Names(names)) => names,
        other => panic!("{other:?}"),
    };
    assert_eq!((list(""), list("a"), list("a/b")), (vec!["a".into()], vec!["b".into()], vec!["f".into()]));
    assert!(list("none").is_empty());
    assert!(disk.run(Op::RemoveDir { path: "a/b".to_owned() }).is_err(), "not empty");
    assert_eq!(Owner::Setup.token(3).owner(), Some(Owner::Setup));
}

#[test]
fn a_misread_gives_something_else_and_changes_nothing() {
    let mut disk = disk_with_file(true);
    for block in 0..8 {
        disk.run(write(block * BLOCK as u64, 10 + block as u8, true)).expect("write");
    }
    let before = disk.file("a/b/f");
    let read = |disk: &mut MemoryDisk| match disk.run(Op::Read { file: FILE, position: 0, len: BLOCK }) {
        Ok(Outcome::Read(bytes)) => bytes[0],
        other => panic!("{other:?}"),
    };
    disk.misread("elsewhere/", 5, 1);
    assert_eq!(read(&mut disk), 10, "the file is another one");
    for seed in 0..20 {
        disk.misread("a/b/", 2, seed);
        for _ in 0..2 {
            assert_ne!(read(&mut disk), 10, "seed {seed}");
        }
        assert_eq!(read(&mut disk), 10, "seed {seed}: only as many as asked for");
    }
    assert_eq!(disk.file("a/b/f"), before);
}
