#!/usr/bin/env python3
"""What a machine reads when it starts, for benches/warm_start.sh, through libnbd: reads of 4 to 64 KiB, one after the other, most of them near the
one before, the others anywhere in the disk. The same for the same seed.

    warm_start.py read URI COUNT SEED       prints one line of JSON: seconds, and the percentiles of the reads in milliseconds
    warm_start.py table DIRECTORY           the medians of all lines in DIRECTORY/<delay>.<what>.jsonl
"""

import glob
import json
import os
import random
import statistics
import sys
import time


def places(size, count, seed):
    chance = random.Random(seed)
    at = 0
    for _ in range(count):
        length = 4096 * chance.randint(1, 16)
        if chance.random() < 0.6:
            at += 4096 * chance.randint(0, 32)
        else:
            at = chance.randrange(size // 4096) * 4096
        if at + length > size:
            at = 0
        yield at, length
        at += length


def read(uri, count, seed):
    import nbd

    client = nbd.NBD()
    client.connect_uri(uri)
    times, total = [], 0
    for offset, length in places(client.get_size(), count, seed):
        began = time.monotonic()
        client.pread(length, offset)
        times.append((time.monotonic() - began) * 1000)
        total += length
    seconds = sum(times) / 1000
    times.sort()
    at = lambda part: round(times[min(int(count * part), count - 1)], 3)
    print(json.dumps({"seconds": round(seconds, 3), "mib": total >> 20, "median": at(0.5), "p90": at(0.9), "p99": at(0.99), "longest": at(1)}))


def table(directory):
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*.jsonl"))):
        with open(path, encoding="utf-8") as file:
            runs = [json.loads(line) for line in file]
        middle = {what: statistics.median(run[what] for run in runs) for what in runs[0]}
        seconds = " ".join(f"{run['seconds']:.2f}" for run in runs)
        print(f"{os.path.basename(path)[:-6]:<16} {seconds} s; median of medians {middle['median']:.2f} ms, p90 {middle['p90']:.2f}, "
              f"p99 {middle['p99']:.2f}, {middle['mib']:.0f} MiB, {middle['gets']:.0f} requests")


if sys.argv[1] == "read":
    read(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    table(sys.argv[2])
