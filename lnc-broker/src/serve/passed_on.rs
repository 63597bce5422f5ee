//! Requests that this node cannot serve now: they wait for their group's leader, or are passed on to it, and follow leadership
//! until they are answered or their time is up.
//!
//! Whoever hands a group over keeps here what comes meanwhile, and so does who knows of no leader for a moment: nobody need hear
//! of a planned move. What was passed on to a node that leads no more is sent anew where that cannot do harm: that node has
//! refused it, or never got it, or it may be repeated. Anything else is told that its outcome is not known. The requests of a
//! connection to a group keep their order.

use crate::{Broker, Caller, Output};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::message::{Acks, ErrorReply, LeaderHint, Opcode, Request};
use lnc_protocol::{BatchHeader, ErrorCode, Flags};
use lnc_raft::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Longest time that a producer may ask to wait, in milliseconds.
pub(crate) const MAX_TIMEOUT_MS: u32 = 300_000;

/// How long a request may wait here for a leader, in microseconds: longer than an election takes.
const HOLD_US: u64 = 2_000_000;

/// How long a node that leads no more may take over what it was passed, in microseconds, once another is known to lead. One that
/// lives has heard of it too, and says what became of it.
const GRACE_US: u64 = 500_000;

/// Pause before a request goes to the same leader again, in microseconds.
const PAUSE_US: u64 = 10_000;

/// How long a group may be on its way to another node, in microseconds, before it stays.
const MOVE_US: u64 = 1_000_000;

/// How long entries of a leader that has handed over may take to be committed by the next one, in microseconds.
const SETTLE_US: u64 = 1_000_000;

/// Whether an error says that this attempt of a request did nothing. What another attempt did, it does not say: one that came
/// before what it had to follow is refused as out of order, and the next one is stored.
fn says_not_stored(code: ErrorCode) -> bool {
    !matches!(code, ErrorCode::None | ErrorCode::Timeout | ErrorCode::LeadershipLost)
}

/// When the request that is being served came, and when its time is up, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Patience {
    pub(crate) since_us: u64,
    pub(crate) deadline_us: u64,
}

impl Patience {
    /// What a request that comes now asks for.
    pub(crate) fn of(request: &Request, now_us: u64) -> Self {
        /// Of requests that do not say it.
        const USUAL_MS: u32 = 30_000;
        let timeout_ms = match request {
            Request::Produce(produce) => produce.timeout_ms,
            Request::CreateTopic(create) => create.timeout_ms,
            Request::DeleteTopic(delete) => delete.timeout_ms,
            Request::ChangeMembers(change) => change.timeout_ms,
            Request::RaiseFormat(raise) => raise.timeout_ms,
            _ => USUAL_MS,
        };
        let deadline_us = now_us + u64::from(timeout_ms.clamp(1, MAX_TIMEOUT_MS)) * 1000;
        Self { since_us: now_us, deadline_us }
    }
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It waits here, and goes nowhere before this time.
    Here { not_before_us: u64 },
    /// It was passed on to this node.
    At(NodeId),
}

/// A request and where it is.
struct Passed {
    caller: Caller,
    opcode: Opcode,
    body: Bytes,
    patience: Patience,
    place: Place,
    /// The attempt at the node that it was passed on to; what is heard of earlier ones counts no more.
    attempt: u64,
    /// Since when it has waited here for a leader, first of all.
    held_us: Option<u64>,
    /// Since when the node that it was passed on to is known not to lead.
    moved_us: Option<u64>,
    /// A leader may have it already, or get it yet, by an attempt before this one.
    received: bool,
    /// What leaders decide is passed on; what this node answers once they have spoken is not.
    decides: bool,
}

impl Passed {
    /// Whether it may be given to two leaders. Of a batch with a sequence every replica knows that it has it already, and a
    /// producer id that nobody uses is none the worse for it.
    fn is_repeatable(&self) -> bool {
        let sequenced = |body: &Bytes| match Request::decode(Opcode::Produce, body.clone()) {
            Ok(Request::Produce(produce)) => {
                produce.acks != Acks::None
                    && BatchHeader::parse(&produce.batch).is_ok_and(|header| header.has_producer())
            }
            _ => false,
        };
        match self.opcode {
            Opcode::InitProducer => true,
            Opcode::Produce => sequenced(&self.body) || mutated(Mutation::RepeatAnything),
            _ => false,
        }
    }
}

