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

mod keep;
mod lead;
mod log;
mod machines;
mod serve;
mod watch;

pub use self::keep::checkpoint::open;
pub use self::keep::tail_cache;
pub use self::lead::membership::{Membership, Standing};
pub use self::log::proposals::number_behind;
pub use self::machines::partitions::{ProducerLimits, Sequences};
pub use self::machines::{catalog, command, members, partitions};
pub use self::serve::fetch::ReplyRoom;
pub use self::serve::offsets::{Hit, Opener, first_since};
pub use self::serve::passed_on::Passage;
pub use self::serve::produce::batch_limits;
pub use self::watch::{control, inspect, status, trace};

use self::catalog::{Catalog, META};
use self::keep::storage::Storage;
use self::log::proposals::{Origin, Proposals};
use self::members::Addresses;
use self::partitions::PartitionGroup;
use self::status::Said;
use bytes::Bytes;
use lnc_log::disk::{Completion, Disk, Owner};
use lnc_log::journal::GroupId;
use lnc_log::segment::PartitionKey;
use lnc_metrics::{Counter, GroupMetrics, Metrics};
use lnc_protocol::ErrorCode;
use lnc_protocol::frame::Flags;
use lnc_protocol::message::{ErrorReply, Opcode, Reply, Request, Response};
use lnc_raft::{Body, Message, NodeId, ProgressState, Role};
use lnc_replication::formation::Greeted;
use lnc_replication::wire::PeerMessage;
use lnc_replication::{Outputs, Shard, ShardError};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use thiserror::Error;

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

/// What a broker needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster_id: u128,
    /// How the configured nodes are reached, by number, this one included. What is said here goes before what the
    /// catalog remembers.
    pub nodes: BTreeMap<u64, Addresses>,
    /// The members that this node knows from its data directory, with their incarnations.
    pub members: BTreeMap<NodeId, u64>,
    /// How new that list is.
    pub members_version: u64,
    /// The founders of the cluster with their incarnations.
    pub founders: BTreeMap<NodeId, u64>,
    /// Data groups over which new topics are placed.
    pub data_groups: u32,
    /// Bytes of requests that may be under way.
    pub memory_bytes: usize,
    /// Bytes of the tail cache.
    pub tail_cache_bytes: usize,
    /// Largest record batch, in bytes.
    pub max_batch_bytes: usize,
    /// Largest frame, in bytes.
    pub max_frame_bytes: usize,
    /// Most topics.
    pub max_topics: usize,
    /// Most partitions of a topic.
    pub max_partitions_per_topic: u32,
    /// Journal bytes between checkpoints.
    pub checkpoint_bytes: u64,
    /// Bytes of the state that are encoded for a checkpoint in a turn, more by a partition at most.
    pub checkpoint_piece_bytes: usize,
    /// Bytes per second that are given to nodes that fetch the state of a group.
    pub transfer_bytes_per_second: u64,
    /// Time of a sync of the journal, in microseconds, beyond which a leader hands over.
    pub slow_sync_us: u64,
    /// Bytes of the disk that are kept for what is not records.
    pub reserve_bytes: u64,
    /// Bytes of the journal and of segments that the scrub reads per second; 0: it does not.
    pub scrub_bytes_per_second: u64,
    /// Shortest time between the beginnings of two passes of the scrub, in microseconds.
    pub scrub_interval_us: u64,
    /// Segment size of topics that do not set one; fixed for a partition when it is made.
    pub segment_bytes: u64,
    /// How many idempotent producers are remembered.
    pub producer_limits: ProducerLimits,
    /// The sequence numbers that they use.
    pub sequences: Sequences,
    /// Furthest that a clock may be from those of a majority, in milliseconds, to be believed.
    pub max_clock_skew_ms: u64,
    /// How long the control path may take.
    pub budgets: watch::control::Budgets,
}

