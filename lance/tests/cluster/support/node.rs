//! One node: a `lance server` process, its ports, its files, and its HTTP side.

use rustix::process::{Pid, Signal, kill_process};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{PATIENCE, POLL, eventually};

/// Settings that keep files small, so that journals are recycled and checkpoints are made with little data.
pub(crate) const SMALL: &[&str] = &[
    "journal.file_bytes=4MiB",
    "journal.retain_bytes=64MiB",
    "journal.checkpoint_bytes=8MiB",
    "storage.segment_bytes=2MiB",
    "log.level=info",
];

/// The addresses of a node.
#[derive(Clone, Debug)]
pub(crate) struct Ports {
    pub(crate) client: u16,
    pub(crate) peer: u16,
    pub(crate) http: u16,
}

impl Ports {
    /// Three ports that nobody listens on.
    ///
    /// They lie below the range from which the kernel takes ports for outgoing connections: a node comes back on its
    /// ports after others, clients and peers, have been connecting for a while.
    pub(crate) fn free() -> Self {
        Self { client: free_port(), peer: free_port(), http: free_port() }
    }

    fn toml(&self) -> String {
        let Self { client, peer, http } = self;
        format!("client = \"127.0.0.1:{client}\"\npeer = \"127.0.0.1:{peer}\"\nhttp = \"127.0.0.1:{http}\"\n")
    }
}

fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time begin at different places.
    let begin = (std::process::id() % 997) as u16 * 19;
    for _ in 0..COUNT {
        let port = FIRST + (begin + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// A node that runs, or is down for now. It is killed at the latest when the test ends.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) ports: Ports,
    pub(crate) data: PathBuf,
    config: PathBuf,
    log: PathBuf,
    settings: Vec<String>,
    process: Option<Child>,
}

impl Node {
    /// A node that is not started yet. `all` has the ports of every node of the cluster; this one is number `id` of
    /// them, counted from 1.
    pub(crate) fn new(directory: &Path, id: u64, all: &[Ports], settings: &[String]) -> Self {
        let home = directory.join(format!("node-{id}"));
        fs::create_dir_all(&home).unwrap();
        let data = home.join("data");
        let ports = all[id as usize - 1].clone();
        let mut text = format!("[node]\nid = {id}\ndata_dir = {data:?}\n\n[listen]\n{}", ports.toml());
        for (number, ports) in (1..).zip(all) {
            write!(text, "\n[[cluster.nodes]]\nid = {number}\n{}", ports.toml()).unwrap();
        }
        let config = home.join("lance.toml");
        fs::write(&config, text).unwrap();
        Self { id, ports, data, config, log: home.join("log"), settings: settings.to_vec(), process: None }
    }

    pub(crate) fn settings(&self) -> &[String] {
        &self.settings
    }

    pub(crate) fn client(&self) -> String {
        format!("127.0.0.1:{}", self.ports.client)
    }

    /// The command that runs this node.
    pub(crate) fn command(&self) -> Command {
        let mut command = lance();
        command.args(["server", "--stop-with-stdin", "--config"]).arg(&self.config);
        for setting in SMALL.iter().copied().chain(self.settings.iter().map(String::as_str)) {
            command.args(["--set", setting]);
        }
        command
    }

    /// Starts the process. Its log is appended to one file over all its lives.
    pub(crate) fn start(&mut self) {
        assert!(self.process.is_none(), "node {} runs already", self.id);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.command();
        // The end of its standard input stops the node, should this process be killed before it can do so.
        self.process = Some(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Whether the process has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_none_or(|process| process.try_wait().unwrap().is_some())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the node runs").id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// kill -9, without waiting for the end.
    pub(crate) fn kill_now(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill().unwrap();
        }
    }

    /// Kills the process and waits for its end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            process.wait().unwrap();
        }
    }

    /// Waits until the process has ended by itself or by a signal sent before.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the node runs");
        eventually("the node ends", || process.try_wait().unwrap())
    }

    /// Everything the node has logged so far, over all its lives.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The state of `/readyz`: status and text; `None` if nobody answers.
    pub(crate) fn readyz(&self) -> Option<(u16, String)> {
        self.http("/readyz").ok()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.readyz().is_some_and(|(status, _)| status == 200)
    }

    /// Waits until the node can serve.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let state = self.readyz();
            if state.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            assert!(Instant::now() < deadline, "node {} does not become ready: {state:?}", self.id);
            std::thread::sleep(POLL);
        }
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> String {
        self.http("/metrics").expect("the node serves its metrics").1
    }

    pub(crate) fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.http)
    }

    /// Gets a page from the HTTP side.
    pub(crate) fn http(&self, path: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.ports.http))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let status = reply.get(9..12).and_then(|digits| digits.parse().ok());
        let (head_end, status) = reply.find("\r\n\r\n").zip(status).ok_or(io::ErrorKind::InvalidData)?;
        Ok((status, reply[head_end + 4..].to_owned()))
    }

    /// Bytes of resident memory.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Bytes of all files below a directory of the data directory; 0 if there is none.
    pub(crate) fn disk_bytes(&self, directory: &str) -> u64 {
        fn sum(path: &Path) -> u64 {
            let Ok(entries) = fs::read_dir(path) else { return 0 };
            let size = |entry: fs::DirEntry| match entry.metadata() {
                Ok(data) if data.is_dir() => sum(&entry.path()),
                Ok(data) => data.len(),
                Err(_) => 0,
            };
            entries.flatten().map(size).sum()
        }
        sum(&self.data.join(directory))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(25)..].join("\n");
            eprintln!("--- the end of node {}'s log ---\n{tail}", self.id);
        }
    }
}

/// The `lance` program, with a clean environment.
pub(crate) fn lance() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lance"));
    command.env_clear();
    command
}

/// A command of `lance` that runs beside the test and is fed by it.
pub(crate) struct Running {
    child: Option<Child>,
    output: Option<JoinHandle<Vec<u8>>>,
    errors: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let collect = |mut pipe: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let _ = pipe.read_to_end(&mut all);
                all
            })
        };
        let output = collect(Box::new(child.stdout.take().unwrap()));
        let errors = collect(Box::new(child.stderr.take().unwrap()));
        Self { child: Some(child), output: Some(output), errors: Some(errors) }
    }

    /// Hands bytes to its standard input. A command that has failed does not take them.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let _ = self.child.as_mut().unwrap().stdin.as_mut().unwrap().write_all(bytes);
    }

    /// Ends its input and waits for its end.
    pub(crate) fn finish(mut self) -> Output {
        let mut child = self.child.take().unwrap();
        drop(child.stdin.take());
        let status = child.wait().unwrap();
        let join = |handle: &mut Option<JoinHandle<Vec<u8>>>| handle.take().unwrap().join().unwrap();
        Output { status, stdout: join(&mut self.output), stderr: join(&mut self.errors) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a command with this standard input to its end.
pub(crate) fn run(command: Command, input: &[u8]) -> Output {
    let mut running = Running::start(command);
    running.feed(input);
    running.finish()
}
