//! The one place that knows the broker's interface: how it is configured and opened, what goes in, what comes out. What
//! leaves for peers leaves here as bytes, and comes back as bytes.

use super::network::Wire;
use super::settings::{MAX_BATCH_BYTES, MAX_IN_FLIGHT_BYTES, Settings, TICK_US};
use bytes::{Bytes, BytesMut};
use lnc_broker::control::Budgets;
use lnc_broker::inspect::{GroupInspection, MemoryInspection, Observed};
use lnc_broker::members::Addresses;
use lnc_broker::{
    Broker, BrokerConfig, BrokerError, Caller, Clock, Membership, Opener, Output, Passage, Sequences, Standing,
    first_since,
};
use lnc_log::FileOwner;
use lnc_log::disk::MemoryDisk;
use lnc_log::journal::{GroupId, JournalConfig};
use lnc_metrics::Metrics;
use lnc_protocol::Opcode;
use lnc_raft::NodeId;
use lnc_replication::ShardConfig;
use lnc_replication::formation::{Formats, Greeted, Identity};
use lnc_replication::transfer::TransferBody;
use lnc_replication::wire::{MAX_FRAME_BODY, PeerMessage, WireError, put_messages, take_frame, take_message};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::rc::Rc;

/// A broker, as a process would hold it.
pub(super) struct Process {
    broker: Broker<MemoryDisk>,
    member: NodeId,
    openings: Openings,
}

/// Batches that the broker has opened elsewhere: what is found there comes in its next turn.
#[derive(Clone, Default)]
struct Openings(Rc<RefCell<Vec<(u64, Bytes, i64)>>>);

impl Opener for Openings {
    fn open(&self, ticket: u64, batch: Bytes, timestamp_ms: i64) {
        self.0.borrow_mut().push((ticket, batch, timestamp_ms));
    }
}

/// What came of a turn.
pub(super) struct Turned {
    pub(super) outputs: Vec<Output>,
    pub(super) mail: Vec<Mail>,
    pub(super) observed: Observed,
    /// The broker asks for another turn.
    pub(super) again: bool,
    /// The broker must be opened anew.
    pub(super) reopen: bool,
}

/// Frames for a member, on their way to the node that it is.
pub(super) struct Mail {
    pub(super) wire: Wire,
    pub(super) to: NodeId,
    pub(super) bytes: BytesMut,
}

impl Process {
    /// Recover from what the disk holds.
    pub(super) fn open(
        settings: &Settings,
        (identity, configured): (&Identity, &BTreeSet<u64>),
        (opened, format): (u32, u32),
        disk: MemoryDisk,
    ) -> Result<Self, BrokerError> {
        let mut broker = lnc_broker::open(
            broker_config(settings, identity, configured),
            shard_config(settings, identity, opened, format),
            settings.segments.clone(),
            disk,
            Metrics::new(),
        )?;
        broker.observe(settings.state_every);
        let openings = Openings::default();
        broker.set_opener(Box::new(openings.clone()));
        Ok(Self { broker, member: identity.node, openings })
    }

    pub(super) fn request(&mut self, clock: Clock, caller: Caller, opcode: Opcode, body: Bytes) {
        self.broker.request(clock, caller, opcode, body);
    }

    /// What became of a request that was passed on.
    pub(super) fn passed(&mut self, clock: Clock, ticket: u64, passage: Passage) {
        self.broker.passed(clock, ticket, passage);
    }

    /// The messages of one frame. An error drops the rest of the frame.
    pub(super) fn frame(&mut self, clock: Clock, from: NodeId, mut body: Bytes) -> Result<(), WireError> {
        while !body.is_empty() {
            let message = take_message(&mut body, self.member)?;
            if message.from() == from {
                self.broker.peer_message(clock, message);
            }
        }
        Ok(())
    }

    /// The connection to a peer with this incarnation stands, or broke.
    pub(super) fn peer_changed(&mut self, clock: Clock, peer: NodeId, incarnation: Option<u64>) {
        let greeted = incarnation.map(|incarnation| Greeted { incarnation, formats: Formats::BUILD });
        self.broker.peer_changed(clock, peer, greeted);
    }

    /// The members of a group that it leads, unless a change is under way.
    pub(super) fn settled_members(&self, group: u32) -> Option<BTreeSet<NodeId>> {
        self.broker.settled_members(GroupId(group))
    }

