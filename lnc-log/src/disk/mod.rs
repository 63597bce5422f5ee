//! `Disk`: the one way in which LANCE touches the files of a data directory.
//!
//! Operations are submitted with a token and complete later, in any order. Whoever needs an order waits for the
//! first completion before it submits the second operation. Paths are relative to the data directory.
//!
//! Contract, tested against every backend:
//! 1. Every submitted operation completes exactly once, with the token it was submitted with.
//! 2. A completed `Write` is visible to later reads, but survives a crash only if it was submitted with
//!    `durable: true` or a later `Sync` of the file completed without error.
//! 3. A created, renamed or removed name survives a crash only after a `SyncDir` of its directory completed.
//! 4. A short write is finished by the backend; an error leaves the range's content undefined.
//! 5. After a failed `Sync` or durable `Write`, nothing may be concluded about earlier writes to that file.
//! 6. Buffers are owned by the operation and handed back with the completion.
//! 7. Files opened with `direct: true` need positions, lengths and buffers aligned to [`BLOCK`].

use std::io;

mod any;
mod buffer;
mod files;
pub mod memory;
mod threads;
#[allow(unsafe_code)]
mod uring;

pub use any::{AnyDisk, BackendChoice};
pub use buffer::AlignedBuf;
pub(crate) use files::refuse_others;
pub use memory::MemoryDisk;
pub use threads::ThreadsDisk;
pub use uring::UringDisk;

/// What the system says of a place that the device cannot read.
pub const EIO: i32 = 5;

/// Whether an operation failed because there is no space for it: bytes, inodes or a quota. The same may succeed later.
pub fn is_full(error: &io::Error) -> bool {
    // A write of no bytes at all is how some file systems say it.
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero)
}

/// Alignment and granularity of direct I/O, in bytes.
pub const BLOCK: usize = 4096;

/// An open file, as named by the caller. The caller picks numbers that are free at the time of `Open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u64);

/// Ties a completion to its operation. The top 8 bits name the part of the node that submitted it (see [`Owner`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// The part of a node to which a completion is routed; also the top byte of the [`FileId`]s that it picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Owner {
    /// The journal.
    Journal = 1,
    /// The checkpoint writer.
    Checkpoint = 2,
    /// The segment store.
    Segments = 3,
    /// Setup and recovery, one operation at a time.
    Setup = 4,
    /// State that comes from a peer.
    Incoming = 5,
}

impl Owner {
    /// The `n`-th token of this owner. `n` must be below 2^56.
    pub fn token(self, n: u64) -> Token {
        debug_assert!(n < 1 << 56);
        Token((self as u64) << 56 | n)
    }

    /// The `n`-th file number of this owner. `n` must be below 2^56.
    pub fn file(self, n: u64) -> FileId {
        debug_assert!(n < 1 << 56);
        FileId((self as u64) << 56 | n)
    }
}

impl Token {
    /// Who submitted the operation; `None` for a token that no owner made.
    pub fn owner(self) -> Option<Owner> {
        match (self.0 >> 56) as u8 {
            1 => Some(Owner::Journal),
            2 => Some(Owner::Checkpoint),
            3 => Some(Owner::Segments),
            4 => Some(Owner::Setup),
            5 => Some(Owner::Incoming),
            _ => None,
        }
    }

    /// The number within the owner.
    pub fn number(self) -> u64 {
        self.0 & ((1 << 56) - 1)
    }
}

