//! The lanes: each partition writes, syncs and indexes its segments one step at a time, as [`Partition::plan`] says.

use super::files::{Acquired, LogFile, Waiter};
use super::partition::{Partition, Step, UnsyncedNames};
use super::read::ReadDone;
use super::state::SegmentState;
use super::store::{Pending, SegmentStore};
use super::{PartitionKey, ROOT, SegmentError, block_ceil, block_floor, index, io_error};
use crate::disk::{BLOCK, Disk, FileId, Op, Outcome, is_full};
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

    fn run_step(&mut self, disk: &mut impl Disk, key: PartitionKey, mut step: Step) {
        let op = match &mut step {
            Step::Write { base, .. }
            | Step::Cut { base }
            | Step::Sync { base, .. }
            | Step::ReadDamaged { base }
            | Step::WriteRepaired { base } => {
                let log = (key, *base);
                self.set_lane(key, step);
                return self.acquire(disk, log, Waiter::Lane);
            }
            Step::CreateDir => Op::CreateDir { path: key.dir() },
            Step::OpenIndex { base, file } => {
                *file = self.files.fresh();
                Op::Open { file: *file, path: key.index_path(*base), create: true, direct: true }
            }
            Step::WriteIndex { base, file } => {
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
                while let Some(file) = self.files.evict(self.config.max_open_files) {
                    self.close(disk, file);
                }
            }
            Acquired::Waiting => {}
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
                    Waiter::Lane => self.step_failed(disk, log.0, error).map(|()| None),
                    Waiter::Read(id) => Ok(self.read_failed(disk, id, error)),
                }
            }
        }
    }

    fn resume(&mut self, disk: &mut impl Disk, log: LogFile, waiter: Waiter, file: FileId) {
        match waiter {
            Waiter::Lane => self.run_on_file(disk, log.0, file),
            Waiter::Read(id) => self.read_opened(disk, id, file),
        }
    }

    fn run_on_file(&mut self, disk: &mut impl Disk, key: PartitionKey, file: FileId) {
        let mut buf = self.take_buffer();
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        let op = match (partition.lane, &mut partition.repair) {
            (Some(Step::ReadDamaged { .. }), Some(repair)) => Op::Read { file, position: repair.edge(), len: BLOCK },
            (Some(Step::WriteRepaired { .. }), Some(repair)) => {
                let (place, position) = (repair.place, block_floor(repair.place.position));
                let mut buf = std::mem::take(&mut repair.blocks);
                let at = (place.position - position) as usize;
                buf.resize(buf.len().max(at + repair.bytes.len()));
                buf[at..at + repair.bytes.len()].copy_from_slice(&repair.bytes);
                buf.pad_to_block();
                Op::Write { file, position, buf, durable: true }
            }
            (Some(Step::Write { base, bytes, durable }), _) => {
                let position = partition.fill(base, bytes, &mut buf);
                Op::Write { file, position, buf, durable }
            }
            (Some(Step::Cut { base }), _) => {
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
        if let Step::Write { base, .. }
        | Step::Cut { base }
        | Step::Sync { base, .. }
        | Step::ReadDamaged { base }
        | Step::WriteRepaired { base } = step
        {
            self.files.release((key, base));
        }
        if let Step::WriteIndex { file, .. } = step {
            self.close(disk, file);
        }
        match result {
            Ok(outcome) => {
                match (step, outcome, self.partitions.get_mut(&key).and_then(|partition| partition.repair.as_mut())) {
                    (Step::ReadDamaged { base }, Outcome::Read(block), Some(repair)) => {
                        if repair.take_edge(&block) {
                            self.run_step(disk, key, Step::ReadDamaged { base });
                            return Ok(());
                        }
                    }
                    (_, outcome, _) => self.recycle(outcome),
                }
                self.stalled.remove(&key);
                match self.apply(key, step) {
                    Some(next) => self.run_step(disk, key, next),
                    None => self.free_lane(disk, key, true),
                }
                Ok(())
            }
            Err(error) => self.step_failed(disk, key, error),
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
            Step::OpenIndex { base, file } => {
                partition.unsynced.files = true;
                return Some(Step::WriteIndex { base, file });
            }
            Step::WriteIndex { base, .. } => {
                partition.rebuilt.retain(|rebuilt| *rebuilt != base);
                let segment = partition.segment_mut(base)?;
                segment.indexed = true;
                let index = std::mem::take(&mut segment.state.index);
                self.cache_index((key, base), index);
            }
            Step::Sync { base, upto } => partition.segment_mut(base)?.synced = upto,
            Step::ReadDamaged { base } => return Some(Step::WriteRepaired { base }),
            Step::WriteRepaired { base } => {
                let repair = partition.repair.take()?;
                partition.repaired(&repair);
                self.repaired.push(repair.place);
                // The last block was written whole, beyond the end of a segment that is cut.
                let segment = partition.segment(base)?;
                let padded = segment.cut && !segment.state.len.is_multiple_of(BLOCK as u64);
                return (padded && block_ceil(repair.end()) > segment.state.len).then_some(Step::Cut { base });
            }
            Step::SyncNames => partition.unsynced.files = false,
            Step::SyncParent => partition.unsynced.dir = false,
            Step::SyncRoot => {
                partition.unsynced.root = false;
                self.root_synced = true;
            }
        }
        None
    }

    fn free_lane(&mut self, disk: &mut impl Disk, key: PartitionKey, more: bool) {
        if let Some(partition) = self.partitions.get_mut(&key) {
            partition.lane = None;
        }
        self.lanes -= 1;
        if more {
            self.ready.insert(key);
        }
        self.pump(disk);
    }

    /// A block at the edge of what is to be repaired cannot be read: nothing of it can be kept. What else was in it is
    /// damaged, and is repaired next. A file that is not there stays so until the next start.
    fn edge_unreadable(&mut self, disk: &mut impl Disk, key: PartitionKey, base: u64, file: &str, source: &io::Error) {
        tracing::warn!(%file, error = %source, "cannot read around what is to be repaired; look at the disk");
        let partition = self.partitions.get_mut(&key);
        let Some(repair) = partition.and_then(|partition| match source.kind() {
            io::ErrorKind::NotFound => {
                partition.repair = None;
                None
            }
            _ => partition.repair.as_mut(),
        }) else {
            return self.free_lane(disk, key, true);
        };
        let step = Step::ReadDamaged { base };
        let next = if repair.take_edge(&[]) { Some(step) } else { self.apply(key, step) };
        match next {
            Some(next) => self.run_step(disk, key, next),
            None => self.free_lane(disk, key, true),
        }
    }

    /// A full disk leaves the bytes in memory, for another attempt, which writes all again that a failed durable write had.
    /// Anything else, and any failed sync of what is no longer in memory, is fatal.
    fn step_failed(&mut self, disk: &mut impl Disk, key: PartitionKey, source: io::Error) -> Result<(), SegmentError> {
        let Some(step) = self.partitions.get(&key).and_then(|partition| partition.lane) else { return Ok(()) };
        let full = is_full(&source);
        let (action, file) = match step {
            Step::CreateDir => ("create", key.dir()),
            Step::Write { base, .. } => ("write", key.log_path(base)),
            Step::Cut { base } => ("cut", key.log_path(base)),
            Step::OpenIndex { base, .. } => ("open", key.index_path(base)),
            Step::WriteIndex { base, .. } => ("write", key.index_path(base)),
            Step::Sync { base, .. } => ("sync", key.log_path(base)),
            Step::ReadDamaged { base } => ("read", key.log_path(base)),
            Step::WriteRepaired { base } => ("repair", key.log_path(base)),
            Step::SyncNames => ("sync", key.dir()),
            Step::SyncParent => ("sync", ROOT.to_owned()),
            Step::SyncRoot => ("sync", "the data directory".to_owned()),
        };
        if let Step::ReadDamaged { base } = step {
            self.edge_unreadable(disk, key, base, &file, &source);
            return Ok(());
        }
        if !full || action == "sync" {
            return Err(io_error(action, file, source));
        }
        if self.stalled.insert(key) {
            tracing::warn!(%file, "disk full: segment data waits in memory; make room in the data directory");
        }
        self.free_lane(disk, key, false);
        Ok(())
    }
}

fn mark_created(partition: &mut Partition, base: u64) {
    if let Some(segment) = partition.segment_mut(base).filter(|segment| !segment.created) {
        segment.created = true;
        partition.unsynced.files = true;
    }
}
