"""From the server to the mirror: list, plan, guard, seed, transfer; again until the source stands still.

It changes nothing outside ``mirror/`` and ``basis/`` but the list of files that no server has confirmed yet, and only
brings files there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from clr_client import filesystem, seed, transport, unconfirmed
from clr_client.arrivals import Arrivals
from clr_client.content.digests import DigestCache
from clr_client.content.items import scan
from clr_client.errors import GuardError, TransportError
from clr_client.plan import Action, Choice, Plan, guard, make_plan
from clr_client.reporting.context import about
from clr_client.servers import link_to, window_ended
from clr_client.threads import to_end
from clr_client.transport.batches import divide, workers
from clr_client.transport.loss import watched

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from clr_client.files import FileInfo
    from clr_client.plan import ItemPlan
    from clr_client.reporting.progress import Observer
    from clr_client.servers import Servers
    from clr_client.settings import Settings
    from clr_client.store import Store
    from clr_client.transport import Batch, Link, Listing, Progress, Transfer
    from clr_client.values import Peer
    from clr_client.vcsp.model import PublishedLibrary

log = logging.getLogger("clr.sync")

PASSES = 2
"""Transfers of one run while the source keeps changing; items that still moved after the last are held."""
LONGEST_BACKOFF = 600.0
CONFIRM_SECONDS = 120.0
RESERVE_BYTES = 16 * 1024 * 1024
MOST_TIMES, MOST_PER_FILE, MOST_BEYOND = 3, 16 * 1024, 64 * 1024 * 1024
"""A transfer ends when rsync has written three times what was listed, and these bytes: files grow while they are read,
a damaged one comes twice, and names are written too, but a server that sends without end must not fill the volume."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one run works with."""

    settings: Settings
    store: Store
    servers: Servers
    published: PublishedLibrary | None
    observer: Observer
    allow_deletes: bool = False


@dataclass(slots=True)
class Pulled:
    """What a pull found and brought. Byte counts are rsync's own; ``plan`` is what is still to do after it."""

    listing: Listing | None = None
    plan: Plan = Plan(())
    mirror: dict[str, FileInfo] = field(default_factory=dict)
    peer: Peer | None = None
    literal: int = 0
    matched: int = 0
    sent: int = 0
    received: int = 0
    planned: int = 0
    """Size of all files that had to be fetched, in bytes."""
    unconfirmed: dict[str, str] = field(default_factory=dict)
    """By path, the server of each file that was not listed since the file came from it: it may have changed it."""
    went_back: dict[str, None] = field(default_factory=dict)
    """Keys of items of which the source has an older state than the one here."""
    stopped: str = ""
    """Why the pull ended before everything was here; empty when it did not."""
    failure: TransportError | None = None
    """The failure that ended it, if one did."""
    problems: tuple[str, ...] = ()
    """What the newest transfers said about files that did not arrive."""
    line: str = ""
    """What was found about the line to the server, if it makes transfers slow."""
    digests: DigestCache | None = None
    """What is known about files, also what was found out while others arrived; None: what the volume remembers."""

    def count(self, transfer: Transfer) -> None:
        """Add one transfer's bytes and problems."""
        self.literal += transfer.literal
        self.matched += transfer.matched
        self.sent += transfer.sent
        self.received += transfer.received
        self.problems += transfer.problems

    def found_about_line(self, text: str) -> None:
        """Note what makes the line slow."""
        self.line = text


