#!/usr/bin/env python3
"""Checks the Kubernetes manifests without a cluster: that every overlay renders, what the schemas of Kubernetes say, and
what they do not see: names that must agree, routes that must exist, times that must fit together. At the end each check
is given a manifest that it must refuse.

Needs kubectl, the packages of requirements.txt, and a lance binary in $LANCE_BIN.
"""

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ["base", "overlays/dev", "overlays/prod", "overlays/io-uring", "overlays/monitoring"]
# The oldest release that has everything used here (preStop.sleep), and the newest that the package knows.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
# Kinds of the Prometheus operator: Kubernetes has no schema of them.
CUSTOM = {"PodMonitor", "PrometheusRule"}
IO_URING = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
LANCE = os.environ["LANCE_BIN"]


def render(path):
    command = ["kubectl", "kustomize", str(ROOT / "deploy/k8s" / path)]
    return [o for o in yaml.safe_load_all(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) if o]


def of(objects, kind):
    return [o for o in objects if o["kind"] == kind]


def named(objects, kind, name):
    return next((o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name), None)


def pod_spec(objects):
    return of(objects, "StatefulSet")[0]["spec"]["template"]["spec"]


def container(objects):
    return pod_spec(objects)["containers"][0]


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def size(text):
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi|Ti)B?", text).groups()
    return int(number) << {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[unit]


def toml(objects):
    """The configuration that the pods mount, and its name."""
    volumes = {v["name"]: v for v in pod_spec(objects)["volumes"]}
    name = volumes["config"]["configMap"]["name"]
    config = named(objects, "ConfigMap", name)
    return (config["data"]["lance.toml"] if config else None), name


def key(text, name):
    match = re.search(rf'^{name} = "?([^"\n]+)"?$', text, re.MULTILINE)
    return match.group(1) if match else None


# --- The checks: each yields what is wrong -----------------------------------------------------------------------------


def schemas(objects):
    for o in objects:
        if o["kind"] in CUSTOM:
            continue
        for version in VERSIONS:
            try:
                # Newer schemas answer for newer releases; the package warns where it has no exact match.
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    kubernetes_validate.validate(o, version, strict=True)
            except Exception as error:  # The package has several kinds, and each is a finding.
                yield f"{o['kind']} {o['metadata']['name']}, Kubernetes {version}: {error}"


# Fields that the schemas take for any text, by the end of their path, and what the servers take.
ENUMS = {
    "podManagementPolicy": {"OrderedReady", "Parallel"},
    "updateStrategy.type": {"RollingUpdate", "OnDelete"},
    "whenDeleted": {"Retain", "Delete"},
    "whenScaled": {"Retain", "Delete"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "unhealthyPodEvictionPolicy": {"IfHealthyBudget", "AlwaysAllow"},
    "policyTypes": {"Ingress", "Egress"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "protocol": {"TCP", "UDP", "SCTP"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
}


def enums(objects):
    def values(at, path):
        if isinstance(at, dict):
            for name, inner in at.items():
                yield from values(inner, f"{path}.{name}")
        elif isinstance(at, list):
            for inner in at:
                yield from values(inner, path)
        else:
            yield path, at

    for o in objects:
        for path, value in values(o.get("spec", {}), o["kind"]):
            for end, legal in ENUMS.items():
                if path.endswith(f".{end}") and value not in legal:
                    yield f"{path} is {value}; the server takes {', '.join(sorted(legal))}"


def selectors(objects):
    labels = of(objects, "StatefulSet")[0]["spec"]["template"]["metadata"]["labels"]

    def matches(selector, what):
        if not selector or any(labels.get(k) != v for k, v in selector.items()):
            yield f"{what} selects {selector}, the pods have {labels}"

    yield from matches(of(objects, "StatefulSet")[0]["spec"]["selector"]["matchLabels"], "the StatefulSet")
    for service in of(objects, "Service"):
        yield from matches(service["spec"]["selector"], f"the service {service['metadata']['name']}")
    for kind, field in [("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector"), ("PodMonitor", "selector")]:
        for o in of(objects, kind):
            yield from matches(o["spec"][field]["matchLabels"], kind)
    spec = pod_spec(objects)
    affinity = spec["affinity"]["podAntiAffinity"]
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or [
        term["podAffinityTerm"] for term in affinity["preferredDuringSchedulingIgnoredDuringExecution"]
    ]
    keys = {term["topologyKey"] for term in terms}
    if keys != {"kubernetes.io/hostname"}:
        yield f"the anti-affinity is by {keys}, not by host"
    if [c["topologyKey"] for c in spec["topologySpreadConstraints"]] != ["topology.kubernetes.io/zone"]:
        yield "the pods are not spread by zone"
    for term in terms + spec["topologySpreadConstraints"]:
        yield from matches(term["labelSelector"]["matchLabels"], term["topologyKey"])


def ports(objects):
    given = {p["name"]: p["containerPort"] for p in container(objects)["ports"]}
    text, _ = toml(objects)
    for name in ["client", "peer", "http"]:
        listen = key(text.split("[listen]")[1], name) if text else None
        if given.get(name) is None or listen != f"0.0.0.0:{given[name]}":
            yield f"the port {name} is {given.get(name)}, the configuration listens on {listen}"
    for service in of(objects, "Service"):
        for port in service["spec"]["ports"]:
            if given.get(port["targetPort"]) != port["port"]:
                yield f"the service {service['metadata']['name']} leads {port['port']} to {port['targetPort']}"
    for policy in of(objects, "NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            allowed = [port["port"] for port in rule["ports"]]
            if set(allowed) - set(given):
                yield f"the network policy allows ports {allowed}, the pods have {sorted(given)}"
            labels = of(objects, "StatefulSet")[0]["spec"]["template"]["metadata"]["labels"]
            own = [{"podSelector": {"matchLabels": {k: labels[k] for k in labels if not k.endswith("part-of")}}}]
            if "peer" in allowed and rule["from"] != own:
                yield f"the network policy opens the peer port to {rule['from']}"
    for monitor in of(objects, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            if endpoint["port"] not in given or endpoint["path"] not in routes():
                yield f"the monitor scrapes {endpoint['port']}{endpoint['path']}"


def routes():
    source = (ROOT / "lance/src/http.rs").read_text()
    found = set(re.findall(r'\.route\("([^"]+)"', source))
    assert "/metrics" in found, "the routes are no longer found in lance/src/http.rs"
    return found


def probes(objects):
    box = container(objects)
    for name, path in [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]:
        probe = box.get(name, {}).get("httpGet", {})
        if probe.get("path") != path or path not in routes() or probe.get("port") != "http":
            yield f"{name} asks {probe}; the routes are {sorted(routes())}"
    limit = re.search(r"BEAT_LIMIT: Duration = Duration::from_secs\((\d+)\)", (ROOT / "lance/src/http.rs").read_text())
    live = box["livenessProbe"]
    if live["periodSeconds"] * live["failureThreshold"] <= 2 * int(limit.group(1)):
        yield "liveness gives up sooner than a node notices that it is stuck"


def configuration(objects):
    text, name = toml(objects)
    if text is None:
        yield f"the pods mount the ConfigMap {name}, which is not there"
        return
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        checked = subprocess.run([LANCE, "config", "check", file.name], capture_output=True, text=True, env={})
        if checked.returncode != 0:
            yield f"the configuration does not hold: {checked.stderr.strip()}"
    checksum = hashlib.sha256(text.encode()).hexdigest()
    template = of(objects, "StatefulSet")[0]["spec"]["template"]
    if template["metadata"]["annotations"]["lance/config-sha256"] != checksum:
        yield f"the annotation lance/config-sha256 must be {checksum}"
    if not re.search(r"-[a-z0-9]{10}$", name):
        yield f"the name {name} of the ConfigMap has no checksum: a change would not reach running pods"
    mounts = {m["mountPath"]: m["name"] for m in container(objects)["volumeMounts"]}
    if mounts.get(key(text, "data_dir")) != "data":
        yield f"the data directory {key(text, 'data_dir')} is not on the volume: {mounts}"
    if (mounts.get("/etc/lance"), "/etc/lance/lance.toml" in container(objects)["args"]) != ("config", True):
        yield "the configuration is not mounted where the node reads it"


def names(objects):
    """Pods are found under the names in the configuration."""
    sts = of(objects, "StatefulSet")[0]
    text, _ = toml(objects)
    namespace = sts["metadata"]["namespace"]
    for ordinal in range(sts["spec"]["replicas"]):
        host = f"{sts['metadata']['name']}-{ordinal}.{sts['spec']['serviceName']}.{namespace}.svc"
        entry = f'id = {ordinal + 1}\nclient = "{host}:1992"\npeer = "{host}:1993"\nhttp = "{host}:1994"\n'
        if entry not in text:
            yield f"the configuration does not list {host} as node {ordinal + 1}"
    if text.count("[[cluster.nodes]]") != sts["spec"]["replicas"]:
        yield "the configuration does not list as many nodes as there are replicas"
    if "--node-id-from-hostname" not in container(objects)["args"]:
        yield "the nodes do not take their numbers from their pods"
    headless = named(objects, "Service", sts["spec"]["serviceName"])
    if not headless or headless["spec"].get("clusterIP") != "None":
        yield f"{sts['spec']['serviceName']} is not a headless service"
    elif headless["spec"].get("publishNotReadyAddresses") is not True:
        yield "pods that are not ready are not found by the others, and never become ready"
    client = named(objects, "Service", "lance")
    if not client or [p["port"] for p in client["spec"]["ports"]] != [1992]:
        yield "there is no service lance with port 1992 alone"
    for o in objects:
        if o["kind"] != "Namespace" and o["metadata"].get("namespace") != namespace:
            yield f"{o['kind']} {o['metadata']['name']} is not in the namespace {namespace}"


def stopping(objects):
    text, _ = toml(objects)
    drain = seconds(key(text, "drain_timeout"))
    pause = container(objects)["lifecycle"]["preStop"]["sleep"]["seconds"]
    grace = pod_spec(objects)["terminationGracePeriodSeconds"]
    if grace < pause + drain + 5:
        yield f"the grace period of {grace} s does not exceed preStop's {pause} s and the drain's {drain} s by 5 s"


def memory(objects):
    """auto takes two quarters of the limit; the entries that groups keep must fit into a part of the rest."""
    text, _ = toml(objects)
    resources = container(objects)["resources"]
    limit = size(resources["limits"]["memory"])
    if resources["requests"]["memory"] != resources["limits"]["memory"]:
        yield "requests and limits of memory differ: a node could lose memory that it was promised"
    for name in ["memory_bytes", "tail_cache_bytes"]:
        if key(text, name) != "auto":
            yield f"limits.{name} does not follow the limit of memory"
    entries = re.search(r"ENTRY_CACHE_BYTES: usize = (\d+) << 20", (ROOT / "lance/src/server.rs").read_text())
    if limit // 2 < 2 * (int(entries.group(1)) << 20):
        yield f"half of the limit of {resources['limits']['memory']} is too little for the entries in memory"
    claim = of(objects, "StatefulSet")[0]["spec"]["volumeClaimTemplates"][0]
    disk = size(claim["spec"]["resources"]["requests"]["storage"])
    retained = size(key(text, "retain_bytes") or "1GiB")
    if disk < 4 * retained:
        yield f"a disk of {disk >> 30} GiB is too small for a journal of {retained >> 20} MiB"


def security(objects):
    spec, box = pod_spec(objects), container(objects)
    pod, own = spec["securityContext"], box["securityContext"]
    wanted = [
        (pod.get("runAsNonRoot"), True, "runAsNonRoot"),
        (pod.get("runAsUser"), 65532, "the image's user"),
        (own.get("allowPrivilegeEscalation"), False, "allowPrivilegeEscalation"),
        (own.get("readOnlyRootFilesystem"), True, "readOnlyRootFilesystem"),
        (own.get("capabilities"), {"drop": ["ALL"]}, "capabilities"),
        (spec.get("automountServiceAccountToken"), False, "automountServiceAccountToken"),
        (spec.get("hostNetwork", False), False, "hostNetwork"),
        (len(spec["containers"]), 1, "the number of containers"),
    ]
    for found, expected, what in wanted:
        if found != expected:
            yield f"{what} is {found}, expected {expected}"
    image = (ROOT / "deploy/docker/Dockerfile").read_text()
    if f"USER {pod.get('runAsUser')}:{pod.get('runAsGroup')}\n" not in image:
        yield "the image has another user than the pods"
    profile = pod["seccompProfile"]
    if profile["type"] not in ("RuntimeDefault", "Localhost"):
        yield f"the seccomp profile is {profile}"
    if profile["type"] == "Localhost":
        held = [o["data"].get(Path(profile["localhostProfile"]).name) for o in of(objects, "ConfigMap")]
        text = next((t for t in held if t), None)
        yield from seccomp(text) if text else [f"{profile['localhostProfile']} is in no ConfigMap"]


def seccomp(text):
    profile = json.loads(text)
    if profile["defaultAction"] != "SCMP_ACT_ERRNO":
        yield f"the seccomp profile allows by default: {profile['defaultAction']}"
    calls = [name for rule in profile["syscalls"] for name in rule["names"]]
    ring = {name for name in calls if name.startswith("io_uring")}
    if ring != IO_URING:
        yield f"the profile allows {sorted(ring)} of io_uring, the backend calls {sorted(IO_URING)}"
    if len(calls) != len(set(calls)) or any(rule["action"] != "SCMP_ACT_ALLOW" for rule in profile["syscalls"]):
        yield "the profile names a call twice, or does something else than allowing"
    never = {"mount", "ptrace", "bpf", "unshare", "setns", "keyctl", "init_module", "perf_event_open", "reboot"}
    if never & set(calls):
        yield f"the profile allows {sorted(never & set(calls))}"


def rollout(objects):
    spec = of(objects, "StatefulSet")[0]["spec"]
    kept = {"whenDeleted": "Retain", "whenScaled": "Retain"}
    if spec.get("persistentVolumeClaimRetentionPolicy") != kept:
        yield "volumes are deleted with the set or its pods"
    if (spec["podManagementPolicy"], spec["updateStrategy"]["type"]) != ("Parallel", "RollingUpdate"):
        yield f"pods start {spec['podManagementPolicy']}, and are updated by {spec['updateStrategy']['type']}"
    if spec["replicas"] < 3 or spec["replicas"] % 2 == 0:
        yield f"{spec['replicas']} replicas: three or five are wanted"
    if [b["spec"].get("maxUnavailable") for b in of(objects, "PodDisruptionBudget")] != [1]:
        yield "the disruption budget is not maxUnavailable: 1"
    version = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
    if container(objects)["image"] != f"lance:{version}":
        yield f"the image is {container(objects)['image']}, this is version {version}"


CHECKS = [schemas, enums, selectors, ports, probes, configuration, names, stopping, memory, security, rollout]


def problems(objects):
    for check in CHECKS:
        for problem in check(objects):
            yield check.__name__, problem


# --- The checks can fail -----------------------------------------------------------------------------------------------


def change(path, value):
    """A function that sets a place in the StatefulSet; None removes it."""

    def apply(objects):
        at = of(objects, "StatefulSet")[0]
        *way, last = path.split(".")
        for step in way:
            at = at[int(step) if step.isdigit() else step]
        if value is None:
            del at[last]
        else:
            at[last] = value

    return apply


def in_config(old, new):
    def apply(objects):
        data = next(o["data"] for o in of(objects, "ConfigMap") if "lance.toml" in o["data"])
        assert old in data["lance.toml"], old
        data["lance.toml"] = data["lance.toml"].replace(old, new)

    return apply


def in_object(kind, edit):
    return lambda objects: edit(of(objects, kind)[0]["spec"])


POD = "spec.template.spec"
BOX = f"{POD}.containers.0"
MISTAKES = [
    (schemas, change("spec.podManagementPolicy", 3)),
    (schemas, change(f"{BOX}.imagePullPolcy", "Always")),
    (enums, change("spec.updateStrategy.type", "Rolling")),
    (enums, change("spec.volumeClaimTemplates.0.spec.accessModes", ["ReadWriteEverywhere"])),
    (selectors, change("spec.template.metadata.labels", {"app.kubernetes.io/name": "lance"})),
    (selectors, in_object("PodDisruptionBudget", lambda s: s["selector"]["matchLabels"].update(x="y"))),
    (selectors, change(f"{POD}.topologySpreadConstraints.0.topologyKey", "zone")),
    (ports, in_object("Service", lambda s: s["ports"][0].update(targetPort="clients"))),
    (ports, in_object("NetworkPolicy", lambda s: s["ingress"][-1]["ports"].append({"port": "peer"}))),
    (ports, in_config("0.0.0.0:1993", "0.0.0.0:1995")),
    (probes, change(f"{BOX}.readinessProbe.httpGet.path", "/ready")),
    (probes, change(f"{BOX}.livenessProbe.httpGet.path", "/readyz")),
    (probes, change(f"{BOX}.livenessProbe.failureThreshold", 1)),
    (configuration, in_config("data_dir", "data_directory")),
    (configuration, in_config("0.0.0.0:1994", "0.0.0.0:1996")),
    (configuration, change(f"{POD}.volumes.0.configMap.name", "lance-config")),
    (names, change("spec.serviceName", "lance")),
    (names, change("spec.replicas", 5)),
    (names, in_config("lance-2.lance-peers", "lance-3.lance-peers")),
    (stopping, in_config('drain_timeout = "20s"', 'drain_timeout = "1m"')),
    (stopping, change(f"{POD}.terminationGracePeriodSeconds", 29)),
    (memory, change(f"{BOX}.resources.limits.memory", "128Mi")),
    (memory, in_config('memory_bytes = "auto"', 'memory_bytes = "1GiB"')),
    (security, change(f"{POD}.securityContext.runAsNonRoot", None)),
    (security, change(f"{BOX}.securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
    (security, change(f"{POD}.securityContext.seccompProfile", {"type": "Unconfined"})),
    (security, change(f"{POD}.securityContext.runAsUser", 1000)),
    (rollout, change("spec.persistentVolumeClaimRetentionPolicy.whenScaled", "Delete")),
    (rollout, change(f"{BOX}.image", "lance:latest")),
]
PROFILES = [
    lambda text: text.replace('"io_uring_register", ', ""),
    lambda text: text.replace('"SCMP_ACT_ERRNO"', '"SCMP_ACT_LOG"'),
    lambda text: text.replace('"unlink"', '"unshare"'),
]


def main():
    found, count = [], 0
    for overlay in OVERLAYS:
        objects = render(overlay)
        count += len(objects)
        found += [f"{overlay}: {check}: {problem}" for check, problem in problems(objects)]
    base = render("base")
    for at, (check, mistake) in enumerate(MISTAKES):
        wrong = copy.deepcopy(base)
        mistake(wrong)
        if not list(check(wrong)):
            found.append(f"mistake {at + 1} is not found by {check.__name__}")
    text = (ROOT / "deploy/k8s/overlays/io-uring/lance-io-uring.json").read_text()
    for at, edit in enumerate(PROFILES):
        if edit(text) == text or not list(seccomp(edit(text))):
            found.append(f"mistake {at + 1} in the seccomp profile is not found")
    for problem in found:
        print(problem)
    mistakes = len(MISTAKES) + len(PROFILES)
    print(f"> {len(OVERLAYS)} overlays, {count} objects, Kubernetes {' and '.join(VERSIONS)}; {mistakes} mistakes found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
