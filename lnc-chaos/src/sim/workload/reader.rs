//! The reader of everything: at the end it reads every partition of one node from start to end.

use super::super::invariants::records::PartitionId;
use super::super::invariants::{Violation, sizes};
use super::{Client, Env, Outcome};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::Response;

const TIMEOUT_US: u64 = 10_000_000;

/// See the module documentation.
pub(in crate::sim) struct Reader {
    node: u64,
    /// Partitions that are not read yet, the current one last.
    left: Vec<PartitionId>,
    offset: u64,
    start: u64,
    attempts: u64,
    /// Of the answer to the last one.
    max_bytes: u32,
}

impl Reader {
    /// One that reads these partitions of a node.
    pub(in crate::sim) fn new(node: u64, partitions: Vec<PartitionId>) -> Self {
        Self { node, left: partitions, offset: 0, start: 0, attempts: 0, max_bytes: 0 }
    }

    fn ask(&mut self, env: &mut Env<'_>) {
        if let Some(at) = self.left.last() {
            self.attempts += 1;
            let (request, max_bytes) = env.fetch(*at, self.offset, 0, 1);
            self.max_bytes = max_bytes;
            env.send(self.node, request, TIMEOUT_US, self.attempts);
        }
    }
}

impl Client for Reader {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        self.ask(env);
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        let Some(at) = self.left.last().copied().filter(|_| token == self.attempts) else { return Ok(()) };
        if let Outcome::Done(Response::Fetch(found)) = outcome {
            let (view, found) = (env.view(self.node, env.life(self.node)), &found[0]);
            if found.error == ErrorCode::None {
                sizes::check(found, self.max_bytes)?;
                self.offset = env.records.fetched(view, at, self.offset, found)?;
                if self.offset >= found.high_watermark {
                    env.records.read_all(self.node, at, self.start, self.offset);
                    self.left.pop();
                    (self.offset, self.start) = (0, 0);
                }
            } else {
                let excused = env.suspects.contains(&self.node);
                env.records.fetch_failed(view, at, self.offset, found, excused)?;
                if found.error == ErrorCode::OffsetOutOfRange {
                    (self.offset, self.start) = (found.log_start_offset, found.log_start_offset);
                }
            }
        }
        self.ask(env);
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.left.is_empty()
    }

    fn describe(&self) -> String {
        format!("a reader of node {} with {} partitions left, at offset {}", self.node, self.left.len(), self.offset)
    }
}
