//! The metric catalogue and its Prometheus exposition
#![forbid(unsafe_code)]
