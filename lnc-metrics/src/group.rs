//! The metrics of one Raft group, looked up once and then updated without touching a label.

use std::collections::BTreeMap;

use crate::catalogue::Metrics;
use crate::instrument::{Counter, Gauge, GaugeVec};

/// What a replica is in its group, as the `lance_role` gauge shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower = 0,
    /// Asks for votes.
    Candidate = 1,
    /// Leads the group.
    Leader = 2,
}

/// Handles to the metrics of one group on this node; made by [`Metrics::group`].
#[derive(Clone, Debug)]
pub struct GroupMetrics {
    /// Highest index known to be committed.
    pub commit_index: Gauge,
    /// Highest index applied to the state machine.
    pub applied_index: Gauge,
    /// Highest index on this node's stable storage.
    pub durable_index: Gauge,
    /// Highest index in this node's log.
    pub last_index: Gauge,
    /// Current term.
    pub term: Gauge,
    /// Elections that this node started.
    pub elections_total: Counter,
    /// Times this node saw the leader change.
    pub leader_changes_total: Counter,
    role: Gauge,
    group: String,
    lag_family: GaugeVec,
    lag: BTreeMap<u64, Gauge>,
}

impl GroupMetrics {
    pub(crate) fn new(metrics: &Metrics, group: u32) -> Self {
        let group = group.to_string();
        let label = [group.as_str()];
        Self {
            commit_index: metrics.commit_index.with_label_values(&label),
            applied_index: metrics.applied_index.with_label_values(&label),
            durable_index: metrics.durable_index.with_label_values(&label),
            last_index: metrics.last_index.with_label_values(&label),
            term: metrics.term.with_label_values(&label),
            elections_total: metrics.elections_total.with_label_values(&label),
            leader_changes_total: metrics.leader_changes_total.with_label_values(&label),
            role: metrics.role.with_label_values(&label),
            lag_family: metrics.replication_lag.clone(),
            lag: BTreeMap::new(),
            group,
        }
    }

    /// Shows what this node is in the group. Only a leader knows how far its peers lag, so any other role drops the
    /// lag gauges: a stale lag would look like a stuck follower.
    pub fn set_role(&mut self, role: Role) {
        self.role.set(role as u64);
        if role != Role::Leader {
            for peer in std::mem::take(&mut self.lag).into_keys() {
                // Fails only where another handle of the same group removed the gauge first.
                let _ = self.lag_family.remove_label_values(&[&self.group, &peer.to_string()]);
            }
        }
    }

    /// Shows how many entries of the leader's log `peer` does not have yet.
    pub fn set_replication_lag(&mut self, peer: u64, entries: u64) {
        let gauge = self
            .lag
            .entry(peer)
            .or_insert_with(|| self.lag_family.with_label_values(&[&self.group, &peer.to_string()]));
        gauge.set(entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_one_group_count_under_its_label() {
        let metrics = Metrics::new();
        let mut group = metrics.group(7);
        group.commit_index.set(42);
        group.elections_total.inc();
        group.set_role(Role::Leader);
        metrics.group(8).commit_index.set(1);

        let text = metrics.render();
        assert!(text.contains("lance_commit_index{group=\"7\"} 42\n"), "{text}");
        assert!(text.contains("lance_commit_index{group=\"8\"} 1\n"), "{text}");
        assert!(text.contains("lance_elections_total{group=\"7\"} 1\n"), "{text}");
        assert!(text.contains("lance_role{group=\"7\"} 2\n"), "{text}");
    }

    #[test]
    fn a_leader_that_steps_down_drops_its_lag_gauges() {
        let metrics = Metrics::new();
        let mut group = metrics.group(1);
        group.set_role(Role::Leader);
        group.set_replication_lag(2, 9);
        group.set_replication_lag(2, 5);
        assert!(metrics.render().contains("lance_replication_lag{group=\"1\",peer=\"2\"} 5\n"));

        group.set_role(Role::Follower);
        assert!(!metrics.render().contains("lance_replication_lag{"), "{}", metrics.render());

        group.set_role(Role::Leader);
        group.set_replication_lag(2, 3);
        assert!(metrics.render().contains("lance_replication_lag{group=\"1\",peer=\"2\"} 3\n"));
    }
}
