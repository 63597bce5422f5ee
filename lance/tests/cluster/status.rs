//! The status document of a cluster's nodes, and `lance top`, which draws from it.

use super::support::cluster::Cluster;
use super::support::eventually;
use super::support::node::{Node, run};
use serde_json::Value;

fn document(node: &Node) -> Option<Value> {
    let (status, text) = node.http("/status.json?sort=records").ok()?;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).ok()
}

/// The ends of a topic's partitions, as a node sees them.
fn ends(document: &Value) -> Option<u64> {
    let partitions = document.pointer("/view/topics/page/0/page")?.as_array()?;
    partitions.iter().map(|partition| partition["high_watermark"].as_u64()).sum()
}

#[test]
fn every_node_shows_the_cluster_and_who_came_to_lead() {
    let mut cluster = Cluster::start();
    cluster.create_topic("t", 3, &[]);
    cluster.ok(&["produce", "t"], b"one\ntwo\nthree\nfour\n");
    for node in &cluster.nodes {
        let shown = eventually("all records are seen", || document(node).filter(|shown| ends(shown) == Some(4)));
        assert_eq!(shown["node"], node.id);
        assert_eq!(shown["not_ready"], Value::Null);
        assert_eq!(shown["view"]["topics"]["page"][0]["name"], "t");
        assert_eq!(shown["view"]["problems"], serde_json::json!([]));
        let (status, page) = node.http("/").unwrap();
        assert!(status == 200 && page.contains("<title>LANCE</title>"));
    }
    eventually("what a node did has rates", || {
        let rates = cluster.nodes.iter().filter_map(document).map(|shown| shown["rates"]["records_in"].clone());
        let most = rates.flat_map(|rates| rates.as_array().cloned().unwrap_or_default());
        most.filter_map(|rate| rate.as_f64()).any(|rate| rate > 0.0).then_some(())
    });

    let victim = cluster.leader(0);
    cluster.node(victim).kill();
    let others = cluster.others(victim);
    let successor = cluster.leader_among(0, &others);
    for id in others {
        let shown = eventually("the node says what it saw", || {
            document(cluster.node(id)).filter(|shown| {
                let elections = shown["view"]["elections"].as_array().unwrap();
                let newest = elections.iter().find(|election| election["group"] == 0).unwrap();
                newest["leader"] == successor
            })
        });
        let problems = shown["view"]["problems"].to_string();
        assert!(problems.contains(&format!("node {victim} is not connected")), "{problems}");
    }
}

#[test]
fn top_prints_a_frame_or_the_document_without_a_terminal() {
    let mut cluster = Cluster::start();
    cluster.create_topic("words", 1, &[]);
    cluster.ok(&["produce", "words"], b"one\ntwo\n");
    let frame = String::from_utf8(cluster.ok(&["top", "--once"], b"")).unwrap();
    for part in ["LANCE node 1  all well", "3 of 3 reached", "GROUPS", "RECENT ELECTIONS", "1 topic, 1 partition"] {
        assert!(frame.contains(part), "no {part:?} in\n{frame}");
    }
    let words = frame.lines().find(|line| line.starts_with("words ")).unwrap();
    assert!(words.contains("  2  "), "the end offset: {words}");
    assert!(!frame.contains('\u{1b}'), "{frame:?}");

    let second = format!("http://127.0.0.1:{}/", cluster.node(2).ports.http);
    let json: Value = serde_json::from_slice(&cluster.ok(&["top", "-o", "json", "--status", &second], b"")).unwrap();
    assert_eq!((&json["node"], &json["format"]), (&Value::from(2), &Value::from(1)));

    let refused = run(cluster.command(&["top"]), b"");
    assert_eq!(refused.status.code(), Some(2), "no terminal");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--once"));
    cluster.node(2).kill();
    let gone = run(cluster.command(&["top", "--once", "--status", &second]), b"");
    assert_eq!(gone.status.code(), Some(3), "{}", String::from_utf8_lossy(&gone.stderr));
    let elsewhere = format!("127.0.0.1:{}", cluster.node(1).ports.client);
    let other = run(cluster.command(&["top", "--once", "--status", &elsewhere]), b"");
    let told = String::from_utf8_lossy(&other.stderr);
    assert!(
        other.status.code() == Some(1) && told.contains("answered 400"),
        "a port that speaks something else: {told}"
    );
}
