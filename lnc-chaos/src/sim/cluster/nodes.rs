//! Nodes: what wakes them, their turns, how they start and end.

use super::super::adapter::Turned;
use super::super::clocks;
use super::super::invariants::{Violation, followers};
use super::super::network::Wire;
use super::super::node::{Excuses, Input, Life};
use super::super::trace::Event;
use super::{Checked, Cluster, What};
use lnc_broker::BrokerError;
use lnc_broker::inspect::Applied;
use lnc_raft::{Configuration, NodeId, Role};
use lnc_replication::formation::{Channel, Decision, decide};
use std::collections::BTreeSet;

/// How long a node that ended by itself stays down before it is started again.
const SUPERVISOR_US: u64 = 500_000;
/// How long a node that was told to stop may take to hand over.
const DRAIN_US: u64 = 5_000_000;
/// How long it may take after that to say how far it got.
const FINISH_US: u64 = 2_000_000;
/// Time between two attempts of a fresh node to find its cluster.
const GREET_US: u64 = 500_000;

impl Cluster {
    /// Something for a node's next turn.
    pub(super) fn input(&mut self, id: u64, input: Input) {
        if let Some(running) = self.node(id).running() {
            running.inbox.push(input);
            self.wake(id);
        }
    }

    /// Let a node take a turn soon.
    pub(super) fn wake(&mut self, id: u64) {
        let (now_us, turn_us) = (self.now_us, self.settings.turn_us);
        let node = self.node(id);
        let (life, paused_until_us) = (node.lives, node.paused_until_us);
        let Some(running) = node.running() else { return };
        if !std::mem::replace(&mut running.turn_due, true) {
            self.at((now_us + turn_us).max(paused_until_us), What::Turn { node: id, life });
        }
    }

    pub(super) fn tick(&mut self, id: u64, life: u32) {
        if !self.lives(id, life) {
            return;
        }
        let now_us = self.now_us;
        let node = self.node(id);
        if node.excuses.stops && node.disk.stopped() {
            // The power is gone, whether the process has noticed or not.
            let (down_us, seed) = node.at_stop;
            return self.lose_power(id, seed, down_us);
        }
        let next_us = (now_us + node.tick_us()).max(node.paused_until_us);
        let paused = node.paused_until_us > now_us;
        self.at(next_us, What::Tick { node: id, life });
        if !paused {
            self.note(Event::Tick { node: id });
            if let Some(running) = self.node(id).running() {
                running.tick_due = true;
            }
            self.wake(id);
        }
    }

    pub(super) fn disk_done(&mut self, id: u64, opened: u32, operation: u64) {
        let node = self.node(id);
        if !node.is_up() || node.opened != opened {
            return;
        }
        let stalled_until_us = node.stalled_until_us;
        if stalled_until_us > self.now_us {
            return self.at(stalled_until_us, What::Disk { node: id, opened, operation });
        }
        if self.node(id).disk.release(operation) {
            self.note(Event::Disk { node: id, operation });
            self.wake(id);
        }
    }

    /// A turn, as the driver of a real node takes it.
    pub(super) fn turn(&mut self, id: u64, life: u32) -> Checked {
        if !self.lives(id, life) {
            return Ok(());
        }
        let paused_until_us = self.node(id).paused_until_us;
        if paused_until_us > self.now_us {
            self.at(paused_until_us, What::Turn { node: id, life });
            return Ok(());
        }
        self.counts.turns += 1;
        let ticked = self.node(id).running().is_some_and(|running| running.tick_due);
        let groups = self.settings.data_groups;
        match self.take_turn(id) {
            Ok(turned) => {
                self.nodes[id as usize - 1].note_space(self.now_us, groups, ticked);
                self.time_disk(id);
                self.turned(id, turned)?;
                if ticked && self.lives(id, life) {
                    self.follow_membership(id);
                    self.check_replication(id)?;
                }
                self.finish_drain(id);
                Ok(())
            }
            Err(error) => self.ended(id, &error),
        }
    }

