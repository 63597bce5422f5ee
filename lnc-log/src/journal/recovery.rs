//! Opening the journal: read every flush from the start file on, tell a torn tail from damage, and find the place
//! where appending goes on.

use super::files::{Files, MAX_SPARES};
use super::format::{Body, HEADER, Header, HeaderFault, Record};
use super::identity::{Item, Recent, Summary};
use super::mark::{Mark, Marks, Used};
use super::{
    Covered, Cut, DIR, Damage, GroupId, JournalConfig, JournalError, JournalStart, Location, Recovered, RecoveredEntry,
    RecoveredGroup, file_path,
};
use crate::disk::{AlignedBuf, BLOCK, Disk, FileId, Op, Outcome};
use bytes::Bytes;
use lnc_mutation::{Mutation, mutated};
use std::collections::{BTreeMap, VecDeque};
use std::io;

mod loss;

use loss::{as_found, behind, lost_tail, outdated, take_mark};

/// Flushes behind damage that are asked what was lost: those further on carry no copy of it.
const MOST_LATER: usize = 8;
/// Bytes read at a time while scanning.
const WINDOW: u64 = 1 << 20;

/// Where and how appending goes on.
pub(super) struct Scan {
    pub(super) files: Files,
    /// The file and position of the next flush, and the length of that file.
    pub(super) file: u64,
    pub(super) position: u64,
    pub(super) capacity: u64,
    pub(super) epoch: u64,
    pub(super) last_number: u64,
    pub(super) next_sequence: u64,
    pub(super) attested: u64,
    pub(super) last_with_records: u64,
    pub(super) recent: Recent,
    pub(super) marks: Marks,
    /// The newest checkpoint that the mark knows.
    pub(super) checkpoint: u64,
}

/// An open file and the part of it that is in memory.
struct Source {
    number: u64,
    id: FileId,
    /// Length in bytes, rounded down to whole blocks.
    len: u64,
    window: AlignedBuf,
    window_start: u64,
    /// A place of it cannot be read.
    bad: bool,
}

impl Source {
    /// The `len` bytes at `position`, which must lie within the file, `position` on a block boundary.
    fn bytes<D: Disk>(&mut self, disk: &mut D, position: u64, len: u64) -> Result<&[u8], JournalError> {
        let held = self.window_start..self.window_start + self.window.len() as u64;
        if position < held.start || position + len > held.end {
            let want = len.max(WINDOW).next_multiple_of(BLOCK as u64).min(self.len - position);
            let failed = |source| JournalError::ReadFailed { path: file_path(self.number), source };
            match disk.run(Op::Read { file: self.id, position, len: want as usize }) {
                Ok(Outcome::Read(bytes)) if bytes.len() as u64 == want => self.window = bytes,
                Ok(_) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Err(error) => {
                    tracing::error!(
                        file = file_path(self.number),
                        position,
                        %error,
                        "a place of the journal cannot be read: it counts as damaged; look at the disk"
                    );
                    self.window = self.readable(disk, position, want);
                    self.bad = true;
                }
            }
            self.window_start = position;
        }
        let from = (position - self.window_start) as usize;
        Ok(&self.window[from..from + len as usize])
    }
}

impl Source {
    /// The bytes at `position`, with zeros for the blocks that cannot be read.
    fn readable<D: Disk>(&self, disk: &mut D, position: u64, len: u64) -> AlignedBuf {
        let mut bytes = AlignedBuf::zeroed(len as usize);
        for at in (0..len).step_by(BLOCK) {
            let op = Op::Read { file: self.id, position: position + at, len: BLOCK };
            if let Ok(Outcome::Read(block)) = disk.run(op)
                && block.len() == BLOCK
            {
                bytes[at as usize..at as usize + BLOCK].copy_from_slice(&block);
            }
        }
        bytes
    }
}

/// Whether a flush was found where one could be.
enum Found {
    Flush {
        header: Header,
        start: u64,
        body: Bytes,
        records: Vec<(usize, Record)>,
    },
    /// Nothing that belongs here; `torn` if it looks like the remains of a flush.
    Nothing {
        found: String,
        torn: bool,
    },
}

