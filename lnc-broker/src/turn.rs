//! One turn of the broker: what has come together is done, and what must go out is left for whoever drives it.

use crate::watch::event::Event;
use crate::{Broker, BrokerError, Clock, Output};
use lnc_log::disk::{Completion, Disk, Owner};
use lnc_raft::Role;
use lnc_replication::Outputs;
use lnc_replication::wire::PeerMessage;

/// What one turn leaves for the next.
#[derive(Default)]
pub(crate) struct Turn {
    /// What the shard has to say; between turns, what has been said to it outside of one.
    pub(crate) shard_outputs: Outputs,
    /// Empty between turns: kept for its memory.
    completions: Vec<Completion>,
    /// The disk was full, and it is time to try again.
    retry_full: bool,
    last_second_us: u64,
}

impl<D: Disk> Broker<D> {
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
        self.watch.tell(clock, &Event::Tick);
        if self.leadership.is_draining() {
            self.hand_over();
        }
        if clock.mono_us >= self.turn.last_second_us + SECOND_US {
            self.turn.last_second_us = clock.mono_us;
            self.every_second()?;
        }
        Ok(())
    }

    fn every_second(&mut self) -> Result<(), BrokerError> {
        for group in self.groups.values_mut() {
            group.reconciling.clear();
        }
        self.reconcile = true;
        self.turn.retry_full = true;
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
        let mut out = std::mem::take(&mut self.turn.shard_outputs);
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
        if !self.storage.handed_over().is_full() || std::mem::take(&mut self.turn.retry_full) {
            self.storage.on_disk().write_out(&mut self.disk);
        }
        self.storage.evict();
        self.shard.release_memory();
        self.free_what_is_removed();
        self.drive_checkpoint()?;
        let notices = self.trace_turn(&out.messages);
        outputs.append(&mut self.outputs);
        for (group, message) in &out.messages {
            let is_connected = self.peers.is_connected(message.to);
            self.watch.tell(clock, &Event::Sent { group: *group, message, is_connected });
        }
        let raft = out.messages.drain(..).map(|(group, message)| PeerMessage::Raft(group, message));
        let clocks = self.clocks.outbox.drain(..).map(PeerMessage::Notice);
        let raft = clocks.chain(notices.into_iter().map(PeerMessage::Trace)).chain(raft);
        let messages = raft.chain(self.transfers.outbox.drain(..).map(PeerMessage::Transfer)).collect();
        self.turn.shard_outputs = out;
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
        let mut completions = std::mem::take(&mut self.turn.completions);
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
        self.turn.completions = completions;
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
            self.watch.tell(self.clock, &Event::RoleChanged(group, change));
            if change.role == Role::Leader {
                tracing::info!(group = group.0, term = change.term, "this node leads the group");
                self.reconcile = true;
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
            self.watch.tell(self.clock, &Event::Durable(group, term, index));
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
        let now = self.now_us();
        if !out.flushes_started.is_empty() {
            self.watch.tell(self.clock, &Event::FlushSubmitted);
        }
        for (number, bytes) in out.flushes_started.drain(..) {
            self.metrics.journal_flush_bytes.observe(bytes as f64);
            self.flushes.started(number, bytes, now);
        }
        while let Some(took_us) = self.flushes.next_durable(out.flushes_durable, now) {
            self.metrics.journal_flushes_total.inc();
            self.metrics.journal_fsync_seconds.observe(took_us as f64 / 1e6);
            self.leadership.synced(took_us);
        }
    }

    /// Whether a turn would find something to do that no event announces.
    pub fn wants_turn(&self) -> bool {
        let goes_on =
            self.fetches_go_on() || self.scans.go_on() || self.barriers.go_on() || self.checkpoint.is_encoding();
        !self.outputs.is_empty() || self.reconcile || self.can_propose() || goes_on
    }

    /// Whether a flush or a majority is waited for with so little to write that the wait is short.
    pub fn expects_soon(&self) -> bool {
        /// Bytes under way; a disk takes as long for fewer.
        const LITTLE: usize = 64 << 10;
        let (flushing, in_flight) = (self.flushes.bytes(), self.in_flight.bytes());
        let waiting = flushing.is_some() || in_flight > 0;
        waiting && flushing.unwrap_or_default() + in_flight <= LITTLE
    }
}
