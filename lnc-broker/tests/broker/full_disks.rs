//! Disks on which other programs leave nothing: what is deleted comes back at once, on every node, also across a restart.

use crate::harness::{Cluster, META, SECOND, Settings, produce_request};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{FileId, Op, Owner};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{DeleteTopicRequest, TopicOptions};
use lnc_protocol::{ErrorCode, Request};
use std::io;

const DATA: GroupId = GroupId(1);
const RESERVE: u64 = 600 << 10;

/// A cluster with a topic that is worth deleting, and records of another one that are in no segment yet.
fn laden() -> Cluster {
    let mut settings = Settings { reserve_bytes: RESERVE, checkpoint_bytes: 64 << 10, ..Settings::default() };
    settings.journal_file_bytes = 256 << 10;
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
    cluster.ticks(2 * SECOND);
    for _ in 0..3 {
        cluster.produce(&produce_request("t", 0, &["before"]));
        cluster.produce(&produce_request("old", 0, &["the last"]));
    }
    cluster.await_same();
    cluster
}

/// Another program takes all that is left on these disks, and goes on to take what comes free.
fn fill(cluster: &mut Cluster, nodes: &[u64]) {
    for node in nodes {
        let disk = cluster.node(*node).disk();
        disk.set_capacity(Some(disk.used()));
    }
    cluster.ticks(2 * SECOND);
}

fn refused(cluster: &mut Cluster) -> String {
    let leader = cluster.leader_of(DATA);
    match cluster.ask(leader, &Request::Produce(produce_request("t", 0, &["refused"]))) {
        Err(error) => {
            assert_eq!(error.code, ErrorCode::StorageFull, "{error}");
            error.message
        }
        Ok(other) => panic!("taken: {other:?}"),
    }
}

fn used(cluster: &mut Cluster) -> Vec<u64> {
    cluster.ids().into_iter().map(|node| cluster.node(node).disk().used()).collect()
}

/// Waits until every node uses so much less.
fn await_space(cluster: &mut Cluster, before: &[u64], bytes: u64) {
    cluster.until("the space is free on every node", |cluster| {
        used(cluster).iter().zip(before).all(|(now, before)| now + bytes <= *before)
    });
}

#[test]
fn a_deletion_frees_space_though_nothing_is_left_on_any_disk() {
    let mut cluster = laden();
    let all = cluster.ids();
    fill(&mut cluster, &all);
    refused(&mut cluster);
    let before = used(&mut cluster);
    cluster.delete_topic("old");
    await_space(&mut cluster, &before, 1 << 20);
    assert_eq!(cluster.produce(&produce_request("t", 0, &["after"])).base_offset, Some(3));
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(cluster.read_all(node, "t", 0).len(), 4, "node {node}");
        assert_eq!(cluster.node(node).metrics().damage_found_total.get(), 0, "node {node}");
    }
}

#[test]
fn inodes_come_back_too_and_are_what_the_error_speaks_of() {
    let mut cluster = laden();
    for node in cluster.ids() {
        let disk = cluster.node(node).disk();
        disk.set_file_capacity(Some(disk.files()));
    }
    cluster.ticks(2 * SECOND);
    let told = refused(&mut cluster);
    assert!(told.contains("0 inodes") && !told.contains("bytes are free"), "{told}");
    let problem = cluster.node_mut(1).snapshot().space_problem.expect("the status page says it too");
    assert!(problem.contains("0 inodes"), "{problem}");
    let files: Vec<u64> = cluster.ids().into_iter().map(|node| cluster.node(node).disk().files()).collect();
    cluster.delete_topic("old");
    cluster.until("inodes are free on every node", |cluster| {
        let now = cluster.ids().into_iter().map(|node| cluster.node(node).disk().files()).collect::<Vec<_>>();
        now.iter().zip(&files).all(|(now, before)| now < before)
    });
    for node in cluster.ids() {
        let disk = cluster.node(node).disk();
        disk.set_file_capacity(None);
    }
    cluster.until("records are taken", |cluster| {
        let leader = cluster.leader_of(DATA);
        cluster.ask(leader, &Request::Produce(produce_request("t", 0, &["after"]))).is_ok()
    });
    cluster.await_same();
}

