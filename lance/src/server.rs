//! The node as a process: it opens the data directory, binds the ports, helps to form the cluster, and then drives the
//! broker. Clocks, sockets and signals are read here and nowhere below.

use crate::config::{Address, BackendChoice, Config, NodeAddresses};
use crate::foreign;
use crate::forming::{form, identity_of};
use crate::gateway::traces::{SpanSink, Traces};
use crate::gateway::{BrokerSide, Gateway, GatewayConfig, Incoming};
use crate::heard::Heard;
use crate::http::{self, Health, HttpState};
use crate::status::{Question, Status};
use crate::systemd::Systemd;
use crate::worst::Worst;
use lnc_broker::control::Budgets;
use lnc_broker::members::Addresses;
use lnc_broker::{Broker, BrokerConfig, BrokerError, Clock, Membership, ProducerLimits, Sequences};
use lnc_log::FileOwner;
use lnc_log::data_dir::{DataDir, DataDirError};
use lnc_log::disk::AnyDisk;
use lnc_log::journal::{GroupId, JournalConfig};
use lnc_log::segment::SegmentConfig;
use lnc_metrics::Metrics;
use lnc_protocol::Flags;
use lnc_raft::NodeId;
use lnc_replication::ShardConfig;
use lnc_replication::formation::{Formats, Identity};
use lnc_replication::peers::{PeerEvent, Peers};
use lnc_replication::wire::take_message;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, TcpSocket, lookup_host};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep};

/// Entry bytes that all groups keep in memory for followers that lag a little.
const ENTRY_CACHE_BYTES: usize = 64 << 20;

/// Bytes of state that are encoded for a checkpoint in a turn: well below a millisecond.
const CHECKPOINT_PIECE_BYTES: usize = 512 << 10;

/// Why a node cannot start, or had to stop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServerError {
    /// A port could not be bound.
    #[error("cannot listen for {what} on {address}: {source}; is another process using the port?")]
    Bind {
        /// Clients, peers or HTTP.
        what: &'static str,
        /// The configured address.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The data directory is not usable.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The disk backend is not usable.
    #[error("cannot open the disk backend in {path}: {source}")]
    Backend {
        /// The data directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Peers belong to different clusters.
    #[error("the configured nodes belong to different clusters ({0}): check their data directories")]
    Conflict(String),
    /// The broker failed and must not go on.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The process lacks something.
    #[error("cannot {what}: {source}")]
    Process {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}

impl ServerError {
    /// The page for whoever has to mend what is wrong, where the message alone is not enough.
    pub(crate) fn run_book(&self) -> Option<&'static str> {
        match self {
            Self::DataDir(_) | Self::Backend { .. } | Self::Broker(_) => Some(lnc_log::RUN_BOOK),
            Self::Bind { .. } | Self::Conflict(_) | Self::Process { .. } => None,
        }
    }
}

fn process(what: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::Process { what, source }
}

/// Run a node until it is told to stop (SIGTERM, SIGINT, or SIGHUP when its terminal is closed) or must stop.
pub fn run(config: Config) -> Result<(), ServerError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(process("start the runtime"))?;
    LocalSet::new().block_on(&runtime, Server::run(config))
}

/// The process's clocks.
#[derive(Clone, Copy)]
struct Clocks {
    start: Instant,
}

impl Clocks {
    /// Microseconds, to measure with.
    fn stopwatch(self) -> Box<dyn Fn() -> u64> {
        Box::new(move || self.start.elapsed().as_micros() as u64)
    }

    fn now(self) -> Clock {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { wall_ms: wall.as_millis() as u64, mono_us: self.start.elapsed().as_micros() as u64 }
    }
}

/// What peers have said since the last turn.
#[derive(Default)]
pub(crate) struct PeerInbox {
    pub(crate) events: RefCell<Vec<PeerEvent>>,
    pub(crate) wake: Rc<Notify>,
}

