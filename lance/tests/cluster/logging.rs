//! What a node logs about what happens again and again.

use super::support::node::{Node, Ports};
use super::support::wire::Wire;
use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Lines for machines; a thousand clients too many make a few of them, and one that says that there were more.
#[test]
fn a_warning_that_repeats_is_told_a_few_times() {
    const CLIENTS: u32 = 1000;
    /// Of one message, in ten seconds.
    const MOST: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    let settings = ["limits.max_connections=1", "log.format=json"].map(str::to_owned);
    let mut node = Node::new(directory.path(), 1, &[Ports::free()], &settings);
    node.start();
    node.wait_ready();
    let _only = Wire::connect(&node.client()).unwrap();
    let start = Instant::now();
    for _ in 0..CLIENTS {
        let mut refused = TcpStream::connect(node.client()).unwrap();
        refused.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut answer = Vec::new();
        refused.read_to_end(&mut answer).unwrap();
        assert!(!answer.is_empty(), "it is told why");
    }
    let windows = start.elapsed().as_secs() / 10 + 2;
    let log = node.log();
    let message = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        line["fields"]["message"].as_str().unwrap_or_default().to_owned()
    };
    let messages: Vec<String> = log.lines().map(message).collect();
    let refused = messages.iter().filter(|message| message.contains("refusing a client")).count() as u64;
    assert!((1..=MOST * windows).contains(&refused), "{refused} lines in {:?}", start.elapsed());
    assert!(messages.iter().any(|message| message.contains("are left out")), "{log}");
    let counted = format!("\nlance_connections_refused_total {CLIENTS}\n");
    assert!(node.metrics().contains(&counted), "all are counted");
    let errors = format!("\nlance_errors_total{{code=\"Overloaded\"}} {CLIENTS}\n");
    assert!(node.metrics().contains(&errors), "and with them their errors");
}
