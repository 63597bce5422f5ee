//! Every byte of a small journal flipped, one at a time.

use crate::harness::{History, IDENTITY, config, open, settle};
use lnc_log::disk::MemoryDisk;
use lnc_log::disk::memory::CrashChoice;
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalError, JournalStart};

const FILE_BYTES: u64 = 4 * 4096;

fn path(file: u64) -> String {
    format!("journal/{file:020}.journal")
}

/// A flush: file, start, end of its records, end.
type Extent = (u64, u64, u64, u64);

/// A journal of two files, with the extents of its flushes. Unless `idle`, nothing attests the last flush.
fn build(config: &JournalConfig, idle: bool) -> (MemoryDisk, History, Vec<Extent>) {
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config.clone(), 0);
    let mut history = History::default();
    history.hard_state(&mut journal, 1, 1, Some(2));
    for index in 1..=5 {
        let len = if index == 2 { 5000 } else { 60 };
        history.entry(&mut journal, 1, 1, index, len);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    if idle {
        journal.mark_idle(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        let operations = disk.operations();
        journal.mark_idle(&mut disk);
        assert_eq!(disk.operations(), operations, "one mark is enough");
    }
    let mut flushes = Vec::new();
    for file in 1..=2 {
        let bytes = disk.file(&path(file)).expect("the file");
        let mut at = 0;
        while at < bytes.len() && bytes[at..].starts_with(b"LNCJ") {
            let body = u32::from_le_bytes([bytes[at + 48], bytes[at + 49], bytes[at + 50], bytes[at + 51]]) as usize;
            let end = at + 64 + body;
            flushes.push((file, at as u64, end as u64, end.next_multiple_of(4096) as u64));
            at = end.next_multiple_of(4096);
        }
    }
    assert_eq!(flushes.len(), 5 + usize::from(idle));
    assert!(flushes.iter().any(|f| f.0 == 2));
    (disk, history, flushes)
}

#[test]
fn no_flipped_byte_below_the_durable_mark_goes_unnoticed() {
    let config = config(FILE_BYTES, 2);
    let (mut disk, history, flushes) = build(&config, true);
    let (mark, attested) = flushes.split_last().expect("flushes");
    for file in 1..=2 {
        for position in 0..FILE_BYTES {
            let mask = 1 << (position % 8);
            let mut copy = disk.crash(CrashChoice::Nothing);
            assert!(copy.corrupt(&path(file), position, mask));
            let result = Journal::open(&mut copy, config.clone(), JournalStart(0));
            let hit = |flush: &&(u64, u64, u64, u64)| flush.0 == file && (flush.1..flush.3).contains(&position);
            let (_, recovered) = result.unwrap_or_else(|e| panic!("byte {position} of file {file}: {e}"));
            if let Some((_, start, _, end)) = attested.iter().find(hit) {
                let found: Vec<_> = recovered.damage.iter().map(|damage| (damage.file, damage.position)).collect();
                assert_eq!(found, [(file, *start)], "byte {position}");
                assert_eq!(lost(&history, &recovered), in_flush(&history, file, *start..*end), "byte {position}");
            } else {
                assert!(recovered.damage.is_empty(), "byte {position} of file {file}");
                assert_eq!(history.matching(&recovered, 0), Some(history.appended.len()));
                if hit(&mark) && position >= mark.1 + 4 {
                    assert!(recovered.torn_tail.is_some(), "byte {position} of file {file}");
                }
            }
        }
    }
}

/// The entries whose bytes are lost; all else must be as it was appended, hard states included.
fn lost(history: &History, recovered: &lnc_log::journal::Recovered) -> Vec<u64> {
    let expected = history.state(history.appended.len(), 0);
    let mut lost = Vec::new();
    for (group, expected) in &expected {
        let found = &recovered.groups[&GroupId(*group)];
        assert_eq!(found.hard_state, expected.hard_state);
        assert_eq!(found.entries.len(), expected.entries.len());
        for (found, expected) in found.entries.iter().zip(&expected.entries) {
            assert_eq!((found.term, found.index), (expected.term, expected.index));
            match found.damaged {
                true => lost.push(found.index),
                false => assert_eq!(found, expected),
            }
        }
    }
    lost
}

/// The entries whose records lie in this flush.
fn in_flush(history: &History, file: u64, flush: std::ops::Range<u64>) -> Vec<u64> {
    let state = history.state(history.appended.len(), 0);
    let within = |entry: &&lnc_log::journal::RecoveredEntry| {
        entry.location.file == file && flush.contains(&entry.location.position)
    };
    state.values().flat_map(|group| &group.entries).filter(within).map(|entry| entry.index).collect()
}

#[test]
fn flushes_that_are_lost_side_by_side_are_known_all_the_same() {
    let config = config(FILE_BYTES, 2);
    let (mut disk, history, flushes) = build(&config, true);
    for pair in flushes.windows(3) {
        let mut copy = disk.crash(CrashChoice::Nothing);
        for (file, start, ..) in &pair[..2] {
            copy.corrupt(&path(*file), start + 70, 0x10);
        }
        let (mut journal, recovered) = open(&mut copy, config.clone(), 0);
        assert_eq!(recovered.damage.iter().map(|damage| damage.flushes).sum::<u64>(), 2);
        assert_eq!(lost(&history, &recovered).len(), 2);
        // What is written from now on makes the lost entries good, for the next start too.
        let entries = history.state(history.appended.len(), 0)[&1].entries.clone();
        for entry in &entries {
            journal.append_entry(GroupId(1), entry.term, entry.index, entry.kind, &entry.payload);
        }
        journal.flush(&mut copy).expect("room");
        settle(&mut journal, &mut copy).expect("healthy");
        let mut copy = copy.crash(CrashChoice::Nothing);
        let (_, recovered) = open(&mut copy, config.clone(), 0);
        assert!(recovered.groups[&GroupId(1)].entries.iter().all(|entry| !entry.damaged));
    }
}

#[test]
fn damage_that_nobody_behind_it_knows_is_an_error() {
    let config = config(64 * 4096, 2);
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config.clone(), 0);
    let mut history = History::default();
    for index in 1..=12 {
        history.entry(&mut journal, 1, 1, index, 60);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    for flush in 1..=9 {
        assert!(disk.corrupt(&path(1), flush * 4096 + 70, 1));
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    match Journal::open(&mut disk, config, JournalStart(0)) {
        Err(JournalError::Damaged { file: 1, position: 4096, .. }) => {}
        other => panic!("{:?}", other.map(|o| o.1)),
    }
}

#[test]
fn damage_to_the_first_flush_of_the_start_file_is_known_from_the_next() {
    let config = config(FILE_BYTES, 2);
    let (mut disk, _, flushes) = build(&config, false);
    let (_, _, end, _) = *flushes.iter().find(|f| f.0 == 2).expect("second file");
    for position in 0..end {
        let mut copy = disk.crash(CrashChoice::Nothing);
        copy.corrupt(&path(2), position, 0x80);
        let (_, recovered) = open(&mut copy, config.clone(), 2);
        assert_eq!(recovered.damage.iter().map(|damage| (damage.file, damage.position)).collect::<Vec<_>>(), [(2, 0)]);
        let group = &recovered.groups[&GroupId(1)];
        assert_eq!(group.hard_state, Some((1, Some(2))), "byte {position}");
        assert_eq!(group.entries.iter().map(|e| (e.index, e.damaged)).collect::<Vec<_>>(), [(4, true), (5, false)]);
    }
}

#[test]
fn an_unattested_tail_is_cut_and_nothing_else() {
    let config = config(FILE_BYTES, 2);
    let (mut disk, mut history, flushes) = build(&config, false);
    let (file, start, end, _) = *flushes.last().expect("flushes");
    history.durable = 0;
    for position in start..end {
        let mut copy = disk.crash(CrashChoice::Nothing);
        copy.corrupt(&path(file), position, 1);
        let (_, recovered) = open(&mut copy, config.clone(), 0);
        assert_eq!(history.matching(&recovered, 0), Some(history.appended.len() - 1));
        if let Some(cut) = &recovered.torn_tail {
            assert_eq!((cut.file, cut.position), (file, start));
        } else {
            assert!(position < start + 4, "byte {position}: the cut was not reported");
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    let config = config(FILE_BYTES, 2);
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config.clone(), 0);
    let mut history = History::default();
    for index in 1..=9 {
        history.entry(&mut journal, 1, 1, index, 5000);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    assert!(journal.current_file() >= 4);
    for missing in 1..=3 {
        let mut copy = disk.crash(CrashChoice::Nothing);
        remove(&mut copy, &path(missing));
        let start = if missing == 1 { 1 } else { 0 };
        match Journal::open(&mut copy, config.clone(), JournalStart(start)) {
            Err(JournalError::MissingFile { file }) => assert_eq!(file, missing),
            other => panic!("file {missing}: {:?}", other.map(|o| o.1)),
        }
    }
}

/// A write that the disk lost leaves what a recycled file held before: whole flushes, but of another file.
#[test]
fn the_earlier_life_of_a_recycled_file_does_not_pass_for_its_content() {
    let config = config(FILE_BYTES, 2);
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config.clone(), 0);
    let mut history = History::default();
    let mut lives = Vec::new();
    for index in 1..=12 {
        history.entry(&mut journal, 1, 1, index, 5000);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        let current = journal.current_file();
        journal.release(&mut disk, current);
        settle(&mut journal, &mut disk).expect("healthy");
        lives.push((current, disk.file(&path(current)).expect("the file")));
    }
    let (start, now) = lives.pop().expect("files");
    let earlier = lives.iter().find(|(file, bytes)| *file < start && bytes[..4] == now[..4]).expect("an earlier file");
    for (position, (a, b)) in now.iter().zip(&earlier.1).enumerate() {
        if a != b {
            disk.corrupt(&path(start), position as u64, a ^ b);
        }
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    match Journal::open(&mut disk, config, JournalStart(start)) {
        Err(JournalError::Damaged { file, position: 0, .. }) => assert_eq!(file, start),
        other => panic!("{:?}", other.map(|o| o.1)),
    }
}

fn remove(disk: &mut MemoryDisk, path: &str) {
    use lnc_log::disk::{Disk, Op};
    disk.run(Op::Remove { path: path.to_owned() }).expect("remove");
}

#[test]
fn another_nodes_journal_is_refused() {
    let config = config(FILE_BYTES, 2);
    let (mut disk, ..) = build(&config, true);
    let theirs = JournalConfig { identity: 99, ..config };
    let mut copy = disk.crash(CrashChoice::Nothing);
    match Journal::open(&mut copy, theirs, JournalStart(0)) {
        Err(JournalError::Foreign { file: 1, expected: 99, .. }) => {}
        other => panic!("{:?}", other.map(|o| o.1)),
    }
}

/// A payload that holds, at block boundaries, flushes which call everything durable, must not turn a torn tail into
/// damage. They would only pass if their author knew the journal's identity.
#[test]
fn a_payload_cannot_pass_for_a_flush() {
    let forged = build(&config(FILE_BYTES, 2), true).0.file(&path(1)).expect("the file");
    let open_damaged = |identity| {
        let ours = JournalConfig { identity, ..config(16 * 4096, 2) };
        let mut disk = MemoryDisk::new();
        let (mut journal, _) = open(&mut disk, ours.clone(), 0);
        // Fills the first block, behind the header and a record of no copies, so that the payload of the next record has
        // its 4058th byte on a block boundary.
        journal.append_entry(GroupId(1), 1, 1, 0, &[0; 4096 - 64 - 22 - 38]);
        journal.append_entry(GroupId(1), 1, 2, 0, &forged[38..]);
        journal.flush(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        assert!(disk.corrupt(&path(1), 100, 1));
        let mut disk = disk.crash(CrashChoice::Nothing);
        Journal::open(&mut disk, ours, JournalStart(0)).map(|(_, recovered)| recovered)
    };
    assert!(!matches!(open_damaged(IDENTITY), Ok(found) if found.damage.is_empty()), "the forgery is no good");
    let recovered = open_damaged(IDENTITY + 1).expect("a torn tail");
    assert!(recovered.groups.is_empty() && recovered.torn_tail.is_some());
}
