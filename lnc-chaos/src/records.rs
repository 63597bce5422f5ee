//! Records: what was sent, what was acknowledged, what was read, and that all of it fits together. The simulator stops at
//! the first rule that is broken; a run on real processes counts them and goes on.
//!
//! A record's value says which stream it belongs to and its number there, and the rest of the value follows from that, so
//! a reader can check each record without keeping any. A stream is what one producer sends to one partition. Kept are a
//! few bytes per record.

use crate::sim::invariants::Violation;
use crate::sim::rng::mix;
use bytes::Bytes;
use lnc_protocol::message::FetchedPartition;
use lnc_protocol::{BatchHeader, ErrorCode, Limits, batch};
use std::collections::{BTreeMap, BTreeSet};

/// A partition of a topic that is never deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PartitionId {
    /// Its topic's place among [`Records::topics`].
    pub(crate) topic: usize,
    pub(crate) partition: u32,
}

/// A topic that is never deleted.
#[derive(Clone, Debug)]
pub(crate) struct KeptTopic {
    pub(crate) name: String,
    pub(crate) id: u64,
    pub(crate) partitions: u32,
    /// Its oldest records may go.
    pub(crate) limited: bool,
}

/// Consecutive records of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) stream: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

impl Span {
    fn numbers(self) -> std::ops::Range<usize> {
        self.first as usize..(self.first + self.count) as usize
    }
}

struct Stream {
    partition: PartitionId,
    idempotent: bool,
    /// The id and the epoch of its producer, where they are known.
    producer: Option<(i64, i16)>,
    /// By record: when it was made, in milliseconds; also its timestamp.
    made_ms: Vec<u32>,
    /// By record: attempts that may have put it into the log.
    tried: Vec<u8>,
    /// By record: places at which it was found.
    found: Vec<u8>,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The record: stream and number, shifted by one so that 0 is none.
    record: u64,
    /// What readers saw of its batch; 0 as long as nobody has read it.
    batch: u64,
}

#[derive(Default)]
struct Log {
    slots: Vec<Slot>,
    /// The first offset whose record is not known, and for each stream the last number below it.
    frontier: usize,
    last: BTreeMap<u32, u32>,
    /// By producer id, the latest epoch below the frontier.
    epochs: BTreeMap<i64, i16>,
    acked_end: u64,
    max_high_watermark: u64,
    max_start: u64,
    /// By node: where the last reading of everything began and ended.
    read: BTreeMap<u64, (u64, u64)>,
}

/// Who looks: what it sees of one node's process must not go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct View {
    pub(crate) client: usize,
    pub(crate) node: u64,
    /// Which start of it; `None` if that is not known.
    pub(crate) life: Option<u32>,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Records {
    topics: Vec<KeptTopic>,
    streams: Vec<Stream>,
    logs: BTreeMap<PartitionId, Log>,
    views: BTreeMap<(View, PartitionId), (u64, u64)>,
    producers: BTreeSet<i64>,
    /// What leaders have acknowledged by their own disks alone, and when its producer first sent it.
    leader_acked: Vec<(Span, u64)>,
    /// The time, in milliseconds from the start of the run. A run on real processes has none.
    pub(crate) now_ms: u64,
}

/// The value of a record.
pub(crate) fn value(stream: u32, number: u32, out: &mut Vec<u8>) {
    out.clear();
    let record = u64::from(stream) << 32 | u64::from(number);
    out.extend_from_slice(&record.to_le_bytes());
    let mut word = mix(record);
    let words = if word.is_multiple_of(64) { 120 } else { word % 20 };
    for _ in 0..words {
        word = mix(word);
        out.extend_from_slice(&word.to_le_bytes());
    }
}

fn violation<T>(invariant: &'static str, what: String) -> Result<T, Violation> {
    Err(Violation::new(invariant, what))
}

impl Records {
    /// A topic exists.
    pub(crate) fn add_topic(&mut self, topic: KeptTopic) {
        self.topics.push(topic);
    }

    pub(crate) fn topics(&self) -> &[KeptTopic] {
        &self.topics
    }

