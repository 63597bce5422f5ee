//! Files of a node that are not what they were: lost, emptied, cut, another node's, from an earlier time, or with places
//! that cannot be read.
//!
//! At most a minority of the nodes lacks something at a time. Of the journal, what is taken back must be known to have been
//! durable: by the mark, or by a flush that is left. A file of records in the place of another, of this node or of another one,
//! is known by its digest.

use super::super::invariants::Violation;
use super::super::node::Node;
use super::super::rng::Rng;
use super::super::trace::Event;
use super::{Checked, Cluster};
use lnc_broker::inspect::files_with_digest;
use lnc_log::disk::memory::Bad;
use lnc_log::disk::{BLOCK, MemoryDisk};
use lnc_log::journal::{FoundFlush, Marked, flushes, marked};

/// The mark beside the journal.
const MARK: &str = "DURABLE";

/// The files of a node that a loss is about.
enum Struck {
    File(String),
    /// All whose names begin so.
    All(&'static [&'static str]),
}

/// What becomes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Exchanged,
    Older,
    Lost,
    Emptied,
    Cut,
    Zeroed,
}

impl Way {
    const ALL: [Self; 6] = [Self::Exchanged, Self::Older, Self::Lost, Self::Emptied, Self::Cut, Self::Zeroed];

    /// The name by which losses are counted.
    const fn name(self) -> &'static str {
        match self {
            Self::Lost => "file-lost",
            Self::Emptied => "file-emptied",
            Self::Cut => "file-cut",
            Self::Zeroed => "file-zeroed",
            Self::Exchanged => "file-exchanged",
            Self::Older => "file-older",
        }
    }
}

impl Cluster {
    /// The process on a node ends, and before the next one starts, files are not what they were. False if it has no data.
    pub(super) fn strike_files(&mut self, id: u64, clean: bool, down_us: u64, seed: u64) -> bool {
        let node = self.node(id);
        if node.identity.cluster.is_none() {
            return false;
        }
        node.loss = Some(seed);
        match (node.is_up(), clean) {
            (true, true) => self.drain(id, down_us),
            (true, false) => self.kill(id, seed, down_us),
            (false, _) => {}
        }
        true
    }

    /// What is to happen to a node's files happens, right before its process starts.
    pub(super) fn lose_files(&mut self, id: u64) {
        let Some(seed) = self.node(id).loss.take() else { return };
        let Some(mark) = mark_of(&self.node(id).disk).filter(|_| self.may_damage(id)) else { return };
        let mut rng = Rng::new(seed);
        let what = match draw(&mut rng, &self.node(id).disk, &mark) {
            Some(Struck::All(folders)) => self.lose_folders(id, folders),
            Some(Struck::File(path)) => {
                // Of the others most end with an error that anybody would notice.
                let first = if rng.chance(250) { 0 } else { rng.below(Way::ALL.len() as u64) as usize };
                let ways = Way::ALL.iter().cycle().skip(first).take(Way::ALL.len());
                ways.copied().find_map(|way| self.change_file(id, &path, way, &mark, seed))
            }
            None => None,
        };
        if let Some(what) = what {
            self.invariants.reigns.lost(self.now_us, id);
            self.note(Event::Fault { what: format!("node {id}: {what}") });
        }
    }

    fn lose_folders(&mut self, id: u64, folders: &[&str]) -> Option<String> {
        let node = self.node(id);
        if folders.iter().any(|folder| folder.starts_with("journal/")) && node.disk.is_unreadable(MARK) {
            return None;
        }
        let lost: usize = folders.iter().map(|folder| node.disk.lose_all(folder)).sum();
        if lost == 0 {
            return None;
        }
        folders.iter().for_each(|folder| lacks(node, folder));
        node.foreign.retain(|place| !folders.iter().any(|folder| place.starts_with(folder)));
        self.counts.fault("folder-lost");
        Some(format!("{lost} files in {} are lost", folders.join(" and ")))
    }

