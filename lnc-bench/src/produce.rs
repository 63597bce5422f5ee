//! Produces, in a closed loop (as many requests as go, with a fixed number under way) or an open one (at a rate that
//! nothing slows down), and with a consumer beside it if end-to-end latency is wanted.
//!
//! [`run`] makes the topics and starts the threads; each [`load`] runs its share of the [`line`](crate::line)s.

use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lnc_client::Client;
use lnc_protocol::message::{ProduceRequest, Request};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::args::{ClusterArgs, LoadArgs, ReadingArgs};
use crate::batches::{BatchSpec, Batches, STAMP_LEN};
use crate::consume::{Offsets, Reading};
use crate::delivery::Deliveries;
use crate::line::{Line, PATIENCE, Shared};
use crate::measure::{Clock, Recorder, Window};
use crate::report::{Latency, Report};
use crate::schedule::{OpenPace, Pace};
use crate::topics::{self, Topology};
use crate::watch::{Watch, watch};
use crate::words::{counted, time};
use crate::{BenchError, client, now_ms, wire};

/// The time from the start of the threads to the start of the warm-up, for connecting: for all, and for each line.
const HEAD_START: Duration = Duration::from_millis(100);
const HEAD_START_OF_LINE: Duration = Duration::from_millis(1);

/// The shortest time from one look at what is due to the next, in nanoseconds. What becomes due in between is sent
/// late by no more than this, and its latency says so.
const SHORTEST_TICK: u64 = 100_000;

/// How often a run with a consumer looks whether everything has been delivered.
const DELIVERY_POLL: Duration = Duration::from_millis(5);

/// What all threads need to know.
pub(crate) struct Plan {
    pub(crate) args: LoadArgs,
    pub(crate) cluster: ClusterArgs,
    /// If there is to be a consumer.
    pub(crate) reading: Option<ReadingArgs>,
    pub(crate) clock: Clock,
    pub(crate) window: Window,
    pub(crate) topology: Topology,
    /// The targets of each line.
    pub(crate) shares: Vec<Vec<usize>>,
    /// For each target, the start of a produce request: all but the batch.
    pub(crate) prefixes: Vec<Bytes>,
    pub(crate) batches: BatchSpec,
    /// Records acknowledged so far.
    pub(crate) progress: AtomicU64,
    pub(crate) failed: AtomicBool,
    /// Topics that did not exist before.
    pub(crate) created: Vec<String>,
}

/// What the threads counted.
struct Counted {
    recorder: Recorder,
    deliveries: Option<Deliveries>,
}

/// Runs the load and reports.
pub(crate) fn run(cluster: &ClusterArgs, args: &LoadArgs, reading: Option<&ReadingArgs>) -> Result<Report, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (plan, watched) = runtime.block_on(async {
        let client = client(&cluster.endpoints).await?;
        let plan = Plan::new(&client, cluster, args, reading).await?;
        let watched = Watch::new(&client, cluster).await;
        Ok::<_, BenchError>((Arc::new(plan), watched))
    })?;
    drop(runtime);
    let count = args.threads.min(args.connections);
    let mut threads = Vec::new();
    for thread in 0..count {
        let plan = plan.clone();
        threads.push(std::thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
            let result = load(&plan, thread, count);
            plan.failed.fetch_or(result.is_err(), Ordering::Relaxed);
            result
        })?);
    }
    let usage = watch(&watched, &plan.clock, plan.window, &plan.progress, &plan.failed);
    let mut total = Recorder::new(plan.window);
    let mut deliveries = None;
    for thread in threads {
        let counted = thread.join().map_err(|_| BenchError::Thread)??;
        total.merge(&counted.recorder);
        deliveries = deliveries.or(counted.deliveries);
    }
    topics::clean_up(cluster, &plan.created);
    let mut report = Report::new(describe(&plan), args.duration, &total);
    report.offered_per_second = args.rate;
    report.with_usage(usage?, watched.environment(Some(args.acks.name())));
    if let Some(deliveries) = deliveries {
        report.end_to_end = Latency::of(&deliveries.recorder.latencies);
        report.delivery = Latency::of(&deliveries.after_acknowledgement);
        let missing = deliveries.records_acknowledged.saturating_sub(deliveries.records_delivered);
        if missing > 0 {
            report.errors.insert("acknowledged and not delivered".into(), missing);
        }
        for (error, count) in &deliveries.recorder.errors {
            *report.errors.entry(format!("fetch: {error}")).or_default() += count;
        }
    }
    Ok(report)
}

