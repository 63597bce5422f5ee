//! Arbitrary values of every message part, made from a string of bytes: what the property tests feed the codecs with.
//! The structs' own macro derives the rest.

use bytes::Bytes;

use super::{Acks, ErrorReply, LeaderHint, MemberChange, OffsetSpec, Opcode, Records, Reply, Request, Response};
use crate::error::ErrorCode;

/// Bytes that stand for choices; zeros once they are used up, so that every value is finite.
pub(crate) struct Entropy<'a> {
    rest: &'a [u8],
}

impl<'a> Entropy<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn byte(&mut self) -> u8 {
        self.rest.split_off_first().copied().unwrap_or(0)
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }
}

/// A value made from entropy.
pub(crate) trait Sample: Sized {
    fn sample(entropy: &mut Entropy<'_>) -> Self;
}

macro_rules! sample_integers {
    ($($type:ty)*) => {$(
        impl Sample for $type {
            fn sample(entropy: &mut Entropy<'_>) -> Self {
                <$type>::from_le_bytes(entropy.array())
            }
        }
    )*};
}

sample_integers!(u8 u16 u32 u64 u128 i16 i64);

impl Sample for bool {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        entropy.byte() & 1 == 1
    }
}

impl Sample for String {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        let len = entropy.byte() % 12;
        (0..len).map(|_| char::from_u32(u32::from(u16::sample(entropy))).unwrap_or('ß')).collect()
    }
}

impl Sample for Bytes {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        let len = entropy.byte() % 40;
        (0..len).map(|_| entropy.byte()).collect()
    }
}

impl Sample for Records {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        Vec::<Bytes>::sample(entropy).into_iter().collect()
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        bool::sample(entropy).then(|| T::sample(entropy))
    }
}

impl<T: Sample> Sample for Vec<T> {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        let len = entropy.byte() % 4;
        (0..len).map(|_| T::sample(entropy)).collect()
    }
}

impl Sample for ErrorCode {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        u16::sample(entropy).into()
    }
}

impl Sample for Acks {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        [Acks::None, Acks::Leader, Acks::Quorum][usize::from(entropy.byte() % 3)]
    }
}

impl Sample for MemberChange {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        use MemberChange::{Add, Forget, Remove, Renew};
        [Add, Remove, Renew, Forget][usize::from(entropy.byte() % 4)]
    }
}

impl Sample for OffsetSpec {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        match entropy.byte() % 3 {
            0 => OffsetSpec::Earliest,
            1 => OffsetSpec::Latest,
            _ => OffsetSpec::Timestamp(i64::sample(entropy)),
        }
    }
}

impl Sample for Opcode {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        Opcode::ALL[usize::from(entropy.byte()) % Opcode::ALL.len()]
    }
}

impl Sample for Request {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        match Opcode::sample(entropy) {
            Opcode::Hello => Request::Hello(Sample::sample(entropy)),
            Opcode::Ping => Request::Ping,
            Opcode::Metadata => Request::Metadata(Sample::sample(entropy)),
            Opcode::ClusterInfo => Request::ClusterInfo,
            Opcode::ChangeMembers => Request::ChangeMembers(Sample::sample(entropy)),
            Opcode::Formats => Request::Formats,
            Opcode::RaiseFormat => Request::RaiseFormat(Sample::sample(entropy)),
            Opcode::CreateTopic => Request::CreateTopic(Sample::sample(entropy)),
            Opcode::DeleteTopic => Request::DeleteTopic(Sample::sample(entropy)),
            Opcode::ListTopics => Request::ListTopics,
            Opcode::DescribeTopic => Request::DescribeTopic(Sample::sample(entropy)),
            Opcode::InitProducer => Request::InitProducer,
            Opcode::Produce => Request::Produce(Sample::sample(entropy)),
            Opcode::Fetch => Request::Fetch(Sample::sample(entropy)),
            Opcode::ListOffsets => Request::ListOffsets(Sample::sample(entropy)),
        }
    }
}

impl Sample for Response {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        match Opcode::sample(entropy) {
            Opcode::Hello => Response::Hello(Sample::sample(entropy)),
            Opcode::Ping => Response::Pong,
            Opcode::Metadata => Response::Metadata(Sample::sample(entropy)),
            Opcode::ClusterInfo => Response::ClusterInfo(Sample::sample(entropy)),
            Opcode::ChangeMembers => Response::ChangeMembers,
            Opcode::Formats => Response::Formats(Sample::sample(entropy)),
            Opcode::RaiseFormat => Response::RaiseFormat,
            Opcode::CreateTopic => Response::CreateTopic(Sample::sample(entropy)),
            Opcode::DeleteTopic => Response::DeleteTopic,
            Opcode::ListTopics => Response::ListTopics(Sample::sample(entropy)),
            Opcode::DescribeTopic => Response::DescribeTopic(Sample::sample(entropy)),
            Opcode::InitProducer => Response::InitProducer(Sample::sample(entropy)),
            Opcode::Produce => Response::Produce(Sample::sample(entropy)),
            Opcode::Fetch => Response::Fetch(Sample::sample(entropy)),
            Opcode::ListOffsets => Response::ListOffsets(Sample::sample(entropy)),
        }
    }
}

impl Sample for ErrorReply {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        let code = match ErrorCode::sample(entropy) {
            ErrorCode::None => ErrorCode::Unknown,
            code => code,
        };
        ErrorReply {
            code,
            message: String::sample(entropy),
            retry_after_ms: u32::sample(entropy),
            leader: Option::<LeaderHint>::sample(entropy),
        }
    }
}

impl Sample for Reply {
    fn sample(entropy: &mut Entropy<'_>) -> Self {
        if bool::sample(entropy) { Response::sample(entropy).into() } else { ErrorReply::sample(entropy).into() }
    }
}
