//! The broker: what a node does with requests, peer messages, ticks and disk completions. Deterministic.
//!
//! [`Broker`] owns the shard (consensus and journal), the state machines, the tail cache and the segments. Inputs come
//! through methods; [`Broker::turn`] does what has come together and leaves what must go out in an [`Output`] list. It
//! reads no clock and no socket: the [`Clock`] comes with each call, the disk is a [`Disk`].
//!
//! The way of a produced record: [`Broker::request`] checks it and adds it to the group's next entry → `turn` proposes the
//! entry → the shard replicates and flushes it → once committed, `apply` gives it its offset, puts it into the tail cache
//! and the segments, wakes readers, and only then the reply leaves.

#![forbid(unsafe_code)]

mod config;
mod error;
mod keep;
mod lead;
mod log;
mod machines;
mod serve;
mod turn;
mod watch;

pub use self::config::BrokerConfig;
pub use self::error::BrokerError;
pub use self::keep::checkpoint::open;
pub use self::keep::tail_cache;
pub use self::lead::membership::{Membership, Standing};
pub use self::log::proposals::number_behind;
pub use self::machines::partitions::{ProducerLimits, Sequences};
pub use self::machines::{catalog, command, members, partitions};
pub use self::serve::costs::ReplySizes;
pub use self::serve::fetch::ReplyRoom;
pub use self::serve::offsets::{Hit, Opener, first_since};
pub use self::serve::passed_on::Passage;
pub use self::serve::produce::batch_limits;
pub use self::watch::{control, inspect, status, trace};

use self::catalog::{Catalog, META};
use self::keep::storage::Storage;
use self::lead::peers::Peers;
use self::log::flushes::Flushes;
use self::log::in_flight::InFlight;
use self::log::proposals::{Origin, Proposals};
use self::partitions::PartitionGroup;
use self::watch::event::{Event, Watch};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_metrics::{Counter, Metrics};
use lnc_protocol::ErrorCode;
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{ErrorReply, Opcode, Reply, Request, Response};
use lnc_raft::{Body, Message, NodeId};
use lnc_replication::Shard;
use lnc_replication::formation::Greeted;
use lnc_replication::wire::PeerMessage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The time, as an input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    /// Milliseconds since the Unix epoch, for what is stored.
    pub wall_ms: u64,
    /// Microseconds on a clock that never goes back, for deadlines and latencies.
    pub mono_us: u64,
}

/// Where a request came from, and so where its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The connection's number.
    pub connection: u64,
    /// The request's correlation id.
    pub correlation: u64,
    /// Its flags.
    pub flags: Flags,
}

/// What leaves the broker.
#[derive(Debug)]
pub enum Output {
    /// An answer to a client.
    Reply {
        /// To whom.
        caller: Caller,
        /// To which request.
        opcode: Opcode,
        /// The answer.
        reply: Reply,
    },
    /// The answer of another node, to be passed to a client as it is.
    Relay {
        /// To whom.
        caller: Caller,
        /// To which request.
        opcode: Opcode,
        /// The body of its reply.
        body: Bytes,
    },
    /// A request that another node must serve. What becomes of it there is told with [`Broker::passed`].
    Forward {
        /// Its number, of this attempt alone.
        ticket: u64,
        /// Whose request.
        caller: Caller,
        /// Which request.
        opcode: Opcode,
        /// Its body, unchanged.
        body: Bytes,
        /// Who leads.
        to: NodeId,
    },
}

/// A data group's part of the node.
struct DataGroup {
    state: PartitionGroup,
    /// Partitions for which a create or delete is on its way through the log.
    reconciling: BTreeSet<PartitionKey>,
}

/// See the module documentation.
pub struct Broker<D: Disk> {
    config: BrokerConfig,
    disk: D,
    shard: Shard,
    catalog: Catalog,
    groups: BTreeMap<GroupId, DataGroup>,
    /// The last entry that each group's state contains: index and term.
    applied: BTreeMap<GroupId, (u64, u64)>,
    clock: Clock,
    peers: Peers,
    in_flight: InFlight,
    next_ticket: u64,
    outputs: Vec<Output>,
    turn: turn::Turn,

