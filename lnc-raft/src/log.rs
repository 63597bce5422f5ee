//! One node's log: what is in memory, and how far it is written, durable, committed and applied.
//!
//! ```text
//! boundary  first_index      first_in_memory        applied   durable / commit    taken      last
//!    |          |                   |                  |        |         |         |          |
//!  gone from    only in the         payloads in memory ........................................
//!  the journal  journal
//! ```
//!
//! `taken` is how far entries were handed out for writing. Terms of all entries from the boundary on are known, as
//! runs: there are as many as there were terms, not as many as there are entries.

use std::collections::VecDeque;

use lnc_mutation::{Mutation, mutated};

use crate::config::Restored;
use crate::message::{Entry, Index, Term};

/// Entries from `start` to the next run's start share a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: Index,
    term: Term,
}

/// Entries that were cut off; `first..=last`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Replaced {
    first: Index,
    last: Index,
    term: Term,
}

#[derive(Debug)]
pub(crate) struct Log {
    /// Never empty; starts and terms strictly ascend; the first run starts at the boundary, `first_index - 1`.
    runs: VecDeque<Run>,
    /// Contiguous, up to `last`.
    entries: VecDeque<Entry>,
    last: Index,
    taken: Index,
    durable: Index,
    commit: Index,
    applied: Index,
    /// The sizes of `entries`.
    bytes: usize,
    /// Cut off since a later entry was last known durable; see [`Log::mark_durable`].
    replaced: Vec<Replaced>,
}

impl Log {
    /// `restored` has been validated.
    pub(crate) fn new(restored: Restored) -> Self {
        let boundary = restored.snapshot_index;
        let mut log = Self {
            runs: VecDeque::from([Run { start: boundary, term: restored.snapshot_term }]),
            entries: VecDeque::with_capacity(restored.entries.len()),
            last: boundary,
            taken: boundary,
            durable: boundary,
            commit: restored.applied_index,
            applied: restored.applied_index,
            bytes: 0,
            replaced: Vec::new(),
        };
        for entry in restored.entries {
            log.append(entry);
        }
        log.taken = log.last;
        log.durable = log.last;
        log.check();
        log
    }

    pub(crate) fn last_index(&self) -> Index {
        self.last
    }

    pub(crate) fn last_term(&self) -> Term {
        self.runs[self.runs.len() - 1].term
    }

    pub(crate) fn durable(&self) -> Index {
        self.durable
    }

    pub(crate) fn commit(&self) -> Index {
        self.commit
    }

    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    pub(crate) fn in_memory(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The last index that the journal no longer holds; its term is still known.
    pub(crate) fn boundary(&self) -> Index {
        self.runs[0].start
    }

    pub(crate) fn first_index(&self) -> Index {
        self.boundary() + 1
    }

    pub(crate) fn first_in_memory(&self) -> Index {
        self.last + 1 - self.entries.len() as Index
    }

    /// The position in `runs` of the run that holds `index`, which lies between the boundary and the last index.
    fn run_of(&self, index: Index) -> usize {
        self.runs.partition_point(|run| run.start <= index) - 1
    }

    /// The term of the entry at `index`; None below the boundary and beyond the last index.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        (self.boundary()..=self.last).contains(&index).then(|| self.runs[self.run_of(index)].term)
    }

    /// The first index, as far as known, of the term that `index` has. Same range as [`Log::term_at`].
    pub(crate) fn run_start(&self, index: Index) -> Index {
        self.runs[self.run_of(index)].start
    }

