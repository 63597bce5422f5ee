#!/usr/bin/env bash
# The promises, tried on the example cluster in Kubernetes; see "deploy/k8s/gates.sh --help". ./test.sh --kubernetes calls it.
set -uo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=thresholds.sh
. "$root/thresholds.sh"
# shellcheck source=evidence.sh
. "$root/evidence.sh"
namespace=${LANCE_NAMESPACE:-lance}
bench=${LANCE_BENCH:-${CARGO_TARGET_DIR:-$root/target}/release/lnc-bench}
chaos=${LANCE_CHAOS:-${CARGO_TARGET_DIR:-$root/target}/release/lnc-chaos}
lines=${LANCE_GATE_LINES:-200000}
chaos_for=${LANCE_GATE_CHAOS:-2m}
bench_endpoint=${LANCE_GATE_ENDPOINT:-}

usage() {
    cat <<TEXT
Usage: deploy/k8s/gates.sh [--help]

Deletes the example cluster in Kubernetes with its data and makes a new one; then produces a text and reads it back from
every node: undisturbed, while the leader's pod is killed, and after all pods were killed at once; then puts load on the
cluster; last, lnc-chaos deletes and rolls pods while records are written. Thresholds and their reasons are in gates.conf.
What was found is kept, as ./test.sh keeps it; see "./test.sh --help". The last line counts: "N passed, N failed", and
", N skipped" if there were any.

Environment:
  LANCE_NAMESPACE, LANCE_IMAGE, LANCE_OVERLAY  see deploy/k8s/cluster.sh
  LANCE_CHAOS, LANCE_BENCH
                    an lnc-chaos and an lnc-bench to run instead of building them
  LANCE_GATE_ENDPOINT
                    addresses of the pods for clients, as HOST:PORT,…, under which they can be reached from here, all
                    of them as the cluster itself names them; without it there is no load, since forwarded ports measure
                    kubectl. The calibration is taken in TMPDIR: let it be on a disk like the pods'
  LANCE_GATE_LINES  lines of the text ($lines)
  LANCE_GATE_CHAOS  how long pods are deleted ($chaos_for); 0: not at all
TEXT
}

case ${1:-} in
    '') ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        printf 'gates.sh: unknown argument %s; see deploy/k8s/gates.sh --help\n' "$1" >&2
        exit 2
        ;;
esac

make_evidence "$root" "deploy/k8s/gates.sh" || exit 1
work=$(mktemp -d "${TMPDIR:-/tmp}/lance-gates.XXXXXX") || exit 1
trap 'rm -rf -- "$work"' EXIT
passed=0 failed=0 skipped=0 steps=0
# Exit code by which a step says that it cannot run here; its last line of output is the reason.
skip_code=77

kube() { kubectl --namespace "$namespace" "$@"; }
# on POD ARGUMENTS…: lance inside a pod.
on() {
    local pod=$1
    shift
    kube exec --stdin "$pod" --container lance -- /usr/bin/lance "$@"
}
# A set may not have noticed yet that a pod is gone: only the pods' own word counts.
ready() {
    local deadline=$((SECONDS + ready_pods_seconds))
    until kube rollout status statefulset/lance --timeout="${ready_pods_seconds}s" &&
        kube wait pod/lance-0 pod/lance-1 pod/lance-2 --for=condition=Ready --timeout=30s; do
        ((SECONDS < deadline)) || return 1
        sleep 1
    done
}
kill_pods() { kube delete pod "$@" --grace-period=0 --force --wait=true; }

step() {
    local name=$1 code=0 began=$SECONDS log reason='' verdict
    shift
    steps=$((steps + 1))
    name_reports "$steps" "$name"
    printf '== %s\n' "$name"
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null || code=$?
    sed -n 's/^> /   /p' "$log"
    case $code in
        0)
            passed=$((passed + 1)) verdict=passed
            printf '   passed\n'
            ;;
        "$skip_code")
            skipped=$((skipped + 1)) verdict=skipped
            reason=$(tail -n 1 "$log")
            printf '   SKIPPED: %s\n' "$reason"
            ;;
        *)
            failed=$((failed + 1)) verdict=failed
            tail -n 50 "$log"
            printf '   FAILED with exit code %s: %s\n' "$code" "$name"
            ;;
    esac
    note_step "$verdict" $((SECONDS - began)) "$name" "$reason"
}

