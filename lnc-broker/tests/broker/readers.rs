//! Fetches: when they are answered, and that they find everything wherever it lies.

use crate::harness::records::{batch, pairs, read};
use crate::harness::{
    Call, Cluster, EPOCH_MS, META, Outcome, SECOND, Settings, fetch_request, offsets_request, produce_request,
};
use lnc_log::disk::Owner;
use lnc_log::disk::memory::Order;
use lnc_log::journal::GroupId;
use lnc_protocol::message::{DeleteTopicRequest, FetchedPartition, OffsetSpec, ProduceRequest, TopicOptions};
use lnc_protocol::{ErrorCode, Request, Response};

const DATA: GroupId = GroupId(1);

fn with_topic(partitions: u32) -> Cluster {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", partitions);
    cluster.await_balance();
    cluster.await_same();
    cluster
}

/// A cluster that keeps nothing in memory that it can read from segments, with `count` records of about 1 KiB.
fn cold(count: usize) -> Cluster {
    let mut cluster = Cluster::ready(cold_settings());
    cluster.create_topic("t", 1);
    for n in 0..count {
        cluster.produce(&dated(n));
    }
    cluster.await_same();
    cluster.ticks(SECOND);
    cluster
}

fn cold_settings() -> Settings {
    let mut settings = Settings { tail_cache_bytes: 0, checkpoint_bytes: 1, ..Settings::default() };
    settings.segments.segment_bytes = 10_000;
    settings
}

/// Record `n` has time `1000 + 10 n`.
fn dated(n: usize) -> ProduceRequest {
    let value = format!("{n}-{}", "x".repeat(1000));
    ProduceRequest { batch: batch(None, 1000 + 10 * n as i64, &[&value]), ..produce_request("t", 0, &[]) }
}

fn fetched(outcome: Option<Outcome>) -> Vec<FetchedPartition> {
    match outcome {
        Some(Outcome::Done(Response::Fetch(found))) => found,
        other => panic!("not an answer to a fetch: {other:?}"),
    }
}

fn wait_for(cluster: &mut Cluster, node: u64, from: &[(u32, u64)], max_wait_ms: u32, min_bytes: u32) -> Call {
    let call = cluster.send(node, &fetch_request("t", from, max_wait_ms, min_bytes));
    cluster.settle();
    call
}

#[test]
fn a_long_poll_ends_when_a_record_comes_at_every_node() {
    let mut cluster = with_topic(1);
    let calls: Vec<Call> =
        cluster.ids().into_iter().map(|node| wait_for(&mut cluster, node, &[(0, 0)], 30_000, 1)).collect();
    cluster.ticks(SECOND);
    assert!(calls.iter().all(|call| !cluster.is_answered(*call)), "there is nothing to read");
    cluster.produce(&produce_request("t", 0, &["a"]));
    // Followers hear of the commit with the next heartbeat at the latest.
    cluster.ticks(3);
    for call in calls {
        assert_eq!(pairs(&read(&fetched(cluster.outcome(call))[0])), [(0, "a")]);
    }
}

#[test]
fn a_long_poll_ends_with_nothing_when_its_time_is_up() {
    let mut cluster = with_topic(1);
    for node in cluster.ids() {
        let call = wait_for(&mut cluster, node, &[(0, 0)], 500, 1);
        cluster.ticks(SECOND / 2 - 1);
        assert!(!cluster.is_answered(call));
        cluster.ticks(1);
        let found = fetched(cluster.outcome(call));
        assert_eq!((found[0].error, found[0].records.len()), (ErrorCode::None, 0));
    }
}

#[test]
fn a_fetch_waits_for_as_many_bytes_as_it_asks_for() {
    let mut cluster = with_topic(1);
    let leader = cluster.leader_of(DATA);
    let one = produce_request("t", 0, &["a"]);
    let call = wait_for(&mut cluster, leader, &[(0, 0)], 30_000, 3 * one.batch.len() as u32);
    for _ in 0..2 {
        cluster.produce(&one);
        assert!(!cluster.is_answered(call));
    }
    cluster.produce(&one);
    cluster.settle();
    assert_eq!(read(&fetched(cluster.outcome(call))[0]).len(), 3);
}

