//! Client connections: frames in, replies out, and requests passed on to the node that must serve them.
//!
//! All of it runs on the shard's thread. A connection decodes frames into the gateway's inbox and wakes the node's turn;
//! the turn's replies are encoded straight into the connection's buffer and leave in one write at its end; records are not
//! copied.
//! A connection is not read while its replies pile up, while it has too many requests under way, or while it has more of the
//! memory that all share ([`budget`]) than is left of it. A client that does not take its replies is cut off; where memory is
//! short, so is one that is slow to send what it has begun.
//!
//! Where traces are recorded ([`traces`]), it is here that it is decided which, before a request reaches the inbox.

mod budget;
mod connection;
mod forward;
mod outgoing;
mod receive;
#[cfg(test)]
mod tests;
pub mod traces;
mod validate;

use crate::foreign;
use budget::{Budget, Charge};
use bytes::{Buf, Bytes};
use connection::{Connection, Cost};
use lnc_broker::{Caller, Hit, Opener, Output, Passage, ReplyRoom, ReplySizes, batch_limits};
use lnc_metrics::Metrics;
use lnc_protocol::frame::{self, Frame};
use lnc_protocol::message::ProduceRequest;
use lnc_protocol::{BatchError, ErrorCode, ErrorReply, Flags, Opcode, Request, TraceContext, trace};
use lnc_raft::NodeId;
use outgoing::Outgoing;
use receive::Chunk;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::sleep;
use traces::Traces;
use validate::Validator;

/// Requests of one connection that may be under way.
const MAX_REQUESTS: usize = 16 << 10;

/// Reply bytes that may wait on a connection before it is not read any more.
const MAX_REPLY_BYTES: usize = 8 << 20;

/// Reply bytes that may wait on a connection together with those that its fetches under way may still bring. It has room
/// for the four fetches of 8 MiB that a consumer keeps under way at one node.
const MAX_FETCH_BYTES: usize = 4 * MAX_REPLY_BYTES;

/// Longest frame of a client that has not said hello.
const MAX_GREETING: usize = 64 << 10;

/// What a request under way takes in memory beside its body, in bytes; more than it does.
const REQUEST_OVERHEAD: usize = 512;

/// How many times its body a request with many entries takes.
const ENTRIES_FACTOR: usize = 4;

/// One part in so many of each kind of memory is divided equally among the connections that there are: who has no more than
/// that goes on, whatever others have.
const IN_ANY_CASE: usize = 4;

/// How long a client may leave its replies unread while others are short of memory for theirs.
const UNREAD: Duration = Duration::from_secs(10);

/// How long a client that sends no more may wait for what it reads.
const LAST_READS: Duration = Duration::from_secs(1);

/// What the gateway needs to know.
pub struct GatewayConfig {
    /// Largest frame body.
    pub max_frame_bytes: usize,
    /// Largest record batch.
    pub max_batch_bytes: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Memory for requests of all connections, in bytes: what has come and is not answered.
    pub request_bytes: usize,
    /// Memory for replies to all of them, in bytes: what has not left yet.
    pub reply_bytes: usize,
    /// Silence after which a connection is closed, and how long a client may leave its replies unread.
    pub idle_timeout: Duration,
    /// Where this node listens, for those who come to the wrong port.
    pub listens: foreign::Places,
    /// Client addresses of the other nodes, for requests that they must serve.
    pub nodes: BTreeMap<u64, String>,
}

/// A request as it came off the wire.
pub struct Incoming {
    /// Whose.
    pub caller: Caller,
    /// Which.
    pub opcode: Opcode,
    /// Its body.
    pub body: Bytes,
}

