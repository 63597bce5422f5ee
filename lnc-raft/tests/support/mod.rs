//! A cluster of [`Raft`]s with a network and disks that a test holds in its hands, and the safety properties of
//! consensus, checked at every turn.

#![allow(dead_code, unused_imports, reason = "each test binary uses its own part")]

mod checks;
mod show;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use lnc_raft::{
    Config, Configuration, EntriesWanted, Entry, EntryKind, HardState, Index, Message, NodeId, Raft, Ready, Restored,
    Term,
};

pub(crate) use checks::Checks;
pub(crate) use show::{show_entries, show_message, show_status};

/// What is on a node's stable storage.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// The last index that was compacted away, and its term.
    pub(crate) boundary: (Index, Term),
    pub(crate) entries: Vec<Entry>,
    /// The state machine's checkpoint.
    pub(crate) applied: Index,
    /// The members at the checkpoint, unless they are the founders.
    pub(crate) configuration: Option<Configuration>,
}

impl Disk {
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.boundary.0 {
            return Some(self.boundary.1);
        }
        let position = index.checked_sub(self.boundary.0 + 1)?;
        self.entries.get(position as usize).map(|entry| entry.term)
    }

    pub(crate) fn last(&self) -> Index {
        self.boundary.0 + self.entries.len() as Index
    }

    fn write(&mut self, write: &Write) {
        if let Some(hard_state) = write.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(first) = write.entries.first() {
            assert!(first.index <= self.last() + 1, "the journal would have a hole");
            self.entries.truncate((first.index - self.boundary.0 - 1) as usize);
            self.entries.extend(write.entries.iter().cloned());
        }
    }

    pub(crate) fn compact(&mut self, index: Index) {
        if let Some(term) = self.term_at(index) {
            let mut covered = self.entries.iter().filter(|entry| entry.index > self.applied && entry.index <= index);
            if let Some(last) = covered.rfind(|entry| entry.kind == EntryKind::Configuration) {
                self.configuration = Configuration::decode(&last.payload).ok();
            }
            self.entries.drain(..(index - self.boundary.0) as usize);
            self.boundary = (index, term);
            self.applied = self.applied.max(index);
        }
    }

    fn restored(&self) -> Restored {
        Restored {
            hard_state: self.hard_state,
            snapshot_index: self.boundary.0,
            snapshot_term: self.boundary.1,
            applied_index: self.applied,
            configuration: self.configuration.clone(),
            entries: self.entries.clone(),
            in_doubt: 0,
        }
    }
}

/// A Ready's share of the disk, and what waits for it.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) hard_state: Option<HardState>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) after: Vec<Message>,
}

pub(crate) struct Node {
    pub(crate) config: Config,
    /// None: crashed.
    pub(crate) raft: Option<Raft>,
    pub(crate) disk: Disk,
    /// Not yet durable, oldest first.
    pub(crate) writes: VecDeque<Write>,
    /// Writes wait for [`Cluster::flush`].
    pub(crate) hold: bool,
    pub(crate) wanted: Vec<EntriesWanted>,
}

/// Nodes, what is on the way between them, and a trace of what happened.
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) net: VecDeque<Message>,
    /// Links that lose everything.
    pub(crate) cut: BTreeSet<(u64, u64)>,
    pub(crate) trace: Vec<String>,
    pub(crate) checks: Checks,
    starts: u64,
    seed: u64,
}

