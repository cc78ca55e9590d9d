"""Several transfers at once: batches are taken in order by as many workers as there are connections."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from clr_client.errors import TransportError
from clr_client.transport.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clr_client.transport.batches import Batch
    from clr_client.transport.transfer import Transfer

log = logging.getLogger("clr.sync")


Bring = Callable[["Batch", Callable[[Progress], None]], Awaitable["Transfer"]]
"""Brings one batch and tells how far it is."""


async def fetch_all(
    batches: Sequence[Batch],
    bring: Bring,
    *,
    at_once: int,
    on_transfer: Callable[[Transfer], None],
    on_progress: Callable[[Progress], None],
) -> None:
    """Bring batches of files, ``at_once`` at the same time.

    A worker whose line breaks ends, and the others go on with what is left. A failure that no retry can mend ends all.

    :param on_transfer: called at the end of each batch that went through.
    :param on_progress: called with what all of them did so far, together.
    :raises HostKeyError: the server's key is not the one known.
    :raises TransportError: at least one batch did not go through; what arrived stays.
    """
    waiting = deque(enumerate(batches))
    errors: list[TransportError] = []
    sums = _Sums(on_progress)

    async def work() -> None:
        while waiting:
            number, batch = waiting.popleft()
            sums.start(number)
            try:
                on_transfer(await bring(batch, partial(sums.add, number)))
            except TransportError as error:
                errors.append(error)
                if not error.retryable:
                    raise
                if len(sums.running) > 1:
                    log.warning("one transfer ended early, the others go on: %s", error)
                return
            finally:
                sums.stop(number)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(batches))):
                group.create_task(work())
    except BaseExceptionGroup as found:
        raise found.exceptions[0] from None
    if errors:
        raise errors[0]


class _Sums:
    """Adds up how far all transfers, each with a number, are."""

    def __init__(self, tell: Callable[[Progress], None]) -> None:
        self.running: dict[int, Progress] = {}
        self._tell = tell
        self._ended = 0

    def start(self, number: int) -> None:
        """Note that a transfer begins."""
        self.running[number] = Progress(0, 0.0, None)

    def add(self, number: int, progress: Progress) -> None:
        """Take what one transfer tells, and tell the sum."""
        self.running[number] = progress
        done = self._ended + sum(each.done_bytes for each in self.running.values())
        self._tell(Progress(done, sum(each.rate for each in self.running.values()), progress.file))

    def stop(self, number: int) -> None:
        """Note that a transfer is over; what it did still counts."""
        self._ended += self.running.pop(number).done_bytes
