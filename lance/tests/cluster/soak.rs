//! One fault after the other, chosen by dice, under a producer that never pauses.

use super::support::cluster::Cluster;
use super::support::node::Node;
use super::support::stream::Stream;
use super::support::{Dice, assert_same, eventually};
use rustix::process::Signal;
use std::time::Duration;

/// How many faults, where the environment does not say otherwise in LANCE_TEST_FAULTS.
const FAULTS: u64 = 8;

/// Lets the producer write some more records.
#[track_caller]
fn progress(stream: &Stream, what: &str) {
    let so_far = stream.acknowledged();
    eventually(&format!("the producer goes on after {what}"), || {
        assert!(!stream.has_failed(), "the producer failed after {what}");
        (stream.acknowledged() > so_far + 100).then_some(())
    });
}

/// Does something bad to the cluster, and says what it was. All nodes run again afterwards, if not yet well.
fn disturb(cluster: &mut Cluster, dice: &mut Dice) -> String {
    let id = dice.roll() % 3 + 1;
    let other = cluster.others(id)[(dice.roll() % 2) as usize];
    let pause = Duration::from_millis(dice.roll() % 1200);
    match dice.roll() % 6 {
        0 => {
            cluster.node(id).kill();
            std::thread::sleep(pause);
            cluster.node(id).start();
            format!("node {id} was killed and down for {pause:?}")
        }
        1 => {
            cluster.node(id).signal(Signal::STOP);
            std::thread::sleep(pause);
            cluster.node(id).signal(Signal::CONT);
            format!("node {id} hung for {pause:?}")
        }
        2 => {
            cluster.node(id).signal(Signal::TERM);
            cluster.node(id).wait_for_end();
            cluster.node(id).start();
            format!("node {id} was restarted")
        }
        3 => {
            cluster.node(id).kill_now();
            cluster.node(other).kill();
            cluster.node(id).kill();
            std::thread::sleep(pause);
            cluster.node(other).start();
            cluster.node(id).start();
            format!("nodes {id} and {other} were killed at once and down for {pause:?}")
        }
        4 => {
            cluster.kill_all();
            cluster.nodes.iter_mut().for_each(Node::start);
            "all nodes were killed".to_owned()
        }
        _ => {
            cluster.node(id).signal(Signal::STOP);
            cluster.node(other).kill();
            std::thread::sleep(pause);
            cluster.node(id).signal(Signal::CONT);
            cluster.node(other).start();
            format!("node {id} hung while node {other} was dead, for {pause:?}")
        }
    }
}

#[test]
fn no_fault_loses_repeats_or_reorders_a_record() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let faults = number("LANCE_TEST_FAULTS").unwrap_or(FAULTS);
    let mut dice = Dice(number("LANCE_TEST_SEED").unwrap_or(0x5eed_0000_0000_0001));
    let mut cluster = Cluster::start_with(&["journal.checkpoint_bytes=1MiB"]);
    cluster.create_topic("t", 1, &["--segment-bytes", "1MiB"]);
    let stream = Stream::start(cluster.endpoints(), "t", 200);
    progress(&stream, "nothing yet");
    for _ in 0..faults {
        let what = disturb(&mut cluster, &mut dice);
        // Sometimes the next fault comes before the cluster is well again.
        if !dice.roll().is_multiple_of(4) {
            progress(&stream, &what);
        }
    }
    progress(&stream, "the last fault");
    let (count, _) = stream.finish();
    cluster.wait_ready();
    cluster.assert_one_leader_per_group();
    let expected: Vec<u8> = (0..count).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    for id in 1..=3 {
        assert_same("all records", &cluster.ok_at(id, &["consume", "t", "--until-end"], b""), &expected);
    }
    cluster.assert_replicas_equal("t", 0, count);
    for node in &cluster.nodes {
        assert!(!node.log().contains("panicked"), "node {}: {}", node.id, node.log());
    }
}
