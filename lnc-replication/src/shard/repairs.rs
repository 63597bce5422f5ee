//! Groups whose log has lost entries to damage: what they need from peers, and how they come back once it is there.

use super::{Found, Outputs, Shard, ShardError};
use crate::repair::{Answered, Repair};
use lnc_log::journal::GroupId;
use lnc_raft::{Index, Term};

impl Shard {
    /// What groups have lost and need from peers: index and term of each entry, `most` of each group at most.
    pub fn wanted_entries(&self, most: usize) -> Vec<(GroupId, Vec<(Index, Term)>)> {
        let waiting = self.repairs.iter().filter(|(_, repair)| repair.flush.is_none());
        waiting.map(|(id, repair)| (*id, repair.wanted(most))).filter(|(_, wanted)| !wanted.is_empty()).collect()
    }

    /// How many entries a group has lost and not got back yet; None if it takes part in consensus.
    pub fn lost_entries(&self, group: GroupId) -> Option<usize> {
        self.repairs.get(&group).map(Repair::missing)
    }

    /// A peer has answered what it has of entries that this node lost.
    pub fn entries_found(&mut self, found: Found, out: &mut Outputs) {
        let Found { group, commit, committed, entries, first_index, .. } = found;
        let Some(repair) = self.repairs.get_mut(&group).filter(|repair| repair.flush.is_none()) else { return };
        match repair.answer(commit, &committed, entries, first_index) {
            Answered::Waiting => {}
            Answered::StateNeeded(index) => out.states_needed.push((group, index)),
            Answered::Whole => self.rewrite(group),
        }
    }

    /// Write the log of a group that is whole again, from its first hole on. It goes on once that is durable.
    fn rewrite(&mut self, id: GroupId) {
        let Some(repair) = self.repairs.get_mut(&id) else { return };
        let from = repair.rewrite_from;
        for entry in repair.entries.iter_mut().filter(|entry| entry.index >= from) {
            entry.location = self.journal.append_entry(id, entry.term, entry.index, entry.kind, &entry.payload);
        }
        if repair.rewritten().next().is_none() {
            // The hole was the end of the log, and what was there never counted. That must not be found again.
            let last = repair.entries.last().map(|entry| (entry.term, entry.index));
            let (term, index) = last.unwrap_or((repair.start.applied_term, repair.start.applied_index));
            match index == repair.start.applied_index {
                true => self.journal.append_checkpoint(id, term, index),
                false => repair.rewrite_last(&mut self.journal, id),
            }
        }
        repair.flush = Some(self.journal.next_flush());
    }

    /// Start the groups whose logs were written again up to flush `durable`.
    pub(super) fn finish_repairs(&mut self, durable: u64) -> Result<(), ShardError> {
        let done = |repair: &Repair| repair.flush.is_some_and(|flush| flush <= durable);
        let whole: Vec<GroupId> = self.repairs.iter().filter(|(_, repair)| done(repair)).map(|(id, _)| *id).collect();
        for id in whole {
            let Some(Repair { start, hard_state, entries, .. }) = self.repairs.remove(&id) else { continue };
            let group = self.restore(id, start, hard_state, entries)?;
            self.groups.insert(id, group);
            tracing::info!(group = id.0, "what was lost is here again; the group takes part from now on");
        }
        Ok(())
    }
}
