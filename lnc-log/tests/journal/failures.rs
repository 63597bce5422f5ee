//! Failing operations, a full disk, reads, and recycling.

use crate::harness::{History, config, open, settle, step};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::disk::{AlignedBuf, Disk, MemoryDisk, Op, Owner};
use lnc_log::journal::{Journal, JournalError, JournalStart, Location};
use std::io;

const FILE_BYTES: u64 = 8 * 4096;

fn started() -> (MemoryDisk, Journal, History) {
    let mut disk = MemoryDisk::new();
    let (journal, _) = open(&mut disk, config(FILE_BYTES, 2), 0);
    (disk, journal, History::default())
}

/// Append one entry of `len` bytes and wait until it is durable.
fn append(disk: &mut MemoryDisk, journal: &mut Journal, history: &mut History, index: u64, len: usize) {
    history.entry(journal, 1, 1, index, len);
    while journal.staged_bytes() > 0 {
        history.flush(journal, disk);
        settle(journal, disk).expect("healthy");
    }
    history.observe(journal);
    assert_eq!(history.durable, history.appended.len());
}

fn locations(history: &History, journal_start: u64) -> Vec<Location> {
    let state = history.state(history.appended.len(), journal_start);
    state[&1].entries.iter().map(|entry| entry.location).collect()
}

#[test]
fn a_failed_write_is_final() {
    let (mut disk, mut journal, mut history) = started();
    append(&mut disk, &mut journal, &mut history, 1, 10);
    disk.set_order(Order::Held);
    history.entry(&mut journal, 1, 1, 2, 10);
    history.flush(&mut journal, &mut disk);
    history.entry(&mut journal, 1, 1, 3, 10);
    history.flush(&mut journal, &mut disk);
    let mut failed = false;
    disk.inject(Some(Box::new(move |_, op| {
        let fail = matches!(op, Op::Write { .. }) && !failed;
        failed |= fail;
        fail.then(|| io::Error::from_raw_os_error(5))
    })));
    disk.release_all();
    let mut done = Vec::new();
    disk.reap(&mut done);
    assert_eq!(done.len(), 2);
    let mut results = done.into_iter().map(|completion| journal.on_completion(&mut disk, completion));
    let error = results.next().expect("two").expect_err("the write failed");
    assert!(matches!(&error, JournalError::WriteFailed { operation: "write", .. }) && !error.is_retriable());
    assert!(results.next().expect("two").is_ok());
    drop(results);
    assert_eq!(journal.durable(), 1, "nothing is durable behind a failed write");
    history.entry(&mut journal, 1, 1, 4, 10);
    assert!(!journal.can_flush() && journal.flush(&mut disk).is_none());
    assert!(disk.in_flight().is_empty());
}

#[test]
fn a_full_disk_stalls_flushes_until_there_is_space() {
    let (mut disk, mut journal, mut history) = started();
    disk.set_capacity(Some(FILE_BYTES + 4096));
    let mut index = 1;
    while !journal.is_full() || journal.can_flush() {
        history.entry(&mut journal, 1, 1, index, 3000);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("no space is no failure");
        index += 1;
        assert!(index < 20);
    }
    assert!(journal.staged_bytes() > 0 && journal.flush(&mut disk).is_none());
    settle(&mut journal, &mut disk).expect("no space is no failure");
    history.observe(&journal);
    assert!(history.durable < history.appended.len());

    // What is durable survives; and with space, the journal goes on where it was.
    let mut crashed = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = open(&mut crashed, config(FILE_BYTES, 2), 0);
    assert_eq!(history.matching(&recovered, 0), Some(history.durable));
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config(FILE_BYTES, 2), 0);
    let mut history = History::default();
    disk.set_capacity(Some(FILE_BYTES));
    for index in 1..=12 {
        history.entry(&mut journal, 1, 1, index, 3000);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("no space is no failure");
    }
    assert!(journal.is_full());
    assert_eq!(disk.used(), FILE_BYTES, "a file that did not fit takes no space");
    assert_eq!(journal.bytes(), FILE_BYTES);
    disk.set_capacity(None);
    for _ in 0..70 {
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    history.observe(&journal);
    assert!(!journal.is_full());
    assert_eq!(history.durable, history.appended.len());
}

