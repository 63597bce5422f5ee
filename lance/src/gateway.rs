//! Client connections: frames in, replies out, and requests passed on to the node that must serve them.
//!
//! All of it runs on the shard's thread. A connection decodes frames into the gateway's inbox and wakes the node's turn;
//! the turn's replies are encoded straight into the connection's buffer and leave in one write at its end; records are not
//! copied.
//! A connection is not read while its replies pile up, while it has too many requests under way, or while the node is
//! short of memory. A client that does not take its replies is cut off.
//!
//! Where traces are recorded ([`traces`]), it is here that it is decided which, before a request reaches the inbox.

mod forward;
mod outgoing;
#[cfg(test)]
mod tests;
pub mod traces;

use crate::broker::{Caller, Output, Passage};
use bytes::{Buf, Bytes, BytesMut};
use lnc_metrics::{Histogram, Metrics};
use lnc_protocol::frame::{self, Frame};
use lnc_protocol::{ErrorCode, ErrorReply, Flags, Opcode, Reply, TraceContext, trace};
use lnc_raft::NodeId;
use outgoing::{Outgoing, Pieces};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::sleep;
use traces::Traces;

/// Requests of one connection that may be under way.
const MAX_REQUESTS: usize = 16 << 10;

/// Reply bytes that may wait on a connection before it is not read any more.
const MAX_REPLY_BYTES: usize = 8 << 20;

/// Reply bytes that may wait on a connection together with those that its fetches under way may still bring. It has room
/// for the four fetches of 8 MiB that a consumer keeps under way at one node.
const MAX_FETCH_BYTES: usize = 4 * MAX_REPLY_BYTES;

/// Room for one read from a socket.
const READ_CHUNK: usize = 64 << 10;

/// Room that a read finds at least. What was read stays where it is for as long as its requests and their records are
/// needed, so a new chunk for every read would hold on to a chunk for every few of them.
const LEAST_READ: usize = READ_CHUNK / 4;