/// A group, a client's connection, and a ticket: tickets ascend with time.
type Key = (GroupId, u64, u64);

/// What became of a request at the node that it was passed on to.
#[derive(Clone, Debug)]
pub enum Passage {
    /// It has answered: the body of its reply.
    Answered(Bytes),
    /// It cannot be reached, and has not got it.
    NotSent,
    /// The connection broke; it may have got it.
    Broken,
}

/// A group on its way to another node.
#[derive(Clone, Copy, Debug)]
struct Move {
    to: NodeId,
    since_us: u64,
    /// All that was taken is in the log, and the other node is getting it.
    begun: bool,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct PassedOn {
    requests: BTreeMap<Key, Passed>,
    /// By attempt, those that were passed on.
    away: BTreeMap<u64, Key>,
    /// Requests of each group that wait here, or at a node that is not known to lead. None is 0.
    unsettled: BTreeMap<GroupId, usize>,
    /// Bytes of those that wait here.
    held_bytes: usize,
    moves: BTreeMap<GroupId, Move>,
    /// Groups that this node has handed over, with entries whose end will be known: until when they are waited for.
    settling_until_us: BTreeMap<GroupId, u64>,
    patience: Patience,
    /// The request that is being served has waited here: its ticket, and since when it has.
    released: Option<(u64, Option<u64>)>,
    /// Requests under way here that a leader before this one may have, by connection and correlation id: no refusal says that
    /// they are not stored.
    in_doubt: BTreeSet<(u64, u64)>,
}

impl<D: Disk> Broker<D> {
    /// The times of the request that is being served.
    pub(crate) fn patience(&self) -> Patience {
        self.passed_on.patience
    }

    /// From now on a request with these times is being served.
    pub(crate) fn set_patience(&mut self, patience: Patience) {
        self.passed_on.patience = patience;
    }

    /// Whether this node is to decide a request of a group, now. If not, it has been seen to: it waits, is passed on, or is
    /// refused.
    pub(crate) fn decides(&mut self, caller: Caller, opcode: Opcode, group: GroupId, body: &Bytes) -> bool {
        if self.shard.is_leader(group) && !self.is_moving(group) && !self.must_follow(group, caller.connection) {
            return true;
        }
        self.elsewhere(caller, opcode, group, body.clone());
        false
    }

    /// This node does not decide for `group`: send the request on, keep it, or say who leads.
    fn elsewhere(&mut self, caller: Caller, opcode: Opcode, group: GroupId, body: Bytes) {
        match self.leader_elsewhere(group) {
            Some(to) if caller.flags.contains(Flags::NO_FORWARD) || caller.flags.contains(Flags::FORWARDED) => {
                self.refuse_as_follower(caller, opcode, group, to);
            }
            Some(to) if !self.must_follow(group, caller.connection) => {
                let (ticket, held_us) = self.place_in_line();
                let passed = self.new_passed(caller, opcode, body, held_us, true);
                self.pass_on((group, caller.connection, ticket), passed, to);
            }
            _ => self.hold(caller, opcode, group, body, true),
        }
    }

    /// The ticket of the request that is being served, and since when it has waited, if it has.
    fn place_in_line(&mut self) -> (u64, Option<u64>) {
        match self.passed_on.released {
            Some(before) => before,
            None => (self.ticket(), None),
        }
    }

    fn new_passed(&self, caller: Caller, opcode: Opcode, body: Bytes, held_us: Option<u64>, decides: bool) -> Passed {
        let (patience, place) = (self.patience(), Place::Here { not_before_us: 0 });
        let (attempt, moved_us, received) = (0, None, false);
        Passed { caller, opcode, body, patience, place, attempt, held_us, moved_us, received, decides }
    }

