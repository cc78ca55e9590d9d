"""`clr run`: keeps the web site and the schedule alive, and owns the signals.

SIGTERM and SIGINT end it, a second one at once; SIGHUP reads the certificate anew; SIGUSR1 syncs now.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import signal
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from clr_client import __version__, transport
from clr_client.errors import ClrError, LockedError
from clr_client.integrity.verification import verify as verify_library
from clr_client.reporting import context, delivery
from clr_client.reporting.messenger import Heartbeat, Messenger
from clr_client.reporting.metrics import Metrics
from clr_client.settings import PREFIXES
from clr_client.store import Store
from clr_client.sync import next_due, synchronise
from clr_client.text import span
from clr_client.watch import Watcher
from clr_client.web import caddy
from clr_client.web.health import BEAT, heartbeat
from clr_client.web.page import Page
from clr_client.web.site import Site

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from clr_client.reporting.status import Verification
    from clr_client.schedule import Schedule
    from clr_client.settings import Settings
    from clr_client.watch import Listener

log = logging.getLogger("clr.daemon")

SLICE = 30.0
"""Longest sleep in seconds, after which the clock on the wall is looked at again."""
STEP_BACK = timedelta(minutes=1)
"""A clock that goes back by more has been set, not corrected."""
UNWIND = 20.0
"""Seconds that a cancelled sync gets to end its children."""
MOST_COUNTED = 1000


class Sync(Protocol):
    """One sync; raises ClrError for what is expected to go wrong."""

    def __call__(self, settings: Settings, *, trigger: str) -> Awaitable[object]:
        """Run one sync."""
        ...


class Verify(Protocol):
    """One verification; raises ClrError for what is expected to go wrong."""

    def __call__(
        self, settings: Settings, *, trigger: str, free: threading.Event, turn: AbstractAsyncContextManager[object]
    ) -> Awaitable[Verification]:
        """Read while ``free`` is set, mend while holding ``turn``."""
        ...


async def run(settings: Settings, sync: Sync = synchronise, site: Site | None = None) -> int:
    """Serve at once, sync now, then sync and verify on schedule until a signal ends it. Returns the exit code.

    :raises ClrError: it cannot even start: no server named, a service for messages that cannot be, or the web server
        cannot be run at all.
    """
    settings.require_peer()
    site = site or Site(settings)
    work = Work(settings, sync)
    watcher = Watcher(settings, listeners(settings))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(name: str) -> None:
        if stopping.is_set():
            log.warning("%s again: ending at once", name)
            site.caddy.kill()
            logging.shutdown()
            os._exit(1)
        log.info("%s: stopping", name)
        stopping.set()

    background: set[asyncio.Task[None]] = set()

    def refresh() -> None:
        task = asyncio.create_task(site.refresh(force=True))
        background.add(task)
        task.add_done_callback(background.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, refresh)
    loop.add_signal_handler(signal.SIGUSR1, work.asked.set)
    try:
        await _introduce(settings)
        if warning := await delivery.check(settings.notify_urls):
            log.warning("%s", warning)
        await _unless(stopping, watcher.begin())
        await _unless(stopping, site.start())
        tasks = [
            asyncio.create_task(_for_ever(lambda: _beat(settings), "heartbeat")),
            asyncio.create_task(_for_ever(site.watch, "certificate watch")),
            asyncio.create_task(_for_ever(watcher.go, "watch of the site")),
            asyncio.create_task(_for_ever(work.go, "schedule")),
        ]
        if settings.verify_schedule:
            tasks.append(asyncio.create_task(_for_ever(work.keep_verifying, "schedule of verifications")))
        await stopping.wait()
        for task in tasks:
            task.cancel()
        _, hanging = (await asyncio.gather(asyncio.wait(tasks, timeout=UNWIND), site.stop()))[0]
        if hanging:
            log.error("the sync did not stop within %.0f s", UNWIND)
    finally:
        await site.stop()
        heartbeat(settings).unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            loop.remove_signal_handler(number)
    log.info("stopped")
    return 0


def listeners(settings: Settings) -> list[Listener]:
    """Return who is told of the site."""
    found: list[Listener] = [Page(settings), Metrics(settings)]
    if settings.notify_urls:
        found.append(Messenger(settings, Store(settings.clr_library_dir)))
    if settings.heartbeat_url:
        found.append(Heartbeat(settings))
    return found


class Work:
    """The schedules: syncs in sequence, never two at once, and none made up for; and so with verifications.

    A verification reads for hours. It pauses while a sync runs, and only what it has to mend waits for its turn.
    ``asked`` is set to have a sync now, or right after the one that is running.
    """

    def __init__(
        self,
        settings: Settings,
        sync: Sync,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        slice_: float = SLICE,
        verify: Verify = verify_library,
    ) -> None:
        self.settings, self.sync, self.now, self.slice, self.verify = settings, sync, now, slice_, verify
        self.asked = asyncio.Event()
        self.turn = asyncio.Lock()
        """Held by the sync that runs, or by a verification that mends."""
        self.free = threading.Event()
        """Set while no sync runs."""
        self.free.set()
        self.skipped = 0
        """Scheduled runs that fell into another run."""
        self._capped = False
        self._trigger = "start"

    async def go(self) -> None:
        """Sync now, then on schedule, for ever."""
        while True:
            trigger, self._trigger = self._trigger, "schedule"
            started = self.now()
            is_announced = await self._sync(trigger)
            self.skipped += self._skipped(self.settings.sync_schedule, started, "syncs")
            self._trigger = await self.due(is_announced=is_announced)

    async def keep_verifying(self) -> None:
        """Verify on schedule, for ever."""
        schedule = self.settings.verify_schedule
        while schedule:
            await self._until(schedule, "verification", self._sleep)
            started = self.now()
            await self._verify()
            self._skipped(schedule, started, "verifications")

    async def due(self, *, is_announced: bool = False) -> str:
        """Wait until the next sync is due, and return what triggers it: schedule, or hand.

        :param is_announced: when that is was said already.
        """
        schedule = self.settings.sync_schedule
        next_run = await self._until(schedule, "sync", self._asked_within, is_announced=is_announced)
        if next_run is None or (self.settings.sync_delay and await self._delayed(next_run)):
            return "hand"
        return "schedule"

    async def _until(
        self,
        schedule: Schedule,
        what: str,
        asked_within: Callable[[float], Awaitable[bool]],
        *,
        is_announced: bool = False,
    ) -> datetime | None:
        """Wait until a run is due, and return when that was; None when asked to run at once."""
        reference = self.now()
        next_run = self._next(schedule, reference)
        if not is_announced:
            log.info("the next %s is due %s", what, self._local(next_run))
        while (remaining := (next_run - self.now()).total_seconds()) > 0:
            if await asked_within(min(remaining, self.slice)):
                return None
            now = self.now()
            if now < reference - STEP_BACK:
                next_run = self._next(schedule, now)
                log.warning("the clock was set back; the next %s is due %s", what, self._local(next_run))
            reference = now
        return next_run

    async def _sleep(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return False

    async def _delayed(self, due: datetime) -> bool:
        """Wait a random time, so that sites do not start together. True when asked to sync at once."""
        interval = (self._next(self.settings.sync_schedule, due) - due).total_seconds()
        longest = float(self.settings.sync_delay_max_seconds)
        if longest > interval:
            if not self._capped:
                log.warning(
                    "SYNC_DELAY_MAX_SECONDS=%.0f is longer than the time between syncs; capped at %.0f s",
                    longest,
                    interval,
                )
            self._capped = True
            longest = interval
        delay = random.SystemRandom().uniform(0, longest)
        log.info("waiting %s before this sync (SYNC_DELAY)", span(delay))
        return await self._asked_within(delay)

    async def _asked_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self.asked.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _sync(self, trigger: str) -> bool:
        """Run one sync; whatever goes wrong in it is logged, and the next one may do better.

        :returns: whether the line about its end said when the next one is due.
        """
        async with self.turn:
            self.asked.clear()
            with context.running():
                log.info("sync starts (%s)", trigger)
                self.free.clear()
                try:
                    return await self.sync(self.settings, trigger=trigger) is not None
                except LockedError as error:
                    log.warning("sync skipped: %s; %s", error, self._announcement())
                    return True
                except ClrError as error:
                    log.error("sync failed: %s; %s", error, self._announcement(), extra=context.about(**error.facts))
                    return True
                except Exception:
                    log.exception("sync failed unexpectedly; please report this")
                    return False
                finally:
                    self.free.set()

    def _announcement(self) -> str:
        return next_due(self.settings, self._next(self.settings.sync_schedule, self.now()))

    async def _verify(self) -> None:
        """Verify once; whatever goes wrong in it is logged, and the next one may do better."""
        with context.running():
            log.info("verification starts")
            try:
                done = await self.verify(self.settings, trigger="schedule", free=self.free, turn=self.turn)
            except ClrError as error:
                log.error("verification failed: %s", error)
            except Exception:
                log.exception("verification failed unexpectedly; please report this")
            else:
                log.log(logging.WARNING if done.found else logging.INFO, "verification: %s", done.summary)

    def _skipped(self, schedule: Schedule, started: datetime, what: str) -> int:
        """Count the runs that were due while one ran."""
        ended, count, instant = self.now(), 0, started
        while count < MOST_COUNTED and (instant := self._next(schedule, instant)) <= ended:
            count += 1
        if count:
            log.warning("%d scheduled %s were skipped while this one ran", count, what)
        return count

    def _next(self, schedule: Schedule, instant: datetime) -> datetime:
        return schedule.next_after(instant, self.settings.tz)

    def _local(self, instant: datetime) -> str:
        return instant.astimezone(self.settings.tz).strftime("%a %Y-%m-%d %H:%M %Z")


async def _introduce(settings: Settings) -> None:
    programs = await asyncio.to_thread(lambda: {**transport.versions(), **caddy.versions()})
    log.info("clr %s, %s", __version__, ", ".join(f"{name} {text}" for name, text in programs.items()))
    if warning := transport.rsync_warning(programs["rsync"]):
        log.warning("%s", warning)
    log.info("settings: %s", " ".join(describe(settings)))


def describe(settings: Settings) -> list[str]:
    """The settings that matter for one line of log: NAME=value, secrets only as ``set``."""
    lines = []
    for field in dataclasses.fields(settings):
        value: Any = getattr(settings, field.name)
        default = field.metadata["type"].convert(field.metadata["default"], None, None)
        name = field.name.upper()
        if value == default or not name.startswith((*PREFIXES, "TZ")):
            continue
        if field.metadata["secret"]:
            lines.append(f"{name}=(set)")
        elif name == "SYNC_PEER":
            lines.append(f"{name}={','.join(map(str, settings.peers))}")
        else:
            lines.append(f"{name}={_plain(value)}")
    return lines


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.0f}s"
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f'"{text}"' if " " in text else text


async def _unless(event: asyncio.Event, work: Awaitable[None]) -> None:
    """Do the work, unless the event comes first."""
    doing, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if doing.done():
        doing.result()
    else:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


async def _for_ever(work: Callable[[], Awaitable[None]], name: str) -> None:
    """Do something that never ends, again when it does end by a defect."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("the %s failed and goes on; please report this", name)
        await asyncio.sleep(BEAT)


async def _beat(settings: Settings) -> None:
    file = heartbeat(settings)
    while True:
        with contextlib.suppress(OSError):
            file.touch()
            os.utime(file)
        await asyncio.sleep(BEAT)
