//! The idempotent producer: several batches of a partition under way, each repeated until it is acknowledged, through
//! whichever node. Sometimes it starts anew and forgets everything, or goes on in its next epoch while batches of the one
//! before are still under way.

use super::super::invariants::Violation;
use super::super::invariants::records::{PartitionId, Span};
use super::super::report::leaves_open;
use super::{BEGIN, Client, Env, Outcome, batch};
use bytes::Bytes;
use lnc_protocol::message::{Acks, Response};
use lnc_protocol::{Codec, ErrorCode, ErrorReply, Request};
use std::collections::VecDeque;

const RESEND: u64 = 1;
const FIRST_ATTEMPT: u64 = 2;
const TIMEOUT_US: u64 = 5_000_000;

/// Whose newest acknowledged batch was sent so long ago may have been forgotten: by then more have come than are remembered.
const FORGOTTEN_US: u64 = 5_000_000;

struct Batch {
    span: Span,
    bytes: Bytes,
    /// The request under way.
    attempt: Option<u64>,
    /// When it was made. It is in the log since then or later, however late its acknowledgement is.
    made_us: u64,
    /// It was sent while an earlier one of its partition was open, and may arrive before it.
    may_overtake: bool,
    /// It stays until all before it are acknowledged too: the window is counted from the oldest that is open.
    acked: bool,
}

enum Identity {
    None,
    Asked(u64),
    Known { id: i64, epoch: i16, stream: u32, at: PartitionId },
}

/// See the module documentation.
pub(super) struct Producer {
    window: usize,
    identity: Identity,
    next_sequence: i32,
    open: VecDeque<Batch>,
    /// Batches of earlier epochs and lives, which somebody may send once more; nobody hears the answers.
    ghosts: Vec<(PartitionId, Batch)>,
    node: u64,
    attempts: u64,
    resend_due: bool,
    /// When the newest acknowledged batch was made, or the id given: the log has heard of the producer since.
    heard_us: u64,
}

impl Producer {
    /// One that has at most `window` batches under way: fewer than a broker remembers.
    pub(super) fn new(window: usize) -> Self {
        Self {
            window,
            identity: Identity::None,
            next_sequence: 0,
            open: VecDeque::new(),
            ghosts: Vec::new(),
            node: 1,
            attempts: FIRST_ATTEMPT,
            resend_due: false,
            heard_us: 0,
        }
    }

    fn work(&mut self, env: &mut Env<'_>) {
        match self.identity {
            Identity::None if !env.stopping && !env.records.topics().is_empty() => {
                self.attempts += 1;
                self.identity = Identity::Asked(self.attempts);
                let node = env.any_node();
                env.send(node, Request::InitProducer, TIMEOUT_US, self.attempts);
            }
            Identity::Known { id, epoch, stream, .. } if !env.stopping && self.open.len() < self.window => {
                // Some batches are as large as they may be.
                let count = match env.rng.chance(env.large_permille) && env.last_sequence == i32::MAX {
                    true => env.records.fitting(stream, env.max_batch_bytes),
                    false => env.rng.between(1, 5) as u32,
                };
                let span = env.records.next_span(stream, count);
                let codec = if env.rng.chance(50) { Codec::Lz4 } else { Codec::None };
                let producer = Some((id, epoch, self.next_sequence));
                let bytes = batch(span, producer, env.records.made_ms(span), codec);
                self.next_sequence = (i64::from(self.next_sequence) + i64::from(count)) as i32 & env.last_sequence;
                let made_us = env.now_us;
                self.open.push_back(Batch { span, bytes, attempt: None, made_us, may_overtake: false, acked: false });
            }
            _ => {}
        }
        self.send(env);
    }

    /// Send what is not under way, in order.
    fn send(&mut self, env: &mut Env<'_>) {
        let Identity::Known { at, .. } = self.identity else { return };
        for (position, waiting) in self.open.iter_mut().enumerate().filter(|(_, w)| w.attempt.is_none() && !w.acked) {
            self.attempts += 1;
            waiting.attempt = Some(self.attempts);
            waiting.may_overtake = position > 0;
            env.records.tried(waiting.span);
            let request = env.produce(at, Acks::Quorum, waiting.bytes.clone());
            env.send(self.node, request, TIMEOUT_US, self.attempts);
        }
    }

    fn resend_later(&mut self, env: &mut Env<'_>, leader: Option<u64>) {
        self.node = match leader {
            Some(node) => node,
            None => env.any_node(),
        };
        if !std::mem::replace(&mut self.resend_due, true) {
            let after_us = env.around(200_000);
            env.timer(after_us, RESEND);
        }
    }

    /// Go on in the next epoch. What is open is not sent again, but is on its way, and may be sent once more by the network.
    fn next_epoch(&mut self, env: &mut Env<'_>) {
        let Identity::Known { id, epoch, at, .. } = self.identity else { return };
        let epoch = epoch + 1;
        let stream = env.records.open_epoch(at, id, epoch);
        self.identity = Identity::Known { id, epoch, stream, at };
        self.next_sequence = 0;
        self.bury(at);
    }

    /// What is open is given up, and may arrive all the same.
    fn bury(&mut self, at: PartitionId) {
        self.ghosts.extend(self.open.drain(..).filter(|batch| !batch.acked).map(|batch| (at, batch)));
    }

