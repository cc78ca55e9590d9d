"""``running.json``: what the running sync is doing, for those who look from other processes.

It is believed only while the lock is held by the very run that it names, so one that was killed leaves no ghost.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from clr_client import lock
from clr_client.disk import swap_file
from clr_client.reporting.progress import FILE_SECONDS, Observer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

log = logging.getLogger("clr.sync")

FIELDS = ("run", "trigger", "since", "stage", "done_bytes", "total_bytes", "rate", "file", "left_seconds")
"""What the document says of a running sync."""


class Running(Observer):
    """Keeps the file while a ``with`` block lasts. What goes wrong with it is logged once and is no failure.

    :param since: when the run began, UTC, ISO 8601.
    """

    def __init__(
        self, path: Path, run: str, trigger: str, since: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.path, self.since, self.clock = path, since, clock
        self.last = 0.0
        self.is_broken = False
        self.told: dict[str, Any] = {
            "run": run,
            "trigger": trigger,
            "since": since,
            "pid": os.getpid(),
            "stage": "starting",
            **dict.fromkeys(("done_bytes", "total_bytes", "rate", "file", "left_seconds")),
        }

    def __enter__(self) -> Running:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def stage(self, text: str) -> None:
        """Show the stage; how far the last transfer came stays."""
        self._write(stage=text, rate=None, file=None, left_seconds=None)

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:
        """Show how far it is, at most once a second."""
        if self.clock() - self.last < FILE_SECONDS:
            return
        self.last = self.clock()
        left = round(max(0, total - done) / rate) if rate > 0 else None
        self._write(done_bytes=min(done, total), total_bytes=total, rate=round(rate), file=file, left_seconds=left)

    def _write(self, **changes: object) -> None:
        self.told |= changes
        try:
            swap_file(self.path, json.dumps(self.told).encode())
        except OSError as error:
            if not self.is_broken:
                log.warning("what the sync is doing cannot be shown: %s", error)
            self.is_broken = True


def look(path: Path, root: Path) -> tuple[dict[str, Any] | None, str]:
    """Return what the running sync says of itself, or None; and the id of a run that was killed, or an empty text.

    :param path: running.json of the volume ``root``.
    """
    told = _load(path)
    if told is None:
        return None, ""
    holder = lock.holder(root)
    if holder is None:
        return None, str(told["run"])
    return ({name: told[name] for name in FIELDS}, "") if holder.get("run") == told["run"] else (None, "")


def _load(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        texts = {name: str(told[name]) for name in ("run", "trigger", "since", "stage")}
        numbers = {name: _number(told[name]) for name in ("done_bytes", "total_bytes", "rate", "left_seconds")}
        return {**texts, **numbers, "file": None if told["file"] is None else str(told["file"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _number(value: object) -> int | None:
    return None if value is None else int(str(value))
