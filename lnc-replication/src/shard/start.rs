//! The start of a shard: the journal is recovered, and every group from that and its checkpoint.

use super::{GroupStart, Held, Shard, ShardConfig, ShardError};
use crate::group::{Group, Locations};
use crate::repair::Repair;
use lnc_log::disk::Disk;
use lnc_log::journal::{Covered, GroupId, Journal, JournalStart, Recovered, RecoveredEntry, RecoveredGroup};
use lnc_mutation::{Mutation, mutated};
use lnc_raft::{Config, Configuration, Entry, EntryKind, HardState, NodeId, Raft, Restored};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

impl Shard {
    /// Recover the journal and start every group from its checkpoint (`starts`; a group without one starts empty). The
    /// checkpoint names the first journal file that is kept, and the first that holds what it does not have.
    pub fn open<D: Disk>(
        config: ShardConfig,
        disk: &mut D,
        (journal_start, journal_needed): (JournalStart, JournalStart),
        starts: &BTreeMap<GroupId, GroupStart>,
    ) -> Result<Self, ShardError> {
        let covered = |start: &GroupStart| {
            let term = start.hard_state.term.max(start.applied_term);
            Covered { index: start.applied_index, term, applied_term: start.applied_term }
        };
        let covered = starts.iter().map(|(group, start)| (*group, covered(start))).collect();
        let (journal, Recovered { mut groups, torn_tail, damage, lost_tail, .. }) =
            Journal::open_above(disk, config.journal.clone(), journal_start, journal_needed, &covered)?;
        if let Some(lost) = &lost_tail {
            tracing::error!(
                %lost,
                "the end of the journal is lost, and with it what this node acknowledged: it neither votes nor leads until \
                 a leader that was elected without it has brought it up to date; look at the disk"
            );
        }
        for damage in damage {
            tracing::error!(%damage, "the journal is damaged; what was lost there is fetched from the other nodes");
        }
        if let Some(cut) = torn_tail.filter(|_| lost_tail.is_none()) {
            tracing::warn!(
                ?cut,
                "the journal ended in an unfinished flush, as a crash leaves it; it was cut, and nothing is to be done"
            );
        }
        let mut shard = Self {
            journal,
            groups: BTreeMap::new(),
            repairs: BTreeMap::new(),
            staged: Held::default(),
            in_flight: VecDeque::new(),
            file_ends: BTreeMap::new(),
            catch_ups: BTreeMap::new(),
            scrub_at: None,
            scrub_reading: false,
            scrub_singly: 0,
            damaged: BTreeSet::new(),
            next_ticket: 0,
            idle_ticks: 0,
            mark_ticks: 0,
            config,
        };
        for id in shard.config.groups.clone() {
            let start = starts.get(&id).cloned().unwrap_or_default();
            let recovered = groups.remove(&id).unwrap_or_default();
            let hard_state = match recovered.hard_state {
                Some((term, vote)) if term >= start.hard_state.term => HardState { term, vote: vote.map(NodeId) },
                _ => start.hard_state,
            };
            if recovered.hard_state.is_none_or(|(term, _)| term < hard_state.term) && hard_state.term > 0 {
                // It came with the checkpoint of a peer; whatever is promised in it is in the journal then.
                shard.journal.append_hard_state(id, hard_state.term, hard_state.vote.map(|vote| vote.0));
            }
            shard.refuse_alone(id, &start)?;
            let mut entries = shard.relevant(id, &start, recovered);
            let lost = |entry: &RecoveredEntry| entry.damaged && entry.index > start.applied_index;
            if let Some(at) = entries.iter().position(lost).filter(|_| mutated(Mutation::VoteWhileLacking)) {
                entries.truncate(at);
            }
            if shard.journal.in_doubt(id).is_some() {
                tracing::warn!(
                    group = id.0,
                    "the group may lack what was acknowledged here; it waits for a leader of another node"
                );
            }
            match Repair::new(&start, hard_state, &entries) {
                Some(repair) => {
                    tracing::error!(
                        group = id.0,
                        entries = repair.missing(),
                        "entries are lost; asking the other nodes"
                    );
                    for entry in &repair.entries {
                        shard.file_ends.entry(entry.location.file).or_default().insert(id, entry.index);
                    }
                    shard.repairs.insert(id, repair);
                }
                None => {
                    let group = shard.restore(id, start, hard_state, entries)?;
                    shard.groups.insert(id, group);
                }
            }
        }
        let unknown = groups.keys().chain(starts.keys()).find(|group| !shard.config.groups.contains(group));
        match unknown {
            Some(group) => Err(ShardError::UnknownGroup { group: group.0, configured: shard.config.groups.len() }),
            None => Ok(shard),
        }
    }

