//! Repairs: batches of a peer in the place of what is damaged, once it is known that they belong there.

use super::mend::Copying;
use super::partition::{Rescan, Segment};
use super::read::{DamagedBatch, Stretch};
use super::store::Mending;
use super::{Digest, Place, block_ceil, block_floor};
use crate::disk::{AlignedBuf, BLOCK};
use bytes::Bytes;
use lnc_protocol::batch::{self, BatchHeader};

/// Batches that belong at a place in a segment.
#[derive(Debug)]
pub(super) struct Repair {
    pub(super) place: DamagedBatch,
    pub(super) bytes: Bytes,
    /// The blocks that hold them, as they were found; those between the first and the last are overwritten whole.
    pub(super) blocks: AlignedBuf,
    /// How many of those two have been read.
    pub(super) edges: usize,
    /// The new file to which the segment is moved.
    pub(super) copy: Option<Copying>,
}

impl Repair {
    pub(super) fn new(place: DamagedBatch, bytes: Bytes) -> Self {
        let len = block_ceil(place.position + bytes.len() as u64) - block_floor(place.position);
        Self { place, bytes, blocks: AlignedBuf::zeroed(len as usize), edges: 0, copy: None }
    }

    /// Begin again: nothing was written.
    pub(super) fn restart(&mut self) {
        *self = Self::new(self.place, self.bytes.clone());
    }

    /// Where the blocks begin that it writes.
    pub(super) fn position(&self) -> u64 {
        block_floor(self.place.position)
    }

    /// Put the batches between the edges.
    pub(super) fn fill_in(&mut self) {
        let at = (self.place.position - self.position()) as usize;
        self.blocks[at..at + self.bytes.len()].copy_from_slice(&self.bytes);
    }

    /// Put what belongs there into a stretch of the file that begins at `position`.
    pub(super) fn lay_over(&self, position: u64, stretch: &mut [u8]) {
        let from = self.position().max(position);
        let until = (self.position() + self.blocks.len() as u64).min(position + stretch.len() as u64);
        if from < until {
            stretch[(from - position) as usize..(until - position) as usize]
                .copy_from_slice(&self.blocks[(from - self.position()) as usize..(until - self.position()) as usize]);
        }
    }

    /// The position of the block to be read next.
    pub(super) fn edge(&self) -> u64 {
        block_floor(if self.edges == 0 { self.place.position } else { self.end() - 1 })
    }

    /// What is in that block; one that cannot be read has nothing that could be kept. True if there is another one.
    pub(super) fn take_edge(&mut self, block: &[u8]) -> bool {
        let at = (self.edge() - block_floor(self.place.position)) as usize;
        self.blocks[at..at + block.len()].copy_from_slice(block);
        self.edges += 1;
        self.edges == 1 && self.blocks.len() > BLOCK
    }

    pub(super) fn end(&self) -> u64 {
        self.place.position + self.bytes.len() as u64
    }
}

impl Segment {
    /// How many of these bytes, batches from a damaged place on, belong there; or why none of them is written.
    pub(super) fn fitting(&self, place: DamagedBatch, batches: &[u8]) -> Result<usize, Mending> {
        let (marks, end) = (self.marks_of(place), self.readable);
        let start = self.start_of(place);
        let (mut at, mut known, mut passed) = (start, start, 0);
        while let Some(rest) = batches.get((at.position - start.position) as usize..).filter(|rest| !rest.is_empty()) {
            let len = BatchHeader::parse(rest).map_err(|_| Mending::Refused)?.total_len();
            let Some(Ok(header)) = rest.get(..len).map(batch::check) else { return Err(Mending::Refused) };
            let epoch = self.state.epoch_at(at.offset);
            if header.base_offset != at.offset || epoch != Some(header.partition_leader_epoch) {
                return Err(Mending::Refused);
            }
            if at.position + len as u64 > end.position {
                break;
            }
            at = at.after(&header, len);
            match marks.get(passed) {
                Some((position, _)) if at.position < *position => {}
                Some((position, digest)) if (at.position, at.digest) != (*position, *digest) => {
                    return Err(Mending::Refused);
                }
                Some(_) => (known, passed) = (at, passed + 1),
                None if marks.is_empty() => known = at,
                None => break,
            }
        }
        if known == start && at != start {
            return Err(Mending::More { offset: at.offset });
        }
        // The last batch ends where the segment does, or more follow.
        let ends = known.position == end.position;
        let other = ends && self.is_followed(place) && self.state.digest.is_some() && end.digest != known.digest;
        if ends != (known.offset == end.offset) || other {
            return Err(Mending::Refused);
        }
        Ok((known.position - start.position) as usize)
    }

    /// Where the digest is known behind a damaged place.
    fn marks_of(&self, place: DamagedBatch) -> Vec<(u64, Digest)> {
        let Some(Stretch { until, after, .. }) = place.stretch else { return Vec::new() };
        let mut marks = self.marks(place.position, self.readable.position);
        if let Err(at) = marks.binary_search(&(until, after)) {
            marks.insert(at, (until, after));
        }
        marks
    }

    fn start_of(&self, place: DamagedBatch) -> Place {
        let DamagedBatch { position, offset, stretch, .. } = place;
        let known = self.rescan.as_ref().map(|rescan| rescan.at).filter(|at| at.position == position);
        let digest = stretch.map(|stretch| stretch.before).or(known.map(|at| at.digest)).unwrap_or_default();
        Place { position, offset, digest }
    }

    /// Whether the digest is known up to the damaged place, where a look for the index has stopped.
    fn is_followed(&self, place: DamagedBatch) -> bool {
        place.stretch.is_some() || self.rescan.as_ref().is_some_and(|rescan| rescan.at.position == place.position)
    }

    /// Batches of a peer were written at this place. If all of the file is to be overwritten, the next ones follow them; at
    /// the end the file is looked at again.
    pub(super) fn overwritten(&mut self, position: u64, mut bytes: &[u8]) {
        let Some(Rescan { at, .. }) =
            self.rescan.as_deref_mut().filter(|rescan| rescan.overwrite && rescan.at.position == position)
        else {
            return;
        };
        while let Ok(header) = BatchHeader::parse(bytes) {
            *at = at.after(&header, header.total_len());
            bytes = bytes.get(header.total_len()..).unwrap_or_default();
        }
        if at.position >= self.state.len {
            self.rescan = None;
        }
    }
}