struct Stop {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Stop {
    async fn requested(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
            _ = self.hup.recv() => {}
        }
    }
}

/// Decides whether to look for the next event (`node.busy_poll_us`) or to sleep until it comes.
struct Awake {
    /// Zero on a single core, where polling starves the task being polled for.
    busy_poll: Duration,
    until: Instant,
    /// Others have use for the processor until then.
    not_before: Instant,
}

impl Awake {
    fn new(config: &Config) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let micros = if processors > 1 { config.node.busy_poll_us } else { 0 };
        let now = Instant::now();
        Self { busy_poll: Duration::from_micros(micros), until: now, not_before: now }
    }

    fn is_set(&self) -> bool {
        !self.busy_poll.is_zero() && Instant::now() < self.until
    }

    /// A turn is over; `expects_soon` as the broker says it.
    fn turned(&mut self, expects_soon: bool) {
        let now = Instant::now();
        if now < self.not_before {
            return;
        }
        self.until = if expects_soon {
            now + self.busy_poll
        } else {
            // Who was just answered often asks again at once.
            self.until.min(now + self.busy_poll / 4)
        };
    }

    /// What this thread waits for may need its processor. Where that takes long, the processor is short: whoever sleeps is
    /// woken in time there, and whoever looks is made to wait.
    fn let_others_run(&mut self) {
        /// Far longer than others of its kind take.
        const LONG: Duration = Duration::from_micros(500);
        const PAUSE: Duration = Duration::from_millis(250);
        let before = Instant::now();
        std::thread::yield_now();
        let now = Instant::now();
        if now - before > LONG {
            (self.until, self.not_before) = (now, now + PAUSE);
        }
    }
}

struct Server {
    config: Config,
    broker: Broker<AnyDisk>,
    gateway: Rc<Gateway>,
    peers: Rc<Peers>,
    inbox: Rc<PeerInbox>,
    notifier: AsyncFd<OwnedFd>,
    health: Arc<Health>,
    systemd: Systemd,
    clocks: Clocks,
    drift: Worst,
    longest_turn: Worst,
    longest_work: Worst,
    requests: VecDeque<Incoming>,
    /// Those who want to see how the node is.
    questions: mpsc::Receiver<Question>,
    /// Where spans go, if traces are recorded.
    spans: Option<SpanSink>,
    /// What the peers and the gateway know of the members.
    membership: Membership,
    /// What peers say of this node.
    heard: Heard,
    identity: Identity,
    metrics: Arc<Metrics>,
    /// The data directory is locked for as long as this lives.
    data_dir: DataDir,
}

