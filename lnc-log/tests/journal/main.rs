//! Tests of the journal and of checkpoints against a disk that crashes, lies and fails.

mod checkpoint;
mod corruption;
mod covered;
mod crash;
mod failures;
mod files;
mod harness;
mod lost;
mod model;
