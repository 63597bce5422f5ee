//! Produces in a closed loop: each connection keeps its number of requests under way and sends the next as soon as one
//! is answered.
//!
//! Batches carry no producer id: duplicates are not detected, and a request is not repeated. A failed one counts as
//! an error and is followed by another after a short pause.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use lnc_client::{Acks, Client, Codec, ConnectOptions, Connection, Error};
use lnc_protocol::batch::{BatchBuilder, HEADER_LEN, max_record_len};
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{ProduceRequest, Request};
use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::measure::{Recorder, Window};
use crate::report::{Latency, Report};
use crate::{AcksArg, BenchError, ProduceArgs, cpu};

/// How much random data the values are cut from, in bytes, beyond one value. Larger than the window of the codecs.
const NOISE_BYTES: usize = 4 * 1024 * 1024;

/// The time from the start of the threads to the start of the warm-up, for connecting.
const HEAD_START: Duration = Duration::from_millis(100);

/// The pause after a failed request.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// How often progress is shown.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// How long a request may stay unanswered after the end before it is given up and counted as an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the load and reports.
pub(crate) fn run(args: &ProduceArgs) -> Result<Report, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let plan = Arc::new(runtime.block_on(Plan::new(args))?);
    let window = Window::after(Instant::now() + HEAD_START, args.warmup, args.duration);
    let progress = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for thread in 0..args.threads.min(args.connections) {
        let (plan, progress, failed) = (plan.clone(), progress.clone(), failed.clone());
        threads.push(std::thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
            let result = load(&plan, thread, window, &progress);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        })?);
    }
    let cpu = watch(args, window, &progress, &failed);
    let mut total = Recorder::new(window);
    for thread in threads {
        total.merge(&thread.join().map_err(|_| BenchError::Thread)??);
    }
    let (before, after) = cpu?;
    let report = Report::new(describe(args), args.duration, total.records, total.bytes);
    let report = report.with_servers(&args.common.server_pids, &before, &after);
    Ok(Report { latency: Latency::of(&total.latencies), errors: total.errors, ..report })
}

fn describe(args: &ProduceArgs) -> String {
    let (connections, in_flight, threads) = (args.connections, args.in_flight, args.threads.min(args.connections));
    let (records, payload) = (args.batch_records, args.payload);
    format!(
        "produce: {connections} connections × {in_flight} requests in flight (closed loop, {threads} threads), \
         {records} × {payload} random bytes per request, acks {:?}, without producer ids, after {:?} of warm-up",
        acks(args),
        args.warmup
    )
}

fn acks(args: &ProduceArgs) -> Acks {
    match args.acks {
        AcksArg::None => Acks::None,
        AcksArg::Leader => Acks::Leader,
        AcksArg::Quorum => Acks::Quorum,
    }
}

/// Shows progress and takes the servers' CPU times at the start and the end of the window.
fn watch(
    args: &ProduceArgs,
    window: Window,
    progress: &AtomicU64,
    failed: &AtomicBool,
) -> Result<(Vec<Duration>, Vec<Duration>), BenchError> {
    let span = window.until.saturating_duration_since(Instant::now());
    let bar = ProgressBar::new(span.as_millis() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {msg}") {
        bar.set_style(style);
    }
    let mut last = (Instant::now(), 0);
    let mut wait_until = |until: Instant, phase: &str| {
        loop {
            let now = Instant::now();
            if now >= until || failed.load(Ordering::Relaxed) {
                return;
            }
            let count = progress.load(Ordering::Relaxed);
            let rate = (count - last.1) as f64 / (now - last.0).as_secs_f64().max(0.001);
            last = (now, count);
            bar.set_position((span - (window.until - now).min(span)).as_millis() as u64);
            bar.set_message(format!("{phase}: {rate:.0} records/s"));
            std::thread::sleep(PROGRESS_INTERVAL.min(until - now));
        }
    };
    wait_until(window.from, "warm-up");
    let before = cpu::times_of(&args.common.server_pids)?;
    wait_until(window.until, "measuring");
    let after = cpu::times_of(&args.common.server_pids)?;
    bar.finish_and_clear();
    Ok((before, after))
}

/// What all threads need to know.
struct Plan {
    args: ProduceArgs,
    partitions: u32,
    topic_id: u64,
    /// Random bytes to cut values from.
    noise: Bytes,
}

impl Plan {
    async fn new(args: &ProduceArgs) -> Result<Plan, BenchError> {
        let client = client(args).await?;
        let topic = client.ensure_topic(&args.common.topic, args.partitions).await?;
        let noise = noise(NOISE_BYTES + args.payload);
        let value = &noise[..args.payload];
        let size = HEADER_LEN + max_record_len(None, Some(value), &[]) * args.batch_records as usize;
        let plan =
            Plan { args: args.clone(), partitions: topic.partitions.len() as u32, topic_id: topic.topic_id, noise };
        let limit = plan.connect(&client, 0).await?.hello().max_batch_bytes as usize;
        if size > limit {
            return Err(BenchError::BatchTooLarge { size, limit });
        }
        Ok(plan)
    }

