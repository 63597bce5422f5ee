//! When requests are due.
//!
//! In the closed loop a request is due when there is room for it. In the open loop it is due at a time that nothing
//! changes: what the servers do delays the request, not its due time, and latency counts from there. So a stall counts
//! against every request that it held up, sent or not (no coordinated omission).

/// How long after the end a request of the open loop that was due before it may still be sent, in nanoseconds: enough for
/// the timer's lateness, too short to work off what a saturated cluster left undone.
const GRACE: u64 = 50_000_000;

/// One line's share of the requests of a run. Times are nanoseconds of the run's clock.
#[derive(Clone, Debug)]
pub(crate) enum Pace {
    /// As soon as there is room, until this time.
    Closed { until: u64 },
    /// At its time.
    Open(OpenPace),
}

/// Request `k` of all lines is due `k` periods after the start; this line has every one whose number leaves the
/// remainder `line` when divided by `lines`.
#[derive(Clone, Debug)]
pub(crate) struct OpenPace {
    pub(crate) start: u64,
    pub(crate) until: u64,
    /// Nanoseconds from one request, of all lines, to the next.
    pub(crate) period: f64,
    pub(crate) lines: u64,
    /// The number of this line's next request.
    pub(crate) next: u64,
}

impl OpenPace {
    /// The pace of line `line` of `lines`, which together send `rate` requests a second.
    pub(crate) fn new(start: u64, until: u64, rate: f64, line: u64, lines: u64) -> Self {
        OpenPace { start, until, period: 1e9 / rate, lines, next: line }
    }

    /// When this line is to be looked at next: when a request is due, or when it is too late for one.
    pub(crate) fn next_look(&self) -> u64 {
        self.peek().unwrap_or(self.until + GRACE)
    }

    /// When the next request is due; `None` if that is after the end.
    pub(crate) fn peek(&self) -> Option<u64> {
        let due = self.start + (self.next as f64 * self.period) as u64;
        (due < self.until).then_some(due)
    }
}

impl Pace {
    /// Takes the next request if it is due at `now`, and says since when.
    pub(crate) fn take(&mut self, now: u64) -> Option<u64> {
        match self {
            Pace::Closed { until } => (now < *until).then_some(now),
            Pace::Open(open) => {
                let due = open.peek().filter(|due| *due <= now && now < open.until + GRACE)?;
                open.next += open.lines;
                Some(due)
            }
        }
    }

    /// Takes a request that has not been taken, whether or not it is too late to send it.
    pub(crate) fn take_missed(&mut self) -> Option<u64> {
        let Pace::Open(open) = self else { return None };
        let due = open.peek()?;
        open.next += open.lines;
        Some(due)
    }

    /// Whether nothing will be due any more.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        match self {
            Pace::Closed { until } => now >= *until,
            Pace::Open(open) => open.peek().is_none() || now >= open.until + GRACE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Recorder, Window};

    const MS: u64 = 1_000_000;

    #[test]
    fn lines_share_the_rate_evenly() {
        let mut paces: Vec<_> = (0..3).map(|line| Pace::Open(OpenPace::new(0, 10 * MS, 1000.0, line, 3))).collect();
        let mut due = Vec::new();
        for pace in &mut paces {
            while let Some(time) = pace.take(10 * MS) {
                due.push(time);
            }
            assert!(pace.is_over(0));
        }
        due.sort_unstable();
        assert_eq!(due, (0..10).map(|k| k * MS).collect::<Vec<_>>());
    }

    #[test]
    fn nothing_is_due_early_and_what_was_missed_is_due_with_its_own_time() {
        let mut pace = Pace::Open(OpenPace::new(5 * MS, 100 * MS, 1000.0, 0, 1));
        assert_eq!(pace.take(4 * MS), None);
        assert_eq!(pace.take(7 * MS), Some(5 * MS));
        assert_eq!(pace.take(7 * MS), Some(6 * MS));
        assert_eq!(pace.take(7 * MS), Some(7 * MS));
        assert_eq!(pace.take(7 * MS), None);
        assert!(!pace.is_over(99 * MS));
    }

    #[test]
    fn what_a_saturated_cluster_left_undone_is_not_sent_after_the_end() {
        let mut pace = Pace::Open(OpenPace::new(0, 10 * MS, 1000.0, 0, 1));
        assert_eq!(pace.take(10 * MS), Some(0));
        assert!(!pace.is_over(10 * MS));
        let late = 10 * MS + GRACE;
        assert!(pace.is_over(late));
        assert_eq!(pace.take(late), None);
        let missed: Vec<_> = std::iter::from_fn(|| pace.take_missed()).collect();
        assert_eq!(missed, (1..10).map(|k| k * MS).collect::<Vec<_>>());
    }

    #[test]
    fn the_closed_loop_is_always_due_until_the_end() {
        let mut pace = Pace::Closed { until: 10 };
        assert_eq!((pace.take(3), pace.take(3), pace.take(10)), (Some(3), Some(3), None));
        assert!(pace.is_over(10) && !pace.is_over(9));
    }

    /// A server that answers within 1 ms, but stands still from 300 to 400 ms, and one request in flight at most.
    #[test]
    fn a_stall_counts_against_every_request_that_it_held_up() {
        let answer = |sent: u64| if (300 * MS..400 * MS).contains(&sent) { 400 * MS } else { sent } + MS;
        let run = |mut pace: Pace| {
            let mut recorder = Recorder::new(Window { from: 0, until: 1000 * MS });
            let mut now = 0;
            while !pace.is_over(now) {
                match pace.take(now) {
                    Some(due) => {
                        now = answer(now);
                        recorder.acknowledged(due, now, 1, 1);
                    }
                    None => now += MS / 10,
                }
            }
            recorder.latencies
        };
        let open = run(Pace::Open(OpenPace::new(0, 1000 * MS, 200.0, 0, 1)));
        let closed = run(Pace::Closed { until: 1000 * MS });
        // 20 of 200 requests were due during the stall; in the closed loop a single one saw it.
        assert_eq!(open.len(), 200);
        assert!(open.value_at_quantile(0.95) > 40 * MS, "{}", open.value_at_quantile(0.95));
        assert!(open.max() > 99 * MS && closed.max() > 99 * MS);
        assert!(closed.value_at_quantile(0.99) < 2 * MS, "{}", closed.value_at_quantile(0.99));
    }
}
