//! The state of the cluster as this node sees it, for people: the status page and `lance top` draw from one document.
//!
//! All of it runs on the HTTP thread. The shard is asked for a [`Snapshot`] at most about once a second however many look
//! on, and not at all while nobody does; rates are read off the metrics, which are atomics.

pub mod document;
mod page;
mod rates;
#[cfg(test)]
mod tests;

use crate::http::Health;
use document::{Document, Query};
use lnc_broker::status::Snapshot;
use lnc_metrics::Metrics;
use rates::{History, SnapshotRates};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};

pub use page::{content_security_policy, page};

/// How old a snapshot may be before the shard is asked for another.
const FRESH: Duration = Duration::from_millis(900);

/// Longest time to wait for the shard; a turn takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);

/// Someone waits for a snapshot.
pub type Question = oneshot::Sender<Snapshot>;

/// See the module documentation.
#[derive(Debug)]
pub struct Status {
    node: u64,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    questions: mpsc::Sender<Question>,
    latest: tokio::sync::Mutex<Latest>,
    history: Mutex<History>,
}

/// What the shard has answered last.
#[derive(Debug, Default)]
struct Latest {
    /// When it was asked for the last time, and whether it answered.
    asked: Option<(Instant, bool)>,
    snapshot: Option<Snapshot>,
    rates: SnapshotRates,
}

impl Status {
    /// The status of a node, and where the shard finds who asks for it.
    pub fn new(node: u64, metrics: Arc<Metrics>, health: Arc<Health>) -> (Self, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(1);
        let (latest, history) = (tokio::sync::Mutex::default(), Mutex::default());
        (Self { node, metrics, health, questions, latest, history }, asked)
    }

    /// Read the metrics once a second until the future is dropped.
    pub async fn sample(&self) {
        let start = Instant::now();
        let mut seconds = interval(rates::STEP);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            seconds.tick().await;
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            history.sample(start.elapsed(), &self.metrics);
        }
    }

    /// The document; without a view of the cluster as long as the shard has not given one.
    pub async fn document(&self, query: &Query) -> Document {
        let mut latest = self.latest.lock().await;
        if latest.asked.is_none_or(|(at, _)| at.elapsed() >= FRESH) {
            self.ask(&mut latest).await;
        }
        let problem = match latest.asked {
            Some((_, false)) if latest.snapshot.is_some() => {
                Some("the node does not say how it is: its shard is busy or stuck".to_owned())
            }
            _ => None,
        };
        let rates = self.history.lock().unwrap_or_else(PoisonError::into_inner).rates();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Document {
            format: document::FORMAT,
            node: self.node,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms: now.as_millis() as u64,
            not_ready: self.health.ready().err(),
            problem,
            rates,
            view: latest.snapshot.as_ref().map(|snapshot| document::view(snapshot, &latest.rates, query)),
        }
    }

    async fn ask(&self, latest: &mut Latest) {
        let (answer, answered) = oneshot::channel();
        // A question that waits already finds nobody any more when it is answered; the next one will.
        let snapshot = match self.questions.try_send(answer) {
            Ok(()) => timeout(PATIENCE, answered).await.ok().and_then(Result::ok),
            Err(_) => None,
        };
        latest.asked = Some((Instant::now(), snapshot.is_some()));
        if let Some(snapshot) = snapshot {
            latest.rates.note(&snapshot);
            latest.snapshot = Some(snapshot);
        }
    }
}