    /// `None` if that is not possible, changes nothing, or is more than is promised to be known.
    fn change_file(&mut self, id: u64, path: &str, way: Way, mark: &Marked, seed: u64) -> Option<String> {
        let exchanged = match way {
            Way::Exchanged if !is_told_from_others(&self.node(id).disk, path) => return None,
            Way::Exchanged => Some(self.of_another(id, path, mark, seed)?),
            _ => None,
        };
        let node = self.node(id);
        let before = node.disk.file(path)?;
        let (place, after) = match way {
            Way::Exchanged => exchanged.map(|(place, bytes)| (place, Some(bytes)))?,
            Way::Lost => (path.to_owned(), None),
            Way::Emptied => (path.to_owned(), Some(Vec::new())),
            Way::Cut => (path.to_owned(), Some(before[..before.len() / 2].to_vec())),
            Way::Zeroed => (path.to_owned(), Some(vec![0; before.len()])),
            Way::Older => (path.to_owned(), Some(node.past.get(path)?.clone())),
        };
        // Of what was there before another's file, nobody could say any more how much is taken back.
        if matches!(way, Way::Older | Way::Zeroed) && node.exchanged.contains(path) {
            return None;
        }
        // A mark that has lost its newest words may forget that something was lost before.
        let forgets = path == MARK && node.excuses.lacking && matches!(way, Way::Cut | Way::Older);
        // What only a place of the mark says that cannot be read is not known; whose a file is, it says itself.
        let forgets =
            forgets || (way != Way::Exchanged && path.starts_with("journal/") && node.disk.is_unreadable(MARK));
        if forgets || after.as_ref() == Some(&before) || !is_known(&node.disk, path, way, after.as_deref(), mark) {
            return None;
        }
        lacks(node, path);
        node.disk.lose(path);
        if let Some(after) = after {
            node.disk.replace(&place, &after);
        }
        // What was there is not there any more.
        node.foreign.remove(path);
        if way == Way::Exchanged {
            node.exchanged.insert(place.clone());
        }
        if way == Way::Exchanged && is_read_first(&node.disk, &place, mark) {
            node.foreign.insert(place.clone());
        }
        self.counts.fault(way.name());
        Some(format!("{path} is {way:?}, at {place}").to_lowercase())
    }

    /// A file of another node that could be taken for this one, and the place to which it goes.
    fn of_another(&self, id: u64, path: &str, mark: &Marked, seed: u64) -> Option<(String, Vec<u8>)> {
        if path.starts_with("segments/") {
            return Some((path.to_owned(), self.other_records(id, path, seed)?));
        }
        let others = || self.nodes.iter().filter(|node| node.id != id).map(|node| &node.disk);
        let others: Vec<(&MemoryDisk, Marked)> = others().filter_map(|disk| Some((disk, mark_of(disk)?))).collect();
        let (other, their_mark) = others.get(seed.checked_rem(others.len() as u64)? as usize)?;
        let theirs = match path.split('/').next() {
            Some(MARK) => MARK.to_owned(),
            Some("journal") => journal_file(*their_mark.files.last_key_value()?.0),
            Some("checkpoint") => newest_checkpoint(other)?,
            _ => return None,
        };
        let bytes = other.file(&theirs)?;
        let is_begun = |number| !flushes(number, &bytes).is_empty();
        if path.starts_with("journal/") && !is_begun(number_of(&theirs)?) {
            return None;
        }
        // A checkpoint says which one it is. One that is older than what is known is no newest one, whatever its name.
        let keeps_name = path.starts_with("checkpoint/") && number_of(&theirs)? >= mark.checkpoint;
        Some((if keeps_name { theirs } else { path.to_owned() }, bytes))
    }

    /// What a file of records of the same kind holds, of this node or another one, but not the same file.
    fn other_records(&self, id: u64, path: &str, seed: u64) -> Option<Vec<u8>> {
        let mut rng = Rng::new(seed);
        let node = if rng.chance(500) { id } else { rng.between(1, self.settings.nodes) };
        let disk = &self.nodes[node as usize - 1].disk;
        let kind = path.rsplit('.').next()?;
        let is_other = |other: &String| other.starts_with("segments/") && other.ends_with(kind) && other != path;
        let others: Vec<String> = disk.paths().into_iter().filter(is_other).collect();
        disk.file(&others[rng.next().checked_rem(others.len() as u64)? as usize])
    }

