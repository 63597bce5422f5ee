//! The one virtual client: requests to any node, and what came of them. It holds the brokers to one answer per request.

use super::passing::{FORWARDING, Forward};
use super::records::{self, Read};
use super::{Cluster, SECOND};
use bytes::BytesMut;
use lnc_broker::{Caller, Output};
use lnc_protocol::message::{
    Acks, CreateTopicRequest, DeleteTopicRequest, FetchPartition, FetchRequest, FetchedPartition, ListOffsetsPartition,
    ListOffsetsRequest, OffsetSpec, ProduceRequest, ProduceResponse, TopicDescription, TopicOptions,
};
use lnc_protocol::{ErrorCode, ErrorReply, Flags, Opcode, Reply, Request, Response, TraceContext, decode_reply};
use std::collections::BTreeMap;

/// A request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Call(u64);

/// What came of a request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    /// It was answered.
    Done(Response),
    /// It was refused.
    Refused(ErrorReply),
    /// The node ended before it answered.
    Lost,
}

/// An answer as a client library would see it.
pub(crate) type Answer = Result<Response, ErrorReply>;

struct Pending {
    node: u64,
    opcode: Opcode,
    outcome: Option<Outcome>,
}

/// All requests of a run whose outcome was not taken yet.
#[derive(Default)]
pub(super) struct Calls {
    last: u64,
    pending: BTreeMap<Call, Pending>,
}

impl Calls {
    /// Note what a node has answered. Gives what is for other nodes: answers to what they have passed on, and requests.
    pub(super) fn take(&mut self, node: u64, outputs: Vec<Output>) -> (Vec<(Caller, Opcode, Reply)>, Vec<Forward>) {
        let (mut answers, mut forwards) = (Vec::new(), Vec::new());
        for output in outputs {
            let (caller, answered, reply) = match output {
                Output::Reply { caller, opcode, reply } => (caller, opcode, reply),
                Output::Relay { caller, opcode, body } => {
                    (caller, opcode, decode_reply(opcode, body).expect("what another node has answered"))
                }
                Output::Forward { ticket, opcode, body, to, .. } => {
                    forwards.push(Forward { ticket, opcode, body, to: to.node() });
                    continue;
                }
            };
            if caller.connection >= FORWARDING {
                answers.push((caller, answered, reply));
                continue;
            }
            let outcome = match reply.result {
                Ok(response) => Outcome::Done(response),
                Err(error) => Outcome::Refused(error),
            };
            let call = Call(caller.correlation);
            let pending = self.pending.get_mut(&call);
            let pending = pending.unwrap_or_else(|| panic!("node {node} answers {call:?}, which waits for nothing"));
            assert_eq!((pending.node, pending.opcode), (node, answered), "an answer to another's request");
            assert_eq!(pending.outcome, None, "{call:?} is answered twice, then with {outcome:?}");
            pending.outcome = Some(outcome);
        }
        (answers, forwards)
    }

    pub(super) fn connection_lost(&mut self, node: u64) {
        for pending in self.pending.values_mut().filter(|pending| pending.node == node) {
            pending.outcome.get_or_insert(Outcome::Lost);
        }
    }
}

impl Cluster {
    /// Send a request; nothing happens before the next turn of the node.
    pub(crate) fn send(&mut self, node: u64, request: &Request) -> Call {
        self.send_flagged(node, request, Flags::NONE)
    }

    /// The same, as part of a recorded trace.
    pub(crate) fn send_traced(&mut self, node: u64, request: &Request, context: TraceContext) -> Call {
        let caller = Caller { connection: self.connection, correlation: self.calls.last + 1, flags: Flags::TRACED };
        if let Some(broker) = self.node_mut(node).broker_mut() {
            broker.trace(caller, context);
        }
        self.send_flagged(node, request, caller.flags)
    }

    pub(crate) fn send_flagged(&mut self, node: u64, request: &Request, flags: Flags) -> Call {
        let clock = self.clock_of(node);
        let mut body = BytesMut::new();
        request.encode_body(&mut body);
        self.calls.last += 1;
        let (call, opcode) = (Call(self.calls.last), request.opcode());
        let running = self.node(node).is_running();
        let outcome = (!running).then_some(Outcome::Lost);
        self.calls.pending.insert(call, Pending { node, opcode, outcome });
        let caller = Caller { connection: self.connection, correlation: call.0, flags };
        if let Some(broker) = self.node_mut(node).broker_mut() {
            broker.request(clock, caller, opcode, body.freeze());
        }
        call
    }

