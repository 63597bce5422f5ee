//! Files in the place of others with the same offsets and sizes: of another partition, or from an older life of the same
//! one. Each of their batches passes every check of its own.

use crate::support::{Harness, KEY, concat, small, stored};
use bytes::Bytes;
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::incoming::{Came, FileInfo, Incoming, IncomingError, pending};
use lnc_log::journal::GroupId;
use lnc_log::segment::{
    DamagedBatch, Mending, PartitionKey, PartitionState, SegmentConfig, SegmentError, SegmentStore, StoredBatch,
};
use lnc_protocol::batch::{self, BatchHeader};
use lnc_protocol::{BatchBuilder, Codec};
use proptest::prelude::{ProptestConfig, any, prop_assert, proptest};
use std::collections::BTreeMap;

type States = Vec<(PartitionKey, PartitionState)>;

const LENS: [usize; 11] = [50, 10, 70, 20, 30, 40, 10, 60, 80, 90, 90];
const LOG: [&str; 2] = ["segments/7-1/00000000000000000000.log", "segments/7-1/00000000000000000027.log"];
/// Where the second segment begins.
const SECOND: u64 = 27;
const INDEX: &str = "segments/7-1/00000000000000000000.index";

fn config() -> SegmentConfig {
    SegmentConfig { segment_bytes: 2_200, index_interval_bytes: 400, ..small() }
}

/// Three records that nobody else writes, at times that nobody else has.
fn batch_of(life: u8, base_offset: u64, len: usize) -> StoredBatch {
    let mut builder = BatchBuilder::new(Codec::None);
    let timestamp = base_offset as i64 / 3 + i64::from(life) * 7 % 50;
    for n in 0..3 {
        builder.append(timestamp, None, Some(&vec![life ^ n ^ base_offset as u8; len]), &[]).unwrap();
    }
    let raw = builder.build();
    StoredBatch {
        base_offset,
        last_offset: base_offset + 2,
        max_timestamp: timestamp,
        append_ms: base_offset / 3,
        prefix: batch::stamped_prefix(&raw, base_offset, 1),
        raw,
    }
}

/// A store with batches of these lengths, all in files: the first segment sealed, the last one open.
fn life_of(life: u8, lens: &[usize]) -> (Harness, States, Vec<StoredBatch>) {
    let mut harness = Harness::new(config());
    let mut batches = Vec::new();
    for len in lens {
        let batch = batch_of(life, harness.store.log_end_offset(KEY), *len);
        harness.store.append(KEY, batch.clone()).unwrap();
        batches.push(batch);
    }
    let (_, states) = harness.checkpoint();
    (harness, states, batches)
}

fn life(life: u8) -> (Harness, States, Vec<StoredBatch>) {
    let made = life_of(life, &LENS);
    assert!(made.0.files().contains_key(INDEX));
    let bases: Vec<u64> = made.1[0].1.segments.iter().map(|segment| segment.base_offset).collect();
    assert_eq!(bases, [0, SECOND]);
    made
}

/// What each read gives is what was written, or damage.
fn assert_never_wrong(harness: &mut Harness, batches: &[StoredBatch]) -> Vec<DamagedBatch> {
    let mut damage = Vec::new();
    for (n, batch) in batches.iter().enumerate() {
        for max_bytes in [1, 700, 1 << 20] {
            let done = harness.read_done(batch.base_offset, max_bytes);
            match done.result {
                Ok(found) => {
                    let rest = concat(&batches[n..]);
                    assert!(rest.starts_with(&found.bytes), "other records at offset {}", batch.base_offset);
                }
                Err(SegmentError::Damaged { expected, found, .. }) => {
                    assert!(expected.contains("digest") && found.contains("another"), "{expected}; {found}");
                    assert!(done.damage.is_some(), "it can be repaired");
                }
                Err(other) => panic!("{other}"),
            }
            damage.extend(done.damage);
        }
    }
    damage.sort_unstable();
    damage.dedup();
    damage
}

/// Records of a healthy replica in the place of all damage, in pieces of no more than so many batches.
fn mend(harness: &mut Harness, batches: &[StoredBatch], piece: usize) -> usize {
    let (mut repairs, mut offset) = (0, 0);
    while offset < harness.store.written_offset(KEY) {
        let done = harness.read_done(offset, 700);
        if let Some(place) = done.damage {
            repair(harness, place, batches, piece);
            repairs += 1;
        } else {
            offset = done.result.unwrap().end_offset;
        }
        assert!(repairs < 1000, "no end");
    }
    assert!(harness.read_all(KEY, 1 << 20) == concat(batches));
    repairs
}

