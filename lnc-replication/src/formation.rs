//! Who is a member: identities, the greeting between brokers, and the safe formation of a cluster. Pure.
//!
//! A member is a node in one of its lives, a [`NodeId`], and each life has an incarnation: drawn when a data directory is
//! made, and on disk before anyone hears of it. So a node whose disk was wiped comes back as somebody else and cannot
//! vote with an empty memory; the cluster admits it under its next generation. A fresh node helps to form a new cluster
//! only when every configured node is fresh; the cluster id then follows from the incarnations alone, so that all of them
//! come to the same one without a vote. From then on the cluster itself decides who is a member.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_log::data_dir::FORMATS;
use lnc_mutation::{Mutation, mutated};
use lnc_raft::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use thiserror::Error;

/// First bytes of a greeting.
pub const MAGIC: u32 = 0x5043_4e4c;

/// Version of the greeting's layout. It stays: what is new comes behind what there was, where older versions do not look.
const GREETING_VERSION: u16 = 1;

/// Most members that a greeting may name.
const MAX_MEMBERS: usize = 64;

/// More changes of the members than there will ever be.
pub const MAX_VERSION: u64 = 1 << 48;

/// A formed cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Follows from the founders.
    pub id: u128,
    /// Every founder's incarnation: the configuration of every Raft group before its first entry, the same on every node
    /// for good, also on one that came when all of them were gone.
    pub founders: BTreeMap<NodeId, u64>,
    /// Raft groups that hold partitions; fixed when the cluster was founded.
    pub data_groups: u32,
    /// How new the list of members is: it counts the changes that the cluster has decided.
    pub version: u64,
    /// Every member's incarnation, as far as its owner knows.
    pub members: BTreeMap<NodeId, u64>,
}

impl Cluster {
    /// A cluster that has just been founded.
    pub fn found(founders: BTreeMap<NodeId, u64>, data_groups: u32) -> Self {
        Self { id: cluster_id(&founders), members: founders.clone(), founders, data_groups, version: 0 }
    }

    /// The member that a node is with this incarnation.
    pub fn member(&self, node: u64, incarnation: u64) -> Option<NodeId> {
        let is_it = |known: u64| known == incarnation || mutated(Mutation::WipedVotes);
        let found = self.members.iter().find(|(id, known)| id.node() == node && is_it(**known));
        found.map(|(id, _)| *id)
    }

    /// The incarnation under which a node is known best: that of its latest life.
    fn latest(&self, node: u64) -> Option<u64> {
        self.members.iter().filter(|(id, _)| id.node() == node).max_by_key(|(id, _)| id.generation()).map(|(_, i)| *i)
    }
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The configured number of the node; its generation once it is a member.
    pub node: NodeId,
    /// Drawn when the data directory was made.
    pub incarnation: u64,
    /// The cluster that this data directory belongs to; `None` while it is fresh.
    pub cluster: Option<Cluster>,
}

/// What a connection between brokers carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Votes, heartbeats, transfers, read-index: small, never behind data.
    Control = 1,
    /// Append entries and their replies.
    Replication = 2,
}

impl Channel {
    /// Name for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Replication => "replication",
        }
    }
}

/// What a peer says of itself when a connection to it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeted {
    /// The incarnation of its data directory.
    pub incarnation: u64,
    /// The formats that it speaks.
    pub formats: Formats,
}

/// The formats, a range, that a node speaks: what nodes store and send to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// The oldest; later than what the build knows where the cluster has gone on to a later one.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

impl Formats {
    /// What this build can speak.
    pub const BUILD: Self = Self { oldest: *FORMATS.start(), newest: *FORMATS.end() };

    /// What version 0.1.0 speaks, whose greeting does not say it.
    const UNSAID: Self = Self { oldest: 1, newest: 1 };

    /// The same in a cluster of this format, which has no room for older ones.
    pub fn in_cluster(self, format: u32) -> Self {
        Self { oldest: self.oldest.max(format), ..self }
    }

    /// Whether the format is among them.
    pub fn contains(self, format: u32) -> bool {
        (self.oldest..=self.newest).contains(&format)
    }

