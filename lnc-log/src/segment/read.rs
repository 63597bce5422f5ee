//! Reads from segment files: find the stretch, read it, check every batch, hand out whole batches.
//!
//! A read goes: open the log file → (load the index of a sealed segment → if that is bad, rebuild it by a scan) → read
//! the stretch → if its batch turns out longer, read that. One operation is in flight per read, and over all of them no more
//! bytes than the owner allows: what the disk was asked for before, a flush must wait for.

use super::files::Waiter;
use super::index::{self, IndexEntry};
use super::state::SegmentState;
use super::store::{Pending, SegmentStore};
use super::{PartitionKey, SegmentError, block_ceil, block_floor, io_error};
use crate::disk::{AlignedBuf, BLOCK, Disk, FileId, Op, Outcome};
use bytes::Bytes;
use lnc_protocol::batch::{self, BatchHeader, HEADER_LEN};
use std::io;
use std::ops::Range;

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
}

/// What the first returned batch must have.
#[derive(Clone, Copy, Debug)]
enum Target {
    /// A record with this offset.
    Offset(u64),
    /// A record of at least this timestamp, with none before it.
    Timestamp(i64),
}

/// A place where a batch begins.
#[derive(Clone, Copy, Debug)]
struct Place {
    position: u64,
    offset: u64,
}

/// A read under way.
#[derive(Debug)]
pub(super) struct ReadTask {
    ticket: u64,
    key: PartitionKey,
    base: u64,
    target: Target,
    max_bytes: usize,
    file: FileId,
    phase: Phase,
    /// Position and length of what it waits for, or has the disk read.
    wanted: (u64, usize),
    /// Whether the disk reads that.
    reading: bool,
    /// Where the walk met something else than a batch.
    damage: Option<Place>,
}

#[derive(Debug)]
enum Phase {
    /// The log file is being opened; where to read is known if the index is in memory.
    Open { stretch: Option<(Place, u64)> },
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
enum Next {
    /// Read the log file from `at` to `until`, then go on with this phase.
    Log(Phase),
    /// Submit this, then go on with this phase.
    Other(Op, Phase),
    /// Over.
    Done(Result<Batches, SegmentError>),
    /// Over: what comes before this place is as good as ever, what is there is no batch.
    Before(Place, Batches),
    /// Over: what should be a batch at this place is none.
    Damaged(Place, SegmentError),
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
            found.is_none_or(|(entry, _)| entry.position < segment.readable.0) && segment.readable.0 > 0
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
        segment.readers += 1;
        let stretch = find_stretch(&segment.state.index, target, max_bytes);
        self.reads_begun += 1;
        let id = self.reads_begun;
        let phase = Phase::Open { stretch };
        self.reads.insert(
            id,
            ReadTask {
                ticket,
                key,
                base,
                target,
                max_bytes,
                file: FileId(0),
                phase,
                wanted: (0, 0),
                reading: false,
                damage: None,
            },
        );
        self.acquire(disk, (key, base), Waiter::Read(id));
        Ok(())
    }

