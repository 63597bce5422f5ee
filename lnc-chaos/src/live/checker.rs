//! The verdict on records: the rules of [`crate::records`], counted instead of ending the run at the first that is broken.

use crate::records::{KeptTopic, PartitionId, Records, Span, View};
use crate::sim::invariants::Violation;
use bytes::Bytes;
use lance::cli::counted;
use lnc_protocol::ErrorCode;
use lnc_protocol::batch::split;
use lnc_protocol::message::FetchedPartition;
use serde::Serialize;

/// How many findings are kept in words; all are counted.
const FINDINGS: usize = 100;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Records handed to producers.
    pub produced: u64,
    /// Of those, acknowledged.
    pub acknowledged: u64,
    /// Of those, failed: they may be in the log or not.
    pub unknown: u64,
    /// Records that the live consumer was handed.
    pub consumed: u64,
    /// Records acknowledged or read before and found no more, and offsets that are missing.
    pub gaps: u64,
    /// Records found at two offsets.
    pub duplicates: u64,
    /// Records of one producer that lie in another order than they were sent.
    pub out_of_order: u64,
    /// Records that nobody sent.
    pub phantoms: u64,
    /// Offsets with other bytes, on another node or at another time.
    pub different: u64,
    /// Records or batches that cannot be read.
    pub parse_errors: u64,
    /// Other rules that were broken.
    pub other: u64,
}

impl Counts {
    /// Whether a promise was broken.
    pub fn broken(&self) -> u64 {
        self.gaps
            + self.duplicates
            + self.out_of_order
            + self.phantoms
            + self.different
            + self.parse_errors
            + self.other
    }
}

/// See the module documentation. A stream of [`Records`] is what one producer sends to one partition.
pub(super) struct Checker {
    records: Records,
    partitions: u32,
    /// By partition: the offset that the live consumer must be handed next.
    next: Vec<u64>,
    pub(super) counts: Counts,
    /// The first of them, in words.
    pub(super) findings: Vec<String>,
}

impl Checker {
    pub(super) fn new(topic: &str, topic_id: u64, producers: u32, partitions: u32) -> Self {
        let mut records = Records::default();
        records.add_topic(KeptTopic { name: topic.to_owned(), id: topic_id, partitions, limited: false });
        for lane in 0..producers * partitions {
            records.open_stream(PartitionId { topic: 0, partition: lane % partitions }, true);
        }
        let next = vec![0; partitions as usize];
        Self { records, partitions, next, counts: Counts::default(), findings: Vec::new() }
    }

    fn stream(&self, producer: u32, partition: u32) -> u32 {
        producer * self.partitions + partition
    }

    /// The next record of a producer for a partition: its number and its value.
    pub(super) fn send(&mut self, producer: u32, partition: u32) -> (u32, Bytes) {
        let stream = self.stream(producer, partition);
        let span = self.records.next_span(stream, 1);
        self.records.tried(span);
        self.counts.produced += 1;
        let mut value = Vec::new();
        crate::records::value(stream, span.first, &mut value);
        (span.first, value.into())
    }

    pub(super) fn acknowledged(&mut self, producer: u32, partition: u32, number: u32, offset: u64) {
        self.counts.acknowledged += 1;
        let span = Span { stream: self.stream(producer, partition), first: number, count: 1 };
        let result = self.records.acknowledged(span, offset);
        self.note(result);
    }

    /// Nobody knows whether the record is in the log.
    pub(super) fn failed(&mut self) {
        self.counts.unknown += 1;
    }

    /// The live consumer was handed a record.
    pub(super) fn consumed(&mut self, partition: u32, offset: u64, value: &[u8]) {
        self.counts.consumed += 1;
        let next = std::mem::replace(&mut self.next[partition as usize], offset + 1);
        if next != offset {
            let what = format!("partition {partition}: the consumer is handed offset {offset} after {next} was due");
            self.note(Err(Violation::new("no-hole", what)));
        }
        let result = self.records.consumed(PartitionId { topic: 0, partition }, offset, value);
        self.note(result);
    }

    /// Whether the live consumer was handed everything that is acknowledged.
    pub(super) fn is_read_along(&self) -> bool {
        let at = |partition| PartitionId { topic: 0, partition };
        self.next.iter().zip(0..).all(|(next, partition)| *next >= self.records.acked_end(at(partition)))
    }

