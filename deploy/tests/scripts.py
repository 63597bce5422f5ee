#!/usr/bin/env python3
"""Runs the scripts for Kubernetes against a stand-in for kubectl that records what it is asked, and whose pods are real
nodes on this machine. Needs the real kubectl for rendering and a lance binary in $LANCE_BIN. What lnc-chaos says to kubectl
is tested in lnc-chaos/tests/live.rs.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import live_prometheus
import manifests

ROOT = manifests.ROOT
NAMESPACE = "trial"


class Stage:
    """A directory with the stand-in, and a cluster that ends with the block."""

    def __init__(self, directory):
        self.home = Path(directory)
        shutil.copy(ROOT / "genCluster.sh", self.home)
        self.environment = {
            **os.environ,
            "REAL_KUBECTL": shutil.which("kubectl"),
            "FAKE_KUBECTL": str(self.home),
            "PATH": f"{ROOT}/deploy/tests/kubectl:{os.environ['PATH']}",
            "LANCE_BASE_PORT": str(live_prometheus.free_base_port()),
            "LANCE_NAMESPACE": NAMESPACE,
            "LANCE_GATE_LINES": "20000",
            "LANCE_GATE_CHAOS": "0",
            "LANCE_EVIDENCE": f"{self.home}/evidence",
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run([self.home / "genCluster.sh", "clean"], env=self.environment, stdout=subprocess.DEVNULL, check=False)

    def run(self, *command, expect=0):
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != expect:
            raise AssertionError(f"{command} ends with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def mode(self, mode):
        (self.home / "mode").write_text(mode)

    def record(self):
        """What was asked since the last look."""
        path = self.home / "record"
        asked = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return asked


def position(record, *words):
    return next(at for at, arguments in enumerate(record) if all(word in arguments for word in words))


def recreated(stage):
    """Deleted before it is made, nothing outside of its namespace, and what is made is what the manifests say."""
    stage.run("./genCluster.sh", "--kubernetes")
    first = stage.record()
    assert not any("delete" in arguments for arguments in first), "there was nothing to delete"
    stage.run("./genCluster.sh", "--kubernetes")
    record = stage.record()
    order = [
        position(record, "delete", "statefulset,service,poddisruptionbudget,networkpolicy,configmap,serviceaccount"),
        position(record, "delete", "persistentvolumeclaims"),
        position(record, "apply"),
        position(record, "rollout", "status"),
    ]
    assert order == sorted(order), record
    for arguments in record:
        assert arguments[:2] == ["--namespace", NAMESPACE] or arguments[0] in ("version", "config", "apply"), arguments
    objects = [o for o in yaml.safe_load_all((stage.home / "applied.yaml").read_text()) if o]
    found = [f"{check}: {problem}" for check, problem in manifests.problems(objects)]
    assert not found, "\n".join(found)
    assert {o["metadata"].get("namespace", NAMESPACE) for o in objects} == {NAMESPACE}
    assert manifests.of(objects, "Namespace")[0]["metadata"]["name"] == NAMESPACE
    assert manifests.of(objects, "StatefulSet")[0]["metadata"]["annotations"]["lance/example"] == "true"


def foreign(stage):
    """Somebody else's cluster is left alone."""
    stage.mode("foreign")
    words = stage.run("./genCluster.sh", "--kubernetes", expect=1)
    assert "is not the example cluster" in words, words
    assert not any("delete" in arguments or "apply" in arguments for arguments in stage.record())
    stage.mode("")


def gates(stage):
    words = stage.run("./test.sh", "--kubernetes")
    assert words.splitlines()[-1] == "5 passed, 0 failed, 1 skipped", words
    [evidence] = (stage.home / "evidence").iterdir()
    steps = [line.split("\t") for line in (evidence / "steps.tsv").read_text().splitlines()]
    assert [step[0] for step in steps] == ["passed"] * 5 + ["skipped"], steps
    assert all((evidence / step[3]).is_file() for step in steps), steps
    record = stage.record()
    killed = [arguments for arguments in record if "--force" in arguments]
    assert any({"lance-0", "lance-1", "lance-2"} <= set(arguments) for arguments in killed), killed
    assert any(arguments[2:4] == ["exec", "--stdin"] and "produce" in arguments for arguments in record)


def main():
    with tempfile.TemporaryDirectory(prefix="lance-scripts-") as directory, Stage(directory) as stage:
        foreign(stage)
        recreated(stage)
        gates(stage)
    print("> genCluster.sh and test.sh drive a set through kubectl")


if __name__ == "__main__":
    sys.exit(main())
