//! What a run comes to: figures, and what was wrong if anything was.

use super::faults::Scheduled;
use super::invariants::Violation;
use super::profile::Profile;
use super::workload::Outcome;
use lnc_protocol::{ErrorCode, Opcode};
use serde::Serialize;
use std::collections::BTreeMap;

/// Figures of one or many runs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Seeds run.
    pub runs: u64,
    /// Virtual time, in microseconds.
    pub virtual_us: u64,
    /// Events.
    pub events: u64,
    /// Turns that nodes took.
    pub turns: u64,
    /// Frames sent between nodes.
    pub frames: u64,
    /// Frames whose checksum did not match.
    pub corrupt_frames: u64,
    /// Frames that were whole and made no sense.
    pub frames_not_understood: u64,
    /// Disk operations.
    pub disk_operations: u64,
    /// Client requests with a positive answer.
    pub done: u64,
    /// Client requests that were refused, and surely not done.
    pub refused: u64,
    /// Client requests whose outcome the client does not know.
    pub unknown: u64,
    /// Of those done: produce requests.
    pub produced: u64,
    /// Requests that one node passed on to another.
    pub forwards: u64,
    /// Groups that got a leader.
    pub elections: u64,
    /// Processes that started.
    pub starts: u64,
    /// Starts that failed.
    pub failed_starts: u64,
    /// Processes that ended by themselves.
    pub ends: u64,
    /// Brokers opened anew, to take over state that came from a peer.
    pub reopened: u64,
    /// Topic names whose operations were too entangled to judge.
    pub topics_unchecked: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
}

/// Whether a refusal leaves it open what became of the request.
pub(crate) fn leaves_open(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Timeout | ErrorCode::LeadershipLost | ErrorCode::Unknown)
}

impl Counts {
    pub(crate) fn outcome(&mut self, opcode: Opcode, outcome: &Outcome) {
        match outcome {
            Outcome::Done(_) => {
                self.done += 1;
                self.produced += u64::from(opcode == Opcode::Produce);
            }
            Outcome::Refused(error) if !leaves_open(error.code) => self.refused += 1,
            Outcome::Refused(_) | Outcome::Lost | Outcome::TimedOut => self.unknown += 1,
        }
    }

    pub(crate) fn fault(&mut self, kind: &'static str) {
        *self.faults.entry(kind).or_default() += 1;
    }

    /// Add the figures of other runs.
    pub fn add(&mut self, other: &Self) {
        let Self { faults, .. } = other;
        for (kind, count) in faults {
            *self.faults.entry(kind).or_default() += count;
        }
        let sums = |counts: &Self| {
            [
                counts.runs,
                counts.virtual_us,
                counts.events,
                counts.turns,
                counts.frames,
                counts.corrupt_frames,
                counts.frames_not_understood,
                counts.disk_operations,
                counts.done,
                counts.refused,
                counts.unknown,
                counts.produced,
                counts.forwards,
                counts.elections,
                counts.starts,
                counts.failed_starts,
                counts.ends,
                counts.reopened,
                counts.topics_unchecked,
            ]
        };
        let theirs = sums(other);
        let own = [
            &mut self.runs,
            &mut self.virtual_us,
            &mut self.events,
            &mut self.turns,
            &mut self.frames,
            &mut self.corrupt_frames,
            &mut self.frames_not_understood,
            &mut self.disk_operations,
            &mut self.done,
            &mut self.refused,
            &mut self.unknown,
            &mut self.produced,
            &mut self.forwards,
            &mut self.elections,
            &mut self.starts,
            &mut self.failed_starts,
            &mut self.ends,
            &mut self.reopened,
            &mut self.topics_unchecked,
        ];
        for (sum, count) in own.into_iter().zip(theirs) {
            *sum += count;
        }
    }
}

/// A run that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which, and how.
    pub violation: Violation,
    /// The virtual time, in microseconds.
    pub at_us: u64,
    /// The newest events.
    pub newest: Vec<String>,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Its profile.
    pub profile: Profile,
    /// Its number of nodes.
    pub nodes: u64,
    /// Its faults.
    pub schedule: Vec<Scheduled>,
    /// Its figures.
    pub counts: Counts,
    /// The hash of all its events: equal for equal runs.
    pub hash: u64,
    /// What was wrong.
    pub failure: Option<Failure>,
}
