//! Followers that live and fall behind. A leader takes no more records than they can follow, before what they lack leaves its
//! journal: they would have to fetch the whole state, and would not count for the quorum until they have it.
//!
//! Nobody is held up by a follower for long: one that stands still is let go after a few seconds, and one that does not come
//! nearer after a minute. It then costs a transfer of state, as one that was down does.

use crate::Broker;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_mutation::{Mutation, mutated};
use lnc_raft::{Index, NodeId, ProgressState, Status};
use std::collections::BTreeMap;

/// How long a follower that does not advance is waited for, in microseconds.
const STANDS_STILL_US: u64 = 5_000_000;

/// How long one that advances may stay as far behind, in microseconds.
const STAYS_BEHIND_US: u64 = 60_000_000;

/// A follower that has told what it has.
#[derive(Debug)]
struct Follower {
    match_index: Index,
    advanced_us: u64,
    /// Since when it is further behind than it should be.
    behind_since_us: Option<u64>,
    let_go: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Followers {
    followers: BTreeMap<(GroupId, NodeId), Follower>,
    /// The follower of each group for which its clients are slowed down, and the bytes of the journal that it is behind.
    waited_for: BTreeMap<GroupId, (NodeId, u64)>,
}

impl<D: Disk> Broker<D> {
    /// Bytes of the journal that a follower may be behind. Half of what is kept: it goes in whole files, and what is under way
    /// comes on top.
    pub(crate) fn most_behind(&self) -> u64 {
        self.shard.journal_retained() / 2
    }

    /// The follower for which the clients of a group are slowed down, and how far it is behind.
    pub(crate) fn waits_for_follower(&self, group: GroupId) -> Option<(NodeId, u64)> {
        self.leadership.followers.waited_for.get(&group).copied().filter(|_| !mutated(Mutation::WaitForNobody))
    }

    /// The followers of a group that have to fetch its state, if this node leads it.
    pub fn lost_followers(&self, group: GroupId) -> Vec<NodeId> {
        let peers = self.shard.status(group).map(|status| status.peers).unwrap_or_default();
        let lost = peers.into_iter().filter(|peer| peer.state == ProgressState::NeedsSnapshot);
        lost.map(|peer| peer.id).collect()
    }

    /// See how far the followers of a group are. With each tick.
    pub(crate) fn look_at_followers(&mut self, group: GroupId, status: &Status) {
        let (now, most) = (self.now_us(), self.most_behind());
        let is_live = |peer: &&lnc_raft::Progress| {
            peer.known && peer.recently_active && peer.state != ProgressState::NeedsSnapshot
        };
        let live: Vec<&lnc_raft::Progress> = status.peers.iter().filter(is_live).collect();
        let followers = &mut self.leadership.followers.followers;
        followers.retain(|(of, id), _| *of != group || live.iter().any(|peer| peer.id == *id));
        let mut furthest = None;
        for peer in live {
            let match_index = peer.match_index;
            let begun = || Follower { match_index, advanced_us: now, behind_since_us: None, let_go: false };
            let follower = followers.entry((group, peer.id)).or_insert_with(begun);
            if match_index > follower.match_index {
                (follower.match_index, follower.advanced_us) = (match_index, now);
            }
            let behind = self.shard.journal_behind(group, match_index + 1);
            if behind <= most {
                (follower.behind_since_us, follower.let_go) = (None, false);
                continue;
            }
            let since_us = *follower.behind_since_us.get_or_insert(now);
            let over = now >= follower.advanced_us + STANDS_STILL_US || now >= since_us + STAYS_BEHIND_US;
            if over && !follower.let_go {
                follower.let_go = true;
                self.metrics.followers_let_go_total.inc();
                tracing::warn!(
                    group = group.0,
                    node = %peer.id,
                    behind_bytes = behind,
                    still_seconds = now.saturating_sub(follower.advanced_us) / 1_000_000,
                    "a follower stays too far behind, and clients are not slowed down for it any longer: it will have to fetch the \
                     group's state. Look at its disk and the network to it"
                );
            }
            if !follower.let_go {
                furthest = furthest.max(Some((behind, peer.id)));
            }
        }
        let waited_for = &mut self.leadership.followers.waited_for;
        match furthest {
            Some((behind, id)) => {
                if waited_for.insert(group, (id, behind)).is_none() {
                    tracing::info!(group = group.0, node = %id, behind_bytes = behind, "slowing clients down for a follower");
                }
            }
            None => drop(waited_for.remove(&group)),
        }
        self.metrics.followers_waited_for.set(self.leadership.followers.waited_for.len() as u64);
    }
}
