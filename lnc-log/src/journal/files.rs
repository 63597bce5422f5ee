//! The journal's files: which are in use, which are prepared for the future, and how released ones become those.
//!
//! Files are numbered without gaps. A *live* file holds flushes, a *spare* is zeroed, named, synced and waits for its
//! turn. Changes of names are complete before a flush goes to the file, so no durable flush lies in a lost file.
//!
//! A new file is zeroed, so that overwriting it later changes no metadata. Under load that is done a piece at a time, at
//! twice the pace at which the file before it is written: all at once, it would hold up the flushes.

use super::{DIR, JournalError, file_path};
use crate::disk::{AlignedBuf, Disk, FileId, Op, Outcome, Owner, is_full};
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Spares kept for reuse; more than this many are removed to give the space back. A checkpoint releases several files at
/// once, and a new one has to be filled, which takes as much of the disk as writing it once more.
pub(super) const MAX_SPARES: usize = 4;

/// Bytes zeroed at a time.
const PIECE: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Live {
    pub(super) id: FileId,
    /// Length in bytes.
    pub(super) len: u64,
    /// Reads in flight, which delay recycling.
    pub(super) readers: usize,
    /// A place of it was bad: it is not used again, since writing need not mend that.
    pub(super) bad: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpareState {
    Opening,
    /// Zeroed up to `done`; a piece may be under way.
    Filling {
        done: u64,
        writing: bool,
    },
    Syncing,
    Renaming,
    Naming,
    Ready,
    /// Giving back what was filled before space ran out: a checkpoint may need it, which is what frees the journal.
    Emptying,
    /// No space for it. `opened` tells how far it got.
    Full {
        opened: bool,
    },
}

#[derive(Debug)]
pub(super) struct Spare {
    number: u64,
    id: FileId,
    len: u64,
    state: SpareState,
    /// It was there at the start, and has its space on the disk.
    found: bool,
}

#[derive(Debug)]
enum Task {
    /// The next step of the spare with this number.
    Spare(u64),
    /// Closing a released file, to remove it next.
    CloseThenRemove(u64),
    Remove(u64),
    Close(u64),
}

#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) live: BTreeMap<u64, Live>,
    spares: VecDeque<Spare>,
    tasks: BTreeMap<u64, Task>,
    /// Written over and over.
    zeros: AlignedBuf,
    next_id: u64,
    next_token: u64,
    /// Bytes that a new file leaves free.
    pub(super) keep_free: u64,
}

impl Files {
    /// A token number for any operation of the journal.
    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub(super) fn new_id(&mut self) -> FileId {
        self.next_id += 1;
        Owner::Journal.file(self.next_id)
    }

    /// Close every file that was opened, in order to begin again.
    pub(super) fn close_all<D: Disk>(&mut self, disk: &mut D) {
        for n in 1..=self.next_id {
            // One that could not be opened cannot be closed.
            let _ = disk.run(Op::Close { file: Owner::Journal.file(n) });
        }
    }

    fn submit<D: Disk>(&mut self, disk: &mut D, task: Task, op: Op) {
        let token = self.token();
        self.tasks.insert(token, task);
        disk.submit(Owner::Journal.token(token), op);
    }

