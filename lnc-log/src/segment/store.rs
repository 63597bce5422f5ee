//! [`SegmentStore`]: all partitions of a shard, and the owner of every segment operation in flight.

use super::files::{Files, LogFile};
use super::index;
use super::learn::Learned;
use super::partition::{Partition, Segment, Step};
use super::read::{DamagedBatch, ReadDone, ReadTask};
use super::repair::Repair;
use super::state::PartitionState;
use super::{Allowance, Digest, PartitionKey, SegmentConfig, SegmentError, StoredBatch};
use crate::disk::{AlignedBuf, BLOCK, Completion, Disk, FileId, Op, Outcome, Owner};
use bytes::Bytes;
use lnc_mutation::{Mutation, mutated};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;

/// Write buffers kept for reuse.
const SPARE_BUFFERS: usize = 8;

/// Names a checkpoint of the segments; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointId(pub u64);

/// Where a record with a timestamp may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampBound {
    /// No record before this offset is late enough.
    pub offset: u64,
    /// The first record that is late enough lies before this offset.
    pub before: u64,
}

/// What [`SegmentStore::repair`] makes of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mending {
    /// They are on their way to the file.
    Begun,
    /// They may belong there: with those from this offset on behind them that can be told.
    More {
        /// The offset after the last of them.
        offset: u64,
    },
    /// They do not belong there; nothing is written.
    Refused,
}

/// What an operation in flight is for.
#[derive(Debug)]
pub(super) enum Pending {
    /// The step of the partition's lane.
    Lane(PartitionKey),
    /// The opening of a log file.
    Opened(LogFile),
    /// The read with this number.
    Read(u64),
    /// The removal of a path.
    Removal(String),
    /// A close, of which nothing is expected.
    Close,
}

/// What is to be removed once a checkpoint after `after` is durable.
#[derive(Debug)]
struct Removal {
    key: PartitionKey,
    /// Base offset of the segment; `None` for the partition's directory.
    base: Option<u64>,
    after: u64,
}

/// The checkpoint in progress, or the last one.
#[derive(Debug, Default)]
pub(super) struct Progress {
    id: u64,
    states: Vec<(PartitionKey, PartitionState)>,
    /// Partitions whose bytes are not on stable storage yet.
    pub(super) waiting: BTreeSet<PartitionKey>,
}

/// The segments of a shard's partitions. See the module documentation.
///
/// All methods are deterministic. Completions of [`Owner::Segments`] go to [`SegmentStore::on_completion`]; an error
/// from there is fatal: the files are in an unknown state, and the node recovers by starting again.
#[derive(Debug)]
pub struct SegmentStore {
    pub(super) config: SegmentConfig,
    /// Boxed, so that a search touches little but keys.
    pub(super) partitions: BTreeMap<PartitionKey, Box<Partition>>,
    pub(super) files: Files,
    ops: BTreeMap<u64, Pending>,
    submitted: u64,
    pub(super) pending_bytes: u64,
    /// Partitions whose lane may have something to do.
    pub(super) ready: BTreeSet<PartitionKey>,
    /// Partitions whose last step found the disk full.
    pub(super) stalled: BTreeSet<PartitionKey>,
    /// Partitions that wait until the checkpoint in progress has the space that it needs.
    pub(super) held: BTreeSet<PartitionKey>,
    /// While space is short: bytes that are left free.
    pub(super) keep_free: Option<u64>,
    /// Lanes with a step under way.
    pub(super) lanes: usize,
    /// Partitions with batches that no checkpoint covers yet.
    dirty: BTreeSet<PartitionKey>,
    pub(super) checkpoint: Progress,
    removals: Vec<Removal>,
    removing: VecDeque<Op>,
    removal_in_flight: bool,
    pub(super) reads: BTreeMap<u64, ReadTask>,
    pub(super) reads_begun: u64,
    /// Bytes that the disk may be asked for at once, beyond one read.
    pub(super) read_budget: usize,
    /// Bytes that it is asked for.
    pub(super) reading_bytes: usize,
    /// Reads that wait for others, oldest first.
    pub(super) waiting_reads: VecDeque<u64>,
    /// Sealed segments whose index is in memory, oldest first.
    cached: VecDeque<LogFile>,
    buffers: Vec<AlignedBuf>,
    /// Repairs that are done, until somebody asks.
    pub(super) repaired: Vec<DamagedBatch>,
    /// Places that were written over and still cannot be read, until somebody asks.
    pub(super) unreadable: Vec<DamagedBatch>,
    pub(super) root_synced: bool,
    /// Whether checkpoints and indexes say which batches a segment has.
    pub(super) digests: bool,
    /// What the scrub has seen of a segment without a digest.
    pub(super) learned: Option<Learned>,
}

