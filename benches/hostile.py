"""Hostile NBD clients, for benches/hostile.sh: hostile.py MODE PORT EXPORT. Runs until SIGTERM, then says what it did, as one line of JSON.

crowd     10,000 connections (or as many as there may be descriptors), most of which the server closes; they come back, 500 a second
loris     512 handshakes that send a byte a second
nonsense  requests and options that make no sense, as fast as they are answered, on eight connections
stalled   24 writes of 32 MiB that stop half way, and 24 clients that ask for 2 GiB each and read nothing; they come back when cut off
"""

import json
import os
import random
import resource
import selectors
import signal
import socket
import struct
import sys
import time

mode, port, export = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
ADDRESSES = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"]
HELLO = struct.pack(">I", 3)
ENTER = HELLO + b"IHAVEOPT" + struct.pack(">II", 1, len(export)) + export
MIB = 1 << 20
counts = {"mode": mode, "connections": 0, "closed": 0, "failed": 0, "bytes": 0, "open_most": 0}
chance = random.Random(1)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))


def request(command, offset, length):
    return struct.pack(">IHHQQI", 0x25609513, 0, command, 1, offset, length)


def connect():
    """A connection from one of the addresses, or None."""
    client = socket.socket()
    try:
        client.bind((ADDRESSES[counts["connections"] % len(ADDRESSES)], 0))
        client.settimeout(10)
        client.connect(("127.0.0.1", port))
    except OSError:
        counts["failed"] += 1
        client.close()
        return None
    counts["connections"] += 1
    client.setblocking(False)
    return client


def send(client, content):
    """Sends what goes at once; False if the server has gone."""
    try:
        counts["bytes"] += client.send(content)
        return True
    except BlockingIOError:
        return True
    except OSError:
        return False


def keep(wanted, begin, each_second, a_second, deaf=False):
    """Keeps `wanted` connections, of which `begin` says what each sends first, and `each_second` what it sends every second."""
    selector, left, content = selectors.DefaultSelector(), {}, each_second
    beat = time.monotonic()
    while not stopped:
        for _ in range(min(a_second // 20, wanted - len(left))):
            client = connect()
            if client is None:
                break
            left[client] = begin()
            selector.register(client, selectors.EVENT_READ)
        counts["open_most"] = max(counts["open_most"], len(left))
        gone = set()
        for key, _ in selector.select(0):
            if deaf and left[key.fileobj] is None:
                continue
            try:
                if not key.fileobj.recv(4096):
                    gone.add(key.fileobj)
            except BlockingIOError:
                pass
            except OSError:
                gone.add(key.fileobj)
        for client, begun in left.items():
            if begun:
                # In the transmission phase a deaf one is never read from again.
                left[client] = None
                if not send(client, begun):
                    gone.add(client)
        if content and time.monotonic() - beat > 1:
            beat = time.monotonic()
            gone.update(client for client in left if not send(client, content))
        if deaf:
            gone.update(client for client in left if is_cut_off(client))
        for client in gone:
            counts["closed"] += 1
            selector.unregister(client)
            del left[client]
            client.close()
        time.sleep(0.05)


def is_cut_off(client):
    """True if the server has ended a connection that nobody reads."""
    # tcpi_state is the first byte; 1 is established.
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1


def nonsense():
    clients = []
    while not stopped:
        clients = [client for client in clients if client.fileno() >= 0]
        while len(clients) < 8:
            client = connect()
            if client is None:
                break
            client.settimeout(10)
            clients.append(client)
            send(client, ENTER if chance.random() < 0.5 else HELLO + b"IHAVEOPT")
        for client in clients:
            content = request(chance.randrange(70000) % 65536, chance.randrange(1 << 63), chance.randrange(1 << 32))
            if not send(client, content if chance.random() < 0.9 else chance.randbytes(40)):
                close(client)
        for client in clients:
            client.settimeout(0.001) if client.fileno() >= 0 else None
            try:
                if client.fileno() >= 0 and not client.recv(65536):
                    close(client)
            except TimeoutError:
                pass
            except OSError:
                close(client)


def close(client):
    counts["closed"] += 1
    client.close()


def half_or_deaf():
    """What a stalled client says: the first half of a long write, or many long reads."""
    if chance.random() < 0.5:
        return ENTER + request(1, 0, 32 * MIB) + bytes(16 * MIB)
    return ENTER + b"".join(request(0, 0, 32 * MIB) for _ in range(64))


_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
os.nice(19)
if mode == "crowd":
    keep(min(10_000, hard - 100), lambda: b"", b"", 500)
elif mode == "loris":
    keep(512, lambda: HELLO + b"IHAVEOPT" + struct.pack(">II", 7, 16000), b"x", 2000)
elif mode == "stalled":
    keep(48, half_or_deaf, b"", 1000, deaf=True)
else:
    nonsense()
print(json.dumps(counts))
