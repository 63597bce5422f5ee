//! Reads that must be fresh: they wait until the leaders have said what is committed, by a read-index round, and this node has
//! applied it.

use crate::machines::catalog::META;
use crate::serve::costs::ENTRIES_PER_TURN;
use crate::serve::passed_on::Patience;
use crate::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{Opcode, Request};
use lnc_raft::ProposeError;
use std::collections::{BTreeMap, BTreeSet};

/// A request that waits until this node has applied what was committed when it came.
pub(crate) struct ReadBarrier {
    caller: Caller,
    opcode: Opcode,
    request: Request,
    body: Bytes,
    /// Groups whose commit index is not known yet.
    asked: BTreeSet<GroupId>,
    /// Indexes that must be applied first.
    until: BTreeMap<GroupId, u64>,
    deadline_us: u64,
    /// The times of the request itself.
    patience: Patience,
}

/// All that wait, and those whose turn has not come.
#[derive(Default)]
pub(crate) struct Barriers {
    /// By the number of their round.
    waiting: BTreeMap<u64, ReadBarrier>,
    /// More of them could be served than one turn may.
    goes_on: bool,
}

impl Barriers {
    /// Whether the next turn would serve some, whatever happens meanwhile.
    pub(crate) fn go_on(&self) -> bool {
        self.goes_on
    }
}

impl<D: Disk> Broker<D> {
    /// Answer a read once this node has applied everything that was committed when it came, so that what a client was
    /// told before is never unseen. Local answers are enough for those that only look for whom to ask.
    pub(crate) fn read(&mut self, caller: Caller, opcode: Opcode, request: Request, body: Bytes) {
        let asked = self.groups_to_ask(&request);
        if asked.is_empty() || mutated(Mutation::ReadLocally) {
            return self.serve_read(caller, opcode, request);
        }
        self.await_leaders(caller, opcode, request, body, asked);
    }

    /// Serve a request once the leaders of these groups have said what is committed, and this node has applied it.
    pub(crate) fn await_leaders(
        &mut self,
        caller: Caller,
        opcode: Opcode,
        request: Request,
        body: Bytes,
        asked: BTreeSet<GroupId>,
    ) {
        /// How long a request may wait for the leaders' word.
        const WAIT_US: u64 = 5_000_000;
        /// Requests that may wait for it at once.
        const MAX_BARRIERS: usize = 4096;
        if self.barriers.waiting.len() >= MAX_BARRIERS || !self.in_flight.has_room(body.len()) {
            let message = format!(
                "{} bytes of requests are under way, {} of them wait for the word of a leader",
                self.in_flight.bytes(),
                self.barriers.waiting.len()
            );
            return self.refuse(caller, opcode, ErrorCode::Overloaded, message);
        }
        let ctx = self.ticket();
        for group in &asked {
            let refused = self.shard.read_index(*group, ctx);
            if let Err(ProposeError::NotLeader { .. }) = refused {
                return self.hold(caller, opcode, *group, body, false);
            }
            if refused.is_err() {
                let message = format!("group {} has no known leader at the moment", group.0);
                return self.refuse(caller, opcode, ErrorCode::LeaderUnknown, message);
            }
        }
        let (deadline_us, patience) = (self.now_us() + WAIT_US, self.patience());
        self.in_flight.take(body.len());
        let barrier =
            ReadBarrier { caller, opcode, request, body, asked, until: BTreeMap::new(), deadline_us, patience };
        self.barriers.waiting.insert(ctx, barrier);
    }

    fn take_barrier(&mut self, ctx: u64) -> Option<ReadBarrier> {
        let barrier = self.barriers.waiting.remove(&ctx)?;
        self.in_flight.give_back(barrier.body.len());
        Some(barrier)
    }

    /// Nobody waits any more for what these connections have asked. What it wanted written is written.
    pub(crate) fn forget_barriers(&mut self, connections: &BTreeSet<u64>) {
        let of_it = |(_, barrier): &(&u64, &ReadBarrier)| {
            connections.contains(&barrier.caller.connection) && barrier.opcode != Opcode::Produce
        };
        let gone: Vec<u64> = self.barriers.waiting.iter().filter(of_it).map(|(ctx, _)| *ctx).collect();
        for ctx in gone {
            self.take_barrier(ctx);
        }
    }

