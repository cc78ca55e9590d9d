"""One sync, from the lock to the report: by the short way while nothing changes, else by the whole one.

::

    lock → has anything changed? → update → report
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clr_client import settled
from clr_client.disk import unusable
from clr_client.errors import ClrError
from clr_client.integrity.damages import noted
from clr_client.reporting import context
from clr_client.reporting import status as statuses
from clr_client.reporting.progress import LogLines, Observer, Observers, ProgressFile
from clr_client.reporting.running import Running
from clr_client.reporting.status import Report
from clr_client.servers import Servers
from clr_client.settled import Settled
from clr_client.store import Store
from clr_client.threads import to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clr_client.reporting.status import Status, Verification
    from clr_client.settings import Settings

log = logging.getLogger("clr.sync")


async def synchronise(
    settings: Settings, *, trigger: str, allow_deletes: bool = False, observer: Observer | None = None
) -> Report:
    """Bring this site's library up to what a server has, and publish it.

    :param trigger: why it runs (start, schedule, hand), for the report.
    :param allow_deletes: let the guard against disasters at the source pass, this once.
    :returns: what was done; its result is success, partial or paused.
    :raises LockedError: another run is at work.
    :raises ClrError: the run failed; what was published before is served on, and the status file says why.
    """
    settings.require_peer()
    store = Store(settings.clr_library_dir)
    with (
        context.running() as run,
        _summing_up(settings) as sum_up,
        store.locked(trigger),
        Running(store.running, run, trigger, _now()) as shown,
    ):
        failure: Exception | None = None
        started = time.monotonic()
        report = Report(trigger=trigger, started=shown.since, run=run)
        library: dict[str, Any] | None = None
        watching = Observers(observer or LogLines(), ProgressFile(store.progress), shown)
        try:
            report, library = await _sync(settings, store, report, watching, allow_deletes=allow_deletes)
        except OSError as error:
            failure = unusable(store.root, error)
            report = dataclasses.replace(report, result=statuses.FAILED, error=str(failure))
            raise failure from error
        except Exception as error:
            failure = error
            report = dataclasses.replace(report, result=statuses.FAILED, error=str(error) or repr(error))
            raise
        except asyncio.CancelledError:
            report = dataclasses.replace(
                report, result=statuses.PARTIAL, error="stopped; the next run goes on from here"
            )
            raise
        finally:
            watching.finish(report.error if report.result == statuses.FAILED else "")
            report = dataclasses.replace(report, ended=_now(), seconds=round(time.monotonic() - started, 1))
            report = _record(store, report, library)
            sum_up(report, failure)
        return report


@contextmanager
def _summing_up(settings: Settings) -> Iterator[Callable[[Report, Exception | None], None]]:
    """Log a run in one line, once nothing of it is left; of a failed one, whoever catches its error logs it."""
    ended: list[Report] = []

    def sum_up(report: Report, failure: Exception | None) -> None:
        if failure is None:
            ended.append(report)
        elif isinstance(failure, ClrError):
            failure.facts = report.facts

    try:
        yield sum_up
    finally:
        following = settings.sync_schedule.next_after(datetime.now(UTC), settings.tz)
        for report in ended:
            level = logging.INFO if report.result in {statuses.SUCCESS, statuses.PAUSED} else logging.WARNING
            facts = context.about(**report.facts, next_sync=following.astimezone(UTC).isoformat(timespec="seconds"))
            log.log(level, "%s; %s", report.summary, next_due(settings, following), extra=facts)


def next_due(settings: Settings, following: datetime) -> str:
    """Say when the next sync is due."""
    return f"the next sync is due {following.astimezone(settings.tz):%a %Y-%m-%d %H:%M %Z}"


async def _sync(
    settings: Settings, store: Store, report: Report, observer: Observer, *, allow_deletes: bool
) -> tuple[Report, dict[str, Any] | None]:
    """Do what there is to do; return what that was, and a description of the library if it is known to be as it was."""
    async with Servers(settings, store, observer) as servers:
        note = settled.load(store.settled)
        if note is not None:
            await servers.ask_early()
        volume = await to_end(lambda: settled.volume_digest(store, settings))
        if note is not None and note.here == volume and (answer := await servers.early()):
            peer, listing = answer
            if note.source == settled.source_digest(peer, listing):
                log.info("nothing has changed at %s or here since a sync that had nothing to do", peer)
                store.prune(settings.library_keep, settings.library_grace)
                return dataclasses.replace(report, peer=str(peer), version=note.library["version"]), note.library

        from clr_client.update import update  # much to load, and of no use while nothing changes

        report, pulled = await update(settings, store, servers, report, observer, allow_deletes=allow_deletes)
    source = settled.source_digest(pulled.peer, pulled.listing)
    if volume and source and _had_nothing_to_do(report):
        settled.save(store.settled, Settled(source, volume, describe_library(store)))
    return report, None


def _had_nothing_to_do(report: Report) -> bool:
    changed = report.added or report.updated or report.removed or report.mended or report.planned_bytes
    return report.result == statuses.SUCCESS and not changed


def _record(store: Store, report: Report, library: dict[str, Any] | None) -> Report:
    """Log what became of items, and add the run to the status file, whose loss would lose nothing but history.

    :param library: a description of what is published, if there is one at hand.
    """
    for what, names in (("added", report.added), ("updated", report.updated), ("removed", report.removed)):
        for name in names[: statuses.MOST_NAMED]:
            log.info("%s: %s", name, what, extra=context.about(item=name))
        if len(names) > statuses.MOST_NAMED:
            log.info("%d more items: %s", len(names) - statuses.MOST_NAMED, what)
    for held in report.held[: statuses.MOST_HELD]:
        log.warning("%s is held: %s", held.key, held.reason, extra=context.about(item=held.key))
    if len(report.held) > statuses.MOST_HELD:
        log.warning("%d more items are held", len(report.held) - statuses.MOST_HELD)
    for damage in report.damaged:
        log.warning("damaged: %s", damage, extra=context.about(item=damage.item))
    try:
        number = store.current_number()
        if library is None and number is not None:
            library = describe_library(store)
        report = dataclasses.replace(report, generation=number)
        record(store, lambda status: status.after(report, library))
    except (OSError, ClrError) as error:
        log.warning("the status file cannot be written: %s", error)
    return report


def record(store: Store, change: Callable[[Status], Status], verification: Verification | None = None) -> None:
    """Change the status file, and add what is damaged now and the newest verification. Raises OSError."""
    with statuses.alone(store.status):
        status = change(statuses.load(store.status)).knowing(noted(store), verification)
        store.write_down(store.status, statuses.dump(status))


def describe_library(store: Store) -> dict[str, Any]:
    """Return what is published, for the status file."""
    library = store.published()
    if library is None:
        return {}
    return {
        "name": library.name,
        "id": library.id,
        "version": library.version,
        "generation": store.current_number(),
        "items": len(library.items),
        "bytes": sum(file.size for item in library.items for file in item.files),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
