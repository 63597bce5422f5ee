//! A cluster of brokers in one process: time, network, disks and clients are values that the test controls, so a run
//! follows from its settings and the calls made, and can be repeated exactly.
//!
//! ```text
//! Client calls ─► Node (Broker on a MemoryDisk) ─► Network (cuts, delay, loss) ─► Node …
//!                  └─► answers, by call
//! ```
//!
//! Nothing moves but through [`Cluster::settle`] (no time passes: whatever is ready is done) and [`Cluster::tick`] (one
//! unit of time passes, then the cluster settles).

mod client;
mod links;
mod network;
mod node;
mod passing;
pub(crate) mod records;
mod rng;
mod writer;

pub(crate) use client::{Call, Outcome, Producer, create_request, fetch_request, offsets_request, produce_request};
pub(crate) use network::{Cut, Network};
pub(crate) use node::{GroupView, Node, addresses};
pub(crate) use rng::Rng;
pub(crate) use writer::Writer;

use lnc_broker::Clock;
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::GroupId;
use lnc_log::segment::SegmentConfig;
use lnc_raft::{Message, NodeId};
use lnc_replication::wire::PeerMessage;
use std::collections::{BTreeMap, BTreeSet};

/// Virtual time per tick, in microseconds.
pub(crate) const TICK_US: u64 = 10_000;
/// Ticks between two heartbeats.
pub(crate) const HEARTBEAT_TICKS: u32 = 2;
/// Ticks per virtual second.
pub(crate) const SECOND: u32 = 100;
/// Wall-clock time at the start of every run, in milliseconds since 1970.
pub(crate) const EPOCH_MS: u64 = 1_700_000_000_000;
/// The catalog's group.
pub(crate) const META: GroupId = GroupId(0);

/// What a test may want to be other than usual.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Number of nodes; they are numbered from 1.
    pub(crate) nodes: u64,
    /// Number of data groups; the catalog's group comes on top.
    pub(crate) data_groups: u32,
    /// Bytes of requests that a node may have under way.
    pub(crate) memory_bytes: usize,
    /// Bytes of a node's tail cache.
    pub(crate) tail_cache_bytes: usize,
    /// Journal bytes between checkpoints.
    pub(crate) checkpoint_bytes: u64,
    /// Bytes of a journal file.
    pub(crate) journal_file_bytes: u64,
    /// Journal bytes kept beyond a checkpoint.
    pub(crate) journal_retain_bytes: u64,
    /// Bytes per second with which a node answers those that fetch state.
    pub(crate) transfer_bytes_per_second: u64,
    /// Bytes of entries that a node keeps in memory for followers that lag.
    pub(crate) entry_cache_bytes: usize,
    /// Bytes of a node's disk that are not for records.
    pub(crate) reserve_bytes: u64,
    /// Bytes per second that a node's scrub reads; a pass begins every second.
    pub(crate) scrub_bytes_per_second: u64,
    /// Sizes of segments.
    pub(crate) segments: SegmentConfig,
    /// Seed of the election timeouts.
    pub(crate) seed: u64,
    /// Nodes that tell others, when they start, that they speak the first format alone.
    pub(crate) old: Vec<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nodes: 3,
            data_groups: 1,
            memory_bytes: 4 << 20,
            tail_cache_bytes: 4 << 20,
            checkpoint_bytes: 64 << 20,
            journal_file_bytes: 256 << 10,
            journal_retain_bytes: 8 << 20,
            transfer_bytes_per_second: 64 << 20,
            entry_cache_bytes: 1 << 20,
            scrub_bytes_per_second: 0,
            reserve_bytes: 0,
            segments: SegmentConfig { write_block: 8192, index_interval_bytes: 1500, ..SegmentConfig::default() },
            seed: 1,
            old: Vec::new(),
        }
    }
}

/// See the module documentation.
pub(crate) struct Cluster {
    pub(crate) settings: Settings,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) network: Network,
    /// The client's connection: another number is another client.
    pub(crate) connection: u64,
    /// How often brokers were opened anew to take over state.
    pub(crate) reopened: u32,
    /// Who sends to whom, by number.
    links: BTreeSet<(u64, u64)>,
    now_us: u64,
    calls: client::Calls,
    passings: passing::Passings,
}

impl Cluster {
    /// A cluster whose nodes are fresh and started, at time zero.
    pub(crate) fn new(settings: Settings) -> Self {
        let nodes = (1..=settings.nodes).map(|id| (id, Node::new(id, &settings))).collect();
        let network = Network::new(settings.seed);
        let (links, calls, passings) = (BTreeSet::new(), client::Calls::default(), passing::Passings::default());
        let mut cluster =
            Self { settings, nodes, network, connection: 1, reopened: 0, links, now_us: 0, calls, passings };
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster
    }

