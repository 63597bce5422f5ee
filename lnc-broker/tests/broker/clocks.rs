//! Clocks that are wrong, by years and for a while: nothing is removed before its time, and everything is at its time.

use crate::harness::{Cluster, EPOCH_MS, Producer, SECOND, Settings};
use lnc_log::journal::GroupId;
use lnc_protocol::message::{OffsetSpec, TopicOptions};

const DATA: GroupId = GroupId(1);

const TEN_YEARS_MS: i64 = 315_360_000_000;

/// Age at which records are removed.
const MAX_AGE_MS: u64 = 100_000;

/// Longer than that, and than clocks need to be believed again.
const LONG: u32 = 120 * SECOND;

/// A cluster with a topic whose records are removed by age, and records in both of its partitions.
fn filled(settings: Settings) -> (Cluster, Producer) {
    let mut cluster = Cluster::ready(settings);
    let options = TopicOptions { max_age_ms: Some(MAX_AGE_MS), ..TopicOptions::default() };
    cluster.create_topic_with("t", 2, options);
    cluster.await_balance();
    let mut producer = Producer::new(&mut cluster);
    for _ in 0..3 {
        write(&mut cluster, &mut producer);
    }
    // Clocks are looked at every second.
    cluster.ticks(2 * SECOND);
    (cluster, producer)
}

fn settings(nodes: u64) -> Settings {
    let mut settings = Settings { nodes, ..Settings::default() };
    settings.segments.segment_bytes = 5_000;
    settings
}

/// A record for each partition; gives the latest time that it was said to be appended at, from the start of the run.
fn write(cluster: &mut Cluster, producer: &mut Producer) -> i64 {
    let value = "v".repeat(3_000);
    let append = |partition| {
        let request = producer.request("t", partition, &[&value]);
        cluster.produce(&request).append_time_ms
    };
    let latest = [0, 1].map(append).into_iter().max().expect("two partitions");
    latest as i64 - EPOCH_MS as i64
}

fn starts(cluster: &mut Cluster) -> [u64; 2] {
    let node = cluster.running()[0];
    [0, 1].map(|partition| cluster.list_offset(node, "t", partition, OffsetSpec::Earliest).0)
}

fn now_ms(cluster: &Cluster) -> i64 {
    (cluster.clock().mono_us / 1000) as i64
}

fn figure(cluster: &Cluster, node: u64, name: &str) -> f64 {
    let text = cluster.node(node).metrics().render();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(f64::NAN)
}

fn set_ahead(cluster: &mut Cluster, node: u64, by_ms: i64) {
    cluster.node_mut(node).clock_ahead_ms = by_ms;
}

/// It hears of the time from the node that lets it lead, a moment later: nothing is stamped before.
#[test]
fn a_leader_that_starts_with_a_clock_behind_the_data_stamps_nothing_too_early() {
    for behind in [1, 2] {
        let (mut cluster, mut producer) = filled(settings(3));
        for node in 1..=3 {
            cluster.kill(node);
        }
        cluster.ticks(60 * SECOND);
        set_ahead(&mut cluster, behind, -TEN_YEARS_MS);
        for node in [1, 2] {
            cluster.start(node);
        }
        for _ in 0..20 {
            let appended = write(&mut cluster, &mut producer);
            assert!(appended >= now_ms(&cluster) - 2_000, "appended at {appended}, at {}", now_ms(&cluster));
        }
    }
}

#[test]
fn a_leader_ten_years_ahead_for_two_seconds_removes_nothing_and_stops_nothing() {
    let (mut cluster, mut producer) = filled(settings(3));
    let leader = cluster.leader_of(DATA);
    set_ahead(&mut cluster, leader, TEN_YEARS_MS);
    for _ in 0..4 {
        cluster.ticks(SECOND / 2);
        let appended = write(&mut cluster, &mut producer);
        assert!((appended - now_ms(&cluster)).abs() <= 2_000, "appended at {appended}, at {}", now_ms(&cluster));
    }
    set_ahead(&mut cluster, leader, 0);
    cluster.ticks(SECOND);
    assert_eq!(starts(&mut cluster), [0, 0], "nothing is old");
    let kept = cluster.list_offset(leader, "t", 0, OffsetSpec::Latest).0;
    cluster.ticks(LONG);
    assert_eq!(starts(&mut cluster), [kept, kept], "everything is old");
    cluster.await_same();
}

