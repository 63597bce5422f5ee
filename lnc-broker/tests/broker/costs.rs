//! No request holds up a node: each costs a bounded amount, long ones take turns, and all end with their client.

use crate::harness::records::batch;
use crate::harness::{Cluster, Outcome, SECOND, Settings, fetch_request, offsets_request, produce_request};
use bytes::Bytes;
use lnc_broker::{Opener, first_since};
use lnc_log::disk::memory::Order;
use lnc_log::journal::GroupId;
use lnc_protocol::message::{
    DescribeTopicRequest, FetchPartition, FetchRequest, ListOffsetsRequest, MetadataRequest, OffsetSpec, ProduceRequest,
};
use lnc_protocol::{BatchBuilder, Codec, ErrorCode, MAX_ENTRIES, Request, Response};
use std::cell::RefCell;
use std::rc::Rc;

fn with_topic(partitions: u32) -> Cluster {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", partitions);
    cluster.await_same();
    cluster
}

fn by_time(partitions: impl Iterator<Item = u32>) -> Request {
    let search = |partition| match offsets_request("t", partition, OffsetSpec::Timestamp(1000)) {
        Request::ListOffsets(ListOffsetsRequest { mut partitions, .. }) => partitions.remove(0),
        _ => unreachable!("it asks for offsets"),
    };
    Request::ListOffsets(ListOffsetsRequest { partitions: partitions.map(search).collect() })
}

#[test]
fn a_request_with_too_many_entries_is_refused_and_told_the_limit() {
    let mut cluster = with_topic(1);
    let Request::Fetch(FetchRequest { partitions, .. }) = fetch_request("t", &[(0, 0)], 0, 1) else { unreachable!() };
    let fetch = |count: usize| {
        let nth = |partition| FetchPartition { partition, ..partitions[0].clone() };
        let partitions: Vec<FetchPartition> = (0..count as u32).map(nth).collect();
        match fetch_request("t", &[], 0, 1) {
            Request::Fetch(fetch) => Request::Fetch(FetchRequest { partitions, ..fetch }),
            other => other,
        }
    };
    let topics = |count| Request::Metadata(MetadataRequest { topics: Some(vec!["t".to_owned(); count]) });
    let search = |count| by_time(std::iter::repeat_n(0, count));
    for asks in [&fetch as &dyn Fn(usize) -> Request, &topics, &search] {
        assert!(cluster.ask(1, &asks(MAX_ENTRIES)).is_ok());
        let error = cluster.ask(1, &asks(MAX_ENTRIES + 1)).expect_err("one too many");
        assert_eq!(error.code, ErrorCode::InvalidRequest);
        assert!(error.message.contains("4097") && error.message.ends_with("4096"), "{}", error.message);
    }
}

/// Each would be looked at with each record that comes.
#[test]
fn a_fetch_that_names_a_partition_twice_is_refused() {
    let mut cluster = with_topic(2);
    assert!(cluster.ask(1, &fetch_request("t", &[(0, 0), (1, 0)], 0, 1)).is_ok());
    let error = cluster.ask(1, &fetch_request("t", &[(0, 0), (1, 0), (0, 7)], 0, 1)).expect_err("once is enough");
    assert_eq!(error.code, ErrorCode::InvalidRequest);
    assert!(error.message.contains("partition 0 of topic \"t\" twice"), "{}", error.message);
}

