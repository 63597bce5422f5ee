//! A checkpoint's file as a sequence of writes: made a piece at a time, so that large states are not copied as a whole.

use super::{Checkpoint, FACTS, GROUP_HEAD, HEADER, MAGIC, VERSIONS};
use crate::disk::{AlignedBuf, BLOCK};
use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of a piece; whole blocks.
const PIECE: usize = 1 << 20;

/// What is written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The first copy from here on, behind its first block, which waits for the checksum of the body.
    Body(usize),
    /// The first block of the first copy.
    Head,
    /// The second copy from here on.
    Again(usize),
    Nothing,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Layout {
    /// Without checksums until all of the body was seen.
    header: [u8; HEADER],
    /// One after the other behind the header.
    body: Vec<Bytes>,
    body_len: usize,
    crc: crc32fast::Hasher,
    next: Next,
}

impl Layout {
    /// Of a checkpoint, whose states are shared and not copied.
    pub(super) fn of(checkpoint: &Checkpoint) -> Self {
        let mut body = Vec::new();
        let mut head = BytesMut::with_capacity(FACTS + GROUP_HEAD);
        if let Some(facts) = &checkpoint.facts {
            head.put_slice(&facts.owner.encode());
            head.put_u64_le(facts.needed_file);
        }
        for group in &checkpoint.groups {
            head.put_u32_le(group.group.0);
            head.put_u64_le(group.term);
            head.put_u8(u8::from(group.vote.is_some()));
            for field in [group.vote.unwrap_or_default(), group.applied_index, group.applied_term] {
                head.put_u64_le(field);
            }
            head.put_u32_le(u32::try_from(group.configuration.len()).expect("configurations are small"));
            head.put_u64_le(group.state.len() as u64);
            body.extend([head.split().freeze(), group.configuration.clone(), group.state.clone()]);
        }
        body.push(head.freeze());
        let body_len: usize = body.iter().map(Bytes::len).sum();
        let mut header = [0; HEADER];
        let count = u32::try_from(checkpoint.groups.len()).expect("group numbers are 32 bits");
        header[0..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSIONS[usize::from(checkpoint.facts.is_some())].to_le_bytes());
        header[8..16].copy_from_slice(&checkpoint.number.to_le_bytes());
        header[16..24].copy_from_slice(&checkpoint.journal_file.to_le_bytes());
        header[24..32].copy_from_slice(&(body_len as u64).to_le_bytes());
        header[32..36].copy_from_slice(&count.to_le_bytes());
        let mut layout = Self { header, body, body_len, crc: crc32fast::Hasher::new(), next: Next::Body(BLOCK) };
        let first = layout.bytes(0, BLOCK);
        layout.crc.update(&first[HEADER..BLOCK.min(layout.end())]);
        layout
    }

    /// Where the body ends.
    fn end(&self) -> usize {
        HEADER + self.body_len
    }

    /// Length in bytes of a copy.
    fn copy(&self) -> usize {
        self.end().next_multiple_of(BLOCK)
    }

    /// Length in bytes of the file, with both copies.
    pub(super) fn file_len(&self) -> u64 {
        2 * self.copy() as u64
    }

    /// The next write: where in the file, and what.
    pub(super) fn next_piece(&mut self) -> Option<(u64, AlignedBuf)> {
        let copy = self.copy();
        match self.next {
            Next::Body(at) if at < copy => {
                let piece = self.bytes(at, PIECE.min(copy - at));
                self.crc.update(&piece[..piece.len().min(self.end() - at)]);
                self.next = Next::Body(at + piece.len());
                Some((at as u64, piece))
            }
            Next::Body(_) => {
                self.next = Next::Head;
                self.next_piece()
            }
            Next::Head => {
                let body_crc = self.crc.clone().finalize();
                self.header[36..40].copy_from_slice(&body_crc.to_le_bytes());
                let crc = crc32fast::hash(&self.header[..60]);
                self.header[60..64].copy_from_slice(&crc.to_le_bytes());
                self.next = Next::Again(0);
                Some((0, self.bytes(0, BLOCK)))
            }
            Next::Again(at) if at < copy => {
                let piece = self.bytes(at, PIECE.min(copy - at));
                self.next = Next::Again(at + piece.len());
                Some(((copy + at) as u64, piece))
            }
            Next::Again(_) | Next::Nothing => {
                self.next = Next::Nothing;
                None
            }
        }
    }

    /// The bytes of a copy from `at` on, with zeros behind the body.
    fn bytes(&self, at: usize, len: usize) -> AlignedBuf {
        let mut buf = AlignedBuf::with_capacity(len);
        let mut skip = at;
        for part in std::iter::once(&self.header[..]).chain(self.body.iter().map(|part| &part[..])) {
            let rest = part.get(skip..).unwrap_or_default();
            skip = skip.saturating_sub(part.len());
            buf.extend_from_slice(&rest[..rest.len().min(len - buf.len())]);
            if buf.len() == len {
                break;
            }
        }
        buf.resize(len);
        buf
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GroupCheckpoint, decode};
    use super::*;
    use crate::journal::GroupId;

    fn checkpoint(sizes: &[usize]) -> Checkpoint {
        let group = |(n, size): (usize, &usize)| GroupCheckpoint {
            group: GroupId(n as u32),
            term: 3,
            vote: Some(2),
            applied_index: 7,
            applied_term: 2,
            configuration: Bytes::from(vec![n as u8; n]),
            state: (0..*size).map(|at| (at % 251) as u8).collect(),
        };
        Checkpoint { number: 9, journal_file: 4, facts: None, groups: sizes.iter().enumerate().map(group).collect() }
    }

    /// The file that the pieces make up, and how many there were.
    fn written(checkpoint: &Checkpoint) -> (Vec<u8>, usize) {
        let (mut layout, mut file, mut count) = (Layout::of(checkpoint), Vec::new(), 0);
        while let Some((position, piece)) = layout.next_piece() {
            assert!(piece.len() <= PIECE && piece.len().is_multiple_of(BLOCK) && position.is_multiple_of(BLOCK as u64));
            let (start, end) = (position as usize, position as usize + piece.len());
            file.resize(file.len().max(end), 0xee);
            file[start..end].copy_from_slice(&piece);
            count += 1;
        }
        (file, count)
    }

    #[test]
    fn pieces_make_up_two_copies_of_any_size() {
        let edge = BLOCK - HEADER - GROUP_HEAD;
        let sizes: [&[usize]; 8] =
            [&[], &[0], &[edge - 1], &[edge], &[edge + 1], &[1, BLOCK, 3], &[PIECE, 5], &[3 * PIECE + 77, PIECE, 0]];
        for sizes in sizes {
            let checkpoint = checkpoint(sizes);
            let (file, count) = written(&checkpoint);
            let (first, second) = file.split_at(file.len() / 2);
            assert_eq!(first, second, "{sizes:?}");
            assert!(count <= 3 + file.len() / PIECE + 1, "{sizes:?}: {count} pieces");
            let loaded = decode(9, file.into()).expect("whole");
            assert!(loaded.damage.is_none(), "{sizes:?}: {:?}", loaded.damage);
            assert_eq!(loaded.checkpoint, checkpoint);
        }
    }
}