/// See the module documentation.
pub struct Gateway {
    config: GatewayConfig,
    /// The nodes' addresses for clients, by number.
    nodes: RefCell<BTreeMap<u64, String>>,
    inbox: RefCell<Vec<Incoming>>,
    connections: RefCell<BTreeMap<u64, Rc<Connection>>>,
    forwards: RefCell<BTreeMap<NodeId, Rc<forward::Link>>>,
    /// What became of requests that were passed on, by ticket.
    passages: RefCell<Vec<(u64, Passage)>>,
    /// What was found in batches, by the broker's ticket.
    opened: RefCell<Vec<(u64, Hit)>>,
    /// Of which broker the tickets are: whoever takes its place begins anew.
    broker: Cell<u64>,
    /// Connections that have ended since somebody asked.
    ended: RefCell<BTreeSet<u64>>,
    next_connection: Cell<u64>,
    /// What connections read small frames into, a quarter of the memory for requests; and half of it, for long frames and for
    /// requests under way. See [`IN_ANY_CASE`] for the rest.
    chunks: Rc<Budget>,
    requests: Rc<Budget>,
    replies: Rc<Budget>,
    /// How long replies are that grow with what the cluster has.
    reply_sizes: Cell<ReplySizes>,
    /// Whether there is a broker behind the inbox.
    serving: Cell<bool>,
    turn: Rc<Notify>,
    metrics: Arc<Metrics>,
    /// Set where traces are recorded.
    traces: Option<Traces>,
    validator: Validator,
}

impl Gateway {
    /// A gateway that wakes `turn` when requests have come. Nothing is accepted yet.
    pub fn new(
        config: GatewayConfig,
        turn: Rc<Notify>,
        metrics: Arc<Metrics>,
        traces: Option<Traces>,
    ) -> io::Result<Rc<Self>> {
        let validator = Validator::start(batch_limits(config.max_batch_bytes))?;
        Ok(Rc::new(Self {
            validator,
            nodes: RefCell::new(config.nodes.clone()),
            chunks: Budget::new(config.request_bytes / 4),
            requests: Budget::new(config.request_bytes / 2),
            replies: Budget::new(config.reply_bytes - config.reply_bytes / IN_ANY_CASE),
            reply_sizes: Cell::default(),
            config,
            inbox: RefCell::default(),
            connections: RefCell::default(),
            forwards: RefCell::default(),
            passages: RefCell::default(),
            opened: RefCell::default(),
            broker: Cell::new(0),
            ended: RefCell::default(),
            next_connection: Cell::new(0),
            serving: Cell::new(false),
            turn,
            metrics,
            traces,
        }))
    }

    /// From now on requests are served; until then clients are told to come back later.
    pub fn start_serving(&self) {
        self.serving.set(true);
    }

    /// From now on these are the nodes' addresses for clients.
    pub fn set_nodes(&self, nodes: BTreeMap<u64, String>) {
        *self.nodes.borrow_mut() = nodes;
    }

    /// End all connections of clients, whatever they have under way.
    pub fn drop_clients(&self) {
        self.inbox.borrow_mut().clear();
        if let Some(traces) = &self.traces {
            traces.forget();
        }
        self.connections.borrow().values().for_each(|connection| connection.abort.notify_one());
        // Whoever takes the broker's place gives its requests numbers anew.
        self.forwards.borrow().values().for_each(|link| link.forget());
        self.passages.borrow_mut().clear();
        self.broker.set(self.broker.get() + 1);
        self.opened.borrow_mut().clear();
    }

