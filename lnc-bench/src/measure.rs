//! What counts. A run has a warm-up and, after it, a window of measurement.
//!
//! Throughput counts the records whose acknowledgement arrives within the window. Latency counts each request that is
//! sent within the window, however late its answer: a stall at the end of a run must not vanish from the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Significant decimal digits of a recorded latency.
const PRECISION: u8 = 3;

/// The longest latency told apart, in nanoseconds: an hour. The histogram takes its memory at the start.
const LONGEST: u64 = 3_600_000_000_000;

/// The time in which a run is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
}

impl Window {
    /// The window that starts after `warmup`, counted from `start`.
    pub(crate) fn after(start: Instant, warmup: Duration, duration: Duration) -> Self {
        let from = start + warmup;
        Window { from, until: from + duration }
    }

    fn contains(&self, time: Instant) -> bool {
        self.from <= time && time < self.until
    }
}

/// Counts what happens in a window.
#[derive(Debug)]
pub(crate) struct Recorder {
    window: Window,
    /// Latencies in nanoseconds.
    pub(crate) latencies: Histogram<u64>,
    /// Records acknowledged.
    pub(crate) records: u64,
    /// Bytes of their values.
    pub(crate) bytes: u64,
    /// Failed requests by error code or kind.
    pub(crate) errors: BTreeMap<String, u64>,
}

impl Recorder {
    pub(crate) fn new(window: Window) -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST, PRECISION).expect("the bounds are in order");
        Recorder { window, latencies, records: 0, bytes: 0, errors: BTreeMap::new() }
    }

    /// A request of `records` records was acknowledged.
    pub(crate) fn acknowledged(&mut self, sent: Instant, answered: Instant, records: u64, bytes: u64) {
        if self.window.contains(sent) {
            let nanoseconds = u64::try_from((answered - sent).as_nanos()).unwrap_or(u64::MAX);
            self.latencies.saturating_record(nanoseconds);
        }
        if self.window.contains(answered) {
            self.records += records;
            self.bytes += bytes;
        }
    }

    /// A request failed.
    pub(crate) fn failed(&mut self, answered: Instant, error: String) {
        if self.window.contains(answered) {
            *self.errors.entry(error).or_default() += 1;
        }
    }

    /// Adds what another thread counted in the same window.
    pub(crate) fn merge(&mut self, other: &Recorder) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.records += other.records;
        self.bytes += other.bytes;
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn recorder() -> (Recorder, Instant) {
        let start = Instant::now();
        (Recorder::new(Window::after(start, 100 * MS, 50 * MS)), start)
    }

    #[test]
    fn the_warmup_is_left_out_of_every_figure() {
        let (mut recorder, start) = recorder();
        // A very slow request of the warm-up, and an error in it.
        recorder.acknowledged(start, start + 99 * MS, 1, 10);
        recorder.failed(start + 99 * MS, "NotLeader".into());
        assert_eq!((recorder.records, recorder.bytes, recorder.latencies.len()), (0, 0, 0));
        assert!(recorder.errors.is_empty());
        // One sent in the warm-up and answered after it says nothing about latency after the warm-up.
        recorder.acknowledged(start, start + 101 * MS, 1, 10);
        assert_eq!((recorder.records, recorder.latencies.len()), (1, 0));
        recorder.acknowledged(start + 100 * MS, start + 102 * MS, 1, 10);
        recorder.failed(start + 102 * MS, "NotLeader".into());
        assert_eq!((recorder.records, recorder.latencies.len()), (2, 1));
        assert!(recorder.latencies.max() < 3_000_000, "the slow request is not in it");
        assert_eq!(recorder.errors["NotLeader"], 1);
    }

    #[test]
    fn a_stall_at_the_end_counts_as_latency_but_not_as_throughput() {
        let (mut recorder, start) = recorder();
        recorder.acknowledged(start + 149 * MS, start + 900 * MS, 1, 10);
        assert_eq!((recorder.records, recorder.latencies.len()), (0, 1));
        assert!(recorder.latencies.max() >= 751_000_000);
        recorder.acknowledged(start + 150 * MS, start + 151 * MS, 1, 10);
        assert_eq!((recorder.records, recorder.latencies.len()), (0, 1), "sent after the end");
    }

    #[test]
    fn threads_add_up() {
        let (mut one, start) = recorder();
        let mut other = Recorder::new(one.window);
        for recorder in [&mut one, &mut other] {
            recorder.acknowledged(start + 100 * MS, start + 110 * MS, 5, 50);
            recorder.failed(start + 110 * MS, "Overloaded".into());
        }
        one.merge(&other);
        assert_eq!((one.records, one.bytes, one.latencies.len(), one.errors["Overloaded"]), (10, 100, 2, 2));
    }
}
