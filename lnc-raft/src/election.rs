//! Who leads: pre-vote, votes, stickiness, check-quorum, hand-over.

use std::collections::BTreeMap;

use bytes::Bytes;
use lnc_mutation::{Mutation, mutated};

use crate::configuration::Configuration;
use crate::message::{Body, EntryKind, HardState, Index, NodeId, Term};
use crate::progress::{Peer, PeerState};
use crate::raft::{Raft, Role, StepError, Transfer, TransferError};
use crate::rng::Rng;

/// When a leader's connection breaks, the remaining voters start this many ticks after one another: long enough for
/// the first one's round to succeed, short against an election timeout.
const STAGGER_TICKS: u32 = 4;

/// Election time-outs for which a leader may commit nothing of what waits. A disk that takes this long has been called slow by
/// then, and is another matter.
const STALL_TIMEOUTS: u32 = 30;

/// Doublings of that, and of the time for which others may go first, while it comes to the same again and again.
const MOST_DOUBLINGS: u32 = 4;

/// The timer and the ballot of a node that does not lead.
#[derive(Debug)]
pub(crate) struct Election {
    /// Ticks since the leader was heard, or since the round began.
    elapsed: u32,
    /// When a (new) round begins; drawn anew each time the timer starts.
    timeout: u32,
    /// Ticks since the round began, and since its voters were asked.
    round_ticks: u32,
    asked_ticks: u32,
    /// A leader asked for this election.
    transfer: bool,
    /// Numbers pre-vote rounds. Starts anywhere, so that no reply to an earlier run of this node counts.
    round: u64,
    /// The answers of this round, one per voter.
    votes: BTreeMap<NodeId, bool>,
    /// The leader's connection broke and it was not heard since: it gets no protection, and rounds follow quickly.
    leader_lost: bool,
}

/// How a ballot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ballot {
    Open,
    Won,
    Lost,
}

impl Election {
    pub(crate) fn new(rng: &mut Rng, election_ticks: u32) -> Self {
        Self {
            elapsed: 0,
            // Nobody was heard yet, so there is no leader to be patient with: where there is one after all, it is the pre-vote
            // that does not disturb it. A whole cluster that starts has a leader half a time-out earlier.
            timeout: 1 + rng.below(election_ticks),
            round_ticks: 0,
            asked_ticks: 0,
            transfer: false,
            round: rng.next(),
            votes: BTreeMap::new(),
            leader_lost: false,
        }
    }

    /// Counts a voter's first answer only.
    fn count(&mut self, from: NodeId, granted: bool) {
        self.votes.entry(from).or_insert(granted);
    }

    fn ballot(&self, configuration: &Configuration) -> Ballot {
        if configuration.is_decided(|node| self.votes.get(&node) == Some(&true)) {
            Ballot::Won
        } else if !configuration.is_decided(|node| self.votes.get(&node) != Some(&false)) {
            Ballot::Lost
        } else {
            Ballot::Open
        }
    }
}

impl Raft {
    pub(crate) fn tick_election(&mut self) {
        self.election.elapsed = self.election.elapsed.saturating_add(1);
        if self.role == Role::Candidate && !self.election.votes.contains_key(&self.config.id) {
            // The disk has not taken this node's own vote yet, and would have to take that of a later term after it.
            return;
        }
        if self.election.elapsed >= self.election.timeout && self.is_promotable() {
            // A round that has come to nothing starts over here, from pre-vote: a candidate that cannot win must
            // not drive terms up.
            self.start_pre_vote();
        } else if matches!(self.role, Role::PreCandidate | Role::Candidate) {
            self.tick_round();
        }
    }

    /// Keeps a round within its budgets.
    fn tick_round(&mut self) {
        self.election.round_ticks = self.election.round_ticks.saturating_add(1);
        self.election.asked_ticks = self.election.asked_ticks.saturating_add(1);
        if self.election.round_ticks >= self.config.election_round_ticks {
            // It ends here; the timer runs on and starts the next one.
            self.role = Role::Follower;
        } else if self.election.asked_ticks >= self.config.election_rpc_ticks {
            self.ask_voters();
        }
    }

    fn restart_election_timer(&mut self) {
        let ticks = self.config.election_ticks;
        self.election.elapsed = 0;
        self.election.timeout = ticks + self.rng.below(ticks);
    }

    fn ballot(&self) -> Ballot {
        self.election.ballot(self.configuration())
    }

    /// Whether a leader is known to live, so that nobody needs another.
    pub(crate) fn hears_leader(&self) -> bool {
        match self.role {
            // It would have stepped down if it had lost its quorum.
            Role::Leader => true,
            Role::Follower => {
                self.leader.is_some()
                    && !self.election.leader_lost
                    && self.election.elapsed < self.config.election_ticks
            }
            Role::PreCandidate | Role::Candidate => false,
        }
    }

