//! A whole cluster on this machine, one child process per node: for a first look and for development.
//!
//! The children get their configuration as files in the data directory and run `lance server`. They sit in process
//! groups of their own, so that Ctrl-C reaches this process alone, which then asks each child to stop; and they stop by
//! themselves when this process is gone, because their standard input ends with it.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Time for a child to stop after it was asked to: its own limit for draining, and some more.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Distance between the ports of two nodes.
const PORT_STEP: u16 = 10;

/// Longest time to wait for one answer about readiness, and between two questions.
const READY_POLL: Duration = Duration::from_millis(200);

/// Longest piece of a child's line that is printed as one, in bytes.
const MAX_LINE_BYTES: u64 = 64 * 1024;

/// What cluster to run.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// How many nodes, from 1.
    pub nodes: u16,
    /// Directory for configurations and data; made if it does not exist.
    pub data_dir: PathBuf,
    /// Client port of the first node; node `i`, from 1, has this + 10 × (i − 1), its peer and HTTP ports follow.
    pub base_port: u16,
}

/// Why a cluster could not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevError {
    /// The nodes would need ports past the last one.
    #[error("{nodes} nodes from port {base_port} need ports up to {last}, and there are none above 65535")]
    Ports {
        /// Nodes asked for.
        nodes: u16,
        /// Port of the first.
        base_port: u16,
        /// Last port that would be needed.
        last: u32,
    },
    /// Somebody has a port that a node needs: whoever answers there would be taken for the node.
    #[error(
        "port {port}, for node {node}, cannot be had ({source}): end what listens there, or choose others with --base-port"
    )]
    Taken {
        /// The port.
        port: u16,
        /// The node that needs it.
        node: u16,
        /// Why.
        source: io::Error,
    },
    /// A file or directory could not be made.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A node's process could not be started.
    #[error("cannot start node {node}: {source}")]
    Start {
        /// The node.
        node: u16,
        /// Why.
        source: io::Error,
    },
    /// Signals cannot be received.
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    /// All nodes ended by themselves.
    #[error("all nodes have stopped by themselves")]
    AllStopped,
}

impl DevOptions {
    /// Client port of a node, counted from 1.
    fn port(&self, node: u16) -> u16 {
        self.base_port + PORT_STEP * (node - 1)
    }

    fn check_ports(&self) -> Result<(), DevError> {
        let last = u32::from(self.base_port) + u32::from(PORT_STEP) * u32::from(self.nodes.saturating_sub(1)) + 2;
        if last > u32::from(u16::MAX) {
            return Err(DevError::Ports { nodes: self.nodes, base_port: self.base_port, last });
        }
        Ok(())
    }

    fn check_free(&self) -> Result<(), DevError> {
        for (node, offset) in (1..=self.nodes).flat_map(|node| (0..3).map(move |offset| (node, offset))) {
            let port = self.port(node) + offset;
            let bound = std::net::TcpListener::bind(("127.0.0.1", port));
            drop(bound.map_err(|source| DevError::Taken { port, node, source })?);
        }
        Ok(())
    }

    fn node_dir(&self, node: u16) -> PathBuf {
        self.data_dir.join(format!("node-{node}"))
    }

    /// The configuration of one node.
    fn toml(&self, node: u16) -> String {
        let data_dir = self.node_dir(node).join("data");
        let data_dir = toml::Value::String(data_dir.to_string_lossy().into_owned());
        let address = |port: u16| format!("\"127.0.0.1:{port}\"");
        let addresses = |node: u16| {
            let port = self.port(node);
            let (client, peer, http) = (address(port), address(port + 1), address(port + 2));
            format!("client = {client}\npeer = {peer}\nhttp = {http}\n")
        };
        let mut text = format!("[node]\nid = {node}\ndata_dir = {data_dir}\n\n[listen]\n{}", addresses(node));
        for node in 1..=self.nodes {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n[[cluster.nodes]]\nid = {node}\n{}", addresses(node));
        }
        text
    }

    fn table(&self) -> String {
        let mut text = String::from("NODE  CLIENTS          PEERS            HTTP             DATA\n");
        for node in 1..=self.nodes {
            let address = |offset: u16| format!("127.0.0.1:{}", self.port(node) + offset);
            let (client, peer, http) = (address(0), address(1), address(2));
            let directory = self.node_dir(node);
            let _ = writeln!(text, "{node:>4}  {client:<15}  {peer:<15}  {http:<15}  {}", directory.display());
        }
        text
    }

    fn endpoints(&self) -> String {
        (1..=self.nodes).map(|node| format!("127.0.0.1:{}", self.port(node))).collect::<Vec<_>>().join(",")
    }
}

/// Runs the cluster until SIGINT or SIGTERM, or until no node is left.
///
/// # Errors
/// If a node cannot be started, or all have ended by themselves. No child is left behind in any case.
pub async fn run(options: DevOptions) -> Result<(), DevError> {
    options.check_ports()?;
    options.check_free()?;
    let mut stop = Stop::new().map_err(DevError::Signals)?;
    let mut nodes = JoinSet::new();
    let mut pids = Vec::new();
    for node in 1..=options.nodes {
        // If it fails, the set is dropped, and that kills the children that did start.
        let child = start(&options, node)?;
        pids.push((node, child.id()));
        nodes.spawn(watch(node, child));
    }
    say(&format!("\n{}\nCtrl-C stops all nodes.\n", options.table())).await;
    let readiness = tokio::spawn(announce_ready(options.clone()));

    let result = loop {
        tokio::select! {
            ended = nodes.join_next() => match ended {
                Some(Ok((node, status))) => {
                    pids.retain(|(other, _)| *other != node);
                    say(&format!("node {node} has stopped by itself: {}\n", describe(&status))).await;
                }
                Some(Err(_)) => {}
                None => break Err(DevError::AllStopped),
            },
            () = stop.received() => {
                say("\nstopping all nodes; Ctrl-C again kills them\n").await;
                stop_all(&mut nodes, &pids, &mut stop).await;
                break Ok(());
            }
        }
    };
    readiness.abort();
    result
}

