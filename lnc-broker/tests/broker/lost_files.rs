//! Files that a node had and has no more: what it acknowledged with them, it must not vote without.

use crate::harness::{Cluster, Producer, SECOND, Settings};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, Op};
use lnc_log::journal::GroupId;

const DATA: GroupId = GroupId(1);
const RECORDS: usize = 60;

/// Three nodes; what is written when one of them is down is on the other two alone. All without power.
struct Scene {
    cluster: Cluster,
    /// Who acknowledged everything, and loses files.
    forgetful: u64,
    /// Who has everything as well.
    other: u64,
    /// Who was down.
    absent: u64,
}

fn scene(settings: Settings) -> Scene {
    let mut cluster = Cluster::ready(settings);
    cluster.create_topic("t", 1);
    let producer = Producer::new(&mut cluster);
    cluster.await_same();
    // The formats of the data directories follow the catalog.
    cluster.ticks(SECOND);
    acknowledged_by_two(cluster, producer)
}

/// Records while one node is down; then nobody has power.
fn acknowledged_by_two(mut cluster: Cluster, mut producer: Producer) -> Scene {
    let (forgetful, other, absent) = (1, 3, 2);
    cluster.crash(absent, CrashChoice::Everything);
    for n in 0..RECORDS {
        let request = producer.request("t", 0, &[&format!("{n}-{}", "v".repeat(700))]);
        cluster.produce(&request);
    }
    cluster.await_same();
    cluster.ticks(SECOND);
    for node in [forgetful, other] {
        cluster.crash(node, CrashChoice::Nothing);
    }
    Scene { cluster, forgetful, other, absent }
}

impl Scene {
    fn journal(&self) -> Vec<String> {
        let paths = self.cluster.node(self.forgetful).disk().paths();
        paths.into_iter().filter(|path| path.starts_with("journal/")).collect()
    }

    /// The forgetful node and the absent one alone have no leader; with the third one, everything is there.
    fn assert_nothing_is_lost(mut self, what: &str) {
        let cluster = &mut self.cluster;
        cluster.start(self.forgetful);
        cluster.start(self.absent);
        cluster.ticks(10 * SECOND);
        assert_eq!(cluster.leader(DATA), None, "{what}: nobody has what was acknowledged");
        // A restart changes nothing.
        cluster.crash(self.forgetful, CrashChoice::Nothing);
        cluster.start(self.forgetful);
        cluster.ticks(5 * SECOND);
        assert_eq!(cluster.leader(DATA), None, "{what}: nor after a restart");
        let in_doubt = |cluster: &Cluster, node| cluster.node(node).metrics().groups_in_doubt.get();
        assert!(
            in_doubt(cluster, self.forgetful) > 0 && in_doubt(cluster, self.absent) == 0,
            "{what}: the metric tells"
        );
        cluster.start(self.other);
        cluster.await_leaders();
        cluster.await_same();
        for node in cluster.ids() {
            assert_eq!(cluster.read_all(node, "t", 0).len(), RECORDS, "{what}: node {node}");
        }
        // Now it votes again, and whoever dies, all is there.
        cluster.ticks(2 * SECOND);
        assert_eq!(in_doubt(cluster, self.forgetful), 0, "{what}: the metric tells");
        cluster.crash(self.other, CrashChoice::Nothing);
        cluster.await_leaders();
        for node in cluster.running() {
            assert_eq!(cluster.read_all(node, "t", 0).len(), RECORDS, "{what}: node {node}");
        }
    }
}

#[test]
fn a_young_node_that_lost_journal_and_checkpoints_does_not_vote() {
    let scene = scene(Settings::default());
    let disk = scene.cluster.node(scene.forgetful).disk();
    disk.lose_all("journal/");
    disk.lose_all("checkpoint/");
    scene.assert_nothing_is_lost("journal and checkpoints");
}

#[test]
fn a_node_that_lost_its_newest_journal_file_does_not_vote() {
    let small = || Settings { journal_file_bytes: 32 << 10, ..Settings::default() };
    type Loss = fn(&lnc_log::disk::MemoryDisk, &str);
    let ways: [(&str, Loss); 4] = [
        ("deleted", |disk, path| assert!(disk.lose(path))),
        ("emptied", |disk, path| assert!(disk.cut(path, 0))),
        ("cut", |disk, path| assert!(disk.cut(path, 4096))),
        ("zeroed", |disk, path| disk.replace(path, &vec![0; 32 << 10])),
    ];
    for (what, lose) in ways {
        let scene = scene(small());
        let journal = scene.journal();
        assert!(journal.len() > 3, "{journal:?}");
        // The last one is only prepared.
        lose(&scene.cluster.node(scene.forgetful).disk(), &journal[journal.len() - 2]);
        scene.assert_nothing_is_lost(what);
    }
}