    /// All partitions of the topics that exist.
    pub(crate) fn partitions(&self) -> Vec<PartitionId> {
        let topics = self.topics.iter().enumerate();
        topics
            .flat_map(|(topic, kept)| (0..kept.partitions).map(move |partition| PartitionId { topic, partition }))
            .collect()
    }

    /// A producer begins to write to a partition.
    pub(crate) fn open_stream(&mut self, partition: PartitionId, idempotent: bool) -> u32 {
        let (tried, found, made_ms) = (Vec::new(), Vec::new(), Vec::new());
        self.streams.push(Stream { partition, idempotent, producer: None, made_ms, tried, found });
        self.streams.len() as u32 - 1
    }

    /// As [`Records::open_stream`], for a producer with an id and an epoch.
    pub(crate) fn open_epoch(&mut self, partition: PartitionId, id: i64, epoch: i16) -> u32 {
        let stream = self.open_stream(partition, true);
        self.streams[stream as usize].producer = Some((id, epoch));
        stream
    }

    /// A producer was given an id.
    pub(crate) fn producer(&mut self, id: i64) -> Result<(), Violation> {
        if self.producers.insert(id) {
            return Ok(());
        }
        violation("producer-ids", format!("producer id {id} was given out twice"))
    }

    /// The next records of a stream.
    pub(crate) fn next_span(&mut self, stream: u32, count: u32) -> Span {
        let records = &mut self.streams[stream as usize];
        let first = records.tried.len() as u32;
        records.tried.resize((first + count) as usize, 0);
        records.found.resize((first + count) as usize, 0);
        records.made_ms.resize((first + count) as usize, self.now_ms as u32);
        Span { stream, first, count }
    }

    /// When records were made, in milliseconds: their timestamp.
    pub(crate) fn made_ms(&self, span: Span) -> i64 {
        i64::from(self.streams[span.stream as usize].made_ms[span.first as usize])
    }

    /// How many records, the next of a stream, fit into a batch of so many bytes.
    pub(crate) fn fitting(&self, stream: u32, bytes: usize) -> u32 {
        /// What a record takes beside its value, at most, and a batch beside its records.
        const RECORD: usize = 16;
        const BATCH: usize = 64;
        let first = self.streams[stream as usize].tried.len() as u32;
        let (mut left, mut count, mut scratch) = (bytes.saturating_sub(BATCH), 0, Vec::new());
        loop {
            value(stream, first + count, &mut scratch);
            match left.checked_sub(RECORD + scratch.len()) {
                Some(rest) => (left, count) = (rest, count + 1),
                None => return count.max(1),
            }
        }
    }

    /// A leader has acknowledged records that are on its own disk.
    pub(crate) fn leader_acked(&mut self, span: Span) {
        self.leader_acked.push((span, self.made_ms(span) as u64 * 1000));
    }

    /// These records are sent, once more perhaps.
    pub(crate) fn tried(&mut self, span: Span) {
        for tried in &mut self.streams[span.stream as usize].tried[span.numbers()] {
            *tried = tried.saturating_add(1);
        }
    }

    /// One attempt surely did nothing.
    pub(crate) fn refused(&mut self, span: Span) -> Result<(), Violation> {
        for number in span.numbers() {
            let stream = &mut self.streams[span.stream as usize];
            stream.tried[number] = stream.tried[number].saturating_sub(u8::from(stream.tried[number] < u8::MAX));
            self.check_count(span.stream, number as u32)?;
        }
        Ok(())
    }

    fn check_count(&self, stream: u32, number: u32) -> Result<(), Violation> {
        let Stream { idempotent, tried, found, partition, .. } = &self.streams[stream as usize];
        let (tried, found) = (tried[number as usize], found[number as usize]);
        if found > tried {
            let what = format!(
                "record {number} of stream {stream} in {partition:?} lies {found} times in the log, but was only tried {tried} times that were not refused"
            );
            return violation(if tried == 0 { "no-phantom" } else { "no-duplicate" }, what);
        }
        if *idempotent && found > 1 {
            let what = format!(
                "record {number} of stream {stream} in {partition:?} lies {found} times in the log, and its producer is idempotent"
            );
            return violation("no-duplicate", what);
        }
        Ok(())
    }

