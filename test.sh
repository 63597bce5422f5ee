#!/usr/bin/env bash
# Checks everything that can be checked on one machine with Rust and a C compiler; see "./test.sh --help".
set -uo pipefail
# A process group for each step, so that a step ends with all that it started.
set -m

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$root" || exit 1

# shellcheck source=thresholds.sh
. "$root/thresholds.sh"
# shellcheck source=evidence.sh
. "$root/evidence.sh"

usage() {
    cat <<TEXT
Usage: ./test.sh [--long] [--gates] [--fuzz[=SECONDS]] [--report] [--keep]
       ./test.sh --kubernetes

Checks format, lints and documentation, runs all tests, among them one in which disks lose power; simulates clusters
under faults, with fresh seeds, and proves that known mistakes are found there; then a cluster of three nodes of the
release build: produces a text and reads it back, undisturbed, while the leader is killed (kill -9)
and restarted, without each of the nodes, and after all nodes were killed at once; the steps of deploy/test.sh
(manifests, alerts, run books, documents, an upgrade from the previous release); last, the gates, whose thresholds
and their reasons are in gates.conf: readiness, rate and latency, faults while producers write, and the instructions that
the hot functions take. Needs bash 5, awk, coreutils, util-linux, a C compiler, and Rust with rustfmt and clippy. Uses
free ports of 127.0.0.1 and a temporary directory; leaves neither processes nor files but what is in target/: the build,
and the evidence.

Evidence: a folder named after the time of the run, with the log of every step, the JSON and HTML reports of the gates, and
an index of all of it (index.html, index.json). The newest $evidence_kept are kept.

Power is lost on file systems of its own, for which it needs root, loop devices, e2fsprogs and xfsprogs; one-way
partitions need root, iproute2 and nftables; instructions are counted by valgrind. Of these, and of
shellcheck, root installs with apt-get what is missing. Where that does not work, the step is skipped and counted as such.

  --long  five times the text, a longer bench gate, 20 times the cases of the property tests, four times as many
          losses of power, 20 minutes of simulation instead of one, each fault of the chaos gates four times; the steps of
          deploy/test.sh that build static binaries, start containers from them and install the package; and four
          gates more: how long failovers take, in the median, how long a client that asks for little waits beside those who
          take all they can get and beside those who ask for what costs most, and ten minutes at full load without a change
          of leadership
  --gates only the gates, and the builds that they need
  --fuzz  fuzz every decoder of bytes from outside as well, each for this many seconds (30); needs cargo-fuzz and a
          nightly toolchain
  --report
          append what the gates have found to docs/ops/BenchmarkChaosRunReports.md
  --keep  keep the data of the run
  --kubernetes
          instead of all that, try the promises on the example cluster in Kubernetes, which is deleted and made anew;
          see "deploy/k8s/gates.sh --help"
  --help  show this text

Environment:
  LANCE_BASE_PORT  client port of the cluster's first node, instead of a free one
  LANCE_EVIDENCE   where the folders of evidence are made (target/evidence)
  TMPDIR           where the temporary directory is made (/tmp), with the clusters' data; some GB

The last line counts the steps: "N passed, N failed", and ", N skipped" if there were any. The exit code is 0 if none
failed.
TEXT
}

if [[ ${1:-} == --kubernetes ]]; then
    shift
    exec "$root/deploy/k8s/gates.sh" "$@"
fi

# The command line's own settings must not reach the tests.
for variable in "${!LANCE_@}"; do
    [[ $variable == LANCE_BASE_PORT || $variable == LANCE_EVIDENCE ]] || unset "$variable"
done

command_line="./test.sh $*"
text_mb=20
bench_seconds=10
simulate_for=60s
chaos_times=1
long=
gates_only=
report=
fuzz_seconds=
keep=
for argument; do
    case $argument in
        --long) long=yes text_mb=100 bench_seconds=60 simulate_for=20m chaos_times=4 ;;
        --gates) gates_only=yes ;;
        --report) report=yes ;;
        --fuzz) fuzz_seconds=30 ;;
        --fuzz=*[!0-9]* | --fuzz=)
            printf 'test.sh: %s: not a number of seconds\n' "$argument" >&2
            exit 2
            ;;
        --fuzz=*) fuzz_seconds=${argument#*=} ;;
        --keep) keep=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf 'test.sh: unknown argument %s; see ./test.sh --help\n' "$argument" >&2
            exit 2
            ;;
    esac
done

# Longest time for one step, in seconds. A cold build on two slow cores stays below.
step_limit=2400