    /// The log file of a read is open.
    pub(super) fn read_opened(&mut self, disk: &mut impl Disk, id: u64, file: FileId) {
        let Some(task) = self.reads.get_mut(&id) else { return };
        task.file = file;
        let next = match task.phase {
            Phase::Open { stretch: Some((at, until)) } => Next::Log(Phase::Data { at, until }),
            _ => {
                let path = task.key.index_path(task.base);
                let index = self.files.fresh();
                Next::Other(Op::Open { file: index, path, create: false, direct: true }, Phase::OpenIndex { index })
            }
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
        let phase = std::mem::replace(&mut task.phase, Phase::Open { stretch: None });
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
            Phase::Open { .. } | Phase::Blocks { .. } => return None,
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
            Next::Before(place, batches) => {
                task.damage = Some(place);
                Next::Done(Ok(batches))
            }
            Next::Damaged(place, error) => {
                // Only what the file should hold is damage: that it cannot be read now is not.
                task.damage = Some(place).filter(|_| matches!(error, SegmentError::Damaged { .. }));
                Next::Done(Err(error))
            }
            next => next,
        };
        let op = match next {
            Next::Damaged(..) | Next::Before(..) => return None,
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
                let readable = self.partitions.get(&task.key).and_then(|partition| partition.segment(task.base));
                let limit = readable.map_or(0, |segment| segment.readable.0);
                let (Phase::Data { at, until } | Phase::Scan { at, until, .. }) = &mut phase else { return None };
                *until = (*until).min(limit);
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
        let ReadTask { ticket, key, base, damage, .. } = task;
        let damage = damage.map(|Place { position, offset }| DamagedBatch { key, base, position, offset });
        if let Some(segment) = self.partitions.get_mut(&key).and_then(|partition| partition.segment_mut(base)) {
            segment.readers -= 1;
        }
        self.purge(key);
        self.drop_removed(key);
        self.pump(disk);
        ReadDone { ticket, key, result, damage }
    }

    fn segment_of(&self, id: u64) -> Option<(&ReadTask, &SegmentState, u64)> {
        let task = self.reads.get(&id)?;
        let segment = self.partitions.get(&task.key)?.segment(task.base)?;
        Some((task, &segment.state, segment.readable.0))
    }

    fn index_opened(&self, id: u64, index: FileId, result: io::Result<Outcome>) -> Next {
        let Some((_, state, _)) = self.segment_of(id) else { return no_segment() };
        match result {
            Ok(Outcome::Opened { len }) => {
                let len = block_ceil(len.min(index::max_file_len(state))) as usize;
                Next::Other(Op::Read { file: index, position: 0, len }, Phase::ReadIndex { index })
            }
            _ => begin_scan(state),
        }
    }

    fn index_read(&mut self, id: u64, result: io::Result<Outcome>) -> Next {
        let Some((task, state, _)) = self.segment_of(id) else { return no_segment() };
        let loaded = match result {
            Ok(Outcome::Read(bytes)) => index::decode(state, &bytes),
            _ => None,
        };
        match loaded {
            Some(index) => self.index_loaded(id, index),
            None => {
                tracing::warn!(
                    file = task.key.index_path(task.base),
                    "index missing or damaged: rebuilding it, and nothing is to be done"
                );
                begin_scan(state)
            }
        }
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
            Err(error) => return Next::Damaged(at, error),
        };
        let need = loop {
            let place = walk.at;
            match walk.next_batch() {
                Ok(Found::Batch(header, _)) => {
                    let max_timestamp = header.max_timestamp;
                    let entry = IndexEntry { offset: place.offset, position: place.position, max_timestamp };
                    index::push(&mut index, interval, entry);
                }
                Ok(Found::Incomplete { need }) => break need,
                Ok(Found::End) if walk.at.position < limit => break SCAN_CHUNK,
                Ok(Found::End) => break 0,
                Err(error) => return Next::Damaged(walk.at, error),
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
        let (key, base) = (task.key, task.base);
        if let Some(partition) = self.partitions.get_mut(&key).filter(|p| !p.rebuilt.contains(&base)) {
            partition.rebuilt.push(base);
            self.ready.insert(key);
        }
        self.index_loaded(id, index)
    }

    fn data_read(&self, id: u64, at: Place, until: u64, result: io::Result<Outcome>) -> Next {
        let Some((task, state, limit)) = self.segment_of(id) else { return no_segment() };
        let mut walk = match Walk::new(task, state, limit, at, until, result) {
            Ok(walk) => walk,
            Err(error) => return Next::Damaged(at, error),
        };
        // Where the wanted batches begin and end in the bytes, and their offsets.
        let mut wanted: Option<(Range<usize>, Range<u64>)> = None;
        let mut damage = None;
        loop {
            let first = walk.at.offset;
            match walk.next_batch() {
                Ok(Found::Batch(header, range)) => match &mut wanted {
                    Some((bytes, _)) if range.end - bytes.start > task.max_bytes => break,
                    Some((bytes, offsets)) => (bytes.end, offsets.end) = (range.end, walk.at.offset),
                    None => {
                        let is_wanted = match task.target {
                            Target::Offset(offset) => offset < walk.at.offset,
                            Target::Timestamp(timestamp) => header.max_timestamp >= timestamp,
                        };
                        wanted = is_wanted.then_some((range, first..walk.at.offset));
                    }
                },
                Err(_) if wanted.is_some() => {
                    damage = Some(walk.at);
                    break;
                }
                _ if wanted.is_some() => break,
                Ok(Found::Incomplete { need }) => {
                    let until = walk.at.position + need.max(task.max_bytes as u64);
                    return Next::Log(Phase::Data { at: walk.at, until });
                }
                Ok(Found::End) if walk.at.position < limit => {
                    let until = walk.at.position + SCAN_CHUNK.max(task.max_bytes as u64);
                    return Next::Log(Phase::Data { at: walk.at, until });
                }
                Ok(Found::End) => break,
                Err(error) => return Next::Damaged(walk.at, error),
            }
        }
        let Some((bytes, offsets)) = wanted else { return Next::Done(Err(self.nothing_found(task, &walk))) };
        let found = Batches { base_offset: offsets.start, end_offset: offsets.end, bytes: walk.bytes.slice(bytes) };
        match damage {
            Some(place) => Next::Before(place, found),
            None => Next::Done(Ok(found)),
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
    let at = Place { position: entry.position, offset: entry.offset };
    // The last stretch ends where the file does; the read is cut to that.
    Some((at, end.map_or(u64::MAX, |end| end.saturating_add(max_bytes as u64))))
}

fn begin_scan(state: &SegmentState) -> Next {
    let at = Place { position: 0, offset: state.base_offset };
    Next::Log(Phase::Scan { at, until: SCAN_CHUNK, index: Vec::new() })
}

/// Segments stay while they are read, so this is never seen.
fn no_segment() -> Next {
    Next::Done(Err(io_error("read", "a segment", io::ErrorKind::NotFound.into())))
}

fn damaged(file: &str, position: u64, expected: impl Into<String>, found: impl Into<String>) -> SegmentError {
    SegmentError::Damaged { file: file.to_owned(), position, expected: expected.into(), found: found.into() }
}

/// Goes from batch to batch through bytes of a segment, checking each.
struct Walk<'a> {
    file: String,
    state: &'a SegmentState,
    /// End of the last whole batch in the file.
    limit: u64,
    bytes: Bytes,
    /// Position of the first byte of `bytes`.
    from: u64,
    at: Place,
}

enum Found {
    /// A batch, by its range in the bytes.
    Batch(BatchHeader, Range<usize>),
    /// The bytes end within a batch, of which at least `need` bytes are needed.
    Incomplete { need: u64 },
    /// No batch is left.
    End,
}

impl<'a> Walk<'a> {
    fn new(
        task: &ReadTask,
        state: &'a SegmentState,
        limit: u64,
        at: Place,
        until: u64,
        result: io::Result<Outcome>,
    ) -> Result<Self, SegmentError> {
        let file = task.key.log_path(task.base);
        let bytes = match result {
            Ok(Outcome::Read(bytes)) => Bytes::from_owner(bytes),
            Ok(_) => Bytes::new(),
            Err(error) => return Err(io_error("read", file, error)),
        };
        let from = block_floor(at.position);
        let end = from + bytes.len() as u64;
        if end < until {
            return Err(damaged(&file, end, format!("{} bytes more", until - end), "the end of the file"));
        }
        Ok(Self { file, state, limit, bytes, from, at })
    }

    fn next_batch(&mut self) -> Result<Found, SegmentError> {
        let Place { position, offset } = self.at;
        let end = self.limit.min(self.from + self.bytes.len() as u64);
        if position >= end {
            return Ok(Found::End);
        }
        let start = (position - self.from) as usize;
        let rest = &self.bytes[start..(end - self.from) as usize];
        let room = self.limit - position;
        if rest.len() < HEADER_LEN && room >= HEADER_LEN as u64 {
            return Ok(Found::Incomplete { need: HEADER_LEN as u64 });
        }
        let bad = |error: batch::BatchError| damaged(&self.file, position, "a batch", error.to_string());
        let len = BatchHeader::parse(rest).map_err(bad)?.total_len();
        if len as u64 > room {
            let expected = format!("a batch of at most {room} bytes");
            return Err(damaged(&self.file, position, expected, format!("one of {len} bytes")));
        }
        let Some(whole) = rest.get(..len) else { return Ok(Found::Incomplete { need: len as u64 }) };
        let header = batch::check(whole).map_err(bad)?;
        if header.base_offset != offset {
            let (expected, found) = (format!("base offset {offset}"), header.base_offset.to_string());
            return Err(damaged(&self.file, position, expected, found));
        }
        let (epoch, expected) = (header.partition_leader_epoch, self.state.epoch_at(offset));
        if expected != Some(epoch) {
            let expected = format!("leader epoch {}", expected.unwrap_or(-1));
            return Err(damaged(&self.file, position, expected, epoch.to_string()));
        }
        self.at = Place { position: position + len as u64, offset: offset + u64::from(header.last_offset_delta) + 1 };
        Ok(Found::Batch(header, start..start + len))
    }
}
