//! Commands on their way through the log: collected into one entry per group and turn, proposed, and matched with the
//! entry when it commits, so that each caller gets the answer to its own command. Records beyond what may be under way
//! wait in a queue that is fair to all who send them.

use crate::log::fair_queue::FairQueue;
use crate::log::window::{Commit, Window};
use crate::machines::command::{Command, EntryBuilder, validate};
use crate::watch::event::Event;
use crate::{Broker, Caller, META};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::message::{Acks, Opcode, ProduceResponse, Response};
use lnc_protocol::{ErrorCode, Flags};
use lnc_raft::ProposeError;
use std::collections::VecDeque;

/// An entry is closed when its payload reaches this many bytes.
const ENTRY_BYTES: usize = 1 << 20;

/// Entries that may collect while the journal is busy before they are proposed all the same.
const EAGER_BYTES: usize = 4 << 20;

/// A node that passes requests on numbers them; the upper bits of a number tell the clients apart.
const FLOW_SHIFT: u32 = 48;

/// The number of a forwarded request that is the `number`th on its link, of the client with this connection.
pub fn number_behind(connection: u64, number: u64) -> u64 {
    (connection << FLOW_SHIFT) | (number & ((1 << FLOW_SHIFT) - 1))
}

fn flow_behind(correlation: u64) -> u16 {
    (correlation >> FLOW_SHIFT) as u16
}

/// A moment: on the clock for durations, and as entries are stamped.
#[derive(Clone, Copy)]
pub(crate) struct Stamp {
    pub(crate) now_us: u64,
    pub(crate) stamp_ms: u64,
}

/// Who waits for a command.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) caller: Caller,
    pub(crate) opcode: Opcode,
    /// Bytes that the request holds until it is answered.
    pub(crate) bytes: usize,
    pub(crate) since_us: u64,
    pub(crate) deadline_us: u64,
    pub(crate) kind: Kind,
}

/// What the answer needs beside the command's result.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Produce { acks: Acks, topic_id: u64, partition: u32 },
    CreateTopic,
    DeleteTopic,
    InitProducer,
    ChangeMembers,
    RaiseFormat,
}

/// Commands of one entry with their positions.
type Origins = Vec<(u32, Option<Origin>)>;

struct Proposed {
    term: u64,
    index: u64,
    origins: Origins,
    /// Bytes of its payload.
    bytes: usize,
    begun: Begun,
    since_us: u64,
    /// This node's own disk has it.
    durable: bool,
}

/// What is known of an entry that has committed.
#[derive(Default)]
pub(crate) struct Committed {
    pub(crate) origins: Origins,
    /// The origins of entries that lost their place in the log to it.
    pub(crate) lost: Vec<Origin>,
    /// When this node proposed it, if it did.
    pub(crate) proposed_us: Option<u64>,
}

/// A payload that is complete.
struct Payload {
    bytes: Bytes,
    origins: Origins,
    begun: Begun,
}

/// When the first command came into an entry, and whether nothing else was under way then.
#[derive(Clone, Copy, Default)]
struct Begun {
    at_us: u64,
    alone: bool,
}

/// Records that wait for room.
struct Waiting {
    key: PartitionKey,
    batch: Bytes,
    /// None once its time was up.
    origin: Option<Origin>,
}

/// Whose turn it is among those who wait: a client, also where another node passes its requests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    connection: u64,
    behind: u16,
}

impl From<Caller> for Flow {
    fn from(caller: Caller) -> Self {
        let forwarded = caller.flags.contains(Flags::FORWARDED);
        Self { connection: caller.connection, behind: if forwarded { flow_behind(caller.correlation) } else { 0 } }
    }
}

/// The commands of one group that are not applied yet.
#[derive(Default)]
pub(crate) struct Proposals {
    waiting: FairQueue<Flow, Waiting>,
    next: EntryBuilder,
    origins: Origins,
    /// Of the next entry.
    begun: Begun,
    /// Payloads that are complete and could not be proposed yet.
    full: VecDeque<Payload>,
    proposed: VecDeque<Proposed>,
    /// The sum over the payloads in `full` and `proposed`.
    under_way: usize,
    window: Window,
}

