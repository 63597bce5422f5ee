//! Whether this node may be sent traffic: how far it is behind the leaders, in time, and which followers are out of reach of this
//! one's journal.

use crate::Broker;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_raft::{NodeId, ProgressState};
use std::collections::{BTreeMap, BTreeSet};

/// How far a group of this node is behind its leader, in time.
#[derive(Clone, Copy, Default)]
struct Freshness {
    /// A commit index of the leader, and when it was heard.
    target: Option<(u64, u64)>,
    /// When the last target that is applied was heard.
    caught_up_us: Option<u64>,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Readiness {
    freshness: BTreeMap<GroupId, Freshness>,
    /// Followers that need entries which the journal no longer holds, by group.
    left_behind: BTreeSet<(GroupId, NodeId)>,
}

impl<D: Disk> Broker<D> {
    /// Whether this node may be sent traffic: every group has a leader and this node has what the leader has committed.
    pub fn readiness(&self) -> Result<(), String> {
        /// How old the leader's commit index that this node has applied may be.
        const MAX_STALE_US: u64 = 2_000_000;
        if self.leadership.is_draining() {
            return Err("shutting down".into());
        }
        if let Some(reason) = self.estranged() {
            return Err(reason);
        }
        for group in self.shard.group_ids() {
            if let Some(lost) = self.shard.lost_entries(group) {
                return Err(format!("group {} waits for {lost} entries that its damaged journal lost", group.0));
            }
            if self.shard.is_in_doubt(group) {
                return Err(format!(
                    "group {} waits for a leader of another node: this node's disk has lost what it acknowledged",
                    group.0
                ));
            }
            let Some(status) = self.shard.status(group) else { continue };
            if status.stalled {
                return Err(format!(
                    "group {} commits nothing: this node leads it, and a majority does not acknowledge entries beyond index {}, though it \
                     answers heartbeats; see whether what is long gets through the network (MTU)",
                    group.0, status.commit
                ));
            }
            if status.leader.is_none() {
                return Err(format!("group {group} has no known leader", group = group.0));
            }
            let fresh = self.readiness.freshness.get(&group).copied().unwrap_or_default();
            if fresh.caught_up_us.is_none_or(|at| at + MAX_STALE_US < self.now_us()) {
                let applied = self.applied_index(group);
                let told = status.leader_commit.map_or("nothing yet".to_owned(), |index| format!("index {index}"));
                return Err(format!(
                    "group {} is catching up: applied index {applied}, the leader says that {told} is committed",
                    group.0
                ));
            }
        }
        Ok(())
    }

    /// Whether this node has, of a group, what its leader had committed a moment ago.
    pub(crate) fn is_fresh(&self, group: GroupId) -> bool {
        /// How long ago that may be.
        const MAX_AGE_US: u64 = 1_000_000;
        let fresh = self.readiness.freshness.get(&group).copied().unwrap_or_default();
        fresh.caught_up_us.is_some_and(|at| at + MAX_AGE_US >= self.now_us())
    }

    /// Whether this node has had, since it started, what a group's leader had committed.
    pub(crate) fn has_caught_up(&self, group: GroupId) -> bool {
        self.readiness.freshness.get(&group).is_some_and(|fresh| fresh.caught_up_us.is_some())
    }

    /// Note since when each group has applied what its leader had committed. Under load a replica is always a little
    /// behind: what counts is how long ago the leader had what this node has now.
    pub(crate) fn measure_freshness(&mut self) {
        let now = self.now_us();
        let groups: Vec<GroupId> = self.shard.group_ids().collect();
        for group in groups {
            let Some(status) = self.shard.status(group) else { continue };
            let applied = self.applied_index(group);
            let fresh = self.readiness.freshness.entry(group).or_default();
            if let Some((_, at)) = fresh.target.filter(|(target, _)| applied >= *target) {
                fresh.caught_up_us = Some(at);
                fresh.target = None;
            }
            if fresh.target.is_none() {
                fresh.target = status.leader_commit.map(|index| (index, now));
            }
            self.leadership.pace.observe(now, group, &status);
            self.look_at_followers(group, &status);
            self.show_peers(group, &status);
        }
    }

    /// Say once of each follower that this node's journal cannot catch it up.
    pub(crate) fn report_left_behind(&mut self) {
        let groups: Vec<GroupId> = self.shard.group_ids().collect();
        let mut behind = BTreeSet::new();
        for group in groups {
            let Some(status) = self.shard.status(group) else { continue };
            for peer in status.peers.iter().filter(|peer| peer.state == ProgressState::NeedsSnapshot) {
                behind.insert((group, peer.id));
                if !self.readiness.left_behind.contains(&(group, peer.id)) {
                    tracing::warn!(
                        group = group.0,
                        node = %peer.id,
                        needs = peer.match_index + 1,
                        first_index = status.first_index,
                        "a node needs entries that the journal no longer holds: it fetches the group's state instead, \
                         and does not count for the quorum until it has; raise journal.retain_bytes to make this rare"
                    );
                }
            }
        }
        self.readiness.left_behind = behind;
    }
}
