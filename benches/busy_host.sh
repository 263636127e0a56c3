#!/usr/bin/env bash
# Measures how long what was written takes to get into the store on a host whose cores are busy: fio writes 400 MiB, then `varve volumes sync` is timed,
# without other work and beside two busy loops for each core. Exits with 1 if a sync beside them takes more than 15 s: without them it takes less
# than one, and the daemon's share of a core is a third.
#   benches/busy_host.sh [OUTPUT-DIR]                  default output: ./suite-out/<time>
# From the environment: ROUNDS=3; WORK_DIR as in the other benches. The store is a directory.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
rounds=${ROUNDS:-3}
goal=15

begin_bench
mkdir -p "$out" "$work/store"
export VARVE_STORE="file://$work/store"
volume=$(new_volume busy 10GiB)
start_varved "$out/varved.log" --segment-age 30s
describe_machine >"$out/machine.txt"

busy=()
idle_again() {
    for loop in "${busy[@]}"; do
        kill "$loop" 2>/dev/null || true
        wait "$loop" 2>/dev/null || true
    done
    busy=()
}
trap 'idle_again; cleanup' EXIT

# Writes, and notes how fast that went and how long the sync took. $1: a name for the state of the host.
measure() {
    fio --name=write --ioengine=nbd --uri="$(nbd_uri "$volume")" --rw=write --bs=256k --iodepth=8 --size=400m \
        --refill_buffers --buffer_compress_percentage=50 --output-format=json --output="$out/write.json"
    local began
    began=$(date +%s.%N)
    varve volumes sync "$volume" >/dev/null
    python3 -c '
import json, sys, time
written = json.load(open(sys.argv[1]))["jobs"][0]["write"]["bw"]
print(sys.argv[2], written // 1024, round(time.time() - float(sys.argv[3]), 1))' "$out/write.json" "$1" "$began" | tee -a "$out/rounds.txt"
}

say "state of the host, MiB/s written, seconds of the sync"
measure warm-up
for _ in $(seq "$rounds"); do
    measure idle
    for _ in $(seq $((2 * $(nproc)))); do
        (while :; do :; done) &
        busy+=($!)
    done
    measure busy
    idle_again
done
awk -v goal="$goal" '$1 == "busy" && $3 > goal { late = 1 } END { exit late }' "$out/rounds.txt" || fail "a sync beside busy loops took more than $goal s"
