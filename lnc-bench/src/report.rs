//! What a run found, for people and for programs. Times are in microseconds, bytes per second in units of 10^6.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::BoundArgs;
use crate::limits::{Limits, Ratio};
use crate::measure::Recorder;
use crate::sweep::Step;
use crate::words::counted;

/// The outcome of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The workload's name, or the command.
    pub(crate) name: String,
    /// What was run, in words.
    pub(crate) load: String,
    /// The time measured, in seconds.
    pub(crate) seconds: f64,
    pub(crate) records: u64,
    pub(crate) records_per_second: f64,
    /// Of values; when reading, of batches as they are stored.
    pub(crate) megabytes_per_second: f64,
    /// What was to be sent, in the open loop.
    pub(crate) offered_per_second: Option<f64>,
    /// Of acknowledgements; not given for reading.
    pub(crate) latency: Option<Latency>,
    /// From when a record was due to its delivery to a consumer.
    pub(crate) end_to_end: Option<Latency>,
    /// From the acknowledgement of a record to its delivery.
    pub(crate) delivery: Option<Latency>,
    /// Failed requests by error code or kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Requests of the open loop that were due and not sent before the end. Their latency counts up to the end.
    pub(crate) unsent: u64,
    pub(crate) generator_cpu_seconds: f64,
    pub(crate) records_per_generator_cpu_second: Option<f64>,
    pub(crate) servers: Vec<Server>,
    /// Servers that ended during the run, by process id.
    pub(crate) ended_servers: Vec<u32>,
    /// Over all servers; not given without them, or if one ended.
    pub(crate) records_per_cpu_second: Option<f64>,
    pub(crate) series: Vec<Sample>,
    /// The rates of a sweep; the rest of the report is about the highest that kept the bound.
    pub(crate) steps: Vec<Step>,
    pub(crate) environment: Environment,
    pub(crate) limits: Option<Limits>,
    pub(crate) ratios: Vec<Ratio>,
}

/// Percentiles.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) requests: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p95_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) p9999_us: f64,
    pub(crate) max_us: f64,
    /// The whole curve: quantiles, from 0 to 1, and their latencies.
    pub(crate) curve: Vec<(f64, f64)>,
}

/// What one server process spent in the time measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Server {
    pub(crate) pid: u32,
    pub(crate) cpu_seconds: f64,
    /// The most that it has ever had, in bytes.
    pub(crate) peak_memory: u64,
    /// Bytes written to storage, if they can be known.
    pub(crate) written: Option<u64>,
}

/// What was spent in the time measured.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    pub(crate) generator_cpu_seconds: f64,
    pub(crate) servers: Vec<Server>,
    /// Servers that ended meanwhile.
    pub(crate) ended: Vec<u32>,
}

/// A part of the time measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// When the part began, in seconds from the start of the measurement.
    pub(crate) at: f64,
    pub(crate) records_per_second: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) max_us: Option<f64>,
}

/// Where the run took place.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Environment {
    pub(crate) generator: String,
    pub(crate) server: String,
    pub(crate) nodes: usize,
    pub(crate) local_servers: usize,
    pub(crate) backend: String,
    pub(crate) file_system: String,
    pub(crate) acks: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
}

impl Environment {
    /// Names and values, for printing.
    pub(crate) fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("software", format!("{} against {}", self.generator, self.server)),
            ("nodes", format!("{}, {} of them on this machine", self.nodes, self.local_servers)),
            ("backend", self.backend.clone()),
            ("file system", self.file_system.clone()),
            ("acks", self.acks.clone()),
            ("kernel", self.kernel.clone()),
            ("processor", format!("{}, {} cores", self.processor, self.cores)),
        ]
    }
}

