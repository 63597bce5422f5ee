//! Faults, and the schedule of them that a seed and a profile give. A schedule is made before the run, so that it can be
//! printed, repeated, and repeated in part.

use super::network::{Cut, Weather};
use super::profile::{Feature, Profile};
use super::rng::Rng;
use lnc_replication::formation::Channel;
use std::fmt;

/// Which disk operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailingOperation {
    /// A write.
    Write,
    /// A write that reports stable storage, or a sync.
    Sync,
    /// A read.
    Read,
}

/// What goes wrong. Times are in virtual microseconds; what a fault does by chance follows from its `seed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The process ends at once; the machine goes on.
    Kill { node: u64, down_us: u64, seed: u64 },
    /// The machine loses power, and with it what was not synced, in part.
    PowerLoss { node: u64, down_us: u64, seed: u64 },
    /// All machines lose power at the same moment.
    PowerLossOfAll { down_us: u64, seed: u64 },
    /// The machine loses power at a disk operation soon to come.
    PowerLossAtOperation { node: u64, operations: u64, down_us: u64, seed: u64 },
    /// The node is told to stop, hands over and ends; then it starts again.
    Restart { node: u64, down_us: u64 },
    /// The node does nothing for a while.
    Pause { node: u64, for_us: u64 },
    /// The node's wall clock jumps.
    ClockJump { node: u64, by_ms: i64 },
    /// The node's wall clock is far off, and comes back. One clock at a time.
    ClockLeap { node: u64, by_ms: i64, for_us: u64 },
    /// The node's clocks run fast or slow from now on, in millionths.
    ClockDrift { node: u64, ppm: i64 },
    /// Bytes do not pass.
    Partition { cuts: Vec<Cut>, for_us: u64 },
    /// Whoever is elected in this group is cut off from the other nodes a moment later, until the next one is. So every
    /// leader leaves a log behind that the next one may not have (Raft paper, figure 8).
    Coup { group: u32, for_us: u64, seed: u64 },
    /// What is said to a node takes longer and longer to arrive.
    Echo { node: u64, lag_us: u64, for_us: u64 },
    /// One connection breaks; its receiver notices later.
    Break { from: u64, to: u64, channel: Channel, notice_us: u64 },
    /// Bytes travel badly.
    Storm { weather: Weather, for_us: u64 },
    /// What is longer than so many bytes does not arrive from whoever leads this group now: a path with a smaller MTU than its
    /// ends believe.
    NarrowPath { group: u32, longest: usize, for_us: u64 },
    /// What is said to a node arrives no faster than this on each connection.
    SlowLink { node: u64, bytes_per_second: u64, for_us: u64 },
    /// The disk takes its time over every operation.
    SlowDisk { node: u64, latency_us: u64, for_us: u64 },
    /// The disk does nothing for a while.
    StalledDisk { node: u64, for_us: u64 },
    /// The disk has room for this many bytes more.
    FullDisk { node: u64, room: u64, for_us: u64 },
    /// The disk has room for this many bytes more, for good.
    TightDisk { node: u64, room: u64 },
    /// Another program takes the disks of all nodes but for so many bytes, or but for so many inodes, until it is noticed that
    /// something was deleted.
    FilledDisks { bytes: Option<u64>, inodes: Option<u64> },
    /// The next operation of a kind, after some that work, fails.
    DiskError { node: u64, operation: FailingOperation, after: u64 },
    /// The disk is lost; the node comes back with an empty one. Only where all others have everything.
    Wipe { node: u64, down_us: u64 },
    /// Bits flip in files of a node, at most of a minority.
    Damage { node: u64, seed: u64 },
    /// What the files of a node hold now is kept, for them to hold it again.
    Remember { node: u64 },
    /// The process ends, or is told to stop; before the next one, files are lost, emptied, cut, exchanged, or as they were.
    LoseFiles { node: u64, clean: bool, down_us: u64, seed: u64 },
    /// Places of a file cannot be read: until they are written, as long as the file is there, or wherever it goes.
    Unreadable { node: u64, seed: u64 },
    /// Some reads of a node's segments give what lies elsewhere, or lay there before.
    Misread { node: u64, seed: u64 },
}

