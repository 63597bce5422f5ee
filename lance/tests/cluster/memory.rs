//! Everything that clients can do to a node's memory, at once: it stays within the sum that the configuration names and a margin
//! that is said beside it, and who asks for little is served.

use super::support::node::{Node, Ports};
use super::support::wire::{self, Wire};
use bytes::{BufMut, BytesMut};
use lnc_protocol::message::{FetchPartition, FetchRequest, HelloRequest, TopicOptions};
use lnc_protocol::{Flags, Opcode, PROTOCOL_VERSION, Request, encode_request, frame};
use std::fs;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// What the configuration of this node names.
const SETTINGS: [&str; 5] = [
    "limits.memory_bytes=16MiB",
    "limits.reply_bytes=16MiB",
    "limits.tail_cache_bytes=16MiB",
    "limits.peer_bytes=16MiB",
    "limits.max_frame_bytes=8MiB",
];
const CONFIGURED: u64 = 48 * MIB;

/// For all else: see "Memory" in docs/ARCHITECTURE.md.
const MARGIN: u64 = 256 * MIB;

/// For how long the clients do their worst.
const STORM: Duration = Duration::from_secs(8);

/// A control group whose processes may have so much memory; gone with this.
struct Group(PathBuf);

impl Group {
    /// `None` where this process may not make one.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("lance-memory-{}", std::process::id());
        let roots = [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];
        roots.into_iter().find_map(|(root, file)| {
            let group = Self(Path::new(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            // Dropped, and with it the directory, if this is another kind of group.
            fs::write(group.0.join(file), bytes.to_string()).ok()?;
            Some(group)
        })
    }

    fn take(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a process can be moved into a new group");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A client that never waits.
struct Rude {
    stream: TcpStream,
    address: String,
    /// What it sends again and again, and how far it is.
    bytes: BytesMut,
    sent: usize,
    is_endless: bool,
}

impl Rude {
    fn new(address: &str, bytes: BytesMut, is_endless: bool) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        Self { stream, address: address.to_owned(), bytes, sent: 0, is_endless }
    }

    /// Send what the other end takes; come back if it has hung up.
    fn push(&mut self) {
        while self.sent < self.bytes.len() {
            match self.stream.write(&self.bytes[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    let again = TcpStream::connect(&self.address);
                    let Ok(stream) = again else { return };
                    stream.set_nonblocking(true).unwrap();
                    (self.stream, self.sent) = (stream, 0);
                    return;
                }
            }
        }
        if self.is_endless {
            // The greeting is not said twice.
            self.sent = hello().len();
        }
    }
}

fn hello() -> BytesMut {
    let mut out = BytesMut::new();
    let (min_version, max_version) = (PROTOCOL_VERSION, PROTOCOL_VERSION);
    let request = HelloRequest { min_version, max_version, ..HelloRequest::default() };
    encode_request(&mut out, Flags::NONE, 0, &Request::Hello(request));
    out
}

fn pings() -> BytesMut {
    let mut out = hello();
    (1..2000).for_each(|number| encode_request(&mut out, Flags::NONE, number, &Request::Ping));
    out
}

fn fetches() -> BytesMut {
    let partitions =
        vec![FetchPartition { topic: "t".into(), topic_id: 0, partition: 0, offset: 0, max_bytes: 8 << 20 }];
    let fetch = FetchRequest { max_wait_ms: 0, min_bytes: 1, max_bytes: 8 << 20, partitions };
    let mut out = hello();
    (1..30).for_each(|number| encode_request(&mut out, Flags::NONE, number, &Request::Fetch(fetch.clone())));
    out
}

/// All of a frame but its end.
fn unfinished(greets: bool, body: usize) -> BytesMut {
    let mut out = if greets { hello() } else { BytesMut::new() };
    frame::encode(&mut out, Opcode::Produce, Flags::NONE, 1, |out| out.put_bytes(0, body));
    out.truncate(out.len() - 1);
    out
}

fn crowd(node: &Node) -> Vec<Rude> {
    let (client, http) = (node.client(), node.http_address());
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(Rude::new(&client, pings(), true));
        all.push(Rude::new(&client, fetches(), true));
        all.push(Rude::new(&client, unfinished(true, 7 << 20), false));
        all.push(Rude::new(&client, unfinished(false, 60 << 10), false));
    }
    for _ in 0..64 {
        all.push(Rude::new(&http, BytesMut::from(&b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"[..]), false));
        all.push(Rude::new(&http, BytesMut::from(&b"GET /"[..]), false));
    }
    all
}

/// The most that a process has had, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the node runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says it");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn all_that_clients_can_do_at_once_fits_into_the_configured_sum() {
    let directory = tempfile::tempdir().unwrap();
    let settings: Vec<String> = SETTINGS.iter().map(|setting| (*setting).to_owned()).collect();
    let mut node = Node::new(directory.path(), 1, &[Ports::free()], &settings);
    node.start();
    let group = Group::new(CONFIGURED + MARGIN);
    match &group {
        Some(group) => group.take(node.pid()),
        None => eprintln!("no control group can be made here: only what the node has had at most is looked at"),
    }
    node.wait_ready();
    let mut polite = Wire::connect(&node.client()).unwrap();
    polite.ask(&wire::create("t", 1, TopicOptions::default()), Flags::NONE).unwrap().unwrap();
    for _ in 0..40 {
        polite.produce(wire::produce("t", 0, wire::batch([&vec![b'x'; 1_000_000][..]])), Flags::NONE).unwrap().unwrap();
    }
    let mut crowd = crowd(&node);
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let mut served = 0;
    while began.elapsed() < STORM {
        crowd.iter_mut().for_each(Rude::push);
        let asked = Instant::now();
        let produced = polite.produce(wire::produce("t", 0, wire::batch([&b"little"[..]])), Flags::NONE);
        assert!(matches!(produced, Ok(Ok(_))), "who asks for little is served: {produced:?}");
        assert_eq!(node.http("/healthz").unwrap().0, 200, "a probe is answered");
        longest = longest.max(asked.elapsed());
        served += 1;
    }
    let most = peak(node.pid());
    eprintln!("{served} served, the longest in {longest:?}; at most {} MiB", most / MIB);
    assert!(most < CONFIGURED + MARGIN, "the node had {most} bytes");
    drop(crowd);
    drop(node);
    drop(group);
}
