//! What becomes of a recorded request, as spans: on its leader and on the followers, whole and cut short.

use crate::harness::{Cluster, Cut, Settings, produce_request};
use lnc_broker::trace::{Span, Value};
use lnc_log::disk::memory::Order;
use lnc_log::journal::GroupId;
use lnc_protocol::message::{Acks, ProduceRequest};
use lnc_protocol::{ErrorCode, Request, TraceContext};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

const CONTEXT: TraceContext = TraceContext { trace_id: 77, span_id: 5, sampled: true };

const DATA: GroupId = GroupId(1);

/// A cluster with a topic in which every node records, and the leader of the topic's group. No two moments have the same
/// time, on whatever nodes.
fn recording(settings: Settings) -> (Cluster, u64) {
    let mut cluster = Cluster::ready(settings);
    cluster.await_balance();
    cluster.create_topic("t", 1);
    cluster.await_same();
    let clock = Rc::new(Cell::new(1000));
    for id in cluster.running() {
        let clock = clock.clone();
        cluster.node_mut(id).record_traces(move || clock.replace(clock.get() + 1));
    }
    let leader = cluster.leader_of(DATA);
    (cluster, leader)
}

fn produce(acks: Acks) -> Request {
    Request::Produce(ProduceRequest { acks, ..produce_request("t", 0, &["a", "b"]) })
}

/// The only span of a node with this name.
#[track_caller]
fn the<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} among {spans:#?}");
    found[0]
}

#[track_caller]
fn number(span: &Span, key: &str) -> u64 {
    match span.attributes.iter().find(|(name, _)| *name == key) {
        Some((_, Value::Number(number))) => *number,
        other => panic!("{key}: {other:?} in {span:?}"),
    }
}

#[test]
fn a_request_has_its_stages_and_each_follower_its_own() {
    let (mut cluster, leader) = recording(Settings::default());
    let call = cluster.send_traced(leader, &produce(Acks::Quorum), CONTEXT);
    cluster.wait(call);
    cluster.await_same();
    let spans = cluster.node_mut(leader).spans();
    let stages = ["queue", "replicate", "journal", "apply"].map(|name| the(&spans, name));
    assert_eq!(spans.len(), stages.len());
    assert!(stages.iter().all(|span| span.parent == Some(CONTEXT.span_id)));
    let [queue, replicate, journal, apply] = stages;
    assert!(queue.start_us < queue.end_us && queue.end_us == replicate.start_us);
    assert!(replicate.end_us == apply.start_us && apply.start_us < apply.end_us);
    assert!(
        replicate.start_us < journal.start_us && journal.end_us < apply.start_us,
        "an own copy counts once durable"
    );
    let mut ids: BTreeSet<u64> = spans.iter().map(|span| span.span_id).collect();
    let mut last = cluster.view(leader, DATA).last;
    for id in cluster.followers_of(DATA) {
        let spans = cluster.node_mut(id).spans();
        let (append, journal) = (the(&spans, "append"), the(&spans, "journal"));
        assert_eq!(spans.len(), 2);
        assert_eq!((append.parent, journal.parent), (Some(replicate.span_id), Some(append.span_id)));
        assert!(replicate.start_us < append.start_us && append.start_us < journal.start_us);
        assert!(journal.end_us < append.end_us, "what is acknowledged is durable");
        assert_eq!((number(append, "lance.node.id"), number(append, "lance.peer.id")), (id, leader));
        assert_eq!(number(append, "lance.entry.bytes"), number(replicate, "lance.entry.bytes"));
        ids.extend(spans.iter().map(|span| span.span_id));
        last = last.min(number(append, "lance.index"));
    }
    assert_eq!(last, number(replicate, "lance.index"));
    assert_eq!(ids.len(), 8, "every span has an id of its own");
    assert!(spans.iter().all(|span| span.trace_id == CONTEXT.trace_id && span.error.is_none()));
}

#[test]
fn requests_that_share_an_entry_have_traces_of_their_own_and_others_none() {
    let (mut cluster, leader) = recording(Settings::default());
    let other = TraceContext { trace_id: 78, span_id: 6, sampled: true };
    let calls = [
        cluster.send_traced(leader, &produce(Acks::Quorum), CONTEXT),
        cluster.send(leader, &produce(Acks::Quorum)),
        cluster.send_traced(leader, &produce(Acks::Quorum), other),
    ];
    calls.into_iter().for_each(|call| drop(cluster.wait(call)));
    cluster.await_same();
    for (id, per_trace) in cluster.running().into_iter().map(|id| (id, if id == leader { 4 } else { 2 })) {
        let spans = cluster.node_mut(id).spans();
        assert_eq!(spans.len(), 2 * per_trace, "node {id}: {spans:#?}");
        for context in [CONTEXT, other] {
            assert_eq!(spans.iter().filter(|span| span.trace_id == context.trace_id).count(), per_trace);
        }
        let indexes: BTreeSet<u64> =
            spans.iter().filter(|span| span.name != "queue").map(|span| number(span, "lance.index")).collect();
        assert_eq!(indexes.len(), 1, "they are one entry");
    }
}

