//! Records as the user hands them in and gets them back.

use std::sync::Arc;

use bytes::Bytes;

/// A record to be produced.
///
/// ```
/// use lnc_client::Record;
///
/// let record = Record::new("21.5 °C").key("sensor-7").header("unit", "celsius");
/// assert_eq!(record.key.as_deref(), Some(&b"sensor-7"[..]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Records with the same key go to the same partition, in order.
    pub key: Option<Bytes>,
    /// The value; `None` is a value of its own, different from an empty one.
    pub value: Option<Bytes>,
    /// Named values beside the value.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// Milliseconds since 1970; the time of sending if not given.
    pub timestamp_ms: Option<i64>,
    /// The partition; chosen by the key, or by the producer, if not given.
    pub partition: Option<u32>,
}

impl Record {
    /// A record without a key.
    pub fn new(value: impl Into<Bytes>) -> Self {
        Record { value: Some(value.into()), ..Record::default() }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// Sets the timestamp, in milliseconds since 1970.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Sets the partition.
    #[must_use]
    pub fn partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }
}

/// Where a record was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The record's offset. `None` if the acknowledgement asked for comes before offsets are given.
    pub offset: Option<u64>,
}

/// A record that was read. Key, value and headers share the memory of the batch they came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    /// The partition.
    pub partition: u32,
    /// The offset in the partition.
    pub offset: u64,
    /// Milliseconds since 1970, as the producer said.
    pub timestamp_ms: i64,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// Named values beside the value; the names are UTF-8.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}
