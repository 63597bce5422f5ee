//! The node of one group: its inputs, and how they are dispatched.
//!
//! Elections are in `election.rs`, entries in `replication.rs`, linearizable reads in `read_index.rs`, members in
//! `membership.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use lnc_mutation::{Mutation, mutated};

use crate::config::{Config, ConfigError, Restored};
use crate::configuration::{Configuration, Configurations};
use crate::election::Election;
use crate::log::Log;
use crate::message::{
    AppendReply, Body, Entry, EntryKind, HardState, Index, MAX_INDEX, Message, NodeId, Term, is_believable,
};
use crate::progress::{Peer, Progress};
use crate::read_index::Reads;
use crate::ready::{Ready, RoleChange};
use crate::rng::Rng;

/// What a node is in its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Follows the leader, or waits for one.
    Follower,
    /// Asks whether it would win an election; its term and vote are untouched.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

impl Role {
    /// A word for people. Whoever asks whether it would win stands for election, to them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::PreCandidate | Self::Candidate => "candidate",
            Self::Leader => "leader",
        }
    }
}

/// A leadership transfer under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    pub(crate) ticks: u32,
    /// It was told to campaign.
    pub(crate) told: bool,
}

/// One member of one group. See the crate's documentation for the duties of its driver.
#[derive(Debug)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) configurations: Configurations,
    /// The members but this node, in ascending order.
    others: Arc<[NodeId]>,
    pub(crate) rng: Rng,
    pub(crate) hard_state: HardState,
    pub(crate) role: Role,
    /// The leader of the current term, if known.
    pub(crate) leader: Option<NodeId>,
    pub(crate) log: Log,
    /// See [`Restored::in_doubt`]; 0 once the log has what it says.
    in_doubt: Term,
    pub(crate) election: Election,
    pub(crate) reads: Reads,
    /// Follower: how far this log is known, in this run of the node, to equal the log of this term's leader.
    pub(crate) leader_match: Index,
    /// Follower: the highest commit index that this term's leader has told, in this run of the node.
    pub(crate) leader_commit: Option<Index>,
    /// The first entry of the term in which this node led last: where it led, nothing behind it is older.
    pub(crate) first_own: Index,
    /// Leader: all other members.
    pub(crate) peers: BTreeMap<NodeId, Peer>,
    pub(crate) heartbeat_elapsed: u32,
    /// Leader: the sizes of its entries beyond the commit index, in bytes.
    pub(crate) uncommitted_bytes: usize,
    pub(crate) transfer: Option<Transfer>,
    /// Leader: ticks in which entries waited and none was committed.
    pub(crate) stalled_ticks: u32,
    /// How often in a row this node has given up its office for that.
    pub(crate) stalls: u32,
    pub(crate) since_stall_ticks: u32,
    /// This node would rather not lead.
    pub(crate) slow: bool,
    /// Leader: there may be something to send.
    pub(crate) unsent: bool,
    /// What the next Ready will say beside what can be read off the state.
    pub(crate) out: Ready,
    /// What the last Ready said.
    reported_hard_state: HardState,
    reported_role: RoleChange,
}

impl Raft {
    /// Starts as a follower, from what the disk remembers.
    pub fn new(config: Config, restored: Restored) -> Result<Self, ConfigError> {
        config.validate()?;
        restored.validate()?;
        let base = restored.configuration.clone().unwrap_or_else(|| config.founding.clone());
        let mut configurations = Configurations::new(restored.applied_index, base);
        for (index, configuration) in restored.configurations()? {
            configurations.append(index, configuration);
        }
        let mut rng = Rng::new(config.seed);
        let hard_state = restored.hard_state;
        let election = Election::new(&mut rng, config.election_ticks);
        let reads = Reads::new(&mut rng);
        let in_doubt = restored.in_doubt;
        let mut raft = Self {
            config,
            configurations,
            others: Arc::new([]),
            rng,
            hard_state,
            role: Role::Follower,
            leader: None,
            log: Log::new(restored),
            in_doubt,
            election,
            reads,
            leader_match: 0,
            leader_commit: None,
            first_own: 0,
            peers: BTreeMap::new(),
            heartbeat_elapsed: 0,
            uncommitted_bytes: 0,
            transfer: None,
            stalled_ticks: 0,
            stalls: 0,
            since_stall_ticks: 0,
            slow: false,
            unsent: false,
            out: Ready::default(),
            reported_hard_state: hard_state,
            reported_role: RoleChange { role: Role::Follower, term: hard_state.term, leader: None },
        };
        raft.note_members();
        raft.dispel_doubt(raft.log.last_term());
        Ok(raft)
    }

