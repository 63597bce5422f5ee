//! Catching up past the journal: a node that lacks more than entries fetches the state of a group from a peer.
//!
//! ```text
//! needs state ──ask──► offer ──► bytes of the state ──► records, segment by segment ──► complete on disk ──► reopen
//! ```
//!
//! The node asks, piece by piece, and asks again when no answer comes. What it has fetched survives restarts of either
//! side, since committed records are the same everywhere and for ever; a newer offer only adds to them. Once everything
//! is on stable storage the broker asks to be opened anew ([`Broker::wants_reopen`]): the start puts it in place.
//!
//! The peer answers from its newest checkpoint and its segments, at a bounded rate, so that its own clients do not notice.

use crate::Broker;
use crate::keep::checkpoint::segment_files;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use lnc_log::checkpoint::GroupCheckpoint;
use lnc_log::disk::{Completion, Disk};
use lnc_log::incoming::{Came, FileInfo, Incoming, Leftovers};
use lnc_log::journal::GroupId;
use lnc_log::segment::{PartitionKey, ReadDone};
use lnc_raft::{Configuration, Entry, EntryKind, Index, MAX_INDEX, NodeId, is_believable};
use lnc_replication::Found;
use lnc_replication::transfer::{MAX_RANGE, Offer, Part, Range, Transfer, TransferBody};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Questions that wait to be answered; who asks more asks again later.
const MAX_ASKS: usize = 256;

/// How long to wait for an answer before asking again.
const PATIENCE_US: u64 = 2_000_000;

/// Unanswered questions after which another peer is asked.
const MAX_TRIES: u32 = 3;

/// Answers for each second of the rate, at least: with larger ones at a low rate, several nodes that ask would lose their
/// patience before it is their turn.
const ANSWERS_PER_SECOND: u64 = 8;

/// The shortest answer worth its frame, in bytes.
const MIN_ANSWER: u64 = 4096;

/// How long a transfer goes on without the leader saying that it is needed.
const NEED_US: u64 = 10_000_000;

/// How long a complete transfer waits for those of other groups, so that one reopening serves them all.
const GATHER_US: u64 = 10_000_000;

/// How long opening anew waits until others lead what this node leads.
const HAND_OVER_US: u64 = 2_000_000;

/// Pause after a state for which there was no space.
const NO_SPACE_PAUSE_US: u64 = 30_000_000;

/// Pause between two questions for lost entries.
const ASK_ENTRIES_US: u64 = 200_000;

/// Lost entries asked for at once. An answer has as many as it may have bytes.
const ENTRIES_AT_ONCE: usize = 16;

/// The first bytes of what a complete transfer keeps beside the state.
const HEADER_VERSION: u8 = 1;

enum Phase {
    /// The peer was asked what it has.
    Asked,
    /// The bytes of the state are coming.
    State { offer: Offer, bytes: BytesMut },
    /// The records are coming; below these offsets the node's own go first.
    Records { incoming: Incoming, going: BTreeMap<PartitionKey, u64> },
    /// Everything is on stable storage, since this time.
    Complete { since_us: u64 },
}

/// A group's state on its way to this node.
struct Fetching {
    from: NodeId,
    /// The entry that the state must contain.
    need: Index,
    needed_us: u64,
    asked_us: u64,
    tries: u32,
    /// For there to be space, what the state has nothing of any more goes first.
    makes_room: bool,
    phase: Phase,
}

/// What is on its way to this node, and from it.
#[derive(Default)]
pub(crate) struct Transfers {
    /// This node's newest durable checkpoint, by group.
    offers: BTreeMap<GroupId, (Offer, Bytes)>,
    /// Questions of peers, oldest first.
    asks: VecDeque<(NodeId, GroupId, Range)>,
    /// Questions whose records are being read, by ticket.
    reads: BTreeMap<u64, (NodeId, GroupId, Range)>,
    /// Bytes that may be sent now; below zero after a large piece.
    budget: i64,
    refilled_us: u64,
    fetching: BTreeMap<GroupId, Fetching>,
    /// Since when everything is here, and what this node leads is being handed over.
    handing_over_us: Option<u64>,
    /// When there was no space for a group's state.
    no_space_us: BTreeMap<GroupId, u64>,
    leftovers: Leftovers,
    /// How often, and when last, peers were asked for lost entries.
    entries_asked: usize,
    entries_asked_us: u64,
    /// Numbers the transfers of this run.
    started: u64,
    pub(crate) outbox: Vec<Transfer>,
}

