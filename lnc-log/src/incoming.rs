//! State that comes from a peer: a group's segments and the state of its state machine, collected beside the node's own
//! until they are complete, and put in place at the next start.
//!
//! ```text
//! incoming/<group>/<topic id>-<partition>-<base offset>.log     batches, checked one by one before they were written
//!                  CHECKPOINT                                   room for the checkpoint that takes it over
//!                  COMPLETE                                     the owner's header and state; written last
//!          <group>.going                                        what has to go first, for there to be space
//! ```
//!
//! Where space is short, a note says below which offsets of which partitions the state has nothing any more. Once that is on
//! stable storage the node removes those files of its own, though its checkpoint names them: [`going`] tells the start that
//! they are not missed. Neither bytes nor an inode may be left for the note: it takes the place of a
//! spare file, and becomes one again in the end.
//!
//! Once `COMPLETE` is there, no start can do without the checkpoint that takes the state over: so there is room for it before.
//!
//! A transfer that was interrupted goes on where it was, with as many whole batches of each file as are there; so does one
//! that a newer state of the group has overtaken. Once `COMPLETE` is there, [`install`] moves the files into place and writes a checkpoint that names them. A
//! crash anywhere in that leads to the same end: `COMPLETE` goes last, and a file that was moved is where it belongs.

use crate::advice::Advised;
use crate::checkpoint::{Checkpoint, CheckpointError, write_now};
use crate::disk::{AlignedBuf, BLOCK, Completion, Disk, FileId, Op, Outcome, Owner, is_full};
use crate::journal::{GroupId, JournalError, note_checkpoint};
use crate::segment::{Digest, PartitionKey};
use crate::spare;
use bytes::{Buf, Bytes};
use lnc_protocol::batch::{self, BatchHeader};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The directory of all transfers, relative to the data directory.
const ROOT: &str = "incoming";
const SEGMENTS: &str = "segments";
const MAGIC: [u8; 4] = *b"LNCI";
const GOING_MAGIC: [u8; 4] = *b"LNCG";
const COMPLETE: &str = "COMPLETE";
const ROOM: &str = "CHECKPOINT";
/// How the names of notes end of what has to go.
const GOING: &str = ".going";
/// Bytes of a partition in such a note.
const GOING_ENTRY: usize = 20;
/// Bytes of a file that are read at a time when a transfer is taken up again.
const SCAN_BYTES: usize = 1 << 20;

/// A segment file that a transfer brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileInfo {
    /// The partition.
    pub key: PartitionKey,
    /// Offset of its first record.
    pub base_offset: u64,
    /// Offset after its last record.
    pub end_offset: u64,
    /// Bytes of its batches.
    pub len: u64,
    /// Which batches they are, if that is known.
    pub digest: Option<Digest>,
}

impl FileInfo {
    /// Whether both are the same file, as far as is known of them.
    pub fn is_same(&self, other: &Self) -> bool {
        let known = self.digest.is_some() && other.digest.is_some();
        *self == if known { *other } else { Self { digest: self.digest, ..*other } }
    }

    /// Nothing of it is here.
    fn nothing(&self) -> Have {
        Have { len: 0, end_offset: self.base_offset, digest: Digest::default() }
    }

    fn name(&self) -> String {
        format!("{}-{}-{:020}.log", self.key.topic_id, self.key.partition, self.base_offset)
    }

    fn segment_dir(&self) -> String {
        format!("{SEGMENTS}/{}-{}", self.key.topic_id, self.key.partition)
    }

    fn segment_path(&self) -> String {
        format!("{}/{:020}.log", self.segment_dir(), self.base_offset)
    }
}

fn dir(group: GroupId) -> String {
    format!("{ROOT}/{}", group.0)
}

fn note_of_going(group: GroupId) -> String {
    format!("{ROOT}/{}{GOING}", group.0)
}

/// How much of a file is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Have {
    len: u64,
    end_offset: u64,
    digest: Digest,
}

impl Have {
    fn with(self, header: &BatchHeader, len: usize) -> Self {
        let digest = self.digest.with(header);
        Self { len: self.len + len as u64, end_offset: header.last_offset() + 1, digest }
    }

    /// Whether this is all of a file, and the right batches.
    fn is_whole(&self, file: &FileInfo) -> bool {
        let right = file.digest.is_none_or(|digest| digest == self.digest);
        right && self.len == file.len && self.end_offset == file.end_offset
    }
}

/// What earlier transfers have left, by group.
#[derive(Clone, Debug, Default)]
pub struct Leftovers(BTreeMap<GroupId, BTreeMap<(PartitionKey, u64), Have>>);