fn repair(harness: &mut Harness, place: DamagedBatch, batches: &[StoredBatch], piece: usize) {
    let mut came = Vec::new();
    let mut next = place.offset;
    loop {
        let answer: Vec<_> = batches.iter().filter(|batch| batch.base_offset >= next).take(piece).cloned().collect();
        came.extend_from_slice(&concat(&answer));
        match harness.store.repair(&mut harness.disk, place, &Bytes::from(came.clone())) {
            Mending::Begun => break,
            Mending::More { offset } => {
                assert!(offset > next, "it goes on");
                next = offset;
            }
            Mending::Refused => panic!("the right records are refused at {place:?}"),
        }
    }
    harness.settle().unwrap();
    assert_eq!(harness.store.take_repaired(), [place]);
}

/// Every choice of files of another life in the place of this one's.
fn exchanges() -> Vec<Vec<&'static str>> {
    let all = [LOG[0], LOG[1], INDEX];
    (1..8).map(|bits| (0..3).filter(|n| bits >> n & 1 == 1).map(|n| all[n]).collect()).collect()
}

#[test]
fn files_of_another_life_are_found_and_repaired() {
    let (theirs, ..) = life(2);
    for paths in exchanges() {
        for piece in [1, 2, usize::MAX] {
            let (ours, states, batches) = life(1);
            let healthy = ours.files();
            for path in &paths {
                let (other, own) = (theirs.disk.file(path).unwrap(), ours.disk.file(path).unwrap());
                assert!(other != own && other.len() == own.len(), "{path}: of the same shape");
                ours.disk.replace(path, &other);
            }
            let mut harness = Harness::recover(config(), ours.disk, &states).unwrap();
            let found = assert_never_wrong(&mut harness, &batches);
            let logs = paths.iter().filter(|path| path.ends_with(".log")).count();
            assert_eq!(found.is_empty(), logs == 0, "{paths:?}: {found:?}");
            let repairs = mend(&mut harness, &batches, piece);
            assert!(repairs >= logs, "{paths:?}");
            // By time as well: the other index has other times.
            for timestamp in 0..20 {
                let expected = batches.iter().find(|batch| batch.max_timestamp >= timestamp);
                match harness.read_from_timestamp(timestamp) {
                    Ok(found) => assert!(found[0][..] == stored(expected.unwrap())),
                    Err(error) => assert!(expected.is_none(), "{error}"),
                }
            }
            let (id, _) = harness.checkpoint();
            assert!(id.0 > 0);
            let files = harness.files();
            for (path, bytes) in &healthy {
                let len = bytes.len().min(files[path].len());
                assert!(bytes[..len] == files[path][..len], "{paths:?}: {path} is as it was");
            }
        }
    }
}

/// As it is while another file is being repaired, with damage behind it: that a stretch before has its digest says nothing of
/// the batches before the damage.
#[test]
fn the_rest_of_another_file_is_not_handed_out_up_to_damage() {
    let (theirs, ..) = life(2);
    let other = theirs.disk.file(LOG[0]).unwrap();
    let ends = |batches: &[StoredBatch]| -> Vec<usize> {
        let lens = batches.iter().take_while(|batch| batch.base_offset < SECOND).map(|batch| stored(batch).len());
        lens.scan(0, |end, len| Some(std::mem::replace(end, *end + len))).collect()
    };
    let count = ends(&life(1).2).len();
    for (own, broken) in (1..count).flat_map(|own| (own + 1..count).map(move |broken| (own, broken))) {
        let (ours, states, batches) = life(1);
        let ends = ends(&batches);
        let mut mixed = ours.disk.file(LOG[0]).unwrap();
        mixed[ends[own]..].copy_from_slice(&other[ends[own]..]);
        mixed[ends[broken] + 40] ^= 1;
        ours.disk.replace(LOG[0], &mixed);
        let mut harness = Harness::recover(config(), ours.disk, &states).unwrap();
        for (n, batch) in batches.iter().enumerate().take(count) {
            if let Ok(found) = harness.read_done(batch.base_offset, 1 << 20).result {
                assert!(
                    concat(&batches[n..]).starts_with(&found.bytes),
                    "{own} own ones, batch {broken} broken: at {n}"
                );
            }
        }
    }
}

