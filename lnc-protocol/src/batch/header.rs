//! The 61-byte header of a record batch.

use bytes::{Buf, BufMut};

use super::error::BatchError;
use crate::codec::Codec;

/// The length of a batch's header in bytes.
pub const HEADER_LEN: usize = 61;

/// The length of the part that the leader overwrites when it stores a batch: base offset, length, leader epoch.
pub const PREFIX_LEN: usize = 16;

/// The version of the batch layout.
pub const MAGIC: u8 = 2;

/// The producer id of a batch that takes no part in duplicate detection.
pub const NO_PRODUCER_ID: i64 = -1;

/// How many bytes come before those that the length field counts.
const LENGTH_COUNTS_FROM: usize = 12;

/// Where the bytes under the CRC begin.
pub(super) const CRC_COVERS_FROM: usize = 21;

/// The part of the attributes that names the codec; the rest must be 0 in a batch from a producer.
const CODEC_MASK: u16 = 0x07;

/// The header of a batch, with its fields in the types that the rest of LANCE uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// The offset of the first record.
    pub base_offset: u64,
    /// How many bytes follow the length field.
    pub batch_length: u32,
    /// The term of the leader that stored the batch, cut to 32 bits; -1 in a batch from a producer.
    pub partition_leader_epoch: i32,
    /// The CRC-32C of everything from the attributes on.
    pub crc: u32,
    /// The attributes as they are; of their bits only the codec is in use.
    pub attributes: u16,
    /// The codec that the attributes name.
    pub codec: Codec,
    /// The offset of the last record, relative to the base offset.
    pub last_offset_delta: u32,
    /// The timestamp of the first record, in milliseconds since 1970.
    pub base_timestamp: i64,
    /// The latest timestamp of a record, in milliseconds since 1970.
    pub max_timestamp: i64,
    /// The producer that sent the batch, or [`NO_PRODUCER_ID`].
    pub producer_id: i64,
    /// The producer's epoch. No meaning without a producer id.
    pub producer_epoch: i16,
    /// The producer's sequence number of the first record. No meaning without a producer id.
    pub base_sequence: i32,
    /// How many records the batch holds.
    pub record_count: u32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may go on. The CRC is not verified: that takes the whole batch.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(mut raw) = bytes.get(..HEADER_LEN) else {
            return Err(BatchError::Truncated { needed: HEADER_LEN, found: bytes.len() });
        };
        let base_offset = raw.get_i64();
        let batch_length = raw.get_i32();
        let partition_leader_epoch = raw.get_i32();
        let magic = raw.get_u8();
        if magic != MAGIC {
            return Err(BatchError::BadMagic { found: magic });
        }
        let base_offset = non_negative("base offset", base_offset)?;
        let batch_length = non_negative_32("length", batch_length)?;
        if (batch_length as usize) < HEADER_LEN - LENGTH_COUNTS_FROM {
            let declared = LENGTH_COUNTS_FROM + batch_length as usize;
            return Err(BatchError::LengthMismatch { declared, found: bytes.len() });
        }
        let crc = raw.get_u32();
        let attributes = raw.get_u16();
        let codec =
            Codec::try_from((attributes & CODEC_MASK) as u8).map_err(|codec| BatchError::UnsupportedCodec { codec })?;
        Ok(Self {
            base_offset,
            batch_length,
            partition_leader_epoch,
            crc,
            attributes,
            codec,
            last_offset_delta: non_negative_32("last offset delta", raw.get_i32())?,
            base_timestamp: raw.get_i64(),
            max_timestamp: raw.get_i64(),
            producer_id: raw.get_i64(),
            producer_epoch: raw.get_i16(),
            base_sequence: raw.get_i32(),
            record_count: non_negative_32("record count", raw.get_i32())?,
        })
    }

    /// The length of the whole batch in bytes.
    pub fn total_len(&self) -> usize {
        LENGTH_COUNTS_FROM + self.batch_length as usize
    }

    /// The offset of the last record.
    pub fn last_offset(&self) -> u64 {
        // Cannot overflow: the base offset is at most i64::MAX.
        self.base_offset + u64::from(self.last_offset_delta)
    }

    /// Whether the batch takes part in duplicate detection.
    pub fn has_producer(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }

    /// The rules for a batch from a producer that concern the header alone.
    pub(super) fn check_rules(&self) -> Result<(), BatchError> {
        if self.attributes & !CODEC_MASK != 0 {
            return Err(BatchError::UnsupportedAttributes { attributes: self.attributes });
        }
        if self.record_count == 0 {
            return Err(BatchError::Empty);
        }
        if self.record_count - 1 != self.last_offset_delta {
            let (count, last_offset_delta) = (self.record_count, self.last_offset_delta);
            return Err(BatchError::CountMismatch { count, last_offset_delta });
        }
        let negative_parts = self.producer_epoch < 0 || self.base_sequence < 0;
        if self.producer_id < NO_PRODUCER_ID || (self.has_producer() && negative_parts) {
            return Err(BatchError::InvalidProducer {
                producer_id: self.producer_id,
                producer_epoch: self.producer_epoch,
                base_sequence: self.base_sequence,
            });
        }
        Ok(())
    }

    /// Writes the header over the start of `batch` and then, with the rest of `batch` in place, its length and CRC.
    /// Both are computed; the fields' values are ignored.
    pub(super) fn write(&self, batch: &mut [u8]) {
        let batch_length = (batch.len() - LENGTH_COUNTS_FROM) as u32;
        let mut at = &mut batch[..HEADER_LEN];
        at.put_u64(self.base_offset);
        at.put_u32(batch_length);
        at.put_i32(self.partition_leader_epoch);
        at.put_u8(MAGIC);
        at.put_u32(0);
        at.put_u16(self.attributes);
        at.put_u32(self.last_offset_delta);
        at.put_i64(self.base_timestamp);
        at.put_i64(self.max_timestamp);
        at.put_i64(self.producer_id);
        at.put_i16(self.producer_epoch);
        at.put_i32(self.base_sequence);
        at.put_u32(self.record_count);
        let crc = crc32c::crc32c(&batch[CRC_COVERS_FROM..]);
        batch[CRC_COVERS_FROM - 4..CRC_COVERS_FROM].copy_from_slice(&crc.to_be_bytes());
    }
}

fn non_negative(field: &'static str, value: i64) -> Result<u64, BatchError> {
    u64::try_from(value).map_err(|_| BatchError::Negative { field, value })
}

fn non_negative_32(field: &'static str, value: i32) -> Result<u32, BatchError> {
    u32::try_from(value).map_err(|_| BatchError::Negative { field, value: i64::from(value) })
}
