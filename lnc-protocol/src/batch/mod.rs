//! Record batches: how records are packed on the wire, in the journal and in segment files.
//!
//! The layout is the Kafka v2 record batch, big-endian inside, so that other tools can read the files:
//!
//! | bytes | field | under the CRC |
//! |---|---|---|
//! | 0..8 | base offset | no: assigned by the leader |
//! | 8..12 | length of what follows | no: checked against the bytes |
//! | 12..16 | partition leader epoch | no: assigned by the leader |
//! | 16 | magic, 2 | no: checked against 2 |
//! | 17..21 | CRC-32C of bytes 21.. | |
//! | 21..23 | attributes: codec in bits 0..3 | yes |
//! | 23..27 | last offset delta | yes |
//! | 27..35, 35..43 | base timestamp, max timestamp | yes |
//! | 43..51, 51..53, 53..57 | producer id, producer epoch, base sequence | yes |
//! | 57..61 | record count | yes |
//! | 61.. | records, compressed as one frame if there is a codec | yes |
//!
//! A producer builds with [`BatchBuilder`]; a broker turns bytes into a [`RecordBatch`], which cannot exist
//! unchecked, and gives it its place with [`stamped_prefix`]; a reader of storage uses [`check`] and [`split`]; a
//! consumer iterates with [`records`].

mod builder;
mod error;
mod header;
mod record;

use std::iter::FusedIterator;

use bytes::Bytes;

pub use builder::{BatchBuilder, max_record_len};
pub use error::{BatchError, RecordProblem};
pub use header::{BatchHeader, HEADER_LEN, MAGIC, NO_PRODUCER_ID, PREFIX_LEN};
pub use record::{Record, RecordIter, records};

use record::{RecordWalk, payload};

/// What a receiver of batches accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest batch, in bytes as sent.
    pub max_batch_bytes: usize,
    /// The longest records section after decompression, in bytes. Keep it a small multiple of `max_batch_bytes`:
    /// it is what one hostile batch can make a receiver allocate.
    pub max_decompressed_bytes: usize,
}

impl Default for Limits {
    /// 1 MiB as sent, 16 MiB decompressed.
    fn default() -> Self {
        Self { max_batch_bytes: 1 << 20, max_decompressed_bytes: 16 << 20 }
    }
}

/// A batch that passed every check. Cloning shares the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordBatch {
    header: BatchHeader,
    bytes: Bytes,
}

impl RecordBatch {
    /// Checks everything that can be checked about a batch from a producer: length, magic, CRC, attributes, counts,
    /// producer fields, and every record, decompressed if need be. `bytes` must be exactly one batch.
    ///
    /// The base offset and the leader epoch are not under the CRC and may be anything; the leader overwrites them.
    pub fn validate(bytes: Bytes, limits: &Limits) -> Result<Self, BatchError> {
        if bytes.len() > limits.max_batch_bytes {
            return Err(BatchError::TooLarge { len: bytes.len(), limit: limits.max_batch_bytes });
        }
        let header = check(&bytes)?;
        header.check_rules()?;
        let payload = payload(&header, &bytes, limits)?;
        let mut max_timestamp = i64::MIN;
        let mut walk = RecordWalk::new(&header, &payload);
        while let Some(record) = walk.next_record()? {
            max_timestamp = max_timestamp.max(header.base_timestamp.wrapping_add(record.timestamp_delta));
        }
        if max_timestamp != header.max_timestamp {
            return Err(BatchError::MaxTimestamp { declared: header.max_timestamp, found: max_timestamp });
        }
        Ok(Self { header, bytes })
    }

    /// Takes a batch that [`RecordBatch::validate`] has accepted before, at its word.
    pub fn checked_before(bytes: Bytes) -> Result<Self, BatchError> {
        Ok(Self { header: BatchHeader::parse(&bytes)?, bytes })
    }

    /// The header, as it arrived.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch, as it arrived.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Gives up the batch for its bytes.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// The first 16 bytes that this batch has at its place in a partition; see [`stamped_prefix`].
    pub fn stamped_prefix(&self, base_offset: u64, leader_epoch: i32) -> [u8; PREFIX_LEN] {
        stamped_prefix(&self.bytes, base_offset, leader_epoch)
    }
}

/// The first 16 bytes of a stored batch: base offset, length, leader epoch. What follows them is as the producer sent
/// it, CRC included, so a batch gets its place without being copied or summed again.
///
/// `raw` is a checked batch or its header; of less than 12 bytes no length can be taken, and the prefix then carries
/// the length 0, which every check refuses.
pub fn stamped_prefix(raw: &[u8], base_offset: u64, leader_epoch: i32) -> [u8; PREFIX_LEN] {
    let mut prefix = [0; PREFIX_LEN];
    prefix[..8].copy_from_slice(&base_offset.to_be_bytes());
    if let Some(length) = raw.get(8..12) {
        prefix[8..12].copy_from_slice(length);
    }
    prefix[12..].copy_from_slice(&leader_epoch.to_be_bytes());
    prefix
}

/// Checks header, length and CRC of exactly one batch, without looking at its records: what a read from storage needs.
pub fn check(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(bytes)?;
    if header.total_len() != bytes.len() {
        return Err(BatchError::LengthMismatch { declared: header.total_len(), found: bytes.len() });
    }
    let computed = crc32c::crc32c(&bytes[header::CRC_COVERS_FROM..]);
    if computed != header.crc {
        return Err(BatchError::BadCrc { stored: header.crc, computed });
    }
    Ok(header)
}

/// Takes concatenated batches apart, without copying and without verifying their CRCs. An incomplete last batch is an
/// error; nothing comes after an error.
pub fn split(bytes: Bytes) -> Split {
    Split { rest: bytes }
}

/// The iterator of [`split`].
#[derive(Clone, Debug)]
pub struct Split {
    rest: Bytes,
}

impl Iterator for Split {
    type Item = Result<Bytes, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.rest.len();
        let whole = BatchHeader::parse(&self.rest).and_then(|header| match header.total_len() {
            needed if needed > found => Err(BatchError::Truncated { needed, found }),
            len => Ok(self.rest.split_to(len)),
        });
        if whole.is_err() {
            self.rest.clear();
        }
        Some(whole)
    }
}

impl FusedIterator for Split {}
