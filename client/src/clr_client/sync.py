"""One sync, from the lock to the report.

::

    lock → list the source → plan → guard → seed → transfer → verify → build manifests → publish → report → prune
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clr_client import adopt, filesystem, transport
from clr_client.content.items import scan
from clr_client.disk import unusable
from clr_client.errors import ClrError
from clr_client.integrity.damages import noted
from clr_client.integrity.repair import Mended, mend, mend_here
from clr_client.plan import Action, Choice, Plan, make_plan, parts
from clr_client.publishing import ROTTEN, publish
from clr_client.pull import Job, Pulled, list_only, pull
from clr_client.reporting import context
from clr_client.reporting import status as statuses
from clr_client.reporting.progress import LogLines, Observer, Observers, ProgressFile
from clr_client.reporting.running import Running
from clr_client.reporting.status import Held, Report
from clr_client.store import Store
from clr_client.threads import to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from clr_client.files import FileInfo
    from clr_client.reporting.status import Status, Verification
    from clr_client.settings import Settings
    from clr_client.transport import Listing
    from clr_client.vcsp.model import PublishedLibrary

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
        watching = Observers(observer or LogLines(), ProgressFile(store.progress), shown)
        try:
            report = await _sync(settings, store, report, watching, allow_deletes=allow_deletes)
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
            report = _record(store, report)
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


async def _sync(settings: Settings, store: Store, report: Report, observer: Observer, *, allow_deletes: bool) -> Report:
    published = await open_library(settings, store, observer)
    job = Job(settings, store, published, observer, allow_deletes)
    if (target := store.rolled_back_to()) is not None:
        reason = f"rolled back to generation {target}; `clr rollback --release` ends that"
        return _tell(dataclasses.replace(report, result=statuses.PAUSED, error=reason), await mend(job))
    store.prune(settings.library_keep, settings.library_grace)
    mended = await to_end(lambda: mend_here(store))
    pulled = await pull(job)
    observer.stage("verifying")
    library, held = await publish(settings, store, published, pulled, adopt.waiting_library(store))
    _prune(settings, store, pulled, held)
    later = await (to_end(lambda: mend_here(store)) if pulled.stopped else mend(job))
    rotten = {damage.item for damage in later.left}
    serves = {item.key: item.name for item in library.items} if library else {}
    held = tuple(item for item in held if item.reason != ROTTEN or serves.get(item.key) in rotten)
    report = _describe(report, published, library, held, pulled)
    report = _tell(report, Mended((*mended.mended, *later.mended), later.left))
    if pulled.failure and not (report.added or report.updated or report.removed):
        raise pulled.failure
    return report


def _tell(report: Report, mended: Mended) -> Report:
    """Add to a report what was damaged here; what still is makes a success a partial one."""
    result = statuses.PARTIAL if mended.left and report.result == statuses.SUCCESS else report.result
    return dataclasses.replace(report, result=result, mended=mended.mended, damaged=mended.left)


async def open_library(settings: Settings, store: Store, observer: Observer) -> PublishedLibrary | None:
    """Make the volume ready and return what is published; an original's directory is adopted and published."""
    await to_end(lambda: adopt.move_original(store))
    await to_end(store.prepare)
    await to_end(lambda: transport.rescue(store.mirror))
    published = store.published()
    if published is None and (original := adopt.original_library(store)):
        observer.stage("verifying what the original left; it is served as soon as all of it has been read")
        everything = make_plan(scan(store.mirror), None, {}, Choice())
        pulled = Pulled(plan=everything, mirror={file.path: file for file in scan(store.mirror)})
        published, held = await publish(settings, store, None, pulled, original)
        log.info("adopted %d items of library %s", len(published.items) if published else 0, original.id)
        for item in held:
            log.warning("%s is held: %s", item.key, item.reason, extra=context.about(item=item.key))
    return published


async def plan_only(
    settings: Settings, on_progress: Callable[[int, int, str], object] = lambda _done, _total, _name: None
) -> Plan:
    """Return what a sync would do, touching nothing.

    :param on_progress: told how many files have been listed so far, how many there may be (0: unknown), and no name.
    :raises TransportError: no server could be listed.
    """
    settings.require_peer()
    store = Store(settings.clr_library_dir)
    mirror = mirrored(store)

    def listed(found: int) -> None:
        on_progress(found, len(mirror) if found < len(mirror) else 0, "")

    listing = await list_only(settings, store, listed)
    on_progress(len(listing.files), len(listing.files), "")
    return plan_for(settings, store, listing, mirror, caseless=filesystem.is_caseless(store.root))


def mirrored(store: Store) -> dict[str, FileInfo]:
    """Return the files of the mirror, by path; none while there is no mirror."""
    return {file.path: file for file in scan(store.mirror)} if store.mirror.is_dir() else {}


def plan_for(
    settings: Settings, store: Store, listing: Listing, mirror: Mapping[str, FileInfo], *, caseless: bool
) -> Plan:
    """Return what a sync would do by a listing.

    :param caseless: whether names that differ only by case are the same on the volume.
    """
    return make_plan(
        listing.files,
        store.published() if store.generations.is_dir() else None,
        mirror,
        Choice.of(settings),
        complete=listing.complete,
        caseless=caseless,
    )


def _prune(settings: Settings, store: Store, pulled: Pulled, held: tuple[Held, ...]) -> None:
    """Drop old generations, and from the mirror what the source no longer has or this site no longer takes."""
    store.prune(settings.library_keep, settings.library_grace)
    if pulled.listing is None or not pulled.listing.complete or pulled.stopped:
        return
    keep = adopt.manifest_paths(store) if held else set()  # they know the ids of what is held still
    left = {item.key for item in pulled.plan.having(Action.LEAVE) if item.source is None}
    if left:
        keep |= {file.path for file in scan(store.mirror) if not left.isdisjoint((file.path, file.folder))}
    for item in pulled.plan.items:
        if item.source is not None and item.action not in {Action.REMOVE, Action.SKIP}:
            keep |= {file.path for file in parts(item.source)}
    unfinished = {file.path for file in pulled.plan.fetch}
    partials = transport.partials(store.mirror) if unfinished else {}
    kept_partials = (path for wanted, path in partials.items() if wanted in unfinished)
    store.prune_mirror(keep | {path.relative_to(store.mirror).as_posix() for path in kept_partials})


def _describe(
    report: Report,
    published: PublishedLibrary | None,
    library: PublishedLibrary | None,
    held: tuple[Held, ...],
    pulled: Pulled,
) -> Report:
    before = {item.key: item for item in published.items} if published else {}
    after = {item.key: item for item in library.items} if library else {}
    return dataclasses.replace(
        report,
        result=statuses.PARTIAL if held or pulled.stopped else statuses.SUCCESS,
        error=pulled.stopped,
        peer=str(pulled.peer or ""),
        added=tuple(after[key].name for key in sorted(after.keys() - before.keys())),
        updated=tuple(
            after[key].name for key in sorted(after.keys() & before.keys()) if after[key].version > before[key].version
        ),
        removed=tuple(before[key].name for key in sorted(before.keys() - after.keys())),
        held=held,
        went_back=tuple(pulled.went_back),
        planned_bytes=pulled.planned,
        literal_bytes=pulled.literal,
        matched_bytes=pulled.matched,
        sent_bytes=pulled.sent,
        received_bytes=pulled.received,
        version=library.version if library else None,
    )


def _record(store: Store, report: Report) -> Report:
    """Log what became of items, and add the run to the status file, whose loss would lose nothing but history."""
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
        library = describe_library(store) if number is not None else None
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
