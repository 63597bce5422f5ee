//! Reads topics: each consumer has one connection to each leader of its partitions, and one fetch under way on it.
//!
//! A fetch that has come is looked at just so far that the next one can be sent; then, while the broker works on that,
//! checksums are verified and records counted, from the batches' headers. No record is taken apart or copied.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lnc_client::{Client, ErrorCode, OffsetSpec};
use lnc_protocol::BatchHeader;
use lnc_protocol::batch::{Limits, check, records, split};
use lnc_protocol::frame::{self, Flags};
use lnc_protocol::message::{
    FetchPartition, FetchRequest, FetchedPartition, Opcode, Request, Response, decode_reply, encode_request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::{JoinHandle, LocalSet};

use crate::args::{ClusterArgs, ConsumeArgs, From, ReadingArgs};
use crate::batches::Stamp;
use crate::delivery::Deliveries;
use crate::measure::{Clock, Recorder, Window};
use crate::report::Report;
use crate::topics::{self, Topology};
use crate::watch::{Watch, watch};
use crate::wire::{CONNECTION_LOST, MAX_REPLY, PROTOCOL_BROKEN, connect};
use crate::words::counted;
use crate::{BenchError, client};

/// How long a broker may hold a fetch back while there is nothing to send, in milliseconds.
const MAX_WAIT_MS: u32 = 500;

/// The pause after a failed fetch.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// How many bytes a stamped batch may take when it is decompressed.
const MAX_DECOMPRESSED: usize = 64 << 20;

/// Where reading begins and ends in each partition of a topology, in its order.
pub(crate) struct Offsets(Vec<(u64, u64)>);

impl Offsets {
    /// From the start up to the present end; or from the present end, without one.
    pub(crate) async fn at(client: &Client, topology: &Topology, from: From) -> Result<Offsets, BenchError> {
        let mut by_topic: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for target in &topology.targets {
            by_topic.entry(&target.topic).or_default().push(target.partition);
        }
        let mut found = BTreeMap::new();
        for (topic, partitions) in by_topic {
            let ask = async |spec: OffsetSpec| {
                client.list_offsets(topic, partitions.iter().map(|partition| (*partition, spec))).await
            };
            let latest = ask(OffsetSpec::Latest).await?;
            let earliest = if from == From::Start { ask(OffsetSpec::Earliest).await? } else { latest.clone() };
            for ((partition, start), (_, end)) in earliest.into_iter().zip(latest) {
                let end = if from == From::Start { end.offset } else { u64::MAX };
                found.insert((topic, partition), (start.offset, end));
            }
        }
        let places = topology
            .targets
            .iter()
            .map(|target| found.get(&(target.topic.as_str(), target.partition)).copied().ok_or(BenchError::NoNodes));
        places.collect::<Result<_, _>>().map(Offsets)
    }
}

/// What the readers of one thread share.
pub(crate) struct Reading {
    topology: Topology,
    args: ReadingArgs,
    clock: Clock,
    recorder: RefCell<Recorder>,
    deliveries: Option<Rc<RefCell<Deliveries>>>,
    progress: std::sync::Arc<AtomicU64>,
}

impl Reading {
    pub(crate) fn new(topology: &Topology, args: &ReadingArgs, clock: Clock, window: Window) -> Self {
        Reading {
            topology: topology.clone(),
            args: args.clone(),
            clock,
            recorder: RefCell::new(Recorder::new(window)),
            deliveries: None,
            progress: Default::default(),
        }
    }

    /// Batches are stamped, and their deliveries are to be counted there.
    pub(crate) fn with_deliveries(mut self, deliveries: Rc<RefCell<Deliveries>>) -> Self {
        self.deliveries = Some(deliveries);
        self
    }

    /// Starts the readers: for each consumer, one for each leader of its partitions.
    pub(crate) fn start(self: Rc<Self>, offsets: &Offsets) -> Vec<JoinHandle<()>> {
        let mut readers = Vec::new();
        let (partitions, consumers) = (offsets.0.len(), self.args.consumers as usize);
        for consumer in 0..consumers {
            let mut by_leader: BTreeMap<Option<u64>, Vec<Position>> = BTreeMap::new();
            let own: Vec<usize> = if consumer < partitions {
                (consumer..partitions).step_by(consumers).collect()
            } else {
                vec![consumer % partitions]
            };
            for index in own {
                let target = &self.topology.targets[index];
                let (offset, end) = offsets.0[index];
                let position = Position {
                    asked: FetchPartition {
                        topic: target.topic.clone(),
                        topic_id: target.topic_id,
                        partition: target.partition,
                        offset,
                        max_bytes: self.args.partition_bytes as u32,
                    },
                    end,
                };
                by_leader.entry(target.leader).or_default().push(position);
            }
            for (leader, positions) in by_leader {
                let reader = Reader { reading: self.clone(), leader, positions, under_way: Vec::new(), first: 0 };
                readers.push(tokio::task::spawn_local(reader.run()));
            }
        }
        readers
    }

    fn failed(&self, error: &str) {
        let now = self.clock.now();
        match &self.deliveries {
            Some(deliveries) => deliveries.borrow_mut().recorder.failed(now, error),
            None => self.recorder.borrow_mut().failed(now, error),
        }
    }
}

/// A partition that is being read.
struct Position {
    /// What to ask for next.
    asked: FetchPartition,
    /// Where to stop.
    end: u64,
}

/// Batches that have come and are not counted yet, with the offset from which on their records are wanted.
struct Arrived {
    batches: Vec<(Bytes, BatchHeader)>,
    wanted_from: u64,
}

/// One connection of a consumer.
struct Reader {
    reading: Rc<Reading>,
    leader: Option<u64>,
    positions: Vec<Position>,
    /// The positions that the request under way asks for.
    under_way: Vec<usize>,
    /// The position to ask for first: the one after the last that was served.
    first: usize,
}

impl Reader {
    /// Reads until all partitions have been read to their ends.
    async fn run(mut self) {
        let mut tries = 0;
        while !self.is_done() {
            let nodes = &self.reading.topology.nodes;
            // Any replica serves a fetch: if the leader cannot be reached, another node does.
            let leader = self.reading.topology.address(self.leader);
            let address = if tries == 0 { leader } else { nodes.values().nth(tries % nodes.len().max(1)) };
            let result = match address {
                None => Err("no leader"),
                Some(address) => match connect(address).await {
                    Err(error) => Err(error),
                    Ok((stream, _)) => self.session(stream).await,
                },
            };
            if let Err(error) = result {
                self.reading.failed(error);
                tries += 1;
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }

    fn is_done(&self) -> bool {
        self.positions.iter().all(Position::is_done)
    }

    async fn session(&mut self, mut stream: TcpStream) -> Result<(), &'static str> {
        let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
        self.send(&mut stream, &mut output).await?;
        loop {
            let frame = loop {
                if let Some(frame) = frame::decode(&mut input, MAX_REPLY).map_err(|_| PROTOCOL_BROKEN)? {
                    break frame;
                }
                let missing = frame::needed(&input).saturating_sub(input.len());
                input.reserve(missing.max(64 * 1024));
                match stream.read_buf(&mut input).await {
                    Ok(read) if read > 0 => {}
                    _ => return Err(CONNECTION_LOST),
                }
            };
            let arrived_at = self.reading.clock.now();
            let reply = decode_reply(Opcode::Fetch, frame.body).map_err(|_| PROTOCOL_BROKEN)?;
            let fetched = match reply.result {
                Ok(Response::Fetch(fetched)) if fetched.len() == self.under_way.len() => fetched,
                Ok(_) => return Err(PROTOCOL_BROKEN),
                Err(error) => return Err(error.code.name()),
            };
            let under_way = std::mem::take(&mut self.under_way);
            let mut arrived = Vec::new();
            for (position, fetched) in under_way.into_iter().zip(fetched) {
                let new = self.positions[position].advance(fetched)?;
                if !new.batches.is_empty() {
                    self.first = (position + 1) % self.positions.len();
                    arrived.push(new);
                }
            }
            let done = self.is_done();
            if !done {
                self.send(&mut stream, &mut output).await?;
            }
            arrived.iter().for_each(|arrived| self.count(arrived, arrived_at));
            if done {
                return Ok(());
            }
        }
    }

    /// Asks for the next records of all partitions that have not been read to their ends.
    async fn send(&mut self, stream: &mut TcpStream, output: &mut BytesMut) -> Result<(), &'static str> {
        // A broker serves the first ones first, up to the limit of the fetch.
        let turns = (self.first..self.positions.len()).chain(0..self.first);
        self.under_way = turns.filter(|index| !self.positions[*index].is_done()).collect();
        let request = Request::Fetch(FetchRequest {
            max_wait_ms: MAX_WAIT_MS,
            min_bytes: 1,
            max_bytes: self.reading.args.fetch_bytes as u32,
            partitions: self.under_way.iter().map(|index| self.positions[*index].asked.clone()).collect(),
        });
        output.clear();
        encode_request(output, Flags::NONE, 0, &request);
        stream.write_all(output).await.map_err(|_| CONNECTION_LOST)?;
        Ok(())
    }

    /// Verifies and counts what has come.
    fn count(&self, arrived: &Arrived, at: u64) {
        let reading = &*self.reading;
        let (mut count, mut bytes) = (0, 0);
        for (batch, header) in &arrived.batches {
            if !reading.args.no_checksums
                && let Err(error) = check(batch)
            {
                reading.failed(error.code().name());
                continue;
            }
            // The first batch may begin before what was asked for.
            let skipped = arrived.wanted_from.saturating_sub(header.base_offset);
            let new = u64::from(header.record_count).saturating_sub(skipped);
            count += new;
            bytes += batch.len() as u64;
            if let Some(deliveries) = &reading.deliveries {
                let limits = Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: MAX_DECOMPRESSED };
                let first = records(batch, &limits).ok().and_then(|mut records| records.next()?.ok());
                if let Some(stamp) = first.and_then(|record| Stamp::read(&record.value?)) {
                    deliveries.borrow_mut().delivered(stamp.id, stamp.due, at, new as u32, batch.len() as u32);
                }
            }
        }
        reading.progress.fetch_add(count, Ordering::Relaxed);
        reading.recorder.borrow_mut().received(at, count, bytes);
    }
}

