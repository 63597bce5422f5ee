//! Committed entries take effect: offsets are given, records become visible, callers get their answers.

use crate::log::proposals::{Committed, Kind, Origin};
use crate::machines::catalog::{CreateError, META, Topic};
use crate::machines::command::{Command, Commands};
use crate::machines::members::MemberError;
use crate::machines::partitions::{Appended, Refusal, whole_topic};
use crate::watch::event::Event;
use crate::{Broker, BrokerError};
use bytes::{Bytes, BytesMut};
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_log::segment::{PartitionKey, StoredBatch};
use lnc_protocol::ErrorCode;
use lnc_protocol::batch::{BatchHeader, PREFIX_LEN, stamped_prefix};
use lnc_protocol::message::{Acks, InitProducerResponse, ProduceResponse, Response, TopicOptions};
use lnc_raft::{Entry, EntryKind};
use std::ops::Range;

/// The batches of one entry for one partition, back to back as readers get them.
struct Run {
    key: PartitionKey,
    /// Where it begins in the entry's buffer.
    start: usize,
    /// Bytes that it has so far.
    len: usize,
    base_offset: u64,
    end_offset: u64,
}

/// What it takes to apply an entry, kept for the next one: lists of ever different sizes are what allocators search for.
#[derive(Default)]
pub(crate) struct Scratch {
    commands: Vec<Command>,
    outcomes: Vec<Outcome>,
    runs: Runs,
}

/// The runs of one entry. They share one buffer: with many partitions, one for each would be what an entry costs most.
#[derive(Default)]
struct Runs {
    /// The bytes that each run of commands for one partition has, to begin with.
    sizes: Vec<(PartitionKey, usize)>,
    /// One for each partition, by its key; their places have room for all batches that the entry has for it.
    runs: Vec<Run>,
    /// Made when the first batch comes.
    buffer: BytesMut,
    size: usize,
    /// The batches in the buffer, in the order of the entry.
    batches: Vec<(PartitionKey, Range<usize>, BatchHeader)>,
}

impl Runs {
    /// Begin an entry. Nothing is left of the one before it.
    fn begin(&mut self, commands: &[Command]) {
        for command in commands {
            match (command, self.sizes.last_mut()) {
                (Command::Append { key, batch }, Some((last, size))) if last == key => *size += batch.len(),
                (Command::Append { key, batch }, _) => self.sizes.push((*key, batch.len())),
                _ => {}
            }
        }
        self.sizes.sort_unstable_by_key(|(key, _)| *key);
        self.runs.clear();
        self.size = 0;
        for (key, bytes) in self.sizes.drain(..) {
            if self.runs.last().is_none_or(|last| last.key != key) {
                self.runs.push(Run { key, start: self.size, len: 0, base_offset: 0, end_offset: 0 });
            }
            self.size += bytes;
        }
    }

    /// Lay a batch behind those that its partition has. Every batch must be one of the entry's.
    fn push(&mut self, key: PartitionKey, header: BatchHeader, epoch: i32, batch: &Bytes) {
        let Ok(at) = self.runs.binary_search_by_key(&key, |run| run.key) else {
            unreachable!("{key} has no room in an entry that has a batch for it")
        };
        if self.buffer.is_empty() {
            self.buffer = BytesMut::zeroed(self.size);
        }
        let run = &mut self.runs[at];
        if run.len == 0 {
            run.base_offset = header.base_offset;
        }
        run.end_offset = header.last_offset() + 1;
        let start = run.start + run.len;
        let place = start..start + batch.len();
        run.len += batch.len();
        let (prefix, rest) = self.buffer[place.clone()].split_at_mut(PREFIX_LEN);
        prefix.copy_from_slice(&stamped_prefix(batch, header.base_offset, epoch));
        rest.copy_from_slice(&batch[PREFIX_LEN..]);
        self.batches.push((key, place, header));
    }
}

/// What became of a command, for its caller.
enum Outcome {
    Created(Result<Box<Topic>, CreateError>),
    Deleted(Option<Box<Topic>>),
    Producer(u64),
    Members(Result<(), MemberError>),
    FormatRaised,
    Appended { key: PartitionKey, result: Result<Appended, Refusal>, append_ms: u64 },
    Silent,
}

