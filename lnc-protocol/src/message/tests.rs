//! Properties of the message codecs that hold for every message.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::sample::{Entropy, Sample};
use super::*;
use crate::error::ErrorCode;
use crate::primitives::MAX_LIST_LEN;

fn body_of(request: &Request) -> Bytes {
    let mut body = BytesMut::new();
    request.encode_body(&mut body);
    body.freeze()
}

fn frame_of(opcode: Opcode, reply: &Reply) -> Bytes {
    let mut out = BytesMut::new();
    encode_reply(&mut out, opcode, 7, reply);
    out.freeze()
}

fn opcode_of(reply: &Reply) -> Opcode {
    reply.result.as_ref().map_or(Opcode::Fetch, Response::opcode)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1500) })]

    #[test]
    fn a_batch_is_found_in_a_body_without_decoding_it(seed in vec(any::<u8>(), 0..400), cut in 0usize..40) {
        let request = ProduceRequest::sample(&mut Entropy::new(&seed));
        let body = body_of(&Request::Produce(request.clone()));
        prop_assert_eq!(ProduceRequest::batch_in(&body), Some(&request.batch[..]));
        let short = &body[..body.len().saturating_sub(cut + 1)];
        prop_assert_eq!(ProduceRequest::batch_in(short), None);
    }

    #[test]
    fn requests_survive_the_round_trip(entropy in vec(any::<u8>(), 0..400)) {
        let request = Request::sample(&mut Entropy::new(&entropy));
        prop_assert_eq!(Request::decode(request.opcode(), body_of(&request)), Ok(request));
    }

    #[test]
    fn replies_survive_the_round_trip(entropy in vec(any::<u8>(), 0..600)) {
        let reply = Reply::sample(&mut Entropy::new(&entropy));
        let body = frame_of(opcode_of(&reply), &reply).slice(frame::HEADER_LEN..);
        prop_assert_eq!(decode_reply(opcode_of(&reply), body), Ok(reply));
    }

    #[test]
    fn the_pieces_of_a_reply_are_its_frame(entropy in vec(any::<u8>(), 0..600)) {
        let reply = Reply::sample(&mut Entropy::new(&entropy));
        let pieces = encode_reply_pieces(opcode_of(&reply), 7, &reply);
        prop_assert_eq!(pieces.concat(), frame_of(opcode_of(&reply), &reply));
    }

    /// No message is a prefix of another: each says itself where it ends.
    #[test]
    fn a_cut_or_padded_body_is_refused(entropy in vec(any::<u8>(), 0..400), cut in any::<prop::sample::Index>()) {
        let request = Request::sample(&mut Entropy::new(&entropy));
        let body = body_of(&request);
        if !body.is_empty() {
            prop_assert!(Request::decode(request.opcode(), body.slice(..cut.index(body.len()))).is_err());
        }
        let mut padded = BytesMut::from(&body[..]);
        padded.put_u8(0);
        prop_assert_eq!(
            Request::decode(request.opcode(), padded.freeze()),
            Err(DecodeError::TrailingBytes { count: 1 })
        );

        let reply = Reply::sample(&mut Entropy::new(&entropy));
        let body = frame_of(opcode_of(&reply), &reply).slice(frame::HEADER_LEN..);
        prop_assert!(decode_reply(opcode_of(&reply), body.slice(..cut.index(body.len()))).is_err());
    }

    /// Whatever a stranger sends is decoded or refused, and what is decoded says the same when encoded again.
    #[test]
    fn arbitrary_bodies_are_decoded_or_refused(entropy in vec(any::<u8>(), 1..200), opcode in any::<u8>()) {
        let opcode = Opcode::ALL[usize::from(opcode) % Opcode::ALL.len()];
        let body = Bytes::from(entropy);
        if let Ok(request) = Request::decode(opcode, body.clone()) {
            prop_assert_eq!(body_of(&request), body.clone());
        }
        if let Ok(response) = Response::decode(opcode, body.clone()) {
            let mut again = BytesMut::new();
            response.encode_body(&mut again);
            prop_assert_eq!(again, body.clone());
        }
        let _ = decode_reply(opcode, body);
    }

    #[test]
    fn damaged_bodies_are_decoded_or_refused(
        entropy in vec(any::<u8>(), 0..600),
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let mut entropy = Entropy::new(&entropy);
        let (request, reply) = (Request::sample(&mut entropy), Reply::sample(&mut entropy));
        let mut body = body_of(&request).to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] ^= flip;
            let _ = Request::decode(request.opcode(), body.into());
        }
        let mut body = frame_of(opcode_of(&reply), &reply)[frame::HEADER_LEN..].to_vec();
        let at = at.index(body.len());
        body[at] ^= flip;
        let _ = decode_reply(opcode_of(&reply), body.into());
    }
}

