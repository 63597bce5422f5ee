//! Linearizability of histories: whether concurrent calls could have happened one after the other, each at one moment
//! between its call and its return (Herlihy and Wing 1990).
//!
//! The search is Wing and Gong's (1993) with the memory of Lowe (2017): a call is placed next if none that is not placed
//! had returned before it was made, and no set of placed calls is tried twice with the same state. A call whose outcome
//! nobody knows may have happened at any time after it was made, or never.

use std::collections::BTreeSet;

/// What the calls are made to, as it should behave on its own.
pub trait Model {
    /// All that later answers depend on.
    type State: Clone + Ord;
    /// What was asked and what was answered, if anything was.
    type Operation;

    /// The state before the first call.
    fn initial(&self) -> Self::State;

    /// The states that may follow if the operation happens in this one and is answered as it was; none if that cannot be.
    fn step(&self, state: &Self::State, operation: &Self::Operation) -> Vec<Self::State>;
}

/// A call in a history. Times are in any unit, as long as one clock gave them all.
#[derive(Clone, Debug)]
pub struct Call<O> {
    /// When it was made.
    pub called: u64,
    /// When its answer came; `None` if nobody knows what came of it.
    pub returned: Option<u64>,
    /// What it was.
    pub operation: O,
}

/// What is known of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The calls could have happened in this order; those that are not in it need not have happened.
    Linearizable(Vec<usize>),
    /// They could not have happened in any order. This one, which explains the most of them, ends where none fits.
    Not(Vec<usize>),
    /// The search was given up.
    Undecided,
}

/// Look for an order of the calls, in at most so many steps. Indexes in the verdict are those of `calls`.
pub fn check<M: Model>(model: &M, calls: &[Call<M::Operation>], most_steps: u64) -> Verdict {
    let mut by_time: Vec<usize> = (0..calls.len()).collect();
    by_time.sort_by_key(|n| (calls[*n].called, calls[*n].returned.unwrap_or(u64::MAX)));
    let mut search = Search { model, calls, by_time, tried: BTreeSet::new(), steps: most_steps, best: Vec::new() };
    let (placed, order) = (&mut vec![0; calls.len().div_ceil(64)], &mut Vec::new());
    match search.place(placed, &model.initial(), order) {
        Some(true) => Verdict::Linearizable(std::mem::take(order)),
        Some(false) => Verdict::Not(search.best),
        None => Verdict::Undecided,
    }
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [Call<M::Operation>],
    /// The calls in the order in which they were made.
    by_time: Vec<usize>,
    /// Sets of placed calls that led nowhere, with the state after them.
    tried: BTreeSet<(Vec<u64>, M::State)>,
    /// Steps left.
    steps: u64,
    /// The longest order found.
    best: Vec<usize>,
}