/// Why the broker must stop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// Consensus or the journal failed.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// Segment files failed.
    #[error(transparent)]
    Segments(#[from] lnc_log::segment::SegmentError),
    /// A checkpoint failed.
    #[error(transparent)]
    Checkpoint(#[from] lnc_log::checkpoint::CheckpointError),
    /// State that came from a peer cannot be taken over.
    #[error(transparent)]
    Incoming(#[from] lnc_log::incoming::IncomingError),
    /// A committed entry or a checkpoint is not understood.
    #[error("group {group}: {error}")]
    State {
        /// The group.
        group: u32,
        /// What is wrong.
        error: machines::command::CommandError,
    },
    /// The configuration has fewer data groups than topics use.
    #[error(
        "cluster.data_groups is {configured}, but stored topics are placed over {needed} data groups: set it to at \
         least {needed}"
    )]
    TooFewGroups {
        /// The configured number.
        configured: u32,
        /// The number in use.
        needed: u32,
    },
}

/// A data group's part of the node.
struct DataGroup {
    state: PartitionGroup,
    /// Partitions for which a create or delete is on its way through the log.
    reconciling: BTreeSet<PartitionKey>,
}

/// A journal flush that the disk has not confirmed.
struct FlushUnderWay {
    number: u64,
    bytes: usize,
    since_us: u64,
    /// No other was under way when it began.
    had_the_disk: bool,
}

/// How far a group of this node is behind its leader, in time.
#[derive(Clone, Copy, Default)]
struct Freshness {
    /// A commit index of the leader, and when it was heard.
    target: Option<(u64, u64)>,
    /// When the last target that is applied was heard.
    caught_up_us: Option<u64>,
}

/// See the module documentation.
pub struct Broker<D: Disk> {
    config: BrokerConfig,
    disk: D,
    shard: Shard,
    catalog: Catalog,
    groups: BTreeMap<GroupId, DataGroup>,
    proposals: BTreeMap<GroupId, Proposals>,
    applied: BTreeMap<GroupId, (u64, u64)>,
    storage: Storage,
    scratch: log::apply::Scratch,
    fetches: serve::fetch::Fetches,
    scans: serve::offsets::Scans,
    barriers: BTreeMap<u64, log::barriers::ReadBarrier>,
    passed_on: serve::passed_on::PassedOn,
    topic_changes: serve::topic_changes::TopicChanges,
    checkpoint: keep::checkpoint::Progress,
    next_ticket: u64,
    /// Bytes of requests that were accepted and not answered.
    in_flight_bytes: usize,
    /// Bytes of records that are not proposed, of all groups: counted in each turn, and what has come since.
    queued_bytes: usize,
    /// Data groups whose partitions may differ from the catalog.
    reconcile: bool,
    /// The disk was full, and it is time to try again.
    retry_full: bool,
    draining: bool,
    /// Peers that are about to end.
    draining_peers: BTreeSet<NodeId>,
    /// What connected peers have said of themselves since.
    peer_facts: BTreeMap<NodeId, Said>,
    /// How members are reached that have said so themselves, by number.
    told_addresses: BTreeMap<u64, Addresses>,
    /// And what they said of themselves.
    peers_connected: BTreeMap<NodeId, Greeted>,
    /// Since when each data group that another node should lead is led here, for rebalancing.
    misplaced_since_us: BTreeMap<GroupId, u64>,
    transfers: keep::transfer::Transfers,
    scrub: keep::scrub::Scrub,
    slow_disk: lead::slow_disk::SlowDisk,
    quick_flush: log::window::QuickFlush,
    pace: log::pace::Pace,
    followers: lead::followers::Followers,
    space: keep::space::Space,
    /// When appends of a group were last refused for want of space.
    refused_appends_us: BTreeMap<GroupId, u64>,
    /// Since when this node could note who founded the cluster.
    founding_since_us: Option<u64>,
    /// Nodes that wait to be admitted, by number.
    applicants: BTreeMap<u64, lead::membership::Applicant>,
    /// Members that the catalog has forgotten and that a group of this node, which may be behind, still names.
    gone: BTreeMap<NodeId, machines::members::Member>,
    /// The members as the journal had them at the start, beyond the checkpoint and committed or not.
    expected_members: machines::members::Members,
    standing: Standing,
    clock: Clock,
    clocks: log::clocks::Clocks,
    removal: keep::retention::Removal,
    shard_outputs: Outputs,
    outputs: Vec<Output>,
    completions: Vec<Completion>,
    metrics: Arc<Metrics>,
    control: watch::control::ControlPath,
    figures: watch::gauges::Figures,
    /// Microseconds on a clock for measuring, from who drives the broker: nothing but metrics may depend on it.
    stopwatch: Option<Box<dyn Fn() -> u64>>,
    /// Set where memory for replies is bounded.
    reply_room: Option<Box<dyn ReplyRoom>>,
    group_metrics: BTreeMap<GroupId, GroupMetrics>,
    request_counters: BTreeMap<Opcode, Counter>,
    flushes: VecDeque<FlushUnderWay>,
    /// Until then, the last flush counts as a sign that records are written.
    writing_until_us: u64,
    freshness: BTreeMap<GroupId, Freshness>,
    /// Followers that need entries which the journal no longer holds, by group.
    left_behind: BTreeSet<(GroupId, NodeId)>,
    last_second_us: u64,
    elections: watch::status::Elections,
    /// Set where someone looks on.
    observer: Option<watch::inspect::Observer>,
    /// Set where traces are recorded.
    tracer: Option<Box<watch::trace::Tracer>>,
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

