//! `lance config`: the default configuration, and a check of one.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::error::CliError;
use super::output;
use crate::config::{Config, Sources, default_toml};

/// Print or check the configuration of a node
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lance config default > lance.toml
  lance config check lance.toml")]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every key with its default, its limits and what it is for, as a TOML file
    Default,
    /// Check a file, together with the LANCE_SECTION__KEY variables of the environment; exit code 2 if it does not hold
    Check {
        /// The TOML file
        file: PathBuf,
    },
}

pub(super) fn run(args: ConfigArgs) -> Result<ExitCode, CliError> {
    match args.command {
        ConfigCommand::Default => output::print(&default_toml())?,
        ConfigCommand::Check { file } => {
            let sources = Sources::default().file(&file).env(environment());
            Config::load(&sources).map_err(|error| CliError::usage(error.to_string()))?;
            output::print(&format!("{}: ok\n", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The environment; a variable that is not UTF-8 cannot be one of ours.
pub(super) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}
