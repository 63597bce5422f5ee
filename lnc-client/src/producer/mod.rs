//! The producer: packs records into batches and delivers each exactly once and in order, as far as the acknowledgement
//! asked for allows.
//!
//! A record goes through a [`lane`]: the queue of its partition, where it is appended straight to an encoded batch.
//! One task per partition in use, the [`sender`], takes batches from the lane and sees them through.

mod delivery;
mod lane;
mod partitioner;
mod sender;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lnc_protocol::Codec;
use lnc_protocol::batch::{HEADER_LEN, max_record_len};
use lnc_protocol::message::{Acks, InitProducerResponse};
use tokio::sync::{OnceCell, Semaphore};

pub use delivery::DeliveryFuture;
pub use partitioner::partition_for_key;

use crate::client::{Client, Target};
use crate::error::{Error, Result};
use crate::metadata::TopicInfo;
use crate::pool::Purpose;
use crate::record::{Delivery, Record};
use lane::{Addition, Lane};
use partitioner::Sticky;
use sender::Sender;

/// The most batches of one partition that may be under way: as many as a broker remembers to recognise duplicates.
const MOST_IN_FLIGHT: usize = 5;

/// Configures a [`Producer`]. Made by [`Client::producer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    linger: Duration,
    max_batch_bytes: usize,
    codec: Codec,
    max_in_flight: usize,
    acks: Acks,
    delivery_timeout: Duration,
    memory_bytes: usize,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> Self {
        let settings = Settings {
            linger: Duration::from_millis(5),
            max_batch_bytes: 256 * 1024,
            codec: Codec::None,
            max_in_flight: MOST_IN_FLIGHT,
            acks: Acks::Quorum,
            delivery_timeout: Duration::from_secs(120),
            memory_bytes: 32 * 1024 * 1024,
        };
        ProducerBuilder { client, topic: topic.to_owned(), settings }
    }

    /// How long a batch waits for more records before it is sent. With zero it goes as soon as there is a slot for it;
    /// records that come while all slots are taken still share a batch. Default: 5 ms.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// The size, before compression, at which a batch counts as full, in bytes. A larger record gets a batch of its
    /// own. Default: 256 KiB.
    pub fn max_batch_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_batch_bytes = bytes;
        self
    }

    /// How batches are compressed. Default: not at all.
    pub fn compression(mut self, codec: Codec) -> Self {
        self.settings.codec = codec;
        self
    }

    /// How many batches of one partition may be under way, from 1 to 5. Default: 5.
    pub fn max_in_flight(mut self, batches: usize) -> Self {
        self.settings.max_in_flight = batches;
        self
    }

    /// What a delivery means. Default: [`Acks::Quorum`], the record is on stable storage on a majority of the
    /// replicas, once and in order. With less, a retry after a lost connection may duplicate or reorder records, and
    /// a change of leader may lose them.
    pub fn acks(mut self, acks: Acks) -> Self {
        self.settings.acks = acks;
        self
    }

    /// How long delivering a record may take in all, from handing it in, including all retries. Default: 120 s.
    pub fn delivery_timeout(mut self, timeout: Duration) -> Self {
        self.settings.delivery_timeout = timeout;
        self
    }

    /// How many bytes of records may be on their way. More have to wait to be handed in. Default: 32 MiB.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.settings.memory_bytes = bytes;
        self
    }

    /// Makes the producer. Fails if the topic does not exist.
    pub async fn build(self) -> Result<Producer> {
        let Settings { max_batch_bytes, max_in_flight, memory_bytes, delivery_timeout, .. } = self.settings;
        let invalid = |setting, problem: String| Err(Error::InvalidSetting { setting, problem });
        if !(1..=MOST_IN_FLIGHT).contains(&max_in_flight) {
            return invalid("max_in_flight", format!("{max_in_flight} is not between 1 and {MOST_IN_FLIGHT}"));
        }
        if memory_bytes < max_batch_bytes || memory_bytes > Semaphore::MAX_PERMITS.min(u32::MAX as usize) {
            return invalid("memory_bytes", format!("{memory_bytes} is less than one batch or over 4 GiB"));
        }
        if delivery_timeout.is_zero() {
            return invalid("delivery_timeout", "must be more than zero".into());
        }
        let topic = self.client.topic(&self.topic).await?;
        let (connection, _) = self.client.route(&Target::Any, Purpose::Requests).await?;
        let limit = memory_bytes.min(connection.hello().max_batch_bytes as usize);
        let max_batch_bytes = max_batch_bytes.clamp(HEADER_LEN, limit.max(HEADER_LEN));
        let lanes = (0..topic.partitions)
            .map(|partition| Lane::new(topic.name.clone(), partition, self.settings.codec, max_batch_bytes));
        let lanes = lanes.collect();
        // Producers that start at the same time should not all start with the first partition.
        let start = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
        let core = Core {
            client: self.client,
            sticky: Sticky::new(topic.partitions, start),
            topic,
            memory: Semaphore::new(memory_bytes),
            identity: OnceCell::new(),
            max_record_bytes: limit,
            settings: self.settings,
        };
        Ok(Producer { inner: Arc::new(Inner { core: Arc::new(core), lanes }) })
    }
}

