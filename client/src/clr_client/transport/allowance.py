"""One bandwidth limit for everything that a sync transfers, which may change at any moment.

rsync's own --bwlimit is fixed when it starts, and is one process's. So ssh connects through a relay (``relay.py``) that
forwards only what it is permitted, and here permits are handed out: one byte in a named pipe for ``UNIT`` bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import shlex
import struct
import sys
import termios
import time
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clr_client.transport import relay
from clr_client.transport.relay import UNIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from clr_client.transport.ssh import Link

TICK_SECONDS = 0.05
SAVED_SECONDS = 0.25
"""For how long permits that nobody takes are kept: a pause is not made up for."""
MOST_PERMITS = 65536
"""What a pipe holds. Without a limit so many are handed out at each tick: 1.3 GB/s."""


@asynccontextmanager
async def limited(link: Link, rate: Callable[[], int], most: int = 0) -> AsyncIterator[Link]:
    """Keep all that goes through the link, in both directions and all connections together, to a rate.

    :param rate: returns the limit of the moment in bytes per second, 0 for none; asked at each tick.
    :param most: the highest that it will be, 0 if there may be none.
    :returns: the link to use instead of the one given.
    """
    with TemporaryDirectory(prefix="clr-line-") as folder:
        place = Path(folder, "allowance")
        os.mkfifo(place, 0o600)
        # For reading as well: then it can be opened while no relay runs, and permits can be taken back.
        pipe = os.open(place, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        handing_out = asyncio.create_task(_hand_out(pipe, rate))
        try:
            yield dataclasses.replace(link, proxy=proxy_command(link, most, place))
        finally:
            handing_out.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await handing_out
            os.close(pipe)


def proxy_command(link: Link, most: int, allowance: Path) -> str:
    """ssh's ProxyCommand: a line for a shell, in which ssh replaces what follows a percent sign."""
    seconds = link.connect_timeout.total_seconds()
    words = [sys.executable, "-ISB", relay.__file__, link.peer.host, link.peer.port, seconds, most, allowance]
    return shlex.join(str(word) for word in words).replace("%", "%%")


async def _hand_out(pipe: int, rate: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
    owed, before = 0.0, clock()
    while True:
        now, limit = clock(), rate()
        owed, change = due(limit, now - before, owed, _waiting(pipe))
        before = now
        with contextlib.suppress(BlockingIOError):
            if change > 0:
                os.write(pipe, bytes(change))
            elif change < 0:
                os.read(pipe, -change)
        await asyncio.sleep(TICK_SECONDS)


def due(limit: int, seconds: float, owed: float, waiting: int) -> tuple[float, int]:
    """How many permits to hand out after so many seconds, negative to take back. Pure.

    :param limit: bytes per second; 0 for none.
    :param owed: the part of a permit that was left over.
    :param waiting: permits that nobody has taken yet.
    :returns: what is left over now, and the number.
    """
    if limit == 0:
        return 0.0, MOST_PERMITS - waiting
    owed += seconds * limit / UNIT
    most = min(MOST_PERMITS, int(limit * SAVED_SECONDS / UNIT) + 1)
    change = min(int(owed), most - waiting)
    return min(owed - max(change, 0), 1.0), change


def _waiting(pipe: int) -> int:
    answer = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int(struct.unpack("i", answer)[0])
