//! Groups whose log has holes: entries that this node once had on disk, and whose bytes are damaged.
//!
//! Such an entry may have been acknowledged, so the node must neither forget that it had it nor vouch for it. Until the
//! holes are filled the group takes no part in consensus on this node: it is to the others as one that is down. What it
//! lacks it asks of its peers, by index and term, which name an entry for good. Three things end the wait:
//!
//! - A peer has the entry. Once all holes are filled, the log from the first one on is written again, and when that is
//!   durable the group goes on.
//! - A peer has committed another entry at that index: then this one never was, nor was anything after it.
//! - A peer has compacted the entry away: then the group's state is fetched instead.
//!
//! Source: Alagappan et al., *Protocol-Aware Recovery for Consensus-Based Storage*, FAST 2018. Unlike there, a damaged
//! replica does not vote meanwhile: that costs availability only while its peers cannot be reached either.

use crate::shard::{Found, GroupStart};
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
            entries: self.entries.iter().filter(has).filter_map(entry).collect(),
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
            if self.missing.get(index).is_some_and(|own| own != term) {
                tracing::info!(index, "a lost entry never was committed: the log ends before it");
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
