//! Damage that nobody has noticed yet is found by the scrub, which now and then reads everything: the journal, then the
//! segments.
//!
//! Damage in the journal matters only to what a checkpoint does not have yet, and to followers that lag: a checkpoint is
//! made, and the damaged file is given up as soon as checkpoints have all that is in it.
//!
//! Damage in segments, found by the scrub or by whoever reads, is repaired from the other replicas, whose segments have
//! the same bytes. A damaged place is asked for at one peer after the other. What comes is checked like everything that is read, up to
//! where it is known which batches belong there, written over the damage, and read again, which finds the next damage behind it. Until then reads of it fail, those of anything
//! else do not. If no peer has it either, the place stays as it is, and the node goes on asking. A place that stays bad although it
//! was written over, or becomes so again, is tried again after a pause that doubles ([`Retries`]).

use crate::Broker;
use crate::keep::retries::Retries;
use crate::watch::event::Event;
use bytes::{Bytes, BytesMut};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::{DamagedBatch, Mending, PartitionKey, ReadDone, SegmentError};
use lnc_raft::NodeId;
use lnc_replication::Scrubbed;
use lnc_replication::transfer::{MAX_RANGE, Part, Range, TransferBody};
use std::collections::BTreeMap;

/// Bytes that one read of the scrub asks for.
const READ_BYTES: usize = 256 << 10;

/// How long to wait for the answer of a peer before asking the next one.
const PATIENCE_US: u64 = 1_000_000;

/// How long a repair may wait for its turn at the disk before it counts as given up.
const WRITE_US: u64 = 30_000_000;

/// Partitions repaired at the same time; damage in others is found again.
const MAX_REPAIRS: usize = 64;

/// A damaged place, and what is being done about it.
struct Repair {
    place: DamagedBatch,
    /// The peer that was asked last.
    asked: Option<NodeId>,
    asked_us: u64,
    /// What has come of a stretch that is repaired as a whole.
    came: BytesMut,
    /// The offset after that, from which on to ask.
    next: u64,
    /// Its answer is on its way to the disk.
    writing: bool,
}

/// See the module documentation.
#[derive(Default)]
pub(crate) struct Scrub {
    /// Whether the pass is still reading the journal.
    in_journal: bool,
    /// Where the scrub of the segments goes on; `None` between two passes.
    at: Option<(PartitionKey, u64)>,
    /// When the last pass began.
    began_us: Option<u64>,
    /// The read of the scrub that is under way.
    reading: Option<u64>,
    /// Reads that look at what was repaired.
    checking: BTreeMap<u64, PartitionKey>,
    /// Bytes that may be read now.
    budget: i64,
    refilled_us: u64,
    repairs: BTreeMap<PartitionKey, Repair>,
    /// The places that were repaired before.
    retries: Retries,
}

impl<D: Disk> Broker<D> {
    /// The part of a tick that is about damage.
    pub(crate) fn tick_scrub(&mut self) {
        for place in self.storage.on_disk().take_repaired() {
            self.repaired(place);
        }
        for place in self.storage.on_disk().take_unreadable() {
            self.not_repaired(place);
        }
        self.try_repairs_again();
        self.ask_for_repairs();
        let (now, rate) = (self.now_us(), self.config.scrub_bytes_per_second);
        let elapsed = now.saturating_sub(self.scrub.refilled_us).min(1_000_000);
        self.scrub.refilled_us = now;
        let refill = (u128::from(rate) * u128::from(elapsed) / 1_000_000) as i64;
        self.scrub.budget = self.scrub.budget.saturating_add(refill).min((rate / 10).max(1) as i64);
        let due = self.scrub.began_us.is_none_or(|began| now >= began + self.config.scrub_interval_us);
        if rate > 0 && !self.scrub.in_journal && self.scrub.at.is_none() && due {
            self.scrub.began_us = Some(now);
            self.metrics.scrub_passes_total.inc();
            self.scrub.in_journal = true;
            self.shard.begin_scrub();
        }
        self.scrub_on();
    }

    /// The part of the slow chores that is about damage.
    pub(crate) fn give_up_damage(&mut self) {
        if self.shard.can_give_up_damage(&self.applied_indexes()) {
            self.checkpoint.wanted = true;
        }
    }

