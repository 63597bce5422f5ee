//! Checkpoints of a running broker, and its start from one.
//!
//! A checkpoint begins by taking the state of every group at its applied index, together with what the segments hold at
//! that moment; then the segments are flushed up to there while the state is encoded, a piece in each turn, then the file
//! is written, and only then journal files are freed and removed segments deleted. Produce and fetch go on meanwhile.

use crate::keep::retention::Removal;
use crate::keep::scrub::Scrub;
use crate::keep::snapshot::Snapshot;
use crate::keep::space::Space;
use crate::keep::storage::Storage;
use crate::keep::tail_cache::TailCache;
use crate::keep::transfer::{Transfers, decode_header};
use crate::lead::leadership::Leadership;
use crate::lead::membership::Admission;
use crate::lead::membership::members_after;
use crate::lead::peers::Peers;
use crate::lead::readiness::Readiness;
use crate::log::apply::Scratch;
use crate::log::barriers::Barriers;
use crate::log::clocks::Clocks;
use crate::log::flushes::Flushes;
use crate::log::in_flight::InFlight;
use crate::machines::catalog::{Catalog, META};
use crate::machines::command::{CommandError, get_key, get_optional, get_u32, removed_by};
use crate::machines::partitions::PartitionGroup;
use crate::serve::fetch::Fetches;
use crate::serve::offsets::Scans;
use crate::serve::passed_on::PassedOn;
use crate::serve::topic_changes::TopicChanges;
use crate::turn::Turn;
use crate::watch::control::ControlPath;
use crate::watch::event::Watch;
use crate::watch::gauges::{Figures, GroupGauges};
use crate::watch::status::Elections;
use crate::{Broker, BrokerConfig, BrokerError, Clock, DataGroup};
use bytes::{Bytes, BytesMut};
use lnc_log::checkpoint::{
    Checkpoint, CheckpointError, CheckpointWriter, Facts, GroupCheckpoint, load_latest, load_own,
};
use lnc_log::disk::{Completion, Disk};
use lnc_log::incoming::{self, FileInfo};
use lnc_log::journal::{GroupId, JournalConfig, JournalStart, MARK_FORMAT, newest_checkpoint, oldest_file};
use lnc_log::segment::{DIGEST_FORMAT, PartitionKey, PartitionState, SegmentConfig, SegmentState, SegmentStore};
use lnc_metrics::Metrics;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::Opcode;
use lnc_raft::{Configuration, HardState, NodeId};
use lnc_replication::{GroupStart, Shard, ShardConfig, ShardError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A checkpoint is made at least this often while entries are applied, so that a restart replays little.
const MAX_AGE_US: u64 = 60_000_000;

/// What a checkpoint captured when it began.
struct Captured {
    /// Those that are not encoded yet.
    snapshots: VecDeque<Snapshot>,
    groups: Vec<GroupCheckpoint>,
    /// The first journal file that is kept.
    journal_file: u64,
    /// The first journal file that holds what is not in the checkpoint.
    needed_file: u64,
}

enum Phase {
    Idle,
    /// Segments are being flushed.
    Flushing {
        captured: Captured,
    },
    /// The file is being written.
    Writing {
        number: u64,
        captured: Captured,
    },
}

/// How far the current checkpoint has come, and what asks for the next one.
pub(crate) struct Progress {
    phase: Phase,
    writer: CheckpointWriter,
    next_number: u64,
    started_us: u64,
    pub(crate) completed_us: u64,
    /// Entry bytes applied since the last checkpoint began.
    pub(crate) applied_bytes: u64,
    /// One is wanted soon: segments or partitions were removed, whose files go once a checkpoint no longer names them, or
    /// something is damaged of which a checkpoint makes a new copy.
    pub(crate) wanted: bool,
}

impl Progress {
    /// Whether state waits to be encoded in the next turns.
    pub(crate) fn is_encoding(&self) -> bool {
        matches!(&self.phase, Phase::Flushing { captured } if !captured.snapshots.is_empty())
    }
}

impl Captured {
    /// Encode a piece of the state. Says whether all of it is encoded.
    fn encode(&mut self, piece_bytes: usize) -> bool {
        let mut left = piece_bytes;
        while let Some(snapshot) = self.snapshots.front_mut() {
            left = left.saturating_sub(snapshot.encode(left));
            if !snapshot.is_encoded() {
                return false;
            }
            self.groups.extend(self.snapshots.pop_front().map(Snapshot::finish));
        }
        true
    }
}

impl<D: Disk> Broker<D> {
    /// Start a checkpoint if enough has been applied since the last one, or files wait to be removed.
    pub(crate) fn checkpoint_if_due(&mut self) -> Result<(), BrokerError> {
        let progress = &self.checkpoint;
        let old = progress.applied_bytes > 0 && self.now_us() > progress.started_us + MAX_AGE_US;
        let large = progress.applied_bytes >= self.config.checkpoint_bytes;
        if matches!(progress.phase, Phase::Idle) && !progress.writer.busy() && (old || large || progress.wanted) {
            self.begin_checkpoint()?;
        }
        Ok(())
    }

    fn begin_checkpoint(&mut self) -> Result<(), BrokerError> {
        self.storage.hand_over();
        self.storage.turn()?;
        let segments = self.storage.on_disk();
        segments.begin_checkpoint(&mut self.disk);
        let mut states: BTreeMap<PartitionKey, PartitionState> = segments.checkpoint_states().into_iter().collect();
        let ids: Vec<GroupId> = self.shard.group_ids().collect();
        let snapshots = ids.into_iter().map(|group| self.capture(group, &mut states)).collect();
        let applied = self.applied_indexes();
        let journal_file = self.shard.journal_start(&applied);
        let needed_file = self.shard.journal_needed(&applied);
        self.checkpoint.started_us = self.now_us();
        self.checkpoint.applied_bytes = 0;
        self.checkpoint.wanted = false;
        self.checkpoint.phase =
            Phase::Flushing { captured: Captured { snapshots, groups: Vec::new(), journal_file, needed_file } };
        Ok(())
    }

    /// Give up a checkpoint that waits for space, if another one would need less: something was removed since it began.
    pub(crate) fn abandon_stuck_checkpoint(&mut self) {
        let stuck = matches!(self.checkpoint.phase, Phase::Flushing { .. }) && self.storage.handed_over().is_full();
        if stuck && self.checkpoint.wanted && self.storage.handed_over().another_needs_less() {
            self.storage.on_disk().abandon_checkpoint(&mut self.disk);
            self.checkpoint.phase = Phase::Idle;
        }
    }

    /// The index up to which each group is applied.
    pub(crate) fn applied_indexes(&self) -> BTreeMap<GroupId, u64> {
        self.applied.iter().map(|(group, (index, _))| (*group, *index)).collect()
    }

    fn capture(&self, group: GroupId, states: &mut BTreeMap<PartitionKey, PartitionState>) -> Snapshot {
        let (applied_index, applied_term) = self.applied.get(&group).copied().unwrap_or_default();
        let HardState { term, vote } = self.shard.hard_state(group);
        let vote = vote.map(|node| node.0);
        // Of a group that waits for lost entries since before its first checkpoint, nothing is known but the founders.
        let unknown = Configuration::default();
        let configuration = self.shard.applied_configuration(group).unwrap_or(&unknown).encode();
        let state = Bytes::new();
        let head = GroupCheckpoint { group, term, vote, applied_index, applied_term, configuration, state };
        match self.groups.get(&group) {
            None => {
                let mut catalog = BytesMut::new();
                self.catalog.encode(&mut catalog);
                Snapshot::of_catalog(head, catalog)
            }
            Some(data) => {
                let stored = data.state.iter().filter_map(|(key, _)| Some((key, states.remove(&key)?)));
                Snapshot::of_partitions(head, data.state.clone(), stored.collect())
            }
        }
    }

    /// Take the current checkpoint as far as it can go.
    pub(crate) fn drive_checkpoint(&mut self) -> Result<(), BrokerError> {
        if self.checkpoint.applied_bytes >= self.config.checkpoint_bytes {
            self.checkpoint_if_due()?;
        }
        let Phase::Flushing { captured } = &mut self.checkpoint.phase else { return Ok(()) };
        let is_encoded = captured.encode(self.config.checkpoint_piece_bytes);
        let is_flushed = self.storage.handed_over().checkpoint_done() || mutated(Mutation::CheckpointEarly);
        // The mark is to know of the checkpoint before: a start goes by that.
        if !is_encoded || !is_flushed || !self.shard.journal().is_checkpoint_marked() {
            return Ok(());
        }
        if let Phase::Flushing { captured } = std::mem::replace(&mut self.checkpoint.phase, Phase::Idle) {
            let number = self.checkpoint.next_number;
            self.checkpoint.next_number += 1;
            let Captured { groups, journal_file, needed_file, .. } = &captured;
            let facts = Facts { owner: self.shard.file_owner(), needed_file: *needed_file };
            let facts = (self.format() >= MARK_FORMAT).then_some(facts);
            let checkpoint = Checkpoint { number, journal_file: *journal_file, facts, groups: groups.clone() };
            if mutated(Mutation::KeepFewerFiles) {
                self.shard.release_journal(&mut self.disk, *journal_file);
            }
            self.checkpoint.writer.start(&mut self.disk, checkpoint);
            self.checkpoint.phase = Phase::Writing { number, captured };
        }
        Ok(())
    }

    pub(crate) fn checkpoint_completion(&mut self, completion: Completion) -> Result<(), BrokerError> {
        match self.checkpoint.writer.on_completion(&mut self.disk, completion) {
            Ok(None) => {}
            Ok(Some(number)) => {
                self.shard.note_checkpoint(&mut self.disk, number);
                if let Phase::Writing { number, captured } = std::mem::replace(&mut self.checkpoint.phase, Phase::Idle)
                {
                    let Captured { groups, journal_file, .. } = captured;
                    self.transfers.offer(number, groups);
                    let gone = self.shard.release_journal(&mut self.disk, journal_file);
                    self.metrics.damage_repaired_total.inc_by(gone);
                    self.storage.on_disk().release_removed(&mut self.disk);
                    self.metrics.checkpoints_total.inc();
                    self.checkpoint.completed_us = self.now_us();
                    let micros = self.now_us().saturating_sub(self.checkpoint.started_us);
                    self.metrics.checkpoint_seconds.observe(micros as f64 / 1e6);
                }
            }
            Err(error) if error.is_retriable() => {
                let left = self.space_left();
                tracing::warn!(%error, left, "no space for a checkpoint; the previous one stands, trying again. Make room in the data directory");
                self.checkpoint.phase = Phase::Idle;
                self.checkpoint.wanted = true;
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
    journal_needed: JournalStart,
    next_number: u64,
}

/// Open the broker on a data directory: load the newest checkpoint, cut the segments to it, recover the journal. What
/// the journal holds beyond the checkpoint is applied again once the group's leader says that it is committed.
pub fn open<D: Disk>(
    config: BrokerConfig,
    mut shard_config: ShardConfig,
    segment_config: SegmentConfig,
    mut disk: D,
    metrics: Arc<Metrics>,
) -> Result<Broker<D>, BrokerError> {
    let newest = load_newest(&mut disk, &shard_config.journal)?;
    let damaged = newest.as_ref().and_then(|newest| newest.damage.as_ref());
    if let Some(error) = damaged {
        tracing::error!(%error, "a copy of the newest checkpoint is damaged; the other one is whole, and a new checkpoint follows");
    }
    let copy_lost = damaged.is_some();
    let newest = newest.map(|newest| newest.checkpoint);
    let (pending, leftovers) = pending_transfers(&mut disk)?;
    let checkpoint = take_over(&mut disk, newest, pending)?;
    let mut transfers = Transfers::new(leftovers);
    let mut loaded = Loaded { next_number: 1, ..Loaded::default() };
    if let Some(checkpoint) = checkpoint {
        transfers.offer(checkpoint.number, checkpoint.groups.clone());
        shard_config.journal.checkpoint = checkpoint.number;
        load(&mut loaded, checkpoint)?;
    }
    let needed = loaded.catalog.topics().map(|topic| topic.data_groups).max().unwrap_or(0);
    if needed > config.data_groups {
        return Err(BrokerError::TooFewGroups { configured: config.data_groups, needed });
    }
    let data_groups: Vec<GroupId> = shard_config.groups.iter().copied().filter(|group| *group != META).collect();
    let watch = Watch {
        control: ControlPath::new(config.budgets, metrics.clone()),
        elections: Elections::default(),
        groups: GroupGauges::new(&metrics, shard_config.groups.iter().copied()),
        observer: None,
        tracer: None,
    };
    let journal_start = (loaded.journal_start, loaded.journal_needed);
    let format = shard_config.journal.format;
    let shard = Shard::open(shard_config, &mut disk, journal_start, &loaded.starts)?;
    let going = going(&mut disk, &shard, &loaded.partitions)?;
    let mut segments = SegmentStore::recover(segment_config, &mut disk, &loaded.partitions, &going)?;
    // The cluster has this format at least: what is sealed before the catalog says so as well must not go without a digest.
    if format >= DIGEST_FORMAT {
        segments.keep_digests();
    }
    let expected_members = members_after(&loaded.catalog, shard.entries_in_memory(META));
    let applied = shard
        .group_ids()
        .map(|group| (group, loaded.starts.get(&group).map_or((0, 0), |s| (s.applied_index, s.applied_term))))
        .collect();
    let groups: BTreeMap<GroupId, DataGroup> = data_groups
        .into_iter()
        .map(|group| {
            let mut state = loaded.groups.remove(&group).unwrap_or_default();
            state.set_sequences(config.sequences);
            (group, DataGroup { state, reconciling: BTreeSet::new() })
        })
        .collect();
    if let Some(group) = loaded.groups.keys().next_back() {
        return Err(BrokerError::TooFewGroups { configured: config.data_groups, needed: group.0 });
    }
    metrics.set_backend(disk.name());
    let space = Space::of(&disk);
    let max_clock_skew_ms = config.max_clock_skew_ms;
    let storage = Storage::new(TailCache::new(config.tail_cache_bytes), segments);
    let in_flight = InFlight::new(config.memory_bytes);
    let request_counter = |opcode: &Opcode| (*opcode, metrics.requests_total.with_label_values(&[opcode.name()]));
    Ok(Broker {
        config,
        disk,
        shard,
        catalog: loaded.catalog,
        groups,
        applied,
        clock: Clock::default(),
        peers: Peers::default(),
        in_flight,
        next_ticket: 0,
        outputs: Vec::new(),
        turn: Turn::default(),
        proposals: BTreeMap::new(),
        queued_bytes: 0,
        flushes: Flushes::default(),
        scratch: Scratch::default(),
        clocks: Clocks::new(max_clock_skew_ms, format),
        barriers: Barriers::default(),
        reconcile: false,
        fetches: Fetches::default(),
        scans: Scans::default(),
        passed_on: PassedOn::default(),
        topic_changes: TopicChanges::default(),
        storage,
        checkpoint: Progress {
            phase: Phase::Idle,
            writer: CheckpointWriter::new(),
            next_number: loaded.next_number,
            started_us: 0,
            completed_us: 0,
            applied_bytes: 0,
            wanted: copy_lost,
        },
        transfers,
        scrub: Scrub::default(),
        space,
        removal: Removal::default(),
        leadership: Leadership::default(),
        admission: Admission::new(expected_members),
        readiness: Readiness::default(),
        request_counters: Opcode::ALL.iter().map(request_counter).collect(),
        figures: Figures::new(&metrics),
        stopwatch: None,
        metrics,
        watch,
    })
}

/// Below which offsets of which partitions the log removes everything, further on than the checkpoint: what that names may be
/// gone already, if there was no space for another one.
fn going<D: Disk>(
    disk: &mut D,
    shard: &Shard,
    partitions: &[(PartitionKey, PartitionState, Option<u64>)],
) -> Result<BTreeMap<PartitionKey, u64>, BrokerError> {
    let mut going = incoming::going(disk)?;
    for group in shard.group_ids().filter(|group| *group != META) {
        for (key, below) in removed_by(shard.entries_in_memory(group), partitions.iter().map(|(key, ..)| *key)) {
            let known = going.entry(key).or_default();
            *known = below.max(*known);
        }
    }
    Ok(going)
}

/// The newest checkpoint; an error if there was one that is not there any more. Without it, all segments would be removed.
fn load_newest<D: Disk>(
    disk: &mut D,
    journal: &JournalConfig,
) -> Result<Option<lnc_log::checkpoint::Loaded>, BrokerError> {
    let known = newest_checkpoint(disk, journal).map_err(ShardError::from)?;
    let newest = load_own(disk, &journal.owner, known.unwrap_or(0))?;
    // Without a mark: the first file of a journal goes only once a checkpoint has what is in it.
    let is_unknown = newest.is_none() && known.is_none();
    if is_unknown && oldest_file(disk).map_err(ShardError::from)?.is_some_and(|oldest| oldest > 1) {
        return Err(CheckpointError::Gone { number: 0, found: None }.into());
    }
    Ok(newest)
}

/// The transfers that can be taken over, and what there is of others. Files that were here already when a transfer began
/// may be gone since, with the power or by retention: then it is no longer complete.
fn pending_transfers<D: Disk>(disk: &mut D) -> Result<(Vec<incoming::Pending>, incoming::Leftovers), BrokerError> {
    loop {
        let (pending, leftovers) = incoming::pending(disk)?;
        let mut lacking = None;
        for transfer in &pending {
            let group = transfer.group;
            let files = segment_files(group, transfer.state.clone());
            let files = files.map_err(|error| BrokerError::State { group: group.0, error })?;
            if !incoming::is_available(disk, transfer, &files)? {
                lacking = Some(group);
            }
        }
        match lacking {
            Some(group) => incoming::take_up(disk, group)?,
            None => return Ok((pending, leftovers)),
        }
    }
}

/// Put state that has come from peers in the place of this node's own.
fn take_over<D: Disk>(
    disk: &mut D,
    newest: Option<Checkpoint>,
    pending: Vec<incoming::Pending>,
) -> Result<Option<Checkpoint>, BrokerError> {
    let mut checkpoint = newest.unwrap_or(Checkpoint { number: 0, journal_file: 0, facts: None, groups: Vec::new() });
    let mut transfers = Vec::new();
    for transfer in pending {
        let incoming::Pending { group, header, state, .. } = transfer.clone();
        let unreadable = |what| BrokerError::State { group: group.0, error: CommandError(what) };
        let (applied_index, applied_term, configuration) =
            decode_header(header).ok_or(unreadable("the header of a transfer"))?;
        let own = checkpoint.groups.iter().position(|own| own.group == group);
        let before = own.map(|at| checkpoint.groups.swap_remove(at));
        if let Some(own) = before.as_ref().filter(|own| own.applied_index >= applied_index) {
            // This node has caught up otherwise, or had taken it over before it ended.
            checkpoint.groups.push(own.clone());
            incoming::discard(disk, group)?;
            continue;
        }
        let files =
            segment_files(group, state.clone()).map_err(|error| BrokerError::State { group: group.0, error })?;
        transfers.push((transfer, files));
        // A later term or vote is in the journal; the vote in this term may be in the checkpoint alone.
        let term = before.as_ref().map_or(0, |own| own.term).max(applied_term);
        let vote = before.and_then(|own| own.vote.filter(|_| own.term == term));
        checkpoint.groups.push(GroupCheckpoint {
            group,
            term,
            vote,
            applied_index,
            applied_term,
            configuration,
            state,
        });
    }
    if !transfers.is_empty() {
        checkpoint.number += 1;
        checkpoint.groups.sort_by_key(|group| group.group);
        incoming::install(disk, &transfers, checkpoint.clone())?;
    }
    Ok(Some(checkpoint).filter(|checkpoint| checkpoint.number > 0))
}

/// The segment files that a group's state in a checkpoint names.
pub(crate) fn segment_files(group: GroupId, state: Bytes) -> Result<Vec<FileInfo>, CommandError> {
    let mut loaded = Loaded::default();
    load_group(&mut loaded, group, state)?;
    let files = |(key, stored, _): &(PartitionKey, PartitionState, Option<u64>)| {
        let key = *key;
        let info = move |segment: &SegmentState| FileInfo {
            key,
            base_offset: segment.base_offset,
            end_offset: segment.end_offset,
            len: segment.len,
            digest: segment.digest,
        };
        stored.segments.iter().map(info).collect::<Vec<_>>()
    };
    Ok(loaded.partitions.iter().flat_map(files).collect())
}

/// The partitions of a group's state in a checkpoint, and where their logs start.
pub(crate) fn stored_partitions(group: GroupId, state: Bytes) -> Result<Vec<(PartitionKey, u64)>, CommandError> {
    let mut loaded = Loaded::default();
    load_group(&mut loaded, group, state)?;
    Ok(loaded.partitions.iter().map(|(key, stored, _)| (*key, stored.log_start_offset)).collect())
}

/// The files of records of which the newest checkpoint of a data directory says which batches they have, by path.
pub fn files_with_digest<D: Disk>(disk: &mut D) -> BTreeSet<String> {
    let mut loaded = Loaded::default();
    let newest = load_latest(disk).ok().flatten();
    if newest.is_none_or(|newest| load(&mut loaded, newest.checkpoint).is_err()) {
        return BTreeSet::new();
    }
    let segments = loaded.partitions.iter().flat_map(|(key, state, _)| state.segments.iter().map(|one| (*key, one)));
    let known = segments.filter(|(_, segment)| segment.digest.is_some());
    known.map(|(key, segment)| key.log_path(segment.base_offset)).collect()
}

fn load(loaded: &mut Loaded, checkpoint: Checkpoint) -> Result<(), BrokerError> {
    loaded.next_number = checkpoint.number + 1;
    loaded.journal_start = JournalStart(checkpoint.journal_file);
    let needed = checkpoint.facts.map_or(0, |facts| facts.needed_file);
    loaded.journal_needed = JournalStart(needed.max(checkpoint.journal_file));
    for group in checkpoint.groups {
        let hard_state = HardState { term: group.term, vote: group.vote.map(NodeId) };
        let (applied_index, applied_term) = (group.applied_index, group.applied_term);
        let unreadable = |_| BrokerError::State { group: group.group.0, error: CommandError("its members") };
        // Empty: the log has not said yet who the members are.
        let configuration = match Configuration::default().encode() == group.configuration {
            true => None,
            false => Some(Configuration::decode(&group.configuration).map_err(unreadable)?),
        };
        loaded.starts.insert(group.group, GroupStart { hard_state, applied_index, applied_term, configuration });
        load_group(loaded, group.group, group.state)
            .map_err(|error| BrokerError::State { group: group.group.0, error })?;
    }
    Ok(())
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
