//! Reads from segment files: find the stretch, read it, check every batch, hand out whole batches.
//!
//! A read goes: open the log file → (load the index of a sealed segment → if that is bad, rebuild it by a scan) → read
//! the stretch → if its batch turns out longer, read that. One operation is in flight per read, and over all of them no more
//! bytes than the owner allows: what the disk was asked for before, a flush must wait for.
//!
//! Batches that pass their checks may still be others than those that were written: of another file. So they are handed out up
//! to the last [mark](super::partition::Segment::marks) at which the digest is right. If damage keeps the next mark from
//! being reached, what comes before the damage is handed out only if all of the file is known to be the right one.

use super::files::Waiter;
use super::index::{self, IndexEntry};
use super::partition::Rescan;
use super::state::SegmentState;
use super::store::{Pending, SegmentStore};
use super::walk::{Checked, Found, Walk, another_file};
use super::{Digest, PartitionKey, Place, SegmentError, block_ceil, block_floor, io_error};
use crate::disk::{AlignedBuf, BLOCK, Disk, FileId, Op, Outcome};
use bytes::Bytes;
use std::io;

/// Bytes read at a time when an index is rebuilt.
const SCAN_CHUNK: u64 = 1 << 20;

/// A finished read.
#[derive(Debug)]
pub struct ReadDone {
    /// As given to [`SegmentStore::read`].
    pub ticket: u64,
    /// The partition.
    pub key: PartitionKey,
    /// Batches, the first of which holds what was asked for. An error concerns this read only.
    pub result: Result<Batches, SegmentError>,
    /// Where a damaged batch begins, if that is the error, or what ended the read early.
    pub damage: Option<DamagedBatch>,
    /// What is wrong there, if the read has given what comes before it.
    pub cause: Option<SegmentError>,
}

/// Whole, checked batches, at least one, one behind the other.
#[derive(Clone, Debug)]
pub struct Batches {
    /// The offset of the first record.
    pub base_offset: u64,
    /// The offset after the last record.
    pub end_offset: u64,
    /// As they lie in the file.
    pub bytes: Bytes,
}

/// The place of a batch that is not what was written, for [`SegmentStore::repair`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DamagedBatch {
    /// The partition.
    pub key: PartitionKey,
    /// Base offset of the segment.
    pub base: u64,
    /// Byte position in the segment's file.
    pub position: u64,
    /// Offset of its first record.
    pub offset: u64,
    /// What the batches from there on must be. `None`: nothing is known of them.
    pub stretch: Option<Stretch>,
}

/// A stretch of a segment of which is known which batches it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch {
    /// The segment's digest where it begins.
    pub before: Digest,
    /// Where it ends: a byte position in the file.
    pub until: u64,
    /// The segment's digest there.
    pub after: Digest,
}

/// What the first returned batch must have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    /// A record with this offset.
    Offset(u64),
    /// A record of at least this timestamp, with none before it.
    Timestamp(i64),
}

/// A read under way.
#[derive(Debug)]
pub(super) struct ReadTask {
    ticket: u64,
    pub(super) key: PartitionKey,
    pub(super) base: u64,
    pub(super) target: Target,
    pub(super) max_bytes: usize,
    file: FileId,
    phase: Phase,
    /// Position and length of what it waits for, or has the disk read.
    wanted: (u64, usize),
    /// Whether the disk reads that.
    reading: bool,
    /// Where the digest is known within what is read.
    pub(super) marks: Vec<(u64, Digest)>,
    /// Where the walk met something else than a batch that belongs there.
    damage: Option<(Place, Option<Stretch>)>,
    cause: Option<SegmentError>,
}

#[derive(Debug)]
pub(super) enum Phase {
    /// The log file is being opened.
    Open,
    /// The index file is being opened.
    OpenIndex { index: FileId },
    /// The index file is being read.
    ReadIndex { index: FileId },
    /// A chunk is being read to rebuild the index; the next batch begins at `at`.
    Scan { at: Place, until: u64, index: Vec<IndexEntry> },
    /// The batches from `at` to `until` are being read.
    Data { at: Place, until: u64 },
    /// What could not be read at once is being read block by block, for this phase.
    Blocks { of: Box<Phase>, bytes: AlignedBuf, read: usize },
}

