//! ListOffsets: earliest, latest, and the first offset at or after a time.
//!
//! A search by time starts where the segments' sparse index says and goes through batches from there, in memory or from
//! segment files. Searches take turns: each goes on until it has looked through about as much as a turn has time for; then it is
//! the others' turn, and that of all other work. Batches that may be long are opened elsewhere, where there is such a place. A
//! search ends when its client is gone.

use crate::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::{PartitionKey, ReadDone, SegmentError};
use lnc_protocol::batch::HEADER_LEN;
use lnc_protocol::message::{ListOffsetsPartition, ListOffsetsRequest, OffsetSpec, Opcode, PartitionOffset, Response};
use lnc_protocol::{BatchHeader, ErrorCode, Limits, codec};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Bytes looked through per read.
const SCAN_BYTES: usize = 1 << 20;

/// Bytes looked through in a turn, by all searches together.
const BYTES_PER_TURN: usize = 1 << 20;

/// What it costs to look up a partition, in such bytes.
const LOOK_UP: usize = 512;

/// Most bytes that a batch has when it is opened, as many as a producer may send. Of one with more only the start is told.
const MAX_OPENED_BYTES: usize = 16 << 20;

/// A batch whose records take no more bytes than this is opened at once.
const SHORT: usize = 64 << 10;

/// How long a search may take, in microseconds.
const MAX_SEARCH_US: u64 = 30_000_000;

/// A request that is being worked through, partition by partition.
struct Scan {
    caller: Caller,
    request: ListOffsetsRequest,
    results: Vec<PartitionOffset>,
    /// Where the search by time in the current partition goes on.
    cursor: Option<u64>,
    /// A batch that was read for it, and has what it looks for.
    batch: Option<Bytes>,
    /// What was found by time, so that what is asked for twice is looked for once.
    found: BTreeMap<(String, u64, u32, i64), usize>,
    deadline_us: u64,
}

/// Where batches are opened so that nobody waits for it.
pub trait Opener {
    /// Find the first record at or after a time in a batch, with [`first_since`]; to be told with [`Broker::opened`].
    fn open(&self, ticket: u64, batch: Bytes, timestamp_ms: i64);
}

/// Searches under way.
#[derive(Default)]
pub(crate) struct Scans {
    /// Where long batches are opened; in the turn itself without.
    pub(crate) opener: Option<Box<dyn Opener>>,
    /// They wait for the disk, or for a batch that is opened elsewhere, by ticket.
    waiting: BTreeMap<u64, Scan>,
    /// They wait for their turn.
    ready: VecDeque<Scan>,
}

impl Scans {
    /// Whether one could go on.
    pub(crate) fn go_on(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Nobody waits any more for what a connection has asked.
    pub(crate) fn forget(&mut self, connections: &BTreeSet<u64>) {
        self.waiting.retain(|_, scan| !connections.contains(&scan.caller.connection));
        self.ready.retain(|scan| !connections.contains(&scan.caller.connection));
    }
}

/// How far a search by time has come.
enum Step {
    Found(PartitionOffset),
    /// It is in this batch.
    In(Bytes),
    /// So many bytes were looked through, and it goes on behind them.
    On(usize),
    Cold(PartitionKey, u64),
}

/// A record that was looked for: its offset and timestamp.
pub type Hit = (u64, i64);

/// Where a search has come to in what it looked through.
enum Place {
    /// Everything there is older; what follows begins at this offset, if anything was there.
    Behind(Option<u64>),
    /// The record is in this batch.
    In(Bytes),
}

impl<D: Disk> Broker<D> {
    /// The groups that must confirm where their logs end before a request can be answered.
    pub(crate) fn groups_of_offsets(&self, request: &ListOffsetsRequest) -> BTreeSet<GroupId> {
        let group_of = |wanted: &ListOffsetsPartition| match self.catalog.topic(&wanted.topic) {
            _ if !self.catalog.knows(&wanted.topic, wanted.topic_id) => Some(crate::META),
            None => Some(crate::META),
            Some(_) if wanted.spec == OffsetSpec::Earliest => None,
            Some(topic) => Some(topic.group_of(wanted.partition)),
        };
        request.partitions.iter().filter_map(group_of).collect()
    }

    pub(crate) fn list_offsets(&mut self, caller: Caller, request: ListOffsetsRequest) {
        let deadline_us = self.now_us() + MAX_SEARCH_US;
        let (results, found) = (Vec::new(), BTreeMap::new());
        self.scans.ready.push_back(Scan { caller, request, results, cursor: None, batch: None, found, deadline_us });
    }

    /// Go on with searches, as far as a turn has time for them.
    pub(crate) fn go_on_searching(&mut self) {
        let mut left = BYTES_PER_TURN;
        while left > 0
            && let Some(scan) = self.scans.ready.pop_front()
        {
            self.search_on(scan, &mut left);
        }
    }