    /// Whether this node may lack entries that it acknowledged once, and so neither votes nor leads.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt > 0 && !mutated(Mutation::VoteInDoubt)
    }

    /// The log has an entry of `term` on stable storage. Who led in that term was elected without this node's vote, by
    /// others whose logs had all that was committed; and up to that entry this log equals the leader's.
    fn dispel_doubt(&mut self, term: Term) {
        if term >= self.in_doubt {
            self.in_doubt = 0;
        }
    }

    /// A unit of time has passed.
    pub fn tick(&mut self) {
        self.tick_forwarded_reads();
        self.tick_stalls();
        if self.role == Role::Leader {
            self.tick_leader();
        } else {
            self.tick_election();
        }
    }

    /// A message has arrived. An error says that the sender broke the protocol; nothing but a higher term was taken
    /// from the message.
    pub fn step(&mut self, message: Message) -> Result<(), StepError> {
        let Message { from, to, term, body } = message;
        if to != self.config.id {
            return Err(StepError::WrongReceiver { to });
        }
        // Who is a member is told by the log, which may be behind: the sender's connection vouches for it.
        if from == self.config.id {
            return Err(StepError::OwnName);
        }
        if !is_believable(self.hard_state.term, term) {
            return Err(StepError::Malformed { what: "term out of range" });
        }
        validate_body(term, &body)?;
        if let Body::PreVote { last_index, last_term, round } = body {
            self.handle_pre_vote(from, term, last_index, last_term, round);
            return Ok(());
        }
        if let Body::PreVoteReply { round, granted } = body {
            self.handle_pre_vote_reply(from, term, round, granted);
            return Ok(());
        }
        if term < self.hard_state.term {
            self.answer_stale(from, &body);
            return Ok(());
        }
        let answers = matches!(body, Body::AppendReply(_) | Body::HeartbeatReply { .. } | Body::VoteReply { .. });
        if answers && !self.configuration().contains(from) {
            // Somebody who was removed: what it knows, and be it a later term, is no concern of the group's.
            return Ok(());
        }
        let leads = matches!(body, Body::Append { .. } | Body::Heartbeat { .. });
        if term > self.hard_state.term {
            if matches!(body, Body::Vote { transfer: false, .. }) && self.hears_leader() {
                return Ok(());
            }
            self.become_follower(term, leads.then_some(from));
        } else if leads {
            self.recognise_leader(from)?;
        }
        self.dispatch(from, body)
    }

    /// Handles a message of the current term.
    fn dispatch(&mut self, from: NodeId, body: Body) -> Result<(), StepError> {
        match body {
            Body::PreVote { .. } | Body::PreVoteReply { .. } => {}
            Body::Vote { last_index, last_term, .. } => self.handle_vote(from, last_index, last_term),
            Body::VoteReply { granted } => self.handle_vote_reply(from, granted),
            Body::Append { prev_index, prev_term, commit, entries } => {
                return self.handle_append(from, prev_index, prev_term, commit, entries);
            }
            Body::AppendReply(reply) => return self.handle_append_reply(from, reply),
            Body::Heartbeat { commit, leader_commit, round } => {
                self.handle_heartbeat(from, commit, leader_commit, round);
            }
            Body::HeartbeatReply { slow, round } => self.handle_heartbeat_reply(from, slow, round),
            Body::StateNeeded { index, term } => self.handle_state_needed(from, index, term),
            Body::TimeoutNow => self.handle_timeout_now(from),
            Body::ReadIndex { ctx } => self.handle_read_index(from, ctx),
            Body::ReadIndexReply { ctx, index } => self.handle_read_index_reply(ctx, index),
        }
        Ok(())
    }

    /// Tells a node of an earlier term what it needs to know to catch up or to stop.
    fn answer_stale(&mut self, from: NodeId, body: &Body) {
        match *body {
            Body::Vote { .. } => self.send_after_durable(from, Body::VoteReply { granted: false }),
            // Without this a node whose term ran ahead would stay alone: the leader must step down to take it back.
            Body::Append { prev_index, .. } => self.reject_append(from, prev_index),
            Body::Heartbeat { round, .. } => self.send(from, self.heartbeat_reply(round)),
            Body::ReadIndex { ctx } => self.send(from, Body::ReadIndexReply { ctx, index: None }),
            Body::PreVote { .. }
            | Body::PreVoteReply { .. }
            | Body::VoteReply { .. }
            | Body::AppendReply(_)
            | Body::HeartbeatReply { .. }
            | Body::StateNeeded { .. }
            | Body::TimeoutNow
            | Body::ReadIndexReply { .. } => {}
        }
    }

    /// Appends an entry as the leader. All entries proposed between two Readies travel together.
    pub fn propose(&mut self, payload: Bytes) -> Result<(Term, Index), ProposeError> {
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader });
        }
        if self.transfer.is_some() {
            return Err(ProposeError::Transferring);
        }
        let size = payload.len().saturating_add(Entry::OVERHEAD);
        // An entry that is larger than the limit must get through when nothing else is under way.
        if self.uncommitted_bytes > 0 && self.uncommitted_bytes.saturating_add(size) > self.config.max_uncommitted_bytes
        {
            return Err(ProposeError::TooMuchInFlight);
        }
        Ok((self.hard_state.term, self.append_own(EntryKind::Normal, payload)))
    }

    /// The entry `(term, index)`, and everything handed out before it, is on this node's stable storage. Ignored if
    /// that entry has since been replaced.
    pub fn on_durable(&mut self, term: Term, index: Index) {
        if self.log.mark_durable(term, index) {
            self.dispel_doubt(term);
            if self.role == Role::Leader {
                self.maybe_commit();
            }
        }
    }

    /// The control connection to `node` broke. If it was the leader, it has probably died: the remaining voters ask
    /// for votes at once, one after the other so as not to split them. If it is a follower of this node, what was
    /// under way to it may be lost.
    pub fn peer_lost(&mut self, node: NodeId) {
        if self.role == Role::Leader {
            let heartbeat_ticks = self.config.heartbeat_ticks;
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.lost(heartbeat_ticks);
            }
        } else if self.leader == Some(node) {
            self.leader_lost(node);
        }
    }

    /// The control connection to `node` is there again. A leader finds out at once where that follower is.
    pub fn peer_back(&mut self, node: NodeId) {
        if self.role == Role::Leader && self.peers.contains_key(&node) {
            self.send_heartbeat(node);
            self.send_empty_probe(node);
        }
    }

    /// Forgets the payloads of entries up to `up_to`, as far as they are applied and durable. Their terms stay known,
    /// and followers that need them get them through [`EntriesWanted`](crate::EntriesWanted).
    pub fn release_memory(&mut self, up_to: Index) {
        self.log.release(up_to);
    }

    /// The journal no longer holds the entries up to `up_to`. Must not exceed the applied index; what does is ignored.
    pub fn compact(&mut self, up_to: Index) {
        self.log.compact(up_to);
        let first = self.log.first_index();
        for peer in self.peers.values_mut() {
            if peer.next_index < first {
                peer.need_snapshot(peer.next_index);
            }
        }
    }

    /// Whether [`Raft::take_ready`] may have something to say.
    pub fn has_ready(&self) -> bool {
        self.unsent
            || self.hard_state != self.reported_hard_state
            || self.log.has_unwritten()
            || self.log.has_committed()
            || self.current_role() != self.reported_role
            || !self.out.is_empty()
    }

    /// Takes the effects of everything since the last call.
    pub fn take_ready(&mut self) -> Ready {
        if self.role == Role::Leader && self.unsent {
            self.flush_reads();
            self.flush_appends();
        }
        self.unsent = false;
        let mut ready = std::mem::take(&mut self.out);
        if self.hard_state != self.reported_hard_state {
            let before = self.reported_hard_state;
            assert!(self.hard_state.term >= before.term, "the term went back");
            assert!(
                self.hard_state.term > before.term || before.vote.is_none(),
                "the vote of term {} changed",
                before.term
            );
            self.reported_hard_state = self.hard_state;
            ready.hard_state = Some(self.hard_state);
        }
        ready.entries = self.log.take_unwritten();
        ready.committed = self.log.take_committed();
        self.configurations.fold(self.log.applied());
        let role = self.current_role();
        if role != self.reported_role {
            self.reported_role = role;
            ready.role_change = Some(role);
        }
        ready
    }

    fn current_role(&self) -> RoleChange {
        RoleChange { role: self.role, term: self.hard_state.term, leader: self.leader }
    }

    /// Everything an operator may want to see.
    pub fn status(&self) -> Status {
        Status {
            id: self.config.id,
            role: self.role,
            term: self.hard_state.term,
            leader: self.leader,
            commit: self.log.commit(),
            applied: self.log.applied(),
            durable: self.log.durable(),
            last: self.log.last_index(),
            first_index: self.log.first_index(),
            first_in_memory: self.log.first_in_memory(),
            leader_commit: self.known_commit(),
            peers: self
                .peers
                .iter()
                .map(|(&id, peer)| peer.status(id, self.config.election_ticks, !self.configuration().is_voter(id)))
                .collect(),
            transferring: self.transfer.map(|transfer| transfer.to),
            stalled: self.is_stalled(),
            configuration: self.configuration().clone(),
            configuration_committed: self.configuration_committed(),
        }
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.config.id
    }

    /// The current term.
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// The role in it.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether this node leads.
    pub fn is_leader(&self) -> bool {
        self.role == Role::Leader
    }

    /// Whether this node leads, and hands its office over.
    pub fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// The leader of the current term, if known.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// The last index known to be committed.
    pub fn commit_index(&self) -> Index {
        self.log.commit()
    }

    /// The last index handed out for applying.
    pub fn applied_index(&self) -> Index {
        self.log.applied()
    }

    /// The last index of the log.
    pub fn last_index(&self) -> Index {
        self.log.last_index()
    }

    /// The last index known to be on this node's stable storage.
    pub fn durable_index(&self) -> Index {
        self.log.durable()
    }

    /// The term of the entry at `index`; None if the journal no longer holds it (but for the last such index, whose
    /// term is kept) or does not hold it yet.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        self.log.term_at(index)
    }

    /// Term and vote.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// Tell leaders from now on whether this node would rather not lead, since its disk is slow. It still stands for
    /// election when there is no leader.
    pub fn set_slow(&mut self, slow: bool) {
        self.slow = slow;
    }

    /// The first index whose payload is in memory; one past the last index if none is.
    pub fn first_in_memory(&self) -> Index {
        self.log.first_in_memory()
    }

    pub(crate) fn known_commit(&self) -> Option<Index> {
        let commit = self.log.commit();
        match self.role {
            Role::Leader => Some(commit).filter(|_| self.log.term_at(commit) == Some(self.hard_state.term)),
            _ => self.leader.and(self.leader_commit).map(|told| told.max(commit)),
        }
    }

    /// The entries in memory, committed or not, in order.
    pub fn entries_in_memory(&self) -> impl Iterator<Item = &Entry> {
        self.log.in_memory()
    }

    /// What the entries in memory take, in bytes of [`Entry::size`].
    pub fn memory_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// The members but this node, to be iterated over while this node changes.
    pub(crate) fn others(&self) -> Arc<[NodeId]> {
        Arc::clone(&self.others)
    }

    pub(crate) fn set_others(&mut self, others: Arc<[NodeId]>) {
        self.others = others;
    }

    fn message(&self, to: NodeId, body: Body) -> Message {
        Message { from: self.config.id, to, term: self.hard_state.term, body }
    }

    pub(crate) fn send(&mut self, to: NodeId, body: Body) {
        let message = self.message(to, body);
        self.out.messages.push(message);
    }

    /// For what acts as a vote: see [`Ready::messages_after_durable`].
    pub(crate) fn send_after_durable(&mut self, to: NodeId, body: Body) {
        let message = self.message(to, body);
        self.out.messages_after_durable.push(message);
    }
}