async def pull(job: Job) -> Pulled:
    """Bring the mirror up to what a server has.

    :returns: what came, also when the window or the line ended it early: what is whole can be published.
    :raises TransportError: no server could be listed.
    :raises GuardError: the plan was refused; nothing was touched.
    """
    arrivals = Arrivals(job.store.mirror, await to_end(lambda: DigestCache.load(job.store.digests)))
    pulled = Pulled(digests=arrivals.digests)
    try:
        async with asyncio.timeout(job.settings.sync_window.total_seconds() or None):
            await _persist(job, pulled, arrivals)
    except TimeoutError:
        pulled.stopped = "SYNC_WINDOW ended; the next run goes on from here"
        if pulled.listing is None:
            raise window_ended() from None
        await _confirm(job, pulled)
    except TransportError as error:
        if pulled.listing is None:
            raise
        pulled.stopped, pulled.failure = str(error), error
        await _confirm(job, pulled)
    except BaseException:
        arrivals.stop()
        raise
    finally:
        await to_end(arrivals.finish)
        if not pulled.plan.fetch:
            shutil.rmtree(job.store.basis, ignore_errors=True)
    return pulled


async def _persist(job: Job, pulled: Pulled, arrivals: Arrivals) -> None:
    """Try the servers in turn until one pull goes through, as long as the settings allow."""
    failures = 0
    remaining: int | None = None
    while True:
        errors: list[TransportError] = []
        for peer in job.settings.peers:
            try:
                await _settle(job, pulled, peer, arrivals)
            except TransportError as error:
                log.warning("%s: %s", peer, error)
                errors.append(error)
            else:
                return
        before, remaining = remaining, _still_to_come(job, pulled)
        if before is not None and remaining < before:
            failures = 0
        if failures >= job.settings.sync_retries or not any(error.retryable for error in errors):
            raise errors[-1]
        delay = min(LONGEST_BACKOFF, job.settings.sync_retry_delay.total_seconds() * 2.0**failures)
        failures += 1
        log.info("trying again in %d s (attempt %d of %d)", delay, failures + 1, job.settings.sync_retries + 1)
        await asyncio.sleep(delay)


def _still_to_come(job: Job, pulled: Pulled) -> int:
    """Bytes of the plan that no attempt has brought yet: whether a failed attempt got anywhere."""
    if pulled.listing is None:
        return 0
    _look_again(job, pulled)
    return pulled.plan.bytes - _arrived(pulled.plan, job.store)


def _arrived(plan: Plan, store: Store) -> int:
    return seed.arrived_bytes(plan.fetch, transport.partials(store.mirror), store.mirror, store.basis)


async def _settle(job: Job, pulled: Pulled, peer: Peer, arrivals: Arrivals) -> None:
    """Transfer until a listing shows nothing more to fetch: only that proves that no file changed while it was read."""
    link = await job.servers.reach(peer)
    for number in range(PASSES + 1):
        await _list(job, pulled, link)
        if not pulled.plan.fetch:
            return
        if number < PASSES:
            arrivals.expect(pulled.plan)
            await _transfer(job, pulled, link, arrivals.arrived)


async def _list(job: Job, pulled: Pulled, link: Link) -> None:
    listing = await job.servers.listing(link)
    before = unconfirmed.load(job.store.unconfirmed)
    here = {file.path: file for file in scan(job.store.mirror)}
    found = Pulled(listing=listing, peer=link.peer)
    found.unconfirmed = unconfirmed.remaining(before, str(link.peer), listing.files, here)
    _look_again(job, found, here)
    _guard(job, found)
    pulled.listing, pulled.plan, pulled.mirror = found.listing, found.plan, found.mirror
    pulled.peer, pulled.unconfirmed = link.peer, found.unconfirmed
    if pulled.unconfirmed != before:
        unconfirmed.save(job.store.unconfirmed, pulled.unconfirmed)
    for problem in listing.problems:
        log.warning("%s: %s", link.peer, problem)
    _warn_of_going_back(pulled, link)


def _warn_of_going_back(pulled: Pulled, link: Link) -> None:
    for item in pulled.plan.items:
        if item.older and item.key not in pulled.went_back:
            pulled.went_back[item.key] = None
            log.warning(
                "%s went back in time: %s has it with older files (%s) than are here; they are taken over",
                item.key,
                link.peer,
                ", ".join(file.name for file in item.older),
                extra=about(item=item.key),
            )


