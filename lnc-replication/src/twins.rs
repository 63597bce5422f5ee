//! Two processes with one identity: a data directory that was copied while its node ran. Pure.
//!
//! A process draws a number when it starts and says it in every greeting. While connections of one process of a member
//! stand, another one is not let in. That alone proves nothing: a process that was started anew may come before the
//! kernel has noticed that its former self is gone, and waits a moment. So the one that looks connected is asked for a sign of
//! life: a connection of it is ended, and who lives dials again at once. If it does, there are two. If it is only silent, the
//! kernel notices within seconds that it is gone; if both are there after that, there are two as well.

use lnc_raft::NodeId;
use std::collections::BTreeMap;

/// How long the connections of a process that is gone may look alive, with room to spare: see `UNANSWERED` and
/// `KEEPALIVE` in `peers.rs`.
const GRACE_US: u64 = 6_000_000;

/// A rival that was not heard for so long begins anew.
const SILENCE_US: u64 = 3_000_000;

/// How often the operator is told of two processes.
const SAY_AGAIN_US: u64 = 60_000_000;

/// How often the process that is connected is told of the other, or asked for a sign of life: each time one of its connections
/// is ended. A third of the time for which a node believes it, so that two such words may get lost.
pub const TELL_AGAIN_US: u64 = 5_000_000;

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
    /// It has dialled since the rival came.
    alive: bool,
    /// When one of its connections was ended last.
    told_us: Option<u64>,
}

impl Present {
    fn new(run: u64) -> Self {
        Self { run, connections: 0, rival: None, unaware: false, alive: false, told_us: None }
    }

    /// Whether one of its connections is to be ended now.
    fn is_to_be_told(&mut self, now_us: u64) -> bool {
        let due = self.told_us.is_none_or(|told_us| now_us >= told_us + TELL_AGAIN_US);
        if due {
            self.told_us = Some(now_us);
        }
        due
    }
}

/// What to do with a process of a member that wants to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Let it in.
    Welcome,
    /// Another process of the member is connected, perhaps only in appearance: it may come again.
    NotYet {
        /// End a connection of that process.
        tell: bool,
    },
    /// Another process of the member is connected, for certain.
    Twin {
        /// That process.
        other: u64,
        /// It is time to say so, loudly.
        say: bool,
        /// End a connection of that process.
        tell: bool,
    },
}

/// The processes of the members that are connected to this node. Bounded by the members, who alone are let in.
#[derive(Debug, Default)]
pub(crate) struct Twins {
    present: BTreeMap<NodeId, Present>,
}

impl Twins {
    /// A process wants to connect, on a connection that was accepted at `accepted_us`. Number 0 stands for one that does not
    /// say it.
    pub(crate) fn arrives(&mut self, now_us: u64, accepted_us: u64, member: NodeId, run: u64) -> Arrival {
        let Some(present) = self.present.get_mut(&member).filter(|present| present.connections > 0 && run != 0) else {
            return Arrival::Welcome;
        };
        if present.run == run {
            let Some(rival) = &present.rival else { return Arrival::Welcome };
            // What came before the rival may be of a process that is gone by now.
            present.alive |= accepted_us > rival.since_us;
            return match std::mem::take(&mut present.unaware) {
                true => Arrival::Twin { other: rival.run, say: false, tell: false },
                false => Arrival::Welcome,
            };
        }
        let is_known = |rival: &Rival| rival.run == run && now_us <= rival.heard_us + SILENCE_US;
        if !present.rival.as_ref().is_some_and(is_known) {
            (present.rival, present.alive) = (None, false);
        }
        let rival = present.rival.get_or_insert(Rival { run, since_us: now_us, heard_us: now_us, said_us: None });
        rival.heard_us = now_us;
        let (since_us, is_alive) = (rival.since_us, present.alive);
        if !is_alive && now_us < since_us + GRACE_US {
            return Arrival::NotYet { tell: present.is_to_be_told(now_us) };
        }
        let say = rival.said_us.is_none_or(|said_us| now_us >= said_us + SAY_AGAIN_US);
        if say {
            rival.said_us = Some(now_us);
        }
        let tell = present.is_to_be_told(now_us);
        present.unaware |= tell || say;
        Arrival::Twin { other: present.run, say, tell }
    }

