//! The broker as seen by whoever verifies it: what it applied, who led, where each group stands. Read-only, and free of
//! cost unless [`Broker::observe`] was called.

pub use crate::keep::checkpoint::files_with_digest;
use crate::machines::catalog::META;
use crate::watch::event::{Event, Sink};
use crate::{Broker, Clock};
use bytes::{Bytes, BytesMut};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::DamagedBatch;
use lnc_raft::{Configuration, Entry, Index, NodeId, Role, RoleChange};
use std::collections::BTreeSet;

/// A group as this node has it now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupInspection {
    /// The node's role.
    pub role: Role,
    /// Its term.
    pub term: u64,
    /// Its commit index.
    pub commit: u64,
    /// The last index whose entry took effect on the state machine.
    pub applied: u64,
    /// The last index on its stable storage.
    pub durable: u64,
    /// Its last index.
    pub last: u64,
}

/// What the broker's limits bound, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInspection {
    /// Requests that were accepted and not answered.
    pub in_flight: usize,
    /// The tail cache.
    pub tail_cache: usize,
    /// Committed bytes that no segment file holds yet; the tail cache keeps them whatever its budget.
    pub unwritten: u64,
}

/// An entry that took effect.
#[derive(Clone, Debug)]
pub struct Applied {
    /// Its group.
    pub group: GroupId,
    /// The entry.
    pub entry: Entry,
    /// The group's encoded state right after it, at the indexes asked for.
    pub state: Option<Bytes>,
}

/// What happened since it was asked for the last time.
#[derive(Debug, Default)]
pub struct Observed {
    /// Entries in the order in which they took effect.
    pub applied: Vec<Applied>,
    /// Changes of role, term or leader.
    pub roles: Vec<(GroupId, RoleChange)>,
    /// Damaged places over which something was written.
    pub repairs: Vec<DamagedBatch>,
}

/// Collects what [`Observed`] gives.
pub(crate) struct Observer {
    state_every: u64,
    seen: Observed,
}

impl Observer {
    /// Whether the state of a group is noted at this index.
    pub(crate) fn wants_state(&self, index: Index) -> bool {
        index.is_multiple_of(self.state_every)
    }
}

impl Sink for Observer {
    fn see(&mut self, _: Clock, event: &Event<'_>) {
        match event {
            Event::RoleChanged(group, change) => self.seen.roles.push((*group, *change)),
            Event::Repaired(place) => self.seen.repairs.push(*place),
            Event::Applied { group, entry, state } => {
                self.seen.applied.push(Applied { group: *group, entry: (*entry).clone(), state: state.clone() });
            }
            _ => {}
        }
    }
}

impl<D: Disk> Broker<D> {
    /// Note from now on what is applied and who leads, until [`Broker::take_observed`] takes it; the state of a group is
    /// noted at every index that `state_every`, which must not be 0, divides.
    pub fn observe(&mut self, state_every: u64) {
        self.watch.observer = Some(Observer { state_every, seen: Observed::default() });
    }

    /// What happened since the last call; nothing without [`Broker::observe`].
    pub fn take_observed(&mut self) -> Observed {
        self.watch.observer.as_mut().map(|observer| std::mem::take(&mut observer.seen)).unwrap_or_default()
    }

    /// Where a group stands; `None` for a group that this node does not have.
    pub fn inspect(&self, group: GroupId) -> Option<GroupInspection> {
        let status = self.shard.status(group)?;
        Some(GroupInspection {
            role: status.role,
            term: status.term,
            commit: status.commit,
            applied: self.applied_index(group),
            durable: status.durable,
            last: status.last,
        })
    }

    /// The voters and learners of a group that this node leads, unless a change of them is under way.
    pub fn settled_members(&self, group: GroupId) -> Option<BTreeSet<NodeId>> {
        let status = self.shard.status(group).filter(|status| status.role == Role::Leader)?;
        let members = status.configuration;
        let settled = status.configuration_committed && !members.is_joint();
        settled.then(|| members.voters.union(&members.learners).copied().collect())
    }

    /// Who a group's members are, as its latest entry about them on this node says.
    pub fn configuration(&self, group: GroupId) -> Option<Configuration> {
        self.shard.status(group).map(|status| status.configuration)
    }

    /// Whether this node votes in every group, and no change of voters is under way in any.
    pub fn votes(&self) -> bool {
        let node = self.config.node;
        self.shard.group_ids().all(|group| {
            self.shard.status(group).is_some_and(|status| {
                let members = &status.configuration;
                status.configuration_committed && !members.is_joint() && members.voters.contains(&node)
            })
        })
    }

    /// The bytes that a checkpoint would hold of a group's state machine: equal on all replicas at an equal applied index.
    pub fn encoded_state(&self, group: GroupId) -> Bytes {
        let mut state = BytesMut::new();
        match self.groups.get(&group) {
            Some(data) => data.state.encode(&mut state),
            None if group == META => self.catalog.encode(&mut state),
            None => {}
        }
        state.freeze()
    }

    /// What the limits bound at this moment.
    pub fn memory(&self) -> MemoryInspection {
        MemoryInspection {
            in_flight: self.in_flight.bytes(),
            tail_cache: self.storage.cached_bytes(),
            unwritten: self.storage.unwritten_bytes(),
        }
    }
}
