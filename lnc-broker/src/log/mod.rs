//! From a request to a committed entry, and back to who waits for it.

pub(crate) mod apply;
pub(crate) mod barriers;
pub(crate) mod clocks;
pub(crate) mod fair_queue;
pub(crate) mod flushes;
pub(crate) mod in_flight;
pub(crate) mod intake;
pub(crate) mod pace;
pub(crate) mod proposals;
pub(crate) mod window;