impl Leftovers {
    /// Bytes of these files that are here.
    pub fn bytes_of(&self, group: GroupId, files: &[FileInfo]) -> u64 {
        let Some(have) = self.0.get(&group) else { return 0 };
        files.iter().filter_map(|file| Some(have.get(&(file.key, file.base_offset))?.len.min(file.len))).sum()
    }
}

/// Why a transfer cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IncomingError {
    /// The disk refused an operation. What was fetched so far may be of no use; the node's own data is untouched.
    #[error("cannot {operation} {path}: {}", Advised(source))]
    Failed {
        /// What was attempted.
        operation: &'static str,
        /// On which file or directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The peer sent something that does not continue the file.
    #[error("partition {key} at offset {offset}: expected {expected}, the peer sent {found}")]
    Unfit {
        /// The partition.
        key: PartitionKey,
        /// Where the next batch was expected.
        offset: u64,
        /// What was expected.
        expected: String,
        /// What came.
        found: String,
    },
    /// A file that should have been moved into place is nowhere.
    #[error("the transferred file {path} is missing or shorter than {len} bytes")]
    Missing {
        /// Where it should be.
        path: String,
        /// Its length in bytes.
        len: u64,
    },
    /// The checkpoint that takes the transfer over could not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// That checkpoint could not be noted beside the journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl IncomingError {
    /// Whether there was no space for what was to be written.
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if is_full(source))
    }
}

fn failed(operation: &'static str, path: &str) -> impl FnOnce(io::Error) -> IncomingError {
    let path = path.to_owned();
    move |source| IncomingError::Failed { operation, path, source }
}

/// What the machine waits for.
#[derive(Debug)]
enum Step {
    /// Nothing: it wants records.
    Idle,
    /// Taking the spare file of this number.
    TakeSpare(usize),
    MakeDir,
    SyncRoot,
    Open,
    Cut,
    Write,
    Sync,
    Close,
    OpenRoom,
    FillRoom,
    SyncRoom,
    CloseRoom,
    SyncFiles,
    OpenNote,
    CutNote,
    WriteNote,
    SyncNote,
    CloseNote,
    RenameNote,
    SyncLast,
    Done,
}

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Something, and more is to come.
    Some,
    /// What has to go first is noted on stable storage: now it may go.
    Noted,
    /// Everything, and it is on stable storage.
    All,
}

/// A transfer under way: a state machine over the disk. One operation is in flight at a time.
#[derive(Debug)]
pub struct Incoming {
    group: GroupId,
    /// What `COMPLETE` will say.
    complete: Bytes,
    /// Bytes of the checkpoint that will take it over.
    room: u64,
    /// What the note of what goes will say, until it does.
    going: Option<Bytes>,
    files: Vec<FileInfo>,
    /// The file that is being fetched.
    at: usize,
    have: Have,
    /// What of it is known to be written; `None` as long as it is not the turn of this file.
    written: Option<Have>,
    /// Of earlier transfers, and of this one what is complete.
    leftovers: BTreeMap<(PartitionKey, u64), Have>,
    file: FileId,
    step: Step,
    /// Counts operations, for tokens and file numbers.
    next: u64,
    bytes_done: u64,
}

impl Incoming {
    /// Begin to collect these files for a group. `header` and `state` are the owner's, and come back from
    /// [`pending`]; the checkpoint that takes them over will have up to `room` bytes. What is `going` is noted first, if that is anything. `first` numbers the operations: it must be above all
    /// numbers used before.
    pub fn begin<D: Disk>(
        disk: &mut D,
        group: GroupId,
        (header, state, room): (&[u8], &[u8], u64),
        files: Vec<FileInfo>,
        going: &BTreeMap<PartitionKey, u64>,
        leftovers: &Leftovers,
        first: u64,
    ) -> Self {
        let mut incoming = Self {
            group,
            complete: encode_complete(header, state, &files),
            room,
            going: (!going.is_empty()).then(|| encode_going(going)),
            files,
            at: 0,
            have: Have::default(),
            written: None,
            leftovers: leftovers.0.get(&group).cloned().unwrap_or_default(),
            file: FileId(0),
            step: Step::Idle,
            next: first,
            bytes_done: 0,
        };
        let (step, op) = match going.is_empty() {
            true => (Step::MakeDir, Op::CreateDir { path: dir(group) }),
            // Before anything else, the directory of the group too, that would take space or an inode.
            false => (Step::TakeSpare(0), Op::Rename { from: spare::path(0), to: temporary(&note_of_going(group)) }),
        };
        incoming.step = step;
        incoming.submit(disk, op);
        incoming
    }

