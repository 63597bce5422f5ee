//! Rates: those of this node over the last two minutes, what each node does for clients, and how fast each topic grows.

use super::document::{Rates, TrafficView};
use lnc_broker::status::Snapshot;
use lnc_metrics::{Histogram, Metrics};
use lnc_replication::notice::Traffic;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Time between two samples.
pub(super) const STEP: Duration = Duration::from_secs(1);

/// Samples kept.
pub(super) const POINTS: usize = 120;

/// Two snapshots that are further apart tell nothing of the rate now.
const MAX_APART_US: u64 = 15_000_000;

/// What the node has counted since its start.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    at: Duration,
    records_in: u64,
    records_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    produce: (u64, f64),
    sync: (u64, f64),
}

/// One second.
#[derive(Clone, Copy, Debug)]
struct Point {
    records_in: f64,
    records_out: f64,
    bytes_in: f64,
    bytes_out: f64,
    produce_ms: Option<f64>,
    sync_ms: Option<f64>,
}

/// The newest seconds of a node.
#[derive(Debug, Default)]
pub(super) struct History {
    last: Option<Counts>,
    points: VecDeque<Point>,
}

impl History {
    /// Note what has been counted up to `at`, a time since the first sample.
    pub(super) fn sample(&mut self, at: Duration, metrics: &Metrics) {
        let timed = |histogram: &Histogram| (histogram.get_sample_count(), histogram.get_sample_sum());
        let now = Counts {
            at,
            records_in: metrics.messages_in_total.get(),
            records_out: metrics.messages_out_total.get(),
            bytes_in: metrics.bytes_in_total.get(),
            bytes_out: metrics.bytes_out_total.get(),
            produce: timed(&metrics.produce_latency_seconds),
            sync: timed(&metrics.journal_fsync_seconds),
        };
        if let Some(last) = self.last.replace(now) {
            if self.points.len() == POINTS {
                self.points.pop_front();
            }
            self.points.push_back(Point::between(&last, &now));
        }
    }

    /// All points, the newest last.
    pub(super) fn rates(&self) -> Rates {
        let series = |value: fn(&Point) -> f64| self.points.iter().map(|point| rounded(value(point))).collect();
        let times = |value: fn(&Point) -> Option<f64>| self.points.iter().map(|p| value(p).map(rounded)).collect();
        Rates {
            step_ms: STEP.as_millis() as u64,
            records_in: series(|point| point.records_in),
            records_out: series(|point| point.records_out),
            bytes_in: series(|point| point.bytes_in),
            bytes_out: series(|point| point.bytes_out),
            produce_ms: times(|point| point.produce_ms),
            sync_ms: times(|point| point.sync_ms),
        }
    }
}

impl Point {
    fn between(last: &Counts, now: &Counts) -> Self {
        let seconds = now.at.saturating_sub(last.at).as_secs_f64().max(0.001);
        let per_second = |last: u64, now: u64| now.saturating_sub(last) as f64 / seconds;
        let mean_ms = |last: (u64, f64), now: (u64, f64)| {
            let count = now.0.saturating_sub(last.0);
            (count > 0).then(|| (now.1 - last.1).max(0.0) * 1000.0 / count as f64)
        };
        Self {
            records_in: per_second(last.records_in, now.records_in),
            records_out: per_second(last.records_out, now.records_out),
            bytes_in: per_second(last.bytes_in, now.bytes_in),
            bytes_out: per_second(last.bytes_out, now.bytes_out),
            produce_ms: mean_ms(last.produce, now.produce),
            sync_ms: mean_ms(last.sync, now.sync),
        }
    }
}

/// Three digits behind the point say enough, and keep the document short.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// How fast topics grow and what nodes do, from two snapshots.
#[derive(Debug, Default)]
pub(super) struct SnapshotRates {
    taken_us: Option<u64>,
    /// By topic id: the records ever written, and how many a second since the snapshot before.
    topics: BTreeMap<u64, (u64, Option<f64>)>,
    /// By node.
    nodes: BTreeMap<u64, NodeTraffic>,
}

/// What a node has counted, and what follows from that.
#[derive(Debug)]
struct NodeTraffic {
    /// When it said so, by its own clock.
    at_ms: u64,
    counted: Traffic,
    rate: Option<TrafficView>,
}

impl NodeTraffic {
    /// From what it says now and what it has said before. It says it once a second: a snapshot may find nothing new.
    fn after(before: Option<&Self>, at_ms: u64, counted: Traffic) -> Self {
        let rate = before.and_then(|before| match at_ms.checked_sub(before.at_ms)? {
            0 => before.rate,
            ms if ms * 1000 > MAX_APART_US => None,
            ms => TrafficView::between(&before.counted, &counted, ms as f64 / 1e3),
        });
        Self { at_ms, counted, rate }
    }
}