    fn groups_to_ask(&self, request: &Request) -> BTreeSet<GroupId> {
        match request {
            Request::Metadata(metadata) => {
                let missing = |topics: &Vec<String>| topics.iter().any(|name| self.catalog.topic(name).is_none());
                let ask = metadata.topics.as_ref().is_some_and(missing) && self.shard.leader(META).is_some();
                if ask { [META].into() } else { BTreeSet::new() }
            }
            Request::ListOffsets(list) => self.groups_of_offsets(list),
            _ => [META].into(),
        }
    }

    pub(crate) fn barrier_index(&mut self, group: GroupId, ctx: u64, index: u64) {
        if let Some(barrier) = self.barriers.waiting.get_mut(&ctx) {
            barrier.asked.remove(&group);
            barrier.until.insert(group, index);
        }
    }

    /// The leader of a group has changed while a read waited for its word: it asks the next one.
    pub(crate) fn barrier_failed(&mut self, group: GroupId, ctx: u64) {
        if let Some(ReadBarrier { caller, opcode, body, patience, .. }) = self.take_barrier(ctx) {
            self.set_patience(patience);
            self.hold(caller, opcode, group, body, false);
        }
    }

    /// Serve those for which the leaders have said what is committed, as many as a turn may: thousands become ready at once, and
    /// one may ask about a thousand partitions.
    pub(crate) fn pass_barriers(&mut self) {
        let applied = &self.applied;
        let passed = |barrier: &ReadBarrier| {
            let reached = |(group, index): (&GroupId, &u64)| applied.get(group).is_some_and(|(done, _)| done >= index);
            barrier.asked.is_empty() && (barrier.until.iter().all(reached) || mutated(Mutation::ReadUnapplied))
        };
        let ready: Vec<u64> = self.barriers.waiting.iter().filter(|(_, b)| passed(b)).map(|(ctx, _)| *ctx).collect();
        self.barriers.goes_on = false;
        let mut room = ENTRIES_PER_TURN;
        for ctx in ready {
            if room == 0 {
                self.barriers.goes_on = true;
                break;
            }
            if let Some(ReadBarrier { caller, opcode, request, body, until, patience, .. }) = self.take_barrier(ctx) {
                room = room.saturating_sub(self.entries_of(&request));
                self.set_patience(patience);
                match request {
                    // Now that the catalog is fresh, the topic may lie in groups that were not asked.
                    Request::ListOffsets(_) if !self.groups_to_ask(&request).iter().all(|g| until.contains_key(g)) => {
                        self.read(caller, opcode, request, body);
                    }
                    Request::Produce(produce) => self.produce_known(caller, produce, body),
                    Request::Fetch(fetch) if !self.groups_of_fetch(&fetch).iter().all(|g| until.contains_key(g)) => {
                        self.fetch(caller, fetch, body);
                    }
                    Request::Fetch(fetch) => self.fetch_confirmed(caller, fetch, until.into_keys().collect()),
                    request => self.serve_read(caller, opcode, request),
                }
            }
        }
    }

    pub(crate) fn expire_barriers(&mut self) {
        let now = self.now_us();
        let late: Vec<u64> =
            self.barriers.waiting.iter().filter(|(_, b)| b.deadline_us <= now).map(|(ctx, _)| *ctx).collect();
        for ctx in late {
            if let Some(ReadBarrier { caller, opcode, .. }) = self.take_barrier(ctx) {
                let message = "the leader did not confirm the read in time".to_owned();
                self.refuse(caller, opcode, ErrorCode::Timeout, message);
            }
        }
    }

    fn serve_read(&mut self, caller: Caller, opcode: Opcode, request: Request) {
        match request {
            Request::Metadata(metadata) => self.metadata(caller, metadata),
            Request::ListTopics => self.list_topics(caller),
            Request::DescribeTopic(describe) => self.describe_topic(caller, &describe.name),
            Request::ListOffsets(list) => self.list_offsets(caller, list),
            _ => self.refuse(caller, opcode, ErrorCode::Unknown, "not a read".into()),
        }
    }
}
