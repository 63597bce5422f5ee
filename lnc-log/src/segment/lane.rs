//! The lanes: each partition writes, syncs and indexes its segments one step at a time, as [`Partition::plan`] says.

use super::files::{Acquired, LogFile, Waiter};
use super::partition::{Partition, Step, UnsyncedNames};
use super::read::ReadDone;
use super::state::SegmentState;
use super::store::{Pending, SegmentStore};
use super::{PartitionKey, ROOT, SegmentError, index, io_error};
use crate::disk::{Disk, FileId, Op, Outcome, is_full};
use std::io;

impl SegmentStore {
    /// Start the lanes that may have something to do, as many as may run at the same time.
    pub(super) fn pump(&mut self, disk: &mut impl Disk) {
        while self.lanes < self.config.max_lanes {
            let Some(key) = self.ready.pop_first() else { return };
            self.start(disk, key);
        }
    }

    fn start(&mut self, disk: &mut impl Disk, key: PartitionKey) {
        self.purge(key);
        let write_block = self.config.write_block;
        let Some(partition) = self.partitions.get_mut(&key).filter(|partition| partition.lane.is_none()) else {
            return;
        };
        match partition.plan(write_block) {
            Some(step) => {
                let takes = self.keep_free.map_or(0, |_| partition.takes(step));
                if takes > 0 && partition.target.is_none() && !self.checkpoint.waiting.is_empty() {
                    self.stalled.remove(&key);
                    self.held.insert(key);
                    return;
                }
                let least = takes.saturating_add(self.keep_free.unwrap_or(0));
                if takes > 0 && disk.free_bytes().is_some_and(|free| free < least) {
                    return self.stall(key, &key.dir());
                }
                self.lanes += 1;
                self.run_step(disk, key, step);
            }
            None => {
                // What waited for space may have been trimmed.
                self.stalled.remove(&key);
                if partition.target.take().is_some() {
                    self.checkpoint.waiting.remove(&key);
                    self.ready.insert(key);
                }
                self.drop_removed(key);
            }
        }
    }

    pub(super) fn run_step(&mut self, disk: &mut impl Disk, key: PartitionKey, mut step: Step) {
        let op = match &mut step {
            step if step.log_file().is_some() => {
                let log = (key, step.log_file().unwrap_or_default());
                self.set_lane(key, *step);
                return self.acquire(disk, log, Waiter::Lane);
            }
            Step::Mend { mend, .. } => match self.mend_op(key, *mend, None) {
                Some(op) => op,
                None => return,
            },
            Step::CreateDir => Op::CreateDir { path: key.dir() },
            Step::OpenIndex { base, file, replaces } => {
                *file = self.files.fresh();
                let path = key.index_path(*base);
                let path = if *replaces { PartitionKey::new_path(&path) } else { path };
                Op::Open { file: *file, path, create: true, direct: true }
            }
            Step::NameIndex { base } => {
                let to = key.index_path(*base);
                Op::Rename { from: PartitionKey::new_path(&to), to }
            }
            Step::WriteIndex { base, file, .. } => {
                let Some(segment) = self.partitions.get(&key).and_then(|partition| partition.segment(*base)) else {
                    return;
                };
                let digest = segment.digest(self.digests);
                let state = SegmentState { digest, epochs: Vec::new(), index: Vec::new(), ..segment.state };
                let buf = index::encode(key, &state, &segment.state.index);
                Op::Write { file: *file, position: 0, buf, durable: true }
            }
            Step::SyncNames => Op::SyncDir { path: key.dir() },
            Step::SyncParent => Op::SyncDir { path: ROOT.into() },
            Step::SyncRoot => Op::SyncDir { path: String::new() },
            // They are about a log file.
            Step::Write { .. } | Step::Cut { .. } | Step::Sync { .. } => return,
        };
        self.set_lane(key, step);
        self.submit(disk, Pending::Lane(key), op);
    }

    fn set_lane(&mut self, key: PartitionKey, step: Step) {
        if let Some(partition) = self.partitions.get_mut(&key) {
            partition.lane = Some(step);
        }
    }

