"""When the daemon verifies, and how that and the syncs keep out of each other's way: with runs that only pretend."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import settings as clr_settings
from clr_client.daemon import Work
from clr_client.errors import ManifestError
from clr_client.integrity.damages import Damage
from clr_client.reporting.status import Verification

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

START = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)
CLEAN = Verification("schedule", "", "", 1.0, 5_000_000)


class Night:
    """A Work whose clock moves when it sleeps until a verification; ``verified`` is when it began each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, schedule: str = "0 3 * * *") -> None:
        self.now = START
        self.verified: list[str] = []
        self.during: Callable[[Any, Any], Awaitable[Verification]] = self.nothing
        self.enough = asyncio.Event()
        self.wanted = 1
        loaded, _ = clr_settings.load({"SYNC_PEER": "x", "VERIFY_SCHEDULE": schedule, "SYNC_SCHEDULE": "0 0 1 1 *"})
        self.synced: list[str] = []
        self.work = Work(loaded, self.sync, now=lambda: self.now, verify=self.verify)

        async def sleep(_work: Work, seconds: float) -> bool:
            self.now += timedelta(seconds=seconds)
            await asyncio.sleep(0)
            return False

        monkeypatch.setattr(Work, "_sleep", sleep)

    async def nothing(self, _free: Any, _turn: Any) -> Verification:
        return CLEAN

    async def sync(self, _settings: Any, *, trigger: str) -> None:
        self.synced.append(trigger)

    async def verify(self, _settings: Any, *, trigger: str, free: Any, turn: Any) -> Verification:
        assert trigger == "schedule"
        self.verified.append(self.now.strftime("%d %H:%M"))
        if len(self.verified) >= self.wanted:
            self.enough.set()
        return await self.during(free, turn)

    def tell(self, runs: int) -> list[str]:
        """Let it go on until it began that many verifications."""
        self.wanted = runs

        async def go() -> None:
            task = asyncio.create_task(self.work.keep_verifying())
            await asyncio.wait_for(self.enough.wait(), 60)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(go())
        return self.verified[:runs]


def test_verifications_come_on_their_own_schedule_and_not_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Night(monkeypatch).tell(3) == ["22 03:00", "23 03:00", "24 03:00"]


def test_without_a_schedule_nothing_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(monkeypatch, "")
    asyncio.run(asyncio.wait_for(night.work.keep_verifying(), 60))
    assert night.verified == []


def test_verifications_that_a_long_one_covers_are_skipped_counted_and_not_made_up_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    night = Night(monkeypatch)

    async def three_days(_free: Any, _turn: Any) -> Verification:
        night.now += timedelta(days=3 if len(night.verified) == 1 else 0)
        return CLEAN

    night.during = three_days
    assert night.tell(2) == ["22 03:00", "26 03:00"]
    assert "3 scheduled verifications were skipped while this one ran" in caplog.text


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ManifestError("nothing was ever published"), "verification failed: nothing was ever published"),
        (RuntimeError("a defect"), "verification failed unexpectedly; please report this"),
    ],
)
def test_a_verification_that_fails_is_logged_and_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, line: str
) -> None:
    night = Night(monkeypatch)

    async def fail(_free: Any, _turn: Any) -> Verification:
        raise error

    night.during = fail
    assert night.tell(2) == ["22 03:00", "23 03:00"]
    assert line in caplog.text


def test_the_result_is_one_line_and_a_warning_if_anything_was_damaged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    damage = (Damage("items/x/1/disk", "is not what was published"),)
    results = [CLEAN, Verification("schedule", "", "", 2.0, 5_000_000, damage, (), damage, "the line is down")]
    night = Night(monkeypatch)

    async def result(_free: Any, _turn: Any) -> Verification:
        return results[min(len(night.verified), 2) - 1]

    night.during = result
    night.tell(3)
    lines = [(record.levelname, record.message) for record in caplog.records if record.message.startswith("verificat")]
    assert ("INFO", "verification: 5.0 MB read in 1 s; all is as published") in lines
    worse = "verification: 5.0 MB read in 2 s; 1 found damaged; 1 still damaged (the line is down)"
    assert ("WARNING", worse) in lines


def test_a_sync_that_is_due_starts_while_a_verification_reads_which_pauses_until_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    night = Night(monkeypatch)
    seen: list[bool] = []

    async def sync(_settings: Any, *, trigger: str) -> None:
        seen.append(night.work.free.is_set())

    async def read(free: Any, _turn: Any) -> Verification:
        seen.append(free.is_set())
        await night.work._sync("schedule")
        seen.append(free.is_set())
        return CLEAN

    night.work.sync = sync
    night.during = read
    asyncio.run(night.work._verify())
    assert seen == [True, False, True]


def test_mending_and_a_sync_wait_for_each_other_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    night = Night(monkeypatch)
    order: list[str] = []

    async def sync(_settings: Any, *, trigger: str) -> None:
        order.append("sync begins")
        await asyncio.sleep(0.05)
        order.append("sync ends")

    async def both() -> None:
        mending = asyncio.Event()

        async def mend(_free: Any, turn: Any) -> Verification:
            async with turn:
                order.append("mending begins")
                mending.set()
                await asyncio.sleep(0.05)
                order.append("mending ends")
            return CLEAN

        night.during = mend
        verifying = asyncio.create_task(night.work._verify())
        await mending.wait()
        syncing = asyncio.create_task(night.work._sync("schedule"))
        await asyncio.gather(verifying, syncing)
        mending.clear()
        syncing = asyncio.create_task(night.work._sync("schedule"))
        await asyncio.sleep(0.01)
        await asyncio.gather(night.work._verify(), syncing)

    night.work.sync = sync
    asyncio.run(both())
    assert order == [
        *("mending begins", "mending ends", "sync begins", "sync ends"),
        *("sync begins", "sync ends", "mending begins", "mending ends"),
    ]