/// What was removed is still named by the checkpoint, and another program has taken its place: nothing is damage, and
/// nothing needs space.
#[test]
fn nodes_that_lose_power_after_a_deletion_without_space_start_again() {
    for choice in [CrashChoice::Nothing, CrashChoice::Everything] {
        let mut cluster = laden();
        let all = cluster.ids();
        fill(&mut cluster, &all);
        let before = used(&mut cluster);
        // The other program takes what comes free: there is never space for a checkpoint.
        for node in cluster.ids() {
            cluster.node(node).disk().set_capacity(Some(0));
        }
        cluster.delete_topic("old");
        await_space(&mut cluster, &before, 1 << 20);
        for node in cluster.ids() {
            cluster.crash(node, choice);
        }
        for node in cluster.ids() {
            cluster.start(node);
        }
        cluster.await_leaders();
        cluster.await_same();
        cluster.ticks(30 * SECOND);
        for node in cluster.ids() {
            assert_eq!(cluster.node(node).metrics().damage_found_total.get(), 0, "node {node}");
            assert_eq!(cluster.read_all(node, "t", 0).len(), 3, "node {node}");
            cluster.node(node).disk().set_capacity(None);
        }
        cluster.until("records are taken", |cluster| {
            let leader = cluster.leader_of(DATA);
            cluster.ask(leader, &Request::Produce(produce_request("t", 0, &["after"]))).is_ok()
        });
        cluster.await_same();
    }
}

#[test]
fn what_is_too_old_frees_space_though_nothing_is_left_on_any_disk() {
    let mut settings = Settings { reserve_bytes: RESERVE, checkpoint_bytes: 64 << 10, ..Settings::default() };
    settings.journal_file_bytes = 256 << 10;
    settings.journal_retain_bytes = 0;
    let mut cluster = Cluster::ready(settings);
    let options = TopicOptions { max_age_ms: Some(60_000), ..TopicOptions::default() };
    cluster.create_topic_with("aged", 1, options);
    cluster.await_balance();
    let value = "x".repeat(32 << 10);
    for _ in 0..40 {
        cluster.produce(&produce_request("aged", 0, &[&value]));
    }
    cluster.await_same();
    let all = cluster.ids();
    fill(&mut cluster, &all);
    let before = used(&mut cluster);
    cluster.ticks(90 * SECOND);
    await_space(&mut cluster, &before, 500_000);
    cluster.await_same();
}

#[test]
fn a_leader_whose_own_disk_is_full_hands_over_to_one_with_room() {
    let mut cluster = laden();
    let full = cluster.leader_of(DATA);
    fill(&mut cluster, &[full]);
    cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != full));
    cluster.until("records are taken", |cluster| {
        let leader = cluster.leader_of(DATA);
        cluster.ask(leader, &Request::Produce(produce_request("t", 0, &["after"]))).is_ok()
    });
    // It does not come back while the disk is full.
    for _ in 0..20 {
        cluster.ticks(SECOND);
        assert_ne!(cluster.leader_of(DATA), full);
    }
}

