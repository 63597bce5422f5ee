//! Traces: what this node does with the requests of recorded traces, as spans. It looks on: nothing that the broker does
//! depends on it, but that notices go to followers beside the appends.
//!
//! A request is recorded if the driver says to which trace it belongs ([`Broker::trace`]) and its caller has the flag
//! `TRACED`. A leader makes these spans of it, and a follower that hears of its entry the last two:
//!
//! | span | from | to |
//! |---|---|---|
//! | `queue` | the request is checked and accepted | its entry is proposed |
//! | `replicate` | the entry is proposed | the entry is committed |
//! | `journal` | a flush of the journal with the entry is submitted | the entry is on stable storage |
//! | `apply` | the entry is committed | the reply is there |
//! | `append` | the entry arrives at a follower | its acknowledgement leaves |
//!
//! Ids of spans follow from their parents, so this draws no random numbers, and whoever must name a span can do so before
//! it is over.

use crate::log::proposals::Origin;
use crate::watch::event::{Event, Sink};
use crate::{Broker, Caller, Clock, Output};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_metrics::Counter;
use lnc_protocol::{Flags, TraceContext};
use lnc_raft::{AppendReply, Body, Entry, Index, Message, NodeId, Term};
use lnc_replication::trace::{SINCE_FORMAT, TraceNotice};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Requests, and entries of other leaders, that are followed at once. What is beyond is left out and counted.
const MOST: usize = 4096;

/// Time after which nobody waits for an entry of another leader any more, in microseconds.
const PATIENCE_US: u64 = 60_000_000;

/// The same for a request: the longest time that a producer may wait, and the time to find out.
const REQUEST_PATIENCE_US: u64 = 310_000_000;

/// A stopwatch: microseconds on a clock that never goes back.
pub type Stopwatch = Box<dyn Fn() -> u64>;

/// What a node is in a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// It serves what another process asks for.
    Server,
    /// It waits for another process.
    Client,
    /// Neither.
    Internal,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A number.
    Number(u64),
}

/// A stretch of time in which a node did something for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The trace.
    pub trace_id: u128,
    /// The span itself.
    pub span_id: u64,
    /// The span that it is part of; `None` for the whole request.
    pub parent: Option<u64>,
    /// What was done.
    pub name: Cow<'static, str>,
    /// What the node is in it.
    pub kind: SpanKind,
    /// When it began, on the stopwatch.
    pub start_us: u64,
    /// When it was over.
    pub end_us: u64,
    /// The name of the error with which it ended, if it did.
    pub error: Option<Cow<'static, str>>,
    /// What else there is to say.
    pub attributes: Vec<(&'static str, Value)>,
}

/// Which part of a request a span is about; its number goes into the span's id.
#[derive(Clone, Copy)]
enum Stage {
    Queue = 1,
    Replicate = 2,
    Journal = 3,
    Apply = 4,
    Append = 5,
}

/// The way of an entry onto this node's disk.
#[derive(Clone, Copy, Default)]
struct Journaled {
    flush_us: Option<u64>,
    durable_us: Option<u64>,
}

/// Where a request has its place in the log.
struct Place {
    group: GroupId,
    term: Term,
    index: Index,
    entry_bytes: u64,
    proposed_us: u64,
    journaled: Journaled,
    committed_us: Option<u64>,
    /// Followers that have been sent a notice.
    told: BTreeSet<NodeId>,
}

/// A request that is being followed.
struct Followed {
    context: TraceContext,
    arrived_us: u64,
    queued_us: Option<u64>,
    place: Option<Place>,
    /// Its reply has left, perhaps with this error.
    replied: Option<Option<&'static str>>,
}

/// An entry of another leader that is being followed.
struct Watched {
    notice: TraceNotice,
    heard_us: u64,
    entry_bytes: u64,
    received_us: Option<u64>,
    journaled: Journaled,
}

