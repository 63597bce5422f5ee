//! The LANCE broker daemon and command line
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod dev;
#[cfg(test)]
#[path = "../tests/documents/mod.rs"]
mod documents;
pub mod foreign;
mod forming;
pub mod gateway;
pub mod heard;
pub mod http;
mod log;
pub mod manual;
#[cfg(feature = "otel")]
mod otel;
pub mod server;
pub mod status;
mod systemd;
mod worst;
