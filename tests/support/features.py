"""What only libnbd's bindings can ask for: structured reads with DF, block status, cache, fast zero, FUA, trim, and the errors.

Usage: features.py SOCKET EXPORT. The export is 256 MiB and has never been written. Prints "ok" at the end.
"""

import errno
import sys

import nbd

MIB = 1 << 20
socket, export = sys.argv[1:]


def connected():
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.add_meta_context("base:allocation")
    handle.connect_unix(socket)
    return handle


def expect(what, found, wanted):
    assert found == wanted, f"{what}: found {found!r}, wanted {wanted!r}"


def extents(handle, offset, length):
    """The (length, flags) of base:allocation, neighbours with equal flags put together."""
    found = []

    def note(context, at, entries, error):
        expect("error of block status", error.value, 0)
        if context == "base:allocation":
            expect("offset of block status", at, offset)
            pairs = zip(entries[::2], entries[1::2])
            for size, flags in pairs:
                if found and found[-1][1] == flags:
                    found[-1][0] += size
                else:
                    found.append([size, flags])

    handle.block_status(length, offset, note)
    return [tuple(extent) for extent in found]


def all_extents(handle, offset, length):
    """Block status may end early: asks again until the range is covered."""
    found, end = [], offset + length
    while offset < end:
        part = extents(handle, offset, end - offset)
        assert part and all(size > 0 for size, _ in part), f"no progress at {offset}: {part}"
        for size, flags in part:
            size = min(size, end - offset)
            if size > 0 and found and found[-1][1] == flags:
                found[-1] = (found[-1][0] + size, flags)
            elif size > 0:
                found.append((size, flags))
            offset += size
    return found


def structured(handle, length, offset, flags):
    """The chunks of a structured read: [(offset, bytes or length of a hole)]."""
    chunks = []

    def note(data, at, status, error):
        expect("error of a chunk", error.value, 0)
        chunks.append((at, len(data), status))

    data = handle.pread_structured(length, offset, note, flags)
    return bytes(data), sorted(chunks)


def refused(what, wanted, action):
    try:
        action()
    except nbd.Error as error:
        expect(what, error.errnum, wanted)
        return
    raise AssertionError(f"{what}: it was not refused")


h = connected()
expect("size", h.get_size(), 256 * MIB)
for name in ["can_df", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_fast_zero", "can_cache"]:
    assert getattr(h, name)(), f"{name} is missing"
assert not h.is_read_only(), "the export is read-only"
assert h.get_structured_replies_negotiated(), "no structured replies"
assert h.can_meta_context("base:allocation"), "no base:allocation"

# A disk that was never written is one hole of zeroes.
hole = nbd.STATE_HOLE | nbd.STATE_ZERO
expect("extents of an empty disk", all_extents(h, 0, 256 * MIB), [(256 * MIB, hole)])
expect("an empty disk", bytes(h.pread(MIB, 77 * MIB)), bytes(MIB))

# Data with a hole on both sides, and within a block.
h.pwrite(b"a" * MIB, 8 * MIB)
h.pwrite(b"b" * 1000, 16 * MIB + 100, nbd.CMD_FLAG_FUA)
h.flush()
expect("extents around data", all_extents(h, 7 * MIB, 3 * MIB), [(MIB, hole), (MIB, 0), (MIB, hole)])
expect("a part of a block", bytes(h.pread(1200, 16 * MIB)), bytes(100) + b"b" * 1000 + bytes(100))

# One structured read over hole, data, hole: in chunks as the server likes, or in one with DF.
wanted = bytes(64 << 10) + b"a" * MIB + bytes(64 << 10)
start, length = 8 * MIB - (64 << 10), MIB + (128 << 10)
data, chunks = structured(h, length, start, 0)
assert data == wanted, "a structured read brings wrong bytes"
at = start
for offset, size, status in chunks:
    expect("chunks adjoin", offset, at)
    at += size
expect("chunks cover the read", at, start + length)
data, chunks = structured(h, length, start, nbd.CMD_FLAG_DF)
assert data == wanted, "a read with DF brings wrong bytes"
expect("chunks with DF", len(chunks), 1)

# Cache is a hint that must not change anything; it may be asked of any range.
h.cache(4 * MIB, 6 * MIB)
expect("after cache", bytes(h.pread(MIB, 8 * MIB)), b"a" * MIB)

# Zeroes: exact to the byte; fast; without a hole.
h.zero(1000, 8 * MIB + 500)
expect("zero", bytes(h.pread(2000, 8 * MIB)), b"a" * 500 + bytes(1000) + b"a" * 500)
h.zero(512 << 10, 8 * MIB, nbd.CMD_FLAG_FAST_ZERO)
expect("fast zero", bytes(h.pread(MIB, 8 * MIB)), bytes(512 << 10) + b"a" * (512 << 10))
h.zero(4096, 9 * MIB - 4096, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
expect("zero without a hole", bytes(h.pread(8192, 9 * MIB - 8192)), b"a" * 4096 + bytes(4096))

# Trim: whole blocks read as zero, and are a hole.
h.pwrite(b"c" * MIB, 32 * MIB)
h.trim(MIB, 32 * MIB, nbd.CMD_FLAG_FUA)
expect("after trim", bytes(h.pread(MIB, 32 * MIB)), bytes(MIB))
expect("extents after trim", all_extents(h, 32 * MIB, MIB), [(MIB, hole)])

# What is written on one connection and flushed on another is seen by all.
other = connected()
h.pwrite(b"d" * 4096, 64 * MIB)
other.flush()
expect("multi-conn", bytes(other.pread(4096, 64 * MIB)), b"d" * 4096)

# Requests that make no sense: the right errno, and the connection lives on.
h.set_strict_mode(0)
end = 256 * MIB
refused("read past the end", errno.EINVAL, lambda: h.pread(4096, end - 512))
refused("write past the end", errno.ENOSPC, lambda: h.pwrite(bytes(4096), end - 512))
refused("zero past the end", errno.ENOSPC, lambda: h.zero(4096, end))
refused("trim past the end", errno.EINVAL, lambda: h.trim(4096, end))
refused("an unknown flag", errno.EINVAL, lambda: h.pwrite(bytes(512), 0, 1 << 9))
expect("after the refusals", bytes(h.pread(4096, 64 * MIB)), b"d" * 4096)
h.shutdown()
other.shutdown()
print("ok")
