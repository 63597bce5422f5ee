//! The consensus core of LANCE: Raft as a value. Messages and ticks go in, effects come out as a [`Ready`].
//!
//! The crate knows no clock, thread, file, socket or source of entropy. Its driver (the shard) feeds [`Raft`] with
//! [`Raft::step`], [`Raft::tick`], [`Raft::propose`], [`Raft::on_hard_state_durable`] and [`Raft::on_durable`], then takes
//! one [`Ready`] per turn, writes its hard state and entries to the journal and sends its messages. The same inputs in the
//! same order give the same outputs, always.
//!
//! # What the driver owes the core
//!
//! 1. Write every [`Ready`]'s `hard_state` and `entries` to stable storage in the order the Readies were taken.
//!    Several may be in flight at once.
//! 2. Hold a Ready's `messages_after_durable` until its own and all earlier hard states and entries are durable.
//!    `messages` may leave at once.
//! 3. Report durability with [`Raft::on_hard_state_durable`] and [`Raft::on_durable`], in order; a call may stand for
//!    several Readies.
//! 4. Apply `committed` in order. These entries are committed and durable here, so a restart finds them again.
//! 5. Answer each [`EntriesWanted`] once, with [`Raft::entries_loaded`], [`Raft::entries_failed`] or
//!    [`Raft::entries_unavailable`].
//! 6. After a failed write or sync, throw the core away: its memory is ahead of the disk.
//!
//! A node that needs more than entries ([`Ready::state_needed`]) gets the state of the group outside of this crate, and is
//! built anew from what is then on its disk.
//!
//! The network may lose, delay, duplicate and reorder messages at will; it must not invent them.
#![forbid(unsafe_code)]

mod config;
mod configuration;
mod election;
mod log;
mod membership;
mod message;
mod progress;
mod raft;
mod read_index;
mod ready;
mod replication;
mod rng;

pub use config::{Config, ConfigError, Restored};
pub use configuration::{Configuration, ConfigurationError};
pub use message::{
    AppendReply, Body, Channel, Entry, EntryKind, HardState, Index, MAX_INDEX, MAX_TERM, Message, NodeId, Term,
    UnknownEntryKind, is_believable,
};
pub use progress::{Progress, ProgressState};
pub use raft::{ProposeError, Raft, Role, Status, StepError, TransferError};
pub use ready::{EntriesWanted, ReadState, Ready, RoleChange};