    /// The number that the next transfer may begin with.
    pub fn next_number(&self) -> u64 {
        self.next + 1
    }

    /// The records to ask for: the partition and the offset of the first. `None` while the disk is busy, and at the end.
    pub fn wants(&self) -> Option<(PartitionKey, u64)> {
        let file = self.files.get(self.at)?;
        matches!(self.step, Step::Idle).then_some((file.key, self.have.end_offset))
    }

    /// Bytes of records that are there, and of all.
    pub fn progress(&self) -> (u64, u64) {
        let current = if matches!(self.step, Step::Done) { 0 } else { self.have.len };
        (self.bytes_done + current, self.files.iter().map(|file| file.len).sum())
    }

    /// Bytes that it will still write.
    pub fn left(&self) -> u64 {
        let (done, all) = self.progress();
        match self.step {
            Step::Done => 0,
            _ => all.saturating_sub(done) + self.room + self.complete.len() as u64,
        }
    }

    /// What it has so far, for a transfer that replaces this one in the same run.
    pub fn leave(self, leftovers: &mut Leftovers) {
        let mut have = self.leftovers;
        if let (Some(file), Some(written)) = (self.files.get(self.at), self.written) {
            have.insert((file.key, file.base_offset), written);
        }
        leftovers.0.insert(self.group, have);
    }

    fn submit<D: Disk>(&mut self, disk: &mut D, op: Op) {
        self.next += 1;
        disk.submit(Owner::Incoming.token(self.next), op);
    }

    /// Records have come: whole batches that begin at the offset asked for.
    pub fn records<D: Disk>(
        &mut self,
        disk: &mut D,
        key: PartitionKey,
        offset: u64,
        bytes: &Bytes,
    ) -> Result<(), IncomingError> {
        if self.wants() != Some((key, offset)) {
            // An answer to an older question.
            return Ok(());
        }
        let file = self.files[self.at];
        let unfit = |offset, expected: String, found: String| IncomingError::Unfit { key, offset, expected, found };
        let mut buf = AlignedBuf::with_capacity(bytes.len());
        let mut have = self.have;
        let mut rest = &bytes[..];
        while have.end_offset < file.end_offset && !rest.is_empty() {
            let bad = |error: batch::BatchError| unfit(have.end_offset, "a batch".to_owned(), error.to_string());
            let len = BatchHeader::parse(rest).map_err(bad)?.total_len();
            let whole = rest.get(..len).ok_or_else(|| {
                unfit(have.end_offset, format!("{len} bytes of a batch"), format!("{} bytes", rest.len()))
            })?;
            let header = batch::check(whole).map_err(bad)?;
            if header.base_offset != have.end_offset {
                let expected = "a batch at this offset".to_owned();
                return Err(unfit(have.end_offset, expected, format!("one at {}", header.base_offset)));
            }
            buf.extend_from_slice(whole);
            have = have.with(&header, len);
            rest = &rest[len..];
        }
        if have == self.have {
            return Err(unfit(offset, "records".to_owned(), "none".to_owned()));
        }
        let over = have.end_offset > file.end_offset || have.len > file.len;
        if over || (have.end_offset == file.end_offset && have.len != file.len) {
            // Nobody knows which of them are wrong: all of them come again.
            (self.have, self.written) = (file.nothing(), Some(file.nothing()));
            let expected = format!("{} bytes up to offset {}", file.len, file.end_offset);
            return Err(unfit(offset, expected, format!("{} bytes up to {}", have.len, have.end_offset)));
        }
        if let Some(digest) = file.digest.filter(|digest| have.end_offset == file.end_offset && *digest != have.digest)
        {
            (self.have, self.written) = (file.nothing(), Some(file.nothing()));
            let expected = format!("a segment of digest {digest} up to offset {}", file.end_offset);
            return Err(unfit(file.base_offset, expected, format!("others, of digest {}", have.digest)));
        }
        let position = self.have.len;
        self.have = have;
        self.step = Step::Write;
        self.submit(disk, Op::Write { file: self.file, position, buf, durable: false });
        Ok(())
    }

