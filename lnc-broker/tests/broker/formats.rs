//! Versions that speak different formats, in one cluster.

use crate::harness::{Cluster, SECOND, Settings};
use lnc_broker::ProducerLimits;
use lnc_log::disk::memory::CrashChoice;
use lnc_log::journal::GroupId;
use lnc_protocol::message::{FormatsResponse, RaiseFormatRequest};
use lnc_protocol::{ErrorCode, Request, Response};
use lnc_replication::formation::Formats;

fn format(cluster: &mut Cluster, node: u64) -> u32 {
    match cluster.ask(node, &Request::Formats) {
        Ok(Response::Formats(FormatsResponse { format, oldest, newest })) => {
            assert_eq!(Formats { oldest, newest }, Formats::BUILD);
            format
        }
        other => panic!("not an answer: {other:?}"),
    }
}

fn raise(format: u32) -> Request {
    Request::RaiseFormat(RaiseFormatRequest { format, timeout_ms: 5_000 })
}

/// Why the leader of the catalog does not raise the format.
fn refusal(cluster: &mut Cluster, format: u32) -> (ErrorCode, String) {
    let error = cluster.ask(1, &raise(format)).expect_err("it should be refused");
    (error.code, error.message)
}

fn await_format(cluster: &mut Cluster, wanted: u32) {
    cluster.until("every node knows the format", |cluster| {
        cluster.running().into_iter().all(|node| format(cluster, node) == wanted)
    });
}

/// How many producers the first group of partitions remembers, on each node.
fn producer_limits(cluster: &mut Cluster) -> [Option<ProducerLimits>; 3] {
    [1, 2, 3].map(|node| cluster.node(node).state(GroupId(1)).producer_limits())
}

#[test]
fn a_new_cluster_has_the_newest_format_that_its_founders_speak() {
    let mut cluster = Cluster::ready(Settings::default());
    await_format(&mut cluster, Formats::BUILD.newest);
}

#[test]
fn the_format_is_raised_once_every_member_is_there_and_speaks_it() {
    const NEWEST: u32 = Formats::BUILD.newest;
    let mut cluster = Cluster::ready(Settings { old: vec![3], ..Settings::default() });
    cluster.create_topic("t", 1);
    cluster.ticks(5 * SECOND);
    cluster.await_balance();
    await_format(&mut cluster, 1);
    assert_eq!(producer_limits(&mut cluster), [None; 3]);
    let (code, why) = refusal(&mut cluster, NEWEST);
    assert_eq!(code, ErrorCode::FormatNotCommon);
    assert!(why.ends_with("node 3 speaks formats 1 to 1"), "{why}");

    cluster.kill(3);
    let (code, why) = refusal(&mut cluster, NEWEST);
    assert_eq!(code, ErrorCode::FormatNotCommon);
    assert!(why.ends_with("node 3 is not connected"), "{why}");

    cluster.settings.old.clear();
    cluster.start(3);
    for _ in 0..2 {
        assert_eq!(cluster.demand(&raise(NEWEST)), Response::RaiseFormat, "said twice");
    }
    await_format(&mut cluster, NEWEST);
    cluster.until("producers are limited on every node", |cluster| {
        producer_limits(cluster) == [Some(ProducerLimits::DEFAULT); 3]
    });
    assert_eq!(refusal(&mut cluster, 1).0, ErrorCode::InvalidRequest, "there is no way back");
    assert_eq!(refusal(&mut cluster, NEWEST + 1).0, ErrorCode::FormatNotCommon);

    cluster.await_same();
    for node in cluster.ids() {
        cluster.crash(node, CrashChoice::Nothing);
    }
    for node in cluster.ids() {
        cluster.start(node);
    }
    cluster.await_leaders();
    await_format(&mut cluster, NEWEST);
    cluster.await_same();
    assert_eq!(producer_limits(&mut cluster), [Some(ProducerLimits::DEFAULT); 3]);
}

/// A leader that starts without a checkpoint leads before it has applied that there is a cluster.
#[test]
fn a_start_does_not_raise_the_format() {
    let mut cluster = Cluster::ready(Settings { old: vec![3], ..Settings::default() });
    await_format(&mut cluster, 1);
    cluster.settings.old.clear();
    for node in cluster.ids() {
        cluster.crash(node, CrashChoice::Nothing);
    }
    for node in cluster.ids() {
        cluster.start(node);
    }
    cluster.await_leaders();
    cluster.ticks(5 * SECOND);
    await_format(&mut cluster, 1);
}
