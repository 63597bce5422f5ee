//! The state machine of a data group: which partitions it holds, where their logs end, and what each idempotent producer
//! wrote last. Deterministic; the records themselves are in the tail cache and the segments.
//!
//! Duplicates are found here, while applying, and not when proposing: a retry that reached the log twice, through two
//! leaders, is then recognised by every replica alike, whatever the leaders knew.

use crate::machines::command::{CommandError, get_key, get_optional, get_u32, get_u64, put_optional};
use bytes::{BufMut, Bytes, BytesMut};
use lnc_log::segment::PartitionKey;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::batch::BatchHeader;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;

/// Batches per producer that a retry can be matched with: as many as a client may have in flight per partition.
const RECENT_BATCHES: usize = 5;

/// Producers remembered per partition as long as no [`ProducerLimits`] are set; the one that was silent longest is
/// forgotten first.
const MAX_PRODUCERS: usize = 4096;

/// Most bytes that a producer takes in a checkpoint: id, epoch, next sequence, time, and its recent batches.
const PRODUCER_BYTES: u32 = 28 + 16 * RECENT_BATCHES as u32;

/// Most bytes of a partition in a checkpoint, without its producers.
const PARTITION_BYTES: usize = 12 + 16 + 9 + 4 + 9;

/// In the number of partitions in a checkpoint: [`ProducerLimits`] come first.
const LIMITED: u32 = 1 << 31;

/// What share of its producers a partition forgets at once, those first that were silent longest: to look for one after the
/// other would cost each newcomer a look at all of them.
const FORGOTTEN_SHARE: usize = 8;

/// How many producers are remembered. Set by a command, so that all replicas forget the same ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerLimits {
    /// In each partition, at least 1.
    pub partition: u32,
    /// In all partitions of a group, at least 1: where there are more, the partition with most of them forgets some.
    pub group: u32,
}

impl ProducerLimits {
    /// As many as take 1 MiB of a checkpoint for a partition, and 16 MiB for a group.
    pub const DEFAULT: Self = Self { partition: (1 << 20) / PRODUCER_BYTES, group: (16 << 20) / PRODUCER_BYTES };
}

/// The first format in which partitions are deleted topic by topic: see [`PartitionGroup::delete_topic`].
pub const WHOLE_TOPICS_SINCE_FORMAT: u32 = 3;

/// Deleted topics remembered one by one. Before [`WHOLE_TOPICS_SINCE_FORMAT`]: partitions, of which the one with the
/// smallest key is forgotten first.
const MAX_DELETED: usize = 16 << 10;

/// Among what was deleted, stands for all partitions of a topic. No partition has this number.
const WHOLE: u32 = u32::MAX;

/// The same for all topics up to this one, but for partitions that are here.
const UP_TO: u32 = u32::MAX - 1;

/// The producer id of a batch that does not want idempotence.
const NO_PRODUCER: i64 = -1;

/// Why a batch in the log has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The partition is not (or no longer) in the group.
    UnknownPartition,
    /// The header does not parse.
    Corrupt,
    /// Not the next sequence of this producer.
    OutOfOrderSequence {
        /// What would have come next.
        expected: i32,
        /// What came.
        found: i32,
    },
    /// The producer is not known here and does not start at sequence 0.
    UnknownProducer,
    /// A newer epoch of the producer has written here.
    Fenced {
        /// The newest epoch.
        current: i16,
        /// The batch's epoch.
        found: i16,
    },
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It lies at this offset.
    At(u64),
    /// It was there already, at this offset.
    Duplicate(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RecentBatch {
    base_sequence: i32,
    count: u32,
    base_offset: u64,
}

/// What is known of a producer in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    next_sequence: i32,
    last_append_ms: u64,
    recent: VecDeque<RecentBatch>,
}

impl Producer {
    /// When its last batch came, by the group's time: many may have come at the same one, since that stands still while the
    /// leader's clock is behind it.
    fn silent_since_ms(&self) -> u64 {
        self.last_append_ms
    }

    /// The offset of its last batch: who has a larger one was heard later.
    fn newest_offset(&self) -> u64 {
        self.recent.back().map_or(0, |batch| batch.base_offset)
    }
}

