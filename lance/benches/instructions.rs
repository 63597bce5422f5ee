//! Counts the instructions that the hot functions take, under callgrind, and compares them with what they took before.
//! A count says nothing of caches and disks, but it is the same on a busy machine, so a few per cent more are a finding.
//!
//! ```text
//! cargo run --release -p lance --example instructions                # count and compare
//! cargo run --release -p lance --example instructions -- --bless     # and keep what was counted as the new baseline
//! cargo run --release -p lance --example instructions -- only NAME   # run one as it is, for a profiler
//! ```
//!
//! The program starts itself under valgrind, once for each function; only what runs below [`counted`] is counted. It
//! is an example, not a bench, so that it is built from the same crates, with the same settings, as the release.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::hint::black_box;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use bytes::{Bytes, BytesMut};
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalStart};
use lnc_protocol::batch::{self, BatchBuilder, Limits, RecordBatch};
use lnc_protocol::codec::Codec;
use lnc_protocol::frame::{self, Flags};
use lnc_protocol::message::{Acks, Opcode, ProduceRequest, Request, encode_request};
use lnc_raft::{Config, Configuration, Message, NodeId, Raft, Restored};
use serde_json::json;

/// How often each function runs before it is counted, and while it is.
const WARM_UP: u32 = 16;
const TIMES: u32 = 128;

/// Records of a batch, as one that an application's producer packs; and the bytes of each value.
const RECORDS: usize = 64;
const VALUE: usize = 1024;

/// By name, with what one operation is.
const FUNCTIONS: [(&str, &str, fn()); 8] = [
    ("batch-encode", "a batch of 64 records of 1 KiB is built", batch_encode),
    ("batch-validate", "the same batch is checked as one from a producer", batch_validate),
    ("batch-decode", "its records are read", batch_decode),
    ("batch-checksum", "its header and checksum are checked, as for every read from storage", batch_checksum),
    ("frame-encode", "a produce request with one record of 1 KiB is written", frame_encode),
    ("frame-decode", "the same request is taken from a buffer and understood", frame_decode),
    ("journal-append", "64 entries of 1 KiB are staged for a flush", journal_append),
    ("raft-round", "three nodes agree on an entry: proposal, appends, acknowledgements, commit", raft_round),
];

/// What callgrind switches counting on for.
#[inline(never)]
fn counted(operation: &mut dyn FnMut()) {
    operation();
}

/// Runs an operation on inputs that are prepared outside of the count.
fn repeat<T>(mut prepare: impl FnMut() -> T, mut operation: impl FnMut(T)) {
    for turn in 0..WARM_UP + TIMES {
        let mut input = Some(prepare());
        let mut once = || input.take().into_iter().for_each(&mut operation);
        if turn < WARM_UP { once() } else { counted(&mut once) }
    }
}

fn value() -> Vec<u8> {
    (0..VALUE).map(|at| (at * 31) as u8).collect()
}

fn build(records: usize, value: &[u8]) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(Codec::None, records * (VALUE + 64)).with_producer(7, 0, 0);
    for record in 0..records {
        builder.append(record as i64, Some(b"key"), Some(value), &[]).expect("the batch has room");
    }
    builder.build()
}

fn batch_encode() {
    let value = value();
    repeat(|| (), |()| drop(black_box(build(RECORDS, black_box(&value)))));
}

fn batch_validate() {
    let batch = build(RECORDS, &value());
    let limits = Limits::default();
    repeat(|| batch.clone(), |batch| drop(black_box(RecordBatch::validate(batch, &limits).expect("a good batch"))));
}

fn batch_decode() {
    let batch = build(RECORDS, &value());
    let limits = Limits::default();
    let read = |batch: Bytes| {
        for record in batch::records(&batch, &limits).expect("a good batch") {
            drop(black_box(record.expect("a good record")));
        }
    };
    repeat(|| batch.clone(), read);
}