impl Cluster {
    pub(crate) fn new(size: u64, seed: u64, tune: impl Fn(&mut Config)) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            net: VecDeque::new(),
            cut: BTreeSet::new(),
            trace: Vec::new(),
            checks: Checks::new(),
            starts: 0,
            seed,
        };
        let founding = Configuration::of((1..=size).map(NodeId));
        for id in 1..=size {
            cluster.add(id, founding.clone(), &tune);
        }
        cluster
    }

    /// Starts a node that no cluster knows.
    pub(crate) fn add(&mut self, id: u64, founding: Configuration, tune: impl Fn(&mut Config)) {
        let mut config = Config::new(NodeId(id), founding, 0);
        config.election_ticks = 10;
        config.heartbeat_ticks = 3;
        tune(&mut config);
        let node = Node {
            config,
            raft: None,
            disk: Disk::default(),
            writes: VecDeque::new(),
            hold: false,
            wanted: Vec::new(),
        };
        self.nodes.insert(id, node);
        self.restart(id);
    }

    fn say(&mut self, line: String) {
        self.trace.push(line);
    }

    pub(crate) fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub(crate) fn raft(&self, id: u64) -> Option<&Raft> {
        self.nodes.get(&id).and_then(|node| node.raft.as_ref())
    }

    /// Runs `input` on a node, if it is up, and then its turn.
    pub(crate) fn with<T>(&mut self, id: u64, input: impl FnOnce(&mut Raft) -> T) -> Option<T> {
        let raft = self.nodes.get_mut(&id)?.raft.as_mut()?;
        let result = input(raft);
        self.turn(id);
        Some(result)
    }

    /// Runs `input` without the turn that normally follows.
    pub(crate) fn quietly<T>(&mut self, id: u64, input: impl FnOnce(&mut Raft) -> T) -> Option<T> {
        Some(input(self.nodes.get_mut(&id)?.raft.as_mut()?))
    }

    pub(crate) fn turn(&mut self, id: u64) {
        loop {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let Some(raft) = node.raft.as_mut().filter(|raft| raft.has_ready()) else { break };
            let ready = raft.take_ready();
            self.perform(id, ready);
            if !self.nodes[&id].hold {
                self.flush(id, usize::MAX);
            }
        }
        if let Some(raft) = self.nodes.get(&id).and_then(|node| node.raft.as_ref()) {
            let status = raft.status();
            let disks: BTreeMap<u64, &Disk> = self.nodes.iter().map(|(id, node)| (*id, &node.disk)).collect();
            self.checks.observe(&status, raft, &disks);
        }
    }

    fn perform(&mut self, id: u64, ready: Ready) {
        let name = NodeId(id);
        if let Some(change) = ready.role_change {
            let leader = change.leader.map_or("none".into(), |leader| leader.to_string());
            self.say(format!("{name}: {:?} in term {}, leader {leader}", change.role, change.term));
        }
        for read in &ready.read_states {
            self.say(format!("{name}: read {} at {}", read.ctx, read.index));
            self.checks.read_answered(id, read.ctx, read.index);
        }
        if let Some(index) = ready.state_needed {
            self.say(format!("{name}: needs the state at {index} or later"));
        }
        for ctx in &ready.reads_failed {
            self.say(format!("{name}: read {ctx} failed"));
        }
        for wanted in &ready.entries_wanted {
            self.say(format!("{name}: wants entries from {} for {}", wanted.from_index, wanted.to));
        }
        if !ready.committed.is_empty() {
            self.say(format!("{name}: applies {}", show_entries(&ready.committed)));
            self.checks.applied(id, &ready.committed);
        }
        self.checks.written(self.nodes[&id].raft.as_ref(), &ready.entries);
        self.net.extend(ready.messages);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.wanted.extend(ready.entries_wanted);
        let (hard_state, entries, after) = (ready.hard_state, ready.entries, ready.messages_after_durable);
        if hard_state.is_some() || !entries.is_empty() || !after.is_empty() {
            node.writes.push_back(Write { hard_state, entries, after });
        }
    }

    /// Makes up to `count` of the oldest writes durable, and reports that once.
    pub(crate) fn flush(&mut self, id: u64, count: usize) {
        let name = NodeId(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let count = count.min(node.writes.len());
        let (mut voted, mut last) = (None, None);
        let mut said = Vec::new();
        for write in node.writes.drain(..count) {
            node.disk.write(&write);
            if let Some(hard_state) = write.hard_state {
                let vote = hard_state.vote.map_or("none".into(), |vote| vote.to_string());
                said.push(format!("{name}: durable term {} vote {vote}", hard_state.term));
                voted = Some(hard_state.term);
            }
            if let Some(entry) = write.entries.last() {
                said.push(format!("{name}: durable {}", show_entries(&write.entries)));
                last = Some((entry.term, entry.index));
            }
            self.net.extend(write.after);
        }
        self.trace.append(&mut said);
        let Some(raft) = node.raft.as_mut() else { return };
        if let Some(term) = voted {
            raft.on_hard_state_durable(term);
        }
        if let Some((term, index)) = last {
            raft.on_durable(term, index);
        }
    }

    /// Delivers the message at `position` of the net.
    pub(crate) fn deliver(&mut self, position: usize) {
        let Some(message) = self.net.remove(position) else { return };
        let (from, to) = (message.from.0, message.to.0);
        let line = show_message(&message);
        if self.cut.contains(&(from, to)) || self.raft(to).is_none() {
            self.say(format!("{line} (lost)"));
            return;
        }
        self.say(line);
        if let Some(Err(error)) = self.with(to, |raft| raft.step(message)) {
            self.say(format!("{to}: refuses: {error}"));
        }
    }

    /// Delivers until nothing is on the way.
    pub(crate) fn settle(&mut self) {
        for _ in 0..100_000 {
            if self.net.is_empty() {
                return;
            }
            self.deliver(0);
        }
        panic!("the cluster does not come to rest");
    }

    pub(crate) fn propose(&mut self, id: u64, payload: Bytes) -> Option<Result<(Term, Index), lnc_raft::ProposeError>> {
        self.with(id, |raft| raft.propose(payload))
    }

    pub(crate) fn read(&mut self, id: u64, ctx: u64) -> Option<Result<(), lnc_raft::ProposeError>> {
        self.checks.read_asked(id, ctx);
        self.with(id, |raft| raft.read_index(ctx))
    }

    /// Kills a node. Of the writes under way the first `kept` have reached the disk, unreported.
    pub(crate) fn crash(&mut self, id: u64, kept: usize) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.raft = None;
        node.wanted.clear();
        let kept = kept.min(node.writes.len());
        for write in node.writes.drain(..).take(kept) {
            node.disk.write(&write);
        }
    }

    /// Starts a crashed node from its disk.
    pub(crate) fn restart(&mut self, id: u64) {
        self.starts += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.config.seed = self.seed.wrapping_mul(1_000_003).wrapping_add(self.starts);
        match Raft::new(node.config.clone(), node.disk.restored()) {
            Ok(raft) => node.raft = Some(raft),
            Err(error) => panic!("node {id} cannot start from its own disk: {error}"),
        }
        self.checks.restarted(id, node.disk.applied);
    }

    /// Answers the oldest question for entries from the node's disk.
    pub(crate) fn load(&mut self, id: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.wanted.is_empty() {
            return;
        }
        let wanted = node.wanted.remove(0);
        let prev_index = wanted.from_index - 1;
        match node.disk.term_at(prev_index) {
            Some(prev_term) => {
                let skip = (prev_index - node.disk.boundary.0) as usize;
                let mut bytes = 0;
                let fits = |entry: &&Entry| {
                    bytes += entry.size();
                    bytes <= wanted.max_bytes || bytes == entry.size()
                };
                let entries: Vec<Entry> = node.disk.entries.iter().skip(skip).take_while(fits).cloned().collect();
                self.with(id, |raft| raft.entries_loaded(wanted.to, prev_index, prev_term, entries));
            }
            None => {
                self.with(id, |raft| raft.entries_unavailable(wanted.to));
            }
        }
    }

    /// Replaces the state of `to` with what `from` has applied, unless `to` has that already.
    pub(crate) fn transfer_state(&mut self, from: u64, to: u64) -> bool {
        let Some(source) = self.raft(from) else { return false };
        let index = source.applied_index();
        let Some(term) = source.term_at(index) else { return false };
        let Some(target) = self.raft(to) else { return false };
        if index <= target.commit_index() || target.term_at(index) == Some(term) {
            return false;
        }
        let configuration = source.applied_configuration().clone();
        self.crash(to, usize::MAX);
        if let Some(node) = self.nodes.get_mut(&to) {
            node.disk.boundary = (index, term);
            node.disk.entries.clear();
            node.disk.applied = index;
            node.disk.configuration = Some(configuration);
            node.disk.hard_state.term = node.disk.hard_state.term.max(term);
        }
        self.restart(to);
        true
    }
}