/// One partition. A copy costs little: producers are shared until one of the two changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    /// Offset of the first record that can be read.
    pub log_start_offset: u64,
    /// Offset of the next record: since only committed entries are applied, also the high watermark.
    pub log_end_offset: u64,
    /// Segment size in bytes, if the topic sets one.
    pub segment_bytes: Option<u64>,
    producers: Arc<BTreeMap<i64, Producer>>,
    /// The largest id of a producer that was forgotten since there are [`ProducerLimits`]. One that is not larger and not
    /// known may be one that was: what it sends may be here already.
    forgotten_up_to: Option<i64>,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionGroup {
    /// The latest append time applied: the group's clock goes back only where a leader has it turned back.
    clock_ms: u64,
    limits: Option<ProducerLimits>,
    partitions: BTreeMap<PartitionKey, Partition>,
    /// In all partitions together.
    producers: usize,
    /// Partitions and topics that were deleted: a leader that has not heard of it yet must not bring one back.
    deleted: BTreeSet<PartitionKey>,
    sequences: Sequences,
}

/// The sequence numbers of a producer's records: from 0 to this one, as Kafka's do, and then from 0 again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequences(i32);

impl Default for Sequences {
    fn default() -> Self {
        Self(i32::MAX)
    }
}

impl Sequences {
    /// For simulations, in which nobody sends so many: up to `last`, which is one less than a power of two.
    pub fn up_to(last: i32) -> Self {
        Self(last)
    }

    /// The sequence after `count` records from `base`.
    fn next(self, base: i32, count: u32) -> i32 {
        let next = i64::from(base) + i64::from(count);
        if mutated(Mutation::NeverWrap) { next as i32 } else { (next & i64::from(self.0)) as i32 }
    }
}

/// What stands for all partitions of a topic.
pub fn whole_topic(topic_id: u64) -> PartitionKey {
    PartitionKey { topic_id, partition: WHOLE }
}

/// The keys of a topic's partitions, and of what stands for them.
fn all_of(topic_id: u64) -> RangeInclusive<PartitionKey> {
    PartitionKey { topic_id, partition: 0 }..=PartitionKey { topic_id, partition: u32::MAX }
}

impl PartitionGroup {
    /// Take over the time of an entry; gives the group's time for its appends.
    pub fn advance_clock(&mut self, append_ms: u64) -> u64 {
        self.clock_ms = self.clock_ms.max(append_ms);
        self.clock_ms
    }

    /// The group's time.
    pub fn clock_ms(&self) -> u64 {
        self.clock_ms
    }

    /// The group's time was ahead: it, and what was noted at later times, goes back to this one. `false` if it is not
    /// later.
    pub fn turn_back(&mut self, time_ms: u64) -> bool {
        if self.clock_ms <= time_ms {
            return false;
        }
        self.clock_ms = time_ms;
        for partition in self.partitions.values_mut().filter(|partition| !partition.producers.is_empty()) {
            for producer in Arc::make_mut(&mut partition.producers).values_mut() {
                producer.last_append_ms = producer.last_append_ms.min(time_ms);
            }
        }
        true
    }

    /// How many producers are remembered from now on. Who is too many goes when the next one comes.
    pub fn limit_producers(&mut self, limits: ProducerLimits) {
        self.limits = Some(limits);
    }

    /// How many producers are remembered; `None` before that was ever set.
    pub fn producer_limits(&self) -> Option<ProducerLimits> {
        self.limits
    }

    /// Make a partition; `false` if it exists, or did once: topic ids are never used again.
    pub fn create(&mut self, key: PartitionKey, segment_bytes: Option<u64>) -> bool {
        let new = !self.partitions.contains_key(&key) && !self.was_deleted(key);
        if new {
            self.partitions.insert(key, Partition { segment_bytes, ..Partition::default() });
        }
        new
    }

    /// Remove a partition; `false` if there is none.
    pub fn delete(&mut self, key: PartitionKey) -> bool {
        self.deleted.insert(key);
        if self.deleted.len() > MAX_DELETED {
            self.deleted.pop_first();
        }
        self.take(key)
    }

    /// A partition goes, with the producers that it remembers.
    fn take(&mut self, key: PartitionKey) -> bool {
        let gone = self.partitions.remove(&key);
        self.producers -= gone.as_ref().map_or(0, |partition| partition.producers.len());
        gone.is_some()
    }

    /// Remove all partitions of a topic, and have none of them come back; gives those that were here. Topic ids ascend and
    /// are never used again, so of very many topics it is enough to know up to which one what is not here is gone.
    pub fn delete_topic(&mut self, topic_id: u64) -> Vec<PartitionKey> {
        let gone: Vec<PartitionKey> = self.partitions.range(all_of(topic_id)).map(|(key, _)| *key).collect();
        for key in &gone {
            self.take(*key);
        }
        if self.deleted_up_to().is_none_or(|floor| floor < topic_id) {
            self.replace_deleted(topic_id, WHOLE);
        }
        if self.deleted.len() > MAX_DELETED {
            if self.deleted_up_to().is_some() {
                self.deleted.pop_first();
            }
            if let Some(smallest) = self.deleted.first().map(|key| key.topic_id) {
                self.replace_deleted(smallest, UP_TO);
            }
        }
        gone
    }

