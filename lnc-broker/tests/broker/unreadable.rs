//! Places that cannot be read, until they are written or for good: damage, like those that read wrong.

use crate::harness::{Cluster, Producer, SECOND, Settings, fetch_request};
use lnc_log::disk::memory::{Bad, CrashChoice};
use lnc_log::journal::GroupId;
use lnc_protocol::{ErrorCode, Request, Response};

const DATA: GroupId = GroupId(1);
const RECORDS: usize = 60;

/// Three nodes with the same records in segments; nothing of them is in memory.
fn filled(settings: Settings) -> Cluster {
    let settings =
        Settings { checkpoint_bytes: 8 << 10, journal_file_bytes: 32 << 10, tail_cache_bytes: 0, ..settings };
    let mut cluster = Cluster::ready(settings);
    cluster.create_topic("t", 1);
    let mut producer = Producer::new(&mut cluster);
    // Everybody has heard that the producer's id is committed.
    cluster.ticks(SECOND);
    for n in 0..RECORDS {
        let request = producer.request("t", 0, &[&format!("{n}-{}", "v".repeat(700))]);
        cluster.produce(&request);
    }
    cluster.await_same();
    cluster.ticks(2 * SECOND);
    cluster
}

fn segment(cluster: &Cluster, node: u64) -> String {
    let files = cluster.node(node).segment_files();
    files.into_iter().find(|(_, bytes)| bytes.len() > 16 << 10).expect("a segment").0
}

#[test]
fn the_scrub_finds_and_repairs_a_place_of_a_segment_that_cannot_be_read() {
    let mut cluster = filled(Settings { scrub_bytes_per_second: 8 << 20, ..Settings::default() });
    let victim = cluster.leader_of(DATA);
    let path = segment(&cluster, victim);
    assert!(cluster.node(victim).disk().make_unreadable(&path, 8192, 1));
    let (found, repaired) = {
        let metrics = cluster.node(victim).metrics();
        (metrics.damage_found_total.get(), metrics.damage_repaired_total.get())
    };
    cluster.until("it is repaired", |cluster| !cluster.node(victim).disk().is_unreadable(&path));
    cluster.ticks(SECOND);
    let metrics = cluster.node(victim).metrics();
    assert!(metrics.damage_found_total.get() > found && metrics.damage_repaired_total.get() > repaired);
    assert_eq!(cluster.read_all(victim, "t", 0).len(), RECORDS);
}

/// Readers get what lies around the bad place, and are told who has the rest.
#[test]
fn a_fetch_gets_what_can_be_read_and_is_told_who_has_the_rest() {
    let mut cluster = filled(Settings::default());
    let victim = cluster.leader_of(DATA);
    let path = segment(&cluster, victim);
    // The others cannot help yet.
    cluster.network.isolate(victim);
    assert!(cluster.node(victim).disk().make_unreadable(&path, 20 << 10, 1));
    let first = match cluster.ask(victim, &fetch_request("t", &[(0, 0)], 0, 1)) {
        Ok(Response::Fetch(mut found)) => found.remove(0),
        other => panic!("not an answer: {other:?}"),
    };
    assert_eq!(first.error, ErrorCode::None, "{}", first.message);
    assert!(first.records.len() > 10 << 10, "{} bytes before the bad place", first.records.len());
    let damaged = |offset: u64| match cluster.ask(victim, &fetch_request("t", &[(0, offset)], 0, 1)) {
        Ok(Response::Fetch(mut found)) => {
            Some(found.remove(0)).filter(|found| found.error == ErrorCode::StorageDamaged)
        }
        other => panic!("not an answer: {other:?}"),
    };
    let told = (0..RECORDS as u64).find_map(damaged);
    let told = told.expect("a bad place is not served").message;
    assert!(told.contains("read it from node") && told.contains(":1992"), "{told}");
    cluster.network.heal();
    cluster.until("all can be read again", |cluster| !cluster.node(victim).disk().is_unreadable(&path));
    cluster.ticks(SECOND);
    assert_eq!(cluster.read_all(victim, "t", 0).len(), RECORDS);
}

