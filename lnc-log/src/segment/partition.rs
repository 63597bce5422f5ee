//! One partition in memory: its segments, the bytes that are not in the files for good, and what its lane does next.

use super::index::{self, IndexEntry};
use super::mend::Mend;
use super::repair::Repair;
use super::state::{EpochStart, PartitionState, SegmentState};
use super::{
    Allowance, Digest, PREFIX_LEN, PartitionKey, Place, SegmentConfig, SegmentError, StoredBatch, block_ceil,
    block_floor,
};
use crate::disk::{AlignedBuf, BLOCK, FileId};
use bytes::Bytes;
use std::collections::VecDeque;

/// A segment and how far its file is.
///
/// `flushed ≤ on_file ≤ len`, `synced ≤ on_file`. Positions below `flushed` are never written again.
#[derive(Debug)]
pub(super) struct Segment {
    /// `state.index` is filled while the segment is open, and while the index of a sealed one is in memory.
    pub(super) state: SegmentState,
    /// A multiple of [`BLOCK`], or the whole length once a sealed segment is completely written.
    pub(super) flushed: u64,
    /// Bytes that can be read from the file.
    pub(super) on_file: u64,
    /// End of the last whole batch below `on_file`.
    pub(super) readable: Place,
    /// Bytes on stable storage.
    pub(super) synced: u64,
    /// The file exists.
    pub(super) created: bool,
    /// The padding behind a sealed segment was cut off.
    pub(super) cut: bool,
    /// The index file is written (or, for a segment from before a restart, is hoped to be there).
    pub(super) indexed: bool,
    /// Reads under way.
    pub(super) readers: usize,
    /// No longer part of the partition, since this checkpoint.
    pub(super) trimmed: Option<u64>,
    /// All of the file was written since the start, or read from its beginning to its end and had its digest: no part of it is
    /// another one's. That one stretch has its digest says nothing of the next: where another file was repaired, they take turns.
    pub(super) vouched: bool,
    /// Its file was removed before its time, for want of space: see [`super::SegmentStore::give_up`].
    pub(super) given_up: bool,
    /// A look for the index in the file that has not come to its end.
    pub(super) rescan: Option<Box<Rescan>>,
}

/// How far the index was rebuilt from the file, whose end is not reached: damage is in the way, or all of it is another file.
#[derive(Debug)]
pub(super) struct Rescan {
    /// All is well up to here.
    pub(super) at: Place,
    pub(super) index: Vec<IndexEntry>,
    /// The file as a whole has not the digest that it should have, and no index says where it begins to be another one: what
    /// lies behind `at` is still to be overwritten.
    pub(super) overwrite: bool,
}

impl Segment {
    fn new(batch: &StoredBatch) -> Self {
        let state = SegmentState {
            base_offset: batch.base_offset,
            end_offset: batch.base_offset,
            len: 0,
            max_timestamp: batch.max_timestamp,
            first_append_ms: batch.append_ms,
            last_append_ms: batch.append_ms,
            sealed: false,
            epochs: Vec::new(),
            index: Vec::new(),
            digest: Some(Digest::default()),
        };
        Self {
            flushed: 0,
            on_file: 0,
            readable: Place::start(batch.base_offset),
            synced: 0,
            created: false,
            cut: false,
            indexed: false,
            readers: 0,
            trimmed: None,
            vouched: true,
            given_up: false,
            rescan: None,
            state,
        }
    }

    /// A segment whose file holds exactly what `state` says.
    pub(super) fn recovered(state: SegmentState) -> Self {
        let len = state.len;
        Self {
            flushed: if state.sealed { len } else { block_floor(len) },
            on_file: len,
            readable: Place { position: len, offset: state.end_offset, digest: state.digest.unwrap_or_default() },
            synced: len,
            created: true,
            cut: state.sealed,
            indexed: state.sealed,
            readers: 0,
            trimmed: None,
            vouched: false,
            given_up: false,
            rescan: None,
            state,
        }
    }

