//! The worst of late: how late the ticks of the node's clock come, which is the sign of a thread that has too much to do or gets no
//! processor, and how long its turns take.

use std::time::{Duration, Instant};

/// The worst of this time, and of up to as long before it, is shown: longer than the usual pause between two scrapes.
const WINDOW: Duration = Duration::from_secs(30);

/// The longest of some durations of late.
#[derive(Debug)]
pub(crate) struct Worst {
    began: Instant,
    current: Duration,
    before: Duration,
}

impl Worst {
    pub(crate) fn new(now: Instant) -> Self {
        Self { began: now, current: Duration::ZERO, before: Duration::ZERO }
    }

    /// Something has taken so long at `now`; gives the worst of late.
    pub(crate) fn note(&mut self, took: Duration, now: Instant) -> Duration {
        let age = now.saturating_duration_since(self.began);
        if age >= WINDOW {
            self.before = if age < 2 * WINDOW { self.current } else { Duration::ZERO };
            (self.began, self.current) = (now, Duration::ZERO);
        }
        self.current = self.current.max(took);
        self.current.max(self.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_shown_for_a_while() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let late = |seconds: u64, millis: u64| (at(seconds), at(seconds) + Duration::from_millis(millis));
        let mut drift = Worst::new(start);
        let mut tick = |(due, now): (Instant, Instant)| drift.note(now.saturating_duration_since(due), now).as_millis();
        assert_eq!(tick(late(1, 2)), 2);
        assert_eq!(tick(late(2, 300)), 300);
        assert_eq!(tick(late(29, 1)), 300);
        assert_eq!(tick(late(31, 5)), 300, "it was half a minute ago");
        assert_eq!(tick(late(62, 1)), 5);
        assert_eq!(tick(late(200, 1)), 1, "nothing of what was long ago");
        assert_eq!(tick((at(201), at(200))), 1, "a tick that comes early is not late");
    }
}
