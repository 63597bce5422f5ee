//! The shard: many Raft groups on one journal, and the peer channels
#![forbid(unsafe_code)]