    fn take_turn(&mut self, id: u64) -> Result<Turned, BrokerError> {
        self.nodes[id as usize - 1].note_format();
        let clock = self.nodes[id as usize - 1].clock(self.now_us);
        let greeted = |peer: u64| {
            let identity = &self.nodes[peer as usize - 1].identity;
            (identity.node, identity.incarnation)
        };
        let connected: Vec<(NodeId, u64)> = self.network.connected(id).map(greeted).collect();
        let Some(running) = self.nodes[id as usize - 1].running() else {
            unreachable!("only a node that is up takes a turn")
        };
        running.turn_due = false;
        if std::mem::take(&mut running.tick_due) {
            running.broker.tick(clock)?;
        }
        // What peers said comes before what clients ask, as in a real node.
        let inbox = std::mem::take(&mut running.inbox);
        let (asked, said): (Vec<Input>, Vec<Input>) =
            inbox.into_iter().partition(|input| matches!(input, Input::Request { .. }));
        for input in said {
            match input {
                Input::Frame { from, body } => {
                    // What does not decode behind a checksum that matches is dropped by real nodes, with a warning.
                    if running.broker.frame(clock, from, body).is_err() {
                        self.counts.frames_not_understood += 1;
                    }
                }
                Input::PeerLost(peer) => running.broker.peer_changed(clock, peer, None),
                Input::Request { .. } => unreachable!("requests were set apart"),
            }
        }
        for (peer, incarnation) in connected {
            running.broker.peer_changed(clock, peer, Some(incarnation));
        }
        for input in asked {
            if let Input::Request { caller, opcode, body } = input {
                running.unanswered.insert((caller.connection, caller.correlation), opcode);
                running.broker.request(clock, caller, opcode, body);
            }
        }
        running.broker.turn(clock)
    }

    fn turned(&mut self, id: u64, turned: Turned) -> Checked {
        let Turned { outputs, mail, observed, again, reopen } = turned;
        self.note(Event::Turn { node: id, outputs: outputs.len(), frames: mail.len() });
        for (group, change) in observed.roles {
            let leads = change.role == Role::Leader;
            self.counts.elections += u64::from(leads);
            let leader = change.leader.map_or(0, NodeId::node);
            self.note(Event::Role { node: id, group: group.0, term: change.term, leads, leader });
            self.rest.in_term(self.now_us, id, group.0, change.term);
            self.invariants.reigns.role(self.now_us, id, group.0, leads);
            if leads {
                let last = self.nodes[id as usize - 1].broker().and_then(|p| p.inspect(group.0)).map_or(0, |i| i.last);
                self.invariants.leads(id, group.0, change.term, last)?;
                self.elected(id, group.0);
            }
        }
        for applied in observed.applied {
            let (index, term) = (applied.entry.index, applied.entry.term);
            let own =
                self.nodes[id as usize - 1].broker().and_then(|b| b.inspect(applied.group.0)).map_or(0, |i| i.term);
            let check = self.invariants.applied(id, own, &applied)?;
            self.check_ages(&applied)?;
            self.note(Event::Applied { node: id, group: applied.group.0, index, term, check });
            if let Some(members) = self.rest.applied(self.now_us, id, applied.group.0, &applied.entry)? {
                self.check_voters(applied.group.0, index, &members)?;
            }
        }
        let opened = self.nodes[id as usize - 1].opened;
        for place in observed.repairs {
            self.invariants.repairs.begun(self.now_us, (id, opened), place)?;
        }
        for mail in mail {
            self.send(mail);
        }
        for output in outputs {
            self.output(id, output)?;
        }
        if let Some(broker) = self.nodes[id as usize - 1].broker() {
            self.invariants.memory(id, &self.settings, broker.memory())?;
        }
        if reopen {
            self.reopen(id)?;
        } else if again {
            self.wake(id);
        }
        Ok(())
    }

    fn check_ages(&mut self, applied: &Applied) -> Checked {
        let aged = self.invariants.records.topics().iter().find(|topic| topic.name == clocks::AGED).map(|t| t.id);
        let ages = &mut self.invariants.ages;
        ages.look(&self.nodes, self.now_us);
        ages.applied(self.now_us, aged, applied.group.0, &applied.entry)
    }