/// The state that a follower lacks does not fit beside what it has, in bytes or in inodes, most of which is deleted by now: that
/// goes first, though there is no inode for the note of it either, and is not missed if power is lost before the rest has come.
#[test]
fn a_follower_lets_go_what_is_deleted_before_the_state_comes_for_which_there_was_no_space() {
    for (loses_power, inodes) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut settings = Settings { reserve_bytes: RESERVE, checkpoint_bytes: 64 << 10, ..Settings::default() };
        settings.journal_file_bytes = 64 << 10;
        settings.segments.segment_bytes = 200_000;
        settings.scrub_bytes_per_second = 1 << 20;
        settings.transfer_bytes_per_second = 100 << 10;
        let mut cluster = Cluster::ready(settings);
        for topic in ["old", "t"] {
            cluster.create_topic(topic, 1);
        }
        cluster.await_balance();
        let value = "x".repeat(8 << 10);
        for _ in 0..160 {
            cluster.produce(&produce_request("old", 0, &[&value]));
        }
        cluster.ticks(2 * SECOND);
        cluster.await_same();
        let full = cluster.followers_of(DATA)[0];
        let disk = cluster.node(full).disk();
        match inodes {
            true => disk.set_file_capacity(Some(disk.files())),
            false => disk.set_capacity(Some(disk.used() + RESERVE / 2 - 1)),
        }
        cluster.ticks(SECOND + 1);
        for topic in ["old", "t"] {
            for _ in 0..60 {
                cluster.produce(&produce_request(topic, 0, &[&value]));
            }
        }
        cluster.ticks(2 * SECOND);
        let before = disk.used();
        let delete = Request::DeleteTopic(DeleteTopicRequest { name: "old".into(), timeout_ms: 60_000 });
        let meta = cluster.leader_of(META);
        cluster.send(meta, &delete);
        cluster.until("what is deleted is gone", |cluster| cluster.node(full).disk().used() + 500_000 < before);
        assert_eq!(cluster.reopened, 0, "and the state has not come yet");
        if loses_power {
            cluster.crash(full, CrashChoice::Everything);
            cluster.node(full).disk().set_capacity(None);
            cluster.start(full);
        }
        // What came free is enough for the segments, and not for a journal of many small files.
        cluster.node(full).disk().set_file_capacity(None);
        cluster
            .until("the rest has come", |cluster| cluster.view(full, DATA).applied == cluster.view(meta, DATA).applied);
        cluster.await_leaders();
        cluster.await_same();
        assert_eq!(cluster.read_all(full, "t", 0).len(), 60);
        assert_eq!(cluster.node(full).metrics().damage_found_total.get(), 0);
    }
}

/// Other programs leave less than what waits in memory for its segments: no checkpoint fits, so that the journal gets no
/// shorter, and the deletion lies behind what has no room in it. What is deleted goes all the same, though no checkpoint names
/// it yet, and what waits of it is not written any more.
#[test]
fn a_follower_with_more_in_memory_than_space_follows_once_that_is_deleted() {
    for loses_power in [false, true] {
        let mut settings = Settings { reserve_bytes: RESERVE, checkpoint_bytes: 4 << 20, ..Settings::default() };
        settings.journal_file_bytes = 64 << 10;
        settings.journal_retain_bytes = 0;
        settings.segments.segment_bytes = 100_000;
        let mut cluster = Cluster::ready(settings);
        for topic in ["old", "t"] {
            cluster.create_topic(topic, 1);
        }
        cluster.await_balance();
        let value = "x".repeat(8 << 10);
        for _ in 0..20 {
            cluster.produce(&produce_request("old", 0, &[&value.repeat(4)]));
        }
        cluster.await_same();
        let full = cluster.followers_of(DATA)[0];
        let disk = cluster.node(full).disk();
        let is_segment = |file: FileId| file.0 >> 56 == Owner::Segments.file(0).0 >> 56;
        let hook = move |_, op: &Op| match op {
            Op::Write { file, .. } if is_segment(*file) => Some(io::ErrorKind::StorageFull.into()),
            _ => None,
        };
        disk.inject(Some(Box::new(hook)));
        for _ in 0..20 {
            cluster.produce(&produce_request("old", 0, &[&value.repeat(4)]));
        }
        cluster.await_same();
        disk.set_capacity(Some(disk.used() + RESERVE / 2 - 1));
        disk.inject(None);
        cluster.ticks(5 * SECOND);
        for _ in 0..60 {
            cluster.produce(&produce_request("t", 0, &[&value]));
        }
        cluster.ticks(2 * SECOND);
        let meta = cluster.leader_of(META);
        let delete = Request::DeleteTopic(DeleteTopicRequest { name: "old".into(), timeout_ms: 60_000 });
        cluster.send(meta, &delete);
        let before = disk.used();
        cluster.until("what is deleted is gone", |_| disk.used() + 300_000 < before);
        if loses_power {
            cluster.crash(full, CrashChoice::Everything);
            cluster.start(full);
        }
        cluster.await_same();
        assert_eq!(cluster.read_all(full, "t", 0).len(), 60);
        assert_eq!(cluster.node(full).metrics().damage_found_total.get(), 0);
    }
}
