//! Groups whose log has holes: entries that this node once had on disk, and whose bytes are damaged.
//!
//! Such an entry may have been acknowledged, so the node must neither forget that it had it nor vouch for it. Until the
//! holes are filled the group takes no part in consensus on this node: it is to the others as one that is down. What it
//! lacks it asks of its peers, by index and term, which name an entry for good. Three things end the wait:
//!
//! - A peer has the entry. Once all holes are filled, the log from the first one on is written again, and when that is
//!   durable the group goes on.
//! - A peer has committed another entry at that index or before it: then this one never was, nor was anything after it.
//! - A peer has compacted the entry away: then the group's state is fetched instead.
//!
//! Source: Alagappan et al., *Protocol-Aware Recovery for Consensus-Based Storage*, FAST 2018. Unlike there, a damaged
//! replica does not vote meanwhile: that costs availability only while its peers cannot be reached either.

use crate::shard::{Found, GroupStart, MAX_FOUND_BYTES, within};
use lnc_log::journal::{GroupId, Journal, RecoveredEntry};
use lnc_raft::{Entry, EntryKind, HardState, Index, NodeId, Term};
use std::collections::BTreeMap;

/// A group that waits for what it lost.
pub(crate) struct Repair {
    pub(crate) start: GroupStart,
    pub(crate) hard_state: HardState,
    /// Contiguous; those in `missing` have no payload.
    pub(crate) entries: Vec<RecoveredEntry>,
    /// The lost entries.
    missing: BTreeMap<Index, Term>,
    /// The first entry that must be written again.
    pub(crate) rewrite_from: Index,
    /// The flush that holds what was written again.
    pub(crate) flush: Option<u64>,
}

/// What an answer of a peer led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// Something is still missing.
    Waiting,
    /// Nothing is missing any more.
    Whole,
    /// The peers have let go of this entry: the state is needed.
    StateNeeded(Index),
}

impl Repair {
    /// `None` if nothing beyond the applied index is lost.
    pub(crate) fn new(start: &GroupStart, hard_state: HardState, entries: &[RecoveredEntry]) -> Option<Self> {
        let missing: BTreeMap<Index, Term> = entries
            .iter()
            .filter(|entry| entry.damaged && entry.index > start.applied_index)
            .map(|entry| (entry.index, entry.term))
            .collect();
        let rewrite_from = *missing.keys().next()?;
        let (start, entries) = (start.clone(), entries.to_vec());
        Some(Self { start, hard_state, entries, missing, rewrite_from, flush: None })
    }

    /// Some of what is missing, to ask for.
    pub(crate) fn wanted(&self, most: usize) -> Vec<(Index, Term)> {
        self.missing.iter().take(most).map(|(index, term)| (*index, *term)).collect()
    }

    /// What this node, which has lost entries itself, has of those that a peer lost: between them they may have all.
    pub(crate) fn find(&self, group: GroupId, to: NodeId, wanted: &[(Index, Term)]) -> Found {
        let has = |entry: &&RecoveredEntry| {
            !entry.damaged && entry.index > self.start.applied_index && wanted.contains(&(entry.index, entry.term))
        };
        let entry = |entry: &RecoveredEntry| {
            let kind = EntryKind::try_from(entry.kind).ok()?;
            Some(Entry { term: entry.term, index: entry.index, kind, payload: entry.payload.clone() })
        };
        Found {
            group,
            to,
            commit: self.start.applied_index,
            committed: Vec::new(),
            entries: within(self.entries.iter().filter(has).filter_map(entry), Entry::size, MAX_FOUND_BYTES),
            first_index: self.entries.first().map_or(self.start.applied_index + 1, |first| first.index),
        }
    }

    pub(crate) fn missing(&self) -> usize {
        self.missing.len()
    }

    fn drop_from(&mut self, index: Index) {
        self.entries.retain(|entry| entry.index < index);
        self.missing.retain(|lost, _| *lost < index);
    }

