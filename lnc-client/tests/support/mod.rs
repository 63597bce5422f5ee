//! A cluster in memory that speaks LWP on loopback sockets: enough of a broker to check what a client does, with a
//! hook through which a test makes it misbehave.
#![allow(dead_code, reason = "each test binary uses another part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lnc_client::{Client, ClientBuilder};
use lnc_protocol::batch::{Limits, RecordBatch, records};
use lnc_protocol::frame::{self, Flags};
use lnc_protocol::message::*;
use lnc_protocol::{ErrorCode, encode_reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

/// What a broker does with a request.
pub(crate) enum Action {
    /// What a broker should do.
    Serve,
    /// Refuses it.
    Fail(ErrorReply),
    /// Carries it out and says that it failed.
    ServeThenFail(ErrorReply),
    /// Closes the connection instead.
    Drop,
    /// Carries it out and closes the connection instead of answering.
    ServeThenDrop,
    /// Never answers.
    Hang,
    /// Answers with this.
    Reply(Response),
    /// Answers with these bytes.
    Garbage(Bytes),
}

/// A request as the hook sees it.
pub(crate) struct Seen<'a> {
    pub(crate) node: u64,
    pub(crate) flags: Flags,
    pub(crate) request: &'a Request,
}

type Hook = Box<dyn FnMut(&Seen<'_>) -> Action + Send>;

pub(crate) struct Cluster {
    model: Arc<Mutex<Model>>,
    addresses: Vec<String>,
    tasks: JoinSet<()>,
    drop_connections: Arc<Notify>,
}

struct Model {
    cluster_id: u128,
    addresses: Vec<String>,
    topics: BTreeMap<String, Topic>,
    next_producer: i64,
    hook: Hook,
    appended: Arc<Notify>,
    max_batch_bytes: u32,
}

struct Topic {
    id: u64,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    leader: u64,
    term: u64,
    batches: Vec<(u64, Bytes)>,
    start: u64,
    end: u64,
    /// Of each producer, the first and next sequence and the base offset of its last five batches.
    producers: BTreeMap<i64, VecDeque<(i32, i32, u64)>>,
}

impl Cluster {
    /// Nodes 1 to `nodes`, with topic "t" of `partitions` partitions led by node 1.
    pub(crate) async fn start(nodes: u64, partitions: u32) -> Cluster {
        let mut listeners = Vec::new();
        for _ in 0..nodes {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
        let mut model = Model {
            cluster_id: 1,
            addresses: addresses.clone(),
            topics: BTreeMap::new(),
            next_producer: 100,
            hook: Box::new(|_| Action::Serve),
            appended: Arc::default(),
            max_batch_bytes: 1 << 20,
        };
        model.create("t", partitions);
        let model = Arc::new(Mutex::new(model));
        let drop_connections = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        for (node, listener) in (1..).zip(listeners) {
            tasks.spawn(listen(node, listener, model.clone(), drop_connections.clone()));
        }
        Cluster { model, addresses, tasks, drop_connections }
    }

    /// Another cluster at the same addresses, whose topic "t" is empty and has the same id.
    pub(crate) fn begin_anew(&self) {
        let mut model = self.model.lock().unwrap();
        model.cluster_id += 1;
        for partition in model.topics.values_mut().flat_map(|topic| &mut topic.partitions) {
            *partition = Partition { leader: partition.leader, term: partition.term, ..Partition::default() };
        }
        drop(model);
        self.drop_connections();
    }

    /// Deletes a topic and makes it again.
    pub(crate) fn make_again(&self, topic: &str) {
        let mut model = self.model.lock().unwrap();
        let (id, partitions) = model.topics.get(topic).map(|topic| (topic.id, topic.partitions.len())).unwrap();
        model.topics.remove(topic);
        model.create(topic, partitions as u32);
        model.topics.get_mut(topic).unwrap().id = id + 1;
    }

    pub(crate) fn address(&self, node: u64) -> &str {
        &self.addresses[node as usize - 1]
    }

    pub(crate) fn builder(&self) -> ClientBuilder {
        Client::builder().endpoints(self.addresses.clone()).request_timeout(Duration::from_secs(6))
    }

    pub(crate) async fn client(&self) -> Client {
        self.builder().build().await.unwrap()
    }

    pub(crate) fn hook(&self, hook: impl FnMut(&Seen<'_>) -> Action + Send + 'static) {
        self.model.lock().unwrap().hook = Box::new(hook);
    }

    /// Moves a partition to another leader.
    pub(crate) fn lead(&self, partition: u32, node: u64) {
        let mut model = self.model.lock().unwrap();
        let partition = &mut model.topics.get_mut("t").unwrap().partitions[partition as usize];
        partition.leader = node;
        partition.term += 1;
    }

    /// Closes every connection to every node.
    pub(crate) fn drop_connections(&self) {
        self.drop_connections.notify_waiters();
    }

    /// Deletes all batches that lie wholly before `offset`.
    pub(crate) fn retain_from(&self, partition: u32, offset: u64) {
        let mut model = self.model.lock().unwrap();
        let partition = &mut model.topics.get_mut("t").unwrap().partitions[partition as usize];
        partition.start = offset;
    }

    pub(crate) fn append(&self, partition: u32, batch: Bytes) {
        let mut model = self.model.lock().unwrap();
        let partition = &mut model.topics.get_mut("t").unwrap().partitions[partition as usize];
        let batch = RecordBatch::validate(batch, &Limits::default()).unwrap();
        partition.append(&batch);
        model.appended.notify_waiters();
    }

    /// Removes the batch at `index`.
    pub(crate) fn remove(&self, partition: u32, index: usize) {
        let mut model = self.model.lock().unwrap();
        let partition = &mut model.topics.get_mut("t").unwrap().partitions[partition as usize];
        partition.batches.remove(index);
    }

    /// Flips a bit in the records of the batch at `index`.
    pub(crate) fn damage(&self, partition: u32, index: usize) {
        let mut model = self.model.lock().unwrap();
        let partition = &mut model.topics.get_mut("t").unwrap().partitions[partition as usize];
        let mut bytes = BytesMut::from(&partition.batches[index].1[..]);
        *bytes.last_mut().unwrap() ^= 1;
        partition.batches[index].1 = bytes.freeze();
    }

    /// The values stored in a partition, in order.
    pub(crate) fn values(&self, partition: u32) -> Vec<String> {
        let model = self.model.lock().unwrap();
        let partition = &model.topics["t"].partitions[partition as usize];
        let batches = partition.batches.iter();
        let records = batches.flat_map(|(_, batch)| records(batch, &Limits::default()).unwrap());
        records.map(|record| String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap()).collect()
    }

    /// How many batches a partition holds.
    pub(crate) fn batches(&self, partition: u32) -> usize {
        self.model.lock().unwrap().topics["t"].partitions[partition as usize].batches.len()
    }
}

async fn listen(node: u64, listener: TcpListener, model: Arc<Mutex<Model>>, drop: Arc<Notify>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (model, drop) = (model.clone(), drop.clone());
        connections.spawn(async move {
            tokio::select! {
                () = serve(node, stream, model) => {}
                () = drop.notified() => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(node: u64, stream: TcpStream, model: Arc<Mutex<Model>>) {
    let (mut reader, mut writer) = stream.into_split();
    let (replies, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
    let read = async move {
        let mut buffer = BytesMut::new();
        let mut waiting = JoinSet::new();
        loop {
            while let Some(frame) = frame::decode(&mut buffer, 1 << 24).expect("clients send sound frames") {
                let opcode = Opcode::try_from(frame.header.opcode).unwrap();
                let request = Request::decode(opcode, frame.body).unwrap();
                let (flags, correlation) = (frame.header.flags, frame.header.correlation);
                let action = {
                    let mut model = model.lock().unwrap();
                    (model.hook)(&Seen { node, flags, request: &request })
                };
                let encoded = |reply: &Reply| {
                    let mut bytes = BytesMut::new();
                    encode_reply(&mut bytes, opcode, correlation, reply);
                    bytes.freeze()
                };
                match action {
                    Action::Drop => return,
                    Action::Hang => {}
                    Action::Garbage(bytes) => drop(replies.send(bytes)),
                    Action::Reply(response) => drop(replies.send(encoded(&response.into()))),
                    Action::Fail(error) => drop(replies.send(encoded(&error.into()))),
                    Action::Serve => {
                        if let Request::Fetch(fetch) = request {
                            let (model, replies) = (model.clone(), replies.clone());
                            waiting.spawn(async move {
                                let reply = long_poll(&model, node, flags, &fetch).await;
                                let mut bytes = BytesMut::new();
                                encode_reply(&mut bytes, opcode, correlation, &reply);
                                let _ = replies.send(bytes.freeze());
                            });
                        } else {
                            let reply = model.lock().unwrap().carry_out(node, flags, &request);
                            let _ = replies.send(encoded(&reply.into()));
                        }
                    }
                    Action::ServeThenFail(error) => {
                        let _ = model.lock().unwrap().carry_out(node, flags, &request);
                        let _ = replies.send(encoded(&error.into()));
                    }
                    Action::ServeThenDrop => {
                        let _ = model.lock().unwrap().carry_out(node, flags, &request);
                        return;
                    }
                }
            }
            if !matches!(reader.read_buf(&mut buffer).await, Ok(read) if read > 0) {
                return;
            }
        }
    };
    let write = async move {
        while let Some(bytes) = outgoing.recv().await {
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = write => {}
    }
}

async fn long_poll(model: &Mutex<Model>, node: u64, flags: Flags, fetch: &FetchRequest) -> Reply {
    let until = tokio::time::Instant::now() + Duration::from_millis(fetch.max_wait_ms.into());
    let appended = model.lock().unwrap().appended.clone();
    loop {
        let mut news = std::pin::pin!(appended.notified());
        news.as_mut().enable();
        let reply = model.lock().unwrap().carry_out(node, flags, &Request::Fetch(fetch.clone()));
        let is_empty = matches!(&reply, Ok(Response::Fetch(partitions)) if partitions
            .iter()
            .all(|partition| partition.error == ErrorCode::None && partition.records.is_empty()));
        if !is_empty || tokio::time::timeout_at(until, news).await.is_err() {
            return reply.into();
        }
    }
}

impl Model {
    fn create(&mut self, name: &str, partitions: u32) {
        let id = self.topics.len() as u64 + 7;
        let partitions = (0..partitions).map(|_| Partition { leader: 1, ..Partition::default() }).collect();
        self.topics.insert(name.into(), Topic { id, partitions });
    }

    fn describe(&self, name: &str) -> Result<TopicDescription, ErrorReply> {
        let topic = self.topics.get(name).ok_or(ErrorCode::UnknownTopic)?;
        let partitions = (0..).zip(&topic.partitions).map(|(partition, state)| PartitionDescription {
            partition,
            group: 1,
            leader: Some(state.leader),
            log_start_offset: state.start,
            high_watermark: state.end,
            size_bytes: 0,
        });
        Ok(TopicDescription {
            name: name.into(),
            topic_id: topic.id,
            options: TopicOptions::default(),
            created_ms: 1,
            partitions: partitions.collect(),
        })
    }

    /// The partition, if this node may serve it.
    fn led(&mut self, node: u64, flags: Flags, topic: &str, number: u32) -> Result<&mut Partition, ErrorReply> {
        let addresses = self.addresses.clone();
        let topic = self.topics.get_mut(topic).ok_or(ErrorCode::UnknownTopic)?;
        let partition = topic.partitions.get_mut(number as usize).ok_or(ErrorCode::UnknownPartition)?;
        if partition.leader != node && flags.contains(Flags::NO_FORWARD) {
            let reply = ErrorReply::from(ErrorCode::NotLeader);
            return Err(reply.with_leader(partition.leader, &addresses[partition.leader as usize - 1]));
        }
        Ok(partition)
    }

    fn carry_out(&mut self, node: u64, flags: Flags, request: &Request) -> Result<Response, ErrorReply> {
        match request {
            Request::Hello(_) => Ok(Response::Hello(HelloResponse {
                version: 1,
                features: 0,
                cluster_id: self.cluster_id,
                node_id: node,
                server_name: "fake".into(),
                max_frame_bytes: 1 << 24,
                max_batch_bytes: self.max_batch_bytes,
            })),
            Request::Ping => Ok(Response::Pong),
            Request::Metadata(request) => Ok(Response::Metadata(self.metadata(request))),
            Request::CreateTopic(request) => {
                if self.topics.contains_key(&request.name) {
                    return Err(ErrorCode::TopicExists.into());
                }
                self.create(&request.name, request.partitions);
                self.describe(&request.name).map(Response::CreateTopic)
            }
            Request::DeleteTopic(request) => {
                self.topics.remove(&request.name).ok_or(ErrorCode::UnknownTopic)?;
                Ok(Response::DeleteTopic)
            }
            Request::DescribeTopic(request) => self.describe(&request.name).map(Response::DescribeTopic),
            Request::InitProducer => {
                self.next_producer += 1;
                Ok(Response::InitProducer(InitProducerResponse { producer_id: self.next_producer, producer_epoch: 0 }))
            }
            Request::Produce(request) => {
                let appended = self.appended.clone();
                let partition = self.led(node, flags, &request.topic, request.partition)?;
                let (base_offset, duplicate) = partition.produce(request.batch.clone())?;
                appended.notify_waiters();
                Ok(Response::Produce(ProduceResponse {
                    topic_id: request.topic_id,
                    partition: request.partition,
                    base_offset: Some(base_offset),
                    log_start_offset: partition.start,
                    append_time_ms: 1,
                    duplicate,
                }))
            }
            Request::Fetch(request) => {
                let fetched = request.partitions.iter().map(|asked| self.fetch(node, flags, asked));
                Ok(Response::Fetch(fetched.collect()))
            }
            Request::ListOffsets(request) => {
                let listed = request.partitions.iter().map(|asked| self.list(node, flags, asked));
                Ok(Response::ListOffsets(listed.collect()))
            }
            _ => Err(ErrorCode::UnknownOpcode.into()),
        }
    }

    fn metadata(&self, request: &MetadataRequest) -> MetadataResponse {
        let nodes = (1..).zip(&self.addresses).map(|(id, address)| NodeInfo {
            id,
            client_address: address.clone(),
            alive: true,
        });
        let names = match &request.topics {
            Some(names) => names.clone(),
            None => self.topics.keys().cloned().collect(),
        };
        let topics = names.into_iter().map(|name| match self.topics.get(&name) {
            None => TopicMetadata { name, topic_id: 0, error: ErrorCode::UnknownTopic, partitions: Vec::new() },
            Some(topic) => TopicMetadata {
                name,
                topic_id: topic.id,
                error: ErrorCode::None,
                partitions: (0..)
                    .zip(&topic.partitions)
                    .map(|(partition, state)| PartitionMetadata {
                        partition,
                        group: 1,
                        leader: Some(state.leader),
                        leader_term: state.term,
                    })
                    .collect(),
            },
        });
        MetadataResponse { cluster_id: self.cluster_id, nodes: nodes.collect(), topics: topics.collect() }
    }

    fn fetch(&mut self, node: u64, flags: Flags, asked: &FetchPartition) -> FetchedPartition {
        let mut fetched = FetchedPartition {
            topic: asked.topic.clone(),
            partition: asked.partition,
            error: ErrorCode::None,
            message: String::new(),
            log_start_offset: 0,
            high_watermark: 0,
            records: Records::new(),
        };
        match self.led(node, flags, &asked.topic, asked.partition) {
            Err(error) => fetched.error = error.code,
            Ok(partition) => {
                fetched.log_start_offset = partition.start;
                fetched.high_watermark = partition.end;
                if asked.offset < partition.start || asked.offset > partition.end {
                    fetched.error = ErrorCode::OffsetOutOfRange;
                }
                // At most two batches at a time, so that reading takes several fetches.
                let wanted = partition.batches.iter().filter(|(next, _)| *next > asked.offset).take(2);
                fetched.records = wanted.map(|(_, batch)| batch.clone()).collect();
            }
        }
        fetched
    }

    fn list(&mut self, node: u64, flags: Flags, asked: &ListOffsetsPartition) -> PartitionOffset {
        let mut listed = PartitionOffset {
            topic: asked.topic.clone(),
            partition: asked.partition,
            error: ErrorCode::None,
            message: String::new(),
            offset: 0,
            timestamp_ms: -1,
        };
        match self.led(node, flags, &asked.topic, asked.partition) {
            Err(error) => listed.error = error.code,
            Ok(partition) => {
                listed.offset = match asked.spec {
                    OffsetSpec::Earliest => partition.start,
                    OffsetSpec::Latest => partition.end,
                    OffsetSpec::Timestamp(timestamp_ms) => partition.offset_at(timestamp_ms),
                };
            }
        }
        listed
    }
}

impl Partition {
    fn append(&mut self, batch: &RecordBatch) -> u64 {
        let base_offset = self.end;
        self.end += u64::from(batch.header().record_count);
        let mut bytes = BytesMut::from(&batch.bytes()[..]);
        bytes[..16].copy_from_slice(&batch.stamped_prefix(base_offset, 1));
        self.batches.push((self.end, bytes.freeze()));
        base_offset
    }

    /// Stores a batch with the checks of an idempotent producer. Returns its offset and if it was stored before.
    fn produce(&mut self, batch: Bytes) -> Result<(u64, bool), ErrorReply> {
        let batch = RecordBatch::validate(batch, &Limits::default())
            .map_err(|error| ErrorReply::new(error.code(), error.to_string()))?;
        let header = batch.header();
        if header.producer_id >= 0 {
            let first = header.base_sequence;
            let known = self.producers.entry(header.producer_id).or_default();
            if let Some((_, _, base_offset)) = known.iter().find(|known| known.0 == first) {
                return Ok((*base_offset, true));
            }
            if known.back().map_or(0, |last| last.1) != first {
                return Err(ErrorCode::OutOfOrderSequence.into());
            }
            known.push_back((first, first + header.record_count as i32, self.end));
            if known.len() > 5 {
                known.pop_front();
            }
        }
        Ok((self.append(&batch), false))
    }

    fn offset_at(&self, timestamp_ms: i64) -> u64 {
        let batches = self.batches.iter();
        let mut records = batches.flat_map(|(_, batch)| records(batch, &Limits::default()).unwrap());
        let found = records.find_map(|record| record.ok().filter(|record| record.timestamp_ms >= timestamp_ms));
        found.map_or(self.end, |record| record.offset)
    }
}

/// A source of chance with a seed, so that a failing run can be repeated.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
