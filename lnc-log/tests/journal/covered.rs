//! Entries that a checkpoint covers come back without their payloads, and can still be read.

use crate::harness::config;
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::journal::{Covered, GroupId, Journal, JournalStart};
use std::collections::BTreeMap;

const GROUP: GroupId = GroupId(3);

fn settle(disk: &mut MemoryDisk, journal: &mut Journal) -> Vec<lnc_log::journal::JournalRead> {
    let (mut done, mut reads) = (Vec::new(), Vec::new());
    loop {
        disk.reap(&mut done);
        if done.is_empty() {
            return reads;
        }
        for completion in done.drain(..) {
            reads.extend(journal.on_completion(disk, completion).expect("healthy"));
        }
    }
}

#[test]
fn covered_entries_cost_no_memory_and_can_be_read() {
    let mut disk = MemoryDisk::new();
    let config = config(16 * 4096, 2);
    let (mut journal, _) = Journal::open(&mut disk, config.clone(), JournalStart(0)).expect("a fresh journal");
    for index in 1..=6u8 {
        journal.append_entry(GROUP, 1, index.into(), 1, &[index; 100]);
        journal.flush(&mut disk);
        settle(&mut disk, &mut journal);
    }
    drop(journal);
    let covered = BTreeMap::from([(GROUP, Covered { index: 4, term: 1, applied_term: 1 })]);
    let mut disk = disk.crash(lnc_log::disk::memory::CrashChoice::Nothing);
    let (mut journal, recovered) =
        Journal::open_above(&mut disk, config, JournalStart(0), JournalStart(0), &covered).expect("an intact journal");
    let entries = &recovered.groups[&GROUP].entries;
    assert_eq!(entries.iter().map(|e| e.payload.len()).collect::<Vec<_>>(), [0, 0, 0, 0, 100, 100]);
    assert_eq!(
        entries.iter().map(|e| (e.term, e.index)).collect::<Vec<_>>(),
        (1..=6).map(|i| (1, i)).collect::<Vec<_>>()
    );

    journal.read(&mut disk, 9, &[entries[1].location]).expect("it is still there");
    let reads = settle(&mut disk, &mut journal);
    let read = reads[0].result.as_ref().expect("intact");
    assert_eq!((read[0].index, &read[0].payload[..]), (2, &[2; 100][..]));
}
