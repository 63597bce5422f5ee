//! Requests that cost a node as much as one may ask for, and more: what others notice of them is measured beside it.
//!
//! Each connection sends one kind of request, the next when the last is answered or when it is time to look for another kind of
//! trouble. Nothing of it breaks the protocol; a broker answers, or says what is too much.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lnc_client::Acks;
use lnc_protocol::frame::{self, Flags};
use lnc_protocol::message::{
    FetchPartition, FetchRequest, ListOffsetsPartition, ListOffsetsRequest, MetadataRequest, OffsetSpec, Opcode,
    ProduceRequest, Request, decode_reply, encode_request,
};
use lnc_protocol::{BatchBuilder, Codec, MAX_ENTRIES};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::args::AbuseArgs;
use crate::topics::{self, Target};
use crate::wire::{self, MAX_REPLY};
use crate::{BenchError, client, now_ms};

/// Partitions of the topic if it has to be created.
const PARTITIONS: u32 = 64;

/// How long an answer may take before its connection is given up; a parked fetch waits for less.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a fetch waits that finds nothing.
const PARKED_MS: u32 = 5_000;

/// Records without a value, as many as one batch may have; about a megabyte.
const TINY: u32 = 120_000;

/// Records of a megabyte of zeros in a compressed batch: just below the limit of what one may decompress to.
const INFLATED: u32 = 15;

/// What a connection does, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Offsets by time, all that one request may ask for, each at another time.
    Searches,
    /// As many again as one may ask for.
    TooMany,
    /// One topic's name, as often as one may say it.
    Names,
    /// A batch of many records that hold nothing.
    TinyRecords,
    /// A batch that is small and becomes large.
    Inflating,
    /// A fetch of all it may name that finds nothing and waits.
    Parked,
    /// A search whose client is gone before the answer.
    Gone,
    /// Everything that there is to read, which nobody then reads.
    Unread,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Searches,
        Self::TooMany,
        Self::Names,
        Self::TinyRecords,
        Self::Inflating,
        Self::Parked,
        Self::Gone,
        Self::Unread,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Searches => "searches",
            Self::TooMany => "too-many",
            Self::Names => "names",
            Self::TinyRecords => "tiny-records",
            Self::Inflating => "inflating",
            Self::Parked => "parked",
            Self::Gone => "gone",
            Self::Unread => "unread",
        }
    }

    /// The request, with what changes from one to the next.
    fn request(self, target: &Target, round: u64, limit: usize) -> Request {
        let entries = if self == Self::TooMany { 5 * MAX_ENTRIES } else { MAX_ENTRIES };
        let (topic, topic_id, partition) = (target.topic.clone(), target.topic_id, target.partition);
        match self {
            Self::Searches | Self::TooMany | Self::Gone => {
                let now = now_ms();
                let search = |at: usize| ListOffsetsPartition {
                    topic: topic.clone(),
                    topic_id,
                    partition,
                    spec: OffsetSpec::Timestamp(now - (round % 1000) as i64 - at as i64),
                };
                Request::ListOffsets(ListOffsetsRequest { partitions: (0..entries).map(search).collect() })
            }
            Self::Names => Request::Metadata(MetadataRequest { topics: Some(vec![topic; entries]) }),
            Self::TinyRecords => produce(target, &batch(Codec::None, TINY, b"", limit)),
            Self::Inflating => produce(target, &batch(Codec::Zstd, INFLATED, &vec![0; 1 << 20], limit)),
            Self::Parked | Self::Unread => {
                let offset = if self == Self::Parked { u64::from(u32::MAX) } else { 0 };
                let fetch = FetchPartition { topic, topic_id, partition, offset, max_bytes: u32::MAX };
                Request::Fetch(FetchRequest {
                    max_wait_ms: PARKED_MS,
                    min_bytes: u32::MAX,
                    max_bytes: u32::MAX,
                    partitions: vec![fetch],
                })
            }
        }
    }
}

