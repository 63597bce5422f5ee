//! Bounded: what does not fit is refused, and what was held is given back.

use crate::harness::{Call, Cluster, Cut, META, Outcome, SECOND, Settings, produce_request};
use lnc_log::disk::Disk;
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{DeleteTopicRequest, ProduceRequest};
use lnc_protocol::{ErrorCode, Request, Response};
use lnc_replication::formation::Channel;

const DATA: GroupId = GroupId(1);
const MEMORY: usize = 64 << 10;

fn small() -> Cluster {
    let mut cluster = Cluster::ready(Settings { memory_bytes: MEMORY, ..Settings::default() });
    cluster.create_topic("t", 1);
    cluster.await_balance();
    cluster.await_same();
    cluster
}

/// Send `count` requests of about 8 KiB to a node.
fn flood(cluster: &mut Cluster, node: u64, count: usize, timeout_ms: u32) -> Vec<Call> {
    let value = "x".repeat(8 << 10);
    let request = ProduceRequest { timeout_ms, ..produce_request("t", 0, &[&value]) };
    let calls = (0..count).map(|_| cluster.send(node, &Request::Produce(request.clone()))).collect();
    cluster.settle();
    calls
}

fn in_flight_bytes(cluster: &mut Cluster, node: u64) -> u64 {
    // The figure is brought up to date every second.
    cluster.ticks(SECOND + 1);
    cluster.node(node).metrics().in_flight_bytes.get()
}

fn code_of(outcome: Option<Outcome>) -> Option<ErrorCode> {
    match outcome {
        Some(Outcome::Refused(error)) => Some(error.code),
        Some(Outcome::Done(Response::Produce(_))) => None,
        other => panic!("no answer to a produce: {other:?}"),
    }
}

#[test]
fn a_full_memory_budget_refuses_and_takes_again_once_there_is_room() {
    let mut cluster = small();
    let leader = cluster.leader_of(DATA);
    cluster.set_disk_order(|_| Order::Held);
    let calls = flood(&mut cluster, leader, 20, 5_000);
    let (refused, held): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| cluster.is_answered(*call));
    assert!(!held.is_empty() && !refused.is_empty());
    assert!(held.len() * (8 << 10) <= MEMORY, "{} requests are held", held.len());
    for call in refused {
        match cluster.outcome(call) {
            Some(Outcome::Refused(error)) => {
                assert_eq!(error.code, ErrorCode::Overloaded);
                assert!(error.retry_after_ms > 0, "a client must know when to come back");
            }
            other => panic!("{other:?}"),
        }
    }
    cluster.set_disk_order(|_| Order::Immediate);
    for call in held {
        assert_eq!(code_of(Some(cluster.wait(call))), None);
    }
    let [call] = flood(&mut cluster, leader, 1, 5_000)[..] else { panic!("one was sent") };
    assert_eq!(code_of(Some(cluster.wait(call))), None);
    assert_eq!(in_flight_bytes(&mut cluster, leader), 0);
}

#[test]
fn requests_that_time_out_give_their_memory_back() {
    let mut cluster = small();
    let leader = cluster.leader_of(DATA);
    cluster.network.cut(Cut::channel(Channel::Replication));
    let calls = flood(&mut cluster, leader, 4, 200);
    assert!(in_flight_bytes(&mut cluster, leader) == 0);
    for call in calls {
        assert_eq!(code_of(cluster.outcome(call)), Some(ErrorCode::Timeout));
    }
    cluster.network.heal();
    let [call] = flood(&mut cluster, leader, 1, 5_000)[..] else { panic!("one was sent") };
    assert_eq!(code_of(Some(cluster.wait(call))), None);
    assert_eq!(in_flight_bytes(&mut cluster, leader), 0);
}

#[test]
fn requests_of_a_leader_that_lost_its_place_give_their_memory_back() {
    let mut cluster = small();
    let leader = cluster.leader_of(DATA);
    cluster.network.isolate(leader);
    let calls = flood(&mut cluster, leader, 4, 60_000);
    cluster.ticks(SECOND);
    for call in calls {
        assert_eq!(code_of(cluster.outcome(call)), Some(ErrorCode::LeadershipLost));
    }
    assert_eq!(in_flight_bytes(&mut cluster, leader), 0);
}