impl Transfers {
    pub(crate) fn new(leftovers: Leftovers) -> Self {
        Self { leftovers, ..Self::default() }
    }

    /// These groups are in checkpoint `number`, which is durable.
    pub(crate) fn offer(&mut self, number: u64, groups: Vec<GroupCheckpoint>) {
        let offer = |group: &GroupCheckpoint| Offer {
            checkpoint: number,
            applied_index: group.applied_index,
            applied_term: group.applied_term,
            configuration: group.configuration.clone(),
            state_len: group.state.len() as u64,
        };
        self.offers = groups.into_iter().map(|group| (group.group, (offer(&group), group.state))).collect();
    }

    /// Bytes of the state in this node's newest durable checkpoint.
    pub(crate) fn offered_bytes(&self) -> u64 {
        self.offers.values().map(|(_, state)| state.len() as u64).sum()
    }

    /// Bytes that the transfers of other groups will still write.
    pub(crate) fn claimed_beside(&self, group: GroupId) -> u64 {
        let of_others = self.fetching.iter().filter(|(other, _)| **other != group);
        let left = of_others.map(|(_, fetching)| match &fetching.phase {
            Phase::Records { incoming, .. } => incoming.left(),
            _ => 0,
        });
        left.sum()
    }

    /// State on its way to this node: group, source, bytes that have come and bytes of all.
    pub(crate) fn progress(&self) -> impl Iterator<Item = (GroupId, NodeId, u64, u64)> + '_ {
        self.fetching.iter().map(|(group, fetching)| {
            let (done, total) = match &fetching.phase {
                Phase::Asked => (0, 0),
                Phase::State { offer, bytes } => (bytes.len() as u64, offer.state_len),
                Phase::Records { incoming, .. } => incoming.progress(),
                Phase::Complete { .. } => (1, 1),
            };
            (*group, fetching.from, done, total)
        })
    }

    /// Whether the state of a group comes in the place of what was let go for it.
    pub(crate) fn makes_room(&self, group: GroupId) -> bool {
        self.fetching.get(&group).is_some_and(|fetching| fetching.makes_room)
    }

    fn is_asked_by(&self, ticket: u64) -> bool {
        self.reads.contains_key(&ticket)
    }
}

/// What a complete transfer keeps beside the state: where the state is in the log.
pub(crate) fn encode_header(offer: &Offer) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(HEADER_VERSION);
    out.put_u64_le(offer.applied_index);
    out.put_u64_le(offer.applied_term);
    out.put_slice(&offer.configuration);
    out.freeze()
}

/// Applied index, its term, and the members; `None` if these are not the bytes of a header.
pub(crate) fn decode_header(mut header: Bytes) -> Option<(u64, u64, Bytes)> {
    let version = header.try_get_u8().ok()?;
    let (index, term) = (header.try_get_u64_le().ok()?, header.try_get_u64_le().ok()?);
    (version == HEADER_VERSION).then_some((index, term, header))
}

/// A node's own files; those that a peer offers as well, as the peer knows them.
fn as_offered(own: Vec<FileInfo>, offered: &[FileInfo]) -> BTreeSet<FileInfo> {
    let offered: BTreeMap<_, FileInfo> = offered.iter().map(|file| ((file.key, file.base_offset), *file)).collect();
    let same = |own: FileInfo| match offered.get(&(own.key, own.base_offset)) {
        Some(file) if file.is_same(&own) => *file,
        _ => own,
    };
    own.into_iter().map(same).collect()
}