impl Fault {
    /// The node that it strikes, if it is one.
    pub(crate) fn node(&self) -> Option<u64> {
        match *self {
            Self::Kill { node, .. }
            | Self::PowerLoss { node, .. }
            | Self::PowerLossAtOperation { node, .. }
            | Self::Restart { node, .. }
            | Self::Pause { node, .. }
            | Self::ClockJump { node, .. }
            | Self::ClockLeap { node, .. }
            | Self::ClockDrift { node, .. }
            | Self::SlowDisk { node, .. }
            | Self::StalledDisk { node, .. }
            | Self::FullDisk { node, .. }
            | Self::DiskError { node, .. }
            | Self::Wipe { node, .. }
            | Self::Damage { node, .. }
            | Self::Misread { node, .. }
            | Self::Echo { node, .. }
            | Self::Remember { node }
            | Self::LoseFiles { node, .. }
            | Self::Unreadable { node, .. }
            | Self::SlowLink { node, .. }
            | Self::TightDisk { node, .. } => Some(node),
            Self::PowerLossOfAll { .. }
            | Self::FilledDisks { .. }
            | Self::Partition { .. }
            | Self::Coup { .. }
            | Self::Break { .. }
            | Self::NarrowPath { .. }
            | Self::Storm { .. } => None,
        }
    }

    /// The name by which faults are counted.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::PowerLoss { .. } => "power-loss",
            Self::PowerLossOfAll { .. } => "power-loss-of-all",
            Self::PowerLossAtOperation { .. } => "power-loss-at-operation",
            Self::Restart { .. } => "restart",
            Self::Pause { .. } => "pause",
            Self::ClockJump { .. } => "clock-jump",
            Self::ClockLeap { .. } => "clock-leap",
            Self::ClockDrift { .. } => "clock-drift",
            Self::Partition { .. } => "partition",
            Self::Coup { .. } => "coup",
            Self::Echo { .. } => "echo",
            Self::Break { .. } => "broken-connection",
            Self::Storm { .. } => "storm",
            Self::SlowDisk { .. } => "slow-disk",
            Self::StalledDisk { .. } => "stalled-disk",
            Self::FullDisk { .. } => "full-disk",
            Self::TightDisk { .. } => "tight-disk",
            Self::FilledDisks { .. } => "filled-disks",
            Self::DiskError { .. } => "disk-error",
            Self::Wipe { .. } => "wipe",
            Self::Damage { .. } => "damage",
            Self::Misread { .. } => "misread",
            Self::Remember { .. } => "remember",
            Self::LoseFiles { .. } => "lose-files",
            Self::Unreadable { .. } => "unreadable",
            Self::NarrowPath { .. } => "narrow-path",
            Self::SlowLink { .. } => "slow-link",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self:?}", self.kind())
    }
}

/// A fault and when it strikes, in virtual microseconds from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduled {
    /// When.
    pub(crate) at_us: u64,
    /// What.
    pub(crate) fault: Fault,
}

/// Time without faults at the start, in which the cluster forms and topics are made.
const QUIET_US: u64 = 5_000_000;

/// The faults of a seed and profile that strike within `span_us`, in order.
pub(crate) fn schedule(seed: u64, profile: Profile, nodes: u64, span_us: u64) -> Vec<Scheduled> {
    let mut rng = Rng::fork(seed, 0xfa17);
    let features = profile.features(&mut rng);
    let mut all = Vec::new();
    let (begin_us, end_us) = profile.faulty_us(QUIET_US, span_us);
    for feature in features {
        let mut rng = Rng::fork(rng.next(), feature as u64);
        let every_us = feature.every_us().min(end_us - begin_us);
        let mut at_us = begin_us + rng.below(every_us);
        while at_us < end_us {
            let faults = draw(feature, &mut rng, nodes);
            all.extend(faults.into_iter().map(|(after_us, fault)| Scheduled { at_us: at_us + after_us, fault }));
            at_us += every_us / 2 + rng.below(every_us);
        }
    }
    all.retain(|scheduled| scheduled.at_us < span_us);
    all.sort_by_key(|scheduled| scheduled.at_us);
    all
}

/// A length of time around the time that the cluster needs to notice and react.
fn while_us(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => rng.between(10_000, 500_000),
        1 | 2 => rng.between(500_000, 5_000_000),
        _ => rng.between(5_000_000, 12_000_000),
    }
}

