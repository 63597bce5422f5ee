//! Fetches ahead of the reader: one task that keeps requests under way to every broker that leads some of the
//! partitions.
//!
//! Each partition is in at most one request at a time, from the offset after the last record received, so nothing is
//! fetched twice or skipped, whichever broker answers. Partitions that are ready at the same time and have the same
//! leader share a request. Those that become ready later do not wait for the long poll of the others to end.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use lnc_protocol::batch::BatchHeader;
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{ErrorReply, FetchPartition, FetchRequest, FetchedPartition, Request, Response};
use lnc_protocol::{BatchError, ErrorCode, MAX_ENTRIES};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::state::{Asked, Chunk, Item, Partition, Phase, Shared};
use super::{OnOutOfRange, ReadFrom, Settings};
use crate::client::{Client, SILENCE, Target, unexpected};
use crate::error::{Error, Operation, Result};
use crate::metadata::TopicInfo;
use crate::pool::Purpose;

/// How many requests may be under way to one broker.
const FETCHES_PER_BROKER: usize = 4;

/// The pause after a broker answered a long poll with nothing before its time.
const EARLY_ANSWER_PAUSE: Duration = Duration::from_millis(5);

/// The least that is asked of a partition at a time, in bytes, however many share the memory.
const LEAST_FETCH: usize = 64 * 1024;

pub(crate) struct Fetcher {
    pub(crate) client: Client,
    pub(crate) topic: TopicInfo,
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    in_flight: Vec<InFlight>,
}

/// A request under way.
struct InFlight {
    broker: Option<Arc<str>>,
    asked: Vec<Asked>,
    started: Instant,
    future: Pin<Box<dyn Future<Output = Result<Answer>> + Send>>,
}

enum Answer {
    Fetched {
        address: Arc<str>,
        partitions: Vec<FetchedPartition>,
    },
    /// The leader has become known meanwhile.
    AskAgain,
}

impl Fetcher {
    pub(crate) fn new(client: Client, topic: TopicInfo, settings: Settings, shared: Arc<Shared>) -> Self {
        Fetcher { client, topic, settings, shared, in_flight: Vec::new() }
    }

    /// Runs until the consumer drops it.
    pub(crate) async fn run(mut self) {
        loop {
            let resume = self.start_requests();
            let in_flight = &mut self.in_flight;
            let answer = poll_fn(|cx| {
                for (at, request) in in_flight.iter_mut().enumerate() {
                    if let Poll::Ready(result) = request.future.as_mut().poll(cx) {
                        return Poll::Ready((at, result));
                    }
                }
                Poll::Pending
            });
            tokio::select! {
                (at, result) = answer => {
                    let request = self.in_flight.swap_remove(at);
                    self.take_in(request, result);
                }
                () = self.shared.wake.notified() => {}
                () = sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => {}
            }
        }
    }

    /// How many bytes a partition may have buffered before fetching it pauses.
    fn share(&self, partitions: usize) -> usize {
        (self.settings.prefetch_bytes / partitions.max(1)).max(1)
    }

    /// Asks for every partition that is ready and has room. Returns when the next pause ends.
    fn start_requests(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut resume: Option<Instant> = None;
        let mut groups: BTreeMap<Option<Arc<str>>, Vec<Asked>> = BTreeMap::new();
        let shared = self.shared.clone();
        let mut state = shared.lock();
        let share = self.share(state.partitions.len());
        for (&number, partition) in &mut state.partitions {
            match partition.phase {
                Phase::Paused(until) if until > now => {
                    resume = Some(resume.map_or(until, |resume| resume.min(until)));
                    continue;
                }
                Phase::Fetching | Phase::Halted => continue,
                Phase::Ready | Phase::Paused(_) => partition.phase = Phase::Ready,
            }
            if partition.buffered < share {
                let asked = Asked { partition: number, epoch: partition.epoch, offset: partition.offset };
                let group = groups.entry(self.broker_for(number, partition.detours)).or_default();
                // What is too much for one request is asked for by the next.
                if group.len() < MAX_ENTRIES {
                    group.push(asked);
                }
            }
        }
        for (broker, asked) in groups {
            // What finds no slot is asked for when one of the answers comes.
            if self.in_flight.iter().filter(|request| request.broker == broker).count() < FETCHES_PER_BROKER {
                for asked in &asked {
                    if let Some(partition) = state.partitions.get_mut(&asked.partition) {
                        partition.phase = Phase::Fetching;
                    }
                }
                let future = self.request(broker.clone(), &asked, share);
                self.in_flight.push(InFlight { broker, asked, started: now, future });
            }
        }
        resume
    }