/// Sends records to one topic. Cheap to clone; all clones share memory, batches and identity.
///
/// Every record handed in is delivered or fails by the delivery timeout. Records of one partition are stored in the
/// order they were handed in. When one fails, those behind it may still be delivered; an application for which that is
/// a gap stops handing in at the first error.
///
/// ```no_run
/// # async fn example(client: lnc_client::Client) -> lnc_client::Result<()> {
/// use lnc_client::Record;
///
/// let producer = client.producer("orders").build().await?;
/// let delivery = producer.send(Record::new("one coffee").key("table-4")).await?;
/// println!("stored in partition {} at offset {:?}", delivery.partition, delivery.offset);
///
/// // Without waiting for each:
/// for cup in 0..1000 {
///     producer.enqueue(Record::new(format!("coffee {cup}"))).await?;
/// }
/// producer.flush().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    core: Arc<Core>,
    /// One for each partition.
    lanes: Vec<Arc<Lane>>,
}

/// What the producer and its senders share.
pub(crate) struct Core {
    client: Client,
    topic: TopicInfo,
    settings: Settings,
    /// Bytes that records on their way may still take.
    memory: Semaphore,
    /// The producer id, common to all partitions.
    identity: OnceCell<InitProducerResponse>,
    sticky: Sticky,
    /// The largest record, in bytes of encoded batch.
    max_record_bytes: usize,
}

impl Producer {
    /// Delivers a record and waits for the acknowledgement.
    pub async fn send(&self, record: Record) -> Result<Delivery> {
        self.enqueue(record).await?.await
    }

    /// Hands in a record. Waits only while the producer's memory is full; the future it returns waits for the
    /// acknowledgement and may be dropped if a later [`flush`](Producer::flush) is enough.
    pub async fn enqueue(&self, record: Record) -> Result<DeliveryFuture> {
        if record.headers.is_empty() {
            return self.hand_in(&record, &[]).await;
        }
        let headers: Vec<_> = record.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        self.hand_in(&record, &headers).await
    }

    async fn hand_in(&self, record: &Record, headers: &[(&str, Option<&[u8]>)]) -> Result<DeliveryFuture> {
        let Inner { core, lanes } = &*self.inner;
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let charge = max_record_len(key, value, headers);
        if charge > core.max_record_bytes.saturating_sub(HEADER_LEN) {
            return Err(Error::RecordTooLarge { size: charge, limit: core.max_record_bytes });
        }
        // The charge fits, since the memory's size does.
        let permit = match core.memory.try_acquire_many(charge as u32) {
            Ok(permit) => permit,
            Err(_) => {
                // Batches that linger hold the memory that is waited for.
                lanes.iter().for_each(|lane| drop(lane.flush()));
                core.memory.acquire_many(charge as u32).await.map_err(|_| Error::Closed)?
            }
        };
        let partition = core.partition(record)?;
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(now_ms);
        let lane = &lanes[partition as usize];
        let added = lane.add(&Addition { timestamp_ms, key, value, headers, charge })?;
        // The sender gives it back with the batch.
        permit.forget();
        if added.filled {
            core.sticky.leave(partition);
        }
        if added.start_sender {
            tokio::spawn(Sender::new(core.clone(), lane.clone()).run());
        }
        Ok(added.delivery)
    }

    /// Sends what is waiting for company and waits until all records handed in so far are delivered or failed.
    /// Returns the first failure since the last flush, if there was one.
    pub async fn flush(&self) -> Result<()> {
        let newest: Vec<_> = self.inner.lanes.iter().filter_map(|lane| lane.flush()).collect();
        for delivery in newest {
            // Failures are collected below, with those of older batches.
            let _ = delivery.await;
        }
        let failures: Vec<_> = self.inner.lanes.iter().filter_map(|lane| lane.take_failure()).collect();
        failures.into_iter().next().map_or(Ok(()), Err)
    }

    /// Refuses further records and [flushes](Producer::flush). Without it, what was handed in when the last clone is
    /// dropped is still sent, as long as the runtime lives.
    pub async fn close(&self) -> Result<()> {
        self.inner.core.memory.close();
        let result = self.flush().await;
        self.inner.lanes.iter().for_each(|lane| lane.close());
        result
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.inner.core.topic.name
    }

    /// How many partitions the topic has.
    pub fn partitions(&self) -> u32 {
        self.inner.core.topic.partitions
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.close());
    }
}

impl Core {
    fn partition(&self, record: &Record) -> Result<u32> {
        let partitions = self.topic.partitions;
        match (record.partition, &record.key) {
            (Some(partition), _) if partition < partitions => Ok(partition),
            (Some(partition), _) => {
                Err(Error::NoSuchPartition { topic: self.topic.name.clone(), partition, partitions })
            }
            (None, Some(key)) => Ok(partition_for_key(key, partitions)),
            (None, None) => Ok(self.sticky.current()),
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
