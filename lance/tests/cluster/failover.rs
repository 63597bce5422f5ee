//! A dead leader is replaced by exactly one other.

use super::support::cluster::Cluster;
use super::support::stream::Stream;
use super::support::wire::{self, Wire};
use super::support::{assert_same, eventually, lines_of_every_kind};

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

#[test]
fn a_follower_serves_nothing_before_it_is_committed() {
    let cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    let stream = Stream::start(cluster.endpoints(), "t", 100);
    eventually("records are acknowledged", || (stream.acknowledged() > 20).then_some(()));
    let mut wires: Vec<Wire> = (1..=3).map(|id| cluster.wire(id)).collect();
    let mut reach = |id: u64| wires[id as usize - 1].fetch(wire::fetch("t", 0, 0)).unwrap().high_watermark;
    let mut seen = 0;
    for _ in 0..100 {
        let before = stream.acknowledged();
        let leader = cluster.leader(group);
        for follower in cluster.others(leader) {
            let (served, committed) = (reach(follower), reach(leader));
            // If leadership has moved meanwhile, the former leader may be behind for a moment.
            let still = served <= committed || cluster.leader(group) != leader;
            assert!(still, "node {follower} serves {served} records, its leader has committed {committed}");
            seen = seen.max(served);
        }
        let most = (1..=3).map(&mut reach).max().unwrap();
        assert!(most >= before, "{before} records are acknowledged, {most} are served");
    }
    let (count, _) = stream.finish();
    assert!(seen > 20 && seen <= count);
    cluster.assert_replicas_equal("t", 0, count);
}

/// The run book of a lost majority, followed on the node that is left: nobody leads, and what it knows to be committed is
/// printed all the same.
#[test]
fn the_survivor_of_a_lost_majority_gives_what_it_knows() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 3, &[]);
    let lines = lines_of_every_kind(1 << 20);
    cluster.ok(&["produce", "t"], &lines);
    let survivor = 1;
    let all: Vec<u64> = cluster.partitions("t").iter().map(|partition| partition.high_watermark).collect();
    for (partition, end) in (0..).zip(&all) {
        cluster.stored(survivor, "t", partition, *end);
    }
    for lost in cluster.others(survivor) {
        cluster.node(lost).kill();
    }
    let endpoint = cluster.node(survivor).client();
    let known = cluster.command_at(&endpoint, &["topic", "list", "--stale", "-o", "json"]).output().unwrap();
    assert!(known.status.success(), "{}", String::from_utf8_lossy(&known.stderr));
    let known: serde_json::Value = serde_json::from_slice(&known.stdout).unwrap();
    assert_eq!((&known[0]["name"], &known[0]["partitions"]), (&"t".into(), &3.into()), "{known}");
    let book = include_str!("../../../docs/ops/quorum-lost.md");
    assert!(book.contains("`lance consume TOPIC --until-end --stale --endpoint SURVIVOR`"));
    assert!(book.contains("`lance topic list --stale --endpoint SURVIVOR`"));
    // A topic that is named twice is read once.
    let arguments = ["consume", "t", "t", "--until-end", "--stale"];
    let output = cluster.command_at(&endpoint, &arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let sorted = |bytes: &[u8]| {
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        lines.sort_unstable();
        lines
    };
    assert!(sorted(&output.stdout) == sorted(&[&lines[..], b"\n"].concat()), "other lines than were written");
}
