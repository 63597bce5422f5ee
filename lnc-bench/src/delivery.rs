//! Where acknowledgements meet deliveries: how long after the acknowledgement of a request a consumer has its records.

use hdrhistogram::Histogram;

use crate::measure::{Recorder, Window, histogram};

/// Requests that may wait for the other of their two events, a power of two. What is older is forgotten.
const WAITING: usize = 1 << 18;

/// The first of a request's two events.
#[derive(Clone, Copy, Default)]
struct First {
    id: u64,
    at: u64,
    acknowledged: bool,
}

/// The deliveries of a run.
pub(crate) struct Deliveries {
    window: Window,
    next_id: u64,
    waiting: Vec<First>,
    /// Deliveries, with the latency from when the request was due.
    pub(crate) recorder: Recorder,
    /// From the acknowledgement to the delivery, in nanoseconds; 0 if the delivery came first.
    pub(crate) after_acknowledgement: Histogram<u64>,
    /// Records acknowledged and delivered so far, in and out of the window.
    pub(crate) records_acknowledged: u64,
    pub(crate) records_delivered: u64,
}

impl Deliveries {
    pub(crate) fn new(window: Window) -> Self {
        Deliveries {
            window,
            // Nothing has the id 0.
            next_id: 1,
            waiting: vec![First::default(); WAITING],
            recorder: Recorder::new(window),
            after_acknowledgement: histogram(),
            records_acknowledged: 0,
            records_delivered: 0,
        }
    }

    /// A number for the next request.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// A request was acknowledged.
    pub(crate) fn acknowledged(&mut self, id: u64, at: u64, records: u32) {
        self.records_acknowledged += u64::from(records);
        if let Some(delivered) = self.meet(First { id, at, acknowledged: true }) {
            self.both(at, delivered);
        }
    }

    /// The records of a request that was due at `due` were delivered.
    pub(crate) fn delivered(&mut self, id: u64, due: u64, at: u64, records: u32, bytes: u32) {
        self.records_delivered += u64::from(records);
        self.recorder.acknowledged(due, at, records, bytes);
        if let Some(acknowledged) = self.meet(First { id, at, acknowledged: false }) {
            self.both(acknowledged, at);
        }
    }

    fn both(&mut self, acknowledged: u64, delivered: u64) {
        if self.window.contains(acknowledged) {
            self.after_acknowledgement.saturating_record(delivered.saturating_sub(acknowledged));
        }
    }

    /// When the other event of the request happened, if it has.
    fn meet(&mut self, event: First) -> Option<u64> {
        let place = &mut self.waiting[event.id as usize % WAITING];
        if place.id == event.id && place.acknowledged != event.acknowledged {
            return Some(std::mem::take(place).at);
        }
        *place = event;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn each_request_is_counted_once_whichever_event_comes_first() {
        let mut deliveries = Deliveries::new(Window { from: 0, until: 1000 * MS });
        let (one, two) = (deliveries.next_id(), deliveries.next_id());
        deliveries.acknowledged(one, 10 * MS, 1);
        deliveries.delivered(two, 5 * MS, 11 * MS, 1, 100);
        assert_eq!(deliveries.after_acknowledgement.len(), 0);
        deliveries.delivered(one, 5 * MS, 13 * MS, 1, 100);
        deliveries.acknowledged(two, 12 * MS, 1);
        assert_eq!(deliveries.after_acknowledgement.len(), 2);
        assert!(deliveries.after_acknowledgement.max().abs_diff(3 * MS) < MS / 100);
        assert_eq!(deliveries.after_acknowledgement.min(), 0, "delivered before the acknowledgement was read");
        assert_eq!((deliveries.records_acknowledged, deliveries.records_delivered), (2, 2));
        assert!(deliveries.recorder.latencies.max().abs_diff(8 * MS) < MS / 100);
    }

    #[test]
    fn what_is_acknowledged_within_the_measured_time_counts_whenever_it_is_delivered() {
        let mut deliveries = Deliveries::new(Window { from: 100 * MS, until: 200 * MS });
        // When it was acknowledged and delivered, in milliseconds, and whether it counts.
        let requests = [
            ((90, 95), false),
            ((99, 150), false),
            ((100, 100), true),
            ((150, 140), true),
            ((199, 900), true),
            ((200, 201), false),
            ((900, 150), false),
        ];
        let mut counted = 0;
        for (n, ((acknowledged, delivered), counts)) in requests.into_iter().enumerate() {
            let id = deliveries.next_id();
            let due = acknowledged.min(delivered) - 1;
            if acknowledged <= delivered {
                deliveries.acknowledged(id, acknowledged * MS, 2);
                deliveries.delivered(id, due * MS, delivered * MS, 2, 10);
            } else {
                deliveries.delivered(id, due * MS, delivered * MS, 2, 10);
                deliveries.acknowledged(id, acknowledged * MS, 2);
            }
            counted += u64::from(counts);
            assert_eq!(deliveries.after_acknowledgement.len(), counted, "request {n}");
        }
        assert_eq!((deliveries.records_acknowledged, deliveries.records_delivered), (14, 14));
    }

    #[test]
    fn a_request_that_was_forgotten_does_not_meet_another() {
        let mut deliveries = Deliveries::new(Window { from: 0, until: 1000 * MS });
        deliveries.acknowledged(1, MS, 1);
        deliveries.acknowledged(1 + WAITING as u64, 2 * MS, 1);
        deliveries.delivered(1, 0, 3 * MS, 1, 1);
        assert_eq!(deliveries.after_acknowledgement.len(), 0);
    }
}