fn produce(target: &Target, batch: &Bytes) -> Request {
    Request::Produce(ProduceRequest {
        acks: Acks::Quorum,
        timeout_ms: PATIENCE.as_millis() as u32,
        topic: target.topic.clone(),
        topic_id: target.topic_id,
        partition: target.partition,
        batch: batch.clone(),
    })
}

/// A batch of records of this value, a millisecond apart; no more of them than fit into `limit` bytes without a codec.
fn batch(codec: Codec, records: u32, value: &[u8], limit: usize) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    let now = now_ms();
    while builder.count() < records && (codec != Codec::None || builder.encoded_len() + 64 < limit) {
        let timestamp_ms = now + i64::from(builder.count());
        builder.append(timestamp_ms, None, Some(value), &[]).expect("15 MiB are far below what a batch may hold");
    }
    builder.build()
}

/// What became of the requests of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Outcome {
    /// Answered, or for `gone` and `unread` sent.
    served: u64,
    /// Refused with an error that says why.
    refused: u64,
    /// Ended with the connection.
    lost: u64,
    /// The longest wait for an answer, in microseconds.
    longest_us: u64,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.served += other.served;
        self.refused += other.refused;
        self.lost += other.lost;
        self.longest_us = self.longest_us.max(other.longest_us);
    }
}

/// What became of all of them.
#[derive(Debug, Serialize)]
pub(crate) struct Abuse {
    seconds: f64,
    kinds: Vec<(Kind, Outcome)>,
}

impl Abuse {
    /// What must not be: a kind of request that nobody answers.
    pub(crate) fn failures(&self) -> Vec<String> {
        let unanswered = self.kinds.iter().filter(|(_, outcome)| outcome.served + outcome.refused == 0);
        unanswered.map(|(kind, outcome)| format!("{}: none answered, {} lost", kind.name(), outcome.lost)).collect()
    }
}

impl fmt::Display for Abuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<14} {:>9} {:>9} {:>6} {:>12}", "request", "served", "refused", "lost", "longest wait")?;
        for (kind, Outcome { served, refused, lost, longest_us }) in &self.kinds {
            let longest = *longest_us as f64 / 1000.0;
            writeln!(f, "{:<14} {served:>9} {refused:>9} {lost:>6} {longest:>9.1} ms", kind.name())?;
        }
        writeln!(f, "in {:.1} s", self.seconds)
    }
}

/// Keep at it for as long as the arguments say.
pub(crate) fn run(args: &AbuseArgs) -> Result<Abuse, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = client(&args.endpoints).await?;
        let names = [args.topic.clone()];
        topics::create(&client, &names, PARTITIONS).await?;
        let topology = topics::look_up(&client, &names).await?;
        let start = Instant::now();
        let end = start + args.duration;
        let mut all = JoinSet::new();
        for number in 0..args.connections as usize {
            let kind = Kind::ALL[number % Kind::ALL.len()];
            let target = topology.targets[number % topology.targets.len()].clone();
            let address = topology.address(target.leader).ok_or(BenchError::NoNodes)?.clone();
            all.spawn(async move { (kind, persist(kind, &address, &target, end).await) });
        }
        let mut kinds: Vec<(Kind, Outcome)> = Kind::ALL.map(|kind| (kind, Outcome::default())).into();
        kinds.truncate(args.connections as usize);
        while let Some(done) = all.join_next().await {
            let (kind, outcome) = done.map_err(|_| BenchError::Thread)?;
            if let Some((_, sum)) = kinds.iter_mut().find(|(known, _)| *known == kind) {
                sum.add(outcome);
            }
        }
        Ok(Abuse { seconds: start.elapsed().as_secs_f64(), kinds })
    })
}