    proposals: BTreeMap<GroupId, Proposals>,
    /// Bytes of records that are not proposed, of all groups: counted in each turn, and what has come since.
    queued_bytes: usize,
    flushes: Flushes,
    scratch: log::apply::Scratch,
    clocks: log::clocks::Clocks,
    barriers: log::barriers::Barriers,
    /// Data groups whose partitions may differ from the catalog.
    reconcile: bool,

    fetches: serve::fetch::Fetches,
    scans: serve::offsets::Scans,
    passed_on: serve::passed_on::PassedOn,
    topic_changes: serve::topic_changes::TopicChanges,

    storage: Storage,
    checkpoint: keep::checkpoint::Progress,
    transfers: keep::transfer::Transfers,
    scrub: keep::scrub::Scrub,
    space: keep::space::Space,
    removal: keep::retention::Removal,

    leadership: lead::leadership::Leadership,
    admission: lead::membership::Admission,
    readiness: lead::readiness::Readiness,

    metrics: Arc<Metrics>,
    request_counters: BTreeMap<Opcode, Counter>,
    figures: watch::gauges::Figures,
    /// Microseconds on a clock for measuring, from who drives the broker: nothing but metrics may depend on it.
    stopwatch: Option<Box<dyn Fn() -> u64>>,
    watch: Watch,
}

impl<D: Disk> Broker<D> {
    /// The latest time given.
    fn now_us(&self) -> u64 {
        self.clock.mono_us
    }

    /// Which member of the cluster this node is.
    pub fn member(&self) -> NodeId {
        self.config.node
    }

    /// The disk, for the driver that waits for it.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// From now on it answers fetches as far as there is room for the replies.
    pub fn set_reply_room(&mut self, replies: Box<dyn ReplyRoom>) {
        self.fetches.reply_room = Some(replies);
    }

    /// Give it a clock, in microseconds, with which it measures how long it takes over its own work.
    pub fn set_stopwatch(&mut self, stopwatch: Box<dyn Fn() -> u64>) {
        self.stopwatch = Some(stopwatch);
    }

    /// A number for whatever completes later.
    fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    /// A client's request. Its reply, now or later, is an output of a turn.
    pub fn request(&mut self, clock: Clock, caller: Caller, opcode: Opcode, body: Bytes) {
        self.clock = clock;
        if let Some(counter) = self.request_counters.get(&opcode) {
            counter.inc();
        }
        match Request::decode(opcode, body.clone()) {
            Ok(request) if self.is_affordable(caller, opcode, &request) => {
                self.set_patience(serve::passed_on::Patience::of(&request, clock.mono_us));
                self.serve(caller, opcode, request, body);
            }
            Ok(_) => {}
            Err(error) => self.refuse(caller, opcode, ErrorCode::InvalidRequest, error.to_string()),
        }
    }

    fn serve(&mut self, caller: Caller, opcode: Opcode, request: Request, body: Bytes) {
        match request {
            Request::Hello(hello) => self.hello(caller, hello),
            Request::Ping => self.reply(caller, opcode, Response::Pong),
            Request::Metadata(_) | Request::ListTopics | Request::DescribeTopic(_) | Request::ListOffsets(_) => {
                self.read(caller, opcode, request, body);
            }
            Request::ClusterInfo => self.cluster_info(caller),
            Request::ChangeMembers(change) => self.change_members(caller, change, body),
            Request::Formats => self.formats(caller),
            Request::RaiseFormat(raise) => self.raise_format(caller, &raise, body),
            Request::CreateTopic(create) => self.create_topic(caller, create, body),
            Request::DeleteTopic(delete) => self.delete_topic(caller, delete, body),
            Request::InitProducer => self.init_producer(caller, body),
            Request::Produce(produce) => self.produce(caller, produce, body),
            Request::Fetch(fetch) => self.fetch(caller, fetch, body),
            _ => self.refuse(caller, opcode, ErrorCode::UnknownOpcode, format!("{} is not served", opcode.name())),
        }
    }

