//! What came of a run: for people, for programs, and its verdict.

use super::checker::Counts;
use super::fault::Fault;
use super::ledger::{Books, COLUMN_US, Column, Struck};
use super::stalls::{Longest, Window, median};
use lance::cli::counted;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A bound on how long producers may have to wait because of a fault, until it is taken back: the median over its
/// repetitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxStall {
    /// Which fault.
    pub fault: Fault,
    /// In microseconds, of the partition that is worst off.
    pub us: u64,
}

/// Longest gaps of one kind of fault over its repetitions, in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Stall {
    /// The middle one.
    pub median: Longest,
    /// The worst.
    pub max: Longest,
    /// Each time, in order.
    pub each: Vec<Longest>,
}

/// What producers saw of one kind of fault.
#[derive(Clone, Debug, Serialize)]
pub struct Stalled {
    /// How often it struck.
    pub count: usize,
    /// While it lasted.
    pub struck: Stall,
    /// From when it was taken back to the next fault: nodes recover, leadership moves back.
    pub after: Stall,
}

/// See the module documentation. Times are in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// "PASS" or "FAIL".
    pub verdict: &'static str,
    /// Why it failed.
    pub reasons: Vec<String>,
    /// The seed that repeats the choice of faults.
    pub seed: u64,
    /// The topic.
    pub topic: String,
    /// How many partitions it has.
    pub partitions: u32,
    /// How many producers wrote.
    pub producers: u32,
    /// How many replicas were read in the end.
    pub replicas: usize,
    /// How long clients worked.
    pub span_us: u64,
    /// What was counted.
    pub counts: Counts,
    /// Records whose delivery failed.
    pub producer_errors: u64,
    /// Errors that the live consumer was given.
    pub consumer_errors: u64,
    /// Connections of clients that took the place of others.
    pub reconnects: u64,
    /// The longest gaps between acknowledgements, of the whole run.
    pub longest: Longest,
    /// By fault.
    pub stalls: BTreeMap<&'static str, Stalled>,
    /// The faults in order.
    pub nemesis: Vec<Struck>,
    /// The first findings, in words.
    pub findings: Vec<String>,
    /// The first errors of clients, in words.
    pub errors: Vec<String>,
    /// Width of a column of the timeline.
    pub column_us: u64,
    /// Records over time.
    pub timeline: Vec<Column>,
}

/// What a report cannot read in the books.
pub(super) struct Context<'a> {
    pub(super) seed: u64,
    pub(super) topic: &'a str,
    pub(super) partitions: u32,
    pub(super) producers: u32,
    pub(super) replicas: usize,
    pub(super) bounds: &'a [MaxStall],
}

impl Report {
    /// The report of a run that is over.
    pub(super) fn new(books: &Books, context: &Context<'_>) -> Self {
        let mut report = Self {
            verdict: "PASS",
            reasons: Vec::new(),
            seed: context.seed,
            topic: context.topic.to_owned(),
            partitions: context.partitions,
            producers: context.producers,
            replicas: context.replicas,
            span_us: books.now(),
            counts: books.checker.counts.clone(),
            producer_errors: books.producer_errors,
            consumer_errors: books.consumer_errors,
            reconnects: books.reconnects,
            longest: books.stalls.longest,
            stalls: stalls(&books.stalls.windows),
            nemesis: books.struck.clone(),
            findings: books.checker.findings.clone(),
            errors: books.errors.clone(),
            column_us: COLUMN_US,
            timeline: books.timeline.clone(),
        };
        report.judge(context.bounds);
        report
    }

