#!/usr/bin/env bash
# Measures the first reads of a fork on a host that has nothing local, from MinIO, directly and through a proxy that makes it look far away: with
# prefetch off (cold), with it on and a reader that starts at once (trace), and with a reader that starts when all was brought (warmed).
#   benches/warm_start.sh [OUTPUT-DIR]                    default output: ./suite-out/<time>
# From the environment: ROUNDS=3, SIZE_MIB=512, READS=2000, DELAYS="0 10" (ms for each request). The data does not compress. WORK_DIR (default /var/tmp)
# needs about 4 times SIZE_MIB.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
rounds=${ROUNDS:-3} size_mib=${SIZE_MIB:-512} reads=${READS:-2000} delays=${DELAYS:-0 10}

begin_bench
mkdir -p "$out"
start_minio "$out"
export VARVE_STORE=s3://bench/disks
near=$AWS_ENDPOINT_URL
volume=$(new_volume golden "${size_mib}MiB")
start() { start_varved "$out/varved.log" --cache-size 2GiB "$@"; }
gets() { varve status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["daemon"]["store_counts"]["gets"])'; }
boot() { /usr/bin/python3 "$repository/benches/warm_start.py" read "$(nbd_uri "$1")" "$reads" 1; }

{
    describe_machine
    printf '%s MiB, %s reads\n' "$size_mib" "$reads"
} >"$out/machine.txt"

start
fio --name=fill --ioengine=nbd --uri="$(nbd_uri "$volume")" --rw=write --bs=1m --iodepth=8 --size="${size_mib}m" --refill_buffers \
    --output-format=json --output="$out/fill.json"
stop_varved
start
boot "$volume" >"$out/golden.json"
snapshot=$(varve volumes snapshots create "$volume" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')
stop_varved

# One fork's first reads: $1 delay, $2 what, the rest: options of varved.
measure() {
    local name=$1.$2 fork line before now
    shift 2
    start "$@"
    fork=$(varve volumes create fork --snapshot-id "$snapshot" | grep ID | awk '{ print $2 }')
    if [ "${name#*.}" = warmed ]; then
        varve volumes attach "$fork" >/dev/null
        before=-1 now=$(gets)
        until [ "$before" = "$now" ]; do
            sleep 1
            before=$now now=$(gets)
        done
    fi
    before=$(gets)
    line=$(boot "$fork")
    printf '%s, "gets": %s}\n' "${line%\}}" $(($(gets) - before)) >>"$out/$name.jsonl"
    stop_varved
}

for delay in $delays; do
    if [ "$delay" != 0 ]; then
        python3 "$repository/benches/delay_proxy.py" "${near#http://}" "$delay" >"$work/proxy.$delay" &
        servers+=("$!")
        until [ -s "$work/proxy.$delay" ]; do sleep 0.1; done
        AWS_ENDPOINT_URL="http://127.0.0.1:$(cat "$work/proxy.$delay")"
    fi
    for _ in $(seq "$rounds"); do
        measure "$delay" cold --prefetch off
        measure "$delay" trace
        measure "$delay" warmed
    done
done
"$repository/benches/warm_start.py" table "$out" | tee "$out/table.txt"