impl SegmentStore {
    /// An empty store.
    pub fn new(config: SegmentConfig) -> Self {
        let write_block = config.write_block.max(BLOCK).next_multiple_of(BLOCK);
        let config = SegmentConfig {
            write_block,
            max_cached_indexes: config.max_cached_indexes.max(1),
            max_lanes: config.max_lanes.max(1),
            ..config
        };
        Self {
            config,
            partitions: BTreeMap::new(),
            files: Files::default(),
            ops: BTreeMap::new(),
            submitted: 0,
            pending_bytes: 0,
            ready: BTreeSet::new(),
            stalled: BTreeSet::new(),
            held: BTreeSet::new(),
            keep_free: None,
            lanes: 0,
            dirty: BTreeSet::new(),
            checkpoint: Progress::default(),
            removals: Vec::new(),
            removing: VecDeque::new(),
            removal_in_flight: false,
            reads: BTreeMap::new(),
            reads_begun: 0,
            read_budget: usize::MAX,
            reading_bytes: 0,
            waiting_reads: VecDeque::new(),
            cached: VecDeque::new(),
            buffers: Vec::new(),
            repaired: Vec::new(),
            unreadable: Vec::new(),
            root_synced: false,
            digests: false,
            learned: None,
        }
    }

    /// Add an empty partition. `segment_bytes` overrides the configured segment size.
    pub fn create_partition(&mut self, key: PartitionKey, segment_bytes: Option<u64>) -> Result<(), SegmentError> {
        if self.partitions.contains_key(&key) {
            return Err(SegmentError::PartitionExists { key });
        }
        let segment_bytes = segment_bytes.unwrap_or(self.config.segment_bytes);
        self.partitions.insert(key, Box::new(Partition::new(key, segment_bytes)));
        Ok(())
    }

    /// Take a committed batch in. It waits in memory; where segments roll is decided here.
    pub fn append(&mut self, key: PartitionKey, batch: StoredBatch) -> Result<(), SegmentError> {
        let partition = live_mut(&mut self.partitions, key)?;
        let len = batch.len() as u64;
        let work = partition.append(batch, &self.config)?;
        self.pending_bytes += len;
        self.dirty.insert(key);
        if work {
            self.ready.insert(key);
        }
        Ok(())
    }