    /// What this node leads is being handed over; the client finds the new leader.
    fn refuse_new_work(&mut self, caller: Caller, opcode: Opcode) {
        self.refuse(caller, opcode, ErrorCode::ShuttingDown, "this node is shutting down".into());
    }

    /// A message from a peer.
    pub fn peer_message(&mut self, clock: Clock, message: PeerMessage) {
        self.clock = clock;
        match message {
            PeerMessage::Raft(group, message) => self.raft_message(group, message),
            PeerMessage::Transfer(message) => self.transfer_message(message),
            PeerMessage::Trace(notice) => {
                self.watch.tell(self.clock, &Event::Noticed(notice));
            }
            PeerMessage::Notice(notice) => self.heard_notice(notice),
        }
    }

    fn raft_message(&mut self, group: GroupId, message: Message) {
        if let Body::Append { entries, .. } = &message.body
            && !self.can_take(group, message.from, entries)
        {
            return;
        }
        self.watch.tell(self.clock, &Event::Came(group, &message));
        if !self.has_room_for(group, &message.body) {
            // To the leader this is a lossy network, and it goes on with the others.
            return;
        }
        self.watch.tell(self.clock, &Event::Taken(group, &message));
        let leader = self.shard.leader(group);
        self.shard.step(group, message);
        if self.shard.leader(group) != leader {
            // Before the next request comes, which must not overtake what waits at the former one.
            self.note_leaders();
        }
    }

    /// The control connection to a peer stands, and this is what it says of itself; or it broke.
    pub fn peer_changed(&mut self, clock: Clock, peer: NodeId, says: Option<Greeted>) {
        self.clock = clock;
        match says {
            Some(greeted) => {
                if self.peers.connect(peer, greeted) {
                    self.shard.peer_back(peer);
                    self.found_members();
                    self.tell_clock(peer);
                }
            }
            None => {
                self.peers.lose(peer);
                self.watch.tell(clock, &Event::PeerLost(peer));
                self.shard.peer_lost(peer);
            }
        }
    }

    /// Bytes of requests that are not answered.
    pub fn request_bytes(&self) -> usize {
        self.in_flight.bytes()
    }

    /// Before the process ends: have the disk say how far it got. True once it does; until then, take turns.
    pub fn finish(&mut self) -> bool {
        self.shard.finish(&mut self.disk)
    }

    fn applied_index(&self, group: GroupId) -> u64 {
        self.applied.get(&group).map_or(0, |(index, _)| *index)
    }

    fn reply(&mut self, caller: Caller, opcode: Opcode, response: Response) {
        self.outcome_known(caller);
        self.outputs.push(Output::Reply { caller, opcode, reply: Reply { result: Ok(response) } });
    }

    fn refuse(&mut self, caller: Caller, opcode: Opcode, code: ErrorCode, message: String) {
        /// What a client is asked to wait before it tries again.
        const RETRY_AFTER_MS: u32 = 50;
        let retry_after_ms = if code.is_retriable() { RETRY_AFTER_MS } else { 0 };
        self.refuse_with(caller, opcode, ErrorReply { code, message, retry_after_ms, leader: None });
    }

    fn refuse_with(&mut self, caller: Caller, opcode: Opcode, error: ErrorReply) {
        let error = self.honest_refusal(caller, error);
        self.metrics.errors_total.with_label_values(&[error.code.name()]).inc();
        if error.code == ErrorCode::Overloaded {
            self.metrics.overloaded_total.inc();
        }
        self.outputs.push(Output::Reply { caller, opcode, reply: Reply { result: Err(error) } });
    }

    /// The proposals of a group; groups are fixed when the broker starts.
    fn proposals(&mut self, group: GroupId) -> &mut Proposals {
        self.proposals.entry(group).or_default()
    }

    /// Add a command to the group's next entry.
    fn submit(&mut self, group: GroupId, command: &machines::command::Command, origin: Option<Origin>) {
        if let Some(origin) = &origin {
            self.watch.tell(self.clock, &Event::Queued(origin.caller));
        }
        let clock = self.stamp();
        self.proposals(group).push(command, origin, clock);
    }
}