def _guard(job: Job, pulled: Pulled) -> None:
    plan = pulled.plan
    if plan.fetch and _needed(job, pulled) > job.store.free_bytes():
        _drop_useless(job, plan)
    guard(
        plan,
        published=len(job.published.items) if job.published else 0,
        limit=job.settings.sync_max_delete,
        needed_bytes=_needed(job, pulled) if plan.fetch else 0,
        free_bytes=job.store.free_bytes(),
        allow_deletes=job.allow_deletes,
    )


def _drop_useless(job: Job, plan: Plan) -> None:
    """Remove partial files of what is not wanted any more, and those that cannot be the beginning of what is."""
    sizes = {file.path: file.size for file in plan.fetch}
    for path, partial in transport.partials(job.store.mirror).items():
        if partial.stat().st_size > sizes.get(path, -1):
            partial.unlink()


def _needed(job: Job, pulled: Pulled) -> int:
    """Bytes that the volume has to take until the plan is published: what is still to come, and files beside it."""
    return needed_bytes(pulled.plan, job.store, shares_files=filesystem.shares_files(job.store.root))


def needed_bytes(plan: Plan, store: Store, *, shares_files: bool) -> int:
    """Bytes that the volume has to take until a plan is published.

    :param shares_files: whether the volume has hard links; see ``filesystem.shares_files``.
    """
    unpacked = sum(file.size for file in plan.fetch if file.suffix == ".ova")
    copied = 0 if shares_files else plan.bytes - unpacked
    return plan.bytes - _arrived(plan, store) + unpacked + copied + RESERVE_BYTES


def _look_again(job: Job, pulled: Pulled, here: Mapping[str, FileInfo] | None = None) -> None:
    """Hold the newest listing against the mirror as it is now: ``here``, or what a look finds.

    What came from another server and was not confirmed by that one counts as not here, and is fetched again.
    """
    if pulled.listing is None:
        return
    peer, doubtful = str(pulled.peer), pulled.unconfirmed
    if here is None:
        here = {file.path: file for file in scan(job.store.mirror)}
    pulled.mirror = {path: file for path, file in here.items() if doubtful.get(path, peer) == peer}
    pulled.plan = make_plan(
        pulled.listing.files,
        job.published,
        pulled.mirror,
        Choice.of(job.settings),
        complete=pulled.listing.complete,
        caseless=filesystem.is_caseless(job.store.root),
    )


async def _transfer(job: Job, pulled: Pulled, link: Link, on_file: Callable[[str], None]) -> None:
    store, settings, plan = job.store, job.settings, pulled.plan
    here = {file.path: file for file in scan(store.mirror)}
    older = seed.predecessors(plan.fetch, here)
    partials = transport.partials(store.mirror)
    lengths = seed.block_sizes(plan.fetch, older, partials, store.mirror, store.basis, settings.sync_block_size)
    spare = store.free_bytes() - _needed(job, pulled)
    await to_end(lambda: seed.lay_out(older, partials, store.mirror, store.basis, lengths, spare))
    _make_way(store.mirror, plan)
    pulled.planned = max(pulled.planned, plan.bytes)
    pulled.problems = ()
    pulled.unconfirmed = unconfirmed.load(store.unconfirmed) | {file.path: str(link.peer) for file in plan.fetch}
    unconfirmed.save(store.unconfirmed, pulled.unconfirmed)
    at_once = workers(settings.sync_parallel, plan.bytes, settings.sync_max_bw.least)
    changed = plan.having(Action.ADD, Action.UPDATE)
    total = plan.bytes
    job.observer.stage(f"fetching {len(plan.fetch)} files of {len(changed)} items, {total:,} bytes")

    def show(progress: Progress) -> None:
        job.observer.transfer(progress.done_bytes, total, progress.rate, progress.file)

    async with watched(link.peer.port, pulled.found_about_line), _kept_to_the_limit(link, settings) as line:

        async def bring(batch: Batch, tell: Callable[[Progress], None]) -> Transfer:
            return await transport.fetch(
                line,
                [file.path for file in batch.files],
                store.mirror,
                basis=store.basis if store.basis.is_dir() else None,
                block=batch.block,
                rate=settings.sync_max_bw.most,
                most_bytes=MOST_TIMES * batch.bytes + len(batch.files) * MOST_PER_FILE + MOST_BEYOND,
                on_progress=tell,
                on_file=on_file,
            )

        def count(transfer: Transfer) -> None:
            pulled.count(transfer)
            for problem in transfer.problems:
                log.warning("%s: %s", link.peer, problem)

        batches = divide(plan.fetch, lengths, at_once)
        await transport.fetch_all(batches, bring, at_once=at_once, on_transfer=count, on_progress=show)


