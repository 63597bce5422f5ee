//! Manual pages, from the same definitions as `--help`: one for each command of a program. The programs that have some
//! share this file.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// Write a page for the command and for each of its subcommands into a directory, which must exist.
pub fn write(command: Command, directory: &Path) -> io::Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let version = format!("LANCE {}", env!("CARGO_PKG_VERSION"));
    write_each(&command, directory, &version)
}

fn write_each(command: &Command, directory: &Path, version: &str) -> io::Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        write_each(inner, directory, version)?;
    }
    let page = Man::new(command.clone()).source(version).manual("LANCE");
    let mut file = File::create(directory.join(page.get_filename()))?;
    write_page(&page, command, &mut file)?;
    file.flush()
}

fn write_page(page: &Man, command: &Command, out: &mut dyn Write) -> io::Result<()> {
    page.render_title(out)?;
    page.render_name_section(out)?;
    let usage = command.clone().render_usage().to_string();
    let mut synopsis = Roff::default();
    synopsis.control("SH", ["SYNOPSIS"]);
    as_it_stands(&mut synopsis, usage.trim_start_matches("Usage:").lines().map(str::trim));
    synopsis.to_writer(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    if command.get_subcommands().any(|inner| !inner.is_hide_set()) {
        page.render_subcommands_section(out)?;
    }
    match command.get_after_help() {
        Some(help) => notes(&help.to_string()).to_writer(out),
        None => Ok(()),
    }
}

/// What stands below the options: text in paragraphs, and under headings what has a layout of its own.
fn notes(help: &str) -> Roff {
    let mut roff = Roff::default();
    let mut titled = false;
    for part in help.split("\n\n") {
        let (first, rest) = part.split_once('\n').unwrap_or((part, ""));
        match first.strip_suffix(':').filter(|_| rest.starts_with(' ')) {
            Some(heading) => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
                as_it_stands(&mut roff, rest.lines());
                titled = false;
            }
            None => {
                match titled {
                    true => roff.control("PP", []),
                    false => roff.control("SH", ["NOTES"]),
                };
                roff.text([roman(part)]);
                titled = true;
            }
        }
    }
    roff
}

fn as_it_stands<'a>(roff: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    roff.control("nf", []);
    lines.for_each(|line| {
        roff.text([roman(line)]);
    });
    roff.control("fi", []);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_layout_keeps_it() {
        let roff =
            notes("Some words.\nMore of them.\n\nMore.\n\nExamples:\n  lance a   one\n  lance bc  two").to_roff();
        let expected = ".SH NOTES\nSome words.\nMore of them.\n.PP\nMore.\n.SH EXAMPLES\n.nf\n  lance a   one\n  lance bc  two\n.fi\n";
        assert_eq!(roff, expected);
    }
}
