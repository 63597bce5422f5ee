//! The consumer against brokers that hang up, hand over, lag behind and send damaged records.

mod support;

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use lnc_client::{Client, Codec, Consumer, Error, ErrorCode, OnOutOfRange, Position, ReadFrom, Start};
use lnc_protocol::ErrorReply;
use lnc_protocol::batch::BatchBuilder;
use lnc_protocol::message::Request;
use support::{Action, Chance, Cluster};
use tokio::time::timeout;

fn batch(codec: Codec, numbers: std::ops::Range<u64>) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    for number in numbers {
        let value = number.to_string();
        builder.append(1000 + number as i64, None, Some(value.as_bytes()), &[]).unwrap();
    }
    builder.build()
}

/// Stores the numbers below `count` in batches of `size`, with every codec in turn.
fn fill(cluster: &Cluster, partition: u32, count: u64, size: u64) {
    for (index, start) in (0..count).step_by(size as usize).enumerate() {
        cluster.append(partition, batch(Codec::ALL[index % 3], start..(start + size).min(count)));
    }
}

async fn next(consumer: &mut Consumer) -> lnc_client::Result<lnc_client::ConsumedRecord> {
    timeout(Duration::from_secs(10), consumer.next()).await.expect("an item in time").expect("an item")
}

/// Reads the records at `offsets` and checks that they hold their own offsets.
async fn expect(consumer: &mut Consumer, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        let record = next(consumer).await.unwrap();
        assert_eq!(record.offset, offset);
        assert_eq!(record.value.unwrap(), offset.to_string());
        assert_eq!(consumer.position(record.partition), Some(offset + 1));
    }
}

async fn from(client: &Client, start: Start) -> Consumer {
    client.consumer("t").start(start).max_wait(Duration::from_millis(100)).build().await.unwrap()
}

fn is_fetch(request: &Request) -> bool {
    matches!(request, Request::Fetch(_))
}

#[tokio::test]
async fn every_start_is_found_and_new_records_follow() {
    let cluster = Cluster::start(3, 1).await;
    fill(&cluster, 0, 100, 7);
    let client = cluster.client().await;
    for (start, first) in [
        (Start::Earliest, 0),
        (Start::Offset(0), 0),
        (Start::Offset(45), 45),
        (Start::Timestamp(1060), 60),
        (Start::Timestamp(0), 0),
    ] {
        expect(&mut from(&client, start).await, first..100).await;
    }
    let mut latest = from(&client, Start::Latest).await;
    assert_eq!(latest.position(0), Some(100));
    let mut late = from(&client, Start::Timestamp(9999)).await;
    cluster.append(0, batch(Codec::None, 100..110));
    expect(&mut latest, 100..110).await;
    expect(&mut late, 100..110).await;
    assert_eq!(latest.high_watermark(0), Some(110));
}

/// As in a `select!` whose other branch wins.
#[tokio::test]
async fn a_wait_that_is_given_up_loses_no_record() {
    let cluster = Cluster::start(1, 1).await;
    let mut consumer = from(&cluster.client().await, Start::Latest).await;
    let (mut written, mut read, mut waits) = (0, 0, 0);
    while read < 100 {
        let wait = Duration::from_micros(100);
        let records = match waits % 2 {
            0 => timeout(wait, consumer.next()).await.map(|record| vec![record.unwrap().unwrap()]),
            _ => timeout(wait, consumer.next_batch()).await.map(|batch| batch.unwrap().unwrap().records),
        };
        let Ok(records) = records else {
            waits += 1;
            // Only now is there something to read.
            if read == written {
                cluster.append(0, batch(Codec::ALL[waits % 3], written..written + 5));
                written += 5;
            }
            continue;
        };
        for record in records {
            assert_eq!(record.value.unwrap(), read.to_string());
            read += 1;
        }
        assert_eq!(consumer.position(0), Some(read));
    }
    assert!(waits >= 20, "{waits}");
}

