#!/usr/bin/env bash
# The promises, tried on the example cluster in Kubernetes; see "deploy/k8s/gates.sh --help". ./test.sh --kubernetes calls it.
set -uo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
namespace=${LANCE_NAMESPACE:-lance}
chaos=${LANCE_CHAOS:-${CARGO_TARGET_DIR:-$root/target}/release/lnc-chaos}
lines=${LANCE_GATE_LINES:-200000}
chaos_for=${LANCE_GATE_CHAOS:-2m}

usage() {
    cat <<TEXT
Usage: deploy/k8s/gates.sh [--help]

Deletes the example cluster in Kubernetes with its data and makes a new one; then produces a text and reads it back from
every node: undisturbed, while the leader's pod is killed, and after all pods were killed at once; last, lnc-chaos deletes
and rolls pods while records are written. The last line counts: "N passed, N failed".

Environment:
  LANCE_NAMESPACE, LANCE_IMAGE, LANCE_OVERLAY  see deploy/k8s/cluster.sh
  LANCE_CHAOS       an lnc-chaos to run instead of building one
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

work=$(mktemp -d "${TMPDIR:-/tmp}/lance-gates.XXXXXX") || exit 1
trap 'rm -rf -- "$work"' EXIT
passed=0 failed=0

kube() { kubectl --namespace "$namespace" "$@"; }
# on POD ARGUMENTS…: lance inside a pod.
on() {
    local pod=$1
    shift
    kube exec --stdin "$pod" --container lance -- /usr/bin/lance "$@"
}
# A set may not have noticed yet that a pod is gone: only the pods' own word counts.
ready() {
    local deadline=$((SECONDS + 300))
    until kube rollout status statefulset/lance --timeout=5m &&
        kube wait pod/lance-0 pod/lance-1 pod/lance-2 --for=condition=Ready --timeout=30s; do
        ((SECONDS < deadline)) || return 1
        sleep 1
    done
}
kill_pods() { kube delete pod "$@" --grace-period=0 --force --wait=true; }

step() {
    local name=$1 code=0
    shift
    printf '== %s\n' "$name"
    (
        set -e
        "$@"
    ) >"$work/log" 2>&1 </dev/null || code=$?
    if ((code == 0)); then
        passed=$((passed + 1))
        printf '   passed\n'
    else
        failed=$((failed + 1))
        tail -n 50 "$work/log"
        printf '   FAILED with exit code %s: %s\n' "$code" "$name"
    fi
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

pods_deleted() {
    "$chaos" live --namespace "$namespace" --statefulset lance --fault pod-delete,rollout-restart --duration "$chaos_for"
}

if [[ $chaos_for != 0 && ! -x $chaos ]]; then
    (cd "$root" && cargo build --release --locked -p lnc-chaos) || exit 1
fi
awk -v lines="$lines" 'BEGIN { for (i = 1; i <= lines; i++) printf "%09d the quick brown fox jumps over the lazy dog\n", i }' \
    >"$work/text"
step "the example cluster" "$root/genCluster.sh" --kubernetes
if ((failed == 0)); then
    step "text, 1 partition" undisturbed 1
    step "text, 3 partitions" undisturbed 3
    step "text, 1 partition, the leader's pod killed" leader_killed
    step "text, 1 partition, all pods killed" all_killed
    [[ $chaos_for == 0 ]] || step "pods deleted and rolled" pods_deleted
fi
printf '\n%s passed, %s failed\n' "$passed" "$failed"
((failed == 0))
