# shellcheck shell=bash
# The folder in which a run of the checks keeps what it has found; test.sh and deploy/k8s/gates.sh read this file as bash.
# "lnc-bench evidence" makes its index.
#
#   environment.tsv  names and values
#   gates.conf       the thresholds, as they were
#   steps.tsv        verdict, seconds, name, log, folder of reports, and why it was skipped; a line for each step
#   logs/, NN-NAME/  the log of each step, and what gates have written

# The newest folders that are kept.
evidence_kept=10

# make_evidence ROOT COMMAND: makes the folder, and names it in $evidence.
make_evidence() {
    local root=$1 command=$2 home folders
    home=${LANCE_EVIDENCE:-${CARGO_TARGET_DIR:-$root/target}/evidence}
    mkdir -p "$home" || return 1
    home=$(cd -- "$home" && pwd) || return 1
    evidence=$home/$(date -u +%Y-%m-%dT%H-%M-%SZ)
    mkdir "$evidence" "$evidence/logs" || return 1
    # Nothing but what this has made is deleted.
    folders=("$home"/[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]-[0-9][0-9]-[0-9][0-9]Z)
    while ((${#folders[@]} > evidence_kept)); do
        rm -rf -- "${folders[0]}"
        folders=("${folders[@]:1}")
    done
    cp "$root/gates.conf" "$evidence/"
    {
        printf 'command\t%s\n' "$command"
        printf 'commit\t%s\n' "$(git -C "$root" describe --always --dirty --abbrev=12 2>/dev/null || printf 'no repository')"
        printf 'kernel\t%s\n' "$(uname -sr)"
        printf 'processor\t%s, %s cores\n' "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)"
        printf 'memory\t%s\n' "$(awk '/^MemTotal/ { printf "%.1f GiB", $2 / 1048576 }' /proc/meminfo)"
        printf 'file system\t%s\n' "$(findmnt --noheadings --output FSTYPE --target "${TMPDIR:-/tmp}")"
        printf 'compiler\t%s\n' "$(rustc --version 2>/dev/null || printf none)"
    } >"$evidence/environment.tsv"
}

# name_reports NUMBER STEP: names the step's log in $log, and the folder for its reports, which is not made, in $reports.
name_reports() {
    local name
    name=$(printf '%02d-%s' "$1" "${2//[^a-zA-Z0-9]/-}")
    name=${name//--/-}
    log=$evidence/logs/$name.log
    reports=$evidence/$name
}

# note VERDICT SECONDS STEP [LOG [FOLDER [REASON]]]
note() { printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-}" "${5:-}" "${6:-}" >>"$evidence/steps.tsv"; }

# note_step VERDICT SECONDS STEP [REASON]: the same, with $log and $reports.
note_step() {
    local folder=
    [[ ! -d $reports ]] || folder=${reports##*/}
    note "$1" "$2" "$3" "logs/${log##*/}" "$folder" "${4:-}"
}

# sum_up BENCH [ARGUMENT…]: has lnc-bench make the index.
sum_up() {
    local bench=$1
    shift
    if [[ ! -x $bench ]]; then
        printf '\nEvidence: %s, without an index, since there is no lnc-bench\n' "$evidence"
        return
    fi
    "$bench" evidence "$evidence" "$@" || {
        printf -- '-- FAILED: the index of %s\n' "$evidence"
        return 1
    }
    printf '\nEvidence: %s\n' "$evidence/index.html"
}