    /// Take an answer in.
    pub(crate) fn answer(
        &mut self,
        commit: Index,
        committed: &[(Index, Term)],
        entries: Vec<Entry>,
        first_index: Index,
    ) -> Answered {
        for (index, term) in committed.iter().filter(|(index, _)| *index <= commit) {
            // Also where this node's entry is whole: what comes after one that never was committed never was either, and
            // on an idle cluster nothing else may ever be committed at a lost index.
            let own = self.entries.iter().find(|own| own.index == *index && own.index > self.start.applied_index);
            if own.is_some_and(|own| own.term != *term) {
                tracing::info!(
                    index,
                    "an entry never was committed: the log ends before it, without what was lost behind it"
                );
                self.drop_from(*index);
            }
        }
        for entry in entries {
            if self.missing.get(&entry.index) != Some(&entry.term) {
                continue;
            }
            let own = self.entries.iter_mut().find(|own| own.index == entry.index && own.term == entry.term);
            if let Some(own) = own {
                own.kind = entry.kind as u8;
                own.payload = entry.payload;
                own.damaged = false;
                self.missing.remove(&entry.index);
            }
        }
        match self.missing.keys().next() {
            None => Answered::Whole,
            Some(lost) if *lost < first_index && *lost <= commit => Answered::StateNeeded(*lost),
            Some(_) => Answered::Waiting,
        }
    }

    /// Write the last entry again, so that the journal has nothing after it.
    pub(crate) fn rewrite_last(&mut self, journal: &mut Journal, id: GroupId) {
        if let Some(last) = self.entries.last_mut() {
            last.location = journal.append_entry(id, last.term, last.index, last.kind, &last.payload);
        }
    }

    /// The entries to write again.
    pub(crate) fn rewritten(&self) -> impl Iterator<Item = &RecoveredEntry> {
        self.entries.iter().filter(|entry| entry.index >= self.rewrite_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lnc_log::journal::Location;

    const GROUP: GroupId = GroupId(1);

    fn entry(index: Index, term: Term, len: usize, damaged: bool) -> RecoveredEntry {
        let location = Location { file: 1, position: index, len: len as u32, sequence: index };
        let payload = if damaged { Bytes::new() } else { Bytes::from(vec![7; len]) };
        RecoveredEntry { index, term, kind: EntryKind::Normal as u8, payload, damaged, location }
    }

    fn repair(entries: &[RecoveredEntry]) -> Repair {
        let hard_state = HardState { term: 9, vote: None };
        Repair::new(&GroupStart::default(), hard_state, entries).expect("something is missing")
    }

    /// The others went on without what this node had written last, and nothing more comes after it.
    #[test]
    fn a_lost_tail_that_never_was_committed_ends_where_the_others_went_on() {
        let mut repair = repair(&[entry(1, 1, 9, false), entry(2, 1, 9, false), entry(3, 1, 9, true)]);
        assert_eq!(repair.answer(1, &[(1, 1)], Vec::new(), 1), Answered::Waiting, "it may be committed yet");
        assert_eq!(repair.answer(2, &[(2, 2)], Vec::new(), 1), Answered::Whole);
        assert_eq!(repair.entries.iter().map(|entry| entry.index).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn an_answer_to_a_peer_is_bounded_in_bytes_and_has_one_entry_at_least() {
        let len = MAX_FOUND_BYTES / 3;
        let entries: Vec<_> =
            (1..=16).map(|index| entry(index, 1, len, false)).chain([entry(17, 1, 9, true)]).collect();
        let wanted: Vec<_> = (1..=16).map(|index| (index, 1)).collect();
        let found = repair(&entries).find(GROUP, NodeId(2), &wanted);
        assert_eq!(found.entries.len(), 2);
        let large = [entry(1, 1, 2 * MAX_FOUND_BYTES, false), entry(2, 1, 9, true)];
        assert_eq!(repair(&large).find(GROUP, NodeId(2), &wanted).entries.len(), 1);
    }
}
