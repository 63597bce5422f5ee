//! Retries across leaders: once, in order, at the same offset.

use crate::harness::records::pairs;
use crate::harness::{Call, Cluster, Cut, META, Outcome, Producer, SECOND, Settings, fetch_request, produce_request};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::GroupId;
use lnc_protocol::{ErrorCode, Request, Response};
use lnc_replication::formation::Channel;

const DATA: GroupId = GroupId(1);

fn with_topic() -> (Cluster, Producer) {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let producer = Producer::new(&mut cluster);
    cluster.await_same();
    (cluster, producer)
}

#[test]
fn a_retry_after_the_leader_died_between_commit_and_reply_finds_its_record() {
    let (mut cluster, mut producer) = with_topic();
    cluster.produce(&producer.request("t", 0, &["a", "b"]));
    let leader = cluster.leader_of(DATA);
    cluster.node_mut(leader).set_order(Order::Held);
    let request = producer.request("t", 0, &["c"]);
    let call = cluster.send(leader, &Request::Produce(request.clone()));
    cluster.settle();
    let view = cluster.view(leader, DATA);
    assert_eq!(view.commit, view.last, "both followers hold it");
    assert!(!cluster.is_answered(call));
    cluster.crash(leader, CrashChoice::Nothing);
    assert_eq!(cluster.outcome(call), Some(Outcome::Lost));

    let retried = cluster.produce(&request);
    assert_eq!((retried.base_offset, retried.duplicate), (Some(2), true));
    cluster.node_mut(leader).set_order(Order::Immediate);
    cluster.start(leader);
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(pairs(&cluster.read_all(node, "t", 0)), [(0, "a"), (1, "b"), (2, "c")], "node {node}");
    }
}

#[test]
fn a_batch_that_two_leaders_put_into_the_log_is_one_record() {
    let (mut cluster, mut producer) = with_topic();
    let old = cluster.leader_of(DATA);
    let [heir, other] = cluster.followers_of(DATA)[..] else { panic!("three nodes") };
    // The heir gets the entry, but nobody hears that it has it.
    cluster.network.cut(Cut::way(old, other));
    cluster.network.cut(Cut { channel: Some(Channel::Replication), ..Cut::way(heir, old) });
    let request = producer.request("t", 0, &["a"]);
    let call = cluster.send(old, &Request::Produce(request.clone()));
    cluster.settle();
    assert_eq!(cluster.view(heir, DATA).last, cluster.view(old, DATA).last);
    assert!(!cluster.is_answered(call));
    cluster.network.heal();
    cluster.network.isolate(old);
    cluster.until("the heir leads", |cluster| cluster.view(heir, DATA).leads);

    let before = cluster.view(heir, DATA).last;
    let retried = cluster.produce(&request);
    assert!(cluster.view(heir, DATA).last > before, "the retry has an entry of its own");
    assert_eq!((retried.base_offset, retried.duplicate), (Some(0), true));
    cluster.network.heal();
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(pairs(&cluster.read_all(node, "t", 0)), [(0, "a")], "node {node}");
    }
}

#[test]
fn a_gap_in_a_producer_s_sequence_is_refused_and_leaves_no_record() {
    let (mut cluster, mut producer) = with_topic();
    cluster.produce(&producer.request("t", 0, &["a"]));
    let skipped = producer.request("t", 0, &["b"]);
    let early = producer.request("t", 0, &["c"]);
    let leader = cluster.leader_of(DATA);
    let refused = cluster.ask(leader, &Request::Produce(early.clone())).unwrap_err();
    assert_eq!(refused.code, ErrorCode::OutOfOrderSequence);
    for request in [&skipped, &early] {
        assert!(!cluster.produce(request).duplicate);
    }
    assert_eq!(pairs(&cluster.read_all(leader, "t", 0)), [(0, "a"), (1, "b"), (2, "c")]);
}

#[test]
fn a_drained_leader_hands_over_and_every_request_under_way_succeeds() {
    let (mut cluster, mut producer) = with_topic();
    let leader = cluster.leader_of(DATA);
    let request = producer.request("t", 0, &["a"]);
    let call = cluster.send(leader, &Request::Produce(request.clone()));
    cluster.node_mut(leader).drain();
    let mut ticks = 0;
    while !cluster.node(leader).is_drained() {
        cluster.tick();
        ticks += 1;
    }
    assert!(ticks <= 10, "handing over took {ticks} ticks: it must not wait for an election timeout");
    match cluster.wait(call) {
        Outcome::Done(Response::Produce(_)) => {}
        Outcome::Refused(error) => assert!(error.code.is_retriable(), "{error}"),
        other => panic!("{other:?}"),
    }
    // What it no longer leads it passes on, to who leads now.
    cluster.ask(leader, &Request::Produce(request)).expect("the new leader answers");
    cluster.ask(leader, &Request::Produce(producer.request("t", 0, &["b"]))).expect("the new leader answers");
    let leader = cluster.leader_of(DATA);
    assert_eq!(pairs(&cluster.read_all(leader, "t", 0)), [(0, "a"), (1, "b")]);
}