    /// The one place that sets term and vote.
    fn set_hard_state(&mut self, next: HardState) {
        let now = self.hard_state;
        assert!(next.term >= now.term, "term {} after {}", next.term, now.term);
        assert!(
            next.term > now.term || now.vote.is_none() || now.vote == next.vote,
            "a second vote in term {}",
            now.term
        );
        self.hard_state = next;
    }

    /// Follows in `term`, which is the current one or a later one.
    pub(crate) fn become_follower(&mut self, term: Term, leader: Option<NodeId>) {
        if term > self.hard_state.term {
            self.set_hard_state(HardState { term, vote: None });
            self.leader_match = 0;
            self.leader_commit = None;
            self.election.leader_lost = false;
            self.fail_forwarded_reads();
        }
        if self.role == Role::Leader {
            self.peers.clear();
            self.transfer = None;
            self.uncommitted_bytes = 0;
            self.fail_led_reads();
        }
        if self.role != Role::Follower {
            self.role = Role::Follower;
            self.restart_election_timer();
        }
        self.set_leader(leader);
    }

    fn set_leader(&mut self, leader: Option<NodeId>) {
        if self.leader != leader {
            self.leader = leader;
            self.fail_forwarded_reads();
        }
    }

    /// `from` claims to lead the current term.
    pub(crate) fn recognise_leader(&mut self, from: NodeId) -> Result<(), StepError> {
        if let Some(known) = self.leader.filter(|&known| known != from) {
            return Err(StepError::ConflictingLeader { term: self.hard_state.term, known, claims: from });
        }
        self.become_follower(self.hard_state.term, Some(from));
        Ok(())
    }

    /// A message of the leader has arrived.
    pub(crate) fn heard_leader(&mut self) {
        self.election.leader_lost = false;
        self.restart_election_timer();
    }

    /// The connection to the leader this node follows broke.
    pub(crate) fn leader_lost(&mut self, leader: NodeId) {
        self.election.leader_lost = true;
        self.fail_forwarded_reads();
        if !self.is_promotable() {
            return;
        }
        let id = self.config.id;
        let before = self.configuration().voters.iter().filter(|&&node| node != leader && node < id).count() as u32;
        if before == 0 {
            self.start_pre_vote();
        } else {
            let at = self.election.elapsed.saturating_add(before.saturating_mul(STAGGER_TICKS));
            self.election.timeout = self.election.timeout.min(at);
        }
    }

    /// Asks whether an election could be won. Term and vote stay as they are, so asking disturbs nobody.
    fn start_pre_vote(&mut self) {
        self.role = Role::PreCandidate;
        self.set_leader(None);
        self.restart_election_timer();
        if self.election.leader_lost {
            // The others may have refused only because they have not noticed yet: ask again when each had its turn.
            let remaining = (self.configuration().voters.len() as u32).saturating_sub(1);
            self.election.timeout = self.election.timeout.min(remaining.saturating_mul(STAGGER_TICKS));
        }
        self.election.round = self.election.round.wrapping_add(1);
        self.election.votes = BTreeMap::from([(self.config.id, true)]);
        if self.ballot() == Ballot::Won {
            return self.campaign(false);
        }
        self.election.round_ticks = 0;
        self.ask_voters();
    }

    /// Asks the voters that have not answered in this round, now or again.
    fn ask_voters(&mut self) {
        self.election.asked_ticks = 0;
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        let (round, transfer) = (self.election.round, self.election.transfer);
        let silent = |node: &NodeId| !self.election.votes.contains_key(node);
        for node in self.rivals().into_iter().filter(silent).collect::<Vec<_>>() {
            match self.role {
                Role::PreCandidate => self.send(node, Body::PreVote { last_index, last_term, round }),
                // The request says "I have voted for myself": that vote must not be forgotten.
                _ => self.send_after_durable(node, Body::Vote { last_index, last_term, transfer }),
            }
        }
    }

    /// The voters but this node.
    fn rivals(&self) -> Vec<NodeId> {
        self.others().iter().copied().filter(|&node| self.configuration().is_voter(node)).collect()
    }

    /// Stands for election in the next term.
    fn campaign(&mut self, transfer: bool) {
        let id = self.config.id;
        self.set_hard_state(HardState { term: self.hard_state.term + 1, vote: Some(id) });
        self.role = Role::Candidate;
        self.leader_match = 0;
        self.leader_commit = None;
        self.election.leader_lost = false;
        self.set_leader(None);
        self.restart_election_timer();
        // Its own vote counts once it is on this node's disk, see `on_hard_state_durable`.
        self.election.votes.clear();
        if transfer {
            self.election.round_ticks = 0;
        }
        self.election.transfer = transfer;
        if mutated(Mutation::LeadUnrecorded) {
            self.count_vote(id, true);
        }
        if self.role == Role::Candidate {
            self.ask_voters();
        }
    }

