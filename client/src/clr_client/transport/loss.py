"""Does the line lose packets, and does the server's congestion control give way to that?

The kernel knows for each of our connections how many segments came and how many of them out of order. After a lost one
all others are out of order until it has been sent again, a round trip later: that tells the loss from this side. It is
asked over netlink (sock_diag(7)), which needs no rights and no program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import struct
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.errors import Trouble

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

log = logging.getLogger("clr.sync")

LOOK_SECONDS = 2.0
LEAST_SEGMENTS = 1000
LEAST_LOSS = 0.003
QUEUED = 2.0
"""Times the shortest round trip: a longer one means that packets wait, and are lost, because the line is full."""
NEAR = 4.0
"""Who gives way to loss is within this factor of what the theory says."""

LOSSY = Trouble(
    "the line loses packets, about {percent:.1f} % ({milliseconds:.0f} ms there and back), and the server's congestion"
    " control gives way to that: {rate:.2f} MB/s a connection",
    "If the line carries more, BBR at the server gets it: docs/how-to/lossy-lines.md",
)

_REQUEST, _DUMP, _BY_FAMILY = 0x1, 0x300, 20
_STATES = 1 << 1 | 1 << 8  # ESTABLISHED, CLOSE_WAIT
_WANT_INFO, _INFO = 1 << 1, 2
_RTT, _RECEIVED, _MIN_RTT, _SEGMENTS, _OUT_OF_ORDER = 68, 128, 148, 152, 224  # in struct tcp_info, linux/tcp.h


@dataclass(frozen=True, slots=True)
class Count:
    """What the kernel counted of one connection until ``at`` (seconds): segments with data, those of them out of order,
    and bytes; and the round trip, now and at its shortest, in seconds.
    """

    at: float
    segments: int
    out_of_order: int
    bytes: int
    rtt: float
    min_rtt: float


@dataclass(frozen=True, slots=True)
class Interval:
    """What one connection brought in some ``seconds``."""

    seconds: float
    segments: int
    out_of_order: int
    bytes: int
    rtt: float
    min_rtt: float

    @property
    def window(self) -> float:
        """Segments under way at a time."""
        return max(1.0, self.segments / self.seconds * self.rtt)


def between(before: Count, after: Count) -> Interval:
    """What came between two counts of a connection."""
    return Interval(
        seconds=after.at - before.at,
        segments=after.segments - before.segments,
        out_of_order=after.out_of_order - before.out_of_order,
        bytes=after.bytes - before.bytes,
        rtt=after.rtt,
        min_rtt=after.min_rtt,
    )


def loss(intervals: Iterable[Interval]) -> float:
    """Which share of the packets was lost, estimated.

    A segment is out of order when one of those that were under way before it, a window full, is missing. Where nearly
    all are, it is a lower bound.
    """
    busy = [each for each in intervals if each.segments > 0]
    seen = sum(min(each.out_of_order, each.segments) for each in busy)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        expected = sum(each.segments * -math.expm1(each.window * math.log1p(-middle)) for each in busy)
        low, high = (middle, high) if expected < seen else (low, middle)
    return low


def yielding_window(lost: float, rtt: float) -> float:
    """Segments that congestion control by loss has under way: the larger of Reno's (RFC 5681, by Mathis) and CUBIC's
    (RFC 9438, section 5.1).
    """
    return max(math.sqrt(1.5 / lost), 1.054 * math.pow(rtt / lost, 0.75))


def finding(intervals: Iterable[Interval]) -> str:
    """What to say about a line that loses packets while the server gives way to that; empty: nothing.

    Nothing is said of a line that is full, of one whose server does not mind the loss (BBR), and where something else
    is slower than the loss would make it.
    """
    busy = [each for each in intervals if each.segments > 0]
    segments = sum(each.segments for each in busy)
    if segments < LEAST_SEGMENTS:
        return ""

    def mean(values: Iterable[float]) -> float:
        return sum(value * each.segments for value, each in zip(values, busy, strict=True)) / segments

    lost, rtt, window = loss(busy), mean(each.rtt for each in busy), mean(each.window for each in busy)
    if lost < LEAST_LOSS or rtt > QUEUED * mean(each.min_rtt for each in busy):
        return ""
    if not 1 / NEAR < window / yielding_window(lost, rtt) < NEAR:
        return ""
    rate = sum(each.bytes for each in busy) / sum(each.seconds for each in busy)
    return LOSSY.told(percent=lost * 100, milliseconds=rtt * 1000, rate=rate / 1e6)[0]


class Watch:
    """Collects what the connections of this account to one port bring."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.intervals: list[Interval] = []
        self._before: Mapping[bytes, Count] = {}

    def look(self) -> None:
        """Take the counts of this moment."""
        now = counts(self.port)
        self.intervals += (between(self._before[key], count) for key, count in now.items() if key in self._before)
        self._before = now

    async def run(self) -> None:
        """Look every now and then, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def watched(port: int, tell: Callable[[str], object]) -> AsyncIterator[None]:
    """Watch the connections to a server's port meanwhile; log what was found, and tell it."""
    watch = Watch(port)
    watching = asyncio.create_task(watch.run())
    try:
        yield
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        if text := finding(watch.intervals):
            log.info("%s. %s", text, LOSSY.remedy)
            tell(text)


def counts(port: int) -> dict[bytes, Count]:
    """Counts of this account's TCP connections to a port, each under a key that stays its own; empty where the kernel
    does not tell (before Linux 5.4, or without its module tcp_diag).
    """
    found: dict[bytes, Count] = {}
    with contextlib.suppress(OSError):
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in _ask(family, port):
                if count := _count(message):
                    found[message[44:52]] = count  # the cookie
    return found


def _ask(family: int, port: int) -> Iterator[bytes]:
    """Yield the kernel's messages (struct inet_diag_msg, attributes) about connections to a port."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as kernel:
        kernel.settimeout(5)
        about = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, _WANT_INFO, _STATES)
        which = struct.pack("!HH36x", 0, port) + b"\xff" * 8
        request = about + which
        kernel.send(struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _REQUEST | _DUMP, 1, 0) + request)
        while True:
            data = kernel.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind != _BY_FAMILY:
                    return  # done, or an error
                yield data[16:length]
                data = data[(length + 3) & ~3 :]


def _count(message: bytes) -> Count | None:
    if struct.unpack_from("=I", message, 64)[0] != os.getuid():
        return None
    at = 72
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == _INFO and length >= 4 + _OUT_OF_ORDER + 4:
            info = message[at + 4 : at + length]
            rtt, min_rtt, segments, late = (
                struct.unpack_from("=I", info, place)[0] for place in (_RTT, _MIN_RTT, _SEGMENTS, _OUT_OF_ORDER)
            )
            received = struct.unpack_from("=Q", info, _RECEIVED)[0]
            return Count(time.monotonic(), segments, late, received, rtt / 1e6, min_rtt / 1e6)
        at += max(4, (length + 3) & ~3)
    return None
