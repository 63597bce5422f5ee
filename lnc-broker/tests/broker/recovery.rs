//! Checkpoints and recovery change nothing: a node that starts is the node that stopped.

use crate::harness::records::{pairs, read};
use crate::harness::{Cluster, Producer, SECOND, Settings, TICK_US};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::journal::GroupId;
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{ProduceRequest, TopicOptions};
use std::collections::BTreeMap;

const DATA: GroupId = GroupId(1);
const STEPS: usize = 14;
/// More bytes than any test writes: no checkpoint is made but for age.
const NEVER: u64 = 1 << 40;

fn settings(checkpoint_bytes: u64) -> Settings {
    let mut settings = Settings { checkpoint_bytes, journal_retain_bytes: 0, ..Settings::default() };
    settings.segments.segment_bytes = 6_000;
    settings.journal_file_bytes = 16 << 10;
    settings
}

/// A node at the end of a script: the data group's state as its checkpoint has it, and the records that it serves.
type End = (Vec<u8>, Vec<(u64, String)>);

/// One run of a fixed script. What crashes differs between runs; what is asked, and when, does not.
struct Script {
    cluster: Cluster,
    producer: Producer,
    last: Option<ProduceRequest>,
}

impl Script {
    fn new(checkpoint_bytes: u64) -> Self {
        let mut cluster = Cluster::ready(settings(checkpoint_bytes));
        cluster.await_balance();
        let options = TopicOptions { max_bytes: Some(20_000), ..TopicOptions::default() };
        cluster.create_topic_with("t", 1, options);
        let producer = Producer::new(&mut cluster);
        let mut script = Self { cluster, producer, last: None };
        script.pause(0);
        script
    }

    /// Let time pass up to a second of the script.
    fn pause(&mut self, second: u64) {
        const START_US: u64 = 10_000_000;
        let until = START_US + second * 1_000_000;
        let now = self.cluster.clock().mono_us;
        assert!(now <= until, "second {second} has passed: {now} µs");
        self.cluster.ticks(((until - now) / TICK_US) as u32);
    }

    /// Each step has two seconds: one for a crash to be over, one for the step.
    fn step(&mut self, step: usize) {
        self.pause(2 * step as u64 + 1);
        match step {
            3 => drop(self.cluster.create_topic("other", 2)),
            9 => self.cluster.delete_topic("other"),
            // A retry of what was acknowledged.
            5 | 11 => {
                if let Some(request) = self.last.clone() {
                    assert!(self.cluster.produce(&request).duplicate);
                }
            }
            _ => {
                let value = format!("{step}-{}", "v".repeat(2500));
                let request = self.producer.request("t", 0, &[&value]);
                self.cluster.produce(&request);
                self.last = Some(request);
            }
        }
        self.pause(2 * step as u64 + 2);
    }

    /// How every node ends.
    fn end(mut self) -> Vec<End> {
        // A checkpoint is made at least once a minute, if something was applied.
        self.pause(2 * STEPS as u64 + 65);
        let request = self.producer.request("t", 0, &["end"]);
        self.cluster.produce(&request);
        self.pause(2 * STEPS as u64 + 130);
        self.cluster.await_same();
        let nodes = self.cluster.ids();
        nodes
            .into_iter()
            .map(|node| {
                let state = self.cluster.node(node).checkpoint(DATA).expect("a checkpoint").state.to_vec();
                let records = self.cluster.read_all(node, "t", 0);
                (state, pairs(&records).into_iter().map(|(offset, value)| (offset, value.to_owned())).collect())
            })
            .collect()
    }
}

