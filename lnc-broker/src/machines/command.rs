//! What a Raft entry of LANCE holds: the leader's clock and a list of commands for the group's state machine.
//!
//! Payload: `append_ms u64 | count u32`, then per command `kind u8 | length u32 | fields`, all little-endian. Everything
//! that could differ between replicas (time, settings) is in the command; everything else follows from the order of the
//! log, so that replicas that applied the same entries are identical.

use crate::machines::members::{Addresses, Member, get_addresses, get_members, is_node, put_addresses, put_member};
use crate::machines::partitions::ProducerLimits;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_log::segment::PartitionKey;
use lnc_protocol::message::TopicOptions;
use lnc_protocol::names;
use lnc_raft::{Entry, EntryKind, NodeId};
use lnc_replication::formation::Formats;
use thiserror::Error;

/// Bytes before the first command.
const HEADER: usize = 12;

/// Bytes before the fields of a command.
const COMMAND_HEADER: usize = 5;

/// The kind of [`Command::Append`].
const APPEND: u8 = 10;

/// Bytes of a partition's key.
const KEY_BYTES: usize = 12;

/// More partitions than a topic may be configured to have, and more data groups than a cluster has.
const MAX_PARTITIONS: u32 = 1 << 20;

/// One command. `Append` is by far the most frequent: its batch is a slice of the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Meta group: make a topic, or find that it exists with the same settings.
    CreateTopic {
        /// A valid topic name.
        name: String,
        /// Number of partitions.
        partitions: u32,
        /// Number of data groups over which they are placed.
        data_groups: u32,
        /// Settings.
        options: TopicOptions,
    },
    /// Meta group: remove a topic.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Meta group: hand out a producer id.
    InitProducer,
    /// Meta group: note who founded the cluster. Nothing happens if it is known.
    FoundMembers {
        /// The founders.
        founders: Vec<Member>,
    },
    /// Meta group: expect a new node.
    AddMember {
        /// Its number.
        node: u64,
        /// How it will be reached.
        addresses: Addresses,
        /// The node whose place it takes.
        replaces: Option<u64>,
    },
    /// Meta group: a node has come with this fresh data directory.
    AdmitMember {
        /// Its number.
        node: u64,
        /// The incarnation of its data directory.
        incarnation: u64,
    },
    /// Meta group: expect a node with an empty disk.
    RenewMember {
        /// Its number.
        node: u64,
    },
    /// Meta group: let a node go.
    RemoveMember {
        /// Its number.
        node: u64,
    },
    /// Meta group: no group names this former member any more.
    ForgetMember {
        /// Node and generation.
        id: NodeId,
    },
    /// Meta group: from here on, what later formats add may be used. Every member speaks it.
    RaiseFormat {
        /// The format.
        format: u32,
    },
    /// Meta group, since format 3: end what a member has begun that has not come to vote.
    AbandonMember {
        /// Node and generation.
        id: NodeId,
        /// Its former self, if that one is to stay.
        instead: Option<NodeId>,
    },
    /// Data group: append one record batch, as the producer sent it.
    Append {
        /// Where to.
        key: PartitionKey,
        /// A validated record batch.
        batch: Bytes,
    },
    /// Data group: make a partition. Nothing happens if it exists.
    CreatePartition {
        /// Which.
        key: PartitionKey,
        /// Segment size in bytes, if the topic sets one.
        segment_bytes: Option<u64>,
    },
    /// Data group: remove a partition and its data.
    DeletePartition {
        /// Which.
        key: PartitionKey,
    },
    /// Data group: remove all partitions of a topic with their data; none comes back. Since format 3.
    DeleteTopicPartitions {
        /// Its id.
        topic_id: u64,
    },
    /// Data group: records below the offset are gone.
    Trim {
        /// Which partition.
        key: PartitionKey,
        /// The new log start offset.
        log_start_offset: u64,
    },
    /// Data group: the group's time, and what was stamped later, goes back to this one. Nothing happens if it is not
    /// later. Since format 3.
    TurnBack {
        /// Milliseconds since the Unix epoch.
        time_ms: u64,
    },
    /// Data group: how many producers are remembered from here on. Since format 3.
    LimitProducers {
        /// How many.
        limits: ProducerLimits,
    },
}

