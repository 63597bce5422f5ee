//! The bytes between brokers: a length- and checksum-framed batch of Raft messages.
//!
//! A frame is `length u32 | crc32 u32 of the length | crc32 u32 of the body | body`, all integers little-endian. The length
//! is checked before it is believed: a wrong one would have the receiver wait for bytes that never come. The body of a message
//! frame is a sequence of `group u32 | from u64 | term u64 | kind u8 | fields`; the term is 0 where it means nothing. The
//! receiver knows whom it is itself, so `to` is not sent. Frames carry whatever one turn had for one peer on one channel,
//! about 1 MiB in each.

use crate::formation::Channel;
use crate::notice::{self, PeerNotice};
use crate::trace::{self, TraceNotice};
use crate::transfer::{self, Transfer};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_log::journal::GroupId;
use lnc_raft::{AppendReply, Body, Entry, EntryKind, Message, NodeId};
use thiserror::Error;

/// What one node says to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// Consensus of a group.
    Raft(GroupId, Message),
    /// State, files and lost entries.
    Transfer(Transfer),
    /// The trace of an entry, for peers that speak [`trace::SINCE_FORMAT`].
    Trace(TraceNotice),
    /// The sender's wall clock, for peers that speak [`notice::SINCE_FORMAT`].
    Notice(PeerNotice),
}

impl PeerMessage {
    /// The sender.
    pub fn from(&self) -> NodeId {
        match self {
            Self::Raft(_, message) => message.from,
            Self::Transfer(transfer) => transfer.from,
            Self::Trace(notice) => notice.from,
            Self::Notice(notice) => notice.from,
        }
    }

    /// The receiver.
    pub fn to(&self) -> NodeId {
        match self {
            Self::Raft(_, message) => message.to,
            Self::Transfer(transfer) => transfer.to,
            Self::Trace(notice) => notice.to,
            Self::Notice(notice) => notice.to,
        }
    }

    /// The group that it is about.
    pub fn group(&self) -> GroupId {
        match self {
            Self::Raft(group, _) => *group,
            Self::Transfer(transfer) => transfer.group,
            Self::Trace(notice) => notice.group,
            // Of the node as a whole.
            Self::Notice(_) => GroupId(0),
        }
    }

    /// The connection it belongs on.
    pub fn channel(&self) -> Channel {
        match self {
            Self::Raft(_, message) => match message.body.channel() {
                lnc_raft::Channel::Control => Channel::Control,
                lnc_raft::Channel::Replication => Channel::Replication,
            },
            // A notice stays in front of the append that it is about.
            Self::Transfer(_) | Self::Trace(_) => Channel::Replication,
            Self::Notice(_) => Channel::Control,
        }
    }

    /// About what it takes on the wire, in bytes.
    pub fn size_hint(&self) -> usize {
        const FIELDS: usize = 64;
        match self {
            Self::Raft(_, Message { body: Body::Append { entries, .. }, .. }) => {
                FIELDS + entries.iter().map(Entry::size).sum::<usize>()
            }
            Self::Raft(..) | Self::Trace(_) | Self::Notice(_) => FIELDS,
            Self::Transfer(transfer) => FIELDS + transfer.body.bytes(),
        }
    }
}

/// Bytes before the body of a frame.
pub const FRAME_HEADER: usize = 12;

/// Largest body a peer may send, in bytes: far above what the append limits allow, far below what would hurt. One entry
/// must fit, whatever it holds: a leader whose entry is refused sends it again and again.
pub const MAX_FRAME_BODY: usize = 64 << 20;

/// A frame's body that holds this many bytes takes no further message. The receiver works on whole frames, so shorter
/// ones are also answered earlier.
pub const FULL_FRAME_BODY: usize = 1 << 20;

/// Whether the receiver would take a frame with this message. One that it would not is the fault of whoever made the
/// message, and must not cost the connection that carries everything else.
pub fn fits_a_frame(message: &PeerMessage) -> bool {
    let (bytes, limit) = (message.size_hint(), MAX_FRAME_BODY - FULL_FRAME_BODY);
    if bytes > limit {
        tracing::error!(
            peer = %message.to(),
            group = message.group().0,
            bytes,
            limit,
            "a message is too large for a frame and is not sent; lower limits.max_batch_bytes, and report this"
        );
    }
    bytes <= limit
}

