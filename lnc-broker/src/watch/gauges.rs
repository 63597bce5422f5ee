//! What a node shows of its state: gauges that are set from time to time, instead of at every change.

use crate::machines::catalog::Topic;
use crate::serve::costs::ReplySizes;
use crate::watch::event::{Event, Sink};
use crate::{Broker, Clock};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_metrics::{GroupMetrics, Metrics, PeerFigures, TopicFigures, TopicMetrics};
use lnc_raft::{ProgressState, Role};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// Time between two looks at all partitions, in microseconds: there may be many.
const LOOK_US: u64 = 5_000_000;

/// How long a reader that does not fetch counts, in microseconds: longer than a fetch may wait for records.
const KEEP_US: u64 = 90_000_000;

/// Most readers of partitions that are kept account of; further ones do not count.
const MAX_READERS: usize = 100_000;

/// How far a client has read in a partition.
#[derive(Debug)]
struct Position {
    offset: u64,
    at_us: u64,
}

/// The figures of topics, and what they need to know.
pub(crate) struct Figures {
    topics: TopicMetrics,
    /// By connection and partition.
    positions: BTreeMap<(u64, PartitionKey), Position>,
    next_look_us: u64,
    /// About how long replies are.
    pub(crate) reply_sizes: ReplySizes,
}

impl Figures {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            reply_sizes: ReplySizes::default(),
            topics: metrics.topics(),
            positions: BTreeMap::new(),
            next_look_us: 0,
        }
    }

    /// A client was given everything up to `offset` of a partition.
    pub(crate) fn read(&mut self, connection: u64, key: PartitionKey, offset: u64, at_us: u64) {
        let room = self.positions.len() < MAX_READERS;
        match self.positions.entry((connection, key)) {
            Entry::Occupied(mut known) => *known.get_mut() = Position { offset, at_us },
            Entry::Vacant(new) if room => drop(new.insert(Position { offset, at_us })),
            Entry::Vacant(_) => {}
        }
    }

    pub(crate) fn forget(&mut self, connection: u64) {
        /// Before every partition.
        const FIRST: PartitionKey = PartitionKey { topic_id: 0, partition: 0 };
        while let Some((&reader, _)) = self.positions.range((connection, FIRST)..).next()
            && reader.0 == connection
        {
            self.positions.remove(&reader);
        }
    }

    /// Of the readers of each partition, where the one furthest behind is.
    fn furthest_behind(&self) -> BTreeMap<PartitionKey, u64> {
        let mut least = BTreeMap::new();
        for ((_, key), position) in &self.positions {
            let offset = least.entry(*key).or_insert(position.offset);
            *offset = position.offset.min(*offset);
        }
        least
    }
}

/// The metrics of each group.
pub(crate) struct GroupGauges {
    metrics: BTreeMap<GroupId, GroupMetrics>,
}

impl GroupGauges {
    /// Those of these groups, all zero.
    pub(crate) fn new(metrics: &Metrics, groups: impl Iterator<Item = GroupId>) -> Self {
        Self { metrics: groups.map(|group| (group, metrics.group(group.0))).collect() }
    }
}

impl Sink for GroupGauges {
    fn see(&mut self, _: Clock, event: &Event<'_>) {
        let Event::RoleChanged(group, change) = *event else { return };
        let Some(metrics) = self.metrics.get(&group) else { return };
        if change.role == Role::Candidate {
            metrics.elections_total.inc();
        } else if change.leader.is_some() {
            metrics.leader_changes_total.inc();
        }
    }
}

impl<D: Disk> Broker<D> {
    /// Show how the peers of a group that is led here are.
    pub(crate) fn show_peers(&mut self, group: GroupId, status: &lnc_raft::Status) {
        let Some(metrics) = self.watch.groups.metrics.get_mut(&group) else { return };
        for peer in &status.peers {
            let figures = PeerFigures {
                lag: peer.known.then(|| status.last.saturating_sub(peer.match_index)),
                in_flight: peer.in_flight as u64,
                evicted: !peer.recently_active || peer.state == ProgressState::NeedsSnapshot,
            };
            metrics.set_peer(peer.id.node(), figures);
        }
    }

