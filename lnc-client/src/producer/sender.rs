//! Sends the batches of one partition: several under way at a time, each resolved before the one behind it.
//!
//! The sender keeps a window of batches that were sent and not answered, oldest first. Only the answer to the oldest
//! matters at any time. If it says, or the lack of it, that the batch must be sent again, the whole window is sent
//! again in the same order and with the same sequence numbers: the broker recognises what it has and refuses what
//! would leave a gap, so nothing is stored twice or out of order.
//!
//! When a batch fails for good, its sequence numbers can never be filled. The sender then takes a new producer id and
//! goes on from sequence 0: batches under way with the old id can only be refused, since they leave a gap. Where even
//! that is not sure (the failed batch may have been stored), the batches sent behind it fail too rather than risk a
//! duplicate. A broker that has forgotten the producer, as it does with those that were silent for long where there are
//! very many, is no failure: what cannot have been stored goes out under a new id.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lnc_protocol::ErrorCode;
use lnc_protocol::batch::{BatchBuilder, Limits, records};
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{Acks, InitProducerResponse, ProduceRequest, Reply, Request, Response};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::debug;

use super::Core;
use super::delivery::Outcome;
use super::lane::{Batch, Lane, Next};
use crate::backoff::Backoff;
use crate::client::{Call, Client, Lesson, MAX_REDIRECTS, SILENCE, Target, unexpected};
use crate::connection::{Connection, PendingReply};
use crate::error::{Error, Operation, Result};
use crate::pool::Purpose;

/// How long batches go through a broker that is not known to lead, before the leader is looked for again.
const DETOUR: Duration = Duration::from_secs(1);

/// The task that sends one lane's batches.
pub(crate) struct Sender {
    core: Arc<Core>,
    lane: Arc<Lane>,
    target: Target,
    /// Batches sent and not resolved, oldest first; those without a pending reply are to be sent again.
    window: VecDeque<Sent>,
    route: Option<Route>,
    /// The producer id in use and the sequence number of the next batch. `None` until the first batch, after a batch
    /// failed for good, and without idempotence.
    identity: Option<Identity>,
    /// Whether the producer's common id was given up on this lane.
    identity_spoiled: bool,
    backoff: Backoff,
    redirects: u32,
    /// Why the last attempt failed.
    last_error: Option<Error>,
    /// Under way while the leader is silent: whether another broker leads by now.
    inquiry: Option<Inquiry>,
    /// When the last inquiry ended.
    inquired_at: Instant,
}

type Inquiry = Pin<Box<dyn Future<Output = bool> + Send>>;

#[derive(Clone, Copy)]
struct Identity {
    id: i64,
    epoch: i16,
    next_sequence: i32,
}

struct Route {
    connection: Connection,
    flags: Flags,
    /// When to look for a better one.
    until: Option<Instant>,
}

struct Sent {
    bytes: Bytes,
    records: u32,
    outcome: Arc<Outcome>,
    charge: usize,
    /// When to give up.
    deadline: Instant,
    reply: Option<PendingReply>,
    sent_at: Instant,
    /// Whether an attempt failed in a way that leaves open if the batch was stored.
    maybe_stored: bool,
    /// Whether another batch stood before this one when it was sent last, so that a gap may be that one's fault.
    behind: bool,
}

/// What there is to do next.
enum Event {
    Answered(Result<Reply>),
    /// A timer ran out or the lane has news; look again.
    Look,
}

impl Sender {
    pub(crate) fn new(core: Arc<Core>, lane: Arc<Lane>) -> Self {
        let target = Target::Leader { topic: core.topic.name.clone(), partition: lane.partition };
        Sender {
            core,
            lane,
            target,
            window: VecDeque::new(),
            route: None,
            identity: None,
            identity_spoiled: false,
            backoff: Backoff::new(),
            redirects: 0,
            last_error: None,
            inquiry: None,
            inquired_at: Instant::now(),
        }
    }

    /// Runs until the lane is closed and empty.
    pub(crate) async fn run(mut self) {
        loop {
            let now = Instant::now();
            self.expire(now);
            let Some(deadline) = self.oldest_deadline() else {
                if self.lane.is_closing() {
                    return;
                }
                self.lane.wake.notified().await;
                continue;
            };
            if !self.has_route(now) {
                let prepared = timeout_at(deadline, self.prepare()).await;
                match prepared {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => self.failed(error).await,
                    Err(_) => continue,
                }
                continue;
            }
            let due = self.fill(now);
            match self.next_event(due).await {
                Event::Answered(result) => self.answered(result).await,
                Event::Look => {}
            }
        }
    }

    fn is_idempotent(&self) -> bool {
        self.core.settings.acks == Acks::Quorum
    }