    /// Tell those whose searches have taken too long.
    pub(crate) fn expire_searches(&mut self) {
        let now = self.now_us();
        let Scans { waiting, ready, .. } = &mut self.scans;
        let late = waiting.extract_if(.., |_, scan| scan.deadline_us <= now).map(|(_, scan)| scan);
        let mut late: Vec<Scan> = late.collect();
        let (over, on): (Vec<Scan>, Vec<Scan>) = ready.drain(..).partition(|scan| scan.deadline_us <= now);
        ready.extend(on);
        late.extend(over);
        for scan in late {
            let message = format!(
                "{} of {} partitions were searched in {} s: ask for fewer at a time",
                scan.results.len(),
                scan.request.partitions.len(),
                MAX_SEARCH_US / 1_000_000
            );
            self.refuse(scan.caller, Opcode::ListOffsets, ErrorCode::Timeout, message);
        }
    }

    /// Go on with a search until it is over, waits for the disk, or has used up what is left for this turn.
    fn search_on(&mut self, mut scan: Scan, left: &mut usize) {
        while let Some(wanted) = scan.request.partitions.get(scan.results.len()) {
            if *left == 0 {
                return self.scans.ready.push_back(scan);
            }
            *left = left.saturating_sub(LOOK_UP);
            if let Some(again) = same_search(wanted).and_then(|search| scan.found.get(&search)).copied() {
                scan.results.push(scan.results[again].clone());
                continue;
            }
            let step = match scan.batch.take() {
                Some(batch) => Step::In(batch),
                None => self.offset_step(wanted, &mut scan.cursor),
            };
            match step {
                Step::Found(found) => scan.conclude(found),
                Step::In(batch) => match self.open_batch(scan, batch, left) {
                    Some(on) => scan = on,
                    None => return,
                },
                Step::On(bytes) => *left = left.saturating_sub(bytes),
                Step::Cold(key, offset) => {
                    let ticket = self.ticket();
                    match self.storage.on_disk().read(&mut self.disk, key, offset, SCAN_BYTES, ticket) {
                        Ok(()) => {
                            self.scans.waiting.insert(ticket, scan);
                            return;
                        }
                        Err(error) => {
                            let failed = damaged(wanted, &error);
                            scan.conclude(failed);
                        }
                    }
                }
            }
        }
        self.reply(scan.caller, Opcode::ListOffsets, Response::ListOffsets(scan.results));
    }

    /// A read has come for a search, which goes on when it is its turn.
    pub(crate) fn scan_read_done(&mut self, read: ReadDone) {
        let Some(mut scan) = self.scans.waiting.remove(&read.ticket) else { return };
        let Some(wanted) = scan.request.partitions.get(scan.results.len()) else { return };
        let searched = match read.result {
            Err(error) => Err(damaged(wanted, &error)),
            Ok(batches) => Ok(search(&[batches.bytes], wanted)),
        };
        match searched {
            Ok(Place::Behind(end)) => scan.cursor = Some(end.or(scan.cursor).unwrap_or_default()),
            Ok(Place::In(batch)) => scan.batch = Some(batch),
            Err(result) => scan.conclude(result),
        }
        self.scans.ready.push_back(scan);
    }

    /// Find the record that a search looks for in this batch: now if it is short, else elsewhere, from where it comes back. Gives
    /// back the search if it can go on.
    fn open_batch(&mut self, mut scan: Scan, batch: Bytes, left: &mut usize) -> Option<Scan> {
        let Some(OffsetSpec::Timestamp(timestamp)) = scan.wanted().map(|wanted| wanted.spec) else { return Some(scan) };
        if let Some(opener) = self.scans.opener.as_ref().filter(|_| !is_short(&batch)) {
            self.next_ticket += 1;
            opener.open(self.next_ticket, batch, timestamp);
            self.scans.waiting.insert(self.next_ticket, scan);
            return None;
        }
        *left = left.saturating_sub(if is_short(&batch) { SHORT } else { BYTES_PER_TURN });
        scan.hit(first_since(&batch, timestamp));
        Some(scan)
    }

    /// From now on long batches are opened there.
    pub fn set_opener(&mut self, opener: Box<dyn Opener>) {
        self.scans.opener = Some(opener);
    }

    /// What was found in a batch that was opened elsewhere.
    pub fn opened(&mut self, ticket: u64, hit: Hit) {
        let Some(mut scan) = self.scans.waiting.remove(&ticket) else { return };
        scan.hit(hit);
        self.scans.ready.push_back(scan);
    }

    /// Where to start looking for a time: nothing before it is late enough. Past the end if the segments say that there
    /// is nothing.
    fn time_bound(&mut self, key: PartitionKey, timestamp: i64) -> u64 {
        match self.storage.segments().offset_for_timestamp(key, timestamp) {
            Ok(Some(bound)) => bound.offset,
            Ok(None) => u64::MAX,
            Err(_) => 0,
        }
    }