impl Phase {
    /// Bytes that have been read block by block.
    fn blocks_read(&self) -> usize {
        match self {
            Self::Blocks { read, .. } => *read,
            _ => 0,
        }
    }
}

impl ReadTask {
    /// Put the next block in its place; one that cannot be read stays zero, which no batch is. True if all are there.
    fn take_block(&self, bytes: &mut AlignedBuf, read: &mut usize, result: io::Result<Outcome>) -> bool {
        match result {
            Ok(Outcome::Read(block)) if block.len() == BLOCK => {
                bytes[*read..*read + BLOCK].copy_from_slice(&block);
            }
            // The end of the file: what is asked for lies before it, or is missing.
            Ok(Outcome::Read(block)) => {
                bytes[*read..*read + block.len()].copy_from_slice(&block);
                bytes.resize(*read + block.len());
                return true;
            }
            _ => {}
        }
        *read += BLOCK;
        *read >= bytes.len()
    }
}

/// What follows from a completed operation of a read.
pub(super) enum Next {
    /// Read the log file from `at` to `until`, then go on with this phase.
    Log(Phase),
    /// Submit this, then go on with this phase.
    Other(Op, Phase),
    /// Over.
    Done(Result<Batches, SegmentError>),
    /// Over: what comes before this place is as good as ever, what is there is not what was written.
    Before(Harm, Batches),
    /// Over: what is at this place is not what was written.
    Damaged(Harm),
    /// Begin with the index.
    Index,
}

/// What is wrong with a segment, and from where on it is to be written again.
pub(super) struct Harm {
    pub(super) place: Place,
    pub(super) stretch: Option<Stretch>,
    pub(super) error: SegmentError,
}

impl Harm {
    /// At a place of which no more is known.
    pub(super) fn at(place: Place, error: SegmentError) -> Self {
        Self { place, stretch: None, error }
    }
}

impl SegmentStore {
    /// Read batches from the one that holds `offset` on: at least one, and no more than `max_bytes` if that is enough
    /// for one. Completes as a [`ReadDone`] with `ticket`; an error from here is all there will be.
    pub fn read(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        offset: u64,
        max_bytes: usize,
        ticket: u64,
    ) -> Result<(), SegmentError> {
        let log_start_offset = self.live(key)?.log_start_offset();
        self.read_above(disk, key, offset, log_start_offset, max_bytes, ticket)
    }

    /// As [`SegmentStore::read`], for a replica that needs the files as they are: also what lies in the first segment
    /// before the log start offset.
    pub fn read_stored(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        offset: u64,
        max_bytes: usize,
        ticket: u64,
    ) -> Result<(), SegmentError> {
        let first = self.live(key)?.live().first().map_or(0, |segment| segment.state.base_offset);
        self.read_above(disk, key, offset, first, max_bytes, ticket)
    }

    fn read_above(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        offset: u64,
        log_start_offset: u64,
        max_bytes: usize,
        ticket: u64,
    ) -> Result<(), SegmentError> {
        let partition = self.live(key)?;
        let written_offset = partition.written_offset();
        let segments = partition.live();
        let after = segments.partition_point(|segment| segment.state.base_offset <= offset);
        if after == 0 || !(log_start_offset..written_offset).contains(&offset) {
            return Err(SegmentError::OutOfRange { key, offset, log_start_offset, written_offset });
        }
        let base = segments[after - 1].state.base_offset;
        self.begin_read(disk, key, base, Target::Offset(offset), max_bytes, ticket)
    }

    /// Read batches from the first one that holds a record of at least `timestamp` (in milliseconds) on, as
    /// [`SegmentStore::read`] does. Fails with [`SegmentError::OutOfRange`] if no such batch is in the files.
    pub fn read_from_timestamp(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        timestamp: i64,
        max_bytes: usize,
        ticket: u64,
    ) -> Result<(), SegmentError> {
        let partition = self.live(key)?;
        let (log_start_offset, written_offset) = (partition.log_start_offset(), partition.written_offset());
        let late = partition.live().iter().find(|segment| segment.state.max_timestamp >= timestamp);
        let written = late.filter(|segment| {
            let found = index::find_timestamp(&segment.state.index, timestamp);
            let end = segment.readable.position;
            found.is_none_or(|(entry, _)| entry.position < end) && end > 0
        });
        match written.map(|segment| segment.state.base_offset) {
            Some(base) => self.begin_read(disk, key, base, Target::Timestamp(timestamp), max_bytes, ticket),
            None => {
                let offset = late.map_or(partition.log_end_offset(), |segment| segment.state.base_offset);
                Err(SegmentError::OutOfRange { key, offset, log_start_offset, written_offset })
            }
        }
    }

