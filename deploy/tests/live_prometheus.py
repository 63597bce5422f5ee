#!/usr/bin/env python3
"""A real Prometheus, configured as deploy/monitoring says, scrapes a real cluster of three nodes. Every query of the
dashboard is asked; what they say is compared with what was done to the cluster. Needs prometheus, and a lance binary in
$LANCE_BIN.
"""

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

import rules

ROOT = rules.ROOT
PATIENCE = 60
RECORDS = 50_000
# Names in milliseconds, which those who watch elections know them by; all else is in base units.
EXCEPTIONS = {
    "lance_cluster_coordinator_tick_drift_ms",
    "lance_raft_election_round_last_ms",
    "lance_raft_election_round_ms",
    "lance_raft_pre_vote_rpc_latency_ms",
    "lance_raft_vote_rpc_latency_ms",
}
# Queries that say nothing while nothing of the kind happens.
MAY_BE_EMPTY = {
    "Checkpoint", "Scrub", "Errors", "Channels to peers", "Fetches from memory", "Fetch", "Left out of the fan-out",
    "Bytes turned away", "Behind the readers", "Election rounds", "Answers to pre-votes and votes",
}
# What is before or after something: signed.
MAY_BE_NEGATIVE = {"Clocks of peers, as each node sees them"}
# How far clocks that are one may seem apart, in seconds.
SAME_CLOCK = 0.5


def free_base_port():
    """Ports of three nodes, below those that the system gives to outgoing connections."""
    for _ in range(100):
        base = random.randrange(10000, 29000, 100)
        with contextlib.ExitStack() as held:
            try:
                for port in [base + 10 * node + offset for node in range(3) for offset in range(3)] + [base + 50]:
                    probe = held.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no free ports")