#[test]
fn a_checkpoint_and_a_crash_at_every_point_change_nothing() {
    let mut plain = Script::new(NEVER);
    (0..STEPS).for_each(|step| plain.step(step));
    let expected = plain.end();
    assert_eq!(expected[0], expected[1]);
    assert_eq!(expected[0], expected[2]);

    for checkpoint_bytes in [1, 8 << 10] {
        let mut broken = Script::new(checkpoint_bytes);
        for step in 0..STEPS {
            let victim = broken.cluster.followers_of(DATA)[step % 2];
            let choice = match step % 3 {
                0 => CrashChoice::Nothing,
                1 => CrashChoice::Everything,
                _ => CrashChoice::Torn(step as u64),
            };
            broken.cluster.crash(victim, choice);
            broken.cluster.start(victim);
            broken.step(step);
        }
        for ((found, expected), node) in broken.end().iter().zip(&expected).zip(1..) {
            assert_eq!(found.1, expected.1, "records of node {node}, checkpoints every {checkpoint_bytes} bytes");
            assert_eq!(found.0, expected.0, "state of node {node}, checkpoints every {checkpoint_bytes} bytes");
        }
    }
}

#[test]
fn a_recovery_that_is_cut_short_can_be_repeated() {
    let mut cluster = Cluster::ready(settings(1));
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let mut producer = Producer::new(&mut cluster);
    for n in 0..12 {
        let value = format!("{n}-{}", "v".repeat(900));
        let request = producer.request("t", 0, &[&value]);
        cluster.produce(&request);
    }
    let victim = cluster.followers_of(DATA)[0];
    cluster.crash(victim, CrashChoice::Nothing);
    let mut finished = false;
    for operations in 0..200 {
        // The disk counts from the crash.
        cluster.node(victim).disk().stop_after(operations);
        finished = cluster.try_start(victim).is_ok() && !cluster.node(victim).disk().stopped();
        if finished {
            cluster.node(victim).disk().stop_after(u64::MAX);
            break;
        }
        cluster.crash(victim, CrashChoice::Torn(operations));
    }
    assert!(finished, "recovery takes more operations than were allowed");
    cluster.await_same();
    cluster.ticks(SECOND);
    let expected = cluster.read_all(1, "t", 0);
    assert_eq!(expected.len(), 12);
    for node in cluster.ids() {
        assert_eq!(cluster.read_all(node, "t", 0), expected, "node {node}");
    }
}

#[test]
fn a_process_that_is_killed_again_and_again_forgets_nothing() {
    let mut cluster = Cluster::ready(settings(4 << 10));
    cluster.create_topic("t", 1);
    let mut producer = Producer::new(&mut cluster);
    let mut expected = Vec::new();
    for n in 0..12 {
        let value = n.to_string();
        let request = producer.request("t", 0, &[&value]);
        expected.push((cluster.produce(&request).base_offset.expect("a place"), value));
        for node in cluster.ids() {
            cluster.kill(node);
        }
        for node in cluster.ids() {
            cluster.start(node);
        }
        cluster.await_leaders();
    }
    cluster.await_same();
    for node in cluster.ids() {
        let all = cluster.read_all(node, "t", 0);
        let found: Vec<(u64, String)> = pairs(&all).into_iter().map(|(o, v)| (o, v.to_owned())).collect();
        assert_eq!(found, expected, "node {node}");
    }
}

