//! What a flush held, in short: a copy of the identity of its records, carried by the flushes after it.
//!
//! A record whose bytes are lost below the durable mark must not be taken for one that was never there: it may have been
//! acknowledged. Its copy says which entry of which group it was, so that it can be fetched from a peer that has it
//! (Alagappan et al., *Protocol-Aware Recovery for Consensus-Based Storage*, FAST 2018), and what term and vote were.

use super::GroupId;
use super::format::{Body, Record};
use crate::disk::BLOCK;
use bytes::{Buf, Bytes};
use std::collections::{BTreeMap, VecDeque};

/// Flushes that each flush carries copies of: more than may be in flight, so that what attests a flush knows it.
const COPIES: usize = 6;

/// Entries of one group, in the order of their records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// `count` entries from `first` on.
    Run { term: u64, first: u64, count: u64 },
    /// The group's log restarts after `index`.
    Restart { term: u64, index: u64 },
}

/// What a flush held of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupSummary {
    /// The last term and vote.
    pub(super) hard_state: Option<(u64, Option<u64>)>,
    pub(super) items: Vec<Item>,
}

/// What a flush held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) number: u64,
    pub(super) file: u64,
    pub(super) position: u64,
    /// Its length with padding.
    pub(super) len: u64,
    pub(super) groups: BTreeMap<GroupId, GroupSummary>,
}

impl Summary {
    pub(super) fn hard_state(&mut self, group: GroupId, term: u64, vote: Option<u64>) {
        self.groups.entry(group).or_default().hard_state = Some((term, vote));
    }

    pub(super) fn restart(&mut self, group: GroupId, term: u64, index: u64) {
        self.groups.entry(group).or_default().items.push(Item::Restart { term, index });
    }

    pub(super) fn entry(&mut self, group: GroupId, term: u64, index: u64) {
        let items = &mut self.groups.entry(group).or_default().items;
        match items.last_mut() {
            Some(Item::Run { term: last, first, count }) if *last == term && *first + *count == index => *count += 1,
            _ => items.push(Item::Run { term, first: index, count: 1 }),
        }
    }

    /// Note a record that was read.
    pub(super) fn record(&mut self, record: &Record) {
        match &record.body {
            Body::Entry { term, index, .. } => self.entry(record.group, *term, *index),
            Body::HardState { term, vote } => self.hard_state(record.group, *term, *vote),
            Body::Checkpoint { term, index } => self.restart(record.group, *term, *index),
            Body::Identities { .. } | Body::Owner(_) => {}
        }
    }

    fn len_encoded(&self) -> usize {
        36 + self.groups.values().map(|group| 26 + group.items.len() * 25).sum::<usize>()
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.number, self.file, self.position, self.len] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&(self.groups.len() as u32).to_le_bytes());
        for (group, summary) in &self.groups {
            out.extend_from_slice(&group.0.to_le_bytes());
            // 0: no hard state; 1: no vote in the term; 2: a vote.
            let (kind, term, vote) = match summary.hard_state {
                None => (0, 0, 0),
                Some((term, None)) => (1, term, 0),
                Some((term, Some(vote))) => (2, term, vote),
            };
            out.push(kind);
            out.extend_from_slice(&term.to_le_bytes());
            out.extend_from_slice(&vote.to_le_bytes());
            out.push(0);
            out.extend_from_slice(&(summary.items.len() as u32).to_le_bytes());
            for item in &summary.items {
                let (kind, numbers) = match *item {
                    Item::Run { term, first, count } => (0, [term, first, count]),
                    Item::Restart { term, index } => (1, [term, index, 0]),
                };
                out.push(kind);
                numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
            }
        }
    }

    fn decode(from: &mut Bytes) -> Option<Self> {
        let mut summary = Self {
            number: from.try_get_u64_le().ok()?,
            file: from.try_get_u64_le().ok()?,
            position: from.try_get_u64_le().ok()?,
            len: from.try_get_u64_le().ok()?,
            groups: BTreeMap::new(),
        };
        for _ in 0..from.try_get_u32_le().ok()? {
            let group = GroupId(from.try_get_u32_le().ok()?);
            let (kind, term) = (from.try_get_u8().ok()?, from.try_get_u64_le().ok()?);
            let (vote, _) = (from.try_get_u64_le().ok()?, from.try_get_u8().ok()?);
            let hard_state = match kind {
                0 => None,
                1 => Some((term, None)),
                _ => Some((term, Some(vote))),
            };
            let mut items = Vec::new();
            for _ in 0..from.try_get_u32_le().ok()? {
                let kind = from.try_get_u8().ok()?;
                let mut number = || from.try_get_u64_le().ok();
                let (a, b, c) = (number()?, number()?, number()?);
                items.push(match kind {
                    0 => Item::Run { term: a, first: b, count: c },
                    _ => Item::Restart { term: a, index: b },
                });
            }
            summary.groups.insert(group, GroupSummary { hard_state, items });
        }
        Some(summary)
    }
}