/// An entry that does not decode. It passed checksums, so it was written by a broker that this one does not understand.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("log entry is not understood at {0}: it was written by a newer version, or is damaged")]
pub struct CommandError(pub &'static str);

/// Collects the commands of one turn into the payload of one entry.
#[derive(Debug, Default)]
pub struct EntryBuilder {
    payload: BytesMut,
    count: u32,
    /// Size of the last entry: about what the next one will need.
    last_bytes: usize,
}

impl EntryBuilder {
    /// Number of commands so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Size of the payload so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.payload.len()
    }

    /// Add a command; returns its position in the entry.
    pub fn push(&mut self, command: &Command) -> u32 {
        if self.payload.is_empty() {
            self.payload.reserve(self.last_bytes);
            self.payload.put_bytes(0, HEADER);
        }
        let start = self.payload.len();
        self.payload.put_bytes(0, COMMAND_HEADER);
        let kind = encode(&mut self.payload, command);
        let len = self.payload.len() - start - COMMAND_HEADER;
        self.payload[start] = kind;
        self.payload[start + 1..start + 5].copy_from_slice(&(len as u32).to_le_bytes());
        self.count += 1;
        self.count - 1
    }

    /// The payload, stamped with the leader's time; the builder is empty again.
    pub fn finish(&mut self, append_ms: u64) -> Bytes {
        if self.payload.is_empty() {
            self.payload.put_bytes(0, HEADER);
        }
        self.payload[..8].copy_from_slice(&append_ms.to_le_bytes());
        self.payload[8..HEADER].copy_from_slice(&self.count.to_le_bytes());
        self.count = 0;
        self.last_bytes = self.payload.len();
        self.payload.split().freeze()
    }
}

fn encode(out: &mut BytesMut, command: &Command) -> u8 {
    let put_key = |out: &mut BytesMut, key: &PartitionKey| {
        out.put_u64_le(key.topic_id);
        out.put_u32_le(key.partition);
    };
    match command {
        Command::CreateTopic { name, partitions, data_groups, options } => {
            put_string(out, name);
            out.put_u32_le(*partitions);
            out.put_u32_le(*data_groups);
            put_options(out, options);
            1
        }
        Command::DeleteTopic { name } => {
            put_string(out, name);
            2
        }
        Command::InitProducer => 3,
        Command::FoundMembers { founders } => {
            out.put_u32_le(founders.len() as u32);
            founders.iter().for_each(|member| put_member(out, member));
            4
        }
        Command::AddMember { node, addresses, replaces } => {
            out.put_u64_le(*node);
            put_addresses(out, addresses);
            put_optional(out, *replaces);
            5
        }
        Command::AdmitMember { node, incarnation } => {
            out.put_u64_le(*node);
            out.put_u64_le(*incarnation);
            6
        }
        Command::RenewMember { node } => {
            out.put_u64_le(*node);
            7
        }
        Command::RemoveMember { node } => {
            out.put_u64_le(*node);
            8
        }
        Command::ForgetMember { id } => {
            out.put_u64_le(id.0);
            9
        }
        Command::Append { key, batch } => {
            put_key(out, key);
            out.put_slice(batch);
            APPEND
        }
        Command::CreatePartition { key, segment_bytes } => {
            put_key(out, key);
            put_optional(out, *segment_bytes);
            11
        }
        Command::DeletePartition { key } => {
            put_key(out, key);
            12
        }
        Command::Trim { key, log_start_offset } => {
            put_key(out, key);
            out.put_u64_le(*log_start_offset);
            13
        }
        Command::RaiseFormat { format } => {
            out.put_u32_le(*format);
            14
        }
        Command::TurnBack { time_ms } => {
            out.put_u64_le(*time_ms);
            20
        }
        Command::DeleteTopicPartitions { topic_id } => {
            out.put_u64_le(*topic_id);
            21
        }
        Command::LimitProducers { limits } => {
            out.put_u32_le(limits.partition);
            out.put_u32_le(limits.group);
            22
        }
        Command::AbandonMember { id, instead } => {
            out.put_u64_le(id.0);
            put_optional(out, instead.map(|former| former.0));
            15
        }
    }
}

