"""A long line between two TUN devices, in user space: rate, delay, loss. Only root can run it.

``python -m support.tunnel NEAR FAR --rate BYTES --delay SECONDS --loss SHARE`` makes both devices, says ``ready``, and
then four times a second what has been delivered from FAR to NEAR until now: seconds, packets, bytes.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import select
import struct
import time
from collections import deque

_SET_INTERFACE = 0x400454CA
_TUN, _NO_HEADER = 0x0001, 0x1000


def device(name: str) -> int:
    """Make a TUN device; its descriptor, which stays valid when the device moves to another namespace."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, _SET_INTERFACE, struct.pack("16sH14x", name.encode(), _TUN | _NO_HEADER))
    return handle


class Direction:
    """Packets on their way from one device to the other.

    A packet occupies the line for its length at ``rate``; what would wait longer than ``buffer`` seconds for that is
    dropped, and so is a ``loss`` share of all. The others arrive ``delay`` seconds later.
    """

    def __init__(self, source: int, target: int, *, rate: float, delay: float, loss: float, buffer: float) -> None:
        self.source, self.target = source, target
        self.rate, self.delay, self.loss, self.buffer = rate, delay, loss, buffer
        self.free_at = 0.0
        self.under_way: deque[tuple[float, bytes]] = deque()
        self.packets = self.bytes = 0
        self.dice = random.Random(source)

    def take(self) -> None:
        """Take what the source device has."""
        for _ in range(64):
            try:
                packet = os.read(self.source, 65536)
            except OSError:  # nothing more, or the device is gone
                return
            now = time.monotonic()
            start = max(now, self.free_at)
            if start - now > self.buffer:
                continue
            self.free_at = start + len(packet) / self.rate
            if self.dice.random() >= self.loss:
                self.under_way.append((self.free_at + self.delay, packet))

    def give(self) -> float:
        """Deliver what is due; seconds until the next packet is."""
        while self.under_way:
            wait = self.under_way[0][0] - time.monotonic()
            if wait > 0:
                return wait
            packet = self.under_way.popleft()[1]
            try:
                os.write(self.target, packet)
            except OSError:  # the device is down
                continue
            self.packets += 1
            self.bytes += len(packet)
        return 1.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("near")
    parser.add_argument("far")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--delay", type=float, required=True)
    parser.add_argument("--loss", type=float, required=True)
    parser.add_argument("--buffer", type=float, default=0.1)
    told = parser.parse_args()
    near, far = device(told.near), device(told.far)
    options = {"rate": told.rate, "delay": told.delay, "loss": told.loss, "buffer": told.buffer}
    down, up = Direction(far, near, **options), Direction(near, far, **options)
    print("ready", flush=True)
    began = reported = time.monotonic()
    poll = select.poll()
    for handle in (near, far):
        poll.register(handle, select.POLLIN)
    while True:
        wait = min(down.give(), up.give(), 0.25)
        for handle, _ in poll.poll(max(0, wait * 1000)):
            (down if handle == far else up).take()
        if (now := time.monotonic()) - reported >= 0.25:
            reported = now
            print(f"{now - began:.3f} {down.packets} {down.bytes}", flush=True)


if __name__ == "__main__":
    main()
