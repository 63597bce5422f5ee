//! One connection to one broker: pipelined requests, matched to their replies by correlation id.
//!
//! [`Connection::submit`] encodes a request straight into the connection's outgoing buffer and returns a future for
//! the reply. One task writes: each time it wakes it takes all that has gathered and hands it to the socket in one
//! write. One task reads: it wakes the futures of all replies that one read brought. A request costs no task, no
//! channel and no allocation of its own; waiting requests live in a table whose slots are reused.
//!
//! This is the low-level interface. It knows nothing about leaders and never retries; [`Client`](crate::Client) does.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lnc_protocol::PROTOCOL_VERSION;
use lnc_protocol::frame::{self, Flags, Frame, FrameError};
use lnc_protocol::message::{
    HelloRequest, HelloResponse, Opcode, Reply, Request, Response, decode_reply, encode_request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::error::{Error, Operation, Result, time};

/// How much room is made for reads at a time, in bytes: enough for some hundred replies to small requests.
const READ_CHUNK: usize = 64 * 1024;

/// How much room a read finds at least, in bytes. Below that, a new chunk is cheaper than many short reads.
const LEAST_READ: usize = 8 * 1024;

/// A write buffer that has grown beyond this many bytes is given back after use.
const KEPT_WRITE_BUFFER: usize = 1024 * 1024;

/// The settings of a [`Connection`].
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// How the client introduces itself in the broker's logs.
    pub client_name: String,
    /// How long connecting and the exchange of `Hello` may take together.
    pub timeout: Duration,
    /// The longest reply body accepted, in bytes. A peer that announces more is not waited for.
    pub max_reply_bytes: usize,
    /// Above this many bytes not yet taken by the socket, [`Connection::request`] waits before it submits.
    pub max_queued_bytes: usize,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        ConnectOptions {
            client_name: "lnc-client".into(),
            timeout: Duration::from_secs(2),
            max_reply_bytes: 64 * 1024 * 1024,
            max_queued_bytes: 8 * 1024 * 1024,
        }
    }
}

/// A connection to a broker, past its `Hello`. Cheap to clone; the connection closes when the last clone and the last
/// [`PendingReply`] are gone.
#[derive(Clone)]
pub struct Connection {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    hello: HelloResponse,
    max_queued_bytes: usize,
    tasks: Tasks,
}

/// Ends the connection's tasks when dropped.
struct Tasks {
    shared: Arc<Shared>,
    reader: AbortHandle,
}

struct Shared {
    address: Arc<str>,
    state: Mutex<State>,
    /// Wakes the writer: `outgoing` is no longer empty, or the connection ended.
    outgoing_filled: Notify,
    /// Wakes requesters that wait for room: the writer took `outgoing`.
    outgoing_taken: Notify,
}

struct State {
    /// Encoded requests the writer has not taken yet.
    outgoing: BytesMut,
    slots: Slots,
    /// When the broker was last heard.
    heard_at: Instant,
    /// Why the connection ended. Set once.
    ended: Option<Error>,
    /// `Hello` was answered.
    greeted: bool,
}

impl Connection {
    /// Connects to `address` ("host:port") and exchanges `Hello`.
    pub async fn connect(address: &str, options: &ConnectOptions) -> Result<Connection> {
        let address: Arc<str> = address.into();
        let attempt = Self::connect_inner(&address, options);
        tokio::time::timeout(options.timeout, attempt).await.unwrap_or_else(|_| {
            let error = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {}", time(options.timeout)));
            Err(Error::Connect { address, source: Arc::new(error) })
        })
    }

