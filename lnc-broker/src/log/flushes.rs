//! Flushes of the journal that the disk has not confirmed, and how long the latest have taken.

use crate::log::window::QuickFlush;
use std::collections::VecDeque;

/// How long after a flush another one is reckoned with, in microseconds.
const WRITING_US: u64 = 100_000;

#[derive(Debug)]
struct Flush {
    number: u64,
    bytes: usize,
    since_us: u64,
    /// No other was under way when it began.
    had_the_disk: bool,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Flushes {
    /// In the order of their numbers, which only grow: the disk confirms all up to one.
    under_way: VecDeque<Flush>,
    /// Until then, the last flush counts as a sign that records are written.
    writing_until_us: u64,
    quick: QuickFlush,
}

impl Flushes {
    /// A flush was handed to the disk.
    pub(crate) fn started(&mut self, number: u64, bytes: usize, now_us: u64) {
        let last = self.under_way.back().map_or(0, |flush| flush.number);
        assert!(last < number, "flush {number} of the journal began after flush {last}");
        let had_the_disk = self.under_way.is_empty();
        self.under_way.push_back(Flush { number, bytes, since_us: now_us, had_the_disk });
        self.writing_until_us = now_us + WRITING_US;
    }

    /// Take the oldest flush if the disk has confirmed it: all up to `durable` are. Gives how long it took, in microseconds.
    pub(crate) fn next_durable(&mut self, durable: u64, now_us: u64) -> Option<u64> {
        let flush = self.under_way.pop_front_if(|flush| flush.number <= durable)?;
        let took_us = now_us.saturating_sub(flush.since_us);
        if flush.had_the_disk {
            self.quick.note(flush.bytes, took_us);
        }
        Some(took_us)
    }

    /// For how long the oldest one is under way, in microseconds.
    pub(crate) fn oldest_us(&self, now_us: u64) -> Option<u64> {
        self.under_way.front().map(|flush| now_us.saturating_sub(flush.since_us))
    }

    /// Bytes under way, if any flush is.
    pub(crate) fn bytes(&self) -> Option<usize> {
        (!self.under_way.is_empty()).then(|| self.under_way.iter().map(|flush| flush.bytes).sum())
    }

    /// Whether records are being written, so that the next flush is near.
    pub(crate) fn is_writing(&self, now_us: u64) -> bool {
        now_us < self.writing_until_us
    }

    /// What a flush of little takes on a disk that does nothing else, in microseconds; see [`QuickFlush::typical_us`].
    pub(crate) fn typical_us(&self) -> u64 {
        self.quick.typical_us()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_are_confirmed_in_their_order() {
        let mut flushes = Flushes::default();
        assert_eq!((flushes.bytes(), flushes.oldest_us(10)), (None, None));
        flushes.started(3, 100, 10);
        flushes.started(4, 50, 20);
        assert_eq!((flushes.bytes(), flushes.oldest_us(25)), (Some(150), Some(15)));
        assert_eq!(flushes.next_durable(2, 30), None);
        assert_eq!(flushes.next_durable(4, 30), Some(20));
        assert_eq!(flushes.next_durable(4, 30), Some(10));
        assert_eq!(flushes.next_durable(4, 30), None);
        assert!(flushes.is_writing(20 + WRITING_US - 1) && !flushes.is_writing(20 + WRITING_US));
    }

    #[test]
    #[should_panic(expected = "began after flush 4")]
    fn a_flush_never_comes_before_another() {
        let mut flushes = Flushes::default();
        flushes.started(4, 1, 0);
        flushes.started(4, 1, 0);
    }
}
