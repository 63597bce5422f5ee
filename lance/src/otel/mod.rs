//! Spans on their way to a collector, in OTLP over HTTP. Only in programs with the feature `otel`.
//!
//! The node's thread puts spans into a queue and never waits for it; what finds no room is left out and counted. A thread
//! of its own collects for a moment, encodes what has come together (`encode.rs`) and posts it (`post.rs`). Spans that the
//! collector does not take are lost and counted: nothing is kept or tried again for its sake.

mod encode;
mod post;

use crate::config::{Config, Url};
use crate::gateway::traces::SpanSink;
use encode::{Resource, encode};
use lnc_broker::trace::Span;
use lnc_metrics::{Counter, Metrics};
use post::post;
use std::io;
use std::rc::Rc;
use std::sync::mpsc as wait;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// Spans that may wait.
const QUEUE: usize = 8192;

/// Spans of one delivery; more are divided.
const BATCH: usize = 512;

/// How long spans are collected once one has come.
const LINGER: Duration = Duration::from_millis(500);

/// How long a node that stops waits for the last delivery.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often it is said that the collector does not take spans.
const REMIND: Duration = Duration::from_secs(60);

/// The thread that delivers spans. Without [`Exporter::finish`] it ends when the last sink is gone.
pub(crate) struct Exporter {
    queue: mpsc::Sender<Span>,
    left_out: Counter,
    close: oneshot::Sender<()>,
    done: wait::Receiver<()>,
}

impl Exporter {
    /// Start it, if the configuration names a collector. Spans are timed by a stopwatch that began at `start`.
    pub(crate) fn start(config: &Config, start: Instant, metrics: &Metrics) -> io::Result<Option<Self>> {
        let Some(url) = config.tracing.otlp_endpoint.clone() else { return Ok(None) };
        let outcome = |name: &str| metrics.trace_spans_total.with_label_values(&[name]);
        let mut deliveries = Deliveries {
            url,
            timeout: config.tracing.timeout,
            resource: Resource { service_name: config.tracing.service_name.clone(), node: config.node.id },
            start,
            sent: outcome("sent"),
            refused: outcome("refused"),
            lost: outcome("lost"),
            warned: None,
        };
        let (queue, spans) = mpsc::channel(QUEUE);
        let (close, closing) = oneshot::channel();
        let (tell_done, done) = wait::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("otel".into()).spawn(move || {
            runtime.block_on(deliveries.run(spans, closing));
            // A node that has not waited does not mind.
            let _ = tell_done.send(());
        })?;
        Ok(Some(Self { queue, left_out: outcome("left_out"), close, done }))
    }

    /// Where spans are put.
    pub(crate) fn sink(&self) -> SpanSink {
        let (queue, left_out) = (self.queue.clone(), self.left_out.clone());
        Rc::new(move |span| {
            if queue.try_send(span).is_err() {
                left_out.inc();
            }
        })
    }

    /// Deliver what waits, and end; if that takes long, without waiting for it.
    pub(crate) fn finish(self) {
        let _ = self.close.send(());
        if self.done.recv_timeout(LAST_WORDS).is_err() {
            tracing::info!("the collector did not take the last spans in time");
        }
    }
}

/// Why a collector did not take a delivery.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    /// It was not reached, or what it said made no sense.
    #[error("{0}")]
    Lost(String),
    /// It said no.
    #[error("it answered {0}")]
    Refused(hyper::StatusCode),
}

/// What the thread knows.
struct Deliveries {
    url: Url,
    timeout: Duration,
    resource: Resource,
    /// When the stopwatch of the spans began.
    start: Instant,
    sent: Counter,
    refused: Counter,
    lost: Counter,
    /// When it was last said that the collector does not take spans; `None` while it does.
    warned: Option<Instant>,
}

impl Deliveries {
    async fn run(&mut self, mut spans: mpsc::Receiver<Span>, mut closing: oneshot::Receiver<()>) {
        let mut open = true;
        while open {
            let mut waiting = Vec::new();
            tokio::select! {
                _ = &mut closing => open = false,
                first = spans.recv() => {
                    let Some(first) = first else { return };
                    waiting.push(first);
                    tokio::select! {
                        _ = &mut closing => open = false,
                        () = sleep(LINGER) => {}
                    }
                }
            }
            while let Ok(span) = spans.try_recv() {
                waiting.push(span);
            }
            for batch in waiting.chunks(BATCH) {
                self.deliver(batch).await;
            }
        }
    }

    async fn deliver(&mut self, batch: &[Span]) {
        let body = encode(&self.resource, self.stopwatch_began_at(), batch);
        let answer = timeout(self.timeout, post(&self.url, body)).await;
        let answer = answer
            .unwrap_or_else(|_| Err(DeliveryError::Lost(format!("no answer in {} s", self.timeout.as_secs_f64()))));
        let count = batch.len() as u64;
        match answer {
            Ok(rejected) => {
                let rejected = rejected.min(count);
                self.sent.inc_by(count - rejected);
                self.refused.inc_by(rejected);
                if self.warned.take().is_some() {
                    tracing::info!(endpoint = %self.url, "the collector takes spans again");
                }
            }
            Err(error) => {
                match error {
                    DeliveryError::Lost(_) => self.lost.inc_by(count),
                    DeliveryError::Refused(_) => self.refused.inc_by(count),
                }
                self.warn(&error);
            }
        }
    }

    fn warn(&mut self, error: &DeliveryError) {
        if self.warned.is_none_or(|at| at.elapsed() >= REMIND) {
            self.warned = Some(Instant::now());
            tracing::warn!(
                endpoint = %self.url,
                %error,
                "the collector does not take spans: those of traces are lost, nothing else is. Look whether it runs there and \
                 takes OTLP over HTTP, or empty tracing.otlp_endpoint; lance_trace_spans_total counts"
            );
        }
    }

    /// When the stopwatch began, since the Unix epoch. Worked out anew each time, since the wall clock may be set.
    fn stopwatch_began_at(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(self.start.elapsed())
    }
}
