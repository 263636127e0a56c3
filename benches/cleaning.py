#!/usr/bin/env python3
"""Makes a table of what benches/cleaning.sh has measured: OUTPUT-DIR LIVE-BYTES. The brief's goals: write amplification at most 1.6, space at most
1.4 times what is live, the foreground at most 10 % slower."""

import json
import pathlib
import sys

MIB = 1 << 20


def read(path):
    return json.loads(path.read_text())


def puts(path):
    return read(path)["daemon"]["store_counts"]["put_bytes"]


def latency(job, percent):
    return job["clat_ns"]["percentile"][percent] / 1e6


def attached(shown):
    return shown.get("attached") or shown


def main():
    out, live = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    runs = [f"{kind}{speed}" for kind in ("uniform", "skewed") for speed in ("", "-fast")]
    print(f"{'run':<18}{'written':>10}{'MiB/s':>8}{'p50 ms':>9}{'p99 ms':>9}{'put':>10}{'put/written':>13}{'space/live: mean':>18}{'max':>7}{'end':>7}{'memory':>10}")
    speeds, puts_of = {}, {}
    for name in (name for run in runs for name in (run, f"{run}-off")):
        job = read(out / f"{name}.overwrite.json")["jobs"][0]["write"]
        written = job["io_bytes"]
        speeds[name] = job["bw_bytes"] / MIB
        put = puts(out / f"{name}.after.json") - puts(out / f"{name}.before.json")
        puts_of[name] = put
        samples = [attached(json.loads(line))["stored_bytes"] for line in (out / f"{name}.samples").read_text().splitlines() if line.strip()]
        end = attached(read(out / f"{name}.show.json"))["stored_bytes"]
        memory = int((out / f"{name}.high_water_kib.txt").read_text()) // 1024
        mean = sum(samples) / max(len(samples), 1)
        print(f"{name:<18}{written // MIB:>10}{speeds[name]:>8.1f}{latency(job, '50.000000'):>9.2f}{latency(job, '99.000000'):>9.2f}{put // MIB:>10}{put / written:>13.2f}{mean / live:>18.2f}{max(samples, default=0) / live:>7.2f}"
              f"{end / live:>7.2f}{memory:>7} MiB")
    for name in runs:
        print(f"{name}: amplification {puts_of[name] / puts_of[name + '-off']:.2f} (puts with cleaning over puts without), foreground {speeds[name] / speeds[name + '-off']:.2f} of what it is without")


main()
