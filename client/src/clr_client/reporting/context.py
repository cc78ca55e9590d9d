"""Which run the running code belongs to: the id that its log lines, its report and its running state share."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_run: ContextVar[str] = ContextVar("clr_run", default="")


def run_id() -> str:
    """Return the id of the run that is at work here; empty outside of runs. Threads of a run know it too."""
    return _run.get()


@contextmanager
def running() -> Iterator[str]:
    """Be a new run within the block. Yields its id: month, day and time of the beginning in UTC, and chance."""
    number = f"{datetime.now(UTC):%m%d-%H%M}-{secrets.token_hex(3)}"
    token = _run.set(number)
    try:
        yield number
    finally:
        _run.reset(token)
