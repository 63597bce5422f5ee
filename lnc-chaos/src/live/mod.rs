//! A live cluster of Kubernetes under faults: pods are deleted, killed and rolled while records are written, and what was
//! acknowledged is looked for afterwards on every node.
//!
//! Everything goes through `kubectl`: `lance` is run inside the pods, so that no port has to be opened to the cluster.

pub mod history;
pub mod kubectl;

use history::History;
use kubectl::{Kubectl, KubectlError};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What to do to which cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How the cluster is reached.
    pub kubectl: Kubectl,
    /// The set whose pods are nodes.
    pub statefulset: String,
    /// How long faults strike.
    pub duration: Duration,
    /// Quiet time after the set has recovered from a fault.
    pub pause: Duration,
    /// Longest time for the set to be ready again.
    pub recovery: Duration,
    /// Chooses the faults and the pods.
    pub seed: u64,
}

/// A fault, in words that are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The pod is told to stop, and hands over.
    Delete(usize),
    /// The pod is killed.
    Kill(usize),
    /// Every pod is told to stop, one after the other.
    Roll,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Calls that were acknowledged, and calls whose outcome is not known.
    pub calls: (usize, usize),
    /// Faults that struck.
    pub faults: usize,
    /// Promises that were broken.
    pub broken: Vec<String>,
}

/// Records of one call, and so of one line each.
const LINES: u64 = 200;
/// Sentences about broken promises that are kept of one node.
const MAX_BROKEN: usize = 20;

/// Runs the plan, and tells `say` what happens.
///
/// # Errors
/// When Kubernetes refuses something other than a call of a client, or the set does not recover in time.
pub fn run(plan: &Plan, say: &(dyn Fn(String) + Sync)) -> Result<Outcome, KubectlError> {
    let Plan { kubectl, statefulset, .. } = plan;
    let pods = pods(plan)?;
    recovered(plan, &pods)?;
    let topic = format!("chaos-{}", plan.seed);
    kubectl.lance(&pods[0], &["topic", "create", &topic], b"")?;
    let history = Mutex::new(History::default());
    let stop = AtomicBool::new(false);
    let faults = std::thread::scope(|scope| {
        scope.spawn(|| write(kubectl, &pods, &topic, &history, &stop));
        let faults = strike(plan, &pods, say);
        stop.store(true, Ordering::Relaxed);
        faults
    })?;
    recovered(plan, &pods)?;
    let history = history.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut broken = Vec::new();
    let mut first = None;
    for pod in &pods {
        let text = kubectl.lance(pod, &["consume", &topic, "--partition", "0", "--until-end"], b"")?;
        broken.extend(history.check(&text).into_iter().take(MAX_BROKEN).map(|problem| format!("on {pod}: {problem}")));
        let (of, expected) = first.get_or_insert_with(|| (pod, text.clone()));
        if *expected != text {
            broken.push(format!("{of} and {pod} of {statefulset} hold different records"));
        }
    }
    if history.acknowledged() == 0 {
        broken.push("nothing was acknowledged, so nothing was tested".to_owned());
    }
    // Evidence is kept.
    if broken.is_empty() {
        kubectl.lance(&pods[0], &["topic", "delete", &topic, "--yes"], b"")?;
    }
    Ok(Outcome { calls: (history.acknowledged(), history.unknown()), faults, broken })
}

/// The names of the pods.
fn pods(plan: &Plan) -> Result<Vec<String>, KubectlError> {
    let set = format!("statefulset/{}", plan.statefulset);
    let replicas = plan.kubectl.run(&["get", &set, "--output", "jsonpath={.spec.replicas}"], b"")?;
    let replicas = String::from_utf8_lossy(&replicas).trim().parse::<usize>().unwrap_or(0);
    if replicas < 3 {
        return Err(KubectlError::Unsuitable(format!("{set} has {replicas} replicas: three or more are wanted")));
    }
    Ok((0..replicas).map(|ordinal| format!("{}-{ordinal}", plan.statefulset)).collect())
}

/// Waits until every pod is ready. The set may not have noticed yet that one is gone: the pods' own word counts.
fn recovered(plan: &Plan, pods: &[String]) -> Result<(), KubectlError> {
    /// Between two looks.
    const LOOK: Duration = Duration::from_secs(1);
    let deadline = Instant::now() + plan.recovery;
    let timeout = format!("--timeout={}s", plan.recovery.as_secs().max(1));
    let set = format!("statefulset/{}", plan.statefulset);
    let pods: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
    let mut wait: Vec<&str> = vec!["wait", "--for=condition=Ready", "--timeout=30s"];
    wait.extend(pods.iter().map(String::as_str));
    loop {
        plan.kubectl.run(&["rollout", "status", &set, &timeout], b"")?;
        match plan.kubectl.run(&wait, b"") {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Faults, one after the other, until the time is over; gives how many.
fn strike(plan: &Plan, pods: &[String], say: &(dyn Fn(String) + Sync)) -> Result<usize, KubectlError> {
    let set = format!("statefulset/{}", plan.statefulset);
    let end = Instant::now() + plan.duration;
    let mut random = plan.seed;
    let mut faults = 0;
    while Instant::now() < end {
        std::thread::sleep(plan.pause);
        let fault = choose(&mut random, pods.len());
        say(match fault {
            Fault::Delete(pod) => format!("deleting {}", pods[pod]),
            Fault::Kill(pod) => format!("killing {}", pods[pod]),
            Fault::Roll => format!("rolling {set}"),
        });
        match fault {
            Fault::Delete(pod) => plan.kubectl.run(&["delete", "pod", &pods[pod], "--wait=true"], b""),
            Fault::Kill(pod) => {
                let kill = ["delete", "pod", &pods[pod], "--grace-period=0", "--force", "--wait=true"];
                plan.kubectl.run(&kill, b"")
            }
            Fault::Roll => plan.kubectl.run(&["rollout", "restart", &set], b""),
        }?;
        faults += 1;
        recovered(plan, pods)?;
    }
    Ok(faults)
}

/// The next fault: kills are what hurts most, a roll takes longest.
fn choose(random: &mut u64, pods: usize) -> Fault {
    // Knuth's constants; the upper bits are the good ones.
    let mut next = |below: u64| {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) % below
    };
    let pod = next(pods as u64) as usize;
    match next(5) {
        0 => Fault::Roll,
        1 | 2 => Fault::Delete(pod),
        _ => Fault::Kill(pod),
    }
}

/// Writes until told to stop, by way of one pod after the other.
fn write(kubectl: &Kubectl, pods: &[String], topic: &str, history: &Mutex<History>, stop: &AtomicBool) {
    for call in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let pod = &pods[call as usize % pods.len()];
        let text = history::lines(call, LINES);
        let done = kubectl.lance(pod, &["produce", topic, "--partition", "0", "--quiet"], text.as_bytes());
        history.lock().unwrap_or_else(PoisonError::into_inner).add(call, LINES, done.is_ok());
        if done.is_err() {
            // The pod is gone, as it should be; asking again at once would only be a busy loop.
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_strikes_every_pod_and_a_seed_repeats_them() {
        let draw = |seed: u64| {
            let mut random = seed;
            (0..200).map(|_| choose(&mut random, 3)).collect::<Vec<_>>()
        };
        let drawn = draw(7);
        for pod in 0..3 {
            assert!(drawn.contains(&Fault::Delete(pod)) && drawn.contains(&Fault::Kill(pod)));
        }
        assert!(drawn.contains(&Fault::Roll));
        assert_eq!(drawn, draw(7));
        assert_ne!(drawn, draw(8));
    }
}
