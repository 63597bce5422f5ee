//! Record batches, made and taken apart.

use bytes::Bytes;
use lnc_protocol::batch::{self, BatchBuilder};
use lnc_protocol::message::FetchedPartition;
use lnc_protocol::{Codec, Limits};

/// A record as a reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) offset: u64,
    pub(crate) timestamp_ms: i64,
    pub(crate) value: String,
}

/// An idempotent producer's id, and the sequence of the batch's first record.
pub(crate) type Sequence = (i64, i32);

/// A batch with these values, all with the same timestamp.
pub(crate) fn batch(producer: Option<Sequence>, timestamp_ms: i64, values: &[&str]) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    if let Some((id, sequence)) = producer {
        builder.set_producer(id, 0, sequence);
    }
    for value in values {
        builder.append(timestamp_ms, None, Some(value.as_bytes()), &[]).expect("a small record");
    }
    builder.build()
}

/// The records of a fetched partition. Each batch is checked.
pub(crate) fn read(found: &FetchedPartition) -> Vec<Read> {
    let bytes = found.records.clone().into_bytes();
    let mut all = Vec::new();
    for batch in batch::split(bytes) {
        let batch = batch.expect("whole batches");
        for record in batch::records(&batch, &Limits::default()).expect("a batch that is whole") {
            let record = record.expect("a record that can be read");
            let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).expect("the value that was sent");
            all.push(Read { offset: record.offset, timestamp_ms: record.timestamp_ms, value });
        }
    }
    all
}

/// Offsets and values, for comparing.
pub(crate) fn pairs(all: &[Read]) -> Vec<(u64, &str)> {
    all.iter().map(|record| (record.offset, record.value.as_str())).collect()
}
