//! All replicas are the same: state at equal applied index, and every byte of every segment file.

use crate::harness::{Cluster, Cut, Outcome, Producer, SECOND, Settings, produce_request};
use lnc_log::disk::Op;
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{OffsetSpec, TopicOptions};
use lnc_protocol::{ErrorCode, Request};
use lnc_replication::formation::Channel;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const DATA: GroupId = GroupId(1);

/// Small segments, a checkpoint after every entry, and hardly any journal kept.
fn settings() -> Settings {
    let mut settings = Settings {
        checkpoint_bytes: 1,
        journal_file_bytes: 64 << 10,
        tail_cache_bytes: 8 << 10,
        ..Settings::default()
    };
    settings.segments.segment_bytes = 20_000;
    settings
}

fn limited() -> TopicOptions {
    TopicOptions { max_bytes: Some(60_000), ..TopicOptions::default() }
}

fn fill(cluster: &mut Cluster, producer: &mut Producer, count: usize) {
    let value = "v".repeat(1500);
    for n in 0..count {
        let request = producer.request("t", (n % 2) as u32, &[&value]);
        cluster.produce(&request);
        if n % 10 == 0 {
            cluster.ticks(SECOND / 4);
        }
    }
}

/// Wait for the checkpoints, then compare everything that is on the disks.
fn assert_same(cluster: &mut Cluster) {
    cluster.await_balance();
    // A leader's first entry has no effect, and so asks for no checkpoint; this one does.
    cluster.produce(&produce_request("t", 0, &["last"]));
    cluster.ticks(3 * SECOND);
    cluster.await_same();
    let nodes = cluster.running();
    let applied = cluster.view(nodes[0], DATA).applied;
    let states: Vec<_> = nodes.iter().map(|node| cluster.node(*node).checkpoint(DATA).expect("a checkpoint")).collect();
    for (node, state) in nodes.iter().zip(&states) {
        assert_eq!(state.applied_index, applied, "node {node} has no checkpoint of all");
        assert!(state.state == states[0].state, "the state of node {node} differs from that of node {}", nodes[0]);
    }
    let first = cluster.node(nodes[0]).segment_files();
    assert!(!first.is_empty());
    for node in &nodes[1..] {
        let files = cluster.node(*node).segment_files();
        let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&files), names(&first), "node {node}");
        for ((name, here), (_, there)) in files.iter().zip(&first) {
            assert!(here == there, "{name} of node {node}: {} and {} bytes", here.len(), there.len());
        }
    }
}

#[test]
fn retention_is_the_same_on_all_replicas() {
    let mut cluster = Cluster::ready(settings());
    cluster.create_topic_with("t", 2, limited());
    let mut producer = Producer::new(&mut cluster);
    fill(&mut cluster, &mut producer, 120);
    assert_same(&mut cluster);
    for partition in 0..2 {
        let starts: Vec<u64> =
            (1..=3).map(|node| cluster.list_offset(node, "t", partition, OffsetSpec::Earliest).0).collect();
        assert!(starts[0] > 0, "nothing was trimmed");
        assert_eq!(starts, [starts[0]; 3]);
        for node in cluster.ids() {
            let all = cluster.read_all(node, "t", partition);
            assert_eq!(all.first().map(|record| record.offset), Some(starts[0]));
            assert_eq!(all.last().map(|record| record.offset), Some(60 - u64::from(partition)));
        }
    }
}

#[test]
fn replicas_are_the_same_after_leaders_and_followers_crashed() {
    let mut cluster = Cluster::ready(settings());
    cluster.create_topic_with("t", 2, limited());
    let mut producer = Producer::new(&mut cluster);
    for round in 0..6 {
        fill(&mut cluster, &mut producer, 15);
        let leader = cluster.leader_of(DATA);
        let victim = if round % 2 == 0 { leader } else { cluster.followers_of(DATA)[0] };
        cluster.crash(victim, CrashChoice::Torn(round));
        fill(&mut cluster, &mut producer, 5);
        cluster.start(victim);
    }
    assert_same(&mut cluster);
}

#[test]
fn old_records_go_by_age_at_the_leader_s_clock() {
    let mut cluster = Cluster::ready(settings());
    let options = TopicOptions { max_age_ms: Some(20_000), ..TopicOptions::default() };
    cluster.create_topic_with("t", 2, options);
    // A follower whose clock is far ahead must not delete on its own.
    cluster.await_balance();
    // It would be relieved of what it leads: this one should lead nothing.
    let follower = 3;
    cluster.node_mut(follower).clock_ahead_ms = 3_600_000;
    let mut producer = Producer::new(&mut cluster);
    fill(&mut cluster, &mut producer, 80);
    assert_same(&mut cluster);
    assert_eq!(cluster.list_offset(follower, "t", 0, OffsetSpec::Earliest).0, 0, "nothing is that old");
    cluster.ticks(30 * SECOND);
    assert_same(&mut cluster);
    assert!(cluster.list_offset(follower, "t", 0, OffsetSpec::Earliest).0 > 0, "everything is that old");
}