    /// Accept clients for ever.
    pub async fn accept(self: Rc<Self>, listener: TcpListener) {
        /// Pause after an accept that failed, as when file descriptors run out.
        const PAUSE: Duration = Duration::from_millis(100);
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.clone().admit(stream, from),
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "cannot accept a client connection; trying again. If file descriptors run out, raise the limit of \
                         this process (LimitNOFILE, ulimit -n)"
                    );
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(self: Rc<Self>, stream: TcpStream, from: std::net::SocketAddr) {
        /// Clients that are told at a time that there are too many.
        const MAX_REFUSALS: usize = 8;
        self.metrics.connections_total.inc();
        let connection = Rc::new(Connection::new(&self.requests, &self.replies));
        let open = self.connections.borrow().len();
        if open >= self.config.max_connections + MAX_REFUSALS {
            // Each of those who are told why holds a descriptor until it has heard it.
            tracing::warn!(
                %from,
                open,
                "closing a client's connection without a word: so many are refused at once that no more can be told why; raise \
                 limits.max_connections, or look for clients that leave connections open or connect too often"
            );
            return self.metrics.connections_refused_total.inc();
        }
        if open >= self.config.max_connections {
            self.metrics.connections_refused_total.inc();
            self.count_error(ErrorCode::Overloaded);
            tracing::warn!(
                %from,
                open,
                "refusing a client: no more connections than limits.max_connections, or than the limit of open files allows; \
                 raise it, or look for clients that leave connections open"
            );
            let message = format!("this node has {open} connections, which is its limit");
            connection.refuse(0, 0, ErrorReply::new(ErrorCode::Overloaded, message));
            connection.closing.set(true);
        }
        let id = self.next_connection.get() + 1;
        self.next_connection.set(id);
        self.connections.borrow_mut().insert(id, connection.clone());
        self.metrics.connections.inc();
        spawn_local(async move {
            if let Err(error) = self.serve(stream, id, &connection).await {
                tracing::debug!(%from, %error, "client connection ended");
            }
            self.connections.borrow_mut().remove(&id);
            self.metrics.connections.dec();
            if self.serving.get() {
                self.ended.borrow_mut().insert(id);
            }
        });
    }