    /// Bytes in memory that are not in the files for good.
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Whether the disk was full at the last attempt to write; nothing is lost, and [`SegmentStore::write_out`] tries
    /// again.
    pub fn is_full(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// Submit writes for partitions with a whole write block pending, and for sealed segments. One operation is in
    /// flight per partition; the next one follows from its completion.
    pub fn write_out(&mut self, disk: &mut impl Disk) {
        self.ready.extend(&self.stalled);
        if self.keep_free.is_none() || self.checkpoint_done() {
            self.ready.append(&mut self.held);
        }
        self.pump(disk);
    }

    /// Whether space is short, and how many bytes are to be left free then. As long as a checkpoint is in progress, whatever it
    /// does not need waits: what comes later must not take the space without which the journal never gets any shorter.
    pub fn save_space(&mut self, keep_free: Option<u64>) {
        self.keep_free = keep_free;
    }

    /// Begin to put everything appended so far on stable storage. While a checkpoint is in progress, this returns that
    /// one and begins nothing.
    pub fn begin_checkpoint(&mut self, disk: &mut impl Disk) -> CheckpointId {
        if self.checkpoint_done() {
            self.checkpoint.id += 1;
            let live = self.partitions.iter().filter(|(_, partition)| partition.removed.is_none());
            self.checkpoint.states = live.map(|(key, partition)| (*key, partition.to_state(self.digests))).collect();
            for key in std::mem::take(&mut self.dirty) {
                if self.partitions.get_mut(&key).is_some_and(|partition| partition.set_target()) {
                    self.checkpoint.waiting.insert(key);
                    self.ready.insert(key);
                }
            }
            self.pump(disk);
        }
        CheckpointId(self.checkpoint.id)
    }

    /// Whether the last checkpoint that was begun is on stable storage.
    pub fn checkpoint_done(&self) -> bool {
        self.checkpoint.waiting.is_empty()
    }

    /// The partitions as they were when the last checkpoint began. Given out once, and to be stored only once
    /// [`SegmentStore::checkpoint_done`].
    pub fn checkpoint_states(&mut self) -> Vec<(PartitionKey, PartitionState)> {
        std::mem::take(&mut self.checkpoint.states)
    }

    /// Take in the completion of an operation of [`Owner::Segments`].
    pub fn on_completion(
        &mut self,
        disk: &mut impl Disk,
        completion: Completion,
    ) -> Result<Option<ReadDone>, SegmentError> {
        let Completion { token, result } = completion;
        match self.ops.remove(&token.number()) {
            Some(Pending::Lane(key)) => self.step_done(disk, key, result).map(|()| None),
            Some(Pending::Opened(log)) => self.log_opened(disk, log, result.map(|_| ())),
            Some(Pending::Read(id)) => Ok(self.read_step(disk, id, result)),
            Some(Pending::Removal(path)) => {
                if let Err(error) = result.or_else(ignore_missing) {
                    // Harmless: what no checkpoint names is removed at the next start.
                    tracing::warn!(%path, %error, "cannot remove a file that is no longer needed; look at its permissions and at the disk");
                }
                self.removal_in_flight = false;
                self.pump_removals(disk);
                Ok(None)
            }
            Some(Pending::Close) | None => Ok(None),
        }
    }

    /// Everything of the partition below this offset can be read from files. 0 if the partition does not exist.
    pub fn written_offset(&self, key: PartitionKey) -> u64 {
        self.live(key).map_or(0, Partition::written_offset)
    }

    /// First offset that is kept. 0 if the partition does not exist.
    pub fn log_start_offset(&self, key: PartitionKey) -> u64 {
        self.live(key).map_or(0, Partition::log_start_offset)
    }

    /// Offset of the next record. 0 if the partition does not exist.
    pub fn log_end_offset(&self, key: PartitionKey) -> u64 {
        self.live(key).map_or(0, Partition::log_end_offset)
    }

    /// Bytes of the partition's segments, written or not. 0 if the partition does not exist.
    pub fn size_bytes(&self, key: PartitionKey) -> u64 {
        self.live(key).map_or(0, Partition::size_bytes)
    }

    /// The partitions, in order.
    pub fn partitions(&self) -> impl Iterator<Item = PartitionKey> {
        self.partitions.iter().filter(|(_, partition)| partition.removed.is_none()).map(|(key, _)| *key)
    }

    /// The partition that follows this one, which need not exist.
    pub fn partition_after(&self, key: PartitionKey) -> Option<PartitionKey> {
        let after = (std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded);
        self.partitions.range(after).find(|(_, partition)| partition.removed.is_none()).map(|(key, _)| *key)
    }

    /// The state of a partition as a checkpoint begun now would have it.
    pub fn state(&self, key: PartitionKey) -> Option<PartitionState> {
        self.live(key).ok().map(|partition| partition.to_state(self.digests))
    }

    /// Narrow down, from what is in memory, where the first record with at least `timestamp` (in milliseconds) is.
    /// `None`: there is no such record.
    pub fn offset_for_timestamp(
        &self,
        key: PartitionKey,
        timestamp: i64,
    ) -> Result<Option<TimestampBound>, SegmentError> {
        let partition = self.live(key)?;
        let mut late = partition.live().iter().filter(|segment| segment.state.max_timestamp >= timestamp);
        Ok(late.next().map(|segment| {
            let state = &segment.state;
            let entries = &state.index;
            let found = entries.iter().position(|entry| entry.max_timestamp >= timestamp);
            let offset = found.map_or(state.base_offset, |at| entries[at].offset);
            let next = found.and_then(|at| entries.get(at + 1));
            TimestampBound {
                offset: offset.max(partition.log_start_offset()),
                before: next.map_or(state.end_offset, |next| next.offset),
            }
        }))
    }

    /// Overwrite a damaged batch, and what follows it in its segment, with batches of a replica, whose segments have the
    /// same bytes. Where it is known which batches belong there, those that come up to where that can be told. Once they are on
    /// stable storage and were read back, the place is among [`SegmentStore::take_repaired`]; there may be more damage after
    /// them. A place that cannot be read all the same is moved to a new file with all of its segment; if that is not possible
    /// either, it is among [`SegmentStore::take_unreadable`]. A file that is not there any more is given up silently.
    pub fn repair(&mut self, disk: &mut impl Disk, place: DamagedBatch, batches: &Bytes) -> Mending {
        let Some(partition) = self.partitions.get_mut(&place.key).filter(|partition| partition.removed.is_none())
        else {
            return Mending::Refused;
        };
        let segment = partition.segment(place.base).filter(|segment| !segment.given_up);
        let Some(segment) = segment else { return Mending::Refused };
        if matches!(partition.lane, Some(Step::Mend { .. })) {
            // A disk that fails takes its time.
            return Mending::Begun;
        }
        match segment.fitting(place, batches) {
            Ok(0) => return Mending::Refused,
            Ok(len) => partition.repair = Some(Repair::new(place, batches.slice(..len))),
            Err(mending) => return mending,
        }
        self.ready.insert(place.key);
        self.pump(disk);
        Mending::Begun
    }

    /// The repairs that have been done since the last call.
    pub fn take_repaired(&mut self) -> Vec<DamagedBatch> {
        std::mem::take(&mut self.repaired)
    }

    /// The places that could not be read after they were written over, since the last call.
    pub fn take_unreadable(&mut self) -> Vec<DamagedBatch> {
        std::mem::take(&mut self.unreadable)
    }

    /// Where the segments of a partition begin; the first one may begin before the log start offset.
    pub fn segment_bases(&self, key: PartitionKey) -> impl Iterator<Item = u64> {
        self.live(key).into_iter().flat_map(|partition| partition.live().iter().map(|s| s.state.base_offset))
    }

    /// Let go of everything below `log_start_offset`: whole segments leave at once, their files once a checkpoint that
    /// does not name them is durable. If that is everything, the next append begins a new segment.
    pub fn trim(&mut self, key: PartitionKey, log_start_offset: u64) -> Result<(), SegmentError> {
        let checkpoint = self.checkpoint.id;
        live_mut(&mut self.partitions, key)?.trim(log_start_offset, checkpoint);
        self.purge(key);
        Ok(())
    }

    /// What retention would let go of, or `None` to keep everything. Segments leave from the front while their latest
    /// append is before `oldest_ms`, the open one included and as long as `allowance` has anything left, or while the
    /// partition is larger than `max_bytes`, the open one excluded.
    pub fn trim_candidates(
        &self,
        key: PartitionKey,
        oldest_ms: Option<u64>,
        max_bytes: Option<u64>,
        allowance: &mut Allowance,
    ) -> Option<u64> {
        self.live(key).ok()?.trim_candidate(oldest_ms, max_bytes, allowance)
    }

    /// Nothing in the partition was appended later than `time_ms`, whatever the clock said at the time.
    pub fn cap_append_times(&mut self, key: PartitionKey, time_ms: u64) -> Result<(), SegmentError> {
        live_mut(&mut self.partitions, key)?.cap_append_times(time_ms);
        Ok(())
    }

    /// Remove a partition; its files follow once a checkpoint that does not name it is durable.
    pub fn remove_partition(&mut self, key: PartitionKey) -> Result<(), SegmentError> {
        let checkpoint = self.checkpoint.id;
        live_mut(&mut self.partitions, key)?.removed = Some(checkpoint);
        self.drop_removed(key);
        Ok(())
    }

    /// The last finished checkpoint is durable: remove the files that it does not name.
    pub fn release_removed(&mut self, disk: &mut impl Disk) {
        let durable = self.checkpoint.id - u64::from(!self.checkpoint_done());
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.removals)
            .into_iter()
            .partition(|removal| removal.after < durable || mutated(Mutation::RemoveEarly));
        self.removals = later;
        self.queue_removals(disk, due);
    }

