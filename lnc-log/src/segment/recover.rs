//! Start: make the files what the newest checkpoint says.

use super::partition::Partition;
use super::state::{PartitionState, SegmentState};
use super::store::SegmentStore;
use super::{PartitionKey, ROOT, SegmentConfig, SegmentError, block_ceil, block_floor, index_name, io_error, log_name};
use crate::disk::{Disk, FileId, Op, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

impl SegmentStore {
    /// Recover the partitions of a checkpoint, each with the segment size that overrides the configured one. Files are
    /// cut to the checkpoint; files and directories that it does not know are removed. Doing it again changes nothing.
    ///
    /// `going` says below which offset of a partition the log removes everything, further on than the checkpoint: a file
    /// of that which is not there is not missed.
    ///
    /// Blocks; for start only.
    pub fn recover(
        config: SegmentConfig,
        disk: &mut impl Disk,
        partitions: &[(PartitionKey, PartitionState, Option<u64>)],
        going: &BTreeMap<PartitionKey, u64>,
    ) -> Result<Self, SegmentError> {
        let mut store = Self::new(config);
        for (key, state, _) in partitions {
            state.check().map_err(|source| SegmentError::State { key: *key, source })?;
            store.digests |= state.segments.iter().any(|segment| segment.digest.is_some());
        }
        let known: BTreeSet<String> = partitions
            .iter()
            .filter(|(_, state, _)| !state.segments.is_empty())
            .map(|(key, ..)| key.dir_name())
            .collect();
        for name in list(disk, ROOT)? {
            if !known.contains(&name) {
                remove_dir(disk, &format!("{ROOT}/{name}"))?;
            }
        }
        for (key, state, segment_bytes) in partitions {
            let below = going.get(key).copied().unwrap_or(0);
            let (tail, gone) = recover_files(&mut store, disk, *key, state, below)?;
            let segment_bytes = segment_bytes.unwrap_or(store.config.segment_bytes);
            let mut partition = Partition::recovered(*key, segment_bytes, state, tail);
            for segment in partition.segments.iter_mut().filter(|segment| gone.contains(&segment.state.base_offset)) {
                // What is still written to is made again when that happens, and its directory with it.
                (segment.given_up, segment.created) = (true, segment.state.sealed);
                partition.dir_made = false;
            }
            store.pending_bytes += partition.queued_bytes();
            if store.partitions.insert(*key, Box::new(partition)).is_some() {
                return Err(SegmentError::PartitionExists { key: *key });
            }
        }
        Ok(store)
    }
}

/// Bring one partition's directory in line with its state; returns the partial last block of the open segment, and the
/// segments that end at `below` or before and whose files are gone.
fn recover_files(
    store: &mut SegmentStore,
    disk: &mut impl Disk,
    key: PartitionKey,
    state: &PartitionState,
    below: u64,
) -> Result<(Vec<u8>, BTreeSet<u64>), SegmentError> {
    let mut known = BTreeSet::new();
    for segment in &state.segments {
        known.insert(log_name(segment.base_offset));
        if segment.sealed {
            known.insert(index_name(segment.base_offset));
        }
    }
    let mut gone = BTreeSet::new();
    if known.is_empty() {
        return Ok((Vec::new(), gone));
    }
    let names = list(disk, &key.dir())?;
    for name in names.iter().filter(|name| !known.contains(*name)) {
        remove_file(disk, format!("{}/{name}", key.dir()))?;
    }
    let mut tail = Vec::new();
    for segment in &state.segments {
        let path = key.log_path(segment.base_offset);
        if segment.end_offset <= below && !names.contains(&log_name(segment.base_offset)) {
            tracing::info!(%path, "a segment is gone already that the log removes");
            gone.insert(segment.base_offset);
            if !segment.sealed {
                tail = vec![0; (segment.len - block_floor(segment.len)) as usize];
            }
            continue;
        }
        let file = store.files.fresh();
        let found = open(disk, file, &path)?;
        if found != segment.len {
            run(disk, "set the length of", &path, Op::SetLen { file, len: segment.len })?;
        }
        if found < segment.len {
            tracing::error!(
                %path,
                expected = segment.len,
                found,
                "a segment is shorter than what was written to it: its end is damaged"
            );
        }
        if !segment.sealed {
            tail = read_tail(disk, file, &path, segment)?;
        }
        run(disk, "close", &path, Op::Close { file })?;
    }
    Ok((tail, gone))
}

/// Open a log file; gives its length. One that is gone comes back empty.
fn open(disk: &mut impl Disk, file: FileId, path: &str) -> Result<u64, SegmentError> {
    let open = || Op::Open { file, path: path.to_owned(), create: true, direct: true };
    let opened = match disk.run(open()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Its directory is gone as well, if not all of them are.
            let dir = path.rsplit_once('/').map_or(ROOT, |(dir, _)| dir);
            run(disk, "create", dir, Op::CreateDir { path: dir.to_owned() })?;
            run(disk, "sync", ROOT, Op::SyncDir { path: ROOT.to_owned() })?;
            run(disk, "sync", "the data directory", Op::SyncDir { path: String::new() })?;
            disk.run(open())
        }
        opened => opened,
    };
    match opened {
        Ok(Outcome::Opened { len }) => Ok(len),
        Ok(_) => Ok(0),
        Err(error) => Err(io_error("open", path, error)),
    }
}

fn read_tail(disk: &mut impl Disk, file: FileId, path: &str, segment: &SegmentState) -> Result<Vec<u8>, SegmentError> {
    let position = block_floor(segment.len);
    let len = (segment.len - position) as usize;
    if len == 0 {
        return Ok(Vec::new());
    }
    let read = Op::Read { file, position, len: block_ceil(len as u64) as usize };
    match disk.run(read) {
        Ok(Outcome::Read(bytes)) if bytes.len() >= len => Ok(bytes[..len].to_vec()),
        Err(error) => {
            tracing::error!(path, position, %error, "the end of a segment cannot be read: it is damaged; look at the disk");
            Ok(vec![0; len])
        }
        _ => Err(SegmentError::Damaged {
            file: path.to_owned(),
            position,
            expected: format!("{len} bytes"),
            found: "the end of the file".to_owned(),
        }),
    }
}

fn run(disk: &mut impl Disk, action: &'static str, path: &str, op: Op) -> Result<Outcome, SegmentError> {
    disk.run(op).map_err(|source| io_error(action, path, source))
}

fn list(disk: &mut impl Disk, path: &str) -> Result<Vec<String>, SegmentError> {
    match run(disk, "list", path, Op::List { path: path.to_owned() })? {
        Outcome::Names(names) => Ok(names),
        _ => Ok(Vec::new()),
    }
}

fn remove_file(disk: &mut impl Disk, path: String) -> Result<(), SegmentError> {
    tracing::info!(%path, "removing a file that no checkpoint names");
    run(disk, "remove", &path, Op::Remove { path: path.clone() }).map(|_| ())
}

fn remove_dir(disk: &mut impl Disk, path: &str) -> Result<(), SegmentError> {
    for name in list(disk, path)? {
        remove_file(disk, format!("{path}/{name}"))?;
    }
    run(disk, "remove", path, Op::RemoveDir { path: path.to_owned() }).map(|_| ())
}