    fn operation(&self) -> Operation {
        Operation::on_partition("produce", &self.core.topic.name, self.lane.partition)
    }

    fn oldest_deadline(&self) -> Option<Instant> {
        let in_lane = || self.lane.oldest_since().map(|since| since + self.core.settings.delivery_timeout);
        self.window.front().map(|sent| sent.deadline).or_else(in_lane)
    }

    /// Whether batches can be sent. A route that ended, or is a detour that has lasted long enough, is given up as
    /// soon as nothing is under way on it.
    fn has_route(&mut self, now: Instant) -> bool {
        let Some(route) = &self.route else { return false };
        let is_waiting = self.window.iter().any(|sent| sent.reply.is_some());
        if !is_waiting && (!route.connection.is_open() || route.until.is_some_and(|until| now >= until)) {
            self.route = None;
        }
        self.route.is_some()
    }

    /// Gets what sending needs: a producer id and a connection.
    async fn prepare(&mut self) -> Result<()> {
        if self.is_idempotent() && self.identity.is_none() {
            let InitProducerResponse { producer_id: id, producer_epoch: epoch } = match self.identity_spoiled {
                false => self.core.identity.get_or_try_init(|| self.core.init_producer()).await?.clone(),
                true => self.core.init_producer().await?,
            };
            self.identity = Some(Identity { id, epoch, next_sequence: 0 });
            self.restamp()?;
        }
        let client = &self.core.client;
        let (topic, partition) = (&self.core.topic.name, self.lane.partition);
        if client.metadata_cache().leader(topic, partition).is_none() {
            // Failing that, any broker will do.
            let _ = client.refresh(topic).await;
        }
        let (connection, flags) = client.route(&self.target, Purpose::Requests).await?;
        let until = (!flags.contains(Flags::NO_FORWARD)).then(|| Instant::now() + DETOUR);
        self.route = Some(Route { connection, flags, until });
        Ok(())
    }

    /// Gives the batches of the window, built under a former producer id, the present one.
    fn restamp(&mut self) -> Result<()> {
        let Some(identity) = &mut self.identity else { return Ok(()) };
        for sent in &mut self.window {
            sent.bytes =
                rebuild(&sent.bytes, identity, self.core.settings.codec).map_err(|source| Error::DamagedBatch {
                    topic: self.core.topic.name.clone(),
                    partition: self.lane.partition,
                    offset: 0,
                    address: "this producer".into(),
                    source: Arc::new(source),
                })?;
            identity.advance(sent.records);
        }
        Ok(())
    }

    /// Sends again what must be, then what the lane has ready, as far as the window allows. Returns when the lane's
    /// open batch becomes due.
    fn fill(&mut self, now: Instant) -> Option<Instant> {
        for at in 0..self.window.len() {
            if self.window[at].reply.is_none() {
                self.submit(at, now);
            }
        }
        let on_detour = self.route.as_ref().is_some_and(|route| route.until.is_some_and(|until| now >= until));
        while self.window.len() < self.core.settings.max_in_flight && !on_detour {
            match self.lane.next(now, self.core.settings.linger) {
                Next::Batch(batch) => {
                    self.core.sticky.leave(self.lane.partition);
                    self.admit(batch, now);
                    self.submit(self.window.len() - 1, now);
                }
                Next::Lingering(due) => return Some(due),
                Next::Nothing => break,
            }
        }
        None
    }

    /// Finishes a batch and puts it at the end of the window.
    fn admit(&mut self, mut batch: Batch, now: Instant) {
        let records = batch.builder.count();
        match &mut self.identity {
            Some(identity) => {
                batch.builder.set_producer(identity.id, identity.epoch, identity.next_sequence);
                identity.advance(records);
            }
            None => batch.builder.set_producer(-1, -1, -1),
        }
        let bytes = batch.builder.finish();
        self.lane.recycle(batch.builder);
        self.window.push_back(Sent {
            bytes,
            records,
            outcome: batch.outcome,
            charge: batch.charge,
            deadline: batch.opened_at + self.core.settings.delivery_timeout,
            reply: None,
            sent_at: now,
            maybe_stored: false,
            behind: false,
        });
    }

    fn submit(&mut self, at: usize, now: Instant) {
        let Some(route) = &self.route else { return };
        let sent = &mut self.window[at];
        let request = Request::Produce(ProduceRequest {
            acks: self.core.settings.acks,
            timeout_ms: Client::broker_timeout_ms(self.core.client.attempt_timeout()),
            topic: self.core.topic.name.to_string(),
            topic_id: self.core.topic.id,
            partition: self.lane.partition,
            batch: sent.bytes.clone(),
        });
        sent.reply = Some(route.connection.submit(&request, route.flags));
        sent.sent_at = now;
        sent.behind = at > 0;
    }

