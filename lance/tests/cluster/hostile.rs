//! Bytes that make no sense, and requests that must not be granted: an error for the sender, and nobody else notices.

use super::startup::alone;
use super::support::Dice;
use super::support::node::Node;
use super::support::wire::{self, Wire};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_protocol::message::TopicOptions;
use lnc_protocol::{ErrorCode, ErrorReply, Flags, Opcode, Request, Response, decode_reply, encode_reply, frame};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tempfile::TempDir;

/// Memory that a node may gain while it refuses things, in bytes: far less than they ask for.
const SLACK: u64 = 24 << 20;

/// A node with a topic "t" of one partition.
fn node() -> (Node, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let mut node = alone(&directory);
    node.start();
    node.wait_ready();
    let mut wire = Wire::connect(&node.client()).unwrap();
    wire.ask(&wire::create("t", 1, TopicOptions::default()), Flags::NONE).unwrap().unwrap();
    (node, directory)
}

/// The frame of a request.
fn framed(opcode: u8, flags: Flags, correlation: u64, body: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    frame::encode(&mut out, opcode, flags, correlation, |out| out.put_slice(body));
    out
}

/// What a node answers to bytes that break the rules of frames, before it closes.
#[track_caller]
fn answer_to(node: &Node, bytes: &[u8]) -> ErrorReply {
    let mut wire = Wire::connect(&node.client()).unwrap();
    wire.send(bytes).unwrap();
    wire.last_words()
}

#[test]
fn a_broken_frame_is_answered_and_ends_its_connection_alone() {
    let (node, _directory) = node();
    let mut bystander = Wire::connect(&node.client()).unwrap();
    let good = framed(Opcode::Ping.into(), Flags::NONE, 7, b"");
    let changed = |at: usize, to: &[u8]| {
        let mut bytes = good.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let cases = [
        ("a wrong magic", changed(0, b"HTTP"), ErrorCode::CorruptFrame),
        ("an unsupported version", changed(4, &[9]), ErrorCode::UnsupportedVersion),
        ("an unknown flag", changed(6, &[0x80, 0]), ErrorCode::CorruptFrame),
        ("another correlation id than summed", changed(8, &[8]), ErrorCode::CorruptFrame),
        ("a reserved field", changed(20, &[1]), ErrorCode::CorruptFrame),
        ("a wrong checksum", changed(28, &[0xde, 0xad]), ErrorCode::CorruptFrame),
        ("a body over the limit", changed(16, &(9u32 << 20).to_le_bytes()), ErrorCode::FrameTooLarge),
        ("a huge body", changed(16, &[0xff; 4]), ErrorCode::FrameTooLarge),
        ("text", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n and more of it".to_vec(), ErrorCode::CorruptFrame),
    ];
    for (what, bytes, code) in cases {
        let error = answer_to(&node, &bytes);
        assert_eq!(error.code, code, "{what}: {error}");
        assert!(!error.message.is_empty(), "{what}");
        assert_eq!(bystander.ping().unwrap(), Ok(Response::Pong), "after {what}");
    }
}

#[test]
fn announced_lengths_cost_no_memory() {
    let (node, _directory) = node();
    let before = node.resident_bytes();
    // Frames within the limit whose bodies never come, and bodies that claim endless lists.
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut wire = Wire::connect(&node.client()).unwrap();
        let mut head = framed(Opcode::Metadata.into(), Flags::NONE, 1, b"");
        head[16..20].copy_from_slice(&(8u32 << 20).to_le_bytes());
        wire.send(&head).unwrap();
        open.push(wire);
    }
    for opcode in Opcode::ALL.iter().filter(|opcode| **opcode != Opcode::Hello) {
        let mut wire = Wire::connect(&node.client()).unwrap();
        for body in [&[0xff; 64][..], &[1, 0xff, 0xff, 0xff, 0x7f], &[0xff], &[0; 1000]] {
            wire.send(&framed((*opcode).into(), Flags::NONE, 1, body)).unwrap();
            let reply = wire.next_frame().unwrap().unwrap();
            let reply = decode_reply(*opcode, reply.body).unwrap();
            assert!(reply.result.is_err(), "{}: {reply:?}", opcode.name());
        }
    }
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < SLACK, "the node has {grown} bytes more than before");
    assert_eq!(Wire::connect(&node.client()).unwrap().ping().unwrap(), Ok(Response::Pong));
}

