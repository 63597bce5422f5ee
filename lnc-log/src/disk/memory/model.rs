//! What the in-memory disk holds: file contents and names, each once as running programs see them and once as a power
//! loss would leave them, with the list of changes that lie between the two.

use super::SECTOR;
use crate::disk::{AlignedBuf, BLOCK};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// SplitMix64: small, seeded, and the same everywhere.
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which must not be 0.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// The bytes of one file. Blocks never written are not stored, so that a large preallocated file costs nothing; what a
/// program sees and what is durable share the blocks in which they agree.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    blocks: Vec<Option<Arc<[u8; BLOCK]>>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The place of a block, which there is after this.
    fn block(&mut self, number: usize) -> &mut Option<Arc<[u8; BLOCK]>> {
        if number >= self.blocks.len() {
            self.blocks.resize(number + 1, None);
        }
        &mut self.blocks[number]
    }

    pub(super) fn write(&mut self, position: u64, bytes: &[u8]) {
        for (number, within, part) in split(position, bytes) {
            let block = self.block(number);
            match <&[u8; BLOCK]>::try_from(part) {
                Ok(whole) => *block = Some(Arc::new(*whole)),
                Err(_) => {
                    let block = Arc::make_mut(block.get_or_insert_with(|| Arc::new([0; BLOCK])));
                    block[within..within + part.len()].copy_from_slice(part);
                }
            }
        }
        self.len = self.len.max(position + bytes.len() as u64);
    }

    /// Write what `other` holds in these `len` bytes too.
    fn take_over(&mut self, other: &Self, position: u64, bytes: &[u8]) {
        for (number, within, part) in split(position, bytes) {
            match &other.blocks[number] {
                Some(block) if part.len() == BLOCK => *self.block(number) = Some(block.clone()),
                _ => self.write((number * BLOCK + within) as u64, part),
            }
        }
        self.len = self.len.max(position + bytes.len() as u64);
    }

    /// Up to `len` bytes from `position`, short at the end of the file.
    pub(super) fn read(&self, position: u64, len: usize) -> AlignedBuf {
        let len = self.len.saturating_sub(position).min(len as u64) as usize;
        let mut out = AlignedBuf::with_capacity(len);
        while out.len() < len {
            let at = position + out.len() as u64;
            let within = (at % BLOCK as u64) as usize;
            let take = (len - out.len()).min(BLOCK - within);
            match self.blocks.get((at / BLOCK as u64) as usize) {
                Some(Some(block)) => out.extend_from_slice(&block[within..within + take]),
                _ => out.resize(out.len() + take),
            }
        }
        out
    }

    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.blocks.truncate(len.div_ceil(BLOCK as u64) as usize);
            let within = (len % BLOCK as u64) as usize;
            if within > 0
                && let Some(Some(block)) = self.blocks.get_mut((len / BLOCK as u64) as usize)
            {
                Arc::make_mut(block)[within..].fill(0);
            }
        }
        self.len = len;
    }

    /// `len` bytes of zeros.
    pub(super) fn zero_fill(&mut self, len: u64) {
        self.blocks.clear();
        self.len = len;
    }

    /// Flip the bits of `mask` in one byte. False when the file is shorter.
    pub(super) fn corrupt(&mut self, position: u64, mask: u8) -> bool {
        if position >= self.len {
            return false;
        }
        let mut byte = self.read(position, 1);
        byte[0] ^= mask;
        self.write(position, &byte);
        true
    }
}

/// The parts of a write by blocks: number of the block, position within it, bytes.
fn split(position: u64, bytes: &[u8]) -> impl Iterator<Item = (usize, usize, &[u8])> {
    let mut rest = bytes;
    let mut at = position;
    std::iter::from_fn(move || {
        let within = (at % BLOCK as u64) as usize;
        let part;
        (part, rest) = rest.split_at(rest.len().min(BLOCK - within));
        let number = (at / BLOCK as u64) as usize;
        at += part.len() as u64;
        (!part.is_empty()).then_some((number, within, part))
    })
}

/// A change to a file's content.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { position: u64, bytes: Bytes },
    SetLen(u64),
    ZeroFill(u64),
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { position, bytes } => content.write(*position, bytes),
            Self::SetLen(len) => content.set_len(*len),
            Self::ZeroFill(len) => content.zero_fill(*len),
        }
    }

    /// Apply a part of it: whichever sectors of a write `keep` picks; some length of a zero fill; all of a `SetLen`.
    fn apply_torn(&self, content: &mut Content, rng: &mut Rng) {
        match self {
            Self::Write { position, bytes } => {
                let mut at = 0;
                while at < bytes.len() {
                    // Sectors are counted from the start of the file, as the device would.
                    let end = (at + SECTOR - ((*position as usize + at) % SECTOR)).min(bytes.len());
                    if rng.next() & 1 == 0 {
                        content.write(position + at as u64, &bytes[at..end]);
                    }
                    at = end;
                }
            }
            Self::ZeroFill(len) => {
                let blocks = (len / BLOCK as u64) as usize;
                content.zero_fill(rng.below(blocks + 1) as u64 * BLOCK as u64);
            }
            Self::SetLen(_) => self.apply(content),
        }
    }
}

