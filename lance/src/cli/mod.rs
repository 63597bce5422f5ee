//! The command line.
//!
//! Each subcommand has its file, with its arguments and its `run`. What they share: [`output`] prints, [`error`] turns
//! failures into exit codes. Results go to standard output, everything else to standard error.

mod cluster;
mod completions;
mod config;
mod confirm;
mod consume;
mod dev;
mod error;
mod format;
mod formats;
mod man;
mod members;
mod output;
mod produce;
mod server;
mod time;
mod top;
mod topic;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use lnc_client::Client;

use crate::config::units;
use error::CliError;
use output::OutputFormat;
pub use output::counted;

/// LANCE, a streaming broker that keeps what it acknowledges.
#[derive(Debug, Parser)]
#[command(name = "lance", version, max_term_width = 100, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  failed; standard error says why
  2  wrong usage, or a configuration that is not valid
  3  the cluster cannot be reached
  4  no such topic or partition
  5  not done in time

Examples:
  lance dev                         a cluster of three nodes in this terminal
  lance topic create orders --partitions 3
  lance produce orders --file orders.txt
  lance consume orders --until-end
  lance cluster status
  lance top";

/// Options of every command that talks to a cluster.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of commands that talk to a cluster")]
struct Global {
    /// Nodes to connect to, as host:port or host (port 1992), separated by commas; one that can be reached is enough
    #[arg(
        long,
        global = true,
        env = "LANCE_ENDPOINT",
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        value_parser = endpoint,
        default_value = "127.0.0.1:1992,127.0.0.1:2002,127.0.0.1:2012"
    )]
    endpoint: Vec<String>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: OutputFormat,
    /// Time for one operation with all its retries, such as 500ms or 1m
    #[arg(long, global = true, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    timeout: Duration,
}

impl Global {
    /// A client. Where nobody listens, no time is spent on waiting for somebody to come.
    async fn connect(&self) -> Result<Client, CliError> {
        let client = Client::builder()
            .endpoints(self.endpoint.iter().map(String::as_str))
            .client_name(concat!("lance-cli/", env!("CARGO_PKG_VERSION")))
            .request_timeout(self.timeout)
            .refusal_is_final(true)
            .build()
            .await;
        client.map_err(|error| if error.is_refusal() { self.refused() } else { error.into() })
    }

    fn refused(&self) -> CliError {
        let endpoints = self.endpoint.join(", ");
        CliError::unreachable(format!(
            "connection refused: no node listens at {endpoints}; is the cluster running, and is --endpoint (LANCE_ENDPOINT) right?"
        ))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Server(server::ServerArgs),
    Dev(dev::DevArgs),
    Topic(topic::TopicArgs),
    Produce(produce::ProduceArgs),
    Consume(consume::ConsumeArgs),
    Cluster(cluster::ClusterArgs),
    Top(top::TopArgs),
    Config(config::ConfigArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

/// Parses the command line, does what it says, and gives the exit code.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

/// [`main`] for a command line from elsewhere; its first word is the name of the program.
pub fn main_with(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = words.into_iter().collect();
    let cli = Cli::try_parse_from(&words).unwrap_or_else(|error| without_environment(&words).unwrap_or(error).exit());
    match run(cli) {
        Ok(code) => code,
        Err(error) => error.report(),
    }
}

/// What is wrong with a command line, told without the endpoint of the environment: the usage shows as required whatever is
/// set, and nobody has to type that.
fn without_environment(words: &[OsString]) -> Option<clap::Error> {
    let command = Cli::command().mut_arg("endpoint", |endpoint| endpoint.env(None::<&'static str>));
    command.try_get_matches_from(words).err()
}

fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let global = cli.global;
    match cli.command {
        Command::Server(args) => server::run(args),
        Command::Dev(args) => dev::run(args),
        Command::Topic(args) => wait(topic::run(&global, args)),
        Command::Produce(args) => wait(produce::run(&global, args)),
        Command::Consume(args) => wait(consume::run(&global, args)),
        Command::Cluster(args) => wait(cluster::run(&global, args)),
        Command::Top(args) => wait(top::run(&global, args)),
        Command::Config(args) => config::run(args),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

/// Runs one command on a runtime of its own. A thread that still blocks in a read of standard input is left behind.
fn wait(command: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("cannot start: {error}")))?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

fn endpoint(text: &str) -> Result<String, String> {
    lnc_client::with_port(text, lnc_client::DEFAULT_PORT)
}

fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "write a duration such as 500ms, 10s, 5m, 12h or 7d".to_owned())
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("must be more than 0".to_owned()) } else { Ok(time) })
}

fn size(text: &str) -> Result<u64, String> {
    units::parse_size(text).ok_or_else(|| "write a size such as 4096, 64KiB or 10GiB".to_owned())
}

#[cfg(test)]
mod tests;