    /// Waits for the oldest batch's answer, for news from the lane, or for the next thing to be due.
    async fn next_event(&mut self, due: Option<Instant>) -> Event {
        let patience = self.window.front().map(|sent| sent.sent_at + self.core.client.attempt_timeout());
        let times = [due, patience, self.window.front().map(|sent| sent.deadline), self.inquire()];
        let timer = times.into_iter().flatten().min();
        tokio::select! {
            biased;
            result = front_answer(&mut self.window) => Event::Answered(result),
            () = self.lane.wake.notified() => Event::Look,
            has_moved = verdict(&mut self.inquiry) => {
                self.inquiry = None;
                self.inquired_at = Instant::now();
                match &self.route {
                    Some(route) if has_moved => {
                        Event::Answered(Err(Error::lost(route.connection.address(), "another broker leads by now")))
                    }
                    _ => Event::Look,
                }
            }
            () = sleep_until(timer.unwrap_or_else(Instant::now)), if timer.is_some() => match patience {
                Some(patience) if Instant::now() >= patience => Event::Answered(Err(self.give_up_waiting())),
                _ => Event::Look,
            },
        }
    }

    /// Starts an inquiry if the leader has been silent for long enough. Returns when that will be.
    fn inquire(&mut self) -> Option<Instant> {
        let (Some(oldest), Some(route), None) = (self.window.front(), &self.route, &self.inquiry) else { return None };
        let inquire_at = oldest.sent_at.max(self.inquired_at) + SILENCE;
        if Instant::now() < inquire_at {
            return Some(inquire_at);
        }
        let (client, topic) = (self.core.client.clone(), self.core.topic.name.clone());
        let address = route.connection.address().clone();
        self.inquiry = Some(Box::pin(client.has_moved(topic, self.lane.partition, address)));
        None
    }

    /// Ends a connection on which no answer came in time: what else is under way on it will not fare better.
    fn give_up_waiting(&self) -> Error {
        match &self.route {
            Some(route) => {
                route.connection.close("no answer in time");
                Error::lost(route.connection.address(), "no answer in time")
            }
            None => Error::Closed,
        }
    }

    /// Deals with the answer to the oldest batch.
    async fn answered(&mut self, result: Result<Reply>) {
        let address = match self.window.front().and_then(|sent| sent.reply.as_ref()) {
            Some(reply) => reply.connection().address().clone(),
            None => return,
        };
        let error = match result.map(|reply| reply.result) {
            Ok(Ok(Response::Produce(response))) => {
                if let Some(sent) = self.window.pop_front() {
                    sent.outcome.complete(Ok(response.base_offset));
                    self.core.memory.add_permits(sent.charge);
                }
                self.backoff.reset();
                self.redirects = 0;
                self.last_error = None;
                self.inquiry = None;
                return;
            }
            Ok(Ok(_)) => unexpected(&address, &self.operation()),
            Ok(Err(reply)) => Error::Broker { operation: self.operation(), address, reply: Box::new(reply) },
            Err(error) => error,
        };
        self.failed(error).await;
    }

    /// Deals with the failure of an attempt: rewinds the window and pauses, or fails the oldest batch for good.
    async fn failed(&mut self, error: Error) {
        let is_gap = matches!(error.code(), Some(ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer))
            && self.is_idempotent()
            && self.window.front().is_some_and(|sent| sent.behind);
        let is_forgotten = self.is_forgotten(&error);
        if !error.is_retriable() && !is_gap && !is_forgotten {
            let ambiguous = error.is_ambiguous();
            self.fail_oldest(error, ambiguous);
            return;
        }
        debug!(topic = %self.core.topic.name, partition = self.lane.partition, %error, "sending again");
        let lesson = self.core.client.learn(&self.target, &error);
        for (at, sent) in self.window.iter_mut().enumerate() {
            // Only the oldest batch's answer was looked at.
            sent.maybe_stored |= sent.reply.take().is_some() && (at > 0 || error.is_ambiguous());
        }
        if is_forgotten {
            self.begin_anew();
        }
        self.route = None;
        self.inquiry = None;
        let pause = match lesson {
            Lesson::Redirected if self.redirects < MAX_REDIRECTS => {
                self.redirects += 1;
                Duration::ZERO
            }
            _ => {
                self.redirects = 0;
                self.backoff.next(error.retry_after())
            }
        };
        self.last_error = Some(error);
        if !pause.is_zero() {
            let until = Instant::now() + pause;
            match self.oldest_deadline() {
                Some(deadline) => sleep_until(until.min(deadline)).await,
                None => sleep(pause).await,
            }
        }
    }

