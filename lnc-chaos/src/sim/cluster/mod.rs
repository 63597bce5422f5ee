//! The cluster in virtual time: a queue of events, the nodes, the network between them, the clients, and what must hold.
//!
//! ```text
//! queue ─► Frame, Disk, Tick, Request … ─► a node's inbox ─► Turn ─► frames, disk operations, answers ─► queue
//! ```
//!
//! A node does nothing but in its turns, and takes one only when something has happened. All that looks random comes from
//! the seed.

mod faulting;
mod files;
mod finish;
mod nodes;
mod rest;
mod serving;
mod wires;

use super::faults::Scheduled;
use super::history::History;
use super::invariants::{Invariants, Violation};
use super::network::{Network, Wire};
use super::node::Node;
use super::report::Counts;
use super::rng::Rng;
use super::settings::Settings;
use super::trace::Trace;
use super::workload::{Client, Outcome};
use bytes::{Bytes, BytesMut};
use lnc_broker::{Caller, Passage};
use lnc_protocol::Opcode;
use lnc_raft::NodeId;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;

/// Something that will happen.
pub(super) enum What {
    Tick { node: u64, life: u32 },
    Turn { node: u64, life: u32 },
    Disk { node: u64, opened: u32, operation: u64 },
    Frame { wire: Wire, generation: u32, bytes: BytesMut },
    PeerLost { node: u64, life: u32, peer: NodeId },
    Broken { wire: Wire, generation: u32 },
    Unanswered { wire: Wire, generation: u32 },
    Connect { wire: Wire, life: u32 },
    Request { node: u64, caller: Caller, opcode: Opcode, body: Bytes },
    Passage { node: u64, life: u32, number: u64, passage: Passage },
    Outcome { call: u64, outcome: Outcome },
    Timer { client: usize, token: u64 },
    Fault { index: usize },
    FaultOver { fault: u64 },
    Deposed { fault: u64, turn: u64, node: u64 },
    Start { node: u64, life: u32 },
    Greet { node: u64, life: u32 },
    Joined { node: u64, incarnation: u64 },
    Heal,
    Stop,
    Look,
}

/// What will happen, by time, and of equal times in the order of its planning.
#[derive(Default)]
struct Queue {
    /// Time and number of an event, the earliest first, and its place in `events`: what moves in the heap is small.
    order: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<What>>,
    free: Vec<usize>,
    planned: u64,
}

impl Queue {
    fn push(&mut self, at_us: u64, what: What) {
        self.planned += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(what);
        self.order.push(Reverse((at_us, self.planned, place)));
    }

    fn pop(&mut self) -> Option<(u64, What)> {
        let Reverse((at_us, _, place)) = self.order.pop()?;
        self.free.push(place);
        Some((at_us, self.events[place].take()?))
    }
}

/// A client's request on its way.
struct Call {
    client: usize,
    token: u64,
    opcode: Opcode,
}

/// See the module documentation.
pub(super) struct Cluster {
    pub(super) settings: Settings,
    pub(super) now_us: u64,
    queue: Queue,
    pub(super) nodes: Vec<Node>,
    network: Network,
    faults: Vec<Scheduled>,
    coups: Vec<faulting::Coup>,
    /// Since when other programs leave nothing of any disk.
    filled_us: Option<u64>,
    pub(super) trace: Rc<RefCell<Trace>>,
    pub(super) invariants: Invariants,
    pub(super) history: History,
    clients: Vec<Box<dyn Client>>,
    client_rng: Rng,
    calls: BTreeMap<u64, Call>,
    next_call: u64,
    next_forward: u64,
    pub(super) counts: Counts,
    finish: finish::Finish,
    rest: rest::Rest,
}

/// What ends a run early.
pub(super) type Checked = Result<(), Violation>;

