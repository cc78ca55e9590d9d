"""Files that have arrived are hashed while the next ones arrive, so that little is left to do after the last byte."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from clr_client.content.verify import read_ahead
from clr_client.errors import HeldError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from clr_client.content.digests import DigestCache
    from clr_client.content.items import SourceItem
    from clr_client.files import FileInfo
    from clr_client.plan import Plan

log = logging.getLogger("clr.sync")

MOST_THREADS = 4


class Arrivals:
    """Reads files as they arrive in a mirror. What it finds out is in ``digests``, for the verification to use.

    Nothing that it finds is judged here: a file that cannot be read, or that changes meanwhile, is left to the
    verification.
    """

    def __init__(self, mirror: Path, digests: DigestCache) -> None:
        self.digests = digests
        self._mirror = mirror
        self._wanted: Mapping[str, tuple[SourceItem, FileInfo]] = {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="hash")

    def expect(self, plan: Plan) -> None:
        """Be told what is going to arrive."""
        self._wanted = {file.path: (item.source, file) for item in plan.items if item.source for file in item.fetch}

    def arrived(self, path: str) -> None:
        """Be told that a file is in its place. Returns at once."""
        if path in self._wanted:
            self._pool.submit(self._read, *self._wanted[path])

    def stop(self) -> None:
        """Read no further."""
        self._stop.set()

    def finish(self) -> None:
        """Wait until all that arrived has been read, or a stop took effect."""
        self._pool.shutdown(wait=True, cancel_futures=self._stop.is_set())

    def _read(self, item: SourceItem, file: FileInfo) -> None:
        try:
            read_ahead(item, file, self._mirror, self.digests, stop=self._stop)
        except (HeldError, OSError) as error:
            log.debug("%s is read again later: %s", file.path, error)
