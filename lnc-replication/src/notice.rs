//! What a node tells its peers of itself: its wall clock, and whether it is about to end. It travels beside the heartbeats
//! and is no part of consensus, which knows nothing of time: nothing of it is stored, and one that is lost is followed by the
//! next.

use crate::wire::{WireError, bool_of, u64_of};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_raft::NodeId;

/// The first format in which nodes tell each other such things.
pub const SINCE_FORMAT: u32 = 3;

/// Its kind of message; those below are Raft's, transfers and traces.
pub(crate) const KIND: u8 = 129;

/// What a node says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerNotice {
    /// The sender, whose clock it is.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// Milliseconds since the Unix epoch, when it was sent.
    pub wall_ms: u64,
    /// Whether the sender hands over what it leads, and is not to be given anything to lead.
    pub drains: bool,
}

impl PeerNotice {
    /// The fields behind the term, which is 0.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(KIND);
        out.put_u64_le(self.wall_ms);
        out.put_u8(u8::from(self.drains));
    }

    pub(crate) fn decode(from: NodeId, to: NodeId, body: &mut Bytes) -> Result<Self, WireError> {
        Ok(Self { from, to, wall_ms: u64_of(body, "wall clock")?, drains: bool_of(body, "end of a node")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formation::Channel;
    use crate::wire::{PeerMessage, put_message, take_message};

    #[test]
    fn a_notice_survives_the_wire_and_no_cut_one_does() {
        let (from, to) = (NodeId(1), NodeId(2));
        for (wall_ms, drains) in [(0, false), (1_700_000_000_000, true), (u64::MAX, false)] {
            let sent = PeerMessage::Notice(PeerNotice { from, to, wall_ms, drains });
            assert_eq!(sent.channel(), Channel::Control, "it must not wait behind records");
            let mut out = BytesMut::new();
            put_message(&mut out, &sent);
            let bytes = out.freeze();
            assert_eq!(take_message(&mut bytes.clone(), to), Ok(sent));
            for len in 0..bytes.len() {
                assert!(take_message(&mut bytes.slice(..len), to).is_err(), "cut to {len} bytes");
            }
            // Group and term mean nothing in it.
            for position in [0, 12] {
                let mut other = bytes.to_vec();
                other[position] = 1;
                assert!(take_message(&mut Bytes::from(other), to).is_err());
            }
        }
    }
}
