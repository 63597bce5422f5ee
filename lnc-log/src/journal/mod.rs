//! The journal: one write-ahead log shared by all Raft groups of a shard, so that any number of groups costs one
//! stream of syncs.
//!
//! Records are staged in memory and written in *flushes*. A flush starts on a block boundary, so that writing one
//! never touches the blocks of another, and several may be in flight; they are reported durable in order only. Files
//! are prepared ahead and recycled (see `files.rs`), the layout of the bytes is in `format.rs`, and what is kept after
//! a crash is decided in `recovery.rs`:
//!
//! - Flushes are numbered without gaps, and carry the highest number known durable when they were built.
//! - A flush that fails its checks is a torn tail, and cut, unless a later flush attests that it was durable: then it
//!   is damage. What its records were is known from copies that the flushes after it carry (`identity.rs`), so that they
//!   can be fetched from a peer; without a copy, it is an error.
//! - What is missing altogether is told by the mark, a small file beside the journal (`mark.rs`): flushes that it calls
//!   durable, or files that it names, and that are not there, are lost. What they were is not known then.
//! - Each open raises the epoch. After a cut, leftovers beyond it have a lower epoch than what is written next, so they
//!   never come back.
//!
//! Truncation is implied: an entry replaces everything that its group has from its index on.
//!
//! No clocks, threads or entropy: the same calls and completions give the same bytes.

use crate::FileOwner;
use crate::disk::{AlignedBuf, BLOCK, Completion, Disk, Op, Outcome, Owner};
use bytes::Bytes;
use files::Files;
use format::Header;
use identity::{Recent, Summary};
use lnc_mutation::{Mutation, mutated};
use mark::{GroupMark, Mark, Marks};
use read::Reads;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;

mod error;
mod files;
mod format;
mod identity;
mod look;
mod mark;
mod read;
mod recovery;

pub use error::JournalError;
pub use look::{FoundFlush, Marked, flushes, marked};
pub use read::JournalRead;

/// The directory of the journal, relative to the data directory.
const DIR: &str = "journal";
/// Buffers longer than this, in bytes, are not kept for reuse.
const MAX_KEPT_BUFFER: usize = 4 << 20;
/// While the disk is full, every so many calls of `flush` try again to make the next file: seldom, since each attempt
/// takes the space for a moment from those who could free some.
const FLUSHES_PER_RETRY: u32 = 64;

/// Path of the file with this number.
fn file_path(number: u64) -> String {
    format!("{DIR}/{number:020}.journal")
}

/// Number of a Raft group within the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

/// How the journal is laid out and written.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Length of a file in bytes, rounded up to whole blocks. Larger files are recycled less often, smaller ones give
    /// space back sooner.
    pub file_bytes: u64,
    /// Flushes in flight at the same time. More hide the latency of the disk, fewer make larger flushes.
    pub max_in_flight: usize,
    /// A random number that stays with the data directory, unknown to clients. It marks every flush, so that neither
    /// another node's file nor a payload made to look like a flush is taken for one.
    pub identity: u64,
    /// The member that this is the journal of, which its files name.
    pub owner: FileOwner,
    /// The format of the data directory: from 3 on there must be a mark, from 2 on there must be something at all.
    pub format: u32,
    /// The newest checkpoint that is there; 0: none.
    pub checkpoint: u64,
}

impl JournalConfig {
    /// The defaults, for the journal of this identity.
    pub fn new(identity: u64) -> Self {
        let owner = FileOwner { incarnation: identity, ..FileOwner::default() };
        Self { file_bytes: 64 << 20, max_in_flight: 4, identity, owner, format: 1, checkpoint: 0 }
    }

    /// Whether the data directory must have a mark.
    fn keeps_mark(&self) -> bool {
        self.format >= MARK_FORMAT
    }
}

/// The format of a cluster from which on its nodes keep a mark, see [`Journal::keep_mark`].
pub const MARK_FORMAT: u32 = 3;

