//! Checkpoints: a file with the state of every group at an applied index, from which recovery starts.
//!
//! A checkpoint is written beside its final name, synced, renamed, and counts once its directory is synced; then all
//! but its predecessor are removed. A crash at any point leaves the old one or the new one, both whole.
//!
//! The file holds everything twice: it is the only place of terms and votes whose journal files are gone, and a node that
//! has forgotten them must not take part. One damaged copy is as good as none missing, as long as somebody writes a new
//! checkpoint soon. If both are damaged that is an error, never a reason to fall back to the predecessor: the journal
//! below this one may be gone already.
//!
//! ```text
//! file     copy, zeros up to the next block | the same again
//! copy     header (64) | groups …
//! header   magic 4 | version 2 | 0 2 | number 8 | journal file 8 | body length 8 | group count 4 | CRC-32 of the body 4 |
//!          0 20 | CRC-32 of the 60 bytes before 4
//! body     in version 4 first: owner 32 | journal file that is needed 8
//! group    group 4 | term 8 | voted 1 | vote 8 | applied index 8 | applied term 8 | configuration length 4 |
//!          state length 8 | configuration | state
//! ```

mod layout;

use self::layout::Layout;
use crate::FileOwner;
use crate::advice::Advised;
use crate::disk::{BLOCK, Completion, Disk, FileId, Op, Outcome, Owner, is_full};
use crate::journal::GroupId;
use crate::spare;
use bytes::{Buf, Bytes};
use lnc_mutation::{Mutation, mutated};
use std::io;

const DIR: &str = "checkpoint";
const MAGIC: [u8; 4] = *b"LNCC";
/// Without and with what [`Facts`] holds.
const VERSIONS: [u16; 2] = [3, 4];
/// Length in bytes of [`Facts`].
const FACTS: usize = FileOwner::LEN + 8;
const HEADER: usize = 64;
/// Length in bytes of a group without its configuration and state.
const GROUP_HEAD: usize = 49;
/// Bytes read at a time while loading.
const READ_BYTES: usize = 1 << 20;

fn file_path(number: u64) -> String {
    format!("{DIR}/{number:020}.checkpoint")
}

fn tmp_path(number: u64) -> String {
    format!("{DIR}/{number:020}.tmp")
}

fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".checkpoint")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// The state of one group at `applied_index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCheckpoint {
    /// The group.
    pub group: GroupId,
    /// Its Raft term when the checkpoint was taken.
    pub term: u64,
    /// Its vote in that term.
    pub vote: Option<u64>,
    /// The last entry whose effects `state` holds.
    pub applied_index: u64,
    /// The term of that entry.
    pub applied_term: u64,
    /// The group's members at that entry, in the encoding of the consensus core.
    pub configuration: Bytes,
    /// The state machine, in its own encoding.
    pub state: Bytes,
}

/// The state of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Rises by at least one with each checkpoint.
    pub number: u64,
    /// The journal file at which recovery starts.
    pub journal_file: u64,
    /// What is written from format 3 on.
    pub facts: Option<Facts>,
    /// By group.
    pub groups: Vec<GroupCheckpoint>,
}

/// What a checkpoint says beside the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Who wrote it.
    pub owner: FileOwner,
    /// The first journal file that holds anything that is not in the checkpoint. Those before it are kept for followers that
    /// lag, and can be done without.
    pub needed_file: u64,
}

