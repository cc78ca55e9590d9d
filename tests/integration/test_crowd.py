"""Many sites within a minute, at a server that turns some of them away."""

from __future__ import annotations

import asyncio
import os
import random
from typing import TYPE_CHECKING

import pytest
from clr_client.sync import synchronise
from clr_client.transport import batches
from support.server import Server, make_key
from support.site import Site
from support.templates import fake_template

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.reporting.status import Report

SITES = int(os.environ.get("CLR_TEST_SITES", "40"))
"""Each takes a second of one core; `CLR_TEST_SITES=200` is the whole crowd."""
PER_SECOND = 10
KEYS = 8


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    fake_template(folder / "alpha", disk_bytes=100_000)
    (folder / "tools.iso").write_bytes(random.Random(1).randbytes(50_000))
    return folder


def test_a_crowd_of_sites_at_a_small_server_all_get_the_library(library: Path, tmp_path: Path) -> None:
    """The sites' own syncs in the time of a minute's crowd; the server takes only a few at once and refuses the others,
    who come again until it takes them.
    """
    keys = [make_key(tmp_path / f"site{number}") for number in range(KEYS)]
    server = Server(
        library,
        tmp_path / "s",
        keys=[key.with_suffix(".pub") for key in keys],
        environment={"SYNC_MAX_SESSIONS": str(max(6, SITES // 8))},
    )

    def make_site(number: int) -> Site:
        home = tmp_path / "sites" / str(number)
        (home / "ssh").mkdir(parents=True)
        identity = home / "ssh" / "id_syncer"
        identity.write_bytes(keys[number % KEYS].read_bytes())
        identity.chmod(0o600)
        return Site(home, server, SYNC_RETRIES="50", SYNC_RETRY_DELAY="2s", SYNC_CONNECT_TIMEOUT="60s")

    with server:
        sites = [make_site(number) for number in range(SITES)]
        reports = asyncio.run(_crowd(sites))
    assert [report.result for report in reports] == ["success"] * SITES
    for site in sites:
        assert site.versions() == {"alpha": "1", "tools.iso": "1"}
        for path in (library / "alpha").iterdir():
            assert site.content("alpha", path.name) == path.read_bytes()
        assert site.content("tools.iso", "tools.iso") == (library / "tools.iso").read_bytes()
    assert "maxstartups" in server.log_text().lower() or " refused " in server.log_text(), "nobody was turned away"


def test_sites_with_one_key_and_four_transfers_each_all_get_the_library_from_a_server_that_lets_in_a_quarter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 200 sites would with 800 connections at a server that allows a key 200 sessions."""
    monkeypatch.setattr(batches, "BATCH_BYTES", 100_000)
    sites = SITES // 5
    library = tmp_path / "primary"
    for number in range(4):
        fake_template(library / f"item-{number}", disk_bytes=200_000)
    server = Server(library, tmp_path / "s", environment={"SYNC_MAX_SESSIONS": str(sites)})
    with server:
        crowd = [
            Site(tmp_path / "sites" / str(number), server, SYNC_RETRIES="5", SYNC_RETRY_DELAY="2s")
            for number in range(sites)
        ]
        reports = asyncio.run(_crowd(crowd))
    assert [report.result for report in reports] == ["success"] * sites
    for site in crowd:
        for number in range(4):
            for path in (library / f"item-{number}").iterdir():
                assert site.content(f"item-{number}", path.name) == path.read_bytes()
    assert "maxstartups" in server.log_text().lower() or " refused " in server.log_text(), "nobody was turned away"


async def _crowd(sites: list[Site]) -> list[Report]:
    dice = random.Random(7)

    async def visit(site: Site) -> Report:
        await asyncio.sleep(dice.uniform(0, SITES / PER_SECOND))
        return await synchronise(site.settings(), trigger="schedule")

    return await asyncio.gather(*(visit(site) for site in sites))
