//! A writer that never gives up, and the check of what became of its records.

use super::records::pairs;
use super::{Call, Cluster, Outcome, Producer, Rng};
use lnc_protocol::message::ProduceRequest;
use lnc_protocol::{ErrorCode, Request, Response};
use std::collections::{BTreeMap, VecDeque};

/// Batches of one partition that may be under way at the same time: fewer than a broker remembers.
const WINDOW: usize = 3;

struct Unacknowledged {
    request: ProduceRequest,
    value: String,
    call: Option<Call>,
    /// Whether it was sent while an earlier batch of its partition was not acknowledged: it may arrive before that one.
    may_overtake: bool,
}

/// See the module documentation.
pub(crate) struct Writer {
    topic: String,
    producer: Producer,
    lanes: BTreeMap<u32, VecDeque<Unacknowledged>>,
    /// Values sent so far, which are the numbers from 0 on.
    sent: u64,
    /// What was acknowledged, by partition and offset.
    acknowledged: BTreeMap<(u32, u64), String>,
}

impl Writer {
    pub(crate) fn new(cluster: &mut Cluster, topic: &str, partitions: u32) -> Self {
        let lanes = (0..partitions).map(|partition| (partition, VecDeque::new())).collect();
        let producer = Producer::new(cluster);
        Self { topic: topic.to_owned(), producer, lanes, sent: 0, acknowledged: BTreeMap::new() }
    }

    /// Number of acknowledged batches.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Take in answers, begin new batches, and send whatever is not under way to nodes drawn from `rng`.
    pub(crate) fn go_on(&mut self, cluster: &mut Cluster, rng: &mut Rng) {
        self.collect(cluster);
        for (partition, lane) in &mut self.lanes {
            while lane.len() < WINDOW {
                let value = format!("{}", self.sent);
                self.sent += 1;
                let request = self.producer.request(&self.topic, *partition, &[&value, "second of its batch"]);
                lane.push_back(Unacknowledged { request, value, call: None, may_overtake: false });
            }
        }
        self.send(cluster, rng);
    }

    /// Let time pass until everything that was sent is acknowledged.
    pub(crate) fn finish(&mut self, cluster: &mut Cluster, rng: &mut Rng) {
        cluster.until("everything sent is acknowledged", |cluster| {
            self.collect(cluster);
            self.send(cluster, rng);
            self.lanes.values().all(VecDeque::is_empty)
        });
    }

    fn send(&mut self, cluster: &mut Cluster, rng: &mut Rng) {
        let running = cluster.running();
        if running.is_empty() {
            return;
        }
        for lane in self.lanes.values_mut() {
            let node = rng.pick(&running);
            for (position, waiting) in lane.iter_mut().enumerate().filter(|(_, waiting)| waiting.call.is_none()) {
                waiting.may_overtake = position > 0;
                waiting.call = Some(cluster.send(node, &Request::Produce(waiting.request.clone())));
            }
        }
    }

    fn collect(&mut self, cluster: &mut Cluster) {
        for (partition, lane) in &mut self.lanes {
            lane.retain_mut(|waiting| {
                let outcome = waiting.call.and_then(|call| cluster.outcome(call));
                match outcome {
                    None => true,
                    Some(Outcome::Done(Response::Produce(done))) => {
                        let offset = done.base_offset.expect("a quorum settles the offset");
                        let former = self.acknowledged.insert((*partition, offset), waiting.value.clone());
                        assert_eq!(former, None, "partition {partition} offset {offset} was given twice");
                        false
                    }
                    Some(Outcome::Refused(error)) => {
                        let overtook = matches!(error.code, ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer);
                        assert!(
                            error.code.is_retriable() || (overtook && waiting.may_overtake),
                            "{}: {error}",
                            waiting.value
                        );
                        waiting.call = None;
                        true
                    }
                    Some(Outcome::Lost) => {
                        waiting.call = None;
                        true
                    }
                    Some(other) => panic!("not an answer to a produce: {other:?}"),
                }
            });
        }
    }

    /// Every node has every acknowledged record at its offset, each record once, in the order in which they were sent,
    /// and nothing else.
    pub(crate) fn check(&self, cluster: &mut Cluster) {
        for node in cluster.running() {
            for partition in self.lanes.keys() {
                let all = cluster.read_all(node, &self.topic, *partition);
                let found = pairs(&all);
                let mut last = None;
                for (position, (offset, value)) in found.iter().enumerate() {
                    assert_eq!(*offset, position as u64, "node {node} partition {partition} has a hole");
                    if position % 2 == 1 {
                        assert_eq!(*value, "second of its batch", "node {node} partition {partition} offset {offset}");
                        continue;
                    }
                    let number: u64 = value.parse().expect("a value that was sent");
                    assert!(number < self.sent, "node {node} made up {number}");
                    assert!(last < Some(number), "node {node} partition {partition}: {number} after {last:?}");
                    last = Some(number);
                }
                let own = self.acknowledged.range((*partition, 0)..=(*partition, u64::MAX));
                for ((_, offset), value) in own {
                    let there = found.get(*offset as usize).map(|(_, value)| *value);
                    assert_eq!(there, Some(value.as_str()), "node {node} partition {partition} offset {offset}");
                }
            }
        }
    }
}
