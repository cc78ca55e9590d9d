"""Several transfers at once: together they keep to one limit, and one that fails takes nothing from the others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from clr_client import pull
from clr_client.reporting.progress import Observer
from clr_client.sync import synchronise
from clr_client.transport import batches
from support.proxy import Line
from support.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Server

MB = 1_000_000
MOST = 1.03


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    folder.mkdir()
    return folder


@pytest.fixture
def site(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site for which a megabyte is worth a connection of its own."""
    monkeypatch.setattr(batches, "BATCH_BYTES", MB)
    return Site(tmp_path / "site", server, SYNC_RETRY_DELAY="0", SYNC_TIMEOUT="60s")


def publish(library: Path, *sizes: int) -> int:
    for number, size in enumerate(sizes):
        (library / f"item-{number}").mkdir(exist_ok=True)
        (library / f"item-{number}" / "disk.bin").write_bytes(random.Random(number).randbytes(size))
        (library / f"item-{number}" / "notes.txt").write_bytes(b"%d" % number)
    return sum(sizes)


def assert_all_here(site: Site, library: Path) -> None:
    for disk in library.rglob("disk.bin"):
        assert site.content(disk.parent.name, "disk.bin") == disk.read_bytes()


class Connections:
    """Watches how many connections a line has at the same time."""

    def __init__(self, line: Line) -> None:
        self.line, self.most, self._stop = line, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Connections:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, len(self.line.open) // 2)


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    with Line(server.port, rate=4 * MB) as running:
        yield running


@pytest.mark.parametrize("parallel", [1, 3])
def test_as_many_transfers_run_at_once_as_the_setting_says(
    library: Path, site: Site, line: Line, parallel: int
) -> None:
    total = publish(library, *[2 * MB] * 6)
    with Connections(line) as connections:
        report = site.sync(SYNC_PORT=str(line.port), SYNC_PARALLEL=str(parallel))
    assert (report.result, len(report.added)) == ("success", 6)
    # Besides those that bring something, each may have its successor come about
    assert parallel <= connections.most <= (2 * parallel if parallel > 1 else 1)
    assert report.literal_bytes == total + 6
    assert line.crossed < MOST * total
    assert_all_here(site, library)


def test_a_small_library_needs_one_connection_for_the_list_one_for_the_files_and_one_to_see_that_they_stayed(
    library: Path, server: Server, tmp_path: Path
) -> None:
    publish(library, *[10_000] * 6)
    with Line(server.port) as line:
        Site(tmp_path / "site", server).sync(SYNC_PORT=str(line.port))
    assert line.connections == 3


def test_a_transfer_that_is_cut_takes_nothing_from_the_others_and_its_own_part_is_not_sent_again(
    library: Path, server: Server, site: Site
) -> None:
    total = publish(library, *[4 * MB] * 4)
    with Line(server.port, None, 2 * MB, 2 * MB, rate=4 * MB) as line:
        report = site.sync(SYNC_PORT=str(line.port), SYNC_PARALLEL="2", SYNC_RETRIES="1")
    assert report.result == "success"
    print(f"one transfer of two cut: {line.crossed} bytes for {total}, ratio {line.crossed / total:.4f}")
    assert line.crossed < MOST * total
    assert_all_here(site, library)


def test_a_cut_that_is_not_mended_leaves_what_the_others_brought_to_be_published(
    library: Path, server: Server, site: Site
) -> None:
    publish(library, *[4 * MB] * 4)
    with Line(server.port, None, 2 * MB, 2 * MB, rate=4 * MB) as line:
        report = site.sync(SYNC_PORT=str(line.port), SYNC_PARALLEL="2", SYNC_RETRIES="0")
    assert (report.result, len(report.added), len(report.held)) == ("partial", 3, 1)
    with Line(server.port) as line:
        assert site.sync(SYNC_PORT=str(line.port)).result == "success"
    assert line.crossed < 3 * MB
    assert_all_here(site, library)


