//! Since when a group has been led by one node alone: what that one has on its disk cannot have been replaced since.

use std::collections::{BTreeMap, BTreeSet};

/// The latest leader of a group.
#[derive(Default)]
struct Reign {
    node: u64,
    since_us: u64,
    /// Nodes that believe to lead.
    claims: BTreeSet<u64>,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Reigns(BTreeMap<u32, Reign>);

impl Reigns {
    /// A node leads a group from now on, or does not.
    pub(crate) fn role(&mut self, now_us: u64, node: u64, group: u32, leads: bool) {
        let reign = self.0.entry(group).or_default();
        let contested = reign.claims.iter().any(|claim| *claim != reign.node);
        match leads {
            true => reign.claims.insert(node),
            false => reign.claims.remove(&node),
        };
        if leads && reign.node != node {
            (reign.node, reign.since_us) = (node, now_us);
        } else if contested {
            reign.since_us = now_us;
        }
    }

    /// The process of a node is gone.
    pub(crate) fn gone(&mut self, now_us: u64, node: u64) {
        let groups: Vec<u32> =
            self.0.iter().filter(|(_, reign)| reign.claims.contains(&node)).map(|(g, _)| *g).collect();
        groups.into_iter().for_each(|group| self.role(now_us, node, group, false));
    }

    /// A node may have lost what its disk had.
    pub(crate) fn lost(&mut self, now_us: u64, node: u64) {
        self.0.values_mut().filter(|reign| reign.node == node).for_each(|reign| reign.since_us = now_us);
    }

    /// From when on only one node has led a group.
    pub(crate) fn alone_since_us(&self, group: u32) -> u64 {
        let reign = self.0.get(&group);
        let contested = |reign: &&Reign| reign.claims.iter().any(|claim| *claim != reign.node);
        reign.filter(|reign| !contested(reign)).map_or(u64::MAX, |reign| reign.since_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reign_begins_when_nobody_else_claims_it() {
        let mut reigns = Reigns::default();
        assert_eq!(reigns.alone_since_us(1), u64::MAX);
        reigns.role(10, 1, 1, true);
        reigns.gone(20, 1);
        reigns.role(30, 1, 1, true);
        assert_eq!(reigns.alone_since_us(1), 10, "it was away, and nobody took its place");
        reigns.role(40, 2, 1, true);
        assert_eq!(reigns.alone_since_us(1), u64::MAX, "the former leader does not know yet");
        reigns.role(50, 1, 1, false);
        assert_eq!(reigns.alone_since_us(1), 50);
        reigns.lost(60, 2);
        assert_eq!(reigns.alone_since_us(1), 60);
    }
}
