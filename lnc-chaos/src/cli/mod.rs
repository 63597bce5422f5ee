//! The command line: what to run, how it goes, what came of it. Beside `live` the one part of the crate that reads clocks,
//! draws a seed and writes files.

mod live;
#[cfg(feature = "mutations")]
mod mutations;
mod node;
mod progress;
mod simulate;
mod table;

use clap::{CommandFactory, Parser, Subcommand};
use lance::manual;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The verifier of LANCE.
#[derive(Parser)]
#[command(name = "lnc-chaos", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run simulated clusters of real nodes through faults, and check that every promise is kept
    Sim(simulate::Arguments),
    /// Do harm to real processes under load, and check that every promise is kept
    Live(Box<live::Arguments>),
    /// Be a node: for `live`, which starts them
    #[command(hide = true)]
    Node(node::Arguments),
    /// Build each known mistake into the nodes, and check that the simulator finds it
    #[cfg(feature = "mutations")]
    Mutations(mutations::Arguments),
    /// Write the manual pages, one for each command, into a directory: for those who make packages
    Man {
        /// The directory, which must exist
        directory: PathBuf,
    },
}

/// Run the command that the arguments name. The exit code is 1 if a promise was broken.
pub fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    match command {
        Command::Sim(arguments) => simulate::simulate(&arguments),
        Command::Live(arguments) => live::live(&arguments),
        Command::Node(arguments) => node::be(arguments),
        #[cfg(feature = "mutations")]
        Command::Mutations(arguments) => mutations::hunt(&arguments),
        Command::Man { directory } => manual_pages(&directory),
    }
}

/// Write what `--help` says as manual pages.
fn manual_pages(directory: &Path) -> ExitCode {
    match manual::write(Arguments::command(), directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lnc-chaos: cannot write manual pages to {}: {error}", directory.display());
            ExitCode::from(2)
        }
    }
}

/// A length of time, as `90`, `90s`, `15m`, `2h` or `500ms`.
pub(crate) fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| format!("`{text}` does not begin with a number"))?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("`{unit}` is not a unit of time: use ms, s, m or h")),
    };
    number.checked_mul(ms).map(std::time::Duration::from_millis).ok_or_else(|| format!("`{text}` is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("2h"), Ok(Duration::from_secs(7200)));
        assert!(parse_duration("x").is_err() && parse_duration("3 weeks").is_err());
    }

    #[cfg(not(feature = "mutations"))]
    #[test]
    fn the_command_line_is_documented() {
        let command = Arguments::command();
        crate::documents::documented("docs/CLI.md", "lnc-chaos", &crate::documents::command_line(command));
    }

    #[cfg(not(feature = "mutations"))]
    #[test]
    fn help_texts_are_wrapped_once() {
        crate::documents::wrapped_once(Arguments::command());
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(manual_pages(directory.path()), ExitCode::SUCCESS);
        for name in ["lnc-chaos", "lnc-chaos-sim", "lnc-chaos-live"] {
            let page = std::fs::read_to_string(directory.path().join(format!("{name}.1"))).expect(name);
            assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
        }
        assert_eq!(manual_pages(&directory.path().join("none")), ExitCode::from(2));
    }

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
