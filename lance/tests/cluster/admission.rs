//! Who takes part: a cluster forms with all its nodes only, and a wiped node is not its former self.

use super::support::cluster::Cluster;
use super::support::node::Node;
use super::support::wire;
use super::support::{eventually, lines_of_every_kind};
use lnc_protocol::Flags;
use std::time::{Duration, Instant};

/// How long something that must not happen is looked out for.
const WATCH: Duration = Duration::from_secs(2);

#[test]
fn a_cluster_does_not_form_with_two_of_three_nodes() {
    let mut cluster = Cluster::stopped(&[]);
    let waits = |cluster: &mut Cluster, id: u64| {
        let state = cluster.node(id).readyz();
        state.is_some_and(|(status, reason)| status == 503 && reason.contains("waiting for nodes 3"))
    };
    for id in [1, 2] {
        cluster.node(id).start();
    }
    for id in [1, 2] {
        eventually("the node waits for node 3", || waits(&mut cluster, id).then_some(()));
    }
    let until = Instant::now() + WATCH;
    while Instant::now() < until {
        assert!(waits(&mut cluster, 1) && waits(&mut cluster, 2), "{}", cluster.node(1).log());
    }
    cluster.node(3).start();
    cluster.wait_ready();
    cluster.assert_one_leader_per_group();
}

#[test]
fn a_wiped_node_is_no_majority_with_one_of_its_former_peers_and_is_replaced_by_two() {
    let mut cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    cluster.ok(&["produce", "t"], &lines_of_every_kind(1 << 20));
    let leader = cluster.leader(group);
    let (wiped, other) = (cluster.others(leader)[0], cluster.others(leader)[1]);
    let end = cluster.partitions("t")[0].high_watermark;
    cluster.node(other).kill();
    cluster.node(wiped).kill();
    std::fs::remove_dir_all(&cluster.node(wiped).data).unwrap();
    cluster.node(wiped).start();
    let awaits = |cluster: &mut Cluster| {
        let state = cluster.node(wiped).readyz();
        state.is_some_and(|(status, reason)| status == 503 && reason.contains("another incarnation"))
    };
    eventually("the wiped node awaits to be admitted", || awaits(&mut cluster).then_some(()));
    let mut alone = cluster.wire(leader);
    let until = Instant::now() + WATCH;
    let value: &[u8] = b"nobody may say yes to this";
    while Instant::now() < until {
        let request =
            lnc_protocol::message::ProduceRequest { timeout_ms: 500, ..wire::produce("t", 0, wire::batch([value])) };
        let error = alone.produce(request, Flags::NONE).unwrap().expect_err("no majority holds this");
        assert!(error.code.is_retriable(), "{error}");
        assert!(awaits(&mut cluster), "{:?}", cluster.node(wiped).readyz());
    }
    let found = alone.fetch(wire::fetch("t", 0, end)).unwrap();
    assert_eq!((found.high_watermark, found.records.len()), (end, 0), "nothing more is committed");

    cluster.node(other).start();
    cluster.wait_ready();
    let replaced = |cluster: &Cluster| {
        let info = cluster.info(leader)?;
        let node = info.nodes.iter().find(|node| node.id == wiped)?;
        (node.member == 1 << 32 | wiped && node.membership == "member").then_some(())
    };
    eventually("the wiped node has replaced its former self", || replaced(&cluster));
    cluster.ok(&["produce", "t"], b"three of three go on\n");
    // And it counts: with it and one other, the cluster goes on.
    cluster.node(other).kill();
    cluster.ok(&["produce", "t"], b"two of three go on\n");
    cluster.node(other).start();
    cluster.wait_ready();
    let end = cluster.partitions("t")[0].high_watermark;
    cluster.assert_replicas_equal("t", 0, end);
}

/// What its configuration says of the others is from a time before they moved: those who admit it are not heard.
#[test]
fn a_fresh_node_with_an_old_list_says_who_calls_it_from_elsewhere() {
    let mut cluster = Cluster::start();
    cluster.node(3).kill();
    let mut lost = cluster.moved(3);
    lost.start();
    let told = |node: &Node| {
        let why = "nodes 1, 2 of a cluster call this one, and `cluster.nodes` does not lead to them";
        node.readyz().is_some_and(|(status, reason)| status == 503 && reason.contains(why))
    };
    eventually("the node says what is wrong", || told(&lost).then_some(()));
    lost.kill();
    // With the right list it is what any node with an empty disk is.
    std::fs::remove_dir_all(&cluster.node(3).data).unwrap();
    cluster.node(3).start();
    cluster.wait_ready();
}

/// The list of a fresh node is so old that others who start from it are no members any more: with them it would make a second
/// cluster, while the first one admits it.
#[test]
fn a_node_that_a_cluster_calls_is_in_no_other() {
    let mut cluster = Cluster::start();
    cluster.node(3).kill();
    let mut others = cluster.another_cluster_with(3);
    others.iter_mut().for_each(Node::start);
    let waits = |node: &Node| {
        let told = node.readyz();
        told.is_some_and(|(status, reason)| status == 503 && reason.contains("and hears of another one"))
    };
    eventually("the node that is called waits", || waits(&others[2]).then_some(()));
    let until = Instant::now() + WATCH;
    while Instant::now() < until {
        assert!(!others[2].is_ready());
    }
    others.iter_mut().for_each(Node::kill);
    std::fs::remove_dir_all(&cluster.node(3).data).unwrap();
    cluster.node(3).start();
    cluster.wait_ready();
}
