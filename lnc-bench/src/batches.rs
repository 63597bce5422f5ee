//! Record batches, encoded before the run: while it runs, a request costs a copy and a checksum, not an encoding.
//!
//! What must differ from one request to the next is changed in the copy: keys, and the stamp by which a consumer knows
//! what it got. Keys and stamps have a fixed length, so nothing moves, and only the batch's checksum is computed anew.

use bytes::{BufMut, Bytes, BytesMut};
use lnc_client::Codec;
use lnc_protocol::batch::{BatchBuilder, Limits, records};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::payload::{KEY_LEN, KeySource, Keys, Sizes, fill, key};

/// Where a batch's CRC-32C stands, and where the bytes begin that it covers.
const CRC_AT: usize = 17;
const CRC_FROM: usize = 21;

/// Batches are prepared until they take about this many bytes; small enough for a cache of the processor.
const POOL_BYTES: f64 = 512.0 * 1024.0;
const FEWEST: f64 = 16.0;
const MOST: f64 = 4096.0;
/// So many samples of a distribution of sizes are wanted, as far as they stay below the second number of bytes.
const SAMPLES: f64 = 1024.0;
const SAMPLES_BYTES: f64 = 64.0 * 1024.0 * 1024.0;

/// The length of a [`Stamp`] in bytes.
pub(crate) const STAMP_LEN: usize = 16;

/// What batches are to hold.
#[derive(Clone, Debug)]
pub(crate) struct BatchSpec {
    pub(crate) sizes: Sizes,
    pub(crate) keys: Keys,
    pub(crate) records: u32,
    pub(crate) codec: Codec,
    /// Which share of a value compresses away, from 0 to 1.
    pub(crate) compressible: f64,
    /// Whether each value begins with a [`Stamp`]. Needs values of at least [`STAMP_LEN`] bytes.
    pub(crate) stamped: bool,
    /// The timestamp of all records, in milliseconds since 1970.
    pub(crate) timestamp_ms: i64,
}

/// What a stamped batch says about itself, at the start of the value of its first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The number of the request.
    pub(crate) id: u64,
    /// When it was due, in nanoseconds of the run's clock.
    pub(crate) due: u64,
}

impl Stamp {
    /// Reads the stamp at the start of a value.
    pub(crate) fn read(value: &[u8]) -> Option<Stamp> {
        let (id, rest) = value.split_first_chunk::<8>()?;
        let due = rest.first_chunk::<8>()?;
        Some(Stamp { id: u64::from_le_bytes(*id), due: u64::from_le_bytes(*due) })
    }

    fn write(self, value: &mut [u8]) {
        value[..8].copy_from_slice(&self.id.to_le_bytes());
        value[8..STAMP_LEN].copy_from_slice(&self.due.to_le_bytes());
    }
}

/// What a batch counts as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) records: u32,
    /// Of all values.
    pub(crate) bytes: u32,
}

/// A source of batches.
pub(crate) struct Batches {
    spec: BatchSpec,
    pool: Vec<Prepared>,
    next: usize,
    keys: KeySource,
    /// Compresses batches that differ; they cannot be changed once they are compressed.
    compressor: Option<BatchBuilder>,
}

struct Prepared {
    bytes: Bytes,
    load: Load,
    /// Where each record's key begins; empty without keys.
    keys: Vec<usize>,
    /// Where the value of the first record begins.
    value: usize,
}

impl Batches {
    /// The source number `number` of `of` that share the keys.
    pub(crate) fn new(spec: &BatchSpec, number: u64, of: u64) -> Self {
        let differ = spec.stamped || spec.keys != Keys::None;
        let at_once = if differ { Codec::None } else { spec.codec };
        let mut rng = SmallRng::seed_from_u64(0xBA7C_4E50 + number);
        let mean = (spec.sizes.mean() * f64::from(spec.records)).max(1.0);
        let mut count = (POOL_BYTES / mean).clamp(FEWEST, MOST);
        if !matches!(spec.sizes, Sizes::Fixed(_)) {
            count = count.max(SAMPLES.min(SAMPLES_BYTES / mean));
        }
        let mut builder = BatchBuilder::new(at_once);
        let pool = (0..count as usize).map(|_| prepare(spec, &mut builder, &mut rng)).collect();
        Batches {
            pool,
            next: 0,
            keys: KeySource::new(spec.keys, number, of),
            compressor: (differ && spec.codec != Codec::None).then(|| BatchBuilder::new(spec.codec)),
            spec: spec.clone(),
        }
    }

    /// The length of the longest batch in bytes; before compression if each is compressed when it is sent.
    pub(crate) fn longest(&self) -> usize {
        self.pool.iter().map(|prepared| prepared.bytes.len()).max().unwrap_or(0)
    }

