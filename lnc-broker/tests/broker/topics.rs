//! The catalog's group and the data groups stay in step, whichever of them lags.

use crate::harness::records::pairs;
use crate::harness::{
    Cluster, Cut, META, Outcome, Producer, SECOND, Settings, create_request, fetch_request, offsets_request,
    produce_request,
};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{FetchPartition, FetchRequest, MetadataRequest, OffsetSpec, ProduceRequest, TopicOptions};
use lnc_protocol::{ErrorCode, Request, Response};

const DATA: GroupId = GroupId(1);

/// Node 1 leads the catalog, node 2 the data group, and node 3 will be told to lead the data group while it knows
/// nothing new of the catalog.
const CATALOG: u64 = 1;
const FIRST: u64 = 2;
const LAGGARD: u64 = 3;

fn balanced() -> Cluster {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.await_balance();
    cluster.await_same();
    cluster
}

/// From now on node 3 hears nothing of the catalog.
fn hide_catalog(cluster: &mut Cluster) {
    cluster.network.cut(Cut::to(LAGGARD).of_group(META));
}

/// Node 2 hands the data group to node 3.
fn hand_over(cluster: &mut Cluster) {
    cluster.until("node 3 has the data group's log", |cluster| {
        cluster.view(LAGGARD, DATA).applied == cluster.view(FIRST, DATA).last
    });
    cluster.network.cut(Cut::to(CATALOG).of_group(DATA));
    cluster.node_mut(FIRST).drain();
    cluster.until("node 3 leads the data group", |cluster| cluster.view(LAGGARD, DATA).leads);
    cluster.network.heal();
    hide_catalog(cluster);
}

#[test]
fn a_creation_that_is_repeated_after_its_leader_died_gives_the_same_topic() {
    let mut cluster = balanced();
    cluster.node_mut(CATALOG).set_order(Order::Held);
    let request = create_request("t", 3, TopicOptions::default());
    let call = cluster.send(CATALOG, &request);
    cluster.settle();
    let view = cluster.view(CATALOG, META);
    assert_eq!(view.commit, view.last, "both followers hold it");
    assert!(!cluster.is_answered(call));
    cluster.crash(CATALOG, CrashChoice::Nothing);
    let id = cluster.create_topic("t", 3);
    assert_eq!(cluster.create_topic("t", 3), id);
    cluster.node_mut(CATALOG).set_order(Order::Immediate);
    cluster.start(CATALOG);
    cluster.await_same();
    for node in cluster.ids() {
        let Ok(Response::ListTopics(topics)) = cluster.ask(node, &Request::ListTopics) else { panic!("no list") };
        let found: Vec<_> = topics.iter().map(|topic| (topic.name.as_str(), topic.topic_id)).collect();
        assert_eq!(found, [("t", id)], "node {node}");
    }
}

#[test]
fn a_topic_of_the_same_name_with_other_settings_is_refused() {
    let mut cluster = balanced();
    cluster.create_topic("t", 3);
    let refused = cluster.ask(CATALOG, &create_request("t", 4, TopicOptions::default())).unwrap_err();
    assert_eq!(refused.code, ErrorCode::TopicExists);
}

#[test]
fn a_created_topic_can_be_written_to_at_every_node_at_once() {
    let mut cluster = balanced();
    cluster.create_topic("t", 6);
    for node in cluster.ids() {
        for partition in 0..6 {
            let request = Request::Produce(produce_request("t", partition, &["a"]));
            assert!(cluster.ask(node, &request).is_ok(), "node {node}, partition {partition}");
        }
    }
}

#[test]
fn a_leader_that_has_not_heard_of_a_topic_keeps_its_partitions() {
    let mut cluster = balanced();
    hide_catalog(&mut cluster);
    let id = cluster.create_topic("t", 1);
    cluster.produce(&produce_request("t", 0, &["a"]));
    hand_over(&mut cluster);
    cluster.ticks(5 * SECOND);
    cluster.network.heal();
    cluster.produce(&ProduceRequest { topic_id: id, ..produce_request("t", 0, &["b"]) });
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(pairs(&cluster.read_all(node, "t", 0)), [(0, "a"), (1, "b")], "node {node}");
    }
}

