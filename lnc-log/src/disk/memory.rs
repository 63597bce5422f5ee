//! `MemoryDisk`: a disk made of memory, for tests and the simulator.
//!
//! It keeps apart what programs see and what a power loss would leave, and it can be told to misbehave: complete
//! operations late and out of order, run out of space, fail, tear writes between sectors, flip bits, stop at a given
//! operation. Everything follows from the calls made and the seeds given, so a run can be repeated exactly.
//!
//! The model, strict wherever the contract of [`Disk`] leaves room:
//! - An operation takes effect when it completes. One still in flight at a crash may be kept whole, in part or not at all.
//! - A `Sync` covers what had completed before it was submitted, nothing later.
//! - Names that no `SyncDir` covered may be kept or lost one by one, in any combination.

use super::{AlignedBuf, BLOCK, Completion, Disk, FileId, Op, Outcome, Token};
use bytes::Bytes;
use damage::Unreadable;
use model::{Change, Content, Effect, Inode, Kept, NameChange, Rng, Tree, parent};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod damage;
mod model;

pub use damage::Bad;

/// Unit in which a write reaches the medium, in bytes: a torn write keeps or loses whole sectors.
pub const SECTOR: usize = 512;

/// When submitted operations complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// At once, in the order of submission.
    Immediate,
    /// When the test says so, see [`MemoryDisk::release`]. `wait` releases the oldest if nothing has completed.
    Held,
    /// A few at a time, in an order drawn from this seed.
    Seeded(u64),
}

/// Which of the changes not yet durable a crash keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashChoice {
    /// None.
    Nothing,
    /// All.
    Everything,
    /// The n-th change is kept if bit n is set (changes past the 64th are lost).
    Subset(u64),
    /// Drawn from a seed: each change is kept, lost, or torn between sectors.
    Torn(u64),
}

/// Decides whether an operation fails: called with its number (from 1) and the operation.
pub type FaultHook = Box<dyn FnMut(u64, &Op) -> Option<io::Error> + Send>;

/// An in-memory disk. Clones are handles to the same disk.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

struct InFlight {
    number: u64,
    token: Token,
    op: Op,
    /// The file it is about, which a `Close` that overtakes it must not take away.
    target: Option<OpenFile>,
    /// What a `Sync` or `SyncDir` covers: the last change completed before it was submitted.
    covers: u64,
}

#[derive(Clone, Copy)]
struct OpenFile {
    inode: u64,
    direct: bool,
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: Tree,
    durable_names: Tree,
    pending_names: Vec<(u64, NameChange)>,
    open: BTreeMap<FileId, OpenFile>,
    /// Counts changes, so that syncs know what they cover.
    sequence: u64,
    operations: u64,
    order: Order,
    rng: Rng,
    in_flight: VecDeque<InFlight>,
    done: Vec<Completion>,
    stop_after: u64,
    /// Operations that failed because the disk had stopped, and may have reached the medium all the same.
    lost: Vec<(Op, Option<OpenFile>)>,
    /// The failures of the stop have been reported: what is submitted now is a reaction to them and never happened.
    dead: bool,
    capacity: Option<u64>,
    file_capacity: Option<u64>,
    hook: Option<FaultHook>,
    misread: Option<Misread>,
    unreadable: Unreadable,
}

/// Reads that give something else than what was written.
#[derive(Clone)]
struct Misread {
    /// Of files whose path begins so.
    prefix: String,
    /// How many more.
    left: u32,
    rng: Rng,
}

impl Default for State {
    fn default() -> Self {
        Self {
            inodes: BTreeMap::new(),
            next_inode: 1,
            names: Tree::default(),
            durable_names: Tree::default(),
            pending_names: Vec::new(),
            open: BTreeMap::new(),
            sequence: 0,
            operations: 0,
            order: Order::Immediate,
            rng: Rng(0),
            in_flight: VecDeque::new(),
            done: Vec::new(),
            stop_after: u64::MAX,
            lost: Vec::new(),
            dead: false,
            capacity: None,
            file_capacity: None,
            hook: None,
            misread: None,
            unreadable: Unreadable::default(),
        }
    }
}

impl MemoryDisk {
    /// An empty disk that completes operations at once.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Choose when operations complete.
    pub fn set_order(&self, order: Order) {
        let mut state = self.state();
        state.order = order;
        if let Order::Seeded(seed) = order {
            state.rng = Rng(seed);
        }
    }

