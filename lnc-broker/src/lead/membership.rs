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

use crate::log::proposals::{Kind, Origin};
use crate::machines::catalog::{Catalog, META};
use crate::machines::command::{Command, Commands};
use crate::machines::members::{Addresses, Member, MemberError, Members, is_address, is_node};
use crate::{Broker, Caller, Clock};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{ChangeMembersRequest, MemberChange, Opcode, Response};
use lnc_raft::{Configuration, Entry, EntryKind, NodeId, Progress, Status};
use lnc_replication::notice::OwnAddresses;
use std::collections::{BTreeMap, BTreeSet};

/// How far a learner may be behind to be made a voter, in microseconds. Commits that need its disk wait that long at most.
const CAUGHT_UP_US: u64 = 1_000_000;

/// A node that came with a fresh data directory and is not admitted yet.
#[derive(Clone, Copy)]
struct Applicant {
    incarnation: u64,
    seen_us: u64,
}

/// What this node knows of members beyond the catalog.
#[derive(Default)]
pub(crate) struct Admission {
    /// How members are reached that have said so themselves, by number.
    told_addresses: BTreeMap<u64, Addresses>,
    /// Since when this node could note who founded the cluster.
    founding_since_us: Option<u64>,
    /// Nodes that wait to be admitted, by number.
    applicants: BTreeMap<u64, Applicant>,
    /// Members that the catalog has forgotten and that a group of this node, which may be behind, still names.
    gone: BTreeMap<NodeId, Member>,
    /// The members as the journal had them at the start, beyond the checkpoint and committed or not.
    expected_members: Members,
    standing: Standing,
}

impl Admission {
    /// What is known at the start: the members that the journal expects.
    pub(crate) fn new(expected_members: Members) -> Self {
        Self { expected_members, ..Self::default() }
    }
}

/// What peers say of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing that speaks against it.
    #[default]
    Member,
    /// They know newer members, and it is none of them.
    Removed {
        /// Who says so.
        by: NodeId,
    },
    /// Another process runs with its identity.
    Copied {
        /// Who says so.
        by: NodeId,
    },
}

/// What the driver must know of the members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Of two lists of members, the one with the higher number is newer.
    pub version: u64,
    /// Everyone who may take part in consensus, former members that are not gone yet included, with their incarnations.
    pub members: BTreeMap<NodeId, u64>,
    /// Whether nothing newer was decided until a moment ago.
    pub is_newest: bool,
    /// How they are reached, this node included, by number. Before this node has caught up with the catalog, whoever its
    /// configuration names is among them.
    pub nodes: BTreeMap<u64, Addresses>,
}

/// The members as they are once these entries of the catalog's group are applied to it.
pub(crate) fn members_after<'a>(catalog: &Catalog, entries: impl Iterator<Item = &'a Entry>) -> Members {
    let mut members = catalog.members().clone();
    let normal = entries.filter(|entry| entry.kind == EntryKind::Normal);
    for command in normal.filter_map(|entry| Commands::parse(entry.payload.clone()).ok()).flatten().flatten() {
        // One that is refused changes nothing, here as there.
        let _ = match command {
            Command::FoundMembers { founders } => {
                members.found(founders);
                Ok(())
            }
            Command::AddMember { node, addresses, replaces } => members.add(node, addresses, replaces),
            Command::AdmitMember { node, incarnation } => members.admit(node, incarnation),
            Command::RenewMember { node } => members.renew(node),
            Command::RemoveMember { node } => members.remove(node),
            // Who is forgotten may still be named by a group that lags.
            _ => Ok(()),
        };
    }
    members
}

impl<D: Disk> Broker<D> {
    /// How a node is reached, if that is known.
    pub(crate) fn addresses(&self, node: u64) -> Option<&Addresses> {
        let members = self.known_members();
        let leaving = || members.former().chain(self.admission.gone.values()).find(|member| member.id.node() == node);
        let remembered = || members.of_node(node).or_else(leaving).map(|member| &member.addresses);
        self.config.nodes.get(&node).or_else(remembered)
    }

    /// How this node is reached, for its peers.
    pub(crate) fn own_addresses(&self) -> OwnAddresses {
        let own = self.addresses(self.config.node.node()).cloned().unwrap_or_default();
        OwnAddresses { client: own.client, peer: own.peer, http: own.http }
    }

    /// A member that is connected to this node says how it is reached. That counts as long as the catalog says nothing better:
    /// without it, a node that has lost its data could not answer a leader that came after those in its configuration.
    pub(crate) fn hear_addresses(&mut self, from: NodeId, told: OwnAddresses) {
        let OwnAddresses { client, peer, http } = told;
        let addresses = Addresses { client, peer, http };
        if !self.has_caught_up(META) && is_address(&addresses.peer) {
            self.admission.told_addresses.insert(from.node(), addresses);
        }
    }

