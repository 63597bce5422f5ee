//! The producer against brokers that refuse, forget to answer, hang up, hand over and talk nonsense.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use lnc_client::{Acks, Client, Codec, Error, ErrorCode, Producer, Record};
use lnc_protocol::ErrorReply;
use lnc_protocol::message::Request;
use support::{Action, Chance, Cluster};
use tokio::time::{Instant, timeout};

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn is_produce(request: &Request) -> bool {
    matches!(request, Request::Produce(_))
}

/// A producer of batches of a few records.
async fn small_batches(client: &Client) -> Producer {
    client.producer("t").linger(Duration::ZERO).max_batch_bytes(200).build().await.unwrap()
}

/// Hands in the numbers below `count` and checks that each is delivered at its own offset.
async fn produce_numbers(producer: &Producer, count: usize) {
    let mut deliveries = Vec::new();
    for number in 0..count {
        let record = Record::new(number.to_string()).partition(0);
        deliveries.push(producer.enqueue(record).await.unwrap());
    }
    for (number, delivery) in deliveries.into_iter().enumerate() {
        let delivery = timeout(Duration::from_secs(15), delivery).await.expect("delivered in time").unwrap();
        assert_eq!(delivery.offset, Some(number as u64));
    }
}

#[tokio::test]
async fn records_get_their_offsets_in_order() {
    let cluster = Cluster::start(1, 1).await;
    let producer = cluster.client().await.producer("t").build().await.unwrap();
    produce_numbers(&producer, 1000).await;
    assert_eq!(cluster.values(0), numbers(1000));
    assert!(cluster.batches(0) < 100, "records share batches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_codec_and_many_partitions_on_many_threads() {
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client().await;
    for codec in Codec::ALL {
        let producer = client.producer("t").compression(codec).build().await.unwrap();
        let tasks = (0..4u32).map(|task| {
            let producer = producer.clone();
            tokio::spawn(async move {
                for number in 0..200 {
                    let record = Record::new(format!("{task}:{number}")).header("n", "v").partition(task);
                    producer.enqueue(record).await.unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        producer.close().await.unwrap();
    }
    for partition in 0..4 {
        let expected: Vec<_> = (0..200).map(|number| format!("{partition}:{number}")).collect();
        assert_eq!(cluster.values(partition), [expected.clone(), expected.clone(), expected].concat());
    }
}

#[tokio::test]
async fn a_redirected_producer_goes_to_the_leader() {
    let cluster = Cluster::start(3, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    produce_numbers(&producer, 10).await;
    cluster.lead(0, 3);
    let nodes = Arc::new(Mutex::new(Vec::new()));
    let seen = nodes.clone();
    cluster.hook(move |request| {
        if is_produce(request.request) {
            seen.lock().unwrap().push(request.node);
        }
        Action::Serve
    });
    let delivery = producer.send(Record::new("10")).await.unwrap();
    assert_eq!(delivery.offset, Some(10));
    assert_eq!(*nodes.lock().unwrap(), [1, 3]);
}

#[tokio::test]
async fn faults_of_all_kinds_neither_lose_nor_duplicate_nor_reorder() {
    for seed in 0..4 {
        let cluster = Cluster::start(3, 1).await;
        let client = cluster.client().await;
        let producer = small_batches(&client).await;
        let mut chance = Chance(seed);
        cluster.hook(move |request| {
            if !is_produce(request.request) {
                return Action::Serve;
            }
            match chance.below(16) {
                0 => Action::Drop,
                1 => Action::ServeThenDrop,
                2 => Action::Fail(ErrorReply::from(ErrorCode::Overloaded)),
                3 => Action::ServeThenFail(ErrorReply::from(ErrorCode::Timeout)),
                4 => Action::Fail(ErrorReply::from(ErrorCode::LeaderUnknown)),
                _ => Action::Serve,
            }
        });
        produce_numbers(&producer, 200).await;
        assert_eq!(cluster.values(0), numbers(200), "seed {seed}");
    }
}

#[tokio::test]
async fn a_leader_that_changes_and_connections_that_break_go_unnoticed() {
    let cluster = Cluster::start(3, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    let sending = async {
        for number in 0..600 {
            producer.enqueue(Record::new(number.to_string())).await.unwrap();
            if number % 8 == 0 {
                tokio::task::yield_now().await;
            }
        }
        producer.flush().await.unwrap();
    };
    let disturbing = async {
        for round in 0..20 {
            tokio::time::sleep(Duration::from_millis(3)).await;
            cluster.lead(0, round % 3 + 1);
            cluster.drop_connections();
        }
    };
    tokio::join!(sending, disturbing);
    assert_eq!(cluster.values(0), numbers(600));
}

#[tokio::test]
async fn a_broker_that_never_answers_is_given_up_at_the_deadline() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.builder().request_timeout(Duration::from_millis(300)).build().await.unwrap();
    let producer = client.producer("t").delivery_timeout(Duration::from_millis(350)).build().await.unwrap();
    cluster.hook(|request| if is_produce(request.request) { Action::Hang } else { Action::Serve });
    let start = Instant::now();
    let error = producer.send(Record::new("x")).await.unwrap_err();
    assert!(matches!(&error, Error::DeadlineExceeded { last: Some(_), .. }), "{error}");
    assert!(error.is_retriable());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(350) && took < Duration::from_secs(3), "{took:?}");
    assert!(error.to_string().contains("produce (t/0)"), "{error}");
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_left_once_another_leads() {
    let cluster = Cluster::start(3, 1).await;
    let client = cluster.builder().request_timeout(Duration::from_secs(60)).build().await.unwrap();
    let producer = small_batches(&client).await;
    produce_numbers(&producer, 5).await;
    // Stopped, not dead: its connections stay open.
    cluster.hook(|request| if request.node == 1 { Action::Hang } else { Action::Serve });
    cluster.lead(0, 2);
    let start = Instant::now();
    for number in 5..10 {
        producer.enqueue(Record::new(number.to_string())).await.unwrap();
    }
    producer.flush().await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(cluster.values(0), numbers(10));
}

#[tokio::test]
async fn a_full_memory_holds_the_next_record_back() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = client
        .producer("t")
        .linger(Duration::from_secs(3600))
        .max_batch_bytes(500)
        .memory_bytes(1000)
        .build()
        .await
        .unwrap();
    let gate = Arc::new(Mutex::new(true));
    let closed = gate.clone();
    cluster.hook(move |request| {
        let is_held = is_produce(request.request) && *closed.lock().unwrap();
        if is_held { Action::Fail(ErrorReply::from(ErrorCode::Overloaded)) } else { Action::Serve }
    });
    let value = Bytes::from(vec![b'x'; 200]);
    let mut deliveries = Vec::new();
    for _ in 0..4 {
        deliveries.push(producer.enqueue(Record::new(value.clone())).await.unwrap());
    }
    let mut fifth = Box::pin(producer.enqueue(Record::new(value.clone())));
    assert!(timeout(Duration::from_millis(50), &mut fifth).await.is_err(), "there is no room for it");
    *gate.lock().unwrap() = false;
    deliveries.push(timeout(Duration::from_secs(5), fifth).await.expect("room was made").unwrap());
    producer.flush().await.unwrap();
    for (offset, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap().offset, Some(offset));
    }
}

#[tokio::test]
async fn what_is_given_up_is_handed_in_or_not_and_no_failure_is_lost() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let builder = client.producer("t").linger(Duration::ZERO).max_batch_bytes(500).memory_bytes(500);
    let producer = builder.delivery_timeout(Duration::from_millis(400)).build().await.unwrap();
    cluster.hook(|request| if is_produce(request.request) { Action::Hang } else { Action::Serve });
    let short = Duration::from_millis(20);
    let sent = timeout(short, producer.send(Record::new("a".repeat(200)))).await;
    assert!(sent.is_err(), "it is on its way");
    let held = timeout(short, producer.enqueue(Record::new("b".repeat(300)))).await;
    assert!(held.is_err(), "there is no room for it");
    assert!(timeout(short, producer.flush()).await.is_err(), "it waits for the first record");
    let error = producer.flush().await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    producer.flush().await.unwrap();
    cluster.hook(|_| Action::Serve);
    producer.send(Record::new("c")).await.unwrap();
    assert_eq!(cluster.values(0), ["c"], "what was not handed in is not sent");
}

#[tokio::test]
async fn a_refused_batch_fails_alone_and_the_rest_keeps_its_order() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    cluster.hook(|request| match request.request {
        Request::Produce(produce) if produce.batch.windows(6).any(|window| window == b"poison") => {
            Action::Fail(ErrorReply::from(ErrorCode::InvalidBatch))
        }
        _ => Action::Serve,
    });
    let mut deliveries = Vec::new();
    for number in 0..50 {
        let value = if number == 20 { "poison".repeat(40) } else { number.to_string() };
        deliveries.push(producer.enqueue(Record::new(value)).await.unwrap());
    }
    let mut refused = Vec::new();
    for (number, delivery) in deliveries.into_iter().enumerate() {
        match delivery.await {
            Ok(_) => {}
            Err(error) => {
                assert_eq!(error.code(), Some(ErrorCode::InvalidBatch));
                refused.push(number);
            }
        }
    }
    assert_eq!(refused, [20]);
    let expected: Vec<_> = (0..50).filter(|number| *number != 20).map(|number| number.to_string()).collect();
    assert_eq!(cluster.values(0), expected);
    assert_eq!(producer.flush().await.unwrap_err().code(), Some(ErrorCode::InvalidBatch));
    producer.flush().await.unwrap();
}

#[tokio::test]
async fn what_was_sent_behind_a_batch_of_unknown_fate_fails_with_it() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    cluster.hook(|request| match request.request {
        Request::Produce(_) => Action::ServeThenFail(ErrorReply::from(ErrorCode::Unknown)),
        _ => Action::Serve,
    });
    let first = producer.enqueue(Record::new("a".repeat(150))).await.unwrap();
    let second = producer.enqueue(Record::new("b".repeat(150))).await.unwrap();
    assert_eq!(first.await.unwrap_err().code(), Some(ErrorCode::Unknown));
    let error = second.await.unwrap_err();
    assert!(matches!(error, Error::EarlierBatchFailed { .. }), "{error}");
    cluster.hook(|_| Action::Serve);
    producer.send(Record::new("c")).await.unwrap();
    // Both were stored after all; sending the second again would have stored it twice.
    assert_eq!(cluster.values(0), ["a".repeat(150), "b".repeat(150), "c".into()]);
}

#[tokio::test]
async fn a_producer_that_was_forgotten_goes_on_under_a_new_id() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    producer.send(Record::new("0")).await.unwrap();
    let mut is_first = true;
    cluster.hook(move |request| {
        let fails = is_produce(request.request) && std::mem::take(&mut is_first);
        if fails { Action::Fail(ErrorReply::from(ErrorCode::UnknownProducer)) } else { Action::Serve }
    });
    producer.send(Record::new("1")).await.unwrap();
    producer.send(Record::new("2")).await.unwrap();
    assert_eq!(cluster.values(0), numbers(3));
}

#[tokio::test]
async fn one_that_was_forgotten_while_a_batch_was_in_doubt_fails_it() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    producer.send(Record::new("0")).await.unwrap();
    let mut answers = [ErrorCode::Timeout, ErrorCode::UnknownProducer].into_iter();
    cluster.hook(move |request| match is_produce(request.request).then(|| answers.next()).flatten() {
        Some(code) => Action::Fail(ErrorReply::from(code)),
        None => Action::Serve,
    });
    let error = producer.send(Record::new("in doubt")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownProducer));
    assert!(!error.is_retriable());
    producer.send(Record::new("1")).await.unwrap();
    assert_eq!(cluster.values(0), numbers(2));
}

