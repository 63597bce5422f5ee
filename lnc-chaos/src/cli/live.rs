//! `lnc-chaos live`.

use super::parse_duration;
use crate::live::fault::{self, Fault};
use crate::live::schedule::{self, Source};
use crate::live::{self, LiveError, MaxStall, Options, PartitionBy, Rate, Report, Where, html};
use clap::ValueEnum;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a run is, where neither --duration nor the faults say it.
const DURATION: Duration = Duration::from_secs(60);

/// What to do to which cluster.
#[derive(clap::Args)]
#[command(after_help = "\
Exit codes: 0 every promise was kept, 1 one was broken, 2 the run could not be carried out.
Lengths of time are seconds, or have a unit: 90, 90s, 2m, 1h, 500ms.
With --endpoint, SIGUSR1 ends the duration; what was written is checked all the same.

Examples:
  lnc-chaos live --list
  lnc-chaos live --fault kill-leader --repeat 10    how long failovers take
  lnc-chaos live --fault random --duration 10m --html chaos.html
  lnc-chaos live --fault rolling-restart --repeat 3 --rate max
  lnc-chaos live --fault partition-leader --partition-by proxy --repeat 5
  lnc-chaos live --schedule faults.txt    of lines such as: 10s kill-leader 3s
  lnc-chaos live --fault power-loss-all --repeat 5 --evidence found/
  lnc-chaos live --endpoint 10.0.0.1,10.0.0.2 --fault none --duration 1h
  lnc-chaos live --namespace prod --statefulset lance --fault pod-delete
  lnc-chaos live --fault kill-leader --repeat 10 --max-stall kill-leader=150")]
pub(super) struct Arguments {
    /// Nodes to start
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// The program lance to start them with; without it, this program, which has the same code in it
    #[arg(long, value_name = "FILE")]
    lance: Option<PathBuf>,
    /// Have the nodes make this mistake of lnc-mutation
    #[cfg(feature = "mutations")]
    #[arg(long, value_parser = super::mutations::mutation, conflicts_with_all = ["lance", "endpoint", "namespace"])]
    mutation: Option<lnc_mutation::Mutation>,
    /// A setting for all nodes; may be repeated
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Addresses of a cluster that runs, instead of starting one; a host alone has port 1992
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = endpoint, conflicts_with_all = ["lance", "set"])]
    endpoint: Vec<String>,
    /// Namespace of a stateful set, which kubectl reaches; ports are forwarded unless --endpoint is given
    #[arg(long, requires = "statefulset", conflicts_with_all = ["lance", "set"])]
    namespace: Option<String>,
    /// Name of the stateful set
    #[arg(long, requires = "namespace")]
    statefulset: Option<String>,
    /// Topic to make; without it one that is named after the seed
    #[arg(long)]
    topic: Option<String>,
    /// Its partitions
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=256))]
    partitions: u32,
    /// Producers, each of which writes to all partitions
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    producers: u32,
    /// Records per minute of all producers together; 0 or max for as fast as they go
    #[arg(long, default_value = "60000", value_parser = rate)]
    rate: Rate,
    /// Time before the first fault
    #[arg(long, value_name = "TIME", default_value = "3", value_parser = parse_duration)]
    warmup_secs: Duration,
    /// Time in which faults strike; without it for as long as --repeat or --schedule take, else 60 s
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Time after the last fault in which clients go on
    #[arg(long, value_name = "TIME", default_value = "3", value_parser = parse_duration)]
    post_roll_secs: Duration,
    /// How long a record, and in the end a replica, may take
    #[arg(long, value_name = "TIME", default_value = "60", value_parser = parse_duration)]
    drain_timeout_secs: Duration,
    /// Time between two lines about how it goes; 0 for none
    #[arg(long, value_name = "TIME", default_value = "5", value_parser = parse_duration)]
    report_interval: Duration,
    /// Faults that take turns, or random, or none; --list has their names
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "random", conflicts_with = "schedule")]
    fault: Vec<String>,
    /// File with a fault in each line: time, name, and for how long
    #[arg(long, value_name = "FILE")]
    schedule: Option<PathBuf>,
    /// Time between the beginnings of two faults
    #[arg(long, value_name = "TIME", default_value = "8", value_parser = parse_duration)]
    every: Duration,
    /// How long a fault lasts; of a killed node, how long it stays away
    #[arg(long, value_name = "TIME", default_value = "2", value_parser = parse_duration)]
    hold: Duration,
    /// How often each fault strikes; of random ones, how many there are
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u64).range(1..))]
    repeat: Option<u64>,
    /// Repeats the choice of faults and victims; a fresh one is drawn and printed without it
    #[arg(long)]
    seed: Option<u64>,
    /// How nodes are cut apart
    #[arg(long, value_enum, default_value_t = By::Auto)]
    partition_by: By,
    /// Fail if a fault, until it is taken back, stalls a partition for longer in the median; may be repeated
    #[arg(long, value_name = "FAULT=MS", value_parser = max_stall)]
    max_stall: Vec<MaxStall>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Write the report as a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write everything that happened as JSON lines
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
    /// Keep configurations, logs, history and reports here; data too if the run fails
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
    /// List the faults and whether this machine has what they need, and do nothing
    #[arg(long)]
    list: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// A network namespace for each node, with nft rules: needs root, ip and nft
    Netns,
    /// A TCP proxy in front of each node
    Proxy,
    /// Namespaces where they are possible, else the proxy
    Auto,
}