/// Have the mark say that checkpoint `number` is durable, if there is one. For the start of a node, before the journal is
/// opened.
pub fn note_checkpoint<D: Disk>(disk: &mut D, number: u64) -> Result<(), JournalError> {
    mark::note_checkpoint(disk, number)
}

/// The number of the newest checkpoint that the mark knows to have been durable, 0: there was none; `None`: there is no
/// mark. For the start of a node.
pub fn newest_checkpoint<D: Disk>(disk: &mut D, config: &JournalConfig) -> Result<Option<u64>, JournalError> {
    mark::newest_checkpoint(disk, config)
}

/// The number of the oldest file of the journal, if there is any. For the start of a node.
pub fn oldest_file<D: Disk>(disk: &mut D) -> Result<Option<u64>, JournalError> {
    recovery::oldest_file(disk)
}

/// Number of the first file that recovery reads, as named by the newest checkpoint; 0 for the oldest there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalStart(pub u64);

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// Number of the file.
    pub file: u64,
    /// Byte position in the file.
    pub position: u64,
    /// Length of the record in bytes.
    pub len: u32,
    /// The record's number in the journal; tells it from any other that ever lay here.
    pub sequence: u64,
}

/// An entry read from the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredEntry {
    /// Raft term.
    pub term: u64,
    /// Raft index within the group.
    pub index: u64,
    /// The owner's entry kind.
    pub kind: u8,
    /// The owner's bytes.
    pub payload: Bytes,
    /// Where it lies.
    pub location: Location,
    /// Its bytes are lost: kind and payload are not known, and there is nothing at the location.
    pub damaged: bool,
}

/// What the journal holds of one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// The last term and vote.
    pub hard_state: Option<(u64, Option<u64>)>,
    /// Index and term after which the log was restarted, if it was (see [`Journal::append_checkpoint`]).
    pub restarted_after: Option<(u64, u64)>,
    /// The entries, contiguous, after truncation. They may start at any index.
    pub entries: Vec<RecoveredEntry>,
}

/// Where an unfinished flush was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Number of the file.
    pub file: u64,
    /// Byte position at which the journal ends now.
    pub position: u64,
    /// What was found there.
    pub found: String,
}

/// What a checkpoint has of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    /// The last entry whose effect it has; 0: none.
    pub index: u64,
    /// The latest term that it knows of: this node may have voted in it, and acknowledged entries of it.
    pub term: u64,
    /// The term of that entry.
    pub applied_term: u64,
}

/// What [`Journal::open`] found. All of it is on stable storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// By group.
    pub groups: BTreeMap<GroupId, RecoveredGroup>,
    /// The torn tail, if a crash left one that can be told from unused space.
    pub torn_tail: Option<Cut>,
    /// Flushes that were durable and are damaged. What they held is among the groups, marked as damaged.
    pub damage: Vec<Damage>,
    /// The end of the journal is lost, and what was in it is not known.
    pub lost_tail: Option<LostTail>,
    /// Groups whose log may lack entries that this node acknowledged, each until it has an entry of this term or a later
    /// one: those are of a leader that was elected without this node, and has all that was committed.
    pub in_doubt: BTreeMap<GroupId, u64>,
}

/// The end of a journal that is known to have been longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostTail {
    /// Number of the file where it ends now.
    pub file: u64,
    /// Byte position.
    pub position: u64,
    /// What must be there.
    pub expected: String,
    /// What was found.
    pub found: String,
}

impl fmt::Display for LostTail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, position, expected, found } = self;
        write!(f, "the journal ends in {} at byte {position}: expected {expected}, found {found}", file_path(*file))
    }
}

/// A stretch of the journal that was durable and is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Number of the file.
    pub file: u64,
    /// Byte position.
    pub position: u64,
    /// Flushes lost there.
    pub flushes: u64,
    /// What was found.
    pub found: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, position, flushes, found } = self;
        write!(f, "{} at byte {position}: {found}; flushes lost: {flushes}", file_path(*file))
    }
}

