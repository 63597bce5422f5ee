//! Messages: what the bodies of frames say.
//!
//! A request body is the fields of its struct in the order written there, in the alphabet of
//! [`primitives`](crate::primitives). A reply body starts with the outcome ([`Reply`]) and, if that is "no error",
//! goes on with the fields of the response struct. The opcode of the frame says which message it is, for requests and
//! replies alike.

mod reply;
mod request;
mod response;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod specification;
#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

use crate::frame::{self, Flags};
use crate::primitives::{DecodeError, Reader, Wire, decode_all};

pub use reply::{ErrorReply, LeaderHint, Reply, decode_reply, encode_reply, encode_reply_pieces};
pub use request::{
    Acks, ChangeMembersRequest, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, FetchPartition,
    FetchRequest, HelloRequest, ListOffsetsPartition, ListOffsetsRequest, MemberChange, MetadataRequest, OffsetSpec,
    ProduceRequest, RaiseFormatRequest, TopicOptions,
};
pub use response::{
    ClusterInfoResponse, FetchedPartition, FormatsResponse, GroupStatus, HelloResponse, InitProducerResponse,
    MetadataResponse, NodeInfo, NodeStatus, PartitionDescription, PartitionMetadata, PartitionOffset, PeerProgress,
    ProduceResponse, Records, TopicDescription, TopicMetadata, TopicSummary, TransferStatus, UNKNOWN_PROGRESS,
};

