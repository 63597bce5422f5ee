//! How batches become files.

use crate::support::{Harness, KEY, batch, concat, small, stored};
use lnc_log::disk::{AnyDisk, BLOCK, BackendChoice, Disk, MemoryDisk, Op, memory::Order};
use lnc_log::segment::{PartitionKey, SegmentConfig, SegmentError, SegmentStore};

#[test]
fn replicas_have_the_same_bytes_whenever_they_write() {
    let lens = [10, 900, 3000, 1, 1, 1, 2500, 4000, 700, 6000, 5, 5, 5, 5, 1200, 9000, 30, 30, 2000];
    let mut files = Vec::new();
    for variant in 0..12u64 {
        let mut replica = Harness::new(small());
        if variant > 0 {
            replica.disk.set_order(Order::Seeded(variant));
        }
        let mut states = Vec::new();
        for (n, len) in lens.iter().cycle().take(60).enumerate() {
            replica.append(&[*len], 1 + n as i32 / 20);
            match n as u64 % (variant + 1) {
                0 => replica.store.write_out(&mut replica.disk),
                1 if variant % 3 == 0 => states.push(replica.checkpoint()),
                _ => {}
            }
            if n == 30 {
                replica.store.trim(KEY, 40).unwrap();
            }
        }
        let (_, state) = replica.checkpoint();
        replica.release();
        assert!(state[0].1.segments.len() > 5, "the run is long enough to roll");
        files.push((state, replica.files()));
    }
    for other in &files[1..] {
        assert!(*other == files[0]);
    }
    let logs: Vec<_> = files[0].1.iter().filter(|(path, _)| path.ends_with(".log")).collect();
    let sealed = &files[0].0[0].1.segments[0];
    assert_eq!(logs[0].1.len() as u64, sealed.len, "a sealed segment has no padding");
}

#[test]
fn only_whole_write_blocks_leave_memory_before_a_checkpoint() {
    let mut replica = Harness::new(SegmentConfig { segment_bytes: 1 << 20, ..small() });
    replica.append(&[2000], 1);
    replica.write_out();
    assert!(replica.disk.paths().is_empty());
    let batches = replica.append(&[2000, 2000], 1);
    let before = replica.store.pending_bytes();
    replica.write_out();
    assert_eq!(replica.store.pending_bytes(), before - before / 8192 * 8192);
    let files = replica.files();
    assert_eq!(files.values().map(Vec::len).collect::<Vec<_>>(), [before as usize / 8192 * 8192]);
    assert_eq!(replica.store.written_offset(KEY), batches[1].base_offset);
}

#[test]
fn a_checkpoint_writes_the_partial_block_and_later_ones_rewrite_it() {
    let mut replica = Harness::new(small());
    let mut batches = Vec::new();
    for n in 0..40 {
        batches.extend(replica.append(&[n * 10], 1));
        let (_, states) = replica.checkpoint();
        assert_eq!(replica.store.written_offset(KEY), replica.store.log_end_offset(KEY));
        assert!(replica.store.pending_bytes() < BLOCK as u64);
        let total: u64 = states[0].1.segments.iter().map(|segment| segment.len).sum();
        assert_eq!(total, concat(&batches).len() as u64);
    }
    assert_eq!(replica.read_all(KEY, 5000), concat(&batches));
    assert_eq!(replica.disk.unsynced(), 0, "everything is on stable storage");
}

#[test]
fn a_start_cuts_the_files_to_the_checkpoint() {
    let mut replica = Harness::new(small());
    let batches = replica.append(&[3000; 3], 1);
    let (_, states) = replica.checkpoint();
    // The open segment goes on, and others follow.
    replica.append(&[3000; 9], 1);
    replica.write_out();
    assert!(replica.files().len() > 3, "there is something to remove");
    let mut replica = Harness::recover(small(), replica.disk, &states).unwrap();
    let mut files = replica.files();
    files.retain(|path, _| path.ends_with(".log"));
    let lens: Vec<u64> = files.values().map(|bytes| bytes.len() as u64).collect();
    assert_eq!(lens, states[0].1.segments.iter().map(|segment| segment.len).collect::<Vec<_>>());
    assert!(replica.read_all(KEY, 1) == concat(&batches));
}

#[test]
fn an_idle_checkpoint_does_nothing() {
    let mut replica = Harness::new(small());
    replica.append(&[100], 1);
    replica.checkpoint();
    let before = replica.disk.operations();
    let (_, states) = replica.checkpoint();
    assert_eq!(replica.disk.operations(), before);
    assert_eq!(states.len(), 1);
}

