//! The catalogue: each metric of the project, defined once.

use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{Registry, TextEncoder};

use crate::group::GroupMetrics;
use crate::instrument::{
    Counter, CounterVec, Definition, Gauge, GaugeVec, Histogram, Instrument, SecondsGauge, SignedGaugeVec,
};
use crate::topics::TopicMetrics;

/// Bucket bounds for what a client waits for, in seconds: from a warm loopback round trip to a client's time-out.
const LATENCY: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bucket bounds for one stage of a request on one node, in seconds: a turn without work takes microseconds, a stage that
/// waits for a disk or for other nodes milliseconds.
const STAGE: &[f64] =
    &[0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
/// Bucket bounds for what elections wait for, in milliseconds.
const CONTROL_MS: &[f64] =
    &[0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2000.0, 3000.0, 10000.0];
/// Bucket bounds for a producer's batch, in bytes; the largest is limits.max_batch_bytes.
const BATCH_BYTES: &[f64] = &[256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 33554432.0];
/// Bucket bounds for a producer's batch, in records.
const BATCH_RECORDS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0];
/// Bucket bounds for the records in a reply, in bytes.
const FETCH_BYTES: &[f64] = &[0.0, 1024.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];
/// Bucket bounds for a disk's sync, in seconds: fast NVMe is below the first, a failing disk above the last.
const FSYNC: &[f64] = &[0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.05, 0.25, 1.0];
/// Bucket bounds for one journal flush, in bytes: 4 KiB, the smallest aligned write, to 16 MiB.
const FLUSH: &[f64] = &[4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];
/// Bucket bounds for a checkpoint, in seconds.
const CHECKPOINT: &[f64] = &[0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];