impl Proposals {
    /// Add a command to the next entry.
    pub(crate) fn push(&mut self, command: &Command, origin: Option<Origin>, clock: Stamp) {
        if self.next.count() == 0 {
            self.begun = Begun { at_us: clock.now_us, alone: self.under_way == 0 };
        }
        let position = self.next.push(command);
        if let Some(origin) = origin {
            self.origins.push((position, Some(origin)));
        }
        if self.next.bytes() >= ENTRY_BYTES {
            let payload = self.finish_next(clock.stamp_ms);
            self.full.push_back(payload);
        }
    }

    /// Add records to the next entry, or let them wait for their turn.
    fn append(&mut self, flow: Flow, key: PartitionKey, batch: Bytes, origin: Origin, clock: Stamp) {
        let origin = Some(origin);
        if self.waiting.is_empty() && self.has_room(batch.len()) {
            return self.push(&Command::Append { key, batch }, origin, clock);
        }
        /// A shorter batch is not worth the buffer that it came in, which it would keep alive.
        const WORTH: usize = 16 << 10;
        let batch = if batch.len() < WORTH { Bytes::copy_from_slice(&batch) } else { batch };
        self.waiting.push(flow, batch.len(), Waiting { key, batch, origin });
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.window.fits(self.under_way + self.next.bytes(), bytes)
    }

    /// Let in who waits, in turn, as far as there is room; or all of them.
    fn admit(&mut self, clock: Stamp, all: bool) {
        loop {
            let (window, under_way) = (&self.window, self.under_way + self.next.bytes());
            let Some(waiting) = self.waiting.pop_if(|bytes| all || window.fits(under_way, bytes)) else { break };
            let Waiting { key, batch, origin } = waiting;
            self.push(&Command::Append { key, batch }, origin, clock);
        }
        if !self.waiting.is_empty() {
            self.window.fell_short(clock.now_us);
        }
    }

    /// Whether there is something that nothing but a flush is waited for.
    fn can_propose(&self) -> bool {
        let lets_in = || self.waiting.next_bytes().is_some_and(|bytes| self.has_room(bytes));
        self.full.is_empty() && (self.next.count() > 0 || lets_in())
    }

    fn is_empty(&self) -> bool {
        self.next.count() == 0 && self.full.is_empty() && self.waiting.is_empty()
    }

    /// Bytes that are not proposed yet.
    pub(crate) fn bytes(&self) -> usize {
        self.waiting.bytes() + self.collected_bytes()
    }

    /// Those of them that wait no longer for room in the window.
    fn collected_bytes(&self) -> usize {
        let full: usize = self.full.iter().map(|payload| payload.bytes.len()).sum();
        self.next.bytes() + full
    }

