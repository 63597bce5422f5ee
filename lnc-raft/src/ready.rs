//! What a turn of the core wants done.

use crate::message::{Entry, HardState, Index, Message, NodeId, Term};
use crate::raft::Role;

/// The effects of all inputs since the last [`Ready`]. The duties of its taker are in the crate's documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "effects that are dropped break consensus"]
pub struct Ready {
    /// To be made durable, if it changed.
    pub hard_state: Option<HardState>,
    /// To be appended to the journal in order. The first index may be at or below an earlier last index: then these
    /// entries replace everything from it on.
    pub entries: Vec<Entry>,
    /// May leave at once.
    pub messages: Vec<Message>,
    /// Act as votes: may leave once the hard state and entries of this Ready and of all earlier ones are durable.
    pub messages_after_durable: Vec<Message>,
    /// To be applied in order; committed, and durable on this node.
    pub committed: Vec<Entry>,
    /// This node's role, term or known leader changed; the state at the end of the turn.
    pub role_change: Option<RoleChange>,
    /// Reads that may be served once their index is applied.
    pub read_states: Vec<ReadState>,
    /// The `ctx` of reads that will get no answer; ask again.
    pub reads_failed: Vec<u64>,
    /// Entries that a follower needs and that memory no longer holds.
    pub entries_wanted: Vec<EntriesWanted>,
    /// The leader no longer has the entries that this node lacks: it needs the group's state, at this index or later.
    pub state_needed: Option<Index>,
    /// This node has given up its office: the entry at this index has waited in vain for others that answer all the same.
    pub stepped_aside: Option<Index>,
}

impl Ready {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What this node is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoleChange {
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
}

/// The answer to [`Raft::read_index`](crate::Raft::read_index).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadState {
    /// The caller's.
    pub ctx: u64,
    /// A read is linearizable on a state that has applied this index.
    pub index: Index,
}

/// A follower needs entries that are only in the journal. Answered by
/// [`Raft::entries_loaded`](crate::Raft::entries_loaded),
/// [`Raft::entries_failed`](crate::Raft::entries_failed) or
/// [`Raft::entries_unavailable`](crate::Raft::entries_unavailable).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntriesWanted {
    /// The follower.
    pub to: NodeId,
    /// The first entry it needs.
    pub from_index: Index,
    /// Load about this much, in bytes, and at least one entry.
    pub max_bytes: usize,
}