/// A flush of which only itself says that it was written.
struct Unattested {
    number: u64,
    file: u64,
    /// In bytes, of whole blocks.
    position: u64,
    len: u64,
}

impl Unattested {
    /// The same bytes at the same place.
    fn write_again<D: Disk>(&self, disk: &mut D, sources: &mut [Source]) -> Result<(), JournalError> {
        let Some(source) = sources.iter_mut().find(|source| source.number == self.file) else { return Ok(()) };
        let (file, position) = (source.id, self.position);
        let bytes = source.bytes(disk, position, self.len)?;
        let mut buf = AlignedBuf::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        let op = Op::Write { file, position, buf, durable: false };
        disk.run(op).map_err(failed("write", &file_path(self.file))).map(|_| ())
    }
}

/// What precedes the next flush.
struct Chain {
    /// Number of the last flush; unknown before the first, unless the journal starts there.
    number: Option<u64>,
    epoch: u64,
    sequence: Option<u64>,
    attested: u64,
    last_with_records: u64,
    recent: Recent,
    /// The flushes that no later one has called durable.
    unattested: VecDeque<Unattested>,
    /// What counts as durable only once the mark says it, with the number of the flush that brought it: the files, and the
    /// newest term and vote of each group.
    begun: BTreeMap<u64, u64>,
    voted: BTreeMap<GroupId, (u64, Option<u64>, u64)>,
    /// The newest file that was begun while a mark was kept.
    marked: Option<u64>,
}

impl Chain {
    /// What precedes the first flush of a journal that begins with this file.
    fn before(file: u64) -> Self {
        Self {
            number: (file == 1).then_some(0),
            epoch: 0,
            sequence: None,
            attested: 0,
            last_with_records: 0,
            recent: Recent::default(),
            unattested: VecDeque::new(),
            begun: BTreeMap::new(),
            voted: BTreeMap::new(),
            marked: None,
        }
    }

    /// A flush has this term and vote of a group.
    fn vote(&mut self, group: GroupId, (term, vote): (u64, Option<u64>), number: u64) {
        let known = self.voted.get(&group).is_some_and(|known| (known.0, known.1) == (term, vote));
        if !known {
            self.voted.insert(group, (term, vote, number));
        }
    }

    /// Whether a flush of this number belongs behind it.
    fn is_before(&self, number: u64) -> bool {
        self.number.is_none_or(|last| number > last)
    }
}

fn failed(operation: &'static str, path: &str) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::WriteFailed { operation, path, source }
}

/// Read the journal from `start` on; from `needed` on, if what is damaged is only kept for followers that lag.
pub(super) fn recover<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    start: JournalStart,
    needed: JournalStart,
    covered: &BTreeMap<GroupId, Covered>,
) -> Result<(Scan, Recovered), JournalError> {
    let mut files = Files::default();
    let error = match recover_from(disk, config, &mut files, start, covered) {
        Err(error) if error.damaged_file().is_some_and(|file| file < needed.0) => error,
        other => return other,
    };
    tracing::error!(
        %error,
        from = needed.0,
        "files of the journal that are kept only for followers that lag are damaged: they are given up; look at the disk"
    );
    files.close_all(disk);
    recover_from(disk, config, &mut files, needed, covered)
}