# holds TOPIC PARTITIONS: every node has the text, whole; with one partition, in its order.
holds() {
    local pod
    for pod in lance-0 lance-1 lance-2; do
        on "$pod" consume "$1" --until-end </dev/null >"$work/out"
        if (($2 == 1)); then
            cmp "$work/text" "$work/out"
        else
            LC_ALL=C sort "$work/out" | cmp "$work/text" -
        fi
    done
}

undisturbed() {
    on lance-0 topic create "text-$1" --partitions "$1" </dev/null
    on lance-0 produce "text-$1" --quiet <"$work/text"
    holds "text-$1" "$1"
}

# The pod that leads the one partition.
leader() {
    local node
    node=$(on lance-0 topic describe "$1" </dev/null | awk 'NF == 6 && $1 == 0 { print $3 }')
    [[ $node == [123] ]] || {
        printf 'partition 0 of %s has no leader: %s\n' "$1" "$node"
        return 1
    }
    printf 'lance-%s' $((node - 1))
}

leader_killed() {
    local victim other=lance-0 producer
    on lance-0 topic create killed </dev/null
    victim=$(leader killed)
    [[ $victim != lance-0 ]] || other=lance-1
    mkfifo "$work/pipe"
    on "$other" produce killed --quiet <"$work/pipe" &
    producer=$!
    exec 7>"$work/pipe"
    head -n $((lines / 2)) "$work/text" >&7
    kill_pods "$victim"
    tail -n +$((lines / 2 + 1)) "$work/text" >&7
    exec 7>&-
    wait "$producer"
    ready
    holds killed 1
}

all_killed() {
    on lance-0 topic create outage </dev/null
    on lance-0 produce outage --quiet <"$work/text"
    kill_pods lance-0 lance-1 lance-2
    ready
    holds outage 1
}

load() {
    if [[ -z $bench_endpoint ]]; then
        printf 'LANCE_GATE_ENDPOINT does not say where clients reach the pods\n'
        exit "$skip_code"
    fi
    mkdir "$reports"
    on lance-0 topic create load --partitions 3 --segment-bytes 64MiB --max-bytes 256MiB </dev/null
    bench_load "$bench" "$bench_endpoint" "$work" 10 "$reports"
}

pods_deleted() {
    "$chaos" live --namespace "$namespace" --statefulset lance --fault pod-delete,rollout-restart \
        --duration "$chaos_for" --evidence "$reports"
    gzip -f "$reports/history.jsonl"
    check_records "$reports/report.json"
}

if [[ $chaos_for != 0 && ! -x $chaos ]]; then
    (cd "$root" && cargo build --release --locked -p lnc-chaos) || exit 1
fi
if [[ -n $bench_endpoint && ! -x $bench ]]; then
    (cd "$root" && cargo build --release --locked -p lnc-bench) || exit 1
fi
awk -v lines="$lines" 'BEGIN { for (i = 1; i <= lines; i++) printf "%09d the quick brown fox jumps over the lazy dog\n", i }' \
    >"$work/text"
step "gate: readiness of the example cluster" "$root/genCluster.sh" --kubernetes
if ((failed == 0)); then
    step "gate: text, 1 partition" undisturbed 1
    step "gate: text, 3 partitions" undisturbed 3
    step "gate: text, 1 partition, the leader's pod killed" leader_killed
    step "gate: text, 1 partition, all pods killed" all_killed
    step "gate: rate and latency" load
    [[ $chaos_for == 0 ]] || step "gate: chaos, pods deleted and rolled" pods_deleted
fi
sum_up "$bench" || failed=$((failed + 1))
printf '\n%s passed, %s failed' "$passed" "$failed"
((skipped == 0)) || printf ', %s skipped' "$skipped"
printf '\n'
((failed == 0))
