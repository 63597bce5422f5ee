//! `docs/Monitoring.md`, made from the catalogue so that it cannot say anything else.

use std::fmt::Write;

use crate::catalogue::CATALOGUE;
use crate::instrument::{Definition, Kind};
use crate::topics::TOPIC_LABELS;

/// Names that end in `_ms`: Prometheus wants seconds, but these are known by their names to whoever watches elections.
pub(crate) const MILLISECONDS: &[&str] = &[
    "lance_raft_election_round_last_ms",
    "lance_raft_election_round_ms",
    "lance_raft_pre_vote_rpc_latency_ms",
    "lance_raft_vote_rpc_latency_ms",
    "lance_cluster_coordinator_tick_drift_ms",
];

/// What the Prometheus library says of every process, with what it is.
pub(crate) const PROCESS: &[(&str, Kind, &str)] = &[
    ("process_cpu_seconds_total", Kind::Counter, "Processor time that the node has used."),
    ("process_resident_memory_bytes", Kind::Gauge, "Memory that the node has."),
    ("process_virtual_memory_bytes", Kind::Gauge, "Address space that the node has."),
    ("process_open_fds", Kind::Gauge, "File descriptors that are open."),
    ("process_max_fds", Kind::Gauge, "File descriptors that may be open."),
    ("process_threads", Kind::Gauge, "Threads of the node."),
    ("process_start_time_seconds", Kind::Gauge, "When the node was started, since the Unix epoch."),
];

const INTRODUCTION: &str = "\
# Metrics

<!-- Made from lnc-metrics/src/catalogue.rs: cargo run -q -p lnc-metrics --example monitoring > docs/Monitoring.md -->

What a node shows at `/metrics`, on the address `listen.http`, in Prometheus' text format. What to look at first is in
[OPERATIONS.md](OPERATIONS.md#what-to-watch); alerts, a dashboard and a configuration of Prometheus are in
`deploy/monitoring`.

Gauges are refreshed once a second, those of topics every five. Counters and histograms begin at 0 with each start of a
node.
";

/// The page.
pub fn document() -> String {
    let mut out = INTRODUCTION.to_owned();
    let exceptions: Vec<String> = MILLISECONDS.iter().map(|name| format!("- `{name}`\n")).collect();
    let _ =
        write!(out, "\n**Units** are seconds and bytes, but for these, in milliseconds:\n\n{}", exceptions.concat());
    let _ = write!(
        out,
        "\n**Labels are bounded.** `group` has one value per Raft group, `peer` one per other node; `opcode`, `code`, \
         `channel` and\n`outcome` have those of the protocol. `topic` has one for each of the {TOPIC_LABELS} oldest topics; \
         all others are added up under\n`(others)`. Partitions have no label, so that the page does not grow with them.\n"
    );
    for section in CATALOGUE.chunk_by(|a, b| a.section == b.section) {
        let _ = write!(out, "\n## {}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n", section[0].section);
        for Definition { name, help, kind, labels, .. } in section {
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(out, "| `{name}` | {} | {} | {help} |", kind.name(), labels.join(", "));
        }
    }
    out += "\n## The process\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n";
    for (name, kind, help) in PROCESS {
        let _ = writeln!(out, "| `{name}` | {} | | {help} |", kind.name());
    }
    out += "\n## Buckets of histograms\n\n| histogram | upper bounds, in its unit |\n|---|---|\n";
    for Definition { name, buckets, .. } in CATALOGUE.iter().filter(|metric| metric.kind == Kind::Histogram) {
        let bounds: Vec<String> = buckets.iter().map(f64::to_string).collect();
        let _ = writeln!(out, "| `{name}` | {} |", bounds.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/Monitoring.md");
        let page = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            page == document(),
            "write it anew: cargo run -q -p lnc-metrics --example monitoring > docs/Monitoring.md"
        );
    }

    #[test]
    fn each_section_stands_together() {
        let sections: Vec<&str> =
            CATALOGUE.chunk_by(|a, b| a.section == b.section).map(|section| section[0].section).collect();
        let mut unique = sections.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(sections.len(), unique.len(), "{sections:?}");
    }
}
