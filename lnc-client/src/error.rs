//! What can go wrong in the client, and whether trying again can help.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use lnc_protocol::{BatchError, ErrorCode, ErrorReply};
use thiserror::Error;

/// The result of a client operation.
pub type Result<T> = std::result::Result<T, Error>;

/// What the client was doing when an error occurred: the request, and the topic and partition it was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The request in words, such as "produce" or "create topic".
    pub name: &'static str,
    /// The topic, if the request is about one.
    pub topic: Option<Arc<str>>,
    /// The partition, if the request is about one.
    pub partition: Option<u32>,
}

impl Operation {
    pub(crate) fn new(name: &'static str) -> Self {
        Operation { name, topic: None, partition: None }
    }

    pub(crate) fn on_topic(name: &'static str, topic: &str) -> Self {
        Operation { name, topic: Some(topic.into()), partition: None }
    }

    pub(crate) fn on_partition(name: &'static str, topic: &Arc<str>, partition: u32) -> Self {
        Operation { name, topic: Some(topic.clone()), partition: Some(partition) }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        match (&self.topic, self.partition) {
            (Some(topic), Some(partition)) => write!(f, " ({topic}/{partition})"),
            (Some(topic), None) => write!(f, " ({topic})"),
            _ => Ok(()),
        }
    }
}

/// Why an operation of the client failed.
///
/// Errors are cheap to clone: one failed batch is the failure of each of its records.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting given to a builder has no meaning.
    #[error("invalid setting {setting}: {problem}")]
    InvalidSetting {
        /// The name of the builder's method.
        setting: &'static str,
        /// What is wrong with the value.
        problem: String,
    },
    /// No connection to the broker could be made.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The broker's address.
        address: Arc<str>,
        /// What the operating system, or the wait for it, said.
        source: Arc<io::Error>,
    },
    /// An established connection broke. Requests under way on it may or may not have been carried out.
    #[error("connection to {address} lost: {reason}")]
    ConnectionLost {
        /// The broker's address.
        address: Arc<str>,
        /// How the loss was noticed.
        reason: Arc<str>,
    },
    /// The peer sent something that is not LWP, or not an answer to what was asked.
    #[error("{address} broke the protocol: {problem}")]
    Protocol {
        /// The broker's address.
        address: Arc<str>,
        /// What was found.
        problem: Arc<str>,
    },
    /// The broker belongs to another cluster than the one this client has used: that was made anew on the same addresses, or
    /// the address leads elsewhere by now. What this client knows of producers, topics and offsets is of no use there.
    #[error(
        "{address} belongs to cluster {found:032x}, this client to {expected:032x}: if the cluster was made anew, begin with a \
         new client"
    )]
    OtherCluster {
        /// The broker's address.
        address: Arc<str>,
        /// The cluster that the client has used.
        expected: u128,
        /// The cluster of the broker.
        found: u128,
    },
    /// The topic of this name is not the one that positions are of: it was deleted, and created anew.
    #[error(
        "the topic {topic} is not the one that the positions are of: its id is {found}, theirs {expected}; it was deleted and \
         created anew, and its offsets are those of other records"
    )]
    OtherTopic {
        /// The topic.
        topic: Arc<str>,
        /// The id in the positions.
        expected: u64,
        /// The id of the topic that there is.
        found: u64,
    },
    /// Positions are of a topic of another cluster: that of these addresses was made anew since they were stored, or they were
    /// stored elsewhere.
    #[error(
        "the positions in {topic} are of cluster {expected:032x}, and this one is {found:032x}: if it was made anew, its offsets \
         are those of other records"
    )]
    ForeignPositions {
        /// The topic.
        topic: Arc<str>,
        /// The cluster in the positions.
        expected: u128,
        /// The cluster that there is.
        found: u128,
    },
    /// The broker answered with an error.
    #[error("{operation} failed at {address}: {reply}")]
    Broker {
        /// What was asked.
        operation: Operation,
        /// The address of the broker that answered.
        address: Arc<str>,
        /// The broker's answer.
        reply: Box<ErrorReply>,
    },
    /// The operation was not completed in its time. Whether it took effect is not known.
    #[error("{operation} not completed within {}{}", time(*after), because(last))]
    DeadlineExceeded {
        /// What was being done.
        operation: Operation,
        /// The time it was given.
        after: Duration,
        /// The failure of the last attempt, if one failed before time ran out.
        last: Option<Box<Error>>,
    },
    /// Records were not sent on, or not sent again, because an earlier batch of the same partition failed with
    /// unknown outcome: sending them again could duplicate or reorder records.
    #[error("{operation} given up after an earlier batch failed: {cause}")]
    EarlierBatchFailed {
        /// What was being done.
        operation: Operation,
        /// The failure of the earlier batch.
        cause: Box<Error>,
    },
    /// The offset asked for is not in the partition.
    #[error(
        "offset {offset} of {topic}/{partition} is out of range: it holds {earliest} up to, not including, {latest}"
    )]
    OffsetOutOfRange {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The offset asked for.
        offset: u64,
        /// The first offset that can be read.
        earliest: u64,
        /// The offset that the next committed record will get.
        latest: u64,
    },
    /// The topic has no such partition.
    #[error("topic {topic} has no partition {partition}: {}", numbers(*partitions))]
    NoSuchPartition {
        /// The topic.
        topic: Arc<str>,
        /// The partition asked for.
        partition: u32,
        /// How many partitions the topic has.
        partitions: u32,
    },
    /// A record is larger than a batch, or than the producer's memory, may be.
    #[error("a record of {size} bytes is over the limit of {limit} bytes")]
    RecordTooLarge {
        /// The record's size in bytes, as it would be encoded.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Records received from a broker do not decode.
    #[error("damaged batch in {topic}/{partition} at offset {offset}, from {address}: {source}")]
    DamagedBatch {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The offset from which reading went on.
        offset: u64,
        /// The broker that sent the batch.
        address: Arc<str>,
        /// What is wrong with it.
        source: Arc<BatchError>,
    },
    /// A partition could not be read for longer than the request timeout. The consumer goes on trying.
    #[error("{topic}/{partition} could not be read for {}: {cause}", time(*after))]
    Stalled {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// For how long.
        after: Duration,
        /// The failure of the last attempt.
        cause: Box<Error>,
    },
    /// The producer, consumer or connection was closed by its owner.
    #[error("closed")]
    Closed,
}

