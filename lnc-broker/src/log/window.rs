//! How many bytes of a group may be on their way to a majority at once: enough to keep the disks busy, and no more.
//! What is beyond that waits in a queue that is fair ([`crate::log::fair_queue`]), instead of in a log that is not.
//!
//! The window grows while something waits and entries commit quickly, and shrinks when even the quickest of a moment takes
//! too long: then there is a queue that stays, as CoDel tells it (RFC 8289, section 3.2). What is too long depends on what a commit
//! takes when nothing else is under way, and on what this node's disk takes to flush little: a slow disk or a long way gets a larger
//! window. Where there is always something under way, the window is shut for the length of one entry now and then, to find out,
//! as BBR does it (its state ProbeRTT).

/// Time from the first command of an entry to its commit that is aimed at while more waits.
const TARGET_US: u64 = 10_000;

/// A commit may take so much longer than one by itself, in per cent. Where several leaders share a disk, each finds the entries of
/// the others under way when it tries: with half as much again each would make room for the room of the others, without end.
const COMMIT_PERCENT: u64 = 125;

/// A commit may take as long as so many flushes of little data: two of its own on either side of one that is under way.
const FLUSHES: u64 = 4;

/// The window's bounds, in bytes, and where it starts. Below the least, what each entry costs beside its bytes would count.
const LEAST: usize = 128 << 10;
const MOST: usize = 16 << 20;
const FIRST: usize = 1 << 20;

/// An entry of so many bytes takes about as long as a shorter one.
const LITTLE: usize = 32 << 10;

/// The shortest time between two changes.
const MOMENT_US: u64 = 10_000;

/// How old what is known of a commit by itself may become while something always waits.
const PROBE_US: u64 = 5_000_000;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Window {
    /// Between [`LEAST`] and [`MOST`].
    bytes: usize,
    /// When this moment began; and of the entries that committed in it, how long the quickest took.
    since_us: u64,
    quickest_us: Option<u64>,
    /// Something waited for room in this moment.
    was_short: bool,
    /// What a commit takes by itself, and when that was found out; both 0 until then.
    alone_us: u64,
    alone_at_us: u64,
    /// Nothing is let in before all is committed, and then one item.
    is_probing: bool,
}

/// An entry that has committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit {
    /// Its payload.
    pub(crate) bytes: usize,
    /// From the first command in it to its commit.
    pub(crate) took_us: u64,
    /// Nothing else was under way when it began.
    pub(crate) was_alone: bool,
}

impl Default for Window {
    fn default() -> Self {
        Self {
            bytes: FIRST,
            since_us: 0,
            quickest_us: None,
            was_short: false,
            alone_us: 0,
            alone_at_us: 0,
            is_probing: false,
        }
    }
}

impl Window {
    /// Whether an item of `bytes` may join `in_flight` bytes. One that is longer than the window goes when little is under
    /// way, so that the disks have something to do when that is done.
    pub(crate) fn fits(&self, in_flight: usize, bytes: usize) -> bool {
        match self.is_probing {
            true => in_flight == 0,
            false => in_flight + bytes <= self.bytes || in_flight <= self.bytes / 4,
        }
    }

    /// Something had to wait.
    pub(crate) fn fell_short(&mut self, now_us: u64) {
        self.was_short = true;
        self.is_probing = now_us.saturating_sub(self.alone_at_us) > PROBE_US;
    }