/// The follower needs what only the leader's journal has, while the leader's newest entry is not on its own disk yet.
#[test]
fn a_follower_catches_up_from_the_journal_of_a_leader_that_is_writing() {
    let mut cluster = Cluster::ready(Settings { entry_cache_bytes: 0, ..Settings::default() });
    cluster.create_topic("t", 2);
    cluster.await_balance();
    let leader = cluster.leader_of(DATA);
    let late = cluster.followers_of(DATA)[0];
    cluster.kill(late);
    let mut producer = Producer::new(&mut cluster);
    fill(&mut cluster, &mut producer, 10);
    cluster.node_mut(leader).set_order(Order::Held);
    let newest = producer.request("t", 0, &["newest"]);
    let call = cluster.send(leader, &Request::Produce(newest));
    cluster.settle();
    cluster.start(late);
    cluster.ticks(10);
    assert!(!cluster.is_answered(call), "the leader's disk does not hold it");
    cluster.node_mut(leader).set_order(Order::Immediate);
    cluster.await_same();
    assert_eq!(cluster.leader_of(DATA), leader, "it was the leader's to bring the follower up to date");
    assert_eq!(cluster.read_all(late, "t", 0), cluster.read_all(leader, "t", 0));
}

#[test]
fn a_follower_catches_up_although_a_read_of_the_leader_s_journal_fails_once() {
    let mut cluster = Cluster::ready(Settings { entry_cache_bytes: 0, ..Settings::default() });
    cluster.create_topic("t", 2);
    cluster.await_balance();
    let leader = cluster.leader_of(DATA);
    let late = cluster.followers_of(DATA)[0];
    cluster.kill(late);
    let mut producer = Producer::new(&mut cluster);
    fill(&mut cluster, &mut producer, 10);
    let (failed, mut failures) = (Arc::new(AtomicU32::new(0)), 1);
    let count = failed.clone();
    cluster.node(leader).disk().inject(Some(Box::new(move |_, op| {
        let fails = matches!(op, Op::Read { .. }) && failures > 0;
        fails.then(|| {
            failures -= 1;
            count.fetch_add(1, Ordering::Relaxed);
            io::Error::from_raw_os_error(5)
        })
    })));
    cluster.start(late);
    cluster.await_same();
    assert_eq!(failed.load(Ordering::Relaxed), 1, "nothing was read");
    assert_eq!(cluster.leader_of(DATA), leader);
    assert_eq!(cluster.read_all(late, "t", 0), cluster.read_all(leader, "t", 0));
}

/// Small enough that a follower which is slow would soon lack what the journal no longer has.
fn small_journal() -> Settings {
    Settings {
        checkpoint_bytes: 2 << 20,
        journal_file_bytes: 1 << 20,
        journal_retain_bytes: 16 << 20,
        memory_bytes: 64 << 20,
        ..Settings::default()
    }
}

/// Far more records than a slow follower can take, for some ticks. Gives how many were taken, and how many refused.
fn flood(cluster: &mut Cluster, leader: u64, ticks: u32) -> (usize, usize) {
    let value = "x".repeat(60_000);
    let mut calls = Vec::new();
    for _ in 0..ticks {
        for _ in 0..8 {
            calls.push(cluster.send(leader, &Request::Produce(produce_request("t", 0, &[&value]))));
        }
        cluster.tick();
    }
    let (mut taken, mut refused) = (0, 0);
    for call in calls {
        match cluster.wait(call) {
            Outcome::Done(_) => taken += 1,
            Outcome::Refused(error) if error.code == ErrorCode::Overloaded => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    (taken, refused)
}

#[test]
fn a_leader_slows_its_clients_before_it_loses_a_follower_that_lives() {
    let mut cluster = Cluster::ready(small_journal());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let leader = cluster.leader_of(DATA);
    let slow = cluster.followers_of(DATA)[0];
    let way = Cut { channel: Some(Channel::Replication), ..Cut::way(leader, slow) };
    cluster.network.slow = Some((way, 60_000));
    let (taken, refused) = flood(&mut cluster, leader, 3 * SECOND);
    assert!(refused > 0, "{taken} were taken");
    cluster.await_same();
    assert_eq!(cluster.reopened, 0, "no state was transferred");
    assert!(cluster.view(leader, DATA).leads);
}

#[test]
fn a_follower_that_stands_still_holds_nobody_up_for_long() {
    let mut cluster = Cluster::ready(small_journal());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let leader = cluster.leader_of(DATA);
    let still = cluster.followers_of(DATA)[0];
    cluster.network.cut(Cut { channel: Some(Channel::Replication), ..Cut::way(leader, still) });
    let (_, refused) = flood(&mut cluster, leader, SECOND);
    assert!(refused > 0, "it is alive, and waited for");
    cluster.ticks(6 * SECOND);
    let (taken, refused) = flood(&mut cluster, leader, SECOND);
    assert!(taken > 0 && refused == 0, "{refused} were refused");
    let page = cluster.node(leader).metrics().render();
    assert!(page.contains("lance_followers_let_go_total 1\n"), "{page}");
    cluster.network.heal();
    cluster.await_same();
}
