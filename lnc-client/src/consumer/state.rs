//! What the consumer and its fetcher share: for each partition how far it was fetched, and the records that wait to be
//! read.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::error::Error;

/// The shared state. The lock is held for short updates, never while waiting.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Wakes the fetcher: there is room for more, or a partition was moved.
    pub(crate) wake: Notify,
}

pub(crate) struct State {
    pub(crate) partitions: BTreeMap<u32, Partition>,
    queue: VecDeque<Item>,
    /// The task that waits for an item.
    reader: Option<Waker>,
    /// The fetcher is gone.
    ended: bool,
}

/// How far a partition was fetched. That may be ahead of what was read.
pub(crate) struct Partition {
    /// The next offset to fetch.
    pub(crate) offset: u64,
    /// Counts the seeks; what was asked for before the last one is no longer wanted.
    pub(crate) epoch: u64,
    /// Whether `offset` was reached by reading on, so that it is known to exist or to come next.
    pub(crate) reached: bool,
    /// Bytes fetched and not yet read to the end.
    pub(crate) buffered: usize,
    pub(crate) phase: Phase,
    pub(crate) high_watermark: Option<u64>,
    /// Since when every attempt failed.
    pub(crate) failing_since: Option<Instant>,
    pub(crate) backoff: Backoff,
    /// Counts the failures: where any broker will do, the next one is another.
    pub(crate) detours: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// To be fetched as soon as there is room.
    Ready,
    /// A request is under way.
    Fetching,
    /// To be tried again at that time.
    Paused(Instant),
    /// Failed for good; only a seek helps.
    Halted,
}

/// A partition as a request asks for it.
pub(crate) struct Asked {
    pub(crate) partition: u32,
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
}

/// What the consumer gets to see next.
pub(crate) enum Item {
    Records(Chunk),
    /// A partition could not be read.
    Failed(u32, Error),
}

impl Item {
    fn partition(&self) -> u32 {
        match self {
            Item::Records(chunk) => chunk.partition,
            Item::Failed(partition, _) => *partition,
        }
    }
}

/// The records that one fetch brought for one partition.
pub(crate) struct Chunk {
    pub(crate) partition: u32,
    /// The offset asked for.
    pub(crate) from: u64,
    /// Whole batches.
    pub(crate) bytes: Bytes,
    /// The broker that sent them.
    pub(crate) address: Arc<str>,
}

impl Partition {
    fn new(offset: u64) -> Self {
        Partition {
            offset,
            epoch: 0,
            reached: false,
            buffered: 0,
            phase: Phase::Ready,
            high_watermark: None,
            failing_since: None,
            backoff: Backoff::new(),
            detours: 0,
        }
    }
}

impl Shared {
    pub(crate) fn new(offsets: impl IntoIterator<Item = (u32, u64)>) -> Arc<Self> {
        let partitions = offsets.into_iter().map(|(partition, offset)| (partition, Partition::new(offset))).collect();
        let state = State { partitions, queue: VecDeque::new(), reader: None, ended: false };
        Arc::new(Shared { state: Mutex::new(state), wake: Notify::new() })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next item. `None` when there will be none: every partition has failed for good.
    pub(crate) fn poll_item(&self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut state = self.lock();
        if let Some(item) = state.queue.pop_front() {
            return Poll::Ready(Some(item));
        }
        if state.ended || state.partitions.values().all(|partition| partition.phase == Phase::Halted) {
            return Poll::Ready(None);
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A chunk was read to its end, or is no longer wanted.
    pub(crate) fn release(&self, partition: u32, bytes: usize) {
        if let Some(partition) = self.lock().partitions.get_mut(&partition) {
            partition.buffered = partition.buffered.saturating_sub(bytes);
        }
        self.wake.notify_one();
    }

    /// Stops fetching a partition and drops what is buffered of it.
    pub(crate) fn halt(&self, partition: u32) {
        let mut state = self.lock();
        state.discard(partition);
        if let Some(partition) = state.partitions.get_mut(&partition) {
            partition.phase = Phase::Halted;
        }
    }

    /// Goes on at another offset. False if the partition is not being read.
    pub(crate) fn seek(&self, partition: u32, offset: u64) -> bool {
        let mut state = self.lock();
        state.discard(partition);
        let Some(partition) = state.partitions.get_mut(&partition) else { return false };
        partition.offset = offset;
        partition.reached = false;
        partition.phase = Phase::Ready;
        partition.failing_since = None;
        drop(state);
        self.wake.notify_one();
        true
    }

    /// The fetcher is gone: whoever waits for it should not.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.wake_reader();
    }
}

impl State {
    pub(crate) fn push(&mut self, item: Item) {
        self.queue.push_back(item);
        self.wake_reader();
    }

    /// The partition that was asked for, unless it was moved since.
    pub(crate) fn wanted(&mut self, asked: &Asked) -> Option<&mut Partition> {
        self.partitions.get_mut(&asked.partition).filter(|partition| partition.epoch == asked.epoch)
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// Forgets what was fetched, or is being fetched, of a partition, and what went wrong with it.
    fn discard(&mut self, number: u32) {
        self.queue.retain(|item| item.partition() != number);
        if let Some(partition) = self.partitions.get_mut(&number) {
            partition.epoch += 1;
            partition.buffered = 0;
        }
    }
}
