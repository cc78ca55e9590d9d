"""ssh's ProxyCommand while there is a bandwidth limit: ``relay.py HOST PORT SECONDS RATE ALLOWANCE``.

Connects and forwards what comes, both ways, as much as the allowance lets it: each byte read from that named pipe is
the permission to forward ``UNIT`` bytes. All relays of a sync read from the same pipe, so together they keep to one
limit, and who has nothing to forward takes nothing. When the writer of the pipe goes away, so does the relay.

RATE is the highest limit in bytes per second, 0 for none. What the kernel takes from the line ahead of us is bounded by
it: it would be lost if the line broke.

It runs as a program of its own and imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import threading

NAME = "clr-relay"
UNIT = 1024
PIECE = 64 * UNIT
AHEAD_SECONDS = 0.5
"""Enough for a line that takes half a second there and back."""
MOST_AHEAD = 4 << 20


def main(host: str, port: str, seconds: str, rate: str, allowance: str) -> int:
    """Forward until either side ends; return the exit status."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb", buffering=0) as name:  # noqa: PTH123
        name.write(NAME.encode())  # by which the watchdog knows what is not rsync
    try:
        connection = socket.create_connection((host, int(port)), float(seconds) or None)
    except OSError as error:
        sys.stderr.write(f"connect to host {host} port {port}: {error.strerror or error}\n")
        return 1
    connection.settimeout(None)
    if int(rate):
        buffer = min(max(int(int(rate) * AHEAD_SECONDS), PIECE), MOST_AHEAD)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    permits = os.open(allowance, os.O_RDONLY)
    upward = threading.Thread(target=_forward_and_exit, args=(0, connection.fileno(), permits), daemon=True)
    upward.start()
    _forward(connection.fileno(), 1, permits)
    return 0


def _forward_and_exit(source: int, target: int, permits: int) -> None:
    _forward(source, target, permits)
    os._exit(0)  # ssh has ended, and the other direction may be waiting for the server


def _forward(source: int, target: int, permits: int) -> None:
    """Forward until the source or the permits end. A permit is taken only when there is something to forward."""
    allowed = 0
    with contextlib.suppress(OSError):
        while True:
            select.select([source], [], [])
            if allowed == 0 and not (allowed := UNIT * len(os.read(permits, PIECE // UNIT))):
                return
            data = memoryview(os.read(source, allowed))
            if not data:
                return
            allowed -= len(data)
            while data:
                data = data[os.write(target, data) :]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
