//! The shard: many Raft groups on one journal, deterministic.
//!
//! Ticks, peer messages, proposals and disk completions come in through methods; [`Shard::turn`] does the work that
//! has come together since the last one and puts into [`Outputs`] what must leave. It reads no clock and no socket.
//!
//! What binds here:
//! - Messages that act as a vote leave only after the flush that holds what they promise, and every earlier one, is
//!   durable.
//! - A group's own entries count for its commit, and its own vote for its election, only from that same moment
//!   ([`lnc_raft::Raft::on_durable`], [`lnc_raft::Raft::on_hard_state_durable`]).
//! - Any failed journal write ends the shard: the error is returned and nothing is sent after it.

mod reads;
mod repairs;
mod start;

pub use reads::{Found, Scrubbed};
pub(crate) use reads::{MAX_FOUND_BYTES, within};

use crate::group::Group;
use crate::repair::Repair;
use bytes::Bytes;
use lnc_log::FileOwner;
use lnc_log::disk::{Completion, Disk};
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalError, Location};
use lnc_mutation::{Mutation, mutated};
use lnc_raft::{
    ConfigError, Configuration, Entry, HardState, Index, Message, NodeId, ProposeError, Ready, RoleChange, Status,
    Term, TransferError,
};
use reads::CatchUp;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use thiserror::Error;

/// What a shard needs to know before it starts.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// This node.
    pub node: NodeId,
    /// The members who founded the cluster: the voters of every group before its first entry. Empty for a node that came
    /// later, and learns the voters from the log.
    pub founders: BTreeSet<NodeId>,
    /// The groups of this shard.
    pub groups: Vec<GroupId>,
    /// Ticks without a leader before an election, at least; the actual number is drawn from `[n, 2n)`.
    pub election_ticks: u32,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: u32,
    /// Ticks after which a voter that has not answered is asked again.
    pub election_rpc_ticks: u32,
    /// Ticks after which an election round is over.
    pub election_round_ticks: u32,
    /// Entry bytes sent to one follower and not yet acknowledged, per group.
    pub max_in_flight_bytes: usize,
    /// Bytes of entries in one append message.
    pub max_append_bytes: usize,
    /// Entry bytes that all groups together keep in memory for followers that lag a little.
    pub entry_cache_bytes: usize,
    /// Journal bytes kept beyond the last checkpoint for followers that lag more.
    pub journal_retain_bytes: u64,
    /// Seed of the election timeouts.
    pub seed: u64,
    /// The journal's own settings.
    pub journal: JournalConfig,
}

/// Why a shard cannot start or go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ShardError {
    /// The journal failed: the node must stop.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The consensus configuration is not usable.
    #[error("group {group}: {error}")]
    Config {
        /// The group.
        group: u32,
        /// What is wrong.
        error: ConfigError,
    },
    /// The data directory holds a group that the configuration does not have.
    #[error(
        "the data directory holds entries of group {group}, but only {configured} groups are configured: set \
         cluster.data_groups to what it was when the cluster was founded, at least {group}"
    )]
    UnknownGroup {
        /// The group.
        group: u32,
        /// Number of configured groups, the meta group included.
        configured: usize,
    },
    /// The journal holds an entry that this version does not understand.
    #[error(
        "group {group}: entry {index} in the journal is of kind {kind}, which this version does not know: start the \
         version that wrote it"
    )]
    UnknownEntry {
        /// The group.
        group: u32,
        /// The entry.
        index: Index,
        /// Its kind.
        kind: u8,
    },
    /// The end of the journal is lost, and no other node has a copy.
    #[error(
        "group {group}: the end of the journal is lost, and this node is the only one that has the group: records that were \
         acknowledged would be lost without a word. Restore the missing files of the data directory, or start with an \
         empty one and accept the loss of everything"
    )]
    Lost {
        /// The group.
        group: u32,
    },
    /// The checkpoint and the journal do not fit together.
    #[error(
        "group {group}: the journal's first entry is {found}, but the checkpoint ends at {applied}: entries between \
         them are missing; restore this node's data directory or let it rejoin with an empty one"
    )]
    Hole {
        /// The group.
        group: u32,
        /// First entry in the journal.
        found: Index,
        /// Last entry that the checkpoint covers.
        applied: Index,
    },
}

/// What a checkpoint says about one group.
#[derive(Clone, Debug, Default)]
pub struct GroupStart {
    /// Term and vote at the time of the checkpoint.
    pub hard_state: HardState,
    /// Last entry whose effects are in the checkpoint.
    pub applied_index: Index,
    /// Its term.
    pub applied_term: Term,
    /// The members at that index; None: the founders.
    pub configuration: Option<Configuration>,
}