#[test]
fn a_leader_that_has_not_heard_of_a_deletion_does_not_bring_a_partition_back() {
    let mut cluster = balanced();
    let id = cluster.create_topic("t", 1);
    cluster.produce(&produce_request("t", 0, &["a"]));
    cluster.await_same();
    hide_catalog(&mut cluster);
    cluster.delete_topic("t");
    hand_over(&mut cluster);
    cluster.ticks(5 * SECOND);
    let request = Request::Produce(ProduceRequest { topic_id: id, ..produce_request("t", 0, &["b"]) });
    let refused = cluster.ask(LAGGARD, &request).unwrap_err();
    assert_eq!(refused.code, ErrorCode::NotReady, "to node 3 the topic exists, but its partition cannot");
    cluster.network.heal();
    cluster.await_same();
    for node in [CATALOG, LAGGARD] {
        assert_eq!(cluster.ask(node, &request).unwrap_err().code, ErrorCode::UnknownTopic, "node {node}");
    }
    // Once a checkpoint no longer names them, the files go as well.
    cluster.ticks(5 * SECOND);
    for node in cluster.ids() {
        assert_eq!(cluster.node(node).segment_files(), [], "node {node}");
    }
}

#[test]
fn a_name_that_is_made_anew_is_another_topic() {
    let mut cluster = balanced();
    let old = cluster.create_topic("t", 1);
    cluster.produce(&ProduceRequest { topic_id: old, ..produce_request("t", 0, &["old"]) });
    cluster.delete_topic("t");
    let new = cluster.create_topic("t", 1);
    assert_ne!(old, new);
    cluster.await_same();
    for node in cluster.ids() {
        let produce = Request::Produce(ProduceRequest { topic_id: old, ..produce_request("t", 0, &["late"]) });
        assert_eq!(cluster.ask(node, &produce).unwrap_err().code, ErrorCode::TopicIdMismatch, "node {node}");
        let Ok(Response::Fetch(found)) = cluster.ask(node, &fetch_of(old)) else { panic!("no answer") };
        assert_eq!(found[0].error, ErrorCode::TopicIdMismatch, "node {node}");
        assert_eq!(cluster.read_all(node, "t", 0), [], "node {node} serves another topic's records");
    }
}

fn fetch_of(topic_id: u64) -> Request {
    let partition = FetchPartition { topic: "t".into(), topic_id, partition: 0, offset: 0, max_bytes: 1 << 20 };
    Request::Fetch(FetchRequest { max_wait_ms: 0, min_bytes: 1, max_bytes: 1 << 20, partitions: vec![partition] })
}

/// A client that knows the new topic must not be told that it is wrong by a node that is late.
#[test]
fn a_leader_that_knows_only_a_name_s_former_topic_does_not_deny_the_new_one() {
    let mut cluster = balanced();
    cluster.create_topic("t", 1);
    cluster.await_same();
    hide_catalog(&mut cluster);
    cluster.delete_topic("t");
    let new = cluster.create_topic("t", 1);
    hand_over(&mut cluster);
    let produce = Request::Produce(ProduceRequest { topic_id: new, ..produce_request("t", 0, &["a"]) });
    let refused = cluster.ask(LAGGARD, &produce).unwrap_err();
    assert!(refused.code.is_retriable(), "produce: {refused}");
    match cluster.ask(LAGGARD, &fetch_of(new)) {
        Ok(Response::Fetch(found)) => assert!(found[0].error.is_retriable(), "fetch: {}", found[0].message),
        Err(error) => assert!(error.code.is_retriable(), "fetch: {error}"),
        other => panic!("{other:?}"),
    }
    let Request::ListOffsets(mut offsets) = offsets_request("t", 0, OffsetSpec::Latest) else { panic!("as asked") };
    offsets.partitions[0].topic_id = new;
    match cluster.ask(LAGGARD, &Request::ListOffsets(offsets)) {
        Ok(Response::ListOffsets(found)) => assert!(found[0].error.is_retriable(), "offsets: {}", found[0].message),
        Err(error) => assert!(error.code.is_retriable(), "offsets: {error}"),
        other => panic!("{other:?}"),
    }
    cluster.network.heal();
    let done = cluster.demand(&produce);
    assert!(matches!(done, Response::Produce(done) if done.base_offset == Some(0) && done.topic_id == new));
}

