//! Requests passed on: one connection to each other node's client port, on which the requests of all clients travel.
//!
//! A request is marked as forwarded, so that it moves at most once. When the connection breaks, whoever waits is told
//! that the outcome is not known: the client may try again, and idempotence makes that safe. The same is said when the
//! other node does not answer, and the connection is given up: the next request tries a new one.

use super::{Caller, Gateway, LEAST_READ, READ_CHUNK};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_protocol::frame::{self, Frame};
use lnc_protocol::message::HelloRequest;
use lnc_protocol::{
    ErrorCode, Flags, Opcode, PROTOCOL_VERSION, Reply, Request, Response, TraceContext, decode_reply, encode_request,
    trace,
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

/// Correlation id of the greeting; requests start above it.
const HELLO: u64 = 0;
/// How long the other node may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the other node may take over a request. One that works is far quicker, even through an election: a leader
/// that has lost its majority gives up its office and says so. Fetches, which may wait longer, are never passed on.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
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
    /// By number, which ascends with the time.
    pending: RefCell<BTreeMap<u64, Pending>>,
    next: Cell<u64>,
    /// Longest body with which a trace context may travel, in bytes. The other node may not know of them, or not have said
    /// so yet.
    context_room: Cell<usize>,
}

/// A request that the other node has not answered yet.
struct Pending {
    caller: Caller,
    opcode: Opcode,
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
            next: Cell::new(HELLO + 1),
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
            for Pending { caller, opcode, .. } in task.pending.take().into_values() {
                let message = format!("the connection to node {node} at {address} broke: {error}");
                gateway.refuse(caller, opcode, ErrorCode::LeadershipLost, message);
            }
        });
        link
    }

    /// Queue a request, with its trace if the other node understands that; an error says why there is no room.
    pub(super) fn send(
        &self,
        caller: Caller,
        opcode: Opcode,
        context: Option<TraceContext>,
        body: &Bytes,
    ) -> Result<(), String> {
        let (waiting, bytes) = (self.pending.borrow().len(), self.queue.borrow().len());
        if waiting >= MAX_PENDING || bytes >= MAX_QUEUE {
            return Err(format!("{waiting} requests with {bytes} bytes wait for the leader already"));
        }
        let number = self.next.get();
        self.next.set(number + 1);
        self.pending.borrow_mut().insert(number, Pending { caller, opcode, since: Instant::now() });
        let context = context.filter(|_| body.len() + trace::LEN <= self.context_room.get());
        let traced = if context.is_some() { Flags::TRACED } else { Flags::NONE };
        frame::encode(&mut self.queue.borrow_mut(), opcode, Flags::FORWARDED | traced, number, |out| {
            context.inspect(|context| context.encode(out));
            out.put_slice(body);
        });
        self.wake.notify_one();
        Ok(())
    }

    /// Answer requests that have waited for too long. The connection on which they did is given up.
    pub(super) fn expire(&self, gateway: &Gateway, now: Instant) {
        let is_over = |oldest: &Pending| now.saturating_duration_since(oldest.since) > ANSWER_TIMEOUT;
        let take_overdue = || {
            let mut pending = self.pending.borrow_mut();
            pending.first_entry().filter(|oldest| is_over(oldest.get())).map(|oldest| oldest.remove())
        };
        while let Some(Pending { caller, opcode, .. }) = take_overdue() {
            self.abort.notify_one();
            let seconds = ANSWER_TIMEOUT.as_secs();
            let message = format!("the leader has not answered for {seconds} s; the outcome is not known");
            gateway.refuse(caller, opcode, ErrorCode::Timeout, message);
        }
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
                    if let Some(Pending { caller, opcode, .. }) = pending {
                        gateway.relay(caller, opcode, &frame.body);
                    }
                }
                if buf.capacity() - buf.len() < LEAST_READ {
                    buf.reserve(READ_CHUNK);
                }
                if reader.read_buf(&mut buf).await? == 0 {
                    return Ok(());
                }
            }
        };
        tokio::select! {
            result = write => result,
            result = read => result,
            () = self.abort.notified() => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
        }
    }
}