impl Report {
    pub(crate) fn new(load: String, duration: Duration, counted: &Recorder) -> Self {
        let seconds = duration.as_secs_f64().max(f64::MIN_POSITIVE);
        Report {
            name: String::new(),
            load,
            seconds,
            records: counted.records,
            records_per_second: counted.records as f64 / seconds,
            megabytes_per_second: counted.bytes as f64 / seconds / 1e6,
            offered_per_second: None,
            latency: Latency::of(&counted.latencies),
            end_to_end: None,
            delivery: None,
            errors: counted.errors.clone(),
            unsent: counted.unsent,
            generator_cpu_seconds: 0.0,
            records_per_generator_cpu_second: None,
            servers: Vec::new(),
            ended_servers: Vec::new(),
            records_per_cpu_second: None,
            series: series(counted, seconds),
            steps: Vec::new(),
            environment: Environment::default(),
            limits: None,
            ratios: Vec::new(),
        }
    }

    /// Adds what was spent, and where.
    pub(crate) fn with_usage(&mut self, usage: Usage, environment: Environment) {
        let per = |seconds: f64| (seconds > 0.0).then(|| self.records as f64 / seconds);
        if usage.ended.is_empty() {
            self.records_per_cpu_second = per(usage.servers.iter().map(|server| server.cpu_seconds).sum());
        }
        self.records_per_generator_cpu_second = per(usage.generator_cpu_seconds);
        self.generator_cpu_seconds = usage.generator_cpu_seconds;
        self.servers = usage.servers;
        self.ended_servers = usage.ended;
        self.environment = environment;
    }

    /// Compares with what the machine can do.
    pub(crate) fn with_limits(&mut self, limits: &Limits) {
        self.ratios = limits.ratios(self);
        self.limits = Some(limits.clone());
    }

    /// The latencies by name.
    pub(crate) fn latencies(&self) -> impl Iterator<Item = (&'static str, &Latency)> {
        let all = [("latency", &self.latency), ("end to end", &self.end_to_end), ("delivery", &self.delivery)];
        all.into_iter().filter_map(|(name, latency)| Some((name, latency.as_ref()?)))
    }

    /// What went wrong or missed a bound, one line each; nothing if all is well.
    pub(crate) fn failures(&self, bounds: &BoundArgs) -> Vec<String> {
        let errors: u64 = self.errors.values().sum();
        let mut failures = Vec::new();
        if errors > 0 {
            failures.push(format!("{}: {}", self.name, counted(errors, "error")));
        }
        let percentiles: [Bounded; 3] = [
            ("median", bounds.max_p50, |latency| latency.p50_us),
            ("99th percentile", bounds.max_p99, |latency| latency.p99_us),
            ("99.9th percentile", bounds.max_p999, |latency| latency.p999_us),
        ];
        for (percentile, bound, figure) in percentiles {
            let Some(bound) = bound.map(|bound| bound.as_secs_f64() * 1e6) else { continue };
            let over = self.latencies().map(|(name, latency)| (name, figure(latency))).filter(|(_, us)| *us > bound);
            failures.extend(over.map(|(name, us)| {
                format!("{}: {percentile} of {name} is {us:.0} µs, the bound {bound:.0} µs", self.name)
            }));
        }
        if self.latency.is_none() && percentiles.iter().any(|(_, bound, _)| bound.is_some()) {
            failures.push(format!("{}: no request was answered, so no latency keeps the bound", self.name));
        }
        if !self.steps.is_empty() && self.steps.iter().all(|step| !step.sustained) {
            failures.push(format!("{}: no rate was sustained", self.name));
        }
        if let Some(least) = bounds.min_rate.filter(|least| self.records_per_second < *least) {
            failures.push(format!("{}: {:.0} records/s, at least {least} wanted", self.name, self.records_per_second));
        }
        failures
    }
}