fn recover_from<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    files: &mut Files,
    start: JournalStart,
    covered: &BTreeMap<GroupId, Covered>,
) -> Result<(Scan, Recovered), JournalError> {
    let (mut marks, mark) = Marks::load(disk, config, files.new_id(), config.keeps_mark())?;
    let mut sources = open_files(disk, files, config, start, mark.as_ref())?;
    let mut chain = Chain::before(sources.first().map_or(start.0.max(1), |first| first.number));
    let mut recovered = Recovered::default();
    let end = match sources.is_empty() {
        true => End::of_nothing(),
        false => {
            let known = (mark.as_ref(), marks.used(mark.as_ref()));
            read_all(disk, config, &mut sources, &mut chain, covered, &mut recovered, &known)?
        }
    };
    refuse_foreign(disk, config, &mut sources, end.at, &marks.used(mark.as_ref()))?;
    marks.refuse_missing(chain.marked)?;
    let End { at, position, found, survey, .. } = &end;
    let (at, position) = (*at, *position);
    if let Some(mark) = mark.as_ref() {
        marks.renew(disk, files.new_id(), mark)?;
        let begins = start.0.max(1);
        let lost = lost_tail(mark, &sources, begins, &chain, &end)
            .or_else(|| outdated(mark, &chain, &end, sources.get(at)).filter(|_| marks.is_whole()))
            .or_else(|| {
                behind(mark, config, covered, &recovered, sources.get(at), position).filter(|_| marks.is_whole())
            });
        let lost = lost.filter(|_| !mutated(Mutation::IgnoreMark));
        take_mark(mark, config, lost.is_some(), covered, &mut recovered);
        if chain.number.is_none() {
            chain.number = Some(mark.durable);
        }
        chain.epoch = chain.epoch.max(mark.epoch);
        if lost.is_some() {
            let mark = as_found(mark, config, &sources[..sources.len().min(at + 1)], &chain, &recovered);
            // In both places: what the older one says may be true again of flushes to come, and it knows of no doubt.
            marks.write_now(disk, mark.clone())?;
            marks.write_now(disk, mark)?;
        }
        recovered.lost_tail = lost;
    }
    let epoch = chain.epoch.max(survey.max_epoch) + 1;
    if sources.is_empty() {
        sources.push(open_file(disk, files, start.0.max(1), true)?);
    }
    recovered.torn_tail = found.clone().map(|found| Cut { file: sources[at].number, position, found });

    // What was read may have come from a cache that a killed process left behind: it counts only once it is synced. And after
    // a sync that has failed, the next one says nothing of what the cache still gives: it is written once more.
    let known = chain.attested.max(mark.as_ref().map_or(0, |mark| mark.durable));
    for flush in chain.unattested.iter().filter(|flush| flush.number > known) {
        flush.write_again(disk, &mut sources)?;
    }
    for source in &sources[..=at] {
        disk.run(Op::Sync { file: source.id }).map_err(failed("sync", &file_path(source.number)))?;
    }
    if let Some(mark) = mark.as_ref().filter(|_| recovered.lost_tail.is_none()) {
        // From here on flushes say that what was found is durable: without a mark that says so too, the next start would take
        // this one for one of an older time. What was read of the mark itself may not be on the disk either.
        marks.write_now(disk, as_found(mark, config, &sources[..=at], &chain, &recovered))?;
    }
    let spares = sources.split_off(at + 1);
    let here = &mut sources[at];
    if position == 0 {
        // Its zeros may be in the cache alone, and its length with them.
        let len = here.len.max(config.file_bytes);
        disk.run(Op::ZeroFill { file: here.id, len }).map_err(failed("fill", &file_path(here.number)))?;
        here.len = len;
    }
    let (file, capacity) = (here.number, here.len);
    for source in sources {
        let bad = source.bad || recovered.damage.iter().any(|damage| damage.file == source.number);
        files.live.insert(source.number, super::files::Live { id: source.id, len: source.len, readers: 0, bad });
    }
    keep_spares(disk, files, spares, config)?;
    disk.run(Op::SyncDir { path: DIR.to_owned() }).map_err(failed("sync", DIR))?;
    let scan = Scan {
        files: std::mem::take(files),
        file,
        position,
        capacity,
        epoch,
        last_number: chain.number.unwrap_or(0),
        next_sequence: chain.sequence.map_or(1, |s| s + 1),
        attested: chain.attested,
        last_with_records: chain.last_with_records,
        recent: chain.recent,
        marks,
        checkpoint: mark.map_or(0, |mark| mark.checkpoint),
    };
    Ok((scan, recovered))
}

/// Where the flushes end.
struct End {
    /// Index of the file, and position.
    at: usize,
    position: u64,
    /// What looks like the remains of a flush there.
    found: Option<String>,
    survey: Survey,
    /// There is something that is no work of a crash.
    damaged: Option<String>,
}

