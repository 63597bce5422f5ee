//! Bytes between nodes: sent, held back, lost, delivered; connections that break and are made again.

use super::super::adapter;
use super::super::adapter::Mail;
use super::super::network::{UNANSWERED_US, Wire};
use super::super::node::{Input, Life};
use super::super::trace::Event;
use super::{Cluster, What};
use bytes::BytesMut;
use lnc_raft::NodeId;
use lnc_replication::formation::{Channel, Identity, admit};

/// Shortest and longest pause before a connection is tried again, in microseconds.
const RETRY_US: (u64, u64) = (50_000, 600_000);
/// Pause between two times that peers are asked for newer members.
const INQUIRY_US: u64 = 1_000_000;

impl Cluster {
    /// A node sends bytes. What has no connection is dropped, as the real channels do.
    pub(super) fn send(&mut self, Mail { wire, to, mut bytes }: Mail) {
        // A member that was replaced has its node's address, but is not whom the message is for.
        let meant = self.nodes[wire.to as usize - 1].identity.node == to;
        let connection = self.network.connection(wire);
        if !connection.up || !meant {
            return;
        }
        let generation = connection.generation;
        self.counts.frames += 1;
        let weather = self.network.weather;
        if self.network.rng.chance(weather.loss) {
            return self.note(Event::Mishap { wire, what: "frame lost" });
        }
        if self.network.rng.chance(weather.corrupt) {
            let at = self.network.rng.between(0, bytes.len() as u64 - 1) as usize;
            bytes[at] ^= 1 << self.network.rng.below(8);
            self.note(Event::Mishap { wire, what: "bit flipped" });
        }
        // What comes behind something that does not arrive waits with it.
        let passes = self.network.passes_with(wire, bytes.len()) && self.network.connection(wire).held.is_empty();
        if !passes || !self.network.answers(wire) {
            self.await_answer(wire);
        }
        if !passes {
            self.network.connection(wire).held.push_back(bytes);
            return;
        }
        if self.network.rng.chance(weather.twice) {
            let again = self.now_us + 3 * self.network.delay();
            self.note(Event::Mishap { wire, what: "frame sent twice" });
            self.at(again, What::Frame { wire, generation, bytes: bytes.clone() });
        }
        let arrives_us = self.network.arrival(self.now_us, wire, bytes.len());
        self.at(arrives_us, What::Frame { wire, generation, bytes });
    }

    /// The sender waits for an acknowledgement that does not come.
    fn await_answer(&mut self, wire: Wire) {
        let now_us = self.now_us;
        let connection = self.network.connection(wire);
        let generation = connection.generation;
        if connection.unanswered_since.is_none() {
            connection.unanswered_since = Some(now_us);
            self.after(UNANSWERED_US, What::Unanswered { wire, generation });
        }
    }

    /// Bytes have waited for long: if they still do, the connection is given up.
    pub(super) fn unanswered(&mut self, wire: Wire, generation: u32) {
        let answers = self.network.answers(wire) && !self.is_silent(wire.to);
        let connection = self.network.connection(wire);
        if connection.generation != generation || !connection.up {
            return;
        }
        connection.unanswered_since = None;
        if !answers || !connection.held.is_empty() {
            let notice_us = self.network.rng.between(0, UNANSWERED_US);
            self.break_connection(wire, notice_us, "not answered");
        }
    }

    /// A machine that is off says nothing.
    pub(super) fn is_silent(&self, node: u64) -> bool {
        matches!(self.nodes[node as usize - 1].life, Life::Down { powered: false })
    }

