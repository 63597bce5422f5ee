//! What clients ask: the structs of requests. Fields are on the wire in the order written.

use bytes::{Bytes, BytesMut};

use crate::primitives::{DecodeError, Reader, Wire, wire_struct};

wire_struct! {
    /// The first request on every connection.
    pub struct HelloRequest {
        /// The oldest protocol version that the client speaks.
        pub min_version: u8,
        /// The newest protocol version that the client speaks.
        pub max_version: u8,
        /// Who this is, for logs and metrics of the broker.
        pub client_name: String,
        /// Optional features that the client can use, one bit each: 1 is trace contexts.
        pub features: u64,
        /// Credentials; empty where the broker asks for none.
        pub auth: Bytes,
    }
}

wire_struct! {
    /// Asks who leads what.
    pub struct MetadataRequest {
        /// The topics of interest; `None` for all.
        pub topics: Option<Vec<String>>,
    }
}

wire_struct! {
    /// How a topic keeps its records. `None` leaves a setting to the broker's default.
    pub struct TopicOptions {
        /// How long records are kept, in milliseconds.
        pub max_age_ms: Option<u64>,
        /// How many bytes a partition keeps.
        pub max_bytes: Option<u64>,
        /// How long a segment grows, in bytes; records are deleted by whole segments.
        pub segment_bytes: Option<u64>,
    }
}

/// What is to become of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberChange {
    /// It joins the cluster.
    #[default]
    Add = 0,
    /// It leaves the cluster.
    Remove = 1,
    /// It will come back with an empty disk, as a new member under its old id.
    Renew = 2,
    /// It will not come, or not come to vote: what its coming has begun ends.
    Forget = 3,
}

impl Wire for MemberChange {
    const MIN_LEN: usize = 1;

    fn encode(&self, out: &mut BytesMut) {
        (*self as u8).encode(out);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(reader)? {
            0 => Ok(MemberChange::Add),
            1 => Ok(MemberChange::Remove),
            2 => Ok(MemberChange::Renew),
            3 => Ok(MemberChange::Forget),
            value => Err(DecodeError::InvalidValue { what: "change of members", value: u64::from(value) }),
        }
    }
}

wire_struct! {
    /// Changes who belongs to the cluster. Asking for what is so already changes nothing.
    pub struct ChangeMembersRequest {
        /// What is to become of the node.
        pub change: MemberChange,
        /// The node's id.
        pub node: u64,
        /// How clients will reach it, as `host:port`; empty unless it joins.
        pub client_address: String,
        /// How other nodes will reach it, as `host:port`; empty unless it joins.
        pub peer_address: String,
        /// Where its metrics and health will be, as `host:port`; empty unless it joins.
        pub http_address: String,
        /// The node that leaves once this one has taken its place.
        pub replaces: Option<u64>,
        /// How long to wait for the decision, in milliseconds.
        pub timeout_ms: u32,
    }
}

wire_struct! {
    /// Raises the cluster's format. Asking for the one that it has changes nothing.
    pub struct RaiseFormatRequest {
        /// The format that the cluster is to have; see [`FormatsResponse`](super::FormatsResponse).
        pub format: u32,
        /// How long to wait for the decision, in milliseconds.
        pub timeout_ms: u32,
    }
}

wire_struct! {
    /// Creates a topic.
    pub struct CreateTopicRequest {
        /// The name; see [`names`](crate::names).
        pub name: String,
        /// How many partitions; at least 1.
        pub partitions: u32,
        /// How the topic keeps its records.
        pub options: TopicOptions,
        /// How long to wait for the topic to exist, in milliseconds.
        pub timeout_ms: u32,
    }
}

wire_struct! {
    /// Deletes a topic and its records.
    pub struct DeleteTopicRequest {
        /// The name.
        pub name: String,
        /// How long to wait for the topic to be gone, in milliseconds.
        pub timeout_ms: u32,
    }
}

wire_struct! {
    /// Describes one topic.
    pub struct DescribeTopicRequest {
        /// The name.
        pub name: String,
    }
}

/// When a produce request is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// When the leader has put the batch into its log, in memory; it may lose it.
    None = 0,
    /// When the leader has the batch on stable storage; a lost leader may lose it.
    Leader = 1,
    /// When a majority has the batch on stable storage.
    #[default]
    Quorum = 2,
}

