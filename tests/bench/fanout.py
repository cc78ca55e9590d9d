"""What many clients at the same moment cost a server of two cores."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import shutil
import time
from typing import TYPE_CHECKING

from clr_client.sync import synchronise
from clr_client.transport import batches
from support.server import Server, make_key
from support.site import Site
from support.templates import fake_template

from bench.pair import ServerLoad
from bench.rows import Row, case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clr_client.reporting.status import Report

    from bench.bench import Bench

_ITEMS = 25
_CORES = {0, 1}
"""The server's, where there are more for the clients."""
_ENOUGH = 200_000
"""Bytes that are worth a connection of their own, so that a small library comes over as many as a large one does."""
_MINUTE = 60.0


@case
def clients(bench: Bench) -> Iterator[Row]:
    """Many clients in the same second, with the product's own settings: failures after retries, the server's cost."""
    logging.getLogger("clr").setLevel(logging.ERROR)
    most = bench.size.clients
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 50 * most)), hard))
    with bench.scratch() as work:
        library = work / "primary"
        for number in range(_ITEMS):
            fake_template(library / f"item-{number}", disk_bytes=100_000)
        keys = [make_key(work / f"site{number}", comment=f"site{number}") for number in range(most)]
        public = [key.with_suffix(".pub") for key in keys]
        with _beside_the_server() as wrapper, Server(library, work / "server", keys=public, wrapper=wrapper) as server:
            sites = [_site(work / "sites" / str(number), server, key) for number, key in enumerate(keys)]
            yield from _measure(server, sites, "new library")
            for count in sorted({1, 20, most}):
                yield from _measure(server, sites[:count], "unchanged library")
            for number in range(_ITEMS):
                fake_template(library / f"item-{number}", disk_bytes=100_000, revision=1)
            yield from _measure(server, sites, "changed library")
            for site in sites:
                shutil.rmtree(site.library)
            ordinary, share = batches.BATCH_BYTES, batches.SHARE_OF_A_WORKER
            batches.BATCH_BYTES, batches.SHARE_OF_A_WORKER = _ENOUGH, 1
            yield from _measure(server, sites, "new library over four connections", within=_MINUTE)
            batches.BATCH_BYTES, batches.SHARE_OF_A_WORKER = ordinary, share


@contextlib.contextmanager
def _beside_the_server() -> Iterator[tuple[str, ...]]:
    """Leave two cores to the server, whose command this is to begin with, and use the others, where there are more."""
    all_cores = os.sched_getaffinity(0)
    others = all_cores - _CORES
    if not others or not all_cores >= _CORES:
        yield ()
        return
    os.sched_setaffinity(0, others)
    try:
        yield ("taskset", "--cpu-list", ",".join(map(str, sorted(_CORES))))
    finally:
        os.sched_setaffinity(0, all_cores)


def _site(home: Path, server: Server, key: Path) -> Site:
    (home / "ssh").mkdir(parents=True)
    identity = home / "ssh" / "id_syncer"
    identity.write_bytes(key.read_bytes())
    identity.chmod(0o600)
    site = Site(home, server)
    del site.environment["SYNC_RETRIES"]
    return site


def _measure(server: Server, sites: list[Site], what: str, *, within: float = 0.0) -> Iterator[Row]:
    load = ServerLoad(server, watch=True)
    began = time.monotonic()
    failures = asyncio.run(_all(sites, within))
    seconds = time.monotonic() - began
    cpu = load.stop()
    yield Row(
        name=f"{len(sites)} clients {'within a minute' if within else 'at once'}, {what} of {_ITEMS} items: failures",
        ours=failures,
        unit="",
        target=0,
        note=f"{seconds:.0f} s; server's CPU {cpu:.1f} s, {cpu / len(sites):.2f} s a client; "
        f"server's memory {(load.memory - load.idle_memory) / 1e6:.0f} MB more, {load.processes} processes",
    )


async def _all(sites: list[Site], within: float) -> int:
    async def visit(number: int, site: Site) -> Report:
        await asyncio.sleep(within * number / len(sites))
        return await synchronise(site.settings(), trigger="schedule")

    jobs = (visit(number, site) for number, site in enumerate(sites))
    done = await asyncio.gather(*jobs, return_exceptions=True)
    return sum(isinstance(report, BaseException) or report.result != "success" for report in done)
