//! Layout of the journal's bytes: flush headers and records. All numbers are little-endian.
//!
//! ```text
//! flush    header (64) | records … | zeros up to the next block boundary
//! header   magic 4 | version 2 | 0 2 | identity 8 | epoch 8 | number 8 | durable 8 | file 8 | body length 4 |
//!          record count 4 | 0 4 | CRC-32 of the 60 bytes before 4
//! record   length of the rest 4 | CRC-32 of length and rest 4 | sequence 8 | group 4 | kind 1 | body
//! bodies   entry: entry kind 1, term 8, index 8, payload     hard state: term 8, voted 1, vote 8
//!          checkpoint: term 8, index 8             identities: summaries of the flushes before (`identity.rs`)
//!          owner: cluster 16, node 8, incarnation 8, in the first flush of a file, from format 3 on
//! ```

use super::GroupId;
use crate::FileOwner;
use crate::disk::AlignedBuf;
use std::ops::Range;

/// Length of a flush header in bytes.
pub(super) const HEADER: usize = 64;
/// Length in bytes of what comes before a record's body.
const RECORD_HEAD: usize = 21;
/// Length of a whole hard-state record in bytes.
pub(super) const HARD_STATE_RECORD: usize = RECORD_HEAD + 17;
/// Length of a whole checkpoint record in bytes.
pub(super) const CHECKPOINT_RECORD: usize = RECORD_HEAD + 16;
/// Length in bytes of an entry record without its payload.
pub(super) const ENTRY_RECORD: usize = RECORD_HEAD + 17;

const MAGIC: [u8; 4] = *b"LNCJ";
const VERSION: u16 = 2;
/// No epoch, flush, file or record is counted this far. Bytes that claim it are no flush, and no number overflows.
const NUMBER_LIMIT: u64 = 1 << 62;
const ENTRY: u8 = 1;
const HARD_STATE: u8 = 2;
const CHECKPOINT: u8 = 3;
const IDENTITIES: u8 = 4;
const OWNER: u8 = 5;

/// Length in bytes of an identities record without the summaries.
pub(super) const IDENTITIES_RECORD: usize = RECORD_HEAD;
/// Length of a whole owner record in bytes.
pub(super) const OWNER_RECORD: usize = RECORD_HEAD + FileOwner::LEN;

/// The first bytes of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Whose journal it is. Random per node, so that no payload can be made to look like a flush.
    pub(super) identity: u64,
    /// Raised at each open; bytes of a lower epoch than their predecessor's are leftovers.
    pub(super) epoch: u64,
    /// Number of this flush, counted without gaps.
    pub(super) number: u64,
    /// All flushes up to this one were known durable when this one was built.
    pub(super) durable: u64,
    /// The file it was written to, which tells it from leftovers in a recycled file.
    pub(super) file: u64,
    pub(super) body_len: u32,
    pub(super) records: u32,
}