    /// Appends the next batch to `out`, behind its length as a little-endian `u32`.
    pub(crate) fn put(&mut self, out: &mut BytesMut, stamp: Stamp) -> Load {
        let prepared = &self.pool[self.next];
        self.next = (self.next + 1) % self.pool.len();
        if let Some(compressor) = &mut self.compressor {
            let mut batch = BytesMut::from(&prepared.bytes[..]);
            prepared.change(&mut batch, &mut self.keys, self.spec.stamped.then_some(stamp));
            let batch = compress(compressor, &batch.freeze());
            out.put_u32_le(batch.len() as u32);
            out.put_slice(&batch);
            return prepared.load;
        }
        out.put_u32_le(prepared.bytes.len() as u32);
        let start = out.len();
        out.put_slice(&prepared.bytes);
        if self.spec.stamped || !prepared.keys.is_empty() {
            prepared.change(&mut out[start..], &mut self.keys, self.spec.stamped.then_some(stamp));
        }
        prepared.load
    }
}

impl Prepared {
    fn change(&self, batch: &mut [u8], keys: &mut KeySource, stamp: Option<Stamp>) {
        for &at in &self.keys {
            if let Some(key) = keys.draw() {
                batch[at..at + KEY_LEN].copy_from_slice(&key);
            }
        }
        if let Some(stamp) = stamp {
            stamp.write(&mut batch[self.value..]);
        }
        let crc = crc32c::crc32c(&batch[CRC_FROM..]);
        batch[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
    }
}

fn prepare(spec: &BatchSpec, builder: &mut BatchBuilder, rng: &mut SmallRng) -> Prepared {
    let key = (spec.keys != Keys::None).then(|| key(0));
    let mut load = Load { records: spec.records, bytes: 0 };
    for _ in 0..spec.records {
        let mut value = vec![0; spec.sizes.sample(rng)];
        fill(&mut value, spec.compressible, rng);
        load.bytes += value.len() as u32;
        let key = key.as_ref().map(|key| &key[..]);
        builder.append(spec.timestamp_ms, key, Some(&value), &[]).expect("the command line limits a batch to 1 GiB");
    }
    let bytes = builder.finish();
    let (mut keys, mut first_value) = (Vec::new(), 0);
    if key.is_some() || spec.stamped {
        let place = |part: &Bytes| part.as_ptr() as usize - bytes.as_ptr() as usize;
        for (index, record) in records(&bytes, &Limits::default()).expect("just built").enumerate() {
            let record = record.expect("just built");
            keys.extend(record.key.as_ref().map(place));
            if let (0, Some(value)) = (index, &record.value) {
                first_value = place(value);
            }
        }
    }
    Prepared { bytes, load, keys, value: first_value }
}

fn compress(compressor: &mut BatchBuilder, batch: &Bytes) -> Bytes {
    for record in records(batch, &Limits::default()).expect("just built") {
        let record = record.expect("just built");
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        compressor.append(record.timestamp_ms, key, value, &[]).expect("it fitted before");
    }
    compressor.finish()
}

#[cfg(test)]
mod tests {
    use lnc_protocol::RecordBatch;

    use super::*;

    fn spec(keys: Keys, codec: Codec, stamped: bool) -> BatchSpec {
        let sizes = Sizes::Uniform(20, 300);
        BatchSpec { sizes, keys, records: 3, codec, compressible: 0.5, stamped, timestamp_ms: 1_700_000_000_000 }
    }

    /// Takes the next batch as a broker would.
    fn take(batches: &mut Batches, stamp: Stamp) -> (Bytes, Load) {
        let mut out = BytesMut::from("before");
        let load = batches.put(&mut out, stamp);
        let len = u32::from_le_bytes(*out[6..].first_chunk().unwrap()) as usize;
        let bytes = out.freeze().slice(10..);
        assert_eq!(bytes.len(), len);
        (RecordBatch::validate(bytes, &Limits::default()).unwrap().into_bytes(), load)
    }

    #[test]
    fn every_batch_is_one_that_a_broker_accepts() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            for keys in [Keys::None, Keys::Sequential] {
                for stamped in [false, true] {
                    let mut batches = Batches::new(&spec(keys, codec, stamped), 0, 1);
                    for id in 0..50 {
                        let stamp = Stamp { id, due: 1000 + id };
                        let (bytes, load) = take(&mut batches, stamp);
                        let found: Vec<_> =
                            records(&bytes, &Limits::default()).unwrap().map(|record| record.unwrap()).collect();
                        let len: usize = found.iter().map(|record| record.value.as_ref().unwrap().len()).sum();
                        assert_eq!((found.len(), len), (3, load.bytes as usize));
                        if stamped {
                            assert_eq!(Stamp::read(found[0].value.as_ref().unwrap()), Some(stamp));
                        }
                        for (number, record) in (id * 3..).zip(&found) {
                            let expected = (keys != Keys::None).then(|| Bytes::copy_from_slice(&key(number)));
                            assert_eq!(record.key, expected, "{codec:?} {stamped}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_pool_has_enough_samples_and_is_no_larger_than_it_needs_to_be() {
        let count = |sizes: &str| {
            let sizes = sizes.parse().unwrap();
            let spec = BatchSpec { sizes, records: 1, ..spec(Keys::None, Codec::None, false) };
            Batches::new(&spec, 0, 1).pool.len()
        };
        assert_eq!((count("1KiB"), count("0"), count("1MiB"), count("uniform:0-8KiB")), (512, 4096, 16, 1024));
    }

    #[test]
    fn a_value_without_a_stamp_has_none() {
        assert_eq!(Stamp::read(&[0; STAMP_LEN - 1]), None);
    }
}