/// What a turn hands to the world, in order within each list.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Messages to peers.
    pub messages: Vec<(GroupId, Message)>,
    /// Committed entries to apply.
    pub committed: Vec<(GroupId, Entry)>,
    /// Elections won and lost.
    pub roles: Vec<(GroupId, RoleChange)>,
    /// Entries that have become durable on this node.
    pub durable: Vec<(GroupId, Term, Index)>,
    /// Journal flushes handed to the disk: number and bytes of their records.
    pub flushes_started: Vec<(u64, usize)>,
    /// Every flush up to this one is durable.
    pub flushes_durable: u64,
    /// Read requests that may be answered once the index is applied: context and index.
    pub reads: Vec<(GroupId, u64, Index)>,
    /// Read requests that must be tried again.
    pub reads_failed: Vec<(GroupId, u64)>,
    /// Groups whose state this node needs from a peer, at this index or later.
    pub states_needed: Vec<(GroupId, Index)>,
    /// Groups that this node no longer leads since nothing was committed, and the entry that waited.
    pub stepped_aside: Vec<(GroupId, Index)>,
    /// Entries that peers have asked for with [`Shard::find_entries`].
    pub found: Vec<Found>,
    /// What a read of the scrub has found.
    pub scrubbed: Option<Scrubbed>,
}

/// What waits for a flush to become durable.
#[derive(Default)]
struct Held {
    messages: Vec<(GroupId, Message)>,
    /// The latest term and vote of a group that the flush holds, by their term.
    hard_states: BTreeMap<GroupId, Term>,
    entries: BTreeMap<GroupId, (Term, Index)>,
}

/// See the module documentation.
pub struct Shard {
    config: ShardConfig,
    journal: Journal,
    groups: BTreeMap<GroupId, Group>,
    /// Groups that wait for entries that were lost.
    repairs: BTreeMap<GroupId, Repair>,
    /// Promises that belong to what is staged in the journal and not yet flushed.
    staged: Held,
    /// Promises per flush in flight, oldest first.
    in_flight: VecDeque<(u64, Held)>,
    /// The highest entry of each group in each journal file that is still kept.
    file_ends: BTreeMap<u64, BTreeMap<GroupId, Index>>,
    catch_ups: BTreeMap<u64, CatchUp>,
    /// The entry with which the scrub goes on, or which it is reading.
    scrub_at: Option<(GroupId, Index)>,
    scrub_reading: bool,
    /// So many entries are to be read one by one.
    scrub_singly: usize,
    /// Entries that the scrub found damaged.
    damaged: BTreeSet<Location>,
    next_ticket: u64,
    idle_ticks: u32,
    mark_ticks: u32,
}

impl Shard {
    /// One unit of time has passed.
    pub fn tick<D: Disk>(&mut self, disk: &mut D) {
        /// Ticks without journal traffic after which the last flush is attested.
        const IDLE_TICKS: u32 = 4;
        /// Ticks after which the mark is made to say how far flushes are durable.
        const MARK_TICKS: u32 = 20;
        for group in self.groups.values_mut() {
            group.raft.tick();
        }
        self.idle_ticks = self.idle_ticks.saturating_add(1);
        if self.idle_ticks >= IDLE_TICKS {
            self.journal.mark_idle(disk);
        }
        self.mark_ticks += 1;
        if self.mark_ticks >= MARK_TICKS {
            self.mark_ticks = 0;
            self.journal.mark_durable(disk);
        }
    }

    /// The cluster's format allows to keep a mark beside the journal.
    pub fn keep_mark<D: Disk>(&mut self, disk: &mut D) {
        self.journal.keep_mark(disk);
    }

    /// Checkpoint `number` is durable.
    pub fn note_checkpoint<D: Disk>(&mut self, disk: &mut D, number: u64) {
        self.journal.note_checkpoint(disk, number);
    }

    /// Whose files those of this node are.
    pub fn file_owner(&self) -> FileOwner {
        self.config.journal.owner
    }

    /// Before a node ends: have the mark say how far its journal goes. True once it does.
    pub fn finish<D: Disk>(&mut self, disk: &mut D) -> bool {
        self.journal.mark_durable(disk);
        self.journal.in_flight() == 0 && self.journal.is_marked()
    }

    /// Whether a group of this node may lack entries that it acknowledged, and so neither votes nor leads.
    pub fn is_in_doubt(&self, group: GroupId) -> bool {
        self.journal.in_doubt(group).is_some()
    }

