//! `lnc-chaos sim`.

use super::progress::Progress;
use super::{parse_duration, table};
use crate::sim::invariants;
use crate::sim::minimise::minimise;
use crate::sim::profile::{Profile, ROTATION};
use crate::sim::report::{Counts, Report};
use crate::sim::trace::{Sink, line};
use crate::sim::{Plan, run, run_with};
use lance::cli::counted;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Newest events that a failure's report shows.
const SHOWN: usize = 40;

/// What to run.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The first seed; a fresh one is drawn and printed without it
    #[arg(long)]
    seed: Option<u64>,
    /// Number of seeds, one after the other
    #[arg(long, default_value_t = 1, conflicts_with = "for")]
    seeds: u64,
    /// Run seeds for this long instead, as 90s, 15m or 2h
    #[arg(long, value_parser = parse_duration)]
    r#for: Option<Duration>,
    /// The profile; without it, seeds go through all that --list marks
    #[arg(long, value_parser = profile)]
    profile: Option<Profile>,
    /// Number of nodes, 3 or 5; without it, every fourth seed has 5
    #[arg(long, value_parser = nodes)]
    nodes: Option<u64>,
    /// Run what this file lists instead: a profile, a seed and a number of nodes in each line
    #[arg(long, conflicts_with_all = ["seed", "seeds", "for", "profile", "nodes"])]
    regressions: Option<PathBuf>,
    /// Virtual time in which clients work and faults strike, for each seed
    #[arg(long, default_value = "120s", value_parser = parse_duration)]
    r#virtual: Duration,
    /// Find the shortest list of faults that still breaks the rule
    #[arg(long)]
    minimise: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Write every event of the seed to this file; of a failing seed it is written in any case
    #[arg(long, conflicts_with = "for")]
    trace: Option<PathBuf>,
    /// Threads, each with its own seeds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
    /// Make this mistake of lnc-mutation
    #[cfg(feature = "mutations")]
    #[arg(long, value_parser = super::mutations::mutation)]
    mutation: Option<lnc_mutation::Mutation>,
    /// List profiles and rules, and do nothing
    #[arg(long)]
    list: bool,
}

pub(super) fn profile(name: &str) -> Result<Profile, String> {
    Profile::from_name(name).ok_or_else(|| {
        let names: Vec<&str> = Profile::ALL.iter().map(|profile| profile.name()).collect();
        format!("no profile has this name; there are {}", names.join(", "))
    })
}

fn nodes(text: &str) -> Result<u64, String> {
    text.parse().ok().filter(|nodes| [3, 5].contains(nodes)).ok_or_else(|| "3 or 5 nodes can be simulated".to_owned())
}

/// The runs that a file lists. What follows `#` in a line is for people.
fn listed(path: &Path, virtual_us: u64) -> Result<Vec<Plan>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let lines = text.lines().enumerate().map(|(n, line)| (n, line.split('#').next().unwrap_or_default()));
    let parse = |(n, line): (usize, &str)| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let plan = match words[..] {
            [name, seed, count] => profile(name).and_then(|profile| {
                let seed = seed.parse().map_err(|_| format!("`{seed}` is not a seed"))?;
                Ok(Plan { seed, profile, nodes: nodes(count)?, virtual_us, schedule: None })
            }),
            _ => Err("expected a profile, a seed and a number of nodes".to_owned()),
        };
        plan.map_err(|error| format!("{} line {}: {error}", path.display(), n + 1))
    };
    let plans: Vec<Plan> =
        lines.filter(|(_, line)| !line.trim().is_empty()).map(parse).collect::<Result<_, String>>()?;
    if plans.is_empty() { Err(format!("{} lists no runs", path.display())) } else { Ok(plans) }
}

