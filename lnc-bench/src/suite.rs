//! The standard workloads. Each is one command of this program, which can be run by itself.

use clap::Parser;

use crate::args::{Cli, Command, SuiteArgs};
use crate::report::Report;
use crate::{BenchError, execute};

/// Names, and commands without addresses and durations.
pub(crate) const WORKLOADS: [(&str, &str); 8] = [
    ("pipelined-1k", "produce --topic suite-a --partitions 3 --connections 16 --in-flight 64 --payload 1KiB"),
    ("single-1k", "produce --topic suite-b --partitions 1 --connections 1 --in-flight 1 --payload 1KiB"),
    ("deep-100", "produce --topic suite-c --partitions 3 --connections 16 --in-flight 1024 --payload 100"),
    (
        "client-100",
        "produce --topic suite-d --partitions 3 --client --connections 3 --in-flight 20000 --batch-bytes 64KiB --linger 1ms \
         --payload 100",
    ),
    (
        "client-1k",
        "produce --topic suite-e --partitions 3 --client --connections 3 --in-flight 2000 --batch-bytes 64KiB --linger 1ms \
         --payload 1KiB",
    ),
    ("consume", "consume --topic suite-a --from start"),
    (
        "topics",
        "produce --topic suite-f --topics 1000 --delete-topics --partitions 1 --connections 64 --in-flight 16 --payload 1KiB",
    ),
    ("tail", "both --topic suite-g --partitions 3 --connections 16 --rate 2000 --payload 1KiB"),
];

/// The command of a workload, with what the suite's command line says.
fn command(workload: &str, args: &SuiteArgs) -> String {
    let endpoints = args.endpoints.join(",");
    let duration = format!("--duration {}ms", args.duration.as_millis());
    let warmup = if workload.starts_with("consume") {
        String::new()
    } else {
        format!(" --warmup {}ms", args.warmup.as_millis())
    };
    format!("{workload} --endpoint {endpoints} {duration}{warmup}")
}

/// Runs the workloads; `done` is called after each.
pub(crate) fn run(args: &SuiteArgs, mut done: impl FnMut(&mut Report)) -> Result<Vec<Report>, BenchError> {
    if let Some(unknown) = args.only.iter().find(|name| WORKLOADS.iter().all(|(known, _)| known != name)) {
        let names: Vec<_> = WORKLOADS.iter().map(|(name, _)| *name).collect();
        return Err(BenchError::UnknownWorkload { name: unknown.clone(), known: names.join(", ") });
    }
    let mut reports = Vec::new();
    for (name, workload) in WORKLOADS {
        if !args.only.is_empty() && !args.only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let command = command(workload, args);
        if args.list {
            println!("{name:<13} lnc-bench {command}");
            continue;
        }
        eprintln!("{name}: lnc-bench {command}");
        let mut report = execute(&parse(&command)?)?;
        report.name = name.into();
        done(&mut report);
        reports.push(report);
    }
    Ok(reports)
}

fn parse(command: &str) -> Result<Command, BenchError> {
    let words = ["lnc-bench"].into_iter().chain(command.split_whitespace());
    // Only an address with a blank in it could make this fail.
    Ok(Cli::try_parse_from(words).map_err(|error| BenchError::Usage(error.to_string()))?.command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_is_a_command() {
        let Command::Suite(args) = parse("suite --duration 2s --endpoint a:1,b:2").unwrap() else { panic!() };
        for (name, workload) in WORKLOADS {
            let (cluster, duration) = match parse(&command(workload, &args)).unwrap() {
                Command::Produce(args) => (args.cluster, args.load.duration),
                Command::Both(args) => (args.cluster, args.load.duration),
                Command::Consume(args) => (args.cluster, args.duration),
                _ => panic!("{name} is no workload"),
            };
            assert_eq!((cluster.endpoints, duration.as_secs()), (vec!["a:1".to_owned(), "b:2".into()], 2), "{name}");
        }
    }

    #[test]
    fn a_workload_that_is_not_there_is_an_error() {
        let Command::Suite(args) = parse("suite --list --only nothing").unwrap() else { panic!() };
        let error = run(&args, |_| {}).unwrap_err().to_string();
        assert!(error.contains("nothing") && error.contains("pipelined-1k"), "{error}");
    }
}