    /// A request is answered with this error: what it must be to say no more than is known.
    pub(crate) fn honest_refusal(&mut self, caller: Caller, error: ErrorReply) -> ErrorReply {
        let in_doubt = self.passed_on.in_doubt.remove(&(caller.connection, caller.correlation));
        match in_doubt && says_not_stored(error.code) {
            true => ErrorReply {
                code: ErrorCode::LeadershipLost,
                message: format!("{}; a leader before this one may have it", error.message),
                leader: None,
                ..error
            },
            false => error,
        }
    }

    /// A request is answered.
    pub(crate) fn outcome_known(&mut self, caller: Caller) {
        self.passed_on.in_doubt.remove(&(caller.connection, caller.correlation));
    }

    fn leader_elsewhere(&self, group: GroupId) -> Option<NodeId> {
        self.shard.leader(group).filter(|leader| *leader != self.config.node)
    }

    fn refuse_as_follower(&mut self, caller: Caller, opcode: Opcode, group: GroupId, to: NodeId) {
        let address = self.addresses(to.node()).map(|node| node.client.clone()).unwrap_or_default();
        let message = format!("group {} is led by node {to}", group.0);
        let leader = Some(LeaderHint { node_id: to.node(), address });
        let code = ErrorCode::NotLeader;
        self.refuse_with(caller, opcode, ErrorReply { code, message, retry_after_ms: 0, leader });
    }

    /// Whether earlier requests of a connection to a group are not where its leader is.
    fn must_follow(&self, group: GroupId, connection: u64) -> bool {
        if !self.passed_on.unsettled.contains_key(&group) {
            return false;
        }
        let leader = self.shard.leader(group);
        let before = self.passed_on.released.map_or(u64::MAX, |(ticket, _)| ticket);
        let own = self.passed_on.requests.range((group, connection, 0)..(group, connection, before));
        own.map(|(_, passed)| passed.place).any(|place| !matches!(place, Place::At(node) if Some(node) == leader))
    }

    /// Keep a request until its group has a leader that takes it.
    pub(crate) fn hold(&mut self, caller: Caller, opcode: Opcode, group: GroupId, body: Bytes, decides: bool) {
        let (ticket, held_us) = self.place_in_line();
        if held_us.is_none() {
            self.metrics.requests_held_total.inc();
        }
        // A read comes back here each time that it has to ask anew.
        let (held_us, pause_us) = if decides { (held_us, 0) } else { (Some(self.patience().since_us), PAUSE_US) };
        let passed = self.new_passed(caller, opcode, body, held_us, decides);
        self.keep((group, caller.connection, ticket), passed, pause_us);
    }

    /// The same for one that has been on its way, after a pause.
    fn keep(&mut self, key: Key, mut passed: Passed, pause_us: u64) {
        let now = self.now_us();
        let held_us = *passed.held_us.get_or_insert(now);
        if passed.patience.deadline_us <= now || now >= held_us + HOLD_US {
            return self.give_up(key.0, &passed);
        }
        // A quarter of the memory for requests is for those that wait like this.
        if self.passed_on.held_bytes + passed.body.len() > self.config.memory_bytes / 4 || !self.fits_in(&passed) {
            return self.give_up(key.0, &passed);
        }
        passed.place = Place::Here { not_before_us: now + pause_us };
        self.passed_on.held_bytes += passed.body.len();
        self.in_flight.take(passed.body.len());
        self.passed_on.requests.insert(key, passed);
        *self.passed_on.unsettled.entry(key.0).or_default() += 1;
    }

    /// Whether a request fits into the memory for those under way.
    fn fits_in(&self, passed: &Passed) -> bool {
        self.in_flight.has_room(passed.body.len()) || mutated(Mutation::TakeTooMuch)
    }

    fn pass_on(&mut self, key: Key, mut passed: Passed, to: NodeId) {
        if passed.received && !self.fits_in(&passed) {
            return self.give_up(key.0, &passed);
        }
        if !self.fits_in(&passed) {
            let (under_way, limit) = (self.in_flight.bytes(), self.in_flight.limit());
            let message = format!("{under_way} bytes of requests are under way, the limit is {limit}");
            return self.refuse(passed.caller, passed.opcode, ErrorCode::Overloaded, message);
        }
        passed.place = Place::At(to);
        passed.attempt = self.ticket();
        passed.moved_us = None;
        let attempt = passed.attempt;
        let (caller, opcode, body) = (passed.caller, passed.opcode, passed.body.clone());
        self.in_flight.take(body.len());
        self.passed_on.away.insert(attempt, key);
        self.passed_on.requests.insert(key, passed);
        self.outputs.push(Output::Forward { ticket: attempt, caller, opcode, body, to });
    }

