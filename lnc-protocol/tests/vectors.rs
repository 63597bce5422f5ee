//! The test vectors that `docs/LWP.md` refers to: each names a message and gives its exact bytes.
//!
//! A vector that changes is a change of the protocol. New ones are written by running this test with `LWP_VECTORS=write`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use lnc_protocol::message::*;
use lnc_protocol::{BatchBuilder, Codec, Flags, Limits, RecordBatch, batch, frame};
use lnc_protocol::{ErrorCode, ErrorReply, Opcode, Reply, Request, Response, TraceContext};

const CLUSTER_ID: u128 = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF;

type Vectors = BTreeMap<String, Bytes>;

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(file)
}

/// Lines of `name hex`, blank lines, and comments after `#`.
fn read(file: &str) -> Vectors {
    let text = fs::read_to_string(path(file)).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, hex) = line.split_once(' ').unwrap();
            let digits: Vec<_> = hex.chars().map(|digit| digit.to_digit(16).unwrap() as u8).collect();
            (name.to_owned(), digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
        })
        .collect()
}

/// Compares, or writes if asked to.
fn check(file: &str, intro: &str, vectors: &[(&str, Bytes)]) {
    if std::env::var_os("LWP_VECTORS").is_some_and(|value| value == "write") {
        let mut text = format!("# {intro}\n");
        for (name, bytes) in vectors {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            text.push_str(&format!("{name} {hex}\n"));
        }
        fs::write(path(file), text).unwrap();
    }
    let expected = read(file);
    let found: Vectors = vectors.iter().map(|(name, bytes)| (name.to_string(), bytes.clone())).collect();
    assert_eq!(found, expected, "{file}");
    assert_eq!(found.len(), vectors.len(), "{file}: a name is used twice");
}

fn one_batch() -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None).with_producer(5, 0, 12);
    builder.append(1_700_000_000_000, Some(b"k1"), Some(b"hello"), &[("trace", Some(b"7f"))]).unwrap();
    builder.append(1_700_000_000_005, None, Some(b"world"), &[]).unwrap();
    builder.build()
}

fn requests() -> Vec<(&'static str, Flags, Request)> {
    let none = Flags::NONE;
    let options = TopicOptions { max_age_ms: Some(604_800_000), max_bytes: None, segment_bytes: Some(1 << 26) };
    let hello =
        HelloRequest { min_version: 1, max_version: 1, client_name: "vectors".into(), features: 0, auth: Bytes::new() };
    let produce = ProduceRequest {
        acks: Acks::Quorum,
        timeout_ms: 30_000,
        topic: "orders".into(),
        topic_id: 9,
        partition: 2,
        batch: one_batch(),
    };
    let partition = |partition, offset| FetchPartition {
        topic: "orders".into(),
        topic_id: 0,
        partition,
        offset,
        max_bytes: 1 << 20,
    };
    let fetch = FetchRequest {
        max_wait_ms: 500,
        min_bytes: 1,
        max_bytes: 8 << 20,
        partitions: vec![partition(0, 0), partition(2, 1 << 33)],
    };
    let spec = |spec| ListOffsetsPartition { topic: "orders".into(), topic_id: 9, partition: 2, spec };
    let offsets = ListOffsetsRequest {
        partitions: vec![
            spec(OffsetSpec::Earliest),
            spec(OffsetSpec::Latest),
            spec(OffsetSpec::Timestamp(1_700_000_000_000)),
        ],
    };
    let create = CreateTopicRequest { name: "orders".into(), partitions: 3, options, timeout_ms: 10_000 };
    let change = ChangeMembersRequest {
        change: MemberChange::Add,
        node: 4,
        client_address: "n4:1992".into(),
        peer_address: "n4:1993".into(),
        http_address: "n4:1994".into(),
        replaces: Some(2),
        timeout_ms: 10_000,
    };
    let forget = ChangeMembersRequest {
        change: MemberChange::Forget,
        client_address: String::new(),
        peer_address: String::new(),
        http_address: String::new(),
        replaces: None,
        ..change.clone()
    };
    let delete = DeleteTopicRequest { name: "orders".into(), timeout_ms: 10_000 };
    let some = MetadataRequest { topics: Some(vec!["orders".into(), "a.b-c_d".into()]) };
    vec![
        ("hello", none, Request::Hello(hello)),
        ("ping", none, Request::Ping),
        ("metadata-all", none, Request::Metadata(MetadataRequest { topics: None })),
        ("metadata-some", none, Request::Metadata(some)),
        ("cluster-info", none, Request::ClusterInfo),
        ("change-members", none, Request::ChangeMembers(change)),
        ("forget-member", none, Request::ChangeMembers(forget)),
        ("create-topic", none, Request::CreateTopic(create)),
        ("delete-topic", none, Request::DeleteTopic(delete)),
        ("list-topics", none, Request::ListTopics),
        ("describe-topic", none, Request::DescribeTopic(DescribeTopicRequest { name: "orders".into() })),
        ("init-producer", none, Request::InitProducer),
        ("produce", Flags::NO_FORWARD, Request::Produce(produce.clone())),
        ("produce-forwarded", Flags::FORWARDED, Request::Produce(ProduceRequest { acks: Acks::Leader, ..produce })),
        ("fetch", none, Request::Fetch(fetch)),
        ("list-offsets", none, Request::ListOffsets(offsets)),
        ("formats", none, Request::Formats),
        ("raise-format", none, Request::RaiseFormat(RaiseFormatRequest { format: 2, timeout_ms: 10_000 })),
    ]
}

