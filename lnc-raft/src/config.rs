//! What a [`Raft`](crate::Raft) starts from: its settings and what its disk remembers.

use crate::configuration::{Configuration, ConfigurationError};
use crate::message::{Entry, EntryKind, HardState, Index, MAX_INDEX, MAX_TERM, NodeId, Term};

/// Settings of one member of one group. Validated once, by [`Raft::new`](crate::Raft::new).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub id: NodeId,
    /// The configuration before the first entry: the founders, on every node the same for good. This node need not be one
    /// of them.
    pub founding: Configuration,
    /// Ticks without a leader's message before an election; each wait is drawn from `n..2n`. Shorter fails over
    /// faster, and mistakes a pause for a death more often.
    pub election_ticks: u32,
    /// Ticks between a leader's heartbeats; less than `election_ticks`, well less if messages get lost.
    pub heartbeat_ticks: u32,
    /// Ticks to wait for a voter's answer to a pre-vote or a vote; then it is asked again, within the same round.
    pub election_rpc_ticks: u32,
    /// Ticks after which an election round that has come to nothing is over, pre-vote and vote together. The next one
    /// begins when the election timer says so.
    pub election_round_ticks: u32,
    /// Entries in one append, in bytes of [`Entry::size`]; an entry larger than this travels alone.
    pub max_append_bytes: usize,
    /// Entries sent to one follower and not yet acknowledged, in bytes. More hides longer round trips; a hung
    /// follower's connection can hold as much.
    pub max_in_flight_bytes: usize,
    /// Appends sent to one follower and not yet acknowledged.
    pub max_in_flight_appends: usize,
    /// Entries that a leader holds and that are not yet committed, in bytes; further proposals are refused.
    pub max_uncommitted_bytes: usize,
    /// Spreads election timeouts. Must differ between the nodes, and between the runs of one node: replies to
    /// questions of an earlier run are told apart by numbers drawn from it.
    pub seed: u64,
}

impl Config {
    /// Settings for a tick of about 10 ms in one data centre.
    pub fn new(id: NodeId, founding: Configuration, seed: u64) -> Self {
        Self {
            id,
            founding,
            election_ticks: 50,
            heartbeat_ticks: 5,
            election_rpc_ticks: 100,
            election_round_ticks: 300,
            max_append_bytes: 1 << 20,
            max_in_flight_bytes: 16 << 20,
            max_in_flight_appends: 64,
            max_uncommitted_bytes: 64 << 20,
            seed,
        }
    }

    /// Whether the settings make sense together.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.founding != Configuration::default() {
            self.founding.validate().map_err(|error| ConfigError::Configuration { index: 0, error })?;
        }
        if self.heartbeat_ticks == 0 || self.election_ticks <= self.heartbeat_ticks {
            return Err(ConfigError::Ticks { election: self.election_ticks, heartbeat: self.heartbeat_ticks });
        }
        if self.election_ticks > u32::MAX / 4 {
            return Err(ConfigError::Ticks { election: self.election_ticks, heartbeat: self.heartbeat_ticks });
        }
        for (name, value) in [
            ("election_rpc_ticks", self.election_rpc_ticks as usize),
            ("election_round_ticks", self.election_round_ticks as usize),
            ("max_append_bytes", self.max_append_bytes),
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("max_in_flight_appends", self.max_in_flight_appends),
            ("max_uncommitted_bytes", self.max_uncommitted_bytes),
        ] {
            if value == 0 {
                return Err(ConfigError::ZeroLimit { name });
            }
        }
        Ok(())
    }
}

/// What a node's disk remembers of a group. A fresh node has `Restored::default()`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// The last durable hard state.
    pub hard_state: HardState,
    /// The last index that the journal no longer holds; 0 if it holds all.
    pub snapshot_index: Index,
    /// The term of the entry at `snapshot_index`.
    pub snapshot_term: Term,
    /// The last index whose effects the state machine already has; known to be committed.
    pub applied_index: Index,
    /// The configuration in effect at `applied_index`; None: the founding one.
    pub configuration: Option<Configuration>,
    /// Contiguous from `snapshot_index + 1`; all durable. The payloads of those up to `applied_index` are not looked at.
    pub entries: Vec<Entry>,
    /// The log may lack entries that this node acknowledged: until it has one of this term or a later one, the node
    /// neither votes nor stands for election. Above every term in which it may have voted; 0: nothing is lacking.
    pub in_doubt: Term,
}

