//! When a producer hears "done".

use crate::harness::{Call, Cluster, META, Outcome, Settings, produce_request};
use lnc_log::disk::memory::{FaultHook, Order};
use lnc_log::disk::{Op, Owner};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{Acks, ProduceRequest};
use lnc_protocol::{BatchBuilder, Codec, ErrorCode, Request, Response};
use std::io;

const DATA: GroupId = GroupId(1);

/// A cluster with a topic of one partition, at rest, in which no disk operation completes by itself any more.
fn held() -> (Cluster, u64, Vec<u64>) {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_same();
    let leader = cluster.leader_of(DATA);
    let followers = cluster.followers_of(DATA);
    cluster.settle();
    cluster.set_disk_order(|_| Order::Held);
    (cluster, leader, followers)
}

fn send(cluster: &mut Cluster, node: u64, acks: Acks, value: &str) -> Call {
    let request = ProduceRequest { acks, ..produce_request("t", 0, &[value]) };
    let call = cluster.send(node, &Request::Produce(request));
    cluster.settle();
    call
}

/// Let everything that waits in a node's disk happen.
fn release(cluster: &mut Cluster, node: u64) {
    while !cluster.node(node).disk().in_flight().is_empty() {
        cluster.node(node).disk().release_all();
        cluster.settle();
    }
}

fn offset_of(outcome: Option<Outcome>) -> Option<u64> {
    match outcome {
        Some(Outcome::Done(Response::Produce(done))) => done.base_offset,
        other => panic!("not acknowledged: {other:?}"),
    }
}

#[test]
fn a_record_is_acknowledged_once_the_leader_and_one_follower_hold_it() {
    for first in [0, 1] {
        let (mut cluster, leader, followers) = held();
        let call = send(&mut cluster, leader, Acks::Quorum, "a");
        assert!(!cluster.is_answered(call), "nothing is durable anywhere");
        release(&mut cluster, leader);
        assert!(!cluster.is_answered(call), "only the leader holds it");
        release(&mut cluster, followers[first]);
        assert_eq!(offset_of(cluster.outcome(call)), Some(0));
    }
}

#[test]
fn a_follower_alone_is_no_majority() {
    let (mut cluster, leader, followers) = held();
    let call = send(&mut cluster, leader, Acks::Quorum, "a");
    release(&mut cluster, followers[0]);
    assert!(!cluster.is_answered(call), "one of three holds it");
}

/// Both followers are a majority, so the record is committed; the leader still answers only once its own disk holds it,
/// since it applies nothing that it could lose.
#[test]
fn the_leader_answers_only_for_what_its_own_disk_holds() {
    let (mut cluster, leader, followers) = held();
    let call = send(&mut cluster, leader, Acks::Quorum, "a");
    for follower in &followers {
        release(&mut cluster, *follower);
    }
    let view = cluster.view(leader, DATA);
    assert_eq!((view.commit, view.applied, view.durable), (view.last, view.last - 1, view.last - 1));
    assert!(!cluster.is_answered(call));
    release(&mut cluster, leader);
    assert_eq!(offset_of(cluster.outcome(call)), Some(0));
}

#[test]
fn acks_of_the_leader_waits_for_its_disk_and_for_nobody_else_s() {
    let (mut cluster, leader, _) = held();
    let call = send(&mut cluster, leader, Acks::Leader, "a");
    assert!(!cluster.is_answered(call));
    release(&mut cluster, leader);
    assert_eq!(offset_of(cluster.outcome(call)), None, "its offset is settled by the majority only");
}

/// Whether it is dropped as one that leaves a gap is known once it is committed.
#[test]
fn who_numbers_its_batches_waits_for_a_quorum() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    let leader = cluster.leader_of(DATA);
    for (acks, is_taken) in [(Acks::None, false), (Acks::Leader, false), (Acks::Quorum, true)] {
        let mut request = produce_request("t", 0, &["a"]);
        let mut batch = BatchBuilder::new(Codec::None).with_producer(7, 0, 0);
        batch.append(0, None, Some(b"a"), &[]).unwrap();
        (request.acks, request.batch) = (acks, batch.build());
        let answer = cluster.ask(leader, &Request::Produce(request));
        assert_eq!(answer.is_ok(), is_taken, "{acks:?}: {answer:?}");
        if let Err(error) = answer {
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
        }
    }
}