    /// A node that is a group's only voter has nobody who could have what it lost.
    fn refuse_alone(&self, id: GroupId, start: &GroupStart) -> Result<(), ShardError> {
        let founding = || Configuration::of(self.config.founders.iter().copied());
        let voters = start.configuration.clone().unwrap_or_else(founding).voters;
        match self.journal.in_doubt(id).is_some() && voters == BTreeSet::from([self.config.node]) {
            true => Err(ShardError::Lost { group: id.0 }),
            false => Ok(()),
        }
    }

    /// The entries that follow on the checkpoint, or lead up to it without a hole.
    fn relevant(&mut self, id: GroupId, start: &GroupStart, recovered: RecoveredGroup) -> Vec<RecoveredEntry> {
        let mut entries = recovered.entries;
        // A log that ends below the checkpoint, or has another entry where the checkpoint ends, is not the one that the
        // checkpoint is of: the state came from a peer.
        let same = |entry: &RecoveredEntry| entry.index != start.applied_index || entry.term == start.applied_term;
        let covered = entries.last().is_some_and(|last| last.index >= start.applied_index);
        let covered = covered || mutated(Mutation::KeepReplacedLog);
        if !covered || !entries.iter().all(same) {
            if !entries.is_empty() {
                // Whatever is appended from now on must not be taken for the end of what was there before.
                self.journal.append_checkpoint(id, start.applied_term, start.applied_index);
            }
            entries.clear();
        }
        // The bytes of what the checkpoint covers are no loss: followers that need them get the state.
        let lost = |entry: &RecoveredEntry| entry.damaged && entry.index <= start.applied_index;
        if let Some(last) = entries.iter().rposition(lost) {
            entries.drain(..last);
        }
        entries
    }

    pub(super) fn restore(
        &mut self,
        id: GroupId,
        start: GroupStart,
        hard_state: HardState,
        entries: Vec<RecoveredEntry>,
    ) -> Result<Group, ShardError> {
        // Entries that the checkpoint covers are kept for followers that lag; the oldest of them only lends its term.
        let (snapshot_index, snapshot_term) = match entries.first() {
            Some(first) if first.index > start.applied_index + 1 => {
                return Err(ShardError::Hole { group: id.0, found: first.index, applied: start.applied_index });
            }
            Some(first) if first.index <= start.applied_index => (first.index, first.term),
            _ => (start.applied_index, start.applied_term),
        };
        let mut locations = Locations::default();
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            let ends = self.file_ends.entry(entry.location.file).or_default();
            ends.insert(id, entry.index);
            if entry.index <= snapshot_index {
                continue;
            }
            locations.put(entry.index, entry.location);
            let kind = EntryKind::try_from(entry.kind).map_err(|_| ShardError::UnknownEntry {
                group: id.0,
                index: entry.index,
                kind: entry.kind,
            })?;
            kept.push(Entry { term: entry.term, index: entry.index, kind, payload: entry.payload });
        }
        let seed = self.config.seed ^ (u64::from(id.0) << 32) ^ self.config.node.0.rotate_left(17);
        let config = Config {
            election_ticks: self.config.election_ticks,
            heartbeat_ticks: self.config.heartbeat_ticks,
            election_rpc_ticks: self.config.election_rpc_ticks,
            election_round_ticks: self.config.election_round_ticks,
            max_append_bytes: self.config.max_append_bytes,
            max_in_flight_bytes: self.config.max_in_flight_bytes,
            ..Config::new(self.config.node, Configuration::of(self.config.founders.iter().copied()), seed)
        };
        let restored = Restored {
            hard_state,
            snapshot_index,
            snapshot_term,
            applied_index: start.applied_index,
            configuration: start.configuration,
            entries: kept,
            in_doubt: self.journal.in_doubt(id).unwrap_or_default(),
        };
        let mut raft = Raft::new(config, restored).map_err(|error| ShardError::Config { group: id.0, error })?;
        raft.release_memory(start.applied_index);
        Ok(Group { raft, locations })
    }
}
