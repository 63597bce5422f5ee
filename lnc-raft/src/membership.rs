//! Who decides, and how that changes: configurations take effect in the log, joint ones are led to their end.
//!
//! Source: Ongaro, *Consensus: Bridging Theory and Practice* (2014), chapter 4: arbitrary changes by joint consensus (4.3),
//! new members catch up as learners first (4.2.1), a leader that is not in the new configuration steps down once that is
//! committed (4.2.2), and removed members disturb nobody, since leaders are protected from their votes (4.2.3).

use std::sync::Arc;

use lnc_mutation::{Mutation, mutated};

use crate::configuration::{Configuration, ConfigurationError};
use crate::message::{Entry, EntryKind, Index, NodeId, Term};
use crate::progress::Peer;
use crate::raft::{ProposeError, Raft, Role};

impl Raft {
    /// The configuration in effect: the latest in the log, committed or not.
    pub fn configuration(&self) -> &Configuration {
        self.configurations.current()
    }

    /// The configuration in effect at the applied index, which belongs into a checkpoint of that index.
    pub fn applied_configuration(&self) -> &Configuration {
        self.configurations.at(self.log.applied())
    }

    pub(crate) fn configuration_committed(&self) -> bool {
        self.configurations.index() <= self.log.commit()
    }

    /// A configuration was appended or cut off: whom this node talks to follows from it.
    pub(crate) fn note_members(&mut self) {
        let id = self.config.id;
        let others: Arc<[NodeId]> = self.configuration().members().into_iter().filter(|&node| node != id).collect();
        if self.role == Role::Leader {
            let next = self.log.last_index() + 1;
            self.peers.retain(|node, _| others.contains(node));
            for &node in others.iter() {
                self.peers.entry(node).or_insert_with(|| Peer::new(next));
            }
            if self.transfer.is_some_and(|transfer| !self.peers.contains_key(&transfer.to)) {
                self.transfer = None;
            }
        }
        self.set_others(others);
    }

    /// Notes what an entry that has just been appended says about the members.
    pub(crate) fn note_entry(&mut self, entry: &Entry) -> Result<(), ConfigurationError> {
        if entry.kind == EntryKind::Configuration {
            let configuration = Configuration::decode(&entry.payload)?;
            self.configurations.append(entry.index, configuration);
            self.note_members();
        }
        Ok(())
    }

    /// Cuts off everything after `index`, and what it said about the members.
    pub(crate) fn truncate_after(&mut self, index: Index) {
        self.log.truncate_after(index);
        if !mutated(Mutation::KeepCutMembers) && self.configurations.truncate_after(index) {
            self.note_members();
        }
    }

    /// Whether this node may stand for election. Being asked for its vote is another matter: a candidate may know of a
    /// configuration with this node as a voter before this node does, and could otherwise never be elected.
    ///
    /// One that a configuration leaves out stands while that is not known to be committed (section 4.2.2): those who stay
    /// may lack the entry, and then nobody but who is to leave can have a log that suffices. A node that has restarted
    /// knows of no commit beyond its checkpoint: any configuration since then may be the one that is in effect.
    pub(crate) fn is_promotable(&self) -> bool {
        let id = self.config.id;
        self.configurations.since(self.log.commit()).any(|members| members.is_voter(id)) && !self.is_in_doubt()
    }

    /// Begins to change the members to `target`, which must not be joint. If voters change, the entry proposed is the
    /// joint one; the leader that sees it committed finishes the change. Proposing what is in effect changes nothing but
    /// appends an entry all the same.
    pub fn propose_configuration(&mut self, target: Configuration) -> Result<(Term, Index), ProposeError> {
        if self.role != Role::Leader {
            return Err(ProposeError::NotLeader { leader: self.leader });
        }
        if self.transfer.is_some() {
            return Err(ProposeError::Transferring);
        }
        if target.is_joint() || target.validate().is_err() {
            return Err(ProposeError::InvalidConfiguration);
        }
        // Without an entry of its own term committed, a leader may not know of a change that is under way
        // (Ongaro, raft-dev 2015: "bug in single-server membership changes").
        let settled = self.log.term_at(self.log.commit()) == Some(self.hard_state.term);
        if !settled || !self.configuration_committed() || self.configuration().is_joint() {
            return Err(ProposeError::ConfigurationChanging);
        }
        let now = self.configuration();
        let next = match now.voters == target.voters {
            true => target,
            false => Configuration { outgoing: now.voters.clone(), ..target },
        };
        Ok((self.hard_state.term, self.append_configuration(&next)))
    }

    fn append_configuration(&mut self, next: &Configuration) -> Index {
        let index = self.append_own(EntryKind::Configuration, next.encode());
        self.configurations.append(index, next.clone());
        self.note_members();
        index
    }

    /// The commit index of a leader has moved: a joint configuration is left once it is committed, and a leader that is
    /// no member any more steps down.
    pub(crate) fn advance_configuration(&mut self) {
        let committed = self.configuration_committed() || mutated(Mutation::LeaveJointEarly);
        if self.role != Role::Leader || !committed {
            return;
        }
        let now = self.configuration();
        if now.is_joint() {
            let last = Configuration { outgoing: Default::default(), ..now.clone() };
            self.append_configuration(&last);
        } else if !now.voters.contains(&self.config.id) {
            // Those who stay learn that it is committed, and need not elect somebody to find out.
            for &node in self.others().iter() {
                self.send_heartbeat(node);
            }
            self.become_follower(self.hard_state.term, None);
        }
    }

    /// The largest value that a quorum reaches, given this node's own and a function for each peer's.
    pub(crate) fn reached_by_quorum(&self, own: u64, of: impl Fn(&Peer) -> u64) -> u64 {
        let value_of = |node| match node == self.config.id {
            true => own,
            false => self.peers.get(&node).map_or(0, &of),
        };
        self.configuration().reached(value_of)
    }
}
