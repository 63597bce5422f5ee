//! The newest committed batches of every partition, in memory, exactly as a reader gets them.
//!
//! What a segment file does not hold yet is only here (and in the journal), so it is never evicted; the rest goes, about oldest
//! first over all partitions, once the cache is over its budget. "About", since what came to one partition within a short
//! stretch goes together: with many partitions, to look each of them up for every run would cost more than all else here.

use bytes::Bytes;
use lnc_log::segment::PartitionKey;
use lnc_protocol::batch::BatchHeader;
use std::collections::{BTreeMap, VecDeque};

/// Consecutive batches of one partition that were committed in one entry.
struct Run {
    base_offset: u64,
    end_offset: u64,
    /// Bytes that had come to all partitions before it.
    arrived: u64,
    bytes: Bytes,
}

#[derive(Default)]
struct Partition {
    runs: VecDeque<Run>,
    /// Where its newest stretch in the order of eviction begins.
    stretch: Option<u64>,
}

/// Whole batches, at least one, one behind the other.
#[derive(Debug)]
pub struct Cached {
    /// The offset of the first record.
    pub base_offset: u64,
    /// The offset after the last record.
    pub end_offset: u64,
    /// Their bytes, a piece for each entry that brought some.
    pub pieces: Vec<Bytes>,
}

/// See the module documentation.
pub struct TailCache {
    budget: usize,
    bytes: usize,
    /// Number of runs held.
    runs: usize,
    /// Bytes that have ever come.
    arrived: u64,
    partitions: BTreeMap<PartitionKey, Partition>,
    /// The stretches of all partitions, each by where it begins, in the order of their arrival. One whose runs are gone is
    /// skipped.
    order: VecDeque<(PartitionKey, u64)>,
}