    /// The newest format that both speak. The error is told to the peer.
    pub fn agree(self, theirs: Self) -> Result<u32, String> {
        let newest = self.newest.min(theirs.newest);
        match self.contains(newest) && theirs.contains(newest) {
            true => Ok(newest),
            false => Err(format!(
                "no common format: this node speaks {} to {}, the other {} to {}; a cluster whose format was raised \
                 has no room for older versions",
                self.oldest, self.newest, theirs.oldest, theirs.newest
            )),
        }
    }
}

/// The first frame in each direction of a connection between brokers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the connection is for.
    pub channel: Channel,
    /// Who speaks.
    pub identity: Identity,
    /// In a reply: why the connection is refused.
    pub refusal: Option<String>,
    /// Which formats it speaks.
    pub formats: Formats,
    /// Which process this is: drawn when it started; 0 where it is not said, as by version 0.1.0.
    pub run: u64,
    /// In a reply: the run of another process with the receiver's identity, which is connected or wants to be; 0 if none.
    pub twin: u64,
}

/// Why a greeting could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum GreetingError {
    /// Not a broker of this kind.
    #[error("not a LANCE broker: greeting starts with {0:08x}")]
    BadMagic(u32),
    /// A greeting of another layout.
    #[error("the peer's greeting has version {found}, this node reads version {GREETING_VERSION}")]
    Version {
        /// The peer's version.
        found: u16,
    },
    /// Cut short or nonsense.
    #[error("the peer's greeting is malformed at {0}")]
    Malformed(&'static str),
}

impl Greeting {
    /// Whoever speaks this format tells its processes apart.
    const RUN_SINCE_FORMAT: u32 = 3;

    /// Whether it says which process it comes from, as far as its version does. The error is told to the peer.
    pub(crate) fn names_its_process(&self) -> Result<(), String> {
        match self.run == 0 && self.formats.newest >= Self::RUN_SINCE_FORMAT {
            true => {
                Err(format!("the greeting of node {} does not say which process it comes from", self.identity.node))
            }
            false => Ok(()),
        }
    }

    /// Append the body of the greeting's frame.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(MAGIC);
        out.put_u16_le(GREETING_VERSION);
        out.put_u8(self.channel as u8);
        out.put_u64_le(self.identity.node.0);
        out.put_u64_le(self.identity.incarnation);
        match &self.identity.cluster {
            None => out.put_u8(0),
            Some(cluster) => {
                out.put_u8(1);
                out.put_u128_le(cluster.id);
                out.put_u32_le(cluster.data_groups);
                put_members(out, &cluster.founders);
                out.put_u64_le(cluster.version);
                put_members(out, &cluster.members);
            }
        }
        let refusal = self.refusal.as_deref().unwrap_or_default();
        let refusal = &refusal.as_bytes()[..refusal.len().min(1024)];
        out.put_u16_le(refusal.len() as u16);
        out.put_slice(refusal);
        out.put_u32_le(self.formats.oldest);
        out.put_u32_le(self.formats.newest);
        out.put_u64_le(self.run);
        out.put_u64_le(self.twin);
    }

    /// Read a greeting from its frame's body.
    pub fn decode(mut body: Bytes) -> Result<Self, GreetingError> {
        let short = |what| move |_| GreetingError::Malformed(what);
        let magic = body.try_get_u32_le().map_err(short("magic"))?;
        if magic != MAGIC {
            return Err(GreetingError::BadMagic(magic));
        }
        let found = body.try_get_u16_le().map_err(short("version"))?;
        if found != GREETING_VERSION {
            return Err(GreetingError::Version { found });
        }
        let channel = match body.try_get_u8().map_err(short("channel"))? {
            1 => Channel::Control,
            2 => Channel::Replication,
            _ => return Err(GreetingError::Malformed("channel")),
        };
        let node = NodeId(body.try_get_u64_le().map_err(short("node id"))?);
        let incarnation = body.try_get_u64_le().map_err(short("incarnation"))?;
        // Members that have not come yet are noted with 0.
        if node.node() == 0 || incarnation == 0 {
            return Err(GreetingError::Malformed("identity"));
        }
        let cluster = match body.try_get_u8().map_err(short("cluster"))? {
            0 => None,
            1 => {
                let id = body.try_get_u128_le().map_err(short("cluster id"))?;
                let data_groups = body.try_get_u32_le().map_err(short("data groups"))?;
                let founders = get_members(&mut body).filter(|founders| cluster_id(founders) == id);
                let founders = founders.ok_or(GreetingError::Malformed("founders"))?;
                let version = body.try_get_u64_le().map_err(short("version of the members"))?;
                if version > MAX_VERSION {
                    return Err(GreetingError::Malformed("version of the members"));
                }
                let members = get_members(&mut body).ok_or(GreetingError::Malformed("members"))?;
                Some(Cluster { id, founders, data_groups, version, members })
            }
            _ => return Err(GreetingError::Malformed("cluster")),
        };
        let len = body.try_get_u16_le().map_err(short("refusal"))? as usize;
        if len > body.len() {
            return Err(GreetingError::Malformed("refusal"));
        }
        let words = body.split_to(len);
        let refusal = (len > 0).then(|| String::from_utf8_lossy(&words).into_owned());
        let formats = get_formats(&mut body).ok_or(GreetingError::Malformed("formats"))?;
        let (run, twin) = match body.is_empty() {
            true => (0, 0),
            false => {
                let mut run = || body.try_get_u64_le().map_err(short("run"));
                (run()?, run()?)
            }
        };
        Ok(Self { channel, identity: Identity { node, incarnation, cluster }, refusal, formats, run, twin })
    }
}

