//! Fuzz targets: what every decoder of bytes from outside must hold for any bytes. A target is a function here and
//! three lines in `targets/`, so that seeds and findings also run as an ordinary test (`tests/seeds.rs`).
//!
//! Checksums would keep a fuzzer out of what lies behind them, so most targets take their input twice: as it is, and
//! with lengths and checksums put right.
#![forbid(unsafe_code)]

pub mod batches;
pub mod checkpoint;
pub mod config;
pub mod frames;
pub mod input;
pub mod journal;
pub mod peers;
pub mod segments;
pub mod states;

/// A target by its name, for what runs all of them.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("batches", batches::run),
    ("checkpoint", checkpoint::run),
    ("config", config::run),
    ("frames", frames::run),
    ("journal", journal::run),
    ("peers", peers::run),
    ("segments", segments::run),
    ("states", states::run),
];
