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
//!
//! What is deleted, by an operator or by retention, is removed at once while space is short, and not only once a checkpoint
//! no longer names it, since there may be no space for that one: see [`Broker::free_what_is_removed`]. Inodes can be short as
//! well as bytes.

use crate::Broker;
use crate::keep::checkpoint::stored_partitions;
use crate::machines::command::holds_records;
use bytes::Bytes;
use lnc_log::disk::{BLOCK, Disk};
use lnc_log::incoming::FileInfo;
use lnc_log::journal::{GroupId, MARK_FORMAT};
use lnc_log::segment::PartitionKey;
use lnc_mutation::{Mutation, mutated};
use lnc_raft::{Body, Entry, EntryKind, Index};
use std::collections::{BTreeMap, BTreeSet};

/// What appends with a few records stay below, in bytes.
const SMALL_APPEND: usize = 4096;

/// Inodes that are kept for what is not records: checkpoints, the journal's next files, state that comes from peers.
const RESERVE_INODES: u64 = 64;

/// What is left in the data directory.
#[derive(Debug)]
pub(crate) struct Space {
    /// Less what was taken in since that was looked at.
    bytes: u64,
    inodes: u64,
    /// Until then, it counts as short.
    short_until_us: u64,
    /// How far each group is durable whose entries wait for a place in the journal, and since when.
    waiting: BTreeMap<GroupId, (Index, u64)>,
    /// When appends of a group were last refused for want of space.
    refused_appends_us: BTreeMap<GroupId, u64>,
}

impl Space {
    pub(crate) fn of(disk: &impl Disk) -> Self {
        let mut space = Self {
            bytes: 0,
            inodes: 0,
            short_until_us: 0,
            waiting: BTreeMap::new(),
            refused_appends_us: BTreeMap::new(),
        };
        space.look(disk);
        space
    }

    fn look(&mut self, disk: &impl Disk) {
        self.bytes = disk.free_bytes().unwrap_or(u64::MAX);
        self.inodes = disk.free_files().unwrap_or(u64::MAX);
    }

    /// Bytes that are left, as far as the disk can tell.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        Some(self.bytes).filter(|bytes| *bytes != u64::MAX)
    }

    /// Records of so many bytes were taken in: they go to the journal, and to a segment.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(2 * bytes as u64);
    }
}

impl<D: Disk> Broker<D> {
    /// Whether what a leader sends can be taken in: there must be memory for it and, if it holds records, space.
    pub(crate) fn has_room_for(&mut self, group: GroupId, body: &Body) -> bool {
        let Body::Append { entries, .. } = body else { return true };
        let bytes: usize = entries.iter().map(Entry::size).sum();
        if bytes > 0 && self.storage.unwritten_bytes() > self.max_unwritten().saturating_mul(2) {
            // A replica whose disk cannot keep up must not fill its memory.
            return false;
        }
        let (free, reserve) = (self.space.bytes, self.config.reserve_bytes);
        let most = if free < reserve / 4 { 0 } else { SMALL_APPEND };
        let records = |entry: &Entry| entry.kind == EntryKind::Normal && holds_records(&entry.payload);
        // Entries would take the space that is made for the state.
        let short = free < reserve / 2 || self.transfers.makes_room(group);
        // What was under way when the disks became full comes before the deletion that makes room: the journal's files have
        // been made, and their room is no space.
        let none = free < reserve / 8 && !self.transfers.makes_room(group);
        let fits = none && self.shard.journal().room() >= 2 * bytes as u64;
        let refused = short && !fits && bytes > most && entries.iter().any(records);
        if refused {
            self.space.refused_appends_us.insert(group, self.clock.mono_us);
        } else {
            self.space.take(bytes);
        }
        !refused
    }

    /// Look how much space there is, and say so when the reserve is touched or whole again.
    pub(crate) fn look_at_space(&mut self) {
        /// How long leaders stay away after space was short: it comes and goes.
        const SHORT_US: u64 = 10_000_000;
        let low = self.is_low_on_space();
        self.space.look(&self.disk);
        self.metrics.disk_free_bytes.set(self.space.bytes);
        self.metrics.disk_free_inodes.set(self.space.inodes);
        if self.is_short_of_space() {
            self.space.short_until_us = self.now_us() + SHORT_US;
        }
        let keep_free = self.is_short_of_space().then(|| self.space_of_checkpoint());
        self.storage.on_disk().save_space(keep_free);
        self.shard.save_space(keep_free.unwrap_or(0));
        let left = self.space_left();
        match (low, self.is_low_on_space()) {
            (false, true) => tracing::error!(
                left,
                "no space but the reserve is left in the data directory: records are refused until there is more; delete \
                 topics or make room"
            ),
            (true, false) => tracing::info!(left, "there is space again: records are taken"),
            _ => {}
        }
    }