/// Run the seeds; 1 if a rule was broken, 2 if a file could not be read or written.
pub(super) fn simulate(arguments: &Arguments) -> ExitCode {
    if arguments.list {
        list();
        return ExitCode::SUCCESS;
    }
    let virtual_us = arguments.r#virtual.as_micros() as u64;
    let listed = match arguments.regressions.as_deref().map(|path| listed(path, virtual_us)).transpose() {
        Ok(listed) => listed,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    let first = arguments.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
    if !arguments.json && listed.is_none() {
        println!("seed {first}");
    }
    tell_of_panics();
    prepare(arguments);
    let batch = Batch {
        arguments,
        first,
        next: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        total: Mutex::new((Counts::default(), None)),
        progress: Progress::start(match &listed {
            Some(plans) => Some(plans.len() as u64),
            None => arguments.r#for.is_none().then_some(arguments.seeds),
        }),
        listed,
        begun: Instant::now(),
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| batch.work());
        }
    });
    let elapsed = batch.begun.elapsed();
    batch.progress.finish();
    let (counts, failed) = batch.total.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let result = match &failed {
        Some(report) => tell(arguments, report),
        None => arguments.trace.as_deref().map_or(Ok(()), |path| write_trace(&plan(arguments, first, 0), path)),
    };
    if arguments.json {
        println!("{}", table::json(&counts, elapsed, failed.as_ref(), &reproduction(arguments, failed.as_ref())));
    } else {
        table::print(&counts, elapsed, arguments.jobs);
    }
    match (result, failed) {
        (Err(error), _) => {
            eprintln!("cannot write the trace: {error}");
            ExitCode::from(2)
        }
        (Ok(()), Some(_)) => ExitCode::FAILURE,
        (Ok(()), None) => ExitCode::SUCCESS,
    }
}

fn list() {
    println!("profiles (* in the rotation):");
    for profile in Profile::ALL {
        let mark = if ROTATION.contains(profile) { '*' } else { ' ' };
        println!("{mark} {:<12} {}", profile.name(), profile.about());
    }
    println!("\nrules:");
    for (name, says) in invariants::ALL {
        println!("  {name:<21} {says}");
    }
}

/// The run of the `n`-th seed.
fn plan(arguments: &Arguments, first: u64, n: u64) -> Plan {
    let seed = first.wrapping_add(n);
    // By the seed, so that the same seed is the same run wherever it stands in a batch.
    let profile = arguments.profile.unwrap_or(ROTATION[(seed % ROTATION.len() as u64) as usize]);
    let five = seed / ROTATION.len() as u64 % 4 == 3;
    let nodes = arguments.nodes.unwrap_or(if five { 5 } else { 3 });
    Plan { seed, profile, nodes, virtual_us: arguments.r#virtual.as_micros() as u64, schedule: None }
}

/// Many seeds, and what has come of them so far.
struct Batch<'a> {
    arguments: &'a Arguments,
    first: u64,
    /// What to run instead of seeds.
    listed: Option<Vec<Plan>>,
    next: AtomicU64,
    failed: AtomicBool,
    total: Mutex<(Counts, Option<Report>)>,
    progress: Progress,
    begun: Instant,
}

impl Batch<'_> {
    /// One thread's share: seed after seed until there are enough, time is up, or one fails.
    fn work(&self) {
        prepare(self.arguments);
        loop {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let over = match (&self.listed, self.arguments.r#for) {
                (Some(plans), _) => n >= plans.len() as u64,
                (None, Some(limit)) => self.begun.elapsed() >= limit,
                (None, None) => n >= self.arguments.seeds,
            };
            if over || self.failed.load(Ordering::Relaxed) {
                return;
            }
            let plan = match &self.listed {
                Some(plans) => plans[n as usize].clone(),
                None => plan(self.arguments, self.first, n),
            };
            CURRENT.set(Some(command(self.arguments, &plan)));
            let report = run(&plan);
            CURRENT.set(None);
            let mut total = self.total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            total.0.add(&report.counts);
            self.progress.show(&total.0, self.begun.elapsed());
            if report.failure.is_some() && !self.failed.swap(true, Ordering::Relaxed) {
                total.1 = Some(report);
            }
        }
    }
}

/// What a thread does before its first run.
fn prepare(arguments: &Arguments) {
    #[cfg(feature = "mutations")]
    lnc_mutation::choose(arguments.mutation);
    #[cfg(not(feature = "mutations"))]
    let Arguments { .. } = arguments;
}

thread_local! {
    /// The command that repeats the run that this thread is busy with.
    static CURRENT: std::cell::Cell<Option<String>> = const { std::cell::Cell::new(None) };
}

