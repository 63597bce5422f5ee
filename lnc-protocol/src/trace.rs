//! Trace contexts: to which trace a request belongs, in front of its body.
//!
//! A frame with [`Flags::TRACED`](crate::Flags::TRACED) has one, and is sent only where the other side has named
//! [`FEATURE`] in its reply to `Hello`. It says what a `traceparent` of W3C Trace Context says, in 25 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 0..16 | id of the trace, its bytes in the order of `traceparent` |
//! | 16..24 | id of the span that the request belongs to, likewise |
//! | 24 | flags of `traceparent`: 1 if the trace is recorded, other bits have no meaning yet |

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::primitives::DecodeError;

/// The bit of the features in `Hello` that stands for trace contexts.
pub const FEATURE: u64 = 1;

/// The length of a trace context in bytes.
pub const LEN: usize = 25;

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// To which trace a request belongs, and under which of its spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span; never 0.
    pub span_id: u64,
    /// Whether the trace is recorded.
    pub sampled: bool,
}

impl TraceContext {
    /// Appends it to the beginning of a body.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u128(self.trace_id);
        out.put_u64(self.span_id);
        out.put_u8(if self.sampled { SAMPLED } else { 0 });
    }

    /// Takes it off the front of a body. `None` if an id is 0, by which W3C Trace Context says that there is none.
    pub fn take(body: &mut Bytes) -> Result<Option<Self>, DecodeError> {
        let remaining = body.len();
        if remaining < LEN {
            return Err(DecodeError::Truncated { needed: LEN, remaining });
        }
        let (trace_id, span_id) = (body.get_u128(), body.get_u64());
        let sampled = body.get_u8() & SAMPLED != 0;
        Ok((trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, sampled }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: TraceContext = TraceContext {
        trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
        span_id: 0x00f0_67aa_0ba9_02b7,
        sampled: true,
    };

    fn encoded(context: TraceContext) -> Bytes {
        let mut out = BytesMut::new();
        context.encode(&mut out);
        out.put_slice(b"the body");
        out.freeze()
    }

    #[test]
    fn a_context_is_taken_off_and_leaves_the_body() {
        for context in [CONTEXT, TraceContext { sampled: false, ..CONTEXT }] {
            let mut body = encoded(context);
            assert_eq!(body.len(), LEN + 8);
            assert_eq!(TraceContext::take(&mut body), Ok(Some(context)));
            assert_eq!(&body[..], b"the body");
        }
    }

    #[test]
    fn the_bytes_are_those_of_a_traceparent() {
        let hex: String = encoded(CONTEXT)[..LEN].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b701");
    }

    #[test]
    fn a_context_without_ids_is_none_and_a_short_one_an_error() {
        for nothing in [TraceContext { trace_id: 0, ..CONTEXT }, TraceContext { span_id: 0, ..CONTEXT }] {
            assert_eq!(TraceContext::take(&mut encoded(nothing)), Ok(None));
        }
        for len in 0..LEN {
            let short = TraceContext::take(&mut encoded(CONTEXT).slice(..len));
            assert_eq!(short, Err(DecodeError::Truncated { needed: LEN, remaining: len }));
        }
    }
}
