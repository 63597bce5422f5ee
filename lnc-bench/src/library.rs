//! Produces through the client library, record by record: what an application gets, with the library's batching,
//! compression and idempotence.
//!
//! Each connection is a client with one producer of its own. Records without keys go to one partition per producer, so
//! that a partition's batches fill; those with keys go where the library sends a key.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use lnc_client::{DeliveryFuture, Error, Producer, Record, partition_for_key};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::args::ProduceArgs;
use crate::line::PATIENCE;
use crate::measure::{Clock, Recorder, Window};
use crate::payload::{KeySource, fill};
use crate::produce::keep_pace;
use crate::report::Report;
use crate::schedule::{OpenPace, Pace};
use crate::topics::{self, Topology};
use crate::watch::{Watch, watch};
use crate::words::{counted, time};
use crate::{BenchError, client};

/// Values are prepared before the run until they take this many bytes, and at least this many.
const POOL_BYTES: usize = 4 << 20;
const FEWEST: usize = 64;

/// After this many records the producers and connections get their turn.
const RECORDS_PER_TURN: usize = 64;

/// What a producer may hold in memory beyond its records' values, per record.
const OVERHEAD: usize = 128;

/// Runs the load and reports.
pub(crate) fn run(args: &ProduceArgs) -> Result<Report, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    let (topology, created, watched) = tasks.block_on(&runtime, async {
        let client = client(&args.cluster.endpoints).await?;
        let names = topics::names(&args.cluster.topic, args.cluster.topics);
        let created = topics::create(&client, &names, args.load.partitions).await?;
        let topology = topics::look_up(&client, &names).await?;
        Ok::<_, BenchError>((topology, created, Watch::new(&client, &args.cluster).await))
    })?;
    let values: Rc<[Bytes]> = values(args).into();
    let producers = tasks.block_on(&runtime, producers(args, &topology))?;
    let clock = Clock::start();
    let window = Window::after(clock.now(), args.load.warmup, args.load.duration);
    let (progress, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watcher = {
        let (progress, failed) = (progress.clone(), failed.clone());
        std::thread::Builder::new().name("watch".into()).spawn(move || {
            let usage = watch(&watched, &clock, window, &progress, &failed);
            (usage, watched)
        })?
    };
    let recorder = Rc::new(RefCell::new(Recorder::new(window)));
    let result = tasks.block_on(&runtime, async {
        let (mut running, mut paces) = (Vec::new(), Vec::new());
        for (number, (producer, partition)) in (0..).zip(producers) {
            let wake = Rc::new(Notify::new());
            let pace = match args.load.rate {
                None => Pace::Closed { until: window.until },
                Some(rate) => {
                    let lines = u64::from(args.load.connections);
                    let pace = OpenPace::new(clock.now(), window.until, rate, number, lines);
                    paces.push((pace.clone(), wake.clone()));
                    Pace::Open(pace)
                }
            };
            let source = Source {
                queues: (0..producer.partitions()).map(|_| VecDeque::new()).collect(),
                under_way: 0,
                most: args.load.in_flight as usize,
                keys: KeySource::new(args.load.keys, number, u64::from(args.load.connections)),
                values: values.clone(),
                next: number as usize * 7919 % values.len(),
                recorder: recorder.clone(),
                progress: progress.clone(),
                producer,
                partition,
                pace,
                wake,
                clock,
                window,
            };
            running.push(tokio::task::spawn_local(source.run()));
        }
        let all = async {
            for source in running {
                source.await.map_err(|_| BenchError::Thread)?;
            }
            Ok(())
        };
        tokio::select! {
            result = all => result,
            result = keep_pace(clock, paces) => Err(result.err().map_or(BenchError::Thread, BenchError::Io)),
        }
    });
    failed.fetch_or(result.is_err(), Ordering::Relaxed);
    let (usage, watched) = watcher.join().map_err(|_| BenchError::Thread)?;
    topics::clean_up(&args.cluster, &created);
    result?;
    let mut report = Report::new(describe(args, &topology), args.load.duration, &recorder.borrow());
    report.offered_per_second = args.load.rate;
    report.with_usage(usage?, watched.environment(Some(args.load.acks.name())));
    Ok(report)
}

fn describe(args: &ProduceArgs, topology: &Topology) -> String {
    let load = &args.load;
    let pace = load.rate.map_or("closed loop".to_owned(), |rate| format!("open loop, {rate} records/s"));
    format!(
        "produce with the client library: {} × {} in flight ({pace}), {} per record, {}, batches of {}, linger {}, \
         compression {}, acks {}, {} with {} in all, after {} of warm-up",
        counted(load.connections.into(), "producer"),
        counted(load.in_flight.into(), "record"),
        load.payload,
        load.keys,
        counted(args.batch_bytes as u64, "byte"),
        time(args.linger),
        load.compression.name(),
        load.acks.name(),
        counted(args.cluster.topics.into(), "topic"),
        counted(topology.targets.len() as u64, "partition"),
        time(load.warmup),
    )
}