class Prometheus:
    """A server that ends with the block."""

    def __init__(self, directory, base):
        config = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yaml").read_text())
        targets = config["scrape_configs"][0]["static_configs"]
        assert [t["targets"] for t in targets] == [[f"10.0.0.{node}:1994"] for node in (1, 2, 3)], targets
        for node, target in enumerate(targets):
            target["targets"] = [f"127.0.0.1:{base + 10 * node + 2}"]
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        shutil.copy(ROOT / "deploy/monitoring/alerts.yaml", directory)
        self.url = f"http://127.0.0.1:{base + 50}"
        self.log = open(directory / "prometheus.log", "wb")
        self.process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yaml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{base + 50}",
            ],
            stdout=self.log,
            stderr=self.log,
        )

    def __enter__(self):
        try:
            self.await_start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def await_start(self):
        """It listens before it can answer, and says 503 until then."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/-/ready", timeout=5):
                return
            assert self.process.poll() is None, f"prometheus ended: {Path(self.log.name).read_text()}"
            assert time.monotonic() < deadline, f"prometheus is not ready within {PATIENCE} s"
            time.sleep(0.1)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{url}: {error.read().decode()}") from error

    def values(self, query):
        return [float(sample["value"][1]) for sample in self.get("query", query=query)["result"]]

    def until(self, query, good):
        deadline = time.monotonic() + PATIENCE
        values = None
        while True:
            with contextlib.suppress(OSError):
                values = self.values(query)
                if good(values):
                    return values
            assert time.monotonic() < deadline, f"within {PATIENCE} s, {query} did not get there: {values}"
            time.sleep(0.2)


def complaints(page):
    """What promtool finds wrong with a page of metrics, by name of the metric."""
    ran = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
    assert ran.returncode in (0, 3), f"the page is not understood: {ran.stdout}{ran.stderr}"
    return {line.split(" ", 1)[0]: line for line in (ran.stdout + ran.stderr).splitlines()}


def check_page(base):
    """Names and units of everything that a node serves, and what the page costs."""
    sizes, times = [], []
    for node in range(3):
        started = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{base + 10 * node + 2}/metrics", timeout=5) as reply:
            page = reply.read().decode()
        times.append(time.monotonic() - started)
        sizes.append(len(page))
        found = complaints(page)
        assert set(found) == EXCEPTIONS, f"promtool check metrics: {found}"
    # It can fail.
    assert complaints("# HELP wrong_total x\n# TYPE wrong_total gauge\nwrong_total 1\n")
    assert max(sizes) < 1_000_000, sizes
    print(f"> promtool check metrics: nothing but {len(EXCEPTIONS)} names in milliseconds; {max(sizes)} bytes in {min(times) * 1000:.1f} ms")


def main():
    lance = os.environ["LANCE_BIN"]
    base = free_base_port()
    endpoints = ",".join(f"127.0.0.1:{base + 10 * node}" for node in range(3))
    environment = {**os.environ, "LANCE_BASE_PORT": str(base), "LANCE_ENDPOINT": endpoints}
    with tempfile.TemporaryDirectory(prefix="lance-prometheus-") as directory:
        directory = Path(directory)
        script = directory / "genCluster.sh"
        shutil.copy(ROOT / "genCluster.sh", script)
        cluster = lambda verb: subprocess.run([script, verb], check=True, env=environment, stdout=subprocess.DEVNULL)
        try:
            cluster("start")
            with Prometheus(directory, base) as prometheus:
                scenario(prometheus, base, directory, lance, environment)
        finally:
            cluster("clean")
    return 0


def scenario(prometheus, base, directory, lance, environment):
    prometheus.until('up{job="lance"} == 1', lambda up: len(up) == 3)
    command = lambda *arguments, **options: subprocess.run([lance, *arguments], check=True, env=environment, **options)
    command("topic", "create", "text", "--partitions", "3", stdout=subprocess.DEVNULL)
    text = b"".join(b"%08d\n" % number for number in range(RECORDS))
    # Twice, so that every series has a rate.
    for _ in range(2):
        command("produce", "text", "--quiet", input=text)
        read = command("consume", "text", "--until-end", stdout=subprocess.PIPE).stdout
        time.sleep(2)
    assert len(read) == 2 * len(text)

    # What was done is what was counted.
    prometheus.until('sum(lance_messages_in_total{cluster="lance"})', lambda v: v == [2 * RECORDS])
    prometheus.until('sum(lance_messages_out_total{cluster="lance"})', lambda v: v == [3 * RECORDS])
    prometheus.until("lance:nodes:up", lambda v: v == [3])

    check_page(base)
    # Those of topics come every five seconds, and a rate needs two of them.
    prometheus.until("rate(lance_topic_end_offset[1m])", lambda v: len(v) == 3)
    dashboard = json.loads((ROOT / "deploy/monitoring/dashboard.json").read_text())
    asked, empty = 0, []
    for where, expression in rules.dashboard_queries(dashboard):
        expression = rules.substituted(expression).replace('cluster="a"', 'cluster="lance"')
        values = prometheus.values(expression)
        asked += 1
        title = where.split(", ", 1)[1]
        if not values and title not in MAY_BE_EMPTY:
            empty.append(f"{where}: {expression}")
        if title in MAY_BE_NEGATIVE:
            assert all(abs(value) < SAME_CLOCK for value in values), f"{where}, of one machine: {values}"
            continue
        # A quantile of nothing is no number.
        assert all(value >= 0 or value != value for value in values), f"{where} is negative: {values}"
    assert not empty, "no values:\n" + "\n".join(empty)

    panel = lambda title: next(
        rules.substituted(expression).replace('cluster="a"', 'cluster="lance"')
        for where, expression in rules.dashboard_queries(dashboard)
        if where == f"dashboard, {title}"
    )
    assert prometheus.values(panel("Nodes up")) == [3]
    assert prometheus.values(panel("Groups without a leader")) == [0]
    assert prometheus.values(panel("Least free space above the reserve"))
    leads = prometheus.until(panel("Leaders"), lambda v: sum(v) == 4)
    median = prometheus.values(panel("Produce"))[0]
    assert 0 < median < 5, f"the median of produce is {median} s"
    sync = prometheus.values(panel("Sync of the journal"))[0]
    assert 0 < sync < 1, f"the median of a sync is {sync} s"

    alerts = {rule["name"]: rule for g in prometheus.get("rules")["groups"] for rule in g["rules"] if rule["type"] == "alerting"}
    assert len(alerts) > 8 and all(rule["health"] in ("ok", "unknown") for rule in alerts.values()), alerts
    loud = {name for name, rule in alerts.items() if rule["state"] == "firing"}
    # How much space is free is this machine's business.
    assert loud <= {"LanceDiskFilling", "LanceDiskFull"}, f"alerts of a healthy cluster: {loud}"

    # A node that is killed is seen.
    pid = int((directory / ".lance/cluster/node-3/pid").read_text().split()[0])
    os.kill(pid, 9)
    prometheus.until("lance:nodes:up", lambda v: v == [2])
    prometheus.until('ALERTS{alertname="LanceNodeDown", node="3", alertstate="pending"}', lambda v: v == [1])
    prometheus.until(panel("Groups without a leader"), lambda v: v == [0])
    print(f"> {asked} queries of the dashboard asked; {len(leads)} nodes led, median of produce {median * 1000:.1f} ms")


if __name__ == "__main__":
    sys.exit(main())
