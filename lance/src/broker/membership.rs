//! Membership at work: the catalog says who should be a member, the leader of each group changes the group's Raft
//! configuration, one step at a time, until it is so.
//!
//! ```text
//! expected ──a fresh data directory comes──► learner in each group ──has caught up──► voter
//!                                                                       └─ in the same step its former self,
//!                                                                          or the node that it replaces, goes
//! ```
//!
//! Every step follows from the catalog and the group's configuration alone, so whoever leads next goes on with it.

use super::catalog::META;
use super::command::Command;
use super::members::{Addresses, Member, MemberError};
use super::proposals::{Kind, Origin};
use super::{Broker, Caller, Clock};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{ChangeMembersRequest, MemberChange, Opcode, Response};
use lnc_raft::{Configuration, NodeId, Progress, Status};
use std::collections::{BTreeMap, BTreeSet};

/// How far a learner may be behind to be made a voter, in microseconds. Commits that need its disk wait that long at most.
const CAUGHT_UP_US: u64 = 1_000_000;

/// A node that came with a fresh data directory and is not admitted yet.
#[derive(Clone, Copy)]
pub(super) struct Applicant {
    incarnation: u64,
    seen_us: u64,
}

/// What the driver must know of the members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Of two lists of members, the one with the higher number is newer.
    pub version: u64,
    /// Everyone who may take part in consensus, former members that are not gone yet included, with their incarnations.
    pub members: BTreeMap<NodeId, u64>,
    /// How the nodes are reached, this one included, by number.
    pub nodes: BTreeMap<u64, Addresses>,
}

impl<D: Disk> Broker<D> {
    /// How a node is reached, if that is known.
    pub(super) fn addresses(&self, node: u64) -> Option<&Addresses> {
        let remembered = || self.catalog.members().of_node(node).map(|member| &member.addresses);
        self.config.nodes.get(&node).or_else(remembered)
    }

    /// Who belongs to the cluster, as far as this node knows.
    pub fn membership(&self) -> Membership {
        let members = self.catalog.members();
        if !members.is_founded() {
            let nodes = self.config.nodes.clone();
            return Membership { version: self.config.members_version, members: self.config.members.clone(), nodes };
        }
        let come = members.current().chain(members.former()).filter(|member| member.incarnation != 0);
        let node = |member: &Member| {
            let number = member.id.node();
            self.addresses(number).map(|addresses| (number, addresses.clone()))
        };
        Membership {
            version: members.version(),
            members: come.map(|member| (member.id, member.incarnation)).collect(),
            nodes: members.current().filter_map(node).collect(),
        }
    }

    /// A node has shown itself with a data directory that belongs to no cluster yet.
    pub fn applicant(&mut self, clock: Clock, node: u64, incarnation: u64) {
        /// Applicants remembered.
        const MAX_APPLICANTS: usize = 64;
        self.clock = clock;
        if self.applicants.len() < MAX_APPLICANTS || self.applicants.contains_key(&node) {
            self.applicants.insert(node, Applicant { incarnation, seen_us: clock.mono_us });
        }
    }

    /// An operator wants the members changed.
    pub(super) fn change_members(&mut self, caller: Caller, request: ChangeMembersRequest, body: Bytes) {
        let opcode = Opcode::ChangeMembers;
        if !self.shard.is_leader(META) {
            return self.elsewhere(caller, opcode, META, body);
        }
        let node = request.node;
        let command = match request.change {
            MemberChange::Add if node == 0 || node > u64::from(u32::MAX) => {
                let message = format!("node id {node} is out of range: 1 to {}", u32::MAX);
                return self.refuse(caller, opcode, ErrorCode::InvalidMembership, message);
            }
            MemberChange::Add => {
                let (client, peer, http) = (request.client_address, request.peer_address, request.http_address);
                Command::AddMember { node, addresses: Addresses { client, peer, http }, replaces: request.replaces }
            }
            MemberChange::Remove => Command::RemoveMember { node },
            MemberChange::Renew => Command::RenewMember { node },
        };
        self.submit_admin(caller, opcode, &command, request.timeout_ms, Kind::ChangeMembers);
    }

    /// Answer who asked for a change of the members.
    pub(super) fn members_changed(&mut self, origin: Origin, result: Result<(), MemberError>) {
        match result {
            Ok(()) => self.answer(origin, Response::ChangeMembers),
            Err(error) => {
                let code = match error {
                    MemberError::NotFounded => ErrorCode::NotReady,
                    MemberError::Exists { .. } => ErrorCode::MemberExists,
                    MemberError::Unknown { .. } => ErrorCode::UnknownMember,
                    MemberError::Last { .. } | MemberError::TooMany { .. } => ErrorCode::InvalidMembership,
                };
                self.fail(origin, code, error.to_string());
            }
        }
    }

