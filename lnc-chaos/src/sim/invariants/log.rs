//! The replicated log: one leader per term, the same entry at an index everywhere and for ever, complete leaders.

use super::Violation;
use crate::sim::rng::{hash_bytes, mix};
use lnc_raft::Entry;
use std::collections::BTreeMap;

/// An entry that some node has applied.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Known {
    term: u64,
    hash: u64,
    /// The term of the node that applied it first: it was committed in this term or an earlier one.
    by: u64,
}

/// What is known of the logs of all groups.
#[derive(Default)]
pub(super) struct Log {
    /// By group: the entries from index 1 on.
    committed: BTreeMap<u32, Vec<Known>>,
    /// By group and term.
    leaders: BTreeMap<(u32, u64), u64>,
    /// By node and group: the last index applied in this life.
    applied: BTreeMap<(u64, u32), u64>,
}

impl Log {
    pub(super) fn started(&mut self, node: u64) {
        self.applied.retain(|(other, _), _| *other != node);
    }

    pub(super) fn leads(&mut self, node: u64, group: u32, term: u64, last: u64) -> Result<(), Violation> {
        let leader = *self.leaders.entry((group, term)).or_insert(node);
        if leader != node {
            let what = format!("group {group} term {term}: node {leader} and node {node} lead");
            return Err(Violation::new("one-leader", what));
        }
        // A leader of an earlier term that hears of its votes late need not have what later terms committed.
        let entries = self.committed.get(&group).map(Vec::as_slice).unwrap_or_default();
        let committed = entries.partition_point(|known| known.by < term) as u64;
        if last < committed {
            let what = format!(
                "group {group} term {term}: leader {node} ends at {last}, but {committed} was applied in an earlier term"
            );
            return Err(Violation::new("leader-complete", what));
        }
        Ok(())
    }

    pub(super) fn applied(&mut self, node: u64, group: u32, entry: &Entry, by: u64) -> Result<u64, Violation> {
        let Entry { term, index, kind, ref payload } = *entry;
        if let Some(former) = self.applied.insert((node, group), index).filter(|former| former + 1 != index) {
            let what = format!("node {node} group {group} applies {index} after {former}");
            return Err(Violation::new("applied-in-order", what));
        }
        let known = Known { term, hash: hash_bytes(payload) ^ mix(kind as u64), by };
        let entries = self.committed.entry(group).or_default();
        match entries.get(index as usize - 1) {
            Some(before) if (before.term, before.hash) != (known.term, known.hash) => {
                let what = format!(
                    "node {node} applies entry {index} of term {term} in group {group} with hash {:016x}, but there was \
                     one of term {} with hash {:016x}",
                    known.hash, before.term, before.hash
                );
                return Err(Violation::new("log-matching", what));
            }
            Some(_) => {}
            // A node's term may be behind that of one that applied an earlier entry: that one is the bound for both.
            None if entries.len() as u64 + 1 == index => {
                let by = entries.last().map_or(by, |before| by.max(before.by));
                entries.push(Known { by, ..known });
            }
            None => {
                let what = format!("node {node} applies {index} of group {group}, nobody {}", entries.len() + 1);
                return Err(Violation::new("applied-in-order", what));
            }
        }
        Ok(known.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_raft::EntryKind;

    fn entry(term: u64, index: u64, payload: &'static [u8]) -> Entry {
        Entry { term, index, kind: EntryKind::Normal, payload: payload.into() }
    }

    fn rule<T: std::fmt::Debug>(result: Result<T, Violation>) -> &'static str {
        result.expect_err("a broken rule").invariant
    }

    #[test]
    fn every_rule_of_the_log_is_enforced() {
        let mut log = Log::default();
        log.leads(1, 0, 3, 0).unwrap();
        log.leads(1, 0, 3, 0).unwrap();
        log.applied(1, 0, &entry(3, 1, b"a"), 3).unwrap();
        log.applied(2, 0, &entry(3, 1, b"a"), 3).unwrap();
        assert_eq!(rule(log.leads(2, 0, 3, 1)), "one-leader");
        assert_eq!(rule(log.leads(2, 0, 4, 0)), "leader-complete");
        log.leads(3, 0, 2, 0).unwrap();
        assert_eq!(rule(log.applied(3, 0, &entry(3, 1, b"b"), 3)), "log-matching");
        assert_eq!(rule(log.applied(1, 0, &entry(3, 3, b"c"), 3)), "applied-in-order");
        log.started(2);
        log.applied(2, 0, &entry(3, 1, b"a"), 3).unwrap();
    }
}
