//! The budget of bytes that requests take from the moment they are accepted until they are answered.

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// What requests have taken and not given back: each gives back what it took, once.
    bytes: usize,
    limit: usize,
}

impl InFlight {
    /// A budget of so many bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { bytes: 0, limit }
    }

    /// Bytes that are taken.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole budget, in bytes.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether there is room for so many bytes more.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.bytes + bytes <= self.limit
    }

    /// A request was accepted.
    pub(crate) fn take(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    /// A request is over.
    pub(crate) fn give_back(&mut self, bytes: usize) {
        assert!(bytes <= self.bytes, "a request gives {bytes} bytes back, of {} that all have taken", self.bytes);
        self.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_not_there_for_others() {
        let mut budget = InFlight::new(10);
        budget.take(8);
        assert!(budget.has_room(2) && !budget.has_room(3));
        budget.give_back(8);
        assert!(budget.has_room(10));
    }

    #[test]
    #[should_panic(expected = "gives 9 bytes back, of 8")]
    fn nobody_gives_back_what_was_not_taken() {
        let mut budget = InFlight::new(10);
        budget.take(8);
        budget.give_back(9);
    }
}