    /// What the next checkpoint takes, and the note with which a transfer makes room: without them nothing ever comes free. As
    /// far as there is a reserve for that.
    fn space_of_checkpoint(&self) -> u64 {
        // The state is written twice. No note is longer than the state whose partitions it names.
        let copy = self.transfers.offered_bytes().saturating_add(BLOCK as u64).next_multiple_of(BLOCK as u64);
        copy.saturating_mul(3).min(self.config.reserve_bytes / 8)
    }

    /// What the checkpoint takes, at most, with which a state of so many bytes is taken over.
    pub(crate) fn space_of_takeover(&self, state_bytes: u64) -> u64 {
        /// Of a group beside its state: its head, and its configuration with all members twice.
        const GROUP_BYTES: u64 = 512;
        let groups = self.shard.group_ids().count() as u64 + 1;
        let copy = self.transfers.offered_bytes().saturating_add(state_bytes).saturating_add(groups * GROUP_BYTES);
        copy.next_multiple_of(BLOCK as u64).saturating_mul(2)
    }

    /// Whether what is left is for votes, checkpoints and deletions.
    fn is_low_on_space(&self) -> bool {
        self.space.bytes < self.config.reserve_bytes || self.space.inodes < RESERVE_INODES
    }

    /// Whether records find no space: the reserve is touched, or the disk took no more at the last attempt.
    pub(crate) fn is_short_of_space(&self) -> bool {
        self.is_low_on_space() || self.storage.handed_over().is_full() || self.shard.journal().is_full()
    }

    /// Whether that was so a moment ago.
    pub(crate) fn was_short_of_space(&self) -> bool {
        self.now_us() < self.space.short_until_us
    }

    /// What is left, in the words of whoever has to make room.
    pub(crate) fn space_left(&self) -> String {
        // The disk may have taken no more since it was looked at: what it lacks now is what is told.
        let mut now = Space::of(&self.disk);
        now.bytes = now.bytes.min(self.space.bytes);
        let (Space { bytes, inodes, .. }, reserve) = (now, self.config.reserve_bytes);
        if inodes < RESERVE_INODES {
            return format!("{inodes} inodes are free, of which {RESERVE_INODES} are kept in reserve (see df -i)");
        }
        if bytes < reserve {
            return format!("{bytes} bytes are free, of which {reserve} are kept in reserve");
        }
        format!("{bytes} bytes are free; if the disk takes no more than that, look for a quota")
    }

    /// What the status page says of it.
    pub(crate) fn space_problem(&self) -> Option<String> {
        let short = self.is_short_of_space();
        short.then(|| format!("this node has no space for records: {}; delete topics or make room", self.space_left()))
    }

    /// While space is short, remove at once what is deleted or trimmed. The newest durable checkpoint still names it, but its
    /// removal is in this node's journal, durable and committed, beyond that checkpoint: a start finds it there. Not before the
    /// format of which every version knows that.
    pub(crate) fn free_what_is_removed(&mut self) {
        if self.is_short_of_space() && self.format() >= MARK_FORMAT && !mutated(Mutation::RemoveLate) {
            self.abandon_stuck_checkpoint();
            self.storage.on_disk().release_early(&mut self.disk);
        }
    }

    /// Committed bytes that may wait for their segments before produce requests are refused.
    pub(crate) fn max_unwritten(&self) -> u64 {
        self.config.checkpoint_bytes.saturating_add(self.config.memory_bytes as u64)
    }

