"""A clock that is wrong, or is set: versions grow, readers are not disturbed, certificates are judged again."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import os
import random
import time
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from clr_client import daemon, moments, publishing
from clr_client import settings as clr_settings
from clr_client.moments import Moment
from clr_client.vcsp.subscriber import Subscriber, check
from clr_client.web import health
from clr_client.web import site as sites
from support import caddy
from support.caddy import make_pair
from support.server import wait_until
from support.templates import envelope
from support.volume import Volume
from support.webserver import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import tzinfo

NAME = "library.example.com"


class Wrong:
    """The clock on the wall, off by ``off`` for all that this program asks it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off = timedelta()
        told = moments.now

        class Datetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + self.off

        def now() -> Moment:
            at = told()
            return Moment(at.boot, at.uptime, at.wall + self.off.total_seconds())

        for module in (publishing, sites, health):
            monkeypatch.setattr(module, "datetime", Datetime)
        monkeypatch.setattr(moments, "now", now)


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> Wrong:
    return Wrong(monkeypatch)


@pytest.fixture
def home() -> Iterator[Path]:
    with TemporaryDirectory(prefix="clr") as folder:
        yield Path(folder)


def put(volume: Volume, number: int) -> bytes:
    """Put a template into the mirror, and return its disk."""
    disk = random.Random(number).randbytes(50_000)
    volume.put("alpha/alpha.vmdk", disk)
    volume.put("alpha/alpha.ovf", envelope("alpha", {"alpha.vmdk": len(disk)}))
    return disk


STEPS = {
    "right": timedelta(),
    "a day back": timedelta(days=-1),
    "1970": datetime(1970, 1, 1, 0, 1, tzinfo=UTC) - datetime.now(UTC),
    "a year ahead": timedelta(days=366),
    "2099": datetime(2099, 12, 31, 23, 59, tzinfo=UTC) - datetime.now(UTC),
}


def test_whatever_the_clock_shows_versions_grow_and_a_subscriber_follows(tmp_path: Path, wrong: Wrong) -> None:
    volume = Volume(tmp_path / "library", LIBRARY_KEEP="1", LIBRARY_GRACE="1h")
    subscriber = Subscriber(tmp_path / "subscriber")
    dice = random.Random(5)
    seen: list[tuple[int, ...]] = []
    with contextlib.ExitStack() as stack:
        for number in range(20):
            wrong.off = dice.choice(list(STEPS.values())) if number else STEPS["1970"]
            disk = put(volume, number)
            if number % 5 == 3:
                volume.put(f"new {number}.iso", b"iso")
            library = volume.sync()
            assert volume.sync() == library
            if not number:
                url = stack.enter_context(serving(volume.store.current)) + "/lib.json"
            subscriber.sync(url)
            assert subscriber.files()["alpha"]["alpha.vmdk"].read_bytes() == disk
            alpha = library.items[0]
            generation = {file.name: file.generation_num for file in alpha.files}["alpha.vmdk"]
            seen.append((library.version, alpha.version, alpha.content_version, alpha.etag, generation))
        assert check(url, full=True).problems == ()
    for before, after in pairwise(seen):
        assert all(new > old for old, new in zip(before, after, strict=True))
    created = {item.name: item.created for item in library.items}
    assert created["alpha"].startswith("1970-01-01T")


def test_a_hundred_runs_of_an_unchanged_source_change_no_byte_whatever_the_clock_shows(
    tmp_path: Path, wrong: Wrong
) -> None:
    volume = Volume(tmp_path / "library", LIBRARY_KEEP="1", LIBRARY_GRACE="0")
    put(volume, 0)
    volume.put("tools.iso", b"iso")
    library = volume.sync()

    def snapshot() -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in (*volume.store.generations.rglob("*"), *volume.store.items.rglob("*")):
            if path.is_file():
                info = path.stat()
                found[str(path)] = info.st_ino, info.st_mtime_ns, path.read_bytes()
        return found

    before = snapshot()
    dice = random.Random(6)
    for _ in range(100):
        wrong.off = dice.choice(list(STEPS.values()))
        assert volume.sync() == library
    assert volume.store.generation_numbers() == (1,)
    assert snapshot() == before