    /// Have `waiter` go on with the open file.
    pub(super) fn acquire(&mut self, disk: &mut impl Disk, log: LogFile, waiter: Waiter) {
        match self.files.acquire(log, waiter) {
            Acquired::Open(file) => self.resume(disk, log, waiter, file),
            Acquired::MustOpen(file) => {
                self.open_log(disk, log, file);
                self.close_unused(disk);
            }
            Acquired::Waiting => {}
        }
    }

    fn close_unused(&mut self, disk: &mut impl Disk) {
        while let Some(file) = self.files.evict(self.config.max_open_files) {
            self.close(disk, file);
        }
    }

    fn open_log(&mut self, disk: &mut impl Disk, log: LogFile, file: FileId) {
        let (key, base) = log;
        let segment = self.partitions.get(&key).and_then(|partition| partition.segment(base));
        // A file that was there and is not any more must not come back empty.
        let create = segment.is_some_and(|segment| !segment.created);
        self.submit(disk, Pending::Opened(log), Op::Open { file, path: key.log_path(base), create, direct: true });
    }

    /// The opening of a log file has completed.
    pub(super) fn log_opened(
        &mut self,
        disk: &mut impl Disk,
        log: LogFile,
        result: io::Result<()>,
    ) -> Result<Option<ReadDone>, SegmentError> {
        match result {
            Ok(()) => {
                let Some((file, waiters)) = self.files.opened(log) else { return Ok(None) };
                if let Some(partition) = self.partitions.get_mut(&log.0) {
                    mark_created(partition, log.1);
                }
                for waiter in waiters {
                    self.resume(disk, log, waiter, file);
                }
                Ok(None)
            }
            Err(error) => {
                let Some((blamed, again)) = self.files.failed(log) else { return Ok(None) };
                if let Some(file) = again {
                    self.open_log(disk, log, file);
                }
                match blamed {
                    Waiter::Lane => self.log_not_opened(disk, log.0, error).map(|()| None),
                    Waiter::Read(id) => Ok(self.read_failed(disk, id, error)),
                }
            }
        }
    }

    /// A step of the lane cannot have its file.
    fn log_not_opened(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        error: io::Error,
    ) -> Result<(), SegmentError> {
        match self.partitions.get(&key).and_then(|partition| partition.lane) {
            Some(Step::Mend { base, mend }) => self.mend_failed(disk, key, base, mend, error),
            _ => self.step_failed(disk, key, error),
        }
    }

    fn resume(&mut self, disk: &mut impl Disk, log: LogFile, waiter: Waiter, file: FileId) {
        match waiter {
            Waiter::Lane => self.run_on_file(disk, log.0, file),
            Waiter::Read(id) => self.read_opened(disk, id, file),
        }
    }

    fn run_on_file(&mut self, disk: &mut impl Disk, key: PartitionKey, file: FileId) {
        let lane = self.partitions.get(&key).and_then(|partition| partition.lane);
        if let Some(Step::Mend { mend, .. }) = lane {
            if let Some(op) = self.mend_op(key, mend, Some(file)) {
                self.submit(disk, Pending::Lane(key), op);
            }
            return;
        }
        let mut buf = self.take_buffer();
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        let op = match lane {
            Some(Step::Write { base, bytes, durable }) => {
                let position = partition.fill(base, bytes, &mut buf);
                Op::Write { file, position, buf, durable }
            }
            Some(Step::Cut { base }) => {
                let len = partition.segment(base).map_or(0, |segment| segment.state.len);
                Op::SetLen { file, len }
            }
            _ => Op::Sync { file },
        };
        self.submit(disk, Pending::Lane(key), op);
    }

    /// The operation of a partition's step has completed.
    pub(super) fn step_done(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        result: io::Result<Outcome>,
    ) -> Result<(), SegmentError> {
        let Some(step) = self.partitions.get(&key).and_then(|partition| partition.lane) else { return Ok(()) };
        if let Step::Mend { base, mend } = step {
            return self.mend_done(disk, key, base, mend, result);
        }
        if let Some(base) = step.log_file() {
            self.files.release((key, base));
        }
        if let Step::WriteIndex { file, .. } = step {
            self.close(disk, file);
        }
        match result {
            Ok(outcome) => {
                self.recycle(outcome);
                self.stalled.remove(&key);
                let next = self.apply(key, step);
                self.go_on(disk, key, next);
                Ok(())
            }
            Err(error) => self.step_failed(disk, key, error),
        }
    }

