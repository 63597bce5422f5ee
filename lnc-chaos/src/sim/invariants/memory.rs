//! Limits of memory.

use super::Violation;
use crate::sim::settings::{MAX_IN_FLIGHT_BYTES, Settings};
use lnc_broker::inspect::MemoryInspection;

/// Bytes by which the cache may exceed its budget beside what is not written yet: it lets go of whole runs.
const SLACK: usize = 64 << 10;

pub(super) fn check(node: u64, settings: &Settings, found: MemoryInspection) -> Result<(), Violation> {
    if found.in_flight > settings.memory_bytes {
        let limit = settings.memory_bytes;
        let what = format!("node {node} has {} bytes of requests under way, the limit is {limit}", found.in_flight);
        return Err(Violation::new("memory", what));
    }
    // The cache keeps whatever lies behind the oldest bytes that are not written yet. A node takes no more records, from
    // producers or a leader, once twice what may be unwritten is not written; what a leader had under way by then, in
    // each group, can still be applied at once.
    let unwritten = settings.checkpoint_bytes as usize + settings.memory_bytes;
    let under_way = settings.data_groups as usize * MAX_IN_FLIGHT_BYTES;
    let most = settings.tail_cache_bytes + 4 * unwritten + 2 * under_way + SLACK;
    if found.tail_cache > most {
        let what = format!("node {node}: the tail cache is beyond {most} bytes: {found:?}");
        return Err(Violation::new("memory", what));
    }
    Ok(())
}
