//! What the tests share: nodes as processes, clusters of three, the wire by hand, disks that lose power, and waiting with a deadline.

pub(crate) mod cluster;
pub(crate) mod node;
pub(crate) mod stream;
pub(crate) mod volume;
pub(crate) mod wire;

use std::time::{Duration, Instant};

/// Longest time for anything to happen, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at something that is about to happen.
const POLL: Duration = Duration::from_millis(10);

/// Looks again and again until there is something; panics with `what` once [`PATIENCE`] is over.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// [`eventually`], with a time limit of its own.
#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Compares long bytes; where they differ, says where instead of printing them.
#[track_caller]
pub(crate) fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    if found != expected {
        let at = found.iter().zip(expected).take_while(|(one, two)| one == two).count();
        let (found_len, len) = (found.len(), expected.len());
        panic!("{what}: {found_len} bytes instead of {len}, the first {at} of them as expected");
    }
}

/// Lines of every kind, about `bytes` bytes of them: text of this repository, empty lines, bytes that are no text,
/// carriage returns, numbered lines, lines of 100 KB, and a last line without a newline.
pub(crate) fn lines_of_every_kind(bytes: usize) -> Vec<u8> {
    const TEXT: &str = concat!(include_str!("mod.rs"), include_str!("../../../src/server.rs"));
    let mut lines = Vec::with_capacity(bytes + (1 << 20));
    for round in 0.. {
        lines.extend_from_slice(TEXT.as_bytes());
        lines.extend_from_slice(b"\n\n\n\r\n \0\n\xff\xfe\xc3\x28 not text \x80\n");
        lines.extend((0..100_000).map(|at| (at + round) as u8).filter(|byte| *byte != b'\n'));
        lines.push(b'\n');
        for number in 0..2000 {
            lines.extend_from_slice(format!("round {round} line {number}\n").as_bytes());
        }
        if lines.len() >= bytes {
            break;
        }
    }
    lines.extend_from_slice(b"the last line has no newline");
    lines
}

/// A small generator of numbers that look random and are the same in every run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