#[test]
fn a_node_that_lost_its_journal_behind_a_checkpoint_does_not_vote() {
    let settings = Settings { checkpoint_bytes: 8 << 10, ..Settings::default() };
    let scene = scene(Settings { journal_file_bytes: 32 << 10, ..settings });
    assert!(scene.cluster.node(scene.forgetful).checkpoint(DATA).is_some_and(|found| found.applied_index > 10));
    scene.cluster.node(scene.forgetful).disk().lose_all("journal/");
    scene.assert_nothing_is_lost("the journal behind a checkpoint");
}

/// What the checkpoint knows of terms counts, where the journal and its mark are from before those.
#[test]
fn a_node_whose_journal_and_mark_are_older_than_its_checkpoint_does_not_vote() {
    let (forgetful, other, absent) = (1, 3, 2);
    let small = Settings { checkpoint_bytes: 8 << 10, journal_file_bytes: 32 << 10, ..Settings::default() };
    let mut cluster = Cluster::ready(small);
    cluster.create_topic("t", 1);
    let producer = Producer::new(&mut cluster);
    cluster.await_same();
    cluster.ticks(SECOND);
    cluster.crash(forgetful, CrashChoice::Nothing);
    let disk = cluster.node(forgetful).disk();
    let is_old = |path: &String| path.starts_with("journal/") || path == "DURABLE";
    let old: Vec<(String, Vec<u8>)> =
        disk.paths().into_iter().filter(is_old).map(|path| (path.clone(), disk.file(&path).unwrap())).collect();
    cluster.start(forgetful);
    // Terms rise.
    for node in [other, absent, forgetful, other, absent] {
        cluster.await_same();
        cluster.crash(node, CrashChoice::Nothing);
        cluster.await_leaders();
        cluster.start(node);
    }
    cluster.await_same();
    let scene = acknowledged_by_two(cluster, producer);
    let disk = scene.cluster.node(forgetful).disk();
    disk.lose_all("journal/");
    old.iter().for_each(|(path, bytes)| disk.replace(path, bytes));
    scene.assert_nothing_is_lost("an older journal and mark");
}

/// A file of the other node in the place of its own: both are named, and the node does not run.
#[test]
fn a_node_with_files_of_another_does_not_start() {
    for pattern in ["journal/", "checkpoint/", "DURABLE"] {
        let settings = Settings { checkpoint_bytes: 8 << 10, ..Settings::default() };
        let mut scene = scene(Settings { journal_file_bytes: 32 << 10, ..settings });
        let (disk, other) = (scene.cluster.node(scene.forgetful).disk(), scene.cluster.node(scene.other).disk());
        let mut paths: Vec<String> = other.paths().into_iter().filter(|path| path.starts_with(pattern)).collect();
        if pattern == "journal/" {
            paths.pop();
        }
        let theirs = other.file(&paths.pop().expect("there is one")).expect("it has bytes");
        let mut own: Vec<String> = disk.paths().into_iter().filter(|path| path.starts_with(pattern)).collect();
        if pattern == "journal/" {
            own.pop();
        }
        let own = own.pop().expect("there is one");
        // A checkpoint under the number of the file that it replaces.
        if pattern == "checkpoint/" {
            disk.lose_all("checkpoint/");
            let number = other.paths().into_iter().rfind(|path| path.starts_with(pattern)).expect("one");
            let mut disk = disk.clone();
            disk.run(Op::CreateDir { path: "checkpoint".to_owned() }).expect("made");
            disk.replace(&number, &theirs);
        } else {
            disk.replace(&own, &theirs);
        }
        let error = scene.cluster.try_start(scene.forgetful).expect_err(pattern);
        assert!(error.contains("node 1 (incarnation") && error.contains("node 3 (incarnation"), "{pattern}: {error}");
        scene.cluster.start(scene.absent);
        scene.cluster.start(scene.other);
        scene.cluster.await_leaders();
        assert_eq!(scene.cluster.read_all(scene.other, "t", 0).len(), RECORDS);
    }
}