    /// Whether the broker knows nothing of the producer, though nothing that is open can have been stored: the oldest batch
    /// was not, and what was sent behind it would have left a gap.
    fn is_forgotten(&self, error: &Error) -> bool {
        error.code() == Some(ErrorCode::UnknownProducer)
            && self.is_idempotent()
            && self.window.front().is_some_and(|oldest| !oldest.behind && !oldest.maybe_stored)
    }

    /// Gives up the producer id: what is open, none of it stored, goes out under a new one, from sequence 0.
    fn begin_anew(&mut self) {
        for sent in &mut self.window {
            sent.reply = None;
            sent.maybe_stored = false;
        }
        self.identity = None;
        self.identity_spoiled = true;
        self.route = None;
    }

    /// Fails the batches whose time is up.
    fn expire(&mut self, now: Instant) {
        while self.oldest_deadline().is_some_and(|deadline| deadline <= now) {
            let ambiguous = self.window.front().is_some_and(|sent| sent.reply.is_some());
            let error = Error::DeadlineExceeded {
                operation: self.operation(),
                after: self.core.settings.delivery_timeout,
                last: self.last_error.clone().map(Box::new),
            };
            self.fail_oldest(error, ambiguous);
        }
    }

    /// Fails the oldest batch. If it may have been stored, so may what was sent behind it, which then fails too.
    fn fail_oldest(&mut self, error: Error, ambiguous: bool) {
        self.lane.note_failure(&error);
        let Some(oldest) = self.window.pop_front() else {
            if let Some(batch) = self.lane.oldest() {
                self.finish(&batch.outcome, batch.charge, error);
            }
            return;
        };
        self.finish(&oldest.outcome, oldest.charge, error.clone());
        if !self.is_idempotent() {
            return;
        }
        if ambiguous || oldest.maybe_stored {
            for sent in std::mem::take(&mut self.window) {
                let cause = Box::new(error.clone());
                let error = Error::EarlierBatchFailed { operation: self.operation(), cause };
                self.finish(&sent.outcome, sent.charge, error);
            }
        }
        self.begin_anew();
    }

    fn finish(&self, outcome: &Outcome, charge: usize, error: Error) {
        outcome.complete(Err(error));
        self.core.memory.add_permits(charge);
    }
}

impl Drop for Sender {
    /// The task may be dropped in the middle of things, with its runtime. Nobody is left waiting.
    fn drop(&mut self) {
        for sent in std::mem::take(&mut self.window) {
            self.finish(&sent.outcome, sent.charge, Error::Closed);
        }
        for batch in self.lane.end() {
            self.finish(&batch.outcome, batch.charge, Error::Closed);
        }
    }
}

impl Identity {
    /// Sequence numbers count records and start again at 0 after the largest `i32`.
    fn advance(&mut self, records: u32) {
        self.next_sequence = (self.next_sequence as u32).wrapping_add(records) as i32 & i32::MAX;
    }
}

/// The answer to the oldest batch; never, if none is awaited.
async fn front_answer(window: &mut VecDeque<Sent>) -> Result<Reply> {
    let reply = window.front_mut().and_then(|sent| sent.reply.as_mut());
    match reply {
        Some(reply) => Pin::new(reply).await,
        None => std::future::pending().await,
    }
}

/// The outcome of an inquiry; never, if there is none.
async fn verdict(inquiry: &mut Option<Inquiry>) -> bool {
    match inquiry {
        Some(inquiry) => inquiry.await,
        None => std::future::pending().await,
    }
}

/// The same records in a batch under another identity. Rare, so it may take the long way.
fn rebuild(
    batch: &Bytes,
    identity: &Identity,
    codec: lnc_protocol::Codec,
) -> std::result::Result<Bytes, lnc_protocol::BatchError> {
    let limits = Limits { max_batch_bytes: usize::MAX, max_decompressed_bytes: usize::MAX };
    let mut builder = BatchBuilder::new(codec).with_producer(identity.id, identity.epoch, identity.next_sequence);
    for record in records(batch, &limits)? {
        let record = record?;
        let headers: Vec<_> = record
            .headers
            .iter()
            .filter_map(|(name, value)| Some((std::str::from_utf8(name).ok()?, value.as_deref())))
            .collect();
        builder.append(record.timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers)?;
    }
    Ok(builder.build())
}

impl Core {
    async fn init_producer(&self) -> Result<InitProducerResponse> {
        let operation = Operation::on_topic("init producer", &self.topic.name);
        let outcome = self.client.call(Call::new(operation.clone(), Request::InitProducer)).await?;
        match outcome.response {
            Response::InitProducer(response) => Ok(response),
            _ => Err(unexpected(&outcome.address, &operation)),
        }
    }
}
