#!/usr/bin/env python3
"""Prints the Grafana dashboard of a LANCE cluster; dashboard.json is its output, to be imported into Grafana.

    python3 deploy/monitoring/dashboard.py > deploy/monitoring/dashboard.json
"""

import json

# What every query is narrowed to by the variables at the top of the dashboard.
NODE = 'cluster="$cluster", node=~"$node"'
GROUP = f'{NODE}, group=~"$group"'
TOPIC = f'{NODE}, topic=~"$topic"'
QUANTILES = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]


def rate(metric, by="node", selector=NODE):
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantiles(metric):
    """One line for each quantile, over the nodes chosen."""
    buckets = f"sum by (le) (rate({metric}_bucket{{{NODE}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {buckets})", name) for name, q in QUANTILES]


def by_node(metric, q):
    buckets = f"sum by (node, le) (rate({metric}_bucket{{{NODE}}}[$__rate_interval]))"
    return f"histogram_quantile({q}, {buckets})"


# Rows of panels: title, kind, unit, queries with their legends, and what the panel is there to show.
ROWS = [
    ("Overview", [
        ("Nodes up", "stat", "none", [('sum(up{job="lance", cluster="$cluster"})', "")],
         "A majority of the members must be up."),
        ("Groups without a leader", "stat", "none",
         [('count(max by (group) (lance_role{cluster="$cluster"}) < 2) or vector(0)', "")],
         "More than 0 for seconds is an outage of the partitions in these groups."),
        ("Largest lag", "stat", "none", [(f"max(lance_replication_lag{{{GROUP}}})", "")],
         "Entries that the follower that is furthest behind lacks."),
        ("Least free space above the reserve", "stat", "bytes",
         [(f"min(lance_disk_free_bytes{{{NODE}}} - lance_disk_reserve_bytes{{{NODE}}})", "")],
         "Below 0, records are refused."),
        ("Records", "timeseries", "short",
         [(rate("lance_messages_in_total"), "in, {{node}}"), (rate("lance_messages_out_total"), "out, {{node}}")],
         "Records a second that leaders took from producers, and that nodes gave to consumers."),
        ("Bytes", "timeseries", "Bps",
         [(rate("lance_bytes_in_total"), "in, {{node}}"), (rate("lance_bytes_out_total"), "out, {{node}}")],
         "The same in bytes of record batches."),
        ("Processor", "timeseries", "percentunit", [(rate("process_cpu_seconds_total"), "{{node}}")],
         "Cores that each node uses: one thread does most of it."),
        ("Memory", "timeseries", "bytes",
         [(f"max by (node) (process_resident_memory_bytes{{{NODE}}})", "{{node}}"),
          (f"max by (node) (lance_tail_cache_bytes{{{NODE}}})", "newest records, {{node}}")],
         "Of the process, and of it the newest records, which limits.tail_cache_bytes bounds."),
        ("File descriptors", "timeseries", "percentunit",
         [(f"max by (node) (process_open_fds{{{NODE}}} / process_max_fds{{{NODE}}})", "{{node}}")],
         "The share that is used; at 1, no connection can be accepted."),
        ("Versions and backends", "table", "none",
         [(f"max by (node, version) (lance_build_info{{{NODE}}})", ""),
          (f"max by (node, backend) (lance_backend_info{{{NODE}}})", "")],
         "What each node runs."),
    ]),
    ("Latency by stage", [
        ("Produce", "timeseries", "s", quantiles("lance_produce_latency_seconds"),
         "From a produce request's arrival to its reply: the disk, the network between nodes and the queue before them."),
        ("Queue", "timeseries", "s", quantiles("lance_produce_queue_seconds"),
         "Until the oldest command of an entry is proposed. The disk sets the pace: what comes meanwhile goes together."),
        ("Journal write", "timeseries", "s", quantiles("lance_journal_write_seconds"),
         "From an entry's proposal until the leader's own disk has it: the flush before it, and its own."),
        ("Sync of the journal", "timeseries", "s", quantiles("lance_journal_fsync_seconds"),
         "The disk's part of it, and the floor under every acknowledgement."),
        ("Replication", "timeseries", "s", quantiles("lance_replication_seconds"),
         "From an entry's proposal until a majority has it. Far above the journal write: the network, or the others' disks."),
        ("Apply", "timeseries", "s", quantiles("lance_apply_seconds"),
         "The leader's processor: offsets, cache and segments of what one turn has committed."),
        ("Reply", "timeseries", "s", quantiles("lance_reply_seconds"),
         "Until the kernel has taken the replies. Long, if clients do not read."),
        ("Turn", "timeseries", "s", quantiles("lance_turn_seconds"),
         "Nothing else happens on a node during a turn: above some milliseconds, ticks and heartbeats wait."),
        ("Fetch", "timeseries", "s", quantiles("lance_fetch_latency_seconds"),
         "Time to serve a fetch, without the wait for new records."),
        ("Checkpoint", "timeseries", "s", quantiles("lance_checkpoint_seconds"),
         "From its start to its place on disk; requests go on meanwhile."),
    ]),
    ("Raft and elections", [
        ("Leaders", "timeseries", "none", [(f"count by (node) (lance_role{{{GROUP}}} == 2)", "{{node}}")],
         "Groups that each node leads; they spread evenly a few seconds after a start."),
        ("Elections and changes of leader", "timeseries", "none",
         [(f"sum by (node) (increase(lance_elections_total{{{GROUP}}}[$__rate_interval]))", "elections, {{node}}"),
          (f"sum by (node) (increase(lance_leader_changes_total{{{GROUP}}}[$__rate_interval]))", "changes, {{node}}")],
         "Without restarts they say that the network or a disk stalls."),
        ("Lag", "timeseries", "none",
         [(f"max by (group, peer) (lance_replication_lag{{{GROUP}}})", "group {{group}}, node {{peer}}")],
         "Entries of the leader's log that a follower does not have yet."),
        ("Committed but not applied", "timeseries", "none",
         [(f"max by (node, group) (lance_commit_index{{{GROUP}}} - lance_applied_index{{{GROUP}}})",
           "{{node}}, group {{group}}")],
         "Entries that wait for the disk of the node, or for its processor."),
        ("Written but not durable", "timeseries", "none",
         [(f"max by (node, group) (lance_last_index{{{GROUP}}} - lance_durable_index{{{GROUP}}})",
           "{{node}}, group {{group}}")],
         "Entries that are on their way to the disk."),
        ("Term", "timeseries", "none", [(f"max by (group) (lance_term{{{GROUP}}})", "group {{group}}")],
         "Rises with every election."),
        ("Election rounds", "timeseries", "ms",
         [(f"max by (node) (lance_raft_election_round_last_ms{{{NODE}}})", "last, {{node}}"),
          (by_node("lance_raft_election_round_ms", 0.99), "p99, {{node}}")],
         "From the first question to the outcome. Bounded by three times the budget of a request, three seconds at least."),
        ("Answers to pre-votes and votes", "timeseries", "ms",
         [(by_node("lance_raft_pre_vote_rpc_latency_ms", 0.99), "pre-vote, p99, {{node}}"),
          (by_node("lance_raft_vote_rpc_latency_ms", 0.99), "vote, p99, {{node}}")],
         "A vote waits for the voter's disk, a pre-vote for nothing but the network and its thread."),
        ("Heartbeats", "timeseries", "s", quantiles("lance_heartbeat_latency_seconds"),
         "To the answer. It stays flat under load; if not, a node's thread or the network has no time for it."),
        ("Control requests", "timeseries", "none",
         [(f"max by (node) (lance_control_rpc_in_flight{{{NODE}}})", "in flight, {{node}}"),
          (f"sum by (node) (increase(lance_control_rpc_starvation_total{{{NODE}}}[$__rate_interval]))", "starved, {{node}}")],
         "Pre-votes, votes and heartbeats without an answer, and those that had none within their budget."),
        ("Drift of ticks", "timeseries", "ms",
         [(f"max by (node) (lance_cluster_coordinator_tick_drift_ms{{{NODE}}})", "{{node}}")],
         "How late the node's clock ticks, at worst. Near raft.election_timeout_ms, the node loses what it leads."),
        ("Left out of the fan-out", "timeseries", "none",
         [(f"sum by (peer) (lance_fan_out_evicted{{{GROUP}}})", "node {{peer}}, groups"),
          (f"sum by (peer) (increase(lance_fan_out_evictions_total{{{NODE}}}[$__rate_interval]))", "node {{peer}}, times")],
         "Peers that get nothing but probes: they are silent, or lack more than the journal holds."),
        ("Appends in flight", "timeseries", "none",
         [(f"max by (group, peer) (lance_replication_in_flight{{{GROUP}}})", "group {{group}}, node {{peer}}")],
         "Sent to a follower and not acknowledged."),
        ("Transfers of state", "timeseries", "Bps",
         [(rate("lance_transfer_in_bytes_total"), "in, {{node}}"), (rate("lance_transfer_out_bytes_total"), "out, {{node}}"),
          (f"max by (node) (lance_transfers_active{{{NODE}}})", "groups on their way to {{node}}")],
         "To nodes that are too far behind for the journal, at storage.transfer_bytes_per_second."),
        ("Channels to peers", "timeseries", "none",
         [(f"min by (node, peer, channel) (lance_peer_connected{{{NODE}}})", "{{node}} to {{peer}}, {{channel}}"),
          (rate("lance_peer_reconnects_total"), "reconnects a second, {{node}}")],
         "1 while a channel is open."),
        ("Clocks of peers, as each node sees them", "timeseries", "s",
         [(f"max by (node, peer) (lance_clock_skew_seconds{{{NODE}}})", "{{peer}}, seen by {{node}}")],
         "The node that sees all others far off is the one that is wrong."),
        ("Nothing is removed by age", "timeseries", "none",
         [(f"max by (node) (lance_retention_by_age_stopped{{{NODE}}})", "stopped, {{node}}"),
          (f"max by (node) (lance_clock_untrusted{{{NODE}}})", "clock not trusted, {{node}}")],
         "1 while clocks disagree, or all have jumped."),
    ]),
    ("Disk", [
        ("Sync of the journal by node, p99", "timeseries", "s",
         [(by_node("lance_journal_fsync_seconds", 0.99), "{{node}}")],
         "One node above the others has a sick disk."),
        ("Slow disks", "timeseries", "none", [(f"max by (node) (lance_slow_disk{{{NODE}}})", "{{node}}")],
         "1: the node hands over what it leads."),
        ("Flushes", "timeseries", "ops", [(rate("lance_journal_flushes_total"), "{{node}}")],
         "Group commits a second."),
        ("Bytes in a flush, p50 and p99", "timeseries", "bytes",
         [(by_node("lance_journal_flush_bytes", 0.5), "p50, {{node}}"),
          (by_node("lance_journal_flush_bytes", 0.99), "p99, {{node}}")],
         "More under load: what waits for the disk goes together."),
        ("Space", "timeseries", "bytes",
         [(f"max by (node) (lance_journal_bytes{{{NODE}}})", "journal, {{node}}"),
          (f"max by (node) (lance_segment_bytes{{{NODE}}})", "segments, {{node}}"),
          (f"min by (node) (lance_disk_free_bytes{{{NODE}}})", "free, {{node}}")],
         "What the data directory takes, and what is left."),
        ("Records that wait for their segments", "timeseries", "bytes",
         [(f"max by (node) (lance_segment_unwritten_bytes{{{NODE}}})", "{{node}}")],
         "Growing: the disk cannot write segments as fast as records come, and soon clients are turned away."),
        ("Age of the last checkpoint", "timeseries", "s",
         [(f"max by (node) (lance_checkpoint_age_seconds{{{NODE}}})", "{{node}}")],
         "Without load it grows; under load it means that the journal is not freed and that recovery takes longer."),
        ("Journal since the last checkpoint", "timeseries", "bytes",
         [(f"max by (node) (lance_checkpoint_pending_bytes{{{NODE}}})", "{{node}}")],
         "The next one begins at journal.checkpoint_bytes."),
        ("Checkpoints", "timeseries", "cpm", [(f"60 * {rate('lance_checkpoints_total')}", "{{node}}")],
         "A minute; each frees journal."),
        ("Damage", "timeseries", "none",
         [(f"sum by (node) (lance_damage_found_total{{{NODE}}})", "found, {{node}}"),
          (f"sum by (node) (lance_damage_repaired_total{{{NODE}}})", "repaired, {{node}}"),
          (f"max by (node) (lance_damage_unreadable{{{NODE}}})", "bad although written over, {{node}}"),
          (f"max by (node) (lance_lost_entries{{{NODE}}})", "entries lost, {{node}}"),
          (f"max by (node) (lance_groups_in_doubt{{{NODE}}})", "groups in doubt, {{node}}")],
         "Two that differ for long: no other replica has it either."),
        ("Scrub", "timeseries", "Bps", [(rate("lance_scrub_bytes_total"), "{{node}}")],
         "Bytes a second that are read to find damage before anybody needs them."),
    ]),
    ("Clients", [
        ("Connections", "timeseries", "none", [(f"max by (node) (lance_connections{{{NODE}}})", "{{node}}")],
         "Open at this moment."),
        ("New connections", "timeseries", "cps", [(rate("lance_connections_total"), "{{node}}")],
         "Many for few that stay open: a client connects for every request."),
        ("Requests", "timeseries", "reqps", [(rate("lance_requests_total", "opcode"), "{{opcode}}")],
         "By what they ask for."),
        ("Errors", "timeseries", "reqps", [(rate("lance_errors_total", "code"), "{{code}}")],
         "By code; LWP.md says what each means and whether it can be retried."),
        ("Turned away", "timeseries", "reqps", [(rate("lance_overloaded_total"), "{{node}}")],
         "Requests that are to come back later."),
        ("Bytes in flight", "timeseries", "bytes", [(f"max by (node) (lance_in_flight_bytes{{{NODE}}})", "{{node}}")],
         "Of requests that are not answered yet; limits.memory_bytes bounds it."),
        ("Requests in flight", "timeseries", "none",
         [(f"max by (node) (lance_in_flight_requests{{{NODE}}})", "{{node}}")],
         "Not answered yet, fetches that wait for records included."),
        ("Bytes turned away", "timeseries", "Bps", [(rate("lance_rejected_bytes_total", "node, code"), "{{code}}, {{node}}")],
         "Of batches for which there was no memory or no space."),
        ("Reading paused", "timeseries", "none",
         [(f"max by (node) (lance_reading_paused{{{NODE}}})", "{{node}}"),
          (rate("lance_reading_pauses_total"), "pauses a second, {{node}}")],
         "1 while clients that have much of the memory for requests are not read."),
        ("Memory of requests and replies", "timeseries", "bytes",
         [(f"max by (node) (lance_request_memory_bytes{{{NODE}}})", "requests, {{node}}"),
          (f"max by (node) (lance_reply_memory_bytes{{{NODE}}})", "replies, {{node}}")],
         "limits.memory_bytes and limits.reply_bytes bound them."),
        ("Records that wait their turn", "timeseries", "bytes",
         [(f"sum by (node) (lance_produce_waiting_bytes{{{NODE}}})", "{{node}}")],
         "In a queue that is fair to all clients, because the disks are busy with others."),
        ("Longest turn", "timeseries", "s", [(f"max by (node) (lance_turn_longest_seconds{{{NODE}}})", "{{node}}"),
          (f"max by (node) (lance_turn_work_longest_seconds{{{NODE}}})", "{{node}}, of the processor")],
         "Of the last half minute or minute. Nothing else happens on a node meanwhile."),
        ("Passed on", "timeseries", "reqps", [(rate("lance_forwarded_requests_total"), "{{node}}")],
         "Requests that came to a node that does not lead the group."),
        ("Batches of producers, p50", "timeseries", "bytes",
         [(by_node("lance_produce_batch_bytes", 0.5), "bytes, {{node}}")],
         "Small ones cost the most for each record."),
        ("Bytes in a fetch, p50", "timeseries", "bytes", [(by_node("lance_fetch_bytes", 0.5), "{{node}}")],
         "Of record batches in one reply."),
        ("Fetches from memory", "timeseries", "percentunit",
         [("{0} / ({0} + {1})".format(rate("lance_fetch_cache_hits_total"), rate("lance_fetch_cache_misses_total")),
           "{{node}}")],
         "The share that needed no segment file: readers that keep up."),
    ]),
    ("Topics", [
        ("Records by topic", "timeseries", "short",
         [(f"max by (topic) (rate(lance_topic_end_offset{{{TOPIC}}}[$__rate_interval]))", "{{topic}}")],
         "Records a second that were appended."),
        ("Bytes by topic", "timeseries", "bytes", [(f"max by (topic) (lance_topic_bytes{{{TOPIC}}})", "{{topic}}")],
         "Disk space of its segments, on the node that has most."),
        ("Behind the readers", "timeseries", "short", [(f"max by (topic) (lance_topic_consumer_lag{{{TOPIC}}})", "{{topic}}")],
         "Records that the client furthest behind has not read yet, in partitions that are read."),
    ]),
]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def variable(name, query, multi=True):
    return {
        "name": name, "label": name.capitalize(), "type": "query", "datasource": DATASOURCE,
        "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 3,
        "multi": multi, "includeAll": multi, "current": {},
    }


