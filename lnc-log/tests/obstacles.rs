//! Something else in the place of a file or directory of the node: the start says what and where, and what to do, and neither
//! waits for it nor takes it for a file that was never there.

use bytes::Bytes;
use lnc_log::FileOwner;
use lnc_log::checkpoint::{self, Checkpoint, Facts};
use lnc_log::data_dir::DataDir;
use lnc_log::disk::{Disk, ThreadsDisk};
use lnc_log::incoming;
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalStart};
use lnc_log::segment::{PartitionKey, PartitionState, SegmentConfig, SegmentStore, StoredBatch};
use lnc_protocol::{BatchBuilder, Codec, batch};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const KEY: PartitionKey = PartitionKey { topic_id: 7, partition: 1 };
const OWNER: FileOwner = FileOwner { cluster: 1, node: 2, incarnation: 3 };

type States = Vec<(PartitionKey, PartitionState, Option<u64>)>;

fn journal_config() -> JournalConfig {
    JournalConfig { owner: OWNER, format: 3, file_bytes: 64 << 10, ..JournalConfig::new(3) }
}

fn segment_config() -> SegmentConfig {
    SegmentConfig { segment_bytes: 6000, ..SegmentConfig::default() }
}

/// A data directory with a file of each kind.
fn filled(root: &Path) -> States {
    let mut dir = DataDir::open(root).unwrap();
    dir.create_identity(2, 3).unwrap();
    dir.raise_format(3).unwrap();
    let mut disk = ThreadsDisk::new(root, 1).unwrap();
    let first = JournalConfig { format: 1, ..journal_config() };
    let (mut journal, _) = Journal::open(&mut disk, first, JournalStart(0)).unwrap();
    journal.keep_mark(&mut disk);
    journal.append_hard_state(GroupId(1), 1, None);
    journal.append_entry(GroupId(1), 1, 1, 0, b"entry");
    let flush = journal.flush(&mut disk).unwrap();
    let mut completions = Vec::new();
    while journal.durable() < flush || !journal.has_mark() {
        journal.keep_mark(&mut disk);
        disk.wait(&mut completions);
        completions.drain(..).for_each(|completion| drop(journal.on_completion(&mut disk, completion).unwrap()));
    }
    let mut store = SegmentStore::new(segment_config());
    store.create_partition(KEY, None).unwrap();
    for n in 0..10 {
        let mut builder = BatchBuilder::new(Codec::None);
        builder.append(0, None, Some(&[7; 1000]), &[]).unwrap();
        let raw = builder.build();
        let prefix = batch::stamped_prefix(&raw, n, 1);
        let stored = StoredBatch { base_offset: n, last_offset: n, max_timestamp: 0, append_ms: 0, prefix, raw };
        store.append(KEY, stored).unwrap();
    }
    store.begin_checkpoint(&mut disk);
    while !store.checkpoint_done() {
        disk.wait(&mut completions);
        completions.drain(..).for_each(|completion| drop(store.on_completion(&mut disk, completion).unwrap()));
    }
    assert!(checkpoint::load_latest(&mut disk).unwrap().is_none());
    let facts = Some(Facts { owner: OWNER, needed_file: 1 });
    checkpoint::write_now(&mut disk, Checkpoint { number: 1, journal_file: 1, facts, groups: Vec::new() }, None)
        .unwrap();
    fs::create_dir_all(root.join("incoming/1")).unwrap();
    fs::write(root.join("incoming/1/7-1-00000000000000000000.log"), b"part of a transfer").unwrap();
    store.checkpoint_states().into_iter().map(|(key, state)| (key, state, None)).collect()
}

/// As a node starts.
fn start(root: &Path, states: &States) -> Result<(), Box<dyn Error>> {
    let dir = DataDir::open(root)?;
    dir.identity_of(2)?;
    let mut disk = ThreadsDisk::new(root, 1)?;
    incoming::pending(&mut disk)?;
    checkpoint::load_latest(&mut disk)?;
    Journal::open_above(&mut disk, journal_config(), JournalStart(1), JournalStart(1), &BTreeMap::new())?;
    SegmentStore::recover(segment_config(), &mut disk, states, &BTreeMap::new())?;
    Ok(())
}

fn paths(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found.sort();
    found
}