/// See the module documentation.
pub(crate) struct Tracer {
    stopwatch: Stopwatch,
    node: u64,
    /// By connection and correlation id.
    requests: BTreeMap<(u64, u64), Followed>,
    /// By group, index and the leader's span.
    watched: BTreeMap<(GroupId, Index, u64), Watched>,
    spans: Vec<Span>,
    left_out: Counter,
}

/// What all spans of one node about one entry say.
fn about_entry(node: u64, group: GroupId, term: Term, index: Index, entry_bytes: u64) -> Vec<(&'static str, Value)> {
    vec![
        ("lance.node.id", Value::Number(node)),
        ("lance.group", Value::Number(group.0.into())),
        ("lance.term", Value::Number(term)),
        ("lance.index", Value::Number(index)),
        ("lance.entry.bytes", Value::Number(entry_bytes)),
    ]
}

/// The id of a span below another one: never 0, and never that of a sibling on this node or another but by chance.
fn child_id(parent: u64, node: u64, stage: Stage) -> u64 {
    let mut hash = parent;
    for part in [node, stage as u64] {
        // The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
        hash = (hash ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
    }
    hash.max(1)
}

impl Journaled {
    fn submitted(&mut self, now: u64) {
        self.flush_us.get_or_insert(now);
    }

    fn durable(&mut self, now: u64) {
        self.durable_us.get_or_insert(now);
    }
}

impl Tracer {
    fn new(node: u64, stopwatch: Stopwatch, left_out: Counter) -> Self {
        let (requests, watched) = (BTreeMap::new(), BTreeMap::new());
        Self { stopwatch, node, requests, watched, spans: Vec::new(), left_out }
    }

    fn now(&self) -> u64 {
        (self.stopwatch)()
    }

    /// A request of a trace is about to come.
    fn begin(&mut self, caller: Caller, context: TraceContext) {
        if self.requests.len() >= MOST {
            return self.left_out.inc();
        }
        let followed = Followed { context, arrived_us: self.now(), queued_us: None, place: None, replied: None };
        self.requests.insert((caller.connection, caller.correlation), followed);
    }

    /// A request waits to be proposed.
    fn queued(&mut self, caller: Caller) {
        if is_traced(&caller) {
            let now = self.now();
            let followed = self.requests.get_mut(&(caller.connection, caller.correlation));
            followed.into_iter().for_each(|followed| followed.queued_us = Some(now));
        }
    }

    /// Commands have become an entry.
    fn proposed(
        &mut self,
        group: GroupId,
        (term, index): (Term, Index),
        entry_bytes: usize,
        origins: &[(u32, Option<Origin>)],
    ) {
        let callers = origins.iter().filter_map(|(_, origin)| origin.as_ref()).map(|origin| origin.caller);
        for caller in callers.filter(is_traced) {
            let proposed_us = self.now();
            if let Some(followed) = self.requests.get_mut(&(caller.connection, caller.correlation)) {
                followed.place = Some(Place {
                    group,
                    term,
                    index,
                    entry_bytes: entry_bytes as u64,
                    proposed_us,
                    journaled: Journaled::default(),
                    committed_us: None,
                    told: BTreeSet::new(),
                });
            }
        }
    }

    /// A leader says that one of its entries is of a trace.
    fn heard(&mut self, notice: TraceNotice) {
        if self.watched.len() >= MOST {
            return self.left_out.inc();
        }
        let key = (notice.group, notice.index, notice.span_id);
        let heard_us = self.now();
        let watched = Watched { notice, heard_us, entry_bytes: 0, received_us: None, journaled: Journaled::default() };
        self.watched.entry(key).or_insert(watched);
    }

    /// A message of consensus arrives.
    fn received(&mut self, group: GroupId, message: &Message) {
        let Body::Append { entries, .. } = &message.body else { return };
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        if self.watched.is_empty() {
            return;
        }
        let now = self.now();
        for ((_, index, _), watched) in self.watched.range_mut((group, first.index, 0)..=(group, last.index, u64::MAX))
        {
            let entry = entries.get((index - first.index) as usize);
            let is_it = |entry: &&Entry| entry.term == watched.notice.term && message.from == watched.notice.from;
            if let Some(entry) = entry.filter(is_it) {
                watched.entry_bytes = entry.payload.len() as u64;
                watched.received_us.get_or_insert(now);
            }
        }
    }

    /// A flush of the journal was submitted, with all that this node had appended.
    fn flush_submitted(&mut self) {
        if self.requests.is_empty() && self.watched.is_empty() {
            return;
        }
        let now = self.now();
        let places = self.requests.values_mut().filter_map(|followed| followed.place.as_mut());
        places.for_each(|place| place.journaled.submitted(now));
        let received = self.watched.values_mut().filter(|watched| watched.received_us.is_some());
        received.for_each(|watched| watched.journaled.submitted(now));
    }

    /// Entries of a group up to this one are on stable storage.
    fn durable(&mut self, group: GroupId, term: Term, index: Index) {
        if self.requests.is_empty() && self.watched.is_empty() {
            return;
        }
        let now = self.now();
        let places = self.requests.values_mut().filter_map(|followed| followed.place.as_mut());
        let has = |place: &&mut Place| place.group == group && place.index <= index && place.term <= term;
        places.filter(has).for_each(|place| place.journaled.durable(now));
        let watched = self.watched.range_mut((group, 0, 0)..=(group, index, u64::MAX)).map(|(_, watched)| watched);
        let has = |watched: &&mut Watched| watched.received_us.is_some() && watched.notice.term <= term;
        watched.filter(has).for_each(|watched| watched.journaled.durable(now));
    }

    /// An entry is committed, and about to be applied.
    fn committed(&mut self, group: GroupId, term: Term, index: Index) {
        if self.requests.is_empty() {
            return;
        }
        let now = self.now();
        let places = self.requests.values_mut().filter_map(|followed| followed.place.as_mut());
        let is_it = |place: &&mut Place| (place.group, place.term, place.index) == (group, term, index);
        places.filter(is_it).for_each(|place| place.committed_us = Some(now));
    }

    /// What has left, at the end of a turn: replies and acknowledgements end spans. Gives the notices for followers to which
    /// appends have left, of those that know them.
    pub(crate) fn turned(
        &mut self,
        from: NodeId,
        outputs: &[Output],
        messages: &[(GroupId, Message)],
        knows: impl Fn(NodeId) -> bool,
    ) -> VecDeque<TraceNotice> {
        self.note_replies(outputs);
        let now = self.now();
        let is_over = |followed: &Followed| match (&followed.place, followed.replied) {
            (Some(place), outcome) => place.committed_us.is_some() || matches!(outcome, Some(Some(_))),
            (None, outcome) => outcome.is_some(),
        };
        let over: Vec<Followed> =
            self.requests.extract_if(.., |_, followed| is_over(followed)).map(|(_, f)| f).collect();
        for followed in over {
            let error = followed.replied.flatten();
            self.finish(followed, error, now);
        }
        let mut notices = VecDeque::new();
        for (group, message) in messages {
            match &message.body {
                Body::Append { entries, .. } if !entries.is_empty() && knows(message.to) => {
                    self.tell(from, *group, message, entries, &mut notices);
                }
                Body::AppendReply(AppendReply::Accepted { match_index }) => {
                    self.acknowledged(*group, message.to, *match_index, now);
                }
                _ => {}
            }
        }
        notices
    }

    fn note_replies(&mut self, outputs: &[Output]) {
        for output in outputs {
            match output {
                Output::Reply { caller, reply, .. } if is_traced(caller) => {
                    let key = (caller.connection, caller.correlation);
                    if let Some(followed) = self.requests.get_mut(&key) {
                        followed.replied = Some(reply.result.as_ref().err().map(|error| error.code.name()));
                    }
                }
                // Its way from here on is the other node's to tell.
                Output::Forward { caller, .. } if is_traced(caller) => {
                    self.requests.remove(&(caller.connection, caller.correlation));
                }
                Output::Reply { .. } | Output::Relay { .. } | Output::Forward { .. } => {}
            }
        }
    }

    fn tell(
        &mut self,
        from: NodeId,
        group: GroupId,
        message: &Message,
        entries: &[Entry],
        notices: &mut VecDeque<TraceNotice>,
    ) {
        let (first, last) = (entries[0].index, entries[entries.len() - 1].index);
        for followed in self.requests.values_mut() {
            let Some(place) = &mut followed.place else { continue };
            let is_in = place.group == group && (first..=last).contains(&place.index) && place.term == message.term;
            if is_in && place.told.insert(message.to) {
                let span_id = child_id(followed.context.span_id, self.node, Stage::Replicate);
                let (term, index, trace_id) = (place.term, place.index, followed.context.trace_id);
                notices.push_back(TraceNotice { from, to: message.to, group, term, index, trace_id, span_id });
            }
        }
    }

    fn acknowledged(&mut self, group: GroupId, leader: NodeId, match_index: Index, now: u64) {
        let has = |watched: &Watched| watched.journaled.durable_us.is_some() && watched.notice.from == leader;
        let range = (group, 0, 0)..=(group, match_index, u64::MAX);
        let done: Vec<Watched> = self.watched.extract_if(range, |_, watched| has(watched)).map(|(_, w)| w).collect();
        done.into_iter().for_each(|watched| self.finish_watched(watched, None, now));
    }

    /// Forget what has taken too long.
    fn expire(&mut self) {
        if self.requests.is_empty() && self.watched.is_empty() {
            return;
        }
        let now = self.now();
        let is_late = |since: u64, patience: u64| now >= since.saturating_add(patience);
        let late = |_: &(u64, u64), followed: &mut Followed| is_late(followed.arrived_us, REQUEST_PATIENCE_US);
        let requests: Vec<Followed> = self.requests.extract_if(.., late).map(|(_, followed)| followed).collect();
        requests.into_iter().for_each(|followed| self.finish(followed, Some("Timeout"), now));
        let late = |_: &(GroupId, Index, u64), watched: &mut Watched| is_late(watched.heard_us, PATIENCE_US);
        let watched: Vec<Watched> = self.watched.extract_if(.., late).map(|(_, watched)| watched).collect();
        watched.into_iter().for_each(|watched| self.finish_watched(watched, Some("Timeout"), now));
    }

    /// Make a request's spans; `error` belongs to the stage that it was in. One that was refused before it was in any has
    /// none.
    fn finish(&mut self, followed: Followed, error: Option<&'static str>, now: u64) {
        let Followed { context, queued_us: Some(queued_us), place, .. } = followed else { return };
        let (trace_id, parent, node) = (context.trace_id, context.span_id, self.node);
        let queued_until = place.as_ref().map_or(now, |place| place.proposed_us);
        let mut make = |stage, name: &'static str, kind, from: u64, to: Option<u64>, attributes, error: Option<_>| {
            self.spans.push(Span {
                trace_id,
                span_id: child_id(parent, node, stage),
                parent: Some(parent),
                name: name.into(),
                kind,
                start_us: from,
                end_us: to.unwrap_or(now),
                error: error.map(Cow::Borrowed),
                attributes,
            });
        };
        let own = vec![("lance.node.id", Value::Number(node))];
        let waiting = error.filter(|_| place.is_none());
        make(Stage::Queue, "queue", SpanKind::Internal, queued_us, Some(queued_until), own, waiting);
        let Some(Place { group, term, index, entry_bytes, proposed_us, journaled, committed_us, .. }) = place else {
            return;
        };
        let about = about_entry(node, group, term, index, entry_bytes);
        if let Some(from) = journaled.flush_us {
            let to = journaled.durable_us;
            let error = error.filter(|_| to.is_none());
            make(Stage::Journal, "journal", SpanKind::Internal, from, to, about.clone(), error);
        }
        let uncommitted = error.filter(|_| committed_us.is_none());
        make(Stage::Replicate, "replicate", SpanKind::Client, proposed_us, committed_us, about.clone(), uncommitted);
        if let Some(from) = committed_us {
            make(Stage::Apply, "apply", SpanKind::Internal, from, None, about, error);
        }
    }

    /// Make a follower's spans. Of what has never arrived there is nothing to say.
    fn finish_watched(&mut self, watched: Watched, error: Option<&'static str>, now: u64) {
        let Watched { notice, entry_bytes, received_us: Some(received_us), journaled, .. } = watched else { return };
        let TraceNotice { from, group, term, index, trace_id, span_id: parent, .. } = notice;
        let about = about_entry(self.node, group, term, index, entry_bytes);
        let append = child_id(parent, self.node, Stage::Append);
        let error = error.map(Cow::Borrowed);
        if let Some(flush_us) = journaled.flush_us {
            self.spans.push(Span {
                trace_id,
                span_id: child_id(append, self.node, Stage::Journal),
                parent: Some(append),
                name: "journal".into(),
                kind: SpanKind::Internal,
                start_us: flush_us,
                end_us: journaled.durable_us.unwrap_or(now),
                error: error.clone().filter(|_| journaled.durable_us.is_none()),
                attributes: about.clone(),
            });
        }
        let mut attributes = about;
        attributes.push(("lance.peer.id", Value::Number(from.node())));
        self.spans.push(Span {
            trace_id,
            span_id: append,
            parent: Some(parent),
            name: "append".into(),
            kind: SpanKind::Server,
            start_us: received_us,
            end_us: now,
            error,
            attributes,
        });
    }
}