/// Turns the table below into [`Metrics`] and [`CATALOGUE`].
macro_rules! catalogue {
    ($($section:literal { $($field:ident: $kind:ty, [$($label:literal),*], [$($buckets:expr)?], $help:literal;)* })*) => {
        /// Every metric, in the order of the table.
        pub const CATALOGUE: &[Definition] = &[$($(Definition {
            section: $section,
            name: concat!("lance_", stringify!($field)),
            help: $help,
            kind: <$kind as Instrument>::KIND,
            labels: &[$($label),*],
            buckets: catalogue!(@buckets $($buckets)?),
        },)*)*];

        /// One node's metrics, on a registry of their own: several nodes in one process do not share counts.
        #[derive(Debug)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help] pub $field: $kind,)*)*
        }

        impl Metrics {
            fn register(registry: Registry) -> prometheus::Result<Self> {
                let mut definitions = CATALOGUE.iter();
                $($(let $field = <$kind as Instrument>::create(
                    definitions.next().expect("the table made both lists"),
                    &registry,
                )?;)*)*
                Ok(Self { registry, $($($field,)*)* })
            }

            #[cfg(test)]
            pub(crate) fn touch_all(&self) {
                let mut definitions = CATALOGUE.iter();
                $($(self.$field.touch(definitions.next().expect("the table made both lists"));)*)*
            }
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { $buckets };
}

catalogue! {
    "Records and requests" {
        messages_in_total: Counter, [], [], "Records accepted from producers by this node as leader.";
        bytes_in_total: Counter, [], [], "Bytes of record batches accepted from producers by this node as leader.";
        produce_batch_bytes: Histogram, [], [BATCH_BYTES], "Size of one record batch from a producer.";
        produce_batch_records: Histogram, [], [BATCH_RECORDS], "Records in one record batch from a producer.";
        messages_out_total: Counter, [], [], "Records sent to consumers.";
        bytes_out_total: Counter, [], [], "Bytes of record batches sent to consumers.";
        fetch_bytes: Histogram, [], [FETCH_BYTES], "Bytes of record batches in one reply to a fetch; those without any count in the first bucket.";
        fetch_cache_hits_total: Counter, [], [], "Fetched partitions that were served from the tail cache.";
        fetch_cache_misses_total: Counter, [], [], "Fetched partitions that had to read segment files.";
        tail_cache_bytes: Gauge, [], [], "Bytes of the newest records that the tail cache holds; limits.tail_cache_bytes bounds it.";
        requests_total: CounterVec, ["opcode"], [], "Requests received from clients.";
        forwarded_requests_total: Counter, [], [], "Requests passed on to the node that leads the group.";
        followers_waited_for: Gauge, [], [], "Groups led here whose clients are slowed down, since a follower that lives is about to lose what it lacks from the journal.";
        followers_let_go_total: Counter, [], [], "Followers for which clients were slowed down, and that stayed behind all the same.";
        leaders_stepped_aside_total: Counter, [], [], "Groups that this node stopped leading, since a majority that answered did not acknowledge entries.";
        requests_held_total: Counter, [], [], "Requests that waited for a leader: while their group was handed over, or had none that is known.";
        requests_repeated_total: Counter, [], [], "Requests passed on once more, since the node that had them leads no more or is gone.";
        errors_total: CounterVec, ["code"], [], "Requests answered with an error.";
        connections: Gauge, [], [], "Client connections that are open.";
        connections_total: Counter, [], [], "Client connections accepted.";
        connections_refused_total: Counter, [], [], "Client connections refused because limits.max_connections was reached.";
    }
    "Load and backpressure" {
        in_flight_bytes: Gauge, [], [], "Bytes of client requests that are not answered yet; limits.memory_bytes bounds it.";
        in_flight_requests: Gauge, [], [], "Client requests that are not answered yet, fetches that wait for records included.";
        request_memory_bytes: Gauge, [], [], "Memory that requests hold, with frames that have come in part; limits.memory_bytes bounds it.";
        reply_memory_bytes: Gauge, [], [], "Memory that replies hold which clients have not taken yet, and records read for them; limits.reply_bytes bounds it.";
        connections_cut_total: CounterVec, ["reason"], [], "Client connections ended because the client did not read its replies (unread), or was slow to send what it had begun while memory was short (slow), or had not sent its greeting after 10 s (silent).";
        produce_window_bytes: GaugeVec, ["group"], [], "Bytes of records that this leader of a group lets be on their way to a majority at once.";
        produce_waiting_bytes: GaugeVec, ["group"], [], "Bytes of records that wait for room in that window, in a queue that is fair to all clients.";
        overloaded_total: Counter, [], [], "Requests refused because a limit on memory or queues was reached.";
        rejected_bytes_total: CounterVec, ["code"], [], "Bytes of record batches refused for want of memory or of space on disk.";
        reading_paused: Gauge, [], [], "Whether the memory for requests is so short that clients which have much of it are not read: 1 if so.";
        reading_pauses_total: Counter, [], [], "Times that the memory for requests got short.";
        turn_longest_seconds: SecondsGauge, [], [], "The longest turn of the node's thread in the last half minute or minute.";
        turn_work_longest_seconds: SecondsGauge, [], [], "Most processor time of a turn in the last half minute or minute: what is missing to the longest turn, others had.";
        turn_seconds: Histogram, [], [STAGE], "Time of one turn of the node's thread; nothing else happens on the node meanwhile.";
    }
    "Latency of requests, by stage" {
        produce_latency_seconds: Histogram, [], [LATENCY], "Time from a produce request's arrival to its reply: the stages below but the last, together.";
        produce_queue_seconds: Histogram, [], [STAGE], "Queue: time that the oldest command of an entry waited until the entry was proposed. One observation per entry.";
        journal_write_seconds: Histogram, [], [STAGE], "Journal write: time from an entry's proposal until this node's own disk has it, the sync included. One observation per entry.";
        journal_fsync_seconds: Histogram, [], [FSYNC], "Sync: time of one flush of the journal, from its submission until it is on stable storage.";
        replication_seconds: Histogram, [], [STAGE], "Replication: time from an entry's proposal until a majority has it on disk and the leader knows. One observation per entry.";
        apply_seconds: Histogram, [], [STAGE], "Apply: time to apply the committed entries of one turn.";
        reply_seconds: Histogram, [], [STAGE], "Reply: time from replies being ready until the kernel has taken them; a client that reads slowly makes it long.";
        fetch_latency_seconds: Histogram, [], [LATENCY], "Time to serve a fetch, without the wait for new records.";
    }
    "Replication" {
        commit_index: GaugeVec, ["group"], [], "Highest index known to be committed.";
        applied_index: GaugeVec, ["group"], [], "Highest index applied to the state machine.";
        durable_index: GaugeVec, ["group"], [], "Highest index on this node's stable storage.";
        last_index: GaugeVec, ["group"], [], "Highest index in this node's log.";
        replication_lag: GaugeVec, ["group", "peer"], [], "Entries of the leader's log that a peer does not have yet; not there until the peer has told this leader what it has.";
        replication_in_flight: GaugeVec, ["group", "peer"], [], "Messages with entries that the leader has sent to a peer and that are not acknowledged yet.";
        fan_out_evicted: GaugeVec, ["group", "peer"], [], "Whether the leader sends a peer nothing but probes, since it is silent or lacks more than the journal holds: 1 if so.";
        fan_out_evictions_total: CounterVec, ["peer"], [], "Times that a leader on this node left a peer out of the fan-out, counted per group.";
        peer_connected: GaugeVec, ["peer", "channel"], [], "Whether a channel to a peer is open: 1 if so.";
        peer_reconnects_total: CounterVec, ["peer", "channel"], [], "Times a channel to a peer was opened again.";
        peer_twins_total: CounterVec, ["peer"], [], "Times that a second process with the identity of a node was found and refused: a data directory was copied, and both were started. Any increase is an emergency.";
        entries_refused_total: Counter, [], [], "Messages of a leader that this node did not take, since it could not apply an entry in them.";
        transfers_started_total: Counter, [], [], "State of a group that this node began to fetch, since it was too far behind for the journal.";
        transfers_completed_total: Counter, [], [], "State of a group that this node has fetched completely.";
        transfers_restarted_total: Counter, [], [], "Times that fetching the state of a group began anew, with the same peer or another.";
        transfers_active: Gauge, [], [], "Groups whose state this node is fetching.";
        transfer_in_bytes_total: Counter, [], [], "Bytes of state, of records for it and for repairs, that came from peers.";
        transfer_out_bytes_total: Counter, [], [], "Bytes of state, of records for it and for repairs, that were given to peers; storage.transfer_bytes_per_second bounds its rate.";
    }
    "Elections and the control path" {
        term: GaugeVec, ["group"], [], "Current term.";
        role: GaugeVec, ["group"], [], "What this node is in the group: 0 follower, 1 candidate, 2 leader.";
        elections_total: CounterVec, ["group"], [], "Elections that this node started.";
        leader_changes_total: CounterVec, ["group"], [], "Times this node saw the leader change.";
        election_rounds_total: CounterVec, ["outcome"], [], "Election rounds of this node that are over, pre-vote included: won, lost (another leads, or the voters refused), or expired.";
        raft_election_round_last_ms: Gauge, [], [], "Length of this node's latest election round, from its first question to its outcome, in milliseconds.";
        raft_election_round_ms: Histogram, [], [CONTROL_MS], "Length of this node's election rounds, from the first question to the outcome, in milliseconds.";
        raft_pre_vote_rpc_latency_ms: Histogram, [], [CONTROL_MS], "Time from a pre-vote request to its answer, in milliseconds.";
        raft_vote_rpc_latency_ms: Histogram, [], [CONTROL_MS], "Time from a vote request to its answer, in milliseconds; the voter's disk has the vote by then.";
        heartbeat_latency_seconds: Histogram, [], [STAGE], "Time from a leader's heartbeat to its answer.";
        control_rpc_in_flight: Gauge, [], [], "Pre-votes, votes and heartbeats sent to connected peers and not answered yet, at most one of each kind per group and peer.";
        control_rpc_starvation_total: Counter, [], [], "Pre-votes, votes and heartbeats to connected peers that were not answered within their budget.";
        cluster_coordinator_tick_drift_ms: Gauge, [], [], "How late a tick of the node's clock came, in milliseconds: the worst of the last half minute.";
    }
    "Clocks" {
        clock_skew_seconds: SignedGaugeVec, ["peer"], [], "How far a peer's clock is ahead of this node's, in seconds; negative if it is behind.";
        clock_untrusted: Gauge, [], [], "Whether this node's clock is too far from those of a majority, no majority agrees, or the clock has jumped: 1 if so.";
        retention_by_age_stopped: Gauge, [], [], "Whether this node removes nothing by age, since clocks disagree or too few are heard: 1 if so.";
    }
    "Disk" {
        slow_disk: Gauge, [], [], "Whether syncs of the journal take so long that this node should lead nothing: 1 if so.";
        journal_flush_bytes: Histogram, [], [FLUSH], "Size of one flush of the journal.";
        journal_flushes_total: Counter, [], [], "Flushes of the journal that are on stable storage.";
        journal_bytes: Gauge, [], [], "Disk space that the journal's files take.";
        segment_bytes: Gauge, [], [], "Disk space that segment files take.";
        segment_unwritten_bytes: Gauge, [], [], "Bytes of committed records that wait in memory for their segments; the journal holds them.";
        disk_free_bytes: Gauge, [], [], "Space that is left in the data directory.";
        disk_free_inodes: Gauge, [], [], "Inodes that are left there: each file and directory takes one.";
        disk_reserve_bytes: Gauge, [], [], "Free space below which records are refused: storage.reserve_bytes.";
        checkpoints_total: Counter, [], [], "Checkpoints that were completed.";
        checkpoint_seconds: Histogram, [], [CHECKPOINT], "Time of one checkpoint, from its start to its place on disk.";
        checkpoint_age_seconds: Gauge, [], [], "Time since the last checkpoint was completed, or since the start of the node.";
        checkpoint_pending_bytes: Gauge, [], [], "Bytes of entries applied since the last checkpoint began; one begins at journal.checkpoint_bytes.";
        scrub_bytes_total: Counter, [], [], "Bytes of the journal and of segments that the scrub has read and found whole.";
        scrub_passes_total: Counter, [], [], "Passes of the scrub over everything that were begun.";
        damage_found_total: Counter, [], [], "Damaged places that were found in the journal and in segments.";
        damage_repaired_total: Counter, [], [], "Damaged places that were repaired from another replica, or given up by a checkpoint that made them dispensable.";
        damage_repairs_failed_total: Counter, [], [], "Repairs after which the place could still not be read: it was written over, and its segment could not be moved to a new file either.";
        damage_unreadable: Gauge, [], [], "Segments with a place that could not be read after the last attempt to repair it; the next one comes after a pause of up to five minutes.";
        groups_in_doubt: Gauge, [], [], "Groups in which this node neither votes nor leads, since its disk lacks something that it may have acknowledged.";
        lost_entries: Gauge, [], [], "Entries that this node's damaged journal has lost and that other nodes have not given back yet.";
    }
    "Topics and consumers" {
        topics: Gauge, [], [], "Topics of the cluster.";
        partitions: Gauge, [], [], "Partitions of which this node has a replica.";
        topic_partitions: GaugeVec, ["topic"], [], "Partitions of the topic of which this node has a replica.";
        topic_bytes: GaugeVec, ["topic"], [], "Disk space that the topic's segments take on this node.";
        topic_end_offset: GaugeVec, ["topic"], [], "Log end offsets of the topic's partitions, added up: records ever appended.";
        topic_records: GaugeVec, ["topic"], [], "Records of the topic that this node has, between log start and log end.";
        topic_consumer_position: GaugeVec, ["topic"], [], "Offsets up to which clients that fetch from this node were given records, added up over the partitions that connected clients have fetched within 90 seconds; of several that read a partition, the one furthest behind counts.";
        topic_consumer_lag: GaugeVec, ["topic"], [], "Records beyond the positions of topic_consumer_position, up to the end: what is not read yet.";
    }
    "The node" {
        backend_info: GaugeVec, ["backend"], [], "The disk backend in use, as a label; always 1.";
        trace_spans_total: CounterVec, ["outcome"], [], "Spans of recorded traces: sent to the collector, refused by it, lost since it could not be reached, or left_out since too many were waiting.";
        build_info: GaugeVec, ["version"], [], "The version of this node, as a label; always 1.";
    }
}

impl Metrics {
    /// Fresh metrics, all zero, with the build information set and with the figures of the process, which are read when
    /// they are asked for.
    pub fn new() -> Arc<Self> {
        // A refusal means that the table itself is wrong, which the tests of this module would have found.
        let metrics = Self::register(Registry::new()).expect("the catalogue's names are valid and unique");
        let process = ProcessCollector::for_self();
        metrics
            .registry
            .register(Box::new(process))
            .expect("no metric of the catalogue is named as one of the process");
        metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Arc::new(metrics)
    }

    /// The handles for one Raft group; look them up once, when the group starts.
    pub fn group(&self, group: u32) -> GroupMetrics {
        GroupMetrics::new(self, group)
    }

    /// The figures of topics; there should be one such handle.
    pub fn topics(&self) -> TopicMetrics {
        TopicMetrics::new(self)
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
    use crate::document::{MILLISECONDS, PROCESS};
    use crate::instrument::{Kind, PREFIX};

    #[test]
    fn rendering_has_each_metric_with_help_and_type() {
        let metrics = Metrics::new();
        metrics.touch_all();
        let text = metrics.render();
        for definition in CATALOGUE {
            let Definition { name, help, kind, .. } = definition;
            let kind = kind.name();
            assert!(text.contains(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")), "{name}: {text}");
        }
        for (name, ..) in PROCESS {
            assert!(text.contains(&format!("\n{name} ")), "{name}: {text}");
        }
        assert_eq!(text.matches("# TYPE ").count(), CATALOGUE.len() + PROCESS.len(), "{text}");
    }

    #[test]
    fn names_follow_prometheus_conventions() {
        let mut names = BTreeSet::new();
        for Definition { section: _, name, help, kind, labels, buckets } in CATALOGUE {
            assert!(name.starts_with(PREFIX), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert!(names.insert(*name), "{name} is defined twice");
            assert!(labels.iter().all(|label| !["le", "quantile", "job", "instance"].contains(label)), "{name}");
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(name.ends_with("_ms"), MILLISECONDS.contains(name), "{name}: base units, but for these");
            if *kind == Kind::Histogram {
                let unit = name.rsplit_once('_').map_or("", |(_, unit)| unit);
                assert!(["seconds", "bytes", "records", "ms"].contains(&unit), "{name} does not name its unit");
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
