#!/usr/bin/env python3
"""Runs the pods of the overlay "dev" as a kubelet would start them, with runc: arguments, users, rights, mounts and limits
come from the rendered manifest. Three of them, each with a network of its own, a name server between them, form a
cluster; one moves to another address; one is told to stop; then all run with the seccomp profile of the overlay
"io-uring". Needs root, runc, iproute2, kubectl and the root file system that build.sh has made.
"""

import contextlib
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import manifests

ROOT = manifests.ROOT
ROOTFS = ROOT / "target/dist/rootfs"
PATIENCE = 60
NODES = range(3)
TAG = f"lance{os.getpid()}"
# Masked and read-only as container engines do by default.
MASKED = ["/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def run(*command, **options):
    return subprocess.run(command, check=True, **options)


def until(what, condition, patience=PATIENCE):
    deadline = time.monotonic() + patience
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {patience} s: {what}")
        time.sleep(0.1)
    return result


# --- The network: a namespace with a bridge and the name server, in which this process lives too ------------------------


class Network:
    """Names and addresses of the pods, and the cables between them."""

    def __init__(self):
        self.names, self.hub, self.made = {}, f"{TAG}hub", []
        self.netns(self.hub)
        # Left to itself a bridge takes the lowest address of its ports, and nobody reaches the name server for a while
        # after a pod has come or gone.
        self.in_hub("link", "add", "br0", "address", "02:00:0a:4d:00:01", "type", "bridge")
        self.in_hub("addr", "add", "10.77.0.1/24", "dev", "br0")
        self.in_hub("link", "set", "br0", "up")
        # This thread and all that it starts from here on.
        with open(f"/run/netns/{self.hub}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0x40000000) != 0:
                raise OSError(ctypes.get_errno(), "cannot enter the network of the test")
        self.server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.server.bind(("10.77.0.1", 53))
        threading.Thread(target=self.answer, daemon=True).start()

    def netns(self, name):
        run("ip", "netns", "add", name)
        self.made.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def in_hub(self, *command):
        run("ip", "-n", self.hub, *command)

    def connect(self, name, host):
        """A network for a pod of this name, at 10.77.0.HOST."""
        netns = f"{TAG}p{host}"
        self.netns(netns)
        self.in_hub("link", "add", f"v{host}", "type", "veth", "peer", "name", "eth0", "netns", netns)
        self.in_hub("link", "set", f"v{host}", "master", "br0", "up")
        run("ip", "-n", netns, "addr", "add", f"10.77.0.{host}/24", "dev", "eth0")
        run("ip", "-n", netns, "link", "set", "eth0", "up")
        self.names[f"{name}.lance-peers.lance.svc.cluster.local"] = f"10.77.0.{host}"
        return netns

    def disconnect(self, netns):
        run("ip", "netns", "del", netns)
        self.made.remove(netns)

    def answer(self):
        """A name server that knows the pods' addresses of this moment, and of other names that there are none."""
        while True:
            query, asker = self.server.recvfrom(512)
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1 : at + 1 + query[at]].decode())
                at += 1 + query[at]
            question = query[12 : at + 5]
            address = self.names.get(".".join(labels).lower())
            wants_v4 = struct.unpack(">H", question[-4:-2])[0] == 1
            reply = b""
            if address and wants_v4:
                reply = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(address)
            flags = 0x8580 if address else 0x8583
            head = query[:2] + struct.pack(">HHHHH", flags, 1, 1 if reply else 0, 0, 0)
            self.server.sendto(head + question + reply, asker)

    def close(self):
        for netns in self.made:
            subprocess.run(["ip", "netns", "del", netns], check=False)


# --- The pods ----------------------------------------------------------------------------------------------------------


def without_ring(profile):
    """What the default profiles of container engines do to io_uring, and much else."""
    rules = [{**rule, "names": sorted(set(rule["names"]) - manifests.IO_URING)} for rule in profile["syscalls"]]
    return {**profile, "syscalls": [rule for rule in rules if rule["names"]]}


