//! A shard starts only from a journal that it understands.

use lnc_log::disk::memory::CrashChoice;
use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::journal::{GroupId, Journal, JournalConfig, JournalStart};
use lnc_raft::NodeId;
use lnc_replication::{Shard, ShardConfig, ShardError};
use std::collections::BTreeMap;

const KNOWN: u8 = 1;
const UNKNOWN: u8 = 9;

fn config() -> ShardConfig {
    ShardConfig {
        node: NodeId(1),
        founders: [NodeId(1)].into(),
        groups: vec![GroupId(0)],
        election_ticks: 20,
        heartbeat_ticks: 4,
        election_rpc_ticks: 40,
        election_round_ticks: 120,
        max_in_flight_bytes: 1 << 20,
        max_append_bytes: 1 << 20,
        entry_cache_bytes: 1 << 20,
        journal_retain_bytes: 1 << 20,
        seed: 1,
        journal: JournalConfig { file_bytes: 1 << 16, ..JournalConfig::new(7) },
    }
}

/// Open a shard on a journal that holds one entry of this group and kind.
fn open(group: GroupId, kind: u8) -> Result<Shard, ShardError> {
    let mut disk = MemoryDisk::new();
    let (mut journal, _) = Journal::open(&mut disk, config().journal, JournalStart(0)).expect("a fresh journal");
    journal.append_hard_state(group, 1, None);
    journal.append_entry(group, 1, 1, kind, b"payload");
    journal.flush(&mut disk).expect("room for one entry");
    let mut done = Vec::new();
    disk.reap(&mut done);
    for completion in done {
        journal.on_completion(&mut disk, completion).expect("a healthy disk");
    }
    let mut disk = disk.crash(CrashChoice::Nothing);
    Shard::open(config(), &mut disk, (JournalStart(0), JournalStart(0)), &BTreeMap::new())
}

#[test]
fn an_entry_of_a_newer_version_is_not_taken_for_another() {
    assert!(open(GroupId(0), KNOWN).is_ok());
    assert!(matches!(open(GroupId(0), UNKNOWN), Err(ShardError::UnknownEntry { group: 0, index: 1, kind: UNKNOWN })));
}

#[test]
fn a_group_that_is_not_configured_is_not_dropped() {
    assert!(matches!(open(GroupId(3), KNOWN), Err(ShardError::UnknownGroup { group: 3, .. })));
}