fn get_formats(body: &mut Bytes) -> Option<Formats> {
    if body.is_empty() {
        return Some(Formats::UNSAID);
    }
    let formats = Formats { oldest: body.try_get_u32_le().ok()?, newest: body.try_get_u32_le().ok()? };
    (1..=formats.newest).contains(&formats.oldest).then_some(formats)
}

fn put_members(out: &mut BytesMut, members: &BTreeMap<NodeId, u64>) {
    out.put_u16_le(members.len() as u16);
    for (node, incarnation) in members {
        out.put_u64_le(node.0);
        out.put_u64_le(*incarnation);
    }
}

fn get_members(body: &mut Bytes) -> Option<BTreeMap<NodeId, u64>> {
    let count = body.try_get_u16_le().ok()? as usize;
    let mut member = || Some((NodeId(body.try_get_u64_le().ok()?), body.try_get_u64_le().ok()?));
    (count <= MAX_MEMBERS).then(|| (0..count).map(|_| member()).collect())?
}

impl Identity {
    /// The newer list of members of a peer in the same cluster.
    fn newer<'a>(&self, theirs: &'a Identity) -> Option<&'a Cluster> {
        let (own, heard) = (self.cluster.as_ref()?, theirs.cluster.as_ref()?);
        (heard.id == own.id && heard.version > own.version).then_some(heard)
    }

    fn is_named(&self, cluster: &Cluster) -> bool {
        cluster.member(self.node.node(), self.incarnation).is_some()
    }

    /// Whether a peer has a newer list of members than this node, and this node is on it.
    pub fn is_behind(&self, theirs: &Identity) -> bool {
        self.newer(theirs).is_some_and(|heard| self.is_named(heard))
    }

    /// The version of a peer's list of members, if it is newer than this node's and this node is not on it: it was removed.
    pub fn removed_in(&self, theirs: &Identity) -> Option<u64> {
        self.newer(theirs).filter(|heard| !self.is_named(heard)).map(|heard| heard.version)
    }

    /// Take over a newer list of members from a peer of the same cluster: one that this node knows as a member, or has
    /// found where it knows a member to be. A node that was away while others lost their disks would not know them, and so
    /// never hear of it from the log. Says whether there was news.
    pub fn learn(&mut self, theirs: &Identity) -> bool {
        // A list that this node is not on says that it was removed; that is for the log to say.
        let Some(heard) = self.newer(theirs).filter(|heard| self.is_named(heard)).cloned() else { return false };
        if let Some(own) = &mut self.cluster {
            (own.version, own.members) = (heard.version, heard.members);
        }
        true
    }
}

impl Identity {
    /// Follow what the cluster has decided, as far as this node knows. What was heard from members may be newer, unless it
    /// is `certain` that this is the newest. Says whether that changed anything.
    pub fn follow(&mut self, version: u64, members: &BTreeMap<NodeId, u64>, certain: bool) -> bool {
        let Some(cluster) = self.cluster.as_mut().filter(|cluster| certain || cluster.version <= version) else {
            return false;
        };
        let news = cluster.version != version || cluster.members != *members;
        if news {
            cluster.version = version;
            cluster.members.clone_from(members);
        }
        news
    }
}

