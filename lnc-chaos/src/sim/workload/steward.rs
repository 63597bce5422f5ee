//! The operator who changes the members, under load and while other things fail. A change is complete when every node
//! that joins has everything and votes in every group, and no group names those that leave. What changes there are is a
//! matter of style.

use super::super::invariants::Violation;
use super::super::profile::Profile;
use super::super::rng::Rng;
use super::super::settings::Settings;
use super::{Action, BEGIN, Client, Env, Outcome};
use lnc_protocol::message::{ChangeMembersRequest, MemberChange, Response};
use lnc_protocol::{ErrorCode, Request};
use std::collections::{BTreeMap, BTreeSet};

const TIMEOUT_US: u64 = 8_000_000;
/// Time between two looks.
const LOOK_US: u64 = 300_000;

/// Which changes an operator makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A node at a time leaves, and comes back with an empty disk.
    OneByOne,
    /// Nodes take the place of others that live.
    Replacing,
    /// Nodes come, and none leaves.
    Growing,
    /// Several leave, down to two or one, several come, or both at once.
    Shrinking,
}

impl Style {
    /// The style of the operator in runs of a profile, if there is one.
    pub(super) fn of(profile: Profile) -> Option<Self> {
        match profile {
            Profile::Members => Some(Self::OneByOne),
            Profile::Replace => Some(Self::Replacing),
            Profile::Growth => Some(Self::Growing),
            Profile::Shrink => Some(Self::Shrinking),
            _ => None,
        }
    }

    /// The next change: who joins, with whom each replaces, and who leaves.
    fn next(self, rng: &mut Rng, members: &BTreeSet<u64>, free: &[u64]) -> (Vec<(u64, Option<u64>)>, Vec<u64>) {
        let mut free = shuffled(rng, free);
        let mut members = shuffled(rng, &members.iter().copied().collect::<Vec<_>>());
        let joining = |free: Vec<u64>| free.into_iter().map(|node| (node, None)).collect();
        match self {
            Self::OneByOne if free.is_empty() => (Vec::new(), members.into_iter().take(1).collect()),
            Self::OneByOne => (joining(free), Vec::new()),
            Self::Replacing => {
                free.truncate(1 + rng.below(2) as usize);
                members.truncate(free.len());
                match rng.chance(700) {
                    true => (free.into_iter().zip(members.into_iter().map(Some)).collect(), Vec::new()),
                    false => (joining(free), members),
                }
            }
            Self::Growing => {
                free.truncate(1 + rng.below(2) as usize);
                (joining(free), Vec::new())
            }
            Self::Shrinking => {
                let all = members.len() + free.len();
                let size = rng.pick(&[1, 1, 2, all - 1, all]);
                let mixed = usize::from(rng.chance(300));
                free.truncate(size.saturating_sub(members.len()).max(mixed));
                let stay = (size - free.len().min(size)).max(1);
                (joining(free), members.split_off(stay.min(members.len())))
            }
        }
    }
}

fn shuffled(rng: &mut Rng, from: &[u64]) -> Vec<u64> {
    let mut from = from.to_vec();
    (0..from.len()).map(|_| from.swap_remove(rng.below(from.len() as u64) as usize)).collect()
}

/// What is still to be done about a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// It is to be added.
    Add { replaces: Option<u64> },
    /// It was added, and does not have everything yet.
    Coming,
    /// It is to be removed.
    Remove,
    /// It was removed, or is being replaced, and groups still name it.
    Leaving,
}

/// See the module documentation.
pub(super) struct Steward {
    style: Style,
    /// The members, as soon as what was begun is done.
    members: BTreeSet<u64>,
    machines: u64,
    tasks: BTreeMap<u64, Task>,
    /// The next change begins then.
    idle_until_us: u64,
    /// Nodes that were removed and run on, until then.
    lingering: BTreeMap<u64, u64>,
    attempts: u64,
    /// The node about which a question is open.
    asked: Option<u64>,
}

impl Steward {
    pub(super) fn new(style: Style, settings: &Settings) -> Self {
        Self {
            style,
            members: (1..=settings.founders).collect(),
            machines: settings.nodes,
            tasks: BTreeMap::new(),
            idle_until_us: if style == Style::Growing { 4_000_000 + settings.seed % 8 * 1_000_000 } else { 6_000_000 },
            lingering: BTreeMap::new(),
            attempts: 0,
            asked: None,
        }
    }