    /// Whether its file ends within a block, which is written whole all the same.
    pub(super) fn is_cut_within_a_block(&self) -> bool {
        self.cut && !self.state.len.is_multiple_of(BLOCK as u64)
    }

    fn is_finished(&self) -> bool {
        let len = self.state.len;
        self.state.sealed && self.flushed == len && self.cut && self.indexed && self.synced == len
    }

    /// Bytes of its file, unless that was given up.
    pub(super) fn file_bytes(&self) -> u64 {
        if self.created && !self.given_up { self.on_file } else { 0 }
    }

    /// The state as a checkpoint stores it.
    fn to_state(&self, digests: bool) -> SegmentState {
        let mut index = if self.state.sealed { Vec::new() } else { self.state.index.clone() };
        if !digests {
            index.iter_mut().for_each(|entry| entry.digest = Digest::default());
        }
        SegmentState { index, epochs: self.state.epochs.clone(), digest: self.digest(digests), ..self.state }
    }

    /// The digest, as far as files may have any.
    pub(super) fn digest(&self, digests: bool) -> Option<Digest> {
        self.state.digest.filter(|_| digests)
    }

    /// The places behind `at` where the digest is known, up to `until`: where stretches of the index begin, and the end of
    /// what can be read. None if the segment has no digest, or its index is not in memory.
    pub(super) fn marks(&self, at: u64, until: u64) -> Vec<(u64, Digest)> {
        if self.state.digest.is_none() || self.state.index.is_empty() {
            return Vec::new();
        }
        let Place { position: end, digest, .. } = self.readable;
        let entries = self.state.index.iter().map(|entry| (entry.position, entry.digest));
        let marks = entries.filter(|(position, _)| *position < end).chain([(end, digest)]);
        marks.filter(|(position, _)| (at + 1..=until).contains(position)).collect()
    }

    /// A reader has seen all batches of the segment, which had none: what they are, and where. They lie in the file.
    pub(super) fn learn(&mut self, digest: Digest) {
        self.state.digest = Some(digest);
        self.readable.digest = digest;
        self.vouched = true;
    }

    fn push(&mut self, batch: &StoredBatch, interval: u64) {
        let state = &mut self.state;
        assert!(!state.sealed, "nothing is added to a sealed segment");
        assert_eq!(batch.base_offset, state.end_offset, "offsets are continuous");
        let entry = IndexEntry {
            offset: batch.base_offset,
            position: state.len,
            max_timestamp: batch.max_timestamp,
            digest: state.digest.unwrap_or_default(),
        };
        index::push(&mut state.index, interval, entry);
        state.digest = state.digest.map(|digest| batch.digest(digest));
        if state.epochs.last().is_none_or(|last| last.epoch != batch.epoch()) {
            state.epochs.push(EpochStart { offset: batch.base_offset, epoch: batch.epoch() });
        }
        state.len += batch.len() as u64;
        state.end_offset = batch.last_offset + 1;
        state.max_timestamp = state.max_timestamp.max(batch.max_timestamp);
        state.last_append_ms = state.last_append_ms.max(batch.append_ms);
    }
}

/// Bytes that wait in memory, in file order; segments follow on one another.
#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are in the file for good.
    skip: usize,
    bytes: u64,
}

#[derive(Debug)]
struct Piece {
    content: Content,
    /// The offset after this piece.
    end_offset: u64,
    /// Of the segment, up to the end of this piece.
    digest: Digest,
}

#[derive(Debug)]
enum Content {
    Batch {
        prefix: [u8; PREFIX_LEN],
        raw: Bytes,
    },
    /// The end of a partial block, ending where a batch ends.
    Tail(Vec<u8>),
}

