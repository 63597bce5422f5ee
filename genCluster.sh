#!/usr/bin/env bash
# Builds LANCE and runs a cluster of three nodes in the background on this machine; see "./genCluster.sh help".
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
state=$root/.lance/cluster
nodes=(1 2 3)
base_port=${LANCE_BASE_PORT:-1992}
ready_seconds=60
stop_seconds=20

usage() {
    cat <<TEXT
Usage: ./genCluster.sh [start|status|stop|clean|help]
       ./genCluster.sh --kubernetes

  start    build a release and start three nodes; the default. Nodes that run already are left alone
  status   show the nodes, their roles and how to use them
  stop     stop the nodes; their data stays
  clean    stop the nodes and delete their data, logs and configurations
  help     show this text

  --kubernetes  delete and recreate the example cluster in Kubernetes instead, and wait until it is ready; see
                "deploy/k8s/cluster.sh help"

Node i listens on 127.0.0.1: clients on $base_port + 10 x (i - 1), peers on the next port, HTTP on the one after.
Everything lives in $state.

Environment:
  LANCE_BIN        a lance binary to run instead of building one
  LANCE_BASE_PORT  client port of the first node, when the nodes are started (those of the last start, or 1992)
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'genCluster.sh: %s\n' "$*" >&2
    exit 1
}

# Client port of the first node when the nodes were started last; nothing if they never were.
last_base_port() {
    sed -n '/^\[listen\]$/,/^$/s/^client = "127\.0\.0\.1:\([0-9]*\)"$/\1/p' "$(node_dir 1)/lance.toml" 2>/dev/null || true
}

client_port() { printf '%s' $((base_port + 10 * ($1 - 1))); }
http_port() { printf '%s' $((base_port + 10 * ($1 - 1) + 2)); }
node_dir() { printf '%s' "$state/node-$1"; }

endpoints() {
    local id list=()
    for id in "${nodes[@]}"; do list+=("127.0.0.1:$(client_port "$id")"); done
    (
        IFS=,
        printf '%s' "${list[*]}"
    )
}

# Of the nodes that run: at the ports of others may be somebody else.
running_endpoints() {
    local id found=
    for id in "${nodes[@]}"; do
        if running_pid "$id" >/dev/null; then found+=,127.0.0.1:$(client_port "$id"); fi
    done
    printf '%s' "${found#,}"
}

# When the process started, in clock ticks since boot: with the pid it names one process for good.
start_time() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The command name in parentheses may hold blanks; the start time is the 20th field after it.
    read -r -a fields <<<"${stat##*) }"
    # A zombie has ended.
    [[ ${fields[0]} != Z ]] || return 1
    printf '%s' "${fields[19]}"
}

# Prints the pid of a node that this script started and that still runs.
running_pid() {
    local pid started
    [[ -f $(node_dir "$1")/pid ]] || return 1
    read -r pid started <"$(node_dir "$1")/pid" || return 1
    [[ $(start_time "$pid") == "$started" ]] || return 1
    printf '%s' "$pid"
}

# The inode of the socket that listens on a port of 127.0.0.1, be it for that address or for all; fails if none does.
listening_socket() {
    cat /proc/net/tcp* | awk -v port="$(printf '%04X' "$1")" '
        # State 0A listens. All zeros is any address; of IPv6, an address of IPv4 is in the last four bytes.
        $4 == "0A" && $2 ~ "^0*(FFFF0000)?(0100007F)?:" port "$" { inode = $10 }
        END { if (inode == "") exit 1; print inode }'
}

# holds_socket PID INODE: whether a process has a socket open.
holds_socket() { [[ -n $(find "/proc/$1/fd" -lname "socket:\\[$2\\]" -print -quit 2>/dev/null) ]]; }

