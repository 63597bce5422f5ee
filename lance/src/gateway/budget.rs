//! Memory that all connections share: nobody takes so much that others get nothing.
//!
//! Whoever holds some already may take more as long as it holds less than what is left. With `n` who want all they can get,
//! each ends up with a share of 1 / (n + 1), and as much is left for who comes next: the dynamic thresholds of Choudhury and
//! Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998. Whoever holds nothing gets what it needs as
//! soon as it is there, in the order in which they came.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use tokio::sync::Notify;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// The sum over all charges.
    charged: Cell<usize>,
    /// What others than connections say that they hold of the same memory.
    elsewhere: Cell<usize>,
    line: RefCell<VecDeque<Rc<Waiter>>>,
}

#[derive(Debug)]
struct Waiter {
    wanted: usize,
    is_granted: Cell<bool>,
    wake: Notify,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self { limit, charged: Cell::new(0), elsewhere: Cell::new(0), line: RefCell::default() })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are left.
    pub(super) fn free(&self) -> usize {
        self.limit.saturating_sub(self.used())
    }

    /// Bytes in use; a moment's work may bring them over the limit.
    pub(super) fn used(&self) -> usize {
        self.charged.get().max(self.elsewhere.get())
    }

    /// Whether less than a quarter is left, or somebody waits.
    pub(super) fn is_short(&self) -> bool {
        self.free() < self.limit / 4 || !self.line.borrow().is_empty()
    }

    /// So many bytes of the same memory are held by others, those of the charges among them.
    pub(super) fn set_elsewhere(&self, bytes: usize) {
        self.elsewhere.set(bytes);
        self.serve_line();
    }

    /// How many more somebody may take who holds `own` bytes.
    pub(super) fn room(&self, own: usize) -> usize {
        self.free().saturating_sub(self.promised()).saturating_sub(own)
    }

    /// Whether somebody who holds `own` bytes may take so many more.
    pub(super) fn allows(&self, own: usize, more: usize) -> bool {
        more <= self.room(own)
    }

    /// What the first in line waits for.
    fn promised(&self) -> usize {
        self.line.borrow().front().map_or(0, |first| first.wanted)
    }

    /// Wait until so many bytes are there. Nobody may ask for more than the limit: that much is never there.
    pub(super) async fn take(self: &Rc<Self>, bytes: usize) -> Charge {
        debug_assert!(bytes <= self.limit);
        if self.line.borrow().is_empty() && bytes <= self.free() {
            return Charge::new(self.clone(), bytes);
        }
        let waiter = Rc::new(Waiter { wanted: bytes, is_granted: Cell::new(false), wake: Notify::new() });
        self.line.borrow_mut().push_back(waiter.clone());
        let place = Place { budget: self.clone(), waiter };
        while !place.waiter.is_granted.get() {
            place.waiter.wake.notified().await;
        }
        place.granted()
    }

    fn add(&self, bytes: usize) {
        self.charged.set(self.charged.get() + bytes);
    }

    fn remove(&self, bytes: usize) {
        self.charged.set(self.charged.get() - bytes);
        self.serve_line();
    }

    /// Give what is there to those who wait for it.
    fn serve_line(&self) {
        while let Some(first) = self.line.borrow_mut().pop_front_if(|first| first.wanted <= self.free()) {
            self.add(first.wanted);
            first.is_granted.set(true);
            first.wake.notify_one();
        }
    }
}

/// A place in the line; whoever gives it up leaves nothing behind.
struct Place {
    budget: Rc<Budget>,
    waiter: Rc<Waiter>,
}

impl Place {
    fn granted(self) -> Charge {
        self.waiter.is_granted.set(false);
        // It was counted when it was granted.
        Charge { budget: self.budget.clone(), bytes: self.waiter.wanted }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.waiter.is_granted.get() {
            return self.budget.remove(self.waiter.wanted);
        }
        let before = self.budget.line.borrow().len();
        self.budget.line.borrow_mut().retain(|waiter| !Rc::ptr_eq(waiter, &self.waiter));
        if self.budget.line.borrow().len() < before {
            self.budget.serve_line();
        }
    }
}

/// Bytes of a budget, for as long as it lives.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Count so many bytes, whether or not they are there.
    pub(super) fn new(budget: Rc<Budget>, bytes: usize) -> Self {
        budget.add(bytes);
        Self { budget, bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// From now on it is for so many bytes.
    pub(super) fn set(&mut self, bytes: usize) {
        let before = std::mem::replace(&mut self.bytes, bytes);
        if bytes >= before {
            self.budget.add(bytes - before);
        } else {
            self.budget.remove(before - bytes);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.remove(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn poll(future: Pin<&mut impl Future<Output = Charge>>) -> Option<Charge> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(charge) => Some(charge),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_greedy_leave_a_share_for_who_comes_next() {
        let budget = Budget::new(1000);
        let mut greedy: Vec<Charge> = (0..9).map(|_| Charge::new(budget.clone(), 0)).collect();
        let mut took = true;
        while std::mem::take(&mut took) {
            for charge in &mut greedy {
                if budget.allows(charge.bytes(), 1) {
                    charge.set(charge.bytes() + 1);
                    took = true;
                }
            }
        }
        assert!((90..=110).contains(&budget.free()), "{}", budget.free());
        assert!(greedy.iter().all(|charge| (90..=110).contains(&charge.bytes())));
        assert!(budget.allows(0, 50) && !budget.allows(greedy[0].bytes(), 50));
    }

    #[test]
    fn a_large_one_gets_its_turn_though_small_ones_would_fit() {
        let budget = Budget::new(100);
        let first = Charge::new(budget.clone(), 90);
        let mut large = pin!(budget.take(80));
        assert!(poll(large.as_mut()).is_none());
        assert!(!budget.allows(0, 1), "what is left is kept for who waits");
        let mut small = pin!(budget.take(5));
        assert!(poll(small.as_mut()).is_none(), "first come, first served");
        drop(first);
        let (large, small) = (poll(large).unwrap(), poll(small).unwrap());
        assert_eq!((large.bytes(), small.bytes(), budget.used()), (80, 5, 85));
        drop((large, small));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn who_gives_up_waiting_leaves_nothing_behind() {
        let budget = Budget::new(100);
        let mut first = Charge::new(budget.clone(), 90);
        {
            let mut large = Box::pin(budget.take(100));
            assert!(poll(large.as_mut()).is_none());
            let mut small = pin!(budget.take(10));
            assert!(poll(small.as_mut()).is_none());
            drop(large);
            assert_eq!(poll(small).unwrap().bytes(), 10, "there is room for the next in line at once");
        }
        let mut granted = Box::pin(budget.take(50));
        assert!(poll(granted.as_mut()).is_none());
        first.set(0);
        drop(granted);
        assert_eq!((budget.used(), budget.is_short()), (0, false));
    }

    #[test]
    fn what_others_hold_counts() {
        let budget = Budget::new(100);
        let charge = Charge::new(budget.clone(), 30);
        budget.set_elsewhere(80);
        assert_eq!((budget.free(), budget.is_short()), (20, true));
        let mut waits = pin!(budget.take(60));
        assert!(poll(waits.as_mut()).is_none());
        budget.set_elsewhere(10);
        assert_eq!(poll(waits).unwrap().bytes(), 60);
        drop(charge);
    }
}
