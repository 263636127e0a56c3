#!/usr/bin/env bash
# Measures what cleaning costs and what it brings: a volume at 80 % full is overwritten at random, 4 KiB at a time, for several times its size, on
# MinIO; once uniformly, once skewed (zipf); and for as long without cleaning, to see what of the foreground's speed it takes.
#   benches/cleaning.sh [OUTPUT-DIR]                      default output: ./suite-out/<time>
# From the environment: SIZE_MIB=1280 (the volume; 80 % of it is filled), TIMES=3 (overwritten for so many times the volume's size), SPACE_TARGET=135,
# COMPRESS=0 (percent). WORK_DIR (default /var/tmp) needs about TIMES+2 times SIZE_MIB: without cleaning everything stays.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
size_mib=${SIZE_MIB:-1280} times=${TIMES:-3} target=${SPACE_TARGET:-135} compress=${COMPRESS:-0}

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
servers=("$minio")
{
    describe_machine
    printf 'volume %s MiB, 80 %% full, overwritten %s times; space target %s %%; data compresses by %s %%\n' "$size_mib" "$times" "$target" "$compress"
    fio --version
} >"$out/machine.txt"

export VARVE_STATE="$work/state" VARVE_CONTROL="$work/control.sock"
filled=$((size_mib * 8 / 10))

# One volume from its first block to the end of its overwriting. $1: name of the run, $2: space target or off, $3: distribution.
run() {
    local name=$1 target=$2 distribution=$3 volume uri sampler
    export VARVE_STORE="s3://bench/$name"
    volume=$(varve volumes create bench --size "${size_mib}MiB" | grep ID | awk '{ print $2 }')
    rm -rf "$work/state" "$work/varve.sock"
    varved --nbd-unix "$work/varve.sock" --log-size 512MiB --space-target "$target" 2>>"$out/$name.varved.log" &
    varved=$!
    servers=("$varved" "$minio")
    await_socket "$work/varve.sock"
    uri="nbd+unix:///$volume?socket=$work/varve.sock"
    fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs=1m --iodepth=8 --size="${filled}m" --refill_buffers \
        --buffer_compress_percentage="$compress" --output-format=json --output="$out/$name.fill.json"
    varve volumes sync "$volume" >/dev/null
    varve --json status >"$out/$name.before.json"
    (while sleep 2; do varve --json volumes show "$volume" | tr -d '\n'; echo; done >"$out/$name.samples" 2>/dev/null) &
    sampler=$!
    fio --name=overwrite --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --iodepth=32 --size="${filled}m" \
        --io_size="$((size_mib * times))m" --random_distribution="$distribution" --norandommap --randrepeat=1 --refill_buffers \
        --buffer_compress_percentage="$compress" --output-format=json --output="$out/$name.overwrite.json"
    varve volumes sync "$volume" >/dev/null
    kill "$sampler" 2>/dev/null || true
    wait "$sampler" 2>/dev/null || true
    varve --json status >"$out/$name.after.json"
    varve --json volumes show "$volume" >"$out/$name.show.json"
    if [ "$target" != off ]; then
        # What is left to do when nobody writes any more.
        varve --json volumes clean "$volume" >"$out/$name.clean.json"
    fi
    awk '/^VmHWM/ { print $2 }' "/proc/$varved/status" >"$out/$name.high_water_kib.txt"
    kill "$varved"
    wait "$varved"
    servers=("$minio")
    rm -rf "$work/minio/bench/$name"
}

run uniform "$target" random
run uniform-off off random
run skewed "$target" zipf:1.1
run skewed-off off zipf:1.1
"$repository/benches/cleaning.py" "$out" "$((filled << 20))" | tee "$out/table.txt"
