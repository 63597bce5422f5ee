//! The channels between brokers: for each peer one connection for control and one for replication in each direction,
//! so that a vote or a heartbeat never waits behind data.
//!
//! A node sends on the connections it dialled and receives on those it accepted. A connection that breaks is replaced by
//! a new one after a jittered, growing pause; what was queued on it is dropped, which Raft takes for a lossy network.
//! So is one whose other end is gone without a word, or does not read: see [`UNANSWERED`].
//! Everything here runs on the shard's own thread.

use crate::formation::{Channel, Formats, Greeted, Greeting, Identity, admit};
pub use crate::strangers::MOST as MOST_STRANGERS;
use crate::strangers::Strangers;
use crate::twins::{Arrival, Twins};
use crate::wire::{MAX_FRAME_BODY, PeerMessage, WireError, fits_a_frame, put_frame, put_messages, take_frame};
use bytes::{Buf, Bytes, BytesMut};
use lnc_metrics::Metrics;
use lnc_raft::NodeId;
use socket2::{SockRef, TcpKeepalive};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// How long a peer may take to accept a connection and to answer the greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest greeting, in bytes.
const MAX_GREETING: usize = 16 << 10;
/// First and longest pause before a connection is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Bytes that may wait on a control connection before it is given up.
const CONTROL_QUEUE: usize = 4 << 20;
/// How long bytes may wait to be acknowledged, or the peer's window stay shut, before the kernel breaks a connection: a
/// few election timeouts, so that a pause of the peer's host or a few lost segments cost no connection. Without it a host
/// that vanished, or a network that drops, would look connected for a quarter of an hour, and once healed the
/// connection would still sit out its last, long retransmission pause.
const UNANSWERED: Duration = Duration::from_secs(2);
/// Silence on a connection before the kernel asks whether the peer is there, and between two questions: the least that
/// kernels allow. This finds out for the accepting end, which sends nothing, and for a connection that is idle.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Pause between two times that members are asked whether there are newer ones.
const INQUIRY: Duration = Duration::from_secs(1);
/// Room for one read from a socket.
const READ_CHUNK: usize = 256 << 10;

/// Room that a read finds at least. What was read stays where it is for as long as the entries in it are needed, so a new
/// chunk for every read would hold on to a chunk for every few of them.
const LEAST_READ: usize = READ_CHUNK / 4;

/// What the channels tell the node.
pub enum PeerEvent {
    /// A frame of messages, to be read with [`crate::wire::take_message`].
    Frame {
        /// Who sent it.
        from: NodeId,
        /// The frame's body.
        body: Bytes,
    },
    /// The peer's control connection broke.
    Lost(NodeId),
    /// What a peer says about itself that this node has dialled.
    Heard(Identity),
    /// What somebody says about itself whom this node does not know as a member.
    Knocked(Identity),
    /// A peer that this node has dialled takes it for a member.
    Admitted {
        /// The peer.
        peer: NodeId,
    },
    /// This node was refused by a peer.
    Refused {
        /// The peer.
        peer: NodeId,
        /// How new its list of members is, if it is newer and this node is not on it.
        removed: Option<u64>,
    },
    /// Another process with this node's identity is connected to a peer, or wants to be.
    Twin {
        /// Who says so.
        peer: NodeId,
    },
}

/// One outgoing connection's queue.
#[derive(Default)]
struct Outgoing {
    queue: RefCell<BytesMut>,
    /// There once the greeting is over.
    stream: RefCell<Option<Rc<TcpStream>>>,
    /// The kernel did not take all of the queue, or the connection broke.
    wake: Notify,
    /// The connection is no longer to be used, even if a write is under way.
    given_up: Notify,
    connected: Cell<bool>,
    /// Who is at the other end, once connected.
    member: Cell<Option<(NodeId, Greeted)>>,
    /// The node is no longer to be dialled.
    dropped: Cell<bool>,
    /// There is a reason to dial now.
    hurry: Notify,
}

