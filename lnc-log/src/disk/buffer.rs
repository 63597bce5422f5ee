//! A byte buffer whose start and capacity are block aligned, as direct I/O demands.

use super::BLOCK;
use std::fmt;

/// A growable buffer whose first byte lies on a [`BLOCK`] boundary. Alignment comes from allocating one block more
/// than needed and starting inside it, so no unsafe code is involved.
#[derive(Default)]
pub struct AlignedBuf {
    /// The content begins at `start`; what lies before it has no meaning. It never grows past its allocation, which
    /// would move it.
    memory: Vec<u8>,
    start: usize,
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
        let mut memory = vec![0; len.next_multiple_of(BLOCK) + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        memory.truncate(start + len);
        Self { memory, start }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buf = Self::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        buf
    }

    /// Number of bytes held.
    pub fn len(&self) -> usize {
        self.memory.len() - self.start
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of bytes that fit without growing; a multiple of [`BLOCK`].
    pub fn capacity(&self) -> usize {
        (self.memory.capacity() - self.start) / BLOCK * BLOCK
    }

    /// Forget the content, keep the memory.
    pub fn clear(&mut self) {
        self.memory.truncate(self.start);
    }

    /// Make room for `additional` more bytes.
    pub fn reserve(&mut self, additional: usize) {
        let need = self.len() + additional;
        if need <= self.capacity() {
            return;
        }
        let capacity = need.max(self.capacity() * 2).next_multiple_of(BLOCK);
        let mut memory: Vec<u8> = Vec::with_capacity(capacity + BLOCK);
        let start = memory.as_ptr().align_offset(BLOCK);
        memory.resize(start, 0);
        memory.extend_from_slice(self);
        (self.memory, self.start) = (memory, start);
    }

    /// Append bytes.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.memory.extend_from_slice(bytes);
    }

    /// Grow (with zeros) or shrink to `len` bytes.
    pub fn resize(&mut self, len: usize) {
        self.reserve(len.saturating_sub(self.len()));
        self.memory.resize(self.start + len, 0);
    }

    /// Append zeros up to the next block boundary.
    pub fn pad_to_block(&mut self) {
        self.resize(self.len().next_multiple_of(BLOCK));
    }
}

impl std::ops::Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl std::ops::DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.len())
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
        assert_eq!(buf.capacity() % BLOCK, 0);
        buf.clear();
        buf.resize(3);
        assert_eq!(&buf[..], &[0; 3], "what was there before does not come back");
        assert_eq!(&AlignedBuf::zeroed(5)[..], &[0; 5]);
    }
}
