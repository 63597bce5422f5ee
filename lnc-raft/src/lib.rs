//! The consensus core: messages and ticks in, effects out
#![forbid(unsafe_code)]
