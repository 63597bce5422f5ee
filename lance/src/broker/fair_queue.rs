//! A queue that is fair in bytes: whoever asks for little does not wait behind those who ask for much.
//!
//! Deficit round robin with a list for flows that have just become busy: FQ-CoDel's scheduler, RFC 8290, section 4.2.

use std::collections::{BTreeMap, VecDeque};

/// Bytes that a flow may send each time that it is its turn.
const QUANTUM: isize = 64 << 10;

/// See the module documentation. `K` names a flow; items of a flow keep their order.
#[derive(Debug)]
pub(super) struct FairQueue<K, T> {
    /// Each is in exactly one of the two lists below.
    flows: BTreeMap<K, Flow<T>>,
    /// Flows that had nothing a moment ago: they come first, once.
    new: VecDeque<K>,
    /// All others, in turn.
    old: VecDeque<K>,
    /// The sum over all items.
    bytes: usize,
}

#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(usize, T)>,
    /// What it may still send before others come; below zero after an item that was longer.
    deficit: isize,
}

impl<K, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self { flows: BTreeMap::new(), new: VecDeque::new(), old: VecDeque::new(), bytes: 0 }
    }
}

impl<K: Ord + Copy, T> FairQueue<K, T> {
    /// Put an item of this size at the end of its flow.
    pub(super) fn push(&mut self, key: K, bytes: usize, item: T) {
        let flow = self.flows.entry(key).or_insert_with(|| {
            self.new.push_back(key);
            Flow { items: VecDeque::new(), deficit: QUANTUM }
        });
        flow.items.push_back((bytes, item));
        self.bytes += bytes;
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes == 0 && self.flows.values().all(|flow| flow.items.is_empty())
    }

    /// Take the next item, if its size is one that `fits`. One that does not keeps its place, and all others theirs.
    pub(super) fn pop_if(&mut self, fits: impl Fn(usize) -> bool) -> Option<T> {
        loop {
            let is_new = !self.new.is_empty();
            let key = *self.new.front().or(self.old.front())?;
            let flow = self.flows.get_mut(&key)?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                self.end_turn(is_new);
                continue;
            }
            let Some(&(bytes, _)) = flow.items.front() else {
                self.emptied(is_new, key);
                continue;
            };
            if !fits(bytes) {
                return None;
            }
            let (bytes, item) = flow.items.pop_front()?;
            flow.deficit -= bytes as isize;
            self.bytes -= bytes;
            return Some(item);
        }
    }

    /// The flow whose turn it is goes to the end of those that wait.
    fn end_turn(&mut self, is_new: bool) {
        let from = if is_new { &mut self.new } else { &mut self.old };
        let key = from.pop_front();
        self.old.extend(key);
    }

    /// A flow has nothing more. One from the list of new flows goes round once before it is forgotten: otherwise whoever
    /// sends one item at a time would always be first.
    fn emptied(&mut self, is_new: bool, key: K) {
        if is_new && !self.old.is_empty() {
            return self.end_turn(true);
        }
        let from = if is_new { &mut self.new } else { &mut self.old };
        from.pop_front();
        self.flows.remove(&key);
    }

    /// All items, to look at or to change.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.flows.values_mut().flat_map(|flow| flow.items.iter_mut().map(|(_, item)| item))
    }

    /// Everything that waits, flow by flow; the queue is empty then.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        let Self { flows, .. } = std::mem::take(self);
        flows.into_values().flat_map(|flow| flow.items.into_iter().map(|(_, item)| item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pop(queue: &mut FairQueue<u8, u32>) -> Option<u32> {
        queue.pop_if(|_| true)
    }

    #[test]
    fn who_asks_for_little_is_next_whoever_waits() {
        let mut queue = FairQueue::default();
        for round in 0..100 {
            for greedy in 1..=64 {
                queue.push(greedy, 900 << 10, round);
            }
        }
        for _ in 0..500 {
            pop(&mut queue);
        }
        queue.push(0, 1 << 10, 4711);
        assert_eq!(pop(&mut queue), Some(4711), "it waits for none of 64 that have asked for 90 MB each");
    }

    #[test]
    fn one_item_at_a_time_is_not_always_first() {
        let mut queue = FairQueue::default();
        for item in 0..50 {
            queue.push(1, 32 << 10, item);
        }
        let mut from_greedy = 0;
        for _ in 0..20 {
            queue.push(2, 32 << 10, 1000);
            from_greedy += u32::from(pop(&mut queue) != Some(1000));
        }
        assert!(from_greedy >= 6, "{from_greedy} of 20");
    }

    #[test]
    fn what_does_not_fit_stays_where_it_is() {
        let mut queue = FairQueue::default();
        queue.push(1, 100, 1);
        queue.push(2, 10, 2);
        assert_eq!(queue.pop_if(|bytes| bytes < 50), None);
        assert_eq!((queue.bytes(), pop(&mut queue), pop(&mut queue), queue.is_empty()), (110, Some(1), Some(2), true));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        /// Nothing is lost, a flow keeps its order, and flows that always have something get the same bytes, but for a
        /// quantum and an item.
        #[test]
        fn all_get_the_same(sizes in prop::collection::vec(prop::collection::vec(1usize..200_000, 1..40), 1..8)) {
            let mut queue = FairQueue::default();
            for (flow, items) in sizes.iter().enumerate() {
                for (position, bytes) in items.iter().enumerate() {
                    queue.push(flow, *bytes, (flow, position));
                }
            }
            let mut taken = vec![0; sizes.len()];
            let mut sent = vec![0usize; sizes.len()];
            let mut busy = true;
            while let Some((flow, position)) = queue.pop_if(|_| true) {
                prop_assert_eq!(position, taken[flow]);
                taken[flow] += 1;
                sent[flow] += sizes[flow][position];
                busy &= taken.iter().zip(&sizes).all(|(taken, items)| *taken < items.len());
                if busy {
                    let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
                    prop_assert!(most - least <= QUANTUM as usize + 2 * 200_000, "{sent:?}");
                }
            }
            prop_assert!(queue.is_empty() && queue.bytes() == 0);
            prop_assert!(taken.iter().zip(&sizes).all(|(taken, items)| *taken == items.len()));
        }
    }
}
