//! Record batches: what is built is valid, what is damaged or breaks a rule is refused for the right reason.

use bytes::{Bytes, BytesMut};
use lnc_protocol::batch::{self, RecordProblem};
use lnc_protocol::codec::{self, CodecError};
use lnc_protocol::{BatchBuilder, BatchError, BatchHeader, Codec, ErrorCode, Limits, Record, RecordBatch};
use proptest::collection::vec;
use proptest::prelude::*;

const HEADER_LEN: usize = batch::HEADER_LEN;

fn limits() -> Limits {
    Limits::default()
}

fn sample(codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(codec).with_producer(7, 1, 40);
    builder.append(1_000, Some(b"key"), Some(b"value"), &[("h", Some(b"1")), ("empty", None)]).unwrap();
    builder.append(990, None, Some(&[b'x'; 300]), &[]).unwrap();
    builder.append(1_010, Some(b""), None, &[]).unwrap();
    builder.build()
}

/// A batch around hand-made records: the sample's header with the given count, and length and CRC in order.
fn sealed(codec: Codec, count: u32, payload: &[u8]) -> Bytes {
    let mut raw = sample(codec)[..HEADER_LEN].to_vec();
    raw.extend_from_slice(payload);
    raw[23..27].copy_from_slice(&(count - 1).to_be_bytes());
    raw[57..61].copy_from_slice(&count.to_be_bytes());
    reseal(raw)
}

fn reseal(mut raw: Vec<u8>) -> Bytes {
    let length = (raw.len() - 12) as u32;
    raw[8..12].copy_from_slice(&length.to_be_bytes());
    let crc = crc32c::crc32c(&raw[21..]);
    raw[17..21].copy_from_slice(&crc.to_be_bytes());
    raw.into()
}

/// The sample with some bytes overwritten and the CRC put right again.
fn patched(at: usize, bytes: &[u8]) -> Bytes {
    let mut raw = sample(Codec::None).to_vec();
    raw[at..at + bytes.len()].copy_from_slice(bytes);
    reseal(raw)
}

fn refusal(bytes: Bytes) -> BatchError {
    RecordBatch::validate(bytes, &limits()).unwrap_err()
}

fn all_records(bytes: &Bytes) -> Result<Vec<Record>, BatchError> {
    batch::records(bytes, &limits())?.collect()
}

#[test]
fn a_built_batch_is_valid_and_gives_back_its_records() {
    for codec in Codec::ALL {
        let bytes = sample(codec);
        let valid = RecordBatch::validate(bytes.clone(), &limits()).unwrap();
        let header = valid.header();
        assert_eq!(header.codec, codec);
        assert_eq!((header.record_count, header.last_offset_delta), (3, 2));
        assert_eq!((header.base_timestamp, header.max_timestamp), (1_000, 1_010));
        assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (7, 1, 40));
        assert_eq!(header.total_len(), bytes.len());

        let records = all_records(&bytes).unwrap();
        let seen: Vec<_> = records.iter().map(|record| (record.offset, record.timestamp_ms)).collect();
        assert_eq!(seen, [(0, 1_000), (1, 990), (2, 1_010)]);
        assert_eq!(records[0].key.as_deref(), Some(&b"key"[..]));
        assert_eq!(records[0].headers, [("h".into(), Some("1".into())), ("empty".into(), None)]);
        assert_eq!(records[1].key, None);
        assert_eq!(records[1].value.as_ref().map(Bytes::len), Some(300));
        assert_eq!(records[2].key, Some(Bytes::new()));
        assert_eq!(records[2].value, None);
        assert_eq!(records[1].headers.capacity(), 0);
    }
}

#[test]
fn uncompressed_records_are_slices_of_the_batch() {
    let bytes = sample(Codec::None);
    let records = all_records(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&records[1].value.as_ref().unwrap().as_ptr()));
}

