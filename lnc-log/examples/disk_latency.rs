//! What one durable 4 KiB write costs with each backend, one in flight at a time, against the bare system call.
//!
//! Usage: `disk_latency [DIRECTORY] [WRITES]`. The file is zero-filled first, as the journal's files are.

use lnc_log::disk::{AlignedBuf, BLOCK, Disk, FileId, Op, Outcome, ThreadsDisk, Token, UringDisk};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::ReadWriteFlags;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

const FILE: FileId = FileId(1);
const FILE_BYTES: u64 = 16 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let parent = args.next().unwrap_or_else(|| ".".into());
    let writes: usize = args.next().map_or(Ok(2000), |n| n.parse())?;
    let dir = tempfile::tempdir_in(parent)?;
    let root = dir.path();
    prepare(root)?;
    for _ in 0..3 {
        report("pwritev2(DSYNC) inline", inline(root, writes)?);
        report("io_uring, blocking wait", through(&mut UringDisk::new(root, 64)?, writes, |_| {})?);
        report("io_uring, poll on notifier", through(&mut UringDisk::new(root, 64)?, writes, |d| block(d.notifier()))?);
        report("threads, blocking wait", through(&mut ThreadsDisk::new(root, 2)?, writes, |_| {})?);
    }
    Ok(())
}

fn prepare(root: &Path) -> std::io::Result<()> {
    let mut disk = ThreadsDisk::new(root, 1)?;
    disk.run(Op::Open { file: FILE, path: "file".into(), create: true, direct: true })?;
    disk.run(Op::ZeroFill { file: FILE, len: FILE_BYTES }).map(|_| ())
}

fn position(n: usize) -> u64 {
    (n * BLOCK) as u64 % FILE_BYTES
}

fn inline(root: &Path, writes: usize) -> std::io::Result<Vec<Duration>> {
    let file = rustix::fs::open(root.join("file"), OFlags::RDWR | OFlags::DIRECT, Mode::empty())?;
    let buf = AlignedBuf::zeroed(BLOCK);
    let mut times = Vec::with_capacity(writes);
    for n in 0..writes {
        let start = Instant::now();
        rustix::io::pwritev2(&file, &[IoSlice::new(&buf)], position(n), ReadWriteFlags::DSYNC)?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Times of durable writes through `disk`; `idle` is what the owner does between submission and reaping.
fn through<D: Disk>(disk: &mut D, writes: usize, idle: fn(&D)) -> std::io::Result<Vec<Duration>> {
    disk.run(Op::Open { file: FILE, path: "file".into(), create: false, direct: true })?;
    let mut buf = AlignedBuf::zeroed(BLOCK);
    let mut times = Vec::with_capacity(writes);
    let mut done = Vec::new();
    for n in 0..writes {
        let start = Instant::now();
        disk.submit(Token(1), Op::Write { file: FILE, position: position(n), buf, durable: true });
        disk.kick();
        idle(disk);
        disk.wait(&mut done);
        times.push(start.elapsed());
        let Outcome::Written(back) = done.remove(0).result? else { unreachable!("a write returns its buffer") };
        buf = back;
    }
    Ok(times)
}

fn block(fd: BorrowedFd<'_>) {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    while poll(&mut fds, None).is_err() {}
    let _ = rustix::io::read(fd.as_fd(), &mut [0u8; 8]);
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    println!("{name:28} p50 {:7.1} us   p90 {:7.1} us   p99 {:7.1} us", at(50), at(90), at(99));
}