    fn begin_read(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        base: u64,
        target: Target,
        max_bytes: usize,
        ticket: u64,
    ) -> Result<(), SegmentError> {
        let Some(segment) = self.partitions.get_mut(&key).and_then(|partition| partition.segment_mut(base)) else {
            return Err(SegmentError::UnknownPartition { key });
        };
        if segment.given_up {
            return Err(SegmentError::GivenUp { key, base_offset: base, end_offset: segment.state.end_offset });
        }
        segment.readers += 1;
        self.reads_begun += 1;
        let id = self.reads_begun;
        let task = ReadTask {
            ticket,
            key,
            base,
            target,
            max_bytes,
            file: FileId(0),
            phase: Phase::Open,
            wanted: (0, 0),
            reading: false,
            marks: Vec::new(),
            damage: None,
            cause: None,
        };
        self.reads.insert(id, task);
        self.acquire(disk, (key, base), Waiter::Read(id));
        Ok(())
    }

    /// The log file of a read is open.
    pub(super) fn read_opened(&mut self, disk: &mut impl Disk, id: u64, file: FileId) {
        let Some(task) = self.reads.get_mut(&id) else { return };
        task.file = file;
        let (target, max_bytes) = (task.target, task.max_bytes);
        let stretch = self.segment_of(id).and_then(|(_, state, _)| find_stretch(&state.index, target, max_bytes));
        let next = match stretch {
            Some((at, until)) => Next::Log(Phase::Data { at, until }),
            None => Next::Index,
        };
        // Neither of these ends the read.
        self.read_next(disk, id, next);
    }

    /// The log file of a read cannot be opened. Its use of the file is over already.
    pub(super) fn read_failed(&mut self, disk: &mut impl Disk, id: u64, error: io::Error) -> Option<ReadDone> {
        let task = self.reads.remove(&id)?;
        let file = task.key.log_path(task.base);
        let result = Err(match error.kind() {
            io::ErrorKind::NotFound => damaged(&file, 0, "a segment", "no file"),
            _ => io_error("open", file, error),
        });
        Some(self.read_over(disk, task, result))
    }

    /// An operation of a read has completed.
    pub(super) fn read_step(&mut self, disk: &mut impl Disk, id: u64, result: io::Result<Outcome>) -> Option<ReadDone> {
        let task = self.reads.get_mut(&id)?;
        if std::mem::take(&mut task.reading) {
            self.reading_bytes -= task.wanted.1;
        }
        let phase = std::mem::replace(&mut task.phase, Phase::Open);
        let (phase, result) = match (phase, result) {
            (phase @ (Phase::Scan { .. } | Phase::Data { .. }), Err(error)) => {
                let (file, position) = (task.key.log_path(task.base), task.wanted.0);
                tracing::error!(
                    %file,
                    position,
                    %error,
                    "a place of a segment cannot be read: it counts as damaged, and is repaired from the other nodes; look \
                     at the disk"
                );
                let bytes = AlignedBuf::zeroed(task.wanted.1);
                (Phase::Blocks { of: Box::new(phase), bytes, read: 0 }, None)
            }
            (Phase::Blocks { of, mut bytes, mut read }, result) => {
                let whole = task.take_block(&mut bytes, &mut read, result);
                match whole {
                    true => (*of, Some(Ok(Outcome::Read(bytes)))),
                    false => (Phase::Blocks { of, bytes, read }, None),
                }
            }
            (phase, result) => (phase, Some(result)),
        };
        let Some(result) = result else {
            let position = task.wanted.0 + phase.blocks_read() as u64;
            let op = Op::Read { file: task.file, position, len: BLOCK };
            return self.read_next(disk, id, Next::Other(op, phase));
        };
        let next = match phase {
            Phase::OpenIndex { index } => self.index_opened(id, index, result),
            Phase::ReadIndex { index } => {
                self.close(disk, index);
                self.index_read(id, result)
            }
            Phase::Scan { at, until, index } => self.scanned(id, at, until, index, result),
            Phase::Data { at, until } => self.data_read(id, at, until, result),
            Phase::Open | Phase::Blocks { .. } => return None,
        };
        let done = self.read_next(disk, id, next);
        self.pump_reads(disk);
        done
    }