fn describe(plan: &Plan) -> String {
    let args = &plan.args;
    let threads = args.threads.min(args.connections);
    let kind = if plan.reading.is_some() { "produce and consume" } else { "produce" };
    let pace = match args.rate {
        None => "closed loop".to_owned(),
        Some(rate) => format!("open loop, {rate} records/s"),
    };
    let mut text = format!(
        "{kind}: {} × {} in flight ({pace}, {}), {} × {} per request, {}, acks {}, {} with {} in all, after {} of warm-up",
        counted(args.connections.into(), "connection"),
        counted(args.in_flight.into(), "request"),
        counted(threads.into(), "thread"),
        args.batch_records,
        args.payload,
        args.keys,
        args.acks.name(),
        counted(plan.cluster.topics.into(), "topic"),
        counted(plan.topology.targets.len() as u64, "partition"),
        time(args.warmup),
    );
    if args.compression != crate::args::CodecArg::None || args.compressible > 0.0 {
        text += &format!(", compression {}, {:.0} % compressible", args.compression.name(), args.compressible * 100.0);
    }
    text
}

impl Plan {
    async fn new(
        client: &Client,
        cluster: &ClusterArgs,
        args: &LoadArgs,
        reading: Option<&ReadingArgs>,
    ) -> Result<Plan, BenchError> {
        let names = topics::names(&cluster.topic, cluster.topics);
        let created = topics::create(client, &names, args.partitions).await?;
        let topology = topics::look_up(client, &names).await?;
        let leaders: Vec<_> = topology.targets.iter().map(|target| target.leader).collect();
        let batches = BatchSpec {
            sizes: args.payload.clone(),
            keys: args.keys,
            records: args.batch_records,
            codec: args.compression.codec(),
            compressible: args.compressible,
            stamped: reading.is_some(),
            timestamp_ms: now_ms(),
        };
        if batches.stamped && args.payload.smallest() < STAMP_LEN {
            return Err(BenchError::PayloadTooSmall { least: STAMP_LEN });
        }
        let address = topology.address(leaders[0]).ok_or(BenchError::NoNodes)?;
        let hello = wire::connect(address)
            .await
            .map_err(|problem| BenchError::Connect { address: address.clone(), problem })?;
        let (size, limit) = (Batches::new(&batches, 0, 1).longest(), hello.1.max_batch_bytes as usize);
        if size > limit {
            return Err(BenchError::BatchTooLarge { size, limit });
        }
        let clock = Clock::start();
        let head_start = HEAD_START + HEAD_START_OF_LINE * args.connections;
        Ok(Plan {
            args: args.clone(),
            cluster: cluster.clone(),
            reading: reading.cloned(),
            window: Window::after(clock.now(), head_start + args.warmup, args.duration),
            clock,
            shares: topics::assign(&leaders, args.connections as usize),
            prefixes: topology.targets.iter().map(|target| prefix(args, target)).collect(),
            topology,
            batches,
            progress: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            created,
        })
    }

    /// The pace of a line.
    fn pace(&self, line: u64) -> Pace {
        let Some(rate) = self.args.rate else { return Pace::Closed { until: self.window.until } };
        let start = self.window.from - self.args.warmup.as_nanos() as u64;
        let requests = rate / f64::from(self.args.batch_records);
        Pace::Open(OpenPace::new(start, self.window.until, requests, line, u64::from(self.args.connections)))
    }
}

/// The start of every produce request to a target: all but the batch and its length.
fn prefix(args: &LoadArgs, target: &topics::Target) -> Bytes {
    let request = Request::Produce(ProduceRequest {
        acks: args.acks.acks(),
        timeout_ms: PATIENCE.as_millis() as u32,
        topic: target.topic.clone(),
        topic_id: target.topic_id,
        partition: target.partition,
        batch: Bytes::new(),
    });
    let mut body = BytesMut::new();
    request.encode_body(&mut body);
    // The batch comes last: its length, and then nothing.
    body.truncate(body.len() - size_of::<u32>());
    body.freeze()
}

