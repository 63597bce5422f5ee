//! Faults for real processes: nodes that this starts, or a cluster that runs, with real clients, clocks, disks and networks.
//!
//! [`run`] starts the cluster, has the [`workload`]'s clients write and read, lets the [`nemesis`] carry out a
//! [`schedule`] of faults meanwhile, reads everything back from every replica, and gives a [`Report`] with a verdict.
//! Records are checked by the rules of the simulator ([`checker`]). A seed repeats the choice of faults and victims, not
//! the timing of a machine.

mod checker;
mod cluster;
mod enclosure;
mod error;
pub mod fault;
mod history;
pub mod html;
mod kubernetes;
mod ledger;
mod nemesis;
mod network;
mod node;
mod proxy;
mod readback;
pub mod report;
pub mod schedule;
pub mod stalls;
mod system;
mod volume;
mod workload;

pub use checker::Counts;
pub use error::LiveError;
pub use ledger::{Column, Struck};
pub use network::PartitionBy;
pub use report::{MaxStall, Report};
pub use workload::Rate;

use self::checker::Checker;
use self::cluster::{Cluster, Wanted, needs};
use self::error::{Result, client, os};
use self::fault::{Fault, Need};
use self::history::{Event, History};
use self::kubernetes::Pods;
use self::ledger::Ledger;
use self::nemesis::{Nemesis, Target};
use self::readback::Reading;
use self::report::{Context, milliseconds};
use self::schedule::{Schedule, Source};
use self::stalls::{Longest, Stalls};
use self::workload::{Clients, Phase, Workload};
use crate::sim::rng::Rng;
use lance::cli::counted;
use lance::config::units::format_duration;
use lnc_client::{Client, ErrorCode, TopicOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

/// Between two looks at how far something has come.
const POLL: Duration = Duration::from_millis(50);

/// Which cluster to work on.
#[derive(Clone, Debug)]
pub enum Where {
    /// Nodes of its own, run by this program, with these settings ("section.key=value").
    Own {
        /// How many.
        nodes: u64,
        /// The program `lance`, or one that does the same, and arguments that come before those of a node.
        program: Vec<String>,
        /// Settings for all of them.
        settings: Vec<String>,
    },
    /// A cluster that runs, reached at these addresses.
    Running(Vec<String>),
    /// A stateful set, reached at these addresses, or through ports that are forwarded to its pods.
    Pods {
        /// Its namespace.
        namespace: String,
        /// Its name.
        statefulset: String,
        /// Addresses; none to have ports forwarded.
        endpoints: Vec<String>,
    },
}

/// What run to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which cluster.
    pub place: Where,
    /// The topic; it must not exist. One of its own if not given.
    pub topic: Option<String>,
    /// Partitions of the topic.
    pub partitions: u32,
    /// How many producers.
    pub producers: u32,
    /// How fast they go.
    pub rate: Rate,
    /// Time before the first fault.
    pub warmup: Duration,
    /// Time in which faults strike; `None` for as long as the schedule takes.
    pub duration: Option<Duration>,
    /// Time after the last fault in which clients go on.
    pub post_roll: Duration,
    /// How long what is under way, and replicas that are behind, are waited for in the end.
    pub drain_timeout: Duration,
    /// Time between two lines about how it goes; `None` for none.
    pub report_interval: Option<Duration>,
    /// The faults.
    pub source: Source,
    /// Time between the beginnings of two faults.
    pub every: Duration,
    /// How long a fault lasts.
    pub hold: Duration,
    /// How many faults, or rounds of them.
    pub repeat: Option<u64>,
    /// Everything that is drawn follows from it.
    pub seed: u64,
    /// How nodes are cut apart.
    pub partition_by: PartitionBy,
    /// Bounds on stalls.
    pub bounds: Vec<MaxStall>,
    /// Directory for configurations, logs and data of nodes; made if it does not exist.
    pub home: PathBuf,
    /// File for the history.
    pub history: Option<PathBuf>,
}