/// Refuses what no honest node sends, before it has any effect.
fn validate_body(term: Term, body: &Body) -> Result<(), StepError> {
    let check = |fine: bool, what| if fine { Ok(()) } else { Err(StepError::Malformed { what }) };
    match body {
        Body::PreVote { last_index, last_term, .. } | Body::Vote { last_index, last_term, .. } => {
            check(*last_index <= MAX_INDEX && *last_term <= term, "candidate's log out of range")
        }
        Body::Append { prev_index, prev_term, commit, entries } => {
            check(*commit <= MAX_INDEX, "commit index out of range")?;
            check(*prev_index <= MAX_INDEX - entries.len() as Index, "index out of range")?;
            check((*prev_index == 0) == (*prev_term == 0), "previous index and term do not fit together")?;
            let mut last = (*prev_index, *prev_term);
            for entry in entries {
                let known = entry.kind != EntryKind::Configuration || Configuration::decode(&entry.payload).is_ok();
                check(known, "an entry that should be a configuration is none")?;
                check(entry.index == last.0 + 1, "entries are not contiguous")?;
                check(entry.term >= last.1 && entry.term > 0, "entry terms go back")?;
                last = (entry.index, entry.term);
            }
            check(last.1 <= term, "entry of a later term than the message")
        }
        Body::Heartbeat { commit, leader_commit, .. } => {
            check(commit <= leader_commit && *leader_commit <= MAX_INDEX, "commit index out of range")
        }
        Body::ReadIndexReply { index, .. } => {
            check(index.is_none_or(|index| index <= MAX_INDEX), "read index out of range")
        }
        Body::StateNeeded { index, term: of } => {
            check(*index <= MAX_INDEX && *of <= term, "place of the state out of range")
        }
        Body::AppendReply(AppendReply::Rejected { prev_index, hint_index, last_index, .. }) => {
            check(*hint_index <= *prev_index.min(last_index), "hint beyond what was asked")
        }
        _ => Ok(()),
    }
}

