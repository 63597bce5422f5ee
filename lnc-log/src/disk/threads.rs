//! The `threads` backend: blocking system calls on a few worker threads. The fallback where io_uring is not allowed,
//! and the helper of the `uring` backend for operations that the ring does not take.

use super::files::{self, FileTable, Finished, Job};
use super::{Completion, Disk, Op, Token};
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// The event fd that becomes readable when a completion may be there.
#[derive(Clone, Debug)]
pub(super) struct Notifier(Arc<OwnedFd>);

impl Notifier {
    pub(super) fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Make the fd readable. Fails only when the counter is full, and then the fd is readable already.
    fn raise(&self) {
        while let Err(Errno::INTR) = rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {}
    }

    /// Make the fd unreadable until the next completion.
    pub(super) fn drain(&self) {
        while let Err(Errno::INTR) = rustix::io::read(&*self.0, &mut [0u8; 8]) {}
    }

    /// Block until the fd is readable, or a signal arrives.
    pub(super) fn block(&self) {
        let mut fds = [PollFd::new(&*self.0, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("cannot wait for disk completions: {error}"),
        }
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    queue: Mutex<Queue>,
    queued: Condvar,
    finished: Mutex<Vec<Finished>>,
    notifier: Notifier,
}

#[derive(Debug, Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closing: bool,
}

/// A worker that panicked has already cost its operation; the queues themselves stay whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Worker threads with one queue in and one queue out. Dropping it finishes what was queued.
#[derive(Debug)]
pub(super) struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
    taken: Vec<Finished>,
}

impl Workers {
    pub(super) fn new(root: &Path, threads: usize, notifier: Notifier) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            root: root.to_path_buf(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            finished: Mutex::default(),
            notifier,
        });
        let mut workers = Self { shared, threads: Vec::new(), in_flight: 0, taken: Vec::new() };
        for n in 0..threads.max(1) {
            let shared = Arc::clone(&workers.shared);
            let thread = std::thread::Builder::new().name(format!("lance-disk-{n}")).spawn(move || work(&shared))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    pub(super) fn submit(&mut self, job: Job) {
        self.in_flight += 1;
        lock(&self.shared.queue).jobs.push_back(job);
        self.shared.queued.notify_one();
    }

    /// Collect what is finished, registering opened files.
    pub(super) fn reap(&mut self, files: &mut FileTable, completions: &mut Vec<Completion>) {
        if self.in_flight == 0 {
            return;
        }
        std::mem::swap(&mut *lock(&self.shared.finished), &mut self.taken);
        self.in_flight -= self.taken.len();
        for Finished { token, result, opened } in self.taken.drain(..) {
            if let Some((id, file)) = opened {
                files.insert(id, file);
            }
            completions.push(Completion { token, result });
        }
    }

    /// Bytes that are left for files.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        files::free_bytes(&self.shared.root)
    }

    /// Files that can still be made.
    pub(super) fn free_files(&self) -> Option<u64> {
        files::free_files(&self.shared.root)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        lock(&self.shared.queue).closing = true;
        self.shared.queued.notify_all();
        for thread in self.threads.drain(..) {
            // A panic in a worker was reported when it happened.
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared) {
    while let Some(job) = next_job(shared) {
        let finished = files::execute(&shared.root, job);
        let mut list = lock(&shared.finished);
        list.push(finished);
        let first = list.len() == 1;
        drop(list);
        // Later ones ride on the first one's notification: nothing is lost, since the list is taken as a whole.
        if first {
            shared.notifier.raise();
        }
    }
}

fn next_job(shared: &Shared) -> Option<Job> {
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        if queue.closing {
            return None;
        }
        queue = shared.queued.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

/// The `threads` backend.
#[derive(Debug)]
pub struct ThreadsDisk {
    files: FileTable,
    workers: Workers,
    notifier: Notifier,
}

impl ThreadsDisk {
    /// A backend for the data directory `root` with `threads` worker threads (at least one).
    pub fn new(root: &Path, threads: usize) -> io::Result<Self> {
        let notifier = Notifier::new()?;
        let workers = Workers::new(root, threads, notifier.clone())?;
        Ok(Self { files: FileTable::default(), workers, notifier })
    }

    /// Readable when a completion may be there; see [`ThreadsDisk::drain_notifier`].
    pub fn notifier(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }

    /// Make the notifier unreadable. Call it before `reap`, never after, or a completion may go unnoticed.
    pub fn drain_notifier(&self) {
        self.notifier.drain();
    }
}

impl Disk for ThreadsDisk {
    fn submit(&mut self, token: Token, op: Op) {
        let file = self.files.resolve(&op);
        self.workers.submit(Job { token, op, file });
    }

    fn kick(&mut self) {}

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.workers.reap(&mut self.files, completions);
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        self.reap(completions);
        while completions.len() == before && self.workers.in_flight() > 0 {
            self.notifier.block();
            self.notifier.drain();
            self.reap(completions);
        }
    }

    fn name(&self) -> &'static str {
        "threads"
    }

    fn free_bytes(&self) -> Option<u64> {
        self.workers.free_bytes()
    }

    fn free_files(&self) -> Option<u64> {
        self.workers.free_files()
    }
}