impl Piece {
    fn parts(&self) -> [&[u8]; 2] {
        match &self.content {
            Content::Batch { prefix, raw } => [prefix, &raw[PREFIX_LEN..]],
            Content::Tail(bytes) => [bytes, &[]],
        }
    }

    fn len(&self) -> usize {
        match &self.content {
            Content::Batch { raw, .. } => raw.len(),
            Content::Tail(bytes) => bytes.len(),
        }
    }
}

impl Queue {
    fn push(&mut self, content: Content, end_offset: u64, digest: Digest) {
        let piece = Piece { content, end_offset, digest };
        self.bytes += piece.len() as u64;
        self.pieces.push_back(piece);
    }

    /// Copy the first `count` bytes to `out`.
    fn copy(&self, count: usize, out: &mut AlignedBuf) {
        let end = out.len() + count;
        let mut skip = self.skip;
        for part in self.pieces.iter().flat_map(Piece::parts) {
            let skipped = skip.min(part.len());
            skip -= skipped;
            let part = &part[skipped..];
            let part = &part[..part.len().min(end - out.len())];
            out.extend_from_slice(part);
            if out.len() == end {
                break;
            }
        }
    }

    /// Replace what came from a file, where `bytes` belong at `position` of it. The queue begins at `start`.
    fn patch(&mut self, start: u64, position: u64, bytes: &[u8]) {
        let Some(Piece { content: Content::Tail(tail), .. }) = self.pieces.front_mut() else { return };
        let start = start - self.skip as u64;
        let from = position.max(start);
        let until = (position + bytes.len() as u64).min(start + tail.len() as u64);
        if from < until {
            tail[(from - start) as usize..(until - start) as usize]
                .copy_from_slice(&bytes[(from - position) as usize..(until - position) as usize]);
        }
    }

    /// Drop the first `count` bytes.
    fn pop(&mut self, mut count: u64) {
        assert!(count <= self.bytes, "{count} of {} bytes that wait are written", self.bytes);
        self.bytes -= count;
        while let Some(first) = self.pieces.front() {
            let left = (first.len() - self.skip) as u64;
            if left > count {
                self.skip += count as usize;
                return;
            }
            count -= left;
            self.skip = 0;
            self.pieces.pop_front();
        }
    }

    /// The last piece that ends within the first `count` bytes: where it ends in them, and what is there.
    fn last_end(&self, count: u64) -> Option<(u64, u64, Digest)> {
        let mut at = 0;
        let mut found = None;
        for (n, piece) in self.pieces.iter().enumerate() {
            at += (piece.len() - if n == 0 { self.skip } else { 0 }) as u64;
            if at > count {
                break;
            }
            found = Some((at, piece.end_offset, piece.digest));
        }
        found
    }

    /// Replace what waits, the end of one segment, by a copy: less than a block should not hold on to a whole request
    /// buffer.
    fn compact(&mut self) {
        let Some(&Piece { end_offset, digest, .. }) = self.pieces.back() else { return };
        let mut copy = AlignedBuf::default();
        self.copy(self.bytes as usize, &mut copy);
        *self = Self::default();
        self.push(Content::Tail(copy.to_vec()), end_offset, digest);
    }
}

/// What a partition's lane does; one step at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make the partition's directory.
    CreateDir,
    /// Write `bytes` from `flushed` on; padded if that is not whole blocks. `durable` syncs them at the same time.
    Write { base: u64, bytes: usize, durable: bool },
    /// Cut the padding off.
    Cut { base: u64 },
    /// Open the index file. One that `replaces` another is written beside it first, lest it be written again and again over a
    /// place that cannot be read. That one was rebuilt is no reason by itself: this may be the first one, under way already.
    OpenIndex { base: u64, file: FileId, replaces: bool },
    /// Write the index.
    WriteIndex { base: u64, file: FileId, replaces: bool },
    /// Sync the log; `upto` is what is in the file.
    Sync { base: u64, upto: u64 },
    /// Have a rebuilt index take the place of the one before.
    NameIndex { base: u64 },
    /// Repair a damaged place.
    Mend { base: u64, mend: Mend },
    /// Make the names in the partition's directory durable.
    SyncNames,
    /// Make the partition's directory durable in its parent.
    SyncParent,
    /// Make the parent durable.
    SyncRoot,
}

