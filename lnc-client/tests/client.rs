//! Connections, topics, and how the client deals with failing brokers.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use lnc_client::{Client, ConnectOptions, Connection, Error, ErrorCode, OffsetSpec, Record, Start};
use lnc_protocol::ErrorReply;
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{DescribeTopicRequest, HelloResponse, Opcode, Reply, Request, Response, encode_reply};
use support::{Action, Cluster};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

async fn connect(cluster: &Cluster) -> Connection {
    Connection::connect(cluster.address(1), &ConnectOptions::default()).await.unwrap()
}

#[tokio::test]
async fn requests_are_pipelined_and_answers_find_their_own() {
    let cluster = Cluster::start(1, 1).await;
    let connection = connect(&cluster).await;
    assert_eq!(connection.hello().node_id, 1);
    let describe = Request::DescribeTopic(DescribeTopicRequest { name: "t".into() });
    // The futures are awaited in reverse, and some not at all.
    let mut pending: Vec<_> = (0..300)
        .map(|number| connection.submit(if number % 3 == 0 { &describe } else { &Request::Ping }, Flags::NONE))
        .collect();
    pending.truncate(250);
    while let Some(reply) = pending.pop() {
        let is_describe = pending.len() % 3 == 0;
        match reply.await.unwrap().result.unwrap() {
            Response::DescribeTopic(_) => assert!(is_describe),
            Response::Pong => assert!(!is_describe),
            other => panic!("{other:?}"),
        }
    }
    assert!(connection.request(&Request::Ping).await.unwrap().result.is_ok());
}

#[tokio::test]
async fn the_end_of_a_connection_reaches_everyone_who_waits() {
    let cluster = Cluster::start(1, 1).await;
    cluster.hook(|request| if *request.request == Request::Ping { Action::Hang } else { Action::Serve });
    let connection = connect(&cluster).await;
    let waiting: Vec<_> = (0..10).map(|_| connection.submit(&Request::Ping, Flags::NONE)).collect();
    tokio::task::yield_now().await;
    cluster.drop_connections();
    for reply in waiting {
        let error = timeout(Duration::from_secs(5), reply).await.unwrap().unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error}");
    }
    assert!(!connection.is_open());
    assert!(connection.request(&Request::Ping).await.is_err());
}

#[tokio::test]
async fn answers_that_nobody_asked_for_end_the_connection() {
    let mut stray = bytes::BytesMut::new();
    lnc_protocol::encode_reply(&mut stray, 2u8, 0xDEAD_BEEF, &Response::Pong.into());
    let mut echoed = bytes::BytesMut::new();
    lnc_protocol::encode_request(&mut echoed, Flags::NONE, 1, &Request::Ping);
    let mut huge = echoed.clone();
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    for garbage in [stray.freeze(), echoed.freeze(), huge.freeze()] {
        let cluster = Cluster::start(1, 1).await;
        let connection = connect(&cluster).await;
        cluster.hook(move |_| Action::Garbage(garbage.clone()));
        let reply = timeout(Duration::from_secs(5), connection.request(&Request::Ping)).await.unwrap();
        let error = reply.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        assert!(!error.is_retriable());
    }
}

#[tokio::test]
async fn a_frame_damaged_on_its_way_is_a_lost_connection() {
    let cluster = Cluster::start(1, 1).await;
    let connection = connect(&cluster).await;
    let mut damaged = bytes::BytesMut::new();
    lnc_protocol::encode_reply(&mut damaged, 2u8, 0, &Response::Pong.into());
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = damaged.freeze();
    cluster.hook(move |_| Action::Garbage(damaged.clone()));
    let error = connection.request(&Request::Ping).await.unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }) && error.is_retriable(), "{error}");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_not_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = ConnectOptions { timeout: Duration::from_millis(50), ..ConnectOptions::default() };
    let error = Connection::connect(&address, &options).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    let endpoint = address.clone();
    let start = Instant::now();
    let builder = Client::builder().endpoints([endpoint]).connect_timeout(Duration::from_millis(50));
    let error = builder.request_timeout(Duration::from_millis(900)).build().await.unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(error.to_string().contains(&address), "{error}");
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn one_endpoint_that_works_is_enough() {
    let cluster = Cluster::start(1, 1).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let client = Client::builder().endpoints([closed, cluster.address(1).to_owned()]).build().await.unwrap();
    client.ping().await.unwrap();
    assert_eq!(client.metadata(None).await.unwrap().topics.len(), 1);
}

