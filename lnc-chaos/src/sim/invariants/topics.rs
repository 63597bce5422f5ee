//! Topic operations: they are linearizable, that is, each could have happened at one moment between its call and its
//! answer. What a topic's name means is the model here; the search is in [`crate::linearizability`].

use super::Violation;
use crate::linearizability::{self, Call, Model, Verdict};
use crate::sim::history::{TopicInput, TopicOperation, TopicOutput};
use lnc_protocol::ErrorCode;

/// Steps of the search after which it is given up.
const MAX_STEPS: u64 = 300_000;

/// What a name means, and the highest id that it ever had: ids ascend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    /// Id (0 until an answer tells it) and partitions.
    topic: Option<(u64, u32)>,
    highest: u64,
}

/// A name that topics are made and deleted under.
struct Name;

impl Model for Name {
    type State = State;
    type Operation = TopicOperation;

    fn initial(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, operation: &TopicOperation) -> Vec<State> {
        step(*state, operation)
    }
}

/// Check the operations on one name. False: the search was given up before it found an order or that there is none.
pub(crate) fn check(name: &str, operations: &[TopicOperation]) -> Result<bool, Violation> {
    // A question without an answer changes nothing and says nothing.
    let matters = |operation: &&TopicOperation| operation.output.is_some() || operation.input != TopicInput::Describe;
    let call = |operation: &TopicOperation| Call {
        called: operation.call_us,
        returned: operation.output.map(|(at_us, _)| at_us),
        operation: *operation,
    };
    let calls: Vec<Call<TopicOperation>> = operations.iter().filter(matters).map(call).collect();
    match linearizability::check(&Name, &calls, MAX_STEPS) {
        Verdict::Linearizable(_) => Ok(true),
        Verdict::Undecided => Ok(false),
        Verdict::Not(best) => {
            let mut rest: Vec<usize> = (0..calls.len()).filter(|n| !best.contains(n)).collect();
            rest.sort_by_key(|n| calls[*n].called);
            let next: Vec<&TopicOperation> = rest.iter().take(4).map(|n| &calls[*n].operation).collect();
            let last: Vec<&TopicOperation> = best.iter().rev().take(4).map(|n| &calls[*n].operation).collect();
            let what = format!(
                "no order of the {} operations on topic {name:?} explains their answers: {} can be placed, the last of \
                 them (newest first) {last:?}, then not {next:?}",
                calls.len(),
                best.len()
            );
            Err(Violation::new("topics", what))
        }
    }
}

/// What may follow a state if an operation happens in it and is answered as it was; nothing if that cannot be.
fn step(state: State, operation: &TopicOperation) -> Vec<State> {
    let highest = state.highest;
    let gone = State { topic: None, highest };
    match (operation.input, operation.output.map(|(_, output)| output), state.topic) {
        // A topic of unknown id gets it from the first answer that names it.
        (
            TopicInput::Create { .. } | TopicInput::Describe,
            Some(TopicOutput::Exists { id, partitions }),
            Some(there),
        ) => {
            let asked = match operation.input {
                TopicInput::Create { partitions } => partitions,
                _ => there.1,
            };
            let known = there.0 == id || (there.0 == 0 && id > highest);
            let fits = known && there.1 == partitions && asked == partitions;
            fits.then_some(State { topic: Some((id, partitions)), highest: id }).into_iter().collect()
        }
        (TopicInput::Create { partitions: asked }, Some(TopicOutput::Exists { id, partitions }), None) => {
            let fits = id > highest && asked == partitions;
            fits.then_some(State { topic: Some((id, partitions)), highest: id }).into_iter().collect()
        }
        (TopicInput::Create { partitions }, None, None) => vec![State { topic: Some((0, partitions)), highest }],
        (TopicInput::Create { .. }, None, Some(_)) => vec![state],
        (TopicInput::Create { partitions }, Some(TopicOutput::Refused(ErrorCode::TopicExists)), Some((_, there))) => {
            (partitions != there).then_some(state).into_iter().collect()
        }
        // It was made, or was there, and somebody deletes it before this can be answered.
        (TopicInput::Create { partitions }, Some(TopicOutput::Refused(ErrorCode::UnknownTopic)), there) => {
            let topic = there.or(Some((0, partitions))).filter(|(_, made)| *made == partitions);
            topic.map(|_| State { topic, highest }).into_iter().collect()
        }
        (TopicInput::Delete, None, _) | (TopicInput::Delete, Some(TopicOutput::Deleted), Some(_)) => vec![gone],
        (TopicInput::Delete | TopicInput::Describe, Some(TopicOutput::Refused(ErrorCode::UnknownTopic)), None) => {
            vec![state]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(call_us: u64, return_us: u64, input: TopicInput, output: TopicOutput) -> TopicOperation {
        TopicOperation { input, call_us, output: Some((return_us, output)) }
    }

    const CREATE: TopicInput = TopicInput::Create { partitions: 1 };
    const UNKNOWN: TopicOutput = TopicOutput::Refused(ErrorCode::UnknownTopic);

    fn exists(id: u64) -> TopicOutput {
        TopicOutput::Exists { id, partitions: 1 }
    }

    #[test]
    fn what_could_have_happened_passes() {
        let overlapping = [
            at(1, 9, CREATE, exists(4)),
            at(2, 3, TopicInput::Describe, UNKNOWN),
            at(4, 5, TopicInput::Describe, exists(4)),
            at(10, 20, TopicInput::Delete, TopicOutput::Deleted),
            at(11, 30, CREATE, exists(6)),
            at(31, 32, TopicInput::Create { partitions: 2 }, TopicOutput::Refused(ErrorCode::TopicExists)),
        ];
        assert_eq!(check("t", &overlapping), Ok(true));
    }

    #[test]
    fn an_operation_without_an_answer_may_happen_late_or_never() {
        let lost = TopicOperation { input: TopicInput::Delete, call_us: 5, output: None };
        let made = at(1, 2, CREATE, exists(1));
        for later in [exists(1), UNKNOWN] {
            assert_eq!(check("t", &[made, lost, at(50, 60, TopicInput::Describe, later)]), Ok(true));
        }
    }

    #[test]
    fn what_could_not_have_happened_is_found() {
        let made = at(1, 2, CREATE, exists(5));
        for (what, operation) in [
            ("it is gone though nobody deleted it", at(3, 4, TopicInput::Describe, UNKNOWN)),
            ("its id changes", at(3, 4, TopicInput::Describe, exists(6))),
            ("it is made a second time", at(3, 4, CREATE, exists(6))),
            ("what is there cannot be deleted", at(3, 4, TopicInput::Delete, UNKNOWN)),
            ("it exists with the same settings", at(3, 4, CREATE, TopicOutput::Refused(ErrorCode::TopicExists))),
        ] {
            assert!(check("t", &[made, operation]).is_err(), "{what}");
        }
        let deleted = at(3, 4, TopicInput::Delete, TopicOutput::Deleted);
        assert!(check("t", &[made, deleted, at(5, 6, TopicInput::Describe, exists(5))]).is_err(), "it comes back");
        assert!(check("t", &[made, deleted, at(5, 6, CREATE, exists(4))]).is_err(), "ids go back");
    }
}
