//! The batch layout, compared with another implementation of it in both directions and for every codec.

use bytes::{Bytes, BytesMut};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records as kafka;
use lnc_protocol::{BatchBuilder, Codec, Limits, RecordBatch, batch};

fn theirs(codec: Codec) -> kafka::Compression {
    match codec {
        Codec::None => kafka::Compression::None,
        Codec::Lz4 => kafka::Compression::Lz4,
        Codec::Zstd => kafka::Compression::Zstd,
    }
}

/// Record `i` of a batch: with and without key, value and headers in turn, some of it well compressible.
fn key(i: usize) -> Option<Bytes> {
    (!i.is_multiple_of(3)).then(|| format!("key-{i}").into())
}

fn value(i: usize) -> Option<Bytes> {
    (i % 5 != 4).then(|| "payload ".repeat(i * 37 % 200).into())
}

fn headers(i: usize) -> Vec<(String, Option<Bytes>)> {
    (0..i % 4).map(|n| (format!("header-{n}"), (n != 1).then(|| "h".repeat(n * 10).into()))).collect()
}

fn timestamp(i: usize) -> i64 {
    1_700_000_000_000 + (i as i64 * 7919) % 1000
}

#[test]
fn others_read_what_is_built_here() {
    for codec in Codec::ALL {
        for count in [1, 2, 100, 2000] {
            let mut builder = BatchBuilder::new(codec).with_producer(4711, 3, 17);
            for i in 0..count {
                let (key, value, headers) = (key(i), value(i), headers(i));
                let headers: Vec<_> = headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
                builder.append(timestamp(i), key.as_deref(), value.as_deref(), &headers).unwrap();
            }
            let raw = builder.build();
            let stamped = [&batch::stamped_prefix(&raw, 5000, 12)[..], &raw[16..]].concat();
            let set = kafka::RecordBatchDecoder::decode(&mut Bytes::from(stamped)).unwrap();
            assert_eq!((set.version, set.compression, set.records.len()), (2, theirs(codec), count));
            for (i, record) in set.records.iter().enumerate() {
                assert_eq!((record.producer_id, record.producer_epoch), (4711, 3));
                assert_eq!(record.partition_leader_epoch, 12);
                assert_eq!((record.offset, record.sequence), (5000 + i as i64, 17 + i as i32));
                assert_eq!(record.timestamp, timestamp(i));
                assert_eq!((&record.key, &record.value), (&key(i), &value(i)));
                let seen: Vec<_> = record.headers.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
                assert_eq!(seen, headers(i));
            }
        }
    }
}

#[test]
fn what_others_build_is_valid_and_read_here() {
    for codec in Codec::ALL {
        for count in [1, 2, 100, 2000] {
            let records: Vec<_> = (0..count).map(|i| their_record(i, 4711)).collect();
            let mut raw = BytesMut::new();
            let options = kafka::RecordEncodeOptions { version: 2, compression: theirs(codec) };
            kafka::RecordBatchEncoder::encode(&mut raw, &records, &options).unwrap();
            let limits = Limits { max_batch_bytes: 4 << 20, ..Limits::default() };
            let valid = RecordBatch::validate(raw.freeze(), &limits).unwrap();
            assert_eq!((valid.header().codec, valid.header().record_count), (codec, count as u32));
            assert_eq!((valid.header().producer_id, valid.header().base_sequence), (4711, 17));
            let read: Vec<_> = batch::records(valid.bytes(), &limits).unwrap().collect::<Result<_, _>>().unwrap();
            for (i, record) in read.iter().enumerate() {
                assert_eq!((record.offset, record.timestamp_ms), (5000 + i as u64, timestamp(i)));
                assert_eq!((&record.key, &record.value), (&key(i), &value(i)));
                let seen: Vec<_> = record.headers.iter().map(|(k, v)| (utf8(k), v.clone())).collect();
                assert_eq!(seen, headers(i));
            }
        }
    }
}

#[test]
fn transactions_and_other_codecs_are_refused() {
    let encode = |record: kafka::Record| {
        let mut raw = BytesMut::new();
        let options = kafka::RecordEncodeOptions { version: 2, compression: kafka::Compression::None };
        kafka::RecordBatchEncoder::encode(&mut raw, &[record], &options).unwrap();
        RecordBatch::validate(raw.freeze(), &Limits::default())
    };
    assert!(encode(their_record(0, -1)).is_ok());
    assert!(encode(kafka::Record { transactional: true, ..their_record(0, 1) }).is_err());
    assert!(encode(kafka::Record { control: true, ..their_record(0, 1) }).is_err());
}

fn their_record(i: usize, producer_id: i64) -> kafka::Record {
    kafka::Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 12,
        producer_id,
        producer_epoch: 3,
        timestamp_type: kafka::TimestampType::Creation,
        offset: 5000 + i as i64,
        sequence: 17 + i as i32,
        timestamp: timestamp(i),
        key: key(i),
        value: value(i),
        headers: headers(i).into_iter().map(|(k, v)| (StrBytes::from_string(k), v)).collect(),
    }
}

fn utf8(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