    /// A batch was acknowledged at an offset.
    pub(crate) fn acked(&mut self, span: Span, base_offset: u64) -> Result<(), Violation> {
        self.acknowledged(span, base_offset).map_err(|found| Violation { invariant: "acked-kept", ..found })
    }

    /// [`Records::acked`], with the rule that its place breaks.
    pub(crate) fn acknowledged(&mut self, span: Span, base_offset: u64) -> Result<(), Violation> {
        let partition = self.streams[span.stream as usize].partition;
        for (number, offset) in (span.first..span.first + span.count).zip(base_offset..) {
            self.place(partition, offset, span.stream, number, 0)
                .map_err(|found| Violation { what: format!("acknowledged at {offset}: {}", found.what), ..found })?;
        }
        let log = self.logs.entry(partition).or_default();
        log.acked_end = log.acked_end.max(base_offset + u64::from(span.count));
        Ok(())
    }

    /// The latest offset that was acknowledged, plus one.
    pub(crate) fn acked_end(&self, partition: PartitionId) -> u64 {
        self.logs.get(&partition).map_or(0, |log| log.acked_end)
    }

    /// A record was found at an offset. `batch` is 0 where only its producer was told so.
    fn place(&mut self, at: PartitionId, offset: u64, stream: u32, number: u32, batch: u64) -> Result<(), Violation> {
        let record = (u64::from(stream) << 32 | u64::from(number)) + 1;
        let known = self.streams.get(stream as usize);
        if known.is_none_or(|s| s.partition != at || number as usize >= s.tried.len()) {
            let what = format!("{at:?} offset {offset}: record {number} of stream {stream} was never sent there");
            return violation("no-phantom", what);
        }
        let log = self.logs.entry(at).or_default();
        if log.slots.len() <= offset as usize {
            log.slots.resize(offset as usize + 1, Slot::default());
        }
        let slot = &mut log.slots[offset as usize];
        if slot.record != 0 && (slot.record != record || (batch != 0 && slot.batch != 0 && slot.batch != batch)) {
            let was = slot.record - 1;
            let what = format!(
                "{at:?} offset {offset}: record {number} of stream {stream} in batch {batch:016x}, but there was record {} of \
                 stream {} in batch {:016x}",
                was as u32,
                was >> 32,
                slot.batch
            );
            return violation("same-bytes", what);
        }
        slot.batch = if batch == 0 { slot.batch } else { batch };
        if std::mem::replace(&mut slot.record, record) == 0 {
            self.streams[stream as usize].found[number as usize] += 1;
            self.check_count(stream, number)?;
            self.advance(at)?;
        }
        Ok(())
    }

    /// Check the order of what is known without a gap.
    fn advance(&mut self, at: PartitionId) -> Result<(), Violation> {
        let Some(log) = self.logs.get_mut(&at) else { return Ok(()) };
        while let Some(Slot { record: record @ 1.., .. }) = log.slots.get(log.frontier).copied() {
            let (stream, number) = (((record - 1) >> 32) as u32, (record - 1) as u32);
            let before = log.last.insert(stream, number);
            let offset = log.frontier;
            log.frontier += 1;
            if self.streams[stream as usize].idempotent && before.is_some_and(|before| before >= number) {
                let what = format!("{at:?} offset {offset}: record {number} of stream {stream} behind {before:?}");
                return violation("producer-order", what);
            }
            if let Some((id, epoch)) = self.streams[stream as usize].producer {
                let latest = log.epochs.entry(id).or_insert(epoch);
                if *latest > epoch {
                    let what = format!("{at:?} offset {offset}: producer {id} of epoch {epoch} behind epoch {latest}");
                    return violation("producer-epoch", what);
                }
                *latest = epoch;
            }
        }
        Ok(())
    }

