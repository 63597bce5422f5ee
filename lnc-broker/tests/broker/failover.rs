//! Retries across leaders: once, in order, at the same offset.

use crate::harness::records::pairs;
use crate::harness::{Call, Cluster, Cut, META, Outcome, Producer, SECOND, Settings, fetch_request, produce_request};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{Acks, ProduceRequest};
use lnc_protocol::{ErrorCode, Request, Response};
use lnc_replication::formation::Channel;
use std::collections::BTreeSet;

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
    cluster.ticks(20);
    for (number, call) in calls.into_iter().enumerate() {
        match cluster.outcome(call) {
            Some(Outcome::Done(_)) => {}
            other => panic!("request {number}: {other:?}"),
        }
    }
}

/// Records that a client without retries sends to each node, over and over, whoever leads: each connection keeps its order.
struct Raw {
    calls: Vec<(u64, Call)>,
    sequences: Vec<Producer>,
}

impl Raw {
    fn new(cluster: &mut Cluster) -> Self {
        let sequences = (0..3).map(|_| Producer::new(cluster)).collect();
        Self { calls: Vec::new(), sequences }
    }

    /// Two requests to each node that has caught up, without waiting for the answers.
    fn send(&mut self, cluster: &mut Cluster) {
        for node in cluster.running() {
            if cluster.node(node).readiness().is_err_and(|reason| reason != "shutting down") {
                continue;
            }
            for _ in 0..2 {
                let request = self.sequences[node as usize - 1].request("t", 0, &["a"]);
                cluster.connection = node;
                self.calls.push((cluster.now_ms(), cluster.send(node, &Request::Produce(request))));
                cluster.connection = 1;
            }
        }
    }

    /// All have their answers, none is an error, and there is one record for each.
    fn check(self, cluster: &mut Cluster) {
        cluster.ticks(20);
        let count = self.calls.len();
        for (sent_ms, call) in self.calls {
            match cluster.outcome(call) {
                Some(Outcome::Done(Response::Produce(done))) => assert!(!done.duplicate, "sent at {sent_ms} ms"),
                other => panic!("sent at {sent_ms} ms: {other:?}"),
            }
        }
        cluster.await_same();
        let leader = cluster.leader_of(DATA);
        assert_eq!(cluster.read_all(leader, "t", 0).len(), count);
    }
}

#[test]
fn a_client_without_retries_notices_no_planned_move() {
    for seed in 1..=6 {
        let mut cluster = Cluster::ready(Settings { seed, ..Settings::default() });
        cluster.create_topic("t", 1);
        cluster.await_balance();
        let mut raw = Raw::new(&mut cluster);
        cluster.network.slow = Some((Cut::default(), 8_000));
        for _ in 0..3 {
            let leader = cluster.leader_of(DATA);
            cluster.node_mut(leader).drain();
            cluster.until("it is drained", |cluster| {
                raw.send(cluster);
                cluster.node(leader).is_drained()
            });
            for _ in 0..10 {
                raw.send(&mut cluster);
                cluster.tick();
            }
            cluster.until("it has answered everything", |cluster| cluster.unanswered() == 0);
            cluster.kill(leader);
            cluster.start(leader);
            cluster.until("it is back and leads again", |cluster| {
                raw.send(cluster);
                cluster.view(2, DATA).leads
            });
        }
        raw.check(&mut cluster);
    }
}

