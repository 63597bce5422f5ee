# Free ports for a cluster on this machine. Read as bash by test.sh and deploy/tests/upgrade.sh.
# shellcheck shell=bash

# A port from which a cluster's nine ports are free, below those that the system gives to outgoing connections.
free_base_port() {
    local base node port
    while :; do
        base=$((10000 + RANDOM % 1900 * 10))
        for node in 0 1 2; do
            for port in $((base + 10 * node)) $((base + 10 * node + 1)) $((base + 10 * node + 2)); do
                if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then continue 3; fi
            done
        done
        printf '%s' "$base"
        return
    done
}
