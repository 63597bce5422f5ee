//! The clients: producers, readers, those who make and remove topics. Each is a small state machine that is told of timers
//! and outcomes and asks for requests and timers.

mod admin;
mod consumer;
mod housekeeper;
mod owner;
mod plain;
mod producer;
pub(in crate::sim) mod reader;
mod steward;

use super::history::History;
use super::invariants::Violation;
use super::invariants::records::{PartitionId, Records, View};
use super::profile::Profile;
use super::rng::Rng;
use super::settings::Settings;
use lnc_protocol::message::{Acks, FetchPartition, FetchRequest, ProduceRequest};
use lnc_protocol::{BatchBuilder, Codec, ErrorReply, Flags, Request, Response};

/// The token of the first timer of every client.
pub(super) const BEGIN: u64 = 0;

/// What came of a request, as its client sees it.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It was answered.
    Done(Response),
    /// It was refused.
    Refused(ErrorReply),
    /// The connection broke first.
    Lost,
    /// No answer came in time.
    TimedOut,
}

/// What a client wants.
pub(super) enum Action {
    Send {
        node: u64,
        request: Request,
        flags: Flags,
        timeout_us: u64,
        token: u64,
    },
    Timer {
        after_us: u64,
        token: u64,
    },
    /// An operator puts a machine with an empty disk there.
    Provide {
        node: u64,
    },
    /// A node is no member any more, and runs on.
    Dismiss {
        node: u64,
    },
    /// An operator takes a node away that is no member.
    Retire {
        node: u64,
    },
}

/// What an operator sees of the members.
#[derive(Default)]
pub(super) struct MembersView {
    /// Nodes that have everything, and vote in every group.
    pub(super) whole: Vec<u64>,
    /// Nodes that no group names.
    pub(super) unnamed: Vec<u64>,
}

/// What a client sees, and through which it acts.
pub(super) struct Env<'a> {
    pub(super) now_us: u64,
    /// The machines that are there.
    pub(super) present: &'a [u64],
    /// New work must not be begun any more.
    pub(super) stopping: bool,
    /// All faults have ended, but those that never do.
    pub(super) healed: bool,
    /// Since when other programs leave nothing of any disk.
    pub(super) filled_us: Option<u64>,
    pub(super) produce_every_us: u64,
    /// Of a thousand batches, those that are that large.
    pub(super) large_permille: u64,
    /// Bytes of the largest batches that producers make.
    pub(super) max_batch_bytes: usize,
    pub(super) last_sequence: i32,
    pub(super) rng: &'a mut Rng,
    pub(super) records: &'a mut Records,
    pub(super) history: &'a mut History,
    /// Nodes whose disks were made to fail: they may say that their storage is damaged.
    pub(super) suspects: &'a [u64],
    /// By node, from 1 on: the number of its starts.
    pub(super) lives: &'a [u32],
    pub(super) members: MembersView,
    pub(super) actions: &'a mut Vec<Action>,
    pub(super) client: usize,
}