    /// Fail for every reason that there is.
    fn judge(&mut self, bounds: &[MaxStall]) {
        let counts = &self.counts;
        let named = [
            (counts.gaps, "records are missing"),
            (counts.duplicates, "records are there twice"),
            (counts.out_of_order, "records are out of order"),
            (counts.phantoms, "records were never sent"),
            (counts.different, "offsets hold different bytes"),
            (counts.parse_errors, "records or batches cannot be read"),
            (counts.other, "other promises are broken"),
            (self.producer_errors, "deliveries failed"),
            (self.consumer_errors, "errors were given to the consumer"),
        ];
        let mut reasons: Vec<String> =
            named.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if counts.acknowledged == 0 {
            reasons.push("nothing was acknowledged".to_owned());
        }
        if counts.consumed < counts.acknowledged {
            let (consumed, acknowledged) = (counts.consumed, counts.acknowledged);
            reasons.push(format!(
                "the consumer was handed {}, {acknowledged} were acknowledged",
                counted(consumed, "record")
            ));
        }
        for MaxStall { fault, us } in bounds {
            match self.stalls.get(fault.name()) {
                Some(stall) if stall.struck.median.partition_us <= *us => {}
                Some(stall) => reasons.push(format!(
                    "{fault} stalls a partition for {} (median), allowed are {}",
                    milliseconds(stall.struck.median.partition_us),
                    milliseconds(*us)
                )),
                None => reasons.push(format!("{fault} has a bound on its stalls and never struck")),
            }
        }
        if !reasons.is_empty() {
            self.verdict = "FAIL";
        }
        self.reasons = reasons;
    }

    /// Whether every promise was kept.
    pub fn passed(&self) -> bool {
        self.reasons.is_empty()
    }

    /// As lines for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let Counts { produced, acknowledged, unknown, consumed, .. } = self.counts;
        let Counts { gaps, duplicates, out_of_order, phantoms, different, parse_errors, other, .. } = self.counts;
        let seconds = self.span_us as f64 / 1e6;
        // Writing to a String cannot fail.
        let mut row = |name: &str, value: String| out.push_str(&format!("{name:<18}{value}\n"));
        row("seed", self.seed.to_string());
        let (topic, partitions, producers) = (&self.topic, self.partitions, self.producers);
        row(
            "topic",
            format!("{topic}, {}, {}", counted(partitions.into(), "partition"), counted(producers.into(), "producer")),
        );
        row("produced", format!("{produced}, {acknowledged} acknowledged, {unknown} unknown, in {seconds:.1} s"));
        row("consumed", format!("{consumed}; every partition read from {}", counted(self.replicas as u64, "replica")));
        row("gaps", gaps.to_string());
        row("duplicates", duplicates.to_string());
        row("out of order", out_of_order.to_string());
        row("phantoms", phantoms.to_string());
        row("different bytes", different.to_string());
        row("parse errors", parse_errors.to_string());
        row("other findings", other.to_string());
        row("producer errors", self.producer_errors.to_string());
        row("consumer errors", self.consumer_errors.to_string());
        row("reconnects", self.reconnects.to_string());
        row("faults", self.nemesis.len().to_string());
        self.stall_table(&mut out);
        for (title, lines) in [("finding", &self.findings), ("error", &self.errors), ("reason", &self.reasons)] {
            for line in lines {
                let _ = writeln!(out, "{title}: {line}");
            }
        }
        let _ = writeln!(out, "\n{}", self.verdict);
        out
    }

    fn stall_table(&self, out: &mut String) {
        let head = ["longest gap between acknowledgements", "count", "partition", "producer", "any"];
        let _ = writeln!(
            out,
            "\n{:<38}{:>6}{:>22}{:>22}{:>22}\n{:<38}{:>6}{:>22}{:>22}{:>22}",
            head[0], head[1], head[2], head[3], head[4], "", "", "median / max", "median / max", "median / max"
        );
        let cell = |middle: u64, most: u64| format!("{} / {}", milliseconds(middle), milliseconds(most));
        for (fault, Stalled { count, struck, after }) in &self.stalls {
            for (name, count, Stall { median, max, .. }) in
                [(*fault, count.to_string(), struck), ("  taken back", String::new(), after)]
            {
                let _ = writeln!(
                    out,
                    "{name:<38}{count:>6}{:>22}{:>22}{:>22}",
                    cell(median.partition_us, max.partition_us),
                    cell(median.producer_us, max.producer_us),
                    cell(median.any_us, max.any_us)
                );
            }
        }
        let Longest { any_us, partition_us, producer_us } = self.longest;
        let [partition, producer, any] = [partition_us, producer_us, any_us].map(milliseconds);
        let _ = writeln!(out, "{:<38}{:>6}{partition:>22}{producer:>22}{any:>22}\n", "the whole run", "");
    }
}

