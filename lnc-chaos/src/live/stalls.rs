//! How long producers had to wait: gaps between acknowledgements while something was waiting for one, and to which
//! fault each belongs. Times are microseconds since the run began.

use super::fault::Fault;

/// Acknowledgements of one producer from a partition, of one partition, or of all.
#[derive(Clone, Copy, Debug, Default)]
struct Tracker {
    outstanding: u64,
    /// Since when something has been waiting without a break.
    waiting_since: u64,
    last: u64,
}

impl Tracker {
    fn sent(&mut self, now: u64) {
        if self.outstanding == 0 {
            self.waiting_since = now;
        }
        self.outstanding += 1;
    }

    /// The time in which something waited and nothing was acknowledged, up to now.
    fn open(&self, now: u64) -> Option<(u64, u64)> {
        (self.outstanding > 0).then(|| (self.last.max(self.waiting_since).min(now), now))
    }

    /// A record is no longer waited for; gives the gap that its acknowledgement ends.
    fn answered(&mut self, now: u64, acknowledged: bool) -> Option<(u64, u64)> {
        let gap = self.open(now);
        self.outstanding = self.outstanding.saturating_sub(1);
        if acknowledged {
            self.last = now;
        }
        gap
    }
}

/// The longest gaps, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Longest {
    /// In which no producer had an acknowledgement, from any partition.
    pub any_us: u64,
    /// Of the partition that was worst off: no producer had an acknowledgement from it.
    pub partition_us: u64,
    /// Of the producer that was worst off with a partition: it had no acknowledgement from it.
    pub producer_us: u64,
}

/// A fault and what producers saw of it.
#[derive(Clone, Debug)]
pub struct Window {
    /// Which fault.
    pub fault: Fault,
    /// When it began.
    pub begin: u64,
    /// When it was taken back: the node started again, the network healed.
    pub healed: Option<u64>,
    /// When the next one began; `None` while it is the newest.
    pub end: Option<u64>,
    /// Gaps, as far as they are in the time from the fault to the next one.
    pub struck: Longest,
    /// Of those, the ones that begin after it was taken back: nodes recover, leadership moves back.
    pub after: Longest,
}

/// All gaps of a run.
#[derive(Debug)]
pub struct Stalls {
    any: Tracker,
    partitions: Vec<Tracker>,
    /// By producer, then partition.
    lanes: Vec<Tracker>,
    /// Faults in order.
    pub windows: Vec<Window>,
    /// Of the whole run.
    pub longest: Longest,
}

impl Stalls {
    /// Nothing was sent yet.
    pub fn new(producers: usize, partitions: usize) -> Self {
        Self {
            any: Tracker::default(),
            partitions: vec![Tracker::default(); partitions],
            lanes: vec![Tracker::default(); producers * partitions],
            windows: Vec::new(),
            longest: Longest::default(),
        }
    }

    /// A record was handed in.
    pub fn sent(&mut self, now: u64, producer: usize, partition: usize) {
        self.any.sent(now);
        self.partitions[partition].sent(now);
        let lane = self.lane(producer, partition);
        self.lanes[lane].sent(now);
    }

    fn lane(&self, producer: usize, partition: usize) -> usize {
        producer * self.partitions.len() + partition
    }

    /// A record was acknowledged, or given up.
    pub fn answered(&mut self, now: u64, producer: usize, partition: usize, acknowledged: bool) {
        let any = self.any.answered(now, acknowledged);
        self.note(any, |longest| &mut longest.any_us);
        let gap = self.partitions[partition].answered(now, acknowledged);
        self.note(gap, |longest| &mut longest.partition_us);
        let lane = self.lane(producer, partition);
        let gap = self.lanes[lane].answered(now, acknowledged);
        self.note(gap, |longest| &mut longest.producer_us);
    }

    fn note(&mut self, gap: Option<(u64, u64)>, of: fn(&mut Longest) -> &mut u64) {
        let Some((from, to)) = gap else { return };
        let longest = of(&mut self.longest);
        *longest = (*longest).max(to - from);
        for window in self.windows.iter_mut().rev() {
            if window.end.is_some_and(|end| end < from) {
                break;
            }
            // What was heard last before a fault was heard in the time of the one before, which has no part in the wait.
            let (begin, end) = (from.max(window.begin), window.end.map_or(to, |end| end.min(to)));
            if begin < end {
                let is_after = window.healed.is_some_and(|healed| healed <= begin);
                let longest = of(if is_after { &mut window.after } else { &mut window.struck });
                *longest = (*longest).max(end - begin);
            }
        }
    }

    /// A fault begins; what overlaps the time from here to the next one belongs to it.
    pub fn begin(&mut self, now: u64, fault: Fault) {
        self.close(now);
        let (struck, after) = (Longest::default(), Longest::default());
        self.windows.push(Window { fault, begin: now, healed: None, end: None, struck, after });
    }

    /// The newest fault is taken back.
    pub fn heal(&mut self, now: u64) {
        if let Some(last) = self.windows.last_mut() {
            last.healed.get_or_insert(now);
        }
    }

    fn close(&mut self, now: u64) {
        if let Some(last) = self.windows.last_mut() {
            last.end.get_or_insert(now);
        }
    }

    /// The run is over. Gaps that are still open count up to now.
    pub fn finish(&mut self, now: u64) {
        let any = self.any.open(now);
        self.note(any, |longest| &mut longest.any_us);
        for at in 0..self.partitions.len() {
            let gap = self.partitions[at].open(now);
            self.note(gap, |longest| &mut longest.partition_us);
        }
        for at in 0..self.lanes.len() {
            let gap = self.lanes[at].open(now);
            self.note(gap, |longest| &mut longest.producer_us);
        }
        self.close(now);
    }

