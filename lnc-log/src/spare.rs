//! A few small files that are of no use but this: where neither bytes nor an inode are left, one of them becomes what has to be
//! written for there to be space again. That is the note of a transfer that makes room, or a checkpoint, without which the journal
//! gets no shorter.
//!
//! ```text
//! spare/<n>     zeros, or what it was before
//! ```
//!
//! They are made at a start that has space. What took one gives it back when it is of no use any more, or the next start makes
//! another.

use crate::disk::{Disk, Op, Outcome, Owner, is_full};
use std::io;

const DIR: &str = "spare";

/// How many there are.
pub(crate) const SPARES: usize = 4;

/// Length in bytes of each.
const BYTES: u64 = 4 * crate::disk::BLOCK as u64;

/// Where the file of this number is, relative to the data directory.
pub(crate) fn path(number: usize) -> String {
    format!("{DIR}/{number}")
}

fn names<D: Disk>(disk: &mut D) -> io::Result<Vec<String>> {
    match disk.run(Op::List { path: DIR.to_owned() })? {
        Outcome::Names(names) => Ok(names),
        _ => Ok(Vec::new()),
    }
}

/// Have all of them where there is space. For the start of a node. An error comes with the path that it is about.
pub(crate) fn keep<D: Disk>(disk: &mut D) -> Result<(), (String, io::Error)> {
    let at = |path: &str| {
        let path = path.to_owned();
        move |error| (path, error)
    };
    disk.run(Op::CreateDir { path: DIR.to_owned() }).map(drop).or_else(unless_full).map_err(at(DIR))?;
    disk.run(Op::SyncDir { path: String::new() }).map_err(at("the data directory"))?;
    for number in 0..SPARES {
        let path = path(number);
        make(disk, &path).or_else(unless_full).map_err(at(&path))?;
    }
    disk.run(Op::SyncDir { path: DIR.to_owned() }).map(drop).or_else(unless_missing).map_err(at(DIR))
}

/// A later start may have space.
fn unless_full(error: io::Error) -> io::Result<()> {
    if is_full(&error) { Ok(()) } else { Err(error) }
}

/// Where there was no space for it.
fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Have the file at `path`, with its length.
fn make<D: Disk>(disk: &mut D, path: &str) -> io::Result<()> {
    let file = Owner::Setup.file(2);
    let opened = match disk.run(Op::Open { file, path: path.to_owned(), create: true, direct: false }) {
        // There was no space for the directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let filled = match opened {
        Outcome::Opened { len } if len >= BYTES => Ok(()),
        _ => disk.run(Op::ZeroFill { file, len: BYTES }).and_then(|_| disk.run(Op::Sync { file })).map(drop),
    };
    disk.run(Op::Close { file })?;
    if filled.is_err() {
        disk.run(Op::Remove { path: path.to_owned() })?;
    }
    filled
}

/// A file of no use any more becomes one of these, or goes if there are enough. For the start of a node.
pub(crate) fn give_back<D: Disk>(disk: &mut D, from: &str) -> io::Result<()> {
    let there = names(disk)?;
    let op = match (0..SPARES).find(|number| !there.contains(&number.to_string())) {
        Some(number) if !there.is_empty() => Op::Rename { from: from.to_owned(), to: path(number) },
        _ => Op::Remove { path: from.to_owned() },
    };
    disk.run(op).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;

    #[test]
    fn there_are_as_many_as_there_is_space_for() {
        let mut disk = MemoryDisk::new();
        disk.set_capacity(Some(2 * BYTES + 100));
        keep(&mut disk).expect("that there is no space is no error");
        assert_eq!(names(&mut disk).expect("healthy"), ["0", "1"]);
        disk.set_capacity(None);
        disk.set_file_capacity(Some(disk.files() + 1));
        keep(&mut disk).expect("nor that there are no inodes");
        assert_eq!(names(&mut disk).expect("healthy"), ["0", "1", "2"]);
        disk.set_file_capacity(None);
        keep(&mut disk).expect("healthy");
        assert_eq!((names(&mut disk).expect("healthy").len(), disk.used()), (SPARES, SPARES as u64 * BYTES));
    }

    #[test]
    fn what_is_given_back_takes_the_place_of_one_that_is_gone() {
        let mut disk = MemoryDisk::new();
        keep(&mut disk).expect("healthy");
        disk.run(Op::Rename { from: path(1), to: "note".into() }).expect("healthy");
        give_back(&mut disk, "note").expect("healthy");
        assert_eq!(names(&mut disk).expect("healthy"), ["0", "1", "2", "3"]);
        disk.run(Op::Open { file: Owner::Setup.file(3), path: "more".into(), create: true, direct: false })
            .expect("healthy");
        give_back(&mut disk, "more").expect("healthy");
        assert!(names(&mut disk).expect("healthy").len() == SPARES && disk.file("more").is_none(), "there are enough");
    }
}
