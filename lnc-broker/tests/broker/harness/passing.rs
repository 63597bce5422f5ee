//! Requests that nodes pass on to each other, as their gateways do: at once, unless the way is cut.

use super::Cluster;
use bytes::{Bytes, BytesMut};
use lnc_broker::{Caller, Passage};
use lnc_protocol::{Flags, Opcode, Reply, encode_reply, frame};
use std::collections::BTreeMap;

/// Connections with numbers from here on are those of other nodes, by node.
pub(super) const FORWARDING: u64 = 1 << 32;

/// A request that a broker wants passed on.
pub(super) struct Forward {
    pub(super) ticket: u64,
    pub(super) opcode: Opcode,
    pub(super) body: Bytes,
    pub(super) to: u64,
}

/// Who waits for the answer to a request that was passed on.
struct Passing {
    from: u64,
    ticket: u64,
    to: u64,
}

/// The node whose answers to others are late, and those answers: to which node, and to which of its requests.
struct Late {
    node: u64,
    answers: Vec<(u64, u64, Passage)>,
}

/// What is under way between nodes.
#[derive(Default)]
pub(super) struct Passings {
    last: u64,
    under_way: BTreeMap<u64, Passing>,
    late: Option<Late>,
}

impl Cluster {
    /// Pass a request on.
    pub(super) fn pass_on(&mut self, from: u64, forward: Forward) {
        let Forward { ticket, opcode, body, to } = forward;
        let clock = self.clock_of(to);
        if !self.node(to).is_running() {
            return self.tell_passage(from, ticket, Passage::NotSent);
        }
        self.passings.last += 1;
        let correlation = self.passings.last;
        self.passings.under_way.insert(correlation, Passing { from, ticket, to });
        if !self.network.passes(from, to) {
            return;
        }
        let caller = Caller { connection: FORWARDING + from, correlation, flags: Flags::FORWARDED };
        if let Some(broker) = self.node_mut(to).broker_mut() {
            broker.request(clock, caller, opcode, body);
        }
    }

    /// The answer to a request that was passed on.
    pub(super) fn answer_passed(&mut self, caller: Caller, opcode: Opcode, reply: &Reply) {
        let Some(Passing { from, ticket, to }) = self.passings.under_way.remove(&caller.correlation) else { return };
        let mut bytes = BytesMut::new();
        encode_reply(&mut bytes, opcode, 0, reply);
        let frame = frame::decode(&mut bytes, usize::MAX).expect("a reply").expect("a whole one");
        let passage = Passage::Answered(frame.body);
        match &mut self.passings.late {
            Some(late) if late.node == to => late.answers.push((from, ticket, passage)),
            _ => self.tell_passage(from, ticket, passage),
        }
    }

    /// What a node answers to others is late from now on.
    pub(crate) fn delay_answers_of(&mut self, node: u64) {
        self.passings.late = Some(Late { node, answers: Vec::new() });
    }

    /// It arrives. Gives how many answers there were.
    pub(crate) fn deliver_late_answers(&mut self) -> usize {
        let answers = self.passings.late.take().expect("some answers are late").answers;
        let count = answers.len();
        answers.into_iter().for_each(|(from, ticket, passage)| self.tell_passage(from, ticket, passage));
        count
    }

    /// A node is gone, and its connections with it.
    pub(super) fn break_passings(&mut self, id: u64) {
        self.passings.under_way.retain(|_, passing| passing.from != id);
        let broken = self.passings.under_way.extract_if(.., |_, passing| passing.to == id);
        for (_, Passing { from, ticket, .. }) in broken.collect::<Vec<_>>() {
            self.tell_passage(from, ticket, Passage::Broken);
        }
    }

    fn tell_passage(&mut self, node: u64, ticket: u64, passage: Passage) {
        let clock = self.clock_of(node);
        if let Some(broker) = self.node_mut(node).broker_mut() {
            broker.passed(clock, ticket, passage);
        }
    }
}
