//! The control path as metrics show it: how long votes and heartbeats take, how many wait for an answer, how long an
//! election round lasts. Read off the messages that leave and arrive; nothing that the broker does depends on it.
//!
//! **Budgets.** Each question has a time within which a peer whose connection stands should have answered. One that has
//! not counts as starved: its thread, its disk or the network has no time for what keeps a cluster together. Consensus
//! itself keeps the budgets of elections ([`lnc_raft::Config`]): it repeats what was not answered within one, and ends a
//! round that takes longer than the other.

use crate::Clock;
use crate::watch::event::{Event, Sink};
use lnc_log::journal::GroupId;
use lnc_metrics::{Counter, Metrics};
use lnc_raft::{Body, Message, NodeId, Role, RoleChange};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long the control path may take over what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// For the answer to a pre-vote or a vote, in milliseconds.
    pub election_rpc_ms: u64,
    /// For a round of an election, pre-vote and vote together, in milliseconds.
    pub election_round_ms: u64,
    /// For the answer to a heartbeat, in milliseconds.
    pub heartbeat_ms: u64,
}

impl Budgets {
    /// The budgets that go with a heartbeat every `interval_ms` milliseconds.
    pub fn of_heartbeat(interval_ms: u64) -> Self {
        let election_rpc_ms = interval_ms.saturating_mul(2).max(1000);
        Self {
            election_rpc_ms,
            election_round_ms: election_rpc_ms.saturating_mul(3).max(3000),
            heartbeat_ms: interval_ms.saturating_mul(4).max(1000),
        }
    }
}

/// The kinds of question whose answers are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    PreVote,
    Vote,
    Heartbeat,
}

impl Question {
    fn name(self) -> &'static str {
        match self {
            Self::PreVote => "pre-vote",
            Self::Vote => "vote",
            Self::Heartbeat => "heartbeat",
        }
    }
}

/// A question that has no answer yet.
#[derive(Debug)]
struct Asked {
    since_us: u64,
    /// What its answer must carry: the round of a pre-vote, the term of a vote. Heartbeats are answered in order.
    pairs_with: u64,
    /// Whether somebody still waits for the answer. If not, it is timed all the same.
    open: bool,
}

/// An election round of this node.
#[derive(Debug)]
struct Round {
    since_us: u64,
    /// The pre-vote's number; None if a leader asked for this election.
    number: Option<u64>,
}

/// See the module documentation.
pub(crate) struct ControlPath {
    budgets: Budgets,
    asked: BTreeMap<(GroupId, NodeId, Question), Asked>,
    rounds: BTreeMap<GroupId, Round>,
    /// Peers that have let a question starve, and have answered nothing since.
    silent: BTreeSet<NodeId>,
    metrics: Arc<Metrics>,
    won: Counter,
    lost: Counter,
    expired: Counter,
}

impl Sink for ControlPath {
    fn see(&mut self, clock: Clock, event: &Event<'_>) {
        let now_us = clock.mono_us;
        match *event {
            Event::Tick => self.tick(now_us),
            Event::Came(group, message) => self.received(now_us, group, message),
            Event::Sent { group, message, is_connected } => self.sent(now_us, group, message, is_connected),
            Event::PeerLost(peer) => self.peer_lost(peer),
            Event::RoleChanged(group, change) => self.role_changed(now_us, group, change),
            _ => {}
        }
    }
}

impl ControlPath {
    pub(crate) fn new(budgets: Budgets, metrics: Arc<Metrics>) -> Self {
        metrics.control_rpc_in_flight.set(0);
        let outcome = |name: &str| metrics.election_rounds_total.with_label_values(&[name]);
        let (won, lost, expired) = (outcome("won"), outcome("lost"), outcome("expired"));
        let (asked, rounds, silent) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { budgets, asked, rounds, silent, metrics, won, lost, expired }
    }

