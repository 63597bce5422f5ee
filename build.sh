#!/usr/bin/env bash
# Builds what LANCE is shipped as: static binaries, a root file system, a Debian package, an image; see "./build.sh --help".
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$root"

usage() {
    cat <<TEXT
Usage: ./build.sh [--engine docker|podman|none] [--name NAME] [--platform LIST] [--push]

Builds into target/dist:
  bin/                      static release binaries: lance, lnc-bench
  man/, completions/        manual pages; completions for bash, zsh and fish
  rootfs/, *.rootfs.tar.gz  the root file system of the image, to be unpacked and run anywhere
  *.deb                     a Debian package, if cargo-deb is installed (cargo install cargo-deb)
  SHA256SUMS                checksums of the archives
and, where a container engine answers, the image NAME:VERSION-COMMIT, also tagged NAME:VERSION.

  --engine ENGINE  the engine, instead of the first that answers; "none" builds no image
  --name NAME      name of the image, with the registry if it is to be pushed (lance)
  --platform LIST  such as linux/amd64,linux/arm64: each is compiled inside the engine, which may emulate it
  --push           push the image; it must have been named with --name
  --help           show this text

Needs Rust and a C compiler. With --engine, or with --push or --platform, an engine that does not answer is an error;
otherwise its absence is said, and the rest is built.
TEXT
}

say() { printf '%s\n' "$*"; }
die() {
    printf 'build.sh: %s\n' "$*" >&2
    exit 1
}

engine='' name=lance platform='' push=
while (($#)); do
    case $1 in
        --engine | --name | --platform)
            (($# > 1)) || die "$1 needs a value; see ./build.sh --help"
            case $1 in
                --engine) engine=$2 ;;
                --name) name=$2 ;;
                --platform) platform=$2 ;;
            esac
            shift
            ;;
        --push) push=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            printf 'build.sh: unknown argument %s; see ./build.sh --help\n' "$1" >&2
            exit 2
            ;;
    esac
    shift
done
case $engine in
    '' | docker | podman | none) ;;
    *) die "--engine $engine: must be docker, podman or none" ;;
