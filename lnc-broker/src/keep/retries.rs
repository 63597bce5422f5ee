//! Damaged places that were repaired before. One that is damaged again, or cannot be read although it was written over, is tried
//! again after a pause that doubles, from a second to minutes: a medium that is bad stays so, and each attempt costs a
//! peer, the network and the disk. What cannot be read although it was written over holds up all of its segment: each attempt
//! copies that.

use lnc_log::segment::{DamagedBatch, PartitionKey};
use lnc_mutation::{Mutation, mutated};
use std::collections::BTreeMap;

/// The pause after the first attempt.
const FIRST_US: u64 = 1_000_000;

/// The longest pause of what cannot be read although it was written over.
const MOST_US: u64 = 300_000_000;

/// The longest pause of what could be read when it was repaired, and is damaged again.
const MOST_AGAIN_US: u64 = 10_000_000;

/// How long after the last pause a place without damage is as good as any other.
const FORGOTTEN_US: u64 = 600_000_000;

/// Places that are kept in mind; of more, those that would be tried next are forgotten, and found again by whoever reads.
const MAX_PLACES: usize = 1024;

/// A place: its partition, its segment and its position there.
type Spot = (PartitionKey, u64, u64);

struct Retry {
    place: DamagedBatch,
    /// Attempts that have come to their end.
    tries: u32,
    due_us: u64,
    /// Whether there is something to do when it is due.
    wanted: bool,
    /// Whether it could not be read after the last attempt.
    stuck: bool,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Retries(BTreeMap<Spot, Retry>);

fn spot(place: &DamagedBatch) -> Spot {
    (place.key, place.base, place.position)
}

fn pause_us(tries: u32, stuck: bool) -> u64 {
    if mutated(Mutation::RepairAtOnce) {
        return 0;
    }
    (FIRST_US << tries.saturating_sub(1).min(16)).min(if stuck { MOST_US } else { MOST_AGAIN_US })
}

impl Retries {
    /// Whether a place that was found damaged may be repaired now. If not, it is once it is due.
    pub(crate) fn may_begin(&mut self, place: DamagedBatch, now_us: u64) -> bool {
        if self.stuck_in(&place).is_some_and(|(at, due_us)| at != spot(&place) && now_us < due_us) {
            return false;
        }
        let Some(retry) = self.0.get_mut(&spot(&place)) else { return true };
        if now_us > retry.due_us + FORGOTTEN_US {
            self.0.remove(&spot(&place));
            return true;
        }
        (retry.place, retry.wanted) = (place, now_us < retry.due_us);
        !retry.wanted
    }

    /// An attempt has come to its end: the place can be read now, or still cannot. Gives the pause until the next one.
    pub(crate) fn ended(&mut self, place: DamagedBatch, stuck: bool, now_us: u64) -> u64 {
        if self.0.len() >= MAX_PLACES
            && let Some(next) =
                self.0.iter().min_by_key(|(_, retry)| (retry.stuck, retry.due_us)).map(|(spot, _)| *spot)
        {
            self.0.remove(&next);
        }
        let before = self.stuck_in(&place).filter(|(at, _)| stuck && *at != spot(&place));
        let tried = before.and_then(|(at, _)| self.0.remove(&at)).map_or(0, |before| before.tries);
        let retry =
            self.0.entry(spot(&place)).or_insert(Retry { place, tries: 0, due_us: 0, wanted: false, stuck: false });
        retry.tries = retry.tries.max(tried).saturating_add(1);
        let pause = pause_us(retry.tries, stuck);
        (retry.place, retry.stuck, retry.wanted, retry.due_us) = (place, stuck, stuck, now_us + pause);
        pause
    }

    /// A place in the same segment that could not be read after the last attempt, and when the next one is due.
    fn stuck_in(&self, place: &DamagedBatch) -> Option<(Spot, u64)> {
        let segment = (place.key, place.base, 0)..=(place.key, place.base, u64::MAX);
        self.0.range(segment).find(|(_, retry)| retry.stuck).map(|(at, retry)| (*at, retry.due_us))
    }

    /// The places whose time has come, at most one of a partition.
    pub(crate) fn due(&mut self, now_us: u64) -> Vec<DamagedBatch> {
        let mut due: Vec<DamagedBatch> = Vec::new();
        for retry in self.0.values().filter(|retry| retry.wanted && retry.due_us <= now_us) {
            if due.last().is_none_or(|last| last.key != retry.place.key) {
                due.push(retry.place);
            }
        }
        due
    }

    /// The repair of a place begins.
    pub(crate) fn begun(&mut self, place: &DamagedBatch) {
        if let Some(retry) = self.0.get_mut(&spot(place)) {
            retry.wanted = false;
        }
    }

