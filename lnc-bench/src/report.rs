//! What a run found, for people and for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The outcome of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// What was run, in words.
    pub(crate) load: String,
    /// The time measured, in seconds.
    pub(crate) seconds: f64,
    pub(crate) records: u64,
    pub(crate) records_per_second: f64,
    /// Of values, in units of 10^6 bytes.
    pub(crate) megabytes_per_second: f64,
    /// Of acknowledgements; not given for reading.
    pub(crate) latency: Option<Latency>,
    /// Failed requests by error code or kind.
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) servers: Vec<Server>,
    /// Over all servers; not given without them.
    pub(crate) records_per_cpu_second: Option<f64>,
}

/// Percentiles in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) requests: u64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// What one server process spent in the time measured.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) cpu_seconds: f64,
}

impl Report {
    pub(crate) fn new(load: String, duration: Duration, records: u64, bytes: u64) -> Self {
        let seconds = duration.as_secs_f64().max(f64::MIN_POSITIVE);
        Report {
            load,
            seconds,
            records,
            records_per_second: records as f64 / seconds,
            megabytes_per_second: bytes as f64 / seconds / 1e6,
            latency: None,
            errors: BTreeMap::new(),
            servers: Vec::new(),
            records_per_cpu_second: None,
        }
    }

    /// Adds the CPU times of the servers before and after the time measured.
    pub(crate) fn with_servers(mut self, pids: &[u32], before: &[Duration], after: &[Duration]) -> Self {
        let spent = before.iter().zip(after).map(|(before, after)| after.saturating_sub(*before).as_secs_f64());
        self.servers = pids.iter().zip(spent).map(|(&pid, cpu_seconds)| Server { pid, cpu_seconds }).collect();
        let total: f64 = self.servers.iter().map(|server| server.cpu_seconds).sum();
        self.records_per_cpu_second = (total > 0.0).then(|| self.records as f64 / total);
        self
    }
}

impl Latency {
    /// From a histogram of nanoseconds; `None` if it is empty.
    pub(crate) fn of(nanoseconds: &Histogram<u64>) -> Option<Self> {
        let quantile = |quantile: f64| nanoseconds.value_at_quantile(quantile) as f64 / 1000.0;
        (!nanoseconds.is_empty()).then(|| Latency {
            requests: nanoseconds.len(),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: nanoseconds.max() as f64 / 1000.0,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "load         {}", self.load)?;
        writeln!(f, "measured     {:.2} s, {} records", self.seconds, self.records)?;
        writeln!(f, "throughput   {:.0} records/s, {:.1} MB/s", self.records_per_second, self.megabytes_per_second)?;
        if let Some(latency) = &self.latency {
            writeln!(
                f,
                "latency      p50 {:.0} µs, p90 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, max {:.0} µs ({} requests)",
                latency.p50_us, latency.p90_us, latency.p99_us, latency.p999_us, latency.max_us, latency.requests
            )?;
        }
        if self.errors.is_empty() {
            writeln!(f, "errors       none")?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "errors       {count} × {error}")?;
        }
        for server in &self.servers {
            let share = server.cpu_seconds / self.seconds * 100.0;
            writeln!(f, "server       {}: {:.2} CPU-s ({share:.0} % of a core)", server.pid, server.cpu_seconds)?;
        }
        if let Some(rate) = self.records_per_cpu_second {
            writeln!(f, "efficiency   {rate:.0} records per CPU-second of all servers")?;
        }
        Ok(())
    }
}

/// Prints a report to standard output.
pub(crate) fn print(report: &Report, as_json: bool) {
    match serde_json::to_string_pretty(report) {
        Ok(json) if as_json => println!("{json}"),
        _ => print!("{report}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_the_counts() {
        let report = Report::new("test".into(), Duration::from_secs(2), 1000, 4_000_000).with_servers(
            &[7, 8],
            &[Duration::from_secs(1), Duration::from_secs(2)],
            &[Duration::from_secs(2), Duration::from_secs(5)],
        );
        assert_eq!((report.records_per_second, report.megabytes_per_second), (500.0, 2.0));
        assert_eq!(report.records_per_cpu_second, Some(250.0));
        let text = report.to_string();
        assert!(text.contains("server       8: 3.00 CPU-s (150 % of a core)"), "{text}");
        assert!(text.contains("errors       none"), "{text}");
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut histogram = Histogram::new(3).unwrap();
        assert!(Latency::of(&histogram).is_none());
        for microseconds in 1..=1000u64 {
            histogram.record(microseconds * 1000).unwrap();
        }
        let latency = Latency::of(&histogram).unwrap();
        assert!((latency.p50_us - 500.0).abs() < 5.0 && (latency.p99_us - 990.0).abs() < 5.0, "{latency:?}");
        assert_eq!(latency.requests, 1000);
    }
}
