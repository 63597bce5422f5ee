//! The figures of topics, whose labels are bounded: the oldest topics have one each, all others share one.

use std::collections::BTreeMap;

use crate::catalogue::Metrics;
use crate::instrument::{Gauge, GaugeVec};

/// Topics with a label of their own. Each costs six series, about a kilobyte of text with names of usual length.
pub const TOPIC_LABELS: usize = 200;

/// Stands for all topics without a label of their own; no topic can have such a name.
const OTHERS: &str = "(others)";

/// What a node shows of one topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TopicFigures {
    /// Partitions with a replica on this node.
    pub partitions: u64,
    /// Bytes of segments on this node.
    pub bytes: u64,
    /// Log end offsets, added up.
    pub end_offset: u64,
    /// Records between log start and log end.
    pub records: u64,
    /// Where readers are, in partitions that are read: the sum of their offsets, and of what is behind them.
    pub position: Option<(u64, u64)>,
}

impl TopicFigures {
    fn add(&mut self, other: Self) {
        self.partitions += other.partitions;
        self.bytes += other.bytes;
        self.end_offset += other.end_offset;
        self.records += other.records;
        if let Some((position, lag)) = other.position {
            let (sum, behind) = self.position.unwrap_or_default();
            self.position = Some((sum + position, behind + lag));
        }
    }
}

/// One topic's gauges.
#[derive(Debug)]
struct Row {
    partitions: Gauge,
    bytes: Gauge,
    end_offset: Gauge,
    records: Gauge,
    read: bool,
}

/// Sets the gauges of all topics; made by [`Metrics::topics`].
#[derive(Debug)]
pub struct TopicMetrics {
    partitions: GaugeVec,
    bytes: GaugeVec,
    end_offset: GaugeVec,
    records: GaugeVec,
    position: GaugeVec,
    lag: GaugeVec,
    rows: BTreeMap<String, Row>,
}

impl TopicMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            partitions: metrics.topic_partitions.clone(),
            bytes: metrics.topic_bytes.clone(),
            end_offset: metrics.topic_end_offset.clone(),
            records: metrics.topic_records.clone(),
            position: metrics.topic_consumer_position.clone(),
            lag: metrics.topic_consumer_lag.clone(),
            rows: BTreeMap::new(),
        }
    }

    /// From now on these are all topics there are, oldest first.
    pub fn set<'a>(&mut self, topics: impl Iterator<Item = (&'a str, TopicFigures)>) {
        let mut before = std::mem::take(&mut self.rows);
        let mut others = None::<TopicFigures>;
        for (at, (name, figures)) in topics.enumerate() {
            if at < TOPIC_LABELS {
                self.set_row(name, figures, before.remove(name));
            } else {
                others.get_or_insert_default().add(figures);
            }
        }
        if let Some(figures) = others {
            self.set_row(OTHERS, figures, before.remove(OTHERS));
        }
        for (name, row) in before {
            let families = [&self.partitions, &self.bytes, &self.end_offset, &self.records];
            remove(&name, families);
            if row.read {
                remove(&name, [&self.position, &self.lag]);
            }
        }
    }

    fn set_row(&mut self, name: &str, figures: TopicFigures, row: Option<Row>) {
        let mut row = row.unwrap_or_else(|| Row {
            partitions: self.partitions.with_label_values(&[name]),
            bytes: self.bytes.with_label_values(&[name]),
            end_offset: self.end_offset.with_label_values(&[name]),
            records: self.records.with_label_values(&[name]),
            read: false,
        });
        row.partitions.set(figures.partitions);
        row.bytes.set(figures.bytes);
        row.end_offset.set(figures.end_offset);
        row.records.set(figures.records);
        if let Some((position, lag)) = figures.position {
            self.position.with_label_values(&[name]).set(position);
            self.lag.with_label_values(&[name]).set(lag);
        } else if row.read {
            // Nobody reads here any more: an old position would look like a reader that is stuck.
            remove(name, [&self.position, &self.lag]);
        }
        row.read = figures.position.is_some();
        self.rows.insert(name.to_owned(), row);
    }
}

fn remove<const N: usize>(name: &str, families: [&GaugeVec; N]) {
    for family in families {
        // Fails only where another handle removed the gauge first.
        let _ = family.remove_label_values(&[name]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(records: u64, position: Option<(u64, u64)>) -> TopicFigures {
        TopicFigures { partitions: 2, bytes: 10, end_offset: records + 1, records, position }
    }

    #[test]
    fn topics_come_and_go() {
        let metrics = Metrics::new();
        let mut topics = metrics.topics();
        topics.set([("a", figures(5, Some((4, 2)))), ("b", figures(7, None))].into_iter());
        let text = metrics.render();
        assert!(text.contains("lance_topic_records{topic=\"a\"} 5\n"), "{text}");
        assert!(text.contains("lance_topic_consumer_position{topic=\"a\"} 4\n"), "{text}");
        assert!(text.contains("lance_topic_consumer_lag{topic=\"a\"} 2\n"), "{text}");
        assert!(!text.contains("lance_topic_consumer_lag{topic=\"b\"}"), "{text}");

        topics.set([("a", figures(6, None))].into_iter());
        let text = metrics.render();
        assert!(text.contains("lance_topic_records{topic=\"a\"} 6\n"), "{text}");
        assert!(!text.contains("lance_topic_consumer"), "{text}");
        assert!(!text.contains("topic=\"b\""), "{text}");
    }

    #[test]
    fn topics_beyond_the_limit_share_a_label() {
        let metrics = Metrics::new();
        let names: Vec<String> = (0..TOPIC_LABELS + 3).map(|number| format!("topic-{number}")).collect();
        metrics.topics().set(names.iter().map(|name| (name.as_str(), figures(1, Some((1, 2))))));
        let text = metrics.render();
        assert_eq!(text.matches("\nlance_topic_bytes{").count(), TOPIC_LABELS + 1);
        assert!(text.contains("lance_topic_records{topic=\"(others)\"} 3\n"), "{text}");
        assert!(text.contains("lance_topic_consumer_position{topic=\"(others)\"} 3\n"), "{text}");
        assert!(text.contains("lance_topic_consumer_lag{topic=\"(others)\"} 6\n"), "{text}");
    }

    /// What the page costs at the limits of every label: 10,000 topics of one partition with the longest names, as many
    /// groups and members as there can be, every request and every error.
    #[test]
    fn the_page_stays_small_at_every_limit() {
        const GROUPS: u32 = 257;
        const PEERS: u64 = 4;
        let metrics = Metrics::new();
        metrics.touch_all();
        let names: Vec<String> = (0..10_000).map(|number| format!("{number:0>249}")).collect();
        metrics.topics().set(names.iter().map(|name| (name.as_str(), figures(1, Some((1, 2))))));
        for group in 0..GROUPS {
            let mut group = metrics.group(group);
            group.set_role(crate::Role::Leader);
            for peer in 0..PEERS {
                group.set_peer(peer, crate::PeerFigures { lag: Some(u64::MAX), in_flight: 9, evicted: false });
            }
        }
        let page = metrics.render();
        assert!(page.len() < 1_000_000, "{} bytes", page.len());
        // The fastest of a few: others may use the machine. The limit is 20 ms for a release build.
        let time = |_| {
            let start = std::time::Instant::now();
            assert_eq!(metrics.render().len(), page.len());
            start.elapsed()
        };
        let fastest = (0..5).map(time).min().unwrap();
        println!("{} bytes in {fastest:?}", page.len());
        assert!(fastest < std::time::Duration::from_millis(400), "{fastest:?}");
    }
}
