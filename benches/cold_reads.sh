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
mkdir -p "$out" "$work/minio"
export MINIO_ROOT_USER=varve-bench MINIO_ROOT_PASSWORD=varve-bench-secret
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$repository/tools/minio" path >/dev/null
"$repository/tools/minio" run "$work/minio" "$port" >"$out/minio.log" 2>&1 &
minio=$!
export AWS_ENDPOINT_URL="http://127.0.0.1:$port" AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
export AWS_ACCESS_KEY_ID=$MINIO_ROOT_USER AWS_SECRET_ACCESS_KEY=$MINIO_ROOT_PASSWORD
s3() { curl --silent --show-error --no-progress-meter --fail --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$@"; }
until curl --silent --fail "$AWS_ENDPOINT_URL/minio/health/ready" >/dev/null; do
    kill -0 "$minio" 2>/dev/null || fail "MinIO does not start: see $out/minio.log"
    sleep 0.1
done
s3 --request PUT "$AWS_ENDPOINT_URL/bench"

export VARVE_STORE=s3://bench/disks VARVE_STATE="$work/state" VARVE_CONTROL="$work/control.sock"
volume=$(varve volumes create bench --size "${size_mib}MiB" | grep ID | awk '{ print $2 }')
uri="nbd+unix:///$volume?socket=$work/varve.sock"
start() {
    rm -rf "$work/state" "$work/varve.sock"
    varved --nbd-unix "$work/varve.sock" --memory-size "$memory_size" 2>>"$out/varved.log" &
    varved=$!
    # In front: it must detach before MinIO goes.
    servers=("$varved" "$minio")
    await_socket "$work/varve.sock"
}
stop() {
    kill "$varved"
    wait "$varved"
}
servers=("$minio")
{
    describe_machine
    printf '%s MiB, client: %s transfers at once, memory of varved %s\n' "$size_mib" "$parallel" "$memory_size"
    curl --version | head -n 1
    fio --version
} >"$out/machine.txt"

start
fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs=1m --iodepth=8 --size="${size_mib}m" --refill_buffers \
    --output-format=json --output="$out/fill.json"
stop
# The slashes are encoded, or curl signs another request than it sends.
s3 "$AWS_ENDPOINT_URL/bench?list-type=2&prefix=disks%2Fvolumes%2F$volume%2Fsegments%2F" | grep -o '<Key>[^<]*' | sed 's/<Key>//' >"$work/keys"
while read -r key; do
    printf 'url = "%s/bench/%s"\noutput = /dev/null\n' "$AWS_ENDPOINT_URL" "$key"
done <"$work/keys" >"$work/objects"

# MiB a second of the plain client.
client() {
    local begin end bytes
    begin=$(date +%s%N)
    bytes=$(s3 --parallel --parallel-max "$parallel" --write-out '%{size_download}\n' --config "$work/objects" | awk '{ sum += $1 } END { printf "%d", sum }')
    end=$(date +%s%N)
    [ "$bytes" -ge $((size_mib << 20)) ] || fail "the client got $bytes bytes, less than was written"
    awk -v bytes="$bytes" -v ns=$((end - begin)) 'BEGIN { printf "%.1f\n", bytes / 1048576 / (ns / 1e9) }'
}

# MiB a second of varved, with nothing local.
cold() {
    start
    # Attaching is not part of reading.
    varve volumes attach "$volume" >/dev/null
    fio --name=cold --ioengine=nbd --uri="$uri" --rw=read --bs=1m --iodepth=8 --size="${size_mib}m" \
        --output-format=json --output="$out/cold.$1.json"
    awk '/^VmHWM/ { print $2 }' "/proc/$varved/status" >>"$out/high_water_kib.txt"
    stop
}

client >/dev/null
for round in $(seq "$rounds"); do
    client >>"$out/client.txt"
    cold "$round"
done
"$repository/benches/cold_reads.py" "$out" "$goal" | tee "$out/table.txt"