    /// Check what a node answered to a fetch from `offset`; gives the offset to go on from.
    pub(crate) fn fetched(
        &mut self,
        view: View,
        at: PartitionId,
        offset: u64,
        found: &FetchedPartition,
    ) -> Result<u64, Violation> {
        self.watermarks(view, at, found)?;
        let mut next = offset;
        let mut expected: Option<u64> = None;
        for piece in found.records.pieces() {
            for whole in batch::split(piece.clone()) {
                let whole = match whole {
                    Ok(whole) => whole,
                    Err(error) => return violation("same-bytes", format!("{at:?} after {next}: {error}")),
                };
                let header = self.batch(view, at, &whole, found.high_watermark)?;
                let fits = expected
                    .map_or(header.base_offset <= offset && header.last_offset() >= offset, |expected| {
                        expected == header.base_offset
                    });
                if !fits {
                    let what = format!(
                        "{view:?} {at:?}: a fetch from {offset} gives a batch at {}..={}, expected {expected:?}",
                        header.base_offset,
                        header.last_offset()
                    );
                    return violation("no-hole", what);
                }
                next = header.last_offset() + 1;
                expected = Some(next);
            }
        }
        Ok(next)
    }

    fn batch(
        &mut self,
        view: View,
        at: PartitionId,
        raw: &Bytes,
        high_watermark: u64,
    ) -> Result<BatchHeader, Violation> {
        let broken = |error: &dyn std::fmt::Display| Violation::new("same-bytes", format!("{view:?} {at:?}: {error}"));
        let records = batch::records(raw, &Limits::default()).map_err(|error| broken(&error))?;
        let header = *records.header();
        if header.last_offset() >= high_watermark {
            let what = format!(
                "{view:?} {at:?}: offset {} is served, the high watermark is {high_watermark}",
                header.last_offset()
            );
            return violation("high-watermark", what);
        }
        let batch = u64::from(header.crc) << 32 | (header.partition_leader_epoch as u32 as u64) << 1 | 1;
        let mut expected = Vec::new();
        for record in records {
            let record = record.map_err(|error| broken(&error))?;
            self.record(at, record.offset, &record.value.unwrap_or_default(), batch, &mut expected)?;
        }
        Ok(header)
    }

    /// Check a record that was read; `batch` is 0 where its batch was not seen. `scratch` is for the value that it must
    /// have.
    fn record(
        &mut self,
        at: PartitionId,
        offset: u64,
        found: &[u8],
        batch: u64,
        scratch: &mut Vec<u8>,
    ) -> Result<(), Violation> {
        let Some(head) = found.first_chunk::<8>() else {
            return violation("no-phantom", format!("{at:?} offset {offset}: a value of {} bytes", found.len()));
        };
        let id = u64::from_le_bytes(*head);
        value((id >> 32) as u32, id as u32, scratch);
        if scratch != found {
            return violation("no-phantom", format!("{at:?} offset {offset}: a value that nobody sent"));
        }
        self.place(at, offset, (id >> 32) as u32, id as u32, batch)
    }

    /// Check a record that a consumer was handed, without its batch.
    pub(crate) fn consumed(&mut self, at: PartitionId, offset: u64, value: &[u8]) -> Result<(), Violation> {
        self.record(at, offset, value, 0, &mut Vec::new())
    }

    /// How many records were acknowledged, or read once, that no reading of whole logs has found.
    pub(crate) fn missing(&self) -> u64 {
        let missing = |slot: &&Slot| slot.record != 0 && slot.batch == 0;
        self.logs.values().map(|log| log.slots.iter().filter(missing).count() as u64).sum()
    }

    fn watermarks(&mut self, view: View, at: PartitionId, found: &FetchedPartition) -> Result<(), Violation> {
        let (end, start) = (found.high_watermark, found.log_start_offset);
        if view.life.is_some() {
            let seen = self.views.entry((view, at)).or_default();
            if end < seen.0 || start < seen.1 {
                let what = format!("{view:?} {at:?}: from {start} to {end}, before that from {} to {}", seen.1, seen.0);
                return violation("high-watermark", what);
            }
            *seen = (end, start);
        }
        if start > 0 && !self.topics[at.topic].limited {
            return violation("log-start", format!("{view:?} {at:?} starts at {start}, but nothing limits its topic"));
        }
        let log = self.logs.entry(at).or_default();
        log.max_high_watermark = log.max_high_watermark.max(end);
        log.max_start = log.max_start.max(start);
        Ok(())
    }

