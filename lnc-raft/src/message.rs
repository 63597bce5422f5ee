//! The values of consensus: terms, entries, and what nodes say to each other.

use std::fmt;

use bytes::Bytes;

/// A Raft term. 0 is the term before any election.
pub type Term = u64;

/// The place of an entry in the log of one group, counted from 1. 0 is the place before the first entry.
pub type Index = u64;

/// No honest node reaches this term; a message beyond it is refused, so that terms can be added to without care.
pub const MAX_TERM: Term = u64::MAX / 4;

/// Whether a node whose term is `own` believes a peer that speaks of term `theirs`. A term is never taken back: without a
/// bound, one message could leave a cluster none to elect anybody in.
pub fn is_believable(own: Term, theirs: Term) -> bool {
    /// Up to here it is believed of anybody: one election every millisecond for thirty years.
    const PLAUSIBLE: Term = 1 << 40;
    /// How far beyond that, and beyond the own term.
    const LEAD: Term = 1 << 32;
    theirs <= own.max(PLAUSIBLE).saturating_add(LEAD).min(MAX_TERM)
}

/// No honest log reaches this index; see [`MAX_TERM`].
pub const MAX_INDEX: Index = u64::MAX / 4;

/// The name of a member: a node in one of its lives. The low 32 bits are the node's number, the high 32 its generation,
/// counted from 0: a node whose disk was wiped comes back as another member, since it may have voted as the former.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The member that node `node` is in its `generation`-th life, counted from 0.
    pub const fn new(node: u32, generation: u32) -> Self {
        Self((generation as u64) << 32 | node as u64)
    }

    /// The node's number.
    pub const fn node(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// Which life of the node it is.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation() {
            0 => self.node().fmt(f),
            generation => write!(f, "{}.{generation}", self.node()),
        }
    }
}

/// What an entry is for. The numbers are stable: they are on disk and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// Opens a leader's term, so that it has something of its own to commit. Carries nothing.
    Empty = 0,
    /// Carries a proposal.
    Normal = 1,
    /// Carries a [`Configuration`](crate::Configuration), which takes effect as soon as the entry is in the log.
    Configuration = 2,
}

/// A byte that names no [`EntryKind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown entry kind {0}")]
pub struct UnknownEntryKind(pub u8);

impl TryFrom<u8> for EntryKind {
    type Error = UnknownEntryKind;

    fn try_from(byte: u8) -> Result<Self, UnknownEntryKind> {
        match byte {
            0 => Ok(Self::Empty),
            1 => Ok(Self::Normal),
            2 => Ok(Self::Configuration),
            other => Err(UnknownEntryKind(other)),
        }
    }
}

impl From<EntryKind> for u8 {
    fn from(kind: EntryKind) -> Self {
        kind as u8
    }
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The term of the leader that made it.
    pub term: Term,
    /// Its place in the log.
    pub index: Index,
    /// What it is for.
    pub kind: EntryKind,
    /// The proposal; opaque here.
    pub payload: Bytes,
}

impl Entry {
    /// What an entry is charged beside its payload, in bytes: its own fields and the message or record around it.
    pub const OVERHEAD: usize = 64;

    /// What this entry counts against limits of memory and messages, in bytes.
    pub fn size(&self) -> usize {
        self.payload.len().saturating_add(Self::OVERHEAD)
    }
}

/// What a node must never forget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// The highest term this node has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
}

/// What one node says to another about one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The sender's term when it made the message, whatever the body.
    pub term: Term,
    /// What it says.
    pub body: Body,
}

/// The kinds of message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Would you vote for me in the term after mine? Changes nothing at the receiver.
    PreVote {
        /// The sender's last index.
        last_index: Index,
        /// The term of its last entry.
        last_term: Term,
        /// Pairs the reply with this question.
        round: u64,
    },
    /// The answer to [`Body::PreVote`].
    PreVoteReply {
        /// The round of the question.
        round: u64,
        /// Yes or no.
        granted: bool,
    },
    /// Vote for me in this term.
    Vote {
        /// The sender's last index.
        last_index: Index,
        /// The term of its last entry.
        last_term: Term,
        /// The leader asked for this election, so its being alive is no reason to refuse.
        transfer: bool,
    },
    /// The answer to [`Body::Vote`], in the same term.
    VoteReply {
        /// Yes or no.
        granted: bool,
    },
    /// Append these entries after `(prev_index, prev_term)`; without entries, a probe of that place.
    Append {
        /// The index before the first entry.
        prev_index: Index,
        /// The term of the leader's entry at `prev_index`.
        prev_term: Term,
        /// The leader's commit index; may lie beyond the entries.
        commit: Index,
        /// Contiguous from `prev_index + 1`.
        entries: Vec<Entry>,
    },
    /// The answer to [`Body::Append`].
    AppendReply(AppendReply),
    /// I lead this term.
    Heartbeat {
        /// The leader's commit index, clamped to what it knows the receiver to match.
        commit: Index,
        /// What a receiver has that has everything committed, so that it knows how far it is behind: the leader's commit index,
        /// or the leader's first own entry, until that is committed.
        leader_commit: Index,
        /// The latest round of leadership confirmation.
        round: u64,
    },
    /// You lead this term, as far as I know.
    HeartbeatReply {
        /// The sender would rather not lead: its disk is slow, or what it sent as a leader did not arrive.
        slow: bool,
        /// The round of the heartbeat.
        round: u64,
    },
    /// The entries that you need are gone here: get the state of the group from somebody.
    StateNeeded {
        /// The state must contain this entry.
        index: Index,
        /// Its term.
        term: Term,
    },
    /// Campaign now: the leader hands over.
    TimeoutNow,
    /// Which index must I have applied to serve a linearizable read?
    ReadIndex {
        /// Pairs the reply with this question.
        ctx: u64,
    },
    /// The answer to [`Body::ReadIndex`].
    ReadIndexReply {
        /// The question's.
        ctx: u64,
        /// None: the receiver of the question cannot tell.
        index: Option<Index>,
    },
}

/// How an append went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendReply {
    /// The sender's durable log equals the leader's up to here.
    Accepted {
        /// The last index known to be equal.
        match_index: Index,
    },
    /// The sender's log has no entry `(prev_index, prev_term)`. Let p be the smaller of `prev_index` and `last_index`.
    Rejected {
        /// The append's. 0, which no log refuses: nothing was refused, but the sender has restarted within this
        /// term, no longer knows how far it matches, and asks for a probe.
        prev_index: Index,
        /// The first index, as far as the sender knows, of the term it has at p.
        hint_index: Index,
        /// The term it has at p.
        hint_term: Term,
        /// The sender's last index.
        last_index: Index,
    },
}

/// Which connection carries a message. The two have no common order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// Votes, heartbeats, transfer, read-index: small, and never behind data.
    Control,
    /// Entries and their acknowledgements.
    Replication,
}

impl Body {
    /// The connection this message belongs on.
    pub fn channel(&self) -> Channel {
        match self {
            Self::Append { .. } | Self::AppendReply(_) => Channel::Replication,
            Self::PreVote { .. }
            | Self::PreVoteReply { .. }
            | Self::Vote { .. }
            | Self::VoteReply { .. }
            | Self::Heartbeat { .. }
            | Self::HeartbeatReply { .. }
            | Self::StateNeeded { .. }
            | Self::TimeoutNow
            | Self::ReadIndex { .. }
            | Self::ReadIndexReply { .. } => Channel::Control,
        }
    }
}
