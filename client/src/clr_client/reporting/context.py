"""What a log line is about: the run that the running code belongs to, whose id its report and its running state share
too, and what the code itself says of an event beside its text.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_run: ContextVar[str] = ContextVar("clr_run", default="")


def run_id() -> str:
    """Return the id of the run that is at work here; empty outside of runs. Threads of a run know it too."""
    return _run.get()


@contextmanager
def running() -> Iterator[str]:
    """Be a run within the block: the one that is at work here already, or a new one.

    Yields its id: month, day and time of the beginning in UTC, and chance.
    """
    if known := _run.get():
        yield known
        return
    number = f"{datetime.now(UTC):%m%d-%H%M}-{os.urandom(3).hex()}"
    token = _run.set(number)
    try:
        yield number
    finally:
        _run.reset(token)


def about(**facts: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return the ``extra`` of a log call: fields of its line as JSON; ``item`` is the item concerned."""
    return {"facts": facts}