impl Server {
    async fn run(config: Config) -> Result<(), ServerError> {
        let mut stop = Stop {
            term: signal(SignalKind::terminate()).map_err(process("watch for SIGTERM"))?,
            int: signal(SignalKind::interrupt()).map_err(process("watch for SIGINT"))?,
            hup: signal(SignalKind::hangup()).map_err(process("watch for SIGHUP"))?,
        };
        let mut data_dir = DataDir::open(&config.node.data_dir)?;
        let clients = bind("clients", &config.listen.client).await?;
        let peer_listener = bind("peers", &config.listen.peer).await?;
        let http_listener = bind("HTTP", &config.listen.http).await?;
        let metrics = Metrics::new();
        let health = Arc::new(Health::new());
        let mut systemd = Systemd::from_environment();
        let (status, questions) = Status::new(config.node.id, metrics.clone(), health.clone());
        serve_http(http_listener, HttpState::new(metrics.clone(), health.clone(), status, listens(&config)))?;

        let stored = data_dir.create_identity(config.node.id, random()?)?.clone();
        let identity = identity_of(&stored);
        // Never 0, which says nothing.
        let run = random()? | 1;
        let inbox = Rc::new(PeerInbox::default());
        let events = inbox.clone();
        let others = config.cluster.nodes.iter().filter(|node| node.id != config.node.id);
        let peers = Peers::start(
            peer_listener,
            (identity.clone(), run),
            Formats::BUILD.in_cluster(data_dir.format()),
            (others.map(|node| (node.id, node.peer.to_string())).collect(), config.limits.peer_bytes as usize),
            metrics.clone(),
            Box::new(move |event| {
                events.events.borrow_mut().push(event);
                events.wake.notify_one();
            }),
        );
        peers.set_most_strangers(OpenFiles::allowed().others());
        let places = listens(&config);
        peers.set_foreign(Box::new(move |first| {
            foreign::answer(&places, foreign::Port::Peer, first).map(|answer| (answer.text, answer.bytes))
        }));
        let clocks = Clocks { start: Instant::now() };
        #[cfg(feature = "otel")]
        let exporter =
            crate::otel::Exporter::start(&config, clocks.start, &metrics).map_err(process("start sending traces"))?;
        #[cfg(feature = "otel")]
        let spans = exporter.as_ref().map(crate::otel::Exporter::sink);
        // The configuration was refused if it asks for traces.
        #[cfg(not(feature = "otel"))]
        let spans: Option<SpanSink> = None;
        let traces = traces(&config, clocks, spans.clone())?;
        let gateway = Gateway::new(gateway_config(&config), inbox.wake.clone(), metrics.clone(), traces)
            .map_err(process("start the thread that looks through batches"))?;
        spawn_local(gateway.clone().accept(clients));
        let identity = tokio::select! {
            identity = form(&config, &mut data_dir, identity, &peers, &inbox, (&health, &mut systemd)) => identity?,
            () = stop.requested() => return Ok(()),
        };
        let (broker, notifier) = open_broker(&config, &data_dir, &identity, metrics.clone())?;
        gateway.start_serving();
        let mut server = Self {
            config,
            broker,
            gateway,
            peers,
            inbox,
            notifier,
            health,
            systemd,
            clocks,
            drift: Worst::new(Instant::now()),
            longest_turn: Worst::new(Instant::now()),
            longest_work: Worst::new(Instant::now()),
            requests: VecDeque::new(),
            questions,
            spans,
            membership: Membership::default(),
            heard: Heard::default(),
            identity,
            metrics,
            data_dir,
        };
        let result = server.drive(&mut stop).await;
        server.health.set_ready(Err("stopped".to_owned()));
        #[cfg(feature = "otel")]
        if let Some(exporter) = exporter {
            exporter.finish();
        }
        result
    }

