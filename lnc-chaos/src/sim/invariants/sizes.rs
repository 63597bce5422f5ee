//! How much a fetch may be given.

use super::Violation;
use lnc_protocol::batch;
use lnc_protocol::message::FetchedPartition;

/// No more bytes than were asked for, unless it is a single batch.
pub(crate) fn check(found: &FetchedPartition, max_bytes: u32) -> Result<(), Violation> {
    if found.records.len() <= max_bytes as usize {
        return Ok(());
    }
    let batches: usize = found.records.pieces().iter().map(|piece| batch::split(piece.clone()).count()).sum();
    if batches <= 1 {
        return Ok(());
    }
    let what = format!("a fetch of at most {max_bytes} bytes gives {} in {batches} batches", found.records.len());
    Err(Violation::new("fetch-size", what))
}
