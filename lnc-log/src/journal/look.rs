//! What the bytes of the journal's files say, without opening it: for those who do harm to files, to see what is promised
//! to withstand it.

use super::format::{HEADER, Header};
use super::mark::Mark;
use crate::disk::BLOCK;
use std::collections::BTreeMap;

/// What a mark says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Every flush up to this one was durable.
    pub durable: u64,
    /// The newest checkpoint that was durable; 0: there was none.
    pub checkpoint: u64,
    /// Number and length of the journal's files in use.
    pub files: BTreeMap<u64, u64>,
}

/// A flush in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundFlush {
    /// Its number.
    pub number: u64,
    /// Of the process that wrote it.
    pub epoch: u64,
    /// Flushes up to this one were durable when it was made.
    pub attests: u64,
    /// Where it begins, in bytes.
    pub position: u64,
    /// Its length with padding.
    pub len: u64,
}

/// What the file of the mark says; `None` if no place of it is whole.
pub fn marked(file: &[u8]) -> Option<Marked> {
    Mark::newest(file).map(|Mark { durable, checkpoint, files, .. }| Marked { durable, checkpoint, files })
}

/// The flushes that follow one another from the beginning of the journal file with this number on.
pub fn flushes(number: u64, file: &[u8]) -> Vec<FoundFlush> {
    let mut found: Vec<FoundFlush> = Vec::new();
    let mut position = 0;
    while let Some(bytes) = file.get(position..position + HEADER) {
        let Ok(header) = Header::decode_any(bytes) else { break };
        let follows = found.last().is_none_or(|last| header.number == last.number + 1 && header.epoch >= last.epoch);
        let len = (HEADER + header.body_len as usize).next_multiple_of(BLOCK);
        if !follows || header.file != number || position + len > file.len() {
            break;
        }
        let Header { number, epoch, durable, .. } = header;
        found.push(FoundFlush { number, epoch, attests: durable, position: position as u64, len: len as u64 });
        position += len;
    }
    found
}
