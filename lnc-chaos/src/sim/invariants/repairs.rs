//! How often a node writes over one damaged place.

use super::Violation;
use lnc_log::segment::{DamagedBatch, PartitionKey};
use std::collections::BTreeMap;

/// Less than the first pause of a node, on a clock that drifts.
const HASTE_US: u64 = 500_000;
/// How often there may be less: an attempt that the end of a segment or of a part of the node cuts off is followed by no pause.
const MOST: u32 = 3;

/// A place of a node that has been open since some start.
type Spot = ((u64, u32), PartitionKey, u64, u64);

/// When the latest attempt began, and how many were begun in haste.
#[derive(Default)]
pub(crate) struct Repairs(BTreeMap<Spot, (u64, u32)>);

impl Repairs {
    /// A node, in one of its lives, writes over a place.
    pub(crate) fn begun(&mut self, now_us: u64, node: (u64, u32), place: DamagedBatch) -> Result<(), Violation> {
        let DamagedBatch { key, base, position, .. } = place;
        let Some((last_us, hasty)) = self.0.get_mut(&(node, key, base, position)) else {
            self.0.insert((node, key, base, position), (now_us, 0));
            return Ok(());
        };
        let paused = now_us - std::mem::replace(last_us, now_us);
        *hasty += u32::from(paused < HASTE_US);
        if *hasty <= MOST {
            return Ok(());
        }
        let what = format!(
            "node {} has written over byte {position} of segment {base} of {key} again {paused} us after the last time, as it has done \
             {MOST} times before",
            node.0
        );
        Err(Violation::new("repair-pace", what))
    }
}
