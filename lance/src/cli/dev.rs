//! `lance dev`: a whole cluster in one terminal.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use crate::dev::{DevOptions, run as run_cluster};

/// Run a whole cluster in this terminal, one process per node, until Ctrl-C
#[derive(Debug, Args)]
#[command(after_help = "\
Node i listens on three ports in a row: clients on the base port + 10 × (i − 1), peers on the next, HTTP on the one \
after. The data stays in the directory: the next start goes on with it.

Examples:
  lance dev
  lance dev --nodes 5 --base-port 4000 --data-dir /tmp/five")]
pub(super) struct DevArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Directory for configurations and data
    #[arg(long, value_name = "DIR", default_value = ".lance/dev")]
    data_dir: PathBuf,
    /// Port for clients of the first node
    #[arg(long, value_name = "PORT", default_value_t = 1992, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: u16,
}

pub(super) fn run(args: DevArgs) -> Result<ExitCode, CliError> {
    let options = DevOptions { nodes: args.nodes, data_dir: args.data_dir, base_port: args.base_port };
    super::wait(async {
        run_cluster(options).await.map_err(|error| CliError::failed(error.to_string()))?;
        Ok(ExitCode::SUCCESS)
    })
}