VARIABLES = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
    variable("cluster", "label_values(lance_build_info, cluster)", multi=False),
    variable("node", 'label_values(lance_build_info{cluster="$cluster"}, node)'),
    variable("topic", 'label_values(lance_topic_partitions{cluster="$cluster"}, topic)'),
    variable("group", 'label_values(lance_role{cluster="$cluster"}, group)'),
]


def panel(number, title, kind, unit, queries, why, place):
    made = {
        "id": number, "title": title, "type": kind, "description": why, "gridPos": place, "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": expr, "legendFormat": legend, "datasource": DATASOURCE,
             **({"format": "table", "instant": True} if kind == "table" else {})}
            for at, (expr, legend) in enumerate(queries)
        ],
    }
    if kind == "timeseries":
        made["fieldConfig"]["defaults"]["custom"] = {"fillOpacity": 10, "showPoints": "never"}
        made["options"] = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"placement": "bottom"}}
    if kind == "table":
        made["transformations"] = [{"id": "merge", "options": {}}]
    return made


def dashboard():
    panels, y, number = [], 0, 0
    for title, row in ROWS:
        number += 1
        panels.append({"id": number, "title": title, "type": "row", "collapsed": False,
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})
        x, y, height = 0, y + 1, 0
        for name, kind, unit, queries, why in row:
            width, tall = (6, 4) if kind == "stat" else (8, 8)
            if x + width > 24:
                x, y, height = 0, y + height, 0
            number += 1
            panels.append(panel(number, name, kind, unit, queries, why, {"x": x, "y": y, "w": width, "h": tall}))
            x, height = x + width, max(height, tall)
        y += height
    return {
        "uid": "lance", "title": "LANCE", "tags": ["lance"], "schemaVersion": 39, "version": 1, "editable": True,
        "timezone": "browser", "refresh": "15s", "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": VARIABLES}, "annotations": {"list": []}, "panels": panels,
    }


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=2))