    fn queue_removals(&mut self, disk: &mut impl Disk, due: Vec<Removal>) {
        for Removal { key, base, .. } in due {
            match base {
                Some(base) => {
                    if let Some(file) = self.files.remove((key, base)) {
                        self.close(disk, file);
                    }
                    self.removing.push_back(Op::Remove { path: key.log_path(base) });
                    self.removing.push_back(Op::Remove { path: key.index_path(base) });
                }
                None => self.removing.push_back(Op::RemoveDir { path: key.dir() }),
            }
        }
        self.pump_removals(disk);
    }

    /// Whether a checkpoint begun now would have less to write than is left of the one in progress: more of that was removed
    /// than came since.
    pub fn another_needs_less(&self) -> bool {
        let left: u64 = self.partitions.values().map(|partition| partition.left_of_checkpoint()).sum();
        let another: u64 = self.partitions.values().map(|partition| partition.left_of_all()).sum();
        another < left
    }

    /// Give up the checkpoint in progress, which waits for space: another one may need less of it. What it waited for is as
    /// if it had never begun.
    pub fn abandon_checkpoint(&mut self, disk: &mut impl Disk) {
        self.checkpoint.states.clear();
        for key in std::mem::take(&mut self.checkpoint.waiting) {
            if let Some(partition) = self.partitions.get_mut(&key) {
                partition.target = None;
                self.dirty.insert(key);
                self.ready.insert(key);
            }
        }
        self.pump(disk);
    }

