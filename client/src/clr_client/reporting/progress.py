"""Who watches a sync: a line every few seconds in logs, and the web server's 503 answer; bar.py has the bar."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from clr_client.reporting.context import about
from clr_client.text import size, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("clr.sync")

LINE_SECONDS = 10.0
FILE_SECONDS = 1.0


class Observer:
    """Is told what a sync does; this one ignores it."""

    def stage(self, text: str) -> None:
        """Be told that a new stage began, in words."""

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:
        """Be told how far a transfer is: ``done`` of ``total`` bytes, ``rate`` in bytes per second."""

    def finish(self, failure: str = "") -> None:
        """Be told that the sync ended, with the reason if it failed."""


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def stage(self, text: str) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.stage(text)

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:
        """Tell all."""
        for observer in self.observers:
            observer.transfer(done, total, rate, file)

    def finish(self, failure: str = "") -> None:
        """Tell all."""
        for observer in self.observers:
            observer.finish(failure)


class LogLines(Observer):
    """Log each stage, and a running transfer every few seconds."""

    def __init__(self, every: float = LINE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.clock = every, clock
        self.last = clock()

    def stage(self, text: str) -> None:
        """Log the stage."""
        self.last = self.clock()
        log.info("%s", text)

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:
        """Log how far, how fast and how long still, unless a line was logged just now."""
        if self.clock() - self.last < self.every:
            return
        self.last = self.clock()
        percent = min(100, done * 100 // total) if total else 100
        left = f", {span((total - done) / rate)} left" if rate > 0 and total > done else ""
        log.info(
            "%d %% (%s of %s), %s/s%s%s",
            percent,
            size(done),
            size(total),
            size(rate),
            left,
            f", {file}" if file else "",
            extra=about(done_bytes=done, total_bytes=total, rate=round(rate), file=file or ""),
        )


class ProgressFile(Observer):
    """Keep the body of the 503 answer that subscribers get while nothing was ever published."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self.clock = path, clock
        self.last = 0.0
        self.percent = 0
        self.is_broken = False
        self._write("")

    def stage(self, text: str) -> None:  # noqa: ARG002 - subscribers get a number
        """Show that work goes on."""
        self._write("")

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:  # noqa: ARG002
        """Show how far it is."""
        if self.clock() - self.last < FILE_SECONDS:
            return
        self.last = self.clock()
        self.percent = min(99, done * 100 // total) if total else 0
        self._write("")

    def finish(self, failure: str = "") -> None:
        """Say why there is no library, if it failed; the text means failure to subscribers."""
        self._write(failure)

    def _write(self, message: str) -> None:
        body = json.dumps(
            {"status": "FAILED" if message else "TRANSFERRING", "progress": self.percent, "message": message}
        )
        unfinished = self.path.with_name(f".new-{self.path.name}")
        try:
            unfinished.write_text(body + "\n", encoding="utf-8")
            unfinished.rename(self.path)
        except OSError as error:
            if not self.is_broken:
                log.warning("progress cannot be shown: %s", error)
            self.is_broken = True
