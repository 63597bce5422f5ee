//! Batches whose records take long to look through are looked at on a thread of their own: a megabyte may hold a million records,
//! a kilobyte may decompress to sixteen megabytes, and the shard has other things to do meanwhile. Those that come are looked through
//! before their requests get to the broker, and those in which it searches for a time when it asks.

use bytes::Bytes;
use lnc_broker::{Hit, first_since};
use lnc_protocol::batch::HEADER_LEN;
use lnc_protocol::message::ProduceRequest;
use lnc_protocol::{BatchError, BatchHeader, Codec, Limits, RecordBatch, codec};
use std::io;
use tokio::sync::{mpsc, oneshot};

/// Records that are looked through in well below a millisecond.
const FEW_RECORDS: u32 = 4096;

/// And so are so many bytes that were compressed. More is worth the way to the other thread and back.
const FEW_BYTES: usize = 1 << 20;

/// A batch to look through, and whom to tell.
enum Job {
    /// Whether it is as it must be.
    Validate(Bytes, oneshot::Sender<Result<(), BatchError>>),
    /// Where its first record at or after a time is.
    Search(Bytes, i64, oneshot::Sender<Hit>),
}

/// The thread. It ends with this.
pub(super) struct Validator(mpsc::UnboundedSender<Job>);

impl Validator {
    pub(super) fn start(limits: Limits) -> io::Result<Self> {
        // A connection waits for its batch, and a search for its, so there are no more than those.
        let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
        let look = move || {
            // Where processors are short, others come first.
            let _ = rustix::process::nice(5);
            // Whoever asked may have gone away, and is not looked for then.
            while let Some(job) = jobs.blocking_recv() {
                match job {
                    Job::Validate(batch, tell) if !tell.is_closed() => {
                        let _ = tell.send(RecordBatch::validate(batch, &limits).map(drop));
                    }
                    Job::Search(batch, timestamp_ms, tell) if !tell.is_closed() => {
                        let _ = tell.send(first_since(&batch, timestamp_ms));
                    }
                    Job::Validate(..) | Job::Search(..) => {}
                }
            }
        };
        std::thread::Builder::new().name("validate".into()).spawn(look)?;
        Ok(Self(sender))
    }

    /// The batch of a produce request's body, if it takes long to look through.
    pub(super) fn costly(body: &Bytes) -> Option<Bytes> {
        let batch = ProduceRequest::batch_in(body)?;
        let header = BatchHeader::parse(batch).ok()?;
        let is_long = header.codec != Codec::None && !codec::is_short(header.codec, &batch[HEADER_LEN..], FEW_BYTES);
        (is_long || header.record_count > FEW_RECORDS).then(|| body.slice_ref(batch))
    }

    /// Look through a batch. `None` if the thread is gone: then it is not known.
    pub(super) async fn validate(&self, batch: Bytes) -> Option<Result<(), BatchError>> {
        let (tell, told) = oneshot::channel();
        self.0.send(Job::Validate(batch, tell)).ok()?;
        told.await.ok()
    }

    /// Find the first record at or after a time in a batch. `None` if the thread is gone.
    pub(super) async fn search(&self, batch: Bytes, timestamp_ms: i64) -> Option<Hit> {
        let (tell, told) = oneshot::channel();
        self.0.send(Job::Search(batch, timestamp_ms, tell)).ok()?;
        told.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use lnc_protocol::message::{Acks, Request};
    use lnc_protocol::{BatchBuilder, Flags, encode_request, frame};

    /// Whether a produce request with this batch goes to the other thread.
    fn is_costly(codec: Codec, values: &[&[u8]]) -> bool {
        let mut builder = BatchBuilder::new(codec);
        values.iter().for_each(|value| builder.append(0, None, Some(value), &[]).unwrap());
        let produce = ProduceRequest {
            acks: Acks::Quorum,
            timeout_ms: 1000,
            topic: "t".into(),
            topic_id: 0,
            partition: 0,
            batch: builder.build(),
        };
        let mut out = BytesMut::new();
        encode_request(&mut out, Flags::NONE, 1, &Request::Produce(produce));
        let frame = frame::decode(&mut out, 64 << 20).unwrap().unwrap();
        Validator::costly(&frame.body).is_some()
    }

    #[test]
    fn what_a_batch_becomes_counts_and_not_how_long_it_is() {
        assert!(!is_costly(Codec::None, &[&[0; 4 << 20]]));
        assert!(is_costly(Codec::None, &[&b""[..]; FEW_RECORDS as usize + 1]));
        for codec in [Codec::Lz4, Codec::Zstd] {
            assert!(!is_costly(codec, &[b"a few bytes", b"and a few more"]), "{codec:?}");
            assert!(is_costly(codec, &[&[0; 15 << 20]]), "{codec:?}");
        }
    }
}