    /// Once a second.
    pub(crate) fn update_gauges(&mut self) {
        for (group, metrics) in &mut self.watch.groups.metrics {
            let Some(status) = self.shard.status(*group) else { continue };
            metrics.commit_index.set(status.commit);
            metrics.applied_index.set(self.applied.get(group).map_or(0, |(index, _)| *index));
            metrics.durable_index.set(status.durable);
            metrics.last_index.set(status.last);
            metrics.term.set(status.term);
            if let Some(proposals) = self.proposals.get(group) {
                metrics.produce_window_bytes.set(proposals.window() as u64);
                metrics.produce_waiting_bytes.set(proposals.waiting_bytes() as u64);
            }
            metrics.set_role(match status.role {
                Role::Leader => lnc_metrics::Role::Leader,
                Role::Follower => lnc_metrics::Role::Follower,
                Role::PreCandidate | Role::Candidate => lnc_metrics::Role::Candidate,
            });
            metrics.keep_peers(|peer| status.peers.iter().any(|known| known.id.node() == peer));
        }
        let metrics = &self.metrics;
        metrics.in_flight_bytes.set(self.in_flight.bytes() as u64);
        metrics.tail_cache_bytes.set(self.storage.cached_bytes() as u64);
        metrics.journal_bytes.set(self.shard.journal().bytes());
        metrics.segment_unwritten_bytes.set(self.storage.unwritten_bytes());
        metrics.disk_reserve_bytes.set(self.config.reserve_bytes);
        metrics.checkpoint_pending_bytes.set(self.checkpoint.applied_bytes);
        metrics.checkpoint_age_seconds.set(self.now_us().saturating_sub(self.checkpoint.completed_us) / 1_000_000);
        metrics.transfers_active.set(self.transfers.progress().count() as u64);
        let lost = self.shard.group_ids().filter_map(|group| self.shard.lost_entries(group));
        metrics.lost_entries.set(lost.sum::<usize>() as u64);
        let waits = |group: &GroupId| self.shard.is_in_doubt(*group) || self.shard.lost_entries(*group).is_some();
        metrics.groups_in_doubt.set(self.shard.group_ids().filter(waits).count() as u64);
        if self.now_us() >= self.figures.next_look_us {
            self.figures.next_look_us = self.now_us() + LOOK_US;
            self.look_at_topics();
        }
    }

    /// Show what each topic has here, and where it is read.
    fn look_at_topics(&mut self) {
        let now = self.now_us();
        self.figures.reply_sizes = self.count_reply_sizes();
        let (segments, figures) = (self.storage.segments(), &mut self.figures);
        figures.positions.retain(|_, position| position.at_us + KEEP_US > now);
        let positions = figures.furthest_behind();
        let mut by_topic: BTreeMap<u64, TopicFigures> = BTreeMap::new();
        let mut partitions = 0;
        for (key, partition) in self.groups.values().flat_map(|data| data.state.iter()) {
            partitions += 1;
            let topic = by_topic.entry(key.topic_id).or_default();
            topic.partitions += 1;
            topic.bytes += segments.size_bytes(key);
            topic.end_offset += partition.log_end_offset;
            topic.records += partition.log_end_offset.saturating_sub(partition.log_start_offset);
            if let Some(&offset) = positions.get(&key) {
                let (sum, behind) = topic.position.unwrap_or_default();
                topic.position = Some((sum + offset, behind + partition.log_end_offset.saturating_sub(offset)));
            }
        }
        let mut topics: Vec<&Topic> = self.catalog.topics().collect();
        topics.sort_unstable_by_key(|topic| topic.id);
        self.metrics.topics.set(topics.len() as u64);
        self.metrics.partitions.set(partitions);
        self.metrics.segment_bytes.set(by_topic.values().map(|topic| topic.bytes).sum());
        let shown =
            topics.iter().map(|topic| (topic.name.as_str(), by_topic.get(&topic.id).copied().unwrap_or_default()));
        figures.topics.set(shown);
    }
}
