//! Writes the seeds: a few small inputs for each target, from the encoders themselves, so that the fuzzer need not find
//! out what a frame or a flush looks like. `cargo run --manifest-path fuzz/Cargo.toml --example seeds`; the same each time.

use bytes::{Bytes, BytesMut};
use lance_fuzz::journal::{CHAINED, FILE_BYTES, FIXED, IDENTITY, NEXT_FILE};
use lnc_broker::catalog::Catalog;
use lnc_broker::command::{Command, EntryBuilder};
use lnc_broker::partitions::PartitionGroup;
use lnc_log::checkpoint::{Checkpoint, CheckpointWriter, GroupCheckpoint};
use lnc_log::disk::{BLOCK, Disk, MemoryDisk};
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalStart};
use lnc_log::segment::{Digest, EpochStart, IndexEntry, PartitionKey, PartitionState, SegmentState};
use lnc_protocol::batch::BatchHeader;
use lnc_protocol::message::TopicOptions;
use lnc_protocol::{BatchBuilder, Codec, frame};
use lnc_raft::{AppendReply, Body, Entry, EntryKind, Message, NodeId};
use lnc_replication::formation::{Channel, Cluster, Formats, Greeting, Identity};
use lnc_replication::notice::{NodeFacts, OwnAddresses, PeerNotice, Traffic};
use lnc_replication::trace::TraceNotice;
use lnc_replication::transfer::{Offer, Part, Range, Transfer, TransferBody};
use lnc_replication::wire::{PeerMessage, put_frame, put_message};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const KEY: PartitionKey = PartitionKey { topic_id: 7, partition: 1 };

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let seeds = Seeds(root.join("seeds"));
    let vectors = root.join("../lnc-protocol/tests/vectors");
    frames(&seeds, &vectors)?;
    batches(&seeds, &vectors)?;
    peers(&seeds)?;
    journal(&seeds)?;
    checkpoint(&seeds)?;
    states(&seeds)?;
    segments(&seeds)?;
    config(&seeds)
}

struct Seeds(PathBuf);

impl Seeds {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
        let folder = self.0.join(target);
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join(name), bytes)?)
    }
}

/// The vectors of a file: names and bytes.
fn vectors(path: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).map(|(name, hex)| Ok((name.to_owned(), bytes_of(hex)?))).collect()
}

fn bytes_of(hex: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> =
        hex.bytes().filter_map(|digit| (digit as char).to_digit(16)).map(|digit| digit as u8).collect();
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or_default()).collect())
}

/// Each whole frame, and its opcode and body alone.
fn frames(seeds: &Seeds, folder: &Path) -> Result<()> {
    for file in ["requests", "replies"] {
        for (name, bytes) in vectors(&folder.join(file).with_extension("txt"))? {
            seeds.write("frames", &format!("{file}-{name}"), &bytes)?;
            if let Some(found) = frame::decode(&mut BytesMut::from(&bytes[..]), 1 << 20)? {
                let body = [&[found.header.opcode], &found.body[..]].concat();
                seeds.write("frames", &format!("{file}-{name}-body"), &body)?;
            }
        }
    }
    Ok(())
}

fn batches(seeds: &Seeds, folder: &Path) -> Result<()> {
    for (name, bytes) in vectors(&folder.join("batches.txt"))? {
        seeds.write("batches", &name, &bytes)?;
    }
    Ok(())
}

fn messages() -> Vec<(&'static str, Body)> {
    let entry = |index, kind| Entry { term: 3, index, kind, payload: Bytes::from_static(b"payload") };
    let entries = vec![entry(8, EntryKind::Normal), entry(9, EntryKind::Empty)];
    vec![
        ("pre-vote", Body::PreVote { last_index: 1, last_term: 2, round: 3 }),
        ("pre-vote-reply", Body::PreVoteReply { round: 3, granted: true }),
        ("vote", Body::Vote { last_index: 1, last_term: 2, transfer: true }),
        ("vote-reply", Body::VoteReply { granted: false }),
        ("append", Body::Append { prev_index: 7, prev_term: 2, commit: 6, entries }),
        ("accepted", Body::AppendReply(AppendReply::Accepted { match_index: 9 })),
        (
            "rejected",
            Body::AppendReply(AppendReply::Rejected { prev_index: 7, hint_index: 4, hint_term: 2, last_index: 5 }),
        ),
        ("heartbeat", Body::Heartbeat { commit: 5, leader_commit: 7, round: 1 }),
        ("heartbeat-reply", Body::HeartbeatReply { slow: true, round: 1 }),
        ("state-needed", Body::StateNeeded { index: 7, term: 2 }),
        ("timeout-now", Body::TimeoutNow),
        ("read-index", Body::ReadIndex { ctx: 4 }),
        ("read-index-reply", Body::ReadIndexReply { ctx: 4, index: None }),
    ]
}

