//! `lnc-chaos mutations`: proof that the simulator can fail. Each mistake of `lnc-mutation` is made in turn, in runs of a
//! profile that has the faults it needs, until a rule is broken.

use crate::sim::profile::Profile;
use crate::sim::report::Report;
use crate::sim::{Plan, run};
use lnc_mutation::{Mutation, choose};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How far to look.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The first seed of each mutation
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seeds after which a mutation counts as not found
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Only the mutation of this name
    #[arg(long, value_parser = mutation)]
    only: Option<Mutation>,
    /// Look for it in runs of this profile
    #[arg(long, value_parser = super::simulate::profile)]
    profile: Option<Profile>,
    /// Threads, each with its own seeds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
}

pub(super) fn mutation(name: &str) -> Result<Mutation, String> {
    Mutation::ALL.iter().copied().find(|mutation| mutation.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Mutation::ALL.iter().map(|mutation| mutation.name()).collect();
        format!("no mutation has this name; there are {}", names.join(", "))
    })
}

/// The profile with the faults that a mistake needs to do harm.
fn profile(mutation: Mutation) -> Profile {
    match mutation {
        Mutation::AcknowledgeEarly
        | Mutation::NoDirectorySync
        | Mutation::KeepFewerFiles
        | Mutation::CheckpointUnsynced
        | Mutation::CheckpointEarly => Profile::Power,
        Mutation::ForgetVote | Mutation::VoteForAnyLog | Mutation::VoteTwice | Mutation::ForgetProducerIds => {
            Profile::Crashes
        }
        Mutation::CountLeaderEarly | Mutation::VoteEarly | Mutation::FlushOutOfOrder => Profile::Outages,
        Mutation::CommitPriorTerm
        | Mutation::ReadUnconfirmed
        | Mutation::ReadOldRound
        | Mutation::ReadEarlierTerm
        | Mutation::AppendUnmatched
        | Mutation::CommitUnmatched
        | Mutation::AcknowledgeUnmatched
        | Mutation::DenyProposed => Profile::Coups,
        Mutation::UnclampedCommit
        | Mutation::ApplyUncommitted
        | Mutation::ReadLocally
        | Mutation::DenyUnconfirmed
        | Mutation::DeletedEarly
        | Mutation::DenyLate => Profile::Partitions,
        Mutation::RepeatAnything | Mutation::ShortWindow => Profile::Coups,
        Mutation::ForgetDuplicates | Mutation::AcceptDuplicates | Mutation::KeepReplacedLog | Mutation::TakeTooMuch => {
            Profile::Everything
        }
        Mutation::VoteWhileLacking => Profile::Damage,
        Mutation::RemoveEarly
        | Mutation::IgnoreMark
        | Mutation::VoteInDoubt
        | Mutation::ForgetDoubt
        | Mutation::AcceptOtherMark
        | Mutation::AcceptOtherCheckpoint
        | Mutation::AcceptOtherJournal
        | Mutation::IgnoreDigests
        | Mutation::RepairAtOnce => Profile::LostFiles,
        Mutation::RemoveLate => Profile::Filled,
        Mutation::KeepWhatGoes => Profile::Tight,
        Mutation::WipedVotes => Profile::Wipes,
        Mutation::BelieveOwnClock => Profile::Leaps,
        Mutation::LeadUnrecorded | Mutation::LeaderAcksEarly => Profile::Growth,
        Mutation::PromoteEarly
        | Mutation::JointNewOnly
        | Mutation::JointOldOnly
        | Mutation::LeaveJointEarly
        | Mutation::KeepCutMembers
        | Mutation::CountLearners => Profile::Replace,
        Mutation::ReadAnyRound => Profile::Echoes,
        Mutation::ReadUnapplied
        | Mutation::ForgetTheNewest
        | Mutation::IgnoreEpochs
        | Mutation::AcceptGaps
        | Mutation::NeverWrap
        | Mutation::AcceptStrangers => Profile::Network,
        Mutation::TrimEarly | Mutation::GiveTooMuch => Profile::Calm,
        Mutation::KeepOffice => Profile::Narrow,
        Mutation::WaitForNobody => Profile::Laggards,
        Mutation::FormAlone => Profile::Formation,
    }
}

/// Look for every mutation; 1 if one was not found.
pub(super) fn hunt(arguments: &Arguments) -> ExitCode {
    // What an assertion finds is found; its message comes with the result.
    std::panic::set_hook(Box::new(|_| {}));
    println!("| mutation | what it does | profile | found by | runs |\n|---|---|---|---|---|");
    let begun = Instant::now();
    let chosen = |mutation: &&Mutation| arguments.only.is_none_or(|only| only == **mutation);
    let mut missed = 0;
    for mutation in Mutation::ALL.iter().filter(chosen).copied() {
        let found = first_failure(arguments, mutation);
        missed += u64::from(found.is_none());
        let (rule, runs) = match &found {
            Some((n, report)) => {
                (report.failure.as_ref().map_or("", |failure| failure.violation.invariant), (n + 1).to_string())
            }
            None => ("**nothing**", format!("over {}", arguments.seeds)),
        };
        let (name, about) = (mutation.name(), mutation.about());
        let profile = arguments.profile.unwrap_or(profile(mutation)).name();
        println!("| `{name}` | {about} | {profile} | {rule} | {runs} |");
    }
    println!("\n{missed} not found, in {:.1} s", begun.elapsed().as_secs_f64());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How long a run is, in microseconds: a cluster soon has grown.
fn virtual_us(profile: Profile) -> u64 {
    if profile == Profile::Growth { 45_000_000 } else { 120_000_000 }
}

/// Whether a run keeps all rules if nobody makes the mistake: what breaks one anyway proves nothing.
fn holds_without(plan: &Plan, mutation: Mutation) -> bool {
    choose(None);
    let report = run(plan);
    choose(Some(mutation));
    report.failure.is_none()
}

/// The first seed with a broken rule: its place, and what came of it. The same for any number of threads.
fn first_failure(arguments: &Arguments, mutation: Mutation) -> Option<(u64, Report)> {
    let next = AtomicU64::new(0);
    let end = AtomicU64::new(arguments.seeds);
    let found = Mutex::new(None);
    let look = || {
        choose(Some(mutation));
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= end.load(Ordering::Relaxed) {
                return;
            }
            let seed = arguments.seed.wrapping_add(n);
            let profile = arguments.profile.unwrap_or(profile(mutation));
            let plan = Plan { seed, profile, nodes: 3, virtual_us: virtual_us(profile), schedule: None };
            let report = run(&plan);
            if report.failure.is_some() && holds_without(&plan, mutation) {
                end.fetch_min(n, Ordering::Relaxed);
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if found.as_ref().is_none_or(|(first, _)| n < *first) {
                    *found = Some((n, report));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(look);
        }
    });
    found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}