#[tokio::test]
async fn broken_connections_and_new_leaders_neither_repeat_nor_skip() {
    for seed in 0..3 {
        let cluster = Cluster::start(3, 1).await;
        fill(&cluster, 0, 400, 5);
        let client = cluster.client().await;
        let mut chance = Chance(seed);
        cluster.hook(move |request| {
            if !is_fetch(request.request) {
                return Action::Serve;
            }
            match chance.below(10) {
                0 => Action::Drop,
                1 => Action::Fail(ErrorReply::from(ErrorCode::NotReady)),
                2 => Action::Fail(ErrorReply::from(ErrorCode::Overloaded).with_retry_after_ms(3)),
                _ => Action::Serve,
            }
        });
        let mut consumer = from(&client, Start::Earliest).await;
        for part in 0..10 {
            expect(&mut consumer, part * 40..part * 40 + 40).await;
            cluster.lead(0, part % 3 + 1);
            cluster.drop_connections();
        }
    }
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_left_once_another_leads() {
    let cluster = Cluster::start(3, 1).await;
    fill(&cluster, 0, 20, 5);
    let client = cluster.builder().request_timeout(Duration::from_secs(60)).build().await.unwrap();
    let mut consumer = from(&client, Start::Earliest).await;
    expect(&mut consumer, 0..20).await;
    // Stopped, not dead: its connections stay open.
    cluster.hook(|request| if request.node == 1 { Action::Hang } else { Action::Serve });
    cluster.lead(0, 2);
    cluster.append(0, batch(Codec::None, 20..30));
    expect(&mut consumer, 20..30).await;
}

/// To find out who cannot be reached may take longer than an answer is waited for: the broker that is found in the end has
/// not been asked yet by then.
#[tokio::test]
async fn brokers_that_cannot_be_reached_take_no_time_from_the_one_that_can() {
    let cluster = Cluster::start(3, 1).await;
    fill(&cluster, 0, 20, 5);
    let client = Client::builder()
        .endpoints([cluster.address(2)])
        .request_timeout(Duration::from_millis(1500))
        .connect_timeout(Duration::from_millis(700))
        .build()
        .await
        .unwrap();
    let mut consumer =
        client.consumer("t").start(Start::Earliest).max_wait(Duration::from_millis(10)).build().await.unwrap();
    cluster.hook(|request| if request.node == 2 { Action::Serve } else { Action::Hang });
    cluster.drop_connections();
    let mut failures = 0;
    let first = loop {
        match next(&mut consumer).await {
            Ok(record) => break record,
            Err(error) => assert!(error.is_retriable(), "{error}"),
        }
        failures += 1;
        assert!(failures < 3, "nothing was read from the broker that answers");
    };
    assert_eq!(first.offset, 0);
}

#[tokio::test]
async fn a_seek_drops_what_was_fetched_ahead() {
    let cluster = Cluster::start(1, 2).await;
    fill(&cluster, 0, 100, 5);
    let client = cluster.client().await;
    let mut consumer = client.consumer("t").partitions([0]).start(Start::Earliest).build().await.unwrap();
    expect(&mut consumer, 0..12).await;
    consumer.seek(0, 83).unwrap();
    assert_eq!(consumer.position(0), Some(83));
    expect(&mut consumer, 83..100).await;
    consumer.seek(0, 3).unwrap();
    expect(&mut consumer, 3..20).await;
    consumer.seek_to_timestamp(1050).await.unwrap();
    expect(&mut consumer, 50..60).await;
    let error = consumer.seek(1, 0).unwrap_err();
    assert!(matches!(error, Error::NoSuchPartition { partition: 1, .. }), "{error}");
}

#[tokio::test]
async fn batches_and_single_records_can_be_mixed() {
    let cluster = Cluster::start(1, 1).await;
    fill(&cluster, 0, 30, 10);
    let mut consumer = from(&cluster.client().await, Start::Offset(4)).await;
    expect(&mut consumer, 4..6).await;
    let rest = consumer.next_batch().await.unwrap().unwrap();
    let offsets: Vec<_> = rest.records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, [6, 7, 8, 9]);
    assert_eq!(consumer.position(0), Some(10));
    assert_eq!(consumer.next_batch().await.unwrap().unwrap().records.len(), 10);
    let mut stream = Box::pin(consumer);
    let record = std::future::poll_fn(|cx| Stream::poll_next(Pin::new(&mut stream), cx)).await;
    assert_eq!(record.unwrap().unwrap().offset, 20);
}

#[tokio::test]
async fn an_offset_out_of_range_is_reported_with_the_range() {
    let cluster = Cluster::start(1, 1).await;
    fill(&cluster, 0, 50, 10);
    cluster.retain_from(0, 20);
    let client = cluster.client().await;
    for asked in [5, 51] {
        let mut consumer = from(&client, Start::Offset(asked)).await;
        let error = next(&mut consumer).await.unwrap_err();
        assert!(
            matches!(error, Error::OffsetOutOfRange { offset, earliest: 20, latest: 50, .. } if offset == asked),
            "{error}"
        );
        assert!(consumer.next().await.is_none(), "no partition is left to read");
        consumer.seek(0, 20).unwrap();
        expect(&mut consumer, 20..50).await;
    }
    for (action, first) in [(OnOutOfRange::Earliest, 20), (OnOutOfRange::Latest, 50)] {
        let builder = client.consumer("t").start(Start::Offset(5)).on_out_of_range(action);
        let mut consumer = builder.build().await.unwrap();
        if action == OnOutOfRange::Latest {
            // Wait until it has moved to the end: only then does the batch count as new.
            while consumer.high_watermark(0).is_none() {
                tokio::task::yield_now().await;
            }
            cluster.append(0, batch(Codec::None, 50..60));
        }
        expect(&mut consumer, first..first + 10).await;
    }
}

