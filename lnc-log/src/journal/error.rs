//! What can go wrong with the journal.

use super::file_path;
use crate::FileOwner;
use crate::advice::Advised;
use crate::disk::EIO;
use std::io;

/// A failure of the journal, with the file and position that it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Bytes that were once durable are not what was written. Nothing is cut: the entries must come from a peer.
    #[error("{} is damaged at position {position}: expected {expected}, found {found}", file_path(*file))]
    Damaged {
        /// Number of the file.
        file: u64,
        /// Where in the file, in bytes.
        position: u64,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file in the middle of the journal is gone.
    #[error("{} is missing: the journal cannot be read past it", file_path(*file))]
    MissingFile {
        /// Number of the file.
        file: u64,
    },
    /// The file was written by a version of LANCE with another journal format.
    #[error("{} holds format version {found} at position {position}, which this version cannot read", file_path(*file))]
    UnsupportedVersion {
        /// Number of the file.
        file: u64,
        /// Where in the file, in bytes.
        position: u64,
        /// The version found.
        found: u16,
    },
    /// The file belongs to another node.
    #[error(
        "{} belongs to the journal {found:#018x}, this node's is {expected:#018x}: it is a file of another node, or of an \
         earlier life of this one; put the right one back, or empty the data directory, and the cluster admits the node as \
         a new member",
        file_path(*file)
    )]
    Foreign {
        /// Number of the file.
        file: u64,
        /// This journal's identity.
        expected: u64,
        /// The identity found.
        found: u64,
    },
    /// The mark, which says what the journal must hold and how this node voted, is not there.
    #[error(
        "{path} is lost ({found}): what the journal must hold, and how this node voted, is not known without it; restore \
         the file, or empty the data directory, and the cluster admits the node as a new member"
    )]
    NoMark {
        /// The file.
        path: &'static str,
        /// What is there instead.
        found: String,
    },
    /// Nothing is left of a journal that was there.
    #[error(
        "{path} is empty, but this data directory has been in use: the node's votes are lost; restore the directory, or \
         empty the whole data directory, and the cluster admits the node as a new member"
    )]
    Gone {
        /// The directory.
        path: &'static str,
    },
    /// A file belongs to another member.
    #[error(
        "{path} was written by {found}, but this is {expected}: a file of another node, or of an earlier life of this one, \
         is in this data directory; put the right one back"
    )]
    OtherOwner {
        /// The file.
        path: String,
        /// This member.
        expected: FileOwner,
        /// Whose it is.
        found: FileOwner,
    },
    /// An operation that changes the disk failed. What it left is unknown: the node must stop and recover.
    #[error("cannot {operation} {path}: {}", Advised(source))]
    WriteFailed {
        /// What was attempted.
        operation: &'static str,
        /// On which file or directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A read failed.
    #[error("cannot read {path}: {}", Advised(source))]
    ReadFailed {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// A read was asked for records that are not on stable storage yet.
    #[error("position {position} of {} is not durable yet", file_path(*file))]
    NotDurable {
        /// Number of the file.
        file: u64,
        /// Where in the file, in bytes.
        position: u64,
    },
    /// A read was asked for records whose file has been released.
    #[error("{} has been released", file_path(*file))]
    Released {
        /// Number of the file.
        file: u64,
    },
    /// A read was asked for no records at all.
    #[error("a journal read names no records")]
    EmptyRead,
}

impl JournalError {
    /// The file that is damaged or gone, if that is what is wrong.
    pub(super) fn damaged_file(&self) -> Option<u64> {
        match self {
            Self::Damaged { file, .. } | Self::MissingFile { file } => Some(*file),
            _ => None,
        }
    }

    /// Whether the same call may succeed later. Everything else stops the node or needs repair.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::NotDurable { .. } | Self::ReadFailed { .. }) && !self.is_unreadable()
    }

    /// Whether the medium does not give the bytes: they are as good as damaged.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::ReadFailed { source, .. } if source.raw_os_error() == Some(EIO))
    }
}