class Pod:
    """One pod of the set."""

    def __init__(self, ordinal, objects, directory, network):
        self.name, self.objects, self.network = f"lance-{ordinal}", objects, network
        self.id = f"{TAG}-{self.name}"
        self.host, self.netns, self.pid = None, None, None
        self.directory = directory / self.name
        self.data, self.bundle = self.directory / "data", self.directory / "bundle"
        self.log = self.directory / "log"
        for path in [self.data, self.bundle, self.directory / "config"]:
            path.mkdir(parents=True)
        uid = manifests.pod_spec(objects)["securityContext"]["fsGroup"]
        os.chown(self.data, uid, uid)
        (self.directory / "config/lance.toml").write_text(manifests.toml(objects)[0])
        (self.directory / "resolv.conf").write_text(
            "nameserver 10.77.0.1\nsearch lance.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5"
            + "".join(f" {o['name']}:{o['value']}" for o in manifests.pod_spec(objects)["dnsConfig"]["options"])
            + "\n"
        )
        shutil.copytree(ROOTFS, self.bundle / "rootfs", copy_function=os.link)

    def config(self, seccomp):
        spec, box = manifests.pod_spec(self.objects), manifests.container(self.objects)
        pod, own = spec["securityContext"], box["securityContext"]
        assert own["capabilities"] == {"drop": ["ALL"]} and not own["privileged"]
        sources = {"data": (self.data, "rw"), "config": (self.directory / "config", "ro")}
        volumes = [(m["mountPath"], *sources[m["name"]]) for m in box["volumeMounts"]]
        volumes.append(("/etc/resolv.conf", self.directory / "resolv.conf", "ro"))
        binds = [{"destination": to, "type": "bind", "source": str(at), "options": ["bind", how]} for to, at, how in volumes]
        limit = manifests.size(box["resources"]["limits"]["memory"])
        return {
            "ociVersion": "1.0.2",
            "hostname": self.name,
            "process": {
                "user": {"uid": pod["runAsUser"], "gid": pod["runAsGroup"]},
                "args": ["/usr/bin/lance", *box["args"]],
                "env": ["PATH=/usr/bin"],
                "cwd": "/",
                "noNewPrivileges": not own["allowPrivilegeEscalation"],
                "capabilities": {kind: [] for kind in ["bounding", "effective", "permitted"]},
            },
            "root": {"path": "rootfs", "readonly": own["readOnlyRootFilesystem"]},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
                *binds,
            ],
            "linux": {
                "namespaces": [
                    *({"type": kind} for kind in ["pid", "ipc", "uts", "mount"]),
                    {"type": "network", "path": f"/run/netns/{self.netns}"},
                ],
                "cgroupsPath": f"/{TAG}/{self.name}",
                "resources": {"memory": {"limit": limit}},
                "seccomp": seccomp,
                "maskedPaths": MASKED,
                "readonlyPaths": READ_ONLY,
            },
        }

    def start(self, host, seccomp):
        self.host, self.netns = host, self.network.connect(self.name, host)
        (self.bundle / "config.json").write_text(json.dumps(self.config(seccomp)))
        pid_file = self.directory / "pid"
        with open(self.log, "ab") as log:
            log.truncate(0)
            command = ["runc", "run", "--detach", "--bundle", self.bundle, "--pid-file", pid_file, self.id]
            run(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.pid = int(pid_file.read_text())

    def stop(self, name):
        """Sends a signal, waits for the end, and forgets the pod but for its data. Gives the seconds that it took."""
        began = time.monotonic()
        run("runc", "kill", self.id, name)
        until(f"{self.name} ends", lambda: not self.runs())
        took = time.monotonic() - began
        # It says of each control group that it has to try again.
        run("runc", "--log", os.devnull, "delete", self.id)
        self.network.disconnect(self.netns)
        self.pid = None
        return took

    def runs(self):
        state = json.loads(run("runc", "state", self.id, stdout=subprocess.PIPE).stdout)
        return state["status"] == "running"

    def get(self, path):
        """What a probe or Prometheus gets: the status and the text."""
        port = next(p["containerPort"] for p in manifests.container(self.objects)["ports"] if p["name"] == "http")
        connection = http.client.HTTPConnection(f"10.77.0.{self.host}", port, timeout=2)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        except OSError as error:
            return 0, str(error)
        finally:
            connection.close()

    def ready(self):
        return self.get(manifests.container(self.objects)["readinessProbe"]["httpGet"]["path"])[0] == 200

    def lance(self, *arguments, **options):
        """As `kubectl exec POD -- lance …` does."""
        command = ["runc", "exec", self.id, "/usr/bin/lance", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, **options)
        if done.returncode != 0:
            raise AssertionError(f"{self.name}: lance {arguments} ends with {done.returncode}: {done.stderr.decode()}")
        return done.stdout

    def backend(self):
        return re.search(r'lance_backend_info\{backend="(\w+)"\} 1', self.get("/metrics")[1]).group(1)

    def close(self):
        if self.pid is not None:
            subprocess.run(["runc", "delete", "--force", self.id], check=False, stderr=subprocess.DEVNULL)


# --- The test ----------------------------------------------------------------------------------------------------------


def confined(pod):
    """The kernel's own word on what the process may do."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pod.pid}/status").read_text().splitlines())
    user = str(manifests.pod_spec(pod.objects)["securityContext"]["runAsUser"])
    assert status["Uid"].split() == [user] * 4, status["Uid"]
    for kind in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]:
        assert int(status[kind], 16) == 0, f"{kind} {status[kind]}"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
    mounts = [line.split() for line in Path(f"/proc/{pod.pid}/mountinfo").read_text().splitlines()]
    root = next(fields for fields in mounts if fields[4] == "/")
    assert "ro" in root[5].split(","), root
    # What belongs to the kernel; the frame around the control groups of version 1 is no place for files either.
    kernel = ("/proc", "/dev", "/sys/fs/cgroup")
    writable = [fields[4] for fields in mounts if "rw" in fields[5].split(",") and not fields[4].startswith(kernel)]
    assert writable == ["/var/lib/lance"], f"writable: {writable}"
    limit = manifests.size(manifests.container(pod.objects)["resources"]["limits"]["memory"])
    budgets = re.search(r'"requests":(\d+),"tail_cache":(\d+)', pod.log.read_text())
    assert [int(budget) for budget in budgets.groups()] == [limit // 4, limit // 4], budgets.group(0)


def memory_kept(pod):
    """What the kernel has counted, and that nobody was killed for it."""
    for root in [f"/sys/fs/cgroup/memory/{TAG}/{pod.name}", f"/sys/fs/cgroup/{TAG}/{pod.name}"]:
        for events in ["memory.oom_control", "memory.events"]:
            with contextlib.suppress(FileNotFoundError):
                assert re.search(r"^oom_kill 0$", Path(root, events).read_text(), re.MULTILINE), f"{root}: killed"
                return
    raise AssertionError(f"{pod.name} has no control group of memory")


def test(directory, network):
    objects = manifests.render("overlays/dev")
    profile = json.loads((ROOT / "deploy/k8s/overlays/io-uring/lance-io-uring.json").read_text())
    default = without_ring(profile)
    pods = [Pod(ordinal, objects, directory, network) for ordinal in NODES]
    try:
        scenario(pods, default, profile)
    except BaseException:
        for pod in pods:
            if pod.log.exists():
                print(f"-- {pod.name}\n" + "\n".join(pod.log.read_text().splitlines()[-15:]))
        raise
    finally:
        for pod in pods:
            pod.close()
        for group in Path("/sys/fs/cgroup").glob(f"**/{TAG}"):
            group.rmdir()


def scenario(pods, default, profile):
    for pod in pods:
        pod.start(10 + int(pod.name[-1]), default)
    for pod in pods:
        until(f"{pod.name} is ready", pod.ready)
        assert pod.get("/healthz")[0] == 200
        confined(pod)
        assert pod.backend() == "threads" and "io_uring is not usable, falling back to threads" in pod.log.read_text()
    print("> three containers without rights and without io_uring formed a cluster on threads, and said so")

    # Far more than the budgets of memory hold at once.
    line = b"x" * 999
    text = b"".join(b"%07d %s\n" % (number, line) for number in range(300_000))
    pods[0].lance("topic", "create", "text")
    pods[0].lance("produce", "text", "--quiet", input=text)
    for pod in pods:
        memory_kept(pod)
    limit = manifests.container(pods[0].objects)["resources"]["limits"]["memory"]
    print(f"> {len(text) // 1_000_000} MB went through nodes with a limit of {limit}")

    pods[1].stop("KILL")
    pods[1].start(41, default)
    for pod in pods:
        until(f"{pod.name} is ready after {pods[1].name} moved", pod.ready)
    until("all nodes are members again", lambda: healthy(pods[2]))
    print(f"> {pods[1].name} was killed and came back at another address, where the others found it")

    bound = manifests.seconds(manifests.key(manifests.toml(pods[0].objects)[0], "drain_timeout"))
    took = pods[0].stop("TERM")
    assert took < bound, f"the drain took {took:.1f} s"
    assert '"told to stop: handing over leadership"' in pods[0].log.read_text()
    assert pods[1].lance("consume", "text", "--until-end") == text
    pods[0].start(10, default)
    until(f"{pods[0].name} is ready again", pods[0].ready)
    print(f"> {pods[0].name} drained in {took:.1f} s; the others had everything")

    if Path("/proc/sys/kernel/io_uring_disabled").exists():
        disabled = int(Path("/proc/sys/kernel/io_uring_disabled").read_text())
    else:
        disabled = 0
    for pod in pods:
        pod.stop("TERM")
    for pod in pods:
        pod.start(10 + int(pod.name[-1]), profile)
    for pod in pods:
        until(f"{pod.name} is ready with the profile of the overlay", pod.ready)
        confined(pod)
        expected = "threads" if disabled == 2 else "io_uring"
        assert pod.backend() == expected, f"{pod.name} runs on {pod.backend()}, not on {expected}"
    assert pods[2].lance("consume", "text", "--until-end") == text
    print("> with the profile of the overlay io-uring they run on " + pods[0].backend() + ", with the same data")


def healthy(pod):
    with contextlib.suppress(AssertionError):
        pod.lance("cluster", "status")
        return True
    return False


def main():
    # So that what was made is unmade, whoever ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="lance-containers-", dir=ROOT / "target") as directory:
        network = Network()
        try:
            test(Path(directory), network)
        finally:
            network.close()


if __name__ == "__main__":
    main()