    /// An entry has committed. `flush_us`: what the disk takes to flush little data.
    pub(crate) fn committed(&mut self, now_us: u64, flush_us: u64, commit: Commit) {
        if commit.was_alone && (self.is_probing || commit.bytes <= LITTLE) {
            self.alone_us = if self.alone_us == 0 { commit.took_us } else { (self.alone_us + commit.took_us) / 2 };
            (self.alone_at_us, self.is_probing) = (now_us, false);
        }
        let quickest = self.quickest_us.map_or(commit.took_us, |quickest| quickest.min(commit.took_us));
        self.quickest_us = Some(quickest);
        if now_us.saturating_sub(self.since_us) < MOMENT_US.max(quickest) {
            return;
        }
        let target = TARGET_US.max(self.alone_us * COMMIT_PERCENT / 100).max(FLUSHES * flush_us);
        if quickest > target && self.alone_us > 0 {
            // No less than half at a time: one pause of the machine says little.
            let wanted = (self.bytes as u64).saturating_mul(target) / quickest;
            self.bytes = (wanted as usize).max(self.bytes / 2).max(LEAST);
        } else if self.was_short {
            self.bytes = (self.bytes + self.bytes / 8).min(MOST);
        }
        (self.since_us, self.quickest_us, self.was_short) = (now_us, None, false);
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What the disk takes for a flush of little data while it has nothing else to do.
#[derive(Debug, Default)]
pub(crate) struct QuickFlush {
    /// A moving average, in microseconds; 0 until there was one.
    typical_us: u64,
}

impl QuickFlush {
    /// A flush is done that had the disk for itself.
    pub(crate) fn note(&mut self, bytes: usize, took_us: u64) {
        /// Weight of the average against that of one flush.
        const WEIGHT: u64 = 15;
        if bytes <= LITTLE {
            self.typical_us = match self.typical_us {
                0 => took_us,
                typical => (typical * WEIGHT + took_us) / (WEIGHT + 1),
            };
        }
    }

    pub(crate) fn typical_us(&self) -> u64 {
        self.typical_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(took_us: u64) -> Commit {
        Commit { bytes: 1 << 20, took_us, was_alone: false }
    }

    /// A disk that takes `flush_us` for each flush and writes `rate` bytes in a microsecond, for ever given as much as the window
    /// allows. Gives what a commit takes in the end, and the share of the disk's rate that is used.
    fn settles(flush_us: u64, rate: usize) -> (u64, f64) {
        let (mut window, mut now, mut took) = (Window::default(), 1, 0);
        window.committed(now, flush_us, Commit { bytes: 1, took_us: flush_us, was_alone: true });
        for _ in 0..2000 {
            window.fell_short(now);
            if !window.fits(1, 1) {
                now += flush_us;
                window.committed(now, flush_us, Commit { bytes: 1, took_us: flush_us, was_alone: true });
            }
            // Two flushes share the window, one after the other.
            let flush = flush_us + (window.bytes() / 2 / rate) as u64;
            took = 2 * flush;
            now += flush;
            window.committed(now, flush_us, commit(took));
        }
        (took, window.bytes() as f64 / (took as usize * rate) as f64)
    }

    #[test]
    fn fast_and_slow_disks_are_kept_busy_without_a_queue() {
        for (flush_us, rate) in [(50, 2000), (500, 500), (1_000, 100), (3_000, 30), (15_000, 150)] {
            let (took, used) = settles(flush_us, rate);
            assert!(took <= 12_500.max(9 * flush_us / 2), "{flush_us} us, {rate} B/us: {took} us");
            assert!(used > 0.45, "{flush_us} us, {rate} B/us: {used}");
        }
    }

    #[test]
    fn it_stays_as_it_is_while_nothing_waits() {
        let mut window = Window::default();
        for step in 1..1000 {
            window.committed(step * 20_000, 500, commit(1_000));
        }
        assert_eq!(window.bytes(), FIRST);
    }

    #[test]
    fn one_slow_entry_among_quick_ones_changes_nothing() {
        let mut window = Window::default();
        for step in 1..1000 {
            window.committed(step * 2_000, 500, commit(if step % 5 == 0 { 500_000 } else { 2_000 }));
        }
        assert_eq!(window.bytes(), FIRST);
    }

    #[test]
    fn what_is_longer_than_the_window_goes_when_little_is_under_way() {
        let window = Window::default();
        assert!(window.fits(0, 32 << 20) && window.fits(FIRST / 4, FIRST) && !window.fits(FIRST / 2, FIRST));
        assert!(window.fits(FIRST / 2, FIRST / 2) && !window.fits(FIRST, 1));
    }

    #[test]
    fn now_and_then_one_goes_alone() {
        let mut window = Window::default();
        window.fell_short(PROBE_US);
        assert!(window.fits(FIRST / 2, 1), "not yet");
        window.fell_short(PROBE_US + 1);
        assert!(!window.fits(1, 1) && window.fits(0, 1));
        window.committed(PROBE_US + 5_000, 500, commit(5_000));
        assert!(!window.fits(1, 1), "that one was begun before");
        window.committed(PROBE_US + 6_000, 500, Commit { was_alone: true, ..commit(1_000) });
        assert!(window.fits(1, 1));
        window.fell_short(PROBE_US + 7_000);
        assert!(window.fits(1, 1), "that was just found out");
    }

    #[test]
    fn where_the_way_has_become_long_the_window_grows() {
        let (mut window, mut now, flush_us) = (Window::default(), 0, 500);
        window.committed(now, flush_us, Commit { bytes: 1, took_us: 1_000, was_alone: true });
        for _ in 0..2_000 {
            window.fell_short(now);
            now += 300_000;
            window.committed(now, flush_us, Commit { was_alone: !window.fits(1, 1), ..commit(300_000) });
        }
        assert_eq!(window.bytes(), MOST, "a commit takes as long, however little is under way");
    }

    #[test]
    fn leaders_that_share_a_disk_do_not_outgrow_each_other() {
        /// What each lets be under way, in entries, where a commit takes as long as all that is.
        fn share(others: f64) -> f64 {
            COMMIT_PERCENT as f64 / 100.0 * (1.0 + others) - others
        }
        let mut each = 1.0;
        for _ in 0..1000 {
            each = share(2.0 * each).max(1.0);
        }
        assert!(each < 3.0, "{each}");
    }
}
