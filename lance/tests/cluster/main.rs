//! Promises of a cluster, tested on real processes: `lance server` on loopback, killed, hung, wiped, filled up
//! and without power.
//!
//! Tests with a cluster run one at a time: three nodes and their load are enough for a small machine.

mod admission;
mod damage;
mod drain;
mod failover;
mod files;
mod forwarding;
mod full_disk;
mod hostile;
mod idempotence;
mod lagging;
mod logging;
mod lost_files;
mod members;
mod memory;
mod metrics;
mod power_loss;
mod retention;
mod slow_readers;
mod soak;
mod startup;
mod status;
mod support;
#[cfg(feature = "otel")]
mod traces;