    /// Take a completion of [`Owner::Incoming`].
    pub fn on_completion<D: Disk>(&mut self, disk: &mut D, completion: Completion) -> Result<Came, IncomingError> {
        if completion.token.number() != self.next {
            return Ok(Came::Some);
        }
        let step = std::mem::replace(&mut self.step, Step::Idle);
        let outcome = match (&step, completion.result) {
            // It is in use for another group, or there was no space for it at the start.
            (Step::TakeSpare(number), Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                let (next, to) = (number + 1, temporary(&note_of_going(self.group)));
                // Without any, there may be space now.
                let (step, op) = match next < spare::SPARES {
                    true => (Step::TakeSpare(next), Op::Rename { from: spare::path(next), to }),
                    false => self.open_note(to),
                };
                self.step = step;
                self.submit(disk, op);
                return Ok(Came::Some);
            }
            (_, result) => result.map_err(|source| self.failure(&step, source))?,
        };
        let (note, note_dir) = match &self.going {
            Some(_) => (note_of_going(self.group), ROOT.to_owned()),
            None => (format!("{}/{COMPLETE}", dir(self.group)), dir(self.group)),
        };
        let temporary = temporary(&note);
        let (step, op) = match (step, outcome) {
            (Step::TakeSpare(_), _) => self.open_note(temporary),
            (Step::MakeDir, _) => (Step::SyncRoot, Op::SyncDir { path: ROOT.to_owned() }),
            (Step::SyncRoot, _) => {
                self.next_file(disk);
                return Ok(Came::Some);
            }
            (Step::Open, Outcome::Opened { len }) if len < self.have.len => {
                // Less is there than was thought: it comes again.
                self.have = self.files[self.at].nothing();
                self.written = Some(self.have);
                (Step::Cut, Op::SetLen { file: self.file, len: 0 })
            }
            (Step::Open, Outcome::Opened { len }) if len != self.have.len => {
                (Step::Cut, Op::SetLen { file: self.file, len: self.have.len })
            }
            (Step::Open | Step::Cut | Step::Write, _) => {
                self.written = Some(self.have);
                if self.have.len < self.files[self.at].len {
                    return Ok(Came::Some);
                }
                (Step::Sync, Op::Sync { file: self.file })
            }
            (Step::Sync, _) => (Step::Close, Op::Close { file: self.file }),
            (Step::Close, _) => {
                let file = self.files[self.at];
                self.bytes_done += file.len;
                self.at += 1;
                self.leftovers.insert((file.key, file.base_offset), self.have);
                (self.have, self.written) = (Have::default(), None);
                self.next_file(disk);
                return Ok(Came::Some);
            }
            (Step::OpenRoom, _) => (Step::FillRoom, Op::ZeroFill { file: self.file, len: self.room }),
            (Step::FillRoom, _) => (Step::SyncRoom, Op::Sync { file: self.file }),
            (Step::SyncRoom, _) => (Step::CloseRoom, Op::Close { file: self.file }),
            (Step::CloseRoom, _) => (Step::SyncFiles, Op::SyncDir { path: dir(self.group) }),
            (Step::SyncFiles, _) => self.open_note(temporary),
            (Step::OpenNote, Outcome::Opened { len }) if len > 0 && self.going.is_none() => {
                (Step::CutNote, Op::SetLen { file: self.file, len: 0 })
            }
            (Step::OpenNote | Step::CutNote, _) => {
                let buf = AlignedBuf::copy_of(self.going.as_ref().unwrap_or(&self.complete));
                (Step::WriteNote, Op::Write { file: self.file, position: 0, buf, durable: false })
            }
            (Step::WriteNote, _) => (Step::SyncNote, Op::Sync { file: self.file }),
            (Step::SyncNote, _) => (Step::CloseNote, Op::Close { file: self.file }),
            (Step::CloseNote, _) => (Step::RenameNote, Op::Rename { from: temporary, to: note }),
            (Step::RenameNote, _) => (Step::SyncLast, Op::SyncDir { path: note_dir }),
            (Step::SyncLast, _) if self.going.take().is_some() => {
                self.step = Step::MakeDir;
                self.submit(disk, Op::CreateDir { path: dir(self.group) });
                return Ok(Came::Noted);
            }
            (Step::SyncLast, _) => {
                self.step = Step::Done;
                return Ok(Came::All);
            }
            (Step::Idle | Step::Done, _) => return Ok(Came::Some),
        };
        self.step = step;
        self.submit(disk, op);
        Ok(Came::Some)
    }

    fn open_note(&mut self, path: String) -> (Step, Op) {
        self.file = Owner::Incoming.file(self.next + 1);
        (Step::OpenNote, Op::Open { file: self.file, path, create: true, direct: false })
    }

