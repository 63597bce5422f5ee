//! Damaged files: found, named, never served.

use crate::support::{Harness, KEY, concat, small, stored};
use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, MemoryDisk, Op, Owner};
use lnc_log::segment::{PartitionKey, PartitionState, SegmentConfig, SegmentError, StoredBatch};

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

#[test]
fn a_short_or_missing_file_stops_the_start() {
    for n in 0..2 {
        let (replica, states, _) = filled();
        let segment = &states[0].1.segments[n];
        let path = format!("segments/7-1/{:020}.log", segment.base_offset);
        let mut disk = replica.disk.clone();
        let file = Owner::Setup.file(1);
        disk.run(Op::Open { file, path: path.clone(), create: false, direct: false }).unwrap();
        disk.run(Op::SetLen { file, len: segment.len - 1 }).unwrap();
        let mut disk = disk.crash(CrashChoice::Everything);
        let Err(error) = Harness::recover(small(), disk.clone(), &states) else { panic!("segment {n}: started") };
        assert!(error.to_string().contains(&path), "{error}");
        let mut disk = disk.crash(CrashChoice::Everything);
        disk.run(Op::Remove { path: path.clone() }).unwrap();
        let Err(error) = Harness::recover(small(), disk, &states) else { panic!("segment {n}: started") };
        assert!(error.to_string().contains(&path) && error.to_string().contains("no file"), "{error}");
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
