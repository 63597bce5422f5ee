//! Rare sequences that once broke a promise, each kept as a test.

use crate::harness::*;
use lnc_log::disk::Owner;
use lnc_log::disk::memory::Order;
use lnc_log::journal::GroupId;
use lnc_protocol::message::*;
use lnc_protocol::{ErrorCode, Request, Response};

fn record_of(topic: &str, partition: u32, bytes: usize) -> Request {
    let value = "x".repeat(bytes);
    Request::Produce(produce_request(topic, partition, &[&value]))
}

/// Let all disk operations of a node finish but those of one part.
fn release_all_but(cluster: &Cluster, node: u64, held: Owner) {
    let disk = cluster.node(node).disk();
    for (number, token) in disk.in_flight() {
        if token.owner() != Some(held) {
            disk.release(number);
        }
    }
}

#[test]
fn a_fetch_of_several_partitions_at_the_edge_of_the_cache_ends() {
    let settings = Settings { nodes: 1, tail_cache_bytes: 3000, checkpoint_bytes: 1, ..Settings::default() };
    let mut cluster = Cluster::ready(settings);
    cluster.create_topic("t", 2);
    for partition in [0, 1] {
        cluster.ask(1, &record_of("t", partition, 2000)).unwrap();
        cluster.ticks(SECOND * 2);
    }
    // While partition 0 is read from its segment, partition 1 leaves the cache.
    cluster.set_disk_order(|_| Order::Held);
    let produce = cluster.send(1, &record_of("t", 1, 2000));
    let fetch = cluster.send(1, &fetch_request("t", &[(0, 0), (1, 0)], 100, 1));
    for _ in 0..50 {
        cluster.round();
        release_all_but(&cluster, 1, Owner::Segments);
        if cluster.is_answered(produce) {
            break;
        }
    }
    cluster.set_disk_order(|_| Order::Immediate);
    for _ in 0..200 {
        cluster.round();
    }
    assert!(cluster.is_answered(fetch), "the fetch runs in circles");
}

#[test]
fn a_new_leader_does_not_deny_an_acknowledged_offset() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    cluster.await_same();
    let leader = cluster.leader_of(GroupId(1));
    for _ in 0..5 {
        cluster.ask(leader, &record_of("t", 0, 10)).unwrap();
    }
    cluster.kill(leader);
    for _ in 0..200 {
        cluster.ticks(1);
        let nodes = cluster.running();
        let calls: Vec<_> =
            nodes.into_iter().map(|id| (id, cluster.send(id, &fetch_request("t", &[(0, 5)], 0, 1)))).collect();
        cluster.round();
        for (id, call) in calls {
            if let Some(Outcome::Done(Response::Fetch(found))) = cluster.outcome(call) {
                assert_eq!(found[0].error, ErrorCode::None, "node {id}: {}", found[0].message);
            }
        }
    }
}

#[test]
fn nothing_is_acknowledged_into_a_topic_whose_deletion_was_acknowledged() {
    let mut cluster = Cluster::ready(Settings { data_groups: 3, ..Settings::default() });
    cluster.create_topic("t", 1);
    cluster.await_balance();
    cluster.await_same();
    // The node that leads the topic's group hears nothing of the catalog.
    let group = GroupId(2);
    let deaf = cluster.leader_of(group);
    let meta = cluster.leader_of(META);
    assert_ne!(deaf, meta);
    cluster.network.cut(Cut::to(deaf).of_group(META));
    cluster.network.cut(Cut::from(deaf).of_group(META));
    let delete = Request::DeleteTopic(DeleteTopicRequest { name: "t".into(), timeout_ms: 60_000 });
    let deletion = cluster.send(meta, &delete);
    cluster.ticks(SECOND);
    assert!(!cluster.is_answered(deletion), "the topic's leader does not know of the deletion yet");
    let creation = cluster.send(meta, &create_request("t", 1, TopicOptions::default()));
    cluster.ticks(SECOND);
    assert!(!cluster.is_answered(creation), "records for the name can still go into the deleted topic");
    cluster.ask(deaf, &record_of("t", 0, 10)).expect("neither deletion nor creation has been acknowledged");
    cluster.network.heal();
    cluster.ticks(SECOND * 5);
    assert!(matches!(cluster.outcome(deletion), Some(Outcome::Done(Response::DeleteTopic))));
    assert!(matches!(cluster.outcome(creation), Some(Outcome::Done(Response::CreateTopic(_)))));
    assert!(cluster.read_all(1, "t", 0).is_empty());
}

