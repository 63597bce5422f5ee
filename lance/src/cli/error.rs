//! Failures of a command, and the exit code that each gets.

use std::io;
use std::process::ExitCode;

use lnc_client::Error as ClientError;
use lnc_protocol::ErrorCode;

/// Why a command failed.
#[derive(Debug)]
pub(super) struct CliError {
    kind: Kind,
    message: String,
}

/// The exit codes besides 0, as `lance --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    NotFound = 4,
    TimedOut = 5,
    /// Standard output was closed by its reader, which has all that it wanted: not a failure.
    Hangup = 0,
}

impl CliError {
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { kind: Kind::Failed, message: message.into() }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { kind: Kind::Usage, message: message.into() }
    }

    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        Self { kind: Kind::Unreachable, message: message.into() }
    }

    /// A failed write of standard output.
    pub(super) fn stdout(error: &io::Error) -> Self {
        let kind = if error.kind() == io::ErrorKind::BrokenPipe { Kind::Hangup } else { Kind::Failed };
        Self { kind, message: format!("cannot write to standard output: {error}") }
    }

    /// Says what the failure is about, in front of the message.
    pub(super) fn context(self, about: impl std::fmt::Display) -> Self {
        Self { message: format!("{about}: {}", self.message), ..self }
    }

    /// The message alone.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// Tells the user and gives the exit code.
    pub(super) fn report(&self) -> ExitCode {
        use std::io::Write;
        if self.kind != Kind::Hangup {
            // Where standard error is closed too, nobody is left to be told.
            let _ = writeln!(io::stderr(), "lance: {}", self.message);
        }
        self.code()
    }

    pub(super) fn code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        let message = match (&error, error.code()) {
            // Nobody asked for what the client needed to know first.
            (ClientError::Broker { operation, .. }, Some(ErrorCode::UnknownTopic)) if operation.topic.is_some() => {
                let topic = operation.topic.as_deref().unwrap_or_default();
                format!(
                    "there is no topic {topic}; `lance topic list` shows those that there are, `lance topic create {topic}` makes it"
                )
            }
            _ => error.to_string(),
        };
        Self { kind: kind_of(&error), message }
    }
}

fn kind_of(error: &ClientError) -> Kind {
    if let Some(code) = error.code() {
        return match code {
            ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => Kind::NotFound,
            code if code.is_retriable() => Kind::TimedOut,
            _ => Kind::Failed,
        };
    }
    match error {
        ClientError::InvalidSetting { .. } => Kind::Usage,
        ClientError::Connect { .. } | ClientError::ConnectionLost { .. } => Kind::Unreachable,
        // Who has answered before, and says nothing now, can be reached.
        ClientError::DeadlineExceeded { last: Some(cause), .. } if matches!(**cause, ClientError::Connect { .. }) => {
            Kind::Unreachable
        }
        ClientError::DeadlineExceeded { .. } => Kind::TimedOut,
        ClientError::Stalled { cause, .. } | ClientError::EarlierBatchFailed { cause, .. } => kind_of(cause),
        ClientError::NoSuchPartition { .. } => Kind::NotFound,
        _ => Kind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn failures_have_their_exit_codes() {
        let connect = ClientError::Connect {
            address: "127.0.0.1:1".into(),
            source: Arc::new(io::Error::from(io::ErrorKind::ConnectionRefused)),
        };
        assert_eq!(kind_of(&connect), Kind::Unreachable);
        let partition = ClientError::NoSuchPartition { topic: "t".into(), partition: 9, partitions: 3 };
        assert_eq!(kind_of(&partition), Kind::NotFound);
        assert_eq!(kind_of(&ClientError::Closed), Kind::Failed);
        let setting = ClientError::InvalidSetting { setting: "endpoints", problem: "x".to_owned() };
        assert_eq!(kind_of(&setting), Kind::Usage);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert_eq!(CliError::stdout(&io::ErrorKind::BrokenPipe.into()).kind, Kind::Hangup);
        assert_eq!(CliError::stdout(&io::ErrorKind::StorageFull.into()).kind, Kind::Failed);
    }
}