#[test]
fn what_waits_at_a_leader_that_hangs_follows_the_next_one_if_it_may_be_repeated() {
    let (mut cluster, mut producer) = with_topic();
    let hung = cluster.leader_of(DATA);
    let other = cluster.followers_of(DATA)[0];
    cluster.network.isolate(hung);
    let sequenced = cluster.send(other, &Request::Produce(producer.request("t", 0, &["a"])));
    let plain = cluster.send(other, &Request::Produce(produce_request("t", 0, &["b"])));
    let behind = cluster.send(other, &Request::Produce(producer.request("t", 0, &["c"])));
    let since = cluster.now_ms();
    cluster.until("another node leads", |cluster| cluster.leader(DATA).is_some_and(|leader| leader != hung));
    let led = cluster.now_ms();
    assert!(matches!(cluster.wait(sequenced), Outcome::Done(_)));
    assert!(matches!(cluster.wait(behind), Outcome::Done(_)), "it has come behind the other, as it was sent");
    let lost = cluster.wait(plain);
    assert!(matches!(&lost, Outcome::Refused(error) if error.code == ErrorCode::LeadershipLost), "{lost:?}");
    let now = cluster.now_ms();
    assert!(now - led <= 600, "a leader since {} ms, answered after {} ms", led - since, now - since);
    let leader = cluster.leader_of(DATA);
    assert_eq!(pairs(&cluster.read_all(leader, "t", 0)), [(0, "a"), (1, "c")]);
}

/// It would believe that the batch is not stored, and send those behind it under another id.
#[test]
fn who_may_have_been_heard_by_a_dead_leader_is_not_told_that_there_is_no_space() {
    let mut leaders = BTreeSet::new();
    for seed in 1..=6 {
        let mut cluster = Cluster::ready(Settings { seed, reserve_bytes: 600 << 10, ..Settings::default() });
        cluster.create_topic("t", 1);
        cluster.await_balance();
        let mut producer = Producer::new(&mut cluster);
        cluster.produce(&producer.request("t", 0, &["a"]));
        cluster.await_same();
        let dead = cluster.leader_of(DATA);
        let others = cluster.followers_of(DATA);
        others.iter().for_each(|follower| cluster.network.cut(Cut::to(*follower)));
        let request = ProduceRequest { timeout_ms: 6_000, ..producer.request("t", 0, &["b"]) };
        let call = cluster.send(others[0], &Request::Produce(request));
        cluster.settle();
        assert!(!cluster.is_answered(call));
        for node in &others {
            let disk = cluster.node(*node).disk();
            disk.set_capacity(Some(disk.used() + (200 << 10)));
        }
        // Until both have noticed.
        cluster.ticks(3 * SECOND / 2);
        cluster.kill(dead);
        cluster.network.heal();
        cluster.until("another node leads", |cluster| cluster.leader(DATA).is_some_and(|leader| leader != dead));
        leaders.insert(cluster.leader_of(DATA) == others[0]);
        let answer = cluster.wait(call);
        assert!(matches!(&answer, Outcome::Refused(error) if error.code == ErrorCode::LeadershipLost), "{answer:?}");
        let leader = cluster.leader_of(DATA);
        let fresh = cluster.ask(leader, &Request::Produce(produce_request("t", 0, &["c"])));
        assert!(matches!(&fresh, Err(error) if error.code == ErrorCode::StorageFull), "{fresh:?}");
    }
    assert_eq!(leaders.len(), 2, "sometimes the node that was asked leads, and sometimes the other");
}

/// A former leader got a batch before the one that it follows, and its refusal comes late: when the batch has been given to the
/// next leader, which stores it.
#[test]
fn what_a_former_leader_says_late_is_not_said_of_the_next_attempt() {
    let mut repeated = 0;
    for seed in 1..=6 {
        let mut cluster = Cluster::ready(Settings { seed, ..Settings::default() });
        cluster.create_topic("t", 1);
        cluster.await_balance();
        let mut producer = Producer::new(&mut cluster);
        cluster.await_same();
        let former = cluster.leader_of(DATA);
        let [asked, heir] = cluster.followers_of(DATA)[..] else { panic!("three nodes") };
        cluster.delay_answers_of(former);
        let (first, second) = (producer.request("t", 0, &["a"]), producer.request("t", 0, &["b"]));
        let calls = [second, first].map(|request| cluster.send(asked, &Request::Produce(request)));
        cluster.ticks(5);
        cluster.network.cut(Cut::way(former, asked));
        cluster.network.cut(Cut::way(former, heir));
        cluster.until("another node leads and settles what it found", |cluster| {
            let leader = cluster.leader(DATA).filter(|leader| *leader != former);
            leader.is_some_and(|leader| {
                let view = cluster.view(leader, DATA);
                view.commit == view.last
            })
        });
        if cluster.leader_of(DATA) != heir {
            continue;
        }
        repeated += 1;
        let last = cluster.view(heir, DATA).last;
        cluster.network.cut(Cut::channel(Channel::Replication));
        cluster.until("both are given to the next leader", |cluster| cluster.view(heir, DATA).last > last);
        assert_eq!(cluster.deliver_late_answers(), 2);
        assert!(calls.iter().all(|call| !cluster.is_answered(*call)), "the next leader has not answered");
        cluster.network.heal();
        for call in calls {
            let outcome = cluster.wait(call);
            assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
        }
        cluster.await_same();
        assert_eq!(pairs(&cluster.read_all(asked, "t", 0)), [(0, "a"), (1, "b")]);
    }
    assert!(repeated > 0, "sometimes the node that was not asked leads");
}