/// The terms of all groups at all nodes, in sum.
fn terms(cluster: &mut Cluster) -> u64 {
    let ids = cluster.ids();
    let of = |node: u64| [META, DATA].map(|group| cluster.view(node, group).term);
    ids.into_iter().flat_map(of).sum()
}

#[test]
fn when_all_are_told_to_end_nothing_is_handed_round_and_nobody_waits() {
    let (mut cluster, _) = with_topic();
    cluster.await_same();
    let before = terms(&mut cluster);
    let polls: Vec<Call> =
        cluster.ids().into_iter().map(|node| cluster.send(node, &fetch_request("t", &[(0, 0)], 30_000, 1))).collect();
    cluster.settle();
    for node in cluster.ids() {
        cluster.node_mut(node).drain();
    }
    let mut ticks = 0;
    while !cluster.ids().into_iter().all(|node| cluster.node(node).is_drained()) {
        cluster.tick();
        ticks += 1;
        assert!(ticks <= 10, "there is nobody to hand anything to");
    }
    let after = terms(&mut cluster);
    assert!(after <= before + 6, "one term more at most for each group: {before}, then {after}");
    assert!(polls.into_iter().all(|poll| cluster.is_answered(poll)), "readers can go elsewhere");
}

#[test]
fn who_is_about_to_end_gets_nothing_back() {
    let (mut cluster, _) = with_topic();
    cluster.await_balance();
    let leader = cluster.leader_of(DATA);
    cluster.node_mut(leader).drain();
    cluster.until("it is drained", |cluster| cluster.node(leader).is_drained());
    for _ in 0..20 * SECOND {
        cluster.tick();
        assert!(cluster.node(leader).is_drained(), "a group was handed to it");
    }
}

/// The old leader takes nothing new while it hands over, and what it took before is on the new leader's disk, so it
/// learns what became of it.
#[test]
fn handing_over_leaves_no_outcome_in_doubt() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let rightful = cluster.leader_of(DATA);
    cluster.kill(rightful);
    cluster.await_leaders();
    cluster.start(rightful);
    let acting = cluster.leader_of(DATA);
    cluster.network.max_delay_us = 15_000;
    let mut calls = Vec::new();
    cluster.until("the group is handed over", |cluster| {
        calls.push(cluster.send(acting, &Request::Produce(produce_request("t", 0, &["a"]))));
        cluster.view(rightful, DATA).leads
    });
    cluster.ticks(10);
    for (number, call) in calls.into_iter().enumerate() {
        match cluster.outcome(call) {
            Some(Outcome::Done(_) | Outcome::Forwarded(_)) => {}
            Some(Outcome::Refused(error)) => {
                assert_ne!(error.code, ErrorCode::LeadershipLost, "request {number}: {error}");
            }
            other => panic!("request {number}: {other:?}"),
        }
    }
}

#[test]
fn clusters_of_one_and_of_five_keep_what_they_acknowledged() {
    for nodes in [1, 5] {
        let mut cluster = Cluster::ready(Settings { nodes, ..Settings::default() });
        cluster.create_topic("t", 1);
        let mut producer = Producer::new(&mut cluster);
        for round in 0..4 {
            cluster.produce(&producer.request("t", 0, &[&round.to_string()]));
            // As many as a majority can spare, or all of them.
            let victims = if round % 2 == 0 { (nodes - 1) / 2 } else { nodes };
            for node in 1..=victims {
                cluster.crash(node, CrashChoice::Nothing);
            }
            if victims < nodes {
                cluster.produce(&producer.request("t", 0, &["fewer"]));
            }
            for node in 1..=victims {
                cluster.start(node);
            }
        }
        cluster.await_leaders();
        cluster.await_same();
        let expected = [(0, "0"), (1, "fewer"), (2, "1"), (3, "2"), (4, "fewer"), (5, "3")];
        for node in cluster.ids() {
            assert_eq!(pairs(&cluster.read_all(node, "t", 0)), expected, "node {node} of {nodes}");
        }
    }
}

#[test]
fn a_leader_with_a_slow_disk_hands_over_and_gets_back_what_it_led_once_it_is_fast() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let slow = cluster.leader_of(DATA);
    cluster.node_mut(slow).set_order(Order::Held);
    // Something to sync, which then takes for ever.
    let call = cluster.send(slow, &Request::Produce(produce_request("t", 0, &["a"])));
    cluster.until("a node with a fast disk leads", |cluster| cluster.leader(DATA).is_some_and(|node| node != slow));
    cluster.wait(call);
    for _ in 0..30 * SECOND {
        cluster.tick();
        assert!(!cluster.view(slow, DATA).leads, "it is not handed back while it is slow");
    }
    cluster.node_mut(slow).set_order(Order::Immediate);
    cluster.ticks(60 * SECOND);
    cluster.until("it leads again", |cluster| cluster.leader(DATA) == Some(slow));
}
