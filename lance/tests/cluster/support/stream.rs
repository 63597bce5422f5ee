//! A producer that writes numbered records while a test disturbs the cluster, and checks every acknowledgement.

use lnc_client::{Client, DeliveryFuture, Record};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// It runs in a thread of its own. Record number n of the topic's only partition must get offset n: once, and in order.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Duration>,
}

impl Stream {
    /// Starts to write, with this many records under way at once.
    pub(crate) fn start(endpoints: String, topic: &'static str, window: usize) -> Self {
        Self::start_with(endpoints, topic.to_owned(), window, |number| number.to_string())
    }

    /// [`Stream::start`] with records of another kind: `value` gives that of each number.
    pub(crate) fn start_with(endpoints: String, topic: String, window: usize, value: fn(u64) -> String) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(write(endpoints, &topic, window, value, &stopped, &count))
        });
        Self { stop, acknowledged, thread }
    }

    /// Records acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether the producer has failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it, and gives how many records it wrote and how long the slowest took.
    #[track_caller]
    pub(crate) fn finish(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        let longest = self.thread.join().expect("the producer saw no error");
        (self.acknowledged.load(Ordering::Relaxed), longest)
    }
}

async fn write(
    endpoints: String,
    topic: &str,
    window: usize,
    value: fn(u64) -> String,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Duration {
    let client = Client::builder().endpoints(endpoints.split(',')).build().await.unwrap();
    let producer = client.producer(topic).linger(Duration::ZERO).build().await.unwrap();
    let mut under_way: VecDeque<(Instant, DeliveryFuture)> = VecDeque::new();
    let (mut written, mut longest) = (0, Duration::ZERO);
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        while !stopping && under_way.len() < window {
            let delivery = producer.enqueue(Record::new(value(written))).await.expect("no record is refused");
            under_way.push_back((Instant::now(), delivery));
            written += 1;
        }
        let Some((start, delivery)) = under_way.pop_front() else { return longest };
        let delivery = delivery.await.expect("no delivery fails");
        longest = longest.max(start.elapsed());
        assert_eq!(delivery.offset, Some(count.load(Ordering::Relaxed)), "once, and in order");
        count.fetch_add(1, Ordering::Relaxed);
    }
}
