//! The result of a batch, for people and for programs.

use crate::sim::report::{Counts, Report};
use lance::cli::counted;
use std::time::Duration;

/// Print the figures.
pub(super) fn print(counts: &Counts, elapsed: Duration, jobs: u64) {
    let seconds = counts.virtual_us as f64 / 1e6;
    let wall = elapsed.as_secs_f64().max(1e-3);
    println!();
    row("seeds", counts.runs.to_string());
    row("simulated", format!("{:.2} h", seconds / 3600.0));
    row("pace", format!("{:.0} simulated s per s, {}", seconds / wall, counted(jobs, "job")));
    row("events", format!("{}, {:.0} per s", counts.events, counts.events as f64 / wall));
    row("operations", format!("{} done, {} refused, {} unknown", counts.done, counts.refused, counts.unknown));
    row("of those", format!("batches acknowledged: {}", counts.produced));
    row(
        "between nodes",
        format!(
            "{}, {} corrupt; {} forwarded",
            counted(counts.frames, "frame"),
            counts.corrupt_frames,
            counted(counts.forwards, "request")
        ),
    );
    row("disk operations", counts.disk_operations.to_string());
    row("elections", counts.elections.to_string());
    row("states taken over", counts.reopened.to_string());
    row(
        "starts",
        format!("{}, {} failed; nodes that ended by themselves: {}", counts.starts, counts.failed_starts, counts.ends),
    );
    row("topics not judged", counts.topics_unchecked.to_string());
    for (kind, count) in &counts.faults {
        row(kind, count.to_string());
    }
}

fn row(name: &str, value: String) {
    println!("{name:<24} {value}");
}

/// The figures, and the failure if there is one, as one JSON object.
pub(super) fn json(counts: &Counts, elapsed: Duration, failed: Option<&Report>, command: &str) -> String {
    let failure = failed.and_then(|report| {
        let failure = report.failure.as_ref()?;
        Some(serde_json::json!({
            "seed": report.seed,
            "profile": report.profile.name(),
            "rule": failure.violation.invariant,
            "what": failure.violation.what,
            "at_us": failure.at_us,
            "hash": format!("{:016x}", report.hash),
            "newest": failure.newest,
            "command": command,
        }))
    });
    serde_json::json!({ "counts": counts, "wall_seconds": elapsed.as_secs_f64(), "failure": failure }).to_string()
}