/// A percentile by name, the bound on it if there is one, and where it stands.
type Bounded = (&'static str, Option<Duration>, fn(&Latency) -> f64);

fn series(counted: &Recorder, seconds: f64) -> Vec<Sample> {
    let length = counted.part_length() as f64 / 1e9;
    let sample = |(index, part): (usize, &crate::measure::Part)| {
        let at = index as f64 * length;
        // The last part may be shorter.
        let length = length.min(seconds - at);
        let quantile = |quantile: f64| {
            (!part.latencies.is_empty()).then(|| part.latencies.value_at_quantile(quantile) as f64 / 1000.0)
        };
        (length > 0.001).then(|| Sample {
            at,
            records_per_second: part.records as f64 / length,
            megabytes_per_second: part.bytes as f64 / length / 1e6,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: quantile(1.0),
        })
    };
    counted.parts.iter().enumerate().filter_map(sample).collect()
}

impl Latency {
    /// From a histogram of nanoseconds; `None` if it is empty.
    pub(crate) fn of(nanoseconds: &Histogram<u64>) -> Option<Self> {
        let quantile = |quantile: f64| nanoseconds.value_at_quantile(quantile) as f64 / 1000.0;
        (!nanoseconds.is_empty()).then(|| Latency {
            requests: nanoseconds.len(),
            mean_us: nanoseconds.mean() / 1000.0,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p95_us: quantile(0.95),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            p9999_us: quantile(0.9999),
            max_us: nanoseconds.max() as f64 / 1000.0,
            curve: curve(nanoseconds),
        })
    }

    /// The figures of every report, by name.
    pub(crate) fn percentiles(&self) -> [(&'static str, f64); 7] {
        [
            ("p50", self.p50_us),
            ("p90", self.p90_us),
            ("p95", self.p95_us),
            ("p99", self.p99_us),
            ("p99.9", self.p999_us),
            ("p99.99", self.p9999_us),
            ("max", self.max_us),
        ]
    }
}

/// Eight points for each halving of what lies above, as far as there are requests to tell them apart.
fn curve(nanoseconds: &Histogram<u64>) -> Vec<(f64, f64)> {
    let last = 8 * (64 - nanoseconds.len().leading_zeros());
    let quantiles = (0..=last).map(|step| 1.0 - 0.5f64.powf(f64::from(step) / 8.0));
    quantiles.map(|quantile| (quantile, nanoseconds.value_at_quantile(quantile) as f64 / 1000.0)).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "load         {}", self.load)?;
        writeln!(f, "measured     {:.2} s, {}", self.seconds, counted(self.records, "record"))?;
        writeln!(f, "throughput   {:.0} records/s, {:.1} MB/s", self.records_per_second, self.megabytes_per_second)?;
        if let Some(offered) = self.offered_per_second {
            writeln!(f, "offered      {offered:.0} records/s, {} due and not sent", counted(self.unsent, "request"))?;
        }
        for (name, latency) in self.latencies() {
            let figures = latency.percentiles().map(|(name, figure)| format!("{name} {figure:.0} µs"));
            writeln!(f, "{name:<12} {} ({})", figures.join(", "), counted(latency.requests, "request"))?;
        }
        if self.errors.is_empty() {
            writeln!(f, "errors       none")?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "errors       {count} × {error}")?;
        }
        let share = |seconds: f64| seconds / self.seconds * 100.0;
        write!(
            f,
            "generator    {:.2} CPU-s ({:.0} % of a core)",
            self.generator_cpu_seconds,
            share(self.generator_cpu_seconds)
        )?;
        match self.records_per_generator_cpu_second {
            Some(rate) => writeln!(f, ", {rate:.0} records per CPU-second")?,
            None => writeln!(f)?,
        }
        for server in &self.servers {
            let (seconds, memory) = (server.cpu_seconds, server.peak_memory as f64 / 1e6);
            write!(
                f,
                "server       {}: {seconds:.2} CPU-s ({:.0} % of a core), {memory:.0} MB",
                server.pid,
                share(seconds)
            )?;
            match server.written {
                Some(written) => writeln!(f, " of memory at most, {:.1} MB written", written as f64 / 1e6)?,
                None => writeln!(f, " of memory at most")?,
            }
        }
        for pid in &self.ended_servers {
            writeln!(f, "server       {pid}: ended during the run")?;
        }
        if let Some(rate) = self.records_per_cpu_second {
            writeln!(f, "efficiency   {rate:.0} records per CPU-second of all servers")?;
        }
        for step in &self.steps {
            writeln!(f, "step         {step}")?;
        }
        for ratio in &self.ratios {
            writeln!(f, "limit        {ratio}")?;
        }
        for (name, value) in self.environment.rows() {
            writeln!(f, "{name:<12} {value}")?;
        }
        Ok(())
    }
}