fn is_configuration(entry: &Entry) -> bool {
    Configuration::decode(&entry.payload).is_ok()
}

impl<D: Disk> Broker<D> {
    /// Whether the broker must be dropped and opened anew, to take over state that has come. What this node leads was handed
    /// over before, as far as there is somebody to take it.
    pub fn wants_reopen(&self) -> bool {
        let since_us = self.transfers.handing_over_us.filter(|_| self.has_what_it_fetches());
        since_us.is_some_and(|since| self.leads_nothing_for_others() || self.now_us() >= since + HAND_OVER_US)
    }

    /// Whether all state that is on its way is here, or enough of it for long enough.
    fn has_what_it_fetches(&self) -> bool {
        let now = self.now_us();
        let mut complete = false;
        for fetching in self.transfers.fetching.values() {
            match fetching.phase {
                Phase::Complete { since_us } if now >= since_us + GATHER_US => return true,
                Phase::Complete { .. } => complete = true,
                _ => return false,
            }
        }
        complete
    }

    /// Wait until the disk has done all that this broker asked of it. Nothing may be asked of the broker afterwards.
    pub fn quiesce(&mut self) {
        let mut completions = Vec::new();
        loop {
            self.disk.kick();
            self.disk.wait(&mut completions);
            if completions.is_empty() {
                return;
            }
            completions.clear();
        }
    }

    /// Before the broker is opened anew, others lead: nobody has to find out by time-out.
    fn hand_over_before_reopening(&mut self) {
        if !self.has_what_it_fetches() {
            self.transfers.handing_over_us = None;
            return;
        }
        self.transfers.handing_over_us.get_or_insert(self.clock.mono_us);
        self.hand_over();
    }

    /// Whether it was not a moment ago that there was no space for a group's state.
    pub(crate) fn may_fetch_again(&self, group: GroupId) -> bool {
        let tried = self.transfers.no_space_us.get(&group);
        tried.is_none_or(|at| self.now_us() >= at + NO_SPACE_PAUSE_US)
    }

    /// The leader of a group says that this node needs its state, or the node finds that it does.
    pub(crate) fn state_needed(&mut self, group: GroupId, index: Index) {
        let now = self.now_us();
        if let Some(fetching) = self.transfers.fetching.get_mut(&group) {
            fetching.need = fetching.need.max(index);
            fetching.needed_us = now;
            return;
        }
        if !self.may_fetch_again(group) {
            return;
        }
        let Some(from) = self.transfer_source(group, None) else { return };
        self.metrics.transfers_started_total.inc();
        tracing::info!(group = group.0, %from, index, "too far behind for the journal: fetching the group's state");
        let phase = Phase::Asked;
        let fetching = Fetching { from, need: index, needed_us: now, asked_us: 0, tries: 0, makes_room: false, phase };
        self.transfers.fetching.insert(group, fetching);
        self.ask(group);
    }

    /// Whom to ask: the leader, or after trouble with one peer another.
    fn transfer_source(&self, group: GroupId, not: Option<NodeId>) -> Option<NodeId> {
        let leader = self.shard.leader(group);
        let fit = |peer: &NodeId| self.peers.is_connected(*peer) && Some(*peer) != not;
        let others = || self.peers.ids().find(fit);
        leader.filter(fit).or_else(others).or(not.filter(|peer| self.peers.is_connected(*peer)))
    }

    /// Ask for what comes next.
    fn ask(&mut self, group: GroupId) {
        let now = self.now_us();
        let from = self.config.node;
        let Some(fetching) = self.transfers.fetching.get_mut(&group) else { return };
        let body = match &fetching.phase {
            Phase::Asked => TransferBody::AskState,
            Phase::State { offer, bytes } => TransferBody::AskRange(Range {
                part: Part::State { checkpoint: offer.checkpoint, position: bytes.len() as u64 },
                max_bytes: MAX_RANGE,
            }),
            Phase::Records { incoming, .. } => match incoming.wants() {
                Some((key, offset)) => {
                    TransferBody::AskRange(Range { part: Part::Records { key, offset }, max_bytes: MAX_RANGE })
                }
                None => return,
            },
            Phase::Complete { .. } => return,
        };
        fetching.asked_us = now;
        self.transfers.outbox.push(Transfer { from, to: fetching.from, group, body });
    }

