"""Permits to use the line: as many as the limit of the moment allows, whoever takes them."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clr_client.rates import parse
from clr_client.transport import Link, allowance
from clr_client.transport.allowance import MOST_PERMITS, TICK_SECONDS, due, limited, proxy_command
from clr_client.transport.relay import UNIT
from clr_client.values import Peer
from hypothesis import given
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20


def link(folder: Path = Path("/keys"), host: str = "clr.example.com") -> Link:
    seconds = timedelta(seconds=30)
    return Link(Peer(host, 2222), "syncer", folder / "id", folder / "known_hosts", False, seconds, seconds)


def used(rate: Callable[[float], int], seconds: float, *, tick: float = TICK_SECONDS) -> int:
    """Bytes that may cross in so many seconds of a clock of our own, when everything is taken at once."""
    owed, total, now = 0.0, 0, 0.0
    while now < seconds:
        now += tick
        owed, change = due(rate(now), tick, owed, 0)
        total += change * UNIT
    return total


@given(st.integers(512, 200 * MIB), st.floats(0.01, 0.24))
def test_over_time_exactly_the_limit_crosses_whatever_it_is_and_however_late_the_ticks_are(
    limit: int, tick: float
) -> None:
    seconds = max(20.0, 100 * UNIT / limit)
    assert used(lambda _: limit, seconds, tick=tick) == pytest.approx(
        min(limit, MOST_PERMITS * UNIT / tick) * seconds, rel=0.02
    )


def test_the_rate_follows_the_clock_on_the_wall_through_the_day() -> None:
    rates = parse("1m@08:00-18:00,2m")
    midnight = datetime(2026, 3, 29)  # noqa: DTZ001 - a clock of our own

    def at(hour: float) -> Callable[[float], int]:
        return lambda now: rates.at((midnight + timedelta(hours=hour, seconds=now)).time())

    assert used(at(7), 3600) == pytest.approx(2 * MIB * 3600, rel=0.001)
    assert used(at(8), 3600) == pytest.approx(MIB * 3600, rel=0.001)
    assert used(at(17.5), 3600) == pytest.approx((1800 + 3600) * MIB, rel=0.001)
    assert rates.at(time(18)) == 2 * MIB


def test_a_pause_is_not_made_up_for() -> None:
    owed = 0.0
    waiting = 0
    for _ in range(1000):
        owed, change = due(MIB, TICK_SECONDS, owed, waiting)
        waiting += change
    assert waiting * UNIT <= MIB * allowance.SAVED_SECONDS + UNIT
    assert owed <= 1


def test_what_was_permitted_without_a_limit_is_taken_back_when_there_is_one() -> None:
    owed, change = due(0, TICK_SECONDS, 0.0, 10)
    assert change == MOST_PERMITS - 10
    _, change = due(MIB, TICK_SECONDS, owed, MOST_PERMITS)
    assert (MOST_PERMITS + change) * UNIT <= MIB * allowance.SAVED_SECONDS + UNIT


@pytest.mark.parametrize("host", ["clr.example.com", "fe80::1%eth0"])
@pytest.mark.parametrize("folder", ["/run/a b", "/it's", "/$(id)", "/100%h"])
def test_the_shell_of_ssh_gets_the_words_that_were_meant(folder: str, host: str) -> None:
    line = proxy_command(link(host=host), 1000, Path(folder))
    assert line.count("%") == 2 * line.count("%%")
    words = shlex.split(line.replace("%%", "%"))
    assert (words[0], words[-5:]) == (sys.executable, [host, "2222", "30.0", "1000", folder])


def test_permits_end_with_the_sync_and_nothing_stays_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    got = []

    async def main() -> None:
        async with limited(link(), lambda: 10 * MIB) as line:
            pipe = Path(shlex.split(line.proxy)[-1])
            assert pipe.is_relative_to(tmp_path)
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            while not got:
                await asyncio.sleep(TICK_SECONDS)
                try:
                    got.append(os.read(reader, MOST_PERMITS))
                except BlockingIOError:
                    continue
        assert os.read(reader, 1) in {b"", b"\0"}
        while rest := os.read(reader, MOST_PERMITS):
            assert rest
        os.close(reader)

    asyncio.run(main())
    assert 0 < len(got[0]) * UNIT <= 10 * MIB * allowance.SAVED_SECONDS
    assert list(tmp_path.iterdir()) == []
