//! Files of the journal that are gone at a start: nothing that was acknowledged goes with them.

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::node::Node;
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};

const RECORDS: u64 = 20;

fn lines() -> Vec<u8> {
    (0..RECORDS).flat_map(|number| format!("record {number}\n").into_bytes()).collect()
}

/// Three nodes that keep marks; then only `both` live, and acknowledge records.
fn acknowledged_by(both: [u64; 2], absent: u64) -> Cluster {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &[]);
    for id in 1..=3 {
        let format = cluster.node(id).data.join("FORMAT");
        eventually("the directory has the format of the cluster", || {
            fs::read_to_string(&format).ok()?.trim_end().ends_with(" 3").then_some(())
        });
    }
    cluster.node(absent).kill();
    cluster.ok_at(both[0], &["produce", "t"], &lines());
    cluster
}

/// The newest file of the journal that is in use; those behind it are only prepared.
fn newest(node: &Node) -> PathBuf {
    let in_use = |path: &Path| fs::read(path).unwrap().starts_with(b"LNCJ");
    let mut files: Vec<PathBuf> =
        fs::read_dir(node.data.join("journal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().rfind(|path| in_use(path)).expect("a file that is in use")
}

/// The node that lost files and the one that was down have nothing together; with the third one, all is there.
fn assert_all_comes_back(mut cluster: Cluster, forgetful: u64, absent: u64, other: u64) {
    for id in [forgetful, absent] {
        cluster.node(id).start();
    }
    eventually("the loss is told", || cluster.node(forgetful).log().contains("neither votes nor leads").then_some(()));
    eventually("both wait", || {
        let reason = cluster.node(forgetful).readyz()?.1;
        (reason.contains("has lost what it acknowledged") && !cluster.node(absent).is_ready()).then_some(())
    });
    cluster.node(other).start();
    cluster.wait_ready();
    for id in 1..=3 {
        let found = cluster.ok_at(id, &["consume", "t", "--until-end"], b"");
        assert!(found == lines(), "node {id} has lost what was acknowledged");
    }
    // It counts again: with the one that has everything gone, the group has a leader that has everything too.
    cluster.node(other).kill();
    eventually("the two that are left serve all", || {
        (cluster.node(forgetful).is_ready() && cluster.node(absent).is_ready()).then_some(())
    });
    assert!(cluster.ok_at(absent, &["consume", "t", "--until-end"], b"") == lines());
}

#[test]
fn a_young_node_without_its_journal_and_checkpoints_does_not_vote() {
    let mut cluster = acknowledged_by([1, 3], 2);
    for id in [1, 3] {
        cluster.node(id).kill();
    }
    for directory in ["journal", "checkpoint"] {
        // There may be no checkpoint yet.
        let _ = fs::remove_dir_all(cluster.node(3).data.join(directory));
    }
    assert_all_comes_back(cluster, 3, 2, 1);
}

#[test]
fn a_node_without_its_newest_journal_file_does_not_vote() {
    /// How a file is lost.
    type Loss = fn(&Path);
    let ways: [(bool, Loss); 3] = [
        (false, |path| fs::remove_file(path).unwrap()),
        (true, |path| fs::write(path, b"").unwrap()),
        (true, |path| {
            let file = fs::OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
    ];
    for (politely, lose) in ways {
        let mut cluster = acknowledged_by([1, 2], 3);
        for id in [1, 2] {
            match politely {
                true => {
                    cluster.node(id).signal(Signal::TERM);
                    cluster.node(id).wait_for_end();
                }
                false => cluster.node(id).kill(),
            }
        }
        lose(&newest(cluster.node(1)));
        assert_all_comes_back(cluster, 1, 3, 2);
    }
}

#[test]
fn a_file_of_another_node_is_refused_and_both_are_named() {
    let mut cluster = acknowledged_by([1, 2], 3);
    for id in [1, 2] {
        cluster.node(id).kill();
    }
    let foreign = fs::read(newest(cluster.node(2))).unwrap();
    fs::write(newest(cluster.node(1)), foreign).unwrap();
    cluster.node(1).start();
    assert!(!cluster.node(1).wait_for_end().success());
    let log = cluster.node(1).log();
    assert!(log.contains("belongs to the journal") || log.contains("was written by"), "{log}");
    // The other two go on with everything.
    for id in [2, 3] {
        cluster.node(id).start();
    }
    for id in [2, 3] {
        cluster.node(id).wait_ready();
    }
    assert!(cluster.ok_at(3, &["consume", "t", "--until-end"], b"") == lines());
}
