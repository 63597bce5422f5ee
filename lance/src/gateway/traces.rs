//! Traces of clients' requests: which are recorded, and the spans of the node that a client is connected to.
//!
//! A produce request that comes with a trace context is recorded if its trace is; one without, if chance says so. The caller
//! of a recorded request has the flag `TRACED`, in the broker too; others do not, whatever they came with. Two spans are
//! made here: the request, from its arrival until its reply is handed over for sending, and, where another node must serve
//! it, the wait for that one.

use bytes::Bytes;
use lnc_broker::Caller;
use lnc_broker::trace::{Span, SpanKind, Stopwatch, Value};
use lnc_protocol::batch::BatchHeader;
use lnc_protocol::message::{Acks, ProduceRequest};
use lnc_protocol::{ErrorCode, Flags, Opcode, Request, TraceContext, names};
use lnc_raft::NodeId;
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Requests that are recorded at once. What is beyond is not sampled.
const MOST: usize = 4096;

/// Takes spans that are over.
pub type SpanSink = Rc<dyn Fn(Span)>;

/// See the module documentation.
pub struct Traces {
    node: u64,
    /// Requests whose random number is below this are recorded; `None`: all.
    threshold: Option<u64>,
    random: Cell<u64>,
    stopwatch: Stopwatch,
    sink: SpanSink,
    /// By connection and correlation id.
    open: RefCell<BTreeMap<(u64, u64), Open>>,
}

/// A request that has no reply yet.
struct Open {
    context: TraceContext,
    parent: Option<u64>,
    start_us: u64,
    name: Cow<'static, str>,
    attributes: Vec<(&'static str, Value)>,
    /// The span of the wait for another node, when it began, and which node.
    forward: Option<(u64, u64, NodeId)>,
}

impl Traces {
    /// Record this share of the requests, 0 to 1. `seed` is where random numbers begin.
    pub fn new(node: u64, share: f64, seed: u64, stopwatch: Stopwatch, sink: SpanSink) -> Self {
        // A float beyond what fits becomes the largest number.
        let threshold = (share < 1.0).then_some((share * 2f64.powi(64)) as u64);
        Self { node, threshold, random: Cell::new(seed), stopwatch, sink, open: RefCell::default() }
    }

    /// A request has come. Gives the flags of its caller, which say whether it is recorded.
    pub(super) fn arrived(
        &self,
        mut caller: Caller,
        opcode: Opcode,
        context: Option<TraceContext>,
        body: &Bytes,
    ) -> Flags {
        caller.flags = caller.flags.without(Flags::TRACED);
        let wanted = opcode == Opcode::Produce && self.is_wanted(caller.flags, context);
        if !wanted || self.open.borrow().len() >= MOST {
            return caller.flags;
        }
        let trace_id = context.map_or_else(|| self.new_trace_id(), |context| context.trace_id);
        let parent = context.map(|context| context.span_id);
        let (name, attributes) = self.describe(body);
        let context = TraceContext { trace_id, span_id: self.new_id(), sampled: true };
        let start_us = (self.stopwatch)();
        let open = Open { context, parent, start_us, name, attributes, forward: None };
        self.open.borrow_mut().insert((caller.connection, caller.correlation), open);
        caller.flags | Flags::TRACED
    }

    /// A node that passes a request on has decided for it.
    fn is_wanted(&self, flags: Flags, context: Option<TraceContext>) -> bool {
        match context {
            Some(context) => context.sampled,
            None if flags.contains(Flags::FORWARDED) => false,
            None => self.threshold.is_none_or(|threshold| self.draw() < threshold),
        }
    }

    /// The span that a recorded request is, for those below it.
    pub fn context(&self, caller: Caller) -> Option<TraceContext> {
        self.open.borrow().get(&(caller.connection, caller.correlation)).map(|open| open.context)
    }

    /// A request is about to be passed on: the context that goes with it.
    pub(super) fn forwarded(&self, caller: Caller, to: NodeId) -> Option<TraceContext> {
        let (span_id, now) = (self.new_id(), (self.stopwatch)());
        let mut open = self.open.borrow_mut();
        let open = open.get_mut(&(caller.connection, caller.correlation))?;
        open.forward = Some((span_id, now, to));
        Some(TraceContext { span_id, ..open.context })
    }

