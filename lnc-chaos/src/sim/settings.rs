//! What a run is made of, drawn from its seed: sizes small enough that every limit is met, and the pace of everything.

use super::profile::Profile;
use super::rng::Rng;
use super::workload::changes_members;
use lnc_broker::ProducerLimits;
use lnc_log::segment::SegmentConfig;

/// One unit of a node's time, in virtual microseconds. Ten times production's: the network, the disks and the clients are
/// as much slower than real ones, so that a run meets the same races with a tenth of the work per virtual second.
pub(super) const TICK_US: u64 = 100_000;

/// Entry bytes that a leader has under way to one follower, for each group.
pub(super) const MAX_IN_FLIGHT_BYTES: usize = 256 << 10;

/// See the module documentation.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(super) seed: u64,
    /// Machines, by number from 1 on.
    pub(super) nodes: u64,
    /// The first of them found the cluster.
    pub(super) founders: u64,
    /// The configuration of a node that comes names every machine, and not only the members that there are.
    pub(super) names_all: bool,
    pub(super) data_groups: u32,
    pub(super) memory_bytes: usize,
    pub(super) tail_cache_bytes: usize,
    pub(super) checkpoint_bytes: u64,
    /// A checkpoint's state is encoded in many turns, or in one.
    pub(super) checkpoint_piece_bytes: usize,
    pub(super) journal_file_bytes: u64,
    pub(super) journal_retain_bytes: u64,
    /// A node that has missed more fetches the state of its groups.
    pub(super) transfer_bytes_per_second: u64,
    pub(super) scrub_bytes_per_second: u64,
    pub(super) reserve_bytes: u64,
    pub(super) entry_cache_bytes: usize,
    pub(super) flushes_in_flight: usize,
    pub(super) max_append_bytes: usize,
    pub(super) segments: SegmentConfig,
    /// A group's state is compared between nodes at every index that this divides.
    pub(super) state_every: u64,
    /// Time from something happening at a node to the turn that takes it in: what comes meanwhile shares that turn.
    pub(super) turn_us: u64,
    /// Shortest and longest time of a disk operation.
    pub(super) disk_us: (u64, u64),
    /// Mean time between two batches of a producer.
    pub(super) produce_every_us: u64,
    /// Of a thousand batches, those that are as large as they may be.
    pub(super) large_permille: u64,
    /// Members come and go.
    pub(super) changes_members: bool,
    /// There is no reason but load for which a follower would have to fetch the state.
    pub(super) keeps_followers: bool,
    /// Few enough that producers of earlier lives are forgotten, and more than there are at a time.
    pub(super) producer_limits: ProducerLimits,
    /// The last sequence number of a producer before it begins at 0 again; if it is not the real one, some come to it.
    pub(super) last_sequence: i32,
}

/// Bytes of the largest batch that a node takes.
pub(super) const MAX_BATCH_BYTES: usize = 64 << 10;

/// Far more than a producer has under way, or the network holds back, and few enough to be used up.
const WRAPS_AT: i32 = 511;

impl Settings {
    /// Bytes of the largest batch that is sure to find room in a file of the journal, and among requests under way.
    pub(super) fn largest_batch(&self) -> usize {
        MAX_BATCH_BYTES.min(self.journal_file_bytes as usize / 2).min(self.memory_bytes / 2)
    }

    pub(super) fn draw(seed: u64, profile: Profile, nodes: u64) -> Self {
        let mut rng = Rng::fork(seed, 0x5e77);
        let drawn = Self {
            seed,
            nodes: profile.machines(nodes),
            founders: profile.founders(nodes),
            names_all: seed.is_multiple_of(2),
            data_groups: rng.between(1, 3) as u32,
            memory_bytes: rng.pick(&[64 << 10, 256 << 10, 4 << 20]),
            tail_cache_bytes: rng.pick(&[4 << 10, 32 << 10, 1 << 20]),
            checkpoint_bytes: rng.pick(&[32 << 10, 128 << 10, 512 << 10]),
            journal_file_bytes: rng.pick(&[64 << 10, 128 << 10, 512 << 10]),
            journal_retain_bytes: rng.pick(&[0, 256 << 10, 64 << 20]),
            transfer_bytes_per_second: rng.pick(&[100 << 10, 4 << 20]),
            reserve_bytes: rng.pick(&[0, 200_000, 3_000_000]),
            scrub_bytes_per_second: rng.pick(&[0, 20 << 10, 200 << 10]),
            entry_cache_bytes: rng.pick(&[4 << 10, 64 << 10, 1 << 20]),
            flushes_in_flight: rng.between(1, 4) as usize,
            max_append_bytes: rng.pick(&[1, 1 << 10, 64 << 10]),
            segments: SegmentConfig {
                segment_bytes: rng.pick(&[30_000, 100_000, 400_000]),
                index_interval_bytes: rng.pick(&[1_500, 8_000]),
                write_block: rng.pick(&[4_096, 16_384]),
                max_open_files: rng.pick(&[8, 64]),
                max_cached_indexes: rng.pick(&[4, 32]),
                max_lanes: rng.pick(&[2, 8]),
                ..SegmentConfig::default()
            },
            changes_members: changes_members(profile),
            state_every: 16,
            turn_us: rng.pick(&[2_000, 8_000, 20_000]),
            disk_us: rng.pick(&[(300, 2_000), (1_000, 8_000), (2_000, 30_000)]),
            produce_every_us: rng.pick(&[60_000, 150_000, 400_000]),
            large_permille: 15,
            keeps_followers: false,
            checkpoint_piece_bytes: rng.pick(&[1, 500, 512 << 10]),
            producer_limits: ProducerLimits { partition: rng.pick(&[24, 40]), group: rng.pick(&[32, 100]) },
            last_sequence: match profile {
                Profile::Network if Rng::fork(seed, 0x5e9).chance(500) => WRAPS_AT,
                _ => i32::MAX,
            },
        };
        match profile {
            // What is kept in reserve is more than the journal and checkpoints need.
            Profile::Tight => Self {
                reserve_bytes: 1_000_000,
                journal_file_bytes: 64 << 10,
                journal_retain_bytes: 0,
                checkpoint_bytes: drawn.checkpoint_bytes.min(128 << 10),
                produce_every_us: 400_000,
                ..drawn
            },
            // The journal's file has room for votes, deletions and what clients ask of the catalog meanwhile.
            Profile::Filled => Self {
                reserve_bytes: 1_000_000,
                journal_file_bytes: 1 << 20,
                journal_retain_bytes: 0,
                checkpoint_bytes: drawn.checkpoint_bytes.min(128 << 10),
                produce_every_us: 400_000,
                ..drawn
            },
            // Much load for one group, of whose journal little is kept: in as many files as usual, each of them larger than what
            // may be under way and is still taken in.
            Profile::Laggards => Self {
                data_groups: 1,
                memory_bytes: 64 << 10,
                checkpoint_bytes: 32 << 10,
                journal_file_bytes: 128 << 10,
                journal_retain_bytes: 2 << 20,
                produce_every_us: 60_000,
                large_permille: 400,
                keeps_followers: true,
                ..drawn
            },
            _ => drawn,
        }
    }
}