/// Why a message was refused. The connection it came from deserves no trust.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// It was meant for another node.
    #[error("message for node {to}")]
    WrongReceiver {
        /// The node.
        to: NodeId,
    },
    /// The sender has this node's own name.
    #[error("message in this node's own name")]
    OwnName,
    /// It contradicts itself.
    #[error("malformed message: {what}")]
    Malformed {
        /// What is wrong.
        what: &'static str,
    },
    /// Two nodes claim to lead one term.
    #[error("node {claims} claims to lead term {term}, which node {known} leads")]
    ConflictingLeader {
        /// The term.
        term: Term,
        /// The leader known so far.
        known: NodeId,
        /// The sender.
        claims: NodeId,
    },
    /// The leader contradicts what is committed, or what it has sent before in this term.
    #[error("entry {index} is settled with term {settled}, but the leader has term {received}")]
    Contradiction {
        /// The entry.
        index: Index,
        /// Its term here.
        settled: Term,
        /// Its term at the sender.
        received: Term,
    },
    /// A reply acknowledges entries that this leader does not have.
    #[error("acknowledgement of entry {index}, beyond the last entry {last}")]
    AckBeyondLog {
        /// What was acknowledged.
        index: Index,
        /// The leader's last index.
        last: Index,
    },
}

/// Why a proposal or a read was refused; nothing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// Another node leads, or none.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if known.
        leader: Option<NodeId>,
    },
    /// Leadership is being handed over.
    #[error("leadership is being transferred")]
    Transferring,
    /// The limit of uncommitted entries, or of unanswered reads, is reached.
    #[error("too much in flight")]
    TooMuchInFlight,
    /// A change of the members is under way, or this leader cannot tell yet.
    #[error("the members are changing, or the leader is too new to tell")]
    ConfigurationChanging,
    /// The configuration proposed makes no sense.
    #[error("not a configuration that can be proposed")]
    InvalidConfiguration,
}