    /// A message from a peer. A message that makes no sense is logged and dropped: it is the sender's fault, and
    /// dropping is what a network may do at any time.
    pub fn step(&mut self, group: GroupId, message: Message) {
        let Some(target) = self.groups.get_mut(&group) else {
            if self.repairs.contains_key(&group) {
                // Like a node that is down: it waits for what it lost, and was told so once.
                return;
            }
            tracing::warn!(
                group = group.0,
                from = message.from.0,
                "peer message for a group that this shard does not have; look whether its node belongs to this cluster"
            );
            return;
        };
        let from = message.from.0;
        if let Err(error) = target.raft.step(message) {
            tracing::debug!(group = group.0, from, %error, "peer message refused");
        }
    }

    /// Propose an entry; it is committed when it comes out of a turn's `committed` with this term and index.
    pub fn propose(&mut self, group: GroupId, payload: Bytes) -> Result<(Term, Index), ProposeError> {
        match self.groups.get_mut(&group) {
            Some(target) => target.raft.propose(payload),
            None => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Ask for a read that sees everything acknowledged so far; answered through `reads` with the same context.
    pub fn read_index(&mut self, group: GroupId, ctx: u64) -> Result<(), ProposeError> {
        match self.groups.get_mut(&group) {
            Some(target) => target.raft.read_index(ctx),
            None => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// The control connection from `peer` broke.
    pub fn peer_lost(&mut self, peer: NodeId) {
        for group in self.groups.values_mut() {
            group.raft.peer_lost(peer);
        }
    }

    /// The control connection to `peer` stands again: where this node leads, it need not wait for the next heartbeat.
    pub fn peer_back(&mut self, peer: NodeId) {
        for group in self.groups.values_mut() {
            group.raft.peer_back(peer);
        }
    }

    /// Whether this node would rather not lead, for leaders to know.
    pub fn set_slow(&mut self, slow: bool) {
        self.groups.values_mut().for_each(|group| group.raft.set_slow(slow));
    }

    /// Hand leadership of `group` to `to`. It is under way if there is no error.
    pub fn transfer_leadership(&mut self, group: GroupId, to: NodeId) -> Result<(), TransferError> {
        match self.groups.get_mut(&group) {
            Some(target) => target.raft.transfer_leadership(to),
            None => Err(TransferError::NotLeader { leader: None }),
        }
    }

    /// Whether `group` is being handed over by this node.
    pub fn is_transferring(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|found| found.raft.is_transferring())
    }

    /// Begin to change the members of `group` to `target`.
    pub fn propose_configuration(
        &mut self,
        group: GroupId,
        target: Configuration,
    ) -> Result<(Term, Index), ProposeError> {
        match self.groups.get_mut(&group) {
            Some(found) => found.raft.propose_configuration(target),
            None => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// The members of a group at its applied index, for a checkpoint.
    pub fn applied_configuration(&self, group: GroupId) -> Option<&Configuration> {
        match self.repairs.get(&group) {
            Some(repair) => repair.start.configuration.as_ref(),
            None => self.groups.get(&group).map(|found| found.raft.applied_configuration()),
        }
    }

    /// Whether the journal can take a flush now. While it cannot, proposals are better collected than made.
    pub fn can_flush(&self) -> bool {
        self.journal.can_flush()
    }

    /// Do everything that is ready: step groups, flush the journal, collect what must leave.
    pub fn turn<D: Disk>(&mut self, disk: &mut D, out: &mut Outputs) -> Result<(), ShardError> {
        let ids: Vec<GroupId> = self.groups.iter().filter(|(_, g)| g.raft.has_ready()).map(|(id, _)| *id).collect();
        for id in ids {
            self.take_ready(disk, id, out);
        }
        self.flush(disk, out);
        Ok(())
    }

    fn take_ready<D: Disk>(&mut self, disk: &mut D, id: GroupId, out: &mut Outputs) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let Ready {
            hard_state,
            entries,
            messages,
            messages_after_durable,
            committed,
            role_change,
            read_states,
            reads_failed,
            entries_wanted,
            state_needed,
            stepped_aside,
            ..
        } = group.raft.take_ready();
        if let Some(state) = hard_state.filter(|_| !mutated(Mutation::ForgetVote)) {
            self.journal.append_hard_state(id, state.term, state.vote.map(|v| v.0));
            self.staged.hard_states.insert(id, state.term);
        }
        if let Some(first) = entries.first().filter(|first| first.index < group.locations.end()) {
            // What is overwritten must not keep its journal files from being freed.
            for ends in self.file_ends.values_mut() {
                if let Some(end) = ends.get_mut(&id).filter(|end| **end >= first.index) {
                    *end = first.index - 1;
                }
            }
        }
        for entry in &entries {
            let place = self.journal.append_entry(id, entry.term, entry.index, entry.kind as u8, &entry.payload);
            group.locations.put(entry.index, place);
            let end = self.file_ends.entry(place.file).or_default().entry(id).or_default();
            *end = (*end).max(entry.index);
            self.staged.entries.insert(id, (entry.term, entry.index));
            out.durable.extend(mutated(Mutation::LeaderAcksEarly).then_some((id, entry.term, entry.index)));
        }
        let acknowledgements = messages_after_durable.into_iter().map(|m| (id, m));
        match mutated(Mutation::AcknowledgeEarly) {
            true => out.messages.extend(acknowledgements),
            false => self.staged.messages.extend(acknowledgements),
        }
        out.messages.extend(messages.into_iter().map(|m| (id, m)));
        out.committed.extend(committed.into_iter().map(|e| (id, e)));
        out.roles.extend(role_change.map(|change| (id, change)));
        out.reads.extend(read_states.into_iter().map(|r| (id, r.ctx, r.index)));
        out.reads_failed.extend(reads_failed.into_iter().map(|ctx| (id, ctx)));
        out.states_needed.extend(state_needed.map(|index| (id, index)));
        out.stepped_aside.extend(stepped_aside.map(|index| (id, index)));
        for wanted in entries_wanted {
            self.load_entries(disk, id, wanted);
        }
    }

    /// Send what is staged on its way to the disk, or keep it until the flushes in flight leave room.
    fn flush<D: Disk>(&mut self, disk: &mut D, out: &mut Outputs) {
        if self.journal.staged_bytes() > 0 {
            let bytes = self.journal.staged_bytes();
            if let Some(number) = self.journal.flush(disk) {
                out.flushes_started.push((number, bytes));
                self.idle_ticks = 0;
                self.in_flight.push_back((number, std::mem::take(&mut self.staged)));
            }
        } else if !self.staged.messages.is_empty() {
            // Promises about what earlier flushes hold: they wait for the newest of those, or for nothing.
            let held = std::mem::take(&mut self.staged);
            match self.in_flight.back_mut() {
                Some((_, last)) => last.messages.extend(held.messages),
                None => out.messages.extend(held.messages),
            }
        }
    }

    /// A disk operation of the journal has finished.
    pub fn on_completion<D: Disk>(
        &mut self,
        disk: &mut D,
        completion: Completion,
        out: &mut Outputs,
    ) -> Result<(), ShardError> {
        if let Some(read) = self.journal.on_completion(disk, completion)? {
            self.entries_loaded(read.ticket, read.result, out);
        }
        let durable = self.journal.durable();
        out.flushes_durable = durable;
        self.finish_repairs(durable)?;
        while self.in_flight.front().is_some_and(|(number, _)| *number <= durable) {
            let Some((_, held)) = self.in_flight.pop_front() else { break };
            out.messages.extend(held.messages);
            for (id, term) in held.hard_states {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.raft.on_hard_state_durable(term);
                }
            }
            for (id, (term, index)) in held.entries {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.raft.on_durable(term, index);
                }
                out.durable.push((id, term, index));
            }
        }
        self.trust_again(disk);
        Ok(())
    }

    /// Note the groups that were in doubt and are not any more.
    fn trust_again<D: Disk>(&mut self, disk: &mut D) {
        for (id, group) in &self.groups {
            if self.journal.in_doubt(*id).is_some() && !group.raft.is_in_doubt() {
                self.journal.trust(disk, *id);
                tracing::info!(
                    group = id.0,
                    "the group has all that was acknowledged here again; it votes from now on"
                );
            }
        }
    }

    /// Whether a checkpoint of what is applied would allow to give up damaged files of the journal.
    pub fn can_give_up_damage(&self, applied: &BTreeMap<GroupId, Index>) -> bool {
        self.damaged.first().is_some_and(|place| place.file < self.journal_start(applied))
    }

    /// New files of the journal leave so many bytes free.
    pub fn save_space(&mut self, keep_free: u64) {
        self.journal.save_space(keep_free);
    }

    /// Look whether a disk that was full has space again.
    pub fn retry_space<D: Disk>(&mut self, disk: &mut D) {
        self.journal.retry_space(disk);
    }

    /// Keep entries in memory within the budget. Only what is applied and durable here can go.
    pub fn release_memory(&mut self) {
        let share = self.config.entry_cache_bytes / self.groups.len().max(1);
        for group in self.groups.values_mut() {
            let mut excess = group.raft.memory_bytes().saturating_sub(share);
            let mut index = group.raft.first_in_memory();
            while excess > 0 {
                let Some(place) = group.locations.get(index) else { break };
                excess = excess.saturating_sub(place.len as usize);
                index += 1;
            }
            group.raft.release_memory(index.saturating_sub(1));
        }
    }

    /// The first journal file that holds an entry beyond `applied` of its group: what a start cannot do without.
    pub fn journal_needed(&self, applied: &BTreeMap<GroupId, Index>) -> u64 {
        let mut first = self.journal.first_file();
        while first < self.journal.current_file() && self.is_covered(first, applied) {
            first += 1;
        }
        first
    }

    /// Whether all entries of a journal file are applied.
    fn is_covered(&self, file: u64, applied: &BTreeMap<GroupId, Index>) -> bool {
        let within = |(group, end): (&GroupId, &Index)| applied.get(group).is_some_and(|index| end <= index);
        self.file_ends.get(&file).is_none_or(|ends| ends.iter().all(within))
    }

    /// The first journal file that is still needed once a checkpoint covers the entries up to `applied` of each group.
    /// Files that only lagging followers could want are kept up to the configured number of bytes, and not if they are
    /// damaged. A checkpoint names this file, so that recovery never asks for one that is gone.
    pub fn journal_start(&self, applied: &BTreeMap<GroupId, Index>) -> u64 {
        let mut first = self.journal.first_file();
        let mut bytes = self.journal.bytes();
        let damaged = self.damaged.last().map_or(0, |place| place.file + 1);
        while (bytes > self.config.journal_retain_bytes || first < damaged)
            && first < self.journal.current_file()
            && self.is_covered(first, applied)
        {
            first += 1;
            bytes = bytes.saturating_sub(self.config.journal.file_bytes);
        }
        first
    }

    /// Bytes of the journal that are sure to be kept for followers that lag: beside the file that is being written, and those
    /// that wait for their turn.
    pub fn journal_retained(&self) -> u64 {
        /// Of both.
        const FILES: u64 = 5;
        self.config.journal_retain_bytes.saturating_sub(FILES * self.config.journal.file_bytes)
    }

    /// Bytes of the journal, in whole files, from the entry at `index` of a group up to its end; 0 if there is no such entry.
    pub fn journal_behind(&self, group: GroupId, index: Index) -> u64 {
        let place = self.groups.get(&group).and_then(|found| found.locations.get(index));
        let files = place.map_or(0, |place| self.journal.current_file().saturating_sub(place.file));
        files.saturating_sub(1).saturating_mul(self.config.journal.file_bytes)
    }

    /// A checkpoint that needs no journal file before `first` is durable: free them. Gives back how many damaged entries
    /// have gone with them.
    pub fn release_journal<D: Disk>(&mut self, disk: &mut D, first: u64) -> u64 {
        let later = self.file_ends.split_off(&first);
        for ends in std::mem::replace(&mut self.file_ends, later).into_values() {
            for (id, end) in ends {
                if let Some(group) = self.groups.get_mut(&id) {
                    group.raft.compact(end);
                    group.locations.forget(end);
                }
            }
        }
        if first > self.journal.first_file() {
            self.journal.release(disk, first);
        }
        let known = self.damaged.len();
        self.damaged.retain(|place| place.file >= first);
        (known - self.damaged.len()) as u64
    }

    /// The entries of a group that are in memory, committed or not: after the start, those that no checkpoint has.
    pub fn entries_in_memory(&self, group: GroupId) -> impl Iterator<Item = &Entry> {
        self.groups.get(&group).into_iter().flat_map(|found| found.raft.entries_in_memory())
    }

    /// The state of a group, for status, metrics and readiness.
    pub fn status(&self, group: GroupId) -> Option<Status> {
        self.groups.get(&group).map(|g| g.raft.status())
    }

    /// Whether this node leads `group`.
    pub fn is_leader(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|g| g.raft.is_leader())
    }

    /// Who leads `group`, as far as this node knows.
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        self.groups.get(&group).and_then(|g| g.raft.leader())
    }

    /// The groups of this shard, in order, those that wait for lost entries included.
    pub fn group_ids(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.config.groups.iter().copied()
    }

    /// The term and vote of a group, for a checkpoint.
    pub fn hard_state(&self, group: GroupId) -> HardState {
        match self.repairs.get(&group) {
            Some(repair) => repair.hard_state,
            None => self.groups.get(&group).map(|g| g.raft.hard_state()).unwrap_or_default(),
        }
    }

    /// The shared journal, for its figures.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }
}
