//! The network between nodes: for each pair, direction and channel one connection, as TCP would be. Bytes arrive in order
//! and complete or the connection breaks; weather can make it worse than that.
//!
//! This holds the state; the cluster moves the bytes, since only it knows who lives.

use super::rng::Rng;
use bytes::BytesMut;
use lnc_raft::NodeId;
use lnc_replication::formation::Channel;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;

/// How long bytes may wait to be acknowledged before the sender gives the connection up, in microseconds.
pub(super) const UNANSWERED_US: u64 = 2_000_000;

/// One direction of one channel between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wire {
    /// The node that sends.
    pub(crate) from: u64,
    /// The node that receives.
    pub(crate) to: u64,
    /// The channel.
    pub(crate) channel: Channel,
}

impl Wire {
    /// A number of its own.
    pub(super) fn number(self) -> u64 {
        self.from << 32 | self.to << 8 | u64::from(self.channel == Channel::Replication)
    }
}

impl fmt::Display for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channel = if self.channel == Channel::Control { "control" } else { "replication" };
        write!(f, "{}→{} {channel}", self.from, self.to)
    }
}

/// Bytes that do not pass: those that match every field that is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The sender.
    pub(crate) from: Option<u64>,
    /// The receiver.
    pub(crate) to: Option<u64>,
    /// The channel.
    pub(crate) channel: Option<Channel>,
}

impl Cut {
    fn matches(&self, wire: Wire) -> bool {
        self.from.is_none_or(|from| from == wire.from)
            && self.to.is_none_or(|to| to == wire.to)
            && self.channel.is_none_or(|channel| channel == wire.channel)
    }
}

/// How bytes travel; chances in permille.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Shortest and longest time under way, in microseconds.
    pub(crate) delay_us: (u64, u64),
    /// A frame is lost though its connection stands.
    pub(crate) loss: u64,
    /// A frame arrives twice.
    pub(crate) twice: u64,
    /// A frame does not wait for those before it.
    pub(crate) overtake: u64,
    /// A bit of a frame flips.
    pub(crate) corrupt: u64,
}

impl Weather {
    /// Nothing goes wrong.
    pub(crate) const FAIR: Self = Self { delay_us: (500, 3_000), loss: 0, twice: 0, overtake: 0, corrupt: 0 };
}

/// One connection.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) up: bool,
    /// Counts the times it was made.
    pub(super) generation: u32,
    /// The life of the receiver that accepted it.
    pub(super) to_life: u32,
    /// When the last bytes under way arrive.
    arrives_us: u64,
    /// Bytes that a cut holds back.
    pub(super) held: VecDeque<BytesMut>,
    /// Since when the sender waits for an acknowledgement.
    pub(super) unanswered_since: Option<u64>,
    /// Received, and not a whole frame yet.
    pub(super) received: BytesMut,
}

/// See the module documentation.
pub(super) struct Network {
    connections: BTreeMap<Wire, Connection>,
    /// Who was at either end when a connection was made last.
    pub(super) ends: BTreeMap<Wire, (NodeId, NodeId)>,
    /// Cuts in force, by the number of their fault.
    cuts: BTreeMap<u64, Vec<Cut>>,
    /// Nodes whose incoming bytes take ever longer, by the number of the fault: node, since when, and how long at most.
    lags: BTreeMap<u64, (u64, u64, u64)>,
    /// Nodes from which only what is so short arrives, by the number of the fault.
    narrow: BTreeMap<u64, (u64, usize)>,
    /// Nodes to which only so many bytes arrive in a second, by the number of the fault.
    slow: BTreeMap<u64, (u64, u64)>,
    pub(super) weather: Weather,
    pub(super) rng: Rng,
}

impl Network {
    pub(super) fn new(nodes: u64, rng: Rng) -> Self {
        let mut connections = BTreeMap::new();
        for from in 1..=nodes {
            for to in (1..=nodes).filter(|to| *to != from) {
                for channel in [Channel::Control, Channel::Replication] {
                    connections.insert(Wire { from, to, channel }, Connection::default());
                }
            }
        }
        Self {
            connections,
            ends: BTreeMap::new(),
            cuts: BTreeMap::new(),
            lags: BTreeMap::new(),
            narrow: BTreeMap::new(),
            slow: BTreeMap::new(),
            weather: Weather::FAIR,
            rng,
        }
    }

    pub(super) fn wires(&self) -> Vec<Wire> {
        self.connections.keys().copied().collect()
    }

