#!/usr/bin/env python3
"""Prints the ratios of a run of side_by_side.sh beside the goals.

Usage: side_by_side.py OUTPUT-DIR MEMORY-SIZE TRANSFER-SIZE JOB ...  Exits with 1 if a goal is missed. The figure of a job is the median of its rounds.
"""

import glob
import json
import os
import re
import statistics
import sys

# Job: (at least this much of nbdkit memory, at least this much of qemu-nbd).
GOALS = {
    "rand-write-4k-q32": (0.9, 2.0),
    "rand-write-16k-q32": (0.6, None),
    "rand-read-4k-q32": (0.9, None),
    "rand-write-4k-q1": (0.7, None),
    "rand-read-4k-q1": (0.7, None),
    "sync-write-4k-q1": (None, 0.9),
    "sync-write-4k-4jobs": (None, 2.0),
}
MEMORY_ALLOWANCE_MIB = 128
UNITS_MIB = {"MiB": 1, "GiB": 1024}


def requests_per_second(out, label, job):
    rates = []
    for path in sorted(glob.glob(os.path.join(glob.escape(out), "round-*", f"{label}.{job}.json"))):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        # fio may say something before the JSON begins.
        result = json.loads(text[text.index("{"):])["jobs"][0]
        if result["error"]:
            sys.exit(f"{path}: fio reports error {result['error']}")
        rates.append(result["read"]["iops"] + result["write"]["iops"])
    if not rates:
        sys.exit(f"{out}: no results of {label} for {job}")
    return statistics.median(rates)


def mebibytes(size):
    number, unit = re.fullmatch(r"(\d+)(MiB|GiB)", size).groups()
    return int(number) * UNITS_MIB[unit]


def verdict(ratio, goal):
    if goal is None:
        return f"{ratio:6.2f}       "
    return f"{ratio:6.2f} >= {goal:.1f}{' ' if ratio >= goal else '!'}"


def main():
    out, budgets, jobs = sys.argv[1], sys.argv[2:4], sys.argv[4:]
    missed = 0
    print(f"{'job':20} {'varve':>9} {'nbdkit':>9} {'qemu-nbd':>9}   {'of nbdkit':14} {'of qemu-nbd':14}   (requests a second; '!' misses its goal)")
    for job in jobs:
        own, nbdkit, qemu = (requests_per_second(out, label, job) for label in ("varve", "nbdkit", "qemu"))
        goals = GOALS.get(job, (None, None))
        ratios = (own / nbdkit, own / qemu)
        missed += sum(goal is not None and ratio < goal for ratio, goal in zip(ratios, goals))
        cells = "   ".join(verdict(ratio, goal) for ratio, goal in zip(ratios, goals))
        print(f"{job:20} {own:9.0f} {nbdkit:9.0f} {qemu:9.0f}   {cells}")
    allowed = sum(map(mebibytes, budgets)) + MEMORY_ALLOWANCE_MIB
    with open(os.path.join(out, "memory.txt"), encoding="utf-8") as file:
        samples = [line.split() for line in file.read().splitlines()[1:]]
    highest = max((int(fields[1]) for fields in samples if len(fields) == 3), default=None)
    if highest is None:
        sys.exit(f"{out}/memory.txt: no samples")
    too_much = highest / 1024 > allowed
    print(f"memory of varved at its highest: {highest / 1024:.0f} MiB <= {allowed} MiB{'!' if too_much else ''}")
    return 1 if missed or too_much else 0


if __name__ == "__main__":
    sys.exit(main())