/// A flush under construction. An empty buffer means that nothing is staged.
#[derive(Debug)]
struct Staged {
    file: u64,
    /// Where the flush will start.
    position: u64,
    /// Length of the file, which the flush must not exceed.
    capacity: u64,
    buf: AlignedBuf,
    records: u32,
    /// Whether it holds more than copies.
    content: bool,
    /// Whether it holds a new term or vote.
    votes: bool,
    /// What it holds.
    summary: Summary,
}

/// A complete flush that waits to be written.
#[derive(Debug)]
struct Sealed {
    number: u64,
    file: u64,
    position: u64,
    capacity: u64,
    buf: AlignedBuf,
    records: u32,
    content: bool,
    votes: bool,
}

/// A flush that is being written.
#[derive(Debug)]
struct InFlight {
    token: u64,
    number: u64,
    file: u64,
    end: u64,
    content: bool,
    /// The `durable` of its header.
    attests: u64,
    /// The mark that it waits for; 0: none.
    mark: u64,
    done: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Journal {
    config: JournalConfig,
    files: Files,
    epoch: u64,
    next_sequence: u64,
    next_number: u64,
    /// The current term and vote of each group, of which no term falls and no vote changes within one: every new file starts with them, since older files may go.
    hard_states: BTreeMap<GroupId, (u64, Option<u64>)>,
    /// Groups whose log may lack what this node acknowledged, see [`Recovered::in_doubt`].
    in_doubt: BTreeMap<GroupId, u64>,
    marks: Marks,
    /// The newest durable checkpoint.
    checkpoint: u64,
    staged: Staged,
    /// What the flushes before the staged one held.
    recent: Recent,
    sealed: VecDeque<Sealed>,
    in_flight: VecDeque<InFlight>,
    /// Invariant: every flush up to this one is on stable storage. Never falls. `attested ≤ durable < next_number`.
    durable: u64,
    /// File and position where the last durable flush ends.
    durable_end: (u64, u64),
    /// The highest flush that a durable one calls durable.
    attested: u64,
    /// The highest durable flush that holds records.
    last_with_records: u64,
    /// Files below this may go.
    release_before: u64,
    reads: Reads,
    /// Calls of `flush` while the disk was full.
    full_flushes: u32,
    spare_buffers: Vec<AlignedBuf>,
    failed: bool,
}

impl Journal {
    /// Read the journal from `start` on, cut a torn tail, and get ready to append. Leaves nothing in flight.
    pub fn open<D: Disk>(
        disk: &mut D,
        config: JournalConfig,
        start: JournalStart,
    ) -> Result<(Self, Recovered), JournalError> {
        Self::open_above(disk, config, start, start, &BTreeMap::new())
    }

    /// As [`Journal::open`], but without the payloads of entries up to the index that `covered` gives for their group:
    /// a checkpoint has their effect already, and retained ones could fill the memory. They can still be read. Files before
    /// `needed` hold nothing else: if they are damaged, they are given up.
    pub fn open_above<D: Disk>(
        disk: &mut D,
        mut config: JournalConfig,
        start: JournalStart,
        needed: JournalStart,
        covered: &BTreeMap<GroupId, Covered>,
    ) -> Result<(Self, Recovered), JournalError> {
        config.file_bytes = config.file_bytes.max(2 * BLOCK as u64).next_multiple_of(BLOCK as u64);
        config.max_in_flight = config.max_in_flight.max(1);
        let (scan, recovered) = recovery::recover(disk, &config, start, needed, covered)?;
        let hard_states =
            recovered.groups.iter().filter_map(|(group, state)| Some((*group, state.hard_state?))).collect();
        let journal = Self {
            files: scan.files,
            epoch: scan.epoch,
            next_sequence: scan.next_sequence,
            next_number: scan.last_number + 1,
            hard_states,
            in_doubt: recovered.in_doubt.clone(),
            marks: scan.marks,
            checkpoint: scan.checkpoint.max(config.checkpoint),
            staged: Staged {
                file: scan.file,
                position: scan.position,
                capacity: scan.capacity,
                buf: AlignedBuf::default(),
                records: 0,
                content: false,
                votes: false,
                summary: Summary::default(),
            },
            recent: scan.recent,
            sealed: VecDeque::new(),
            in_flight: VecDeque::new(),
            durable: scan.last_number,
            durable_end: (scan.file, scan.position),
            attested: scan.attested,
            last_with_records: scan.last_with_records,
            release_before: 0,
            reads: Reads::default(),
            full_flushes: 0,
            spare_buffers: Vec::new(),
            failed: false,
            config,
        };
        Ok((journal, recovered))
    }

