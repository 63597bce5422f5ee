//! The history of topic operations: what was asked, when, and what came of it. Records are checked as they come and are
//! not kept; these few are, since whether they fit together can only be told of all at once.

use super::invariants::Violation;
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
    /// It was refused before anything was done.
    NotDone,
}

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TopicOperation {
    pub(crate) client: usize,
    pub(crate) input: TopicInput,
    pub(crate) call_us: u64,
    /// When and what; `None` if nobody knows what came of it.
    pub(crate) output: Option<(u64, TopicOutput)>,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct History {
    topics: BTreeMap<String, Vec<TopicOperation>>,
}

impl History {
    /// Note an operation whose outcome is known, or will never be.
    pub(crate) fn topic(&mut self, name: &str, operation: TopicOperation) {
        self.topics.entry(name.to_owned()).or_default().push(operation);
    }

    /// Whether the operations on each topic could have happened one after the other. Topic ids make the usual search
    /// unnecessary for a part of the question: what a name means at a time follows from the order of its ids.
    pub(crate) fn check_topics(&self) -> Result<(), Violation> {
        self.topics.iter().try_for_each(|(name, operations)| check_ids(name, operations))
    }
}

/// Two answers that do not overlap name ids in the order of their times, and an id has one number of partitions.
fn check_ids(name: &str, operations: &[TopicOperation]) -> Result<(), Violation> {
    let mut partitions_of = BTreeMap::new();
    let mut seen: Vec<(u64, u64, u64)> = Vec::new();
    for operation in operations {
        let Some((returned_us, TopicOutput::Exists { id, partitions })) = operation.output else { continue };
        let before = *partitions_of.entry(id).or_insert(partitions);
        if before != partitions {
            let what = format!("topic {name:?} with id {id} has {before} and {partitions} partitions: {operation:?}");
            return Err(Violation::new("topics", what));
        }
        seen.push((returned_us, id, operation.call_us));
    }
    seen.sort_unstable();
    let mut newest: Vec<(u64, u64)> = Vec::with_capacity(seen.len());
    for (returned_us, id, call_us) in seen {
        let at = newest.partition_point(|(returned, _)| *returned < call_us);
        if let Some((earlier_us, older)) = at.checked_sub(1).map(|at| newest[at]).filter(|(_, newer)| *newer > id) {
            let what = format!(
                "topic {name:?}: id {older} was answered at {earlier_us} µs, but an operation called at {call_us} µs \
                 was answered with the older id {id}"
            );
            return Err(Violation::new("topics", what));
        }
        let highest = newest.last().map_or(id, |(_, newest)| id.max(*newest));
        newest.push((returned_us, highest));
    }
    Ok(())
}
