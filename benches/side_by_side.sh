#!/usr/bin/env bash
# Measures varved against its peers in one run on one machine, job by job in turn, and prints the ratios beside the goals:
# nbdkit memory (what the protocol itself costs: a RAM disk) and qemu-nbd on a raw file with --cache=none --aio=native (the local disk).
#   benches/side_by_side.sh [OUTPUT-DIR] [JOB ...]        default output: ./suite-out/<time>
# ROUNDS=2, SECONDS_PER_JOB=6, SIZE=4g, LOG_SIZE=16GiB, MEMORY_SIZE=256MiB; WORK_DIR (default /var/tmp) needs about 40 GB and must not be
# a RAM disk. The volume has 100 GB; fio works on its first SIZE. Raw fio output and the samples of varved's memory stay in OUTPUT-DIR.
set -euo pipefail
# shellcheck source=tools/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tools/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
shift $(($# > 0 ? 1 : 0))
rounds=${ROUNDS:-2} seconds=${SECONDS_PER_JOB:-6} size=${SIZE:-4g} log_size=${LOG_SIZE:-16GiB} memory_size=${MEMORY_SIZE:-256MiB}
jobs=("$@")
if [ ${#jobs[@]} = 0 ]; then
    jobs=(seq-write-1m-q8 seq-read-1m-q8 rand-write-4k-q32 rand-read-4k-q32 rand-write-4k-q1 rand-read-4k-q1
        sync-write-4k-q1 rand-write-16k-q32 mixed-70r-4k-q32 sync-write-4k-4jobs)
fi

ensure build_needs
ensure test_needs
ensure_rust
build
export PATH="$CARGO_TARGET_DIR/release:$PATH"

work=$(mktemp -d "${WORK_DIR:-/var/tmp}/varve-bench.XXXXXX")
mkdir -p "$out"
servers=()
cleanup() {
    local server
    for server in "${servers[@]}"; do
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

# Waits until a Unix socket is there.
await() {
    local tries=600
    until [ -S "$1" ]; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || fail "nothing listens on $1"
        sleep 0.1
    done
}

mkdir "$work/store" "$work/state"
export VARVE_STORE="file://$work/store" VARVE_STATE="$work/state" VARVE_CONTROL="$work/control.sock"
volume=$(varve volumes create bench --size 100 | grep ID | awk '{ print $2 }')
varved --nbd-unix "$work/varve.sock" --log-size "$log_size" --memory-size "$memory_size" 2>"$out/varved.log" &
varved=$!
nbdkit --foreground --unix "$work/nbdkit.sock" memory "$size" &
nbdkit=$!
fallocate -l "${size^^}" "$work/raw"
qemu-nbd --persistent --shared=8 --format=raw --cache=none --aio=native --socket="$work/qemu.sock" "$work/raw" &
qemu=$!
servers=("$varved" "$nbdkit" "$qemu")
await "$work/varve.sock"
await "$work/nbdkit.sock"
await "$work/qemu.sock"

declare -A uri=(
    [varve]="nbd+unix:///$volume?socket=$work/varve.sock"
    [nbdkit]="nbd+unix:///?socket=$work/nbdkit.sock"
    [qemu]="nbd+unix:///?socket=$work/qemu.sock"
)

sample_memory() {
    while kill -0 "$varved" 2>/dev/null; do
        awk -v at="$(date +%s)" '/^VmRSS|^VmHWM/ { line = line " " $2 } END { print at line }' "/proc/$varved/status" 2>/dev/null || return 0
        sleep 1
    done
}
printf 'unix_seconds high_water_kib resident_kib\n' >"$out/memory.txt"
sample_memory >>"$out/memory.txt" &
servers+=($!)

{
    date -u +%FT%TZ
    git -C "$repository" describe --always --dirty
    uname -srm
    grep -m 1 'model name' /proc/cpuinfo || true
    printf 'cores %s, size %s, log %s, memory %s, %s s a job, %s rounds\n' "$(nproc)" "$size" "$log_size" "$memory_size" "$seconds" "$rounds"
    df -hT "$work"
    nbdkit --version
    qemu-nbd --version | head -n 1
    fio --version
} >"$out/machine.txt"

for label in varve nbdkit qemu; do
    "$repository/benches/nbd_suite.sh" "$label" "${uri[$label]}" "$out/fill" "$size" "$seconds" fill
done
for round in $(seq "$rounds"); do
    for name in "${jobs[@]}"; do
        # What varve still uploads must not disturb the peers.
        varve volumes sync "$volume" >/dev/null
        say "round $round: $name"
        for label in varve nbdkit qemu; do
            "$repository/benches/nbd_suite.sh" "$label" "${uri[$label]}" "$out/round-$round" "$size" "$seconds" "$name"
            [ "$label" != varve ] || varve volumes sync "$volume" >/dev/null
        done
    done
done
"$repository/benches/side_by_side.py" "$out" "$memory_size" "${jobs[@]}" | tee "$out/table.txt"