/// A failure to write or load a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There was no space. The previous checkpoint still stands; try again later.
    #[error("no space to write {path}: {}", Advised(source))]
    NoSpace {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The disk failed. What it left is unknown: the node must stop.
    #[error("cannot {operation} {path}: {}", Advised(source))]
    Failed {
        /// What was attempted.
        operation: &'static str,
        /// On which file or directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The newest checkpoint is not what was written.
    #[error("{path} is damaged at position {position}: expected {expected}, found {found}")]
    Damaged {
        /// The file.
        path: String,
        /// Where in the file, in bytes.
        position: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Neither copy of the newest checkpoint is what was written.
    #[error(
        "both copies of the newest checkpoint are damaged, and with it the node's votes may be lost: empty the data \
         directory, and the cluster admits the node as a new member ({first}; {second}{})",
        match .unreadable { None => String::new(), Some(error) => format!("; the first place that cannot be read: {}", Advised(error)) }
    )]
    Lost {
        /// What is wrong with the first copy.
        first: Box<CheckpointError>,
        /// What is wrong with the second one.
        second: Box<CheckpointError>,
        /// The disk's answer, where it does not give what it holds.
        unreadable: Option<io::Error>,
    },
    /// The newest checkpoint is not there any more.
    #[error(
        "{} is gone (found: {}), and with it the node's votes and records may be lost: restore it, or empty the data \
         directory, and the cluster admits the node as a new member",
        match .number { 0 => "every checkpoint".to_owned(), number => file_path(*number) },
        match .found { None => "none".to_owned(), Some(number) => file_path(*number) }
    )]
    Gone {
        /// Its number; 0 if that is not known.
        number: u64,
        /// The newest that there is.
        found: Option<u64>,
    },
    /// The newest checkpoint belongs to another member.
    #[error(
        "{path} was written by {found}, but this is {expected}: it is a file of another node, or of an earlier life of this \
         one; put the right one back, or empty the data directory, and the cluster admits the node as a new member"
    )]
    OtherOwner {
        /// The file.
        path: String,
        /// This member.
        expected: FileOwner,
        /// Whose it is.
        found: FileOwner,
    },
    /// The newest checkpoint was written by another version of LANCE.
    #[error("{path} has format version {found}, which this version cannot read")]
    UnsupportedVersion {
        /// The file.
        path: String,
        /// The version found.
        found: u16,
    },
}

impl CheckpointError {
    /// Whether a later checkpoint may succeed.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// What the writer waits for.
#[derive(Debug)]
enum Step {
    /// Where nothing can be made, the spare file of this number becomes the checkpoint's.
    TakeSpare(usize, io::Error),
    Open,
    Write,
    Truncate,
    Sync,
    Close,
    Rename,
    SyncDir,
    List,
    /// Removing this many old files.
    Remove(usize),
    /// Closing a file that did not fit, to remove it next and report the error then.
    AbandonClose(CheckpointError),
    AbandonRemove(CheckpointError),
}

#[derive(Debug)]
struct Writing {
    number: u64,
    file: FileId,
    layout: Layout,
    /// Bytes that were in the file before.
    held: u64,
    step: Step,
}

/// Writes one checkpoint at a time: an asynchronous state machine over the disk.
#[derive(Debug, Default)]
pub struct CheckpointWriter {
    writing: Option<Writing>,
    /// Counts operations, for tokens and file numbers.
    next: u64,
}

impl CheckpointWriter {
    /// An idle writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a checkpoint is being written, or old ones are being removed.
    pub fn busy(&self) -> bool {
        self.writing.is_some()
    }

    /// Start writing. Must not be called while [`CheckpointWriter::busy`].
    pub fn start<D: Disk>(&mut self, disk: &mut D, checkpoint: Checkpoint) {
        assert!(!self.busy(), "one checkpoint at a time");
        self.next += 1;
        let (number, file) = (checkpoint.number, Owner::Checkpoint.file(self.next));
        self.writing = Some(Writing { number, file, layout: Layout::of(&checkpoint), held: 0, step: Step::Open });
        self.submit(disk, Op::Open { file, path: tmp_path(number), create: true, direct: false });
    }

    fn submit<D: Disk>(&mut self, disk: &mut D, op: Op) {
        self.next += 1;
        disk.submit(Owner::Checkpoint.token(self.next), op);
    }

