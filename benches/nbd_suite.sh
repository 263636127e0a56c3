#!/usr/bin/env bash
# Puts an NBD export through fio jobs and keeps fio's own JSON.
#   benches/nbd_suite.sh LABEL URI OUTPUT-DIR SIZE SECONDS [JOB ...]
# Without a JOB all are run, in the order below; `fill` writes the whole size once, so that reads meet data.
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
label=$1 uri=$2 out=$3 size=$4 seconds=$5
shift 5
mkdir -p "$out"

declare -A job=(
    [fill]="--rw=write --bs=1m --iodepth=8"
    [seq-write-1m-q8]="--rw=write --bs=1m --iodepth=8"
    [seq-read-1m-q8]="--rw=read --bs=1m --iodepth=8"
    [rand-write-4k-q32]="--rw=randwrite --bs=4k --iodepth=32"
    [rand-read-4k-q32]="--rw=randread --bs=4k --iodepth=32"
    [rand-write-4k-q1]="--rw=randwrite --bs=4k --iodepth=1"
    [rand-read-4k-q1]="--rw=randread --bs=4k --iodepth=1"
    [sync-write-4k-q1]="--rw=randwrite --bs=4k --iodepth=1 --fsync=1"
    [sync-write-4k-4jobs]="--rw=randwrite --bs=4k --iodepth=1 --fsync=1 --numjobs=4 --group_reporting"
    [rand-write-16k-q32]="--rw=randwrite --bs=16k --iodepth=32"
    [mixed-70r-4k-q32]="--rw=randrw --rwmixread=70 --bs=4k --iodepth=32"
)
order=(fill seq-write-1m-q8 seq-read-1m-q8 rand-write-4k-q32 rand-read-4k-q32 rand-write-4k-q1 rand-read-4k-q1
    sync-write-4k-q1 rand-write-16k-q32 mixed-70r-4k-q32 sync-write-4k-4jobs)
[ $# = 0 ] || order=("$@")

for name in "${order[@]}"; do
    [ -n "${job[$name]:-}" ] || { echo "$0: no job is named $name" >&2; exit 2; }
    read -ra arguments <<<"${job[$name]}"
    [ "$name" = fill ] || arguments+=("--runtime=$seconds" --time_based)
    fio --name="$name" --ioengine=nbd --uri="$uri" --size="$size" --randrepeat=1 --norandommap \
        --refill_buffers --buffer_compress_percentage=50 --output-format=json \
        --output="$out/$label.$name.json" "${arguments[@]}"
done
