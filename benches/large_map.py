#!/usr/bin/env python3
"""What benches/large_map.sh asks of a running daemon, through libnbd.

    large_map.py lookups URI COUNT SEED     looks COUNT random blocks of the disk up in the block map
    large_map.py writes URI...              writes 4 MiB in blocks of 4 KiB, scattered over each of the disks, all of them at once
"""

import random
import sys
import threading
import time

import nbd

BLOCK = 4096


def lookups(uri, count, seed):
    chance = random.Random(seed)
    client = nbd.NBD()
    client.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    client.connect_uri(uri)
    blocks = client.get_size() // BLOCK
    data, times = 0, []

    def note(_context, _offset, entries, _error):
        nonlocal data
        data += 1 - (entries[1] & 1)

    for _ in range(count):
        offset = chance.randrange(blocks) * BLOCK
        began = time.monotonic()
        client.block_status(BLOCK, offset, note)
        times.append(time.monotonic() - began)
    times.sort()
    print(f"{count} lookups in {sum(times):.1f} s: median {times[count // 2] * 1000:.2f} ms, 99 of 100 below {times[count * 99 // 100] * 1000:.2f} ms,"
          f" longest {times[-1] * 1000:.1f} ms; {data} of the blocks hold something")


def write(uri, seed):
    chance = random.Random(seed)
    client = nbd.NBD()
    client.connect_uri(uri)
    blocks = client.get_size() // BLOCK
    for _ in range(1024):
        client.pwrite(chance.randbytes(BLOCK), chance.randrange(blocks) * BLOCK)
    client.flush()


def writes(uris):
    began = time.monotonic()
    threads = [threading.Thread(target=write, args=(uri, seed)) for seed, uri in enumerate(uris)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(uris)} disks, {len(uris) * 4} MiB in blocks of 4 KiB: {time.monotonic() - began:.1f} s")


if sys.argv[1] == "lookups":
    lookups(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    writes(sys.argv[2:])