/// Bytes 0..8 (base offset) and 12..16 (leader epoch) are outside the CRC by the format, because the leader assigns
/// them. Every other byte is guarded: the length by the exact size, the magic by its value, the rest by the CRC.
#[test]
fn every_flipped_byte_outside_the_stamped_fields_is_noticed() {
    for codec in Codec::ALL {
        let bytes = sample(codec);
        for at in (8..12).chain(16..bytes.len()) {
            for flip in [0x01, 0x80, 0xFF] {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= flip;
                assert!(batch::check(&damaged).is_err(), "{codec}, byte {at} check");
                assert!(RecordBatch::validate(damaged.into(), &limits()).is_err(), "{codec}, byte {at}");
            }
        }
        for at in (1..8).chain(12..16) {
            let mut stamped = bytes.to_vec();
            stamped[at] ^= 0xFF;
            assert!(RecordBatch::validate(stamped.into(), &limits()).is_ok(), "{codec}, byte {at}");
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    for codec in Codec::ALL {
        let bytes = sample(codec);
        for len in 0..bytes.len() {
            let error = RecordBatch::validate(bytes.slice(..len), &limits()).unwrap_err();
            assert_eq!(error.code(), ErrorCode::CorruptBatch, "{codec}, {len} bytes");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        let (declared, found) = (bytes.len(), bytes.len() + 1);
        assert_eq!(refusal(longer.into()), BatchError::LengthMismatch { declared, found });
    }
}

#[test]
fn each_rule_of_the_header_has_its_error() {
    assert_eq!(refusal(patched(16, &[1])), BatchError::BadMagic { found: 1 });
    assert_eq!(refusal(patched(22, &[2])), BatchError::UnsupportedCodec { codec: 2 });
    assert_eq!(refusal(patched(22, &[2])).code(), ErrorCode::UnsupportedCodec);
    for attributes in [0x08, 0x10, 0x20, 0x40, 0x8000u16] {
        let error = refusal(patched(21, &attributes.to_be_bytes()));
        assert_eq!(error, BatchError::UnsupportedAttributes { attributes });
    }
    assert_eq!(refusal(patched(57, &0u32.to_be_bytes())), BatchError::Empty);
    let mismatch = BatchError::CountMismatch { count: 4, last_offset_delta: 2 };
    assert_eq!(refusal(patched(57, &4u32.to_be_bytes())), mismatch);
    let negative = BatchError::Negative { field: "record count", value: -1 };
    assert_eq!(refusal(patched(57, &(-1i32).to_be_bytes())), negative);
    let negative = BatchError::Negative { field: "base offset", value: -1 };
    assert_eq!(refusal(patched(0, &(-1i64).to_be_bytes())), negative);
    assert!(matches!(refusal(patched(43, &(-2i64).to_be_bytes())), BatchError::InvalidProducer { .. }));
    assert!(matches!(refusal(patched(51, &(-1i16).to_be_bytes())), BatchError::InvalidProducer { .. }));
    assert!(matches!(refusal(patched(53, &(-1i32).to_be_bytes())), BatchError::InvalidProducer { .. }));
    let latest = BatchError::MaxTimestamp { declared: 2_000, found: 1_010 };
    assert_eq!(refusal(patched(35, &2_000i64.to_be_bytes())), latest);
    assert_eq!(latest.code(), ErrorCode::InvalidBatch);

    let too_short = BatchHeader::parse(&{
        let mut raw = sample(Codec::None).to_vec();
        raw[8..12].copy_from_slice(&48u32.to_be_bytes());
        raw
    });
    assert!(matches!(too_short, Err(BatchError::LengthMismatch { declared: 60, .. })));
}

#[test]
fn without_a_producer_id_epoch_and_sequence_mean_nothing() {
    let mut builder = BatchBuilder::new(Codec::None).with_producer(batch::NO_PRODUCER_ID, -1, 0);
    builder.append(0, None, None, &[]).unwrap();
    assert!(RecordBatch::validate(builder.build(), &limits()).is_ok());
}

/// Varints of one byte: zigzag turns n into 2n and -1 into 1.
#[test]
fn each_rule_of_records_has_its_error() {
    let problem = |payload: &[u8]| match refusal(sealed(Codec::None, 1, payload)) {
        BatchError::Record { index: 0, problem } => problem,
        other => panic!("{payload:?}: {other}"),
    };
    let out_of_bounds = |field, len, remaining| RecordProblem::OutOfBounds { field, len, remaining };
    // length, attributes, timestamp delta, offset delta, key, value, header count
    assert_eq!(problem(&[16, 0, 0, 0, 1, 1, 0]), out_of_bounds("record", 8, 6));
    assert_eq!(problem(&[1]), RecordProblem::BadLength { field: "record", value: -1 });
    assert_eq!(problem(&[]), RecordProblem::BadVarint { field: "record", max_bits: 32 });
    assert_eq!(problem(&[0x80]), RecordProblem::BadVarint { field: "record", max_bits: 32 });
    assert_eq!(problem(&[0xFF; 11]), RecordProblem::BadVarint { field: "record", max_bits: 32 });
    assert_eq!(problem(&[0]), out_of_bounds("attributes", 1, 0));
    assert_eq!(problem(&[12, 0, 0, 2, 1, 1, 0]), RecordProblem::OffsetDelta { expected: 0, found: 1 });
    assert_eq!(problem(&[12, 0, 0, 0, 3, 1, 0]), RecordProblem::BadLength { field: "key", value: -2 });
    assert_eq!(problem(&[12, 0, 0, 0, 20, 1, 0]), out_of_bounds("key", 10, 2));
    assert_eq!(problem(&[12, 0, 0, 0, 1, 4, 0]), out_of_bounds("value", 2, 1));
    assert_eq!(problem(&[12, 0, 0, 0, 1, 1, 1]), RecordProblem::BadLength { field: "header count", value: -1 });
    assert_eq!(problem(&[12, 0, 0, 0, 1, 1, 2]), RecordProblem::BadVarint { field: "header key", max_bits: 32 });
    assert_eq!(problem(&[18, 0, 0, 0, 1, 1, 2, 2, 0xFF, 1]), RecordProblem::HeaderKeyNotUtf8);
    assert_eq!(problem(&[14, 0, 0, 0, 1, 1, 0, 0]), RecordProblem::TrailingBytes { count: 1 });

    let fine = [12, 0, 0, 0, 1, 1, 0];
    let behind = [&fine[..], &[0, 0]].concat();
    assert_eq!(refusal(sealed(Codec::None, 1, &behind)), BatchError::TrailingBytes { count: 2 });
    // A second record that claims the place of the first, and one that is missing.
    let twice = [fine, fine].concat();
    let problem = RecordProblem::OffsetDelta { expected: 1, found: 0 };
    assert_eq!(refusal(sealed(Codec::None, 2, &twice)), BatchError::Record { index: 1, problem });
    assert!(matches!(refusal(sealed(Codec::None, 2, &fine)), BatchError::Record { index: 1, .. }));
}

#[test]
fn a_varint_has_no_more_bits_than_its_field() {
    let record = |timestamp_delta: &[u8], offset_delta: &[u8]| {
        let fields = [&[0], timestamp_delta, offset_delta, &[1, 1, 0]].concat();
        let bytes = sealed(Codec::None, 1, &[&[2 * fields.len() as u8], &fields[..]].concat());
        all_records(&bytes).map(|records| records[0].timestamp_ms)
    };
    let refused =
        |field, max_bits| Err(BatchError::Record { index: 0, problem: RecordProblem::BadVarint { field, max_bits } });
    let nines = [0xFF; 9];
    // All 64 bits set are i64::MIN in zigzag; the sample's base timestamp is 1000.
    assert_eq!(record(&[&nines[..], &[0x01]].concat(), &[0]), Ok(i64::MIN + 1_000));
    assert_eq!(record(&[&nines[..], &[0x02]].concat(), &[0]), refused("timestamp delta", 64));
    assert_eq!(record(&[&nines[..], &[0x81, 0]].concat(), &[0]), refused("timestamp delta", 64));
    // 2^32, which is 0 when cut to 32 bits.
    assert_eq!(record(&[0], &[0x80, 0x80, 0x80, 0x80, 0x20]), refused("offset delta", 32));
    // A longer form than needed is odd but legal.
    assert_eq!(record(&[0x80, 0], &[0x80, 0]), Ok(1_000));
}

#[test]
fn a_claimed_count_of_records_or_headers_costs_nothing() {
    let fine = [12, 0, 0, 0, 1, 1, 0];
    let many = sealed(Codec::None, i32::MAX as u32, &fine);
    assert_eq!(batch::records(&many, &limits()).unwrap().size_hint().0, 0);
    assert!(matches!(all_records(&many), Err(BatchError::Record { index: 1, .. })));
    // 2^31 - 1 headers in a record without room for one.
    let headers = [20, 0, 0, 0, 1, 1, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F];
    assert!(matches!(all_records(&sealed(Codec::None, 1, &headers)), Err(BatchError::Record { index: 0, .. })));
}

#[test]
fn records_end_after_an_error() {
    let mut records = batch::records(&sealed(Codec::None, 2, &[12, 0, 0, 0, 1, 1, 0, 9]), &limits()).unwrap();
    assert!(records.next().unwrap().is_ok());
    assert!(records.next().unwrap().is_err());
    assert!(records.next().is_none());
}

#[test]
fn a_batch_over_the_limit_is_refused() {
    let bytes = sample(Codec::None);
    let limits = Limits { max_batch_bytes: bytes.len(), ..limits() };
    assert!(RecordBatch::validate(bytes.clone(), &limits).is_ok());
    let limits = Limits { max_batch_bytes: bytes.len() - 1, ..limits };
    let error = RecordBatch::validate(bytes.clone(), &limits).unwrap_err();
    assert_eq!(error, BatchError::TooLarge { len: bytes.len(), limit: bytes.len() - 1 });
    assert_eq!(error.code(), ErrorCode::BatchTooLarge);
}

#[test]
fn decompression_stops_at_the_limit() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let mut builder = BatchBuilder::new(codec);
        builder.append(0, None, Some(&vec![0; 8 << 20]), &[]).unwrap();
        let bomb = builder.build();
        assert!(bomb.len() < 64 << 10, "{codec} bomb of {} bytes", bomb.len());
        let limits = Limits { max_batch_bytes: 1 << 20, max_decompressed_bytes: 1 << 20 };
        let error = RecordBatch::validate(bomb.clone(), &limits).unwrap_err();
        assert_eq!(error, BatchError::Codec(CodecError::TooLarge { limit: 1 << 20 }), "{codec}");
        assert_eq!(error.code(), ErrorCode::BatchTooLarge);
        assert!(batch::records(&bomb, &limits).is_err());
        assert!(RecordBatch::validate(bomb, &Limits { max_decompressed_bytes: 9 << 20, ..limits }).is_ok());
    }
}

#[test]
fn the_decompression_limit_is_exact() {
    let content: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8 ^ (i >> 12) as u8).collect();
    for codec in Codec::ALL {
        let mut frame = Vec::new();
        codec::Compressor::new().compress(codec, &content, &mut frame).unwrap();
        assert_eq!(codec::decompress(codec, &frame, content.len()).as_ref(), Ok(&content), "{codec}");
        let limit = content.len() - 1;
        assert_eq!(codec::decompress(codec, &frame, limit), Err(CodecError::TooLarge { limit }), "{codec}");
    }
}