fn transfers() -> Vec<(&'static str, TransferBody)> {
    let bytes = Bytes::from_static(b"bytes");
    let state = Range { part: Part::State { checkpoint: 3, position: 100 }, max_bytes: 4096 };
    let records = Range { part: Part::Records { key: KEY, offset: 70 }, max_bytes: 4096 };
    let entry = Entry { term: 3, index: 8, kind: EntryKind::Normal, payload: bytes.clone() };
    let offer = Offer {
        checkpoint: 3,
        applied_index: 70,
        applied_term: 2,
        configuration: Bytes::from_static(b"members"),
        state_len: 500,
    };
    vec![
        ("ask-state", TransferBody::AskState),
        ("state", TransferBody::State { offer: Some(offer) }),
        ("ask-state-range", TransferBody::AskRange(state)),
        ("ask-records", TransferBody::AskRange(records)),
        ("range", TransferBody::Range { range: records, bytes: Some(bytes) }),
        ("range-gone", TransferBody::Range { range: state, bytes: None }),
        ("ask-entries", TransferBody::AskEntries { wanted: vec![(8, 3), (9, 3)] }),
        (
            "entries",
            TransferBody::Entries { commit: 9, committed: vec![(8, 3), (9, 4)], entries: vec![entry], first_index: 2 },
        ),
    ]
}

fn peers(seeds: &Seeds) -> Result<()> {
    let mut all = BytesMut::new();
    for (name, body) in messages() {
        let mut out = BytesMut::new();
        let message = Message { from: NodeId(1), to: NodeId(2), term: 9, body };
        put_message(&mut out, &PeerMessage::Raft(GroupId(2), message));
        put_frame(&mut all, |frame| frame.extend_from_slice(&out));
        seeds.write("peers", name, &out)?;
    }
    for (name, body) in transfers() {
        let mut out = BytesMut::new();
        let transfer = Transfer { from: NodeId(1), to: NodeId(2), group: GroupId(2), body };
        put_message(&mut out, &PeerMessage::Transfer(transfer));
        put_frame(&mut all, |frame| frame.extend_from_slice(&out));
        seeds.write("peers", name, &out)?;
    }
    let (from, to, group) = (NodeId(1), NodeId(2), GroupId(2));
    let notice = TraceNotice { from, to, group, term: 9, index: 8, trace_id: 7, span_id: 6 };
    let mut out = BytesMut::new();
    put_message(&mut out, &PeerMessage::Trace(notice));
    put_frame(&mut all, |frame| frame.extend_from_slice(&out));
    seeds.write("peers", "trace-notice", &out)?;
    let mut out = BytesMut::new();
    let facts = NodeFacts::of_build(Some(1 << 40), Traffic::default());
    let address = |port: u16| format!("node-1.example:{port}");
    let addresses = OwnAddresses { client: address(1992), peer: address(1993), http: address(1994) };
    let notice = PeerNotice { from, to, wall_ms: 1_700_000_000_000, drains: false, facts, addresses };
    put_message(&mut out, &PeerMessage::Notice(notice));
    put_frame(&mut all, |frame| frame.extend_from_slice(&out));
    seeds.write("peers", "clock-notice", &out)?;
    seeds.write("peers", "frames", &all)?;
    let members = [(NodeId(1), 11), (NodeId(2), 12), (NodeId(3), 13)].into();
    let identity = Identity { node: NodeId(1), incarnation: 11, cluster: Some(Cluster::found(members, 3)) };
    let (channel, refusal, formats) = (Channel::Control, Some("no".to_owned()), Formats::BUILD);
    let greeting = Greeting { channel, identity, refusal, formats, run: 5, twin: 6 };
    let mut out = BytesMut::new();
    greeting.encode(&mut out);
    seeds.write("peers", "greeting", &out)
}