    /// A connection of a process begins.
    pub(crate) fn begins(&mut self, member: NodeId, run: u64) {
        let present = self.present.entry(member).or_insert_with(|| Present::new(run));
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
            assert_eq!(twins.arrives(0, 0, MEMBER, run), Arrival::Welcome);
            twins.begins(MEMBER, run);
        }
        twins
    }

    fn not_yet(arrival: Arrival) -> bool {
        matches!(arrival, Arrival::NotYet { .. })
    }

    fn twin(arrival: Arrival) -> Option<(u64, bool, bool)> {
        match arrival {
            Arrival::Twin { other, say, tell } => Some((other, say, tell)),
            _ => None,
        }
    }

    #[test]
    fn a_process_that_was_started_anew_waits_for_its_former_self_to_be_noticed_gone() {
        let mut twins = connected(7);
        assert!(not_yet(twins.arrives(1_000_000, 1_000_000, MEMBER, 8)));
        // It dialled before it went, and is heard late.
        assert_eq!(twins.arrives(1_000_001, 999_999, MEMBER, 7), Arrival::Welcome);
        twins.ends(MEMBER, 7);
        assert!(not_yet(twins.arrives(2_000_000, 2_000_000, MEMBER, 8)));
        twins.ends(MEMBER, 7);
        assert_eq!(twins.arrives(2_100_000, 2_100_000, MEMBER, 8), Arrival::Welcome);
        assert!(twins.present.is_empty(), "nobody is remembered without a connection");
    }

    #[test]
    fn a_sign_of_life_is_asked_for_once_in_a_while_and_proves_that_there_are_two() {
        let mut twins = connected(7);
        assert_eq!(twins.arrives(1_000_000, 1_000_000, MEMBER, 8), Arrival::NotYet { tell: true });
        assert_eq!(twins.arrives(1_020_000, 1_020_000, MEMBER, 8), Arrival::NotYet { tell: false });
        assert_eq!(twins.arrives(1_030_000, 1_025_000, MEMBER, 7), Arrival::Welcome, "it dials again at once");
        assert_eq!(twin(twins.arrives(1_100_000, 1_100_000, MEMBER, 8)), Some((7, true, false)));
        assert_eq!(twin(twins.arrives(1_200_000, 1_200_000, MEMBER, 7)), Some((8, false, false)), "and hears of it");
        assert_eq!(twins.arrives(1_300_000, 1_300_000, MEMBER, 7), Arrival::Welcome);
        // Again and again while both are there, and not after that.
        let mut told = 0;
        for tenth in 13..200 {
            let now_us = tenth * 100_000;
            let tell = twin(twins.arrives(now_us, now_us, MEMBER, 8)).map(|(_, _, tell)| tell);
            if tell == Some(true) {
                told += 1;
                assert_eq!(twin(twins.arrives(now_us + 1, now_us + 1, MEMBER, 7)), Some((8, false, false)));
            }
        }
        assert_eq!(told, 3, "every five seconds");
        assert_eq!(twins.arrives(30_000_000, 30_000_000, MEMBER, 7), Arrival::Welcome);
        // Another one, later, has to be proven anew.
        assert!(not_yet(twins.arrives(40_000_000, 40_000_000, MEMBER, 9)));
    }

    #[test]
    fn two_that_live_are_both_told_although_one_does_not_dial() {
        let mut twins = connected(7);
        let mut at_us = 1_000_000;
        while at_us < 7_000_000 {
            assert!(not_yet(twins.arrives(at_us, at_us, MEMBER, 8)));
            at_us += 500_000;
        }
        assert_eq!(twin(twins.arrives(at_us, at_us, MEMBER, 8)).map(|(other, say, _)| (other, say)), Some((7, true)));
        assert_eq!(twin(twins.arrives(at_us, at_us, MEMBER, 8)), Some((7, false, false)));
        assert_eq!(twin(twins.arrives(at_us, at_us, MEMBER, 7)).map(|(other, ..)| other), Some(8), "told once");
        assert_eq!(twins.arrives(at_us, at_us, MEMBER, 7), Arrival::Welcome);
    }

    #[test]
    fn a_process_that_does_not_say_its_number_is_nobody_s_twin() {
        let mut twins = connected(7);
        assert_eq!(twins.arrives(9_000_000, 9_000_000, MEMBER, 0), Arrival::Welcome);
        twins.begins(MEMBER, 0);
        twins.ends(MEMBER, 0);
        assert_eq!(twins.arrives(9_000_000, 9_000_000, MEMBER, 7), Arrival::Welcome);
        let mut unsaid = connected(0);
        assert!(not_yet(unsaid.arrives(9_000_000, 9_000_000, MEMBER, 7)));
    }

    #[test]
    fn a_rival_that_comes_back_after_a_while_has_proven_nothing() {
        let mut twins = connected(7);
        for (at_us, run) in [(1_000_000, 8), (20_000_000, 8), (20_000_000, 9)] {
            assert!(not_yet(twins.arrives(at_us, at_us, MEMBER, run)));
        }
    }
}