    /// Where appends are refused for want of space, or do not get into the journal: the leader's state may take less of it.
    pub(crate) fn fetch_what_frees_space(&mut self) {
        /// How long a refusal counts, and how long what has come may wait for its place in the journal.
        const RECENT_US: u64 = 5_000_000;
        let now = self.now_us();
        self.space.refused_appends_us.retain(|_, at| *at + RECENT_US >= now);
        for group in self.shard.group_ids().collect::<Vec<_>>() {
            let Some(status) = self.shard.status(group) else { continue };
            let waits = self.shard.journal().is_full() && status.last > status.durable;
            let since = self.space.waiting.get(&group).filter(|(durable, _)| waits && *durable == status.durable);
            let since_us = since.map_or(now, |(_, since_us)| *since_us);
            match waits {
                true => self.space.waiting.insert(group, (status.durable, since_us)),
                false => self.space.waiting.remove(&group),
            };
            let next = if self.space.refused_appends_us.contains_key(&group) {
                status.last + 1
            } else if waits && now >= since_us + RECENT_US {
                status.durable + 1
            } else {
                continue;
            };
            let leader = self.shard.leader(group);
            if leader.is_some_and(|leader| leader != self.config.node) && self.may_fetch_again(group) {
                self.state_needed(group, next);
            }
        }
    }

    /// Below which offsets the state of a group at `index`, which a peer offers, has nothing any more of the partitions that
    /// this replica has. All of it was removed by committed entries, and nobody will ever ask for it; this replica has only
    /// not come so far yet. Empty if it has come further than the state.
    pub(crate) fn going_before(&self, group: GroupId, index: u64, state: &Bytes) -> BTreeMap<PartitionKey, u64> {
        let stored = stored_partitions(group, state.clone()).ok().filter(|_| index >= self.applied_index(group));
        let (Some(stored), Some(own)) = (stored, self.groups.get(&group)) else { return BTreeMap::new() };
        let starts: BTreeMap<PartitionKey, u64> = stored.into_iter().collect();
        own.state.iter().map(|(key, _)| (key, starts.get(&key).copied().unwrap_or(u64::MAX))).collect()
    }

    /// Whether there is space for a state of `state_bytes` with these files, of which so many bytes have `come` already, while it
    /// comes and afterwards. `wanted` are those of them that this node does not have; what it has and the state does not name goes. True if what is `going` must go
    /// first.
    pub(crate) fn space_for(
        &self,
        group: GroupId,
        files: &[FileInfo],
        wanted: &[FileInfo],
        own: &BTreeSet<FileInfo>,
        going: &BTreeMap<PartitionKey, u64>,
        (state_bytes, come): (u64, u64),
    ) -> Result<bool, (u64, u64)> {
        // Two that began with the same space would both be stuck halfway.
        let claimed = self.transfers.claimed_beside(group);
        let free = self.disk.free_bytes().unwrap_or(u64::MAX).saturating_sub(claimed);
        let reserve = self.config.reserve_bytes;
        let segments = self.storage.handed_over();
        let sum = |files: &mut dyn Iterator<Item = &FileInfo>| files.map(|file| file.len).sum::<u64>();
        let named: BTreeSet<&FileInfo> = files.iter().collect();
        let is_there = |file: &&FileInfo| !segments.is_given_up(file.key, file.base_offset);
        let room = self.space_of_takeover(state_bytes);
        let comes = sum(&mut wanted.iter()).saturating_sub(come).saturating_add(state_bytes).saturating_add(room);
        let goes = sum(&mut own.iter().filter(|file| !named.contains(file)).filter(is_there));
        // What was written since the last checkpoint is in neither, and goes as well.
        let known: BTreeSet<(PartitionKey, u64)> =
            own.iter().chain(files).map(|file| (file.key, file.base_offset)).collect();
        let keys = self.groups.get(&group).into_iter().flat_map(|own| own.state.iter()).map(|(key, _)| key);
        let newer = keys.flat_map(|key| segments.files(key).map(move |(base, bytes)| ((key, base), bytes)));
        let newer = newer.filter(|(file, _)| !known.contains(file)).map(|(_, bytes)| bytes);
        let goes = goes.saturating_add(newer.sum::<u64>());
        let may_go = self.format() >= MARK_FORMAT && !mutated(Mutation::KeepWhatGoes);
        let first = if may_go { segments.could_give_up(going) } else { 0 };
        // Most of that is for a checkpoint, which has its room here.
        let meanwhile = comes.saturating_add((reserve / 8).saturating_sub(room));
        let afterwards = comes.saturating_add(reserve / 2).saturating_sub(goes);
        // Each file has an inode, and so have the directory, the state, and what the next checkpoint makes.
        let inodes = wanted.len() as u64 + 4;
        let has_inodes = self.disk.free_files().is_none_or(|free| free >= inodes) || first == 0;
        if free >= meanwhile.max(afterwards) && has_inodes {
            return Ok(false);
        }
        let needed = meanwhile.saturating_sub(first).max(afterwards);
        if free >= needed { Ok(true) } else { Err((needed, free)) }
    }
}
