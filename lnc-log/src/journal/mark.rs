//! The mark: a small file beside the journal that says what the journal must hold.
//!
//! What is gone cannot say that it was there. So the mark names the files in use with their lengths, how far flushes were
//! durable, the newest checkpoint, and the term and vote of each group, of which it is a second copy. A start that finds
//! less than the mark says knows that something was lost, and what it may have promised.
//!
//! What it says of flushes is a lower bound: it is written when a file is begun, when nothing is about to be appended, at a
//! stop, with each checkpoint and a few times a second. What it says of terms, votes and files is exact: a flush that has a
//! new term or vote, or is the first of its file, counts as durable once the mark says so too. So a journal that calls such a flush
//! durable, beside a mark that does not know of it, has a mark from an older time.
//!
//! ```text
//! file     slot, to 64 KiB | slot, to 128 KiB: written in turn, so that one is always whole
//! slot     magic 4 | version 2 | 0 2 | length of the rest 4 | CRC-32 of length and rest 4 | sequence 8 | owner 32 |
//!          epoch 8 | durable flush 8 | newest checkpoint 8 | file count 4 | group count 4 | files | groups
//! file     number 8 | length in bytes 8
//! group    group 4 | term 8 | voted 1 | vote 8 | in doubt below term 8
//! ```

use super::{GroupId, JournalConfig, JournalError};
use crate::FileOwner;
use crate::disk::{AlignedBuf, Disk, FileId, Op, Outcome, Owner, is_full};
use bytes::Buf;
use lnc_mutation::{Mutation, mutated};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The file, relative to the data directory: not in the journal's directory, with which it would be lost.
const PATH: &str = "DURABLE";
const MAGIC: [u8; 4] = *b"LNCM";
const VERSION: u16 = 1;
/// Bytes of a slot.
const SLOT: u64 = 64 << 10;
/// Bytes before what the checksum covers.
const HEAD: usize = 16;
/// Bytes of a slot before the lists.
const FIXED: usize = HEAD + 8 + FileOwner::LEN + 24 + 8;
const FILE: usize = 16;
const GROUP: usize = 29;

/// What the mark says of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct GroupMark {
    pub(super) term: u64,
    pub(super) vote: Option<u64>,
    /// Until the group's log has an entry of this term, it may lack entries that this node acknowledged; 0: it does not.
    pub(super) in_doubt: u64,
}

/// See the module documentation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) sequence: u64,
    pub(super) owner: FileOwner,
    /// The highest epoch that was written with.
    pub(super) epoch: u64,
    /// Every flush up to this one was durable.
    pub(super) durable: u64,
    /// The newest checkpoint that was durable; 0: there was none.
    pub(super) checkpoint: u64,
    /// Number and length of the files in use.
    pub(super) files: BTreeMap<u64, u64>,
    pub(super) groups: BTreeMap<GroupId, GroupMark>,
}

impl Mark {
    fn encode(&self) -> AlignedBuf {
        let room = SLOT as usize - FIXED - self.groups.len() * GROUP;
        // The newest matter most: the oldest are kept for followers that lag.
        let skip = self.files.len().saturating_sub(room / FILE);
        let mut buf = AlignedBuf::default();
        buf.resize(HEAD);
        buf.extend_from_slice(&self.sequence.to_le_bytes());
        buf.extend_from_slice(&self.owner.encode());
        for number in [self.epoch, self.durable, self.checkpoint] {
            buf.extend_from_slice(&number.to_le_bytes());
        }
        buf.extend_from_slice(&((self.files.len() - skip) as u32).to_le_bytes());
        buf.extend_from_slice(&(self.groups.len() as u32).to_le_bytes());
        for (number, len) in self.files.iter().skip(skip) {
            buf.extend_from_slice(&number.to_le_bytes());
            buf.extend_from_slice(&len.to_le_bytes());
        }
        for (group, mark) in &self.groups {
            buf.extend_from_slice(&group.0.to_le_bytes());
            buf.extend_from_slice(&mark.term.to_le_bytes());
            buf.extend_from_slice(&[u8::from(mark.vote.is_some())]);
            buf.extend_from_slice(&mark.vote.unwrap_or_default().to_le_bytes());
            buf.extend_from_slice(&mark.in_doubt.to_le_bytes());
        }
        let len = (buf.len() - HEAD) as u32;
        buf[..4].copy_from_slice(&MAGIC);
        buf[4..6].copy_from_slice(&VERSION.to_le_bytes());
        buf[8..12].copy_from_slice(&len.to_le_bytes());
        let crc = crc(&buf);
        buf[12..16].copy_from_slice(&crc.to_le_bytes());
        buf.pad_to_block();
        buf
    }

