//! What peers say of this node, and of members that it does not know: how long it is believed. Pure.

use lnc_broker::Standing;
use lnc_raft::NodeId;
use lnc_replication::TELL_AGAIN_US;

/// How long it counts that a peer has told of another process with this node's identity. Peers repeat it every five seconds for
/// as long as the other one is there, so two of three such words may get lost before the node says that it is alone again.
const TWIN_US: u64 = 3 * TELL_AGAIN_US;

/// Who refuses this node, and lives, says so more often: it is dialled again after half a second at most.
const SILENT_US: u64 = 5_000_000;

/// How often the operator is told that there is a copy.
const SAY_AGAIN_US: u64 = 60_000_000;

/// How long a list of members that was heard of may be ahead of a catalog that has everything, in microseconds.
const AHEAD_US: u64 = 5_000_000;

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Heard {
    /// Who knows a later list of members without this node, and its version.
    removed: Option<(NodeId, u64)>,
    /// When that was said last.
    removed_said_us: u64,
    /// Who has told of another process, and when last.
    twin: Option<(NodeId, u64)>,
    /// When the operator was told of it last.
    twin_said_us: Option<u64>,
    /// Since when what was heard of the members is ahead of the catalog.
    ahead_since_us: Option<u64>,
}

impl Heard {
    /// A peer has refused this node; it may know members of a later version, without this node.
    pub fn refused(&mut self, now_us: u64, peer: NodeId, removed: Option<u64>) {
        if removed.is_some() && self.removed.is_some_and(|(by, _)| by == peer) {
            self.removed_said_us = now_us;
        }
        let Some(version) = removed.filter(|version| self.removed.is_none_or(|(_, known)| *version > known)) else {
            return;
        };
        if self.removed.is_none() {
            tracing::error!(
                by = %peer,
                "this node was removed from the cluster: stop it. To bring it back, `lance cluster add` it and start it with \
                 an empty data directory"
            );
        }
        (self.removed, self.removed_said_us) = (Some((peer, version)), now_us);
    }

    /// So many of the members of whom this node knows, itself included, take it for one, or are it. Who said that it was removed
    /// may be gone for good: if it has fallen silent, what a majority does counts more.
    pub fn admitting(&mut self, now_us: u64, admitting: usize, members: usize) {
        if 2 * admitting > members && now_us >= self.removed_said_us + SILENT_US {
            self.removed = None;
        }
    }

    /// A peer takes this node for a member: what it said before no longer holds.
    pub fn admitted(&mut self, peer: NodeId) {
        self.removed = self.removed.filter(|(by, _)| *by != peer);
    }

    /// A peer has told of another process with this node's identity.
    pub fn twin(&mut self, now_us: u64, peer: NodeId) {
        if self.twin.is_none_or(|(_, at_us)| now_us >= at_us + TWIN_US) {
            self.twin_said_us = None;
        }
        self.twin = Some((peer, now_us));
        if self.twin_said_us.is_some_and(|said_us| now_us < said_us + SAY_AGAIN_US) {
            return;
        }
        self.twin_said_us = Some(now_us);
        tracing::error!(
            by = %peer,
            "another process runs with the identity of this node: its data directory was copied. Stop the copy, and remove \
             its directory: two that vote as one can lose records"
        );
    }

    /// What it comes to, for a node whose list of members has this version: a list on which it is, is not older for long.
    pub fn standing(&mut self, now_us: u64, version: u64) -> Standing {
        self.removed = self.removed.filter(|(_, known)| *known > version);
        self.twin = self.twin.filter(|(_, at_us)| now_us < at_us + TWIN_US);
        match (self.twin, self.removed) {
            (Some((by, _)), _) => Standing::Copied { by },
            (None, Some((by, _))) => Standing::Removed { by },
            (None, None) => Standing::Member,
        }
    }

    /// Whether members of version `told`, which were heard of, have been ahead of what the catalog says for so long that
    /// they cannot be right. `is_newest`: the catalog has what was decided until a moment ago.
    pub fn outlived(&mut self, now_us: u64, told: u64, catalog: u64, is_newest: bool) -> bool {
        if told <= catalog || !is_newest {
            self.ahead_since_us = None;
            return false;
        }
        now_us >= *self.ahead_since_us.get_or_insert(now_us) + AHEAD_US
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(2);

    #[test]
    fn a_node_that_was_removed_stays_so_until_it_is_on_a_list_as_new() {
        let mut heard = Heard::default();
        heard.refused(0, PEER, None);
        assert_eq!(heard.standing(0, 4), Standing::Member);
        heard.refused(0, PEER, Some(7));
        heard.refused(0, NodeId(3), Some(6));
        heard.admitted(NodeId(3));
        assert_eq!(heard.standing(0, 4), Standing::Removed { by: PEER });
        assert_eq!(heard.standing(0, 7), Standing::Member);
        heard.refused(0, PEER, Some(1 << 48));
        assert_eq!(heard.standing(0, 7), Standing::Removed { by: PEER });
        heard.admitted(PEER);
        assert_eq!(heard.standing(0, 7), Standing::Member, "who said so knows better by now");
    }

    /// The peer that said so died, and nobody else does.
    #[test]
    fn what_one_peer_said_of_a_removal_ends_when_a_majority_says_otherwise() {
        let mut heard = Heard::default();
        let removed = |heard: &mut Heard| matches!(heard.standing(0, 4), Standing::Removed { .. });
        heard.refused(1_000_000, PEER, Some(7));
        heard.admitting(5_900_000, 2, 3);
        assert!(removed(&mut heard), "it may say so again");
        heard.refused(5_900_000, PEER, Some(7));
        heard.admitting(10_000_000, 3, 3);
        assert!(removed(&mut heard), "it did");
        heard.admitting(20_000_000, 1, 2);
        heard.admitting(20_000_000, 2, 4);
        assert!(removed(&mut heard), "that is no majority");
        heard.admitting(20_000_000, 2, 3);
        assert!(!removed(&mut heard));
        heard.refused(21_000_000, PEER, Some(7));
        assert!(removed(&mut heard), "unless it comes back and says it again");
    }

    #[test]
    fn a_copy_is_shown_for_as_long_as_peers_tell_of_it() {
        let mut heard = Heard::default();
        heard.refused(0, PEER, Some(7));
        heard.twin(1_000_000, PEER);
        assert_eq!(heard.standing(2_000_000, 4), Standing::Copied { by: PEER });
        // Two of three words get lost.
        heard.twin(15_900_000, PEER);
        assert_eq!(heard.standing(30_800_000, 4), Standing::Copied { by: PEER });
        assert_eq!(heard.standing(30_900_000, 4), Standing::Removed { by: PEER });
    }

    #[test]
    fn members_that_were_heard_of_give_way_to_a_catalog_that_has_everything() {
        let mut heard = Heard::default();
        assert!(!heard.outlived(1, 9, 5, true));
        assert!(!heard.outlived(6_000_000, 9, 5, false), "it may be behind");
        assert!(!heard.outlived(6_000_001, 9, 5, true));
        assert!(heard.outlived(11_000_001, 9, 5, true));
        assert!(!heard.outlived(11_000_002, 5, 5, true));
    }
}
