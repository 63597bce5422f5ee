#!/usr/bin/env python3
"""genCluster.sh where somebody else listens on the ports of its nodes: it says who, starts nothing, and takes nobody's answer for
that of its own nodes. Needs a lance binary in $LANCE_BIN.
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import live_prometheus

ROOT = live_prometheus.ROOT

# In the place of lance: a process of its own answers on the port of the node, which ends after a while.
IMPOSTOR = """#!/bin/sh
port=$(sed -n 's/^http = "127.0.0.1:\\(.*\\)"/\\1/p' "$3" | head -n 1)
python3 -c '
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()' "$port" &
sleep 3
kill $!
"""
# Longest time for a killed process to be gone, in seconds.
PATIENCE = 10


class Cluster:
    """A copy of genCluster.sh, whose nodes end with the block."""

    def __init__(self, home, base, **environment):
        self.home = Path(home)
        self.home.mkdir()
        self.base = base
        self.script = shutil.copy(ROOT / "genCluster.sh", self.home)
        self.environment = {**os.environ, "LANCE_BASE_PORT": str(base), **environment}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.run("clean")

    def run(self, command, expect=0):
        done = subprocess.run([self.script, command], env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == expect, f"{command} ends with {done.returncode}, not {expect}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def pid(self, node):
        return int((self.home / f".lance/cluster/node-{node}/pid").read_text().split()[0])

    def kill(self, node):
        process = os.pidfd_open(self.pid(node))
        signal.pidfd_send_signal(process, signal.SIGKILL)
        assert select.select([process], [], [], PATIENCE)[0], f"node {node} does not end"
        os.close(process)

    def is_ready(self, node):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.base + 10 * (node - 1) + 2}/readyz", timeout=5) as answer:
            return answer.status == 200


def all_are_taken(directory, first):
    with Cluster(directory / "second", first.base) as second:
        words = second.run("start", expect=1)
        assert not (second.home / ".lance/cluster").exists(), "nodes were started"
    for node in (1, 2, 3):
        for port in range(first.base + 10 * (node - 1), first.base + 10 * (node - 1) + 3):
            assert f"port {port}, for node {node}: process {first.pid(node)} (lance)" in words, words
    assert "The cluster" not in words and all(first.is_ready(node) for node in (1, 2, 3)), words


def one_is_taken(cluster):
    """While a node was away, whatever address the other one listens on."""
    for host in ("127.0.0.1", "0.0.0.0", "::"):
        cluster.kill(2)
        port = cluster.base + 10
        six = {"family": socket.AF_INET6, "dualstack_ipv6": True} if ":" in host else {}
        with socket.create_server((host, port), **six):
            words = cluster.run("start", expect=1)
        assert [line for line in words.splitlines() if line.startswith("  port")] == [
            f"  port {port}, for node 2: process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
        ], words
        cluster.run("start")
        assert cluster.is_ready(2)


def the_ports_are_those_of_its_nodes(first, other):
    """Whatever the environment says now; and those of the last start, if it says nothing."""
    own = f"127.0.0.1:{first.base} "
    for said in (str(other), ""):
        first.environment["LANCE_BASE_PORT"] = said
        words = first.run("status")
        assert own in words and str(other) not in words and "ready" in words, words
    first.environment["LANCE_BASE_PORT"] = str(other)
    words = first.run("start", expect=1)
    assert f"the cluster runs, with ports from {first.base} on" in words, words
    first.run("stop")
    first.environment["LANCE_BASE_PORT"] = ""
    assert own in first.run("start")
    assert first.is_ready(1)


def somebody_else_answers(directory, base):
    """Whoever takes the port after it was looked at."""
    impostor = directory / "impostor"
    impostor.write_text(IMPOSTOR)
    impostor.chmod(0o755)
    with Cluster(directory / "third", base, LANCE_BIN=str(impostor)) as third:
        words = third.run("start", expect=1)
    assert "node 1 has stopped" in words, words


def main():
    with tempfile.TemporaryDirectory(prefix="lance-ports-") as name:
        directory = Path(name)
        with Cluster(directory / "first", live_prometheus.free_base_port()) as first:
            first.run("start")
            all_are_taken(directory, first)
            one_is_taken(first)
            the_ports_are_those_of_its_nodes(first, live_prometheus.free_base_port())
        somebody_else_answers(directory, live_prometheus.free_base_port())
    print("> genCluster.sh says who has its ports, and knows its own nodes")


if __name__ == "__main__":
    sys.exit(main())
