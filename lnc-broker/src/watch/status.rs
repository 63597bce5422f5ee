//! What a node knows of the cluster at one moment, for whoever looks on: the status page and `lance top`.
//!
//! A [`Snapshot`] is made when it is asked for, and only then. It copies numbers; sorting, sums and texts are the
//! business of the one who asked, on another thread.

use crate::machines::catalog::Topic;
use crate::watch::event::{Event, Sink};
use crate::{Broker, Clock};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_protocol::message::{ClusterInfoResponse, PartitionDescription, TopicOptions};
use lnc_raft::{NodeId, Role, RoleChange};
use lnc_replication::notice::NodeFacts;
use std::collections::{BTreeMap, VecDeque};

/// Most partitions in a snapshot: the time to copy them is time in which the shard does nothing else.
pub const MAX_PARTITIONS: usize = 20_000;

/// Most changes of leadership that are remembered.
pub const MAX_ELECTIONS: usize = 64;

/// A node that was seen to lead a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Election {
    /// When this node heard of it, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The group.
    pub group: u32,
    /// The term that began.
    pub term: u64,
    /// Who leads in it.
    pub leader: u64,
}

/// The newest elections of all groups.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    /// The newest at the end.
    seen: VecDeque<Election>,
}

impl Sink for Elections {
    fn see(&mut self, clock: Clock, event: &Event<'_>) {
        if let Event::RoleChanged(group, change) = *event {
            self.note(clock.wall_ms, group, change);
        }
    }
}

impl Elections {
    /// A group's role, term or leader has changed on this node; noted if that tells of a new leader.
    fn note(&mut self, at_ms: u64, group: GroupId, change: RoleChange) {
        let Some(leader) = change.leader.map(NodeId::node) else { return };
        let election = Election { at_ms, group: group.0, term: change.term, leader };
        // A candidate that finds no voters goes back to the leader that it has.
        let last = self.seen.iter().rev().find(|seen| seen.group == election.group);
        if last.is_some_and(|last| (last.term, last.leader) == (election.term, election.leader)) {
            return;
        }
        if self.seen.len() == MAX_ELECTIONS {
            self.seen.pop_front();
        }
        self.seen.push_back(election);
    }
}

/// A topic with the extents of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicExtent {
    /// The topic's id.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// How it keeps its records.
    pub options: TopicOptions,
    /// How many partitions it has.
    pub count: u32,
    /// The partitions, in order; fewer than `count` where [`MAX_PARTITIONS`] was reached.
    pub partitions: Vec<PartitionDescription>,
}

/// What a node has said of itself last.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// When it said it, in milliseconds since the Unix epoch by its own clock.
    pub at_ms: u64,
    /// What it said.
    pub facts: NodeFacts,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When it was made, in milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// The same, in microseconds on a clock that never goes back.
    pub taken_us: u64,
    /// Nodes, groups, and states on their way to this node.
    pub cluster: ClusterInfoResponse,
    /// What the nodes that are heard have said of themselves, this node included, by number.
    pub facts: BTreeMap<u64, Said>,
    /// What is wrong with the clocks, in a sentence.
    pub clock_problem: Option<String>,
    /// That this node has no space for records, if it has none.
    pub space_problem: Option<String>,
    /// For each group that has a leader, the entries that the leader had committed and this node has not applied.
    pub behind: BTreeMap<u32, u64>,
    /// The newest elections of all groups since this node started, the newest first.
    pub elections: Vec<Election>,
    /// Topics by name, up to [`MAX_PARTITIONS`] partitions in all.
    pub topics: Vec<TopicExtent>,
    /// How many topics there are.
    pub topic_count: usize,
}

