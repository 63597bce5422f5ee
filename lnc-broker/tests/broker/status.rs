//! What a node knows of the cluster, for those who look on.

use crate::harness::{Cluster, EPOCH_MS, META, SECOND, Settings, produce_request};
use lnc_broker::status::{Election, Snapshot};
use lnc_log::disk::memory::CrashChoice;

/// The topics of a snapshot with the ends of their partitions.
fn ends(snapshot: &Snapshot) -> Vec<(&str, Vec<u64>)> {
    let ends = |topic: &lnc_broker::status::TopicExtent| topic.partitions.iter().map(|p| p.high_watermark).collect();
    snapshot.topics.iter().map(|topic| (topic.name.as_str(), ends(topic))).collect()
}

#[test]
fn every_replica_knows_the_topics_and_how_far_it_is() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("b", 2);
    cluster.create_topic("a", 1);
    cluster.produce(&produce_request("b", 1, &["x", "y"]));
    cluster.await_same();
    // The followers hear with the next heartbeats what is committed.
    cluster.ticks(SECOND);
    for id in cluster.ids() {
        let snapshot = cluster.nodes[&id].snapshot();
        assert_eq!(ends(&snapshot), [("a", vec![0]), ("b", vec![0, 2])], "node {id}");
        assert_eq!(snapshot.topic_count, 2);
        assert_eq!(snapshot.behind, [(0, 0), (1, 0)].into(), "node {id}");
        assert_eq!(snapshot.cluster.node_id, id);
        assert_eq!(snapshot.cluster.nodes.len(), 3);
    }
}

/// Which version each node runs, and what is left on its disk, they tell each other.
#[test]
fn every_node_says_what_the_others_have_said_of_themselves() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.node(2).disk().set_capacity(Some(1 << 30));
    cluster.ticks(3 * SECOND);
    for id in 1..=3 {
        let facts = cluster.nodes[&id].snapshot().facts;
        assert_eq!(facts.keys().copied().collect::<Vec<_>>(), [1, 2, 3], "node {id}");
        let left = facts[&2].facts.free_bytes.expect("a disk that tells");
        assert!(left > 0 && left <= 1 << 30 && facts[&3].facts.free_bytes.is_none(), "{facts:?}");
        assert!(facts.values().all(|said| said.facts.version() == env!("CARGO_PKG_VERSION")));
    }
    cluster.kill(2);
    cluster.ticks(SECOND);
    assert!(!cluster.nodes[&1].snapshot().facts.contains_key(&2), "it is not there");
}

#[test]
fn a_new_leader_is_an_election_that_the_others_saw() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.await_balance();
    let first = cluster.leader_of(META);
    let before = cluster.nodes[&first].snapshot();
    cluster.crash(first, CrashChoice::Nothing);
    let second = cluster.leader_of(META);
    let term = cluster.view(second, META).term;
    assert_ne!(first, second);
    for id in cluster.ids().into_iter().filter(|id| *id != first) {
        let snapshot = cluster.nodes[&id].snapshot();
        let of_catalog: Vec<&Election> = snapshot.elections.iter().filter(|e| e.group == META.0).collect();
        assert_eq!((of_catalog[0].term, of_catalog[0].leader), (term, second), "node {id}");
        assert_eq!(of_catalog[1].leader, first, "node {id}: the one before");
        assert!(of_catalog[0].at_ms >= before.taken_ms && of_catalog[0].at_ms <= snapshot.taken_ms, "node {id}");
        assert!(snapshot.elections.is_sorted_by(|newer, older| newer.at_ms >= older.at_ms), "the newest first");
        assert!(snapshot.elections.iter().all(|election| election.at_ms >= EPOCH_MS));
    }
}