    /// Nodes whose files of records were struck, and are again what those of others are.
    pub(super) fn note_repairs(&mut self) {
        let struck: Vec<u64> = self.nodes.iter().filter(|node| node.excuses.unrepaired).map(|node| node.id).collect();
        for id in struck {
            let (node, others) = (&self.nodes[id as usize - 1], self.nodes.iter());
            let others: Vec<&MemoryDisk> =
                others.filter(|other| other.id != id && !other.excuses.unrepaired).map(|other| &other.disk).collect();
            let is_right = |path: &String| others.iter().all(|other| agree(&node.disk, other, path));
            let mut logs = node.disk.paths().into_iter().filter(|path| path.starts_with("segments/"));
            let whole = node.is_up() && logs.all(|path| !path.ends_with(".log") || is_right(&path));
            self.node(id).excuses.unrepaired = !whole;
        }
    }

    /// A process has started: never on files of another member.
    pub(super) fn check_files(&mut self, id: u64) -> Checked {
        match self.node(id).foreign.first() {
            Some(place) => {
                let what = format!("node {id} starts with a file of another node in the place of {place}");
                Err(Violation::new("own-files", what))
            }
            None => Ok(()),
        }
    }

    /// Places of a file cannot be read until they are written.
    pub(super) fn make_unreadable(&mut self, id: u64, seed: u64) -> bool {
        let Some(mark) = mark_of(&self.node(id).disk).filter(|_| self.may_damage(id)) else { return false };
        let mut rng = Rng::new(seed);
        let node = self.node(id);
        let folder = rng.pick(&["journal/", "journal/", "checkpoint/", "segments/", "segments/", "incoming/", MARK]);
        let Some(path) = any(&mut rng, &node.disk, folder, "") else { return false };
        let end = known_end(&node.disk, &path, &mark);
        if end == 0 {
            return false;
        }
        let at = rng.below(end);
        let blocks = if rng.chance(300) { rng.between(2, 40) } else { 1 };
        let len = (blocks * BLOCK as u64).min(end - at);
        // Some stay bad when they are written, and some of those wherever the segment goes.
        let bad = match rng.below(20) {
            0..=9 => Bad::UntilWritten,
            10..=13 if path.starts_with("segments/") => Bad::AtThisPath,
            _ => Bad::InThisFile,
        };
        node.disk.make_bad(&path, at, len, bad);
        (node.excuses.unreadable, node.excuses.suspect) = (true, true);
        self.invariants.reigns.lost(self.now_us, id);
        self.note(Event::Fault { what: format!("node {id}: {len} bytes at {at} of {path} cannot be read, {bad:?}") });
        true
    }
}

/// Whether others have what these files hold, and nobody votes by it.
fn is_of_records(path: &str) -> bool {
    path.starts_with("segments/") || path.starts_with("incoming/")
}

/// Files are lost, and so the node lacks something until it is whole again.
fn lacks(node: &mut Node, path: &str) {
    match is_of_records(path) {
        true => (node.excuses.unrepaired, node.excuses.suspect) = (true, true),
        false => node.excuses.lacking = true,
    }
}

/// Whether two disks have the same in a file of records, as far as both have written it.
fn agree(one: &MemoryDisk, two: &MemoryDisk, path: &str) -> bool {
    let (Some(one), Some(two)) = (one.file(path), two.file(path)) else { return true };
    // The last block is written when it is full.
    let len = one.len().min(two.len()).saturating_sub(1) / BLOCK * BLOCK;
    one[..len] == two[..len]
}

/// What a node's disk is known to have had. Below format 3 nothing is.
fn mark_of(disk: &MemoryDisk) -> Option<Marked> {
    marked(&disk.file(MARK)?)
}

/// Which files are struck.
fn draw(rng: &mut Rng, disk: &MemoryDisk, mark: &Marked) -> Option<Struck> {
    let kind = rng.below(20);
    let file = match kind {
        0..=6 => Some(journal_file(*mark.files.last_key_value()?.0)),
        7 => any(rng, disk, "journal/", ""),
        8 => newest_checkpoint(disk),
        9 => any(rng, disk, "checkpoint/", ""),
        10 | 11 => Some(MARK.to_owned()),
        12 | 13 => any(rng, disk, "segments/", ".log"),
        14 => any(rng, disk, "segments/", ".index"),
        15 => any(rng, disk, "incoming/", ""),
        _ => None,
    };
    let folders: &[&str] = match kind {
        16 | 17 => &["journal/"],
        18 => &["journal/", "checkpoint/"],
        _ => rng.pick(&[&["checkpoint/"], &["segments/"]]),
    };
    Some(file.map_or(Struck::All(folders), Struck::File))
}