    /// Where space is short: remove at once what the newest durable checkpoint still names. Only for an owner whose log says
    /// durably that it goes, and who tells [`SegmentStore::recover`] so.
    pub fn release_early(&mut self, disk: &mut impl Disk) {
        let removals = std::mem::take(&mut self.removals);
        self.queue_removals(disk, removals);
    }

    /// Where space is short: let go of all segments that end below these offsets, which later entries of the log than this
    /// replica has have removed everywhere. Their files are removed, and what of them waits in memory is not written any more.
    /// The segments stay what they are, so that this replica can still follow the log; reads of them fail. To be told to
    /// [`SegmentStore::recover`] as well.
    pub fn give_up(&mut self, disk: &mut impl Disk, below: &BTreeMap<PartitionKey, u64>) {
        let mut given = Vec::new();
        for (key, below) in below {
            let Some(partition) = self.partitions.get_mut(key).filter(|partition| partition.may_give_up()) else {
                continue;
            };
            let queued = partition.queued_bytes();
            let goes: Vec<(u64, bool)> =
                partition.could_go(*below).map(|segment| (segment.state.base_offset, segment.created)).collect();
            for (base, created) in goes {
                partition.give_up(base);
                if created {
                    given.push(Removal { key: *key, base: Some(base), after: 0 });
                }
            }
            self.pending_bytes -= queued - partition.queued_bytes();
            // A checkpoint in progress need not wait for it any more.
            self.ready.insert(*key);
        }
        self.queue_removals(disk, given);
        self.pump(disk);
    }

    /// Bytes that [`SegmentStore::give_up`] would free now.
    pub fn could_give_up(&self, below: &BTreeMap<PartitionKey, u64>) -> u64 {
        let partitions = below.iter().filter_map(|(key, below)| Some((self.partitions.get(key)?.as_ref(), *below)));
        let goes =
            |(partition, below): (&Partition, u64)| partition.could_go(below).map(Segment::file_bytes).sum::<u64>();
        partitions.filter(|(partition, _)| partition.may_give_up()).map(goes).sum()
    }

    /// The segments of a partition that have a file, each with its base offset and the bytes in the file.
    pub fn files(&self, key: PartitionKey) -> impl Iterator<Item = (u64, u64)> {
        let segments = self.partitions.get(&key).into_iter().flat_map(|partition| &partition.segments);
        segments.map(|segment| (segment.state.base_offset, segment.file_bytes())).filter(|(_, bytes)| *bytes > 0)
    }

    /// Whether the file of a segment is gone before its time.
    pub fn is_given_up(&self, key: PartitionKey, base_offset: u64) -> bool {
        let partition = self.partitions.get(&key);
        partition.and_then(|partition| partition.segment(base_offset)).is_some_and(|segment| segment.given_up)
    }

    /// Whether operations are in flight or a checkpoint is in progress.
    pub fn is_busy(&self) -> bool {
        !self.ops.is_empty() || !self.checkpoint_done()
    }

    /// Removals go one at a time: nobody waits for them, and a directory comes after its files.
    fn pump_removals(&mut self, disk: &mut impl Disk) {
        if self.removal_in_flight {
            return;
        }
        let Some(op) = self.removing.pop_front() else { return };
        let path = match &op {
            Op::Remove { path } | Op::RemoveDir { path } => path.clone(),
            _ => String::new(),
        };
        self.removal_in_flight = true;
        self.submit(disk, Pending::Removal(path), op);
    }