    /// Go on with the next file that is not there, or with the end.
    fn next_file<D: Disk>(&mut self, disk: &mut D) {
        while let Some(file) = self.files.get(self.at).copied() {
            let left = self.leftovers.get(&(file.key, file.base_offset)).copied();
            self.have = match left {
                Some(have) if have.is_whole(&file) => {
                    self.bytes_done += file.len;
                    self.at += 1;
                    continue;
                }
                Some(have) if have.len < file.len && have.end_offset < file.end_offset => have,
                _ => file.nothing(),
            };
            self.written = Some(self.have);
            let path = format!("{}/{}", dir(self.group), file.name());
            self.file = Owner::Incoming.file(self.next + 1);
            self.step = Step::Open;
            self.submit(disk, Op::Open { file: self.file, path, create: true, direct: false });
            return;
        }
        self.file = Owner::Incoming.file(self.next + 1);
        self.step = Step::OpenRoom;
        let path = format!("{}/{ROOM}", dir(self.group));
        self.submit(disk, Op::Open { file: self.file, path, create: true, direct: false });
    }

    fn failure(&self, step: &Step, source: io::Error) -> IncomingError {
        let operation = match step {
            Step::MakeDir => "create",
            Step::Open | Step::OpenRoom | Step::OpenNote => "open a file in",
            Step::Cut | Step::CutNote => "cut a file in",
            Step::Write | Step::FillRoom | Step::WriteNote => "write a file in",
            Step::Sync | Step::SyncRoom | Step::SyncNote => "sync a file in",
            Step::Close | Step::CloseRoom | Step::CloseNote => "close a file in",
            Step::TakeSpare(_) | Step::RenameNote => "rename a file in",
            Step::SyncRoot | Step::SyncFiles | Step::SyncLast | Step::Idle | Step::Done => "sync",
        };
        IncomingError::Failed { operation, path: dir(self.group), source }
    }
}

/// `magic 4 | header length 4 | state length 8 | files 4 | per file: topic id 8, partition 4, base offset 8 | header |
/// state | CRC-32 of all before 4`.
fn encode_complete(header: &[u8], state: &[u8], files: &[FileInfo]) -> Bytes {
    let mut out = Vec::with_capacity(24 + header.len() + state.len() + 20 * files.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&(header.len() as u32).to_le_bytes());
    out.extend_from_slice(&(state.len() as u64).to_le_bytes());
    out.extend_from_slice(&(files.len() as u32).to_le_bytes());
    for file in files {
        out.extend_from_slice(&file.key.topic_id.to_le_bytes());
        out.extend_from_slice(&file.key.partition.to_le_bytes());
        out.extend_from_slice(&file.base_offset.to_le_bytes());
    }
    out.extend_from_slice(header);
    out.extend_from_slice(state);
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.into()
}

fn decode_complete(group: GroupId, bytes: Bytes) -> Option<Pending> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) || body.len() < 16 || body[..4] != MAGIC {
        return None;
    }
    let mut rest = bytes.slice(4..body.len());
    let (header_len, state_len) = (rest.get_u32_le() as usize, usize::try_from(rest.get_u64_le()).ok()?);
    let mut brought = BTreeSet::new();
    for _ in 0..rest.try_get_u32_le().ok()? {
        let (topic_id, partition) = (rest.try_get_u64_le().ok()?, rest.try_get_u32_le().ok()?);
        brought.insert((PartitionKey { topic_id, partition }, rest.try_get_u64_le().ok()?));
    }
    if header_len.checked_add(state_len)? != rest.len() {
        return None;
    }
    let header = rest.split_to(header_len);
    Some(Pending { group, header, state: rest, brought })
}

fn temporary(note: &str) -> String {
    format!("{note}.tmp")
}