fn any(rng: &mut Rng, disk: &MemoryDisk, from: &str, to: &str) -> Option<String> {
    let paths = disk.paths().into_iter().filter(|path| path.starts_with(from) && path.ends_with(to));
    let mut paths: Vec<String> = paths.collect();
    let at = rng.next().checked_rem(paths.len() as u64)?;
    Some(paths.swap_remove(at as usize))
}

/// The file of the journal with this number.
fn journal_file(number: u64) -> String {
    format!("journal/{number:020}.journal")
}

fn newest_checkpoint(disk: &MemoryDisk) -> Option<String> {
    disk.paths().into_iter().rfind(|path| path.starts_with("checkpoint/") && path.ends_with(".checkpoint"))
}

/// The number that a file is named after.
fn number_of(path: &str) -> Option<u64> {
    path.rsplit('/').next()?.split('.').next()?.parse().ok()
}

/// Whether a start cannot do without this file.
fn is_read_first(disk: &MemoryDisk, path: &str, mark: &Marked) -> bool {
    let newest_journal = mark.files.last_key_value().map(|(number, _)| journal_file(*number));
    path == MARK || newest_journal.as_deref() == Some(path) || newest_checkpoint(disk).as_deref() == Some(path)
}

/// The flushes of a file of the journal; of others, none.
fn flushes_of(path: &str, bytes: &[u8]) -> Vec<FoundFlush> {
    match number_of(path).filter(|_| path.starts_with("journal/")) {
        Some(number) => flushes(number, bytes),
        None => Vec::new(),
    }
}

/// The flush up to which the mark, or other files of the journal than this one, say that they were durable.
fn known_flush(disk: &MemoryDisk, mark: &Marked, besides: &str) -> u64 {
    let files = mark.files.keys().map(|number| journal_file(*number)).filter(|path| path != besides);
    let attests = files.flat_map(|path| flushes_of(&path, &disk.file(&path).unwrap_or_default()));
    attests.map(|flush| flush.attests).max().unwrap_or(0).max(mark.durable)
}

/// Whether a file would be known not to be another one: of records, by the digest that the newest checkpoint has of it. A
/// checkpoint from before the node had heard of the cluster's format has none.
fn is_told_from_others(disk: &MemoryDisk, path: &str) -> bool {
    if !path.starts_with("segments/") || !path.ends_with(".log") {
        return true;
    }
    let mut copy = MemoryDisk::new();
    for path in disk.paths().into_iter().filter(|path| path.starts_with("checkpoint/")) {
        copy.replace(&path, &disk.file(&path).unwrap_or_default());
    }
    files_with_digest(&mut copy).contains(path)
}

/// Whether it is known what is lost. A file that is gone or too short was in use or was not; but one of the right length may
/// end before what was durable a moment ago.
fn is_known(disk: &MemoryDisk, path: &str, way: Way, after: Option<&[u8]>, mark: &Marked) -> bool {
    if !matches!(way, Way::Zeroed | Way::Older) {
        return true;
    }
    let kept = flushes_of(path, after.unwrap_or_default());
    let before = flushes_of(path, &disk.file(path).unwrap_or_default());
    let lost = before.iter().find(|flush| !kept.contains(flush));
    lost.is_none_or(|lost| lost.number <= known_flush(disk, mark, path))
}

/// How far a file may be damaged, in bytes: of the journal, as far as it is known what was there.
fn known_end(disk: &MemoryDisk, path: &str, mark: &Marked) -> u64 {
    let bytes = disk.file(path).unwrap_or_default();
    let found = flushes_of(path, &bytes);
    let is_unused = number_of(path).is_none_or(|number| !mark.files.contains_key(&number));
    if !path.starts_with("journal/") || (found.is_empty() && is_unused) {
        return bytes.len() as u64;
    }
    let known = known_flush(disk, mark, path);
    found.iter().rfind(|flush| flush.number <= known).map_or(0, |flush| flush.position + flush.len)
}
