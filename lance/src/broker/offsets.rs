//! ListOffsets: earliest, latest, and the first offset at or after a time.
//!
//! A search by time starts where the segments' sparse index says and goes through batches from there, in memory or from
//! segment files, one request after the other.

use super::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::{PartitionKey, ReadDone, SegmentError};
use lnc_protocol::message::{ListOffsetsPartition, ListOffsetsRequest, OffsetSpec, Opcode, PartitionOffset, Response};
use lnc_protocol::{BatchHeader, ErrorCode, Limits};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes looked through per read.
const SCAN_BYTES: usize = 1 << 20;

/// A request that is being worked through, partition by partition.
struct Scan {
    caller: Caller,
    request: ListOffsetsRequest,
    results: Vec<PartitionOffset>,
    /// Where the search by time in the current partition goes on.
    cursor: Option<u64>,
}

/// Searches that wait for the disk.
#[derive(Default)]
pub(super) struct Scans {
    waiting: BTreeMap<u64, Scan>,
}

/// How far a search by time has come.
enum Step {
    Found(PartitionOffset),
    Cold(PartitionKey, u64),
}

impl<D: Disk> Broker<D> {
    /// The groups that must confirm where their logs end before a request can be answered.
    pub(super) fn groups_of_offsets(&self, request: &ListOffsetsRequest) -> BTreeSet<GroupId> {
        let group_of = |wanted: &ListOffsetsPartition| match self.catalog.topic(&wanted.topic) {
            _ if !self.catalog.knows(&wanted.topic, wanted.topic_id) => Some(super::META),
            None => Some(super::META),
            Some(_) if wanted.spec == OffsetSpec::Earliest => None,
            Some(topic) => Some(topic.group_of(wanted.partition)),
        };
        request.partitions.iter().filter_map(group_of).collect()
    }

    pub(super) fn list_offsets(&mut self, caller: Caller, request: ListOffsetsRequest) {
        self.go_on(Scan { caller, request, results: Vec::new(), cursor: None });
    }

    fn go_on(&mut self, mut scan: Scan) {
        while let Some(wanted) = scan.request.partitions.get(scan.results.len()) {
            match self.offset_step(wanted, &mut scan.cursor) {
                Step::Found(found) => {
                    scan.results.push(found);
                    scan.cursor = None;
                }
                Step::Cold(key, offset) => {
                    let ticket = self.ticket();
                    match self.storage.on_disk().read(&mut self.disk, key, offset, SCAN_BYTES, ticket) {
                        Ok(()) => {
                            self.scans.waiting.insert(ticket, scan);
                            return;
                        }
                        Err(error) => {
                            let failed = damaged(wanted, &error);
                            scan.results.push(failed);
                            scan.cursor = None;
                        }
                    }
                }
            }
        }
        self.reply(scan.caller, Opcode::ListOffsets, Response::ListOffsets(scan.results));
    }

    pub(super) fn scan_read_done(&mut self, read: ReadDone) {
        let Some(mut scan) = self.scans.waiting.remove(&read.ticket) else { return };
        let Some(wanted) = scan.request.partitions.get(scan.results.len()) else { return };
        let searched = match read.result {
            Err(error) => Err(damaged(wanted, &error)),
            Ok(batches) => {
                let after = search(&[batches.bytes], wanted)
                    .map_err(|hit| at(wanted, hit))
                    .map(|end| end.or(scan.cursor).unwrap_or_default());
                after.inspect(|next| scan.cursor = Some(*next))
            }
        };
        if let Err(result) = searched {
            scan.results.push(result);
            scan.cursor = None;
        }
        self.go_on(scan);
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
            Err((error, message)) => return Step::Found(PartitionOffset { error, message, ..at(wanted, (0, -1)) }),
        };
        let state = self.groups.get(&group).and_then(|data| data.state.get(key));
        let (start, end) = state.map_or((0, 0), |state| (state.log_start_offset, state.log_end_offset));
        let timestamp = match wanted.spec {
            OffsetSpec::Earliest => return Step::Found(at(wanted, (start, -1))),
            OffsetSpec::Latest => return Step::Found(at(wanted, (end, -1))),
            OffsetSpec::Timestamp(timestamp) => timestamp,
        };
        loop {
            let from = cursor.unwrap_or_else(|| self.time_bound(key, timestamp)).max(start);
            if from >= end {
                return Step::Found(at(wanted, (end, -1)));
            }
            *cursor = Some(from);
            let Some(cached) = self.storage.cache().read(key, from, SCAN_BYTES) else { return Step::Cold(key, from) };
            match search(&cached.pieces, wanted) {
                Err(hit) => return Step::Found(at(wanted, hit)),
                Ok(Some(next)) if next > from => *cursor = Some(next),
                Ok(_) => return Step::Found(at(wanted, (end, -1))),
            }
        }
    }
}

/// Look for the first record at or after the wanted time: `Err((offset, timestamp))` when found, else the offset after
/// the last batch looked at.
fn search(pieces: &[Bytes], wanted: &ListOffsetsPartition) -> Result<Option<u64>, (u64, i64)> {
    let OffsetSpec::Timestamp(timestamp) = wanted.spec else { return Ok(None) };
    let mut next = None;
    for piece in pieces {
        let mut position = 0;
        while let Some(Ok(header)) = piece.get(position..).filter(|rest| !rest.is_empty()).map(BatchHeader::parse) {
            let end = (position + header.total_len()).min(piece.len());
            if header.max_timestamp >= timestamp {
                let limits = Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: 64 << 20 };
                let records = lnc_protocol::batch::records(&piece.slice(position..end), &limits);
                let hit = records.ok().and_then(|mut records| {
                    records.find_map(|record| record.ok().filter(|record| record.timestamp_ms >= timestamp))
                });
                return Err(hit.map_or((header.base_offset, header.max_timestamp), |r| (r.offset, r.timestamp_ms)));
            }
            next = Some(header.last_offset() + 1);
            position = end;
        }
    }
    Ok(next)
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
    tracing::error!(%topic, partition, %error, "cannot read a segment");
    PartitionOffset { error: ErrorCode::StorageDamaged, message: error.to_string(), ..at(wanted, (0, -1)) }
}