fn values(args: &ProduceArgs) -> Vec<Bytes> {
    let mut rng = SmallRng::seed_from_u64(0x0011_B4A4);
    let (mut values, mut total) = (Vec::new(), 0);
    while total < POOL_BYTES || values.len() < FEWEST {
        let mut value = vec![0; args.load.payload.sample(&mut rng)];
        fill(&mut value, args.load.compressible, &mut rng);
        total += value.len() + OVERHEAD;
        values.push(value.into());
    }
    values
}

/// A producer for each connection, with the partition for its records without keys.
async fn producers(args: &ProduceArgs, topology: &Topology) -> Result<Vec<(Producer, u32)>, BenchError> {
    let mut producers = Vec::new();
    let memory = args.load.in_flight as usize * (args.load.payload.largest() + OVERHEAD);
    for number in 0..args.load.connections as usize {
        let target = &topology.targets[number % topology.targets.len()];
        let producer = client(&args.cluster.endpoints)
            .await?
            .producer(&target.topic)
            .linger(args.linger)
            .max_batch_bytes(args.batch_bytes)
            .compression(args.load.compression.codec())
            .acks(args.load.acks.acks())
            // The number of records is the bound here.
            .memory_bytes(memory.clamp(args.batch_bytes, u32::MAX as usize))
            .build()
            .await?;
        producers.push((producer, target.partition));
    }
    Ok(producers)
}

/// A producer and its records under way.
struct Source {
    producer: Producer,
    partition: u32,
    pace: Pace,
    wake: Rc<Notify>,
    /// The deliveries awaited, by partition: those of one partition come in order.
    queues: Vec<VecDeque<Awaited>>,
    under_way: usize,
    most: usize,
    keys: KeySource,
    values: Rc<[Bytes]>,
    next: usize,
    recorder: Rc<RefCell<Recorder>>,
    progress: Arc<AtomicU64>,
    clock: Clock,
    window: Window,
}

struct Awaited {
    due: u64,
    bytes: u32,
    delivery: DeliveryFuture,
}

impl Source {
    async fn run(mut self) {
        let last = self.clock.instant(self.window.until) + PATIENCE;
        let finished = tokio::time::timeout_at(last.into(), self.produce()).await.is_ok();
        let end = self.clock.now();
        let mut recorder = self.recorder.borrow_mut();
        if !finished {
            recorder.error(crate::wire::NO_ANSWER, self.under_way as u64);
        }
        while let Some(due) = self.pace.take_missed() {
            recorder.never_sent(due, end);
        }
    }

    async fn produce(&mut self) {
        loop {
            let now = self.clock.now();
            let mut turn = 0;
            while turn < RECORDS_PER_TURN && self.under_way < self.most {
                let Some(due) = self.pace.take(now) else { break };
                self.hand_in(due).await;
                turn += 1;
            }
            if self.under_way == 0 && self.pace.is_over(self.clock.now()) {
                return;
            }
            if turn == RECORDS_PER_TURN {
                // There is more to do here, but what has been handed in must get on its way.
                tokio::task::yield_now().await;
                poll_fn(|context| {
                    self.take_deliveries(context);
                    Poll::Ready(())
                })
                .await;
                continue;
            }
            let wake = self.wake.clone();
            let deliveries = poll_fn(|context| match self.take_deliveries(context) {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            });
            tokio::select! {
                biased;
                () = deliveries => {}
                () = wake.notified() => {}
            }
        }
    }

    async fn hand_in(&mut self, due: u64) {
        let value = self.values[self.next].clone();
        self.next = (self.next + 1) % self.values.len();
        let bytes = value.len() as u32;
        let (record, partition) = match self.keys.draw() {
            None => (Record::new(value).partition(self.partition), self.partition),
            Some(key) => {
                let partition = partition_for_key(&key, self.producer.partitions());
                (Record::new(value).key(Bytes::copy_from_slice(&key)), partition)
            }
        };
        match self.producer.enqueue(record).await {
            Ok(delivery) => {
                self.queues[partition as usize].push_back(Awaited { due, bytes, delivery });
                self.under_way += 1;
            }
            Err(error) => self.recorder.borrow_mut().request_failed(due, kind(&error)),
        }
    }

    /// Takes in what has been delivered, and says how much.
    fn take_deliveries(&mut self, context: &mut Context<'_>) -> usize {
        let answered = self.clock.now();
        let mut recorder = self.recorder.borrow_mut();
        let mut taken = 0;
        for queue in &mut self.queues {
            while let Some(first) = queue.front_mut()
                && let Poll::Ready(result) = Pin::new(&mut first.delivery).poll(context)
            {
                match result {
                    Ok(_) => recorder.acknowledged(first.due, answered, 1, first.bytes),
                    Err(error) => recorder.request_failed(first.due, kind(&error)),
                }
                queue.pop_front();
                taken += 1;
            }
        }
        self.under_way -= taken;
        self.progress.fetch_add(taken as u64, Ordering::Relaxed);
        taken
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Connect { .. } => "cannot connect",
        Error::ConnectionLost { .. } => "connection lost",
        Error::Protocol { .. } => "protocol broken",
        Error::DeadlineExceeded { .. } => "deadline exceeded",
        error => error.code().map_or("other", |code| code.name()),
    }
}
