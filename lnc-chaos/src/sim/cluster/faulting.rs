//! Faults strike, end, and heal.

use super::super::clocks;
use super::super::faults::{FailingOperation, Fault, isolation};
use super::super::network::Weather;
use super::super::node::Life;
use super::super::rng::Rng;
use super::super::trace::Event;
use super::{Cluster, What};
use lnc_log::disk::memory::FaultHook;
use lnc_log::disk::{BLOCK, MemoryDisk, Op};
use std::cmp::Ordering;
use std::io;
use std::ops::Range;

/// Time between two looks whether there is space again.
const SPACE_LOOK_US: u64 = 500_000;

/// Every leader of a group is cut off.
pub(super) struct Coup {
    /// Of the fault.
    number: u64,
    group: u32,
    rng: Rng,
    /// Counts the elections, so that only the latest leader is cut off.
    turn: u64,
}

impl Cluster {
    /// The fault of this place in the schedule strikes.
    pub(super) fn strike(&mut self, index: usize) {
        let fault = self.faults[index].fault.clone();
        if self.finish.is_healed() {
            return;
        }
        self.note(Event::Fault { what: fault.to_string() });
        let kind = fault.kind();
        if self.apply_fault(index as u64, fault) {
            self.counts.fault(kind);
        }
        self.invariants.ages.look(&self.nodes, self.now_us);
    }

