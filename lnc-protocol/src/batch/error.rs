//! What can be wrong with a record batch.

use thiserror::Error;

use crate::codec::CodecError;
use crate::error::ErrorCode;

/// Why bytes are not an acceptable record batch.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("batch ends early: {needed} bytes needed, {found} found")]
    Truncated {
        /// Bytes that the batch needs.
        needed: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// The batch's length field and the number of bytes differ.
    #[error("batch says it has {declared} bytes, {found} found")]
    LengthMismatch {
        /// The length according to the header, in bytes.
        declared: usize,
        /// Bytes that there are.
        found: usize,
    },
    /// The batch is longer than the receiver accepts.
    #[error("batch of {len} bytes is over the limit of {limit}")]
    TooLarge {
        /// The length of the batch in bytes.
        len: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Another layout, or no batch at all.
    #[error("batch magic is {found}, expected 2")]
    BadMagic {
        /// The magic found.
        found: u8,
    },
    /// The batch was damaged.
    #[error("batch CRC-32C is {computed:#010x}, header says {stored:#010x}")]
    BadCrc {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A field that counts something is negative.
    #[error("batch {field} is negative: {value}")]
    Negative {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// The attributes ask for what is not supported: transactions, control batches, broker timestamps.
    #[error("batch attributes {attributes:#06x} ask for more than a codec")]
    UnsupportedAttributes {
        /// All attributes.
        attributes: u16,
    },
    /// The codec is unknown or not supported.
    #[error("codec {codec} is not supported; supported are none (0), lz4 (3) and zstd (4)")]
    UnsupportedCodec {
        /// The codec's number.
        codec: u8,
    },
    /// The batch holds no records.
    #[error("batch without records")]
    Empty,
    /// Record count and last offset delta contradict each other.
    #[error("batch of {count} records has the last offset delta {last_offset_delta}")]
    CountMismatch {
        /// The record count.
        count: u32,
        /// The last offset delta; one less than the count in a sound batch.
        last_offset_delta: u32,
    },
    /// The producer fields contradict each other.
    #[error("producer id {producer_id} with epoch {producer_epoch} and sequence {base_sequence}")]
    InvalidProducer {
        /// The producer id; at least -1 in a sound batch.
        producer_id: i64,
        /// The epoch; not negative if there is a producer id.
        producer_epoch: i16,
        /// The sequence number; not negative if there is a producer id.
        base_sequence: i32,
    },
    /// The records could not be decompressed.
    #[error("records: {0}")]
    Codec(#[from] CodecError),
    /// A record is malformed.
    #[error("record {index} of the batch: {problem}")]
    Record {
        /// Which record, counted from 0.
        index: u32,
        /// What is wrong with it.
        problem: RecordProblem,
    },
    /// Bytes follow the last record.
    #[error("{count} bytes follow the last record")]
    TrailingBytes {
        /// How many bytes follow.
        count: usize,
    },
    /// The header's latest timestamp is not that of the records.
    #[error("batch says its latest timestamp is {declared}, its records say {found}")]
    MaxTimestamp {
        /// According to the header, in milliseconds.
        declared: i64,
        /// According to the records, in milliseconds.
        found: i64,
    },
    /// A batch under construction has no room for another record.
    #[error("a record of about {len} bytes does not fit a batch")]
    RecordTooLarge {
        /// The length of the record in bytes.
        len: usize,
    },
}

impl BatchError {
    /// The code under which to report this error to the peer.
    pub fn code(&self) -> ErrorCode {
        match self {
            BatchError::Truncated { .. }
            | BatchError::LengthMismatch { .. }
            | BatchError::BadMagic { .. }
            | BatchError::BadCrc { .. } => ErrorCode::CorruptBatch,
            BatchError::TooLarge { .. }
            | BatchError::RecordTooLarge { .. }
            | BatchError::Codec(CodecError::TooLarge { .. }) => ErrorCode::BatchTooLarge,
            BatchError::UnsupportedCodec { .. } => ErrorCode::UnsupportedCodec,
            _ => ErrorCode::InvalidBatch,
        }
    }
}

/// What is wrong with one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordProblem {
    /// A number of variable length runs off the end or has too many bits.
    #[error("{field} is not a number of at most {max_bits} bits")]
    BadVarint {
        /// The field.
        field: &'static str,
        /// How many bits the field may have.
        max_bits: u32,
    },
    /// A length or count is negative where it must not be, or less than -1.
    #[error("{field} is {value}")]
    BadLength {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i32,
    },
    /// A field ends beyond its record, or the record beyond the batch.
    #[error("{field} of {len} bytes in {remaining} bytes")]
    OutOfBounds {
        /// The field.
        field: &'static str,
        /// The length of the field in bytes.
        len: usize,
        /// Bytes that were left for it.
        remaining: usize,
    },
    /// Offsets must go up by one from record to record.
    #[error("offset delta {found}, expected {expected}")]
    OffsetDelta {
        /// The record's place in the batch.
        expected: u32,
        /// What the record says.
        found: i32,
    },
    /// The key of a header is not UTF-8.
    #[error("the key of a header is not UTF-8")]
    HeaderKeyNotUtf8,
    /// The record's fields end before the record does.
    #[error("{count} bytes follow the record's last field")]
    TrailingBytes {
        /// How many bytes follow.
        count: usize,
    },
}