    /// Ask the disk for no more than so many bytes at once, but for one read of any length.
    pub fn set_read_budget(&mut self, disk: &mut impl Disk, bytes: usize) {
        self.read_budget = bytes;
        self.pump_reads(disk);
    }

    /// Have the disk begin with the reads for which there is room.
    fn pump_reads(&mut self, disk: &mut impl Disk) {
        while let Some(id) = self.waiting_reads.front().copied() {
            if let Some(task) = self.reads.get_mut(&id) {
                let (position, len) = task.wanted;
                if self.reading_bytes > 0 && self.reading_bytes.saturating_add(len) > self.read_budget {
                    return;
                }
                task.reading = true;
                self.reading_bytes += len;
                let op = Op::Read { file: task.file, position, len };
                self.submit(disk, Pending::Read(id), op);
            }
            self.waiting_reads.pop_front();
        }
    }

    fn read_next(&mut self, disk: &mut impl Disk, id: u64, next: Next) -> Option<ReadDone> {
        let task = self.reads.get_mut(&id)?;
        let next = match next {
            Next::Before(Harm { place, stretch, error }, batches) => {
                task.damage = Some((place, stretch));
                task.cause = Some(error);
                Next::Done(Ok(batches))
            }
            Next::Damaged(Harm { place, stretch, error }) => {
                // Only what the file should hold is damage: that it cannot be read now is not.
                task.damage = Some((place, stretch)).filter(|_| matches!(error, SegmentError::Damaged { .. }));
                Next::Done(Err(error))
            }
            Next::Log(Phase::Data { .. })
                if !self.partitions.get(&task.key).is_some_and(|p| p.has_index(task.base)) =>
            {
                Next::Index
            }
            next => next,
        };
        let op = match next {
            Next::Damaged(..) | Next::Before(..) => return None,
            Next::Index => {
                let (index, path) = (self.files.fresh(), task.key.index_path(task.base));
                task.phase = Phase::OpenIndex { index };
                Op::Open { file: index, path, create: false, direct: true }
            }
            Next::Done(result) => {
                let task = self.reads.remove(&id)?;
                self.files.release((task.key, task.base));
                return Some(self.read_over(disk, task, result));
            }
            Next::Other(op, phase) => {
                task.phase = phase;
                op
            }
            Next::Log(mut phase) => {
                let segment = self.partitions.get(&task.key).and_then(|partition| partition.segment(task.base));
                let limit = segment.map_or(0, |segment| segment.readable.position);
                let is_scan = matches!(phase, Phase::Scan { .. });
                let (Phase::Data { at, until } | Phase::Scan { at, until, .. }) = &mut phase else { return None };
                *until = (*until).min(limit);
                let marks = segment.filter(|_| !is_scan).map(|segment| segment.marks(at.position, *until));
                task.marks = marks.unwrap_or_default();
                let from = block_floor(at.position);
                task.wanted = (from, block_ceil(*until).saturating_sub(from) as usize);
                task.phase = phase;
                self.waiting_reads.push_back(id);
                self.pump_reads(disk);
                return None;
            }
        };
        self.submit(disk, Pending::Read(id), op);
        None
    }

    /// A read no longer needs its segment, which may have waited for that to go.
    fn read_over(&mut self, disk: &mut impl Disk, task: ReadTask, result: Result<Batches, SegmentError>) -> ReadDone {
        let ReadTask { ticket, key, base, damage, cause, .. } = task;
        let place = |(Place { position, offset, .. }, stretch)| DamagedBatch { key, base, position, offset, stretch };
        let damage = damage.map(place);
        if let Some(segment) = self.partitions.get_mut(&key).and_then(|partition| partition.segment_mut(base)) {
            segment.readers -= 1;
        }
        self.purge(key);
        self.drop_removed(key);
        self.pump(disk);
        ReadDone { ticket, key, result, damage, cause }
    }

