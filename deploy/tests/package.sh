#!/usr/bin/env bash
# Installs the Debian package into a fresh Debian, starts that with its own systemd in a container, and tries the service:
# that it starts when it can serve, and not before; works; restarts and stops; as whom, and with which rights.
# Usage: deploy/tests/package.sh PACKAGE.deb DIRECTORY; a Debian is kept in DIRECTORY for the next run. Needs root,
# debootstrap and systemd-nspawn.
set -euo pipefail

package=$1 kept=$(realpath --canonicalize-missing -- "$2")
work=$(mktemp -d "${TMPDIR:-/tmp}/lance-package.XXXXXX")
trap 'rm -rf -- "$work"' EXIT

if [[ ! -e $kept/complete ]]; then
    rm -rf -- "$kept"
    mkdir -p "$kept"
    debootstrap --variant=minbase --include=systemd,systemd-sysv,man-db bookworm "$kept/root" >"$work/log" 2>&1 || {
        printf 'debootstrap cannot make a Debian here: %s\n' "$(tail -n 1 "$work/log")"
        exit 77
    }
    touch "$kept/complete"
fi
root=$work/root
cp -a "$kept/root" "$root"
cp "$package" "$root/root/lance.deb"

chroot "$root" dpkg --install /root/lance.deb
chroot "$root" systemd-analyze verify /usr/lib/systemd/system/lance.service
exposure=$(chroot "$root" systemd-analyze security --offline=true lance.service | sed -n 's/.*exposure level.*: \([0-9.]*\) .*/\1/p')
awk -v level="$exposure" 'BEGIN { exit !(level != "" && level < 2) }' || {
    printf 'systemd finds the service exposed: %s\n' "$exposure"
    exit 1
}
for file in /usr/share/man/man1/lance-server.1.gz /usr/share/bash-completion/completions/lance /etc/lance/lance.toml; do
    [[ -s $root$file ]] || {
        printf 'the package has no %s\n' "$file"
        exit 1
    }
done

# What is tried inside, as the last unit of the start. Its output tells whether all of it was done.
cat >"$root/root/try" <<'SCRIPT'
#!/bin/bash
set -eu
# state WHAT: a property of the service.
state() { systemctl show lance --property "$1" --value; }
trap 'systemctl --no-block poweroff' EXIT
lance config check /etc/lance/lance.toml
[[ $(state ActiveState) == inactive ]]
systemctl start lance
[[ "$(state ActiveState) $(state SubState) $(state StatusText)" == "active running ready" ]]
# "Started" was said after the node could serve: nothing has to be waited for.
lance topic create words
printf 'one\ntwo\nthree\n' | lance produce words --quiet
[[ $(lance consume words --until-end | tr '\n' ' ') == "one two three " ]]
pid=$(state MainPID)
grep -q "^Uid:.$(id -u lance).$(id -u lance)" "/proc/$pid/status"
grep -q '^CapBnd:.0000000000000000$' "/proc/$pid/status"
grep -q '^NoNewPrivs:.1$' "/proc/$pid/status"
grep -q '^Max open files  *1048576 ' "/proc/$pid/limits" || echo "note: $(grep '^Max open' "/proc/$pid/limits")"
[[ $(stat -c '%U %a' /var/lib/lance) == "lance 700" ]]
# A node that dies is started again.
kill -KILL "$pid"
until [[ $(state ActiveState) == active && $(state MainPID) != "$pid" ]]; do sleep 0.2; done
[[ $(lance consume words --until-end | wc -l) == 3 ]]
systemctl restart lance
[[ $(lance consume words --until-end | wc -l) == 3 ]]
systemctl stop lance
[[ "$(state ActiveState) $(state Result)" == "inactive success" ]]
# A cluster whose other nodes are not there yet: starting, and it says what it waits for.
node='client = "127.0.0.1:%s2", peer = "127.0.0.1:%s3", http = "127.0.0.1:%s4" }'
printf "LANCE_NODE__DATA_DIR=/var/lib/lance/other\nLANCE_CLUSTER__NODES='[{ id = 1, $node, { id = 2, $node]'\n" \
    199 199 199 299 299 299 >/etc/default/lance
systemctl --no-block start lance
until [[ $(state StatusText) == "waiting for nodes 2 to form the cluster" ]]; do sleep 0.2; done
[[ $(state ActiveState) == activating ]]
systemctl stop lance
# A configuration that does not hold is not tried for ever.
echo LANCE_NODE__ID=none >/etc/default/lance
! systemctl start lance
[[ "$(state ActiveState) $(state ExecMainStatus)" == "failed 2" ]]
rm /etc/default/lance
systemctl reset-failed lance
dpkg --purge lance
[[ -d /var/lib/lance && ! -e /etc/lance/lance.toml ]]
echo "all tried"
SCRIPT
chmod +x "$root/root/try"
cat >"$root/etc/systemd/system/try.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash -x /root/try
StandardOutput=file:/root/output
StandardError=append:/root/trace
UNIT
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s ../try.service "$root/etc/systemd/system/multi-user.target.wants/"
code=0
timeout --kill-after=10 120 systemd-nspawn --quiet --directory="$root" --register=no --keep-unit --private-network \
    --console=pipe --boot </dev/null >"$work/boot" 2>&1 || code=$?
if [[ ! -e $root/root/output ]]; then
    printf 'the package was installed, its unit verified, its exposure is %s; the service could not be tried, since systemd does not start in a container here (%s): %s\n' \
        "$exposure" "$code" "$(tail -n 1 "$work/boot")"
    exit 77
fi
cat "$root/root/output"
grep -q '^all tried$' "$root/root/output" || {
    tail -n 20 "$root/root/trace"
    exit 1
}
printf '> the service of the package was started, used, killed, restarted and stopped; exposure %s of 10\n' "$exposure"