impl Source {
    /// All faults that it may give.
    pub fn faults(&self) -> Vec<Fault> {
        match self {
            Self::Turns(faults) | Self::Random(faults) => faults.clone(),
            Self::Listed(strikes) => strikes.iter().map(|strike| strike.fault).collect(),
        }
    }
}

/// The faults that can be drawn at random here: those that the place allows and this machine has what they need for.
pub fn possible(place: &Where, by: PartitionBy) -> Vec<Fault> {
    let fits = |fault: Fault, need: Need| match (place, need) {
        (Where::Own { .. }, Need::Kubernetes) | (Where::Running(_), _) => false,
        // Where packet filters can do it they do; the proxy is for who asks for it.
        (Where::Own { .. }, Need::Proxy) => by == PartitionBy::Proxy,
        (Where::Own { .. }, _) => needs(&[fault], by).is_ok(),
        (Where::Pods { .. }, need) => need == Need::Kubernetes,
    };
    fault::ALL.iter().filter(|(fault, _, need, _)| fits(*fault, *need)).map(|(fault, ..)| *fault).collect()
}

/// Make sure that this process has what the faults need, before anything else happens: it may start itself anew inside
/// namespaces of its own, and then does not return.
///
/// # Errors
/// If a fault cannot be done to this cluster, or needs what is not there.
pub fn prepare(options: &Options) -> Result<()> {
    let faults = options.source.faults();
    let unfit = |fits: fn(Need) -> bool, of: &str| match faults.iter().find(|fault| !fits(fault.need())) {
        Some(fault) => Err(LiveError::Unavailable(format!("{fault} cannot be done to {of}"))),
        None => Ok(()),
    };
    match &options.place {
        Where::Own { .. } => {
            unfit(|need| need != Need::Kubernetes, "processes: give --namespace and --statefulset")?;
            let (partition_by, volumes) = needs(&faults, options.partition_by)?;
            let network = partition_by == Some(PartitionBy::Netns);
            enclosure::enter(enclosure::Wants { mounts: volumes.is_some(), network })
        }
        Where::Running(_) => unfit(|_| false, "a cluster that runs elsewhere: only --fault none"),
        Where::Pods { .. } => unfit(|need| need == Need::Kubernetes, "pods"),
    }
}

/// Make a run. [`prepare`] has been called before.
///
/// # Errors
/// If the run cannot be carried out; a promise that is broken is in the report. All processes have ended in any case.
pub fn run(options: &Options) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(os("start a runtime"))?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(os("watch for SIGINT"))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(os("watch for SIGTERM"))?;
        let interrupted = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::pin!(interrupted);
        let (mut target, endpoints) = tokio::select! {
            target = set_up(options) => target?,
            () = &mut interrupted => return Err(LiveError::Interrupted),
        };
        let result = tokio::select! {
            result = drive(options, &mut target, endpoints) => result,
            () = &mut interrupted => Err(LiveError::Interrupted),
        };
        if let Target::Own(cluster) = &mut target {
            cluster.end().await;
        }
        result
    })
}

/// The cluster, ready, and where clients reach it.
async fn set_up(options: &Options) -> Result<(Target, Vec<String>)> {
    match &options.place {
        Where::Own { nodes, program, settings } => {
            let (partition_by, volumes) = needs(&options.source.faults(), options.partition_by)?;
            let (program, settings, home) = (program.clone(), settings.clone(), options.home.clone());
            let wanted = Wanted { nodes: *nodes, program, home, settings, partition_by, volumes };
            let cluster = Cluster::start(&wanted).await?;
            let endpoints = cluster.endpoints();
            Ok((Target::Own(cluster), endpoints))
        }
        Where::Running(endpoints) => Ok((Target::Running, endpoints.clone())),
        Where::Pods { namespace, statefulset, endpoints } => {
            let mut pods = Pods::find(namespace, statefulset).await?;
            pods.wait_ready().await?;
            let endpoints = if endpoints.is_empty() { pods.forward()? } else { endpoints.clone() };
            Ok((Target::Pods(pods), endpoints))
        }
    }
}