    pub(super) fn submit(&mut self, disk: &mut impl Disk, pending: Pending, op: Op) {
        self.submitted += 1;
        self.ops.insert(self.submitted, pending);
        disk.submit(Owner::Segments.token(self.submitted), op);
    }

    pub(super) fn close(&mut self, disk: &mut impl Disk, file: FileId) {
        self.submit(disk, Pending::Close, Op::Close { file });
    }

    pub(super) fn live(&self, key: PartitionKey) -> Result<&Partition, SegmentError> {
        let live = self.partitions.get(&key).map(Box::as_ref).filter(|partition| partition.removed.is_none());
        live.ok_or(SegmentError::UnknownPartition { key })
    }

    /// Drop trimmed segments that nothing needs any more, and queue the removal of their files.
    pub(super) fn purge(&mut self, key: PartitionKey) {
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        let before = partition.queued_bytes();
        for (base, after) in partition.purge() {
            self.removals.push(Removal { key, base: Some(base), after });
        }
        self.pending_bytes -= before - partition.queued_bytes();
    }

    /// Drop the partition if it is removed and nothing needs it any more, and queue the removal of its files.
    pub(super) fn drop_removed(&mut self, key: PartitionKey) {
        let Some(partition) = self.partitions.get(&key) else { return };
        let Some(after) = partition.removed.filter(|_| partition.is_unused()) else { return };
        self.removals.extend(partition.bases().map(|base| Removal { key, base: Some(base), after }));
        self.removals.push(Removal { key, base: None, after });
        self.pending_bytes -= partition.queued_bytes();
        self.partitions.remove(&key);
        self.dirty.remove(&key);
        self.ready.remove(&key);
        self.stalled.remove(&key);
        self.held.remove(&key);
    }

    /// The index of a sealed segment came into memory; the one that came first leaves if there are too many.
    pub(super) fn cache_index(&mut self, log: LogFile, index: Vec<index::IndexEntry>) {
        self.cached.retain(|cached| *cached != log);
        self.cached.push_back(log);
        if let Some(segment) = self.partitions.get_mut(&log.0).and_then(|partition| partition.segment_mut(log.1)) {
            segment.state.index = index;
        }
        while self.cached.len() > self.config.max_cached_indexes {
            let Some((key, base)) = self.cached.pop_front() else { break };
            if let Some(segment) = self.partitions.get_mut(&key).and_then(|partition| partition.segment_mut(base)) {
                segment.state.index = Vec::new();
            }
        }
    }

    /// The index of a segment was made anew from its file, which has this digest.
    pub(super) fn index_rebuilt(&mut self, log: LogFile, digest: Digest) {
        let (key, base) = log;
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        let Some(segment) = partition.segment_mut(base) else { return };
        (segment.rescan, segment.vouched) = (None, true);
        if self.digests && segment.state.digest.is_none() {
            partition.learn(base, digest);
        }
        if !partition.rebuilt.contains(&base) {
            partition.rebuilt.push(base);
        }
        self.ready.insert(key);
    }

    pub(super) fn take_buffer(&mut self) -> AlignedBuf {
        self.buffers.pop().unwrap_or_else(|| AlignedBuf::with_capacity(self.config.write_block))
    }

    pub(super) fn recycle(&mut self, outcome: Outcome) {
        if let Outcome::Written(mut buf) = outcome
            && self.buffers.len() < SPARE_BUFFERS
            && buf.capacity() >= self.config.write_block
        {
            buf.clear();
            self.buffers.push(buf);
        }
    }
}

/// A segment may have been given up before its index was written.
fn ignore_missing(error: io::Error) -> io::Result<Outcome> {
    if error.kind() == io::ErrorKind::NotFound { Ok(Outcome::Done) } else { Err(error) }
}

fn live_mut(
    partitions: &mut BTreeMap<PartitionKey, Box<Partition>>,
    key: PartitionKey,
) -> Result<&mut Partition, SegmentError> {
    let live = partitions.get_mut(&key).map(Box::as_mut).filter(|partition| partition.removed.is_none());
    live.ok_or(SegmentError::UnknownPartition { key })
}
