//! Commands on their way through the log: collected into one entry per group and turn, proposed, and matched with the
//! entry when it commits, so that each caller gets the answer to its own command.

use super::command::{Command, EntryBuilder, validate};
use super::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{Acks, Opcode, ProduceResponse, Response};
use lnc_raft::ProposeError;
use std::collections::VecDeque;

/// An entry is closed when its payload reaches this many bytes.
const ENTRY_BYTES: usize = 1 << 20;

/// Entries that may collect while the journal is busy before they are proposed all the same.
const EAGER_BYTES: usize = 4 << 20;

/// Who waits for a command.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) caller: Caller,
    pub(super) opcode: Opcode,
    /// Bytes that the request holds until it is answered.
    pub(super) bytes: usize,
    pub(super) since_us: u64,
    pub(super) deadline_us: u64,
    pub(super) kind: Kind,
}

/// What the answer needs beside the command's result.
#[derive(Clone, Debug)]
pub(super) enum Kind {
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
    since_us: u64,
    /// This node's own disk has it.
    durable: bool,
}

/// What is known of an entry that has committed.
#[derive(Default)]
pub(super) struct Committed {
    pub(super) origins: Origins,
    /// The origins of entries that lost their place in the log to it.
    pub(super) lost: Vec<Origin>,
    /// When this node proposed it, if it did.
    pub(super) proposed_us: Option<u64>,
}

/// The commands of one group that are not applied yet.
#[derive(Default)]
pub(super) struct Proposals {
    next: EntryBuilder,
    origins: Origins,
    /// Payloads that are complete and could not be proposed yet.
    full: VecDeque<(Bytes, Origins)>,
    proposed: VecDeque<Proposed>,
}

impl Proposals {
    pub(super) fn push(&mut self, command: &Command, origin: Option<Origin>, stamp_ms: u64) {
        let position = self.next.push(command);
        if let Some(origin) = origin {
            self.origins.push((position, Some(origin)));
        }
        if self.next.bytes() >= ENTRY_BYTES {
            self.full.push_back((self.next.finish(stamp_ms), std::mem::take(&mut self.origins)));
        }
    }

    fn is_empty(&self) -> bool {
        self.next.count() == 0 && self.full.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.next.bytes() + self.full.len() * ENTRY_BYTES
    }

    fn pop(&mut self, stamp_ms: u64) -> Option<(Bytes, Origins)> {
        self.full.pop_front().or_else(|| {
            (self.next.count() > 0).then(|| (self.next.finish(stamp_ms), std::mem::take(&mut self.origins)))
        })
    }

    /// Take what is known of the entry that has just committed.
    pub(super) fn committed(&mut self, term: u64, index: u64) -> Committed {
        let mut lost = Vec::new();
        while let Some(first) = self.proposed.front() {
            if first.index > index {
                break;
            }
            let Some(first) = self.proposed.pop_front() else { break };
            if (first.term, first.index) == (term, index) {
                return Committed { origins: first.origins, lost, proposed_us: Some(first.since_us) };
            }
            lost.extend(first.origins.into_iter().filter_map(|(_, origin)| origin));
        }
        Committed { lost, ..Committed::default() }
    }

    fn take_proposed(&mut self) -> Vec<Origin> {
        self.proposed.drain(..).flat_map(|p| p.origins).filter_map(|(_, origin)| origin).collect()
    }

    fn take_waiting(&mut self) -> Vec<Origin> {
        self.next = EntryBuilder::default();
        let full = self.full.drain(..).flat_map(|(_, origins)| origins);
        full.chain(self.origins.drain(..)).filter_map(|(_, origin)| origin).collect()
    }

    fn origins_mut(&mut self) -> impl Iterator<Item = &mut Option<Origin>> {
        let proposed = self.proposed.iter_mut().flat_map(|p| p.origins.iter_mut());
        let full = self.full.iter_mut().flat_map(|(_, origins)| origins.iter_mut());
        proposed.chain(full).chain(self.origins.iter_mut()).map(|(_, origin)| origin)
    }
}

impl<D: Disk> Broker<D> {
    /// Whether commands of the group wait to be proposed, or to be committed for longer than a chore should.
    pub(super) fn has_backlog(&self, group: GroupId) -> bool {
        /// Entries under way beyond which chores wait.
        const MANY: usize = 64;
        self.proposals.get(&group).is_some_and(|p| !p.full.is_empty() || p.proposed.len() > MANY)
    }

    /// Whether commands wait that could be proposed now. Complete payloads that wait do so for room or for the end of a
    /// transfer, and so does what comes behind them.
    pub(super) fn can_propose(&self) -> bool {
        self.shard.can_flush() && self.proposals.values().any(|p| p.next.count() > 0 && p.full.is_empty())
    }