impl Wire for Acks {
    const MIN_LEN: usize = 1;

    fn encode(&self, out: &mut BytesMut) {
        (*self as u8).encode(out);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(reader)? {
            0 => Ok(Acks::None),
            1 => Ok(Acks::Leader),
            2 => Ok(Acks::Quorum),
            value => Err(DecodeError::InvalidValue { what: "acks", value: u64::from(value) }),
        }
    }
}

wire_struct! {
    /// Appends one record batch to a partition.
    pub struct ProduceRequest {
        /// When to answer.
        pub acks: Acks,
        /// How long the broker may take, in milliseconds.
        pub timeout_ms: u32,
        /// The topic.
        pub topic: String,
        /// The topic's id, to notice that it was deleted and created anew; 0 for no check.
        pub topic_id: u64,
        /// The partition.
        pub partition: u32,
        /// Exactly one record batch; see [`batch`](crate::batch).
        pub batch: Bytes,
    }
}

impl ProduceRequest {
    /// The batch in a request's body, without a look at the rest; `None` if the body is none of a produce request.
    pub fn batch_in(body: &[u8]) -> Option<&[u8]> {
        /// The acks and the time.
        const BEFORE: usize = 1 + 4;
        /// The topic's id and the partition.
        const BEHIND: usize = 8 + 4;
        let (name_len, rest) = body.get(BEFORE..)?.split_first_chunk()?;
        let rest = rest.get(usize::from(u16::from_le_bytes(*name_len)) + BEHIND..)?;
        let (batch_len, batch) = rest.split_first_chunk()?;
        (batch.len() == u32::from_le_bytes(*batch_len) as usize).then_some(batch)
    }
}

wire_struct! {
    /// From where to read one partition.
    pub struct FetchPartition {
        /// The topic.
        pub topic: String,
        /// The topic's id; 0 for no check.
        pub topic_id: u64,
        /// The partition.
        pub partition: u32,
        /// The offset of the first record wanted.
        pub offset: u64,
        /// How many bytes of records to return at most. A first batch that is longer is returned all the same.
        pub max_bytes: u32,
    }
}

wire_struct! {
    /// Reads record batches from several partitions.
    pub struct FetchRequest {
        /// How long to wait for `min_bytes`, in milliseconds.
        pub max_wait_ms: u32,
        /// How many bytes of records must be there before the request is answered early.
        pub min_bytes: u32,
        /// How many bytes of records to return at most, over all partitions. A first batch that is longer is
        /// returned all the same.
        pub max_bytes: u32,
        /// The partitions; earlier ones are served first.
        pub partitions: Vec<FetchPartition>,
    }
}

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first record that is still kept.
    Earliest,
    /// The one that the next record will get: the high watermark.
    #[default]
    Latest,
    /// The first record whose timestamp, in milliseconds since 1970, is this or later; the latest offset if there is
    /// none.
    Timestamp(i64),
}

impl Wire for OffsetSpec {
    const MIN_LEN: usize = 1;

    fn encode(&self, out: &mut BytesMut) {
        match self {
            OffsetSpec::Earliest => 0u8.encode(out),
            OffsetSpec::Latest => 1u8.encode(out),
            OffsetSpec::Timestamp(timestamp_ms) => {
                2u8.encode(out);
                timestamp_ms.encode(out);
            }
        }
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        match u8::decode(reader)? {
            0 => Ok(OffsetSpec::Earliest),
            1 => Ok(OffsetSpec::Latest),
            2 => i64::decode(reader).map(OffsetSpec::Timestamp),
            value => Err(DecodeError::InvalidValue { what: "offset spec", value: u64::from(value) }),
        }
    }
}

wire_struct! {
    /// Which offset of which partition is asked for.
    pub struct ListOffsetsPartition {
        /// The topic.
        pub topic: String,
        /// The topic's id; 0 for no check.
        pub topic_id: u64,
        /// The partition.
        pub partition: u32,
        /// Which offset.
        pub spec: OffsetSpec,
    }
}

wire_struct! {
    /// Asks for offsets by place or time.
    pub struct ListOffsetsRequest {
        /// The partitions.
        pub partitions: Vec<ListOffsetsPartition>,
    }
}
