//! Profiles: which kinds of fault a run has.

use super::rng::Rng;

/// A family of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feature {
    Storms,
    Breaks,
    Partitions,
    Coups,
    Seclusions,
    Kills,
    Power,
    PowerOfAll,
    DiskStalls,
    FullDisks,
    DiskErrors,
    Pauses,
    Clocks,
    Leaps,
    Rolling,
    Damage,
    Wipes,
    Echoes,
    TightDisks,
    FilledDisks,
    Stumbles,
    Losses,
    Unreadable,
    NarrowPaths,
    SlowLinks,
}

impl Feature {
    /// The mean time between two faults of the family, in virtual microseconds.
    pub(crate) fn every_us(self) -> u64 {
        match self {
            Self::Rolling => 30_000_000,
            Self::Coups | Self::Echoes => 15_000_000,
            Self::TightDisks | Self::FilledDisks => 60_000_000,
            Self::PowerOfAll => 20_000_000,
            Self::Stumbles => 4_000_000,
            Self::Wipes => 15_000_000,
            Self::Damage => 8_000_000,
            Self::Unreadable => 20_000_000,
            Self::Losses => 9_000_000,
            Self::SlowLinks => 20_000_000,
            Self::NarrowPaths => 60_000_000,
            Self::Breaks | Self::Clocks => 3_000_000,
            _ => 6_000_000,
        }
    }
}

macro_rules! profiles {
    ($($name:ident = $text:literal, $about:literal;)*) => {
        /// A kind of run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Profile {
            $(#[doc = $about] $name,)*
        }

        impl Profile {
            /// Every profile.
            pub const ALL: &'static [Profile] = &[$(Profile::$name,)*];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Profile::$name => $text,)* }
            }

            /// What it does, in a few words.
            pub const fn about(self) -> &'static str {
                match self { $(Profile::$name => $about,)* }
            }
        }
    };
}

profiles! {
    Calm = "calm", "no faults";
    Network = "network", "delay, loss, reordering, duplication, corruption, broken and half-open connections";
    Partitions = "partitions", "nodes alone, one-way and partial partitions, one channel without the other";
    Coups = "coups", "whoever is elected is cut off, again and again; nodes that hang and wake up alone";
    Crashes = "crashes", "kill -9";
    Power = "power", "power loss of one node, at any disk operation, and of all at once";
    Outages = "outages", "power loss while connections and other disks fail";
    DiskStall = "disk-stall", "disks that are slow or stand still for seconds";
    DiskFull = "disk-full", "disks without space";
    DiskError = "disk-error", "writes, syncs and reads that fail";
    Clocks = "clocks", "clocks that drift and jump, nodes that pause";
    Leaps = "leaps", "a clock at a time that is years off for a while, the leader's too, while processes are killed";
    Rolling = "rolling", "nodes restarted one after the other, gracefully";
    Damage = "damage", "bits that flip on the disks of a minority, while processes are killed and power is lost";
    LostFiles = "lost-files", "files that a node had are gone, cut, another's or older; places that cannot be read";
    Wipes = "wipes", "nodes that come back with empty disks, one at a time, while others fail";
    Members = "members", "a node at a time leaves the cluster and comes back with an empty disk, while others fail";
    Replace = "replace", "nodes are replaced by others while both live, one or two at a time, while others fail";
    Growth = "growth", "a cluster of one grows, by one node or several at once, while power fails";
    Shrink = "shrink", "several nodes leave at once, down to two or one, and others come, while others fail";
    Formation = "formation", "faults from the first moment on, while the nodes form their cluster";
    Echoes = "echoes", "nodes that are not heard any more and still hear what was said before";
    Tight = "tight", "a disk without space, until an operator deletes a topic";
    Filled = "filled", "disks of all nodes filled by others, to the last byte or inode, until a topic is deleted, while others fail";
    Narrow = "narrow", "paths from one node on which what is long gets lost and what is short does not";
    Laggards = "laggards", "followers whose links take less than their leaders are given";
    Everything = "everything", "a random mixture of all the others, drawn from the seed";
}