    fn is_connected(&self, node: u64) -> bool {
        self.peers_connected.keys().any(|peer| peer.node() == node)
    }

    /// The disk, for the driver that waits for it.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// From now on it answers fetches as far as there is room for the replies.
    pub fn set_reply_room(&mut self, replies: Box<dyn ReplyRoom>) {
        self.reply_room = Some(replies);
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
                if let Some(tracer) = &mut self.tracer {
                    tracer.heard(notice);
                }
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
        self.control.received(self.clock.mono_us, group, &message);
        if !self.has_room_for(group, &message.body) {
            // To the leader this is a lossy network, and it goes on with the others.
            return;
        }
        if let Some(tracer) = &mut self.tracer {
            tracer.received(group, &message);
        }
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
                if self.peers_connected.insert(peer, greeted).is_none() {
                    self.shard.peer_back(peer);
                    self.found_members();
                    self.tell_clock(peer);
                }
            }
            None => {
                self.peers_connected.remove(&peer);
                self.draining_peers.remove(&peer);
                self.peer_facts.remove(&peer);
                self.control.peer_lost(peer);
                self.shard.peer_lost(peer);
            }
        }
    }

    /// One unit of time has passed.
    pub fn tick(&mut self, clock: Clock) -> Result<(), BrokerError> {
        /// How often the slow chores are done.
        const SECOND_US: u64 = 1_000_000;
        self.clock = clock;
        self.shard.tick(&mut self.disk);
        self.follow_format();
        self.expire_proposals();
        self.tick_passed_on();
        self.expire_fetches();
        self.expire_searches();
        self.expire_barriers();
        self.tick_topic_changes();
        self.measure_freshness();
        self.tick_transfers();
        self.tick_scrub();
        if let Some(tracer) = &mut self.tracer {
            tracer.expire();
        }
        self.control.tick(clock.mono_us);
        if self.draining {
            self.hand_over();
        }
        if clock.mono_us >= self.last_second_us + SECOND_US {
            self.last_second_us = clock.mono_us;
            self.every_second()?;
        }
        Ok(())
    }

    fn every_second(&mut self) -> Result<(), BrokerError> {
        for group in self.groups.values_mut() {
            group.reconciling.clear();
        }
        self.reconcile = true;
        self.retry_full = true;
        self.look_at_space();
        self.fetch_what_frees_space();
        self.shard.retry_space(&mut self.disk);
        self.give_up_damage();
        self.limit_producers();
        self.look_at_clocks();
        self.apply_retention();
        self.look_at_disk();
        self.rebalance_leaders();
        self.reconcile_members();
        self.release_replaced();
        self.update_gauges();
        self.report_left_behind();
        self.checkpoint_if_due()
    }

    /// Do everything that is ready. Gives the messages for peers; replies and forwards go to `outputs`. To be followed by
    /// [`Broker::kick`].
    pub fn turn(&mut self, clock: Clock, outputs: &mut Vec<Output>) -> Result<Vec<PeerMessage>, BrokerError> {
        self.clock = clock;
        let mut out = std::mem::take(&mut self.shard_outputs);
        self.reap(&mut out)?;
        self.reconcile_partitions();
        self.follow_leaders();
        self.propose_pending();
        self.advance_moves();
        // What commits in the first pass can let the second one answer: both are cheap when there is nothing.
        for _ in 0..2 {
            self.shard.turn(&mut self.disk, &mut out)?;
            self.absorb(&mut out)?;
        }
        self.finish_topic_changes();
        let read_budget = self.read_budget();
        self.storage.on_disk().set_read_budget(&mut self.disk, read_budget);
        self.wake_fetches();
        self.go_on_searching();
        self.storage.turn()?;
        // A write that fails for want of space completes at once and so asks for the next turn: retried in every turn, it
        // would keep the shard busy for as long as the disk is full.
        if !self.storage.handed_over().is_full() || std::mem::take(&mut self.retry_full) {
            self.storage.on_disk().write_out(&mut self.disk);
        }
        self.storage.evict();
        self.shard.release_memory();
        self.free_what_is_removed();
        self.drive_checkpoint()?;
        let notices = self.trace_turn(&out.messages);
        outputs.append(&mut self.outputs);
        for (group, message) in &out.messages {
            let is_connected = self.peers_connected.contains_key(&message.to);
            self.control.sent(clock.mono_us, *group, message, is_connected);
        }
        let raft = out.messages.drain(..).map(|(group, message)| PeerMessage::Raft(group, message));
        let clocks = self.clocks.outbox.drain(..).map(PeerMessage::Notice);
        let raft = clocks.chain(notices.into_iter().map(PeerMessage::Trace)).chain(raft);
        let messages = raft.chain(self.transfers.outbox.drain(..).map(PeerMessage::Transfer)).collect();
        self.shard_outputs = out;
        Ok(messages)
    }

    /// Have the disk begin what the last turn asked of it. None of the messages of that turn waits for these operations,
    /// and handing them to the kernel takes about as long as sending: whoever sends first lets the disks of the peers begin
    /// as early as its own.
    pub fn kick(&mut self) {
        self.disk.kick();
    }

    /// Take finished disk operations to those who wait for them.
    fn reap(&mut self, out: &mut Outputs) -> Result<(), BrokerError> {
        let mut completions = std::mem::take(&mut self.completions);
        self.disk.reap(&mut completions);
        for completion in completions.drain(..) {
            match completion.token.owner() {
                Some(Owner::Journal) => self.shard.on_completion(&mut self.disk, completion, out)?,
                Some(Owner::Segments) => {
                    if let Some(read) = self.storage.on_disk().on_completion(&mut self.disk, completion)? {
                        self.read_done(read);
                    }
                }
                Some(Owner::Checkpoint) => self.checkpoint_completion(completion)?,
                Some(Owner::Incoming) => self.incoming_completion(completion),
                Some(Owner::Setup) | None => {}
            }
        }
        self.completions = completions;
        Ok(())
    }

    /// Take in what the shard has to say.
    fn absorb(&mut self, out: &mut Outputs) -> Result<(), BrokerError> {
        for (group, index) in std::mem::take(&mut out.stepped_aside) {
            self.metrics.leaders_stepped_aside_total.inc();
            tracing::warn!(
                group = group.0,
                index,
                "this node no longer leads the group: for long a majority has not acknowledged what it was sent, though it answers \
                 heartbeats. Look at the network between the nodes: does what is long get through (MTU)?"
            );
        }
        let led_by_others = !out.roles.is_empty();
        for (group, change) in std::mem::take(&mut out.roles) {
            self.observe_role(group, change);
            self.elections.note(self.clock.wall_ms, group, change);
            self.control.role_changed(self.clock.mono_us, group, change);
            if change.role == Role::Leader {
                tracing::info!(group = group.0, term = change.term, "this node leads the group");
                self.reconcile = true;
            }
            let metrics = self.group_metrics.get(&group);
            if let Some(metrics) = metrics {
                if change.role == Role::Candidate {
                    metrics.elections_total.inc();
                } else if change.leader.is_some() {
                    metrics.leader_changes_total.inc();
                }
            }
            if change.role != Role::Leader {
                self.lose_office(group);
                if let Some(data) = self.groups.get_mut(&group) {
                    data.reconciling.clear();
                }
            }
        }
        if led_by_others {
            self.note_leaders();
        }
        self.time_flushes(out);
        for (group, term, index) in std::mem::take(&mut out.durable) {
            if let Some(tracer) = &mut self.tracer {
                tracer.durable(group, term, index);
            }
            self.leader_durable(group, term, index);
        }
        self.apply_committed(out)?;
        for (group, ctx, index) in std::mem::take(&mut out.reads) {
            self.barrier_index(group, ctx, index);
        }
        for (group, ctx) in std::mem::take(&mut out.reads_failed) {
            self.barrier_failed(group, ctx);
        }
        for found in std::mem::take(&mut out.found) {
            self.give_entries(found);
        }
        if let Some(scrubbed) = out.scrubbed.take() {
            self.scrubbed_journal(scrubbed);
        }
        for (group, index) in std::mem::take(&mut out.states_needed) {
            self.state_needed(group, index);
        }
        self.pass_barriers();
        Ok(())
    }

    fn apply_committed(&mut self, out: &mut Outputs) -> Result<(), BrokerError> {
        if out.committed.is_empty() {
            return Ok(());
        }
        let start = self.stopwatch.as_ref().map(|now| now());
        for (group, entry) in std::mem::take(&mut out.committed) {
            self.apply(group, entry)?;
        }
        if let (Some(now), Some(start)) = (&self.stopwatch, start) {
            self.metrics.apply_seconds.observe(now().saturating_sub(start) as f64 / 1e6);
        }
        Ok(())
    }

    /// Keep the books of the journal's flushes.
    fn time_flushes(&mut self, out: &mut Outputs) {
        /// How long after a flush another one is reckoned with.
        const WRITING_US: u64 = 100_000;
        let now = self.now_us();
        if let Some(tracer) = self.tracer.as_mut().filter(|_| !out.flushes_started.is_empty()) {
            tracer.flush_submitted();
        }
        for (number, bytes) in out.flushes_started.drain(..) {
            self.metrics.journal_flush_bytes.observe(bytes as f64);
            let had_the_disk = self.flushes.is_empty();
            self.flushes.push_back(FlushUnderWay { number, bytes, since_us: now, had_the_disk });
            self.writing_until_us = now + WRITING_US;
        }
        while let Some(flush) = self.flushes.pop_front_if(|flush| flush.number <= out.flushes_durable) {
            let took_us = now.saturating_sub(flush.since_us);
            self.metrics.journal_flushes_total.inc();
            self.metrics.journal_fsync_seconds.observe(took_us as f64 / 1e6);
            self.slow_disk.synced(took_us);
            if flush.had_the_disk {
                self.quick_flush.note(flush.bytes, took_us);
            }
        }
    }

    /// Whether a turn would find something to do that no event announces.
    pub fn wants_turn(&self) -> bool {
        let goes_on = !self.fetches.woken.is_empty() || self.scans.go_on() || self.checkpoint.is_encoding();
        !self.outputs.is_empty() || self.reconcile || self.can_propose() || goes_on
    }

    /// Whether a flush or a majority is waited for with so little to write that the wait is short.
    pub fn expects_soon(&self) -> bool {
        /// Bytes under way; a disk takes as long for fewer.
        const LITTLE: usize = 64 << 10;
        let flushing: usize = self.flushes.iter().map(|flush| flush.bytes).sum();
        let waiting = !self.flushes.is_empty() || self.in_flight_bytes > 0;
        waiting && flushing + self.in_flight_bytes <= LITTLE
    }

    /// Bytes of requests that are not answered.
    pub fn request_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Before the process ends: have the disk say how far it got. True once it does; until then, take turns.
    pub fn finish(&mut self) -> bool {
        self.shard.finish(&mut self.disk)
    }

    /// Whether this node may be sent traffic: every group has a leader and this node has what the leader has committed.
    pub fn readiness(&self) -> Result<(), String> {
        /// How old the leader's commit index that this node has applied may be.
        const MAX_STALE_US: u64 = 2_000_000;
        if self.draining {
            return Err("shutting down".into());
        }
        if let Some(reason) = self.estranged() {
            return Err(reason);
        }
        for group in self.shard.group_ids() {
            if let Some(lost) = self.shard.lost_entries(group) {
                return Err(format!("group {} waits for {lost} entries that its damaged journal lost", group.0));
            }
            if self.shard.is_in_doubt(group) {
                return Err(format!(
                    "group {} waits for a leader of another node: this node's disk has lost what it acknowledged",
                    group.0
                ));
            }
            let Some(status) = self.shard.status(group) else { continue };
            if status.stalled {
                return Err(format!(
                    "group {} commits nothing: this node leads it, and a majority does not acknowledge entries beyond index {},                      though it answers heartbeats; see whether what is long gets through the network (MTU)",
                    group.0, status.commit
                ));
            }
            if status.leader.is_none() {
                return Err(format!("group {group} has no known leader", group = group.0));
            }
            let fresh = self.freshness.get(&group).copied().unwrap_or_default();
            if fresh.caught_up_us.is_none_or(|at| at + MAX_STALE_US < self.now_us()) {
                let applied = self.applied_index(group);
                let told = status.leader_commit.map_or("nothing yet".to_owned(), |index| format!("index {index}"));
                return Err(format!(
                    "group {} is catching up: applied index {applied}, the leader says that {told} is committed",
                    group.0
                ));
            }
        }
        Ok(())
    }

    /// Whether this node has, of a group, what its leader had committed a moment ago.
    fn is_fresh(&self, group: GroupId) -> bool {
        /// How long ago that may be.
        const MAX_AGE_US: u64 = 1_000_000;
        let fresh = self.freshness.get(&group).copied().unwrap_or_default();
        fresh.caught_up_us.is_some_and(|at| at + MAX_AGE_US >= self.now_us())
    }

    /// Whether this node has had, since it started, what a group's leader had committed.
    /// A request is over that took so many bytes.
    fn take_off(&mut self, bytes: usize) {
        assert!(bytes <= self.in_flight_bytes, "{bytes} bytes are over, of {} under way", self.in_flight_bytes);
        self.in_flight_bytes -= bytes;
    }

    fn has_caught_up(&self, group: GroupId) -> bool {
        self.freshness.get(&group).is_some_and(|fresh| fresh.caught_up_us.is_some())
    }

    fn applied_index(&self, group: GroupId) -> u64 {
        self.applied.get(&group).map_or(0, |(index, _)| *index)
    }

    /// Note since when each group has applied what its leader had committed. Under load a replica is always a little
    /// behind: what counts is how long ago the leader had what this node has now.
    fn measure_freshness(&mut self) {
        let now = self.now_us();
        let groups: Vec<GroupId> = self.shard.group_ids().collect();
        for group in groups {
            let Some(status) = self.shard.status(group) else { continue };
            let applied = self.applied_index(group);
            let fresh = self.freshness.entry(group).or_default();
            if let Some((_, at)) = fresh.target.filter(|(target, _)| applied >= *target) {
                fresh.caught_up_us = Some(at);
                fresh.target = None;
            }
            if fresh.target.is_none() {
                fresh.target = status.leader_commit.map(|index| (index, now));
            }
            self.pace.observe(now, group, &status);
            self.look_at_followers(group, &status);
            self.show_peers(group, &status);
        }
    }

    /// Say once of each follower that this node's journal cannot catch it up.
    fn report_left_behind(&mut self) {
        let groups: Vec<GroupId> = self.shard.group_ids().collect();
        let mut behind = BTreeSet::new();
        for group in groups {
            let Some(status) = self.shard.status(group) else { continue };
            for peer in status.peers.iter().filter(|peer| peer.state == ProgressState::NeedsSnapshot) {
                behind.insert((group, peer.id));
                if !self.left_behind.contains(&(group, peer.id)) {
                    tracing::warn!(
                        group = group.0,
                        node = %peer.id,
                        needs = peer.match_index + 1,
                        first_index = status.first_index,
                        "a node needs entries that the journal no longer holds: it fetches the group's state instead, \
                         and does not count for the quorum until it has; raise journal.retain_bytes to make this rare"
                    );
                }
            }
        }
        self.left_behind = behind;
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
        if let (Some(tracer), Some(origin)) = (&mut self.tracer, &origin) {
            tracer.queued(origin.caller);
        }
        let clock = self.stamp();
        self.proposals(group).push(command, origin, clock);
    }
}