    /// Turn collected commands into entries. While the journal is busy they collect: the disk sets the pace of group
    /// commit, no timer does.
    pub(super) fn propose_pending(&mut self) {
        let can_flush = self.shard.can_flush();
        let stamp_ms = self.clocks.stamp_ms(self.clock);
        let groups: Vec<GroupId> = self.proposals.iter().filter(|(_, p)| !p.is_empty()).map(|(id, _)| *id).collect();
        let moving: Vec<GroupId> = groups.iter().copied().filter(|group| self.is_moving(*group)).collect();
        for group in groups {
            let Some(proposals) = self.proposals.get_mut(&group) else { continue };
            // Who is to lead next gets all at once.
            if !can_flush && proposals.bytes() < EAGER_BYTES && !moving.contains(&group) {
                continue;
            }
            while let Some((payload, origins)) = proposals.pop(stamp_ms) {
                if let Err(error) = validate(&payload) {
                    // It would end every replica. None of what this node makes is like that.
                    tracing::error!(group = group.0, %error, "commands that make no entry are dropped: report this");
                    for origin in origins.into_iter().filter_map(|(_, origin)| origin) {
                        self.fail(origin, ErrorCode::InvalidRequest, error.to_string());
                    }
                    break;
                }
                match self.shard.propose(group, payload.clone()) {
                    Ok((term, index)) => {
                        let since_us = self.clock.mono_us;
                        if let Some((_, Some(oldest))) = origins.first() {
                            let micros = since_us.saturating_sub(oldest.since_us);
                            self.metrics.produce_queue_seconds.observe(micros as f64 / 1e6);
                        }
                        if let Some(tracer) = &mut self.tracer {
                            tracer.proposed(group, (term, index), payload.len(), &origins);
                        }
                        proposals.proposed.push_back(Proposed { term, index, origins, since_us, durable: false });
                    }
                    // They wait for room, or for the end of a transfer: what is in flight then is on the new leader's
                    // disk and gets its answer, the rest is told to ask that leader.
                    Err(ProposeError::TooMuchInFlight | ProposeError::Transferring) => {
                        proposals.full.push_front((payload, origins));
                        break;
                    }
                    Err(_) => {
                        proposals.full.push_front((payload, origins));
                        self.abandon_proposals(group);
                        break;
                    }
                }
            }
        }
    }

    /// Whether all commands of the group that there are have been proposed.
    pub(super) fn is_all_proposed(&self, group: GroupId) -> bool {
        self.proposals.get(&group).is_none_or(Proposals::is_empty)
    }

    /// This node does not lead the group any more: whoever waits must ask the next leader. That of a group which was handed
    /// over has what was proposed: it is committed, and this node learns it.
    pub(super) fn lose_office(&mut self, group: GroupId) {
        if !self.has_handed_over(group) {
            return self.abandon_proposals(group);
        }
        let waiting = self.proposals(group).take_waiting();
        self.deny_waiting(group, waiting);
    }

    /// Whoever waits must ask another leader.
    pub(super) fn abandon_proposals(&mut self, group: GroupId) {
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

    pub(super) fn fail(&mut self, origin: Origin, code: ErrorCode, message: String) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(origin.bytes);
        self.refuse(origin.caller, origin.opcode, code, message);
    }

    pub(super) fn answer(&mut self, origin: Origin, response: Response) {
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(origin.bytes);
        if matches!(origin.kind, Kind::Produce { .. }) {
            let micros = self.now_us().saturating_sub(origin.since_us);
            self.metrics.produce_latency_seconds.observe(micros as f64 / 1e6);
        }
        self.reply(origin.caller, origin.opcode, response);
    }

    /// This node's own disk holds the entry: enough for producers that asked for `acks=leader`.
    pub(super) fn leader_durable(&mut self, group: GroupId, term: u64, index: u64) {
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
            for (_, origin) in &mut proposed.origins {
                let leader_only = |o: &mut Origin| matches!(o.kind, Kind::Produce { acks: Acks::Leader, .. });
                done.extend(origin.take_if(leader_only));
            }
        }
        for origin in done {
            if let Kind::Produce { topic_id, partition, .. } = origin.kind {
                self.answer(origin, unplaced(topic_id, partition));
            }
        }
    }

    /// Tell those whose time is up that the outcome is not known; the command may still commit.
    pub(super) fn expire_proposals(&mut self) {
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

/// The answer to a produce whose place in the log is not known at its acks level.
pub(super) fn unplaced(topic_id: u64, partition: u32) -> Response {
    Response::Produce(ProduceResponse {
        topic_id,
        partition,
        base_offset: None,
        log_start_offset: 0,
        append_time_ms: 0,
        duplicate: false,
    })
}
