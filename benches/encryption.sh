#!/usr/bin/env bash
# Measures what encryption costs: the same jobs on an encrypted volume and on a plain one of the same daemon, in turn, and the ratio of their medians.
# The goal is at least 0.9 in every row.
#   benches/encryption.sh [OUTPUT-DIR]                 default output: ./suite-out/<time>
# From the environment: SIZE=1g, ROUNDS=3, SECONDS_PER_JOB=4. The store is a directory. Exits with 1 if a row misses the goal.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
size=${SIZE:-1g} rounds=${ROUNDS:-3} seconds=${SECONDS_PER_JOB:-4}
jobs=(seq-write-1m-q8 seq-read-1m-q8 rand-read-4k-q32 rand-read-4k-q1 rand-write-4k-q32 rand-write-4k-q1
    rand-write-16k-q32 mixed-70r-4k-q32 sync-write-4k-q1 sync-write-4k-4jobs)

begin_bench
mkdir -p "$out" "$work/store"
export VARVE_STORE="file://$work/store"
declare -A volume=([sealed]="$(new_volume sealed 10)" [plain]="$(new_volume plain 10 --no-encryption)")
start_varved "$out/varved.log" --log-size 4GiB --cache-size 4GiB
{
    describe_machine
    printf 'size %s, %s s a job, %s rounds\n' "$size" "$seconds" "$rounds"
    fio --version
} >"$out/machine.txt"

measure() {
    "$repository/benches/nbd_suite.sh" "$1" "$(nbd_uri "${volume[$1]}")" "$out/$2" "$size" "$seconds" "$3"
    varve volumes sync "${volume[$1]}" >/dev/null
}

order=(sealed plain)
for kind in "${order[@]}"; do
    measure "$kind" fill fill
done
for round in $(seq "$rounds"); do
    for job in "${jobs[@]}"; do
        say "round $round: $job"
        for kind in "${order[@]}"; do
            measure "$kind" "round-$round" "$job"
        done
    done
    order=("${order[1]}" "${order[0]}")
done
"$repository/benches/encryption.py" "$out" "${jobs[@]}" | tee "$out/table.txt"