#[test]
fn a_list_is_refused_before_room_is_made_for_it() {
    let mut body = BytesMut::new();
    body.put_u32_le(u32::MAX);
    let refused = Request::decode(Opcode::ListOffsets, body.clone().freeze());
    assert_eq!(refused, Err(DecodeError::ListTooLong { count: u32::MAX as usize, remaining: 0 }));

    // An item takes 15 bytes at least, so 29 bytes cannot hold two.
    let mut body = BytesMut::new();
    body.put_u32_le(2);
    body.put_bytes(0, 29);
    let refused = Request::decode(Opcode::ListOffsets, body.freeze());
    assert_eq!(refused, Err(DecodeError::ListTooLong { count: 2, remaining: 29 }));
}

#[test]
fn a_list_has_a_limit_however_small_its_items() {
    let mut body = BytesMut::new();
    body.put_u8(1);
    body.put_u32_le(MAX_LIST_LEN as u32 + 1);
    body.put_bytes(0, 2 * (MAX_LIST_LEN + 1));
    let refused = Request::decode(Opcode::Metadata, body.freeze());
    assert_eq!(refused, Err(DecodeError::ListTooLong { count: MAX_LIST_LEN + 1, remaining: 2 * (MAX_LIST_LEN + 1) }));
}

#[test]
fn values_with_few_forms_are_checked() {
    let metadata = Request::decode(Opcode::Metadata, Bytes::from_static(&[2]));
    assert_eq!(metadata, Err(DecodeError::InvalidValue { what: "flag", value: 2 }));
    let produce = Request::decode(Opcode::Produce, Bytes::from_static(&[3; 40]));
    assert_eq!(produce, Err(DecodeError::InvalidValue { what: "acks", value: 3 }));
    let describe = Request::decode(Opcode::DescribeTopic, Bytes::from_static(&[2, 0, b'a', 0xFF]));
    assert_eq!(describe, Err(DecodeError::InvalidUtf8 { valid_up_to: 1 }));
    let unknown = Opcode::try_from(99);
    assert_eq!(unknown, Err(DecodeError::UnknownOpcode(99)));
    assert_eq!(DecodeError::UnknownOpcode(99).code(), ErrorCode::UnknownOpcode);
}

#[test]
fn an_overlong_message_is_cut_between_characters() {
    let error = ErrorReply::new(ErrorCode::Timeout, "ä".repeat(40_000));
    let frame = frame_of(Opcode::Ping, &error.clone().into());
    let decoded = decode_reply(Opcode::Ping, frame.slice(frame::HEADER_LEN..));
    let expected = ErrorReply { message: "ä".repeat(32_767), ..error };
    assert_eq!(decoded, Ok(expected.into()));
}

#[test]
fn a_success_cannot_be_told_as_an_error() {
    let error = ErrorReply { code: ErrorCode::None, ..ErrorReply::default() };
    let frame = frame_of(Opcode::Ping, &error.into());
    let decoded = decode_reply(Opcode::Ping, frame.slice(frame::HEADER_LEN..));
    assert_eq!(decoded.unwrap().result.unwrap_err().code, ErrorCode::Unknown);
}

#[test]
fn batches_in_a_decoded_produce_share_the_frame() {
    let request = ProduceRequest { topic: "t".into(), batch: Bytes::from(vec![9; 64]), ..Default::default() };
    let body = body_of(&Request::Produce(request));
    let Ok(Request::Produce(decoded)) = Request::decode(Opcode::Produce, body.clone()) else { panic!("not a produce") };
    assert!(body.as_ptr_range().contains(&decoded.batch.as_ptr()));
}

#[test]
fn records_are_equal_by_content() {
    let whole = Records::from(Bytes::from_static(b"abcdef"));
    let pieces: Records = [&b"ab"[..], b"", b"cdef"].into_iter().map(Bytes::from_static).collect();
    assert_eq!(whole, pieces);
    assert_eq!(pieces.pieces().len(), 2);
    assert_eq!(pieces.into_bytes(), "abcdef");
    assert_eq!(Records::new().into_bytes(), Bytes::new());
}