    /// The client's connection ends at every node.
    pub(crate) fn leave(&mut self) {
        let connection = self.connection;
        for node in self.running() {
            if let Some(broker) = self.node_mut(node).broker_mut() {
                broker.clients_gone(&[connection].into());
            }
        }
    }

    /// The client's connection to a node has ended.
    pub(crate) fn client_gone(&mut self, node: u64) {
        let connection = self.connection;
        if let Some(broker) = self.node_mut(node).broker_mut() {
            broker.clients_gone(&[connection].into());
        }
    }

    /// Whether a request has an outcome.
    pub(crate) fn is_answered(&self, call: Call) -> bool {
        self.calls.pending.get(&call).is_none_or(|pending| pending.outcome.is_some())
    }

    /// Requests that have no outcome yet.
    pub(crate) fn unanswered(&self) -> usize {
        self.calls.pending.values().filter(|pending| pending.outcome.is_none()).count()
    }

    /// Take the outcome of a request, if it has one.
    pub(crate) fn outcome(&mut self, call: Call) -> Option<Outcome> {
        self.calls.pending.get(&call)?.outcome.as_ref()?;
        self.calls.pending.remove(&call)?.outcome
    }

    /// Let time pass until a request has its outcome.
    pub(crate) fn wait(&mut self, call: Call) -> Outcome {
        self.settle();
        self.until("the request is answered", |cluster| cluster.is_answered(call));
        self.outcome(call).expect("awaited")
    }

    /// Ask one node, and wait for the answer.
    pub(crate) fn ask(&mut self, node: u64, request: &Request) -> Answer {
        let call = self.send(node, request);
        match self.wait(call) {
            Outcome::Done(response) => Ok(response),
            Outcome::Refused(error) => Err(error),
            Outcome::Lost => Err(ErrorReply::new(ErrorCode::LeadershipLost, "the connection broke")),
        }
    }

    /// Ask until it works: every node in turn, as long as the error may be retried.
    pub(crate) fn demand(&mut self, request: &Request) -> Response {
        let mut last = None;
        for attempt in 0..20 * SECOND as usize {
            let running = self.running();
            assert!(!running.is_empty(), "no node runs");
            match self.ask(running[attempt % running.len()], request) {
                Ok(response) => return response,
                Err(error) if error.code.is_retriable() => last = Some(error),
                Err(error) => panic!("{:?} failed: {error}", request.opcode()),
            }
            self.tick();
        }
        panic!("{:?} does not succeed: {last:?}; {}", request.opcode(), self.describe());
    }

    /// Create a topic; gives its id.
    pub(crate) fn create_topic(&mut self, name: &str, partitions: u32) -> u64 {
        self.create_topic_with(name, partitions, TopicOptions::default()).topic_id
    }

    pub(crate) fn create_topic_with(&mut self, name: &str, partitions: u32, options: TopicOptions) -> TopicDescription {
        match self.demand(&create_request(name, partitions, options)) {
            Response::CreateTopic(description) => description,
            other => panic!("not an answer to a creation: {other:?}"),
        }
    }

    pub(crate) fn delete_topic(&mut self, name: &str) {
        self.demand(&Request::DeleteTopic(DeleteTopicRequest { name: name.to_owned(), timeout_ms: 10_000 }));
    }

    /// A producer id.
    pub(crate) fn producer(&mut self) -> i64 {
        match self.demand(&Request::InitProducer) {
            Response::InitProducer(producer) => producer.producer_id,
            other => panic!("not a producer id: {other:?}"),
        }
    }

    /// Produce until it is acknowledged at the default level.
    pub(crate) fn produce(&mut self, request: &ProduceRequest) -> ProduceResponse {
        match self.demand(&Request::Produce(request.clone())) {
            Response::Produce(done) => done,
            other => panic!("not an answer to a produce: {other:?}"),
        }
    }