    /// Bytes that wait for room in the window.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.waiting.bytes()
    }

    /// The window's size in bytes.
    pub(crate) fn window(&self) -> usize {
        self.window.bytes()
    }

    fn finish_next(&mut self, stamp_ms: u64) -> Payload {
        let bytes = self.next.finish(stamp_ms);
        self.under_way += bytes.len();
        Payload { bytes, origins: std::mem::take(&mut self.origins), begun: self.begun }
    }

    fn pop(&mut self, stamp_ms: u64) -> Option<Payload> {
        self.full.pop_front().or_else(|| (self.next.count() > 0).then(|| self.finish_next(stamp_ms)))
    }

    /// Take what is known of the entry that has just committed. `flush_us`: what the disk takes to flush little data.
    pub(crate) fn committed(&mut self, term: u64, index: u64, now_us: u64, flush_us: u64) -> Committed {
        let mut lost = Vec::new();
        while let Some(first) = self.proposed.front() {
            if first.index > index {
                break;
            }
            let Some(first) = self.proposed.pop_front() else { break };
            self.under_way -= first.bytes;
            if (first.term, first.index) == (term, index) {
                let took_us = now_us.saturating_sub(first.begun.at_us);
                self.window.committed(
                    now_us,
                    flush_us,
                    Commit { bytes: first.bytes, took_us, was_alone: first.begun.alone },
                );
                return Committed { origins: first.origins, lost, proposed_us: Some(first.since_us) };
            }
            lost.extend(first.origins.into_iter().filter_map(|(_, origin)| origin));
        }
        Committed { lost, ..Committed::default() }
    }

    /// Add an entry. Gives the origins of earlier ones in its place or behind it, which are not in the log any more.
    fn push_proposed(&mut self, proposed: Proposed) -> Vec<Origin> {
        let mut lost = Vec::new();
        while let Some(last) = self.proposed.pop_back_if(|last| last.index >= proposed.index) {
            self.under_way -= last.bytes;
            lost.extend(last.origins.into_iter().filter_map(|(_, origin)| origin));
        }
        self.proposed.push_back(proposed);
        lost
    }

    fn take_proposed(&mut self) -> Vec<Origin> {
        self.under_way -= self.proposed.iter().map(|proposed| proposed.bytes).sum::<usize>();
        self.proposed.drain(..).flat_map(|p| p.origins).filter_map(|(_, origin)| origin).collect()
    }

    fn take_waiting(&mut self) -> Vec<Origin> {
        self.next = EntryBuilder::default();
        let full = self.full.drain(..).inspect(|payload| self.under_way -= payload.bytes.len());
        let full = full.flat_map(|payload| payload.origins);
        let collected = full.chain(self.origins.drain(..)).filter_map(|(_, origin)| origin);
        collected.chain(self.waiting.drain().filter_map(|waiting| waiting.origin)).collect()
    }

    fn origins_mut(&mut self) -> impl Iterator<Item = &mut Option<Origin>> {
        let proposed = self.proposed.iter_mut().flat_map(|p| p.origins.iter_mut());
        let full = self.full.iter_mut().flat_map(|payload| payload.origins.iter_mut());
        let collected = proposed.chain(full).chain(self.origins.iter_mut()).map(|(_, origin)| origin);
        collected.chain(self.waiting.iter_mut().map(|waiting| &mut waiting.origin))
    }
}

impl<D: Disk> Broker<D> {
    /// Whether commands of the group wait to be proposed, or to be committed for longer than a chore should.
    pub(crate) fn has_backlog(&self, group: GroupId) -> bool {
        /// Entries under way beyond which chores wait.
        const MANY: usize = 64;
        self.proposals.get(&group).is_some_and(|p| !p.full.is_empty() || p.proposed.len() > MANY)
    }

    /// Whether commands wait that could be proposed now. Complete payloads that wait do so for room or for the end of a
    /// transfer, and so does what comes behind them.
    pub(crate) fn can_propose(&self) -> bool {
        let can =
            |(group, proposals): (&GroupId, &Proposals)| self.knows_the_time_for(*group) && proposals.can_propose();
        self.shard.can_flush() && self.proposals.iter().any(can)
    }

    /// Whether records of this group can be stamped. The catalog does not go by time, and who decides alone has nobody to ask.
    fn knows_the_time_for(&self, group: GroupId) -> bool {
        let decides_alone = || {
            let status = self.shard.status(group);
            status.is_some_and(|status| status.configuration.voters.iter().eq([&self.config.node]))
        };
        group == META || !self.clocks.is_lost() || decides_alone()
    }

    /// Turn collected commands into entries. While the journal is busy they collect: the disk sets the pace of group
    /// commit, no timer does.
    pub(crate) fn propose_pending(&mut self) {
        self.first_look_at_clocks();
        let can_flush = self.shard.can_flush();
        let clock = self.stamp();
        let waits =
            |(group, proposals): &(&GroupId, &Proposals)| !proposals.is_empty() && self.knows_the_time_for(**group);
        let groups: Vec<GroupId> = self.proposals.iter().filter(waits).map(|(id, _)| *id).collect();
        let moving: Vec<GroupId> = groups.iter().copied().filter(|group| self.is_moving(*group)).collect();
        for group in groups {
            let is_moving = moving.contains(&group);
            let proposals = self.proposals(group);
            proposals.admit(clock, is_moving);
            // Who is to lead next gets all at once.
            if can_flush || proposals.collected_bytes() >= EAGER_BYTES || is_moving {
                self.propose_group(group, clock);
            }
        }
        self.queued_bytes = self.proposals.values().map(Proposals::bytes).sum();
    }