/// Two partitions of one node.
#[test]
fn segments_of_two_partitions_that_change_places_are_found() {
    let other = PartitionKey { topic_id: 8, partition: 0 };
    let mut harness = Harness::new(config());
    harness.store.create_partition(other, None).unwrap();
    let mut batches = [Vec::new(), Vec::new()];
    for len in LENS {
        for (n, key) in [KEY, other].into_iter().enumerate() {
            let batch = batch_of(n as u8 + 1, harness.store.log_end_offset(key), len);
            harness.store.append(key, batch.clone()).unwrap();
            batches[n].push(batch);
        }
    }
    let (_, states) = harness.checkpoint();
    for name in ["00000000000000000000.log", "00000000000000000000.index"] {
        let paths = [KEY, other].map(|key| format!("segments/{key}/{name}"));
        let files = [0, 1].map(|n| harness.disk.file(&paths[n]).unwrap());
        harness.disk.replace(&paths[0], &files[1]);
        harness.disk.replace(&paths[1], &files[0]);
    }
    let mut harness = Harness::recover(config(), harness.disk, &states).unwrap();
    for key in [KEY, other] {
        let error = harness.read_key(key, 0, 1 << 20).unwrap_err();
        let file = format!("segments/{key}/00000000000000000000.log");
        assert!(error.to_string().contains(&file) && error.to_string().contains("another one"), "{error}");
        assert!(!error.is_retriable());
        harness.read_key(key, SECOND, 1).unwrap();
    }
    assert_eq!(mend(&mut harness, &batches[0], 3), 3, "its stretches");
}

#[test]
fn records_of_another_life_are_refused_as_a_repair() {
    let ((theirs, ..), (ours, states, batches)) = (life(2), life(1));
    let wrong = life(2).2;
    for paths in [vec![LOG[0]], vec![LOG[0], INDEX]] {
        let (disk, bytes) = (life(1).0.disk, theirs.disk.file(LOG[0]).unwrap());
        disk.replace(LOG[0], &bytes);
        if paths.len() > 1 {
            disk.replace(INDEX, &theirs.disk.file(INDEX).unwrap());
        }
        let mut harness = Harness::recover(config(), disk, &states).unwrap();
        let place = harness.read_done(0, 1).damage.unwrap();
        let refused = harness.store.repair(&mut harness.disk, place, &concat(&wrong).into());
        assert_eq!(refused, Mending::Refused, "{paths:?}");
        assert_eq!(harness.disk.file(LOG[0]).unwrap(), bytes, "nothing is written");
        mend(&mut harness, &batches, 4);
    }
    drop(ours);
}

/// What was written before there were digests is accepted as before, and gets one when the scrub has read it.
#[test]
fn older_segments_get_a_digest_when_they_are_read() {
    let (ours, mut states, batches) = life(1);
    let with = states.clone();
    let files = ours.files();
    for segment in &mut states[0].1.segments {
        segment.digest = None;
        segment.index.iter_mut().for_each(|entry| entry.digest = Default::default());
    }
    assert_eq!(states[0].1.encode()[0], 1, "of the first version");
    let mut harness = Harness::recover(config(), ours.disk, &states).unwrap();
    assert!(harness.read_all(KEY, 1) == concat(&batches));
    assert_eq!(harness.checkpoint().1, states, "to read here and there is not enough");
    // As the scrub reads.
    let mut offset = 0;
    while offset < harness.store.written_offset(KEY) {
        let found = harness.read_done(offset, 500).result.unwrap();
        offset = found.end_offset;
        harness.store.learn(KEY, &found);
    }
    harness.write_out();
    assert_eq!(harness.checkpoint().1, with);
    assert!(harness.files()[INDEX] == files[INDEX], "the index has it too");
    // More records continue it.
    let more = batch_of(1, harness.store.log_end_offset(KEY), 33);
    harness.store.append(KEY, more.clone()).unwrap();
    let (_, states) = harness.checkpoint();
    let mut all = batches;
    all.push(more);
    let mut lens = LENS.to_vec();
    lens.push(33);
    assert_eq!(states, life_of(1, &lens).1);
    let mut harness = Harness::recover(config(), harness.disk, &states).unwrap();
    assert!(harness.read_all(KEY, 1 << 20) == concat(&all));
    harness.disk.replace(LOG[0], &life(2).0.disk.file(LOG[0]).unwrap());
    let mut harness = Harness::recover(config(), harness.disk, &states).unwrap();
    assert!(!assert_never_wrong(&mut harness, &all).is_empty(), "from now on it is noticed");
}

/// Below the format of digests: files and states are those of before.
#[test]
fn without_digests_nothing_of_them_is_written() {
    let mut harness = Harness::new(config());
    harness.store = SegmentStore::new(config());
    harness.store.create_partition(KEY, None).unwrap();
    for len in LENS {
        let batch = batch_of(1, harness.store.log_end_offset(KEY), len);
        harness.store.append(KEY, batch).unwrap();
    }
    let (_, states) = harness.checkpoint();
    assert_eq!(states[0].1.encode()[0], 1);
    assert!(harness.files()[INDEX].starts_with(b"LNCIDX\x00\x01"));
    // The format is raised: what is sealed gets its digest from the scrub, what is open has it.
    harness.store.keep_digests();
    let (_, states) = harness.checkpoint();
    let digests: Vec<bool> = states[0].1.segments.iter().map(|segment| segment.digest.is_some()).collect();
    assert_eq!(digests, [false, true]);
}