/// Requests that wait for a slow disk in a leader that is replaced while they wait.
#[test]
fn requests_that_were_never_proposed_give_their_memory_back() {
    let mut cluster = small();
    let leader = cluster.leader_of(DATA);
    cluster.node_mut(leader).set_order(Order::Held);
    let calls: Vec<Call> = (0..6).flat_map(|_| flood(&mut cluster, leader, 1, 60_000)).collect();
    cluster.network.isolate(leader);
    cluster.ticks(SECOND);
    for call in calls {
        let code = code_of(cluster.outcome(call)).expect("nobody confirmed it");
        assert!(code.is_retriable(), "{code}");
    }
    cluster.node_mut(leader).set_order(Order::Immediate);
    cluster.network.heal();
    assert_eq!(in_flight_bytes(&mut cluster, leader), 0);
}

#[test]
fn a_full_disk_refuses_produces_and_the_node_lives() {
    let mut cluster = small();
    let leader = cluster.leader_of(DATA);
    for node in cluster.ids() {
        let disk = cluster.node(node).disk();
        disk.set_capacity(Some(disk.used()));
    }
    let mut full = false;
    for _ in 0..300 {
        let [call] = flood(&mut cluster, leader, 1, 1_000)[..] else { panic!("one was sent") };
        match code_of(Some(cluster.wait(call))) {
            Some(ErrorCode::StorageFull) => full = true,
            Some(code) => assert!(code.is_retriable(), "{code}"),
            None => {}
        }
        if full {
            break;
        }
    }
    assert!(full, "the disk was never full");
    assert_eq!(cluster.running(), cluster.ids());
    for node in cluster.ids() {
        cluster.node(node).disk().set_capacity(None);
    }
    cluster.until("produces are taken again", |cluster| {
        let node = cluster.leader_of(DATA);
        let [call] = flood(cluster, node, 1, 1_000)[..] else { panic!("one was sent") };
        code_of(Some(cluster.wait(call))).is_none()
    });
}

#[test]
fn memory_of_a_node_that_restarted_is_empty_and_it_serves() {
    let mut cluster = small();
    let leader = cluster.leader_of(DATA);
    cluster.set_disk_order(|_| Order::Held);
    flood(&mut cluster, leader, 4, 5_000);
    cluster.crash(leader, CrashChoice::Nothing);
    cluster.set_disk_order(|_| Order::Immediate);
    cluster.start(leader);
    cluster.await_same();
    assert_eq!(in_flight_bytes(&mut cluster, leader), 0);
    assert!(cluster.leader(META).is_some());
}

/// Produces and reads that wait for the catalog's leader hold memory like any other.
#[test]
fn requests_that_wait_for_a_leader_s_word_are_within_the_budget() {
    let mut cluster = small();
    let follower = cluster.followers_of(META)[0];
    cluster.network.cut(Cut::channel(Channel::Control));
    let value = "x".repeat(8 << 10);
    let request = Request::Produce(produce_request("new", 0, &[&value]));
    let calls: Vec<Call> = (0..20).map(|_| cluster.send(follower, &request)).collect();
    cluster.settle();
    let (refused, held): (Vec<Call>, Vec<Call>) = calls.into_iter().partition(|call| cluster.is_answered(*call));
    assert!(held.len() * (8 << 10) <= MEMORY && !held.is_empty(), "{} requests are held", held.len());
    for call in refused {
        assert_eq!(code_of(cluster.outcome(call)), Some(ErrorCode::Overloaded));
    }
    cluster.ticks(6 * SECOND);
    for call in held {
        let code = code_of(cluster.outcome(call)).expect("nobody knows the topic");
        assert!(code.is_retriable(), "{code}");
    }
    assert_eq!(in_flight_bytes(&mut cluster, follower), 0);
}

/// Larger than a journal file, than an append and than the tail cache; as large as a batch may be.
#[test]
fn the_largest_batch_gets_through_everything_that_is_smaller() {
    let mut cluster = Cluster::ready(Settings {
        journal_file_bytes: 32 << 10,
        tail_cache_bytes: 1 << 10,
        entry_cache_bytes: 1 << 10,
        ..Settings::default()
    });
    cluster.create_topic("t", 1);
    let value = "x".repeat((1 << 20) - 200);
    for offset in 0..4 {
        let late = cluster.followers_of(DATA)[0];
        cluster.kill(late);
        assert_eq!(cluster.produce(&produce_request("t", 0, &[&value])).base_offset, Some(offset));
        cluster.start(late);
    }
    let refused = cluster.ask(1, &Request::Produce(produce_request("t", 0, &[&value, &value]))).unwrap_err();
    assert_eq!(refused.code, ErrorCode::BatchTooLarge);
    cluster.await_same();
    for node in cluster.ids() {
        let all = cluster.read_all(node, "t", 0);
        assert_eq!(all.len(), 4, "node {node}");
        assert!(all.iter().all(|record| record.value == value), "node {node}");
    }
}

