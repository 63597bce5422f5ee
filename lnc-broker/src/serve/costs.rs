//! What a request may cost: known before it is served, and bounded. What takes longer than a moment goes on in later turns.

use crate::{Broker, Caller};
use lnc_log::disk::Disk;
use lnc_protocol::message::{FetchPartition, Opcode, Request};
use lnc_protocol::{ErrorCode, MAX_ENTRIES};
use std::collections::BTreeSet;

/// Entries of fetches that are looked at again in a turn since something has changed; one fetch at least.
pub(crate) const ENTRIES_PER_TURN: usize = MAX_ENTRIES;

/// Bytes in a reply for a partition of a topic, and for the topic beside its name: more than they take.
const PARTITION_BYTES: usize = 24;
const TOPIC_BYTES: usize = 24;

impl<D: Disk> Broker<D> {
    /// Whether a request asks for no more than one may; if not, its caller is told so.
    pub(crate) fn is_affordable(&mut self, caller: Caller, opcode: Opcode, request: &Request) -> bool {
        let (entries, what) = match request {
            Request::Fetch(fetch) => (fetch.partitions.len(), "partitions"),
            Request::ListOffsets(search) => (search.partitions.len(), "partitions"),
            Request::Metadata(metadata) => (metadata.topics.as_ref().map_or(0, Vec::len), "topics"),
            _ => return true,
        };
        if entries > MAX_ENTRIES {
            let message =
                format!("{} asks for {entries} {what}, of which a request may have {MAX_ENTRIES}", opcode.name());
            self.refuse(caller, opcode, ErrorCode::InvalidRequest, message);
            return false;
        }
        // Each would be looked at with each record that comes.
        if let Some(again) = named_again(request) {
            let (topic, partition) = (&again.topic, again.partition);
            let message = format!("Fetch names partition {partition} of topic {topic:?} twice: once is enough");
            self.refuse(caller, opcode, ErrorCode::InvalidRequest, message);
            return false;
        }
        true
    }

    /// About how long a reply about all topics is, as of a moment ago.
    pub fn metadata_bytes(&self) -> usize {
        self.figures.metadata_bytes
    }

    /// The same, found out now: it takes a look at every topic.
    pub(crate) fn count_metadata_bytes(&self) -> usize {
        reply_bytes(self.catalog.topics().map(|topic| (topic.name.len(), topic.partitions)))
    }

    /// Whether a reply about these topics, by the length of the name and the partitions of each, fits into a frame.
    pub(crate) fn fits_a_reply(&self, topics: impl Iterator<Item = (usize, u32)>) -> Result<(), String> {
        let bytes = reply_bytes(topics);
        let most = self.config.max_frame_bytes;
        match bytes > most {
            true => Err(format!(
                "the reply would have about {bytes} bytes, a frame has {most} at most: ask for fewer topics"
            )),
            false => Ok(()),
        }
    }
}

/// A partition that a fetch names more than once.
fn named_again(request: &Request) -> Option<&FetchPartition> {
    let Request::Fetch(fetch) = request else { return None };
    let mut seen = BTreeSet::new();
    let mut all = fetch.partitions.iter().filter(|_| fetch.partitions.len() > 1);
    all.find(|wanted| !seen.insert((&wanted.topic, wanted.topic_id, wanted.partition)))
}

fn reply_bytes(topics: impl Iterator<Item = (usize, u32)>) -> usize {
    topics.map(|(name, partitions)| TOPIC_BYTES + name + partitions as usize * PARTITION_BYTES).sum()
}