macro_rules! opcodes {
    ($($(#[$meta:meta])* $name:ident = $number:literal;)*) => {
        /// The kinds of request. The numbers are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Opcode {
            $( $(#[$meta])* $name = $number, )*
        }

        impl Opcode {
            /// Every opcode, in ascending order.
            pub const ALL: &'static [Opcode] = &[$(Opcode::$name,)*];

            /// The name, as in the specification.
            pub const fn name(self) -> &'static str {
                match self { $(Opcode::$name => stringify!($name),)* }
            }
        }

        impl TryFrom<u8> for Opcode {
            type Error = DecodeError;

            fn try_from(number: u8) -> Result<Opcode, DecodeError> {
                match number {
                    $($number => Ok(Opcode::$name),)*
                    other => Err(DecodeError::UnknownOpcode(other)),
                }
            }
        }
    };
}

opcodes! {
    /// Opens a connection: version, features, names.
    Hello = 1;
    /// Asks for a sign of life.
    Ping = 2;
    /// Nodes, topics, and who leads what.
    Metadata = 3;
    /// The state of nodes and Raft groups, for operators.
    ClusterInfo = 4;
    /// Changes who belongs to the cluster.
    ChangeMembers = 5;
    /// Which formats the answering node speaks, and which the cluster has.
    Formats = 6;
    /// Raises the cluster's format, for good.
    RaiseFormat = 7;
    /// Creates a topic.
    CreateTopic = 10;
    /// Deletes a topic and its records.
    DeleteTopic = 11;
    /// Lists topics.
    ListTopics = 12;
    /// Describes one topic and its partitions.
    DescribeTopic = 13;
    /// Asks for a producer id, for duplicate detection.
    InitProducer = 20;
    /// Appends one record batch.
    Produce = 21;
    /// Reads record batches, waiting for new ones if there are none.
    Fetch = 22;
    /// Asks for an offset by place or time.
    ListOffsets = 23;
}

impl From<Opcode> for u8 {
    fn from(opcode: Opcode) -> u8 {
        opcode as u8
    }
}

/// A request, as a client sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// See [`Opcode::Hello`].
    Hello(HelloRequest),
    /// See [`Opcode::Ping`].
    Ping,
    /// See [`Opcode::Metadata`].
    Metadata(MetadataRequest),
    /// See [`Opcode::ClusterInfo`].
    ClusterInfo,
    /// See [`Opcode::ChangeMembers`].
    ChangeMembers(ChangeMembersRequest),
    /// See [`Opcode::Formats`].
    Formats,
    /// See [`Opcode::RaiseFormat`].
    RaiseFormat(RaiseFormatRequest),
    /// See [`Opcode::CreateTopic`].
    CreateTopic(CreateTopicRequest),
    /// See [`Opcode::DeleteTopic`].
    DeleteTopic(DeleteTopicRequest),
    /// See [`Opcode::ListTopics`].
    ListTopics,
    /// See [`Opcode::DescribeTopic`].
    DescribeTopic(DescribeTopicRequest),
    /// See [`Opcode::InitProducer`].
    InitProducer,
    /// See [`Opcode::Produce`].
    Produce(ProduceRequest),
    /// See [`Opcode::Fetch`].
    Fetch(FetchRequest),
    /// See [`Opcode::ListOffsets`].
    ListOffsets(ListOffsetsRequest),
}

impl Request {
    /// The opcode of the frame that carries this request.
    pub fn opcode(&self) -> Opcode {
        match self {
            Request::Hello(_) => Opcode::Hello,
            Request::Ping => Opcode::Ping,
            Request::Metadata(_) => Opcode::Metadata,
            Request::ClusterInfo => Opcode::ClusterInfo,
            Request::ChangeMembers(_) => Opcode::ChangeMembers,
            Request::Formats => Opcode::Formats,
            Request::RaiseFormat(_) => Opcode::RaiseFormat,
            Request::CreateTopic(_) => Opcode::CreateTopic,
            Request::DeleteTopic(_) => Opcode::DeleteTopic,
            Request::ListTopics => Opcode::ListTopics,
            Request::DescribeTopic(_) => Opcode::DescribeTopic,
            Request::InitProducer => Opcode::InitProducer,
            Request::Produce(_) => Opcode::Produce,
            Request::Fetch(_) => Opcode::Fetch,
            Request::ListOffsets(_) => Opcode::ListOffsets,
        }
    }

    /// Appends the body.
    pub fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Request::Ping | Request::ClusterInfo | Request::Formats | Request::ListTopics | Request::InitProducer => {}
            Request::Hello(request) => request.encode(out),
            Request::ChangeMembers(request) => request.encode(out),
            Request::RaiseFormat(request) => request.encode(out),
            Request::Metadata(request) => request.encode(out),
            Request::CreateTopic(request) => request.encode(out),
            Request::DeleteTopic(request) => request.encode(out),
            Request::DescribeTopic(request) => request.encode(out),
            Request::Produce(request) => request.encode(out),
            Request::Fetch(request) => request.encode(out),
            Request::ListOffsets(request) => request.encode(out),
        }
    }

    /// Reads the body of a request frame. Record batches in it are slices of `body`, and not checked yet.
    pub fn decode(opcode: Opcode, body: Bytes) -> Result<Request, DecodeError> {
        let empty = |request: Request, body: Bytes| Reader::new(body).finish().map(|()| request);
        match opcode {
            Opcode::Hello => decode_all(body).map(Request::Hello),
            Opcode::Ping => empty(Request::Ping, body),
            Opcode::Metadata => decode_all(body).map(Request::Metadata),
            Opcode::ClusterInfo => empty(Request::ClusterInfo, body),
            Opcode::ChangeMembers => decode_all(body).map(Request::ChangeMembers),
            Opcode::Formats => empty(Request::Formats, body),
            Opcode::RaiseFormat => decode_all(body).map(Request::RaiseFormat),
            Opcode::CreateTopic => decode_all(body).map(Request::CreateTopic),
            Opcode::DeleteTopic => decode_all(body).map(Request::DeleteTopic),
            Opcode::ListTopics => empty(Request::ListTopics, body),
            Opcode::DescribeTopic => decode_all(body).map(Request::DescribeTopic),
            Opcode::InitProducer => empty(Request::InitProducer, body),
            Opcode::Produce => decode_all(body).map(Request::Produce),
            Opcode::Fetch => decode_all(body).map(Request::Fetch),
            Opcode::ListOffsets => decode_all(body).map(Request::ListOffsets),
        }
    }
}

/// Appends a whole request frame.
pub fn encode_request(out: &mut BytesMut, flags: Flags, correlation: u64, request: &Request) {
    frame::encode(out, request.opcode(), flags, correlation, |body| request.encode_body(body));
}