/// The summaries of the latest flushes.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    summaries: VecDeque<Summary>,
    /// The sum of their encoded lengths: it is asked for with every entry that is staged.
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, summary: Summary) {
        self.bytes += summary.len_encoded();
        self.summaries.push_back(summary);
        while self.summaries.len() > COPIES {
            let oldest = self.summaries.pop_front();
            self.bytes -= oldest.map_or(0, |oldest| oldest.len_encoded());
        }
    }

    /// Bytes of [`Recent::encode`].
    pub(super) fn len_encoded(&self) -> usize {
        1 + self.bytes
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.len_encoded());
        out.push(self.summaries.len() as u8);
        self.summaries.iter().for_each(|summary| summary.encode(&mut out));
        debug_assert_eq!(out.len(), self.len_encoded());
        out
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let count = bytes.try_get_u8().ok()?;
        let summaries = (0..count).map(|_| Summary::decode(&mut bytes)).collect::<Option<VecDeque<_>>>()?;
        let sum = summaries.iter().map(Summary::len_encoded).sum();
        (!bytes.has_remaining()).then_some(Self { summaries, bytes: sum })
    }

    /// The summaries of all flushes from `first` (or, if that is not known, from the one at the start of `file`) up to
    /// the one before `end`; `None` if one of them is not here.
    pub(super) fn between(&self, first: Option<u64>, file: u64, end: u64) -> Option<Vec<Summary>> {
        let at_start = || self.summaries.iter().find(|summary| summary.file == file && summary.position == 0);
        let first = first.or_else(|| at_start().map(|summary| summary.number))?;
        (first..end).map(|number| self.summaries.iter().find(|summary| summary.number == number).cloned()).collect()
    }
}

/// Length of a flush with its padding.
pub(super) fn padded(len: usize) -> u64 {
    len.next_multiple_of(BLOCK) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_survive_the_trip_and_no_cut_one_does() {
        let mut summary = Summary { number: 7, file: 2, position: 4096, len: 8192, ..Summary::default() };
        summary.hard_state(GroupId(1), 3, Some(9));
        summary.hard_state(GroupId(2), 3, None);
        for (term, index) in [(3, 10), (3, 11), (4, 12), (4, 11)] {
            summary.entry(GroupId(1), term, index);
        }
        summary.restart(GroupId(3), 2, 50);
        let run = |term, first, count| Item::Run { term, first, count };
        assert_eq!(summary.groups[&GroupId(1)].items, [run(3, 10, 2), run(4, 12, 1), run(4, 11, 1)]);
        let mut recent = Recent::default();
        recent.push(summary.clone());
        recent.push(Summary { number: 8, ..Summary::default() });
        let bytes = Bytes::from(recent.encode());
        assert_eq!(bytes.len(), recent.len_encoded());
        let mut many = recent.clone();
        for number in 9..30 {
            many.push(Summary { number, ..summary.clone() });
            assert_eq!(many.encode().len(), many.len_encoded());
            assert!(many.summaries.len() <= COPIES);
        }
        let back = Recent::decode(bytes.clone()).expect("whole");
        assert_eq!(back.between(Some(7), 0, 9).map(|found| found.len()), Some(2));
        assert_eq!(back.between(None, 2, 8), None, "it does not lie at the start of the file");
        assert_eq!(back.between(Some(6), 0, 9), None);
        for len in 0..bytes.len() {
            assert!(Recent::decode(bytes.slice(..len)).is_none(), "cut to {len}");
        }
    }
}