/// Files that were released while the next one was being made wait behind it, and are complete.
#[test]
fn a_next_file_for_which_there_is_no_space_is_replaced_by_one_that_is_complete() {
    let (mut disk, mut journal, mut history) = started();
    let mut index = 0;
    while journal.current_file() < 4 {
        index += 1;
        append(&mut disk, &mut journal, &mut history, index, 3000);
    }
    disk.set_order(Order::Held);
    while journal.current_file() < 5 {
        index += 1;
        history.entry(&mut journal, 1, 1, index, 3000);
        history.flush(&mut journal, &mut disk);
        disk.release_all();
        step(&mut journal, &mut disk).expect("healthy");
    }
    // The next file is being zeroed, and stays so while the released ones get ready.
    assert_eq!(disk.in_flight().len(), 1, "the zeroes of the sixth file");
    journal.release(&mut disk, 5);
    while disk.in_flight().len() > 1 {
        disk.in_flight().iter().skip(1).for_each(|(number, _)| assert!(disk.release(*number)));
        step(&mut journal, &mut disk).expect("healthy");
    }
    // A quota counts as well.
    let zeroes =
        |_, op: &Op| matches!(op, Op::Write { durable: false, .. }).then(|| io::ErrorKind::QuotaExceeded.into());
    disk.inject(Some(Box::new(zeroes)));
    disk.set_order(Order::Immediate);
    disk.release_all();
    for _ in 0..8 {
        index += 1;
        history.entry(&mut journal, 1, 1, index, 3000);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("no space is no failure");
    }
    history.observe(&journal);
    assert_eq!(history.durable, history.appended.len(), "flushes go on");
    assert!(journal.current_file() > 5);
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = open(&mut disk, config(FILE_BYTES, 2), 5);
    assert_eq!(history.matching(&recovered, 5), Some(history.appended.len()));
}

#[test]
fn released_files_are_recycled_and_space_stays_bounded() {
    let (mut disk, mut journal, mut history) = started();
    let mut most = 0;
    for index in 1..=100 {
        append(&mut disk, &mut journal, &mut history, index, 3000);
        let current = journal.current_file();
        journal.release(&mut disk, current);
        settle(&mut journal, &mut disk).expect("healthy");
        assert_eq!(journal.first_file(), current);
        most = most.max(journal.bytes());
    }
    assert!(journal.current_file() > 12);
    assert!(most <= 4 * FILE_BYTES, "{most}");
    assert_eq!(disk.used(), journal.bytes());
    let start = journal.first_file();
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = open(&mut disk, config(FILE_BYTES, 2), start);
    assert_eq!(history.matching(&recovered, start), Some(100));
}

/// Whoever releases too much loses nothing that is not durable elsewhere: term and vote, above all.
#[test]
fn the_file_of_the_last_durable_flush_is_never_released() {
    let (mut disk, mut journal, mut history) = started();
    history.hard_state(&mut journal, 1, 7, Some(3));
    append(&mut disk, &mut journal, &mut history, 1, 7 * 4096 - 500);
    disk.set_order(Order::Held);
    history.entry(&mut journal, 1, 7, 2, 6000);
    while !journal.can_flush() {
        disk.release_all();
        step(&mut journal, &mut disk).expect("healthy");
    }
    history.flush(&mut journal, &mut disk);
    assert_eq!(journal.in_flight(), 1);
    journal.release(&mut disk, u64::MAX);
    assert_eq!((journal.first_file(), journal.current_file()), (1, 1));
    journal.read(&mut disk, 1, &locations(&history, 0)[..1]).expect("file 1 is still there");
    let mut crashed = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = open(&mut crashed, config(FILE_BYTES, 2), 0);
    assert_eq!(history.matching(&recovered, 0), Some(2));
}