impl<M: Model> Search<'_, M> {
    /// Whether the rest can be placed behind `order`, which then holds the whole one; `None` if the steps are used up.
    fn place(&mut self, placed: &mut Vec<u64>, state: &M::State, order: &mut Vec<usize>) -> Option<bool> {
        let is_open = |placed: &[u64], n: usize| placed[n / 64] >> (n % 64) & 1 == 0;
        let open: Vec<usize> = self.by_time.iter().copied().filter(|n| is_open(placed, *n)).collect();
        // What nobody heard of need not have happened.
        let Some(first_return) = open.iter().filter_map(|n| self.calls[*n].returned).min() else { return Some(true) };
        if order.len() > self.best.len() {
            self.best.clone_from(order);
        }
        for n in open {
            let calls = self.calls;
            let call = &calls[n];
            if call.called > first_return {
                break;
            }
            for next in self.model.step(state, &call.operation) {
                self.steps = self.steps.checked_sub(1)?;
                placed[n / 64] |= 1 << (n % 64);
                order.push(n);
                let over = match self.tried.insert((placed.clone(), next.clone())) {
                    true => self.place(placed, &next, order),
                    false => Some(false),
                };
                if over != Some(false) {
                    return over;
                }
                order.pop();
                placed[n / 64] &= !(1 << (n % 64));
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::{Cas, Read, Write};

    /// A register with the operations of the literature.
    struct Register;

    #[derive(Clone, Copy, Debug)]
    enum Operation {
        Write(u32),
        /// What was read; `None` if the answer was lost.
        Read(Option<u32>),
        /// From, to, and whether it worked, if that is known.
        Cas(u32, u32, Option<bool>),
    }

    impl Model for Register {
        type State = u32;
        type Operation = Operation;

        fn initial(&self) -> u32 {
            0
        }

        fn step(&self, state: &u32, operation: &Operation) -> Vec<u32> {
            match *operation {
                Write(value) => vec![value],
                Read(found) => found.is_none_or(|found| found == *state).then_some(*state).into_iter().collect(),
                Cas(from, to, worked) => {
                    let works = from == *state;
                    let next = if works { to } else { *state };
                    worked.is_none_or(|worked| worked == works).then_some(next).into_iter().collect()
                }
            }
        }
    }

    fn call(called: u64, returned: u64, operation: Operation) -> Call<Operation> {
        Call { called, returned: Some(returned), operation }
    }

    fn lost(called: u64, operation: Operation) -> Call<Operation> {
        Call { called, returned: None, operation }
    }

    fn verdict(calls: &[Call<Operation>]) -> Verdict {
        check(&Register, calls, 100_000)
    }

    fn holds(calls: &[Call<Operation>]) -> bool {
        match verdict(calls) {
            Verdict::Linearizable(_) => true,
            Verdict::Not(_) => false,
            Verdict::Undecided => panic!("undecided"),
        }
    }

    #[test]
    fn good_histories() {
        assert!(holds(&[]));
        assert!(holds(&[call(0, 1, Write(1)), call(2, 3, Read(Some(1)))]));
        // A read beside a write may see it or not, and two reads may see it one after the other.
        let write = call(0, 100, Write(1));
        assert!(holds(&[write.clone(), call(10, 20, Read(Some(0))), call(30, 40, Read(Some(1)))]));
        // The order of two writes that overlap is what reads say it is.
        for last in [1, 2] {
            assert!(holds(&[call(0, 10, Write(1)), call(0, 10, Write(2)), call(20, 30, Read(Some(last)))]));
        }
        // Of two compare-and-swaps from one value, one works.
        assert!(holds(&[call(0, 9, Cas(0, 1, Some(true))), call(0, 9, Cas(0, 2, Some(false)))]));
    }

    #[test]
    fn bad_histories() {
        let write = call(0, 100, Write(1));
        // New, then old again.
        assert!(!holds(&[write.clone(), call(10, 20, Read(Some(1))), call(30, 40, Read(Some(0)))]));
        // A stale read after the write has returned.
        assert!(!holds(&[call(0, 1, Write(1)), call(2, 3, Read(Some(0)))]));
        // Out of thin air.
        assert!(!holds(&[call(0, 1, Read(Some(7)))]));
        // Two readers that see two writes in different orders.
        let writes = [call(0, 10, Write(1)), call(0, 10, Write(2))];
        let reads = [call(20, 30, Read(Some(1))), call(40, 50, Read(Some(2)))];
        assert!(!holds(&[&writes[..], &reads[..]].concat()));
        // Both compare-and-swaps from one value work.
        assert!(!holds(&[call(0, 9, Cas(0, 1, Some(true))), call(0, 9, Cas(0, 2, Some(true)))]));
    }

    #[test]
    fn what_nobody_heard_of_happened_late_or_never_but_not_early() {
        for (read, holds_too) in [(0, true), (1, true), (2, false)] {
            assert_eq!(holds(&[lost(5, Write(1)), call(90, 91, Read(Some(read)))]), holds_too, "{read}");
        }
        assert!(!holds(&[call(0, 1, Read(Some(1))), lost(5, Write(1))]));
        assert!(holds(&[lost(0, Cas(0, 1, None)), call(5, 6, Read(None)), call(7, 8, Read(Some(1)))]));
    }

    #[test]
    fn the_order_is_one_that_explains_the_answers() {
        let calls = [call(0, 100, Write(1)), call(10, 20, Read(Some(0))), call(30, 40, Read(Some(1)))];
        assert_eq!(verdict(&calls), Verdict::Linearizable(vec![1, 0, 2]));
        let calls = [call(0, 1, Write(1)), call(2, 3, Read(Some(1))), call(4, 5, Read(Some(9)))];
        assert_eq!(verdict(&calls), Verdict::Not(vec![0, 1]));
    }

    #[test]
    fn a_search_that_takes_too_long_is_given_up() {
        // Every subset of the writes leads to a state of its own, and none explains the read.
        let mut calls: Vec<_> = (1..=18).map(|n| call(0, 100, Write(n))).collect();
        calls.push(call(200, 201, Read(Some(99))));
        assert_eq!(check(&Register, &calls, 1_000), Verdict::Undecided);
    }

    /// Histories made by a register that works are linearizable, and are not any more once an answer is made up.
    #[test]
    fn random_histories() {
        let mut random = 1u64;
        let mut below = |bound: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % bound
        };
        for _ in 0..300 {
            let (mut value, mut calls) = (0, Vec::new());
            for moment in (100..2_000).step_by(20) {
                let operation = match below(3) {
                    0 => Write(below(4) as u32),
                    1 => Read(Some(value)),
                    _ => {
                        let from = below(4) as u32;
                        Cas(from, below(4) as u32, Some(from == value))
                    }
                };
                value = match operation {
                    Write(to) | Cas(_, to, Some(true)) => to,
                    Read(_) | Cas(..) => value,
                };
                calls.push(call(moment - below(60), moment + below(60), operation));
            }
            assert!(holds(&calls));
            let read = calls.iter_mut().find(|call| matches!(call.operation, Read(_)));
            if let Some(call) = read {
                call.operation = Read(Some(77));
                assert!(!holds(&calls));
            }
        }
    }
}
