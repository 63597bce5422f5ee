//! The metric catalogue and its Prometheus exposition.
//!
//! Every metric of the project is one line of the table in [`catalogue`]: field, kind, labels, help. The table makes the
//! fields of [`Metrics`], registers them, and documents them, so a name cannot exist twice or drift from its text. The
//! handles are atomics behind an `Arc`: whoever counts on a hot path counts through a handle that was looked up once
//! (see [`GroupMetrics`]), and never looks up a label there.
#![forbid(unsafe_code)]

mod catalogue;
mod document;
mod group;
mod instrument;
mod topics;

pub use catalogue::{CATALOGUE, Metrics};
pub use document::document;
pub use group::{GroupMetrics, PeerFigures, Role};
pub use instrument::{
    Counter, CounterVec, Definition, Gauge, GaugeVec, Histogram, Kind, PREFIX, SecondsGauge, SignedGaugeVec,
};
pub use topics::{TOPIC_LABELS, TopicFigures, TopicMetrics};
