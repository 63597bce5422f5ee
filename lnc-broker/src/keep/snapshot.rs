//! The state of a group as it was at one moment, encoded for a checkpoint piece by piece while the group goes on.
//!
//! ```text
//! meta group   the catalog
//! data group   what `partitions.rs` encodes | number of partitions 4 | for each: topic 8, partition 4, segment size 9,
//!              length 4, what the segments hold of it
//! ```

use crate::machines::command::put_optional;
use crate::machines::partitions::PartitionGroup;
use bytes::{BufMut, BytesMut};
use lnc_log::checkpoint::GroupCheckpoint;
use lnc_log::segment::{PartitionKey, PartitionState};
use std::collections::BTreeMap;

/// Bytes of a partition beside what its segments hold.
const STORED_HEAD: usize = 25;

/// How far the encoding of a data group has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Head,
    /// The partitions behind this one are next.
    Partitions(Option<PartitionKey>),
    Deleted,
    /// What the segments hold of the partitions behind this one is next.
    Stored(Option<PartitionKey>),
    Done,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// All but the state.
    head: GroupCheckpoint,
    state: PartitionGroup,
    stored: BTreeMap<PartitionKey, PartitionState>,
    step: Step,
    out: BytesMut,
}

impl Snapshot {
    /// Of the meta group, whose catalog is encoded.
    pub(crate) fn of_catalog(head: GroupCheckpoint, catalog: BytesMut) -> Self {
        Self { head, state: PartitionGroup::default(), stored: BTreeMap::new(), step: Step::Done, out: catalog }
    }

    /// Of a data group, and of what the segments hold of its partitions.
    pub(crate) fn of_partitions(
        head: GroupCheckpoint,
        state: PartitionGroup,
        stored: BTreeMap<PartitionKey, PartitionState>,
    ) -> Self {
        let empty = PartitionState::default().encoded_bytes();
        let heads = state.iter().len() * (STORED_HEAD + empty);
        let bytes = stored.values().map(PartitionState::encoded_bytes).sum::<usize>() + heads;
        // All of it at once: to grow means to copy what is there.
        let out = BytesMut::with_capacity(state.encoded_bytes() + bytes + 4);
        Self { head, state, stored, step: Step::Head, out }
    }

    /// Whether nothing is left to encode.
    pub(crate) fn is_encoded(&self) -> bool {
        self.step == Step::Done
    }

    /// Encode about this many bytes more; gives how many it were.
    pub(crate) fn encode(&mut self, bytes: usize) -> usize {
        let start = self.out.len();
        while !self.is_encoded() && self.out.len() - start < bytes {
            let left = bytes - (self.out.len() - start);
            self.step = self.encode_step(left);
        }
        self.out.len() - start
    }

    fn encode_step(&mut self, bytes: usize) -> Step {
        let out = &mut self.out;
        match self.step {
            Step::Head => {
                self.state.encode_head(out);
                Step::Partitions(None)
            }
            Step::Partitions(behind) => match self.state.encode_partitions(out, behind, bytes) {
                None => Step::Deleted,
                last => Step::Partitions(last),
            },
            Step::Deleted => {
                self.state.encode_deleted(out);
                out.put_u32_le(self.state.iter().len() as u32);
                Step::Stored(None)
            }
            Step::Stored(behind) => {
                let start = out.len();
                for (key, partition) in self.state.behind(behind) {
                    let stored = self.stored.remove(&key).unwrap_or_default().encode();
                    out.put_u64_le(key.topic_id);
                    out.put_u32_le(key.partition);
                    put_optional(out, partition.segment_bytes);
                    out.put_u32_le(stored.len() as u32);
                    out.put_slice(&stored);
                    if out.len() - start >= bytes {
                        return Step::Stored(Some(key));
                    }
                }
                Step::Done
            }
            Step::Done => Step::Done,
        }
    }

    /// The group with its state, of which all is encoded.
    pub(crate) fn finish(self) -> GroupCheckpoint {
        debug_assert!(self.is_encoded());
        GroupCheckpoint { state: self.out.freeze(), ..self.head }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::command::get_u32;
    use bytes::Bytes;
    use lnc_log::journal::GroupId;

    fn head() -> GroupCheckpoint {
        let (configuration, state) = (Bytes::new(), Bytes::new());
        GroupCheckpoint {
            group: GroupId(1),
            term: 1,
            vote: None,
            applied_index: 1,
            applied_term: 1,
            configuration,
            state,
        }
    }

    fn snapshot() -> (PartitionGroup, Snapshot) {
        let mut state = PartitionGroup::default();
        let keys = (0..100).map(|partition| PartitionKey { topic_id: 5, partition });
        assert!(keys.clone().all(|key| state.create(key, Some(u64::from(key.partition)))));
        let stored = keys.map(|key| (key, PartitionState { log_start_offset: 3, ..PartitionState::default() }));
        (state.clone(), Snapshot::of_partitions(head(), state, stored.collect()))
    }

    #[test]
    fn pieces_make_up_the_whole_and_take_what_was_said() {
        let (_, mut whole) = snapshot();
        whole.encode(usize::MAX);
        let (state, mut pieces) = snapshot();
        let reserved = pieces.out.capacity();
        let mut count = 0;
        while !pieces.is_encoded() {
            assert!(pieces.encode(500) < 1000);
            count += 1;
        }
        assert!(count > 5, "{count} pieces");
        assert_eq!(pieces.out.capacity(), reserved, "it does not grow");
        let (mut whole, pieces) = (whole.finish().state, pieces.finish().state);
        assert_eq!(whole, pieces);
        assert_eq!(PartitionGroup::decode(&mut whole), Ok(state));
        assert_eq!(get_u32(&mut whole), Ok(100));
    }
}
