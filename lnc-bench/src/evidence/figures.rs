//! What the reports of the gates have measured, beside the thresholds.

use serde::Serialize;
use serde_json::Value;

use super::Threshold;

/// One figure of a gate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) unit: &'static str,
    /// What it is compared with, and whether that is the least that is wanted instead of the most that is allowed.
    pub(crate) bound: Option<f64>,
    pub(crate) is_least: bool,
}

/// The figures of a gate's JSON reports, whichever they are; none of those that are not known.
pub(super) fn of(step: &str, report: &Value, thresholds: &[Threshold]) -> Vec<Figure> {
    let figures = Figures { report, thresholds, found: Vec::new() };
    if report.get("counts").is_some() {
        chaos(step, figures)
    } else if report.get("instructions").is_some() {
        instructions(figures)
    } else {
        bench(figures)
    }
}

struct Figures<'a> {
    report: &'a Value,
    thresholds: &'a [Threshold],
    found: Vec<Figure>,
}

impl Figures<'_> {
    /// Adds a figure if the report has it at this place, divided by `unit.1`, with the threshold of this name.
    fn add(&mut self, what: &str, place: &str, unit: (&'static str, f64), threshold: &str) {
        if let Some(measured) = self.report.pointer(place).and_then(Value::as_f64) {
            let (measured, bound) = (measured / unit.1, self.threshold(threshold));
            self.found.push(Figure { what: what.to_owned(), measured, unit: unit.0, bound, is_least: false });
        }
    }

    /// Adds a number of things, if it is known.
    fn count(&mut self, what: &str, count: Option<u64>, threshold: &str) {
        if let Some(count) = count {
            let bound = self.threshold(threshold);
            self.found.push(Figure { what: what.to_owned(), measured: count as f64, unit: "", bound, is_least: false });
        }
    }

    fn threshold(&self, name: &str) -> Option<f64> {
        self.thresholds.iter().find(|threshold| threshold.name == name).map(|threshold| threshold.value)
    }

    /// The same for what must be at least what the report says elsewhere.
    fn wanted(&mut self, what: &str, place: &str, unit: &'static str, bound: Option<f64>) {
        self.add(what, place, (unit, 1.0), "");
        if let Some(figure) = self.found.last_mut().filter(|figure| figure.what == what) {
            (figure.bound, figure.is_least) = (bound, true);
        }
    }
}

const COUNT: (&str, f64) = ("", 1.0);
const MS: (&str, f64) = ("ms", 1.0);
const MS_OF_US: (&str, f64) = ("ms", 1000.0);

fn bench(mut figures: Figures<'_>) -> Vec<Figure> {
    figures.add("ready", "/fresh_ms", MS, "ready_fresh_ms");
    figures.add("ready after all were killed", "/again_ms", MS, "ready_again_ms");
    figures.add("calibration", "/calibration_records_per_second", ("records/s", 1.0), "");
    let wanted = figures.report.pointer("/wanted_records_per_second").and_then(Value::as_f64);
    figures.wanted("rate", "/records_per_second", "records/s", wanted);
    figures.add("p50", "/latency/p50_us", MS_OF_US, "bench_p50_ms");
    figures.add("p99", "/latency/p99_us", MS_OF_US, "bench_p99_ms");
    figures.add("p99.9", "/latency/p999_us", MS_OF_US, "bench_p999_ms");
    let errors =
        figures.report["errors"].as_object().map(|errors| errors.values().filter_map(Value::as_u64).sum::<u64>());
    figures.count("errors", errors, "bench_errors");
    figures.add("changes of leadership", "/leader_changes", COUNT, "bench_leader_changes");
    figures.found
}

fn chaos(step: &str, mut figures: Figures<'_>) -> Vec<Figure> {
    figures.add("acknowledged", "/counts/acknowledged", COUNT, "");
    figures.add("gaps", "/counts/gaps", COUNT, "chaos_gaps");
    figures.add("duplicates", "/counts/duplicates", COUNT, "chaos_duplicates");
    figures.add("out of order", "/counts/out_of_order", COUNT, "chaos_out_of_order");
    figures.add("failed deliveries", "/producer_errors", COUNT, "failover_errors");
    let gate = if step.contains("failover") { "failover" } else { "chaos" };
    let faults: Vec<&String> =
        figures.report["stalls"].as_object().map_or(Vec::new(), |stalls| stalls.keys().collect());
    for fault in faults {
        let count = figures.report["stalls"][fault]["count"].as_u64().unwrap_or(0);
        let what =
            if count == 1 { format!("stall by {fault}") } else { format!("stall by {fault}, median of {count}") };
        let place = format!("/stalls/{fault}/struck/median/partition_us");
        figures.add(&what, &place, MS_OF_US, &format!("{gate}_{}_ms", fault.replace('-', "_")));
    }
    figures.found
}

fn instructions(mut figures: Figures<'_>) -> Vec<Figure> {
    let functions = figures.report["instructions"].as_array().map_or(0, Vec::len);
    for index in 0..functions {
        let function = &figures.report["instructions"][index];
        let (name, most) = (function["name"].as_str().unwrap_or("?").to_owned(), function["most"].as_f64());
        figures.add(&name, &format!("/instructions/{index}/count"), ("instructions", 1.0), "");
        if let Some(figure) = figures.found.last_mut() {
            figure.bound = most;
        }
    }
    figures.found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(step: &str, report: &Value) -> Vec<(String, f64, Option<f64>)> {
        let threshold = |name: &str, value| Threshold { name: name.into(), value, reason: "because".into() };
        let thresholds = [threshold("chaos_kill_leader_ms", 1000.0), threshold("failover_kill_leader_ms", 150.0)];
        let figures = of(step, report, &thresholds).into_iter();
        figures.map(|figure| (figure.what, figure.measured, figure.bound)).collect()
    }

    #[test]
    fn stalls_have_the_threshold_of_their_gate() {
        let stalls = |count| {
            json!({"counts": {"gaps": 1}, "stalls": {"kill-leader": {
                "count": count, "struck": {"median": {"partition_us": 25_500}, "max": {"partition_us": 90_000}}}}})
        };
        let gaps = ("gaps".to_owned(), 1.0, None);
        let once = ("stall by kill-leader".to_owned(), 25.5, Some(1000.0));
        assert_eq!(told("gate: chaos", &stalls(1)), [gaps.clone(), once]);
        let often = ("stall by kill-leader, median of 10".to_owned(), 25.5, Some(150.0));
        assert_eq!(told("gate: failover, leader killed", &stalls(10)), [gaps, often]);
    }

    #[test]
    fn instructions_have_the_most_that_is_allowed() {
        let report = json!({"instructions": [{"name": "one", "count": 105, "most": 110}, {"name": "two", "count": 7}]});
        let expected = [("one".to_owned(), 105.0, Some(110.0)), ("two".to_owned(), 7.0, None)];
        assert_eq!(told("gate: instructions", &report), expected);
    }

    #[test]
    fn an_unknown_report_has_no_figures() {
        assert_eq!(told("gate: new", &json!({"something": 1})), []);
    }
}
