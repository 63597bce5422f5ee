//! What should not happen once a cluster is at rest: that terms pass, or that groups go on to change their members. And, at
//! any time, that they change them in a circle.

use super::super::invariants::Violation;
use lnc_broker::command::{Command, Commands};
use lnc_raft::{Configuration, Entry, EntryKind};
use std::collections::BTreeMap;

/// How long nothing must happen: several election time-outs, and several of the steps that are taken every second.
const QUIET_US: u64 = 5_000_000;

/// How often a group may come to the same members while the catalog says the same of them.
const MAX_RETURNS: u32 = 2;

/// See the module documentation.
#[derive(Default)]
pub(super) struct Rest {
    /// By group: the latest term, and the latest entry about members.
    terms: BTreeMap<u32, u64>,
    changed: BTreeMap<u32, u64>,
    /// How often each group came to each configuration since the catalog last said something new of the members.
    returns: BTreeMap<(u32, String), u32>,
    /// When something happened last, which rule it would break, and what it was.
    disturbed: Option<(u64, &'static str, String)>,
}

impl Rest {
    /// A node is in a term of a group.
    pub(super) fn in_term(&mut self, now_us: u64, node: u64, group: u32, term: u64) {
        let latest = self.terms.entry(group).or_default();
        if term > *latest {
            *latest = term;
            self.disturbed =
                Some((now_us, "rest-elections", format!("node {node} goes on to term {term} of group {group}")));
        }
    }

    /// A node has applied an entry. Gives the members if it is the first to have them.
    pub(super) fn applied(
        &mut self,
        now_us: u64,
        node: u64,
        group: u32,
        entry: &Entry,
    ) -> Result<Option<Configuration>, Violation> {
        let latest = self.changed.entry(group).or_default();
        if changes_members(entry) {
            self.returns.clear();
        }
        if entry.kind != EntryKind::Configuration || entry.index <= *latest {
            return Ok(None);
        }
        *latest = entry.index;
        let configuration = Configuration::decode(&entry.payload).unwrap_or_default();
        let members = configuration.to_string();
        let what =
            format!("group {group} has the members {members} by entry {}, first applied by node {node}", entry.index);
        let returns = self.returns.entry((group, members)).or_default();
        *returns += 1;
        if *returns > MAX_RETURNS {
            return Err(Violation::new("members-in-circles", format!("{what}, for the {returns}th time")));
        }
        self.disturbed = Some((now_us, "rest-members", what));
        Ok(Some(configuration))
    }

    /// Whether nothing has happened for long enough, since `since_us` at the latest.
    pub(super) fn is_quiet(&self, now_us: u64, since_us: u64) -> bool {
        let last_us = self.disturbed.as_ref().map_or(0, |(at_us, ..)| *at_us);
        now_us >= last_us.max(since_us) + QUIET_US
    }

    /// What does not end.
    pub(super) fn disturbance(&self, nodes: &str) -> Violation {
        match &self.disturbed {
            Some((at_us, rule, what)) => Violation::new(rule, format!("{what}, at {at_us} us and before;{nodes}")),
            None => Violation::new("liveness", "the cluster is at rest and the run does not end"),
        }
    }
}

/// Whether an entry of the catalog says who is to be a member, and who not.
fn changes_members(entry: &Entry) -> bool {
    let commands = (entry.kind == EntryKind::Normal).then(|| Commands::parse(entry.payload.clone()).ok()).flatten();
    let says = |command: Command| {
        matches!(
            command,
            Command::AddMember { .. }
                | Command::AdmitMember { .. }
                | Command::RenewMember { .. }
                | Command::RemoveMember { .. }
                | Command::AbandonMember { .. }
        )
    };
    commands.is_some_and(|mut commands| commands.any(|command| command.is_ok_and(says)))
}
