//! Finds the highest rate that the cluster sustains: raises the rate of the open loop step by step until a step fails,
//! then halves the interval between the highest rate that was sustained and the lowest that was not.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::BenchError;
use crate::args::ProduceArgs;
use crate::produce;
use crate::report::Report;
use crate::words::time;

/// From one step to the next, the rate grows by this factor.
const GROWTH: f64 = 2.0;

/// A rate is sustained only if this share of it is acknowledged.
const LEAST_SHARE: f64 = 0.95;

/// The search ends when the two rates are as near as this, by their ratio, or after so many steps.
const NEAR_ENOUGH: f64 = 1.05;
const MOST_STEPS: usize = 32;

/// The first rate and the bound if none are given.
const FIRST_RATE: f64 = 1000.0;
const BOUND: Duration = Duration::from_millis(10);

/// What one rate brought.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Step {
    /// Records a second.
    pub(crate) offered: f64,
    /// Records a second.
    pub(crate) achieved: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Whether the rate was reached and the latency kept its bound.
    pub(crate) sustained: bool,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { offered, achieved, p50_us, p99_us, sustained } = self;
        let outcome = if *sustained { "sustained" } else { "not sustained" };
        write!(
            f,
            "{offered:>9.0} records/s offered, {achieved:>9.0} achieved, p50 {p50_us:.0} µs, p99 {p99_us:.0} µs, {outcome}"
        )
    }
}

/// The search, without the measuring.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    next: f64,
    bound_us: f64,
    /// The highest rate that was sustained, and the lowest that was not.
    low: Option<f64>,
    high: Option<f64>,
    pub(crate) steps: Vec<Step>,
}

impl Sweep {
    pub(crate) fn new(first: f64, bound: Duration) -> Self {
        Sweep { next: first, bound_us: bound.as_secs_f64() * 1e6, low: None, high: None, steps: Vec::new() }
    }

    /// The rate to measure next; `None` when the search is over.
    pub(crate) fn next(&self) -> Option<f64> {
        let near = matches!((self.low, self.high), (Some(low), Some(high)) if high / low < NEAR_ENOUGH);
        (!near && self.steps.len() < MOST_STEPS && self.next >= 1.0).then_some(self.next)
    }

    /// Takes what the rate brought that was to be measured next; says whether it was sustained.
    pub(crate) fn record(&mut self, achieved: f64, p50_us: f64, p99_us: f64) -> bool {
        let offered = self.next;
        let sustained = achieved >= offered * LEAST_SHARE && p99_us <= self.bound_us;
        self.steps.push(Step { offered, achieved, p50_us, p99_us, sustained });
        *if sustained { &mut self.low } else { &mut self.high } = Some(offered);
        self.next = match (self.low, self.high) {
            (Some(low), Some(high)) => (low + high) / 2.0,
            (Some(low), None) => low * GROWTH,
            (None, high) => high.unwrap_or(offered) / GROWTH,
        };
        sustained
    }
}

/// Runs the sweep. The report is that of the highest rate that was sustained, with all steps; or that of the lowest rate
/// if none was.
pub(crate) fn run(args: &ProduceArgs) -> Result<Report, BenchError> {
    let bound = args.bounds.max_p99.unwrap_or(BOUND);
    let mut sweep = Sweep::new(args.load.rate.unwrap_or(FIRST_RATE), bound);
    let mut load = args.load.clone();
    load.duration = args.step_duration;
    let (mut best, mut any_sustained) = (None, false);
    while let Some(rate) = sweep.next() {
        load.rate = Some(rate);
        let report = produce::run(&args.cluster, &load, None)?;
        let (p50, p99) =
            report.latency.as_ref().map_or((f64::MAX, f64::MAX), |latency| (latency.p50_us, latency.p99_us));
        // Errors are no throughput that a rate could be said to sustain.
        let achieved = if report.errors.is_empty() { report.records_per_second } else { 0.0 };
        let sustained = sweep.record(achieved, p50, p99);
        if let Some(step) = sweep.steps.last() {
            eprintln!("{step}");
        }
        // Rates that are sustained only rise.
        if sustained || !any_sustained {
            best = Some(report);
        }
        any_sustained |= sustained;
    }
    let mut report = best.ok_or(BenchError::NoNodes)?;
    report.steps = sweep.steps;
    let found = report.steps.iter().filter(|step| step.sustained).map(|step| step.offered).fold(0.0, f64::max);
    let (bound, load) = (time(bound), &report.load);
    report.load = format!("sweep: {found:.0} records/s is the highest rate found with p99 within {bound}; {load}");
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sweeps a cluster that sustains `capacity`, and whose latency rises shortly before.
    fn sweep(first: f64, capacity: f64) -> Sweep {
        let mut sweep = Sweep::new(first, Duration::from_millis(10));
        while let Some(rate) = sweep.next() {
            let p99 = if rate > capacity * 0.9 { 50_000.0 } else { 2000.0 };
            sweep.record(rate.min(capacity), 1000.0, p99);
        }
        sweep
    }

    #[test]
    fn the_search_ends_near_the_saturation_point() {
        for (first, capacity) in [(1000.0, 77_000.0), (1000.0, 300.0), (50_000.0, 51_000.0), (1.0, 1e6)] {
            let sweep = sweep(first, capacity);
            let found = sweep.low.unwrap();
            assert!(found <= capacity * 0.9 && found > capacity * 0.9 / 1.06, "{capacity}: {found}");
            assert!(sweep.steps.len() <= 30, "{}", sweep.steps.len());
        }
    }

    #[test]
    fn both_a_missed_rate_and_a_missed_bound_end_the_rise() {
        let mut sweep = Sweep::new(1000.0, Duration::from_millis(10));
        assert!(sweep.record(951.0, 10.0, 10_000.0));
        assert_eq!(sweep.next(), Some(2000.0));
        assert!(!sweep.record(1899.0, 10.0, 100.0));
        assert_eq!(sweep.next(), Some(1500.0));
        assert!(!sweep.record(1500.0, 10.0, 10_001.0));
        assert_eq!(sweep.next(), Some(1250.0));
    }

    #[test]
    fn a_cluster_that_sustains_nothing_ends_the_search() {
        let mut sweep = Sweep::new(1000.0, Duration::from_millis(10));
        while sweep.next().is_some() {
            sweep.record(0.0, f64::MAX, f64::MAX);
        }
        assert_eq!((sweep.low, sweep.steps.len()), (None, 10));
    }
}
