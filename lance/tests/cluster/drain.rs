//! A node that is asked to stop hands over first, so that nobody notices.

use super::support::cluster::Cluster;
use super::support::eventually;
use lnc_client::{Client, Record};
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A producer that writes one record after the other until told to stop.
struct Stream {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Stream {
    fn start(endpoints: String, topic: &'static str) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let client = Client::builder().endpoints(endpoints.split(',')).build().await.unwrap();
                let producer = client.producer(topic).linger(Duration::ZERO).build().await.unwrap();
                let mut longest = Duration::ZERO;
                while !stopped.load(Ordering::Relaxed) {
                    let number = count.load(Ordering::Relaxed);
                    let start = Instant::now();
                    let delivery = producer.send(Record::new(format!("{number}"))).await.expect("no send fails");
                    longest = longest.max(start.elapsed());
                    assert_eq!(delivery.offset, Some(number), "once, and in order");
                    count.store(number + 1, Ordering::Relaxed);
                }
                longest
            })
        });
        Self { stop, acknowledged, thread }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends it, and gives how many records it wrote and how long the slowest took.
    fn finish(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the producer saw no error");
        (self.acknowledged.load(Ordering::Relaxed), longest)
    }
}

#[test]
fn a_drained_leader_is_replaced_without_a_stall() {
    let mut cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    let stream = Stream::start(cluster.endpoints(), "t");
    eventually("records are acknowledged", || (stream.acknowledged() > 20).then_some(()));
    let leader = cluster.leader(group);
    cluster.node(leader).signal(Signal::TERM);
    let status = cluster.node(leader).wait_for_end();
    assert_eq!(status.code(), Some(0), "{}", cluster.node(leader).log());
    let others = cluster.others(leader);
    for each in 0..=3 {
        cluster.leader_among(each, &others);
    }
    let so_far = stream.acknowledged();
    eventually("records are acknowledged by the next leader", || (stream.acknowledged() > so_far + 20).then_some(()));
    cluster.node(leader).start();
    cluster.wait_ready();
    let (count, longest) = stream.finish();
    assert!(longest < Duration::from_secs(1), "one record took {longest:?}");
    cluster.assert_replicas_equal("t", 0, count);
    let log = cluster.node(leader).log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_rolling_restart_is_not_noticed_by_producers() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &[]);
    let stream = Stream::start(cluster.endpoints(), "t");
    for id in 1..=3 {
        let so_far = stream.acknowledged();
        eventually("records are acknowledged", || (stream.acknowledged() > so_far + 20).then_some(()));
        cluster.node(id).signal(Signal::TERM);
        assert_eq!(cluster.node(id).wait_for_end().code(), Some(0));
        cluster.node(id).start();
        cluster.wait_ready();
    }
    let (count, longest) = stream.finish();
    assert!(longest < Duration::from_secs(1), "one record took {longest:?}");
    cluster.assert_replicas_equal("t", 0, count);
}