    /// Decode a slot; the error says what is there instead.
    fn decode(slot: &[u8]) -> Result<Self, String> {
        if slot.len() < FIXED {
            return Err(format!("{} bytes", slot.len()));
        }
        let mut head = &slot[..HEAD];
        let mut magic = [0; 4];
        head.copy_to_slice(&mut magic);
        let (version, _, len, stored) = (head.get_u16_le(), head.get_u16_le(), head.get_u32_le(), head.get_u32_le());
        if magic != MAGIC {
            return Err(format!("no mark, but {magic:02x?}"));
        }
        let end = HEAD.saturating_add(len as usize);
        let whole = slot.get(..end).filter(|whole| whole.len() >= FIXED && crc(whole) == stored);
        let Some(whole) = whole else { return Err("a checksum that does not fit".to_owned()) };
        if version != VERSION {
            return Err(format!("a mark of version {version}, which this version cannot read"));
        }
        Self::decode_rest(&whole[HEAD..]).ok_or_else(|| "lists that do not end where they should".to_owned())
    }

    /// The newest in the bytes of the file.
    pub(super) fn newest(file: &[u8]) -> Option<Self> {
        let slots = file.chunks(SLOT as usize).take(2).filter_map(|slot| Self::decode(slot).ok());
        slots.max_by_key(|mark| mark.sequence)
    }

    fn decode_rest(mut from: &[u8]) -> Option<Self> {
        let sequence = from.try_get_u64_le().ok()?;
        let mut owner = [0; FileOwner::LEN];
        from.try_copy_to_slice(&mut owner).ok()?;
        let (epoch, durable) = (from.try_get_u64_le().ok()?, from.try_get_u64_le().ok()?);
        let checkpoint = from.try_get_u64_le().ok()?;
        let (files, groups) = (from.try_get_u32_le().ok()? as usize, from.try_get_u32_le().ok()? as usize);
        if from.len() != files.checked_mul(FILE)?.checked_add(groups.checked_mul(GROUP)?)? {
            return None;
        }
        let files = (0..files).map(|_| (from.get_u64_le(), from.get_u64_le())).collect();
        let group = |from: &mut &[u8]| {
            let (group, term) = (GroupId(from.get_u32_le()), from.get_u64_le());
            let (voted, vote, in_doubt) = (from.get_u8() != 0, from.get_u64_le(), from.get_u64_le());
            (group, GroupMark { term, vote: voted.then_some(vote), in_doubt })
        };
        let groups = (0..groups).map(|_| group(&mut from)).collect();
        let owner = FileOwner::decode(&owner);
        Some(Self { sequence, owner, epoch, durable, checkpoint, files, groups })
    }

    /// The place of the slot that this mark goes to.
    fn position(&self) -> u64 {
        self.sequence % 2 * SLOT
    }
}

fn crc(slot: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot[4..12]);
    hasher.update(&slot[HEAD..]);
    hasher.finalize()
}

fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::WriteFailed { operation, path: PATH.to_owned(), source }
}

/// Where the file is on its way to be of use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// There is none: the format of the directory does not have it yet.
    #[default]
    Absent,
    Opening,
    Filling,
    Naming,
    Ready,
}

/// Files of the journal that were in use, and not only prepared.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Used {
    /// These.
    These(BTreeSet<u64>),
    /// Nobody knows which.
    Any,
}

impl Used {
    pub(super) fn may_be(&self, number: u64) -> bool {
        match self {
            Self::These(files) => files.contains(&number),
            Self::Any => true,
        }
    }
}

/// The mark's file, and what is to be written to it. One write is under way at a time.
#[derive(Debug, Default)]
pub(super) struct Marks {
    state: State,
    file: Option<FileId>,
    token: Option<u64>,
    /// The number of the last write.
    sequence: u64,
    /// Counts what was asked for; `written` of it is durable, `writing` is under way.
    wanted: u64,
    writing: u64,
    written: u64,
    /// What the last write that began says.
    durable: u64,
    checkpoint: u64,
    newest_file: u64,
    /// A slot cannot be read.
    bad: bool,
    /// Both slots were whole, so that the newer one is the last that was written.
    whole: bool,
    /// The file was there at the start.
    found: bool,
}

