//! Building record batches: records are written once, in place, behind room left for the header.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::BatchError;
use super::header::{BatchHeader, HEADER_LEN, NO_PRODUCER_ID};
use crate::codec::{Codec, Compressor};

/// The longest varint of a length in bytes.
const MAX_VARINT_32: usize = 5;
/// The longest varint of a timestamp in bytes.
const MAX_VARINT_64: usize = 10;

/// The layout counts bytes and records in non-negative `i32`s.
const MAX_LEN: usize = i32::MAX as usize;

/// Builds batches, one after the other if wished: [`BatchBuilder::finish`] leaves the builder empty and ready, with
/// its compressor. Appending allocates nothing per record.
#[derive(Debug)]
pub struct BatchBuilder {
    codec: Codec,
    compressor: Compressor,
    /// Empty, or room for the header and then the records, uncompressed.
    buffer: BytesMut,
    /// How much to reserve for the next batch, in bytes: it is likely to be about as long as the last one.
    expected_len: usize,
    count: u32,
    base_timestamp: i64,
    max_timestamp: i64,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
}

impl BatchBuilder {
    /// An empty batch, to be compressed with `codec`.
    pub fn new(codec: Codec) -> Self {
        Self::with_capacity(codec, 0)
    }

    /// An empty batch with room for `bytes` bytes of uncompressed batch.
    pub fn with_capacity(codec: Codec, bytes: usize) -> Self {
        Self {
            codec,
            compressor: Compressor::new(),
            buffer: BytesMut::new(),
            expected_len: bytes,
            count: 0,
            base_timestamp: 0,
            max_timestamp: 0,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: -1,
            base_sequence: -1,
        }
    }

    /// Names the producer, for duplicate detection; see [`BatchBuilder::set_producer`].
    #[must_use]
    pub fn with_producer(mut self, producer_id: i64, producer_epoch: i16, base_sequence: i32) -> Self {
        self.set_producer(producer_id, producer_epoch, base_sequence);
        self
    }

    /// Names the producer, its epoch, and the sequence number of the first record. May be set as late as just before
    /// the batch is finished; stays as it is for following batches.
    pub fn set_producer(&mut self, producer_id: i64, producer_epoch: i16, base_sequence: i32) {
        self.producer_id = producer_id;
        self.producer_epoch = producer_epoch;
        self.base_sequence = base_sequence;
    }

    /// Appends a record. `timestamp_ms` counts milliseconds since 1970.
    ///
    /// The only failure is a batch over 2 GiB, far over every broker's limit; the record is then not part of it.
    pub fn append(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, Option<&[u8]>)],
    ) -> Result<(), BatchError> {
        let bound = max_record_len(key, value, headers);
        if bound > MAX_LEN - self.encoded_len() {
            return Err(BatchError::RecordTooLarge { len: bound });
        }
        if self.is_empty() {
            self.buffer.reserve(self.expected_len.max(HEADER_LEN + bound));
            self.buffer.put_bytes(0, HEADER_LEN);
            self.base_timestamp = timestamp_ms;
            self.max_timestamp = timestamp_ms;
        }
        // Wrapping here and when reading: every pair of timestamps has a difference that restores it.
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.count);
        let len = 1
            + varint_len(timestamp_delta)
            + varint_len(offset_delta)
            + nullable_len(key)
            + nullable_len(value)
            + varint_len(headers.len() as i64)
            + headers
                .iter()
                .map(|(key, value)| nullable_len(Some(key.as_bytes())) + nullable_len(*value))
                .sum::<usize>();
        let out = &mut self.buffer;
        out.reserve(bound);
        put_varint(out, len as i64);
        out.put_u8(0);
        put_varint(out, timestamp_delta);
        put_varint(out, offset_delta);
        put_nullable(out, key);
        put_nullable(out, value);
        put_varint(out, headers.len() as i64);
        for (key, value) in headers {
            put_nullable(out, Some(key.as_bytes()));
            put_nullable(out, *value);
        }
        self.count += 1;
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        Ok(())
    }

    /// The length of the batch so far in bytes, header included: exact without a codec, else before compression.
    pub fn encoded_len(&self) -> usize {
        self.buffer.len().max(HEADER_LEN)
    }

    /// How many records were appended.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether no record was appended.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the batch; see [`BatchBuilder::finish`].
    pub fn build(mut self) -> Bytes {
        self.finish()
    }

    /// Ends the batch and leaves the builder empty for the next one. Without records there is no batch, and the
    /// result is empty. Should the codec fail for want of memory, the batch is left uncompressed.
    pub fn finish(&mut self) -> Bytes {
        if self.count == 0 {
            return Bytes::new();
        }
        let compressed = self.compressed();
        let header = BatchHeader {
            base_offset: 0,
            batch_length: 0,
            partition_leader_epoch: -1,
            crc: 0,
            attributes: if compressed.is_some() { self.codec as u16 } else { Codec::None as u16 },
            codec: self.codec,
            last_offset_delta: self.count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            record_count: self.count,
        };
        self.count = 0;
        self.expected_len = self.buffer.len();
        if let Some(mut batch) = compressed {
            self.buffer.clear();
            header.write(&mut batch);
            return batch.into();
        }
        let mut batch = self.buffer.split();
        header.write(&mut batch);
        batch.freeze()
    }

    /// Room for the header and the compressed records; `None` if they are to stay uncompressed.
    fn compressed(&mut self) -> Option<Vec<u8>> {
        if self.codec == Codec::None {
            return None;
        }
        let mut batch = Vec::with_capacity(HEADER_LEN + self.buffer.len() / 2);
        batch.resize(HEADER_LEN, 0);
        self.compressor.compress(self.codec, &self.buffer[HEADER_LEN..], &mut batch).ok()?;
        Some(batch)
    }
}

/// The most bytes that a record adds to a batch, before compression; what a producer asks before it appends to a
/// batch that is nearly full.
pub fn max_record_len(key: Option<&[u8]>, value: Option<&[u8]>, headers: &[(&str, Option<&[u8]>)]) -> usize {
    let field = |len: usize| len.saturating_add(MAX_VARINT_32);
    let optional = |bytes: Option<&[u8]>| field(bytes.map_or(0, <[u8]>::len));
    let fixed = 1 + MAX_VARINT_64 + 3 * MAX_VARINT_32;
    headers.iter().fold(fixed + optional(key) + optional(value), |sum, (key, value)| {
        sum.saturating_add(field(key.len())).saturating_add(optional(*value))
    })
}

fn nullable_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint_len(bytes.len() as i64) + bytes.len())
}

fn put_nullable(out: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i64);
            out.put_slice(bytes);
        }
    }
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn varint_len(value: i64) -> usize {
    // Seven bits a byte, and at least one byte.
    (70 - (zigzag(value) | 1).leading_zeros() as usize) / 7
}

fn put_varint(out: &mut BytesMut, value: i64) {
    let mut rest = zigzag(value);
    let mut bytes = [0; MAX_VARINT_64];
    let mut len = 0;
    while rest >= 0x80 {
        bytes[len] = rest as u8 | 0x80;
        rest >>= 7;
        len += 1;
    }
    bytes[len] = rest as u8;
    out.put_slice(&bytes[..=len]);
}