fn rate(text: &str) -> Result<Rate, String> {
    match text {
        "0" | "max" => Ok(Rate::Most),
        _ => text.parse().map(Rate::PerMinute).map_err(|_| "expected records per minute, or max".to_owned()),
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    lnc_client::with_port(text, lnc_client::DEFAULT_PORT)
}

fn max_stall(text: &str) -> Result<MaxStall, String> {
    let (name, ms) = text.split_once('=').ok_or("expected a fault and milliseconds, as kill-leader=150")?;
    let ms: u64 = ms.trim_end_matches("ms").parse().map_err(|_| format!("`{ms}` is no number of milliseconds"))?;
    Ok(MaxStall { fault: Fault::from_name(name)?, us: ms.saturating_mul(1000) })
}

/// Why nothing was run.
fn refuse(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("lnc-chaos live: {error}");
    ExitCode::from(2)
}

/// Make the run; 1 if a promise was broken, 2 if it could not be carried out.
pub(super) fn live(arguments: &Arguments) -> ExitCode {
    let place = match place(arguments) {
        Ok(place) => place,
        Err(error) => return refuse(error),
    };
    let by = match arguments.partition_by {
        By::Netns => PartitionBy::Netns,
        By::Proxy => PartitionBy::Proxy,
        By::Auto => PartitionBy::Auto,
    };
    if arguments.list {
        list(&place, by);
        return ExitCode::SUCCESS;
    }
    match source(arguments, &place, by).and_then(|source| carry_out(arguments, place, by, source)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => refuse(error),
    }
}

fn list(place: &Where, by: PartitionBy) {
    let possible = live::possible(place, by);
    println!("faults (* possible here, and drawn by --fault random):");
    for (fault, name, _, about) in fault::ALL {
        let mark = if possible.contains(fault) { '*' } else { ' ' };
        println!("{mark} {name:<20} {about}");
    }
}

fn place(arguments: &Arguments) -> Result<Where, LiveError> {
    let Arguments { endpoint, namespace, statefulset, nodes, set, .. } = arguments;
    match (namespace, statefulset) {
        (Some(namespace), Some(statefulset)) => Ok(Where::Pods {
            namespace: namespace.clone(),
            statefulset: statefulset.clone(),
            endpoints: endpoint.clone(),
        }),
        _ if !endpoint.is_empty() => Ok(Where::Running(endpoint.clone())),
        _ => {
            let program = match &arguments.lance {
                Some(lance) => vec![lance.to_string_lossy().into_owned()],
                None => own_program(arguments)?,
            };
            Ok(Where::Own { nodes: *nodes, program, settings: set.clone() })
        }
    }
}

/// How this program is made to be a node.
fn own_program(arguments: &Arguments) -> Result<Vec<String>, LiveError> {
    let what = || "find this program".to_owned();
    let own = std::env::current_exe().map_err(|source| LiveError::Io { what: what(), source })?;
    #[cfg(feature = "mutations")]
    let mistake = arguments.mutation.map(|mutation| format!("--mutation={}", mutation.name()));
    #[cfg(not(feature = "mutations"))]
    let (Arguments { .. }, mistake) = (arguments, None::<String>);
    Ok([own.to_string_lossy().into_owned(), "node".to_owned()].into_iter().chain(mistake).collect())
}

fn source(arguments: &Arguments, place: &Where, by: PartitionBy) -> Result<Source, LiveError> {
    let unavailable = LiveError::Unavailable;
    if let Some(path) = &arguments.schedule {
        let text = std::fs::read_to_string(path)
            .map_err(|error| unavailable(format!("cannot read {}: {error}", path.display())))?;
        let strikes = schedule::parse(&text, arguments.hold, parse_duration)
            .map_err(|error| unavailable(format!("{}: {error}", path.display())))?;
        return Ok(Source::Listed(strikes));
    }
    let names: Vec<&str> = arguments.fault.iter().map(String::as_str).collect();
    match names[..] {
        ["none"] => Ok(Source::Turns(Vec::new())),
        ["random"] => match live::possible(place, by) {
            faults if faults.is_empty() => {
                Err(unavailable("no fault can be done to this cluster: say --fault none".to_owned()))
            }
            faults => Ok(Source::Random(faults)),
        },
        _ => {
            let faults: Result<Vec<Fault>, String> = names.iter().map(|name| Fault::from_name(name)).collect();
            Ok(Source::Turns(faults.map_err(unavailable)?))
        }
    }
}

/// Make the run and write what it gives; whether every promise was kept.
fn carry_out(arguments: &Arguments, place: Where, by: PartitionBy, source: Source) -> Result<bool, LiveError> {
    let mut options = Options {
        place,
        topic: arguments.topic.clone(),
        partitions: arguments.partitions,
        producers: arguments.producers,
        rate: arguments.rate,
        warmup: arguments.warmup_secs,
        duration: arguments.duration,
        post_roll: arguments.post_roll_secs,
        drain_timeout: arguments.drain_timeout_secs,
        report_interval: Some(arguments.report_interval).filter(|every| !every.is_zero() && !arguments.json),
        source,
        every: arguments.every,
        hold: arguments.hold,
        repeat: arguments.repeat,
        seed: arguments.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32),
        partition_by: by,
        bounds: arguments.max_stall.clone(),
        home: PathBuf::new(),
        history: arguments.history.clone(),
    };
    let is_listed = matches!(options.source, Source::Listed(_));
    let is_without_faults = options.source.faults().is_empty();
    if options.duration.is_none() && (is_without_faults || (options.repeat.is_none() && !is_listed)) {
        options.duration = Some(DURATION);
    }
    live::prepare(&options)?;
    let (home, temporary) = home(arguments)?;
    options.home = home;
    if let (Some(evidence), None) = (&arguments.evidence, &options.history) {
        options.history = Some(evidence.join("history.jsonl"));
    }
    if !arguments.json {
        println!("seed {}", options.seed);
    }
    let result = live::run(&options);
    match &result {
        Ok(report) if report.passed() => {
            if temporary.is_none() {
                live::discard_data(&options.home)?;
            }
        }
        // What a failed run leaves is kept; what was interrupted is of no use.
        Err(LiveError::Interrupted) => {}
        _ => {
            if let Some(temporary) = temporary {
                eprintln!("configurations, logs and data are kept in {}", temporary.keep().display());
            }
        }
    }
    let report = result?;
    tell(arguments, &report)?;
    Ok(report.passed())
}

