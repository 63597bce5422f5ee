//! Whether this node's disk is too slow for a leader. Every record waits for the leader's disk or for those of a majority
//! of the others, but only the leader's own reads, checkpoints and turns wait for its disk: one that takes long should
//! lead nothing as long as somebody else can.

/// Seconds in a row that must be slow before the disk counts as slow.
const SLOW_SECONDS: u32 = 3;

/// Seconds in a row that must not be slow before it does not any more. Many: leadership should not come and go.
const HEALTHY_SECONDS: u32 = 60;

/// Watches the syncs of the journal, second by second.
#[derive(Debug, Default)]
pub(crate) struct SlowDisk {
    /// Times of this second's syncs in microseconds.
    syncs_us: Vec<u64>,
    slow_seconds: u32,
    healthy_seconds: u32,
    is_slow: bool,
}

impl SlowDisk {
    /// A sync has completed.
    pub(crate) fn synced(&mut self, took_us: u64) {
        self.syncs_us.push(took_us);
    }

    /// A second is over: it was slow if the 99th percentile of its syncs took longer than `limit_us`, or the oldest one
    /// under way has. Gives the new verdict if it is another one.
    pub(crate) fn second(&mut self, limit_us: u64, under_way_us: Option<u64>) -> Option<bool> {
        self.syncs_us.extend(under_way_us);
        self.syncs_us.sort_unstable();
        let rank = (self.syncs_us.len() * 99).div_ceil(100);
        let slow = rank > 0 && self.syncs_us[rank - 1] > limit_us;
        self.syncs_us.clear();
        (self.slow_seconds, self.healthy_seconds) =
            if slow { (self.slow_seconds + 1, 0) } else { (0, self.healthy_seconds + 1) };
        let verdict = match self.is_slow {
            false => self.slow_seconds >= SLOW_SECONDS,
            true => self.healthy_seconds < HEALTHY_SECONDS,
        };
        let news = verdict != self.is_slow;
        self.is_slow = verdict;
        news.then_some(verdict)
    }

    /// The verdict.
    pub(crate) fn is_slow(&self) -> bool {
        self.is_slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1_000;

    fn seconds(disk: &mut SlowDisk, count: u32, syncs: &[u64], under_way: Option<u64>) -> Vec<bool> {
        let second = |_| {
            syncs.iter().for_each(|took| disk.synced(*took));
            disk.second(LIMIT, under_way)
        };
        (0..count).filter_map(second).collect()
    }

    #[test]
    fn a_disk_is_slow_after_a_while_and_healthy_after_a_longer_one() {
        let mut disk = SlowDisk::default();
        assert_eq!(seconds(&mut disk, 2, &[2_000; 10], None), [] as [bool; 0]);
        assert_eq!(seconds(&mut disk, 1, &[10; 10], None), [] as [bool; 0], "one good second begins anew");
        assert_eq!(seconds(&mut disk, 5, &[2_000; 10], None), [true]);
        assert_eq!(seconds(&mut disk, 59, &[], None), [] as [bool; 0]);
        assert_eq!(seconds(&mut disk, 1, &[2_000], None), [] as [bool; 0]);
        assert_eq!(seconds(&mut disk, 61, &[10], None), [false]);
    }

    #[test]
    fn a_sync_that_does_not_end_is_slow_and_one_of_many_is_not() {
        let mut disk = SlowDisk::default();
        let mut most = vec![10; 200];
        most.push(50_000);
        assert_eq!(seconds(&mut disk, 10, &most, None), [] as [bool; 0]);
        assert_eq!(seconds(&mut disk, 3, &[], Some(5_000)), [true]);
        assert!(disk.is_slow());
    }
}
