//! A scripted run, stopped at every disk operation, with every choice of what the disk kept.

use crate::harness::{History, config, open, settle, step};
use lnc_log::checkpoint::{Checkpoint, CheckpointWriter, GroupCheckpoint, load_latest};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::disk::{Disk, MemoryDisk, Owner};
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalStart, MARK_FORMAT};

const FILE_BYTES: u64 = 4 * 4096;

/// What the run knew when it stopped.
#[derive(Clone, Default)]
struct Run {
    history: History,
    /// Number and journal file of the last checkpoint reported safe.
    checkpoint: Option<(u64, u64)>,
    /// The journal file of each checkpoint begun, by number from 1.
    begun: Vec<u64>,
    /// The journal said that it has a mark.
    has_mark: bool,
}

/// The disk failed, as it must once it has stopped.
struct Stopped;

fn pump(
    disk: &mut MemoryDisk,
    journal: &mut Journal,
    writer: &mut CheckpointWriter,
    run: &mut Run,
) -> Result<(), Stopped> {
    let mut done = Vec::new();
    disk.wait(&mut done);
    for completion in done {
        if completion.token.owner() == Some(Owner::Checkpoint) {
            if let Some(number) = writer.on_completion(disk, completion).map_err(|_| Stopped)? {
                let file = run.begun[number as usize - 1];
                run.checkpoint = Some((number, file));
                journal.release(disk, file);
            }
        } else {
            journal.on_completion(disk, completion).map_err(|_| Stopped)?;
        }
    }
    run.history.observe(journal);
    Ok(())
}

fn script(disk: &mut MemoryDisk, config: JournalConfig, run: &mut Run, marked: bool) -> Result<(), Stopped> {
    load_latest(disk).map_err(|_| Stopped)?;
    let (mut journal, _) = Journal::open(disk, config, JournalStart(0)).map_err(|_| Stopped)?;
    let mut writer = CheckpointWriter::new();
    let mut next = [1, 1];
    for turn in 0..26u64 {
        if marked && turn > 2 {
            journal.keep_mark(disk);
            run.history.marked = true;
            run.has_mark |= journal.has_mark();
            journal.mark_durable(disk);
        }
        let group = (turn % 2) as usize;
        let term = 1 + turn / 8;
        if turn % 7 == 0 {
            run.history.hard_state(&mut journal, group as u32, term, (turn % 3 > 0).then_some(turn));
        }
        if turn == 11 {
            // A new leader overwrites the last two entries.
            next[group] -= 2;
        }
        if turn == 17 {
            run.history.restart(&mut journal, group as u32, term, next[group] + 5);
            next[group] += 6;
        }
        run.history.entry(&mut journal, group as u32, term, next[group], 40 + (turn as usize * 977) % 6000);
        next[group] += 1;
        run.history.flush(&mut journal, disk);
        if turn % 3 == 2 {
            pump(disk, &mut journal, &mut writer, run)?;
        }
        if turn % 8 == 7 && !writer.busy() {
            let checkpoint = Checkpoint {
                number: run.begun.len() as u64 + 1,
                journal_file: journal.current_file(),
                facts: None,
                groups: vec![GroupCheckpoint {
                    group: GroupId(0),
                    term,
                    vote: None,
                    applied_index: turn,
                    applied_term: term,
                    configuration: vec![9; 10].into(),
                    state: vec![turn as u8; 700].into(),
                }],
            };
            run.begun.push(checkpoint.journal_file);
            writer.start(disk, checkpoint);
        }
        if turn == 20 {
            for _ in 0..50 {
                pump(disk, &mut journal, &mut writer, run)?;
            }
            journal.mark_idle(disk);
        }
    }
    for _ in 0..60 {
        pump(disk, &mut journal, &mut writer, run)?;
        run.history.flush(&mut journal, disk);
    }
    Ok(())
}

/// Recover from `disk` and check all that was promised by the time the run stopped; then go on, and check again.
fn check(mut disk: MemoryDisk, config: &JournalConfig, run: &Run, context: &str) {
    let checkpoint =
        load_latest(&mut disk).unwrap_or_else(|e| panic!("{context}: {e}")).map(|loaded| loaded.checkpoint);
    let number = checkpoint.as_ref().map_or(0, |c| c.number);
    assert!(number >= run.checkpoint.map_or(0, |c| c.0), "{context}: checkpoint {number} is too old");
    let start = checkpoint.map_or(0, |c| c.journal_file);
    assert!(number == 0 || run.begun[number as usize - 1] == start, "{context}: another checkpoint's journal file");
    let format = if run.has_mark { MARK_FORMAT } else { 1 };
    let config = &JournalConfig { format, ..config.clone() };
    let opened = Journal::open(&mut disk, config.clone(), JournalStart(start));
    let (_, first) = opened.unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!((&first.lost_tail, first.in_doubt.len()), (&None, 0), "{context}: nothing durable was lost");
    let count = run.history.matching(&first, start);
    let count = count.unwrap_or_else(|| panic!("{context}: {} durable, found {first:?}", run.history.durable));

    let mut disk = disk.kill(0);
    let (mut journal, second) = open(&mut disk, config.clone(), start);
    assert_eq!(first.groups, second.groups, "{context}: a second recovery differs");

    let mut history = run.history.clone();
    history.restart_from(count);
    for (group, len) in [(0, 3000), (1, 5000), (0, 10)] {
        let next = history.state(count, 0).get(&group).and_then(|g| g.entries.last()).map_or(1, |e| e.index + 1);
        history.entry(&mut journal, group, 90, next, len);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).unwrap_or_else(|e| panic!("{context}: {e}"));
    }
    history.flush(&mut journal, &mut disk);
    settle(&mut journal, &mut disk).unwrap_or_else(|e| panic!("{context}: {e}"));
    history.observe(&journal);
    assert_eq!(history.durable, history.appended.len(), "{context}: not all was flushed");
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, third) = open(&mut disk, config.clone(), start);
    assert_eq!(history.matching(&third, start), Some(history.durable), "{context}: leftovers came back");
    assert_eq!((&third.lost_tail, third.in_doubt.len()), (&None, 0), "{context}: nothing was lost");
}

