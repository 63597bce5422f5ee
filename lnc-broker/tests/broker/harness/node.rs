//! One node: its disk, which outlives it, and its broker while it runs.

use super::{Cluster, HEARTBEAT_TICKS, Outcome, SECOND, Settings, TICK_US};
use lnc_broker::control::Budgets;
use lnc_broker::members::Addresses;
use lnc_broker::partitions::PartitionGroup;
use lnc_broker::status::Snapshot;
use lnc_broker::trace::Span;
use lnc_broker::{Broker, BrokerConfig, BrokerError, Clock, Membership, Output, ProducerLimits, Sequences};
use lnc_log::FileOwner;
use lnc_log::checkpoint::{GroupCheckpoint, load_latest};
use lnc_log::disk::MemoryDisk;
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::{GroupId, JournalConfig};
use lnc_metrics::Metrics;
use lnc_protocol::message::{Request, Response};
use lnc_raft::NodeId;
use lnc_replication::ShardConfig;
use lnc_replication::formation::{Cluster as LanceCluster, Identity};
use lnc_replication::wire::PeerMessage;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A group as one node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupView {
    pub(crate) leads: bool,
    pub(crate) leader: Option<u64>,
    pub(crate) term: u64,
    pub(crate) commit: u64,
    pub(crate) applied: u64,
    pub(crate) durable: u64,
    pub(crate) last: u64,
    pub(crate) first: u64,
    /// The numbers of the voters, in order.
    pub(crate) voters: Vec<u64>,
    /// Learners, and voters that are on their way out.
    pub(crate) others: usize,
}

/// What came of a turn.
pub(super) struct Turned {
    pub(super) outputs: Vec<Output>,
    pub(super) messages: Vec<PeerMessage>,
    /// There may be more to do at the same instant.
    pub(super) busy: bool,
    /// It wants to take over state that has come.
    pub(super) reopen: bool,
}

/// See the module documentation.
pub(crate) struct Node {
    id: u64,
    /// What its data directory says of it; without a cluster while that is fresh.
    pub(super) stored: Identity,
    /// Who it is to the others.
    pub(super) identity: Identity,
    disk: MemoryDisk,
    order: Order,
    broker: Option<Broker<MemoryDisk>>,
    metrics: Arc<Metrics>,
    failure: Option<BrokerError>,
    starts: u64,
    /// The format of its data directory.
    format: u32,
    /// Something has happened since its last turn that would make a real node take one.
    woken: bool,
    /// Milliseconds by which its wall clock is ahead of the cluster's.
    pub(crate) clock_ahead_ms: i64,
}

impl Node {
    /// A founder.
    pub(super) fn new(id: u64, settings: &Settings) -> Self {
        let cluster = LanceCluster::found(founders(settings), settings.data_groups);
        Self::with(id, Identity { node: NodeId(id), incarnation: id, cluster: Some(cluster) })
    }

    /// A node that belongs to no cluster yet.
    pub(super) fn fresh(id: u64, incarnation: u64) -> Self {
        Self::with(id, Identity { node: NodeId(id), incarnation, cluster: None })
    }

    fn with(id: u64, identity: Identity) -> Self {
        Self {
            id,
            stored: identity.clone(),
            identity,
            disk: MemoryDisk::new(),
            order: Order::Immediate,
            broker: None,
            metrics: Metrics::new(),
            failure: None,
            starts: 0,
            format: 1,
            woken: false,
            clock_ahead_ms: 0,
        }
    }

    /// Whether its process runs.
    pub(crate) fn is_running(&self) -> bool {
        self.broker.is_some()
    }

    /// Why its process ended by itself.
    pub(crate) fn failure(&self) -> Option<&BrokerError> {
        self.failure.as_ref()
    }

    /// Its disk: a handle, good until the next crash.
    pub(crate) fn disk(&self) -> MemoryDisk {
        self.disk.clone()
    }

    /// Give it another disk; it must not run.
    pub(crate) fn set_disk(&mut self, disk: MemoryDisk) {
        assert!(self.broker.is_none(), "node {} runs", self.id);
        // An empty one is a new data directory.
        if disk.paths().is_empty() {
            self.format = 1;
        }
        self.disk = disk;
    }

    /// Let its data directory have this format.
    pub(crate) fn set_format(&mut self, format: u32) {
        self.format = format;
    }

    /// Its metrics since the last start.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Its broker, to give it something to do.
    pub(crate) fn broker_mut(&mut self) -> Option<&mut Broker<MemoryDisk>> {
        self.woken = true;
        self.broker.as_mut()
    }

    /// Whom it knows as members, and how it reaches them.
    pub(super) fn membership(&self) -> Option<Membership> {
        self.broker.as_ref().map(Broker::membership)
    }

