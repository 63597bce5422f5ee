//! Followers that hang or are down cost the others nothing, and catch up.

use super::support::cluster::Cluster;
use super::support::stream::Stream;
use super::support::{eventually, lines_of_every_kind};
use rustix::process::Signal;
use std::time::Duration;

/// Waits until no follower lags behind the leader of any group.
#[track_caller]
fn assert_no_lag(cluster: &Cluster) {
    for group in 0..=3 {
        eventually(&format!("no follower lags in group {group}"), || {
            let leader = cluster.leader(group);
            let status = cluster.group(leader, group)?;
            (status.peers.len() == 2 && status.peers.iter().all(|peer| peer.lag == 0)).then_some(())
        });
    }
}

#[test]
fn a_hung_follower_stops_nobody_and_catches_up() {
    let mut cluster = Cluster::start();
    let lines = lines_of_every_kind(2 << 20);
    let group = cluster.create_topic("t", 1, &[])[0];
    cluster.ok(&["produce", "t"], &lines);
    let hung = cluster.others(cluster.leader(group))[0];
    cluster.node(hung).signal(Signal::STOP);
    let address = |id: &u64| cluster.nodes[*id as usize - 1].client();
    let others = cluster.others(hung).iter().map(address).collect::<Vec<_>>().join(",");
    // Once through the others, once through the hung node first of all.
    for endpoints in [others.clone(), format!("{},{others}", address(&hung))] {
        let output = super::support::node::run(cluster.command_at(&endpoints, &["produce", "t"]), &lines);
        super::support::cluster::succeeded(&["produce", "t"], output);
    }
    cluster.node(hung).signal(Signal::CONT);
    cluster.wait_ready();
    assert_no_lag(&cluster);
    let end = cluster.partitions("t")[0].high_watermark;
    cluster.assert_replicas_equal("t", 0, end);
    cluster.assert_one_leader_per_group();
}

#[test]
fn a_follower_that_was_down_for_long_catches_up_before_it_is_ready() {
    let mut cluster = Cluster::start_with(&["journal.retain_bytes=64MiB", "journal.checkpoint_bytes=4MiB"]);
    let lines = lines_of_every_kind(4 << 20);
    let group = cluster.create_topic("t", 1, &[])[0];
    cluster.ok(&["produce", "t"], &lines);
    let leader = cluster.leader(group);
    let down = cluster.others(leader)[0];
    cluster.node(down).kill();
    let checkpoints = |cluster: &mut Cluster| {
        let text = cluster.node(leader).metrics();
        let line = text.lines().find(|line| line.starts_with("lance_checkpoints_total ")).unwrap();
        line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = checkpoints(&mut cluster);
    for _ in 0..3 {
        cluster.ok(&["produce", "t"], &lines);
    }
    eventually("checkpoints are made", || (checkpoints(&mut cluster) > before + 1).then_some(()));

    let leader = cluster.leader_among(group, &cluster.others(down));
    let committed = cluster.group(leader, group).unwrap().commit_index;
    cluster.node(down).start();
    let mut reasons: Vec<String> = Vec::new();
    eventually("the node is ready", || match cluster.node(down).readyz() {
        Some((200, _)) => Some(()),
        Some((status, reason)) => {
            assert_eq!(status, 503, "{reason}");
            reasons.push(reason);
            None
        }
        None => None,
    });
    let own = cluster.group(down, group).unwrap();
    assert!(own.applied_index >= committed, "ready at {} of {committed}; it had said {reasons:?}", own.applied_index);
    assert!(!reasons.is_empty(), "the node was never not ready");
    assert_no_lag(&cluster);
    let end = cluster.partitions("t")[0].high_watermark;
    cluster.assert_replicas_equal("t", 0, end);
}

#[test]
fn a_hung_leader_is_replaced_while_it_hangs() {
    let mut cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    let stream = Stream::start(cluster.endpoints(), "t", 10);
    eventually("records are acknowledged", || (stream.acknowledged() > 20).then_some(()));
    let hung = cluster.leader(group);
    cluster.node(hung).signal(Signal::STOP);
    let others = cluster.others(hung);
    cluster.leader_among(group, &others);
    let so_far = stream.acknowledged();
    // The client waits a while for the answers of a broker that says nothing, then asks another.
    eventually("records are acknowledged by another leader", || (stream.acknowledged() > so_far + 20).then_some(()));
    cluster.node(hung).signal(Signal::CONT);
    let (count, longest) = stream.finish();
    assert!(longest < Duration::from_secs(10), "one record took {longest:?}");
    cluster.wait_ready();
    cluster.assert_one_leader_per_group();
    cluster.assert_replicas_equal("t", 0, count);
}

/// A follower that comes back when the journal no longer has what it lacks.
fn falls_behind(wipe: bool) {
    let mut cluster = Cluster::start_with(&["journal.retain_bytes=4MiB", "journal.checkpoint_bytes=4MiB"]);
    let group = cluster.create_topic("t", 1, &[])[0];
    let lines = lines_of_every_kind(10 << 20);
    cluster.ok(&["produce", "t"], &lines);
    let down = cluster.others(cluster.leader(group))[0];
    cluster.node(down).kill();
    if wipe {
        std::fs::remove_dir_all(&cluster.node(down).data).unwrap();
    }
    for _ in 0..3 {
        cluster.ok(&["produce", "t"], &lines);
    }
    let leader = cluster.leader_among(group, &cluster.others(down));
    eventually("the journal has let go of the first entries", || {
        (cluster.group(leader, group)?.first_index > 2).then_some(())
    });
    cluster.node(down).start();
    cluster.ok(&["produce", "t"], b"while it catches up\n");
    cluster.wait_ready();
    assert!(cluster.node(down).log().contains("taking over state that came from a peer"));
    assert_no_lag(&cluster);
    cluster.ok(&["produce", "t"], b"one more\n");
    let end = cluster.partitions("t")[0].high_watermark;
    cluster.assert_replicas_equal("t", 0, end);
    // What it took over is what it starts from.
    cluster.node(down).kill();
    cluster.node(down).start();
    cluster.wait_ready();
    cluster.assert_replicas_equal("t", 0, end);
}

#[test]
fn a_follower_behind_the_journal_fetches_the_state_and_catches_up() {
    falls_behind(false);
}

#[test]
fn a_wiped_node_behind_the_journal_fetches_everything_and_replaces_its_former_self() {
    falls_behind(true);
}