    /// Whether it is a voter of every group.
    pub(super) fn votes(&self) -> bool {
        self.broker.votes()
    }

    /// Who belongs to the cluster, as far as this node has applied, and how the nodes are reached.
    pub(super) fn membership(&self) -> Membership {
        self.broker.membership()
    }

    /// A node has shown itself that takes itself for this member.
    pub(super) fn stray(&mut self, clock: Clock, id: NodeId, incarnation: u64) {
        self.broker.stray(clock, id, incarnation);
    }

    /// What peers say of this node.
    pub(super) fn set_standing(&mut self, standing: Standing) {
        self.broker.set_standing(standing);
    }

    /// A node has shown itself with a fresh disk.
    pub(super) fn applicant(&mut self, clock: Clock, node: u64, incarnation: u64) {
        self.broker.applicant(clock, node, incarnation);
    }

    /// The format that its data directory may have.
    pub(super) fn stored_format(&self) -> u32 {
        self.broker.stored_format()
    }

    pub(super) fn tick(&mut self, clock: Clock) -> Result<(), BrokerError> {
        self.broker.tick(clock)
    }

    pub(super) fn turn(&mut self, clock: Clock) -> Result<Turned, BrokerError> {
        let mut outputs = Vec::new();
        for (ticket, batch, timestamp_ms) in self.openings.0.take() {
            self.broker.opened(ticket, first_since(&batch, timestamp_ms));
        }
        let mut messages = self.broker.turn(clock, &mut outputs)?;
        self.broker.kick();
        let key = |message: &PeerMessage| (message.to(), message.channel());
        messages.sort_by_key(key);
        let mut mail = Vec::new();
        for batch in messages.chunk_by(|a, b| key(a) == key(b)) {
            let (to, channel) = key(&batch[0]);
            let mut bytes = BytesMut::new();
            put_messages(&mut bytes, batch);
            mail.push(Mail { wire: Wire { from: self.member.node(), to: to.node(), channel }, to, bytes });
        }
        let (observed, again) =
            (self.broker.take_observed(), self.broker.wants_turn() || !self.openings.0.borrow().is_empty());
        Ok(Turned { outputs, mail, observed, again, reopen: self.broker.wants_reopen() })
    }

    pub(super) fn drain(&mut self) {
        self.broker.drain();
    }

    pub(super) fn is_drained(&self) -> bool {
        self.broker.is_drained()
    }

    /// Before the process ends: whether its disk says how far it got.
    pub(super) fn finish(&mut self) -> bool {
        self.broker.finish()
    }

    pub(super) fn is_ready(&self) -> Result<(), String> {
        self.broker.readiness()
    }

    pub(super) fn inspect(&self, group: u32) -> Option<GroupInspection> {
        self.broker.inspect(GroupId(group))
    }

    pub(super) fn memory(&self) -> MemoryInspection {
        self.broker.memory()
    }

    pub(super) fn state(&self, group: u32) -> Bytes {
        self.broker.encoded_state(GroupId(group))
    }

    /// The members of a group that it leads and that have to fetch its state.
    pub(super) fn lost_followers(&self, group: u32) -> Vec<NodeId> {
        self.broker.lost_followers(GroupId(group))
    }

    /// The members of a group, in the words of the log.
    pub(super) fn configuration(&self, group: u32) -> String {
        self.broker.configuration(GroupId(group)).map_or_else(String::new, |members| members.to_string())
    }
}

/// Take one frame's body off what was received.
pub(super) fn next_frame(received: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    take_frame(received, MAX_FRAME_BODY)
}

/// What the frames in some bytes say, for a trace.
pub(super) fn describe(bytes: &BytesMut, to: u64) -> String {
    let mut bytes = bytes.clone();
    let mut text = String::new();
    while let Ok(Some(mut body)) = take_frame(&mut bytes, MAX_FRAME_BODY) {
        while let Ok(message) = take_message(&mut body, NodeId(to)) {
            let (group, message) = match message {
                PeerMessage::Raft(group, message) => (group, message),
                PeerMessage::Transfer(transfer) => {
                    let _ = write!(text, "[group {} {}]", transfer.group.0, transfer_text(&transfer.body));
                    continue;
                }
                PeerMessage::Trace(notice) => {
                    let _ = write!(text, "[group {} trace of {}]", notice.group.0, notice.index);
                    continue;
                }
                PeerMessage::Notice(notice) => {
                    let _ = write!(text, "[clock {}]", notice.wall_ms);
                    continue;
                }
            };
            let _ = write!(text, "[group {} term {} ", group.0, message.term);
            let _ = match &message.body {
                lnc_raft::Body::Append { prev_index, prev_term, commit, entries } => write!(
                    text,
                    "Append after {prev_index} of term {prev_term}, {} entries, commit {commit}]",
                    entries.len()
                ),
                other => write!(text, "{other:?}]"),
            };
        }
    }
    text
}

