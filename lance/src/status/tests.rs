//! Tests of the document: what it says, and that it stays small.

use super::document::{MAX_PARTITIONS_OF_TOPIC, MAX_TOPICS, Query, Sort, View, view};
use super::rates::SnapshotRates;
use super::*;
use lnc_broker::status::{Election, Said, TopicExtent};
use lnc_protocol::message::{
    ClusterInfoResponse, GroupStatus, NodeStatus, PartitionDescription, PeerProgress, TopicOptions,
};
use lnc_replication::notice::{NodeFacts, Traffic};

fn node(id: u64, connected: bool) -> NodeStatus {
    NodeStatus {
        id,
        client_address: format!("n{id}:1992"),
        peer_address: format!("n{id}:1993"),
        http_address: format!("n{id}:1994"),
        connected,
        incarnation: 7,
        state: if connected { "connected" } else { "not connected" }.to_owned(),
        member: id,
        membership: "member".to_owned(),
    }
}

fn group(group: u32, leader: Option<u64>) -> GroupStatus {
    let peer =
        PeerProgress { member: 2, match_index: 7, next_index: 8, state: "replicate".into(), in_flight: 0, lag: 3 };
    GroupStatus {
        group,
        role: "leader".to_owned(),
        leader,
        term: 4,
        commit_index: 9,
        applied_index: 8,
        durable_index: 10,
        last_index: 10,
        first_index: 1,
        peers: vec![peer],
        voters: vec![1, 2, 3],
        outgoing: Vec::new(),
        learners: Vec::new(),
        lacks: String::new(),
    }
}

fn topic(id: u64, name: &str, ends: &[u64]) -> TopicExtent {
    let partition = |(partition, end): (u32, &u64)| PartitionDescription {
        partition,
        group: 1,
        leader: Some(1),
        log_start_offset: 1.min(*end),
        high_watermark: *end,
        size_bytes: 10 * end,
    };
    TopicExtent {
        id,
        name: name.to_owned(),
        options: TopicOptions { max_age_ms: Some(1000), max_bytes: None, segment_bytes: None },
        count: ends.len() as u32,
        partitions: (0..).zip(ends).map(partition).collect(),
    }
}

fn said(at_ms: u64, traffic: Traffic) -> Said {
    Said { at_ms, facts: NodeFacts { version: [1, 2, 3], free_bytes: Some(7 << 30), traffic } }
}

fn snapshot(taken_us: u64, topics: Vec<TopicExtent>) -> Snapshot {
    Snapshot {
        taken_ms: 5000,
        taken_us,
        cluster: ClusterInfoResponse {
            cluster_id: 10,
            node_id: 1,
            nodes: vec![node(1, true), node(2, true), node(3, false)],
            groups: vec![group(0, Some(1)), group(1, None)],
            transfers: Vec::new(),
        },
        facts: [(1, said(taken_us / 1000, Traffic::default()))].into(),
        clock_problem: Some("this node's clock is slow".to_owned()),
        space_problem: None,
        behind: [(0, 1)].into(),
        elections: vec![Election { at_ms: 4000, group: 0, term: 4, leader: 1 }],
        topic_count: topics.len(),
        topics,
    }
}

fn shown(snapshot: &Snapshot, query: &Query) -> View {
    view(snapshot, &SnapshotRates::default(), query)
}

#[test]
fn a_view_says_what_the_snapshot_says() {
    let view = shown(&snapshot(1, vec![topic(7, "orders", &[5, 0])]), &Query::default());
    assert_eq!(view.cluster_id, "0000000000000000000000000000000a");
    let problems = ["node 3 is not connected", "this node's clock is slow", "group 1 has no known leader"];
    assert_eq!(view.problems, problems);
    assert_eq!(view.nodes[0].leads, [0]);
    assert_eq!((view.nodes[0].version.as_str(), view.nodes[0].free_bytes), ("1.2.3", Some(7 << 30)));
    assert_eq!((view.nodes[1].version.as_str(), view.nodes[1].free_bytes), ("", None));
    assert_eq!((view.groups[0].behind, view.groups[1].behind), (Some(1), None));
    assert_eq!((view.groups[0].followers[0].member.as_str(), view.groups[0].followers[0].lag), ("2", Some(3)));
    assert_eq!((view.elections[0].at_ms, view.elections[0].leader), (4000, 1));
    let orders = &view.topics.page[0];
    assert_eq!((orders.records, orders.size_bytes, orders.partitions, orders.more), (4, 50, 2, 0));
    assert_eq!((orders.page[0].log_start_offset, orders.page[0].high_watermark), (1, 5));
    assert_eq!((view.topics.records, view.topics.size_bytes, view.topics.partitions), (4, 50, 2));
}

