//! Files go in line by line and come out byte for byte, whatever happens to nodes meanwhile.

use super::support::cluster::{Cluster, succeeded};
use super::support::node::{Node, Running};
use super::support::{assert_same, eventually, lines_of_every_kind};

/// Bytes of the files.
const SIZE: usize = 10 << 20;

/// What `consume` prints for a file without a newline at its end.
fn printed(lines: &[u8]) -> Vec<u8> {
    [lines, b"\n"].concat()
}

fn sorted(bytes: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

/// Reads both topics to their ends: one partition keeps the order, three keep all lines.
#[track_caller]
fn assert_read_back(cluster: &Cluster, lines: &[u8]) {
    let expected = printed(lines);
    assert_same("one partition", &cluster.ok(&["consume", "one", "--from", "start", "--until-end"], b""), &expected);
    let found = cluster.ok(&["consume", "three", "--from", "start", "--until-end"], b"");
    assert!(sorted(&found) == sorted(&expected), "three partitions hold other lines than were written");
}

/// Records in all partitions of a topic.
fn count(cluster: &Cluster, topic: &str) -> u64 {
    cluster.partitions(topic).iter().map(|partition| partition.high_watermark).sum()
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

#[test]
fn files_come_back_byte_for_byte() {
    let cluster = Cluster::start();
    let lines = lines_of_every_kind(SIZE);
    let file = cluster.directory().join("lines");
    std::fs::write(&file, &lines).unwrap();
    for (topic, partitions) in [("one", 1), ("three", 3)] {
        cluster.create_topic(topic, partitions, &[]);
        cluster.ok(&["produce", topic, "--file", file.to_str().unwrap()], b"");
    }
    assert_read_back(&cluster, &lines);
}

#[test]
fn every_node_serves_the_same_bytes() {
    let cluster = Cluster::start();
    let lines = lines_of_every_kind(SIZE / 5);
    cluster.create_topic("one", 1, &[]);
    cluster.create_topic("three", 3, &[]);
    cluster.ok(&["produce", "one"], &lines);
    cluster.ok(&["produce", "three"], &lines);
    for id in 1..=3 {
        let found = cluster.ok_at(id, &["consume", "one", "--until-end"], b"");
        assert_same(&format!("read through node {id}"), &found, &printed(&lines));
    }
    cluster.assert_replicas_equal("one", 0, count_lines(&lines) + 1);
    for partition in cluster.partitions("three") {
        cluster.assert_replicas_equal("three", partition.partition, partition.high_watermark);
    }
}

#[test]
fn a_file_survives_the_death_of_its_leader_half_way() {
    let mut cluster = Cluster::start();
    let lines = lines_of_every_kind(SIZE);
    let third = lines.len() / 3;
    let group = cluster.create_topic("one", 1, &[])[0];
    cluster.create_topic("three", 3, &[]);
    let mut producers: Vec<Running> =
        ["one", "three"].iter().map(|topic| Running::start(cluster.command(&["produce", topic]))).collect();

    producers.iter_mut().for_each(|producer| producer.feed(&lines[..third]));
    eventually("some lines are stored", || (count(&cluster, "one") > 0).then_some(()));
    let victim = cluster.leader(group);
    cluster.node(victim).kill();
    producers.iter_mut().for_each(|producer| producer.feed(&lines[third..2 * third]));
    // A block ends with a whole line, so a few lines may still wait for their block.
    let goal = count_lines(&lines[..third]);
    eventually("the others go on without the leader", || (count(&cluster, "one") > goal).then_some(()));
    eventually("all partitions go on", || (count(&cluster, "three") > goal).then_some(()));
    cluster.node(victim).start();
    producers.iter_mut().for_each(|producer| producer.feed(&lines[2 * third..]));
    for producer in producers {
        succeeded(&["produce"], producer.finish());
    }

    assert_read_back(&cluster, &lines);
    cluster.wait_ready();
    cluster.assert_one_leader_per_group();
    cluster.assert_replicas_equal("one", 0, count_lines(&lines) + 1);
}

#[test]
fn what_was_acknowledged_survives_the_death_of_all_nodes_at_once() {
    let mut cluster = Cluster::start();
    let lines = lines_of_every_kind(SIZE);
    for (topic, partitions) in [("one", 1), ("three", 3)] {
        cluster.create_topic(topic, partitions, &[]);
        cluster.ok(&["produce", topic], &lines);
    }
    cluster.kill_all();
    cluster.start_all();
    cluster.wait_ready();
    assert_read_back(&cluster, &lines);
    cluster.assert_replicas_equal("one", 0, count_lines(&lines) + 1);
}

#[test]
fn a_producer_outlives_the_death_of_all_nodes() {
    let mut cluster = Cluster::start();
    let lines = lines_of_every_kind(SIZE / 2);
    let half = lines.len() / 2;
    cluster.create_topic("one", 1, &[]);
    let mut producer = Running::start(cluster.command(&["produce", "one"]));
    producer.feed(&lines[..half]);
    eventually("some lines are stored", || (count(&cluster, "one") > 0).then_some(()));
    cluster.kill_all();
    producer.feed(&lines[half..]);
    cluster.nodes.iter_mut().for_each(Node::start);
    succeeded(&["produce"], producer.finish());
    assert_same("one partition", &cluster.ok(&["consume", "one", "--until-end"], b""), &printed(&lines));
}
