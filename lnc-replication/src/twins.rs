//! Two processes with one identity: a data directory that was copied while its node ran. Pure.
//!
//! A process draws a number when it starts and says it in every greeting. While connections of one process of a member
//! stand, another one is not let in. That alone proves nothing: a process that was started anew may come before the
//! kernel has noticed that its former self is gone, and waits a moment. But the kernel notices within seconds, so if both
//! are there after that, there are two.

use lnc_raft::NodeId;
use std::collections::BTreeMap;

/// How long the connections of a process that is gone may look alive, with room to spare: see `UNANSWERED` and
/// `KEEPALIVE` in `peers.rs`.
const GRACE_US: u64 = 6_000_000;

/// A rival that was not heard for so long begins anew.
const SILENCE_US: u64 = 3_000_000;

/// How often two processes are told of each other, and the operator of both.
const SAY_AGAIN_US: u64 = 60_000_000;

/// A second process that wants to be let in.
#[derive(Debug)]
struct Rival {
    run: u64,
    since_us: u64,
    heard_us: u64,
    said_us: Option<u64>,
}

/// The process of a member that is connected.
#[derive(Debug)]
struct Present {
    run: u64,
    connections: u32,
    rival: Option<Rival>,
    /// It must be told of its rival.
    unaware: bool,
}

/// What to do with a process of a member that wants to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Let it in.
    Welcome,
    /// Another process of the member is connected, perhaps only in appearance: it may come again.
    NotYet,
    /// Another process of the member is connected, for certain.
    Twin {
        /// That process.
        other: u64,
        /// It is time to say so, loudly.
        say: bool,
    },
}

/// The processes of the members that are connected to this node. Bounded by the members, who alone are let in.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    present: BTreeMap<NodeId, Present>,
}

impl Twins {
    /// A process wants to connect. Number 0 stands for one that does not say it.
    pub(crate) fn arrives(&mut self, now_us: u64, member: NodeId, run: u64) -> Arrival {
        let Some(present) = self.present.get_mut(&member).filter(|present| present.connections > 0 && run != 0) else {
            return Arrival::Welcome;
        };
        if present.run == run {
            return match &present.rival {
                Some(rival) if std::mem::take(&mut present.unaware) => Arrival::Twin { other: rival.run, say: false },
                _ => Arrival::Welcome,
            };
        }
        let fresh = Rival { run, since_us: now_us, heard_us: now_us, said_us: None };
        let rival = present.rival.get_or_insert(fresh);
        if rival.run != run || now_us > rival.heard_us + SILENCE_US {
            *rival = Rival { run, since_us: now_us, heard_us: now_us, said_us: None };
        }
        rival.heard_us = now_us;
        if now_us < rival.since_us + GRACE_US {
            return Arrival::NotYet;
        }
        let say = rival.said_us.is_none_or(|said_us| now_us >= said_us + SAY_AGAIN_US);
        if say {
            rival.said_us = Some(now_us);
            present.unaware = true;
        }
        Arrival::Twin { other: present.run, say }
    }

    /// A connection of a process begins.
    pub(crate) fn begins(&mut self, member: NodeId, run: u64) {
        let fresh = Present { run, connections: 0, rival: None, unaware: false };
        let present = self.present.entry(member).or_insert(fresh);
        if present.run == run {
            present.connections += 1;
        }
    }

    /// It is over.
    pub(crate) fn ends(&mut self, member: NodeId, run: u64) {
        let Some(present) = self.present.get_mut(&member).filter(|present| present.run == run) else { return };
        present.connections -= 1;
        if present.connections == 0 {
            self.present.remove(&member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: NodeId = NodeId(2);

    fn connected(run: u64) -> Twins {
        let mut twins = Twins::default();
        for _ in 0..2 {
            assert_eq!(twins.arrives(0, MEMBER, run), Arrival::Welcome);
            twins.begins(MEMBER, run);
        }
        twins
    }

    #[test]
    fn a_process_that_was_started_anew_waits_for_its_former_self_to_be_noticed_gone() {
        let mut twins = connected(7);
        assert_eq!(twins.arrives(1_000_000, MEMBER, 8), Arrival::NotYet);
        twins.ends(MEMBER, 7);
        assert_eq!(twins.arrives(2_000_000, MEMBER, 8), Arrival::NotYet);
        twins.ends(MEMBER, 7);
        assert_eq!(twins.arrives(2_100_000, MEMBER, 8), Arrival::Welcome);
        assert!(twins.present.is_empty(), "nobody is remembered without a connection");
    }

    #[test]
    fn two_that_live_are_both_told() {
        let mut twins = connected(7);
        let mut at_us = 1_000_000;
        while at_us < 7_000_000 {
            assert_eq!(twins.arrives(at_us, MEMBER, 8), Arrival::NotYet);
            at_us += 500_000;
        }
        assert_eq!(twins.arrives(at_us, MEMBER, 8), Arrival::Twin { other: 7, say: true });
        assert_eq!(twins.arrives(at_us, MEMBER, 8), Arrival::Twin { other: 7, say: false });
        assert_eq!(
            twins.arrives(at_us, MEMBER, 7),
            Arrival::Twin { other: 8, say: false },
            "the first one is told once"
        );
        assert_eq!(twins.arrives(at_us, MEMBER, 7), Arrival::Welcome);
        for _ in 0..30 {
            at_us += 2_000_000;
            twins.arrives(at_us, MEMBER, 8);
        }
        assert_eq!(twins.arrives(at_us, MEMBER, 7), Arrival::Twin { other: 8, say: false }, "and again after a minute");
    }

    #[test]
    fn a_process_that_does_not_say_its_number_is_nobody_s_twin() {
        let mut twins = connected(7);
        assert_eq!(twins.arrives(9_000_000, MEMBER, 0), Arrival::Welcome);
        twins.begins(MEMBER, 0);
        twins.ends(MEMBER, 0);
        assert_eq!(twins.arrives(9_000_000, MEMBER, 7), Arrival::Welcome);
        let mut unsaid = connected(0);
        assert_eq!(unsaid.arrives(9_000_000, MEMBER, 7), Arrival::NotYet);
    }

    #[test]
    fn a_rival_that_comes_back_after_a_while_has_proven_nothing() {
        let mut twins = connected(7);
        assert_eq!(twins.arrives(1_000_000, MEMBER, 8), Arrival::NotYet);
        assert_eq!(twins.arrives(20_000_000, MEMBER, 8), Arrival::NotYet);
        assert_eq!(twins.arrives(20_000_000, MEMBER, 9), Arrival::NotYet);
    }
}
