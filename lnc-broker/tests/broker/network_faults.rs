//! Partitions of the network: nothing false is said, and once they end everything goes on.

use crate::harness::records::pairs;
use crate::harness::{
    Call, Cluster, Cut, Outcome, Producer, SECOND, Settings, fetch_request, offsets_request, produce_request,
};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{OffsetSpec, ProduceRequest};
use lnc_protocol::{ErrorCode, Request, Response};
use lnc_replication::formation::Channel;

const DATA: GroupId = GroupId(1);

/// A cluster with one committed record, and a request for a second one.
fn start() -> (Cluster, u64, ProduceRequest) {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let mut producer = Producer::new(&mut cluster);
    cluster.produce(&producer.request("t", 0, &["a"]));
    let request = ProduceRequest { timeout_ms: 60_000, ..producer.request("t", 0, &["b"]) };
    cluster.await_same();
    let leader = cluster.leader_of(DATA);
    (cluster, leader, request)
}

fn produce(cluster: &mut Cluster, node: u64, request: &ProduceRequest) -> Call {
    let call = cluster.send(node, &Request::Produce(request.clone()));
    cluster.settle();
    call
}

/// After the fault: the retry succeeds, and all nodes have both records once.
fn heal_and_check(cluster: &mut Cluster, request: &ProduceRequest) {
    cluster.network.heal();
    assert_eq!(cluster.produce(request).base_offset, Some(1));
    cluster.await_same();
    for node in cluster.ids() {
        assert_eq!(pairs(&cluster.read_all(node, "t", 0)), [(0, "a"), (1, "b")], "node {node}");
    }
}

#[test]
fn an_isolated_leader_steps_down_and_acknowledges_nothing() {
    let (mut cluster, leader, request) = start();
    cluster.network.isolate(leader);
    let call = produce(&mut cluster, leader, &request);
    let mut ticks = 0;
    while cluster.view(leader, DATA).leads {
        assert!(!cluster.is_answered(call));
        cluster.tick();
        ticks += 1;
        assert!(ticks < 3 * 10, "it still leads after three election timeouts");
    }
    assert!(matches!(cluster.wait(call), Outcome::Refused(error) if error.code == ErrorCode::LeadershipLost));
    cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != leader));
    heal_and_check(&mut cluster, &request);
}

#[test]
fn an_isolated_leader_serves_nothing_above_its_high_watermark() {
    let (mut cluster, leader, request) = start();
    cluster.network.isolate(leader);
    produce(&mut cluster, leader, &request);
    assert!(cluster.view(leader, DATA).last > cluster.view(leader, DATA).commit);
    for _ in 0..SECOND {
        assert_eq!(pairs(&cluster.read_all(leader, "t", 0)), [(0, "a")]);
        cluster.tick();
    }
    heal_and_check(&mut cluster, &request);
}

#[test]
fn an_isolated_node_does_not_say_which_offset_is_the_latest() {
    for isolate_leader in [true, false] {
        let (mut cluster, leader, request) = start();
        let node = if isolate_leader { leader } else { cluster.followers_of(DATA)[0] };
        cluster.network.isolate(node);
        let call = cluster.send(node, &offsets_request("t", 0, OffsetSpec::Latest));
        if isolate_leader {
            cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != leader));
        }
        assert_eq!(cluster.produce_elsewhere(node, &request), Some(1));
        match cluster.wait(call) {
            Outcome::Refused(error) => assert!(error.code.is_retriable(), "{error}"),
            other => panic!("node {node} cannot know: {other:?}"),
        }
        heal_and_check(&mut cluster, &request);
    }
}

#[test]
fn a_leader_that_was_deposed_unawares_denies_no_offset() {
    let (mut cluster, leader, request) = start();
    cluster.network.isolate(leader);
    let call = cluster.send(leader, &fetch_request("t", &[(0, 2)], 0, 1));
    cluster.settle();
    assert!(cluster.view(leader, DATA).leads && !cluster.is_answered(call), "nobody says that it still leads");
    assert_eq!(cluster.produce_elsewhere(leader, &request), Some(1));
    match cluster.wait(call) {
        Outcome::Refused(error) => assert!(error.code.is_retriable(), "{error}"),
        other => panic!("it cannot know: {other:?}"),
    }
    heal_and_check(&mut cluster, &request);
    let after = cluster.leader_of(DATA);
    assert_eq!(cluster.fetch(after, "t", 0, 2).error, ErrorCode::None);
    assert_eq!(cluster.fetch(after, "t", 0, 3).error, ErrorCode::OffsetOutOfRange);
}

impl Cluster {
    /// Produce at the running nodes but one; gives the offset.
    fn produce_elsewhere(&mut self, but: u64, request: &ProduceRequest) -> Option<u64> {
        for _ in 0..20 * SECOND {
            let nodes: Vec<u64> = self.running().into_iter().filter(|node| *node != but).collect();
            for node in nodes {
                let call = self.send(node, &Request::Produce(request.clone()));
                if let Outcome::Done(Response::Produce(done)) = self.wait(call) {
                    return done.base_offset;
                }
            }
            self.tick();
        }
        panic!("nobody takes it: {}", self.describe());
    }
}