/// An address at which nobody listens.
async fn dead_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn a_refusal_is_final_only_if_all_refuse_and_it_is_asked_for() {
    let long = Duration::from_secs(3600);
    let impatient = || Client::builder().request_timeout(long).refusal_is_final(true);
    let error = impatient().endpoints([dead_address().await, dead_address().await]).build().await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    let cluster = Cluster::start(1, 1).await;
    impatient().endpoints([dead_address().await, cluster.address(1).to_string()]).build().await.unwrap();
    let patient = Client::builder().request_timeout(Duration::from_millis(50)).endpoints([dead_address().await]);
    assert!(matches!(patient.build().await, Err(Error::DeadlineExceeded { .. })));
}

#[tokio::test]
async fn topics_are_created_once_even_if_the_answer_is_lost() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let lose_first = |cluster: &Cluster| {
        let mut is_first = true;
        cluster.hook(move |request| {
            let concerns = matches!(request.request, Request::CreateTopic(_) | Request::DeleteTopic(_));
            if concerns && std::mem::take(&mut is_first) { Action::ServeThenDrop } else { Action::Serve }
        });
    };
    lose_first(&cluster);
    assert_eq!(client.create_topic("new", 3).await.unwrap().partitions.len(), 3);
    let error = client.create_topic("new", 3).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TopicExists));
    assert_eq!(client.ensure_topic("new", 5).await.unwrap().partitions.len(), 3);
    lose_first(&cluster);
    client.delete_topic("new").await.unwrap();
    let error = client.delete_topic("new").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    assert!(error.to_string().contains("delete topic (new)"), "{error}");
}

#[tokio::test]
async fn offsets_come_from_the_leader() {
    let cluster = Cluster::start(3, 3).await;
    let client = cluster.client().await;
    for partition in 0..3 {
        cluster.lead(partition, u64::from(partition) + 1);
        let mut batch = lnc_protocol::BatchBuilder::new(lnc_client::Codec::None);
        (0..=partition).for_each(|_| batch.append(5, None, None, &[]).unwrap());
        cluster.append(partition, batch.build());
    }
    let latest = client.list_offsets("t", (0..3).map(|partition| (partition, OffsetSpec::Latest))).await.unwrap();
    let offsets: Vec<_> = latest.iter().map(|(partition, listed)| (*partition, listed.offset)).collect();
    assert_eq!(offsets, [(0, 1), (1, 2), (2, 3)]);
    let listed = client.list_offset("t", 2, OffsetSpec::Timestamp(6)).await.unwrap();
    assert_eq!((listed.offset, listed.timestamp_ms), (3, None));
    let error = client.list_offset("t", 9, OffsetSpec::Latest).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownPartition));
}

#[tokio::test]
async fn a_request_that_hangs_is_tried_elsewhere() {
    let cluster = Cluster::start(2, 1).await;
    let client = cluster.builder().request_timeout(Duration::from_millis(900)).build().await.unwrap();
    // What a broker does that forwards to a leader which has stopped.
    cluster.hook(|request| match request.request {
        Request::CreateTopic(_) if request.node == 1 => Action::Hang,
        _ => Action::Serve,
    });
    assert_eq!(client.create_topic("new", 1).await.unwrap().name, "new");
}

#[tokio::test]
async fn a_broker_that_is_stopped_is_passed_over() {
    let cluster = Cluster::start(3, 1).await;
    let builder = cluster.builder().request_timeout(Duration::from_millis(1500));
    let client = builder.connect_timeout(Duration::from_secs(60)).build().await.unwrap();
    // Node 2 takes connections and says nothing; node 1 hangs on this request only.
    cluster.hook(|request| match request.request {
        _ if request.node == 2 => Action::Hang,
        Request::CreateTopic(_) if request.node == 1 => Action::Hang,
        _ => Action::Serve,
    });
    assert_eq!(client.create_topic("new", 1).await.unwrap().name, "new");
}