    /// One key stands for all that was remembered of a topic.
    fn replace_deleted(&mut self, topic_id: u64, partition: u32) {
        let former: Vec<PartitionKey> = self.deleted.range(all_of(topic_id)).copied().collect();
        for key in former {
            self.deleted.remove(&key);
        }
        self.deleted.insert(PartitionKey { topic_id, partition });
    }

    fn deleted_up_to(&self) -> Option<u64> {
        self.deleted.first().filter(|key| key.partition == UP_TO).map(|key| key.topic_id)
    }

    /// Whether no partition of a topic is here, nor ever will be.
    pub fn has_no_more_of(&self, topic_id: u64) -> bool {
        let known = self.deleted.contains(&PartitionKey { topic_id, partition: WHOLE })
            || self.deleted_up_to().is_some_and(|floor| topic_id <= floor);
        known && self.partitions.range(all_of(topic_id)).next().is_none()
    }

    fn was_deleted(&self, key: PartitionKey) -> bool {
        self.deleted.contains(&key)
            || self.deleted.contains(&PartitionKey { partition: WHOLE, ..key })
            || self.deleted_up_to().is_some_and(|floor| key.topic_id <= floor)
    }

    /// Move the start of a partition's log forward; gives the new start if it moved. Never past the end.
    pub fn trim(&mut self, key: PartitionKey, log_start_offset: u64) -> Option<u64> {
        let partition = self.partitions.get_mut(&key)?;
        let start = log_start_offset.min(partition.log_end_offset);
        (start > partition.log_start_offset).then(|| {
            partition.log_start_offset = start;
            start
        })
    }

    /// Have the sequence numbers of producers end elsewhere: not part of the state.
    pub fn set_sequences(&mut self, sequences: Sequences) {
        self.sequences = sequences;
    }

    /// Give a batch its place, or find that it has one, or refuse it.
    pub fn append(&mut self, key: PartitionKey, header: &BatchHeader) -> Result<Appended, Refusal> {
        let mut partition = self.partitions.get_mut(&key).ok_or(Refusal::UnknownPartition)?;
        let base_offset = partition.log_end_offset;
        if header.producer_id != NO_PRODUCER && !mutated(Mutation::AcceptDuplicates) {
            if let Some(original) = partition.repeat_of(header)? {
                return Ok(Appended::Duplicate(original));
            }
            if !partition.producers.contains_key(&header.producer_id) {
                self.make_room(key);
                self.producers += 1;
                partition = self.partitions.get_mut(&key).ok_or(Refusal::UnknownPartition)?;
            }
            partition.note(header, base_offset, self.clock_ms, self.sequences);
        }
        partition.log_end_offset += u64::from(header.record_count);
        Ok(Appended::At(base_offset))
    }

    /// Forget producers where there are as many as there may be: one more comes to this partition.
    fn make_room(&mut self, key: PartitionKey) {
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        let Some(limits) = self.limits else {
            if partition.producers.len() >= MAX_PRODUCERS {
                self.producers -= partition.forget(1, Producer::silent_since_ms).len();
            }
            return;
        };
        while partition.producers.len() >= limits.partition.max(1) as usize {
            self.producers -= partition.forget_share();
        }
        while self.producers >= limits.group.max(1) as usize {
            // Who has most of them pays: nobody is forgotten for another's sake.
            let fullest =
                self.partitions.iter_mut().max_by_key(|(key, partition)| (partition.producers.len(), Reverse(**key)));
            match fullest {
                Some((_, partition)) if !partition.producers.is_empty() => self.producers -= partition.forget_share(),
                _ => return,
            }
        }
    }

    /// A partition of this group.
    pub fn get(&self, key: PartitionKey) -> Option<&Partition> {
        self.partitions.get(&key)
    }

