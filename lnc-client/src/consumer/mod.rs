//! The consumer: a stream of the records of a topic's partitions.
//!
//! A background task, the [`fetcher`], keeps batches coming from the brokers into [`state`], up to a limit in bytes;
//! reading takes them out and decodes them.

mod fetcher;
mod state;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use lnc_protocol::BatchError;
use lnc_protocol::batch::{Limits, Split, records, split};
use lnc_protocol::message::OffsetSpec;
use tokio::task::AbortHandle;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::metadata::TopicInfo;
use crate::record::ConsumedRecord;
use fetcher::Fetcher;
use state::{Chunk, Item, Shared};

/// Where a consumer starts in each partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first record there is.
    Earliest,
    /// After the last record there is.
    #[default]
    Latest,
    /// At this offset.
    Offset(u64),
    /// At the first record of this time or later, in milliseconds since 1970.
    Timestamp(i64),
}

/// Where a reader is in a partition: what it stores to go on from there later, in another process too. It names the topic by its
/// id, since a topic that is deleted and created anew has other records at the same offsets, and the cluster, since one that is made
/// anew gives its topics the same ids again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The cluster's id: [`Client::cluster_id`].
    pub cluster_id: u128,
    /// The topic's id.
    pub topic_id: u64,
    /// The partition.
    pub partition: u32,
    /// The offset of the record that comes next.
    pub offset: u64,
}

/// Which brokers a consumer reads from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// From the leader of each partition: the shortest delay.
    #[default]
    Leader,
    /// From any replica, which spreads the load; records may come a little later.
    Any,
}

/// What a consumer does about an offset that its partition does not hold, usually because retention deleted it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnOutOfRange {
    /// Reports [`Error::OffsetOutOfRange`] and stops reading the partition until a seek.
    #[default]
    Fail,
    /// Goes on with the first record there is.
    Earliest,
    /// Goes on after the last record there is.
    Latest,
}

/// Configures a [`Consumer`]. Made by [`Client::consumer`].
#[derive(Clone, Debug)]
#[must_use]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    partitions: Option<Vec<u32>>,
    positions: Vec<Position>,
    start: Start,
    settings: Settings,
}

#[derive(Clone, Debug)]
struct Settings {
    max_wait: Duration,
    min_bytes: u32,
    max_bytes: u32,
    max_partition_bytes: u32,
    prefetch_bytes: usize,
    max_decompressed_bytes: usize,
    read_from: ReadFrom,
    on_out_of_range: OnOutOfRange,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> Self {
        let settings = Settings {
            max_wait: Duration::from_millis(500),
            min_bytes: 1,
            max_bytes: 8 * 1024 * 1024,
            max_partition_bytes: 1024 * 1024,
            prefetch_bytes: 16 * 1024 * 1024,
            max_decompressed_bytes: 64 * 1024 * 1024,
            read_from: ReadFrom::Leader,
            on_out_of_range: OnOutOfRange::Fail,
        };
        let (topic, start) = (topic.to_owned(), Start::Latest);
        ConsumerBuilder { client, topic, partitions: None, positions: Vec::new(), start, settings }
    }

