//! What a broker is told of its surroundings when it starts.

use crate::members::Addresses;
use crate::{ProducerLimits, Sequences, control};
use lnc_raft::NodeId;
use std::collections::BTreeMap;

/// What a broker needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster_id: u128,
    /// How the configured nodes are reached, by number, this one included. What is said here goes before what the
    /// catalog remembers.
    pub nodes: BTreeMap<u64, Addresses>,
    /// The members that this node knows from its data directory, with their incarnations.
    pub members: BTreeMap<NodeId, u64>,
    /// How new that list is.
    pub members_version: u64,
    /// The founders of the cluster with their incarnations.
    pub founders: BTreeMap<NodeId, u64>,
    /// Data groups over which new topics are placed.
    pub data_groups: u32,
    /// Bytes of requests that may be under way.
    pub memory_bytes: usize,
    /// Bytes of the tail cache.
    pub tail_cache_bytes: usize,
    /// Largest record batch, in bytes.
    pub max_batch_bytes: usize,
    /// Largest frame, in bytes.
    pub max_frame_bytes: usize,
    /// Most topics.
    pub max_topics: usize,
    /// Most partitions of a topic.
    pub max_partitions_per_topic: u32,
    /// Journal bytes between checkpoints.
    pub checkpoint_bytes: u64,
    /// Bytes of the state that are encoded for a checkpoint in a turn, more by a partition at most.
    pub checkpoint_piece_bytes: usize,
    /// Bytes per second that are given to nodes that fetch the state of a group.
    pub transfer_bytes_per_second: u64,
    /// Time of a sync of the journal, in microseconds, beyond which a leader hands over.
    pub slow_sync_us: u64,
    /// Bytes of the disk that are kept for what is not records.
    pub reserve_bytes: u64,
    /// Bytes of the journal and of segments that the scrub reads per second; 0: it does not.
    pub scrub_bytes_per_second: u64,
    /// Shortest time between the beginnings of two passes of the scrub, in microseconds.
    pub scrub_interval_us: u64,
    /// Segment size of topics that do not set one; fixed for a partition when it is made.
    pub segment_bytes: u64,
    /// How many idempotent producers are remembered.
    pub producer_limits: ProducerLimits,
    /// The sequence numbers that they use.
    pub sequences: Sequences,
    /// Furthest that a clock may be from those of a majority, in milliseconds, to be believed.
    pub max_clock_skew_ms: u64,
    /// How long the control path may take.
    pub budgets: control::Budgets,
}
