//! Traces: one produce is followed over the nodes, and a collector that is not there disturbs nobody.

mod collector;

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::node::{Node, Ports};
use super::support::wire::{self, Wire};
use bytes::{BufMut, BytesMut};
use collector::{Collector, Found};
use lnc_protocol::message::{HelloRequest, ProduceRequest};
use lnc_protocol::{
    ErrorCode, Flags, Opcode, Reply, Request, Response, TraceContext, decode_reply, encode_request, frame, trace,
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use rustix::process::Signal;
use std::net::TcpListener;
use std::time::{Duration, Instant};

const CONTEXT: TraceContext =
    TraceContext { trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, span_id: 0x00f0_67aa_0ba9_02b7, sampled: true };

/// What the clocks of one machine may differ by when they are read one after the other.
const SLACK_NS: u64 = 1_000_000;

fn a_produce(topic: &str) -> ProduceRequest {
    wire::produce(topic, 0, wire::batch([&b"one"[..], b"two", b"three"]))
}

/// Produces with a trace context.
fn produce_traced(wire: &mut Wire, produce: ProduceRequest, context: TraceContext) -> Reply {
    let (mut plain, mut out) = (BytesMut::new(), BytesMut::new());
    encode_request(&mut plain, Flags::NONE, 77, &Request::Produce(produce));
    frame::encode(&mut out, Opcode::Produce, Flags::TRACED, 77, |out| {
        context.encode(out);
        out.put_slice(&plain[frame::HEADER_LEN..]);
    });
    wire.send(&out).unwrap();
    let reply = wire.next_frame().unwrap().expect("a reply");
    assert_eq!(reply.header.correlation, 77);
    decode_reply(Opcode::Produce, reply.body).unwrap()
}

/// Connects to a node that has to know trace contexts.
fn connect(address: &str) -> Wire {
    let mut wire = Wire::without_hello(address).unwrap();
    let hello = HelloRequest { features: trace::FEATURE | 1 << 40, ..wire::hello(1, 1) };
    match wire.ask(&Request::Hello(hello), Flags::NONE).unwrap().unwrap() {
        Response::Hello(hello) => assert_eq!(hello.features, trace::FEATURE),
        other => panic!("{other:?}"),
    }
    wire
}

/// The only span with this name of this node.
#[track_caller]
fn the<'a>(spans: &'a [Found], name: &str, node: u64) -> &'a Found {
    let found: Vec<&Found> = spans.iter().filter(|found| found.span.name == name && found.node == node).collect();
    assert_eq!(found.len(), 1, "{name} of node {node} among {:#?}", names(spans));
    found[0]
}

fn names(spans: &[Found]) -> Vec<(u64, &str)> {
    spans.iter().map(|found| (found.node, found.span.name.as_str())).collect()
}

#[track_caller]
fn assert_begins_within(inner: &Found, outer: &Found) {
    let (inner, outer) = (&inner.span, &outer.span);
    assert!(inner.start_time_unix_nano <= inner.end_time_unix_nano, "{} ends before it begins", inner.name);
    assert_eq!(inner.parent_span_id, outer.span_id, "{} is below {}", inner.name, outer.name);
    assert!(inner.start_time_unix_nano + SLACK_NS >= outer.start_time_unix_nano, "{inner:#?} begins in {outer:#?}");
}

#[track_caller]
fn assert_within(inner: &Found, outer: &Found) {
    assert_begins_within(inner, outer);
    assert!(inner.span.end_time_unix_nano <= outer.span.end_time_unix_nano + SLACK_NS, "{inner:#?} ends in {outer:#?}");
}

