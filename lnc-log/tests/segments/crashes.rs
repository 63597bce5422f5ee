//! Random runs with crashes at any moment, against a run without any.
//!
//! A run is a list of commands, as the journal would hold them. A crash loses what the disk may lose; the store starts
//! from its last durable checkpoint, and the commands after it are applied again. In the end the files must be, byte
//! for byte, those of a run in which nothing happened.

use crate::support::{Harness, Random, batch, small};
use lnc_log::disk::memory::{CrashChoice, Order};
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::segment::{PartitionKey, PartitionState, SegmentStore, StoredBatch};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Command {
    Create(PartitionKey),
    Append(PartitionKey, StoredBatch),
    Trim(PartitionKey, u64),
    Remove(PartitionKey),
}

fn apply(store: &mut SegmentStore, command: &Command) {
    match command {
        Command::Create(key) => store.create_partition(*key, None).unwrap(),
        Command::Append(key, batch) => store.append(*key, batch.clone()).unwrap(),
        Command::Trim(key, offset) => store.trim(*key, *offset).unwrap(),
        Command::Remove(key) => store.remove_partition(*key).unwrap(),
    }
}

/// A list of commands that make sense one after the other.
fn commands(random: &mut Random, count: usize) -> Vec<Command> {
    let mut ends: BTreeMap<PartitionKey, u64> = BTreeMap::new();
    let mut list = Vec::new();
    for n in 0..count {
        let pick = random.below(ends.len().max(1) as u64) as usize;
        let Some((key, end)) = ends.iter_mut().nth(pick).filter(|_| random.below(25) > 0) else {
            let key = PartitionKey { topic_id: n as u64, partition: random.below(3) as u32 };
            ends.insert(key, 0);
            list.push(Command::Create(key));
            continue;
        };
        let key = *key;
        match random.below(30) {
            0 => {
                ends.remove(&key);
                list.push(Command::Remove(key));
            }
            1 => list.push(Command::Trim(key, *end)),
            2 | 3 => list.push(Command::Trim(key, random.below(*end + 1))),
            _ => {
                let len = [10, 300, 2_000, 9_000][random.below(4) as usize] + random.below(100) as usize;
                let batch = batch(*end, 1 + random.below(4) as usize, len / 2, n as i64 * 40, n as i32 / 30);
                *end = batch.last_offset + 1;
                list.push(Command::Append(key, batch));
            }
        }
    }
    list
}

type States = Vec<(PartitionKey, PartitionState)>;

/// How many commands the checkpoint covers, and its states.
type Durable = (usize, States);

/// A node in the middle of a run.
struct Run {
    harness: Harness,
    applied: usize,
    /// How many commands the checkpoint in progress covers.
    covered: Option<usize>,
    durable: Durable,
}

impl Run {
    fn reap(&mut self) {
        let mut done = Vec::new();
        self.harness.disk.reap(&mut done);
        for completion in done {
            let read = self.harness.store.on_completion(&mut self.harness.disk, completion).unwrap();
            assert!(read.is_none_or(|read| read.result.is_ok()));
        }
        if self.covered.is_some() && self.harness.store.checkpoint_done() {
            self.durable = (self.covered.take().unwrap(), self.harness.store.checkpoint_states());
            self.harness.store.release_removed(&mut self.harness.disk);
        }
    }

    fn step(&mut self, random: &mut Random, commands: &[Command]) {
        let Harness { disk, store, .. } = &mut self.harness;
        match random.below(12) {
            0 if self.covered.is_none() => {
                store.begin_checkpoint(disk);
                self.covered = Some(self.applied);
            }
            1 | 2 => store.write_out(disk),
            3 => {
                let keys: Vec<_> = store.partitions().collect();
                for key in keys {
                    let range = store.log_start_offset(key)..store.written_offset(key);
                    if !range.is_empty() {
                        let offset = range.start + random.below(range.end - range.start);
                        store.read(disk, key, offset, 3_000, 1).unwrap();
                    }
                }
            }
            4..8 => self.reap(),
            _ if self.applied < commands.len() => {
                apply(store, &commands[self.applied]);
                self.applied += 1;
            }
            _ => {}
        }
    }