/// The commands of an entry, in order.
#[derive(Clone)]
pub struct Commands {
    /// The time when the entry was proposed, as the leader made it out, in milliseconds since the Unix epoch.
    pub append_ms: u64,
    remaining: u32,
    payload: Bytes,
}

impl Commands {
    /// Read an entry's payload.
    pub fn parse(mut payload: Bytes) -> Result<Self, CommandError> {
        let append_ms = payload.try_get_u64_le().map_err(|_| CommandError("its header"))?;
        let remaining = payload.try_get_u32_le().map_err(|_| CommandError("its header"))?;
        Ok(Self { append_ms, remaining, payload })
    }

    fn take(&mut self) -> Result<Command, CommandError> {
        let (kind, len) = self.take_header()?;
        Command::decode(kind, self.payload.split_to(len))
    }

    /// The next command's kind and the length of its fields, which are there.
    fn take_header(&mut self) -> Result<(u8, usize), CommandError> {
        let kind = self.payload.try_get_u8().map_err(|_| CommandError("a command's kind"))?;
        let len = self.payload.try_get_u32_le().map_err(|_| CommandError("a command's length"))? as usize;
        if len > self.payload.len() {
            return Err(CommandError("a command's length"));
        }
        Ok((kind, len))
    }
}

/// Whether every replica can apply an entry: one that cannot would end each of them, and again after each restart, so
/// that it must not get into a log.
pub fn validate(payload: &Bytes) -> Result<(), CommandError> {
    let mut rest = Commands::parse(payload.clone())?;
    while rest.remaining > 0 {
        rest.remaining -= 1;
        let (kind, len) = rest.take_header()?;
        // By far the most frequent: a batch that is damaged is refused when it is applied.
        if kind == APPEND && len >= KEY_BYTES {
            rest.payload.advance(len);
        } else {
            Command::decode(kind, rest.payload.split_to(len))?.check()?;
        }
    }
    if rest.payload.is_empty() { Ok(()) } else { Err(CommandError("bytes behind the last command")) }
}

impl Command {
    fn decode(kind: u8, mut fields: Bytes) -> Result<Self, CommandError> {
        let f = &mut fields;
        let command = match kind {
            1 => Command::CreateTopic {
                name: get_string(f)?,
                partitions: get_u32(f)?,
                data_groups: get_u32(f)?,
                options: get_options(f)?,
            },
            2 => Command::DeleteTopic { name: get_string(f)? },
            3 => Command::InitProducer,
            4 => Command::FoundMembers { founders: get_members(f)? },
            5 => Command::AddMember { node: get_u64(f)?, addresses: get_addresses(f)?, replaces: get_optional(f)? },
            6 => Command::AdmitMember { node: get_u64(f)?, incarnation: get_u64(f)? },
            7 => Command::RenewMember { node: get_u64(f)? },
            8 => Command::RemoveMember { node: get_u64(f)? },
            9 => Command::ForgetMember { id: NodeId(get_u64(f)?) },
            APPEND => Command::Append { key: get_key(f)?, batch: f.split_to(f.len()) },
            11 => Command::CreatePartition { key: get_key(f)?, segment_bytes: get_optional(f)? },
            12 => Command::DeletePartition { key: get_key(f)? },
            13 => Command::Trim { key: get_key(f)?, log_start_offset: get_u64(f)? },
            14 => Command::RaiseFormat { format: get_u32(f)? },
            20 => Command::TurnBack { time_ms: get_u64(f)? },
            21 => Command::DeleteTopicPartitions { topic_id: get_u64(f)? },
            22 => Command::LimitProducers { limits: ProducerLimits { partition: get_u32(f)?, group: get_u32(f)? } },
            15 => Command::AbandonMember { id: NodeId(get_u64(f)?), instead: get_optional(f)?.map(NodeId) },
            _ => return Err(CommandError("a command of unknown kind")),
        };
        if fields.is_empty() { Ok(command) } else { Err(CommandError("bytes behind a command's fields")) }
    }