    /// Something that a peer asks or answers.
    pub(crate) fn transfer_message(&mut self, message: Transfer) {
        let Transfer { from, group, body, .. } = message;
        match body {
            TransferBody::AskState => {
                let offer = self.transfers.offers.get(&group).map(|(offer, _)| offer.clone());
                self.answer_peer(from, group, TransferBody::State { offer });
            }
            TransferBody::AskRange(range) => {
                // A repeated question means that the first is still queued: answer it once.
                let question = (from, group, range);
                let mut pending = self.transfers.asks.iter().chain(self.transfers.reads.values());
                if !pending.any(|other| *other == question) && self.transfers.asks.len() < MAX_ASKS {
                    self.transfers.asks.push_back(question);
                    self.serve_asks();
                }
            }
            TransferBody::State { offer } => self.state_offered(from, group, offer),
            TransferBody::Range { range, bytes } => self.range_came(from, group, range, bytes),
            TransferBody::AskEntries { wanted } => {
                self.shard.find_entries(&mut self.disk, group, from, &wanted, &mut self.turn.shard_outputs);
            }
            TransferBody::AskTopic { topic_id, partitions, data_groups } => {
                self.tell_of_topic(from, group, topic_id, partitions, data_groups);
            }
            TransferBody::Topic { topic_id, complete, gone } => self.heard_of_topic(group, topic_id, complete, gone),
            TransferBody::Entries { commit, committed, entries, first_index } => {
                let sound =
                    entries.iter().all(|entry| entry.kind != EntryKind::Configuration || is_configuration(entry));
                if !sound || !self.can_take(group, from, &entries) {
                    return;
                }
                let found = Found { group, to: self.config.node, commit, committed, entries, first_index };
                self.shard.entries_found(found, &mut self.turn.shard_outputs);
            }
        }
    }

    /// Give a peer what this node has of the entries that it lost.
    pub(crate) fn give_entries(&mut self, found: Found) {
        let Found { group, to, commit, committed, entries, first_index } = found;
        self.answer_peer(to, group, TransferBody::Entries { commit, committed, entries, first_index });
    }

    /// Ask for entries that this node has lost: one peer after the other, since not every one has all of them.
    fn ask_for_entries(&mut self) {
        let now = self.now_us();
        if now < self.transfers.entries_asked_us + ASK_ENTRIES_US {
            return;
        }
        let wanted = self.shard.wanted_entries(ENTRIES_AT_ONCE);
        let peers = self.peers.ids().len();
        if wanted.is_empty() || peers == 0 {
            return;
        }
        self.transfers.entries_asked_us = now;
        self.transfers.entries_asked += 1;
        let turn = self.transfers.entries_asked % peers;
        let Some(to) = self.peers.ids().nth(turn) else { return };
        for (group, wanted) in wanted {
            self.answer_peer(to, group, TransferBody::AskEntries { wanted });
        }
    }

    pub(crate) fn answer_peer(&mut self, to: NodeId, group: GroupId, body: TransferBody) {
        self.transfers.outbox.push(Transfer { from: self.config.node, to, group, body });
    }