/// Silence says nothing of the reason.
#[tokio::test]
async fn what_a_broker_has_said_counts_more_than_silence_after_it() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.builder().request_timeout(Duration::from_millis(400)).build().await.unwrap();
    let mut asked = 0;
    cluster.hook(move |_| {
        asked += 1;
        match asked {
            1 => Action::Fail(ErrorReply::new(ErrorCode::LeaderUnknown, "no majority")),
            _ => Action::Hang,
        }
    });
    let error = client.create_topic("new", 1).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::LeaderUnknown), "{error}");
    assert!(error.to_string().contains("no majority"), "{error}");
}

#[tokio::test]
async fn brokers_that_point_at_each_other_are_not_asked_without_pause() {
    let cluster = Cluster::start(2, 1).await;
    let client = cluster.builder().request_timeout(Duration::from_millis(300)).build().await.unwrap();
    client.list_offset("t", 0, OffsetSpec::Latest).await.unwrap();
    let addresses = [cluster.address(1).to_owned(), cluster.address(2).to_owned()];
    let asked = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = asked.clone();
    cluster.hook(move |request| match request.request {
        Request::ListOffsets(_) => {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let other = 3 - request.node;
            let reply = ErrorReply::from(ErrorCode::NotLeader);
            Action::Fail(reply.with_leader(other, &addresses[other as usize - 1]))
        }
        _ => Action::Serve,
    });
    let error = client.list_offset("t", 0, OffsetSpec::Latest).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotLeader));
    let asked = asked.load(std::sync::atomic::Ordering::Relaxed);
    assert!((3..100).contains(&asked), "{asked} requests");
}

#[tokio::test]
async fn settings_are_checked() {
    for builder in [
        Client::builder(),
        Client::builder().endpoints(["localhost"]),
        Client::builder().endpoints(["localhost:1"]).request_timeout(Duration::ZERO),
    ] {
        assert!(matches!(builder.build().await, Err(Error::InvalidSetting { .. })));
    }
}

/// What a client knows of producers and topics is of no use in a cluster that was made anew on the same addresses.
#[tokio::test]
async fn a_cluster_made_anew_at_the_same_addresses_is_not_taken_for_the_old_one() {
    let cluster = Cluster::start(3, 1).await;
    let client = cluster.client().await;
    let producer = client.producer("t").build().await.unwrap();
    let mut consumer = client.consumer("t").start(Start::Earliest).build().await.unwrap();
    assert_eq!(producer.send(Record::new("a")).await.unwrap().offset, Some(0));
    assert_eq!(consumer.next().await.unwrap().unwrap().offset, 0);
    assert_eq!(client.cluster_id(), 1);
    cluster.begin_anew();
    let refused = |error: &Error| matches!(error, Error::OtherCluster { expected: 1, found: 2, .. });
    let error = producer.send(Record::new("b")).await.unwrap_err();
    assert!(refused(&error), "{error}");
    let error = loop {
        let error = consumer.next().await.unwrap().unwrap_err();
        // It may hear of the loss of its connection first.
        if !error.is_retriable() {
            break error;
        }
    };
    assert!(refused(&error), "{error}");
    let error = client.ping().await.unwrap_err();
    assert!(refused(&error), "{error}");
    let expecting = cluster.builder().cluster_id(1).build().await.map(drop).unwrap_err();
    assert!(refused(&expecting), "{expecting}");
    let new = cluster.client().await;
    assert_eq!(new.list_offset("t", 0, OffsetSpec::Latest).await.unwrap().offset, 0, "nothing has come into it");
    assert_eq!(new.cluster_id(), 2);
}

/// Brokers that take a connection and say nothing, like name servers that do, hold up nobody for long.
#[tokio::test]
async fn brokers_that_do_not_answer_are_tried_beside_one_another() {
    let cluster = Cluster::start(4, 1).await;
    cluster.hook(|request| if request.node == 4 { Action::Serve } else { Action::Hang });
    let client = Client::builder()
        .endpoints((1..=4).map(|node| cluster.address(node)))
        // Not time enough to try more than three, one after the other.
        .request_timeout(Duration::from_secs(6))
        .connect_timeout(Duration::from_secs(60))
        .build()
        .await
        .unwrap();
    client.ping().await.unwrap();
}