#[tokio::test]
async fn a_replica_that_lags_behind_does_not_send_the_consumer_back() {
    let cluster = Cluster::start(1, 1).await;
    fill(&cluster, 0, 10, 10);
    let client = cluster.client().await;
    let mut chance = Chance(1);
    cluster.hook(move |request| match request.request {
        // What a replica says that holds nothing yet.
        Request::Fetch(fetch) if fetch.partitions[0].offset > 0 && chance.below(2) == 0 => {
            let mut fetched = lnc_protocol::message::FetchedPartition {
                topic: "t".into(),
                partition: 0,
                error: ErrorCode::OffsetOutOfRange,
                message: String::new(),
                log_start_offset: 0,
                high_watermark: 0,
                records: lnc_protocol::message::Records::new(),
            };
            fetched.message = "too far".into();
            Action::Reply(lnc_protocol::Response::Fetch(vec![fetched]))
        }
        _ => Action::Serve,
    });
    let builder = client.consumer("t").start(Start::Earliest).on_out_of_range(OnOutOfRange::Earliest);
    let mut consumer = builder.max_wait(Duration::from_millis(5)).build().await.unwrap();
    for part in 1..5 {
        expect(&mut consumer, (part - 1) * 10..part * 10).await;
        cluster.append(0, batch(Codec::None, part * 10..part * 10 + 10));
    }
}

#[tokio::test]
async fn damaged_records_are_reported_and_never_handed_out() {
    let cluster = Cluster::start(1, 1).await;
    fill(&cluster, 0, 30, 10);
    cluster.damage(0, 1);
    let mut consumer = from(&cluster.client().await, Start::Earliest).await;
    expect(&mut consumer, 0..10).await;
    let error = next(&mut consumer).await.unwrap_err();
    assert!(matches!(error, Error::DamagedBatch { partition: 0, offset: 10, .. }), "{error}");
    assert!(!error.is_retriable());
    assert!(consumer.next().await.is_none());
    consumer.seek(0, 20).unwrap();
    expect(&mut consumer, 20..30).await;
}

