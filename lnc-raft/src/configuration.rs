//! Who belongs to a group: voters, learners, and how a group changes from one set to another.
//!
//! A configuration takes effect on each node when its entry is appended, and is taken back if that entry is cut off
//! (Ongaro, *Consensus: Bridging Theory and Practice*, 2014, 4.1). Voters change by joint consensus (4.3): first an entry
//! with the old and the new voters, whose both majorities decide, then, once that is committed, one with the new alone.

use std::collections::BTreeSet;
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_mutation::{Mutation, mutated};

use crate::message::{Index, NodeId};

/// First byte of an encoded configuration.
const VERSION: u8 = 1;

/// Most members of each kind.
const MAX_MEMBERS: usize = 64;

/// The members of a group. The default, which has none, stands for "not known yet".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// A majority of them decides.
    pub voters: BTreeSet<NodeId>,
    /// The voters before, while the change is under way: a majority of them must agree too. Empty otherwise.
    pub outgoing: BTreeSet<NodeId>,
    /// They get everything and decide nothing.
    pub learners: BTreeSet<NodeId>,
}

/// Bytes that are no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a configuration: {what}")]
pub struct ConfigurationError {
    /// What is wrong.
    pub what: &'static str,
}

impl Configuration {
    /// A configuration of these voters.
    pub fn of(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether two sets of voters decide together.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether the node decides, in either set.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether the node is named at all.
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// All members.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    fn deciding(&self) -> impl Iterator<Item = &BTreeSet<NodeId>> {
        let outgoing = (self.is_joint() && !mutated(Mutation::JointNewOnly)).then_some(&self.outgoing);
        let voters = Some(&self.voters).filter(|_| !(self.is_joint() && mutated(Mutation::JointOldOnly)));
        voters.into_iter().chain(outgoing)
    }

    /// Whether those for whom `agrees` holds are a majority of each set that decides.
    pub(crate) fn is_decided(&self, agrees: impl Fn(NodeId) -> bool) -> bool {
        self.deciding().all(|set| self.is_majority(set, &agrees))
    }

    fn is_majority(&self, of: &BTreeSet<NodeId>, agrees: impl Fn(NodeId) -> bool) -> bool {
        let also = self.learners.iter().filter(|_| mutated(Mutation::CountLearners));
        of.iter().chain(also).filter(|node| agrees(**node)).count() > of.len() / 2
    }

    /// The largest value that a majority of each set that decides reaches.
    pub(crate) fn reached(&self, value_of: impl Fn(NodeId) -> u64) -> u64 {
        let by = |set: &BTreeSet<NodeId>| {
            let values = set.iter().map(|node| value_of(*node));
            values.filter(|value| self.is_majority(set, |node| value_of(node) >= *value)).max().unwrap_or(0)
        };
        self.deciding().map(by).min().unwrap_or(0)
    }

    /// Whether this can be the configuration of a group.
    pub fn validate(&self) -> Result<(), ConfigurationError> {
        let check = |fine: bool, what| if fine { Ok(()) } else { Err(ConfigurationError { what }) };
        check(!self.voters.is_empty(), "no voters")?;
        check(!self.learners.iter().any(|node| self.voters.contains(node)), "a voter among the learners")?;
        let largest = self.voters.len().max(self.outgoing.len()).max(self.learners.len());
        check(largest <= MAX_MEMBERS, "too many members")
    }

    /// `version u8`, then voters, outgoing and learners, each as `count u8` and that many ids as `u64`, little-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        for set in [&self.voters, &self.outgoing, &self.learners] {
            out.put_u8(set.len() as u8);
            set.iter().for_each(|node| out.put_u64_le(node.0));
        }
        out.freeze()
    }

    /// The reverse of [`Configuration::encode`].
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ConfigurationError> {
        let bad = |what| ConfigurationError { what };
        if bytes.try_get_u8() != Ok(VERSION) {
            return Err(bad("unknown version"));
        }
        let mut set = || -> Result<BTreeSet<NodeId>, ConfigurationError> {
            let count = bytes.try_get_u8().map_err(|_| bad("cut short"))?;
            (0..count).map(|_| bytes.try_get_u64_le().map(NodeId).map_err(|_| bad("cut short"))).collect()
        };
        let configuration = Self { voters: set()?, outgoing: set()?, learners: set()? };
        if bytes.has_remaining() {
            return Err(bad("bytes behind it"));
        }
        configuration.validate()?;
        Ok(configuration)
    }
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &BTreeSet<NodeId>| set.iter().map(NodeId::to_string).collect::<Vec<_>>().join(",");
        if self.is_joint() {
            write!(f, "{} to ", list(&self.outgoing))?;
        }
        write!(f, "{}", list(&self.voters))?;
        if !self.learners.is_empty() {
            write!(f, " learning {}", list(&self.learners))?;
        }
        Ok(())
    }
}