/// A read from a file ends with the file, and earlier while records are written.
#[test]
fn a_fetch_does_not_wait_for_what_comes_while_there_is_more_on_disk() {
    let mut cluster = cold(40);
    let leader = cluster.leader_of(DATA);
    let call = wait_for(&mut cluster, leader, &[(0, 0)], 30_000, 30_000);
    assert!(!read(&fetched(cluster.outcome(call))[0]).is_empty());
}

#[test]
fn a_fetch_that_waits_for_more_than_there_is_gets_what_there_is_in_time() {
    let mut cluster = with_topic(1);
    let leader = cluster.leader_of(DATA);
    cluster.produce(&produce_request("t", 0, &["a"]));
    let call = wait_for(&mut cluster, leader, &[(0, 0)], 100, 1 << 20);
    cluster.ticks(9);
    assert!(!cluster.is_answered(call));
    cluster.ticks(1);
    assert_eq!(read(&fetched(cluster.outcome(call))[0]).len(), 1);
}

#[test]
fn a_fetch_of_several_partitions_ends_with_a_record_in_any_of_them() {
    for written in 0..3 {
        let mut cluster = with_topic(3);
        let leader = cluster.leader_of(DATA);
        let call = wait_for(&mut cluster, leader, &[(0, 0), (1, 0), (2, 0)], 30_000, 1);
        cluster.produce(&produce_request("t", written, &["a"]));
        cluster.settle();
        let counts: Vec<usize> = fetched(cluster.outcome(call)).iter().map(|found| read(found).len()).collect();
        let expected: Vec<usize> = (0..3).map(|partition| usize::from(partition == written)).collect();
        assert_eq!(counts, expected);
    }
}

#[test]
fn a_fetch_with_an_error_in_one_partition_does_not_wait_for_the_others() {
    let mut cluster = with_topic(2);
    let leader = cluster.leader_of(DATA);
    let call = wait_for(&mut cluster, leader, &[(0, 0), (9, 0)], 30_000, 1);
    let found = fetched(cluster.outcome(call));
    assert_eq!([found[0].error, found[1].error], [ErrorCode::None, ErrorCode::UnknownPartition]);
}

#[test]
fn an_offset_beyond_the_end_is_refused_by_the_leader_and_awaited_by_a_follower() {
    let mut cluster = with_topic(1);
    cluster.produce(&produce_request("t", 0, &["a"]));
    cluster.await_same();
    let leader = cluster.leader_of(DATA);
    let follower = cluster.followers_of(DATA)[0];
    assert_eq!(cluster.fetch(leader, "t", 0, 2).error, ErrorCode::OffsetOutOfRange);
    assert_eq!(cluster.fetch(leader, "t", 0, 1).error, ErrorCode::None);
    assert_eq!(cluster.fetch(follower, "t", 0, 2).error, ErrorCode::None);
}

#[test]
fn a_fetch_of_segments_finds_everything_at_every_node() {
    let mut cluster = cold(40);
    for node in cluster.ids() {
        let all = cluster.read_all(node, "t", 0);
        assert_eq!(all.len(), 40, "node {node}");
        for (n, record) in all.iter().enumerate() {
            assert_eq!(record.offset, n as u64);
            assert!(record.value.starts_with(&format!("{n}-")), "node {node}: {} at {n}", &record.value[..8]);
        }
        assert!(cluster.node(node).metrics().fetch_cache_misses_total.get() > 0, "node {node} had it all in memory");
    }
}

#[test]
fn a_fetch_may_start_at_every_offset_of_segments_and_memory() {
    let mut cluster = cold(24);
    let node = cluster.ids()[2];
    for offset in 0..24 {
        let found = cluster.fetch(node, "t", 0, offset);
        assert_eq!(read(&found).first().map(|record| record.offset), Some(offset));
    }
}

#[test]
fn a_long_poll_that_begins_in_segments_waits_for_its_bytes() {
    let mut cluster = cold(5);
    let leader = cluster.leader_of(DATA);
    let call = wait_for(&mut cluster, leader, &[(0, 0)], 30_000, 6 * 1024);
    cluster.ticks(5);
    assert!(!cluster.is_answered(call), "five records are less than 6 KiB");
    cluster.produce(&dated(5));
    cluster.produce(&dated(6));
    cluster.ticks(5);
    let found = fetched(cluster.outcome(call));
    assert_eq!(read(&found[0]).first().map(|record| record.offset), Some(0));
}

