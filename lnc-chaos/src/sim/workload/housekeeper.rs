//! One who fills a topic with large batches, and deletes it once nothing but space is wanting: that must make room, also on
//! a node that has none left.

use super::super::invariants::Violation;
use super::{BEGIN, Client, Env, Outcome};
use lnc_protocol::message::{Acks, CreateTopicRequest, DeleteTopicRequest, ProduceRequest, Response, TopicOptions};
use lnc_protocol::{BatchBuilder, Codec, ErrorCode, Request};

const TIMEOUT_US: u64 = 8_000_000;
const NAME: &str = "bulk";
/// Bytes that it writes: more than what is kept in reserve.
const BYTES: usize = 1_600_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Creating,
    Filling { id: u64, left: usize },
    Full,
    Deleted,
}

/// See the module documentation.
pub(super) struct Housekeeper {
    phase: Phase,
    attempts: u64,
    waits: bool,
}

impl Housekeeper {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Creating, attempts: 0, waits: false }
    }

    fn request(&self, env: &Env<'_>) -> Option<Request> {
        let name = NAME.to_owned();
        Some(match self.phase {
            Phase::Creating => {
                let options = TopicOptions::default();
                Request::CreateTopic(CreateTopicRequest { name, partitions: 1, options, timeout_ms: 5_000 })
            }
            Phase::Filling { id, .. } => {
                let mut batch = BatchBuilder::new(Codec::None);
                // It fits: a batch may be larger.
                let _ = batch.append(0, None, Some(&vec![7; env.max_batch_bytes / 2]), &[]);
                let (acks, timeout_ms, batch) = (Acks::Quorum, 4_000, batch.build());
                Request::Produce(ProduceRequest { acks, timeout_ms, topic: name, topic_id: id, partition: 0, batch })
            }
            Phase::Full if must_delete(env) => Request::DeleteTopic(DeleteTopicRequest { name, timeout_ms: 5_000 }),
            Phase::Full | Phase::Deleted => return None,
        })
    }
}

/// Once faults are over, or when the alert of full disks has been read.
fn must_delete(env: &Env<'_>) -> bool {
    /// How long that takes.
    const READING_US: u64 = 6_000_000;
    env.healed || env.filled_us.is_some_and(|since_us| env.now_us >= since_us + READING_US)
}

impl Client for Housekeeper {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        if must_delete(env) && self.phase != Phase::Deleted {
            self.phase = Phase::Full;
        }
        if let (false, Some(request)) = (self.waits, self.request(env)) {
            (self.attempts, self.waits) = (self.attempts + 1, true);
            let node = env.any_node();
            env.send(node, request, TIMEOUT_US, self.attempts);
        }
        env.timer(50_000, BEGIN);
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        self.waits = false;
        match (self.phase, outcome) {
            (Phase::Creating, Outcome::Done(Response::CreateTopic(topic))) => {
                self.phase = Phase::Filling { id: topic.topic_id, left: BYTES };
            }
            (Phase::Filling { id, left }, Outcome::Done(Response::Produce(_))) => {
                let left = left.saturating_sub(env.max_batch_bytes / 2);
                self.phase = if left == 0 { Phase::Full } else { Phase::Filling { id, left } };
            }
            (Phase::Full, Outcome::Done(Response::DeleteTopic)) => self.phase = Phase::Deleted,
            // What was still under way when the faults ended.
            (Phase::Full, Outcome::Done(_)) => {}
            // An earlier attempt was heard after all.
            (Phase::Full, Outcome::Refused(error)) if error.code == ErrorCode::UnknownTopic => {
                self.phase = Phase::Deleted;
            }
            (_, Outcome::Refused(error)) if error.code.is_retriable() => {}
            (_, Outcome::Lost | Outcome::TimedOut) => {}
            (phase, other) => {
                return Err(Violation::new("unexpected-answer", format!("to the housekeeper, {phase:?}: {other:?}")));
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.phase == Phase::Deleted
    }

    fn describe(&self) -> String {
        format!("the housekeeper, {:?}", self.phase)
    }
}
