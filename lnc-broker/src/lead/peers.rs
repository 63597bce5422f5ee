//! The peers that this node is connected to, and what they have said of themselves since.

use crate::watch::status::Said;
use lnc_raft::NodeId;
use lnc_replication::formation::Greeted;
use std::collections::BTreeMap;

/// A peer whose control connection stands. What it has said is forgotten with the connection.
#[derive(Debug)]
struct Peer {
    greeted: Greeted,
    /// It is about to end.
    drains: bool,
    said: Option<Said>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    connected: BTreeMap<NodeId, Peer>,
}

impl Peers {
    /// The connection to a peer stands. Says whether it did not before.
    pub(crate) fn connect(&mut self, peer: NodeId, greeted: Greeted) -> bool {
        match self.connected.get_mut(&peer) {
            Some(known) => {
                known.greeted = greeted;
                false
            }
            None => {
                self.connected.insert(peer, Peer { greeted, drains: false, said: None });
                true
            }
        }
    }

    /// The connection to a peer broke.
    pub(crate) fn lose(&mut self, peer: NodeId) {
        self.connected.remove(&peer);
    }

    /// A connected peer says whether it is about to end, and what operators want to see of it. False for a peer that is not
    /// connected: nothing would end what it says.
    pub(crate) fn tell(&mut self, peer: NodeId, drains: bool, said: Said) -> bool {
        let Some(known) = self.connected.get_mut(&peer) else { return false };
        (known.drains, known.said) = (drains, Some(said));
        true
    }

    /// What a connected peer said of itself when the connection was made.
    pub(crate) fn greeted(&self, peer: NodeId) -> Option<&Greeted> {
        self.connected.get(&peer).map(|peer| &peer.greeted)
    }

    /// Whether the connection to this member stands.
    pub(crate) fn is_connected(&self, peer: NodeId) -> bool {
        self.connected.contains_key(&peer)
    }

    /// Whether the connection to a member with this number stands.
    pub(crate) fn is_node_connected(&self, node: u64) -> bool {
        self.ids().any(|peer| peer.node() == node)
    }

    /// Whether a connected peer is about to end.
    pub(crate) fn drains(&self, peer: NodeId) -> bool {
        self.connected.get(&peer).is_some_and(|peer| peer.drains)
    }

    /// All that are connected, in order.
    pub(crate) fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + ExactSizeIterator + '_ {
        self.connected.keys().copied()
    }

    /// What each has said, by the number of its node.
    pub(crate) fn said(&self) -> impl Iterator<Item = (u64, Said)> + '_ {
        self.connected.iter().filter_map(|(id, peer)| Some((id.node(), peer.said?)))
    }
}