/// Lets everything on its way to the disk arrive.
fn settle(
    disk: &mut MemoryDisk,
    mut take: impl FnMut(&mut MemoryDisk, lnc_log::disk::Completion) -> Result<()>,
) -> Result<()> {
    loop {
        let mut done = Vec::new();
        disk.wait(&mut done);
        if done.is_empty() {
            return Ok(());
        }
        for completion in done {
            take(disk, completion)?;
        }
    }
}

/// A journal of several files and groups, as the flushes of its files: once to be taken as they are, once to be put
/// right after a change.
fn journal(seeds: &Seeds) -> Result<()> {
    let mut disk = MemoryDisk::new();
    let config = JournalConfig { file_bytes: FILE_BYTES, max_in_flight: 2, ..JournalConfig::new(IDENTITY) };
    let (mut journal, _) = Journal::open(&mut disk, config, JournalStart(0))?;
    for index in 1..=12u64 {
        journal.append_entry(GroupId(1), 2, index, 0, &vec![index as u8; 300 * (index as usize % 3)]);
        journal.append_entry(GroupId(2), 1 + index / 6, index - index / 6, 1, b"overwritten now and then");
        if index % 4 == 0 {
            journal.append_hard_state(GroupId(1), index, Some(2));
        }
        if index == 9 {
            journal.append_checkpoint(GroupId(1), 2, 9);
        }
        journal.flush(&mut disk);
        settle(&mut disk, |disk, completion| Ok(journal.on_completion(disk, completion).map(drop)?))?;
    }
    for (name, flags) in [("as-it-is", 0), ("fixed", FIXED), ("chained", FIXED | CHAINED)] {
        let mut input = vec![0];
        for (number, path) in disk.paths().iter().enumerate() {
            let content = disk.file(path).unwrap_or_default();
            let mut next = if number > 0 { NEXT_FILE } else { 0 };
            for block in content.chunks(BLOCK).filter(|block| block.starts_with(b"LNCJ")) {
                let end = block.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                input.push(flags | std::mem::take(&mut next));
                input.extend_from_slice(&(end as u16).to_le_bytes());
                input.extend_from_slice(&block[..end]);
            }
        }
        seeds.write("journal", name, &input)?;
    }
    Ok(())
}

fn catalog() -> Bytes {
    let mut catalog = Catalog::default();
    let options = TopicOptions { max_age_ms: Some(1), max_bytes: Some(2), segment_bytes: None };
    let _ = catalog.create("words", 3, 3, &options, 5);
    let _ = catalog.create("more.words", 1, 3, &TopicOptions::default(), 6);
    catalog.delete("words");
    catalog.init_producer();
    let mut out = BytesMut::new();
    catalog.encode(&mut out);
    out.freeze()
}

fn batch() -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None).with_producer(5, 0, 0);
    let _ = builder.append(1, Some(b"key"), Some(b"value"), &[("header", Some(b"x"))]);
    builder.build()
}

fn partitions() -> Result<Bytes> {
    let mut group = PartitionGroup::default();
    group.advance_clock(9);
    group.create(KEY, Some(1 << 20));
    group.append(KEY, &BatchHeader::parse(&batch())?).map_err(|refusal| format!("{refusal:?}"))?;
    group.create(PartitionKey { topic_id: 8, partition: 0 }, None);
    group.delete(PartitionKey { topic_id: 8, partition: 0 });
    let mut out = BytesMut::new();
    group.encode(&mut out);
    Ok(out.freeze())
}