impl TrafficView {
    /// `None` if the node has started in between, and counts from 0 again.
    fn between(last: &Traffic, now: &Traffic, seconds: f64) -> Option<Self> {
        let per_second = |last: u64, now: u64| Some(rounded(now.checked_sub(last)? as f64 / seconds));
        let (produces, produce_us) =
            (now.produces.checked_sub(last.produces)?, now.produce_us.saturating_sub(last.produce_us));
        Some(Self {
            records_in: per_second(last.records_in, now.records_in)?,
            bytes_in: per_second(last.bytes_in, now.bytes_in)?,
            records_out: per_second(last.records_out, now.records_out)?,
            bytes_out: per_second(last.bytes_out, now.bytes_out)?,
            produces: rounded(produces as f64 / seconds),
            produce_ms: (produces > 0).then(|| rounded(produce_us as f64 / 1e3 / produces as f64)),
        })
    }

    /// Of several nodes together; `None` if nothing is known of any. The mean time is weighed by requests.
    pub(super) fn sum(all: impl Iterator<Item = Self>) -> Option<Self> {
        let add = |sum: Self, one: Self| {
            let weight = |view: &Self| view.produce_ms.map_or(0.0, |ms| ms * view.produces);
            let (produces, weighed) = (sum.produces + one.produces, weight(&sum) + weight(&one));
            Self {
                records_in: rounded(sum.records_in + one.records_in),
                bytes_in: rounded(sum.bytes_in + one.bytes_in),
                records_out: rounded(sum.records_out + one.records_out),
                bytes_out: rounded(sum.bytes_out + one.bytes_out),
                produces: rounded(produces),
                produce_ms: (produces > 0.0).then(|| rounded(weighed / produces)),
            }
        };
        all.reduce(add)
    }
}

impl SnapshotRates {
    /// Compare a snapshot with the one before.
    pub(super) fn note(&mut self, snapshot: &Snapshot) {
        let nodes = snapshot
            .facts
            .iter()
            .map(|(node, said)| (*node, NodeTraffic::after(self.nodes.get(node), said.at_ms, said.facts.traffic)));
        self.nodes = nodes.collect();
        let apart_us = self.taken_us.and_then(|before| snapshot.taken_us.checked_sub(before));
        let seconds = apart_us.filter(|us| (1..=MAX_APART_US).contains(us)).map(|us| us as f64 / 1e6);
        let noted = snapshot.topics.iter().map(|topic| {
            let written = topic.partitions.iter().map(|partition| partition.high_watermark).sum::<u64>();
            let rate = seconds.zip(self.topics.get(&topic.id));
            let rate = rate.map(|(seconds, (before, _))| rounded(written.saturating_sub(*before) as f64 / seconds));
            (topic.id, (written, rate))
        });
        self.topics = noted.collect();
        self.taken_us = Some(snapshot.taken_us);
    }

    /// Records per second that a topic gets; `None` where it is not known yet.
    pub(super) fn of_topic(&self, topic: u64) -> Option<f64> {
        self.topics.get(&topic).and_then(|(_, rate)| *rate)
    }

    /// The same of all topics together.
    pub(super) fn of_topics(&self) -> Option<f64> {
        let known = self.topics.values().filter_map(|(_, rate)| *rate);
        known.reduce(|sum, rate| sum + rate).map(rounded)
    }

    /// What a node does for clients; `None` where it is not known yet, or no more.
    pub(super) fn of_node(&self, node: u64) -> Option<TrafficView> {
        self.nodes.get(&node).and_then(|node| node.rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_between_two_samples_is_a_rate() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        history.sample(Duration::ZERO, &metrics);
        assert!(history.rates().records_in.is_empty(), "one sample is no rate");
        metrics.messages_in_total.inc_by(300);
        metrics.bytes_out_total.inc_by(5);
        metrics.produce_latency_seconds.observe(0.002);
        metrics.produce_latency_seconds.observe(0.004);
        // A second that took longer, on a machine that is busy.
        history.sample(Duration::from_millis(1500), &metrics);
        history.sample(Duration::from_millis(2500), &metrics);
        let rates = history.rates();
        assert_eq!(rates.records_in, [200.0, 0.0]);
        assert_eq!(rates.bytes_out, [3.333, 0.0]);
        assert_eq!(rates.produce_ms, [Some(3.0), None], "a mean of nothing is no time");
        assert_eq!(rates.sync_ms, [None, None]);
    }

    #[test]
    fn the_history_is_bounded() {
        let (metrics, mut history) = (Metrics::new(), History::default());
        for second in 0..POINTS as u64 + 50 {
            metrics.messages_in_total.inc_by(second);
            history.sample(Duration::from_secs(second), &metrics);
        }
        let rates = history.rates();
        assert_eq!(rates.records_in.len(), POINTS);
        assert_eq!(rates.records_in.last(), Some(&(POINTS as f64 + 49.0)));
    }
}
