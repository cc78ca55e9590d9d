"""The container's process: serves at once, syncs now and then on schedule, and ends cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from clr_client import __version__, transport
from clr_client.errors import ClrError
from clr_client.sync import synchronise
from clr_client.web import caddy

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from clr_client.reporting.status import Report
    from clr_client.settings import Settings

log = logging.getLogger("clr.run")

SLICE_SECONDS = 30.0
"""Longest sleep at a stretch: after a step of the wall clock the wait is measured anew this soon."""
ALIVE_SECONDS = 15.0
HARD_EXIT = 130


class Sync(Protocol):
    """What the daemon runs on schedule."""

    def __call__(self, settings: Settings, *, trigger: str) -> Awaitable[Report]:
        """Sync once."""
        ...


async def run(settings: Settings, sync: Sync = synchronise) -> int:
    """Serve and sync until SIGTERM or SIGINT; return the exit code.

    SIGUSR1 syncs now, SIGHUP reads certificates again, a second SIGTERM ends everything at once.

    :raises SettingsError: there is no server to pull from.
    """
    settings.require_peer()
    await _introduce(settings)
    wake = asyncio.Event()
    web = caddy.Caddy(settings)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            log.warning("%s again: ending at once", number.name)
            os._exit(HARD_EXIT)
        log.info("%s: ending", number.name)
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    loop.add_signal_handler(signal.SIGUSR1, wake.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _in_background(web.refresh()))
    settings.clr_run_dir.mkdir(parents=True, exist_ok=True)
    await web.start()
    tasks = [asyncio.create_task(_keep_syncing(settings, sync, wake)), asyncio.create_task(_show_life(settings))]
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (waiting, *tasks):
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await web.stop()
    for result in results:
        if isinstance(result, Exception):
            raise result
    log.info("ended")
    return 0


_background: set[asyncio.Task[None]] = set()


def _in_background(work: Awaitable[None]) -> None:
    task = asyncio.ensure_future(work)
    _background.add(task)
    task.add_done_callback(_background.discard)


async def _introduce(settings: Settings) -> None:
    versions = {**await asyncio.to_thread(transport.versions), **await asyncio.to_thread(caddy.versions)}
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    log.info("Content Library Rsync %s; %s", __version__, shown)
    if warning := transport.rsync_warning(versions["rsync"]):
        log.warning("%s", warning)
    log.info(
        "library %r from %s; schedule %s (%s)",
        settings.library_name,
        ", ".join(str(peer) for peer in settings.peers),
        settings.sync_schedule,
        settings.tz.key,
    )


async def _show_life(settings: Settings) -> None:
    """Touch a file as long as the event loop turns, for the healthcheck."""
    while True:
        (settings.clr_run_dir / "alive").touch()
        await asyncio.sleep(ALIVE_SECONDS)


async def _keep_syncing(settings: Settings, sync: Sync, wake: asyncio.Event) -> None:
    """Sync now, then at each scheduled instant. Runs follow one another, so they never overlap."""
    await _sync_once(settings, sync, "start")
    while True:
        due = settings.sync_schedule.next_after(datetime.now(UTC), settings.tz)
        log.info("next sync: %s", due.astimezone(settings.tz).strftime("%a %Y-%m-%d %H:%M %Z"))
        if await _sleep_until(due, wake):
            await _sync_once(settings, sync, "signal")
            continue
        delay = _jitter(settings, due)
        if delay:
            log.info("waiting %d s (SYNC_DELAY)", delay.total_seconds())
        await _sleep_until(datetime.now(UTC) + delay, wake)
        await _sync_once(settings, sync, "schedule")
        _report_missed(settings, due)


async def _sleep_until(due: datetime, wake: asyncio.Event) -> bool:
    """Wait for an instant by the wall clock, however it is stepped; whether the wait was cut short by ``wake``."""
    while (left := (due - datetime.now(UTC)).total_seconds()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, SLICE_SECONDS)):
                await wake.wait()
                wake.clear()
                return True
    return False


def _jitter(settings: Settings, due: datetime) -> timedelta:
    """Choose the random wait before a scheduled sync: shorter than the time to the one after it."""
    if not settings.sync_delay:
        return timedelta()
    most = float(settings.sync_delay_max_seconds)
    interval = (settings.sync_schedule.next_after(due, settings.tz) - due).total_seconds()
    if most >= interval:
        log.warning(
            "SYNC_DELAY_MAX_SECONDS=%d is longer than the schedule's interval; %d s are used", most, interval / 2
        )
        most = interval / 2
    return timedelta(seconds=random.uniform(0, most))  # noqa: S311 - spreads load, guards nothing


def _report_missed(settings: Settings, due: datetime) -> None:
    """Say how many scheduled instants a long run swallowed; they are not made up for."""
    missed, now = 0, datetime.now(UTC)
    while (due := settings.sync_schedule.next_after(due, settings.tz)) <= now and missed < 1000:
        missed += 1
    if missed:
        log.warning("%d scheduled syncs were skipped because the last one took that long", missed)


async def _sync_once(settings: Settings, sync: Sync, trigger: str) -> None:
    """Sync; whatever goes wrong is said in the log and ends nothing else."""
    try:
        await sync(settings, trigger=trigger)
    except ClrError as error:
        log.error("sync failed: %s", error)
    except Exception:
        log.exception("sync failed in a way that nobody expected; please report this")
    sys.stdout.flush()