#[tokio::test]
async fn nonsense_from_the_broker_is_an_error() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    cluster.hook(|request| match request.request {
        Request::Produce(_) => Action::Garbage(Bytes::from_static(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        _ => Action::Serve,
    });
    let error = timeout(Duration::from_secs(5), producer.send(Record::new("x"))).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("magic"), "{error}");
}

#[tokio::test]
async fn weaker_acknowledgements_do_without_a_producer_id() {
    let cluster = Cluster::start(1, 1).await;
    cluster.hook(|request| match request.request {
        Request::InitProducer => Action::Fail(ErrorReply::from(ErrorCode::Unauthorized)),
        _ => Action::Serve,
    });
    let client = cluster.client().await;
    for acks in [Acks::None, Acks::Leader] {
        client.producer("t").acks(acks).build().await.unwrap().send(Record::new("x")).await.unwrap();
    }
    let quorum = client.producer("t").build().await.unwrap();
    assert_eq!(quorum.send(Record::new("x")).await.unwrap_err().code(), Some(ErrorCode::Unauthorized));
}

#[tokio::test]
async fn keys_keep_to_their_partition_and_keyless_records_use_all() {
    let cluster = Cluster::start(1, 3).await;
    let producer = small_batches(&cluster.client().await).await;
    let mut seen = std::collections::BTreeMap::new();
    for number in 0..60 {
        let key = format!("key-{}", number % 10);
        let delivery = producer.send(Record::new("v").key(key.clone())).await.unwrap();
        assert_eq!(*seen.entry(key).or_insert(delivery.partition), delivery.partition);
    }
    let mut used = [false; 3];
    for _ in 0..9 {
        used[producer.send(Record::new("v")).await.unwrap().partition as usize] = true;
    }
    assert_eq!(used, [true; 3]);
    let error = producer.enqueue(Record::new("v").partition(3)).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchPartition { partition: 3, partitions: 3, .. }), "{error}");
}

#[tokio::test]
async fn limits_and_settings_are_checked_early() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = client.producer("t").build().await.unwrap();
    let error = producer.enqueue(Record::new(vec![0; 1 << 20])).await.unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { limit: 1_048_576, .. }), "{error}");
    for builder in [
        client.producer("t").max_in_flight(0),
        client.producer("t").max_in_flight(6),
        client.producer("t").memory_bytes(10),
        client.producer("t").delivery_timeout(Duration::ZERO),
    ] {
        let error = builder.build().await.map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }
    let error = client.producer("none").build().await.map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test]
async fn a_closed_producer_refuses_and_a_dropped_one_still_sends() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let producer = small_batches(&client).await;
    producer.enqueue(Record::new("0")).await.unwrap();
    producer.close().await.unwrap();
    assert!(matches!(producer.enqueue(Record::new("x")).await, Err(Error::Closed)));
    let producer = client.producer("t").linger(Duration::from_secs(3600)).build().await.unwrap();
    let delivery = producer.enqueue(Record::new("1")).await.unwrap();
    drop(producer);
    timeout(Duration::from_secs(5), delivery).await.expect("no need to linger").unwrap();
    assert_eq!(cluster.values(0), numbers(2));
}
