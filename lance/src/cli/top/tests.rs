//! Tests of what is drawn, and of what keys do.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::*;
use crate::status::document::{
    ElectionView, FORMAT, FollowerView, GroupView, NodeView, PartitionView, Rates, Sort, TopicView, TopicsView,
    TrafficView, View,
};

const NOW: u64 = 1_700_000_000_000;

fn node(id: u64, state: &str, leads: &[u32]) -> NodeView {
    NodeView {
        id,
        member: id.to_string(),
        state: state.to_owned(),
        membership: "member".to_owned(),
        connected: state != "not connected",
        leads: leads.to_vec(),
        client_address: format!("n{id}:1992"),
        peer_address: format!("n{id}:1993"),
        http_address: format!("n{id}:1994"),
        version: "0.2.0".to_owned(),
        free_bytes: Some(id << 30),
        traffic: Some(TrafficView { records_in: 100.0 * id as f64, ..TrafficView::default() }),
    }
}

fn group(group: u32, leader: Option<u64>) -> GroupView {
    let follower =
        |member: u64, lag| FollowerView { member: member.to_string(), state: "replicate".into(), lag: Some(lag) };
    GroupView {
        group,
        role: if leader == Some(1) { "leader" } else { "follower" }.to_owned(),
        leader,
        term: 7,
        commit_index: 1_234_567,
        behind: Some(3),
        voters: vec!["1".into(), "2".into(), "3".into()],
        followers: if leader == Some(1) { vec![follower(2, 0), follower(3, 1500)] } else { Vec::new() },
        ..GroupView::default()
    }
}

fn topic(name: &str, partitions: u32) -> TopicView {
    let page = (0..partitions.min(16)).map(|partition| PartitionView {
        partition,
        group: 1,
        leader: Some(2),
        log_start_offset: 1000,
        high_watermark: 12_345,
        size_bytes: 1 << 20,
    });
    let page: Vec<PartitionView> = page.collect();
    TopicView {
        name: name.to_owned(),
        partitions,
        records: 11_345 * u64::from(partitions),
        size_bytes: u64::from(partitions) << 20,
        records_per_second: Some(250.0),
        more: partitions - page.len() as u32,
        page,
        ..TopicView::default()
    }
}

fn document(page: Vec<TopicView>) -> Document {
    let topics = TopicsView {
        count: page.len(),
        partitions: page.iter().map(|topic| u64::from(topic.partitions)).sum(),
        size_bytes: 5 << 20,
        records_per_second: Some(250.0),
        page,
        ..TopicsView::default()
    };
    let view = View {
        cluster_id: "0123456789abcdef0123456789abcdef".to_owned(),
        traffic: Some(TrafficView {
            records_in: 600.0,
            bytes_in: 1536.0,
            produces: 9.0,
            produce_ms: Some(1.5),
            ..TrafficView::default()
        }),
        nodes: vec![node(1, "ready", &[0]), node(2, "connected", &[1]), node(3, "connected", &[])],
        groups: vec![group(0, Some(1)), group(1, Some(2))],
        elections: vec![ElectionView { at_ms: NOW - 42_000, group: 1, term: 7, leader: 2 }],
        topics,
        ..View::default()
    };
    let rates = Rates {
        step_ms: 1000,
        records_in: vec![0.0, 50.0, 100.0],
        produce_ms: vec![Some(2.5), None],
        ..Rates::default()
    };
    let (version, not_ready, problem) = ("0.1.0".to_owned(), None, None);
    Document { format: FORMAT, node: 1, version, now_ms: NOW, not_ready, problem, rates, view: Some(view) }
}

/// What a terminal of this size shows.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> (String, Terminal<TestBackend>) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |row| (0..width).map(|column| buffer[(column, row)].symbol()).collect::<String>().trim_end().to_owned();
    let text = (0..height).map(line).collect::<Vec<_>>().join("\n");
    (text, terminal)
}

