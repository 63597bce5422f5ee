//! What keeps a run from being carried out. A promise that is broken is no error but a finding.

use lance::config::units::format_duration;
use std::io;
use std::time::Duration;
use thiserror::Error;

/// Why a run could not be carried out to its end.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// This machine, or what was asked for, lacks something.
    #[error("{0}")]
    Unavailable(String),
    /// The operating system refused.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A program of the system failed.
    #[error("{command} failed: {said}")]
    Program {
        /// The program and its arguments.
        command: String,
        /// What it said, or how it ended.
        said: String,
    },
    /// The cluster did not come (back) to life.
    #[error("{who} not ready after {}: {state}", format_duration(*after))]
    NotReady {
        /// A node or a pod.
        who: String,
        /// The time that it had.
        after: Duration,
        /// What it said last.
        state: String,
    },
    /// A client could not begin, or the cluster could not be asked.
    #[error("cannot {what}: {source}")]
    Client {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        source: lnc_client::Error,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

pub(super) type Result<T> = std::result::Result<T, LiveError>;

/// For `map_err`: the operating system refused to do `what`.
pub(super) fn os(what: impl Into<String>) -> impl FnOnce(io::Error) -> LiveError {
    move |source| LiveError::Io { what: what.into(), source }
}

/// For `map_err`: the cluster did not do `what`.
pub(super) fn client(what: &'static str) -> impl FnOnce(lnc_client::Error) -> LiveError {
    move |source| LiveError::Client { what, source }
}