impl<D: Disk> Broker<D> {
    /// Apply a committed entry. Called once per entry, in order of the group's log.
    pub(crate) fn apply(&mut self, group: GroupId, entry: Entry) -> Result<(), BrokerError> {
        let (now_us, flush_us) = (self.now_us(), self.flushes.typical_us());
        let known = self.proposals(group).committed(entry.term, entry.index, now_us, flush_us);
        let Committed { mut origins, lost, proposed_us } = known;
        if let Some(since_us) = proposed_us {
            self.metrics.replication_seconds.observe(self.now_us().saturating_sub(since_us) as f64 / 1e6);
        }
        self.watch.tell(self.clock, &Event::Committed(group, entry.term, entry.index));
        for origin in lost {
            let message = "another leader's entry took its place in the log".to_owned();
            self.fail(origin, ErrorCode::LeadershipLost, message);
        }
        let observed = self.watch.wants_applied(entry.index).map(|with_state| (entry.clone(), with_state));
        if entry.kind == EntryKind::Normal {
            self.checkpoint.applied_bytes += entry.payload.len() as u64;
            self.removal.appended(group, entry.payload.len());
            let epoch = i32::try_from(entry.term).unwrap_or(i32::MAX);
            let mut scratch = std::mem::take(&mut self.scratch);
            self.apply_commands(group, epoch, entry.payload, &mut scratch)?;
            let mut outcomes = scratch.outcomes.drain(..).enumerate();
            for (position, origin) in &mut origins {
                let outcome = outcomes.find(|(at, _)| at == &(*position as usize)).map(|(_, outcome)| outcome);
                if let (Some(origin), Some(outcome)) = (origin.take(), outcome) {
                    self.conclude(group, origin, outcome);
                }
            }
            drop(outcomes);
            self.scratch = scratch;
        }
        let before = self.applied.insert(group, (entry.index, entry.term));
        let (index, term) = before.unwrap_or_default();
        assert_eq!(entry.index, index + 1, "group {}: entries are applied in order, each once", group.0);
        assert!(entry.term >= term, "group {}: the term of entry {} falls below {term}", group.0, entry.index);
        if group == META {
            self.found_members();
        }
        if let Some((entry, with_state)) = observed {
            let state = with_state.then(|| self.encoded_state(group));
            self.watch.tell(self.clock, &Event::Applied { group, entry: &entry, state });
        }
        Ok(())
    }

    /// Carry out the commands of an entry; their outcomes are in `scratch`.
    fn apply_commands(
        &mut self,
        group: GroupId,
        epoch: i32,
        payload: Bytes,
        scratch: &mut Scratch,
    ) -> Result<(), BrokerError> {
        let unreadable = |error| BrokerError::State { group: group.0, error };
        let Scratch { commands, outcomes, runs } = scratch;
        let parsed = Commands::parse(payload).map_err(unreadable)?;
        let entry_ms = parsed.append_ms;
        let mut append_ms = self.groups.get_mut(&group).map_or(entry_ms, |data| data.state.advance_clock(entry_ms));
        for command in parsed {
            commands.push(command.map_err(unreadable)?);
        }
        runs.begin(commands);
        for command in commands.drain(..) {
            if !matches!(command, Command::Append { .. }) {
                self.store(runs, append_ms);
            }
            let turns_back = matches!(command, Command::TurnBack { .. });
            outcomes.push(self.apply_command(group, epoch, append_ms, command, runs)?);
            if turns_back {
                append_ms = self.groups.get(&group).map_or(append_ms, |data| data.state.clock_ms());
            }
        }
        self.store(runs, append_ms);
        Ok(())
    }