def _kept_to_the_limit(link: Link, settings: Settings) -> AbstractAsyncContextManager[Link]:
    if not settings.sync_max_bw.least:
        return nullcontext(link)
    rates = settings.sync_max_bw
    return transport.limited(link, lambda: rates.at(datetime.now(settings.tz).time()), rates.most)


def _make_way(mirror: Path, plan: Plan) -> None:
    """Remove what lies where a wanted file or its folder belongs, when a file became a folder or the reverse."""
    for file in plan.fetch:
        target = mirror / file.path
        for parent in list(target.relative_to(mirror).parents)[-2::-1]:
            place = mirror / parent
            if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
                place.unlink()
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            shutil.rmtree(target)


async def _confirm(job: Job, pulled: Pulled) -> None:
    """After an early end, list once more, so that what did arrive whole can be published.

    A listing that the guard refuses counts for nothing: what the run went by before stays what it goes by.
    """
    peer = pulled.peer
    try:
        async with asyncio.timeout(CONFIRM_SECONDS):
            if peer is not None and str(peer) in pulled.unconfirmed.values():
                await _list(job, pulled, link_to(peer, job.settings, job.store))
    except (TransportError, GuardError, TimeoutError) as error:
        log.warning("%s: the end of the transfer could not be confirmed: %s", peer, error)
    _look_again(job, pulled)


async def fetch_again(job: Job, choose: Callable[[Listing], tuple[ItemPlan, ...]]) -> Pulled:
    """Bring files that are damaged here from the first server that can give them, and nothing else.

    :param choose: picks from a server's listing what to fetch; its plan guards nothing, since nothing is removed.
    :returns: what came. Whether it is what was published is for the caller to see.
    :raises TransportError: no server could be listed, or all transfers were cut; what arrived is kept.
    :raises GuardError: the volume has no room for it.
    """
    job.settings.require_peer()
    errors: list[TransportError] = []
    for peer in job.settings.peers:
        try:
            async with asyncio.timeout(job.settings.sync_window.total_seconds() or None):
                return await _fetch_from(job, choose, await job.servers.reach(peer))
        except TimeoutError:
            raise TransportError("SYNC_WINDOW ended; the next run goes on from here") from None
        except TransportError as error:
            log.warning("%s: %s", peer, error)
            errors.append(error)
    raise errors[-1]


async def _fetch_from(job: Job, choose: Callable[[Listing], tuple[ItemPlan, ...]], link: Link) -> Pulled:
    listing = await job.servers.listing(link)
    mirror = {file.path: file for file in scan(job.store.mirror)}
    pulled = Pulled(listing=listing, plan=Plan(choose(listing)), mirror=mirror, peer=link.peer)
    if pulled.plan.fetch:
        needed, free = pulled.plan.bytes - _arrived(pulled.plan, job.store) + RESERVE_BYTES, job.store.free_bytes()
        if needed > free:
            raise GuardError(f"{needed:,} bytes are needed and the library volume has {free:,} free", "Make room")
        await _transfer(job, pulled, link, lambda _: None)
    return pulled