    /// The broker to fetch a partition from; `None` if that must be found out.
    fn broker_for(&self, partition: u32, detours: usize) -> Option<Arc<str>> {
        let leader = self.client.metadata_cache().leader(&self.topic.name, partition);
        match self.settings.read_from {
            ReadFrom::Leader => leader.filter(|address| self.client.is_reachable(address, Purpose::Fetches)),
            ReadFrom::Any => {
                let mut brokers = self.client.addresses();
                brokers.retain(|address| self.client.is_reachable(address, Purpose::Fetches));
                let choice = (partition as usize).wrapping_add(detours) % brokers.len().max(1);
                brokers.get(choice).cloned()
            }
        }
    }

    fn request(
        &self,
        broker: Option<Arc<str>>,
        asked: &[Asked],
        share: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Answer>> + Send>> {
        let settings = &self.settings;
        let max_bytes = (settings.max_partition_bytes as usize).min(share.max(LEAST_FETCH)) as u32;
        let partitions = asked.iter().map(|asked| FetchPartition {
            topic: self.topic.name.to_string(),
            topic_id: self.topic.id,
            partition: asked.partition,
            offset: asked.offset,
            max_bytes,
        });
        let request = Request::Fetch(FetchRequest {
            max_wait_ms: settings.max_wait.as_millis().min(u128::from(u32::MAX)) as u32,
            min_bytes: settings.min_bytes,
            max_bytes: settings.max_bytes,
            partitions: partitions.collect(),
        });
        let patience =
            Patience { max_wait: settings.max_wait, in_all: settings.max_wait + self.client.attempt_timeout() };
        let target = match (settings.read_from, asked.first()) {
            (ReadFrom::Leader, Some(first)) => {
                Target::Leader { topic: self.topic.name.clone(), partition: first.partition }
            }
            _ => Target::Any,
        };
        let topic = self.topic.name.clone();
        Box::pin(fetch(self.client.clone(), topic, broker, target, request, patience))
    }

    /// Files the answer to a request under its partitions.
    fn take_in(&self, request: InFlight, result: Result<Answer>) {
        let early = request.started.elapsed() < self.settings.max_wait / 2;
        let (address, fetched) = match result {
            Ok(Answer::Fetched { address, partitions }) => (address, partitions),
            Ok(Answer::AskAgain) => {
                return request.asked.iter().for_each(|asked| self.update(asked, Phase::Ready, |_| {}));
            }
            Err(error) => return request.asked.iter().for_each(|asked| self.take_failure(asked, &error)),
        };
        let fits = fetched.len() == request.asked.len()
            && fetched.iter().zip(&request.asked).all(|(fetched, asked)| fetched.partition == asked.partition);
        if !fits {
            let error = unexpected(&address, &Operation::on_topic("fetch", &self.topic.name));
            return request.asked.iter().for_each(|asked| self.take_failure(asked, &error));
        }
        let is_idle = early && fetched.iter().all(|fetched| fetched.records.is_empty());
        let next = if is_idle { Phase::Paused(Instant::now() + EARLY_ANSWER_PAUSE) } else { Phase::Ready };
        for (fetched, asked) in fetched.into_iter().zip(&request.asked) {
            match fetched.error {
                ErrorCode::None => self.take_records(asked, fetched, &address, next),
                ErrorCode::OffsetOutOfRange => self.take_out_of_range(asked, &fetched, &address),
                code => {
                    let reply = Box::new(ErrorReply::new(code, fetched.message));
                    let operation = Operation::on_partition("fetch", &self.topic.name, asked.partition);
                    self.take_failure(asked, &Error::Broker { operation, address: address.clone(), reply });
                }
            }
        }
    }

    /// Sets a partition's phase and changes its state, unless it was moved since it was asked for.
    fn update(&self, asked: &Asked, phase: Phase, change: impl FnOnce(&mut Partition)) {
        if let Some(partition) = self.shared.lock().wanted(asked) {
            partition.phase = phase;
            change(partition);
        }
    }

    fn take_records(&self, asked: &Asked, fetched: FetchedPartition, address: &Arc<str>, next: Phase) {
        let high_watermark = fetched.high_watermark;
        let bytes = fetched.records.into_bytes();
        let end = match end_offset(asked.offset, &bytes) {
            Ok(end) => end,
            Err(Unusable::Batch(source)) => {
                let error = Error::DamagedBatch {
                    topic: self.topic.name.clone(),
                    partition: asked.partition,
                    offset: asked.offset,
                    address: address.clone(),
                    source: Arc::new(source),
                };
                return self.take_failure(asked, &error);
            }
            Err(Unusable::Gap { expected, found }) => {
                let problem = format!(
                    "sent records of {}/{} from offset {found} where {expected} comes next",
                    self.topic.name, asked.partition
                );
                return self.take_failure(asked, &Error::protocol(address, problem));
            }
        };
        let len = bytes.len();
        let mut state = self.shared.lock();
        let Some(partition) = state.wanted(asked) else { return };
        partition.phase = next;
        partition.offset = end;
        partition.reached |= len > 0;
        partition.buffered += len;
        partition.high_watermark = Some(high_watermark);
        partition.failing_since = None;
        partition.backoff.reset();
        if len > 0 {
            let chunk = Chunk { partition: asked.partition, from: asked.offset, bytes, address: address.clone() };
            state.push(Item::Records(chunk));
        }
    }

    fn take_out_of_range(&self, asked: &Asked, fetched: &FetchedPartition, address: &Arc<str>) {
        let (earliest, latest) = (fetched.log_start_offset, fetched.high_watermark);
        let reached = self.shared.lock().wanted(asked).is_some_and(|partition| partition.reached);
        if reached && asked.offset > latest {
            // The record before this offset was read, so it is the replica that lags behind.
            let reply = ErrorReply::new(ErrorCode::NotReady, "the replica has not caught up with what was read");
            let operation = Operation::on_partition("fetch", &self.topic.name, asked.partition);
            let error = Error::Broker { operation, address: address.clone(), reply: Box::new(reply) };
            return self.take_failure(asked, &error);
        }
        let offset = match self.settings.on_out_of_range {
            OnOutOfRange::Fail => {
                let error = Error::OffsetOutOfRange {
                    topic: self.topic.name.clone(),
                    partition: asked.partition,
                    offset: asked.offset,
                    earliest,
                    latest,
                };
                return self.take_failure(asked, &error);
            }
            OnOutOfRange::Earliest => earliest,
            OnOutOfRange::Latest => latest,
        };
        self.update(asked, Phase::Ready, |partition| {
            partition.offset = offset;
            partition.reached = false;
        });
    }

    /// Pauses a partition after a failure that may pass; reports one that does not, or has lasted too long.
    fn take_failure(&self, asked: &Asked, error: &Error) {
        let target = Target::Leader { topic: self.topic.name.clone(), partition: asked.partition };
        self.client.learn(&target, error);
        let now = Instant::now();
        let mut state = self.shared.lock();
        let Some(partition) = state.wanted(asked) else { return };
        // A peer that breaks the protocol may be replaced by one that does not.
        if error.is_retriable() || matches!(error, Error::Protocol { .. }) {
            partition.phase = Phase::Paused(now + partition.backoff.next(error.retry_after()));
            partition.detours = partition.detours.wrapping_add(1);
            let since = *partition.failing_since.get_or_insert(now);
            let after = self.client.request_timeout();
            if error.is_retriable() && now - since < after {
                return;
            }
            partition.failing_since = Some(now);
            let stalled = || Error::Stalled {
                topic: self.topic.name.clone(),
                partition: asked.partition,
                after,
                cause: Box::new(error.clone()),
            };
            let error = if error.is_retriable() { stalled() } else { error.clone() };
            return state.push(Item::Failed(asked.partition, error));
        }
        partition.phase = Phase::Halted;
        state.push(Item::Failed(asked.partition, error.clone()));
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.shared.end();
    }
}

/// How long an answer is waited for, from when the request was sent: what it took to find a broker that can be reached does
/// not count against the one that was found.
#[derive(Clone, Copy)]
struct Patience {
    /// The broker may hold the request back for so long.
    max_wait: Duration,
    in_all: Duration,
}

async fn fetch(
    client: Client,
    topic: Arc<str>,
    broker: Option<Arc<str>>,
    target: Target,
    request: Request,
    patience: Patience,
) -> Result<Answer> {
    let (connection, flags) = match &broker {
        Some(address) => {
            let is_leader = matches!(target, Target::Leader { .. });
            let flags = if is_leader { Flags::NO_FORWARD } else { Flags::NONE };
            (client.connection(address, Purpose::Fetches).await?, flags)
        }
        None => {
            // Failing that, any broker forwards the request.
            let _ = client.refresh(&topic).await;
            let (connection, flags) = client.route(&target, Purpose::Fetches).await?;
            if flags.contains(Flags::NO_FORWARD) {
                return Ok(Answer::AskAgain);
            }
            (connection, flags)
        }
    };
    let address = connection.address().clone();
    let deadline = Instant::now() + patience.in_all;
    let mut reply = std::pin::pin!(connection.submit(&request, flags));
    let reply = loop {
        let silent_until = (Instant::now() + patience.max_wait + SILENCE).min(deadline);
        if let Ok(reply) = timeout_at(silent_until, &mut reply).await {
            break reply?;
        }
        if silent_until == deadline {
            connection.close("no answer in time");
            return Err(Error::lost(&address, "no answer in time"));
        }
        let Target::Leader { topic, partition } = &target else { continue };
        tokio::select! {
            reply = &mut reply => break reply?,
            has_moved = client.clone().has_moved(topic.clone(), *partition, address.clone()) => {
                if has_moved {
                    return Err(Error::lost(&address, "another broker leads by now"));
                }
            }
        }
    };
    let operation = Operation::on_topic("fetch", &topic);
    match reply.result {
        Ok(Response::Fetch(partitions)) => Ok(Answer::Fetched { address, partitions }),
        Ok(_) => Err(unexpected(&address, &operation)),
        Err(reply) => Err(Error::Broker { operation, address, reply: Box::new(reply) }),
    }
}

enum Unusable {
    Batch(BatchError),
    Gap { expected: u64, found: u64 },
}

/// The offset after the last of these batches, which follow each other without a gap from `offset` on; the first may
/// start before it.
fn end_offset(offset: u64, bytes: &Bytes) -> std::result::Result<u64, Unusable> {
    let mut end = offset;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let header = BatchHeader::parse(rest).map_err(Unusable::Batch)?;
        let len = header.total_len();
        if len > rest.len() {
            return Err(Unusable::Batch(BatchError::Truncated { needed: len, found: rest.len() }));
        }
        if header.base_offset > end || (header.base_offset < end && end != offset) {
            return Err(Unusable::Gap { expected: end, found: header.base_offset });
        }
        // A batch wholly before the offset asked for holds nothing new.
        end = end.max(header.base_offset.saturating_add(u64::from(header.last_offset_delta)).saturating_add(1));
        rest = &rest[len..];
    }
    Ok(end)
}
