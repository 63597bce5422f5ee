//! Why a broker must stop.

use crate::command;
use lnc_replication::ShardError;
use thiserror::Error;

/// Why the broker must stop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Consensus or the journal failed.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Segment files failed.
    #[error(transparent)]
    Segments(#[from] lnc_log::segment::SegmentError),
    /// A checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] lnc_log::checkpoint::CheckpointError),
    /// State that came from a peer cannot be taken over.
    #[error(transparent)]
    Incoming(#[from] lnc_log::incoming::IncomingError),
    /// A committed entry or a checkpoint is not understood.
    #[error("group {group}: {error}")]
    State {
        /// The group.
        group: u32,
        /// What is wrong.
        error: command::CommandError,
    },
    /// The configuration has fewer data groups than topics use.
    #[error(
        "cluster.data_groups is {configured}, but stored topics are placed over {needed} data groups: set it to at \
         least {needed}"
    )]
    TooFewGroups {
        /// The configured number.
        configured: u32,
        /// The number in use.
        needed: u32,
    },
}
