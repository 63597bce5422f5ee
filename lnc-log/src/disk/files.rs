//! The blocking side of the file-backed backends: what one operation does to the filesystem.

use super::{AlignedBuf, BLOCK, FileId, Op, Outcome, Token};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes written at a time by [`Op::ZeroFill`].
const ZERO_CHUNK: usize = 1 << 20;

/// An open file; closed when the last operation on it has finished.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) file: File,
    /// Whether it bypasses the page cache (asked for, and granted by the filesystem).
    pub(super) direct: bool,
}

/// The open files of one backend, owned by the submitting side, so that looking one up takes no lock.
#[derive(Debug, Default)]
pub(super) struct FileTable(HashMap<FileId, Arc<OpenFile>>);

impl FileTable {
    pub(super) fn insert(&mut self, id: FileId, file: Arc<OpenFile>) {
        self.0.insert(id, file);
    }

    /// The file that `op` works on; for a `Close` it leaves the table with this call.
    pub(super) fn resolve(&mut self, op: &Op) -> Option<Arc<OpenFile>> {
        match op {
            Op::ZeroFill { file, .. }
            | Op::Write { file, .. }
            | Op::Read { file, .. }
            | Op::Sync { file }
            | Op::SetLen { file, .. } => self.0.get(file).cloned(),
            Op::Close { file } => self.0.remove(file),
            _ => None,
        }
    }
}

/// An operation on its way to a worker.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) token: Token,
    pub(super) op: Op,
    pub(super) file: Option<Arc<OpenFile>>,
}

/// What a worker hands back; `opened` goes into the [`FileTable`] before the completion is seen.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) token: Token,
    pub(super) result: io::Result<Outcome>,
    pub(super) opened: Option<(FileId, Arc<OpenFile>)>,
}

/// Bytes that are left for whoever is not root on the file system of `root`.
pub(super) fn free_bytes(root: &Path) -> Option<u64> {
    rustix::fs::statvfs(root).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Inodes that are left there; `None` on file systems that make them as they are needed.
pub(super) fn free_files(root: &Path) -> Option<u64> {
    rustix::fs::statvfs(root).ok().filter(|stat| stat.f_files > 0).map(|stat| stat.f_favail)
}

/// Carry out one operation under `root`, blocking.
pub(super) fn execute(root: &Path, job: Job) -> Finished {
    let Job { token, op, file } = job;
    let mut opened = None;
    let result = match op {
        Op::Open { file: id, path, create, direct } => open(&root.join(path), create, direct).map(|(file, len)| {
            opened = Some((id, Arc::new(file)));
            Outcome::Opened { len }
        }),
        Op::ZeroFill { file: id, len } => known(file, id).and_then(|f| zero_fill(&f, len)),
        Op::Write { file: id, position, buf, durable } => {
            known(file, id).and_then(|f| write_all(&f, position, &buf, durable)).map(|()| Outcome::Written(buf))
        }
        Op::Read { file: id, position, len } => known(file, id).and_then(|f| read(&f, position, len)),
        Op::Sync { file: id } => known(file, id).and_then(|f| f.file.sync_data()).map(done),
        Op::SetLen { file: id, len } => known(file, id).and_then(|f| f.file.set_len(len)).map(done),
        Op::Close { file: id } => known(file, id).map(|_| Outcome::Done),
        Op::Rename { from, to } => std::fs::rename(root.join(from), root.join(to)).map(done),
        Op::Remove { path } => missing_is_fine(std::fs::remove_file(root.join(path))),
        Op::CreateDir { path } => {
            let path = root.join(path);
            refuse_no_directory(&path).and_then(|()| std::fs::create_dir_all(path)).map(done)
        }
        Op::RemoveDir { path } => missing_is_fine(std::fs::remove_dir(root.join(path))),
        Op::SyncDir { path } => File::open(root.join(path)).and_then(|dir| dir.sync_all()).map(done),
        Op::List { path } => list(&root.join(path)),
    };
    Finished { token, result, opened }
}

/// The error for an operation on a number that names no open file.
pub(super) fn unknown_file(id: FileId) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("no open file has the number {:#x}", id.0))
}

fn known(file: Option<Arc<OpenFile>>, id: FileId) -> io::Result<Arc<OpenFile>> {
    file.ok_or_else(|| unknown_file(id))
}

fn done((): ()) -> Outcome {
    Outcome::Done
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<Outcome> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(Outcome::Done),
    }
}