    /// Answer questions as far as the rate allows. What a read costs is known when it is done: one after the other.
    fn serve_asks(&mut self) {
        let longest = (self.config.transfer_bytes_per_second / ANSWERS_PER_SECOND).max(MIN_ANSWER);
        while self.transfers.budget > 0
            && self.transfers.reads.is_empty()
            && let Some((to, group, range)) = self.transfers.asks.pop_front()
        {
            let max_bytes = longest.min(u64::from(range.max_bytes)) as usize;
            match range.part {
                Part::State { checkpoint, position } => {
                    let state = self.transfers.offers.get(&group).filter(|(offer, _)| offer.checkpoint == checkpoint);
                    let bytes = state.and_then(|(_, state)| {
                        let start = usize::try_from(position).ok().filter(|start| *start <= state.len())?;
                        Some(state.slice(start..state.len().min(start + max_bytes)))
                    });
                    self.send_range(to, group, range, bytes);
                }
                Part::Records { key, offset } => {
                    let ticket = self.ticket();
                    match self.storage.on_disk().read_stored(&mut self.disk, key, offset, max_bytes, ticket) {
                        Ok(()) => drop(self.transfers.reads.insert(ticket, (to, group, range))),
                        Err(_) => {
                            let cached = self.in_memory(range);
                            self.send_range(to, group, range, cached);
                        }
                    }
                }
            }
        }
    }

    /// Records that a peer asks for and that are in no file, or in one that is damaged.
    fn in_memory(&mut self, range: Range) -> Option<Bytes> {
        let Part::Records { key, offset } = range.part else { return None };
        let found = self.storage.cache().read(key, offset, range.max_bytes as usize);
        let found = found.filter(|found| found.base_offset == offset)?;
        Some(Bytes::from(found.pieces.concat()))
    }

    fn send_range(&mut self, to: NodeId, group: GroupId, range: Range, bytes: Option<Bytes>) {
        let sent = bytes.as_ref().map_or(0, Bytes::len);
        self.transfers.budget -= sent as i64;
        self.metrics.transfer_out_bytes_total.inc_by(sent as u64);
        self.answer_peer(to, group, TransferBody::Range { range, bytes });
    }

    /// A read has finished: records for a peer, unless a client asked for them.
    pub(crate) fn read_done(&mut self, read: ReadDone) {
        let Some(read) = self.scrub_read(read) else { return };
        if !self.transfers.is_asked_by(read.ticket) {
            return self.cold_read_done(read);
        }
        let Some((to, group, range)) = self.transfers.reads.remove(&read.ticket) else { return };
        let bytes = match read.result {
            Ok(batches) => Some(batches.bytes),
            Err(error) => {
                let cached = self.in_memory(range);
                if cached.is_none() {
                    tracing::warn!(%error, %to, "cannot give records to a peer, which asks another node; if this repeats, look at this node's disk");
                }
                cached
            }
        };
        self.send_range(to, group, range, bytes);
        self.serve_asks();
    }

    fn state_offered(&mut self, from: NodeId, group: GroupId, offer: Option<Offer>) {
        let Some(fetching) = self.transfers.fetching.get_mut(&group) else { return };
        if fetching.from != from || !matches!(fetching.phase, Phase::Asked) {
            return;
        }
        // An older state would not do: the peer makes a newer checkpoint soon.
        let Some(offer) = offer.filter(|offer| offer.applied_index >= fetching.need) else { return };
        // With a state that is none the node could not start again. To ask once more is left to the next tick.
        let term = self.shard.hard_state(group).term;
        let placed = (1..=MAX_INDEX).contains(&offer.applied_index) && offer.applied_term > 0;
        if !placed || !is_believable(term, offer.applied_term) || Configuration::decode(&offer.configuration).is_err() {
            tracing::error!(group = group.0, %from, ?offer, term, "a peer offers a state that cannot be one of this group");
            return;
        }
        fetching.tries = 0;
        let empty = offer.state_len == 0;
        fetching.phase = Phase::State { offer, bytes: BytesMut::new() };
        if empty {
            self.state_came(group);
        } else {
            self.ask(group);
        }
    }