/// One file: what programs read, what a power loss leaves, and the changes in between, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Inode {
    pub(super) volatile: Content,
    pub(super) durable: Content,
    pub(super) pending: Vec<(u64, Change)>,
}

impl Inode {
    /// Make every pending change up to `sequence` durable.
    pub(super) fn sync(&mut self, sequence: u64) {
        for (_, change) in self.take_pending(sequence) {
            change.apply(&mut self.durable);
        }
    }

    /// Forget pending changes up to `sequence` as a kernel does after a failed sync: some reached the disk, the others
    /// read back fine until the power goes.
    pub(super) fn fail_sync(&mut self, sequence: u64, rng: &mut Rng) {
        for (_, change) in self.take_pending(sequence) {
            if rng.next() & 1 == 0 {
                change.apply(&mut self.durable);
            }
        }
    }

    fn take_pending(&mut self, sequence: u64) -> Vec<(u64, Change)> {
        let upto = self.pending.partition_point(|(s, _)| *s <= sequence);
        self.pending.drain(..upto).collect()
    }

    pub(super) fn change(&mut self, sequence: u64, change: Change) {
        change.apply(&mut self.volatile);
        self.pending.push((sequence, change));
    }

    /// A write that is durable once applied. Pending changes that it overlaps must not undo it later.
    pub(super) fn write_durable(&mut self, position: u64, bytes: &[u8]) {
        let end = position + bytes.len() as u64;
        let clashes = self.pending.iter().any(|(_, change)| match change {
            Change::Write { position: p, bytes: b } => *p < end && position < p + b.len() as u64,
            Change::SetLen(_) | Change::ZeroFill(_) => true,
        });
        if clashes {
            self.sync(u64::MAX);
        }
        self.volatile.write(position, bytes);
        self.durable.take_over(&self.volatile, position, bytes);
    }
}

/// Names of files and directories. The root directory is the empty path and always exists.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<String, u64>,
    pub(super) dirs: BTreeSet<String>,
}

/// A change to the names.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Link { path: String, inode: u64 },
    Rename { from: String, to: String, inode: u64 },
    Unlink { path: String },
    MakeDir { path: String },
    RemoveDir { path: String },
}

/// The directory that holds `path`.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl NameChange {
    /// The directory whose sync makes the change durable.
    pub(super) fn dir(&self) -> &str {
        match self {
            Self::Link { path, .. } | Self::Unlink { path } | Self::MakeDir { path } | Self::RemoveDir { path } => {
                parent(path)
            }
            Self::Rename { to, .. } => parent(to),
        }
    }
}

impl Tree {
    pub(super) fn apply(&mut self, change: &NameChange) {
        match change {
            NameChange::Link { path, inode } => {
                self.files.insert(path.clone(), *inode);
            }
            NameChange::Rename { from, to, inode } => {
                if self.files.get(from) == Some(inode) {
                    self.files.remove(from);
                }
                self.files.insert(to.clone(), *inode);
            }
            NameChange::Unlink { path } => {
                self.files.remove(path);
            }
            NameChange::MakeDir { path } => {
                self.dirs.insert(path.clone());
            }
            NameChange::RemoveDir { path } => {
                self.dirs.remove(path);
            }
        }
    }

    pub(super) fn has_dir(&self, path: &str) -> bool {
        path.is_empty() || self.dirs.contains(path)
    }

    /// Drop whatever lies in a directory that does not exist.
    pub(super) fn drop_orphans(&mut self) {
        loop {
            let lost: Vec<String> = self.dirs.iter().filter(|dir| !self.has_dir(parent(dir))).cloned().collect();
            if lost.is_empty() {
                break;
            }
            for dir in lost {
                self.dirs.remove(&dir);
            }
        }
        let dirs = &self.dirs;
        self.files.retain(|path, _| parent(path).is_empty() || dirs.contains(parent(path)));
    }
}

/// Something that a power loss may or may not have kept.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    Name(NameChange),
    Content { inode: u64, change: Change },
}

/// How much of one effect a crash keeps.
pub(super) enum Kept<'a> {
    Nothing,
    Everything,
    Torn(&'a mut Rng),
}

impl Effect {
    pub(super) fn apply(&self, kept: Kept<'_>, tree: &mut Tree, contents: &mut BTreeMap<u64, Content>) {
        match (self, kept) {
            (_, Kept::Nothing) => {}
            (Self::Name(change), _) => tree.apply(change),
            (Self::Content { inode, change }, Kept::Everything) => change.apply(contents.entry(*inode).or_default()),
            (Self::Content { inode, change }, Kept::Torn(rng)) => {
                change.apply_torn(contents.entry(*inode).or_default(), rng);
            }
        }
    }
}
