//! The fuzzer's bytes, taken apart: numbers and chunks in a form in which changing one byte changes one thing.

use lnc_log::disk::{AlignedBuf, Disk, FileId, MemoryDisk, Op};

/// What is left of the input. Past its end, everything is zero and empty.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes, or as many as there are.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        head
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    /// Two bytes, little-endian.
    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Eight bytes, little-endian.
    pub fn word(&mut self) -> u64 {
        let mut raw = [0; 8];
        let bytes = self.take(8);
        raw[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(raw)
    }

    /// Bytes after their length in two.
    pub fn chunk(&mut self) -> &'a [u8] {
        let len = self.short();
        self.take(len.into())
    }
}

/// Puts bytes at a place, as far as there is room for them.
pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Makes a file with this content on a disk, durably.
pub fn store(disk: &mut MemoryDisk, directory: &str, name: &str, content: &[u8]) {
    let file = FileId(1);
    let path = format!("{directory}/{name}");
    let buf = AlignedBuf::copy_of(content);
    for op in [
        Op::CreateDir { path: directory.to_owned() },
        Op::Open { file, path, create: true, direct: false },
        Op::SetLen { file, len: 0 },
        Op::Write { file, position: 0, buf, durable: true },
        Op::Close { file },
        Op::SyncDir { path: directory.to_owned() },
    ] {
        disk.run(op).expect("a memory disk takes files");
    }
}