#[test]
fn topics_come_in_pages_in_the_order_asked_for() {
    let snapshot = snapshot(1, vec![topic(1, "a", &[5]), topic(2, "b", &[9]), topic(3, "c", &[7])]);
    let names = |sort, skip, topics| -> (Vec<String>, usize) {
        let view = shown(&snapshot, &Query { topics: Some(topics), skip, sort, ..Query::default() });
        (view.topics.page.iter().map(|topic| topic.name.clone()).collect(), view.topics.more)
    };
    assert_eq!(names(Sort::Name, 0, 2), (vec!["a".into(), "b".into()], 1));
    assert_eq!(names(Sort::Name, 2, 2), (vec!["c".into()], 0));
    assert_eq!(names(Sort::Size, 0, 2), (vec!["b".into(), "c".into()], 1));
    assert_eq!(names(Sort::Records, 1, 9), (vec!["c".into(), "a".into()], 0));
    assert_eq!(names(Sort::Name, 99, 2), (vec![], 0), "past the end");
}

#[test]
fn topics_are_found_by_a_part_of_their_names() {
    let snapshot = snapshot(1, vec![topic(1, "Orders", &[5]), topic(2, "payments", &[9]), topic(3, "re-orders", &[7])]);
    let found = |find: &str, skip| {
        let view = shown(&snapshot, &Query { find: find.into(), skip, topics: Some(1), ..Query::default() }).topics;
        let names: Vec<String> = view.page.iter().map(|topic| topic.name.clone()).collect();
        assert_eq!((view.count, view.partitions), (3, 3), "the sums are of all");
        (names.concat(), view.found, view.more)
    };
    assert_eq!(found("ORDER", 0), ("Orders".into(), 2, 1));
    assert_eq!(found("order", 1), ("re-orders".into(), 2, 0));
    assert_eq!(found("", 0), ("Orders".into(), 3, 2));
    assert_eq!(found("none", 0), (String::new(), 0, 0));
}

#[test]
fn ten_thousand_partitions_do_not_make_a_large_document() {
    let many = (0..10_000).map(|id| topic(id, &format!("{id:0249}"), &[u64::MAX >> 20])).collect();
    let wide = vec![topic(1, "wide", &[u64::MAX >> 30; 10_000])];
    for (topics, page, more) in [(many, MAX_TOPICS, 10_000 - MAX_TOPICS), (wide, 1, 0)] {
        let view = shown(&snapshot(1, topics), &Query { topics: Some(usize::MAX), ..Query::default() });
        assert_eq!((view.topics.page.len(), view.topics.more), (page, more));
        assert_eq!(view.topics.partitions, 10_000);
        let length = serde_json::to_string(&view).unwrap().len();
        assert!(length < 100_000, "{length} bytes");
    }
    let full = (0..MAX_TOPICS as u64).map(|id| topic(id, &format!("{id:0249}"), &[u64::MAX >> 20; 100])).collect();
    let view = shown(&snapshot(1, full), &Query { topics: Some(MAX_TOPICS), ..Query::default() });
    assert!(view.topics.page.iter().all(|topic| topic.page.len() == MAX_PARTITIONS_OF_TOPIC && topic.more == 84));
    let length = serde_json::to_string(&view).unwrap().len();
    assert!(length < 400_000, "the largest page has {length} bytes");
}

#[test]
fn topics_that_a_snapshot_has_no_room_for_are_counted() {
    let mut snapshot = snapshot(1, vec![topic(1, "a", &[5])]);
    snapshot.topic_count = 12;
    let topics = shown(&snapshot, &Query::default()).topics;
    assert_eq!((topics.count, topics.left_out, topics.more), (12, 11, 0));
}

