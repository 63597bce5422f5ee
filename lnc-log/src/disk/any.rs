//! Choosing a file-backed backend at start.

use super::{AlignedBuf, BLOCK, Completion, Disk, FileId, Op, Outcome, Owner, ThreadsDisk, Token, UringDisk, is_full};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// Submission queue of the `uring` backend: more than a busy turn submits; the rest waits inside the backend.
const RING_ENTRIES: u32 = 256;

/// Workers of the `threads` backend: enough for a flush, a segment write, a read and a file preparation side by side.
const WORKER_THREADS: usize = 4;

/// Which backend to open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// io_uring where it works in this data directory, else threads (with a warning that says why).
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads.
    Threads,
}

/// One of the file-backed backends.
#[expect(clippy::large_enum_variant, reason = "there is one per shard")]
pub enum AnyDisk {
    /// io_uring.
    Uring(UringDisk),
    /// Worker threads.
    Threads(ThreadsDisk),
}

impl AnyDisk {
    /// Open a backend for the data directory `root`, which must exist.
    pub fn open(root: &Path, choice: BackendChoice) -> io::Result<Self> {
        let threads = || ThreadsDisk::new(root, WORKER_THREADS).map(Self::Threads);
        match choice {
            BackendChoice::Threads => threads(),
            BackendChoice::Uring => probed_uring(root).map(Self::Uring),
            BackendChoice::Auto => probed_uring(root).map(Self::Uring).or_else(|error| {
                tracing::warn!(%error, data_dir = %root.display(), "io_uring is not usable, falling back to threads; allow it in the container's seccomp profile, or set storage.backend to threads");
                threads()
            }),
        }
    }

    /// Readable when a completion may be there. One per backend, the same for its whole life.
    pub fn notifier(&self) -> BorrowedFd<'_> {
        match self {
            Self::Uring(disk) => disk.notifier(),
            Self::Threads(disk) => disk.notifier(),
        }
    }

    /// Make the notifier unreadable. Call it before `reap`, never after, or a completion may go unnoticed.
    pub fn drain_notifier(&self) {
        match self {
            Self::Uring(disk) => disk.drain_notifier(),
            Self::Threads(disk) => disk.drain_notifier(),
        }
    }

    fn inner(&mut self) -> &mut dyn Disk {
        match self {
            Self::Uring(disk) => disk,
            Self::Threads(disk) => disk,
        }
    }
}

impl Disk for AnyDisk {
    fn submit(&mut self, token: Token, op: Op) {
        self.inner().submit(token, op);
    }
    fn kick(&mut self) {
        self.inner().kick();
    }
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.inner().reap(completions);
    }
    fn wait(&mut self, completions: &mut Vec<Completion>) {
        self.inner().wait(completions);
    }
    fn name(&self) -> &'static str {
        match self {
            Self::Uring(disk) => disk.name(),
            Self::Threads(disk) => disk.name(),
        }
    }
    fn free_bytes(&self) -> Option<u64> {
        match self {
            Self::Uring(disk) => disk.free_bytes(),
            Self::Threads(disk) => disk.free_bytes(),
        }
    }
    fn free_files(&self) -> Option<u64> {
        match self {
            Self::Uring(disk) => disk.free_files(),
            Self::Threads(disk) => disk.free_files(),
        }
    }
}

/// An io_uring backend that has proved itself with a durable direct write, a sync and a read in this very directory:
/// a ring that can be made may still fail on a filesystem or under a seccomp profile. Where there is no space for that, a
/// file that is there is read and synced: a full disk says nothing about the ring.
fn probed_uring(root: &Path) -> io::Result<UringDisk> {
    let mut disk = UringDisk::new(root, RING_ENTRIES)?;
    let path = format!(".io-probe-{}", std::process::id());
    let probed = probe(&mut disk, &path);
    disk.run(Op::Remove { path })?;
    match probed {
        Err(error) if is_full(&error) => probe_without_space(&mut disk, root, &error),
        probed => probed,
    }?;
    Ok(disk)
}

fn probe(disk: &mut UringDisk, path: &str) -> io::Result<()> {
    let file: FileId = Owner::Setup.file(0);
    disk.run(Op::Open { file, path: path.to_owned(), create: true, direct: true })?;
    let pattern: Vec<u8> = (0..BLOCK).map(|n| (n % 251) as u8).collect();
    let write = Op::Write { file, position: 0, buf: AlignedBuf::copy_of(&pattern), durable: true };
    let tried = disk.run(write).and_then(|_| disk.run(Op::Sync { file }));
    let read = tried.and_then(|_| disk.run(Op::Read { file, position: 0, len: BLOCK }));
    disk.run(Op::Close { file })?;
    match read? {
        Outcome::Read(bytes) if bytes[..] == pattern[..] => Ok(()),
        _ => Err(io::Error::other("io_uring read back other bytes than were written")),
    }
}

/// Read and sync some file of the directory.
fn probe_without_space(disk: &mut UringDisk, root: &Path, full: &io::Error) -> io::Result<()> {
    tracing::error!(
        error = %full,
        free_bytes = disk.free_bytes(),
        free_inodes = disk.free_files(),
        data_dir = %root.display(),
        "no space for a trial of io_uring with a write: make room. It is tried with what is there"
    );
    let file: FileId = Owner::Setup.file(0);
    let Outcome::Names(names) = disk.run(Op::List { path: String::new() })? else { return Ok(()) };
    let Some(path) = names.into_iter().find(|name| root.join(name).is_file()) else { return Ok(()) };
    disk.run(Op::Open { file, path, create: false, direct: true })?;
    let tried = disk.run(Op::Read { file, position: 0, len: BLOCK }).and_then(|_| disk.run(Op::Sync { file }));
    disk.run(Op::Close { file })?;
    tried.map(drop)
}