    fn take_passed(&mut self, key: Key) -> Option<Passed> {
        let passed = self.passed_on.requests.remove(&key)?;
        self.in_flight.give_back(passed.body.len());
        let waited_here = matches!(passed.place, Place::Here { .. });
        if waited_here {
            self.passed_on.held_bytes -= passed.body.len();
        } else {
            self.passed_on.away.remove(&passed.attempt);
        }
        if waited_here || passed.moved_us.is_some() {
            self.settled(key.0);
        }
        Some(passed)
    }

    fn settled(&mut self, group: GroupId) {
        if let Some(count) = self.passed_on.unsettled.get_mut(&group) {
            *count -= 1;
            if *count == 0 {
                self.passed_on.unsettled.remove(&group);
            }
        }
    }

    /// Nothing more can be done for a request.
    fn give_up(&mut self, group: GroupId, passed: &Passed) {
        let now = self.now_us();
        let waited_ms = now.saturating_sub(passed.patience.since_us) / 1000;
        let late = passed.patience.deadline_us <= now;
        let (code, message) = match passed.place {
            Place::At(node) if late => {
                let what = format!("node {node}, which led group {}, has not answered within {waited_ms} ms", group.0);
                (ErrorCode::Timeout, format!("{what}; the outcome is not known"))
            }
            Place::At(node) => {
                let what = format!("node {node} led group {} when it was given this, and does not any more", group.0);
                (ErrorCode::LeadershipLost, format!("{what}; the outcome is not known"))
            }
            Place::Here { .. } if passed.received => {
                let what = format!("group {} found no leader that confirms this within {waited_ms} ms", group.0);
                (ErrorCode::LeadershipLost, format!("{what}; the outcome is not known"))
            }
            Place::Here { .. } => {
                let what = format!("group {} has no known leader at the moment", group.0);
                (ErrorCode::LeaderUnknown, format!("{what}, after {waited_ms} ms"))
            }
        };
        self.refuse(passed.caller, passed.opcode, code, message);
    }

    /// What became of a request that was passed on, in this attempt.
    pub fn passed(&mut self, clock: crate::Clock, attempt: u64, passage: Passage) {
        self.clock = clock;
        let Some(&key) = self.passed_on.away.get(&attempt) else { return };
        let Some(mut passed) = self.take_passed(key) else { return };
        match passage {
            Passage::NotSent => self.keep(key, passed, PAUSE_US),
            Passage::Broken if passed.is_repeatable() => {
                passed.received = true;
                self.repeat(key, passed);
            }
            Passage::Broken => {
                let message =
                    format!("the connection to the leader of group {} broke; the outcome is not known", key.0.0);
                self.refuse(passed.caller, passed.opcode, ErrorCode::LeadershipLost, message);
            }
            Passage::Answered(body) => self.answered_elsewhere(key, passed, body),
        }
    }

    fn answered_elsewhere(&mut self, key: Key, mut passed: Passed, body: Bytes) {
        // The outcome comes first in every reply.
        let code = ErrorCode::from(body.first_chunk().map_or(0, |bytes| u16::from_le_bytes(*bytes)));
        let untouched = matches!(code, ErrorCode::NotLeader | ErrorCode::LeaderUnknown | ErrorCode::ShuttingDown);
        let unknown = code == ErrorCode::LeadershipLost;
        passed.received |=
            unknown || self.passed_on.in_doubt.contains(&(passed.caller.connection, passed.caller.correlation));
        // If a leader before this one may have it, a refusal says nothing of that.
        if (untouched && (!passed.received || passed.is_repeatable())) || (unknown && passed.is_repeatable()) {
            return self.repeat(key, passed);
        }
        if passed.received && says_not_stored(code) {
            // That leader may refuse before it looks whether it has the batch already.
            if code.is_retriable() && passed.is_repeatable() {
                return self.keep(key, passed, PAUSE_US);
            }
            let message =
                format!("a leader of group {} before this one may have it; the outcome is not known", key.0.0);
            return self.refuse(passed.caller, passed.opcode, ErrorCode::LeadershipLost, message);
        }
        let Passed { caller, opcode, .. } = passed;
        self.passed_on.in_doubt.remove(&(caller.connection, caller.correlation));
        self.outputs.push(Output::Relay { caller, opcode, body });
    }

