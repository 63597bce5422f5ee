//! The shortest schedule of faults that still breaks the same rule, by delta debugging (Zeller and Hildebrandt 2002).

use super::faults::Scheduled;
use super::{Plan, run};

/// Leave out faults as long as the run breaks `invariant` all the same. `tried` is told of each run: faults left, and
/// whether it failed.
pub fn minimise(plan: &Plan, invariant: &str, mut tried: impl FnMut(usize, bool)) -> Vec<Scheduled> {
    let mut fails = |schedule: &[Scheduled]| {
        let report = run(&Plan { schedule: Some(schedule.to_vec()), ..plan.clone() });
        let failed = report.failure.is_some_and(|failure| failure.violation.invariant == invariant);
        tried(schedule.len(), failed);
        failed
    };
    let mut kept = plan.schedule();
    if fails(&[]) {
        return Vec::new();
    }
    let mut parts = 2;
    while kept.len() >= 2 {
        let size = kept.len().div_ceil(parts);
        let without = (0..kept.len()).step_by(size).map(|start| {
            let end = (start + size).min(kept.len());
            [&kept[..start], &kept[end..]].concat()
        });
        match without.into_iter().find(|schedule| fails(schedule)) {
            Some(shorter) => {
                kept = shorter;
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (2 * parts).min(kept.len()),
        }
    }
    kept
}
