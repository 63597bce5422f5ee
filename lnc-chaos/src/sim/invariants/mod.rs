//! What must hold, each rule with its name. Rules are checked as things happen, and the rest when a run has come to rest.

pub(crate) mod followers;
mod log;
mod memory;
mod reigns;
mod repairs;
pub(crate) mod sizes;
mod stalls;
mod state;
pub(crate) mod topics;

pub(crate) use crate::records;

use super::clocks::Ages;
use super::settings::Settings;
use lnc_broker::inspect::{Applied, MemoryInspection};

/// A rule that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The rule's name.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        debug_assert!(ALL.iter().any(|(name, _)| *name == invariant), "{invariant} is not in the list");
        Self { invariant, what: what.into() }
    }
}

/// Every rule: its name, and what it says.
pub const ALL: &[(&str, &str)] = &[
    ("one-leader", "a group has at most one leader in a term"),
    ("leader-complete", "a leader has every entry that was applied in an earlier term"),
    ("log-matching", "every node applies the same entry at an index, whenever it does, and never another later"),
    ("applied-in-order", "a node applies the entries of a group one after the other"),
    ("state-digest", "state machines are equal at an equal applied index"),
    ("acked-kept", "an acknowledged record lies at its offset, and nothing is shorter than what was acknowledged"),
    ("offset-denied", "an offset up to which records were read is not said to be beyond the end"),
    ("no-duplicate", "a batch of an idempotent producer is in its partition once, another as often as it was tried"),
    ("producer-order", "records of a producer lie in the order in which they were sent"),
    ("producer-epoch", "nothing of an earlier epoch of a producer lies behind what it sent in a later one"),
    ("no-phantom", "every record read was sent, to that partition, and not refused"),
    ("same-bytes", "an offset holds the same record at all times and on all nodes"),
    ("no-hole", "offsets that are read follow one another"),
    (
        "high-watermark",
        "nothing is served beyond the high watermark, it never goes back while a node runs, and all below it stays",
    ),
    ("kept-for-its-time", "nothing is removed by age that is younger, by the true time, than its topic keeps it"),
    ("log-start", "a log begins later only where a topic limits what it keeps"),
    ("leader-acks", "what a leader acknowledged once its own disk had it is there if nobody else has led since"),
    ("fetch-size", "a fetch gives no more bytes than were asked for, unless it is a single batch"),
    ("time-offsets", "the first offset from a time on is the first record that is so late"),
    ("fresh-offsets", "the latest offset is not before what was acknowledged when the question was asked"),
    ("sequence-accepted", "a producer that keeps the rules is not told that it broke them"),
    ("unexpected-answer", "no error without a cause: topics that exist are known, what is stored can be read"),
    ("producer-ids", "a producer id is given out once"),
    ("topics", "topic operations could have happened one after the other"),
    ("deleted-stays", "nothing is taken into a topic, and nobody told that it exists, after its deletion was answered"),
    ("one-answer", "each request is answered exactly once"),
    ("memory", "requests under way and the tail cache stay within their limits"),
    ("unexplained-end", "a node ends, or does not start, only where a fault explains it"),
    ("own-files", "no node starts with another node's file in the place of its own, but for files of records"),
    ("repair-pace", "a damaged place is not repaired again and again without a pause"),
    ("panic", "nothing panics"),
    ("followers-kept", "no follower that lives and advances has to fetch the state because of load"),
    ("liveness-commits", "a leader whose entries do not arrive gives up, and its group commits again"),
    ("liveness", "the run comes to its end"),
    ("liveness-leader", "without faults every group soon has a leader"),
    ("liveness-clients", "without faults every client comes to the end of its work"),
    ("liveness-convergence", "without faults and clients all replicas become equal"),
    ("liveness-reads", "without faults everything can be read from every node"),
    ("space-returns", "a deleted topic's space comes back, though the disks are filled to the last byte or inode"),
    ("rest-elections", "without faults and clients no terms pass, whoever was removed and still runs"),
    ("rest-members", "without faults and clients no group changes its members"),
    ("voters-caught-up", "who becomes a voter has nearly all of the log"),
    ("members-in-circles", "a group does not come to the same members again and again"),
];

/// All rules that are checked while a run goes on.
#[derive(Default)]
pub(crate) struct Invariants {
    log: log::Log,
    state: state::States,
    pub(crate) reigns: reigns::Reigns,
    pub(crate) records: records::Records,
    pub(crate) ages: Ages,
    pub(crate) repairs: repairs::Repairs,
    pub(crate) stalls: stalls::Stalls,
}

impl Invariants {
    /// A node's process has started.
    pub(crate) fn started(&mut self, node: u64) {
        self.log.started(node);
    }

    /// A node leads a group, with a log that ends at `last`.
    pub(crate) fn leads(&mut self, node: u64, group: u32, term: u64, last: u64) -> Result<(), Violation> {
        self.log.leads(node, group, term, last)
    }

    /// A node in this term has applied an entry; gives the hash of what the entry holds.
    pub(crate) fn applied(&mut self, node: u64, term: u64, applied: &Applied) -> Result<u64, Violation> {
        let hash = self.log.applied(node, applied.group.0, &applied.entry, term)?;
        if let Some(state) = &applied.state {
            self.state.reached(node, applied.group.0, applied.entry.index, state)?;
        }
        Ok(hash)
    }

    pub(crate) fn memory(&self, node: u64, settings: &Settings, found: MemoryInspection) -> Result<(), Violation> {
        memory::check(node, settings, found)
    }
}