    fn propose_group(&mut self, group: GroupId, clock: Stamp) {
        while let Some(payload) = self.proposals(group).pop(clock.stamp_ms) {
            if let Err(error) = validate(&payload.bytes) {
                // It would end every replica. None of what this node makes is like that.
                tracing::error!(group = group.0, %error, "commands that make no entry are dropped: report this");
                self.proposals(group).under_way -= payload.bytes.len();
                for origin in payload.origins.into_iter().filter_map(|(_, origin)| origin) {
                    self.fail(origin, ErrorCode::InvalidRequest, error.to_string());
                }
                return;
            }
            match self.shard.propose(group, payload.bytes.clone()) {
                Ok(place) => self.note_proposed(group, place, payload),
                // They wait for room, or for the end of a transfer: what is in flight then is on the new leader's disk and
                // gets its answer, the rest is told to ask that leader.
                Err(ProposeError::TooMuchInFlight | ProposeError::Transferring) => {
                    return self.proposals(group).full.push_front(payload);
                }
                // Of what was proposed the loss of the office decides, which is about to be noticed.
                Err(_) => {
                    self.proposals(group).full.push_front(payload);
                    let waiting = self.proposals(group).take_waiting();
                    return self.deny_waiting(group, waiting);
                }
            }
        }
    }

    /// The log has taken an entry. Whoever asked for no more has its answer.
    fn note_proposed(&mut self, group: GroupId, (term, index): (u64, u64), payload: Payload) {
        let Payload { bytes, mut origins, begun } = payload;
        let since_us = self.clock.mono_us;
        if let Some((_, Some(oldest))) = origins.first() {
            let micros = since_us.saturating_sub(oldest.since_us);
            self.metrics.produce_queue_seconds.observe(micros as f64 / 1e6);
        }
        let taken = take_produces(&mut origins, |acks| acks == Acks::None);
        let bytes = bytes.len();
        self.watch.tell(self.clock, &Event::Proposed { group, term, index, bytes, origins: &origins });
        let proposed = Proposed { term, index, origins, bytes, begun, since_us, durable: false };
        for origin in self.proposals(group).push_proposed(proposed) {
            let message = "this node lost its office and has it again: an entry of its own took the place".to_owned();
            self.fail(origin, ErrorCode::LeadershipLost, message);
        }
        taken.into_iter().for_each(|origin| self.answer_unplaced(origin));
    }

    /// Records come in for a group.
    pub(crate) fn submit_records(
        &mut self,
        group: GroupId,
        caller: Caller,
        key: PartitionKey,
        batch: Bytes,
        origin: Origin,
    ) {
        let is_watched = !matches!(origin.kind, Kind::Produce { acks: Acks::None, .. });
        if is_watched {
            self.watch.tell(self.clock, &Event::Queued(origin.caller));
        }
        self.queued_bytes += batch.len();
        let clock = self.stamp();
        self.proposals(group).append(caller.into(), key, batch, origin, clock);
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { now_us: self.now_us(), stamp_ms: self.clocks.stamp_ms(self.clock) }
    }

    /// Whether all commands of the group that there are have been proposed.
    pub(crate) fn is_all_proposed(&self, group: GroupId) -> bool {
        self.proposals.get(&group).is_none_or(Proposals::is_empty)
    }

    /// This node does not lead the group any more: whoever waits must ask the next leader. That of a group which was handed
    /// over has what was proposed: it is committed, and this node learns it.
    pub(crate) fn lose_office(&mut self, group: GroupId) {
        if !self.has_handed_over(group) {
            return self.abandon_proposals(group);
        }
        let waiting = self.proposals(group).take_waiting();
        self.deny_waiting(group, waiting);
    }