#[test]
fn a_frame_must_end_where_the_batch_ends() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        let payload = sample(codec).slice(HEADER_LEN..);
        let longer = [&payload[..], b"??"].concat();
        let error = BatchError::Codec(CodecError::TrailingBytes { codec, count: 2 });
        assert_eq!(refusal(sealed(codec, 3, &longer)), error);
        for len in 0..payload.len() {
            let error = refusal(sealed(codec, 3, &payload[..len]));
            assert!(matches!(error, BatchError::Codec(CodecError::Corrupt { .. })), "{codec} {len}: {error}");
        }
    }
}

/// A frame that asks for a window of 128 MiB: magic, descriptor without content size, window descriptor (10 + 17).
#[test]
fn a_zstd_frame_cannot_claim_a_huge_window() {
    let frame = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 17 << 3, 0x01, 0x00, 0x00];
    assert!(matches!(codec::decompress(Codec::Zstd, &frame, 1 << 30), Err(CodecError::Corrupt { .. })));
    let modest = [0x28, 0xB5, 0x2F, 0xFD, 0x00, 13 << 3, 0x01, 0x00, 0x00];
    assert_eq!(codec::decompress(Codec::Zstd, &modest, 1 << 30), Ok(vec![]));
}

#[test]
fn a_stamp_moves_a_batch_without_breaking_its_crc() {
    for codec in Codec::ALL {
        let bytes = sample(codec);
        let valid = RecordBatch::validate(bytes.clone(), &limits()).unwrap();
        let prefix = valid.stamped_prefix(123_456_789_012, 9);
        assert_eq!(prefix, batch::stamped_prefix(&bytes[..HEADER_LEN], 123_456_789_012, 9));
        let stored: Bytes = [&prefix[..], &bytes[16..]].concat().into();
        let header = batch::check(&stored).unwrap();
        assert_eq!((header.base_offset, header.partition_leader_epoch), (123_456_789_012, 9));
        assert_eq!(header.last_offset(), 123_456_789_014);
        assert_eq!(all_records(&stored).unwrap()[2].offset, 123_456_789_014);
    }
    assert_eq!(batch::stamped_prefix(b"short", 1, 2)[8..12], [0; 4]);
}

