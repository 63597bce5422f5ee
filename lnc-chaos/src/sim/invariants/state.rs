//! State machines: equal on all nodes at an equal applied index, whichever way a node came there.

use super::Violation;
use crate::sim::rng::hash_bytes;
use std::collections::BTreeMap;

/// The states that were seen: by group and index, the hash and who had it first.
#[derive(Default)]
pub(super) struct States {
    seen: BTreeMap<(u32, u64), (u64, u64)>,
}

impl States {
    pub(super) fn reached(&mut self, node: u64, group: u32, index: u64, state: &[u8]) -> Result<(), Violation> {
        let hash = hash_bytes(state);
        let (expected, first) = *self.seen.entry((group, index)).or_insert((hash, node));
        if hash == expected {
            return Ok(());
        }
        let what = format!(
            "group {group} at index {index}: the state of node {node} has hash {hash:016x}, that of node {first} had \
             {expected:016x}"
        );
        Err(Violation::new("state-digest", what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_that_differ_at_an_index_are_found() {
        let mut states = States::default();
        states.reached(1, 0, 16, b"same").unwrap();
        states.reached(2, 0, 16, b"same").unwrap();
        assert_eq!(states.reached(3, 0, 16, b"other").expect_err("a difference").invariant, "state-digest");
    }
}