#[test]
fn a_deleted_topic_answers_those_who_wait_for_its_records() {
    let mut cluster = balanced();
    cluster.create_topic("t", 1);
    cluster.await_same();
    let waiting: Vec<_> =
        cluster.ids().into_iter().map(|node| cluster.send(node, &fetch_request("t", &[(0, 0)], 30_000, 1))).collect();
    cluster.ticks(SECOND);
    cluster.delete_topic("t");
    cluster.ticks(5);
    for call in waiting {
        match cluster.outcome(call) {
            Some(Outcome::Done(Response::Fetch(found))) => assert_eq!(found[0].error, ErrorCode::UnknownTopic),
            other => panic!("still waiting: {other:?}"),
        }
    }
}

#[test]
fn producer_ids_are_never_given_twice() {
    let mut cluster = balanced();
    let mut ids = Vec::new();
    for round in 0..4 {
        ids.push(cluster.producer());
        let leader = cluster.leader_of(META);
        cluster.crash(leader, CrashChoice::Torn(round));
        ids.push(cluster.producer());
        cluster.start(leader);
    }
    let given = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), given);
}

#[test]
fn a_node_learns_of_a_topic_before_it_denies_it() {
    let mut cluster = balanced();
    hide_catalog(&mut cluster);
    cluster.create_topic("t", 1);
    let named = Request::Metadata(MetadataRequest { topics: Some(vec!["t".to_owned()]) });
    let call = cluster.send(LAGGARD, &named);
    cluster.ticks(5);
    cluster.network.heal();
    match cluster.wait(call) {
        Outcome::Done(Response::Metadata(found)) => assert_eq!(found.topics[0].error, ErrorCode::None),
        Outcome::Refused(error) => assert!(error.code.is_retriable(), "{error}"),
        other => panic!("{other:?}"),
    }
}

/// A node without a catalog leader cannot know which topics exist; it must not deny one for good.
#[test]
fn a_node_that_cannot_ask_about_a_topic_does_not_deny_it() {
    let mut cluster = balanced();
    hide_catalog(&mut cluster);
    cluster.create_topic("t", 1);
    cluster.until("node 3 has lost the catalog's leader", |cluster| cluster.view(LAGGARD, META).leader.is_none());
    let named = Request::Metadata(MetadataRequest { topics: Some(vec!["t".to_owned()]) });
    match cluster.ask(LAGGARD, &named) {
        Ok(Response::Metadata(found)) => assert!(found.topics[0].error.is_retriable(), "{}", found.topics[0].error),
        Err(error) => assert!(error.code.is_retriable(), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_topic_s_partitions_are_spread_and_each_keeps_its_order() {
    let mut cluster = Cluster::ready(Settings { data_groups: 3, ..Settings::default() });
    cluster.create_topic("t", 3);
    cluster.await_balance();
    let mut producer = Producer::new(&mut cluster);
    for n in 0..9 {
        let request = producer.request("t", n % 3, &[&n.to_string()]);
        assert_eq!(cluster.produce(&request).base_offset, Some(u64::from(n / 3)));
    }
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(pairs(&cluster.read_all(node, "t", 1)), [(0, "1"), (1, "4"), (2, "7")], "node {node}");
    }
}
