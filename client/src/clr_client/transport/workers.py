"""Several transfers at once: batches are taken in order by as many workers as there are connections.

On a long line a connection takes seconds to come about, in which it brings nothing. So a worker begins with its next
batch when the one before will end in about that time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
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
    """Bring batches of files, ``at_once`` at the same time, beside those that only begin while one of these ends.

    A worker whose line breaks ends, and the others go on with what is left. A failure that no retry can mend ends all.

    :param on_transfer: called at the end of each batch that went through.
    :param on_progress: called with what all of them did so far, together.
    :raises HostKeyError: the server's key is not the one known.
    :raises TransportError: at least one batch did not go through; what arrived stays.
    """
    work = _Work(batches, bring, on_transfer, on_progress, overlap=at_once > 1)
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(batches))):
                group.create_task(work.worker(group))
    except BaseExceptionGroup as found:
        raise found.exceptions[0] from None
    if work.errors:
        raise work.errors[0]


class _Work:
    """What several workers do together."""

    def __init__(
        self,
        batches: Sequence[Batch],
        bring: Bring,
        on_transfer: Callable[[Transfer], None],
        on_progress: Callable[[Progress], None],
        *,
        overlap: bool,
    ) -> None:
        self.errors: list[TransportError] = []
        self._waiting = deque(enumerate(batches))
        self._bring, self._on_transfer, self._overlap = bring, on_transfer, overlap
        self._sums = _Sums(on_progress)

    async def worker(self, group: asyncio.TaskGroup) -> None:
        """Bring one batch after the other, until none is left or one does not go through."""
        before: asyncio.Task[bool] | None = None
        while self._waiting:
            ending = asyncio.Event()
            this = group.create_task(self._one(*self._waiting.popleft(), ending))
            if before is not None and not await before:
                return
            await ending.wait()
            if this.done() and not this.result():
                return
            before = this

    async def _one(self, number: int, batch: Batch, ending: asyncio.Event) -> bool:
        """Bring a batch; return whether it went through. ``ending`` is set when the next one should begin."""
        lead = _Lead(batch.bytes)

        def tell(progress: Progress) -> None:
            self._sums.add(number, progress)
            if self._overlap and lead.is_near(progress):
                ending.set()

        self._sums.start(number)
        try:
            self._on_transfer(await self._bring(batch, tell))
        except TransportError as error:
            self.errors.append(error)
            if not error.retryable:
                raise
            if len(self._sums.running) > 1:
                log.warning("one transfer ended early, the others go on: %s", error)
            return False
        finally:
            self._sums.stop(number)
            ending.set()
        return True


class _Lead:
    """Tells of one transfer when it will end in about the time that a new one takes to bring something."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._clock = total, clock
        self._began = clock()
        self._seconds = 0.0

    def is_near(self, progress: Progress) -> bool:
        """Take what the transfer tells; True when the next should begin."""
        if progress.done_bytes and not self._seconds:
            self._seconds = self._clock() - self._began
        return self._total - progress.done_bytes < progress.rate * self._seconds


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
