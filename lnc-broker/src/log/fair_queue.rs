//! A queue that is fair in bytes: whoever asks for little does not wait behind those who ask for much.
//!
//! Fair queueing by virtual time: each item is tagged with the time at which it would begin and end if all flows were served bit
//! by bit at once, and the one that would end first is next. The clock is that of WF2Q+ (Bennett and Zhang, "Hierarchical Packet
//! Fair Queueing Algorithms", 1997). A flow that has had little gets what it asks for next at once, however long the items of
//! others are; round robin, which lets each flow save up for a long item, would serve all long ones in a row when they have.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// See the module documentation. `K` names a flow; items of a flow keep their order.
#[derive(Debug)]
pub(crate) struct FairQueue<K, T> {
    /// Those that have items, and those that have had so many bytes that they are behind others for a while.
    flows: BTreeMap<K, Flow<T>>,
    /// The flows that have items, by when the first would begin; and by when it would end.
    begins: BTreeSet<(u64, K)>,
    ends: BTreeSet<(u64, K)>,
    /// The flows that have none, by when their last item would end: they are forgotten once that is over.
    idle: BTreeSet<(u64, K)>,
    /// Virtual time: the bytes that each flow which always had something would have had by now.
    now: u64,
    /// The sum over all items.
    bytes: usize,
}

#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(usize, T)>,
    /// When its first item would begin, or where there is none, its last one would have ended.
    at: u64,
}

impl<K: Ord, T> Default for FairQueue<K, T> {
    fn default() -> Self {
        Self {
            flows: BTreeMap::new(),
            begins: BTreeSet::new(),
            ends: BTreeSet::new(),
            idle: BTreeSet::new(),
            now: 0,
            bytes: 0,
        }
    }
}

impl<K: Ord + Copy, T> FairQueue<K, T> {
    /// Put an item of this size at the end of its flow.
    pub(crate) fn push(&mut self, key: K, bytes: usize, item: T) {
        let now = self.now;
        let flow = self.flows.entry(key).or_insert_with(|| Flow { items: VecDeque::new(), at: now });
        if flow.items.is_empty() {
            self.idle.remove(&(flow.at, key));
            flow.at = flow.at.max(now);
            self.begins.insert((flow.at, key));
            self.ends.insert((flow.at + bytes as u64, key));
        }
        flow.items.push_back((bytes, item));
        self.bytes += bytes;
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The size of the next item.
    pub(crate) fn next_bytes(&self) -> Option<usize> {
        let (_, key) = self.ends.first()?;
        self.flows.get(key)?.items.front().map(|(bytes, _)| *bytes)
    }

    /// Take the next item, if its size is one that `fits`. One that does not keeps its place, and all others theirs.
    pub(crate) fn pop_if(&mut self, fits: impl Fn(usize) -> bool) -> Option<T> {
        let &(end, key) = self.ends.first()?;
        let flow = self.flows.get_mut(&key)?;
        let (bytes, item) = flow.items.pop_front_if(|(bytes, _)| fits(*bytes))?;
        self.ends.remove(&(end, key));
        self.begins.remove(&(flow.at, key));
        flow.at = end;
        let busy = self.begins.len() as u64 + 1;
        match flow.items.front() {
            Some((next, _)) => {
                self.begins.insert((end, key));
                self.ends.insert((end + *next as u64, key));
            }
            None => drop(self.idle.insert((end, key))),
        }
        self.bytes -= bytes;
        self.advance(bytes as u64 / busy);
        Some(item)
    }

    /// So many bytes have been served of each flow. Where all would begin later, it is as late as that.
    fn advance(&mut self, bytes: u64) {
        let earliest = self.begins.first().map_or(0, |(begin, _)| *begin);
        self.now = (self.now + bytes).max(earliest);
        while let Some(&(end, key)) = self.idle.first().filter(|(end, _)| *end <= self.now) {
            self.idle.remove(&(end, key));
            self.flows.remove(&key);
        }
    }

    /// All items, to look at or to change.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.flows.values_mut().flat_map(|flow| flow.items.iter_mut().map(|(_, item)| item))
    }

