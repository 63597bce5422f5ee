//! Connections of the load generator: bare sockets past their `Hello`. The client library's connections do more than a
//! generator of load needs, for each request; here, frames are encoded and decoded in bulk.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lnc_protocol::PROTOCOL_VERSION;
use lnc_protocol::frame::{self, Flags};
use lnc_protocol::message::{HelloRequest, HelloResponse, Opcode, Request, Response, decode_reply, encode_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The longest reply accepted, in bytes.
pub(crate) const MAX_REPLY: usize = 64 << 20;

/// How long connecting and `Hello` may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// What failed, in the words under which it is counted.
pub(crate) const CANNOT_CONNECT: &str = "cannot connect";
pub(crate) const CONNECTION_LOST: &str = "connection lost";
pub(crate) const PROTOCOL_BROKEN: &str = "protocol broken";
pub(crate) const NO_ANSWER: &str = "no answer";

/// Connects and exchanges `Hello`.
pub(crate) async fn connect(address: &str) -> Result<(TcpStream, HelloResponse), &'static str> {
    let attempt = async {
        let mut stream = TcpStream::connect(address).await.map_err(|_| CANNOT_CONNECT)?;
        stream.set_nodelay(true).map_err(|_| CANNOT_CONNECT)?;
        let hello = HelloRequest {
            min_version: PROTOCOL_VERSION,
            max_version: PROTOCOL_VERSION,
            client_name: "lnc-bench".into(),
            features: 0,
            auth: Bytes::new(),
        };
        let mut buffer = BytesMut::new();
        encode_request(&mut buffer, Flags::NONE, 0, &Request::Hello(hello));
        stream.write_all(&buffer).await.map_err(|_| CONNECTION_LOST)?;
        buffer.clear();
        loop {
            if let Some(frame) = frame::decode(&mut buffer, MAX_REPLY).map_err(|_| PROTOCOL_BROKEN)? {
                let reply = decode_reply(Opcode::Hello, frame.body).map_err(|_| PROTOCOL_BROKEN)?;
                return match reply.result {
                    Ok(Response::Hello(hello)) if hello.version == PROTOCOL_VERSION => Ok((stream, hello)),
                    Ok(_) => Err(PROTOCOL_BROKEN),
                    Err(refused) => Err(refused.code.name()),
                };
            }
            match stream.read_buf(&mut buffer).await {
                Ok(read) if read > 0 => {}
                _ => return Err(CONNECTION_LOST),
            }
        }
    };
    tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.unwrap_or(Err(CANNOT_CONNECT))
}