    pub(super) fn connection(&mut self, wire: Wire) -> &mut Connection {
        self.connections.entry(wire).or_default()
    }

    /// The peers to which a node's control connection stands.
    pub(super) fn connected(&self, from: u64) -> impl Iterator<Item = u64> + '_ {
        let own = self.connections.iter().filter(move |(wire, _)| wire.from == from);
        own.filter(|(wire, connection)| wire.channel == Channel::Control && connection.up).map(|(wire, _)| wire.to)
    }

    pub(super) fn cut(&mut self, fault: u64, cuts: Vec<Cut>) {
        self.cuts.insert(fault, cuts);
    }

    pub(super) fn heal(&mut self, fault: u64) {
        self.cuts.remove(&fault);
        self.lags.remove(&fault);
        self.narrow.remove(&fault);
        self.slow.remove(&fault);
    }

    /// From now on what goes to a node takes longer and longer, up to `most_us`.
    pub(super) fn lag(&mut self, fault: u64, now_us: u64, node: u64, most_us: u64) {
        self.lags.insert(fault, (node, now_us, most_us));
    }

    /// From now on only what is at most so long arrives from a node.
    pub(super) fn narrow(&mut self, fault: u64, node: u64, longest: usize) {
        self.narrow.insert(fault, (node, longest));
    }

    /// Whether there is a node from which what is long does not arrive.
    pub(super) fn is_narrow(&self) -> bool {
        !self.narrow.is_empty()
    }

    /// From now on so many bytes in a second arrive at a node, on each connection.
    pub(super) fn slow(&mut self, fault: u64, node: u64, bytes_per_second: u64) {
        self.slow.insert(fault, (node, bytes_per_second));
    }

    /// Whether what is so long passes at the moment.
    pub(super) fn passes_with(&self, wire: Wire, bytes: usize) -> bool {
        let fits = |(node, longest): &(u64, usize)| *node != wire.from || bytes <= *longest;
        self.passes(wire) && self.narrow.values().all(fits)
    }

    /// How much longer bytes take on their way to a node.
    fn lag_us(&self, now_us: u64, to: u64) -> u64 {
        let of = |(node, since_us, most_us): &(u64, u64, u64)| match *node == to {
            // Slower than time passes: what was said is still heard one after the other.
            true => ((now_us - since_us) * 6 / 10).min(*most_us),
            false => 0,
        };
        self.lags.values().map(of).max().unwrap_or(0)
    }

    pub(super) fn heal_all(&mut self) {
        self.cuts.clear();
        self.lags.clear();
        self.narrow.clear();
        self.slow.clear();
        self.weather = Weather::FAIR;
    }

    /// Whether bytes pass at the moment.
    pub(super) fn passes(&self, wire: Wire) -> bool {
        !self.cuts.values().flatten().any(|cut| cut.matches(wire))
    }

    /// Whether bytes pass and their acknowledgements come back.
    pub(super) fn answers(&self, wire: Wire) -> bool {
        self.passes(wire) && self.passes(Wire { from: wire.to, to: wire.from, channel: wire.channel })
    }

    /// How long something takes that does not travel on a connection of its own.
    pub(super) fn delay(&mut self) -> u64 {
        let (low, high) = self.weather.delay_us;
        self.rng.between(low, high)
    }

    /// When bytes sent now arrive.
    pub(super) fn arrival(&mut self, now_us: u64, wire: Wire, bytes: usize) -> u64 {
        let delay = self.delay() + self.lag_us(now_us, wire.to);
        let slow = self.slow.values().filter(|(node, _)| *node == wire.to);
        let took_us = slow.map(|(_, per_second)| bytes as u64 * 1_000_000 / per_second).max().unwrap_or(0);
        let overtakes = self.rng.chance(self.weather.overtake);
        let connection = self.connections.entry(wire).or_default();
        if overtakes {
            return now_us + delay + took_us;
        }
        connection.arrives_us = connection.arrives_us.max(now_us + delay) + took_us;
        connection.arrives_us
    }

    /// The connection is gone, with whatever was under way on it. False if it was not there.
    pub(super) fn take_down(&mut self, wire: Wire) -> bool {
        let connection = self.connections.entry(wire).or_default();
        let was_up = connection.up;
        let generation = connection.generation + u32::from(was_up);
        *connection = Connection { generation, ..Connection::default() };
        was_up
    }
}
