#!/usr/bin/env bash
# Measures what a daemon with nothing local makes of a volume of 16 TiB with a hundred million extents, in MinIO: how long an attach takes and what
# it asks of the store, how long lookups of random blocks take, and how much memory they cost; a list of a thousand volumes; 64 volumes
# attached at once. Goals: attach and list in less than a second, memory of the budget and 128 MiB.
#   benches/large_map.sh [OUTPUT-DIR]                     default output: ./suite-out/<time>
# From the environment: SIZE=16TiB, LOOKUPS=20000, VOLUMES=1000, ATTACHED=64, MEMORY_SIZE=256MiB. WORK_DIR (default /var/tmp) needs about 4 GB.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
size=${SIZE:-16TiB} lookups=${LOOKUPS:-20000} volumes=${VOLUMES:-1000} attached=${ATTACHED:-64} memory_size=${MEMORY_SIZE:-256MiB}

begin_bench
generator=$(cd "$repository" && cargo build --release --workspace --locked --bench large_map --message-format=json |
    python3 -c 'import json, sys
for line in sys.stdin:
    built = json.loads(line)
    if built.get("executable") and built["target"]["name"] == "large_map":
        print(built["executable"])')
mkdir -p "$out"
start_minio "$out"
export VARVE_STORE=s3://bench/disks

start() { start_varved "$out/varved.log" --memory-size "$memory_size" --transfer-size 128MiB --log-size 128MiB --cache-size 1GiB; }
memory() { awk '/^VmHWM|^VmRSS/ { printf "%s %d MiB  ", $1, $2 / 1024 } END { print "" }' "/proc/$varved/status"; }
measure() {
    local began ended
    began=$(date +%s%N)
    "$@" >/dev/null
    ended=$(date +%s%N)
    printf '%d ms: %s\n' $(((ended - began) / 1000000)) "${*##*/}"
}

{
    describe_machine
    volume=$(new_volume large "$size" --no-encryption)
    "$generator" "$VARVE_STORE" "$volume"

    start
    memory
    varve status --json >"$out/before.json"
    measure varve volumes attach "$volume"
    varve status --json >"$out/after.json"
    python3 - "$out/before.json" "$out/after.json" <<'PY'
import json, sys
before, after = (json.load(open(path))["daemon"]["store_counts"] for path in sys.argv[1:])
print("requests of the attach:", {what: after[what] - before[what] for what in after if after[what] != before[what]})
PY
    memory
    for seed in 1 2 1; do
        /usr/bin/python3 "$repository/benches/large_map.py" lookups "$(nbd_uri "$volume")" "$lookups" "$seed"
        memory
    done
    measure varve volumes detach "$volume"
    measure varve volumes attach "$volume"
    stop_varved

    ids=()
    for number in $(seq "$attached"); do
        ids+=("$(new_volume "small-$number" 10GiB --no-encryption)")
    done
    start
    uris=()
    for id in "${ids[@]}"; do
        uris+=("$(nbd_uri "$id")")
    done
    printf '%s volumes attached at once\n' "$attached"
    for round in 1 2 3; do
        printf 'round %s: ' "$round"
        /usr/bin/python3 "$repository/benches/large_map.py" writes "${uris[@]}"
        memory
    done
    stop_varved

    for number in $(seq $((volumes - attached - 1))); do
        printf '%s\n' "many-$number"
    done | xargs -P 4 -I NAME varve volumes create NAME --size 1GiB >/dev/null
    varve volumes list | tail -n +2 | wc -l
    for round in 1 2 3; do
        measure varve volumes list
    done
} | tee "$out/large_map.txt"