fn topic_description() -> TopicDescription {
    let partition = |partition, leader| PartitionDescription {
        partition,
        group: partition + 1,
        leader,
        log_start_offset: 100,
        high_watermark: 2_000,
        size_bytes: 65_536,
    };
    TopicDescription {
        name: "orders".into(),
        topic_id: 9,
        options: TopicOptions { max_age_ms: Some(604_800_000), max_bytes: None, segment_bytes: Some(1 << 26) },
        created_ms: 1_700_000_000_000,
        partitions: vec![partition(0, Some(1)), partition(1, None)],
    }
}

fn cluster_info() -> ClusterInfoResponse {
    let node = NodeStatus {
        id: 1,
        client_address: "n1:1992".into(),
        peer_address: "n1:1993".into(),
        http_address: "n1:1994".into(),
        connected: true,
        incarnation: 77,
        state: "serving".into(),
        member: 1 << 32 | 1,
        membership: "member".into(),
    };
    let peer =
        PeerProgress { member: 2, match_index: 41, next_index: 43, state: "replicate".into(), in_flight: 1, lag: 1 };
    let group = GroupStatus {
        group: 1,
        role: "leader".into(),
        leader: Some(1),
        term: 4,
        commit_index: 41,
        applied_index: 40,
        durable_index: 42,
        last_index: 42,
        first_index: 10,
        peers: vec![peer],
        voters: vec![1 << 32 | 1, 2],
        outgoing: vec![1, 2],
        learners: vec![4],
        lacks: "3 entries".into(),
    };
    let transfer = TransferStatus { group: 1, from: 2, bytes_done: 4096, bytes_total: 65_536 };
    ClusterInfoResponse {
        cluster_id: CLUSTER_ID,
        node_id: 1,
        nodes: vec![node],
        groups: vec![group],
        transfers: vec![transfer],
    }
}

fn metadata() -> MetadataResponse {
    let partition = PartitionMetadata { partition: 0, group: 1, leader: Some(1), leader_term: 4 };
    let known = TopicMetadata {
        name: "orders".into(),
        topic_id: 9,
        error: ErrorCode::None,
        partitions: vec![partition.clone(), PartitionMetadata { partition: 1, leader: None, ..partition }],
    };
    let unknown = TopicMetadata { name: "nope".into(), error: ErrorCode::UnknownTopic, ..Default::default() };
    let node = NodeInfo { id: 1, client_address: "n1:1992".into(), alive: true };
    MetadataResponse { cluster_id: CLUSTER_ID, nodes: vec![node], topics: vec![known, unknown] }
}

