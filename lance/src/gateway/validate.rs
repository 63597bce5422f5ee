//! Batches whose records take long to look through are looked at on a thread of their own, before their requests get to the
//! broker: a megabyte may hold a million records, or decompress to sixteen, and the shard has other things to do meanwhile.

use bytes::Bytes;
use lnc_protocol::message::ProduceRequest;
use lnc_protocol::{BatchError, BatchHeader, Codec, Limits, RecordBatch};
use std::io;
use tokio::sync::{mpsc, oneshot};

/// Records that are looked through in well below a millisecond.
const FEW_RECORDS: u32 = 4096;

/// A compressed batch of so many bytes is worth the way to the other thread and back.
const LONG_COMPRESSED: usize = 4 << 10;

/// A batch to look through, and whom to tell.
type Job = (Bytes, oneshot::Sender<Result<(), BatchError>>);

/// The thread. It ends with this.
pub(super) struct Validator(mpsc::UnboundedSender<Job>);

impl Validator {
    pub(super) fn start(limits: Limits) -> io::Result<Self> {
        // A connection waits for its batch, so there are no more than connections.
        let (sender, mut jobs) = mpsc::unbounded_channel::<Job>();
        let look = move || {
            // Where processors are short, others come first.
            let _ = rustix::process::nice(5);
            while let Some((batch, tell)) = jobs.blocking_recv() {
                // Whoever asked may have gone away.
                let _ = tell.send(RecordBatch::validate(batch, &limits).map(drop));
            }
        };
        std::thread::Builder::new().name("validate".into()).spawn(look)?;
        Ok(Self(sender))
    }

    /// The batch of a produce request's body, if it takes long to look through.
    pub(super) fn costly(body: &Bytes) -> Option<Bytes> {
        let batch = ProduceRequest::batch_in(body)?;
        let header = BatchHeader::parse(batch).ok()?;
        let is_long = header.codec != Codec::None && batch.len() >= LONG_COMPRESSED;
        (is_long || header.record_count > FEW_RECORDS).then(|| body.slice_ref(batch))
    }

    /// Look through a batch. `None` if the thread is gone: then it is not known.
    pub(super) async fn validate(&self, batch: Bytes) -> Option<Result<(), BatchError>> {
        let (tell, told) = oneshot::channel();
        self.0.send((batch, tell)).ok()?;
        told.await.ok()
    }
}
