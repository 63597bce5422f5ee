//! How entries travel: the leader's appends and heartbeats, the followers' answers, and what that commits.

use bytes::Bytes;
use lnc_mutation::{Mutation, mutated};

use crate::message::{AppendReply, Body, Entry, EntryKind, Index, NodeId, Term};
use crate::progress::PeerState;
use crate::raft::{Raft, StepError};
use crate::ready::EntriesWanted;

impl Raft {
    /// Appends an entry to the leader's own log; it leaves with the next Ready.
    pub(crate) fn append_own(&mut self, kind: EntryKind, payload: Bytes) -> Index {
        let index = self.log.last_index() + 1;
        let entry = Entry { term: self.hard_state.term, index, kind, payload };
        self.uncommitted_bytes = self.uncommitted_bytes.saturating_add(entry.size());
        self.log.append(entry);
        self.unsent = true;
        index
    }

    /// Counts who has what. Only an entry of the current term is committed by counting: an older one, even on a
    /// quorum, may still be replaced by a leader that does not have it.
    pub(crate) fn maybe_commit(&mut self) {
        // The leader's own copy counts when it is on its disk, like anybody's.
        let own = if mutated(Mutation::CountLeaderEarly) { self.log.last_index() } else { self.log.durable() };
        let index = self.reached_by_quorum(own, |peer| peer.match_index);
        let this_term = self.log.term_at(index) == Some(self.hard_state.term);
        if !this_term && !mutated(Mutation::CommitPriorTerm) {
            return;
        }
        let before = self.log.commit();
        if self.log.advance_commit(index) {
            self.stalled_ticks = 0;
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(self.log.size_of(before + 1, index));
            self.unsent = true;
            self.advance_configuration();
        }
    }

    /// Sends every follower what it lacks, as far as its window allows.
    pub(crate) fn flush_appends(&mut self) {
        for &node in self.others().iter() {
            self.send_appends(node);
        }
    }