    /// A new connection to the leader of a partition.
    async fn connect(&self, client: &Client, partition: u32) -> Result<Connection, BenchError> {
        let topic = self.args.common.topic.as_str();
        let metadata = client.metadata(Some(&[topic])).await?;
        let partitions = metadata.topics.iter().filter(|found| found.name == topic).flat_map(|found| &found.partitions);
        let leader = partitions.filter(|found| found.partition == partition).find_map(|found| found.leader);
        let node = leader.and_then(|leader| metadata.nodes.iter().find(|node| node.id == leader));
        let node = node.ok_or_else(|| BenchError::NoLeader { topic: topic.into(), partition })?;
        let options = ConnectOptions { client_name: "lnc-bench".into(), ..ConnectOptions::default() };
        Ok(Connection::connect(&node.client_address, &options).await?)
    }

    fn request(&self, partition: u32) -> ProduceRequest {
        ProduceRequest {
            acks: acks(&self.args),
            timeout_ms: PATIENCE.as_millis() as u32,
            topic: self.args.common.topic.clone(),
            topic_id: self.topic_id,
            partition,
            batch: Bytes::new(),
        }
    }
}

/// A client for looking up leaders. Its connections belong to the runtime it is made on.
async fn client(args: &ProduceArgs) -> Result<Client, BenchError> {
    let endpoints = args.common.endpoints.clone();
    Ok(Client::builder().endpoints(endpoints).client_name("lnc-bench").build().await?)
}

/// Bytes that do not compress, the same in every run.
fn noise(len: usize) -> Bytes {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect::<Vec<u8>>().into()
}

/// The load of one thread: its share of the connections.
fn load(plan: &Arc<Plan>, thread: u32, window: Window, progress: &Arc<AtomicU64>) -> Result<Recorder, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(client(&plan.args))?;
    let recorder = Rc::new(RefCell::new(Recorder::new(window)));
    let tasks = LocalSet::new();
    let threads = plan.args.threads.min(plan.args.connections);
    for connection in (thread..plan.args.connections).step_by(threads as usize) {
        let line = Line {
            client: client.clone(),
            partition: connection % plan.partitions,
            window,
            recorder: recorder.clone(),
            progress: progress.clone(),
            connection: RefCell::new(None),
            connecting: tokio::sync::Mutex::new(()),
            cursor: Cell::new(connection as usize * 7919 % NOISE_BYTES),
            plan: plan.clone(),
        };
        let line = Rc::new(line);
        for _ in 0..plan.args.in_flight {
            tasks.spawn_local(line.clone().work());
        }
    }
    runtime.block_on(tasks);
    drop(runtime);
    Ok(Rc::into_inner(recorder).ok_or(BenchError::Thread)?.into_inner())
}

/// One connection and the requests under way on it.
struct Line {
    plan: Arc<Plan>,
    client: Client,
    partition: u32,
    window: Window,
    recorder: Rc<RefCell<Recorder>>,
    progress: Arc<AtomicU64>,
    /// `None` while there is none.
    connection: RefCell<Option<Connection>>,
    /// Held by the task that connects.
    connecting: tokio::sync::Mutex<()>,
    /// Where the next value starts in the noise.
    cursor: Cell<usize>,
}

