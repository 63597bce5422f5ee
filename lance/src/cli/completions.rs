//! `lance completions`: scripts that make a shell complete this command line.

use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::error::CliError;
use super::output;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lance completions bash > /etc/bash_completion.d/lance
  lance completions zsh > ~/.zfunc/_lance
  lance completions fish > ~/.config/fish/completions/lance.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs, command: &mut clap::Command) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "lance", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}