/// Have everything happen, and report.
async fn drive(options: &Options, target: &mut Target, endpoints: Vec<String>) -> Result<Report> {
    let builder = Client::builder().endpoints(endpoints.clone()).client_name("lnc-chaos");
    // Where others have started it, nobody who listens means that it is not there.
    let client_of_cluster = builder.refusal_is_final(matches!(target, Target::Running)).build().await;
    let client_of_cluster = client_of_cluster.map_err(client("connect to the cluster"))?;
    let topic = options.topic.clone().unwrap_or_else(|| format!("lnc-chaos-{:x}", options.seed));
    let topic_id = make_topic(&client_of_cluster, &topic, options.partitions).await?;
    let ledger = books(options, &topic, topic_id)?;
    let workload = Workload {
        endpoints: endpoints.clone(),
        topic: topic.clone(),
        partitions: options.partitions,
        producers: options.producers,
        rate: options.rate,
        delivery_timeout: options.drain_timeout,
    };
    let mut clients = Clients::start(workload, ledger.clone()).map_err(os("start the clients"))?;
    let mut nemesis = Nemesis {
        target,
        ledger: ledger.clone(),
        client: client_of_cluster.clone(),
        topic: topic.clone(),
        partitions: options.partitions,
        rng: Rng::fork(options.seed, 0x4e3e),
    };
    let outcome = tokio::select! {
        result = trouble(options, &mut nemesis, &clients) => result,
        () = tell(options.report_interval, &ledger) => Ok(()),
        () = end_of(&clients) => Ok(()),
    };
    outcome?;
    if clients.have_ended() {
        clients.end().map_err(client("start the clients"))?;
    }
    drain(options, &clients, &ledger).await;
    let reading = Reading {
        client: &client_of_cluster,
        ledger: &ledger,
        topic: &topic,
        topic_id,
        partitions: options.partitions,
        endpoints,
        patience: options.drain_timeout,
    };
    let replicas = reading.run().await?;
    clients.end().map_err(client("end the clients"))?;
    find_panics(target, &ledger);
    let report = close(options, &ledger, &topic, replicas)?;
    if report.passed() && !matches!(target, Target::Own(_)) {
        client_of_cluster.delete_topic(&topic).await.map_err(client("delete the topic"))?;
    }
    if let (false, Target::Pods(pods)) = (report.passed(), &*target) {
        pods.save_logs(&options.home).await?;
    }
    Ok(report)
}

async fn make_topic(cluster: &Client, topic: &str, partitions: u32) -> Result<u64> {
    match cluster.create_topic_with_retention(topic, partitions, TopicOptions::default()).await {
        Ok(made) => Ok(made.topic_id),
        Err(error) if error.code() == Some(ErrorCode::TopicExists) => {
            let why =
                format!("topic {topic} exists, and what is in it is not of this run: name another one with --topic");
            Err(LiveError::Unavailable(why))
        }
        Err(error) => Err(client("create the topic")(error)),
    }
}

fn books(options: &Options, topic: &str, topic_id: u64) -> Result<Ledger> {
    let Options { partitions, producers, seed, .. } = *options;
    let history = match &options.history {
        Some(path) => History::create(path).map_err(os(format!("write {}", path.display())))?,
        None => History::default(),
    };
    let checker = Checker::new(topic, topic_id, producers, partitions);
    let ledger = Ledger::new(checker, Stalls::new(producers as usize, partitions as usize), history);
    ledger.lock().history.note(&Event::Run { seed, topic, partitions, producers });
    Ok(ledger)
}