    /// Whether it may be sent traffic.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        self.broker.as_ref().expect("the node runs").readiness()
    }

    /// What it knows of the cluster.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.broker.as_ref().expect("the node runs").snapshot()
    }

    /// Record traces, with the times of this stopwatch, until it ends.
    pub(crate) fn record_traces(&mut self, stopwatch: impl Fn() -> u64 + 'static) {
        self.broker.as_mut().expect("the node runs").record_traces(Box::new(stopwatch));
    }

    /// The spans that are over.
    pub(crate) fn spans(&mut self) -> Vec<Span> {
        self.broker.as_mut().expect("the node runs").take_spans()
    }

    /// Begin a graceful end.
    pub(crate) fn drain(&mut self) {
        if let Some(broker) = self.broker_mut() {
            broker.drain();
        }
    }

    /// Whether it leads nothing that another could lead.
    pub(crate) fn is_drained(&self) -> bool {
        self.broker.as_ref().is_some_and(Broker::is_drained)
    }

    /// Choose when its disk completes operations; with `Immediate`, what waits happens now.
    pub(crate) fn set_order(&mut self, order: Order) {
        self.order = order;
        self.woken = true;
        self.disk.set_order(order);
        if order == Order::Immediate {
            self.disk.release_all();
        }
    }

    pub(super) fn open(&mut self, settings: &Settings) -> Result<(), String> {
        assert!(self.broker.is_none(), "node {} runs", self.id);
        self.starts += 1;
        self.metrics = Metrics::new();
        self.identity = self.stored.clone();
        let opened = lnc_broker::open(
            broker_config(&self.stored, settings),
            shard_config(&self.stored, self.starts, self.format, settings),
            settings.segments.clone(),
            self.disk.clone(),
            self.metrics.clone(),
        );
        self.broker = Some(opened.map_err(|error| error.to_string())?);
        self.failure = None;
        Ok(())
    }

    /// Wait for the disk and drop the broker, as the driver does before it opens it anew.
    pub(super) fn quiesce(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            broker.quiesce();
        }
        self.disk = self.disk.kill(u64::MAX);
        self.disk.set_order(self.order);
    }

    pub(super) fn lose_power(&mut self, choice: CrashChoice) {
        self.broker = None;
        self.failure = None;
        self.disk = self.disk.crash(choice);
        self.disk.set_order(self.order);
    }

    pub(super) fn kill(&mut self) {
        self.broker = None;
        self.disk = self.disk.kill(u64::MAX);
        self.disk.set_order(self.order);
    }

    /// What its clock says when it is this time.
    pub(super) fn clock(&self, clock: Clock) -> Clock {
        Clock { wall_ms: clock.wall_ms.saturating_add_signed(self.clock_ahead_ms), ..clock }
    }

    /// False if the broker failed and so ended.
    pub(super) fn tick(&mut self, clock: Clock) -> bool {
        let clock = self.clock(clock);
        let Some(broker) = self.broker_mut() else { return true };
        match broker.tick(clock) {
            Ok(()) => {
                let stored = broker.stored_format();
                self.format = self.format.max(stored);
                true
            }
            Err(error) => {
                self.fail(error);
                false
            }
        }
    }

    /// `None` if the broker failed and so ended: then nothing leaves.
    pub(super) fn turn(&mut self, clock: Clock) -> Option<Turned> {
        // What a test releases by hand is not seen here, so a node whose disk waits for the test always takes its turn.
        if !std::mem::take(&mut self.woken) && self.order != Order::Held {
            return Some(Turned { outputs: Vec::new(), messages: Vec::new(), busy: false, reopen: false });
        }
        let clock = self.clock(clock);
        let broker = self.broker.as_mut()?;
        let before = self.disk.operations();
        let mut outputs = Vec::new();
        match broker.turn(clock, &mut outputs) {
            Ok(messages) => {
                broker.kick();
                let operations = self.disk.operations() != before;
                let completing = self.order != Order::Held && !self.disk.in_flight().is_empty();
                let busy = operations || completing || broker.wants_turn();
                self.woken = busy;
                Some(Turned { outputs, messages, busy, reopen: broker.wants_reopen() })
            }
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    fn fail(&mut self, error: BrokerError) {
        self.broker = None;
        self.failure = Some(error);
    }

    /// The state of a group of partitions.
    pub(crate) fn state(&self, group: GroupId) -> PartitionGroup {
        let broker = self.broker.as_ref().expect("a running node");
        PartitionGroup::decode(&mut broker.encoded_state(group)).expect("a state")
    }

    /// What its newest checkpoint says of a group.
    pub(crate) fn checkpoint(&self, group: GroupId) -> Option<GroupCheckpoint> {
        let mut copy = self.disk.clone();
        let loaded = load_latest(&mut copy).expect("a checkpoint that is whole")?;
        loaded.checkpoint.groups.into_iter().find(|found| found.group == group)
    }

    /// Its segment files, by path.
    pub(crate) fn segment_files(&self) -> Vec<(String, Vec<u8>)> {
        let logs = self.disk.paths().into_iter().filter(|path| path.starts_with("segments/") && path.ends_with(".log"));
        logs.map(|path| (path.clone(), self.disk.file(&path).unwrap_or_default())).collect()
    }
}

/// What a clock may be off.
const MAX_CLOCK_SKEW_MS: u64 = 2_000;

/// How a node is reached.
pub(crate) fn addresses(node: u64) -> Addresses {
    Addresses {
        client: format!("node-{node}:1992"),
        peer: format!("node-{node}:1993"),
        http: format!("node-{node}:1994"),
    }
}

fn founders(settings: &Settings) -> BTreeMap<NodeId, u64> {
    (1..=settings.nodes).map(|node| (NodeId(node), node)).collect()
}

fn broker_config(identity: &Identity, settings: &Settings) -> BrokerConfig {
    let cluster = identity.cluster.as_ref().expect("a node that runs belongs to a cluster");
    let own = identity.node.node();
    BrokerConfig {
        node: identity.node,
        cluster_id: cluster.id,
        nodes: (1..=settings.nodes).chain([own]).map(|node| (node, addresses(node))).collect(),
        members: cluster.members.clone(),
        members_version: cluster.version,
        founders: cluster.founders.clone(),
        data_groups: settings.data_groups,
        memory_bytes: settings.memory_bytes,
        tail_cache_bytes: settings.tail_cache_bytes,
        max_batch_bytes: 1 << 20,
        max_frame_bytes: 4 << 20,
        max_topics: 100,
        max_partitions_per_topic: 100,
        checkpoint_bytes: settings.checkpoint_bytes,
        transfer_bytes_per_second: settings.transfer_bytes_per_second,
        slow_sync_us: 500_000,
        reserve_bytes: settings.reserve_bytes,
        scrub_bytes_per_second: settings.scrub_bytes_per_second,
        scrub_interval_us: 1_000_000,
        segment_bytes: settings.segments.segment_bytes,
        checkpoint_piece_bytes: 1000,
        producer_limits: ProducerLimits::DEFAULT,
        sequences: Sequences::default(),
        max_clock_skew_ms: MAX_CLOCK_SKEW_MS,
        budgets: Budgets::of_heartbeat(u64::from(HEARTBEAT_TICKS) * TICK_US / 1000),
    }
}

fn shard_config(identity: &Identity, starts: u64, format: u32, settings: &Settings) -> ShardConfig {
    let incarnation = identity.incarnation;
    let owner = FileOwner { cluster: 1, node: identity.node.node(), incarnation };
    ShardConfig {
        node: identity.node,
        founders: founders(settings).into_keys().collect(),
        groups: (0..=settings.data_groups).map(GroupId).collect(),
        election_ticks: 10,
        heartbeat_ticks: HEARTBEAT_TICKS,
        election_rpc_ticks: SECOND,
        election_round_ticks: 3 * SECOND,
        max_in_flight_bytes: 1 << 20,
        max_append_bytes: 256 << 10,
        entry_cache_bytes: settings.entry_cache_bytes,
        journal_retain_bytes: settings.journal_retain_bytes,
        seed: settings.seed.wrapping_mul(1000) + starts,
        journal: JournalConfig {
            file_bytes: settings.journal_file_bytes,
            owner,
            format,
            ..JournalConfig::new(incarnation)
        },
    }
}

/// Ask a node for its view of a group. Only that node takes turns for it.
pub(super) fn view(cluster: &mut Cluster, id: u64, group: GroupId) -> GroupView {
    let call = cluster.send(id, &Request::ClusterInfo);
    cluster.turn(id);
    match cluster.outcome(call) {
        Some(Outcome::Done(Response::ClusterInfo(info))) => {
            let found = info.groups.into_iter().find(|found| found.group == group.0);
            let found = found.expect("every node has every group");
            let mut voters: Vec<u64> = found.voters.iter().map(|voter| NodeId(*voter).node()).collect();
            voters.sort_unstable();
            GroupView {
                leads: found.role == "leader",
                leader: found.leader,
                term: found.term,
                commit: found.commit_index,
                applied: found.applied_index,
                durable: found.durable_index,
                last: found.last_index,
                first: found.first_index,
                voters,
                others: found.learners.len() + found.outgoing.len(),
            }
        }
        // Its disk has just failed.
        Some(Outcome::Lost) => GroupView::default(),
        other => panic!("node {id} did not say how it is: {other:?}"),
    }
}