    /// Who belongs to the cluster, as far as this node knows. Whom a Raft group still names belongs to it, whatever the
    /// catalog says: its voice may be needed, for an older configuration or for one that is being left.
    pub fn membership(&self) -> Membership {
        let members = self.known_members();
        let mut nodes = self.admission.told_addresses.clone();
        nodes.extend(self.config.nodes.clone());
        if !members.is_founded() {
            let (version, members) = (self.config.members_version, self.config.members.clone());
            return Membership { version, members, is_newest: false, nodes };
        }
        let all = || members.current().chain(members.former()).chain(self.admission.gone.values());
        // With an old catalog it may know nobody who is still there.
        if self.has_caught_up(META) {
            nodes.clear();
        }
        for number in all().map(|member| member.id.node()) {
            if let Some(addresses) = self.addresses(number) {
                nodes.insert(number, addresses.clone());
            }
        }
        let come = all().filter(|member| member.incarnation != 0);
        let (version, is_newest) = (members.version(), self.is_fresh(META));
        let members = come.map(|member| (member.id, member.incarnation)).collect();
        Membership { version, members, is_newest, nodes }
    }

    /// The members by the catalog; and before this node has caught up with that, by what its journal has beyond it, committed
    /// or not. To elect a leader, and hear what is committed, it must reach those whom its configurations name.
    pub(crate) fn known_members(&self) -> &Members {
        let expected = &self.admission.expected_members;
        let ahead = !self.has_caught_up(META) && expected.version() > self.catalog.members().version();
        if ahead { expected } else { self.catalog.members() }
    }

    /// A former member is no longer needed, as far as the leader of the catalog knows. Where a group of this node, which
    /// may be behind, still names it, it stays reachable.
    pub(crate) fn member_forgotten(&mut self, id: NodeId) {
        if let Some(member) = self.catalog.members_mut().forget(id) {
            self.admission.gone.insert(id, member);
            self.let_go();
        }
    }

    /// Peers have said something about this node.
    pub fn set_standing(&mut self, standing: Standing) {
        self.admission.standing = standing;
    }

    /// Whether this node was removed, as far as it knows or has heard.
    pub(crate) fn is_removed(&self) -> bool {
        let (members, own) = (self.catalog.members(), self.config.node);
        // Who is to go votes until others have taken its place.
        let votes = |group| self.shard.status(group).is_some_and(|status| status.configuration.is_voter(own));
        let leaves = members.former().any(|member| member.id == own) && !self.shard.group_ids().any(votes);
        // One that is still catching up may not have heard that it was admitted.
        let is_listed = || members.current().chain(members.former()).any(|member| member.id == own);
        let unknown = || self.has_caught_up(META) && !is_listed();
        let decided = members.is_founded() && (leaves || unknown());
        decided || matches!(self.admission.standing, Standing::Removed { .. })
    }

    /// Why this node has no business in the cluster, if that is so.
    pub(crate) fn estranged(&self) -> Option<String> {
        let (own, node) = (self.config.node, self.config.node.node());
        let told = match self.admission.standing {
            Standing::Copied { by } => {
                return Some(format!(
                    "another process runs with the identity of this node, as node {by} says: its data directory was \
                     copied; stop the copy, and remove its directory"
                ));
            }
            Standing::Removed { by } => format!(", as node {by} says"),
            Standing::Member => String::new(),
        };
        self.is_removed().then(|| {
            format!(
                "this node (member {own}) was removed from the cluster{told}: stop it; to bring it back, `lance cluster add \
                 {node}` and start it with an empty data directory"
            )
        })
    }

    fn let_go(&mut self) {
        if self.admission.gone.is_empty() {
            return;
        }
        let statuses: Vec<Status> = self.shard.group_ids().filter_map(|group| self.shard.status(group)).collect();
        let whole = statuses.len() == self.shard.group_ids().count();
        self.admission.gone.retain(|id, _| !whole || statuses.iter().any(|status| names(status, *id)));
    }

    /// A node has shown itself with a data directory that belongs to no cluster yet. It is remembered if it could be a
    /// member, so there are never more of them than members.
    pub fn applicant(&mut self, clock: Clock, node: u64, incarnation: u64) {
        self.clock = clock;
        // One that was admitted knocks until it has heard of it; later that would make it its own successor.
        let members = self.catalog.members();
        let mut known = members.current().chain(members.former()).chain(self.admission.gone.values());
        let was_admitted = known.any(|member| member.id.node() == node && member.incarnation == incarnation);
        if members.of_node(node).is_some() && !was_admitted {
            self.admission.applicants.insert(node, Applicant { incarnation, seen_us: clock.mono_us });
        }
    }

