//! The records inside a batch: walking them for validation, and handing them to a consumer.
//!
//! A record is: its length, attributes (one byte, unused), timestamp delta, offset delta, key, value, headers. All
//! numbers are zigzag varints; a key or value of length -1 is absent.

use std::iter::FusedIterator;
use std::ops::Range;

use bytes::Bytes;

use super::error::{BatchError, RecordProblem};
use super::header::{BatchHeader, HEADER_LEN};
use super::{Limits, check};
use crate::codec::{self, Codec};

/// One record as a consumer sees it. Key, value and headers are slices of the batch, or of what it was decompressed
/// to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Its place in the partition.
    pub offset: u64,
    /// Its timestamp in milliseconds since 1970, as the producer gave it.
    pub timestamp_ms: i64,
    /// The key, if it has one.
    pub key: Option<Bytes>,
    /// The value, if it has one.
    pub value: Option<Bytes>,
    /// Headers in the order sent; keys are UTF-8. Without headers nothing is allocated.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// The records of exactly one batch. Its CRC is checked first; for uncompressed batches nothing is copied.
pub fn records(batch: &Bytes, limits: &Limits) -> Result<RecordIter, BatchError> {
    let header = check(batch)?;
    let payload = payload(&header, batch, limits)?;
    Ok(RecordIter { header, payload, cursor: Place::default() })
}

/// The records section of a batch, decompressed if need be.
pub(super) fn payload(header: &BatchHeader, batch: &Bytes, limits: &Limits) -> Result<Bytes, BatchError> {
    let section = batch.slice(HEADER_LEN..);
    match header.codec {
        Codec::None => Ok(section),
        codec => Ok(codec::decompress(codec, &section, limits.max_decompressed_bytes)?.into()),
    }
}

/// The iterator of [`records`]. Nothing comes after an error.
#[derive(Clone, Debug)]
pub struct RecordIter {
    header: BatchHeader,
    payload: Bytes,
    cursor: Place,
}

impl RecordIter {
    /// The header of the batch.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }
}

impl Iterator for RecordIter {
    type Item = Result<Record, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut headers = Vec::new();
        let slice = |range: Range<usize>| self.payload.slice(range);
        let next = self.cursor.advance(&self.header, &self.payload, |key, value| {
            headers.push((slice(key), value.map(slice)));
        });
        let record = match next {
            Ok(record) => record?,
            Err(error) => return Some(Err(error)),
        };
        Some(Ok(Record {
            offset: self.header.base_offset + u64::from(record.index),
            timestamp_ms: self.header.base_timestamp.wrapping_add(record.timestamp_delta),
            key: record.key.map(slice),
            value: record.value.map(slice),
            headers,
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.header.record_count as usize))
    }
}

impl FusedIterator for RecordIter {}

/// A walk over records that checks them and keeps nothing.
pub(super) struct RecordWalk<'a> {
    header: &'a BatchHeader,
    payload: &'a [u8],
    place: Place,
}

impl<'a> RecordWalk<'a> {
    pub(super) fn new(header: &'a BatchHeader, payload: &'a [u8]) -> Self {
        Self { header, payload, place: Place::default() }
    }

    pub(super) fn next_record(&mut self) -> Result<Option<RawRecord>, BatchError> {
        self.place.advance(self.header, self.payload, |_, _| {})
    }
}

/// Where the parts of a record lie in the records section.
pub(super) struct RawRecord {
    pub(super) timestamp_delta: i64,
    index: u32,
    key: Option<Range<usize>>,
    value: Option<Range<usize>>,
}

/// How far a walk has come.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    index: u32,
    position: usize,
    ended: bool,
}