/// `magic 4 | partitions 4 | per partition: topic id 8, partition 4, nothing is left below offset 8 | CRC-32 of all before 4`.
/// What follows in the file is of what it was before.
fn encode_going(going: &BTreeMap<PartitionKey, u64>) -> Bytes {
    let mut out = Vec::with_capacity(12 + GOING_ENTRY * going.len());
    out.extend_from_slice(&GOING_MAGIC);
    out.extend_from_slice(&(going.len() as u32).to_le_bytes());
    for (key, below) in going {
        out.extend_from_slice(&key.topic_id.to_le_bytes());
        out.extend_from_slice(&key.partition.to_le_bytes());
        out.extend_from_slice(&below.to_le_bytes());
    }
    let crc = crc32fast::hash(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.into()
}

fn decode_going(bytes: &[u8]) -> Option<BTreeMap<PartitionKey, u64>> {
    let count = bytes.strip_prefix(&GOING_MAGIC)?.first_chunk().map(|count| u32::from_le_bytes(*count) as usize)?;
    let len = count.checked_mul(GOING_ENTRY)?.checked_add(8)?;
    let (body, crc) = (bytes.get(..len)?, bytes.get(len..)?.first_chunk()?);
    let mut rest = body.get(8..).filter(|_| crc32fast::hash(body) == u32::from_le_bytes(*crc))?;
    let entry = |rest: &mut &[u8]| {
        let (topic_id, partition) = (rest.get_u64_le(), rest.get_u32_le());
        (PartitionKey { topic_id, partition }, rest.get_u64_le())
    };
    Some((0..count).map(|_| entry(&mut rest)).collect())
}

/// What transfers that are not complete have let go: below which offset of a partition there may be no files. For the start
/// of a node, after [`pending`].
pub fn going<D: Disk>(disk: &mut D) -> Result<BTreeMap<PartitionKey, u64>, IncomingError> {
    let mut going = BTreeMap::new();
    for name in list(disk, ROOT)? {
        let Some(Ok(group)) = name.strip_suffix(GOING).map(str::parse) else { continue };
        let content = read_file(disk, &note_of_going(GroupId(group)))?;
        // Damaged, it explains nothing: what is not there is damage.
        going.extend(decode_going(&content).unwrap_or_default());
    }
    Ok(going)
}

/// What was to become a note, and did not, is given back.
fn give_back_unfinished<D: Disk>(disk: &mut D) -> Result<(), IncomingError> {
    for name in list(disk, ROOT)?.iter().filter(|name| name.ends_with(&temporary(GOING))) {
        let path = format!("{ROOT}/{name}");
        spare::give_back(disk, &path).map_err(failed("give up", &path))?;
    }
    Ok(())
}

/// A transfer that waits to be put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The group.
    pub group: GroupId,
    /// The owner's header.
    pub header: Bytes,
    /// The state.
    pub state: Bytes,
    /// The segments that came; others that the state names were here already.
    pub brought: BTreeSet<(PartitionKey, u64)>,
}

fn list<D: Disk>(disk: &mut D, path: &str) -> Result<Vec<String>, IncomingError> {
    match disk.run(Op::List { path: path.to_owned() }).map_err(failed("list", path))? {
        Outcome::Names(names) => Ok(names),
        _ => Ok(Vec::new()),
    }
}

/// The bytes of a file, up to the first block that cannot be read.
fn read_file<D: Disk>(disk: &mut D, path: &str) -> Result<Bytes, IncomingError> {
    let file = Owner::Incoming.file(0);
    disk.run(Op::Open { file, path: path.to_owned(), create: false, direct: false }).map_err(failed("open", path))?;
    let mut content = Vec::new();
    let mut len = SCAN_BYTES;
    loop {
        let position = content.len() as u64;
        match disk.run(Op::Read { file, position, len }) {
            Ok(Outcome::Read(bytes)) => {
                content.extend_from_slice(&bytes);
                if bytes.len() < len {
                    break;
                }
            }
            Ok(_) => break,
            Err(_) if len > BLOCK => len = BLOCK,
            Err(error) => {
                tracing::error!(path, position, %error, "a place of a transfer cannot be read: what follows comes again; look at the disk");
                break;
            }
        }
    }
    disk.run(Op::Close { file }).map_err(failed("close", path))?;
    Ok(content.into())
}

/// The transfers that are complete, and what unfinished ones have left. For the start of a node: blocks.
pub fn pending<D: Disk>(disk: &mut D) -> Result<(Vec<Pending>, Leftovers), IncomingError> {
    disk.run(Op::CreateDir { path: ROOT.to_owned() }).map_err(failed("create", ROOT))?;
    disk.run(Op::SyncDir { path: String::new() }).map_err(failed("sync", "the data directory"))?;
    give_back_unfinished(disk)?;
    spare::keep(disk).map_err(|(path, error)| failed("make", &path)(error))?;
    let mut complete = Vec::new();
    let mut leftovers = Leftovers::default();
    for name in list(disk, ROOT)? {
        let Ok(group) = name.parse().map(GroupId) else { continue };
        let names = list(disk, &dir(group))?;
        if names.iter().any(|name| name == COMPLETE) {
            let content = read_file(disk, &format!("{}/COMPLETE", dir(group)))?;
            match decode_complete(group, content) {
                Some(found) => complete.push(found),
                // Damaged after it was written: the transfer begins anew. What had to go for it is still not missed.
                None => discard_files(disk, group)?,
            }
            continue;
        }
        let mut have = BTreeMap::new();
        for name in names {
            let path = format!("{}/{name}", dir(group));
            match parse_name(&name) {
                Some((key, base_offset)) => {
                    let found = scan(disk, &path, base_offset)?;
                    have.insert((key, base_offset), found);
                }
                None => drop(disk.run(Op::Remove { path: path.clone() }).map_err(failed("remove", &path))?),
            }
        }
        leftovers.0.insert(group, have);
    }
    Ok((complete, leftovers))
}

