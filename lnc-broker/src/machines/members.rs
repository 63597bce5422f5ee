//! Who belongs to the cluster, as the meta group has decided it: a part of the catalog. Deterministic.
//!
//! A member is a node in one of its lives. A node that comes back with an empty disk is admitted under its next
//! *generation*: to Raft another member, so that no vote of the one can ever count for the other. What is decided here
//! is what *should* be; the leader of each group changes the group's Raft configuration until it is so (see
//! `membership.rs`). A member that should go stays known, among the former ones, until no group names it any more.

use crate::machines::command::{CommandError, get_string, get_u32, get_u64, put_string};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_raft::NodeId;
use lnc_replication::formation::MAX_VERSION;
use std::collections::{BTreeMap, BTreeSet};

/// Most members, former ones included: as many as a Raft configuration and a greeting may name.
const MAX_MEMBERS: usize = 48;

/// More lives than any node has.
const MAX_GENERATION: u32 = 1 << 30;

/// How a node is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// By clients.
    pub client: String,
    /// By the other nodes.
    pub peer: String,
    /// For metrics and health.
    pub http: String,
}

impl Addresses {
    /// The three of them, with what each is for.
    fn each(&self) -> [(&'static str, &str); 3] {
        [("client", &self.client), ("peer", &self.peer), ("http", &self.http)]
    }

    /// Whether a node can be reached at these addresses. The error says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (what, address) in self.each() {
            if !is_address(address) {
                let form = "host:port, such as n4.example:1992";
                return Err(format!("the {what} address {address:?} is not an address: it must have the form {form}"));
            }
            if !seen.insert(address) {
                return Err(format!("the {what} address {address} is given twice: each port of a node is its own"));
            }
        }
        Ok(())
    }
}

/// Whether others can connect to this: a name or an IPv4 address, or an IPv6 address in brackets, and a port.
pub(crate) fn is_address(text: &str) -> bool {
    /// Longest name in the DNS, and a port.
    const MAX_LEN: usize = 253 + 1 + 5;
    let Some((host, port)) = text.rsplit_once(':').filter(|_| text.len() <= MAX_LEN) else { return false };
    let named = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    let is_host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        // Not all of what an IPv6 address must be; `[::]` means no address that others could connect to.
        Some(inner) => {
            let digits = |c: u8| c.is_ascii_hexdigit() || matches!(c, b':' | b'.');
            inner.contains(':') && inner.bytes().all(digits) && inner.bytes().any(|c| !matches!(c, b':' | b'.' | b'0'))
        }
        None => !host.is_empty() && host != "0.0.0.0" && host.bytes().all(named),
    };
    is_host && port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// One spelling for all of an address that can be told without asking for names: of its port, of an IPv4 address, of case.
fn canonical(address: &str) -> (String, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let mapped = host.strip_prefix("::ffff:").unwrap_or(&host);
    let host = match mapped == "localhost" {
        true => "127.0.0.1".to_owned(),
        false => ipv4(mapped).unwrap_or(host),
    };
    (host, port.parse().unwrap_or(0))
}

/// An IPv4 address with all of its four numbers: where some are left out, as in `127.1`, the last one fills what is missing.
fn ipv4(host: &str) -> Option<String> {
    let parts: Vec<u32> = host.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    let (last, first) = parts.split_last().filter(|_| parts.len() <= 4)?;
    let room = 8 * (4 - first.len() as u32);
    if first.iter().any(|part| *part > 255) || u64::from(*last) >= 1 << room {
        return None;
    }
    let high = first.iter().fold(0u64, |bits, part| bits << 8 | u64::from(*part)) << room;
    let [a, b, c, d] = ((high | u64::from(*last)) as u32).to_be_bytes();
    Some(format!("{a}.{b}.{c}.{d}"))
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Node and generation.
    pub id: NodeId,
    /// The incarnation of its data directory; 0 while nobody has come with one.
    pub incarnation: u64,
    /// How it is reached.
    pub addresses: Addresses,
    /// The node that leaves when this one has taken over its part.
    pub replaces: Option<u64>,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// By node number.
    current: BTreeMap<u64, Member>,
    /// Those that should go, until they are gone.
    former: BTreeMap<NodeId, Member>,
    /// The next generation of each node that was ever a member: none is used twice.
    generations: BTreeMap<u64, u32>,
    /// Counts the changes, so that of two lists of members it can be told which is newer.
    version: u64,
}

