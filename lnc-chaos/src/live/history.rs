//! What clients did to a topic, and whether what the topic holds can have come of it.
//!
//! A call writes numbered lines with one idempotent producer to one partition. If it succeeds, every line is there, once
//! and in order. If it fails, its outcome is not known: any of its lines may be there, each at most once and in order.

use std::collections::BTreeMap;
use std::fmt::Write;

/// All calls.
#[derive(Debug, Default)]
pub struct History {
    calls: BTreeMap<u64, Call>,
}

#[derive(Debug)]
struct Call {
    lines: u64,
    acknowledged: bool,
}

/// The text that a call writes.
pub fn lines(call: u64, count: u64) -> String {
    let mut text = String::new();
    for line in 0..count {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{call} {line}");
    }
    text
}

impl History {
    /// Adds a call that has ended.
    pub fn add(&mut self, call: u64, lines: u64, acknowledged: bool) {
        self.calls.insert(call, Call { lines, acknowledged });
    }

    /// Calls that succeeded.
    pub fn acknowledged(&self) -> usize {
        self.calls.values().filter(|call| call.acknowledged).count()
    }

    /// Calls that failed.
    pub fn unknown(&self) -> usize {
        self.calls.len() - self.acknowledged()
    }

    /// What is wrong with the records of the partition, one on a line, in their order.
    pub fn check(&self, text: &[u8]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for record in text.split(|byte| *byte == b'\n').filter(|record| !record.is_empty()) {
            let record = String::from_utf8_lossy(record);
            let numbers =
                record.split_once(' ').and_then(|(call, line)| Some((call.parse().ok()?, line.parse().ok()?)));
            let known = numbers.filter(|(call, line)| self.calls.get(call).is_some_and(|call| *line < call.lines));
            let Some((call, line)) = known else {
                problems.push(format!("a record that nobody wrote: {record:?}"));
                continue;
            };
            match last.insert(call, line) {
                Some(before) if before == line => problems.push(format!("line {line} of call {call} is there twice")),
                Some(before) if before > line => {
                    problems.push(format!("line {line} of call {call} comes after {before}"))
                }
                _ => {}
            }
            *counts.entry(call).or_default() += 1;
        }
        for (number, call) in self.calls.iter().filter(|(_, call)| call.acknowledged) {
            let found = counts.get(number).copied().unwrap_or_default();
            if found != call.lines {
                problems.push(format!("call {number} was acknowledged: {found} of its {} lines are there", call.lines));
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two calls that were acknowledged and one whose outcome is not known, of three lines each.
    fn history() -> History {
        let mut history = History::default();
        history.add(0, 3, true);
        history.add(1, 3, false);
        history.add(2, 3, true);
        history
    }

    fn problems(text: &str) -> Vec<String> {
        history().check(text.as_bytes())
    }

    #[test]
    fn what_may_be() {
        let all: String = (0..3).map(|call| lines(call, 3)).collect();
        assert_eq!(problems(&all), [""; 0]);
        // Nothing, or a part, of the call whose outcome is not known; and calls may overtake each other.
        assert_eq!(problems("0 0\n0 1\n0 2\n2 0\n2 1\n2 2\n"), [""; 0]);
        assert_eq!(problems("2 0\n2 1\n1 1\n2 2\n0 0\n0 1\n0 2\n"), [""; 0]);
        assert_eq!((history().acknowledged(), history().unknown()), (2, 1));
    }

    #[test]
    fn what_must_not_be() {
        let lost = problems("0 0\n0 2\n2 0\n2 1\n2 2\n");
        assert_eq!(lost, ["call 0 was acknowledged: 2 of its 3 lines are there"]);
        let none = problems("0 0\n0 1\n0 2\n");
        assert_eq!(none, ["call 2 was acknowledged: 0 of its 3 lines are there"]);
        let doubled = problems("0 0\n0 1\n0 1\n0 2\n2 0\n2 1\n2 2\n");
        assert_eq!(doubled[0], "line 1 of call 0 is there twice");
        let turned = problems("1 2\n1 1\n0 0\n0 1\n0 2\n2 0\n2 1\n2 2\n");
        assert_eq!(turned, ["line 1 of call 1 comes after 2"]);
        let foreign = problems("0 0\n0 1\n0 2\n2 0\n2 1\n2 2\n3 0\n1 3\nx\n");
        assert_eq!(foreign.len(), 3, "{foreign:?}");
    }
}
