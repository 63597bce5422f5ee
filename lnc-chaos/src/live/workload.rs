//! The clients: producers that write numbered records, each to all partitions, and a consumer that reads along. They run
//! on a thread of their own, so that what the nemesis does is not taken for a stall.

use super::ledger::Ledger;
use lnc_client::{Client, ConsumerBuilder, DeliveryFuture, Error, Producer, Record, Start, partition_for_key};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// Records of one producer for one partition that may be under way: with more, a stall only makes the queue longer.
const WINDOW: usize = 64;

/// Keys that a producer uses for one partition.
const KEYS: usize = 4;

/// How fast records are to be produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Records per minute, of all producers together.
    PerMinute(u64),
    /// As fast as the windows go.
    Most,
}

/// What the clients do.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) endpoints: Vec<String>,
    pub(super) topic: String,
    pub(super) partitions: u32,
    pub(super) producers: u32,
    pub(super) rate: Rate,
    /// How long a record may take before its outcome counts as unknown.
    pub(super) delivery_timeout: Duration,
}

/// What the clients are to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    /// Write and read.
    Work,
    /// Write no more; what is under way is waited for, and read.
    Drain,
    /// End.
    Stop,
}

/// The clients on their thread.
pub(super) struct Clients {
    phase: watch::Sender<Phase>,
    thread: Option<std::thread::JoinHandle<Result<(), Error>>>,
}

impl Clients {
    pub(super) fn start(workload: Workload, ledger: Ledger) -> std::io::Result<Self> {
        let (phase, watch) = watch::channel(Phase::Work);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new()
            .name("clients".to_owned())
            .spawn(move || runtime.block_on(workload.run(&ledger, &watch)))?;
        Ok(Self { phase, thread: Some(thread) })
    }

    /// Whether they have all ended, which they do by themselves only when they cannot begin.
    pub(super) fn have_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(std::thread::JoinHandle::is_finished)
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Have them end, and wait for it.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.enter(Phase::Stop);
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        ended.map_or(Ok(()), |result| result.unwrap_or(Err(Error::Closed)))
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Workload {
    async fn client(&self, name: String) -> Result<Client, Error> {
        Client::builder().endpoints(self.endpoints.clone()).client_name(name).build().await
    }

    async fn run(&self, ledger: &Ledger, phase: &watch::Receiver<Phase>) -> Result<(), Error> {
        let lanes = self.producers * self.partitions;
        let interval = match self.rate {
            Rate::Most => Duration::ZERO,
            Rate::PerMinute(rate) => Duration::from_secs(60).mul_f64(f64::from(lanes) / rate.max(1) as f64),
        };
        let mut stop = phase.clone();
        let mut tasks = JoinSet::new();
        let clients = tokio::select! {
            clients = self.begin(&mut tasks, interval, ledger, phase) => clients?,
            _ = stop.wait_for(|now| *now == Phase::Stop) => return Ok(()),
        };
        while tasks.join_next().await.is_some() {}
        ledger.lock().reconnects = clients.iter().map(Client::reconnects).sum();
        Ok(())
    }

    /// Connect all clients and have them start.
    async fn begin(
        &self,
        tasks: &mut JoinSet<()>,
        interval: Duration,
        ledger: &Ledger,
        phase: &watch::Receiver<Phase>,
    ) -> Result<Vec<Client>, Error> {
        let lanes = self.producers * self.partitions;
        let mut clients = Vec::new();
        let begin = Instant::now();
        for number in 0..self.producers {
            let client = self.client(format!("lnc-chaos producer {number}")).await?;
            let builder = client.producer(&self.topic).linger(Duration::ZERO);
            let producer = builder.delivery_timeout(self.delivery_timeout).build().await?;
            clients.push(client);
            for partition in 0..self.partitions {
                let lane = Lane {
                    producer: producer.clone(),
                    number,
                    partition,
                    keys: keys(number, partition, self.partitions),
                    interval,
                    // Spread evenly, so that the rate is even too.
                    due: begin + interval.mul_f64(f64::from(number * self.partitions + partition) / f64::from(lanes)),
                    window: VecDeque::new(),
                };
                tasks.spawn(lane.run(ledger.clone(), phase.clone()));
            }
        }
        let client = self.client("lnc-chaos consumer".to_owned()).await?;
        let consumer = client.consumer(&self.topic).start(Start::Earliest);
        clients.push(client);
        tasks.spawn(consume(consumer, ledger.clone(), phase.clone()));
        Ok(clients)
    }
}

/// Some keys that lead to a partition.
fn keys(producer: u32, partition: u32, partitions: u32) -> Vec<String> {
    let all = (0u32..).map(|n| format!("producer-{producer}-key-{n}"));
    all.filter(|key| partition_for_key(key.as_bytes(), partitions) == partition).take(KEYS).collect()
}

/// What one producer sends to one partition.
struct Lane {
    producer: Producer,
    number: u32,
    partition: u32,
    keys: Vec<String>,
    interval: Duration,
    due: Instant,
    window: VecDeque<(u32, DeliveryFuture)>,
}

impl Lane {
    async fn run(mut self, ledger: Ledger, mut phase: watch::Receiver<Phase>) {
        loop {
            let now = *phase.borrow();
            if now == Phase::Stop || (now == Phase::Drain && self.window.is_empty()) {
                break;
            }
            let may_send = now == Phase::Work && self.window.len() < WINDOW;
            tokio::select! {
                biased;
                (number, result) = oldest(&mut self.window) => {
                    self.window.pop_front();
                    ledger.lock().delivered(self.number, self.partition, number, result);
                }
                () = sleep_until(self.due), if may_send => self.send(&ledger).await,
                _ = phase.changed() => {}
            }
        }
        // Who is told to end does not know what came of the rest.
        for (number, _) in self.window {
            ledger.lock().delivered(self.number, self.partition, number, Err(Error::Closed));
        }
    }

