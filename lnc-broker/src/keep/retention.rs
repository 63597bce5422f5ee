//! Retention: the leader of a group decides what goes, and the group's log says so to every replica.
//!
//! What is old goes at a bounded pace, so that somebody who sees an alert can still stop a mistake: see
//! [`clocks`](crate::log::clocks) for what a wrong clock does. What is too much for `max_bytes` goes at once: it needs no clock.

use crate::Broker;
use crate::machines::command::Command;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::Allowance;
use lnc_mutation::{Mutation, mutated};
use std::collections::BTreeMap;

/// Bytes that may always go by age in a second, of each group.
const BYTES_PER_SECOND: u64 = 64 << 20;

/// The same in segments, which may be small, and one more for so many partitions.
const SEGMENTS_PER_SECOND: u64 = 64;
const PARTITIONS_PER_SEGMENT: u64 = 64;

/// What a group takes in, and what may leave it.
#[derive(Default)]
struct GroupPace {
    /// Since the last look.
    appended: u64,
    /// Per second, on average.
    inflow: u64,
    /// Below zero: the last segment was larger than what was left.
    left: i64,
}

impl GroupPace {
    /// A second is over. Twice what comes in may leave: a group that is full must not grow.
    fn second(&mut self, partitions: u64) -> Allowance {
        self.inflow = (self.inflow.saturating_mul(9).saturating_add(std::mem::take(&mut self.appended))) / 10;
        let rate = i64::try_from(BYTES_PER_SECOND.max(self.inflow.saturating_mul(2))).unwrap_or(i64::MAX);
        self.left = self.left.saturating_add(rate).min(rate);
        Allowance { bytes: self.left, segments: SEGMENTS_PER_SECOND + partitions / PARTITIONS_PER_SEGMENT }
    }
}

/// How fast what is old may go.
#[derive(Default)]
pub(crate) struct Removal {
    groups: BTreeMap<GroupId, GroupPace>,
}

impl Removal {
    pub(crate) fn appended(&mut self, group: GroupId, bytes: usize) {
        self.groups.entry(group).or_default().appended += bytes as u64;
    }
}

impl<D: Disk> Broker<D> {
    /// Move the log start of partitions that exceed their topic's retention, where this node leads; called every second.
    /// What a topic does not limit is kept for ever.
    pub(crate) fn apply_retention(&mut self) {
        let now_ms = match mutated(Mutation::BelieveOwnClock) {
            true => Some(self.clock.wall_ms),
            false => self.clocks.retention_ms(self.clock),
        };
        let mut allowances: BTreeMap<GroupId, Allowance> = BTreeMap::new();
        for (group, data) in &self.groups {
            let pace = self.removal.groups.entry(*group).or_default();
            allowances.insert(*group, pace.second(data.state.iter().len() as u64));
        }
        self.storage.hand_over();
        let mut trims = Vec::new();
        let limited = self.catalog.topics().filter(|t| t.options.max_age_ms.is_some() || t.options.max_bytes.is_some());
        for topic in limited {
            let max_age_ms =
                topic.options.max_age_ms.map(|age| if mutated(Mutation::TrimEarly) { age / 2 } else { age });
            let oldest_ms = max_age_ms.and_then(|age| now_ms?.checked_sub(age));
            for key in topic.keys() {
                let group = topic.group_of(key.partition);
                let leads = self.shard.is_leader(group) && !self.has_backlog(group);
                let Some(allowance) = allowances.get_mut(&group).filter(|_| leads) else { continue };
                let segments = self.storage.handed_over();
                let start = segments.trim_candidates(key, oldest_ms, topic.options.max_bytes, allowance);
                trims.extend(start.map(|log_start_offset| (group, Command::Trim { key, log_start_offset })));
            }
        }
        for (group, allowance) in allowances {
            self.removal.groups.entry(group).or_default().left = allowance.bytes;
        }
        for (group, command) in trims {
            self.submit(group, &command, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: i64 = BYTES_PER_SECOND as i64;

    #[test]
    fn what_is_old_goes_at_a_bounded_pace() {
        let mut pace = GroupPace::default();
        let mut allowance = pace.second(0);
        assert_eq!((allowance.bytes, allowance.segments), (RATE, SEGMENTS_PER_SECOND));
        assert!(allowance.take(3 * BYTES_PER_SECOND), "one segment, however large");
        assert!(!allowance.take(1));
        pace.left = allowance.bytes;
        for _ in 0..2 {
            let mut allowance = pace.second(0);
            assert!(!allowance.take(1), "the seconds after pay for it");
        }
        assert!(pace.second(0).take(1));
        for _ in 0..10 {
            pace.second(0);
        }
        assert_eq!(pace.left, RATE, "nothing is saved up");
    }

    #[test]
    fn small_segments_are_counted_and_many_partitions_may_lose_more() {
        let mut allowance = GroupPace::default().second(640);
        let taken = (0..1000).filter(|_| allowance.take(1)).count() as u64;
        assert_eq!(taken, SEGMENTS_PER_SECOND + 10);
    }

    #[test]
    fn a_group_that_takes_in_much_may_let_go_of_as_much() {
        let mut pace = GroupPace::default();
        for _ in 0..60 {
            pace.appended += 10 * BYTES_PER_SECOND;
            pace.second(0);
        }
        assert!(pace.second(0).bytes > 10 * RATE);
    }
}