fn data_replies() -> Vec<(&'static str, Opcode, Reply)> {
    let produced = ProduceResponse {
        topic_id: 9,
        partition: 2,
        base_offset: Some(1_234),
        log_start_offset: 100,
        append_time_ms: 1_700_000_000_009,
        duplicate: false,
    };
    let stored = [&batch::stamped_prefix(&one_batch(), 1_234, 4)[..], &one_batch()[16..]].concat();
    let found = FetchedPartition {
        topic: "orders".into(),
        partition: 2,
        error: ErrorCode::None,
        message: String::new(),
        log_start_offset: 100,
        high_watermark: 1_236,
        records: Bytes::from(stored).into(),
    };
    let out_of_range = FetchedPartition {
        error: ErrorCode::OffsetOutOfRange,
        message: "offset 7 is below the log start 100".into(),
        records: Records::new(),
        ..found.clone()
    };
    let offset = PartitionOffset {
        topic: "orders".into(),
        partition: 2,
        error: ErrorCode::None,
        message: String::new(),
        offset: 1_234,
        timestamp_ms: -1,
    };
    let unknown_offset = ProduceResponse { base_offset: None, duplicate: true, ..produced.clone() };
    let not_leader = ErrorReply::new(ErrorCode::NotLeader, "node 1 follows").with_leader(2, "n2:1992");
    let overloaded = ErrorReply::new(ErrorCode::Overloaded, "inbox full").with_retry_after_ms(50);
    vec![
        ("produce", Opcode::Produce, Response::Produce(produced).into()),
        ("produce-offset-unknown", Opcode::Produce, Response::Produce(unknown_offset).into()),
        ("produce-not-leader", Opcode::Produce, not_leader.into()),
        ("produce-overloaded", Opcode::Produce, overloaded.into()),
        ("fetch", Opcode::Fetch, Response::Fetch(vec![found, out_of_range]).into()),
        ("list-offsets", Opcode::ListOffsets, Response::ListOffsets(vec![offset]).into()),
    ]
}

fn replies() -> Vec<(&'static str, Opcode, Reply)> {
    let hello = HelloResponse {
        version: 1,
        features: 0,
        cluster_id: CLUSTER_ID,
        node_id: 1,
        server_name: "lance/0.1.0".into(),
        max_frame_bytes: 16 << 20,
        max_batch_bytes: 1 << 20,
    };
    let described = topic_description();
    let summary = TopicSummary {
        name: described.name.clone(),
        topic_id: described.topic_id,
        partitions: 2,
        options: described.options.clone(),
    };
    let producer = InitProducerResponse { producer_id: 5, producer_epoch: 0 };
    let unknown = ErrorReply::new(ErrorCode::Other(9_999), "from a later version");
    let mut all = vec![
        ("hello", Opcode::Hello, Response::Hello(hello).into()),
        ("ping", Opcode::Ping, Response::Pong.into()),
        ("ping-unknown-error", Opcode::Ping, unknown.into()),
        ("metadata", Opcode::Metadata, Response::Metadata(metadata()).into()),
        ("cluster-info", Opcode::ClusterInfo, Response::ClusterInfo(cluster_info()).into()),
        ("create-topic", Opcode::CreateTopic, Response::CreateTopic(described.clone()).into()),
        ("change-members", Opcode::ChangeMembers, Response::ChangeMembers.into()),
        ("delete-topic", Opcode::DeleteTopic, Response::DeleteTopic.into()),
        ("list-topics", Opcode::ListTopics, Response::ListTopics(vec![summary]).into()),
        ("describe-topic", Opcode::DescribeTopic, Response::DescribeTopic(described).into()),
        ("init-producer", Opcode::InitProducer, Response::InitProducer(producer).into()),
    ];
    all.extend(data_replies());
    let formats = FormatsResponse { format: 1, oldest: 1, newest: 2 };
    all.push(("formats", Opcode::Formats, Response::Formats(formats).into()));
    all.push(("raise-format", Opcode::RaiseFormat, Response::RaiseFormat.into()));
    all
}

