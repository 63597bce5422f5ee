//! Acknowledged means kept: power loss on one node or on all, at any disk operation, loses no acknowledged record.

use crate::harness::{Cluster, Rng, Settings, Writer};
use lnc_log::disk::memory::{CrashChoice, Order};

const PARTITIONS: u32 = 3;

/// Journal bytes kept for followers, where none falls behind by much: files are recycled.
const LITTLE: u64 = 256 << 10;
/// The same, where a follower may miss most of the run.
const EVERYTHING: u64 = 64 << 20;

/// Small files, so that a short run sees them roll, recycle and checkpoint.
fn settings(seed: u64) -> Settings {
    let mut settings = Settings {
        data_groups: 2,
        checkpoint_bytes: 6_000,
        journal_file_bytes: 32 << 10,
        tail_cache_bytes: 2_000,
        entry_cache_bytes: 1_000,
        seed,
        ..Settings::default()
    };
    settings.segments.segment_bytes = 4_000;
    settings.segments.write_block = 4096;
    settings
}

fn start(seed: u64, journal_retain_bytes: u64) -> (Cluster, Writer) {
    let mut cluster = Cluster::ready(Settings { journal_retain_bytes, ..settings(seed) });
    cluster.create_topic("t", PARTITIONS);
    let writer = Writer::new(&mut cluster, "t", PARTITIONS);
    cluster.set_disk_order(|node| Order::Seeded(seed * 10 + node));
    (cluster, writer)
}

fn choice(rng: &mut Rng) -> CrashChoice {
    match rng.below(5) {
        0 => CrashChoice::Nothing,
        1 => CrashChoice::Everything,
        2 => CrashChoice::Subset(rng.next()),
        _ => CrashChoice::Torn(rng.next()),
    }
}

/// Write until the disk of `victim` stops at an operation drawn from `rng`.
fn write_until_stopped(cluster: &mut Cluster, writer: &mut Writer, victim: u64, rng: &mut Rng) {
    let disk = cluster.node(victim).disk();
    disk.stop_after(disk.operations() + rng.below(80));
    for _ in 0..500 {
        writer.go_on(cluster, rng);
        for _ in 0..1 + rng.below(4) {
            cluster.round();
        }
        if cluster.node(victim).failure().is_some() {
            return;
        }
        if rng.chance(30) {
            cluster.tick();
        }
    }
    panic!("node {victim} does not notice that its disk has stopped; {}", cluster.describe());
}

fn finish(mut cluster: Cluster, mut writer: Writer, mut rng: Rng) {
    cluster.set_disk_order(|_| Order::Immediate);
    writer.finish(&mut cluster, &mut rng);
    cluster.await_same();
    writer.check(&mut cluster);
}

#[test]
fn power_loss_on_all_nodes_loses_no_acknowledged_record() {
    for seed in 1..=8 {
        let mut rng = Rng::new(seed);
        let (mut cluster, mut writer) = start(seed, LITTLE);
        for _ in 0..6 {
            let victim = 1 + rng.below(3);
            write_until_stopped(&mut cluster, &mut writer, victim, &mut rng);
            for node in cluster.ids() {
                let choice = choice(&mut rng);
                cluster.crash(node, choice);
            }
            for node in cluster.ids() {
                cluster.start(node);
            }
            cluster.await_leaders();
            cluster.await_same();
            writer.check(&mut cluster);
        }
        assert!(writer.acknowledged() > 20, "seed {seed} acknowledged only {} batches", writer.acknowledged());
        finish(cluster, writer, rng);
    }
}

#[test]
fn power_loss_on_one_node_after_the_other_loses_no_acknowledged_record() {
    for seed in 11..=16 {
        let mut rng = Rng::new(seed);
        let (mut cluster, mut writer) = start(seed, EVERYTHING);
        for _ in 0..8 {
            let victim = 1 + rng.below(3);
            write_until_stopped(&mut cluster, &mut writer, victim, &mut rng);
            let choice = choice(&mut rng);
            cluster.crash(victim, choice);
            for _ in 0..rng.below(40) {
                writer.go_on(&mut cluster, &mut rng);
                cluster.tick();
            }
            cluster.start(victim);
        }
        finish(cluster, writer, rng);
    }
}

#[test]
fn killed_processes_and_a_bad_network_lose_no_acknowledged_record() {
    for seed in 21..=26 {
        let mut rng = Rng::new(seed);
        let (mut cluster, mut writer) = start(seed, EVERYTHING);
        cluster.network.loss_percent = 5;
        cluster.network.max_delay_us = 30_000;
        for _ in 0..150 {
            writer.go_on(&mut cluster, &mut rng);
            cluster.tick();
            if rng.chance(4) {
                let victim = 1 + rng.below(3);
                cluster.kill(victim);
                cluster.ticks(rng.below(30) as u32);
                cluster.start(victim);
            }
        }
        cluster.network.heal();
        finish(cluster, writer, rng);
    }
}