    /// The partitions to read. Default: all.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Where to start. Default: [`Start::Latest`].
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// How long a broker holds a fetch back while there is less than `min_bytes` to send. Default: 500 ms.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.settings.max_wait = max_wait;
        self
    }

    /// How many bytes a broker should gather before it answers, as far as `max_wait` allows. Default: 1.
    pub fn min_bytes(mut self, bytes: u32) -> Self {
        self.settings.min_bytes = bytes;
        self
    }

    /// How many bytes one fetch may bring; a single larger batch comes all the same. Default: 8 MiB.
    pub fn max_bytes(mut self, bytes: u32) -> Self {
        self.settings.max_bytes = bytes;
        self
    }

    /// How many bytes one fetch may bring for one partition; a single larger batch comes all the same. Default: 1 MiB.
    pub fn max_partition_bytes(mut self, bytes: u32) -> Self {
        self.settings.max_partition_bytes = bytes;
        self
    }

    /// How many bytes to fetch ahead of the reader. A fetch under way may go beyond by what it brings. Default: 16 MiB.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.settings.prefetch_bytes = bytes;
        self
    }

    /// The most that one compressed batch may take when decompressed, in bytes; larger ones are refused. Default:
    /// 64 MiB.
    pub fn max_decompressed_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_decompressed_bytes = bytes;
        self
    }

    /// Which brokers to read from. Default: [`ReadFrom::Leader`].
    pub fn read_from(mut self, read_from: ReadFrom) -> Self {
        self.settings.read_from = read_from;
        self
    }

    /// What to do about an offset that does not exist (any more). Default: [`OnOutOfRange::Fail`].
    pub fn on_out_of_range(mut self, action: OnOutOfRange) -> Self {
        self.settings.on_out_of_range = action;
        self
    }

    /// Goes on where another consumer was ([`Consumer::positions`]), in the partitions that these name; where
    /// [`ConsumerBuilder::partitions`] names others as well, those begin at [`ConsumerBuilder::start`]. If the topic was
    /// deleted and created anew meanwhile, [`ConsumerBuilder::build`] fails with [`Error::OtherTopic`] instead of reading
    /// other records at the same offsets; with [`Error::ForeignPositions`] if they are of another cluster.
    pub fn positions(mut self, positions: impl IntoIterator<Item = Position>) -> Self {
        self.positions = positions.into_iter().collect();
        self
    }

    /// Makes the consumer, finds its starting offsets and starts fetching.
    pub async fn build(self) -> Result<Consumer> {
        let topic = self.client.topic(&self.topic).await?;
        let found = self.client.cluster_id();
        if let Some(other) = self.positions.iter().find(|position| position.cluster_id != found) {
            return Err(Error::ForeignPositions { topic: topic.name, expected: other.cluster_id, found });
        }
        if let Some(other) = self.positions.iter().find(|position| position.topic_id != topic.id) {
            return Err(Error::OtherTopic { topic: topic.name, expected: other.topic_id, found: topic.id });
        }
        let stored: BTreeMap<u32, u64> =
            self.positions.iter().map(|stored| (stored.partition, stored.offset)).collect();
        let all = || if stored.is_empty() { (0..topic.partitions).collect() } else { stored.keys().copied().collect() };
        let partitions: Vec<u32> = self.partitions.unwrap_or_else(all);
        if partitions.is_empty() || self.settings.max_bytes == 0 || self.settings.max_partition_bytes == 0 {
            let problem = "a consumer that reads nothing".into();
            return Err(Error::InvalidSetting { setting: "partitions or max_bytes", problem });
        }
        if let Some(&partition) = partitions.iter().find(|partition| **partition >= topic.partitions) {
            return Err(Error::NoSuchPartition { topic: topic.name, partition, partitions: topic.partitions });
        }
        let spec = match self.start {
            Start::Earliest => OffsetSpec::Earliest,
            Start::Latest => OffsetSpec::Latest,
            Start::Timestamp(timestamp_ms) => OffsetSpec::Timestamp(timestamp_ms),
            Start::Offset(_) => OffsetSpec::Earliest,
        };
        let new = partitions.iter().copied().filter(|partition| !stored.contains_key(partition));
        let mut positions: BTreeMap<u32, u64> = match self.start {
            Start::Offset(offset) => new.map(|partition| (partition, offset)).collect(),
            _ => offsets(&self.client, &topic, new, spec).await?,
        };
        positions.extend(stored.into_iter().filter(|(partition, _)| partitions.contains(partition)));
        let shared = Shared::new(positions.iter().map(|(&partition, &offset)| (partition, offset)));
        let settings = self.settings;
        let limits = Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: settings.max_decompressed_bytes };
        let fetcher = Fetcher::new(self.client.clone(), topic.clone(), settings, shared.clone());
        let fetcher = tokio::spawn(fetcher.run()).abort_handle();
        Ok(Consumer {
            client: self.client,
            topic,
            limits,
            shared,
            fetcher,
            positions,
            reading: None,
            decoded: Vec::new().into_iter(),
        })
    }
}