    /// A batch of an earlier epoch or life arrives again.
    fn haunt(&mut self, env: &mut Env<'_>) {
        let which = env.rng.below(self.ghosts.len() as u64) as usize;
        let (at, ghost) = self.ghosts.swap_remove(which);
        self.attempts += 1;
        env.records.tried(ghost.span);
        let request = env.produce(at, Acks::Quorum, ghost.bytes);
        env.send(self.node, request, TIMEOUT_US, self.attempts);
    }

    /// Forget everything, as a process that is started again does.
    fn restart(&mut self) {
        if let Identity::Known { at, .. } = self.identity {
            self.bury(at);
        }
        self.identity = Identity::None;
        self.open.clear();
        self.next_sequence = 0;
    }

    fn initialised(&mut self, env: &mut Env<'_>, outcome: Outcome) -> Result<(), Violation> {
        self.identity = Identity::None;
        match outcome {
            Outcome::Done(Response::InitProducer(given)) => {
                env.records.producer(given.producer_id)?;
                self.heard_us = env.now_us;
                if let Some(at) = env.any_partition() {
                    let (id, epoch) = (given.producer_id, given.producer_epoch);
                    let stream = env.records.open_epoch(at, id, epoch);
                    self.identity = Identity::Known { id, epoch, stream, at };
                }
                Ok(())
            }
            Outcome::Refused(error) if error.code.is_retriable() => Ok(()),
            Outcome::Lost | Outcome::TimedOut => Ok(()),
            other => Err(Violation::new("unexpected-answer", format!("to a producer that asks for an id: {other:?}"))),
        }
    }

    fn refused(&mut self, env: &mut Env<'_>, position: usize, error: &ErrorReply) -> Result<(), Violation> {
        let Batch { span, may_overtake, .. } = self.open[position];
        if !leaves_open(error.code) {
            env.records.refused(span)?;
        }
        let overtook = matches!(error.code, ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer);
        let may_be_forgotten = self.is_first(position) || env.now_us > self.heard_us + FORGOTTEN_US;
        if error.code == ErrorCode::UnknownProducer && !may_overtake && may_be_forgotten {
            // It was, or its id is not newer than one that was.
            self.restart();
            return Ok(());
        }
        if overtook && !may_overtake {
            let what = format!("the oldest batch of a producer, {span:?}, is refused: {error}");
            return Err(Violation::new("sequence-accepted", what));
        }
        if !overtook && !error.code.is_retriable() {
            return Err(Violation::new("unexpected-answer", format!("to a producer with {span:?}: {error}")));
        }
        let leader = error.leader.as_ref().map(|hint| hint.node_id);
        self.resend_later(env, leader);
        Ok(())
    }

    /// Whether nothing was acknowledged under this identity yet, and this batch is the oldest that is open.
    fn is_first(&self, position: usize) -> bool {
        position == 0 && self.open.iter().map(|batch| batch.span.count as i32).sum::<i32>() == self.next_sequence
    }
}

impl Client for Producer {
    fn timer(&mut self, env: &mut Env<'_>, token: u64) -> Result<(), Violation> {
        if token == RESEND {
            self.resend_due = false;
            self.send(env);
        } else {
            // Who forgets all too often does not come to the last sequence number.
            let (anew, next) = if env.last_sequence == i32::MAX { (15, 10) } else { (3, 2) };
            if env.rng.chance(anew) {
                self.restart();
            }
            if env.rng.chance(next) && !env.stopping {
                self.next_epoch(env);
            }
            if !self.ghosts.is_empty() && !env.stopping && env.rng.chance(30) {
                self.haunt(env);
            }
            self.work(env);
            let after_us = env.around(env.produce_every_us);
            if !env.stopping {
                env.timer(after_us, BEGIN);
            }
        }
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if matches!(self.identity, Identity::Asked(asked) if asked == token) {
            return self.initialised(env, outcome);
        }
        // The answer to a request of an earlier life is heard by nobody.
        let Some(position) = self.open.iter().position(|waiting| waiting.attempt == Some(token)) else {
            if let Outcome::Done(Response::InitProducer(given)) = outcome {
                env.records.producer(given.producer_id)?;
            }
            return Ok(());
        };
        self.open[position].attempt = None;
        match outcome {
            Outcome::Done(Response::Produce(done)) => {
                let span = self.open[position].span;
                let Some(base_offset) = done.base_offset else {
                    let what = format!("{span:?} is acknowledged by a quorum without its offset");
                    return Err(Violation::new("acked-kept", what));
                };
                env.records.acked(span, base_offset)?;
                self.heard_us = self.heard_us.max(self.open[position].made_us);
                self.open[position].acked = true;
                while self.open.front().is_some_and(|oldest| oldest.acked) {
                    self.open.pop_front();
                }
            }
            Outcome::Refused(error) => self.refused(env, position, &error)?,
            Outcome::Lost | Outcome::TimedOut => self.resend_later(env, None),
            Outcome::Done(other) => {
                return Err(Violation::new("unexpected-answer", format!("to a produce: {other:?}")));
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.open.is_empty() && !matches!(self.identity, Identity::Asked(_))
    }

    fn describe(&self) -> String {
        let oldest = self.open.front().map(|waiting| waiting.span);
        format!("a producer with {} open batches, the oldest {oldest:?}, at node {}", self.open.len(), self.node)
    }
}
