"""A whole sync: what a server has, held against what is here item by item, comes here and is published.

::

    list the source → plan → guard → seed → transfer → verify → build manifests → publish → prune
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clr_client import adopt, filesystem, transport
from clr_client.content.items import scan
from clr_client.errors import TransportError
from clr_client.integrity.repair import Mended, mend, mend_here
from clr_client.plan import Action, Choice, Plan, make_plan, parts
from clr_client.publishing import ROTTEN, publish
from clr_client.pull import Job, Pulled, pull
from clr_client.reporting import context
from clr_client.reporting import status as statuses
from clr_client.servers import link_to
from clr_client.store import Store
from clr_client.threads import to_end

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clr_client.files import FileInfo
    from clr_client.reporting.progress import Observer
    from clr_client.reporting.status import Held, Report
    from clr_client.servers import Servers
    from clr_client.settings import Settings
    from clr_client.transport import Listing
    from clr_client.vcsp.model import PublishedLibrary

log = logging.getLogger("clr.sync")


async def update(
    settings: Settings, store: Store, servers: Servers, report: Report, observer: Observer, *, allow_deletes: bool
) -> tuple[Report, Pulled]:
    """Bring the library up to what a server has. Needs the lock.

    :returns: the report with what was done, and what came.
    :raises ClrError: as ``sync.synchronise``.
    """
    published = await open_library(settings, store, observer)
    job = Job(settings, store, servers, published, observer, allow_deletes)
    if (target := store.rolled_back_to()) is not None:
        reason = f"rolled back to generation {target}; `clr rollback --release` ends that"
        return _tell(dataclasses.replace(report, result=statuses.PAUSED, error=reason), await mend(job)), Pulled()
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
    return report, pulled


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

    listing = await _list_only(settings, store, listed)
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


async def _list_only(settings: Settings, store: Store, on_files: Callable[[int], object]) -> Listing:
    """Return the first listing that a server gives; nothing is remembered of a server met for the first time.

    :param on_files: told how many files have been listed so far.
    :raises TransportError: no server could be listed.
    """
    errors: list[TransportError] = []
    with TemporaryDirectory() as scratch:
        known_hosts = Path(scratch, "known_hosts")
        if store.known_hosts.is_file():
            shutil.copyfile(store.known_hosts, known_hosts)
        for peer in settings.peers:
            link = dataclasses.replace(link_to(peer, settings, store), known_hosts=known_hosts)
            try:
                if settings.sync_host_key:
                    await transport.pin(link, settings.sync_host_key)
                return await transport.list_source(link, on_files)
            except TransportError as error:
                log.warning("%s: %s", peer, error)
                errors.append(error)
    raise errors[-1]


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
        line=pulled.line,
        planned_bytes=pulled.planned,
        literal_bytes=pulled.literal,
        matched_bytes=pulled.matched,
        sent_bytes=pulled.sent,
        received_bytes=pulled.received,
        version=library.version if library else None,
    )