#[test]
fn offsets_are_found_by_time_in_segments_and_in_memory() {
    let warm = {
        let mut cluster = Cluster::ready(Settings::default());
        cluster.create_topic("t", 1);
        for n in 0..24 {
            cluster.produce(&dated(n));
        }
        cluster.await_same();
        cluster
    };
    for mut cluster in [warm, cold(24)] {
        let node = cluster.ids()[1];
        for n in 0..24 {
            let time = 1000 + 10 * n as i64;
            for asked in [time - 9, time] {
                let found = cluster.list_offset(node, "t", 0, OffsetSpec::Timestamp(asked));
                assert_eq!(found, (n, time), "time {asked}");
            }
        }
        assert_eq!(cluster.list_offset(node, "t", 0, OffsetSpec::Timestamp(1231)), (24, -1), "nothing is that late");
        assert_eq!(cluster.list_offset(node, "t", 0, OffsetSpec::Timestamp(i64::MIN)), (0, 1000));
        assert_eq!(cluster.list_offset(node, "t", 0, OffsetSpec::Earliest).0, 0);
        assert_eq!(cluster.list_offset(node, "t", 0, OffsetSpec::Latest).0, 24);
    }
}

/// Times need not rise with offsets: the first record that is late enough counts.
#[test]
fn offsets_are_found_by_time_where_times_go_back() {
    for settings in [Settings::default(), cold_settings()] {
        let mut cluster = Cluster::ready(settings);
        cluster.create_topic("t", 1);
        for n in [3, 1, 9, 2, 9, 4] {
            cluster.produce(&dated(n));
        }
        cluster.await_same();
        cluster.ticks(SECOND);
        for (asked, offset) in [(0, 0), (1030, 0), (1031, 2), (1090, 2), (1091, 6)] {
            assert_eq!(cluster.list_offset(1, "t", 0, OffsetSpec::Timestamp(asked)).0, offset, "time {asked}");
        }
    }
}

#[test]
fn the_latest_offset_at_any_node_counts_everything_acknowledged_before() {
    let mut cluster = with_topic(1);
    for n in 1..=6 {
        cluster.produce(&produce_request("t", 0, &["a"]));
        let node = cluster.ids()[n % 3];
        assert_eq!(cluster.list_offset(node, "t", 0, OffsetSpec::Latest).0, n as u64, "node {node}");
    }
}

#[test]
fn append_times_are_the_leader_s_and_never_go_back() {
    let mut cluster = with_topic(1);
    let mut last = EPOCH_MS;
    for round in 0..4 {
        let leader = cluster.leader_of(DATA);
        // Each leader's clock is further behind than the one before.
        cluster.node_mut(leader).clock_ahead_ms = -100_000 * round;
        let done = cluster.produce(&produce_request("t", 0, &["a"]));
        assert!(done.append_time_ms >= last, "{} after {last}", done.append_time_ms);
        last = done.append_time_ms;
        cluster.crash(leader, lnc_log::disk::memory::CrashChoice::Nothing);
        cluster.await_leaders();
        cluster.start(leader);
    }
}

/// Let a node's journal go on while everything else that its disk was asked to do waits.
fn release_journal(cluster: &mut Cluster, node: u64) {
    for _ in 0..5 {
        let disk = cluster.node(node).disk();
        for (number, token) in disk.in_flight() {
            if token.owner() == Some(Owner::Journal) {
                disk.release(number);
            }
        }
        cluster.tick();
    }
}