#[test]
fn a_produce_through_a_follower_is_one_trace_of_all_nodes() {
    let collector = Collector::start();
    let endpoint = format!("tracing.otlp_endpoint={}", collector.url());
    // Chance samples nothing: what is recorded is what the client says.
    let cluster = Cluster::start_with(&[&endpoint, "tracing.sample_ratio=0", "tracing.service_name=orders"]);
    let group = cluster.create_topic("t", 1, &[])[0];
    let mut context = CONTEXT;
    let (leader, follower, spans) = eventually("a follower passes a recorded request on to the leader", || {
        let leader = cluster.leader(group);
        let follower = cluster.others(leader)[0];
        let mut wire = connect(&cluster.nodes[follower as usize - 1].client());
        // The first request makes the connection between the nodes; a context travels once that is greeted.
        wire.produce(a_produce("t"), Flags::NONE).unwrap().ok()?;
        // Each try is a trace of its own.
        context.trace_id += 1;
        let reply = produce_traced(&mut wire, a_produce("t"), context);
        assert!(matches!(reply.result, Ok(Response::Produce(_))), "{reply:?}");
        let spans = collector.wait_for(context, 11)?;
        // Leadership may have moved meanwhile.
        (cluster.leader(group) == leader).then_some((leader, follower, spans))
    });
    assert_eq!(spans.len(), 11, "{:#?}", names(&spans));
    assert!(spans.iter().all(|found| found.service == "orders"));

    let request = the(&spans, "produce t", follower);
    assert_eq!(request.span.parent_span_id, CONTEXT.span_id.to_be_bytes());
    assert_eq!(request.span.kind(), SpanKind::Server);
    assert_eq!(request.text("messaging.destination.name"), "t");
    assert_eq!(request.text("messaging.destination.partition.id"), "0");
    assert_eq!(request.number("messaging.batch.message_count"), 3);
    assert!(request.number("lance.batch.bytes") > 60);
    let forward = the(&spans, "forward", follower);
    assert_within(forward, request);
    assert_eq!(forward.number("lance.peer.id"), leader);
    let served = the(&spans, "produce t", leader);
    assert_within(served, forward);
    for name in ["queue", "journal", "replicate", "apply"] {
        assert_within(the(&spans, name, leader), served);
    }
    let replicate = the(&spans, "replicate", leader);
    let index = replicate.number("lance.index");
    assert_eq!(replicate.number("lance.group"), u64::from(group));
    let mut ends = Vec::new();
    for node in cluster.others(leader) {
        let append = the(&spans, "append", node);
        assert_begins_within(append, replicate);
        assert_eq!((append.number("lance.index"), append.number("lance.peer.id")), (index, leader));
        assert_within(the(&spans, "journal", node), append);
        ends.push(append.span.end_time_unix_nano);
    }
    let first = ends.iter().min().unwrap();
    assert!(*first <= replicate.span.end_time_unix_nano + SLACK_NS, "a majority is the leader and one more");
    assert!(spans.iter().all(|found| found.span.status.is_none()));

    // A trace that is not recorded, and a request that is refused.
    let mut wire = connect(&cluster.nodes[follower as usize - 1].client());
    produce_traced(&mut wire, a_produce("t"), TraceContext { sampled: false, trace_id: 1, ..CONTEXT });
    let refused = produce_traced(&mut wire, a_produce("nowhere"), CONTEXT);
    assert_eq!(refused.result.unwrap_err().code, ErrorCode::UnknownTopic);
    let spans = eventually("the refused request is delivered", || collector.wait_for(CONTEXT, 1));
    assert_eq!(spans.len(), 1, "{:#?}", names(&spans));
    assert_eq!(spans[0].text("error.type"), "UnknownTopic");
    assert_eq!(spans[0].span.status.as_ref().unwrap().code(), StatusCode::Error);
    let ours = CONTEXT.trace_id..=context.trace_id;
    let stray = collector.spans().into_iter().find(|found| !ours.contains(&found.trace_id()));
    assert!(stray.is_none(), "chance has sampled {stray:?}");
}