#[test]
fn who_is_off_hands_over_says_so_and_leads_again_when_its_clock_is_right() {
    let (mut cluster, _) = filled(settings(3));
    let leader = cluster.leader_of(DATA);
    let peer = cluster.followers_of(DATA)[0];
    for by_ms in [TEN_YEARS_MS, -TEN_YEARS_MS, 3_000] {
        set_ahead(&mut cluster, leader, by_ms);
        // What a peer hears may have been on its way for long: that a clock is behind shows later.
        cluster.ticks(7 * SECOND);
        assert_ne!(cluster.leader_of(DATA), leader, "its clock is off by {by_ms} ms");
        assert_eq!(figure(&cluster, leader, "lance_clock_untrusted"), 1.0);
        assert_eq!(figure(&cluster, leader, "lance_retention_by_age_stopped"), 1.0);
        let problem = cluster.node(leader).snapshot().clock_problem.expect("a problem");
        assert!(problem.contains("those of a majority"), "{problem}");
        assert_eq!(figure(&cluster, peer, "lance_clock_untrusted"), 0.0, "it is not the one");
        let skew = figure(&cluster, peer, &format!("lance_clock_skew_seconds{{peer=\"{leader}\"}}"));
        assert!((skew - by_ms as f64 / 1e3).abs() < 1.0, "{skew} for {by_ms} ms");
        assert_eq!(starts(&mut cluster), [0, 0], "nothing is old");
        set_ahead(&mut cluster, leader, 0);
        // It is believed at once, and leads a while later.
        cluster.ticks(6 * SECOND);
        assert_eq!(figure(&cluster, leader, "lance_clock_untrusted"), 0.0);
        assert_eq!(cluster.node(leader).snapshot().clock_problem, None);
        cluster.await_balance();
    }
}

#[test]
fn a_leader_ten_years_behind_does_not_stamp_records_so() {
    let (mut cluster, mut producer) = filled(settings(3));
    // All of them, one after the other: whoever leads then was behind or heard of it.
    for node in cluster.ids() {
        set_ahead(&mut cluster, node, -TEN_YEARS_MS);
        cluster.ticks(7 * SECOND);
        let appended = write(&mut cluster, &mut producer);
        assert!((appended - now_ms(&cluster)).abs() <= 2_000, "appended at {appended}, at {}", now_ms(&cluster));
        set_ahead(&mut cluster, node, 0);
        cluster.ticks(7 * SECOND);
    }
    write(&mut cluster, &mut producer);
    cluster.ticks((MAX_AGE_MS as i64 - now_ms(&cluster)) as u32 / 10 + 8 * SECOND);
    let last = cluster.list_offset(1, "t", 0, OffsetSpec::Latest).0;
    let start = starts(&mut cluster)[0];
    assert!(start > 0 && start < last, "the first ones are old, the last one is not");
}

#[test]
fn two_nodes_that_disagree_remove_nothing_and_go_on_with_their_time() {
    let (mut cluster, mut producer) = filled(settings(2));
    for by_ms in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        for node in cluster.ids() {
            set_ahead(&mut cluster, node, by_ms);
            cluster.ticks(10 * SECOND);
            let appended = write(&mut cluster, &mut producer);
            assert!((appended - now_ms(&cluster)).abs() <= 2_000, "appended at {appended}, at {}", now_ms(&cluster));
            assert_eq!(starts(&mut cluster), [0, 0], "nobody knows what is old");
            for either in cluster.ids() {
                assert_eq!(figure(&cluster, either, "lance_clock_untrusted"), 1.0);
            }
            set_ahead(&mut cluster, node, 0);
            // Not long enough for anything to be removed.
            cluster.ticks(SECOND / 2);
        }
    }
    cluster.ticks(LONG);
    let kept = cluster.list_offset(1, "t", 0, OffsetSpec::Latest).0;
    assert_eq!(starts(&mut cluster), [kept, kept], "everything is old");
}

