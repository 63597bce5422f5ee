//! The node's log about itself: text or JSON on standard error. Whatever goes wrong again and again is told a few times,
//! not thousands: each message has a limit, and what is left out is counted.

use crate::config::{Log, LogFormat};
use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// How often one message, whatever its values, is told in each [`WINDOW`]. Enough for one word about each peer and group
/// of a usual cluster.
const BURST: u32 = 20;

/// The time for which [`BURST`] counts.
const WINDOW: Duration = Duration::from_secs(10);

/// What is said about messages that are left out, which is never left out itself.
const NOTES: &str = "lance::log";

/// Sends the log to standard error.
pub(crate) fn start(log: &Log) {
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    let level = EnvFilter::new(log.level.as_str());
    tracing_subscriber::registry().with(level).with(RateLimit::default()).with(lines).init();
}

/// How often a message came since its window began.
#[derive(Debug)]
struct Window {
    began: Instant,
    told: u32,
    left_out: u64,
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Tell,
    /// Tell, and say that this is the last one for now.
    TellLast,
    /// Tell, and say how many were left out before.
    TellAfter(u64),
    LeaveOut,
}

/// Keeps messages of level info and above to [`BURST`] in each [`WINDOW`]. There is one window per place in the code, so
/// their number is bounded.
#[derive(Debug, Default)]
struct RateLimit {
    windows: Mutex<HashMap<Identifier, Window>>,
}

impl RateLimit {
    fn judge(&self, message: Identifier, now: Instant) -> Verdict {
        // Plain counts: a panic elsewhere cannot leave them half written.
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(message).or_insert(Window { began: now, told: 0, left_out: 0 });
        let mut before = 0;
        if now.saturating_duration_since(window.began) >= WINDOW {
            before = window.left_out;
            *window = Window { began: now, told: 0, left_out: 0 };
        }
        if window.told == BURST {
            window.left_out += 1;
            return Verdict::LeaveOut;
        }
        window.told += 1;
        match (before, window.told) {
            (0, BURST) => Verdict::TellLast,
            (0, _) => Verdict::Tell,
            (left_out, _) => Verdict::TellAfter(left_out),
        }
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == NOTES {
            return true;
        }
        let (file, line) = (metadata.file().unwrap_or_default(), metadata.line().unwrap_or_default());
        match self.judge(metadata.callsite(), Instant::now()) {
            Verdict::Tell => true,
            Verdict::TellLast => {
                let seconds = WINDOW.as_secs();
                tracing::warn!(target: NOTES, file, line, "repeated: messages like the next one are left out for up to {seconds} s");
                true
            }
            Verdict::TellAfter(left_out) => {
                tracing::warn!(target: NOTES, file, line, left_out, "messages like the next one were left out");
                true
            }
            Verdict::LeaveOut => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// Counts what gets through.
    #[derive(Clone, Default)]
    struct Count(std::sync::Arc<AtomicU32>);

    impl<S: Subscriber> Layer<S> for Count {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            if event.metadata().target() != NOTES {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    #[test]
    fn one_message_is_limited_and_others_are_not() {
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(RateLimit::default()).with(count.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..1000 {
                tracing::warn!(number, "again and again");
            }
            assert_eq!(count.0.load(Ordering::Relaxed), BURST);
            tracing::warn!("something else");
            assert_eq!(count.0.load(Ordering::Relaxed), BURST + 1);
            for number in 0..100 {
                tracing::debug!(number, "whoever asks for details gets them");
            }
            assert_eq!(count.0.load(Ordering::Relaxed), BURST + 101);
        });
    }

    #[test]
    fn what_is_left_out_is_counted_and_told() {
        let limit = RateLimit::default();
        let message = tracing::callsite!(name: "x", kind: tracing::metadata::Kind::EVENT, fields:);
        let message = tracing::Callsite::metadata(message).callsite();
        let start = Instant::now();
        for _ in 1..BURST {
            assert_eq!(limit.judge(message.clone(), start), Verdict::Tell);
        }
        assert_eq!(limit.judge(message.clone(), start), Verdict::TellLast);
        for _ in 0..7 {
            assert_eq!(limit.judge(message.clone(), start + WINDOW / 2), Verdict::LeaveOut);
        }
        assert_eq!(limit.judge(message.clone(), start + WINDOW), Verdict::TellAfter(7));
        assert_eq!(limit.judge(message.clone(), start + WINDOW), Verdict::Tell);
        assert_eq!(limit.judge(message, start + 3 * WINDOW), Verdict::Tell);
    }
}