    /// A node has shown itself that takes itself for this member of the cluster, while nobody else may. It may have been told so
    /// where the word got lost before it counted, with a leader that fell: its data directory is not fresh any more, and it
    /// can be nobody but who it believes to be.
    pub fn stray(&mut self, clock: Clock, id: NodeId, incarnation: u64) {
        if self.catalog.members().next_admitted(id.node()) == Some(id) {
            self.applicant(clock, id.node(), incarnation);
        }
    }

    /// A node was admitted: its knocks are answered.
    pub(crate) fn forget_applicant(&mut self, node: u64, incarnation: u64) {
        if self.admission.applicants.get(&node).is_some_and(|applicant| applicant.incarnation == incarnation) {
            self.admission.applicants.remove(&node);
        }
    }

    /// An operator wants the members changed.
    pub(crate) fn change_members(&mut self, caller: Caller, request: ChangeMembersRequest, body: Bytes) {
        let opcode = Opcode::ChangeMembers;
        if !self.decides(caller, opcode, META, &body) {
            return;
        }
        let node = request.node;
        let command = match request.change {
            MemberChange::Add => self.adding(request),
            MemberChange::Remove => Ok(Command::RemoveMember { node }),
            // Said again while the node catches up, it goes on.
            MemberChange::Renew if self.is_renewed(node) => return self.reply(caller, opcode, Response::ChangeMembers),
            MemberChange::Renew => Ok(Command::RenewMember { node }),
            MemberChange::Forget => self.abandoning(node),
        };
        match command {
            Ok(command) => self.submit_admin(caller, opcode, &command, Kind::ChangeMembers),
            Err((code, message)) => self.refuse(caller, opcode, code, message),
        }
    }

    /// Whether a node has come anew and is on its way to take the place of its former self.
    fn is_renewed(&self, node: u64) -> bool {
        let members = self.catalog.members();
        members.of_node(node).is_some_and(|member| member.incarnation != 0)
            && members.former().any(|former| former.id.node() == node)
    }

    fn adding(&self, request: ChangeMembersRequest) -> Result<Command, (ErrorCode, String)> {
        let ChangeMembersRequest { node, replaces, client_address, peer_address, http_address, .. } = request;
        let invalid = |message| Err((ErrorCode::InvalidMembership, message));
        if !is_node(node) {
            return invalid(format!("node id {node} is out of range: 1 to {}", u32::MAX));
        }
        let addresses = Addresses { client: client_address, peer: peer_address, http: http_address };
        if let Err(message) = addresses.check() {
            return invalid(message);
        }
        if let Some((member, what)) = self.catalog.members().at(&addresses, node, replaces) {
            let other = member.id.node();
            return invalid(format!(
                "the {what} address given for node {node} is one of node {other}: look which is meant"
            ));
        }
        // Whoever takes the place of a node that is gone may have its addresses, too.
        let lives = |old: &u64| *old == self.config.node.node() || self.peers.is_node_connected(*old);
        if let Some((_, what)) = replaces.filter(lives).and_then(|_| self.catalog.members().at(&addresses, node, None))
        {
            let old = replaces.unwrap_or_default();
            return invalid(format!(
                "the {what} address given for node {node} is one of node {old}, which still runs there: give node {node} \
                 addresses of its own, or stop node {old} first"
            ));
        }
        Ok(Command::AddMember { node, addresses, replaces })
    }

    /// End what cannot complete: a member that does not come, or does not come to vote, goes, and if its former self still
    /// votes, that one stays. Whoever votes is not forgotten.
    fn abandoning(&self, node: u64) -> Result<Command, (ErrorCode, String)> {
        /// The first format that knows how to keep a former self.
        const SINCE_FORMAT: u32 = 3;
        let members = self.catalog.members();
        let Some(member) = members.of_node(node) else {
            let error = MemberError::Unknown { node };
            return Err((ErrorCode::UnknownMember, error.to_string()));
        };
        let mut former = members.former().filter(|former| former.id.node() == node).map(|former| former.id).max();
        for group in self.shard.group_ids() {
            let settled = |status: &Status| status.configuration_committed && !status.configuration.is_joint();
            let Some(status) = self.shard.status(group).filter(settled).filter(|_| self.is_fresh(group)) else {
                let message = format!("the members of group {} are changing or not known here at the moment", group.0);
                return Err((ErrorCode::NotReady, message));
            };
            if status.configuration.is_voter(member.id) {
                let message = format!(
                    "node {node} votes in group {}: it is no member that fails to come; `lance cluster remove {node}` \
                     lets it go, `lance cluster replace {node}` replaces it",
                    group.0
                );
                return Err((ErrorCode::InvalidMembership, message));
            }
            former = former.filter(|former| status.configuration.is_voter(*former));
        }
        match former {
            None => Ok(Command::RemoveMember { node }),
            Some(_) if self.format() < SINCE_FORMAT => {
                let message = format!(
                    "the former self of node {node} can stay only in a cluster of format {SINCE_FORMAT}, this one has {}: \
                     `lance cluster finalize` raises it",
                    self.format()
                );
                Err((ErrorCode::InvalidRequest, message))
            }
            Some(former) => Ok(Command::AbandonMember { id: member.id, instead: Some(former) }),
        }
    }

