//! Fetch: committed batches to readers, from the tail cache or the segments, now or when there are some.

use crate::machines::catalog::META;
use crate::serve::costs::ENTRIES_PER_TURN;
use crate::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::{Batches, PartitionKey, ReadDone, SegmentError};
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::message::{FetchPartition, FetchRequest, FetchedPartition, Opcode, Records, Request, Response};
use lnc_protocol::{BatchHeader, ErrorCode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Longest time that a fetch may wait, in milliseconds.
const MAX_WAIT_MS: u32 = 60_000;

/// Room kept in a frame for what is not records.
const FRAME_OVERHEAD: usize = 64 << 10;

/// How long a fetch is kept for want of memory before it is answered with nothing: longer than those are kept who do not take
/// theirs.
const PATIENCE_US: u64 = 12_000_000;

/// The memory for replies, which whoever sends them keeps account of.
pub trait ReplyRoom {
    /// Bytes of records that may be read for this caller now.
    fn room(&self, caller: Caller) -> usize;
    /// So many bytes are being read for this fetch, or found for it. They are given back with the answer.
    fn keep(&self, caller: Caller, bytes: usize);
}

/// A fetch that could not be answered at once.
struct Parked {
    caller: Caller,
    request: FetchRequest,
    /// Groups of which everything that was committed when the request came has been applied here.
    confirmed: BTreeSet<GroupId>,
    since_us: u64,
    deadline_us: u64,
    /// Results of segment reads, by position in the request. They stay until the answer leaves: another partition may
    /// have to be read meanwhile.
    cold: BTreeMap<usize, Result<Batches, SegmentError>>,
    cold_waiting: usize,
}

/// The fetches that wait for records or for the disk.
#[derive(Default)]
pub(crate) struct Fetches {
    /// Set where memory for replies is bounded.
    pub(crate) reply_room: Option<Box<dyn ReplyRoom>>,
    parked: BTreeMap<u64, Parked>,
    watchers: BTreeMap<PartitionKey, BTreeSet<u64>>,
    /// Fetches for which something has changed.
    woken: BTreeSet<u64>,
    /// Fetches whose clients are gone.
    gone: VecDeque<u64>,
    cold: BTreeMap<u64, (u64, usize)>,
    /// Those that wait for memory for their reply.
    hungry: BTreeSet<u64>,
    /// The last one that was looked at again: in the next turn it is the others' turn first.
    served: u64,
}

impl Fetches {
    /// Something changed in a partition: whoever watches it looks again.
    pub(crate) fn wake(&mut self, key: PartitionKey) {
        if let Some(ids) = self.watchers.remove(&key) {
            self.woken.extend(ids);
        }
    }
}

/// A read for a fetch: its position in the request, the partition, the offset, and the most bytes.
type ColdRead = (usize, PartitionKey, u64, usize);

/// What one partition of a fetch comes to.
enum Slot {
    /// With the offsets of its records.
    Done(FetchedPartition, Range<u64>),
    Cold {
        key: PartitionKey,
        offset: u64,
        max_bytes: usize,
    },
}

impl<D: Disk> Broker<D> {
    pub(crate) fn fetch(&mut self, caller: Caller, request: FetchRequest, body: Bytes) {
        let asked = self.groups_of_fetch(&request);
        if asked.is_empty() {
            self.fetch_confirmed(caller, request, BTreeSet::new());
        } else {
            self.await_leaders(caller, Opcode::Fetch, Request::Fetch(request), body, asked);
        }
    }

    /// The groups that must confirm what they have committed before a request can be answered: those that would deny a
    /// topic or an offset. A leader that does not know yet that it was deposed knows neither of what came after it. On a
    /// follower an offset beyond the end is one to wait for.
    pub(crate) fn groups_of_fetch(&self, request: &FetchRequest) -> BTreeSet<GroupId> {
        let group_of = |wanted: &FetchPartition| {
            if !self.catalog.knows(&wanted.topic, wanted.topic_id) {
                return Some(META);
            }
            let (key, group) = self.catalog.resolve(&wanted.topic, wanted.topic_id, wanted.partition).ok()?;
            let end = self.groups.get(&group)?.state.get(key)?.log_end_offset;
            (wanted.offset > end && self.shard.is_leader(group)).then_some(group)
        };
        request.partitions.iter().filter_map(group_of).collect()
    }

    /// Fetch once it is known of these groups what was committed.
    pub(crate) fn fetch_confirmed(&mut self, caller: Caller, request: FetchRequest, confirmed: BTreeSet<GroupId>) {
        let since_us = self.now_us();
        let wait_ms = if self.leadership.is_draining() { 0 } else { request.max_wait_ms.min(MAX_WAIT_MS) };
        let deadline_us = since_us + u64::from(wait_ms) * 1000;
        let id = self.ticket();
        let cold = BTreeMap::new();
        let parked = Parked { caller, request, confirmed, since_us, deadline_us, cold, cold_waiting: 0 };
        self.serve_fetch(id, parked);
    }

    fn serve_fetch(&mut self, id: u64, mut parked: Parked) {
        let limit = self.config.max_frame_bytes.saturating_sub(FRAME_OVERHEAD);
        let allowed = self.fetches.reply_room.as_ref().map_or(usize::MAX, |replies| replies.room(parked.caller));
        let mut room = (parked.request.max_bytes as usize).min(limit).min(allowed);
        let mut results = Vec::with_capacity(parked.request.partitions.len());
        let mut reads = Vec::new();
        let mut offsets = Vec::with_capacity(parked.request.partitions.len());
        for (position, wanted) in parked.request.partitions.iter().enumerate() {
            let cold = parked.cold.get(&position);
            match self.fetch_slot(wanted, &parked.confirmed, cold, room, results.is_empty()) {
                Slot::Done(found, range) => {
                    room = room.saturating_sub(found.records.len());
                    offsets.push(range);
                    results.push(found);
                }
                Slot::Cold { key, offset, max_bytes } => {
                    room = room.saturating_sub(max_bytes);
                    reads.push((position, key, offset, max_bytes));
                }
            }
        }
        if !reads.is_empty() {
            self.metrics.fetch_cache_misses_total.inc_by(reads.len() as u64);
            return self.read_cold(id, parked, reads, allowed);
        }
        let mut bytes: usize = results.iter().map(|found| found.records.len()).sum();
        if bytes > allowed && parked.cold.is_empty() {
            // The first batch of all is given even if it is longer than what was asked for; not if there is no memory for it.
            if self.now_us() < parked.deadline_us.max(parked.since_us + PATIENCE_US) {
                self.fetches.hungry.insert(id);
                self.fetches.parked.insert(id, parked);
                return;
            }
            results.iter_mut().for_each(|found| found.records = Records::new());
            offsets.iter_mut().for_each(|range| range.end = range.start);
            bytes = 0;
        }
        let failed = results.iter().any(|found| found.error != ErrorCode::None);
        // A read from the disk may have been cut short of what is there: to wait for records that come, and read it again
        // with each of them, would help nobody.
        let is_behind = |position: &usize| offsets[*position].end < results[*position].high_watermark;
        let cut = parked.cold.keys().any(is_behind);
        let enough = cut || bytes >= (parked.request.min_bytes.max(1) as usize).min(limit);
        if enough || failed || parked.deadline_us <= self.now_us() {
            return self.answer_fetch(parked, results, &offsets);
        }
        for wanted in &parked.request.partitions {
            if let Some(topic) = self.catalog.topic(&wanted.topic) {
                let key = topic.key(wanted.partition);
                self.fetches.watchers.entry(key).or_default().insert(id);
            }
        }
        // By the time it is woken there is more to read.
        parked.cold.clear();
        if let Some(replies) = &self.fetches.reply_room {
            replies.keep(parked.caller, 0);
        }
        self.fetches.parked.insert(id, parked);
    }

    fn answer_fetch(&mut self, parked: Parked, results: Vec<FetchedPartition>, offsets: &[Range<u64>]) {
        let bytes: usize = results.iter().map(|found| found.records.len()).sum();
        if let Some(replies) = &self.fetches.reply_room {
            replies.keep(parked.caller, bytes);
        }
        self.metrics.bytes_out_total.inc_by(bytes as u64);
        let mut records = 0;
        for ((wanted, found), offsets) in parked.request.partitions.iter().zip(&results).zip(offsets) {
            records += offsets.end - offsets.start;
            if let Some(topic) = self.catalog.topic(&wanted.topic).filter(|_| found.error == ErrorCode::None) {
                let (key, position) = (topic.key(wanted.partition), wanted.offset.max(offsets.end));
                self.figures.read(parked.caller.connection, key, position, self.clock.mono_us);
            }
        }
        self.metrics.messages_out_total.inc_by(records);
        self.metrics.fetch_bytes.observe(bytes as f64);
        if parked.request.max_wait_ms == 0 || bytes > 0 {
            let micros = self.now_us().saturating_sub(parked.since_us);
            self.metrics.fetch_latency_seconds.observe(micros as f64 / 1e6);
        }
        self.reply(parked.caller, Opcode::Fetch, Response::Fetch(results));
    }

    /// Bytes of segments that the disk is asked for at once. While records are written they are few: a flush waits for
    /// what was asked for before it, and so do those who wait for the flush.
    pub(crate) fn read_budget(&self) -> usize {
        const WHILE_WRITING: usize = 512 << 10;
        if self.flushes.is_writing(self.now_us()) { WHILE_WRITING } else { usize::MAX }
    }

    /// Read from segments as far as `allowed` bytes go. A read brings one batch at least, however long.
    fn read_cold(&mut self, id: u64, mut parked: Parked, reads: Vec<ColdRead>, allowed: usize) {
        let most = self.read_budget();
        let cost = |max_bytes: usize| max_bytes.min(most).max(self.config.max_batch_bytes);
        let mut kept = 0;
        let fits = |read: &ColdRead| {
            let bytes = kept + cost(read.3);
            let fits = bytes <= allowed;
            kept = if fits { bytes } else { kept };
            fits
        };
        let (reads, skipped): (Vec<ColdRead>, Vec<ColdRead>) = reads.into_iter().partition(fits);
        if reads.is_empty() && self.now_us() < parked.deadline_us.max(parked.since_us + PATIENCE_US) {
            self.fetches.hungry.insert(id);
            self.fetches.parked.insert(id, parked);
            return;
        }
        for (position, _, offset, _) in skipped {
            let nothing = Batches { base_offset: offset, end_offset: offset, bytes: Bytes::new() };
            parked.cold.insert(position, Ok(nothing));
        }
        if let Some(replies) = &self.fetches.reply_room {
            let read: usize = parked.cold.values().flatten().map(|batches| batches.bytes.len()).sum();
            replies.keep(parked.caller, read + kept);
        }
        for (position, key, offset, max_bytes) in reads {
            let ticket = self.ticket();
            match self.storage.on_disk().read(&mut self.disk, key, offset, max_bytes.min(most), ticket) {
                Ok(()) => {
                    self.fetches.cold.insert(ticket, (id, position));
                    parked.cold_waiting += 1;
                }
                Err(error) => {
                    parked.cold.insert(position, Err(error));
                }
            }
        }
        if parked.cold_waiting == 0 {
            self.fetches.woken.insert(id);
        }
        self.fetches.parked.insert(id, parked);
    }

    /// Segment data has been read, for a fetch or for a search by time.
    pub(crate) fn cold_read_done(&mut self, read: ReadDone) {
        let Some((id, position)) = self.fetches.cold.remove(&read.ticket) else {
            return self.scan_read_done(read);
        };
        let Some(parked) = self.fetches.parked.get_mut(&id) else { return };
        parked.cold.insert(position, read.result);
        parked.cold_waiting -= 1;
        if parked.cold_waiting == 0 {
            self.fetches.woken.insert(id);
        }
    }

    fn fetch_slot(
        &mut self,
        wanted: &FetchPartition,
        confirmed: &BTreeSet<GroupId>,
        cold: Option<&Result<Batches, SegmentError>>,
        room: usize,
        first: bool,
    ) -> Slot {
        let mut found = FetchedPartition {
            topic: wanted.topic.clone(),
            partition: wanted.partition,
            error: ErrorCode::None,
            message: String::new(),
            log_start_offset: 0,
            high_watermark: 0,
            records: Records::new(),
        };
        let (name, partition, offset) = (&wanted.topic, wanted.partition, wanted.offset);
        let (key, group) = match self.catalog.resolve(name, wanted.topic_id, partition) {
            Ok(found) => found,
            Err((error, message)) => {
                (found.error, found.message) = (error, message);
                return Slot::Done(found, 0..0);
            }
        };
        let Some(state) = self.groups.get(&group).and_then(|data| data.state.get(key)) else {
            // Created, but its first entry has not come here yet: nothing to read.
            return Slot::Done(found, 0..0);
        };
        (found.log_start_offset, found.high_watermark) = (state.log_start_offset, state.log_end_offset);
        let (start, end) = (found.log_start_offset, found.high_watermark);
        if offset < start || (offset > end && (confirmed.contains(&group) || mutated(Mutation::DenyUnconfirmed))) {
            found.error = ErrorCode::OffsetOutOfRange;
            found.message = format!(
                "topic {name:?} partition {partition} has offsets {start} to {end}, offset {offset} is not among them"
            );
            return Slot::Done(found, 0..0);
        }
        if let Some(result) = cold {
            let mut range = 0..0;
            match result {
                Ok(batches) => (found.records, range) = clamp(batches, end),
                Err(error @ SegmentError::GivenUp { .. }) => {
                    (found.error, found.message) = (ErrorCode::NotReady, error.to_string());
                }
                Err(error) => {
                    tracing::error!(topic = %name, partition, offset, %error, "cannot read a segment");
                    found.error = ErrorCode::StorageDamaged;
                    found.message = format!("{error}; {}", self.who_else_has(group));
                }
            }
            return Slot::Done(found, range);
        }
        let asked = wanted.max_bytes as usize;
        let max_bytes = if mutated(Mutation::GiveTooMuch) { 2 * asked } else { asked.min(room) };
        if offset >= end || (max_bytes == 0 && !first) {
            return Slot::Done(found, 0..0);
        }
        match self.storage.cache().read(key, offset, max_bytes) {
            Some(cached) => {
                self.metrics.fetch_cache_hits_total.inc();
                found.records = cached.pieces.into_iter().collect();
                Slot::Done(found, cached.base_offset..cached.end_offset)
            }
            None => Slot::Cold { key, offset, max_bytes },
        }
    }

    /// Where a reader finds what is damaged here, for as long as that is not repaired.
    fn who_else_has(&self, group: GroupId) -> String {
        let members = self.shard.applied_configuration(group);
        let others = members.into_iter().flat_map(|members| members.members());
        let has = others.filter(|node| self.peers.is_connected(*node));
        let named: Vec<String> =
            has.filter_map(|node| Some(format!("node {node} ({})", self.addresses(node.node())?.client))).collect();
        match named.is_empty() {
            true => "no other node that has it is connected".to_owned(),
            false => format!("it is being repaired; until then, read it from {}", named.join(" or ")),
        }
    }

    /// Look again at fetches for which something has changed: as many as a turn has time for, one after the other in a round.
    pub(crate) fn wake_fetches(&mut self) {
        let mut woken = std::mem::take(&mut self.fetches.woken);
        let mut left = ENTRIES_PER_TURN;
        while left > 0
            && let Some(id) = self.fetches.gone.pop_front()
        {
            let Some(parked) = self.fetches.parked.remove(&id) else { continue };
            left = left.saturating_sub(parked.request.partitions.len().max(1));
            self.unwatch(id, &parked.request);
        }
        while left > 0
            && let Some(id) = woken.range(self.fetches.served + 1..).next().or(woken.first()).copied()
        {
            woken.remove(&id);
            self.fetches.served = id;
            let Some(parked) = self.fetches.parked.remove(&id) else { continue };
            left = left.saturating_sub(parked.request.partitions.len().max(1));
            self.unwatch(id, &parked.request);
            self.serve_fetch(id, parked);
        }
        self.fetches.woken.append(&mut woken);
    }

    /// Nobody waits any more for the answers to the fetches of these connections. What the disk reads for them comes and is
    /// dropped.
    pub(crate) fn forget_fetches(&mut self, connections: &BTreeSet<u64>) {
        let theirs = |(id, parked): (&u64, &Parked)| connections.contains(&parked.caller.connection).then_some(*id);
        self.fetches.gone.extend(self.fetches.parked.iter().filter_map(theirs));
    }

    /// Whether the next turn would find fetches to look at, whatever happens meanwhile.
    pub(crate) fn fetches_go_on(&self) -> bool {
        !self.fetches.woken.is_empty() || !self.fetches.gone.is_empty()
    }

    fn unwatch(&mut self, id: u64, request: &FetchRequest) {
        for wanted in &request.partitions {
            let Some(topic) = self.catalog.topic(&wanted.topic) else { continue };
            let key = topic.key(wanted.partition);
            if let Some(ids) = self.fetches.watchers.get_mut(&key) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.fetches.watchers.remove(&key);
                }
            }
        }
    }

    /// Nobody waits any longer for records to come.
    pub(crate) fn end_waits(&mut self) {
        let now = self.now_us();
        for parked in self.fetches.parked.values_mut() {
            parked.deadline_us = now;
        }
        self.expire_fetches();
    }

    /// Answer fetches whose time is up with what there is.
    pub(crate) fn expire_fetches(&mut self) {
        let now = self.now_us();
        let late = |(_, parked): &(&u64, &Parked)| parked.cold_waiting == 0 && parked.deadline_us <= now;
        let ids: Vec<u64> = self.fetches.parked.iter().filter(late).map(|(id, _)| *id).collect();
        self.fetches.woken.extend(ids);
        let hungry = std::mem::take(&mut self.fetches.hungry);
        self.fetches.woken.extend(hungry);
    }
}

/// Only batches that end at or below the high watermark, and the offsets of their records: segments hold committed data
/// only, so this cuts nothing unless the partition was trimmed or removed while the read was under way.
fn clamp(batches: &Batches, high_watermark: u64) -> (Records, Range<u64>) {
    if batches.end_offset <= high_watermark {
        return (batches.bytes.clone().into(), batches.base_offset..batches.end_offset);
    }
    let (mut len, mut end) = (0, batches.base_offset);
    while let Some(Ok(header)) = batches.bytes.get(len..).map(BatchHeader::parse) {
        if header.last_offset() >= high_watermark {
            break;
        }
        len += header.total_len();
        end = header.last_offset() + 1;
    }
    (batches.bytes.slice(..len).into(), batches.base_offset..end)
}
