//! A byte buffer whose start and capacity are block aligned, as direct I/O demands.

use super::BLOCK;
use std::fmt;

/// A growable buffer whose first byte lies on a [`BLOCK`] boundary. Alignment comes from allocating one block more
/// than needed and starting inside it, so no unsafe code is involved.
#[derive(Default)]
pub struct AlignedBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer that holds `capacity` bytes (rounded up to whole blocks) without growing.
    pub fn with_capacity(capacity: usize) -> Self {
        let mut buf = Self::default();
        buf.reserve(capacity);
        buf
    }

    /// `len` zero bytes. Cheaper than `resize`, since new memory is zero already.
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::with_capacity(len);
        buf.len = len;
        buf
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        buf
    }

    /// Number of bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of bytes that fit without growing; a multiple of [`BLOCK`].
    pub fn capacity(&self) -> usize {
        self.memory.len().saturating_sub(BLOCK)
    }

    /// Forget the content, keep the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Make room for `additional` more bytes.
    pub fn reserve(&mut self, additional: usize) {
        let need = self.len + additional;
        if need <= self.capacity() {
            return;
        }
        let capacity = need.max(self.capacity() * 2).next_multiple_of(BLOCK);
        let mut memory = vec![0; capacity + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        memory[start..start + self.len].copy_from_slice(&self.memory[self.start..self.start + self.len]);
        self.memory = memory;
        self.start = start;
    }

    /// Append bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        let at = self.start + self.len;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Grow (with zeros) or shrink to `len` bytes.
    pub fn resize(&mut self, len: usize) {
        if len > self.len {
            self.reserve(len - self.len);
            let at = self.start + self.len;
            self.memory[at..self.start + len].fill(0);
        }
        self.len = len;
    }

    /// Append zeros up to the next block boundary.
    pub fn pad_to_block(&mut self) {
        self.resize(self.len.next_multiple_of(BLOCK));
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_while_growing() {
        let mut buf = AlignedBuf::default();
        let mut expected = Vec::new();
        for i in 0..3000u32 {
            buf.extend_from_slice(&i.to_le_bytes());
            expected.extend_from_slice(&i.to_le_bytes());
            assert_eq!(buf.as_ptr() as usize % BLOCK, 0);
        }
        assert_eq!(&buf[..], &expected[..]);
        buf.pad_to_block();
        assert_eq!(buf.len() % BLOCK, 0);
        assert!(buf[expected.len()..].iter().all(|b| *b == 0));
    }
}