    /// A message leaves for a peer. What goes to one that is not connected is lost, and waits for nothing.
    fn sent(&mut self, now_us: u64, group: GroupId, message: &Message, is_connected: bool) {
        let (question, pairs_with) = match message.body {
            Body::PreVote { round, .. } => {
                if self.rounds.get(&group).is_none_or(|open| open.number != Some(round)) {
                    self.end_round(now_us, group, &self.expired.clone());
                    self.rounds.insert(group, Round { since_us: now_us, number: Some(round) });
                }
                (Question::PreVote, round)
            }
            Body::Vote { .. } => {
                self.rounds.entry(group).or_insert(Round { since_us: now_us, number: None });
                (Question::Vote, message.term)
            }
            Body::Heartbeat { .. } => (Question::Heartbeat, 0),
            _ => return,
        };
        if !is_connected {
            return;
        }
        let key = (group, message.to, question);
        if self.asked.get(&key).is_some_and(|asked| asked.open && asked.pairs_with == pairs_with) {
            // Asked again: the wait goes on.
            return;
        }
        self.remove(key);
        self.asked.insert(key, Asked { since_us: now_us, pairs_with, open: true });
        self.metrics.control_rpc_in_flight.inc();
    }

    /// A message has arrived from a peer.
    fn received(&mut self, now_us: u64, group: GroupId, message: &Message) {
        let (question, pairs_with) = match message.body {
            Body::PreVoteReply { round, .. } => (Question::PreVote, round),
            Body::VoteReply { .. } => (Question::Vote, message.term),
            Body::HeartbeatReply { .. } => (Question::Heartbeat, 0),
            _ => return,
        };
        self.silent.remove(&message.from);
        let key = (group, message.from, question);
        // A vote may be refused in a later term.
        let fits = |asked: &Asked| match question {
            Question::Vote => pairs_with >= asked.pairs_with,
            _ => pairs_with == asked.pairs_with,
        };
        if !self.asked.get(&key).is_some_and(fits) {
            return;
        }
        let Some(asked) = self.remove(key) else { return };
        let micros = now_us.saturating_sub(asked.since_us) as f64;
        match question {
            Question::PreVote => self.metrics.raft_pre_vote_rpc_latency_ms.observe(micros / 1e3),
            Question::Vote => self.metrics.raft_vote_rpc_latency_ms.observe(micros / 1e3),
            Question::Heartbeat => self.metrics.heartbeat_latency_seconds.observe(micros / 1e6),
        }
    }

    /// What this node is in a group has changed: nobody waits any more for the answers to what it was before.
    fn role_changed(&mut self, now_us: u64, group: GroupId, change: RoleChange) {
        match change.role {
            Role::Leader => {
                // A group of one elects itself without asking anybody.
                self.rounds.entry(group).or_insert(Round { since_us: now_us, number: None });
                self.end_round(now_us, group, &self.won.clone());
            }
            Role::Follower => {
                let budget_us = self.budgets.election_round_ms * 1000;
                let late = self.rounds.get(&group).is_some_and(|round| now_us >= round.since_us + budget_us);
                let outcome = if late { &self.expired } else { &self.lost };
                self.end_round(now_us, group, &outcome.clone());
            }
            Role::PreCandidate | Role::Candidate => {}
        }
        let matters = |question| match question {
            Question::PreVote => change.role == Role::PreCandidate,
            Question::Vote => change.role == Role::Candidate,
            Question::Heartbeat => change.role == Role::Leader,
        };
        for ((of, _, question), asked) in &mut self.asked {
            if *of == group && asked.open && !matters(*question) {
                asked.open = false;
                self.metrics.control_rpc_in_flight.dec();
            }
        }
    }

    /// The connection to a peer broke: what was under way will not be answered.
    fn peer_lost(&mut self, peer: NodeId) {
        self.silent.remove(&peer);
        let keys: Vec<_> = self.asked.keys().filter(|(_, to, _)| *to == peer).copied().collect();
        for key in keys {
            self.remove(key);
        }
    }

