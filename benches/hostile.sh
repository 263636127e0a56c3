#!/usr/bin/env bash
# Measures what a client at work on one volume keeps of its throughput while hostile clients use the same daemon (benches/hostile.py says what they
# do). Exits with 1 if under any attack the median is below 0.8 of that without.
#   benches/hostile.sh [OUTPUT-DIR]                    default output: ./suite-out/<time>
# From the environment: ROUNDS=3, SECONDS_EACH=10. The hostile ones run on the same machine, at the lowest priority: what the figures tell is what they cost the
# daemon, not what it costs to be hostile. The store is a directory.
set -euo pipefail
# shellcheck source=benches/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

out=${1:-$repository/suite-out/$(date +%Y%m%d-%H%M%S)}
rounds=${ROUNDS:-3} seconds=${SECONDS_EACH:-10}
goal=0.8
attacks=(none crowd loris nonsense stalled)

begin_bench
mkdir -p "$out" "$work/store"
ulimit -n "$(ulimit -Hn)"
export VARVE_STORE="file://$work/store"
good=$(new_volume good 1GiB)
new_volume evil 1GiB >/dev/null
start_varved "$out/varved.log" --nbd 127.0.0.1:0
port=$(varve status --json | grep -o 'nbd://127.0.0.1:[0-9]*' | head -n 1 | sed 's/.*://')
{
    describe_machine
    printf '%s rounds of %s s each; fio: 70 %% reads of 16 KiB at random, 16 in flight, over TCP\n' "$rounds" "$seconds"
    fio --version
} >"$out/machine.txt"
work_on() {
    fio --name="$1" --ioengine=nbd --uri="nbd://127.0.0.1:$port/$good" --rw=randrw --rwmixread=70 --bs=16k --iodepth=16 --size=512m \
        --time_based --runtime="$2" --output-format=json --output="$out/$1.json"
}

# Operations a second of one run.
operations() { python3 -c 'import json, sys; job = json.load(open(sys.argv[1]))["jobs"][0]; print(round(job["read"]["iops"] + job["write"]["iops"]))' "$out/$1.json"; }

work_on warm-up "$seconds"
for round in $(seq "$rounds"); do
    for attack in "${attacks[@]}"; do
        hostile=
        if [ "$attack" != none ]; then
            python3 "$repository/benches/hostile.py" "$attack" "$port" evil >>"$out/hostile.jsonl" &
            hostile=$!
            sleep 3
        fi
        work_on "$attack.$round" "$seconds"
        printf '%s %s %s\n' "$attack" "$(operations "$attack.$round")" "$(awk '/^VmHWM/ { print $2 }' "/proc/$varved/status")" >>"$out/rounds.txt"
        if [ -n "$hostile" ]; then
            kill "$hostile"
            wait "$hostile"
        fi
    done
done
python3 - "$out" "$goal" <<'JUDGE'
import collections, statistics, sys

out, goal = sys.argv[1], float(sys.argv[2])
found = collections.defaultdict(list)
for line in open(f"{out}/rounds.txt"):
    attack, operations, _ = line.split()
    found[attack].append(int(operations))
base = statistics.median(found["none"])
lines = [f"{attack:9} {statistics.median(values):8.0f} operations/s  {statistics.median(values) / base:.2f}   {values}" for attack, values in found.items()]
open(f"{out}/summary.txt", "w").write("\n".join(lines) + "\n")
print("\n".join(lines))
sys.exit(any(statistics.median(values) < goal * base for values in found.values()))
JUDGE
