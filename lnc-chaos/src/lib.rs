//! The verifier of LANCE: it runs the code that runs in production, in a world where everything goes wrong.
#![forbid(unsafe_code)]

pub mod cli;
pub mod linearizability;
pub mod live;
pub mod sim;