    fn send_appends(&mut self, to: NodeId) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let silent = peer.silent_ticks >= self.config.election_ticks;
        match peer.state {
            PeerState::Probe { waiting: false } if !silent => {
                let next = peer.next_index;
                let in_memory = next >= self.log.first_in_memory() && next <= self.log.last_index();
                let carry = in_memory && !peer.guess;
                let entries = if carry { self.log.slice(next, self.config.max_append_bytes) } else { Vec::new() };
                self.send_probe(to, next - 1, entries);
            }
            PeerState::Replicate => while self.send_next(to) {},
            PeerState::Probe { .. } | PeerState::NeedsSnapshot { .. } => {}
        }
    }

    /// Sends the next append to a replicating follower; false if there is nothing to send or no room.
    fn send_next(&mut self, to: NodeId) -> bool {
        let Some(peer) = self.peers.get_mut(&to) else { return false };
        let next = peer.next_index;
        let open = peer.window_open(self.config.max_in_flight_appends, self.config.max_in_flight_bytes);
        if !open || next > self.log.last_index() {
            return false;
        }
        if next < self.log.first_in_memory() {
            if peer.wanted.is_none() {
                peer.wanted = Some(next);
                let max_bytes = self.config.max_append_bytes;
                self.out.entries_wanted.push(EntriesWanted { to, from_index: next, max_bytes });
            }
            return false;
        }
        let entries = self.log.slice(next, self.config.max_append_bytes);
        self.send_append(to, next - 1, entries)
    }

    /// Sends entries to a replicating follower and counts them as in flight; false if the entry before them is gone.
    fn send_append(&mut self, to: NodeId, prev_index: Index, entries: Vec<Entry>) -> bool {
        let Some(peer) = self.peers.get_mut(&to) else { return false };
        let Some(prev_term) = self.log.term_at(prev_index) else {
            peer.need_snapshot(prev_index + 1);
            return false;
        };
        let commit = self.log.commit();
        let last = prev_index + entries.len() as Index;
        peer.sent(last, entries.iter().map(Entry::size).sum());
        peer.told_commit = peer.told_commit.max(commit.min(last));
        self.send(to, Body::Append { prev_index, prev_term, commit, entries });
        true
    }

    /// Asks a follower whether it matches at `prev_index`, perhaps with entries to go on from there.
    fn send_probe(&mut self, to: NodeId, prev_index: Index, entries: Vec<Entry>) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let Some(prev_term) = self.log.term_at(prev_index) else {
            return peer.need_snapshot(peer.next_index);
        };
        if let PeerState::Probe { waiting } = &mut peer.state {
            *waiting = true;
        }
        peer.probe_ticks = 0;
        self.send(to, Body::Append { prev_index, prev_term, commit: self.log.commit(), entries });
    }

    /// Probes without entries: cheap enough to send to a follower that may be down.
    pub(crate) fn send_empty_probe(&mut self, to: NodeId) {
        let Some(peer) = self.peers.get(&to) else { return };
        let prev_index = match peer.state {
            PeerState::Probe { .. } => peer.next_index - 1,
            PeerState::Replicate => return,
            // The lowest place from which it could go on.
            PeerState::NeedsSnapshot { missing } => missing.max(self.log.boundary()),
        };
        self.send_probe(to, prev_index, Vec::new());
    }

    pub(crate) fn send_heartbeat(&mut self, to: NodeId) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let commit = self.log.commit().min(peer.match_index);
        peer.told_commit = peer.told_commit.max(commit);
        let round = self.reads.round;
        // Entries of earlier leaders may be committed which this one does not know to be, up to its own first one.
        let leader_commit = self.known_commit().unwrap_or(self.first_own);
        self.send(to, Body::Heartbeat { commit, leader_commit, round });
    }

    /// The part of a leader's tick that is about sending.
    pub(crate) fn tick_replication(&mut self) {
        let (election_ticks, heartbeat_ticks) = (self.config.election_ticks, self.config.heartbeat_ticks);
        for peer in self.peers.values_mut() {
            let overdue = peer.unacked_ticks >= election_ticks || peer.silent_ticks >= election_ticks;
            if peer.state == PeerState::Replicate && overdue {
                peer.probe_later(heartbeat_ticks);
            }
        }
        self.heartbeat_elapsed += 1;
        let due = self.heartbeat_elapsed >= heartbeat_ticks;
        if due {
            self.heartbeat_elapsed = 0;
        }
        let commit = self.log.commit();
        for &node in self.others().iter() {
            let Some(peer) = self.peers.get(&node) else { continue };
            let silent = peer.silent_ticks >= election_ticks;
            let untold = !silent && peer.told_commit < commit.min(peer.match_index);
            if due || untold {
                self.send_heartbeat(node);
            }
            let Some(peer) = self.peers.get(&node) else { continue };
            let unsure = match peer.state {
                PeerState::Probe { waiting } => (waiting || silent) && peer.probe_ticks >= heartbeat_ticks,
                PeerState::Replicate => false,
                PeerState::NeedsSnapshot { .. } => true,
            };
            if due && unsure {
                if let PeerState::NeedsSnapshot { missing } = peer.state {
                    let index = missing.max(self.log.boundary());
                    if let Some(term) = self.log.term_at(index) {
                        self.send(node, Body::StateNeeded { index, term });
                    }
                }
                self.send_empty_probe(node);
            }
        }
    }

    /// The entries that an [`EntriesWanted`] asked for. They are sent on and not kept. Ignored if no longer wanted.
    pub fn entries_loaded(&mut self, to: NodeId, prev_index: Index, prev_term: Term, entries: Vec<Entry>) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if prev_index.checked_add(1) != peer.wanted {
            return;
        }
        peer.wanted = None;
        self.unsent = true;
        let own = entries
            .iter()
            .zip(prev_index + 1..)
            .all(|(entry, index)| entry.index == index && self.log.term_at(index) == Some(entry.term));
        let current = peer.state == PeerState::Replicate && peer.next_index == prev_index + 1;
        if own && current && !entries.is_empty() && self.log.term_at(prev_index) == Some(prev_term) {
            self.send_append(to, prev_index, entries);
        }
    }

    /// The entries that an [`EntriesWanted`] asked for cannot be had: the follower needs state transfer. It is probed
    /// at the pace of heartbeats until it has what was missing.
    pub fn entries_unavailable(&mut self, to: NodeId) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if let Some(missing) = peer.wanted {
            peer.need_snapshot(missing);
        }
    }

    /// The entries that an [`EntriesWanted`] asked for could not be read this time: what the follower needs is tried again at
    /// the pace of heartbeats. Means nothing to who does not lead any more, whoever leads by now.
    pub fn entries_failed(&mut self, to: NodeId) {
        let heartbeat_ticks = self.config.heartbeat_ticks;
        if let Some(peer) = self.peers.get_mut(&to).filter(|peer| peer.wanted.is_some()) {
            peer.probe_later(heartbeat_ticks);
        }
    }

    pub(crate) fn reject_append(&mut self, to: NodeId, prev_index: Index) {
        let last_index = self.log.last_index();
        let at = prev_index.min(last_index);
        // Below the boundary everything is committed, and committed entries are not rejected in the current term; a
        // leader of an earlier term learns only that it is late.
        let (hint_index, hint_term) =
            self.log.term_at(at).map_or((0, 0), |hint_term| (self.log.run_start(at), hint_term));
        let reply = AppendReply::Rejected { prev_index, hint_index, hint_term, last_index };
        self.send(to, Body::AppendReply(reply));
    }

    pub(crate) fn handle_append(
        &mut self,
        from: NodeId,
        prev_index: Index,
        prev_term: Term,
        leader_commit: Index,
        entries: Vec<Entry>,
    ) -> Result<(), StepError> {
        self.check_against_settled(prev_index, prev_term, &entries)?;
        self.heard_leader();
        let settled = self.settled();
        let known = self.log.term_at(prev_index);
        let matches = prev_index <= settled || known == Some(prev_term);
        let matches = matches || known.is_some() && mutated(Mutation::AppendUnmatched);
        if !matches {
            // A hole, or another leader's entry.
            self.reject_append(from, prev_index);
            return Ok(());
        }
        let last = prev_index + entries.len() as Index;
        for entry in entries {
            match self.log.term_at(entry.index) {
                _ if entry.index <= settled => continue,
                Some(term) if term == entry.term => continue,
                Some(_) => self.truncate_after(entry.index - 1),
                None => {}
            }
            let noted = self.note_entry(&entry);
            debug_assert!(noted.is_ok(), "the message was validated");
            self.log.append(entry);
        }
        let matched = if mutated(Mutation::AcknowledgeUnmatched) { self.log.last_index() } else { last };
        let match_index = matched.max(settled);
        self.leader_match = match_index;
        let known = if mutated(Mutation::CommitUnmatched) { self.log.last_index() } else { match_index };
        self.log.advance_commit(leader_commit.min(known));
        // One that has committed nothing in its term says here what it found, which may be less than what is committed.
        if self.leader_commit.is_some() || self.log.term_at(leader_commit) == Some(self.hard_state.term) {
            self.leader_commit = self.leader_commit.max(Some(leader_commit));
        }
        self.send_after_durable(from, Body::AppendReply(AppendReply::Accepted { match_index }));
        Ok(())
    }

    /// Up to here, this log equals that of the current term's leader: every leader has every committed entry, and
    /// never changes what it has.
    fn settled(&self) -> Index {
        self.log.commit().max(self.leader_match)
    }

    /// A leader that contradicts what is settled must not be followed.
    fn check_against_settled(&self, prev_index: Index, prev_term: Term, entries: &[Entry]) -> Result<(), StepError> {
        let settled = self.settled();
        let heads = entries.iter().map(|entry| (entry.index, entry.term));
        for (index, received) in std::iter::once((prev_index, prev_term)).chain(heads) {
            if index > settled {
                break;
            }
            if let Some(settled) = self.log.term_at(index).filter(|&term| term != received) {
                return Err(StepError::Contradiction { index, settled, received });
            }
        }
        Ok(())
    }

    pub(crate) fn handle_append_reply(&mut self, from: NodeId, reply: AppendReply) -> Result<(), StepError> {
        let last = self.log.last_index();
        let Some(peer) = self.peers.get_mut(&from) else { return Ok(()) };
        match reply {
            AppendReply::Accepted { match_index } => {
                if match_index > last {
                    return Err(StepError::AckBeyondLog { index: match_index, last });
                }
                peer.silent_ticks = 0;
                self.accepted(from, match_index);
            }
            AppendReply::Rejected { prev_index, hint_index, hint_term, last_index } => {
                if prev_index > last {
                    return Err(StepError::AckBeyondLog { index: prev_index, last });
                }
                peer.silent_ticks = 0;
                self.rejected(from, prev_index, hint_index, hint_term, last_index);
            }
        }
        self.unsent = true;
        Ok(())
    }

    fn accepted(&mut self, from: NodeId, match_index: Index) {
        let first_index = self.log.first_index();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.known = true;
        if match_index > peer.match_index {
            peer.acked(match_index);
        }
        match peer.state {
            // An older acknowledgement says nothing about the probe that is out.
            PeerState::Probe { .. } if match_index + 1 >= peer.next_index => peer.replicate(peer.match_index + 1),
            PeerState::NeedsSnapshot { missing } if match_index >= missing && match_index + 1 >= first_index => {
                peer.replicate(peer.match_index + 1);
            }
            _ => {}
        }
        self.maybe_commit();
        self.advance_transfer();
    }

    fn rejected(&mut self, from: NodeId, prev_index: Index, hint_index: Index, hint_term: Term, last_index: Index) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if prev_index == 0 {
            // It has restarted: what was under way to it is lost.
            if last_index < peer.match_index {
                // And so is what it had acknowledged: its disk broke its word. That must not keep it out for as long as
                // this leader leads. The commit index stands; what counts from now on is what it says now.
                peer.match_index = 0;
                peer.probe(last_index + 1);
            } else if !matches!(peer.state, PeerState::NeedsSnapshot { .. }) {
                peer.probe(peer.match_index + 1);
            }
            return;
        }
        let stale = match peer.state {
            PeerState::Probe { .. } => prev_index + 1 != peer.next_index,
            PeerState::Replicate | PeerState::NeedsSnapshot { .. } => false,
        };
        if stale || prev_index <= peer.match_index {
            return;
        }
        let point = self.log.probe_point(prev_index.min(last_index), hint_index, hint_term);
        let next = point.map_or(0, |point| point + 1).max(peer.match_index + 1);
        match peer.state {
            // Still without what is missing.
            PeerState::NeedsSnapshot { missing } if next <= missing => {}
            // If the entry before `next` is gone, so is what the follower needs: sending the probe finds out.
            _ => {
                peer.probe(next);
                // Its hint says so if it has the leader's entry at this point.
                let sure = point.is_some_and(|at| at >= hint_index && self.log.term_at(at) == Some(hint_term));
                peer.guess = !sure && next > peer.match_index + 1;
            }
        }
    }

    pub(crate) fn handle_heartbeat(&mut self, from: NodeId, commit: Index, leader_commit: Index, round: u64) {
        self.heard_leader();
        self.leader_commit = self.leader_commit.max(Some(leader_commit));
        self.log.advance_commit(match mutated(Mutation::UnclampedCommit) {
            true => leader_commit.min(self.log.last_index()),
            false => commit.min(self.leader_match),
        });
        if commit > self.leader_match.max(self.log.commit()) {
            // The leader has this node's acknowledgement and will not send what proves it again: this node has
            // restarted since.
            let ask =
                AppendReply::Rejected { prev_index: 0, hint_index: 0, hint_term: 0, last_index: self.log.last_index() };
            self.send(from, Body::AppendReply(ask));
        }
        self.send(from, self.heartbeat_reply(round));
    }

    pub(crate) fn handle_state_needed(&mut self, from: NodeId, index: Index, term: Term) {
        let has_it = index <= self.log.commit() || self.log.term_at(index) == Some(term);
        if self.leader == Some(from) && !has_it {
            self.out.state_needed = self.out.state_needed.max(Some(index));
        }
    }

    pub(crate) fn handle_heartbeat_reply(&mut self, from: NodeId, slow: bool, round: u64) {
        let heartbeat_ticks = self.config.heartbeat_ticks;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.silent_ticks = 0;
        peer.slow = slow;
        let round = if mutated(Mutation::ReadAnyRound) { self.reads.round } else { round };
        peer.acked_round = peer.acked_round.max(round.min(self.reads.round));
        let lost_probe = peer.state == PeerState::Probe { waiting: true } && peer.probe_ticks >= heartbeat_ticks;
        if lost_probe {
            self.send_empty_probe(from);
        }
        self.confirm_reads();
        self.unsent = true;
    }
}
