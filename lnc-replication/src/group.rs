//! One Raft group as its shard keeps it: the consensus core, and where each of its entries lies in the journal.

use crate::shard::within;
use lnc_log::journal::Location;
use lnc_raft::{Index, Raft};
use std::collections::VecDeque;

/// A group of a shard.
pub(crate) struct Group {
    pub(crate) raft: Raft,
    pub(crate) locations: Locations,
}

/// Where the entries of a group lie in the journal: a contiguous run of indexes.
#[derive(Default)]
pub(crate) struct Locations {
    first: Index,
    places: VecDeque<Location>,
}

impl Locations {
    /// Note where `index` lies; forgets everything that it replaces.
    pub(crate) fn put(&mut self, index: Index, place: Location) {
        if self.places.is_empty() {
            self.first = index;
        }
        assert!(
            index >= self.first && index <= self.first + self.places.len() as u64,
            "entry {index} does not follow the journal's entries {}..{}",
            self.first,
            self.first + self.places.len() as u64
        );
        self.places.truncate((index - self.first) as usize);
        self.places.push_back(place);
    }

    /// The first entry; means nothing if there is none.
    pub(crate) fn first(&self) -> Index {
        self.first
    }

    /// The index after the last entry; 0 if there is none.
    pub(crate) fn end(&self) -> Index {
        self.first + self.places.len() as u64
    }

    /// Where `index` lies, if the journal still has it.
    pub(crate) fn get(&self, index: Index) -> Option<Location> {
        index.checked_sub(self.first).and_then(|at| self.places.get(at as usize)).copied()
    }

    /// The places of entries from `index` on and below `end`, as many as fit in `max_bytes` but at least one if there is
    /// any.
    pub(crate) fn run(&self, index: Index, end: Index, max_bytes: usize) -> Vec<Location> {
        let Some(skip) = index.checked_sub(self.first) else { return Vec::new() };
        let count = end.saturating_sub(index) as usize;
        let places = self.places.iter().skip(skip as usize).take(count).copied();
        within(places, |place| place.len as usize, max_bytes)
    }

    /// Forget entries up to and including `index`.
    pub(crate) fn forget(&mut self, index: Index) {
        while !self.places.is_empty() && self.first <= index {
            self.places.pop_front();
            self.first += 1;
        }
    }
}
