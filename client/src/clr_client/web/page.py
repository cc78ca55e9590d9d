"""The files that Caddy serves below ``/_clr/``: the site's page, ``status.json``, ``progress.json``."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

from clr_client.disk import swap_file
from clr_client.reporting.document import dump
from clr_client.web.config import site_folder
from clr_client.web.pages import render

if TYPE_CHECKING:
    from clr_client.settings import Settings

SPARSELY = 20.0
"""While a sync runs, all files are written at most a twentieth of the time; ``progress.json`` is always."""
LIVE = ("schema", "written", "state", "running")


class Page:
    """Writes the site's files whenever it is told of something new; a reader has each one whole, old or new."""

    def __init__(self, settings: Settings) -> None:
        self.folder = site_folder(settings)
        self._written: dict[str, bytes] = {}
        self._run = ""
        self._again = 0.0

    def tell(self, document: dict[str, Any]) -> None:
        """Write what is new. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        run = document["running"]["run"] if document["running"] else ""
        if not run or run != self._run or time.monotonic() >= self._again:
            began = time.monotonic()
            for name, content in {**render(document), "status.json": dump(document)}.items():
                self._write(name, content)
            self._run, self._again = run, time.monotonic() + SPARSELY * (time.monotonic() - began)
        # Last, so that whoever learns from it that the page is another finds the other one.
        page = hashlib.sha256(self._written["index.html"]).hexdigest()[:16]
        self._write("progress.json", dump({**{name: document[name] for name in LIVE}, "page": page}))

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        if self._written.get(name) != content or not path.exists():
            swap_file(path, content)
            self._written[name] = content
