//! The LANCE broker daemon and command line
#![forbid(unsafe_code)]

pub mod config;
pub mod http;
