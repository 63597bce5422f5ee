//! The network between brokers: messages travel through the real codec, and can be cut, delayed and lost.

use super::Rng;
use bytes::BytesMut;
use lnc_log::journal::GroupId;
use lnc_replication::formation::Channel;
use lnc_replication::wire::{PeerMessage, put_message, take_message};
use std::collections::BTreeMap;

/// Messages that do not arrive: those that match every field that is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) from: Option<u64>,
    pub(crate) to: Option<u64>,
    pub(crate) channel: Option<Channel>,
    pub(crate) group: Option<GroupId>,
    /// Messages of more bytes than this.
    pub(crate) longer_than: Option<usize>,
}

impl Cut {
    /// Everything from one node to another.
    pub(crate) fn way(from: u64, to: u64) -> Self {
        Self { from: Some(from), to: Some(to), ..Self::default() }
    }

    /// Everything that a node sends.
    pub(crate) fn from(node: u64) -> Self {
        Self { from: Some(node), ..Self::default() }
    }

    /// Everything that is sent to a node.
    pub(crate) fn to(node: u64) -> Self {
        Self { to: Some(node), ..Self::default() }
    }

    /// Everything on one channel.
    pub(crate) fn channel(channel: Channel) -> Self {
        Self { channel: Some(channel), ..Self::default() }
    }

    /// Of those, only what is about one group.
    pub(crate) fn of_group(self, group: GroupId) -> Self {
        Self { group: Some(group), ..self }
    }

    fn matches(&self, message: &PeerMessage) -> bool {
        self.from.is_none_or(|from| from == message.from().node())
            && self.to.is_none_or(|to| to == message.to().node())
            && self.channel.is_none_or(|channel| channel == message.channel())
            && self.group.is_none_or(|wanted| wanted == message.group())
            && self.longer_than.is_none_or(|bytes| length(message) > bytes)
    }
}

/// The bytes of a message on the wire.
fn length(message: &PeerMessage) -> usize {
    let mut wire = BytesMut::new();
    put_message(&mut wire, message);
    wire.len()
}

/// A message under way.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) to: u64,
    from: u64,
    pub(crate) message: PeerMessage,
}

/// See the module documentation.
pub(crate) struct Network {
    cuts: Vec<Cut>,
    /// Ways on which requests that are passed on get lost.
    requests_cut: Vec<(u64, u64)>,
    /// By time of arrival and order of sending.
    under_way: BTreeMap<(u64, u64), Packet>,
    sent: u64,
    rng: Rng,
    /// Longest time that a message travels, in microseconds; 0 is at once and in order.
    pub(crate) max_delay_us: u64,
    /// Messages lost, of 100.
    pub(crate) loss_percent: u64,
    /// Messages that travel for this much longer, in microseconds.
    pub(crate) slow: Option<(Cut, u64)>,
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        Self {
            cuts: Vec::new(),
            requests_cut: Vec::new(),
            under_way: BTreeMap::new(),
            sent: 0,
            rng,
            max_delay_us: 0,
            loss_percent: 0,
            slow: None,
        }
    }

    /// Lose messages from now on.
    pub(crate) fn cut(&mut self, cut: Cut) {
        self.cuts.push(cut);
    }

    /// Lose requests that one node passes on to another.
    pub(crate) fn cut_requests(&mut self, from: u64, to: u64) {
        self.requests_cut.push((from, to));
    }

    /// Part a node from all others.
    pub(crate) fn isolate(&mut self, node: u64) {
        self.cut(Cut::from(node));
        self.cut(Cut::to(node));
    }

    /// Everything arrives again, soon and in order.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        self.requests_cut.clear();
        (self.max_delay_us, self.loss_percent, self.slow) = (0, 0, None);
    }

    /// Whether something gets from one node to another at all.
    pub(super) fn passes(&self, from: u64, to: u64) -> bool {
        let whole = |cut: &&Cut| cut.channel.is_none() && cut.group.is_none() && cut.longer_than.is_none();
        let of_it = |cut: &Cut| cut.from.is_none_or(|node| node == from) && cut.to.is_none_or(|node| node == to);
        !self.requests_cut.contains(&(from, to)) && !self.cuts.iter().filter(whole).any(of_it)
    }

    pub(super) fn send(&mut self, now_us: u64, message: PeerMessage) {
        let lost = self.cuts.iter().any(|cut| cut.matches(&message));
        if lost || (self.loss_percent > 0 && self.rng.chance(self.loss_percent)) {
            return;
        }
        let mut wire = BytesMut::new();
        put_message(&mut wire, &message);
        let (from, to) = (message.from().node(), message.to().node());
        let received = take_message(&mut wire.freeze(), message.to()).expect("what is sent can be read");
        assert_eq!(received, message, "the codec changed a message");
        let slow = self.slow.filter(|(slow, _)| slow.matches(&received)).map_or(0, |(_, delay)| delay);
        let delay = slow + if self.max_delay_us > 0 { self.rng.below(self.max_delay_us + 1) } else { 0 };
        self.sent += 1;
        self.under_way.insert((now_us + delay, self.sent), Packet { to, from, message: received });
    }

    /// What has arrived by now.
    pub(super) fn due(&mut self, now_us: u64) -> Vec<Packet> {
        let later = self.under_way.split_off(&(now_us + 1, 0));
        let arrived = std::mem::replace(&mut self.under_way, later);
        arrived.into_values().collect()
    }

    /// A connection is gone, and what was under way on it.
    pub(super) fn forget_way(&mut self, from: u64, to: u64) {
        self.under_way.retain(|_, packet| (packet.from, packet.to) != (from, to));
    }

    /// A node is gone: what was under way from and to it is lost with its connections.
    pub(super) fn forget(&mut self, node: u64) {
        self.under_way.retain(|_, packet| packet.from != node && packet.to != node);
    }
}