fn transfer_text(body: &TransferBody) -> String {
    match body {
        TransferBody::Range { range, bytes } => {
            format!("Range {:?}, {:?} bytes", range.part, bytes.as_ref().map(Bytes::len))
        }
        TransferBody::Entries { commit, entries, .. } => format!("Entries, {} of them, commit {commit}", entries.len()),
        other => format!("{other:?}"),
    }
}

fn broker_config(settings: &Settings, identity: &Identity, configured: &BTreeSet<u64>) -> BrokerConfig {
    let addresses = |node: u64| Addresses {
        client: format!("node-{node}:1992"),
        peer: format!("node-{node}:1993"),
        http: format!("node-{node}:1994"),
    };
    let cluster = identity.cluster.as_ref();
    BrokerConfig {
        node: identity.node,
        cluster_id: cluster.map_or(0, |cluster| cluster.id),
        nodes: configured.iter().map(|node| (*node, addresses(*node))).collect(),
        members: cluster.map(|cluster| cluster.members.clone()).unwrap_or_default(),
        members_version: cluster.map_or(0, |cluster| cluster.version),
        founders: cluster.map(|cluster| cluster.founders.clone()).unwrap_or_default(),
        transfer_bytes_per_second: settings.transfer_bytes_per_second,
        slow_sync_us: 500_000,
        reserve_bytes: settings.reserve_bytes,
        scrub_bytes_per_second: settings.scrub_bytes_per_second,
        scrub_interval_us: 10_000_000,
        data_groups: settings.data_groups,
        memory_bytes: settings.memory_bytes,
        tail_cache_bytes: settings.tail_cache_bytes,
        max_batch_bytes: MAX_BATCH_BYTES,
        max_frame_bytes: 1 << 20,
        max_topics: 50,
        max_partitions_per_topic: 20,
        checkpoint_bytes: settings.checkpoint_bytes,
        segment_bytes: settings.segments.segment_bytes,
        checkpoint_piece_bytes: settings.checkpoint_piece_bytes,
        producer_limits: settings.producer_limits,
        sequences: Sequences::up_to(settings.last_sequence),
        max_clock_skew_ms: super::clocks::MAX_SKEW_MS,
        budgets: budgets(),
    }
}

/// Ticks between two heartbeats.
const HEARTBEAT_TICKS: u32 = 2;

fn budgets() -> Budgets {
    Budgets::of_heartbeat(u64::from(HEARTBEAT_TICKS) * TICK_US / 1000)
}

fn ticks(ms: u64) -> u32 {
    (ms * 1000 / TICK_US) as u32
}

fn shard_config(settings: &Settings, identity: &Identity, opened: u32, format: u32) -> ShardConfig {
    let node = identity.node.0;
    let owner = FileOwner {
        cluster: identity.cluster.as_ref().map_or(0, |cluster| cluster.id),
        node: identity.node.node(),
        incarnation: identity.incarnation,
    };
    let founders = identity.cluster.iter().flat_map(|cluster| cluster.founders.keys());
    ShardConfig {
        node: identity.node,
        founders: founders.copied().collect(),
        groups: (0..=settings.data_groups).map(GroupId).collect(),
        election_ticks: 10,
        heartbeat_ticks: HEARTBEAT_TICKS,
        election_rpc_ticks: ticks(budgets().election_rpc_ms),
        election_round_ticks: ticks(budgets().election_round_ms),
        max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
        max_append_bytes: settings.max_append_bytes,
        entry_cache_bytes: settings.entry_cache_bytes,
        journal_retain_bytes: settings.journal_retain_bytes,
        seed: super::rng::mix(settings.seed ^ node << 32 ^ u64::from(opened)),
        journal: JournalConfig {
            file_bytes: settings.journal_file_bytes,
            max_in_flight: settings.flushes_in_flight,
            owner,
            format,
            ..JournalConfig::new(identity.incarnation)
        },
    }
}
