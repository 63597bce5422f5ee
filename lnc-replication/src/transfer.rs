//! What nodes ask each other for beside Raft: the state of a group, its records, and lost entries.
//!
//! A node that is too far behind, or has lost something, *pulls*: it asks, and asks again when no answer comes, so the
//! node that answers keeps nothing in mind. Committed records are the same on all replicas, so those from an offset on
//! may come from any; only a group's state belongs to one checkpoint of one node.

use crate::wire::{WireError, bool_of, u8_of, u32_of, u64_of};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_raft::{Entry, EntryKind, Index, NodeId, Term};

/// Kinds of message from here on are transfers; those below are Raft's.
pub(crate) const FIRST_KIND: u8 = 64;

/// Most bytes that may be asked for at once.
pub const MAX_RANGE: u32 = 1 << 20;

/// Most entries that may be asked for at once.
pub const MAX_ENTRIES: usize = 1024;

/// A question or an answer between two nodes, about one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The group.
    pub group: GroupId,
    /// What it says.
    pub body: TransferBody,
}

/// The kinds of question and answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransferBody {
    /// What is there to fetch of the group's state?
    AskState,
    /// What there is to fetch; None: this node has no checkpoint of the group.
    State {
        /// The newest checkpoint.
        offer: Option<Offer>,
    },
    /// Some bytes, please.
    AskRange(Range),
    /// The bytes of a range.
    Range {
        /// The question.
        range: Range,
        /// At least one byte of state, or one whole batch; None: they are gone here, or damaged.
        bytes: Option<Bytes>,
    },
    /// Entries that the sender once had and whose bytes it lost; each by index and term.
    AskEntries {
        /// At most [`MAX_ENTRIES`].
        wanted: Vec<(Index, Term)>,
    },
    /// What the sender has of the entries asked for.
    Entries {
        /// Its commit index.
        commit: Index,
        /// The terms it has at its commit index, and at those of the indexes that are committed, as far as it knows them.
        committed: Vec<(Index, Term)>,
        /// Those it has with the very term asked for.
        entries: Vec<Entry>,
        /// The first index that its journal still holds.
        first_index: Index,
    },
    /// How far have your replicas of this group come with a topic? For peers that speak [`TOPICS_SINCE_FORMAT`].
    AskTopic {
        /// The topic.
        topic_id: u64,
        /// How many partitions it has.
        partitions: u32,
        /// Over how many data groups they are spread.
        data_groups: u32,
    },
    /// What the sender's replica of the group has applied of a topic.
    Topic {
        /// The topic.
        topic_id: u64,
        /// All its partitions that belong to the group are there.
        complete: bool,
        /// None of them is there, nor will one ever be.
        gone: bool,
    },
}

/// The first format with questions about topics.
pub const TOPICS_SINCE_FORMAT: u32 = 3;

/// The state of a group in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Number of the checkpoint.
    pub checkpoint: u64,
    /// The last entry whose effects it has.
    pub applied_index: Index,
    /// The term of that entry.
    pub applied_term: Term,
    /// The members at that entry, encoded.
    pub configuration: Bytes,
    /// Bytes of the state machine's state.
    pub state_len: u64,
}

/// Some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// From where on.
    pub part: Part,
    /// How many at most, no more than [`MAX_RANGE`]. A first batch that is longer comes all the same.
    pub max_bytes: u32,
}

/// What a range belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The bytes of the group's state machine in a checkpoint of the node that is asked.
    State {
        /// Number of the checkpoint.
        checkpoint: u64,
        /// Position in the state.
        position: u64,
    },
    /// The record batches of a partition, as they are stored.
    Records {
        /// The partition.
        key: PartitionKey,
        /// Offset of the first record.
        offset: u64,
    },
}

impl TransferBody {
    /// About what it takes on the wire, in bytes.
    pub fn bytes(&self) -> usize {
        const PAIR: usize = 16;
        match self {
            Self::AskState | Self::AskRange(_) | Self::AskTopic { .. } | Self::Topic { .. } => 0,
            Self::State { offer } => offer.as_ref().map_or(0, |offer| offer.configuration.len()),
            Self::Range { bytes, .. } => bytes.as_ref().map_or(0, Bytes::len),
            Self::AskEntries { wanted } => wanted.len() * PAIR,
            Self::Entries { committed, entries, .. } => {
                committed.len() * PAIR + entries.iter().map(Entry::size).sum::<usize>()
            }
        }
    }