fn key(screen: &mut Screen, code: KeyCode) -> bool {
    press(screen, KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn one_frame_has_everything() {
    let text = frame(Screen::new(document(vec![topic("audit", 1), topic("orders", 2)])));
    let expected = "\
LANCE node 1  all well  cluster 01234567  version 0.1.0  22:13:20 UTC
records in 100/s                 records out –                    produce –
  █                                                               █
 ██                                                               █
bytes in –                       bytes out –                      journal sync –



NODES  3 of 3 reached · all nodes: 600/s in, 0/s out (1.50 KiB/s, 0 B/s), produce 1.50 ms
NODE       STATE              LEADS       DISK LEFT  VERSION   CLIENTS             HTTP
1 (this)   ready              0               1 GiB  0.2.0     n1:1992             n1:1994
2          connected          1               2 GiB  0.2.0     n2:1992             n2:1994
3          connected          –               3 GiB  0.2.0     n3:1992             n3:1994

GROUPS  lag counts entries; followers' is known to their leader only, ? until it has heard from them
GROUP  LEADER    HERE         TERM      COMMITTED  VOTERS               LAG HERE  FOLLOWERS
    0  node 1    leader          7      1,234,567  1,2,3                       3  2:0 3:1,500
    1  node 2    follower        7      1,234,567  1,2,3                       3  –

RECENT ELECTIONS
WHEN          GROUP  LEADER        TERM
42 s ago          1  node 2           7

TOPICS  2 topics, 3 partitions, 5 MiB on each replica, 250 records/s; by name
TOPIC                                                  LEADER       END OFFSET  RECORDS/s       SIZE
audit                                                  node 2           12,345        250      1 MiB
orders  (2 partitions)                                                                250      2 MiB
  0                                                    node 2           12,345                 1 MiB
  1                                                    node 2           12,345                 1 MiB
";
    assert_eq!(text, expected);
}

#[test]
fn every_size_of_terminal_shows_something_and_none_panics() {
    for (width, height) in [(1, 1), (20, 5), (40, 12), (80, 24), (120, 40), (200, 60)] {
        for topics in [0, 1, 100] {
            let mut screen = Screen::new(document((0..topics).map(|_| topic("t", 3)).collect()));
            let (text, _) = drawn(&mut screen, width, height);
            assert!(text.starts_with(&"LANCE node 1"[..usize::from(width).min(12)]), "{width}×{height}: {text}");
        }
    }
    let mut screen = Screen::new(document(vec![topic("orders", 1)]));
    let (text, _) = drawn(&mut screen, 80, 24);
    for part in ["NODES", "GROUPS", "TOPICS", "orders", "q quit"] {
        assert!(text.contains(part), "80×24 lacks {part}:\n{text}");
    }
    let (text, _) = drawn(&mut screen, 120, 36);
    let beside = text.lines().find(|line| line.starts_with("NODES")).unwrap();
    assert!(beside.contains("RECENT ELECTIONS"), "{text}");
}

#[test]
fn topics_scroll_line_by_line_and_stop_at_the_last() {
    let mut screen = Screen::new(document((0..30).map(|id| topic(&format!("topic-{id:02}"), 2)).collect()));
    drawn(&mut screen, 100, 30);
    assert!(key(&mut screen, KeyCode::Down));
    let (text, _) = drawn(&mut screen, 100, 30);
    assert!(!text.contains("topic-00"), "its first line is gone:\n{text}");
    for _ in 0..2 {
        key(&mut screen, KeyCode::Down);
    }
    let (text, _) = drawn(&mut screen, 100, 30);
    let first = text.lines().skip_while(|line| !line.starts_with("TOPIC ")).nth(1).unwrap();
    assert!(first.starts_with("topic-01"), "{text}");
    key(&mut screen, KeyCode::Up);
    let (text, _) = drawn(&mut screen, 100, 30);
    let first = text.lines().skip_while(|line| !line.starts_with("TOPIC ")).nth(1).unwrap();
    assert!(first.starts_with("  1 "), "the last partition of topic-00:\n{text}");
    for _ in 0..50 {
        key(&mut screen, KeyCode::PageDown);
    }
    let (text, _) = drawn(&mut screen, 100, 30);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[28].starts_with("  1 ") && lines[26].starts_with("topic-29"), "the end is at the end:\n{text}");
    key(&mut screen, KeyCode::Home);
    assert!(drawn(&mut screen, 100, 30).0.contains("topic-00"));
}

#[test]
fn what_lies_beyond_the_page_is_asked_for() {
    let page = |skip: usize| {
        let mut document = document((skip..skip + 100).map(|id| topic(&format!("topic-{id:03}"), 1)).collect());
        let topics = &mut document.view.as_mut().unwrap().topics;
        (topics.count, topics.skip, topics.more) = (1000, skip, 900 - skip);
        document
    };
    let mut screen = Screen::new(page(0));
    drawn(&mut screen, 100, 30);
    assert_eq!(screen.query(), Query { topics: Some(100), ..Query::default() });
    screen.scroll_down(90);
    let query = screen.query();
    assert_eq!(query.skip, 65);
    assert!(drawn(&mut screen, 100, 30).0.contains("more topics"));
    screen.hear(Ok(page(query.skip)));
    let (text, _) = drawn(&mut screen, 100, 30);
    let first = text.lines().skip_while(|line| !line.starts_with("TOPIC ")).nth(1).unwrap();
    assert!(first.starts_with("topic-090"), "{text}");
}

#[test]
fn s_changes_the_order_and_goes_to_the_top() {
    let mut screen = Screen::new(document(vec![topic("a", 1)]));
    drawn(&mut screen, 100, 30);
    let mut orders = Vec::new();
    for _ in 0..4 {
        key(&mut screen, KeyCode::Char('s'));
        orders.push(screen.query().sort);
    }
    assert_eq!(orders, [Sort::Rate, Sort::Size, Sort::Records, Sort::Name]);
}

#[test]
fn q_and_control_c_quit() {
    let mut screen = Screen::new(document(Vec::new()));
    assert!(key(&mut screen, KeyCode::Char('x')) && key(&mut screen, KeyCode::Char('c')));
    assert!(!key(&mut screen, KeyCode::Char('q')));
    assert!(!press(&mut screen, KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn a_node_that_is_gone_leaves_its_last_word_marked_as_old() {
    let mut screen = Screen::new(document(vec![topic("orders", 1)]));
    screen.hear(Err(CliError::unreachable("http://n1:1994/status.json: connection refused")));
    let (text, terminal) = drawn(&mut screen, 100, 30);
    assert!(text.starts_with("LANCE node 1  not reachable"), "{text}");
    assert!(text.contains("! OLD, from 22:13:20 UTC: http://n1:1994/status.json: connection refused"), "{text}");
    assert!(text.contains("orders"), "{text}");
    assert_eq!(terminal.backend().buffer()[(14, 0)].fg, Color::Red);
    screen.hear(Ok(document(vec![topic("orders", 1)])));
    assert!(drawn(&mut screen, 100, 30).0.starts_with("LANCE node 1  all well"));
}

#[test]
fn what_is_wrong_is_told_and_what_has_no_room_is_counted() {
    let mut told = document(Vec::new());
    told.not_ready = Some("group 1 has no known leader".to_owned());
    let view = told.view.as_mut().unwrap();
    view.problems = (1..=9).map(|group| format!("group {group} has no known leader")).collect();
    view.groups = (0..257).map(|number| group(number, None)).collect();
    let (text, _) = drawn(&mut Screen::new(told), 100, 40);
    assert!(text.starts_with("LANCE node 1  not ready"), "{text}");
    assert!(text.contains("! this node cannot serve clients: group 1 has no known leader"), "{text}");
    assert!(text.contains("! and 8 more"), "{text}");
    assert!(text.lines().any(|line| line == "and 252 more"), "{text}");
}

#[test]
fn a_node_that_belongs_to_no_cluster_yet_has_no_tables() {
    let mut waiting = document(Vec::new());
    waiting.view = None;
    waiting.not_ready = Some("waiting for nodes 2, 3 to form the cluster".to_owned());
    let text = frame(Screen::new(waiting));
    assert!(text.contains("waiting for nodes 2, 3 to form the cluster"), "{text}");
    assert!(!text.contains("NODES"), "{text}");
}

#[test]
fn names_cannot_command_the_terminal() {
    let mut screen = Screen::new(document(vec![topic("a\u{1b}[2Jb\r\n\u{7}c", 1)]));
    let (text, _) = drawn(&mut screen, 100, 30);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let text = frame(screen);
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
}