    async fn serve(&self, stream: TcpStream, id: u64, connection: &Connection) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let write = connection.write(Rc::new(writer), &self.metrics.reply_seconds);
        let read = async {
            self.read(&reader, id, connection).await?;
            // The client has sent its last request, or one that cannot be answered: what is queued still leaves.
            connection.closing.set(true);
            connection.wake_writer.notify_one();
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            result = write => result,
            result = read => result,
            () = connection.abort.notified() => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client does not read its replies, is slow to send what it began, or the node begins anew"))
            }
        }
    }

    /// Read frames until the client ends or breaks the rules of the wire.
    async fn read(&self, reader: &OwnedReadHalf, id: u64, connection: &Connection) -> io::Result<()> {
        let mut chunk = Chunk::default();
        loop {
            let mut came = false;
            loop {
                self.wait_for_room(connection, 0, &mut came).await;
                let most = if connection.greeted.get() { usize::MAX } else { MAX_GREETING };
                match frame::decode(&mut chunk.buf, self.config.max_frame_bytes.min(most)) {
                    Ok(Some(frame)) => {
                        connection.received_whole();
                        let cost = self.cost(&frame);
                        // It counts from now on, also while it waits here; what it came in may go.
                        let held = Charge::new(self.requests.clone(), cost.held);
                        chunk.release();
                        let is_fetch = frame.header.opcode == u8::from(Opcode::Fetch);
                        self.wait_for_room(connection, if is_fetch { cost.reply } else { 0 }, &mut came).await;
                        let checked = match self.costly_batch(&frame) {
                            Some(batch) => {
                                if std::mem::take(&mut came) {
                                    self.turn.notify_one();
                                }
                                self.validator.validate(batch).await
                            }
                            None => None,
                        };
                        let reply = if is_fetch { 0 } else { cost.reply };
                        let room = self.take_reply_room(connection, reply, &mut came).await;
                        came |= self.take_frame(id, connection, frame, (cost, checked));
                        // From here on the connection owes the reply.
                        drop((held, room));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.count_error(error.code());
                        let stranger = foreign::answer(&self.config.listens, foreign::Port::Client, &chunk.buf);
                        match stranger.filter(|_| !connection.greeted.get()) {
                            Some(answer) => {
                                tracing::warn!(connection = id, "a client was refused: {}", answer.text);
                                connection.say(answer.bytes);
                            }
                            None => connection.refuse(0, 0, ErrorReply::new(error.code(), error.to_string())),
                        }
                        return Ok(());
                    }
                }
                if connection.closing.get() {
                    return Ok(());
                }
            }
            if came {
                self.turn.notify_one();
            }
            if !self.receive(reader, connection, &mut chunk).await? {
                return self.finish(connection).await;
            }
            connection.last_active.set(Instant::now());
        }
    }

    /// The client sends no more. What it has asked for is answered, but one that has gone altogether says no more than that: reads
    /// that take longer, for records or for a search, are given up.
    async fn finish(&self, connection: &Connection) -> io::Result<()> {
        let until = Instant::now() + LAST_READS;
        while connection.requests.get() > 0 {
            tokio::select! {
                () = connection.wake_reader.notified() => {}
                () = tokio::time::sleep_until(until.into()), if Instant::now() < until => {}
            }
            if Instant::now() >= until && connection.only_reads() {
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the client sends no more, and waits for nothing that it wrote",
                ));
            }
        }
        Ok(())
    }

    /// Wait until the next request may be taken, one whose reply may have `expected` bytes. `came` says that requests
    /// taken before are in the inbox, for a turn that has not been asked for yet.
    async fn wait_for_room(&self, connection: &Connection, expected: usize, came: &mut bool) {
        while self.must_wait(connection, expected) {
            if std::mem::take(came) {
                self.turn.notify_one();
            }
            // It is this node that does not read on.
            connection.received_whole();
            connection.wake_reader.notified().await;
        }
    }

    /// Wait until there is room for a reply that is longer than what every connection gets in any case: one for each of a
    /// thousand would be too much. A fetch is answered with as much as there is room for instead.
    async fn take_reply_room(&self, connection: &Connection, bytes: usize, came: &mut bool) -> Option<Charge> {
        let in_any_case = self.config.reply_bytes / IN_ANY_CASE / self.connections.borrow().len().max(1);
        if bytes <= in_any_case {
            return None;
        }
        if std::mem::take(came) {
            self.turn.notify_one();
        }
        // It is this node that does not read on.
        connection.received_whole();
        Some(self.replies.take(bytes.min(self.replies.limit())).await)
    }

    /// Replies that exist count against every request. Those that fetches may bring count against further fetches only,
    /// so that a fetch that waits for records does not hold up what comes after it. The fetch that finds no room holds
    /// up what is behind it, since requests keep their order; it goes ahead as soon as no other is under way, and those
    /// end with their `max_wait_ms`.
    fn must_wait(&self, connection: &Connection, expected: usize) -> bool {
        let unsent = connection.unsent();
        let under_way = connection.expected_of_fetches();
        let full = unsent > MAX_REPLY_BYTES
            || connection.requests.get() >= MAX_REQUESTS
            || (expected > 0 && under_way > 0 && unsent + under_way + expected > MAX_FETCH_BYTES);
        let is_greedy = |own: usize, budget: &Budget, all: usize| {
            let in_any_case = all / IN_ANY_CASE / self.connections.borrow().len().max(1);
            own > budget.room(0).max(in_any_case)
        };
        let greedy = is_greedy(connection.held(), &self.requests, self.config.request_bytes)
            || is_greedy(connection.owed(), &self.replies, self.config.reply_bytes);
        (full || greedy) && !connection.closing.get()
    }

    /// What to reckon with for a request. Of replies: for a fetch as much as it asks for, or one batch, which it gets even if
    /// that is longer.
    fn cost(&self, frame: &Frame) -> Cost {
        /// Where a fetch's body says `max_bytes`: behind `max_wait_ms` and `min_bytes`.
        const MAX_BYTES: std::ops::Range<usize> = 8..12;
        /// For what a reply to a fetch has besides records; it also bounds how many fetches are kept account of.
        const LEAST_FETCH: usize = 64 << 10;
        /// For a reply that has a few numbers, or an error.
        const LEAST_REPLY: usize = 256;
        let (len, sizes) = (frame.body.len(), self.reply_sizes.get());
        let (held, reply) = match Opcode::try_from(frame.header.opcode) {
            Ok(Opcode::Fetch) => {
                let context = context_len(frame);
                // One that is too short to be a fetch is refused with a few bytes.
                let wanted = frame
                    .body
                    .get(MAX_BYTES.start + context..MAX_BYTES.end + context)
                    .map_or(0, |mut bytes| bytes.get_u32_le() as usize);
                let most = wanted.max(self.config.max_batch_bytes).max(LEAST_FETCH);
                (len * ENTRIES_FACTOR, most)
            }
            Ok(Opcode::Metadata) => (len * ENTRIES_FACTOR, sizes.metadata),
            Ok(Opcode::ListTopics) => (len, sizes.topics),
            Ok(Opcode::CreateTopic | Opcode::DescribeTopic) => (len, sizes.topic),
            Ok(Opcode::ClusterInfo) => (len, sizes.cluster),
            Ok(Opcode::ListOffsets) => (len * ENTRIES_FACTOR, len * ENTRIES_FACTOR + LEAST_REPLY),
            _ => (len, LEAST_REPLY),
        };
        Cost { held: held + REQUEST_OVERHEAD, reply: reply.clamp(LEAST_REPLY, self.config.max_frame_bytes) }
    }

    /// Put a frame's request into the inbox; `false` if it was answered with an error at once.
    fn take_frame(
        &self,
        id: u64,
        connection: &Connection,
        frame: Frame,
        (cost, checked): (Cost, Option<Result<(), BatchError>>),
    ) -> bool {
        let Frame { header, mut body } = frame;
        let correlation = header.correlation;
        let refuse = |code: ErrorCode, message: String| {
            self.count_error(code);
            // A refusal before the greeting ends the connection.
            connection.closing.set(connection.closing.get() || !connection.greeted.get());
            connection.refuse(header.opcode, correlation, ErrorReply::new(code, message));
            false
        };
        if header.flags.contains(Flags::RESPONSE) {
            return refuse(ErrorCode::InvalidRequest, "a client sends requests, this frame is a response".into());
        }
        let opcode = match Opcode::try_from(header.opcode) {
            Ok(opcode) => opcode,
            Err(error) => return refuse(ErrorCode::UnknownOpcode, error.to_string()),
        };
        if !self.serving.get() {
            connection.closing.set(true);
            let message = "this node does not belong to a running cluster yet; /readyz says why".to_owned();
            return refuse(ErrorCode::NotReady, message);
        }
        if !connection.greeted.replace(true) && opcode != Opcode::Hello {
            connection.closing.set(true);
            let message = format!("the first request of a connection must be Hello, not {}", opcode.name());
            return refuse(ErrorCode::InvalidRequest, message);
        }
        let agreed = if opcode == Opcode::Hello { 0 } else { connection.features.get() };
        if header.flags.contains(Flags::TRACED) && agreed & trace::FEATURE == 0 {
            connection.closing.set(connection.closing.get() || opcode == Opcode::Hello);
            let message =
                "the flag TRACED, but no Hello of this connection was answered with trace contexts".to_owned();
            return refuse(ErrorCode::InvalidRequest, message);
        }
        if opcode == Opcode::Hello {
            let features = Request::decode(opcode, body.clone()).ok().map(|request| match request {
                Request::Hello(hello) => hello.features,
                _ => 0,
            });
            connection.features.set(features.unwrap_or(0) & trace::FEATURE);
        }
        let context = match header.flags.contains(Flags::TRACED).then(|| TraceContext::take(&mut body)) {
            Some(Err(error)) => return refuse(error.code(), format!("the trace context is too short: {error}")),
            Some(Ok(context)) => context,
            None => None,
        };
        let is_checked = match checked {
            Some(Err(error)) => {
                let Ok(Request::Produce(ProduceRequest { topic, partition, .. })) = Request::decode(opcode, body)
                else {
                    return refuse(error.code(), error.to_string());
                };
                return refuse(error.code(), format!("topic {topic:?} partition {partition}: {error}"));
            }
            Some(Ok(())) => true,
            None => false,
        };
        connection.begin(opcode, correlation, cost);
        let mut caller = Caller { connection: id, correlation, flags: header.flags };
        match &self.traces {
            Some(traces) => caller.flags = traces.arrived(caller, opcode, context, &body),
            None => caller.flags = caller.flags.without(Flags::TRACED),
        }
        if is_checked {
            caller.flags |= Flags::CHECKED;
        }
        self.inbox.borrow_mut().push(Incoming { caller, opcode, body });
        true
    }

    /// Take the requests that have come in.
    pub fn take_inbox(&self, into: &mut VecDeque<Incoming>) {
        into.extend(self.inbox.borrow_mut().drain(..));
    }

    /// The trace of a request whose caller has the flag `TRACED`.
    pub fn trace_context(&self, caller: Caller) -> Option<TraceContext> {
        self.traces.as_ref()?.context(caller)
    }

    /// The batch of a produce request, if it takes long to look through.
    fn costly_batch(&self, frame: &Frame) -> Option<Bytes> {
        let is_produce = frame.header.opcode == u8::from(Opcode::Produce);
        let context = context_len(frame);
        (is_produce && frame.body.len() >= context).then(|| Validator::costly(&frame.body.slice(context..))).flatten()
    }

    /// The end of a request, for its trace if it has one.
    fn trace_answer(&self, caller: Caller, code: ErrorCode) {
        if let Some(traces) = self.traces.as_ref().filter(|_| caller.flags.contains(Flags::TRACED)) {
            traces.answered(caller, code);
        }
    }

    /// Take what became of requests that were passed on.
    pub fn take_passages(&self) -> Vec<(u64, Passage)> {
        self.passages.take()
    }

    /// Take what was found in batches that the broker had opened here.
    pub fn take_opened(&self) -> Vec<(u64, Hit)> {
        self.opened.take()
    }

    fn passed(&self, ticket: u64, passage: Passage) {
        self.passages.borrow_mut().push((ticket, passage));
        self.turn.notify_one();
    }

    /// Take the connections that have ended.
    pub fn take_ended(&self) -> BTreeSet<u64> {
        self.ended.take()
    }

    /// Send what a turn has answered, and pass on what others must serve.
    pub fn dispatch(self: &Rc<Self>, outputs: &mut Vec<Output>) {
        let mut touched = BTreeSet::new();
        for output in outputs.drain(..) {
            match output {
                Output::Reply { caller, opcode, reply } => {
                    touched.insert(caller.connection);
                    if opcode == Opcode::Hello && reply.result.is_err() {
                        self.close(caller.connection);
                    }
                    self.answer(caller, opcode, |out| out.put_reply(opcode, caller.correlation, &reply));
                    self.trace_answer(caller, reply.result.as_ref().err().map_or(ErrorCode::None, |error| error.code));
                }
                Output::Relay { caller, opcode, body } => {
                    touched.insert(caller.connection);
                    self.relay(caller, opcode, &body);
                }
                Output::Forward { ticket, caller, opcode, body, to } => self.forward(to, ticket, caller, opcode, body),
            }
        }
        self.wake(touched);
    }

    fn answer(&self, caller: Caller, opcode: Opcode, write: impl FnOnce(&mut Outgoing)) {
        if let Some(connection) = self.connections.borrow().get(&caller.connection) {
            connection.end(opcode, caller.correlation, write);
        }
    }

    /// Close a connection once what is queued for it has been written.
    fn close(&self, connection: u64) {
        if let Some(connection) = self.connections.borrow().get(&connection) {
            connection.closing.set(true);
        }
    }

    fn wake(&self, touched: impl IntoIterator<Item = u64>) {
        let connections = self.connections.borrow();
        let now = Instant::now();
        for connection in touched.into_iter().filter_map(|id| connections.get(&id)) {
            connection.wake(now, &self.metrics.reply_seconds);
        }
    }

    /// From now on replies are reckoned to be so long.
    pub fn set_reply_sizes(&self, sizes: ReplySizes) {
        self.reply_sizes.set(sizes);
    }

    /// The broker holds so much of what has come in.
    pub fn set_load(&self, request_bytes: usize) {
        self.requests.set_elsewhere(request_bytes);
        let is_short = self.requests.is_short();
        if self.metrics.reading_paused.get() != u64::from(is_short) {
            self.metrics.reading_paused.set(is_short.into());
            self.metrics.reading_pauses_total.inc_by(is_short.into());
        }
    }

    /// End what has lasted too long: connections that have been silent, clients that do not read, and requests passed on
    /// to a node that does not answer. To be called from time to time.
    pub fn expire(&self, now: Instant) {
        let idle = self.config.idle_timeout;
        let unread = if self.replies.is_short() { idle.min(UNREAD) } else { idle };
        let (mut requests, is_short) = (0, self.requests.is_short() || self.chunks.is_short());
        for connection in self.connections.borrow().values() {
            requests += connection.requests.get() as u64;
            let silent = now.saturating_duration_since(connection.last_active.get());
            if connection.is_stranger(now) {
                self.cut(connection, "silent");
            } else if connection.unread_for(now).is_some_and(|since| since > unread) {
                self.cut(connection, "unread");
            } else if is_short && connection.is_slow_to_send(now) {
                self.cut(connection, "slow");
            } else if connection.unread_for(now).is_none() && connection.requests.get() == 0 && silent > idle {
                connection.closing.set(true);
                connection.wake_writer.notify_one();
            }
        }
        self.metrics.request_memory_bytes.set((self.requests.used() + self.chunks.used()) as u64);
        self.metrics.reply_memory_bytes.set(self.replies.used() as u64);
        self.metrics.in_flight_requests.set(requests);
        for link in self.forwards.borrow().values() {
            link.expire(now);
        }
    }

    fn cut(&self, connection: &Connection, reason: &str) {
        self.metrics.connections_cut_total.with_label_values(&[reason]).inc();
        connection.abort.notify_one();
    }

    /// Requests that are not answered yet.
    pub fn requests_under_way(&self) -> usize {
        self.connections.borrow().values().map(|connection| connection.requests.get()).sum()
    }

    /// Whether every reply has been handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        self.connections.borrow().values().all(|connection| connection.unsent() == 0)
    }

    /// Pass a request on to the node that must serve it.
    fn forward(self: &Rc<Self>, to: NodeId, ticket: u64, caller: Caller, opcode: Opcode, body: Bytes) {
        self.metrics.forwarded_requests_total.inc();
        let Some(address) = self.nodes.borrow().get(&to.node()).cloned() else {
            return self.passed(ticket, Passage::NotSent);
        };
        let mut forwards = self.forwards.borrow_mut();
        let link = forwards.entry(to).or_insert_with(|| forward::Link::start(self.clone(), to, address));
        let traces = self.traces.as_ref().filter(|_| caller.flags.contains(Flags::TRACED));
        let context = traces.and_then(|traces| traces.forwarded(caller, to));
        if !link.send((ticket, caller.connection), opcode, context, &body) {
            drop(forwards);
            self.passed(ticket, Passage::NotSent);
        }
    }

    fn count_error(&self, code: ErrorCode) {
        self.metrics.errors_total.with_label_values(&[code.name()]).inc();
    }

    /// The reply of another node: its body as it came, under the client's own correlation id.
    fn relay(&self, caller: Caller, opcode: Opcode, body: &Bytes) {
        self.answer(caller, opcode, |out| out.put_body(opcode, caller.correlation, body));
        // The outcome comes first in every reply.
        let code = body.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes));
        self.trace_answer(caller, ErrorCode::from(code));
    }
}