#[test]
fn segments_roll_by_size_and_by_age() {
    let mut replica = Harness::new(small());
    for (base, timestamp) in [(0, 0), (1, 1_000), (2, 1_001), (3, 1_500)] {
        replica.store.append(KEY, batch(base, 1, 10, timestamp, 1)).unwrap();
    }
    replica.store.append(KEY, batch(4, 1, 19_950, 1_501, 1)).unwrap();
    // A batch larger than a segment has a segment of its own.
    replica.store.append(KEY, batch(5, 1, 30_000, 1_502, 1)).unwrap();
    replica.store.append(KEY, batch(6, 1, 10, 1_503, 1)).unwrap();
    let state = replica.store.state(KEY).unwrap();
    let bases: Vec<u64> = state.segments.iter().map(|segment| segment.base_offset).collect();
    assert_eq!(bases, [0, 2, 4, 5, 6]);
    assert!(state.segments[..4].iter().all(|segment| segment.sealed && segment.index.is_empty()));
    let own_size = PartitionKey { topic_id: 9, partition: 0 };
    replica.store.create_partition(own_size, Some(100)).unwrap();
    for base in 0..3 {
        replica.store.append(own_size, batch(base, 1, 60, 0, 1)).unwrap();
    }
    assert_eq!(replica.store.state(own_size).unwrap().segments.len(), 3);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut replica = Harness::new(small());
    replica.append(&[10], 1);
    for base in [0, 2, 4] {
        let refused = replica.store.append(KEY, batch(base, 1, 10, 0, 1));
        assert!(matches!(refused, Err(SegmentError::OutOfOrder { expected: 3, .. })));
    }
    let mut short = batch(3, 1, 10, 0, 1);
    short.raw.truncate(60);
    assert!(matches!(replica.store.append(KEY, short), Err(SegmentError::InvalidBatch { len: 60, .. })));
    let other = PartitionKey { partition: 2, ..KEY };
    let unknown = replica.store.append(other, batch(0, 1, 10, 0, 1));
    assert!(matches!(unknown, Err(SegmentError::UnknownPartition { key }) if key == other));
    assert!(matches!(replica.store.create_partition(KEY, None), Err(SegmentError::PartitionExists { .. })));
}

#[test]
fn many_partitions_share_few_lanes_and_files() {
    let mut replica = Harness::new(small());
    replica.disk.set_order(Order::Seeded(5));
    let keys: Vec<PartitionKey> = (0..40).map(|partition| PartitionKey { topic_id: 1, partition }).collect();
    for key in &keys {
        replica.store.create_partition(*key, None).unwrap();
        for base in 0..30 {
            replica.store.append(*key, batch(base, 1, 1000 + key.partition as usize, 0, 1)).unwrap();
        }
    }
    replica.write_out();
    replica.checkpoint();
    for key in &keys {
        let expected: Vec<u8> =
            (0..30).flat_map(|base| stored(&batch(base, 1, 1000 + key.partition as usize, 0, 1))).collect();
        assert!(replica.read_all(*key, 4000) == expected);
    }
}

#[test]
fn the_files_of_a_real_disk_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut memory = Harness::new(small());
    let mut disk = AnyDisk::open(dir.path(), BackendChoice::Auto).unwrap();
    let mut store = SegmentStore::new(small());
    store.keep_digests();
    store.create_partition(KEY, None).unwrap();
    for batch in memory.append(&[3000; 20], 1) {
        store.append(KEY, batch).unwrap();
        store.write_out(&mut disk);
    }
    store.begin_checkpoint(&mut disk);
    while store.is_busy() {
        let mut done = Vec::new();
        disk.wait(&mut done);
        for completion in done {
            store.on_completion(&mut disk, completion).unwrap();
        }
    }
    memory.checkpoint();
    for (path, bytes) in memory.files() {
        assert!(std::fs::read(dir.path().join(&path)).unwrap() == bytes, "{path}");
    }
    let states: Vec<_> = store.checkpoint_states().into_iter().map(|(key, state)| (key, state, None)).collect();
    let recovered = SegmentStore::recover(small(), &mut disk, &states, &std::collections::BTreeMap::new()).unwrap();
    assert_eq!(recovered.state(KEY), store.state(KEY));
    disk.run(Op::SyncDir { path: "segments".into() }).unwrap();
}

/// How long a checkpoint holds a turn up by taking what all segments hold. Run it by hand, in a release build.
#[test]
#[ignore = "it measures"]
fn how_long_the_states_of_many_partitions_take() {
    let config = SegmentConfig { segment_bytes: 6000, ..SegmentConfig::default() };
    let mut disk = MemoryDisk::new();
    let mut store = SegmentStore::new(config);
    let keys: Vec<PartitionKey> =
        (0..10_000).map(|n| PartitionKey { topic_id: n / 10, partition: (n % 10) as u32 }).collect();
    for key in &keys {
        store.create_partition(*key, None).unwrap();
        for n in 0..20 {
            store.append(*key, batch(n, 1, 900, 0, 1)).unwrap();
        }
    }
    for round in 0..5 {
        let began = std::time::Instant::now();
        store.begin_checkpoint(&mut disk);
        let states: std::collections::BTreeMap<_, _> = store.checkpoint_states().into_iter().collect();
        let took = began.elapsed();
        let segments: usize = states.values().map(|state| state.segments.len()).sum();
        println!("round {round}: {} partitions, {segments} segments: {took:?}", states.len());
        while !store.checkpoint_done() {
            let mut completions = Vec::new();
            disk.wait(&mut completions);
            completions.drain(..).for_each(|completion| drop(store.on_completion(&mut disk, completion).unwrap()));
        }
    }
}