fn batch_checksum() {
    let batch = build(RECORDS, &value());
    repeat(
        || (),
        |()| {
            black_box(batch::check(black_box(&batch)).expect("a good batch"));
        },
    );
}

fn produce_request() -> Request {
    let batch = build(1, &value());
    let (acks, topic) = (Acks::Quorum, "orders".to_owned());
    Request::Produce(ProduceRequest { topic, topic_id: 3, partition: 1, acks, timeout_ms: 1000, batch })
}

fn frame_encode() {
    let request = produce_request();
    let mut out = BytesMut::with_capacity(4 * VALUE);
    repeat(
        || (),
        |()| {
            out.clear();
            encode_request(&mut out, Flags::default(), 9, black_box(&request));
            black_box(&out);
        },
    );
}

fn frame_decode() {
    let mut frame = BytesMut::new();
    encode_request(&mut frame, Flags::default(), 9, &produce_request());
    repeat(
        || BytesMut::from(&frame[..]),
        |mut buf| {
            let frame = frame::decode(&mut buf, 1 << 20).expect("a good frame").expect("a whole frame");
            let opcode = Opcode::try_from(frame.header.opcode).expect("a known opcode");
            drop(black_box(Request::decode(opcode, frame.body).expect("a good request")));
        },
    );
}

fn journal_append() {
    let mut disk = MemoryDisk::new();
    let (journal, _) = Journal::open(&mut disk, JournalConfig::new(1), JournalStart(0)).expect("an empty journal");
    let value = value();
    let (journal, mut index) = (std::cell::RefCell::new(journal), 0);
    // What was staged before is written first, so that every turn starts with nothing staged.
    let flush = || {
        let mut journal = journal.borrow_mut();
        journal.flush(&mut disk);
        let mut completions = Vec::new();
        while journal.in_flight() > 0 {
            disk.wait(&mut completions);
            for completion in completions.drain(..) {
                journal.on_completion(&mut disk, completion).expect("the disk is good");
            }
        }
        assert_eq!(journal.staged_bytes(), 0, "something is left to be written");
    };
    repeat(flush, |()| {
        let mut journal = journal.borrow_mut();
        for _ in 0..RECORDS {
            index += 1;
            black_box(journal.append_entry(GroupId(1), 1, index, 0, black_box(&value)));
        }
    });
}

/// Three nodes whose disks and network take no time.
struct Nodes {
    nodes: Vec<Raft>,
    messages: Vec<Message>,
}

impl Nodes {
    /// With the first node as leader.
    fn new() -> Nodes {
        let founding = Configuration::of((1..=3).map(NodeId));
        let node = |id| Raft::new(Config::new(NodeId(id), founding.clone(), id), Restored::default());
        let nodes = (1..=3).map(|id| node(id).expect("a good configuration")).collect();
        let mut nodes = Nodes { nodes, messages: Vec::new() };
        while !nodes.nodes[0].is_leader() {
            nodes.nodes[0].tick();
            nodes.settle();
        }
        nodes
    }

    /// Until nobody has anything more to say.
    fn settle(&mut self) {
        loop {
            for node in &mut self.nodes {
                while node.has_ready() {
                    let mut ready = node.take_ready();
                    if let Some(state) = ready.hard_state {
                        node.on_hard_state_durable(state.term);
                    }
                    if let Some(last) = ready.entries.last() {
                        node.on_durable(last.term, last.index);
                    }
                    self.messages.append(&mut ready.messages);
                    self.messages.append(&mut ready.messages_after_durable);
                    node.release_memory(node.applied_index());
                }
            }
            if self.messages.is_empty() {
                return;
            }
            for message in std::mem::take(&mut self.messages) {
                let to = message.to.0 as usize - 1;
                self.nodes[to].step(message).expect("nobody says anything impossible");
            }
        }
    }
}

