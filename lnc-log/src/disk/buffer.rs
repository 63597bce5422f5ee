//! A byte buffer whose start and capacity are block aligned, as direct I/O demands.
//!
//! Large buffers are used again: memory fresh from the kernel costs a page fault and the clearing of a page each time,
//! which is dearer than what is done with it. Each thread keeps a few, see [`Spares`].

use super::BLOCK;
use std::cell::RefCell;
use std::fmt;

/// Smaller buffers are left to the allocator, which has them at hand.
const LEAST_KEPT: usize = 16 << 10;

/// Sizes of buffers that are kept: `LEAST_KEPT` times a power of two, up to 1 MiB.
const CLASSES: usize = 7;

/// Bytes of buffers that a thread keeps for each size.
const KEPT_PER_CLASS: usize = 2 << 20;

/// The buffers that a thread has done with, by size.
#[derive(Default)]
struct Spares {
    classes: [Vec<Vec<u8>>; CLASSES],
}

thread_local! {
    static SPARES: RefCell<Spares> = RefCell::default();
}

/// The size class whose buffers hold `bytes`, if they are kept at all.
fn class_of(bytes: usize) -> Option<usize> {
    let class = bytes.div_ceil(LEAST_KEPT).next_power_of_two().trailing_zeros() as usize;
    (bytes >= LEAST_KEPT && class < CLASSES).then_some(class)
}

/// Memory for `bytes` bytes, which are a multiple of [`BLOCK`], behind a start on a block boundary; and that start.
fn allocate(bytes: usize) -> (Vec<u8>, usize) {
    let mut memory = match class_of(bytes) {
        None => Vec::with_capacity(bytes + BLOCK),
        Some(class) => SPARES
            .with_borrow_mut(|spares| spares.classes[class].pop())
            .unwrap_or_else(|| Vec::with_capacity((LEAST_KEPT << class) + BLOCK)),
    };
    let start = memory.as_ptr().align_offset(BLOCK);
    memory.resize(start, 0);
    (memory, start)
}

/// Keep the memory of a buffer if it is of a size that is asked for again, and there are not enough of that size.
fn recycle(mut memory: Vec<u8>) {
    let Some(class) = memory.capacity().checked_sub(BLOCK).and_then(class_of) else { return };
    if memory.capacity() != (LEAST_KEPT << class) + BLOCK {
        return;
    }
    memory.clear();
    // At the end of a thread there is nobody left to keep it for.
    let _ = SPARES.try_with(|spares| {
        let spares = &mut spares.borrow_mut().classes[class];
        if (spares.len() + 1) * (LEAST_KEPT << class) <= KEPT_PER_CLASS {
            spares.push(memory);
        }
    });
}

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

    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        if class_of(len.next_multiple_of(BLOCK)).is_some() {
            let mut buf = Self::with_capacity(len);
            buf.resize(len);
            return buf;
        }
        // New memory is zero already.
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
        let (mut memory, start) = allocate(capacity);
        memory.extend_from_slice(self);
        self.start = start;
        recycle(std::mem::replace(&mut self.memory, memory));
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

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        recycle(std::mem::take(&mut self.memory));
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

    #[test]
    fn large_ones_are_used_again_and_hold_nothing_old() {
        for bytes in [LEAST_KEPT, 100_000, 1 << 20] {
            let mut buf = AlignedBuf::with_capacity(bytes);
            let place = buf.as_ptr();
            buf.resize(bytes);
            buf.fill(7);
            drop(buf);
            let again = AlignedBuf::zeroed(bytes);
            assert_eq!(again.as_ptr(), place);
            assert!(again.iter().all(|b| *b == 0));
        }
        let many: Vec<AlignedBuf> = (0..1000).map(|_| AlignedBuf::with_capacity(LEAST_KEPT)).collect();
        drop(many);
        let kept = SPARES.with_borrow(|spares| spares.classes[0].len());
        assert_eq!(kept, KEPT_PER_CLASS / LEAST_KEPT, "and no more of them are kept than that");
        assert_eq!((class_of(LEAST_KEPT - 1), class_of((1 << 20) + 1)), (None, None));
    }
}