/// Where the nodes' files go: the directory for evidence, or one that goes away.
fn home(arguments: &Arguments) -> Result<(PathBuf, Option<tempfile::TempDir>), LiveError> {
    let failed = |what: String| move |source| LiveError::Io { what, source };
    match &arguments.evidence {
        Some(directory) => {
            std::fs::create_dir_all(directory).map_err(failed(format!("make {}", directory.display())))?;
            let directory = directory.canonicalize().map_err(failed(format!("find {}", directory.display())))?;
            Ok((directory, None))
        }
        None => {
            let directory = tempfile::Builder::new().prefix("lnc-chaos-").tempdir();
            let directory = directory.map_err(failed("make a directory for temporary files".to_owned()))?;
            Ok((directory.path().to_owned(), Some(directory)))
        }
    }
}

/// Print the report, and write it wherever it is wanted.
fn tell(arguments: &Arguments, report: &Report) -> Result<(), LiveError> {
    let json = serde_json::to_string_pretty(report).unwrap_or_default();
    let write = |path: &Path, text: &str| {
        let what = format!("write {}", path.display());
        std::fs::write(path, text).map_err(|source| LiveError::Io { what, source })
    };
    if let Some(path) = &arguments.html {
        write(path, &html::page(report))?;
    }
    if let Some(directory) = &arguments.evidence {
        write(&directory.join("report.json"), &json)?;
        write(&directory.join("report.html"), &html::page(report))?;
    }
    if arguments.json {
        println!("{json}");
    } else {
        print!("\n{}", report.text());
    }
    Ok(())
}