    /// Operations in flight, oldest first: their numbers and tokens.
    pub fn in_flight(&self) -> Vec<(u64, Token)> {
        self.state().in_flight.iter().map(|op| (op.number, op.token)).collect()
    }

    /// Complete the operation in flight with this number. False if there is none.
    pub fn release(&self, number: u64) -> bool {
        let mut state = self.state();
        let Some(at) = state.in_flight.iter().position(|op| op.number == number) else {
            return false;
        };
        state.complete(at);
        true
    }

    /// Complete everything in flight, oldest first.
    pub fn release_all(&self) {
        let mut state = self.state();
        while !state.in_flight.is_empty() {
            state.complete(0);
        }
    }

    /// Number of operations submitted so far.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Let operation number `last` be the last that works: later ones fail, as may have those in flight by then.
    pub fn stop_after(&self, last: u64) {
        self.state().stop_after = last;
    }

    /// Whether an operation has failed because of [`MemoryDisk::stop_after`].
    pub fn stopped(&self) -> bool {
        let state = self.state();
        state.operations > state.stop_after
    }

    /// Limit the total length of all files, in bytes; what would exceed it fails with `StorageFull`.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Limit the number of files and directories; to make one more fails with `StorageFull`.
    pub fn set_file_capacity(&self, files: Option<u64>) {
        self.state().file_capacity = files;
    }

    /// Number of files and directories.
    pub fn files(&self) -> u64 {
        self.state().names_used()
    }

    /// Total length of all files, in bytes.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// Let `hook` decide which operations fail (`None`: no faults). A failed write leaves some of its sectors
    /// changed; a failed sync silently drops some of what it should have kept.
    pub fn inject(&self, hook: Option<FaultHook>) {
        self.state().hook = hook;
    }

    /// Let the next `count` reads of files whose path begins with `prefix` go to another place of the file, or give the
    /// zeros that were there before anything was written. The medium keeps what it has.
    pub fn misread(&self, prefix: &str, count: u32, seed: u64) {
        self.state().misread = Some(Misread { prefix: prefix.to_owned(), left: count, rng: Rng(seed) });
    }

    /// Flip the bits of `mask` in the byte at `position`, durably. False when there is no such byte.
    pub fn corrupt(&self, path: &str, position: u64, mask: u8) -> bool {
        let mut state = self.state();
        let Some(inode) = state.names.files.get(path).copied() else {
            return false;
        };
        let inode = state.inodes.entry(inode).or_default();
        inode.durable.corrupt(position, mask);
        inode.volatile.corrupt(position, mask)
    }