/// Why bytes from a peer were refused. The connection they came from is closed.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// The length field is beyond the limit.
    #[error("peer frame of {len} bytes is larger than the limit of {limit} bytes")]
    TooLarge {
        /// Claimed length in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The checksum does not match.
    #[error("peer frame has CRC-32 {found:08x}, expected {expected:08x}")]
    BadCrc {
        /// The checksum in the header.
        expected: u32,
        /// The checksum of the bytes received.
        found: u32,
    },
    /// The body ends inside a field.
    #[error("peer frame ends inside {0}")]
    Truncated(&'static str),
    /// A field has a value that means nothing.
    #[error("peer frame has {field} {value}, which is not known")]
    Unknown {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Append a frame to `out`; `body` writes its content.
pub fn put_frame(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_bytes(0, FRAME_HEADER);
    body(out);
    let len = out.len() - start - FRAME_HEADER;
    let len = (len as u32).to_le_bytes();
    let crc = crc32fast::hash(&out[start + FRAME_HEADER..]);
    out[start..start + 4].copy_from_slice(&len);
    out[start + 4..start + 8].copy_from_slice(&crc32fast::hash(&len).to_le_bytes());
    out[start + 8..start + 12].copy_from_slice(&crc.to_le_bytes());
}

/// Append messages in as many frames as they need. A body is shorter than [`FULL_FRAME_BODY`] and one message together.
pub fn put_messages(out: &mut BytesMut, messages: &[PeerMessage]) {
    let mut rest = messages;
    while !rest.is_empty() {
        put_frame(out, |out| {
            let start = out.len();
            while let [message, after @ ..] = rest {
                put_message(out, message);
                rest = after;
                if out.len() - start >= FULL_FRAME_BODY {
                    break;
                }
            }
        });
    }
}

/// Take one frame's body off `buf`; `None` when more bytes are needed. The limit is checked before anything is reserved.
pub fn take_frame(buf: &mut BytesMut, limit: usize) -> Result<Option<Bytes>, WireError> {
    if buf.len() < FRAME_HEADER {
        return Ok(None);
    }
    let word = |at: usize| u32::from_le_bytes([buf[at], buf[at + 1], buf[at + 2], buf[at + 3]]);
    let (expected, found) = (word(4), crc32fast::hash(&buf[..4]));
    if found != expected {
        return Err(WireError::BadCrc { expected, found });
    }
    let len = word(0) as usize;
    if len > limit {
        return Err(WireError::TooLarge { len, limit });
    }
    if buf.len() < FRAME_HEADER + len {
        buf.reserve(FRAME_HEADER + len - buf.len());
        return Ok(None);
    }
    let expected = word(8);
    buf.advance(FRAME_HEADER);
    let body = buf.split_to(len).freeze();
    let found = crc32fast::hash(&body);
    if found != expected {
        return Err(WireError::BadCrc { expected, found });
    }
    Ok(Some(body))
}

/// Append one message to the body of a frame.
pub fn put_message(out: &mut BytesMut, message: &PeerMessage) {
    out.put_u32_le(message.group().0);
    out.put_u64_le(message.from().0);
    match message {
        PeerMessage::Raft(_, message) => put_raft(out, message),
        PeerMessage::Transfer(transfer) => {
            out.put_u64_le(0);
            transfer.body.encode(out);
        }
        PeerMessage::Trace(notice) => {
            out.put_u64_le(notice.term);
            notice.encode(out);
        }
        PeerMessage::Notice(notice) => {
            out.put_u64_le(0);
            notice.encode(out);
        }
    }
}

fn put_raft(out: &mut BytesMut, message: &Message) {
    out.put_u64_le(message.term);
    match &message.body {
        Body::PreVote { last_index, last_term, round } => {
            out.put_u8(1);
            out.put_u64_le(*last_index);
            out.put_u64_le(*last_term);
            out.put_u64_le(*round);
        }
        Body::PreVoteReply { round, granted } => {
            out.put_u8(2);
            out.put_u64_le(*round);
            out.put_u8(u8::from(*granted));
        }
        Body::Vote { last_index, last_term, transfer } => {
            out.put_u8(3);
            out.put_u64_le(*last_index);
            out.put_u64_le(*last_term);
            out.put_u8(u8::from(*transfer));
        }
        Body::VoteReply { granted } => {
            out.put_u8(4);
            out.put_u8(u8::from(*granted));
        }
        Body::Append { prev_index, prev_term, commit, entries } => {
            out.put_u8(5);
            out.put_u64_le(*prev_index);
            out.put_u64_le(*prev_term);
            out.put_u64_le(*commit);
            out.put_u32_le(entries.len() as u32);
            for entry in entries {
                out.put_u64_le(entry.term);
                out.put_u8(entry.kind as u8);
                out.put_u32_le(entry.payload.len() as u32);
                out.put_slice(&entry.payload);
            }
        }
        Body::AppendReply(AppendReply::Accepted { match_index }) => {
            out.put_u8(6);
            out.put_u64_le(*match_index);
        }
        Body::AppendReply(AppendReply::Rejected { prev_index, hint_index, hint_term, last_index }) => {
            out.put_u8(7);
            out.put_u64_le(*prev_index);
            out.put_u64_le(*hint_index);
            out.put_u64_le(*hint_term);
            out.put_u64_le(*last_index);
        }
        Body::Heartbeat { commit, leader_commit, round } => {
            out.put_u8(8);
            out.put_u64_le(*commit);
            out.put_u64_le(*leader_commit);
            out.put_u64_le(*round);
        }
        Body::HeartbeatReply { slow, round } => {
            out.put_u8(9);
            out.put_u8(u8::from(*slow));
            out.put_u64_le(*round);
        }
        Body::TimeoutNow => out.put_u8(10),
        Body::ReadIndex { ctx } => {
            out.put_u8(11);
            out.put_u64_le(*ctx);
        }
        Body::ReadIndexReply { ctx, index } => {
            out.put_u8(12);
            out.put_u64_le(*ctx);
            out.put_u64_le(index.map_or(u64::MAX, |i| i));
        }
        Body::StateNeeded { index, term } => {
            out.put_u8(13);
            out.put_u64_le(*index);
            out.put_u64_le(*term);
        }
    }
}

pub(crate) fn u8_of(body: &mut Bytes, what: &'static str) -> Result<u8, WireError> {
    body.try_get_u8().map_err(|_| WireError::Truncated(what))
}

pub(crate) fn u16_of(body: &mut Bytes, what: &'static str) -> Result<u16, WireError> {
    body.try_get_u16_le().map_err(|_| WireError::Truncated(what))
}

pub(crate) fn u32_of(body: &mut Bytes, what: &'static str) -> Result<u32, WireError> {
    body.try_get_u32_le().map_err(|_| WireError::Truncated(what))
}

pub(crate) fn u64_of(body: &mut Bytes, what: &'static str) -> Result<u64, WireError> {
    body.try_get_u64_le().map_err(|_| WireError::Truncated(what))
}

pub(crate) fn bool_of(body: &mut Bytes, field: &'static str) -> Result<bool, WireError> {
    match u8_of(body, field)? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(WireError::Unknown { field, value: value.into() }),
    }
}

/// Take the next message off a frame's body; payloads are slices of it. `to` is the receiving node.
pub fn take_message(body: &mut Bytes, to: NodeId) -> Result<PeerMessage, WireError> {
    let group = GroupId(u32_of(body, "group")?);
    let from = NodeId(u64_of(body, "sender")?);
    let term = u64_of(body, "term")?;
    let kind = u8_of(body, "kind")?;
    if kind == trace::KIND {
        return TraceNotice::decode(from, to, group, term, body).map(PeerMessage::Trace);
    }
    if kind == notice::KIND {
        if term != 0 || group != GroupId(0) {
            return Err(WireError::Unknown { field: "the term or group of a notice", value: term.max(group.0.into()) });
        }
        return PeerNotice::decode(from, to, body).map(PeerMessage::Notice);
    }
    if kind >= transfer::FIRST_KIND {
        if term != 0 {
            return Err(WireError::Unknown { field: "the term of a transfer", value: term });
        }
        return Ok(PeerMessage::Transfer(Transfer { from, to, group, body: transfer::decode(kind, body)? }));
    }
    let body = take_raft(kind, body)?;
    Ok(PeerMessage::Raft(group, Message { from, to, term, body }))
}

fn take_raft(kind: u8, body: &mut Bytes) -> Result<Body, WireError> {
    Ok(match kind {
        1 => Body::PreVote {
            last_index: u64_of(body, "last index")?,
            last_term: u64_of(body, "last term")?,
            round: u64_of(body, "round")?,
        },
        2 => Body::PreVoteReply { round: u64_of(body, "round")?, granted: bool_of(body, "granted")? },
        3 => Body::Vote {
            last_index: u64_of(body, "last index")?,
            last_term: u64_of(body, "last term")?,
            transfer: bool_of(body, "transfer")?,
        },
        4 => Body::VoteReply { granted: bool_of(body, "granted")? },
        5 => take_append(body)?,
        6 => Body::AppendReply(AppendReply::Accepted { match_index: u64_of(body, "match index")? }),
        7 => Body::AppendReply(AppendReply::Rejected {
            prev_index: u64_of(body, "previous index")?,
            hint_index: u64_of(body, "hint index")?,
            hint_term: u64_of(body, "hint term")?,
            last_index: u64_of(body, "last index")?,
        }),
        8 => Body::Heartbeat {
            commit: u64_of(body, "commit index")?,
            leader_commit: u64_of(body, "the leader's commit index")?,
            round: u64_of(body, "round")?,
        },
        9 => Body::HeartbeatReply { slow: bool_of(body, "slow")?, round: u64_of(body, "round")? },
        10 => Body::TimeoutNow,
        11 => Body::ReadIndex { ctx: u64_of(body, "read context")? },
        12 => Body::ReadIndexReply {
            ctx: u64_of(body, "read context")?,
            index: Some(u64_of(body, "read index")?).filter(|i| *i != u64::MAX),
        },
        13 => Body::StateNeeded { index: u64_of(body, "index")?, term: u64_of(body, "term of the entry")? },
        value => return Err(WireError::Unknown { field: "message kind", value: value.into() }),
    })
}

fn take_append(body: &mut Bytes) -> Result<Body, WireError> {
    /// Bytes of an entry without its payload: what bounds the list before it is allocated.
    const ENTRY_HEADER: usize = 13;
    let prev_index = u64_of(body, "previous index")?;
    let prev_term = u64_of(body, "previous term")?;
    let commit = u64_of(body, "commit index")?;
    let count = u32_of(body, "entry count")? as usize;
    if count > body.len() / ENTRY_HEADER {
        return Err(WireError::Truncated("entries"));
    }
    let mut entries = Vec::with_capacity(count);
    for i in 0..count {
        let term = u64_of(body, "entry term")?;
        let kind = u8_of(body, "entry kind")?;
        let kind =
            EntryKind::try_from(kind).map_err(|_| WireError::Unknown { field: "entry kind", value: kind.into() })?;
        let len = u32_of(body, "payload length")? as usize;
        if len > body.len() {
            return Err(WireError::Truncated("entry payload"));
        }
        let index =
            prev_index.checked_add(i as u64 + 1).ok_or(WireError::Unknown { field: "index", value: u64::MAX })?;
        entries.push(Entry { term, index, kind, payload: body.split_to(len) });
    }
    Ok(Body::Append { prev_index, prev_term, commit, entries })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Body> {
        let entry = |index, payload: &'static [u8]| Entry {
            term: 3,
            index,
            kind: EntryKind::Normal,
            payload: Bytes::from_static(payload),
        };
        vec![
            Body::PreVote { last_index: 1, last_term: 2, round: 3 },
            Body::PreVoteReply { round: 3, granted: true },
            Body::Vote { last_index: 1, last_term: 2, transfer: true },
            Body::VoteReply { granted: false },
            Body::Append { prev_index: 7, prev_term: 2, commit: 6, entries: vec![entry(8, b"a"), entry(9, b"")] },
            Body::AppendReply(AppendReply::Accepted { match_index: 9 }),
            Body::AppendReply(AppendReply::Rejected { prev_index: 7, hint_index: 4, hint_term: 2, last_index: 5 }),
            Body::Heartbeat { commit: 5, leader_commit: 7, round: 1 },
            Body::HeartbeatReply { slow: true, round: 1 },
            Body::TimeoutNow,
            Body::ReadIndex { ctx: 4 },
            Body::ReadIndexReply { ctx: 4, index: Some(5) },
            Body::ReadIndexReply { ctx: 4, index: None },
            Body::StateNeeded { index: 6, term: 2 },
        ]
    }

    fn encoded() -> BytesMut {
        let mut out = BytesMut::new();
        put_frame(&mut out, |out| {
            for body in samples() {
                let message = Message { from: NodeId(1), to: NodeId(2), term: 9, body };
                put_message(out, &PeerMessage::Raft(GroupId(2), message));
            }
        });
        out
    }

    #[test]
    fn every_message_survives_the_wire() {
        let mut body = take_frame(&mut encoded(), 1 << 20).unwrap().unwrap();
        for expected in samples() {
            let message = Message { from: NodeId(1), to: NodeId(2), term: 9, body: expected };
            assert_eq!(take_message(&mut body, NodeId(2)), Ok(PeerMessage::Raft(GroupId(2), message)));
        }
        assert!(body.is_empty());
    }

    /// The number of bytes of each frame's body, and the first index of each append, in order.
    fn frames_of(messages: &[PeerMessage]) -> (Vec<usize>, Vec<u64>) {
        let mut out = BytesMut::new();
        put_messages(&mut out, messages);
        let (mut lens, mut appends) = (Vec::new(), Vec::new());
        while let Some(mut body) = take_frame(&mut out, MAX_FRAME_BODY).unwrap() {
            lens.push(body.len());
            while !body.is_empty() {
                let message = take_message(&mut body, NodeId(2)).unwrap();
                if let PeerMessage::Raft(_, Message { body: Body::Append { prev_index, .. }, .. }) = message {
                    appends.push(prev_index);
                }
            }
        }
        assert!(out.is_empty());
        (lens, appends)
    }

    fn append(group: u32, prev_index: u64, payload: &Bytes) -> PeerMessage {
        let entry = Entry { term: 9, index: prev_index + 1, kind: EntryKind::Normal, payload: payload.clone() };
        let body = Body::Append { prev_index, prev_term: 9, commit: 0, entries: vec![entry] };
        PeerMessage::Raft(GroupId(group), Message { from: NodeId(1), to: NodeId(2), term: 9, body })
    }

    #[test]
    fn full_windows_of_many_groups_fit_into_frames() {
        // Six groups catch up after a stall, each with 16 MiB: more than the receiver takes in one frame.
        let payload = Bytes::from(vec![7; 400 << 10]);
        let messages: Vec<_> = (0..6 * 41).map(|i| append(i / 41, u64::from(i), &payload)).collect();
        let (lens, appends) = frames_of(&messages);
        assert!(lens.iter().sum::<usize>() > MAX_FRAME_BODY);
        assert!(lens.iter().all(|len| *len < FULL_FRAME_BODY + payload.len() + 100), "{lens:?}");
        assert_eq!(lens.len(), messages.len() / 3, "three appends fill a frame");
        assert!(appends.into_iter().eq(0..6 * 41), "in order and complete");
    }

    #[test]
    fn small_messages_share_a_frame_and_a_large_one_closes_it() {
        let (small, large) = (Bytes::from_static(b"small"), Bytes::from(vec![7; 5 << 20]));
        let messages = [append(1, 1, &small), append(1, 2, &small), append(1, 3, &large), append(1, 4, &small)];
        let (lens, appends) = frames_of(&messages);
        assert_eq!(appends, [1, 2, 3, 4]);
        assert_eq!(lens.len(), 2);
        assert!(lens[0] > large.len() && lens[1] < 100, "{lens:?}");
        assert_eq!(frames_of(&[]).0, [0; 0]);
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let good = encoded();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(matches!(take_frame(&mut bad, 1 << 20), Err(WireError::BadCrc { .. })), "byte {at}");
        }
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        let len = [0xff, 0xff, 0xff, 0x7f];
        let mut huge = BytesMut::from(&[len, crc32fast::hash(&len).to_le_bytes(), [0; 4]].concat()[..]);
        assert!(matches!(take_frame(&mut huge, 1024), Err(WireError::TooLarge { .. })));
        let mut body = take_frame(&mut encoded(), 1 << 20).unwrap().unwrap();
        while body.len() > 1 {
            body.truncate(body.len() - 1);
            let mut rest = body.clone();
            while !rest.is_empty() && take_message(&mut rest, NodeId(2)).is_ok() {}
        }
    }
}