impl Restored {
    /// Whether this can be the memory of a Raft node.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let bad = |what| Err(ConfigError::Restored { what });
        if self.hard_state.term > MAX_TERM || self.snapshot_index > MAX_INDEX {
            return bad("term or index out of range");
        }
        if (self.snapshot_index == 0) != (self.snapshot_term == 0) {
            return bad("snapshot index and term do not fit together");
        }
        let mut index = self.snapshot_index;
        let mut term = self.snapshot_term;
        for entry in &self.entries {
            index += 1;
            if entry.index != index {
                return bad("entries are not contiguous");
            }
            if entry.term < term || entry.term == 0 {
                return bad("entry terms go back");
            }
            term = entry.term;
        }
        if term > self.hard_state.term {
            return bad("an entry's term is above the hard state's");
        }
        if self.applied_index < self.snapshot_index || self.applied_index > index {
            return bad("applied index outside of the log");
        }
        Ok(())
    }

    /// The configurations that the entries beyond the applied index bring.
    pub(crate) fn configurations(&self) -> Result<Vec<(Index, Configuration)>, ConfigError> {
        let beyond = self.entries.iter().filter(|entry| entry.index > self.applied_index);
        beyond
            .filter(|entry| entry.kind == EntryKind::Configuration)
            .map(|entry| match Configuration::decode(&entry.payload) {
                Ok(configuration) => Ok((entry.index, configuration)),
                Err(error) => Err(ConfigError::Configuration { index: entry.index, error }),
            })
            .collect()
    }
}

/// Why a [`Raft`](crate::Raft) cannot start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A configuration makes no sense.
    #[error("the configuration of entry {index}: {error}")]
    Configuration {
        /// Where it is in the log; 0 for the founding one.
        index: Index,
        /// What is wrong.
        error: ConfigurationError,
    },
    /// The two intervals do not fit together.
    #[error("election after {election} ticks, heartbeat after {heartbeat}: need 0 < heartbeat < election")]
    Ticks {
        /// `election_ticks`
        election: u32,
        /// `heartbeat_ticks`
        heartbeat: u32,
    },
    /// A limit of zero lets nothing through.
    #[error("{name} must not be 0")]
    ZeroLimit {
        /// The field.
        name: &'static str,
    },
    /// The restored state contradicts itself.
    #[error("restored state: {what}")]
    Restored {
        /// What is wrong.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::EntryKind;

    const VOTERS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

    fn config(change: impl FnOnce(&mut Config)) -> Result<(), ConfigError> {
        let mut config = Config::new(NodeId(1), Configuration::of(VOTERS), 0);
        change(&mut config);
        config.validate()
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        assert_eq!(config(|_| ()), Ok(()));
        assert_eq!(config(|c| c.id = NodeId(9)), Ok(()), "a node need not be a member");
        assert_eq!(config(|c| c.founding = Configuration::default()), Ok(()), "nor know the members");
        let learner = |c: &mut Config| c.founding.learners = [NodeId(2)].into();
        assert!(matches!(config(learner), Err(ConfigError::Configuration { index: 0, .. })));
        assert!(matches!(config(|c| c.heartbeat_ticks = 0), Err(ConfigError::Ticks { .. })));
        assert!(matches!(config(|c| c.heartbeat_ticks = c.election_ticks), Err(ConfigError::Ticks { .. })));
        assert!(matches!(config(|c| c.election_ticks = u32::MAX), Err(ConfigError::Ticks { .. })));
        assert_eq!(config(|c| c.election_rpc_ticks = 0), Err(ConfigError::ZeroLimit { name: "election_rpc_ticks" }));
        assert_eq!(config(|c| c.max_append_bytes = 0), Err(ConfigError::ZeroLimit { name: "max_append_bytes" }));
    }

    fn restored(change: impl FnOnce(&mut Restored)) -> Result<(), ConfigError> {
        let entry = |term, index| Entry { term, index, kind: EntryKind::Normal, payload: Bytes::new() };
        let mut restored = Restored {
            hard_state: HardState { term: 3, vote: Some(NodeId(2)) },
            snapshot_index: 4,
            snapshot_term: 2,
            applied_index: 5,
            configuration: None,
            entries: vec![entry(2, 5), entry(3, 6)],
            in_doubt: 0,
        };
        change(&mut restored);
        restored.validate()
    }

    #[test]
    fn a_memory_that_contradicts_itself_is_refused() {
        assert_eq!(restored(|_| ()), Ok(()));
        assert_eq!(restored(|r| *r = Restored::default()), Ok(()));
        let changes: [fn(&mut Restored); 9] = [
            |r| r.hard_state.term = 2,
            |r| r.hard_state.term = Term::MAX,
            |r| r.snapshot_index = 3,
            |r| r.snapshot_index = Index::MAX,
            |r| r.snapshot_term = 0,
            |r| r.snapshot_term = 3,
            |r| r.applied_index = 3,
            |r| r.applied_index = 7,
            |r| drop(r.entries.remove(0)),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(restored(change).is_err(), "change {number} went unnoticed");
        }
    }

    #[test]
    fn only_configurations_beyond_the_applied_index_are_read() {
        let entry = |index, payload| Entry { term: 1, index, kind: EntryKind::Configuration, payload };
        let configuration = Configuration::of(VOTERS);
        let mut restored = Restored {
            hard_state: HardState { term: 1, vote: None },
            applied_index: 1,
            entries: vec![entry(1, Bytes::new()), entry(2, configuration.encode())],
            ..Restored::default()
        };
        assert_eq!(restored.configurations(), Ok(vec![(2, configuration)]));
        restored.applied_index = 0;
        assert!(matches!(restored.configurations(), Err(ConfigError::Configuration { index: 1, .. })));
    }
}