#[test]
fn a_record_longer_than_a_file_gets_a_longer_file() {
    let (mut disk, mut journal, mut history) = started();
    for (index, len) in [(1, 10), (2, FILE_BYTES as usize * 3), (3, 10), (4, FILE_BYTES as usize + 1)] {
        append(&mut disk, &mut journal, &mut history, index, len);
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = open(&mut disk, config(FILE_BYTES, 2), 0);
    assert_eq!(history.matching(&recovered, 0), Some(4));
}

#[test]
fn reads_return_what_was_appended() {
    let (mut disk, mut journal, mut history) = started();
    for index in 1..=20 {
        append(&mut disk, &mut journal, &mut history, index, 100 + index as usize * 250);
    }
    let wanted = locations(&history, 0);
    for order in [Order::Immediate, Order::Seeded(3)] {
        disk.set_order(order);
        journal.read(&mut disk, 77, &wanted).expect("readable");
        let mut reads = settle(&mut journal, &mut disk).expect("healthy");
        let read = reads.pop().expect("one read");
        assert_eq!(read.ticket, 77);
        assert_eq!(read.result.expect("intact"), history.state(20, 0)[&1].entries);
    }
    disk.set_order(Order::Immediate);
    let staged = journal.append_entry(lnc_log::journal::GroupId(1), 1, 21, 0, b"staged");
    assert!(matches!(journal.read(&mut disk, 1, &[staged]), Err(JournalError::NotDurable { .. })));
    assert!(matches!(journal.read(&mut disk, 1, &[]), Err(JournalError::EmptyRead)));
}

#[test]
fn a_read_never_returns_damaged_or_other_bytes() {
    let (mut disk, mut journal, mut history) = started();
    append(&mut disk, &mut journal, &mut history, 1, 50);
    append(&mut disk, &mut journal, &mut history, 2, 50);
    let wanted = locations(&history, 0);
    let other = Location { sequence: 999, ..wanted[0] };
    journal.read(&mut disk, 1, &[other]).expect("started");
    let reads = settle(&mut journal, &mut disk).expect("healthy");
    assert!(matches!(reads[0].result, Err(JournalError::Damaged { .. })));
    let path = format!("journal/{:020}.journal", wanted[1].file);
    for byte in 0..u64::from(wanted[1].len) {
        disk.corrupt(&path, wanted[1].position + byte, 4);
        journal.read(&mut disk, byte, &wanted).expect("started");
        let reads = settle(&mut journal, &mut disk).expect("healthy");
        match &reads[0].result {
            Err(JournalError::Damaged { file, position, .. }) => {
                assert_eq!((*file, *position), (wanted[1].file, wanted[1].position));
            }
            other => panic!("byte {byte}: {other:?}"),
        }
        disk.corrupt(&path, wanted[1].position + byte, 4);
    }
    disk.inject(Some(Box::new(|_, op| matches!(op, Op::Read { .. }).then(|| io::Error::from_raw_os_error(5)))));
    journal.read(&mut disk, 5, &wanted).expect("started");
    let reads = settle(&mut journal, &mut disk).expect("a failed read is not fatal");
    assert!(matches!(&reads[0].result, Err(e @ JournalError::ReadFailed { .. }) if e.is_unreadable()));
}

#[test]
fn a_file_is_not_recycled_under_a_read() {
    let (mut disk, mut journal, mut history) = started();
    for index in 1..=12 {
        append(&mut disk, &mut journal, &mut history, index, 3000);
    }
    let first = locations(&history, 0)[0];
    disk.set_order(Order::Held);
    journal.read(&mut disk, 9, &[first]).expect("started");
    let current = journal.current_file();
    journal.release(&mut disk, current);
    assert_eq!(journal.first_file(), first.file);
    assert!(matches!(journal.read(&mut disk, 10, &[first]), Err(JournalError::Released { .. })));
    let (number, _) = disk.in_flight()[0];
    disk.release(number);
    let reads = step(&mut journal, &mut disk).expect("healthy");
    assert!(reads[0].result.is_ok());
    assert_eq!(journal.first_file(), current);
}

/// A failing sync while opening must not let recovered bytes pass for durable.
#[test]
fn a_failed_sync_while_opening_is_an_error() {
    let (mut disk, mut journal, mut history) = started();
    append(&mut disk, &mut journal, &mut history, 1, 50);
    let mut disk = disk.kill(0);
    disk.inject(Some(Box::new(|_, op| matches!(op, Op::Sync { .. }).then(|| io::Error::from_raw_os_error(5)))));
    let result = Journal::open(&mut disk, config(FILE_BYTES, 2), Default::default());
    assert!(matches!(result, Err(JournalError::WriteFailed { operation: "sync", .. })));
    assert_eq!(disk.name(), "memory");
}

/// A cache may give what a failed sync did not write: the sync of the next process says nothing of that.
#[test]
fn what_a_start_reads_is_on_the_disk_though_the_sync_of_the_start_before_failed() {
    let failing = |_, op: &Op| matches!(op, Op::Sync { .. }).then(|| io::Error::from_raw_os_error(5));
    let (mut disk, mut journal, mut history) = started();
    append(&mut disk, &mut journal, &mut history, 1, 10);
    disk.set_order(Order::Held);
    for index in 2..=3 {
        history.entry(&mut journal, 1, 1, index, 5000);
        history.flush(&mut journal, &mut disk);
    }
    // The process is gone when its writes are in a cache.
    let mut disk = disk.kill(u64::MAX);
    disk.set_order(Order::Immediate);
    disk.inject(Some(Box::new(failing)));
    assert!(Journal::open(&mut disk, config(FILE_BYTES, 2), JournalStart(0)).is_err());
    disk.inject(None);
    let mut disk = disk.kill(0);
    let (_, recovered) = open(&mut disk, config(FILE_BYTES, 2), 0);
    assert_eq!(history.matching(&recovered, 0), Some(3), "the cache has them");
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = open(&mut disk, config(FILE_BYTES, 2), 0);
    assert_eq!(history.matching(&recovered, 0), Some(3), "and so has the disk");
}

/// What is left of a spare's length after a failed sync is drawn with each one.
#[test]
fn a_spare_whose_sync_failed_is_filled_again() {
    for drawn in 0..4 {
        let (mut disk, mut journal, mut history) = started();
        draw(&mut disk, drawn);
        let failing = |_, op: &Op| matches!(op, Op::Sync { .. }).then(|| io::Error::from_raw_os_error(5));
        disk.inject(Some(Box::new(failing)));
        history.entry(&mut journal, 1, 1, 1, 10);
        history.flush(&mut journal, &mut disk);
        let error = settle(&mut journal, &mut disk).expect_err("the spare cannot be synced");
        assert!(matches!(error, JournalError::WriteFailed { operation: "sync", .. }), "{error}");
        disk.inject(None);
        let mut disk = disk.kill(0);
        let (mut journal, recovered) = open(&mut disk, config(FILE_BYTES, 2), 0);
        assert_eq!(history.matching(&recovered, 0), Some(1));
        let mut index = 1;
        while journal.current_file() < 2 {
            index += 1;
            append(&mut disk, &mut journal, &mut history, index, 3000);
        }
        let mut disk = disk.crash(CrashChoice::Nothing);
        let len = disk.file("journal/00000000000000000002.journal").map(|bytes| bytes.len() as u64);
        assert_eq!(len, Some(FILE_BYTES), "after {drawn} draws");
        let (_, recovered) = open(&mut disk, config(FILE_BYTES, 2), 0);
        assert_eq!(history.matching(&recovered, 0), Some(history.durable));
    }
}

/// Let the disk draw so many times what a failed sync leaves.
fn draw(disk: &mut MemoryDisk, times: u64) {
    let file = Owner::Journal.file(1 << 30);
    disk.run(Op::Open { file, path: "other".to_owned(), create: true, direct: false }).expect("open");
    for position in 0..times {
        let mut buf = AlignedBuf::with_capacity(1);
        buf.extend_from_slice(&[1]);
        disk.run(Op::Write { file, position, buf, durable: false }).expect("write");
        disk.inject(Some(Box::new(|_, _| Some(io::Error::from_raw_os_error(5)))));
        assert!(disk.run(Op::Sync { file }).is_err());
        disk.inject(None);
    }
}