    /// The scrub has read some of the journal.
    pub(crate) fn scrubbed_journal(&mut self, Scrubbed { bytes, damaged }: Scrubbed) {
        self.scrub.budget -= bytes as i64;
        self.metrics.scrub_bytes_total.inc_by(bytes);
        if let Some((group, index)) = damaged {
            tracing::error!(
                group = group.0,
                index,
                "an entry of the journal is damaged; making a checkpoint without it"
            );
            self.metrics.damage_found_total.inc();
            self.checkpoint.wanted = true;
        }
        self.scrub_on();
    }

    /// Read on, unless a read is under way or the rate does not allow it.
    fn scrub_on(&mut self) {
        if self.scrub.in_journal {
            if self.scrub.budget <= 0 || self.shard.scrub(&mut self.disk, READ_BYTES) {
                return;
            }
            self.scrub.in_journal = false;
            self.scrub.at = self.storage.on_disk().partitions().next().map(|key| (key, 0));
        }
        while self.scrub.reading.is_none() && self.scrub.budget > 0 {
            let Some((key, offset)) = self.scrub.at else { return };
            // What lies before the log start offset in the first segment is part of the file too.
            let offset = self.storage.on_disk().segment_bases(key).next().map_or(offset, |first| offset.max(first));
            let ticket = self.ticket();
            match self.storage.on_disk().read_stored(&mut self.disk, key, offset, READ_BYTES, ticket) {
                Ok(()) => {
                    self.scrub.at = Some((key, offset));
                    self.scrub.reading = Some(ticket);
                }
                Err(SegmentError::GivenUp { end_offset, .. }) => self.scrub.at = Some((key, end_offset)),
                Err(_) => self.scrub_next_partition(key),
            }
        }
    }

    fn scrub_next_partition(&mut self, key: PartitionKey) {
        self.scrub.at = self.storage.on_disk().partition_after(key).map(|key| (key, 0));
    }

    /// A read has finished, for whomever it was: damage is noted, and what the scrub has read is done with. Gives back
    /// what somebody else asked for.
    pub(crate) fn scrub_read(&mut self, read: ReadDone) -> Option<ReadDone> {
        if let Some(place) = read.damage {
            self.note_damage(place, read.result.as_ref().err().or(read.cause.as_ref()));
        }
        if self.scrub.checking.remove(&read.ticket).is_some() {
            return None;
        }
        if self.scrub.reading != Some(read.ticket) {
            return Some(read);
        }
        self.scrub.reading = None;
        let (key, offset) = self.scrub.at?;
        match &read.result {
            Ok(batches) => {
                let bytes = batches.bytes.len();
                self.scrub.budget -= bytes as i64;
                self.metrics.scrub_bytes_total.inc_by(bytes as u64);
                self.storage.on_disk().learn(key, batches);
                self.scrub.at = Some((key, batches.end_offset));
            }
            // Where the next batch begins is not known; where the next segment does is.
            Err(_) => {
                let next = self.storage.on_disk().segment_bases(key).find(|base| *base > offset);
                match next {
                    Some(base) => self.scrub.at = Some((key, base)),
                    None => self.scrub_next_partition(key),
                }
            }
        }
        self.scrub_on();
        None
    }

    fn note_damage(&mut self, place: DamagedBatch, error: Option<&SegmentError>) {
        let now = self.now_us();
        let Scrub { repairs, retries, .. } = &mut self.scrub;
        if repairs.contains_key(&place.key) || repairs.len() >= MAX_REPAIRS || !retries.may_begin(place, now) {
            return;
        }
        if let Some(error) = error {
            tracing::error!(partition = %place.key, offset = place.offset, %error, "damage; asking the other replicas");
        }
        self.metrics.damage_found_total.inc();
        self.begin_repair(place);
        self.ask_for_repairs();
    }

    fn begin_repair(&mut self, place: DamagedBatch) {
        let (came, next) = (BytesMut::new(), place.offset);
        self.scrub.retries.begun(&place);
        self.scrub.repairs.insert(place.key, Repair { place, asked: None, asked_us: 0, came, next, writing: false });
    }

    /// Places that wait since an earlier repair did not help.
    fn try_repairs_again(&mut self) {
        let segments = self.storage.on_disk();
        let exists = |place: &DamagedBatch| segments.segment_bases(place.key).any(|base| base == place.base);
        self.scrub.retries.forget(self.clock.mono_us, exists);
        for place in self.scrub.retries.due(self.clock.mono_us) {
            if !self.scrub.repairs.contains_key(&place.key) && self.scrub.repairs.len() < MAX_REPAIRS {
                self.begin_repair(place);
            }
        }
        self.metrics.damage_unreadable.set(self.scrub.retries.stuck() as u64);
    }