/// What is where something else should be. An operator put it there.
fn in_the_place(expected: &str, found: &str) -> io::Error {
    io::Error::other(format!(
        "expected {expected}, found {found}: move that away, and put back what was there ({}). Without it the start says what \
         can be done",
        crate::RUN_BOOK
    ))
}

/// An error if something is at this path that is no file. A pipe would be waited for without end, and a link that leads nowhere
/// looks like a file that was never there.
pub(crate) fn refuse_others(path: &Path) -> io::Result<()> {
    const ELOOP: i32 = 40;
    let found = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => "a directory",
        Ok(found) if !found.is_file() => "a pipe, a socket or a device",
        Err(error) if error.raw_os_error() == Some(ELOOP) => "a symbolic link that leads to itself",
        Err(_) if std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) => {
            "a symbolic link that leads nowhere"
        }
        _ => return Ok(()),
    };
    Err(in_the_place("a file", found))
}

/// An error if something is at this path that is no directory.
fn refuse_no_directory(path: &Path) -> io::Result<()> {
    let found = match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => "something else",
        Err(_) if std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) => {
            "a symbolic link that leads nowhere"
        }
        _ => return Ok(()),
    };
    Err(in_the_place("a directory", found))
}

fn open(path: &Path, create: bool, direct: bool) -> io::Result<(OpenFile, u64)> {
    refuse_others(path)?;
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    if create {
        flags |= OFlags::CREATE;
    }
    let mode = Mode::from_raw_mode(0o640);
    let (file, direct) = match rustix::fs::open(path, if direct { flags | OFlags::DIRECT } else { flags }, mode) {
        // How a filesystem says that it has no direct I/O.
        Err(Errno::INVAL) if direct => (rustix::fs::open(path, flags, mode)?, false),
        other => (other?, direct),
    };
    let file = File::from(file);
    let len = file.metadata()?.len();
    Ok((OpenFile { file, direct }, len))
}

fn zero_fill(file: &OpenFile, len: u64) -> io::Result<Outcome> {
    file.file.set_len(len)?;
    if len > 0 {
        // Fails early when the space is not there; filesystems without it find out while writing.
        match rustix::fs::fallocate(&file.file, FallocateFlags::empty(), 0, len) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut zeros = AlignedBuf::default();
    zeros.resize(ZERO_CHUNK.min(usize::try_from(len).unwrap_or(ZERO_CHUNK)));
    let mut position = 0;
    while position < len {
        let chunk = (len - position).min(ZERO_CHUNK as u64);
        write_all(file, position, &zeros[..chunk as usize], false)?;
        position += chunk;
    }
    file.file.sync_all().map(done)
}

fn write_all(file: &OpenFile, mut position: u64, mut bytes: &[u8], durable: bool) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = match write_some(file, position, bytes, durable) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => progress(file, other?, bytes.len())?,
        };
        position += written as u64;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// How much of a write that returned `written` of `wanted` bytes is finished: direct I/O continues only at a block
/// boundary. No progress is an error, lest the rest be retried for ever.
pub(super) fn progress(file: &OpenFile, written: usize, wanted: usize) -> io::Result<usize> {
    let kept = if file.direct && written < wanted { written - written % BLOCK } else { written };
    if kept == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(kept) }
}

fn write_some(file: &OpenFile, position: u64, bytes: &[u8], durable: bool) -> io::Result<usize> {
    if !durable {
        return file.file.write_at(bytes, position);
    }
    match rustix::io::pwritev2(&file.file, &[IoSlice::new(bytes)], position, ReadWriteFlags::DSYNC) {
        Ok(written) => Ok(written),
        // Kernels and sandboxes without the flag.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let written = file.file.write_at(bytes, position)?;
            file.file.sync_data()?;
            Ok(written)
        }
        Err(error) => Err(error.into()),
    }
}

fn read(file: &OpenFile, position: u64, len: usize) -> io::Result<Outcome> {
    let mut buf = AlignedBuf::zeroed(len);
    let mut filled = 0;
    while filled < len {
        let n = match file.file.read_at(&mut buf[filled..], position + filled as u64) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        filled += n;
        if at_end(file, n) {
            break;
        }
    }
    buf.resize(filled);
    Ok(Outcome::Read(buf))
}

/// Whether a read that returned `n` bytes met the end of the file; a direct read can stop inside a block only there.
pub(super) fn at_end(file: &OpenFile, n: usize) -> bool {
    n == 0 || (file.direct && !n.is_multiple_of(BLOCK))
}

fn list(path: &Path) -> io::Result<Outcome> {
    refuse_no_directory(path)?;
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Names(Vec::new())),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(Outcome::Names(names))
}