impl Env<'_> {
    fn timer(&mut self, after_us: u64, token: u64) {
        self.actions.push(Action::Timer { after_us, token });
    }

    fn send(&mut self, node: u64, request: Request, timeout_us: u64, token: u64) {
        // Clients that know the cluster go to leaders themselves; others have their requests passed on.
        let flags = if self.rng.chance(300) { Flags::NO_FORWARD } else { Flags::NONE };
        self.actions.push(Action::Send { node, request, flags, timeout_us, token });
    }

    fn any_node(&mut self) -> u64 {
        self.rng.pick(self.present)
    }

    fn life(&self, node: u64) -> u32 {
        self.lives[node as usize - 1]
    }

    /// The view of a node that was asked in this life of it. If it has been started since, either life may have answered.
    fn view(&self, node: u64, asked_in: u32) -> View {
        View { client: self.client, node, life: (self.life(node) == asked_in).then_some(asked_in) }
    }

    fn any_partition(&mut self) -> Option<PartitionId> {
        let all = self.records.partitions();
        (!all.is_empty()).then(|| self.rng.pick(&all))
    }

    /// A fetch, and how many bytes its answer may have.
    fn fetch(&mut self, at: PartitionId, offset: u64, max_wait_ms: u32, min_bytes: u32) -> (Request, u32) {
        let (max_bytes, in_all) = (self.rng.pick(&[1 << 10, 8 << 10, 8 << 10, 32 << 10]), self.rng.pick(&[1, 4, 4]));
        let in_all = max_bytes / 2 * in_all;
        let topic = &self.records.topics()[at.topic];
        let partition = FetchPartition {
            topic: topic.name.clone(),
            topic_id: topic.id,
            partition: at.partition,
            offset,
            max_bytes,
        };
        let request = FetchRequest { max_wait_ms, min_bytes, max_bytes: in_all, partitions: vec![partition] };
        (Request::Fetch(request), max_bytes.min(in_all))
    }

    fn produce(&self, at: PartitionId, acks: Acks, batch: bytes::Bytes) -> Request {
        let topic = &self.records.topics()[at.topic];
        Request::Produce(ProduceRequest {
            acks,
            timeout_ms: 4_000,
            topic: topic.name.clone(),
            topic_id: topic.id,
            partition: at.partition,
            batch,
        })
    }

    /// A time around this one, in microseconds.
    fn around(&mut self, us: u64) -> u64 {
        us / 2 + self.rng.below(us.max(1))
    }
}

/// See the module documentation.
pub(super) trait Client {
    /// A timer that it asked for.
    fn timer(&mut self, env: &mut Env<'_>, token: u64) -> Result<(), Violation>;
    /// What came of a request that it sent.
    fn outcome(&mut self, env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation>;
    /// Whether nothing that it has begun is open.
    fn is_idle(&self) -> bool;
    /// Whether it wants to know of the members.
    fn watches_members(&self) -> bool {
        false
    }
    /// What it is and does, for a report.
    fn describe(&self) -> String;
}

/// A batch of records.
fn batch(
    span: super::invariants::records::Span,
    producer: Option<(i64, i16, i32)>,
    timestamp_ms: i64,
    codec: Codec,
) -> bytes::Bytes {
    let mut builder = BatchBuilder::new(codec);
    if let Some((id, epoch, sequence)) = producer {
        builder.set_producer(id, epoch, sequence);
    }
    let mut value = Vec::new();
    for number in span.first..span.first + span.count {
        super::invariants::records::value(span.stream, number, &mut value);
        // A small record always fits.
        let _ = builder.append(timestamp_ms, None, Some(&value), &[]);
    }
    builder.build()
}

/// Whether members come and go in runs of a profile.
pub(super) fn changes_members(profile: Profile) -> bool {
    steward::Style::of(profile).is_some()
}

/// The clients of a run.
pub(super) fn clients(settings: &Settings, profile: Profile) -> Vec<Box<dyn Client>> {
    let mut rng = Rng::fork(settings.seed, 0xc0de);
    let mut all: Vec<Box<dyn Client>> = vec![Box::new(admin::Founder::new())];
    for _ in 0..rng.between(2, 5) {
        all.push(Box::new(producer::Producer::new(rng.between(1, 5) as usize)));
    }
    for acks in [Acks::Quorum, Acks::Leader, Acks::None] {
        all.push(Box::new(plain::PlainProducer::new(acks)));
    }
    for _ in 0..rng.between(2, 4) {
        all.push(Box::new(consumer::Consumer::new()));
    }
    for _ in 0..rng.between(1, 3) {
        all.push(Box::new(admin::Admin::new()));
    }
    all.push(Box::new(owner::Owner::new()));
    if matches!(profile, Profile::Coups | Profile::Echoes) {
        all.extend((0..2).map(|_| Box::new(consumer::Consumer::who_only_looks()) as Box<dyn Client>));
    }
    if matches!(profile, Profile::Tight | Profile::Filled) {
        all.push(Box::new(housekeeper::Housekeeper::new()));
    }
    if let Some(style) = steward::Style::of(profile) {
        all.push(Box::new(steward::Steward::new(style, settings)));
    }
    all
}