    /// The bytes of a file as programs see them.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let content = &state.inodes.get(state.names.files.get(path)?)?.volatile;
        Some(content.read(0, content.len() as usize).to_vec())
    }

    /// All files, sorted.
    pub fn paths(&self) -> Vec<String> {
        self.state().names.files.keys().cloned().collect()
    }

    /// Number of changes that a crash now could keep or lose.
    pub fn unsynced(&self) -> usize {
        self.state().effects().len()
    }

    /// Lose power. Returns the disk as the next start finds it; this one fails every further operation, but can be
    /// crashed again with another choice.
    pub fn crash(&mut self, choice: CrashChoice) -> Self {
        let mut old = self.state();
        let effects = old.effects();
        let mut tree = old.durable_names.clone();
        let mut contents: BTreeMap<u64, Content> = old.inodes.iter().map(|(n, i)| (*n, i.durable.clone())).collect();
        let mut rng = Rng(match choice {
            CrashChoice::Torn(seed) => seed,
            _ => 0,
        });
        for (n, effect) in effects.iter().enumerate() {
            let kept = match choice {
                CrashChoice::Nothing => Kept::Nothing,
                CrashChoice::Everything => Kept::Everything,
                CrashChoice::Subset(bits) if n < 64 && bits >> n & 1 == 1 => Kept::Everything,
                CrashChoice::Subset(_) => Kept::Nothing,
                CrashChoice::Torn(_) => match rng.below(4) {
                    0 => Kept::Nothing,
                    1 => Kept::Everything,
                    _ => Kept::Torn(&mut rng),
                },
            };
            effect.apply(kept, &mut tree, &mut contents);
        }
        tree.drop_orphans();
        contents.retain(|inode, _| tree.files.values().any(|n| n == inode));
        let inodes = contents
            .into_iter()
            .map(|(n, content)| (n, Inode { volatile: content.clone(), durable: content, pending: Vec::new() }))
            .collect();
        let next = State {
            inodes,
            next_inode: old.next_inode,
            names: tree.clone(),
            durable_names: tree,
            order: old.order,
            rng: old.rng.clone(),
            capacity: old.capacity,
            file_capacity: old.file_capacity,
            unreadable: old.unreadable.clone(),
            ..State::default()
        };
        old.stop();
        Self { state: Arc::new(Mutex::new(next)) }
    }

    /// Kill the process, not the machine: operations in flight happen or not (bit n of `happened` for the n-th),
    /// nothing else is lost, and nothing becomes durable. Returns the disk as the next start finds it.
    pub fn kill(&mut self, happened: u64) -> Self {
        let mut old = self.state();
        for (n, op) in std::mem::take(&mut old.in_flight).into_iter().enumerate() {
            if n < 64 && happened >> n & 1 == 1 {
                let target = op.target;
                // A durable write that nobody saw complete may still sit in the device's cache.
                let op = match op.op {
                    Op::Write { file, position, buf, .. } => Op::Write { file, position, buf, durable: false },
                    Op::Sync { .. } | Op::SyncDir { .. } => continue,
                    other => other,
                };
                // Its result, too, died with the process.
                let _ = old.execute(op, 0, target);
            }
        }
        let next = State {
            inodes: std::mem::take(&mut old.inodes),
            next_inode: old.next_inode,
            names: old.names.clone(),
            durable_names: old.durable_names.clone(),
            pending_names: old.pending_names.clone(),
            sequence: old.sequence,
            order: old.order,
            rng: old.rng.clone(),
            capacity: old.capacity,
            file_capacity: old.file_capacity,
            unreadable: old.unreadable.clone(),
            ..State::default()
        };
        old.stop();
        Self { state: Arc::new(Mutex::new(next)) }
    }
}

impl State {
    fn used(&self) -> u64 {
        let named = self.names.files.values();
        named.filter_map(|inode| self.inodes.get(inode)).map(|inode| inode.volatile.len()).sum()
    }

    fn names_used(&self) -> u64 {
        (self.names.files.len() + self.names.dirs.len()) as u64
    }

