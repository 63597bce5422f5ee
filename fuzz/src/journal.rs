//! Journal files of any content: recovery ends, with an error or with a journal that works and recovers the same again.
//!
//! The input is a start file and a list of flushes, each with a byte of [flags](FIXED) and its bytes, which are placed
//! on block boundaries.

use crate::input::{Input, put, store};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{BLOCK, Disk, MemoryDisk};
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalRead, JournalStart, Recovered};

/// Whose journal it is.
pub const IDENTITY: u64 = 0x1234_5678_9abc_def0;
/// Length of the journal's own files in bytes.
pub const FILE_BYTES: u64 = 32 << 10;
/// Flag: the flush's lengths, counts and checksums are put right.
pub const FIXED: u8 = 1;
/// Flag: it gets the numbers that follow those of the one before.
pub const CHAINED: u8 = 2;
/// Flag: it begins the next file.
pub const NEXT_FILE: u8 = 4;
/// Flag: it leaves out a number of files or of flushes before it.
pub const SKIP: u8 = 8;

/// Most files that one input makes, and most bytes in one.
const MAX_FILES: u64 = 6;
const MAX_FILE: usize = 96 << 10;
/// Lengths in bytes, and the magic number, of the journal's format.
const HEADER: usize = 64;
const RECORD_HEAD: usize = 21;
const MAGIC: &[u8] = b"LNCJ";

/// Numbers of the next flush.
struct Chain {
    file: u64,
    number: u64,
    sequence: u64,
}

/// See the module.
pub fn run(data: &[u8]) {
    let mut disk = MemoryDisk::new();
    let start = lay_out(data, &mut disk);
    let config = JournalConfig { file_bytes: FILE_BYTES, max_in_flight: 2, ..JournalConfig::new(IDENTITY) };
    let Ok((mut journal, recovered)) = Journal::open(&mut disk, config.clone(), start) else { return };
    assert_read_back(&mut journal, &mut disk, &recovered);
    let own = GroupId(u32::MAX);
    if recovered.groups.contains_key(&own) {
        return;
    }
    journal.append_hard_state(own, 7, Some(1));
    let flush = journal.flush(&mut disk).expect("an open journal takes a flush");
    settle(&mut journal, &mut disk);
    assert!(journal.durable() >= flush, "the flush is durable");
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, mut again) = Journal::open(&mut disk, config, start).expect("what was recovered once is recovered again");
    assert_eq!(again.groups.remove(&own).and_then(|group| group.hard_state), Some((7, Some(1))));
    assert_eq!(again.groups, recovered.groups);
}

/// Makes the files of an input; returns where recovery starts.
fn lay_out(data: &[u8], disk: &mut MemoryDisk) -> JournalStart {
    let mut input = Input(data);
    let start = JournalStart((input.byte() % 4).into());
    let mut chain = Chain { file: 1, number: 1, sequence: 1 };
    let mut content = Vec::new();
    while !input.is_empty() && chain.file <= MAX_FILES {
        let flags = input.byte();
        let skip = u64::from(flags & SKIP != 0);
        if flags & NEXT_FILE != 0 {
            close(disk, chain.file, &mut content);
            chain.file += 1 + skip;
        } else {
            chain.number += skip;
        }
        let mut flush = input.chunk().to_vec();
        if flags & CHAINED != 0 {
            link(&mut flush, &mut chain);
        }
        if flags & FIXED != 0 {
            seal(&mut flush, (flags & CHAINED != 0).then_some(&mut chain.sequence));
        }
        flush.resize(flush.len().next_multiple_of(BLOCK), 0);
        if content.len() + flush.len() <= MAX_FILE {
            content.extend_from_slice(&flush);
        }
    }
    close(disk, chain.file, &mut content);
    start
}

fn close(disk: &mut MemoryDisk, file: u64, content: &mut Vec<u8>) {
    content.resize(content.len().max(FILE_BYTES as usize), 0);
    store(disk, "journal", &format!("{file:020}.journal"), content);
    content.clear();
}

/// Gives a flush its file and number.
fn link(flush: &mut [u8], chain: &mut Chain) {
    put(flush, 8, &IDENTITY.to_le_bytes());
    put(flush, 24, &chain.number.to_le_bytes());
    put(flush, 40, &chain.file.to_le_bytes());
    chain.number += 1;
}

/// Puts lengths, counts and checksums of a flush right, and the sequence of its records if it is given.
fn seal(flush: &mut [u8], mut sequence: Option<&mut u64>) {
    if flush.len() < HEADER {
        return;
    }
    let (header, body) = flush.split_at_mut(HEADER);
    let (mut at, mut records) = (0, 0u32);
    while body.len() - at >= RECORD_HEAD {
        let rest = &mut body[at..];
        let mut len = [0; 4];
        len.copy_from_slice(&rest[..4]);
        let len = (u32::from_le_bytes(len) as usize).saturating_add(8);
        let len = if (RECORD_HEAD..=rest.len()).contains(&len) { len } else { rest.len() };
        put(rest, 0, &(len as u32 - 8).to_le_bytes());
        if let Some(next) = &mut sequence {
            put(rest, 8, &next.to_le_bytes());
            **next += 1;
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&rest[..4]);
        crc.update(&rest[8..len]);
        put(rest, 4, &crc.finalize().to_le_bytes());
        at += len;
        records += 1;
    }
    put(header, 0, MAGIC);
    put(header, 4, &2u16.to_le_bytes());
    put(header, 48, &(at as u32).to_le_bytes());
    put(header, 52, &records.to_le_bytes());
    let crc = crc32fast::hash(&header[..60]);
    put(header, 60, &crc.to_le_bytes());
    // What is left after the last record is padding.
    body[at..].fill(0);
}

/// The entries of a group follow one another, and can be read from where they are said to lie.
fn assert_read_back(journal: &mut Journal, disk: &mut MemoryDisk, recovered: &Recovered) {
    for group in recovered.groups.values() {
        assert!(group.entries.windows(2).all(|pair| pair[0].index.checked_add(1) == Some(pair[1].index)));
        // Indexes count from 1. Recovery takes an entry below that for one that a checkpoint covers, without its payload.
        if group.entries.first().is_none_or(|entry| entry.index == 0) {
            continue;
        }
        // Of a lost entry only its name is known.
        let here: Vec<_> = group.entries.iter().filter(|entry| !entry.damaged).cloned().collect();
        if here.is_empty() {
            continue;
        }
        let locations: Vec<_> = here.iter().map(|entry| entry.location).collect();
        journal.read(disk, 1, &locations).expect("what was recovered is durable");
        let reads = settle(journal, disk);
        assert_eq!(reads[0].result.as_ref().expect("what was recovered is readable"), &here);
    }
}

fn settle(journal: &mut Journal, disk: &mut MemoryDisk) -> Vec<JournalRead> {
    let mut reads = Vec::new();
    loop {
        let mut done = Vec::new();
        disk.wait(&mut done);
        if done.is_empty() {
            return reads;
        }
        for completion in done {
            reads.extend(journal.on_completion(disk, completion).expect("a healthy disk"));
        }
    }
}
