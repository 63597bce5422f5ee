//! What brokers answer: the structs of responses. Fields are on the wire in the order written.

use bytes::{BufMut, Bytes, BytesMut};

use super::request::TopicOptions;
use crate::error::ErrorCode;
use crate::primitives::{DecodeError, Reader, Wire, put_len, wire_struct};

wire_struct! {
    /// What a connection may do from here on.
    pub struct HelloResponse {
        /// The protocol version of this connection.
        pub version: u8,
        /// The features that both sides have, one bit each: 1 is trace contexts.
        pub features: u64,
        /// The cluster's id.
        pub cluster_id: u128,
        /// The node that answers.
        pub node_id: u64,
        /// Its software and version, for logs.
        pub server_name: String,
        /// The longest frame body that the broker accepts, in bytes.
        pub max_frame_bytes: u32,
        /// The longest record batch that the broker accepts, in bytes.
        pub max_batch_bytes: u32,
    }
}

wire_struct! {
    /// Which formats there are. A format says what nodes store and what they send to each other; later versions speak
    /// later ones.
    pub struct FormatsResponse {
        /// The format of the cluster, as far as the answering node knows: no node uses a later one.
        pub format: u32,
        /// The oldest format that the answering node's version speaks.
        pub oldest: u32,
        /// The newest format that the answering node's version speaks.
        pub newest: u32,
    }
}

wire_struct! {
    /// A node, as clients need to know it.
    pub struct NodeInfo {
        /// The node's id.
        pub id: u64,
        /// Its address for clients, as `host:port`.
        pub client_address: String,
        /// Whether the answering node hears from it.
        pub alive: bool,
    }
}

wire_struct! {
    /// Who leads a partition.
    pub struct PartitionMetadata {
        /// The partition.
        pub partition: u32,
        /// The Raft group that holds it.
        pub group: u32,
        /// The node that leads the group, if known.
        pub leader: Option<u64>,
        /// The leader's term; of two answers the one with the higher term is newer.
        pub leader_term: u64,
    }
}

wire_struct! {
    /// A topic and who leads its partitions.
    pub struct TopicMetadata {
        /// The name.
        pub name: String,
        /// The id; 0 if there is an error.
        pub topic_id: u64,
        /// Why nothing is known about this topic, or "no error".
        pub error: ErrorCode,
        /// The partitions, in order.
        pub partitions: Vec<PartitionMetadata>,
    }
}

wire_struct! {
    /// Nodes, topics, and who leads what.
    pub struct MetadataResponse {
        /// The cluster's id.
        pub cluster_id: u128,
        /// The nodes, in the order of ids.
        pub nodes: Vec<NodeInfo>,
        /// The topics that were asked for, or all.
        pub topics: Vec<TopicMetadata>,
    }
}

wire_struct! {
    /// A node, as operators need to know it.
    pub struct NodeStatus {
        /// The node's id.
        pub id: u64,
        /// Its address for clients, as `host:port`.
        pub client_address: String,
        /// Its address for other nodes, as `host:port`.
        pub peer_address: String,
        /// Its address for metrics and health, as `host:port`.
        pub http_address: String,
        /// Whether the answering node has a connection to it.
        pub connected: bool,
        /// Which life of the node this is: a wiped disk starts a new one.
        pub incarnation: u64,
        /// What the node is doing: of the one that answers `ready`, or why it is not; of others `connected` or `not connected`.
        pub state: String,
        /// The member that the node is: its id in the low 32 bits, in the high 32 how often it has lost its disk.
        pub member: u64,
        /// What it is to the cluster: `member`, `joining`, `leaving` or `expected`.
        pub membership: String,
    }
}

/// The state of a follower that has not told its leader yet what it has.
pub const UNKNOWN_PROGRESS: &str = "unknown";

wire_struct! {
    /// How far a follower is, as its leader sees it.
    pub struct PeerProgress {
        /// The follower, as a member.
        pub member: u64,
        /// The last index known to be the same on both.
        pub match_index: u64,
        /// The index to be sent next.
        pub next_index: u64,
        /// `probe`, `replicate` or `snapshot`; `unknown` until it has told this leader what it has.
        pub state: String,
        /// Messages sent and not answered.
        pub in_flight: u32,
        /// How many entries it is behind the leader.
        pub lag: u64,
    }
}

impl PeerProgress {
    /// How many entries it is behind the leader, if the leader can tell.
    pub fn known_lag(&self) -> Option<u64> {
        (self.state != UNKNOWN_PROGRESS).then_some(self.lag)
    }
}

wire_struct! {
    /// A Raft group, as the answering node sees it.
    pub struct GroupStatus {
        /// The group.
        pub group: u32,
        /// `leader`, `follower`, `candidate` or `learner`.
        pub role: String,
        /// The node that leads, if known.
        pub leader: Option<u64>,
        /// The current term.
        pub term: u64,
        /// The last index known to be on a majority.
        pub commit_index: u64,
        /// The last index that took effect.
        pub applied_index: u64,
        /// The last index on this node's stable storage.
        pub durable_index: u64,
        /// The last index in this node's journal.
        pub last_index: u64,
        /// The first index still in this node's journal.
        pub first_index: u64,
        /// The followers; empty where the answering node does not lead.
        pub peers: Vec<PeerProgress>,
        /// The members that decide.
        pub voters: Vec<u64>,
        /// The members that decided before and must still agree, while a change of the voters is under way.
        pub outgoing: Vec<u64>,
        /// The members that get everything and decide nothing.
        pub learners: Vec<u64>,
        /// What this replica lacks and waits for; empty if nothing.
        pub lacks: String,
    }
}

