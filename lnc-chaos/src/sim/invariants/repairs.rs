//! How often a node writes over one damaged place.

use super::Violation;
use lnc_log::segment::{DamagedBatch, PartitionKey};
use std::collections::{BTreeMap, VecDeque};

/// The time in which attempts are counted.
const WITHIN_US: u64 = 60_000_000;
/// How many there may be: pauses of 1, 2, 4 … seconds, up to ten where repairs help for a while, leave room for nine.
const MOST: usize = 12;

/// A place of a node that has been open since some start.
type Spot = ((u64, u32), PartitionKey, u64, u64);

/// The latest attempts.
#[derive(Default)]
pub(crate) struct Repairs(BTreeMap<Spot, VecDeque<u64>>);

impl Repairs {
    /// A node, in one of its lives, writes over a place.
    pub(crate) fn begun(&mut self, now_us: u64, node: (u64, u32), place: DamagedBatch) -> Result<(), Violation> {
        let DamagedBatch { key, base, position, .. } = place;
        let times = self.0.entry((node, key, base, position)).or_default();
        times.push_back(now_us);
        while times.front().is_some_and(|first| first + WITHIN_US < now_us) {
            times.pop_front();
        }
        if times.len() <= MOST {
            return Ok(());
        }
        let what = format!(
            "node {} has written {} times within {} s over byte {position} of segment {base} of {key}",
            node.0,
            times.len(),
            WITHIN_US / 1_000_000
        );
        Err(Violation::new("repair-pace", what))
    }
}