    fn segment_of(&self, id: u64) -> Option<(&ReadTask, &SegmentState, u64)> {
        let task = self.reads.get(&id)?;
        let segment = self.partitions.get(&task.key)?.segment(task.base)?;
        Some((task, &segment.state, segment.readable.position))
    }

    fn index_opened(&self, id: u64, index: FileId, result: io::Result<Outcome>) -> Next {
        let Some((_, state, _)) = self.segment_of(id) else { return no_segment() };
        match result {
            Ok(Outcome::Opened { len }) => {
                let len = block_ceil(len.min(index::max_file_len(state))) as usize;
                Next::Other(Op::Read { file: index, position: 0, len }, Phase::ReadIndex { index })
            }
            _ => self.begin_scan(id),
        }
    }

    fn index_read(&mut self, id: u64, result: io::Result<Outcome>) -> Next {
        let Some((task, state, _)) = self.segment_of(id) else { return no_segment() };
        let loaded = match result {
            Ok(Outcome::Read(bytes)) => index::decode(task.key, state, &bytes),
            Ok(_) => Err("nothing".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match loaded {
            Ok(index) => self.index_loaded(id, index),
            Err(found) => {
                tracing::warn!(
                    file = task.key.index_path(task.base),
                    expected = index::describe(task.key, state),
                    found,
                    "an index is missing, damaged or another one: rebuilding it from the segment, and nothing is to be done"
                );
                self.begin_scan(id)
            }
        }
    }

    /// Rebuild the index from the file, or go on with that.
    fn begin_scan(&self, id: u64) -> Next {
        let Some((task, state, _)) = self.segment_of(id) else { return no_segment() };
        let segment = self.partitions.get(&task.key).and_then(|partition| partition.segment(task.base));
        let (at, index) = match segment.and_then(|segment| segment.rescan.as_deref()) {
            Some(Rescan { at, overwrite: true, .. }) => {
                return Next::Damaged(Harm::at(*at, another_file(task, state, *at, "those of another file")));
            }
            Some(Rescan { at, index, .. }) => (*at, index.clone()),
            None => (Place::start(state.base_offset), Vec::new()),
        };
        Next::Log(Phase::Scan { at, until: at.position + SCAN_CHUNK, index })
    }

    fn index_loaded(&mut self, id: u64, index: Vec<IndexEntry>) -> Next {
        let Some((task, ..)) = self.segment_of(id) else { return no_segment() };
        let log = (task.key, task.base);
        let next = match find_stretch(&index, task.target, task.max_bytes) {
            Some((at, until)) => Next::Log(Phase::Data { at, until }),
            None => Next::Done(Err(damaged(&log.0.index_path(log.1), 0, "an index of the whole segment", "another"))),
        };
        self.cache_index(log, index);
        next
    }

    fn scanned(
        &mut self,
        id: u64,
        at: Place,
        until: u64,
        mut index: Vec<IndexEntry>,
        result: io::Result<Outcome>,
    ) -> Next {
        let interval = self.config.index_interval_bytes;
        let Some((task, state, limit)) = self.segment_of(id) else { return no_segment() };
        let mut walk = match Walk::new(task, state, limit, at, until, result) {
            Ok(walk) => walk,
            Err(error) => return self.scan_stopped(id, Rescan { at, index, overwrite: false }, error),
        };
        let need = loop {
            let place = walk.at;
            match walk.next_batch() {
                Ok(Found::Batch(header, _)) => {
                    let max_timestamp = header.max_timestamp;
                    let Place { position, offset, digest } = place;
                    index::push(&mut index, interval, IndexEntry { offset, position, max_timestamp, digest });
                }
                Ok(Found::Incomplete { need }) => break need,
                Ok(Found::End) if walk.at.position < limit => break SCAN_CHUNK,
                Ok(Found::End) => break 0,
                Err(error) => {
                    let at = walk.at;
                    return self.scan_stopped(id, Rescan { at, index, overwrite: false }, error);
                }
            }
        };
        let at = walk.at;
        if need > 0 {
            let until = at.position + need.max(SCAN_CHUNK);
            return Next::Log(Phase::Scan { at, until, index });
        }
        if at.offset != state.end_offset {
            let expected = format!("a segment up to offset {}", state.end_offset);
            return Next::Done(Err(damaged(&walk.file, at.position, expected, format!("its end at {}", at.offset))));
        }
        if state.digest.is_some_and(|digest| digest != at.digest) {
            let error = another_file(task, state, at, &format!("those of digest {}", at.digest));
            let at = Place::start(state.base_offset);
            return self.scan_stopped(id, Rescan { at, index: Vec::new(), overwrite: true }, error);
        }
        let log = (task.key, task.base);
        self.index_rebuilt(log, at.digest);
        self.index_loaded(id, index)
    }

    /// The scan cannot go on here, until somebody has repaired the place.
    fn scan_stopped(&mut self, id: u64, rescan: Rescan, error: SegmentError) -> Next {
        let harm = Harm::at(rescan.at, error);
        let Some(task) = self.reads.get(&id) else { return no_segment() };
        if let Some(segment) = self.partitions.get_mut(&task.key).and_then(|p| p.segment_mut(task.base)) {
            segment.rescan = Some(Box::new(rescan));
        }
        Next::Damaged(harm)
    }

    fn data_read(&mut self, id: u64, at: Place, until: u64, result: io::Result<Outcome>) -> Next {
        let Some((task, state, limit)) = self.segment_of(id) else { return no_segment() };
        let log = (task.key, task.base);
        let segment = self.partitions.get(&log.0).and_then(|partition| partition.segment(log.1));
        let trusted = task.marks.is_empty() || segment.is_some_and(|segment| segment.vouched);
        let mut progress = Checked::new(task, at);
        let mut walk = match Walk::new(task, state, limit, at, until, result) {
            Ok(walk) => walk,
            Err(error) => return Next::Damaged(progress.harm(at, error)),
        };
        loop {
            let first = walk.at;
            match walk.next_batch() {
                Ok(Found::Batch(header, range)) => {
                    progress.take(&header, range, first, walk.at);
                    if let Err(digest) = progress.pass(walk.at) {
                        let found = format!("those of digest {digest}");
                        let error = another_file(task, state, progress.sure, &found);
                        break progress.stopped(&walk, false, error);
                    }
                    if progress.is_full() {
                        break Next::Done(Ok(progress.batches(&walk, false)));
                    }
                }
                Err(error) => break progress.stopped(&walk, trusted, error),
                Ok(_) if progress.has_any() => break Next::Done(Ok(progress.batches(&walk, false))),
                Ok(Found::Incomplete { need }) => break progress.go_on(walk.at, need),
                Ok(Found::End) if walk.at.position < limit => break progress.go_on(walk.at, SCAN_CHUNK),
                Ok(Found::End) => break Next::Done(Err(self.nothing_found(task, &walk))),
            }
        }
    }

    /// The end of the readable bytes came before what was asked for.
    fn nothing_found(&self, task: &ReadTask, walk: &Walk<'_>) -> SegmentError {
        let key = task.key;
        match (task.target, self.partitions.get(&key)) {
            // The stretch is late enough by a batch that is not written yet.
            (Target::Timestamp(_), Some(partition)) if walk.limit < walk.state.len => SegmentError::OutOfRange {
                key,
                offset: walk.at.offset,
                log_start_offset: partition.log_start_offset(),
                written_offset: partition.written_offset(),
            },
            (target, _) => damaged(&walk.file, walk.at.position, format!("a batch for {target:?}"), "none"),
        }
    }
}

fn find_stretch(index: &[IndexEntry], target: Target, max_bytes: usize) -> Option<(Place, u64)> {
    let (entry, end) = match target {
        Target::Offset(offset) => index::find_offset(index, offset),
        Target::Timestamp(timestamp) => index::find_timestamp(index, timestamp),
    }?;
    let at = Place { position: entry.position, offset: entry.offset, digest: entry.digest };
    // The last stretch ends where the file does; the read is cut to that.
    Some((at, end.map_or(u64::MAX, |end| end.saturating_add(max_bytes as u64))))
}

/// Segments stay while they are read, so this is never seen.
fn no_segment() -> Next {
    Next::Done(Err(io_error("read", "a segment", io::ErrorKind::NotFound.into())))
}

pub(super) fn damaged(
    file: &str,
    position: u64,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> SegmentError {
    SegmentError::Damaged { file: file.to_owned(), position, expected: expected.into(), found: found.into() }
}