/// Whether a peer that says it is `theirs` may exchange messages with this node. The error is told to the peer.
pub fn admit(own: &Identity, theirs: &Identity) -> Result<(), String> {
    let (node, incarnation) = (theirs.node.node(), theirs.incarnation);
    if node == own.node.node() {
        return Err(format!("node id {node} is this node's own: two nodes are configured with one id"));
    }
    let Some(cluster) = &own.cluster else {
        return Err(format!("node {} is fresh and waits for its cluster to form", own.node));
    };
    if let Some(other) = theirs.cluster.as_ref().filter(|other| other.id != cluster.id) {
        return Err(format!(
            "node {node} belongs to cluster {:032x}, this node to {:032x}: one of the data directories is in the wrong place",
            other.id, cluster.id
        ));
    }
    match cluster.member(node, incarnation) {
        Some(member) if member == theirs.node && theirs.cluster.is_some() => Ok(()),
        Some(_) => Err(format!("node {node} has not joined the cluster yet")),
        None => Err(match cluster.latest(node) {
            Some(known) => format!(
                "node {node} is known as incarnation {known:016x} and comes as {incarnation:016x}: its data directory \
                 was wiped or replaced, and it awaits re-admission"
            ),
            None => {
                format!("node {node} is not a member of cluster {:032x}: `lance cluster add` makes it one", cluster.id)
            }
        }),
    }
}

/// What a fresh node should do with what it has heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not every configured node has been heard.
    Wait {
        /// Who is missing.
        missing: BTreeSet<NodeId>,
    },
    /// Belong to this cluster: make it durable, then start.
    Join(Cluster),
    /// The others have a cluster that this incarnation is no part of.
    AwaitAdmission {
        /// Their cluster.
        cluster: u128,
        /// Whether they know the node, by an incarnation that it had before.
        known: bool,
    },
    /// Peers belong to different clusters: for the operator to resolve.
    Conflict {
        /// The clusters named.
        clusters: BTreeSet<u128>,
    },
}

/// Decide for a fresh node `own`, from what the live peers say they are. A cluster that is founded now has as many data
/// groups as the configuration says.
pub fn decide(
    own: &Identity,
    configured: &BTreeSet<NodeId>,
    data_groups: u32,
    heard: &BTreeMap<NodeId, Identity>,
) -> Decision {
    let clusters: Vec<&Cluster> = heard.values().filter_map(|peer| peer.cluster.as_ref()).collect();
    let ids: BTreeSet<u128> = clusters.iter().map(|cluster| cluster.id).collect();
    if ids.len() > 1 {
        return Decision::Conflict { clusters: ids };
    }
    if let Some(&cluster) = ids.first() {
        // Some may not have heard yet that this node was admitted.
        let names_this = |cluster: &&&Cluster| cluster.member(own.node.node(), own.incarnation).is_some();
        return match clusters.iter().find(names_this) {
            Some(cluster) => Decision::Join((*cluster).clone()),
            None => {
                let known = clusters.iter().any(|cluster| cluster.latest(own.node.node()).is_some());
                Decision::AwaitAdmission { cluster, known }
            }
        };
    }
    let missing: BTreeSet<NodeId> =
        configured.iter().filter(|node| **node != own.node && !heard.contains_key(node)).copied().collect();
    if !missing.is_empty() && !mutated(Mutation::FormAlone) {
        return Decision::Wait { missing };
    }
    let mut members: BTreeMap<NodeId, u64> =
        configured.iter().filter_map(|node| heard.get(node).map(|identity| (*node, identity.incarnation))).collect();
    members.insert(own.node, own.incarnation);
    // Who has lost its disk meanwhile is one person to those who heard it before and another to those who heard it after:
    // if each founded what it has heard, there could be two clusters. One does, and the others hear of it.
    match members.keys().next().filter(|first| **first != own.node) {
        Some(first) => Decision::Wait { missing: [*first].into() },
        None => Decision::Join(Cluster::found(members, data_groups)),
    }
}

