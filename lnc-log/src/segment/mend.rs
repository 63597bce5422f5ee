//! The steps of a repair: write the batches of a replica over the damage, read them back, and where the medium does not give
//! them, move the whole segment to a new file, whose blocks are others.
//!
//! ```text
//! ReadEdge (twice at most) → Write → ReadBack ─────────────────────────────────────────────► repaired
//!                                       └─► Create → (CopyRead → CopyWrite)… → CopyCut → CopySync → CopyReadBack → Rename
//!                                              └── on any failure: Remove ───────────────► unreadable, for now
//! ```
//!
//! Nothing else is done with the partition's files meanwhile, so what is copied does not change. Readers go on with the file that
//! they have open. A move that a crash cuts short leaves a file behind that the next start removes.

use super::partition::{Segment, Step};
use super::repair::Repair;
use super::store::SegmentStore;
use super::{PartitionKey, SegmentError, block_ceil, io_error};
use crate::disk::{AlignedBuf, BLOCK, Disk, FileId, Op, Outcome, is_full};
use std::io;

/// What a repair does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mend {
    /// Read a block of which only a part is overwritten.
    ReadEdge,
    /// Write the blocks with the batches that belong there.
    Write,
    /// See whether they can be read.
    ReadBack,
    /// Make a new file.
    Create,
    /// Read a piece of the segment.
    CopyRead,
    /// Write it to the new file.
    CopyWrite,
    /// Cut the padding off the new file.
    CopyCut,
    /// Make it durable.
    CopySync,
    /// See whether the batches can be read there.
    CopyReadBack,
    /// Have it take the place of the segment.
    Rename,
    /// Remove it: it did not work.
    Remove,
}

impl Mend {
    /// Whether it is about the segment's file. The last step is, so that the file is open when another takes its name.
    pub(super) fn uses_log(self) -> bool {
        matches!(self, Self::ReadEdge | Self::Write | Self::ReadBack | Self::CopyRead | Self::Rename)
    }
}

/// A segment on its way to a new file.
#[derive(Debug)]
pub(super) struct Copying {
    file: FileId,
    /// Bytes that are copied.
    at: u64,
    /// Up to where the blocks are read one by one: one of them cannot be read.
    singly: u64,
    piece: AlignedBuf,
}

impl SegmentStore {
    /// The disk operation of a step; `log` is the segment's file if the step uses it.
    pub(super) fn mend_op(&mut self, key: PartitionKey, mend: Mend, log: Option<FileId>) -> Option<Op> {
        let fresh = if mend == Mend::Create { self.files.fresh() } else { FileId(0) };
        let write_block = self.config.write_block;
        let partition = self.partitions.get_mut(&key)?;
        let base = partition.repair.as_ref()?.place.base;
        let segment = partition.segment(base)?;
        let (end, len) = (block_ceil(segment.on_file), segment.state.len);
        let repair = partition.repair.as_mut()?;
        let path = key.log_path(base);
        let new_path = PartitionKey::new_path(&path);
        if mend == Mend::Create {
            repair.copy = Some(Copying { file: fresh, at: 0, singly: 0, piece: AlignedBuf::default() });
            return Some(Op::Open { file: fresh, path: new_path, create: true, direct: true });
        }
        let (position, edge, blocks) = (repair.position(), repair.edge(), repair.blocks.len());
        Some(match (mend, log, &mut repair.copy) {
            (Mend::ReadEdge, Some(file), _) => Op::Read { file, position: edge, len: BLOCK },
            (Mend::Write, Some(file), _) => {
                repair.fill_in();
                let buf = AlignedBuf::copy_of(&repair.blocks);
                Op::Write { file, position, buf, durable: true }
            }
            (Mend::ReadBack, Some(file), _) => Op::Read { file, position, len: blocks },
            (Mend::CopyRead, Some(file), Some(copy)) => {
                Op::Read { file, position: copy.at, len: copy.next_len(end, write_block) }
            }
            (Mend::CopyWrite, _, Some(copy)) => {
                let buf = std::mem::take(&mut copy.piece);
                Op::Write { file: copy.file, position: copy.at, buf, durable: false }
            }
            (Mend::CopyCut, _, Some(copy)) => Op::SetLen { file: copy.file, len },
            (Mend::CopySync, _, Some(copy)) => Op::Sync { file: copy.file },
            (Mend::CopyReadBack, _, Some(copy)) => Op::Read { file: copy.file, position, len: blocks },
            (Mend::Rename, _, _) => Op::Rename { from: new_path, to: path },
            _ => Op::Remove { path: new_path },
        })
    }

