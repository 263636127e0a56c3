#!/usr/bin/env bash
# Measures varved against its peers in one run on one machine, job by job in turn, and prints the ratios beside the goals:
# nbdkit memory (what the protocol itself costs: a RAM disk, filled before it is measured) and qemu-nbd on a preallocated raw file with
# --cache=none --aio=native (the local disk itself). All listen on Unix sockets. Exits with 1 if a goal is missed.
#   benches/side_by_side.sh [OUTPUT-DIR] [JOB ...]        default output: ./suite-out/<time>
# From the environment: ROUNDS=2, SECONDS_PER_JOB=4, SIZE=2g, LOG_SIZE=4GiB, CACHE_SIZE=2GiB, MEMORY_SIZE=256MiB, TRANSFER_SIZE=256MiB. The volume has 100 GB, in
# a directory store; fio works on its first SIZE. WORK_DIR (default /var/tmp) needs about 30 GB and must not be a RAM disk. Raw
# fio output and the samples of varved's memory stay in OUTPUT-DIR.
# Nobody pays for memory or disk space that is touched for the first time: all three are written over three times before (the write log
# is then past its first lap), and the log's file is read once before each job of varve. For some virtual machines take every page of the
# page cache away that rested for seconds, and a fresh one costs them more than a whole request. nbdkit's memory cannot be taken
# away, and qemu-nbd uses none.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
shift $(($# > 0 ? 1 : 0))
rounds=${ROUNDS:-2} seconds=${SECONDS_PER_JOB:-4} size=${SIZE:-2g}
log_size=${LOG_SIZE:-4GiB} cache_size=${CACHE_SIZE:-2GiB} memory_size=${MEMORY_SIZE:-256MiB} transfer_size=${TRANSFER_SIZE:-256MiB}
jobs=("$@")
if [ ${#jobs[@]} = 0 ]; then
    jobs=(seq-write-1m-q8 seq-read-1m-q8 rand-read-4k-q32 rand-read-4k-q1 rand-write-4k-q32 rand-write-4k-q1
        rand-write-16k-q32 mixed-70r-4k-q32 sync-write-4k-q1 sync-write-4k-4jobs)
fi

begin_bench
mkdir -p "$out" "$work/store"
export VARVE_STORE="file://$work/store"
volume=$(new_volume bench 100)
start_varved "$out/varved.log" --log-size "$log_size" --cache-size "$cache_size" --memory-size "$memory_size" --transfer-size "$transfer_size"
nbdkit --foreground --unix "$work/nbdkit.sock" memory "$size" &
servers+=("$!")
fallocate -l "${size^^}" "$work/raw"
qemu-nbd --persistent --shared=8 --format=raw --cache=none --aio=native --socket="$work/qemu.sock" "$work/raw" &
servers+=("$!")
sample_memory "$varved" >"$out/memory.txt" &
servers+=("$!")
for name in varve nbdkit qemu; do
    await_socket "$work/$name.sock"
done
declare -A uri=(
    [varve]="$(nbd_uri "$volume")"
    [nbdkit]="nbd+unix:///?socket=$work/nbdkit.sock"
    [qemu]="nbd+unix:///?socket=$work/qemu.sock"
)
{
    describe_machine
    printf 'size %s, log %s, cache on disk %s, memory %s and %s, %s s a job, %s rounds\n' \
        "$size" "$log_size" "$cache_size" "$memory_size" "$transfer_size" "$seconds" "$rounds"
    nbdkit --version
    qemu-nbd --version | head -n 1
    fio --version
} >"$out/machine.txt"

# Runs one job on one server. What varve uploads behind a job is not part of it, and must not disturb the next one.
measure() {
    local label=$1 directory=$2 job=$3
    [ "$label" != varve ] || find "$work/state/volumes" -type f -exec cat {} + >/dev/null
    "$repository/benches/nbd_suite.sh" "$label" "${uri[$label]}" "$out/$directory" "$size" "$seconds" "$job"
    [ "$label" != varve ] || varve volumes sync "$volume" >/dev/null
}

order=(varve nbdkit qemu)
for label in "${order[@]}"; do
    for fill in 1 2 3; do
        measure "$label" "fill-$fill" fill
    done
done
for round in $(seq "$rounds"); do
    for job in "${jobs[@]}"; do
        say "round $round: $job"
        for label in "${order[@]}"; do
            measure "$label" "round-$round" "$job"
        done
    done
    # Everybody comes first, second and last in turn.
    order=("${order[@]:1}" "${order[0]}")
done
varve volumes show "$volume" >"$out/volume.txt"
"$repository/benches/side_by_side.py" "$out" "$memory_size" "$transfer_size" "${jobs[@]}" | tee "$out/table.txt"
