//! `lance dev`: a cluster of three processes starts, serves, and ends with its parent.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::process::{Child, ChildStderr, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

struct Cluster {
    process: Child,
    log: BufReader<ChildStderr>,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Cluster {
    /// Starts on ports that were free a moment ago; if another process was faster, on others.
    fn start() -> Self {
        for _ in 0..5 {
            if let Some(cluster) = Self::try_start() {
                return cluster;
            }
        }
        panic!("no cluster starts");
    }

    fn try_start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = (0..3).flat_map(|node| (0..3).map(move |offset| port.checked_add(10 * node + offset)));
        for port in ports {
            TcpListener::bind(("127.0.0.1", port?)).ok()?;
        }
        let data = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_lance"))
            .args(["dev", "--base-port", &port.to_string(), "--data-dir", data.path().to_str().unwrap()])
            .env_clear()
            .env("LANCE_JOURNAL__FILE_BYTES", "4MiB")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let mut cluster = Self { process, log, endpoint: format!("127.0.0.1:{port}"), _data: data };
        let (found, _) = cluster.read_until(&["The cluster is ready.", "has stopped by itself"]);
        (found == Some("The cluster is ready.")).then_some(cluster)
    }

    /// Reads lines up to one that holds one of `texts`; gives that text, if it came, and all lines.
    fn read_until(&mut self, texts: &[&'static str]) -> (Option<&'static str>, Vec<String>) {
        let mut lines = Vec::new();
        for line in self.log.by_ref().lines() {
            lines.push(line.unwrap());
            if let Some(text) = texts.iter().find(|text| lines[lines.len() - 1].contains(**text)) {
                return (Some(text), lines);
            }
        }
        (None, lines)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The nodes end with it: their standard input does.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_cluster_starts_serves_and_stops() {
    let mut cluster = Cluster::start();
    let status = Command::new(env!("CARGO_BIN_EXE_lance"))
        .args(["cluster", "status", "-o", "json"])
        .env_clear()
        .env("LANCE_ENDPOINT", &cluster.endpoint)
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");

    cluster.signal(Signal::INT);
    let (_, lines) = cluster.read_until(&[]);
    for node in 1..=3 {
        let line = format!("node {node} stopped: exit status: 0");
        assert!(lines.contains(&line), "{lines:#?}");
    }
    assert!(cluster.process.wait().unwrap().success());
}

#[test]
fn nodes_do_not_outlive_a_parent_that_is_killed() {
    let mut cluster = Cluster::start();
    cluster.signal(Signal::KILL);
    cluster.process.wait().unwrap();
    // The standard error of the nodes went through their parent, so the ports are what is left to look at.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while TcpListener::bind(&cluster.endpoint).is_err() {
        assert!(std::time::Instant::now() < deadline, "a node still listens on {}", cluster.endpoint);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// Whoever answers on a port would be taken for the node: nothing is started beside another cluster.
#[test]
fn a_port_that_is_taken_is_named_before_anything_starts() {
    let cluster = Cluster::start();
    let base_port = cluster.endpoint.rsplit(':').next().unwrap().to_owned();
    let data = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lance"))
        .args(["dev", "--base-port", &base_port, "--data-dir", data.path().join("dev").to_str().unwrap()])
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(told.contains(&format!("port {base_port}, for node 1")) && !told.contains("is ready"), "{told}");
    assert!(!data.path().join("dev").exists(), "nothing was made");
}
