//! Clocks that are wrong by years, and the rule that nothing is removed for its age before its time.

use super::faults::Fault;
use super::invariants::Violation;
use super::node::{EPOCH_MS, Node};
use super::rng::Rng;
use lnc_broker::command::{Command, Commands};
use lnc_log::segment::PartitionKey;
use lnc_protocol::BatchHeader;
use lnc_raft::{Entry, EntryKind};
use std::collections::{BTreeMap, VecDeque};

/// How far a clock may be off to be believed.
pub(super) const MAX_SKEW_MS: u64 = 5_000;

/// The topic whose records are removed by age, and that age.
pub(super) const AGED: &str = "aged";
pub(super) const MAX_AGE_MS: u64 = 30_000;

/// A clock that is further off than this has leapt.
const LEAP_MS: u64 = 86_400_000;

/// A clock is years off for a while.
pub(super) fn leap(rng: &mut Rng, node: u64) -> Fault {
    const YEAR_MS: i64 = 31_536_000_000;
    let by_ms = rng.pick(&[1, 10, 30, -1, -10, -30]) * YEAR_MS + rng.below(10_000) as i64;
    Fault::ClockLeap { node, by_ms, for_us: rng.pick(&[200_000, 2_000_000, 6_000_000, 15_000_000]) }
}

fn off_ms(node: &Node, now_us: u64) -> u64 {
    node.clock(now_us).wall_ms.abs_diff(EPOCH_MS + now_us / 1000)
}

/// Whether the clock of another node is years off: a minority's are, at most one.
pub(super) fn another_leapt(nodes: &[Node], node: u64, now_us: u64) -> bool {
    nodes.iter().any(|other| other.id != node && off_ms(other, now_us) > LEAP_MS)
}

/// Records of a partition up to an offset, and when the latest of them was sent.
struct Sent {
    end: u64,
    at_ms: u64,
}

/// When records of the aged topic were sent, as the log tells.
#[derive(Default)]
pub(crate) struct Ages {
    /// The highest index by group.
    applied: BTreeMap<u32, u64>,
    /// By partition, where its log ends if nothing in it is refused, and what of it is there.
    sent: BTreeMap<PartitionKey, (u64, VecDeque<Sent>)>,
    /// The furthest that what a majority says was off.
    off_ms: u64,
}

impl Ages {
    /// How right the clocks are now. A minority does not count: the median is not further off than the others.
    pub(super) fn look(&mut self, nodes: &[Node], now_us: u64) {
        let mut off: Vec<u64> = nodes.iter().map(|node| off_ms(node, now_us)).collect();
        off.sort_unstable();
        self.off_ms = self.off_ms.max(off[off.len() / 2]);
    }

    /// An entry took effect somewhere; `aged` is the topic's id once it is known.
    pub(super) fn applied(
        &mut self,
        now_us: u64,
        aged: Option<u64>,
        group: u32,
        entry: &Entry,
    ) -> Result<(), Violation> {
        let newest = self.applied.entry(group).or_default();
        if entry.kind != EntryKind::Normal || entry.index <= *newest {
            return Ok(());
        }
        *newest = entry.index;
        for command in Commands::parse(entry.payload.clone()).into_iter().flatten().flatten() {
            match command {
                Command::Append { key, batch } => {
                    let Ok(header) = BatchHeader::parse(&batch) else { continue };
                    let (end, sent) = self.sent.entry(key).or_default();
                    *end += u64::from(header.record_count);
                    sent.push_back(Sent { end: *end, at_ms: header.max_timestamp.unsigned_abs() });
                }
                Command::Trim { key, log_start_offset } if Some(key.topic_id) == aged => {
                    self.trimmed(now_us / 1000, key, log_start_offset)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What was sent is at most as old as what was appended, and lies at its place here or, if something before it was
    /// refused, at a lower one: what ends below the new start is gone.
    fn trimmed(&mut self, now_ms: u64, key: PartitionKey, start: u64) -> Result<(), Violation> {
        let slack_ms = 2 * (self.off_ms + MAX_SKEW_MS);
        let Some((_, sent)) = self.sent.get_mut(&key) else { return Ok(()) };
        while let Some(gone) = sent.pop_front_if(|sent| sent.end <= start) {
            let age_ms = now_ms.saturating_sub(gone.at_ms);
            if age_ms + slack_ms < MAX_AGE_MS {
                let what = format!(
                    "{key}: records up to {} are removed {age_ms} ms after they were sent, but are to be kept for \
                     {MAX_AGE_MS} ms, of which the clocks of a majority explain {slack_ms} ms",
                    gone.end
                );
                return Err(Violation::new("kept-for-its-time", what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lnc_broker::command::EntryBuilder;
    use lnc_protocol::{BatchBuilder, Codec};

    #[test]
    fn what_is_removed_too_early_is_found() {
        let key = PartitionKey { topic_id: 7, partition: 0 };
        let mut ages = Ages::default();
        let mut index = 0;
        let mut apply = |now_ms: u64, command: Command| {
            index += 1;
            let mut builder = EntryBuilder::default();
            builder.push(&command);
            let entry = Entry { term: 1, index, kind: EntryKind::Normal, payload: builder.finish(0) };
            ages.applied(now_ms * 1000, Some(7), 1, &entry)
        };
        for sent_ms in [1_000, 20_000] {
            let mut builder = BatchBuilder::new(Codec::None);
            builder.append(sent_ms, None, Some(b"x"), &[]).unwrap();
            apply(sent_ms as u64, Command::Append { key, batch: builder.build() }).unwrap();
        }
        let other = PartitionKey { topic_id: 8, partition: 0 };
        apply(21_000, Command::Trim { key: other, log_start_offset: 9 }).unwrap();
        apply(32_000, Command::Trim { key, log_start_offset: 1 }).unwrap();
        let found = apply(33_000, Command::Trim { key, log_start_offset: 2 }).unwrap_err();
        assert_eq!(found.invariant, "kept-for-its-time");
    }
}