    pub(super) fn frame_arrives(&mut self, wire: Wire, generation: u32, bytes: BytesMut) {
        let connection = self.network.connection(wire);
        if connection.generation != generation || !connection.up {
            return;
        }
        let to_life = connection.to_life;
        if self.is_silent(wire.to) {
            return self.await_answer(wire);
        }
        if !self.lives(wire.to, to_life) {
            let back_us = self.network.delay();
            return self.after(back_us, What::Broken { wire, generation });
        }
        if self.trace.borrow().is_read() {
            let messages = adapter::describe(&bytes, wire.to);
            self.note_frame(wire, &bytes, messages);
        } else {
            self.note_frame(wire, &bytes, String::new());
        }
        let received = &mut self.network.connection(wire).received;
        if received.is_empty() {
            *received = bytes;
        } else {
            received.extend_from_slice(&bytes);
        }
        loop {
            match adapter::next_frame(&mut self.network.connection(wire).received) {
                Ok(Some(body)) => {
                    let from = self.nodes[wire.from as usize - 1].identity.node;
                    if !self.node(wire.to).knows_member(from) {
                        return self.break_connection(wire, 0, "no longer a member");
                    }
                    self.input(wire.to, Input::Frame { from, body });
                }
                Ok(None) => return,
                Err(_) => {
                    self.counts.corrupt_frames += 1;
                    return self.break_connection(wire, 0, "frame refused");
                }
            }
        }
    }

    fn note_frame(&self, wire: Wire, bytes: &BytesMut, messages: String) {
        let mut check = [0; 8];
        let head = bytes.len().min(8);
        check[..head].copy_from_slice(&bytes[..head]);
        self.note(Event::Frame { wire, bytes: bytes.len(), check: u64::from_le_bytes(check), messages });
    }

    /// A connection is over. The sender notices now, the receiver after `notice_us`.
    pub(super) fn break_connection(&mut self, wire: Wire, notice_us: u64, what: &'static str) {
        if !self.network.take_down(wire) {
            return;
        }
        self.note(Event::Connection { wire, what });
        if wire.channel == Channel::Control
            && let Some((from, to)) = self.network.ends.get(&wire).copied()
        {
            self.tell_lost(wire.from, to, 0);
            self.tell_lost(wire.to, from, notice_us);
        }
        let life = self.node(wire.from).lives;
        self.reconnect(wire, life);
    }

    /// Whether the sender wants this connection.
    fn dials(&self, wire: Wire) -> bool {
        matches!(&self.nodes[wire.from as usize - 1].life, Life::Up(running) if running.dials.contains(&wire.to))
    }

    fn reconnect(&mut self, wire: Wire, life: u32) {
        let pause_us = self.network.rng.between(RETRY_US.0, RETRY_US.1);
        self.after(pause_us, What::Connect { wire, life });
    }

    fn tell_lost(&mut self, node: u64, peer: NodeId, after_us: u64) {
        let life = self.node(node).lives;
        if self.node(node).is_up() {
            self.after(after_us, What::PeerLost { node, life, peer });
        }
    }

    pub(super) fn broken(&mut self, wire: Wire, generation: u32) {
        if self.network.connection(wire).generation == generation {
            self.break_connection(wire, 0, "reset");
        }
    }

    pub(super) fn peer_lost(&mut self, node: u64, life: u32, peer: NodeId) {
        if self.lives(node, life) {
            self.note(Event::PeerLost { node, peer: peer.node() });
            self.input(node, Input::PeerLost(peer));
        }
    }

    /// Try to make a connection.
    pub(super) fn connect(&mut self, wire: Wire, life: u32) {
        if !self.lives(wire.from, life) || self.network.connection(wire).up || !self.dials(wire) {
            return;
        }
        let now_us = self.now_us;
        let reachable = self.network.answers(wire);
        let to = self.node(wire.to);
        let awake = reachable && to.paused_until_us <= now_us;
        let (to_life, greets) = (to.lives, awake && to.is_up());
        if awake && matches!(to.life, Life::Waiting) {
            let fresh = to.identity.incarnation;
            let clock = self.node(wire.from).clock(now_us);
            if let Some(running) = self.node(wire.from).running() {
                running.broker.applicant(clock, wire.to, fresh);
            }
        }
        if !greets {
            return self.reconnect(wire, life);
        }
        let (own, theirs) = (self.node(wire.from).greeting(), self.node(wire.to).greeting());
        // Who was dialled is believed, whether it lets this node in or not; who dials, only if it is let in.
        self.node(wire.from).learn(&theirs);
        if admit(&theirs, &own).is_err() {
            self.refused(wire, &own, &theirs);
            return self.reconnect(wire, life);
        }
        self.node(wire.to).learn(&own);
        let own = self.node(wire.from).greeting();
        if admit(&own, &theirs).is_err() {
            return self.reconnect(wire, life);
        }
        self.network.ends.insert(wire, (own.node, theirs.node));
        let connection = self.network.connection(wire);
        connection.up = true;
        connection.generation += 1;
        connection.to_life = to_life;
        self.note(Event::Connection { wire, what: "connected" });
        self.wake(wire.from);
    }