fn draw(feature: Feature, rng: &mut Rng, nodes: u64) -> Vec<(u64, Fault)> {
    let node = rng.between(1, nodes);
    let fault = match feature {
        Feature::Storms => Fault::Storm { weather: storm(rng), for_us: while_us(rng) },
        Feature::Breaks => {
            let to = 1 + (node + rng.below(nodes - 1)) % nodes;
            let channel = rng.pick(&[Channel::Control, Channel::Replication]);
            Fault::Break { from: node, to, channel, notice_us: rng.pick(&[0, 100_000, 3_000_000]) }
        }
        Feature::Partitions => Fault::Partition { cuts: partition(rng, nodes), for_us: while_us(rng) },
        Feature::Coups => {
            let for_us = rng.between(5_000_000, 20_000_000);
            Fault::Coup { group: rng.below(2) as u32, for_us, seed: rng.next() }
        }
        // It wakes up as the leader that it was, and nobody can tell it otherwise but its clients are there.
        Feature::Seclusions => {
            let (asleep_us, alone_us) = (while_us(rng), rng.between(0, 2_000_000));
            let alone = Fault::Partition { cuts: isolation(node), for_us: asleep_us + alone_us };
            return vec![(0, Fault::Pause { node, for_us: asleep_us }), (0, alone)];
        }
        // It goes on to hear what was said when it still led, and nobody hears it.
        Feature::Echoes => {
            let (lag_us, after_us) = (rng.between(2_500_000, 4_000_000), rng.between(6_000_000, 8_000_000));
            let for_us = rng.between(3_000_000, 6_000_000);
            let mute = vec![Cut { from: Some(node), to: None, channel: None }];
            let mute = Fault::Partition { cuts: mute, for_us };
            return vec![(0, Fault::Echo { node, lag_us, for_us: after_us + for_us }), (after_us, mute)];
        }
        Feature::NarrowPaths => {
            let (group, longest) = (rng.below(2) as u32, rng.between(500, 1_400) as usize);
            Fault::NarrowPath { group, longest, for_us: 60_000_000 }
        }
        Feature::SlowLinks => {
            let (bytes_per_second, for_us) = (rng.between(80_000, 150_000), rng.between(10_000_000, 20_000_000));
            Fault::SlowLink { node, bytes_per_second, for_us }
        }
        Feature::TightDisks => Fault::TightDisk { node, room: rng.between(440_000, 490_000) },
        Feature::FilledDisks => match rng.below(2) {
            0 => Fault::FilledDisks { bytes: Some(rng.pick(&[0, 0, 5_000, 60_000])), inodes: None },
            _ => Fault::FilledDisks { bytes: None, inodes: Some(rng.pick(&[0, 0, 3])) },
        },
        Feature::Kills => Fault::Kill { node, down_us: while_us(rng), seed: rng.next() },
        Feature::Power => match rng.below(3) {
            0 => Fault::PowerLoss { node, down_us: while_us(rng), seed: rng.next() },
            _ => {
                let operations = rng.between(1, 60);
                Fault::PowerLossAtOperation { node, operations, down_us: while_us(rng), seed: rng.next() }
            }
        },
        Feature::PowerOfAll => Fault::PowerLossOfAll { down_us: rng.between(10_000, 3_000_000), seed: rng.next() },
        Feature::DiskStalls => match rng.below(2) {
            0 => Fault::StalledDisk { node, for_us: while_us(rng) },
            _ => Fault::SlowDisk { node, latency_us: rng.between(20_000, 600_000), for_us: while_us(rng) },
        },
        Feature::FullDisks => {
            let room = rng.pick(&[0, 5_000, 100_000, 600_000]);
            Fault::FullDisk { node, room, for_us: while_us(rng) }
        }
        Feature::DiskErrors => {
            let kinds = [FailingOperation::Write, FailingOperation::Sync, FailingOperation::Read];
            Fault::DiskError { node, operation: rng.pick(&kinds), after: rng.below(20) }
        }
        Feature::Pauses => Fault::Pause { node, for_us: while_us(rng) },
        Feature::Clocks => match rng.below(2) {
            0 => Fault::ClockJump { node, by_ms: rng.below(40_000) as i64 - 20_000 },
            _ => Fault::ClockDrift { node, ppm: rng.below(200_000) as i64 - 100_000 },
        },
        Feature::Leaps => super::clocks::leap(rng, node),
        Feature::Rolling => {
            let gap_us = rng.between(1_000_000, 6_000_000);
            let down_us = rng.between(10_000, gap_us);
            let restart = |n| (n * gap_us, Fault::Restart { node: 1 + (node + n) % nodes, down_us });
            return (0..nodes).map(restart).collect();
        }
        Feature::Wipes => Fault::Wipe { node, down_us: while_us(rng) },
        Feature::Losses => return losses(rng, node, nodes),
        Feature::Unreadable => Fault::Unreadable { node, seed: rng.next() },
        Feature::Damage if rng.chance(300) => Fault::Misread { node, seed: rng.next() },
        // What is damaged is met with at the latest when the node starts.
        Feature::Damage => {
            let damage = (0, Fault::Damage { node, seed: rng.next() });
            let kill = Fault::Kill { node, down_us: while_us(rng), seed: rng.next() };
            return if rng.chance(600) { vec![damage, (rng.below(300_000), kill)] } else { vec![damage] };
        }
        // The first node loses power again and again, each time within a few operations of its start.
        Feature::Stumbles => {
            let fall = |n: u64| {
                let down_us = if n.is_multiple_of(3) { 2_000_000 + n % 2_000_000 } else { 10_000 + n % 100_000 };
                let operations = 1 + n % 7;
                Fault::PowerLossAtOperation { node: 1, operations, down_us, seed: n }
            };
            return (0..6).map(|n| (n * 400_000 + rng.below(300_000), fall(rng.next()))).collect();
        }
    };
    vec![(0, fault)]
}

