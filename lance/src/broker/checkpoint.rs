//! Checkpoints of a running broker, and its start from one.
//!
//! A checkpoint begins by taking the state of every group at its applied index, together with what the segments hold at
//! that moment; then the segments are flushed up to there, then the file is written, and only then journal files are
//! freed and removed segments deleted. Produce and fetch go on meanwhile.

use super::catalog::{Catalog, META};
use super::command::{CommandError, get_key, get_optional, get_u32};
use super::fetch::Fetches;
use super::offsets::Scans;
use super::partitions::PartitionGroup;
use super::tail_cache::TailCache;
use super::{Broker, BrokerConfig, BrokerError, DataGroup};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_log::checkpoint::{Checkpoint, CheckpointWriter, GroupCheckpoint, load_latest};
use lnc_log::disk::{Completion, Disk};
use lnc_log::journal::{GroupId, JournalStart};
use lnc_log::segment::{PartitionKey, PartitionState, SegmentConfig, SegmentStore};
use lnc_metrics::Metrics;
use lnc_protocol::Opcode;
use lnc_raft::{HardState, NodeId};
use lnc_replication::{GroupStart, Outputs, Shard, ShardConfig};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A checkpoint is made at least this often while entries are applied, so that a restart replays little.
const MAX_AGE_US: u64 = 60_000_000;

/// What a checkpoint captured when it began.
struct Captured {
    groups: Vec<GroupCheckpoint>,
    /// The first journal file that is still needed.
    journal_file: u64,
}

enum Phase {
    Idle,
    /// Segments are being flushed.
    Flushing {
        captured: Captured,
    },
    /// The file is being written.
    Writing {
        journal_file: u64,
    },
}

/// How far the current checkpoint has come, and what asks for the next one.
pub(super) struct Progress {
    phase: Phase,
    writer: CheckpointWriter,
    next_number: u64,
    started_us: u64,
    /// Entry bytes applied since the last checkpoint began.
    pub(super) applied_bytes: u64,
    /// Segments or partitions were removed: their files go once a checkpoint no longer names them.
    pub(super) removed_something: bool,
}

impl<D: Disk> Broker<D> {
    /// Start a checkpoint if enough has been applied since the last one, or files wait to be removed.
    pub(super) fn checkpoint_if_due(&mut self) -> Result<(), BrokerError> {
        let progress = &self.checkpoint;
        let old = progress.applied_bytes > 0 && self.now_us() > progress.started_us + MAX_AGE_US;
        let large = progress.applied_bytes >= self.config.checkpoint_bytes;
        if matches!(progress.phase, Phase::Idle)
            && !progress.writer.busy()
            && (old || large || progress.removed_something)
        {
            self.begin_checkpoint();
        }
        Ok(())
    }

    fn begin_checkpoint(&mut self) {
        let applied: BTreeMap<GroupId, u64> = self.applied.iter().map(|(group, (index, _))| (*group, *index)).collect();
        self.segments.begin_checkpoint(&mut self.disk);
        let mut states: BTreeMap<PartitionKey, PartitionState> =
            self.segments.checkpoint_states().into_iter().collect();
        let ids: Vec<GroupId> = self.shard.group_ids().collect();
        let groups = ids.into_iter().map(|group| self.capture(group, &mut states)).collect();
        let journal_file = self.shard.journal_start(&applied);
        self.checkpoint.started_us = self.now_us();
        self.checkpoint.applied_bytes = 0;
        self.checkpoint.removed_something = false;
        self.checkpoint.phase = Phase::Flushing { captured: Captured { groups, journal_file } };
    }