fn partition_state() -> PartitionState {
    let segment = |base_offset, end_offset, sealed| SegmentState {
        base_offset,
        end_offset,
        len: 500,
        max_timestamp: 3,
        first_append_ms: 4,
        last_append_ms: 5,
        sealed,
        digest: Some(Digest::default()),
        epochs: vec![EpochStart { offset: base_offset, epoch: 1 }, EpochStart { offset: end_offset - 1, epoch: 7 }],
        index: if sealed {
            Vec::new()
        } else {
            vec![IndexEntry { offset: base_offset, position: 0, max_timestamp: 3, digest: Digest::default() }]
        },
    };
    let segments = vec![segment(10, 20, true), segment(20, 40, false)];
    PartitionState { log_start_offset: 11, log_end_offset: 40, segments }
}

fn entry() -> Bytes {
    let mut entry = EntryBuilder::default();
    entry.push(&Command::CreatePartition { key: KEY, segment_bytes: None });
    entry.push(&Command::Append { key: KEY, batch: batch() });
    entry.push(&Command::Trim { key: KEY, log_start_offset: 4 });
    entry.push(&Command::CreateTopic {
        name: "words".to_owned(),
        partitions: 3,
        data_groups: 3,
        options: TopicOptions::default(),
    });
    entry.push(&Command::InitProducer);
    entry.finish(9)
}

fn states(seeds: &Seeds) -> Result<()> {
    let all = [catalog(), partitions()?, partition_state().encode().into(), entry()];
    for (kind, (name, bytes)) in ["catalog", "partitions", "partition-state", "entry"].iter().zip(all).enumerate() {
        seeds.write("states", name, &[&[kind as u8], &bytes[..]].concat())?;
    }
    Ok(())
}

fn checkpoint(seeds: &Seeds) -> Result<()> {
    let group = |group, state| GroupCheckpoint {
        group: GroupId(group),
        term: 3,
        vote: (group == 0).then_some(2),
        applied_index: 9,
        applied_term: 2,
        configuration: Bytes::new(),
        state,
    };
    let groups = vec![group(0, catalog()), group(1, partitions()?)];
    let (mut disk, mut writer) = (MemoryDisk::new(), CheckpointWriter::new());
    disk.run(lnc_log::disk::Op::CreateDir { path: "checkpoint".to_owned() })?;
    writer.start(&mut disk, Checkpoint { number: 5, journal_file: 2, facts: None, groups });
    settle(&mut disk, |disk, completion| Ok(writer.on_completion(disk, completion).map(drop)?))?;
    let file = disk.paths().first().and_then(|path| disk.file(path)).unwrap_or_default();
    seeds.write("checkpoint", "two-groups", &file)
}

/// Batches by their lengths, then changes: kind, file, position, mask.
fn segments(seeds: &Seeds) -> Result<()> {
    let batches = [11, 10, 100, 80, 5, 200, 40, 0, 255, 90, 60, 30];
    let changes: [(&str, &[[u8; 5]]); 4] = [
        ("unchanged", &[]),
        ("a-byte-of-a-file", &[[1, 0, 90, 0, 4], [1, 1, 4, 0, 1]]),
        ("behind-the-checksum", &[[2, 0, 70, 0, 4], [2, 1, 56, 0, 1]]),
        ("state-and-length", &[[0, 0, 41, 0, 1], [3, 2, 100, 0, 0]]),
    ];
    for (name, changes) in changes {
        seeds.write("segments", name, &[&batches[..], &changes.concat()].concat())?;
    }
    Ok(())
}

fn config(seeds: &Seeds) -> Result<()> {
    let node = |id| {
        let listen =
            format!("client = \"10.0.0.{id}:1992\"\npeer = \"10.0.0.{id}:1993\"\nhttp = \"10.0.0.{id}:1994\"\n");
        format!("[[cluster.nodes]]\nid = {id}\n{listen}")
    };
    let cluster = format!("[node]\nid = 2\n{}{}{}", node(1), node(2), node(3));
    seeds.write("config", "defaults", lance::config::default_toml().as_bytes())?;
    seeds.write("config", "cluster", cluster.as_bytes())?;
    seeds.write("config", "mistakes", b"[nodes]\nid = \"x\"\n[raft]\ntick_ms = 0\ntick = 5\n[log]\nlevel = \"loud\"\n")
}