    /// Everything that waits, flow by flow; the queue is empty then.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        let Self { flows, .. } = std::mem::take(self);
        flows.into_values().flat_map(|flow| flow.items.into_iter().map(|(_, item)| item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn who_sends_one_at_a_time_gets_no_more_than_its_share() {
        let mut queue = FairQueue::default();
        for item in 0..100 {
            queue.push(1, 32 << 10, item);
        }
        let mut from_greedy = 0;
        for _ in 0..100 {
            queue.push(2, 32 << 10, 1000);
            from_greedy += u32::from(pop(&mut queue) != Some(1000));
        }
        assert!((45..=55).contains(&from_greedy), "{from_greedy} of 100");
    }

    #[test]
    fn those_who_come_for_the_first_time_do_not_keep_out_who_waits() {
        let mut queue = FairQueue::default();
        queue.push(0, 900 << 10, 4711);
        for newcomer in 1..=u8::MAX {
            queue.push(newcomer, 16 << 10, 0);
            if pop(&mut queue) == Some(4711) {
                assert!(newcomer > 50, "{newcomer}");
                return;
            }
        }
        panic!("it waits for ever");
    }

    #[test]
    fn many_who_ask_for_much_are_not_served_in_a_row() {
        let mut queue = FairQueue::default();
        for round in 0..20 {
            for greedy in 1..=64 {
                queue.push(greedy, 900 << 10, round);
            }
        }
        for _ in 0..300 {
            queue.push(0, 1 << 10, 4711);
            assert_eq!(pop(&mut queue), Some(4711));
            pop(&mut queue);
        }
    }

    #[test]
    fn flows_are_forgotten() {
        let mut queue = FairQueue::default();
        for flow in 0..=u8::MAX {
            queue.push(flow, 1000, 0);
        }
        while pop(&mut queue).is_some() {}
        (0..1000).for_each(|_| {
            queue.push(7, 1000, 0);
            pop(&mut queue);
        });
        assert!(queue.flows.len() <= 1 && queue.idle.len() <= 1, "{}", queue.flows.len());
    }

    #[test]
    fn what_does_not_fit_stays_where_it_is() {
        let mut queue = FairQueue::default();
        queue.push(1, 100, 1);
        queue.push(2, 10, 2);
        assert_eq!(queue.pop_if(|bytes| bytes > 50), None, "the other one would, and is not next");
        assert_eq!((queue.bytes(), pop(&mut queue), pop(&mut queue), queue.is_empty()), (110, Some(2), Some(1), true));
    }

    /// Nothing is lost, a flow keeps its order, and flows that always have something get the same bytes, but for two items.
    #[test]
    fn all_get_the_same() {
        (0..500).for_each(|seed| share_of_each(&mut Dice(seed)));
    }

    /// A simple generator: what it draws depends on the seed alone (SplitMix64).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, below: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut drawn = self.0;
            drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((drawn ^ (drawn >> 31)) % below as u64) as usize
        }
    }

    fn share_of_each(dice: &mut Dice) {
        let flows = 1 + dice.roll(7);
        let sizes: Vec<Vec<usize>> =
            (0..flows).map(|_| (0..1 + dice.roll(39)).map(|_| 1 + dice.roll(199_999)).collect()).collect();
        let mut queue = FairQueue::default();
        for (flow, items) in sizes.iter().enumerate() {
            for (position, bytes) in items.iter().enumerate() {
                queue.push(flow, *bytes, (flow, position));
            }
        }
        let (mut taken, mut sent) = (vec![0; flows], vec![0usize; flows]);
        let mut busy = true;
        while let Some((flow, position)) = queue.pop_if(|_| true) {
            assert_eq!(position, taken[flow]);
            taken[flow] += 1;
            sent[flow] += sizes[flow][position];
            busy &= taken.iter().zip(&sizes).all(|(taken, items)| *taken < items.len());
            if busy {
                let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
                assert!(most - least <= 2 * 200_000, "{sent:?}");
            }
        }
        assert!(queue.is_empty() && queue.bytes() == 0);
        assert!(taken.iter().zip(&sizes).all(|(taken, items)| *taken == items.len()));
    }
}