    /// All partitions, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PartitionKey, &Partition)> {
        self.partitions.iter().map(|(key, partition)| (*key, partition))
    }

    /// The state for a checkpoint.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_head(out);
        self.encode_partitions(out, None, usize::MAX);
        self.encode_deleted(out);
    }

    /// What comes first in a checkpoint; then come the partitions, then [`PartitionGroup::encode_deleted`].
    pub fn encode_head(&self, out: &mut BytesMut) {
        out.put_u64_le(self.clock_ms);
        let count = self.partitions.len() as u32;
        match self.limits {
            None => out.put_u32_le(count),
            Some(limits) => {
                out.put_u32_le(count | LIMITED);
                out.put_u32_le(limits.partition);
                out.put_u32_le(limits.group);
            }
        }
    }

    /// The partitions behind this one, as many as it takes for `bytes`, at least one. Gives the last of them; `None` once
    /// there are no more.
    pub fn encode_partitions(
        &self,
        out: &mut BytesMut,
        behind: Option<PartitionKey>,
        bytes: usize,
    ) -> Option<PartitionKey> {
        let start = out.len();
        for (key, partition) in self.behind(behind) {
            out.put_u64_le(key.topic_id);
            out.put_u32_le(key.partition);
            partition.encode(out);
            if self.limits.is_some() {
                put_optional(out, partition.forgotten_up_to.map(|id| id as u64));
            }
            if out.len() - start >= bytes {
                return Some(key);
            }
        }
        None
    }

    /// The partitions behind this one, by key; all of them behind none.
    pub fn behind(&self, key: Option<PartitionKey>) -> impl Iterator<Item = (PartitionKey, &Partition)> {
        let from = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.partitions.range((from, Bound::Unbounded)).map(|(key, partition)| (*key, partition))
    }

    /// What comes last in a checkpoint.
    pub fn encode_deleted(&self, out: &mut BytesMut) {
        out.put_u32_le(self.deleted.len() as u32);
        for key in &self.deleted {
            out.put_u64_le(key.topic_id);
            out.put_u32_le(key.partition);
        }
    }

    /// Most bytes that the state takes in a checkpoint.
    pub fn encoded_bytes(&self) -> usize {
        let partitions = self.partitions.len() * PARTITION_BYTES + self.producers * PRODUCER_BYTES as usize;
        24 + partitions + self.deleted.len() * 12
    }

    /// The state from a checkpoint.
    pub fn decode(from: &mut Bytes) -> Result<Self, CommandError> {
        let mut group = Self { clock_ms: get_u64(from)?, ..Self::default() };
        let count = get_u32(from)?;
        if count & LIMITED != 0 {
            group.limits = Some(ProducerLimits { partition: get_u32(from)?, group: get_u32(from)? });
        }
        for _ in 0..count & !LIMITED {
            let key = get_key(from)?;
            let mut partition = Partition::decode(from)?;
            if group.limits.is_some() {
                partition.forgotten_up_to = get_optional(from)?.map(|id| id as i64);
            }
            group.producers += partition.producers.len();
            if group.partitions.insert(key, partition).is_some() {
                return Err(CommandError("a partition that is there twice"));
            }
        }
        for _ in 0..get_u32(from)? {
            group.deleted.insert(get_key(from)?);
        }
        Ok(group)
    }
}

impl Partition {
    /// Check a batch's sequence. `Ok(Some(offset))`: a repeat of what lies there. `Ok(None)`: next in order.
    fn repeat_of(&self, header: &BatchHeader) -> Result<Option<u64>, Refusal> {
        let (found, epoch) = (header.base_sequence, header.producer_epoch);
        match self.producers.get(&header.producer_id) {
            None if self.may_be_forgotten(header.producer_id) => return Err(Refusal::UnknownProducer),
            None if found != 0 && !mutated(Mutation::AcceptStrangers) => return Err(Refusal::UnknownProducer),
            Some(producer) if epoch < producer.epoch && !mutated(Mutation::IgnoreEpochs) => {
                return Err(Refusal::Fenced { current: producer.epoch, found: epoch });
            }
            Some(producer) if epoch > producer.epoch && found != 0 => {
                return Err(Refusal::OutOfOrderSequence { expected: 0, found });
            }
            Some(producer) if epoch == producer.epoch => {
                let same = |b: &&RecentBatch| b.base_sequence == found && b.count == header.record_count;
                if let Some(original) = producer.recent.iter().find(same) {
                    return Ok(Some(original.base_offset));
                }
                if found != producer.next_sequence && !mutated(Mutation::AcceptGaps) {
                    return Err(Refusal::OutOfOrderSequence { expected: producer.next_sequence, found });
                }
            }
            _ => {}
        }
        Ok(None)
    }

    fn may_be_forgotten(&self, id: i64) -> bool {
        self.forgotten_up_to.is_some_and(|largest| id <= largest)
    }

