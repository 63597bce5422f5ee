//! The history of topic operations: what was asked, when, and what came of it. Records are checked as they come and are
//! not kept; these few are, since whether they fit together can only be told of all at once.

use lnc_protocol::ErrorCode;
use std::collections::BTreeMap;

/// What was asked about a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicInput {
    /// Make it, with so many partitions.
    Create { partitions: u32 },
    /// Remove it.
    Delete,
    /// Say what it is.
    Describe,
}

/// What was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TopicOutput {
    /// It exists with this id and so many partitions.
    Exists { id: u64, partitions: u32 },
    /// It is deleted.
    Deleted,
    /// It was refused, for good.
    Refused(ErrorCode),
}

/// One operation that may have had an effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicOperation {
    pub(crate) input: TopicInput,
    pub(crate) call_us: u64,
    /// When and what; `None` if nobody knows what came of it.
    pub(crate) output: Option<(u64, TopicOutput)>,
}

/// The operations, by topic name.
#[derive(Default)]
pub(crate) struct History {
    topics: BTreeMap<String, Vec<TopicOperation>>,
}

impl History {
    /// Note an operation that is over.
    pub(crate) fn add(&mut self, name: &str, operation: TopicOperation) {
        self.topics.entry(name.to_owned()).or_default().push(operation);
    }

    /// The operations of each topic name.
    pub(crate) fn topics(&self) -> impl Iterator<Item = (&str, &[TopicOperation])> {
        self.topics.iter().map(|(name, operations)| (name.as_str(), operations.as_slice()))
    }
}
