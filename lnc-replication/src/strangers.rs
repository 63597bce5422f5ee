//! Those who have connected and not been admitted yet: so many at once, and whoever has been longest makes place for the next.
//!
//! A member greets at once. One that waits behind as many who say nothing is not kept out by them, as it would be if the next one
//! were refused.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::sync::Notify;

/// How many are enough. Each holds a descriptor and at most a greeting's bytes.
pub const MOST: usize = 128;

/// In the order in which they came, by a number of their own.
pub(crate) struct Strangers {
    /// How many there may be, at least one.
    most: Cell<usize>,
    waiting: RefCell<VecDeque<(u64, Rc<Notify>)>>,
    next: Cell<u64>,
}

/// The place of one who is not admitted yet, until dropped.
pub(crate) struct Place<'a> {
    all: &'a Strangers,
    number: u64,
    evicted: Rc<Notify>,
}

impl Default for Strangers {
    fn default() -> Self {
        Self { most: Cell::new(MOST), waiting: RefCell::default(), next: Cell::default() }
    }
}

impl Strangers {
    /// From now on there may be so many.
    pub(crate) fn set_most(&self, most: usize) {
        self.most.set(most.clamp(1, MOST));
    }

    /// Somebody has connected. If there are too many, the first of them goes.
    pub(crate) fn enter(&self) -> Place<'_> {
        let (number, evicted) = (self.next.get(), Rc::new(Notify::new()));
        self.next.set(number + 1);
        let mut waiting = self.waiting.borrow_mut();
        if waiting.len() >= self.most.get()
            && let Some((_, longest)) = waiting.pop_front()
        {
            longest.notify_one();
        }
        waiting.push_back((number, evicted.clone()));
        Place { all: self, number, evicted }
    }
}

impl Place<'_> {
    /// Wait until somebody else takes it.
    pub(crate) async fn taken(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiting = self.all.waiting.borrow_mut();
        if let Ok(at) = waiting.binary_search_by_key(&self.number, |(number, _)| *number) {
            waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_waited_longest_goes_first_and_who_left_counts_no_more() {
        let strangers = Strangers::default();
        let mut places: VecDeque<Place<'_>> = (0..MOST).map(|_| strangers.enter()).collect();
        let is_taken =
            |place: &Place<'_>| !strangers.waiting.borrow().iter().any(|(number, _)| *number == place.number);
        assert!(!places.iter().any(is_taken));
        drop(places.pop_back());
        places.push_back(strangers.enter());
        assert!(!places.iter().any(is_taken), "there was room for it");
        places.push_back(strangers.enter());
        let gone: Vec<bool> = places.iter().map(is_taken).collect();
        assert!(gone[0] && !gone[1..].contains(&true));
        drop(places);
        assert!(strangers.waiting.borrow().is_empty());
    }
}