    /// `term`, and this node's vote in it, are on its stable storage. Until then it has not voted for itself: a lone voter
    /// would otherwise lead at once, lose its term with the power, and lead the same term again with other entries.
    pub fn on_hard_state_durable(&mut self, term: Term) {
        let own = HardState { term, vote: Some(self.config.id) };
        if self.role == Role::Candidate && self.hard_state == own {
            self.count_vote(self.config.id, true);
        }
    }

    fn become_leader(&mut self) {
        assert!(self.role == Role::Candidate, "only a candidate is elected");
        let next = self.log.last_index() + 1;
        self.role = Role::Leader;
        self.set_leader(Some(self.config.id));
        self.peers = self.others().iter().map(|&node| (node, Peer::new(next))).collect();
        self.heartbeat_elapsed = 0;
        self.stalled_ticks = 0;
        self.transfer = None;
        self.uncommitted_bytes = self.log.size_of(self.log.commit() + 1, self.log.last_index());
        self.first_own = next;
        self.append_own(EntryKind::Empty, Bytes::new());
        for &node in self.others().iter() {
            self.send_heartbeat(node);
        }
    }

    pub(crate) fn handle_pre_vote(&mut self, from: NodeId, term: Term, last_index: Index, last_term: Term, round: u64) {
        // The sender would campaign in `term + 1`, which is new to this node exactly if `term` is not behind.
        let covered = self.log.is_covered_by(last_index, last_term) || mutated(Mutation::VoteForAnyLog);
        let granted = term >= self.hard_state.term && !self.hears_leader() && covered && !self.is_in_doubt();
        self.send(from, Body::PreVoteReply { round, granted });
    }

    pub(crate) fn handle_pre_vote_reply(&mut self, from: NodeId, term: Term, round: u64, granted: bool) {
        if self.role != Role::PreCandidate || round != self.election.round {
            return;
        }
        if term > self.hard_state.term {
            // This node's term is behind: nobody would vote for it before it has caught up.
            return self.become_follower(term, None);
        }
        self.election.count(from, granted);
        match self.ballot() {
            Ballot::Open => {}
            Ballot::Won => self.campaign(false),
            // The timer runs on: it starts the next round.
            Ballot::Lost => self.role = Role::Follower,
        }
    }

    pub(crate) fn handle_vote(&mut self, from: NodeId, last_index: Index, last_term: Term) {
        let free = match self.hard_state.vote {
            Some(node) => node == from || mutated(Mutation::VoteTwice),
            None => self.leader.is_none(),
        };
        let covered = self.log.is_covered_by(last_index, last_term) || mutated(Mutation::VoteForAnyLog);
        let granted = free && covered && !self.is_in_doubt();
        if granted {
            self.set_hard_state(HardState { term: self.hard_state.term, vote: Some(from) });
            self.role = Role::Follower;
            self.restart_election_timer();
        }
        match mutated(Mutation::VoteEarly) {
            true => self.send(from, Body::VoteReply { granted }),
            false => self.send_after_durable(from, Body::VoteReply { granted }),
        }
    }

    pub(crate) fn handle_vote_reply(&mut self, from: NodeId, granted: bool) {
        if self.role == Role::Candidate {
            self.count_vote(from, granted);
        }
    }

    fn count_vote(&mut self, from: NodeId, granted: bool) {
        self.election.count(from, granted);
        match self.ballot() {
            Ballot::Open => {}
            Ballot::Won => self.become_leader(),
            // The timer runs on: it starts the next round.
            Ballot::Lost => self.role = Role::Follower,
        }
    }

    /// A leader's tick.
    pub(crate) fn tick_leader(&mut self) {
        let ticks = self.config.election_ticks;
        for peer in self.peers.values_mut() {
            peer.tick();
        }
        let id = self.config.id;
        let heard = |node| node == id || self.peers.get(&node).is_some_and(|peer| peer.silent_ticks < ticks);
        if !self.configuration().is_decided(heard) {
            // The others may have elected someone else by now; who asks this node must learn that it cannot tell.
            return self.become_follower(self.hard_state.term, None);
        }
        if self.commits_nothing() {
            return self.step_aside();
        }
        if let Some(transfer) = &mut self.transfer {
            transfer.ticks += 1;
            if transfer.ticks >= ticks {
                self.transfer = None;
            }
        }
        self.tick_replication();
    }