/// What a node without a cluster has heard of the others, by the number of each. What is old does not count: whoever said
/// it may be gone, or have lost its disk.
#[derive(Debug, Default)]
pub struct Heard {
    said: BTreeMap<NodeId, (Identity, u64)>,
    /// Nodes of a cluster that have dialled this one, of which and when. At most [`MAX_MEMBERS`]: anybody may say so.
    called: BTreeMap<(NodeId, u128), Called>,
}

/// When a peer dialled this node, first and last.
#[derive(Clone, Copy, Debug)]
struct Called {
    first_us: u64,
    last_us: u64,
}

impl Heard {
    /// How long a word counts, in microseconds: a few pauses between two attempts to connect.
    const MEMORY_US: u64 = 5_000_000;

    /// A peer that this node has dialled has said who it is. Says whether that was news.
    pub fn note(&mut self, now_us: u64, identity: Identity) -> bool {
        let node = NodeId(identity.node.node());
        let news = self.is_news(&identity);
        self.said.insert(node, (identity, now_us));
        news
    }

    /// A peer has dialled this node. That it belongs to a cluster takes this node nowhere: it is for people, and may have it wait.
    pub fn call(&mut self, now_us: u64, identity: &Identity) {
        let Some(cluster) = &identity.cluster else { return };
        let who = (NodeId(identity.node.node()), cluster.id);
        if self.called.len() < MAX_MEMBERS || self.called.contains_key(&who) {
            self.called.entry(who).or_insert(Called { first_us: now_us, last_us: now_us }).last_us = now_us;
        }
    }

    /// Nodes that dial this one from where its configuration does not lead, or as members of another cluster than what is
    /// there; with their clusters.
    pub fn elsewhere(&mut self, now_us: u64) -> BTreeSet<(NodeId, u128)> {
        self.called.retain(|_, called| now_us <= called.last_us + Self::MEMORY_US);
        let said = |node: &NodeId| self.said.get(node).and_then(|(identity, _)| identity.cluster.as_ref());
        let is_heard = |node: &NodeId, id: u128| said(node).is_some_and(|cluster| cluster.id == id);
        self.called.keys().filter(|(node, id)| !is_heard(node, *id)).copied().collect()
    }

    /// The same, of those who have done so for a while: while a cluster forms, who has joined it dials before it is dialled.
    pub fn long_elsewhere(&mut self, now_us: u64) -> BTreeSet<(NodeId, u128)> {
        const WHILE_US: u64 = 2_000_000;
        let mut callers = self.elsewhere(now_us);
        callers.retain(|who| self.called.get(who).is_some_and(|called| now_us >= called.first_us + WHILE_US));
        callers
    }

    /// Whether a peer was something else when it was last heard.
    pub fn is_news(&self, identity: &Identity) -> bool {
        self.said.get(&NodeId(identity.node.node())).is_none_or(|(known, _)| known != identity)
    }

    /// What counts now.
    pub fn now(&mut self, now_us: u64) -> BTreeMap<NodeId, Identity> {
        self.said.retain(|_, (_, at_us)| now_us <= *at_us + Self::MEMORY_US);
        self.said.iter().map(|(node, (identity, _))| (*node, identity.clone())).collect()
    }
}

/// The id that follows from the members.
fn cluster_id(members: &BTreeMap<NodeId, u64>) -> u128 {
    let half =
        |salt: u64| members.iter().fold(salt, |hash, (node, incarnation)| mix(mix(hash ^ node.0) ^ *incarnation));
    u128::from(half(0x6c61_6e63_6501)) << 64 | u128::from(half(0x6c61_6e63_6502))
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A list of node ids for people.
pub struct Nodes<'a>(pub &'a BTreeSet<NodeId>);