    /// Answer who asked for a change of the members.
    pub(crate) fn members_changed(&mut self, origin: Origin, result: Result<(), MemberError>) {
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
    pub(crate) fn reconcile_members(&mut self) {
        self.let_go();
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
    pub(crate) fn found_members(&mut self) {
        /// How long the founders may take to connect, so that the format is one that all speak.
        const PATIENCE_US: u64 = 5_000_000;
        if self.catalog.members().is_founded() || !self.shard.is_leader(META) || self.has_backlog(META) {
            return;
        }
        let applied_term = self.applied.get(&META).map(|(_, term)| *term);
        if applied_term != self.shard.status(META).map(|status| status.term) {
            return;
        }
        let now = self.now_us();
        let since = *self.admission.founding_since_us.get_or_insert(now);
        let format = self.founding_format();
        if format.is_none() && now < since + PATIENCE_US {
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
        if let Some(format) = format {
            self.submit(META, &Command::RaiseFormat { format }, None);
        }
    }

    /// Admit who is expected, and who comes back with an empty disk once its former self is silent: while that one
    /// lives, this node itself among them, another process only uses its number by mistake.
    fn admit_applicants(&mut self) {
        /// How long an applicant is remembered without another sign of life.
        const MEMORY_US: u64 = 10_000_000;
        let now = self.now_us();
        // Whom its peers let in, since they believe its word, need not show itself again.
        let strays: Vec<(NodeId, u64)> =
            self.peers.ids().filter_map(|id| Some((id, self.peers.greeted(id)?.incarnation))).collect();
        strays.into_iter().for_each(|(id, incarnation)| self.stray(self.clock, id, incarnation));
        self.admission.applicants.retain(|_, applicant| applicant.seen_us + MEMORY_US > now);
        let Some(status) = self.shard.status(META) else { return };
        let members = self.catalog.members();
        let welcome = |(node, applicant): (&u64, &Applicant)| {
            let member = members.of_node(*node)?;
            let alive = member.id == self.config.node
                || self.peers.is_connected(member.id)
                || status.peers.iter().any(|peer| peer.id == member.id && peer.recently_active);
            let new = member.incarnation != applicant.incarnation;
            let incarnation = applicant.incarnation;
            (new && (member.incarnation == 0 || !alive)).then_some(Command::AdmitMember { node: *node, incarnation })
        };
        let commands: Vec<Command> = self.admission.applicants.iter().filter_map(welcome).collect();
        for command in commands {
            if let Command::AdmitMember { node, incarnation } = command {
                tracing::info!(node, incarnation, "admitting a node that came with a fresh data directory");
                self.admission.applicants.remove(&node);
            }
            self.submit(META, &command, None);
        }
    }

    /// Former members that no group names any more, as far as this replica knows, are gone for good.
    fn forget_members(&mut self) {
        let statuses: Vec<Status> = self.shard.group_ids().filter_map(|group| self.shard.status(group)).collect();
        // A group of which this replica is behind may name somebody whom it has not heard of.
        let knows_all = self.shard.group_ids().all(|group| self.is_fresh(group));
        if !knows_all || statuses.len() < self.shard.group_ids().count() {
            return;
        }
        let named = |id: NodeId| statuses.iter().any(|status| names(status, id));
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
        let keeps_up = |peer: &Progress| self.leadership.pace.keeps_up(now_us, group, peer.id, CAUGHT_UP_US);
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
    pub(crate) fn is_leaving(&self, id: NodeId) -> bool {
        let members = self.catalog.members();
        let replaced = |member: &Member| member.incarnation != 0 && member.replaces == Some(id.node());
        members.is_founded()
            && (members.of_node(id.node()).is_none_or(|m| m.id != id) || members.current().any(replaced))
    }

    /// Everyone whom a group of partitions names; `None` if this replica does not know all of them, as one does not that is
    /// behind.
    fn named_by_data_groups(&self) -> Option<BTreeSet<NodeId>> {
        let mut named = BTreeSet::new();
        for group in self.shard.group_ids().filter(|group| *group != META) {
            let known = |status: &Status| status.configuration_committed && self.is_fresh(group);
            let status = self.shard.status(group).filter(known)?;
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
    pub(crate) fn release_replaced(&mut self) {
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

/// Whether a group may name a member; one whose configuration is not settled may go back to an earlier one.
fn names(status: &Status, id: NodeId) -> bool {
    !status.configuration_committed || status.configuration.contains(id)
}
