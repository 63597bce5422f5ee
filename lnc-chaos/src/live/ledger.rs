//! The books of a run, which producers, consumer and nemesis share: records, stalls, throughput, faults, history.

use super::checker::Checker;
use super::fault::Fault;
use super::history::{Event, History};
use super::stalls::Stalls;
use bytes::Bytes;
use lnc_client::{ConsumedRecord, Delivery, Error};
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Width of a column of the timeline, in microseconds.
pub(super) const COLUMN_US: u64 = 100_000;

/// How many errors of clients are kept in words.
const ERRORS: usize = 20;

/// Records per [`COLUMN_US`].
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Column {
    /// Acknowledged.
    pub acknowledged: u32,
    /// Handed to the live consumer.
    pub consumed: u32,
}

/// A fault on the timeline.
#[derive(Clone, Debug, Serialize)]
pub struct Struck {
    /// Its name.
    pub fault: &'static str,
    /// To whom it happened.
    pub what: String,
    /// When it began, in microseconds since the run did.
    pub begin_us: u64,
    /// When it was taken back.
    pub healed_us: Option<u64>,
    /// When all nodes were ready again.
    pub whole_us: Option<u64>,
}

/// See the module documentation.
pub(super) struct Books {
    start: Instant,
    pub(super) checker: Checker,
    pub(super) stalls: Stalls,
    pub(super) timeline: Vec<Column>,
    pub(super) struck: Vec<Struck>,
    pub(super) history: History,
    pub(super) producer_errors: u64,
    pub(super) consumer_errors: u64,
    pub(super) reconnects: u64,
    /// The first errors of clients, in words.
    pub(super) errors: Vec<String>,
}

/// [`Books`] in many hands.
#[derive(Clone)]
pub(super) struct Ledger(Arc<Mutex<Books>>);

impl Ledger {
    pub(super) fn new(checker: Checker, stalls: Stalls, history: History) -> Self {
        Self(Arc::new(Mutex::new(Books {
            start: Instant::now(),
            checker,
            stalls,
            timeline: Vec::new(),
            struck: Vec::new(),
            history,
            producer_errors: 0,
            consumer_errors: 0,
            reconnects: 0,
            errors: Vec::new(),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Books> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Books {
    /// Microseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn column(&mut self, now: u64) -> &mut Column {
        let at = (now / COLUMN_US) as usize;
        if self.timeline.len() <= at {
            self.timeline.resize(at + 1, Column::default());
        }
        &mut self.timeline[at]
    }

    pub(super) fn send(&mut self, producer: u32, partition: u32) -> (u32, Bytes) {
        let now = self.now();
        let (number, value) = self.checker.send(producer, partition);
        self.stalls.sent(now, producer as usize, partition as usize);
        self.history.note(&Event::Sent { at_us: now, producer, partition, number });
        (number, value)
    }

    /// What came of a record.
    pub(super) fn delivered(&mut self, producer: u32, partition: u32, number: u32, result: Result<Delivery, Error>) {
        let now = self.now();
        self.stalls.answered(now, producer as usize, partition as usize, result.is_ok());
        match result {
            Ok(delivery) => {
                self.column(now).acknowledged += 1;
                let offset = delivery.offset;
                self.history.note(&Event::Acknowledged { at_us: now, producer, partition, number, offset });
                match offset {
                    Some(offset) => self.checker.acknowledged(producer, partition, number, offset),
                    None => self.broken(format!("producer {producer}: an acknowledgement without an offset")),
                }
            }
            Err(error) => {
                let error = error.to_string();
                self.history.note(&Event::Unknown { at_us: now, producer, partition, number, error: &error });
                self.checker.failed();
                self.producer_errors += 1;
                self.error(format!("producer {producer}, partition {partition}: {error}"));
            }
        }
    }

    pub(super) fn consumed(&mut self, partition: u32, records: &[ConsumedRecord]) {
        let now = self.now();
        self.column(now).consumed += records.len() as u32;
        let offset = records.first().map_or(0, |record| record.offset);
        self.history.note(&Event::Consumed { at_us: now, partition, offset, count: records.len() });
        for record in records {
            self.checker.consumed(partition, record.offset, record.value.as_deref().unwrap_or_default());
        }
    }

    pub(super) fn consumer_failed(&mut self, error: &Error) {
        self.consumer_errors += 1;
        self.error(format!("consumer: {error}"));
    }

    fn error(&mut self, what: String) {
        if self.errors.len() < ERRORS {
            self.errors.push(what);
        }
    }

    /// A promise was broken.
    pub(super) fn broken(&mut self, what: String) {
        self.history.note(&Event::Finding { at_us: self.start.elapsed().as_micros() as u64, what: &what });
        self.checker.broken(what);
    }

    pub(super) fn begin(&mut self, fault: Fault, what: &str) {
        let now = self.now();
        self.stalls.begin(now, fault);
        self.history.note(&Event::Fault { at_us: now, phase: "begin", fault: fault.name(), what });
        let what = what.to_owned();
        self.struck.push(Struck { fault: fault.name(), what, begin_us: now, healed_us: None, whole_us: None });
    }

    /// The newest fault was taken back; `whole` if all nodes are ready again too.
    pub(super) fn healed(&mut self, whole: bool) {
        let now = self.now();
        self.stalls.heal(now);
        let Some(struck) = self.struck.last_mut() else { return };
        let phase = if whole { "whole" } else { "healed" };
        *(if whole { &mut struck.whole_us } else { &mut struck.healed_us }) = Some(now);
        self.history.note(&Event::Fault { at_us: now, phase, fault: struck.fault, what: &struck.what });
    }
}