    /// A request has its reply.
    pub(super) fn answered(&self, caller: Caller, code: ErrorCode) {
        let Some(open) = self.open.borrow_mut().remove(&(caller.connection, caller.correlation)) else { return };
        let Open { context: TraceContext { trace_id, span_id, .. }, parent, start_us, name, attributes, forward } =
            open;
        let end_us = (self.stopwatch)();
        let error = (code != ErrorCode::None).then_some(Cow::Borrowed(code.name()));
        if let Some((forward_id, start_us, to)) = forward {
            let own = ("lance.node.id", Value::Number(self.node));
            (self.sink)(Span {
                trace_id,
                span_id: forward_id,
                parent: Some(span_id),
                name: "forward".into(),
                kind: SpanKind::Client,
                start_us,
                end_us,
                error: error.clone(),
                attributes: vec![own, ("lance.peer.id", Value::Number(to.node()))],
            });
        }
        (self.sink)(Span {
            trace_id,
            span_id,
            parent,
            name,
            kind: SpanKind::Server,
            start_us,
            end_us,
            error,
            attributes,
        });
    }

    /// All clients are gone, and with them the requests.
    pub(super) fn forget(&self) {
        self.open.borrow_mut().clear();
    }

    /// Name and attributes of a produce request, with the names of OpenTelemetry's conventions for messaging where there
    /// are any.
    fn describe(&self, body: &Bytes) -> (Cow<'static, str>, Vec<(&'static str, Value)>) {
        let text = |text: &str| Value::Text(text.to_owned());
        let mut attributes = vec![
            ("messaging.system", text("lance")),
            ("messaging.operation.name", text("produce")),
            ("messaging.operation.type", text("send")),
            ("lance.node.id", Value::Number(self.node)),
        ];
        let Ok(Request::Produce(request)) = Request::decode(Opcode::Produce, body.clone()) else {
            return ("produce".into(), attributes);
        };
        let ProduceRequest { acks, topic, partition, batch, .. } = request;
        attributes.push(("messaging.destination.partition.id", Value::Text(partition.to_string())));
        attributes.push(("lance.batch.bytes", Value::Number(batch.len() as u64)));
        let acks = match acks {
            Acks::None => "none",
            Acks::Leader => "leader",
            Acks::Quorum => "quorum",
        };
        attributes.push(("lance.acks", text(acks)));
        if let Ok(header) = BatchHeader::parse(&batch) {
            attributes.push(("messaging.batch.message_count", Value::Number(header.record_count.into())));
        }
        if names::validate(&topic).is_err() {
            return ("produce".into(), attributes);
        }
        let name = format!("produce {topic}");
        attributes.push(("messaging.destination.name", Value::Text(topic)));
        (name.into(), attributes)
    }