#[test]
fn requests_out_of_place_are_refused() {
    let (node, _directory) = node();
    let mut wire = Wire::connect(&node.client()).unwrap();
    wire.send(&framed(200, Flags::NONE, 41, b"")).unwrap();
    let reply = wire.next_frame().unwrap().unwrap();
    assert_eq!((reply.header.opcode, reply.header.correlation), (200, 41));
    assert_eq!(decode_reply(Opcode::Ping, reply.body).unwrap().result.unwrap_err().code, ErrorCode::UnknownOpcode);
    let error = wire.ask(&Request::Ping, Flags::RESPONSE).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
    let mut reply = BytesMut::new();
    encode_reply(&mut reply, Opcode::Ping, 5, &Response::Pong.into());
    wire.send(&reply).unwrap();
    let answer = wire.next_frame().unwrap().unwrap();
    assert_eq!(decode_reply(Opcode::Ping, answer.body).unwrap().result.unwrap_err().code, ErrorCode::InvalidRequest);
    assert_eq!(wire.ping().unwrap(), Ok(Response::Pong), "none of these ends the connection");

    let mut early = Wire::without_hello(&node.client()).unwrap();
    early.send_request(&Request::Ping, Flags::NONE).unwrap();
    assert_eq!(early.last_words().code, ErrorCode::InvalidRequest);
    let mut future = Wire::without_hello(&node.client()).unwrap();
    let error = future.ask(&Request::Hello(wire::hello(2, 9)), Flags::NONE).unwrap().unwrap_err();
    assert_eq!(error.code, ErrorCode::UnsupportedVersion, "{error}");
}

#[test]
fn a_client_without_a_common_version_gets_nothing_served() {
    let (node, _directory) = node();
    let mut wire = Wire::without_hello(&node.client()).unwrap();
    wire.ask(&Request::Hello(wire::hello(2, 9)), Flags::NONE).unwrap().unwrap_err();
    wire.send_request(&Request::Ping, Flags::NONE).ok();
    let served = match wire.next_frame() {
        Ok(Some(frame)) => decode_reply(Opcode::Ping, frame.body).unwrap().result.is_ok(),
        Ok(None) | Err(_) => false,
    };
    assert!(!served, "a request after a failed greeting was served");
}