fn stop_everywhere(order: Order, max_in_flight: usize, marked: bool) {
    let config = config(FILE_BYTES, max_in_flight);
    let mut disk = MemoryDisk::new();
    disk.set_order(order);
    let mut whole = Run::default();
    assert!(script(&mut disk, config.clone(), &mut whole, marked).is_ok());
    assert_eq!(whole.history.durable, whole.history.appended.len());
    assert!(whole.checkpoint.is_some_and(|(number, file)| number >= 2 && file > 2), "{:?}", whole.checkpoint);
    let operations = disk.operations();
    for last in 0..operations {
        let mut disk = MemoryDisk::new();
        disk.set_order(order);
        disk.stop_after(last);
        let mut run = Run::default();
        assert!(
            script(&mut disk, config.clone(), &mut run, marked).is_err() || disk.stopped(),
            "the disk did not stop"
        );
        let unsynced = disk.unsynced();
        let mut choices = vec![CrashChoice::Nothing, CrashChoice::Everything];
        choices.extend((0..4).map(|n| CrashChoice::Torn(last * 100 + n)));
        if unsynced <= 5 {
            choices.extend((1..(1u64 << unsynced) - 1).map(CrashChoice::Subset));
        } else {
            choices.extend((1..20).map(|n| CrashChoice::Subset((last * 20 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        }
        for choice in choices {
            let crashed = disk.crash(choice);
            crashed.set_order(Order::Immediate);
            check(crashed, &config, &run, &format!("{order:?}, stopped after {last}, kept {choice:?}"));
        }
    }
}

#[test]
fn stopping_at_every_operation_loses_nothing_durable() {
    stop_everywhere(Order::Immediate, 1, false);
    stop_everywhere(Order::Immediate, 1, true);
}

#[test]
fn so_does_stopping_while_flushes_overtake_each_other() {
    for seed in 0..3 {
        stop_everywhere(Order::Seeded(seed), 4, seed > 0);
    }
}

/// A kill without power loss leaves bytes in caches. Recovery may use them only after making them durable.
#[test]
fn what_recovery_finds_after_a_kill_survives_a_power_loss() {
    let config = config(16 * 4096, 4);
    for happened in 0..16 {
        let mut disk = MemoryDisk::new();
        let (mut journal, _) = open(&mut disk, config.clone(), 0);
        let mut history = History::default();
        history.entry(&mut journal, 7, 1, 1, 100);
        history.flush(&mut journal, &mut disk);
        // The next file is prepared, so that nothing but flushes is under way from here on.
        settle(&mut journal, &mut disk).expect("healthy");
        disk.set_order(Order::Held);
        for index in 2..=4 {
            history.entry(&mut journal, 7, 1, index, 100);
            history.flush(&mut journal, &mut disk);
        }
        let mut disk = disk.kill(happened);
        disk.set_order(Order::Immediate);
        let (_, killed) = open(&mut disk, config.clone(), 0);
        let mut disk = disk.crash(CrashChoice::Nothing);
        let (_, crashed) = open(&mut disk, config.clone(), 0);
        assert_eq!(killed.groups, crashed.groups, "writes that happened: {happened:#b}");
        assert_eq!(history.matching(&crashed, 0), Some(1 + (happened.trailing_ones() as usize).min(3)));
    }
}

/// An unfinished flush is cut, whole flushes behind it go too, and neither returns once the space is written again;
/// also when the life that left them behind left nothing else.
#[test]
fn leftovers_behind_a_cut_never_come_back() {
    for reopen in [false, true] {
        let config = config(32 * 4096, 4);
        let mut disk = MemoryDisk::new();
        let (mut journal, _) = open(&mut disk, config.clone(), 0);
        let mut history = History::default();
        history.entry(&mut journal, 1, 1, 1, 10);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        if reopen {
            disk = disk.kill(0);
            journal = open(&mut disk, config.clone(), 0).0;
        }
        disk.set_order(Order::Held);
        for index in 2..=4 {
            history.entry(&mut journal, 1, 1, index, 10);
            history.flush(&mut journal, &mut disk);
        }
        // The last two reach the disk, the one before them does not.
        for (number, _) in disk.in_flight().into_iter().rev().take(2) {
            assert!(disk.release(number));
        }
        step(&mut journal, &mut disk).expect("healthy");
        assert_eq!(journal.durable(), 1, "durability is reported in order");
        for lives in 0..3u64 {
            disk = disk.crash(CrashChoice::Nothing);
            disk.set_order(Order::Immediate);
            let (mut journal, recovered) = open(&mut disk, config.clone(), 0);
            assert_eq!(recovered.groups[&GroupId(1)].entries.len() as u64, 1 + lives);
            assert_eq!(recovered.torn_tail.is_some(), lives < 1, "{:?}", recovered.torn_tail);
            journal.append_entry(GroupId(1), 2, 2 + lives, 0, b"new");
            journal.flush(&mut disk);
            settle(&mut journal, &mut disk).expect("healthy");
        }
    }
}