    /// False if it had nothing to strike.
    fn apply_fault(&mut self, number: u64, fault: Fault) -> bool {
        let now_us = self.now_us;
        if fault.node().is_some_and(|node| self.node(node).away) {
            return false;
        }
        match fault {
            Fault::Kill { node, down_us, seed } => {
                let up = self.node(node).is_up();
                if up {
                    self.kill(node, seed, down_us);
                }
                return up;
            }
            Fault::PowerLoss { node, down_us, seed } => self.lose_power(node, seed, down_us),
            Fault::PowerLossOfAll { down_us, seed } => {
                let mut rng = Rng::new(seed);
                for node in 1..=self.settings.nodes {
                    let (seed, stagger_us) = (rng.next(), rng.below(2_000_000));
                    if !self.node(node).away {
                        self.lose_power(node, seed, down_us + stagger_us);
                    }
                }
            }
            Fault::PowerLossAtOperation { node, operations, down_us, seed } => {
                let node = self.node(node);
                // A process that is paused has yet to meet the stop before this one.
                if !node.disk.stopped() {
                    node.excuses.stops = true;
                    node.at_stop = (down_us, seed);
                    node.disk.stop_after(node.disk.operations() + operations);
                }
                return node.is_up();
            }
            Fault::Restart { node, down_us } => {
                self.drain(node, down_us);
                return self.node(node).is_up();
            }
            Fault::Pause { node, for_us } => {
                let node = self.node(node);
                node.paused_until_us = node.paused_until_us.max(now_us + for_us);
            }
            Fault::ClockJump { node, by_ms } => self.node(node).jump(by_ms),
            Fault::ClockLeap { node, by_ms, for_us } => {
                if clocks::another_leapt(&self.nodes, node, now_us) {
                    return false;
                }
                self.node(node).jump(by_ms);
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::ClockDrift { node, ppm } => self.node(node).drift(now_us, ppm),
            Fault::Partition { cuts, for_us } => {
                self.network.cut(number, cuts);
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::Coup { group, for_us, seed } => {
                self.coups.push(Coup { number, group, rng: Rng::new(seed), turn: 0 });
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::Echo { node, lag_us, for_us } => {
                self.network.lag(number, now_us, node, lag_us);
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::NarrowPath { group, longest, for_us } => {
                let Some(node) = self.leader_of(group).filter(|_| !self.network.is_narrow()) else { return false };
                self.network.narrow(number, node, longest);
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::SlowLink { node, bytes_per_second, for_us } => {
                self.network.slow(number, node, bytes_per_second);
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::TightDisk { node, room } => {
                // What the operator deletes is enough for one.
                if self.nodes.iter().any(|node| node.tight) {
                    return false;
                }
                let node = self.node(node);
                node.disk.set_capacity(Some(node.disk.used() + room));
                (node.excuses.full, node.tight) = (true, true);
            }
            Fault::FilledDisks { bytes, inodes } => {
                // What the operator deletes is enough for once.
                if self.filled_us.is_some() {
                    return false;
                }
                self.filled_us = Some(now_us);
                // Where the topic has come that will be deleted: elsewhere nothing of it can free anything.
                for node in self.nodes.iter_mut().filter(|node| !node.away && node.has_what_goes(inodes.is_some())) {
                    node.disk.set_capacity(bytes.map(|room| node.disk.used() + room));
                    node.disk.set_file_capacity(inodes.map(|room| node.disk.files() + room));
                    (node.excuses.full, node.filled) = (true, true);
                }
                self.after(SPACE_LOOK_US, What::FaultOver { fault: number });
            }
            Fault::Break { from, to, channel, notice_us } => {
                self.break_connection(super::Wire { from, to, channel }, notice_us, "broken");
            }
            Fault::Storm { weather, for_us } => {
                self.network.weather = weather;
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::SlowDisk { node, latency_us, for_us } => {
                let node = self.node(node);
                (node.slow_us, node.slow_until_us) = (latency_us, now_us + for_us);
            }
            Fault::StalledDisk { node, for_us } => {
                let node = self.node(node);
                node.stalled_until_us = node.stalled_until_us.max(now_us + for_us);
            }
            Fault::FullDisk { node, room, for_us } => {
                let node = self.node(node);
                node.disk.set_capacity(Some(node.disk.used() + room));
                (node.excuses.full, node.full_until_us) = (true, now_us + for_us);
                self.after(for_us, What::FaultOver { fault: number });
            }
            Fault::DiskError { node, operation, after } => {
                let node = self.node(node);
                node.excuses.error = true;
                node.disk.inject(Some(failing(operation, after)));
            }
            Fault::Wipe { node, down_us } => {
                // The promise is about a minority: what was acknowledged must be on the others, reachable or not.
                let whole = self.nodes.iter_mut().all(|node| node.is_whole() && !node.excuses.damaged);
                if whole {
                    self.wipe(node, down_us);
                }
                return whole;
            }
            Fault::Damage { node, seed } => {
                self.invariants.reigns.lost(now_us, node);
                return self.damage(node, seed);
            }
            Fault::Remember { node } => {
                let node = self.node(node);
                let files =
                    node.disk.paths().into_iter().filter_map(|path| Some((path.clone(), node.disk.file(&path)?)));
                node.past = files.collect();
            }
            Fault::LoseFiles { node, clean, down_us, seed } => return self.strike_files(node, clean, down_us, seed),
            Fault::Unreadable { node, seed } => return self.make_unreadable(node, seed),
            Fault::Misread { node, seed } => {
                let strikes = self.may_damage(node);
                if strikes {
                    let node = self.node(node);
                    // What was misread may be written back, with what belongs beside it.
                    node.excuses.damaged = true;
                    node.disk.misread("segments/", 1 + (seed % 3) as u32, seed);
                }
                return strikes;
            }
        }
        true
    }

    /// Who leads a group in its latest term.
    fn leader_of(&self, group: u32) -> Option<u64> {
        let views = self.nodes.iter().filter_map(|node| Some((node.broker()?.inspect(group)?, node.id)));
        let leaders = views.filter(|(view, _)| view.role == lnc_raft::Role::Leader);
        leaders.max_by_key(|(view, _)| view.term).map(|(_, id)| id)
    }

    /// A node has been elected: is there a coup against the leaders of its group?
    pub(super) fn elected(&mut self, node: u64, group: u32) {
        let Some(coup) = self.coups.iter_mut().find(|coup| coup.group == group) else { return };
        coup.turn += 1;
        let (fault, turn, after_us) = (coup.number, coup.turn, coup.rng.between(0, 40_000));
        self.after(after_us, What::Deposed { fault, turn, node });
    }

    /// The latest leader of a group is cut off, and the one before it is not any more.
    pub(super) fn depose(&mut self, fault: u64, turn: u64, node: u64) {
        if self.coups.iter().any(|coup| coup.number == fault && coup.turn == turn) {
            self.network.heal(fault);
            self.network.cut(fault, isolation(node));
            self.release_held();
        }
    }

    pub(super) fn fault_over(&mut self, fault: u64) {
        if matches!(self.faults[fault as usize].fault, Fault::FilledDisks { .. }) {
            return self.look_for_space(fault);
        }
        let over = self.faults[fault as usize].fault.clone();
        self.note(Event::Fault { what: format!("{} is over", over.kind()) });
        match over {
            Fault::Partition { .. } | Fault::NarrowPath { .. } => {
                self.network.heal(fault);
                self.release_held();
            }
            Fault::Coup { .. } => {
                self.coups.retain(|coup| coup.number != fault);
                self.network.heal(fault);
                self.release_held();
            }
            Fault::ClockLeap { node, by_ms, .. } => self.node(node).jump(-by_ms),
            Fault::Echo { .. } | Fault::SlowLink { .. } => self.network.heal(fault),
            Fault::Storm { .. } => self.network.weather = Weather::FAIR,
            Fault::FullDisk { node, .. } => {
                let now_us = self.now_us;
                let node = self.node(node);
                if node.full_until_us <= now_us && !node.filled {
                    node.disk.set_capacity(None);
                }
            }
            _ => {}
        }
    }

    /// What the others did not take is there for good once a deletion has made room.
    fn look_for_space(&mut self, fault: u64) {
        let back = |node: &&mut super::super::node::Node| node.filled && node.has_space_back();
        let mut relieved = Vec::new();
        for node in self.nodes.iter_mut().filter(back) {
            node.disk.set_capacity(None);
            node.disk.set_file_capacity(None);
            node.filled = false;
            relieved.push(node.id);
        }
        for id in relieved {
            self.note(Event::Fault { what: format!("node {id} has space again") });
        }
        if self.nodes.iter().any(|node| node.filled) {
            self.after(SPACE_LOOK_US, What::FaultOver { fault });
        }
    }

    /// Whether this node may be damaged, or enough others are for a promise to be void.
    pub(super) fn may_damage(&mut self, id: u64) -> bool {
        self.note_repairs();
        // One that is not whole yet after its disk was wiped lacks as much as one that is damaged.
        let lacking = self.nodes.iter_mut().filter_map(|node| {
            let lacks = node.excuses.damaged || !node.is_whole();
            (lacks && node.id != id).then_some(())
        });
        (lacking.count() as u64) < (self.settings.nodes - 1) / 2
    }

    /// Flip bits in files of a node.
    fn damage(&mut self, id: u64, seed: u64) -> bool {
        if !self.may_damage(id) {
            return false;
        }
        let mut rng = Rng::new(seed);
        let node = self.node(id);
        let paths: Vec<String> = node.disk.paths().into_iter().filter(|path| !path.ends_with("/LOCK")).collect();
        if paths.is_empty() {
            return false;
        }
        let journal_end = attested_end(&node.disk, &paths);
        for _ in 0..rng.between(1, 3) {
            let path = &paths[rng.below(paths.len() as u64) as usize];
            let bytes = node.disk.file(path).unwrap_or_default();
            let safe = damageable(path, bytes.len() as u64, &journal_end, id);
            if !safe.is_empty() {
                node.excuses.damaged = true;
                let mut at = rng.between(safe.start, safe.end - 1);
                // Sometimes a whole stretch of the file, with many flushes in it.
                let blocks = if rng.chance(200) { rng.between(2, 40) } else { 1 };
                node.excuses.beyond_repair |= blocks > 1 && path.starts_with("journal/");
                for _ in 0..blocks {
                    if at < safe.end {
                        node.disk.corrupt(path, at, 1 << rng.below(8));
                    }
                    at += BLOCK as u64;
                }
            }
        }
        node.excuses.damaged
    }

    /// All faults end: what is down starts, what is cut or slow or full is not any more.
    pub(super) fn heal(&mut self) {
        self.note(Event::Fault { what: "all faults end".to_owned() });
        self.finish.healed(self.now_us);
        let now_us = self.now_us;
        self.coups.clear();
        self.network.heal_all();
        self.release_held();
        for id in 1..=self.settings.nodes {
            let node = self.node(id);
            (node.paused_until_us, node.stalled_until_us, node.slow_until_us) = (now_us, now_us, now_us);
            node.loss = None;
            if !node.tight && !node.filled {
                node.disk.set_capacity(None);
            }
            node.disk.inject(None);
            node.disk.forgive();
            node.disk.misread("", 0, 0);
            if node.disk.stopped() {
                // The power is gone, and comes back soon.
                node.at_stop.0 = 10_000;
            } else {
                node.disk.stop_after(u64::MAX);
                node.excuses.stops = false;
            }
            if matches!(node.life, Life::Up(_)) {
                // What a stall held back is due again.
                let (life, opened) = (node.lives, node.opened);
                for (operation, _) in self.node(id).disk.in_flight() {
                    self.after(1_000, What::Disk { node: id, opened, operation });
                }
                self.after(0, What::Turn { node: id, life });
            } else {
                let life = node.lives;
                self.after(10_000 * id, What::Start { node: id, life });
            }
        }
    }
}

/// Where a file may be damaged without voiding a promise. A checkpoint has two copies, of which one is never touched. The
/// newest flushes of the journal may not be known to anything behind them: damage there looks like a write that the power
/// cut short, and no single node can tell.
fn damageable(path: &str, len: u64, (newest, end): &(String, u64), node: u64) -> Range<u64> {
    if path.starts_with("checkpoint/") {
        return if node.is_multiple_of(2) { 0..len / 2 } else { len / 2..len };
    }
    if path.starts_with("journal/") {
        return match path.cmp(newest) {
            Ordering::Less => 0..len,
            Ordering::Equal => 0..*end,
            Ordering::Greater => 0..0,
        };
    }
    0..len
}

/// The journal file, and the position in it, below which every flush is known to be durable to one that is durable itself.
fn attested_end(disk: &MemoryDisk, paths: &[String]) -> (String, u64) {
    /// Flushes that may be unknown to those behind them: more than are ever in flight.
    const NEWEST: usize = 12;
    /// Where a flush says in which file it is.
    const FILE: Range<usize> = 40..48;
    let mut flushes = Vec::new();
    // Names are numbers of equal length.
    for path in paths.iter().filter(|path| path.starts_with("journal/")) {
        let bytes = disk.file(path).unwrap_or_default();
        let number =
            path.trim_start_matches("journal/").trim_end_matches(".journal").parse::<u64>().unwrap_or_default();
        // A recycled file still has flushes of the one that it was, and they say so.
        let is_own = |at: &usize| {
            let header = &bytes[*at..];
            header.starts_with(b"LNCJ") && header.get(FILE).is_some_and(|file| file == number.to_le_bytes())
        };
        flushes.extend((0..bytes.len()).step_by(BLOCK).filter(is_own).map(|at| (path.clone(), at as u64)));
    }
    flushes.into_iter().rev().nth(NEWEST).unwrap_or_default()
}

/// Lets some operations of a kind work and fails the next.
fn failing(operation: FailingOperation, after: u64) -> FaultHook {
    let mut left = after + 1;
    Box::new(move |_, op| {
        let hit = matches!(
            (operation, op),
            (FailingOperation::Write, Op::Write { .. })
                | (FailingOperation::Read, Op::Read { .. })
                | (FailingOperation::Sync, Op::Write { durable: true, .. } | Op::Sync { .. } | Op::SyncDir { .. })
        );
        left = left.saturating_sub(u64::from(hit));
        (hit && left == 0).then(|| {
            // Once: the process that met it ends, and its disk is another handle after that.
            left = u64::MAX;
            io::Error::other("the simulated device failed")
        })
    })
}