    fn crash(&mut self, random: &mut Random) {
        let choice = match random.below(4) {
            0 => CrashChoice::Nothing,
            1 => CrashChoice::Everything,
            _ => CrashChoice::Torn(random.below(u64::MAX)),
        };
        let disk = self.harness.disk.crash(choice);
        self.harness = Harness::recover(small(), disk, &self.durable.1).unwrap();
        self.applied = self.durable.0;
        self.covered = None;
    }
}

fn finished(mut harness: Harness) -> (States, BTreeMap<String, Vec<u8>>) {
    while !harness.store.checkpoint_done() {
        harness.write_out();
    }
    harness.checkpoint();
    let (_, states) = harness.checkpoint();
    harness.release();
    let mut files = harness.files();
    // The padding of an open segment is cut off by a start, and comes back with the next write.
    for (key, state) in &states {
        let open = state.segments.last().filter(|segment| !segment.sealed);
        let path = open.map(|open| format!("segments/{key}/{:020}.log", open.base_offset));
        if let Some(bytes) = path.and_then(|path| files.get_mut(&path)) {
            bytes.truncate(open.map_or(0, |open| open.len as usize));
        }
    }
    (states, files)
}

fn run_with_crashes(seed: u64) {
    let mut random = Random(seed);
    let commands = commands(&mut random, 150);

    let mut undisturbed = empty();
    for command in &commands {
        apply(&mut undisturbed.store, command);
    }

    let mut run = Run { harness: empty(), applied: 0, covered: None, durable: (0, Vec::new()) };
    run.harness.disk.set_order(Order::Seeded(seed));
    let mut crashes = 0;
    while run.applied < commands.len() || crashes < 3 {
        run.step(&mut random, &commands);
        if random.below(150) == 0 {
            run.crash(&mut random);
            crashes += 1;
        }
    }
    for command in &commands[run.applied..] {
        apply(&mut run.harness.store, command);
    }
    run.harness.settle().unwrap();

    let (expected_states, expected_files) = finished(undisturbed);
    let (states, files) = finished(run.harness);
    assert_eq!(states, expected_states, "seed {seed}");
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&files), names(&expected_files), "seed {seed}");
    for (path, bytes) in &files {
        assert!(*bytes == expected_files[path], "seed {seed}: {path} differs");
    }
}

fn empty() -> Harness {
    Harness::recover(small(), MemoryDisk::new(), &[]).unwrap()
}

#[test]
fn random_runs_with_crashes_end_in_the_same_files() {
    for seed in 1..=80 {
        run_with_crashes(seed);
    }
}

/// The same short run, stopped at every one of its disk operations.
#[test]
fn a_crash_at_every_operation() {
    let mut random = Random(42);
    let commands = commands(&mut random, 60);
    let script = |run: &mut Run| {
        while run.applied < commands.len() && !run.harness.disk.stopped() {
            let Harness { disk, store, .. } = &mut run.harness;
            apply(store, &commands[run.applied]);
            run.applied += 1;
            store.write_out(disk);
            if run.applied.is_multiple_of(7) && run.covered.is_none() {
                store.begin_checkpoint(disk);
                run.covered = Some(run.applied);
            }
            if run.harness.settle().is_ok() {
                run.reap();
            }
        }
    };
    let start = || Run { harness: empty(), applied: 0, covered: None, durable: (0, Vec::new()) };
    let mut whole = start();
    script(&mut whole);
    let total = whole.harness.disk.operations();
    let (expected, _) = finished(whole.harness);
    assert!(total > 100);
    for last in 1..total {
        for choice in [CrashChoice::Nothing, CrashChoice::Everything, CrashChoice::Torn(last), CrashChoice::Torn(!last)]
        {
            let mut run = start();
            run.harness.disk.stop_after(last);
            script(&mut run);
            let disk = run.harness.disk.crash(choice);
            let once = Harness::recover(small(), disk, &run.durable.1).unwrap();
            let files = once.files();
            run.harness = Harness::recover(small(), once.disk, &run.durable.1).unwrap();
            assert!(run.harness.files() == files, "recovering again changed files");
            for command in &commands[run.durable.0..] {
                apply(&mut run.harness.store, command);
            }
            let (states, _) = finished(run.harness);
            assert_eq!(states, expected, "stopped after operation {last}, {choice:?}");
        }
    }
}