impl Outgoing {
    /// End the connection, whatever it is busy with.
    fn give_up(&self) {
        self.connected.set(false);
        self.given_up.notify_one();
    }

    /// Write as much of the queue as the kernel takes now. Whether that is all.
    fn write(&self) -> io::Result<bool> {
        let stream = self.stream.borrow();
        let mut queue = self.queue.borrow_mut();
        while let Some(stream) = stream.as_ref().filter(|_| !queue.is_empty()) {
            match stream.try_write(&queue) {
                Ok(written) => queue.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The outgoing connections of a node, and what its peers need to know of it.
pub struct Peers {
    identity: RefCell<Identity>,
    formats: Cell<Formats>,
    /// By node number.
    addresses: RefCell<BTreeMap<u64, String>>,
    outgoing: RefCell<BTreeMap<(u64, Channel), Rc<Outgoing>>>,
    metrics: Arc<Metrics>,
    events: Box<dyn Fn(PeerEvent)>,
    /// Bytes that may wait on a replication connection before it is given up. The windows of Raft keep it below.
    queue_bytes: usize,
    strangers: Strangers,
    foreign: RefCell<Foreign>,
    /// Spreads the retries of different nodes.
    jitter: Cell<u64>,
    /// Which process this is.
    run: u64,
    started: Instant,
    twins: RefCell<Twins>,
    /// By whom to end the replication channel of a member, so that it comes again and hears of its twin.
    tell: RefCell<BTreeMap<NodeId, Rc<Notify>>>,
    /// Members are being asked whether there are newer ones.
    inquiring: Cell<bool>,
    /// When this node last lost a connection to a member that it had dialled; its start, before that.
    company_at: Cell<Instant>,
}

/// What to say to who begins a connection with these bytes, in words for the log and as bytes for the other side; `None` if
/// there is nothing to say.
pub type Foreign = Box<dyn Fn(&[u8]) -> Option<(String, Bytes)>>;

/// An accepted connection counts for as long as this lives.
struct Counted<'a> {
    twins: &'a RefCell<Twins>,
    member: NodeId,
    run: u64,
}

impl<'a> Counted<'a> {
    fn new(twins: &'a RefCell<Twins>, member: NodeId, run: u64) -> Self {
        twins.borrow_mut().begins(member, run);
        Self { twins, member, run }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.twins.borrow_mut().ends(self.member, self.run);
    }
}

impl Peers {
    /// Start dialling `addresses` (of every other node, by number) and accepting on `listener`. `run` is drawn for each
    /// start of a process; `queue_bytes` is how much may wait to be sent to one node. Must run inside a `LocalSet`.
    pub fn start(
        listener: TcpListener,
        (identity, run): (Identity, u64),
        formats: Formats,
        (addresses, queue_bytes): (BTreeMap<u64, String>, usize),
        metrics: Arc<Metrics>,
        events: Box<dyn Fn(PeerEvent)>,
    ) -> Rc<Self> {
        let jitter = Cell::new(identity.incarnation | 1);
        let peers = Rc::new(Self {
            identity: RefCell::new(identity.clone()),
            formats: Cell::new(formats),
            addresses: RefCell::default(),
            outgoing: RefCell::default(),
            metrics,
            events,
            queue_bytes,
            strangers: Strangers::default(),
            foreign: RefCell::new(Box::new(|_| None)),
            jitter,
            run,
            started: Instant::now(),
            twins: RefCell::default(),
            tell: RefCell::default(),
            inquiring: Cell::new(false),
            company_at: Cell::new(Instant::now()),
        });
        peers.set_members(identity, addresses);
        spawn_local(peers.clone().accept(listener));
        peers
    }

    /// From now on, whoever begins in another protocol is answered so.
    pub fn set_foreign(&self, foreign: Foreign) {
        *self.foreign.borrow_mut() = foreign;
    }

    /// From now on so many may be connected that are not admitted, [`MOST_STRANGERS`] at most.
    pub fn set_most_strangers(&self, most: usize) {
        self.strangers.set_most(most);
    }

    /// From now on this is who the node is, whom it knows as members, and whom it dials.
    pub fn set_members(self: &Rc<Self>, identity: Identity, addresses: BTreeMap<u64, String>) {
        let joined = self.identity.borrow().cluster.is_none() && identity.cluster.is_some();
        *self.identity.borrow_mut() = identity;
        if joined {
            // Others may wait for nothing but to hear of the cluster.
            self.outgoing.borrow().values().for_each(|connection| connection.hurry.notify_one());
        }
        let mut outgoing = self.outgoing.borrow_mut();
        outgoing.retain(|(node, _), connection| {
            let stays = addresses.contains_key(node);
            if !stays {
                connection.dropped.set(true);
                connection.give_up();
            }
            stays
        });
        for node in addresses.keys() {
            // What is counted from the first time on is told apart from what has always been so.
            self.metrics.peer_twins_total.with_label_values(&[&node.to_string()]);
            for channel in [Channel::Control, Channel::Replication] {
                outgoing.entry((*node, channel)).or_insert_with(|| {
                    let connection = Rc::new(Outgoing::default());
                    spawn_local(self.clone().dial(*node, channel, connection.clone()));
                    connection
                });
            }
        }
        *self.addresses.borrow_mut() = addresses;
    }

    /// There is a reason to dial a node now.
    pub fn hurry(&self, node: u64) {
        if let Some(connection) = self.outgoing.borrow().get(&(node, Channel::Control)) {
            connection.hurry.notify_one();
        }
    }

    /// From now on this node speaks these formats.
    pub fn set_formats(&self, formats: Formats) {
        self.formats.set(formats);
    }

    /// Who this node is, and whom it knows as members.
    pub fn identity(&self) -> Identity {
        self.identity.borrow().clone()
    }

    /// The members to which the outgoing control connection stands, and what they said of themselves.
    pub fn connected(&self) -> Vec<(NodeId, Greeted)> {
        let outgoing = self.outgoing.borrow();
        let control = outgoing.iter().filter(|((_, channel), o)| *channel == Channel::Control && o.connected.get());
        control.filter_map(|(_, connection)| connection.member.get()).collect()
    }

    /// Send messages, in frames per peer and channel, as far as the kernel takes them now; the rest is queued. What cannot be
    /// queued is dropped.
    pub fn send(&self, messages: &mut Vec<PeerMessage>) {
        messages.retain(fits_a_frame);
        messages.sort_by_key(|message| (message.to(), message.channel()));
        for batch in messages.chunk_by(|a, b| (a.to(), a.channel()) == (b.to(), b.channel())) {
            let (to, channel) = (batch[0].to(), batch[0].channel());
            let all = self.outgoing.borrow();
            let Some(outgoing) = all.get(&(to.node(), channel)) else { continue };
            // A member that was replaced has its node's address, but is not whom the message is for.
            if !outgoing.connected.get() || outgoing.member.get().map(|(member, _)| member) != Some(to) {
                continue;
            }
            let limit = if channel == Channel::Control { CONTROL_QUEUE } else { self.queue_bytes };
            let mut queue = outgoing.queue.borrow_mut();
            if queue.len() > limit {
                tracing::warn!(
                    peer = %to,
                    channel = channel.name(),
                    bytes = queue.len(),
                    "peer does not read; reconnecting. Look whether it runs, at its processor, and at the network to it"
                );
                outgoing.give_up();
            } else {
                queue.reserve(batch.iter().map(PeerMessage::size_hint).sum());
                put_messages(&mut queue, batch);
                drop(queue);
                if !matches!(outgoing.write(), Ok(true)) {
                    outgoing.wake.notify_one();
                }
            }
        }
        messages.clear();
    }

    /// Keep one outgoing connection alive until the node is dropped.
    async fn dial(self: Rc<Self>, peer: u64, channel: Channel, outgoing: Rc<Outgoing>) {
        let mut pause = RETRY.0;
        let mut last_error = String::new();
        while !outgoing.dropped.get() {
            let error = match self.dial_once(peer, channel, &outgoing).await {
                Ok(error) => {
                    pause = RETRY.0;
                    error
                }
                Err(error) => error,
            };
            let text = error.to_string();
            if text != last_error {
                tracing::info!(%peer, channel = channel.name(), error = %text, "no connection to peer; trying again");
                last_error = text;
            }
            let labels = [&peer.to_string() as &str, channel.name()];
            self.metrics.peer_reconnects_total.with_label_values(&labels).inc();
            tokio::select! {
                () = sleep(pause.mul_f64(0.5 + self.random_fraction())) => {}
                () = outgoing.hurry.notified() => {}
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    fn learn(&self, theirs: &Identity) {
        if self.identity.borrow_mut().learn(theirs) {
            tracing::info!(from = %theirs.node, "learned of newer members");
        }
    }

    fn is_member(&self, node: NodeId) -> bool {
        self.identity.borrow().cluster.as_ref().is_some_and(|cluster| cluster.members.contains_key(&node))
    }

    fn random_fraction(&self) -> f64 {
        let mut x = self.jitter.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.jitter.set(x);
        (x >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Connect, greet, and carry the queue until the connection breaks. `Ok` once it had been of use.
    async fn dial_once(&self, peer: u64, channel: Channel, outgoing: &Outgoing) -> io::Result<io::Error> {
        let (stream, reply) = self.greet(peer, channel).await?;
        let member = reply.identity.node;
        (self.events)(PeerEvent::Heard(reply.identity.clone()));
        let is_believed = self.believes(&reply.identity);
        if reply.twin != 0 && is_believed {
            (self.events)(PeerEvent::Twin { peer: member });
        }
        if let Some(reason) = reply.refusal {
            let removed = self.identity.borrow().removed_in(&reply.identity).filter(|_| is_believed);
            (self.events)(PeerEvent::Refused { peer: member, removed });
            return Err(io::Error::other(reason));
        }
        admit(&self.identity.borrow(), &reply.identity).map_err(io::Error::other)?;
        let format = self.formats.get().agree(reply.formats).map_err(io::Error::other)?;
        if outgoing.dropped.get() {
            return Err(io::Error::other("it is no longer to be dialled"));
        }
        let stream = Rc::new(stream);
        *outgoing.stream.borrow_mut() = Some(stream.clone());
        let (incarnation, formats) = (reply.identity.incarnation, reply.formats);
        outgoing.member.set(Some((member, Greeted { incarnation, formats })));
        outgoing.connected.set(true);
        (self.events)(PeerEvent::Admitted { peer: member });
        let peer_name = peer.to_string();
        let gauge = self.metrics.peer_connected.with_label_values(&[&peer_name, channel.name()]);
        gauge.set(1);
        tracing::info!(%peer, channel = channel.name(), format, "connected to peer");
        let error = carry(&stream, outgoing).await;
        outgoing.connected.set(false);
        self.company_at.set(Instant::now());
        outgoing.stream.take();
        outgoing.queue.take();
        gauge.set(0);
        if channel == Channel::Control {
            (self.events)(PeerEvent::Lost(member));
        }
        Ok(error)
    }

    /// Connect to a node, and hear who it is, and what it says of the members.
    async fn greet(&self, peer: u64, channel: Channel) -> io::Result<(TcpStream, Greeting)> {
        let address = self.addresses.borrow().get(&peer).cloned();
        let address = address.ok_or_else(|| io::Error::other("it is no longer to be dialled"))?;
        let mut stream = timeout(GREETING_TIMEOUT, TcpStream::connect(address.as_str())).await??;
        configure(&stream)?;
        let own = self.identity.borrow().clone();
        self.send_greeting(&mut stream, channel, &own, None).await?;
        let reply = timeout(GREETING_TIMEOUT, read_greeting(&mut stream, &mut BytesMut::new())).await??;
        let member = reply.identity.node;
        if member.node() != peer {
            return Err(io::Error::other(format!("at {address} is node {member}, not {peer}")));
        }
        if self.believes(&reply.identity) {
            self.learn(&reply.identity);
        }
        Ok((stream, reply))
    }

    /// Whether it counts what somebody says whom this node has dialled: if it knows it as a member. A node that was away while
    /// the others lost their disks knows none of them: one that has been alone for a while believes who is where a member is
    /// known to be, since nobody else could tell it.
    fn believes(&self, identity: &Identity) -> bool {
        /// Longer than a node that has just started needs to reach those whom it knows.
        const ALONE: Duration = Duration::from_secs(5);
        if admit(&self.identity.borrow(), identity).is_ok() {
            return true;
        }
        let is_alone = self.outgoing.borrow().values().all(|outgoing| !outgoing.connected.get());
        is_alone && self.company_at.get().elapsed() >= ALONE
    }

    /// Somebody who is not known as a member speaks of newer members. That alone changes nothing: it is a reason to ask
    /// those who are known.
    async fn inquire(self: Rc<Self>) {
        let known: Vec<u64> = self.addresses.borrow().keys().copied().collect();
        for node in known {
            // Who cannot be reached has nothing to say.
            let _ = self.greet(node, Channel::Replication).await;
        }
        sleep(INQUIRY).await;
        self.inquiring.set(false);
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => {
                    let peers = self.clone();
                    spawn_local(async move {
                        if let Err(error) = peers.receive(stream, from).await {
                            tracing::debug!(%from, %error, "peer connection ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(
                        %error,
                        "cannot accept a peer connection; trying again. If file descriptors run out, raise the limit of this \
                         process (LimitNOFILE, ulimit -n)"
                    );
                    sleep(RETRY.1).await;
                }
            }
        }
    }

    /// Serve one accepted connection.
    async fn receive(self: &Rc<Self>, mut stream: TcpStream, at: SocketAddr) -> io::Result<()> {
        configure(&stream)?;
        let accepted_us = self.started.elapsed().as_micros() as u64;
        let mut buf = BytesMut::new();
        let place = self.strangers.enter();
        let hello = tokio::select! {
            hello = timeout(GREETING_TIMEOUT, read_greeting(&mut stream, &mut buf)) => match hello? {
                Ok(hello) => hello,
                Err(error) => {
                    let Some((text, answer)) = (self.foreign.borrow())(&buf) else { return Err(error) };
                    tracing::warn!(from = %at, "{text}");
                    timeout(GREETING_TIMEOUT, stream.write_all(&answer)).await??;
                    return Err(error);
                }
            },
            () = place.taken() => return Err(io::Error::other("too many have connected and not greeted; it had the longest time")),
        };
        let own = self.identity.borrow().clone();
        let agreed = admit(&own, &hello.identity)
            .and_then(|()| self.formats.get().agree(hello.formats))
            .and_then(|_| hello.names_its_process());
        if let Err(reason) = agreed {
            let twin = self.is_own_twin(&hello, at);
            self.send_greeting(&mut stream, hello.channel, &own, Some((reason.clone(), twin))).await?;
            if own.is_behind(&hello.identity) && !self.inquiring.replace(true) {
                spawn_local(self.clone().inquire());
            }
            // It may be a node that waits to be admitted.
            (self.events)(PeerEvent::Knocked(hello.identity));
            return Err(io::Error::other(reason));
        }
        let (from, run) = (hello.identity.node, hello.run);
        if let Some((reason, twin)) = self.other_process(from, (run, accepted_us), at) {
            self.send_greeting(&mut stream, hello.channel, &own, Some((reason.clone(), twin))).await?;
            return Err(io::Error::other(reason));
        }
        drop(place);
        // Only what an admitted peer says counts.
        self.learn(&hello.identity);
        let _counted = Counted::new(&self.twins, from, run);
        self.send_greeting(&mut stream, hello.channel, &own, None).await?;
        if hello.channel == Channel::Control {
            let result = self.receive_frames(&mut stream, &mut buf, from).await;
            (self.events)(PeerEvent::Lost(from));
            return result;
        }
        let tell = self.tell.borrow_mut().entry(from).or_default().clone();
        tokio::select! {
            result = self.receive_frames(&mut stream, &mut buf, from) => result,
            () = tell.notified() => Err(io::Error::other("it is to hear of another process with its identity")),
        }
    }

    /// The run of this process, if who greets has its very identity. Anybody may say so, and it changes nothing here: a real
    /// copy greets the other members too, and those tell.
    fn is_own_twin(&self, hello: &Greeting, at: SocketAddr) -> u64 {
        let own = self.identity.borrow();
        if hello.identity.node.node() != own.node.node() {
            return 0;
        }
        let (node, same) = (own.node, hello.identity.incarnation == own.incarnation);
        if !same || hello.run == self.run {
            tracing::error!(%node, %at, "another node uses this node's id: look whether two nodes are configured with one id");
            return 0;
        }
        tracing::error!(%node, %at, "another process greets with the identity of this node: look whether its data directory was copied");
        self.metrics.peer_twins_total.with_label_values(&[&node.node().to_string()]).inc();
        self.run
    }

    /// Why a member is refused whose other process is connected, and that process.
    fn other_process(&self, member: NodeId, (run, accepted_us): (u64, u64), at: SocketAddr) -> Option<(String, u64)> {
        let now_us = self.started.elapsed().as_micros() as u64;
        let arrival = self.twins.borrow_mut().arrives(now_us, accepted_us, member, run);
        if let Arrival::NotYet { tell: true } | Arrival::Twin { tell: true, .. } = arrival
            && let Some(tell) = self.tell.borrow().get(&member)
        {
            tell.notify_waiters();
        }
        match arrival {
            Arrival::Welcome => None,
            Arrival::NotYet { .. } => {
                Some((format!("an earlier process of node {member} still looks connected; try again"), 0))
            }
            Arrival::Twin { other, say, .. } => {
                if say {
                    self.metrics.peer_twins_total.with_label_values(&[&member.node().to_string()]).inc();
                    tracing::error!(
                        %member,
                        %at,
                        run = format!("{run:016x}"),
                        connected = format!("{other:016x}"),
                        "two processes run with the identity of one node: its data directory was copied. The second one is \
                         refused. Stop the copy, and remove its directory: two that vote as one can lose records"
                    );
                }
                let reason = format!(
                    "another process with the identity of node {member} is connected: its data directory was copied; stop \
                     the copy"
                );
                // 0 would say that there is none.
                Some((reason, other.max(1)))
            }
        }
    }

    async fn send_greeting(
        &self,
        stream: &mut TcpStream,
        channel: Channel,
        identity: &Identity,
        refused: Option<(String, u64)>,
    ) -> io::Result<()> {
        let (refusal, twin) = refused.map_or((None, 0), |(reason, twin)| (Some(reason), twin));
        let (identity, formats, run) = (identity.clone(), self.formats.get(), self.run);
        let greeting = Greeting { channel, identity, refusal, formats, run, twin };
        let mut out = BytesMut::new();
        put_frame(&mut out, |body| greeting.encode(body));
        stream.write_all(&out).await
    }

    async fn receive_frames(&self, stream: &mut TcpStream, buf: &mut BytesMut, from: NodeId) -> io::Result<()> {
        loop {
            while let Some(body) = take_frame(buf, MAX_FRAME_BODY).map_err(invalid)? {
                if !self.is_member(from) {
                    return Err(io::Error::other(format!("node {from} is no longer a member")));
                }
                (self.events)(PeerEvent::Frame { from, body });
            }
            if buf.capacity() - buf.len() < LEAST_READ {
                buf.reserve(READ_CHUNK);
            }
            if stream.read_buf(buf).await? == 0 {
                return Ok(());
            }
        }
    }
}

fn invalid(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Set how the kernel treats a connection between brokers, in either direction.
fn configure(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
    socket.set_tcp_user_timeout(Some(UNANSWERED))
}

/// Write what is queued until the connection breaks or is given up; says why it ended.
async fn carry(stream: &TcpStream, outgoing: &Outgoing) -> io::Error {
    let write = async {
        loop {
            match outgoing.write() {
                Ok(true) => outgoing.wake.notified().await,
                Ok(false) => {
                    if let Err(error) = stream.writable().await {
                        return error;
                    }
                }
                Err(error) => return error,
            }
        }
    };
    let given_up = async {
        // What is left of an earlier connection's end does not count.
        while outgoing.connected.get() {
            outgoing.given_up.notified().await;
        }
    };
    tokio::select! {
        () = given_up => io::Error::new(io::ErrorKind::TimedOut, "the peer does not read"),
        error = write => error,
        error = ended(stream) => error,
    }
}

/// Wait until the other end closes a connection on which it never sends.
async fn ended(stream: &TcpStream) -> io::Error {
    loop {
        if let Err(error) = stream.readable().await {
            return error;
        }
        match stream.try_read(&mut [0; 16]) {
            Ok(0) => return io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection"),
            Ok(_) => return io::Error::new(io::ErrorKind::InvalidData, "the peer sent data where none belongs"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error,
        }
    }
}

async fn read_greeting(stream: &mut TcpStream, buf: &mut BytesMut) -> io::Result<Greeting> {
    loop {
        if let Some(body) = take_frame(buf, MAX_GREETING).map_err(invalid)? {
            return Greeting::decode(body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        }
        if stream.read_buf(buf).await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection while greeting"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (dialled, listener.accept().await.unwrap().0)
    }

    /// What a connection is once the greeting is over.
    fn outgoing(stream: TcpStream) -> Outgoing {
        let outgoing = Outgoing::default();
        *outgoing.stream.borrow_mut() = Some(Rc::new(stream));
        outgoing.connected.set(true);
        outgoing
    }

    async fn carry_on(outgoing: &Outgoing) -> io::Error {
        let stream = outgoing.stream.borrow().clone().expect("a connection");
        carry(&stream, outgoing).await
    }

    #[tokio::test]
    async fn the_kernel_watches_over_connections() {
        let (stream, _other) = pair().await;
        configure(&stream).unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNANSWERED));
        assert!(socket.keepalive().unwrap() && stream.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE);
    }

    /// Without the kernel's help, whose timeout these sockets do not have.
    #[tokio::test]
    async fn giving_up_ends_a_write_that_is_stuck() {
        /// Far more than socket buffers hold.
        const BYTES: usize = 64 << 20;
        let (stream, _silent) = pair().await;
        let outgoing = outgoing(stream);
        outgoing.queue.borrow_mut().resize(BYTES, 0);
        let give_up = async {
            while outgoing.queue.borrow().len() == BYTES {
                tokio::task::yield_now().await;
            }
            outgoing.give_up();
            std::future::pending().await
        };
        let ended = async {
            tokio::select! {
                error = carry_on(&outgoing) => error.to_string(),
                () = give_up => unreachable!("it never ends"),
            }
        };
        let ended = timeout(Duration::from_secs(20), ended).await;
        assert_eq!(ended.as_deref(), Ok("the peer does not read"));
    }

    #[tokio::test]
    async fn an_earlier_connection_that_was_given_up_does_not_end_the_next() {
        let (stream, mut other) = pair().await;
        let outgoing = outgoing(stream);
        outgoing.given_up.notify_one();
        outgoing.queue.borrow_mut().extend_from_slice(b"words");
        let mut heard = [0; 5];
        tokio::select! {
            error = carry_on(&outgoing) => panic!("{error}"),
            read = other.read_exact(&mut heard) => assert_eq!(read.unwrap(), heard.len()),
        }
        assert_eq!(&heard, b"words");
    }
}