#[test]
fn concatenated_batches_come_apart_without_copying() {
    let (one, two) = (sample(Codec::None), sample(Codec::Zstd));
    let joined: Bytes = [&one[..], &two[..]].concat().into();
    let parts: Vec<_> = batch::split(joined.clone()).collect::<Result<_, _>>().unwrap();
    assert_eq!(parts, [one.clone(), two.clone()]);
    assert_eq!(parts[1].as_ptr(), joined[one.len()..].as_ptr());
    assert_eq!(batch::split(Bytes::new()).count(), 0);

    let mut cut = batch::split(joined.slice(..joined.len() - 1));
    assert_eq!(cut.next(), Some(Ok(one.clone())));
    let (needed, found) = (two.len(), two.len() - 1);
    assert_eq!(cut.next(), Some(Err(BatchError::Truncated { needed, found })));
    assert_eq!(cut.next(), None);
    let mut cut = batch::split(joined.slice(..one.len() + 3));
    assert_eq!(cut.nth(1), Some(Err(BatchError::Truncated { needed: HEADER_LEN, found: 3 })));
}

#[test]
fn a_builder_is_used_again() {
    for codec in Codec::ALL {
        let mut builder = BatchBuilder::new(codec);
        assert!(builder.is_empty());
        assert_eq!(builder.finish(), Bytes::new());
        for round in 0..3u8 {
            builder.set_producer(1, 0, i32::from(round) * 2);
            builder.append(i64::from(round), None, Some(&[round; 10]), &[]).unwrap();
            builder.append(i64::from(round), None, Some(&[round; 10]), &[]).unwrap();
            assert_eq!(builder.count(), 2);
            let batch = builder.finish();
            let valid = RecordBatch::validate(batch.clone(), &limits()).unwrap();
            assert_eq!(valid.header().base_sequence, i32::from(round) * 2);
            assert_eq!(all_records(&batch).unwrap()[1].value, Some(Bytes::from(vec![round; 10])));
            assert_eq!((builder.count(), builder.encoded_len()), (0, HEADER_LEN));
        }
    }
}

