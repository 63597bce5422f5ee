//! A dead leader is replaced by exactly one other.

use super::support::cluster::Cluster;
use super::support::{assert_same, lines_of_every_kind};

#[test]
fn one_leader_per_term_follows_a_dead_one_and_readers_see_the_same_bytes() {
    let mut cluster = Cluster::start();
    let lines = lines_of_every_kind(1 << 20);
    let group = cluster.create_topic("t", 1, &[])[0];
    cluster.ok(&["produce", "t"], &lines);
    let expected = cluster.ok(&["consume", "t", "--until-end"], b"");
    let end = cluster.partitions("t")[0].high_watermark;
    let before = cluster.group(cluster.leader(group), group).unwrap().term;

    let victim = cluster.leader(group);
    cluster.node(victim).kill();
    let others = cluster.others(victim);
    for each in 0..=3 {
        cluster.leader_among(each, &others);
    }
    let successor = cluster.leader_among(group, &others);
    assert!(cluster.group(successor, group).unwrap().term > before, "a new leader has a new term");
    for id in others {
        assert_same("read through a survivor", &cluster.ok_at(id, &["consume", "t", "--until-end"], b""), &expected);
    }

    cluster.node(victim).start();
    cluster.wait_ready();
    cluster.assert_one_leader_per_group();
    assert_same(
        "read through the one that came back",
        &cluster.ok_at(victim, &["consume", "t", "--until-end"], b""),
        &expected,
    );
    cluster.assert_replicas_equal("t", 0, end);
}