    /// A cluster in which every group has a leader.
    pub(crate) fn ready(settings: Settings) -> Self {
        let mut cluster = Self::new(settings);
        cluster.await_leaders();
        cluster
    }

    /// The numbers of all nodes.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    /// The numbers of the nodes that run.
    pub(crate) fn running(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.is_running()).map(|(id, _)| *id).collect()
    }

    /// All groups.
    pub(crate) fn groups(&self) -> Vec<GroupId> {
        (0..=self.settings.data_groups).map(GroupId).collect()
    }

    /// A node.
    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    /// The same, to change it.
    pub(crate) fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("nodes are numbered from 1")
    }

    /// What clocks say that are right.
    pub(crate) fn clock(&self) -> Clock {
        Clock { wall_ms: EPOCH_MS + self.now_us / 1000, mono_us: self.now_us }
    }

    /// What a node's clock says.
    pub(crate) fn clock_of(&self, node: u64) -> Clock {
        self.node(node).clock(self.clock())
    }

    /// Virtual time since the start, in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_us / 1000
    }

    /// Start a node that does not run, from what its disk holds.
    pub(crate) fn start(&mut self, id: u64) {
        if let Err(error) = self.try_start(id) {
            panic!("node {id} does not start: {error}");
        }
    }

    /// The same, where the start may fail.
    pub(crate) fn try_start(&mut self, id: u64) -> Result<(), String> {
        let settings = self.settings.clone();
        self.node_mut(id).open(&settings)?;
        self.relink();
        Ok(())
    }

    /// Power loss at a node: `choice` says what of the unsynced survives. It stays down until it is started.
    pub(crate) fn crash(&mut self, id: u64, choice: CrashChoice) {
        self.node_mut(id).lose_power(choice);
        self.gone(id);
    }

    /// Kill a node's process: what the kernel has, it keeps.
    pub(crate) fn kill(&mut self, id: u64) {
        self.node_mut(id).kill();
        self.gone(id);
    }

    /// What others notice when a process ends: its connections close.
    fn gone(&mut self, id: u64) {
        self.network.forget(id);
        self.calls.connection_lost(id);
        self.break_passings(id);
        self.relink();
    }

    /// Choose when every disk completes its operations.
    pub(crate) fn set_disk_order(&mut self, order: impl Fn(u64) -> Order) {
        for (id, node) in &mut self.nodes {
            node.set_order(order(*id));
        }
    }

    /// One round: each node takes a turn, then what is due on the network arrives. Says whether anything moved.
    pub(crate) fn round(&mut self) -> bool {
        let mut moved = false;
        for id in self.running() {
            moved |= self.turn(id);
        }
        for packet in self.network.due(self.now_us) {
            moved = true;
            let clock = self.clock_of(packet.to);
            let to = self.node_mut(packet.to);
            let is_meant = to.identity.node == packet.message.to();
            if let Some(broker) = to.broker_mut().filter(|_| is_meant) {
                broker.peer_message(clock, packet.message);
            }
        }
        moved
    }

    fn turn(&mut self, id: u64) -> bool {
        let clock = self.clock();
        let turned = self.node_mut(id).turn(clock);
        let Some(node::Turned { outputs, messages, busy, reopen }) = turned else {
            self.gone(id);
            return true;
        };
        let moved = busy || !outputs.is_empty() || !messages.is_empty();
        let (answers, forwards) = self.calls.take(id, outputs);
        for (caller, opcode, reply) in answers {
            self.answer_passed(caller, opcode, &reply);
        }
        for forward in forwards {
            self.pass_on(id, forward);
        }
        for message in messages {
            if self.links.contains(&(id, message.to().node())) {
                self.network.send(self.now_us, message);
            }
        }
        if reopen {
            self.reopen(id);
        }
        moved
    }

    /// Open a node's broker anew in its process: connections to peers stay, clients connect again.
    fn reopen(&mut self, id: u64) {
        self.reopened += 1;
        self.node_mut(id).quiesce();
        self.calls.connection_lost(id);
        self.break_passings(id);
        self.start(id);
    }

    /// Do all that can be done without time passing.
    pub(crate) fn settle(&mut self) {
        /// Rounds after which a cluster that is still busy at the same instant is taken to run in circles.
        const TOO_MANY: u32 = 20_000;
        for _ in 0..TOO_MANY {
            if !self.round() {
                return;
            }
        }
        panic!("the cluster does not come to rest: it is busy without time passing");
    }

    /// One unit of time passes.
    pub(crate) fn tick(&mut self) {
        self.now_us += TICK_US;
        let clock = self.clock();
        for id in self.running() {
            if !self.node_mut(id).tick(clock) {
                self.gone(id);
            }
        }
        self.relink();
        self.settle();
    }

    /// A message that no node has sent arrives, on the connection of the node that it names.
    pub(crate) fn inject(&mut self, message: Message, group: GroupId) {
        let node = message.to.node();
        let clock = self.clock_of(node);
        if let Some(broker) = self.node_mut(node).broker_mut() {
            broker.peer_message(clock, PeerMessage::Raft(group, message));
        }
        self.settle();
    }

    /// A process with a fresh data directory shows itself to all nodes under this number.
    pub(crate) fn apply_for(&mut self, number: u64, incarnation: u64) {
        let clock = self.clock();
        for node in self.running() {
            if let Some(broker) = self.node_mut(node).broker_mut() {
                broker.applicant(clock, number, incarnation);
            }
        }
    }

    /// A process shows itself to all nodes that takes itself for this member.
    pub(crate) fn stray(&mut self, id: NodeId, incarnation: u64) {
        let clock = self.clock();
        for node in self.running() {
            if let Some(broker) = self.node_mut(node).broker_mut() {
                broker.stray(clock, id, incarnation);
            }
        }
    }

    /// Many units of time pass.
    pub(crate) fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.tick();
        }
    }

    /// All machines stand still for so many seconds, their clocks do not.
    pub(crate) fn stand_still(&mut self, seconds: u64) {
        self.now_us += seconds * 1_000_000;
    }

    /// Let time pass until something is true. Panics with `what` if it does not become true within a virtual minute.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        for _ in 0..60 * SECOND {
            if done(self) {
                return;
            }
            self.tick();
        }
        panic!("a minute passed, but not: {what}; {}", self.describe());
    }

    /// Let time pass until every group has a leader that knows all that was committed.
    pub(crate) fn await_leaders(&mut self) {
        self.settle();
        self.until("every group has a leader", |cluster| {
            cluster.groups().into_iter().all(|group| cluster.leader(group).is_some())
        });
    }

    /// Who leads a group, as far as the running nodes tell: the one of the highest term, if it has committed in it.
    pub(crate) fn leader(&mut self, group: GroupId) -> Option<u64> {
        let views = self.running().into_iter().map(|id| (id, self.view(id, group))).collect::<Vec<_>>();
        let (id, view) = views.into_iter().filter(|(_, view)| view.leads).max_by_key(|(_, view)| view.term)?;
        (view.commit == view.last).then_some(id)
    }

    /// The leader of a group that must have one.
    pub(crate) fn leader_of(&mut self, group: GroupId) -> u64 {
        self.await_leaders();
        self.leader(group).expect("awaited")
    }

    /// The nodes that do not lead a group.
    pub(crate) fn followers_of(&mut self, group: GroupId) -> Vec<u64> {
        let leader = self.leader_of(group);
        self.running().into_iter().filter(|id| *id != leader).collect()
    }

    /// A group as a node sees it.
    pub(crate) fn view(&mut self, id: u64, group: GroupId) -> GroupView {
        node::view(self, id, group)
    }

    /// Let time pass until every group is led by the node that should lead it, and nobody hands over any more.
    pub(crate) fn await_balance(&mut self) {
        let nodes = self.settings.nodes;
        self.until("leaders are where they should be", |cluster| {
            let groups = cluster.groups();
            groups.into_iter().all(|group| cluster.leader(group) == Some(1 + u64::from(group.0) % nodes))
        });
    }

    /// Let time pass until all running nodes have applied the same of every group, and all of it.
    pub(crate) fn await_same(&mut self) {
        self.until("all nodes have applied the same", |cluster| {
            let groups = cluster.groups();
            groups.into_iter().all(|group| {
                let views: Vec<_> = cluster.running().into_iter().map(|id| cluster.view(id, group)).collect();
                views.iter().all(|view| view.applied == view.last && view.last == views[0].last)
            })
        });
    }

    /// The state of everything, for a failing test.
    pub(crate) fn describe(&mut self) -> String {
        let mut text = String::new();
        for id in self.ids() {
            match self.node(id).failure() {
                Some(failure) => text += &format!("\nnode {id} failed: {failure}"),
                None if !self.node(id).is_running() => text += &format!("\nnode {id} is down"),
                None => {
                    for group in self.groups() {
                        text += &format!("\nnode {id} group {}: {:?}", group.0, self.view(id, group));
                    }
                }
            }
        }
        text
    }
}
