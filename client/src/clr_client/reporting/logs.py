"""One event, one line: as text for people, or as JSON for collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime
from typing import TYPE_CHECKING

from clr_client.text import printable

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo


class _Lines(logging.Formatter):
    """Time with offset, level when it is not the ordinary one, text; no raw control character from elsewhere."""

    def __init__(self, zone: ZoneInfo) -> None:
        super().__init__()
        self.zone = zone

    def when(self, record: logging.LogRecord) -> str:
        return datetime.fromtimestamp(record.created, self.zone).isoformat(timespec="seconds")

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{self.when(record)} {level}{printable(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": self.when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": printable(record.getMessage()),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event)


def configure(zone: ZoneInfo, *, form: str = "text", level: str = "info") -> None:
    """Send all log lines to standard output. A closed output ends nothing: lines are dropped."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Json(zone) if form == "json" else _Lines(zone))
    logging.raiseExceptions = False
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
