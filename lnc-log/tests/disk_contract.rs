//! The contract of `Disk`, checked against every backend.

use lnc_log::disk::{
    AlignedBuf, AnyDisk, BLOCK, BackendChoice, Completion, Disk, FileId, MemoryDisk, Op, Outcome, Owner, ThreadsDisk,
    Token, UringDisk, memory::Order,
};
use std::collections::BTreeSet;
use std::io;
use std::path::Path;

const FILE: FileId = FileId((Owner::Setup as u64) << 56 | 1);

/// Run one contract test against every backend. Where the kernel forbids io_uring, that backend is left out.
fn for_each_backend(test: fn(&mut dyn Disk)) {
    let dir = tempfile::tempdir().unwrap();
    let fresh = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    test(&mut ThreadsDisk::new(&fresh("threads"), 3).unwrap());
    test(&mut ThreadsDisk::new(&fresh("one-thread"), 1).unwrap());
    if uring_is_allowed(dir.path()) {
        test(&mut UringDisk::new(&fresh("uring"), 64).unwrap());
        // Smaller than what the tests have in flight: the rest must wait inside the backend.
        test(&mut UringDisk::new(&fresh("tiny-uring"), 2).unwrap());
    }
    test(&mut AnyDisk::open(&fresh("auto"), BackendChoice::Auto).unwrap());
    for order in [Order::Immediate, Order::Held, Order::Seeded(1)] {
        let mut disk = MemoryDisk::new();
        disk.set_order(order);
        test(&mut disk);
    }
}

fn uring_is_allowed(root: &Path) -> bool {
    let allowed = UringDisk::new(root, 2).is_ok();
    if !allowed {
        eprintln!("io_uring is not allowed here: backend left out");
    }
    allowed
}

fn open(disk: &mut dyn Disk, file: FileId, path: &str) -> u64 {
    match disk.run(Op::Open { file, path: path.into(), create: true, direct: true }).unwrap() {
        Outcome::Opened { len } => len,
        other => panic!("{other:?}"),
    }
}

fn write(disk: &mut dyn Disk, position: u64, bytes: &[u8], durable: bool) -> AlignedBuf {
    match disk.run(Op::Write { file: FILE, position, buf: AlignedBuf::copy_of(bytes), durable }).unwrap() {
        Outcome::Written(buf) => buf,
        other => panic!("{other:?}"),
    }
}