    /// Records that wait for their acknowledgement.
    pub fn outstanding(&self) -> u64 {
        self.any.outstanding
    }
}

/// The middle one of these numbers; of an even count, the mean of the middle two. 0 for none.
pub fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    match numbers.len() {
        0 => 0,
        n if n % 2 == 1 => numbers[n / 2],
        n => (numbers[n / 2 - 1] + numbers[n / 2]) / 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_belongs_to_the_fault_that_it_overlaps() {
        let mut stalls = Stalls::new(1, 1);
        stalls.sent(0, 0, 0);
        stalls.answered(10, 0, 0, true);
        stalls.sent(20, 0, 0);
        stalls.begin(25, Fault::KillLeader);
        stalls.answered(120, 0, 0, true);
        stalls.begin(200, Fault::StopLeader);
        stalls.sent(210, 0, 0);
        stalls.answered(215, 0, 0, true);
        stalls.finish(300);
        let seen: Vec<u64> = stalls.windows.iter().map(|window| window.struck.any_us).collect();
        assert_eq!(seen, [95, 5], "nothing waited from 120 to 210");
        assert_eq!(stalls.longest.any_us, 100);
    }

    #[test]
    fn a_wait_is_not_laid_to_the_fault_before_that_had_been_taken_back() {
        let mut stalls = Stalls::new(1, 1);
        let ack = |stalls: &mut Stalls, sent, now| {
            stalls.sent(sent, 0, 0);
            stalls.answered(now, 0, 0, true);
        };
        stalls.begin(0, Fault::KillLeader);
        stalls.heal(10);
        ack(&mut stalls, 20, 25);
        // It waits from here on, a moment before the next fault.
        stalls.sent(98, 0, 0);
        stalls.begin(100, Fault::StopLeader);
        stalls.answered(600, 0, 0, true);
        let seen: Vec<(u64, u64)> = stalls.windows.iter().map(|w| (w.struck.any_us, w.after.any_us)).collect();
        assert_eq!(seen, [(0, 5), (500, 0)]);
        assert_eq!(stalls.longest.any_us, 502);
    }

    #[test]
    fn a_gap_that_ends_after_the_next_fault_counts_for_both() {
        let mut stalls = Stalls::new(1, 1);
        stalls.begin(0, Fault::KillLeader);
        stalls.sent(10, 0, 0);
        stalls.begin(50, Fault::KillAll);
        stalls.answered(100, 0, 0, true);
        let seen: Vec<u64> = stalls.windows.iter().map(|window| window.struck.partition_us).collect();
        assert_eq!(seen, [40, 50]);
    }

    #[test]
    fn gaps_that_begin_once_the_fault_is_taken_back_are_told_apart() {
        let mut stalls = Stalls::new(1, 1);
        let ack = |stalls: &mut Stalls, sent, now| {
            stalls.sent(sent, 0, 0);
            stalls.answered(now, 0, 0, true);
        };
        stalls.begin(100, Fault::KillLeader);
        ack(&mut stalls, 110, 150);
        stalls.sent(160, 0, 0);
        stalls.heal(200);
        stalls.answered(230, 0, 0, true);
        ack(&mut stalls, 240, 340);
        let window = &stalls.windows[0];
        assert_eq!((window.struck.any_us, window.after.any_us), (70, 100));
    }

    #[test]
    fn others_going_on_do_not_hide_a_partition_or_a_producer_that_stands_still() {
        let mut stalls = Stalls::new(2, 2);
        stalls.begin(0, Fault::KillLeader);
        stalls.sent(0, 0, 0);
        for now in (0..100).step_by(10) {
            stalls.sent(now, 1, 1);
            stalls.answered(now + 5, 1, 1, true);
        }
        stalls.answered(100, 0, 0, true);
        let longest = stalls.windows[0].struck;
        assert_eq!((longest.partition_us, longest.producer_us), (100, 100));
        assert!(longest.any_us <= 10, "{longest:?}");
    }

    #[test]
    fn a_producer_that_waits_for_one_partition_is_seen_though_it_hears_from_another() {
        let mut stalls = Stalls::new(2, 2);
        stalls.sent(0, 0, 0);
        for now in (0..100).step_by(10) {
            for (producer, partition) in [(0, 1), (1, 0)] {
                stalls.sent(now, producer, partition);
                stalls.answered(now + 5, producer, partition, true);
            }
        }
        stalls.answered(100, 0, 0, true);
        assert!(stalls.longest.producer_us == 100 && stalls.longest.partition_us <= 10, "{:?}", stalls.longest);
    }

    #[test]
    fn a_later_record_that_is_acknowledged_first_does_not_shorten_the_wait() {
        let mut stalls = Stalls::new(2, 1);
        stalls.sent(0, 0, 0);
        stalls.sent(900, 1, 0);
        stalls.answered(1000, 1, 0, true);
        stalls.answered(1001, 0, 0, true);
        assert_eq!(stalls.longest.partition_us, 1000);
    }

    #[test]
    fn what_never_comes_counts_up_to_the_end_and_a_failure_is_no_acknowledgement() {
        let mut stalls = Stalls::new(1, 1);
        stalls.begin(0, Fault::KillAll);
        stalls.sent(100, 0, 0);
        stalls.sent(110, 0, 0);
        stalls.answered(600, 0, 0, false);
        stalls.finish(1100);
        assert_eq!(stalls.windows[0].struck.producer_us, 1000);
        assert_eq!(stalls.outstanding(), 1);
    }

    #[test]
    fn medians() {
        assert_eq!([vec![], vec![3], vec![9, 1, 2], vec![4, 1, 2, 100]].map(median), [0, 3, 2, 3]);
    }
}
