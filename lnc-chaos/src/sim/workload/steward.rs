//! The operator who changes the members: takes a node out of the cluster, has its disk wiped once no group names it any
//! more, and after a while takes it in again, under load and while other things fail.

use super::super::invariants::Violation;
use super::{Action, BEGIN, Client, Env, Outcome};
use lnc_protocol::message::{ChangeMembersRequest, MemberChange, Response};
use lnc_protocol::{ErrorCode, Request};

const TIMEOUT_US: u64 = 8_000_000;

/// How far a change is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Everything is as it should be; the next change begins then.
    Idle { until_us: u64 },
    /// The node is to leave.
    Removing { node: u64 },
    /// The node was told to leave, and groups still name it.
    Leaving { node: u64 },
    /// The node is out, its disk is empty; it comes back then.
    Out { node: u64, until_us: u64 },
    /// The node is to come back.
    Adding { node: u64 },
    /// The node was told to come, and does not have everything yet.
    Coming { node: u64 },
}

/// See the module documentation.
pub(super) struct Steward {
    phase: Phase,
    attempts: u64,
    waits: bool,
}

impl Steward {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Idle { until_us: 6_000_000 }, attempts: 0, waits: false }
    }

    fn ask(&mut self, env: &mut Env<'_>, change: MemberChange, node: u64) {
        if self.waits {
            return;
        }
        let address =
            |port: u16| if change == MemberChange::Add { format!("node-{node}:{port}") } else { String::new() };
        let request = ChangeMembersRequest {
            change,
            node,
            client_address: address(1992),
            peer_address: address(1993),
            http_address: address(1994),
            replaces: None,
            timeout_ms: 5_000,
        };
        (self.attempts, self.waits) = (self.attempts + 1, true);
        let at = env.any_node();
        env.send(at, Request::ChangeMembers(request), TIMEOUT_US, self.attempts);
    }
}

impl Client for Steward {
    fn timer(&mut self, env: &mut Env<'_>, _token: u64) -> Result<(), Violation> {
        match self.phase {
            Phase::Idle { until_us } if env.now_us >= until_us && !env.stopping => {
                // One at a time: who is not whole must not be one of two that are missing.
                if env.members.whole {
                    let node = env.any_node();
                    self.phase = Phase::Removing { node };
                }
            }
            Phase::Idle { .. } => {}
            Phase::Removing { node } => self.ask(env, MemberChange::Remove, node),
            Phase::Leaving { node } => {
                if env.members.unnamed.contains(&node) {
                    env.actions.push(Action::Retire { node });
                    let away_us = env.around(6_000_000);
                    self.phase = Phase::Out { node, until_us: env.now_us + away_us };
                }
            }
            Phase::Out { node, until_us } if env.now_us >= until_us || env.stopping => {
                self.phase = Phase::Adding { node };
            }
            Phase::Out { .. } => {}
            Phase::Adding { node } => self.ask(env, MemberChange::Add, node),
            Phase::Coming { .. } => {
                if env.members.whole {
                    let until_us = env.now_us + env.around(8_000_000);
                    self.phase = Phase::Idle { until_us };
                }
            }
        }
        env.timer(300_000, BEGIN);
        Ok(())
    }

    fn outcome(&mut self, _env: &mut Env<'_>, token: u64, outcome: Outcome) -> Result<(), Violation> {
        if token != self.attempts {
            return Ok(());
        }
        self.waits = false;
        match (self.phase, outcome) {
            (Phase::Removing { node }, Outcome::Done(Response::ChangeMembers)) => self.phase = Phase::Leaving { node },
            // An earlier attempt was heard after all.
            (Phase::Removing { node }, Outcome::Refused(error)) if error.code == ErrorCode::UnknownMember => {
                self.phase = Phase::Leaving { node };
            }
            (Phase::Adding { node }, Outcome::Done(Response::ChangeMembers)) => self.phase = Phase::Coming { node },
            (_, Outcome::Refused(error)) if error.code.is_retriable() => {}
            (_, Outcome::Lost | Outcome::TimedOut) => {}
            (phase, other) => {
                return Err(Violation::new("unexpected-answer", format!("to the steward, {phase:?}: {other:?}")));
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle { .. })
    }

    fn watches_members(&self) -> bool {
        true
    }

    fn describe(&self) -> String {
        format!("the steward: {:?}", self.phase)
    }
}
