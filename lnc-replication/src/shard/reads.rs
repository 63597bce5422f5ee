//! Entries that are read from the journal: for followers that lag, for peers that have lost them, and to find damage.

use super::{Outputs, Shard};
use crate::group::Group;
use crate::transfer::MAX_ENTRIES;
use lnc_log::disk::Disk;
use lnc_log::journal::{GroupId, JournalError, Location, RecoveredEntry};
use lnc_raft::{EntriesWanted, Entry, EntryKind, Index, NodeId, Term};
use std::ops::Bound;

/// Bytes of entries that an answer to a peer takes at most, unless a single one is larger: a frame must hold it, and the
/// peers' connection, which carries all groups, must not be busy with it for long.
pub(crate) const MAX_FOUND_BYTES: usize = 1 << 20;

/// The first of `all` whose sizes together stay within `max_bytes`, but at least one if there is any.
pub(crate) fn within<T>(all: impl Iterator<Item = T>, size: impl Fn(&T) -> usize, max_bytes: usize) -> Vec<T> {
    let mut bytes = 0usize;
    let fits = |item: &T| {
        let first = bytes == 0;
        bytes = bytes.saturating_add(size(item));
        first || bytes <= max_bytes
    };
    all.take_while(fits).collect()
}

/// What a read of [`Shard::scrub`] has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes of entries that are whole.
    pub bytes: u64,
    /// Damage that was not known before: group and entry.
    pub damaged: Option<(GroupId, Index)>,
}

/// What this node has of entries that a peer has lost.
#[derive(Debug)]
pub struct Found {
    /// The group.
    pub group: GroupId,
    /// Who asked.
    pub to: NodeId,
    /// This node's commit index.
    pub commit: Index,
    /// The terms of those of the indexes that are committed, as far as they are known.
    pub committed: Vec<(Index, Term)>,
    /// The entries that it has with the very term asked for.
    pub entries: Vec<Entry>,
    /// The first index that its journal still holds.
    pub first_index: Index,
}

/// A read of old entries for a peer.
pub(super) enum CatchUp {
    /// For a follower of this leader.
    Follower { group: GroupId, to: NodeId, prev_index: Index, prev_term: Term },
    /// For a peer that has lost them. Some were in memory.
    Repair(Found),
    /// To see whether they are whole.
    Scrub { group: GroupId, from: Index, places: Vec<Location> },
}

impl Shard {
    /// Look for entries that a peer has lost; the answer comes through `found`, now or once they are read.
    pub fn find_entries<D: Disk>(
        &mut self,
        disk: &mut D,
        group: GroupId,
        to: NodeId,
        wanted: &[(Index, Term)],
        out: &mut Outputs,
    ) {
        if let Some(repair) = self.repairs.get(&group) {
            return out.found.push(repair.find(group, to, wanted));
        }
        let Some(own) = self.groups.get(&group) else { return };
        let (raft, commit) = (&own.raft, own.raft.commit_index());
        // The last one that is committed tells the peer about what it has up to there, asked for or not.
        let asked = wanted.iter().map(|(index, _)| *index).filter(|index| *index < commit);
        let known = asked.take(MAX_ENTRIES - 1).chain([commit]);
        let committed = known.filter_map(|index| Some((index, raft.term_at(index)?))).collect();
        let has =
            |(index, term): &&(Index, Term)| *index <= raft.durable_index() && raft.term_at(*index) == Some(*term);
        let places = wanted.iter().filter(has).filter_map(|(index, _)| own.locations.get(*index));
        let places = within(places, |place| place.len as usize, MAX_FOUND_BYTES);
        let first_index = raft.status().first_index;
        let found = Found { group, to, commit, committed, entries: Vec::new(), first_index };
        if places.is_empty() {
            return out.found.push(found);
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        match self.journal.read(disk, ticket, &places) {
            Ok(()) => drop(self.catch_ups.insert(ticket, CatchUp::Repair(found))),
            Err(error) => {
                tracing::warn!(group = group.0, peer = %to, %error, "cannot read entries that a peer has lost; look at this node's disk")
            }
        }
    }

    /// Read entries that are no longer in memory for a follower.
    pub(super) fn load_entries<D: Disk>(&mut self, disk: &mut D, id: GroupId, wanted: EntriesWanted) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        let prev_index = wanted.from_index.saturating_sub(1);
        // What memory holds is sent from there, and may not be on this node's disk yet.
        let places = group.locations.run(wanted.from_index, group.raft.first_in_memory(), wanted.max_bytes);
        match group.raft.term_at(prev_index) {
            Some(prev_term) if !places.is_empty() => {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                match self.journal.read(disk, ticket, &places) {
                    Ok(()) => {
                        let catch_up = CatchUp::Follower { group: id, to: wanted.to, prev_index, prev_term };
                        self.catch_ups.insert(ticket, catch_up);
                    }
                    Err(error) => read_failed(id, group, wanted.to, &error),
                }
            }
            _ => {
                tracing::warn!(
                    group = id.0,
                    peer = wanted.to.0,
                    wanted = wanted.from_index,
                    "a follower needs entries that the journal no longer has: it fetches the group's state; raise \
                     journal.retain_bytes to make this rare"
                );
                group.raft.entries_unavailable(wanted.to);
            }
        }
    }