    fn range_came(&mut self, from: NodeId, group: GroupId, range: Range, came: Option<Bytes>) {
        self.metrics.transfer_in_bytes_total.inc_by(came.as_ref().map_or(0, |came| came.len() as u64));
        self.repair_came(from, group, range, came.as_ref());
        let Some(fetching) = self.transfers.fetching.get_mut(&group) else { return };
        if fetching.from != from {
            return;
        }
        match (&mut fetching.phase, range.part) {
            (Phase::State { offer, bytes }, Part::State { checkpoint, position })
                if checkpoint == offer.checkpoint && position == bytes.len() as u64 =>
            {
                match came.filter(|came| !came.is_empty() && position + came.len() as u64 <= offer.state_len) {
                    Some(came) => bytes.extend_from_slice(&came),
                    // The peer has a newer checkpoint by now.
                    None => return self.begin_anew(group),
                }
                fetching.tries = 0;
                if bytes.len() as u64 == offer.state_len {
                    self.state_came(group);
                } else {
                    self.ask(group);
                }
            }
            (Phase::Records { incoming, .. }, Part::Records { key, offset })
                if incoming.wants() == Some((key, offset)) =>
            {
                let Some(came) = came else { return self.begin_anew(group) };
                fetching.tries = 0;
                if let Err(error) = incoming.records(&mut self.disk, key, offset, &came) {
                    tracing::error!(group = group.0, %from, %error, "a peer sent records that cannot be right");
                    self.ask_another(group);
                }
            }
            _ => {}
        }
    }

    /// The whole state is here: now for the records.
    fn state_came(&mut self, group: GroupId) {
        let Some(fetching) = self.transfers.fetching.get_mut(&group) else { return };
        let Phase::State { offer, bytes } = std::mem::replace(&mut fetching.phase, Phase::Asked) else { return };
        let state = bytes.freeze();
        let files = match segment_files(group, state.clone()) {
            Ok(files) => files,
            Err(error) => {
                tracing::error!(group = group.0, from = %fetching.from, %error, "a peer sent a state snapshot that cannot be decoded");
                return self.ask_another(group);
            }
        };
        // What this node's own checkpoint names is on its disk for good, and the same on every node.
        let own = self.transfers.offers.get(&group).map(|(_, state)| segment_files(group, state.clone()));
        let own = as_offered(own.and_then(Result::ok).unwrap_or_default(), &files);
        // What has made room for another offer is not there any more.
        let mut own = own;
        own.retain(|file| !self.storage.segments().is_given_up(file.key, file.base_offset));
        let wanted: Vec<FileInfo> = files.iter().copied().filter(|file| !own.contains(file)).collect();
        let going = self.going_before(group, offer.applied_index, &state);
        let come = self.transfers.leftovers.bytes_of(group, &wanted);
        let room = self.space_of_takeover(state.len() as u64);
        let going = match self.space_for(group, &files, &wanted, &own, &going, (state.len() as u64, come)) {
            Ok(true) => going,
            Ok(false) => BTreeMap::new(),
            Err((needed, free)) => {
                tracing::error!(
                    group = group.0,
                    needed,
                    free,
                    "no space for the state that this node lacks: delete topics or make room; trying again"
                );
                self.transfers.no_space_us.insert(group, self.clock.mono_us);
                self.transfers.fetching.remove(&group);
                return;
            }
        };
        self.transfers.started += 1;
        let first = self.transfers.started << 32;
        let header = encode_header(&offer);
        let (what, leftovers) = ((&header[..], &state[..], room), &self.transfers.leftovers);
        let incoming = Incoming::begin(&mut self.disk, group, what, wanted, &going, leftovers, first);
        if let Some(fetching) = self.transfers.fetching.get_mut(&group) {
            fetching.makes_room |= !going.is_empty();
            fetching.phase = Phase::Records { incoming, going };
        }
    }

