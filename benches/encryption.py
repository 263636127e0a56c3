#!/usr/bin/env python3
"""Prints what encryption costs, from a run of encryption.sh. Exits with 1 if a row misses the goal.

Usage: encryption.py OUTPUT-DIR JOB ...  A figure is the median of its rounds.
"""

import sys

from side_by_side import requests_per_second

GOAL = 0.9


def main():
    out, jobs = sys.argv[1], sys.argv[2:]
    missed = 0
    print(f"{'job':20} {'sealed':>9} {'plain':>9}   sealed of plain   (requests a second; '!' misses {GOAL})")
    for job in jobs:
        sealed, plain = (requests_per_second(out, label, job) for label in ("sealed", "plain"))
        missed += sealed / plain < GOAL
        print(f"{job:20} {sealed:9.0f} {plain:9.0f}   {sealed / plain:6.2f}{' ' if sealed / plain >= GOAL else '!'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