/// The load of one thread: its share of the lines, and the consumers if there are any.
fn load(plan: &Arc<Plan>, thread: u32, threads: u32) -> Result<Counted, BenchError> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    let counted = tasks.block_on(&runtime, async {
        let client = client(&plan.cluster.endpoints).await?;
        let deliveries = plan.reading.is_some().then(|| Rc::new(RefCell::new(Deliveries::new(plan.window))));
        let mut readers = Vec::new();
        if let (Some(reading), Some(deliveries)) = (&plan.reading, &deliveries) {
            let start = Offsets::at(&client, &plan.topology, crate::args::From::End).await?;
            let reading = Reading::new(&plan.topology, reading, plan.clock, plan.window);
            readers = Rc::new(reading.with_deliveries(deliveries.clone())).start(&start);
        }
        let shared = Rc::new(Shared {
            plan: plan.clone(),
            client,
            batches: RefCell::new(Batches::new(&plan.batches, u64::from(thread), u64::from(threads))),
            recorder: RefCell::new(Recorder::new(plan.window)),
            deliveries,
        });
        let (mut lines, mut paces) = (Vec::new(), Vec::new());
        for line in (thread..plan.args.connections).step_by(threads as usize) {
            let (pace, wake) = (plan.pace(u64::from(line)), Rc::new(Notify::new()));
            if let Pace::Open(open) = &pace {
                paces.push((open.clone(), wake.clone()));
            }
            let line = Line::new(shared.clone(), plan.shares[line as usize].clone(), pace, wake);
            lines.push(tokio::task::spawn_local(line.run()));
        }
        let all = async {
            for line in lines {
                line.await.map_err(|_| BenchError::Thread)?;
            }
            Ok::<_, BenchError>(())
        };
        tokio::select! {
            result = all => result?,
            result = keep_pace(plan.clock, paces) => return Err(result.err().map_or(BenchError::Thread, BenchError::Io)),
        }
        if let Some(deliveries) = &shared.deliveries {
            await_deliveries(deliveries).await;
        }
        readers.iter().for_each(|reader| reader.abort());
        for reader in readers {
            // Cancelled, on purpose.
            let _ = reader.await;
        }
        let shared = Rc::into_inner(shared).ok_or(BenchError::Thread)?;
        let deliveries = shared.deliveries.and_then(Rc::into_inner).map(RefCell::into_inner);
        Ok::<_, BenchError>(Counted { recorder: shared.recorder.into_inner(), deliveries })
    })?;
    Ok(counted)
}

/// Waits until what was acknowledged has been delivered, or for so long that it will not be.
async fn await_deliveries(deliveries: &RefCell<Deliveries>) {
    let behind = || {
        let deliveries = deliveries.borrow();
        deliveries.records_delivered < deliveries.records_acknowledged
    };
    let wait = async {
        while behind() {
            tokio::time::sleep(DELIVERY_POLL).await;
        }
    };
    let _ = tokio::time::timeout(PATIENCE, wait).await;
}

/// Wakes each line of the open loop when one of its requests is due. The runtime's own timers are as coarse as a
/// millisecond, which would be counted as latency.
pub(crate) async fn keep_pace(clock: Clock, mut lines: Vec<(OpenPace, Rc<Notify>)>) -> std::io::Result<()> {
    if lines.is_empty() {
        std::future::pending::<()>().await;
    }
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    let timer = watch_timer(timer)?;
    loop {
        let now = clock.now();
        let mut next = u64::MAX;
        for (pace, wake) in &mut lines {
            if pace.next_look() <= now {
                wake.notify_one();
                while pace.peek().is_some_and(|due| due <= now) {
                    pace.next += pace.lines;
                }
            }
            next = next.min(pace.next_look().max(now + SHORTEST_TICK));
        }
        let wait = next - now;
        let value = Timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // Setting the timer takes back an expiry that was not read.
        rustix::time::timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        timer.readable().await?.clear_ready();
    }
}

