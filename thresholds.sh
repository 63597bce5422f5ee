# shellcheck shell=bash
# Compares what the gates measure with gates.conf; test.sh and deploy/k8s/gates.sh read this file as bash.

# shellcheck source=gates.conf
. "${BASH_SOURCE[0]%/*}/gates.conf"

# figure FILE NAME: the first number of this name in a JSON file that has one name in each line.
figure() {
    local value
    value=$(awk -F ': ' -v name="\"$2\"" '{ gsub(/^ +/, "", $1) } $1 == name { sub(/,$/, "", $2); print $2; exit }' "$1")
    [[ $value =~ ^[0-9]+(\.[0-9]+)?(e[0-9]+)?$ ]] || {
        printf '%s has no figure %s\n' "$1" "$2" >&2
        return 1
    }
    printf '%s' "$value"
}

# at_most BOUND VALUE WHAT
at_most() {
    # What is no number would be compared as text.
    [[ $2 =~ ^[0-9]+(\.[0-9]+)?(e[0-9]+)?$ ]] || {
        printf '> MISSED: %s: no figure\n' "$3"
        return 1
    }
    awk -v bound="$1" -v value="$2" 'BEGIN { exit !(value <= bound) }' || {
        printf '> MISSED: %s: %s, at most %s allowed\n' "$3" "$2" "$1"
        return 1
    }
}

# bench_load BENCH ENDPOINT DIRECTORY SECONDS REPORTS [ARGUMENT…]: calibrates with files in the directory, puts the load of
# the bench gate on the topic "load", and compares rate, latency and errors.
bench_load() {
    local bench=$1 endpoint=$2 directory=$3 seconds=$4 reports=$5 calibration write rate errors code=0
    shift 5
    "$bench" limits --dir "$directory" --duration 1s --file-size 256MiB --json >"$reports/limits.json" || return 1
    calibration=$(figure "$reports/limits.json" writer_records_per_second) || return 1
    write=$(figure "$reports/limits.json" write) || return 1
    rate=$(awk -v fixed="$bench_rate" -v writers="$bench_writers" -v one="$calibration" -v write="$write" \
        -v percent="$bench_disk_percent" -v copies="$bench_disk_copies" 'function least(a, b) { return a < b ? a : b }
        BEGIN { printf "%d", least(fixed, least(writers * one, write * 1e6 * percent / 100 / copies / 1024)) }')
    printf '{\n  "calibration_records_per_second": %s,\n  "wanted_records_per_second": %s\n}\n' "$calibration" "$rate" \
        >"$reports/wanted.json"
    printf '> calibration  %.0f records/s of one synchronous writer, %.0f MB/s sequentially; wanted are %s records/s\n' \
        "$calibration" "$write" "$rate"
    # bench_ms MILLISECONDS: as much longer as the wanted rate is lower.
    bench_ms() { awk -v ms="$1" -v full="$bench_rate" -v rate="$rate" 'BEGIN { printf "%dms", ms * full / rate }'; }
    "$bench" produce --endpoint "$endpoint" --topic load --partitions 3 --connections 16 --in-flight 64 \
        --payload 1KiB --warmup 2s --duration "${seconds}s" "$@" \
        --limits "$reports/limits.json" --html "$reports/report.html" --json-file "$reports/report.json" \
        --min-rate "$rate" --max-p50 "$(bench_ms "$bench_p50_ms")" --max-p99 "$(bench_ms "$bench_p99_ms")" \
        --max-p999 "$(bench_ms "$bench_p999_ms")" \
        >"$reports/report.txt" 2>"$reports/missed.txt" || code=$?
    sed 's/^/> /' "$reports/report.txt"
    sed 's/^/> MISSED: /' "$reports/missed.txt"
    errors=$(awk '$1 == "errors" && $2 != "none" { sum += $2 } END { print sum + 0 }' "$reports/report.txt")
    at_most "$bench_errors" "$errors" "failed requests" || return 1
    return "$code"
}

# check_records REPORT: what lnc-chaos has found, whatever its own verdict.
check_records() {
    at_most "$chaos_gaps" "$(figure "$1" gaps)" "records missing" &&
        at_most "$chaos_duplicates" "$(figure "$1" duplicates)" "records twice" &&
        at_most "$chaos_out_of_order" "$(figure "$1" out_of_order)" "records out of order"
}