/// The header of the CSV form.
pub(crate) const CSV_HEADER: &str = "name,offered_per_second,seconds,records,records_per_second,megabytes_per_second,\
errors,unsent,p50_us,p90_us,p95_us,p99_us,p99.9_us,p99.99_us,max_us,end_to_end_p50_us,end_to_end_p99_us,\
end_to_end_p99.9_us,delivery_p50_us,delivery_p99_us,generator_cpu_seconds,server_cpu_seconds,server_peak_memory_bytes,\
server_written_bytes";

/// A report as a line of CSV, with empty fields for what was not measured.
pub(crate) fn csv(report: &Report) -> String {
    let optional = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1}"));
    let mut fields = vec![
        report.name.clone(),
        optional(report.offered_per_second),
        format!("{:.3}", report.seconds),
        report.records.to_string(),
        format!("{:.1}", report.records_per_second),
        format!("{:.3}", report.megabytes_per_second),
        report.errors.values().sum::<u64>().to_string(),
        report.unsent.to_string(),
    ];
    match &report.latency {
        Some(latency) => fields.extend(latency.percentiles().map(|(_, figure)| format!("{figure:.1}"))),
        None => fields.extend(std::iter::repeat_n(String::new(), 7)),
    }
    let (end, delivery) = (report.end_to_end.as_ref(), report.delivery.as_ref());
    fields.push(optional(end.map(|latency| latency.p50_us)));
    fields.push(optional(end.map(|latency| latency.p99_us)));
    fields.push(optional(end.map(|latency| latency.p999_us)));
    fields.push(optional(delivery.map(|latency| latency.p50_us)));
    fields.push(optional(delivery.map(|latency| latency.p99_us)));
    fields.push(format!("{:.2}", report.generator_cpu_seconds));
    if report.servers.is_empty() {
        fields.extend(std::iter::repeat_n(String::new(), 3));
    } else {
        let servers = &report.servers;
        fields.push(format!("{:.2}", servers.iter().map(|server| server.cpu_seconds).sum::<f64>()));
        fields.push(servers.iter().map(|server| server.peak_memory).sum::<u64>().to_string());
        let written = servers.iter().map(|server| server.written).sum::<Option<u64>>();
        fields.push(written.map_or(String::new(), |written| written.to_string()));
    }
    fields.join(",")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::measure::Window;

    const MS: u64 = 1_000_000;

    /// 1,000 requests of 100 records in two seconds, with latencies from 1 to 1,000 µs.
    pub(crate) fn sample() -> Report {
        let mut recorder = Recorder::new(Window { from: 0, until: 2000 * MS });
        for number in 1..=1000u64 {
            recorder.acknowledged(number * MS, number * MS + number * 1000, 100, 4000);
        }
        let mut report = Report::new("test".into(), Duration::from_secs(2), &recorder);
        report.name = "sample".into();
        let server = |pid, cpu_seconds| Server { pid, cpu_seconds, peak_memory: 50_000_000, written: Some(1_000_000) };
        let usage =
            Usage { generator_cpu_seconds: 0.5, servers: vec![server(7, 1.0), server(8, 3.0)], ended: Vec::new() };
        report.with_usage(usage, Environment { kernel: "6.1".into(), ..Environment::default() });
        report
    }

    #[test]
    fn rates_follow_from_the_counts() {
        let report = sample();
        assert_eq!((report.records_per_second, report.megabytes_per_second), (50_000.0, 2.0));
        assert_eq!(report.records_per_cpu_second, Some(25_000.0));
        assert_eq!(report.records_per_generator_cpu_second, Some(200_000.0));
        let text = report.to_string();
        for line in [
            "server       8: 3.00 CPU-s (150 % of a core), 50 MB of memory at most, 1.0 MB written",
            "errors       none",
            "throughput   50000 records/s, 2.0 MB/s",
            "generator    0.50 CPU-s (25 % of a core), 200000 records per CPU-second",
            "kernel       6.1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        assert!(Latency::of(&crate::measure::histogram()).is_none());
        let latency = sample().latency.unwrap();
        for (name, figure, expected) in latency.percentiles().map(|(name, figure)| match name {
            "p50" => (name, figure, 500.0),
            "p90" => (name, figure, 900.0),
            "p95" => (name, figure, 950.0),
            "p99" => (name, figure, 990.0),
            "p99.9" => (name, figure, 999.0),
            _ => (name, figure, 1000.0),
        }) {
            assert!((figure - expected).abs() < expected * 0.01, "{name}: {figure}");
        }
        assert_eq!(latency.requests, 1000);
        assert!((latency.mean_us - 500.5).abs() < 1.0);
        assert!(latency.curve.is_sorted_by(|one, next| one.0 < next.0 && one.1 <= next.1), "{:?}", latency.curve);
        assert_eq!(latency.curve.last().unwrap().1, latency.max_us);
    }

    #[test]
    fn the_series_adds_up_to_the_whole() {
        let report = sample();
        let records: f64 = report.series.iter().map(|sample| sample.records_per_second * 0.1).sum();
        assert_eq!(records.round(), 100_000.0);
        assert_eq!(report.series[3].at, 0.30000000000000004);
        assert!(report.series[3].p50_us.unwrap() > 300.0 && report.series[3].max_us.unwrap() < 410.0);
    }

    #[test]
    fn a_line_of_csv_has_as_many_fields_as_the_header() {
        let mut report = sample();
        let count = |line: &str| line.split(',').count();
        assert_eq!(count(&csv(&report)), count(CSV_HEADER));
        report.latency = None;
        report.servers.clear();
        assert_eq!(count(&csv(&report)), count(CSV_HEADER));
    }

    #[test]
    fn errors_and_missed_bounds_are_failures() {
        let mut report = sample();
        let bounds = |p50, p99, p999, rate| BoundArgs {
            max_p50: Some(Duration::from_micros(p50)),
            max_p99: Some(Duration::from_micros(p99)),
            max_p999: Some(Duration::from_micros(p999)),
            min_rate: Some(rate),
        };
        let kept = bounds(510, 1000, 1010, 50_000.0);
        assert_eq!(report.failures(&kept), [""; 0]);
        for missed in [
            bounds(490, 1000, 1010, 50_000.0),
            bounds(510, 900, 1010, 50_000.0),
            bounds(510, 1000, 990, 50_000.0),
            bounds(510, 1000, 1010, 50_001.0),
        ] {
            assert_eq!(report.failures(&missed).len(), 1, "{missed:?}");
        }
        report.end_to_end = report.latency.clone();
        report.end_to_end.as_mut().unwrap().p99_us = 2000.0;
        assert_eq!(report.failures(&kept).len(), 1);
        let none = BoundArgs::default();
        report.steps = vec![Step { offered: 1.0, achieved: 0.0, p50_us: 1.0, p99_us: 1.0, sustained: false }];
        assert_eq!(report.failures(&none), ["sample: no rate was sustained"]);
        report.steps[0].sustained = true;
        report.errors.insert("NotLeader".into(), 3);
        assert_eq!(report.failures(&none), ["sample: 3 errors"]);
        report.latency = None;
        assert!(report.failures(&kept).iter().any(|line| line.contains("no request was answered")));
    }
}