impl TailCache {
    /// A cache that keeps about `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, bytes: 0, runs: 0, arrived: 0, partitions: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Length of a stretch in bytes that have come to all partitions.
    fn stretch(&self) -> u64 {
        (self.budget as u64 / 16).max(1)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Add consecutive stamped batches with offsets `base_offset..end_offset`.
    pub fn append(&mut self, key: PartitionKey, base_offset: u64, end_offset: u64, bytes: Bytes) {
        let (arrived, length) = (self.arrived, self.stretch());
        self.arrived += bytes.len() as u64;
        self.bytes += bytes.len();
        self.runs += 1;
        let partition = self.partitions.entry(key).or_default();
        if partition.stretch.is_none_or(|start| arrived >= start + length) {
            partition.stretch = Some(arrived);
            self.order.push_back((key, arrived));
        }
        partition.runs.push_back(Run { base_offset, end_offset, arrived, bytes });
    }

    /// Whole batches from the one that holds `offset` on: at least one, then as many as fit in `max_bytes`. `None` if
    /// that batch is not in memory.
    pub fn read(&self, key: PartitionKey, offset: u64, max_bytes: usize) -> Option<Cached> {
        let runs = &self.partitions.get(&key)?.runs;
        let first = runs.partition_point(|run| run.end_offset <= offset);
        let run = runs.get(first).filter(|run| run.base_offset <= offset)?;
        let mut base_offset = run.base_offset;
        let mut skip = 0;
        for (_, end, end_offset) in batches(&run.bytes).take_while(|(_, _, end_offset)| *end_offset <= offset) {
            (skip, base_offset) = (end, end_offset);
        }
        let mut found = Cached { base_offset, end_offset: base_offset, pieces: Vec::new() };
        let mut total = 0;
        for (i, run) in runs.iter().skip(first).enumerate() {
            let rest = run.bytes.slice(if i == 0 { skip } else { 0 }..);
            let room = max_bytes.saturating_sub(total);
            if rest.len() <= room {
                total += rest.len();
                found.end_offset = run.end_offset;
                found.pieces.push(rest);
                continue;
            }
            let fits = batches(&rest).take_while(|(_, end, _)| *end <= room).last();
            let at_least = || batches(&rest).next().filter(|_| total == 0);
            if let Some((_, end, end_offset)) = fits.or_else(at_least) {
                found.end_offset = end_offset;
                found.pieces.push(rest.slice(..end));
            }
            break;
        }
        (!found.pieces.is_empty()).then_some(found)
    }

    /// Forget what exceeds the budget and can be read from segments: everything below `written(key)`.
    pub fn evict(&mut self, written: impl Fn(PartitionKey) -> u64) {
        let length = self.stretch();
        while self.bytes > self.budget {
            let Some((key, start)) = self.order.front().copied() else { break };
            if let Some(partition) = self.partitions.get_mut(&key) {
                let written = written(key);
                while let Some(run) = partition.runs.front().filter(|run| run.arrived < start + length) {
                    if run.end_offset > written || self.bytes <= self.budget {
                        return;
                    }
                    self.bytes -= run.bytes.len();
                    self.runs -= 1;
                    partition.runs.pop_front();
                }
                partition.stretch.take_if(|newest| *newest == start);
            }
            self.order.pop_front();
        }
    }

    /// The partition's log starts at `offset` now.
    pub fn trim(&mut self, key: PartitionKey, offset: u64) {
        let Some(partition) = self.partitions.get_mut(&key) else { return };
        while let Some(run) = partition.runs.pop_front_if(|run| run.end_offset <= offset) {
            self.bytes -= run.bytes.len();
            self.runs -= 1;
        }
        self.tidy();
    }

    /// The partition is gone.
    pub fn remove(&mut self, key: PartitionKey) {
        for run in self.partitions.remove(&key).unwrap_or_default().runs {
            self.bytes -= run.bytes.len();
            self.runs -= 1;
        }
        self.tidy();
    }

    /// Drop what `order` still says of runs that are gone, once that is most of it.
    fn tidy(&mut self) {
        /// Entries that are not worth the work.
        const FEW: usize = 1024;
        if self.order.len() > 2 * self.runs + FEW {
            let (partitions, length) = (&self.partitions, self.stretch());
            self.order.retain(|(key, start)| {
                partitions.get(key).is_some_and(|partition| {
                    let first = partition.runs.front();
                    partition.stretch == Some(*start) || first.is_some_and(|run| run.arrived < start + length)
                })
            });
        }
    }
}

/// The batches in stamped bytes: start position, end position, end offset. Stops at what does not parse.
fn batches(bytes: &Bytes) -> impl Iterator<Item = (usize, usize, u64)> + '_ {
    let mut position = 0;
    std::iter::from_fn(move || {
        let header = BatchHeader::parse(bytes.get(position..)?).ok()?;
        let start = position;
        position += header.total_len();
        Some((start, position, header.base_offset + u64::from(header.last_offset_delta) + 1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use lnc_protocol::batch::{BatchBuilder, stamped_prefix};
    use lnc_protocol::codec::Codec;

    const KEY: PartitionKey = PartitionKey { topic_id: 1, partition: 0 };

    /// `count` one-record batches from `base` on.
    fn run(base: u64, count: u64) -> Bytes {
        let mut out = BytesMut::new();
        for offset in base..base + count {
            let mut builder = BatchBuilder::new(Codec::None);
            builder.append(1, None, Some(format!("{offset}").as_bytes()), &[]).unwrap();
            let raw = builder.build();
            out.extend_from_slice(&stamped_prefix(&raw, offset, 1));
            out.extend_from_slice(&raw[16..]);
        }
        out.freeze()
    }

    fn offsets(found: &Cached) -> Vec<u64> {
        let offsets = found.pieces.iter().flat_map(|piece| batches(piece).map(|(_, _, end)| end - 1)).collect();
        assert_eq!(offsets, (found.base_offset..found.end_offset).collect::<Vec<_>>());
        offsets
    }

    fn cache(budget: usize) -> TailCache {
        let mut cache = TailCache::new(budget);
        cache.append(KEY, 0, 4, run(0, 4));
        cache.append(KEY, 4, 8, run(4, 4));
        cache
    }

    #[test]
    fn reads_start_at_the_batch_of_the_offset_and_stop_at_the_limit() {
        let cache = cache(usize::MAX);
        let one = run(0, 1).len();
        assert_eq!(offsets(&cache.read(KEY, 2, usize::MAX).unwrap()), [2, 3, 4, 5, 6, 7]);
        assert_eq!(offsets(&cache.read(KEY, 2, one * 3).unwrap()), [2, 3, 4]);
        assert_eq!(offsets(&cache.read(KEY, 5, 1).unwrap()), [5], "at least one");
        assert!(cache.read(KEY, 8, 100).is_none());
    }

    #[test]
    fn only_what_segments_hold_is_evicted() {
        let mut cache = cache(0);
        cache.evict(|_| 3);
        assert!(cache.read(KEY, 0, 1).is_some());
        cache.evict(|_| 4);
        assert!(cache.read(KEY, 3, 1).is_none());
        assert!(cache.read(KEY, 4, 1).is_some());
        cache.evict(|_| 8);
        assert_eq!(cache.bytes(), 0);
    }

    /// Whatever comes in whatever order, no run stays for ever, none goes that is only here, and the oldest goes first.
    #[test]
    fn many_partitions_share_the_budget_by_age() {
        let key = |n: u64| PartitionKey { topic_id: n, partition: 0 };
        let one = run(0, 1).len();
        let mut cache = TailCache::new(100 * one);
        for round in 0..50 {
            for n in 0..20 {
                cache.append(key(n), round, round + 1, run(round, 1));
                cache.evict(|_| u64::MAX);
                assert!(cache.bytes() <= 100 * one);
            }
        }
        // The last 100 runs are those of the last five rounds, give or take a stretch of the order.
        for n in 0..20 {
            assert!(cache.read(key(n), 40, 1).is_none(), "partition {n} keeps what is old");
            assert!(cache.read(key(n), 47, 1).is_some(), "partition {n} lacks what is new");
        }
        cache.append(key(99), 0, 1, run(0, 1));
        for n in 0..20 {
            cache.append(key(n), 50, 60, run(50, 10));
        }
        cache.evict(|key| if key.topic_id == 99 { 0 } else { u64::MAX });
        assert!(cache.read(key(99), 0, 1).is_some(), "nothing else holds it");
        cache.evict(|_| u64::MAX);
        assert!(cache.read(key(99), 0, 1).is_none() && cache.bytes() <= 100 * one);
    }

    #[test]
    fn what_is_trimmed_leaves_no_traces() {
        let mut cache = TailCache::new(usize::MAX);
        for base in 0..10_000 {
            cache.append(KEY, base, base + 1, run(base, 1));
            cache.trim(KEY, base);
        }
        assert!(cache.order.len() < 3000, "{} entries", cache.order.len());
        assert!(cache.read(KEY, 9_999, 1).is_some());
    }

    #[test]
    fn a_removed_partition_leaves_nothing() {
        let mut cache = cache(0);
        cache.trim(KEY, 4);
        assert!(cache.read(KEY, 3, 1).is_none());
        cache.remove(KEY);
        assert_eq!(cache.bytes(), 0);
        cache.evict(|_| 0);
        assert!(cache.order.is_empty() || cache.bytes() == 0);
    }
}