    fn capture(&self, group: GroupId, states: &mut BTreeMap<PartitionKey, PartitionState>) -> GroupCheckpoint {
        let mut state = BytesMut::new();
        match self.groups.get(&group) {
            None => self.catalog.encode(&mut state),
            Some(data) => {
                data.state.encode(&mut state);
                state.put_u32_le(data.state.iter().len() as u32);
                for (key, partition) in data.state.iter() {
                    let stored = states.remove(&key).unwrap_or_default().encode();
                    state.put_u64_le(key.topic_id);
                    state.put_u32_le(key.partition);
                    super::command::put_optional(&mut state, partition.segment_bytes);
                    state.put_u32_le(stored.len() as u32);
                    state.put_slice(&stored);
                }
            }
        }
        let (applied_index, applied_term) = self.applied.get(&group).copied().unwrap_or_default();
        let HardState { term, vote } = self.shard.hard_state(group);
        let vote = vote.map(|node| node.0);
        GroupCheckpoint { group, term, vote, applied_index, applied_term, state: state.freeze() }
    }

    /// Take the current checkpoint as far as it can go.
    pub(super) fn drive_checkpoint(&mut self) -> Result<(), BrokerError> {
        if self.checkpoint.applied_bytes >= self.config.checkpoint_bytes {
            self.checkpoint_if_due()?;
        }
        let done = match &self.checkpoint.phase {
            Phase::Flushing { .. } => self.segments.checkpoint_done(),
            _ => false,
        };
        if !done {
            return Ok(());
        }
        if let Phase::Flushing { captured } = std::mem::replace(&mut self.checkpoint.phase, Phase::Idle) {
            let number = self.checkpoint.next_number;
            self.checkpoint.next_number += 1;
            let Captured { groups, journal_file } = captured;
            let checkpoint = Checkpoint { number, journal_file, groups };
            self.checkpoint.writer.start(&mut self.disk, checkpoint);
            self.checkpoint.phase = Phase::Writing { journal_file };
        }
        Ok(())
    }