    /// Count the questions that have waited for too long, and forget them: the next one counts anew.
    fn tick(&mut self, now_us: u64) {
        let over = |((_, _, question), asked): &(&(GroupId, NodeId, Question), &Asked)| {
            now_us >= asked.since_us + self.budget_us(*question)
        };
        let late: Vec<_> = self.asked.iter().filter(over).map(|(key, _)| *key).collect();
        for key in late {
            if !self.remove(key).is_some_and(|asked| asked.open) {
                continue;
            }
            self.metrics.control_rpc_starvation_total.inc();
            let (group, peer, question) = key;
            if self.silent.insert(peer) {
                tracing::warn!(
                    group = group.0,
                    node = %peer,
                    question = question.name(),
                    budget_ms = self.budget_us(question) / 1000,
                    "a node whose connection stands does not answer: look whether it runs, at its processor and disk, and at \
                     the network to it"
                );
            }
        }
    }

    fn budget_us(&self, question: Question) -> u64 {
        1000 * match question {
            Question::PreVote | Question::Vote => self.budgets.election_rpc_ms,
            Question::Heartbeat => self.budgets.heartbeat_ms,
        }
    }

    fn remove(&mut self, key: (GroupId, NodeId, Question)) -> Option<Asked> {
        let asked = self.asked.remove(&key)?;
        if asked.open {
            self.metrics.control_rpc_in_flight.dec();
        }
        Some(asked)
    }

