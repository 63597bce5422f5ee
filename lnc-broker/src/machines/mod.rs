//! Replicated state: what each replica makes of the log, the same everywhere.

pub mod catalog;
pub mod command;
pub mod members;
pub mod partitions;
