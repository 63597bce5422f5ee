//! Which partition a record goes to.
//!
//! A record that names its partition goes there. One with a key goes where the key's hash says: murmur2 with the seed
//! `0x9747b28c`, the sign bit cleared, modulo the number of partitions. Kafka's clients do the same, so producers of
//! both kinds agree on the partition of a key. Records without a key stay with one partition until its batch is sent
//! or full and then go on to the next, which fills batches better than a change with each record.

use std::sync::atomic::{AtomicU32, Ordering};

/// The partition of a key in a topic of `partitions` partitions (at least one).
pub fn partition_for_key(key: &[u8], partitions: u32) -> u32 {
    (murmur2(key) & 0x7FFF_FFFF) % partitions.max(1)
}

/// The partition that records without a key go to at the moment.
#[derive(Debug)]
pub(crate) struct Sticky {
    current: AtomicU32,
    partitions: u32,
}

impl Sticky {
    pub(crate) fn new(partitions: u32, start: u32) -> Self {
        Sticky { current: AtomicU32::new(start % partitions.max(1)), partitions: partitions.max(1) }
    }

    pub(crate) fn current(&self) -> u32 {
        self.current.load(Ordering::Relaxed)
    }

    /// Goes on to the next partition, if `from` is still the current one.
    pub(crate) fn leave(&self, from: u32) {
        let next = (from + 1) % self.partitions;
        let _ = self.current.compare_exchange(from, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// MurmurHash2, 32 bits, with the seed that Kafka's clients use.
fn murmur2(data: &[u8]) -> u32 {
    const MULTIPLIER: u32 = 0x5BD1_E995;
    let mut hash = 0x9747_B28C ^ data.len() as u32;
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut mixed = u32::from_le_bytes(*word).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0, |rest, byte| rest << 8 | u32::from(*byte));
        hash = (hash ^ rest).wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_kafkas_clients() {
        // The values that Kafka's own unit test of its hash function expects.
        let expected: [(&str, i32); 6] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ];
        for (key, hash) in expected {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn keys_spread_over_all_partitions() {
        let mut hits = [0; 7];
        for key in 0..7_000u32 {
            hits[partition_for_key(&key.to_le_bytes(), 7) as usize] += 1;
        }
        assert!(hits.iter().all(|count| (800..1200).contains(count)), "{hits:?}");
    }

    #[test]
    fn keyless_records_move_on_once_per_batch() {
        let sticky = Sticky::new(3, 2);
        assert_eq!(sticky.current(), 2);
        sticky.leave(2);
        sticky.leave(2);
        assert_eq!(sticky.current(), 0);
    }
}