    /// What a leader is given reaches its followers, or another leads.
    fn check_replication(&mut self, id: u64) -> Checked {
        if self.settings.keeps_followers
            && let Some(broker) = self.nodes[id as usize - 1].broker()
        {
            for group in 0..=self.settings.data_groups {
                followers::check(id, group, &broker.lost_followers(group))?;
            }
        }
        if !self.network.is_narrow() {
            self.invariants.stalls.clear();
            return Ok(());
        }
        for group in 0..=self.settings.data_groups {
            let views: Vec<_> = self.nodes.iter().filter_map(|node| node.broker()?.inspect(group)).collect();
            let commit = views.iter().map(|view| view.commit).max().unwrap_or(0);
            let waits = views.iter().any(|view| view.role == Role::Leader && view.commit < view.last);
            self.invariants.stalls.look(self.now_us, group, commit, waits)?;
        }
        Ok(())
    }

    /// Who becomes a voter has nearly all that it is to vote about.
    fn check_voters(&self, group: u32, index: u64, members: &Configuration) -> Checked {
        /// Entries that may be missing: under load there are always some under way.
        const UNDER_WAY: u64 = 300;
        for member in members.voters.iter().filter(|member| members.is_joint() && !members.outgoing.contains(member)) {
            let node = &self.nodes[member.node() as usize - 1];
            let last = node.broker().and_then(|broker| broker.inspect(group)).map_or(index, |view| view.last);
            if node.identity.node == *member && last + UNDER_WAY < index {
                let what = format!("node {member} is to vote in group {group}, and ends at {last} of {index} entries");
                return Err(Violation::new("voters-caught-up", what));
            }
        }
        Ok(())
    }

    /// The broker is dropped and opened anew in the same process, as the real driver does it.
    fn reopen(&mut self, id: u64) -> Checked {
        self.counts.reopened += 1;
        self.note(Event::Node { node: id, what: "opens its broker anew".to_owned() });
        self.drop_callers(id);
        let settings = self.settings.clone();
        match self.node(id).reopen(&settings) {
            Ok(()) => {
                self.invariants.started(id);
                self.invariants.reigns.gone(self.now_us, id);
                self.wake(id);
                Ok(())
            }
            Err(error) => self.not_started(id, &error),
        }
    }

    /// A node keeps connections to those that it knows as members now.
    fn follow_membership(&mut self, id: u64) {
        let now_us = self.now_us;
        let (gone, new) = self.node(id).follow_membership(now_us);
        let life = self.node(id).lives;
        for wire in self.network.wires().into_iter().filter(|wire| wire.from == id) {
            if gone.contains(&wire.to) {
                self.break_connection(wire, 0, "no longer dialled");
            } else if new.contains(&wire.to) {
                let after_us = self.network.delay();
                self.after(after_us, What::Connect { wire, life });
            }
        }
    }

    /// Say when the disk operations of this turn finish.
    fn time_disk(&mut self, id: u64) {
        let now_us = self.now_us;
        let pace_us = self.settings.disk_us;
        let node = &mut self.nodes[id as usize - 1];
        let (submitted, opened) = (node.disk.operations(), node.opened);
        let Life::Up(running) = &mut node.life else { return };
        let timed = std::mem::replace(&mut running.timed_operation, submitted);
        if submitted == timed {
            return;
        }
        self.counts.disk_operations += submitted - timed;
        let fresh: Vec<u64> = node.disk.in_flight().into_iter().map(|(n, _)| n).filter(|n| *n > timed).collect();
        // What failed at once has nobody to announce it.
        let failed = (fresh.len() as u64) < submitted - timed;
        for operation in fresh {
            let at_us = self.nodes[id as usize - 1].disk_done_us(now_us, pace_us);
            self.at(at_us, What::Disk { node: id, opened, operation });
        }
        if failed {
            self.wake(id);
        }
    }