    /// Whether its numbers and names are such that state machines can count on them.
    fn check(&self) -> Result<(), CommandError> {
        let bad = |fine: bool, what| if fine { Ok(()) } else { Err(CommandError(what)) };
        match self {
            Self::CreateTopic { name, partitions, data_groups, .. } => check_topic(name, *partitions, *data_groups),
            Self::AddMember { node, .. } | Self::AdmitMember { node, incarnation: 1.. } => {
                bad(is_node(*node), "a node's number")
            }
            Self::AdmitMember { .. } => bad(false, "an incarnation"),
            Self::LimitProducers { limits } => bad(limits.partition > 0 && limits.group > 0, "a number of producers"),
            Self::RaiseFormat { format } => bad(*format <= Formats::BUILD.newest, "a format"),
            _ => Ok(()),
        }
    }
}

/// Whether a topic can be such, in an entry and in a checkpoint.
pub(crate) fn check_topic(name: &str, partitions: u32, data_groups: u32) -> Result<(), CommandError> {
    if names::validate(name).is_err() {
        return Err(CommandError("a topic's name"));
    }
    match (1..=MAX_PARTITIONS).contains(&partitions) && data_groups <= MAX_PARTITIONS {
        true => Ok(()),
        false => Err(CommandError("a topic's partitions")),
    }
}

/// Whether an entry has record batches in it; one that does not decode is taken to.
pub fn holds_records(payload: &Bytes) -> bool {
    let is_other = |command: Result<Command, CommandError>| command.is_ok_and(|c| !matches!(c, Command::Append { .. }));
    Commands::parse(payload.clone()).map_or(true, |mut commands| !commands.all(is_other))
}

/// Below which offsets of these partitions entries remove everything.
pub(crate) fn removed_by<'a>(
    entries: impl Iterator<Item = &'a Entry>,
    partitions: impl Iterator<Item = PartitionKey> + Clone,
) -> Vec<(PartitionKey, u64)> {
    let normal = entries.filter(|entry| entry.kind == EntryKind::Normal);
    let commands = normal.filter_map(|entry| Commands::parse(entry.payload.clone()).ok()).flatten().flatten();
    let removed = commands.flat_map(|command| match command {
        Command::DeletePartition { key } => vec![(key, u64::MAX)],
        Command::DeleteTopicPartitions { topic_id } => {
            partitions.clone().filter(|key| key.topic_id == topic_id).map(|key| (key, u64::MAX)).collect()
        }
        Command::Trim { key, log_start_offset } => vec![(key, log_start_offset)],
        _ => Vec::new(),
    });
    removed.collect()
}

impl Iterator for Commands {
    type Item = Result<Command, CommandError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            return (!self.payload.is_empty()).then(|| {
                self.payload.clear();
                Err(CommandError("bytes behind the last command"))
            });
        }
        self.remaining -= 1;
        let command = self.take();
        if command.is_err() {
            self.remaining = 0;
            self.payload.clear();
        }
        Some(command)
    }
}

// The primitives below also serve the state of the state machines in checkpoints.

pub(crate) fn put_string(out: &mut BytesMut, text: &str) {
    out.put_u16_le(text.len() as u16);
    out.put_slice(text.as_bytes());
}

pub(crate) fn put_optional(out: &mut BytesMut, value: Option<u64>) {
    out.put_u8(u8::from(value.is_some()));
    out.put_u64_le(value.unwrap_or_default());
}

pub(crate) fn put_options(out: &mut BytesMut, options: &TopicOptions) {
    put_optional(out, options.max_age_ms);
    put_optional(out, options.max_bytes);
    put_optional(out, options.segment_bytes);
}

pub(crate) fn get_u32(from: &mut Bytes) -> Result<u32, CommandError> {
    from.try_get_u32_le().map_err(|_| CommandError("a number"))
}

pub(crate) fn get_u64(from: &mut Bytes) -> Result<u64, CommandError> {
    from.try_get_u64_le().map_err(|_| CommandError("a number"))
}

pub(crate) fn get_key(from: &mut Bytes) -> Result<PartitionKey, CommandError> {
    Ok(PartitionKey { topic_id: get_u64(from)?, partition: get_u32(from)? })
}

pub(crate) fn get_string(from: &mut Bytes) -> Result<String, CommandError> {
    let len = from.try_get_u16_le().map_err(|_| CommandError("a text"))? as usize;
    if len > from.len() {
        return Err(CommandError("a text"));
    }
    String::from_utf8(from.split_to(len).to_vec()).map_err(|_| CommandError("a text"))
}

