"""One event, one line: as text for people, or as JSON for collectors.

Text: time, the site where it was given a name, the run in brackets, the level when it is not the ordinary one, and what
happened. JSON has these as fields, and numbers besides.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import re
import sys
import threading
from datetime import datetime
from typing import TYPE_CHECKING

from clr_client.reporting import bar, context
from clr_client.text import printable

if TYPE_CHECKING:
    from typing import TextIO
    from zoneinfo import ZoneInfo

WAITING_LINES = 10_000
"""Lines that wait for a reader that stands still; further ones are dropped."""
LAST_WORDS_SECONDS = 2.0
PREFIX = re.compile(r"\[[^\]]*\] |(debug|info|warning|error|critical): ", re.IGNORECASE)
"""What stands before a text; a text that begins so itself, because a name does, is told apart by an escape."""


class _Lines(logging.Formatter):
    """Time with offset, level when it is not the ordinary one, text; no raw control character from elsewhere.

    Lines of a traceback are indented, so that none of them can pass for an event.
    """

    def __init__(self, zone: ZoneInfo, site: str) -> None:
        super().__init__()
        self.zone, self.site = zone, printable(site)

    def when(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, self.zone).isoformat(timespec="seconds")

    def traceback(self, record: logging.LogRecord) -> str:
        lines = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return "\n".join(f"  {printable(line)}" for line in lines)

    def format(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        if PREFIX.match(text):
            text = f"\\x{ord(text[0]):02x}{text[1:]}"
        run = context.run_id().rpartition("-")[2]
        words = [self.when(record), self.site, f"[{run}]" if run else ""]
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{' '.join(filter(None, words))} {level}{text}"
        return f"{line}\n{self.traceback(record)}" if record.exc_info else line


class _Json(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": self.when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "site": self.site,
            "run": context.run_id(),
            "message": printable(record.getMessage()),
        }
        facts = getattr(record, "facts", {})
        event |= {name: printable(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
        if record.exc_info:
            event["traceback"] = self.traceback(record)
        return json.dumps(event)


class _Patient(logging.Handler):
    """Writes lines in a thread, so that a reader that stands still or is gone stops nothing."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.above = bar.above if os.isatty(descriptor) else contextlib.nullcontext
        self.lines: queue.Queue[str | None] = queue.Queue(WAITING_LINES)
        self.thread = threading.Thread(target=self._write, name="log", daemon=True)
        self.thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(self.format(record) + "\n")

    def close(self) -> None:
        with contextlib.suppress(queue.Full):
            self.lines.put_nowait(None)
        self.thread.join(LAST_WORDS_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self.lines.get()) is not None:
            rest = line.encode("utf-8", "backslashreplace")
            with contextlib.suppress(OSError), self.above():
                while rest:
                    rest = rest[os.write(self.descriptor, rest) :]


def configure(
    zone: ZoneInfo, *, form: str = "text", level: str = "info", stream: TextIO | None = None, site: str = ""
) -> None:
    """Send all log lines to ``stream``, standard output by default. A closed or stuck one ends nothing.

    :param form: text or json.
    :param site: name of the site that each line bears; empty for none.
    """
    stream = stream or sys.stdout
    handler: logging.Handler
    try:
        handler = _Patient(stream.fileno())
    except io.UnsupportedOperation:
        handler = logging.StreamHandler(stream)
    handler.setFormatter(_Json(zone, site) if form == "json" else _Lines(zone, site))
    logging.raiseExceptions = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
