//! One stream of the records of several topics, and when it ends.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll};

use lnc_client::{ConsumedBatch, Consumer, Result};

/// A consumer for each topic. They take turns, so that one with much to say does not silence the others.
pub(super) struct Readers {
    /// Each with the place of its topic in the command.
    open: Vec<(usize, Consumer)>,
    turn: usize,
}

impl Readers {
    pub(super) fn new(consumers: Vec<Consumer>) -> Self {
        Self { open: consumers.into_iter().enumerate().collect(), turn: 0 }
    }

    /// The next batch with the place of its topic; `None` if no partition is left to read.
    pub(super) async fn next(&mut self) -> Option<(usize, Result<ConsumedBatch>)> {
        poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Result<ConsumedBatch>)>> {
        let mut asked = 0;
        while asked < self.open.len() {
            let at = (self.turn + asked) % self.open.len();
            let (topic, consumer) = &mut self.open[at];
            let batch = pin!(consumer.next_batch()).poll(context);
            match batch {
                Poll::Pending => asked += 1,
                Poll::Ready(Some(batch)) => {
                    self.turn = at + 1;
                    return Poll::Ready(Some((*topic, batch)));
                }
                Poll::Ready(None) => {
                    self.open.remove(at);
                    asked = 0;
                }
            }
        }
        if self.open.is_empty() { Poll::Ready(None) } else { Poll::Pending }
    }
}

/// When to stop.
pub(super) struct Goal {
    /// Ends that are not reached yet, by topic and partition; `None` to go on for ever.
    pub(super) ends: Option<BTreeMap<(usize, u32), u64>>,
    /// How many more records to print.
    pub(super) left: u64,
}

impl Goal {
    pub(super) fn is_reached(&self) -> bool {
        self.left == 0 || self.ends.as_ref().is_some_and(BTreeMap::is_empty)
    }

    /// Cuts off what is past the goal, and takes note of the rest.
    pub(super) fn admit(&mut self, topic: usize, batch: &mut ConsumedBatch) {
        if let Some(ends) = &mut self.ends {
            let last = batch.records.last().map_or(0, |record| record.offset);
            let end = ends.get(&(topic, batch.partition)).copied().unwrap_or(0);
            batch.records.retain(|record| record.offset < end);
            if last + 1 >= end {
                ends.remove(&(topic, batch.partition));
            }
        }
        batch.records.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= batch.records.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_client::ConsumedRecord;

    fn batch(partition: u32, offsets: std::ops::Range<u64>) -> ConsumedBatch {
        let record =
            |offset| ConsumedRecord { partition, offset, timestamp_ms: 0, key: None, value: None, headers: Vec::new() };
        ConsumedBatch { partition, records: offsets.map(record).collect() }
    }

    fn admitted(goal: &mut Goal, topic: usize, mut batch: ConsumedBatch) -> Vec<u64> {
        goal.admit(topic, &mut batch);
        batch.records.iter().map(|record| record.offset).collect()
    }

    #[test]
    fn the_end_is_that_of_each_partition_of_each_topic() {
        let mut goal = Goal { ends: Some(BTreeMap::from([((0, 0), 5), ((1, 0), 2)])), left: u64::MAX };
        assert_eq!(admitted(&mut goal, 0, batch(0, 3..9)), [3, 4]);
        assert!(!goal.is_reached());
        assert!(admitted(&mut goal, 0, batch(0, 9..10)).is_empty(), "written after the command began");
        assert_eq!(admitted(&mut goal, 1, batch(0, 0..1)), [0]);
        assert!(!goal.is_reached());
        assert_eq!(admitted(&mut goal, 1, batch(0, 1..2)), [1]);
        assert!(goal.is_reached());
    }

    #[test]
    fn the_count_is_exact() {
        let mut goal = Goal { ends: None, left: 3 };
        assert_eq!(admitted(&mut goal, 0, batch(0, 0..2)), [0, 1]);
        assert_eq!(admitted(&mut goal, 0, batch(1, 7..12)), [7]);
        assert!(goal.is_reached());
    }

    #[test]
    fn an_empty_topic_is_at_its_end() {
        assert!(Goal { ends: Some(BTreeMap::new()), left: u64::MAX }.is_reached());
    }
}
