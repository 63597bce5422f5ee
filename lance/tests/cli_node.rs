//! The command line against a node: one process, a cluster of one.

use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

/// Longest time for a node to start or to stop, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a node that starts or stops.
const POLL: Duration = Duration::from_millis(10);

/// A node that is killed at the latest when the test ends.
struct Node {
    process: Child,
    endpoint: String,
    peer: String,
    http: String,
    _data: tempfile::TempDir,
}

impl Node {
    /// Starts a node on ports that were free a moment ago; if another process was faster, on others.
    fn start() -> Self {
        Self::start_with_files(None)
    }

    /// The same, for a node that may have so many files open.
    fn start_with_files(files: Option<u32>) -> Self {
        for _ in 0..5 {
            if let Some(node) = Self::try_start(files) {
                return node;
            }
        }
        panic!("no node starts");
    }

    fn try_start(files: Option<u32>) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let free: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let address = |at: usize| free[at].local_addr().unwrap().to_string();
        let (endpoint, peer, http) = (address(0), address(1), address(2));
        let limit = files.map_or(String::new(), |files| format!("ulimit -n {files} && "));
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!("{limit}exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_lance")])
            .args(["server", "--stop-with-stdin", "--listen", &endpoint])
            .args(["--data-dir", data.path().join("node").to_str().unwrap()])
            .args(["--set", &format!("listen.peer={peer}"), "--set", &format!("listen.http={http}")])
            .args(["--set", "journal.file_bytes=4MiB", "--set", "log.level=error"])
            .env_clear()
            .stdin(Stdio::piped());
        drop(free);
        let mut process = command.spawn().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while !is_ready(&http) {
            if process.try_wait().unwrap().is_some() {
                return None;
            }
            assert!(Instant::now() < deadline, "the node does not become ready");
            std::thread::sleep(POLL);
        }
        Some(Self { process, endpoint, peer, http, _data: data })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lance"));
        command.args(arguments).env_clear().env("LANCE_ENDPOINT", &self.endpoint);
        command
    }

    /// Runs a command with this standard input.
    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // A command that fails early does not read its input to the end.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Standard output of a command that has to succeed.
    fn ok(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A terminal with a command on the far side of it.
struct Terminal {
    near: File,
    heard: String,
}

impl Terminal {
    fn open() -> Self {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&near).unwrap();
        unlockpt(&near).unwrap();
        Self { near: near.into(), heard: String::new() }
    }

    /// The side of the command.
    fn far(&self) -> Stdio {
        ioctl_tiocgptpeer(&self.near, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap().into()
    }

    /// Waits until this text stands on the terminal.
    fn hear(&mut self, text: &str) {
        let limit = Timespec::try_from(PATIENCE).unwrap();
        while !self.heard.contains(text) {
            let mut waited = [PollFd::new(&self.near, PollFlags::IN)];
            assert_eq!(poll(&mut waited, Some(&limit)).unwrap(), 1, "no `{text}` in: {}", self.heard);
            let mut buf = [0; 4096];
            let length =
                self.near.read(&mut buf).unwrap_or_else(|error| panic!("{error}, no `{text}` in: {}", self.heard));
            self.heard.push_str(&String::from_utf8_lossy(&buf[..length]));
        }
    }

    fn type_in(&mut self, text: &str) {
        self.near.write_all(text.as_bytes()).unwrap();
    }
}

fn is_ready(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut reply = String::new();
    let asked = stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n");
    asked.and_then(|()| stream.read_to_string(&mut reply)).is_ok() && reply.starts_with("HTTP/1.1 200 ")
}

#[test]
fn systemd_hears_when_a_node_can_serve_and_when_it_stops() {
    let data = tempfile::tempdir().unwrap();
    let socket = data.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut buf = [0; 4096];
        let length = systemd.recv(&mut buf).expect("the node says something");
        String::from_utf8_lossy(&buf[..length]).into_owned()
    };
    let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lance"));
    command
        .args(["server", "--stop-with-stdin", "--listen", "127.0.0.1:0", "--set", "listen.peer=127.0.0.1:0"])
        .args(["--set", &format!("listen.http={http}"), "--set", "journal.file_bytes=4MiB", "--data-dir"])
        .arg(data.path().join("node"))
        .env_clear()
        .env("NOTIFY_SOCKET", &socket)
        .env("WATCHDOG_USEC", "300000")
        .stdin(Stdio::piped());
    let process = command.spawn().unwrap();
    let mut node = Node { process, endpoint: String::new(), peer: String::new(), http: String::new(), _data: data };
    while !hear().starts_with("READY=1") {}
    assert!(is_ready(&http), "the node cannot serve yet");
    while hear() != "WATCHDOG=1" {}
    // The end of standard input is the same as SIGTERM.
    drop(node.process.stdin.take());
    while !hear().starts_with("STOPPING=1") {}
    assert!(node.process.wait().unwrap().success());
}

