//! What a leader knows of each follower.

use std::collections::VecDeque;

use crate::message::{Index, NodeId};

/// How a leader treats a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressState {
    /// Where its log ends is not known: one append at a time.
    Probe,
    /// Its log is known to match: appends are sent ahead of the replies.
    Replicate,
    /// It needs entries that this node no longer has: state transfer.
    NeedsSnapshot,
}

impl ProgressState {
    /// A word for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Replicate => "replicate",
            Self::NeedsSnapshot => "snapshot",
        }
    }
}

/// A leader's view of one follower, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The follower.
    pub id: NodeId,
    /// Its durable log is known to equal the leader's up to here.
    pub match_index: Index,
    /// It has told this leader what it has. Until then `match_index` is 0, and says nothing.
    pub known: bool,
    /// The next entry to send.
    pub next_index: Index,
    /// How it is treated.
    pub state: ProgressState,
    /// Appends with entries that were sent and not yet acknowledged.
    pub in_flight: usize,
    /// It has replied within an election timeout.
    pub recently_active: bool,
    /// It has said that it would rather not lead.
    pub slow: bool,
    /// It gets everything and decides nothing.
    pub learner: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerState {
    /// `waiting`: the one append is out.
    Probe {
        waiting: bool,
    },
    Replicate,
    /// The entry at `missing` is needed and cannot be had.
    NeedsSnapshot {
        missing: Index,
    },
}

/// A follower, as its leader sees it. `next_index > match_index`, always.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) match_index: Index,
    /// It has acknowledged something to this leader.
    pub(crate) known: bool,
    pub(crate) next_index: Index,
    pub(crate) state: PeerState,
    /// The last index and the bytes of each append in flight, oldest first. Empty unless replicating.
    in_flight: VecDeque<(Index, usize)>,
    in_flight_bytes: usize,
    /// Ticks since appends in flight were last acknowledged.
    pub(crate) unacked_ticks: u32,
    /// Ticks since the last reply.
    pub(crate) silent_ticks: u32,
    /// The probe is a guess, after a rejection: it carries no entries, which would probably be refused with it.
    pub(crate) guess: bool,
    /// Ticks since the last append in state probe.
    pub(crate) probe_ticks: u32,
    /// The highest commit index it was sent.
    pub(crate) told_commit: Index,
    /// The latest confirmation round it has answered.
    pub(crate) acked_round: u64,
    /// It would rather not lead.
    pub(crate) slow: bool,
    /// The first of the entries that are being loaded from the journal for it.
    pub(crate) wanted: Option<Index>,
}

impl Peer {
    /// A follower of whom a new leader knows nothing.
    pub(crate) fn new(next_index: Index) -> Self {
        Self {
            match_index: 0,
            known: false,
            next_index,
            state: PeerState::Probe { waiting: false },
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            unacked_ticks: 0,
            silent_ticks: 0,
            guess: false,
            probe_ticks: 0,
            told_commit: 0,
            acked_round: 0,
            slow: false,
            wanted: None,
        }
    }

    fn reset(&mut self, state: PeerState, next_index: Index) {
        assert!(next_index > self.match_index, "next {next_index} not beyond match {}", self.match_index);
        self.state = state;
        self.next_index = next_index;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.unacked_ticks = 0;
        self.guess = false;
        self.probe_ticks = 0;
        self.wanted = None;
    }

    /// Starts over with one append from `next_index`.
    pub(crate) fn probe(&mut self, next_index: Index) {
        self.reset(PeerState::Probe { waiting: false }, next_index);
    }

    /// As [`Peer::probe`], but the append waits for a sign of life, at the latest for the next heartbeat.
    pub(crate) fn probe_later(&mut self, heartbeat_ticks: u32) {
        self.reset(PeerState::Probe { waiting: true }, self.match_index + 1);
        self.probe_ticks = heartbeat_ticks;
    }

    /// Its connection broke: what was under way may be lost.
    pub(crate) fn lost(&mut self, heartbeat_ticks: u32) {
        match self.state {
            PeerState::Replicate => self.probe_later(heartbeat_ticks),
            PeerState::Probe { .. } => {
                self.state = PeerState::Probe { waiting: true };
                self.probe_ticks = heartbeat_ticks;
            }
            PeerState::NeedsSnapshot { .. } => {}
        }
    }

    /// Sends ahead from here on.
    pub(crate) fn replicate(&mut self, next_index: Index) {
        self.reset(PeerState::Replicate, next_index);
    }

    /// Gives up on sending entries. `next_index` stays where it was stuck.
    pub(crate) fn need_snapshot(&mut self, missing: Index) {
        self.reset(PeerState::NeedsSnapshot { missing }, self.next_index);
    }

    /// Records an append with entries up to `last_index`.
    pub(crate) fn sent(&mut self, last_index: Index, bytes: usize) {
        if self.in_flight.is_empty() {
            self.unacked_ticks = 0;
        }
        self.in_flight.push_back((last_index, bytes));
        self.in_flight_bytes += bytes;
        self.next_index = last_index + 1;
    }

    /// Its log is durable and equal up to `match_index`, which is news.
    pub(crate) fn acked(&mut self, match_index: Index) {
        self.match_index = match_index;
        self.next_index = self.next_index.max(match_index + 1);
        self.unacked_ticks = 0;
        while let Some(&(last, bytes)) = self.in_flight.front() {
            if last > match_index {
                break;
            }
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }

    pub(crate) fn window_open(&self, max_appends: usize, max_bytes: usize) -> bool {
        self.in_flight.len() < max_appends && self.in_flight_bytes < max_bytes
    }

    pub(crate) fn tick(&mut self) {
        self.silent_ticks = self.silent_ticks.saturating_add(1);
        self.probe_ticks = self.probe_ticks.saturating_add(1);
        self.unacked_ticks = if self.in_flight.is_empty() { 0 } else { self.unacked_ticks.saturating_add(1) };
    }

    pub(crate) fn status(&self, id: NodeId, election_ticks: u32, learner: bool) -> Progress {
        Progress {
            id,
            match_index: self.match_index,
            known: self.known,
            next_index: self.next_index,
            state: match self.state {
                PeerState::Probe { .. } => ProgressState::Probe,
                PeerState::Replicate => ProgressState::Replicate,
                PeerState::NeedsSnapshot { .. } => ProgressState::NeedsSnapshot,
            },
            in_flight: self.in_flight.len(),
            recently_active: self.silent_ticks < election_ticks,
            slow: self.slow,
            learner,
        }
    }
}