    /// Whoever waits must ask another leader.
    pub(crate) fn abandon_proposals(&mut self, group: GroupId) {
        let proposals = self.proposals(group);
        let (proposed, waiting) = (proposals.take_proposed(), proposals.take_waiting());
        for origin in proposed {
            let message =
                format!("node {} stopped leading group {} before this was committed", self.config.node, group.0);
            let denied = mutated(Mutation::DenyProposed);
            let code = if denied { ErrorCode::LeaderUnknown } else { ErrorCode::LeadershipLost };
            self.fail(origin, code, message);
        }
        self.deny_waiting(group, waiting);
    }

    fn deny_waiting(&mut self, group: GroupId, waiting: Vec<Origin>) {
        for origin in waiting {
            let message = format!("node {} does not lead group {}", self.config.node, group.0);
            self.fail(origin, ErrorCode::LeaderUnknown, message);
        }
    }

    pub(crate) fn fail(&mut self, origin: Origin, code: ErrorCode, message: String) {
        self.in_flight.give_back(origin.bytes);
        self.refuse(origin.caller, origin.opcode, code, message);
    }

    pub(crate) fn answer(&mut self, origin: Origin, response: Response) {
        self.in_flight.give_back(origin.bytes);
        if matches!(origin.kind, Kind::Produce { .. }) {
            let micros = self.now_us().saturating_sub(origin.since_us);
            self.metrics.produce_latency_seconds.observe(micros as f64 / 1e6);
        }
        self.reply(origin.caller, origin.opcode, response);
    }

    /// This node's own disk holds the entry: enough for producers that asked for `acks=leader`.
    pub(crate) fn leader_durable(&mut self, group: GroupId, term: u64, index: u64) {
        let Some(proposals) = self.proposals.get_mut(&group) else { return };
        let mut done = Vec::new();
        for proposed in proposals.proposed.iter_mut().take_while(|p| p.index <= index) {
            // What another leader has put here says nothing of an earlier one's entry.
            if proposed.term != term {
                continue;
            }
            if !std::mem::replace(&mut proposed.durable, true) {
                let micros = self.clock.mono_us.saturating_sub(proposed.since_us);
                self.metrics.journal_write_seconds.observe(micros as f64 / 1e6);
            }
            done.extend(take_produces(&mut proposed.origins, |acks| acks == Acks::Leader));
        }
        done.into_iter().for_each(|origin| self.answer_unplaced(origin));
    }

    /// Answer a produce whose place in the log is not known at its acks level.
    pub(crate) fn answer_unplaced(&mut self, origin: Origin) {
        if let Kind::Produce { topic_id, partition, .. } = origin.kind {
            self.answer(origin, unplaced(topic_id, partition));
        }
    }

    /// Tell those whose time is up that the outcome is not known; the command may still commit.
    pub(crate) fn expire_proposals(&mut self) {
        let now = self.now_us();
        let mut late = Vec::new();
        for proposals in self.proposals.values_mut() {
            for origin in proposals.origins_mut() {
                late.extend(origin.take_if(|o| o.deadline_us <= now));
            }
        }
        for origin in late {
            let waited = now.saturating_sub(origin.since_us) / 1000;
            let message = format!("no quorum confirmed this within {waited} ms; it may still take effect");
            let code = if mutated(Mutation::DenyLate) { ErrorCode::Overloaded } else { ErrorCode::Timeout };
            self.fail(origin, code, message);
        }
    }
}

/// Take those who wait for no more than this.
fn take_produces(origins: &mut Origins, wants: impl Fn(Acks) -> bool) -> Vec<Origin> {
    let is_one = |origin: &mut Origin| matches!(origin.kind, Kind::Produce { acks, .. } if wants(acks));
    origins.iter_mut().filter_map(|(_, origin)| origin.take_if(is_one)).collect()
}

fn unplaced(topic_id: u64, partition: u32) -> Response {
    Response::Produce(ProduceResponse {
        topic_id,
        partition,
        base_offset: None,
        log_start_offset: 0,
        append_time_ms: 0,
        duplicate: false,
    })
}