wire_struct! {
    /// The state of a group on its way to the answering node.
    pub struct TransferStatus {
        /// The group.
        pub group: u32,
        /// The node it comes from.
        pub from: u64,
        /// Bytes that have come.
        pub bytes_done: u64,
        /// Bytes of the whole.
        pub bytes_total: u64,
    }
}

wire_struct! {
    /// The state of nodes and groups, as the answering node sees it.
    pub struct ClusterInfoResponse {
        /// The cluster's id.
        pub cluster_id: u128,
        /// The node that answers.
        pub node_id: u64,
        /// The nodes, in the order of ids.
        pub nodes: Vec<NodeStatus>,
        /// The groups, in order.
        pub groups: Vec<GroupStatus>,
        /// Group states on their way to the answering node.
        pub transfers: Vec<TransferStatus>,
    }
}

wire_struct! {
    /// A partition's place and extent.
    pub struct PartitionDescription {
        /// The partition.
        pub partition: u32,
        /// The Raft group that holds it.
        pub group: u32,
        /// The node that leads the group, if known.
        pub leader: Option<u64>,
        /// The first offset still kept.
        pub log_start_offset: u64,
        /// The offset behind the last committed record.
        pub high_watermark: u64,
        /// The length of the records kept, in bytes.
        pub size_bytes: u64,
    }
}

wire_struct! {
    /// A topic in full.
    pub struct TopicDescription {
        /// The name.
        pub name: String,
        /// The id.
        pub topic_id: u64,
        /// How the topic keeps its records.
        pub options: TopicOptions,
        /// When it was created, in milliseconds since 1970.
        pub created_ms: u64,
        /// The partitions, in order.
        pub partitions: Vec<PartitionDescription>,
    }
}

wire_struct! {
    /// A topic in short.
    pub struct TopicSummary {
        /// The name.
        pub name: String,
        /// The id.
        pub topic_id: u64,
        /// How many partitions it has.
        pub partitions: u32,
        /// How the topic keeps its records.
        pub options: TopicOptions,
    }
}

wire_struct! {
    /// The identity of a producer, for duplicate detection.
    pub struct InitProducerResponse {
        /// The id; not negative.
        pub producer_id: i64,
        /// The epoch to start with.
        pub producer_epoch: i16,
    }
}

wire_struct! {
    /// Where a batch went.
    pub struct ProduceResponse {
        /// The topic's id.
        pub topic_id: u64,
        /// The partition.
        pub partition: u32,
        /// The offset of the batch's first record; `None` if not known at the acks level asked for.
        pub base_offset: Option<u64>,
        /// The first offset still kept.
        pub log_start_offset: u64,
        /// When the leader took this request, in milliseconds since 1970; of a duplicate too.
        pub append_time_ms: u64,
        /// Whether the batch had been appended before, by an earlier attempt; the offsets are those of that time.
        pub duplicate: bool,
    }
}

/// Whole record batches, one behind the other: on the wire one byte string, in a broker the pieces in which they were
/// read. Equal if the bytes are equal.
#[derive(Clone, Debug, Default)]
pub struct Records {
    pieces: Vec<Bytes>,
    len: usize,
}

impl Records {
    /// No records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends whole batches, without copying them.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push(piece);
        }
    }

    /// The length of all pieces in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces in order; none is empty.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// The batches as one byte string; copied only if there are several pieces, which is never so after decoding.
    pub fn into_bytes(mut self) -> Bytes {
        if self.pieces.len() <= 1 { self.pieces.pop().unwrap_or_default() } else { self.pieces.concat().into() }
    }
}

impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.pieces.iter().flatten().eq(other.pieces.iter().flatten())
    }
}

impl Eq for Records {}

impl From<Bytes> for Records {
    fn from(bytes: Bytes) -> Self {
        Self::from_iter([bytes])
    }
}

impl FromIterator<Bytes> for Records {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        let mut records = Self::new();
        pieces.into_iter().for_each(|piece| records.push(piece));
        records
    }
}

impl Wire for Records {
    const MIN_LEN: usize = 4;

    fn encode(&self, out: &mut BytesMut) {
        put_len(out, self.len);
        for piece in &self.pieces {
            out.put_slice(piece);
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Bytes::decode(reader).map(Records::from)
    }
}

wire_struct! {
    /// What a fetch found in one partition.
    pub struct FetchedPartition {
        /// The topic.
        pub topic: String,
        /// The partition.
        pub partition: u32,
        /// Why nothing could be read, or "no error".
        pub error: ErrorCode,
        /// The facts of the error, for a human reader.
        pub message: String,
        /// The first offset still kept.
        pub log_start_offset: u64,
        /// The offset behind the last committed record.
        pub high_watermark: u64,
        /// Whole batches. The first may start before the offset asked for: skip its earlier records.
        pub records: Records,
    }
}

impl FetchedPartition {
    /// Everything before the records.
    pub(super) fn encode_fields(&self, out: &mut BytesMut) {
        self.topic.encode(out);
        self.partition.encode(out);
        self.error.encode(out);
        self.message.encode(out);
        self.log_start_offset.encode(out);
        self.high_watermark.encode(out);
    }
}

wire_struct! {
    /// The offset that was asked for.
    pub struct PartitionOffset {
        /// The topic.
        pub topic: String,
        /// The partition.
        pub partition: u32,
        /// Why there is no answer, or "no error".
        pub error: ErrorCode,
        /// The facts of the error, for a human reader.
        pub message: String,
        /// The offset.
        pub offset: u64,
        /// The timestamp of the record at that offset in milliseconds since 1970; -1 if not known.
        pub timestamp_ms: i64,
    }
}
