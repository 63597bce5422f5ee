//! Replies: the outcome that starts every reply's body, and the payload of a success.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::{Opcode, Response};
use crate::error::ErrorCode;
use crate::frame::{self, Flags};
use crate::primitives::{DecodeError, Reader, Wire, put_len, wire_struct};

wire_struct! {
    /// Where to go with a request that this node does not serve.
    pub struct LeaderHint {
        /// The node that leads.
        pub node_id: u64,
        /// Its address for clients, as `host:port`.
        pub address: String,
    }
}

/// A failure, as told to the client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorReply {
    /// What went wrong; never [`ErrorCode::None`].
    pub code: ErrorCode,
    /// The facts, for a human reader.
    pub message: String,
    /// How long to wait before trying again, in milliseconds; 0 leaves it to the client.
    pub retry_after_ms: u32,
    /// Who leads, if this node knows and it helps.
    pub leader: Option<LeaderHint>,
}

impl ErrorReply {
    /// A failure with its facts.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), ..Self::default() }
    }

    /// The same, with a time to wait before trying again.
    #[must_use]
    pub fn with_retry_after_ms(mut self, retry_after_ms: u32) -> Self {
        self.retry_after_ms = retry_after_ms;
        self
    }

    /// The same, with the leader to go to.
    #[must_use]
    pub fn with_leader(mut self, node_id: u64, address: impl Into<String>) -> Self {
        self.leader = Some(LeaderHint { node_id, address: address.into() });
        self
    }
}

impl From<ErrorCode> for ErrorReply {
    /// A failure that has no more facts than its code.
    fn from(code: ErrorCode) -> Self {
        Self::new(code, code.text())
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(LeaderHint { node_id, address }) = &self.leader {
            write!(f, " (the leader is node {node_id} at {address})")?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorReply {}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The response, or why there is none.
    pub result: Result<Response, ErrorReply>,
}

impl From<Response> for Reply {
    fn from(response: Response) -> Self {
        Self { result: Ok(response) }
    }
}

impl From<ErrorReply> for Reply {
    fn from(error: ErrorReply) -> Self {
        Self { result: Err(error) }
    }
}

impl From<Result<Response, ErrorReply>> for Reply {
    fn from(result: Result<Response, ErrorReply>) -> Self {
        Self { result }
    }
}

/// Appends a whole reply frame. `opcode` is that of the request, known or not: an error can answer any number.
pub fn encode_reply(out: &mut BytesMut, opcode: impl Into<u8>, correlation: u64, reply: &Reply) {
    frame::encode(out, opcode, Flags::RESPONSE, correlation, |body| {
        encode_outcome(body, &reply.result);
        if let Ok(response) = &reply.result {
            response.encode_body(body);
        }
    });
}

/// The same frame as a list of pieces, to be sent in order with a vectored write: the records of a fetch are not
/// copied, the pieces share their buffers.
pub fn encode_reply_pieces(opcode: impl Into<u8>, correlation: u64, reply: &Reply) -> Vec<Bytes> {
    let mut pieces = vec![Bytes::new()];
    let mut fields = BytesMut::new();
    encode_outcome(&mut fields, &reply.result);
    match &reply.result {
        Ok(Response::Fetch(partitions)) => {
            put_len(&mut fields, partitions.len());
            for partition in partitions {
                partition.encode_fields(&mut fields);
                put_len(&mut fields, partition.records.len());
                if !partition.records.is_empty() {
                    pieces.push(fields.split().freeze());
                    pieces.extend(partition.records.pieces().iter().cloned());
                }
            }
        }
        Ok(response) => response.encode_body(&mut fields),
        Err(_) => {}
    }
    if !fields.is_empty() {
        pieces.push(fields.freeze());
    }
    let header = frame::encode_header(opcode, Flags::RESPONSE, correlation, &pieces);
    pieces[0] = Bytes::copy_from_slice(&header);
    pieces
}

/// Reads the body of a reply frame to a request of the given kind. Records in it are slices of `body`.
pub fn decode_reply(opcode: Opcode, body: Bytes) -> Result<Reply, DecodeError> {
    let mut reader = Reader::new(body);
    let code = ErrorCode::decode(&mut reader)?;
    let retry_after_ms = u32::decode(&mut reader)?;
    let message = String::decode(&mut reader)?;
    let leader = Option::<LeaderHint>::decode(&mut reader)?;
    if code == ErrorCode::None {
        let payload = reader.take(reader.remaining())?;
        return Ok(Response::decode(opcode, payload)?.into());
    }
    reader.finish()?;
    Ok(ErrorReply { code, message, retry_after_ms, leader }.into())
}

fn encode_outcome(out: &mut BytesMut, result: &Result<Response, ErrorReply>) {
    match result {
        Ok(_) => {
            ErrorCode::None.encode(out);
            0u32.encode(out);
            String::new().encode(out);
            None::<LeaderHint>.encode(out);
        }
        Err(error) => {
            // "No error" would announce a payload that is not there.
            let code = if error.code == ErrorCode::None { ErrorCode::Unknown } else { error.code };
            code.encode(out);
            error.retry_after_ms.encode(out);
            error.message.encode(out);
            error.leader.encode(out);
        }
    }
}

impl Wire for ErrorCode {
    const MIN_LEN: usize = 2;

    fn encode(&self, out: &mut BytesMut) {
        self.code().encode(out);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        u16::decode(reader).map(ErrorCode::from)
    }
}