    /// Counts how long entries wait. Check-quorum (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, section 6.2) asks whether
    /// the others answer; this asks whether they get what they are sent. Where heartbeats arrive and entries do not, as on a path
    /// that loses what is long, the first is not enough. True when another node should try.
    fn commits_nothing(&mut self) -> bool {
        let waits = self.log.commit() < self.log.last_index();
        self.stalled_ticks = if waits { self.stalled_ticks.saturating_add(1) } else { 0 };
        let over = self.stalled_ticks >= self.stall_ticks() && self.others_could_lead();
        over && !mutated(Mutation::KeepOffice)
    }

    /// Whether the others are enough without this node, answer it, and do not say that their disks are slow: those would take no
    /// more from another leader.
    fn others_could_lead(&self) -> bool {
        let ticks = self.config.election_ticks;
        let lacks = |peer: &Peer| matches!(peer.state, PeerState::NeedsSnapshot { .. });
        let fit = |peer: &Peer| peer.silent_ticks < ticks && !peer.slow && !lacks(peer);
        let fit = |node| self.peers.get(&node).is_some_and(fit);
        self.configuration().is_decided(fit)
    }

    /// Whether this node leads and is about to give that up.
    pub(crate) fn is_stalled(&self) -> bool {
        self.role == Role::Leader && self.stalled_ticks >= self.stall_ticks() / 2 && self.others_could_lead()
    }

    /// How long entries may wait: twice as long after each time that it came to that.
    fn stall_ticks(&self) -> u32 {
        STALL_TIMEOUTS.saturating_mul(self.config.election_ticks) << self.stalls.min(MOST_DOUBLINGS)
    }

    /// Where it has not come to that for long, it counts as the first time again.
    pub(crate) fn tick_stalls(&mut self) {
        /// Election time-outs.
        const LONG: u32 = 600;
        self.since_stall_ticks = self.since_stall_ticks.saturating_add(1);
        if self.since_stall_ticks >= LONG.saturating_mul(self.config.election_ticks) {
            self.stalls = 0;
        }
    }

    /// Whether it stepped aside a while ago: it may lead again, but is not to be handed the group, since what it sends may still
    /// not arrive. The while is longer each time.
    fn stepped_aside_lately(&self) -> bool {
        self.stalls > 0 && self.since_stall_ticks < self.stall_ticks().saturating_mul(4)
    }

    /// What it tells its leader.
    pub(crate) fn heartbeat_reply(&self, round: u64) -> Body {
        Body::HeartbeatReply { slow: self.slow || self.stepped_aside_lately(), round }
    }

    /// Gives up the office, and does not stand for election before the others had their turn. If they cannot do better it
    /// leads again, and the next time it waits for longer: leadership must not go to and fro.
    fn step_aside(&mut self) {
        self.out.stepped_aside = Some(self.log.commit() + 1);
        (self.stalled_ticks, self.since_stall_ticks) = (0, 0);
        self.become_follower(self.hard_state.term, None);
        let turns = 4 << self.stalls.min(MOST_DOUBLINGS);
        self.stalls = self.stalls.saturating_add(1);
        self.election.timeout = self.election.timeout.saturating_add(self.config.election_ticks.saturating_mul(turns));
    }

    /// Hands leadership to `to`: proposals are refused until it leads, or an election timeout has passed.
    pub fn transfer_leadership(&mut self, to: NodeId) -> Result<(), TransferError> {
        if self.role != Role::Leader {
            return Err(TransferError::NotLeader { leader: self.leader });
        }
        if !self.configuration().voters.contains(&to) {
            return Err(TransferError::NotAVoter { node: to });
        }
        if let Some(transfer) = self.transfer {
            return if transfer.to == to { Ok(()) } else { Err(TransferError::InProgress { to: transfer.to }) };
        }
        let Some(peer) = self.peers.get(&to) else {
            return Ok(()); // This node, which leads already.
        };
        let silent = peer.silent_ticks >= self.config.election_ticks;
        if silent || matches!(peer.state, PeerState::NeedsSnapshot { .. }) {
            return Err(TransferError::NotReady { node: to });
        }
        self.transfer = Some(Transfer { to, ticks: 0, told: false });
        self.unsent = true;
        self.advance_transfer();
        Ok(())
    }

    /// Tells the target of a transfer to campaign, once it has everything.
    pub(crate) fn advance_transfer(&mut self) {
        let last = self.log.last_index();
        let Some(transfer) = &mut self.transfer else { return };
        let to = transfer.to;
        if !transfer.told && self.peers.get(&to).is_some_and(|peer| peer.match_index == last) {
            transfer.told = true;
            self.send(to, Body::TimeoutNow);
        }
    }

    pub(crate) fn handle_timeout_now(&mut self, from: NodeId) {
        if self.role == Role::Follower && self.leader == Some(from) && self.is_promotable() {
            self.campaign(true);
        }
    }
}
