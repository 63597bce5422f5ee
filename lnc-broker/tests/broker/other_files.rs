//! Segment files in the place of others with the same offsets and sizes: their records pass every check of their own, and
//! are not served all the same.

use crate::harness::records::{batch, read};
use crate::harness::{Cluster, SECOND, Settings, produce_request};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::segment::SegmentConfig;
use lnc_protocol::message::{OffsetSpec, ProduceRequest};
use std::collections::BTreeMap;

const RECORDS: usize = 60;
const VICTIM: u64 = 2;

/// Three nodes, and two partitions whose files have the same shape and other records; several segments of each are sealed.
struct Scene {
    cluster: Cluster,
    /// What is in the partitions.
    expected: Vec<Vec<String>>,
    /// The files of the victim.
    files: BTreeMap<String, Vec<u8>>,
}

fn settings(scrub: u64) -> Settings {
    let segments = SegmentConfig {
        segment_bytes: 16 << 10,
        write_block: 8192,
        index_interval_bytes: 1500,
        ..SegmentConfig::default()
    };
    Settings {
        checkpoint_bytes: 8 << 10,
        tail_cache_bytes: 0,
        scrub_bytes_per_second: scrub,
        segments,
        ..Settings::default()
    }
}

fn value(life: &str, partition: u32, n: usize) -> String {
    format!("{life}, partition {partition}, record {n:03}: {}", "v".repeat(700))
}

fn timestamp(partition: u32, n: usize) -> i64 {
    1000 + 10 * n as i64 + 5 * i64::from(partition)
}

/// `life` makes the records others, of the same length.
fn scene(life: &str, scrub: u64) -> Scene {
    let mut cluster = Cluster::ready(settings(scrub));
    cluster.create_topic("t", 2);
    // The formats of the data directories follow the catalog.
    cluster.ticks(SECOND);
    for n in 0..RECORDS {
        for partition in 0..2 {
            let batch = batch(None, timestamp(partition, n), &[&value(life, partition, n)]);
            let request = ProduceRequest { batch, ..produce_request("t", partition, &[]) };
            cluster.produce(&request);
        }
    }
    cluster.await_same();
    cluster.ticks(2 * SECOND);
    cluster.crash(VICTIM, CrashChoice::Nothing);
    let disk = cluster.node(VICTIM).disk();
    let paths = disk.paths().into_iter().filter(|path| path.starts_with("segments/"));
    let files: BTreeMap<String, Vec<u8>> = paths.map(|path| (path.clone(), disk.file(&path).expect("bytes"))).collect();
    assert!(
        files.keys().filter(|path| path.ends_with(".index")).count() > 2,
        "segments are sealed: {:?}",
        files.keys()
    );
    let expected = (0..2).map(|partition| (0..RECORDS).map(|n| value(life, partition, n)).collect()).collect();
    Scene { cluster, expected, files }
}

/// The file of the other partition.
fn twin(path: &str) -> String {
    match path.contains("-0/") {
        true => path.replace("-0/", "-1/"),
        false => path.replace("-1/", "-0/"),
    }
}

/// The victim has these files, but for the padding of one that is open.
fn are_restored(cluster: &Cluster, files: &BTreeMap<String, Vec<u8>>) -> bool {
    let disk = cluster.node(VICTIM).disk();
    files.iter().all(|(path, bytes)| {
        let now = disk.file(path).expect("it is there");
        let (short, long) = if now.len() < bytes.len() { (&now, bytes) } else { (bytes, &now) };
        long.starts_with(short) && long[short.len()..].iter().all(|byte| *byte == 0)
    })
}

impl Scene {
    /// The victim's file is another one of the same shape.
    fn replace(&self, path: &str, other: &[u8]) {
        let own = &self.files[path];
        let others = own != other || path.ends_with(".index");
        assert!(own.len() == other.len() && others, "{path}: {} and {} bytes", own.len(), other.len());
        self.cluster.node(VICTIM).disk().replace(path, other);
    }