    /// Remember a batch that gets its place.
    fn note(&mut self, header: &BatchHeader, base_offset: u64, now_ms: u64, sequences: Sequences) {
        let (base_sequence, epoch, count) = (header.base_sequence, header.producer_epoch, header.record_count);
        let fresh = || Producer { epoch, next_sequence: 0, last_append_ms: 0, recent: VecDeque::new() };
        let producer = Arc::make_mut(&mut self.producers).entry(header.producer_id).or_insert_with(fresh);
        if producer.epoch != epoch {
            *producer = fresh();
        }
        producer.last_append_ms = now_ms;
        producer.next_sequence = sequences.next(base_sequence, count);
        if producer.recent.len() == RECENT_BATCHES - usize::from(mutated(Mutation::ShortWindow)) {
            producer.recent.pop_front();
        }
        producer.recent.push_back(RecentBatch { base_sequence, count, base_offset });
    }

    /// Forget an eighth of the producers. Gives how many they are.
    fn forget_share(&mut self) -> usize {
        let gone = self.forget(self.producers.len().div_ceil(FORGOTTEN_SHARE), Producer::newest_offset);
        self.forgotten_up_to = self.forgotten_up_to.max(gone.iter().max().copied());
        gone.len()
    }

    /// Forget this many producers, of whom the least was heard `since`. Gives their ids.
    fn forget(&mut self, count: usize, since: fn(&Producer) -> u64) -> Vec<i64> {
        let age = |(id, producer): (&i64, &Producer)| match mutated(Mutation::ForgetTheNewest) {
            true => (u64::MAX - since(producer), *id),
            false => (since(producer), *id),
        };
        let mut ages: Vec<(u64, i64)> = self.producers.iter().map(age).collect();
        if count < ages.len() {
            ages.select_nth_unstable(count);
            ages.truncate(count);
        }
        let producers = Arc::make_mut(&mut self.producers);
        for (_, id) in &ages {
            producers.remove(id);
        }
        ages.into_iter().map(|(_, id)| id).collect()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.log_start_offset);
        out.put_u64_le(self.log_end_offset);
        put_optional(out, self.segment_bytes);
        let kept = if mutated(Mutation::ForgetDuplicates) { 0 } else { self.producers.len() };
        out.put_u32_le(kept as u32);
        for (id, producer) in self.producers.iter().take(kept) {
            out.put_u64_le(*id as u64);
            out.put_u32_le(producer.epoch as u32);
            out.put_u32_le(producer.next_sequence as u32);
            out.put_u64_le(producer.last_append_ms);
            out.put_u32_le(producer.recent.len() as u32);
            for batch in &producer.recent {
                out.put_u32_le(batch.base_sequence as u32);
                out.put_u32_le(batch.count);
                out.put_u64_le(batch.base_offset);
            }
        }
    }

    fn decode(from: &mut Bytes) -> Result<Self, CommandError> {
        let mut partition = Self {
            log_start_offset: get_u64(from)?,
            log_end_offset: get_u64(from)?,
            segment_bytes: get_optional(from)?,
            producers: Arc::default(),
            forgotten_up_to: None,
        };
        let producers = Arc::make_mut(&mut partition.producers);
        for _ in 0..get_u32(from)? {
            let id = get_u64(from)? as i64;
            let mut producer = Producer {
                epoch: get_u32(from)? as i16,
                next_sequence: get_u32(from)? as i32,
                last_append_ms: get_u64(from)?,
                recent: VecDeque::new(),
            };
            for _ in 0..get_u32(from)? {
                producer.recent.push_back(RecentBatch {
                    base_sequence: get_u32(from)? as i32,
                    count: get_u32(from)?,
                    base_offset: get_u64(from)?,
                });
            }
            producers.insert(id, producer);
        }
        Ok(partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::batch::BatchBuilder;
    use lnc_protocol::codec::Codec;

    const KEY: PartitionKey = PartitionKey { topic_id: 1, partition: 0 };

    fn batch(producer: i64, epoch: i16, sequence: i32, count: usize) -> BatchHeader {
        let mut builder = BatchBuilder::new(Codec::None).with_producer(producer, epoch, sequence);
        for _ in 0..count {
            builder.append(1, None, Some(b"x"), &[]).unwrap();
        }
        BatchHeader::parse(&builder.build()).unwrap()
    }

    fn group() -> PartitionGroup {
        let mut group = PartitionGroup::default();
        assert!(group.create(KEY, None));
        group
    }

    #[test]
    fn a_repeat_gets_its_first_offset_and_changes_nothing() {
        let mut group = group();
        assert_eq!(group.append(KEY, &batch(7, 0, 0, 3)), Ok(Appended::At(0)));
        assert_eq!(group.append(KEY, &batch(7, 0, 3, 2)), Ok(Appended::At(3)));
        let before = group.clone();
        assert_eq!(group.append(KEY, &batch(7, 0, 0, 3)), Ok(Appended::Duplicate(0)));
        assert_eq!(group.append(KEY, &batch(7, 0, 3, 2)), Ok(Appended::Duplicate(3)));
        assert_eq!(group, before);
    }

    #[test]
    fn holes_strangers_and_old_epochs_are_refused() {
        let mut group = group();
        assert_eq!(group.append(KEY, &batch(7, 0, 4, 1)), Err(Refusal::UnknownProducer));
        assert_eq!(group.append(KEY, &batch(7, 1, 0, 1)), Ok(Appended::At(0)));
        let hole = Refusal::OutOfOrderSequence { expected: 1, found: 2 };
        assert_eq!(group.append(KEY, &batch(7, 1, 2, 1)), Err(hole));
        assert_eq!(group.append(KEY, &batch(7, 0, 1, 1)), Err(Refusal::Fenced { current: 1, found: 0 }));
        assert_eq!(group.append(KEY, &batch(7, 2, 0, 1)), Ok(Appended::At(1)));
        let elsewhere = PartitionKey { partition: 9, ..KEY };
        assert_eq!(group.append(elsewhere, &batch(7, 2, 0, 1)), Err(Refusal::UnknownPartition));
    }

    #[test]
    fn batches_without_a_producer_are_never_duplicates() {
        let mut group = group();
        for offset in 0..3 {
            assert_eq!(group.append(KEY, &batch(-1, -1, -1, 1)), Ok(Appended::At(offset)));
        }
    }

    #[test]
    fn sequences_wrap_as_kafka_s_do() {
        let next = |base, count| Sequences::default().next(base, count);
        assert_eq!(next(i32::MAX, 1), 0);
        assert_eq!(next(i32::MAX - 1, 3), 1);
        assert_eq!(Sequences::up_to(511).next(510, 3), 1);
    }

    /// No simulated producer lives long enough to get there.
    #[test]
    fn duplicates_and_gaps_are_found_where_sequences_wrap() {
        let mut group = group();
        group.append(KEY, &batch(7, 0, 0, 1)).unwrap();
        let producers = Arc::make_mut(&mut group.partitions.get_mut(&KEY).unwrap().producers);
        producers.get_mut(&7).unwrap().next_sequence = i32::MAX - 6;
        // Batches of three: the third begins at the largest number, and goes on with 0.
        let sequences = [i32::MAX - 6, i32::MAX - 3, i32::MAX, 2, 5, 8].map(|sequence: i32| (sequence, 3));
        let mut offset = 1;
        for (n, (sequence, count)) in sequences.into_iter().enumerate() {
            assert_eq!(group.append(KEY, &batch(7, 0, sequence, count)), Ok(Appended::At(offset)), "batch {n}");
            offset += count as u64;
        }
        for (n, (sequence, count)) in sequences.into_iter().enumerate().skip(1) {
            let again = group.append(KEY, &batch(7, 0, sequence, count));
            assert_eq!(again, Ok(Appended::Duplicate(1 + 3 * n as u64)), "batch {n} again");
        }
        let gap = Refusal::OutOfOrderSequence { expected: 11, found: 12 };
        assert_eq!(group.append(KEY, &batch(7, 0, 12, 1)), Err(gap));
        let forgotten = Refusal::OutOfOrderSequence { expected: 11, found: i32::MAX - 6 };
        assert_eq!(group.append(KEY, &batch(7, 0, i32::MAX - 6, 3)), Err(forgotten), "five are remembered");
    }

    /// So it was before limits were set by a command: replicas of an older version must come to the same state.
    #[test]
    fn the_table_of_producers_is_bounded() {
        let mut group = group();
        for id in 0..(MAX_PRODUCERS as i64 + 10) {
            group.advance_clock(id as u64);
            group.append(KEY, &batch(id, 0, 0, 1)).unwrap();
        }
        assert_eq!(group.partitions[&KEY].producers.len(), MAX_PRODUCERS);
        assert!(!group.partitions[&KEY].producers.contains_key(&9), "the most silent ones went first");
        assert!(group.partitions[&KEY].producers.contains_key(&10));
        assert_eq!(group.producers, MAX_PRODUCERS);
    }

    fn remembered(group: &PartitionGroup, key: PartitionKey) -> Vec<i64> {
        group.partitions[&key].producers.keys().copied().collect()
    }

    #[test]
    fn a_partition_forgets_an_eighth_of_its_producers_the_most_silent_first() {
        let mut group = group();
        group.limit_producers(ProducerLimits { partition: 16, group: 100 });
        for id in 0..16 {
            group.advance_clock(id as u64);
            group.append(KEY, &batch(id, 0, 0, 1)).unwrap();
        }
        group.advance_clock(50);
        group.append(KEY, &batch(1, 0, 1, 1)).unwrap();
        assert_eq!(remembered(&group, KEY).len(), 16);
        group.append(KEY, &batch(99, 0, 0, 1)).unwrap();
        let kept: Vec<i64> = [1].into_iter().chain(3..16).chain([99]).collect();
        assert_eq!(remembered(&group, KEY), kept);
        assert_eq!(group.append(KEY, &batch(2, 0, 1, 1)), Err(Refusal::UnknownProducer));
        assert_eq!(group.append(KEY, &batch(2, 0, 0, 1)), Err(Refusal::UnknownProducer), "its first batch may be here");
        assert_eq!(after_a_checkpoint(&group), group);
        let mut group = after_a_checkpoint(&group);
        assert_eq!(group.append(KEY, &batch(0, 0, 0, 1)), Err(Refusal::UnknownProducer));
        assert!(matches!(group.append(KEY, &batch(3, 0, 1, 1)), Ok(Appended::At(_))), "it is known");
        assert_eq!(group.producers, 15);
    }

    /// A leader's clock may be behind the group's time, which stands still then.
    #[test]
    fn who_is_heard_all_the_time_is_not_forgotten_while_the_clock_stands_still() {
        let mut group = group();
        group.limit_producers(ProducerLimits { partition: 16, group: 100 });
        group.advance_clock(1);
        for id in 0..100 {
            assert!(matches!(group.append(KEY, &batch(0, 0, id, 1)), Ok(Appended::At(_))), "batch {id}");
            group.append(KEY, &batch(1 + i64::from(id), 0, 0, 1)).unwrap();
        }
    }

    #[test]
    fn where_a_group_has_too_many_producers_the_fullest_partition_forgets() {
        let mut group = group();
        let small = PartitionKey { partition: 7, ..KEY };
        group.create(small, None);
        group.limit_producers(ProducerLimits { partition: 100, group: 20 });
        group.append(small, &batch(1000, 0, 0, 1)).unwrap();
        for id in 0..500 {
            group.advance_clock(id as u64);
            group.append(KEY, &batch(id, 0, 0, 1)).unwrap();
            assert!(group.producers <= 20);
        }
        assert_eq!(remembered(&group, small), [1000], "though it was silent longest");
        assert!(remembered(&group, KEY).ends_with(&[497, 498, 499]));
        group.delete(KEY);
        assert_eq!(group.producers, 1);
        // Less may be allowed later on.
        group.limit_producers(ProducerLimits { partition: 1, group: 1 });
        group.append(small, &batch(1001, 0, 0, 1)).unwrap();
        assert_eq!(remembered(&group, small), [1001]);
    }

    #[test]
    fn the_limits_keep_a_group_below_what_a_checkpoint_may_take() {
        let mut group = PartitionGroup::default();
        group.limit_producers(ProducerLimits::DEFAULT);
        let keys = || (0..40).map(|partition| PartitionKey { topic_id: 1, partition });
        assert!(keys().all(|key| group.create(key, None)));
        for (n, key) in keys().cycle().take(200_000).enumerate() {
            group.advance_clock(n as u64);
            group.append(key, &batch(n as i64, 0, 0, 1)).unwrap();
        }
        // What docs/GUARANTEES.md says is remembered at least.
        let partition = ProducerLimits::DEFAULT.partition;
        assert!(partition - partition.div_ceil(FORGOTTEN_SHARE as u32) > 8_400);
        for (_, partition) in group.iter() {
            assert!(partition.producers.len() <= ProducerLimits::DEFAULT.partition as usize);
        }
        assert!(group.producers <= ProducerLimits::DEFAULT.group as usize && group.producers > 154_000);
        let mut out = BytesMut::new();
        group.encode(&mut out);
        assert!(out.len() <= group.encoded_bytes() && group.encoded_bytes() <= (16 << 20) + 4096);
    }

    #[test]
    fn trims_only_move_forward_and_never_past_the_end() {
        let mut group = group();
        group.append(KEY, &batch(-1, -1, -1, 5)).unwrap();
        assert_eq!(group.trim(KEY, 3), Some(3));
        assert_eq!(group.trim(KEY, 2), None);
        assert_eq!(group.trim(KEY, 99), Some(5));
        assert_eq!(group.append(KEY, &batch(-1, -1, -1, 1)), Ok(Appended::At(5)), "offsets of what remains stay");
    }

    #[test]
    fn a_deleted_partition_does_not_come_back() {
        let mut group = group();
        assert!(group.delete(KEY));
        assert!(!group.delete(KEY));
        assert!(!group.create(KEY, None));
        assert_eq!(group.append(KEY, &batch(-1, -1, -1, 1)), Err(Refusal::UnknownPartition));
    }

    fn after_a_checkpoint(group: &PartitionGroup) -> PartitionGroup {
        let mut out = BytesMut::new();
        group.encode(&mut out);
        PartitionGroup::decode(&mut out.freeze()).unwrap()
    }

    #[test]
    fn a_deleted_topic_does_not_come_back_however_many_partitions_it_has() {
        let mut group = PartitionGroup::default();
        let keys = || (0..MAX_DELETED as u32 + 10).map(|partition| PartitionKey { topic_id: 7, partition });
        assert!(keys().all(|key| group.create(key, None)));
        let neighbours = [PartitionKey { topic_id: 6, partition: 0 }, PartitionKey { topic_id: 8, partition: 0 }];
        assert!(neighbours.into_iter().all(|key| group.create(key, None)));
        assert!(group.delete_topic(7).into_iter().eq(keys()));
        assert_eq!(group.delete_topic(7), []);
        let mut group = after_a_checkpoint(&group);
        assert!(keys().all(|key| !group.create(key, None)), "none comes back");
        assert!(neighbours.into_iter().all(|key| group.get(key).is_some()));
    }

    /// It must stay so: replicas of an older version do the same, and both must come to the same state.
    #[test]
    fn before_topics_were_deleted_as_a_whole_the_first_partitions_of_a_large_one_came_back() {
        let mut group = PartitionGroup::default();
        let keys = || (0..MAX_DELETED as u32 + 1).map(|partition| PartitionKey { topic_id: 7, partition });
        assert!(keys().all(|key| group.create(key, None)));
        assert!(keys().all(|key| group.delete(key)));
        let back: Vec<u32> = keys().filter(|key| group.create(*key, None)).map(|key| key.partition).collect();
        assert_eq!(back, [0]);
    }

    #[test]
    fn an_old_topic_that_is_deleted_last_does_not_come_back_either() {
        let mut group = PartitionGroup::default();
        let key = |topic_id| PartitionKey { topic_id, partition: 0 };
        let newest = 2 * MAX_DELETED as u64;
        for topic_id in [1, 2, newest] {
            assert!(group.create(key(topic_id), None));
        }
        for topic_id in 3..newest {
            group.delete_topic(topic_id);
        }
        assert_eq!(group.delete_topic(2), [key(2)]);
        assert!(group.deleted.len() <= MAX_DELETED);
        let mut group = after_a_checkpoint(&group);
        assert!((2..newest).all(|topic_id| !group.create(key(topic_id), None)));
        for alive in [1, newest] {
            assert_eq!(group.append(key(alive), &batch(-1, -1, -1, 1)), Ok(Appended::At(0)), "topic {alive} lives");
        }
        assert!(group.create(key(newest + 1), None), "what is made later can be");
    }

    #[test]
    fn state_survives_a_checkpoint() {
        let mut group = group();
        group.advance_clock(77);
        group.append(KEY, &batch(7, 3, 0, 5)).unwrap();
        group.append(KEY, &batch(8, 0, 0, 1)).unwrap();
        group.trim(KEY, 2);
        group.delete(PartitionKey { topic_id: 9, partition: 1 });
        assert_eq!(after_a_checkpoint(&group), group);
        group.limit_producers(ProducerLimits { partition: 3, group: 9 });
        assert_eq!(after_a_checkpoint(&group), group);
    }

    #[test]
    fn a_copy_stays_as_it_was() {
        let mut group = group();
        group.append(KEY, &batch(7, 0, 0, 5)).unwrap();
        let (copy, before) = (group.clone(), after_a_checkpoint(&group));
        group.append(KEY, &batch(7, 0, 5, 1)).unwrap();
        group.append(KEY, &batch(8, 0, 0, 1)).unwrap();
        assert_eq!(copy, before);
    }

    #[test]
    fn what_is_encoded_in_pieces_is_the_same() {
        let mut group = PartitionGroup::default();
        for partition in 0..50 {
            let key = PartitionKey { topic_id: 1, partition };
            group.create(key, None);
            group.append(key, &batch(i64::from(partition), 0, 0, 5)).unwrap();
        }
        let mut whole = BytesMut::new();
        group.encode(&mut whole);
        let (mut pieces, mut behind, mut count) = (BytesMut::new(), None, 0);
        group.encode_head(&mut pieces);
        loop {
            let before = pieces.len();
            behind = group.encode_partitions(&mut pieces, behind, 300);
            assert!(pieces.len() - before < 400);
            count += 1;
            if behind.is_none() {
                break;
            }
        }
        group.encode_deleted(&mut pieces);
        assert_eq!(pieces, whole);
        assert!(count > 10);
    }
}