    fn offset_step(&mut self, wanted: &ListOffsetsPartition, cursor: &mut Option<u64>) -> Step {
        let (key, group) = match self.catalog.resolve(&wanted.topic, wanted.topic_id, wanted.partition) {
            Ok(found) => found,
            Err((error, message)) => {
                return Step::Found(PartitionOffset { error, message, ..at(wanted, (0, -1)) });
            }
        };
        let state = self.groups.get(&group).and_then(|data| data.state.get(key));
        let (start, end) = state.map_or((0, 0), |state| (state.log_start_offset, state.log_end_offset));
        let timestamp = match wanted.spec {
            OffsetSpec::Earliest => return Step::Found(at(wanted, (start, -1))),
            OffsetSpec::Latest => return Step::Found(at(wanted, (end, -1))),
            OffsetSpec::Timestamp(timestamp) => timestamp,
        };
        let from = cursor.unwrap_or_else(|| self.time_bound(key, timestamp)).max(start);
        if from >= end {
            return Step::Found(at(wanted, (end, -1)));
        }
        *cursor = Some(from);
        let Some(cached) = self.storage.cache().read(key, from, SCAN_BYTES) else { return Step::Cold(key, from) };
        match search(&cached.pieces, wanted) {
            Place::In(batch) => Step::In(batch),
            Place::Behind(Some(next)) if next > from => {
                *cursor = Some(next);
                Step::On(cached.pieces.iter().map(Bytes::len).sum())
            }
            Place::Behind(_) => Step::Found(at(wanted, (end, -1))),
        }
    }
}

impl Scan {
    /// What it looks for now.
    fn wanted(&self) -> Option<&ListOffsetsPartition> {
        self.request.partitions.get(self.results.len())
    }

    /// It was found here.
    fn hit(&mut self, hit: Hit) {
        if let Some(found) = self.wanted().map(|wanted| at(wanted, hit)) {
            self.conclude(found);
        }
    }

    /// One partition is answered.
    fn conclude(&mut self, result: PartitionOffset) {
        if let Some(search) = self.request.partitions.get(self.results.len()).and_then(same_search) {
            self.found.insert(search, self.results.len());
        }
        self.results.push(result);
        self.cursor = None;
    }
}

/// What is the same for searches by time with the same answer.
fn same_search(wanted: &ListOffsetsPartition) -> Option<(String, u64, u32, i64)> {
    match wanted.spec {
        OffsetSpec::Timestamp(timestamp) => Some((wanted.topic.clone(), wanted.topic_id, wanted.partition, timestamp)),
        _ => None,
    }
}

/// Look for the batch with the first record at or after the wanted time.
fn search(pieces: &[Bytes], wanted: &ListOffsetsPartition) -> Place {
    let OffsetSpec::Timestamp(timestamp) = wanted.spec else { return Place::Behind(None) };
    let mut next = None;
    for piece in pieces {
        let mut position = 0;
        while let Some(Ok(header)) = piece.get(position..).filter(|rest| !rest.is_empty()).map(BatchHeader::parse) {
            let end = (position + header.total_len()).min(piece.len());
            if header.max_timestamp >= timestamp {
                return Place::In(piece.slice(position..end));
            }
            next = Some(header.last_offset() + 1);
            position = end;
        }
    }
    Place::Behind(next)
}

/// Whether a batch is opened in no time.
fn is_short(batch: &Bytes) -> bool {
    let Ok(header) = BatchHeader::parse(batch) else { return true };
    let records = batch.get(HEADER_LEN..).unwrap_or_default();
    header.record_count == 1 || codec::is_short(header.codec, records, SHORT)
}

/// The first record at or after a time in a batch that has one; the batch's start where it cannot be read.
pub fn first_since(batch: &Bytes, timestamp_ms: i64) -> Hit {
    let Ok(header) = BatchHeader::parse(batch) else { return (0, -1) };
    let start = (header.base_offset, header.max_timestamp);
    // Of one record the header says all.
    if header.record_count == 1 {
        return start;
    }
    let limits = Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: MAX_OPENED_BYTES };
    let Ok(mut records) = lnc_protocol::batch::records(batch, &limits) else { return start };
    let hit = records.find_map(|record| record.ok().filter(|record| record.timestamp_ms >= timestamp_ms));
    hit.map_or(start, |record| (record.offset, record.timestamp_ms))
}

fn at(wanted: &ListOffsetsPartition, (offset, timestamp_ms): (u64, i64)) -> PartitionOffset {
    PartitionOffset {
        topic: wanted.topic.clone(),
        partition: wanted.partition,
        error: ErrorCode::None,
        message: String::new(),
        offset,
        timestamp_ms,
    }
}

fn damaged(wanted: &ListOffsetsPartition, error: &SegmentError) -> PartitionOffset {
    let (topic, partition) = (&wanted.topic, wanted.partition);
    if matches!(error, SegmentError::GivenUp { .. }) {
        return PartitionOffset { error: ErrorCode::NotReady, message: error.to_string(), ..at(wanted, (0, -1)) };
    }
    tracing::error!(%topic, partition, %error, "cannot read a segment");
    PartitionOffset { error: ErrorCode::StorageDamaged, message: error.to_string(), ..at(wanted, (0, -1)) }
}
