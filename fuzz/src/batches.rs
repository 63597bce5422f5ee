//! Record batches: what producers send, what readers take apart, with every codec.

use crate::input::put;
use bytes::Bytes;
use lnc_protocol::batch::{self, HEADER_LEN, MAGIC, RecordBatch};
use lnc_protocol::codec::{Codec, Compressor};
use lnc_protocol::{BatchError, Limits};

/// Small, so that a batch that decompresses beyond them is found to do so.
const LIMITS: Limits = Limits { max_batch_bytes: 64 << 10, max_decompressed_bytes: 1 << 20 };

/// The bytes as they are; as a batch with its length and checksum put right; and as one whose records are compressed.
pub fn run(data: &[u8]) {
    whole(Bytes::copy_from_slice(data));
    let mut bytes = data.to_vec();
    seal(&mut bytes);
    whole(bytes.into());
    for codec in [Codec::Lz4, Codec::Zstd] {
        if let Some(records) = data.get(HEADER_LEN..) {
            let mut bytes = data[..HEADER_LEN].to_vec();
            Compressor::new().compress(codec, records, &mut bytes).expect("memory takes everything");
            bytes[22] = codec as u8;
            seal(&mut bytes);
            whole(bytes.into());
        }
    }
}

/// Puts magic, length and checksum of a batch right.
pub fn seal(bytes: &mut [u8]) {
    let len = (bytes.len() as u32).wrapping_sub(12);
    put(bytes, 8, &len.to_be_bytes());
    put(bytes, 16, &[MAGIC as u8]);
    if let Some(covered) = bytes.get(21..) {
        let crc = crc32c::crc32c(covered);
        put(bytes, 17, &crc.to_be_bytes());
    }
}

fn whole(bytes: Bytes) {
    let mut total = 0;
    for part in batch::split(bytes.clone()) {
        total += part.map_or(0, |part| part.len());
    }
    assert!(total <= bytes.len());
    let valid = RecordBatch::validate(bytes.clone(), &LIMITS);
    let found: Result<Vec<_>, BatchError> = batch::records(&bytes, &LIMITS).and_then(Iterator::collect);
    if let Ok(valid) = valid {
        batch::check(&bytes).expect("what is valid passes the lesser check");
        let found = found.expect("a consumer reads what a broker has accepted");
        assert_eq!(found.len() as u32, valid.header().record_count);
    }
}
