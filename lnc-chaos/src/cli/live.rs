//! `lnc-chaos live`: a cluster of Kubernetes under faults.

use crate::live::kubectl::Kubectl;
use crate::live::{Plan, run};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Which cluster, and for how long.
#[derive(clap::Args)]
#[command(after_help = "\
Pods are deleted and killed and the set is rolled while records are written; then every acknowledged record must be on every
node, once and in order. Exit codes: 0 all promises were kept, 1 one was broken, 2 the cluster cannot be tested.

Example:
  lnc-chaos live --namespace lance --statefulset lance --for 10m")]
pub(super) struct Arguments {
    /// Namespace of the cluster
    #[arg(long, env = "LANCE_NAMESPACE", default_value = "lance")]
    namespace: String,
    /// StatefulSet whose pods are the nodes
    #[arg(long, default_value = "lance")]
    statefulset: String,
    /// How long faults strike; the last one may take longer
    #[arg(long = "for", value_name = "TIME", default_value = "2m", value_parser = super::parse_duration)]
    duration: Duration,
    /// Quiet time after the set has recovered
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::parse_duration)]
    pause: Duration,
    /// Longest time for the set to be ready again
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = super::parse_duration)]
    recovery: Duration,
    /// Chooses faults and pods; a fresh one is printed
    #[arg(long)]
    seed: Option<u64>,
    /// The command that reaches the cluster
    #[arg(long, value_name = "PROGRAM", default_value = "kubectl")]
    kubectl: String,
}

pub(super) fn live(arguments: Arguments) -> ExitCode {
    let fresh = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs());
    let seed = arguments.seed.unwrap_or_else(fresh);
    let Arguments { namespace, statefulset, duration, pause, recovery, kubectl: program, .. } = arguments;
    println!("{statefulset} in {namespace}, seed {seed}");
    let begun = Instant::now();
    let say = |event: String| println!("{:7.1} s  {event}", begun.elapsed().as_secs_f64());
    let kubectl = Kubectl { program, namespace, container: "lance".to_owned() };
    let plan = Plan { kubectl, statefulset, duration, pause, recovery, seed };
    let outcome = match run(&plan, &say) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("lnc-chaos: {error}");
            return ExitCode::from(2);
        }
    };
    for problem in &outcome.broken {
        println!("BROKEN: {problem}");
    }
    let (acknowledged, unknown) = outcome.calls;
    println!("{} faults, {acknowledged} calls acknowledged, {unknown} of unknown outcome", outcome.faults);
    if outcome.broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
