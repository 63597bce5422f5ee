//! One node: a machine with its disk and clocks, which outlive the process on it, and the process while it runs.

use super::adapter::Process;
use super::rng::Rng;
use super::settings::{Settings, TICK_US};
use bytes::Bytes;
use lance::heard::Heard;
use lnc_broker::{Caller, Clock, Membership};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_protocol::Opcode;
use lnc_raft::NodeId;
use lnc_replication::formation::{Cluster, Identity};
use std::collections::{BTreeMap, BTreeSet};

/// Wall-clock time at the start of every run, in milliseconds since 1970.
pub(super) const EPOCH_MS: u64 = 1_700_000_000_000;

/// What the deletion of the housekeeper's topic frees, at least: part of its bytes, and the files of a few segments.
const GOES_BYTES: u64 = 700_000;
const GOES_INODES: u64 = 5;

/// Whether a node's process runs.
pub(super) enum Life {
    /// It does not. `powered` says whether the machine is on, and so refuses connections instead of saying nothing.
    Down { powered: bool },
    /// It runs on a fresh disk, and waits to become a member.
    Waiting,
    /// It does.
    Up(Box<Running>),
}

/// What happened to a process since its last turn.
pub(super) enum Input {
    Frame { from: NodeId, body: Bytes },
    PeerLost(NodeId),
    Request { caller: Caller, opcode: Opcode, body: Bytes },
}

/// A process that runs.
pub(super) struct Running {
    pub(super) broker: Process,
    pub(super) inbox: Vec<Input>,
    pub(super) tick_due: bool,
    pub(super) turn_due: bool,
    /// It was told to stop, and may take until then to hand over.
    pub(super) drain_until_us: Option<u64>,
    /// Requests that the broker has not answered, by connection and correlation.
    pub(super) unanswered: BTreeMap<(u64, u64), Opcode>,
    /// Requests passed on to other nodes, by their number: the broker's tickets.
    pub(super) forwards: BTreeMap<u64, u64>,
    /// The last disk operation whose completion has a time.
    pub(super) timed_operation: u64,
    /// Who it says it is, and whom it knows as members: what its broker knows, or has heard from peers.
    pub(super) identity: Identity,
    /// The nodes that it connects to.
    pub(super) dials: BTreeSet<u64>,
    /// What its channels were told of the members last.
    membership: Membership,
    /// What peers say of it.
    pub(super) heard: Heard,
    /// It does not ask its peers for newer members before then.
    pub(super) inquires_us: u64,
    started_us: u64,
}

/// Faults of the disk that explain what would otherwise be wrong. They count until the machine has been restarted from a
/// disk on which nothing of them is left.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Excuses {
    /// An operation was made to fail.
    pub(super) error: bool,
    /// The disk stops for good at an operation.
    pub(super) stops: bool,
    /// Space is or was short in this life.
    pub(super) full: bool,
    /// Bits were flipped.
    pub(super) damaged: bool,
    /// So many flushes of the journal were damaged in a row that nothing tells what they held: it does not start.
    pub(super) beyond_repair: bool,
    /// The disk was wiped, and the node has not got everything back yet.
    pub(super) wiped: bool,
    /// Files by which it votes are not what they were, and the node has not got everything back yet. It may not start.
    pub(super) lacking: bool,
    /// Files of records are not what they were, and have not been repaired yet.
    pub(super) unrepaired: bool,
    /// There are places that cannot be read. With too many of them it may not start.
    pub(super) unreadable: bool,
    /// Readers may once have been told that something is damaged, with reason.
    pub(super) suspect: bool,
}

impl Excuses {
    /// Whether the process may end by itself. Damage is no reason: it is repaired.
    pub(super) fn any(self) -> bool {
        self.error || self.stops || self.full
    }
}

