//! The trace of a run: every event feeds a running hash, the newest are kept, and all of them go to a sink if there is one.

use super::network::Wire;
use std::collections::VecDeque;
use std::fmt;

/// Events kept for a failure's report.
const KEPT: usize = 60;

/// What happened.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A node's unit of time.
    Tick { node: u64 },
    /// A node took a turn.
    Turn { node: u64, outputs: usize, frames: usize },
    /// A node's disk finished an operation.
    Disk { node: u64, operation: u64 },
    /// Bytes arrived at a peer. The check value is what the frame's header says.
    Frame { wire: Wire, bytes: usize, check: u64, messages: String },
    /// Bytes were lost, or damaged, or sent twice.
    Mishap { wire: Wire, what: &'static str },
    /// A connection came up or broke.
    Connection { wire: Wire, what: &'static str },
    /// A node was told that a peer's control connection broke.
    PeerLost { node: u64, peer: u64 },
    /// A request reached a node.
    Request { node: u64, call: u64, what: &'static str, check: u64 },
    /// A request's outcome reached its client.
    Outcome { call: u64, what: &'static str, code: u16 },
    /// A node passes a request on.
    Forward { from: u64, to: u64, number: u64 },
    /// A node's view of a group changed.
    Role { node: u64, group: u32, term: u64, leads: bool, leader: u64 },
    /// A node applied an entry.
    Applied { node: u64, group: u32, index: u64, term: u64, check: u64 },
    /// A node's life.
    Node { node: u64, what: String },
    /// A fault was applied, or was over.
    Fault { what: String },
}

impl Event {
    fn words(&self) -> [u64; 6] {
        let text = |text: &str| super::rng::hash_bytes(text.as_bytes());
        match self {
            Self::Tick { node } => [1, *node, 0, 0, 0, 0],
            Self::Turn { node, outputs, frames } => [2, *node, *outputs as u64, *frames as u64, 0, 0],
            Self::Disk { node, operation } => [3, *node, *operation, 0, 0, 0],
            Self::Frame { wire, bytes, check, .. } => [4, wire.number(), *bytes as u64, *check, 0, 0],
            Self::Mishap { wire, what } => [5, wire.number(), text(what), 0, 0, 0],
            Self::Connection { wire, what } => [6, wire.number(), text(what), 0, 0, 0],
            Self::PeerLost { node, peer } => [7, *node, *peer, 0, 0, 0],
            Self::Request { node, call, check, .. } => [8, *node, *call, *check, 0, 0],
            Self::Outcome { call, what, code } => [9, *call, text(what), u64::from(*code), 0, 0],
            Self::Forward { from, to, number } => [10, *from, *to, *number, 0, 0],
            Self::Role { node, group, term, leads, leader } => {
                [11, *node, u64::from(*group), *term, u64::from(*leads), *leader]
            }
            Self::Applied { node, group, index, term, check } => [12, *node, u64::from(*group), *index, *term, *check],
            Self::Node { node, what } => [13, *node, text(what), 0, 0, 0],
            Self::Fault { what } => [14, text(what), 0, 0, 0, 0],
        }
    }

    /// Too frequent to be worth a place among the newest.
    fn is_dull(&self) -> bool {
        matches!(self, Self::Tick { .. } | Self::Turn { outputs: 0, frames: 0, .. } | Self::Disk { .. })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick { node } => write!(f, "node {node}: tick"),
            Self::Turn { node, outputs, frames } => write!(f, "node {node}: turn, {outputs} outputs, {frames} frames"),
            Self::Disk { node, operation } => write!(f, "node {node}: disk operation {operation} done"),
            Self::Frame { wire, bytes, messages, .. } => write!(f, "{wire}: {bytes} bytes {messages}"),
            Self::Mishap { wire, what } | Self::Connection { wire, what } => write!(f, "{wire}: {what}"),
            Self::PeerLost { node, peer } => write!(f, "node {node}: lost the connection to node {peer}"),
            Self::Request { node, call, what, .. } => write!(f, "node {node}: request {call}, {what}"),
            Self::Outcome { call, what, code } => write!(f, "request {call}: {what} (code {code})"),
            Self::Forward { from, to, number } => write!(f, "node {from}: forward {number} to node {to}"),
            Self::Role { node, group, term, leads, leader } => {
                let role = if *leads { "leads" } else { "follows" };
                write!(f, "node {node}: {role} group {group} in term {term}, leader {leader}")
            }
            Self::Applied { node, group, index, term, check } => {
                write!(f, "node {node}: group {group} applied {index} of term {term}, hash {check:016x}")
            }
            Self::Node { node, what } => write!(f, "node {node}: {what}"),
            Self::Fault { what } => write!(f, "fault: {what}"),
        }
    }
}

/// Takes every event as it happens: virtual time in microseconds, and the event.
pub(crate) type Sink = Box<dyn FnMut(u64, &Event)>;

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    newest: VecDeque<(u64, Event)>,
    sink: Option<Sink>,
}

impl Trace {
    pub(crate) fn new(sink: Option<Sink>) -> Self {
        Self { sink, ..Self::default() }
    }

    /// Whether texts that only people read are worth making.
    pub(crate) fn is_read(&self) -> bool {
        self.sink.is_some()
    }

    pub(crate) fn add(&mut self, now_us: u64, event: Event) {
        self.events += 1;
        let mut step = |word: u64| self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        step(now_us);
        event.words().into_iter().for_each(&mut step);
        if let Some(sink) = &mut self.sink {
            sink(now_us, &event);
        }
        if !event.is_dull() {
            if self.newest.len() == KEPT {
                self.newest.pop_front();
            }
            self.newest.push_back((now_us, event));
        }
    }

    /// The hash of everything so far.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Number of events so far.
    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    /// The newest events as lines.
    pub(crate) fn newest(&self) -> Vec<String> {
        self.newest.iter().map(|(at, event)| line(*at, event)).collect()
    }
}

/// An event as a line of a trace file.
pub(crate) fn line(at_us: u64, event: &Event) -> String {
    format!("{:>11.6} {event}", at_us as f64 / 1e6)
}
