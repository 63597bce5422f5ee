//! The wire between nodes: frames, messages of all groups, greetings.

use bytes::{Bytes, BytesMut};
use lnc_raft::NodeId;
use lnc_replication::formation::Greeting;
use lnc_replication::wire::{FRAME_HEADER, put_message, take_frame, take_message};

/// Longest body that is accepted, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Frames as they arrive; then the same bytes as a body, past the checksum.
pub fn run(data: &[u8]) {
    let mut buf = BytesMut::from(data);
    while let Ok(Some(found)) = take_frame(&mut buf, MAX_BODY) {
        body(found);
    }
    assert!(buf.capacity() <= data.len() + MAX_BODY + FRAME_HEADER);
    body(Bytes::copy_from_slice(data));
}

/// What is understood is said again in the same bytes.
fn body(body: Bytes) {
    let mut rest = body.clone();
    while !rest.is_empty() {
        let before = rest.clone();
        let Ok(message) = take_message(&mut rest, NodeId(1)) else { break };
        let mut again = BytesMut::new();
        put_message(&mut again, &message);
        assert_eq!(again, before[..before.len() - rest.len()]);
    }
    if let Ok(greeting) = Greeting::decode(body) {
        let mut again = BytesMut::new();
        greeting.encode(&mut again);
        let again = Greeting::decode(again.freeze()).expect("an encoded greeting is valid");
        assert_eq!(again.identity, greeting.identity);
    }
}
