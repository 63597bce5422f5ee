//! The disk: the journal shared by all groups of a shard, per-partition segments, checkpoints, and the backends that
//! touch files. Nothing outside this crate opens a file of the data directory.
#![deny(unsafe_code)]

mod advice;
pub mod checkpoint;
pub mod data_dir;
pub mod disk;
pub mod incoming;
pub mod journal;
mod owner;
pub mod segment;
mod spare;

pub use advice::RUN_BOOK;
pub use owner::FileOwner;
