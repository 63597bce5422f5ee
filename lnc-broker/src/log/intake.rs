//! What peers send is looked at before it gets into a log: what is in one is there for good, on every replica.

use crate::Broker;
use crate::machines::command::validate;
use lnc_log::disk::Disk;
use lnc_log::journal::GroupId;
use lnc_raft::{Entry, EntryKind, NodeId};

impl<D: Disk> Broker<D> {
    /// Whether entries from a peer may get into the log. One that cannot be applied would end this node, and again after
    /// each restart, once it is committed; without it, this node is behind, and the log says why.
    pub(crate) fn can_take(&self, group: GroupId, from: NodeId, entries: &[Entry]) -> bool {
        let broken = entries.iter().find_map(|entry| match entry.kind {
            EntryKind::Normal => validate(&entry.payload).err().map(|error| (entry.index, error)),
            // What consensus itself carries, it checks itself.
            EntryKind::Empty | EntryKind::Configuration => None,
        });
        let Some((index, error)) = broken else { return true };
        self.metrics.entries_refused_total.inc();
        tracing::error!(
            group = group.0,
            %from,
            index,
            %error,
            "an entry that could not be applied is not taken: this node stays behind in the group until another node leads \
             it. Look whether all nodes run the same version"
        );
        false
    }
}