/// Why some bytes are no header of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// No magic, or numbers that no journal counts to: unused space, or something else's bytes.
    Absent,
    /// The magic is there, the checksum does not match.
    Checksum { stored: u32, computed: u32 },
    /// Another node's journal.
    Foreign { identity: u64 },
    /// Written by a version that this one does not know; the places of file and number are the same in all.
    Version { found: u16, file: u64, number: u64 },
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let mut raw = [0; 2];
    raw.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(raw)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        for (n, field) in [self.identity, self.epoch, self.number, self.durable, self.file].into_iter().enumerate() {
            out[8 + n * 8..16 + n * 8].copy_from_slice(&field.to_le_bytes());
        }
        out[48..52].copy_from_slice(&self.body_len.to_le_bytes());
        out[52..56].copy_from_slice(&self.records.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// As [`Header::decode`], whoever it belongs to.
    pub(super) fn decode_any(bytes: &[u8]) -> Result<Self, HeaderFault> {
        Self::decode(bytes, u64_at(bytes, 8))
    }

    /// Decode from at least [`HEADER`] bytes.
    pub(super) fn decode(bytes: &[u8], identity: u64) -> Result<Self, HeaderFault> {
        if bytes[..4] != MAGIC {
            return Err(HeaderFault::Absent);
        }
        let (stored, computed) = (u32_at(bytes, 60), crc32fast::hash(&bytes[..60]));
        if stored != computed {
            return Err(HeaderFault::Checksum { stored, computed });
        }
        let version = u16_at(bytes, 4);
        if version != VERSION {
            return Err(HeaderFault::Version { found: version, file: u64_at(bytes, 40), number: u64_at(bytes, 24) });
        }
        let header = Self {
            identity: u64_at(bytes, 8),
            epoch: u64_at(bytes, 16),
            number: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            file: u64_at(bytes, 40),
            body_len: u32_at(bytes, 48),
            records: u32_at(bytes, 52),
        };
        if header.identity != identity {
            return Err(HeaderFault::Foreign { identity: header.identity });
        }
        if [header.epoch, header.number, header.durable, header.file].iter().any(|number| *number >= NUMBER_LIMIT) {
            return Err(HeaderFault::Absent);
        }
        Ok(header)
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// `payload` is a range of the record's bytes.
    Entry {
        kind: u8,
        term: u64,
        index: u64,
        payload: Range<usize>,
    },
    HardState {
        term: u64,
        vote: Option<u64>,
    },
    /// The group's log restarts after `index`.
    Checkpoint {
        term: u64,
        index: u64,
    },
    /// What the flushes before this one held; a range of the record's bytes. About no group.
    Identities {
        summaries: Range<usize>,
    },
    /// Whose file it is. About no group.
    Owner(FileOwner),
}

/// One decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Length of the whole record in bytes.
    pub(super) len: usize,
    pub(super) sequence: u64,
    pub(super) group: GroupId,
    pub(super) body: Body,
}

impl Record {
    /// Decode the record at the start of `bytes`; the error says what is wrong.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < RECORD_HEAD {
            return Err(format!("{} bytes, too few for a record", bytes.len()));
        }
        let len = (u32_at(bytes, 0) as usize).saturating_add(8);
        if len < RECORD_HEAD || len > bytes.len() {
            return Err(format!("record length {len} with {} bytes left", bytes.len()));
        }
        let (stored, computed) = (u32_at(bytes, 4), crc(&bytes[..len]));
        if stored != computed {
            return Err(format!("record CRC {computed:#010x}, stored {stored:#010x}"));
        }
        let sequence = u64_at(bytes, 8);
        if sequence >= NUMBER_LIMIT {
            return Err(format!("record number {sequence}"));
        }
        let (kind, body) = (bytes[20], &bytes[RECORD_HEAD..len]);
        let body = match (kind, body.len()) {
            (ENTRY, 17..) => {
                Body::Entry { kind: body[0], term: u64_at(body, 1), index: u64_at(body, 9), payload: ENTRY_RECORD..len }
            }
            (HARD_STATE, 17) => Body::HardState {
                term: u64_at(body, 0),
                vote: match body[8] {
                    0 => None,
                    1 => Some(u64_at(body, 9)),
                    flag => return Err(format!("vote flag {flag}")),
                },
            },
            (CHECKPOINT, 16) => Body::Checkpoint { term: u64_at(body, 0), index: u64_at(body, 8) },
            (OWNER, FileOwner::LEN) => {
                let mut owner = [0; FileOwner::LEN];
                owner.copy_from_slice(body);
                Body::Owner(FileOwner::decode(&owner))
            }
            (IDENTITIES, _) => Body::Identities { summaries: RECORD_HEAD..len },
            _ => return Err(format!("record kind {kind} with a body of {} bytes", body.len())),
        };
        Ok(Self { len, sequence, group: GroupId(u32_at(bytes, 16)), body })
    }
}

/// CRC of a whole record: everything but the CRC itself.
fn crc(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}