    /// A random number: SplitMix64 (Steele, Lea, Flood 2014).
    fn draw(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn new_id(&self) -> u64 {
        self.draw().max(1)
    }

    fn new_trace_id(&self) -> u128 {
        u128::from(self.new_id()) << 64 | u128::from(self.draw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::{BatchBuilder, Codec};

    /// Traces with a clock that goes on by one with each look at it, and what they have recorded.
    fn recording(share: f64) -> (Traces, Rc<RefCell<Vec<Span>>>) {
        let (spans, clock) = (Rc::new(RefCell::new(Vec::new())), Cell::new(100));
        let kept = spans.clone();
        let sink = Rc::new(move |span| kept.borrow_mut().push(span));
        (Traces::new(3, share, 42, Box::new(move || clock.replace(clock.get() + 1)), sink), spans)
    }

    fn caller(correlation: u64, flags: Flags) -> Caller {
        Caller { connection: 1, correlation, flags }
    }

    fn body(topic: &str) -> Bytes {
        let mut batch = BatchBuilder::new(Codec::None);
        for value in [&b"one"[..], b"two"] {
            batch.append(1_700_000_000_000, None, Some(value), &[]).unwrap();
        }
        let request =
            ProduceRequest { topic: topic.to_owned(), partition: 4, batch: batch.build(), ..Default::default() };
        let mut body = bytes::BytesMut::new();
        Request::Produce(request).encode_body(&mut body);
        body.freeze()
    }

    fn is_recorded(traces: &Traces, flags: Flags, opcode: Opcode, context: Option<TraceContext>) -> bool {
        let caller = caller(1, flags);
        let flags = traces.arrived(caller, opcode, context, &body("t"));
        let found = traces.context(caller).is_some();
        traces.forget();
        assert_eq!(flags.contains(Flags::TRACED), found);
        found
    }

    #[test]
    fn a_context_decides_and_without_one_chance_does_at_the_first_node() {
        let context = TraceContext { trace_id: 7, span_id: 8, sampled: true };
        let unrecorded = TraceContext { sampled: false, ..context };
        let (none, forwarded) = (Flags::NONE, Flags::FORWARDED);
        for (share, flags, context, expected) in [
            (0.0, none, None, false),
            (0.0, none, Some(context), true),
            (0.0, forwarded, Some(context), true),
            (1.0, none, None, true),
            (1.0, none, Some(unrecorded), false),
            (1.0, forwarded, None, false),
        ] {
            let (traces, _) = recording(share);
            assert_eq!(
                is_recorded(&traces, flags, Opcode::Produce, context),
                expected,
                "{share} {flags:?} {context:?}"
            );
            assert!(!is_recorded(&traces, flags, Opcode::Fetch, context), "only produce requests");
        }
        // A flag without a context, which the wire does not let through, means nothing.
        let (traces, _) = recording(0.0);
        assert!(!is_recorded(&traces, Flags::TRACED, Opcode::Produce, None));
    }

    #[test]
    fn the_share_is_kept() {
        let (traces, _) = recording(0.1);
        let recorded = (0..10_000).filter(|_| is_recorded(&traces, Flags::NONE, Opcode::Produce, None)).count();
        assert!((850..1150).contains(&recorded), "{recorded}");
    }

    #[test]
    fn a_request_that_is_passed_on_is_two_spans() {
        let (traces, spans) = recording(1.0);
        let caller = caller(1, Flags::NONE);
        assert_eq!(traces.arrived(caller, Opcode::Produce, None, &body("words")), Flags::TRACED);
        let request = traces.context(caller).unwrap();
        let forward = traces.forwarded(caller, NodeId(2)).unwrap();
        assert_eq!((forward.trace_id, forward.sampled), (request.trace_id, true));
        assert!(request.trace_id != 0 && request.span_id != forward.span_id);
        traces.answered(caller, ErrorCode::NotLeader);
        assert_eq!(traces.context(caller), None);
        traces.answered(caller, ErrorCode::None);
        let spans = spans.take();
        assert_eq!(spans.len(), 2);
        let [wait, whole] = &spans[..] else { unreachable!() };
        assert_eq!((wait.name.as_ref(), wait.parent, wait.kind), ("forward", Some(request.span_id), SpanKind::Client));
        assert_eq!((whole.name.as_ref(), whole.parent, whole.kind), ("produce words", None, SpanKind::Server));
        assert!(spans.iter().all(|span| span.error.as_deref() == Some("NotLeader")));
        assert!(whole.start_us < wait.start_us && wait.end_us <= whole.end_us);
        for expected in [
            ("messaging.destination.name", Value::Text("words".into())),
            ("messaging.destination.partition.id", Value::Text("4".into())),
            ("messaging.batch.message_count", Value::Number(2)),
            ("lance.acks", Value::Text("quorum".into())),
            ("lance.node.id", Value::Number(3)),
        ] {
            assert!(whole.attributes.contains(&expected), "{expected:?} in {whole:?}");
        }
    }

    #[test]
    fn what_is_no_produce_request_or_names_no_topic_is_recorded_all_the_same() {
        let (traces, spans) = recording(1.0);
        for (number, body) in [Bytes::from_static(b"nonsense"), body("no topic has blanks")].into_iter().enumerate() {
            let caller = caller(number as u64, Flags::NONE);
            traces.arrived(caller, Opcode::Produce, None, &body);
            traces.answered(caller, ErrorCode::InvalidRequest);
        }
        let names: Vec<_> = spans.take().into_iter().map(|span| span.name).collect();
        assert_eq!(names, ["produce", "produce"], "names of spans are bounded");
    }

    #[test]
    fn requests_beyond_the_most_are_not_sampled() {
        let (traces, _) = recording(1.0);
        let recorded = |number| traces.arrived(caller(number, Flags::NONE), Opcode::Produce, None, &body("t"));
        assert!((0..MOST as u64).all(|number| recorded(number) == Flags::TRACED));
        assert_eq!(recorded(MOST as u64), Flags::NONE);
    }
}