/// Why leadership is not transferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// Another node leads, or none.
    #[error("not the leader")]
    NotLeader {
        /// The leader, if known.
        leader: Option<NodeId>,
    },
    /// The target is no voter.
    #[error("node {node} is no voter")]
    NotAVoter {
        /// The target.
        node: NodeId,
    },
    /// The target cannot be caught up soon: it is silent, or needs state transfer.
    #[error("node {node} is not ready to lead")]
    NotReady {
        /// The target.
        node: NodeId,
    },
    /// A transfer to another node is under way.
    #[error("leadership is already being transferred to node {to}")]
    InProgress {
        /// That node.
        to: NodeId,
    },
}

/// A picture of a node, for operators and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// The leader of that term, if known.
    pub leader: Option<NodeId>,
    /// The commit index.
    pub commit: Index,
    /// The last index handed out for applying.
    pub applied: Index,
    /// The last index known to be durable here.
    pub durable: Index,
    /// The last index.
    pub last: Index,
    /// The first index that the journal still holds.
    pub first_index: Index,
    /// The first index whose payload is in memory; `last + 1` if none is.
    pub first_in_memory: Index,
    /// What a node has that has everything committed, as far as the leader of this term has told: its commit index, or its first
    /// own entry until that is committed. None while it has not been heard, and at a leader that has not committed that.
    pub leader_commit: Option<Index>,
    /// The other members; only a leader knows them.
    pub peers: Vec<Progress>,
    /// The target of a leadership transfer under way.
    pub transferring: Option<NodeId>,
    /// It leads, and has committed nothing for long, though entries wait for it and others answer.
    pub stalled: bool,
    /// The members, as the latest entry about them says.
    pub configuration: Configuration,
    /// Whether that entry is committed.
    pub configuration_committed: bool,
}