    async fn connect_inner(address: &Arc<str>, options: &ConnectOptions) -> Result<Connection> {
        let failed = |error: io::Error| Error::Connect { address: address.clone(), source: Arc::new(error) };
        let stream = TcpStream::connect(&**address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (reader, writer) = stream.into_split();
        let state = State {
            outgoing: BytesMut::new(),
            slots: Slots::default(),
            heard_at: Instant::now(),
            ended: None,
            greeted: false,
        };
        let shared = Arc::new(Shared {
            address: address.clone(),
            state: Mutex::new(state),
            outgoing_filled: Notify::new(),
            outgoing_taken: Notify::new(),
        });
        tokio::spawn(write_requests(shared.clone(), writer));
        let reader = tokio::spawn(read_replies(shared.clone(), reader, options.max_reply_bytes));
        let tasks = Tasks { shared: shared.clone(), reader: reader.abort_handle() };

        let hello = HelloRequest {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client_name: options.client_name.clone(),
            features: 0,
            auth: Bytes::new(),
        };
        let (key, opcode) = shared.submit(&Request::Hello(hello), Flags::NONE);
        let waiting = Waiting { shared: &shared, key: Some(key), opcode };
        let hello = match waiting.await?.result {
            Ok(Response::Hello(hello)) if hello.version == PROTOCOL_VERSION => hello,
            Ok(Response::Hello(hello)) => {
                return Err(Error::protocol(address, format_args!("chose version {}", hello.version)));
            }
            Ok(_) => return Err(Error::protocol(address, "answered Hello with another message")),
            Err(reply) => return Err(Error::protocol(address, format_args!("refused Hello: {reply}"))),
        };
        let max_queued_bytes = options.max_queued_bytes;
        shared.lock().greeted = true;
        Ok(Connection { handle: Arc::new(Handle { shared, hello, max_queued_bytes, tasks }) })
    }

    /// The address connected to.
    pub fn address(&self) -> &Arc<str> {
        &self.handle.shared.address
    }

    /// What the broker said about itself and its limits.
    pub fn hello(&self) -> &HelloResponse {
        &self.handle.hello
    }

    /// Whether the connection still stands, as far as is known here.
    pub fn is_open(&self) -> bool {
        self.handle.shared.lock().ended.is_none()
    }

    /// When the last answer to any request arrived.
    pub fn heard_at(&self) -> Instant {
        self.handle.shared.lock().heard_at
    }

    /// Ends the connection: requests under way fail with [`Error::ConnectionLost`] for the given reason.
    pub fn close(&self, reason: &str) {
        self.handle.shared.end(Error::lost(self.address(), reason));
        self.handle.tasks.reader.abort();
    }

    /// Queues a request for sending, in the order of the calls, and returns the future of its reply. Never waits: the
    /// caller bounds what it has under way, or asks [`Connection::ready`] first. Dropping the future abandons the
    /// reply, not the request.
    pub fn submit(&self, request: &Request, flags: Flags) -> PendingReply {
        let (key, opcode) = self.handle.shared.submit(request, flags);
        PendingReply { connection: self.clone(), key: Some(key), opcode }
    }

    /// Waits until less than the configured number of bytes is queued for sending, or the connection has ended.
    pub async fn ready(&self) {
        let shared = &self.handle.shared;
        loop {
            let mut taken = std::pin::pin!(shared.outgoing_taken.notified());
            taken.as_mut().enable();
            {
                let state = shared.lock();
                if state.outgoing.len() < self.handle.max_queued_bytes || state.ended.is_some() {
                    return;
                }
            }
            taken.await;
        }
    }

    /// Sends a request and waits for its reply, however long that takes.
    ///
    /// An error is a failure of the connection; what the broker refuses is in the [`Reply`].
    pub async fn request(&self, request: &Request) -> Result<Reply> {
        self.ready().await;
        self.submit(request, Flags::NONE).await
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", self.address()).field("open", &self.is_open()).finish()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.shared.end(Error::Closed);
        self.reader.abort();
    }
}

/// The future of one reply. Resolves to an error when the connection ends first.
#[must_use = "the reply is abandoned when this is dropped"]
pub struct PendingReply {
    connection: Connection,
    key: Option<SlotKey>,
    opcode: Opcode,
}

impl PendingReply {
    /// The connection that the request went out on.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Future for PendingReply {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.connection.handle.shared.poll_reply(&mut this.key, this.opcode, cx)
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        self.connection.handle.shared.abandon(self.key.take());
    }
}

/// The future of the reply to `Hello`, before there is a [`Connection`] that could own it.
struct Waiting<'a> {
    shared: &'a Shared,
    key: Option<SlotKey>,
    opcode: Opcode,
}