    /// Bring the members, and the configurations of the groups that this node leads, a step further.
    pub(super) fn reconcile_members(&mut self) {
        if self.shard.is_leader(META) && !self.has_backlog(META) {
            self.found_members();
            self.admit_applicants();
            self.forget_members();
        }
        // Who has an old catalog would undo what others have done.
        if !self.catalog.members().is_founded() || !self.is_fresh(META) {
            return;
        }
        let groups: Vec<GroupId> = self.shard.group_ids().filter(|group| self.shard.is_leader(*group)).collect();
        for group in groups {
            self.reconcile_configuration(group);
        }
    }

    /// The catalog of a new cluster does not know its founders yet. A leader that has not applied all that others have
    /// committed before it cannot tell: it would raise the format of a cluster that is old.
    pub(super) fn found_members(&mut self) {
        let applied_term = self.applied.get(&META).map(|(_, term)| *term);
        let knows_all = self.shard.is_leader(META) && applied_term == self.shard.status(META).map(|s| s.term);
        if self.catalog.members().is_founded() || !knows_all {
            return;
        }
        let member = |(id, incarnation): (&NodeId, &u64)| Member {
            id: *id,
            incarnation: *incarnation,
            addresses: self.config.nodes.get(&id.node()).cloned().unwrap_or_default(),
            replaces: None,
        };
        let founders = self.config.founders.iter().map(member).collect();
        self.submit(META, &Command::FoundMembers { founders }, None);
        if let Some(format) = self.founding_format() {
            self.submit(META, &Command::RaiseFormat { format }, None);
        }
    }

    /// Admit who is expected, and who comes back with an empty disk once its former self is silent: while that one
    /// lives, another process only uses its number by mistake.
    fn admit_applicants(&mut self) {
        /// How long an applicant is remembered without another sign of life.
        const MEMORY_US: u64 = 10_000_000;
        let now = self.now_us();
        self.applicants.retain(|_, applicant| applicant.seen_us + MEMORY_US > now);
        let Some(status) = self.shard.status(META) else { return };
        let members = self.catalog.members();
        let welcome = |(node, applicant): (&u64, &Applicant)| {
            let member = members.of_node(*node)?;
            let alive = self.peers_connected.contains_key(&member.id)
                || status.peers.iter().any(|peer| peer.id == member.id && peer.recently_active);
            let new = member.incarnation != applicant.incarnation;
            let incarnation = applicant.incarnation;
            (new && (member.incarnation == 0 || !alive)).then_some(Command::AdmitMember { node: *node, incarnation })
        };
        let commands: Vec<Command> = self.applicants.iter().filter_map(welcome).collect();
        for command in commands {
            if let Command::AdmitMember { node, incarnation } = command {
                tracing::info!(node, incarnation, "admitting a node that came with a fresh data directory");
                self.applicants.remove(&node);
            }
            self.submit(META, &command, None);
        }
    }

    /// Former members that no group names any more, as far as this replica knows, are gone for good.
    fn forget_members(&mut self) {
        let statuses: Vec<Status> = self.shard.group_ids().filter_map(|group| self.shard.status(group)).collect();
        if statuses.len() < self.shard.group_ids().count() {
            return;
        }
        let named = |id: NodeId| {
            statuses.iter().any(|status| !status.configuration_committed || status.configuration.contains(id))
        };
        let members = self.catalog.members();
        let gone: Vec<NodeId> = members.former().map(|member| member.id).filter(|id| !named(*id)).collect();
        for id in gone {
            self.submit(META, &Command::ForgetMember { id }, None);
        }
    }

    fn reconcile_configuration(&mut self, group: GroupId) {
        let Some(status) = self.shard.status(group) else { return };
        if status.configuration.is_joint() || !status.configuration_committed {
            return;
        }
        let Some(mut target) = self.next_configuration(group, &status) else { return };
        let own = self.config.node;
        if !target.voters.contains(&own) {
            let stay: BTreeSet<NodeId> = target.voters.intersection(&status.configuration.voters).copied().collect();
            if !stay.is_empty() {
                // Whoever votes now and stays finishes what this node cannot be part of.
                match self.best_successor_among(group, &stay) {
                    Some(to) => drop(self.hand_to(group, to)),
                    None => tracing::warn!(
                        group = group.0,
                        "this node is to leave the group and leads it, but no voter that stays can take over; trying again"
                    ),
                }
                return;
            }
            // Its successors are no voters yet: they become some beside it, and then it goes.
            target.voters.insert(own);
            target.learners.remove(&own);
        }
        match self.shard.propose_configuration(group, target.clone()) {
            Ok(_) => {
                tracing::info!(group = group.0, from = %status.configuration, to = %target, "changing the members of a group")
            }
            Err(error) => tracing::debug!(group = group.0, %error, "the members of a group cannot be changed now"),
        }
    }