# Names the process that listens on a port.
listener() {
    local inode file pid
    if inode=$(listening_socket "$1"); then
        for file in /proc/[0-9]*; do
            pid=${file#/proc/}
            if holds_socket "$pid" "$inode"; then
                printf 'process %s (%s)' "$pid" "$(cat "/proc/$pid/comm" 2>/dev/null)"
                return
            fi
        done
    fi
    printf 'a process that this user may not see'
}

# Ends the script, before anything is started, if somebody has a port of a node that does not run.
check_ports() {
    local id port taken=
    for id in "${nodes[@]}"; do
        ! running_pid "$id" >/dev/null || continue
        for ((port = $(client_port "$id"); port <= $(http_port "$id"); port++)); do
            (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue
            taken+=$(printf '\n  port %s, for node %s: %s' "$port" "$id" "$(listener "$port")")
        done
    done
    [[ -z $taken ]] || die "somebody listens on ports that this cluster needs:$taken
Stop what listens there, or choose other ports: LANCE_BASE_PORT=PORT ./genCluster.sh"
}

write_config() {
    local id=$1 other port
    port=$(client_port "$id")
    {
        printf '[node]\nid = %s\ndata_dir = "%s"\n\n' "$id" "$(node_dir "$id")/data"
        printf '[listen]\nclient = "127.0.0.1:%s"\npeer = "127.0.0.1:%s"\nhttp = "127.0.0.1:%s"\n' \
            "$port" $((port + 1)) $((port + 2))
        for other in "${nodes[@]}"; do
            port=$(client_port "$other")
            printf '\n[[cluster.nodes]]\nid = %s\n' "$other"
            printf 'client = "127.0.0.1:%s"\npeer = "127.0.0.1:%s"\nhttp = "127.0.0.1:%s"\n' \
                "$port" $((port + 1)) $((port + 2))
        done
    } >"$(node_dir "$id")/lance.toml"
}

binary() {
    printf '%s' "${LANCE_BIN:-${CARGO_TARGET_DIR:-$root/target}/release/lance}"
}

build() {
    if [[ -n ${LANCE_BIN:-} ]]; then
        [[ -x $LANCE_BIN ]] || die "LANCE_BIN=$LANCE_BIN is not a program"
        return
    fi
    command -v cargo >/dev/null || die "cargo is not installed; see https://rustup.rs, or set LANCE_BIN"
    say "Building a release; the first time takes some minutes ..."
    (cd "$root" && cargo build --release -p lance)
}

start_node() {
    local id=$1 dir pid started
    dir=$(node_dir "$id")
    mkdir -p "$dir"
    write_config "$id"
    # Descriptor 9 is the lock of this script, which a node must not keep.
    setsid "$(binary)" server --config "$dir/lance.toml" </dev/null >>"$dir/lance.log" 2>&1 9>&- &
    pid=$!
    # Without a start time the process has ended already, which the wait for readiness reports.
    started=$(start_time "$pid") || started=ended
    printf '%s %s\n' "$pid" "$started" >"$dir/pid"
}

# Whether a node says that it can serve clients. Somebody else's answer on its port is not taken for its own.
is_ready() {
    local line pid inode
    pid=$(running_pid "$1") && inode=$(listening_socket "$(http_port "$1")") && holds_socket "$pid" "$inode" || return 1
    (
        exec 3<>"/dev/tcp/127.0.0.1/$(http_port "$1")"
        printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
        read -r -t 2 line <&3
        [[ $line == "HTTP/1.1 200"* ]]
    ) 2>/dev/null
}

# Ends the script with the last words of a node.
give_up() {
    local log
    log=$(node_dir "$1")/lance.log
    tail -n 5 "$log" >&2 || true
    die "node $1 $2; the lines above are the end of $log"
}

wait_ready() {
    local id other deadline=$((SECONDS + ready_seconds))
    for id in "${nodes[@]}"; do
        until is_ready "$id"; do
            # A node that is not there keeps the others from forming the cluster: it is the one to tell of.
            for other in "${nodes[@]}"; do
                running_pid "$other" >/dev/null || give_up "$other" "has stopped"
            done
            ((SECONDS < deadline)) || give_up "$id" "is not ready after $ready_seconds s"
            sleep 0.1
        done
    done
}

show() {
    local id pid port
    printf '\n%-6s%-10s%-17s%-17s%-17s%s\n' NODE PID CLIENTS PEERS HTTP LOG
    for id in "${nodes[@]}"; do
        pid=$(running_pid "$id") || pid=stopped
        port=$(client_port "$id")
        printf '%-6s%-10s%-17s%-17s%-17s%s\n' "$id" "$pid" "127.0.0.1:$port" "127.0.0.1:$((port + 1))" \
            "127.0.0.1:$((port + 2))" "$(node_dir "$id")/lance.log"
    done
    say
    # A degraded cluster is shown too; its exit code is not that of this script.
    "$(binary)" cluster status --endpoint "$(running_endpoints)" || true
}

hints() {
    cat <<TEXT

Use it:
  export PATH=$(dirname -- "$(binary)"):\$PATH LANCE_ENDPOINT=$(endpoints)
  lance topic create hello --partitions 3
  printf 'one\ntwo\n' | lance produce hello
  lance consume hello --until-end

Stop it:                ./genCluster.sh stop
Stop it, delete data:   ./genCluster.sh clean
TEXT
}

count_running() {
    local id count=0
    for id in "${nodes[@]}"; do
        if running_pid "$id" >/dev/null; then count=$((count + 1)); fi
    done
    printf '%s' "$count"
}

start() {
    local id
    if (($(count_running) == ${#nodes[@]})); then
        say "The cluster runs already."
    else
        check_ports
        build
        for id in "${nodes[@]}"; do
            running_pid "$id" >/dev/null || start_node "$id"
        done
    fi
    wait_ready
    show
    hints
}

status() {
    if (($(count_running) == 0)); then
        say "The cluster does not run; ./genCluster.sh starts it."
        return 1
    fi
    show
    hints
}

stop() {
    local id pid deadline=$((SECONDS + stop_seconds))
    if (($(count_running) == 0)); then
        say "The cluster does not run."
        return
    fi
    for id in "${nodes[@]}"; do
        if pid=$(running_pid "$id"); then kill -TERM "$pid" 2>/dev/null || true; fi
    done
    for id in "${nodes[@]}"; do
        while pid=$(running_pid "$id"); do
            if ((SECONDS >= deadline)); then
                say "Node $id does not stop; killing it."
                kill -KILL "$pid" 2>/dev/null || true
            fi
            sleep 0.1
        done
        rm -f "$(node_dir "$id")/pid"
    done
    say "The cluster has stopped; its data is in $state."
}

clean() {
    stop
    rm -rf -- "$state"
    say "Deleted $state."
}

command=${1:-start}
(($# <= 1)) || die "one command at a time; see ./genCluster.sh help"
case $command in
    --kubernetes) exec "$root/deploy/k8s/cluster.sh" recreate ;;
    help | -h | --help)
        usage
        exit 0
        ;;
    start | status | stop | clean) ;;
    *) die "unknown command $command; see ./genCluster.sh help" ;;
esac
last=$(last_base_port)
if [[ -n $last ]] && { [[ -z ${LANCE_BASE_PORT:-} ]] || (($(count_running) > 0)); }; then base_port=$last; fi
if [[ $command == start && $base_port != "${LANCE_BASE_PORT:-$base_port}" ]]; then
    die "the cluster runs, with ports from $base_port on; to have it at LANCE_BASE_PORT=$LANCE_BASE_PORT, stop it first"
fi
if ! [[ $base_port =~ ^[1-9][0-9]{0,4}$ ]] || ((base_port > 65513)); then
    die "LANCE_BASE_PORT=$base_port does not leave room for the ports of three nodes"
fi
[[ $root != *[\"\\]* ]] || die "the path $root holds a quote or a backslash, which this script does not write into TOML"
mkdir -p "$root/.lance"
exec 9>"$root/.lance/cluster.lock"
flock -n 9 || die "another ./genCluster.sh is at work"
"$command"