impl Line {
    /// Keeps one request under way until the window ends.
    async fn work(self: Rc<Self>) {
        let args = &self.plan.args;
        let mut request = Request::Produce(self.plan.request(self.partition));
        let mut builder = BatchBuilder::new(Codec::None);
        let (records, bytes) = (u64::from(args.batch_records), u64::from(args.batch_records) * args.payload as u64);
        while Instant::now() < self.window.until {
            let Some(connection) = self.connection().await else {
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                continue;
            };
            if let Request::Produce(produce) = &mut request {
                produce.batch = self.batch(&mut builder);
            }
            let sent = Instant::now();
            let last = self.window.until.max(sent) + PATIENCE;
            let reply = connection.submit(&request, Flags::NO_FORWARD);
            let result = tokio::time::timeout_at(last.into(), reply).await;
            let answered = Instant::now();
            let error = match result {
                Ok(Ok(reply)) => match reply.result {
                    Ok(_) => {
                        self.recorder.borrow_mut().acknowledged(sent, answered, records, bytes);
                        self.progress.fetch_add(records, Ordering::Relaxed);
                        continue;
                    }
                    Err(reply) => reply.code.name().to_owned(),
                },
                Ok(Err(error)) => kind(&error).to_owned(),
                Err(_) => "no answer".to_owned(),
            };
            self.recorder.borrow_mut().failed(answered, error);
            self.connection.borrow_mut().take_if(|held| Arc::ptr_eq(held.address(), connection.address()));
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }

    /// The line's connection, made if there is none; `None` if that fails.
    async fn connection(&self) -> Option<Connection> {
        let held = || self.connection.borrow().clone();
        if let Some(connection) = held() {
            return Some(connection);
        }
        let _turn = self.connecting.lock().await;
        if let Some(connection) = held() {
            return Some(connection);
        }
        let attempt = self.plan.connect(&self.client, self.partition);
        match tokio::time::timeout_at(self.window.until.into(), attempt).await.ok()? {
            Ok(connection) => {
                *self.connection.borrow_mut() = Some(connection.clone());
                Some(connection)
            }
            Err(error) => {
                let kind = match &error {
                    BenchError::Client(error) => kind(error),
                    _ => "no leader",
                };
                self.recorder.borrow_mut().failed(Instant::now(), kind.to_owned());
                None
            }
        }
    }

    fn batch(&self, builder: &mut BatchBuilder) -> Bytes {
        let args = &self.plan.args;
        for _ in 0..args.batch_records {
            let start = self.cursor.get();
            // An odd step, so that values start anywhere.
            self.cursor.set((start + args.payload + 1) % NOISE_BYTES);
            let value = &self.plan.noise[start..start + args.payload];
            builder.append(0, None, Some(value), &[]).expect("the size was checked against the broker's limit");
        }
        builder.finish()
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::support::{Action, Cluster};
    use crate::{Cli, Command};

    fn args(cluster: &Cluster, more: &str) -> ProduceArgs {
        let endpoint = cluster.address(1);
        let line = format!("lnc-bench produce --endpoint {endpoint} --topic t --warmup 50ms --duration 200ms {more}");
        match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
            Command::Produce(args) => args,
            Command::Consume(_) => panic!("not what was asked for"),
        }
    }

    async fn run_against(cluster: &Cluster, more: &str) -> Result<Report, BenchError> {
        let args = args(cluster, more);
        tokio::task::spawn_blocking(move || run(&args)).await.unwrap()
    }

    #[tokio::test]
    async fn a_run_reports_what_the_broker_stored() {
        let cluster = Cluster::start(2, 2).await;
        cluster.lead(1, 2);
        let more = "--connections 4 --in-flight 3 --payload 10 --batch-records 2 --threads 2 --server-pid 1";
        let pid = std::process::id().to_string();
        let report = run_against(&cluster, &more.replace("pid 1", &format!("pid {pid}"))).await.unwrap();
        assert!(report.records > 0 && report.records % 2 == 0, "{report}");
        assert!(report.latency.as_ref().unwrap().requests * 2 <= report.records + 2 * 12, "{report}");
        assert!(report.errors.is_empty(), "{report}");
        assert!((report.megabytes_per_second * 1e6 * report.seconds - report.records as f64 * 10.0).abs() < 1.0);
        assert_eq!(report.servers.len(), 1);
        assert!(cluster.batches(0) > 0 && cluster.batches(1) > 0);
        assert!(cluster.batches(0) + cluster.batches(1) >= report.records as usize / 2);
    }

    #[tokio::test]
    async fn errors_are_counted_by_code_and_the_run_goes_on() {
        let cluster = Cluster::start(1, 1).await;
        let mut count = 0;
        cluster.hook(move |request| {
            if !matches!(request.request, Request::Produce(_)) {
                return Action::Serve;
            }
            count += 1;
            match count % 10 {
                3 => Action::Fail(lnc_protocol::ErrorCode::Overloaded.into()),
                7 => Action::Drop,
                _ => Action::Serve,
            }
        });
        let report = run_against(&cluster, "--connections 2 --in-flight 2 --payload 10").await.unwrap();
        assert!(report.records > 0, "{report}");
        assert!(report.errors["Overloaded"] > 0 && report.errors["connection lost"] > 0, "{report}");
    }

    #[tokio::test]
    async fn a_batch_over_the_brokers_limit_is_refused_beforehand() {
        let cluster = Cluster::start(1, 1).await;
        let error = run_against(&cluster, "--payload 2000000").await.unwrap_err();
        assert!(matches!(error, BenchError::BatchTooLarge { limit: 1_048_576, .. }), "{error}");
    }

    #[test]
    fn the_noise_does_not_repeat_itself() {
        let noise = noise(100_000);
        let mut builder = BatchBuilder::new(Codec::Zstd);
        builder.append(0, None, Some(&noise), &[]).unwrap();
        assert!(builder.build().len() > 99_000);
    }
}
