# shellcheck shell=bash
# What the bench scripts share, on top of tools/lib.sh. Source it after `set -euo pipefail`.

# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

# Processes to be ended with the script, in this order.
servers=()

# Installs and builds what is needed, and makes the directory $work, which goes with the script.
begin_bench() {
    ensure build_needs
    ensure test_needs
    ensure_rust
    build
    export PATH="$CARGO_TARGET_DIR/release:$PATH"
    work=$(mktemp -d "${WORK_DIR:-/var/tmp}/varve-bench.XXXXXX")
    trap cleanup EXIT
}

# Ends what was started and removes the directory $work.
cleanup() {
    local server
    for server in "${servers[@]}"; do
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    rm -rf "$work"
}

# Waits until a Unix socket is there.
await_socket() {
    local tries=600
    until [ -S "$1" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "nothing listens on $1"
        sleep 0.1
    done
}

# Says what was measured on what.
describe_machine() {
    date -u +%FT%TZ
    git -C "$repository" describe --always --dirty
    uname -srm
    grep -m 1 'model name' /proc/cpuinfo || true
    awk -v cores="$(nproc)" '/^MemTotal/ { printf "cores %s, memory %.0f GiB\n", cores, $2 / 1048576 }' /proc/meminfo
    df -hT "$work" | awk 'NR == 2 { print "file system " $2 }'
}

# Ends when the process $1 does; a line a second: Unix seconds, high-water mark and resident memory in KiB.
sample_memory() {
    printf 'unix_seconds high_water_kib resident_kib\n'
    while kill -0 "$1" 2>/dev/null; do
        awk -v at="$(date +%s)" '/^VmRSS|^VmHWM/ { line = line " " $2 } END { print at line }' "/proc/$1/status" 2>/dev/null || return 0
        sleep 1
    done
}
