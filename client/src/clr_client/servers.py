"""The servers of one run: how they are reached, and what they have."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from clr_client import transport
from clr_client.errors import TransportError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from clr_client.reporting.progress import Observer
    from clr_client.settings import Settings
    from clr_client.store import Store
    from clr_client.transport import Link, Listing
    from clr_client.values import Peer

log = logging.getLogger("clr.sync")


def link_to(peer: Peer, settings: Settings, store: Store) -> Link:
    """Return everything that ssh needs to reach a server."""
    return transport.Link(
        peer=peer,
        user=settings.sync_user,
        identity=settings.clr_keys_dir / "id_syncer",
        known_hosts=store.known_hosts,
        trust_first=not settings.sync_host_key,
        connect_timeout=settings.sync_connect_timeout,
        idle_timeout=settings.sync_timeout,
    )


class Servers:
    """Asks a site's servers for their listings; a context manager, with whose end no question is left open.

    The first server can be asked early: its answer comes while other work is done, and is given to who asks it next.
    """

    def __init__(self, settings: Settings, store: Store, observer: Observer) -> None:
        self._settings, self._store, self._observer = settings, store, observer
        self._early: asyncio.Task[Listing] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._early is not None:
            self._early.cancel()
            await asyncio.gather(self._early, return_exceptions=True)

    async def reach(self, peer: Peer) -> Link:
        """Return how a server is reached, its host key pinned where there is one to pin.

        :raises TransportError: it does not have the pinned key, or does not answer.
        """
        link = link_to(peer, self._settings, self._store)
        if self._settings.sync_host_key:
            await transport.pin(link, self._settings.sync_host_key)
        return link

    async def ask_early(self) -> None:
        """Ask the first server for its listing. A failure is told to who asks it next."""
        with suppress(TransportError):
            link = await self.reach(self._settings.peers[0])
            self._early = asyncio.create_task(self._ask(link))

    async def early(self) -> tuple[Peer, Listing] | None:
        """Wait for what the first server answers to the early question; None if it was not asked or cannot tell.

        :raises TransportError: SYNC_WINDOW ended.
        """
        if self._early is None:
            return None
        await asyncio.wait([self._early], timeout=self._settings.sync_window.total_seconds() or None)
        if not self._early.done():
            raise window_ended()
        failed = self._early.cancelled() or self._early.exception()
        return None if failed else (self._settings.peers[0], self._early.result())

    async def listing(self, link: Link) -> Listing:
        """Return what a server has.

        :raises TransportError: it cannot be listed.
        """
        early, self._early = self._early, None
        if early is not None and link.peer == self._settings.peers[0]:
            return await early
        return await self._ask(link)

    async def _ask(self, link: Link) -> Listing:
        self._observer.stage(f"listing {link.peer}")
        known = transport.remembered_fingerprints(link.known_hosts, link.peer)
        listing = await transport.list_source(link)
        if not known and not self._settings.sync_host_key:
            for fingerprint in transport.remembered_fingerprints(link.known_hosts, link.peer):
                log.warning(
                    "%s was met for the first time and is trusted from now on; to pin it, set SYNC_HOST_KEY=%s",
                    link.peer,
                    fingerprint.split()[0],
                )
        return listing


def window_ended() -> TransportError:
    """Say that the time for a run was over before anything was known."""
    return TransportError("SYNC_WINDOW ended before a server could be listed", "Is the line up?")