    /// Stage an entry. It is kept once the flush that takes it is durable, see [`Journal::flush`].
    pub fn append_entry(&mut self, group: GroupId, term: u64, index: u64, kind: u8, payload: &[u8]) -> Location {
        let place = self.stage(format::ENTRY_RECORD + payload.len(), |buf, sequence| {
            format::encode_entry(buf, sequence, group, (term, index, kind), payload);
        });
        self.staged.summary.entry(group, term, index);
        place
    }

    /// Stage a group's term and vote.
    pub fn append_hard_state(&mut self, group: GroupId, term: u64, vote: Option<u64>) {
        if let Some((known, voted)) = self.hard_states.insert(group, (term, vote)) {
            assert!(known <= term, "group {}: the term falls from {known} to {term}", group.0);
            let is_kept = known < term || voted.is_none() || voted == vote;
            assert!(is_kept, "group {}: the vote in term {term} changes from {voted:?} to {vote:?}", group.0);
        }
        self.stage(format::HARD_STATE_RECORD, |buf, sequence| {
            format::encode_hard_state(buf, sequence, group, term, vote);
        });
        self.staged.summary.hard_state(group, term, vote);
        self.staged.votes = true;
    }

    /// Stage the news that a group's log restarts after `index`, as when a snapshot replaces it: everything journaled
    /// for the group before is void, except term and vote.
    pub fn append_checkpoint(&mut self, group: GroupId, term: u64, index: u64) {
        self.stage(format::CHECKPOINT_RECORD, |buf, sequence| {
            format::encode_checkpoint(buf, sequence, group, term, index);
        });
        self.staged.summary.restart(group, term, index);
    }

    /// Bytes staged and not yet handed to the disk.
    pub fn staged_bytes(&self) -> usize {
        self.staged.buf.len() + self.sealed.iter().map(|flush| flush.buf.len()).sum::<usize>()
    }

    /// Whether [`Journal::flush`] would write now. False while enough flushes are in flight, while the next file is
    /// not ready, and after a failure.
    pub fn can_flush(&self) -> bool {
        let (file, capacity) = match self.sealed.front() {
            Some(flush) => (flush.file, flush.capacity),
            None => (self.staged.file, self.staged.capacity),
        };
        !self.failed && self.in_flight.len() < self.config.max_in_flight && self.files.is_ready(file, capacity)
    }

    /// Write what is staged. Returns the number of the flush that completes it: everything appended so far is on
    /// stable storage once [`Journal::durable`] has reached it. `None` when nothing is staged, or nothing can be
    /// written now; then what is staged stays, and grows into a larger flush. To be called every turn with something
    /// staged, also while [`Journal::can_flush`] is false: on a full disk, this is what tries again for space.
    pub fn flush<D: Disk>(&mut self, disk: &mut D) -> Option<u64> {
        if self.failed {
            return None;
        }
        self.full_flushes = if self.files.is_full() { self.full_flushes + 1 } else { 0 };
        let retry = self.full_flushes == FLUSHES_PER_RETRY;
        if retry {
            self.full_flushes = 0;
        }
        self.make_room(disk, retry);
        let number = if self.can_flush() { self.seal() } else { None };
        self.pump(disk);
        number
    }

