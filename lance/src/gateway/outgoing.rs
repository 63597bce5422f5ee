//! What waits to be written to a client, as a list of pieces: small replies gather in one buffer, long records stay where
//! they are and leave from there.

use bytes::{Buf, Bytes, BytesMut};
use lnc_protocol::frame::encode_header;
use lnc_protocol::message::{Response, encode_reply_pieces};
use lnc_protocol::{Flags, Reply, encode_reply};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Copying fewer bytes than this costs less than what another piece does to the write; and a piece keeps the whole
/// buffer alive that it is a part of.
const LEAST_PIECE: usize = 8 << 10;

/// Bytes that gather in one buffer: one that grew further would be half empty.
const MOST_COPIED: usize = 64 << 10;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Outgoing {
    pieces: Pieces,
    /// What comes behind the pieces.
    copied: BytesMut,
}

/// What is being written.
#[derive(Default)]
pub(super) struct Pieces {
    /// None is empty.
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Outgoing {
    /// Append a reply's frame.
    pub(super) fn put_reply(&mut self, opcode: impl Into<u8>, correlation: u64, reply: &Reply) {
        let long = |partition: &lnc_protocol::message::FetchedPartition| partition.records.len() >= LEAST_PIECE;
        match &reply.result {
            Ok(Response::Fetch(partitions)) if partitions.iter().any(long) => {
                for piece in encode_reply_pieces(opcode, correlation, reply) {
                    self.put(piece);
                }
            }
            _ => encode_reply(&mut self.copied, opcode, correlation, reply),
        }
        if self.copied.len() >= MOST_COPIED {
            self.seal();
        }
    }

    /// Append a reply's frame with this body.
    pub(super) fn put_body(&mut self, opcode: impl Into<u8>, correlation: u64, body: &Bytes) {
        let header = encode_header(opcode, Flags::RESPONSE, correlation, std::slice::from_ref(body));
        self.copied.extend_from_slice(&header);
        self.put(body.clone());
    }

    /// Append bytes as they are.
    pub(super) fn put(&mut self, piece: Bytes) {
        if piece.len() < LEAST_PIECE {
            return self.copied.extend_from_slice(&piece);
        }
        self.seal();
        self.pieces.push(piece);
    }

    /// Make a piece of what was copied.
    fn seal(&mut self) {
        if !self.copied.is_empty() {
            self.pieces.push(self.copied.split().freeze());
        }
    }

    /// Bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.pieces.len + self.copied.len()
    }

    /// All that waits, to be written.
    pub(super) fn take(&mut self) -> Pieces {
        self.seal();
        std::mem::take(&mut self.pieces)
    }
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        self.pieces.push_back(piece);
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while let Some(first) = self.pieces.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.pieces.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::message::{FetchedPartition, Records};
    use lnc_protocol::{ErrorCode, Opcode};

    fn fetched(pieces: &[usize]) -> Reply {
        let records: Records = pieces.iter().map(|len| Bytes::from(vec![*len as u8; *len])).collect();
        let found = FetchedPartition {
            topic: "t".into(),
            partition: 0,
            error: ErrorCode::None,
            message: String::new(),
            log_start_offset: 0,
            high_watermark: 9,
            records,
        };
        Reply { result: Ok(Response::Fetch(vec![found])) }
    }

    #[test]
    fn pieces_leave_as_the_same_bytes_in_order() {
        let replies = [
            fetched(&[]),
            fetched(&[10, 20_000, 5]),
            fetched(&[3]),
            fetched(&[LEAST_PIECE, LEAST_PIECE - 1]),
            fetched(&[4000, 5000]),
        ];
        let (mut outgoing, mut expected) = (Outgoing::default(), BytesMut::new());
        for (correlation, reply) in replies.iter().enumerate() {
            outgoing.put_reply(Opcode::Fetch, correlation as u64, reply);
            encode_reply(&mut expected, Opcode::Fetch, correlation as u64, reply);
        }
        let body = Bytes::from(vec![7; 9000]);
        outgoing.put_body(Opcode::Fetch, 9, &body);
        expected.extend_from_slice(&encode_header(Opcode::Fetch, Flags::RESPONSE, 9, &[&body]));
        expected.extend_from_slice(&body);
        assert_eq!(outgoing.len(), expected.len());
        let mut pieces = outgoing.take();
        assert_eq!(outgoing.len(), 0);
        assert!(pieces.pieces.len() > 3 && pieces.pieces.iter().all(|piece| !piece.is_empty()));
        // As a socket takes them: some bytes of several pieces at a time.
        let mut written = Vec::new();
        while pieces.has_remaining() {
            let mut slices = [IoSlice::new(&[]); 3];
            let filled = pieces.chunks_vectored(&mut slices);
            let offered: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.to_vec()).collect();
            let accepted = offered.len().min(7001);
            written.extend_from_slice(&offered[..accepted]);
            pieces.advance(accepted);
        }
        assert!(written == expected);
    }
}