    /// The next configuration on the way to what the catalog says; `None` if there is nothing to do, or not yet.
    fn next_configuration(&self, group: GroupId, status: &Status) -> Option<Configuration> {
        let now = &status.configuration;
        let wanted: BTreeMap<NodeId, &Member> = self
            .catalog
            .members()
            .current()
            .filter(|member| member.incarnation != 0)
            .map(|member| (member.id, member))
            .collect();
        let now_us = self.now_us();
        let keeps_up = |peer: &Progress| self.pace.keeps_up(now_us, group, peer.id, CAUGHT_UP_US);
        let caught_up = |peer: &&Progress| peer.learner && (keeps_up(peer) || mutated(Mutation::PromoteEarly));
        // A node whose place another has taken does not come back: it would be added and removed, again and again.
        let has_place = |id: &NodeId| wanted.contains_key(id) && !self.is_replaced(*id, &now.voters);
        let mut target = now.clone();
        target.learners.extend(wanted.keys().filter(|id| !now.contains(**id) && has_place(id)));
        for ready in status.peers.iter().filter(caught_up).filter(|peer| has_place(&peer.id)) {
            target.learners.remove(&ready.id);
            target.voters.insert(ready.id);
        }
        let listed = |id: &NodeId| wanted.contains_key(id) && !self.is_replaced(*id, &target.voters);
        // Who waits for a successor stays until that one votes.
        let awaited: BTreeSet<u64> = self
            .catalog
            .members()
            .current()
            .filter(|member| !target.voters.contains(&member.id) && !self.is_replaced(member.id, &target.voters))
            .flat_map(|member| [Some(member.id.node()), member.replaces])
            .flatten()
            .collect();
        // Who may still lead another group must hear from the catalog that it is to go, or it would lead for ever. This
        // node hands the catalog over if it is to go itself: of groups that it has left it hears nothing. A former self
        // whose disk was wiped leads nothing, and would only make majorities harder to come by.
        let named = self.named_by_data_groups();
        let hears = |id: &NodeId| {
            let is_named = named.as_ref().is_none_or(|named| named.contains(id));
            let came_anew = wanted.keys().any(|member| member.node() == id.node() && member != id);
            group == META && *id != self.config.node && is_named && !came_anew
        };
        let stays = |id: &NodeId| listed(id) || awaited.contains(&id.node()) || hears(id);
        let (voters, learners) = (&target.voters, &target.learners);
        let target = Configuration {
            voters: voters.iter().copied().filter(stays).collect(),
            learners: learners.iter().copied().filter(|id| wanted.contains_key(id) && stays(id)).collect(),
            outgoing: BTreeSet::new(),
        };
        (target != *now && self.can_decide(status, &target.voters)).then_some(target)
    }

    /// Whether one of these voters is there in the place of a node.
    fn is_replaced(&self, id: NodeId, voters: &BTreeSet<NodeId>) -> bool {
        let mut members = self.catalog.members().current();
        members.any(|member| member.replaces == Some(id.node()) && voters.contains(&member.id))
    }

    /// Whether a member is to go, as far as this replica knows: it was removed, or another has come to take its place.
    pub(super) fn is_leaving(&self, id: NodeId) -> bool {
        let members = self.catalog.members();
        let replaced = |member: &Member| member.incarnation != 0 && member.replaces == Some(id.node());
        members.is_founded()
            && (members.of_node(id.node()).is_none_or(|m| m.id != id) || members.current().any(replaced))
    }

    /// Everyone whom a group of partitions names, as far as this replica knows; `None` if it does not know all of them.
    fn named_by_data_groups(&self) -> Option<BTreeSet<NodeId>> {
        let mut named = BTreeSet::new();
        for group in self.shard.group_ids().filter(|group| *group != META) {
            let status = self.shard.status(group).filter(|status| status.configuration_committed)?;
            named.extend(status.configuration.members());
        }
        Some(named)
    }

    /// Whether a majority of these voters is there: no change may take the cluster its majority.
    fn can_decide(&self, status: &Status, voters: &BTreeSet<NodeId>) -> bool {
        let active = |id: &&NodeId| {
            **id == self.config.node || status.peers.iter().any(|peer| peer.id == **id && peer.recently_active)
        };
        !voters.is_empty() && voters.iter().filter(active).count() > voters.len() / 2
    }

    /// A node whose place another has taken in every group may go.
    pub(super) fn release_replaced(&mut self) {
        if !self.shard.is_leader(META) || self.has_backlog(META) {
            return;
        }
        let statuses: Vec<Status> = self.shard.group_ids().filter_map(|group| self.shard.status(group)).collect();
        let votes = |id: NodeId| {
            statuses.iter().all(|s| {
                s.configuration_committed && !s.configuration.is_joint() && s.configuration.voters.contains(&id)
            })
        };
        let members = self.catalog.members();
        let done: Vec<u64> =
            members.current().filter(|member| votes(member.id)).filter_map(|member| member.replaces).collect();
        for node in done {
            self.submit(META, &Command::RemoveMember { node }, None);
        }
    }
}