impl Future for Waiting<'_> {
    type Output = Result<Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        this.shared.poll_reply(&mut this.key, this.opcode, cx)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics between two related changes of the state, so a poisoned lock guards a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, request: &Request, flags: Flags) -> (SlotKey, Opcode) {
        let opcode = request.opcode();
        let mut state = self.lock();
        let key = state.slots.occupy();
        if state.ended.is_some() {
            return (key, opcode);
        }
        let was_empty = state.outgoing.is_empty();
        encode_request(&mut state.outgoing, flags, key.correlation(), request);
        drop(state);
        if was_empty {
            self.outgoing_filled.notify_one();
        }
        (key, opcode)
    }

    fn poll_reply(&self, key: &mut Option<SlotKey>, opcode: Opcode, cx: &mut Context<'_>) -> Poll<Result<Reply>> {
        let Some(slot) = *key else { return Poll::Ready(Err(Error::Closed)) };
        let frame = {
            let mut state = self.lock();
            let State { slots, ended, .. } = &mut *state;
            match slots.take_reply(slot) {
                Some(frame) => Ok(frame),
                None => match ended {
                    Some(error) => {
                        slots.vacate(slot);
                        Err(error.clone())
                    }
                    None => {
                        slots.wait(slot, cx.waker());
                        return Poll::Pending;
                    }
                },
            }
        };
        *key = None;
        Poll::Ready(frame.and_then(|frame| self.decode(opcode, frame)))
    }

    /// Reads a reply's body. The frame was sound, so a body that does not decode comes from a peer that is confused,
    /// and nothing else it says on this connection can be relied on.
    fn decode(&self, opcode: Opcode, frame: Frame) -> Result<Reply> {
        let problem = if frame.header.opcode != u8::from(opcode) {
            format!("answered {} with opcode {}", opcode.name(), frame.header.opcode)
        } else {
            match decode_reply(opcode, frame.body) {
                Ok(reply) => return Ok(reply),
                Err(error) => format!("reply to {} does not decode: {error}", opcode.name()),
            }
        };
        let error = Error::protocol(&self.address, problem);
        self.end(error.clone());
        Err(error)
    }

    /// What the broker says about the connection as a whole, before it closes it: a reply without an opcode. On one that was
    /// in use it is lost, and nobody knows what became of the requests under way.
    fn about_connection(&self, frame: &Frame) -> Option<Error> {
        // A refusal is the same for every request.
        let reply = match decode_reply(Opcode::Ping, frame.body.clone()).map(|reply| reply.result) {
            Ok(Err(reply)) => reply,
            _ => return Some(Error::protocol(&self.address, "sent a reply to no request")),
        };
        if self.lock().greeted {
            return Some(Error::lost(&self.address, reply));
        }
        let operation = Operation::new("connect");
        Some(Error::Broker { operation, address: self.address.clone(), reply: Box::new(reply) })
    }

    fn abandon(&self, key: Option<SlotKey>) {
        if let Some(key) = key {
            self.lock().slots.vacate(key);
        }
    }

    /// Hands replies to those who wait for them. False if one of them answers nothing that was ever asked.
    fn deliver(&self, frames: &mut Vec<Frame>, wakers: &mut Vec<Waker>) -> bool {
        let mut sound = true;
        {
            let mut state = self.lock();
            if !frames.is_empty() {
                state.heard_at = Instant::now();
            }
            for frame in frames.drain(..) {
                sound &= frame.header.flags.contains(Flags::RESPONSE)
                    && state.slots.put_reply(SlotKey::from_correlation(frame.header.correlation), frame, wakers);
            }
        }
        wakers.drain(..).for_each(Waker::wake);
        sound
    }

    fn end(&self, error: Error) {
        let wakers = {
            let mut state = self.lock();
            if state.ended.is_some() {
                return;
            }
            state.ended = Some(error);
            state.outgoing = BytesMut::new();
            state.slots.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
        self.outgoing_filled.notify_one();
        self.outgoing_taken.notify_waiters();
    }
}

async fn write_requests(shared: Arc<Shared>, mut socket: OwnedWriteHalf) {
    let mut taken = BytesMut::new();
    loop {
        {
            let mut state = shared.lock();
            if state.ended.is_some() {
                return;
            }
            std::mem::swap(&mut taken, &mut state.outgoing);
        }
        if taken.is_empty() {
            shared.outgoing_filled.notified().await;
            continue;
        }
        shared.outgoing_taken.notify_waiters();
        if let Err(error) = socket.write_all(&taken).await {
            shared.end(Error::lost(&shared.address, error));
            return;
        }
        if taken.capacity() > KEPT_WRITE_BUFFER {
            taken = BytesMut::new();
        } else {
            taken.clear();
        }
    }
}

