//! Power that goes away under load, on one, two or all nodes at once: nothing that was acknowledged is lost.
//!
//! These mount file systems, so they are run on request: `./test.sh` does where the machine allows it. See
//! `docs/TESTING.md`.

use super::support::cluster::Cluster;
use super::support::node::Node;
use super::support::stream::Stream;
use super::support::volume::Volume;
use super::support::{Dice, eventually};
use bytes::Bytes;
use lnc_protocol::batch::{Limits, records, split};
use std::time::{Duration, Instant, SystemTime};

/// How often power is lost, where the environment does not say otherwise in LANCE_TEST_FAULTS.
const FAULTS: u64 = 6;

/// On how many nodes, one fault after the other. On all is what finds an acknowledgement that came too early: of fewer
/// nodes, the others still have the record.
const LOST_AT_ONCE: [usize; 4] = [3, 1, 3, 2];

/// Producers, each with a topic of its own, in the groups one after the other.
const STREAMS: usize = 4;

/// Records that each producer has under way.
const WINDOW: usize = 64;

/// Within this time a node under load notices that its disk is gone.
const NOTICE: Duration = Duration::from_secs(5);

/// Small files, so that power is lost while checkpoints are made, segments begin and journal files are recycled.
const SETTINGS: &[&str] = &["journal.checkpoint_bytes=4MiB", "journal.file_bytes=4MiB", "storage.segment_bytes=1MiB"];

/// Record number `number`, of many lengths.
fn value(number: u64) -> String {
    format!("{number} {}", "x".repeat((number * 7919 % 1500) as usize))
}

/// Three nodes, each on a disk of its own. The fields are dropped in this order: nodes before their disks.
struct Machines {
    cluster: Cluster,
    volumes: Vec<Volume>,
    dice: Dice,
    /// Topics whose producers are done, and how many records each got.
    written: Vec<(String, u64)>,
    /// Records in all topics that there ever were.
    total: u64,
}

impl Machines {
    fn start(backend: &str, dice: Dice) -> Self {
        let backend = format!("storage.backend={backend}");
        let cluster = Cluster::stopped(&[SETTINGS, &[&backend]].concat());
        let volumes: Vec<Volume> = cluster.nodes.iter().map(|_| Volume::new()).collect();
        for (node, volume) in cluster.nodes.iter().zip(&volumes) {
            std::os::unix::fs::symlink(volume.path(), &node.data).unwrap();
        }
        let mut machines = Self { cluster, volumes, dice, written: Vec::new(), total: 0 };
        machines.cluster.start_all();
        machines.cluster.wait_ready();
        machines
    }

    /// This many of the nodes, by dice.
    fn draw(&mut self, count: usize) -> Vec<usize> {
        let mut left = vec![0, 1, 2];
        while left.len() > count {
            left.remove(self.dice.roll() as usize % left.len());
        }
        left
    }

