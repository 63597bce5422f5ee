//! `lance man`: manual pages, from the same definition as `--help`. For those who make packages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::error::CliError;
use crate::manual;

/// Write the manual pages, one for each command, into a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lance man target/man")]
pub(super) struct ManArgs {
    /// The directory, which must exist
    directory: PathBuf,
}

pub(super) fn run(args: &ManArgs, command: clap::Command) -> Result<ExitCode, CliError> {
    let failed =
        |error| CliError::failed(format!("cannot write manual pages to {}: {error}", args.directory.display()));
    manual::write(command, &args.directory).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
