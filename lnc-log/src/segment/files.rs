//! Which segment files are open, who waits for one, and which to close first.

use super::PartitionKey;
use crate::disk::{FileId, Owner};
use std::collections::{BTreeMap, VecDeque};

/// A segment's log file: its partition and base offset.
pub(super) type LogFile = (PartitionKey, u64);

/// Who continues when a file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// The partition's lane.
    Lane,
    /// The read with this number.
    Read(u64),
}

/// What [`Files::acquire`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acquired {
    /// The file is open.
    Open(FileId),
    /// The caller submits the `Open`; the waiter continues when it completes.
    MustOpen(FileId),
    /// Another one's `Open` is under way; the waiter continues when it completes.
    Waiting,
}

#[derive(Debug)]
struct Entry {
    file: FileId,
    open: bool,
    users: usize,
    last_use: u64,
    waiters: VecDeque<Waiter>,
    /// What it was before it was moved: to be closed when nobody uses it any more.
    former: Vec<FileId>,
}

/// The open files.
#[derive(Debug, Default)]
pub(super) struct Files {
    entries: BTreeMap<LogFile, Entry>,
    /// The open files that nobody uses, by when they were used last.
    idle: BTreeMap<u64, LogFile>,
    /// Files to close that have no name any more.
    former: Vec<FileId>,
    opened: u64,
    uses: u64,
}

impl Files {
    /// A file number that was never used before.
    pub(super) fn fresh(&mut self) -> FileId {
        self.opened += 1;
        Owner::Segments.file(self.opened)
    }

    /// Become a user of the file; each call is undone by one [`Files::release`] or a failed open.
    pub(super) fn acquire(&mut self, log: LogFile, waiter: Waiter) -> Acquired {
        if let Some(entry) = self.entries.get_mut(&log) {
            entry.users += 1;
            self.idle.remove(&entry.last_use);
            if entry.open {
                return Acquired::Open(entry.file);
            }
            entry.waiters.push_back(waiter);
            return Acquired::Waiting;
        }
        let file = self.fresh();
        let entry =
            Entry { file, open: false, users: 1, last_use: 0, waiters: VecDeque::from([waiter]), former: Vec::new() };
        self.entries.insert(log, entry);
        Acquired::MustOpen(file)
    }

    /// The open succeeded: the file and those who waited for it.
    pub(super) fn opened(&mut self, log: LogFile) -> Option<(FileId, VecDeque<Waiter>)> {
        let entry = self.entries.get_mut(&log)?;
        entry.open = true;
        Some((entry.file, std::mem::take(&mut entry.waiters)))
    }

    /// The open failed: who takes the blame, and the file number if someone else still waits (who may try again).
    pub(super) fn failed(&mut self, log: LogFile) -> Option<(Waiter, Option<FileId>)> {
        let entry = self.entries.get_mut(&log)?;
        let blamed = entry.waiters.pop_front()?;
        entry.users -= 1;
        let again = (!entry.waiters.is_empty()).then_some(entry.file);
        if again.is_none() {
            self.entries.remove(&log);
        }
        Some((blamed, again))
    }

    /// Stop being a user.
    pub(super) fn release(&mut self, log: LogFile) {
        if let Some(entry) = self.entries.get_mut(&log) {
            self.uses += 1;
            entry.users -= 1;
            entry.last_use = self.uses;
            if entry.users == 0 {
                self.idle.insert(self.uses, log);
                self.former.append(&mut entry.former);
            }
        }
    }

    /// Another file, which is open, has taken the name of this one, which the caller uses.
    pub(super) fn replace(&mut self, log: LogFile, file: FileId) {
        if let Some(entry) = self.entries.get_mut(&log) {
            entry.former.push(std::mem::replace(&mut entry.file, file));
        }
    }

    /// Whether someone uses the file.
    pub(super) fn in_use(&self, log: LogFile) -> bool {
        self.entries.get(&log).is_some_and(|entry| entry.users > 0)
    }

    /// Forget a file that nobody uses; the caller closes what is returned.
    pub(super) fn remove(&mut self, log: LogFile) -> Option<FileId> {
        if self.in_use(log) {
            return None;
        }
        let entry = self.entries.remove(&log)?;
        self.idle.remove(&entry.last_use);
        Some(entry.file)
    }

    /// A file to close because it was moved, or because more than `max` are open: of those that nobody uses, the one used
    /// longest ago.
    pub(super) fn evict(&mut self, max: usize) -> Option<FileId> {
        if let Some(former) = self.former.pop() {
            return Some(former);
        }
        if self.entries.len() <= max {
            return None;
        }
        let (_, oldest) = self.idle.pop_first()?;
        self.remove(oldest)
    }
}
