//! What counts. A run has a warm-up and, after it, a window of measurement.
//!
//! Throughput counts the records whose acknowledgement arrives within the window. Latency counts each request that is
//! due within the window, however late its answer: a stall at the end of a run must not vanish from the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Significant decimal digits of a recorded latency, over the whole run and over a part of it.
const PRECISION: u8 = 3;
const PRECISION_OF_PART: u8 = 2;

/// The longest latency told apart, in nanoseconds: an hour. The histogram takes its memory at the start.
const LONGEST: u64 = 3_600_000_000_000;

/// A run is shown over time in at most this many parts, none shorter than the second figure, in nanoseconds.
const MOST_PARTS: u64 = 120;
const SHORTEST_PART: u64 = 100_000_000;

/// Nanoseconds since the start of the process's measurements: cheap to keep, to compare and to embed in a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Clock { epoch: Instant::now() }
    }

    pub(crate) fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    pub(crate) fn instant(&self, time: u64) -> Instant {
        self.epoch + Duration::from_nanos(time)
    }
}

/// The time in which a run is measured, in nanoseconds of its clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) from: u64,
    pub(crate) until: u64,
}

impl Window {
    /// The window that starts after `warmup`, counted from `start`.
    pub(crate) fn after(start: u64, warmup: Duration, duration: Duration) -> Self {
        let from = start + warmup.as_nanos() as u64;
        Window { from, until: from + duration.as_nanos() as u64 }
    }

    pub(crate) fn contains(&self, time: u64) -> bool {
        self.from <= time && time < self.until
    }

    /// The length of the parts in which the window is shown over time.
    fn part(&self) -> u64 {
        let least = (self.until - self.from).div_ceil(MOST_PARTS).max(SHORTEST_PART);
        least.next_multiple_of(SHORTEST_PART)
    }
}

/// What happened in a part of the window.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Of requests answered in this part, in nanoseconds.
    pub(crate) latencies: Histogram<u32>,
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
    /// Requests of the open loop that were due and could not be sent before the run ended.
    pub(crate) unsent: u64,
    /// The window in parts of [`Recorder::part_length`].
    pub(crate) parts: Vec<Part>,
    part: u64,
}

impl Recorder {
    pub(crate) fn new(window: Window) -> Self {
        Recorder {
            window,
            latencies: histogram(),
            records: 0,
            bytes: 0,
            errors: BTreeMap::new(),
            unsent: 0,
            parts: Vec::new(),
            part: window.part(),
        }
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// In nanoseconds.
    pub(crate) fn part_length(&self) -> u64 {
        self.part
    }

    /// A request of `records` records that was due at `due` was answered.
    pub(crate) fn acknowledged(&mut self, due: u64, answered: u64, records: u32, bytes: u32) {
        let latency = answered.saturating_sub(due);
        let due_in_window = self.window.contains(due);
        if due_in_window {
            self.latencies.saturating_record(latency);
        }
        if self.window.contains(answered) {
            let part = self.count(answered, u64::from(records), u64::from(bytes));
            if due_in_window {
                part.latencies.saturating_record(latency);
            }
        }
    }

    /// Records arrived for which there is no latency.
    pub(crate) fn received(&mut self, at: u64, records: u64, bytes: u64) {
        if self.window.contains(at) {
            self.count(at, records, bytes);
        }
    }

    fn count(&mut self, at: u64, records: u64, bytes: u64) -> &mut Part {
        self.records += records;
        self.bytes += bytes;
        let index = ((at - self.window.from) / self.part) as usize;
        self.grow(index + 1);
        let part = &mut self.parts[index];
        part.records += records;
        part.bytes += bytes;
        part
    }

    fn grow(&mut self, parts: usize) {
        while self.parts.len() < parts {
            let latencies = Histogram::new_with_bounds(1, LONGEST, PRECISION_OF_PART).expect("the bounds are in order");
            self.parts.push(Part { records: 0, bytes: 0, latencies });
        }
    }

    /// A request that was due at `due` failed. Of the requests that are due in the window, each ends up here, or with a
    /// latency.
    pub(crate) fn request_failed(&mut self, due: u64, error: &str) {
        if self.window.contains(due) {
            self.error(error, 1);
        }
    }

    /// Something else failed: connecting, or a fetch.
    pub(crate) fn failed(&mut self, answered: u64, error: &str) {
        if self.window.contains(answered) {
            self.error(error, 1);
        }
    }

    /// Counts errors, whenever they happened.
    pub(crate) fn error(&mut self, error: &str, count: u64) {
        match self.errors.get_mut(error) {
            Some(known) => *known += count,
            None => drop(self.errors.insert(error.to_owned(), count)),
        }
    }

    /// A request that was due at `due` had not been sent when the run ended at `end`. It counts as if it had been
    /// answered then, which is earlier than it would have been.
    pub(crate) fn never_sent(&mut self, due: u64, end: u64) {
        if self.window.contains(due) {
            self.latencies.saturating_record(end.saturating_sub(due));
            self.unsent += 1;
        }
    }

    /// Adds what another thread counted in the same window.
    pub(crate) fn merge(&mut self, other: &Recorder) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.records += other.records;
        self.bytes += other.bytes;
        self.unsent += other.unsent;
        for (error, count) in &other.errors {
            self.error(error, *count);
        }
        self.grow(other.parts.len());
        for (part, other) in self.parts.iter_mut().zip(&other.parts) {
            part.records += other.records;
            part.bytes += other.bytes;
            part.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        }
    }
}

