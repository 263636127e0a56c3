#!/usr/bin/env python3
"""Prints what a run of cold_reads.sh has measured beside the goal.

Usage: cold_reads.py OUTPUT-DIR GOAL  Exits with 1 if the goal is missed.
"""

import glob
import json
import os
import statistics
import sys


def main():
    out, goal = sys.argv[1], float(sys.argv[2])
    with open(os.path.join(out, "client.txt"), encoding="utf-8") as file:
        client = [float(line) for line in file]
    own = []
    for path in sorted(glob.glob(os.path.join(glob.escape(out), "cold.*.json"))):
        with open(path, encoding="utf-8") as file:
            text = file.read()
        result = json.loads(text[text.index("{"):])["jobs"][0]
        if result["error"]:
            sys.exit(f"{path}: fio reports error {result['error']}")
        own.append(result["read"]["bw_bytes"] / (1 << 20))
    if not own:
        sys.exit(f"{out}: no results")
    ratio = statistics.median(own) / statistics.median(client)
    print("varve  MiB/s: " + " ".join(f"{rate:.0f}" for rate in own))
    print("client MiB/s: " + " ".join(f"{rate:.0f}" for rate in client))
    print(f"ratio of the medians: {ratio:.2f} >= {goal:.1f}{'' if ratio >= goal else '!'}")
    return 0 if ratio >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
