//! Requests: from clients to nodes, from node to node, and what comes back. Each request is answered exactly once.

use super::super::invariants::Violation;
use super::super::network::Wire;
use super::super::node::{Input, Life};
use super::super::rng::hash_bytes;
use super::super::trace::Event;
use super::super::workload::{Action, Env, MembersView, Outcome};
use super::{Call, Checked, Cluster, What};
use bytes::{Bytes, BytesMut};
use lnc_broker::{Caller, Output, Passage};
use lnc_protocol::{Flags, Opcode, Reply, decode_reply, encode_reply, frame};
use lnc_replication::formation::Channel;

/// Connections with numbers from here on are those of other nodes, by node.
const FORWARDING: u64 = 1 << 32;
/// How long it takes to notice that nobody is there.
const CONNECT_TIMEOUT_US: u64 = 1_000_000;

impl Cluster {
    pub(super) fn timer(&mut self, client: usize, token: u64) -> Checked {
        self.with_client(client, |client, env| client.timer(env, token))
    }

    /// A request's outcome reaches its client, unless it has given up already.
    pub(super) fn outcome(&mut self, call: u64, outcome: Outcome) -> Checked {
        let Some(Call { client, token, opcode }) = self.calls.remove(&call) else { return Ok(()) };
        let (what, code) = match &outcome {
            Outcome::Done(_) => ("done", 0),
            Outcome::Refused(error) => ("refused", error.code.code()),
            Outcome::Lost => ("connection lost", 0),
            Outcome::TimedOut => ("given up", 0),
        };
        self.note(Event::Outcome { call, what, code });
        self.counts.outcome(opcode, &outcome);
        self.with_client(client, |client, env| client.outcome(env, token, outcome))
    }

