#!/usr/bin/env bash
# Measures sequential reads of data that is only in MinIO: varved with nothing local, against a plain parallel client (curl) that gets
# the very same objects, in turns. Exits with 1 if the median of varved is below 0.7 of the client's.
#   benches/cold_reads.sh [OUTPUT-DIR]                    default output: ./suite-out/<time>
# From the environment: ROUNDS=3, SIZE_MIB=2048, PARALLEL=8 (transfers of the client), MEMORY_SIZE=256MiB. The data does not compress, so both
# move the same bytes. MinIO's files are in the page cache for both. WORK_DIR (default /var/tmp) needs about 4 times SIZE_MIB.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
rounds=${ROUNDS:-3} size_mib=${SIZE_MIB:-2048} parallel=${PARALLEL:-8} memory_size=${MEMORY_SIZE:-256MiB}
goal=0.7

begin_bench
mkdir -p "$out"
start_minio "$out"
export VARVE_STORE=s3://bench/disks
volume=$(new_volume bench "${size_mib}MiB")
uri=$(nbd_uri "$volume")
start() { start_varved "$out/varved.log" --memory-size "$memory_size"; }

{
    describe_machine
    printf '%s MiB, client: %s transfers at once, memory of varved %s\n' "$size_mib" "$parallel" "$memory_size"
    curl --version | head -n 1
    fio --version
} >"$out/machine.txt"

start
fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs=1m --iodepth=8 --size="${size_mib}m" --refill_buffers \
    --output-format=json --output="$out/fill.json"
stop_varved
# The slashes are encoded, or curl signs another request than it sends.
s3 "$AWS_ENDPOINT_URL/bench?list-type=2&prefix=disks%2Fvolumes%2F$volume%2Fsegments%2F" | grep -o '<Key>[^<]*' | sed 's/<Key>//' >"$work/keys"
while read -r key; do
    printf 'url = "%s/bench/%s"\noutput = /dev/null\n' "$AWS_ENDPOINT_URL" "$key"
done <"$work/keys" >"$work/objects"

# MiB a second of the plain client.
client() {
    local begin end bytes
    begin=$(date +%s%N)
    bytes=$(s3 --parallel --parallel-max "$parallel" --write-out '%{size_download}\n' --config "$work/objects" | awk '{ sum += $1 } END { printf "%.0f", sum }')
    end=$(date +%s%N)
    [ "$bytes" -ge $((size_mib << 20)) ] || fail "the client got $bytes bytes, less than was written"
    awk -v bytes="$bytes" -v ns=$((end - begin)) 'BEGIN { printf "%.1f\n", bytes / 1048576 / (ns / 1e9) }'
}

# MiB a second of varved, with nothing local.
cold() {
    start
    # Attaching is not part of reading.
    varve volumes attach "$volume" >/dev/null
    varve status --json >"$out/before.json"
    fio --name=cold --ioengine=nbd --uri="$uri" --rw=read --bs=1m --iodepth=8 --size="${size_mib}m" \
        --output-format=json --output="$out/cold.$1.json"
    varve status --json >"$out/after.$1.json"
    python3 - "$out/before.json" "$out/after.$1.json" "$size_mib" <<'PY' >>"$out/requests.txt"
import json, sys
before, after = (json.load(open(path))["daemon"]["store_counts"] for path in sys.argv[1:3])
gets, bytes = after["gets"] - before["gets"], after["get_bytes"] - before["get_bytes"]
print(f"{gets / int(sys.argv[3]):.3f} requests and {bytes / int(sys.argv[3]) / 1048576:.3f} MiB fetched for each MiB read")
PY
    awk '/^VmHWM/ { print $2 }' "/proc/$varved/status" >>"$out/high_water_kib.txt"
    stop_varved
}

client >/dev/null
for round in $(seq "$rounds"); do
    client >>"$out/client.txt"
    cold "$round"
done
cat "$out/requests.txt"
"$repository/benches/cold_reads.py" "$out" "$goal" | tee "$out/table.txt"
