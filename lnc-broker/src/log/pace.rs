//! How far followers are behind a leader, in time.
//!
//! Entries say little: a thousand of them are much for one disk and nothing for another. So a leader measures in rounds
//! (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, section 4.2.1): a round begins with the leader's last index, and
//! ends when the follower's disk has it. Under load there is always something under way; what counts is for how long.

use lnc_log::journal::GroupId;
use lnc_raft::{Index, NodeId, ProgressState, Status};
use std::collections::BTreeMap;

/// A follower on its way to what the leader had when the round began.
#[derive(Debug)]
struct Round {
    goal: Index,
    since_us: u64,
    /// How long the round before took.
    last_us: Option<u64>,
}

/// The followers of the groups that this node leads.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    rounds: BTreeMap<(GroupId, NodeId), Round>,
}

impl Pace {
    /// A group as it is now, seen often enough that times mean something.
    pub(crate) fn observe(&mut self, now_us: u64, group: GroupId, status: &Status) {
        // Only a leader knows peers.
        let follows = |id: NodeId| {
            status
                .peers
                .iter()
                .any(|peer| peer.id == id && peer.recently_active && peer.state == ProgressState::Replicate)
        };
        self.rounds.retain(|(of, id), _| *of != group || follows(*id));
        for peer in status.peers.iter().filter(|peer| follows(peer.id)) {
            let begun = || Round { goal: status.last, since_us: now_us, last_us: None };
            let round = self.rounds.entry((group, peer.id)).or_insert_with(begun);
            if peer.match_index >= round.goal {
                let last_us = Some(now_us.saturating_sub(round.since_us));
                *round = Round { goal: status.last, since_us: now_us, last_us };
            }
        }
    }

    /// Whether a follower has had, for a round at least, what this leader had `within_us` ago.
    pub(crate) fn keeps_up(&self, now_us: u64, group: GroupId, follower: NodeId, within_us: u64) -> bool {
        self.rounds.get(&(group, follower)).is_some_and(|round| {
            let under_way_us = now_us.saturating_sub(round.since_us);
            round.last_us.is_some_and(|last_us| last_us.max(under_way_us) <= within_us)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_raft::{Config, Configuration, Progress, Raft, Restored};

    const GROUP: GroupId = GroupId(1);
    const FOLLOWER: NodeId = NodeId(2);

    fn status(last: Index, match_index: Index, state: ProgressState) -> Status {
        let config = Config::new(NodeId(1), Configuration::of([NodeId(1)]), 1);
        let raft = Raft::new(config, Restored::default()).expect("a good configuration");
        let (id, next_index, in_flight) = (FOLLOWER, match_index + 1, 0);
        let peer = Progress {
            id,
            match_index,
            known: true,
            next_index,
            state,
            in_flight,
            recently_active: true,
            slow: false,
            learner: true,
        };
        Status { last, peers: vec![peer], ..raft.status() }
    }

    #[test]
    fn what_counts_is_time_and_not_entries() {
        let mut pace = Pace::default();
        let keeps_up = |pace: &Pace, now| pace.keeps_up(now, GROUP, FOLLOWER, 100);
        pace.observe(0, GROUP, &status(1_000_000, 10, ProgressState::Replicate));
        assert!(!keeps_up(&pace, 0), "no round is over");
        pace.observe(500, GROUP, &status(2_000_000, 1_000_000, ProgressState::Replicate));
        assert!(!keeps_up(&pace, 500), "the round took 500");
        pace.observe(550, GROUP, &status(3_000_000, 2_000_000, ProgressState::Replicate));
        assert!(keeps_up(&pace, 550), "a million entries behind, and 50 in time");
        assert!(!keeps_up(&pace, 651), "the next round takes longer");
    }

    #[test]
    fn who_is_not_followed_any_more_begins_anew() {
        let mut pace = Pace::default();
        let done = |state| status(5, 5, state);
        pace.observe(0, GROUP, &done(ProgressState::Replicate));
        pace.observe(1, GROUP, &done(ProgressState::Replicate));
        assert!(pace.keeps_up(1, GROUP, FOLLOWER, 100));
        pace.observe(2, GROUP, &done(ProgressState::NeedsSnapshot));
        assert!(!pace.keeps_up(2, GROUP, FOLLOWER, 100));
    }
}
