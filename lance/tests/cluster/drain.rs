//! A node that is asked to stop hands over first, so that nobody notices.

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::stream::Stream;
use rustix::process::Signal;
use std::time::Duration;

#[test]
fn a_drained_leader_is_replaced_without_a_stall() {
    let mut cluster = Cluster::start();
    let group = cluster.create_topic("t", 1, &[])[0];
    let stream = Stream::start(cluster.endpoints(), "t", 1);
    eventually("records are acknowledged", || (stream.acknowledged() > 20).then_some(()));
    let leader = cluster.leader(group);
    cluster.node(leader).signal(Signal::TERM);
    let status = cluster.node(leader).wait_for_end();
    assert_eq!(status.code(), Some(0), "{}", cluster.node(leader).log());
    let others = cluster.others(leader);
    for each in 0..=3 {
        cluster.leader_among(each, &others);
    }
    let so_far = stream.acknowledged();
    eventually("records are acknowledged by the next leader", || (stream.acknowledged() > so_far + 20).then_some(()));
    cluster.node(leader).start();
    cluster.wait_ready();
    let (count, longest) = stream.finish();
    assert!(longest < Duration::from_secs(1), "one record took {longest:?}");
    cluster.assert_replicas_equal("t", 0, count);
    let log = cluster.node(leader).log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_rolling_restart_is_not_noticed_by_producers() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 1, &[]);
    let stream = Stream::start(cluster.endpoints(), "t", 1);
    for id in 1..=3 {
        let so_far = stream.acknowledged();
        eventually("records are acknowledged", || (stream.acknowledged() > so_far + 20).then_some(()));
        cluster.node(id).signal(Signal::TERM);
        assert_eq!(cluster.node(id).wait_for_end().code(), Some(0));
        cluster.node(id).start();
        cluster.wait_ready();
    }
    let (count, longest) = stream.finish();
    assert!(longest < Duration::from_secs(1), "one record took {longest:?}");
    cluster.assert_replicas_equal("t", 0, count);
}