target_dir=${CARGO_TARGET_DIR:-$root/target}

passed=0 failed=0 skipped=0 steps=0
# Exit code by which a step says that it cannot run here; its last line of output is the reason.
skip_code=77
step_pid='' watchdog_pid=''
# Whether a line can be written over, and how often it is shown that a step runs, in seconds.
terminal='' pause=60
if [[ -t 1 && ${TERM:-dumb} != dumb ]]; then terminal=yes pause=1; fi
work=$(mktemp -d "${TMPDIR:-/tmp}/lance-test.XXXXXX") || exit 1

# Ends the process group of a step or of its watchdog, all of it started by this script.
end_group() {
    [[ -n $1 ]] && kill -KILL -- "-$1" 2>/dev/null
    return 0
}

cleanup() {
    local script
    trap '' INT TERM HUP
    end_group "$step_pid"
    end_group "$watchdog_pid"
    for script in "$work"/*/genCluster.sh; do
        [[ -f $script ]] && "$script" clean >/dev/null 2>&1
    done
    if [[ -n $keep ]]; then
        printf 'Kept %s\n' "$work"
    else
        rm -rf -- "$work"
    fi
}
trap 'code=$?; cleanup >&2; exit $code' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# not_run REASON NAME…: steps that something else has kept from running.
not_run() {
    local reason=$1 name
    shift
    for name; do
        printf '== NOT RUN, since %s: %s\n' "$reason" "$name"
        note skipped 0 "$name" "" "" "$reason"
    done
    skipped=$((skipped + $#))
}

# attend NAME PID LOG: shows that a step runs, since all that it says goes into its log: on a terminal in the line of its name, elsewhere
# in a line of its own. Ends it when it takes too long, or nobody waits for it any more.
attend() {
    local began=$SECONDS
    # This is in the background, which some terminals stop for what it writes.
    trap '' TTOU
    while sleep "$pause" && kill -0 $$ && ((SECONDS - began < step_limit)); do
        if [[ -n $terminal ]]; then
            printf '\r== %s  %s s' "$1" $((SECONDS - began))
        else
            printf '   has run for %s s\n' $((SECONDS - began))
        fi
    done
    printf 'more than %s s: ended\n' "$step_limit" >>"$3"
    kill -KILL -- "-$2"
}

# step NAME COMMAND…: runs the command as one step, its output in a log that is shown if it fails. Lines of the log
# that start with "> " are shown in any case. A command that is a gate puts its reports into the folder named $reports.
step() {
    local name=$1 log began=$EPOCHREALTIME code=0 took reason='' verdict
    shift
    steps=$((steps + 1))
    name_reports "$steps" "$name"
    printf '== %s' "$name"
    [[ -n $terminal ]] || printf '\n'
    (
        set -e
        "$@"
    ) >"$log" 2>&1 </dev/null &
    step_pid=$!
    attend "$name" "$step_pid" "$log" 2>/dev/null </dev/null &
    watchdog_pid=$!
    # The shell says nothing when it is ended.
    disown "$watchdog_pid"
    wait "$step_pid" || code=$?
    end_group "$watchdog_pid"
    # What a step left running, such as the producer of a failed one.
    end_group "$step_pid"
    wait 2>/dev/null
    step_pid='' watchdog_pid=''
    [[ -z $terminal ]] || printf '\r\e[K== %s\n' "$name"
    took=$(awk -v from="$began" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }')
    sed -n 's/^> /   /p' "$log"
    case $code in
        0)
            passed=$((passed + 1)) verdict=passed
            printf '   passed in %s s\n' "$took"
            ;;
        "$skip_code")
            skipped=$((skipped + 1)) verdict=skipped
            reason=$(tail -n 1 "$log")
            printf '   SKIPPED: %s\n' "$reason"
            ;;
        *)
            failed=$((failed + 1)) verdict=failed
            printf -- '-- the end of the output:\n'
            tail -n 200 "$log"
            printf -- '--\n   FAILED after %s s with exit code %s: %s\n' "$took" "$code" "$name"
            ;;
    esac
    note_step "$verdict" "$took" "$name" "$reason"
    return 0
}

skip() {
    printf '%s\n' "$*"
    exit "$skip_code"
}

# install_missing PACKAGE…: for root, with apt-get.
install_missing() {
    (($# > 0)) || return 0
    ((EUID == 0)) || skip "not installed, which needs root: $*"
    command -v apt-get || skip "not installed: $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -q update || true
    apt-get -q install -y --no-install-recommends "$@" || skip "cannot install $*"
}

# --- Sources ---------------------------------------------------------------------------------------------------------

format_of_rust() {
    cargo fmt --version || skip "rustfmt is not installed: rustup component add rustfmt"
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check
}

lints_of_scripts() {
    command -v shellcheck || install_missing shellcheck
    shellcheck -x ./*.sh .ci/run deploy/*.sh deploy/*/*.sh
}