impl<D: Disk> Broker<D> {
    /// What this node knows of the cluster now. Takes time in proportion to the partitions, up to [`MAX_PARTITIONS`].
    pub fn snapshot(&self) -> Snapshot {
        let behind = self.shard.group_ids().filter_map(|group| Some((group.0, self.behind(group)?)));
        let describe = |topic: &Topic, key| self.describe_partition(topic, key);
        Snapshot {
            taken_ms: self.clock.wall_ms,
            taken_us: self.clock.mono_us,
            cluster: self.cluster_status(),
            facts: self.facts(),
            clock_problem: self.clock_problem(),
            space_problem: self.space_problem(),
            behind: behind.collect(),
            elections: self.watch.elections.seen.iter().rev().copied().collect(),
            topics: extents(self.catalog.topics(), MAX_PARTITIONS, describe),
            topic_count: self.catalog.topics().len(),
        }
    }

    fn facts(&self) -> BTreeMap<u64, Said> {
        let peers = self.peers.said();
        let own = Said { at_ms: self.clock.wall_ms, facts: self.own_facts() };
        peers.chain([(self.config.node.node(), own)]).collect()
    }

    fn behind(&self, group: GroupId) -> Option<u64> {
        let status = self.shard.status(group)?;
        let committed = if status.role == Role::Leader { status.commit } else { status.leader_commit? };
        Some(committed.saturating_sub(self.applied_index(group)))
    }
}

/// The first topics, with up to `room` partitions in all.
fn extents<'a>(
    topics: impl Iterator<Item = &'a Topic>,
    mut room: usize,
    describe: impl Fn(&Topic, PartitionKey) -> PartitionDescription,
) -> Vec<TopicExtent> {
    let mut extents = Vec::new();
    for topic in topics {
        if room == 0 {
            break;
        }
        let partitions: Vec<_> = topic.keys().take(room).map(|key| describe(topic, key)).collect();
        room -= partitions.len();
        let (id, name, options) = (topic.id, topic.name.clone(), topic.options.clone());
        extents.push(TopicExtent { id, name, options, count: topic.partitions, partitions });
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(term: u64, leader: Option<u64>) -> RoleChange {
        RoleChange { role: Role::Follower, term, leader: leader.map(NodeId) }
    }

    #[test]
    fn a_leader_is_noted_once_for_each_term() {
        let mut elections = Elections::default();
        elections.note(1, GroupId(0), change(1, Some(1)));
        elections.note(2, GroupId(1), change(1, Some(2)));
        elections.note(3, GroupId(0), change(2, None));
        elections.note(4, GroupId(0), change(1, Some(1)));
        elections.note(5, GroupId(0), change(2, Some(1)));
        let seen: Vec<_> = elections.seen.iter().map(|e| (e.at_ms, e.group, e.term, e.leader)).collect();
        assert_eq!(seen, [(1, 0, 1, 1), (2, 1, 1, 2), (5, 0, 2, 1)]);
    }

    #[test]
    fn only_the_newest_elections_are_remembered() {
        let mut elections = Elections::default();
        for term in 1..=MAX_ELECTIONS as u64 + 5 {
            elections.note(term, GroupId(0), change(term, Some(1)));
        }
        assert_eq!(elections.seen.len(), MAX_ELECTIONS);
        assert_eq!(elections.seen.front().map(|election| election.term), Some(6));
    }

    #[test]
    fn a_snapshot_has_room_for_so_many_partitions() {
        let topic = |id: u64, partitions| Topic {
            id,
            name: format!("t{id}"),
            partitions,
            data_groups: 1,
            options: TopicOptions::default(),
            created_ms: 0,
        };
        let describe = |_: &Topic, key: PartitionKey| PartitionDescription {
            partition: key.partition,
            group: 1,
            leader: None,
            log_start_offset: 0,
            high_watermark: 0,
            size_bytes: 0,
        };
        let topics = [topic(1, 3), topic(2, 4), topic(3, 1)];
        let seen = |room| -> Vec<(u32, usize)> {
            extents(topics.iter(), room, describe).iter().map(|t| (t.count, t.partitions.len())).collect()
        };
        assert_eq!(seen(8), [(3, 3), (4, 4), (1, 1)]);
        assert_eq!(seen(5), [(3, 3), (4, 2)]);
        assert_eq!(seen(3), [(3, 3)]);
        assert_eq!(seen(0), []);
    }
}
