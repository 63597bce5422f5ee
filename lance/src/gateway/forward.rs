//! Requests passed on: one connection to each other node's client port, on which the requests of all clients travel.
//!
//! A request is marked as forwarded, so that the other node passes it no further. What becomes of it is the broker's to judge: the
//! answer, that the connection broke, or that the other node was not reached. Requests may wait there for as long as their clients
//! say. A node that has sent nothing for a while is asked whether it is there; where it does not say so, the connection is given up:
//! the next request tries a new one.

use super::Gateway;
use super::receive::{LEAST_READ, READ_CHUNK};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_broker::{Passage, number_behind};
use lnc_protocol::frame::{self, Frame};
use lnc_protocol::message::HelloRequest;
use lnc_protocol::{
    Flags, Opcode, PROTOCOL_VERSION, Reply, Request, Response, TraceContext, decode_reply, encode_request, trace,
};
use lnc_raft::NodeId;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::timeout;

/// Correlation ids of the greeting and of the question whether the other node is there; requests start above them.
const HELLO: u64 = 0;
const PING: u64 = 1;
/// How long the other node may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the other node may say nothing while requests wait before it is asked whether it is there.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// How long it may say nothing then, before the connection is given up.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests that may wait for the other node.
const MAX_PENDING: usize = 16 << 10;
/// Bytes that may wait to be sent to it.
const MAX_QUEUE: usize = 32 << 20;

/// A connection to another node, for as long as it holds.
pub(super) struct Link {
    queue: RefCell<BytesMut>,
    wake: Notify,
    /// End the connection at once.
    abort: Notify,
    /// By number, of which those of a client ascend with the time.
    pending: RefCell<BTreeMap<u64, Pending>>,
    next: Cell<u64>,
    /// When the other node last sent anything.
    heard: Cell<Instant>,
    /// When it was asked whether it is there, if it has sent nothing since.
    pub(super) asked: Cell<Option<Instant>>,
    /// The other node has accepted the connection, and so may have got what was sent.
    reached: Cell<bool>,
    /// Longest body with which a trace context may travel, in bytes. The other node may not know of them, or not have said
    /// so yet.
    context_room: Cell<usize>,
}

/// A request that the other node has not answered yet.
struct Pending {
    ticket: u64,
    since: Instant,
}

impl Link {
    /// Connect to `address` and carry requests until the connection breaks.
    pub(super) fn start(gateway: Rc<Gateway>, node: NodeId, address: String) -> Rc<Self> {
        let link = Rc::new(Self {
            queue: RefCell::default(),
            wake: Notify::new(),
            abort: Notify::new(),
            pending: RefCell::default(),
            next: Cell::new(PING + 1),
            heard: Cell::new(Instant::now()),
            asked: Cell::new(None),
            reached: Cell::new(false),
            context_room: Cell::new(0),
        });
        let hello = HelloRequest {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client_name: "lance-forward".to_owned(),
            features: if gateway.traces.is_some() { trace::FEATURE } else { 0 },
            auth: Bytes::new(),
        };
        encode_request(&mut link.queue.borrow_mut(), Flags::NONE, HELLO, &Request::Hello(hello));
        let task = link.clone();
        spawn_local(async move {
            let error = match task.carry(&gateway, &address).await {
                Ok(()) => io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection"),
                Err(error) => error,
            };
            gateway.forwards.borrow_mut().remove(&node);
            tracing::debug!(%node, address, %error, "a connection for requests that are passed on broke");
            for ticket in task.pending.take().into_values().map(|pending| pending.ticket) {
                let passage = if task.reached.get() { Passage::Broken } else { Passage::NotSent };
                gateway.passed(ticket, passage);
            }
        });
        link
    }

    /// Queue a request of the client with this connection, with its trace if the other node understands that. False if there is
    /// no room.
    pub(super) fn send(
        &self,
        (ticket, connection): (u64, u64),
        opcode: Opcode,
        context: Option<TraceContext>,
        body: &Bytes,
    ) -> bool {
        let (waiting, bytes) = (self.pending.borrow().len(), self.queue.borrow().len());
        if waiting >= MAX_PENDING || bytes >= MAX_QUEUE {
            return false;
        }
        let number = self.next.get();
        self.next.set(number + 1);
        let number = number_behind(connection, number);
        self.pending.borrow_mut().insert(number, Pending { ticket, since: Instant::now() });
        let context = context.filter(|_| body.len() + trace::LEN <= self.context_room.get());
        let traced = if context.is_some() { Flags::TRACED } else { Flags::NONE };
        frame::encode(&mut self.queue.borrow_mut(), opcode, Flags::FORWARDED | traced, number, |out| {
            context.inspect(|context| context.encode(out));
            out.put_slice(body);
        });
        self.wake.notify_one();
        true
    }

    /// Nobody waits any more for what is under way.
    pub(super) fn forget(&self) {
        self.pending.borrow_mut().clear();
        self.abort.notify_one();
    }

    /// Ask for a sign of life where requests have waited for long without one, and give up a connection that gives none.
    pub(super) fn expire(&self, now: Instant) {
        let since = |at: Instant| now.saturating_duration_since(at);
        match self.asked.get() {
            Some(asked) if since(asked) > ANSWER_TIMEOUT => self.abort.notify_one(),
            Some(_) => {}
            None => {
                let waits = self.pending.borrow().values().any(|pending| since(pending.since) > SILENCE);
                if waits && since(self.heard.get()) > SILENCE {
                    self.asked.set(Some(now));
                    encode_request(&mut self.queue.borrow_mut(), Flags::NONE, PING, &Request::Ping);
                    self.wake.notify_one();
                }
            }
        }
    }

    /// Bytes have come.
    fn hear(&self) {
        self.heard.set(Instant::now());
        self.asked.set(None);
    }

    /// The other node has answered the greeting.
    fn greeted(&self, frame: Frame) {
        let Ok(Reply { result: Ok(Response::Hello(hello)) }) = decode_reply(Opcode::Hello, frame.body) else { return };
        if hello.features & trace::FEATURE != 0 {
            self.context_room.set(hello.max_frame_bytes as usize);
        }
    }

    async fn carry(&self, gateway: &Gateway, address: &str) -> io::Result<()> {
        let mut stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await??;
        self.reached.set(true);
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = stream.split();
        let write = async {
            loop {
                let mut chunk = self.queue.borrow_mut().split();
                if chunk.is_empty() {
                    self.wake.notified().await;
                    continue;
                }
                writer.write_all_buf(&mut chunk).await?;
            }
        };
        let read = async {
            let mut buf = BytesMut::new();
            loop {
                let limit = gateway.config.max_frame_bytes;
                while let Some(frame) = frame::decode(&mut buf, limit).map_err(io::Error::other)? {
                    if frame.header.correlation == HELLO {
                        self.greeted(frame);
                        continue;
                    }
                    let pending = self.pending.borrow_mut().remove(&frame.header.correlation);
                    if let Some(Pending { ticket, .. }) = pending {
                        gateway.passed(ticket, Passage::Answered(frame.body));
                    }
                }
                if buf.capacity() - buf.len() < LEAST_READ {
                    buf.reserve(READ_CHUNK);
                }
                if reader.read_buf(&mut buf).await? == 0 {
                    return Ok(());
                }
                self.hear();
            }
        };
        tokio::select! {
            result = write => result,
            result = read => result,
            () = self.abort.notified() => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
        }
    }
}
