//! The kinds of metric that the catalogue may use, and how each is built from its definition.

use prometheus::core::{AtomicU64, GenericGauge, GenericGaugeVec};
use prometheus::{HistogramOpts, IntCounter, IntCounterVec, Opts, Registry};

/// What every metric name starts with.
pub const PREFIX: &str = "lance_";

/// A count that only grows.
pub type Counter = IntCounter;
/// A family of counters, told apart by labels.
pub type CounterVec = IntCounterVec;
/// A value that goes up and down and is never negative.
pub type Gauge = GenericGauge<AtomicU64>;
/// A family of gauges, told apart by labels.
pub type GaugeVec = GenericGaugeVec<AtomicU64>;
/// A value with fractions that goes up and down.
pub type SecondsGauge = prometheus::Gauge;
/// A family of gauges with fractions, which may be negative.
pub type SignedGaugeVec = prometheus::GaugeVec;
/// A distribution, counted in fixed buckets.
pub type Histogram = prometheus::Histogram;

/// Which kind of metric a definition makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A count that only grows; its name ends in `_total`.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// A distribution; its name ends in its unit.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One line of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// What it is about; lines of one section stand together.
    pub section: &'static str,
    /// Full name in the exposition, with [`PREFIX`].
    pub name: &'static str,
    /// One sentence for people who read the exposition.
    pub help: &'static str,
    /// Kind of metric.
    pub kind: Kind,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets, in its unit; empty for the other kinds.
    pub buckets: &'static [f64],
}

/// How a field of the catalogue comes to life.
pub(crate) trait Instrument: Sized {
    const KIND: Kind;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self>;

    /// Makes the metric visible under placeholder label values: a family without children is not rendered.
    #[cfg(test)]
    fn touch(&self, definition: &Definition);
}

fn opts(definition: &Definition) -> Opts {
    Opts::new(definition.name, definition.help)
}

impl Instrument for Counter {
    const KIND: Kind = Kind::Counter;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let counter = IntCounter::with_opts(opts(definition))?;
        registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }

    #[cfg(test)]
    fn touch(&self, _: &Definition) {
        self.inc();
    }
}

impl Instrument for CounterVec {
    const KIND: Kind = Kind::Counter;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let family = IntCounterVec::new(opts(definition), definition.labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    #[cfg(test)]
    fn touch(&self, definition: &Definition) {
        self.with_label_values(&vec!["x"; definition.labels.len()]).inc();
    }
}

impl Instrument for Gauge {
    const KIND: Kind = Kind::Gauge;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let gauge = Gauge::with_opts(opts(definition))?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    #[cfg(test)]
    fn touch(&self, _: &Definition) {
        self.set(1);
    }
}

impl Instrument for GaugeVec {
    const KIND: Kind = Kind::Gauge;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let family = GaugeVec::new(opts(definition), definition.labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    #[cfg(test)]
    fn touch(&self, definition: &Definition) {
        self.with_label_values(&vec!["x"; definition.labels.len()]).set(1);
    }
}

impl Instrument for SecondsGauge {
    const KIND: Kind = Kind::Gauge;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let gauge = SecondsGauge::with_opts(opts(definition))?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }

    #[cfg(test)]
    fn touch(&self, _: &Definition) {
        self.set(1.0);
    }
}

impl Instrument for SignedGaugeVec {
    const KIND: Kind = Kind::Gauge;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let family = SignedGaugeVec::new(opts(definition), definition.labels)?;
        registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    #[cfg(test)]
    fn touch(&self, definition: &Definition) {
        self.with_label_values(&vec!["x"; definition.labels.len()]).set(1.0);
    }
}

impl Instrument for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn create(definition: &Definition, registry: &Registry) -> prometheus::Result<Self> {
        let opts = HistogramOpts::from(opts(definition)).buckets(definition.buckets.to_vec());
        let histogram = Histogram::with_opts(opts)?;
        registry.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }

    #[cfg(test)]
    fn touch(&self, _: &Definition) {
        self.observe(1.0);
    }
}
