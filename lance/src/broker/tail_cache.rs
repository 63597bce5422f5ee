//! The newest committed batches of every partition, in memory, exactly as a reader gets them.
//!
//! What a segment file does not hold yet is only here (and in the journal), so it is never evicted; the rest goes, oldest
//! first over all partitions, once the cache is over its budget.

use bytes::Bytes;
use lnc_log::segment::PartitionKey;
use lnc_protocol::batch::BatchHeader;
use std::collections::{BTreeMap, VecDeque};

/// Consecutive batches of one partition that were committed in one entry.
struct Run {
    base_offset: u64,
    end_offset: u64,
    bytes: Bytes,
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
    partitions: BTreeMap<PartitionKey, VecDeque<Run>>,
    /// Every run in the order of its arrival. A run of a partition that is gone is skipped.
    order: VecDeque<(PartitionKey, u64)>,
}

impl TailCache {
    /// A cache that keeps about `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, bytes: 0, runs: 0, partitions: BTreeMap::new(), order: VecDeque::new() }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Add consecutive stamped batches with offsets `base_offset..end_offset`.
    pub fn append(&mut self, key: PartitionKey, base_offset: u64, end_offset: u64, bytes: Bytes) {
        self.bytes += bytes.len();
        self.runs += 1;
        self.order.push_back((key, base_offset));
        self.partitions.entry(key).or_default().push_back(Run { base_offset, end_offset, bytes });
    }

    /// Whole batches from the one that holds `offset` on: at least one, then as many as fit in `max_bytes`. `None` if
    /// that batch is not in memory.
    pub fn read(&self, key: PartitionKey, offset: u64, max_bytes: usize) -> Option<Cached> {
        let runs = self.partitions.get(&key)?;
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
        while self.bytes > self.budget {
            let Some((key, base_offset)) = self.order.front().copied() else { break };
            if let Some(runs) = self.partitions.get_mut(&key)
                && runs.front().is_some_and(|run| run.base_offset == base_offset)
            {
                if runs.front().is_some_and(|run| run.end_offset > written(key)) {
                    break;
                }
                if let Some(run) = runs.pop_front() {
                    self.bytes -= run.bytes.len();
                    self.runs -= 1;
                }
            }
            self.order.pop_front();
        }
    }

    /// The partition's log starts at `offset` now.
    pub fn trim(&mut self, key: PartitionKey, offset: u64) {
        let Some(runs) = self.partitions.get_mut(&key) else { return };
        while let Some(run) = runs.pop_front_if(|run| run.end_offset <= offset) {
            self.bytes -= run.bytes.len();
            self.runs -= 1;
        }
        self.tidy();
    }

    /// The partition is gone.
    pub fn remove(&mut self, key: PartitionKey) {
        for run in self.partitions.remove(&key).unwrap_or_default() {
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
            let partitions = &self.partitions;
            self.order.retain(|(key, base_offset)| {
                let first = partitions.get(key).and_then(|runs| runs.front());
                first.is_some_and(|run| run.base_offset <= *base_offset)
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