async fn offsets(
    client: &Client,
    topic: &TopicInfo,
    partitions: impl IntoIterator<Item = u32>,
    spec: OffsetSpec,
) -> Result<BTreeMap<u32, u64>> {
    let questions = partitions.into_iter().map(|partition| (partition, spec));
    let listed = client.offsets_of(&topic.name, topic.id, questions).await?;
    Ok(listed.into_iter().map(|(partition, listed)| (partition, listed.offset)).collect())
}

/// The records of one batch that were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedBatch {
    /// The partition.
    pub partition: u32,
    /// The records, in order; never empty.
    pub records: Vec<ConsumedRecord>,
}

/// Reads the records of a topic, partition by partition in order, as a [`Stream`] or with [`Consumer::next`].
///
/// Connections that break and leaders that change are dealt with: reading goes on at the next offset. An error item
/// says what could not be dealt with. After one that [is retriable](Error::is_retriable) reading goes on by itself;
/// after another the partition that it names is not read until a [`seek`](Consumer::seek). The stream ends when no
/// partition is left to read.
///
/// ```no_run
/// # async fn example(client: lnc_client::Client) -> lnc_client::Result<()> {
/// use lnc_client::Start;
///
/// let mut consumer = client.consumer("orders").start(Start::Earliest).build().await?;
/// while let Some(record) = consumer.next().await {
///     let record = record?;
///     println!("{}/{}: {:?}", record.partition, record.offset, record.value);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    client: Client,
    topic: TopicInfo,
    limits: Limits,
    shared: Arc<Shared>,
    fetcher: AbortHandle,
    /// For each partition the offset after the last record handed out.
    positions: BTreeMap<u32, u64>,
    /// What is being taken apart.
    reading: Option<Reading>,
    /// Records decoded and not yet handed out.
    decoded: std::vec::IntoIter<ConsumedRecord>,
}

struct Reading {
    partition: u32,
    /// The next offset wanted.
    offset: u64,
    batches: Split,
    address: Arc<str>,
    /// The size of the whole chunk in bytes.
    len: usize,
}

impl Consumer {
    /// The next record. `None` when every partition has failed for good.
    pub async fn next(&mut self) -> Option<Result<ConsumedRecord>> {
        poll_fn(|cx| self.poll_record(cx)).await
    }

    /// The records of the next batch: cheaper than one at a time. `None` when every partition has failed for good.
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch>> {
        poll_fn(|cx| self.poll_batch(cx)).await
    }

    /// Goes on reading `partition` at `offset`. Whether the offset exists shows when it is read.
    pub fn seek(&mut self, partition: u32, offset: u64) -> Result<()> {
        if !self.shared.seek(partition, offset) {
            let (topic, partitions) = (self.topic.name.clone(), self.topic.partitions);
            return Err(Error::NoSuchPartition { topic, partition, partitions });
        }
        self.positions.insert(partition, offset);
        self.forget(partition);
        Ok(())
    }

    /// Goes on reading all partitions at the first record of this time or later, in milliseconds since 1970.
    pub async fn seek_to_timestamp(&mut self, timestamp_ms: i64) -> Result<()> {
        let partitions: Vec<u32> = self.positions.keys().copied().collect();
        let found = offsets(&self.client, &self.topic, partitions, OffsetSpec::Timestamp(timestamp_ms)).await?;
        found.into_iter().try_for_each(|(partition, offset)| self.seek(partition, offset))
    }

    /// The offset of the record of `partition` that comes next; `None` if the partition is not being read.
    pub fn position(&self, partition: u32) -> Option<u64> {
        self.positions.get(&partition).copied()
    }

    /// Where this consumer is in all its partitions, to be stored; see [`ConsumerBuilder::positions`].
    pub fn positions(&self) -> Vec<Position> {
        let (cluster_id, topic_id) = (self.client.cluster_id(), self.topic.id);
        let position = |(&partition, &offset)| Position { cluster_id, topic_id, partition, offset };
        self.positions.iter().map(position).collect()
    }