/// At a start: one copy of the checkpoint, files of the journal that are not needed, the end of a segment.
#[test]
fn a_start_goes_on_with_what_can_be_read() {
    type Spoil = fn(&Cluster, u64) -> Vec<(String, u64)>;
    let of = |cluster: &Cluster, node: u64, prefix: &str| -> Vec<String> {
        cluster.node(node).disk().paths().into_iter().filter(|path| path.starts_with(prefix)).collect()
    };
    let ways: [(&str, Spoil); 4] = [
        ("a copy of the checkpoint", |cluster, node| {
            let paths = cluster.node(node).disk().paths();
            let newest = paths.into_iter().rfind(|path| path.starts_with("checkpoint/")).expect("one");
            vec![(newest, 1)]
        }),
        ("the oldest file of the journal", |cluster, node| {
            let paths = cluster.node(node).disk().paths();
            vec![(paths.into_iter().find(|path| path.starts_with("journal/")).expect("one"), 32 << 10)]
        }),
        ("a file of the journal that is only prepared", |cluster, node| {
            let paths = cluster.node(node).disk().paths();
            vec![(paths.into_iter().rfind(|path| path.starts_with("journal/")).expect("one"), 32 << 10)]
        }),
        ("the end of a segment", |cluster, node| {
            let files = cluster.node(node).segment_files();
            files.into_iter().map(|(path, bytes)| (path, bytes.len() as u64)).collect()
        }),
    ];
    for (what, spoil) in ways {
        let mut cluster = filled(Settings { scrub_bytes_per_second: 8 << 20, ..Settings::default() });
        let victim = 2;
        assert!(of(&cluster, victim, "journal/").len() > 2, "there are old files");
        cluster.crash(victim, CrashChoice::Nothing);
        let newest = lnc_log::checkpoint::load_latest(&mut cluster.node(victim).disk()).expect("whole").expect("one");
        let needed = newest.checkpoint.facts.expect("of format 3").needed_file;
        let applied: Vec<u64> = newest.checkpoint.groups.iter().map(|group| group.applied_index).collect();
        let number = newest.checkpoint.number;
        assert!(needed > 1, "{what}: checkpoint {number} of {applied:?} needs file {needed}");
        for (path, len) in spoil(&cluster, victim) {
            let from = if what.contains("end") { len.saturating_sub(1) } else { 0 };
            assert!(cluster.node(victim).disk().make_unreadable(&path, from, len - from), "{path}");
        }
        cluster.start(victim);
        cluster.await_leaders();
        cluster.await_same();
        cluster.until(what, |cluster| {
            let paths = cluster.node(victim).segment_files();
            paths.iter().all(|(path, _)| !cluster.node(victim).disk().is_unreadable(path))
        });
        cluster.ticks(SECOND);
        assert_eq!(cluster.read_all(victim, "t", 0).len(), RECORDS, "{what}");
    }
}

/// A follower that lags gets the state when the entries that it needs cannot be read.
#[test]
fn the_scrub_gives_up_a_place_of_the_journal_that_cannot_be_read() {
    let settings = Settings { scrub_bytes_per_second: 8 << 20, ..Settings::default() };
    let mut cluster = filled(settings);
    let victim = cluster.leader_of(DATA);
    let disk = cluster.node(victim).disk();
    let journal = || disk.paths().into_iter().filter(|path| path.starts_with("journal/")).collect::<Vec<_>>();
    let oldest = journal().remove(0);
    assert!(disk.make_unreadable(&oldest, 8192, 4096));
    cluster.until("the file is given up", |cluster| {
        let paths = cluster.node(victim).disk().paths();
        !paths.contains(&oldest) || !cluster.node(victim).disk().is_unreadable(&oldest)
    });
    assert!(cluster.node(victim).metrics().damage_found_total.get() > 0);
    assert!(matches!(cluster.ask(victim, &Request::ClusterInfo), Ok(Response::ClusterInfo(_))));
}

/// State that is on its way from a peer: what cannot be read of it comes again.
#[test]
fn a_start_goes_on_with_what_can_be_read_of_a_transfer() {
    let settings = Settings { journal_retain_bytes: 0, entry_cache_bytes: 0, ..Settings::default() };
    let mut cluster = filled(Settings { transfer_bytes_per_second: 100 << 10, ..settings });
    let late = cluster.followers_of(DATA)[0];
    cluster.crash(late, CrashChoice::Nothing);
    let mut producer = Producer::new(&mut cluster);
    let value = "v".repeat(4000);
    for _ in 0..100 {
        cluster.produce(&producer.request("t", 0, &[&value]));
        cluster.tick();
    }
    let incoming = |cluster: &Cluster| {
        let disk = cluster.node(late).disk();
        let paths = disk.paths().into_iter().filter(|path| path.starts_with("incoming/"));
        paths.filter(|path| disk.file(path).is_some_and(|bytes| bytes.len() > 16 << 10)).collect::<Vec<_>>()
    };
    cluster.start(late);
    cluster.until("a part of it has come", |cluster| !incoming(cluster).is_empty());
    let spoilt = incoming(&cluster);
    assert_eq!(cluster.reopened, 0, "it is not complete");
    cluster.kill(late);
    for path in &spoilt {
        assert!(cluster.node(late).disk().make_unreadable(path, 8192, 1), "{path}");
    }
    cluster.start(late);
    cluster.await_leaders();
    cluster.await_same();
    assert_eq!(cluster.read_all(late, "t", 0).len(), RECORDS + 100);
}