impl End {
    /// Of a journal without files.
    fn of_nothing() -> Self {
        Self { at: 0, position: 0, found: None, survey: Survey::default(), damaged: None }
    }
}

/// Read all flushes, past damage whose content is known.
fn read_all<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    sources: &mut [Source],
    chain: &mut Chain,
    covered: &BTreeMap<GroupId, Covered>,
    recovered: &mut Recovered,
    (mark, used): &(Option<&Mark>, Used),
) -> Result<End, JournalError> {
    let known = mark.map_or(0, |mark| mark.durable);
    let mut start = (0, 0);
    loop {
        let (at, position, tail) = scan(disk, config, sources, chain, covered, recovered, start)?;
        let survey = Survey::take(disk, config, &mut sources[at..], position, chain)?;
        let Found::Nothing { found, torn } = tail else {
            return Ok(End { at, position, found: None, survey, damaged: None });
        };
        let Some(error) = survey.verdict(&sources[at..], position, chain, &found, known) else {
            let found = (torn || survey.first_later.is_some()).then_some(found);
            return Ok(End { at, position, found, survey, damaged: None });
        };
        if matches!(error, JournalError::MissingFile { .. }) {
            return Err(error);
        }
        refuse_foreign(disk, config, sources, at, used)?;
        // Damage: go on behind it, if the flushes there tell what it held.
        let Some(next) = resume(disk, config, sources, at, &survey, chain, covered, recovered)? else {
            if mark.is_some() && survey.later.is_empty() {
                // Nothing is behind it: what is lost is the end.
                return Ok(End { at, position, found: Some(found.clone()), survey, damaged: Some(found) });
            }
            return Err(error);
        };
        let (file, position) = next.lost;
        recovered.damage.push(Damage { file, position, flushes: next.flushes, found });
        start = next.place;
    }
}

/// The numbers of the files that are there, in order.
fn numbers<D: Disk>(disk: &mut D) -> Result<Vec<u64>, JournalError> {
    let listed = disk.run(Op::List { path: DIR.to_owned() }).map_err(failed("list", DIR))?;
    let Outcome::Names(names) = listed else {
        return Err(failed("list", DIR)(io::ErrorKind::InvalidData.into()));
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| file_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn oldest_file<D: Disk>(disk: &mut D) -> Result<Option<u64>, JournalError> {
    Ok(numbers(disk)?.first().copied())
}

/// Whether a file that matters was written by another member: nothing is written to it, since it may be all that its
/// owner has.
fn refuse_foreign<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    sources: &mut [Source],
    from: usize,
    used: &Used,
) -> Result<(), JournalError> {
    if mutated(Mutation::AcceptOtherJournal) {
        return Ok(());
    }
    for (n, source) in sources.iter_mut().enumerate().skip(from) {
        if (n > 0 && !used.may_be(source.number)) || source.len < BLOCK as u64 {
            continue;
        }
        let number = source.number;
        let first = source.bytes(disk, 0, BLOCK as u64)?;
        let Err(HeaderFault::Foreign { identity }) = Header::decode(first, config.identity) else { continue };
        let mut at = HEADER;
        while let Some(Ok(record)) = first.get(at..).filter(|rest| !rest.is_empty()).map(Record::decode) {
            if let Body::Owner(found) = record.body {
                return Err(JournalError::OtherOwner { path: file_path(number), expected: config.owner, found });
            }
            at += record.len;
        }
        return Err(JournalError::Foreign { file: number, expected: config.identity, found: identity });
    }
    Ok(())
}

/// Open the files from `start` on, in order; remove those before it, and stray ones after a gap.
fn open_files<D: Disk>(
    disk: &mut D,
    files: &mut Files,
    config: &JournalConfig,
    start: JournalStart,
    mark: Option<&Mark>,
) -> Result<Vec<Source>, JournalError> {
    disk.run(Op::CreateDir { path: DIR.to_owned() }).map_err(failed("create", DIR))?;
    disk.run(Op::SyncDir { path: String::new() }).map_err(failed("sync", "the data directory"))?;
    let numbers = numbers(disk)?;
    let begins = start.0.max(1);
    let is_lost = (start.0 > 0 || mark.is_some()) && !numbers.contains(&begins);
    // The mark tells what was in use from what was only prepared: if all of the former is lost, it is known what is.
    let newest_used = mark.and_then(|mark| mark.files.last_key_value()).map(|(number, _)| *number);
    let all_lost = is_lost && newest_used.is_some_and(|used| !numbers.iter().any(|n| (begins..=used).contains(n)));
    if is_lost && !all_lost {
        return Err(JournalError::MissingFile { file: begins });
    }
    let mut sources = Vec::new();
    for number in numbers {
        if number < start.0 || all_lost {
            let path = file_path(number);
            disk.run(Op::Remove { path: path.clone() }).map_err(failed("remove", &path))?;
        } else {
            sources.push(open_file(disk, files, number, false)?);
        }
    }
    if sources.is_empty() && mark.is_none() {
        if config.format > 1 {
            return Err(JournalError::Gone { path: DIR });
        }
        sources.push(open_file(disk, files, 1, true)?);
    }
    Ok(sources)
}

fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".journal")?;
    (digits.len() == 20).then(|| digits.parse().ok())?.filter(|n| *n > 0)
}