#[test]
fn without_the_replication_channel_nothing_is_acknowledged() {
    let (mut cluster, leader, request) = start();
    cluster.network.cut(Cut::channel(Channel::Replication));
    let call = produce(&mut cluster, leader, &request);
    for _ in 0..5 * SECOND {
        cluster.tick();
        let acknowledged = matches!(cluster.outcome(call), Some(Outcome::Done(_)));
        assert!(!acknowledged, "nobody but the leader can hold it");
    }
    for node in cluster.ids() {
        assert_eq!(pairs(&cluster.read_all(node, "t", 0)), [(0, "a")]);
    }
    heal_and_check(&mut cluster, &request);
}

/// What a majority holds is acknowledged, although nobody can be elected meanwhile.
#[test]
fn without_the_control_channel_replication_goes_on() {
    let (mut cluster, leader, request) = start();
    cluster.network.cut(Cut::channel(Channel::Control));
    let call = produce(&mut cluster, leader, &request);
    assert!(matches!(cluster.outcome(call), Some(Outcome::Done(Response::Produce(_)))));
    cluster.ticks(5 * SECOND);
    heal_and_check(&mut cluster, &request);
}

#[test]
fn a_leader_that_hears_nobody_acknowledges_nothing_and_is_replaced() {
    let (mut cluster, leader, request) = start();
    cluster.network.cut(Cut::to(leader));
    let call = produce(&mut cluster, leader, &request);
    cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != leader));
    assert!(matches!(cluster.wait(call), Outcome::Refused(error) if error.code == ErrorCode::LeadershipLost));
    heal_and_check(&mut cluster, &request);
}

#[test]
fn a_leader_that_nobody_hears_acknowledges_nothing_and_is_replaced() {
    let (mut cluster, leader, request) = start();
    cluster.network.cut(Cut::from(leader));
    let call = produce(&mut cluster, leader, &request);
    cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != leader));
    assert!(matches!(cluster.wait(call), Outcome::Refused(error) if error.code == ErrorCode::LeadershipLost));
    heal_and_check(&mut cluster, &request);
}

#[test]
fn a_follower_with_a_broken_way_in_or_out_disturbs_nobody() {
    for outward in [true, false] {
        let (mut cluster, leader, request) = start();
        let follower = cluster.followers_of(DATA)[0];
        let term = cluster.view(leader, DATA).term;
        cluster.network.cut(if outward { Cut::from(follower) } else { Cut::to(follower) });
        cluster.ticks(2 * SECOND);
        let call = produce(&mut cluster, leader, &request);
        assert!(matches!(cluster.outcome(call), Some(Outcome::Done(_))), "two of three are a majority");
        assert!(cluster.view(leader, DATA).leads);
        assert_eq!(cluster.view(leader, DATA).term, term);
        heal_and_check(&mut cluster, &request);
        assert_eq!(cluster.view(leader, DATA).term, term, "the returned follower forced an election");
    }
}

#[test]
fn two_followers_that_do_not_hear_each_other_are_no_trouble() {
    let (mut cluster, leader, request) = start();
    let [one, two] = cluster.followers_of(DATA)[..] else { panic!("three nodes") };
    cluster.network.cut(Cut::way(one, two));
    cluster.network.cut(Cut::way(two, one));
    cluster.ticks(2 * SECOND);
    assert!(cluster.view(leader, DATA).leads);
    heal_and_check(&mut cluster, &request);
}

/// A path that loses what is long: heartbeats arrive, records do not.
#[test]
fn a_leader_whose_records_do_not_arrive_gives_up_its_office_and_says_why() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    let leader = cluster.leader_of(DATA);
    cluster.network.cut(Cut { longer_than: Some(600), ..Cut::from(leader) });
    let value = "x".repeat(2_000);
    let call = cluster.send(leader, &Request::Produce(produce_request("t", 0, &[&value])));
    let since = cluster.now_ms();
    cluster.until("it says so", |cluster| {
        cluster.node(leader).readiness().is_err_and(|reason| reason.contains("commits nothing"))
    });
    cluster.until("another leads", |cluster| cluster.leader(DATA).is_some_and(|other| other != leader));
    assert!(cluster.now_ms() - since < 6_000, "{} ms", cluster.now_ms() - since);
    assert!(matches!(cluster.wait(call), Outcome::Refused(error) if error.code == ErrorCode::LeadershipLost));
    assert!(cluster.node(leader).metrics().render().contains("lance_leaders_stepped_aside_total 1\n"));
    let other = cluster.leader_of(DATA);
    cluster.ask(other, &Request::Produce(produce_request("t", 0, &[&value]))).expect("the next leader's arrive");
    for _ in 0..20 {
        cluster.ticks(SECOND);
        assert_ne!(cluster.leader_of(DATA), leader, "it is where the group belongs, and still cannot lead it");
    }
}

/// Where nobody can do better, a leader keeps trying, and not ever more often.
#[test]
fn leadership_does_not_go_to_and_fro_where_nobody_can_do_better() {
    let mut cluster = Cluster::ready(Settings::default());
    cluster.create_topic("t", 1);
    cluster.await_balance();
    cluster.network.cut(Cut { longer_than: Some(600), ..Cut::default() });
    let before = cluster.view(1, DATA).term;
    let value = "x".repeat(2_000);
    for second in 0..60 {
        let node = 1 + second % 3;
        cluster.send(node, &Request::Produce(produce_request("t", 0, &[&value])));
        cluster.ticks(SECOND);
    }
    let terms = cluster.view(1, DATA).term - before;
    assert!((1..=20).contains(&terms), "{terms} terms in a minute");
    cluster.network.heal();
    let leader = cluster.leader_of(DATA);
    cluster.ask(leader, &Request::Produce(produce_request("t", 0, &[&value]))).expect("everything arrives again");
}