    fn finish_drain(&mut self, id: u64) {
        let now_us = self.now_us;
        let node = &mut self.nodes[id as usize - 1];
        let Life::Up(running) = &node.life else { return };
        let Some(until_us) = running.drain_until_us else { return };
        let idle = running.broker.is_drained() && running.unanswered.is_empty();
        if idle || now_us >= until_us {
            // The disk is told how far it got, so that the next start knows.
            let finished = node.running().is_some_and(|running| running.broker.finish());
            if !finished && now_us < until_us + FINISH_US {
                return self.time_disk(id);
            }
            self.note(Event::Node {
                node: id,
                what: format!("stops, {}", if idle { "drained" } else { "out of time" }),
            });
            let down_us = self.node(id).at_stop.0;
            self.kill(id, u64::MAX, down_us);
        }
    }

    pub(super) fn drain(&mut self, id: u64, down_us: u64) {
        let until_us = self.now_us + DRAIN_US;
        self.node(id).at_stop.0 = down_us;
        if let Some(running) = self.node(id).running() {
            running.drain_until_us = Some(until_us);
            running.broker.drain();
            self.wake(id);
        }
    }

    /// A process ended by itself.
    fn ended(&mut self, id: u64, error: &BrokerError) -> Checked {
        self.note(Event::Node { node: id, what: format!("ends: {error}") });
        let node = self.node(id);
        let (down_us, seed) = node.at_stop;
        let Excuses { stops, .. } = node.excuses;
        if stops && node.disk.stopped() {
            self.lose_power(id, seed, down_us);
            return Ok(());
        }
        if !node.excuses.any() {
            let what = format!("node {id} ended without a fault that explains it: {error}");
            return Err(Violation::new("unexplained-end", what));
        }
        self.counts.ends += 1;
        self.kill(id, seed, SUPERVISOR_US);
        Ok(())
    }

    /// The process ends without a word; it is started again after `down_us`.
    pub(super) fn kill(&mut self, id: u64, happened: u64, down_us: u64) {
        self.note(Event::Node { node: id, what: "process gone".to_owned() });
        self.drop_callers(id);
        self.node(id).end_process(happened);
        self.node_gone(id, true);
        self.start_after(id, down_us);
    }

    pub(super) fn lose_power(&mut self, id: u64, seed: u64, down_us: u64) {
        self.note(Event::Node { node: id, what: "power lost".to_owned() });
        let now_us = self.now_us;
        let node = self.node(id);
        node.lose_power(seed);
        node.power_lost_us = Some(now_us);
        self.node_gone(id, false);
        self.start_after(id, down_us);
    }

    /// A node with a fresh disk looks for a cluster that it belongs to, and shows itself to those that it meets.
    pub(super) fn greet(&mut self, id: u64, life: u32) {
        let node = self.node(id);
        if !matches!(node.life, Life::Waiting) || node.lives != life || node.joins.is_some() {
            return;
        }
        let now_us = self.now_us;
        let own = self.node(id).identity.clone();
        // What was heard from a node stays: it may have been down since, or have lost its disk.
        let mut heard = std::mem::take(&mut self.node(id).heard);
        let configured = self.node(id).configured.clone();
        for other in configured.iter().copied().filter(|other| *other != id) {
            let wire = |from, to| Wire { from, to, channel: Channel::Control };
            let reached = self.network.passes(wire(id, other)) && self.network.passes(wire(other, id));
            let peer = self.node(other);
            let listens = matches!(peer.life, Life::Up(_) | Life::Waiting) && peer.joins.is_none();
            if !reached || !listens || peer.paused_until_us > now_us {
                continue;
            }
            heard.insert(NodeId(other), peer.greeting());
            let clock = peer.clock(now_us);
            if let Some(running) = peer.running() {
                running.broker.applicant(clock, id, own.incarnation);
            }
        }
        let configured: BTreeSet<NodeId> = configured.into_iter().map(NodeId).collect();
        let decision = decide(&own, &configured, self.settings.data_groups, &heard);
        self.node(id).heard = heard;
        match decision {
            Decision::Join(cluster) => {
                let pace_us = self.settings.disk_us;
                let node = self.node(id);
                node.joins = Some(cluster);
                let at_us = node.disk_done_us(now_us, pace_us);
                self.at(at_us, What::Joined { node: id, incarnation: own.incarnation });
            }
            Decision::Conflict { .. } => {
                // It ends with a message for its operator; whoever starts it again changes nothing.
                self.note(Event::Node { node: id, what: "hears of two clusters".to_owned() });
                self.node(id).heard.clear();
                self.after(SUPERVISOR_US, What::Greet { node: id, life });
            }
            _ => self.after(GREET_US, What::Greet { node: id, life }),
        }
    }

