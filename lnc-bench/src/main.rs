//! Load generator and latency report for LANCE.
//!
//! `produce` sends records in a closed or an open loop, `consume` reads topics, `both` does the two at once and measures
//! from end to end, `suite` runs the standard workloads, `abuse` asks for as much as one may, `limits` measures the machine,
//! `evidence` sums up a run of `./test.sh`. `docs/BENCHMARKING.md` shows how to use it.
//!
//! A run goes like this: [`topics`] makes the topics and finds the leaders; [`produce`] starts threads with [`mod@line`]s,
//! each a connection that sends what [`batches`] has prepared when [`schedule`] says so; [`consume`] reads;
//! [`measure`] decides what counts; [`watch`] shows progress and what [`process`]es have spent; [`report`] prints, and
//! [`html`] draws. The generator shares the machine with the servers more often than not, so what it costs itself is
//! kept low, and told.
#![forbid(unsafe_code)]

mod abuse;
mod args;
mod batches;
mod consume;
mod delivery;
#[cfg(test)]
#[path = "../../lance/tests/documents/mod.rs"]
mod documents;
mod evidence;
mod html;
mod library;
mod limits;
mod line;
#[path = "../../lance/src/manual.rs"]
#[expect(unreachable_pub, reason = "the library that it is part of offers it to others")]
mod manual;
mod measure;
mod output;
mod payload;
mod plot;
mod process;
mod produce;
mod report;
mod schedule;
mod suite;
#[cfg(test)]
#[path = "../../lnc-client/tests/support/mod.rs"]
mod support;
mod sweep;
mod topics;
mod watch;
mod wire;
mod words;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{CommandFactory, Parser};
use lnc_client::Client;

use crate::args::{BoundArgs, Cli, Command, SuiteArgs};
use crate::report::Report;

