//! Nodes come and go while records are written: three, five, three again.

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::node::Node;
use super::support::stream::Stream;
use std::time::{Duration, Instant};

fn add(cluster: &mut Cluster) -> u64 {
    let id = cluster.another();
    let ports = cluster.node(id).ports.clone();
    let [client, peer, http] = [ports.client, ports.peer, ports.http].map(|port| format!("127.0.0.1:{port}"));
    let node = id.to_string();
    let arguments = ["cluster", "add", &node, "--client", &client, "--peer", &peer, "--http", &http];
    for _ in 0..2 {
        cluster.ok(&arguments, b"");
    }
    cluster.node(id).start();
    let waiting = [&arguments[..], &["--wait", "--wait-timeout", "60s"]].concat();
    cluster.ok(&waiting, b"");
    id
}

#[test]
fn from_three_to_five_and_back_under_load() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &[]);
    let stream = Stream::start(cluster.endpoints(), "t", 5);
    for _ in 0..2 {
        add(&mut cluster);
    }
    let so_far = stream.acknowledged();
    eventually("records are acknowledged by five", || (stream.acknowledged() > so_far + 20).then_some(()));
    cluster.wait_ready();
    for id in [1, 2] {
        let node = id.to_string();
        cluster.ok(&["cluster", "remove", &node, "--yes", "--wait", "--wait-timeout", "60s"], b"");
        // Said again, it is done.
        cluster.ok(&["cluster", "remove", &node, "--yes"], b"");
    }
    let so_far = stream.acknowledged();
    eventually("records are acknowledged by three", || (stream.acknowledged() > so_far + 20).then_some(()));
    // Those who left disturb nobody, whether they run or not.
    cluster.node(1).kill();
    cluster.node(1).start();
    cluster.node(2).kill();
    let so_far = stream.acknowledged();
    eventually("records are acknowledged without them", || (stream.acknowledged() > so_far + 50).then_some(()));
    let (count, _) = stream.finish();
    for id in 3..=5 {
        let stored = cluster.stored(id, "t", 0, count);
        assert_eq!(stored, cluster.stored(3, "t", 0, count), "node {id}");
    }
}

/// Whether a node says that it is not ready, for this reason.
fn says(cluster: &mut Cluster, id: u64, why: &str) -> bool {
    cluster.node(id).readyz().is_some_and(|(status, reason)| status == 503 && reason.contains(why))
}

#[test]
fn from_three_to_one_under_load() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &[]);
    let stream = Stream::start(cluster.endpoints(), "t", 5);
    for id in [3, 2] {
        let node = id.to_string();
        cluster.ok(&["cluster", "remove", &node, "--yes", "--wait", "--wait-timeout", "60s"], b"");
        let so_far = stream.acknowledged();
        eventually("records are acknowledged without it", || (stream.acknowledged() > so_far + 20).then_some(()));
        eventually("the node says that it was removed", || says(&mut cluster, id, "was removed").then_some(()));
        // Asked there, the status is that of those who are left.
        let endpoint = cluster.node(id).client();
        let output = cluster.command_at(&endpoint, &["cluster", "status"]).output().unwrap();
        let (shown, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!shown.contains("leaving"), "{shown}{told}");
    }
    // It knows it after a restart too, from those who refuse it.
    cluster.node(2).kill();
    cluster.node(2).start();
    eventually("it still says so", || says(&mut cluster, 2, "cluster add 2").then_some(()));
    for id in [2, 3] {
        cluster.node(id).kill();
    }
    cluster.node(1).kill();
    cluster.node(1).start();
    cluster.node(1).wait_ready();
    let so_far = stream.acknowledged();
    eventually("one goes on alone", || (stream.acknowledged() > so_far + 20).then_some(()));
    stream.finish();
    let info = cluster.info(1).expect("it answers");
    assert!(info.groups.iter().all(|group| group.voters == [1]), "{:?}", info.groups);
    assert_eq!(info.nodes.len(), 1, "{:?}", info.nodes);
}

#[test]
fn a_copy_of_a_running_node_s_directory_is_found_and_both_say_so() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &[]);
    cluster.ok(&["produce", "t"], b"before\n");
    let mut copy = cluster.copy_of(2);
    copy.start();
    let why = "another process runs with the identity of this node";
    let told = |node: &Node| node.readyz().is_some_and(|(status, reason)| status == 503 && reason.contains(why));
    eventually("the copy is told", || told(&copy).then_some(()));
    eventually("and so is the node", || told(cluster.node(2)).then_some(()));
    for log in [copy.log(), cluster.node(2).log()] {
        assert!(log.contains("its data directory was copied"), "{log}");
    }
    let counted =
        |cluster: &mut Cluster, id: u64| cluster.node(id).metrics().contains("lance_peer_twins_total{peer=\"2\"}");
    assert!(counted(&mut cluster, 1) || counted(&mut cluster, 3));
    // The first one goes on.
    cluster.ok(&["produce", "t"], b"after\n");
    copy.kill();
    let ended = Instant::now();
    eventually("once the copy is gone, the node is alone again", || (!told(cluster.node(2))).then_some(()));
    assert!(ended.elapsed() < Duration::from_secs(25), "{:?}", ended.elapsed());
    cluster.wait_ready();
    // An ordinary restart is nobody's twin.
    cluster.node(3).kill();
    cluster.node(3).start();
    cluster.node(3).wait_ready();
}

#[test]
fn another_node_takes_the_place_of_one_that_is_gone() {
    let mut cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    cluster.ok(&["produce", "t"], b"before\n");
    let gone = cluster.leader(group);
    cluster.node(gone).kill();
    let id = cluster.another();
    let ports = cluster.node(id).ports.clone();
    let [client, peer, http] = [ports.client, ports.peer, ports.http].map(|port| format!("127.0.0.1:{port}"));
    cluster.node(id).start();
    let (old, new) = (gone.to_string(), id.to_string());
    let arguments = ["cluster", "replace", &old, "--with", &new, "--client", &client, "--peer", &peer, "--http", &http];
    cluster.ok(&[&arguments[..], &["--wait", "--wait-timeout", "60s"]].concat(), b"");
    cluster.node(id).wait_ready();
    cluster.ok(&["produce", "t"], b"after\n");
    let info = eventually("the node that is gone is forgotten", || {
        cluster.info(id).filter(|info| info.nodes.iter().all(|node| node.id != gone))
    });
    assert!(info.groups.iter().all(|group| group.voters.len() == 3 && group.voters.contains(&id)), "{:?}", info.groups);
}