    fn with_client(
        &mut self,
        number: usize,
        act: impl FnOnce(&mut dyn super::super::workload::Client, &mut Env<'_>) -> Checked,
    ) -> Checked {
        let mut actions = Vec::new();
        let suspects: Vec<u64> = self.nodes.iter().filter(|n| n.is_suspect(self.now_us)).map(|n| n.id).collect();
        let members = match self.clients[number].watches_members() {
            true => self.members_view(),
            false => MembersView::default(),
        };
        self.invariants.records.now_ms = self.now_us / 1000;
        let mut env = Env {
            now_us: self.now_us,
            present: &self.nodes.iter().filter(|node| !node.away).map(|node| node.id).collect::<Vec<_>>(),
            stopping: self.finish.is_stopping(),
            healed: self.finish.is_healed(),
            filled_us: self.filled_us,
            produce_every_us: self.settings.produce_every_us,
            large_permille: self.settings.large_permille,
            max_batch_bytes: self.settings.largest_batch(),
            last_sequence: self.settings.last_sequence,
            rng: &mut self.client_rng,
            records: &mut self.invariants.records,
            history: &mut self.history,
            suspects: &suspects,
            lives: &self.nodes.iter().map(|node| node.opened).collect::<Vec<_>>(),
            members,
            actions: &mut actions,
            client: number,
        };
        act(self.clients[number].as_mut(), &mut env)?;
        for action in actions {
            match action {
                Action::Provide { node } => self.provide(node),
                Action::Dismiss { node } => self.node(node).dismissed = true,
                Action::Retire { node } => self.retire(node),
                Action::Timer { after_us, token } => self.after(after_us, What::Timer { client: number, token }),
                Action::Send { node, request, flags, timeout_us, token } => {
                    let opcode = request.opcode();
                    let mut body = BytesMut::new();
                    request.encode_body(&mut body);
                    self.next_call += 1;
                    let call = self.next_call;
                    self.calls.insert(call, Call { client: number, token, opcode });
                    let caller = Caller { connection: number as u64, correlation: call, flags };
                    let delay_us = self.network.rng.between(500, 3_000);
                    self.after(delay_us, What::Request { node, caller, opcode, body: body.freeze() });
                    self.after(timeout_us, What::Outcome { call, outcome: Outcome::TimedOut });
                }
            }
        }
        Ok(())
    }

    fn members_view(&mut self) -> MembersView {
        let whole = |node: &mut super::super::node::Node| (node.is_up() && node.is_whole()).then_some(node.id);
        let whole: Vec<u64> = self.nodes.iter_mut().filter_map(whole).collect();
        // What the latest leader has committed is so, whoever else thinks otherwise.
        let led_without = |group: u32, id: u64| {
            let settled = self.nodes.iter().filter_map(|node| {
                let broker = node.broker()?;
                Some((broker.inspect(group)?.term, broker.settled_members(group)?))
            });
            let latest = settled.max_by_key(|(term, _)| *term);
            latest.is_some_and(|(_, members)| members.iter().all(|member| member.node() != id))
        };
        // Until the catalog has forgotten it, who comes under its number would be taken for it.
        let leaders = self.nodes.iter().filter_map(|node| {
            let broker = node.broker()?;
            broker.settled_members(0)?;
            Some((broker.inspect(0)?.term, broker))
        });
        let catalog = leaders.max_by_key(|(term, _)| *term).map(|(_, broker)| broker.membership());
        let is_known = |id: u64| catalog.as_ref().is_none_or(|catalog| catalog.nodes.contains_key(&id));
        let unnamed = |id: &u64| !is_known(*id) && (0..=self.settings.data_groups).all(|group| led_without(group, *id));
        MembersView { whole, unnamed: (1..=self.settings.nodes).filter(unnamed).collect() }
    }

    pub(super) fn request_arrives(&mut self, node: u64, caller: Caller, opcode: Opcode, body: Bytes) {
        let call = caller.correlation;
        let check = if body.len() > 64 { hash_bytes(&body[..64]) } else { hash_bytes(&body) };
        self.note(Event::Request { node, call, what: opcode.name(), check });
        match self.node(node).life {
            Life::Up(_) => self.input(node, Input::Request { caller, opcode, body }),
            // One that waits refuses clients, who then go elsewhere as they do when nobody listens.
            Life::Down { .. } | Life::Waiting => {
                let powered = !self.is_silent(node);
                let after_us = if powered { self.network.delay() } else { CONNECT_TIMEOUT_US };
                if caller.connection >= FORWARDING {
                    self.tell_passage(caller, Passage::NotSent, after_us);
                } else {
                    self.after(after_us, What::Outcome { call, outcome: Outcome::Lost });
                }
            }
        }
    }

    /// A node has an answer, or passes a request on.
    pub(super) fn output(&mut self, id: u64, output: Output) -> Checked {
        let (caller, opcode) = match &output {
            Output::Reply { caller, opcode, .. } | Output::Relay { caller, opcode, .. } => (*caller, *opcode),
            // It is answered later.
            Output::Forward { .. } => return self.forward(id, output),
        };
        let key = (caller.connection, caller.correlation);
        let asked = self.node(id).running().and_then(|running| running.unanswered.remove(&key));
        if asked != Some(opcode) {
            let what = format!("node {id} answers request {key:?} with {output:?}, but what waits there is {asked:?}");
            return Err(Violation::new("one-answer", what));
        }
        match output {
            Output::Reply { caller, opcode, reply } => self.reply(id, caller, opcode, reply),
            Output::Relay { caller, opcode, body } => match decode_reply(opcode, body) {
                Ok(reply) => self.reply(id, caller, opcode, reply),
                Err(error) => {
                    return Err(Violation::new("one-answer", format!("node {id} relays what is no reply: {error}")));
                }
            },
            Output::Forward { .. } => {}
        }
        Ok(())
    }

    fn reply(&mut self, from: u64, caller: Caller, opcode: Opcode, reply: Reply) {
        let delay_us = self.network.rng.between(500, 3_000);
        if let Some(to) = caller.connection.checked_sub(FORWARDING) {
            // As with the request: the node that waits gives up before the answer comes through.
            let mut frame = BytesMut::new();
            encode_reply(&mut frame, opcode, 0, &reply);
            let body = frame.split_off(frame::HEADER_LEN).freeze();
            if self.network.passes_with(Wire { from, to, channel: Channel::Replication }, body.len()) {
                self.tell_passage(caller, Passage::Answered(body), delay_us);
            }
            return;
        }
        let outcome = match reply.result {
            Ok(response) => Outcome::Done(response),
            Err(error) => Outcome::Refused(error),
        };
        self.after(delay_us, What::Outcome { call: caller.correlation, outcome });
    }

    fn forward(&mut self, from: u64, output: Output) -> Checked {
        let Output::Forward { ticket, opcode, body, to, .. } = output else { return Ok(()) };
        let to = to.node();
        debug_assert!(to != from && opcode != Opcode::Fetch);
        self.next_forward += 1;
        let number = self.next_forward;
        self.note(Event::Forward { from, to, number });
        self.counts.forwards += 1;
        if let Some(running) = self.node(from).running() {
            running.forwards.insert(number, ticket);
        }
        // What does not pass waits until the node gives up: a partition is longer than a retransmission.
        if self.network.passes_with(Wire { from, to, channel: Channel::Replication }, body.len()) {
            let caller = Caller { connection: FORWARDING + from, correlation: number, flags: Flags::FORWARDED };
            let delay_us = self.network.delay();
            self.after(delay_us, What::Request { node: to, caller, opcode, body });
        }
        Ok(())
    }

    /// Word of a forwarded request travels back.
    fn tell_passage(&mut self, caller: Caller, passage: Passage, after_us: u64) {
        let node = caller.connection - FORWARDING;
        let life = self.node(node).lives;
        self.after(after_us, What::Passage { node, life, number: caller.correlation, passage });
    }

    pub(super) fn passed(&mut self, node: u64, life: u32, number: u64, passage: Passage) {
        if !self.lives(node, life) {
            return;
        }
        let now_us = self.now_us;
        let clock = self.node(node).clock(now_us);
        let Some(running) = self.node(node).running() else { return };
        if let Some(ticket) = running.forwards.remove(&number) {
            running.broker.passed(clock, ticket, passage);
            self.wake(node);
        }
    }

    /// A process is about to end: whoever waits for it learns that the connection broke.
    pub(super) fn drop_callers(&mut self, id: u64) {
        let Some(running) = self.node(id).running() else { return };
        let mut callers: Vec<(u64, u64)> = running.unanswered.keys().copied().collect();
        for input in &running.inbox {
            if let Input::Request { caller, .. } = input {
                callers.push((caller.connection, caller.correlation));
            }
        }
        for (connection, correlation) in callers {
            let after_us = self.network.delay();
            if connection >= FORWARDING {
                let caller = Caller { connection, correlation, flags: Flags::FORWARDED };
                self.tell_passage(caller, Passage::Broken, after_us);
            } else {
                self.after(after_us, What::Outcome { call: correlation, outcome: Outcome::Lost });
            }
        }
    }
}