/// A node with a damaged file starts, never serves anything wrong, and is whole again before long.
#[test]
fn damage_in_any_file_is_repaired_and_never_served() {
    let mut cluster = Cluster::ready(Settings { scrub_bytes_per_second: 100 << 20, ..settings(3_000) });
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let mut producer = Producer::new(&mut cluster);
    for n in 0..24 {
        let value = format!("{n}-{}", "v".repeat(700));
        let request = producer.request("t", 0, &[&value]);
        cluster.produce(&request);
    }
    cluster.await_same();
    cluster.ticks(SECOND);
    // The node that leads nothing, so that its comings and goings disturb nobody.
    let victim = 3;
    let expected = cluster.read_all(victim, "t", 0);
    let files = cluster.node(victim).segment_files();
    cluster.crash(victim, CrashChoice::Everything);
    let mut whole = cluster.node(victim).disk();
    let (mut reported, mut samples) = (0, 0);
    for path in whole.paths() {
        let len = whole.file(&path).expect("a file").len() as u64;
        for sample in 0..16 {
            let disk = whole.crash(CrashChoice::Everything);
            // More of the beginning, where there is more to be damaged.
            let position = if sample < 8 { sample * 97 % len } else { (sample - 8) * len / 8 + 13 };
            if position >= len || !disk.corrupt(&path, position, 1 << (sample % 8)) {
                continue;
            }
            cluster.node_mut(victim).set_disk(disk);
            cluster.start(victim);
            for offset in [0, 5, 11, 17, 23] {
                let found = cluster.fetch(victim, "t", 0, offset);
                reported += usize::from(found.error == ErrorCode::StorageDamaged);
                for record in read(&found) {
                    assert_eq!(record, expected[record.offset as usize], "{path}, byte {position}");
                }
            }
            cluster.await_same();
            cluster.until("everything is repaired", |cluster| {
                let now: BTreeMap<_, _> = cluster.node(victim).segment_files().into_iter().collect();
                // The last file may have grown over what was padding.
                let used = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                files.iter().all(|(path, bytes)| now[path].starts_with(&bytes[..used(bytes)]))
            });
            assert_eq!(cluster.read_all(victim, "t", 0), expected, "{path}, byte {position}");
            samples += 1;
            cluster.crash(victim, CrashChoice::Nothing);
        }
    }
    assert!(samples > 50 && reported > 10, "{reported} reported in {samples} samples");
    cluster.start(victim);
    cluster.await_same();
    assert_eq!(cluster.read_all(victim, "t", 0), expected);
}

/// The scrub reads the journal too. A file of it that is damaged is given up as soon as checkpoints have all that is in
/// it, however many bytes are kept for followers that lag; until then and after that, nothing is lost.
#[test]
fn the_scrub_finds_damage_in_the_journal_and_gives_the_file_up() {
    let scrub = Settings { scrub_bytes_per_second: 100 << 20, ..settings(NEVER) };
    let mut cluster = Cluster::ready(Settings { journal_retain_bytes: 1 << 30, ..scrub });
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let mut producer = Producer::new(&mut cluster);
    let mut produce = |cluster: &mut Cluster, numbers: std::ops::Range<u32>| {
        for n in numbers {
            let request = producer.request("t", 0, &[&format!("{n}-{}", "v".repeat(700))]);
            cluster.produce(&request);
        }
        cluster.await_same();
    };
    produce(&mut cluster, 0..10);
    let victim = 3;
    let disk = cluster.node(victim).disk();
    let needle = b"5-vvvvvvvv";
    let place = disk.paths().into_iter().filter(|path| path.starts_with("journal/")).find_map(|path| {
        let bytes = disk.file(&path)?;
        let at = bytes.windows(needle.len()).position(|window| window == needle)?;
        Some((path, at as u64 + 100))
    });
    let (path, position) = place.expect("the record is in the journal");
    let figures = |cluster: &Cluster| {
        let metrics = cluster.node(victim).metrics();
        (metrics.damage_found_total.get(), metrics.damage_repaired_total.get(), metrics.checkpoints_total.get())
    };
    cluster.ticks(3 * SECOND);
    assert_eq!(figures(&cluster), (0, 0, 0), "nothing is damaged yet");
    assert!(disk.corrupt(&path, position, 1));
    cluster.until("the damage is found, once, and a checkpoint made", |cluster| {
        figures(cluster).0 == 1 && figures(cluster).2 >= 1
    });
    produce(&mut cluster, 10..60);
    cluster.until("the file is given up", |cluster| figures(cluster).1 == 1);
    assert!(!disk.paths().contains(&path), "{path} is still there");
    let made = figures(&cluster).2;
    cluster.ticks(5 * SECOND);
    assert_eq!(figures(&cluster), (1, 1, made), "nothing more to be done");
    cluster.crash(victim, CrashChoice::Nothing);
    cluster.start(victim);
    cluster.await_same();
    assert_eq!(cluster.read_all(victim, "t", 0).len(), 60);
}
