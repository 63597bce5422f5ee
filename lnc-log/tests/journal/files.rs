//! Journal and checkpoints on the backends that touch real files.

use crate::harness::{History, config};
use lnc_log::checkpoint::{Checkpoint, CheckpointWriter, load_latest};
use lnc_log::disk::{AnyDisk, BackendChoice, Disk, Owner};
use lnc_log::journal::{Journal, JournalStart};
use std::path::Path;

fn run(root: &Path, choice: BackendChoice) {
    let config = config(8 * 4096, 3);
    let mut history = History::default();
    let mut start = 0;
    for life in 1..=3u64 {
        let mut disk = AnyDisk::open(root, choice).expect("a backend");
        let checkpoint = load_latest(&mut disk).expect("intact").map(|loaded| loaded.checkpoint);
        assert_eq!(checkpoint.map(|c| (c.number, c.journal_file)), (life > 1).then_some((life - 1, start)));
        let (mut journal, recovered) = Journal::open(&mut disk, config.clone(), JournalStart(start)).expect("intact");
        assert_eq!(history.matching(&recovered, start), Some(history.appended.len()), "life {life}");
        history.restart_from(history.appended.len());
        let mut writer = CheckpointWriter::new();
        history.hard_state(&mut journal, 4, life, Some(1));
        for index in 1..=20 {
            history.entry(&mut journal, 4, life, life * 20 + index, (index * 300) as usize);
            history.flush(&mut journal, &mut disk);
            turn(&mut disk, &mut journal, &mut writer);
        }
        while journal.in_flight() > 0 || journal.staged_bytes() > 0 {
            history.flush(&mut journal, &mut disk);
            turn(&mut disk, &mut journal, &mut writer);
        }
        history.observe(&journal);
        assert_eq!(history.durable, history.appended.len());
        start = journal.current_file();
        writer.start(&mut disk, Checkpoint { number: life, journal_file: start, facts: None, groups: Vec::new() });
        while writer.busy() {
            turn(&mut disk, &mut journal, &mut writer);
        }
        journal.release(&mut disk, start);
        turn(&mut disk, &mut journal, &mut writer);
    }
}

fn turn(disk: &mut AnyDisk, journal: &mut Journal, writer: &mut CheckpointWriter) {
    let mut done = Vec::new();
    disk.wait(&mut done);
    for completion in done {
        if completion.token.owner() == Some(Owner::Checkpoint) {
            writer.on_completion(disk, completion).expect("healthy");
        } else {
            journal.on_completion(disk, completion).expect("healthy");
        }
    }
}

#[test]
fn three_lives_on_real_files() {
    for choice in [BackendChoice::Threads, BackendChoice::Auto] {
        let dir = tempfile::tempdir().expect("a directory");
        run(dir.path(), choice);
    }
}