impl Step {
    /// The base offset of the segment whose log file it uses.
    pub(super) fn log_file(self) -> Option<u64> {
        match self {
            Self::Write { base, .. } | Self::Cut { base } | Self::Sync { base, .. } => Some(base),
            Self::Mend { base, mend } => mend.uses_log().then_some(base),
            _ => None,
        }
    }
}

/// Names that a checkpoint has yet to make durable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct UnsyncedNames {
    pub(super) files: bool,
    pub(super) dir: bool,
    pub(super) root: bool,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub(super) key: PartitionKey,
    pub(super) segment_bytes: u64,
    log_start_offset: u64,
    log_end_offset: u64,
    written_offset: u64,
    /// In order. A prefix may be trimmed: those stay until the checkpoint that names them has their bytes.
    pub(super) segments: Vec<Segment>,
    queue: Queue,
    pub(super) dir_made: bool,
    pub(super) unsynced: UnsyncedNames,
    /// What the lane is doing.
    pub(super) lane: Option<Step>,
    /// What the checkpoint in progress must have on stable storage: of the segment at this base offset, that many
    /// bytes, and everything before it.
    pub(super) target: Option<(u64, u64)>,
    /// Sealed segments whose index was rebuilt and waits to be written.
    pub(super) rebuilt: Vec<u64>,
    /// What is to be written over damage, next.
    pub(super) repair: Option<Repair>,
    /// The partition does not exist any more, since this checkpoint.
    pub(super) removed: Option<u64>,
}

impl Partition {
    pub(super) fn new(key: PartitionKey, segment_bytes: u64) -> Self {
        Self {
            key,
            segment_bytes,
            log_start_offset: 0,
            log_end_offset: 0,
            written_offset: 0,
            segments: Vec::new(),
            queue: Queue::default(),
            dir_made: false,
            unsynced: UnsyncedNames::default(),
            lane: None,
            target: None,
            rebuilt: Vec::new(),
            repair: None,
            removed: None,
        }
    }

    /// A partition whose files hold exactly what `state` says; `tail` is the partial last block of the open segment.
    pub(super) fn recovered(key: PartitionKey, segment_bytes: u64, state: &PartitionState, tail: Vec<u8>) -> Self {
        let mut partition = Self::new(key, segment_bytes);
        partition.log_start_offset = state.log_start_offset;
        partition.log_end_offset = state.log_end_offset;
        partition.written_offset = state.log_end_offset;
        partition.segments = state.segments.iter().cloned().map(Segment::recovered).collect();
        partition.dir_made = !state.segments.is_empty();
        if !tail.is_empty() {
            let digest = state.segments.last().and_then(|open| open.digest).unwrap_or_default();
            partition.queue.push(Content::Tail(tail), state.log_end_offset, digest);
        }
        partition
    }

    pub(super) fn log_start_offset(&self) -> u64 {
        self.log_start_offset
    }

    pub(super) fn log_end_offset(&self) -> u64 {
        self.log_end_offset
    }

    pub(super) fn written_offset(&self) -> u64 {
        self.written_offset.max(self.log_start_offset)
    }