impl Marks {
    /// Read the mark. `None`: there is no file, which must not be if `must_be`.
    pub(super) fn load<D: Disk>(
        disk: &mut D,
        config: &JournalConfig,
        file: FileId,
        must_be: bool,
    ) -> Result<(Self, Option<Mark>), JournalError> {
        let op = Op::Open { file, path: PATH.to_owned(), create: false, direct: true };
        match disk.run(op) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !must_be => return Ok((Self::default(), None)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(JournalError::NoMark { path: PATH, found: "no such file".to_owned() });
            }
            Err(error) => return Err(failed("open")(error)),
        }
        let slots = read_slots(disk, file);
        let bad = slots.iter().any(|slot| matches!(slot, Err(NoMark::Unreadable(_))));
        let mut whole: Vec<&Mark> = slots.iter().filter_map(|slot| slot.as_ref().ok()).collect();
        whole.sort_by_key(|mark| mark.sequence);
        let both = whole.len() == 2;
        let Some(mark) = whole.pop().cloned() else {
            let told: Vec<String> = slots.into_iter().filter_map(Result::err).map(NoMark::into_text).collect();
            if must_be {
                return Err(JournalError::NoMark { path: PATH, found: told.join("; ") });
            }
            // A start that was cut short before the first one.
            disk.run(Op::Close { file }).map_err(failed("close"))?;
            return Ok((Self { found: true, ..Self::default() }, None));
        };
        if mark.owner != config.owner && !mutated(Mutation::AcceptOtherMark) {
            return Err(JournalError::OtherOwner { path: PATH.to_owned(), expected: config.owner, found: mark.owner });
        }
        let marks = Self {
            state: State::Ready,
            file: Some(file),
            sequence: mark.sequence,
            durable: mark.durable,
            checkpoint: mark.checkpoint,
            newest_file: mark.files.last_key_value().map_or(0, |(number, _)| *number),
            bad,
            whole: both,
            found: true,
            ..Self::default()
        };
        Ok((marks, Some(mark)))
    }

    /// At a start: if a slot cannot be read, the mark goes to a new file. It may stay so when it is written, and then there would
    /// be one slot for two.
    pub(super) fn renew<D: Disk>(&mut self, disk: &mut D, fresh: FileId, mark: &Mark) -> Result<(), JournalError> {
        let Some(old) = self.file.filter(|_| self.bad) else { return Ok(()) };
        tracing::error!(
            path = PATH,
            "a place of the mark cannot be read: it is written to a new file; look at the disk"
        );
        let new = format!("{PATH}.new");
        let op = Op::Open { file: fresh, path: new.clone(), create: true, direct: true };
        disk.run(op).map_err(failed("create a new file for"))?;
        disk.run(Op::ZeroFill { file: fresh, len: 2 * SLOT }).map_err(failed("fill a new file for"))?;
        (self.file, self.bad) = (Some(fresh), false);
        // In both places, as they were.
        self.write_now(disk, mark.clone())?;
        self.write_now(disk, mark.clone())?;
        disk.run(Op::Rename { from: new, to: PATH.to_owned() }).map_err(failed("rename a new file to"))?;
        disk.run(Op::SyncDir { path: String::new() }).map_err(failed("sync the directory of"))?;
        disk.run(Op::Close { file: old }).map_err(failed("close"))?;
        Ok(())
    }

    /// That there was no file, though this one of the journal was written beside it: `FORMAT`, which says whether there must be
    /// one, is not what it was either.
    pub(super) fn refuse_missing(&self, written_beside: Option<u64>) -> Result<(), JournalError> {
        match written_beside {
            Some(beside) if !self.found => {
                let found = format!("no such file, but {} was written beside one", super::file_path(beside));
                Err(JournalError::NoMark { path: PATH, found })
            }
            _ => Ok(()),
        }
    }

    /// The files that were in use, as far as `mark`, which was read, tells.
    pub(super) fn used(&self, mark: Option<&Mark>) -> Used {
        match mark {
            None => Used::These(BTreeSet::new()),
            Some(mark) if self.whole => Used::These(mark.files.keys().copied().collect()),
            // The place that is lost may have named more.
            Some(_) => Used::Any,
        }
    }

    /// Whether what was read is the last mark that was written.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether the mark is kept.
    pub(super) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    /// Whether a mark that was asked for since it is kept is durable.
    pub(super) fn is_written(&self) -> bool {
        self.is_ready() && self.written > 0
    }

    /// Begin to keep it, unless that has been done.
    pub(super) fn create<D: Disk>(&mut self, disk: &mut D, token: u64, file: FileId) {
        if self.state != State::Absent {
            return;
        }
        self.state = State::Opening;
        self.file = Some(file);
        self.submit(disk, token, Op::Open { file, path: PATH.to_owned(), create: true, direct: true });
    }

    fn submit<D: Disk>(&mut self, disk: &mut D, token: u64, op: Op) {
        self.token = Some(token);
        disk.submit(Owner::Journal.token(token), op);
    }

    /// Ask for a mark that says what is known now. It is durable once [`Marks::written`] has reached what this returns.
    pub(super) fn want(&mut self) -> u64 {
        // What is under way may not say it.
        self.wanted = self.wanted.max(self.writing + 1);
        self.wanted
    }

    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether something is asked for, or under way.
    pub(super) fn is_busy(&self) -> bool {
        self.token.is_some() || self.wanted > self.written
    }

    /// Whether one should be written now.
    pub(super) fn is_due(&self) -> bool {
        self.is_ready() && self.token.is_none() && self.wanted > self.written
    }

    /// The newest checkpoint that the newest mark knows of.
    pub(super) fn checkpoint(&self) -> u64 {
        self.checkpoint
    }

    /// How far flushes are durable, as the newest mark says.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// The newest file that the mark names.
    pub(super) fn newest_file(&self) -> u64 {
        self.newest_file
    }

    /// Write it. Nothing may be under way.
    pub(super) fn write<D: Disk>(&mut self, disk: &mut D, token: u64, mark: Mark) {
        assert!(self.token.is_none(), "one write of the mark at a time: it has two places");
        assert!(mark.durable >= self.durable, "the mark says less than before of what is durable");
        assert!(mark.checkpoint >= self.checkpoint, "the mark says less than before of checkpoints");
        if let Some((op, wanted)) = self.op(mark) {
            self.writing = wanted;
            self.submit(disk, token, op);
        }
    }

    /// The same, at a start: it is durable when this returns.
    pub(super) fn write_now<D: Disk>(&mut self, disk: &mut D, mark: Mark) -> Result<(), JournalError> {
        match self.op(mark) {
            Some((op, _)) => disk.run(op).map(drop).map_err(failed("write")),
            None => Ok(()),
        }
    }

    fn op(&mut self, mark: Mark) -> Option<(Op, u64)> {
        let file = self.file?;
        self.sequence += 1;
        self.durable = mark.durable;
        self.checkpoint = mark.checkpoint;
        self.newest_file = mark.files.last_key_value().map_or(0, |(number, _)| *number);
        let mark = Mark { sequence: self.sequence, ..mark };
        Some((Op::Write { file, position: mark.position(), buf: mark.encode(), durable: true }, self.wanted))
    }

    pub(super) fn owns(&self, token: u64) -> bool {
        self.token == Some(token)
    }

    /// An operation of this module has finished; `next` is a token for the one that may follow.
    pub(super) fn on_completion<D: Disk>(
        &mut self,
        disk: &mut D,
        result: io::Result<Outcome>,
        next: u64,
    ) -> Result<(), JournalError> {
        self.token = None;
        let Some(file) = self.file else { return Ok(()) };
        match (self.state, result) {
            (State::Opening, Ok(_)) => {
                self.state = State::Filling;
                self.submit(disk, next, Op::ZeroFill { file, len: 2 * SLOT });
            }
            (State::Filling, Ok(_)) => {
                self.state = State::Naming;
                self.submit(disk, next, Op::SyncDir { path: String::new() });
            }
            (State::Naming, Ok(_)) => {
                self.state = State::Ready;
                self.want();
            }
            // There is no space now: it is tried again.
            (State::Opening | State::Filling, Err(error)) if is_full(&error) => {
                self.state = State::Absent;
            }
            (State::Ready, Ok(_)) => self.written = self.writing,
            (State::Absent, _) => {}
            (State::Ready, Err(error)) => return Err(failed("write")(error)),
            (_, Err(error)) => return Err(failed("create")(error)),
        }
        Ok(())
    }
}