fn open_file<D: Disk>(disk: &mut D, files: &mut Files, number: u64, create: bool) -> Result<Source, JournalError> {
    let (id, path) = (files.new_id(), file_path(number));
    let op = Op::Open { file: id, path: path.clone(), create, direct: true };
    let len = match disk.run(op).map_err(failed("open", &path))? {
        Outcome::Opened { len } => len / BLOCK as u64 * BLOCK as u64,
        _ => 0,
    };
    Ok(Source { number, id, len, window: AlignedBuf::default(), window_start: 0, bad: false })
}

/// Follow the flushes. Returns the index of the file and the position where they end, and what is there.
fn scan<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    sources: &mut [Source],
    chain: &mut Chain,
    covered: &BTreeMap<GroupId, Covered>,
    recovered: &mut Recovered,
    (mut at, mut position): (usize, u64),
) -> Result<(usize, u64, Found), JournalError> {
    loop {
        let mut found = flush_at(disk, config, &mut sources[at], position, chain)?;
        if let Found::Nothing { .. } = found
            && chain.number.is_some()
            && at + 1 < sources.len()
            && sources[at + 1].number == sources[at].number + 1
            && let next @ Found::Flush { .. } = flush_at(disk, config, &mut sources[at + 1], 0, chain)?
        {
            // The flush did not fit in the rest of the file.
            found = next;
            at += 1;
        }
        let Found::Flush { header, start, body, records } = found else {
            return Ok((at, position, found));
        };
        let mut summary = Summary {
            number: header.number,
            file: header.file,
            position: start,
            len: header_len(&header),
            ..Summary::default()
        };
        let mut content = false;
        chain.begun.entry(header.file).or_insert(header.number);
        for (offset, record) in records {
            summary.record(&record);
            match record.body {
                Body::HardState { term, vote } => chain.vote(record.group, (term, vote), header.number),
                Body::Owner(_) => chain.marked = Some(header.file),
                _ => {}
            }
            content |= !matches!(record.body, Body::Identities { .. } | Body::Owner(_));
            chain.sequence = Some(record.sequence);
            let location = Location {
                file: header.file,
                position: start + (HEADER + offset) as u64,
                len: record.len as u32,
                sequence: record.sequence,
            };
            let covered = covered.get(&record.group).copied().unwrap_or_default().index;
            apply(recovered, record, offset, &body, location, covered);
        }
        chain.number = Some(header.number);
        chain.epoch = header.epoch;
        chain.attested = chain.attested.max(header.durable);
        if content {
            chain.last_with_records = header.number;
        }
        let known = chain.unattested.partition_point(|flush| flush.number <= chain.attested);
        chain.unattested.drain(..known);
        let place = Unattested { number: header.number, file: header.file, position: start, len: summary.len };
        chain.unattested.push_back(place);
        chain.recent.push(summary);
        position = start + header_len(&header);
    }
}