impl fmt::Display for Nodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, node) in self.0.iter().enumerate() {
            write!(f, "{}{node}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_call_from_elsewhere_are_told_while_they_do() {
        let mut heard = Heard::default();
        let member =
            |node| Identity { cluster: Some(Cluster::found(BTreeMap::from([(NodeId(4), 44)]), 3)), ..fresh(node, 9) };
        heard.call(0, &member(4));
        heard.call(1, &member(5));
        heard.call(2, &fresh(6, 66));
        let told = |heard: &mut Heard, now| heard.elsewhere(now).into_iter().map(|(node, _)| node).collect::<Vec<_>>();
        assert_eq!(told(&mut heard, 3), [NodeId(4), NodeId(5)]);
        assert_eq!(heard.long_elsewhere(3), BTreeSet::new());
        heard.call(2_000_000, &member(4));
        assert_eq!(heard.long_elsewhere(2_000_001).len(), 2);
        heard.note(4, member(5));
        heard.note(4, fresh(4, 44));
        assert_eq!(told(&mut heard, 5), [NodeId(4)], "the other one is where it was dialled, this one is two");
        (100..1000).for_each(|node| heard.call(6, &member(node)));
        assert!(heard.elsewhere(6).len() <= MAX_MEMBERS);
        assert_eq!(heard.elsewhere(2_000_001 + Heard::MEMORY_US), BTreeSet::new());
    }

    fn fresh(node: u64, incarnation: u64) -> Identity {
        Identity { node: NodeId(node), incarnation, cluster: None }
    }

    fn configured() -> BTreeSet<NodeId> {
        [1, 2, 3].map(NodeId).into()
    }

    fn heard(identities: &[Identity]) -> BTreeMap<NodeId, Identity> {
        identities.iter().map(|i| (i.node, i.clone())).collect()
    }

