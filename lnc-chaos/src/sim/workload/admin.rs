//! Those who make and remove topics: the founder, who makes the topics that stay, and others, who quarrel over a few names.

use super::super::clocks::{AGED, MAX_AGE_MS};
use super::super::history::{TopicInput, TopicOperation, TopicOutput};
use super::super::invariants::Violation;
use super::super::invariants::records::KeptTopic;
use super::super::report::leaves_open;
use super::{BEGIN, Client, Env, Outcome};
use lnc_protocol::message::{
    CreateTopicRequest, DeleteTopicRequest, DescribeTopicRequest, Response, TopicDescription, TopicOptions,
};
use lnc_protocol::{ErrorCode, ErrorReply, Request};

const TIMEOUT_US: u64 = 8_000_000;

/// Topics that stay: name, partitions, bytes that a partition keeps, and for how long.
const KEPT: [(&str, u32, Option<u64>, Option<u64>); 3] =
    [("kept", 3, None, None), ("trimmed", 2, Some(60_000), None), (AGED, 1, None, Some(MAX_AGE_MS))];

/// Names that come and go.
const NAMES: [&str; 3] = ["red", "green", "blue"];

fn create(name: &str, partitions: u32, max_bytes: Option<u64>, max_age_ms: Option<u64>) -> Request {
    let options = TopicOptions { max_bytes, max_age_ms, ..TopicOptions::default() };
    Request::CreateTopic(CreateTopicRequest { name: name.to_owned(), partitions, options, timeout_ms: 5_000 })
}

/// Makes the topics that stay.
pub(super) struct Founder {
    made: usize,
    attempts: u64,
    waits: bool,
}

impl Founder {
    pub(super) fn new() -> Self {
        Self { made: 0, attempts: 0, waits: false }
    }
}

impl Client for Founder {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        let Some((name, partitions, max_bytes, max_age_ms)) = KEPT.get(self.made).copied() else { return Ok(()) };
        if !self.waits {
            (self.attempts, self.waits) = (self.attempts + 1, true);
            let node = env.any_node();
            env.send(node, create(name, partitions, max_bytes, max_age_ms), TIMEOUT_US, self.attempts);
        }
        env.timer(300_000, BEGIN);
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        self.waits = false;
        match outcome {
            Outcome::Done(Response::CreateTopic(topic)) => {
                let (name, partitions, max_bytes, max_age_ms) = KEPT[self.made];
                let limited = max_bytes.is_some() || max_age_ms.is_some();
                env.records.add_topic(KeptTopic { name: name.to_owned(), id: topic.topic_id, partitions, limited });
                self.made += 1;
                Ok(())
            }
            Outcome::Refused(error) if error.code.is_retriable() => Ok(()),
            Outcome::Lost | Outcome::TimedOut => Ok(()),
            other => Err(Violation::new("unexpected-answer", format!("to the founder: {other:?}"))),
        }
    }

    fn is_idle(&self) -> bool {
        self.made == KEPT.len()
    }

    fn describe(&self) -> String {
        format!("the founder, with {} of {} topics made", self.made, KEPT.len())
    }
}

/// Makes, removes and describes topics.
pub(super) struct Admin {
    asked: Option<(&'static str, TopicInput, u64)>,
    attempts: u64,
}

impl Admin {
    pub(super) fn new() -> Self {
        Self { asked: None, attempts: 0 }
    }

    fn ask(&mut self, env: &mut Env<'_>) {
        let name = env.rng.pick(&NAMES);
        let (input, request) = match env.rng.below(3) {
            0 => {
                let partitions = env.rng.between(1, 2) as u32;
                (TopicInput::Create { partitions }, create(name, partitions, None, None))
            }
            1 => {
                let delete = DeleteTopicRequest { name: name.to_owned(), timeout_ms: 5_000 };
                (TopicInput::Delete, Request::DeleteTopic(delete))
            }
            _ => (TopicInput::Describe, Request::DescribeTopic(DescribeTopicRequest { name: name.to_owned() })),
        };
        self.attempts += 1;
        self.asked = Some((name, input, env.now_us));
        let node = env.any_node();
        env.send(node, request, TIMEOUT_US, self.attempts);
    }

    /// What an outcome says; `None` if it leaves open what happened.
    fn output(&self, input: TopicInput, outcome: Outcome) -> Result<Option<TopicOutput>, Violation> {
        let exists = |topic: &TopicDescription| TopicOutput::Exists {
            id: topic.topic_id,
            partitions: topic.partitions.len() as u32,
        };
        match (input, outcome) {
            (TopicInput::Create { .. }, Outcome::Done(Response::CreateTopic(topic)))
            | (TopicInput::Describe, Outcome::Done(Response::DescribeTopic(topic))) => Ok(Some(exists(&topic))),
            (TopicInput::Delete, Outcome::Done(Response::DeleteTopic)) => Ok(Some(TopicOutput::Deleted)),
            (_, Outcome::Lost | Outcome::TimedOut) => Ok(None),
            (_, Outcome::Refused(ErrorReply { code, .. })) if leaves_open(code) => Ok(None),
            (TopicInput::Create { .. }, Outcome::Refused(ErrorReply { code, .. }))
                if matches!(code, ErrorCode::TopicExists | ErrorCode::UnknownTopic) =>
            {
                Ok(Some(TopicOutput::Refused(code)))
            }
            (TopicInput::Delete | TopicInput::Describe, Outcome::Refused(ErrorReply { code, .. }))
                if code == ErrorCode::UnknownTopic =>
            {
                Ok(Some(TopicOutput::Refused(code)))
            }
            (input, other) => Err(Violation::new("unexpected-answer", format!("to {input:?}: {other:?}"))),
        }
    }
}

impl Client for Admin {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        if !env.stopping {
            if self.asked.is_none() {
                self.ask(env);
            }
            let after_us = env.around(1_500_000);
            env.timer(after_us, BEGIN);
        }
        Ok(())
    }

    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        let Some((name, input, call_us)) = self.asked.take() else { return Ok(()) };
        if matches!(&outcome, Outcome::Refused(error) if error.code.is_retriable() && !leaves_open(error.code)) {
            return Ok(());
        }
        let output = self.output(input, outcome)?.map(|output| (env.now_us, output));
        env.history.add(name, TopicOperation { input, call_us, output });
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.asked.is_none()
    }

    fn describe(&self) -> String {
        format!("an administrator who waits for {:?}", self.asked)
    }
}
