//! The outcome of a batch, awaited by each of its records.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::Result;
use crate::record::Delivery;

/// The outcome of one batch. Shared by the batch and the futures of its records.
#[derive(Debug)]
pub(crate) struct Outcome {
    topic: Arc<str>,
    partition: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The offset of the first record, once known.
    result: Option<Result<Option<u64>>>,
    wakers: Vec<Waker>,
}

impl Outcome {
    pub(crate) fn new(topic: Arc<str>, partition: u32) -> Arc<Self> {
        Arc::new(Outcome { topic, partition, state: Mutex::default() })
    }

    /// Tells all who wait. The first outcome stands.
    pub(crate) fn complete(&self, result: Result<Option<u64>>) {
        let wakers = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.result.is_some() {
                return;
            }
            state.result = Some(result);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The future of the record at `index` in the batch.
    pub(crate) fn delivery(self: &Arc<Self>, index: u32) -> DeliveryFuture {
        DeliveryFuture { outcome: self.clone(), index, waker: None }
    }
}

/// The future of one record's delivery. It need not be awaited: the record is sent all the same.
pub struct DeliveryFuture {
    outcome: Arc<Outcome>,
    index: u32,
    /// Where this future's waker stands among those of the batch.
    waker: Option<usize>,
}

impl DeliveryFuture {
    /// The partition that the record goes to.
    pub fn partition(&self) -> u32 {
        self.outcome.partition
    }
}

impl Future for DeliveryFuture {
    type Output = Result<Delivery>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut state = this.outcome.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(result) = &state.result {
            let result = result.clone().map(|base| Delivery {
                topic: this.outcome.topic.clone(),
                partition: this.outcome.partition,
                offset: base.map(|base| base + u64::from(this.index)),
            });
            return Poll::Ready(result);
        }
        match this.waker {
            Some(at) if state.wakers[at].will_wake(cx.waker()) => {}
            Some(at) => state.wakers[at] = cx.waker().clone(),
            None => {
                this.waker = Some(state.wakers.len());
                state.wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for DeliveryFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliveryFuture").field("outcome", &self.outcome).field("index", &self.index).finish()
    }
}
