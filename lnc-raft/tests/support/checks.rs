//! What must hold of a cluster at every moment.

use std::collections::BTreeMap;

use bytes::Bytes;
use lnc_raft::{Entry, Index, NodeId, Raft, Role, Status, Term};

use super::Disk;

/// Facts collected over a run, each of which binds all later ones.
pub(crate) struct Checks {
    /// Election safety: who led each term.
    leaders: BTreeMap<Term, u64>,
    /// Log matching: an entry is named by term and index; the name fixes its payload and the term before it.
    entries: BTreeMap<(Term, Index), (Term, Bytes)>,
    /// State machine safety: the term of the entry that each index was committed with, and the term in which it was
    /// committed.
    committed: BTreeMap<Index, (Term, Term)>,
    /// How far each node has applied, in its present life.
    applied: BTreeMap<u64, Index>,
    /// The highest commit index when a read was asked.
    reads: BTreeMap<(u64, u64), Index>,
    /// Term and commit index, by node, in its present life.
    progress: BTreeMap<u64, (Term, Index)>,
    /// The test has told nodes what no node said: facts across nodes need not hold.
    pub(crate) deceived: bool,
}

impl Checks {
    pub(crate) fn new() -> Self {
        Self {
            leaders: BTreeMap::new(),
            entries: BTreeMap::new(),
            committed: BTreeMap::new(),
            applied: BTreeMap::new(),
            reads: BTreeMap::new(),
            progress: BTreeMap::new(),
            deceived: false,
        }
    }

    pub(crate) fn highest_commit(&self) -> Index {
        self.committed.keys().next_back().copied().unwrap_or(0)
    }

    pub(crate) fn restarted(&mut self, id: u64, applied: Index) {
        self.applied.insert(id, applied);
        self.progress.remove(&id);
    }

    pub(crate) fn read_asked(&mut self, id: u64, ctx: u64) {
        self.reads.insert((id, ctx), self.highest_commit());
    }

    pub(crate) fn read_answered(&mut self, id: u64, ctx: u64, index: Index) {
        let known = self.reads[&(id, ctx)];
        assert!(index >= known, "read {ctx} on {id} may miss entries: {index} < {known}");
    }

    pub(crate) fn written(&mut self, raft: Option<&Raft>, entries: &[Entry]) {
        let Some(raft) = raft else { return };
        for entry in entries {
            let Some(before) = raft.term_at(entry.index - 1) else { continue };
            let fact = (before, entry.payload.clone());
            let known = self.entries.entry((entry.term, entry.index)).or_insert_with(|| fact.clone());
            assert_eq!(*known, fact, "two entries are named {}/{}", entry.term, entry.index);
        }
    }

    pub(crate) fn applied(&mut self, id: u64, entries: &[Entry]) {
        for entry in entries {
            let applied = self.applied.entry(id).or_insert(0);
            assert_eq!(entry.index, *applied + 1, "node {id} applies out of order");
            *applied = entry.index;
            let known = self.committed.get(&entry.index);
            // A node may learn of a commit in the same turn in which it applies: `observe` checks that afterwards.
            assert!(known.is_none_or(|known| known.0 == entry.term), "node {id} applies another entry {}", entry.index);
        }
    }

    pub(crate) fn observe(&mut self, status: &Status, raft: &Raft, disks: &BTreeMap<u64, &Disk>) {
        let id = status.id.0;
        let (term, commit) = self.progress.insert(id, (status.term, status.commit)).unwrap_or_default();
        assert!(status.term >= term && status.commit >= commit, "node {id} went back");
        if self.deceived {
            return;
        }
        if status.role == Role::Leader && self.leaders.get(&status.term) != Some(&id) {
            let before = self.leaders.insert(status.term, id);
            assert_eq!(before, None, "two leaders in term {}", status.term);
            for (&index, &(term, committed_in)) in &self.committed {
                // A candidate may learn late that it won, when later terms have long begun.
                let bound = committed_in < status.term && index >= status.first_index;
                let lost = bound && raft.term_at(index) != Some(term);
                assert!(!lost, "leader {id} of term {} lacks committed {term}/{index}", status.term);
            }
        }
        for index in self.highest_commit() + 1..=status.commit {
            let Some(term) = raft.term_at(index) else { continue };
            // While voters change, the old ones have decided in any case; once that is over, the new ones have too.
            let members = &status.configuration;
            let deciding = if members.is_joint() { &members.outgoing } else { &members.voters };
            let has = |node: &&NodeId| disks.get(&node.0).is_some_and(|disk| disk.term_at(index) == Some(term));
            let have = deciding.iter().filter(has).count();
            assert!(
                have > deciding.len() / 2,
                "{term}/{index} is committed, but durable on {have} of {deciding:?} only"
            );
            self.committed.insert(index, (term, status.term));
        }
        // Who has what its leader tells it has everything that was committed before that leader came.
        if let Some(told) = status.leader_commit {
            let beyond = self.committed.range(told + 1..).find(|(_, (_, committed_in))| *committed_in < status.term);
            assert_eq!(beyond, None, "node {id} is told in term {} that {told} is all", status.term);
        }
        let from = commit.max(status.first_index.saturating_sub(1)).max(1);
        for index in from..=status.commit {
            let (own, known) = (raft.term_at(index), self.committed.get(&index).map(|known| known.0));
            assert_eq!(own, known, "node {id} has another committed entry {index}");
        }
    }
}