    /// The victim with nobody to ask serves nothing that is not so; the first read of each offset is what is looked at.
    fn assert_never_wrong(&mut self, what: &str) -> usize {
        self.cluster.network.isolate(VICTIM);
        self.cluster.start(VICTIM);
        let mut refused = 0;
        for partition in 0..2u32 {
            for offset in 0..RECORDS as u64 {
                let found = self.cluster.fetch(VICTIM, "t", partition, offset);
                refused += usize::from(found.error == lnc_protocol::ErrorCode::StorageDamaged);
                for record in read(&found) {
                    let expected = &self.expected[partition as usize][record.offset as usize];
                    assert_eq!(record.value.as_bytes(), expected.as_bytes(), "{what}: partition {partition}");
                }
            }
        }
        self.cluster.network.heal();
        refused
    }

    /// All is as it was, and was found.
    fn assert_repaired(mut self, what: &str) {
        let found = self.cluster.node(VICTIM).metrics().damage_found_total.get();
        assert!(found > 0, "{what}: it is counted");
        self.cluster.await_leaders();
        let files = self.files.clone();
        self.cluster.until(what, |cluster| {
            // What somebody reads is repaired.
            cluster.ticks(SECOND / 4);
            for partition in 0..2 {
                for offset in 0..RECORDS as u64 {
                    cluster.fetch(VICTIM, "t", partition, offset);
                }
            }
            are_restored(cluster, &files)
        });
        self.cluster.await_same();
        for node in self.cluster.ids() {
            for partition in 0..2u32 {
                let records = self.cluster.read_all(node, "t", partition);
                let values: Vec<&[u8]> = records.iter().map(|record| record.value.as_bytes()).collect();
                let expected: Vec<&[u8]> = self.expected[partition as usize].iter().map(|v| v.as_bytes()).collect();
                assert_eq!(values, expected, "{what}: node {node}, partition {partition}");
            }
        }
    }
}

/// Which of a partition's files are exchanged.
type Choice = fn(&str) -> bool;

const CHOICES: [(&str, Choice); 3] = [
    ("the segments", |path| path.ends_with(".log")),
    ("segments with their indexes", |_| true),
    ("the first segment with its index", |path| path.contains("00000000000000000000.")),
];

#[test]
fn files_of_two_partitions_that_change_places_are_found_and_repaired() {
    for (what, choice) in CHOICES {
        let mut scene = scene("one", 0);
        for (path, _) in scene.files.iter().filter(|(path, _)| choice(path)) {
            scene.replace(path, &scene.files[&twin(path)]);
        }
        assert!(scene.assert_never_wrong(what) > 0, "{what}");
        scene.assert_repaired(what);
    }
}

/// The same topic in another cluster; also what the same files held in an earlier life, as after a restore.
#[test]
fn files_of_another_cluster_are_found_and_repaired() {
    let theirs = scene("two", 0);
    for (what, choice) in CHOICES {
        let mut scene = scene("one", 0);
        for (path, _) in scene.files.iter().filter(|(path, _)| choice(path)) {
            scene.replace(path, &theirs.files[path]);
        }
        assert!(scene.assert_never_wrong(what) > 0, "{what}");
        scene.assert_repaired(what);
    }
}

/// Nobody reads: the scrub finds it.
#[test]
fn the_scrub_finds_another_file_and_has_it_repaired() {
    let mut scene = scene("one", 8 << 20);
    for (path, _) in scene.files.iter().filter(|(path, _)| path.contains("-1/")) {
        scene.replace(path, &scene.files[&twin(path)]);
    }
    scene.cluster.start(VICTIM);
    let files = scene.files.clone();
    scene.cluster.until("the scrub has it repaired", |cluster| are_restored(cluster, &files));
    scene.assert_repaired("by the scrub");
}

/// An index alone is made anew, and is no damage of the segment.
#[test]
fn an_index_of_another_segment_is_made_anew() {
    let mut scene = scene("one", 0);
    for (path, _) in scene.files.iter().filter(|(path, _)| path.ends_with(".index")) {
        scene.replace(path, &scene.files[&twin(path)]);
    }
    scene.cluster.start(VICTIM);
    scene.cluster.await_leaders();
    scene.cluster.await_same();
    for partition in 0..2u32 {
        for n in 0..RECORDS {
            let time = OffsetSpec::Timestamp(timestamp(partition, n));
            let (offset, _) = scene.cluster.list_offset(VICTIM, "t", partition, time);
            assert_eq!(offset, n as u64, "partition {partition}, by time");
        }
    }
    assert_eq!(scene.cluster.node(VICTIM).metrics().damage_found_total.get(), 0);
    scene.cluster.ticks(SECOND);
    assert!(are_restored(&scene.cluster, &scene.files));
}
