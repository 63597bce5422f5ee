//! A node as a process that this run has started: its addresses, its files, its life and death.

use super::error::{LiveError, Result, os};
use super::system::text;
use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Longest time for a node to become ready, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for a node to stop after SIGTERM: its own limit for draining, and some more.
const STOPPING: Duration = Duration::from_secs(15);
/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(20);
/// Longest time for one answer about readiness.
const ANSWER: Duration = Duration::from_secs(1);

/// Settings that keep files small, for nodes on small disks.
pub(super) const SMALL: &[&str] = &[
    "journal.file_bytes=4MiB",
    "journal.retain_bytes=64MiB",
    "journal.checkpoint_bytes=8MiB",
    "storage.segment_bytes=2MiB",
    "storage.reserve_bytes=64MiB",
];

/// The addresses of a node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    pub(super) client: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) http: SocketAddr,
}

impl Addresses {
    /// Three ports of this machine that nobody listens on.
    pub(super) fn free() -> Result<Self> {
        Ok(Self { client: free_address()?, peer: free_address()?, http: free_address()? })
    }

    /// The usual ports of a host of its own.
    pub(super) fn of_host(host: IpAddr) -> Self {
        let at = |port| SocketAddr::new(host, port);
        Self { client: at(1992), peer: at(1993), http: at(1994) }
    }

    fn toml(&self) -> String {
        let Self { client, peer, http } = self;
        format!("client = \"{client}\"\npeer = \"{peer}\"\nhttp = \"{http}\"\n")
    }
}

/// A port that nobody listens on, below those that the kernel takes for outgoing connections: a node comes back on its
/// ports after others have been connecting for a while.
pub(super) fn free_address() -> Result<SocketAddr> {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Processes that run at the same time begin at different places.
    let begin = (std::process::id() % 997) as u16 * 19;
    for _ in 0..COUNT {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    Err(LiveError::Unavailable("no port of this machine is free".to_owned()))
}

/// See the module documentation. The process ends with this value.
pub(super) struct Node {
    pub(super) id: u64,
    /// Where it listens.
    pub(super) listen: Addresses,
    /// Where its data is.
    pub(super) data: PathBuf,
    /// The program, with arguments that come before those of a node.
    program: Vec<String>,
    config: PathBuf,
    log: PathBuf,
    settings: Vec<String>,
    process: Option<Child>,
}

/// What is common to all nodes.
pub(super) struct Common<'a> {
    pub(super) program: &'a [String],
    pub(super) home: &'a Path,
    /// Where the others reach each node; node 1 is the first.
    pub(super) told: &'a [Addresses],
    pub(super) settings: &'a [String],
}

impl Node {
    /// A node that is not started yet; `launcher` comes before its program.
    pub(super) fn new(common: &Common<'_>, id: u64, listen: Addresses, launcher: &[String]) -> Result<Self> {
        let home = common.home.join(format!("node-{id}"));
        fs::create_dir_all(&home).map_err(os(format!("make {}", home.display())))?;
        let data = home.join("data");
        let mut toml = format!("[node]\nid = {id}\ndata_dir = {:?}\n\n[listen]\n{}", text(&data), listen.toml());
        for (number, told) in (1..).zip(common.told) {
            // Writing to a String cannot fail.
            let _ = write!(toml, "\n[[cluster.nodes]]\nid = {number}\n{}", told.toml());
        }
        let config = home.join("lance.toml");
        fs::write(&config, toml).map_err(os(format!("write {}", config.display())))?;
        Ok(Self {
            id,
            listen,
            data,
            program: [launcher, common.program].concat(),
            config,
            log: home.join("lance.log"),
            settings: common.settings.to_vec(),
            process: None,
        })
    }

    /// Start the process. Its log is appended to one file over all its lives.
    pub(super) fn start(&mut self) -> Result<()> {
        let what = || format!("write {}", self.log.display());
        let log = fs::File::options().create(true).append(true).open(&self.log).map_err(os(what()))?;
        let (program, words) = self.program.split_first().map_or(("", [].as_slice()), |(first, rest)| (first, rest));
        let mut command = Command::new(program);
        // In a process group of its own, Ctrl-C does not reach it; the end of its standard input stops it should this
        // process be killed.
        command.args(words).env_clear().process_group(0).kill_on_drop(true);
        command.args(["server", "--stop-with-stdin", "--config"]).arg(&self.config);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn();
        self.process = Some(spawned.map_err(os(format!("start node {} with {program}", self.id)))?);
        Ok(())
    }

    /// The id of the process, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.process.as_ref().and_then(Child::id)
    }

    /// How the process has ended, if it was started and has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(|process| process.try_wait().ok().flatten())
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid().and_then(|pid| Pid::from_raw(pid as i32)) else { return Ok(()) };
        let what = format!("send signal {} to node {}", signal.as_raw(), self.id);
        kill_process(pid, signal).map_err(|error| os(what)(error.into()))
    }

    /// Kill -9 without waiting.
    pub(super) fn kill_now(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.start_kill();
        }
    }

    /// Kill -9, and wait for the end.
    pub(super) async fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill().await;
        }
    }

    /// Tell it to stop and wait for its end, at most for the time that it may take.
    pub(super) async fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(STOPPING).await
    }

    /// Wait for its end.
    pub(super) async fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let id = self.id;
        let Some(process) = &mut self.process else {
            return Err(LiveError::Unavailable(format!("node {id} does not run")));
        };
        match timeout(patience, process.wait()).await {
            Ok(status) => {
                self.process = None;
                status.map_err(os(format!("wait for node {id}")))
            }
            Err(_) => Err(LiveError::NotReady {
                who: format!("node {id}"),
                after: patience,
                state: "it was told to end and still runs".to_owned(),
            }),
        }
    }

    /// Wait until it says that it can serve.
    pub(super) async fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = match timeout(ANSWER, get(self.listen.http, "/readyz")).await {
                Ok(Ok((200, _))) => return Ok(()),
                Ok(Ok((status, text))) => format!("{status}: {}", text.trim()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let ended = self.ended();
            if ended.is_some() || Instant::now() >= deadline {
                let state = ended.map_or(state, |status| format!("ended with {status}; {}", self.last_words()));
                return Err(LiveError::NotReady { who: format!("node {}", self.id), after: PATIENCE, state });
            }
            sleep(POLL).await;
        }
    }

    /// The last line of its log.
    pub(super) fn last_words(&self) -> String {
        let log = String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned();
        log.lines().next_back().unwrap_or("it said nothing").to_owned()
    }

    /// Whether the log tells of a panic, in any of its lives.
    pub(super) fn has_panicked(&self) -> bool {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).contains("panicked at")
    }
}

/// Get a page over plain HTTP: its status and its text.
async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut reply = String::new();
    stream.take(64 << 10).read_to_string(&mut reply).await?;
    let status = reply.get(9..12).and_then(|digits| digits.parse().ok());
    let (head, status) = reply.find("\r\n\r\n").zip(status).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, reply[head + 4..].to_owned()))
}
