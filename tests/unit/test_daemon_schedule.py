"""When the daemon syncs: on a clock that the test sets, with syncs that only pretend."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import UTC, datetime, timedelta
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest
from clr_client import daemon
from clr_client import settings as clr_settings
from clr_client.daemon import Work
from clr_client.errors import LockedError, TransportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

START = datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC)


class Clock:
    """A clock on the wall that moves by a slice whenever somebody sleeps, and jumps when told to."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now
        self.slept = 0.0

    def __call__(self, tz: tzinfo | None = None) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.slept += seconds


class Story:
    """A Work on that clock, and the syncs it made: ``(trigger, when)``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, schedule: str = "*/10 * * * *", **environment: str) -> None:
        self.clock = Clock()
        self.runs: list[tuple[str, datetime]] = []
        self.during: Callable[[int], None] = lambda number: None
        self.asleep: Callable[[float], None] = lambda seconds: None
        settings, _ = clr_settings.load({"SYNC_PEER": "x", "SYNC_SCHEDULE": schedule, **environment})
        self.work = Work(settings, self.sync, now=self.clock)

        async def asked_within(work: Work, seconds: float) -> bool:
            assert self.clock.slept < 40 * 86400, "nothing ever happens"
            self.clock.move(seconds)
            self.asleep(seconds)
            await asyncio.sleep(0)
            return work.asked.is_set()

        monkeypatch.setattr(Work, "_asked_within", asked_within)

    async def sync(self, settings: Any, *, trigger: str) -> None:
        self.runs.append((trigger, self.clock.now))
        if len(self.runs) >= self.wanted:
            self.enough.set()
        self.during(len(self.runs))

    def tell(self, runs: int) -> list[tuple[str, str]]:
        """Let it go on until it began that many syncs; what triggered them, and the time of day."""

        self.enough, self.wanted = asyncio.Event(), runs

        async def go() -> None:
            task = asyncio.create_task(self.work.go())
            enough = asyncio.create_task(self.enough.wait())
            await asyncio.wait({task, enough}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            enough.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(go())
        return [(trigger, when.strftime("%H:%M:%S")) for trigger, when in self.runs[:runs]]


def test_first_sync_is_at_once_and_the_others_on_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Story(monkeypatch).tell(3) == [("start", "12:00:30"), ("schedule", "12:10:00"), ("schedule", "12:20:00")]


def test_runs_that_a_long_sync_covers_are_skipped_counted_and_not_made_up_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(monkeypatch)
    story.during = lambda number: story.clock.move(35 * 60 if number == 2 else 0)
    assert story.tell(3) == [("start", "12:00:30"), ("schedule", "12:10:00"), ("schedule", "12:50:00")]
    assert story.work.skipped == 3
    assert "3 scheduled syncs were skipped while this one ran" in caplog.text


def test_clock_set_forward_gives_one_run_and_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(monkeypatch)
    jumps = [86400.0]
    story.asleep = lambda seconds: story.clock.move(jumps.pop()) if jumps else None
    first, second, third = story.tell(3)
    assert [first[1], second[1], third[1]] == ["12:00:30", "12:01:00", "12:10:00"]
    assert story.runs[1][1].date() == START.date() + timedelta(days=1)


def test_clock_set_back_by_a_day_does_not_put_the_next_run_off_by_a_day(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(monkeypatch)
    jumps = [-86400.0]
    story.asleep = lambda seconds: story.clock.move(jumps.pop()) if jumps else None
    assert story.tell(2)[1] == ("schedule", "12:10:00")
    assert story.runs[1][1].date() == START.date() - timedelta(days=1)
    assert "the clock was set back" in caplog.text


def test_clock_corrected_by_a_second_after_a_run_does_not_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(monkeypatch)
    story.clock.now = START.replace(minute=10, second=0)
    jumps = [-32.0]
    story.asleep = lambda seconds: story.clock.move(jumps.pop()) if jumps else None
    assert story.tell(2) == [("start", "12:10:00"), ("schedule", "12:20:00")]


def test_nobody_sleeps_longer_than_a_slice_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(monkeypatch, "0 0 1 1 *")
    slept: list[float] = []

    def note(seconds: float) -> None:
        slept.append(seconds)
        story.clock.move(86400)

    story.asleep = note
    story.tell(2)
    assert max(slept) <= 30


def test_random_wait_comes_before_scheduled_runs_only_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    delays: list[tuple[float, float]] = []

    class Dice:
        def uniform(self, low: float, high: float) -> float:
            delays.append((low, high))
            return 100.0

    monkeypatch.setattr(daemon.random, "SystemRandom", Dice)
    story = Story(monkeypatch, SYNC_DELAY="true", SYNC_DELAY_MAX_SECONDS="300")
    assert story.tell(3) == [("start", "12:00:30"), ("schedule", "12:11:40"), ("schedule", "12:21:40")]
    assert delays == [(0, 300), (0, 300)]
    assert "waiting 1 min 40 s before this sync (SYNC_DELAY)" in caplog.text


def test_random_wait_longer_than_the_interval_is_capped_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(monkeypatch, SYNC_DELAY="true", SYNC_DELAY_MAX_SECONDS="21600")
    story.tell(10)
    assert max(later - earlier for (_, earlier), (_, later) in pairwise(story.runs)) <= timedelta(minutes=20)
    assert caplog.text.count("SYNC_DELAY_MAX_SECONDS=21600 is longer than the time between syncs; capped at 600 s") == 1


def test_random_waits_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(monkeypatch, "0 * * * *", SYNC_DELAY="true", SYNC_DELAY_MAX_SECONDS="3000")
    story.tell(6)
    assert len({(when.minute, when.second, when.microsecond) for _, when in story.runs[1:]}) > 3


def test_sync_asked_for_by_hand_comes_at_once_also_within_the_random_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(monkeypatch, SYNC_DELAY="true", SYNC_DELAY_MAX_SECONDS="300")
    due = START.replace(minute=10, second=0)
    story.asleep = lambda seconds: story.work.asked.set() if story.clock.now > due else None
    runs = story.tell(2)
    assert runs[1][0] == "hand"


def test_run_that_finds_the_library_locked_is_skipped_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    story = Story(monkeypatch)

    def locked(number: int) -> None:
        raise LockedError("already running since 12:00")

    story.during = locked
    assert len(story.tell(3)) == 3
    assert "sync skipped: already running since 12:00" in caplog.text


BERLIN = ZoneInfo("Europe/Berlin")
WEEKS = {  # with a fold, with a gap, and without either
    "autumn": datetime(2026, 10, 22, 22, 0, 30, tzinfo=UTC),
    "spring": datetime(2026, 3, 26, 23, 0, 30, tzinfo=UTC),
    "winter": datetime(2026, 11, 21, 12, 0, 30, tzinfo=UTC),
}


def in_berlin(start: datetime, *times: str) -> list[datetime]:
    """The instants within nine days at which clocks in Berlin first show one of these times, or skip it."""
    days = [start.astimezone(BERLIN).date() + timedelta(days=day) for day in range(10)]
    instants = set()
    for local in (datetime.fromisoformat(f"{day} {time}").replace(tzinfo=BERLIN) for day in days for time in times):
        instant = local.astimezone(UTC)
        is_shown = instant.astimezone(BERLIN).replace(tzinfo=None) == local.replace(tzinfo=None)
        instants.add(instant if is_shown else datetime(2026, 3, 29, 1, tzinfo=UTC))
    return sorted(instant for instant in instants if start < instant <= start + timedelta(days=9))


@pytest.mark.parametrize("week", WEEKS)
def test_in_a_week_each_scheduled_sync_runs_once_at_its_time_or_is_counted_as_skipped(
    monkeypatch: pytest.MonkeyPatch, week: str
) -> None:
    """Some syncs are short, some cover the next ones, some fail in each way, and people ask for others in between."""
    start = WEEKS[week]
    story = Story(monkeypatch, "30 2,9,14,21 * * *", TZ="Europe/Berlin")
    story.clock.now = start
    dice = random.Random(week)
    ends: list[datetime] = []
    outcomes = cycle([None, TransportError("away"), LockedError("already running"), RuntimeError("a defect")])

    def sync(number: int) -> None:
        story.clock.move(dice.choice([1, 300, 3600, 9 * 3600]))
        ends.append(story.clock.now)
        if failure := next(outcomes):
            raise failure

    def asleep(seconds: float) -> None:
        if dice.random() < 1 / 1000:
            story.work.asked.set()
        elif story.clock.now > start + timedelta(days=7):
            story.enough.set()

    story.during, story.asleep = sync, asleep
    story.tell(1000)
    over = story.clock.now
    due = [instant for instant in in_berlin(start, "02:30", "09:30", "14:30", "21:30") if instant <= over]
    assert len(due) >= 28

    spans = list(zip((when for _, when in story.runs), ends, strict=True))
    covered = [instant for instant in due if any(began < instant <= ended for began, ended in spans)]
    assert [when for trigger, when in story.runs if trigger == "schedule"] == [
        instant for instant in due if instant not in covered
    ]
    assert story.work.skipped == len(covered) > 0
    assert "hand" in {trigger for trigger, _ in story.runs}


@pytest.mark.parametrize("step", [-400 * 86400, -86400, 86400, 400 * 86400])
def test_a_clock_that_is_set_during_a_sync_neither_repeats_nor_stops_the_schedule(
    monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    story = Story(monkeypatch)

    def sync(number: int) -> None:
        if number == 2:
            story.clock.now += timedelta(seconds=step + 120)

    story.during = sync
    assert story.tell(4)[1:] == [
        ("schedule", "12:10:00"),
        ("schedule", "12:20:00"),
        ("schedule", "12:30:00"),
    ]


@pytest.mark.parametrize("step", [-86400, 86400])
def test_a_clock_that_is_set_during_the_random_wait_gives_one_sync(
    monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    class Dice:
        def uniform(self, low: float, high: float) -> float:
            return 100.0

    monkeypatch.setattr(daemon.random, "SystemRandom", Dice)
    story = Story(monkeypatch, SYNC_DELAY="true", SYNC_DELAY_MAX_SECONDS="300")
    jumps = [step]
    story.asleep = lambda seconds: story.clock.move(jumps.pop()) if seconds == 100.0 and jumps else None
    assert story.tell(4)[1:] == [("schedule", "12:11:40"), ("schedule", "12:21:40"), ("schedule", "12:31:40")]


def test_a_clock_set_back_and_forth_gives_each_sync_of_the_time_that_it_shows_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clock that wavers by seconds, as one that is being corrected does, repeats nothing."""
    story = Story(monkeypatch)
    dice = random.Random(3)
    story.asleep = lambda seconds: setattr(
        story.clock, "now", story.clock.now + timedelta(seconds=dice.uniform(-15, 15))
    )
    story.tell(30)
    gaps = [later - earlier for (_, earlier), (_, later) in pairwise(story.runs[1:])]
    assert min(gaps) > timedelta(minutes=9)
    assert max(gaps) < timedelta(minutes=11)


def test_summary_of_the_settings_shows_what_was_set_but_no_secret() -> None:
    settings, _ = clr_settings.load(
        {
            "SYNC_PEER": "a.example, [2001:db8::1]:22",
            "LIBRARY_PASSWORD": "geheim",
            "SYNC_HOST_KEY": "SHA256:" + "A" * 43,
            "LIBRARY_NAME": "Golden images",
            "SYNC_TIMEOUT": "90",
            "LIBRARY_BROWSE": "true",
            "TZ": "Europe/Berlin",
            "SYNC_PORT": "2222",
        }
    )
    assert daemon.describe(settings) == [
        "TZ=Europe/Berlin",
        "SYNC_PEER=a.example:2222,[2001:db8::1]:22",
        "SYNC_HOST_KEY=(set)",
        "SYNC_TIMEOUT=90s",
        'LIBRARY_NAME="Golden images"',
        "LIBRARY_BROWSE=true",
        "LIBRARY_PASSWORD=(set)",
    ]