/// Length of a flush with its padding, in bytes.
fn header_len(header: &Header) -> u64 {
    (HEADER as u64 + u64::from(header.body_len)).next_multiple_of(BLOCK as u64)
}

fn apply(recovered: &mut Recovered, record: Record, offset: usize, body: &Bytes, location: Location, covered: u64) {
    if matches!(record.body, Body::Identities { .. } | Body::Owner(_)) {
        return;
    }
    let group = recovered.groups.entry(record.group).or_default();
    match record.body {
        Body::Identities { .. } | Body::Owner(_) => {}
        Body::HardState { term, vote } => group.hard_state = Some((term, vote)),
        Body::Checkpoint { term, index } => {
            group.entries.clear();
            group.restarted_after = Some((index, term));
        }
        Body::Entry { kind, term, index, payload } => {
            let payload = match index > covered {
                true => body.slice(offset + payload.start..offset + payload.end),
                false => Bytes::new(),
            };
            put(group, RecoveredEntry { term, index, kind, payload, location, damaged: false });
        }
    }
}

/// The next entry of a group, which replaces what the group had from its index on.
fn put(group: &mut RecoveredGroup, entry: RecoveredEntry) {
    let first = group.entries.first().map_or(entry.index, |first| first.index);
    let keep = entry.index.checked_sub(first).map_or(0, |n| n as usize);
    // An index beyond the end follows a snapshot: what came before it is not the log any more.
    group.entries.truncate(if keep <= group.entries.len() { keep } else { 0 });
    group.entries.push(entry);
}

/// Where recovery goes on behind damage.
struct Resumed {
    /// Index of the file, and position.
    place: (usize, u64),
    /// File and position of the first flush that is lost.
    lost: (u64, u64),
    /// Flushes that are lost.
    flushes: u64,
}

/// Find a whole flush behind damage that knows what the lost ones held, and take that in.
#[allow(clippy::too_many_arguments, reason = "the state of a recovery that has come this far")]
fn resume<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    sources: &mut [Source],
    from: usize,
    survey: &Survey,
    chain: &mut Chain,
    covered: &BTreeMap<GroupId, Covered>,
    recovered: &mut Recovered,
) -> Result<Option<Resumed>, JournalError> {
    let first = chain.number.map(|last| last + 1);
    let file = sources[from].number;
    for (place_file, position, number) in survey.later.iter().copied() {
        let Some(at) = sources.iter().position(|source| source.number == place_file) else { continue };
        let before = Chain {
            number: Some(number - 1),
            sequence: None,
            recent: Recent::default(),
            unattested: VecDeque::new(),
            begun: BTreeMap::new(),
            voted: BTreeMap::new(),
            ..*chain
        };
        let Found::Flush { records, body, .. } = flush_at(disk, config, &mut sources[at], position, &before)? else {
            continue;
        };
        let copies = records.iter().find_map(|(offset, record)| match &record.body {
            Body::Identities { summaries } => {
                Recent::decode(body.slice(offset + summaries.start..offset + summaries.end))
            }
            _ => None,
        });
        let Some(lost) = copies.and_then(|copies| copies.between(first, file, number)) else { continue };
        for summary in &lost {
            take_in(summary, covered, recovered);
            chain.recent.push(summary.clone());
        }
        chain.number = Some(number - 1);
        chain.sequence = None;
        let first = lost.first().map_or((file, 0), |summary| (summary.file, summary.position));
        return Ok(Some(Resumed { place: (at, position), lost: first, flushes: lost.len() as u64 }));
    }
    Ok(None)
}

/// What a lost flush held takes its effect, but for the bytes of its entries.
fn take_in(summary: &Summary, covered: &BTreeMap<GroupId, Covered>, recovered: &mut Recovered) {
    let location = Location { file: summary.file, position: summary.position, len: 0, sequence: 0 };
    for (id, held) in &summary.groups {
        let group = recovered.groups.entry(*id).or_default();
        if held.hard_state.is_some() {
            group.hard_state = held.hard_state;
        }
        for item in &held.items {
            match *item {
                Item::Restart { term, index } => {
                    group.entries.clear();
                    group.restarted_after = Some((index, term));
                }
                Item::Run { term, first, count } => {
                    for index in first..first + count {
                        let damaged = index > covered.get(id).copied().unwrap_or_default().index;
                        put(group, RecoveredEntry { term, index, kind: 0, payload: Bytes::new(), location, damaged });
                    }
                }
            }
        }
    }
}