    /// The offset after the last committed record of `partition`, as of the last fetch; `None` before the first.
    pub fn high_watermark(&self, partition: u32) -> Option<u64> {
        self.shared.lock().partitions.get(&partition).and_then(|partition| partition.high_watermark)
    }

    /// The topic.
    pub fn topic(&self) -> &Arc<str> {
        &self.topic.name
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedRecord>>> {
        loop {
            if let Some(record) = self.decoded.next() {
                self.positions.insert(record.partition, record.offset + 1);
                return Poll::Ready(Some(Ok(record)));
            }
            match ready!(self.poll_decode(cx)) {
                Some(Ok(batch)) => self.decoded = batch.into_iter(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedBatch>>> {
        let mut records: Vec<_> = self.decoded.by_ref().collect();
        while records.is_empty() {
            records = match ready!(self.poll_decode(cx)) {
                Some(Ok(records)) => records,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            };
        }
        let Some(last) = records.last() else { return Poll::Ready(None) };
        let partition = last.partition;
        self.positions.insert(partition, last.offset + 1);
        Poll::Ready(Some(Ok(ConsumedBatch { partition, records })))
    }

    /// Decodes the next batch; the result may be empty.
    fn poll_decode(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<ConsumedRecord>>>> {
        loop {
            let Some(reading) = &mut self.reading else {
                match ready!(self.shared.poll_item(cx)) {
                    Some(Item::Records(chunk)) => self.reading = Some(Reading::new(chunk)),
                    Some(Item::Failed(_, error)) => return Poll::Ready(Some(Err(error))),
                    None => return Poll::Ready(None),
                }
                continue;
            };
            let result = match reading.batches.next() {
                Some(batch) => batch.and_then(|batch| reading.decode(&batch, &self.limits)),
                None => {
                    self.shared.release(reading.partition, reading.len);
                    self.reading = None;
                    continue;
                }
            };
            return Poll::Ready(Some(result.map_err(|source| self.give_up(source))));
        }
    }

    /// Stops reading the partition whose batch is damaged.
    fn give_up(&mut self, source: BatchError) -> Error {
        let Some(reading) = self.reading.take() else { return Error::Closed };
        self.shared.halt(reading.partition);
        Error::DamagedBatch {
            topic: self.topic.name.clone(),
            partition: reading.partition,
            offset: reading.offset,
            address: reading.address,
            source: Arc::new(source),
        }
    }

    /// Drops what was decoded of a partition.
    fn forget(&mut self, partition: u32) {
        if self.decoded.as_slice().first().is_some_and(|record| record.partition == partition) {
            self.decoded = Vec::new().into_iter();
        }
        // The buffered bytes were taken off the account by the seek.
        self.reading.take_if(|reading| reading.partition == partition);
    }
}

impl Reading {
    fn new(chunk: Chunk) -> Self {
        let Chunk { partition, from, bytes, address } = chunk;
        Reading { partition, offset: from, len: bytes.len(), batches: split(bytes), address }
    }

    /// The records of a batch from the wanted offset on.
    fn decode(&mut self, batch: &Bytes, limits: &Limits) -> std::result::Result<Vec<ConsumedRecord>, BatchError> {
        let decoded = records(batch, limits)?;
        // The count is under the checksum, but whoever computed that may lie; a record takes at least seven bytes.
        let mut wanted = Vec::with_capacity((decoded.header().record_count as usize).min(batch.len() / 7));
        for record in decoded {
            let record = record?;
            if record.offset >= self.offset {
                wanted.push(ConsumedRecord {
                    partition: self.partition,
                    offset: record.offset,
                    timestamp_ms: record.timestamp_ms,
                    key: record.key,
                    value: record.value,
                    headers: record.headers,
                });
            }
        }
        self.offset = wanted.last().map_or(self.offset, |last| last.offset.saturating_add(1));
        Ok(wanted)
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(cx)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.fetcher.abort();
    }
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("topic", &self.topic.name).field("positions", &self.positions).finish()
    }
}
