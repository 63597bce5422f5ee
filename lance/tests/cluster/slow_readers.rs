//! Clients that ask for much and read little: they cost the node no more than a bounded part of its memory, for a while.

use super::support::eventually;
use super::support::node::{Node, Ports};
use super::support::wire::{self, Wire};
use lnc_protocol::message::{FetchPartition, FetchRequest, TopicOptions};
use lnc_protocol::{Flags, Opcode, Request, Response, decode_reply};
use tempfile::TempDir;

/// Bytes of records that one fetch asks for and gets, but for what does not fill another batch.
const FETCH_BYTES: u32 = 8 << 20;

/// A node with 8 MiB of records in topic "t".
fn node(settings: &[&str]) -> (Node, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    let mut node = Node::new(directory.path(), 1, &[Ports::free()], &settings);
    node.start();
    node.wait_ready();
    let mut wire = Wire::connect(&node.client()).unwrap();
    wire.ask(&wire::create("t", 1, TopicOptions::default()), Flags::NONE).unwrap().unwrap();
    for _ in 0..9 {
        let batch = wire::batch([&vec![b'x'; 1_000_000][..]]);
        wire.produce(wire::produce("t", 0, batch), Flags::NONE).unwrap().unwrap();
    }
    (node, directory)
}

/// Asks for the same records this many times, without reading.
fn ask_for_much(wire: &mut Wire, times: usize) {
    let topic = "t".to_owned();
    let partitions = vec![FetchPartition { topic, topic_id: 0, partition: 0, offset: 0, max_bytes: FETCH_BYTES }];
    let request = FetchRequest { max_wait_ms: 0, min_bytes: 1, max_bytes: FETCH_BYTES, partitions };
    for _ in 0..times {
        wire.send_request(&Request::Fetch(request.clone()), Flags::NONE).unwrap();
    }
}

#[test]
fn many_fetches_at_once_are_served_in_bounded_memory() {
    // With the usual memory for replies, one client gets half of it: not every fetch gets all that it asks for.
    are_served(&[], 900_000);
    are_served(&["limits.reply_bytes=128MiB"], FETCH_BYTES as usize - 1_100_000);
}

/// Many fetches at once bring so many bytes each.
fn are_served(settings: &[&str], each: usize) {
    /// Far less than the replies have together, in bytes.
    const LIMIT: u64 = 160 << 20;
    const TIMES: usize = 60;
    let (node, _directory) = node(settings);
    let mut wire = Wire::connect(&node.client()).unwrap();
    let before = node.resident_bytes();
    ask_for_much(&mut wire, TIMES);
    for _ in 0..TIMES {
        let frame = wire.next_frame().unwrap().unwrap();
        let grown = node.resident_bytes().saturating_sub(before);
        assert!(grown < LIMIT, "the node has {grown} bytes more than before");
        match decode_reply(Opcode::Fetch, frame.body).unwrap().result {
            Ok(Response::Fetch(found)) => assert!(found[0].records.len() > each),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let (node, _directory) = node(&["limits.idle_timeout=1s"]);
    let open = || {
        let metrics = node.metrics();
        let line = metrics.lines().find(|line| line.starts_with("lance_connections ")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() as u64
    };
    eventually("idle connections are closed", || (open() == 0).then_some(()));
    let mut wire = Wire::connect(&node.client()).unwrap();
    ask_for_much(&mut wire, 20);
    assert_eq!(open(), 1);
    eventually("the connection is closed with its replies unread", || (open() == 0).then_some(()));
}