    /// Total length of all files in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let taken = |s: &&Spare| !matches!(s.state, SpareState::Emptying | SpareState::Full { .. });
        let spares: u64 = self.spares.iter().filter(taken).map(|s| s.len).sum();
        self.live.values().map(|f| f.len).sum::<u64>() + spares
    }

    /// Add a spare found at recovery. Whether its zeros are on the disk nobody knows: the process before may have ended because
    /// that failed.
    pub(super) fn add_found_spare(&mut self, number: u64, id: FileId, len: u64) {
        let state = SpareState::Filling { done: 0, writing: false };
        self.spares.push_back(Spare { number, id, len, state, found: true });
    }

    /// Bytes of the files that wait for their turn.
    pub(super) fn ready_bytes(&self) -> u64 {
        let is_there = |spare: &&Spare| spare.state == SpareState::Ready || spare.found;
        self.spares.iter().filter(is_there).map(|spare| spare.len).sum()
    }

    pub(super) fn has_spare(&self) -> bool {
        !self.spares.is_empty()
    }

    /// Whether the next file could not be prepared for want of space.
    pub(super) fn is_full(&self) -> bool {
        self.spares.front().is_some_and(|s| matches!(s.state, SpareState::Full { .. }))
    }

    /// Whether `number` is live, or could be made so with at least `len` bytes.
    pub(super) fn is_ready(&self, number: u64, len: u64) -> bool {
        self.live.contains_key(&number)
            || self.spares.front().is_some_and(|s| s.number == number && s.state == SpareState::Ready && s.len >= len)
    }

    /// Make `number` live if it is not. False while the file is not ready.
    pub(super) fn activate(&mut self, number: u64, len: u64) -> bool {
        if !self.is_ready(number, len) {
            return false;
        }
        if !self.live.contains_key(&number)
            && let Some(spare) = self.spares.pop_front()
        {
            self.live.insert(number, Live { id: spare.id, len: spare.len, readers: 0, bad: false });
        }
        true
    }

    /// A place of a live file is damaged, or cannot be read.
    pub(super) fn give_up(&mut self, number: u64) {
        if let Some(live) = self.live.get_mut(&number) {
            live.bad = true;
        }
    }

    fn next_number(&self) -> u64 {
        let last_live = self.live.last_key_value().map_or(0, |(n, _)| *n);
        self.spares.back().map_or(last_live, |s| s.number) + 1
    }

    /// Start preparing the next file, with at least `len` bytes, unless that is done or under way. `retry` says
    /// whether to try again what failed for want of space.
    pub(super) fn prepare<D: Disk>(&mut self, disk: &mut D, len: u64, retry: bool) {
        if self.spares.is_empty() {
            let (number, id) = (self.next_number(), self.new_id());
            self.spares.push_back(Spare { number, id, len, state: SpareState::Opening, found: false });
            self.open_spare(disk, number, id);
            return;
        }
        if self.is_full() && self.take_from_behind(disk, len) {
            return;
        }
        let spare = &mut self.spares[0];
        let (number, id) = (spare.number, spare.id);
        // Filling what cannot be filled would take the space, for a moment, from those who could free some.
        let retry =
            retry && disk.free_bytes().is_none_or(|free| free >= spare.len.max(len).saturating_add(self.keep_free));
        match spare.state {
            SpareState::Full { opened: false } if retry => {
                spare.state = SpareState::Opening;
                spare.len = spare.len.max(len);
                self.open_spare(disk, number, id);
            }
            SpareState::Full { opened: true } if retry => {
                spare.len = spare.len.max(len);
                spare.state = SpareState::Filling { done: 0, writing: false };
            }
            SpareState::Ready if spare.len < len => {
                spare.state = SpareState::Filling { done: spare.len, writing: false };
                spare.len = len;
            }
            _ => {}
        }
    }

    /// Where there is no space for the next file, the last one that is complete takes its place.
    fn take_from_behind<D: Disk>(&mut self, disk: &mut D, len: u64) -> bool {
        let Some(last) = self.spares.pop_back_if(|s| s.state == SpareState::Ready && s.len >= len) else {
            return false;
        };
        let Some(full) = self.spares.pop_front() else { return false };
        if full.state == (SpareState::Full { opened: true }) {
            self.submit(disk, Task::Close(full.number), Op::Close { file: full.id });
        }
        let op = Op::Rename { from: file_path(last.number), to: file_path(full.number) };
        self.submit(disk, Task::Spare(full.number), op);
        self.spares.push_front(Spare { number: full.number, state: SpareState::Renaming, ..last });
        true
    }

    fn open_spare<D: Disk>(&mut self, disk: &mut D, number: u64, id: FileId) {
        let op = Op::Open { file: id, path: file_path(number), create: true, direct: true };
        self.submit(disk, Task::Spare(number), op);
    }

    /// Go on zeroing the next file, if less than `upto` bytes of it are.
    pub(super) fn fill<D: Disk>(&mut self, disk: &mut D, upto: u64) {
        let Some(spare) = self.spares.front_mut() else { return };
        let SpareState::Filling { done, writing: false } = spare.state else { return };
        if done < upto.min(spare.len) {
            spare.state = SpareState::Filling { done, writing: true };
            let (number, file) = (spare.number, spare.id);
            let mut buf = std::mem::take(&mut self.zeros);
            buf.resize((spare.len - done).min(PIECE) as usize);
            self.submit(disk, Task::Spare(number), Op::Write { file, position: done, buf, durable: false });
        }
    }

    /// Take the oldest live file out of use: it becomes a spare if it is of use as one, else it is removed.
    pub(super) fn retire_first<D: Disk>(&mut self, disk: &mut D, file_bytes: u64) {
        let Some((from, live)) = self.live.pop_first() else { return };
        let stuck = self.is_full();
        if live.bad || live.len != file_bytes || (self.spares.len() >= MAX_SPARES && !stuck) {
            self.submit(disk, Task::CloseThenRemove(from), Op::Close { file: live.id });
            return;
        }
        let number = if stuck {
            // There is no space to make the next file: this one takes its place.
            let old = self.spares.pop_front().map(|s| (s.number, s.id, s.state));
            let Some((number, id, state)) = old else { return };
            if state == (SpareState::Full { opened: true }) {
                self.submit(disk, Task::Close(number), Op::Close { file: id });
            }
            number
        } else {
            self.next_number()
        };
        let spare = Spare { number, id: live.id, len: live.len, state: SpareState::Renaming, found: false };
        if stuck {
            self.spares.push_front(spare);
        } else {
            self.spares.push_back(spare);
        }
        self.submit(disk, Task::Spare(number), Op::Rename { from: file_path(from), to: file_path(number) });
    }

    /// Whether `token` belongs to a task of this module.
    pub(super) fn owns(&self, token: u64) -> bool {
        self.tasks.contains_key(&token)
    }

    /// Take the next step of the task behind `token`. True when space may have been freed.
    pub(super) fn on_completion<D: Disk>(
        &mut self,
        disk: &mut D,
        token: u64,
        result: io::Result<Outcome>,
    ) -> Result<bool, JournalError> {
        let failed =
            |operation, number, source| JournalError::WriteFailed { operation, path: file_path(number), source };
        match (self.tasks.remove(&token), result) {
            (Some(Task::Spare(number)), result) => self.advance_spare(disk, number, result).map(|()| false),
            (Some(Task::CloseThenRemove(number)), Ok(_)) => {
                self.submit(disk, Task::Remove(number), Op::Remove { path: file_path(number) });
                Ok(false)
            }
            (Some(Task::Remove(_)), Ok(_)) => Ok(true),
            (Some(Task::Close(_)), Ok(_)) | (None, _) => Ok(false),
            (Some(Task::Remove(number)), Err(source)) => Err(failed("remove", number, source)),
            (Some(Task::CloseThenRemove(number) | Task::Close(number)), Err(source)) => {
                Err(failed("close", number, source))
            }
        }
    }

    fn advance_spare<D: Disk>(
        &mut self,
        disk: &mut D,
        number: u64,
        result: io::Result<Outcome>,
    ) -> Result<(), JournalError> {
        let Some(spare) = self.spares.iter_mut().find(|s| s.number == number) else {
            return Ok(());
        };
        let (file, len, keep_free) = (spare.id, spare.len, self.keep_free);
        match (spare.state, result) {
            (SpareState::Opening, Ok(_)) => {
                let fits = disk.free_bytes().is_none_or(|free| free >= len.saturating_add(keep_free));
                spare.state = match fits {
                    true => SpareState::Filling { done: 0, writing: false },
                    false => SpareState::Full { opened: true },
                };
            }
            (SpareState::Filling { done, .. }, Ok(Outcome::Written(zeros))) => {
                let done = done + zeros.len() as u64;
                self.zeros = zeros;
                spare.state = SpareState::Filling { done, writing: false };
                if done >= len {
                    spare.state = SpareState::Syncing;
                    self.submit(disk, Task::Spare(number), Op::Sync { file });
                }
            }
            (SpareState::Syncing | SpareState::Renaming, Ok(_)) => {
                spare.state = SpareState::Naming;
                self.submit(disk, Task::Spare(number), Op::SyncDir { path: DIR.to_owned() });
            }
            (SpareState::Naming, Ok(_)) => spare.state = SpareState::Ready,
            (SpareState::Opening, Err(e)) if is_full(&e) => {
                spare.state = SpareState::Full { opened: false };
            }
            (SpareState::Filling { .. } | SpareState::Syncing, Err(e)) if is_full(&e) => {
                (spare.state, spare.found) = (SpareState::Emptying, false);
                self.submit(disk, Task::Spare(number), Op::SetLen { file, len: 0 });
            }
            (SpareState::Emptying, Ok(_)) => spare.state = SpareState::Full { opened: true },
            (SpareState::Ready | SpareState::Full { .. } | SpareState::Filling { .. }, Ok(_)) => {}
            (state, Err(source)) => {
                let operation = match state {
                    SpareState::Opening => "create",
                    SpareState::Filling { .. } => "fill",
                    SpareState::Syncing => "sync",
                    SpareState::Emptying => "empty",
                    SpareState::Renaming => "rename a released file to",
                    _ => "sync the directory of",
                };
                return Err(JournalError::WriteFailed { operation, path: file_path(number), source });
            }
        }
        Ok(())
    }
}