/// A place that stays bad when it is written over: the segment moves to a new file, and all is well.
#[test]
fn a_place_that_stays_bad_is_moved() {
    let mut cluster = filled(Settings { scrub_bytes_per_second: 8 << 20, ..Settings::default() });
    let victim = cluster.leader_of(DATA);
    let path = segment(&cluster, victim);
    assert!(cluster.node(victim).disk().make_bad(&path, 8192, 1, Bad::InThisFile));
    cluster.until("it is moved", |cluster| !cluster.node(victim).disk().is_unreadable(&path));
    cluster.ticks(3 * SECOND);
    assert_eq!(cluster.read_all(victim, "t", 0).len(), RECORDS);
    let metrics = cluster.node(victim).metrics();
    assert_eq!(metrics.damage_found_total.get(), metrics.damage_repaired_total.get());
    assert_eq!((metrics.damage_repairs_failed_total.get(), metrics.damage_unreadable.get()), (0, 0));
}

/// A place that stays bad wherever its file is: it counts as not repaired, is tried again less and less often, and readers are
/// told who has it.
#[test]
fn a_place_that_stays_bad_for_good_is_tried_again_at_a_bounded_pace() {
    let mut cluster = filled(Settings { scrub_bytes_per_second: 8 << 20, ..Settings::default() });
    let victim = cluster.leader_of(DATA);
    let path = segment(&cluster, victim);
    let repaired = cluster.node(victim).metrics().damage_repaired_total.get();
    assert!(cluster.node(victim).disk().make_bad(&path, 8192, 1, Bad::AtThisPath));
    cluster.until("it is known", |cluster| cluster.node(victim).metrics().damage_unreadable.get() == 1);
    // Somebody reads it all the time.
    let mut told = 0;
    for offset in (0..RECORDS as u64).cycle().take(600) {
        cluster.ticks(SECOND / 10);
        if let Ok(Response::Fetch(mut found)) = cluster.ask(victim, &fetch_request("t", &[(0, offset)], 0, 1)) {
            let found = found.remove(0);
            let is_damaged = found.error == ErrorCode::StorageDamaged;
            assert!(is_damaged || found.error == ErrorCode::None, "{}", found.message);
            assert!(!is_damaged || found.message.contains("read it from node"), "{}", found.message);
            told += u32::from(is_damaged);
        }
    }
    assert!(told > 10, "readers are told of it {told} times");
    let metrics = cluster.node(victim).metrics();
    let failed = metrics.damage_repairs_failed_total.get();
    assert!((4..=8).contains(&failed), "{failed} attempts in a minute");
    assert_eq!(metrics.damage_repaired_total.get(), repaired, "none of them counts as a repair");
    cluster.node(victim).disk().forgive();
    cluster.ticks(70 * SECOND);
    let metrics = cluster.node(victim).metrics();
    assert_eq!(metrics.damage_unreadable.get(), 0);
    assert_eq!(metrics.damage_found_total.get(), metrics.damage_repaired_total.get());
    assert_eq!(cluster.read_all(victim, "t", 0).len(), RECORDS);
}

/// A file of the journal with a place that stays bad is not used again under another name.
#[test]
fn a_file_of_the_journal_that_stays_bad_goes() {
    let mut cluster = filled(Settings { scrub_bytes_per_second: 8 << 20, ..Settings::default() });
    let victim = cluster.leader_of(DATA);
    let disk = cluster.node(victim).disk();
    let oldest = disk.paths().into_iter().find(|path| path.starts_with("journal/")).expect("a file");
    assert!(disk.make_bad(&oldest, 8192, 4096, Bad::InThisFile));
    cluster.until("it is given up", |cluster| {
        let disk = cluster.node(victim).disk();
        disk.paths().iter().filter(|path| path.starts_with("journal/")).all(|path| !disk.is_unreadable(path))
    });
    let mut producer = Producer::new(&mut cluster);
    for n in 0..RECORDS {
        cluster.produce(&producer.request("t", 0, &[&format!("{n}-{}", "w".repeat(700))]));
    }
    let disk = cluster.node(victim).disk();
    assert!(!disk.paths().iter().any(|path| disk.is_unreadable(path)));
}