/// Feed a transfer one batch after the other until it has all or refuses one.
fn transfer(disk: &mut MemoryDisk, incoming: &mut Incoming, batches: &[StoredBatch]) -> Result<(), IncomingError> {
    let mut done = Vec::new();
    loop {
        disk.wait(&mut done);
        for completion in done.drain(..) {
            if incoming.on_completion(disk, completion)? == Came::All {
                return Ok(());
            }
        }
        if let Some((key, offset)) = incoming.wants() {
            let next = batches.iter().find(|batch| batch.base_offset == offset).unwrap();
            incoming.records(disk, key, offset, &stored(next).into())?;
        }
    }
}

/// The records of a group's state are those that the state says, whoever sent some of them.
#[test]
fn a_transfer_of_other_records_is_refused_and_begins_anew() {
    let ((_, states, right), (_, _, wrong)) = (life(1), life(2));
    let files = states[0].1.segments.iter().map(|segment| FileInfo {
        key: KEY,
        base_offset: segment.base_offset,
        end_offset: segment.end_offset,
        len: segment.len,
        digest: segment.digest,
    });
    let files: Vec<FileInfo> = files.collect();
    // The first three came from somebody else.
    let mixed: Vec<StoredBatch> = wrong[..3].iter().chain(&right[3..]).cloned().collect();
    for restarted in [false, true] {
        let mut disk = MemoryDisk::new();
        let (_, mut left) = pending(&mut disk).unwrap();
        let begin = |disk: &mut MemoryDisk, left: &_, first| {
            Incoming::begin(disk, GroupId(1), (b"header", b"state", 4096), files.clone(), &BTreeMap::new(), left, first)
        };
        let mut incoming = begin(&mut disk, &left, 1 << 32);
        let error = transfer(&mut disk, &mut incoming, &mixed).unwrap_err();
        assert!(matches!(&error, IncomingError::Unfit { offset: 0, .. }), "{error}");
        incoming.leave(&mut left);
        if restarted {
            disk = disk.crash(CrashChoice::Everything);
            (_, left) = pending(&mut disk).unwrap();
        }
        let mut incoming = begin(&mut disk, &left, 2 << 32);
        while incoming.wants().is_none() {
            let mut done = Vec::new();
            disk.wait(&mut done);
            for completion in done {
                assert_eq!(incoming.on_completion(&mut disk, completion).unwrap(), Came::Some);
            }
        }
        // A restart finds sound batches, and cannot know better before the end.
        let first = if restarted { transfer(&mut disk, &mut incoming, &right).err() } else { None };
        assert_eq!(first.is_some(), restarted, "{first:?}");
        transfer(&mut disk, &mut incoming, &right).unwrap();
        let complete = pending(&mut disk.crash(CrashChoice::Everything)).unwrap().0;
        assert_eq!((complete.len(), &complete[0].state[..]), (1, &b"state"[..]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Blocks of any size of another life of the file: never served, and repaired.
    #[test]
    fn parts_of_another_life_are_never_served(
        lens in proptest::collection::vec(1usize..900, 4..40),
        cut in any::<(u16, u16)>(),
        which in any::<u8>(),
        piece in 1usize..6,
    ) {
        let (ours, states, batches) = life_of(1, &lens);
        let (theirs, ..) = life_of(2, &lens);
        let segments = &states[0].1.segments;
        let segment = &segments[usize::from(which) % segments.len()];
        let path = format!("segments/7-1/{:020}.log", segment.base_offset);
        let (mut bytes, other) = (ours.disk.file(&path).unwrap(), theirs.disk.file(&path).unwrap());
        let ends: Vec<usize> = ends_of(&other[..segment.len as usize]);
        let (a, b) = (usize::from(cut.0) % ends.len(), usize::from(cut.1) % ends.len());
        let (from, until) = (ends[a.min(b)], ends[a.max(b)]);
        bytes[from..until].copy_from_slice(&other[from..until]);
        ours.disk.replace(&path, &bytes);
        let mut ours = Harness::recover(config(), ours.disk, &states).unwrap();
        let found = assert_never_wrong(&mut ours, &batches);
        prop_assert!(found.is_empty() == (from == until));
        mend(&mut ours, &batches, piece);
    }
}

/// Where batches begin and end.
fn ends_of(bytes: &[u8]) -> Vec<usize> {
    let mut ends = vec![0];
    while let Ok(header) = BatchHeader::parse(&bytes[ends[ends.len() - 1]..]) {
        ends.push(ends[ends.len() - 1] + header.total_len());
    }
    ends
}