    /// A node has answered a fetch from `offset`; gives the offset to go on from.
    pub(super) fn fetched(&mut self, node: u64, offset: u64, found: &FetchedPartition) -> u64 {
        let at = PartitionId { topic: 0, partition: found.partition };
        let view = View { client: 0, node, life: None };
        if found.error != ErrorCode::None {
            let result = self.records.fetch_failed(view, at, offset, found, false);
            self.note(result);
            return offset;
        }
        // Batch by batch, so that one that is bad does not hide those behind it.
        let mut next = offset;
        for whole in found.records.pieces().iter().flat_map(|piece| split(piece.clone())) {
            let whole = match whole {
                Ok(whole) => whole,
                Err(error) => {
                    self.unreadable(format!("node {node} partition {} after offset {next}: {error}", found.partition));
                    return next;
                }
            };
            let end = lnc_protocol::batch::records(&whole, &lnc_protocol::Limits::default())
                .map(|records| records.header().last_offset() + 1);
            let one = FetchedPartition { records: [whole].into_iter().collect(), ..found.clone() };
            match (self.records.fetched(view, at, next, &one), end) {
                (Ok(end), _) => next = end,
                (Err(violation), Ok(end)) => {
                    self.note(Err(violation));
                    next = next.max(end);
                }
                (Err(violation), Err(_)) => {
                    self.unreadable(violation.what);
                    return next;
                }
            }
        }
        next
    }

    /// A node's log was read from its beginning up to `end`.
    pub(super) fn read_all(&mut self, node: u64, partition: u32, end: u64) {
        self.records.read_all(node, PartitionId { topic: 0, partition }, 0, end);
    }

    /// Everything was read from every node: what was acknowledged must have been there.
    pub(super) fn finish(&mut self) {
        let missing = self.records.missing();
        if missing > 0 {
            self.finding(format!("acknowledged or read before, and gone: {}", counted(missing, "record")));
            self.counts.gaps += missing;
        }
        match self.records.finish() {
            // The same, in other words.
            Err(violation) if missing > 0 && ["acked-kept", "no-hole"].contains(&violation.invariant) => {
                self.finding(violation.what);
            }
            result => self.note(result),
        }
    }

    /// Something that is a finding of its own.
    pub(super) fn broken(&mut self, what: String) {
        self.counts.other += 1;
        self.finding(what);
    }

    fn unreadable(&mut self, what: String) {
        self.counts.parse_errors += 1;
        self.finding(what);
    }

    fn note(&mut self, result: Result<(), Violation>) {
        let Err(Violation { invariant, what }) = result else { return };
        let counts = &mut self.counts;
        let count = match invariant {
            "no-duplicate" => &mut counts.duplicates,
            "producer-order" => &mut counts.out_of_order,
            "no-phantom" => &mut counts.phantoms,
            "same-bytes" => &mut counts.different,
            "no-hole" | "acked-kept" => &mut counts.gaps,
            _ => &mut counts.other,
        };
        *count += 1;
        self.finding(format!("{invariant}: {what}"));
    }