lints_of_rust() {
    cargo clippy --version || skip "clippy is not installed: rustup component add clippy"
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo clippy -p lance --features otel --all-targets --locked -- -D warnings
}

documentation() {
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --features lance/otel --no-deps --document-private-items --locked
}

build_tests() { cargo test --workspace --no-run --locked; }

run_tests() {
    local code=0
    [[ -z $long ]] || export PROPTEST_CASES=5120
    # The message of a failed test says more than where it was called from, and there is room for it.
    export RUST_BACKTRACE=0
    cargo test --workspace --no-fail-fast --locked 2>&1 | tee "$work/tests.log" || code=$?
    # One line of numbers, and where the time went.
    awk '
        /^ +Running |^ +Doc-tests / { name = $0; sub(/ \(.*/, "", name); sub(/^ +(Running )?(unittests )?/, "", name)
            if (match($0, /deps\/[a-z_0-9]+-/)) name = name " of " substr($0, RSTART + 5, RLENGTH - 6) }
        /^test result: / { ok += $4; bad += $6; left += $8; time = $0; sub(/.*finished in /, "", time); sub(/s$/, "", time)
            if (time + 0 >= 5) slow = slow sprintf("> %6.1f s  %s\n", time, name) }
        END { printf "> %d tests passed, %d failed, %d ignored\n%s", ok, bad, left, slow }
    ' "$work/tests.log"
    # What failed, at the end, where it is seen.
    sed -n '/^failures:$/,/^test result: /p' "$work/tests.log"
    return "$code"
}

# What only programs with the feature have.
tests_of_traces() { cargo test -p lance --features otel --lib --test cluster --locked -- otel traces; }

# In a mount namespace of its own: whatever ends the test also ends its mounts, and with them its loop devices.
power_loss() {
    local home=$work/power-loss missing=() code=0
    ((EUID == 0)) || skip "mounting file systems needs root"
    command -v mkfs.ext4 || missing+=(e2fsprogs)
    command -v xfs_io || missing+=(xfsprogs)
    install_missing "${missing[@]}"
    mkdir -p "$home/mounted"
    truncate -s 16M "$home/image"
    mkfs.ext4 -q "$home/image"
    unshare --mount mount -o loop "$home/image" "$home/mounted" || skip "cannot mount a file system from a loop device"
    [[ -z $long ]] || export LANCE_TEST_FAULTS=24
    TMPDIR=$home RUST_BACKTRACE=0 unshare --mount cargo test -p lance --test cluster --locked -- \
        --ignored --nocapture --test-threads 1 power_loss:: 2>&1 | tee "$home/log" || code=$?
    sed -n 's/^.*\(backend [a-z]*, .*\)$/> \1/p; s/^\([0-9]* acknowledged .*\)$/> \1/p' "$home/log"
    return "$code"
}

# Each target from its committed seeds. What it learns is not kept; an input that finds a fault is.
fuzz_target() {
    local target=$1 options found=()
    command -v cargo-fuzz || skip "cargo-fuzz is not installed: cargo install cargo-fuzz"
    cargo +nightly --version || skip "there is no nightly toolchain: rustup toolchain install nightly"
    mkdir -p "$work/fuzz/$target"
    # A hang, a leak and an allocation without bound are faults as well.
    options=(-timeout=10 -rss_limit_mb=1024 -malloc_limit_mb=256 -max_len=16384 -print_final_stats=1)
    cargo +nightly fuzz run --target-dir "$target_dir/fuzz" "$target" "$work/fuzz/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$fuzz_seconds" "${options[@]}" 2>&1 | sed 's/^#[0-9]* *DONE /> &/' || {
        found=(fuzz/artifacts/"$target"/*)
        printf '> what found the fault is kept: %s\n' "${found[*]}"
        return 1
    }
}

fuzz_all() {
    local target
    step "seeds of the fuzz targets" cargo test -q --locked --manifest-path fuzz/Cargo.toml --target-dir "$target_dir/fuzz"
    for target in fuzz/targets/*.rs; do
        target=${target##*/}
        step "fuzzing of ${target%.rs}" fuzz_target "${target%.rs}"
    done
}

# --- The simulator ---------------------------------------------------------------------------------------------------

# With the mutations in it, of which none is made unless it is asked for.
build_simulator() { cargo build --profile simulate --locked -p lnc-chaos --features mutations; }

# simulate ARGUMENT…: what it prints is shown in short.
simulate() {
    local code=0
    "$target_dir/simulate/lnc-chaos" sim --jobs "$(nproc)" "$@" | tee "$work/simulate.log" || code=$?
    sed -n -E 's/^((seed |seeds |simulated|pace|operations) *.*)$/> \1/p' "$work/simulate.log"
    awk 'begun && NF == 2 { faults += $2; kinds++ } /^topics not judged/ { begun = 1 }
        END { printf "> %d faults of %d kinds\n", faults, kinds }' "$work/simulate.log"
    return "$code"
}

# Each must be found, and docs/TESTING.md must list it. By which rule, and after how many runs, may change with the code.
mutations() {
    local log=$work/mutations.log
    "$target_dir/simulate/lnc-chaos" mutations --jobs "$(nproc)" | tee "$log"
    sed -n 's/^\([0-9]* not found.*\)$/> \1/p' "$log"
    listed() { sed -n '/^| mutation/,/^$/p' "$1" | cut -d '|' -f 1-4; }
    diff <(listed docs/TESTING.md) <(listed "$log") || {
        printf 'docs/TESTING.md lists other mutations than these\n'
        return 1
    }
}

build_release() { cargo build --release --locked -p lance -p lnc-bench; }

# --- The cluster -----------------------------------------------------------------------------------------------------

lance=$target_dir/release/lance
bench=$target_dir/release/lnc-bench

# shellcheck source=ports.sh
. "$root/ports.sh"

# start_cluster NAME: starts three fresh nodes. genCluster.sh keeps its state beside itself, so a copy of it leaves a
# cluster alone that runs from this directory.
start_cluster() {
    local tries=1
    if [[ -n ${LANCE_BASE_PORT:-} ]]; then tries=3; fi
    cluster=$work/$1
    mkdir -p "$cluster"
    cp "$root/genCluster.sh" "$cluster/"
    export LANCE_BIN=$lance
    # Somebody else may take a port that was free a moment ago.
    for ((; tries <= 3; tries++)); do
        export LANCE_BASE_PORT=${LANCE_BASE_PORT:-$(free_base_port)}
        if "$cluster/genCluster.sh" start; then
            LANCE_ENDPOINT=$(endpoint_of 1),$(endpoint_of 2),$(endpoint_of 3)
            export LANCE_ENDPOINT
            return
        fi
        "$cluster/genCluster.sh" clean
        unset LANCE_BASE_PORT
    done
    printf 'no cluster\n'
    return 1
}

# Starts the nodes that do not run, and waits until all are ready. They must not keep this side of a producer's pipe.
restart_nodes() { "$cluster/genCluster.sh" start 7>&-; }

stop_cluster() {
    "$cluster/genCluster.sh" clean
    rm -rf -- "$cluster"
}

endpoint_of() { printf '127.0.0.1:%s' $((LANCE_BASE_PORT + 10 * ($1 - 1))); }

pid_of() {
    local pid
    read -r pid _ <"$cluster/.lance/cluster/node-$1/pid"
    printf '%s' "$pid"
}

# Whether a process runs; one that has ended and that nobody has waited for does not.
runs() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    stat=${stat##*) }
    [[ ${stat%% *} != Z ]]
}

kill_nodes() {
    local id pids=()
    for id; do pids+=("$(pid_of "$id")"); done
    kill -KILL "${pids[@]}"
    for id in "${pids[@]}"; do
        while runs "$id"; do sleep 0.02; done
    done
    printf 'killed node %s\n' "$@"
}

leader_of() {
    local leader
    leader=$("$lance" topic describe "$1" | awk -v partition="$2" 'NF == 6 && $1 == partition { print $3 }')
    [[ $leader == [123] ]] || {
        printf 'partition %s of %s has no leader\n' "$2" "$1" >&2
        return 1
    }
    printf '%s' "$leader"
}

# Lines of many lengths: numbered, so that one that is lost, doubled or out of order is seen; now and then an empty
# one, or one of 100,000 bytes.
make_text() {
    awk -v bytes=$((text_mb * 1000000)) 'BEGIN {
        for (i = 0; i < 8; i++) words = words " the quick brown fox jumps over the lazy dog, " i
        long = words
        while (length(long) < 100000) long = long long
        for (line = 1; written < bytes; line++) {
            if (line % 97 == 0) text = ""
            else if (line % 30011 == 0) text = sprintf("%09d", line) substr(long, 1, 100000)
            else text = sprintf("%09d", line) substr(words, 1, line * 31 % 173)
            print text
            written += length(text) + 1
        }
    }' >"$work/text"
    LC_ALL=C sort "$work/text" >"$work/text.sorted"
    split -n 3 -d -a 1 "$work/text" "$work/text.part-"
}

# check_topic TOPIC PARTITIONS: reads all of the topic and compares it with the text. Lines of one partition must come
# in their order; with several, so must those of each.
check_topic() {
    local topic=$1 partitions=$2 partition
    "$lance" consume "$topic" --from start --until-end >"$cluster/out"
    if ((partitions == 1)); then
        cmp "$work/text" "$cluster/out"
        return
    fi
    LC_ALL=C sort "$cluster/out" | cmp "$work/text.sorted" -
    for ((partition = 0; partition < partitions; partition++)); do
        "$lance" consume "$topic" --from start --until-end --partition "$partition" >"$cluster/out"
        grep . "$cluster/out" | LC_ALL=C sort -c
    done
}

undisturbed() {
    local partitions=$1
    start_cluster "undisturbed-$partitions"
    "$lance" topic create text --partitions "$partitions"
    "$lance" produce text --file "$work/text" 2>&1 | sed 's/^/> /'
    check_topic text "$partitions"
    stop_cluster
}

# The leader is killed a third in, with records under way, and is back two thirds in.
leader_killed() {
    local partitions=$1 producer leader node
    start_cluster "leader-killed-$partitions"
    "$lance" topic create text --partitions "$partitions"
    mkfifo "$cluster/pipe"
    "$lance" produce text <"$cluster/pipe" >"$cluster/produced" 2>&1 &
    producer=$!
    exec 7>"$cluster/pipe"
    cat "$work/text.part-0" >&7
    leader=$(leader_of text 0)
    kill_nodes "$leader"
    cat "$work/text.part-1" >&7
    restart_nodes
    cat "$work/text.part-2" >&7
    exec 7>&-
    wait "$producer" || {
        cat "$cluster/produced"
        return 1
    }
    sed 's/^/> /' "$cluster/produced"
    check_topic text "$partitions"
    # Any one node can go, and the two others have everything.
    for node in 1 2 3; do
        kill_nodes "$node"
        check_topic text "$partitions"
        restart_nodes
    done
    stop_cluster
}

# Nothing but what was acknowledged counts, so the nodes are killed when the last acknowledgement has come.
all_killed() {
    local partitions=$1
    start_cluster "all-killed-$partitions"
    "$lance" topic create text --partitions "$partitions"
    "$lance" produce text --file "$work/text"
    kill_nodes 1 2 3
    restart_nodes
    check_topic text "$partitions"
    stop_cluster
}

# Waits until each node leads what it should. A fresh cluster spreads its leaders a few seconds after its start.
leaders_spread() {
    local deadline=$((SECONDS + 30)) leads
    until leads=$("$lance" cluster status | awk '$3 == "ready" { printf "%s:%s ", $1, $4 }') &&
        [[ $leads == "1:0,3 2:1 3:2 " ]]; do
        ((SECONDS < deadline)) || {
            printf 'the leaders are not spread over the nodes: %s\n' "$leads"
            return 1
        }
        sleep 0.2
    done
}

# --- The gates -------------------------------------------------------------------------------------------------------

# What compares must be able to fail.
comparisons() {
    local bad
    printf '{\n  "counts": {\n    "gaps": 3\n  },\n  "rate": 1e5,\n  "word": "x"\n}\n' >"$work/figures.json"
    [[ $(figure "$work/figures.json" gaps) == 3 && $(figure "$work/figures.json" rate) == 1e5 ]]
    for bad in word nothing counts; do
        if figure "$work/figures.json" "$bad"; then return 1; fi
    done
    [[ $(larger "3 * 1213.5" "1000 * 2") == 3640 && $(larger "3 * 1e2" "1000 * 250") == 250000 ]]
    if at_most "" 3 "against no bound" >/dev/null; then return 1; fi
    at_most 3 3 "as much as allowed"
    at_most 10 9.5 "less than allowed"
    for bad in 4 3.1 1e5 '' x; do
        if at_most 3 "$bad" "must be missed" >/dev/null; then return 1; fi
    done
    if check_records "$work/figures.json" >/dev/null; then return 1; fi
}

milliseconds_since() { awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%d", (to - from) * 1000 }'; }

readiness() {
    local began fresh again
    mkdir "$reports"
    began=$EPOCHREALTIME
    start_cluster readiness
    fresh=$(milliseconds_since "$began")
    "$lance" topic create text --partitions 3
    kill_nodes 1 2 3
    began=$EPOCHREALTIME
    restart_nodes
    again=$(milliseconds_since "$began")
    printf '{\n  "fresh_ms": %s,\n  "again_ms": %s\n}\n' "$fresh" "$again" >"$reports/readiness.json"
    printf '> ready after %s ms; after all were killed again after %s ms\n' "$fresh" "$again"
    at_most "$ready_fresh_ms" "$fresh" "milliseconds until three fresh nodes are ready"
    at_most "$ready_again_ms" "$again" "milliseconds until all are ready after all were killed"
    stop_cluster
}

# How many changes of leadership the nodes have seen since they started, all groups together.
leader_changes() {
    local node line total=0
    for node in 1 2 3; do
        exec 3<>"/dev/tcp/127.0.0.1/$((LANCE_BASE_PORT + 10 * (node - 1) + 2))" || return 1
        printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
        while read -r line; do
            [[ $line == lance_leader_changes_total\{* ]] || continue
            line=${line##* }
            total=$((total + ${line%$'\r'}))
        done <&3
        exec 3<&- 3>&-
    done
    ((total > 0)) || {
        printf 'the nodes count no change of leadership, not even the first\n' >&2
        return 1
    }
    printf '%s' "$total"
}

# bench_gate SECONDS: the topic keeps little, so that the disk does not set the length of the run.
bench_gate() {
    local before after log code=0
    mkdir "$reports"
    start_cluster bench
    leaders_spread
    "$lance" topic create load --partitions 3 --segment-bytes 64MiB --max-bytes 256MiB
    before=$(leader_changes)
    bench_load "$bench" "$LANCE_ENDPOINT" "$cluster" "$1" "$reports" \
        --server-pid "$(pid_of 1)" --server-pid "$(pid_of 2)" --server-pid "$(pid_of 3)" || code=$?
    for log in "$cluster"/.lance/cluster/node-*/lance.log; do
        cp "$log" "$reports/$(basename "$(dirname "$log")").log"
    done
    after=$(leader_changes)
    printf '{\n  "leader_changes": %s\n}\n' $((after - before)) >"$reports/leaders.json"
    at_most "$bench_leader_changes" $((after - before)) "changes of leadership"
    ((code == 0))
    stop_cluster
}

# polite NAME: fifty records a second, and how long each takes, into $reports/NAME.json.
polite() {
    "$bench" produce --topic polite --partitions 3 --connections 3 --payload 1KiB --rate 50 --warmup 1s --duration 8s \
        --json-file "$reports/$1.json" | sed -n "s/^latency/> $1/p"
}

# The most processor time that a turn of any node's thread has taken in the last half minute or minute, and the longest turn, in microseconds.
turns() {
    local node
    for node in 1 2 3; do
        exec 3<>"/dev/tcp/127.0.0.1/$((LANCE_BASE_PORT + 10 * (node - 1) + 2))" || return 1
        printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
        tr -d '\r' <&3
        exec 3<&- 3>&-
    done | awk '
        $1 == "lance_turn_work_longest_seconds" && $2 > work { work = $2 }
        $1 == "lance_turn_longest_seconds" && $2 > longest { longest = $2 }
        END {
            if (!work || !longest) exit 1
            printf "%d %d", work * 1e6, longest * 1e6
        }'
}

# An honest client beside others who ask for as much as one may, of every kind: its waits, and the turns of the nodes.
hostile() {
    local rate bound alone spent longest pid code=0 missed=0
    mkdir "$reports"
    start_cluster hostile
    leaders_spread
    rate=$(wanted_rate "$bench" "$cluster" "$reports" 2>&1 >"$work/rate") && printf '%s\n' "$rate"
    rate=$(<"$work/rate")
    "$lance" topic create polite --partitions 3
    "$lance" topic create abuse --partitions 64 --segment-bytes 16MiB --max-bytes 32MiB
    polite alone
    alone=$(figure "$reports/alone.json" p99_us)
    bound=$(larger "$fair_times * $alone" "1000 * $(slower "$hostile_p99_ms" "$rate")")
    "$bench" abuse --connections 16 --duration 11s >"$work/abuse.txt" 7>&- &
    pid=$!
    sleep 1
    polite beside
    wait "$pid" || code=$?
    sed 's/^/> /' "$work/abuse.txt"
    read -r spent longest <<<"$(turns)"
    printf '{\n  "turn_work_longest_us": %s,\n  "turn_longest_us": %s\n}\n' "$spent" "$longest" >"$reports/turns.json"
    at_most "$bound" "$(figure "$reports/beside.json" p99_us)" "microseconds, 99 % of the honest client's waits" || missed=1
    at_most "$((hostile_work_ms * 1000))" "$spent" "microseconds of the processor, the longest turn" || missed=1
    at_most "$((hostile_turn_ms * 1000))" "$longest" "microseconds, the longest turn" || missed=1
    ((code == 0 && missed == 0))
    stop_cluster
}

# Who asks for little beside those who take all they can get.
fairness() {
    local rate alone bound load connections in_flight payload pid missed=0
    mkdir "$reports"
    start_cluster fairness
    leaders_spread
    rate=$(wanted_rate "$bench" "$cluster" "$reports" 2>&1 >"$work/rate") && printf '%s\n' "$rate"
    rate=$(<"$work/rate")
    "$lance" topic create load --partitions 3 --segment-bytes 64MiB --max-bytes 256MiB
    "$lance" topic create polite --partitions 3
    polite alone
    alone=$(figure "$reports/alone.json" p99_us)
    bound=$(larger "$fair_times * $alone" "1000 * $(slower "$fair_p99_ms" "$rate")")
    for load in 64:64:1KiB 64:8:900KiB; do
        IFS=: read -r connections in_flight payload <<<"$load"
        "$bench" produce --topic load --connections "$connections" --in-flight "$in_flight" --payload "$payload" \
            --warmup 1s --duration 11s >"$work/load.txt" 2>&1 7>&- &
        pid=$!
        sleep 1
        polite "beside-$payload"
        wait "$pid" || true
        sed -n "s/^throughput/> load $payload/p" "$work/load.txt"
        at_most "$bound" "$(figure "$reports/beside-$payload.json" p99_us)" "microseconds beside $load" || missed=1
    done
    ((missed == 0))
    stop_cluster
}

# live ARGUMENT…: faults on real processes. The nodes are those of the release; the verifier is the build of the simulator.
live() {
    local code=0
    "$target_dir/simulate/lnc-chaos" live --lance "$lance" --evidence "$reports" "$@" | tee "$work/chaos.log" || code=$?
    sed -n 's/^/> /p' "$work/chaos.log" | tail -n 40
    # The history has a line for every record.
    gzip -f "$reports/history.jsonl"
    ((code == 0))
    check_records "$reports/report.json"
}

# Every record is looked for on every replica.
chaos() {
    live --fault kill-leader,term-leader,stop-leader,kill-follower,kill-all,rolling-restart --repeat "$chaos_times" \
        --every 8 --hold 2 --max-stall "kill-leader=$chaos_kill_leader_ms" --max-stall "term-leader=$chaos_term_leader_ms" \
        --max-stall "stop-leader=$chaos_stop_leader_ms"
}

# With a network namespace for each node: a proxy in front of them, which would do without root, is not the kernel.
one_way_partition() {
    local missing=()
    ((EUID == 0)) || skip "network namespaces need root"
    command -v ip || missing+=(iproute2)
    command -v nft || missing+=(nftables)
    install_missing "${missing[@]}"
    "$target_dir/simulate/lnc-chaos" live --partition-by netns --list >"$work/faults"
    grep -q '^\* one-way-partition ' "$work/faults" || skip "network namespaces with nft rules are not possible here"
    live --fault one-way-partition --partition-by netns --repeat "$chaos_times" --every 8 --hold 3 \
        --max-stall "one-way-partition=$chaos_one_way_partition_ms"
}

# The hot functions, counted by callgrind. A file beside the program has the baselines.
instructions() {
    local missing=()
    [[ $(uname -m) == x86_64 ]] || skip "the baselines are of x86_64"
    command -v valgrind || missing+=(valgrind)
    install_missing "${missing[@]}"
    mkdir "$reports"
    cargo build --release --locked -p lance --example instructions
    "$target_dir/release/examples/instructions" --tolerance "$instructions_percent" \
        --json "$reports/instructions.json" | sed 's/^/> /'
}

# failover FAULT EVERY HOLD [BOUND]
failover() {
    live --fault "$1" --repeat "$failover_times" --every "$2" --hold "$3" ${4:+--max-stall "$1=$4"}
    at_most "$failover_errors" "$(figure "$reports/report.json" producer_errors)" "failed deliveries"
}

# What LANCE is deployed with, and what is written about it. The rest builds for minutes.
deployment=(manifests rules prometheus page kubectl ports progress runbooks documents upgrade)
[[ -z $long ]] || deployment+=(build container package)

deployed() {
    # Those that are about the static binary bring it along.
    [[ $1 == build || $1 == container || $1 == package ]] || export LANCE_BIN=$lance
    # Where clusters are looked for, and ended, whatever ends this.
    TMPDIR=$work deploy/test.sh "$1"
}

# The logs of a cluster whose step failed.
node_logs() {
    local log
    for log in "$work"/*/.lance/cluster/node-*/lance.log; do
        [[ -f $log ]] || continue
        printf -- '-- the end of %s\n' "$log"
        tail -n 15 "$log"
    done
}

# on_cluster NAME COMMAND…: a step on a cluster of its own, which is ended also if the step fails.
on_cluster() {
    local before=$failed script
    step "$@"
    ((failed > before)) || return 0
    node_logs
    for script in "$work"/*/genCluster.sh; do
        [[ -f $script ]] && "$script" stop >/dev/null 2>&1
        [[ -n $keep ]] || rm -rf -- "${script%/*}"
    done
    return 0
}

# --- All steps -------------------------------------------------------------------------------------------------------

command -v cargo >/dev/null || {
    printf 'test.sh: cargo is not installed; see https://rustup.rs\n' >&2
    exit 1
}

make_evidence "$root" "$command_line" || exit 1
if [[ -z $gates_only ]]; then
    step "format" format_of_rust
    step "lints of the scripts" lints_of_scripts
    step "lints" lints_of_rust
    step "documentation" documentation
    step "build of the tests" build_tests
    step "tests" run_tests
    step "tests of traces" tests_of_traces
    step "power loss" power_loss
fi
[[ -z $fuzz_seconds ]] || fuzz_all
simulator=yes
before=$failed
step "build of the simulator" build_simulator
((failed == before)) || simulator=
if [[ -n $gates_only ]]; then
    :
elif [[ -n $simulator ]]; then
    step "simulation of what went wrong before" simulate --regressions lnc-chaos/regressions.txt
    step "simulation with fresh seeds" simulate --for "$simulate_for"
    step "mutations that the simulator must find" mutations
else
    not_run "there is no simulator" "simulation of what went wrong before" "simulation with fresh seeds" \
        "mutations that the simulator must find"
fi

texts() {
    make_text
    on_cluster "text, 1 partition" undisturbed 1
    on_cluster "text, 3 partitions" undisturbed 3
    on_cluster "text, 1 partition, leader killed and restarted" leader_killed 1
    on_cluster "text, 3 partitions, leader killed and restarted" leader_killed 3
    on_cluster "text, 1 partition, all nodes killed and restarted" all_killed 1
    on_cluster "text, 3 partitions, all nodes killed and restarted" all_killed 3
}

deployments() {
    local name
    for name in "${deployment[@]}"; do step "deployment: $name" deployed "$name"; done
}

gates() {
    step "comparisons of the gates" comparisons
    on_cluster "gate: readiness" readiness
    on_cluster "gate: rate and latency" bench_gate "$bench_seconds"
    step "gate: instructions" instructions
    if [[ -z $simulator ]]; then
        not_run "there is no verifier" "gate: chaos" "gate: chaos, one-way partition"
        return
    fi
    step "gate: chaos" chaos
    step "gate: chaos, one-way partition" one_way_partition
    [[ -n $long ]] || return 0
    step "gate: failover, leader killed" failover kill-leader 8 1 "$failover_kill_leader_ms"
    step "gate: failover, leader stopped" failover stop-leader 8 3 "$failover_stop_leader_ms"
    step "gate: failover, leader cut off" failover partition-leader 8 3 "$failover_partition_leader_ms"
    step "gate: failover, leader terminated" failover term-leader 8 1 "$failover_term_leader_ms"
    step "gate: failover, rolling restart" failover rolling-restart 10 1
    on_cluster "gate: fairness" fairness
    on_cluster "gate: hostile load" hostile
    on_cluster "gate: saturation" bench_gate "$saturation_seconds"
}

before=$failed
step "build of the release" build_release
if ((failed == before)); then
    if [[ -z $gates_only ]]; then
        texts
        deployments
    fi
    gates
else
    not_run "there is no release" "the steps with a cluster, those of the deployment, and the gates"
fi

append=()
[[ -z $report ]] || append=(--append "$root/docs/ops/BenchmarkChaosRunReports.md")
sum_up "$bench" "${append[@]}" || failed=$((failed + 1))
printf '\n%s passed, %s failed' "$passed" "$failed"
((skipped == 0)) || printf ', %s skipped' "$skipped"
printf '\n'
((failed == 0))
