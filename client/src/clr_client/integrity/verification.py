"""`clr verify` and VERIFY_SCHEDULE: read everything that is published, note what is damaged, mend it, report.

Reading takes no lock and steps back for everybody else, so syncs and readers go on meanwhile. Only mending takes the
lock. What cannot be mended now is mended by the next sync that can.
"""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.errors import ClrError, LockedError
from clr_client.integrity.audit import audit
from clr_client.integrity.damages import Damage, note, noted
from clr_client.integrity.repair import Mended, mend
from clr_client.pull import Job
from clr_client.reporting import context
from clr_client.reporting.progress import LogLines, Observer
from clr_client.reporting.status import Verification
from clr_client.servers import Servers
from clr_client.store import Store
from clr_client.sync import record
from clr_client.threads import in_background
from clr_client.update import open_library

if TYPE_CHECKING:
    import threading
    from contextlib import AbstractAsyncContextManager

    from clr_client.integrity.audit import OnProgress
    from clr_client.settings import Settings

log = logging.getLogger("clr.verify")

BUSY = "a sync is at work, which mends what it can"


class _StoppedError(Exception):
    """Nobody waits for the end of the reading any more."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read: ``found`` is all damage that it met, ``bytes`` how much there was to read."""

    found: tuple[Damage, ...] = ()
    bytes: int = 0


async def verify(
    settings: Settings,
    *,
    trigger: str,
    repairing: bool = True,
    on_progress: OnProgress = lambda _done, _total, _name: None,
    free: threading.Event | None = None,
    turn: AbstractAsyncContextManager[object] | None = None,
    observer: Observer | None = None,
) -> Verification:
    """Read everything published once, and mend what is damaged.

    :param repairing: False only reads and notes; the next sync mends.
    :param on_progress: told the bytes read so far, the bytes there are, and the name of the file, from another thread.
    :param free: the reading pauses while this is not set.
    :param turn: held while mending, beside the volume's lock.
    :raises ManifestError: nothing was ever published.
    """
    store = Store(settings.clr_library_dir)
    with context.running() as run:
        started, clock = _now(), time.monotonic()
        error = ""
        reading = await in_background(lambda stop: _read(store, on_progress, free, stop))
        mended = Mended(left=reading.found)
        if repairing and noted(store):
            try:
                async with turn or nullcontext():
                    mended = await _mend(settings, store, trigger, observer or LogLines())
            except LockedError:
                error = BUSY
            except ClrError as failure:
                error = str(failure)
        done = Verification(
            trigger=trigger,
            started=started,
            ended=_now(),
            seconds=round(time.monotonic() - clock, 1),
            bytes=reading.bytes,
            found=reading.found,
            mended=mended.mended,
            damaged=mended.left,
            error=error,
            run=run,
        )
        if repairing:
            for damage in done.damaged:
                log.warning("damaged: %s", damage, extra=context.about(item=damage.item))
        try:
            record(store, lambda status: status, done)
        except OSError as failure:
            log.warning("the status file cannot be written: %s", failure)
        return done


def _read(store: Store, on_progress: OnProgress, free: threading.Event | None, stop: threading.Event) -> Reading:
    known = {damage.path: damage for damage in noted(store)}
    found: list[Damage] = []
    total = 0

    def advance(done: int, all_of_it: int, name: str) -> None:
        nonlocal total
        total = all_of_it
        while free is not None and not free.wait(0.2) and not stop.is_set():
            pass
        if stop.is_set():
            raise _StoppedError
        on_progress(done, all_of_it, name)

    for damage in audit(store, advance):
        if damage.path not in known:
            note(store, damage)
        found.append(known.get(damage.path, damage))
    return Reading(tuple(found), total)


async def _mend(settings: Settings, store: Store, trigger: str, observer: Observer) -> Mended:
    with store.locked(f"verification, {trigger}"):
        published = await open_library(settings, store, observer)
        async with Servers(settings, store, observer) as servers:
            return await mend(Job(settings, store, servers, published, observer))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
