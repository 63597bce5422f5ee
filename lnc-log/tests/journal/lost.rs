//! What is gone cannot say that it was there: the mark beside the journal does.

use crate::harness::{History, IDENTITY, config, open, settle};
use lnc_log::FileOwner;
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::journal::{
    Covered, GroupId, Journal, JournalConfig, JournalError, JournalStart, MARK_FORMAT, Recovered, note_checkpoint,
};

const FILE_BYTES: u64 = 4 * 4096;
const ENTRIES: u64 = 14;
const DATA: GroupId = GroupId(1);

fn path(file: u64) -> String {
    format!("journal/{file:020}.journal")
}

fn owner(node: u64) -> FileOwner {
    FileOwner { cluster: 77, node, incarnation: IDENTITY ^ node }
}

fn config_of(node: u64, format: u32) -> JournalConfig {
    let owner = owner(node);
    JournalConfig { owner, format, identity: owner.incarnation, ..config(FILE_BYTES, 2) }
}

/// A marked journal of three files, at rest; its directory as the next start finds it.
fn marked(node: u64) -> (MemoryDisk, History) {
    written(node, true)
}

/// The same, with a mark or without.
fn written(node: u64, is_marked: bool) -> (MemoryDisk, History) {
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config_of(node, 1), 0);
    if is_marked {
        journal.keep_mark(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        assert!(journal.has_mark());
    }
    let mut history = History::default();
    history.hard_state(&mut journal, 1, 4, Some(2));
    for index in 1..=ENTRIES {
        history.entry(&mut journal, 1, 4, index, 3000);
        history.flush(&mut journal, &mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    (disk.crash(CrashChoice::Nothing), history)
}

fn newest(disk: &MemoryDisk) -> u64 {
    // The last one is only prepared.
    disk.paths().iter().filter(|path| path.starts_with("journal/")).count() as u64 - 1
}

/// As the next start of the node.
fn reopen(disk: &mut MemoryDisk) -> Result<(Journal, Recovered), JournalError> {
    *disk = disk.crash(CrashChoice::Nothing);
    Journal::open(disk, config_of(1, MARK_FORMAT), JournalStart(0))
}

#[track_caller]
fn assert_lost(disk: &mut MemoryDisk, what: &str) -> Journal {
    let (journal, recovered) = reopen(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let lost = recovered.lost_tail.unwrap_or_else(|| panic!("{what}: nothing was missed"));
    assert_eq!(recovered.in_doubt[&DATA], 5, "{what}: {lost}");
    assert_eq!(recovered.groups[&DATA].hard_state, Some((5, Some(1))), "{what}: it votes for nobody in that term");
    journal
}

#[test]
fn a_whole_journal_is_not_taken_for_a_lost_one() {
    let (mut disk, history) = marked(1);
    for _ in 0..3 {
        let (_, recovered) = reopen(&mut disk).expect("whole");
        assert_eq!((&recovered.lost_tail, recovered.in_doubt.len()), (&None, 0));
        assert_eq!(history.matching(&recovered, 0), Some(history.appended.len()));
        disk = disk.crash(CrashChoice::Nothing);
    }
}

#[test]
fn the_newest_file_deleted_emptied_or_cut_is_a_loss() {
    /// How a file is lost.
    type Loss = fn(&MemoryDisk);
    let ways: [(&str, Loss); 5] = [
        ("deleted", |disk| assert!(disk.lose(&path(newest(disk))))),
        ("deleted with what was prepared", |disk| {
            let newest = newest(disk);
            assert!(disk.lose(&path(newest)) && disk.lose(&path(newest + 1)));
        }),
        ("emptied", |disk| assert!(disk.cut(&path(newest(disk)), 0))),
        ("cut", |disk| assert!(disk.cut(&path(newest(disk)), FILE_BYTES / 2))),
        ("all of it", |disk| assert!(disk.lose_all("journal/") > 2)),
    ];
    for (what, lose) in ways {
        let (mut disk, history) = marked(1);
        lose(&disk);
        drop(assert_lost(&mut disk, what));
        // A start that was cut short forgets nothing, nor does one that did not hear of a leader.
        for _ in 0..2 {
            disk = disk.crash(CrashChoice::Nothing);
            let (_, recovered) = reopen(&mut disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(recovered.in_doubt[&DATA] >= 5, "{what}");
        }
        // It goes on from what is there, and is trusted once it has what it lacked.
        let (mut journal, recovered) = reopen(&mut disk).expect("readable");
        let kept = recovered.groups[&DATA].entries.last().map_or(0, |entry| entry.index);
        assert!(kept < history.appended.len() as u64, "{what}");
        journal.append_entry(DATA, 9, kept + 1, 0, b"of the leader");
        // The next file may have to be made first.
        for _ in 0..2 {
            journal.flush(&mut disk);
            settle(&mut journal, &mut disk).expect("healthy");
        }
        journal.trust(&mut disk, DATA);
        settle(&mut journal, &mut disk).expect("healthy");
        let mut disk = disk.crash(CrashChoice::Nothing);
        let (_, recovered) = reopen(&mut disk).expect("whole");
        assert_eq!((recovered.lost_tail, recovered.in_doubt.len()), (None, 0), "{what}");
        assert_eq!(recovered.groups[&DATA].entries.last().map(|entry| entry.index), Some(kept + 1), "{what}");
    }
}

#[test]
fn an_older_state_of_the_newest_file_is_a_loss() {
    let (mut disk, _) = marked(1);
    let (mut journal, _) = reopen(&mut disk).expect("whole");
    let file = path(newest(&disk));
    let older = disk.file(&file).expect("it is there");
    for index in ENTRIES + 1..=ENTRIES + 2 {
        journal.append_entry(DATA, 4, index, 0, b"newer");
        journal.flush(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    journal.mark_durable(&mut disk);
    settle(&mut journal, &mut disk).expect("healthy");
    let mut disk = disk.crash(CrashChoice::Nothing);
    disk.replace(&file, &older);
    disk.lose(&path(newest(&disk)));
    assert_lost(&mut disk, "an older state");
}

/// A mark of an older time knows nothing of what is missing; what is there knows of newer ones.
#[test]
fn a_mark_of_an_older_time_is_a_loss() {
    let (mut disk, _) = marked(1);
    let (mut journal, _) = reopen(&mut disk).expect("whole");
    let (older, begun) = (disk.file("DURABLE").expect("it is there"), newest(&disk));
    let mut index = ENTRIES;
    while newest(&disk) < begun + 3 {
        index += 1;
        journal.append_entry(DATA, 4, index, 0, &[7; 3000]);
        journal.flush(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    for lost in 0..3 {
        let mut disk = disk.crash(CrashChoice::Nothing);
        disk.replace("DURABLE", &older);
        let last = newest(&disk);
        (last + 1 - lost..=last).for_each(|file| assert!(disk.lose(&path(file))));
        assert_lost(&mut disk, &format!("an older mark, {lost} files less"));
    }
    // With one place of it lost, it is not known whether it is the newest: what is there may be all that there was.
    for place in [0, 64 << 10] {
        let mut disk = disk.crash(CrashChoice::Nothing);
        assert!(disk.corrupt("DURABLE", place, 1));
        let (_, recovered) = reopen(&mut disk).expect("the other place is whole");
        assert_eq!((recovered.lost_tail, recovered.in_doubt.len()), (None, 0));
    }
    let (_, recovered) = reopen(&mut disk).expect("whole");
    assert_eq!((recovered.lost_tail, recovered.in_doubt.len()), (None, 0));
}

#[test]
fn a_mark_from_before_a_vote_is_a_loss() {
    let (mut disk, mut history) = marked(1);
    let (mut journal, _) = reopen(&mut disk).expect("whole");
    let older = disk.file("DURABLE").expect("it is there");
    history.hard_state(&mut journal, 1, 9, Some(3));
    for index in ENTRIES + 1..=ENTRIES + 3 {
        journal.append_entry(DATA, 9, index, 0, b"in the new term");
        journal.flush(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    let (_, recovered) = reopen(&mut disk).expect("whole");
    assert_eq!(recovered.lost_tail, None);
    disk.replace("DURABLE", &older);
    let (_, recovered) = reopen(&mut disk).expect("it starts");
    assert_eq!(recovered.in_doubt[&DATA], 10);
    let lost = recovered.lost_tail.expect("it is noticed").to_string();
    assert!(lost.contains("term 9 of group 1"), "{lost}");
}

/// Twice in a row power goes between a flush and the mark that is to say so: nothing is lost, and nothing is missed.
#[test]
fn a_vote_without_its_mark_is_no_loss_at_the_next_start_but_one() {
    let (mut disk, mut history) = marked(1);
    let (mut journal, _) = reopen(&mut disk).expect("whole");
    let before = disk.file("DURABLE").expect("it is there");
    history.hard_state(&mut journal, 1, 9, Some(3));
    journal.flush(&mut disk);
    settle(&mut journal, &mut disk).expect("healthy");
    let mut disk = disk.crash(CrashChoice::Nothing);
    disk.replace("DURABLE", &before);
    let (mut journal, recovered) = reopen(&mut disk).expect("whole");
    assert_eq!((recovered.lost_tail, recovered.in_doubt.len()), (None, 0));
    let before = disk.file("DURABLE").expect("it is there");
    journal.append_entry(DATA, 9, ENTRIES + 1, 0, b"says that the vote is durable");
    journal.flush(&mut disk);
    settle(&mut journal, &mut disk).expect("healthy");
    let mut disk = disk.crash(CrashChoice::Nothing);
    disk.replace("DURABLE", &before);
    let (_, recovered) = reopen(&mut disk).expect("whole");
    assert_eq!((recovered.lost_tail, recovered.in_doubt.len()), (None, 0));
    assert_eq!(recovered.groups[&DATA].hard_state, Some((9, Some(3))));
}

/// `FORMAT` says that there need not be a mark, as it does when a bit of it flips; the files know better.
#[test]
fn a_mark_that_is_gone_is_missed_whatever_the_format_says() {
    let (mut disk, _) = marked(1);
    for format in [1, 2, MARK_FORMAT] {
        let mut disk = disk.crash(CrashChoice::Nothing);
        assert!(disk.lose("DURABLE") && disk.lose(&path(newest(&disk))));
        let error =
            Journal::open(&mut disk, config_of(1, format), JournalStart(0)).map(drop).expect_err("it is missed");
        assert!(matches!(error, JournalError::NoMark { .. }), "{error}");
    }
    // It was just made when the power went, with the FORMAT to be raised.
    let mut disk = disk.crash(CrashChoice::Nothing);
    assert!(disk.corrupt("DURABLE", 0, 1) && disk.corrupt("DURABLE", 64 << 10, 1));
    Journal::open(&mut disk, config_of(1, 2), JournalStart(0)).map(drop).expect("there need not be anything in it yet");
}

/// Once a loss is known, no place of the mark says any more what was before it: that may be true again of other flushes.
#[test]
fn a_damaged_place_of_the_mark_does_not_take_a_doubt_back() {
    const PLACES: [u64; 2] = [0, 64 << 10];
    for place in PLACES {
        let (mut disk, _) = marked(1);
        let (mut journal, _) = reopen(&mut disk).expect("whole");
        let file = path(newest(&disk));
        let older = disk.file(&file).expect("it is there");
        let append = |journal: &mut Journal, disk: &mut MemoryDisk, term| {
            journal.append_entry(DATA, term, ENTRIES + 1, 0, b"newer");
            journal.flush(disk);
            settle(journal, disk).expect("healthy");
        };
        append(&mut journal, &mut disk, 4);
        journal.mark_durable(&mut disk);
        settle(&mut journal, &mut disk).expect("healthy");
        let mut disk = disk.crash(CrashChoice::Nothing);
        disk.replace(&file, &older);
        let mut journal = assert_lost(&mut disk, "an older state");
        append(&mut journal, &mut disk, 4);
        let mut disk = disk.crash(CrashChoice::Nothing);
        assert!(disk.corrupt("DURABLE", place, 1));
        let (_, recovered) = reopen(&mut disk).expect("the other place is whole");
        assert!(recovered.in_doubt.contains_key(&DATA), "without the place at {place}");
    }
}

#[test]
fn a_file_of_another_node_is_refused_and_both_are_named() {
    let (mut disk, _) = marked(1);
    let (other, _) = marked(2);
    for file in [newest(&disk), 1] {
        let own = disk.file(&path(file)).expect("it is there");
        disk.replace(&path(file), &other.file(&path(file)).expect("it is there"));
        let error = reopen(&mut disk).map(drop).expect_err("a foreign file").to_string();
        if file > 1 {
            assert!(error.contains(&owner(1).to_string()) && error.contains(&owner(2).to_string()), "{error}");
        }
        assert!(error.contains(&path(file)), "{error}");
        let mut again = disk.crash(CrashChoice::Nothing);
        again.replace(&path(file), &own);
        let (_, recovered) = reopen(&mut again).expect("nothing was written to it");
        assert_eq!(recovered.lost_tail, None);
        disk = again.crash(CrashChoice::Nothing);
    }
    // Which files are in use is not known for certain where a place of the mark is lost.
    for place in [0, 64 << 10] {
        let mut disk = disk.crash(CrashChoice::Nothing);
        assert!(disk.corrupt("DURABLE", place, 1));
        let file = path(newest(&disk));
        disk.replace(&file, &other.file(&file).expect("it is there"));
        let error = reopen(&mut disk).map(drop).expect_err("a foreign file").to_string();
        assert!(error.contains(&owner(2).to_string()), "place {place}: {error}");
    }
    disk.replace("DURABLE", &other.file("DURABLE").expect("the other's mark"));
    let error = reopen(&mut disk).map(drop).expect_err("a foreign mark").to_string();
    assert!(error.contains(&owner(1).to_string()) && error.contains(&owner(2).to_string()), "{error}");
}

#[test]
fn without_the_mark_nothing_is_known_and_one_slot_of_it_suffices() {
    let (mut disk, history) = marked(1);
    let mark = disk.file("DURABLE").expect("the mark");
    for slot in [0, 64 << 10] {
        let mut copy = disk.crash(CrashChoice::Nothing);
        assert!(copy.make_unreadable("DURABLE", slot, 4096));
        let (_, recovered) = reopen(&mut copy).expect("the other slot is whole");
        assert_eq!(history.matching(&recovered, 0), Some(history.appended.len()));
    }
    disk.replace("DURABLE", &vec![0; mark.len()]);
    assert!(matches!(reopen(&mut disk), Err(JournalError::NoMark { .. })));
    disk.lose("DURABLE");
    assert!(matches!(reopen(&mut disk), Err(JournalError::NoMark { .. })));
    let fresh = &mut MemoryDisk::new();
    let opened = Journal::open(fresh, config_of(1, 2), JournalStart(0));
    assert!(matches!(opened, Err(JournalError::Gone { .. })), "a directory of format 2 has had a journal");
    assert!(Journal::open(fresh, config_of(1, 1), JournalStart(0)).is_ok(), "a crash before the first file");
}

/// A vote is promised once the mark has it as well: the two must be lost together to be forgotten.
#[test]
fn a_vote_survives_the_journal() {
    let (mut disk, _) = marked(1);
    let (mut journal, _) = reopen(&mut disk).expect("whole");
    journal.append_hard_state(DATA, 30, Some(3));
    let flush = journal.flush(&mut disk).expect("a flush");
    settle(&mut journal, &mut disk).expect("healthy");
    assert!(journal.durable() >= flush);
    let mut disk = disk.crash(CrashChoice::Nothing);
    disk.lose_all("journal/");
    let (_, recovered) = reopen(&mut disk).expect("in doubt");
    assert_eq!((recovered.in_doubt[&DATA], recovered.groups[&DATA].hard_state), (31, Some((31, Some(1)))));
}

/// Both may be older than the checkpoint, which knows of later terms: this node may have voted in those.
#[test]
fn a_doubt_goes_beyond_the_terms_that_the_checkpoint_knows_of() {
    let (mut disk, _) = marked(1);
    disk.lose_all("journal/");
    let covered = [
        (DATA, Covered { index: ENTRIES, term: 40, applied_term: 4 }),
        (GroupId(2), Covered { index: 7, term: 3, applied_term: 0 }),
    ]
    .into();
    let start = JournalStart(1);
    let (_, recovered) =
        Journal::open_above(&mut disk, config_of(1, MARK_FORMAT), start, start, &covered).expect("in doubt");
    for (group, term) in [(DATA, 41), (GroupId(2), 4)] {
        assert_eq!((recovered.in_doubt[&group], recovered.groups[&group].hard_state), (term, Some((term, Some(1)))));
    }
    let (_, again) = reopen(&mut disk).expect("still in doubt");
    assert_eq!(again.in_doubt[&DATA], 41);
}

/// A node that ends before its mark says so of a checkpoint finds it at the start, and has the mark say so then. Only two that
/// the mark does not know of are from another time.
#[test]
fn a_start_has_the_mark_know_of_the_checkpoint_that_it_found() {
    let (mut disk, _) = marked(1);
    note_checkpoint(&mut disk, 1).expect("healthy");
    let start = |disk: &mut MemoryDisk, checkpoint| {
        *disk = disk.crash(CrashChoice::Nothing);
        let config = JournalConfig { checkpoint, ..config_of(1, MARK_FORMAT) };
        Journal::open(disk, config, JournalStart(0)).expect("there").1.lost_tail.is_some()
    };
    for checkpoint in [1, 2, 3, 4] {
        assert!(!start(&mut disk, checkpoint), "checkpoint {checkpoint}");
    }
    assert!(start(&mut disk, 6), "of that and the one before the mark knows nothing");
}

/// No checkpoint is begun before the mark knows of the last one.
#[test]
fn a_checkpoint_waits_for_the_mark_to_know_of_the_one_before() {
    let (mut disk, _) = marked(1);
    let (mut journal, _) = reopen(&mut disk).expect("healthy");
    assert!(journal.is_checkpoint_marked());
    journal.note_checkpoint(&mut disk, 1);
    assert!(!journal.is_checkpoint_marked());
    settle(&mut journal, &mut disk).expect("healthy");
    assert!(journal.is_checkpoint_marked());
}

/// A place that cannot be read counts as one that reads wrong.
#[test]
fn an_unreadable_place_is_damage_and_no_reason_to_end() {
    let (mut disk, history) = marked(1);
    // What is only prepared, and what was never used of the newest file.
    assert!(disk.make_unreadable(&path(newest(&disk) + 1), 0, FILE_BYTES));
    let (_, recovered) = reopen(&mut disk).expect("nothing of it is needed");
    assert_eq!(history.matching(&recovered, 0), Some(history.appended.len()));
    // A flush in the middle: it is known what it held.
    let mut disk = disk.crash(CrashChoice::Nothing);
    assert!(disk.make_unreadable(&path(1), 4096, 4096));
    let (_, recovered) = reopen(&mut disk).expect("copies of it are elsewhere");
    assert_eq!((recovered.damage.len(), recovered.lost_tail), (1, None));
    assert!(recovered.groups[&DATA].entries.iter().any(|entry| entry.damaged));
}

/// Files that are kept only for followers that lag may go.
#[test]
fn damage_in_files_that_a_checkpoint_covers_does_not_stop_the_start() {
    let ways: [fn(&MemoryDisk); 3] = [
        |disk| disk.replace(&path(2), &vec![0; FILE_BYTES as usize]),
        |disk| assert!(disk.lose(&path(2))),
        |disk| assert!(disk.make_unreadable(&path(2), 0, FILE_BYTES)),
    ];
    for (n, damage) in ways.into_iter().enumerate() {
        for format in [2, MARK_FORMAT] {
            let (mut disk, _) = written(1, format >= MARK_FORMAT);
            let covered = [(DATA, Covered { index: ENTRIES - 1, term: 1, applied_term: 1 })].into();
            let (start, needed) = (JournalStart(2), JournalStart(newest(&disk)));
            damage(&disk);
            let opened = Journal::open_above(&mut disk, config_of(1, format), start, needed, &covered);
            let (_, recovered) = opened.unwrap_or_else(|error| panic!("way {n}, format {format}: {error}"));
            assert_eq!(recovered.lost_tail, None);
            assert_eq!(recovered.groups[&DATA].entries.last().map(|entry| entry.index), Some(ENTRIES));
        }
    }
}

/// On a disk that is full, the mark is made once there is space.
#[test]
fn a_mark_waits_for_space() {
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = open(&mut disk, config_of(1, 1), 0);
    settle(&mut journal, &mut disk).expect("healthy");
    disk.set_capacity(Some(disk.used() + 1000));
    journal.keep_mark(&mut disk);
    settle(&mut journal, &mut disk).expect("no reason to end");
    assert!(!journal.has_mark());
    disk.set_capacity(None);
    journal.keep_mark(&mut disk);
    settle(&mut journal, &mut disk).expect("healthy");
    assert!(journal.has_mark());
    assert!(disk.free_bytes().is_none());
}
