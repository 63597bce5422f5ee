//! What happens to a broker, told once, to all that watch it.

use crate::log::proposals::Origin;
use crate::trace::Tracer;
use crate::watch::control::ControlPath;
use crate::watch::gauges::GroupGauges;
use crate::watch::inspect::Observer;
use crate::watch::status::Elections;
use crate::{Caller, Clock};
use bytes::Bytes;
use lnc_log::journal::GroupId;
use lnc_log::segment::DamagedBatch;
use lnc_raft::{Entry, Index, Message, NodeId, RoleChange, Term};
use lnc_replication::trace::TraceNotice;

/// Something that has happened.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// One unit of time has passed.
    Tick,
    /// A message of consensus has come.
    Came(GroupId, &'a Message),
    /// There is room for what it brings, and consensus takes it in.
    Taken(GroupId, &'a Message),
    /// A message of consensus leaves.
    Sent {
        group: GroupId,
        message: &'a Message,
        /// Whether its receiver is connected, so that an answer can be expected.
        is_connected: bool,
    },
    /// The connection to a peer broke.
    PeerLost(NodeId),
    /// A leader says that one of its entries is of a trace.
    Noticed(TraceNotice),
    /// A group's role, term or leader has changed on this node.
    RoleChanged(GroupId, RoleChange),
    /// A request waits to be proposed.
    Queued(Caller),
    /// Commands have become an entry of so many bytes. The requests that they are of, by their position in it.
    Proposed { group: GroupId, term: Term, index: Index, bytes: usize, origins: &'a [(u32, Option<Origin>)] },
    /// A flush of the journal was submitted, with all that this node had appended.
    FlushSubmitted,
    /// Entries of a group up to this one are on stable storage.
    Durable(GroupId, Term, Index),
    /// An entry is committed, and about to be applied.
    Committed(GroupId, Term, Index),
    /// An entry was applied, and this is what a checkpoint would hold of the group then, if [`Watch::wants_applied`] asks for
    /// that.
    Applied { group: GroupId, entry: &'a Entry, state: Option<Bytes> },
    /// A damaged place was written over.
    Repaired(DamagedBatch),
}

/// Who takes events in.
pub(crate) trait Sink {
    /// This has happened at that time.
    fn see(&mut self, clock: Clock, event: &Event<'_>);
}

impl<S: Sink> Sink for Option<S> {
    fn see(&mut self, clock: Clock, event: &Event<'_>) {
        if let Some(sink) = self {
            sink.see(clock, event);
        }
    }
}

impl<S: Sink> Sink for Box<S> {
    fn see(&mut self, clock: Clock, event: &Event<'_>) {
        self.as_mut().see(clock, event);
    }
}

/// All that watch a broker. Nothing that it does depends on them.
pub(crate) struct Watch {
    pub(crate) control: ControlPath,
    pub(crate) elections: Elections,
    pub(crate) groups: GroupGauges,
    /// Set where someone looks on.
    pub(crate) observer: Option<Observer>,
    /// Set where traces are recorded.
    pub(crate) tracer: Option<Box<Tracer>>,
}

impl Watch {
    /// Tell all of them.
    pub(crate) fn tell(&mut self, clock: Clock, event: &Event<'_>) {
        let Self { control, elections, groups, observer, tracer } = self;
        let sinks: [&mut dyn Sink; 5] = [control, elections, groups, observer, tracer];
        sinks.into_iter().for_each(|sink| sink.see(clock, event));
    }

    /// Whether anybody wants to see what is applied at this index, and the group's state with it.
    pub(crate) fn wants_applied(&self, index: Index) -> Option<bool> {
        self.observer.as_ref().map(|observer| observer.wants_state(index))
    }
}