#[test]
fn noise_on_every_port_disturbs_nobody() {
    let (node, _directory) = node();
    let mut bystander = Wire::connect(&node.client()).unwrap();
    let before = node.resident_bytes();
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for round in 0..150 {
        for port in [node.ports.client, node.ports.peer, node.ports.http] {
            let mut bytes: Vec<u8> = (0..dice.roll() % 3000).map(|_| dice.roll() as u8).collect();
            if round % 3 == 0 {
                // Half of a good frame, or a good frame of noise.
                let body: Vec<u8> = bytes.split_off(bytes.len() / 2);
                bytes = framed((dice.roll() % 30) as u8, Flags::NONE, dice.roll(), &body).to_vec();
                bytes.truncate(dice.roll() as usize % (bytes.len() + 1));
            }
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            // The node may close before it has read everything.
            let _ = std::io::Write::write_all(&mut stream, &bytes);
            let _ = stream.read(&mut [0; 16]);
        }
        assert_eq!(bystander.ping().unwrap(), Ok(Response::Pong));
    }
    assert!(node.is_ready());
    let grown = node.resident_bytes().saturating_sub(before);
    assert!(grown < SLACK, "the node has {grown} bytes more than before");
    let log = node.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_bad_batch_is_refused_and_leaves_no_trace() {
    let (node, _directory) = node();
    let mut wire = Wire::connect(&node.client()).unwrap();
    let good = wire::batch([&b"one"[..], b"two"]);
    let changed = |at: usize, to: &[u8], sum: bool| {
        let mut bytes = good.to_vec();
        bytes[at..at + to.len()].copy_from_slice(to);
        if sum {
            let crc = crc32c(&bytes[21..]);
            bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        }
        Bytes::from(bytes)
    };
    let cases = [
        ("nothing", Bytes::new(), ErrorCode::CorruptBatch),
        ("half a batch", good.slice(..good.len() / 2), ErrorCode::CorruptBatch),
        ("a changed record", changed(good.len() - 3, b"?", false), ErrorCode::CorruptBatch),
        ("another magic", changed(16, &[1], false), ErrorCode::CorruptBatch),
        ("another count", changed(57, &3u32.to_be_bytes(), true), ErrorCode::InvalidBatch),
        ("another last offset", changed(23, &7u32.to_be_bytes(), true), ErrorCode::InvalidBatch),
        ("an unknown codec", changed(21, &7u16.to_be_bytes(), true), ErrorCode::UnsupportedCodec),
        ("two batches", [&good[..], &good[..]].concat().into(), ErrorCode::CorruptBatch),
        ("a batch over the limit", wire::batch([&vec![0; 1 << 20][..]]), ErrorCode::BatchTooLarge),
    ];
    for (what, batch, code) in cases {
        let error = wire.produce(wire::produce("t", 0, batch), Flags::NONE).unwrap().unwrap_err();
        assert_eq!(error.code, code, "{what}: {error}");
        assert!(!error.code.is_retriable());
    }
    let found = wire.fetch(wire::fetch("t", 0, 0)).unwrap();
    assert_eq!((found.error, found.high_watermark, found.records.len()), (ErrorCode::None, 0, 0));
    assert_eq!(wire.produce(wire::produce("t", 0, good), Flags::NONE).unwrap().unwrap().base_offset, Some(0));
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[test]
fn what_does_not_exist_is_named() {
    let (node, _directory) = node();
    let mut wire = Wire::connect(&node.client()).unwrap();
    let batch = || wire::batch([&b"x"[..]]);
    for (topic, partition, code) in [
        ("nope", 0, ErrorCode::UnknownTopic),
        ("t", 1, ErrorCode::UnknownPartition),
        ("t", u32::MAX, ErrorCode::UnknownPartition),
    ] {
        let error = wire.produce(wire::produce(topic, partition, batch()), Flags::NONE).unwrap().unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(topic), "{error}");
        let found = wire.fetch(wire::fetch(topic, partition, 0)).unwrap();
        assert_eq!(found.error, code);
    }
    wire.produce(wire::produce("t", 0, batch()), Flags::NONE).unwrap().unwrap();
    for offset in [2, u64::MAX] {
        let found = wire.fetch(wire::fetch("t", 0, offset)).unwrap();
        assert_eq!(found.error, ErrorCode::OffsetOutOfRange);
        assert_eq!((found.log_start_offset, found.high_watermark), (0, 1), "the offsets there are");
    }
    let other = lnc_protocol::message::ProduceRequest { topic_id: 999, ..wire::produce("t", 0, batch()) };
    assert_eq!(wire.produce(other, Flags::NONE).unwrap().unwrap_err().code, ErrorCode::TopicIdMismatch);
}

#[test]
fn names_cannot_leave_the_data_directory() {
    let (node, directory) = node();
    let mut wire = Wire::connect(&node.client()).unwrap();
    let long = "x".repeat(250);
    for name in ["", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "a\0b", "ä", "a b", &long] {
        let error = wire.ask(&wire::create(name, 1, TopicOptions::default()), Flags::NONE).unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidTopicName, "{name:?}: {error}");
        let error = wire.produce(wire::produce(name, 0, wire::batch([&b"x"[..]])), Flags::NONE).unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::UnknownTopic, "{name:?}: {error}");
        let error = wire.ask(&wire::delete(name), Flags::NONE).unwrap().unwrap_err();
        assert!([ErrorCode::UnknownTopic, ErrorCode::InvalidTopicName].contains(&error.code), "{name:?}: {error}");
    }
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["node-1"]);
    for partitions in [0, u32::MAX] {
        let error =
            wire.ask(&wire::create("u", partitions, TopicOptions::default()), Flags::NONE).unwrap().unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidTopicSettings, "{error}");
    }
}

/// Whoever comes to the wrong port, or with the wrong protocol, is told what that looks like.
#[test]
fn each_port_tells_who_is_wrong_there() {
    let (node, _directory) = node();
    let hello = framed(Opcode::Hello.into(), Flags::NONE, 1, b"");
    let tls = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0];
    let kafka = [0, 0, 0, 0x23, 0, 18, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0];
    let http: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    let ports = &node.ports;
    let cases: [(u16, &[u8], &str); 8] = [
        (ports.client, http, "looks like HTTP"),
        (ports.client, &tls, "looks like TLS"),
        (ports.client, &kafka, "a client of Kafka"),
        (ports.peer, &hello, "a client of LANCE"),
        (ports.peer, http, "looks like HTTP"),
        (ports.peer, &kafka, "a client of Kafka"),
        (ports.http, &hello, "a client of LANCE"),
        (ports.http, &tls, "looks like TLS"),
    ];
    for (port, words, told) in cases {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(words).unwrap();
        let mut answer = Vec::new();
        // It may be reset once all was said.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains(told), "{port}: {answer:?}");
    }
    for told in ["looks like HTTP", "a client of LANCE"] {
        assert!(node.log().contains(told), "{}", node.log());
    }
    assert!(node.is_ready());
}