/// Why a change of membership was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The node is a member, under other addresses.
    #[error(
        "node {node} is a member already, reached by its peers at {peer}: remove it first, or change its addresses in cluster.nodes"
    )]
    Exists {
        /// The node.
        node: u64,
        /// Its peer address.
        peer: String,
    },
    /// The cluster is so new that its founders are not noted yet.
    #[error("the cluster has only just begun: try again in a moment")]
    NotFounded,
    /// The node is no member.
    #[error("node {node} is not a member of the cluster")]
    Unknown {
        /// The node.
        node: u64,
    },
    /// The last member cannot leave.
    #[error(
        "node {node} is the only member that has a part in the cluster: a cluster without members would lose its data"
    )]
    Last {
        /// The node.
        node: u64,
    },
    /// Too many members.
    #[error("the cluster has {count} members, which is as many as it may have")]
    TooMany {
        /// How many.
        count: usize,
    },
}

impl Members {
    /// Whether the founders were noted.
    pub fn is_founded(&self) -> bool {
        !self.generations.is_empty()
    }

    /// Note the founders; without effect if they were noted before.
    pub fn found(&mut self, founders: Vec<Member>) {
        if self.is_founded() {
            return;
        }
        self.version += 1;
        for member in founders {
            self.generations.insert(member.id.node(), member.id.generation() + 1);
            self.current.insert(member.id.node(), member);
        }
    }

    /// Expect a new node. Saying it again changes nothing.
    pub fn add(&mut self, node: u64, addresses: Addresses, replaces: Option<u64>) -> Result<(), MemberError> {
        if !self.is_founded() {
            return Err(MemberError::NotFounded);
        }
        if let Some(known) = self.current.get(&node) {
            return match known.addresses == addresses && known.replaces == replaces {
                true => Ok(()),
                false => Err(MemberError::Exists { node, peer: known.addresses.peer.clone() }),
            };
        }
        if let Some(old) = replaces.filter(|old| !self.current.contains_key(old)) {
            return Err(MemberError::Unknown { node: old });
        }
        self.check_room()?;
        let id = self.next_id(node);
        self.version += 1;
        self.current.insert(node, Member { id, incarnation: 0, addresses, replaces });
        Ok(())
    }

    /// A node has come with a fresh data directory. If it is expected, that is its incarnation; if it is known under
    /// another, it has lost its disk and begins its next life.
    pub fn admit(&mut self, node: u64, incarnation: u64) -> Result<(), MemberError> {
        let Some(member) = self.current.get_mut(&node) else { return Err(MemberError::Unknown { node }) };
        if member.incarnation == 0 {
            member.incarnation = incarnation;
            self.version += 1;
        } else if member.incarnation != incarnation {
            self.expect_anew(node, incarnation)?;
        }
        Ok(())
    }

    /// Expect the node with an empty disk: whoever comes next under its number takes its place.
    pub fn renew(&mut self, node: u64) -> Result<(), MemberError> {
        match self.current.get(&node) {
            None => Err(MemberError::Unknown { node }),
            // It is expected already.
            Some(member) if member.incarnation == 0 => Ok(()),
            Some(_) => self.expect_anew(node, 0),
        }
    }

    fn expect_anew(&mut self, node: u64, incarnation: u64) -> Result<(), MemberError> {
        self.check_room()?;
        let id = self.next_id(node);
        self.version += 1;
        if let Some(old) = self.current.remove(&node) {
            let member = Member { id, incarnation, addresses: old.addresses.clone(), replaces: old.replaces };
            self.current.insert(node, member);
            self.former.insert(old.id, old);
        }
        Ok(())
    }

    /// Let a node go. Saying it again, while it is going or after, changes nothing.
    pub fn remove(&mut self, node: u64) -> Result<(), MemberError> {
        if !self.current.contains_key(&node) {
            let known = self.generations.contains_key(&node);
            return if known { Ok(()) } else { Err(MemberError::Unknown { node }) };
        }
        let stays = |member: &&Member| member.id.node() != node && member.incarnation != 0;
        if !self.current.values().any(|member| stays(&member)) {
            return Err(MemberError::Last { node });
        }
        self.version += 1;
        if let Some(member) = self.current.remove(&node) {
            self.former.insert(member.id, member);
        }
        for member in self.current.values_mut().filter(|member| member.replaces == Some(node)) {
            member.replaces = None;
        }
        Ok(())
    }