/// Each node counts from its own start and says so by its own clock; what the cluster does is the sum.
#[test]
fn what_nodes_do_follows_from_what_they_have_counted() {
    let mut rates = SnapshotRates::default();
    let counted = |records: u64, produces: u64, produce_us: u64| Traffic {
        records_in: records,
        bytes_in: 10 * records,
        records_out: 3 * records,
        bytes_out: 30 * records,
        produces,
        produce_us,
    };
    let mut see = |taken_us: u64, facts: &[(u64, Said)]| {
        let snapshot = Snapshot { facts: facts.iter().copied().collect(), ..snapshot(taken_us, Vec::new()) };
        rates.note(&snapshot);
        view(&snapshot, &rates, &Query::default())
    };
    let first = see(1_000_000, &[(1, said(500, counted(7, 1, 9))), (2, said(90_000, counted(1000, 0, 0)))]);
    assert_eq!((first.traffic, first.nodes[0].traffic), (None, None), "said once is no rate");
    let second = see(2_000_000, &[(1, said(2500, counted(107, 5, 8009))), (2, said(91_000, counted(1030, 1, 12_000)))]);
    let one = second.nodes[0].traffic.expect("heard twice");
    assert_eq!((one.records_in, one.bytes_in, one.records_out, one.bytes_out), (50.0, 500.0, 150.0, 1500.0));
    assert_eq!((one.produces, one.produce_ms), (2.0, Some(2.0)));
    let all = second.traffic.expect("two are known");
    assert_eq!((all.records_in, all.bytes_out), (80.0, 2400.0));
    assert_eq!((all.produces, all.produce_ms), (3.0, Some(5.333)), "weighed by requests");
    assert_eq!(second.nodes[2].traffic, None, "the third is not heard");
    // The first has said nothing new; the second has started again.
    let third = see(2_500_000, &[(1, said(2500, counted(107, 5, 8009))), (2, said(92_000, counted(3, 1, 5)))]);
    assert_eq!((third.nodes[0].traffic, third.nodes[1].traffic), (Some(one), None));
    assert_eq!(third.traffic, Some(one));
    // Nobody asked for a while; a clock was turned back.
    let last = see(40_000_000, &[(1, said(40_000, counted(207, 9, 9))), (2, said(91_500, counted(9, 1, 5)))]);
    assert_eq!(last.traffic, None);
}

#[test]
fn a_topic_s_rate_follows_from_two_snapshots() {
    let mut rates = SnapshotRates::default();
    rates.note(&snapshot(1_000_000, vec![topic(1, "a", &[5]), topic(2, "b", &[7])]));
    assert_eq!((rates.of_topic(1), rates.of_topics()), (None, None), "one snapshot is no rate");
    rates.note(&snapshot(3_000_000, vec![topic(1, "a", &[105]), topic(2, "b", &[7]), topic(3, "c", &[9])]));
    assert_eq!((rates.of_topic(1), rates.of_topic(2), rates.of_topic(3)), (Some(50.0), Some(0.0), None));
    assert_eq!(rates.of_topics(), Some(50.0));
    // After a long time in which nobody looked, a mean would say little of now.
    rates.note(&snapshot(90_000_000, vec![topic(1, "a", &[205])]));
    assert_eq!(rates.of_topic(1), None);
    // A snapshot may be older than the one before if the node's broker was opened anew.
    rates.note(&snapshot(89_000_000, vec![topic(1, "a", &[300])]));
    assert_eq!(rates.of_topic(1), None);
}

#[test]
fn names_are_text_in_the_document() {
    let view = shown(&snapshot(1, vec![topic(1, "</script>\"\u{1b}[2J", &[1])]), &Query::default());
    let text = serde_json::to_string(&view).unwrap();
    assert!(text.contains(r#""name":"</script>\"\u001b[2J""#), "{text}");
    assert_eq!(serde_json::from_str::<View>(&text).unwrap(), view);
}

/// A status whose shard is this test.
fn status() -> (Arc<Status>, mpsc::Receiver<Question>) {
    let (status, questions) = Status::new(1, Metrics::new(), Arc::new(Health::new()));
    (Arc::new(status), questions)
}

#[tokio::test]
async fn many_who_look_on_are_one_question() {
    let (status, mut questions) = status();
    let asking: Vec<_> = (0..20)
        .map(|_| {
            let status = status.clone();
            tokio::spawn(async move { status.document(&Query::default()).await })
        })
        .collect();
    questions.recv().await.unwrap().send(snapshot(1, vec![topic(1, "a", &[5])])).unwrap();
    for document in asking {
        let document = document.await.unwrap();
        assert_eq!(document.view.unwrap().topics.count, 1);
        assert_eq!((document.problem, document.not_ready), (None, Some("starting".to_owned())));
    }
    assert!(questions.try_recv().is_err(), "the shard was asked once");
}

#[tokio::test]
async fn a_shard_that_does_not_answer_leaves_the_last_view_and_a_word_about_it() {
    tokio::time::pause();
    let (status, mut questions) = status();
    let document = status.document(&Query::default()).await;
    assert_eq!((document.view, document.problem), (None, None), "nothing yet, and readiness says why");
    // The question that nobody answered is found later, and its asker is gone.
    assert!(questions.recv().await.unwrap().send(snapshot(1, Vec::new())).is_err());

    status.latest.lock().await.asked = None;
    let answer = async { questions.recv().await.unwrap().send(snapshot(1, Vec::new())).unwrap() };
    let query = Query::default();
    let (document, ()) = tokio::join!(status.document(&query), answer);
    assert!(document.view.is_some() && document.problem.is_none());

    status.latest.lock().await.asked = None;
    let document = status.document(&Query::default()).await;
    assert_eq!(document.view.unwrap().taken_ms, 5000, "the old view");
    assert!(document.problem.unwrap().contains("busy or stuck"));
}