@pytest.mark.parametrize("step", STEPS)
def test_a_clock_that_is_set_takes_nothing_from_a_reader_that_is_at_it(home: Path, wrong: Wrong, step: str) -> None:
    program = caddy.program("debian-13")
    with caddy.web(home, program) as web:
        volume = Volume(web.library, LIBRARY_KEEP="1", LIBRARY_GRACE="1h")
        disk = put(volume, 0)
        volume.sync()
        item = json.loads(web.ask("/items.json").body)["items"][0]
        wrong.off = STEPS[step]
        for number in (1, 2):  # while the clock is wrong
            put(volume, number)
            volume.sync()
        wrong.off = timedelta()
        put(volume, 3)
        volume.sync()
        for file in item["files"]:
            answer = web.ask(f"/{file['hrefs'][0]}")
            assert (answer.status, len(answer.body)) == (200, file["size"])
            if file["name"] == "alpha.vmdk":
                assert answer.body == disk
        assert volume.store.generation_numbers() == (1, 2, 3, 4)


def serves(web: caddy.Web) -> bool:
    try:
        return web.ask("/lib.json", tls=True, name=NAME).status == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_machine_that_starts_in_1970_says_what_is_wrong_and_serves_as_soon_as_its_clock_is_right(
    home: Path, wrong: Wrong, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sites, "POLL", 0.1)
    make_pair(home / "certs", NAME)
    wrong.off = STEPS["1970"]
    with caplog.at_level(logging.INFO), caddy.watching(home, caddy.program("debian-13"), NAME) as web:
        assert "cert.pem is not valid before 20" in caplog.text
        assert "the clock here is at 1970-01-01" in caplog.text
        assert not serves(web)
        assert web.ask("/lib.json").status == 503
        wrong.off = timedelta()
        wait_until(lambda: serves(web), what="the site")
        assert caplog.text.count("is not valid before") == 1


def test_a_certificate_that_ends_is_announced_every_day_is_served_on_and_unhealthy_when_it_is_over(
    home: Path, wrong: Wrong, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sites, "POLL", 0.1)
    monkeypatch.setattr(sites, "REMIND", 0.3)  # instead of a day
    make_pair(home / "certs", NAME, days=90)
    with caplog.at_level(logging.WARNING), caddy.watching(home, caddy.program("debian-13"), NAME) as web:
        time.sleep(0.5)
        assert "expires" not in caplog.text
        wrong.off = timedelta(days=75)
        wait_until(lambda: caplog.text.count("the certificate expires on") >= 2, what="two warnings")
        wrong.off = timedelta(days=91)
        wait_until(lambda: "the certificate expired on" in caplog.text, what="the last warning")
        assert serves(web)
        heartbeat = health.heartbeat(web.settings)
        heartbeat.touch()
        problems = health.problems(web.settings, web.library / "status.json")
        assert [problem for problem in problems if "cert.pem expired on" in problem] == problems != []
        wrong.off = timedelta()
        assert health.problems(web.settings, web.library / "status.json") == []


def test_a_clock_that_is_set_by_hours_makes_a_daemon_look_dead_until_its_next_beat_only(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Docker asks three times in a row, thirty seconds apart, before a container is unhealthy; a beat is fifteen."""
    monkeypatch.setattr(daemon, "BEAT", 0.5)
    settings, _ = clr_settings.load({"CLR_RUN_DIR": str(home), "CLR_LIBRARY_DIR": str(home)})
    heartbeat = health.heartbeat(settings)

    async def beat() -> None:
        task = asyncio.create_task(daemon._beat(settings))
        await asyncio.sleep(0)
        for hours in (-2, 2):
            os.utime(heartbeat, (time.time() + hours * 3600,) * 2)
            assert health._beats(heartbeat)
            await asyncio.to_thread(wait_until, lambda: not health._beats(heartbeat), 20, "the next beat")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(beat())
