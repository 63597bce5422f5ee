//! The shard: many Raft groups on one journal, and the peer channels that connect shards.
//!
//! [`Shard`] is deterministic: it is driven by ticks, messages and disk completions and says what must leave.
//! [`peers`] is the thin driver around it that owns sockets. [`formation`] decides who may talk to whom.
#![forbid(unsafe_code)]

pub mod formation;
mod group;
pub mod notice;
pub mod peers;
mod repair;
mod shard;
mod strangers;
pub mod trace;
pub mod transfer;
mod twins;
pub mod wire;

pub use shard::{Found, GroupStart, Outputs, Scrubbed, Shard, ShardConfig, ShardError};
pub use twins::TELL_AGAIN_US;