    /// Forget what is over: whatever `exists` denies, and what has been well for long.
    pub(crate) fn forget(&mut self, now_us: u64, exists: impl Fn(&DamagedBatch) -> bool) {
        self.0.retain(|_, retry| {
            let well = !retry.stuck && !retry.wanted && now_us > retry.due_us + FORGOTTEN_US;
            !well && exists(&retry.place)
        });
    }

    /// How many places could not be read after the last attempt.
    pub(crate) fn stuck(&self) -> usize {
        self.0.values().filter(|retry| retry.stuck).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn place(position: u64) -> DamagedBatch {
        let key = PartitionKey { topic_id: 1, partition: 0 };
        DamagedBatch { key, base: 0, position, offset: position, stretch: None }
    }

    /// How often a place that stays bad is tried within this time, if somebody reads it all the time.
    fn tries(seconds: u64) -> usize {
        let mut retries = Retries::default();
        let times = (0..seconds * 10).map(|tenth| tenth * SECOND / 10);
        times.filter(|now| retries.may_begin(place(0), *now) && retries.ended(place(0), true, *now) > 0).count()
    }

    #[test]
    fn the_pause_doubles_up_to_minutes() {
        let mut retries = Retries::default();
        let pauses: Vec<u64> = (0..11).map(|_| retries.ended(place(0), true, 0) / SECOND).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!((tries(60), tries(3600)), (6, 20));
        assert!((0..200).all(|_| retries.ended(place(0), true, 0) <= MOST_US));
        let again: Vec<u64> = (0..6).map(|_| retries.ended(place(9), false, 0) / SECOND).collect();
        assert_eq!(again, [1, 2, 4, 8, 10, 10], "it can be repaired");
    }

    #[test]
    fn who_waits_is_tried_when_due_and_one_of_a_partition_at_a_time() {
        let mut retries = Retries::default();
        assert!(retries.may_begin(place(0), 0), "nothing is known of it");
        let other = DamagedBatch { base: 50, ..place(0) };
        retries.ended(place(0), true, 0);
        retries.ended(other, true, 0);
        assert_eq!((retries.due(SECOND - 1), retries.stuck()), (vec![], 2));
        assert_eq!(retries.due(SECOND), [place(0)]);
        retries.begun(&place(0));
        assert_eq!(retries.due(SECOND), [other]);
        retries.ended(place(0), false, SECOND);
        assert_eq!(retries.stuck(), 1);
    }

    /// A segment with a place that stays bad is copied as a whole, whichever of its places are looked at.
    #[test]
    fn places_of_a_segment_share_their_pauses() {
        let mut retries = Retries::default();
        retries.ended(place(0), true, 0);
        assert!(!retries.may_begin(place(9), SECOND / 2) && retries.may_begin(place(9), SECOND));
        assert_eq!(retries.ended(place(9), true, SECOND), 2 * SECOND);
        assert_eq!((retries.stuck(), retries.due(3 * SECOND)), (1, vec![place(9)]));
        assert!(!retries.may_begin(place(0), 2 * SECOND));
        assert!(retries.may_begin(DamagedBatch { base: 50, ..place(0) }, 2 * SECOND), "others are as ever");
    }

    /// What was repaired and is damaged again a moment later waits too: its disk may read something else each time.
    #[test]
    fn what_is_damaged_again_waits_and_what_was_well_for_long_does_not() {
        let mut retries = Retries::default();
        retries.ended(place(0), false, 0);
        assert!(retries.due(SECOND).is_empty(), "nobody has found it damaged again");
        assert!(!retries.may_begin(place(0), SECOND / 2));
        assert_eq!(retries.due(SECOND), [place(0)]);
        retries.begun(&place(0));
        retries.ended(place(0), false, SECOND);
        assert!(retries.may_begin(place(0), 604 * SECOND));
        assert_eq!(retries.ended(place(0), false, 604 * SECOND), SECOND, "it begins anew");
        retries.forget(1206 * SECOND, |_| true);
        assert!(retries.0.is_empty());
        retries.ended(place(0), true, 0);
        retries.forget(9000 * SECOND, |_| true);
        assert_eq!(retries.stuck(), 1, "what is bad stays so");
        retries.forget(0, |_| false);
        assert_eq!(retries.stuck(), 0);
    }

    #[test]
    fn there_are_never_too_many() {
        let mut retries = Retries::default();
        let place = |n| DamagedBatch { base: n, ..place(n) };
        (0..3 * MAX_PLACES as u64).for_each(|n| _ = retries.ended(place(n), n % 2 == 0, n));
        assert_eq!(retries.0.len(), MAX_PLACES);
    }
}
