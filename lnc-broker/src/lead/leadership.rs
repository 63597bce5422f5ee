//! Who leads: this node hands groups over when it ends, when its disk is slow or full or its clock wrong, when it is about to
//! start anew, and when another node should lead them.

use crate::Broker;
use crate::lead::followers::Followers;
use crate::lead::slow_disk::SlowDisk;
use crate::log::pace::Pace;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_raft::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// How far a follower may be behind to be given a group, in microseconds: commands wait until it has everything.
const NEARLY_THERE_US: u64 = 250_000;

/// What a node knows of who should lead its groups.
#[derive(Default)]
pub(crate) struct Leadership {
    /// This node is about to end.
    draining: bool,
    /// Since when each data group that another node should lead is led here, for rebalancing.
    misplaced_since_us: BTreeMap<GroupId, u64>,
    slow_disk: SlowDisk,
    pub(crate) pace: Pace,
    pub(crate) followers: Followers,
}

impl Leadership {
    /// Whether this node is about to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// A flush of the journal took so long, in microseconds.
    pub(crate) fn synced(&mut self, took_us: u64) {
        self.slow_disk.synced(took_us);
    }
}

impl<D: Disk> Broker<D> {
    /// The groups that this node leads.
    pub(crate) fn led_groups(&self) -> Vec<GroupId> {
        self.shard.group_ids().filter(|group| self.shard.is_leader(*group)).collect()
    }

    /// Hand a group that this node leads to a voter. Says whether that is under way: if not, or if it comes to nothing, that is
    /// logged, and whoever asked asks again or takes another.
    pub(crate) fn hand_to(&mut self, group: GroupId, to: NodeId) -> bool {
        match self.moving_to(group) {
            Some(other) if other != to => {
                tracing::debug!(group = group.0, %to, %other, "the group is being handed to another node already");
                false
            }
            Some(_) => true,
            None => {
                self.begin_move(group, to);
                true
            }
        }
    }

    /// A leader whose disk is slow or full hands over, if there is somebody whose disk is not.
    pub(crate) fn look_at_disk(&mut self) {
        let now = self.now_us();
        let limit_us = self.config.slow_sync_us;
        let under_way_us = self.flushes.oldest_us(now);
        match self.leadership.slow_disk.second(limit_us, under_way_us) {
            Some(true) => tracing::warn!(
                limit_ms = limit_us / 1000,
                "syncs of the journal take long: groups led here are handed to nodes with faster disks; look at the disk and at \
                 what else uses it"
            ),
            Some(false) => tracing::info!("syncs of the journal are fast again"),
            None => {}
        }
        let slow = self.leadership.slow_disk.is_slow();
        self.metrics.slow_disk.set(slow.into());
        // Told every second, since groups come and go. A full disk is as little use to a leader as a slow one.
        let unfit = slow || self.was_short_of_space();
        self.shard.set_slow(unfit);
        if unfit {
            self.hand_to_the_fit();
        }
    }

    /// Hand what this node leads to nodes that are fitter for it, where there are any.
    pub(crate) fn hand_to_the_fit(&mut self) {
        for group in self.led_groups() {
            if let Some(to) = self.best_successor(group).filter(|to| self.could_take_over(group, *to)) {
                self.hand_to(group, to);
            }
        }
    }

    /// Whether a node has about all of a group that this one leads, a disk that is fast, and a clock that is right.
    fn could_take_over(&self, group: GroupId, node: NodeId) -> bool {
        let slow = self.shard.status(group).is_none_or(|s| s.peers.iter().any(|peer| peer.id == node && peer.slow));
        let fit = !slow && self.clocks.is_fit(node, self.now_us()) && !self.peers.drains(node);
        fit && self.leadership.pace.keeps_up(self.now_us(), group, node, NEARLY_THERE_US)
    }

    /// Begin a graceful end: refuse new writes, hand over every group that this node leads, and have readers who wait for
    /// records wait elsewhere. Done when [`Broker::is_drained`] says so.
    pub fn drain(&mut self) {
        self.leadership.draining = true;
        // So that nobody hands anything back.
        self.tell_clocks();
        self.hand_over();
        self.end_waits();
    }

    /// Hand over what this node leads to the best of those who are there.
    pub(crate) fn hand_over(&mut self) {
        for group in self.led_groups() {
            if let Some(to) = self.best_successor(group) {
                self.hand_to(group, to);
            }
        }
    }

    /// Whether this node leads no group that another could lead, so that ending it interrupts nobody.
    pub fn is_drained(&self) -> bool {
        self.leadership.draining && self.leads_nothing_for_others()
    }

    /// Whether there is nobody to whom a group could be handed.
    pub(crate) fn leads_nothing_for_others(&self) -> bool {
        self.led_groups().into_iter().all(|group| self.best_successor(group).is_none())
    }

    /// The connected voter that has most of the group's log.
    fn best_successor(&self, group: GroupId) -> Option<NodeId> {
        let voters = self.shard.status(group)?.configuration.voters;
        self.best_successor_among(group, &voters)
    }

    /// The same among some voters. Who is about to leave the cluster comes last: it would only hand on what it gets. Who is about
    /// to end gets nothing: when all end, nothing is handed round.
    pub(crate) fn best_successor_among(&self, group: GroupId, voters: &BTreeSet<NodeId>) -> Option<NodeId> {
        let status = self.shard.status(group)?;
        let fit = |peer: &&lnc_raft::Progress| {
            peer.recently_active
                && (self.leadership.draining || (!peer.slow && self.clocks.is_fit(peer.id, self.now_us())))
                && voters.contains(&peer.id)
                && !self.peers.drains(peer.id)
                && self.peers.is_connected(peer.id)
        };
        let best = |peer: &&lnc_raft::Progress| (!self.is_leaving(peer.id), peer.match_index);
        status.peers.iter().filter(fit).max_by_key(best).map(|peer| peer.id)
    }

    /// The node that should lead a group when all are well: leaders are spread over the voters that stay.
    fn preferred_leader(&self, group: GroupId) -> Option<NodeId> {
        let mut voters = self.shard.status(group)?.configuration.voters;
        voters.retain(|node| !self.is_leaving(*node));
        voters.iter().nth(group.0 as usize % voters.len().max(1)).copied()
    }

    /// Hand groups to the nodes that should lead them once those have been fit for a while.
    pub(crate) fn rebalance_leaders(&mut self) {
        /// How long a better leader must be fit before it gets the group.
        const PATIENCE_US: u64 = 3_000_000;
        let groups: Vec<GroupId> = self.shard.group_ids().collect();
        for group in groups {
            let preferred = self.preferred_leader(group).filter(|node| *node != self.config.node);
            let fit = preferred.filter(|node| {
                self.shard.is_leader(group) && self.peers.is_connected(*node) && self.could_take_over(group, *node)
            });
            let Some(to) = fit else {
                self.leadership.misplaced_since_us.remove(&group);
                continue;
            };
            let now = self.now_us();
            let since = *self.leadership.misplaced_since_us.entry(group).or_insert(now);
            if now >= since + PATIENCE_US && self.hand_to(group, to) {
                tracing::info!(group = group.0, to = %to, "handing leadership to the node that should have it");
                self.leadership.misplaced_since_us.remove(&group);
            }
        }
    }
}