    /// When the record at an offset was made, in milliseconds, if it is known.
    fn made_at(&self, at: PartitionId, offset: usize) -> Option<u64> {
        let slot = self.logs.get(&at)?.slots.get(offset).filter(|slot| slot.record != 0)?;
        let (stream, number) = ((slot.record - 1) >> 32, (slot.record - 1) as u32);
        Some(u64::from(self.streams[stream as usize].made_ms[number as usize]))
    }

    /// A node says which record is the first that is so late; none has been `found` if it names the end of the log.
    pub(crate) fn first_at(
        &self,
        view: View,
        at: PartitionId,
        from_ms: i64,
        (offset, found): (u64, bool),
    ) -> Result<(), Violation> {
        if self.topics[at.topic].limited {
            // What has been removed meanwhile is not known.
            return Ok(());
        }
        let late = |offset: &usize| self.made_at(at, *offset).is_some_and(|made_ms| made_ms as i64 >= from_ms);
        let earlier = (0..offset as usize).find(late);
        let known = self.made_at(at, offset as usize);
        let fits = !found || known.is_none_or(|made_ms| made_ms as i64 >= from_ms);
        match earlier {
            None if fits => Ok(()),
            _ => {
                let what = format!(
                    "{view:?} {at:?}: offset {offset} is the first from {from_ms} ms on, but {earlier:?} is late enough"
                );
                violation("time-offsets", what)
            }
        }
    }

    /// An error in place of records.
    pub(crate) fn fetch_failed(
        &self,
        view: View,
        at: PartitionId,
        offset: u64,
        found: &FetchedPartition,
        excused: bool,
    ) -> Result<(), Violation> {
        match found.error {
            ErrorCode::OffsetOutOfRange if offset < found.log_start_offset => Ok(()),
            ErrorCode::OffsetOutOfRange => violation(
                "offset-denied",
                format!("{view:?} {at:?}: offset {offset} was read up to, now: {}", found.message),
            ),
            // Files that are lost may be of records that are to go, as the journal says: then there is nothing to repair.
            ErrorCode::StorageDamaged | ErrorCode::NotReady if excused => Ok(()),
            code => {
                violation("unexpected-answer", format!("{view:?} {at:?} offset {offset}: {code}: {}", found.message))
            }
        }
    }

    /// A node has said which offset comes next, to someone who asked when `acked_end` was acknowledged.
    pub(crate) fn latest(&self, view: View, at: PartitionId, offset: u64, acked_end: u64) -> Result<(), Violation> {
        if offset >= acked_end {
            return Ok(());
        }
        let what = format!("{view:?} {at:?}: the latest offset is {offset}, but {acked_end} was acknowledged before");
        violation("fresh-offsets", what)
    }

    /// A node was read from its log's start to its end.
    pub(crate) fn read_all(&mut self, node: u64, at: PartitionId, start: u64, end: u64) {
        self.logs.entry(at).or_default().read.insert(node, (start, end));
    }

    /// What leaders acknowledged alone must be there if nobody else has led since: `alone_since_us` says from when on.
    pub(crate) fn leaders_kept(&self, alone_since_us: impl Fn(&KeptTopic, u32) -> u64) -> Result<(), Violation> {
        for (span, sent_us) in &self.leader_acked {
            let Stream { partition: at, found, .. } = &self.streams[span.stream as usize];
            let topic = &self.topics[at.topic];
            let lost = span.numbers().find(|number| found[*number] == 0);
            let alone = *sent_us >= alone_since_us(topic, at.partition);
            if let (Some(number), true, false) = (lost, alone, topic.limited) {
                let what = format!("{at:?}: record {number} of {span:?}, sent at {sent_us} us, is not there");
                return violation("leader-acks", what);
            }
        }
        Ok(())
    }

