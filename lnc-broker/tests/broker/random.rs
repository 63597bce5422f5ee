//! Random requests and faults: every request is answered exactly once, and a run can be repeated.

use crate::harness::{
    Call, Cluster, Cut, Producer, Rng, SECOND, Settings, Writer, create_request, fetch_request, offsets_request,
    produce_request,
};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_protocol::message::{
    Acks, DeleteTopicRequest, DescribeTopicRequest, HelloRequest, MetadataRequest, OffsetSpec, ProduceRequest,
    TopicOptions,
};
use lnc_protocol::{Flags, Request};
use lnc_replication::formation::Channel;

const NAMES: [&str; 3] = ["a", "b", "not valid!"];

struct Run {
    cluster: Cluster,
    producer: Producer,
    rng: Rng,
    calls: Vec<Call>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut settings = Settings {
            data_groups: 2,
            memory_bytes: 64 << 10,
            tail_cache_bytes: 4 << 10,
            entry_cache_bytes: 4 << 10,
            checkpoint_bytes: 8 << 10,
            seed,
            ..Settings::default()
        };
        settings.segments.segment_bytes = 10_000;
        let mut cluster = Cluster::ready(settings);
        cluster.create_topic("a", 2);
        let producer = Producer::new(&mut cluster);
        Self { cluster, producer, rng: Rng::new(seed), calls: Vec::new() }
    }

    fn request(&mut self) -> Request {
        let name = self.rng.pick(&NAMES);
        let partition = self.rng.below(3) as u32;
        let timeout_ms = self.rng.pick(&[0, 100, 5_000]);
        match self.rng.below(16) {
            0 => Request::Ping,
            1 => Request::ClusterInfo,
            2 => Request::InitProducer,
            3 => Request::ListTopics,
            4 => Request::DescribeTopic(DescribeTopicRequest { name: name.to_owned() }),
            5 => Request::Metadata(MetadataRequest { topics: self.rng.chance(50).then(|| vec![name.to_owned()]) }),
            6 => create_request(name, 1 + partition, TopicOptions::default()),
            7 => Request::DeleteTopic(DeleteTopicRequest { name: name.to_owned(), timeout_ms }),
            8 => Request::Hello(HelloRequest { max_version: partition as u8, ..HelloRequest::default() }),
            9 => {
                let at = self.rng.below(20) as i64;
                let spec = self.rng.pick(&[OffsetSpec::Earliest, OffsetSpec::Latest, OffsetSpec::Timestamp(at)]);
                offsets_request(name, partition, spec)
            }
            10 | 11 => {
                let wait_ms = self.rng.pick(&[0, 50, 3_000]);
                let from = [(partition, self.rng.below(30)), (0, self.rng.below(30))];
                fetch_request(name, &from, wait_ms, self.rng.below(3000) as u32)
            }
            _ => {
                let acks = self.rng.pick(&[Acks::None, Acks::Leader, Acks::Quorum, Acks::Quorum]);
                let value = "v".repeat(self.rng.below(4000) as usize);
                let mut produce = match self.rng.below(3) {
                    0 => self.producer.request(name, partition, &[&value]),
                    _ => produce_request(name, partition, &[&value]),
                };
                if self.rng.chance(5) {
                    produce.batch = produce.batch.slice(..produce.batch.len() / 2);
                }
                let topic_id = if self.rng.chance(10) { self.rng.below(4) } else { 0 };
                Request::Produce(ProduceRequest { acks, timeout_ms, topic_id, ..produce })
            }
        }
    }

    fn fault(&mut self) {
        let node = 1 + self.rng.below(3);
        let running = self.cluster.node(node).is_running();
        match self.rng.below(14) {
            0 if running => {
                let choice = CrashChoice::Torn(self.rng.next());
                self.cluster.crash(node, choice);
            }
            1 if running => self.cluster.kill(node),
            2..=4 if !running => {
                // A full disk may not even let it start; then its process ends.
                if self.cluster.try_start(node).is_err() {
                    self.cluster.kill(node);
                }
            }
            5 => self.cluster.network.isolate(node),
            6 => self.cluster.network.cut(Cut { from: Some(node), ..Cut::channel(Channel::Control) }),
            7 => self.cluster.network.cut(Cut { to: Some(node), ..Cut::channel(Channel::Replication) }),
            8 => self.cluster.network.max_delay_us = 20_000,
            9 => {
                let order = self.rng.pick(&[Order::Held, Order::Seeded(node), Order::Immediate]);
                self.cluster.node_mut(node).set_order(order);
            }
            10 => {
                let disk = self.cluster.node(node).disk();
                disk.set_capacity(self.rng.chance(50).then(|| disk.used()));
            }
            11 => self.cluster.node_mut(node).clock_ahead_ms = self.rng.below(20_000) as i64 - 10_000,
            _ => self.cluster.network.heal(),
        }
    }

    fn go(&mut self, steps: usize) {
        for _ in 0..steps {
            for _ in 0..self.rng.below(4) {
                let (node, flags) = (1 + self.rng.below(3), self.rng.pick(&[Flags::NONE, Flags::NO_FORWARD]));
                let request = self.request();
                let call = self.cluster.send_flagged(node, &request, flags);
                self.calls.push(call);
            }
            if self.rng.chance(15) {
                self.fault();
            }
            self.cluster.tick();
        }
    }

    /// End all faults and wait for the longest time that any request may take.
    fn end(&mut self) {
        self.cluster.network.heal();
        self.cluster.set_disk_order(|_| Order::Immediate);
        for node in self.cluster.ids() {
            self.cluster.node(node).disk().set_capacity(None);
            if !self.cluster.node(node).is_running() {
                self.cluster.start(node);
            }
        }
        self.cluster.await_leaders();
        self.cluster.ticks(31 * SECOND);
        self.cluster.await_same();
    }

    /// What became of every request, in words, and how the nodes ended.
    fn trace(mut self) -> Vec<String> {
        let calls = std::mem::take(&mut self.calls);
        let outcomes = calls.into_iter().map(|call| format!("{call:?}: {:?}", self.cluster.outcome(call)));
        let mut trace: Vec<String> = outcomes.collect();
        trace.push(self.cluster.describe());
        trace
    }
}

#[test]
fn every_request_is_answered_exactly_once() {
    for seed in 1..=10 {
        let mut run = Run::new(seed);
        run.go(250);
        run.end();
        assert_eq!(run.cluster.unanswered(), 0, "seed {seed}");
        for node in run.cluster.ids() {
            let held = run.cluster.node(node).metrics().in_flight_bytes.get();
            assert_eq!(held, 0, "seed {seed}: node {node} holds bytes of requests that were answered");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || {
        let mut run = Run::new(99);
        run.go(200);
        run.end();
        run.trace()
    };
    let (one, two) = (run(), run());
    assert!(one.len() > 100);
    for (here, there) in one.iter().zip(&two) {
        assert_eq!(here, there);
    }
}

#[test]
fn what_is_acknowledged_amid_random_faults_is_kept_once_and_in_order() {
    let mut acknowledged = 0;
    for seed in 101..=108 {
        let mut run = Run::new(seed);
        run.cluster.create_topic("kept", 2);
        let mut writer = Writer::new(&mut run.cluster, "kept", 2);
        for _ in 0..150 {
            writer.go_on(&mut run.cluster, &mut run.rng);
            run.go(1);
        }
        run.end();
        writer.finish(&mut run.cluster, &mut run.rng);
        run.cluster.await_same();
        writer.check(&mut run.cluster);
        acknowledged += writer.acknowledged();
    }
    assert!(acknowledged > 200, "only {acknowledged} batches were acknowledged");
}
