//! What happens to files behind the back of programs: they are lost, emptied, cut, exchanged, replaced by an older state,
//! and places of them cannot be read any more. All of it is durable at once, as if somebody had done it while the machine
//! was off.

use super::model::{Content, Inode, NameChange};
use super::{BLOCK, MemoryDisk, State};
use crate::disk::EIO;
use std::collections::BTreeSet;
use std::io;

/// The blocks that cannot be read: inode and number.
#[derive(Clone, Debug, Default)]
pub(super) struct Unreadable {
    blocks: BTreeSet<(u64, u64)>,
    /// Those that stay so when they are written.
    stuck: BTreeSet<(u64, u64)>,
    /// Blocks that no file of this name can have: wherever it is put, the medium is bad.
    places: BTreeSet<(String, u64)>,
}

/// For how long a block cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bad {
    /// Until it is written.
    UntilWritten,
    /// As long as the file is there: another one of the same name has other blocks.
    InThisFile,
    /// For good, in whichever file has this name.
    AtThisPath,
}

impl Unreadable {
    /// An error if one of these bytes cannot be read.
    pub(super) fn check(&self, inode: u64, position: u64, len: usize) -> io::Result<()> {
        let first = position / BLOCK as u64;
        let last = (position + len as u64).div_ceil(BLOCK as u64);
        match self.blocks.range((inode, first)..(inode, last)).next() {
            Some(_) => Err(io::Error::from_raw_os_error(EIO)),
            None => Ok(()),
        }
    }

    /// These bytes are written: whole blocks of them can be read again, if they are not bad for good.
    pub(super) fn written(&mut self, inode: u64, position: u64, len: u64) {
        let first = position.div_ceil(BLOCK as u64);
        let last = (position + len) / BLOCK as u64;
        let stuck = &self.stuck;
        self.blocks.retain(|at| at.0 != inode || !(first..last).contains(&at.1) || stuck.contains(at));
    }

    /// A file gets a name, or one that it will have in its place.
    pub(super) fn named(&mut self, path: &str, inode: u64) {
        let path = path.strip_suffix(".new").unwrap_or(path);
        let here = self.places.range((path.to_owned(), 0)..=(path.to_owned(), u64::MAX));
        let blocks: Vec<(u64, u64)> = here.map(|(_, block)| (inode, *block)).collect();
        self.blocks.extend(&blocks);
        self.stuck.extend(&blocks);
    }
}

impl MemoryDisk {
    /// Remove a file. False if there is none.
    pub fn lose(&self, path: &str) -> bool {
        let mut state = self.state();
        let there = state.names.files.contains_key(path);
        state.change_name(NameChange::Unlink { path: path.to_owned() });
        there
    }

    /// Remove all files whose path begins with `prefix`, and the directory of that name. Gives back how many.
    pub fn lose_all(&self, prefix: &str) -> usize {
        let paths: Vec<String> = self.paths().into_iter().filter(|path| path.starts_with(prefix)).collect();
        for path in &paths {
            self.lose(path);
        }
        let mut state = self.state();
        let prefix = prefix.trim_end_matches('/');
        let below = format!("{prefix}/");
        for tree in [true, false] {
            let tree = if tree { &mut state.names } else { &mut state.durable_names };
            tree.dirs.retain(|dir| dir != prefix && !dir.starts_with(&below));
        }
        paths.len()
    }

    /// Cut a file to `len` bytes, if it is longer. False if there is none.
    pub fn cut(&self, path: &str, len: u64) -> bool {
        match self.file(path) {
            Some(mut bytes) => {
                bytes.truncate(len as usize);
                self.replace(path, &bytes);
                true
            }
            None => false,
        }
    }

    /// Let a file hold these bytes, whatever it held; its directory must be there.
    pub fn replace(&self, path: &str, bytes: &[u8]) {
        let mut content = Content::default();
        content.write(0, bytes);
        let inode = Inode { volatile: content.clone(), durable: content, pending: Vec::new() };
        let mut state = self.state();
        let number = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(number, inode);
        state.change_name(NameChange::Link { path: path.to_owned(), inode: number });
    }

    /// Let reads of the blocks in which these bytes lie fail, until the blocks are written. False if there is no such file.
    pub fn make_unreadable(&self, path: &str, position: u64, len: u64) -> bool {
        self.make_bad(path, position, len, Bad::UntilWritten)
    }

    /// The same, for so long. False if there is no such file.
    pub fn make_bad(&self, path: &str, position: u64, len: u64, bad: Bad) -> bool {
        let mut state = self.state();
        let Some(inode) = state.names.files.get(path).copied() else { return false };
        for block in position / BLOCK as u64..(position + len).div_ceil(BLOCK as u64) {
            state.unreadable.blocks.insert((inode, block));
            if bad >= Bad::InThisFile {
                state.unreadable.stuck.insert((inode, block));
            }
            if bad == Bad::AtThisPath {
                state.unreadable.places.insert((path.to_owned(), block));
            }
        }
        true
    }

    /// Let all blocks that were bad for good be as others, which can be read once they are written.
    pub fn forgive(&self) {
        let mut state = self.state();
        state.unreadable.stuck.clear();
        state.unreadable.places.clear();
    }

    /// Whether a block of this file cannot be read.
    pub fn is_unreadable(&self, path: &str) -> bool {
        let state = self.state();
        let inode = state.names.files.get(path).copied();
        inode.is_some_and(|inode| state.unreadable.blocks.range((inode, 0)..(inode + 1, 0)).next().is_some())
    }
}

impl State {
    /// Change a name for good: nothing of what it named before comes back.
    fn change_name(&mut self, change: NameChange) {
        let path = match &change {
            NameChange::Unlink { path } | NameChange::Link { path, .. } => path.clone(),
            _ => return,
        };
        self.pending_names.retain(|(_, pending)| match pending {
            NameChange::Link { path: other, .. } | NameChange::Unlink { path: other } => *other != path,
            NameChange::Rename { to, .. } => *to != path,
            NameChange::MakeDir { .. } | NameChange::RemoveDir { .. } => true,
        });
        let before = self.names.files.get(&path).copied();
        self.names.apply(&change);
        self.durable_names.apply(&change);
        if let Some(inode) = before {
            self.drop_unreferenced(inode);
        }
    }
}