    /// End what a member has begun that has not come to vote. If its former self is given, that one stays in its place.
    pub fn abandon(&mut self, id: NodeId, instead: Option<NodeId>) -> Result<(), MemberError> {
        let node = id.node();
        let Some(member) = self.current.get(&node).filter(|member| member.id == id).cloned() else {
            let known = self.generations.contains_key(&node);
            return if known { Ok(()) } else { Err(MemberError::Unknown { node }) };
        };
        let stays = instead.filter(|former| former.node() == node).and_then(|former| self.former.remove(&former));
        let Some(stays) = stays else { return self.remove(node) };
        self.version += 1;
        self.current.insert(node, stays);
        self.former.insert(id, member);
        Ok(())
    }

    /// Who has one of these addresses already: a member other than the node itself and the one that it replaces.
    pub fn at(&self, addresses: &Addresses, node: u64, replaces: Option<u64>) -> Option<(&Member, &'static str)> {
        let others = self.current.values().chain(self.former.values()).filter(|member| {
            let number = member.id.node();
            number != node && Some(number) != replaces
        });
        let taken = |member: &Member| {
            let theirs = member.addresses.each().map(|(_, address)| canonical(address));
            addresses.each().into_iter().find(|(_, at)| theirs.contains(&canonical(at))).map(|(what, _)| what)
        };
        others.filter_map(|member| Some((member, taken(member)?))).next()
    }

    /// No group names this former member any more. Gives it back, the first time.
    pub fn forget(&mut self, id: NodeId) -> Option<Member> {
        let member = self.former.remove(&id)?;
        self.version += 1;
        Some(member)
    }

    /// How many changes there were.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn check_room(&self) -> Result<(), MemberError> {
        let count = self.current.len() + self.former.len();
        if count >= MAX_MEMBERS { Err(MemberError::TooMany { count }) } else { Ok(()) }
    }

    fn next_id(&mut self, node: u64) -> NodeId {
        let next = self.generations.entry(node).or_default();
        let id = NodeId::new(node as u32, *next);
        *next += 1;
        id
    }

    /// Which member a node is that is admitted next under this number; `None` if the number is nobody's.
    pub fn next_admitted(&self, node: u64) -> Option<NodeId> {
        let member = self.current.get(&node)?;
        let generation = self.generations.get(&node).copied().unwrap_or_default();
        Some(if member.incarnation == 0 { member.id } else { NodeId::new(node as u32, generation) })
    }

    /// The members that should be, by node number.
    pub fn current(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.current.values()
    }

    /// Those that are on their way out.
    pub fn former(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.former.values()
    }

    /// The present member of a node number.
    pub fn of_node(&self, node: u64) -> Option<&Member> {
        self.current.get(&node)
    }

    /// A member, present or former.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.current.get(&id.node()).filter(|member| member.id == id).or_else(|| self.former.get(&id))
    }

    /// The state for a checkpoint.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.version);
        out.put_u32_le(self.generations.len() as u32);
        for (node, next) in &self.generations {
            out.put_u64_le(*node);
            out.put_u32_le(*next);
        }
        for list in [self.current.values().collect::<Vec<_>>(), self.former.values().collect()] {
            out.put_u32_le(list.len() as u32);
            list.into_iter().for_each(|member| put_member(out, member));
        }
    }

    /// The state from a checkpoint.
    pub fn decode(from: &mut Bytes) -> Result<Self, CommandError> {
        let mut members = Self { version: get_u64(from)?, ..Self::default() };
        if members.version > MAX_VERSION {
            return Err(CommandError("the version of the members"));
        }
        for _ in 0..get_u32(from)? {
            let (node, next) = (get_u64(from)?, get_u32(from)?);
            if !is_node(node) {
                return Err(CommandError("a node's number"));
            }
            members.generations.insert(node, next);
        }
        for member in get_members(from)? {
            members.current.insert(member.id.node(), member);
        }
        for member in get_members(from)? {
            members.former.insert(member.id, member);
        }
        Ok(members)
    }
}

/// Whether a node may have this number.
pub(crate) fn is_node(number: u64) -> bool {
    (1..=u64::from(u32::MAX)).contains(&number)
}

pub(crate) fn put_addresses(out: &mut BytesMut, addresses: &Addresses) {
    put_string(out, &addresses.client);
    put_string(out, &addresses.peer);
    put_string(out, &addresses.http);
}

pub(crate) fn get_addresses(from: &mut Bytes) -> Result<Addresses, CommandError> {
    Ok(Addresses { client: get_string(from)?, peer: get_string(from)?, http: get_string(from)? })
}

pub(crate) fn put_member(out: &mut BytesMut, member: &Member) {
    out.put_u64_le(member.id.0);
    out.put_u64_le(member.incarnation);
    put_addresses(out, &member.addresses);
    crate::machines::command::put_optional(out, member.replaces);
}

