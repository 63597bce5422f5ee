//! Damaged files: found, named, never served.

use crate::support::{Harness, KEY, concat, small, stored};
use lnc_log::disk::memory::{Bad, CrashChoice};
use lnc_log::disk::{Disk, MemoryDisk, Op, Owner};
use lnc_log::segment::{DamagedBatch, Mending, PartitionKey, PartitionState, SegmentConfig, SegmentError, StoredBatch};

type States = Vec<(PartitionKey, PartitionState)>;

fn config() -> SegmentConfig {
    SegmentConfig { segment_bytes: 2_000, index_interval_bytes: 400, ..small() }
}

fn filled() -> (Harness, States, Vec<StoredBatch>) {
    let mut replica = Harness::new(config());
    let mut batches = replica.append(&[50, 10, 70], 1);
    batches.extend(replica.append(&[20, 30, 40, 10, 60, 80, 90, 90], 2));
    let (_, states) = replica.checkpoint();
    assert_eq!(states[0].1.segments.len(), 2);
    (replica, states, batches)
}

#[test]
fn every_byte_of_a_segment_is_checked() {
    let (mut replica, states, batches) = filled();
    for segment in &states[0].1.segments {
        let path = format!("segments/7-1/{:020}.log", segment.base_offset);
        for position in 0..segment.len {
            for mask in [0x01, 0x80, 0xff] {
                assert!(replica.disk.corrupt(&path, position, mask));
                let mut damaged = 0;
                for (n, batch) in batches.iter().enumerate() {
                    match replica.read(batch.base_offset, 1 << 20) {
                        Ok(read) => {
                            for (bytes, batch) in read.iter().zip(&batches[n..]) {
                                assert!(bytes[..] == stored(batch), "wrong bytes served, position {position}");
                            }
                        }
                        Err(SegmentError::Damaged { file, .. }) => {
                            assert_eq!(file, path);
                            damaged += 1;
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
                assert!(damaged > 0, "{path} position {position} mask {mask:#x} went unnoticed");
                assert!(replica.disk.corrupt(&path, position, mask));
            }
        }
    }
    assert!(replica.read_all(KEY, 1 << 20) == concat(&batches));
}

#[test]
fn a_damaged_or_missing_index_is_rebuilt() {
    let path = "segments/7-1/00000000000000000000.index";
    let (mut replica, states, batches) = filled();
    let good = replica.disk.file(path).unwrap();
    let used = good.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let cut = |disk: &mut MemoryDisk, len| {
        let file = Owner::Setup.file(1);
        disk.run(Op::Open { file, path: path.into(), create: false, direct: false }).unwrap();
        disk.run(Op::SetLen { file, len }).unwrap();
        disk.run(Op::Close { file }).unwrap();
    };
    for damage in 0..used + 3 {
        match damage.checked_sub(used) {
            None => assert!(replica.disk.corrupt(path, damage, 0x11)),
            Some(0) => cut(&mut replica.disk, 0),
            Some(1) => cut(&mut replica.disk, used),
            Some(_) => replica.disk.run(Op::Remove { path: path.into() }).map(drop).unwrap(),
        }
        replica = Harness::recover(config(), replica.disk, &states).unwrap();
        assert!(replica.read_all(KEY, 1) == concat(&batches));
        assert!(replica.read_from_timestamp(5).unwrap()[0][..] == stored(&batches[5]));
        assert!(replica.disk.file(path).unwrap()[..] == good, "damage {damage}: the index was not rebuilt");
    }
}

#[test]
fn damage_found_while_rebuilding_an_index_is_reported() {
    let (replica, states, _) = filled();
    replica.disk.clone().run(Op::Remove { path: "segments/7-1/00000000000000000000.index".into() }).unwrap();
    let log = "segments/7-1/00000000000000000000.log";
    assert!(replica.disk.corrupt(log, 700, 1));
    let mut recovered = Harness::recover(config(), replica.disk, &states).unwrap();
    let error = recovered.read(0, 1).unwrap_err();
    assert!(matches!(&error, SegmentError::Damaged { file, position: 1..700, .. } if file == log), "{error}");
}

/// Read everything, and write what a healthy replica has over all damage. Gives the number of repairs.
fn mend(replica: &mut Harness, batches: &[StoredBatch]) -> usize {
    let mut repairs = 0;
    let mut offset = 0;
    while offset < replica.store.written_offset(KEY) {
        let done = replica.read_done(offset, 700);
        match (done.result, done.damage) {
            // What comes before the damage is served.
            (Ok(read), _) => offset = read.end_offset,
            (Err(SegmentError::Damaged { position, .. }), Some(place)) => {
                assert!(place.position <= position && place.offset <= offset);
                let missing: Vec<_> = batches.iter().filter(|b| b.base_offset >= place.offset).cloned().collect();
                let mending = replica.store.repair(&mut replica.disk, place, &concat(&missing).into());
                assert_eq!(mending, Mending::Begun);
                replica.settle().unwrap();
                assert_eq!(replica.store.take_repaired(), [place]);
                repairs += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(replica.read_all(KEY, 1 << 20) == concat(batches));
    repairs
}

/// As if nothing had happened: further batches and a checkpoint make the files of a replica without damage.
fn assert_goes_on(mut replica: Harness, batches: &[StoredBatch]) {
    let mut more = batches.to_vec();
    more.extend(replica.append(&[40, 80], 3));
    replica.checkpoint();
    assert!(replica.read_all(KEY, 1 << 20) == concat(&more));
    let (mut healthy, ..) = filled();
    healthy.append(&[40, 80], 3);
    healthy.checkpoint();
    let logs = |replica: &Harness| -> Vec<_> {
        replica.files().into_iter().filter(|(path, _)| path.ends_with(".log")).collect()
    };
    assert!(logs(&replica) == logs(&healthy), "the files differ");
}

#[test]
fn every_byte_of_a_segment_is_repaired_from_a_replica() {
    let (_, states, batches) = filled();
    for segment in &states[0].1.segments {
        let path = format!("segments/7-1/{:020}.log", segment.base_offset);
        for position in (0..segment.len).step_by(7) {
            let (replica, ..) = filled();
            assert!(replica.disk.corrupt(&path, position, 0x10));
            // After a start the end of the last segment is in memory too, as it was found.
            let mut replica = Harness::recover(config(), replica.disk, &states).unwrap();
            assert_eq!(mend(&mut replica, &batches), 1);
            assert_goes_on(replica, &batches);
        }
    }
}

/// What was appended since, and is in memory only, is not in the file, so the file's end is known by its own digest.
#[test]
fn the_open_segment_is_repaired_while_more_of_it_waits_in_memory() {
    let (_, states, batches) = filled();
    let open = states[0].1.segments.last().unwrap().clone();
    let path = format!("segments/7-1/{:020}.log", open.base_offset);
    for position in (0..open.len).step_by(7) {
        for unwritten in [&[60][..], &[20, 30]] {
            let (replica, ..) = filled();
            assert!(replica.disk.corrupt(&path, position, 0x10));
            let mut replica = Harness::recover(config(), replica.disk, &states).unwrap();
            let more = replica.append(unwritten, 2);
            assert_eq!(mend(&mut replica, &batches), 1, "position {position}");
            replica.checkpoint();
            assert!(replica.read_all(KEY, 1 << 20) == concat(&[&batches[..], &more].concat()));
        }
    }
}

/// A bad sector, which can be read again once it is written: what lies around it is served, and it is repaired.
#[test]
fn a_place_that_cannot_be_read_is_repaired_from_a_replica() {
    let (_, states, batches) = filled();
    for segment in &states[0].1.segments {
        let path = format!("segments/7-1/{:020}.log", segment.base_offset);
        for block in 0..segment.len.div_ceil(4096) {
            for recovered in [false, true] {
                let (mut replica, ..) = filled();
                assert!(replica.disk.make_unreadable(&path, block * 4096, 1));
                if recovered {
                    // The end of the last segment is read at the start.
                    replica = Harness::recover(config(), replica.disk, &states).unwrap();
                }
                let first = replica.read_done(segment.base_offset, 1 << 20);
                let served = first.result.as_ref().map_or(0, |found| found.bytes.len() as u64);
                assert_eq!(served > 0, block > 0, "{path}: what comes before block {block} is served");
                assert!(mend(&mut replica, &batches) >= 1, "{path}, block {block}");
                assert!(!replica.disk.is_unreadable(&path), "{path}, block {block}");
                assert_goes_on(replica, &batches);
            }
        }
    }
}

#[test]
fn what_does_not_belong_at_a_damaged_place_is_refused() {
    let (mut replica, _, batches) = filled();
    let path = "segments/7-1/00000000000000000000.log";
    assert!(replica.disk.corrupt(path, 300, 1));
    let before = replica.files();
    let place = replica.read_done(0, 1 << 20).damage.or_else(|| replica.read_done(3, 1 << 20).damage).unwrap();
    let from = |n: usize| concat(&batches[n..]);
    let at = batches.iter().position(|batch| batch.base_offset == place.offset).unwrap();
    let mut flipped = from(at);
    flipped[80] ^= 1;
    let mut epoch = from(at);
    epoch[15] ^= 1;
    for bytes in [Vec::new(), from(at + 1), flipped, epoch, from(at)[..100].to_vec()] {
        assert_eq!(replica.store.repair(&mut replica.disk, place, &bytes.into()), Mending::Refused);
    }
    let elsewhere = PartitionKey { topic_id: 99, ..KEY };
    let place = DamagedBatch { key: elsewhere, ..place };
    assert_eq!(replica.store.repair(&mut replica.disk, place, &from(at).into()), Mending::Refused);
    replica.settle().unwrap();
    assert!(replica.files() == before, "nothing was written");
    mend(&mut replica, &batches);
}

#[test]
fn a_short_or_missing_file_comes_back_as_damage_and_is_repaired() {
    for n in 0..2 {
        for len in [None, Some(0), Some(500)] {
            let (replica, states, batches) = filled();
            let segment = &states[0].1.segments[n];
            let path = format!("segments/7-1/{:020}.log", segment.base_offset);
            let mut disk = replica.disk.clone();
            let file = Owner::Setup.file(1);
            disk.run(Op::Open { file, path: path.clone(), create: false, direct: false }).unwrap();
            match len {
                Some(len) => disk.run(Op::SetLen { file, len }).map(drop).unwrap(),
                None => disk.run(Op::Remove { path: path.clone() }).map(drop).unwrap(),
            }
            let mut replica = Harness::recover(config(), disk.crash(CrashChoice::Everything), &states).unwrap();
            let error = replica.read(segment.end_offset - 1, 1).unwrap_err();
            assert!(matches!(&error, SegmentError::Damaged { file, .. } if *file == path), "{error}");
            mend(&mut replica, &batches);
            assert_goes_on(replica, &batches);
        }
    }
}

#[test]
fn a_file_that_shrinks_or_vanishes_while_running_is_reported() {
    let (mut replica, states, _) = filled();
    let last = &states[0].1.segments[1];
    let path = format!("segments/7-1/{:020}.log", last.base_offset);
    let file = Owner::Setup.file(1);
    replica.disk.run(Op::Open { file, path: path.clone(), create: false, direct: false }).unwrap();
    replica.disk.run(Op::SetLen { file, len: 100 }).unwrap();
    let error = replica.read(last.base_offset, 1 << 20).unwrap_err();
    assert!(matches!(&error, SegmentError::Damaged { position: 100, .. }), "{error}");
    replica.disk.run(Op::SetLen { file, len: 4096 }).unwrap();
    let mut recovered = Harness::recover(config(), replica.disk, &states).unwrap();
    recovered.disk.run(Op::Remove { path }).unwrap();
    let error = recovered.read(last.base_offset, 1).unwrap_err();
    assert!(matches!(&error, SegmentError::Damaged { position: 0, .. }), "{error}");
}

/// A place that stays bad when it is written: the segment moves to a new file, whose blocks are others.
#[test]
fn a_place_that_stays_bad_is_moved_to_a_new_file() {
    let (_, states, batches) = filled();
    for segment in &states[0].1.segments {
        let path = format!("segments/7-1/{:020}.log", segment.base_offset);
        for block in 0..segment.len.div_ceil(4096) {
            for recovered in [false, true] {
                let (mut replica, ..) = filled();
                assert!(replica.disk.make_bad(&path, block * 4096, 1, Bad::InThisFile));
                if recovered {
                    replica = Harness::recover(config(), replica.disk, &states).unwrap();
                }
                mend(&mut replica, &batches);
                assert!(!replica.disk.is_unreadable(&path), "{path}, block {block}");
                assert!(!replica.disk.paths().iter().any(|path| path.ends_with(".new")));
                assert_goes_on(replica, &batches);
            }
        }
    }
}

/// The place to repair, and what belongs there.
fn bad_place(replica: &mut Harness, batches: &[StoredBatch], bad: Bad) -> (String, DamagedBatch, bytes::Bytes) {
    let path = "segments/7-1/00000000000000000000.log".to_owned();
    assert!(replica.disk.make_bad(&path, 0, 1, bad));
    let place = replica.read_done(0, 1 << 20).damage.unwrap();
    let missing: Vec<_> = batches.iter().filter(|batch| batch.base_offset >= place.offset).cloned().collect();
    (path, place, concat(&missing).into())
}

#[test]
fn a_place_that_is_bad_wherever_the_file_is_counts_as_unreadable() {
    let (mut replica, _, batches) = filled();
    let (_, place, missing) = bad_place(&mut replica, &batches, Bad::AtThisPath);
    for _ in 0..3 {
        assert_eq!(replica.store.repair(&mut replica.disk, place, &missing), Mending::Begun);
        replica.settle().unwrap();
        assert_eq!((replica.store.take_repaired(), replica.store.take_unreadable()), (vec![], vec![place]));
        assert!(!replica.disk.paths().iter().any(|path| path.ends_with(".new")), "nothing is left of the attempt");
        assert!(matches!(replica.read(0, 1), Err(SegmentError::Damaged { .. })));
    }
    replica.disk.forgive();
    assert_eq!(replica.store.repair(&mut replica.disk, place, &missing), Mending::Begun);
    replica.settle().unwrap();
    assert_eq!((replica.store.take_repaired(), replica.store.take_unreadable()), (vec![place], vec![]));
    mend(&mut replica, &batches);
    assert_goes_on(replica, &batches);
}

/// Whatever fails of a move, the segment is as it was, and another attempt works.
#[test]
fn a_move_that_fails_changes_nothing() {
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    for failing in 1.. {
        let (mut replica, _, batches) = filled();
        let (path, place, missing) = bad_place(&mut replica, &batches, Bad::InThisFile);
        let mut at = 0;
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let seen = count.clone();
        replica.disk.inject(Some(Box::new(move |_, op| {
            let new = |path: &String| path.ends_with(".new");
            // From the making of the new file on.
            at += usize::from(at > 0 || matches!(op, Op::Open { path, .. } if new(path)));
            seen.store(at, std::sync::atomic::Ordering::Relaxed);
            let is_read = matches!(op, Op::Read { .. } | Op::Close { .. } | Op::Remove { .. } | Op::SyncDir { .. });
            (at == failing && !is_read).then(full)
        })));
        assert_eq!(replica.store.repair(&mut replica.disk, place, &missing), Mending::Begun);
        replica.settle().unwrap();
        replica.disk.inject(None);
        assert!(!replica.disk.paths().iter().any(|path| path.ends_with(".new")));
        if !replica.store.take_unreadable().is_empty() {
            assert!(replica.disk.is_unreadable(&path));
            assert_eq!(replica.store.repair(&mut replica.disk, place, &missing), Mending::Begun);
            replica.settle().unwrap();
        }
        assert!(!replica.disk.is_unreadable(&path), "operation {failing}");
        mend(&mut replica, &batches);
        assert_goes_on(replica, &batches);
        if count.load(std::sync::atomic::Ordering::Relaxed) < failing {
            assert!(failing > 6, "a move is more than that");
            break;
        }
    }
}

/// A missing file comes back without blocks of its own, so its repair needs space.
#[test]
fn a_repair_waits_for_space() {
    let (mut replica, _, batches) = filled();
    assert!(replica.disk.corrupt("segments/7-1/00000000000000000000.log", 300, 1));
    let place = replica.read_done(0, 1 << 20).damage.unwrap();
    let missing: Vec<_> = batches.iter().filter(|batch| batch.base_offset >= place.offset).cloned().collect();
    let mut left = 1;
    replica.disk.inject(Some(Box::new(move |_, op| {
        let fails = left > 0 && matches!(op, Op::Write { .. });
        left -= i32::from(fails);
        fails.then(|| std::io::ErrorKind::StorageFull.into())
    })));
    assert_eq!(replica.store.repair(&mut replica.disk, place, &concat(&missing).into()), Mending::Begun);
    replica.settle().unwrap();
    assert!(replica.store.is_full() && replica.store.take_repaired().is_empty());
    replica.write_out();
    assert_eq!(replica.store.take_repaired(), [place]);
    mend(&mut replica, &batches);
    assert_goes_on(replica, &batches);
}

/// A write that fails is no end if nothing else can have been lost with it.
#[test]
fn a_place_that_cannot_be_written_is_moved_too() {
    let (mut replica, _, batches) = filled();
    let (path, place, missing) = bad_place(&mut replica, &batches, Bad::InThisFile);
    let mut left = 1;
    replica.disk.inject(Some(Box::new(move |_, op| {
        let fails = left > 0 && matches!(op, Op::Write { .. });
        left -= i32::from(fails);
        fails.then(|| std::io::Error::from_raw_os_error(5))
    })));
    assert_eq!(replica.store.repair(&mut replica.disk, place, &missing), Mending::Begun);
    replica.settle().unwrap();
    assert!(!replica.disk.is_unreadable(&path));
    mend(&mut replica, &batches);
    assert_goes_on(replica, &batches);
}

/// An index that cannot be read is rebuilt once, and not each time that it is needed.
#[test]
fn an_index_that_stays_bad_is_written_to_a_new_file() {
    let (replica, states, batches) = filled();
    let path = "segments/7-1/00000000000000000000.index";
    let good = replica.disk.file(path).unwrap();
    assert!(replica.disk.make_bad(path, 0, 1, Bad::InThisFile));
    let mut replica = Harness::recover(config(), replica.disk, &states).unwrap();
    assert!(replica.read_all(KEY, 1) == concat(&batches));
    assert!(!replica.disk.is_unreadable(path) && replica.disk.file(path).unwrap() == good);
    assert!(!replica.disk.paths().iter().any(|path| path.ends_with(".new")));
}
