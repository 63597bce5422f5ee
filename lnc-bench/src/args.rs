//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lnc_client::{Acks, Codec};

use crate::payload::{Keys, Sizes, parse_size};

const EXAMPLES: &str = "\
Examples:
  lnc-bench produce --partitions 3 --payload 1KiB   as much as goes through
  lnc-bench produce --rate 5000 --max-p99 20ms      latency at a rate, bounded
  lnc-bench produce --sweep --max-p99 10ms          the highest rate below 10 ms
  lnc-bench produce --client --linger 1ms           through the client library
  lnc-bench both --rate 2000                        from due time to delivery
  lnc-bench consume --from start                    as one consumer reads
  lnc-bench limits --json >limits.json              what the machine can do
  lnc-bench abuse --duration 30s                    beside costly requests
  lnc-bench suite --html report.html                the standard workloads

Exit codes: 0 all went well; 1 there were errors, or a bound (--max-p50, --max-p99, --max-p999, --min-rate) was missed; 2 \
wrong usage.";

#[derive(Parser)]
#[command(version, about = "Load generator and latency report for LANCE", after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Produce, straight to the leaders or through the client library, and report how long acknowledgements take.
    Produce(ProduceArgs),
    /// Read topics and report the rate.
    Consume(ConsumeArgs),
    /// Produce and consume at once, and report the latency from end to end.
    Both(BothArgs),
    /// Run the standard workloads one after the other.
    Suite(SuiteArgs),
    /// Ask for as much as one may and more, of every kind, while others are measured beside it.
    Abuse(AbuseArgs),
    /// Measure what this machine can do: the disk, loopback, memory, checksums.
    Limits(LimitsArgs),
    /// Make the index of the evidence that a run of ./test.sh has left.
    Evidence(EvidenceArgs),
    /// Write the manual pages, one for each command, into a directory: for those who make packages.
    Man {
        /// The directory, which must exist.
        directory: PathBuf,
    },
}

/// The nodes that genCluster.sh and "lance dev" start, as "lance" itself has it: one that is down is no reason to fail.
const ENDPOINTS: &str = "127.0.0.1:1992,127.0.0.1:2002,127.0.0.1:2012";

/// What to talk to.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClusterArgs {
    /// Address of a broker, as host:port or host (port 1992); repeat it or separate several with commas.
    #[arg(long = "endpoint", env = "LANCE_ENDPOINT", value_delimiter = ',', value_parser = endpoint, default_value = ENDPOINTS)]
    pub(crate) endpoints: Vec<String>,
    /// The topic; created if need be.
    #[arg(long, default_value = "bench")]
    pub(crate) topic: String,
    /// How many topics; more than one are named TOPIC-0, TOPIC-1 and so on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) topics: u32,
    /// Delete the topics that this run has created, at its end.
    #[arg(long)]
    pub(crate) delete_topics: bool,
    /// Process id of a broker whose CPU time, memory and bytes written to report; repeatable. Without it, brokers that
    /// run on this machine are found by their ports.
    #[arg(long = "server-pid")]
    pub(crate) server_pids: Vec<u32>,
}

/// What to make of the results.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct OutputArgs {
    /// Print the report as JSON.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print the figures as CSV, one line per run.
    #[arg(long)]
    pub(crate) csv: bool,
    /// Write a report with plots to this file as well; it needs no other file.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the report as JSON to this file as well, whatever is printed.
    #[arg(long, value_name = "FILE")]
    pub(crate) json_file: Option<PathBuf>,
    /// What the machine can do, as "lnc-bench limits --json" has told; the report then has the ratios.
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub(crate) limits: Option<PathBuf>,
    /// Measure the machine before the run instead, in short, with files in this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) calibrate: Option<PathBuf>,
}

/// What a run must reach.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct BoundArgs {
    /// End with exit code 1 if the median of a latency is over this.
    #[arg(long, value_parser = parse_duration)]
    pub(crate) max_p50: Option<Duration>,
    /// End with exit code 1 if the 99th percentile of a latency is over this; with --sweep, what saturation means (10ms).
    #[arg(long, value_parser = parse_duration)]
    pub(crate) max_p99: Option<Duration>,
    /// End with exit code 1 if the 99.9th percentile of a latency is over this.
    #[arg(long, value_parser = parse_duration)]
    pub(crate) max_p999: Option<Duration>,
    /// End with exit code 1 below this many records a second.
    #[arg(long, value_name = "RECORDS")]
    pub(crate) min_rate: Option<f64>,
}