impl Place {
    /// The next record; `None` after the last one, when nothing must be left over.
    fn advance(
        &mut self,
        header: &BatchHeader,
        payload: &[u8],
        on_header: impl FnMut(Range<usize>, Option<Range<usize>>),
    ) -> Result<Option<RawRecord>, BatchError> {
        if self.ended {
            return Ok(None);
        }
        let index = self.index;
        if index == header.record_count {
            self.ended = true;
            return match payload.len() - self.position {
                0 => Ok(None),
                count => Err(BatchError::TrailingBytes { count }),
            };
        }
        let mut fields = Fields { data: payload, position: self.position };
        match fields.record(index, on_header) {
            Ok(record) => {
                self.index += 1;
                self.position = fields.position;
                Ok(Some(record))
            }
            Err(problem) => {
                self.ended = true;
                Err(BatchError::Record { index, problem })
            }
        }
    }
}

/// Reads the fields of records. `data` ends where the record ends, once that is known.
struct Fields<'a> {
    data: &'a [u8],
    position: usize,
}

impl Fields<'_> {
    fn record(
        &mut self,
        index: u32,
        mut on_header: impl FnMut(Range<usize>, Option<Range<usize>>),
    ) -> Result<RawRecord, RecordProblem> {
        let len = self.length("record")?;
        let body = self.take("record", len)?;
        self.data = &self.data[..body.end];
        self.position = body.start;
        self.take("attributes", 1)?;
        let timestamp_delta = self.varint("timestamp delta", 64)?;
        let offset_delta = self.varint_32("offset delta")?;
        if i64::from(offset_delta) != i64::from(index) {
            return Err(RecordProblem::OffsetDelta { expected: index, found: offset_delta });
        }
        let key = self.nullable("key")?;
        let value = self.nullable("value")?;
        for _ in 0..self.length("header count")? {
            let key_len = self.length("header key")?;
            let key = self.take("header key", key_len)?;
            if std::str::from_utf8(&self.data[key.clone()]).is_err() {
                return Err(RecordProblem::HeaderKeyNotUtf8);
            }
            let value = self.nullable("header value")?;
            on_header(key, value);
        }
        match self.data.len() - self.position {
            0 => Ok(RawRecord { timestamp_delta, index, key, value }),
            count => Err(RecordProblem::TrailingBytes { count }),
        }
    }

    fn take(&mut self, field: &'static str, len: usize) -> Result<Range<usize>, RecordProblem> {
        let remaining = self.data.len() - self.position;
        if len > remaining {
            return Err(RecordProblem::OutOfBounds { field, len, remaining });
        }
        let start = self.position;
        self.position += len;
        Ok(start..self.position)
    }

    fn nullable(&mut self, field: &'static str) -> Result<Option<Range<usize>>, RecordProblem> {
        match self.varint_32(field)? {
            -1 => Ok(None),
            value => match usize::try_from(value) {
                Ok(len) => self.take(field, len).map(Some),
                Err(_) => Err(RecordProblem::BadLength { field, value }),
            },
        }
    }

    fn length(&mut self, field: &'static str) -> Result<usize, RecordProblem> {
        let value = self.varint_32(field)?;
        usize::try_from(value).map_err(|_| RecordProblem::BadLength { field, value })
    }

    fn varint_32(&mut self, field: &'static str) -> Result<i32, RecordProblem> {
        let value = self.varint(field, 32)?;
        i32::try_from(value).map_err(|_| RecordProblem::BadVarint { field, max_bits: 32 })
    }

    /// A zigzag varint. Most are one byte long.
    fn varint(&mut self, field: &'static str, max_bits: u32) -> Result<i64, RecordProblem> {
        let mut raw = 0u64;
        let mut shift = 0;
        while let Some(&byte) = self.data.get(self.position) {
            self.position += 1;
            let bits = u64::from(byte & 0x7F);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                break;
            }
            raw |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok((raw >> 1) as i64 ^ -((raw & 1) as i64));
            }
            shift += 7;
            if shift > 63 {
                break;
            }
        }
        Err(RecordProblem::BadVarint { field, max_bits })
    }
}
