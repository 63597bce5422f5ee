//! The verifier of LANCE: it runs the code that runs in production, in a world where everything goes wrong. [`sim`] makes
//! that world up, [`live`] does it to processes, disks and networks of this machine. Records are checked alike in both.
#![forbid(unsafe_code)]

pub mod cli;
#[cfg(all(test, not(feature = "mutations")))]
#[path = "../../lance/tests/documents/mod.rs"]
mod documents;
pub mod linearizability;
pub mod live;
mod records;
pub mod sim;