    /// Everything has been read from every node: nothing may be missing.
    pub(crate) fn finish(&self) -> Result<(), Violation> {
        for (at, log) in &self.logs {
            let mut reads = log.read.values();
            let Some((_, end)) = reads.next().copied() else {
                return violation("acked-kept", format!("{at:?} was not read at the end"));
            };
            if reads.any(|(_, other)| *other != end) {
                return violation("same-bytes", format!("{at:?}: nodes end differently: {:?}", log.read));
            }
            let least = log.acked_end.max(log.max_high_watermark);
            if end < least {
                let (acked, served) = (log.acked_end, log.max_high_watermark);
                let what = format!("{at:?} ends at {end}, but {acked} was acknowledged and {served} served");
                return violation("acked-kept", what);
            }
            // Logs may begin later while they are read.
            let start = log.max_start;
            let rest = log.slots.get(start as usize..end as usize).unwrap_or_default();
            if let Some(gap) = rest.iter().position(|slot| slot.batch == 0) {
                return violation("no-hole", format!("{at:?} offset {} was never read", start as usize + gap));
            }
            if log.slots.len() as u64 > end {
                return violation(
                    "acked-kept",
                    format!("{at:?} ends at {end}, but offset {} was known", log.slots.len()),
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: PartitionId = PartitionId { topic: 0, partition: 0 };
    const VIEW: View = View { client: 1, node: 1, life: Some(1) };

    fn records() -> (Records, Span) {
        let mut records = Records::default();
        records.add_topic(KeptTopic { name: "t".to_owned(), id: 1, partitions: 1, limited: false });
        let stream = records.open_stream(AT, true);
        let span = records.next_span(stream, 2);
        records.tried(span);
        (records, span)
    }

    /// What a node would answer: these records from offset 0 on, one batch each.
    fn answer(numbers: &[(u32, u32)], high_watermark: u64) -> FetchedPartition {
        let batches = numbers.iter().enumerate().map(|(offset, (stream, number))| {
            let mut bytes = Vec::new();
            value(*stream, *number, &mut bytes);
            let mut builder = lnc_protocol::BatchBuilder::new(lnc_protocol::Codec::None);
            builder.append(0, None, Some(&bytes), &[]).unwrap();
            let batch = builder.build();
            [&batch::stamped_prefix(&batch, offset as u64, 1)[..], &batch[batch::PREFIX_LEN..]].concat().into()
        });
        FetchedPartition {
            topic: "t".to_owned(),
            partition: 0,
            error: ErrorCode::None,
            message: String::new(),
            log_start_offset: 0,
            high_watermark,
            records: batches.collect::<Vec<Bytes>>().into_iter().collect(),
        }
    }

    fn rule<T: std::fmt::Debug>(result: Result<T, Violation>) -> &'static str {
        result.expect_err("a broken rule").invariant
    }

    #[test]
    fn what_keeps_the_rules_passes() {
        let (mut records, span) = records();
        records.acked(span, 0).unwrap();
        assert_eq!(records.fetched(VIEW, AT, 0, &answer(&[(0, 0), (0, 1)], 2)), Ok(2));
        records.read_all(1, AT, 0, 2);
        assert_eq!(records.finish(), Ok(()));
    }

    #[test]
    fn a_lost_acknowledgement_is_found() {
        let (mut records, span) = records();
        records.acked(span, 0).unwrap();
        records.fetched(VIEW, AT, 0, &answer(&[(0, 0)], 1)).unwrap();
        records.read_all(1, AT, 0, 1);
        assert_eq!(rule(records.finish()), "acked-kept");
        assert_eq!(rule(records.latest(VIEW, AT, 1, records.acked_end(AT))), "fresh-offsets");
    }

    #[test]
    fn duplicates_strangers_and_disorder_are_found() {
        let found = |numbers: &[(u32, u32)]| {
            let (mut records, _) = records();
            rule(records.fetched(VIEW, AT, 0, &answer(numbers, 9)))
        };
        assert_eq!(found(&[(0, 0), (0, 0)]), "no-duplicate");
        assert_eq!(found(&[(0, 1), (0, 0)]), "producer-order");
        assert_eq!(found(&[(0, 2)]), "no-phantom");
        assert_eq!(found(&[(7, 0)]), "no-phantom");
    }

    #[test]
    fn what_was_refused_must_not_appear() {
        let (mut records, span) = records();
        records.refused(span).unwrap();
        assert_eq!(rule(records.fetched(VIEW, AT, 0, &answer(&[(0, 0)], 1))), "no-phantom");
    }

    #[test]
    fn an_offset_that_changes_is_found() {
        let (mut records, span) = records();
        records.acked(span, 0).unwrap();
        assert_eq!(rule(records.fetched(VIEW, AT, 0, &answer(&[(0, 1)], 2))), "same-bytes");
    }

    #[test]
    fn what_an_earlier_epoch_sends_late_is_found() {
        let (mut records, _) = records();
        let streams = [0, 1].map(|epoch| records.open_epoch(AT, 7, epoch));
        let spans = streams.map(|stream| records.next_span(stream, 1));
        spans.iter().for_each(|span| records.tried(*span));
        assert_eq!(records.fetched(VIEW, AT, 0, &answer(&[(streams[1], 0)], 2)), Ok(1));
        assert_eq!(rule(records.fetched(VIEW, AT, 1, &at_one(&[(streams[0], 0)]))), "producer-epoch");
    }

    /// As [`answer`], from offset 1 on.
    fn at_one(numbers: &[(u32, u32)]) -> FetchedPartition {
        let first = [(0, 0)].iter().chain(numbers).copied().collect::<Vec<_>>();
        let whole = answer(&first, 1 + numbers.len() as u64);
        let records = whole.records.pieces().iter().skip(1).cloned().collect();
        FetchedPartition { records, ..whole }
    }

    #[test]
    fn what_a_leader_acknowledged_and_is_gone_is_found() {
        let (mut records, span) = records();
        records.now_ms = 5;
        records.leader_acked(span);
        assert_eq!(records.leaders_kept(|_, _| u64::MAX), Ok(()), "another leader may not have had it");
        assert_eq!(rule(records.leaders_kept(|_, _| 0)), "leader-acks");
        records.fetched(VIEW, AT, 0, &answer(&[(0, 0), (0, 1)], 2)).unwrap();
        assert_eq!(records.leaders_kept(|_, _| 0), Ok(()));
    }

    #[test]
    fn a_time_that_leads_to_another_record_is_found() {
        let (mut records, early) = records();
        records.now_ms = 100;
        let late = records.next_span(early.stream, 1);
        records.tried(late);
        records.fetched(VIEW, AT, 0, &answer(&[(0, 0), (0, 1), (0, 2)], 3)).unwrap();
        assert_eq!(records.first_at(VIEW, AT, 50, (2, true)), Ok(()));
        assert_eq!(records.first_at(VIEW, AT, 200, (3, false)), Ok(()));
        assert_eq!(rule(records.first_at(VIEW, AT, 50, (1, true))), "time-offsets");
        assert_eq!(rule(records.first_at(VIEW, AT, 50, (3, false))), "time-offsets");
    }

    #[test]
    fn watermarks_that_go_back_or_are_passed_are_found() {
        let (mut records, _) = records();
        assert_eq!(rule(records.fetched(VIEW, AT, 0, &answer(&[(0, 0), (0, 1)], 1))), "high-watermark");
        let (mut records, _) = self::records();
        records.fetched(VIEW, AT, 0, &answer(&[(0, 0), (0, 1)], 2)).unwrap();
        assert_eq!(rule(records.fetched(VIEW, AT, 0, &answer(&[(0, 0)], 1))), "high-watermark");
        let restarted = View { life: Some(2), ..VIEW };
        assert_eq!(records.fetched(restarted, AT, 0, &answer(&[(0, 0)], 1)), Ok(1));
    }

    #[test]
    fn a_log_that_begins_later_without_a_reason_is_found() {
        let (mut records, _) = records();
        let found = FetchedPartition { log_start_offset: 1, ..answer(&[], 1) };
        assert_eq!(rule(records.fetched(VIEW, AT, 1, &found)), "log-start");
    }
}
