//! The parts of docs/ that come from the code: compared with what the code says, or written anew with LANCE_WRITE_DOCS=1.
//! Tests of several crates include this file.

use std::fs;
use std::path::Path;

/// The command that brings all generated parts up to date.
const COMMAND: &str = "LANCE_WRITE_DOCS=1 cargo test -p lance -p lnc-bench -p lnc-chaos documented";

/// Compares the part of a page between `<!-- NAME: generated -->` and `<!-- NAME: end -->` with what it should be.
pub(crate) fn documented(page: &str, name: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").join(page);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (begin, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->\n"));
    let (head, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no line {begin}"));
    let (found, tail) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no line {end}"));
    if std::env::var_os("LANCE_WRITE_DOCS").is_some() {
        fs::write(&path, [head, &begin, expected, &end, tail].concat()).expect("the page can be written");
        return;
    }
    let stale = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
    assert!(
        found == expected,
        "{page}, part {name}, is not what the code says; bring it up to date with\n    {COMMAND}\nfirst difference: {stale:?}"
    );
}

/// A command line with all of its commands, as `--help` shows them.
pub(crate) fn command_line(mut command: clap::Command) -> String {
    fn show(name: &str, level: usize, command: &clap::Command, out: &mut String) {
        // A value of the environment is this machine's, and what every command has is shown once.
        let shown = command.clone().term_width(110).mut_args(|argument| {
            let repeated = level > 2 && argument.is_global_set();
            argument.hide_env_values(true).hide(repeated)
        });
        let help = shown.clone().render_long_help().to_string();
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        *out += &format!("{} `{name}`\n\n```text\n{}\n```\n\n", "#".repeat(level), help.join("\n").trim_end());
        for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help") {
            show(&format!("{name} {}", inner.get_name()), (level + 1).min(4), inner, out);
        }
    }
    command.build();
    let mut out = "\n".to_owned();
    let name = command.get_name().to_owned();
    show(&name, 2, &command, &mut out);
    out
}

/// Fails where a paragraph of a help text is broken into lines by whoever wrote it, and again by the width of a terminal; and
/// where a line that is laid out by hand, an example or a row of a table, is too long to stay one.
pub(crate) fn wrapped_once(mut command: clap::Command) {
    const WIDTH: usize = 100;
    /// Of a terminal as it comes.
    const NARROW: usize = 80;
    fn look(name: &str, command: &clap::Command) {
        let help = command.clone().term_width(WIDTH).mut_args(|argument| argument.hide_env_values(true));
        let help = help.clone().render_long_help().to_string();
        for (line, next) in help.lines().zip(help.lines().skip(1)) {
            assert!(!breaks_early(line, next, WIDTH), "{name}: a line ends too early: `{line}`, then `{next}`");
        }
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let long = after.lines().find(|line| line.starts_with(' ') && line.chars().count() > NARROW);
        assert_eq!(long, None, "{name} has a line of more than {NARROW} characters");
        command.get_subcommands().for_each(|inner| look(&format!("{name} {}", inner.get_name()), inner));
    }
    command.build();
    look(command.get_name(), &command);
}

/// Whether the first word of `next` would have found room in the line before, of the same paragraph.
fn breaks_early(line: &str, next: &str, width: usize) -> bool {
    /// What clap indents descriptions of options by; with another indentation it is laid out by hand.
    const DESCRIPTION: usize = 10;
    let indent = |line: &str| line.len() - line.trim_start().len();
    let Some(word) = next.split_whitespace().next() else { return false };
    let is_paragraph = indent(line) == indent(next) && [0, DESCRIPTION].contains(&indent(line));
    let is_done = line.trim().is_empty() || line.ends_with(['.', ':', ']']) || word.starts_with(['-', '[']);
    is_paragraph && !is_done && line.chars().count() + 1 + word.chars().count() <= width
}

#[test]
fn a_line_that_ends_too_early_is_found() {
    let early = |line: &str, next: &str| breaks_early(line, next, 22);
    assert!(early("HTTP on the one", "after. The data"));
    assert!(early("          on the", "          one"));
    for (line, next) in [
        ("HTTP on the one", "afterwards"),
        ("A sentence.", "Another"),
        ("Examples:", "lance"),
        ("text", ""),
        ("  lance dev", "  lance top"),
        ("          Values:", "          - json"),
    ] {
        assert!(!early(line, next), "`{line}`, then `{next}`");
    }
}
