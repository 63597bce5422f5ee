#!/usr/bin/env python3
"""Backs a cluster up and restores it in both ways of docs/ops/backup-and-restore.md: copies of all data directories of a
stopped cluster, and a copy of a topic's records while it runs. Needs a lance binary in $LANCE_BIN.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import live_prometheus

ROOT = live_prometheus.ROOT
PARTITIONS = 3


class Cluster:
    """Three nodes of genCluster.sh, which end with the block."""

    def __init__(self, directory):
        self.home = Path(directory)
        shutil.copy(ROOT / "genCluster.sh", self.home)
        self.data = self.home / ".lance/cluster"
        base = live_prometheus.free_base_port()
        endpoints = ",".join(f"127.0.0.1:{base + 10 * node}" for node in range(3))
        self.environment = {**os.environ, "LANCE_BASE_PORT": str(base), "LANCE_ENDPOINT": endpoints}

    def __enter__(self):
        self.script("start")
        return self

    def __exit__(self, *_):
        self.script("clean")

    def script(self, verb):
        run = subprocess.run([self.home / "genCluster.sh", verb], env=self.environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr

    def lance(self, *arguments, **options):
        command = [os.environ["LANCE_BIN"], *arguments]
        return subprocess.run(command, env=self.environment, check=True, stdout=subprocess.PIPE, **options).stdout

    def partitions(self, topic):
        """The text of each partition."""
        read = lambda partition: self.lance("consume", topic, "--partition", str(partition), "--until-end")
        return [read(partition) for partition in range(PARTITIONS)]


def main():
    with tempfile.TemporaryDirectory(prefix="lance-backup-") as directory, Cluster(directory) as cluster:
        cluster.lance("topic", "create", "orders", "--partitions", str(PARTITIONS))
        text = b"".join(b"%06d %s\n" % (number, b"x" * (number % 97)) for number in range(30_000))
        cluster.lance("produce", "orders", "--quiet", input=text)
        before = cluster.partitions("orders")
        assert b"".join(sorted(b"".join(before).splitlines(keepends=True))) == text

        # All data directories, with the cluster stopped.
        backup = Path(directory) / "backup"
        cluster.script("stop")
        for node in (1, 2, 3):
            shutil.copytree(cluster.data / f"node-{node}/data", backup / str(node))
        cluster.script("start")
        cluster.lance("produce", "orders", "--quiet", input=b"nonsense\n" * 1000)
        cluster.lance("topic", "delete", "orders", "--yes")
        cluster.script("stop")
        for node in (1, 2, 3):
            shutil.rmtree(cluster.data / f"node-{node}/data")
            shutil.copytree(backup / str(node), cluster.data / f"node-{node}/data")
        cluster.script("start")
        assert cluster.partitions("orders") == before, "the restored cluster has other records"
        cluster.lance("produce", "orders", "--quiet", input=b"one more\n")
        assert len(b"".join(cluster.partitions("orders"))) == len(text) + len(b"one more\n"), "it does not go on"

        # A topic's records, while it runs.
        saved = cluster.partitions("orders")
        cluster.lance("topic", "create", "copy", "--partitions", str(PARTITIONS))
        for partition, lines in enumerate(saved):
            cluster.lance("produce", "copy", "--quiet", "--partition", str(partition), input=lines)
        assert cluster.partitions("copy") == saved, "the copy has other records"
        cluster.lance("cluster", "status")
    print("> a cluster restored from copies of its data directories, and a topic from its records, are what they were")


if __name__ == "__main__":
    sys.exit(main())