    /// Take a completion of [`Owner::Checkpoint`]. Returns the number of the checkpoint that is now safe on disk.
    pub fn on_completion<D: Disk>(
        &mut self,
        disk: &mut D,
        completion: Completion,
    ) -> Result<Option<u64>, CheckpointError> {
        debug_assert_eq!(completion.token.owner(), Some(Owner::Checkpoint));
        let Some(mut writing) = self.writing.take() else {
            return Ok(None);
        };
        match completion.result {
            Ok(outcome) => self.advance(disk, writing, outcome),
            Err(source) => {
                let path = tmp_path(writing.number);
                let fits = !is_full(&source);
                // Give the space back before the caller retries.
                let (step, op) = match writing.step {
                    Step::Open if !fits => (Step::TakeSpare(0, source), Op::Rename { from: spare::path(0), to: path }),
                    Step::TakeSpare(number, first)
                        if number + 1 < spare::SPARES && source.kind() == io::ErrorKind::NotFound =>
                    {
                        (Step::TakeSpare(number + 1, first), Op::Rename { from: spare::path(number + 1), to: path })
                    }
                    Step::TakeSpare(_, first) if source.kind() == io::ErrorKind::NotFound => (
                        Step::AbandonRemove(CheckpointError::NoSpace { path: path.clone(), source: first }),
                        Op::Remove { path },
                    ),
                    Step::Truncate | Step::Write | Step::Sync if !fits => {
                        let file = writing.file;
                        (Step::AbandonClose(CheckpointError::NoSpace { path, source }), Op::Close { file })
                    }
                    step => return Err(fatal(&step, path, source)),
                };
                writing.step = step;
                self.writing = Some(writing);
                self.submit(disk, op);
                Ok(None)
            }
        }
    }