#[test]
fn a_pipe_that_waits_says_so() {
    let node = Node::start();
    node.ok(&["topic", "create", "t"], b"");
    let mut command = node.command(&["produce", "t"]);
    let mut producer = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = producer.stdin.take().unwrap();
    let mut told = String::new();
    let mut stderr = BufReader::new(producer.stderr.take().unwrap());
    stderr.read_line(&mut told).unwrap();
    assert!(told.contains("waiting for records on standard input"), "{told}");
    input.write_all(b"one\n").unwrap();
    drop(input);
    assert!(producer.wait().unwrap().success());
}

/// Also when there are many more of them than files that may be open.
#[test]
fn idle_connections_take_no_files_from_the_journal() {
    let mut node = Node::start_with_files(Some(128));
    node.ok(&["topic", "create", "t"], b"");
    let mut producer = node.command(&["produce", "t", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = producer.stdin.take().unwrap();
    let line = [&[b'x'; 999][..], b"\n"].concat();
    input.write_all(&line).unwrap();
    input.flush().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while node.ok(&["consume", "t", "--until-end"], b"").len() < line.len() {
        assert!(Instant::now() < deadline, "the producer has no connection");
    }
    let ports = [&node.endpoint, &node.peer, &node.http];
    let idle: Vec<TcpStream> =
        (0..900).filter_map(|nth: usize| TcpStream::connect(ports[nth % ports.len()]).ok()).collect();
    let open = std::fs::read_dir(format!("/proc/{}/fd", node.process.id())).unwrap().count();
    // Who has to make place is gone a moment later.
    assert!(open < 124, "{open} files are open of 128 that may be");
    // Several files of the journal, and of the segments that a checkpoint asks for.
    for _ in 0..20_000 {
        input.write_all(&line).expect("the producer goes on");
    }
    drop(input);
    assert!(producer.wait().unwrap().success());
    assert!(node.process.try_wait().unwrap().is_none(), "the node runs");
    drop(idle);
    let deadline = Instant::now() + PATIENCE;
    let read = loop {
        let output = node.run(&["consume", "t", "--until-end"], b"");
        if output.status.success() {
            break output.stdout;
        }
        assert!(Instant::now() < deadline, "{}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(POLL);
    };
    assert_eq!(read.len(), 20_001 * line.len());
}

#[test]
fn a_hangup_ends_a_node_like_any_other_request_to_stop() {
    let mut node = Node::start();
    let pid = rustix::process::Pid::from_raw(node.process.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    assert!(node.process.wait().unwrap().success());
}

#[test]
fn lines_come_back_as_they_went_in() {
    let node = Node::start();
    node.ok(&["topic", "create", "lines"], b"");
    let mut lines = b"one\n\ntwo\r\n\xff\xfe\x00\nlast".to_vec();
    node.ok(&["produce", "lines", "--quiet"], &lines);
    lines.push(b'\n');
    assert_eq!(node.ok(&["consume", "lines", "--until-end"], b""), lines);
    assert_eq!(node.ok(&["consume", "lines", "--from", "2", "-n", "1"], b""), b"two\r\n");
    assert_eq!(node.ok(&["consume", "lines", "--from", "end", "--until-end"], b""), b"");

    let many: Vec<u8> = (0..50_000).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    for codec in ["none", "lz4", "zstd"] {
        node.ok(&["topic", "create", codec], b"");
        node.ok(&["produce", codec, "--compression", codec, "--batch-bytes", "16KiB"], &many);
        assert!(node.ok(&["consume", codec, "--until-end"], b"") == many, "{codec}");
    }
}

#[test]
fn keys_choose_partitions_and_are_printed() {
    let node = Node::start();
    node.ok(&["topic", "create", "keyed", "--partitions", "4"], b"");
    let lines: String = (0..40).map(|number| format!("k{}:{number}\n", number % 8)).collect();
    node.ok(&["produce", "keyed", "-k", ":"], lines.as_bytes());
    let text = node.ok(&["consume", "keyed", "--until-end", "--format", "%p %k %v\\n"], b"");
    let mut homes = std::collections::BTreeMap::new();
    let mut seen = 0;
    for line in String::from_utf8(text).unwrap().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (partition, number) = (words[0].to_owned(), words[2].parse::<u32>().unwrap());
        let home = homes.entry(words[1].to_owned()).or_insert((partition.clone(), None));
        assert_eq!(home.0, partition, "a key has one partition");
        assert!(home.1 < Some(number), "records of a key keep their order");
        home.1 = Some(number);
        seen += 1;
    }
    assert_eq!((seen, homes.len()), (40, 8));
}

#[test]
fn a_follower_prints_new_records_as_they_come() {
    let node = Node::start();
    node.ok(&["topic", "create", "news"], b"");
    let mut follower = node.command(&["consume", "news"]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    for text in ["first", "second"] {
        node.ok(&["produce", "news", "--linger", "0"], text.as_bytes());
        assert_eq!(lines.next().unwrap().unwrap(), text);
    }
    drop(lines);
    node.ok(&["produce", "news"], b"third");
    // Its reader is gone: it ends, and calls that a success.
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

#[test]
fn headers_and_tombstones_go_in_and_come_out() {
    let node = Node::start();
    node.ok(&["topic", "create", "t"], b"");
    let headers = ["-H", "source=web", "--header", "trace=a=b"];
    let lines = b"k1:v\nk2:NULL\nk3:\nNULL\n";
    node.ok(&[&["produce", "t", "-k", ":", "--null-value", "NULL"], &headers[..]].concat(), lines);
    let format = "%k|%v|%h|%{source}\\n";
    let read = text(node.ok(&["consume", "t", "--until-end", "--format", format, "--null-value", "-"], b""));
    let all = "source=web,trace=a=b|web\n";
    assert_eq!(read, format!("k1|v|{all}k2|-|{all}k3||{all}-|-|{all}"));
    let json = text(node.ok(&["consume", "t", "--until-end", "-o", "json"], b""));
    assert!(json.lines().nth(1).unwrap().contains("\"key\":\"k2\",\"value\":null"), "{json}");
}

#[test]
fn records_may_hold_newlines() {
    let node = Node::start();
    for topic in ["delimited", "whole"] {
        node.ok(&["topic", "create", topic], b"");
    }
    node.ok(&["produce", "delimited", "-D", "\\0"], b"a\nb\0c\n\0\0d");
    node.ok(&["produce", "whole", "--whole", "-k", ":", "--file", "-"], b"k:one\ntwo\n");
    let format = ["--until-end", "--format", "<%v>"];
    assert_eq!(node.ok(&[&["consume", "delimited"], &format[..]].concat(), b""), b"<a\nb><c\n><><d>");
    assert_eq!(node.ok(&[&["consume", "whole"], &format[..]].concat(), b""), b"<one\ntwo\n>");
}

#[test]
fn what_is_printed_as_json_is_stored_as_it_was() {
    let node = Node::start();
    for topic in ["from", "to"] {
        node.ok(&["topic", "create", topic, "--partitions", "3"], b"");
    }
    node.ok(&["produce", "from", "-k", ":", "--null-value", "NULL"], b"a:1\nb:NULL\n\xff:\xfe\0\n:\nplain\n");
    let documents =
        b"{\"value\":\"x\",\"timestamp_ms\":5,\"partition\":2,\"headers\":[{\"name\":\"h\",\"value_hex\":\"80\"}]}\n\n";
    node.ok(&["produce", "from", "-i", "json"], documents);
    let read = |topic: &str, from: &str| {
        let read = text(node.ok(&["consume", topic, "--until-end", "--format", "json"], b""));
        let mut lines: Vec<String> = read.lines().map(|line| line.replace(from, "\"topic\":\"?\"")).collect();
        lines.sort();
        lines
    };
    let printed = read("from", "\"topic\":\"from\"");
    assert_eq!(printed.len(), 6);
    node.ok(&["produce", "to", "--input", "json"], (printed.join("\n") + "\n").as_bytes());
    assert_eq!(read("to", "\"topic\":\"to\""), printed);

    let output = node.run(&["produce", "to", "-i", "json", "-p", "1"], b"{\"value\":\"x\"}\n\n{\"val\":1}\n");
    let error = text(output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("1 line stored") && error.contains("lance: line 3: unknown field `val`"), "{error}");
    let output = node.run(&["produce", "to", "-i", "json", "-k", ":"], b"");
    assert_eq!(output.status.code(), Some(2), "{}", text(output.stderr));
}

#[test]
fn reading_starts_and_ends_where_it_is_told() {
    let node = Node::start();
    node.ok(&["topic", "create", "t", "--partitions", "2"], b"");
    node.ok(&["topic", "create", "other"], b"");
    for partition in ["0", "1"] {
        let lines: String = (0..5).map(|number| format!("{partition}.{number}\n")).collect();
        node.ok(&["produce", "t", "--partition", partition], lines.as_bytes());
    }
    node.ok(&["produce", "other"], b"else\n");
    let sorted = |arguments: &[&str]| {
        let read = text(node.ok(&[&["consume"], arguments, &["--until-end"]].concat(), b""));
        let mut lines: Vec<String> = read.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&["t", "--from", "-2"]), ["0.3", "0.4", "1.3", "1.4"], "the last of each partition");
    assert_eq!(sorted(&["t", "--from", "-9", "-p", "1"]).len(), 5);
    assert_eq!(sorted(&["t", "other", "--from", "earliest", "--partition", "all"]).len(), 11);
    assert_eq!(sorted(&["t", "other", "--from=-1", "--format", "%t %v\\n"]), ["other else", "t 0.4", "t 1.4"]);
    assert_eq!(sorted(&["t", "--from", "latest"]), [""; 0]);
    assert_eq!(sorted(&["t", "--from", "@-1h", "--partition", "0,1"]).len(), 10);
    assert_eq!(sorted(&["t", "--from", "@2026-01-31", "--partition", "0"]).len(), 5);
    // At the end there is nothing to read, which is no error; beyond it there never was.
    assert_eq!(sorted(&["t", "--from", "5"]), [""; 0]);
    let output = node.run(&["consume", "t", "--from", "6", "--until-end", "-p", "1"], b"");
    let error = text(output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("offset 6 is beyond the end of t: partition 1 ends at 5"), "{error}");
    let output = node.run(&["consume", "t", "--from", "@9000-01-01", "--until-end"], b"");
    assert_eq!(output.status.code(), Some(0));
    assert!(text(output.stderr).contains("no record of this time or later"));
}

#[test]
fn a_topic_that_exists_already_is_said_to() {
    let node = Node::start();
    let create = |more: &[&str]| node.run(&[&["topic", "create", "t", "--partitions", "1"], more].concat(), b"");
    assert_eq!(text(create(&[]).stdout), "created t: 1 partition\n");
    assert_eq!(text(create(&[]).stdout), "t exists already, with the same settings: 1 partition\n");
    let json: serde_json::Value = serde_json::from_slice(&create(&["-o", "json"]).stdout).unwrap();
    assert_eq!((&json["existed"], json["topic_id"].is_string()), (&true.into(), true));
    let refused = create(&["--max-age", "7d"]);
    assert_eq!(refused.status.code(), Some(1));
    let told = "t exists with other settings: it has 1 partition; asked for was 1 partition, max-age 7d";
    assert!(text(refused.stderr).contains(told));
    let other = node.ok(&["topic", "create", "u", "-o", "json"], b"");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&other).unwrap()["existed"], false);
    assert_eq!(node.ok(&["topics", "ls"], b""), node.ok(&["topic", "list"], b""));
}

#[test]
fn whoever_sits_at_a_terminal_is_asked_and_told() {
    let node = Node::start();
    node.ok(&["topic", "create", "t"], b"");
    let on = |terminal: &Terminal, arguments: &[&str]| {
        let mut command = node.command(arguments);
        command.stdin(terminal.far()).stdout(Stdio::piped()).stderr(terminal.far()).spawn().unwrap()
    };
    let mut terminal = Terminal::open();
    let mut reader = on(&terminal, &["consume", "t", "-n", "1"]);
    terminal.hear("waiting for new ones");

    let mut terminal = Terminal::open();
    let mut writer = on(&terminal, &["produce", "t"]);
    terminal.hear("reading records from the terminal");
    terminal.type_in("typed\n\u{4}");
    assert!(writer.wait().unwrap().success());
    assert!(reader.wait().unwrap().success());
    let mut read = String::new();
    reader.stdout.take().unwrap().read_to_string(&mut read).unwrap();
    assert_eq!(read, "typed\n");

    let mut terminal = Terminal::open();
    let mut refused = on(&terminal, &["topic", "delete", "t"]);
    terminal.hear("Type t to confirm: ");
    terminal.type_in("n\n");
    terminal.hear("nothing was done");
    assert_eq!(refused.wait().unwrap().code(), Some(1));
    node.ok(&["topic", "describe", "t"], b"");
    let mut terminal = Terminal::open();
    let mut confirmed = on(&terminal, &["topic", "rm", "t"]);
    terminal.hear("Type t to confirm: ");
    terminal.type_in("t\n");
    assert_eq!(confirmed.wait().unwrap().code(), Some(0));
    assert_eq!(node.run(&["topic", "describe", "t"], b"").status.code(), Some(4));
}

#[test]
fn topics_are_managed_and_failures_have_exit_codes() {
    let node = Node::start();
    let created = node.ok(&["topic", "create", "t", "--partitions", "3", "--max-age", "7d", "-o", "json"], b"");
    let created: serde_json::Value = serde_json::from_slice(&created).unwrap();
    assert_eq!(created["partitions"].as_array().unwrap().len(), 3);
    assert_eq!(created["options"]["max_age_ms"], 604_800_000);
    let table = String::from_utf8(node.ok(&["topic", "list"], b"")).unwrap();
    assert!(table.contains("t               3  7d              -\n"), "{table}");

    let code = |arguments: &[&str], input: &[u8]| node.run(arguments, input).status.code();
    assert_eq!(code(&["topic", "create", "t", "--partitions", "5"], b""), Some(1));
    assert_eq!(code(&["topic", "create", "no/slash"], b""), Some(1));
    assert_eq!(code(&["topic", "describe", "nope"], b""), Some(4));
    assert_eq!(code(&["consume", "nope", "--until-end"], b""), Some(4));
    assert_eq!(code(&["produce", "nope"], b"x\n"), Some(4));
    assert_eq!(code(&["produce", "t", "--partition", "3"], b"x\n"), Some(4));
    let large = vec![b'x'; 2 << 20];
    let output = node.run(&["produce", "t"], &[b"small\n".as_slice(), &large].concat());
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("1 line stored"), "{error}");
    assert!(error.contains("1 failed") && error.contains("lance: line 2: a record of "), "{error}");

    node.ok(&["topic", "delete", "t", "--yes"], b"");
    assert_eq!(code(&["topic", "describe", "t"], b""), Some(4));
}

#[test]
fn the_state_of_a_healthy_cluster_is_a_success() {
    let mut node = Node::start();
    let status = node.ok(&["cluster", "status", "-o", "json"], b"");
    let status: serde_json::Value = serde_json::from_slice(&status).unwrap();
    assert_eq!(status["problems"], serde_json::json!([]));
    assert_eq!(status["nodes"][0]["leads"], serde_json::json!([0, 1]));

    // The end of its standard input asks the node to stop.
    drop(node.process.stdin.take());
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = node.process.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < deadline, "the node does not stop");
        std::thread::sleep(POLL);
    };
    assert_eq!(status.code(), Some(0));
}