    /// Begin the next change, if everybody is there: who is not whole must not be one of several that are missing.
    fn begin(&mut self, env: &mut Env<'_>) {
        if env.stopping
            || env.now_us < self.idle_until_us
            || self.members.iter().any(|m| !env.members.whole.contains(m))
        {
            return;
        }
        let free: Vec<u64> = (1..=self.machines).filter(|node| !self.members.contains(node)).collect();
        let (joins, leaves) = self.style.next(env.rng, &self.members, &free);
        for (node, replaces) in joins {
            if self.lingering.remove(&node).is_some() {
                env.actions.push(Action::Retire { node });
            }
            env.actions.push(Action::Provide { node });
            self.members.insert(node);
            self.tasks.insert(node, Task::Add { replaces });
            if let Some(old) = replaces {
                self.members.remove(&old);
                self.tasks.insert(old, Task::Leaving);
            }
        }
        for node in leaves {
            self.members.remove(&node);
            self.tasks.insert(node, Task::Remove);
        }
    }

    fn ask(&mut self, env: &mut Env<'_>, change: MemberChange, node: u64, replaces: Option<u64>) {
        let address =
            |port: u16| if change == MemberChange::Add { format!("node-{node}:{port}") } else { String::new() };
        let request = ChangeMembersRequest {
            change,
            node,
            client_address: address(1992),
            peer_address: address(1993),
            http_address: address(1994),
            replaces,
            timeout_ms: 5_000,
        };
        (self.attempts, self.asked) = (self.attempts + 1, Some(node));
        let at = env.any_node();
        env.send(at, Request::ChangeMembers(request), TIMEOUT_US, self.attempts);
    }

    /// Go on with what was begun.
    fn work(&mut self, env: &mut Env<'_>) {
        let done = |(node, task): (&u64, &Task)| match task {
            Task::Coming => env.members.whole.contains(node),
            Task::Leaving => env.members.unnamed.contains(node),
            Task::Add { .. } | Task::Remove => false,
        };
        // Who is replaced is named by no group before its successor is one of its members.
        let adding = self.tasks.values().any(|task| matches!(task, Task::Add { replaces: Some(_) }));
        let done: Vec<u64> = self.tasks.iter().filter(|task| !adding && done(*task)).map(|(node, _)| *node).collect();
        for node in done {
            if self.tasks.remove(&node) == Some(Task::Leaving) {
                env.actions.push(Action::Dismiss { node });
                // Some run on to the end: they must not disturb.
                let for_us = env.rng.pick(&[0, 2_000_000, 10_000_000, 1_000_000_000]);
                self.lingering.insert(node, env.now_us + for_us);
            }
        }
        if self.tasks.is_empty() {
            self.idle_until_us = env.now_us + env.around(7_000_000);
        }
        let open = self.tasks.iter().find_map(|(node, task)| match task {
            Task::Add { replaces } => Some((*node, MemberChange::Add, *replaces)),
            Task::Remove => Some((*node, MemberChange::Remove, None)),
            Task::Coming | Task::Leaving => None,
        });
        if let (None, Some((node, change, replaces))) = (self.asked, open) {
            self.ask(env, change, node, replaces);
        }
    }
}

impl Client for Steward {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        if self.tasks.is_empty() {
            self.begin(env);
        } else {
            self.work(env);
        }
        let over: Vec<u64> =
            self.lingering.iter().filter(|(_, until)| **until <= env.now_us).map(|(n, _)| *n).collect();
        for node in over {
            self.lingering.remove(&node);
            env.actions.push(Action::Retire { node });
        }
        env.timer(LOOK_US, BEGIN);
        Ok(())
    }

    fn outcome(&mut self, _env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        let Some(node) = self.asked.take() else { return Ok(()) };
        let Some(task) = self.tasks.get_mut(&node) else { return Ok(()) };
        // An earlier attempt may have been heard after all, and what it asked for be over by now.
        match (*task, outcome) {
            (Task::Add { .. }, Outcome::Done(Response::ChangeMembers)) => *task = Task::Coming,
            (Task::Add { replaces: Some(_) }, Outcome::Refused(error)) if error.code == ErrorCode::MemberExists => {
                *task = Task::Coming;
            }
            (Task::Remove, Outcome::Done(Response::ChangeMembers)) => *task = Task::Leaving,
            (Task::Remove, Outcome::Refused(error)) if error.code == ErrorCode::UnknownMember => *task = Task::Leaving,
            (_, Outcome::Refused(error)) if error.code.is_retriable() => {}
            (_, Outcome::Lost | Outcome::TimedOut) => {}
            (task, other) => {
                let what = format!("to the steward, who asked about node {node}, {task:?}: {other:?}");
                return Err(Violation::new("unexpected-answer", what));
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    fn watches_members(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("the steward of {:?}, with {:?} to do", self.members, self.tasks)
    }
}
