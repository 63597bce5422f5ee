//! The wire by hand: blocking sockets on which a test places each frame itself.

use bytes::{Bytes, BytesMut};
use lnc_protocol::batch::NO_PRODUCER_ID;
use lnc_protocol::message::{
    Acks, ClusterInfoResponse, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, FetchPartition,
    FetchRequest, FetchedPartition, HelloRequest, InitProducerResponse, ProduceRequest, ProduceResponse,
    TopicDescription, TopicOptions,
};
use lnc_protocol::{
    BatchBuilder, Codec, ErrorReply, Flags, Frame, Opcode, PROTOCOL_VERSION, Request, Response, decode_reply,
    encode_request, frame,
};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest reply that is read.
const MAX_REPLY: usize = 64 << 20;

/// Longest wait for a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long brokers may take over one request, in milliseconds.
pub(crate) const TIMEOUT_MS: u32 = 10_000;

/// A connection.
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: BytesMut,
    correlation: u64,
}

/// What comes of a request.
pub(crate) type Answer<T> = Result<T, ErrorReply>;

impl Wire {
    /// Connects and greets.
    pub(crate) fn connect(address: &str) -> io::Result<Self> {
        let mut wire = Self::without_hello(address)?;
        let hello = Request::Hello(hello(PROTOCOL_VERSION, PROTOCOL_VERSION));
        wire.ask(&hello, Flags::NONE)?.map_err(io::Error::other)?;
        Ok(wire)
    }

    /// Connects and says nothing.
    pub(crate) fn without_hello(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        Ok(Self { stream, buffer: BytesMut::new(), correlation: 0 })
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends a request and does not wait for the reply; gives its correlation id.
    pub(crate) fn send_request(&mut self, request: &Request, flags: Flags) -> io::Result<u64> {
        self.correlation += 1;
        let mut out = BytesMut::new();
        encode_request(&mut out, flags, self.correlation, request);
        self.send(&out)?;
        Ok(self.correlation)
    }

    /// The next frame; `None` when the other side has closed.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer, MAX_REPLY).map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            let mut chunk = [0; 64 << 10];
            let read = self.stream.read(&mut chunk)?;
            if read == 0 {
                return Ok(None);
            }
            self.buffer.extend_from_slice(&chunk[..read]);
        }
    }

    /// Sends a request and waits for its reply.
    pub(crate) fn ask(&mut self, request: &Request, flags: Flags) -> io::Result<Answer<Response>> {
        let correlation = self.send_request(request, flags)?;
        let Some(frame) = self.next_frame()? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        assert_eq!(frame.header.correlation, correlation, "the reply to another request");
        assert!(frame.header.flags.contains(Flags::RESPONSE));
        Ok(decode_reply(request.opcode(), frame.body).map_err(io::Error::other)?.result)
    }

    /// The error reply that the other side sends, whatever it answers, and that it closes then.
    #[track_caller]
    pub(crate) fn last_words(&mut self) -> ErrorReply {
        let frame = self.next_frame().unwrap().expect("an error reply before the end");
        let reply = decode_reply(Opcode::Ping, frame.body).unwrap();
        assert!(self.next_frame().unwrap().is_none(), "the connection is closed");
        reply.result.unwrap_err()
    }

    pub(crate) fn ping(&mut self) -> io::Result<Answer<Response>> {
        self.ask(&Request::Ping, Flags::NONE)
    }

    pub(crate) fn cluster_info(&mut self) -> io::Result<ClusterInfoResponse> {
        match self.ask(&Request::ClusterInfo, Flags::NONE)? {
            Ok(Response::ClusterInfo(info)) => Ok(info),
            other => Err(unexpected(other)),
        }
    }

    pub(crate) fn describe(&mut self, topic: &str) -> io::Result<TopicDescription> {
        let request = Request::DescribeTopic(DescribeTopicRequest { name: topic.to_owned() });
        match self.ask(&request, Flags::NONE)? {
            Ok(Response::DescribeTopic(topic)) => Ok(topic),
            other => Err(unexpected(other)),
        }
    }

    pub(crate) fn init_producer(&mut self) -> io::Result<InitProducerResponse> {
        match self.ask(&Request::InitProducer, Flags::NONE)? {
            Ok(Response::InitProducer(identity)) => Ok(identity),
            other => Err(unexpected(other)),
        }
    }

    /// Produces one batch at acks=quorum.
    pub(crate) fn produce(&mut self, produce: ProduceRequest, flags: Flags) -> io::Result<Answer<ProduceResponse>> {
        match self.ask(&Request::Produce(produce), flags)? {
            Ok(Response::Produce(done)) => Ok(Ok(done)),
            Ok(other) => Err(unexpected(Ok(other))),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Fetches from one partition.
    pub(crate) fn fetch(&mut self, fetch: FetchRequest) -> io::Result<FetchedPartition> {
        match self.ask(&Request::Fetch(fetch), Flags::NONE)? {
            Ok(Response::Fetch(mut partitions)) if partitions.len() == 1 => Ok(partitions.remove(0)),
            other => Err(unexpected(other)),
        }
    }
}

fn unexpected(reply: Answer<Response>) -> io::Error {
    io::Error::other(format!("not the reply that was asked for: {reply:?}"))
}

/// A greeting for these versions.
pub(crate) fn hello(min_version: u8, max_version: u8) -> HelloRequest {
    HelloRequest { min_version, max_version, client_name: "test".into(), features: 0, auth: Bytes::new() }
}

pub(crate) fn create(name: &str, partitions: u32, options: TopicOptions) -> Request {
    let name = name.to_owned();
    Request::CreateTopic(CreateTopicRequest { name, partitions, options, timeout_ms: TIMEOUT_MS })
}

pub(crate) fn delete(name: &str) -> Request {
    Request::DeleteTopic(DeleteTopicRequest { name: name.to_owned(), timeout_ms: TIMEOUT_MS })
}

/// A batch of records without keys.
pub(crate) fn batch<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Bytes {
    sequenced(NO_PRODUCER_ID, -1, -1, values)
}

/// A batch of a producer, whose first record has this sequence number.
pub(crate) fn sequenced<'a>(
    producer_id: i64,
    epoch: i16,
    sequence: i32,
    values: impl IntoIterator<Item = &'a [u8]>,
) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None).with_producer(producer_id, epoch, sequence);
    for value in values {
        builder.append(1_700_000_000_000, None, Some(value), &[]).unwrap();
    }
    builder.build()
}