    fn apply_command(
        &mut self,
        group: GroupId,
        epoch: i32,
        append_ms: u64,
        command: Command,
        runs: &mut Runs,
    ) -> Result<Outcome, BrokerError> {
        Ok(match command {
            Command::CreateTopic { name, partitions, data_groups, options } => {
                let created = self.catalog.create(&name, partitions, data_groups, &options, append_ms);
                self.reconcile = true;
                Outcome::Created(created.map(|(topic, _)| Box::new(topic)))
            }
            Command::DeleteTopic { name } => {
                let deleted = self.catalog.delete(&name);
                self.reconcile = true;
                if let Some(topic) = &deleted {
                    self.topic_deleted(topic);
                    topic.keys().for_each(|key| self.fetches.wake(key));
                }
                Outcome::Deleted(deleted.map(Box::new))
            }
            Command::InitProducer => Outcome::Producer(self.catalog.init_producer()),
            Command::FoundMembers { founders } => {
                self.catalog.members_mut().found(founders);
                Outcome::Silent
            }
            Command::AddMember { node, addresses, replaces } => {
                Outcome::Members(self.catalog.members_mut().add(node, addresses, replaces))
            }
            Command::AdmitMember { node, incarnation } => {
                self.forget_applicant(node, incarnation);
                Outcome::Members(self.catalog.members_mut().admit(node, incarnation))
            }
            Command::RenewMember { node } => Outcome::Members(self.catalog.members_mut().renew(node)),
            Command::RemoveMember { node } => Outcome::Members(self.catalog.members_mut().remove(node)),
            Command::ForgetMember { id } => {
                self.member_forgotten(id);
                Outcome::Silent
            }
            Command::AbandonMember { id, instead } => Outcome::Members(self.catalog.members_mut().abandon(id, instead)),
            Command::RaiseFormat { format } => {
                self.apply_format(format)?;
                Outcome::FormatRaised
            }
            Command::Append { key, batch } => {
                let result = self.append(group, epoch, key, &batch, runs);
                Outcome::Appended { key, result, append_ms }
            }
            Command::CreatePartition { key, segment_bytes } => {
                if let Some(data) = self.groups.get_mut(&group) {
                    data.reconciling.remove(&key);
                    if data.state.create(key, segment_bytes) {
                        self.storage.on_disk().create_partition(key, segment_bytes)?;
                        self.fetches.wake(key);
                    }
                }
                Outcome::Silent
            }
            Command::DeletePartition { key } => {
                if let Some(data) = self.groups.get_mut(&group) {
                    data.reconciling.remove(&key);
                    if data.state.delete(key) {
                        self.storage.remove(key)?;
                        self.checkpoint.wanted = true;
                        self.fetches.wake(key);
                    }
                }
                Outcome::Silent
            }
            Command::DeleteTopicPartitions { topic_id } => {
                if let Some(data) = self.groups.get_mut(&group) {
                    data.reconciling.remove(&whole_topic(topic_id));
                    for key in data.state.delete_topic(topic_id) {
                        self.storage.remove(key)?;
                        self.checkpoint.wanted = true;
                        self.fetches.wake(key);
                    }
                }
                self.topic_gone(group, topic_id);
                Outcome::Silent
            }
            Command::Trim { key, log_start_offset } => {
                let start = self.groups.get_mut(&group).and_then(|data| data.state.trim(key, log_start_offset));
                if let Some(start) = start {
                    self.storage.trim(key, start)?;
                    self.checkpoint.wanted = true;
                    self.fetches.wake(key);
                }
                Outcome::Silent
            }
            Command::TurnBack { time_ms } => {
                if let Some(data) = self.groups.get_mut(&group)
                    && data.state.turn_back(time_ms)
                {
                    self.storage.turn_back(data.state.iter().map(|(key, _)| key), time_ms)?;
                }
                Outcome::Silent
            }
            Command::LimitProducers { limits } => {
                if let Some(data) = self.groups.get_mut(&group) {
                    data.state.limit_producers(limits);
                }
                Outcome::Silent
            }
        })
    }

    /// Give a batch its offset and lay it into its partition's run.
    fn append(
        &mut self,
        group: GroupId,
        epoch: i32,
        key: PartitionKey,
        batch: &Bytes,
        runs: &mut Runs,
    ) -> Result<Appended, Refusal> {
        let mut header = BatchHeader::parse(batch).map_err(|_| Refusal::Corrupt)?;
        let state = &mut self.groups.get_mut(&group).ok_or(Refusal::UnknownPartition)?.state;
        let appended = state.append(key, &header)?;
        if let Appended::At(base_offset) = appended {
            header.base_offset = base_offset;
            runs.push(key, header, epoch, batch);
        }
        Ok(appended)
    }

    /// Make the collected runs visible, and give them to the segments.
    fn store(&mut self, runs: &mut Runs, append_ms: u64) {
        let bytes = std::mem::take(&mut runs.buffer).freeze();
        for (key, place, header) in runs.batches.drain(..) {
            let raw = bytes.slice(place);
            let mut prefix = [0; PREFIX_LEN];
            prefix.copy_from_slice(&raw[..PREFIX_LEN]);
            let stored = StoredBatch {
                base_offset: header.base_offset,
                last_offset: header.last_offset(),
                max_timestamp: header.max_timestamp,
                append_ms,
                prefix,
                raw,
            };
            self.storage.append(key, stored);
        }
        for run in runs.runs.iter_mut().filter(|run| run.len > 0) {
            let own = bytes.slice(run.start..run.start + run.len);
            self.storage.append_run(run.key, run.base_offset, run.end_offset, own);
            self.fetches.wake(run.key);
            // What follows in the entry goes to the same place of another buffer.
            run.start += run.len;
            run.len = 0;
        }
    }

