//! What is deleted, by hand or by a limit, is gone from every replica, and nothing else is.

use super::support::cluster::Cluster;
use super::support::node::{Node, run};
use super::support::wire;
use super::support::{assert_same, eventually};
use lnc_protocol::message::TopicOptions;
use lnc_protocol::{ErrorCode, Flags};

/// About 8 MB of lines, each with its number.
fn numbered_lines() -> Vec<u8> {
    (0..80_000).flat_map(|number| format!("{number:0>100}\n").into_bytes()).collect()
}

/// Bytes of segment files on each node.
fn stored(cluster: &Cluster) -> Vec<u64> {
    cluster.nodes.iter().map(|node| node.disk_bytes("segments")).collect()
}

/// Every record that is left says its own number, which is its offset.
#[track_caller]
fn assert_offsets_unchanged(cluster: &Cluster, topic: &str, start: u64, end: u64) {
    for id in 1..=3 {
        let text = cluster.ok_at(id, &["consume", topic, "--until-end", "--format", "%o %v\\n"], b"");
        let expected: Vec<u8> =
            (start..end).flat_map(|offset| format!("{offset} {offset:0>100}\n").into_bytes()).collect();
        assert_same(&format!("the records left on node {id}"), &text, &expected);
    }
}

/// Waits until all replicas start at the same offset, past `than`, and gives it.
#[track_caller]
fn common_start(cluster: &Cluster, topic: &str, than: u64) -> u64 {
    eventually(&format!("the log start of {topic} moves on all replicas"), || {
        let starts: Vec<u64> = (1..=3)
            .map(|id| cluster.wire(id).fetch(wire::fetch(topic, 0, u64::MAX >> 1)).unwrap().log_start_offset)
            .collect();
        (starts[0] > than && starts.iter().all(|start| *start == starts[0])).then_some(starts[0])
    })
}

#[test]
fn a_deleted_topic_frees_its_disk_space_on_every_node() {
    let mut cluster = Cluster::start();
    cluster.create_topic("gone", 3, &[]);
    cluster.create_topic("kept", 1, &[]);
    let lines = numbered_lines();
    cluster.ok(&["produce", "gone"], &lines);
    cluster.ok(&["produce", "kept"], b"a line\n");
    eventually("segments are written on every node", || {
        stored(&cluster).iter().all(|bytes| *bytes >= 6 << 20).then_some(())
    });
    // A node that is down while the topic goes forgets it when it comes back.
    cluster.node(2).kill();
    cluster.ok(&["topic", "delete", "gone", "--yes"], b"");
    cluster.node(2).start();
    eventually("the space is free on every node", || {
        stored(&cluster).iter().all(|bytes| *bytes < 1 << 20).then_some(())
    });
    cluster.wait_ready();
    assert_eq!(run(cluster.command(&["consume", "gone", "--until-end"]), b"").status.code(), Some(4));
    // A topic of the same name begins anew.
    cluster.create_topic("gone", 3, &[]);
    assert_eq!(cluster.ok(&["consume", "gone", "--until-end"], b""), b"");
    assert_eq!(cluster.ok(&["consume", "kept", "--until-end"], b""), b"a line\n");
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_ready();
    assert_eq!(cluster.ok(&["consume", "gone", "--until-end"], b""), b"");
}

#[test]
fn a_limit_on_bytes_deletes_whole_old_segments_alike_on_every_replica() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &["--max-bytes", "3MiB", "--segment-bytes", "1MiB"]);
    cluster.ok(&["produce", "t"], &numbered_lines());
    let start = eventually("about 3 MiB are left", || {
        let partition = &cluster.partitions("t")[0];
        (partition.size_bytes <= 4 << 20).then_some(partition.log_start_offset)
    });
    assert!(start > 0);
    let start = common_start(&cluster, "t", 0).max(start);
    eventually("files go on every replica", || stored(&cluster).iter().all(|bytes| *bytes <= 5 << 20).then_some(()));
    assert_offsets_unchanged(&cluster, "t", start, 80_000);
    let found = cluster.wire(1).fetch(wire::fetch("t", 0, start - 1)).unwrap();
    assert_eq!((found.error, found.log_start_offset), (ErrorCode::OffsetOutOfRange, start));

    cluster.kill_all();
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.wait_ready();
    assert_eq!(common_start(&cluster, "t", start - 1), start, "a restart brings nothing back");
    assert_offsets_unchanged(&cluster, "t", start, 80_000);
}

#[test]
fn a_limit_on_age_deletes_old_segments_alike_on_every_replica() {
    let cluster = Cluster::start();
    cluster.create_topic("t", 1, &["--max-age", "1s", "--segment-bytes", "1MiB"]);
    cluster.ok(&["produce", "t"], &numbered_lines());
    let start = common_start(&cluster, "t", 60_000);
    eventually("files go on every replica", || stored(&cluster).iter().all(|bytes| *bytes <= 2 << 20).then_some(()));
    let end = cluster.partitions("t")[0].high_watermark;
    assert_eq!(end, 80_000);
    assert!(start <= end);
    let last: Vec<u8> = cluster.ok(&["consume", "t", "--until-end", "--format", "%o %v\\n"], b"");
    for line in String::from_utf8(last).unwrap().lines() {
        let (offset, value) = line.split_once(' ').unwrap();
        assert_eq!(offset, value.trim_start_matches('0'));
    }
    // New records follow where the old ones ended.
    cluster.ok(&["produce", "t"], b"new\n");
    assert_eq!(cluster.partitions("t")[0].high_watermark, end + 1);
}

#[test]
fn a_limit_that_would_delete_everything_is_refused() {
    let cluster = Cluster::start();
    let mut wire = cluster.wire(1);
    let none = TopicOptions::default();
    for options in [
        TopicOptions { max_age_ms: Some(0), ..none.clone() },
        TopicOptions { max_bytes: Some(0), ..none.clone() },
        TopicOptions { segment_bytes: Some(1), ..none },
    ] {
        let error = wire.ask(&wire::create("t", 1, options), Flags::NONE).unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidTopicSettings, "{error}");
    }
    let output = run(cluster.command(&["topic", "create", "t", "--max-age", "0s"]), b"");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(cluster.ok(&["topic", "list", "-o", "json"], b"").trim_ascii(), b"[]");
}