/// An empty histogram of nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, PRECISION).expect("the bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn recorder() -> Recorder {
        Recorder::new(Window::after(0, Duration::from_millis(100), Duration::from_millis(50)))
    }

    #[test]
    fn the_warmup_is_left_out_of_every_figure() {
        let mut recorder = recorder();
        // A very slow request of the warm-up, and an error in it.
        recorder.acknowledged(0, 99 * MS, 1, 10);
        recorder.request_failed(99 * MS, "NotLeader");
        assert_eq!((recorder.records, recorder.bytes, recorder.latencies.len()), (0, 0, 0));
        assert!(recorder.errors.is_empty());
        // One that was due in the warm-up and answered after it says nothing about latency after the warm-up.
        recorder.acknowledged(0, 101 * MS, 1, 10);
        assert_eq!((recorder.records, recorder.latencies.len()), (1, 0));
        recorder.acknowledged(100 * MS, 102 * MS, 1, 10);
        recorder.request_failed(102 * MS, "NotLeader");
        assert_eq!((recorder.records, recorder.latencies.len()), (2, 1));
        assert!(recorder.latencies.max() < 3 * MS, "the slow request is not in it");
        assert_eq!(recorder.errors["NotLeader"], 1);
    }

    #[test]
    fn a_stall_at_the_end_counts_as_latency_but_not_as_throughput() {
        let mut recorder = recorder();
        recorder.acknowledged(149 * MS, 900 * MS, 1, 10);
        assert_eq!((recorder.records, recorder.latencies.len()), (0, 1));
        assert!(recorder.latencies.max() >= 751 * MS);
        recorder.acknowledged(150 * MS, 151 * MS, 1, 10);
        assert_eq!((recorder.records, recorder.latencies.len()), (0, 1), "due after the end");
    }

    #[test]
    fn what_was_due_and_never_sent_counts_with_the_time_that_it_waited() {
        let mut recorder = recorder();
        recorder.never_sent(99 * MS, 500 * MS);
        recorder.never_sent(120 * MS, 500 * MS);
        recorder.never_sent(150 * MS, 500 * MS);
        assert_eq!((recorder.unsent, recorder.records, recorder.latencies.len()), (1, 0, 1));
        assert!(recorder.latencies.max() >= 379 * MS);
    }

    #[test]
    fn threads_add_up() {
        let mut one = recorder();
        let mut other = recorder();
        for recorder in [&mut one, &mut other] {
            recorder.acknowledged(100 * MS, 110 * MS, 5, 50);
            recorder.failed(110 * MS, "Overloaded");
        }
        one.merge(&other);
        assert_eq!((one.records, one.bytes, one.latencies.len(), one.errors["Overloaded"]), (10, 100, 2, 2));
        assert_eq!((one.parts.len(), one.parts[0].records, one.parts[0].latencies.len()), (1, 10, 2));
    }

    #[test]
    fn a_window_has_parts_that_people_can_read() {
        let part = |seconds| Window::after(0, Duration::ZERO, Duration::from_secs(seconds)).part() / MS;
        assert_eq!((part(1), part(15), part(60), part(3600)), (100, 200, 500, 30_000));
        let mut recorder = Recorder::new(Window::after(0, Duration::ZERO, Duration::from_secs(1)));
        recorder.acknowledged(0, 250 * MS, 1, 7);
        recorder.received(999 * MS, 2, 8);
        let parts: Vec<_> = recorder.parts.iter().map(|part| (part.records, part.latencies.len())).collect();
        assert_eq!(parts, [(0, 0), (0, 0), (1, 1), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (2, 0)]);
    }
}