#[test]
fn a_node_alone_removes_nothing_when_its_clock_jumps_and_what_it_stamped_meanwhile_at_its_time() {
    let (mut cluster, mut producer) = filled(settings(1));
    for by_ms in [TEN_YEARS_MS, -TEN_YEARS_MS] {
        set_ahead(&mut cluster, 1, by_ms);
        cluster.ticks(2 * SECOND);
        // Stamped late is kept long, stamped early is removed early.
        let appended = write(&mut cluster, &mut producer);
        assert!(appended + 2_000 >= now_ms(&cluster), "appended at {appended}, at {}", now_ms(&cluster));
        assert_eq!(figure(&cluster, 1, "lance_clock_untrusted"), 1.0);
        cluster.ticks(SECOND);
        assert_eq!(starts(&mut cluster), [0, 0]);
        set_ahead(&mut cluster, 1, 0);
        cluster.ticks(2 * SECOND);
        let appended = write(&mut cluster, &mut producer);
        assert!((appended - now_ms(&cluster)).abs() <= 2_000, "the time of the group is what it was");
        assert_eq!(starts(&mut cluster), [0, 0]);
    }
    let kept = cluster.list_offset(1, "t", 0, OffsetSpec::Latest).0;
    cluster.ticks(LONG);
    assert_eq!(starts(&mut cluster), [kept, kept], "everything is old");
}

#[test]
fn time_that_was_turned_back_is_the_same_on_every_replica_and_after_a_start() {
    // Below the format that compares clocks, a leader believes itself: its mistake is in the log for good.
    let mut settings = settings(3);
    settings.old = vec![1, 2, 3];
    let (mut cluster, mut producer) = filled(settings);
    let leader = cluster.leader_of(DATA);
    set_ahead(&mut cluster, leader, TEN_YEARS_MS);
    cluster.ticks(2 * SECOND);
    assert!(write(&mut cluster, &mut producer) > TEN_YEARS_MS);
    set_ahead(&mut cluster, leader, 0);
    assert_eq!(starts(&mut cluster), [0, 0]);
    cluster.ticks(LONG);
    assert!(write(&mut cluster, &mut producer) > TEN_YEARS_MS, "time does not go back");
    let kept = starts(&mut cluster);

    cluster.settings.old.clear();
    for node in cluster.ids() {
        cluster.kill(node);
    }
    for node in cluster.ids() {
        cluster.start(node);
    }
    cluster.await_leaders();
    let raised =
        lnc_protocol::Request::RaiseFormat(lnc_protocol::message::RaiseFormatRequest { format: 3, timeout_ms: 5_000 });
    cluster.demand(&raised);
    // After a start that finds data from another time, a time is believed after an hour.
    cluster.ticks(5 * SECOND);
    assert!(write(&mut cluster, &mut producer) > TEN_YEARS_MS);
    cluster.stand_still(3600);
    cluster.ticks(10 * SECOND);
    let appended = write(&mut cluster, &mut producer);
    assert!((appended - now_ms(&cluster)).abs() <= 2_000, "time goes back");
    assert_eq!(starts(&mut cluster), kept, "what was stamped ahead counts from now on");
    cluster.await_same();
    let end = cluster.list_offset(1, "t", 0, OffsetSpec::Latest).0;
    cluster.ticks(LONG);
    assert_eq!(starts(&mut cluster), [end, end], "everything is old");
}