/// Stalls by kind of fault.
fn stalls(windows: &[Window]) -> BTreeMap<&'static str, Stalled> {
    let mut each: BTreeMap<&'static str, Vec<&Window>> = BTreeMap::new();
    for window in windows {
        each.entry(window.fault.name()).or_default().push(window);
    }
    let stalled = each.into_iter().map(|(fault, windows)| {
        let struck = summed(windows.iter().map(|window| window.struck).collect());
        let after = summed(windows.iter().map(|window| window.after).collect());
        (fault, Stalled { count: windows.len(), struck, after })
    });
    stalled.collect()
}

fn summed(each: Vec<Longest>) -> Stall {
    let over = |of: fn(Vec<u64>) -> u64| Longest {
        any_us: of(each.iter().map(|longest| longest.any_us).collect()),
        partition_us: of(each.iter().map(|longest| longest.partition_us).collect()),
        producer_us: of(each.iter().map(|longest| longest.producer_us).collect()),
    };
    Stall { median: over(median), max: over(|all| all.into_iter().max().unwrap_or(0)), each }
}

/// Microseconds as milliseconds for people.
pub(super) fn milliseconds(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::checker::Checker;
    use crate::live::history::History;
    use crate::live::ledger::Ledger;
    use crate::live::stalls::Stalls;

    fn report(change: impl FnOnce(&mut Books), bounds: &[MaxStall]) -> Report {
        let ledger = Ledger::new(Checker::new("t", 1, 1, 1), Stalls::new(1, 1), History::default());
        let mut books = ledger.lock();
        books.checker.counts.acknowledged = 5;
        books.checker.counts.consumed = 5;
        change(&mut books);
        let context = Context { seed: 1, topic: "t", partitions: 1, producers: 1, replicas: 3, bounds };
        Report::new(&books, &context)
    }

    #[test]
    fn a_run_without_findings_passes() {
        let report = report(|_| {}, &[]);
        assert!(report.passed() && report.text().ends_with("PASS\n"), "{}", report.text());
    }

    #[test]
    fn every_finding_fails_the_run() {
        let changes: [fn(&mut Books); 8] = [
            |books| books.checker.counts.gaps = 1,
            |books| books.checker.counts.duplicates = 1,
            |books| books.checker.counts.out_of_order = 1,
            |books| books.checker.counts.parse_errors = 1,
            |books| books.producer_errors = 1,
            |books| books.consumer_errors = 1,
            |books| books.checker.counts.acknowledged = 0,
            |books| books.checker.counts.consumed = 4,
        ];
        for change in changes {
            let report = report(change, &[]);
            assert!(!report.passed() && report.verdict == "FAIL" && report.text().ends_with("FAIL\n"));
        }
    }

    #[test]
    fn a_bound_holds_for_the_median_and_needs_its_fault() {
        let strike = |books: &mut Books| {
            for us in [10_000, 20_000, 900_000] {
                books.stalls.begin(0, Fault::KillLeader);
                if let Some(window) = books.stalls.windows.last_mut() {
                    window.struck.partition_us = us;
                }
            }
        };
        let bound = |fault, ms: u64| MaxStall { fault, us: ms * 1000 };
        assert!(report(strike, &[bound(Fault::KillLeader, 20)]).passed());
        assert!(!report(strike, &[bound(Fault::KillLeader, 19)]).passed());
        assert!(!report(strike, &[bound(Fault::KillAll, 1000)]).passed());
        let stall = &report(strike, &[]).stalls["kill-leader"];
        assert_eq!(
            (stall.count, stall.struck.median.partition_us, stall.struck.max.partition_us),
            (3, 20_000, 900_000)
        );
    }
}
