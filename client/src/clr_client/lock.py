"""One run at a time on a library volume."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

from clr_client.disk import unusable
from clr_client.errors import LockedError, StoreError
from clr_client.reporting import context
from clr_client.transport.runner import inheriting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = ".lock"
ORPHAN_SECONDS = 10.0
PROBE_SECONDS = 0.3
"""Whoever asks whether a run is at work holds the lock for an instant, which must not keep a run from beginning."""


@contextmanager
def hold(root: Path, trigger: str) -> Iterator[None]:
    """Hold the volume ``root`` for one run. The kernel frees the lock when the process ends, however it ends.

    A second lock is held by the programs of the run too: what a killed run left at work is waited for, so that
    nothing else ever writes to the volume.

    :raises LockedError: another run holds it; says since when.
    :raises StoreError: the volume cannot be written to.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = (root / NAME).open("a+", encoding="utf-8")
    except OSError as error:
        raise unusable(root, error) from error
    with ExitStack() as stack:
        stack.callback(_close, handle)
        try:
            _take(handle, PROBE_SECONDS)
        except BlockingIOError:
            raise LockedError(f"already running since {_shown(_holder(root))}") from None
        except OSError as error:
            raise StoreError(
                f"the library volume {root} cannot be locked: {error}",
                "Its file system must support flock: a local disk does, NFS from version 4 on",
            ) from error
        began = datetime.now(UTC).isoformat(timespec="seconds")
        since = {"since": began, "trigger": trigger, "run": context.run_id()}
        with suppress(OSError):  # a full volume: then nobody is told since when
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), json.dumps(since).encode())
        stack.enter_context(_alone(root))
        yield


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Wait for the rsync of a killed run, which ends by itself; let those of this run be waited for likewise."""
    try:
        handle = (root / f"{NAME}-rsync").open("a+", encoding="utf-8")
    except OSError as error:
        raise unusable(root, error) from error
    with ExitStack() as stack:
        stack.callback(_close, handle)
        try:
            _take(handle, ORPHAN_SECONDS)
        except BlockingIOError:
            raise LockedError(
                "an rsync of a run that was killed is still at work on the library volume",
                "It ends by itself; if it does not, its disk hangs",
            ) from None
        stack.enter_context(inheriting(handle.fileno()))
        yield


def _take(handle: IO[str], seconds: float) -> None:
    """Lock a file, trying for a while; BlockingIOError when another still has it then."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def holder(root: Path) -> dict[str, Any] | None:
    """Return what the run that holds the volume said of itself: since, trigger, run. None when nobody holds it."""
    try:
        with (root / NAME).open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(root)
    except OSError:
        pass
    return None


def running_since(root: Path) -> str:
    """Say since when a run holds the volume; empty when none does."""
    held = holder(root)
    return "" if held is None else _shown(held)


def _close(handle: IO[str]) -> None:
    with suppress(OSError):  # a failing disk; what was to be said about it was said
        handle.close()


def _holder(root: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        content = json.loads((root / NAME).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _shown(held: dict[str, Any]) -> str:
    return f"{held['since']} ({held['trigger']})" if {"since", "trigger"} <= held.keys() else "a moment ago"