    /// Take the step that must follow at once, or let the lane go.
    pub(super) fn go_on(&mut self, disk: &mut impl Disk, key: PartitionKey, next: Option<Step>) {
        match next {
            Some(next) => self.run_step(disk, key, next),
            None => self.free_lane(disk, key, true),
        }
    }

    /// What a finished step changes; a step that must follow at once is returned.
    fn apply(&mut self, key: PartitionKey, step: Step) -> Option<Step> {
        let root_synced = self.root_synced;
        let partition = self.partitions.get_mut(&key)?;
        match step {
            Step::CreateDir => {
                partition.dir_made = true;
                partition.unsynced = UnsyncedNames { files: false, dir: true, root: !root_synced };
            }
            Step::Write { base, bytes, durable } => {
                let before = partition.queued_bytes();
                partition.written(base, bytes, durable);
                self.pending_bytes -= before - partition.queued_bytes();
            }
            Step::Cut { base } => partition.padding_cut(base),
            Step::OpenIndex { base, file, replaces } => {
                partition.unsynced.files = true;
                return Some(Step::WriteIndex { base, file, replaces });
            }
            Step::WriteIndex { base, replaces: true, .. } => return Some(Step::NameIndex { base }),
            Step::WriteIndex { base, .. } | Step::NameIndex { base } => {
                partition.rebuilt.retain(|rebuilt| *rebuilt != base);
                let segment = partition.segment_mut(base)?;
                segment.indexed = true;
                let index = std::mem::take(&mut segment.state.index);
                self.cache_index((key, base), index);
            }
            Step::Sync { base, upto } => partition.segment_mut(base)?.synced = upto,
            Step::SyncNames => partition.unsynced.files = false,
            Step::SyncParent => partition.unsynced.dir = false,
            Step::SyncRoot => {
                partition.unsynced.root = false;
                self.root_synced = true;
            }
            // It says itself what follows.
            Step::Mend { .. } => {}
        }
        None
    }

    pub(super) fn free_lane(&mut self, disk: &mut impl Disk, key: PartitionKey, more: bool) {
        if let Some(partition) = self.partitions.get_mut(&key) {
            partition.lane = None;
        }
        self.lanes -= 1;
        self.close_unused(disk);
        if more {
            self.ready.insert(key);
        }
        self.pump(disk);
    }

    /// A full disk leaves the bytes in memory, for another attempt, which writes all again that a failed durable write had.
    /// Anything else, and any failed sync of what is no longer in memory, is fatal.
    pub(super) fn step_failed(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        source: io::Error,
    ) -> Result<(), SegmentError> {
        let Some(step) = self.partitions.get(&key).and_then(|partition| partition.lane) else { return Ok(()) };
        let (action, file) = match step {
            Step::CreateDir => ("create", key.dir()),
            Step::Write { base, .. } => ("write", key.log_path(base)),
            Step::Cut { base } => ("cut", key.log_path(base)),
            Step::OpenIndex { base, .. } => ("open", key.index_path(base)),
            Step::WriteIndex { base, .. } => ("write", key.index_path(base)),
            Step::Sync { base, .. } => ("sync", key.log_path(base)),
            Step::NameIndex { base } => ("rename", key.index_path(base)),
            Step::Mend { base, .. } => ("repair", key.log_path(base)),
            Step::SyncNames => ("sync", key.dir()),
            Step::SyncParent => ("sync", ROOT.to_owned()),
            Step::SyncRoot => ("sync", "the data directory".to_owned()),
        };
        if !is_full(&source) || action == "sync" {
            return Err(io_error(action, file, source));
        }
        self.stall(key, &file);
        self.free_lane(disk, key, false);
        Ok(())
    }

    /// What the partition has for its files waits until there is space.
    fn stall(&mut self, key: PartitionKey, file: &str) {
        if self.stalled.insert(key) {
            tracing::warn!(%file, "disk full: segment data waits in memory; make room in the data directory");
        }
    }
}

fn mark_created(partition: &mut Partition, base: u64) {
    if let Some(segment) = partition.segment_mut(base).filter(|segment| !segment.created) {
        segment.created = true;
        partition.unsynced.files = true;
    }
}
