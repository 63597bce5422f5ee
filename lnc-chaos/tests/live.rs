//! `lnc-chaos live`, as a program: a short run on real processes passes and says so in every form, what cannot be done is
//! said, an interrupted run leaves nothing behind, and pods are handled through `kubectl`.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn live() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lnc-chaos"));
    command.arg("live").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn passed(output: &Output) -> String {
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{errors}", output.status);
    out
}

/// Processes whose command line names this directory.
fn processes_of(directory: &Path) -> Vec<String> {
    let needle = directory.to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|entry| Some(text(&std::fs::read(entry.path().join("cmdline")).ok()?)));
    lines.filter(|line| line.contains(&needle)).collect()
}

#[test]
fn a_run_with_faults_passes_and_leaves_evidence_but_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let evidence = directory.path().join("evidence");
    let mut command = live();
    command.args(["--fault", "kill-leader,partition-leader", "--partition-by", "proxy", "--repeat", "1"]);
    command.args(["--every", "3", "--hold", "1", "--warmup-secs", "1", "--post-roll-secs", "1", "--producers", "4"]);
    command.args(["--rate", "12000", "--seed", "5", "--report-interval", "1", "--evidence"]).arg(&evidence);
    let out = passed(&command.output().unwrap());
    assert!(out.starts_with("seed 5\n") && out.ends_with("\nPASS\n"), "{out}");
    assert!(out.contains("acknowledged/s") && out.contains("kill-leader: node"), "{out}");

    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(evidence.join("report.json")).unwrap()).unwrap();
    assert!(report["counts"]["acknowledged"].as_u64() > Some(500), "{report}");
    assert_eq!((&report["counts"]["gaps"], &report["replicas"]), (&0.into(), &3.into()));
    let faults: Vec<_> = report["nemesis"].as_array().unwrap().iter().map(|struck| &struck["fault"]).collect();
    assert_eq!(faults, ["kill-leader", "partition-leader"]);
    assert!(report["stalls"]["kill-leader"]["struck"]["median"]["partition_us"].as_u64() > Some(0), "{report}");

    let history = std::fs::read_to_string(evidence.join("history.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = history.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |event: &str| events.iter().filter(|line| line["event"] == event).count() as u64;
    assert_eq!(Some(count("acknowledged")), report["counts"]["acknowledged"].as_u64());
    assert!(count("sent") >= count("acknowledged") && count("read") >= 9 && count("fault") == 6);
    assert!(std::fs::read_to_string(evidence.join("report.html")).unwrap().contains("<svg"));
    assert!(std::fs::read_to_string(evidence.join("cluster/node-2/lance.log")).unwrap().contains("connected to peer"));
    assert!(!evidence.join("cluster/node-1/data").exists(), "what was not needed is removed");
    assert_eq!(processes_of(&evidence), Vec::<String>::new());
}

#[test]
fn a_bound_on_stalls_that_does_not_hold_fails_the_run() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = live();
    command.args(["--fault", "stop-leader", "--repeat", "1", "--every", "2", "--hold", "1", "--warmup-secs", "1"]);
    command.args(["--post-roll-secs", "0", "--producers", "2", "--json", "--max-stall", "stop-leader=1"]);
    let output = command.args(["--evidence"]).arg(directory.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verdict"], "FAIL");
    assert!(report["reasons"][0].as_str().unwrap().starts_with("stop-leader stalls a partition for"), "{report}");
}

#[test]
fn what_cannot_be_done_is_said() {
    for (arguments, expected) in [
        (&["--fault", "kill"][..], "no fault has the name"),
        (&["--fault", "pod-delete"], "--namespace"),
        (&["--endpoint", "127.0.0.1:1", "--fault", "kill-leader"], "only --fault none"),
        (&["--endpoint", "127.0.0.1:1"], "say --fault none"),
        (&["--schedule", "/no/such/file"], "cannot read /no/such/file"),
        (&["--fault", "slow-network", "--partition-by", "netns"], "--partition-by proxy"),
        (&["--lance", "/no/such/lance", "--fault", "none"], "cannot start node 1"),
    ] {
        let output = live().args(arguments).output().unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(expected), "{arguments:?}: {errors}");
    }
}

#[test]
fn an_interrupted_run_ends_its_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let evidence = directory.path().join("evidence");
    let mut command = live();
    command.args(["--fault", "none", "--duration", "1h", "--evidence"]).arg(&evidence);
    let mut run = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !evidence.join("history.jsonl").exists() {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "the run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(processes_of(&evidence).len(), 4, "three nodes and the run itself");
    let pid = rustix::process::Pid::from_raw(run.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("interrupted"));
    assert_eq!(processes_of(&evidence), Vec::<String>::new());
}

/// Answers as `kubectl` does for a stateful set whose pods are elsewhere, and writes down what it was asked.
const KUBECTL: &str = r#"#!/bin/sh
state=$(dirname "$0")
echo "$*" >> "$state/calls"
case "$3 $4 $5" in
"get statefulset lance") echo '{"spec":{"replicas":3}}' ;;
"rollout restart statefulset/lance") ;;
"rollout status statefulset/lance") ;;
"delete pod lance-"*) echo "$5" >> "$state/deleted" ;;
"get pod lance-"*)
    uid=$(grep -c "^$5\$" "$state/deleted" 2>/dev/null)
    echo "{\"metadata\":{\"uid\":\"life-$uid\"},\"status\":{\"conditions\":[{\"type\":\"Ready\",\"status\":\"True\"}]}}" ;;
*) echo "not expected: $*" >&2; exit 1 ;;
esac
"#;

#[test]
fn pods_are_deleted_and_rolled_through_kubectl() {
    let directory = tempfile::tempdir().unwrap();
    let kubectl = directory.path().join("kubectl");
    std::fs::write(&kubectl, KUBECTL).unwrap();
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());

    // The cluster behind the pods is one node of the test's own.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut node = Command::new(env!("CARGO_BIN_EXE_lnc-chaos"))
        .args(["node", "server", "--stop-with-stdin", "--listen", &address, "--data-dir"])
        .arg(directory.path().join("data"))
        .args(["--set", "listen.peer=127.0.0.1:0", "--set", "listen.http=127.0.0.1:0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut command = live();
    command.args(["--namespace", "prod", "--statefulset", "lance", "--endpoint", &address]);
    command.args(["--fault", "pod-delete,rollout-restart", "--repeat", "1", "--every", "1", "--warmup-secs", "1"]);
    command.args(["--post-roll-secs", "0", "--producers", "2", "--json"]).env("PATH", path);
    let output = command.output().unwrap();
    node.kill().unwrap();
    node.wait().unwrap();

    let report: serde_json::Value = serde_json::from_str(&passed(&output)).unwrap();
    assert_eq!((&report["verdict"], &report["replicas"]), (&"PASS".into(), &1.into()));
    let calls = std::fs::read_to_string(directory.path().join("calls")).unwrap();
    let pod = report["nemesis"][0]["what"].as_str().unwrap();
    for expected in [
        "-n prod get statefulset lance -o json".to_owned(),
        format!("-n prod delete pod {pod} --wait=false"),
        format!("-n prod get pod {pod} -o json"),
        "-n prod rollout restart statefulset/lance".to_owned(),
        "-n prod rollout status statefulset/lance --timeout=300s".to_owned(),
    ] {
        assert!(calls.lines().any(|call| call == expected), "{expected:?} is not among\n{calls}");
    }
}
