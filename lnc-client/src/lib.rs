//! The Rust client for LANCE: Client, Producer, Consumer, admin
#![forbid(unsafe_code)]
