//! The format of the cluster: what nodes store and send to each other. Versions speak a range of formats; the catalog says
//! which one the cluster has, and nobody uses what a later one adds. So versions may be mixed, and go back, until an
//! operator raises it, which needs every member to speak it. A new cluster begins with the newest that its founders speak.

use crate::log::proposals::Kind;
use crate::machines::catalog::META;
use crate::machines::command::{Command, CommandError};
use crate::{Broker, BrokerError, Caller, DataGroup};
use bytes::Bytes;
use lnc_log::disk::Disk;
use lnc_log::journal::{GroupId, MARK_FORMAT};
use lnc_log::segment::DIGEST_FORMAT;
use lnc_protocol::ErrorCode;
use lnc_protocol::message::{FormatsResponse, Opcode, RaiseFormatRequest, Response};
use lnc_raft::NodeId;
use lnc_replication::formation::Formats;

impl<D: Disk> Broker<D> {
    /// The format of the cluster, as far as this node knows.
    pub fn format(&self) -> u32 {
        self.catalog.format()
    }

    /// The format that the data directory may have: that of the cluster, once what it asks for is there.
    pub fn stored_format(&self) -> u32 {
        match self.shard.journal().has_mark() {
            true => self.format(),
            false => self.format().min(MARK_FORMAT - 1),
        }
    }

    /// Begin with what the format of the cluster asks for.
    pub(crate) fn follow_format(&mut self) {
        if self.format() >= MARK_FORMAT {
            self.shard.keep_mark(&mut self.disk);
        }
        if self.format() >= DIGEST_FORMAT {
            self.storage.on_disk().keep_digests();
        }
    }

    /// Have the groups that this node leads remember as many producers as this version does, if the format of the cluster
    /// knows of that.
    pub(crate) fn limit_producers(&mut self) {
        /// The first format with such limits.
        const SINCE_FORMAT: u32 = 3;
        if self.format() < SINCE_FORMAT {
            return;
        }
        let limits = self.config.producer_limits;
        let lacks = |(group, data): (&GroupId, &DataGroup)| {
            (data.state.producer_limits() != Some(limits) && self.shard.is_leader(*group)).then_some(*group)
        };
        let lacking: Vec<GroupId> = self.groups.iter().filter_map(lacks).collect();
        for group in lacking {
            if !self.has_backlog(group) {
                self.submit(group, &Command::LimitProducers { limits }, None);
            }
        }
    }

    pub(crate) fn formats(&mut self, caller: Caller) {
        let Formats { oldest, newest } = Formats::BUILD;
        let response = FormatsResponse { format: self.format(), oldest, newest };
        self.reply(caller, Opcode::Formats, Response::Formats(response));
    }

    /// An operator wants the format raised.
    pub(crate) fn raise_format(&mut self, caller: Caller, request: &RaiseFormatRequest, body: Bytes) {
        let opcode = Opcode::RaiseFormat;
        if !self.decides(caller, opcode, META, &body) {
            return;
        }
        let (format, current) = (request.format, self.format());
        if format < current {
            let message = format!("the cluster has format {current}, and cannot go back to {format}");
            return self.refuse(caller, opcode, ErrorCode::InvalidRequest, message);
        }
        let lacking = self.members_without(format);
        if !lacking.is_empty() {
            let message = format!("format {format} is not spoken by all members: {}", lacking.join("; "));
            return self.refuse(caller, opcode, ErrorCode::FormatNotCommon, message);
        }
        let command = Command::RaiseFormat { format };
        self.submit_admin(caller, opcode, &command, Kind::RaiseFormat);
    }

    /// Why each member that stands in the way of a format does.
    fn members_without(&self, format: u32) -> Vec<String> {
        let lacks = |member: NodeId| match self.formats_of(member) {
            None => Some(format!("node {member} is not connected")),
            Some(speaks) if speaks.contains(format) => None,
            Some(Formats { oldest, newest }) => Some(format!("node {member} speaks formats {oldest} to {newest}")),
        };
        self.membership().members.into_keys().filter_map(lacks).collect()
    }

    fn formats_of(&self, member: NodeId) -> Option<Formats> {
        match member == self.config.node {
            true => Some(Formats::BUILD),
            false => self.peers.greeted(member).map(|peer| peer.formats),
        }
    }

    /// The newest format that all founders of a new cluster speak, if they are all there.
    pub(crate) fn founding_format(&self) -> Option<u32> {
        let newest = |member: &NodeId| self.formats_of(*member).map(|formats| formats.newest);
        let newest: Option<Vec<u32>> = self.config.founders.keys().map(newest).collect();
        newest?.into_iter().min()
    }

    pub(crate) fn apply_format(&mut self, format: u32) -> Result<(), BrokerError> {
        if format > Formats::BUILD.newest {
            let error = CommandError("a format that this version does not speak");
            return Err(BrokerError::State { group: META.0, error });
        }
        if format > self.format() {
            tracing::info!(format, "the format of the cluster was raised");
        }
        self.catalog.raise_format(format);
        Ok(())
    }
}