/// What is in a slot instead of a mark.
enum NoMark {
    Other(String),
    Unreadable(String),
}

impl NoMark {
    fn into_text(self) -> String {
        match self {
            Self::Other(text) | Self::Unreadable(text) => text,
        }
    }
}

fn read_slots<D: Disk>(disk: &mut D, file: FileId) -> [Result<Mark, NoMark>; 2] {
    [0, SLOT].map(|position| read_slot(disk, file, position))
}

fn read_slot<D: Disk>(disk: &mut D, file: FileId, position: u64) -> Result<Mark, NoMark> {
    match disk.run(Op::Read { file, position, len: SLOT as usize }) {
        Ok(Outcome::Read(bytes)) => {
            Mark::decode(&bytes).map_err(|found| NoMark::Other(format!("at byte {position}: {found}")))
        }
        Ok(_) => Err(NoMark::Other(format!("at byte {position}: nothing"))),
        Err(error) => Err(NoMark::Unreadable(format!("at byte {position}: {error}"))),
    }
}

/// Let the mark, if there is one, know of this checkpoint. Its other words stay.
pub(super) fn note_checkpoint<D: Disk>(disk: &mut D, number: u64) -> Result<(), JournalError> {
    let file = Owner::Setup.file(1);
    match disk.run(Op::Open { file, path: PATH.to_owned(), create: false, direct: true }) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("open")(error)),
    }
    let newest = read_slots(disk, file).into_iter().flatten().max_by_key(|mark| mark.sequence);
    if let Some(mark) = newest.filter(|mark| mark.checkpoint < number) {
        let mark = Mark { sequence: mark.sequence + 1, checkpoint: number, ..mark };
        let op = Op::Write { file, position: mark.position(), buf: mark.encode(), durable: true };
        disk.run(op).map_err(failed("write"))?;
    }
    disk.run(Op::Close { file }).map_err(failed("close"))?;
    Ok(())
}

