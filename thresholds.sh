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

# wanted_rate BENCH DIRECTORY REPORTS: measures the disk with files in the directory, and prints how many records a second it is to
# be good for.
wanted_rate() {
    local calibration write rate
    "$1" limits --dir "$2" --duration 1s --file-size 256MiB --json >"$3/limits.json" || return 1
    calibration=$(figure "$3/limits.json" writer_records_per_second) || return 1
    write=$(figure "$3/limits.json" write) || return 1
    rate=$(awk -v fixed="$bench_rate" -v writers="$bench_writers" -v one="$calibration" -v write="$write" \
        -v percent="$bench_disk_percent" -v copies="$bench_disk_copies" 'function least(a, b) { return a < b ? a : b }
        BEGIN { printf "%d", least(fixed, least(writers * one, write * 1e6 * percent / 100 / copies / 1024)) }')
    printf '{\n  "calibration_records_per_second": %s,\n  "wanted_records_per_second": %s\n}\n' "$calibration" "$rate" \
        >"$3/wanted.json"
    printf '> calibration  %.0f records/s of one synchronous writer, %.0f MB/s sequentially; wanted are %s records/s\n' \
        "$calibration" "$write" "$rate" >&2
    printf '%s' "$rate"
}

# larger A B: the larger of two products, as in "3 * 1.5", as a whole number.
larger() {
    awk -v one="$1" -v other="$2" '
        function product(text, factor) { split(text, factor, / *[*] */); return factor[1] * factor[2] }
        BEGIN { one = product(one); other = product(other); printf "%d", (one > other ? one : other) }'
}

# slower MILLISECONDS RATE: as much longer as the wanted rate is lower than that of a good disk.
slower() { awk -v ms="$1" -v full="$bench_rate" -v rate="$2" 'BEGIN { printf "%d", ms * full / rate }'; }

# bench_load BENCH ENDPOINT DIRECTORY SECONDS REPORTS [ARGUMENT…]: calibrates with files in the directory, puts the load of
# the bench gate on the topic "load", and compares rate, latency and errors.
bench_load() {
    local bench=$1 endpoint=$2 directory=$3 seconds=$4 reports=$5 rate errors code=0
    shift 5
    rate=$(wanted_rate "$bench" "$directory" "$reports") || return 1
    "$bench" produce --endpoint "$endpoint" --topic load --partitions 3 --connections 16 --in-flight 64 \
        --payload 1KiB --warmup 2s --duration "${seconds}s" "$@" \
        --limits "$reports/limits.json" --html "$reports/report.html" --json-file "$reports/report.json" \
        --min-rate "$rate" --max-p50 "$(slower "$bench_p50_ms" "$rate")ms" --max-p99 "$(slower "$bench_p99_ms" "$rate")ms" \
        --max-p999 "$(slower "$bench_p999_ms" "$rate")ms" \
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
