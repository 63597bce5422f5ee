//! The consumer: reads a partition from any replica, waits for more, sometimes goes back, asks where the log ends, or moves
//! to another node or partition.

use super::super::invariants::records::PartitionId;
use super::super::invariants::{Violation, sizes};
use super::{BEGIN, Client, Env, Outcome};
use lnc_protocol::message::{ListOffsetsPartition, ListOffsetsRequest, OffsetSpec, Response};
use lnc_protocol::{ErrorCode, Request};

enum Asked {
    Records { offset: u64, life: u32, max_bytes: u32 },
    Latest { acked_end: u64, life: u32 },
    FirstAt { timestamp_ms: i64, life: u32 },
}

/// See the module documentation.
pub(super) struct Consumer {
    node: u64,
    at: Option<PartitionId>,
    offset: u64,
    asked: Option<Asked>,
    attempts: u64,
    /// It reads nothing, and asks where logs end, any node and all the time.
    only_looks: bool,
}

impl Consumer {
    pub(super) fn new() -> Self {
        Self { node: 1, at: None, offset: 0, asked: None, attempts: 0, only_looks: false }
    }

    /// One that only asks where logs end.
    pub(super) fn who_only_looks() -> Self {
        Self { only_looks: true, ..Self::new() }
    }

    fn ask(&mut self, env: &mut Env<'_>) {
        if self.at.is_none() || env.rng.chance(20) || self.only_looks {
            (self.at, self.offset) = (env.any_partition(), 0);
        }
        let Some(at) = self.at else { return };
        if env.rng.chance(40) || self.only_looks {
            self.node = env.any_node();
        }
        if env.rng.chance(20) {
            self.offset = env.rng.below(self.offset + 1);
        }
        self.attempts += 1;
        let life = env.life(self.node);
        if env.rng.chance(100) || self.only_looks {
            let timestamp_ms = env.rng.below(env.records.now_ms + 1) as i64;
            let (asked, spec) = match env.rng.chance(250) {
                true => (Asked::FirstAt { timestamp_ms, life }, OffsetSpec::Timestamp(timestamp_ms)),
                false => (Asked::Latest { acked_end: env.records.acked_end(at), life }, OffsetSpec::Latest),
            };
            self.asked = Some(asked);
            let topic = &env.records.topics()[at.topic];
            let wanted =
                ListOffsetsPartition { topic: topic.name.clone(), topic_id: topic.id, partition: at.partition, spec };
            let request = Request::ListOffsets(ListOffsetsRequest { partitions: vec![wanted] });
            return env.send(self.node, request, 8_000_000, self.attempts);
        }
        let (wait_ms, min_bytes) = env.rng.pick(&[(0, 1), (500, 4_000), (1_000, 16_000), (2_000, 1)]);
        let (request, max_bytes) = env.fetch(at, self.offset, wait_ms, min_bytes);
        self.asked = Some(Asked::Records { offset: self.offset, life, max_bytes });
        env.send(self.node, request, 8_000_000, self.attempts);
    }

    fn answered(&mut self, env: &mut Env<'_>, asked: Asked, response: Response) -> Result<(), Violation> {
        let Some(at) = self.at else { return Ok(()) };
        match (asked, response) {
            (Asked::Records { offset, life, max_bytes }, Response::Fetch(found)) if found.len() == 1 => {
                let view = env.view(self.node, life);
                let found = &found[0];
                if found.error == ErrorCode::None {
                    sizes::check(found, max_bytes)?;
                    self.offset = env.records.fetched(view, at, offset, found)?;
                    return Ok(());
                }
                let excused = env.suspects.contains(&self.node);
                env.records.fetch_failed(view, at, offset, found, excused)?;
                self.offset = self.offset.max(found.log_start_offset);
                self.node = env.any_node();
                Ok(())
            }
            (asked @ (Asked::Latest { .. } | Asked::FirstAt { .. }), Response::ListOffsets(found))
                if found.len() == 1 =>
            {
                let (Asked::Latest { life, .. } | Asked::FirstAt { life, .. } | Asked::Records { life, .. }) = asked;
                let view = env.view(self.node, life);
                let lacks = matches!(found[0].error, ErrorCode::StorageDamaged | ErrorCode::NotReady);
                if lacks && env.suspects.contains(&self.node) {
                    return Ok(());
                }
                if found[0].error != ErrorCode::None {
                    let what = format!("{view:?} {at:?} to a question for an offset: {:?}", found[0]);
                    return Err(Violation::new("unexpected-answer", what));
                }
                match asked {
                    Asked::FirstAt { timestamp_ms, .. } => {
                        env.records.first_at(view, at, timestamp_ms, (found[0].offset, found[0].timestamp_ms >= 0))
                    }
                    Asked::Latest { acked_end, .. } => env.records.latest(view, at, found[0].offset, acked_end),
                    Asked::Records { .. } => Ok(()),
                }
            }
            (_, other) => Err(Violation::new("unexpected-answer", format!("to a consumer: {other:?}"))),
        }
    }
}

impl Client for Consumer {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        if !env.stopping {
            if self.asked.is_none() {
                self.ask(env);
            }
            let after_us = env.around(if self.only_looks { 40_000 } else { 250_000 });
            env.timer(after_us, BEGIN);
        }
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        let Some(asked) = self.asked.take() else { return Ok(()) };
        match outcome {
            Outcome::Done(response) => self.answered(env, asked, response),
            Outcome::Refused(error) if !error.code.is_retriable() => {
                Err(Violation::new("unexpected-answer", format!("to a consumer at node {}: {error}", self.node)))
            }
            Outcome::Refused(_) | Outcome::Lost | Outcome::TimedOut => {
                self.node = env.any_node();
                Ok(())
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    fn describe(&self) -> String {
        format!("a consumer of {:?} at offset {} of node {}", self.at, self.offset, self.node)
    }
}