/// See the module documentation.
pub(super) struct Node {
    pub(super) id: u64,
    /// What its data directory says.
    pub(super) identity: Identity,
    /// The format of its data directory.
    pub(super) format: u32,
    pub(super) disk: MemoryDisk,
    pub(super) life: Life,
    /// Counts the starts: what belongs to an earlier life is ignored.
    pub(super) lives: u32,
    /// Counts the times that a broker was opened, which a process may do more than once.
    pub(super) opened: u32,
    /// The nodes whose addresses its operator wrote into its configuration, its own among them.
    pub(super) configured: BTreeSet<u64>,
    /// There is no machine of this number at the moment.
    pub(super) away: bool,
    /// It was removed from the cluster, and still runs.
    pub(super) dismissed: bool,
    pub(super) excuses: Excuses,
    /// When power was last lost: what it answered then may speak of a disk that stopped.
    pub(super) power_lost_us: Option<u64>,
    /// Files had gone for want of space at this time, see [`Node::note_space`].
    pub(super) gave_way_us: Option<u64>,
    /// Files are to be lost before its next start, in a way that follows from this seed.
    pub(super) loss: Option<u64>,
    /// Places where it looks at the start, and that have a file of another node: it must not start.
    pub(super) foreign: BTreeSet<String>,
    /// Files that were another's at some time since the disk was empty: what this node wrote to them last cannot be told any more.
    pub(super) exchanged: BTreeSet<String>,
    /// What its files held at an earlier time.
    pub(super) past: BTreeMap<String, Vec<u8>>,
    /// How long it stays down if it ends because the disk stops, and the seed of what that loses.
    pub(super) at_stop: (u64, u64),
    pub(super) paused_until_us: u64,
    pub(super) stalled_until_us: u64,
    pub(super) slow_until_us: u64,
    pub(super) slow_us: u64,
    pub(super) full_until_us: u64,
    /// Space stays short when all other faults end.
    pub(super) tight: bool,
    /// Other programs have left nothing of its disk.
    pub(super) filled: bool,
    /// While it waits to become a member: what the others said of themselves last.
    pub(super) heard: BTreeMap<NodeId, Identity>,
    /// The cluster that it is about to join, on its way to the disk.
    pub(super) joins: Option<Cluster>,
    pub(super) rng: Rng,
    wall_ahead_ms: i64,
    drift_ppm: i64,
    drift_since_us: u64,
    mono_at_drift_us: u64,
}

impl Node {
    pub(super) fn new(id: u64, seed: u64) -> Self {
        let disk = MemoryDisk::new();
        disk.set_order(Order::Held);
        let identity = Identity { node: NodeId(id), incarnation: id, cluster: None };
        Self {
            id,
            identity,
            format: 1,
            disk,
            life: Life::Down { powered: true },
            lives: 0,
            opened: 0,
            configured: BTreeSet::new(),
            away: false,
            dismissed: false,
            excuses: Excuses::default(),
            power_lost_us: None,
            gave_way_us: None,
            loss: None,
            foreign: BTreeSet::new(),
            exchanged: BTreeSet::new(),
            past: BTreeMap::new(),
            at_stop: (0, 0),
            paused_until_us: 0,
            stalled_until_us: 0,
            slow_until_us: 0,
            slow_us: 0,
            full_until_us: 0,
            tight: false,
            filled: false,
            heard: BTreeMap::new(),
            joins: None,
            rng: Rng::fork(seed, 0xd15c + id),
            wall_ahead_ms: 0,
            drift_ppm: 0,
            drift_since_us: 0,
            mono_at_drift_us: 0,
        }
    }

    /// Whether its answers may say that storage is damaged.
    pub(super) fn is_suspect(&self, now_us: u64) -> bool {
        /// Longest time that an answer is under way.
        const ON_ITS_WAY_US: u64 = 1_000_000;
        let Excuses { error, stops, damaged, suspect, .. } = self.excuses;
        error
            || stops
            || damaged
            || suspect
            || [self.power_lost_us, self.gave_way_us].iter().flatten().any(|at_us| now_us < at_us + ON_ITS_WAY_US)
    }

    /// Note whether files went, for want of space, before this node has taken in what deletes their records.
    /// Where space is not short any more, that is looked for with each tick.
    pub(super) fn note_space(&mut self, now_us: u64, groups: u32, ticked: bool) {
        let has_room = self.disk.free_bytes().is_none() && self.disk.free_files().is_none();
        let is_noted = |group: u32| self.disk.file(&format!("incoming/{group}.going")).is_some();
        if (ticked || !has_room) && (0..=groups).any(is_noted) {
            self.gave_way_us = Some(now_us);
        }
    }