    /// Take turns until told to stop, then hand over and finish.
    async fn drive(&mut self, stop: &mut Stop) -> Result<(), ServerError> {
        self.equip();
        let mut ticks = interval(Duration::from_millis(self.config.raft.tick_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut draining_until: Option<Instant> = None;
        let wake = self.inbox.wake.clone();
        let mut awake = Awake::new(&self.config);
        loop {
            tokio::select! {
                // What is rare comes before what may always be there, and looking again comes last.
                biased;
                due = ticks.tick() => self.tick(due.into_std())?,
                Some(question) = self.questions.recv() => {
                    // Whoever asked may have gone away.
                    let _ = question.send(self.broker.snapshot());
                }
                () = stop.requested(), if draining_until.is_none() => {
                    tracing::info!("told to stop: handing over leadership");
                    draining_until = Some(Instant::now() + self.config.shutdown.drain_timeout);
                    self.systemd.stopping();
                    self.broker.drain();
                }
                ready = self.notifier.readable() => {
                    ready.map_err(process("wait for the disk"))?.clear_ready();
                    self.broker.disk().drain_notifier();
                }
                () = wake.notified() => {}
                () = tokio::task::yield_now(), if awake.is_set() => {
                    awake.let_others_run();
                    continue;
                }
            }
            self.turn()?;
            awake.turned(self.broker.expects_soon());
            if self.broker.wants_reopen() {
                self.reopen()?;
            }
            if let Some(deadline) = draining_until {
                let idle = self.broker.is_drained() && self.gateway.requests_under_way() == 0;
                if (idle && self.gateway.is_flushed()) || Instant::now() >= deadline {
                    return self.finish().await;
                }
            }
        }
    }

    /// The last thing before the process ends: the disk is told how far it got, so that the next start knows.
    async fn finish(&mut self) -> Result<(), ServerError> {
        /// Longer than a write that is worth waiting for.
        const PATIENCE: Duration = Duration::from_secs(2);
        let deadline = Instant::now() + PATIENCE;
        while !self.broker.finish() && Instant::now() < deadline {
            self.turn()?;
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Give the broker what it measures with, and what it asks for room.
    fn equip(&mut self) {
        self.broker.set_stopwatch(self.clocks.stopwatch());
        self.broker.set_reply_room(Box::new(BrokerSide(self.gateway.clone())));
        self.broker.set_opener(Box::new(BrokerSide(self.gateway.clone())));
        if self.spans.is_some() {
            self.broker.record_traces(self.clocks.stopwatch());
        }
    }

    /// Start the broker anew, so that it takes over what it has fetched from a peer. Clients connect again and go on:
    /// what they have under way has an outcome that is not known to them, as after any lost connection.
    fn reopen(&mut self) -> Result<(), ServerError> {
        tracing::info!("taking over state that came from a peer");
        self.broker.quiesce();
        self.gateway.drop_clients();
        self.requests.clear();
        (self.broker, self.notifier) = open_broker(&self.config, &self.data_dir, &self.identity, self.metrics.clone())?;
        self.equip();
        self.membership = Membership::default();
        Ok(())
    }

    fn tick(&mut self, due: Instant) -> Result<(), ServerError> {
        let now = Instant::now();
        let drift = self.drift.note(now.saturating_duration_since(due), now);
        self.metrics.cluster_coordinator_tick_drift_ms.set(drift.as_millis() as u64);
        self.broker.tick(self.clocks.now())?;
        self.gateway.expire(Instant::now());
        self.gateway.set_reply_sizes(self.broker.reply_sizes());
        self.broker.clients_gone(&self.gateway.take_ended());
        self.health.beat();
        let now_us = self.clocks.now().mono_us;
        let cluster = self.peers.identity().cluster;
        let (version, members) = cluster.map_or((0, 0), |cluster| (cluster.version, cluster.members.len()));
        self.heard.admitting(now_us, 1 + self.peers.connected().len(), members);
        self.broker.set_standing(self.heard.standing(now_us, version));
        let readiness = self.broker.readiness();
        // Who hears from systemd that the node is ready finds it so.
        self.health.set_ready(readiness.clone());
        self.systemd.beat(Instant::now(), &readiness);
        self.follow_membership();
        self.follow_format()
    }

    /// Let the peers' channels and the gateway know who belongs to the cluster now.
    fn follow_membership(&mut self) {
        let membership = self.broker.membership();
        let mut identity = self.peers.identity();
        let told = identity.cluster.as_ref().map_or(0, |cluster| cluster.version);
        let certain = self.heard.outlived(self.clocks.now().mono_us, told, membership.version, membership.is_newest);
        let news = identity.follow(membership.version, &membership.members, certain);
        if membership == self.membership && !news {
            return;
        }
        let own = identity.node.node();
        let others = membership.nodes.iter().filter(|(node, _)| **node != own);
        self.peers.set_members(identity, others.map(|(node, at)| (*node, at.peer.clone())).collect());
        self.gateway.set_nodes(membership.nodes.iter().map(|(node, at)| (*node, at.client.clone())).collect());
        self.membership = membership;
    }

    /// When the cluster's format was raised, versions that do not speak it must neither open this data directory nor
    /// connect.
    fn follow_format(&mut self) -> Result<(), ServerError> {
        let format = self.broker.stored_format();
        if format > self.data_dir.format() || !self.data_dir.has_noted_format() {
            match self.data_dir.raise_format(format) {
                Err(error) if error.is_full() => {
                    tracing::warn!(%error, "no space to note the cluster's format; trying again. Make room in the data directory");
                    return Ok(());
                }
                raised => raised?,
            }
            self.peers.set_formats(Formats::BUILD.in_cluster(format));
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), ServerError> {
        let (clock, worked) = (self.clocks.now(), thread_time());
        for event in self.inbox.events.take() {
            match event {
                PeerEvent::Frame { from, mut body } => self.peer_frame(clock, from, &mut body),
                PeerEvent::Lost(peer) => self.broker.peer_changed(clock, peer, None),
                PeerEvent::Heard(Identity { node, incarnation, cluster: None })
                | PeerEvent::Knocked(Identity { node, incarnation, cluster: None }) => {
                    self.broker.applicant(clock, node.node(), incarnation);
                }
                PeerEvent::Heard(Identity { node, incarnation, cluster: Some(cluster) })
                | PeerEvent::Knocked(Identity { node, incarnation, cluster: Some(cluster) }) => {
                    if self.identity.cluster.as_ref().is_some_and(|own| own.id == cluster.id) {
                        self.broker.stray(clock, node, incarnation);
                    }
                }
                PeerEvent::Admitted { peer } => self.heard.admitted(peer),
                PeerEvent::Refused { peer, removed } => self.heard.refused(clock.mono_us, peer, removed),
                PeerEvent::Twin { peer } => self.heard.twin(clock.mono_us, peer),
            }
        }
        for (peer, greeted) in self.peers.connected() {
            self.broker.peer_changed(clock, peer, Some(greeted));
        }
        for (ticket, passage) in self.gateway.take_passages() {
            self.broker.passed(clock, ticket, passage);
        }
        for (ticket, hit) in self.gateway.take_opened() {
            self.broker.opened(ticket, hit);
        }
        self.serve_requests(clock);
        let mut outputs = Vec::new();
        let mut messages = self.broker.turn(clock, &mut outputs)?;
        self.peers.send(&mut messages);
        self.broker.kick();
        self.gateway.dispatch(&mut outputs);
        if let Some(sink) = &self.spans {
            self.broker.take_spans().into_iter().for_each(|span| sink(span));
        }
        self.gateway.set_load(self.broker.request_bytes());
        self.time_turn(clock.mono_us, worked);
        if self.broker.wants_turn() || !self.requests.is_empty() {
            self.inbox.wake.notify_one();
        }
        Ok(())
    }

    /// Note how long a turn took that began at `since_us`, and of the processor since `worked`.
    fn time_turn(&mut self, since_us: u64, worked: Duration) {
        /// A turn that took no longer took no more of the processor either.
        const SHORT_US: u64 = 1000;
        let now = Instant::now();
        let took_us = self.clocks.now().mono_us.saturating_sub(since_us);
        self.metrics.turn_seconds.observe(took_us as f64 / 1e6);
        let took = Duration::from_micros(took_us);
        self.metrics.turn_longest_seconds.set(self.longest_turn.note(took, now).as_secs_f64());
        let work = if took_us > SHORT_US { thread_time().saturating_sub(worked) } else { took };
        self.metrics.turn_work_longest_seconds.set(self.longest_work.note(work, now).as_secs_f64());
    }

    /// Serve what clients have sent, up to a bound: ticks and peers must not wait for it. The rest is for the next turn.
    fn serve_requests(&mut self, clock: Clock) {
        /// Request bytes served in one turn.
        const MAX_BYTES: usize = 8 << 20;
        /// Time for it: what a request takes is not told by its bytes alone.
        const MAX_TIME: Duration = Duration::from_millis(2);
        self.gateway.take_inbox(&mut self.requests);
        let (start, mut bytes) = (Instant::now(), 0);
        while bytes < MAX_BYTES
            && start.elapsed() < MAX_TIME
            && let Some(Incoming { caller, opcode, body }) = self.requests.pop_front()
        {
            bytes += body.len();
            if caller.flags.contains(Flags::TRACED)
                && let Some(context) = self.gateway.trace_context(caller)
            {
                self.broker.trace(caller, context);
            }
            self.broker.request(clock, caller, opcode, body);
        }
    }

    fn peer_frame(&mut self, clock: Clock, from: NodeId, body: &mut bytes::Bytes) {
        while !body.is_empty() {
            match take_message(body, self.broker.member()) {
                Ok(message) if message.from() == from => self.broker.peer_message(clock, message),
                Ok(message) => {
                    tracing::warn!(
                        %from,
                        claimed = %message.from(),
                        "peer speaks in another's name; message dropped. Look whether two nodes are configured with one id"
                    );
                }
                Err(error) => {
                    tracing::warn!(
                        %from,
                        %error,
                        "peer frame not understood; the rest of it is dropped. Look whether all nodes run the same version"
                    );
                    return;
                }
            }
        }
    }
}

/// Processor time that this thread has spent.
fn thread_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec.unsigned_abs() as u32)
}

/// Recover from the data directory; also gives what tells that the disk has finished something.
fn open_broker(
    config: &Config,
    data_dir: &DataDir,
    identity: &Identity,
    metrics: Arc<Metrics>,
) -> Result<(Broker<AnyDisk>, AsyncFd<OwnedFd>), ServerError> {
    let choice = match config.storage.backend {
        BackendChoice::Auto => lnc_log::disk::BackendChoice::Auto,
        BackendChoice::Uring => lnc_log::disk::BackendChoice::Uring,
        BackendChoice::Threads => lnc_log::disk::BackendChoice::Threads,
    };
    let backend = |source| ServerError::Backend { path: data_dir.root().display().to_string(), source };
    let disk = AnyDisk::open(data_dir.root(), choice).map_err(backend)?;
    let notifier = disk.notifier().try_clone_to_owned().and_then(watch).map_err(backend)?;
    let shard_config = shard_config(config, identity, data_dir.format(), random()?);
    let segment_config = SegmentConfig {
        segment_bytes: config.storage.segment_bytes,
        max_open_files: OpenFiles::allowed().segments(),
        ..SegmentConfig::default()
    };
    let broker = lnc_broker::open(broker_config(config, identity), shard_config, segment_config, disk, metrics)?;
    tracing::info!(node = %identity.node, "the node has recovered");
    Ok((broker, notifier))
}

/// How many files this process may have open, after asking for as many as it may ask for. Each kind has its share: who
/// connects takes none from the journal, without which the node would have to stop.
#[derive(Clone, Copy)]
struct OpenFiles(usize);

impl OpenFiles {
    fn allowed() -> Self {
        /// More than a node has use for.
        const ENOUGH: u64 = 64 << 10;
        let limit = getrlimit(Resource::Nofile);
        let most = limit.maximum.unwrap_or(ENOUGH).min(ENOUGH);
        let current = limit.current.unwrap_or(ENOUGH);
        let raised = Rlimit { current: Some(most), maximum: limit.maximum };
        let is_raised = current < most && setrlimit(Resource::Nofile, raised).is_ok();
        Self(if is_raised { most } else { current.min(ENOUGH) } as usize)
    }

    /// Files of segments. What neither these nor connections take is for the journal, checkpoints and members.
    fn segments(self) -> usize {
        (self.0 * 3 / 8).max(1)
    }

    /// Connections of clients.
    fn clients(self) -> usize {
        (self.0 / 4).max(1)
    }

    /// Connections to the port of peers by who is not known to be one, and to that of HTTP: each as many.
    fn others(self) -> usize {
        (self.0 / 16).max(1)
    }
}

/// The number of data groups was fixed when the cluster was founded; a configuration that says otherwise came later.
fn data_groups(config: &Config, identity: &Identity) -> u32 {
    identity.cluster.as_ref().map_or(config.cluster.data_groups, |cluster| cluster.data_groups)
}

/// What a leader may have under way of one group to one follower, in bytes. All groups together fill half of what may wait for
/// that node, so that nothing else which goes there meets a full queue.
fn window_bytes(config: &Config, groups: usize) -> usize {
    /// Beyond this a longer window makes nothing faster.
    const MOST: usize = 16 << 20;
    MOST.min(config.limits.peer_bytes as usize / 2 / groups)
}

fn shard_config(config: &Config, identity: &Identity, format: u32, seed: u64) -> ShardConfig {
    let ticks = |ms: u64| (ms / config.raft.tick_ms).max(1) as u32;
    let budgets = Budgets::of_heartbeat(config.raft.heartbeat_ms);
    let founders = identity.cluster.as_ref().map(|cluster| cluster.founders.clone()).unwrap_or_default();
    let groups: Vec<GroupId> = (0..=data_groups(config, identity)).map(GroupId).collect();
    let max_in_flight_bytes = window_bytes(config, groups.len());
    ShardConfig {
        node: identity.node,
        founders: founders.into_keys().collect(),
        groups,
        election_ticks: ticks(config.raft.election_timeout_ms),
        heartbeat_ticks: ticks(config.raft.heartbeat_ms),
        election_rpc_ticks: ticks(budgets.election_rpc_ms),
        election_round_ticks: ticks(budgets.election_round_ms),
        max_in_flight_bytes,
        max_append_bytes: 2 << 20,
        entry_cache_bytes: ENTRY_CACHE_BYTES,
        journal_retain_bytes: config.journal.retain_bytes,
        seed,
        journal: JournalConfig {
            file_bytes: config.journal.file_bytes,
            max_in_flight: config.journal.max_in_flight_flushes as usize,
            owner: FileOwner {
                cluster: identity.cluster.as_ref().map_or(0, |cluster| cluster.id),
                node: identity.node.node(),
                incarnation: identity.incarnation,
            },
            format,
            ..JournalConfig::new(identity.incarnation)
        },
    }
}

fn listens(config: &Config) -> foreign::Places {
    let listen = &config.listen;
    foreign::Places { client: listen.client.to_string(), peer: listen.peer.to_string(), http: listen.http.to_string() }
}

fn gateway_config(config: &Config) -> GatewayConfig {
    let files = OpenFiles::allowed();
    let (wanted, most) = (config.limits.max_connections as usize, files.clients());
    if wanted > most {
        tracing::warn!(
            files = files.0,
            connections = most,
            "this process may open so few files that a quarter of them are fewer connections than limits.max_connections; \
             raise the limit (LimitNOFILE, ulimit -n)"
        );
    }
    GatewayConfig {
        max_frame_bytes: config.limits.max_frame_bytes as usize,
        max_batch_bytes: config.limits.max_batch_bytes as usize,
        max_connections: wanted.min(most),
        request_bytes: config.limits.memory_bytes as usize,
        reply_bytes: config.limits.reply_bytes as usize,
        idle_timeout: config.limits.idle_timeout,
        listens: listens(config),
        nodes: config.cluster.nodes.iter().map(|node| (node.id, node.client.to_string())).collect(),
    }
}

/// What decides which requests are recorded, if there is somewhere to send traces.
fn traces(config: &Config, clocks: Clocks, spans: Option<SpanSink>) -> Result<Option<Traces>, ServerError> {
    let Some(sink) = spans else { return Ok(None) };
    let share = config.tracing.sample_ratio;
    Ok(Some(Traces::new(config.node.id, share, random()?, clocks.stopwatch(), sink)))
}

fn broker_config(config: &Config, identity: &Identity) -> BrokerConfig {
    let addresses = |node: &NodeAddresses| Addresses {
        client: node.client.to_string(),
        peer: node.peer.to_string(),
        http: node.http.to_string(),
    };
    let cluster = identity.cluster.as_ref();
    BrokerConfig {
        node: identity.node,
        cluster_id: cluster.map_or(0, |cluster| cluster.id),
        nodes: config.cluster.nodes.iter().map(|node| (node.id, addresses(node))).collect(),
        members: cluster.map(|cluster| cluster.members.clone()).unwrap_or_default(),
        members_version: cluster.map_or(0, |cluster| cluster.version),
        founders: cluster.map(|cluster| cluster.founders.clone()).unwrap_or_default(),
        data_groups: data_groups(config, identity),
        memory_bytes: config.limits.memory_bytes as usize,
        tail_cache_bytes: config.limits.tail_cache_bytes as usize,
        max_batch_bytes: config.limits.max_batch_bytes as usize,
        max_frame_bytes: config.limits.max_frame_bytes as usize,
        max_topics: config.limits.max_topics as usize,
        max_partitions_per_topic: config.limits.max_partitions_per_topic,
        checkpoint_bytes: config.journal.checkpoint_bytes,
        transfer_bytes_per_second: config.storage.transfer_bytes_per_second,
        slow_sync_us: config.journal.slow_sync.as_micros() as u64,
        reserve_bytes: config.storage.reserve_bytes,
        scrub_bytes_per_second: config.storage.scrub_bytes_per_second,
        scrub_interval_us: config.storage.scrub_interval.as_micros() as u64,
        segment_bytes: config.storage.segment_bytes,
        checkpoint_piece_bytes: CHECKPOINT_PIECE_BYTES,
        producer_limits: ProducerLimits::DEFAULT,
        sequences: Sequences::default(),
        max_clock_skew_ms: config.cluster.max_clock_skew.as_millis() as u64,
        budgets: Budgets::of_heartbeat(config.raft.heartbeat_ms),
    }
}

/// Have the runtime watch a descriptor for readability.
#[expect(
    deprecated,
    reason = "its safe successor takes an unsafe block; an OwnedFd stays open for as long as it is owned"
)]
fn watch(notifier: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(notifier, Interest::READABLE)
}

async fn bind(what: &'static str, address: &Address) -> Result<TcpListener, ServerError> {
    let failed = |source| ServerError::Bind { what, address: address.to_string(), source };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for place in lookup_host(address.as_str()).await.map_err(failed)? {
        match listen(place) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

fn listen(place: SocketAddr) -> io::Result<TcpListener> {
    /// Connections that wait to be accepted: as many as come at once when a node is back. The kernel may allow fewer.
    const BACKLOG: u32 = 4096;
    let socket = if place.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A node that is started again takes its port, though connections of its former life linger.
    socket.set_reuseaddr(true)?;
    socket.bind(place)?;
    socket.listen(BACKLOG)
}

/// Metrics, health and status have a thread of their own: they answer while the shard is busy, and can say that it is
/// stuck.
fn serve_http(listener: TcpListener, state: HttpState) -> Result<(), ServerError> {
    let connections = OpenFiles::allowed().others().min(http::MOST_CONNECTIONS);
    let listener = listener.into_std().map_err(process("start the HTTP server"))?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(process("start the HTTP server"))?;
    std::thread::Builder::new()
        .name("http".into())
        .spawn(move || {
            runtime.block_on(async move {
                match TcpListener::from_std(listener) {
                    Ok(listener) => http::serve(listener, connections, Arc::new(state)).await,
                    Err(error) => tracing::error!(%error, "cannot serve HTTP"),
                }
            });
        })
        .map_err(process("start the HTTP server"))?;
    Ok(())
}

/// A random number from the kernel.
fn random() -> Result<u64, ServerError> {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let read = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
        filled += read.map_err(|errno| process("draw a random number")(errno.into()))?;
    }
    Ok(u64::from_le_bytes(bytes))
}