/// Look for the flush that follows `chain` at `position`.
fn flush_at<D: Disk>(
    disk: &mut D,
    config: &JournalConfig,
    source: &mut Source,
    position: u64,
    chain: &Chain,
) -> Result<Found, JournalError> {
    let nothing = |found: String, torn| Ok(Found::Nothing { found, torn });
    let (file, rest) = (source.number, source.len - position.min(source.len));
    if rest < BLOCK as u64 {
        return nothing("the end of the file".to_owned(), false);
    }
    let header = match Header::decode(source.bytes(disk, position, HEADER as u64)?, config.identity) {
        Ok(header) => header,
        Err(HeaderFault::Absent) => return nothing("no flush".to_owned(), false),
        Err(HeaderFault::Checksum { stored, computed }) => {
            return nothing(format!("flush header CRC {computed:#010x}, stored {stored:#010x}"), true);
        }
        Err(HeaderFault::Version { found, file: own, number }) if own == file && chain.is_before(number) => {
            return Err(JournalError::UnsupportedVersion { file, position, found });
        }
        // Left over in a recycled file.
        Err(HeaderFault::Version { found, .. }) => return nothing(format!("a flush of format {found}"), false),
        Err(HeaderFault::Foreign { identity }) => return nothing(format!("a flush of {identity:#018x}"), false),
    };
    let Header { number, epoch, .. } = header;
    if header.file != file || epoch < chain.epoch || chain.number.is_some_and(|last| number != last + 1) {
        return nothing(format!("flush {number} of epoch {epoch} and file {}", header.file), false);
    }
    let len = header_len(&header);
    if len > rest {
        return nothing(format!("a flush of {len} bytes, {rest} before the end of the file"), true);
    }
    let bytes = source.bytes(disk, position, len)?;
    match check_body(&header, bytes, chain.sequence) {
        Ok(records) => {
            let body = Bytes::copy_from_slice(&bytes[HEADER..HEADER + header.body_len as usize]);
            Ok(Found::Flush { header, start: position, body, records })
        }
        Err(found) => nothing(found, true),
    }
}

/// Check every byte of a flush after its header. Returns the records with their offsets in the body.
fn check_body(header: &Header, flush: &[u8], mut last: Option<u64>) -> Result<Vec<(usize, Record)>, String> {
    let (body, padding) = flush[HEADER..].split_at(header.body_len as usize);
    let mut records = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let record = Record::decode(&body[at..]).map_err(|e| format!("{e} at byte {}", HEADER + at))?;
        if last.is_some_and(|last| record.sequence != last + 1) {
            return Err(format!("record {} after record {}", record.sequence, last.unwrap_or(0)));
        }
        last = Some(record.sequence);
        at += record.len;
        records.push((at - record.len, record));
    }
    if records.len() as u64 != u64::from(header.records) {
        return Err(format!("{} records, {} announced", records.len(), header.records));
    }
    // Most of a small flush is padding: look for the place only where there is one to find.
    if padding.iter().fold(0, |any, byte| any | byte) == 0 {
        return Ok(records);
    }
    let n = padding.iter().take_while(|byte| **byte == 0).count();
    Err(format!("padding that is not zero at byte {}", HEADER + body.len() + n))
}

/// What lies beyond the end of the valid flushes.
#[derive(Default)]
struct Survey {
    /// The highest epoch ever seen there. The next must be higher, or leftovers could pass for new.
    max_epoch: u64,
    /// File, position and number of the first flush that follows the missing one.
    first_later: Option<(u64, u64, u64)>,
    /// A flush that calls the missing one durable: file, position, number.
    attester: Option<(u64, u64, u64)>,
    /// All that follow the missing one: file, position, number; at most so many as could tell what was lost.
    later: Vec<(u64, u64, u64)>,
}