#[test]
fn checkpoints_that_are_gone_stop_the_start() {
    let settings = Settings { checkpoint_bytes: 8 << 10, journal_retain_bytes: 0, ..Settings::default() };
    let mut scene = scene(Settings { journal_file_bytes: 32 << 10, ..settings });
    let disk = scene.cluster.node(scene.forgetful).disk();
    let newest = disk.paths().into_iter().rfind(|path| path.starts_with("checkpoint/")).expect("one");
    disk.lose(&newest);
    let error = scene.cluster.try_start(scene.forgetful).expect_err("an older one does not do");
    assert!(error.contains(&newest), "{error}");
    let segments = scene.cluster.node(scene.forgetful).segment_files();
    assert!(!segments.is_empty());
    for format in ["with the mark", "without"] {
        let disk = scene.cluster.node(scene.forgetful).disk().crash(CrashChoice::Nothing);
        scene.cluster.node_mut(scene.forgetful).set_disk(disk.clone());
        disk.lose_all("checkpoint/");
        if format == "without" {
            disk.lose("DURABLE");
            scene.cluster.node_mut(scene.forgetful).set_format(2);
        }
        let error = scene.cluster.try_start(scene.forgetful).expect_err("without a checkpoint");
        assert!(error.contains("gone"), "{format}: {error}");
        assert_eq!(scene.cluster.node(scene.forgetful).segment_files(), segments, "{format}: nothing was removed");
    }
}

/// The checkpoint with state that came from a peer stands for a log that was given up: the one before it is none to go back
/// to.
#[test]
fn a_checkpoint_with_state_from_a_peer_that_is_gone_stops_the_start() {
    let settings = Settings { checkpoint_bytes: 16 << 10, journal_file_bytes: 64 << 10, ..Settings::default() };
    let mut cluster = Cluster::ready(Settings { journal_retain_bytes: 64 << 10, entry_cache_bytes: 0, ..settings });
    cluster.create_topic("t", 1);
    let mut producer = Producer::new(&mut cluster);
    let value = "v".repeat(4000);
    for _ in 0..10 {
        cluster.produce(&producer.request("t", 0, &[&value]));
    }
    cluster.await_same();
    cluster.ticks(SECOND);
    let late = cluster.followers_of(DATA)[0];
    cluster.crash(late, CrashChoice::Nothing);
    for _ in 0..200 {
        cluster.produce(&producer.request("t", 0, &[&value]));
        cluster.tick();
    }
    let former = newest_checkpoint(&cluster, late);
    cluster.start(late);
    cluster.until("it has taken over state", |cluster| cluster.reopened > 0);
    cluster.crash(late, CrashChoice::Nothing);
    let newest = newest_checkpoint(&cluster, late);
    assert!(newest > former, "{newest}");
    cluster.node(late).disk().lose(&newest);
    let error = cluster.try_start(late).expect_err("the log that it belongs to was given up");
    assert!(error.contains(&newest), "{error}");
}

fn newest_checkpoint(cluster: &Cluster, node: u64) -> String {
    let paths = cluster.node(node).disk().paths();
    paths.into_iter().rfind(|path| path.starts_with("checkpoint/")).expect("there is one")
}

#[test]
fn a_single_node_that_lost_the_end_of_its_journal_does_not_start() {
    let mut cluster = Cluster::ready(Settings { nodes: 1, ..Settings::default() });
    cluster.create_topic("t", 1);
    cluster.ticks(SECOND);
    cluster.crash(1, CrashChoice::Nothing);
    cluster.node(1).disk().lose_all("journal/");
    let error = cluster.try_start(1).expect_err("nobody else has what it lost");
    assert!(error.contains("the end of the journal is lost") && error.contains("Restore"), "{error}");
}

/// All segments gone: they are fetched from the others, as a missing one is.
#[test]
fn segments_that_are_gone_are_repaired() {
    let settings = Settings { checkpoint_bytes: 8 << 10, scrub_bytes_per_second: 8 << 20, ..Settings::default() };
    let mut scene = scene(Settings { journal_file_bytes: 32 << 10, tail_cache_bytes: 0, ..settings });
    let before = scene.cluster.node(scene.forgetful).segment_files();
    assert!(before.iter().any(|(_, bytes)| bytes.len() > 8192), "there is something to lose");
    scene.cluster.node(scene.forgetful).disk().lose_all("segments/");
    for node in scene.cluster.ids() {
        scene.cluster.start(node);
    }
    scene.cluster.await_leaders();
    scene.cluster.await_same();
    scene.cluster.until("all is repaired", |cluster| cluster.node(1).metrics().damage_repaired_total.get() > 0);
    scene.cluster.ticks(5 * SECOND);
    assert_eq!(scene.cluster.read_all(scene.forgetful, "t", 0).len(), RECORDS);
}
