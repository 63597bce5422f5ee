//! Nodes come and go while records are written: three, five, three again.

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::stream::Stream;

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