    pub(super) fn entries_loaded(
        &mut self,
        ticket: u64,
        result: Result<Vec<RecoveredEntry>, JournalError>,
        out: &mut Outputs,
    ) {
        let (id, to, prev_index, prev_term) = match self.catch_ups.remove(&ticket) {
            Some(CatchUp::Follower { group, to, prev_index, prev_term }) => (group, to, prev_index, prev_term),
            Some(CatchUp::Repair(found)) => return lost_found(found, result, out),
            Some(CatchUp::Scrub { group, from, places }) => {
                out.scrubbed = Some(self.scrubbed(group, from, &places, result));
                return;
            }
            None => return,
        };
        let Some(group) = self.groups.get_mut(&id) else { return };
        let entries = match result {
            Ok(entries) => entries,
            Err(error) => return read_failed(id, group, to, &error),
        };
        // An entry that was replaced while it was read must not be sent.
        let mut fresh = Vec::with_capacity(entries.len());
        for (entry, index) in entries.into_iter().zip(prev_index + 1..) {
            let Ok(kind) = EntryKind::try_from(entry.kind) else { break };
            if entry.index != index || group.raft.term_at(index) != Some(entry.term) {
                break;
            }
            fresh.push(Entry { term: entry.term, index, kind, payload: entry.payload });
        }
        group.raft.entries_loaded(to, prev_index, prev_term, fresh);
    }

    /// Begin a pass of the scrub: every durable entry of the journal is read once, see [`Shard::scrub`].
    pub fn begin_scrub(&mut self) {
        self.scrub_at = self.groups.keys().next().map(|group| (*group, 0));
    }

    /// Read on to find damage before anybody needs what is damaged, `max_bytes` or a single entry. What comes of it is in
    /// the [`Outputs`] of its completion; does nothing while a read is under way. False once the pass is over.
    pub fn scrub<D: Disk>(&mut self, disk: &mut D, max_bytes: usize) -> bool {
        while let Some((id, index)) = self.scrub_at {
            if self.scrub_reading {
                return true;
            }
            if let Some(group) = self.groups.get(&id) {
                let from = index.max(group.locations.first());
                let max_bytes = if self.scrub_singly > 0 { 0 } else { max_bytes };
                let places = group.locations.run(from, group.raft.durable_index() + 1, max_bytes);
                // What is no longer kept, or is about to go, need not be whole.
                if !places.is_empty() && self.journal.read(disk, self.next_ticket, &places).is_ok() {
                    self.catch_ups.insert(self.next_ticket, CatchUp::Scrub { group: id, from, places });
                    self.next_ticket += 1;
                    self.scrub_reading = true;
                    return true;
                }
            }
            let next = self.groups.range((Bound::Excluded(id), Bound::Unbounded)).next();
            self.scrub_at = next.map(|(group, _)| (*group, 0));
        }
        false
    }

    fn scrubbed(
        &mut self,
        group: GroupId,
        from: Index,
        places: &[Location],
        result: Result<Vec<RecoveredEntry>, JournalError>,
    ) -> Scrubbed {
        self.scrub_reading = false;
        let bad = match &result {
            Ok(_) => None,
            Err(JournalError::Damaged { file, position, .. }) => {
                places.iter().position(|place| (place.file, place.position) == (*file, *position))
            }
            // Which of them it is shows when they are read one by one.
            Err(error) if error.is_unreadable() && places.len() > 1 => {
                self.scrub_at = Some((group, from));
                self.scrub_singly = places.len();
                return Scrubbed::default();
            }
            Err(error) if error.is_unreadable() => Some(0),
            // The disk did not give the bytes this time: that says nothing about them.
            Err(_) => None,
        };
        self.scrub_singly = self.scrub_singly.saturating_sub(1);
        let whole = bad.unwrap_or(places.len());
        self.scrub_at = Some((group, from + whole as Index + Index::from(bad.is_some())));
        let bytes = places[..whole].iter().map(|place| u64::from(place.len)).sum();
        if let Err(error) = result {
            tracing::error!(
                group = group.0,
                %error,
                "the scrub cannot read an entry of the journal; if it is damaged, its file is given up once a checkpoint \
                 has what it did"
            );
        }
        let new = bad.filter(|at| self.damaged.insert(places[*at]));
        if let Some(at) = new {
            self.journal.give_up(places[at].file);
        }
        Scrubbed { bytes, damaged: new.map(|at| (group, from + at as Index)) }
    }
}

/// Entries for a peer that has lost them were read.
fn lost_found(mut found: Found, result: Result<Vec<RecoveredEntry>, JournalError>, out: &mut Outputs) {
    match result {
        Ok(entries) => {
            let entry = |entry: RecoveredEntry| {
                let kind = EntryKind::try_from(entry.kind).ok()?;
                Some(Entry { term: entry.term, index: entry.index, kind, payload: entry.payload })
            };
            found.entries = entries.into_iter().filter_map(entry).collect();
            out.found.push(found);
        }
        Err(error) => {
            tracing::warn!(group = found.group.0, peer = %found.to, %error, "cannot read entries that a peer has lost; look at this node's disk");
            // What is known of them without their bytes may be all that it needs.
            out.found.push(found);
        }
    }
}

/// Old entries for a follower could not be read. What may work the next time is tried again at the pace of heartbeats;
/// otherwise the follower needs more than entries.
fn read_failed(id: GroupId, group: &mut Group, to: NodeId, error: &JournalError) {
    tracing::error!(group = id.0, peer = to.0, %error, "cannot read old entries for a follower; look at this node's disk");
    if error.is_retriable() {
        group.raft.entries_failed(to);
    } else {
        group.raft.entries_unavailable(to);
    }
}