/// The number of the newest checkpoint that is known to have been durable, 0 if there was none; `None` if no mark is kept.
pub(super) fn newest_checkpoint<D: Disk>(disk: &mut D, config: &JournalConfig) -> Result<Option<u64>, JournalError> {
    let file = Owner::Setup.file(1);
    let (_, mark) = Marks::load(disk, config, file, config.keeps_mark())?;
    if mark.is_some() {
        disk.run(Op::Close { file }).map_err(failed("close"))?;
    }
    Ok(mark.map(|mark| mark.checkpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_survives_the_trip_and_every_damaged_byte_is_found() {
        let groups = [
            (GroupId(0), GroupMark { term: 7, vote: Some(3), in_doubt: 0 }),
            (GroupId(9), GroupMark { term: 2, vote: None, in_doubt: 3 }),
        ];
        let owner = FileOwner { cluster: 1 << 90 | 5, node: 2, incarnation: 77 };
        let files = BTreeMap::from([(4, 8192), (5, 4096)]);
        let groups = BTreeMap::from(groups);
        let mark = Mark { sequence: 3, owner, epoch: 6, durable: 99, checkpoint: 2, files, groups };
        let slot = mark.encode().to_vec();
        assert_eq!(Mark::decode(&slot), Ok(mark));
        let used = HEAD + u32::from_le_bytes([slot[8], slot[9], slot[10], slot[11]]) as usize;
        for at in (0..used).filter(|at| !(6..8).contains(at)) {
            let mut bad = slot.clone();
            bad[at] ^= 0x10;
            assert!(Mark::decode(&bad).is_err(), "byte {at}");
        }
        for len in 0..used {
            assert!(Mark::decode(&slot[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_mark_that_names_more_files_than_fit_names_the_newest() {
        let files = (1..=10_000).map(|number| (number, 4096)).collect();
        let slot = Mark { files, ..Mark::default() }.encode();
        assert!(slot.len() <= SLOT as usize);
        let back = Mark::decode(&slot).expect("whole");
        assert_eq!(back.files.last_key_value(), Some((&10_000, &4096)));
    }
}
