//! What a request may cost: known before it is served, and bounded. What takes longer than a moment goes on in later turns.

use crate::catalog::Topic;
use crate::{Broker, Caller};
use lnc_log::disk::Disk;
use lnc_protocol::message::{FetchPartition, Opcode, Request};
use lnc_protocol::{ErrorCode, MAX_ENTRIES};
use std::collections::BTreeSet;

/// Entries of fetches that are looked at again in a turn since something has changed, one fetch at least; and of reads that are
/// served since the leaders have said what is committed.
pub(crate) const ENTRIES_PER_TURN: usize = MAX_ENTRIES;

/// Bytes in a reply for a partition of a topic, and for the topic beside its name: more than they take.
const PARTITION_BYTES: usize = 24;
const TOPIC_BYTES: usize = 24;
/// The same in a reply to `DescribeTopic`, in one to `ListTopics`, and for a group and a node in one to `ClusterInfo`.
const DESCRIBED_BYTES: usize = 48;
const LISTED_BYTES: usize = 64;
const STATUS_BYTES: usize = 256;

/// About how long replies are that grow with what the cluster has, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplySizes {
    /// To `Metadata` about all topics.
    pub metadata: usize,
    /// To `ListTopics`.
    pub topics: usize,
    /// To `DescribeTopic` for the largest topic.
    pub topic: usize,
    /// To `ClusterInfo`.
    pub cluster: usize,
}

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

    /// The connections of these clients have ended, and with them what they wait for. All at once: to look for what is theirs is
    /// to look at everything that waits, and a thousand may go together.
    pub fn clients_gone(&mut self, connections: &BTreeSet<u64>) {
        if connections.is_empty() {
            return;
        }
        connections.iter().for_each(|connection| self.figures.forget(*connection));
        self.forget_barriers(connections);
        self.forget_passed_on(connections);
        self.forget_fetches(connections);
        self.scans.forget(connections);
    }

    /// About how long replies are, as of a moment ago.
    pub fn reply_sizes(&self) -> ReplySizes {
        self.figures.reply_sizes
    }

    /// The same, found out now: it takes a look at every topic.
    pub(crate) fn count_reply_sizes(&self) -> ReplySizes {
        let described = |topic: &Topic| TOPIC_BYTES + LISTED_BYTES + topic.partitions as usize * DESCRIBED_BYTES;
        let members = self.known_members().current().count();
        ReplySizes {
            metadata: reply_bytes(self.catalog.topics().map(|topic| (topic.name.len(), topic.partitions))),
            topics: self.catalog.topics().map(|topic| LISTED_BYTES + topic.name.len()).sum(),
            topic: self.catalog.topics().map(|topic| described(topic) + topic.name.len()).max().unwrap_or_default(),
            cluster: (1 + self.groups.len()) * (1 + members) * STATUS_BYTES,
        }
    }

    /// About how many topics and partitions are looked at to serve a request.
    pub(crate) fn entries_of(&self, request: &Request) -> usize {
        let partitions = |name: &String| 1 + self.catalog.topic(name).map_or(0, |topic| topic.partitions as usize);
        match request {
            Request::DescribeTopic(describe) => partitions(&describe.name),
            Request::ListTopics => 1 + self.catalog.topics().len(),
            Request::Metadata(metadata) => match &metadata.topics {
                Some(names) => names.iter().map(partitions).sum(),
                None => 1 + self.figures.reply_sizes.metadata / PARTITION_BYTES,
            },
            Request::ListOffsets(search) => search.partitions.len(),
            Request::Fetch(fetch) => fetch.partitions.len(),
            _ => 1,
        }
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