fn is_traced(caller: &Caller) -> bool {
    caller.flags.contains(Flags::TRACED)
}

impl Sink for Tracer {
    fn see(&mut self, _: Clock, event: &Event<'_>) {
        match *event {
            Event::Tick => self.expire(),
            Event::Taken(group, message) => self.received(group, message),
            Event::Noticed(notice) => self.heard(notice),
            Event::Queued(caller) => self.queued(caller),
            Event::Proposed { group, term, index, bytes, origins } => {
                self.proposed(group, (term, index), bytes, origins);
            }
            Event::FlushSubmitted => self.flush_submitted(),
            Event::Durable(group, term, index) => self.durable(group, term, index),
            Event::Committed(group, term, index) => self.committed(group, term, index),
            _ => {}
        }
    }
}

impl<D: Disk> Broker<D> {
    /// From now on record traces, with the times of this stopwatch. [`Broker::take_spans`] must be called after each turn.
    pub fn record_traces(&mut self, stopwatch: Stopwatch) {
        let left_out = self.metrics.trace_spans_total.with_label_values(&["left_out"]);
        self.watch.tracer = Some(Box::new(Tracer::new(self.config.node.node(), stopwatch, left_out)));
    }

    /// The request that this caller is about to make belongs to a recorded trace, below that span. Its flags must have
    /// `TRACED`.
    pub fn trace(&mut self, caller: Caller, context: TraceContext) {
        if let Some(tracer) = &mut self.watch.tracer {
            tracer.begin(caller, context);
        }
    }

