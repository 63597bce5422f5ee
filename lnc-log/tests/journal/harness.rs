//! A journal on a memory disk, beside a plain list of what was appended to it.

use lnc_log::disk::{Disk, MemoryDisk};
use lnc_log::journal::{
    GroupId, Journal, JournalConfig, JournalError, JournalRead, JournalStart, Location, Recovered, RecoveredGroup,
};
use std::collections::BTreeMap;

pub(crate) const IDENTITY: u64 = 0x1234_5678_9abc_def0;

pub(crate) fn config(file_bytes: u64, max_in_flight: usize) -> JournalConfig {
    JournalConfig { file_bytes, max_in_flight, ..JournalConfig::new(IDENTITY) }
}

/// Something appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    Entry { group: u32, term: u64, index: u64, kind: u8, payload: Vec<u8>, location: Option<Location> },
    HardState { group: u32, term: u64, vote: Option<u64> },
    Restart { group: u32, term: u64, index: u64 },
}

/// What was appended, and how much of it is known durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) appended: Vec<Appended>,
    /// Flush number to the count of appended things that it completes.
    pub(crate) flushes: BTreeMap<u64, usize>,
    /// The journal reported this many as durable.
    pub(crate) durable: usize,
    /// There is a mark, which may know a later term or vote than the flushes that are there.
    pub(crate) marked: bool,
}

impl History {
    /// A payload that differs from every other.
    pub(crate) fn payload(&self, len: usize) -> Vec<u8> {
        let n = self.appended.len() as u32;
        (0..len as u32).map(|i| (n.wrapping_mul(31).wrapping_add(i.wrapping_mul(7)) >> 1) as u8 | 1).collect()
    }

    pub(crate) fn entry(&mut self, journal: &mut Journal, group: u32, term: u64, index: u64, len: usize) {
        let payload = self.payload(len);
        let kind = (index % 3) as u8;
        let location = Some(journal.append_entry(GroupId(group), term, index, kind, &payload));
        self.appended.push(Appended::Entry { group, term, index, kind, payload, location });
    }

    pub(crate) fn hard_state(&mut self, journal: &mut Journal, group: u32, term: u64, vote: Option<u64>) {
        journal.append_hard_state(GroupId(group), term, vote);
        self.appended.push(Appended::HardState { group, term, vote });
    }

    pub(crate) fn restart(&mut self, journal: &mut Journal, group: u32, term: u64, index: u64) {
        journal.append_checkpoint(GroupId(group), term, index);
        self.appended.push(Appended::Restart { group, term, index });
    }

    pub(crate) fn flush<D: Disk>(&mut self, journal: &mut Journal, disk: &mut D) {
        if let Some(number) = journal.flush(disk) {
            self.flushes.insert(number, self.appended.len());
        }
    }

    /// Take note of what the journal calls durable.
    pub(crate) fn observe(&mut self, journal: &Journal) {
        let durable = self.flushes.range(..=journal.durable()).map(|(_, count)| *count).max();
        self.durable = self.durable.max(durable.unwrap_or(0));
    }

    /// The state after the first `count` things, without entries in files before `start`.
    pub(crate) fn state(&self, count: usize, start: u64) -> BTreeMap<u32, RecoveredGroup> {
        let mut groups: BTreeMap<u32, RecoveredGroup> = BTreeMap::new();
        for appended in &self.appended[..count] {
            match appended {
                Appended::HardState { group, term, vote } => {
                    groups.entry(*group).or_default().hard_state = Some((*term, *vote));
                }
                Appended::Restart { group, term, index } => {
                    let group = groups.entry(*group).or_default();
                    group.entries.clear();
                    group.restarted_after = Some((*index, *term));
                }
                Appended::Entry { group, term, index, kind, payload, location } => {
                    let entries = &mut groups.entry(*group).or_default().entries;
                    entries.retain(|e| e.index < *index);
                    if entries.last().is_some_and(|e| e.index + 1 != *index) {
                        entries.clear();
                    }
                    entries.push(lnc_log::journal::RecoveredEntry {
                        term: *term,
                        index: *index,
                        kind: *kind,
                        payload: payload.clone().into(),
                        location: location.expect("an entry has a location"),
                        damaged: false,
                    });
                }
            }
        }
        for group in groups.values_mut() {
            group.entries.retain(|entry| entry.location.file >= start);
        }
        groups
    }

    /// How many things the recovered state holds: at least the durable ones, and exactly a prefix.
    pub(crate) fn matching(&self, recovered: &Recovered, start: u64) -> Option<usize> {
        (self.durable..=self.appended.len())
            .rev()
            .find(|count| same(&self.state(*count, start), recovered, start, self.marked))
    }

    /// Go on from a recovered state: what did not survive never happened.
    pub(crate) fn restart_from(&mut self, count: usize) {
        self.appended.truncate(count);
        self.flushes.clear();
        self.durable = count;
    }
}

/// Whether `recovered` is the `expected` state. A restart mark, and a group's very name, may have gone with released files.
fn same(expected: &BTreeMap<u32, RecoveredGroup>, recovered: &Recovered, start: u64, marked: bool) -> bool {
    let empty = RecoveredGroup::default();
    let ids = expected.keys().copied().chain(recovered.groups.keys().map(|group| group.0));
    ids.into_iter().all(|id| {
        let expected = expected.get(&id).unwrap_or(&empty);
        let found = recovered.groups.get(&GroupId(id)).unwrap_or(&empty);
        let restarted =
            found.restarted_after == expected.restarted_after || (start > 1 && found.restarted_after.is_none());
        let votes = expected.hard_state == found.hard_state || marked && expected.hard_state < found.hard_state;
        votes && expected.entries == found.entries && restarted
    })
}

/// Hand the journal what has completed. True if there was anything.
pub(crate) fn step(journal: &mut Journal, disk: &mut MemoryDisk) -> Result<Vec<JournalRead>, JournalError> {
    let mut done = Vec::new();
    disk.reap(&mut done);
    let mut reads = Vec::new();
    for completion in done {
        reads.extend(journal.on_completion(disk, completion)?);
    }
    Ok(reads)
}

/// Run until nothing is in flight.
pub(crate) fn settle(journal: &mut Journal, disk: &mut MemoryDisk) -> Result<Vec<JournalRead>, JournalError> {
    let mut reads = Vec::new();
    loop {
        let mut done = Vec::new();
        disk.wait(&mut done);
        if done.is_empty() && disk.in_flight().is_empty() {
            return Ok(reads);
        }
        for completion in done {
            reads.extend(journal.on_completion(disk, completion)?);
        }
    }
}

/// Open a journal on a healthy disk.
pub(crate) fn open(disk: &mut MemoryDisk, config: JournalConfig, start: u64) -> (Journal, Recovered) {
    Journal::open(disk, config, JournalStart(start)).expect("open the journal")
}