    /// Whether it is, or should be, a member of the cluster.
    pub(super) fn serves(&self) -> bool {
        !self.away && !self.dismissed
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.life, Life::Up(_))
    }

    pub(super) fn running(&mut self) -> Option<&mut Running> {
        match &mut self.life {
            Life::Up(running) => Some(running),
            Life::Down { .. } | Life::Waiting => None,
        }
    }

    pub(super) fn broker(&self) -> Option<&Process> {
        match &self.life {
            Life::Up(running) => Some(&running.broker),
            Life::Down { .. } | Life::Waiting => None,
        }
    }

    /// Start the process from what the disk holds.
    pub(super) fn open(&mut self, settings: &Settings, now_us: u64) -> Result<(), String> {
        self.lives += 1;
        let broker = self.open_broker(settings)?;
        let started_us = self.mono_us(now_us);
        let id = self.id;
        self.life = Life::Up(Box::new(Running {
            broker,
            identity: self.identity.clone(),
            dials: self.configured.iter().copied().filter(|other| *other != id).collect(),
            membership: Membership::default(),
            heard: Heard::default(),
            inquires_us: 0,
            inbox: Vec::new(),
            tick_due: false,
            turn_due: false,
            drain_until_us: None,
            unanswered: BTreeMap::new(),
            forwards: BTreeMap::new(),
            timed_operation: self.disk.operations(),
            started_us,
        }));
        Ok(())
    }

    /// The process raises the format of its data directory when it may.
    pub(super) fn note_format(&mut self) {
        let stored = self.broker().map_or(1, Process::stored_format);
        self.format = self.format.max(stored);
    }

    fn open_broker(&mut self, settings: &Settings) -> Result<Process, String> {
        self.opened += 1;
        let identity = (&self.identity, &self.configured);
        let broker = Process::open(settings, identity, (self.opened, self.format), self.disk.clone());
        broker.map_err(|error| error.to_string())
    }

    /// Drop the broker once the disk has done all that was asked of it, and open another one in the same process:
    /// connections to other nodes stand, those of clients do not.
    pub(super) fn reopen(&mut self, settings: &Settings) -> Result<(), String> {
        self.disk.release_all();
        self.disk = self.disk.kill(0);
        let broker = self.open_broker(settings)?;
        let timed_operation = self.disk.operations();
        let Life::Up(running) = &mut self.life else { return Ok(()) };
        (running.broker, running.timed_operation) = (broker, timed_operation);
        running.membership = Membership::default();
        running.inbox.retain(|input| !matches!(input, Input::Request { .. }));
        running.unanswered.clear();
        running.forwards.clear();
        Ok(())
    }

    /// What the channels of a real node are told with each tick. Gives whom it no longer dials, and whom it does now.
    pub(super) fn follow_membership(&mut self, now_us: u64) -> (Vec<u64>, Vec<u64>) {
        let (id, mono_us) = (self.id, self.clock(now_us).mono_us);
        let Some(running) = self.running() else { return Default::default() };
        let membership = running.broker.membership();
        let told = running.identity.cluster.as_ref().map_or(0, |cluster| cluster.version);
        running.broker.set_standing(running.heard.standing(mono_us, told));
        let certain = running.heard.outlived(mono_us, told, membership.version, membership.is_newest);
        let news = running.identity.follow(membership.version, &membership.members, certain);
        if membership == running.membership && !news {
            return Default::default();
        }
        let dials: BTreeSet<u64> = membership.nodes.keys().copied().filter(|node| *node != id).collect();
        let before = std::mem::replace(&mut running.dials, dials);
        running.membership = membership;
        (before.difference(&running.dials).copied().collect(), running.dials.difference(&before).copied().collect())
    }

    /// The disk is lost with the process; the machine gets an empty one.
    pub(super) fn wipe(&mut self) {
        self.life = Life::Down { powered: true };
        self.disk = MemoryDisk::new();
        self.disk.set_order(Order::Held);
        // Incarnations are drawn from 64 random bits: no two nodes have the same one.
        let incarnation = super::rng::mix(self.identity.incarnation ^ self.id << 48 ^ u64::from(self.lives));
        self.identity = Identity { node: NodeId(self.id), incarnation, cluster: None };
        self.format = 1;
        (self.joins, self.tight, self.filled, self.loss) = (None, false, false, None);
        self.foreign.clear();
        self.exchanged.clear();
        self.past.clear();
        self.heard.clear();
        self.excuses = Excuses { wiped: true, ..Excuses::default() };
    }

    /// Whether much less is on its disk than when others filled it: as much as the deletion of a topic frees.
    pub(super) fn has_space_back(&self) -> bool {
        let bytes = self.disk.free_bytes().is_none_or(|free| free >= GOES_BYTES);
        bytes && self.disk.free_files().is_none_or(|free| free >= GOES_INODES)
    }

    /// Whether files of one partition take as much, in bytes or in `inodes`: the housekeeper's topic has come.
    pub(super) fn has_what_goes(&self, inodes: bool) -> bool {
        let mut partitions: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for path in self.disk.paths() {
            let Some((partition, _)) = path.strip_prefix("segments/").and_then(|path| path.split_once('/')) else {
                continue;
            };
            let (files, bytes) = partitions.entry(partition.to_owned()).or_default();
            *files += 1;
            *bytes += self.disk.file(&path).map_or(0, |content| content.len() as u64);
        }
        partitions.values().any(|(files, bytes)| *bytes >= GOES_BYTES && (!inodes || *files >= GOES_INODES))
    }

    /// Whether its disk has everything that it ever said to be there: what it lost, it has got back.
    pub(super) fn is_whole(&mut self) -> bool {
        if self.broker().is_some_and(|broker| broker.is_ready().is_ok() && broker.votes()) {
            (self.excuses.wiped, self.excuses.lacking) = (false, false);
            let blind = |path: String| self.disk.is_unreadable(&path);
            self.excuses.unreadable &= self.disk.paths().into_iter().any(blind);
        }
        let Excuses { wiped, lacking, unrepaired, unreadable, .. } = self.excuses;
        !wiped && !lacking && !unrepaired && !unreadable
    }

    /// What it says of itself to those who connect: who it is, and whom it knows as members.
    pub(super) fn greeting(&self) -> Identity {
        match &self.life {
            Life::Up(running) => running.identity.clone(),
            Life::Down { .. } | Life::Waiting => self.identity.clone(),
        }
    }

    /// It has heard whom a peer knows as members.
    pub(super) fn learn(&mut self, theirs: &Identity) {
        if let Some(running) = self.running() {
            running.identity.learn(theirs);
        }
    }

    /// Whether it takes messages of this member.
    pub(super) fn knows_member(&self, member: NodeId) -> bool {
        let Life::Up(running) = &self.life else { return false };
        running.identity.cluster.as_ref().is_some_and(|cluster| cluster.members.contains_key(&member))
    }

    /// The cluster that it was about to join is on its disk.
    pub(super) fn join(&mut self) -> Option<NodeId> {
        let cluster = self.joins.take()?;
        let member = cluster.member(self.id, self.identity.incarnation)?;
        self.identity = Identity { node: member, cluster: Some(cluster), ..self.identity.clone() };
        Some(member)
    }

    /// The process ends while it joins a cluster: its disk knows of that, or does not.
    fn end_joining(&mut self) {
        self.heard.clear();
        if self.joins.is_some() && self.rng.chance(500) {
            self.join();
        }
        self.joins = None;
    }

    /// The process ends; the kernel keeps what it has. Bit n of `happened`: the n-th operation in flight happened.
    pub(super) fn end_process(&mut self, happened: u64) {
        self.end_joining();
        self.life = Life::Down { powered: true };
        self.disk = self.disk.kill(happened);
    }

    /// The machine loses power, and what was not synced in a way that follows from `seed`.
    pub(super) fn lose_power(&mut self, seed: u64) {
        let choice = match seed % 5 {
            0 => CrashChoice::Nothing,
            1 => CrashChoice::Everything,
            2 => CrashChoice::Subset(super::rng::mix(seed)),
            _ => CrashChoice::Torn(seed),
        };
        self.end_joining();
        self.life = Life::Down { powered: false };
        self.disk = self.disk.crash(choice);
        self.excuses.stops = false;
    }

    /// The node's clocks. The monotonic one starts with the process.
    pub(super) fn clock(&self, now_us: u64) -> Clock {
        let mono_us = self.mono_us(now_us);
        let started_us = match &self.life {
            Life::Up(running) => running.started_us,
            Life::Down { .. } | Life::Waiting => mono_us,
        };
        let wall_ms = (EPOCH_MS + mono_us / 1000).saturating_add_signed(self.wall_ahead_ms);
        Clock { wall_ms, mono_us: mono_us - started_us }
    }

    fn mono_us(&self, now_us: u64) -> u64 {
        let passed = (now_us - self.drift_since_us) as i64;
        self.mono_at_drift_us + (passed + passed * self.drift_ppm / 1_000_000) as u64
    }

    /// True time between two ticks.
    pub(super) fn tick_us(&self) -> u64 {
        (TICK_US as i64 * 1_000_000 / (1_000_000 + self.drift_ppm)) as u64
    }

    pub(super) fn drift(&mut self, now_us: u64, ppm: i64) {
        self.mono_at_drift_us = self.mono_us(now_us);
        (self.drift_since_us, self.drift_ppm) = (now_us, ppm);
    }

    pub(super) fn jump(&mut self, by_ms: i64) {
        self.wall_ahead_ms += by_ms;
    }

    /// When an operation that is submitted now finishes.
    pub(super) fn disk_done_us(&mut self, now_us: u64, (low, high): (u64, u64)) -> u64 {
        let slow = if now_us < self.slow_until_us { self.rng.below(self.slow_us + 1) } else { 0 };
        (now_us + self.rng.between(low, high) + slow).max(self.stalled_until_us)
    }
}