    fn end_round(&mut self, now_us: u64, group: GroupId, outcome: &Counter) {
        let Some(round) = self.rounds.remove(&group) else { return };
        outcome.inc();
        let millis = now_us.saturating_sub(round.since_us) as f64 / 1e3;
        self.metrics.raft_election_round_ms.observe(millis);
        self.metrics.raft_election_round_last_ms.set(millis.round() as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_raft::Term;

    const GROUP: GroupId = GroupId(1);
    const ME: NodeId = NodeId(1);
    const PEER: NodeId = NodeId(2);
    const MS: u64 = 1000;

    fn control() -> (ControlPath, Arc<Metrics>) {
        let metrics = Metrics::new();
        (ControlPath::new(Budgets::of_heartbeat(100), metrics.clone()), metrics)
    }

    fn to_peer(term: Term, body: Body) -> Message {
        Message { from: ME, to: PEER, term, body }
    }

    fn from_peer(term: Term, body: Body) -> Message {
        Message { from: PEER, to: ME, term, body }
    }

    fn pre_vote(round: u64) -> Message {
        to_peer(4, Body::PreVote { last_index: 1, last_term: 1, round })
    }

    fn heartbeat() -> Message {
        to_peer(5, Body::Heartbeat { commit: 0, leader_commit: 0, round: 0 })
    }

    fn heartbeat_reply() -> Message {
        from_peer(5, Body::HeartbeatReply { slow: false, round: 0 })
    }

    fn role(role: Role) -> RoleChange {
        RoleChange { role, term: 5, leader: None }
    }

    fn rounds(metrics: &Metrics, outcome: &str) -> u64 {
        metrics.election_rounds_total.with_label_values(&[outcome]).get()
    }

    #[test]
    fn budgets_follow_the_heartbeat_and_have_a_floor() {
        let floor = Budgets { election_rpc_ms: 1000, election_round_ms: 3000, heartbeat_ms: 1000 };
        assert_eq!(Budgets::of_heartbeat(100), floor);
        assert_eq!(Budgets::of_heartbeat(250), floor);
        assert_eq!(
            Budgets::of_heartbeat(2000),
            Budgets { election_rpc_ms: 4000, election_round_ms: 12_000, heartbeat_ms: 8000 }
        );
    }

    #[test]
    fn an_election_is_timed_question_by_question() {
        let (mut control, metrics) = control();
        control.role_changed(0, GROUP, role(Role::PreCandidate));
        control.sent(0, GROUP, &pre_vote(7), true);
        assert_eq!(metrics.control_rpc_in_flight.get(), 1);
        // An answer to an earlier round is none to this one.
        control.received(3 * MS, GROUP, &from_peer(4, Body::PreVoteReply { round: 6, granted: true }));
        control.received(5 * MS, GROUP, &from_peer(4, Body::PreVoteReply { round: 7, granted: true }));
        assert_eq!(metrics.raft_pre_vote_rpc_latency_ms.get_sample_count(), 1);
        assert_eq!(metrics.raft_pre_vote_rpc_latency_ms.get_sample_sum(), 5.0);

        control.role_changed(5 * MS, GROUP, role(Role::Candidate));
        control.sent(6 * MS, GROUP, &to_peer(5, Body::Vote { last_index: 1, last_term: 1, transfer: false }), true);
        control.received(16 * MS, GROUP, &from_peer(5, Body::VoteReply { granted: true }));
        assert_eq!(metrics.raft_vote_rpc_latency_ms.get_sample_sum(), 10.0);
        control.role_changed(16 * MS, GROUP, role(Role::Leader));
        assert_eq!((rounds(&metrics, "won"), metrics.raft_election_round_last_ms.get()), (1, 16));
        assert_eq!(metrics.raft_election_round_ms.get_sample_sum(), 16.0);
        assert_eq!(metrics.control_rpc_in_flight.get(), 0);
    }

    #[test]
    fn a_round_that_another_one_follows_has_expired_and_a_refused_one_is_lost() {
        let (mut control, metrics) = control();
        control.sent(0, GROUP, &pre_vote(1), false);
        control.sent(700 * MS, GROUP, &pre_vote(2), false);
        assert_eq!((rounds(&metrics, "expired"), metrics.raft_election_round_last_ms.get()), (1, 700));
        control.role_changed(750 * MS, GROUP, role(Role::Follower));
        assert_eq!((rounds(&metrics, "lost"), metrics.raft_election_round_last_ms.get()), (1, 50));
        control.sent(1000 * MS, GROUP, &pre_vote(3), false);
        control.role_changed(4000 * MS, GROUP, role(Role::Follower));
        assert_eq!((rounds(&metrics, "expired"), metrics.raft_election_round_last_ms.get()), (2, 3000));
        assert_eq!(metrics.control_rpc_in_flight.get(), 0, "nobody was connected");
    }

    #[test]
    fn a_heartbeat_starves_after_its_budget_and_not_before() {
        let (mut control, metrics) = control();
        control.sent(0, GROUP, &heartbeat(), true);
        // Those that follow wait behind it.
        control.sent(100 * MS, GROUP, &heartbeat(), true);
        control.tick(999 * MS);
        assert_eq!((metrics.control_rpc_in_flight.get(), metrics.control_rpc_starvation_total.get()), (1, 0));
        control.tick(1000 * MS);
        assert_eq!((metrics.control_rpc_in_flight.get(), metrics.control_rpc_starvation_total.get()), (0, 1));
        control.sent(1100 * MS, GROUP, &heartbeat(), true);
        control.received(1103 * MS, GROUP, &heartbeat_reply());
        control.tick(9000 * MS);
        assert_eq!(metrics.control_rpc_starvation_total.get(), 1);
        assert_eq!(metrics.heartbeat_latency_seconds.get_sample_sum(), 0.003);
    }

    #[test]
    fn a_leader_that_is_deposed_waits_for_nothing_and_a_late_answer_is_timed() {
        let (mut control, metrics) = control();
        control.sent(0, GROUP, &heartbeat(), true);
        control.role_changed(10 * MS, GROUP, role(Role::Follower));
        assert_eq!(metrics.control_rpc_in_flight.get(), 0);
        control.received(20 * MS, GROUP, &heartbeat_reply());
        assert_eq!(metrics.heartbeat_latency_seconds.get_sample_sum(), 0.02);
        control.sent(0, GROUP, &heartbeat(), true);
        control.peer_lost(PEER);
        control.tick(5000 * MS);
        assert_eq!((metrics.control_rpc_in_flight.get(), metrics.control_rpc_starvation_total.get()), (0, 0));
    }
}
