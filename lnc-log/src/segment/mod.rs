//! Segments: the committed records of every partition, in files that are byte-identical on all replicas.
//!
//! ```text
//! segments/<topic id>-<partition>/<base offset>.log     record batches, one after the other
//!                                 <base offset>.index   sparse index of a sealed segment; derived, rebuilt if bad
//! ```
//!
//! Only committed batches come in, so nothing is ever taken back: a partition grows at the end (`append`) and loses
//! whole segments at the front (`trim`). Appended batches wait in memory, since the journal holds them safe. They reach
//! the files in large aligned blocks ([`SegmentStore::write_out`]) and are on stable storage once a checkpoint is done
//! ([`SegmentStore::begin_checkpoint`]). What a checkpoint covers is described by one [`PartitionState`] per
//! partition, which the owner stores; [`SegmentStore::recover`] cuts the files back to it.
//!
//! ```text
//!            log_start_offset                 written_offset      log_end_offset
//!                   |                               |                   |
//!   removed ........|===== sealed =====|=== active =|=== in memory =====|
//! ```
//!
//! Invariants:
//! - Where a segment rolls depends on the sequence of appends and trims alone, never on when bytes were written.
//! - A file named by a checkpoint holds at least the bytes that the checkpoint says, until a later checkpoint that no
//!   longer names it is durable.
//! - A file that lost bytes, or is gone, is made as long as it should be: what is missing is found as damage, and can be
//!   repaired ([`SegmentStore::repair`]).
//! - Bytes are served only after their CRC-32C, the continuity of their offsets and their leader epoch were checked.
//!   The first 16 bytes of a batch lie outside its CRC: offsets must follow on one another, the length is implied by
//!   the CRC, and the epoch must be the one that [`SegmentState::epochs`] tells.
//! - They are those that were written: a [`Digest`] of them is in the [`PartitionState`] for each segment, and in the index
//!   for each stretch ([`SegmentStore::keep_digests`]).

use crate::advice::Advised;
use crate::disk::BLOCK;
use bytes::Bytes;
use lnc_protocol::batch::BatchHeader;
use std::fmt;
use std::io;

mod digest;
mod files;
mod index;
mod lane;
mod learn;
mod mend;
mod partition;
mod read;
mod recover;
mod repair;
mod state;
mod store;
mod walk;

pub use digest::Digest;
pub use index::IndexEntry;
pub use read::{Batches, DamagedBatch, ReadDone, Stretch};
pub use state::{EpochStart, PartitionState, SegmentState, StateError};
pub use store::{CheckpointId, Mending, SegmentStore, TimestampBound};

/// The directory of all segments, relative to the data directory.
const ROOT: &str = "segments";

/// The cluster's format from which on checkpoints and indexes say which batches a segment has.
pub const DIGEST_FORMAT: u32 = 3;

/// Bytes of a batch that the broker stamps: base offset, batch length, leader epoch.
const PREFIX_LEN: usize = 16;

/// Which partition: of which topic, and which of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey {
    /// The topic's id, never used twice.
    pub topic_id: u64,
    /// Number of the partition within the topic, from 0.
    pub partition: u32,
}

impl PartitionKey {
    fn dir_name(&self) -> String {
        format!("{}-{}", self.topic_id, self.partition)
    }

    fn dir(&self) -> String {
        format!("{ROOT}/{}-{}", self.topic_id, self.partition)
    }

    /// Where the segment lies that begins at this offset, relative to the data directory.
    pub fn log_path(&self, base_offset: u64) -> String {
        format!("{}/{}", self.dir(), log_name(base_offset))
    }

    fn index_path(&self, base_offset: u64) -> String {
        format!("{}/{}", self.dir(), index_name(base_offset))
    }

    /// A file that is about to take the place of this one. If it is still there at a start, it goes.
    fn new_path(path: &str) -> String {
        format!("{path}.new")
    }
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic_id, self.partition)
    }
}

fn log_name(base_offset: u64) -> String {
    format!("{base_offset:020}.log")
}

fn index_name(base_offset: u64) -> String {
    format!("{base_offset:020}.index")
}

/// Sizes and limits of a [`SegmentStore`].
#[derive(Clone, Debug)]
pub struct SegmentConfig {
    /// A segment is sealed before it would grow beyond this many bytes. Larger: fewer files; smaller: retention frees
    /// space in finer steps. The same on all replicas.
    pub segment_bytes: u64,
    /// A segment is sealed when a batch arrives this many milliseconds after its first one. `None`: never for age.
    /// The same on all replicas.
    pub roll_ms: Option<u64>,
    /// Bytes between entries of the sparse index; also about what a read may have to skip.
    pub index_interval_bytes: u64,
    /// Bytes of a partition that are worth a write of their own, and the largest single write; a multiple of
    /// [`BLOCK`].
    pub write_block: usize,
    /// Files held open. Files in use may exceed it.
    pub max_open_files: usize,
    /// Indexes of sealed segments held in memory.
    pub max_cached_indexes: usize,
    /// Partitions written or synced at the same time. A flush of the journal waits for what the disk was asked for before
    /// it, so they are few.
    pub max_lanes: usize,
}

impl Default for SegmentConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 256 << 20,
            roll_ms: None,
            index_interval_bytes: 64 << 10,
            write_block: 1 << 20,
            max_open_files: 512,
            max_cached_indexes: 128,
            max_lanes: 8,
        }
    }
}

/// What may still be removed for its age. The last segment may exceed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes; nothing is left at 0 and below.
    pub bytes: i64,
    /// Segments.
    pub segments: u64,
}