    fn formed() -> Cluster {
        match decide(&fresh(1, 11), &configured(), 3, &heard(&[fresh(2, 22), fresh(3, 33)])) {
            Decision::Join(cluster) => cluster,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_fresh_nodes_come_to_one_cluster() {
        let second = decide(&fresh(2, 22), &configured(), 3, &heard(&[fresh(1, 11), fresh(3, 33)]));
        assert_eq!(second, Decision::Wait { missing: [NodeId(1)].into() }, "one founds it");
        let first = Identity { cluster: Some(formed()), ..fresh(1, 11) };
        let second = decide(&fresh(2, 22), &configured(), 3, &heard(&[first, fresh(3, 33)]));
        assert_eq!(second, Decision::Join(formed()));
        let later = decide(&fresh(1, 11), &configured(), 3, &heard(&[fresh(2, 23), fresh(3, 33)]));
        assert_ne!(later, Decision::Join(formed()), "another incarnation makes another cluster");
    }

    #[test]
    fn a_disk_that_is_lost_while_the_cluster_forms_makes_no_second_cluster() {
        // Nodes 1 and 2 have met; node 2 loses its disk; node 3 comes and meets them both; node 1 has not met the new one.
        let views = [
            (fresh(1, 11), heard(&[fresh(2, 22), fresh(3, 33)])),
            (fresh(2, 23), heard(&[fresh(1, 11), fresh(3, 33)])),
            (fresh(3, 33), heard(&[fresh(1, 11), fresh(2, 23)])),
        ];
        let founded = |(own, heard): &(Identity, BTreeMap<NodeId, Identity>)| match decide(own, &configured(), 3, heard)
        {
            Decision::Join(cluster) => Some(cluster.id),
            _ => None,
        };
        let clusters: BTreeSet<u128> = views.iter().filter_map(founded).collect();
        assert_eq!(clusters.len(), 1, "{clusters:x?}");
    }

    #[test]
    fn what_was_heard_long_ago_does_not_count() {
        let mut heard = Heard::default();
        assert!(heard.note(1_000_000, fresh(2, 22)));
        assert!(heard.note(5_000_000, fresh(3, 33)));
        assert!(!heard.note(6_000_000, fresh(3, 33)));
        assert!(heard.is_news(&fresh(3, 34)) && !heard.is_news(&fresh(2, 22)));
        assert_eq!(heard.now(6_000_000).len(), 2);
        assert_eq!(heard.now(6_000_001).into_keys().collect::<Vec<_>>(), [NodeId(3)]);
        assert!(heard.note(7_000_000, fresh(2, 22)));
    }

    #[test]
    fn nobody_starts_a_cluster_over_fewer_than_all() {
        let decision = decide(&fresh(1, 11), &configured(), 3, &heard(&[fresh(2, 22)]));
        assert_eq!(decision, Decision::Wait { missing: [NodeId(3)].into() });
    }

    #[test]
    fn a_late_node_joins_what_names_it_and_a_wiped_one_waits() {
        let member = Identity { cluster: Some(formed()), ..fresh(1, 11) };
        assert_eq!(
            decide(&fresh(2, 22), &configured(), 3, &heard(std::slice::from_ref(&member))),
            Decision::Join(formed())
        );
        let wiped = decide(&fresh(2, 99), &configured(), 3, &heard(&[member.clone(), fresh(3, 33)]));
        assert_eq!(wiped, Decision::AwaitAdmission { cluster: formed().id, known: true });
        let refusal = admit(&member, &fresh(2, 99)).unwrap_err();
        assert!(refusal.contains("awaits re-admission"), "{refusal}");
        let stranger = decide(&fresh(4, 44), &configured(), 3, &heard(std::slice::from_ref(&member)));
        assert_eq!(stranger, Decision::AwaitAdmission { cluster: formed().id, known: false });
    }

    #[test]
    fn a_node_that_was_away_learns_who_came_anew() {
        let mut newer = formed();
        newer.version = 3;
        newer.members.remove(&NodeId(2));
        newer.members.insert(NodeId::new(2, 1), 99);
        let theirs = Identity { node: NodeId::new(2, 1), incarnation: 99, cluster: Some(newer.clone()) };
        let mut own = Identity { cluster: Some(formed()), ..fresh(1, 11) };
        assert!(admit(&own, &theirs).is_err());
        assert!(own.learn(&theirs) && !own.learn(&theirs));
        assert_eq!(own.cluster.as_ref().unwrap().founders, formed().founders, "they remain, whoever is a member");
        assert_eq!(admit(&own, &theirs), Ok(()));
        // An older list is no news, and neither is one without this node.
        let old = Identity { cluster: Some(formed()), ..fresh(3, 33) };
        assert!(!own.learn(&old));
        newer.version = 9;
        newer.members.remove(&NodeId(1));
        let without = Identity { cluster: Some(newer), ..theirs };
        assert!(!own.learn(&without) && !own.is_behind(&without));
        assert_eq!((own.removed_in(&without), own.removed_in(&old)), (Some(9), None));
    }

    #[test]
    fn a_list_that_was_heard_of_gives_way_to_what_the_cluster_has_decided() {
        let mut own = Identity { cluster: Some(formed()), ..fresh(1, 11) };
        let members = BTreeMap::from([(NodeId(1), 11), (NodeId(4), 44)]);
        let mut theirs = Identity { cluster: Some(formed()), ..fresh(2, 22) };
        theirs.cluster.as_mut().unwrap().version = 1 << 40;
        assert!(own.is_behind(&theirs) && own.learn(&theirs));
        assert!(!own.follow(5, &members, false), "it may be newer");
        assert!(own.follow(5, &members, true));
        assert_eq!(own.cluster.as_ref().map(|cluster| (cluster.version, &cluster.members)), Some((5, &members)));
        assert!(!own.follow(5, &members, true));
    }

    #[test]
    fn an_admitted_node_joins_under_its_generation_and_is_no_founder() {
        let mut cluster = formed();
        assert_eq!(cluster.founders, cluster.members);
        let again = NodeId::new(2, 1);
        cluster.members.insert(again, 99);
        let informed = Identity { cluster: Some(cluster.clone()), ..fresh(1, 11) };
        let late = Identity { cluster: Some(formed()), ..fresh(3, 33) };
        let heard = heard(&[informed.clone(), late]);
        let Decision::Join(joined) = decide(&fresh(2, 99), &configured(), 3, &heard) else { panic!("it is admitted") };
        assert_eq!(joined.member(2, 99), Some(again));
        assert_eq!(joined.founders, formed().founders, "who founded the cluster is known to those who came later");
        let member = Identity { node: again, incarnation: 99, cluster: Some(joined) };
        assert_eq!(admit(&informed, &member), Ok(()));
        let former = Identity { cluster: Some(formed()), ..fresh(2, 22) };
        assert_eq!(admit(&informed, &former), Ok(()), "as long as it is named");
        let liar = Identity { node: again, ..former };
        assert!(admit(&informed, &liar).is_err(), "not under another's name");
    }

    #[test]
    fn two_clusters_are_a_conflict() {
        let one = Identity { cluster: Some(formed()), ..fresh(1, 11) };
        let other = Cluster { id: 7, ..formed() };
        let two = Identity { cluster: Some(other), ..fresh(3, 33) };
        assert!(matches!(decide(&fresh(2, 22), &configured(), 3, &heard(&[one, two])), Decision::Conflict { .. }));
    }

    #[test]
    fn only_members_of_the_same_cluster_are_admitted() {
        let own = Identity { cluster: Some(formed()), ..fresh(1, 11) };
        let peer = Identity { cluster: Some(formed()), ..fresh(2, 22) };
        assert_eq!(admit(&own, &peer), Ok(()));
        let stranger = Identity { node: NodeId(9), ..peer.clone() };
        assert!(admit(&own, &stranger).unwrap_err().contains("lance cluster add"));
        let elsewhere = Identity { cluster: Some(Cluster { id: 5, ..formed() }), ..peer.clone() };
        assert!(admit(&own, &elsewhere).unwrap_err().contains("belongs to cluster"));
        let twin = Identity { node: NodeId(1), ..peer };
        assert!(admit(&own, &twin).unwrap_err().contains("one id"));
    }

    #[test]
    fn the_newest_common_format_is_agreed_upon() {
        let speaks = |oldest, newest| Formats { oldest, newest };
        assert_eq!(speaks(1, 2).agree(speaks(1, 1)), Ok(1));
        assert_eq!(speaks(1, 3).agree(speaks(2, 5)), Ok(3));
        assert!(speaks(1, 2).in_cluster(2).agree(speaks(1, 1)).is_err(), "the cluster has gone on");
        assert!(speaks(1, 1).agree(speaks(1, 2).in_cluster(2)).is_err(), "and it says so itself");
    }

    #[test]
    fn greetings_survive_the_wire_and_nonsense_is_refused() {
        let greeting = Greeting {
            channel: Channel::Replication,
            identity: Identity { cluster: Some(formed()), ..fresh(1, 11) },
            refusal: Some("because".into()),
            formats: Formats { oldest: 2, newest: 7 },
            run: 77,
            twin: 78,
        };
        let mut out = BytesMut::new();
        greeting.encode(&mut out);
        let bytes = out.freeze();
        assert_eq!(Greeting::decode(bytes.clone()), Ok(greeting.clone()));
        let (without_run, without_formats) = (bytes.len() - 16, bytes.len() - 24);
        for len in (0..bytes.len()).filter(|len| ![without_run, without_formats].contains(len)) {
            assert!(Greeting::decode(bytes.slice(..len)).is_err());
        }
        let second = Greeting { run: 0, twin: 0, ..greeting.clone() };
        assert_eq!(
            Greeting::decode(bytes.slice(..without_run)),
            Ok(second.clone()),
            "as builds greet that do not say it"
        );
        let first = Greeting { formats: Formats { oldest: 1, newest: 1 }, ..second };
        assert_eq!(Greeting::decode(bytes.slice(..without_formats)), Ok(first), "as 0.1.0 greets");
        let refused = |change: fn(&mut Identity)| {
            let mut strange = greeting.clone();
            change(&mut strange.identity);
            let mut out = BytesMut::new();
            strange.encode(&mut out);
            Greeting::decode(out.freeze()).unwrap_err()
        };
        assert_eq!(refused(|identity| identity.incarnation = 0), GreetingError::Malformed("identity"));
        assert_eq!(refused(|identity| identity.node = NodeId(0)), GreetingError::Malformed("identity"));
        let version = |identity: &mut Identity| identity.cluster.as_mut().unwrap().version = u64::MAX;
        assert_eq!(refused(version), GreetingError::Malformed("version of the members"));
        let mut other = greeting;
        other.identity.cluster.as_mut().unwrap().founders.remove(&NodeId(3));
        let mut out = BytesMut::new();
        other.encode(&mut out);
        assert_eq!(Greeting::decode(out.freeze()), Err(GreetingError::Malformed("founders")), "they make up the id");
        assert!(matches!(Greeting::decode(Bytes::from_static(b"GET / HTTP/1.1\r\n")), Err(GreetingError::BadMagic(_))));
    }
}