/// A node loses files. Often it has with it what a majority has acknowledged, and the rest of that majority is away when it
/// comes back, while those that were away are there.
fn losses(rng: &mut Rng, node: u64, nodes: u64) -> Vec<(u64, Fault)> {
    let mut next_us = 0;
    let mut all = vec![(0, Fault::Remember { node })];
    if rng.chance(600) {
        let others = |from: u64, count: u64| (from..from + count).map(move |n| 1 + (node + n) % nodes);
        let minority = (nodes - 1) / 2;
        let away_us = rng.between(1_000_000, 6_000_000);
        let cuts = others(0, minority).flat_map(isolation).collect();
        all.push((0, Fault::Partition { cuts, for_us: away_us }));
        next_us = away_us - rng.below(500_000);
        let down_us = rng.between(3_000_000, 12_000_000);
        let dies = |other| (next_us, Fault::Kill { node: other, down_us, seed: other });
        all.extend(others(minority, nodes - 1 - minority).map(dies));
    } else {
        next_us += rng.below(4_000_000);
    }
    let (clean, down_us) = (rng.chance(300), rng.between(10_000, 2_000_000));
    all.push((next_us, Fault::LoseFiles { node, clean, down_us, seed: rng.next() }));
    all
}

fn storm(rng: &mut Rng) -> Weather {
    let slow = rng.pick(&[3_000, 20_000, 150_000, 700_000]);
    let mut chance = |most: u64| if rng.chance(500) { rng.below(most + 1) } else { 0 };
    Weather { delay_us: (500, slow), loss: chance(200), twice: chance(200), overtake: chance(300), corrupt: chance(30) }
}

/// A node alone.
pub(crate) fn isolation(node: u64) -> Vec<Cut> {
    let all = Cut { from: None, to: None, channel: None };
    vec![Cut { from: Some(node), ..all }, Cut { to: Some(node), ..all }]
}

fn partition(rng: &mut Rng, nodes: u64) -> Vec<Cut> {
    let node = rng.between(1, nodes);
    let other = 1 + (node + rng.below(nodes - 1)) % nodes;
    let all = Cut { from: None, to: None, channel: None };
    let channel = rng.pick(&[Channel::Control, Channel::Replication]);
    match rng.below(7) {
        0 | 1 => isolation(node),
        // It is heard but does not hear, or the other way round.
        2 => vec![Cut { from: Some(node), ..all }],
        3 => vec![Cut { to: Some(node), ..all }],
        // Two nodes do not reach each other, or only one of them the other.
        4 => vec![Cut { from: Some(node), to: Some(other), ..all }, Cut { from: Some(other), to: Some(node), ..all }],
        5 => vec![Cut { from: Some(node), to: Some(other), ..all }],
        // One channel fails while the other lives.
        _ => vec![
            Cut { from: Some(node), channel: Some(channel), ..all },
            Cut { to: Some(node), channel: Some(channel), ..all },
        ],
    }
}