    fn pause(&mut self, longest_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.dice.roll() % longest_ms));
    }

    /// Takes the power from these nodes. Whatever of them still runs when the time to notice is over is killed, as the
    /// computer would have been; gives how many that were.
    fn lose_power(&mut self, victims: &[usize]) -> usize {
        Volume::lose_power(&victims.iter().map(|victim| &self.volumes[*victim]).collect::<Vec<_>>());
        let deadline = Instant::now() + NOTICE;
        let ended = |node: &mut Node| {
            while !node.has_ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            node.has_ended()
        };
        let mut unnoticed = 0;
        for victim in victims {
            let node = &mut self.cluster.nodes[*victim];
            if ended(node) {
                let status = node.wait_for_end();
                let log = node.log();
                let last = log.lines().last().unwrap_or_default();
                assert_eq!(status.code(), Some(1), "node {} ends with an error: {log}", node.id);
                assert!(says_why(last), "node {} says why it ends: {last}", node.id);
                println!("  node {} ended: {last}", node.id);
            } else {
                println!("  node {} did not notice, and was killed", node.id);
                node.kill();
                unnoticed += 1;
            }
        }
        unnoticed
    }

    /// Gives the power back to these nodes and starts them.
    fn restore(&mut self, victims: &[usize]) {
        for victim in victims {
            self.volumes[*victim].restore();
            self.cluster.nodes[*victim].start();
        }
    }

    /// Loses the power of `count` nodes under load, and checks what is left of all that was ever acknowledged.
    fn round(&mut self, number: u64, count: usize) {
        let names: Vec<String> = (0..STREAMS).map(|stream| format!("t{number}-{stream}")).collect();
        names.iter().for_each(|name| drop(self.cluster.create_topic(name, 1, &[])));
        let start = |name: &String| Stream::start_with(self.cluster.endpoints(), name.clone(), WINDOW, value);
        let streams: Vec<Stream> = names.iter().map(start).collect();
        assert_progress(&streams, "the start");
        self.pause(1500);

        let victims = self.draw(count);
        let ids: Vec<u64> = victims.iter().map(|victim| *victim as u64 + 1).collect();
        println!("fault {number}: power is lost on nodes {ids:?}");
        let unnoticed = self.lose_power(&victims);
        assert_eq!(unnoticed, 0, "nodes that went on for {NOTICE:?} under load without their disk");
        if count == 1 {
            assert_progress(&streams, "one of three nodes lost its power");
        }
        self.restore(&victims);
        // Sometimes again, on its way up.
        if self.dice.roll().is_multiple_of(3) {
            self.pause(400);
            println!("  and again while recovering");
            self.lose_power(&victims);
            self.restore(&victims);
        }
        self.cluster.wait_ready();
        assert_progress(&streams, "power was back");
        let counts: Vec<u64> = streams.into_iter().map(|stream| stream.finish().0).collect();
        self.total += counts.iter().sum::<u64>();
        self.written.extend(names.into_iter().zip(counts));
        self.assert_all_there();
        // The topics of this fault go through the next one too; older ones would fill the disks.
        for (topic, _) in self.written.drain(..self.written.len() - STREAMS) {
            self.cluster.ok(&["topic", "delete", &topic, "--yes"], b"");
        }
        for node in &mut self.cluster.nodes {
            assert!(!node.has_ended() && !node.log().contains("panicked"), "node {}: {}", node.id, node.log());
        }
    }

    /// Every record that was acknowledged is on every replica, exactly once and in order, and nothing else is.
    fn assert_all_there(&self) {
        for (topic, count) in &self.written {
            let stored = self.cluster.stored(1, topic, 0, *count);
            let mut number = 0;
            for batch in split(Bytes::from(stored)) {
                for record in records(&batch.unwrap(), &Limits::default()).unwrap() {
                    let found = record.unwrap().value.unwrap();
                    assert!(found == value(number), "{topic}, offset {number}: found {found:?}");
                    number += 1;
                }
            }
            assert_eq!(number, *count, "records of {topic}");
            self.cluster.assert_replicas_equal(topic, 0, *count);
        }
    }
}

/// Whether the last line of a node's log names a failure of its disk.
fn says_why(line: &str) -> bool {
    ["Input/output error", "Read-only file system"].iter().any(|why| line.contains(why))
}

/// Waits until every producer has had more acknowledgements.
#[track_caller]
fn assert_progress(streams: &[Stream], what: &str) {
    for stream in streams {
        let so_far = stream.acknowledged();
        eventually(&format!("the producers go on after {what}"), || {
            assert!(!stream.has_failed(), "a producer failed after {what}");
            (stream.acknowledged() > so_far + 2 * WINDOW as u64).then_some(())
        });
    }
}

/// Another one in every run; dice need one that is not 0.
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1
}

fn lose_power_under_load(backend: &str) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let faults = number("LANCE_TEST_FAULTS").unwrap_or(FAULTS);
    let seed = number("LANCE_TEST_SEED").unwrap_or_else(fresh_seed);
    println!("backend {backend}, {faults} faults, LANCE_TEST_SEED={seed}");
    let mut machines = Machines::start(backend, Dice(seed));
    for fault in 0..faults {
        machines.round(fault, LOST_AT_ONCE[fault as usize % LOST_AT_ONCE.len()]);
    }
    println!("{} acknowledged records, each there once and in order on every replica", machines.total);
}

#[test]
#[ignore = "mounts file systems: needs root, loop devices, e2fsprogs and xfsprogs"]
fn power_loss_keeps_what_was_acknowledged() {
    lose_power_under_load("auto");
}

#[test]
#[ignore = "mounts file systems: needs root, loop devices, e2fsprogs and xfsprogs"]
fn power_loss_keeps_what_was_acknowledged_without_a_ring() {
    lose_power_under_load("threads");
}
