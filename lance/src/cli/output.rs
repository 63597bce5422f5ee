//! Printing results: aligned tables for people, JSON for programs.

use std::io::{self, Write};

use super::error::CliError;

/// How tables are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum OutputFormat {
    /// Aligned columns
    #[default]
    Table,
    /// JSON
    Json,
}

/// Prints text to standard output.
pub(super) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| CliError::stdout(&error))
}

/// Prints a JSON value over several lines.
pub(super) fn print_json(value: &serde_json::Value) -> Result<(), CliError> {
    print(&format!("{value:#}\n"))
}

/// A number, or a dash where there is none.
pub(super) fn or_dash(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// How many there are, with the word in the form that the count asks for: `1 record`, `2 records`.
pub fn counted(count: u64, word: &str) -> String {
    match word.strip_suffix('y') {
        _ if count == 1 => format!("1 {word}"),
        Some(stem) => format!("{count} {stem}ies"),
        None => format!("{count} {word}s"),
    }
}

/// An id in JSON: a string, since ids may be larger than 2^53, which many readers of JSON round.
pub(super) fn id(id: u64) -> serde_json::Value {
    id.to_string().into()
}

/// Rows of text in aligned columns.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }

    /// The table as text. A column whose cells are all numbers is aligned to the right.
    pub(super) fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let is_number = |cell: &String| cell == "-" || cell.parse::<u64>().is_ok();
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let numeric: Vec<bool> =
            (0..columns).map(|column| self.rows[1..].iter().all(|row| is_number(&row[column]))).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let padding = " ".repeat(widths[column] - cell.chars().count());
                let gap = if column == 0 { "" } else { "  " };
                let (before, after) = if numeric[column] { (padding.as_str(), "") } else { ("", padding.as_str()) };
                line.extend([gap, before, cell, after]);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        let counts = [(0, "0 entries, 0 records"), (1, "1 entry, 1 record"), (2, "2 entries, 2 records")];
        for (count, expected) in counts {
            assert_eq!(format!("{}, {}", counted(count, "entry"), counted(count, "record")), expected);
        }
    }

    #[test]
    fn ids_survive_readers_that_round() {
        assert_eq!(id(u64::MAX), "18446744073709551615");
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["TOPIC", "PARTITIONS", "KEPT"]);
        table.row(vec!["orders".into(), "3".into(), "7d".into()]);
        table.row(vec!["größe".into(), "12".into(), "".into()]);
        assert_eq!(table.render(), "TOPIC   PARTITIONS  KEPT\norders           3  7d\ngröße           12\n");
    }
}