#[test]
fn with_the_reserve_left_only_records_are_refused_and_deleting_makes_room() {
    const RESERVE: u64 = 600 << 10;
    let mut settings = Settings { reserve_bytes: RESERVE, checkpoint_bytes: 64 << 10, ..Settings::default() };
    settings.journal_file_bytes = 64 << 10;
    settings.journal_retain_bytes = 0;
    let mut cluster = Cluster::ready(settings);
    for topic in ["old", "t"] {
        cluster.create_topic(topic, 1);
    }
    cluster.await_balance();
    let value = "x".repeat(32 << 10);
    for _ in 0..40 {
        cluster.produce(&produce_request("old", 0, &[&value]));
    }
    cluster.produce(&produce_request("t", 0, &["before"]));
    cluster.ticks(2 * SECOND);
    cluster.await_same();
    for node in cluster.ids() {
        let disk = cluster.node(node).disk();
        disk.set_capacity(Some(disk.used() + RESERVE - 1));
    }
    cluster.ticks(SECOND + 1);
    let refused = |cluster: &mut Cluster| {
        let leader = cluster.leader_of(DATA);
        match cluster.ask(leader, &Request::Produce(produce_request("t", 0, &["refused"]))) {
            Err(error) => error.code == ErrorCode::StorageFull && error.retry_after_ms > 0,
            Ok(other) => panic!("taken: {other:?}"),
        }
    };
    assert!(refused(&mut cluster));
    // An election, with what it writes.
    let leader = cluster.leader_of(DATA);
    cluster.crash(leader, CrashChoice::Everything);
    cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != leader));
    assert!(refused(&mut cluster));
    cluster.start(leader);
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(cluster.read_all(node, "t", 0).len(), 1, "node {node}");
    }
    cluster.delete_topic("old");
    assert_eq!(cluster.produce(&produce_request("t", 0, &["after"])).base_offset, Some(1));
    cluster.await_same();
}

/// One node's disk is nearly full, and what would make room comes behind records for which there is none: it takes the
/// state in which they are gone already.
#[test]
fn a_follower_without_space_for_records_gets_the_deletion_behind_them() {
    const RESERVE: u64 = 600 << 10;
    let mut settings = Settings { reserve_bytes: RESERVE, checkpoint_bytes: 64 << 10, ..Settings::default() };
    settings.journal_file_bytes = 64 << 10;
    let mut cluster = Cluster::ready(settings);
    for topic in ["old", "t"] {
        cluster.create_topic(topic, 1);
    }
    cluster.await_balance();
    let value = "x".repeat(32 << 10);
    let produce = |cluster: &mut Cluster, topic: &str| cluster.produce(&produce_request(topic, 0, &[&value]));
    for _ in 0..40 {
        produce(&mut cluster, "old");
    }
    cluster.ticks(2 * SECOND);
    cluster.await_same();
    let full = cluster.followers_of(DATA)[0];
    let disk = cluster.node(full).disk();
    disk.set_capacity(Some(disk.used() + RESERVE / 2 - 1));
    cluster.ticks(SECOND + 1);
    for _ in 0..20 {
        produce(&mut cluster, "old");
    }
    produce(&mut cluster, "t");
    for _ in 0..300 {
        cluster.produce(&produce_request("t", 0, &["small"]));
    }
    cluster.ticks(2 * SECOND);
    let behind = |cluster: &mut Cluster| {
        let leader = cluster.leader_of(DATA);
        cluster.view(full, DATA).applied < cluster.view(leader, DATA).commit
    };
    assert!(behind(&mut cluster), "there is no space for records");
    let left = cluster.node(full).disk().free_bytes().expect("it has a limit");
    assert!(left > RESERVE / 8, "records took the reserve: {left} bytes are left");
    // It led the catalog, and handed it to a node that has space.
    assert_ne!(cluster.leader_of(META), full);
    cluster.create_topic("meanwhile", 1);

    let delete = Request::DeleteTopic(DeleteTopicRequest { name: "old".into(), timeout_ms: 60_000 });
    let meta = cluster.leader_of(META);
    cluster.send(meta, &delete);
    cluster.until("it took over state", |cluster| cluster.reopened > 0);
    cluster.await_leaders();
    cluster.await_same();
    assert!(cluster.reopened > 0, "it took over state");
    assert_eq!(cluster.read_all(full, "t", 0).len(), 301);
    cluster.create_topic("new", 1);
    produce(&mut cluster, "new");
    cluster.await_same();
}
