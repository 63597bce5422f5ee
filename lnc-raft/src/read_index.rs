//! Linearizable reads without a log entry.
//!
//! A leader that has committed an entry of its own term knows every committed entry. Its commit index is the answer
//! to a read, once a round of heartbeats begun after the read has shown that no later leader existed at that time.
//! A follower forwards the question, and answers from its own state when it has applied the index.

use std::collections::{BTreeMap, VecDeque};

use lnc_mutation::{Mutation, mutated};

use crate::message::{Body, Index, NodeId};
use crate::raft::{ProposeError, Raft, Role};
use crate::ready::ReadState;
use crate::rng::Rng;

/// Reads that a node keeps without an answer; more are refused.
const MAX_UNANSWERED_READS: usize = 65_536;

/// Who asked: a follower by message, or this node's caller.
#[derive(Debug, Clone, Copy)]
struct Read {
    from: Option<NodeId>,
    ctx: u64,
}

/// Reads that share a round of heartbeats.
#[derive(Debug)]
struct Round {
    round: u64,
    index: Index,
    reads: Vec<Read>,
}

/// A read that this node has passed on to its leader.
#[derive(Debug, Clone, Copy)]
struct Forwarded {
    ctx: u64,
    ticks: u32,
}

#[derive(Debug)]
pub(crate) struct Reads {
    /// Leader: not yet part of a round.
    waiting: Vec<Read>,
    /// Leader: rounds not yet confirmed, oldest first.
    rounds: VecDeque<Round>,
    /// Leader: the reads in `rounds`.
    in_rounds: usize,
    /// Leader: the latest round.
    pub(crate) round: u64,
    /// Follower: passed on, by the number that stands for the read in messages.
    forwarded: BTreeMap<u64, Forwarded>,
    /// The next such number. Starts anywhere, so that no answer to an earlier run of this node counts.
    next_number: u64,
}

impl Reads {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self {
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            in_rounds: 0,
            round: 0,
            forwarded: BTreeMap::new(),
            next_number: rng.next(),
        }
    }

    fn led(&self) -> usize {
        self.waiting.len() + self.in_rounds
    }
}

impl Raft {
    /// Asks for the index that a linearizable read needs. The answer comes in a [`Ready`](crate::Ready), as a
    /// [`ReadState`] or among `reads_failed`. `ctx` must differ between unanswered reads.
    pub fn read_index(&mut self, ctx: u64) -> Result<(), ProposeError> {
        if self.role == Role::Leader {
            if self.reads.led() >= MAX_UNANSWERED_READS {
                return Err(ProposeError::TooMuchInFlight);
            }
            self.reads.waiting.push(Read { from: None, ctx });
            self.unsent = true;
            return Ok(());
        }
        let Some(leader) = self.leader else {
            return Err(ProposeError::NotLeader { leader: None });
        };
        if self.reads.forwarded.len() >= MAX_UNANSWERED_READS {
            return Err(ProposeError::TooMuchInFlight);
        }
        let number = self.reads.next_number;
        self.reads.next_number = number.wrapping_add(1);
        self.reads.forwarded.insert(number, Forwarded { ctx, ticks: 0 });
        self.send(leader, Body::ReadIndex { ctx: number });
        Ok(())
    }

    pub(crate) fn handle_read_index(&mut self, from: NodeId, ctx: u64) {
        if self.role != Role::Leader || self.reads.led() >= MAX_UNANSWERED_READS {
            return self.send(from, Body::ReadIndexReply { ctx, index: None });
        }
        self.reads.waiting.push(Read { from: Some(from), ctx });
        self.unsent = true;
    }

    pub(crate) fn handle_read_index_reply(&mut self, number: u64, index: Option<Index>) {
        let Some(read) = self.reads.forwarded.remove(&number) else { return };
        match index {
            Some(index) => self.out.read_states.push(ReadState { ctx: read.ctx, index }),
            None => self.out.reads_failed.push(read.ctx),
        }
    }

    /// Starts one round for all reads that have come in since the last one.
    pub(crate) fn flush_reads(&mut self) {
        let index = self.log.commit();
        let knows_commit = self.log.term_at(index) == Some(self.hard_state.term) || mutated(Mutation::ReadEarlierTerm);
        if self.reads.waiting.is_empty() || !knows_commit {
            return;
        }
        let reads = std::mem::take(&mut self.reads.waiting);
        self.reads.round += u64::from(!mutated(Mutation::ReadOldRound));
        self.reads.in_rounds += reads.len();
        self.reads.rounds.push_back(Round { round: self.reads.round, index, reads });
        for &node in self.others().iter() {
            self.send_heartbeat(node);
        }
        self.confirm_reads();
    }

    /// Answers the reads whose round a quorum has answered.
    pub(crate) fn confirm_reads(&mut self) {
        let confirmed = self.reached_by_quorum(self.reads.round, |peer| peer.acked_round);
        let confirmed = if mutated(Mutation::ReadUnconfirmed) { u64::MAX } else { confirmed };
        while self.reads.rounds.front().is_some_and(|round| round.round <= confirmed) {
            let Some(round) = self.reads.rounds.pop_front() else { break };
            self.reads.in_rounds -= round.reads.len();
            for Read { from, ctx } in round.reads {
                match from {
                    None => self.out.read_states.push(ReadState { ctx, index: round.index }),
                    Some(node) => self.send(node, Body::ReadIndexReply { ctx, index: Some(round.index) }),
                }
            }
        }
    }

    /// This node leads no more. Its own callers are told; followers notice the change of leader themselves.
    pub(crate) fn fail_led_reads(&mut self) {
        let waiting = std::mem::take(&mut self.reads.waiting);
        let rounds = std::mem::take(&mut self.reads.rounds);
        self.reads.in_rounds = 0;
        let reads = rounds.into_iter().flat_map(|round| round.reads).chain(waiting);
        self.out.reads_failed.extend(reads.filter(|read| read.from.is_none()).map(|read| read.ctx));
    }

    /// The leader that was asked is gone, or its answers may be lost.
    pub(crate) fn fail_forwarded_reads(&mut self) {
        let forwarded = std::mem::take(&mut self.reads.forwarded);
        self.out.reads_failed.extend(forwarded.into_values().map(|read| read.ctx));
    }

    /// Gives up on answers that are overdue: the question or the answer got lost.
    pub(crate) fn tick_forwarded_reads(&mut self) {
        let limit = self.config.election_ticks;
        let failed = &mut self.out.reads_failed;
        self.reads.forwarded.retain(|_, read| {
            read.ticks += 1;
            let overdue = read.ticks >= limit;
            if overdue {
                failed.push(read.ctx);
            }
            !overdue
        });
    }
}
