"""Starts varved as systemd does for a socket unit, and uses it: writes a block of the export, flushes, and reads it back.

Usage: activation.py unix|tcp EXPORT COMMAND... With "unix" libnbd is systemd and hands over a Unix socket; with "tcp" this script
is, and hands over a TCP socket. Prints "ok" at the end, when the daemon has gone.
"""

import os
import signal
import socket
import sys

import nbd

kind, export, *command = sys.argv[1:]
OFFSET = {"unix": 4096, "tcp": 8192}[kind]
CONTENT = kind.encode().ljust(4096, b".")


def use(handle):
    handle.pwrite(CONTENT, OFFSET)
    handle.flush()
    assert handle.pread(4096, OFFSET) == CONTENT
    handle.shutdown()


def by_libnbd():
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.connect_systemd_socket_activation(command)
    use(handle)
    # Ends the daemon, and waits for it: nothing else refers to the handle.
    del handle


def by_this_script():
    listener = socket.create_server(("127.0.0.1", 0))
    child = os.fork()
    if child == 0:
        os.dup2(listener.fileno(), 3)
        # It may have been 3 before, and then is still closed by exec.
        os.set_inheritable(3, True)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        os.execv(command[0], command)
    handle = nbd.NBD()
    # The socket listens already: whoever connects waits until the daemon is there. It must be the daemon's alone, or a daemon that
    # has failed would be waited for.
    address = f"nbd://127.0.0.1:{listener.getsockname()[1]}/{export}"
    listener.close()
    handle.connect_uri(address)
    use(handle)
    del handle
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"varved ended with {status}"


by_libnbd() if kind == "unix" else by_this_script()
print("ok")
