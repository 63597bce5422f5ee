//! The producer without an id, at each level of acknowledgement. It may repeat a batch, and then finds it twice.

use super::super::invariants::Violation;
use super::super::invariants::records::{PartitionId, Span};
use super::super::report::leaves_open;
use super::{BEGIN, Client, Env, Outcome, batch};
use lnc_protocol::message::{Acks, Response};
use lnc_protocol::{Codec, ErrorCode};

const TIMEOUT_US: u64 = 5_000_000;

/// See the module documentation.
pub(super) struct PlainProducer {
    acks: Acks,
    stream: Option<(u32, PartitionId)>,
    open: Option<Span>,
    tries_left: u32,
    attempts: u64,
}

impl PlainProducer {
    pub(super) fn new(acks: Acks) -> Self {
        Self { acks, stream: None, open: None, tries_left: 0, attempts: 0 }
    }

    fn send(&mut self, env: &mut Env<'_>) {
        let (Some((_, at)), Some(span)) = (self.stream, self.open) else { return };
        let bytes = batch(span, None, env.records.made_ms(span), Codec::None);
        env.records.tried(span);
        self.attempts += 1;
        let request = env.produce(at, self.acks, bytes);
        let node = env.any_node();
        env.send(node, request, TIMEOUT_US, self.attempts);
    }

    /// An attempt came to nothing that is known: perhaps another.
    fn again(&mut self, env: &mut Env<'_>) {
        self.tries_left = self.tries_left.saturating_sub(1);
        if self.tries_left == 0 {
            self.open = None;
        } else {
            self.send(env);
        }
    }
}

impl Client for PlainProducer {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        if env.stopping {
            return Ok(());
        }
        if self.stream.is_none() || env.rng.chance(10) {
            self.stream = match (self.open, env.any_partition()) {
                (None, Some(at)) => Some((env.records.open_stream(at, false), at)),
                _ => self.stream,
            };
        }
        if let (None, Some((stream, _))) = (self.open, self.stream) {
            let count = env.rng.between(1, 3) as u32;
            self.open = Some(env.records.next_span(stream, count));
            self.tries_left = env.rng.between(1, 3) as u32;
            self.send(env);
        }
        let after_us = env.around(env.produce_every_us);
        env.timer(after_us, BEGIN);
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        let Some(span) = self.open.filter(|_| token == self.attempts) else { return Ok(()) };
        match outcome {
            Outcome::Done(Response::Produce(done)) => {
                match (self.acks, done.base_offset) {
                    (Acks::Quorum, Some(base_offset)) => env.records.acked(span, base_offset)?,
                    (Acks::Leader, None) => env.records.leader_acked(span),
                    (Acks::None, None) => {}
                    (acks, offset) => {
                        let what = format!("{span:?} with acks {acks:?} is acknowledged at {offset:?}");
                        return Err(Violation::new("unexpected-answer", what));
                    }
                }
                self.open = None;
            }
            Outcome::Refused(error) => {
                if !leaves_open(error.code) {
                    env.records.refused(span)?;
                }
                if !error.code.is_retriable() || error.code == ErrorCode::Unknown {
                    return Err(Violation::new("unexpected-answer", format!("to {span:?}: {error}")));
                }
                self.again(env);
            }
            Outcome::Lost | Outcome::TimedOut => self.again(env),
            Outcome::Done(other) => {
                return Err(Violation::new("unexpected-answer", format!("to a produce: {other:?}")));
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    fn describe(&self) -> String {
        format!("a producer without an id, acks {:?}, with {:?} open", self.acks, self.open)
    }
}
