//! Pauses between attempts: growing, and different for every client, so that a crowd whose broker failed does not
//! come back in step.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// The first pause. A leader is replaced within some hundred milliseconds, so starting lower only makes noise.
const FIRST: Duration = Duration::from_millis(10);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// A series of pauses, each drawn from between half and all of a span that doubles.
#[derive(Debug)]
pub(crate) struct Backoff {
    span: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        // The standard library seeds this from the operating system; it saves a dependency on a random generator.
        Backoff { span: FIRST, random: RandomState::new().build_hasher().finish() }
    }

    /// Starts over with the shortest pause.
    pub(crate) fn reset(&mut self) {
        self.span = FIRST;
    }

    /// The next pause, at least `least`.
    pub(crate) fn next(&mut self, least: Duration) -> Duration {
        // splitmix64
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let fraction = (mixed >> 11) as f64 / (1u64 << 53) as f64;
        let pause = self.span.mul_f64(0.5 + fraction / 2.0);
        self.span = (self.span * 2).min(LONGEST);
        pause.max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_limit_and_start_over() {
        let mut backoff = Backoff::new();
        let mut span = FIRST;
        for _ in 0..20 {
            let pause = backoff.next(Duration::ZERO);
            assert!(pause >= span / 2 && pause <= span, "{pause:?} outside of {span:?}");
            span = (span * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.next(Duration::ZERO) <= FIRST);
    }

    #[test]
    fn the_broker_may_ask_for_a_longer_pause() {
        let asked = Duration::from_secs(3);
        assert_eq!(Backoff::new().next(asked), asked);
    }

    #[test]
    fn two_clients_do_not_pause_alike() {
        let pauses = || {
            let mut backoff = Backoff::new();
            (0..8).map(|_| backoff.next(Duration::ZERO)).collect::<Vec<_>>()
        };
        assert_ne!(pauses(), pauses());
    }
}