/// Warm-up, faults, post-roll.
async fn trouble(options: &Options, nemesis: &mut Nemesis<'_>, clients: &Clients) -> Result<()> {
    nemesis.watch_until(Instant::now() + options.warmup).await;
    // What the start cost is not part of the figures.
    nemesis.ledger.lock().stalls.longest = Longest::default();
    let Options { every, hold, repeat, seed, .. } = *options;
    let schedule = Schedule::new(options.source.clone(), every, hold, repeat, seed);
    let end = options.duration.map(|duration| Instant::now() + duration);
    let mut enough = signal(SignalKind::user_defined1()).map_err(os("watch for SIGUSR1"))?;
    tokio::select! {
        result = nemesis.run(schedule, end) => result?,
        // What this program has not struck needs nobody to take it back.
        _ = enough.recv(), if matches!(options.place, Where::Running(_)) => {}
    }
    nemesis.watch_until(Instant::now() + options.post_roll).await;
    clients.enter(Phase::Drain);
    Ok(())
}

async fn end_of(clients: &Clients) {
    while !clients.have_ended() {
        sleep(POLL).await;
    }
}

/// Tell how it goes, for ever.
async fn tell(interval: Option<Duration>, ledger: &Ledger) {
    let Some(interval) = interval else { return std::future::pending().await };
    let (mut acknowledged, mut consumed) = (0, 0);
    loop {
        sleep(interval).await;
        let books = ledger.lock();
        let counts = &books.checker.counts;
        let rate = |now: u64, before: u64| (now - before) as f64 / interval.as_secs_f64();
        let fault = books.struck.last().filter(|struck| struck.whole_us.is_none());
        println!(
            "{:>8.1} s  {:>9.0} acknowledged/s  {:>9.0} read/s  {:>5} under way  longest gap {:>10}  {} findings  {}",
            books.now() as f64 / 1e6,
            rate(counts.acknowledged, acknowledged),
            rate(counts.consumed, consumed),
            books.stalls.outstanding(),
            milliseconds(books.stalls.longest.partition_us),
            counts.broken(),
            fault.map_or(String::new(), |struck| format!("{}: {}", struck.fault, struck.what)),
        );
        (acknowledged, consumed) = (counts.acknowledged, counts.consumed);
    }
}

/// Wait until everything is answered and read.
async fn drain(options: &Options, clients: &Clients, ledger: &Ledger) {
    clients.enter(Phase::Drain);
    let deadline = Instant::now() + options.drain_timeout;
    let is_drained = || {
        let books = ledger.lock();
        books.stalls.outstanding() == 0 && books.checker.is_read_along()
    };
    while !is_drained() && Instant::now() < deadline {
        sleep(POLL).await;
    }
    let mut books = ledger.lock();
    let now = books.now();
    books.stalls.finish(now);
    let under_way = books.stalls.outstanding();
    if under_way > 0 {
        books.broken(format!(
            "not answered after {}: {}",
            format_duration(options.drain_timeout),
            counted(under_way, "record")
        ));
    }
}

fn find_panics(target: &Target, ledger: &Ledger) {
    let Target::Own(cluster) = target else { return };
    for node in cluster.nodes.iter().filter(|node| node.has_panicked()) {
        ledger.lock().broken(format!("node {} has panicked, see its log", node.id));
    }
}

/// The books are closed.
fn close(options: &Options, ledger: &Ledger, topic: &str, replicas: usize) -> Result<Report> {
    let mut books = ledger.lock();
    books.checker.finish();
    books.history.finish().map_err(os("write the history"))?;
    let context = Context {
        seed: options.seed,
        topic,
        partitions: options.partitions,
        producers: options.producers,
        replicas,
        bounds: &options.bounds,
    };
    Ok(Report::new(&books, &context))
}

/// Remove what nodes have stored below a run's directory; configurations and logs stay.
///
/// # Errors
/// If something cannot be removed.
pub fn discard_data(home: &Path) -> Result<()> {
    let read = |path: &Path| std::fs::read_dir(path).map_err(os(format!("read {}", path.display())));
    for cluster in read(home)?.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("cluster")) {
        for entry in read(&cluster.path())?.flatten() {
            let is_disk = entry.file_name().to_string_lossy().starts_with("disk-");
            let path = if is_disk { entry.path() } else { entry.path().join("data") };
            let removed = if path.is_symlink() { std::fs::remove_file(&path) } else { std::fs::remove_dir_all(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(os(format!("remove {}", path.display()))(error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
