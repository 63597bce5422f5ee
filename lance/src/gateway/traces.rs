//! Traces of clients' requests: which are recorded, and the spans of the node that a client is connected to.
//!
//! A produce request that comes with a trace context is recorded if its trace is; one without, if chance says so. The caller
//! of a recorded request has the flag `TRACED`, in the broker too; others do not, whatever they came with. Two spans are
//! made here: the request, from its arrival until its reply is handed over for sending, and, where another node must serve
//! it, the wait for that one.

use crate::broker::Caller;
use crate::broker::trace::{Span, SpanKind, Stopwatch, Value};
use bytes::Bytes;
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