fn read(disk: &mut dyn Disk, position: u64, len: usize) -> Vec<u8> {
    match disk.run(Op::Read { file: FILE, position, len }).unwrap() {
        Outcome::Read(buf) => buf.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn names(disk: &mut dyn Disk, path: &str) -> Vec<String> {
    match disk.run(Op::List { path: path.into() }).unwrap() {
        Outcome::Names(names) => names,
        other => panic!("{other:?}"),
    }
}

fn wait_for(disk: &mut dyn Disk, count: usize) -> Vec<Completion> {
    let mut completions = Vec::new();
    while completions.len() < count {
        let before = completions.len();
        disk.wait(&mut completions);
        assert!(completions.len() > before, "wait returned with nothing although operations are in flight");
    }
    completions
}

fn block(fill: u8) -> Vec<u8> {
    vec![fill; BLOCK]
}

#[test]
fn writes_are_read_back_and_buffers_returned() {
    for_each_backend(|disk| {
        assert_eq!(open(disk, FILE, "f"), 0);
        for durable in [false, true] {
            let bytes: Vec<u8> = (0..16 * BLOCK).map(|n| (n % 253) as u8 ^ durable as u8).collect();
            assert_eq!(&write(disk, 0, &bytes, durable)[..], &bytes[..]);
            assert_eq!(read(disk, 0, bytes.len()), bytes);
            assert_eq!(read(disk, 3 * BLOCK as u64, BLOCK), &bytes[3 * BLOCK..4 * BLOCK]);
        }
        disk.run(Op::Sync { file: FILE }).unwrap();
        disk.run(Op::Close { file: FILE }).unwrap();
        assert_eq!(open(disk, FILE, "f"), 16 * BLOCK as u64);
    });
}

#[test]
fn reads_are_short_only_at_the_end() {
    for_each_backend(|disk| {
        open(disk, FILE, "f");
        write(disk, 0, &[block(1), block(2)].concat(), false);
        disk.run(Op::SetLen { file: FILE, len: BLOCK as u64 + 100 }).unwrap();
        let bytes = read(disk, 0, 4 * BLOCK);
        assert_eq!(bytes, [block(1), vec![2; 100]].concat());
        assert_eq!(read(disk, 8 * BLOCK as u64, BLOCK), b"");
        assert_eq!(read(disk, 0, 0), b"");
        disk.run(Op::SetLen { file: FILE, len: 3 * BLOCK as u64 }).unwrap();
        assert_eq!(&read(disk, BLOCK as u64, 2 * BLOCK)[100..], &vec![0; 2 * BLOCK - 100][..]);
    });
}

#[test]
fn zero_fill_replaces_what_was_there() {
    for_each_backend(|disk| {
        open(disk, FILE, "f");
        write(disk, 0, &[block(7), block(8), block(9)].concat(), false);
        disk.run(Op::ZeroFill { file: FILE, len: 2 * BLOCK as u64 }).unwrap();
        assert_eq!(read(disk, 0, 3 * BLOCK), vec![0; 2 * BLOCK]);
        let len = (3 << 20) + BLOCK as u64;
        disk.run(Op::ZeroFill { file: FILE, len }).unwrap();
        disk.run(Op::Close { file: FILE }).unwrap();
        assert_eq!(open(disk, FILE, "f"), len);
    });
}

#[test]
fn every_operation_completes_once_with_its_token() {
    for_each_backend(|disk| {
        open(disk, FILE, "f");
        const COUNT: u64 = 300;
        for n in 0..COUNT {
            let buf = AlignedBuf::copy_of(&block(n as u8));
            let durable = n % 16 == 0;
            let position = n * BLOCK as u64;
            disk.submit(Owner::Segments.token(n), Op::Write { file: FILE, position, buf, durable });
        }
        disk.kick();
        let done = wait_for(disk, COUNT as usize);
        assert!(done.iter().all(|c| matches!(&c.result, Ok(Outcome::Written(buf)) if buf.len() == BLOCK)));
        let tokens: BTreeSet<Token> = done.iter().map(|c| c.token).collect();
        assert_eq!(tokens, (0..COUNT).map(|n| Owner::Segments.token(n)).collect());

        for n in 0..COUNT {
            let position = n * BLOCK as u64;
            disk.submit(Owner::Journal.token(n), Op::Read { file: FILE, position, len: BLOCK });
        }
        for completion in wait_for(disk, COUNT as usize) {
            match completion.result {
                Ok(Outcome::Read(buf)) => assert_eq!(buf[..], block(completion.token.number() as u8)[..]),
                other => panic!("{other:?}"),
            }
        }
        let mut none = Vec::new();
        disk.wait(&mut none);
        disk.reap(&mut none);
        assert!(none.is_empty());
    });
}

#[test]
fn names_are_made_renamed_listed_and_removed() {
    for_each_backend(|disk| {
        assert_eq!(names(disk, "a/b"), Vec::<String>::new());
        disk.run(Op::CreateDir { path: "a/b".into() }).unwrap();
        disk.run(Op::CreateDir { path: "a/b".into() }).unwrap();
        for (n, path) in ["a/b/two", "a/b/one", "a/three"].iter().enumerate() {
            open(disk, Owner::Setup.file(10 + n as u64), path);
        }
        assert_eq!(names(disk, "a/b"), ["one", "two"]);
        assert_eq!(names(disk, "a"), ["b", "three"]);
        disk.run(Op::Rename { from: "a/three".into(), to: "a/b/one".into() }).unwrap();
        disk.run(Op::SyncDir { path: "a/b".into() }).unwrap();
        disk.run(Op::SyncDir { path: String::new() }).unwrap();
        assert_eq!(names(disk, "a"), ["b"]);
        assert!(disk.run(Op::RemoveDir { path: "a/b".into() }).is_err(), "a directory with files was removed");
        for path in ["a/b/one", "a/b/two", "a/b/never-was"] {
            disk.run(Op::Remove { path: path.into() }).unwrap();
        }
        disk.run(Op::RemoveDir { path: "a/b".into() }).unwrap();
        disk.run(Op::RemoveDir { path: "a/b".into() }).unwrap();
        assert_eq!(names(disk, "a"), Vec::<String>::new());
    });
}

#[test]
fn errors_are_completions() {
    for_each_backend(|disk| {
        let missing = Op::Open { file: FILE, path: "no/such".into(), create: false, direct: true };
        assert_eq!(disk.run(missing).unwrap_err().kind(), io::ErrorKind::NotFound);
        let closed: [fn() -> Op; 6] = [
            || Op::Read { file: FILE, position: 0, len: BLOCK },
            || Op::Write { file: FILE, position: 0, buf: AlignedBuf::copy_of(&block(1)), durable: true },
            || Op::Sync { file: FILE },
            || Op::SetLen { file: FILE, len: 0 },
            || Op::ZeroFill { file: FILE, len: 0 },
            || Op::Close { file: FILE },
        ];
        for op in closed {
            assert!(disk.run(op()).is_err());
        }
        assert!(disk.run(Op::SyncDir { path: "nowhere".into() }).is_err());
    });
}

#[test]
fn a_file_stays_open_for_operations_submitted_before_its_close() {
    for_each_backend(|disk| {
        open(disk, FILE, "f");
        let buf = AlignedBuf::copy_of(&block(5));
        disk.submit(Owner::Setup.token(1), Op::Write { file: FILE, position: 0, buf, durable: true });
        disk.submit(Owner::Setup.token(2), Op::Close { file: FILE });
        assert!(wait_for(disk, 2).iter().all(|c| c.result.is_ok()));
        assert_eq!(open(disk, FILE, "f"), BLOCK as u64);
    });
}

#[test]
fn dropping_a_backend_finishes_what_is_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let submit_and_drop = |disk: &mut dyn Disk| {
        open(disk, FILE, "f");
        for n in 0..64 {
            let buf = AlignedBuf::copy_of(&block(n as u8));
            let position = n * BLOCK as u64;
            disk.submit(Owner::Setup.token(n), Op::Write { file: FILE, position, buf, durable: false });
        }
    };
    let expected: Vec<u8> = (0..64).flat_map(block).collect();
    submit_and_drop(&mut ThreadsDisk::new(dir.path(), 2).unwrap());
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), expected);
    if uring_is_allowed(dir.path()) {
        std::fs::remove_file(dir.path().join("f")).unwrap();
        submit_and_drop(&mut UringDisk::new(dir.path(), 4).unwrap());
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), expected);
    }
}

#[test]
fn the_notifier_tells_of_completions_of_ring_and_workers() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let readable = |disk: &AnyDisk, timeout: Option<&Timespec>| {
        poll(&mut [PollFd::new(&disk.notifier(), PollFlags::IN)], timeout).unwrap() == 1
    };
    for choice in [BackendChoice::Threads, BackendChoice::Auto] {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = AnyDisk::open(dir.path(), choice).unwrap();
        open(&mut disk, FILE, "f");
        disk.drain_notifier();
        assert!(!readable(&disk, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
        let write = Op::Write { file: FILE, position: 0, buf: AlignedBuf::copy_of(&block(1)), durable: true };
        for op in [write, Op::SetLen { file: FILE, len: 0 }] {
            disk.submit(Owner::Setup.token(1), op);
            disk.kick();
            assert!(readable(&disk, None));
            let mut done = Vec::new();
            while done.is_empty() {
                disk.drain_notifier();
                disk.reap(&mut done);
            }
        }
        disk.drain_notifier();
        assert!(!readable(&disk, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
    }
}

#[test]
fn opening_a_backend_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    drop(AnyDisk::open(dir.path(), BackendChoice::Auto).unwrap());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