    /// The operation of a step has completed.
    pub(super) fn mend_done(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        base: u64,
        mend: Mend,
        result: io::Result<Outcome>,
    ) -> Result<(), SegmentError> {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                if mend.uses_log() {
                    self.files.release((key, base));
                }
                return self.mend_failed(disk, key, base, mend, error);
            }
        };
        if mend == Mend::Rename {
            self.moved(key, base);
        }
        if mend.uses_log() {
            self.files.release((key, base));
        }
        if mend == Mend::Remove {
            return self.mend_over(disk, key, false, None);
        }
        let next = match self.after(key, base, mend, outcome) {
            After::Next(next) => Some(Step::Mend { base, mend: next }),
            After::Repaired(next) => return self.mend_over(disk, key, true, next),
            After::Unread => return self.not_read_back(disk, key, base, mend, None),
        };
        self.go_on(disk, key, next);
        Ok(())
    }

    /// What follows from a step that worked.
    fn after(&mut self, key: PartitionKey, base: u64, mend: Mend, outcome: Outcome) -> After {
        let end = self.segment_at(key, base).map_or(0, |segment| block_ceil(segment.on_file));
        let padding = self.segment_at(key, base).is_some_and(Segment::is_cut_within_a_block);
        let len = self.segment_at(key, base).map_or(0, |segment| segment.state.len);
        let Some(partition) = self.partitions.get_mut(&key) else { return After::Repaired(None) };
        let Some(repair) = partition.repair.as_mut() else { return After::Repaired(None) };
        if let (Mend::ReadEdge, Outcome::Read(block)) = (mend, &outcome) {
            return After::Next(if repair.take_edge(block) { Mend::ReadEdge } else { Mend::Write });
        }
        match (mend, outcome, repair.copy.as_mut()) {
            (Mend::Write, ..) => After::Next(Mend::ReadBack),
            (Mend::ReadBack, Outcome::Read(found), _) if found[..] == repair.blocks[..] => {
                // The last block was written whole, beyond the end of a segment that is cut.
                let padded = padding && block_ceil(repair.end()) > len;
                After::Repaired(padded.then_some(Step::Cut { base }))
            }
            (Mend::CopyReadBack, Outcome::Read(found), _) => {
                let all = repair.position() + found.len() as u64 >= repair.end();
                let same = all && repair.blocks.starts_with(&found);
                if same { After::Next(Mend::Rename) } else { After::Unread }
            }
            (Mend::CopyRead, Outcome::Read(piece), Some(copy)) => {
                let wanted = copy.next_len(end, self.config.write_block);
                copy.take(piece, wanted);
                repair.lay_over_copy();
                After::Next(Mend::CopyWrite)
            }
            (Mend::CopyWrite, Outcome::Written(written), Some(copy)) => {
                copy.at += written.len() as u64;
                After::Next(if copy.at < end {
                    Mend::CopyRead
                } else if padding {
                    Mend::CopyCut
                } else {
                    Mend::CopySync
                })
            }
            (Mend::Create, ..) => After::Next(Mend::CopyRead),
            (Mend::CopyCut, ..) => After::Next(Mend::CopySync),
            (Mend::CopySync, ..) => After::Next(Mend::CopyReadBack),
            (Mend::Rename, ..) => After::Repaired(Some(Step::SyncNames)),
            _ => After::Unread,
        }
    }

    fn segment_at(&self, key: PartitionKey, base: u64) -> Option<&Segment> {
        self.partitions.get(&key)?.segment(base)
    }

    /// A step did not work.
    pub(super) fn mend_failed(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        base: u64,
        mend: Mend,
        error: io::Error,
    ) -> Result<(), SegmentError> {
        let file = key.log_path(base);
        let synced = self.segment_at(key, base).is_some_and(|segment| segment.synced >= segment.on_file);
        let Some(partition) = self.partitions.get_mut(&key) else { return Ok(()) };
        let Some(repair) = partition.repair.as_mut() else {
            self.free_lane(disk, key, true);
            return Ok(());
        };
        match mend {
            Mend::ReadEdge if error.kind() == io::ErrorKind::NotFound => {
                tracing::warn!(%file, %error, "a segment that is to be repaired is gone; it comes back, damaged, at the next start");
                partition.repair = None;
                self.free_lane(disk, key, true);
            }
            // Nothing of the block can be kept. What else was in it is damaged, and is repaired next.
            Mend::ReadEdge => {
                tracing::warn!(%file, %error, "cannot read around what is to be repaired; look at the disk");
                let more = repair.take_edge(&[]);
                let mend = if more { Mend::ReadEdge } else { Mend::Write };
                self.go_on(disk, key, Some(Step::Mend { base, mend }));
            }
            Mend::Write if is_full(&error) => {
                repair.restart();
                return self.step_failed(disk, key, error);
            }
            // If something waits for a sync, this was its failure too.
            Mend::Write if !synced => return Err(io_error("repair", file, error)),
            Mend::CopyRead => match self.copy_blindly(key, base) {
                Some(next) => self.go_on(disk, key, Some(Step::Mend { base, mend: next })),
                None => self.free_lane(disk, key, true),
            },
            // What is left of it goes at the next start.
            Mend::Remove => return self.mend_over(disk, key, false, None),
            _ => return self.not_read_back(disk, key, base, mend, Some(error)),
        }
        Ok(())
    }

    /// A piece of the segment cannot be read: its blocks are tried one by one, and one that cannot be read is damage for later.
    fn copy_blindly(&mut self, key: PartitionKey, base: u64) -> Option<Mend> {
        let end = self.segment_at(key, base).map_or(0, |segment| block_ceil(segment.on_file));
        let write_block = self.config.write_block;
        let repair = self.partitions.get_mut(&key)?.repair.as_mut()?;
        let copy = repair.copy.as_mut()?;
        let len = copy.next_len(end, write_block);
        if len > BLOCK {
            copy.singly = copy.at + len as u64;
            return Some(Mend::CopyRead);
        }
        copy.piece = AlignedBuf::zeroed(len);
        repair.lay_over_copy();
        Some(Mend::CopyWrite)
    }

    /// What was written cannot be read, here or in a new file.
    fn not_read_back(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        base: u64,
        mend: Mend,
        error: Option<io::Error>,
    ) -> Result<(), SegmentError> {
        let file = key.log_path(base);
        let found = error.map_or_else(|| "other bytes".to_owned(), |error| error.to_string());
        let next = if matches!(mend, Mend::Write | Mend::ReadBack) {
            tracing::error!(
                %file, found,
                "a damaged place is bad although it was written over: moving the segment to a new file; the disk fails, \
                 replace it (docs/ops/disk-replaced.md)"
            );
            Mend::Create
        } else {
            tracing::error!(
                %file, found,
                "a segment with a bad place cannot be moved to a new file; trying again later: see that there is space for \
                 another segment, and replace the disk (docs/ops/disk-replaced.md)"
            );
            self.close_copy(disk, key);
            Mend::Remove
        };
        self.go_on(disk, key, Some(Step::Mend { base, mend: next }));
        Ok(())
    }

    fn close_copy(&mut self, disk: &mut impl Disk, key: PartitionKey) {
        let repair = self.partitions.get_mut(&key).and_then(|partition| partition.repair.as_mut());
        if let Some(copy) = repair.and_then(|repair| repair.copy.take()) {
            self.close(disk, copy.file);
        }
    }

    /// The new file has the segment's name.
    fn moved(&mut self, key: PartitionKey, base: u64) {
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        partition.unsynced.files = true;
        if let Some(copy) = partition.repair.as_mut().and_then(|repair| repair.copy.take()) {
            self.files.replace((key, base), copy.file);
            tracing::warn!(
                file = key.log_path(base),
                "a segment with a bad place is in a new file, whole; replace the disk"
            );
        }
    }

    /// The repair has come to its end.
    fn mend_over(
        &mut self,
        disk: &mut impl Disk,
        key: PartitionKey,
        repaired: bool,
        next: Option<Step>,
    ) -> Result<(), SegmentError> {
        let Some(partition) = self.partitions.get_mut(&key) else { return Ok(()) };
        if let Some(repair) = partition.repair.take() {
            partition.patch(&repair);
            let place = repair.place;
            match partition.segment_mut(place.base).filter(|_| repaired) {
                Some(segment) => {
                    segment.overwritten(place.position, &repair.bytes);
                    self.repaired.push(place);
                }
                None => self.unreadable.push(place),
            }
        }
        self.stalled.remove(&key);
        self.go_on(disk, key, next);
        Ok(())
    }
}

/// What follows.
enum After {
    Next(Mend),
    Repaired(Option<Step>),
    /// What was read is not what was written.
    Unread,
}

impl Copying {
    /// Bytes of the next piece of a segment that ends at `end`.
    fn next_len(&self, end: u64, most: usize) -> usize {
        let most = if self.at < self.singly { BLOCK } else { most };
        (end - self.at).min(most as u64) as usize
    }

    /// A piece has been read; beyond the end of the file it is empty.
    fn take(&mut self, piece: AlignedBuf, wanted: usize) {
        self.piece = piece;
        self.piece.resize(wanted);
    }
}

impl Repair {
    /// What belongs at the damaged place goes into the piece that is copied.
    fn lay_over_copy(&mut self) {
        if let Some(mut copy) = self.copy.take() {
            self.lay_over(copy.at, &mut copy.piece);
            self.copy = Some(copy);
        }
    }
}