    fn advance<D: Disk>(
        &mut self,
        disk: &mut D,
        mut writing: Writing,
        outcome: Outcome,
    ) -> Result<Option<u64>, CheckpointError> {
        let (number, file) = (writing.number, writing.file);
        let mut done = None;
        if let Outcome::Opened { len } = outcome {
            // A leftover of an attempt that failed, or room that was kept: not given back before it is used.
            writing.held = len;
        }
        let (step, op) = match (writing.step, outcome) {
            (Step::TakeSpare(..), _) => {
                (Step::Open, Op::Open { file, path: tmp_path(number), create: false, direct: false })
            }
            (Step::Open | Step::Truncate | Step::Write, _) => match writing.layout.next_piece() {
                Some((position, buf)) => (Step::Write, Op::Write { file, position, buf, durable: false }),
                None if writing.held > writing.layout.file_len() => {
                    writing.held = 0;
                    (Step::Truncate, Op::SetLen { file, len: writing.layout.file_len() })
                }
                None if mutated(Mutation::CheckpointUnsynced) => (Step::Close, Op::Close { file }),
                None => (Step::Sync, Op::Sync { file }),
            },
            (Step::Sync, _) => (Step::Close, Op::Close { file }),
            (Step::Close, _) => (Step::Rename, Op::Rename { from: tmp_path(number), to: file_path(number) }),
            (Step::Rename, _) if mutated(Mutation::NoDirectorySync) => {
                done = Some(number);
                (Step::List, Op::List { path: DIR.to_owned() })
            }
            (Step::Rename, _) => (Step::SyncDir, Op::SyncDir { path: DIR.to_owned() }),
            (Step::SyncDir, _) => {
                done = Some(number);
                (Step::List, Op::List { path: DIR.to_owned() })
            }
            (Step::List, Outcome::Names(names)) => {
                let mut older: Vec<u64> = names.iter().filter_map(|name| file_number(name)).collect();
                older.retain(|n| *n < number);
                older.sort_unstable();
                older.pop();
                if !older.is_empty() {
                    self.writing = Some(Writing { step: Step::Remove(older.len()), ..writing });
                }
                for old in older {
                    self.submit(disk, Op::Remove { path: file_path(old) });
                }
                return Ok(None);
            }
            (Step::Remove(left), _) if left > 1 => {
                self.writing = Some(Writing { step: Step::Remove(left - 1), ..writing });
                return Ok(None);
            }
            (Step::AbandonClose(error), _) => (Step::AbandonRemove(error), Op::Remove { path: tmp_path(number) }),
            (Step::AbandonRemove(error), _) => return Err(error),
            (Step::List | Step::Remove(_), _) => return Ok(None),
        };
        self.writing = Some(Writing { step, ..writing });
        self.submit(disk, op);
        Ok(done)
    }
}

/// Write a checkpoint and wait for it; for the start of a node, while nothing else is in flight. The file at `room`, if there
/// is one, becomes the checkpoint's, so that one of its size needs neither space nor an inode.
pub fn write_now<D: Disk>(disk: &mut D, checkpoint: Checkpoint, room: Option<&str>) -> Result<(), CheckpointError> {
    if let Some(room) = room {
        let failed = |operation, path: &str| {
            let path = path.to_owned();
            move |source| CheckpointError::Failed { operation, path, source }
        };
        disk.run(Op::CreateDir { path: DIR.to_owned() }).map_err(failed("create", DIR))?;
        let op = Op::Rename { from: room.to_owned(), to: tmp_path(checkpoint.number) };
        disk.run(op).map_err(failed("rename", room))?;
    }
    let mut writer = CheckpointWriter::new();
    writer.start(disk, checkpoint);
    let mut completions = Vec::new();
    while writer.busy() {
        disk.wait(&mut completions);
        for completion in completions.drain(..) {
            writer.on_completion(disk, completion)?;
        }
    }
    Ok(())
}

fn fatal(step: &Step, path: String, source: io::Error) -> CheckpointError {
    let operation = match step {
        Step::TakeSpare(..) => "rename a spare file to",
        Step::Open => "create",
        Step::Truncate => "cut",
        Step::Write => "write",
        Step::Sync => "sync",
        Step::Close | Step::AbandonClose(_) => "close",
        Step::Rename => "rename",
        Step::SyncDir => "sync the directory of",
        Step::List => "list the directory of",
        Step::Remove(_) | Step::AbandonRemove(_) => "remove a predecessor of",
    };
    CheckpointError::Failed { operation, path, source }
}

/// A checkpoint, and what is wrong with one of its copies.
#[derive(Debug)]
pub struct Loaded {
    /// What was written.
    pub checkpoint: Checkpoint,
    /// A copy that is damaged. A new checkpoint has two good ones again.
    pub damage: Option<CheckpointError>,
}

/// Decode a file whose name says that it is checkpoint `number`.
fn decode(number: u64, file: Bytes) -> Result<Loaded, CheckpointError> {
    // Where the second one begins follows from the first; where that is damaged, it is looked for.
    let first = decode_copy(number, 0, file.clone());
    let place = match &first {
        Ok((_, len)) => Some(*len),
        Err(_) => (BLOCK..file.len()).step_by(BLOCK).find(|at| file[*at..].starts_with(&MAGIC)),
    };
    let copy = place.unwrap_or(file.len()).min(file.len());
    let second = decode_copy(number, copy, file.slice(copy..));
    let behind = |from: usize| {
        let more = file.len().saturating_sub(from);
        let found = format!("{more} bytes more");
        let position = from as u64;
        let expected = "the end of the file".to_owned();
        (more > 0).then(|| CheckpointError::Damaged { path: file_path(number), position, expected, found })
    };
    let end = second.as_ref().map_or(file.len(), |(_, len)| copy + len);
    let (first, second) = (first.map(|(whole, _)| whole), second.map(|(whole, _)| whole));
    match (first, second) {
        (Ok(checkpoint), second) => Ok(Loaded { checkpoint, damage: second.err().or_else(|| behind(end)) }),
        (Err(first @ CheckpointError::UnsupportedVersion { .. }), Err(_)) => Err(first),
        (Err(first), Ok(checkpoint)) => Ok(Loaded { checkpoint, damage: Some(first) }),
        (Err(first), Err(second)) => {
            Err(CheckpointError::Lost { first: first.into(), second: second.into(), unreadable: None })
        }
    }
}

/// Decode the copy that begins at `start`, where `file` begins; gives its length with padding, too.
fn decode_copy(number: u64, start: usize, file: Bytes) -> Result<(Checkpoint, usize), CheckpointError> {
    let path = file_path(number);
    let damaged = |position: usize, expected: String, found: String| CheckpointError::Damaged {
        path: file_path(number),
        position: (start + position) as u64,
        expected,
        found,
    };
    if file.len() < HEADER {
        return Err(damaged(file.len(), format!("a header of {HEADER} bytes"), "the end of the file".to_owned()));
    }
    let mut body = file.slice(HEADER..);
    let header_crc = crc32fast::hash(&file[..60]);
    let mut header = &file[..HEADER];
    let mut magic = [0; 4];
    header.copy_to_slice(&mut magic);
    let (version, _) = (header.get_u16_le(), header.get_u16_le());
    let (stored_number, journal_file, body_len) = (header.get_u64_le(), header.get_u64_le(), header.get_u64_le());
    let (count, body_crc) = (header.get_u32_le(), header.get_u32_le());
    header.advance(20);
    let stored_crc = header.get_u32_le();
    if magic != MAGIC {
        return Err(damaged(0, format!("{MAGIC:02x?}"), format!("{magic:02x?}")));
    }
    if stored_crc != header_crc {
        return Err(damaged(0, format!("header CRC {stored_crc:#010x}"), format!("{header_crc:#010x}")));
    }
    if !VERSIONS.contains(&version) {
        return Err(CheckpointError::UnsupportedVersion { path, found: version });
    }
    if stored_number != number {
        return Err(damaged(8, format!("number {number}"), stored_number.to_string()));
    }
    let padding = usize::try_from(body_len).ok().filter(|len| *len <= body.len()).map(|len| body.split_off(len));
    let copy = (HEADER + body.len()).next_multiple_of(BLOCK);
    match padding {
        Some(padding) if copy <= file.len() => {
            let padding = &padding[..copy - HEADER - body.len()];
            if let Some(at) = padding.iter().position(|byte| *byte != 0) {
                return Err(damaged(HEADER + body.len() + at, "zeros".to_owned(), format!("{:#04x}", padding[at])));
            }
        }
        _ => return Err(damaged(file.len(), format!("{body_len} bytes after the header"), body.len().to_string())),
    }
    let end = HEADER + body.len();
    let computed = crc32fast::hash(&body);
    if computed != body_crc {
        return Err(damaged(HEADER, format!("body CRC {body_crc:#010x}"), format!("{computed:#010x}")));
    }
    let facts = match version == VERSIONS[1] {
        false => None,
        true if body.len() < FACTS => {
            return Err(damaged(HEADER, format!("{FACTS} bytes"), body.len().to_string()));
        }
        true => {
            let mut owner = [0; FileOwner::LEN];
            body.copy_to_slice(&mut owner);
            Some(Facts { owner: FileOwner::decode(&owner), needed_file: body.get_u64_le() })
        }
    };
    let mut groups = Vec::new();
    for _ in 0..count {
        let position = end - body.len();
        let group = decode_group(&mut body)
            .ok_or_else(|| damaged(position, format!("{count} groups"), format!("{} whole ones", groups.len())))?;
        groups.push(group);
    }
    if !body.is_empty() {
        return Err(damaged(end - body.len(), "the end of the groups".to_owned(), format!("{} bytes", body.len())));
    }
    Ok((Checkpoint { number, journal_file, facts, groups }, copy))
}

fn decode_group(body: &mut Bytes) -> Option<GroupCheckpoint> {
    if body.len() < GROUP_HEAD {
        return None;
    }
    let group = GroupId(body.get_u32_le());
    let term = body.get_u64_le();
    let voted = body.get_u8();
    let vote = body.get_u64_le();
    let (applied_index, applied_term) = (body.get_u64_le(), body.get_u64_le());
    let configuration_len = body.get_u32_le() as usize;
    let state_len = usize::try_from(body.get_u64_le()).ok()?;
    if configuration_len.checked_add(state_len).is_none_or(|len| len > body.len()) {
        return None;
    }
    let vote = (voted != 0).then_some(vote);
    let configuration = body.split_to(configuration_len);
    let state = body.split_to(state_len);
    Some(GroupCheckpoint { group, term, vote, applied_index, applied_term, configuration, state })
}

/// The same as [`load_latest`], for the member `owner`, whose checkpoint `known` was durable once (0: none is known to have
/// been): it must be there, or a later one, and be its own.
pub fn load_own<D: Disk>(disk: &mut D, owner: &FileOwner, known: u64) -> Result<Option<Loaded>, CheckpointError> {
    let loaded = load_latest(disk)?;
    let found = loaded.as_ref().map(|loaded| loaded.checkpoint.number);
    if found.unwrap_or(0) < known {
        return Err(CheckpointError::Gone { number: known, found });
    }
    let facts = loaded.as_ref().and_then(|loaded| loaded.checkpoint.facts);
    let is_other = |found: &FileOwner| found != owner && !mutated(Mutation::AcceptOtherCheckpoint);
    match facts.map(|facts| facts.owner).filter(is_other) {
        Some(other) => {
            let path = file_path(found.unwrap_or(0));
            Err(CheckpointError::OtherOwner { path, expected: *owner, found: other })
        }
        None => Ok(loaded),
    }
}

/// Load the newest checkpoint, and remove what unfinished ones left. Leaves it on stable storage, and nothing in
/// flight. `None` when there never was one.
pub fn load_latest<D: Disk>(disk: &mut D) -> Result<Option<Loaded>, CheckpointError> {
    let failed = |operation, path: &str| {
        let path = path.to_owned();
        move |source| CheckpointError::Failed { operation, path, source }
    };
    disk.run(Op::CreateDir { path: DIR.to_owned() }).map_err(failed("create", DIR))?;
    disk.run(Op::SyncDir { path: String::new() }).map_err(failed("sync", "the data directory"))?;
    let names = match disk.run(Op::List { path: DIR.to_owned() }).map_err(failed("list", DIR))? {
        Outcome::Names(names) => names,
        _ => Vec::new(),
    };
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        let path = format!("{DIR}/{name}");
        disk.run(Op::Remove { path: path.clone() }).map_err(failed("remove", &path))?;
    }
    // The name may be one that a killed process had not synced yet; from here on others rely on it.
    disk.run(Op::SyncDir { path: DIR.to_owned() }).map_err(failed("sync", DIR))?;
    let Some(number) = names.iter().filter_map(|name| file_number(name)).max() else {
        return Ok(None);
    };
    let path = file_path(number);
    let (file, op_path) = (Owner::Checkpoint.file(0), path.clone());
    let op = Op::Open { file, path: op_path, create: false, direct: false };
    let opened = disk.run(op).map_err(failed("open", &path))?;
    let Outcome::Opened { len } = opened else { return Ok(None) };
    let (content, error) = read_file(disk, file, len as usize, &path);
    disk.run(Op::Close { file }).map_err(failed("close", &path))?;
    match decode(number, content.into()) {
        Err(CheckpointError::Lost { first, second, .. }) => {
            Err(CheckpointError::Lost { first, second, unreadable: error })
        }
        decoded => decoded.map(Some),
    }
}

/// The bytes of a file of this length, with zeros for the blocks that cannot be read: those are damaged, like what reads
/// wrong. With the first error, if there was one.
fn read_file<D: Disk>(disk: &mut D, file: FileId, len: usize, path: &str) -> (Vec<u8>, Option<io::Error>) {
    let mut content = Vec::with_capacity(len);
    let mut unreadable = None;
    let mut first = None;
    while content.len() < len {
        let at = content.len();
        // A piece that cannot be read is read block by block.
        let want = if unreadable.is_some_and(|end| at < end) { BLOCK } else { READ_BYTES }.min(len - at);
        match disk.run(Op::Read { file, position: at as u64, len: want }) {
            Ok(Outcome::Read(bytes)) if !bytes.is_empty() => content.extend_from_slice(&bytes),
            Err(error) if want > BLOCK => {
                tracing::error!(path, position = at, %error, "a place of a checkpoint cannot be read; look at the disk");
                unreadable = Some(at + want);
                first.get_or_insert(error);
            }
            Err(error) => {
                content.resize(at + want, 0);
                first.get_or_insert(error);
            }
            Ok(_) => content.resize(at + want, 0),
        }
    }
    (content, first)
}