/// The configurations of a node's log that may still matter: the one in effect at the applied index, and those after it.
#[derive(Debug)]
pub(crate) struct Configurations {
    /// By index, ascending; never empty.
    history: Vec<(Index, Configuration)>,
}

impl Configurations {
    /// `base` was in effect at index `at`.
    pub(crate) fn new(at: Index, base: Configuration) -> Self {
        Self { history: vec![(at, base)] }
    }

    /// The one in effect: the latest, committed or not.
    pub(crate) fn current(&self) -> &Configuration {
        &self.history[self.history.len() - 1].1
    }

    /// The index of the entry that brought it; at most the applied index if that is long ago.
    pub(crate) fn index(&self) -> Index {
        self.history[self.history.len() - 1].0
    }

    /// The one in effect at `index`, which is not below the applied index at the last call of [`Configurations::fold`].
    pub(crate) fn at(&self, index: Index) -> &Configuration {
        let after = self.history.partition_point(|(at, _)| *at <= index);
        &self.history[after.saturating_sub(1)].1
    }

    /// The one in effect at `index`, as for [`Configurations::at`], and all after it.
    pub(crate) fn since(&self, index: Index) -> impl Iterator<Item = &Configuration> {
        let after = self.history.partition_point(|(at, _)| *at <= index);
        self.history[after.saturating_sub(1)..].iter().map(|(_, configuration)| configuration)
    }

    pub(crate) fn append(&mut self, index: Index, configuration: Configuration) {
        self.history.push((index, configuration));
    }

    /// Entries after `index` were cut off; whether the configuration in effect changed by it.
    pub(crate) fn truncate_after(&mut self, index: Index) -> bool {
        let kept = self.history.partition_point(|(at, _)| *at <= index).max(1);
        let changed = kept < self.history.len();
        self.history.truncate(kept);
        changed
    }

    /// Nothing at or below `applied` is ever asked for again.
    pub(crate) fn fold(&mut self, applied: Index) {
        let after = self.history.partition_point(|(at, _)| *at <= applied);
        if after > 1 {
            self.history.drain(..after - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|node| NodeId(*node)).collect()
    }

    #[test]
    fn both_sets_of_voters_must_agree() {
        let joint = Configuration { voters: set(&[3, 4, 5]), outgoing: set(&[1, 2, 3]), learners: set(&[9]) };
        let decided = |nodes: &[u64]| joint.is_decided(|node| nodes.contains(&node.0));
        assert!(decided(&[2, 3, 4]) && decided(&[1, 2, 4, 5]));
        assert!(!decided(&[3, 4, 5]) && !decided(&[1, 2, 3]) && !decided(&[1, 2, 4, 9]));
        let match_of = |node: NodeId| [0, 7, 7, 5, 9, 3, 0, 0, 0, 100][node.0 as usize];
        assert_eq!(joint.reached(match_of), 5);
        assert_eq!(Configuration::of([1, 2, 5].map(NodeId)).reached(match_of), 7);
        assert_eq!(Configuration::default().reached(match_of), 0);
        assert!(!Configuration::default().is_decided(|_| true), "nobody is no majority");
    }

    #[test]
    fn configurations_survive_the_trip_and_nonsense_is_refused() {
        let joint = Configuration { voters: set(&[3, 4]), outgoing: set(&[1, 2, 3]), learners: set(&[5]) };
        let bytes = joint.encode();
        assert_eq!(Configuration::decode(&bytes), Ok(joint.clone()));
        for len in 0..bytes.len() {
            assert!(Configuration::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
        assert!(Configuration::decode(&[&bytes[..], &[0]].concat()).is_err());
        let overlap = Configuration { learners: set(&[3]), ..joint };
        assert!(Configuration::decode(&overlap.encode()).is_err());
        assert!(Configuration::decode(&Configuration::default().encode()).is_err());
    }

    #[test]
    fn what_is_cut_off_is_taken_back() {
        let of = |nodes: &[u64]| Configuration::of(nodes.iter().map(|node| NodeId(*node)));
        let mut history = Configurations::new(0, of(&[1]));
        history.append(4, of(&[1, 2]));
        history.append(6, of(&[1, 2, 3]));
        assert_eq!((history.at(3), history.at(5), history.current()), (&of(&[1]), &of(&[1, 2]), &of(&[1, 2, 3])));
        assert_eq!(history.since(5).collect::<Vec<_>>(), [&of(&[1, 2]), &of(&[1, 2, 3])]);
        assert!(!history.truncate_after(6));
        assert!(history.truncate_after(5));
        assert_eq!((history.index(), history.current()), (4, &of(&[1, 2])));
        history.fold(9);
        assert_eq!((history.index(), history.at(9)), (4, &of(&[1, 2])));
    }
}
