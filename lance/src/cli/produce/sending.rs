//! Records on their way: handed to the producer without a copy, and their deliveries looked at in the order of the input,
//! so that it can be said which one failed first.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use indicatif::ProgressBar;
use lnc_client::{DeliveryFuture, Producer};
use tokio::sync::mpsc;

use super::input::Delimiter;
use super::shape::Shape;
use crate::cli::error::CliError;
use crate::cli::output::counted;
use serde_json::{Value, json};

/// How long nothing may come before somebody is told that something is waited for.
const SILENCE: Duration = Duration::from_secs(2);

pub(super) struct Sending<'a> {
    producer: &'a Producer,
    delimiter: &'a Delimiter,
    shape: Shape,
    /// What a piece of the input is called.
    piece: &'static str,
    pub(super) progress: ProgressBar,
    /// Says so when nothing comes at first.
    tells_of_silence: bool,
    started: Instant,
    /// Deliveries that are not known yet, each with the number of its piece.
    pending: VecDeque<Pending>,
    /// Pieces that were read, with those that hold no record.
    read: u64,
    stored: u64,
    failed: u64,
    bytes: u64,
}

impl<'a> Sending<'a> {
    pub(super) fn new(
        producer: &'a Producer,
        delimiter: &'a Delimiter,
        shape: Shape,
        progress: ProgressBar,
        tells_of_silence: bool,
    ) -> Self {
        let is_lines = matches!(delimiter, Delimiter::Text(text) if text == b"\n");
        Self {
            producer,
            delimiter,
            shape,
            piece: if is_lines { "line" } else { "record" },
            progress,
            tells_of_silence,
            started: Instant::now(),
            pending: VecDeque::new(),
            read: 0,
            stored: 0,
            failed: 0,
            bytes: 0,
        }
    }

    /// Everything, up to the last delivery. Ctrl-C ends the input; a second one ends the wait for deliveries.
    pub(super) async fn run(&mut self, blocks: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), CliError> {
        let end = self.hand_in(blocks).await;
        let flushed = tokio::select! {
            _ = self.producer.flush() => Ok(()),
            _ = tokio::signal::ctrl_c() => Err(CliError::failed("interrupted before all records were acknowledged")),
        };
        end.and(self.settle()).and(flushed)
    }

    async fn hand_in(&mut self, mut blocks: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), CliError> {
        let mut waits = std::pin::pin!(tokio::time::sleep(SILENCE));
        let mut is_told = !self.tells_of_silence;
        loop {
            let block = tokio::select! {
                block = blocks.recv() => block,
                (number, outcome) = oldest(&mut self.pending) => {
                    self.count(number, outcome)?;
                    continue;
                }
                () = &mut waits, if !is_told => {
                    eprintln!("lance: waiting for records on standard input; nothing has come yet");
                    is_told = true;
                    continue;
                }
                _ = tokio::signal::ctrl_c() => None,
            };
            is_told = true;
            let Some(block) = block else { return Ok(()) };
            let block = block.map_err(|error| CliError::failed(format!("cannot read the input: {error}")))?;
            self.hand_in_block(&block).await?;
            self.settle()?;
            self.progress.inc(block.len() as u64);
        }
    }

    async fn hand_in_block(&mut self, block: &Bytes) -> Result<(), CliError> {
        let timestamp_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok());
        let mut start = 0;
        while start < block.len() {
            let (piece, next) = self.delimiter.split(block, start);
            start = next;
            self.read += 1;
            let length = piece.len() as u64;
            let made = self.shape.record(block, piece, timestamp_ms).map_err(CliError::failed);
            let record = match made {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(error) => return Err(self.failure(self.read, error)),
            };
            match self.producer.enqueue(record).await {
                Ok(delivery) => self.pending.push_back(Pending { number: self.read, bytes: length, delivery }),
                Err(error) => return Err(self.failure(self.read, error.into())),
            }
        }
        Ok(())
    }

    /// Counts the deliveries that are known by now.
    fn settle(&mut self) -> Result<(), CliError> {
        let mut result = Ok(());
        let mut context = Context::from_waker(Waker::noop());
        while let Some(Pending { number, bytes, delivery }) = self.pending.front_mut() {
            let Poll::Ready(outcome) = Pin::new(delivery).poll(&mut context) else { break };
            let outcome = outcome.map(|_| *bytes);
            let number = *number;
            self.pending.pop_front();
            result = result.and(self.count(number, outcome));
        }
        result
    }

    fn count(&mut self, number: u64, outcome: lnc_client::Result<u64>) -> Result<(), CliError> {
        match outcome {
            Ok(bytes) => {
                self.stored += 1;
                self.bytes += bytes;
                Ok(())
            }
            Err(error) => Err(self.failure(number, error.into())),
        }
    }

    fn failure(&mut self, number: u64, error: CliError) -> CliError {
        self.failed += 1;
        error.context(format!("{} {number}", self.piece))
    }

    /// The same for programs.
    pub(super) fn summary_json(&self) -> Value {
        json!({
            "stored": self.stored,
            "failed": self.failed,
            "unknown": self.pending.len(),
            "bytes": self.bytes,
            "seconds": self.started.elapsed().as_secs_f64(),
        })
    }

    pub(super) fn summary(&self) -> String {
        let seconds = self.started.elapsed().as_secs_f64().max(1e-6);
        let (rate, mbps) = (self.stored as f64 / seconds, self.bytes as f64 / seconds / 1e6);
        let (stored, piece) = (counted(self.stored, self.piece), self.piece);
        let mut text =
            format!("{stored} stored in {seconds:.2} s ({}/s, {mbps:.1} MB/s)", counted(rate.round() as u64, piece));
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", self.failed));
        }
        if !self.pending.is_empty() {
            text.push_str(&format!(", {} with unknown outcome", self.pending.len()));
        }
        text
    }
}

/// A record that is on its way.
pub(super) struct Pending {
    /// Which one of the input.
    number: u64,
    bytes: u64,
    delivery: DeliveryFuture,
}

/// Waits for the oldest delivery; for ever if there is none.
async fn oldest(pending: &mut VecDeque<Pending>) -> (u64, lnc_client::Result<u64>) {
    match pending.front_mut() {
        Some(Pending { number, bytes, delivery }) => {
            let (number, outcome) = (*number, delivery.await.map(|_| *bytes));
            pending.pop_front();
            (number, outcome)
        }
        None => std::future::pending().await,
    }
}