    /// Ask for what belongs at damaged places: one peer after the other.
    fn ask_for_repairs(&mut self) {
        if self.scrub.repairs.is_empty() {
            return;
        }
        let now = self.now_us();
        let mut asks = Vec::new();
        let (segments, groups, peers) = (self.storage.on_disk(), &self.groups, &self.peers);
        self.scrub.repairs.retain(|key, repair| {
            let group = groups.iter().find(|(_, data)| data.state.get(*key).is_some()).map(|(group, _)| *group);
            // The segment may have been trimmed, or the topic deleted.
            let Some(group) = group.filter(|_| segments.segment_bases(*key).any(|base| base == repair.place.base))
            else {
                return false;
            };
            repair.writing &= now < repair.asked_us + WRITE_US;
            let waiting = repair.asked.is_some() && now < repair.asked_us + PATIENCE_US;
            if !repair.writing && !waiting {
                let after = peers.ids().find(|peer| repair.asked.is_none_or(|asked| *peer > asked));
                if let Some(to) = after.or(peers.ids().next()) {
                    (repair.asked, repair.asked_us) = (Some(to), now);
                    let part = Part::Records { key: *key, offset: repair.next };
                    asks.push((to, group, Range { part, max_bytes: MAX_RANGE }));
                }
            }
            true
        });
        for (to, group, range) in asks {
            self.answer_peer(to, group, TransferBody::AskRange(range));
        }
    }

    /// A peer has sent records: those that belong at a damaged place go there.
    pub(crate) fn repair_came(&mut self, from: NodeId, group: GroupId, range: Range, came: Option<&Bytes>) {
        let now = self.now_us();
        let Part::Records { key, offset } = range.part else { return };
        let Some(repair) = self.scrub.repairs.get_mut(&key) else { return };
        if repair.next != offset || repair.asked != Some(from) || repair.writing {
            return;
        }
        // Without any, the peer may have them later.
        let Some(came) = came else { return };
        repair.came.extend_from_slice(came);
        let all = repair.came.split().freeze();
        match self.storage.on_disk().repair(&mut self.disk, repair.place, &all) {
            Mending::Begun => {
                (repair.writing, repair.asked_us, repair.next) = (true, now, repair.place.offset);
                let place = repair.place;
                self.watch.tell(self.clock, &Event::Repaired(place));
            }
            Mending::More { offset } => {
                (repair.came, repair.next, repair.asked_us) = (all.into(), offset, now);
                let range = Range { part: Part::Records { key, offset }, max_bytes: MAX_RANGE };
                self.answer_peer(from, group, TransferBody::AskRange(range));
            }
            Mending::Refused => {
                repair.next = repair.place.offset;
                tracing::warn!(
                    group = group.0,
                    %from,
                    partition = %key,
                    offset,
                    "a peer has other records at a damaged place; asking another. If it stays damaged, look at that peer's \
                     disk too"
                );
            }
        }
    }

    /// What a peer sent is on stable storage. What follows it may be damaged as well.
    fn repaired(&mut self, place: DamagedBatch) {
        let DamagedBatch { key, offset, .. } = place;
        if self.scrub.repairs.remove(&key).is_none() {
            return;
        }
        let now = self.now_us();
        self.scrub.retries.ended(place, false, now);
        self.metrics.damage_repaired_total.inc();
        tracing::info!(partition = %key, offset, "damage is repaired with the records of another replica");
        let ticket = self.ticket();
        if self.storage.on_disk().read_stored(&mut self.disk, key, offset, MAX_RANGE as usize, ticket).is_ok() {
            self.scrub.checking.insert(ticket, key);
        }
    }

    /// What a peer sent was written, and cannot be read back, there or in a new file.
    fn not_repaired(&mut self, place: DamagedBatch) {
        let DamagedBatch { key, offset, .. } = place;
        if self.scrub.repairs.remove(&key).is_none() {
            return;
        }
        let now = self.now_us();
        let seconds = self.scrub.retries.ended(place, true, now) / 1_000_000;
        self.metrics.damage_repairs_failed_total.inc();
        tracing::error!(
            partition = %key,
            offset,
            again_in_seconds = seconds,
            "damage is not repaired: the records of another replica were written over it and cannot be read back. Readers are \
             told of other nodes. Replace the disk of this node (docs/ops/disk-replaced.md)"
        );
    }
}