    /// The cluster that a node joins is on its disk.
    pub(super) fn joined(&mut self, id: u64, incarnation: u64) {
        let node = self.node(id);
        let (life, waits) = (node.lives, matches!(node.life, Life::Waiting));
        if !waits || node.identity.incarnation != incarnation {
            return;
        }
        if let Some(member) = node.join() {
            node.life = Life::Down { powered: true };
            node.heard.clear();
            self.note(Event::Node { node: id, what: format!("joins as {member}") });
            self.after(0, What::Start { node: id, life });
        }
    }

    /// The disk of a node is lost.
    pub(super) fn wipe(&mut self, id: u64, down_us: u64) {
        self.note(Event::Node { node: id, what: "disk wiped".to_owned() });
        self.drop_callers(id);
        self.invariants.reigns.lost(self.now_us, id);
        let node = self.node(id);
        node.wipe();
        node.dismissed = false;
        self.node_gone(id, true);
        self.start_after(id, down_us);
    }

    fn start_after(&mut self, id: u64, down_us: u64) {
        let life = self.node(id).lives;
        self.after(down_us, What::Start { node: id, life });
    }

    /// A broker could not be opened: its process ends.
    fn not_started(&mut self, id: u64, error: &str) -> Checked {
        let node = self.node(id);
        let (excuses, was_up) = (node.excuses, node.is_up());
        node.end_process(u64::MAX);
        self.note(Event::Node { node: id, what: format!("does not start: {error}") });
        let damaged = excuses.beyond_repair || excuses.lacking || excuses.unreadable;
        if !excuses.any() && !damaged {
            let what = format!("node {id} does not start, and no fault explains it: {error}");
            return Err(Violation::new("unexplained-end", what));
        }
        if was_up {
            self.node_gone(id, true);
        }
        self.counts.failed_starts += 1;
        if !excuses.any() || damaged && self.finish.is_healed() {
            // Its operator does what the run book says.
            self.wipe(id, SUPERVISOR_US);
            return Ok(());
        }
        self.start_after(id, SUPERVISOR_US);
        Ok(())
    }

    /// A machine that was not there comes, with an empty disk.
    pub(super) fn provide(&mut self, id: u64) {
        self.node(id).away = false;
        // Its operator tells it of the members that there are.
        let members = self.nodes.iter().filter(|node| self.settings.names_all || node.serves() || node.id == id);
        let configured = members.map(|node| node.id).collect();
        self.node(id).configured = configured;
        self.wipe(id, 100_000);
    }

    /// A machine is taken away.
    pub(super) fn retire(&mut self, id: u64) {
        self.wipe(id, 0);
        let node = self.node(id);
        (node.away, node.dismissed) = (true, false);
    }

    pub(super) fn start(&mut self, id: u64, life: u32) -> Checked {
        let now_us = self.now_us;
        let settings = self.settings.clone();
        let node = self.node(id);
        if node.is_up() || node.away || node.lives != life {
            return Ok(());
        }
        if node.identity.cluster.is_none() {
            node.life = Life::Waiting;
            self.greet(id, life);
            return Ok(());
        }
        self.lose_files(id);
        if let Err(error) = self.node(id).open(&settings, now_us) {
            return self.not_started(id, &error);
        }
        self.check_files(id)?;
        let life = self.node(id).lives;
        self.counts.starts += 1;
        self.note(Event::Node { node: id, what: format!("starts, life {life}") });
        self.invariants.started(id);
        self.dial(id);
        self.after(0, What::Tick { node: id, life });
        Ok(())
    }
}
