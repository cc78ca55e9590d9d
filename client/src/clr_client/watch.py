"""Looks at the site all the time, and tells those who show it to others whenever there is something new.

It reads files only, so it sees also what other processes do: `clr sync`, `clr rollback`, `clr verify`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from clr_client.reporting.document import Known, describe, signs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from clr_client.settings import Settings

log = logging.getLogger("clr.watch")

LOOK = 1.0
"""Seconds between looks at what may have changed."""
RENEW = 60.0
"""Seconds after which the site is described anew in any case: room on the disk changes without a sign."""
FIRST = 20.0
"""Longest wait for the first description, which a volume that hangs must not make longer."""

Document = dict[str, Any]


class Listener(Protocol):
    """Is told of the site; see reporting/document.py for the document, which is not its own to change.

    A plain ``tell`` is called in a thread, one call at a time. Whoever is slow misses what came in between, and keeps
    nobody else waiting. What it raises is logged once, until it has worked again.
    """

    def tell(self, document: Document) -> Awaitable[None] | None:
        """Be told how the site is now."""
        ...


class Watcher:
    """Describes the site to ``listeners``: at once, when something changes, and every minute."""

    def __init__(self, settings: Settings, listeners: Iterable[Listener]) -> None:
        self.settings = settings
        self._ears = [_Ear(listener) for listener in listeners]
        self._known = Known()
        self._signs: object = None
        self._renew = 0.0
        self._next_sync = datetime.min.replace(tzinfo=UTC)

    async def begin(self) -> None:
        """Tell all listeners once, and return when they have heard it or it takes too long."""
        try:
            async with asyncio.timeout(FIRST):
                document = await self._look()
                await asyncio.gather(*(ear.tell(document) for ear in self._ears if document))
        except TimeoutError:
            log.warning("the site could not be described within %.0f s", FIRST)

    async def go(self) -> None:
        """Look and tell, for ever."""
        listening = [asyncio.create_task(ear.listen()) for ear in self._ears]
        try:
            while True:
                if document := await self._look():
                    for ear in self._ears:
                        ear.hand(document)
                await asyncio.sleep(LOOK)
        finally:
            for task in listening:
                task.cancel()

    async def _look(self) -> Document | None:
        """Return a document if there may be something new in it."""
        seen = await asyncio.to_thread(signs, self.settings)
        if seen == self._signs and time.monotonic() < self._renew and datetime.now(UTC) < self._next_sync:
            return None
        document = await asyncio.to_thread(describe, self.settings, self._known)
        self._signs, self._renew = seen, time.monotonic() + RENEW
        self._next_sync = datetime.fromisoformat(document["next_sync"])
        return document


class _Ear:
    """One listener, and the newest document that it has not heard yet."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self._is_broken = False
        self._news = asyncio.Event()
        self._document: Document = {}

    def hand(self, document: Document) -> None:
        """Leave a document for the listener, in place of one that it has not heard."""
        self._document = document
        self._news.set()

    async def listen(self) -> None:
        """Tell the listener what is left for it, for ever."""
        while True:
            await self._news.wait()
            self._news.clear()
            await self.tell(self._document)

    async def tell(self, document: Document) -> None:
        """Tell the listener; raises nothing."""
        try:
            if inspect.iscoroutinefunction(self.listener.tell):
                await self.listener.tell(document)
            else:
                await asyncio.to_thread(self.listener.tell, document)
        except Exception as error:  # whatever it is, syncs and other listeners go on
            if not self._is_broken:
                log.warning("%s: %s", type(self.listener).__name__, error, exc_info=not isinstance(error, OSError))
            self._is_broken = True
        else:
            self._is_broken = False
