//! One who makes topics of its own, writes to them and deletes them, and goes on to write: once a deletion was answered,
//! nothing more must be taken.

use super::super::invariants::Violation;
use super::{BEGIN, Client, Env, Outcome};
use bytes::Bytes;
use lnc_protocol::message::{
    Acks, CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, ProduceRequest, Response, TopicOptions,
};
use lnc_protocol::{BatchBuilder, Codec, ErrorCode, Request};

const TIMEOUT_US: u64 = 8_000_000;
/// How long it goes on to write to a topic that is deleted.
const AFTER_US: u64 = 6_000_000;

/// What it does with its present topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Creating,
    Writing {
        id: u64,
        left: u32,
    },
    Deleting {
        id: u64,
    },
    /// The deletion was answered.
    Deleted {
        id: u64,
        until_us: u64,
    },
}

/// See the module documentation.
pub(super) struct Owner {
    topic: u64,
    phase: Phase,
    attempts: u64,
    /// What was asked in this phase, and has no answer yet.
    waits: bool,
}

impl Owner {
    pub(super) fn new() -> Self {
        Self { topic: 0, phase: Phase::Creating, attempts: 0, waits: false }
    }

    fn name(&self, env: &Env<'_>) -> String {
        format!("own-{}-{}", env.client, self.topic)
    }

    fn go_to(&mut self, phase: Phase) {
        self.phase = phase;
    }

    fn next_topic(&mut self) {
        self.topic += 1;
        self.phase = Phase::Creating;
    }

    fn write(&self, env: &Env<'_>, id: u64) -> Request {
        let mut batch = BatchBuilder::new(Codec::None);
        // A small record always fits.
        let _ = batch.append(env.now_us as i64 / 1000, None, Some(b"mine"), &[]);
        let batch: Bytes = batch.build();
        let (acks, timeout_ms) = (Acks::Quorum, 4_000);
        Request::Produce(ProduceRequest { acks, timeout_ms, topic: self.name(env), topic_id: id, partition: 0, batch })
    }

    fn ask(&mut self, env: &mut Env<'_>) {
        let name = self.name(env);
        let request = match self.phase {
            Phase::Creating => {
                let options = TopicOptions::default();
                Request::CreateTopic(CreateTopicRequest { name, partitions: 1, options, timeout_ms: 5_000 })
            }
            Phase::Writing { id, .. } => self.write(env, id),
            Phase::Deleting { .. } => Request::DeleteTopic(DeleteTopicRequest { name, timeout_ms: 5_000 }),
            Phase::Deleted { .. } if env.rng.chance(300) => Request::DescribeTopic(DescribeTopicRequest { name }),
            Phase::Deleted { id, .. } => self.write(env, id),
        };
        (self.attempts, self.waits) = (self.attempts + 1, true);
        let node = env.any_node();
        env.send(node, request, TIMEOUT_US, self.attempts);
    }

    fn answered(&mut self, env: &mut Env<'_>, response: Response) -> Result<(), Violation> {
        match (self.phase, response) {
            (Phase::Creating, Response::CreateTopic(topic)) => {
                self.go_to(Phase::Writing { id: topic.topic_id, left: env.rng.between(1, 4) as u32 });
            }
            (Phase::Writing { id, left: 0 | 1 }, Response::Produce(_)) => self.go_to(Phase::Deleting { id }),
            (Phase::Writing { id, left }, Response::Produce(_)) => self.go_to(Phase::Writing { id, left: left - 1 }),
            (Phase::Deleting { id }, Response::DeleteTopic) => {
                self.go_to(Phase::Deleted { id, until_us: env.now_us + AFTER_US });
            }
            (Phase::Deleted { id, .. }, Response::Produce(_)) => {
                let what =
                    format!("topic {:?} with id {id} takes a record after its deletion was answered", self.name(env));
                return Err(Violation::new("deleted-stays", what));
            }
            // Who creates it a second time, for want of an answer, may be heard after the deletion.
            (Phase::Deleted { id, .. }, Response::DescribeTopic(topic)) if topic.topic_id != id => {}
            (Phase::Deleted { id, .. }, Response::DescribeTopic(topic)) => {
                let what = format!("topic {:?} with id {id} was deleted, and is there as {topic:?}", self.name(env));
                return Err(Violation::new("deleted-stays", what));
            }
            (phase, other) => {
                return Err(Violation::new("unexpected-answer", format!("to an owner, {phase:?}: {other:?}")));
            }
        }
        Ok(())
    }

    fn refused(&mut self, code: ErrorCode) -> bool {
        match self.phase {
            Phase::Deleted { .. } => matches!(code, ErrorCode::UnknownTopic | ErrorCode::TopicIdMismatch),
            // An earlier attempt was heard after all; when its partitions are gone, nobody has said.
            Phase::Deleting { .. } if code == ErrorCode::UnknownTopic => {
                self.next_topic();
                true
            }
            _ => false,
        }
    }
}

impl Client for Owner {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        if matches!(self.phase, Phase::Deleted { until_us, .. } if env.now_us >= until_us) && !self.waits {
            self.next_topic();
        }
        if !self.waits && !env.stopping {
            self.ask(env);
        }
        if !env.stopping {
            let after_us = env.around(500_000);
            env.timer(after_us, BEGIN);
        }
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        self.waits = false;
        match outcome {
            Outcome::Done(response) => self.answered(env, response),
            Outcome::Refused(error) if error.code.is_retriable() || self.refused(error.code) => Ok(()),
            Outcome::Refused(error) => {
                let what = format!("to an owner of {:?}, {:?}: {error}", self.name(env), self.phase);
                Err(Violation::new("unexpected-answer", what))
            }
            Outcome::Lost | Outcome::TimedOut => Ok(()),
        }
    }

    fn is_idle(&self) -> bool {
        !self.waits
    }

    fn describe(&self) -> String {
        format!("the owner of topic {}, {:?}", self.topic, self.phase)
    }
}