/// One connection after the other until the time is up.
async fn persist(kind: Kind, address: &str, target: &Target, end: Instant) -> Outcome {
    let mut outcome = Outcome::default();
    while Instant::now() < end {
        let Ok((stream, hello)) = wire::connect(address).await else {
            outcome.lost += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let limit = hello.max_batch_bytes as usize;
        if insist(kind, stream, (target, limit), end, &mut outcome).await.is_none() {
            outcome.lost += 1;
        }
    }
    outcome
}

/// One request after the other on a connection, until it breaks (`None`), the time is up, or the kind has it end.
async fn insist(
    kind: Kind,
    mut stream: TcpStream,
    (target, limit): (&Target, usize),
    end: Instant,
    outcome: &mut Outcome,
) -> Option<()> {
    let (mut out, mut heard, mut round) = (BytesMut::new(), BytesMut::new(), 0);
    let once = encoded(&kind.request(target, 0, limit));
    while Instant::now() < end {
        round += 1;
        out.clear();
        match kind {
            Kind::Searches | Kind::TooMany | Kind::Gone => {
                out.extend_from_slice(&encoded(&kind.request(target, round, limit)));
            }
            _ => out.extend_from_slice(&once),
        }
        let start = Instant::now();
        stream.write_all(&out).await.ok()?;
        match kind {
            Kind::Gone => {
                outcome.served += 1;
                return Some(());
            }
            Kind::Unread => {
                outcome.served += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
                if round.is_multiple_of(100) {
                    return Some(());
                }
                continue;
            }
            _ => {}
        }
        let refused =
            tokio::time::timeout(PATIENCE, answer(&mut stream, &mut heard, once_opcode(kind))).await.ok()??;
        outcome.longest_us = outcome.longest_us.max(start.elapsed().as_micros() as u64);
        if refused { outcome.refused += 1 } else { outcome.served += 1 }
    }
    Some(())
}

fn once_opcode(kind: Kind) -> Opcode {
    match kind {
        Kind::Searches | Kind::TooMany | Kind::Gone => Opcode::ListOffsets,
        Kind::Names => Opcode::Metadata,
        Kind::TinyRecords | Kind::Inflating => Opcode::Produce,
        Kind::Parked | Kind::Unread => Opcode::Fetch,
    }
}

fn encoded(request: &Request) -> BytesMut {
    let mut out = BytesMut::new();
    encode_request(&mut out, Flags::NONE, 1, request);
    out
}

/// Whether the answer that comes is a refusal; `None` if none comes.
async fn answer(stream: &mut TcpStream, heard: &mut BytesMut, opcode: Opcode) -> Option<bool> {
    loop {
        if let Some(frame) = frame::decode(heard, MAX_REPLY).ok()? {
            return Some(decode_reply(opcode, frame.body).ok()?.result.is_err());
        }
        if stream.read_buf(heard).await.ok()? == 0 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing is refused for its form: what is too much is the number of things asked for.
    #[test]
    fn every_kind_is_a_request_of_the_protocol_in_one_frame() {
        const LIMIT: usize = 1 << 20;
        let target = Target { topic: "t".into(), topic_id: 7, partition: 3, leader: None };
        for kind in Kind::ALL {
            let mut bytes = encoded(&kind.request(&target, 5, LIMIT));
            let frame = frame::decode(&mut bytes, 8 << 20).unwrap().expect("a whole frame");
            let opcode = once_opcode(kind);
            assert_eq!(frame.header.opcode, u8::from(opcode), "{kind:?}");
            match Request::decode(opcode, frame.body) {
                Ok(Request::Produce(produce)) => assert!(produce.batch.len() <= LIMIT, "{kind:?}"),
                Ok(Request::Fetch(fetch)) => assert!(fetch.partitions.len() <= MAX_ENTRIES),
                Ok(Request::Metadata(metadata)) => assert_eq!(metadata.topics.unwrap().len(), MAX_ENTRIES),
                Ok(Request::ListOffsets(list)) => {
                    assert_eq!(list.partitions.len() > MAX_ENTRIES, kind == Kind::TooMany, "{kind:?}");
                }
                other => panic!("{kind:?}: {other:?}"),
            }
        }
    }
}
