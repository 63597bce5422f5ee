//! What is counted and measured shows on the metrics page.

use super::support::cluster::Cluster;
use super::support::node::{Node, run};
use super::support::{eventually, lines_of_every_kind};
use rustix::process::Signal;
use std::time::Duration;

/// The sum over all label values of a metric on the pages of all nodes.
fn total(pages: &[String], name: &str) -> f64 {
    let value = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let metric = series.split('{').next()?;
        (metric == name).then(|| value.parse::<f64>().unwrap())
    };
    pages.iter().flat_map(|page| page.lines()).filter_map(value).sum()
}

#[test]
fn no_important_metric_of_a_cluster_under_load_is_zero() {
    const IMPORTANT: &[&str] = &[
        "lance_messages_in_total",
        "lance_bytes_in_total",
        "lance_messages_out_total",
        "lance_bytes_out_total",
        "lance_requests_total",
        "lance_errors_total",
        "lance_produce_latency_seconds_count",
        "lance_produce_latency_seconds_sum",
        "lance_fetch_latency_seconds_count",
        "lance_fetch_cache_hits_total",
        "lance_connections",
        "lance_connections_total",
        "lance_commit_index",
        "lance_applied_index",
        "lance_durable_index",
        "lance_last_index",
        "lance_term",
        "lance_role",
        "lance_leader_changes_total",
        "lance_peer_connected",
        "lance_journal_fsync_seconds_count",
        "lance_journal_fsync_seconds_sum",
        "lance_journal_flush_bytes_count",
        "lance_journal_flush_bytes_sum",
        "lance_journal_flushes_total",
        "lance_journal_bytes",
        "lance_segment_bytes",
        "lance_checkpoints_total",
        "lance_checkpoint_seconds_count",
        "lance_checkpoint_pending_bytes",
        "lance_disk_free_bytes",
        "lance_disk_reserve_bytes",
        "lance_tail_cache_bytes",
        "lance_produce_batch_bytes_count",
        "lance_produce_batch_records_sum",
        "lance_produce_queue_seconds_count",
        "lance_journal_write_seconds_sum",
        "lance_replication_seconds_sum",
        "lance_apply_seconds_sum",
        "lance_reply_seconds_sum",
        "lance_turn_seconds_sum",
        "lance_fetch_bytes_sum",
        "lance_heartbeat_latency_seconds_sum",
        "lance_raft_election_round_ms_count",
        "lance_raft_pre_vote_rpc_latency_ms_sum",
        "lance_raft_vote_rpc_latency_ms_sum",
        "lance_election_rounds_total",
        "lance_topics",
        "lance_partitions",
        "lance_topic_partitions",
        "lance_topic_bytes",
        "lance_topic_end_offset",
        "lance_topic_records",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_threads",
        "process_start_time_seconds",
        "lance_backend_info",
        "lance_build_info",
    ];
    let cluster = Cluster::start_with(&["journal.checkpoint_bytes=2MiB"]);
    cluster.create_topic("t", 3, &[]);
    let lines = lines_of_every_kind(6 << 20);
    cluster.ok(&["produce", "t"], &lines);
    cluster.ok(&["consume", "t", "--until-end"], b"");
    run(cluster.command(&["consume", "nothing", "--until-end"]), b"");
    let _open = cluster.wire(1);
    let pages = || cluster.nodes.iter().map(|node| node.metrics()).collect::<Vec<String>>();
    // Each node refreshes its gauges once a second, those of topics every five.
    let mut more = 0.0;
    let pages = eventually("no important metric is zero", || {
        const PENDING: &str = "lance_checkpoint_pending_bytes";
        let pages = pages();
        let zero: Vec<&str> = IMPORTANT.iter().copied().filter(|name| total(&pages, name) == 0.0).collect();
        if zero.contains(&PENDING) {
            // The last checkpoint has begun when everything was there.
            cluster.ok(&["produce", "t"], b"one more\n");
            more += 1.0;
        }
        eprintln!("these are zero: {zero:?}");
        zero.is_empty().then_some(pages)
    });

    let lines = lines.iter().filter(|byte| **byte == b'\n').count() as f64 + 1.0;
    assert_eq!(total(&pages, "lance_messages_in_total"), lines + more);
    assert!(total(&pages, "lance_messages_out_total") >= lines);
    let committed = |node: &Node| total(&[node.metrics()], "lance_commit_index");
    eventually("all nodes know what is committed", || {
        let first = committed(&cluster.nodes[0]);
        cluster.nodes.iter().all(|node| committed(node) == first).then_some(())
    });
}

/// A node that gets no processor for a while.
#[test]
fn a_node_that_was_stopped_shows_that_its_clock_ticked_late() {
    const STOPPED: Duration = Duration::from_millis(400);
    let cluster = Cluster::start_with(&[]);
    let node = &cluster.nodes[0];
    let drift = || total(&[node.metrics()], "lance_cluster_coordinator_tick_drift_ms");
    node.signal(Signal::STOP);
    std::thread::sleep(STOPPED);
    node.signal(Signal::CONT);
    // One tick may have been due only at the end.
    eventually("the drift shows", || (drift() >= 300.0).then_some(()));
    assert!(drift() < 10_000.0);
}
