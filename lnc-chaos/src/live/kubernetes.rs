//! Pods of a stateful set, through `kubectl` and nothing else.

use super::error::{LiveError, Result, os};
use super::node::free_address;
use super::system::{is_present, run};
use serde_json::Value;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Longest time for a pod to be ready again.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between two looks at a pod.
const POLL: Duration = Duration::from_secs(1);
/// Port for clients, where the stateful set names none.
const CLIENT_PORT: u64 = 1992;

/// The stateful set of a cluster.
pub(super) struct Pods {
    namespace: String,
    statefulset: String,
    /// How many pods it has.
    pub(super) replicas: u64,
    client_port: u64,
    /// Ports of this machine that lead to the pods.
    forwards: JoinSet<()>,
}

impl Pods {
    /// Ask for the stateful set.
    pub(super) async fn find(namespace: &str, statefulset: &str) -> Result<Self> {
        if !is_present("kubectl") {
            return Err(LiveError::Unavailable("pods need kubectl on the path".to_owned()));
        }
        let text = run("kubectl", &["-n", namespace, "get", "statefulset", statefulset, "-o", "json"]).await?;
        let (replicas, client_port) = described(&text).ok_or_else(|| LiveError::Program {
            command: format!("kubectl -n {namespace} get statefulset {statefulset} -o json"),
            said: "no stateful set with replicas is described".to_owned(),
        })?;
        let (namespace, statefulset) = (namespace.to_owned(), statefulset.to_owned());
        Ok(Self { namespace, statefulset, replicas, client_port, forwards: JoinSet::new() })
    }

    /// The name of a pod, counted from 0.
    pub(super) fn pod(&self, number: u64) -> String {
        format!("{}-{number}", self.statefulset)
    }

    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run("kubectl", &[&["-n", &self.namespace], arguments].concat()).await
    }

    /// Lead a port of this machine to each pod, again whenever it breaks; gives the addresses.
    pub(super) fn forward(&mut self) -> Result<Vec<String>> {
        let mut endpoints = Vec::new();
        for number in 0..self.replicas {
            let address = free_address()?;
            let (namespace, pod) = (self.namespace.clone(), format!("pod/{}", self.pod(number)));
            let ports = format!("{}:{}", address.port(), self.client_port);
            self.forwards.spawn(async move {
                loop {
                    let mut command = Command::new("kubectl");
                    command.args(["-n", &namespace, "port-forward", "--address", "127.0.0.1", &pod, &ports]);
                    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
                    // What is wrong shows as an endpoint that nobody answers at.
                    let _ = command.status().await;
                    sleep(POLL).await;
                }
            });
            endpoints.push(address.to_string());
        }
        Ok(endpoints)
    }

    /// Delete a pod and wait until another one in its place is ready.
    pub(super) async fn delete(&self, number: u64) -> Result<()> {
        let pod = self.pod(number);
        let before = self.state(&pod).await?;
        self.kubectl(&["delete", "pod", &pod, "--wait=false"]).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // For a moment there may be none.
            let now = self.state(&pod).await.unwrap_or_default();
            if now.ready && now.uid != before.uid {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let state = if now.uid == before.uid { "the former one is still there" } else { "it is not ready" };
                return Err(LiveError::NotReady {
                    who: format!("pod {pod}"),
                    after: PATIENCE,
                    state: state.to_owned(),
                });
            }
            sleep(POLL).await;
        }
    }

    async fn state(&self, pod: &str) -> Result<PodState> {
        Ok(pod_state(&self.kubectl(&["get", "pod", pod, "-o", "json"]).await?))
    }

    /// Restart all pods, one after the other, and wait until that is done.
    pub(super) async fn rollout_restart(&self) -> Result<()> {
        let set = format!("statefulset/{}", self.statefulset);
        self.kubectl(&["rollout", "restart", &set]).await?;
        self.wait_ready().await
    }

    /// Wait until all pods are ready and of the newest revision.
    pub(super) async fn wait_ready(&self) -> Result<()> {
        let set = format!("statefulset/{}", self.statefulset);
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["rollout", "status", &set, &timeout]).await?;
        Ok(())
    }

    /// What the pods have logged, into files of a directory.
    pub(super) async fn save_logs(&self, directory: &std::path::Path) -> Result<()> {
        for number in 0..self.replicas {
            let pod = self.pod(number);
            let log = self.kubectl(&["logs", &pod]).await.unwrap_or_else(|error| error.to_string());
            let path = directory.join(format!("{pod}.log"));
            std::fs::write(&path, log).map_err(os(format!("write {}", path.display())))?;
        }
        Ok(())
    }
}

/// Replicas and client port of a stateful set.
fn described(text: &str) -> Option<(u64, u64)> {
    let set: Value = serde_json::from_str(text).ok()?;
    let replicas = set["spec"]["replicas"].as_u64()?;
    let containers = set["spec"]["template"]["spec"]["containers"].as_array();
    let ports = containers.into_iter().flatten().filter_map(|container| container["ports"].as_array()).flatten();
    let named = ports.filter(|port| port["name"] == "client").find_map(|port| port["containerPort"].as_u64());
    Some((replicas, named.unwrap_or(CLIENT_PORT)))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct PodState {
    uid: String,
    ready: bool,
}

fn pod_state(text: &str) -> PodState {
    let pod: Value = serde_json::from_str(text).unwrap_or_default();
    let conditions = pod["status"]["conditions"].as_array();
    let is_ready = |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
    PodState {
        uid: pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned(),
        // One that is on its way out may still say that it is ready.
        ready: pod["metadata"]["deletionTimestamp"].is_null() && conditions.is_some_and(|all| all.iter().any(is_ready)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stateful_sets_are_understood() {
        let named = r#"{"spec":{"replicas":3,"template":{"spec":{"containers":[{"ports":[
            {"name":"http","containerPort":1994},{"name":"client","containerPort":7000}]}]}}}}"#;
        assert_eq!(described(named), Some((3, 7000)));
        assert_eq!(described(r#"{"spec":{"replicas":5}}"#), Some((5, CLIENT_PORT)));
        assert_eq!(described("{}"), None);
        assert_eq!(described("no json"), None);
    }

    #[test]
    fn a_pod_that_ends_is_not_ready() {
        let pod = |deleted: &str, status: &str| {
            pod_state(&format!(
                r#"{{"metadata":{{"uid":"a"{deleted}}},"status":{{"conditions":[{{"type":"Ready","status":"{status}"}}]}}}}"#
            ))
        };
        assert_eq!(pod("", "True"), PodState { uid: "a".to_owned(), ready: true });
        assert!(!pod("", "False").ready);
        assert!(!pod(r#","deletionTimestamp":"2026-01-01T00:00:00Z""#, "True").ready);
        assert_eq!(pod_state(""), PodState::default());
    }
}