/// The payload of a successful reply.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Response {
    /// Answers [`Opcode::Hello`].
    Hello(HelloResponse),
    /// Answers [`Opcode::Ping`].
    Pong,
    /// Answers [`Opcode::Metadata`].
    Metadata(MetadataResponse),
    /// Answers [`Opcode::ClusterInfo`].
    ClusterInfo(ClusterInfoResponse),
    /// Answers [`Opcode::ChangeMembers`]: the change is decided; [`Opcode::ClusterInfo`] shows how far it is.
    ChangeMembers,
    /// Answers [`Opcode::Formats`].
    Formats(FormatsResponse),
    /// Answers [`Opcode::RaiseFormat`]: it is decided.
    RaiseFormat,
    /// Answers [`Opcode::CreateTopic`]: the topic as it was created.
    CreateTopic(TopicDescription),
    /// Answers [`Opcode::DeleteTopic`].
    DeleteTopic,
    /// Answers [`Opcode::ListTopics`], in the order of names.
    ListTopics(Vec<TopicSummary>),
    /// Answers [`Opcode::DescribeTopic`].
    DescribeTopic(TopicDescription),
    /// Answers [`Opcode::InitProducer`].
    InitProducer(InitProducerResponse),
    /// Answers [`Opcode::Produce`].
    Produce(ProduceResponse),
    /// Answers [`Opcode::Fetch`]: one item per partition asked for, in that order.
    Fetch(Vec<FetchedPartition>),
    /// Answers [`Opcode::ListOffsets`]: one item per partition asked for, in that order.
    ListOffsets(Vec<PartitionOffset>),
}

impl Response {
    /// The opcode of the request that this answers.
    pub fn opcode(&self) -> Opcode {
        match self {
            Response::Hello(_) => Opcode::Hello,
            Response::Pong => Opcode::Ping,
            Response::Metadata(_) => Opcode::Metadata,
            Response::ClusterInfo(_) => Opcode::ClusterInfo,
            Response::ChangeMembers => Opcode::ChangeMembers,
            Response::Formats(_) => Opcode::Formats,
            Response::RaiseFormat => Opcode::RaiseFormat,
            Response::CreateTopic(_) => Opcode::CreateTopic,
            Response::DeleteTopic => Opcode::DeleteTopic,
            Response::ListTopics(_) => Opcode::ListTopics,
            Response::DescribeTopic(_) => Opcode::DescribeTopic,
            Response::InitProducer(_) => Opcode::InitProducer,
            Response::Produce(_) => Opcode::Produce,
            Response::Fetch(_) => Opcode::Fetch,
            Response::ListOffsets(_) => Opcode::ListOffsets,
        }
    }

    /// Appends the payload, which follows the outcome in a reply's body.
    pub fn encode_body(&self, out: &mut BytesMut) {
        match self {
            Response::Pong | Response::ChangeMembers | Response::RaiseFormat | Response::DeleteTopic => {}
            Response::Hello(response) => response.encode(out),
            Response::Metadata(response) => response.encode(out),
            Response::ClusterInfo(response) => response.encode(out),
            Response::Formats(response) => response.encode(out),
            Response::CreateTopic(response) | Response::DescribeTopic(response) => response.encode(out),
            Response::ListTopics(response) => response.encode(out),
            Response::InitProducer(response) => response.encode(out),
            Response::Produce(response) => response.encode(out),
            Response::Fetch(response) => response.encode(out),
            Response::ListOffsets(response) => response.encode(out),
        }
    }

    /// Reads the payload, which must be all that is left to read.
    pub fn decode(opcode: Opcode, payload: Bytes) -> Result<Response, DecodeError> {
        let empty = |response: Response, body: Bytes| Reader::new(body).finish().map(|()| response);
        match opcode {
            Opcode::Hello => decode_all(payload).map(Response::Hello),
            Opcode::Ping => empty(Response::Pong, payload),
            Opcode::Metadata => decode_all(payload).map(Response::Metadata),
            Opcode::ClusterInfo => decode_all(payload).map(Response::ClusterInfo),
            Opcode::ChangeMembers => empty(Response::ChangeMembers, payload),
            Opcode::Formats => decode_all(payload).map(Response::Formats),
            Opcode::RaiseFormat => empty(Response::RaiseFormat, payload),
            Opcode::CreateTopic => decode_all(payload).map(Response::CreateTopic),
            Opcode::DeleteTopic => empty(Response::DeleteTopic, payload),
            Opcode::ListTopics => decode_all(payload).map(Response::ListTopics),
            Opcode::DescribeTopic => decode_all(payload).map(Response::DescribeTopic),
            Opcode::InitProducer => decode_all(payload).map(Response::InitProducer),
            Opcode::Produce => decode_all(payload).map(Response::Produce),
            Opcode::Fetch => decode_all(payload).map(Response::Fetch),
            Opcode::ListOffsets => decode_all(payload).map(Response::ListOffsets),
        }
    }
}
