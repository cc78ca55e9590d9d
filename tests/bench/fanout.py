"""What many clients at the same moment cost the server."""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from typing import TYPE_CHECKING

from clr_client.sync import synchronise
from support.server import Server, make_key
from support.site import Site
from support.templates import fake_template

from bench.pair import ServerLoad
from bench.rows import Row, case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench.bench import Bench

_ITEMS = 25


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
        with Server(library, work / "server", keys=[key.with_suffix(".pub") for key in keys]) as server:
            sites = [_site(work / "sites" / str(number), server, key) for number, key in enumerate(keys)]
            yield from _measure(server, sites, "new library")
            for count in sorted({1, 20, most}):
                yield from _measure(server, sites[:count], "unchanged library")
            for number in range(_ITEMS):
                fake_template(library / f"item-{number}", disk_bytes=100_000, revision=1)
            yield from _measure(server, sites, "changed library")


def _site(home: Path, server: Server, key: Path) -> Site:
    (home / "ssh").mkdir(parents=True)
    identity = home / "ssh" / "id_syncer"
    identity.write_bytes(key.read_bytes())
    identity.chmod(0o600)
    site = Site(home, server)
    del site.environment["SYNC_RETRIES"]
    return site


def _measure(server: Server, sites: list[Site], what: str) -> Iterator[Row]:
    load = ServerLoad(server, watch=True)
    began = time.monotonic()
    failures = asyncio.run(_all(sites))
    seconds = time.monotonic() - began
    cpu = load.stop()
    yield Row(
        name=f"{len(sites)} clients at once, {what} of {_ITEMS} items: failures",
        ours=failures,
        unit="",
        target=0,
        note=f"{seconds:.0f} s; server's CPU {cpu:.1f} s, {cpu / len(sites):.2f} s a client; "
        f"server's memory {(load.memory - load.idle_memory) / 1e6:.0f} MB more",
    )


async def _all(sites: list[Site]) -> int:
    jobs = (synchronise(site.settings(), trigger="schedule") for site in sites)
    done = await asyncio.gather(*jobs, return_exceptions=True)
    return sum(isinstance(report, BaseException) or report.result != "success" for report in done)
