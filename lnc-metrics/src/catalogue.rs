//! The catalogue: each metric of the project, defined once.

use std::sync::Arc;

use prometheus::{Registry, TextEncoder};

use crate::group::GroupMetrics;
use crate::instrument::{Counter, CounterVec, Definition, Gauge, GaugeVec, Histogram, Instrument};

/// Bucket bounds for what a client waits for, in seconds: from a warm loopback round trip to a client's time-out.
const LATENCY: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bucket bounds for a disk's sync, in seconds: fast NVMe is below the first, a failing disk above the last.
const FSYNC: &[f64] = &[0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.05, 0.25, 1.0];
/// Bucket bounds for one journal flush, in bytes: 4 KiB, the smallest aligned write, to 16 MiB.
const FLUSH: &[f64] = &[4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];
/// Bucket bounds for a checkpoint, in seconds.
const CHECKPOINT: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Turns the table below into [`Metrics`] and [`CATALOGUE`].
macro_rules! catalogue {
    ($($field:ident: $kind:ty, [$($label:literal),*], [$($buckets:expr)?], $help:literal;)*) => {
        /// Every metric, in the order of the table.
        pub const CATALOGUE: &[Definition] = &[$(Definition {
            name: concat!("lance_", stringify!($field)),
            help: $help,
            kind: <$kind as Instrument>::KIND,
            labels: &[$($label),*],
            buckets: catalogue!(@buckets $($buckets)?),
        },)*];

        /// One node's metrics, on a registry of their own: several nodes in one process do not share counts.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Metrics {
            fn register(registry: Registry) -> prometheus::Result<Self> {
                let mut definitions = CATALOGUE.iter();
                $(let $field = <$kind as Instrument>::create(
                    definitions.next().expect("the table made both lists"),
                    &registry,
                )?;)*
                Ok(Self { registry, $($field,)* })
            }

            #[cfg(test)]
            fn touch_all(&self) {
                let mut definitions = CATALOGUE.iter();
                $(self.$field.touch(definitions.next().expect("the table made both lists"));)*
            }
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { $buckets };
}

catalogue! {
    messages_in_total: Counter, [], [], "Records accepted from producers by this node as leader.";
    bytes_in_total: Counter, [], [], "Bytes of record batches accepted from producers by this node as leader.";
    messages_out_total: Counter, [], [], "Records sent to consumers.";
    bytes_out_total: Counter, [], [], "Bytes of record batches sent to consumers.";
    requests_total: CounterVec, ["opcode"], [], "Requests received from clients.";
    errors_total: CounterVec, ["code"], [], "Requests answered with an error.";
    overloaded_total: Counter, [], [], "Requests refused because a limit on memory or queues was reached.";
    produce_latency_seconds: Histogram, [], [LATENCY], "Time from a produce request's arrival to its reply.";
    fetch_latency_seconds: Histogram, [], [LATENCY], "Time to serve a fetch, without the wait for new records.";
    fetch_cache_hits_total: Counter, [], [], "Fetched partitions that were served from the tail cache.";
    fetch_cache_misses_total: Counter, [], [], "Fetched partitions that had to read segment files.";
    connections: Gauge, [], [], "Client connections that are open.";
    connections_total: Counter, [], [], "Client connections accepted.";
    in_flight_bytes: Gauge, [], [], "Bytes of client requests that are not answered yet.";

    commit_index: GaugeVec, ["group"], [], "Highest index known to be committed.";
    applied_index: GaugeVec, ["group"], [], "Highest index applied to the state machine.";
    durable_index: GaugeVec, ["group"], [], "Highest index on this node's stable storage.";
    last_index: GaugeVec, ["group"], [], "Highest index in this node's log.";
    replication_lag: GaugeVec, ["group", "peer"], [], "Entries of the leader's log that a peer does not have yet.";
    term: GaugeVec, ["group"], [], "Current term.";
    role: GaugeVec, ["group"], [], "What this node is in the group: 0 follower, 1 candidate, 2 leader.";
    elections_total: CounterVec, ["group"], [], "Elections that this node started.";
    leader_changes_total: CounterVec, ["group"], [], "Times this node saw the leader change.";
    peer_connected: GaugeVec, ["peer", "channel"], [], "Whether a channel to a peer is open: 1 if so.";
    peer_reconnects_total: CounterVec, ["peer", "channel"], [], "Times a channel to a peer was opened again.";

    journal_fsync_seconds: Histogram, [], [FSYNC], "Time of one sync of the journal.";
    slow_disk: Gauge, [], [], "Whether syncs of the journal take so long that this node should lead nothing: 1 if so.";
    journal_flush_bytes: Histogram, [], [FLUSH], "Size of one flush of the journal.";
    journal_flushes_total: Counter, [], [], "Flushes of the journal that are on stable storage.";
    journal_bytes: Gauge, [], [], "Disk space that the journal's files take.";
    segment_bytes: Gauge, [], [], "Disk space that segment files take.";
    disk_free_bytes: Gauge, [], [], "Space that is left in the data directory.";
    scrub_bytes_total: Counter, [], [], "Bytes of the journal and of segments that the scrub has read and found whole.";
    damage_found_total: Counter, [], [], "Damaged places that were found in segments.";
    damage_repaired_total: Counter, [], [], "Damaged places that were repaired from another replica.";
    checkpoints_total: Counter, [], [], "Checkpoints that were completed.";
    checkpoint_seconds: Histogram, [], [CHECKPOINT], "Time of one checkpoint, from its start to its place on disk.";

    backend_info: GaugeVec, ["backend"], [], "The disk backend in use, as a label; always 1.";
    build_info: GaugeVec, ["version"], [], "The version of this node, as a label; always 1.";
}

impl Metrics {
    /// Fresh metrics, all zero, with the build information set.
    pub fn new() -> Arc<Self> {
        // A refusal means that the table itself is wrong, which the tests of this module would have found.
        let metrics = Self::register(Registry::new()).expect("the catalogue's names are valid and unique");
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Arc::new(metrics)
    }

    /// The handles for one Raft group; look them up once, when the group starts.
    pub fn group(&self, group: u32) -> GroupMetrics {
        GroupMetrics::new(self, group)
    }

    /// Shows which disk backend is in use; a later call replaces an earlier one.
    pub fn set_backend(&self, backend: &str) {
        self.backend_info.reset();
        self.backend_info.with_label_values(&[backend]).set(1);
    }

    /// All metrics in Prometheus' text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Encoding fails only for a family without samples or a name that registration would have refused; what was
        // written up to there is still a valid exposition.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::instrument::{Kind, PREFIX};

    #[test]
    fn rendering_has_each_metric_with_help_and_type() {
        let metrics = Metrics::new();
        metrics.touch_all();
        let text = metrics.render();
        for definition in CATALOGUE {
            let kind = match definition.kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let Definition { name, help, .. } = definition;
            assert!(text.contains(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")), "{name}: {text}");
        }
        assert_eq!(text.matches("# TYPE ").count(), CATALOGUE.len());
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        let mut names = BTreeSet::new();
        for Definition { name, help, kind, labels, buckets } in CATALOGUE {
            assert!(name.starts_with(PREFIX), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert!(names.insert(*name), "{name} is defined twice");
            assert!(labels.iter().all(|label| !["le", "quantile", "job", "instance"].contains(label)), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            if *kind == Kind::Histogram {
                assert!(name.ends_with("_seconds") || name.ends_with("_bytes"), "{name} does not name its unit");
                assert!(buckets.is_sorted_by(|a, b| a < b) && !buckets.is_empty(), "{name}");
            } else {
                assert!(buckets.is_empty(), "{name}");
            }
        }
    }

    #[test]
    fn nodes_in_one_process_do_not_share_counts() {
        let (one, two) = (Metrics::new(), Metrics::new());
        one.messages_in_total.inc_by(3);
        assert!(one.render().contains("\nlance_messages_in_total 3\n"));
        assert!(two.render().contains("\nlance_messages_in_total 0\n"));
    }

    #[test]
    fn one_backend_is_shown_at_a_time() {
        let metrics = Metrics::new();
        metrics.set_backend("uring");
        metrics.set_backend("threads");
        let text = metrics.render();
        assert!(text.contains("lance_backend_info{backend=\"threads\"} 1\n"), "{text}");
        assert!(!text.contains("uring"), "{text}");
    }
}
