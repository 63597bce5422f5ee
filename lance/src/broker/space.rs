//! A disk that is nearly full. A part of it is kept in reserve (`storage.reserve_bytes`) for what is not records: votes,
//! checkpoints, deletions, and what a change of members takes.
//!
//! | free | a leader | a follower |
//! |---|---|---|
//! | less than the reserve | refuses records | takes everything |
//! | less than a half of it | | refuses appends with more than a few records |
//! | less than a quarter | | refuses appends with any records |
//!
//! The log is in order: behind the records that a follower refuses is the deletion that would make room. So a follower
//! that refuses looks whether the group's state, as its leader's newest checkpoint has it, leaves more space than there is
//! now, and fetches that instead of entries.

use super::Broker;
use super::command::holds_records;
use lnc_log::disk::Disk;
use lnc_log::incoming::FileInfo;
use lnc_log::journal::GroupId;
use lnc_raft::{Body, Entry, EntryKind};
use std::collections::BTreeSet;

/// What appends with a few records stay below, in bytes.
const SMALL_APPEND: usize = 4096;

impl<D: Disk> Broker<D> {
    /// Whether what a leader sends can be taken in: there must be memory for it and, if it holds records, space.
    pub(super) fn has_room_for(&mut self, group: GroupId, body: &Body) -> bool {
        let Body::Append { entries, .. } = body else { return true };
        let bytes: usize = entries.iter().map(Entry::size).sum();
        if bytes > 0 && self.storage.unwritten_bytes() > self.max_unwritten().saturating_mul(2) {
            // A replica whose disk cannot keep up must not fill its memory.
            return false;
        }
        let (free, reserve) = (self.free_bytes, self.config.reserve_bytes);
        let most = if free < reserve / 4 { 0 } else { SMALL_APPEND };
        let records = |entry: &Entry| entry.kind == EntryKind::Normal && holds_records(&entry.payload);
        let refused = free < reserve / 2 && bytes > most && entries.iter().any(records);
        if refused {
            self.refused_appends_us.insert(group, self.clock.mono_us);
        } else {
            self.free_bytes = self.free_bytes.saturating_sub(2 * bytes as u64);
        }
        !refused
    }

    /// Look how much space there is, and say so when the reserve is touched or whole again.
    pub(super) fn look_at_space(&mut self) {
        let low = self.is_low_on_space();
        self.free_bytes = self.disk.free_bytes().unwrap_or(u64::MAX);
        self.metrics.disk_free_bytes.set(self.free_bytes);
        let (free, reserve) = (self.free_bytes, self.config.reserve_bytes);
        match (low, self.is_low_on_space()) {
            (false, true) => tracing::error!(
                free,
                reserve,
                "no space but the reserve is left in the data directory: records are refused until there is more; delete \
                 topics, lower retention, or make room"
            ),
            (true, false) => tracing::info!(free, reserve, "there is space again: records are taken"),
            _ => {}
        }
    }

    /// Whether what is left is for votes, checkpoints and deletions.
    pub(super) fn is_low_on_space(&self) -> bool {
        self.free_bytes < self.config.reserve_bytes
    }

    /// Committed bytes that may wait for their segments before produce requests are refused.
    pub(super) fn max_unwritten(&self) -> u64 {
        self.config.checkpoint_bytes.saturating_add(self.config.memory_bytes as u64)
    }

    /// Where appends are refused for want of space: the leader's state may take less of it.
    pub(super) fn fetch_what_frees_space(&mut self) {
        /// How long a refusal counts.
        const RECENT_US: u64 = 5_000_000;
        let now = self.now_us();
        self.refused_appends_us.retain(|_, at| *at + RECENT_US >= now);
        let groups: Vec<GroupId> = self.refused_appends_us.keys().copied().collect();
        for group in groups {
            let leader = self.shard.leader(group);
            if leader.is_some_and(|leader| leader != self.config.node) && self.may_fetch_again(group) {
                let next = self.shard.status(group).map_or(0, |status| status.last + 1);
                self.state_needed(group, next);
            }
        }
    }

    /// Whether there is space for a state of `state_bytes` with these files, while it comes and afterwards. `wanted` are those
    /// of them that this node does not have; what it has and the state does not name goes.
    pub(super) fn has_space_for(
        &self,
        files: &[FileInfo],
        wanted: &[FileInfo],
        own: &BTreeSet<FileInfo>,
        state_bytes: u64,
    ) -> Result<(), (u64, u64)> {
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        let reserve = self.config.reserve_bytes;
        let sum = |files: &mut dyn Iterator<Item = &FileInfo>| files.map(|file| file.len).sum::<u64>();
        let named: BTreeSet<&FileInfo> = files.iter().collect();
        let comes = sum(&mut wanted.iter()).saturating_add(state_bytes);
        let goes = sum(&mut own.iter().filter(|file| !named.contains(file)));
        let meanwhile = comes.saturating_add(reserve / 8);
        let afterwards = comes.saturating_add(reserve / 2).saturating_sub(goes);
        let needed = meanwhile.max(afterwards);
        if free >= needed { Ok(()) } else { Err((needed, free)) }
    }
}
