//! What a leader tells a follower about an entry of a recorded trace. It travels beside the append and is no part of
//! consensus: nothing of it is stored, and one that is lost costs the follower's spans alone.

use crate::wire::{WireError, u64_of};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_log::journal::GroupId;
use lnc_raft::{Index, NodeId, Term};

/// The first format in which nodes tell each other of traces.
pub const SINCE_FORMAT: u32 = 2;

/// Its kind of message; those below are Raft's and transfers.
pub(crate) const KIND: u8 = 128;

/// An entry holds a request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceNotice {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The group.
    pub group: GroupId,
    /// The entry's term.
    pub term: Term,
    /// Its index.
    pub index: Index,
    /// The trace.
    pub trace_id: u128,
    /// The leader's span, under which the receiver's are.
    pub span_id: u64,
}

impl TraceNotice {
    /// The fields behind the term.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        out.put_u8(KIND);
        out.put_u64_le(self.index);
        out.put_u128_le(self.trace_id);
        out.put_u64_le(self.span_id);
    }

    pub(crate) fn decode(
        from: NodeId,
        to: NodeId,
        group: GroupId,
        term: Term,
        body: &mut Bytes,
    ) -> Result<Self, WireError> {
        let index = u64_of(body, "index")?;
        let trace_id = body.try_get_u128_le().map_err(|_| WireError::Truncated("trace id"))?;
        Ok(Self { from, to, group, term, index, trace_id, span_id: u64_of(body, "span id")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formation::Channel;
    use crate::wire::{PeerMessage, put_message, take_message};

    #[test]
    fn a_notice_survives_the_wire_and_no_cut_one_does() {
        let (from, to, group) = (NodeId(1), NodeId(2), GroupId(3));
        let notice = TraceNotice { from, to, group, term: 4, index: 5, trace_id: u128::MAX - 6, span_id: 7 };
        let sent = PeerMessage::Trace(notice);
        assert_eq!(sent.channel(), Channel::Replication, "it must not come behind its append");
        let mut out = BytesMut::new();
        put_message(&mut out, &sent);
        let bytes = out.freeze();
        assert_eq!(take_message(&mut bytes.clone(), to), Ok(sent));
        for len in 0..bytes.len() {
            assert!(take_message(&mut bytes.slice(..len), to).is_err(), "cut to {len} bytes");
        }
    }
}
