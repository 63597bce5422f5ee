//! The metrics of one Raft group, looked up once and then updated without touching a label.

use std::collections::BTreeMap;

use crate::catalogue::Metrics;
use crate::instrument::{Counter, CounterVec, Gauge, GaugeVec};

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
    /// Bytes that may be on their way to a majority at once.
    pub produce_window_bytes: Gauge,
    /// Bytes that wait for room in it.
    pub produce_waiting_bytes: Gauge,
    /// Elections that this node started.
    pub elections_total: Counter,
    /// Times this node saw the leader change.
    pub leader_changes_total: Counter,
    role: Gauge,
    group: String,
    lag_family: GaugeVec,
    in_flight_family: GaugeVec,
    evicted_family: GaugeVec,
    evictions: CounterVec,
    peers: BTreeMap<u64, Peer>,
}

/// A leader's gauges of one peer.
#[derive(Clone, Debug)]
struct Peer {
    lag: Option<Gauge>,
    in_flight: Gauge,
    evicted: Gauge,
}

/// What a leader shows of one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerFigures {
    /// Entries of the leader's log that the peer does not have yet; None while the leader cannot tell.
    pub lag: Option<u64>,
    /// Messages with entries that are not acknowledged yet.
    pub in_flight: u64,
    /// Whether it is left out of the fan-out.
    pub evicted: bool,
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
            produce_window_bytes: metrics.produce_window_bytes.with_label_values(&label),
            produce_waiting_bytes: metrics.produce_waiting_bytes.with_label_values(&label),
            elections_total: metrics.elections_total.with_label_values(&label),
            leader_changes_total: metrics.leader_changes_total.with_label_values(&label),
            role: metrics.role.with_label_values(&label),
            lag_family: metrics.replication_lag.clone(),
            in_flight_family: metrics.replication_in_flight.clone(),
            evicted_family: metrics.fan_out_evicted.clone(),
            evictions: metrics.fan_out_evictions_total.clone(),
            peers: BTreeMap::new(),
            group,
        }
    }

    /// Shows what this node is in the group. Only a leader knows how its peers are, so any other role drops their gauges:
    /// a stale lag would look like a stuck follower.
    pub fn set_role(&mut self, role: Role) {
        self.role.set(role as u64);
        if role != Role::Leader {
            for peer in std::mem::take(&mut self.peers).into_keys() {
                self.drop_gauges(peer);
            }
        }
    }

    /// Shows how a peer of the leader is. A peer that is left out of the fan-out from now on is counted.
    pub fn set_peer(&mut self, peer: u64, figures: PeerFigures) {
        let number = peer.to_string();
        let labels = [self.group.as_str(), &number];
        let gauges = self.peers.entry(peer).or_insert_with(|| Peer {
            lag: None,
            in_flight: self.in_flight_family.with_label_values(&labels),
            evicted: self.evicted_family.with_label_values(&labels),
        });
        match figures.lag {
            Some(lag) => gauges.lag.get_or_insert_with(|| self.lag_family.with_label_values(&labels)).set(lag),
            // What is not known has no sample: an alert would take any number for a fact.
            None if gauges.lag.take().is_some() => drop(self.lag_family.remove_label_values(&labels)),
            None => {}
        }
        gauges.in_flight.set(figures.in_flight);
        if figures.evicted && gauges.evicted.get() == 0 {
            self.evictions.with_label_values(&[&peer.to_string()]).inc();
        }
        gauges.evicted.set(figures.evicted.into());
    }

    /// Shows nothing any more of peers that are not among these: they were removed.
    pub fn keep_peers(&mut self, keep: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self.peers.keys().copied().filter(|peer| !keep(*peer)).collect();
        for peer in gone {
            self.peers.remove(&peer);
            self.drop_gauges(peer);
        }
    }

    fn drop_gauges(&self, peer: u64) {
        for family in [&self.lag_family, &self.in_flight_family, &self.evicted_family] {
            // Fails only where another handle of the same group removed the gauge first.
            let _ = family.remove_label_values(&[&self.group, &peer.to_string()]);
        }
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

    fn lag(lag: u64) -> PeerFigures {
        PeerFigures { lag: Some(lag), in_flight: 0, evicted: false }
    }

    #[test]
    fn a_leader_that_steps_down_drops_the_gauges_of_its_peers() {
        let metrics = Metrics::new();
        let mut group = metrics.group(1);
        group.set_role(Role::Leader);
        group.set_peer(2, lag(9));
        group.set_peer(2, lag(5));
        assert!(metrics.render().contains("lance_replication_lag{group=\"1\",peer=\"2\"} 5\n"));

        group.set_role(Role::Follower);
        assert!(!metrics.render().contains("peer=\"2\""), "{}", metrics.render());

        group.set_role(Role::Leader);
        group.set_peer(2, lag(3));
        group.set_peer(3, lag(4));
        group.keep_peers(|peer| peer == 2);
        assert!(metrics.render().contains("lance_replication_lag{group=\"1\",peer=\"2\"} 3\n"));
        assert!(!metrics.render().contains("peer=\"3\""), "{}", metrics.render());
    }

    #[test]
    fn a_lag_that_is_not_known_is_not_shown() {
        let metrics = Metrics::new();
        let mut group = metrics.group(1);
        let unknown = PeerFigures { lag: None, in_flight: 0, evicted: true };
        let shown = || metrics.render().contains("lance_replication_lag{");
        group.set_peer(2, unknown);
        assert!(!shown() && metrics.render().contains("lance_fan_out_evicted{group=\"1\",peer=\"2\"} 1\n"));
        group.set_peer(2, lag(0));
        assert!(shown());
        group.set_peer(2, unknown);
        assert!(!shown());
    }

    #[test]
    fn each_eviction_is_counted_once() {
        let metrics = Metrics::new();
        let mut group = metrics.group(1);
        let figures = |evicted| PeerFigures { lag: Some(0), in_flight: 0, evicted };
        for evicted in [false, true, true, false, true] {
            group.set_peer(2, figures(evicted));
        }
        assert!(metrics.render().contains("lance_fan_out_evictions_total{peer=\"2\"} 2\n"), "{}", metrics.render());
        assert!(metrics.render().contains("lance_fan_out_evicted{group=\"1\",peer=\"2\"} 1\n"));
    }
}