#[tokio::test]
async fn look_ups_that_fail_at_the_same_time_fail_together() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.builder().request_timeout(Duration::from_millis(900)).build().await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    cluster.hook(move |request| match request.request {
        Request::Metadata(_) => {
            count.fetch_add(1, Ordering::Relaxed);
            Action::Hang
        }
        _ => Action::Serve,
    });
    let mut questions = JoinSet::new();
    for number in 0..50 {
        let client = client.clone();
        questions.spawn(async move { client.list_offset(&format!("t{number}"), 0, OffsetSpec::Latest).await });
    }
    while let Some(answer) = questions.join_next().await {
        assert!(answer.unwrap().unwrap_err().is_retriable());
    }
    assert!(asked.load(Ordering::Relaxed) <= 8, "{asked:?} requests for 50 topics");
}

#[tokio::test]
async fn topics_that_do_not_exist_are_looked_up_together() {
    let cluster = Cluster::start(1, 1).await;
    let client = cluster.client().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    cluster.hook(move |request| {
        count.fetch_add(usize::from(matches!(request.request, Request::Metadata(_))), Ordering::Relaxed);
        Action::Serve
    });
    let mut questions = JoinSet::new();
    for number in 0..200 {
        let client = client.clone();
        questions.spawn(async move { client.list_offset(&format!("t{number}"), 0, OffsetSpec::Latest).await });
    }
    while let Some(answer) = questions.join_next().await {
        assert_eq!(answer.unwrap().unwrap_err().code(), Some(ErrorCode::UnknownTopic));
    }
    assert!(asked.load(Ordering::Relaxed) <= 8, "{asked:?} requests for 200 topics");
}

/// A broker that has too many connections says so without having read a request.
#[tokio::test]
async fn a_refusal_of_the_connection_is_told_as_the_broker_put_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let refuse = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut out = BytesMut::new();
        let error = ErrorReply::new(ErrorCode::Overloaded, "this node has 9 connections, which is its limit");
        encode_reply(&mut out, 0, 0, &Reply { result: Err(error) });
        stream.write_all(&out).await.unwrap();
        // Until the client has closed it.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let options = ConnectOptions::default();
    let (connected, ()) = tokio::join!(Connection::connect(&address, &options), refuse);
    let error = connected.map(drop).unwrap_err();
    assert_eq!((error.code(), error.is_retriable()), (Some(ErrorCode::Overloaded), true));
    assert!(error.to_string().contains("which is its limit"), "{error}");
}

/// On a connection in use, the same says nothing of what became of the requests under way; what was answered before it counts.
#[tokio::test]
async fn a_word_about_a_connection_in_use_is_the_loss_of_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serve = async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut received, mut requests) = (BytesMut::new(), Vec::new());
        while requests.len() < 3 {
            while let Some(frame) = lnc_protocol::frame::decode(&mut received, 1 << 20).unwrap() {
                requests.push(frame.header.correlation);
                if requests.len() == 1 {
                    let hello = Response::Hello(HelloResponse { version: 1, ..HelloResponse::default() });
                    let mut out = BytesMut::new();
                    encode_reply(&mut out, Opcode::Hello, requests[0], &hello.into());
                    stream.write_all(&out).await.unwrap();
                }
            }
            if requests.len() < 3 {
                assert!(stream.read_buf(&mut received).await.unwrap() > 0);
            }
        }
        let mut out = BytesMut::new();
        encode_reply(&mut out, Opcode::Ping, requests[1], &Response::Pong.into());
        let error = ErrorReply::new(ErrorCode::CorruptFrame, "a checksum is wrong");
        encode_reply(&mut out, 0, 0, &Reply { result: Err(error) });
        stream.write_all(&out).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let ask = async {
        let connection = Connection::connect(&address, &ConnectOptions::default()).await.unwrap();
        let first = connection.submit(&Request::Ping, Flags::NONE);
        let second = connection.submit(&Request::Ping, Flags::NONE);
        assert!(matches!(first.await.unwrap().result, Ok(Response::Pong)));
        let error = second.await.map(drop).unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }) && error.is_retriable(), "{error}");
        assert!(error.to_string().contains("a checksum is wrong"), "{error}");
    };
    tokio::join!(serve, ask);
}