#[test]
fn requests_are_sampled_by_chance_where_nobody_has_decided() {
    let collector = Collector::start();
    let endpoint = format!("tracing.otlp_endpoint={}", collector.url());
    let cluster = Cluster::start_with(&[&endpoint, "tracing.sample_ratio=1"]);
    cluster.create_topic("t", 1, &[]);
    for number in 0..5 {
        cluster.ok(&["produce", "t"], format!("{number}\n").as_bytes());
    }
    let roots = eventually("every request is a trace", || {
        let spans = collector.spans();
        // One that came to a node that did not lead any more is recorded too, and goes no further.
        let is_root = |found: &&Found| {
            found.span.parent_span_id.is_empty() && found.span.name == "produce t" && found.span.status.is_none()
        };
        let roots: Vec<_> = spans.iter().filter(is_root).map(|found| found.span.trace_id.clone()).collect();
        let has_all = |trace: &Vec<u8>| {
            let spans = spans.iter().filter(|found| found.span.trace_id == *trace);
            spans.filter(|found| ["replicate", "append"].contains(&found.span.name.as_str())).count() == 3
        };
        (roots.len() >= 5 && roots.iter().all(has_all)).then_some(roots)
    });
    assert_eq!(roots.iter().collect::<std::collections::BTreeSet<_>>().len(), roots.len(), "one root each");
}

/// The sum of a metric over its labels on a node's page.
fn spans_with(node: &Node, outcome: &str) -> u64 {
    let series = format!("lance_trace_spans_total{{outcome=\"{outcome}\"}} ");
    node.metrics().lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
}

/// A node of its own that sends its spans there, and the time that 300 produce requests, one after the other, took.
fn produce_to_one_node(directory: &std::path::Path, settings: &[&str]) -> Node {
    let settings: Vec<String> = settings.iter().map(|setting| setting.to_string()).collect();
    let mut node = Node::new(directory, 1, &[Ports::free()], &settings);
    node.start();
    node.wait_ready();
    let mut wire = connect(&node.client());
    wire.ask(&wire::create("t", 1, Default::default()), Flags::NONE).unwrap().unwrap();
    for _ in 0..300 {
        wire.produce(a_produce("t"), Flags::NONE).unwrap().unwrap();
    }
    node
}

fn stop(node: &mut Node) -> Duration {
    let start = Instant::now();
    node.signal(Signal::TERM);
    assert!(node.wait_for_end().success());
    start.elapsed()
}

#[test]
fn a_collector_that_is_down_costs_its_spans_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = format!("tracing.otlp_endpoint=http://127.0.0.1:{}", Ports::free().client);
    let mut node = produce_to_one_node(directory.path(), &[&endpoint, "tracing.sample_ratio=1"]);
    eventually("lost spans are counted", || (spans_with(&node, "lost") >= 300).then_some(()));
    assert_eq!(spans_with(&node, "sent"), 0);
    let log = node.log();
    assert_eq!(log.matches("the collector does not take spans").count(), 1, "{log}");
    assert!(log.contains("empty tracing.otlp_endpoint"), "it says what to do");
    let took = stop(&mut node);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// One that accepts and never answers is worse than none.
#[test]
fn a_collector_that_hangs_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tracing.otlp_endpoint=http://{}", silent.local_addr().unwrap());
    let settings = [endpoint.as_str(), "tracing.sample_ratio=1", "tracing.timeout=10m"];
    let mut node = produce_to_one_node(directory.path(), &settings);
    assert_eq!((spans_with(&node, "sent"), spans_with(&node, "lost")), (0, 0), "the first delivery is under way");
    let took = stop(&mut node);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn without_a_collector_nothing_is_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let node = produce_to_one_node(directory.path(), &["tracing.sample_ratio=1"]);
    let reply = produce_traced(&mut connect(&node.client()), a_produce("t"), CONTEXT);
    assert!(reply.result.is_ok(), "the context is read past: {reply:?}");
    assert!(!node.metrics().contains("lance_trace_spans_total{"));
    let threads = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap();
    let names: Vec<String> =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("comm")).unwrap()).collect();
    assert!(names.iter().any(|name| name == "http\n") && !names.iter().any(|name| name == "otel\n"), "{names:?}");
}
