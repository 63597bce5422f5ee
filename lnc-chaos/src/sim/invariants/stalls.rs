//! For how long a group commits nothing of what its leader was given.

use super::Violation;
use std::collections::BTreeMap;

/// The thirty seconds after which a leader gives up, where time passes ten times as slowly, and some elections.
const MOST_US: u64 = 45_000_000;

/// By group: what is committed, and since when it waits there.
#[derive(Default)]
pub(crate) struct Stalls(BTreeMap<u32, (u64, u64)>);

impl Stalls {
    /// Where a group is now, and whether a leader of it has more.
    pub(crate) fn look(&mut self, now_us: u64, group: u32, commit: u64, waits: bool) -> Result<(), Violation> {
        let (before, since_us) = self.0.entry(group).or_insert((commit, now_us));
        if commit > *before || !waits {
            (*before, *since_us) = (commit, now_us);
        }
        if now_us <= *since_us + MOST_US {
            return Ok(());
        }
        let seconds = MOST_US / 1_000_000;
        let what =
            format!("group {group} has committed nothing behind {commit} for {seconds} s, though its leader has more");
        Err(Violation::new("liveness-commits", what))
    }

    /// There is no reason any more for which entries would not arrive.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