    /// Take the spans that are over.
    pub fn take_spans(&mut self) -> Vec<Span> {
        self.watch.tracer.as_mut().map(|tracer| std::mem::take(&mut tracer.spans)).unwrap_or_default()
    }

    /// The end of a turn for who records traces; gives the notices that go in front of the messages.
    pub(crate) fn trace_turn(&mut self, messages: &[(GroupId, Message)]) -> VecDeque<TraceNotice> {
        let Some(tracer) = &mut self.watch.tracer else { return VecDeque::new() };
        let agreed = self.catalog.format() >= SINCE_FORMAT;
        let peers = &self.peers;
        let knows = |peer| agreed && peers.greeted(peer).is_some_and(|peer| peer.formats.newest >= SINCE_FORMAT);
        tracer.turned(self.config.node, &self.outputs, messages, knows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use lnc_metrics::Metrics;
    use lnc_raft::EntryKind;
    use std::cell::Cell;
    use std::rc::Rc;

    const GROUP: GroupId = GroupId(1);
    const LEADER: NodeId = NodeId(1);
    const ME: NodeId = NodeId(2);

    /// A tracer, its clock, and what it has left out.
    fn tracer() -> (Tracer, Rc<Cell<u64>>, Counter) {
        let clock = Rc::new(Cell::new(0));
        let left_out = Metrics::new().trace_spans_total.with_label_values(&["left_out"]);
        let stopwatch = clock.clone();
        (Tracer::new(ME.node(), Box::new(move || stopwatch.get()), left_out.clone()), clock, left_out)
    }

    fn notice(index: Index) -> TraceNotice {
        TraceNotice { from: LEADER, to: ME, group: GROUP, term: 4, index, trace_id: 7, span_id: 100 + index }
    }

    fn append(term: Term, index: Index) -> Message {
        let entry = Entry { term, index, kind: EntryKind::Normal, payload: Bytes::from_static(b"payload") };
        let body = Body::Append { prev_index: index - 1, prev_term: 4, commit: 0, entries: vec![entry] };
        Message { from: LEADER, to: ME, term, body }
    }

    fn acknowledge(tracer: &mut Tracer, match_index: Index) {
        let body = Body::AppendReply(AppendReply::Accepted { match_index });
        let message = Message { from: ME, to: LEADER, term: 4, body };
        assert!(tracer.turned(ME, &[], &[(GROUP, message)], |_| true).is_empty());
    }

    #[test]
    fn an_entry_is_followed_from_its_arrival_to_its_acknowledgement() {
        let (mut tracer, clock, _) = tracer();
        tracer.heard(notice(5));
        tracer.heard(notice(6));
        clock.set(10);
        // Of another term, it is another entry.
        tracer.received(GROUP, &append(3, 5));
        tracer.flush_submitted();
        clock.set(20);
        tracer.received(GROUP, &append(4, 5));
        clock.set(30);
        tracer.flush_submitted();
        // What is acknowledged here is what was durable before.
        acknowledge(&mut tracer, 5);
        assert_eq!(tracer.spans, []);
        clock.set(40);
        tracer.durable(GroupId(2), 4, 9);
        clock.set(50);
        tracer.durable(GROUP, 4, 9);
        clock.set(60);
        acknowledge(&mut tracer, 4);
        acknowledge(&mut tracer, 9);
        let times: Vec<_> = tracer.spans.iter().map(|s| (s.name.as_ref(), s.start_us, s.end_us)).collect();
        assert_eq!(times, [("journal", 30, 50), ("append", 20, 60)]);
        assert_eq!(tracer.watched.len(), 1, "the other one has not come");
    }

    #[test]
    fn what_never_ends_is_told_as_late_and_forgotten() {
        let (mut tracer, clock, _) = tracer();
        tracer.heard(notice(5));
        tracer.heard(notice(6));
        tracer.received(GROUP, &append(4, 5));
        let caller = Caller { connection: 1, correlation: 2, flags: Flags::TRACED };
        tracer.begin(caller, TraceContext { trace_id: 8, span_id: 9, sampled: true });
        tracer.queued(caller);
        clock.set(PATIENCE_US - 1);
        tracer.expire();
        assert_eq!(tracer.spans, []);
        clock.set(PATIENCE_US);
        tracer.expire();
        clock.set(REQUEST_PATIENCE_US);
        tracer.expire();
        let ends: Vec<_> = tracer.spans.iter().map(|s| (s.name.as_ref(), s.trace_id, s.error.as_deref())).collect();
        assert_eq!(ends, [("append", 7, Some("Timeout")), ("queue", 8, Some("Timeout"))]);
        assert!(tracer.watched.is_empty() && tracer.requests.is_empty());
    }

    #[test]
    fn no_more_is_followed_than_there_is_room_for() {
        let (mut tracer, _, left_out) = tracer();
        for number in 0..MOST as u64 + 3 {
            tracer.heard(notice(number));
            let caller = Caller { connection: 1, correlation: number, flags: Flags::TRACED };
            tracer.begin(caller, TraceContext { trace_id: 8, span_id: 9, sampled: true });
        }
        assert_eq!((tracer.watched.len(), tracer.requests.len(), left_out.get()), (MOST, MOST, 6));
    }
}
