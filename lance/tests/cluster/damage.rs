//! Damage on disk is found, told, never served, and repaired from the other nodes.

use super::support::cluster::Cluster;
use super::support::node::Node;
use super::support::wire::{self, fetch_all};
use super::support::{assert_same, eventually};
use lnc_protocol::ErrorCode;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines that make several segments of 1 MiB.
fn lines() -> Vec<u8> {
    (0..60_000).flat_map(|number| format!("{number:0>99}\n").into_bytes()).collect()
}

/// All files below a directory of a node, in the order of their paths.
fn files(node: &Node, directory: &str, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![node.data.join(directory)]);
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Flips a bit of a file.
fn damage(path: &Path, position: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[position] ^= 4;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_segment_is_reported_and_repaired_from_the_other_nodes() {
    // Without the tail cache, every fetch reads segments.
    let mut cluster = Cluster::start_with(&["limits.tail_cache_bytes=0", "journal.checkpoint_bytes=1MiB"]);
    let group = cluster.create_topic("t", 1, &["--segment-bytes", "1MiB"])[0];
    cluster.ok(&["produce", "t", "--batch-bytes", "16KiB"], &lines());
    let expected = cluster.ok(&["consume", "t", "--until-end"], b"");
    let end = cluster.partitions("t")[0].high_watermark;
    cluster.assert_replicas_equal("t", 0, end);
    let victim = cluster.others(cluster.leader(group))[0];
    cluster.node(victim).kill();
    let segments = files(cluster.node(victim), "segments", ".log");
    assert!(segments.len() > 3, "{segments:?}");
    damage(&segments[1], 500_000);
    cluster.node(victim).start();
    cluster.node(victim).wait_ready();

    let mut wire = cluster.wire(victim);
    let told = eventually("the damage is told", || fetch_all(&mut wire, "t", 0).err());
    assert!(told.to_string().contains("StorageDamaged"), "{told}");
    let healthy = wire.fetch(wire::fetch("t", 0, 0)).unwrap();
    assert_eq!(healthy.error, ErrorCode::None, "what is not damaged is served");
    for id in cluster.others(victim) {
        let (bytes, _) = fetch_all(&mut cluster.wire(id), "t", 0).unwrap();
        assert!(bytes.len() > expected.len());
    }
    let good = fs::read(&files(cluster.node(cluster.others(victim)[0]), "segments", ".log")[1]).unwrap();
    eventually("the segment is repaired", || (fs::read(&segments[1]).unwrap() == good).then_some(()));
    assert!(cluster.node(victim).log().contains("damage is repaired"));
    let (bytes, _) = fetch_all(&mut wire, "t", 0).unwrap();
    assert!(bytes.len() > expected.len());
    let found = cluster.ok_at(victim, &["consume", "t", "--until-end"], b"");
    assert_same("read by a client of the damaged node", &found, &expected);
}

#[test]
fn damage_in_the_journal_is_told_and_repaired_from_the_other_nodes() {
    let mut cluster = Cluster::start_with(&["journal.checkpoint_bytes=64MiB"]);
    let group = cluster.create_topic("t", 1, &[])[0];
    cluster.ok(&["produce", "t"], &lines()[..2 << 20]);
    let end = cluster.partitions("t")[0].high_watermark;
    let victim = cluster.others(cluster.leader(group))[0];
    cluster.assert_replicas_equal("t", 0, end);
    // A later flush attests that what it follows was on stable storage.
    cluster.ok(&["produce", "t"], b"one more\n");
    cluster.assert_replicas_equal("t", 0, end + 1);

    cluster.node(victim).kill();
    let first = files(cluster.node(victim), "journal", ".journal").remove(0);
    damage(&first, 300_000);
    // While the node is alone, it has nobody to ask, and must not vouch for what it lost.
    let others = cluster.others(victim);
    for id in &others {
        cluster.node(*id).kill();
    }
    cluster.node(victim).start();
    eventually("the damage is told", || cluster.node(victim).log().contains("entries are lost").then_some(()));
    let log = cluster.node(victim).log();
    assert!(log.contains(&*first.file_name().unwrap().to_string_lossy()), "the file is named: {log}");

    for id in &others {
        cluster.node(*id).start();
    }
    cluster.wait_ready();
    let log = cluster.node(victim).log();
    assert!(log.contains("what was lost is here again"), "{log}");
    cluster.ok(&["produce", "t"], b"after the repair\n");
    cluster.assert_replicas_equal("t", 0, end + 2);

    // The damaged file is still there; what was repaired no longer depends on it.
    for _ in 0..2 {
        cluster.node(victim).kill();
        cluster.node(victim).start();
        cluster.wait_ready();
        cluster.assert_replicas_equal("t", 0, end + 2);
    }
}
