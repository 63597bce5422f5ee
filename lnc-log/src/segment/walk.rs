//! Walks through what was read of a segment: from batch to batch, checking each, and from mark to mark, checking that they
//! are the batches that were written.

use super::read::{Batches, Harm, Next, Phase, ReadTask, Stretch, Target, damaged};
use super::state::SegmentState;
use super::{Digest, Place, SegmentError, block_floor, io_error};
use crate::disk::Outcome;
use bytes::Bytes;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::batch::{self, BatchHeader, HEADER_LEN};
use std::io;
use std::ops::Range;

/// The batches from this place on pass their checks, but are not those that were written.
pub(super) fn another_file(task: &ReadTask, state: &SegmentState, at: Place, found: &str) -> SegmentError {
    let file = task.key.log_path(task.base);
    let until = task.marks.iter().find(|(position, _)| *position > at.position);
    let (position, digest) = until.copied().unwrap_or((state.len, state.digest.unwrap_or_default()));
    let expected = format!("batches of digest {digest} up to position {position}");
    damaged(&file, at.position, expected, format!("{found}: the file, or a part of it, is another one or an older one"))
}

/// What a walk has found so far of what a read wants, and what of it is known to be what was written.
pub(super) struct Checked<'a> {
    task: &'a ReadTask,
    /// Where the digest was known last.
    pub(super) sure: Place,
    /// Marks that were passed.
    pub(super) passed: usize,
    /// Where the wanted batches begin and end in the bytes, and their offsets.
    wanted: Option<(Range<usize>, Range<u64>)>,
    /// No more is wanted.
    full: bool,
    /// What of it lies before `sure`.
    known: Option<(Range<usize>, Range<u64>)>,
}

impl<'a> Checked<'a> {
    pub(super) fn new(task: &'a ReadTask, at: Place) -> Self {
        Self { task, sure: at, passed: 0, wanted: None, full: false, known: None }
    }

    /// A batch lies between two places.
    pub(super) fn take(&mut self, header: &BatchHeader, range: Range<usize>, first: Place, after: Place) {
        match &mut self.wanted {
            _ if self.full => {}
            Some((bytes, _)) if range.end - bytes.start > self.task.max_bytes => self.full = true,
            Some((bytes, offsets)) => (bytes.end, offsets.end) = (range.end, after.offset),
            None => {
                let is_wanted = match self.task.target {
                    Target::Offset(offset) => offset < after.offset,
                    Target::Timestamp(timestamp) => header.max_timestamp >= timestamp,
                };
                self.wanted = is_wanted.then_some((range, first.offset..after.offset));
            }
        }
    }

    /// The walk has come to a place. If that is a mark, or none is known, all before it is known; the digest that it has
    /// instead of the right one, if it has not.
    pub(super) fn pass(&mut self, at: Place) -> Result<(), Digest> {
        if let Some((position, digest)) = self.task.marks.get(self.passed).copied() {
            if at.position < position {
                return Ok(());
            }
            if (at.position, at.digest) != (position, digest) && !mutated(Mutation::IgnoreDigests) {
                return Err(at.digest);
            }
            self.passed += 1;
        } else if !self.task.marks.is_empty() {
            return Ok(());
        }
        self.sure = at;
        self.known.clone_from(&self.wanted);
        Ok(())
    }

    pub(super) fn has_any(&self) -> bool {
        self.known.is_some()
    }

    /// Whether all that may be handed out is known.
    pub(super) fn is_full(&self) -> bool {
        self.full && self.known.is_some() && self.known == self.wanted || self.passed_all()
    }

    /// Whether there are marks, and the last one was passed with something to hand out.
    fn passed_all(&self) -> bool {
        self.passed > 0 && self.passed == self.task.marks.len() && self.known.is_some()
    }

    /// What may be handed out; `all` has what no mark vouches for as well.
    pub(super) fn batches(&self, walk: &Walk<'_>, all: bool) -> Batches {
        let (bytes, offsets) = if all { &self.wanted } else { &self.known }.clone().unwrap_or_default();
        Batches { base_offset: offsets.start, end_offset: offsets.end, bytes: walk.bytes.slice(bytes) }
    }

    /// What follows from something else than a batch that belongs there. `trusted`: it is no other file.
    pub(super) fn stopped(&self, walk: &Walk<'_>, trusted: bool, error: SegmentError) -> Next {
        let harm = self.harm(walk.at, error);
        match if trusted { &self.wanted } else { &self.known } {
            Some(_) => Next::Before(harm, self.batches(walk, trusted)),
            None => Next::Damaged(harm),
        }
    }

    /// What is to be written again: all from the last mark on, or else from where the walk has stopped.
    pub(super) fn harm(&self, at: Place, error: SegmentError) -> Harm {
        match self.task.marks.get(self.passed) {
            Some(&(until, after)) => {
                let stretch = Stretch { before: self.sure.digest, until, after };
                Harm { place: self.sure, stretch: Some(stretch), error }
            }
            None => Harm::at(at, error),
        }
    }

    /// Nothing is known yet: so much more is needed.
    pub(super) fn go_on(&self, at: Place, need: u64) -> Next {
        let until = at.position + need.max(self.task.max_bytes as u64);
        let from = if self.wanted.is_some() { self.sure } else { at };
        Next::Log(Phase::Data { at: from, until })
    }
}

/// Goes from batch to batch through bytes of a segment, checking each.
pub(super) struct Walk<'a> {
    pub(super) file: String,
    pub(super) state: &'a SegmentState,
    /// End of the last whole batch in the file.
    pub(super) limit: u64,
    bytes: Bytes,
    /// Position of the first byte of `bytes`.
    from: u64,
    pub(super) at: Place,
}

pub(super) enum Found {
    /// A batch, by its range in the bytes.
    Batch(BatchHeader, Range<usize>),
    /// The bytes end within a batch, of which at least `need` bytes are needed.
    Incomplete { need: u64 },
    /// No batch is left.
    End,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
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

    pub(super) fn next_batch(&mut self) -> Result<Found, SegmentError> {
        let Place { position, offset, .. } = self.at;
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
        self.at = self.at.after(&header, len);
        Ok(Found::Batch(header, start..start + len))
    }
}