/// What is sent, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Partitions of each topic that has to be created; the connections share the partitions.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partitions: u32,
    /// Connections; as many partitions as there are, or fewer, are written to by one connection each.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) connections: u32,
    /// Requests under way on each connection at most; with --client records.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) in_flight: u32,
    /// Send this many records a second, whatever the brokers do (open loop); latency counts from when a record was due.
    /// Without it, as many as go with all requests under way (closed loop).
    #[arg(long, value_name = "RECORDS", value_parser = parse_rate)]
    pub(crate) rate: Option<f64>,
    /// Size of each record's value: 100, 1KiB, uniform:100-2KB, normal:MEAN,DEVIATION, or sizes with weights as in
    /// 100:70,1KiB:25,64KiB:5.
    #[arg(long, default_value = "1KiB")]
    pub(crate) payload: Sizes,
    /// Which share of a value compresses away, from 0 to 1.
    #[arg(long, default_value_t = 0.0, value_parser = parse_share)]
    pub(crate) compressible: f64,
    /// Keys of the records: none, sequential, random:N (one of N), zipf:N or zipf:N,EXPONENT (a few of N are frequent).
    /// With --client the key decides the partition.
    #[arg(long, default_value = "none")]
    pub(crate) keys: Keys,
    /// How batches are compressed.
    #[arg(long, value_enum, default_value_t = CodecArg::None)]
    pub(crate) compression: CodecArg,
    /// Records in each request.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) batch_records: u32,
    /// What an acknowledgement means.
    #[arg(long, value_enum, default_value_t = AcksArg::Quorum)]
    pub(crate) acks: AcksArg,
    /// How long to measure, such as 15s, 500ms or 2m.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// How long to produce before that.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    /// Threads that make the load.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: u32,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ProduceArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    /// Send through the client library, one producer for each connection, which packs records into batches.
    #[arg(long, conflicts_with_all = ["batch_records", "threads"])]
    pub(crate) client: bool,
    /// With --client: how long a batch waits for more records.
    #[arg(long, default_value = "5ms", value_parser = parse_duration, requires = "client")]
    pub(crate) linger: Duration,
    /// With --client: the size at which a batch is full.
    #[arg(long, default_value = "256KiB", value_parser = parse_size, requires = "client")]
    pub(crate) batch_bytes: usize,
    /// Find the highest rate that keeps the bound on the 99th percentile: raise it from --rate (1000) step by step, then
    /// halve the interval.
    #[arg(long, conflicts_with = "client")]
    pub(crate) sweep: bool,
    /// With --sweep: how long each rate is measured.
    #[arg(long, default_value = "5s", value_parser = parse_duration, requires = "sweep")]
    pub(crate) step_duration: Duration,
    #[command(flatten)]
    pub(crate) bounds: BoundArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct ConsumeArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Where to start: at the first record there is, which reads up to the present end, or at the end.
    #[arg(long, value_enum, default_value_t = From::Start)]
    pub(crate) from: From,
    /// The longest time to read, such as 15s, 500ms or 2m.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// How often to read it all, one time after the other: what the brokers keep in memory is soon read once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) laps: u32,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    /// End with exit code 1 below this many records a second.
    #[arg(long, value_name = "RECORDS")]
    pub(crate) min_rate: Option<f64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// How to read.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReadingArgs {
    /// Consumers; they share the partitions, and a consumer without a partition of its own reads another's.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) consumers: u32,
    /// How much one fetch may bring, of all partitions.
    #[arg(long, default_value = "8MiB", value_parser = parse_size)]
    pub(crate) fetch_bytes: usize,
    /// How much one fetch may bring, of one partition.
    #[arg(long, default_value = "4MiB", value_parser = parse_size)]
    pub(crate) partition_bytes: usize,
    /// Do not verify the checksums of batches.
    #[arg(long)]
    pub(crate) no_checksums: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct BothArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) load: LoadArgs,
    #[command(flatten)]
    pub(crate) reading: ReadingArgs,
    #[command(flatten)]
    pub(crate) bounds: BoundArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct SuiteArgs {
    /// Address of a broker, as host:port or host (port 1992); repeat it or separate several with commas.
    #[arg(long = "endpoint", env = "LANCE_ENDPOINT", value_delimiter = ',', value_parser = endpoint, default_value = ENDPOINTS)]
    pub(crate) endpoints: Vec<String>,
    /// Print the commands of the workloads and do nothing.
    #[arg(long)]
    pub(crate) list: bool,
    /// Run only workloads with these names; repeatable.
    #[arg(long)]
    pub(crate) only: Vec<String>,
    /// How long to measure each, such as 15s, 500ms or 2m.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// How long to produce before that.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    pub(crate) warmup: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct AbuseArgs {
    /// Address of a broker, as host:port or host (port 1992); repeat it or separate several with commas.
    #[arg(long = "endpoint", env = "LANCE_ENDPOINT", value_delimiter = ',', value_parser = endpoint, default_value = ENDPOINTS)]
    pub(crate) endpoints: Vec<String>,
    /// The topic; created with 64 partitions if need be.
    #[arg(long, default_value = "abuse")]
    pub(crate) topic: String,
    /// Connections, each with one of eight kinds of requests.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// How long, such as 15s, 500ms or 2m.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct LimitsArgs {
    /// Where to put the files that are written and read; on the file system of the brokers' data. They are deleted.
    #[arg(long, default_value = ".")]
    pub(crate) dir: PathBuf,
    /// How long each part takes, about.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub(crate) duration: Duration,
    /// How much is written and read in sequence, and so the largest file.
    #[arg(long, default_value = "1024MiB", value_parser = parse_file_size)]
    pub(crate) file_size: u64,
    /// Print JSON, for --limits.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct EvidenceArgs {
    /// The folder of the run; index.json and index.html are written there.
    pub(crate) dir: PathBuf,
    /// Append a section about the run's gates to this document, in Markdown. Once for each run.
    #[arg(long, value_name = "FILE")]
    pub(crate) append: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AcksArg {
    /// Nothing: the broker has received the records.
    None,
    /// The leader has them on stable storage.
    Leader,
    /// A majority of the replicas has them on stable storage.
    Quorum,
}

impl AcksArg {
    pub(crate) fn acks(self) -> Acks {
        match self {
            AcksArg::None => Acks::None,
            AcksArg::Leader => Acks::Leader,
            AcksArg::Quorum => Acks::Quorum,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            AcksArg::None => "none",
            AcksArg::Leader => "leader",
            AcksArg::Quorum => "quorum",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CodecArg {
    None,
    Lz4,
    Zstd,
}

impl CodecArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            CodecArg::None => "none",
            CodecArg::Lz4 => "lz4",
            CodecArg::Zstd => "zstd",
        }
    }

    pub(crate) fn codec(self) -> Codec {
        match self {
            CodecArg::None => Codec::None,
            CodecArg::Lz4 => Codec::Lz4,
            CodecArg::Zstd => Codec::Zstd,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum From {
    Start,
    End,
}

impl From {
    pub(crate) fn name(self) -> &'static str {
        match self {
            From::Start => "start",
            From::End => "end",
        }
    }
}

fn endpoint(text: &str) -> Result<String, String> {
    lnc_client::with_port(text, lnc_client::DEFAULT_PORT)
}

/// Reads a duration: a number with the unit ms, s or m.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let number: f64 = digits.parse().map_err(|_| format!("`{text}` is not a number with a unit"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        unit => return Err(format!("unit `{unit}` is none of ms, s, m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.01..=1e8).contains(&rate) => Ok(rate),
        _ => Err("not a number of records a second from 0.01 to 100 million".into()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("not a number from 0 to 1".into()),
    }
}

/// A file size in MiB, at least enough for one block of sequential I/O.
fn parse_file_size(text: &str) -> Result<u64, String> {
    let number = text.strip_suffix("MiB").and_then(|number| number.parse::<u64>().ok());
    match number {
        Some(mib) if (8..=65_536).contains(&mib) => Ok(mib << 20),
        _ => Err(format!("`{text}` is not a size from 8MiB to 65536MiB")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_documented() {
        crate::documents::documented("docs/CLI.md", "lnc-bench", &crate::documents::command_line(Cli::command()));
    }

    #[test]
    fn help_texts_are_wrapped_once() {
        crate::documents::wrapped_once(Cli::command());
    }

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
    fn numbers_have_their_bounds() {
        assert_eq!((parse_rate("0.5"), parse_share("1")), (Ok(0.5), Ok(1.0)));
        for bad in ["0", "-1", "nan", "1e9", "x"] {
            assert!(parse_rate(bad).is_err() && parse_share(&format!("-{bad}x")).is_err(), "{bad:?}");
        }
        assert_eq!(parse_file_size("8MiB"), Ok(8 << 20));
        for bad in ["7MiB", "8", "8MB", "-8MiB", "99999999MiB"] {
            assert!(parse_file_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
