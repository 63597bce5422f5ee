//! Topics that were made or deleted in the catalog, while the data groups follow: who asked gets the answer once they have.
//!
//! A new topic can then be written to; and nobody can be told any more that a record went into a deleted one, since every later
//! leader of its groups has the deletion in its log. That is also so where a group never had the partition: it is told to
//! have none.
//!
//! What a replica has applied is committed, so any replica may say how far its group is. This node's own may be behind, be
//! repaired, or have no space: whoever waits asks the others too.

use crate::Broker;
use crate::log::proposals::{Kind, Origin};
use crate::machines::catalog::Topic;
use crate::machines::partitions::WHOLE_TOPICS_SINCE_FORMAT;
use crate::serve::costs::ENTRIES_PER_TURN;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::Response;
use lnc_raft::NodeId;
use lnc_replication::transfer::{TOPICS_SINCE_FORMAT, TransferBody};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Pause between two questions about topics, in microseconds.
const ASK_US: u64 = 100_000;

/// Topics of a group that are asked about at once; the others follow when these have come along.
const MAX_ASKED: usize = 64;

/// Deleted topics whose groups are told to have no partition of them, also where there never was one.
const MAX_UNMADE: usize = 1024;

/// Somebody waits for this.
struct Change {
    origin: Origin,
    topic: Topic,
}

/// How far another replica of a group has come with a topic.
#[derive(Clone, Copy, Default)]
struct Report {
    complete: bool,
    gone: bool,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct TopicChanges {
    waiting: VecDeque<Change>,
    /// What other replicas say of topics that somebody waits for.
    reports: BTreeMap<(GroupId, u64), Report>,
    asked_us: u64,
    /// Deleted since this node started, with the groups that may not know yet.
    unmade: BTreeMap<u64, BTreeSet<GroupId>>,
}

impl<D: Disk> Broker<D> {
    /// The catalog has changed; whoever asked for it hears of it once the data groups have followed.
    pub(crate) fn topic_changed(&mut self, origin: Origin, topic: Topic) {
        self.topic_changes.waiting.push_back(Change { origin, topic });
    }

    /// The catalog has no such topic any more.
    pub(crate) fn topic_deleted(&mut self, topic: &Topic) {
        let knows = |group: &GroupId| self.groups.get(group).is_some_and(|data| data.state.has_no_more_of(topic.id));
        let lack: BTreeSet<GroupId> = groups_of(topic).into_iter().filter(|group| !knows(group)).collect();
        if lack.is_empty() {
            return;
        }
        let unmade = &mut self.topic_changes.unmade;
        unmade.insert(topic.id, lack);
        if unmade.len() > MAX_UNMADE {
            unmade.pop_first();
        }
    }

    /// Deleted topics of which a group may not know that it is to have no partition.
    pub(crate) fn unmade_topics(&self, group: GroupId) -> impl Iterator<Item = u64> + '_ {
        self.topic_changes.unmade.iter().filter(move |(_, groups)| groups.contains(&group)).map(|(id, _)| *id)
    }

    /// A group has none of the topic's partitions, and knows it for good.
    pub(crate) fn topic_gone(&mut self, group: GroupId, topic_id: u64) {
        if let Some(groups) = self.topic_changes.unmade.get_mut(&topic_id) {
            groups.remove(&group);
            if groups.is_empty() {
                self.topic_changes.unmade.remove(&topic_id);
            }
        }
    }

    /// Answer whoever need not wait any longer. One turn looks at so many partitions, the next one goes on with who is behind.
    pub(crate) fn finish_topic_changes(&mut self) {
        let (mut room, mut done) = (ENTRIES_PER_TURN, Vec::new());
        for _ in 0..self.topic_changes.waiting.len() {
            let Some(change) = self.topic_changes.waiting.pop_front_if(|_| room > 0) else { break };
            room = room.saturating_sub(1 + change.topic.partitions as usize);
            match self.is_followed(&change) {
                true => done.push(change),
                false => self.topic_changes.waiting.push_back(change),
            }
        }
        if self.topic_changes.waiting.is_empty() {
            self.topic_changes.reports.clear();
        }
        for Change { origin, topic } in done {
            if matches!(origin.kind, Kind::DeleteTopic) {
                self.answer(origin, Response::DeleteTopic);
            } else if self.catalog.topic_by_id(topic.id).is_some() {
                let description = self.describe(&topic);
                self.answer(origin, Response::CreateTopic(description));
            } else {
                let message = format!("topic {:?} was deleted while it was being created", topic.name);
                self.fail(origin, ErrorCode::UnknownTopic, message);
            }
        }
    }

    /// Whether the data groups have done what the catalog says.
    fn is_followed(&self, Change { origin, topic }: &Change) -> bool {
        if matches!(origin.kind, Kind::DeleteTopic) {
            return self.is_gone(topic) || mutated(Mutation::DeletedEarly);
        }
        // A topic of this name may have been deleted without waiting for its partitions to go. As long as they are
        // there, a leader that has not heard of it could take records for the name into them.
        self.catalog.topic_by_id(topic.id).is_none()
            || groups_of(topic).into_iter().all(|group| self.is_complete(group, topic))
                && self.remains().next().is_none()
    }

    fn is_gone(&self, topic: &Topic) -> bool {
        if self.format() < WHOLE_TOPICS_SINCE_FORMAT {
            return !topic.keys().any(|key| self.has_partition(topic, key));
        }
        groups_of(topic).into_iter().all(|group| self.is_gone_from(group, topic.id))
    }