/// What the gateway needs to know.
pub struct GatewayConfig {
    /// Largest frame body.
    pub max_frame_bytes: usize,
    /// Largest record batch.
    pub max_batch_bytes: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Silence after which a connection is closed, and how long a client may leave its replies unread.
    pub idle_timeout: Duration,
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

/// One client.
struct Connection {
    out: RefCell<Outgoing>,
    /// What was taken from `out` and the kernel has not accepted yet.
    writing: RefCell<Writing>,
    /// There until the connection closes.
    stream: RefCell<Option<Rc<OwnedWriteHalf>>>,
    /// When the kernel last accepted some, or was first offered them.
    last_written: Cell<Instant>,
    /// The kernel did not take all there is to write, or the connection must close.
    wake_writer: Notify,
    /// The connection may be read again.
    wake_reader: Notify,
    /// End the connection at once.
    abort: Notify,
    requests: Cell<usize>,
    fetches: RefCell<Fetches>,
    /// Since when replies wait to be taken for writing.
    ready_since: Cell<Option<Instant>>,
    /// Close once what is queued has been written.
    closing: Cell<bool>,
    greeted: Cell<bool>,
    last_active: Cell<Instant>,
}

/// See [`Connection::writing`].
#[derive(Default)]
struct Writing {
    pieces: Pieces,
    /// Since when they waited to be taken.
    since: Option<Instant>,
}

/// The fetches of a connection that are under way.
#[derive(Default)]
struct Fetches {
    /// By correlation id, which a careless client may have used twice: the reply bytes that each may bring.
    under_way: Vec<(u64, usize)>,
    /// The sum of these bytes.
    expected: usize,
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
    /// Connections that have ended since somebody asked.
    ended: RefCell<Vec<u64>>,
    next_connection: Cell<u64>,
    paused: Cell<bool>,
    /// Whether there is a broker behind the inbox.
    serving: Cell<bool>,
    turn: Rc<Notify>,
    metrics: Arc<Metrics>,
    /// Set where traces are recorded.
    traces: Option<Traces>,
}

impl Gateway {
    /// A gateway that wakes `turn` when requests have come. Nothing is accepted yet.
    pub fn new(config: GatewayConfig, turn: Rc<Notify>, metrics: Arc<Metrics>, traces: Option<Traces>) -> Rc<Self> {
        Rc::new(Self {
            nodes: RefCell::new(config.nodes.clone()),
            config,
            inbox: RefCell::default(),
            connections: RefCell::default(),
            forwards: RefCell::default(),
            passages: RefCell::default(),
            ended: RefCell::default(),
            next_connection: Cell::new(0),
            paused: Cell::new(false),
            serving: Cell::new(false),
            turn,
            metrics,
            traces,
        })
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
        let connection = Rc::new(Connection {
            out: RefCell::default(),
            writing: RefCell::default(),
            stream: RefCell::default(),
            last_written: Cell::new(Instant::now()),
            wake_writer: Notify::new(),
            wake_reader: Notify::new(),
            abort: Notify::new(),
            requests: Cell::new(0),
            fetches: RefCell::default(),
            ready_since: Cell::new(None),
            closing: Cell::new(false),
            greeted: Cell::new(false),
            last_active: Cell::new(Instant::now()),
        });
        let open = self.connections.borrow().len();
        if open >= self.config.max_connections + MAX_REFUSALS {
            // Each of those who are told why holds a descriptor until it has heard it.
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
                self.ended.borrow_mut().push(id);
            }
        });
    }

    async fn serve(&self, stream: TcpStream, id: u64, connection: &Connection) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (mut reader, writer) = stream.into_split();
        let write = connection.write(Rc::new(writer), &self.metrics.reply_seconds);
        let read = async {
            self.read(&mut reader, id, connection).await?;
            // The client has sent its last request, or one that cannot be answered: what is queued still leaves.
            connection.closing.set(true);
            connection.wake_writer.notify_one();
            std::future::pending::<io::Result<()>>().await
        };
        tokio::select! {
            result = write => result,
            result = read => result,
            () = connection.abort.notified() => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the client does not read its replies, or the node begins anew"))
            }
        }
    }

    /// Read frames until the client ends or breaks the rules of the wire.
    async fn read(&self, reader: &mut OwnedReadHalf, id: u64, connection: &Connection) -> io::Result<()> {
        let mut buf = BytesMut::with_capacity(READ_CHUNK);
        loop {
            let mut came = false;
            loop {
                self.wait_for_room(connection, 0, &mut came).await;
                match frame::decode(&mut buf, self.config.max_frame_bytes) {
                    Ok(Some(frame)) => {
                        let expected = self.expected_bytes(&frame);
                        self.wait_for_room(connection, expected, &mut came).await;
                        came |= self.take_frame(id, connection, frame, expected);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.count_error(error.code());
                        connection.refuse(0, 0, ErrorReply::new(error.code(), error.to_string()));
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
            if buf.capacity() - buf.len() < LEAST_READ {
                buf.reserve(READ_CHUNK);
            }
            if reader.read_buf(&mut buf).await? == 0 {
                while connection.requests.get() > 0 {
                    connection.wake_reader.notified().await;
                }
                return Ok(());
            }
            connection.last_active.set(Instant::now());
        }
    }

    /// Wait until the next request may be taken, one whose reply may have `expected` bytes. `came` says that requests
    /// taken before are in the inbox, for a turn that has not been asked for yet.
    async fn wait_for_room(&self, connection: &Connection, expected: usize, came: &mut bool) {
        while self.must_wait(connection, expected) {
            if std::mem::take(came) {
                self.turn.notify_one();
            }
            connection.wake_reader.notified().await;
        }
    }

    /// Replies that exist count against every request. Those that fetches may bring count against further fetches only,
    /// so that a fetch that waits for records does not hold up what comes after it. The fetch that finds no room holds
    /// up what is behind it, since requests keep their order; it goes ahead as soon as no other is under way, and those
    /// end with their `max_wait_ms`.
    fn must_wait(&self, connection: &Connection, expected: usize) -> bool {
        let unsent = connection.unsent();
        let under_way = connection.fetches.borrow().expected;
        let full = unsent > MAX_REPLY_BYTES
            || connection.requests.get() >= MAX_REQUESTS
            || (expected > 0 && under_way > 0 && unsent + under_way + expected > MAX_FETCH_BYTES);
        (full || self.paused.get()) && !connection.closing.get()
    }

    /// The reply bytes to reckon with: for a fetch as many as it asks for, or one batch, which it gets even if that is
    /// longer; 0 for other requests.
    fn expected_bytes(&self, frame: &Frame) -> usize {
        /// Where a fetch's body says `max_bytes`: behind `max_wait_ms` and `min_bytes`.
        const MAX_BYTES: std::ops::Range<usize> = 8..12;
        /// For what a reply has besides records; it also bounds how many fetches are kept account of.
        const LEAST: usize = 64 << 10;
        if frame.header.opcode != u8::from(Opcode::Fetch) {
            return 0;
        }
        let context = if frame.header.flags.contains(Flags::TRACED) { trace::LEN } else { 0 };
        // One that is too short to be a fetch is refused with a few bytes.
        let wanted = frame
            .body
            .get(MAX_BYTES.start + context..MAX_BYTES.end + context)
            .map_or(0, |mut bytes| bytes.get_u32_le() as usize);
        wanted.max(self.config.max_batch_bytes).max(LEAST).min(self.config.max_frame_bytes)
    }

    /// Put a frame's request into the inbox; `false` if it was answered with an error at once.
    fn take_frame(&self, id: u64, connection: &Connection, frame: Frame, expected: usize) -> bool {
        let Frame { header, mut body } = frame;
        let correlation = header.correlation;
        let refuse = |code: ErrorCode, message: String| {
            self.count_error(code);
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
        let context = match header.flags.contains(Flags::TRACED).then(|| TraceContext::take(&mut body)) {
            Some(Err(error)) => return refuse(error.code(), format!("the trace context is too short: {error}")),
            Some(Ok(context)) => context,
            None => None,
        };
        connection.requests.set(connection.requests.get() + 1);
        if opcode == Opcode::Fetch {
            connection.fetches.borrow_mut().start(correlation, expected);
        }
        let mut caller = Caller { connection: id, correlation, flags: header.flags };
        match &self.traces {
            Some(traces) => caller.flags = traces.arrived(caller, opcode, context, &body),
            None => caller.flags = caller.flags.without(Flags::TRACED),
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

    fn passed(&self, ticket: u64, passage: Passage) {
        self.passages.borrow_mut().push((ticket, passage));
        self.turn.notify_one();
    }

    /// Take the connections that have ended.
    pub fn take_ended(&self) -> Vec<u64> {
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
            connection.requests.set(connection.requests.get().saturating_sub(1));
            if opcode == Opcode::Fetch {
                connection.fetches.borrow_mut().end(caller.correlation);
            }
            write(&mut connection.out.borrow_mut());
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
            connection.ready_since.set(connection.ready_since.get().or(Some(now)));
            let all = matches!(connection.flush(&self.metrics.reply_seconds), Ok(true));
            if !all || connection.closing.get() {
                connection.wake_writer.notify_one();
            }
            connection.wake_reader.notify_one();
        }
    }

    /// Stop or resume reading from clients.
    pub fn set_paused(&self, paused: bool) {
        let before = self.paused.replace(paused);
        if before != paused {
            self.metrics.reading_paused.set(paused.into());
            self.metrics.reading_pauses_total.inc_by(paused.into());
        }
        if before && !paused {
            self.connections.borrow().values().for_each(|connection| connection.wake_reader.notify_one());
        }
    }

    /// End what has lasted too long: connections that have been silent, clients that do not read, and requests passed on
    /// to a node that does not answer. To be called from time to time.
    pub fn expire(&self, now: Instant) {
        let is_over = |since: &Cell<Instant>| now.saturating_duration_since(since.get()) > self.config.idle_timeout;
        let mut requests = 0;
        for connection in self.connections.borrow().values() {
            requests += connection.requests.get() as u64;
            if connection.writing.borrow().pieces.has_remaining() {
                if is_over(&connection.last_written) {
                    connection.abort.notify_one();
                }
            } else if connection.requests.get() == 0 && is_over(&connection.last_active) {
                connection.closing.set(true);
                connection.wake_writer.notify_one();
            }
        }
        self.metrics.in_flight_requests.set(requests);
        for link in self.forwards.borrow().values() {
            link.expire(now);
        }
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
        if !link.send(ticket, opcode, context, &body) {
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

impl Fetches {
    fn start(&mut self, correlation: u64, bytes: usize) {
        self.under_way.push((correlation, bytes));
        self.expected += bytes;
    }

    fn end(&mut self, correlation: u64) {
        if let Some(at) = self.under_way.iter().position(|(id, _)| *id == correlation) {
            let (_, bytes) = self.under_way.swap_remove(at);
            self.expected -= bytes;
        }
    }
}

impl Connection {
    /// Reply bytes that the kernel has not accepted yet.
    fn unsent(&self) -> usize {
        self.out.borrow().len() + self.writing.borrow().pieces.remaining()
    }

    fn refuse(&self, opcode: u8, correlation: u64, error: ErrorReply) {
        self.out.borrow_mut().put_reply(opcode, correlation, &Reply { result: Err(error) });
        self.wake_writer.notify_one();
    }

    /// Hand what is queued to the kernel, as far as it takes it now. Whether that is all.
    fn flush(&self, reply_seconds: &Histogram) -> io::Result<bool> {
        /// Pieces in one write.
        const MAX_PIECES: usize = 64;
        let stream = self.stream.borrow();
        let Some(stream) = stream.as_ref() else { return Ok(false) };
        let mut writing = self.writing.borrow_mut();
        loop {
            if !writing.pieces.has_remaining() {
                if let Some(since) = writing.since.take() {
                    reply_seconds.observe(since.elapsed().as_secs_f64());
                }
                writing.pieces = self.out.borrow_mut().take();
                if !writing.pieces.has_remaining() {
                    return Ok(true);
                }
                writing.since = self.ready_since.take();
                self.last_written.set(Instant::now());
            }
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let count = writing.pieces.chunks_vectored(&mut slices);
            match stream.try_write_vectored(&slices[..count]) {
                Ok(written) => {
                    writing.pieces.advance(written);
                    let now = Instant::now();
                    self.last_written.set(now);
                    self.last_active.set(now);
                    self.wake_reader.notify_one();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Write what is queued until the connection is to close.
    async fn write(&self, writer: Rc<OwnedWriteHalf>, reply_seconds: &Histogram) -> io::Result<()> {
        self.stream.replace(Some(writer.clone()));
        loop {
            if !self.flush(reply_seconds)? {
                writer.writable().await?;
            } else if self.closing.get() {
                // Nobody holds the stream's half then, and that ends it.
                self.stream.take();
                return Ok(());
            } else {
                self.wake_writer.notified().await;
            }
        }
    }
}
