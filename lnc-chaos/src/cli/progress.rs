//! How far a batch has come, on a terminal only.

use crate::sim::report::Counts;
use indicatif::{ProgressBar, ProgressStyle};
use lance::cli::counted;
use std::io::IsTerminal;
use std::time::Duration;

/// See the module documentation.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begin; `seeds` if their number is known.
    pub(super) fn start(seeds: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden() };
        }
        let bar = seeds.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
        let template = if seeds.is_some() { "{bar:30} {pos}/{len} {msg}" } else { "{spinner} {msg}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// Show the figures so far.
    pub(super) fn show(&self, counts: &Counts, elapsed: Duration) {
        if self.bar.is_hidden() {
            return;
        }
        let seconds = counts.virtual_us as f64 / 1e6;
        let wall = elapsed.as_secs_f64().max(1e-3);
        let faults: Vec<String> = counts.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        self.bar.set_position(counts.runs);
        self.bar.set_message(format!(
            "{}, {:.0} s simulated, {:.0} s/s, {:.0} events/s, {}; {}",
            counted(counts.runs, "seed"),
            seconds,
            seconds / wall,
            counts.events as f64 / wall,
            counted(counts.done, "operation"),
            faults.join(", ")
        ));
    }

    /// Make room for the result.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