#[test]
fn the_latest_offset_of_a_topic_just_heard_of_is_not_stale() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.await_balance();
    let (leader, meta) = (cluster.leader_of(GroupId(1)), cluster.leader_of(META));
    let follower = cluster.ids().into_iter().find(|id| *id != leader && *id != meta).unwrap();
    let data = Cut { channel: Some(lnc_replication::formation::Channel::Replication), ..Cut::to(follower) }
        .of_group(GroupId(1));
    cluster.network.cut(Cut::to(follower).of_group(META));
    cluster.network.cut(data);
    cluster.ask(meta, &create_request("t", 1, TopicOptions::default())).unwrap();
    for _ in 0..3 {
        cluster.ask(leader, &record_of("t", 0, 10)).unwrap();
    }
    cluster.network.heal();
    cluster.network.cut(data);
    for _ in 0..100 {
        let call = cluster.send(follower, &offsets_request("t", 0, OffsetSpec::Latest));
        for _ in 0..20 {
            if !cluster.is_answered(call) {
                cluster.ticks(1);
            }
        }
        if let Some(Outcome::Done(Response::ListOffsets(found))) = cluster.outcome(call) {
            assert!(found[0].error != ErrorCode::None || found[0].offset >= 3, "stale: {:?}", found[0]);
        }
    }
}

#[test]
fn entries_that_were_overwritten_do_not_keep_the_journal() {
    let mut cluster = Cluster::ready(Settings {
        data_groups: 2,
        journal_retain_bytes: 512 << 10,
        checkpoint_bytes: 64 << 10,
        ..Settings::default()
    });
    cluster.create_topic("t", 2);
    cluster.await_balance();
    cluster.await_same();
    let old = cluster.leader_of(GroupId(1));
    cluster.network.isolate(old);
    for _ in 0..40 {
        cluster.send(old, &record_of("t", 1, 100));
        cluster.round();
    }
    cluster.ticks(SECOND);
    cluster.network.heal();
    cluster.ticks(SECOND);
    cluster.await_same();
    let value = "x".repeat(8000);
    for _ in 0..600 {
        cluster.produce(&produce_request("t", 0, &[&value]));
    }
    cluster.ticks(SECOND * 3);
    let disk = cluster.node(old).disk();
    let journal = disk.paths().into_iter().filter(|path| path.starts_with("journal"));
    let bytes: usize = journal.map(|path| disk.file(&path).map_or(0, |file| file.len())).sum();
    assert!(bytes <= 2 << 20, "a journal of {bytes} bytes, with 512 KiB to keep");
}

#[test]
fn a_disk_too_slow_for_segments_pushes_back() {
    let mut cluster = Cluster::ready(Settings {
        nodes: 1,
        checkpoint_bytes: 1 << 20,
        journal_file_bytes: 4 << 20,
        ..Settings::default()
    });
    cluster.create_topic("t", 1);
    cluster.ticks(SECOND);
    cluster.set_disk_order(|_| Order::Held);
    let refused = (0..200).any(|_| {
        let call = cluster.send(1, &record_of("t", 0, 500_000));
        for _ in 0..50 {
            if !cluster.is_answered(call) {
                cluster.round();
                release_all_but(&cluster, 1, Owner::Segments);
            }
        }
        !matches!(cluster.outcome(call), Some(Outcome::Done(_)))
    });
    assert!(refused, "100 MB were taken with 4 MiB for requests and 4 MiB for the tail cache");
}

#[test]
fn a_node_does_not_start_without_groups_that_it_holds() {
    let settings = Settings { nodes: 1, data_groups: 3, journal_retain_bytes: 256 << 10, ..Settings::default() };
    let mut cluster = Cluster::ready(settings);
    cluster.create_topic("t", 3);
    for partition in 0..3 {
        cluster.ask(1, &record_of("t", partition, 100)).unwrap();
    }
    cluster.kill(1);
    cluster.settings.data_groups = 1;
    assert!(cluster.try_start(1).is_err(), "the journal holds entries of groups 2 and 3");
}