#[test]
fn a_request_that_is_passed_on_waits_no_longer_than_its_client() {
    let (mut cluster, _) = with_topic();
    let leader = cluster.leader_of(DATA);
    let other = cluster.followers_of(DATA)[0];
    // The way for requests is cut, that between the nodes is not.
    cluster.network.cut_requests(other, leader);
    let request = ProduceRequest { timeout_ms: 700, ..produce_request("t", 0, &["a"]) };
    let call = cluster.send(other, &Request::Produce(request));
    let since = cluster.now_ms();
    let outcome = cluster.wait(call);
    assert!(matches!(&outcome, Outcome::Refused(error) if error.code == ErrorCode::Timeout), "{outcome:?}");
    assert!((700..800).contains(&(cluster.now_ms() - since)));
}

#[test]
fn without_a_leader_a_request_waits_for_one_and_not_for_ever() {
    let (mut cluster, _) = with_topic();
    let leader = cluster.leader_of(DATA);
    let [other, third] = cluster.followers_of(DATA)[..] else { panic!("three nodes") };
    cluster.kill(leader);
    let call = cluster.send(other, &Request::Produce(produce_request("t", 0, &["a"])));
    assert!(matches!(cluster.wait(call), Outcome::Done(_)), "the next leader takes it");
    cluster.kill(third);
    cluster.ticks(SECOND);
    let call = cluster.send(other, &Request::Produce(produce_request("t", 0, &["b"])));
    let since = cluster.now_ms();
    let outcome = cluster.wait(call);
    assert!(matches!(&outcome, Outcome::Refused(error) if error.code == ErrorCode::LeaderUnknown), "{outcome:?}");
    assert!(cluster.now_ms() - since <= 2_100);
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

/// The one that asked for the leader's disk alone hears no offset, though a quorum settled it before that disk was done.
#[test]
fn what_a_leader_with_a_slow_disk_took_is_answered_at_the_level_that_was_asked_for() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let slow = cluster.leader_of(DATA);
    cluster.node_mut(slow).set_order(Order::Held);
    // Once as many flushes are under way as may be, the rest waits for the next one, and so does what the next leader says.
    let before = [0; 8].map(|_| {
        cluster.tick();
        cluster.send(slow, &Request::Produce(produce_request("t", 0, &["a"])))
    });
    cluster.tick();
    let [alone, all] = [Acks::Leader, Acks::Quorum].map(|acks| {
        let request = ProduceRequest { acks, ..produce_request("t", 0, &["a"]) };
        cluster.send(slow, &Request::Produce(request))
    });
    cluster.until("a node with a fast disk leads", |cluster| cluster.leader(DATA).is_some_and(|node| node != slow));
    assert!(!cluster.is_answered(alone), "its own disk has not got it");
    cluster.ticks(10);
    cluster.node_mut(slow).set_order(Order::Immediate);
    cluster.node(slow).disk().release_all();
    let mut offset_of = |call| match cluster.wait(call) {
        Outcome::Done(Response::Produce(done)) => done.base_offset,
        other => panic!("{other:?}"),
    };
    assert_eq!([alone, all].map(&mut offset_of), [None, Some(9)]);
    assert_eq!(before.map(offset_of), [0, 1, 2, 3, 4, 5, 6, 7].map(Some));
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