/// SIGINT, SIGTERM, or SIGHUP when the terminal is closed.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn start(options: &DevOptions, node: u16) -> Result<Child, DevError> {
    let directory = options.node_dir(node);
    let write = |path: &Path, result: io::Result<()>| {
        result.map_err(|source| DevError::Write { path: path.to_owned(), source })
    };
    write(&directory, std::fs::create_dir_all(&directory))?;
    let config = directory.join("lance.toml");
    write(&config, std::fs::write(&config, options.toml(node)))?;
    let program = std::env::current_exe().map_err(|source| DevError::Start { node, source })?;
    Command::new(program)
        .args(["server", "--stop-with-stdin", "--config"])
        .arg(&config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DevError::Start { node, source })
}

/// Prints what a child says until it ends.
async fn watch(node: u16, mut child: Child) -> (u16, io::Result<ExitStatus>) {
    // Held open for as long as this process lives: its end is the child's sign to stop.
    let _stdin = child.stdin.take();
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let print = async { tokio::join!(print_lines(node, out), print_lines(node, err)) };
    let (_, status) = tokio::join!(print, child.wait());
    (node, status)
}

async fn print_lines(node: u16, stream: Option<impl AsyncRead + Unpin>) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream);
    let mut line = format!("node {node} | ").into_bytes();
    let prefix = line.len();
    loop {
        match (&mut lines).take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(length) if length > 0 => {}
            _ => return,
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        write(&line).await;
        line.truncate(prefix);
    }
}

/// Asks all children to stop, and kills those that do not in time or at a second signal.
async fn stop_all(nodes: &mut JoinSet<(u16, io::Result<ExitStatus>)>, pids: &[(u16, Option<u32>)], stop: &mut Stop) {
    for pid in pids.iter().filter_map(|(_, pid)| rustix::process::Pid::from_raw((*pid)?.try_into().ok()?)) {
        // The child may have ended just now; it is not reaped yet, so the number is still its own.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let all_ended = async {
        while let Some(ended) = nodes.join_next().await {
            if let Ok((node, status)) = ended {
                say(&format!("node {node} stopped: {}\n", describe(&status))).await;
            }
        }
    };
    tokio::select! {
        () = all_ended => return,
        () = sleep(STOP_TIMEOUT) => say("some nodes do not stop; killing them\n").await,
        () = stop.received() => {}
    }
    // Dropping a child kills it.
    nodes.shutdown().await;
}

fn describe(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("its status is not known: {error}"),
    }
}

/// Says so once every node reports that it can serve.
async fn announce_ready(options: DevOptions) {
    for node in 1..=options.nodes {
        while !is_ready(options.port(node) + 2).await {
            sleep(READY_POLL).await;
        }
    }
    let endpoints = options.endpoints();
    let example = format!(
        "\nThe cluster is ready. In another terminal:\n  export LANCE_ENDPOINT={endpoints}\n  \
         lance topic create hello --partitions 3\n  echo world | lance produce hello\n  lance consume hello\n\n"
    );
    say(&example).await;
}

/// Whether the node whose HTTP side listens on this port can serve.
async fn is_ready(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        io::Result::Ok(status)
    };
    matches!(timeout(READY_POLL * 5, ask).await, Ok(Ok(status)) if status.ends_with(b" 200"))
}

async fn say(text: &str) {
    write(text.as_bytes()).await;
}

/// To standard error. A terminal that is gone is no reason to leave the nodes alone.
async fn write(bytes: &[u8]) {
    let mut out = tokio::io::stderr();
    let _ = out.write_all(bytes).await;
    let _ = out.flush().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Sources};

    fn options(nodes: u16, base_port: u16) -> DevOptions {
        DevOptions { nodes, data_dir: PathBuf::from("a \"b\""), base_port }
    }

    #[test]
    fn every_node_gets_a_valid_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(3, 1992);
        for node in 1..=3 {
            let path = directory.path().join("lance.toml");
            std::fs::write(&path, options.toml(node)).unwrap();
            let config = Config::load(&Sources::default().file(&path)).unwrap();
            assert_eq!(config.node.id, u64::from(node));
            assert_eq!(config.node.data_dir, PathBuf::from(format!("a \"b\"/node-{node}/data")));
            assert_eq!(config.cluster.nodes.len(), 3);
            assert_eq!(config.this_node().client, config.listen.client);
            assert_eq!(config.listen.client.port(), 1992 + 10 * (node - 1));
            assert_eq!(config.listen.http.port(), config.listen.client.port() + 2);
        }
        assert_eq!(options.endpoints(), "127.0.0.1:1992,127.0.0.1:2002,127.0.0.1:2012");
    }

    #[test]
    fn ports_past_the_last_are_refused() {
        assert!(options(2, 65_523).check_ports().is_ok());
        let error = options(2, 65_524).check_ports().unwrap_err().to_string();
        assert_eq!(error, "2 nodes from port 65524 need ports up to 65536, and there are none above 65535");
    }

    #[tokio::test]
    async fn readiness_is_read_from_the_status_line() {
        for (reply, ready) in [("HTTP/1.1 200 OK\r\n\r\n", true), ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(reply.as_bytes()).await.unwrap();
            };
            assert_eq!(tokio::join!(is_ready(port), server).0, ready);
        }
    }
}