/// The profiles that a run without `--profile` goes through: of the others, some runs still break a rule.
pub const ROTATION: &[Profile] = &[
    Profile::Calm,
    Profile::Network,
    Profile::Partitions,
    Profile::Coups,
    Profile::Crashes,
    Profile::Power,
    Profile::Outages,
    Profile::DiskStall,
    Profile::DiskFull,
    Profile::DiskError,
    Profile::Clocks,
    Profile::Leaps,
    Profile::Rolling,
    Profile::Damage,
    Profile::LostFiles,
    Profile::Wipes,
    Profile::Members,
    Profile::Replace,
    Profile::Growth,
    Profile::Shrink,
    Profile::Formation,
    Profile::Echoes,
    Profile::Tight,
    Profile::Narrow,
    Profile::Everything,
];

impl Profile {
    /// The profile of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|profile| profile.name() == name)
    }

    /// How many machines there are where so many nodes are asked for.
    pub(crate) fn machines(self, nodes: u64) -> u64 {
        /// Nodes that wait to take the place of others.
        const SPARE: u64 = 2;
        if self == Self::Replace { nodes + SPARE } else { nodes }
    }

    /// How many of so many nodes found the cluster; the others come later, if they do.
    pub(crate) fn founders(self, nodes: u64) -> u64 {
        if self == Self::Growth { 1 } else { nodes }
    }

    /// When faults may strike, given when they do elsewhere.
    pub(crate) fn faulty_us(self, quiet_us: u64, span_us: u64) -> (u64, u64) {
        match self {
            Self::Formation => (0, 5_000_000),
            // Before it grows.
            Self::Growth => (2_000_000, span_us),
            // It is to last for longer than a leader waits.
            Self::Narrow => (quiet_us + 2_000_000, quiet_us + 12_000_000),
            // The topic is filled first.
            Self::Tight | Self::Filled => (quiet_us + 10_000_000, span_us),
            _ => (quiet_us, span_us),
        }
    }

    pub(crate) fn features(self, rng: &mut Rng) -> Vec<Feature> {
        use Feature::{
            Breaks, Clocks, Coups, Damage, DiskErrors, DiskStalls, Echoes, FilledDisks, FullDisks, Kills, Leaps,
            Losses, NarrowPaths, Partitions, Pauses, Power, PowerOfAll, Rolling, Seclusions, SlowLinks, Storms,
            Stumbles, TightDisks, Unreadable, Wipes,
        };
        match self {
            Self::Calm => vec![],
            Self::Network => vec![Storms, Breaks],
            Self::Partitions => vec![Partitions],
            Self::Coups => vec![Coups, Seclusions],
            Self::Crashes => vec![Kills],
            Self::Power => vec![Power, PowerOfAll],
            Self::Outages => vec![Power, PowerOfAll, Partitions, DiskStalls, Kills],
            Self::DiskStall => vec![DiskStalls],
            Self::DiskFull => vec![FullDisks],
            Self::DiskError => vec![DiskErrors],
            Self::Clocks => vec![Clocks, Pauses],
            Self::Leaps => vec![Leaps, Kills],
            Self::Rolling => vec![Rolling],
            Self::Damage => vec![Damage, Kills, Power, PowerOfAll, Partitions],
            Self::LostFiles => vec![Losses, Unreadable, Kills],
            Self::Wipes => vec![Wipes, Kills, Partitions],
            Self::Members => vec![Kills, Partitions, Pauses, Breaks, Coups, Power],
            Self::Replace => vec![Kills, Partitions, Coups, Pauses, Breaks, Power],
            Self::Formation => vec![Kills, Power, Partitions, Breaks, Wipes, Storms],
            Self::Echoes => vec![Echoes],
            Self::Tight => vec![TightDisks],
            Self::Filled => vec![FilledDisks, Kills, PowerOfAll],
            Self::Narrow => vec![NarrowPaths],
            Self::Laggards => vec![SlowLinks],
            Self::Growth => vec![Kills, Breaks, Stumbles, PowerOfAll],
            Self::Shrink => vec![Kills, Partitions, Breaks, Power],
            Self::Everything => {
                let all = [
                    Storms, Breaks, Partitions, Kills, Power, PowerOfAll, DiskStalls, FullDisks, DiskErrors, Pauses,
                    Clocks, Rolling, Wipes, Coups, Seclusions, Damage, Leaps, Losses, Unreadable,
                ];
                all.into_iter().filter(|_| rng.chance(350)).collect()
            }
        }
    }
}