/// A request with a trace context in front of it.
fn traced(correlation: u64) -> Bytes {
    let trace_id = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    let context = TraceContext { trace_id, span_id: 0x00f0_67aa_0ba9_02b7, sampled: true };
    let mut out = BytesMut::new();
    frame::encode(&mut out, Opcode::Produce, Flags::TRACED, correlation, |out| {
        context.encode(out);
        let mut request = BytesMut::new();
        let (_, _, produce) = requests().into_iter().find(|(name, ..)| *name == "produce").unwrap();
        encode_request(&mut request, Flags::NONE, correlation, &produce);
        out.extend_from_slice(&request[frame::HEADER_LEN..]);
    });
    out.freeze()
}

#[test]
fn request_frames_are_byte_for_byte_as_specified() {
    let mut vectors = Vec::new();
    for (correlation, (name, flags, request)) in (1..).zip(requests()) {
        let mut out = BytesMut::new();
        encode_request(&mut out, flags, correlation, &request);
        vectors.push((name, out.freeze()));
    }
    vectors.push(("produce-traced", traced(vectors.len() as u64 + 1)));
    check("requests.txt", "Whole request frames; correlation ids count from 1. name hex", &vectors);
    let recorded = read("requests.txt");
    for (correlation, (name, flags, request)) in (1..).zip(requests()) {
        let frame = frame::decode(&mut BytesMut::from(&recorded[name][..]), 1 << 20).unwrap().unwrap();
        assert_eq!((frame.header.correlation, frame.header.flags), (correlation, flags), "{name}");
        let opcode = Opcode::try_from(frame.header.opcode).unwrap();
        assert_eq!(Request::decode(opcode, frame.body), Ok(request), "{name}");
    }
    assert!(Opcode::ALL.iter().all(|opcode| requests().iter().any(|(_, _, request)| request.opcode() == *opcode)));
}

#[test]
fn reply_frames_are_byte_for_byte_as_specified() {
    let mut vectors = Vec::new();
    for (correlation, (name, opcode, reply)) in (1..).zip(replies()) {
        let mut out = BytesMut::new();
        encode_reply(&mut out, opcode, correlation, &reply);
        vectors.push((name, out.freeze()));
    }
    check("replies.txt", "Whole reply frames; correlation ids count from 1. name hex", &vectors);
    let recorded = read("replies.txt");
    for (name, opcode, reply) in replies() {
        let frame = frame::decode(&mut BytesMut::from(&recorded[name][..]), 1 << 20).unwrap().unwrap();
        assert_eq!((frame.header.opcode, frame.header.flags), (opcode.into(), Flags::RESPONSE), "{name}");
        assert_eq!(decode_reply(opcode, frame.body), Ok(reply), "{name}");
    }
    assert!(Opcode::ALL.iter().all(|opcode| replies().iter().any(|(_, answered, _)| answered == opcode)));
}

/// What a codec writes may change with its library; what it reads may not. So the compressed vectors are only read.
#[test]
fn recorded_batches_are_read_as_specified() {
    let vectors = read("batches.txt");
    assert_eq!(vectors["none"], one_batch());
    for codec in Codec::ALL {
        let limits = Limits::default();
        let valid = RecordBatch::validate(vectors[codec.name()].clone(), &limits).unwrap();
        assert_eq!(valid.header().codec, codec);
        assert_eq!((valid.header().producer_id, valid.header().base_sequence), (5, 12));
        let records: Vec<_> = batch::records(valid.bytes(), &limits).unwrap().map(Result::unwrap).collect();
        let seen: Vec<_> = records.iter().map(|r| (r.timestamp_ms, r.key.as_deref(), r.value.as_deref())).collect();
        assert_eq!(seen[0], (1_700_000_000_000, Some(&b"k1"[..]), Some(&b"hello"[..])));
        assert_eq!(seen[1], (1_700_000_000_005, None, Some(&b"world"[..])));
        assert_eq!(records[0].headers, [("trace".into(), Some("7f".into()))]);
    }
}
