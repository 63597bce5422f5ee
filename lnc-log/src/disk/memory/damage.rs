//! What happens to files behind the back of programs: they are lost, emptied, cut, exchanged, replaced by an older state,
//! and places of them cannot be read any more. All of it is durable at once, as if somebody had done it while the machine
//! was off.

use super::model::{Content, Inode, NameChange};
use super::{BLOCK, MemoryDisk, State};
use crate::disk::EIO;
use std::collections::BTreeSet;
use std::io;

/// The blocks that cannot be read until they are written: inode and number.
#[derive(Clone, Debug, Default)]
pub(super) struct Unreadable(BTreeSet<(u64, u64)>);

impl Unreadable {
    /// An error if one of these bytes cannot be read.
    pub(super) fn check(&self, inode: u64, position: u64, len: usize) -> io::Result<()> {
        let first = position / BLOCK as u64;
        let last = (position + len as u64).div_ceil(BLOCK as u64);
        match self.0.range((inode, first)..(inode, last)).next() {
            Some(_) => Err(io::Error::from_raw_os_error(EIO)),
            None => Ok(()),
        }
    }

    /// These bytes are written: whole blocks of them can be read again.
    pub(super) fn written(&mut self, inode: u64, position: u64, len: u64) {
        let first = position.div_ceil(BLOCK as u64);
        let last = (position + len) / BLOCK as u64;
        self.0.retain(|(other, block)| *other != inode || !(first..last).contains(block));
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
        let mut state = self.state();
        let Some(inode) = state.names.files.get(path).copied() else { return false };
        let blocks = position / BLOCK as u64..(position + len).div_ceil(BLOCK as u64);
        state.unreadable.0.extend(blocks.map(|block| (inode, block)));
        true
    }

    /// Whether a block of this file cannot be read.
    pub fn is_unreadable(&self, path: &str) -> bool {
        let state = self.state();
        let inode = state.names.files.get(path).copied();
        inode.is_some_and(|inode| state.unreadable.0.range((inode, 0)..(inode + 1, 0)).next().is_some())
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