    pub(crate) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::AskState => out.put_u8(FIRST_KIND),
            Self::State { offer } => {
                out.put_u8(FIRST_KIND + 1);
                out.put_u8(u8::from(offer.is_some()));
                if let Some(offer) = offer {
                    for number in [offer.checkpoint, offer.applied_index, offer.applied_term, offer.state_len] {
                        out.put_u64_le(number);
                    }
                    put_bytes(out, &offer.configuration);
                }
            }
            Self::AskRange(range) => {
                out.put_u8(FIRST_KIND + 2);
                put_range(out, range);
            }
            Self::Range { range, bytes } => {
                out.put_u8(FIRST_KIND + 3);
                put_range(out, range);
                put_optional(out, bytes.as_ref());
            }
            Self::AskEntries { wanted } => {
                out.put_u8(FIRST_KIND + 4);
                put_places(out, wanted);
            }
            Self::Entries { commit, committed, entries, first_index } => {
                out.put_u8(FIRST_KIND + 5);
                out.put_u64_le(*commit);
                out.put_u64_le(*first_index);
                put_places(out, committed);
                out.put_u32_le(entries.len() as u32);
                for entry in entries {
                    out.put_u64_le(entry.term);
                    out.put_u64_le(entry.index);
                    out.put_u8(entry.kind as u8);
                    put_bytes(out, &entry.payload);
                }
            }
            Self::AskTopic { topic_id, partitions, data_groups } => {
                out.put_u8(FIRST_KIND + 6);
                out.put_u64_le(*topic_id);
                out.put_u32_le(*partitions);
                out.put_u32_le(*data_groups);
            }
            Self::Topic { topic_id, complete, gone } => {
                out.put_u8(FIRST_KIND + 7);
                out.put_u64_le(*topic_id);
                out.put_u8(u8::from(*complete));
                out.put_u8(u8::from(*gone));
            }
        }
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &Bytes) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

fn put_optional(out: &mut BytesMut, bytes: Option<&Bytes>) {
    out.put_u8(u8::from(bytes.is_some()));
    if let Some(bytes) = bytes {
        put_bytes(out, bytes);
    }
}

fn put_places(out: &mut BytesMut, places: &[(Index, Term)]) {
    out.put_u32_le(places.len() as u32);
    for (index, term) in places {
        out.put_u64_le(*index);
        out.put_u64_le(*term);
    }
}

fn put_range(out: &mut BytesMut, range: &Range) {
    match range.part {
        Part::State { checkpoint, position } => {
            out.put_u8(0);
            out.put_u64_le(checkpoint);
            out.put_u64_le(position);
        }
        Part::Records { key, offset } => {
            out.put_u8(1);
            out.put_u64_le(key.topic_id);
            out.put_u32_le(key.partition);
            out.put_u64_le(offset);
        }
    }
    out.put_u32_le(range.max_bytes);
}

/// The fields of a message of this kind.
pub(crate) fn decode(kind: u8, body: &mut Bytes) -> Result<TransferBody, WireError> {
    Ok(match kind - FIRST_KIND {
        0 => TransferBody::AskState,
        1 => TransferBody::State { offer: if bool_of(body, "presence")? { Some(take_offer(body)?) } else { None } },
        2 => TransferBody::AskRange(take_range(body)?),
        3 => TransferBody::Range { range: take_range(body)?, bytes: take_optional(body)? },
        4 => TransferBody::AskEntries { wanted: take_places(body)? },
        5 => {
            let commit = u64_of(body, "commit index")?;
            let first_index = u64_of(body, "first index")?;
            let committed = take_places(body)?;
            let count = count_of(body)?;
            let entries = (0..count).map(|_| take_entry(body)).collect::<Result<_, _>>()?;
            TransferBody::Entries { commit, committed, entries, first_index }
        }
        6 => TransferBody::AskTopic {
            topic_id: u64_of(body, "topic")?,
            partitions: u32_of(body, "partitions")?,
            data_groups: u32_of(body, "data groups")?,
        },
        7 => TransferBody::Topic {
            topic_id: u64_of(body, "topic")?,
            complete: bool_of(body, "complete")?,
            gone: bool_of(body, "gone")?,
        },
        _ => return Err(WireError::Unknown { field: "message kind", value: kind.into() }),
    })
}