    /// A node that dialled is not let in. Both may have reason to look for newer members.
    fn refused(&mut self, wire: Wire, dialler: &Identity, accepter: &Identity) {
        let now_us = self.now_us;
        for (here, there) in [(wire.from, accepter), (wire.to, dialler)] {
            let clock = self.node(here).clock(now_us);
            if let Some(running) = self.node(here).running() {
                running.broker.stray(clock, there.node, there.incarnation);
            }
        }
        let removed = dialler.removed_in(accepter);
        if let Some(running) = self.node(wire.from).running() {
            running.heard.refused(now_us, accepter.node, removed);
        }
        if accepter.is_behind(dialler) {
            self.inquire(wire.to);
        }
    }

    /// Somebody who is not known as a member speaks of newer ones: a node asks those that it knows.
    fn inquire(&mut self, id: u64) {
        let now_us = self.now_us;
        let Some(running) = self.node(id).running().filter(|running| now_us >= running.inquires_us) else { return };
        running.inquires_us = now_us + INQUIRY_US;
        for to in running.dials.clone() {
            let answers = self.network.answers(Wire { from: id, to, channel: Channel::Replication });
            let other = self.node(to);
            if answers && other.is_up() && other.paused_until_us <= now_us {
                let theirs = other.greeting();
                self.node(id).learn(&theirs);
            }
        }
    }

    /// All connections of a node are gone with its process. Where the machine lives on, the others notice at once.
    pub(super) fn node_gone(&mut self, node: u64, noticed: bool) {
        self.invariants.reigns.gone(self.now_us, node);
        for wire in self.network.wires() {
            if wire.from == node && self.network.take_down(wire) && wire.channel == Channel::Control {
                // Of a machine that says nothing more, a receiver learns by asking whether it is there.
                let delay_us = self.network.delay();
                let after_us = if noticed { delay_us } else { UNANSWERED_US + delay_us };
                if let Some((gone, _)) = self.network.ends.get(&wire).copied() {
                    self.tell_lost(wire.to, gone, after_us);
                }
            }
            if wire.to == node && noticed {
                let generation = self.network.connection(wire).generation;
                let after_us = self.network.delay();
                if self.network.passes(Wire { from: node, to: wire.from, channel: wire.channel }) {
                    self.after(after_us, What::Broken { wire, generation });
                }
            }
        }
    }

    /// Dial every peer.
    pub(super) fn dial(&mut self, node: u64) {
        let life = self.node(node).lives;
        for wire in self.network.wires().into_iter().filter(|wire| wire.from == node) {
            let after_us = self.network.delay();
            self.after(after_us, What::Connect { wire, life });
        }
    }

    /// Cuts have changed: what they held back goes on its way if nothing holds it any more.
    pub(super) fn release_held(&mut self) {
        for wire in self.network.wires() {
            let generation = self.network.connection(wire).generation;
            while let Some(bytes) = self.network.connection(wire).held.pop_front() {
                if !self.network.passes_with(wire, bytes.len()) {
                    self.network.connection(wire).held.push_front(bytes);
                    break;
                }
                let arrives_us = self.network.arrival(self.now_us, wire, bytes.len());
                self.at(arrives_us, What::Frame { wire, generation, bytes });
            }
        }
    }
}