impl Survey {
    /// Look at every block from `position` of the first source to the end of the last.
    fn take<D: Disk>(
        disk: &mut D,
        config: &JournalConfig,
        sources: &mut [Source],
        position: u64,
        chain: &Chain,
    ) -> Result<Self, JournalError> {
        let missing = chain.number.map(|last| last + 1);
        let mut survey = Self::default();
        for (n, source) in sources.iter_mut().enumerate() {
            let mut at = if n == 0 { position } else { 0 };
            while at + BLOCK as u64 <= source.len {
                let header = Header::decode(source.bytes(disk, at, HEADER as u64)?, config.identity);
                if let Err(HeaderFault::Version { found, file, number }) = header
                    && file == source.number
                    && chain.is_before(number)
                {
                    return Err(JournalError::UnsupportedVersion { file, position: at, found });
                }
                if let Ok(header) = header
                    && header.file == source.number
                {
                    survey.max_epoch = survey.max_epoch.max(header.epoch);
                    let here = (source.number, at, header.number);
                    if header.epoch >= chain.epoch && missing.is_none_or(|missing| header.number > missing) {
                        survey.first_later.get_or_insert(here);
                        if survey.later.len() < MOST_LATER {
                            survey.later.push(here);
                        }
                        if missing.is_none_or(|missing| header.durable >= missing) {
                            survey.attester.get_or_insert(here);
                        }
                    }
                }
                at += BLOCK as u64;
            }
        }
        Ok(survey)
    }

    /// Whether the flushes end at `position` of the first source because of damage. The mark calls flushes up to `marked`
    /// durable.
    fn verdict(
        &self,
        sources: &[Source],
        position: u64,
        chain: &Chain,
        found: &str,
        marked: u64,
    ) -> Option<JournalError> {
        let file = sources[0].number;
        let Some(last) = chain.number else {
            // Only journals that begin with file 1 may begin with an unfinished flush: files before any other start
            // file are released only after its first flush is durable.
            let expected = "the first flush of the file".to_owned();
            return Some(JournalError::Damaged { file, position, expected, found: found.to_owned() });
        };
        let Some((by_file, by_position, by)) = self.attester else {
            let expected = format!("flush {}, which the mark calls durable", last + 1);
            let damaged = JournalError::Damaged { file, position, expected, found: found.to_owned() };
            return (last < marked).then_some(damaged);
        };
        // Names are synced before flushes go to a file, so a gap before this one is no work of a crash.
        let gap = (file..by_file).find(|number| sources.iter().all(|source| source.number != *number));
        if let Some(file) = gap {
            return Some(JournalError::MissingFile { file });
        }
        // The flush before one that lies further back in the next file must have been the first of that file.
        let (file, position) = match self.first_later {
            Some((next, at, number)) if next > file && at > 0 && number == last + 2 => (next, 0),
            _ => (file, position),
        };
        let expected = format!(
            "flush {}, which flush {by} at position {by_position} of {} calls durable",
            last + 1,
            file_path(by_file)
        );
        Some(JournalError::Damaged { file, position, expected, found: found.to_owned() })
    }
}

/// Keep prepared files for later use, as far as they follow without a gap and have their full length.
fn keep_spares<D: Disk>(
    disk: &mut D,
    files: &mut Files,
    spares: Vec<Source>,
    config: &JournalConfig,
) -> Result<(), JournalError> {
    let mut next = files.live.last_key_value().map_or(1, |(n, _)| *n) + 1;
    let mut kept = 0;
    for spare in spares {
        if spare.number == next && spare.len >= config.file_bytes && kept < MAX_SPARES && !spare.bad {
            files.add_found_spare(spare.number, spare.id, spare.len);
            (next, kept) = (next + 1, kept + 1);
        } else {
            let path = file_path(spare.number);
            disk.run(Op::Close { file: spare.id }).map_err(failed("close", &path))?;
            disk.run(Op::Remove { path: path.clone() }).map_err(failed("remove", &path))?;
        }
    }
    Ok(())
}