impl Allowance {
    /// No bound.
    pub const UNLIMITED: Self = Self { bytes: i64::MAX, segments: u64::MAX };

    /// Take a segment of so many bytes off it, unless nothing is left.
    pub fn take(&mut self, len: u64) -> bool {
        let left = self.bytes > 0 && self.segments > 0;
        if left {
            self.bytes = self.bytes.saturating_sub_unsigned(len);
            self.segments -= 1;
        }
        left
    }
}

/// A committed batch with its place in the partition.
#[derive(Clone, Debug)]
pub struct StoredBatch {
    /// Offset of its first record.
    pub base_offset: u64,
    /// Offset of its last record.
    pub last_offset: u64,
    /// Latest timestamp of its records, in milliseconds.
    pub max_timestamp: i64,
    /// When the leader appended it, in milliseconds.
    pub append_ms: u64,
    /// Its first 16 bytes as they are stored: base offset, batch length, leader epoch.
    pub prefix: [u8; PREFIX_LEN],
    /// The whole batch as received; its first 16 bytes are replaced by `prefix`.
    pub raw: Bytes,
}

impl StoredBatch {
    /// Stored length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a batch is never empty")]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// The stored bytes, in two pieces.
    pub fn pieces(&self) -> [&[u8]; 2] {
        [&self.prefix, self.raw.get(PREFIX_LEN..).unwrap_or_default()]
    }

    /// The leader epoch in the prefix.
    fn epoch(&self) -> i32 {
        let [.., a, b, c, d] = self.prefix;
        i32::from_be_bytes([a, b, c, d])
    }

    /// The digest of what comes before it, with this batch.
    fn digest(&self, before: Digest) -> Digest {
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u32::from_be_bytes)
        };
        let (length, crc) = (word(&self.prefix, 8).unwrap_or_default(), word(&self.raw, 17).unwrap_or_default());
        before.with_fields(self.base_offset, length, self.epoch(), crc)
    }
}

/// A place where a batch begins, and the digest of all batches before it in the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    position: u64,
    offset: u64,
    digest: Digest,
}

impl Place {
    /// The beginning of a segment.
    fn start(base_offset: u64) -> Self {
        Self { position: 0, offset: base_offset, digest: Digest::default() }
    }

    /// The place behind a batch of so many bytes.
    fn after(self, header: &BatchHeader, len: usize) -> Self {
        let offset = self.offset + u64::from(header.last_offset_delta) + 1;
        Self { position: self.position + len as u64, offset, digest: self.digest.with(header) }
    }
}

/// What can go wrong with segments.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The partition does not exist.
    #[error("partition {key} does not exist")]
    UnknownPartition {
        /// The partition.
        key: PartitionKey,
    },
    /// The partition exists already.
    #[error("partition {key} exists already")]
    PartitionExists {
        /// The partition.
        key: PartitionKey,
    },
    /// A batch does not continue its partition.
    #[error(
        "partition {key}: a batch from offset {expected} was expected, one of offsets {base_offset} to {last_offset} \
         came"
    )]
    OutOfOrder {
        /// The partition.
        key: PartitionKey,
        /// Its log end offset.
        expected: u64,
        /// The batch's first offset.
        base_offset: u64,
        /// The batch's last offset.
        last_offset: u64,
    },
    /// A batch is too short to be one.
    #[error("partition {key}: a batch of {len} bytes at offset {base_offset}, shorter than a batch header")]
    InvalidBatch {
        /// The partition.
        key: PartitionKey,
        /// The batch's first offset.
        base_offset: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// The offset is not in the files: removed, not written yet, or not existing yet.
    #[error(
        "partition {key}: offset {offset} is not in the files, which hold {log_start_offset} up to {written_offset}"
    )]
    OutOfRange {
        /// The partition.
        key: PartitionKey,
        /// The offset asked for.
        offset: u64,
        /// The first offset that can be read.
        log_start_offset: u64,
        /// The offset after the last that can be read.
        written_offset: u64,
    },
    /// The segment was removed everywhere; this replica has not come to that place of the log yet.
    #[error(
        "partition {key}: the records from offset {base_offset} up to {end_offset} were deleted, and their file is gone from \
         this node for want of space, though it has yet to take in the deletion"
    )]
    GivenUp {
        /// The partition.
        key: PartitionKey,
        /// The first offset of the segment.
        base_offset: u64,
        /// The offset after its last.
        end_offset: u64,
    },
    /// A file does not hold what was written to it.
    #[error("{file} is damaged at position {position}: expected {expected}, found {found}")]
    Damaged {
        /// The file, relative to the data directory.
        file: String,
        /// Byte position.
        position: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A system call failed.
    #[error("cannot {action} {file}: {}", Advised(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory, relative to the data directory.
        file: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The state to recover from contradicts itself.
    #[error("state of partition {key}: {source}")]
    State {
        /// The partition.
        key: PartitionKey,
        /// What is wrong.
        source: StateError,
    },
}

impl SegmentError {
    /// Whether the same request may succeed later without anyone repairing anything.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}

fn io_error(action: &'static str, file: impl Into<String>, source: io::Error) -> SegmentError {
    SegmentError::Io { action, file: file.into(), source }
}

/// Start of the block that holds `position`.
fn block_floor(position: u64) -> u64 {
    position - position % BLOCK as u64
}

/// End of the blocks that hold everything below `position`.
fn block_ceil(position: u64) -> u64 {
    position.next_multiple_of(BLOCK as u64)
}