    fn finding(&mut self, what: String) {
        if self.findings.len() < FINDINGS {
            self.findings.push(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_protocol::{BatchBuilder, Codec, batch};

    /// One producer and one partition, with this many records sent and, up to `acked`, acknowledged.
    fn checker(sent: u32, acked: u32) -> Checker {
        let mut checker = Checker::new("t", 1, 1, 1);
        for number in 0..sent {
            assert_eq!(checker.send(0, 0).0, number);
            if number < acked {
                checker.acknowledged(0, 0, number, u64::from(number));
            }
        }
        checker
    }

    fn batch_of(stream: u32, number: u32, offset: u64, timestamp: i64) -> Bytes {
        let mut value = Vec::new();
        crate::records::value(stream, number, &mut value);
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(timestamp, None, Some(&value), &[]).unwrap();
        let whole = builder.build();
        [&batch::stamped_prefix(&whole, offset, 1)[..], &whole[batch::PREFIX_LEN..]].concat().into()
    }

    fn answer(batches: Vec<Bytes>) -> FetchedPartition {
        FetchedPartition {
            topic: "t".to_owned(),
            partition: 0,
            error: ErrorCode::None,
            message: String::new(),
            log_start_offset: 0,
            high_watermark: batches.len() as u64,
            records: batches.into_iter().collect(),
        }
    }

    /// Two nodes that hold these records, and what is found in the end.
    fn verdict(mut checker: Checker, numbers: &[u32]) -> Counts {
        let batches: Vec<Bytes> = (0..).zip(numbers).map(|(offset, n)| batch_of(0, *n, offset, 0)).collect();
        for node in [1, 2] {
            let end = checker.fetched(node, 0, &answer(batches.clone()));
            checker.read_all(node, 0, end);
        }
        checker.finish();
        assert_eq!(checker.findings.is_empty(), checker.counts.broken() == 0, "{:?}", checker.findings);
        checker.counts
    }

    #[test]
    fn a_good_history_passes() {
        assert_eq!(verdict(checker(3, 3), &[0, 1, 2]).broken(), 0);
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_or_not() {
        assert_eq!(verdict(checker(3, 2), &[0, 1, 2]).broken(), 0);
        assert_eq!(verdict(checker(3, 2), &[0, 1]).broken(), 0);
    }

    #[test]
    fn a_lost_record_is_a_gap() {
        let counts = verdict(checker(3, 3), &[0, 1]);
        assert_eq!((counts.gaps, counts.broken()), (1, 1));
    }

    #[test]
    fn a_record_found_twice_is_a_duplicate() {
        let counts = verdict(checker(2, 0), &[0, 1, 1]);
        assert!(counts.duplicates >= 1, "{counts:?}");
    }

    #[test]
    fn a_record_acknowledged_where_another_lies_is_found_and_one_acknowledged_twice_is_a_duplicate() {
        let mut checker = checker(2, 1);
        checker.acknowledged(0, 0, 1, 0);
        assert_eq!((checker.counts.different, checker.counts.broken()), (1, 1), "{:?}", checker.findings);
        checker.acknowledged(0, 0, 0, 1);
        assert_eq!((checker.counts.duplicates, checker.counts.broken()), (1, 2), "{:?}", checker.findings);
    }

    #[test]
    fn records_that_changed_places_are_out_of_order() {
        let counts = verdict(checker(3, 0), &[1, 0, 2]);
        assert_eq!((counts.out_of_order, counts.broken()), (1, 1), "{counts:?}");
    }

    #[test]
    fn a_record_that_nobody_sent_is_a_phantom() {
        let counts = verdict(checker(1, 1), &[0, 7]);
        assert!(counts.phantoms >= 1, "{counts:?}");
    }

    #[test]
    fn other_bytes_on_another_node_are_found() {
        let mut checker = checker(1, 1);
        for (node, timestamp) in [(1, 0), (2, 1)] {
            let end = checker.fetched(node, 0, &answer(vec![batch_of(0, 0, 0, timestamp)]));
            checker.read_all(node, 0, end);
        }
        checker.finish();
        assert_eq!((checker.counts.different, checker.counts.broken()), (1, 1), "{:?}", checker.findings);
    }

    #[test]
    fn a_replica_that_ends_early_is_found() {
        let mut checker = checker(2, 2);
        let batches = vec![batch_of(0, 0, 0, 0), batch_of(0, 1, 1, 0)];
        let end = checker.fetched(1, 0, &answer(batches.clone()));
        checker.read_all(1, 0, end);
        let end = checker.fetched(2, 0, &answer(batches[..1].to_vec()));
        checker.read_all(2, 0, end);
        checker.finish();
        assert_eq!(checker.counts.broken(), 1, "{:?}", checker.findings);
    }

    #[test]
    fn bytes_that_are_no_batch_are_parse_errors_and_do_not_hide_what_comes_before() {
        let mut checker = checker(1, 1);
        let broken = Bytes::from_static(&[7; 80]);
        assert_eq!(checker.fetched(1, 0, &answer(vec![batch_of(0, 0, 0, 0), broken])), 1);
        assert_eq!((checker.counts.parse_errors, checker.counts.broken()), (1, 1), "{:?}", checker.findings);
    }

    #[test]
    fn a_batch_whose_bits_have_flipped_is_a_parse_error() {
        let mut checker = checker(1, 0);
        let mut bytes = batch_of(0, 0, 0, 0).to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        checker.fetched(1, 0, &answer(vec![bytes.into()]));
        assert_eq!(checker.counts.parse_errors, 1, "{:?}", checker.findings);
    }

    #[test]
    fn a_consumer_that_skips_or_repeats_is_found() {
        let mut checker = checker(3, 3);
        let value = |number| {
            let mut value = Vec::new();
            crate::records::value(0, number, &mut value);
            value
        };
        checker.consumed(0, 0, &value(0));
        assert_eq!(checker.counts.broken(), 0);
        checker.consumed(0, 2, &value(2));
        assert_eq!(checker.counts.gaps, 1);
        checker.consumed(0, 0, &value(1));
        assert_eq!((checker.counts.gaps, checker.counts.different), (2, 1));
    }

    #[test]
    fn the_first_findings_are_kept_and_all_are_counted() {
        let mut checker = checker(0, 0);
        for _ in 0..200 {
            checker.consumed(0, 0, b"not a record");
        }
        assert_eq!(checker.findings.len(), FINDINGS);
        assert!(checker.counts.phantoms == 200 && checker.counts.gaps == 199, "{:?}", checker.counts);
    }
}