pub(crate) fn get_optional(from: &mut Bytes) -> Result<Option<u64>, CommandError> {
    let present = from.try_get_u8().map_err(|_| CommandError("an optional number"))?;
    let value = get_u64(from)?;
    match present {
        0 => Ok(None),
        1 => Ok(Some(value)),
        _ => Err(CommandError("an optional number")),
    }
}

pub(crate) fn get_options(from: &mut Bytes) -> Result<TopicOptions, CommandError> {
    Ok(TopicOptions {
        max_age_ms: get_optional(from)?,
        max_bytes: get_optional(from)?,
        segment_bytes: get_optional(from)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Command> {
        let key = PartitionKey { topic_id: 7, partition: 2 };
        let options = TopicOptions { max_age_ms: Some(5), max_bytes: None, segment_bytes: Some(1 << 20) };
        let addresses = Addresses { client: "h:1".into(), peer: "h:2".into(), http: "h:3".into() };
        let founder = Member { id: NodeId(1), incarnation: 7, addresses: addresses.clone(), replaces: None };
        vec![
            Command::CreateTopic { name: "words".into(), partitions: 3, data_groups: 3, options },
            Command::DeleteTopic { name: "words".into() },
            Command::InitProducer,
            Command::FoundMembers { founders: vec![founder] },
            Command::AddMember { node: 4, addresses, replaces: Some(2) },
            Command::AdmitMember { node: 4, incarnation: 5 },
            Command::RenewMember { node: 4 },
            Command::RemoveMember { node: 4 },
            Command::ForgetMember { id: NodeId::new(4, 1) },
            Command::Append { key, batch: Bytes::from_static(b"batch") },
            Command::CreatePartition { key, segment_bytes: None },
            Command::DeletePartition { key },
            Command::Trim { key, log_start_offset: 9 },
            Command::RaiseFormat { format: 2 },
            Command::TurnBack { time_ms: 1_700_000_000_000 },
            Command::LimitProducers { limits: ProducerLimits::DEFAULT },
            Command::DeleteTopicPartitions { topic_id: 7 },
            Command::AbandonMember { id: NodeId::new(4, 1), instead: Some(NodeId(4)) },
        ]
    }

    #[test]
    fn commands_survive_an_entry() {
        let mut builder = EntryBuilder::default();
        for (position, command) in samples().iter().enumerate() {
            assert_eq!(builder.push(command) as usize, position);
        }
        let payload = builder.finish(42);
        assert_eq!(builder.count(), 0);
        let commands = Commands::parse(payload).unwrap();
        assert_eq!(commands.append_ms, 42);
        assert_eq!(commands.collect::<Result<Vec<_>, _>>().unwrap(), samples());
    }

    #[test]
    fn a_cut_entry_is_an_error_and_never_a_panic() {
        let mut builder = EntryBuilder::default();
        samples().iter().for_each(|command| {
            builder.push(command);
        });
        let payload = builder.finish(42);
        assert_eq!(validate(&payload), Ok(()));
        for len in 0..payload.len() {
            assert!(validate(&payload.slice(..len)).is_err(), "cut to {len}");
            let parsed = Commands::parse(payload.slice(..len)).and_then(|c| c.collect::<Result<Vec<_>, _>>());
            assert!(parsed.is_err(), "cut to {len}");
        }
    }

    #[test]
    fn what_would_end_its_replicas_is_no_entry() {
        let topic = |name: &str, partitions| Command::CreateTopic {
            name: name.into(),
            partitions,
            data_groups: 1,
            options: TopicOptions::default(),
        };
        let cases = [
            topic("t", 0),
            topic("t", u32::MAX),
            topic("not a name", 1),
            Command::AddMember { node: 1 << 32 | 1, addresses: Addresses::default(), replaces: None },
            Command::AdmitMember { node: 0, incarnation: 1 },
            Command::AdmitMember { node: 1, incarnation: 0 },
            Command::RaiseFormat { format: u32::MAX },
        ];
        for command in cases {
            let mut builder = EntryBuilder::default();
            builder.push(&command);
            assert!(validate(&builder.finish(1)).is_err(), "{command:?}");
        }
        let noise = Bytes::from_static(b"\0\0\0\0\0\0\0\0\x01\0\0\0\xc8\0\0\0\0");
        assert_eq!(validate(&noise), Err(CommandError("a command of unknown kind")));
    }
}