    /// Whether a log that ends in `(last_index, last_term)` holds all that this one may have committed.
    pub(crate) fn is_covered_by(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last)
    }

    /// Adds the next entry.
    pub(crate) fn append(&mut self, entry: Entry) {
        assert!(entry.index == self.last + 1, "append of {} after {}", entry.index, self.last);
        assert!(entry.term >= self.last_term(), "append of term {} after {}", entry.term, self.last_term());
        if entry.term > self.last_term() {
            self.runs.push_back(Run { start: entry.index, term: entry.term });
        }
        self.last = entry.index;
        self.bytes += entry.size();
        self.entries.push_back(entry);
    }

    /// Cuts off everything after `index`. The caller appends what replaces it in the same turn.
    pub(crate) fn truncate_after(&mut self, index: Index) {
        assert!(index >= self.commit, "truncation after {index} would cut committed entries up to {}", self.commit);
        let kept = self.entries.len() - (self.last - index) as usize;
        for entry in self.entries.drain(kept..) {
            self.bytes -= entry.size();
            match self.replaced.last_mut() {
                Some(r) if r.term == entry.term && r.last + 1 == entry.index => r.last = entry.index,
                _ => self.replaced.push(Replaced { first: entry.index, last: entry.index, term: entry.term }),
            }
        }
        while self.runs.back().is_some_and(|run| run.start > index) {
            self.runs.pop_back();
        }
        self.last = index;
        self.taken = self.taken.min(index);
        self.durable = self.durable.min(index);
    }

    /// `(term, index)` and all before it is on stable storage; whether that was news.
    ///
    /// A report may be late: the entry may have been cut off, and even appended again by a later leader, in which
    /// case the report speaks of the first copy, which the disk may no longer hold. Such a report is not believed.
    /// The second copy is covered by the first report for an entry that was never cut off, which exists soon: the
    /// leader that brought the copy appends an entry of its own term.
    pub(crate) fn mark_durable(&mut self, term: Term, index: Index) -> bool {
        if index <= self.durable || index > self.taken || self.term_at(index) != Some(term) {
            return false;
        }
        if self.replaced.iter().any(|r| r.term == term && (r.first..=r.last).contains(&index)) {
            return false;
        }
        // What was cut off above `index` may still be reported late; what was cut off at or below it was replaced
        // by entries written before this one, hence durable.
        self.replaced.retain(|r| r.last > index);
        self.durable = index;
        true
    }

    /// Raises the commit index to `index`, if that is higher; whether it was.
    pub(crate) fn advance_commit(&mut self, index: Index) -> bool {
        if index <= self.commit {
            return false;
        }
        assert!(index <= self.last, "commit of {index} beyond the last index {}", self.last);
        self.commit = index;
        true
    }

    /// Entries not yet handed out for writing.
    pub(crate) fn take_unwritten(&mut self) -> Vec<Entry> {
        let entries = self.range(self.taken + 1, self.last);
        self.taken = self.last;
        entries
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        self.taken < self.last
    }

    /// Entries not yet handed out for applying that are both committed and durable here.
    pub(crate) fn take_committed(&mut self) -> Vec<Entry> {
        if mutated(Mutation::ApplyUncommitted) {
            self.commit = self.durable.max(self.commit);
        }
        let upto = self.commit.min(self.durable);
        let entries = self.range(self.applied + 1, upto);
        self.applied = self.applied.max(upto);
        self.check();
        entries
    }

    pub(crate) fn has_committed(&self) -> bool {
        let commit = if mutated(Mutation::ApplyUncommitted) { self.durable } else { self.commit };
        self.applied < commit.min(self.durable)
    }

    /// Clones `from..=to`, which are in memory; none if `from > to`.
    fn range(&self, from: Index, to: Index) -> Vec<Entry> {
        if from > to {
            return Vec::new();
        }
        let first = self.first_in_memory();
        self.entries.range((from - first) as usize..=(to - first) as usize).cloned().collect()
    }

    /// Clones entries from `from`, which is in memory, up to `max_bytes`, but at least one.
    pub(crate) fn slice(&self, from: Index, max_bytes: usize) -> Vec<Entry> {
        let mut bytes = 0usize;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(entry.size());
            first || bytes <= max_bytes
        };
        self.entries.range((from - self.first_in_memory()) as usize..).take_while(fits).cloned().collect()
    }

    /// The bytes of entries in `from..=to` that are in memory.
    pub(crate) fn size_of(&self, from: Index, to: Index) -> usize {
        let first = self.first_in_memory();
        let from = from.max(first);
        if from > to {
            return 0;
        }
        self.entries.range((from - first) as usize..=(to - first) as usize).map(Entry::size).sum()
    }

    /// The largest index up to `bound` whose term is at most `term`; None if below the boundary.
    fn last_at_most(&self, term: Term, bound: Index) -> Option<Index> {
        let after = self.runs.partition_point(|run| run.term <= term && run.start <= bound);
        let end = self.runs.get(after).map_or(self.last, |next| next.start - 1);
        (after > 0).then(|| end.min(bound))
    }

    /// The largest index at which a follower's log may still equal this one, given that it has `hint_term` from
    /// `hint_index` to `upto`, and differs or ends after that. None: below the boundary.
    ///
    /// Either the follower has this very index, or its `hint_term` is ruled out: the search takes a step per term.
    pub(crate) fn probe_point(&self, upto: Index, hint_index: Index, hint_term: Term) -> Option<Index> {
        let same = self.last_at_most(hint_term, upto)?;
        if same >= hint_index && self.term_at(same) == Some(hint_term) {
            return Some(same);
        }
        self.last_at_most(hint_term.checked_sub(1)?, hint_index.checked_sub(1)?)
    }

    /// Forgets payloads up to `index`, as far as they are applied and durable.
    pub(crate) fn release(&mut self, index: Index) {
        let upto = index.min(self.applied).min(self.durable);
        while self.entries.front().is_some_and(|entry| entry.index <= upto) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.size();
            }
        }
        // A burst must not hold its memory for ever; the factors keep an even load from reallocating.
        if self.entries.capacity() > 1024 && self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.capacity() / 4);
        }
    }

    /// The journal no longer holds entries up to `index`, as far as they are applied.
    pub(crate) fn compact(&mut self, index: Index) {
        let index = index.min(self.applied);
        if index <= self.boundary() {
            return;
        }
        self.release(index);
        let keep = self.run_of(index);
        self.runs.drain(..keep);
        self.runs[0].start = index;
    }

    /// The order that everything rests on; kept in release builds.
    pub(crate) fn check(&self) {
        assert!(self.boundary() <= self.applied, "applied {} below the boundary {}", self.applied, self.boundary());
        assert!(self.applied <= self.commit, "applied {} beyond commit {}", self.applied, self.commit);
        assert!(self.applied <= self.durable, "applied {} beyond durable {}", self.applied, self.durable);
        assert!(self.commit <= self.last, "commit {} beyond last {}", self.commit, self.last);
        assert!(self.durable <= self.taken, "durable {} beyond what was written {}", self.durable, self.taken);
        assert!(self.taken <= self.last, "written {} beyond last {}", self.taken, self.last);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{EntryKind, HardState};

    fn entry(term: Term, index: Index) -> Entry {
        Entry { term, index, kind: EntryKind::Normal, payload: Bytes::from_static(b"four") }
    }

    fn log(terms: &[Term]) -> Log {
        let entries: Vec<Entry> = terms.iter().zip(1..).map(|(&term, index)| entry(term, index)).collect();
        let term = terms.last().copied().unwrap_or(0);
        Log::new(Restored { hard_state: HardState { term, vote: None }, entries, ..Restored::default() })
    }

    #[test]
    fn terms_are_known_from_the_boundary_to_the_end() {
        let mut log = log(&[1, 1, 4, 4, 6]);
        assert_eq!(
            (0..8).map(|index| log.term_at(index)).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(1), Some(4), Some(4), Some(6), None, None]
        );
        log.advance_commit(4);
        assert_eq!(log.take_committed().len(), 4);
        log.compact(3);
        assert_eq!((log.boundary(), log.first_in_memory()), (3, 4));
        assert_eq!([2, 3, 4, 5].map(|index| log.term_at(index)), [None, Some(4), Some(4), Some(6)]);
        log.compact(5);
        assert_eq!(log.first_index(), 5, "what is not applied stays");
    }

    #[test]
    fn release_keeps_what_is_not_applied_or_not_durable() {
        let mut log = log(&[1, 1, 1]);
        let all = log.bytes();
        log.append(entry(1, 4));
        log.advance_commit(4);
        assert_eq!(log.take_committed().len(), 3);
        log.release(Index::MAX);
        assert_eq!((log.first_in_memory(), log.bytes()), (4, all / 3));
        assert_eq!(log.term_at(2), Some(1));
    }

    #[test]
    fn truncation_takes_back_durability_and_what_was_handed_out() {
        let mut log = log(&[1, 2, 2]);
        log.truncate_after(1);
        log.append(entry(3, 2));
        assert_eq!((log.last_index(), log.durable()), (2, 1));
        assert_eq!(log.take_unwritten(), [entry(3, 2)]);
        assert!(!log.mark_durable(2, 2), "the entry reported is gone");
        assert!(!log.mark_durable(3, 3), "never handed out");
        assert!(log.mark_durable(3, 2));
        assert!(!log.mark_durable(3, 2), "no news");
    }

    #[test]
    fn a_report_for_a_copy_that_was_cut_off_is_not_believed() {
        let mut log = log(&[1]);
        log.append(entry(2, 2));
        drop(log.take_unwritten());
        log.truncate_after(1);
        log.append(entry(3, 2));
        drop(log.take_unwritten());
        log.truncate_after(1);
        log.append(entry(2, 2));
        log.append(entry(4, 3));
        drop(log.take_unwritten());
        assert!(!log.mark_durable(2, 2), "either copy may be meant");
        assert!(log.mark_durable(4, 3));
        assert_eq!(log.durable(), 3);
        assert!(log.replaced.is_empty());
    }

    #[test]
    #[should_panic(expected = "would cut committed entries")]
    fn committed_entries_are_not_cut_off() {
        let mut log = log(&[1, 1]);
        log.advance_commit(2);
        log.truncate_after(1);
    }

    #[test]
    fn a_slice_holds_at_least_one_entry_and_otherwise_its_bytes() {
        let log = log(&[1, 1, 1, 1]);
        let size = entry(1, 1).size();
        assert_eq!(log.slice(2, 0).len(), 1);
        assert_eq!(log.slice(2, 2 * size).len(), 2);
        assert_eq!(log.slice(2, 3 * size - 1).len(), 2);
        assert_eq!(log.slice(2, usize::MAX).len(), 3);
    }

    /// Against the plain definition, over all small logs: the probe point is never below the true match.
    #[test]
    fn the_probe_point_is_never_below_the_last_equal_entry() {
        fn logs(len: usize) -> Vec<Vec<Term>> {
            let longer = |terms: &Vec<Term>| {
                let from = terms.last().copied().unwrap_or(1);
                (from..=4).map(|term| [terms.clone(), vec![term]].concat()).collect::<Vec<_>>()
            };
            (0..len).fold(vec![vec![]], |all, _| all.iter().flat_map(longer).collect())
        }
        for leader in logs(4) {
            let leader = log(&leader);
            for follower in (0..6).flat_map(logs) {
                let follower = log(&follower);
                let equal = |index: &Index| leader.term_at(*index) == follower.term_at(*index);
                let matching = (0..=4).take_while(equal).last().unwrap_or(0);
                let mut prev = leader.last_index();
                let mut steps = 0;
                while !equal(&prev) {
                    let upto = prev.min(follower.last_index());
                    let hint_term = follower.term_at(upto).unwrap_or(0);
                    let next = leader.probe_point(upto, follower.run_start(upto), hint_term).unwrap_or(0);
                    assert!(next < prev, "each step gets closer");
                    prev = next;
                    steps += 1;
                }
                assert!(prev >= matching);
                assert!(steps <= follower.runs.len(), "a step per term at most");
            }
        }
    }
}
