//! Load generator and latency report for LANCE.
//!
//! `lnc-bench produce` keeps a fixed number of requests under way (a closed loop) and reports how many records were
//! acknowledged per second and how long each acknowledgement took, without the warm-up. `lnc-bench consume` reads a
//! topic from its start or end and reports the rate. Both print text, or JSON with `--json`.
//!
//! [`produce`] and [`consume`] drive the load, [`measure`] decides what counts, [`cpu`] asks the operating system what
//! the servers spent, [`report`] prints.
#![forbid(unsafe_code)]

mod consume;
mod cpu;
mod measure;
mod produce;
mod report;
#[cfg(test)]
#[path = "../../lnc-client/tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(version, about = "Load generator and latency report for LANCE")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Produce in a closed loop, straight to the leaders, and report acknowledgement latencies.
    Produce(ProduceArgs),
    /// Read a topic with one consumer and report the rate.
    Consume(ConsumeArgs),
}

/// What both commands need to know.
#[derive(clap::Args, Clone, Debug)]
struct CommonArgs {
    /// Address of a broker; repeat it or separate several with commas.
    #[arg(long = "endpoint", value_delimiter = ',', default_value = "127.0.0.1:1992")]
    endpoints: Vec<String>,
    /// The topic; `produce` creates it if need be.
    #[arg(long, default_value = "bench")]
    topic: String,
    /// Process id of a broker whose CPU time to report; repeatable.
    #[arg(long = "server-pid")]
    server_pids: Vec<u32>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Clone, Debug)]
struct ProduceArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Partitions of the topic, if it has to be created; the connections share the partitions.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Connections, each to the leader of one partition.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Requests under way on each connection.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: u32,
    /// Bytes of each record's value; random, so that they do not compress.
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// Records in each request.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    batch_records: u32,
    /// What an acknowledgement means.
    #[arg(long, value_enum, default_value_t = AcksArg::Quorum)]
    acks: AcksArg,
    /// How long to measure, such as 15s, 500ms or 2m.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    duration: Duration,
    /// How long to produce before that.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    warmup: Duration,
    /// Threads that make the load.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
}

#[derive(clap::Args, Clone, Debug)]
struct ConsumeArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// Where to start: at the first record there is, which reads up to the present end, or at the end.
    #[arg(long, value_enum, default_value_t = From::Start)]
    from: From,
    /// The longest time to read, such as 15s, 500ms or 2m.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    duration: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AcksArg {
    /// Nothing: the broker has received the records.
    None,
    /// The leader has them on stable storage.
    Leader,
    /// A majority of the replicas has them on stable storage.
    Quorum,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    Start,
    End,
}

/// Why a run could not be carried out.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error(transparent)]
    Client(#[from] lnc_client::Error),
    #[error("cannot start: {0}")]
    Io(#[from] std::io::Error),
    #[error("cannot read the CPU time of process {pid}: {problem}")]
    Cpu { pid: u32, problem: String },
    #[error("one request of {size} bytes is over the broker's limit of {limit} bytes per batch")]
    BatchTooLarge { size: usize, limit: usize },
    #[error("no leader known for partition {partition} of {topic}")]
    NoLeader { topic: String, partition: u32 },
    #[error("a load thread failed")]
    Thread,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Produce(args) => produce::run(&args).map(|report| report::print(&report, args.common.json)),
        Command::Consume(args) => consume::run(&args).map(|report| report::print(&report, args.common.json)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lnc-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Reads a duration: a number with the unit ms, s or m.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is not a number with a unit"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        unit => return Err(format!("unit {unit:?} is none of ms, s, m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        for bad in ["", "15", "s", "-3s", "3h", "1e99s", "nans"] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
