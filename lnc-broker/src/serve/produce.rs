//! Produce: from a request to a command in the group's next entry.

use crate::log::proposals::{Kind, Origin};
use crate::machines::catalog::META;
use crate::serve::passed_on::Patience;
use crate::{Broker, Caller};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_mutation::{Mutation, mutated};
use lnc_protocol::message::{Acks, Opcode, ProduceRequest, Request};
use lnc_protocol::{ErrorCode, Flags, Limits, RecordBatch};

/// Decompressed bytes allowed per byte of the largest batch.
const DECOMPRESSION_FACTOR: usize = 16;

/// What a batch may be, where the largest may have `max_batch_bytes`.
pub fn batch_limits(max_batch_bytes: usize) -> Limits {
    Limits { max_batch_bytes, max_decompressed_bytes: max_batch_bytes.saturating_mul(DECOMPRESSION_FACTOR) }
}

impl<D: Disk> Broker<D> {
    pub(crate) fn produce(&mut self, caller: Caller, request: ProduceRequest, body: Bytes) {
        if self.catalog.knows(&request.topic, request.topic_id) {
            self.produce_known(caller, request, body);
        } else {
            // It may have been created a moment ago, perhaps in the place of another of its name: ask before denying it.
            self.await_leaders(caller, Opcode::Produce, Request::Produce(request), body, [META].into());
        }
    }

    /// Produce once the catalog is known to be fresh enough to deny the topic.
    pub(crate) fn produce_known(&mut self, caller: Caller, request: ProduceRequest, body: Bytes) {
        let opcode = Opcode::Produce;
        let ProduceRequest { acks, topic: name, topic_id, partition, batch, .. } = request;
        let (key, group) = match self.catalog.resolve(&name, topic_id, partition) {
            Ok(found) => found,
            Err((code, message)) => return self.refuse(caller, opcode, code, message),
        };
        let id = key.topic_id;
        if !self.decides(caller, opcode, group, &body) {
            return;
        }
        // There is nobody to hand the group to.
        if self.leadership.is_draining() {
            return self.refuse_new_work(caller, opcode);
        }
        if let Err((code, message)) = self.room_for(group, batch.len()) {
            self.metrics.rejected_bytes_total.with_label_values(&[code.name()]).inc_by(batch.len() as u64);
            return self.refuse(caller, opcode, code, message);
        }
        let checked = match caller.flags.contains(Flags::CHECKED) {
            true => RecordBatch::checked_before(batch),
            false => RecordBatch::validate(batch, &batch_limits(self.config.max_batch_bytes)),
        };
        let batch = match checked {
            Ok(batch) => batch,
            Err(error) => {
                return self.refuse(
                    caller,
                    opcode,
                    error.code(),
                    format!("topic {name:?} partition {partition}: {error}"),
                );
            }
        };
        if batch.header().producer_id >= 0 && acks != Acks::Quorum {
            // Whether it is the next one of its producer is known once it is committed: an answer before that could be of a
            // batch that is dropped.
            let message = format!(
                "topic {name:?} partition {partition}: a batch of a producer with an id needs acks of a quorum"
            );
            return self.refuse(caller, opcode, ErrorCode::InvalidRequest, message);
        }
        if self.groups.get(&group).is_none_or(|data| data.state.get(key).is_none()) {
            let message = format!("topic {name:?} partition {partition} is being created");
            return self.refuse(caller, opcode, ErrorCode::NotReady, message);
        }
        let bytes = batch.bytes().len();
        self.metrics.bytes_in_total.inc_by(bytes as u64);
        self.metrics.messages_in_total.inc_by(u64::from(batch.header().record_count));
        self.metrics.produce_batch_bytes.observe(bytes as f64);
        self.metrics.produce_batch_records.observe(f64::from(batch.header().record_count));
        self.in_flight.take(bytes);
        let Patience { since_us, deadline_us } = self.patience();
        let kind = Kind::Produce { acks, topic_id: id, partition };
        let origin = Origin { caller, opcode, bytes, since_us, deadline_us, kind };
        self.submit_records(group, caller, key, batch.into_bytes(), origin);
    }

    /// Whether a batch of this size may come in now.
    fn room_for(&mut self, group: lnc_log::journal::GroupId, bytes: usize) -> Result<(), (ErrorCode, String)> {
        let (limit, queued) = (self.in_flight.limit(), self.queued_bytes);
        if (!self.in_flight.has_room(bytes) || queued > limit) && !mutated(Mutation::TakeTooMuch) {
            let message = format!(
                "{} bytes of requests are under way and {queued} bytes of records wait, the limit is {limit}",
                self.in_flight.bytes()
            );
            return Err((ErrorCode::Overloaded, message));
        }
        let (unwritten, most) = (self.storage.unwritten_bytes(), self.max_unwritten());
        if unwritten > most {
            let message = format!(
                "node {} has {unwritten} committed bytes that its disk has not taken into segments yet, the limit is {most}",
                self.config.node
            );
            return Err((ErrorCode::Overloaded, message));
        }
        if let Some((node, behind)) = self.waits_for_follower(group) {
            let most = self.most_behind();
            let message = format!(
                "node {node} is {behind} bytes of the journal behind in group {}, and is not to be lost; the limit is {most}",
                group.0
            );
            return Err((ErrorCode::Overloaded, message));
        }
        if self.is_short_of_space() {
            let (node, left) = (self.config.node, self.space_left());
            let message = format!("node {node} has no space left in its data directory for records: {left}");
            return Err((ErrorCode::StorageFull, message));
        }
        self.space.take(bytes);
        Ok(())
    }
}