fn take_entry(body: &mut Bytes) -> Result<Entry, WireError> {
    let (term, index) = (u64_of(body, "entry term")?, u64_of(body, "entry index")?);
    let kind = u8_of(body, "entry kind")?;
    let kind = EntryKind::try_from(kind).map_err(|_| WireError::Unknown { field: "entry kind", value: kind.into() })?;
    Ok(Entry { term, index, kind, payload: take_bytes(body)? })
}

fn take_bytes(body: &mut Bytes) -> Result<Bytes, WireError> {
    let len = u32_of(body, "length")? as usize;
    if len > body.len() {
        return Err(WireError::Truncated("bytes"));
    }
    Ok(body.split_to(len))
}

fn take_optional(body: &mut Bytes) -> Result<Option<Bytes>, WireError> {
    if bool_of(body, "presence")? { take_bytes(body).map(Some) } else { Ok(None) }
}

fn count_of(body: &mut Bytes) -> Result<usize, WireError> {
    let count = u32_of(body, "count")? as usize;
    if count > MAX_ENTRIES {
        return Err(WireError::Unknown { field: "count", value: count as u64 });
    }
    Ok(count)
}

fn take_places(body: &mut Bytes) -> Result<Vec<(Index, Term)>, WireError> {
    let count = count_of(body)?;
    (0..count).map(|_| Ok((u64_of(body, "index")?, u64_of(body, "term")?))).collect()
}

fn take_offer(body: &mut Bytes) -> Result<Offer, WireError> {
    let mut number = |what| u64_of(body, what);
    let (checkpoint, applied_index) = (number("checkpoint")?, number("applied index")?);
    let (applied_term, state_len) = (number("applied term")?, number("state length")?);
    Ok(Offer { checkpoint, applied_index, applied_term, state_len, configuration: take_bytes(body)? })
}

fn take_range(body: &mut Bytes) -> Result<Range, WireError> {
    let part = match u8_of(body, "part")? {
        0 => Part::State { checkpoint: u64_of(body, "checkpoint")?, position: u64_of(body, "position")? },
        1 => Part::Records {
            key: PartitionKey { topic_id: u64_of(body, "topic id")?, partition: u32_of(body, "partition")? },
            offset: u64_of(body, "offset")?,
        },
        value => return Err(WireError::Unknown { field: "part", value: value.into() }),
    };
    let max_bytes = u32_of(body, "range length")?;
    if max_bytes > MAX_RANGE {
        return Err(WireError::Unknown { field: "range length", value: max_bytes.into() });
    }
    Ok(Range { part, max_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{PeerMessage, put_message, take_message};

    #[test]
    fn every_transfer_survives_the_wire_and_no_cut_one_does() {
        let key = PartitionKey { topic_id: 5, partition: 6 };
        let file = Range { part: Part::Records { key, offset: 7 }, max_bytes: MAX_RANGE };
        let state = Range { part: Part::State { checkpoint: 3, position: 0 }, max_bytes: 9 };
        let configuration = Bytes::from_static(b"members");
        let offer = Offer { checkpoint: 3, applied_index: 4, applied_term: 2, configuration, state_len: 9 };
        let entry = Entry { term: 4, index: 8, kind: EntryKind::Normal, payload: Bytes::from_static(b"payload") };
        let bodies = [
            TransferBody::AskState,
            TransferBody::State { offer: None },
            TransferBody::State { offer: Some(offer) },
            TransferBody::AskRange(file),
            TransferBody::Range { range: state, bytes: None },
            TransferBody::Range { range: file, bytes: Some(Bytes::from_static(b"bytes")) },
            TransferBody::AskEntries { wanted: vec![(8, 4), (9, 4)] },
            TransferBody::Entries { commit: 9, committed: vec![(9, 5)], entries: vec![entry], first_index: 2 },
            TransferBody::AskTopic { topic_id: 7, partitions: 3, data_groups: 2 },
            TransferBody::Topic { topic_id: 7, complete: true, gone: false },
        ];
        for body in bodies {
            let sent = Transfer { from: NodeId(1), to: NodeId(2), group: GroupId(3), body };
            let sent = PeerMessage::Transfer(sent);
            let mut out = BytesMut::new();
            put_message(&mut out, &sent);
            let bytes = out.freeze();
            assert_eq!(take_message(&mut bytes.clone(), NodeId(2)), Ok(sent));
            for len in 0..bytes.len() {
                assert!(take_message(&mut bytes.slice(..len), NodeId(2)).is_err(), "cut to {len} bytes");
            }
        }
    }
}
