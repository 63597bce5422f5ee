//! LWP, the Lance Wire Protocol: frames, requests, replies, record batches and error codes.
//!
//! This crate turns bytes into values and values into bytes and does nothing else: no sockets, files, clocks,
//! threads or randomness. The specification for other languages is `docs/LWP.md`; the test vectors it names are
//! read by this crate's tests.
//!
//! Reading order: [`frame`] is the envelope of everything on a connection, [`message`] is what a frame's body says,
//! [`batch`] is how records are packed (on the wire, in the journal and in segment files alike), [`error`] is how a
//! failure is told to a peer.
//!
//! Every decoder here reads bytes that a stranger may have written. None of them panics, and none allocates more
//! than a small multiple of the bytes it was given, except decompression, which takes its bound from the caller.
#![forbid(unsafe_code)]

pub mod batch;
pub mod codec;
pub mod error;
pub mod frame;
pub mod message;
pub mod names;
pub mod primitives;
pub mod trace;

pub use batch::{BatchBuilder, BatchError, BatchHeader, Limits, Record, RecordBatch};
pub use codec::Codec;
pub use error::ErrorCode;
pub use frame::{Flags, Frame, FrameError, FrameHeader};
pub use message::{
    ErrorReply, LeaderHint, Opcode, Reply, Request, Response, decode_reply, encode_reply, encode_request,
};
pub use primitives::DecodeError;
pub use trace::TraceContext;

/// The version of the protocol that this crate speaks; also the only one it accepts in a frame.
pub const PROTOCOL_VERSION: u8 = 1;

/// The port on which brokers listen for clients unless configured otherwise.
pub const DEFAULT_PORT: u16 = 1992;

/// Most entries of a request: partitions of a fetch or of a search for offsets, names of topics.
pub const MAX_ENTRIES: usize = 4096;