fn raft_round() {
    let mut nodes = Nodes::new();
    let payload = Bytes::from(value());
    repeat(
        || payload.clone(),
        |payload| {
            let (_, index) = nodes.nodes[0].propose(payload).expect("the leader takes proposals");
            nodes.settle();
            assert_eq!(nodes.nodes[0].applied_index(), index, "three nodes agree at once");
        },
    );
}

/// The instructions of one operation, or why they cannot be counted.
fn count(name: &str) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*counted*", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["only", name])
        .output()
        .map_err(|error| format!("cannot start valgrind: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse::<u64>().ok());
    match collected {
        Some(collected) if output.status.success() && collected > 0 => Ok(collected / u64::from(TIMES)),
        _ => Err(format!("valgrind counted nothing for {name}; it said:\n{said}").into()),
    }
}

fn baselines_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt")
}

/// The counts of the baselines' file by name.
fn baselines(text: &str) -> Result<BTreeMap<&str, u64>, String> {
    let count = |line| {
        let (name, count) = str::split_once(line, ' ')?;
        Some((name, count.trim().parse().ok()?))
    };
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| count(line).ok_or_else(|| format!("{line:?} is no name and count"))).collect()
}

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    bless: bool,
    /// How many per cent more than the baseline are no finding.
    tolerance: f64,
    json: Option<PathBuf>,
}

fn wanted(mut words: impl Iterator<Item = String>) -> Result<Wanted, Box<dyn Error>> {
    let mut wanted = Wanted::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--bless" => wanted.bless = true,
            "--tolerance" => {
                wanted.tolerance = value()?.parse().map_err(|_| "--tolerance needs a number of per cent")?
            }
            "--json" => wanted.json = Some(value()?.into()),
            _ => return Err(format!("{word} is none of only, --bless, --tolerance, --json").into()),
        }
    }
    Ok(wanted)
}

/// Counts all; whether every count is within its bound.
fn compare(wanted: &Wanted) -> Result<bool, Box<dyn Error>> {
    let path = baselines_file();
    let text = std::fs::read_to_string(&path)?;
    let known = baselines(&text)?;
    let mut blessed: String =
        text.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    let (mut kept, mut results) = (true, Vec::new());
    if let Some(gone) = known.keys().find(|known| FUNCTIONS.iter().all(|(name, ..)| name != *known)) {
        return Err(format!("{} has a count of {gone}, which is no function here", path.display()).into());
    }
    for (name, what, _) in FUNCTIONS {
        let count = count(name)?;
        writeln!(blessed, "{name:<16}{count}")?;
        let baseline = known.get(name).copied();
        let most = baseline.map(|baseline| (baseline as f64 * (1.0 + wanted.tolerance / 100.0)) as u64);
        let change = baseline.map_or(String::new(), |baseline| {
            format!("{:+.1} % against {baseline}", (count as f64 / baseline as f64 - 1.0) * 100.0)
        });
        let verdict = match most {
            None => "NO BASELINE",
            Some(most) if count > most => "MORE THAN BEFORE",
            Some(_) => "",
        };
        kept &= verdict.is_empty() || wanted.bless;
        println!("{name:<16}{count:>9}  {change:<24} {verdict:<17} {what}");
        results.push(json!({"name": name, "what": what, "count": count, "baseline": baseline, "most": most}));
    }
    if let Some(path) = &wanted.json {
        std::fs::write(path, serde_json::to_string_pretty(&json!({"instructions": results}))? + "\n")?;
    }
    if wanted.bless {
        std::fs::write(&path, blessed)?;
    }
    Ok(kept)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [only, name] = &words[..]
        && only == "only"
    {
        return match FUNCTIONS.iter().find(|(known, ..)| known == name) {
            Some((_, _, function)) => {
                function();
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("instructions: there is no function {name:?}");
                ExitCode::from(2)
            }
        };
    }
    match wanted(words.into_iter()).and_then(|wanted| compare(&wanted)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::from(2)
        }
    }
}