#[test]
fn extreme_timestamps_survive() {
    let times = [i64::MAX, i64::MIN, 0, -1, i64::MAX - 1];
    let mut builder = BatchBuilder::new(Codec::None);
    for time in times {
        builder.append(time, None, None, &[]).unwrap();
    }
    let bytes = builder.build();
    assert_eq!(RecordBatch::validate(bytes.clone(), &limits()).unwrap().header().max_timestamp, i64::MAX);
    let seen: Vec<_> = all_records(&bytes).unwrap().into_iter().map(|record| record.timestamp_ms).collect();
    assert_eq!(seen, times);
}

type OwnedRecord = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

fn any_record() -> impl Strategy<Value = OwnedRecord> {
    let bytes = || prop::option::of(vec(any::<u8>(), 0..200));
    (any::<i64>(), bytes(), bytes(), vec((".{0,8}", bytes()), 0..3))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn built_batches_are_valid_and_read_back(owned in vec(any_record(), 1..20)) {
        for codec in Codec::ALL {
            let mut builder = BatchBuilder::new(codec);
            for (time, key, value, headers) in &owned {
                let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
                let before = builder.encoded_len();
                builder.append(*time, key.as_deref(), value.as_deref(), &headers).unwrap();
                let bound = batch::max_record_len(key.as_deref(), value.as_deref(), &headers);
                prop_assert!(builder.encoded_len() - before <= bound);
            }
            let expected_len = builder.encoded_len();
            let bytes = builder.build();
            prop_assert!(codec != Codec::None || bytes.len() == expected_len);
            prop_assert!(RecordBatch::validate(bytes.clone(), &limits()).is_ok());
            let read: Vec<OwnedRecord> = all_records(&bytes).unwrap().into_iter().map(|record| {
                let owned = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.to_vec());
                let headers = record.headers.into_iter();
                let headers = headers.map(|(k, v)| (String::from_utf8(k.to_vec()).unwrap(), owned(v))).collect();
                (record.timestamp_ms, owned(record.key), owned(record.value), headers)
            }).collect();
            prop_assert_eq!(&read, &owned);
        }
    }

    /// Damage with the checksum put right, so that it reaches the code behind the checksum.
    #[test]
    fn damaged_batches_never_panic(
        codec in prop::sample::select(Codec::ALL.to_vec()),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut raw = sample(codec).to_vec();
        for (at, byte) in damage {
            let at = 21 + at.index(raw.len() - 21);
            raw[at] = byte;
        }
        let limits = Limits { max_batch_bytes: 1 << 16, max_decompressed_bytes: 1 << 16 };
        let bytes = reseal(raw);
        let valid = RecordBatch::validate(bytes.clone(), &limits).is_ok();
        let readable = batch::records(&bytes, &limits).and_then(|records| records.collect::<Result<Vec<_>, _>>());
        prop_assert!(!valid || readable.is_ok());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..300), limit in 0usize..1000) {
        for codec in Codec::ALL {
            if let Ok(content) = codec::decompress(codec, &bytes, limit) {
                prop_assert!(content.len() <= limit);
            }
        }
        for codec in [Codec::Lz4, Codec::Zstd] {
            let _ = all_records(&sealed(codec, 1, &bytes));
        }
        let _ = all_records(&sealed(Codec::None, 1, &bytes));
        let _ = batch::check(&bytes);
        let _ = batch::split(BytesMut::from(&bytes[..]).freeze()).count();
    }
}