    fn repeat(&mut self, key: Key, passed: Passed) {
        self.metrics.requests_repeated_total.inc();
        // At once if another node is known to lead by now.
        let same = matches!(passed.place, Place::At(node) if self.shard.leader(key.0) == Some(node));
        self.keep(key, passed, if same { PAUSE_US } else { 0 });
    }

    /// Send on, or serve, what has waited for a leader. In each turn.
    pub(crate) fn follow_leaders(&mut self) {
        let now = self.now_us();
        let groups: Vec<GroupId> = self.passed_on.unsettled.keys().copied().collect();
        for group in groups {
            let leader = self.shard.leader(group).filter(|_| !self.is_moving(group));
            let Some(leader) = leader else { continue };
            let all = self.passed_on.requests.range((group, 0, 0)..=(group, u64::MAX, u64::MAX));
            let mut stuck = None;
            let mut ready = Vec::new();
            for (key, passed) in all {
                match passed.place {
                    _ if stuck == Some(key.1) => {}
                    Place::At(node) if node == leader => {}
                    Place::Here { not_before_us } if not_before_us <= now => ready.push(*key),
                    _ => stuck = Some(key.1),
                }
            }
            let ready: Vec<(Key, Passed)> =
                ready.into_iter().filter_map(|key| Some((key, self.take_passed(key)?))).collect();
            for (key, passed) in ready {
                self.release(key, passed, leader);
            }
        }
    }

    fn release(&mut self, key: Key, passed: Passed, leader: NodeId) {
        let (caller, opcode) = (passed.caller, passed.opcode);
        if leader != self.config.node && passed.decides {
            // What came while nobody could say who leads is passed on also for those who would rather have been told.
            return match caller.flags.contains(Flags::FORWARDED) {
                true => self.refuse_as_follower(caller, opcode, key.0, leader),
                false => self.pass_on(key, passed, leader),
            };
        }
        if passed.received {
            self.passed_on.in_doubt.insert((caller.connection, caller.correlation));
        }
        self.set_patience(passed.patience);
        self.passed_on.released = Some((key.2, passed.held_us));
        match Request::decode(opcode, passed.body.clone()) {
            // Its topic was known when it came.
            Ok(Request::Produce(produce)) if passed.decides => self.produce_known(caller, produce, passed.body),
            Ok(request) => self.serve(caller, opcode, request, passed.body),
            Err(error) => self.refuse(caller, opcode, ErrorCode::InvalidRequest, error.to_string()),
        }
        self.passed_on.released = None;
    }

    /// Note what was passed on to nodes of which another is known to lead now.
    pub(crate) fn note_leaders(&mut self) {
        let now = self.now_us();
        let leaders: BTreeMap<GroupId, NodeId> =
            self.shard.group_ids().filter_map(|group| Some((group, self.shard.leader(group)?))).collect();
        let PassedOn { requests, unsettled, .. } = &mut self.passed_on;
        for (key, passed) in requests {
            let Place::At(node) = passed.place else { continue };
            if passed.moved_us.is_none() && leaders.get(&key.0).is_some_and(|leader| *leader != node) {
                passed.moved_us = Some(now);
                *unsettled.entry(key.0).or_default() += 1;
            }
        }
    }