    /// Bytes held in memory because they are not in the files for good.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.queue.bytes
    }

    /// The segments that are part of the partition.
    pub(super) fn live(&self) -> &[Segment] {
        let trimmed = self.segments.partition_point(|segment| segment.trimmed.is_some());
        &self.segments[trimmed..]
    }

    pub(super) fn segment(&self, base: u64) -> Option<&Segment> {
        let at = self.segments.binary_search_by_key(&base, |segment| segment.state.base_offset).ok()?;
        Some(&self.segments[at])
    }

    pub(super) fn segment_mut(&mut self, base: u64) -> Option<&mut Segment> {
        let at = self.segments.binary_search_by_key(&base, |segment| segment.state.base_offset).ok()?;
        Some(&mut self.segments[at])
    }

    /// Whether the index of a segment is in memory.
    pub(super) fn has_index(&self, base: u64) -> bool {
        self.segment(base).is_some_and(|segment| !segment.state.index.is_empty())
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.live().iter().map(|segment| segment.state.len).sum()
    }

    pub(super) fn to_state(&self, digests: bool) -> PartitionState {
        PartitionState {
            log_start_offset: self.log_start_offset,
            log_end_offset: self.log_end_offset,
            segments: self.live().iter().map(|segment| segment.to_state(digests)).collect(),
        }
    }

    /// Take a batch in; says whether the lane may have something to do.
    pub(super) fn append(&mut self, batch: StoredBatch, config: &SegmentConfig) -> Result<bool, SegmentError> {
        let StoredBatch { base_offset, last_offset, .. } = batch;
        let (key, expected) = (self.key, self.log_end_offset);
        if base_offset != expected || last_offset < base_offset || last_offset == u64::MAX {
            return Err(SegmentError::OutOfOrder { key, expected, base_offset, last_offset });
        }
        if batch.len() < lnc_protocol::batch::HEADER_LEN {
            return Err(SegmentError::InvalidBatch { key, base_offset, len: batch.len() });
        }
        let sealed = self.seal_if_full(&batch, config.roll_ms);
        if self.open_segment().is_none() {
            self.segments.push(Segment::new(&batch));
        }
        let mut digest = Digest::default();
        if let Some(open) = self.open_segment() {
            open.push(&batch, config.index_interval_bytes);
            digest = open.state.digest.unwrap_or_default();
        }
        let end = self.segments.last().map(|segment| segment.state.end_offset);
        assert_eq!(end, Some(last_offset + 1), "the last segment ends where the log does");
        self.log_end_offset = last_offset + 1;
        self.queue.push(Content::Batch { prefix: batch.prefix, raw: batch.raw }, last_offset + 1, digest);
        Ok(sealed || self.queue.bytes >= config.write_block as u64)
    }

    fn open_segment(&mut self) -> Option<&mut Segment> {
        self.segments.last_mut().filter(|segment| !segment.state.sealed)
    }

    fn seal_if_full(&mut self, batch: &StoredBatch, roll_ms: Option<u64>) -> bool {
        let limit = self.segment_bytes;
        let Some(open) = self.open_segment() else { return false };
        let full = open.state.len + batch.len() as u64 > limit;
        let old = roll_ms.is_some_and(|ms| batch.append_ms.saturating_sub(open.state.first_append_ms) > ms);
        if full || old {
            open.state.sealed = true;
        }
        full || old
    }

    /// Let go of the segments that end at or below `log_start_offset`.
    pub(super) fn trim(&mut self, log_start_offset: u64, checkpoint: u64) {
        self.log_start_offset = log_start_offset.clamp(self.log_start_offset, self.log_end_offset);
        for segment in &mut self.segments {
            if segment.state.end_offset > self.log_start_offset {
                break;
            }
            // Sealing also keeps later batches out of it.
            segment.state.sealed = true;
            segment.trimmed.get_or_insert(checkpoint);
        }
    }

    /// A reader has seen the batches of a segment from its beginning to its end: see [`super::SegmentStore::learn`].
    pub(super) fn learn(&mut self, base: u64, digest: Digest) {
        let is_last = self.segments.last().is_some_and(|last| last.state.base_offset == base);
        if let Some(segment) = self.segment_mut(base) {
            segment.learn(digest);
        }
        // What waits in memory of an open segment is in the file too, and is all that waits.
        if let Some(tail) = self.queue.pieces.back_mut().filter(|_| is_last) {
            tail.digest = digest;
        }
    }

    /// What retention would trim to: see [`super::SegmentStore::trim_candidates`].
    pub(super) fn trim_candidate(
        &self,
        oldest_ms: Option<u64>,
        max_bytes: Option<u64>,
        allowance: &mut Allowance,
    ) -> Option<u64> {
        let mut size = self.size_bytes();
        let mut candidate = None;
        for segment in self.live() {
            let state = &segment.state;
            let over = state.sealed && max_bytes.is_some_and(|limit| size > limit);
            let old = || oldest_ms.is_some_and(|oldest| state.last_append_ms < oldest);
            let goes = over || (old() && allowance.take(state.len));
            if !goes {
                break;
            }
            size -= state.len;
            candidate = Some(state.end_offset);
        }
        candidate
    }

    /// See [`super::SegmentStore::cap_append_times`].
    pub(super) fn cap_append_times(&mut self, time_ms: u64) {
        for Segment { state, .. } in &mut self.segments {
            state.first_append_ms = state.first_append_ms.min(time_ms);
            state.last_append_ms = state.last_append_ms.min(time_ms);
        }
    }

    /// Physically drop what is trimmed, unless a step, a read or the checkpoint in progress needs it: the dropped
    /// segments' base offsets, and the checkpoint since which they are trimmed.
    pub(super) fn purge(&mut self) -> Vec<(u64, u64)> {
        let mut purged = Vec::new();
        if self.lane.is_some() || self.target.is_some() {
            return purged;
        }
        while let Some(first) = self.segments.first().filter(|first| first.readers == 0) {
            let Some(checkpoint) = first.trimmed else { break };
            let base = first.state.base_offset;
            self.queue.pop(first.state.len - first.flushed);
            self.segments.remove(0);
            self.rebuilt.retain(|rebuilt| *rebuilt != base);
            self.repair.take_if(|repair| repair.place.base == base);
            purged.push((base, checkpoint));
        }
        purged
    }

    /// Whether nothing refers to the partition's memory any more.
    pub(super) fn is_unused(&self) -> bool {
        self.lane.is_none() && self.target.is_none() && self.segments.iter().all(|segment| segment.readers == 0)
    }

    /// Whether no operation is about to write to its files.
    pub(super) fn may_give_up(&self) -> bool {
        self.lane.is_none() && self.repair.is_none()
    }

    /// The segments that can go if nothing below this offset is needed. What waits in memory goes with them, in the order in
    /// which it lies there. An open one only goes with all of the partition: where it ends is the same on every replica.
    pub(super) fn could_go(&self, below: u64) -> impl Iterator<Item = &Segment> {
        let mut in_order = true;
        self.segments.iter().take_while(move |segment| segment.state.end_offset <= below).filter(move |segment| {
            let ends = segment.is_finished() || (in_order && (segment.state.sealed || below == u64::MAX));
            let goes = ends && segment.readers == 0 && !segment.given_up;
            in_order &= goes || segment.is_finished();
            goes
        })
    }

    /// The file of a segment goes, which is among [`Partition::could_go`], and what of it waits in memory.
    pub(super) fn give_up(&mut self, base: u64) {
        let Some(segment) = self.segment_mut(base) else { return };
        let waiting = segment.state.len - segment.flushed;
        let len = segment.state.len;
        // As if all of it were there: nothing is left to be done. Sealing keeps later batches out of it.
        (segment.given_up, segment.state.sealed, segment.cut, segment.indexed) = (true, true, true, true);
        (segment.flushed, segment.on_file, segment.synced) = (len, len, len);
        segment.state.index = Vec::new();
        let end_offset = segment.state.end_offset;
        segment.readable =
            Place { position: len, offset: end_offset, digest: segment.state.digest.unwrap_or_default() };
        self.written_offset = self.written_offset.max(end_offset);
        self.queue.pop(waiting);
        self.rebuilt.retain(|rebuilt| *rebuilt != base);
    }

    /// The base offsets of all segments that have or may have files.
    pub(super) fn bases(&self) -> impl Iterator<Item = u64> {
        self.segments.iter().map(|segment| segment.state.base_offset)
    }

    /// Make the checkpoint that begins now cover everything appended so far. Says whether there is anything to do.
    pub(super) fn set_target(&mut self) -> bool {
        self.target = self.live().last().map(|last| (last.state.base_offset, last.state.len));
        self.target.is_some()
    }

    /// Bytes that the checkpoint in progress still lacks in files.
    pub(super) fn left_of_checkpoint(&self) -> u64 {
        let Some((base, len)) = self.target else { return 0 };
        let needed = |s: &Segment| if s.state.base_offset == base && !s.state.sealed { len } else { s.state.len };
        let covered = self.segments.iter().filter(|segment| segment.state.base_offset <= base);
        covered.map(|segment| needed(segment).saturating_sub(segment.on_file)).sum()
    }

    /// Bytes that a checkpoint begun now would lack.
    pub(super) fn left_of_all(&self) -> u64 {
        let live = self.live().iter().filter(|_| self.removed.is_none());
        live.map(|segment| segment.state.len.saturating_sub(segment.on_file)).sum()
    }

    /// Bytes by which a step makes files longer.
    pub(super) fn takes(&self, step: Step) -> u64 {
        match step {
            Step::Write { base, bytes, .. } => self.segment(base).map_or(0, |segment| {
                block_ceil(segment.flushed + bytes as u64).saturating_sub(block_ceil(segment.on_file))
            }),
            Step::OpenIndex { base, .. } => {
                self.segment(base).map_or(0, |segment| index::file_len(segment.state.index.len()))
            }
            _ => 0,
        }
    }

    /// The batches of a repair take their place also where their bytes wait in memory: the end of a recovered segment.
    pub(super) fn patch(&mut self, repair: &Repair) {
        let waiting = |segment: &&Segment| segment.flushed < segment.state.len;
        let Some(first) = self.segments.iter().find(waiting).filter(|s| s.state.base_offset == repair.place.base)
        else {
            return;
        };
        self.queue.patch(first.flushed, repair.place.position, &repair.bytes);
    }

    /// The next step towards the checkpoint in progress, else towards fewer bytes in memory. A function of the state.
    pub(super) fn plan(&self, write_block: usize) -> Option<Step> {
        if let Some(repair) = self.repair.as_ref().filter(|_| self.removed.is_none()) {
            return Some(Step::Mend { base: repair.place.base, mend: Mend::ReadEdge });
        }
        let unfinished = self.segments.iter().rposition(Segment::is_finished).map_or(0, |at| at + 1);
        let suffix = &self.segments[unfinished..];
        match self.target {
            Some(target) => self.plan_checkpoint(suffix, target, write_block),
            None if self.removed.is_some() => None,
            None => self.plan_write_out(suffix, write_block),
        }
    }

    fn plan_write_out(&self, suffix: &[Segment], write_block: usize) -> Option<Step> {
        suffix.iter().find_map(|segment| self.plan_segment(segment, write_block, 0)).or_else(|| {
            // An index rebuilt by a read. The file number is filled in by the lane.
            self.rebuilt.first().map(|base| Step::OpenIndex { base: *base, file: FileId(0), replaces: true })
        })
    }

    fn plan_checkpoint(&self, suffix: &[Segment], (base, len): (u64, u64), write_block: usize) -> Option<Step> {
        let covered = || suffix.iter().filter(|segment| segment.state.base_offset <= base);
        let needed = |s: &Segment| if s.state.base_offset == base && !s.state.sealed { len } else { s.state.len };
        let write = covered().find_map(|s| self.plan_segment(s, write_block, needed(s)));
        let sync = || {
            let mut behind = covered().filter(|s| s.synced < needed(s));
            behind.next().map(|s| Step::Sync { base: s.state.base_offset, upto: s.on_file })
        };
        write.or_else(sync).or_else(|| self.plan_names())
    }

    fn plan_names(&self) -> Option<Step> {
        match self.unsynced {
            UnsyncedNames { files: true, .. } => Some(Step::SyncNames),
            UnsyncedNames { dir: true, .. } => Some(Step::SyncParent),
            UnsyncedNames { root: true, .. } => Some(Step::SyncRoot),
            _ => None,
        }
    }

    /// What is to be done to have the first `needed` bytes of an open segment, or all of a sealed one, in the file.
    /// With `needed` zero, an open segment is written in whole write blocks.
    fn plan_segment(&self, segment: &Segment, write_block: usize, needed: u64) -> Option<Step> {
        let SegmentState { base_offset: base, len, sealed, .. } = segment.state;
        let pending = len - segment.flushed;
        let bytes = pending.min(write_block as u64) as usize;
        let write = match (sealed, needed) {
            (true, _) => pending > 0,
            (false, 0) => bytes == write_block,
            (false, _) => segment.on_file < needed,
        };
        if write {
            // The last bytes that a checkpoint needs of a segment need no sync of their own, if nothing else waits for one.
            let last = !sealed && needed > 0 && segment.flushed + bytes as u64 >= needed;
            let durable = last && segment.synced >= segment.flushed;
            let step = Step::Write { base, bytes, durable };
            return Some(if self.dir_made { step } else { Step::CreateDir });
        }
        match sealed {
            true if !segment.cut => Some(Step::Cut { base }),
            true if !segment.indexed => Some(Step::OpenIndex { base, file: FileId(0), replaces: false }),
            _ => None,
        }
    }

    /// Where the step's bytes go in the file, after copying them to `out`.
    pub(super) fn fill(&self, base: u64, bytes: usize, out: &mut AlignedBuf) -> u64 {
        self.queue.copy(bytes, out);
        out.pad_to_block();
        self.segment(base).map_or(0, |segment| segment.flushed)
    }

    /// The padding of a sealed segment was cut off.
    pub(super) fn padding_cut(&mut self, base: u64) {
        if let Some(segment) = self.segment_mut(base) {
            segment.cut = true;
            segment.synced = segment.synced.min(block_floor(segment.state.len));
        }
    }

    /// A write has completed; `durable` says that it was synced.
    pub(super) fn written(&mut self, base: u64, bytes: usize, durable: bool) {
        let last_end = self.queue.last_end(bytes as u64);
        let Some(segment) = self.segment_mut(base) else { return };
        let before = segment.flushed;
        let end = before + bytes as u64;
        assert!(end <= segment.state.len, "{end} bytes were written of a segment of {}", segment.state.len);
        if let Some((at, offset, digest)) = last_end {
            segment.readable = Place { position: before + at, offset, digest };
        }
        segment.on_file = segment.on_file.max(end);
        segment.synced = if durable { end } else { segment.synced.min(before) };
        let whole = segment.state.sealed && end == segment.state.len;
        segment.flushed = if whole { end } else { block_floor(end) };
        segment.cut |= whole && end.is_multiple_of(BLOCK as u64);
        let Segment { flushed, on_file, synced, .. } = *segment;
        assert!(before <= flushed && flushed <= on_file, "what is written of a segment never gets less");
        assert!(synced <= on_file, "what is synced was written");
        let readable = segment.readable.offset;
        self.written_offset = self.written_offset.max(readable);
        self.queue.pop(flushed - before);
        let tail_only = self.segments.last().is_some_and(|last| !last.state.sealed && last.on_file == last.state.len);
        if tail_only && self.queue.bytes > 0 {
            self.queue.compact();
        }
    }
}