esac
if [[ -n $push && $name != */* ]]; then die "--push needs a --name with a registry, such as registry.example/lance"; fi
if [[ $engine == none && -n $push$platform ]]; then die "--push and --platform need an engine"; fi
command -v cargo >/dev/null || die "cargo is not installed; see https://rustup.rs"

target_dir=${CARGO_TARGET_DIR:-$root/target}
dist=$root/target/dist
target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
[[ -n $version ]] || die "Cargo.toml has no version under [workspace.package]"
# A source archive has no commit.
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || printf 'nogit')
if [[ $commit != nogit && -n $(git status --porcelain --untracked-files=no) ]]; then commit+=-dirty; fi
# Times in archives are the commit's, so that the same sources give the same bytes.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || printf 0)}

binaries() {
    local binary
    say "Building static binaries of $version ($commit) for $target"
    # With a target, the flags do not reach build scripts and macros, which must stay dynamic.
    RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
        cargo build --release --locked --target "$target" -p lance -p lnc-bench --features lance/otel
    rm -rf -- "$dist"
    mkdir -p "$dist"/{bin,man,completions}
    for binary in lance lnc-bench; do
        install -m 755 "$target_dir/$target/release/$binary" "$dist/bin/"
        # A program that asks for an interpreter needs a C library beside it.
        if LC_ALL=C grep -qa '/lib64/ld-linux\|/lib/ld-linux' "$dist/bin/$binary"; then die "$binary is not static"; fi
    done
    for binary in lance lnc-bench; do "$dist/bin/$binary" man "$dist/man"; done
    "$dist/bin/lance" completions bash >"$dist/completions/lance.bash"
    "$dist/bin/lance" completions zsh >"$dist/completions/_lance"
    "$dist/bin/lance" completions fish >"$dist/completions/lance.fish"
}

# The root file system: the binary, its configuration, and the few files by which a C library finds names.
root_file_system() {
    local archive=$dist/lance-$version-$commit-${target%%-*}.rootfs.tar
    local -a how=(--sort=name --mtime="@$epoch" --numeric-owner --format=posix
        '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime')
    mkdir -p "$dist/rootfs"/{etc/lance,usr/bin,var/lib/lance,proc,dev,sys,tmp}
    install -m 755 "$dist/bin/lance" "$dist/rootfs/usr/bin/"
    install -m 644 deploy/docker/lance.toml "$dist/rootfs/etc/lance/"
    printf 'root:x:0:0::/:/nonexistent\nlance:x:65532:65532::/var/lib/lance:/nonexistent\n' >"$dist/rootfs/etc/passwd"
    printf 'root:x:0:\nlance:x:65532:\n' >"$dist/rootfs/etc/group"
    printf 'hosts: files dns\n' >"$dist/rootfs/etc/nsswitch.conf"
    chmod 1777 "$dist/rootfs/tmp"
    chmod 700 "$dist/rootfs/var/lib/lance"
    tar -C "$dist/rootfs" "${how[@]}" --owner=0 --group=0 --exclude=./var/lib/lance -cf "$archive" .
    tar -C "$dist/rootfs" "${how[@]}" --owner=65532 --group=65532 -rf "$archive" ./var/lib/lance
    gzip -9 --no-name "$archive"
    say "Built ${archive#"$root"/}.gz"
}

debian_package() {
    if ! command -v cargo-deb >/dev/null; then
        say "NOT BUILT: the Debian package, since cargo-deb is not installed (cargo install cargo-deb)"
        return
    fi
    SOURCE_DATE_EPOCH=$epoch cargo deb --quiet --locked --no-build --no-strip --target "$target" -p lance --output "$dist/" >/dev/null
    say "Built the Debian package in target/dist"
}

# answers ENGINE: whether its command is installed and reaches an engine.
answers() { command -v "$1" >/dev/null && timeout 20 "$1" info >/dev/null 2>&1; }

choose_engine() {
    local candidate
    [[ $engine != none ]] || return 0
    for candidate in ${engine:-docker podman}; do
        if answers "$candidate"; then
            engine=$candidate
            return
        fi
    done
    [[ -z $engine$push$platform ]] || die "${engine:-docker, or podman,} does not answer: no image was built"
    engine=none
    say "NOT BUILT: the image, since neither docker nor podman answers; the root file system is what it would hold"
}

image() {
    local full=$name:$version-$commit
    local -a tags=(--tag "$full" --tag "$name:$version")
    local -a build=(--file deploy/docker/Dockerfile --build-arg "VERSION=$version" --build-arg "REVISION=$commit")
    if [[ -z $platform ]]; then
        "$engine" build "${build[@]}" --build-arg SOURCE=prebuilt "${tags[@]}" .
        [[ -z $push ]] || for tag in "$full" "$name:$version"; do "$engine" push "$tag"; done
    elif [[ $engine == docker ]]; then
        # Without a push, several platforms stay in the builder's cache: a local store holds one.
        docker buildx build "${build[@]}" --platform "$platform" "${tags[@]}" ${push:+--push} .
    else
        podman build "${build[@]}" --platform "$platform" --manifest "$full" .
        [[ -z $push ]] || for tag in "$full" "$name:$version"; do
            podman manifest push --all "$full" "docker://$tag"
        done
    fi
    say "Built the image $full with $engine"
}

binaries
root_file_system
debian_package
sums=$(cd "$dist" && find . -maxdepth 1 -type f -printf '%P\0' | sort -z | xargs -0 sha256sum)
printf '%s\n' "$sums" >"$dist/SHA256SUMS"
choose_engine
if [[ $engine != none ]]; then image; fi
say "Everything is in target/dist"
