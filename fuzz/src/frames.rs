//! The wire between clients and nodes: frames, every request, every response and error reply.

use bytes::{Bytes, BytesMut};
use lnc_protocol::{Opcode, Request, decode_reply, encode_reply, frame};

/// Longest body that is accepted, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Frames as they arrive; then the same bytes as an opcode and a body, past the checksum.
pub fn run(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    while let Ok(Some(found)) = frame::decode(&mut buf, MAX_BODY) {
        body(found.header.opcode, found.body);
    }
    assert!(frame::needed(&buf) >= frame::HEADER_LEN);
    if let Some((opcode, rest)) = data.split_first() {
        body(*opcode, Bytes::copy_from_slice(rest));
    }
}

/// What is understood can be said again, and means the same.
fn body(opcode: u8, body: Bytes) {
    let Ok(opcode) = Opcode::try_from(opcode) else { return };
    if let Ok(request) = Request::decode(opcode, body.clone()) {
        let mut again = BytesMut::new();
        request.encode_body(&mut again);
        assert_eq!(Request::decode(opcode, again.freeze()), Ok(request));
    }
    if let Ok(reply) = decode_reply(opcode, body) {
        let mut again = BytesMut::new();
        encode_reply(&mut again, opcode, 1, &reply);
        let again = frame::decode(&mut again, usize::MAX).expect("an encoded frame is valid").expect("and whole");
        assert_eq!(decode_reply(opcode, again.body), Ok(reply));
    }
}