type Obstacle = (&'static str, fn(&Path));

const IN_PLACE_OF_FILES: [Obstacle; 5] = [
    ("a directory", |path| fs::create_dir(path).unwrap()),
    ("a full directory", |path| {
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), b"x").unwrap();
    }),
    ("a symbolic link that leads nowhere", |path| symlink("nowhere/at/all", path).unwrap()),
    ("a symbolic link that leads to itself", |path| symlink(path.file_name().unwrap(), path).unwrap()),
    ("a pipe", |path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }),
];

const IN_PLACE_OF_FOLDERS: [Obstacle; 2] = [
    ("a file", |path| fs::write(path, b"x").unwrap()),
    ("a symbolic link that leads nowhere", |path| symlink("nowhere/at/all", path).unwrap()),
];

#[test]
fn whatever_is_in_the_place_of_a_file_is_told_with_what_to_do() {
    let template = tempfile::tempdir().unwrap();
    let states = filled(template.path());
    start(template.path(), &states).unwrap();
    let all = paths(template.path());
    for kind in [
        "LOCK",
        "FORMAT",
        "IDENTITY",
        "DURABLE",
        "journal",
        "checkpoint",
        "segments",
        "incoming",
        ".journal",
        ".checkpoint",
        ".log",
        ".index",
    ] {
        assert!(all.iter().any(|path| path.ends_with(kind)), "there is a {kind}: {all:?}");
    }
    for path in &all {
        let is_folder = template.path().join(path).is_dir();
        let obstacles: &[Obstacle] = if is_folder { &IN_PLACE_OF_FOLDERS } else { &IN_PLACE_OF_FILES };
        for (what, put) in obstacles {
            let copy = tempfile::tempdir().unwrap();
            copy_all(template.path(), copy.path());
            let place = copy.path().join(path);
            if is_folder {
                fs::remove_dir_all(&place).unwrap()
            } else {
                fs::remove_file(&place).unwrap()
            }
            put(&place);
            let Err(error) = start(copy.path(), &states) else {
                // An index is looked at by whoever reads.
                assert!(path.ends_with(".index"), "{what} at {path} goes unnoticed");
                continue;
            };
            let text = error.to_string();
            let name = Path::new(path).file_name().unwrap().to_string_lossy().into_owned();
            assert!(text.contains(&name), "{what} at {path}: {text}");
            assert!(text.contains("expected") && text.contains("found"), "{what} at {path}: {text}");
            assert!(text.contains("docs/ops/"), "{what} at {path}: {text}");
            assert!(place.symlink_metadata().is_ok(), "{what} at {path} is still there: {text}");
        }
    }
}

fn copy_all(from: &Path, to: &Path) {
    for path in paths(from) {
        let (from, to) = (from.join(&path), to.join(&path));
        if from.is_dir() { fs::create_dir_all(to).unwrap() } else { _ = fs::copy(from, to).unwrap() }
    }
}

/// An index is made anew whatever is in its place, unless that cannot be replaced by a file.
#[test]
fn an_index_is_made_anew_over_what_is_in_its_place() {
    for (what, put) in IN_PLACE_OF_FILES {
        let root = tempfile::tempdir().unwrap();
        let states = filled(root.path());
        let path = root.path().join("segments/7-1/00000000000000000000.index");
        fs::remove_file(&path).unwrap();
        put(&path);
        let mut disk = ThreadsDisk::new(root.path(), 1).unwrap();
        let mut store = SegmentStore::recover(segment_config(), &mut disk, &states, &BTreeMap::new()).unwrap();
        store.read(&mut disk, KEY, 0, 1000, 1).unwrap();
        let mut read: Option<Bytes> = None;
        let mut completions = Vec::new();
        let mut failed = None;
        let is_file = || path.symlink_metadata().is_ok_and(|found| found.is_file());
        while read.is_none() || !(is_file() || failed.is_some()) {
            disk.wait(&mut completions);
            for completion in completions.drain(..) {
                match store.on_completion(&mut disk, completion) {
                    Ok(done) => read = done.map(|done| done.result.unwrap().bytes).or(read),
                    Err(error) => failed = Some(error.to_string()),
                }
            }
        }
        assert!(read.is_some(), "{what}: the records are read all the same");
        assert_eq!(failed.is_some(), what.contains("directory"), "{what}: {failed:?}");
        assert!(failed.is_none_or(|text| text.contains("move it away (docs/ops/")));
    }
}