async fn read_replies(shared: Arc<Shared>, mut socket: OwnedReadHalf, max_body: usize) {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    let mut wakers = Vec::new();
    loop {
        let damage = loop {
            match frame::decode(&mut buffer, max_body) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        // What was answered before it counts.
        let about = frames.iter().position(|frame| frame.header.opcode == 0).map(|at| frames.split_off(at));
        if !shared.deliver(&mut frames, &mut wakers) {
            return shared.end(Error::protocol(&shared.address, "sent an answer to a request that was never made"));
        }
        if let Some(error) = about.and_then(|frames| shared.about_connection(frames.first()?)) {
            return shared.end(error);
        }
        match damage {
            None => {}
            // Damage in transit says nothing about the peer: a new connection is worth a try.
            Some(error @ FrameError::BadCrc { .. }) => return shared.end(Error::lost(&shared.address, error)),
            Some(error) => return shared.end(Error::protocol(&shared.address, error)),
        }
        // The limit on the body has been checked, so this reserves a bounded amount.
        let missing = frame::needed(&buffer) - buffer.len();
        if buffer.capacity() - buffer.len() < missing.max(LEAST_READ) {
            buffer.reserve(missing.max(READ_CHUNK));
        }
        match socket.read_buf(&mut buffer).await {
            Ok(0) => return shared.end(Error::lost(&shared.address, "closed by the broker")),
            Ok(_) => {}
            Err(error) => return shared.end(Error::lost(&shared.address, error)),
        }
    }
}

/// Names one request under way. The generation tells a reused slot from its former occupant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SlotKey {
    index: u32,
    generation: u32,
}

impl SlotKey {
    fn correlation(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn from_correlation(correlation: u64) -> Self {
        SlotKey { index: correlation as u32, generation: (correlation >> 32) as u32 }
    }
}

/// The table of requests under way.
#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
}

struct Slot {
    generation: u32,
    content: Content,
}

enum Content {
    Vacant,
    Waiting(Option<Waker>),
    Replied(Frame),
}

impl Slots {
    fn occupy(&mut self) -> SlotKey {
        let content = Content::Waiting(None);
        match self.vacant.pop() {
            Some(index) => {
                let slot = &mut self.slots[index as usize];
                slot.content = content;
                SlotKey { index, generation: slot.generation }
            }
            None => {
                let index = u32::try_from(self.slots.len()).expect("fewer requests under way than fit into memory");
                self.slots.push(Slot { generation: 0, content });
                SlotKey { index, generation: 0 }
            }
        }
    }

    fn vacate(&mut self, key: SlotKey) {
        let slot = &mut self.slots[key.index as usize];
        debug_assert_eq!(slot.generation, key.generation, "a key is given up once");
        slot.generation = slot.generation.wrapping_add(1);
        slot.content = Content::Vacant;
        self.vacant.push(key.index);
    }

    fn take_reply(&mut self, key: SlotKey) -> Option<Frame> {
        let slot = &mut self.slots[key.index as usize];
        if !matches!(slot.content, Content::Replied(_)) {
            return None;
        }
        let content = std::mem::replace(&mut slot.content, Content::Vacant);
        self.vacate(key);
        match content {
            Content::Replied(frame) => Some(frame),
            Content::Vacant | Content::Waiting(_) => None,
        }
    }

    fn wait(&mut self, key: SlotKey, waker: &Waker) {
        match &mut self.slots[key.index as usize].content {
            Content::Waiting(Some(old)) if old.will_wake(waker) => {}
            content => *content = Content::Waiting(Some(waker.clone())),
        }
    }

    /// Files a reply under its request. A reply to an abandoned request is dropped; false for a request never made or
    /// already answered.
    fn put_reply(&mut self, key: SlotKey, frame: Frame, wakers: &mut Vec<Waker>) -> bool {
        let Some(slot) = self.slots.get_mut(key.index as usize) else { return false };
        if slot.generation != key.generation {
            // Generations wrap; what lies in the half behind the present one counts as past.
            return slot.generation.wrapping_sub(key.generation) < u32::MAX / 2;
        }
        match std::mem::replace(&mut slot.content, Content::Vacant) {
            Content::Waiting(waker) => {
                wakers.extend(waker);
                slot.content = Content::Replied(frame);
                true
            }
            other => {
                slot.content = other;
                false
            }
        }
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        let waiting = self.slots.iter_mut().filter_map(|slot| match &mut slot.content {
            Content::Waiting(waker) => waker.take(),
            Content::Vacant | Content::Replied(_) => None,
        });
        waiting.collect()
    }
}
