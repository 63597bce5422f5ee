#!/usr/bin/env bash
# Upgrades a cluster of three nodes under load from one version to the next, one node at a time, with steps back before the
# upgrade is finalized. Producers and the checks of what they wrote are those of lnc-chaos, which knows nothing of it.
#
# Usage: deploy/tests/upgrade.sh OLD NEW CHAOS    three programs: lance of both versions, and lnc-chaos
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
old=$1 new=$2 chaos=$3
# Longest time for one step, in seconds.
patience=60
# Records that the cluster must take between two steps.
between=300

work=$(mktemp -d "${TMPDIR:-/tmp}/lance-upgrade.XXXXXX")
state=$work/.lance/cluster
load=
cleanup() {
    if [[ -n $load ]]; then kill -KILL "$load" 2>/dev/null || true; fi
    "$work/genCluster.sh" clean >/dev/null 2>&1 || true
    rm -rf -- "$work"
}
trap cleanup EXIT
cp "$root/genCluster.sh" "$work/"

fail() {
    printf 'upgrade.sh: %s\n' "$*" >&2
    tail -n 20 "$work/load" "$state"/node-*/lance.log >&2 || true
    exit 1
}

# until WHAT COMMAND…: waits until the command succeeds.
until_true() {
    local what=$1 deadline=$((SECONDS + patience))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "$what: not within $patience s"
        sleep 0.1
    done
}

# shellcheck source=ports.sh
. "$root/ports.sh"

pid_of() {
    local pid
    read -r pid _ <"$state/node-$1/pid"
    printf '%s' "$pid"
}

runs() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    [[ ${stat%% *} != Z ]]
}
has_ended() { ! runs "$1"; }

# stop NODE SIGNAL
stop() {
    local pid
    pid=$(pid_of "$1")
    kill "-$2" "$pid"
    until_true "node $1 ends" has_ended "$pid"
}

# replace NODE PROGRAM SIGNAL: ends a node and starts it with a program, on the data that it has.
replace() {
    stop "$1" "$3"
    LANCE_BIN=$2 "$work/genCluster.sh" start >"$work/start" 2>&1 || {
        cat "$work/start" >&2
        fail "node $1 does not start with $2"
    }
    printf 'node %s: %s, ended with %s\n' "$1" "$("$2" --version)" "$3"
    progress
}

# Records that are committed, in all partitions.
committed() { "$new" topic describe upgrade -o json | grep -o '"high_watermark": [0-9]*' | awk '{ n += $2 } END { print n + 0 }'; }

more_than() { (($(committed) > $1)); }

# The load goes on, and so does the cluster.
progress() {
    local from
    from=$(committed) || from=0
    runs "$load" || fail "the load has ended"
    until_true "$between more records" more_than $((from + between))
}

# format NODE: what its data directory says.
format() { sed 's/.* //' "$state/node-$1/data/FORMAT"; }
all_have() {
    local node
    for node in 1 2 3; do [[ $(format "$node") == "$1" ]] || return 1; done
}

# refused WORDS COMMAND…: the command fails and says so in these words.
refused() {
    local words=$1 said
    shift
    if said=$("$@" 2>&1); then fail "$*: should have been refused"; fi
    [[ $said == *"$words"* ]] || fail "$*: expected \"$words\", found: $said"
}

LANCE_BASE_PORT=$(free_base_port)
export LANCE_BASE_PORT
export LANCE_ENDPOINT=127.0.0.1:$LANCE_BASE_PORT,127.0.0.1:$((LANCE_BASE_PORT + 10)),127.0.0.1:$((LANCE_BASE_PORT + 20))
LANCE_BIN=$old "$work/genCluster.sh" start >/dev/null
"$chaos" live --endpoint "$LANCE_ENDPOINT" --topic upgrade --fault none --duration 1h --rate 60000 --report-interval 0 \
    >"$work/load" 2>&1 &
load=$!
until_true "the first records" more_than 0
progress

replace 1 "$new" TERM
"$new" cluster status | grep "version lance/" || fail "the status does not tell that versions differ"
refused "upgrade all nodes first: node 2 runs lance/" "$new" cluster finalize --yes
replace 2 "$new" KILL
# Back: with what both have written meanwhile.
replace 1 "$old" TERM
replace 1 "$new" TERM
replace 3 "$new" TERM
# Back from the new version alone, even where it was killed.
replace 2 "$old" KILL
replace 2 "$new" TERM
all_have 1 || fail "a data directory was raised before the upgrade was finalized"
"$new" cluster status | grep "ends the upgrade" || fail "the status does not tell that the upgrade can end"
stop 3 TERM
refused "node 3 is not connected" "$new" cluster finalize --yes --timeout 2s
LANCE_BIN=$new "$work/genCluster.sh" start >/dev/null 2>&1
"$new" cluster finalize --yes
until_true "every data directory is raised" all_have 3
progress
stop 3 TERM
refused "says format 3" "$old" server --config "$state/node-3/lance.toml"
LANCE_BIN=$new "$work/genCluster.sh" start >/dev/null 2>&1
# What was finalized is on disk: all nodes at once.
for node in 1 2 3; do kill -KILL "$(pid_of "$node")"; done
LANCE_BIN=$new "$work/genCluster.sh" start >/dev/null 2>&1
"$new" cluster finalize --yes | grep "the cluster has format 3: there is nothing to finalize" || fail "the format was lost"
progress

kill -USR1 "$load"
code=0
wait "$load" || code=$?
load=
cat "$work/load"
((code == 0)) || fail "lnc-chaos ended with $code"
sed -n 's/^\(produced .*\|consumed .*\)$/> \1/p' "$work/load"
printf '> %s, upgraded to %s with two nodes going back, then finalized\n' "$("$old" --version)" "$("$new" --version)"
