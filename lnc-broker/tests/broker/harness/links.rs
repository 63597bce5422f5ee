//! Who is connected with whom: nodes dial whom they know, and admit whom they know as a member, as the real channels do.

use super::{Cluster, Node};
use lnc_broker::Standing;
use lnc_raft::NodeId;
use lnc_replication::formation::{Decision, Formats, Greeted, Identity, admit, decide};
use std::collections::{BTreeMap, BTreeSet};

impl Cluster {
    /// A node with a fresh disk appears, or comes back with one; it runs once the cluster has admitted it.
    pub(crate) fn appear(&mut self, id: u64) {
        assert!(!self.nodes.get(&id).is_some_and(Node::is_running), "node {id} runs");
        let incarnation = 1_000_000 + self.now_us * 100 + id;
        self.nodes.insert(id, Node::fresh(id, incarnation));
    }

    /// Let nodes follow what they know of the members, and make and break connections accordingly.
    pub(super) fn relink(&mut self) {
        for id in self.running() {
            let node = self.node_mut(id);
            if let Some(membership) = node.membership() {
                node.identity.follow(membership.version, &membership.members, false);
            }
        }
        let fresh: Vec<u64> = self.ids().into_iter().filter(|id| self.node(*id).stored.cluster.is_none()).collect();
        for id in fresh {
            self.seek_admission(id);
        }
        let running = self.running();
        let pairs = running.iter().flat_map(|from| running.iter().map(move |to| (*from, *to)));
        let mut links = BTreeSet::new();
        for (from, to) in pairs.filter(|(from, to)| from != to).collect::<Vec<_>>() {
            if self.would_connect(from, to) {
                links.insert((from, to));
            }
        }
        let before = std::mem::replace(&mut self.links, links.clone());
        for (from, to) in before.difference(&links).copied() {
            self.network.forget_way(from, to);
            self.tell(from, to, None);
            self.tell(to, from, None);
        }
        for (from, to) in links {
            let old = self.settings.old.contains(&to);
            let formats = if old { Formats { oldest: 1, newest: 1 } } else { Formats::BUILD };
            self.tell(from, to, Some(formats));
        }
    }

    fn tell(&mut self, node: u64, peer: u64, formats: Option<Formats>) {
        let clock = self.clock_of(node);
        let (member, incarnation) = (self.node(peer).identity.node, self.node(peer).identity.incarnation);
        let greeted = formats.map(|formats| Greeted { incarnation, formats });
        if let Some(broker) = self.node_mut(node).broker_mut() {
            broker.peer_changed(clock, member, greeted);
        }
    }

    /// The greeting of a connection from one node to another.
    fn would_connect(&mut self, from: u64, to: u64) -> bool {
        if !self.node(from).membership().is_some_and(|known| known.nodes.contains_key(&to)) {
            return false;
        }
        let (hello, reply) = (self.node(from).identity.clone(), self.node(to).identity.clone());
        self.node_mut(from).identity.learn(&reply);
        if admit(&reply, &hello).is_err() {
            if reply.is_behind(&hello) {
                self.inquire(to);
            }
            let removed = self.node(from).identity.removed_in(&reply).is_some();
            if let Some(broker) = self.node_mut(from).broker_mut().filter(|_| removed) {
                broker.set_standing(Standing::Removed { by: reply.node });
            }
            return false;
        }
        self.node_mut(to).identity.learn(&hello);
        admit(&self.node(from).identity, &reply).is_ok()
    }

    /// A node asks those whom it knows whether there are newer members.
    fn inquire(&mut self, id: u64) {
        let Some(known) = self.node(id).membership() else { return };
        for other in known.nodes.into_keys().filter(|other| *other != id) {
            if let Some(reply) = self.nodes.get(&other).filter(|node| node.is_running()).map(|node| &node.identity) {
                let reply = reply.clone();
                self.node_mut(id).identity.learn(&reply);
            }
        }
    }

    /// What a node with a fresh disk does: it shows itself to everybody, and joins what names it.
    fn seek_admission(&mut self, id: u64) {
        let clock = self.clock();
        let own = self.node(id).stored.clone();
        let mut heard = BTreeMap::new();
        for other in self.running() {
            heard.insert(NodeId(other), self.node(other).identity.clone());
            if let Some(broker) = self.node_mut(other).broker_mut() {
                broker.applicant(clock, id, own.incarnation);
            }
        }
        let configured: BTreeSet<NodeId> = heard.keys().copied().chain([NodeId(id)]).collect();
        let decision = decide(&own, &configured, self.settings.data_groups, &heard);
        if let Decision::Join(cluster) = decision {
            let node = cluster.member(id, own.incarnation).expect("it is named");
            self.node_mut(id).stored = Identity { node, cluster: Some(cluster), ..own };
            self.start(id);
        }
    }
}