    fn is_gone_from(&self, group: GroupId, topic_id: u64) -> bool {
        let own = self.groups.get(&group).is_some_and(|data| data.state.has_no_more_of(topic_id));
        own || self.report(group, topic_id).gone
    }

    fn is_complete(&self, group: GroupId, topic: &Topic) -> bool {
        let mut keys = topic.keys().filter(|key| topic.group_of(key.partition) == group);
        keys.all(|key| self.has_partition(topic, key)) || self.report(group, topic.id).complete
    }

    fn report(&self, group: GroupId, topic_id: u64) -> Report {
        self.topic_changes.reports.get(&(group, topic_id)).copied().unwrap_or_default()
    }

    /// Groups and deleted topics of which, as far as is known, they still have partitions.
    fn remains(&self) -> impl Iterator<Item = (GroupId, u64)> + '_ {
        self.groups.iter().flat_map(move |(group, data)| {
            let deleted = data.state.iter().map(|(key, _)| key.topic_id).filter(|id| self.catalog.was_deleted(*id));
            deleted.filter(|id| !self.report(*group, *id).gone).map(|id| (*group, id))
        })
    }

    /// Fail whoever has waited for as long as was asked for, and ask the other replicas for those who wait on.
    pub(crate) fn tick_topic_changes(&mut self) {
        if self.topic_changes.waiting.is_empty() {
            return;
        }
        let now = self.now_us();
        let changes = std::mem::take(&mut self.topic_changes.waiting);
        let (late, waiting): (VecDeque<_>, VecDeque<_>) =
            changes.into_iter().partition(|change| change.origin.deadline_us <= now);
        self.topic_changes.waiting = waiting;
        for change in late {
            let (name, lacking) = (&change.topic.name, self.lacking(&change));
            let message =
                format!("topic {name:?} is changed in the catalog, but not all of its partitions in time: {lacking}");
            self.fail(change.origin, ErrorCode::Timeout, message);
        }
        if now >= self.topic_changes.asked_us + ASK_US && self.format() >= TOPICS_SINCE_FORMAT {
            self.topic_changes.asked_us = now;
            self.ask_about_topics();
        }
    }

    /// The groups that have not followed a change.
    fn lagging<'a>(&'a self, Change { origin, topic }: &'a Change) -> impl Iterator<Item = GroupId> + 'a {
        let deleted = matches!(origin.kind, Kind::DeleteTopic);
        groups_of(topic).into_iter().filter(move |group| match deleted {
            true => !self.is_gone_from(*group, topic.id),
            false => !self.is_complete(*group, topic),
        })
    }

    /// Which they are, for the one who waited.
    fn lacking(&self, change: &Change) -> String {
        let leader = |group: GroupId| match self.shard.leader(group) {
            Some(leader) => format!("group {}, led by node {leader}", group.0),
            None => format!("group {}, without a known leader", group.0),
        };
        let groups: Vec<String> = self.lagging(change).map(leader).collect();
        if groups.is_empty() { "partitions of deleted topics are still there".to_owned() } else { groups.join("; ") }
    }

    fn ask_about_topics(&mut self) {
        let mut asks: Vec<(GroupId, TransferBody)> = Vec::new();
        for change in &self.topic_changes.waiting {
            let topic = &change.topic;
            let (topic_id, partitions, data_groups) = (topic.id, topic.partitions, topic.data_groups);
            let ask = |group| (group, TransferBody::AskTopic { topic_id, partitions, data_groups });
            asks.extend(self.lagging(change).map(ask));
        }
        let remains: BTreeSet<(GroupId, u64)> = self.remains().take(MAX_ASKED).collect();
        let gone = |(group, topic_id)| (group, TransferBody::AskTopic { topic_id, partitions: 0, data_groups: 1 });
        asks.truncate(MAX_ASKED);
        asks.extend(remains.into_iter().map(gone));
        let peers: Vec<NodeId> = self.peers.ids().collect();
        for (group, body) in asks {
            for peer in &peers {
                self.answer_peer(*peer, group, body.clone());
            }
        }
    }

    /// A peer asks how far this node's replica of a group is with a topic.
    pub(crate) fn tell_of_topic(
        &mut self,
        to: NodeId,
        group: GroupId,
        topic_id: u64,
        partitions: u32,
        data_groups: u32,
    ) {
        let Some(data) = self.groups.get(&group) else { return };
        let topic = Topic { id: topic_id, partitions, data_groups, ..Topic::default() };
        let most = self.config.max_partitions_per_topic;
        let there = |partition: u32| data.state.get(PartitionKey { topic_id, partition }).is_some();
        let complete = (0..partitions.min(most)).filter(|p| topic.group_of(*p) == group).all(there);
        let gone = data.state.has_no_more_of(topic_id);
        let complete = complete && partitions > 0 && partitions <= most;
        self.answer_peer(to, group, TransferBody::Topic { topic_id, complete, gone });
    }

    /// A peer has said how far its replica of a group is.
    pub(crate) fn heard_of_topic(&mut self, group: GroupId, topic_id: u64, complete: bool, gone: bool) {
        if self.topic_changes.waiting.is_empty() || !(complete || gone) {
            return;
        }
        let report = self.topic_changes.reports.entry((group, topic_id)).or_default();
        report.complete |= complete;
        report.gone |= gone;
        self.finish_topic_changes();
    }
}

/// The groups that hold partitions of a topic.
fn groups_of(topic: &Topic) -> BTreeSet<GroupId> {
    // After as many partitions as there are groups they repeat.
    (0..topic.partitions.min(topic.data_groups.max(1))).map(|partition| topic.group_of(partition)).collect()
}
