//! The records of one partition on their way to the sender: packed into batches as they come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lnc_protocol::Codec;
use lnc_protocol::batch::BatchBuilder;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::delivery::{DeliveryFuture, Outcome};
use crate::error::{Error, Result};

/// How many emptied builders a lane keeps for the next batches, with their buffers and compressors.
const KEPT_BUILDERS: usize = 2;

/// Where the user's tasks leave the records of one partition and its sender takes them.
pub(crate) struct Lane {
    pub(crate) partition: u32,
    topic: Arc<str>,
    codec: Codec,
    /// When a batch counts as full, in bytes.
    max_batch_bytes: usize,
    state: Mutex<State>,
    /// Wakes the sender: a batch was opened, closed or is wanted at once, or the lane is closing.
    pub(crate) wake: Notify,
}

#[derive(Default)]
struct State {
    /// Batches that are full, oldest first.
    full: VecDeque<Batch>,
    /// The batch that records are added to.
    open: Option<Batch>,
    /// The open batch is to go out without lingering.
    flushing: bool,
    closing: bool,
    /// The sender is gone.
    ended: bool,
    /// Whether the sender's task was started.
    started: bool,
    /// The outcome of the newest batch: once it is known, those of all batches are.
    newest: Option<Arc<Outcome>>,
    /// The first failure since the last flush.
    failure: Option<Error>,
    spare: Vec<BatchBuilder>,
}

/// A batch that is not sent yet.
pub(crate) struct Batch {
    pub(crate) builder: BatchBuilder,
    pub(crate) outcome: Arc<Outcome>,
    /// When its first record came.
    pub(crate) opened_at: Instant,
    /// How much of the producer's memory it holds, in bytes.
    pub(crate) charge: usize,
}

/// What a record adds to a batch.
pub(crate) struct Addition<'a> {
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) headers: &'a [(&'a str, Option<&'a [u8]>)],
    /// Its share of the producer's memory, in bytes; also the most that it adds to a batch.
    pub(crate) charge: usize,
}

/// What became of a record.
pub(crate) struct Added {
    pub(crate) delivery: DeliveryFuture,
    /// The lane has no sender yet, and the caller must start it.
    pub(crate) start_sender: bool,
    /// A batch became full.
    pub(crate) filled: bool,
}

/// What the sender finds in a lane.
pub(crate) enum Next {
    /// A batch to send.
    Batch(Batch),
    /// A batch that may gather records until then.
    Lingering(Instant),
    Nothing,
}

impl Lane {
    pub(crate) fn new(topic: Arc<str>, partition: u32, codec: Codec, max_batch_bytes: usize) -> Arc<Self> {
        Arc::new(Lane { partition, topic, codec, max_batch_bytes, state: Mutex::default(), wake: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a record to the open batch, or to a new one if that is full.
    pub(crate) fn add(&self, addition: &Addition<'_>) -> Result<Added> {
        let mut state = self.lock();
        let state = &mut *state;
        if state.ended {
            return Err(Error::Closed);
        }
        let is_full = |open: &mut Batch| open.builder.encoded_len() + addition.charge > self.max_batch_bytes;
        let filled = state.open.take_if(is_full);
        let has_filled = filled.is_some();
        state.full.extend(filled);
        let opens = state.open.is_none();
        let mut batch = match state.open.take() {
            Some(batch) => batch,
            None => Batch {
                builder: state.spare.pop().unwrap_or_else(|| BatchBuilder::new(self.codec)),
                outcome: Outcome::new(self.topic.clone(), self.partition),
                opened_at: Instant::now(),
                charge: 0,
            },
        };
        let index = batch.builder.count();
        let appended = batch.builder.append(addition.timestamp_ms, addition.key, addition.value, addition.headers);
        if appended.is_err() {
            if batch.builder.is_empty() {
                state.spare.push(batch.builder);
            } else {
                state.open = Some(batch);
            }
            return Err(Error::RecordTooLarge { size: addition.charge, limit: self.max_batch_bytes });
        }
        batch.charge += addition.charge;
        let delivery = batch.outcome.delivery(index);
        state.newest = Some(batch.outcome.clone());
        state.open = Some(batch);
        let start_sender = !std::mem::replace(&mut state.started, true);
        if opens || has_filled {
            self.wake.notify_one();
        }
        Ok(Added { delivery, start_sender, filled: has_filled })
    }

    /// The next batch, if it is full, lingered long enough or is wanted at once.
    pub(crate) fn next(&self, now: Instant, linger: Duration) -> Next {
        let mut state = self.lock();
        if let Some(batch) = state.full.pop_front() {
            return Next::Batch(batch);
        }
        let Some(open) = &state.open else { return Next::Nothing };
        let due = open.opened_at + linger;
        if due > now && !state.flushing && !state.closing {
            return Next::Lingering(due);
        }
        state.flushing = false;
        state.open.take().map_or(Next::Nothing, Next::Batch)
    }

    /// The oldest batch, whether it is due or not.
    pub(crate) fn oldest(&self) -> Option<Batch> {
        let mut state = self.lock();
        state.full.pop_front().or_else(|| state.open.take())
    }

    /// When the oldest batch got its first record.
    pub(crate) fn oldest_since(&self) -> Option<Instant> {
        let state = self.lock();
        state.full.front().or(state.open.as_ref()).map(|batch| batch.opened_at)
    }

    /// Takes back an emptied builder.
    pub(crate) fn recycle(&self, builder: BatchBuilder) {
        let mut state = self.lock();
        if state.spare.len() < KEPT_BUILDERS {
            state.spare.push(builder);
        }
    }

    /// Notes a failure, for the next flush to report.
    pub(crate) fn note_failure(&self, error: &Error) {
        self.lock().failure.get_or_insert_with(|| error.clone());
    }

    pub(crate) fn take_failure(&self) -> Option<Error> {
        self.lock().failure.take()
    }

    /// Has the open batch sent at once. Returns the future of the newest batch.
    pub(crate) fn flush(&self) -> Option<DeliveryFuture> {
        let mut state = self.lock();
        if state.open.is_some() {
            state.flushing = true;
            self.wake.notify_one();
        }
        state.newest.as_ref().map(|outcome| outcome.delivery(0))
    }

    /// Lets the sender end once all is sent.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// The sender is going; returns what it leaves behind.
    pub(crate) fn end(&self) -> Vec<Batch> {
        let mut state = self.lock();
        state.ended = true;
        let open = state.open.take();
        state.full.drain(..).chain(open).collect()
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }
}