/// The exit code of a run with errors or a missed bound; wrong usage has 2, like clap's own errors.
const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Why a run could not be carried out.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Client(#[from] lnc_client::Error),
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
    #[error("cannot see what process {pid} has spent: {problem}")]
    Process { pid: u32, problem: String },
    #[error("cannot connect to {address}: {problem}")]
    Connect { address: String, problem: &'static str },
    #[error("one request of {size} bytes is over the broker's limit of {limit} bytes per batch")]
    BatchTooLarge { size: usize, limit: usize },
    #[error("values must have at least {least} bytes, to hold a stamp by which their delivery is recognised")]
    PayloadTooSmall { least: usize },
    #[error("topic {topic}: {problem}")]
    Topic { topic: String, problem: &'static str },
    #[error("the cluster names no node that leads or holds the partitions")]
    NoNodes,
    #[error("a load thread failed")]
    Thread,
    #[error("{path}: {problem}")]
    File { path: String, problem: String },
    #[error("there is no workload `{name}`; there are {known}")]
    UnknownWorkload { name: String, known: String },
    #[error("{0}")]
    Usage(String),
}

impl BenchError {
    fn exit_code(&self) -> u8 {
        match self {
            BenchError::BatchTooLarge { .. }
            | BenchError::PayloadTooSmall { .. }
            | BenchError::UnknownWorkload { .. }
            | BenchError::Usage(_) => USAGE,
            _ => FAILED,
        }
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Limits(args) => limits::run(&args).map_err(BenchError::from).map(|limits| {
            output::print_limits(&limits, args.json);
            Vec::new()
        }),
        Command::Evidence(args) => evidence::run(&args).map(|()| Vec::new()),
        Command::Man { directory } => manual_pages(&directory).map(|()| Vec::new()),
        Command::Suite(args) => run_suite(&args),
        Command::Abuse(args) => abuse::run(&args).map(|abuse| {
            output::print_abuse(&abuse, args.json);
            abuse.failures()
        }),
        command => run_one(&command),
    };
    match result {
        Ok(failures) if failures.is_empty() => ExitCode::SUCCESS,
        Ok(failures) => {
            failures.iter().for_each(|failure| eprintln!("lnc-bench: {failure}"));
            FAILED.into()
        }
        Err(error) => {
            eprintln!("lnc-bench: {error}");
            error.exit_code().into()
        }
    }
}

/// Writes what `--help` says as manual pages.
fn manual_pages(directory: &Path) -> Result<(), BenchError> {
    let failed = |error: std::io::Error| BenchError::File {
        path: directory.display().to_string(),
        problem: format!("cannot write manual pages: {error}"),
    };
    manual::write(Cli::command(), directory).map_err(failed)
}

/// Runs a command that has one report. The result is what went wrong, one line each.
fn run_one(command: &Command) -> Result<Vec<String>, BenchError> {
    let (output, bounds) = match command {
        Command::Produce(args) if args.sweep => {
            // The bound on the 99th percentile is what the sweep looks for.
            (&args.output, BoundArgs { max_p99: None, ..args.bounds.clone() })
        }
        Command::Produce(args) => (&args.output, args.bounds.clone()),
        Command::Both(args) => (&args.output, args.bounds.clone()),
        Command::Consume(args) => (&args.output, BoundArgs { min_rate: args.min_rate, ..BoundArgs::default() }),
        Command::Suite(_) | Command::Abuse(_) | Command::Limits(_) | Command::Evidence(_) | Command::Man { .. } => {
            return Err(BenchError::Thread);
        }
    };
    let limits = output::limits(output)?;
    let mut report = execute(command)?;
    if let Some(limits) = &limits {
        report.with_limits(limits);
    }
    output::print(std::slice::from_ref(&report), output)?;
    Ok(report.failures(&bounds))
}

fn run_suite(args: &SuiteArgs) -> Result<Vec<String>, BenchError> {
    let limits = if args.list { None } else { output::limits(&args.output)? };
    let as_text = !args.output.json && !args.output.csv;
    let reports = suite::run(args, |report| {
        limits.iter().for_each(|limits| report.with_limits(limits));
        if as_text {
            println!("== {}\n{report}", report.name);
        }
    })?;
    if !args.list {
        output::print_rest(&reports, &args.output)?;
    }
    Ok(reports.iter().flat_map(|report| report.failures(&BoundArgs::default())).collect())
}

/// Carries out a command that puts load on a cluster.
fn execute(command: &Command) -> Result<Report, BenchError> {
    let (name, report) = match command {
        Command::Produce(args) if args.sweep => ("sweep", sweep::run(args)),
        Command::Produce(args) if args.client => ("produce", library::run(args)),
        Command::Produce(args) => ("produce", produce::run(&args.cluster, &args.load, None)),
        Command::Both(args) => ("both", produce::run(&args.cluster, &args.load, Some(&args.reading))),
        Command::Consume(args) => ("consume", consume::run(args)),
        Command::Suite(_) | Command::Abuse(_) | Command::Limits(_) | Command::Evidence(_) | Command::Man { .. } => {
            return Err(BenchError::Thread);
        }
    };
    let mut report = report?;
    report.name = name.into();
    Ok(report)
}

/// The client that topics are made with and leaders are asked for.
async fn client(endpoints: &[String]) -> Result<Client, BenchError> {
    let builder = Client::builder().endpoints(endpoints.to_vec()).client_name("lnc-bench").refusal_is_final(true);
    Ok(builder.build().await?)
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(Duration::ZERO, |since| since).as_millis() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_manual_page() {
        let directory = tempfile::tempdir().unwrap();
        manual_pages(directory.path()).unwrap();
        for name in ["lnc-bench", "lnc-bench-produce", "lnc-bench-suite"] {
            let page = std::fs::read_to_string(directory.path().join(format!("{name}.1"))).expect(name);
            assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
        }
        let refused = manual_pages(&directory.path().join("none")).unwrap_err();
        assert!(refused.to_string().contains("none: cannot write manual pages"), "{refused}");
    }
}