#[test]
fn acks_of_nobody_waits_for_nothing() {
    let (mut cluster, leader, _) = held();
    let call = send(&mut cluster, leader, Acks::None, "a");
    assert_eq!(offset_of(cluster.outcome(call)), None);
}

#[test]
fn acknowledged_records_are_there_at_every_level() {
    let (mut cluster, leader, followers) = held();
    let calls = [Acks::None, Acks::Leader, Acks::Quorum].map(|acks| send(&mut cluster, leader, acks, "a"));
    cluster.set_disk_order(|_| Order::Immediate);
    for node in [leader, followers[0], followers[1]] {
        release(&mut cluster, node);
    }
    for call in calls {
        assert!(matches!(cluster.wait(call), Outcome::Done(Response::Produce(_))));
    }
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(cluster.read_all(node, "t", 0).len(), 3, "node {node}");
    }
}

/// Fails what would make a journal flush durable.
fn failing_journal(disk: &lnc_log::disk::MemoryDisk) -> FaultHook {
    let journal: Vec<u64> = disk.in_flight().into_iter().filter(is_journal).map(|(number, _)| number).collect();
    Box::new(move |number, op| {
        let flushes = matches!(op, Op::Sync { .. } | Op::Write { .. }) && journal.contains(&number);
        flushes.then(|| io::Error::from_raw_os_error(5))
    })
}

fn is_journal((_, token): &(u64, lnc_log::disk::Token)) -> bool {
    token.owner() == Some(Owner::Journal)
}

#[test]
fn a_leader_whose_journal_fails_ends_and_acknowledges_nothing_that_it_held() {
    for acks in [Acks::Leader, Acks::Quorum] {
        let (mut cluster, leader, followers) = held();
        let call = send(&mut cluster, leader, acks, "a");
        let disk = cluster.node(leader).disk();
        disk.inject(Some(failing_journal(&disk)));
        for follower in &followers {
            release(&mut cluster, *follower);
        }
        release(&mut cluster, leader);
        assert!(cluster.node(leader).failure().is_some(), "the node goes on after a failed write: {acks:?}");
        assert_eq!(cluster.outcome(call), Some(Outcome::Lost), "{acks:?}");
    }
}

#[test]
fn a_follower_whose_journal_fails_ends_and_its_acknowledgement_never_leaves() {
    let (mut cluster, leader, followers) = held();
    let call = send(&mut cluster, leader, Acks::Quorum, "a");
    release(&mut cluster, leader);
    let disk = cluster.node(followers[0]).disk();
    disk.inject(Some(failing_journal(&disk)));
    release(&mut cluster, followers[0]);
    assert!(cluster.node(followers[0]).failure().is_some());
    assert!(!cluster.is_answered(call), "only the leader holds it");
    release(&mut cluster, followers[1]);
    assert_eq!(offset_of(cluster.outcome(call)), Some(0), "the other follower makes a majority");
}

#[test]
fn a_topic_exists_once_a_majority_holds_it() {
    let mut cluster = Cluster::ready(Settings::default());
    let leader = cluster.leader_of(META);
    let follower = cluster.followers_of(META)[0];
    cluster.set_disk_order(|_| Order::Held);
    let call = cluster.send(leader, &crate::harness::create_request("t", 1, Default::default()));
    cluster.settle();
    release(&mut cluster, leader);
    assert!(!cluster.is_answered(call));
    cluster.set_disk_order(|_| Order::Immediate);
    release(&mut cluster, leader);
    release(&mut cluster, follower);
    assert!(matches!(cluster.wait(call), Outcome::Done(Response::CreateTopic(_))));
}