/// A directory that its user may not write to is found before the node promises anything, not when it first has to write.
#[test]
fn a_data_directory_that_is_closed_to_the_node_is_refused() {
    /// Who may do nothing; for a test that runs as root, whom no mode keeps out.
    const NOBODY: u32 = 65_534;
    let home = tempfile::tempdir().unwrap();
    let (data, program) = (home.path().join("data"), home.path().join("lance"));
    // Where the tests are built may be closed to others.
    std::fs::copy(env!("CARGO_BIN_EXE_lance"), &program).unwrap();
    let set_mode = |path: &Path, mode: u32| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    set_mode(home.path(), 0o755);
    std::fs::create_dir_all(data.join("journal")).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    for path in [data.clone(), data.join("journal")].iter().filter(|_| is_root) {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    for closed in [data.clone(), data.join("journal")] {
        set_mode(&closed, 0o555);
        let mut command = Command::new(&program);
        command
            .args(["server", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()])
            .args(["--set", "listen.peer=127.0.0.1:0", "--set", "listen.http=127.0.0.1:0"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let mut process = command.spawn().unwrap();
        let mut told = BufReader::new(process.stderr.take().unwrap()).lines();
        let why = told.find_map(|line| line.ok().filter(|line| line.contains("Permission denied"))).unwrap_or_default();
        assert!(!process.wait().unwrap().success());
        assert!(why.contains(closed.to_str().unwrap()) && why.contains("access"), "{why}");
        set_mode(&closed, 0o755);
    }
}