fn parse_name(name: &str) -> Option<(PartitionKey, u64)> {
    let stem = name.strip_suffix(".log")?;
    let mut numbers = stem.splitn(3, '-').map(|number| number.parse::<u64>().ok());
    let (topic_id, partition, base_offset) = (numbers.next()??, numbers.next()??, numbers.next()??);
    Some((PartitionKey { topic_id, partition: u32::try_from(partition).ok()? }, base_offset))
}

/// How many whole, sound batches a file holds.
fn scan<D: Disk>(disk: &mut D, path: &str, base_offset: u64) -> Result<Have, IncomingError> {
    let content = read_file(disk, path)?;
    let mut have = Have { end_offset: base_offset, ..Have::default() };
    while let Some(rest) = content.get(have.len as usize..).filter(|rest| !rest.is_empty()) {
        let Ok(len) = BatchHeader::parse(rest).map(|header| header.total_len()) else { break };
        let Some(Ok(header)) = rest.get(..len).map(batch::check) else { break };
        if header.base_offset != have.end_offset {
            break;
        }
        have = have.with(&header, len);
    }
    Ok(have)
}

/// Whether every file of a complete transfer can be put in place: it came, or was here before and still is.
pub fn is_available<D: Disk>(disk: &mut D, transfer: &Pending, files: &[FileInfo]) -> Result<bool, IncomingError> {
    for file in files {
        if !has_come(disk, transfer, file)? && file_len(disk, &file.segment_path())? < file.len {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a file came with a transfer and was not moved yet. What an earlier attempt has left of a file that was here
/// already is not what came.
fn has_come<D: Disk>(disk: &mut D, transfer: &Pending, file: &FileInfo) -> Result<bool, IncomingError> {
    let path = format!("{}/{}", dir(transfer.group), file.name());
    Ok(transfer.brought.contains(&(file.key, file.base_offset)) && file_len(disk, &path)? >= file.len)
}

/// Take a complete transfer up again as one that is not: [`pending`] then finds what there is of it.
pub fn take_up<D: Disk>(disk: &mut D, group: GroupId) -> Result<(), IncomingError> {
    let path = format!("{}/COMPLETE", dir(group));
    disk.run(Op::Remove { path: path.clone() }).map_err(failed("remove", &path))?;
    disk.run(Op::SyncDir { path: dir(group) }).map_err(failed("sync", &path))?;
    Ok(())
}

/// The length of a file; 0 if there is none.
fn file_len<D: Disk>(disk: &mut D, path: &str) -> Result<u64, IncomingError> {
    let file = Owner::Incoming.file(0);
    match disk.run(Op::Open { file, path: path.to_owned(), create: false, direct: false }) {
        Ok(Outcome::Opened { len }) => {
            disk.run(Op::Close { file }).map_err(failed("close", path))?;
            Ok(len)
        }
        Ok(_) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(failed("open", path)(error)),
    }
}

/// Put complete transfers in place: move their files, write the checkpoint that names them, note that it is there, and only
/// then forget them. From then on the checkpoint before it is of a log that this node has given up.
/// Blocks; for the start of a node, before the segments are recovered.
pub fn install<D: Disk>(
    disk: &mut D,
    transfers: &[(Pending, Vec<FileInfo>)],
    checkpoint: Checkpoint,
) -> Result<(), IncomingError> {
    for (transfer, files) in transfers {
        for file in files {
            let came = has_come(disk, transfer, file)?;
            move_file(disk, transfer.group, file, came)?;
        }
    }
    disk.run(Op::CreateDir { path: SEGMENTS.to_owned() }).map_err(failed("create", SEGMENTS))?;
    disk.run(Op::SyncDir { path: SEGMENTS.to_owned() }).map_err(failed("sync", SEGMENTS))?;
    disk.run(Op::SyncDir { path: String::new() }).map_err(failed("sync", "the data directory"))?;
    let number = checkpoint.number;
    let mut room = None;
    for (transfer, _) in transfers {
        if room.is_none() && list(disk, &dir(transfer.group))?.iter().any(|name| name == ROOM) {
            room = Some(format!("{}/{ROOM}", dir(transfer.group)));
        }
    }
    // No start may find two checkpoints that the mark does not know of.
    note_checkpoint(disk, number - 1)?;
    write_now(disk, checkpoint, room.as_deref())?;
    note_checkpoint(disk, number)?;
    transfers.iter().try_for_each(|(transfer, _)| discard(disk, transfer.group))
}

/// Move a file to its segment; one that was moved before must be there.
fn move_file<D: Disk>(disk: &mut D, group: GroupId, file: &FileInfo, came: bool) -> Result<(), IncomingError> {
    let (to, parent) = (file.segment_path(), file.segment_dir());
    if came {
        let from = format!("{}/{}", dir(group), file.name());
        disk.run(Op::CreateDir { path: parent.clone() }).map_err(failed("create", &parent))?;
        disk.run(Op::Rename { from: from.clone(), to: to.clone() }).map_err(failed("rename", &from))?;
    }
    if file_len(disk, &to)? < file.len {
        return Err(IncomingError::Missing { path: to, len: file.len });
    }
    let id = Owner::Incoming.file(0);
    let op = Op::Open { file: id, path: to.clone(), create: false, direct: false };
    disk.run(op).map_err(failed("open", &to))?;
    disk.run(Op::Sync { file: id }).map_err(failed("sync", &to))?;
    disk.run(Op::Close { file: id }).map_err(failed("close", &to))?;
    disk.run(Op::SyncDir { path: parent.clone() }).map_err(failed("sync", &parent))?;
    Ok(())
}

/// Forget a transfer, complete or not, and what had to go for it.
pub fn discard<D: Disk>(disk: &mut D, group: GroupId) -> Result<(), IncomingError> {
    discard_files(disk, group)?;
    let note = note_of_going(group);
    if list(disk, ROOT)?.iter().any(|name| note.ends_with(&format!("/{name}"))) {
        spare::give_back(disk, &note).map_err(failed("give up", &note))?;
        disk.run(Op::SyncDir { path: ROOT.to_owned() }).map_err(failed("sync", ROOT))?;
    }
    Ok(())
}

/// Remove what has come. `COMPLETE` goes first: without it, what is left is only leftovers.
fn discard_files<D: Disk>(disk: &mut D, group: GroupId) -> Result<(), IncomingError> {
    let path = dir(group);
    let mut names = list(disk, &path)?;
    names.sort_by_key(|name| name != COMPLETE);
    for name in names {
        let file = format!("{path}/{name}");
        disk.run(Op::Remove { path: file.clone() }).map_err(failed("remove", &file))?;
        if name == COMPLETE {
            disk.run(Op::SyncDir { path: path.clone() }).map_err(failed("sync", &path))?;
        }
    }
    disk.run(Op::RemoveDir { path: path.clone() }).map_err(failed("remove", &path))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    const GROUP: GroupId = GroupId(1);

    fn begin(disk: &mut MemoryDisk, leftovers: &Leftovers, first: u64) -> Incoming {
        let key = PartitionKey { topic_id: 1, partition: 0 };
        let file = FileInfo { key, base_offset: 563, end_offset: 1327, len: 91_538, digest: None };
        Incoming::begin(disk, GROUP, (b"header", b"state", 4096), vec![file], &BTreeMap::new(), leftovers, first)
    }

    /// Takes up to so many completions. Whether it wants records by then.
    fn run(disk: &mut MemoryDisk, incoming: &mut Incoming, most: usize) -> bool {
        let mut completions = Vec::new();
        for _ in 0..most {
            if incoming.wants().is_some() {
                return true;
            }
            disk.wait(&mut completions);
            for completion in completions.drain(..) {
                incoming.on_completion(disk, completion).expect("healthy");
            }
        }
        incoming.wants().is_some()
    }

    /// A transfer that gives way to another one before its first file is open has nothing of that, and does not say that
    /// it has something from before the file's first record.
    #[test]
    fn a_transfer_that_is_replaced_early_leaves_nothing_that_misleads_the_next() {
        let mut has_wanted = false;
        for taken in 0..8 {
            let mut disk = MemoryDisk::new();
            let mut leftovers = Leftovers::default();
            let mut first = begin(&mut disk, &leftovers, 0);
            has_wanted |= run(&mut disk, &mut first, taken);
            let number = first.next_number();
            first.leave(&mut leftovers);
            let mut second = begin(&mut disk, &leftovers, number);
            assert!(run(&mut disk, &mut second, 20), "after {taken} operations");
            assert_eq!(second.wants().map(|(_, offset)| offset), Some(563), "after {taken} operations");
        }
        assert!(has_wanted);
    }
}