/// Has the runtime watch a timer.
#[expect(
    deprecated,
    reason = "its safe successor takes an unsafe block; an OwnedFd stays open for as long as it is owned"
)]
fn watch_timer(timer: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(timer)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use lnc_protocol::ErrorCode;

    use super::*;
    use crate::args::Cli;
    use crate::execute;
    use crate::support::{Action, Cluster};

    async fn run_against(cluster: &Cluster, more: &str) -> Result<Report, BenchError> {
        let endpoint = cluster.address(1);
        let (command, more) = more.split_once(' ').unwrap();
        let payload = if more.contains("--payload") { "" } else { "--payload 20" };
        let line = format!(
            "lnc-bench {command} --endpoint {endpoint} --topic t --warmup 50ms --duration 200ms {payload} {more}"
        );
        let command = Cli::try_parse_from(line.split_whitespace()).unwrap().command;
        tokio::task::spawn_blocking(move || execute(&command)).await.unwrap()
    }

    #[tokio::test]
    async fn a_run_reports_what_the_broker_stored() {
        let cluster = Cluster::start(2, 2).await;
        cluster.lead(1, 2);
        let more = "produce --connections 4 --in-flight 3 --batch-records 2 --threads 2 --keys sequential";
        let report = run_against(&cluster, more).await.unwrap();
        assert!(report.records > 0 && report.records.is_multiple_of(2), "{report}");
        assert!(report.latency.as_ref().unwrap().requests * 2 <= report.records + 2 * 12, "{report}");
        assert!(report.errors.is_empty(), "{report}");
        assert!((report.megabytes_per_second * 1e6 * report.seconds - report.records as f64 * 20.0).abs() < 1.0);
        // The brokers of this test live in its process, where they are found.
        assert_eq!(report.servers.iter().map(|server| server.pid).collect::<Vec<_>>(), [std::process::id()]);
        assert!(cluster.batches(0) > 0 && cluster.batches(1) > 0);
        assert!(cluster.batches(0) + cluster.batches(1) >= report.records as usize / 2);
    }

    #[tokio::test]
    async fn the_open_loop_keeps_its_rate() {
        let cluster = Cluster::start(1, 1).await;
        let report = run_against(&cluster, "produce --connections 3 --rate 1000").await.unwrap();
        let requests = report.latency.as_ref().unwrap().requests;
        // A fifth of a second; the first of them may fall before the window, by rounding.
        assert!((199..=201).contains(&requests), "{report}");
        assert!(report.errors.is_empty() && report.unsent == 0, "{report}");
    }

    #[tokio::test]
    async fn a_broker_that_answers_nothing_more_leaves_no_request_uncounted() {
        let cluster = Cluster::start(1, 1).await;
        let mut count = 0;
        cluster.hook(move |request| {
            if !matches!(request.request, Request::Produce(_)) {
                return Action::Serve;
            }
            count += 1;
            if count > 100 { Action::Fail(ErrorCode::Overloaded.into()) } else { Action::Serve }
        });
        let report = run_against(&cluster, "produce --connections 1 --in-flight 4 --rate 2000").await.unwrap();
        // 400 requests were due in the window. What failed is an error; what was not sent has a latency.
        let requests = report.latency.as_ref().map_or(0, |latency| latency.requests);
        let errors = report.errors["Overloaded"];
        assert!(errors > 0 && report.unsent > 0, "{report}");
        assert!((399..=401).contains(&(requests + errors)), "{report}");
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
                3 => Action::Fail(ErrorCode::Overloaded.into()),
                7 => Action::Drop,
                _ => Action::Serve,
            }
        });
        let report = run_against(&cluster, "produce --connections 2 --in-flight 2").await.unwrap();
        assert!(report.records > 0, "{report}");
        assert!(report.errors["Overloaded"] > 0 && report.errors["connection lost"] > 0, "{report}");
    }

    #[tokio::test]
    async fn a_batch_over_the_brokers_limit_is_refused_beforehand() {
        let cluster = Cluster::start(1, 1).await;
        let error = run_against(&cluster, "produce --batch-records 100000").await.unwrap_err();
        assert!(matches!(error, BenchError::BatchTooLarge { limit: 1_048_576, .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_produced_is_delivered_and_both_latencies_are_told() {
        let cluster = Cluster::start(2, 3).await;
        cluster.lead(1, 2);
        let more = "both --connections 3 --rate 500 --consumers 2 --compression lz4 --batch-records 2";
        let report = run_against(&cluster, more).await.unwrap();
        assert!(report.errors.is_empty(), "{report}");
        let [latency, end_to_end, delivery] = [&report.latency, &report.end_to_end, &report.delivery]
            .map(|latency| latency.as_ref().map_or(0, |latency| latency.requests));
        assert!((49..=51).contains(&latency) && end_to_end == latency, "{report}");
        // How many depends on the time that they take: `delivery.rs` has which.
        assert!(delivery > 0, "{report}");
    }

    #[tokio::test]
    async fn values_that_cannot_hold_a_stamp_are_refused() {
        let cluster = Cluster::start(1, 1).await;
        let error = run_against(&cluster, "both --payload uniform:10-30").await.unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
    }

    #[tokio::test]
    async fn the_client_library_delivers_what_is_counted() {
        let cluster = Cluster::start(1, 2).await;
        for (pace, keys) in [("", ""), ("--rate 1000", "--keys random:100")] {
            let more =
                format!("produce --client --connections 2 --in-flight 50 --linger 1ms --compressible 1 {pace} {keys}");
            let report = run_against(&cluster, &more).await.unwrap();
            assert!(report.errors.is_empty() && report.records > 100, "{report}");
            let stored = cluster.values(0).len() + cluster.values(1).len();
            assert!(stored as u64 >= report.records, "{report}");
        }
    }
}