impl Cluster {
    pub(super) fn new(
        settings: Settings,
        faults: Vec<Scheduled>,
        clients: Vec<Box<dyn Client>>,
        virtual_us: u64,
        trace: Rc<RefCell<Trace>>,
    ) -> Self {
        let seed = settings.seed;
        let mut cluster = Self {
            now_us: 0,
            queue: Queue::default(),
            nodes: (1..=settings.nodes).map(|id| Node::new(id, seed)).collect(),
            network: Network::new(settings.nodes, Rng::fork(seed, 0x2e7)),
            faults,
            coups: Vec::new(),
            filled_us: None,
            trace,
            invariants: Invariants::default(),
            history: History::default(),
            clients,
            client_rng: Rng::fork(seed, 0xc11e),
            calls: BTreeMap::new(),
            next_call: 0,
            next_forward: 0,
            counts: Counts::default(),
            finish: finish::Finish::new(),
            rest: rest::Rest::default(),
            settings,
        };
        let founders = 1..=cluster.settings.founders;
        cluster.nodes.iter_mut().for_each(|node| node.configured = founders.clone().collect());
        for node in cluster.settings.founders + 1..=cluster.settings.nodes {
            let node = cluster.node(node);
            (node.away, node.excuses.wiped) = (true, true);
        }
        for node in 1..=cluster.settings.founders {
            let life = cluster.nodes[node as usize - 1].lives;
            cluster.at(0, What::Start { node, life });
        }
        for client in 0..cluster.clients.len() {
            cluster.at(1_000_000, What::Timer { client, token: super::workload::BEGIN });
        }
        for index in 0..cluster.faults.len() {
            cluster.at(cluster.faults[index].at_us, What::Fault { index });
        }
        cluster.at(virtual_us * 2 / 3, What::Heal);
        cluster.at(virtual_us * 5 / 6, What::Stop);
        cluster
    }

    /// Until everything is over, or something is wrong.
    pub(super) fn run(&mut self) -> Checked {
        while let Some((at_us, what)) = self.queue.pop() {
            self.now_us = at_us;
            self.happen(what)?;
            if self.finish.is_done() {
                return Ok(());
            }
        }
        Err(Violation::new("liveness", "nothing is left to happen, but the run has not come to its end"))
    }

    pub(super) fn at(&mut self, at_us: u64, what: What) {
        self.queue.push(at_us.max(self.now_us), what);
    }

    pub(super) fn after(&mut self, delay_us: u64, what: What) {
        self.at(self.now_us + delay_us, what);
    }

    pub(super) fn node(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    /// Whether an event belongs to the life that the node is in.
    fn lives(&self, id: u64, life: u32) -> bool {
        let node = &self.nodes[id as usize - 1];
        node.is_up() && node.lives == life
    }

    pub(super) fn note(&self, event: super::trace::Event) {
        self.trace.borrow_mut().add(self.now_us, event);
    }

    fn happen(&mut self, what: What) -> Checked {
        match what {
            What::Tick { node, life } => self.tick(node, life),
            What::Turn { node, life } => return self.turn(node, life),
            What::Disk { node, opened, operation } => self.disk_done(node, opened, operation),
            What::Frame { wire, generation, bytes } => self.frame_arrives(wire, generation, bytes),
            What::PeerLost { node, life, peer } => self.peer_lost(node, life, peer),
            What::Broken { wire, generation } => self.broken(wire, generation),
            What::Unanswered { wire, generation } => self.unanswered(wire, generation),
            What::Connect { wire, life } => self.connect(wire, life),
            What::Request { node, caller, opcode, body } => self.request_arrives(node, caller, opcode, body),
            What::Passage { node, life, number, passage } => self.passed(node, life, number, passage),
            What::Outcome { call, outcome } => return self.outcome(call, outcome),
            What::Timer { client, token } => return self.timer(client, token),
            What::Fault { index } => self.strike(index),
            What::FaultOver { fault } => self.fault_over(fault),
            What::Deposed { fault, turn, node } => self.depose(fault, turn, node),
            What::Start { node, life } => return self.start(node, life),
            What::Greet { node, life } => self.greet(node, life),
            What::Joined { node, incarnation } => self.joined(node, incarnation),
            What::Heal => self.heal(),
            What::Stop => self.stop(),
            What::Look => return self.look(),
        }
        Ok(())
    }
}
