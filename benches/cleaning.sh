#!/usr/bin/env bash
# Measures what cleaning costs and what it brings: a volume at 80 % full is overwritten at random, 4 KiB at a time, for several times its size, on
# MinIO; uniformly and skewed (zipf), at a rate that a busy database has and as fast as it goes; and for as long without cleaning, to see what of the
# foreground's speed it takes.
#   benches/cleaning.sh [OUTPUT-DIR]                      default output: ./suite-out/<time>
# From the environment: SIZE_MIB=1280 (the volume; 80 % of it is filled), TIMES=3 (overwritten for so many times the volume's size), RATE_MIB=24 (a
# second, for the runs at a rate), SPACE_TARGET=135, COMPRESS=0 (percent). WORK_DIR (default /var/tmp) needs about TIMES+2 times SIZE_MIB: without cleaning everything stays.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
size_mib=${SIZE_MIB:-1280} times=${TIMES:-3} rate=${RATE_MIB:-24} target=${SPACE_TARGET:-135} compress=${COMPRESS:-0}

begin_bench
mkdir -p "$out"
start_minio "$out"
{
    describe_machine
    printf 'volume %s MiB, 80 %% full, overwritten %s times; space target %s %%; data compresses by %s %%\n' "$size_mib" "$times" "$target" "$compress"
    fio --version
} >"$out/machine.txt"

filled=$((size_mib * 8 / 10))

# One volume from its first block to the end of its overwriting. $1: name of the run, $2: space target or off, $3: distribution, $4: MiB a second,
# or 0 for as fast as it goes.
run() {
    local name=$1 target=$2 distribution=$3 rate=$4 volume uri sampler
    export VARVE_STORE="s3://bench/$name"
    volume=$(new_volume bench "${size_mib}MiB" --history off)
    uri=$(nbd_uri "$volume")
    start_varved "$out/$name.varved.log" --log-size 512MiB --space-target "$target"
    fio --name=fill --ioengine=nbd --uri="$uri" --rw=write --bs=1m --iodepth=8 --size="${filled}m" --refill_buffers \
        --buffer_compress_percentage="$compress" --output-format=json --output="$out/$name.fill.json"
    varve volumes sync "$volume" >/dev/null
    varve --json status >"$out/$name.before.json"
    (while sleep 2; do varve --json volumes show "$volume" | tr -d '\n'; echo; done >"$out/$name.samples" 2>/dev/null) &
    sampler=$!
    fio --name=overwrite --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --iodepth=32 --size="${filled}m" --rate="${rate}m" \
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
    stop_varved
    rm -rf "$work/minio/bench/$name"
}

for distribution in uniform skewed; do
    case $distribution in
        uniform) kind=random ;;
        skewed) kind=zipf:1.1 ;;
    esac
    run "$distribution" "$target" "$kind" "$rate"
    run "$distribution-off" off "$kind" "$rate"
    run "$distribution-fast" "$target" "$kind" 0
    run "$distribution-fast-off" off "$kind" 0
done
"$repository/benches/cleaning.py" "$out" "$((filled << 20))" | tee "$out/table.txt"