#[tokio::test]
async fn records_with_a_gap_are_refused() {
    let cluster = Cluster::start(1, 1).await;
    fill(&cluster, 0, 30, 10);
    cluster.remove(0, 1);
    let mut consumer = from(&cluster.client().await, Start::Earliest).await;
    let error = next(&mut consumer).await.unwrap_err();
    assert!(matches!(&error, Error::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("from offset 20 where 10 comes next"), "{error}");
}

#[tokio::test]
async fn nonsense_and_silence_are_errors_and_the_consumer_recovers() {
    let cluster = Cluster::start(1, 1).await;
    fill(&cluster, 0, 10, 10);
    let client = cluster.builder().request_timeout(Duration::from_millis(90)).build().await.unwrap();
    cluster.hook(|request| match request.request {
        Request::Fetch(_) => Action::Garbage(Bytes::from_static(b"\x00\x01garbage")),
        _ => Action::Serve,
    });
    let mut consumer =
        client.consumer("t").start(Start::Earliest).max_wait(Duration::from_millis(10)).build().await.unwrap();
    let error = next(&mut consumer).await.unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    cluster.hook(|request| if is_fetch(request.request) { Action::Hang } else { Action::Serve });
    let error = loop {
        match next(&mut consumer).await.unwrap_err() {
            Error::Protocol { .. } => {}
            error => break error,
        }
    };
    assert!(matches!(error, Error::Stalled { .. }) && error.is_retriable(), "{error}");
    cluster.hook(|_| Action::Serve);
    loop {
        match next(&mut consumer).await {
            Ok(record) => {
                assert_eq!(record.offset, 0);
                break;
            }
            Err(error) => assert!(error.is_retriable(), "{error}"),
        }
    }
    expect(&mut consumer, 1..10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_partitions_on_several_brokers_are_read_together() {
    let cluster = Cluster::start(3, 9).await;
    for partition in 0..9 {
        cluster.lead(partition, u64::from(partition % 3) + 1);
        fill(&cluster, partition, 50, 6);
    }
    let client = cluster.client().await;
    for read_from in [ReadFrom::Leader, ReadFrom::Any] {
        let builder = client.consumer("t").start(Start::Earliest).read_from(read_from);
        // So little room that fetching has to wait for reading.
        let mut consumer = builder.prefetch_bytes(900).build().await.unwrap();
        let mut expected = [0; 9];
        while expected != [50; 9] {
            let record = next(&mut consumer).await.unwrap();
            assert_eq!(record.offset, expected[record.partition as usize]);
            expected[record.partition as usize] += 1;
        }
    }
}

#[tokio::test]
async fn a_topic_that_goes_away_ends_the_stream() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let mut consumer = from(&client, Start::Earliest).await;
    client.delete_topic("t").await.unwrap();
    let error = next(&mut consumer).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    assert!(consumer.next().await.is_none());
}

/// An error about where a reader was says nothing about where it went.
#[tokio::test]
async fn a_seek_drops_what_went_wrong_before_it() {
    let cluster = Cluster::start(1, 2).await;
    fill(&cluster, 0, 20, 5);
    fill(&cluster, 1, 20, 5);
    let client = cluster.client().await;
    let mut consumer = from(&client, Start::Offset(1000)).await;
    // Once one partition has failed and the other too, both errors wait; the first one is taken.
    let Error::OffsetOutOfRange { partition: first, .. } = next(&mut consumer).await.unwrap_err() else { panic!() };
    let Error::OffsetOutOfRange { partition: second, .. } = next(&mut consumer).await.unwrap_err() else { panic!() };
    for partition in [first, second] {
        consumer.seek(partition, 2000).unwrap();
    }
    let seen = next(&mut consumer).await.unwrap_err();
    assert!(matches!(seen, Error::OffsetOutOfRange { offset: 2000, .. }), "{seen}");
    let Error::OffsetOutOfRange { partition, .. } = seen else { panic!() };
    // The other one's error has come with the same answer, or is about to: after the seek it is not given.
    let other = 1 - partition;
    consumer.seek(other, 5).unwrap();
    let record = next(&mut consumer).await.unwrap();
    assert_eq!((record.partition, record.offset), (other, 5));
}

/// Offsets that were stored are those of one topic, not of its name.
#[tokio::test]
async fn positions_are_those_of_one_topic_and_not_of_its_name() {
    let cluster = Cluster::start(1, 3).await;
    for partition in 0..3 {
        fill(&cluster, partition, 20, 5);
    }
    let client = cluster.client().await;
    let mut consumer = client.consumer("t").partitions([0, 1]).start(Start::Earliest).build().await.unwrap();
    for _ in 0..15 {
        next(&mut consumer).await.unwrap();
    }
    let positions = consumer.positions();
    assert_eq!(positions.iter().map(|position| position.offset).sum::<u64>(), 15);
    let resumed = client.consumer("t").positions(positions.clone()).build().await.unwrap();
    assert_eq!(resumed.positions(), positions);
    let more = client.consumer("t").positions(positions.clone()).partitions([1, 2]).start(Start::Earliest);
    let more = more.build().await.unwrap();
    assert_eq!((more.position(0), more.position(2)), (None, Some(0)));
    assert_eq!(more.position(1), Some(positions[1].offset));
    let elsewhere = positions.iter().map(|position| Position { cluster_id: position.cluster_id + 1, ..*position });
    let error = client.consumer("t").positions(elsewhere).build().await.map(drop).unwrap_err();
    assert!(matches!(error, Error::ForeignPositions { .. }), "{error}");
    cluster.make_again("t");
    let client = cluster.client().await;
    let error = client.consumer("t").positions(positions).build().await.map(drop).unwrap_err();
    assert!(matches!(error, Error::OtherTopic { .. }), "{error}");
}

/// Where any replica will do, those that are gone are passed over, whichever partition it is.
#[tokio::test]
async fn a_consumer_of_any_replica_finds_the_one_that_is_left() {
    let cluster = Cluster::start(5, 12).await;
    (0..12).for_each(|partition| fill(&cluster, partition, 5, 5));
    let client = cluster.client().await;
    client.metadata(Some(&["t"])).await.unwrap();
    cluster.hook(|request| if request.node == 3 { Action::Serve } else { Action::Drop });
    cluster.drop_connections();
    let consumer = client.consumer("t").start(Start::Offset(0)).read_from(ReadFrom::Any);
    let mut consumer = consumer.max_wait(Duration::from_millis(100)).build().await.unwrap();
    let mut read = std::collections::BTreeSet::new();
    while read.len() < 60 {
        let record = next(&mut consumer).await.unwrap();
        assert!(read.insert((record.partition, record.offset)));
    }
}