def test_an_end_of_the_window_ends_all_transfers_and_keeps_what_each_had(
    library: Path, server: Server, site: Site
) -> None:
    total = publish(library, *[8 * MB] * 3)
    with Line(server.port) as line:
        line.at(9 * MB, lambda: setattr(line, "rate", 20_000))
        report = site.sync(SYNC_PORT=str(line.port), SYNC_PARALLEL="3", SYNC_WINDOW="8s", SYNC_MAX_BW="3m")
        assert report.result == "partial"
        line.heal()
        assert site.sync(SYNC_PORT=str(line.port), SYNC_PARALLEL="3").result == "success"
    assert line.crossed < 1.06 * total
    assert_all_here(site, library)


class Clock:
    """The clock on the wall of a site: it jumps when the test says so."""

    def __init__(self, hour: int) -> None:
        self.hour = hour

    def now(self, zone: object) -> Clock:
        assert zone is not None
        return self

    def time(self) -> Clock:
        return self

    @property
    def minute(self) -> int:
        return 0


class Watch(Observer):
    """Notes how far the transfer was when, and turns the clock at some of these moments."""

    def __init__(self, clock: Clock, *turns: tuple[int, int]) -> None:
        self.clock, self.turns = clock, list(turns)
        self.seen: list[tuple[float, int]] = []
        self.turned: list[float] = []

    def transfer(self, done: int, total: int, rate: float, file: str | None) -> None:
        self.seen.append((time.monotonic(), done))
        while self.turns and done >= self.turns[0][0]:
            self.clock.hour = self.turns.pop(0)[1]
            self.turned.append(time.monotonic())

    def rate(self, since: float, until: float) -> float:
        """Bytes per second between two moments, as far as rsync told of them: once a second."""
        within = [each for each in self.seen if since <= each[0] <= until]
        return (within[-1][1] - within[0][1]) / (within[-1][0] - within[0][0])


def test_all_transfers_together_keep_to_one_limit(library: Path, server: Server, site: Site) -> None:
    publish(library, *[2 * MB] * 6)
    limit = 2 * MB
    watch = Watch(Clock(0))
    with Line(server.port) as line, Connections(line) as connections:
        settings = site.settings(SYNC_PORT=str(line.port), SYNC_PARALLEL="3", SYNC_MAX_BW=f"{limit // 1000}kb")
        assert asyncio.run(synchronise(settings, trigger="test", observer=watch)).added
    assert 3 <= connections.most <= 6
    rate = watch.rate(0, time.monotonic())
    print(f"three transfers: {rate:,.0f} bytes per second of {limit:,}")
    assert rate < 1.4 * limit
    assert_all_here(site, library)


def test_a_running_transfer_gets_faster_and_slower_by_the_clock_and_nothing_is_sent_twice(
    library: Path, server: Server, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = publish(library, 11 * MB, 11 * MB)
    clock = Clock(12)
    monkeypatch.setattr(pull, "datetime", clock)
    watch = Watch(clock, (3 * MB, 18), (7 * MB, 12))
    with Line(server.port) as line:
        settings = site.settings(
            SYNC_PORT=str(line.port), SYNC_PARALLEL="2", SYNC_MAX_BW="1m@08:00-18:00,4m", TZ="Asia/Tokyo"
        )
        report = asyncio.run(synchronise(settings, trigger="test", observer=watch))
    assert report.result == "success"
    assert line.connections == 5, "a transfer was begun anew"  # two lists, the notes, two disks
    assert line.crossed < 1.01 * total
    evening, morning = watch.turned
    slow, fast = watch.rate(0, evening), watch.rate(evening, morning)
    # What came through before the morning may still wait in ssh and in rsync: the last part did not.
    again = watch.rate(next(when for when, done in watch.seen if done > total - 5 * MB), time.monotonic())
    print(f"bytes per second: {slow:,.0f}, {fast:,.0f}, {again:,.0f}; {line.crossed / total:.4f} of the files sent")
    assert slow < 1.3 * MB
    assert max(slow, again) < 0.75 * fast
    assert_all_here(site, library)
