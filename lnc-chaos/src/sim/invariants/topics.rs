//! Topic operations: they are linearizable, that is, each could have happened at one moment between its call and its
//! answer. The search is Wing and Gong's (1993) with the memory of Lowe (2017): an operation is placed next if none that is
//! not placed had been answered before it was called, and no set of placed operations is tried twice with the same state.

use super::Violation;
use crate::sim::history::{TopicInput, TopicOperation, TopicOutput};
use lnc_protocol::ErrorCode;
use std::collections::BTreeSet;

/// Steps of the search after which it is given up.
const MAX_STEPS: u64 = 300_000;

/// What a name means, and the highest id that it ever had: ids ascend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    /// Id (0 until an answer tells it) and partitions.
    topic: Option<(u64, u32)>,
    highest: u64,
}

/// Check the operations on one name. False: the search was given up before it found an order or that there is none.
pub(crate) fn check(name: &str, operations: &[TopicOperation]) -> Result<bool, Violation> {
    let mut sorted: Vec<TopicOperation> = operations.to_vec();
    // A question without an answer changes nothing and says nothing.
    sorted.retain(|operation| operation.output.is_some() || operation.input != TopicInput::Describe);
    sorted.sort_by_key(|operation| (operation.call_us, operation.return_us()));
    let mut search = Search { operations: &sorted, tried: BTreeSet::new(), steps: 0, best: Vec::new() };
    let placed = &mut vec![0; sorted.len().div_ceil(64)];
    match search.place(placed, State::default(), &mut Vec::new()) {
        Some(true) => Ok(true),
        None => Ok(false),
        Some(false) => {
            let next = sorted.iter().enumerate().filter(|(n, _)| !search.best.contains(n)).take(4);
            let next: Vec<&TopicOperation> = next.map(|(_, operation)| operation).collect();
            let last = search.best.iter().rev().take(4).map(|n| &sorted[*n]).collect::<Vec<_>>();
            let what = format!(
                "no order of the {} operations on topic {name:?} explains their answers: {} can be placed, the last of \
                 them (newest first) {last:?}, then not {next:?}",
                sorted.len(),
                search.best.len()
            );
            Err(Violation::new("topics", what))
        }
    }
}

struct Search<'a> {
    operations: &'a [TopicOperation],
    tried: BTreeSet<(Vec<u64>, State)>,
    steps: u64,
    /// The longest order found.
    best: Vec<usize>,
}

impl Search<'_> {
    /// Whether the rest can be placed behind `order`; `None` if that takes too long to tell.
    fn place(&mut self, placed: &mut Vec<u64>, state: State, order: &mut Vec<usize>) -> Option<bool> {
        let is_placed = |placed: &[u64], n: usize| placed[n / 64] >> (n % 64) & 1 == 1;
        let open: Vec<usize> = (0..self.operations.len()).filter(|n| !is_placed(placed, *n)).collect();
        let first_return_us = open.iter().map(|n| self.operations[*n].return_us()).min();
        // What nobody heard of need not have happened.
        let Some(first_return_us) = first_return_us.filter(|at_us| *at_us != u64::MAX) else { return Some(true) };
        if order.len() > self.best.len() {
            self.best.clone_from(order);
        }
        for n in open {
            let operation = self.operations[n];
            if operation.call_us > first_return_us {
                break;
            }
            for next in step(state, &operation) {
                self.steps += 1;
                if self.steps > MAX_STEPS {
                    return None;
                }
                placed[n / 64] |= 1 << (n % 64);
                order.push(n);
                let found = self.tried.insert((placed.clone(), next)).then(|| self.place(placed, next, order));
                order.pop();
                placed[n / 64] &= !(1 << (n % 64));
                match found {
                    Some(Some(false)) | None => {}
                    Some(over) => return over,
                }
            }
        }
        Some(false)
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