fn encode(buf: &mut AlignedBuf, sequence: u64, group: GroupId, kind: u8, parts: &[&[u8]]) {
    let start = buf.len();
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(RECORD_HEAD - 8 + body).expect("an entry is far below 4 GiB");
    buf.reserve(RECORD_HEAD + body);
    buf.extend_from_slice(&len.to_le_bytes());
    buf.extend_from_slice(&[0; 4]);
    buf.extend_from_slice(&sequence.to_le_bytes());
    buf.extend_from_slice(&group.0.to_le_bytes());
    buf.extend_from_slice(&[kind]);
    for part in parts {
        buf.extend_from_slice(part);
    }
    let crc = crc(&buf[start..]);
    buf[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

pub(super) fn encode_entry(
    buf: &mut AlignedBuf,
    sequence: u64,
    group: GroupId,
    (term, index, kind): (u64, u64, u8),
    payload: &[u8],
) {
    encode(buf, sequence, group, ENTRY, &[&[kind], &term.to_le_bytes(), &index.to_le_bytes(), payload]);
}

pub(super) fn encode_hard_state(buf: &mut AlignedBuf, sequence: u64, group: GroupId, term: u64, vote: Option<u64>) {
    let parts: [&[u8]; 3] = [&term.to_le_bytes(), &[u8::from(vote.is_some())], &vote.unwrap_or_default().to_le_bytes()];
    encode(buf, sequence, group, HARD_STATE, &parts);
}

pub(super) fn encode_checkpoint(buf: &mut AlignedBuf, sequence: u64, group: GroupId, term: u64, index: u64) {
    encode(buf, sequence, group, CHECKPOINT, &[&term.to_le_bytes(), &index.to_le_bytes()]);
}

pub(super) fn encode_identities(buf: &mut AlignedBuf, sequence: u64, summaries: &[u8]) {
    encode(buf, sequence, GroupId(0), IDENTITIES, &[summaries]);
}

pub(super) fn encode_owner(buf: &mut AlignedBuf, sequence: u64, owner: &FileOwner) {
    encode(buf, sequence, GroupId(0), OWNER, &[&owner.encode()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_trip_and_no_flipped_bit_does() {
        let header = Header { identity: 7, epoch: 2, number: 30, durable: 29, file: 4, body_len: 500, records: 3 };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes, 7), Ok(header));
        assert_eq!(Header::decode(&bytes, 8), Err(HeaderFault::Foreign { identity: 7 }));
        for bit in 0..HEADER * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, 7).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        let header = Header { identity: 7, epoch: 2, number: 30, durable: 29, file: 4, body_len: 500, records: 3 };
        let with: [fn(&mut Header); 4] =
            [|h| h.epoch = u64::MAX, |h| h.number = u64::MAX, |h| h.durable = u64::MAX, |h| h.file = u64::MAX];
        for change in with {
            let mut bad = header;
            change(&mut bad);
            assert_eq!(Header::decode(&bad.encode(), 7), Err(HeaderFault::Absent), "{bad:?}");
        }
        let mut buf = AlignedBuf::default();
        encode_hard_state(&mut buf, u64::MAX, GroupId(3), 4, None);
        assert!(Record::decode(&buf).is_err());
    }

    #[test]
    fn records_survive_the_trip_and_no_flipped_bit_does() {
        let mut buf = AlignedBuf::default();
        encode_entry(&mut buf, 5, GroupId(3), (2, 9, 1), b"payload");
        encode_hard_state(&mut buf, 6, GroupId(3), 4, Some(0));
        encode_hard_state(&mut buf, 7, GroupId(1), 4, None);
        encode_checkpoint(&mut buf, 8, GroupId(1), 4, 11);
        let owner = FileOwner { cluster: 1 << 70, node: 3, incarnation: 9 };
        encode_owner(&mut buf, 9, &owner);
        let mut at = 0;
        let mut bodies = Vec::new();
        while at < buf.len() {
            let record = Record::decode(&buf[at..]).expect("valid");
            for bit in 0..record.len * 8 {
                let mut bad = buf[at..at + record.len].to_vec();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(Record::decode(&bad).is_err(), "record at {at}, bit {bit}");
            }
            assert_eq!(record.sequence, 5 + bodies.len() as u64);
            at += record.len;
            bodies.push(record.body);
        }
        assert_eq!(
            bodies,
            [
                Body::Entry { kind: 1, term: 2, index: 9, payload: 38..45 },
                Body::HardState { term: 4, vote: Some(0) },
                Body::HardState { term: 4, vote: None },
                Body::Checkpoint { term: 4, index: 11 },
                Body::Owner(owner),
            ]
        );
    }
}
