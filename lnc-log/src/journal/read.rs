//! Reading entries back, for peers that are behind what memory holds.

use super::files::Files;
use super::format::{Body, Record};
use super::{JournalError, Location, RecoveredEntry, file_path};
use crate::disk::{AlignedBuf, BLOCK, Disk, Op, Outcome, Owner};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io;

/// Neighbouring records are read together up to this many bytes; a longer record is read alone.
const MAX_READ: u64 = 1 << 20;
/// Records further apart than this, in bytes, are not worth one read.
const MAX_GAP: u64 = 64 << 10;

/// A finished [`read`](super::Journal::read).
#[derive(Debug)]
pub struct JournalRead {
    /// As passed to `read`.
    pub ticket: u64,
    /// The entries in the order asked for, each checked.
    pub result: Result<Vec<RecoveredEntry>, JournalError>,
}

/// One disk read: aligned, within one file.
#[derive(Debug)]
struct Part {
    file: u64,
    start: u64,
    end: u64,
    locations: Vec<Location>,
    bytes: AlignedBuf,
}

#[derive(Debug)]
struct Pending {
    ticket: u64,
    parts: Vec<Part>,
    waiting: usize,
    failure: Option<JournalError>,
}

#[derive(Debug, Default)]
pub(super) struct Reads {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    /// Token to pending read and part.
    tokens: BTreeMap<u64, (u64, usize)>,
}

/// Split `locations` into reads, in order.
fn plan(locations: &[Location]) -> Vec<Part> {
    let block = BLOCK as u64;
    let mut parts: Vec<Part> = Vec::new();
    for location in locations {
        let start = location.position / block * block;
        let end = (location.position + u64::from(location.len)).next_multiple_of(block);
        match parts.last_mut() {
            Some(part)
                if part.file == location.file
                    && part.start <= start
                    && start <= part.end + MAX_GAP
                    && end.max(part.end) - part.start <= MAX_READ =>
            {
                part.end = part.end.max(end);
                part.locations.push(*location);
            }
            _ => parts.push(Part {
                file: location.file,
                start,
                end,
                locations: vec![*location],
                bytes: AlignedBuf::default(),
            }),
        }
    }
    parts
}

impl Part {
    fn decode(&self, entries: &mut Vec<RecoveredEntry>) -> Result<(), JournalError> {
        for location in &self.locations {
            let damaged = |found| JournalError::Damaged {
                file: location.file,
                position: location.position,
                expected: format!("entry record {} of {} bytes", location.sequence, location.len),
                found,
            };
            let from = (location.position - self.start) as usize;
            let record = self.bytes.get(from..from + location.len as usize);
            let record = record.ok_or_else(|| damaged("the end of the file".to_owned()))?;
            let decoded = Record::decode(record).map_err(damaged)?;
            match decoded.body {
                Body::Entry { kind, term, index, payload }
                    if decoded.sequence == location.sequence && decoded.len == record.len() =>
                {
                    let payload = Bytes::copy_from_slice(&record[payload]);
                    entries.push(RecoveredEntry { term, index, kind, payload, location: *location, damaged: false });
                }
                _ => return Err(damaged(format!("record {} of {} bytes", decoded.sequence, decoded.len))),
            }
        }
        Ok(())
    }
}

impl Reads {
    pub(super) fn owns(&self, token: u64) -> bool {
        self.tokens.contains_key(&token)
    }

    /// Submit the reads. Every location lies in a live file.
    pub(super) fn start<D: Disk>(&mut self, disk: &mut D, ticket: u64, locations: &[Location], files: &mut Files) {
        self.next += 1;
        let parts = plan(locations);
        for (n, part) in parts.iter().enumerate() {
            let token = files.token();
            self.tokens.insert(token, (self.next, n));
            if let Some(live) = files.live.get_mut(&part.file) {
                live.readers += 1;
                let op = Op::Read { file: live.id, position: part.start, len: (part.end - part.start) as usize };
                disk.submit(Owner::Journal.token(token), op);
            }
        }
        let waiting = parts.len();
        self.pending.insert(self.next, Pending { ticket, parts, waiting, failure: None });
    }

    pub(super) fn on_completion(
        &mut self,
        token: u64,
        result: io::Result<Outcome>,
        files: &mut Files,
    ) -> Option<JournalRead> {
        let (read, n) = self.tokens.remove(&token)?;
        let pending = self.pending.get_mut(&read)?;
        let part = &mut pending.parts[n];
        if let Some(live) = files.live.get_mut(&part.file) {
            live.readers -= 1;
        }
        match result {
            Ok(Outcome::Read(bytes)) => part.bytes = bytes,
            // Bytes that never came read as the end of the file.
            Ok(_) => {}
            Err(source) => {
                pending.failure.get_or_insert(JournalError::ReadFailed { path: file_path(part.file), source });
            }
        }
        pending.waiting -= 1;
        if pending.waiting > 0 {
            return None;
        }
        let Pending { ticket, parts, failure, .. } = self.pending.remove(&read)?;
        let result = match failure {
            Some(failure) => Err(failure),
            None => {
                let mut entries = Vec::with_capacity(parts.iter().map(|part| part.locations.len()).sum());
                parts.iter().try_for_each(|part| part.decode(&mut entries)).map(|()| entries)
            }
        };
        Some(JournalRead { ticket, result })
    }
}