    /// Fetch from one partition of a node, without waiting for more than there is.
    pub(crate) fn fetch(&mut self, node: u64, topic: &str, partition: u32, offset: u64) -> FetchedPartition {
        match self.ask(node, &fetch_request(topic, &[(partition, offset)], 0, 1)) {
            Ok(Response::Fetch(mut found)) => found.remove(0),
            other => panic!("not an answer to a fetch: {other:?}"),
        }
    }

    /// Everything that a node has of a partition.
    pub(crate) fn read_all(&mut self, node: u64, topic: &str, partition: u32) -> Vec<Read> {
        let mut all: Vec<Read> = Vec::new();
        let mut offset = 0;
        loop {
            let found = self.fetch(node, topic, partition, offset);
            if found.error == ErrorCode::OffsetOutOfRange && offset < found.log_start_offset {
                offset = found.log_start_offset;
                continue;
            }
            assert_eq!(found.error, ErrorCode::None, "node {node} at offset {offset}: {}", found.message);
            let end = found.high_watermark;
            let read = records::read(&found);
            assert!(read.iter().all(|record| record.offset < end), "node {node} serves beyond its high watermark");
            all.extend(read.into_iter().filter(|record| record.offset >= offset));
            match all.last() {
                Some(last) if last.offset + 1 > offset => offset = last.offset + 1,
                _ => assert_eq!(offset, end, "node {node} withholds offset {offset} of {end}"),
            }
            if offset >= end {
                return all;
            }
        }
    }

    /// The offset that a node gives for a place or time.
    pub(crate) fn list_offset(&mut self, node: u64, topic: &str, partition: u32, spec: OffsetSpec) -> (u64, i64) {
        match self.ask(node, &offsets_request(topic, partition, spec)) {
            Ok(Response::ListOffsets(found)) if found[0].error == ErrorCode::None => {
                (found[0].offset, found[0].timestamp_ms)
            }
            other => panic!("not an offset: {other:?}"),
        }
    }
}

/// A request for a new topic.
pub(crate) fn create_request(name: &str, partitions: u32, options: TopicOptions) -> Request {
    Request::CreateTopic(CreateTopicRequest { name: name.to_owned(), partitions, options, timeout_ms: 10_000 })
}

/// A request for one offset.
pub(crate) fn offsets_request(topic: &str, partition: u32, spec: OffsetSpec) -> Request {
    let wanted = ListOffsetsPartition { topic: topic.to_owned(), topic_id: 0, partition, spec };
    Request::ListOffsets(ListOffsetsRequest { partitions: vec![wanted] })
}

/// A request for records from several partitions, each from an offset on.
pub(crate) fn fetch_request(topic: &str, from: &[(u32, u64)], max_wait_ms: u32, min_bytes: u32) -> Request {
    let partition = |(partition, offset): &(u32, u64)| FetchPartition {
        topic: topic.to_owned(),
        topic_id: 0,
        partition: *partition,
        offset: *offset,
        max_bytes: 1 << 20,
    };
    let partitions = from.iter().map(partition).collect();
    Request::Fetch(FetchRequest { max_wait_ms, min_bytes, max_bytes: 2 << 20, partitions })
}

/// A request to append these values, without a producer id.
pub(crate) fn produce_request(topic: &str, partition: u32, values: &[&str]) -> ProduceRequest {
    ProduceRequest {
        acks: Acks::Quorum,
        timeout_ms: 5_000,
        topic: topic.to_owned(),
        topic_id: 0,
        partition,
        batch: records::batch(None, 0, values),
    }
}

/// An idempotent producer: numbers its batches per partition.
pub(crate) struct Producer {
    id: i64,
    next: BTreeMap<(String, u32), i32>,
}

impl Producer {
    pub(crate) fn new(cluster: &mut Cluster) -> Self {
        Self { id: cluster.producer(), next: BTreeMap::new() }
    }

    /// A request to append these values. Send it again, and it is a retry.
    pub(crate) fn request(&mut self, topic: &str, partition: u32, values: &[&str]) -> ProduceRequest {
        let next = self.next.entry((topic.to_owned(), partition)).or_default();
        let batch = records::batch(Some((self.id, *next)), 0, values);
        *next += values.len() as i32;
        ProduceRequest { batch, ..produce_request(topic, partition, values) }
    }
}