    /// A disk operation of a transfer has finished.
    pub(crate) fn incoming_completion(&mut self, completion: Completion) {
        let started = completion.token.number() >> 32;
        let now = self.now_us();
        for (group, fetching) in &mut self.transfers.fetching {
            let Phase::Records { incoming, going } = &mut fetching.phase else { continue };
            if incoming.next_number() >> 32 != started {
                continue;
            }
            let group = *group;
            match incoming.on_completion(&mut self.disk, completion) {
                Ok(Came::Some) => self.ask(group),
                Ok(Came::Noted) => {
                    let going = std::mem::take(going);
                    self.storage.on_disk().give_up(&mut self.disk, &going);
                }
                Ok(Came::All) => {
                    tracing::info!(group = group.0, "the group's state is here; taking it over");
                    self.metrics.transfers_completed_total.inc();
                    fetching.phase = Phase::Complete { since_us: now };
                }
                Err(error) if error.is_full() => {
                    tracing::error!(
                        group = group.0,
                        %error,
                        "no space for the state that this node lacks: delete topics or make room; trying again"
                    );
                    self.keep_what_came(group);
                    self.transfers.no_space_us.insert(group, self.clock.mono_us);
                    self.transfers.fetching.remove(&group);
                }
                Err(error) => {
                    tracing::warn!(group = group.0, %error, "the transfer of a group's state begins anew; if this repeats, look at this node's disk and at the space on it");
                    self.begin_anew(group);
                }
            }
            return;
        }
    }

    /// Ask the same peer for a newer offer. What has come is kept.
    fn begin_anew(&mut self, group: GroupId) {
        self.metrics.transfers_restarted_total.inc();
        self.keep_what_came(group);
        if let Some(fetching) = self.transfers.fetching.get_mut(&group) {
            // Not at once: the answer would be the same.
            fetching.asked_us = self.clock.mono_us;
        }
    }

    fn ask_another(&mut self, group: GroupId) {
        self.metrics.transfers_restarted_total.inc();
        self.keep_what_came(group);
        let from = self.transfers.fetching.get(&group).map(|fetching| fetching.from);
        match self.transfer_source(group, from) {
            Some(next) => {
                if let Some(fetching) = self.transfers.fetching.get_mut(&group) {
                    (fetching.from, fetching.tries) = (next, 0);
                }
                self.ask(group);
            }
            None => drop(self.transfers.fetching.remove(&group)),
        }
    }

    fn keep_what_came(&mut self, group: GroupId) {
        if let Some(fetching) = self.transfers.fetching.get_mut(&group)
            && let Phase::Records { incoming, .. } = std::mem::replace(&mut fetching.phase, Phase::Asked)
        {
            incoming.leave(&mut self.transfers.leftovers);
        }
    }

    /// The part of a tick that is about transfers.
    pub(crate) fn tick_transfers(&mut self) {
        let now = self.now_us();
        let rate = self.config.transfer_bytes_per_second;
        let elapsed = now.saturating_sub(self.transfers.refilled_us).min(1_000_000);
        let refill = (u128::from(rate) * u128::from(elapsed) / 1_000_000) as i64;
        self.transfers.refilled_us = now;
        // Unused rate is not saved up for longer than a tenth of a second.
        self.transfers.budget = self.transfers.budget.saturating_add(refill).min((rate / 10).max(1) as i64);
        self.serve_asks();
        self.ask_for_entries();
        self.hand_over_before_reopening();
        let groups: Vec<GroupId> = self.transfers.fetching.keys().copied().collect();
        for group in groups {
            let Some(fetching) = self.transfers.fetching.get_mut(&group) else { continue };
            let complete = matches!(fetching.phase, Phase::Complete { .. });
            if !complete && now > fetching.needed_us + NEED_US {
                tracing::info!(group = group.0, "the group's state is no longer needed");
                self.keep_what_came(group);
                self.transfers.fetching.remove(&group);
            } else if !complete && now > fetching.asked_us + PATIENCE_US {
                fetching.tries += 1;
                if fetching.tries > MAX_TRIES {
                    self.ask_another(group);
                } else {
                    self.ask(group);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_trip() {
        let configuration = Bytes::from_static(b"members");
        let offer = Offer { checkpoint: 3, applied_index: 9, applied_term: 2, configuration, state_len: 1 };
        let header = encode_header(&offer);
        assert_eq!(decode_header(header.clone()), Some((9, 2, offer.configuration)));
        assert_eq!(decode_header(header.slice(..10)), None);
        assert_eq!(decode_header(Bytes::from_static(&[9; 30])), None);
    }
}
