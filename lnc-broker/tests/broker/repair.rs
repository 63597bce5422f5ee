//! Damage below the durable mark: what a node lost of its journal comes back from the others, and counts for nothing
//! until it has.

use crate::harness::{Cluster, Cut, Producer, SECOND, Settings};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::journal::GroupId;

const DATA: GroupId = GroupId(1);
const RECORDS: usize = 30;

/// Where the flushes of the first journal file begin.
fn flushes(cluster: &Cluster, node: u64) -> Vec<u64> {
    let file = cluster.node(node).disk().file("journal/00000000000000000001.journal").expect("the first file");
    (0..file.len() / 4096)
        .map(|block| block * 4096)
        .filter(|at| file[*at..].starts_with(b"LNCJ"))
        .map(|at| at as u64)
        .collect()
}

/// Three nodes with the same records in their journals, and no checkpoint; all without power.
fn dark() -> Cluster {
    dark_with(RECORDS)
}

fn dark_with(records: usize) -> Cluster {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    let mut producer = Producer::new(&mut cluster);
    for n in 0..records {
        let request = producer.request("t", 0, &[&format!("{n}-{}", "v".repeat(300))]);
        cluster.produce(&request);
    }
    cluster.await_same();
    cluster.ticks(SECOND / 2);
    for node in cluster.ids() {
        cluster.crash(node, CrashChoice::Everything);
    }
    cluster
}

/// Damages the body of a flush.
fn damage(cluster: &Cluster, node: u64, flush: u64) {
    let path = "journal/00000000000000000001.journal";
    assert!(cluster.node(node).disk().corrupt(path, flush + 300, 0x40), "no such byte");
}

fn assert_all_there(cluster: &mut Cluster) {
    cluster.await_leaders();
    cluster.await_same();
    for node in cluster.ids() {
        let records = cluster.read_all(node, "t", 0);
        assert_eq!(records.len(), RECORDS, "node {node}");
    }
}

#[test]
fn different_damage_on_every_node_loses_nothing() {
    let mut cluster = dark();
    for node in cluster.ids() {
        let flushes = flushes(&cluster, node);
        // Every third flush of the middle, on each node others.
        for at in (8 + node as usize..flushes.len() - 6).step_by(3) {
            damage(&cluster, node, flushes[at]);
        }
    }
    for node in cluster.ids() {
        cluster.start(node);
    }
    assert_all_there(&mut cluster);
    // And the next start finds nothing damaged that matters.
    for node in cluster.ids() {
        cluster.crash(node, CrashChoice::Nothing);
    }
    for node in [2, 3] {
        cluster.start(node);
    }
    cluster.await_leaders();
    cluster.start(1);
    assert_all_there(&mut cluster);
}

#[test]
fn a_node_with_holes_does_not_take_part_until_they_are_filled() {
    let mut cluster = dark();
    let at = flushes(&cluster, 1)[15];
    damage(&cluster, 1, at);
    // Node 3 stays down; nothing of node 2 reaches node 1.
    cluster.start(1);
    cluster.start(2);
    cluster.network.cut(Cut::way(2, 1));
    cluster.ticks(10 * SECOND);
    assert_eq!(cluster.leader(DATA), None, "node 1 cannot vouch for what it lost");
    cluster.network.heal();
    cluster.until("node 1 has got back what it lost", |cluster| cluster.leader(DATA).is_some());
    cluster.start(3);
    assert_all_there(&mut cluster);
}

#[test]
fn a_lost_entry_that_never_was_committed_is_dropped() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    let mut producer = Producer::new(&mut cluster);
    let leader = cluster.leader_of(DATA);
    let requests: Vec<_> = (0..6).map(|n| producer.request("t", 0, &[&format!("{n}")])).collect();
    cluster.produce(&requests[0]);
    cluster.await_same();
    // The leader writes on alone.
    cluster.network.isolate(leader);
    for request in &requests[1..4] {
        cluster.send(leader, &lnc_protocol::Request::Produce(request.clone()));
        cluster.ticks(2);
    }
    let before = flushes(&cluster, leader);
    cluster.crash(leader, CrashChoice::Everything);
    damage(&cluster, leader, before[before.len() - 3]);
    cluster.network.heal();
    for request in &requests[1..] {
        cluster.produce(request);
    }
    cluster.start(leader);
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(cluster.read_all(node, "t", 0).len(), 6, "node {node}");
    }
}

/// The first checkpoint of a node may be made while one of its groups waits for what it lost.
#[test]
fn a_checkpoint_of_a_group_that_waits_can_be_loaded() {
    // More than one answer of a peer holds.
    let mut cluster = dark_with(10 * RECORDS);
    let victim = 3;
    let flushes = flushes(&cluster, victim);
    for at in (8..flushes.len() - 6).step_by(3) {
        damage(&cluster, victim, flushes[at]);
    }
    for node in cluster.ids().into_iter().filter(|node| *node != victim) {
        cluster.start(node);
    }
    cluster.until("the others have a leader", |cluster| cluster.leader(DATA).is_some());
    cluster.settings.checkpoint_bytes = 1;
    cluster.start(victim);
    cluster.until("it has a checkpoint", |cluster| cluster.node(victim).checkpoint(DATA).is_some());
    let checkpoint = cluster.node(victim).checkpoint(DATA).expect("there is one");
    assert_eq!(checkpoint.applied_index, 0, "the group waits still");
    cluster.crash(victim, CrashChoice::Everything);
    cluster.start(victim);
    cluster.await_leaders();
    cluster.await_same();
    assert_eq!(cluster.read_all(victim, "t", 0).len(), 10 * RECORDS);
}