    pub(super) fn checkpoint_completion(&mut self, completion: Completion) -> Result<(), BrokerError> {
        match self.checkpoint.writer.on_completion(&mut self.disk, completion) {
            Ok(None) => {}
            Ok(Some(_)) => {
                if let Phase::Writing { journal_file } = std::mem::replace(&mut self.checkpoint.phase, Phase::Idle) {
                    self.shard.release_journal(&mut self.disk, journal_file);
                    self.segments.release_removed(&mut self.disk);
                    self.metrics.checkpoints_total.inc();
                    let micros = self.now_us().saturating_sub(self.checkpoint.started_us);
                    self.metrics.checkpoint_seconds.observe(micros as f64 / 1e6);
                }
            }
            Err(error) if error.is_retriable() => {
                tracing::warn!(%error, "no space for a checkpoint; the previous one stands, trying again");
                self.checkpoint.phase = Phase::Idle;
                self.checkpoint.removed_something = true;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// What a checkpoint says, taken apart.
#[derive(Default)]
struct Loaded {
    catalog: Catalog,
    groups: BTreeMap<GroupId, PartitionGroup>,
    partitions: Vec<(PartitionKey, PartitionState, Option<u64>)>,
    starts: BTreeMap<GroupId, GroupStart>,
    journal_start: JournalStart,
    next_number: u64,
}

/// Open the broker on a data directory: load the newest checkpoint, cut the segments to it, recover the journal. What
/// the journal holds beyond the checkpoint is applied again once the group's leader says that it is committed.
pub fn open<D: Disk>(
    config: BrokerConfig,
    shard_config: ShardConfig,
    segment_config: SegmentConfig,
    mut disk: D,
    metrics: Arc<Metrics>,
) -> Result<Broker<D>, BrokerError> {
    let mut loaded = load(&mut disk)?;
    let needed = loaded.catalog.topics().map(|topic| topic.data_groups).max().unwrap_or(0);
    if needed > config.data_groups {
        return Err(BrokerError::TooFewGroups { configured: config.data_groups, needed });
    }
    let segments = SegmentStore::recover(segment_config, &mut disk, &loaded.partitions)?;
    let data_groups: Vec<GroupId> = shard_config.groups.iter().copied().filter(|group| *group != META).collect();
    let group_metrics = shard_config.groups.iter().map(|group| (*group, metrics.group(group.0))).collect();
    let shard = Shard::open(shard_config, &mut disk, loaded.journal_start, &loaded.starts)?;
    let applied = shard
        .group_ids()
        .map(|group| (group, loaded.starts.get(&group).map_or((0, 0), |s| (s.applied_index, s.applied_term))))
        .collect();
    let groups: BTreeMap<GroupId, DataGroup> = data_groups
        .into_iter()
        .map(|group| {
            let state = loaded.groups.remove(&group).unwrap_or_default();
            (group, DataGroup { state, reconciling: BTreeSet::new() })
        })
        .collect();
    if let Some(group) = loaded.groups.keys().next_back() {
        return Err(BrokerError::TooFewGroups { configured: config.data_groups, needed: group.0 });
    }
    metrics.set_backend(disk.name());
    Ok(Broker {
        cache: TailCache::new(config.tail_cache_bytes),
        config,
        disk,
        shard,
        catalog: loaded.catalog,
        groups,
        proposals: BTreeMap::new(),
        applied,
        segments,
        fetches: Fetches::default(),
        scans: Scans::default(),
        barriers: BTreeMap::new(),
        topic_changes: Vec::new(),
        checkpoint: Progress {
            phase: Phase::Idle,
            writer: CheckpointWriter::new(),
            next_number: loaded.next_number,
            started_us: 0,
            applied_bytes: 0,
            removed_something: false,
        },
        next_ticket: 0,
        in_flight_bytes: 0,
        reconcile: false,
        retry_full: false,
        draining: false,
        peers_connected: BTreeSet::new(),
        misplaced_since_us: BTreeMap::new(),
        clock: super::Clock::default(),
        shard_outputs: Outputs::default(),
        outputs: Vec::new(),
        completions: Vec::new(),
        request_counters: Opcode::ALL
            .iter()
            .map(|opcode| (*opcode, metrics.requests_total.with_label_values(&[opcode.name()])))
            .collect(),
        metrics,
        group_metrics,
        flushes: VecDeque::new(),
        freshness: BTreeMap::new(),
        left_behind: BTreeSet::new(),
        last_second_us: 0,
        observer: None,
    })
}

fn load<D: Disk>(disk: &mut D) -> Result<Loaded, BrokerError> {
    let mut loaded = Loaded { next_number: 1, ..Loaded::default() };
    let Some(checkpoint) = load_latest(disk)? else { return Ok(loaded) };
    loaded.next_number = checkpoint.number + 1;
    loaded.journal_start = JournalStart(checkpoint.journal_file);
    for group in checkpoint.groups {
        let hard_state = HardState { term: group.term, vote: group.vote.map(NodeId) };
        let (applied_index, applied_term) = (group.applied_index, group.applied_term);
        loaded.starts.insert(group.group, GroupStart { hard_state, applied_index, applied_term });
        load_group(&mut loaded, group.group, group.state)
            .map_err(|error| BrokerError::State { group: group.group.0, error })?;
    }
    Ok(loaded)
}

fn load_group(loaded: &mut Loaded, group: GroupId, mut state: Bytes) -> Result<(), CommandError> {
    if group == META {
        loaded.catalog = Catalog::decode(&mut state)?;
    } else {
        loaded.groups.insert(group, PartitionGroup::decode(&mut state)?);
        for _ in 0..get_u32(&mut state)? {
            let key = get_key(&mut state)?;
            let segment_bytes = get_optional(&mut state)?;
            let len = get_u32(&mut state)? as usize;
            if len > state.len() {
                return Err(CommandError("a partition's segments"));
            }
            let stored = PartitionState::decode(&state.split_to(len));
            let stored = stored.map_err(|_| CommandError("a partition's segments"))?;
            loaded.partitions.push((key, stored, segment_bytes));
        }
    }
    if state.is_empty() { Ok(()) } else { Err(CommandError("bytes behind a group's state")) }
}
