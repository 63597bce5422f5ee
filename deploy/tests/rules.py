#!/usr/bin/env python3
"""Checks the alerts and the dashboard of deploy/monitoring: that they parse, name metrics and labels that LANCE has, that
the alerts' unit tests pass and leave no alert out, and that each leads to a run book. Needs promtool.

With --write, writes the files that are made from others: prometheus-rule.yaml and dashboard.json.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/monitoring"
# Labels that Prometheus and its configuration add.
GIVEN_LABELS = {"cluster", "node", "job", "instance", "le"}
KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
# What the library says of every process.
PROCESS = [
    "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds",
    "process_start_time_seconds", "process_threads",
]
GROUPING = r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"


def catalogue():
    """The names of all series that a node serves, each with its labels, read from the table that defines them."""
    source = (ROOT / "lnc-metrics/src/catalogue.rs").read_text()
    table = re.search(r"^catalogue! \{\n(.*?)^\}", source, re.MULTILINE | re.DOTALL).group(1)
    lines = [line.strip() for line in table.splitlines() if line.strip()]
    series = {}
    for line in lines:
        if line == "}" or re.fullmatch(r'"[^"]+" \{', line):
            continue
        match = re.match(r"(\w+): (\w+), \[([^\]]*)\], \[", line)
        assert match, f"lnc-metrics/src/catalogue.rs: this line of the table is not understood: {line}"
        name, kind, labels = match.groups()
        suffixes = ["_bucket", "_sum", "_count"] if kind.startswith("Histogram") else [""]
        for suffix in suffixes:
            series[f"lance_{name}{suffix}"] = set(re.findall(r'"(\w+)"', labels))
    series |= {name: set() for name in PROCESS}
    assert len(series) > 40, f"only {len(series)} series found in lnc-metrics/src/catalogue.rs"
    return series


def used(expression):
    """The series that a query names, each with the labels it selects by, and the labels that the query groups by."""
    bare = re.sub(r'"[^"]*"|\'[^\']*\'', '""', expression)
    grouped = {label.strip() for _, labels in re.findall(GROUPING, bare) for label in labels.split(",") if label.strip()}
    bare = re.sub(GROUPING, " ", bare)
    bare = re.sub(r"\[[^\]]*\]", " ", bare)
    found = {}
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\(|\{[^}]*\})?", bare):
        name, rest = match.groups()
        if rest == "(" or name in KEYWORDS:
            continue
        labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", rest or "")
        found.setdefault(name, set()).update(labels)
    return found, grouped


def check_query(where, expression, series):
    names, grouped = used(expression)
    known = set(GIVEN_LABELS)
    for name, labels in names.items():
        if name not in series:
            yield f"{where}: there is no metric {name}"
            continue
        known |= series[name]
        if wrong := labels - series[name] - GIVEN_LABELS:
            yield f"{where}: {name} has no label {', '.join(sorted(wrong))}"
    if names and (wrong := grouped - known):
        yield f"{where}: nothing in the query has the label {', '.join(sorted(wrong))}"


def dashboard_queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"dashboard, {panel['title']}", target["expr"]


def substituted(expression):
    """The query as Grafana sends it."""
    return expression.replace("$__rate_interval", "1m").replace("$cluster", "a").replace("$node", ".*").replace("$group", ".*").replace("$topic", ".*")


def check_dashboard(dashboard, series):
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    for name in ["datasource", "cluster", "node", "topic", "group"]:
        if name not in variables:
            yield f"the dashboard has no variable {name}"
    for variable in variables.values():
        if variable["type"] == "query":
            query, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            yield from check_query(f"variable {variable['name']}", query, series)
            metric = next(iter(used(query)[0]))
            if label not in series.get(metric, set()) | GIVEN_LABELS:
                yield f"variable {variable['name']}: {metric} has no label {label}"
    places, numbers = set(), set()
    rules = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        if cells & places or place["x"] + place["w"] > 24 or panel["id"] in numbers:
            yield f"the panel {panel['title']} lies on another one, beyond the edge, or has another one's number"
        places |= cells
        numbers.add(panel["id"])
        if panel["type"] != "row" and not (panel["targets"] and panel["description"]):
            yield f"the panel {panel['title']} has no query or does not say what it shows"
    for where, expression in dashboard_queries(dashboard):
        yield from check_query(where, expression, series)
        if unknown := set(re.findall(r"\$(\w+)", expression)) - set(variables) - {"__rate_interval"}:
            yield f"{where}: no variable {unknown}"
        rules.append({"record": f"panel:{len(rules)}", "expr": substituted(expression)})
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}, file)
        file.flush()
        parsed = subprocess.run(["promtool", "check", "rules", file.name], capture_output=True, text=True)
        if parsed.returncode != 0:
            yield f"a query of the dashboard does not parse: {parsed.stderr}"


def check_alerts(alerts, tests, series):
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    series = series | {"up": set()} | {rule["record"]: set(GIVEN_LABELS) for rule in rules if "record" in rule}
    loud, quiet = set(), set()
    for test in tests["tests"]:
        for expected in test["alert_rule_test"]:
            (loud if expected.get("exp_alerts") else quiet).add(expected["alertname"])
    for rule in rules:
        name = rule.get("alert", rule.get("record"))
        yield from check_query(name, rule["expr"], series)
        if "alert" not in rule:
            continue
        if name not in loud or name not in quiet:
            yield f"{name} is not tested, both to fire and not to"
        if rule["labels"].get("severity") not in ("warning", "critical"):
            yield f"{name} has no severity, warning or critical"
        notes = rule["annotations"]
        if set(notes) != {"summary", "description", "runbook_url"}:
            yield f"{name} has the annotations {sorted(notes)}"
        elif not (ROOT / notes["runbook_url"]).is_file():
            yield f"{name}: there is no {notes['runbook_url']}"
        elif name not in (ROOT / notes["runbook_url"]).read_text():
            yield f"{name}: {notes['runbook_url']} does not name it"


def prometheus_rule(alerts):
    made = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "lance", "labels": {"app.kubernetes.io/name": "lance"}},
        "spec": alerts,
    }
    head = "# Made from alerts.yaml by deploy/tests/rules.py --write.\n"
    return head + yaml.safe_dump(made, sort_keys=False, width=1000)


def generated(alerts):
    """Files that are made from others, with what they must hold."""
    command = [sys.executable, MONITORING / "dashboard.py"]
    return {
        MONITORING / "prometheus-rule.yaml": prometheus_rule(alerts),
        MONITORING / "dashboard.json": subprocess.run(command, check=True, capture_output=True, text=True).stdout,
    }


def main():
    alerts = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    tests = yaml.safe_load((MONITORING / "alerts-test.yaml").read_text())
    if sys.argv[1:] == ["--write"]:
        for path, text in generated(alerts).items():
            path.write_text(text)
        return 0
    series = catalogue()
    found = []
    for path, text in generated(alerts).items():
        if not path.exists() or path.read_text() != text:
            found.append(f"{path.relative_to(ROOT)} is not up to date: run deploy/tests/rules.py --write")
    for command in ["check", "test"]:
        file = MONITORING / ("alerts.yaml" if command == "check" else "alerts-test.yaml")
        ran = subprocess.run(["promtool", command, "rules", file], capture_output=True, text=True)
        if ran.returncode != 0:
            found.append(f"promtool {command} rules: {ran.stdout}{ran.stderr}")
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    found += check_alerts(alerts, tests, series)
    found += check_dashboard(dashboard, series | {"up": set()})

    # The checks can fail.
    wrong = [
        "rate(lance_message_in_total[1m])",
        'lance_role{grp="1"}',
        "sum by (peer) (rate(lance_messages_in_total[1m]))",
        "lance_produce_latency_seconds",
    ]
    for expression in wrong:
        if not list(check_query("", expression, series)):
            found.append(f"{expression} is taken for a good query")
    text = (MONITORING / "alerts.yaml").read_text().replace("* 2 <= lance:nodes:known", "* 2 < lance:nodes:known")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "alerts.yaml").write_text(text.replace("lance_disk_free_bytes < lance_disk", "10 * lance_disk_free_bytes < lance_disk"))
        Path(directory, "alerts-test.yaml").write_text((MONITORING / "alerts-test.yaml").read_text())
        ran = subprocess.run(["promtool", "test", "rules", Path(directory, "alerts-test.yaml")], capture_output=True)
        if ran.returncode == 0:
            found.append("the alerts' unit tests pass with thresholds that are wrong")
    for problem in found:
        print(problem)
    panels = sum(1 for _ in dashboard_queries(dashboard))
    firing = [rule["alert"] for group in alerts["groups"] for rule in group["rules"] if "alert" in rule]
    print(f"> {len(firing)} alerts, {panels} queries of the dashboard, {len(series)} series")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