    /// One more file or directory fits.
    fn reserve_name(&self) -> io::Result<()> {
        match self.file_capacity {
            Some(capacity) if self.names_used() >= capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    /// Fail everything from now on.
    fn stop(&mut self) {
        self.stop_after = 0;
        self.dead = true;
        let in_flight = std::mem::take(&mut self.in_flight);
        self.lost.extend(in_flight.into_iter().map(|op| (op.op, op.target)));
    }

    /// Everything that a power loss could keep or lose, in the order in which it was done.
    fn effects(&mut self) -> Vec<Effect> {
        let mut ordered: Vec<(u64, Effect)> = Vec::new();
        ordered.extend(self.pending_names.iter().map(|(s, change)| (*s, Effect::Name(change.clone()))));
        for (number, inode) in &self.inodes {
            for (sequence, change) in &inode.pending {
                ordered.push((*sequence, Effect::Content { inode: *number, change: change.clone() }));
            }
        }
        ordered.sort_by_key(|(sequence, _)| *sequence);
        let mut effects: Vec<Effect> = ordered.into_iter().map(|(_, effect)| effect).collect();
        let mut fresh = self.next_inode;
        let in_flight = self.in_flight.iter().map(|op| (&op.op, op.target));
        for (op, target) in in_flight.chain(self.lost.iter().map(|(op, target)| (op, *target))) {
            effects.extend(self.effect_of(op, target, &mut fresh));
        }
        self.next_inode = fresh;
        effects
    }

    /// What an operation that never completed may have done.
    fn effect_of(&self, op: &Op, target: Option<OpenFile>, fresh: &mut u64) -> Option<Effect> {
        let content = |change| target.map(|open| Effect::Content { inode: open.inode, change });
        match op {
            Op::Open { path, create: true, .. } if !self.names.files.contains_key(path) => {
                *fresh += 1;
                Some(Effect::Name(NameChange::Link { path: path.clone(), inode: *fresh - 1 }))
            }
            Op::ZeroFill { len, .. } => content(Change::ZeroFill(*len)),
            Op::Write { position, buf, .. } => {
                content(Change::Write { position: *position, bytes: Bytes::copy_from_slice(buf) })
            }
            Op::SetLen { len, .. } => content(Change::SetLen(*len)),
            Op::Rename { from, to } => {
                let inode = *self.names.files.get(from)?;
                Some(Effect::Name(NameChange::Rename { from: from.clone(), to: to.clone(), inode }))
            }
            Op::Remove { path } => Some(Effect::Name(NameChange::Unlink { path: path.clone() })),
            Op::CreateDir { path } if !self.names.has_dir(path) => {
                Some(Effect::Name(NameChange::MakeDir { path: path.clone() }))
            }
            _ => None,
        }
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.operations += 1;
        let number = self.operations;
        let target = target_of(&op).and_then(|file| self.open.get(&file)).copied();
        if number > self.stop_after {
            if !self.dead {
                self.lost.push((op, target));
            }
            self.done.push(Completion { token, result: Err(stopped()) });
            return;
        }
        self.in_flight.push_back(InFlight { number, token, op, target, covers: self.sequence });
        if self.order == Order::Immediate {
            self.complete(self.in_flight.len() - 1);
        }
    }

    /// Let the operation at `at` of those in flight happen, or fail if a fault says so.
    fn complete(&mut self, at: usize) {
        let Some(InFlight { number, token, op, target, covers }) = self.in_flight.remove(at) else {
            return;
        };
        let fault = self.hook.as_mut().and_then(|hook| hook(number, &op));
        let result = match fault {
            Some(error) => {
                self.half_do(op, covers, target);
                Err(error)
            }
            None => self.execute(op, covers, target),
        };
        self.done.push(Completion { token, result });
    }

    /// The side effects of an operation that reports a failure.
    fn half_do(&mut self, op: Op, covers: u64, target: Option<OpenFile>) {
        let mut rng = Rng(self.rng.next());
        let Some(OpenFile { inode, .. }) = target else { return };
        match op {
            Op::Write { position, buf, .. } => {
                for (n, sector) in buf.chunks(SECTOR).enumerate() {
                    if rng.next() & 1 == 0 {
                        self.sequence += 1;
                        let change = Change::Write {
                            position: position + (n * SECTOR) as u64,
                            bytes: Bytes::copy_from_slice(sector),
                        };
                        self.inodes.entry(inode).or_default().change(self.sequence, change);
                    }
                }
            }
            Op::Sync { .. } => {
                self.inodes.entry(inode).or_default().fail_sync(covers, &mut rng);
            }
            _ => {}
        }
    }

    /// `extra` more bytes fit.
    fn reserve(&self, extra: u64) -> io::Result<()> {
        match self.capacity {
            Some(capacity) if extra > 0 && self.used() + extra > capacity => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    /// The inode of an open file, after checking the alignment that direct I/O demands.
    fn inode(&mut self, target: Option<OpenFile>, position: u64, len: usize) -> io::Result<&mut Inode> {
        let open = target.ok_or_else(|| invalid("the file is not open"))?;
        if open.direct && !(position.is_multiple_of(BLOCK as u64) && len.is_multiple_of(BLOCK)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(self.inodes.entry(open.inode).or_default())
    }

    /// From where a read is served if it is to go wrong; beyond the end: from nowhere.
    fn read_from(&mut self, target: Option<OpenFile>, position: u64) -> Option<u64> {
        let misread = self.misread.as_mut().filter(|misread| misread.left > 0)?;
        let inode = target?.inode;
        let (path, _) = self.names.files.iter().find(|(_, named)| **named == inode)?;
        if !path.starts_with(&misread.prefix) {
            return None;
        }
        misread.left -= 1;
        let blocks = misread.rng.below(4) as u64;
        if blocks == 0 { Some(u64::MAX) } else { Some(position + blocks * BLOCK as u64) }
    }

    fn rename_or_link(&mut self, change: NameChange) {
        if let NameChange::Rename { to: path, inode, .. } | NameChange::Link { path, inode } = &change {
            self.unreadable.named(path, *inode);
        }
        self.sequence += 1;
        self.names.apply(&change);
        self.pending_names.push((self.sequence, change));
    }

    fn execute(&mut self, op: Op, covers: u64, target: Option<OpenFile>) -> io::Result<Outcome> {
        match op {
            Op::Open { file, path, create, direct } => return self.open(file, path, create, direct),
            Op::Write { position, buf, durable, .. } => return self.write(target, position, buf, durable),
            Op::Read { position, len, .. } => {
                if let Some(open) = target {
                    self.unreadable.check(open.inode, position, len)?;
                }
                let from = self.read_from(target, position);
                let content = &self.inode(target, position, len)?.volatile;
                let mut bytes = content.read(position, len);
                match from {
                    None => {}
                    Some(from) if from < content.len() => {
                        let other = content.read(from, bytes.len());
                        bytes[..other.len()].copy_from_slice(&other);
                    }
                    Some(_) => bytes.fill(0),
                }
                return Ok(Outcome::Read(bytes));
            }
            Op::List { path } => return Ok(Outcome::Names(self.list(&path))),
            Op::ZeroFill { len, .. } => {
                let held = self.inode(target, 0, 0)?.volatile.len();
                let fits = self.reserve(len.saturating_sub(held));
                // Where space runs out, what was filled so far stays.
                let room = self.capacity.map_or(0, |capacity| capacity.saturating_sub(self.used()));
                let filled = if fits.is_ok() { len } else { held + room };
                if let Some(open) = target {
                    self.unreadable.written(open.inode, 0, len);
                }
                let inode = self.inode(target, 0, 0)?;
                inode.change(u64::MAX, Change::ZeroFill(filled));
                inode.sync(u64::MAX);
                fits?;
            }
            Op::SetLen { len, .. } => {
                let held = self.inode(target, 0, 0)?.volatile.len();
                self.reserve(len.saturating_sub(held))?;
                self.sequence += 1;
                let sequence = self.sequence;
                self.inode(target, 0, 0)?.change(sequence, Change::SetLen(len));
            }
            Op::Sync { .. } => self.inode(target, 0, 0)?.sync(covers),
            Op::Close { file } => {
                let closed = self.open.remove(&file).ok_or_else(|| invalid("the file is not open"))?;
                self.drop_unreferenced(closed.inode);
            }
            op => self.execute_name(op, covers)?,
        }
        Ok(Outcome::Done)
    }

    fn execute_name(&mut self, op: Op, covers: u64) -> io::Result<()> {
        match op {
            Op::Rename { from, to } => {
                let inode = *self.names.files.get(&from).ok_or(io::ErrorKind::NotFound)?;
                if !self.names.has_dir(parent(&to)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                self.rename_or_link(NameChange::Rename { from, to, inode });
            }
            Op::Remove { path } if self.names.files.contains_key(&path) => {
                let inode = self.names.files[&path];
                self.rename_or_link(NameChange::Unlink { path });
                self.drop_unreferenced(inode);
            }
            Op::CreateDir { path } => {
                for end in path.match_indices('/').map(|(at, _)| at).chain([path.len()]) {
                    if !self.names.has_dir(&path[..end]) {
                        self.reserve_name()?;
                        self.rename_or_link(NameChange::MakeDir { path: path[..end].to_owned() });
                    }
                }
            }
            Op::RemoveDir { path } if self.names.dirs.contains(&path) => {
                if !self.list(&path).is_empty() {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                self.rename_or_link(NameChange::RemoveDir { path });
            }
            Op::SyncDir { path } => {
                if !self.names.has_dir(&path) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                let mut released = Vec::new();
                for (sequence, change) in std::mem::take(&mut self.pending_names) {
                    if sequence <= covers && change.dir() == path {
                        let durable = &self.durable_names.files;
                        match &change {
                            NameChange::Link { path, inode } => {
                                released.extend([Some(*inode), durable.get(path).copied()]);
                            }
                            NameChange::Rename { to, inode, .. } => {
                                released.extend([Some(*inode), durable.get(to).copied()]);
                            }
                            NameChange::Unlink { path } => released.push(durable.get(path).copied()),
                            NameChange::MakeDir { .. } | NameChange::RemoveDir { .. } => {}
                        }
                        self.durable_names.apply(&change);
                    } else {
                        self.pending_names.push((sequence, change));
                    }
                }
                released.into_iter().flatten().for_each(|inode| self.drop_unreferenced(inode));
            }
            _ => {}
        }
        Ok(())
    }

    fn open(&mut self, file: FileId, path: String, create: bool, direct: bool) -> io::Result<Outcome> {
        if self.open.contains_key(&file) {
            return Err(invalid("the file number is in use"));
        }
        let inode = match self.names.files.get(&path) {
            Some(inode) => *inode,
            None if create && self.names.has_dir(parent(&path)) => {
                self.reserve_name()?;
                let inode = self.next_inode;
                self.next_inode += 1;
                self.inodes.insert(inode, Inode::default());
                self.rename_or_link(NameChange::Link { path, inode });
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        self.open.insert(file, OpenFile { inode, direct });
        Ok(Outcome::Opened { len: self.inodes.entry(inode).or_default().volatile.len() })
    }

    fn write(
        &mut self,
        target: Option<OpenFile>,
        position: u64,
        buf: AlignedBuf,
        durable: bool,
    ) -> io::Result<Outcome> {
        let held = self.inode(target, position, buf.len())?.volatile.len();
        self.reserve((position + buf.len() as u64).saturating_sub(held))?;
        self.sequence += 1;
        let sequence = self.sequence;
        if let Some(open) = target {
            self.unreadable.written(open.inode, position, buf.len() as u64);
        }
        let inode = self.inode(target, position, buf.len())?;
        if durable {
            inode.write_durable(position, &buf);
        } else {
            inode.change(sequence, Change::Write { position, bytes: Bytes::copy_from_slice(&buf) });
        }
        Ok(Outcome::Written(buf))
    }

    fn list(&self, path: &str) -> Vec<String> {
        let all = self.names.files.keys().chain(&self.names.dirs).filter(|name| parent(name) == path);
        let mut names: Vec<String> = all.map(|name| name.rsplit('/').next().unwrap_or(name).to_owned()).collect();
        names.sort();
        names
    }

    /// Drop a file if no name, present, durable or possible after a crash, and no open file refers to it.
    fn drop_unreferenced(&mut self, dropped: u64) {
        let is_it = |inode: &u64| *inode == dropped;
        let pending = self.pending_names.iter().any(|(_, change)| match change {
            NameChange::Link { inode, .. } | NameChange::Rename { inode, .. } => is_it(inode),
            _ => false,
        });
        let referenced = pending
            || self.open.values().any(|file| is_it(&file.inode))
            || self.names.files.values().chain(self.durable_names.files.values()).any(is_it);
        if !referenced {
            self.inodes.remove(&dropped);
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        if self.operations > self.stop_after {
            while let Some(op) = self.in_flight.pop_front() {
                self.done.push(Completion { token: op.token, result: Err(stopped()) });
                self.lost.push((op.op, op.target));
            }
            self.dead |= !self.done.is_empty();
        }
        if let Order::Seeded(_) = self.order {
            let count = self.rng.below(self.in_flight.len() + 1);
            self.complete_some(count);
        }
        completions.append(&mut self.done);
    }

    fn complete_some(&mut self, count: usize) {
        for _ in 0..count.min(self.in_flight.len()) {
            let at = self.rng.below(self.in_flight.len());
            self.complete(at);
        }
    }
}

/// The open file that an operation is about.
fn target_of(op: &Op) -> Option<FileId> {
    match op {
        Op::ZeroFill { file, .. }
        | Op::Write { file, .. }
        | Op::Read { file, .. }
        | Op::Sync { file }
        | Op::SetLen { file, .. } => Some(*file),
        _ => None,
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn stopped() -> io::Error {
    io::Error::other("the disk has stopped")
}

impl Disk for MemoryDisk {
    fn submit(&mut self, token: Token, op: Op) {
        self.state().submit(token, op);
    }

    fn kick(&mut self) {}

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.state().reap(completions);
    }

    fn wait(&mut self, completions: &mut Vec<Completion>) {
        let mut state = self.state();
        let before = completions.len();
        state.reap(completions);
        if completions.len() == before {
            match state.order {
                Order::Seeded(_) => state.complete_some(1),
                _ => state.complete(0),
            }
            state.reap(completions);
        }
    }

    fn name(&self) -> &'static str {
        "memory"
    }

    fn free_bytes(&self) -> Option<u64> {
        let state = self.state();
        state.capacity.map(|capacity| capacity.saturating_sub(state.used()))
    }

    fn free_files(&self) -> Option<u64> {
        let state = self.state();
        state.file_capacity.map(|capacity| capacity.saturating_sub(state.names_used()))
    }
}