#[test]
fn a_topic_deleted_while_its_segments_are_read_is_unknown_and_not_damaged() {
    let mut cluster = cold(24);
    let node = cluster.leader_of(DATA);
    cluster.node_mut(node).set_order(Order::Held);
    let fetch = cluster.send(node, &fetch_request("t", &[(0, 0)], 30_000, 1));
    let offsets = cluster.send(node, &offsets_request("t", 0, OffsetSpec::Timestamp(1100)));
    cluster.settle();
    release_journal(&mut cluster, node);
    assert!(!cluster.is_answered(fetch) && !cluster.is_answered(offsets), "the segments cannot have been read");
    let delete = Request::DeleteTopic(DeleteTopicRequest { name: "t".to_owned(), timeout_ms: 10_000 });
    let catalog = cluster.leader_of(META);
    let deletion = cluster.send(catalog, &delete);
    cluster.settle();
    release_journal(&mut cluster, node);
    assert!(matches!(cluster.outcome(deletion), Some(Outcome::Done(_))));
    cluster.node_mut(node).set_order(Order::Immediate);
    cluster.ticks(5);
    assert_eq!(fetched(cluster.outcome(fetch))[0].error, ErrorCode::UnknownTopic);
    match cluster.outcome(offsets) {
        Some(Outcome::Done(Response::ListOffsets(found))) => {
            // The search began before the deletion, and may answer as of then.
            let fine = [ErrorCode::None, ErrorCode::UnknownTopic];
            assert!(fine.contains(&found[0].error), "{}", found[0].message);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_reader_whose_records_are_gone_is_told_where_the_log_starts() {
    let mut settings = cold_settings();
    settings.segments.segment_bytes = 4_000;
    let mut cluster = Cluster::ready(settings);
    let options = TopicOptions { max_bytes: Some(8_000), ..TopicOptions::default() };
    cluster.create_topic_with("t", 1, options);
    for n in 0..30 {
        cluster.produce(&dated(n));
    }
    cluster.ticks(3 * SECOND);
    cluster.await_same();
    for node in cluster.ids() {
        let found = cluster.fetch(node, "t", 0, 0);
        assert_eq!(found.error, ErrorCode::OffsetOutOfRange, "node {node}");
        assert!(found.log_start_offset > 10 && found.high_watermark == 30, "{found:?}");
        let start = found.log_start_offset;
        assert_eq!(read(&cluster.fetch(node, "t", 0, start))[0].offset, start, "node {node}");
        assert_eq!(cluster.list_offset(node, "t", 0, OffsetSpec::Timestamp(0)).0, start, "node {node}");
    }
}

#[test]
fn damaged_bytes_are_reported_and_never_served_and_repaired_from_other_replicas() {
    let mut cluster = cold(24);
    let damaged = cluster.followers_of(DATA)[0];
    let expected = cluster.read_all(damaged, "t", 0);
    let (path, bytes) = cluster.node(damaged).segment_files().remove(0);
    let disk = cluster.node(damaged).disk();
    let step = bytes.len() as u64 / 40;
    let mut reported = 0;
    for position in (0..40).map(|n| n * step) {
        assert!(disk.corrupt(&path, position, 0x20));
        for offset in 0..24 {
            let found = cluster.fetch(damaged, "t", 0, offset);
            reported += usize::from(found.error == ErrorCode::StorageDamaged);
            for record in read(&found) {
                assert_eq!(record, expected[record.offset as usize], "byte {position} of {path}");
            }
        }
        // Whoever reads it again finds what is left.
        cluster.until("the damage is repaired", |cluster| {
            cluster.fetch(damaged, "t", 0, position / 1072);
            cluster.node(damaged).segment_files()[0].1 == bytes
        });
    }
    assert!(reported >= 30, "only {reported} reads found damage");
    assert!(cluster.node(damaged).is_running());
    for node in cluster.ids() {
        assert_eq!(cluster.read_all(node, "t", 0), expected, "node {node}");
    }
}

#[test]
fn damage_on_every_replica_is_told_and_takes_nothing_else_with_it() {
    let mut cluster = cold(24);
    let leader = cluster.leader_of(DATA);
    let expected = cluster.read_all(leader, "t", 0);
    let (path, before) = cluster.node(leader).segment_files().remove(0);
    for node in cluster.ids() {
        assert!(cluster.node(node).disk().corrupt(&path, 4_000, 0x20));
    }
    // The record at byte 4,000.
    let lost = 4_000 / 1_072;
    for _ in 0..3 {
        for node in cluster.ids() {
            for offset in 0..24 {
                let found = cluster.fetch(node, "t", 0, offset);
                match offset == lost {
                    true => assert_eq!(found.error, ErrorCode::StorageDamaged, "node {node}"),
                    false => assert_eq!(read(&found)[0], expected[offset as usize], "node {node}"),
                }
            }
        }
        cluster.ticks(3 * SECOND);
    }
    cluster.produce(&dated(24));
    cluster.await_same();
    assert_eq!(cluster.running(), cluster.ids());
    // One good copy is enough, wherever it comes from.
    assert!(cluster.node(leader).disk().corrupt(&path, 4_000, 0x20));
    for node in cluster.ids() {
        cluster.until("every replica is whole again", |cluster| {
            cluster.fetch(node, "t", 0, lost);
            cluster.node(node).segment_files()[0].1 == before
        });
    }
}