/// Where a build does not unwind, a panic is the last thing that happens: say at least how to see it again.
fn tell_of_panics() {
    let former = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let Some(command) = CURRENT.take() else { return former(panic) };
        if cfg!(panic = "abort") {
            eprintln!("rule broken: panic\n{panic}\nto repeat it: {command}");
            eprintln!("for its trace and --minimise, use a build that unwinds: cargo run -p lnc-chaos -- sim …");
            std::process::exit(1);
        }
        CURRENT.set(Some(command));
    }));
}

fn command(arguments: &Arguments, plan: &Plan) -> String {
    let (seed, profile, nodes) = (plan.seed, plan.profile.name(), plan.nodes);
    let ms = arguments.r#virtual.as_millis();
    let mistake = mistake(arguments);
    format!("lnc-chaos sim --seed {seed} --profile {profile} --nodes {nodes} --virtual {ms}ms{mistake}")
}

/// The option that makes the same mistake again.
fn mistake(arguments: &Arguments) -> String {
    #[cfg(feature = "mutations")]
    let mistake = arguments.mutation.map(|mutation| format!(" --mutation {}", mutation.name()));
    #[cfg(not(feature = "mutations"))]
    let (Arguments { .. }, mistake) = (arguments, None::<String>);
    mistake.unwrap_or_default()
}

fn reproduction(arguments: &Arguments, report: Option<&Report>) -> String {
    report.map_or(String::new(), |report| command(arguments, &plan_of(arguments, report)))
}

/// The run that a report is about.
fn plan_of(arguments: &Arguments, report: &Report) -> Plan {
    Plan { profile: report.profile, nodes: report.nodes, ..plan(arguments, report.seed, 0) }
}

/// Say what was wrong, and write the whole trace.
fn tell(arguments: &Arguments, report: &Report) -> std::io::Result<()> {
    let Some(failure) = &report.failure else { return Ok(()) };
    let plan = plan_of(arguments, report);
    let default = std::env::temp_dir().join(format!("lnc-chaos-{}-{}.trace", plan.profile.name(), plan.seed));
    let path = arguments.trace.clone().unwrap_or(default);
    write_trace(&plan, &path)?;
    if arguments.json {
        return Ok(());
    }
    println!("\nseed {} profile {} broke a rule", plan.seed, plan.profile.name());
    println!("rule: {}", failure.violation.invariant);
    println!("at:   {:.6} s", failure.at_us as f64 / 1e6);
    println!("what: {}", failure.violation.what);
    println!("\nthe newest events:");
    for event in failure.newest.iter().skip(failure.newest.len().saturating_sub(SHOWN)) {
        println!("  {event}");
    }
    println!("\nthe whole trace: {}", path.display());
    println!("to repeat it:    {}", command(arguments, &plan));
    if arguments.minimise {
        println!("\nlooking for the shortest schedule:");
        let kept = minimise(&plan, failure.violation.invariant, |left, failed| {
            println!("  {}: {}", counted(left as u64, "fault"), if failed { "fails" } else { "holds" });
        });
        println!("of {}, {} would do:", counted(report.schedule.len() as u64, "fault"), kept.len());
        for scheduled in kept {
            println!("  {:>11.6} {}", scheduled.at_us as f64 / 1e6, scheduled.fault);
        }
    }
    Ok(())
}

fn write_trace(plan: &Plan, path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for scheduled in plan.schedule() {
        writeln!(out, "scheduled {:>11.6} {}", scheduled.at_us as f64 / 1e6, scheduled.fault)?;
    }
    let (lines, received) = std::sync::mpsc::sync_channel::<String>(4096);
    std::thread::scope(|scope| {
        let written = scope.spawn(move || {
            received.into_iter().try_for_each(|text| writeln!(out, "{text}"))?;
            out.flush()
        });
        // A writer that has failed hears nothing more; its error is what counts.
        let sink: Sink = Box::new(move |at_us, event| drop(lines.send(line(at_us, event))));
        CURRENT.set(Some("the same command".to_owned()));
        run_with(plan, Some(sink));
        CURRENT.set(None);
        written.join().unwrap_or_else(|_| Err(std::io::Error::other("the writer ended")))
    })
}