#[test]
fn a_topic_that_is_named_again_and_again_is_told_of_once() {
    let mut cluster = with_topic(3);
    let names = ["no", "t"].into_iter().cycle().take(400).map(str::to_owned).collect();
    match cluster.ask(2, &Request::Metadata(MetadataRequest { topics: Some(names) })) {
        Ok(Response::Metadata(found)) => {
            let found: Vec<(&str, usize)> = found.topics.iter().map(|t| (&t.name[..], t.partitions.len())).collect();
            assert_eq!(found, [("no", 0), ("t", 3)], "in the order in which they were named");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn searches_by_time_take_turns() {
    let mut cluster = with_topic(8);
    let value = "x".repeat(64 << 10);
    for partition in 0..8 {
        let produce = produce_request("t", partition, &[]);
        cluster.produce(&ProduceRequest { batch: batch(None, 1000, &[&value, &value]), ..produce });
    }
    cluster.await_same();
    let long = cluster.send(1, &by_time((0..8).cycle().take(16)));
    let short = cluster.send(1, &by_time(0..1));
    let mut rounds = 0;
    while !cluster.is_answered(long) {
        cluster.round();
        rounds += 1;
        assert!(rounds < 1000, "it does not end");
    }
    assert!(rounds >= 8, "each batch that is opened is the end of a turn: {rounds} rounds");
    assert!(cluster.is_answered(short));
    match cluster.outcome(long) {
        Some(Outcome::Done(Response::ListOffsets(found))) => {
            let found: Vec<_> = found.iter().map(|at| (at.partition, at.offset, at.timestamp_ms, at.error)).collect();
            let expected: Vec<_> = (0..8).cycle().take(16).map(|p| (p, 0, 1000, ErrorCode::None)).collect();
            assert_eq!(found, expected, "also what is asked for twice");
        }
        other => panic!("{other:?}"),
    }
}

/// The word of the leader lets all of them go at once.
#[test]
fn many_that_ask_about_a_large_topic_take_turns() {
    const PARTITIONS: u32 = 100;
    let mut cluster = with_topic(PARTITIONS);
    let describe = Request::DescribeTopic(DescribeTopicRequest { name: "t".into() });
    let mut asked: Vec<_> = (0..400).map(|_| cluster.send(1, &describe)).collect();
    let (mut rounds, mut most) = (0, 0);
    while !asked.is_empty() {
        cluster.round();
        let before = asked.len();
        asked.retain(|number| !cluster.is_answered(*number));
        most = most.max(before - asked.len());
        rounds += 1;
        assert!(rounds < 1000, "it does not end");
    }
    // Two times in a turn, and the last may be more than what is left.
    let allowed = 2 * (1 + MAX_ENTRIES / PARTITIONS as usize);
    assert!(most <= allowed, "{most} were answered in one turn, {allowed} may be");
}

/// Batches that were to be opened, as the broker said.
#[derive(Clone, Default)]
struct ToOpen(Rc<RefCell<Vec<(u64, Bytes, i64)>>>);

impl Opener for ToOpen {
    fn open(&self, ticket: u64, batch: Bytes, timestamp_ms: i64) {
        self.0.borrow_mut().push((ticket, batch, timestamp_ms));
    }
}

/// What is read from memory and what is read from a file; what becomes short when it is looked at, and what does not.
#[test]
fn a_long_batch_is_opened_elsewhere_and_a_short_one_at_once() {
    for cache in [64 << 20, 0] {
        let settings = Settings { tail_cache_bytes: cache, checkpoint_bytes: 1, ..Settings::default() };
        let mut cluster = Cluster::ready(settings);
        cluster.create_topic("t", 3);
        let value = "x".repeat(64 << 10);
        let produce = |partition, batch| ProduceRequest { batch, ..produce_request("t", partition, &[]) };
        cluster.produce(&produce(0, batch(None, 900, &[&value, &value])));
        cluster.produce(&produce(0, batch(None, 1000, &["a", "b"])));
        cluster.produce(&produce(1, batch(None, 1000, &[&value, &value])));
        let mut zeros = BatchBuilder::new(Codec::Zstd);
        (0..2).for_each(|_| zeros.append(1000, None, Some(&[0; 1 << 20]), &[]).unwrap());
        let zeros = zeros.build();
        assert!(zeros.len() < 4096, "{} bytes", zeros.len());
        cluster.produce(&produce(2, zeros));
        cluster.await_same();
        cluster.ticks(SECOND);
        let to_open = ToOpen::default();
        let broker = cluster.node_mut(1).broker_mut().expect("it runs");
        broker.set_opener(Box::new(to_open.clone()));
        let search = cluster.send(1, &by_time(0..3));
        cluster.settle();
        for partition in 1..3 {
            let asked = to_open.0.take();
            let [(ticket, batch, timestamp_ms)] = &asked[..] else { panic!("{} batches", asked.len()) };
            assert!(!cluster.is_answered(search));
            let broker = cluster.node_mut(1).broker_mut().expect("it runs");
            broker.opened(*ticket + 1000, (7, 7));
            broker.opened(*ticket, first_since(batch, *timestamp_ms));
            cluster.settle();
            assert_eq!(cluster.is_answered(search), partition == 2);
        }
        match cluster.outcome(search) {
            Some(Outcome::Done(Response::ListOffsets(found))) => {
                let found: Vec<(u64, i64)> = found.iter().map(|at| (at.offset, at.timestamp_ms)).collect();
                assert_eq!(found, [(2, 1000), (0, 1000), (0, 1000)]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_a_client_waits_for_ends_with_it() {
    let mut cluster = with_topic(1);
    cluster.produce(&produce_request("t", 0, &["a"]));
    cluster.await_same();
    let poll = cluster.send(1, &fetch_request("t", &[(0, 1)], 10_000, 1));
    cluster.settle();
    cluster.client_gone(1);
    cluster.produce(&produce_request("t", 0, &["b"]));
    cluster.ticks(20 * SECOND);
    assert!(!cluster.is_answered(poll), "nobody is there to take it");

    let search = cluster.send(2, &by_time(0..1));
    cluster.client_gone(2);
    cluster.ticks(SECOND);
    assert!(!cluster.is_answered(search));
    // The next one is served as ever.
    assert_eq!(cluster.list_offset(2, "t", 0, OffsetSpec::Latest).0, 2);
}

#[test]
fn a_search_whose_disk_does_not_answer_ends_in_time() {
    let mut cluster = Cluster::ready(Settings { tail_cache_bytes: 0, checkpoint_bytes: 1, ..Settings::default() });
    cluster.create_topic("t", 1);
    for _ in 0..20 {
        let value = "x".repeat(1000);
        cluster.produce(&ProduceRequest { batch: batch(None, 1000, &[&value]), ..produce_request("t", 0, &[]) });
    }
    cluster.await_same();
    cluster.ticks(SECOND);
    let node = cluster.leader_of(GroupId(1));
    cluster.set_disk_order(|id| if id == node { Order::Held } else { Order::Immediate });
    let search = cluster.send(node, &by_time(0..1));
    cluster.ticks(31 * SECOND);
    match cluster.outcome(search) {
        Some(Outcome::Refused(error)) => assert_eq!(error.code, ErrorCode::Timeout, "{}", error.message),
        other => panic!("{other:?}"),
    }
}