    /// Answer the caller of a command.
    fn conclude(&mut self, group: GroupId, origin: Origin, outcome: Outcome) {
        match outcome {
            Outcome::Created(Ok(topic)) => self.topic_changed(origin, *topic),
            Outcome::Created(Err(CreateError::Exists(topic))) => {
                let Topic { name, partitions, options, .. } = *topic;
                let message = format!(
                    "topic {name:?} exists with other settings: {partitions} partitions, {}",
                    options_text(&options)
                );
                self.fail(origin, ErrorCode::TopicExists, message);
            }
            Outcome::Deleted(Some(topic)) => self.topic_changed(origin, *topic),
            Outcome::Deleted(None) => self.fail(origin, ErrorCode::UnknownTopic, "the topic does not exist".into()),
            Outcome::Producer(id) => {
                let response = InitProducerResponse { producer_id: id as i64, producer_epoch: 0 };
                self.answer(origin, Response::InitProducer(response));
            }
            Outcome::Members(result) => self.members_changed(origin, result),
            Outcome::FormatRaised => self.answer(origin, Response::RaiseFormat),
            Outcome::Appended { key, result, append_ms } => self.appended(group, origin, key, result, append_ms),
            Outcome::Silent => {
                debug_assert!(false, "group {META:?} or a data group answered a command nobody asked for")
            }
        }
    }

    fn appended(
        &mut self,
        group: GroupId,
        origin: Origin,
        key: PartitionKey,
        result: Result<Appended, Refusal>,
        append_ms: u64,
    ) {
        let Kind::Produce { acks, topic_id, partition } = origin.kind else { return };
        let (offset, duplicate) = match result {
            // A leader hears of its own disk first; one that handed over may hear first that a quorum has it.
            Ok(_) if acks != Acks::Quorum => return self.answer_unplaced(origin),
            Ok(Appended::At(offset)) => (offset, false),
            Ok(Appended::Duplicate(offset)) => (offset, true),
            Err(refusal) => {
                let (code, message) = explain(refusal, partition);
                return self.fail(origin, code, message);
            }
        };
        let state = self.groups.get(&group).and_then(|data| data.state.get(key));
        let response = ProduceResponse {
            topic_id,
            partition,
            base_offset: Some(offset),
            log_start_offset: state.map_or(0, |state| state.log_start_offset),
            append_time_ms: append_ms,
            duplicate,
        };
        self.answer(origin, Response::Produce(response));
    }
}

fn explain(refusal: Refusal, partition: u32) -> (ErrorCode, String) {
    match refusal {
        Refusal::UnknownPartition => {
            (ErrorCode::UnknownTopic, format!("partition {partition} was deleted before this was committed"))
        }
        Refusal::Corrupt => (ErrorCode::CorruptBatch, "the batch's header does not parse".to_owned()),
        Refusal::OutOfOrderSequence { expected, found } => (
            ErrorCode::OutOfOrderSequence,
            format!("partition {partition} expects sequence {expected} from this producer, found {found}"),
        ),
        Refusal::UnknownProducer => (
            ErrorCode::UnknownProducer,
            format!(
                "partition {partition} knows nothing of this producer, or has forgotten it: a batch that was never sent \
                 before can be sent under a new producer id"
            ),
        ),
        Refusal::Fenced { current, found } => (
            ErrorCode::FencedProducer,
            format!("partition {partition} has seen epoch {current} of this producer, found {found}"),
        ),
    }
}

/// The settings of a topic in words.
fn options_text(options: &TopicOptions) -> String {
    let setting = |name: &str, value: Option<u64>| match value {
        Some(value) => format!("{name} {value}"),
        None => format!("no {name}"),
    };
    let TopicOptions { max_age_ms, max_bytes, segment_bytes } = *options;
    [setting("max_age_ms", max_age_ms), setting("max_bytes", max_bytes), setting("segment_bytes", segment_bytes)]
        .join(", ")
}