    /// Take a completion of [`Owner::Journal`]. An error from a write is final: the node must stop.
    pub fn on_completion<D: Disk>(
        &mut self,
        disk: &mut D,
        completion: Completion,
    ) -> Result<Option<JournalRead>, JournalError> {
        debug_assert_eq!(completion.token.owner(), Some(Owner::Journal));
        let token = completion.token.number();
        if self.reads.owns(token) {
            let read = self.reads.on_completion(token, completion.result, &mut self.files);
            if !self.failed {
                self.recycle(disk);
            }
            return Ok(read);
        }
        if self.failed {
            return Ok(None);
        }
        let done = if self.marks.owns(token) {
            let next = self.files.token();
            self.marks.on_completion(disk, completion.result, next).map(|()| {
                self.advance();
                false
            })
        } else if self.files.owns(token) {
            self.files.on_completion(disk, token, completion.result)
        } else {
            self.written(token, completion.result).map(|()| false)
        };
        match done {
            Ok(space_freed) => {
                self.make_room(disk, space_freed);
                self.pump(disk);
                self.recycle(disk);
                Ok(None)
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// Every flush up to this number is on stable storage.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Tell the journal that nothing is about to be appended. If the last records are not yet attested as durable by
    /// a later flush, it writes an empty one that does, so that damage to them cannot pass for a torn tail.
    pub fn mark_idle<D: Disk>(&mut self, disk: &mut D) {
        let quiet = self.in_flight.is_empty() && self.sealed.is_empty() && self.staged.buf.is_empty();
        if self.failed || !quiet {
            return;
        }
        self.mark_durable(disk);
        if self.last_with_records <= self.attested {
            return;
        }
        self.reserve(0);
        self.begin_flush();
        self.make_room(disk, false);
        if self.can_flush() {
            self.seal();
            self.pump(disk);
        }
    }

    /// Let the mark say how far flushes are durable, if it does not yet.
    pub fn mark_durable<D: Disk>(&mut self, disk: &mut D) {
        if !self.failed && self.marks.is_ready() && self.marks.durable() < self.durable {
            self.marks.want();
            self.write_mark(disk);
        }
    }

    /// Begin to keep a mark, if that has not been done: the data directory may have one now.
    pub fn keep_mark<D: Disk>(&mut self, disk: &mut D) {
        if self.failed || self.marks.is_written() || self.marks.is_busy() {
            return;
        }
        if self.marks.is_ready() {
            self.marks.want();
            self.write_mark(disk);
        } else {
            let (token, file) = (self.files.token(), self.files.new_id());
            self.marks.create(disk, token, file);
        }
    }

    /// Whether there is a mark on stable storage that is as new as it must be.
    pub fn has_mark(&self) -> bool {
        self.marks.is_written() || self.config.keeps_mark()
    }

    /// Whether the mark says how far flushes are durable, or there is none.
    pub fn is_marked(&self) -> bool {
        let has_all = self.marks.durable() >= self.durable && !self.marks.is_busy();
        self.failed || !self.marks.is_ready() || has_all
    }

    /// Checkpoint `number` is durable.
    pub fn note_checkpoint<D: Disk>(&mut self, disk: &mut D, number: u64) {
        self.checkpoint = self.checkpoint.max(number);
        if !self.failed && self.marks.is_ready() {
            self.marks.want();
            self.write_mark(disk);
        }
    }

    /// Whether the mark, if there is one, says so of the newest checkpoint that was noted. No other may be there before: a start
    /// takes a mark for one of an older time that knows of neither of two.
    pub fn is_checkpoint_marked(&self) -> bool {
        let is_known = self.marks.checkpoint() >= self.checkpoint && !self.marks.is_busy();
        self.failed || !self.marks.is_ready() || is_known
    }

    /// The term of which a group's log must have an entry before it is certain to have all that this node acknowledged;
    /// `None` if it has.
    pub fn in_doubt(&self, group: GroupId) -> Option<u64> {
        self.in_doubt.get(&group).copied()
    }

    /// The log of a group has everything again.
    pub fn trust<D: Disk>(&mut self, disk: &mut D, group: GroupId) {
        if self.in_doubt.remove(&group).is_some() && !self.failed && self.marks.is_ready() {
            self.marks.want();
            self.write_mark(disk);
        }
    }

    /// Number of the flush that takes what is appended next, and at the latest what was appended last.
    pub fn next_flush(&self) -> u64 {
        self.next_number
    }

    /// Flushes being written.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// File of the last durable flush. Nothing appended from now on goes to an earlier one.
    pub fn current_file(&self) -> u64 {
        self.durable_end.0
    }

    /// The oldest file not yet released.
    pub fn first_file(&self) -> u64 {
        self.files.live.first_key_value().map_or(self.durable_end.0, |(number, _)| *number)
    }

    /// Space taken, in bytes, prepared files included. It grows until files are released: the owner must push back.
    pub fn bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// Bytes that find room in the files that there are, beside a quarter of one.
    pub fn room(&self) -> u64 {
        let used = self.staged.position + self.staged.buf.len() as u64;
        let current = self.files.is_ready(self.staged.file, 0);
        let left = if current { self.staged.capacity.saturating_sub(used) } else { 0 };
        (left + self.files.ready_bytes()).saturating_sub(self.config.file_bytes / 4)
    }

    /// Whether the disk had no space for the next file. Flushes go on once there is space again.
    pub fn is_full(&self) -> bool {
        self.files.is_full()
    }

    /// While space is short, a new file leaves so much of it free: for the checkpoint that releases old ones.
    pub fn save_space(&mut self, keep_free: u64) {
        self.files.keep_free = keep_free;
    }

    /// Try again for space if the disk was full. To be called from time to time: who appends nothing while
    /// [`Journal::is_full`] says so makes no flush that would find out.
    pub fn retry_space<D: Disk>(&mut self, disk: &mut D) {
        if !self.failed && self.files.is_full() {
            self.make_room(disk, true);
        }
    }

    /// Recycle the files below `before_file`, once no read needs them. The file of the last durable flush stays.
    pub fn release<D: Disk>(&mut self, disk: &mut D, before_file: u64) {
        self.release_before = self.release_before.max(before_file);
        if !self.failed {
            self.recycle(disk);
            self.make_room(disk, true);
        }
    }

    /// A place of this file is damaged, or cannot be read: once it is released it is removed, and not used again.
    pub fn give_up(&mut self, file: u64) {
        self.files.give_up(file);
    }

    /// Read entries back. `ticket` comes back with the [`JournalRead`] that [`Journal::on_completion`] returns.
    pub fn read<D: Disk>(&mut self, disk: &mut D, ticket: u64, locations: &[Location]) -> Result<(), JournalError> {
        if locations.is_empty() {
            return Err(JournalError::EmptyRead);
        }
        for Location { file, position, len, .. } in locations.iter().copied() {
            if (file, position.saturating_add(u64::from(len))) > self.durable_end {
                return Err(JournalError::NotDurable { file, position });
            }
            if file < self.release_before.min(self.durable_end.0) || !self.files.live.contains_key(&file) {
                return Err(JournalError::Released { file });
            }
        }
        self.reads.start(disk, ticket, locations, &mut self.files);
        Ok(())
    }
}

/// Staging and writing.
impl Journal {
    /// Start the staged flush if there is none.
    fn begin_flush(&mut self) {
        if self.staged.buf.is_empty() {
            self.staged.buf = self.spare_buffers.pop().unwrap_or_default();
            self.staged.buf.resize(format::HEADER);
            let summaries = self.recent.encode();
            self.put(|buf, sequence| format::encode_identities(buf, sequence, &summaries));
        }
    }

    /// Bytes that every flush begins with: its header and the copies.
    fn opening(&self) -> usize {
        format::HEADER + format::IDENTITIES_RECORD + self.recent.len_encoded()
    }

    fn stage(&mut self, len: usize, encode: impl FnOnce(&mut AlignedBuf, u64)) -> Location {
        self.reserve(len);
        self.begin_flush();
        self.staged.content = true;
        self.put(encode)
    }

    fn put(&mut self, encode: impl FnOnce(&mut AlignedBuf, u64)) -> Location {
        let (at, sequence) = (self.staged.buf.len(), self.next_sequence);
        encode(&mut self.staged.buf, sequence);
        self.next_sequence += 1;
        self.staged.records += 1;
        Location {
            file: self.staged.file,
            position: self.staged.position + at as u64,
            len: (self.staged.buf.len() - at) as u32,
            sequence,
        }
    }

    /// Make the staged flush one that has room for `len` more bytes, in the next file if need be.
    fn reserve(&mut self, len: usize) {
        let opening = self.opening();
        let end = |staged: &Staged| {
            let flush = staged.buf.len().max(opening) + len;
            staged.position + flush.next_multiple_of(BLOCK) as u64
        };
        if end(&self.staged) <= self.staged.capacity {
            return;
        }
        self.seal();
        let least = self.opening() + self.hard_states.len() * format::HARD_STATE_RECORD + format::OWNER_RECORD + len;
        self.staged.file += 1;
        self.staged.position = 0;
        self.staged.capacity = self.config.file_bytes.max(least.next_multiple_of(BLOCK) as u64);
        self.begin_flush();
        if self.marks.is_ready() {
            let owner = self.config.owner;
            self.put(|buf, sequence| format::encode_owner(buf, sequence, &owner));
        }
        for (group, (term, vote)) in self.hard_states.clone() {
            self.put(|buf, sequence| format::encode_hard_state(buf, sequence, group, term, vote));
            self.staged.summary.hard_state(group, term, vote);
        }
    }

    /// Close the staged flush and queue it for writing.
    fn seal(&mut self) -> Option<u64> {
        if self.staged.buf.is_empty() {
            return None;
        }
        let number = self.next_number;
        self.next_number += 1;
        let flush = Sealed {
            number,
            file: self.staged.file,
            position: self.staged.position,
            capacity: self.staged.capacity,
            buf: std::mem::take(&mut self.staged.buf),
            records: std::mem::take(&mut self.staged.records),
            content: std::mem::take(&mut self.staged.content),
            votes: std::mem::take(&mut self.staged.votes),
        };
        let len = identity::padded(flush.buf.len());
        let held = std::mem::take(&mut self.staged.summary);
        self.recent.push(Summary { number, file: flush.file, position: flush.position, len, ..held });
        self.staged.position += len;
        assert!(self.staged.position <= self.staged.capacity, "a flush lies within its file");
        self.sealed.push_back(flush);
        Some(number)
    }

    /// Hand queued flushes to the disk, as far as the window and the files allow.
    fn pump<D: Disk>(&mut self, disk: &mut D) {
        while self.in_flight.len() < self.config.max_in_flight
            && let Some(next) = self.sealed.front()
            && self.files.activate(next.file, next.capacity)
            && let Some(flush) = self.sealed.pop_front()
        {
            self.write(disk, flush);
        }
        self.write_mark(disk);
        self.make_room(disk, false);
    }

    fn write<D: Disk>(&mut self, disk: &mut D, flush: Sealed) {
        let Sealed { number, file, position, mut buf, records, content, votes, .. } = flush;
        let header = Header {
            identity: self.config.identity,
            epoch: self.epoch,
            number,
            durable: self.durable,
            file,
            body_len: u32::try_from(buf.len() - format::HEADER).expect("a flush is far below 4 GiB"),
            records,
        };
        buf[..format::HEADER].copy_from_slice(&header.encode());
        buf.pad_to_block();
        let (token, end) = (self.files.token(), position + buf.len() as u64);
        let last = self.in_flight.back().map_or(self.durable, |flush| flush.number);
        assert_eq!(number, last + 1, "flushes are written in order, each once");
        let attests = self.durable;
        // What a vote or the first flush of a file promises must be known even if the file is lost.
        let marked = self.marks.is_ready() && (votes || file > self.marks.newest_file());
        let mark = if marked { self.marks.want() } else { 0 };
        self.in_flight.push_back(InFlight { token, number, file, end, content, attests, mark, done: false });
        let live = &self.files.live[&file];
        assert!(end <= live.len, "flush {number} ends at {end} of file {file}, which has {} bytes", live.len);
        let id = live.id;
        disk.submit(Owner::Journal.token(token), Op::Write { file: id, position, buf, durable: true });
        self.write_mark(disk);
    }

    /// Write the mark if somebody waits for it, and none is being written.
    fn write_mark<D: Disk>(&mut self, disk: &mut D) {
        if !self.marks.is_due() {
            return;
        }
        let mut groups: BTreeMap<GroupId, GroupMark> = BTreeMap::new();
        for (group, (term, vote)) in &self.hard_states {
            groups.insert(*group, GroupMark { term: *term, vote: *vote, in_doubt: 0 });
        }
        for (group, term) in &self.in_doubt {
            groups.entry(*group).or_default().in_doubt = *term;
        }
        let mark = Mark {
            sequence: 0,
            owner: self.config.owner,
            epoch: self.epoch,
            durable: self.durable,
            checkpoint: self.checkpoint,
            files: self.files.live.iter().map(|(number, live)| (*number, live.len)).collect(),
            groups,
        };
        let token = self.files.token();
        self.marks.write(disk, token, mark);
    }

    /// A flush was written: advance over every one that is now durable in order.
    fn written(&mut self, token: u64, result: io::Result<Outcome>) -> Result<(), JournalError> {
        let Some(flush) = self.in_flight.iter_mut().find(|flush| flush.token == token) else {
            return Ok(());
        };
        match result {
            Ok(outcome) => {
                flush.done = true;
                if let Outcome::Written(mut buf) = outcome
                    && buf.capacity() <= MAX_KEPT_BUFFER
                    && self.spare_buffers.len() <= self.config.max_in_flight
                {
                    buf.clear();
                    self.spare_buffers.push(buf);
                }
            }
            Err(source) => {
                return Err(JournalError::WriteFailed { operation: "write", path: file_path(flush.file), source });
            }
        }
        self.advance();
        Ok(())
    }

    /// Flushes are durable in order, and once the mark is that they wait for.
    fn advance(&mut self) {
        while let Some(flush) = self.in_flight.front()
            && (flush.done && flush.mark <= self.marks.written() || mutated(Mutation::FlushOutOfOrder))
        {
            assert_eq!(flush.number, self.durable + 1, "flushes become durable in order");
            self.durable = flush.number;
            self.durable_end = (flush.file, flush.end);
            self.attested = self.attested.max(flush.attests);
            assert!(self.attested <= self.durable && self.durable < self.next_number, "what is durable was written");
            if flush.content {
                self.last_with_records = flush.number;
            }
            self.in_flight.pop_front();
        }
    }

    /// Prepare the next file: at twice the pace at which the current one fills, at once when a flush already waits for
    /// it, and in any case while there is nothing else to do.
    fn make_room<D: Disk>(&mut self, disk: &mut D, retry: bool) {
        /// Bytes that the next file is ahead, so that short bursts need not wait for it.
        const AHEAD: u64 = 4 << 20;
        let waiting = self.sealed.front().map(|flush| (flush.file, flush.capacity));
        let (file, capacity) = waiting.unwrap_or((self.staged.file, self.staged.capacity));
        let is_missing = !self.files.live.contains_key(&file);
        if is_missing {
            self.files.prepare(disk, capacity, retry);
        } else if self.files.is_full() || !self.files.has_spare() {
            self.files.prepare(disk, self.config.file_bytes, retry);
        }
        let is_idle = self.in_flight.is_empty() && self.staged.buf.is_empty();
        let upto = if is_missing || is_idle { u64::MAX } else { 2 * self.staged.position + AHEAD };
        self.files.fill(disk, upto);
    }

    fn recycle<D: Disk>(&mut self, disk: &mut D) {
        let before = self.release_before.min(self.durable_end.0);
        while self.files.live.first_key_value().is_some_and(|(number, file)| *number < before && file.readers == 0) {
            self.files.retire_first(disk, self.config.file_bytes);
        }
    }
}
