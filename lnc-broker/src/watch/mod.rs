//! What is shown of a broker: metrics, status, traces, and its state to observers. Nothing that it does depends on it.

pub mod control;
pub(crate) mod event;
pub(crate) mod gauges;
pub mod inspect;
pub mod status;
pub mod trace;
