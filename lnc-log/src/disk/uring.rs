//! The `uring` backend: reads, writes and syncs go through one io_uring, everything else to worker threads.
//!
//! An operation owns its buffer and its file from submission to completion: both live in a slot of [`Ring::slots`],
//! whose number is the `user_data` of the ring entry. A slot is freed only by its completion.

use super::files::{self, FileTable, Job, OpenFile};
use super::threads::{Notifier, Workers};
use super::{AlignedBuf, BLOCK, Completion, Disk, Op, Outcome, Token};
use io_uring::{IoUring, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

/// Most bytes in one ring entry (its length field has 32 bits); longer operations go in several rounds.
const MAX_CHUNK: usize = 1 << 30;

/// `RWF_DSYNC` of `pwritev2(2)`: the write completes when its bytes are on stable storage.
const RWF_DSYNC: i32 = 0x2;

/// Errors that mean "try the same again".
const EINTR: i32 = 4;
const EAGAIN: i32 = 11;

/// What one ring operation is, with everything that it uses.
#[derive(Debug)]
struct Slot {
    token: Token,
    file: Arc<OpenFile>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Write { position: u64, buf: AlignedBuf, done: usize, durable: bool },
    Read { position: u64, buf: AlignedBuf, done: usize },
    Sync,
}

/// What follows from a ring completion.
enum Next {
    Again,
    Finished(io::Result<Outcome>),
}

impl Slot {
    /// The ring entry for what is left to do.
    fn entry(&mut self, user_data: u64) -> squeue::Entry {
        let fd = types::Fd(self.file.file.as_raw_fd());
        let entry = match &mut self.kind {
            Kind::Write { position, buf, done, durable } => {
                let rest = &buf[*done..];
                let rest = &rest[..rest.len().min(MAX_CHUNK)];
                let flags = if *durable { RWF_DSYNC } else { 0 };
                opcode::Write::new(fd, rest.as_ptr(), rest.len() as u32)
                    .offset(*position + *done as u64)
                    .rw_flags(flags)
                    .build()
            }
            Kind::Read { position, buf, done } => {
                let rest = &mut buf[*done..];
                let len = rest.len().min(MAX_CHUNK);
                opcode::Read::new(fd, rest.as_mut_ptr(), len as u32).offset(*position + *done as u64).build()
            }
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        };
        entry.user_data(user_data)
    }

    /// Account for a ring result: bytes moved, or a negated error number.
    fn complete(&mut self, result: i32) -> Next {
        if result == -EINTR || result == -EAGAIN {
            return Next::Again;
        }
        if result < 0 {
            return Next::Finished(Err(io::Error::from_raw_os_error(-result)));
        }
        let moved = result as usize;
        match &mut self.kind {
            Kind::Write { buf, done, .. } => {
                match files::progress(&self.file, moved, buf.len() - *done) {
                    Ok(kept) => *done += kept,
                    Err(error) => return Next::Finished(Err(error)),
                }
                if *done < buf.len() { Next::Again } else { Next::Finished(Ok(Outcome::Written(std::mem::take(buf)))) }
            }
            Kind::Read { buf, done, .. } => {
                *done += moved;
                if *done < buf.len() && !files::at_end(&self.file, moved) {
                    return Next::Again;
                }
                buf.resize(*done);
                Next::Finished(Ok(Outcome::Read(std::mem::take(buf))))
            }
            Kind::Sync => Next::Finished(Ok(Outcome::Done)),
        }
    }
}

/// The ring and the operations that live in it.
struct Ring {
    ring: IoUring,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Slots that wait for a place in the submission queue, oldest first.
    backlog: VecDeque<usize>,
    /// Slots known to the ring; at most `limit`, so that the completion queue cannot overflow.
    in_ring: usize,
    limit: usize,
}

impl Ring {
    fn new(entries: u32, notifier: &Notifier) -> io::Result<Self> {
        // Completions are picked up at the next system call of this thread, which is about to make one anyway, instead
        // of interrupting it. Kernels before 5.19 do not know the flag.
        let ring = match IoUring::builder().setup_coop_taskrun().setup_clamp().build(entries) {
            Ok(ring) => ring,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                IoUring::builder().setup_clamp().build(entries)?
            }
            Err(error) => return Err(error),
        };
        ring.submitter().register_eventfd(notifier.as_fd().as_raw_fd())?;
        let limit = ring.params().cq_entries() as usize;
        Ok(Self { ring, slots: Vec::new(), free: Vec::new(), backlog: VecDeque::new(), in_ring: 0, limit })
    }

    fn add(&mut self, slot: Slot) {
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number] = Some(slot);
                number
            }
            None => {
                self.slots.push(Some(slot));
                self.slots.len() - 1
            }
        };
        self.backlog.push_back(number);
    }

    fn is_idle(&self) -> bool {
        self.in_ring == 0 && self.backlog.is_empty()
    }

    /// Move the backlog into the submission queue as far as there is room.
    fn fill(&mut self) {
        let mut queue = self.ring.submission();
        while self.in_ring < self.limit && !queue.is_full() {
            let Some(number) = self.backlog.pop_front() else { break };
            let Some(slot) = &mut self.slots[number] else { continue };
            let entry = slot.entry(number as u64);
            // SAFETY: the entry points into the slot's buffer and names the slot's file. The slot keeps both, unmoved
            // (the buffer's memory is on the heap) and untouched, until the completion with this number is reaped;
            // `Drop` waits for that too. Nothing else has access to the buffer meanwhile.
            let pushed = unsafe { queue.push(&entry) };
            if pushed.is_err() {
                self.backlog.push_front(number);
                break;
            }
            self.in_ring += 1;
        }
    }

    /// Hand everything to the kernel, and block for `want` completions.
    fn enter(&mut self, want: usize) {
        loop {
            self.fill();
            let queued = self.ring.submission().len();
            if queued == 0 && want == 0 {
                return;
            }
            match self.ring.submit_and_wait(want) {
                Ok(_) => {
                    // A second round only when the queue was too small for the backlog.
                    if want > 0 || self.backlog.is_empty() || self.in_ring >= self.limit {
                        return;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(EINTR) => {}
                    // Short of kernel memory, or completions first: the next call tries again.
                    _ if error.kind() == io::ErrorKind::ResourceBusy || error.raw_os_error() == Some(EAGAIN) => return,
                    _ => panic!("io_uring refuses submissions: {error}"),
                },
            }
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        if self.in_ring == 0 {
            return;
        }
        let before = self.backlog.len();
        for entry in self.ring.completion() {
            let number = entry.user_data() as usize;
            self.in_ring -= 1;
            let Some(slot) = self.slots.get_mut(number).and_then(Option::as_mut) else { continue };
            match slot.complete(entry.result()) {
                Next::Again => self.backlog.push_back(number),
                Next::Finished(result) => {
                    completions.push(Completion { token: slot.token, result });
                    self.slots[number] = None;
                    self.free.push(number);
                }
            }
        }
        if self.backlog.len() > before {
            self.enter(0);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut completions = Vec::new();
        while !self.is_idle() {
            self.enter(1);
            self.reap(&mut completions);
            completions.clear();
        }
    }
}

/// The `uring` backend.
pub struct UringDisk {
    ring: Ring,
    files: FileTable,
    workers: Workers,
    notifier: Notifier,
}

impl UringDisk {
    /// A backend for the data directory `root` with a submission queue of `entries` (more may be in flight).
    /// Fails where the kernel or a sandbox forbids io_uring.
    pub fn new(root: &Path, entries: u32) -> io::Result<Self> {
        let notifier = Notifier::new()?;
        let ring = Ring::new(entries, &notifier)?;
        let workers = Workers::new(root, 2, notifier.clone())?;
        Ok(Self { ring, files: FileTable::default(), workers, notifier })
    }

    /// Readable when a completion may be there; see [`UringDisk::drain_notifier`].
    pub fn notifier(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }

    /// Make the notifier unreadable. Call it before `reap`, never after, or a completion may go unnoticed.
    pub fn drain_notifier(&self) {
        self.notifier.drain();
    }
}

impl Disk for UringDisk {
    fn submit(&mut self, token: Token, op: Op) {
        let file = self.files.resolve(&op);
        let (file, kind) = match (file, op) {
            (Some(file), Op::Write { position, buf, durable, .. }) if !buf.is_empty() => {
                (file, Kind::Write { position, buf, done: 0, durable })
            }
            (Some(file), Op::Read { position, len, .. }) if len > 0 => {
                (file, Kind::Read { position, buf: AlignedBuf::zeroed(len), done: 0 })
            }
            (Some(file), Op::Sync { .. }) => (file, Kind::Sync),
            (file, op) => return self.workers.submit(Job { token, op, file }),
        };
        self.ring.add(Slot { token, file, kind });
    }

    fn kick(&mut self) {
        self.ring.enter(0);
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.ring.enter(0);
        self.ring.reap(completions);
        self.workers.reap(&mut self.files, completions);
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        self.reap(completions);
        while completions.len() == before && !(self.ring.is_idle() && self.workers.in_flight() == 0) {
            if self.workers.in_flight() == 0 {
                self.ring.enter(1);
            } else {
                self.notifier.block();
                self.notifier.drain();
            }
            self.reap(completions);
        }
    }

    fn name(&self) -> &'static str {
        "io_uring"
    }

    fn free_bytes(&self) -> Option<u64> {
        self.workers.free_bytes()
    }

    fn free_files(&self) -> Option<u64> {
        self.workers.free_files()
    }
}

const _: () = assert!(MAX_CHUNK.is_multiple_of(BLOCK));

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(direct: bool, kind: Kind) -> Slot {
        let file = tempfile::tempfile().expect("a temporary file");
        Slot { token: Token(1), file: Arc::new(OpenFile { file, direct }), kind }
    }

    fn write(direct: bool) -> Slot {
        slot(direct, Kind::Write { position: 0, buf: AlignedBuf::zeroed(3 * BLOCK), done: 0, durable: true })
    }

    fn done_so_far(slot: &Slot) -> usize {
        match slot.kind {
            Kind::Write { done, .. } | Kind::Read { done, .. } => done,
            Kind::Sync => 0,
        }
    }

    #[test]
    fn a_short_write_goes_on_where_it_stopped() {
        let mut slot = write(true);
        assert!(matches!(slot.complete(BLOCK as i32 + 512), Next::Again));
        assert_eq!(done_so_far(&slot), BLOCK, "direct writes go on at a block boundary");
        assert!(matches!(slot.complete(-EINTR), Next::Again));
        match slot.complete(2 * BLOCK as i32) {
            Next::Finished(Ok(Outcome::Written(buf))) => assert_eq!(buf.len(), 3 * BLOCK),
            _ => panic!("not finished"),
        }
        let mut slot = write(false);
        assert!(matches!(slot.complete(5), Next::Again));
        assert_eq!(done_so_far(&slot), 5);
    }

    #[test]
    fn a_write_without_progress_or_with_an_error_fails() {
        for (direct, result) in [(false, 0), (true, 512), (true, -28)] {
            assert!(matches!(write(direct).complete(result), Next::Finished(Err(_))), "{result}");
        }
    }

    #[test]
    fn a_short_read_ends_only_at_the_end_of_the_file() {
        let read = |direct| slot(direct, Kind::Read { position: 0, buf: AlignedBuf::zeroed(2 * BLOCK), done: 0 });
        let mut buffered = read(false);
        assert!(matches!(buffered.complete(100), Next::Again));
        assert!(matches!(buffered.complete(0), Next::Finished(Ok(Outcome::Read(buf))) if buf.len() == 100));
        let mut direct = read(true);
        assert!(matches!(direct.complete(BLOCK as i32), Next::Again));
        assert!(matches!(direct.complete(7), Next::Finished(Ok(Outcome::Read(buf))) if buf.len() == BLOCK + 7));
    }
}