/// A list of members, as [`Members::encode`] and the founding command write it.
pub(crate) fn get_members(from: &mut Bytes) -> Result<Vec<Member>, CommandError> {
    /// The least that a member takes.
    const LEAST: usize = 31;
    let count = get_u32(from)? as usize;
    if count > from.remaining() / LEAST {
        return Err(CommandError("a list of members"));
    }
    let member = |from: &mut Bytes| {
        Ok(Member {
            id: NodeId(get_u64(from)?),
            incarnation: get_u64(from)?,
            addresses: get_addresses(from)?,
            replaces: crate::machines::command::get_optional(from)?,
        })
    };
    let members: Vec<Member> = (0..count).map(|_| member(from)).collect::<Result<_, CommandError>>()?;
    // What lies beyond them could not be counted on.
    let sound = |member: &Member| is_node(member.id.node()) && member.id.generation() < MAX_GENERATION;
    match members.iter().all(sound) {
        true => Ok(members),
        false => Err(CommandError("a member's name")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(node: u64) -> Addresses {
        Addresses { client: format!("h{node}:1"), peer: format!("h{node}:2"), http: format!("h{node}:3") }
    }

    fn founded() -> Members {
        let founder =
            |node| Member { id: NodeId(node), incarnation: node * 11, addresses: addresses(node), replaces: None };
        let mut members = Members::default();
        members.found((1..=3).map(founder).collect());
        members
    }

    fn ids(members: &Members) -> Vec<String> {
        members.current().map(|member| member.id.to_string()).collect()
    }

    #[test]
    fn a_wiped_node_begins_its_next_life_and_its_former_one_stays_known() {
        let mut members = founded();
        assert_eq!(members.admit(3, 33), Ok(()), "the same disk is no news");
        assert_eq!(ids(&members), ["1", "2", "3"]);
        assert_eq!(members.admit(3, 99), Ok(()));
        assert_eq!(members.admit(3, 99), Ok(()), "said twice");
        assert_eq!(ids(&members), ["1", "2", "3.1"]);
        assert_eq!(members.former().map(|member| member.id).collect::<Vec<_>>(), [NodeId(3)]);
        members.forget(NodeId(3));
        assert_eq!(members.admit(3, 100), Ok(()));
        assert_eq!(ids(&members), ["1", "2", "3.2"], "no generation is used twice");
    }

    #[test]
    fn nodes_come_and_go_and_repeating_changes_nothing() {
        let mut members = founded();
        for _ in 0..2 {
            assert_eq!(members.add(4, addresses(4), None), Ok(()));
        }
        assert!(matches!(members.add(4, addresses(5), None), Err(MemberError::Exists { .. })));
        assert_eq!(members.of_node(4).map(|member| member.incarnation), Some(0));
        assert_eq!(members.admit(4, 44), Ok(()));
        assert_eq!(members.admit(9, 1), Err(MemberError::Unknown { node: 9 }));
        for _ in 0..2 {
            assert_eq!(members.remove(4), Ok(()));
        }
        assert_eq!(members.remove(9), Err(MemberError::Unknown { node: 9 }));
        assert_eq!(members.former().count(), 1);
        assert_eq!(members.add(4, addresses(4), Some(1)), Ok(()));
        assert_eq!(ids(&members), ["1", "2", "3", "4.1"]);
        assert_eq!(members.remove(1), Ok(()));
        assert_eq!(members.of_node(4).map(|member| member.replaces), Some(None));
    }

    #[test]
    fn nobody_comes_before_the_founders() {
        let mut members = Members::default();
        assert_eq!(members.add(4, addresses(4), None), Err(MemberError::NotFounded));
        assert!(!members.is_founded());
        assert!(founded().is_founded());
    }

    #[test]
    fn the_last_member_stays() {
        let mut members = founded();
        assert_eq!((members.remove(1), members.remove(2)), (Ok(()), Ok(())));
        assert_eq!(members.add(4, addresses(4), None), Ok(()));
        assert_eq!(members.remove(3), Err(MemberError::Last { node: 3 }), "the expected one has nothing yet");
    }

    #[test]
    fn a_renewed_node_takes_whoever_comes_next() {
        let mut members = founded();
        for _ in 0..2 {
            assert_eq!(members.renew(2), Ok(()));
        }
        assert_eq!(members.of_node(2).map(|member| (member.id, member.incarnation)), Some((NodeId::new(2, 1), 0)));
        assert_eq!(members.admit(2, 5), Ok(()));
        assert_eq!(members.of_node(2).map(|member| member.incarnation), Some(5));
        assert_eq!(members.renew(8), Err(MemberError::Unknown { node: 8 }));
    }

    #[test]
    fn what_does_not_come_to_vote_ends_and_the_former_self_stays() {
        let mut members = founded();
        members.admit(1, 99).unwrap();
        let (former, next) = (NodeId(1), NodeId::new(1, 1));
        for _ in 0..2 {
            assert_eq!(members.abandon(next, Some(former)), Ok(()));
        }
        assert_eq!(ids(&members), ["1", "2", "3"]);
        assert_eq!(members.of_node(1).map(|member| member.incarnation), Some(11));
        assert_eq!(members.former().map(|member| member.id).collect::<Vec<_>>(), [next]);
        members.renew(1).unwrap();
        assert_eq!(ids(&members), ["1.2", "2", "3"], "no generation is used twice");
        // Without a former self, or with one of another node, it leaves.
        members.add(4, addresses(4), Some(2)).unwrap();
        assert_eq!(members.abandon(NodeId(4), Some(former)), Ok(()));
        assert_eq!(ids(&members), ["1.2", "2", "3"]);
        assert_eq!(members.abandon(NodeId(9), None), Err(MemberError::Unknown { node: 9 }));
    }

    #[test]
    fn addresses_are_addresses_and_each_is_one_node_s() {
        for good in ["n4:1992", "10.0.0.7:1", "[::1]:65535", "a-b.c_d.example:80"] {
            assert!(is_address(good), "{good}");
        }
        let long = format!("{}:1", "n".repeat(300));
        for bad in [
            "",
            "n4",
            ":1",
            "n4:",
            "n4:0",
            "n4:65536",
            "n4:+1",
            "n 4:1",
            "[::]:1",
            "0.0.0.0:1",
            "[x]:1",
            "a:b:1",
            &long,
        ] {
            assert!(!is_address(bad), "{bad}");
        }
        assert_eq!(addresses(4).check(), Ok(()));
        assert!(Addresses { http: "h4:2".into(), ..addresses(4) }.check().unwrap_err().contains("twice"));
        assert!(Addresses { peer: "h4".into(), ..addresses(4) }.check().unwrap_err().contains("peer address"));
        let members = founded();
        let taken = |at: &Addresses, replaces| members.at(at, 4, replaces).map(|(member, what)| (member.id, what));
        assert_eq!(taken(&addresses(4), None), None);
        let second = Addresses { client: "h2:3".into(), ..addresses(4) };
        assert_eq!(taken(&second, None), Some((NodeId(2), "client")), "whatever it is for there");
        assert_eq!(taken(&second, Some(2)), None, "its place is taken");
        assert_eq!(members.at(&addresses(2), 2, None), None, "they are its own");
    }

    #[test]
    fn a_state_beyond_all_bounds_is_refused() {
        let mut out = BytesMut::new();
        Members { version: u64::MAX, ..founded() }.encode(&mut out);
        assert!(Members::decode(&mut out.freeze()).is_err());
        for id in [NodeId(0), NodeId::new(1, u32::MAX)] {
            let mut members = founded();
            let strange = Member { id, ..members.of_node(1).unwrap().clone() };
            members.current.insert(1, strange);
            let mut out = BytesMut::new();
            members.encode(&mut out);
            assert!(Members::decode(&mut out.freeze()).is_err(), "{id:?}");
        }
    }

    #[test]
    fn state_survives_a_checkpoint() {
        let mut members = founded();
        members.add(4, addresses(4), Some(2)).unwrap();
        members.admit(3, 99).unwrap();
        let mut out = BytesMut::new();
        members.encode(&mut out);
        assert_eq!(Members::decode(&mut out.freeze()), Ok(members));
    }

    #[test]
    fn an_address_is_known_in_every_spelling() {
        let spelled =
            ["127.0.0.1:26701", "127.0.0.1:026701", "127.1:26701", "[::ffff:127.0.0.1]:26701", "LOCALHOST:26701"];
        for other in spelled {
            assert_eq!(canonical(other), ("127.0.0.1".to_owned(), 26701), "{other}");
        }
        assert_eq!(canonical("[2001:DB8::1]:1"), canonical("[2001:db8::1]:01"));
        assert_eq!(canonical("N4.example:1993"), ("n4.example".to_owned(), 1993));
        assert_ne!(canonical("10.1:5"), canonical("10.0.1:6"));
        assert_eq!(canonical("1.2.3.4.5:1").0, "1.2.3.4.5");
        assert_eq!(canonical("256.1:1").0, "256.1");
    }
}