impl Position {
    fn is_done(&self) -> bool {
        self.asked.offset >= self.end
    }

    /// Takes a fetch's batches and moves on behind them.
    fn advance(&mut self, fetched: FetchedPartition) -> Result<Arrived, &'static str> {
        if fetched.error != ErrorCode::None {
            return Err(fetched.error.name());
        }
        let wanted_from = self.asked.offset;
        let mut batches = Vec::new();
        for batch in split(fetched.records.into_bytes()) {
            let batch = batch.map_err(|error| error.code().name())?;
            let header = BatchHeader::parse(&batch).map_err(|error| error.code().name())?;
            self.asked.offset = header.last_offset() + 1;
            batches.push((batch, header));
        }
        Ok(Arrived { batches, wanted_from })
    }
}

/// Reads and reports.
pub(crate) fn run(args: &ConsumeArgs) -> Result<Report, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let cluster: &ClusterArgs = &args.cluster;
    let tasks = LocalSet::new();
    let (reading, offsets, watched) = tasks.block_on(&runtime, async {
        let client = client(&cluster.endpoints).await?;
        let topology = topics::look_up(&client, &topics::names(&cluster.topic, cluster.topics)).await?;
        let offsets = Offsets::at(&client, &topology, args.from).await?;
        let watched = Watch::new(&client, cluster).await;
        let clock = Clock::start();
        let window = Window::after(clock.now(), Duration::ZERO, args.duration);
        Ok::<_, BenchError>((Reading::new(&topology, &args.reading, clock, window), offsets, watched))
    })?;
    let (clock, window, progress) = (reading.clock, reading.recorder.borrow().window(), reading.progress.clone());
    let ended = std::sync::Arc::new(AtomicBool::new(false));
    let watcher = {
        let ended = ended.clone();
        std::thread::Builder::new().name("watch".into()).spawn(move || {
            let usage = watch(&watched, &clock, window, &progress, &ended);
            (usage, watched)
        })?
    };
    let reading = Rc::new(reading);
    let finished = tasks.block_on(&runtime, async {
        let all = async {
            for _ in 0..args.laps {
                for reader in reading.clone().start(&offsets) {
                    let _ = reader.await;
                }
            }
        };
        let _ = tokio::time::timeout_at(clock.instant(window.until).into(), all).await;
        clock.now().min(window.until)
    });
    ended.store(true, Ordering::Relaxed);
    let (usage, watched) = watcher.join().map_err(|_| BenchError::Thread)?;
    drop(tasks);
    let partitions = reading.topology.targets.len();
    let load = format!(
        "consume: {} of {}, from the {}, checksums {}",
        counted(args.reading.consumers.into(), "consumer"),
        counted(partitions as u64, "partition"),
        args.from.name(),
        if args.reading.no_checksums { "not verified" } else { "verified" }
    );
    let duration = Duration::from_nanos(finished - window.from);
    let mut report = Report::new(load, duration, &reading.recorder.borrow());
    report.with_usage(usage?, watched.environment(None));
    Ok(report)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use lnc_client::Record;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::execute;
    use crate::support::Cluster;

    async fn run_against(cluster: &Cluster, more: &str) -> Report {
        let line = format!("lnc-bench consume --endpoint {} --topic t {more}", cluster.address(1));
        let command = Cli::try_parse_from(line.split_whitespace()).unwrap().command;
        assert!(matches!(command, Command::Consume(_)));
        tokio::task::spawn_blocking(move || execute(&command)).await.unwrap().unwrap()
    }

    async fn cluster() -> Cluster {
        let cluster = Cluster::start(2, 2).await;
        cluster.lead(1, 2);
        let producer = cluster.client().await.producer("t").build().await.unwrap();
        for number in 0..300u32 {
            let record = Record::new(format!("value {number}")).partition(number % 2);
            producer.enqueue(record).await.unwrap();
            if number % 50 == 0 {
                producer.flush().await.unwrap();
            }
        }
        producer.close().await.unwrap();
        cluster
    }

    #[tokio::test]
    async fn reading_stops_at_the_end_and_counts_everything() {
        let cluster = cluster().await;
        let report = run_against(&cluster, "--duration 10s").await;
        assert_eq!((report.records, report.errors.len()), (300, 0), "{report}");
        assert!(report.seconds < 5.0 && report.megabytes_per_second > 0.0, "{report}");
        let report = run_against(&cluster, "--from end --duration 50ms").await;
        assert_eq!((report.records, report.errors.len()), (0, 0), "{report}");
    }

    #[tokio::test]
    async fn consumers_share_partitions_and_surplus_ones_read_them_again() {
        let cluster = cluster().await;
        assert_eq!(run_against(&cluster, "--consumers 2 --duration 10s").await.records, 300);
        assert_eq!(run_against(&cluster, "--consumers 4 --duration 10s").await.records, 600);
    }

    #[tokio::test]
    async fn laps_read_everything_again() {
        let cluster = cluster().await;
        assert_eq!(run_against(&cluster, "--laps 3 --duration 10s").await.records, 900);
    }

    #[tokio::test]
    async fn damage_is_an_error_unless_checksums_are_not_wanted() {
        let cluster = cluster().await;
        cluster.damage(0, 1);
        let report = run_against(&cluster, "--duration 10s").await;
        assert_eq!(report.errors["CorruptBatch"], 1, "{report}");
        assert!((1..300).contains(&report.records), "{report}");
        let report = run_against(&cluster, "--duration 10s --no-checksums").await;
        assert_eq!((report.records, report.errors.len()), (300, 0), "{report}");
    }
}