#[test]
fn a_follower_that_hears_late_or_never_says_so_by_its_spans() {
    let (mut cluster, leader) = recording(Settings::default());
    let followers = cluster.followers_of(DATA);
    cluster.network.cut(Cut::to(followers[0]));
    cluster.node_mut(followers[1]).set_order(Order::Held);
    let call = cluster.send_traced(leader, &produce(Acks::Quorum), CONTEXT);
    cluster.ticks(3);
    assert!(!cluster.is_answered(call));
    let under_way: Vec<u64> = cluster.running();
    assert!(under_way.into_iter().all(|id| cluster.node_mut(id).spans().is_empty()), "nothing is over");
    cluster.node_mut(followers[1]).set_order(Order::Immediate);
    cluster.wait(call);
    assert_eq!(cluster.node_mut(followers[0]).spans(), []);
    assert_eq!(cluster.node_mut(followers[1]).spans().len(), 2);
    assert_eq!(cluster.node_mut(leader).spans().len(), 4);
}

#[test]
fn a_failed_request_has_its_error_where_it_was() {
    let (mut cluster, leader) = recording(Settings::default());
    cluster.network.isolate(leader);
    let patient = ProduceRequest { timeout_ms: 20, ..produce_request("t", 0, &["x"]) };
    let call = cluster.send_traced(leader, &Request::Produce(patient), CONTEXT);
    cluster.wait(call);
    cluster.settle();
    let spans = cluster.node_mut(leader).spans();
    assert_eq!(the(&spans, "replicate").error.as_deref(), Some(ErrorCode::Timeout.name()));
    assert_eq!(the(&spans, "queue").error, None);
    assert_eq!(the(&spans, "journal").error, None, "its own disk has it");
    assert_eq!(spans.len(), 3, "it was not applied");

    let nowhere = Request::Produce(produce_request("t", 9, &["x"]));
    let call = cluster.send_traced(leader, &nowhere, CONTEXT);
    cluster.wait(call);
    cluster.settle();
    assert_eq!(cluster.node_mut(leader).spans(), [], "it was in no stage");
}

#[test]
fn an_answer_before_the_commit_does_not_end_the_trace() {
    let (mut cluster, leader) = recording(Settings::default());
    for follower in cluster.followers_of(DATA) {
        cluster.network.cut(Cut::to(follower));
    }
    let early = cluster.send_traced(leader, &produce(Acks::Leader), CONTEXT);
    let none = TraceContext { trace_id: 78, ..CONTEXT };
    let unwatched = cluster.send_traced(leader, &produce(Acks::None), none);
    cluster.settle();
    assert!(cluster.is_answered(early) && cluster.is_answered(unwatched));
    assert_eq!(cluster.node_mut(leader).spans(), [], "acks=none has no stages, the other is under way");
    cluster.network.heal();
    cluster.await_same();
    let spans = cluster.node_mut(leader).spans();
    assert_eq!(the(&spans, "replicate").error, None);
    assert_eq!(spans.len(), 4);
}

#[test]
fn nodes_of_the_first_format_are_told_nothing() {
    let (mut cluster, leader) = recording(Settings { old: vec![3], ..Settings::default() });
    let call = cluster.send_traced(leader, &produce(Acks::Quorum), CONTEXT);
    cluster.wait(call);
    cluster.await_same();
    for id in cluster.running() {
        let spans = cluster.node_mut(id).spans();
        assert_eq!(spans.len(), if id == leader { 4 } else { 0 }, "node {id}: {spans:#?}");
    }
}

#[test]
fn a_node_that_does_not_record_passes_contexts_by() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.await_balance();
    cluster.create_topic("t", 1);
    let leader = cluster.leader_of(DATA);
    let call = cluster.send_traced(leader, &produce(Acks::Quorum), CONTEXT);
    cluster.wait(call);
    cluster.await_same();
    assert!(cluster.running().into_iter().all(|id| cluster.node_mut(id).spans().is_empty()));
}