/// What the broker sees of the gateway.
#[derive(Clone)]
pub struct BrokerSide(pub Rc<Gateway>);

impl ReplyRoom for BrokerSide {
    fn room(&self, caller: Caller) -> usize {
        let connections = self.0.connections.borrow();
        connections.get(&caller.connection).map_or(0, |connection| self.0.replies.room(connection.owed()))
    }

    fn keep(&self, caller: Caller, bytes: usize) {
        if let Some(connection) = self.0.connections.borrow().get(&caller.connection) {
            connection.keep(caller.correlation, bytes);
        }
    }
}

impl Opener for BrokerSide {
    fn open(&self, ticket: u64, batch: Bytes, timestamp_ms: i64) {
        let (gateway, broker) = (self.0.clone(), self.0.broker.get());
        spawn_local(async move {
            // Without the thread the search waits until its time is up.
            let Some(hit) = gateway.validator.search(batch, timestamp_ms).await else { return };
            if gateway.broker.get() == broker {
                gateway.opened.borrow_mut().push((ticket, hit));
                gateway.turn.notify_one();
            }
        });
    }
}

/// Bytes of the trace context before a request's body.
fn context_len(frame: &Frame) -> usize {
    if frame.header.flags.contains(Flags::TRACED) { trace::LEN } else { 0 }
}
