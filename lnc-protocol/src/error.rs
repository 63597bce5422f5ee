//! Error codes: the stable numbers by which a broker says what went wrong.
//!
//! A code, once published, keeps its number and meaning for ever. The table in `docs/LWP.md` is checked against this
//! one by a test. What a failing operation adds in facts travels in the message of an
//! [`ErrorReply`](crate::message::ErrorReply).

use std::fmt;

macro_rules! error_codes {
    ($($(#[$meta:meta])* $name:ident = $code:literal, $retriable:literal, $text:literal;)*) => {
        /// What went wrong, as a stable number on the wire.
        ///
        /// A number this version does not know is kept as [`ErrorCode::Other`], so that an old client can still
        /// report what a new broker said. Make codes with `ErrorCode::from(u16)`: it never yields `Other` for a
        /// number that has a name.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $(
                #[doc = $text]
                $(#[$meta])*
                $name,
            )*
            /// A code that this version has no name for.
            Other(u16),
        }

        impl ErrorCode {
            /// Every named code, in ascending order of number.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$name,)*];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self {
                    $(ErrorCode::$name => $code,)*
                    ErrorCode::Other(code) => code,
                }
            }

            /// The name, as in the specification.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => stringify!($name),)*
                    ErrorCode::Other(_) => "Other",
                }
            }

            /// One sentence for a human reader, without a full stop.
            pub const fn text(self) -> &'static str {
                match self {
                    $(ErrorCode::$name => $text,)*
                    ErrorCode::Other(_) => "An error code that this version does not know",
                }
            }

            /// Whether the same request may succeed later or elsewhere. An unknown code is not retried.
            pub const fn is_retriable(self) -> bool {
                match self {
                    $(ErrorCode::$name => $retriable,)*
                    ErrorCode::Other(_) => false,
                }
            }
        }

        impl From<u16> for ErrorCode {
            fn from(code: u16) -> Self {
                match code {
                    $($code => ErrorCode::$name,)*
                    other => ErrorCode::Other(other),
                }
            }
        }
    };
}

error_codes! {
    #[default]
    None = 0, false, "No error";
    Unknown = 1, false, "The broker failed in a way that has no code of its own";
    InvalidRequest = 2, false, "The request could not be decoded or contradicts itself";
    UnsupportedVersion = 3, false, "No protocol version is common to client and broker";
    UnknownOpcode = 4, false, "The broker does not know this request";
    FrameTooLarge = 5, false, "The frame is longer than the broker accepts";
    CorruptFrame = 6, false, "The frame's header or checksum is wrong";
    Unauthorized = 7, false, "The client is not allowed to do this";
    NotLeader = 10, true, "This node does not lead the partition";
    LeaderUnknown = 11, true, "The partition has no known leader at the moment";
    Timeout = 12, true, "The request was not completed in the time it allowed";
    Overloaded = 13, true, "The broker has no room for this request at the moment";
    ShuttingDown = 14, true, "The broker is shutting down";
    StorageFull = 15, true, "The broker's disk is full";
    NotReady = 16, true, "The broker has started but does not serve yet";
    LeadershipLost = 17, true, "The leader changed while the request was under way; its outcome is not known";
    UnknownTopic = 20, false, "The topic does not exist";
    UnknownPartition = 21, false, "The topic has no such partition";
    TopicExists = 22, false, "A topic of this name exists";
    InvalidTopicName = 23, false, "The topic name breaks a rule for names";
    InvalidTopicSettings = 24, false, "A setting of the topic is out of range";
    TopicIdMismatch = 25, false, "The topic of this name is not the one with the given id";
    TooManyTopics = 26, false, "The cluster's limit of topics or partitions is reached";
    OffsetOutOfRange = 30, false, "The offset is below the log start or above the log end";
    CorruptBatch = 31, false, "The record batch's checksum, magic or length is wrong";
    InvalidBatch = 32, false, "The record batch breaks a rule of the format";
    BatchTooLarge = 33, false, "The record batch is longer than the broker accepts";
    UnsupportedCodec = 34, false, "The record batch is compressed with an unsupported codec";
    OutOfOrderSequence = 35, false, "The producer's sequence number leaves a gap or is too old";
    UnknownProducer = 36, false, "The broker keeps no state for this producer id";
    FencedProducer = 37, false, "A newer epoch of this producer is known";
    StorageDamaged = 40, false, "The stored data is damaged at this place";
    UnknownMember = 50, false, "The node is not a member of the cluster";
    MemberExists = 51, false, "The node is a member of the cluster already, under other addresses";
    InvalidMembership = 52, false, "The change would break a rule for the members of a cluster";
    FormatNotCommon = 53, false, "Not every member of the cluster is there and speaks the format";
}

impl From<ErrorCode> for u16 {
    fn from(code: ErrorCode) -> Self {
        code.code()
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_the_round_trip() {
        for code in 0..=u16::MAX {
            assert_eq!(ErrorCode::from(code).code(), code);
        }
    }

    #[test]
    fn named_codes_ascend_and_never_decode_to_other() {
        assert!(ErrorCode::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from(code.code()), code);
        }
        assert_eq!(ErrorCode::from(999), ErrorCode::Other(999));
        assert!(!ErrorCode::Other(999).is_retriable());
    }
}