impl Error {
    /// Whether the same operation may succeed later or at another broker.
    ///
    /// The client retries such errors by itself until the operation's deadline; an error that reaches the caller
    /// and is retriable says that the time was not enough.
    pub fn is_retriable(&self) -> bool {
        match self {
            Error::Connect { .. }
            | Error::ConnectionLost { .. }
            | Error::DeadlineExceeded { .. }
            | Error::Stalled { .. } => true,
            Error::Broker { reply, .. } => reply.code.is_retriable(),
            _ => false,
        }
    }

    /// The code of the broker's answer, if this error, or the one that it reports as its cause, is one.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Broker { reply, .. } => Some(reply.code),
            Error::DeadlineExceeded { last: Some(cause), .. }
            | Error::EarlierBatchFailed { cause, .. }
            | Error::Stalled { cause, .. } => cause.code(),
            _ => None,
        }
    }

    /// Whether nobody listens at the address: there is a machine, which has no broker that runs.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Error::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Whether a request may have been carried out although it failed with this error.
    pub(crate) fn is_ambiguous(&self) -> bool {
        match self {
            Error::ConnectionLost { .. } | Error::Protocol { .. } | Error::DeadlineExceeded { .. } => true,
            Error::Broker { reply, .. } => {
                matches!(reply.code, ErrorCode::Unknown | ErrorCode::Timeout | ErrorCode::LeadershipLost)
            }
            _ => false,
        }
    }

    /// The pause the broker asked for before the next attempt.
    pub(crate) fn retry_after(&self) -> Duration {
        match self {
            Error::Broker { reply, .. } => Duration::from_millis(reply.retry_after_ms.into()),
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn lost(address: &Arc<str>, reason: impl fmt::Display) -> Self {
        Error::ConnectionLost { address: address.clone(), reason: reason.to_string().into() }
    }

    pub(crate) fn protocol(address: &Arc<str>, problem: impl fmt::Display) -> Self {
        Error::Protocol { address: address.clone(), problem: problem.to_string().into() }
    }
}

/// A duration in words: `300 ms`, `2.5 s`.
pub(crate) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 1.0 { format!("{} ms", seconds * 1000.0) } else { format!("{seconds} s") }
}

fn numbers(partitions: u32) -> String {
    match partitions {
        1 => "it has only partition 0".to_owned(),
        _ => format!("it has partitions 0 to {}", partitions.saturating_sub(1)),
    }
}

fn because(last: &Option<Box<Error>>) -> String {
    last.as_ref().map(|error| format!("; last attempt: {error}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_words() {
        let operation = Operation::new("connect");
        let late = Error::DeadlineExceeded { operation, after: Duration::from_millis(2500), last: None };
        assert_eq!(late.to_string(), "connect not completed within 2.5 s");
        assert_eq!(time(Duration::from_millis(300)), "300 ms");
        let partition = |partitions| Error::NoSuchPartition { topic: "t".into(), partition: 9, partitions }.to_string();
        assert_eq!(partition(1), "topic t has no partition 9: it has only partition 0");
        assert_eq!(partition(3), "topic t has no partition 9: it has partitions 0 to 2");
    }
}