    /// See where leaders are, and whose time is up. With each tick.
    pub(crate) fn tick_passed_on(&mut self) {
        self.note_leaders();
        let now = self.now_us();
        let is_over = |passed: &Passed| {
            let too_long = match passed.place {
                Place::At(_) => passed.moved_us.is_some_and(|at| now >= at + GRACE_US),
                Place::Here { .. } => passed.held_us.is_some_and(|at| now >= at + HOLD_US),
            };
            too_long || passed.patience.deadline_us <= now
        };
        let over = self.passed_on.requests.iter().filter(|(_, passed)| is_over(passed));
        let over: Vec<Key> = over.map(|(key, _)| *key).collect();
        for key in over {
            let Some(mut passed) = self.take_passed(key) else { continue };
            let is_away = matches!(passed.place, Place::At(_));
            if is_away && passed.patience.deadline_us > now && passed.is_repeatable() {
                passed.received = true;
                self.repeat(key, passed);
            } else {
                self.give_up(key.0, &passed);
            }
        }
        self.stop_settling();
    }

    /// Who waits for entries of a former leader here, and has for long, is told that their outcome is not known.
    fn stop_settling(&mut self) {
        let now = self.now_us();
        let late = |(group, until_us): (&GroupId, &u64)| (*until_us <= now).then_some(*group);
        let late: Vec<GroupId> = self.passed_on.settling_until_us.iter().filter_map(late).collect();
        for group in late {
            self.passed_on.settling_until_us.remove(&group);
            if !self.shard.is_leader(group) {
                self.abandon_proposals(group);
            }
        }
    }

    /// Nobody waits any more for what a connection has asked, but what it wanted written is.
    pub(crate) fn forget_passed_on(&mut self, connections: &BTreeSet<u64>) {
        let gone = |(key, passed): (&Key, &Passed)| {
            let is_dropped = !passed.decides || passed.received;
            (connections.contains(&key.1) && (is_dropped || matches!(passed.place, Place::At(_)))).then_some(*key)
        };
        let gone: Vec<Key> = self.passed_on.requests.iter().filter_map(gone).collect();
        for key in gone {
            self.take_passed(key);
        }
        self.passed_on.in_doubt.retain(|(of, _)| !connections.contains(of));
    }

    /// Whether a group that is led here is being handed to another node.
    pub(crate) fn is_moving(&self, group: GroupId) -> bool {
        self.passed_on.moves.contains_key(&group)
    }

    /// To whom.
    pub(crate) fn moving_to(&self, group: GroupId) -> Option<NodeId> {
        self.passed_on.moves.get(&group).map(|under_way| under_way.to)
    }

    /// From now on, what comes for a group waits, until `to` leads it or cannot.
    pub(crate) fn begin_move(&mut self, group: GroupId, to: NodeId) {
        let since_us = self.now_us();
        self.passed_on.moves.insert(group, Move { to, since_us, begun: false });
    }

    /// Go on with the groups that are on their way to other nodes. In each turn, after what was taken is proposed.
    pub(crate) fn advance_moves(&mut self) {
        let now = self.now_us();
        for (group, under_way) in self.passed_on.moves.clone() {
            if !self.shard.is_leader(group) {
                // The loss of the office is about to be noticed, and asks for this.
                continue;
            }
            let (idle, late) = (self.is_all_proposed(group), now >= under_way.since_us + MOVE_US);
            let over = match under_way.begun {
                true => !self.shard.is_transferring(group),
                false if idle => match self.shard.transfer_leadership(group, under_way.to) {
                    Ok(()) => {
                        self.passed_on.moves.insert(group, Move { begun: true, ..under_way });
                        false
                    }
                    Err(error) => {
                        tracing::warn!(group = group.0, to = %under_way.to, %error, "a group cannot be handed over now; trying again");
                        true
                    }
                },
                false => late,
            };
            if over {
                tracing::debug!(group = group.0, to = %under_way.to, "a group was not taken over in time and stays");
                self.passed_on.moves.remove(&group);
            }
        }
    }

    /// This node has lost its office in a group. Whether it was by handing it over: then the next leader has all of its
    /// entries, and who waits for one of them learns what becomes of it.
    pub(crate) fn has_handed_over(&mut self, group: GroupId) -> bool {
        let now = self.now_us();
        if self.passed_on.moves.remove(&group).is_some_and(|under_way| under_way.begun) {
            self.passed_on.settling_until_us.insert(group, now + SETTLE_US);
        }
        self.passed_on.settling_until_us.contains_key(&group)
    }
}