/// One disk operation.
#[derive(Debug)]
pub enum Op {
    /// Open a file as `file`. With `create`, the file is made if it is missing.
    Open {
        /// The number by which later operations name the file.
        file: FileId,
        /// Path relative to the data directory.
        path: String,
        /// Make the file if it does not exist.
        create: bool,
        /// Bypass the page cache where the filesystem can (silently buffered where it cannot).
        direct: bool,
    },
    /// Set the file to `len` bytes of zeros, actually written and synced, so that later overwrites change no metadata.
    ZeroFill {
        /// The file.
        file: FileId,
        /// Its new length in bytes.
        len: u64,
    },
    /// Write `buf` at `position`; `durable` makes completion mean "on stable storage" (RWF_DSYNC).
    Write {
        /// The file.
        file: FileId,
        /// Byte position.
        position: u64,
        /// The bytes; returned with the completion.
        buf: AlignedBuf,
        /// Sync these bytes (and the metadata needed to read them) before completing.
        durable: bool,
    },
    /// Read up to `len` bytes at `position`; short only at the end of the file.
    Read {
        /// The file.
        file: FileId,
        /// Byte position.
        position: u64,
        /// Number of bytes.
        len: usize,
    },
    /// fdatasync.
    Sync {
        /// The file.
        file: FileId,
    },
    /// Cut or extend the file to `len` bytes.
    SetLen {
        /// The file.
        file: FileId,
        /// New length in bytes.
        len: u64,
    },
    /// Close the file and free its number.
    Close {
        /// The file.
        file: FileId,
    },
    /// Rename, replacing the target.
    Rename {
        /// Old path.
        from: String,
        /// New path.
        to: String,
    },
    /// Remove a file. Removing what does not exist succeeds.
    Remove {
        /// Path.
        path: String,
    },
    /// Make a directory and its parents. Succeeds if it exists.
    CreateDir {
        /// Path.
        path: String,
    },
    /// Remove an empty directory. Removing what does not exist succeeds.
    RemoveDir {
        /// Path.
        path: String,
    },
    /// fsync a directory, so that the names in it survive.
    SyncDir {
        /// Path; empty for the data directory itself.
        path: String,
    },
    /// List the names (files and directories, sorted) in a directory. A missing directory lists as empty.
    List {
        /// Path.
        path: String,
    },
}

/// What a completed operation gives back.
#[derive(Debug)]
pub enum Outcome {
    /// `Open`: the file's length in bytes.
    Opened {
        /// Length in bytes.
        len: u64,
    },
    /// `Write`: the buffer, for reuse.
    Written(AlignedBuf),
    /// `Read`: the bytes; shorter than asked only at the end of the file.
    Read(AlignedBuf),
    /// `List`: the sorted names.
    Names(Vec<String>),
    /// Everything else.
    Done,
}

/// A finished operation.
#[derive(Debug)]
pub struct Completion {
    /// The token of the submission.
    pub token: Token,
    /// Its result. The error of a failed `Write` does not carry the buffer.
    pub result: io::Result<Outcome>,
}

/// See the module documentation for the contract.
pub trait Disk {
    /// Queue an operation.
    fn submit(&mut self, token: Token, op: Op);

    /// Hand all queued operations to the kernel (one syscall). Called once per turn; `reap` and `wait` imply it.
    fn kick(&mut self);

    /// Collect finished operations without blocking.
    fn reap(&mut self, completions: &mut Vec<Completion>);

    /// Block until at least one operation has finished; returns at once when nothing is in flight.
    fn wait(&mut self, completions: &mut Vec<Completion>);

    /// Name of the backend, for logs and the metric.
    fn name(&self) -> &'static str;

    /// Bytes that are left for files, as far as the disk can tell.
    fn free_bytes(&self) -> Option<u64>;

    /// Files that can still be made, as far as the disk can tell: `None` where only bytes limit them.
    fn free_files(&self) -> Option<u64>;

    /// Submit one operation and block for its result. For setup and recovery only: panics if a completion of
    /// another operation arrives meanwhile.
    fn run(&mut self, op: Op) -> io::Result<Outcome> {
        let token = Owner::Setup.token(0);
        self.submit(token, op);
        let mut done = Vec::with_capacity(1);
        while done.is_empty() {
            self.wait(&mut done);
        }
        assert!(done.len() == 1 && done[0].token == token, "setup ran beside other disk operations");
        done.remove(0).result
    }
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn submit(&mut self, token: Token, op: Op) {
        (**self).submit(token, op);
    }
    fn kick(&mut self) {
        (**self).kick();
    }
    fn reap(&mut self, completions: &mut Vec<Completion>) {
        (**self).reap(completions);
    }
    fn wait(&mut self, completions: &mut Vec<Completion>) {
        (**self).wait(completions);
    }
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn free_bytes(&self) -> Option<u64> {
        (**self).free_bytes()
    }
    fn free_files(&self) -> Option<u64> {
        (**self).free_files()
    }
}