    async fn send(&mut self, ledger: &Ledger) {
        let (number, value) = ledger.lock().send(self.number, self.partition);
        let key = self.keys[number as usize % self.keys.len()].clone();
        match self.producer.enqueue(Record::new(value).key(key)).await {
            Ok(delivery) => self.window.push_back((number, delivery)),
            Err(error) => ledger.lock().delivered(self.number, self.partition, number, Err(error)),
        }
        self.due += self.interval;
    }
}

/// The outcome of the oldest record; never, if there is none. Records of a lane are answered in their order.
async fn oldest(window: &mut VecDeque<(u32, DeliveryFuture)>) -> (u32, Result<lnc_client::Delivery, Error>) {
    match window.front_mut() {
        Some((number, delivery)) => (*number, delivery.await),
        None => std::future::pending().await,
    }
}

/// Reads all partitions from their beginning until told to stop.
async fn consume(builder: ConsumerBuilder, ledger: Ledger, mut phase: watch::Receiver<Phase>) {
    /// Between two attempts to begin.
    const PAUSE: Duration = Duration::from_millis(500);
    let mut consumer = loop {
        match builder.clone().build().await {
            Ok(consumer) => break consumer,
            Err(error) => ledger.lock().consumer_failed(&error),
        }
        if timeout(PAUSE, phase.wait_for(|now| *now == Phase::Stop)).await.is_ok() {
            return;
        }
    };
    loop {
        let batch = tokio::select! {
            biased;
            _ = phase.wait_for(|now| *now == Phase::Stop) => return,
            batch = consumer.next_batch() => batch,
        };
        match batch {
            Some(Ok(batch)) => ledger.lock().consumed(batch.partition, &batch.records),
            Some(Err(error)) => ledger.lock().consumer_failed(&error),
            // Each partition has failed for good, and that is counted; the rest is for the final reading.
            None => return,
        }
    }
}