pub(crate) fn produce(topic: &str, partition: u32, batch: Bytes) -> ProduceRequest {
    ProduceRequest {
        acks: Acks::Quorum,
        timeout_ms: TIMEOUT_MS,
        topic: topic.to_owned(),
        topic_id: 0,
        partition,
        batch,
    }
}

/// A fetch that does not wait.
pub(crate) fn fetch(topic: &str, partition: u32, offset: u64) -> FetchRequest {
    let max_bytes = 4 << 20;
    let topic = topic.to_owned();
    let partitions = vec![FetchPartition { topic, topic_id: 0, partition, offset, max_bytes }];
    FetchRequest { max_wait_ms: 0, min_bytes: 1, max_bytes, partitions }
}

/// Everything a node serves of one partition, as bytes of whole batches, and its high watermark.
pub(crate) fn fetch_all(wire: &mut Wire, topic: &str, partition: u32) -> io::Result<(Vec<u8>, u64)> {
    let (mut all, mut offset) = (Vec::new(), None);
    loop {
        let found = wire.fetch(fetch(topic, partition, offset.unwrap_or(0)))?;
        if offset.is_none() && found.log_start_offset > 0 {
            offset = Some(found.log_start_offset);
            continue;
        }
        if found.error != lnc_protocol::ErrorCode::None {
            return Err(io::Error::other(format!("{}: {}", found.error, found.message)));
        }
        if found.records.is_empty() {
            return Ok((all, found.high_watermark));
        }
        let bytes = found.records.into_bytes();
        for batch in lnc_protocol::batch::split(bytes.clone()) {
            let batch = batch.map_err(io::Error::other)?;
            let header = lnc_protocol::batch::check(&batch).map_err(io::Error::other)?;
            assert_eq!(header.base_offset, offset.unwrap_or(0), "offsets follow one another");
            offset = Some(header.last_offset() + 1);
        }
        assert!(offset <= Some(found.high_watermark), "records above the high watermark");
        all.extend_from_slice(&bytes);
    }
}
