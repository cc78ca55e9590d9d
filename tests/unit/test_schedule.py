"""Runs at the right instants: cron fields, both changes of daylight saving, and dates that never come."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from clr_client.schedule import Schedule
from hypothesis import example, given
from hypothesis import strategies as st

MINUTE = timedelta(minutes=1)
BERLIN = ZoneInfo("Europe/Berlin")
# A zone and an instant near one of its transitions: ordinary ones, half an hour, two hours, at midnight, by Ramadan,
# dates that were skipped altogether, a change of the standard offset, and no change at all.
TRANSITIONS = [
    ("Europe/Berlin", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Europe/Berlin", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/New_York", datetime(2027, 3, 14, 7, tzinfo=UTC)),
    ("America/New_York", datetime(2027, 11, 7, 6, tzinfo=UTC)),
    ("America/St_Johns", datetime(2026, 3, 8, 5, 30, tzinfo=UTC)),
    ("America/St_Johns", datetime(2026, 11, 1, 4, 30, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15, tzinfo=UTC)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30, tzinfo=UTC)),
    ("Africa/Casablanca", datetime(2026, 2, 15, 2, tzinfo=UTC)),
    ("Africa/Casablanca", datetime(2026, 3, 22, 2, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("Antarctica/Troll", datetime(2026, 10, 25, 1, tzinfo=UTC)),
    ("America/Havana", datetime(2026, 3, 8, 5, tzinfo=UTC)),
    ("America/Havana", datetime(2026, 11, 1, 5, tzinfo=UTC)),
    ("America/Sao_Paulo", datetime(2018, 11, 4, 3, tzinfo=UTC)),
    ("Pacific/Apia", datetime(2011, 12, 30, 10, tzinfo=UTC)),
    ("Pacific/Kwajalein", datetime(1993, 8, 21, 12, tzinfo=UTC)),
    ("Pacific/Kwajalein", datetime(1969, 9, 30, 13, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(1985, 12, 31, 18, 30, tzinfo=UTC)),
    ("Asia/Kathmandu", datetime(2026, 3, 29, 1, tzinfo=UTC)),
    ("UTC", datetime(2028, 2, 29, tzinfo=UTC)),
]


def runs(expression: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """All runs later than ``start`` and not later than ``end``."""
    schedule, found, instant = Schedule(expression), [], start
    while (instant := schedule.next_after(instant, zone)) <= end:
        found.append(instant)
    return found


def local_runs(expression: str, zone: str, first: str, last: str) -> list[str]:
    tz = ZoneInfo(zone)
    start, end = (datetime.fromisoformat(day).replace(tzinfo=tz).astimezone(UTC) for day in (first, last))
    return [run.astimezone(tz).strftime("%d %H:%M %z") for run in runs(expression, tz, start - MINUTE, end)]


def test_original_default_is_fridays_at_nine_in_the_evening_local_time() -> None:
    assert local_runs("0 21 * * 5", "America/Chicago", "2026-03-01", "2026-03-15") == [
        "06 21:00 -0600",
        "13 21:00 -0500",
    ]


@pytest.mark.parametrize("expression", ["30 2 * * *", "30 2 * * 0", "30 2 29 3 *", "30 2 29 * *", "*/15 2 * * 0"])
def test_daily_weekly_and_monthly_jobs_in_the_spring_gap_run_once_at_the_first_instant_after_it(
    expression: str,
) -> None:
    assert local_runs(expression, "Europe/Berlin", "2026-03-29", "2026-03-30") == ["29 03:00 +0200"]


@pytest.mark.parametrize("expression", ["30 2 * * *", "30 2 * * 0", "30 2 25 10 *", "30 2 25 * *"])
def test_daily_weekly_and_monthly_jobs_in_the_autumn_fold_run_once(expression: str) -> None:
    assert local_runs(expression, "Europe/Berlin", "2026-10-25", "2026-10-26") == ["25 02:30 +0200"]


def test_job_at_the_end_of_the_gap_and_one_inside_it_are_one_run() -> None:
    assert local_runs("0,30 2-3 * * *", "Europe/Berlin", "2026-03-29", "2026-03-30") == [
        "29 03:00 +0200",
        "29 03:30 +0200",
    ]


@pytest.mark.parametrize("expression", ["@hourly", "0 * * * *", "0 0-23 * * *"])
def test_hourly_job_runs_each_real_hour_of_both_long_and_short_days(expression: str) -> None:
    for first, last, hours in [("2026-10-25", "2026-10-26", 25), ("2026-03-29", "2026-03-30", 23)]:
        start, end = (datetime.fromisoformat(day).replace(tzinfo=BERLIN).astimezone(UTC) for day in (first, last))
        found = runs(expression, BERLIN, start, end)
        assert [run - start for run in found] == [timedelta(hours=n) for n in range(1, hours + 1)]


def test_job_every_quarter_of_an_hour_never_waits_longer_than_that() -> None:
    start = datetime(2026, 10, 24, 23, tzinfo=UTC)
    found = runs("*/15 * * * *", BERLIN, start, start + timedelta(hours=6))
    assert found == [start + 15 * MINUTE * n for n in range(1, 25)]


def test_date_skipped_by_a_move_across_the_date_line_runs_at_the_start_of_the_next_day() -> None:
    assert local_runs("0 5 30 12 *", "Pacific/Apia", "2011-12-29", "2012-01-02") == ["31 00:00 +1400"]


def test_run_is_strictly_later_than_the_instant_asked_about() -> None:
    at = datetime(2026, 11, 21, 21, 0, tzinfo=UTC)
    schedule = Schedule("0 21 * * *")
    assert schedule.next_after(at - timedelta(microseconds=1), ZoneInfo("UTC")) == at
    assert schedule.next_after(at, ZoneInfo("UTC")) == at + timedelta(days=1)
    assert schedule.next_after(at + timedelta(microseconds=1), ZoneInfo("UTC")) == at + timedelta(days=1)


def test_instant_in_any_zone_gives_an_answer_in_utc() -> None:
    asked = datetime(2026, 11, 21, 21, 0, tzinfo=ZoneInfo("Asia/Tokyo"))
    answer = Schedule("0 0 * * *").next_after(asked, BERLIN)
    assert answer == datetime(2026, 11, 21, 23, 0, tzinfo=UTC)
    assert answer.tzinfo is UTC


@pytest.mark.parametrize(
    ("alias", "fields"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@Annually", "0 0 1 1 *"),
    ],
)
def test_alias_is_the_same_as_its_fields(alias: str, fields: str) -> None:
    start = datetime(2026, 11, 21, tzinfo=UTC)
    assert Schedule(alias).next_after(start, BERLIN) == Schedule(fields).next_after(start, BERLIN)
    assert str(Schedule(alias)) == alias


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 31 2 *",
        "0 0 30 2 *",
        "0 0 31 4 *",
        "0 0 31 4,6,9,11 *",
        "0 0 30 2 1",
    ],
)
def test_date_that_never_comes_is_refused_with_one_that_does(expression: str) -> None:
    with pytest.raises(ValueError, match=r"has no day .*; a date that comes is 0 0 28 2 \*"):
        Schedule(expression)


def test_leap_day_is_accepted_also_across_a_century_without_one() -> None:
    at = datetime(2097, 1, 1, tzinfo=UTC)
    assert Schedule("0 0 29 2 *").next_after(at, ZoneInfo("UTC")) == datetime(2104, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("", "0 fields instead of five"),
        ("* * * *", "4 fields"),
        ("0 0 * * * *", "6 fields"),
        ("0 0 * * * * 2026", "7 fields"),
        ("@reboot", "@reboot is none of @hourly"),
        ("every day", "2 fields"),
        ("60 * * * *", "minute '60' is not within 0-59"),
        ("0 24 * * *", "hour '24' is not within 0-23"),
        ("0 0 0 * *", "day of month '0' is not within 1-31"),
        ("0 0 * 13 *", "month '13' is not within 1-12"),
        ("0 0 * * 8", "day of week '8' is not within 0-7"),
        ("-1 * * * *", "minute '-1' is none of"),
        ("*/0 * * * *", "minute '*/0' has a step outside 1-59"),
        ("*/90 * * * *", "minute '*/90' has a step outside 1-59"),
        ("0 22-2 * * *", "hour '22-2' runs backwards; it is written 22-23,0-2"),
        ("R * * * *", "minute 'r' is not within"),
        ("H 3 * * *", "minute 'h' is not within"),
        ("H(0-9) 3 * * *", "minute 'h(0-9)' is none of"),
        ("0 0 L * *", "day of month 'l'"),
        ("0 0 * * 5#1", "day of week '5#1'"),
        ("0 0 ? * *", "day of month '?'"),
        ("0 0 * * fred", "day of week 'fred' is not within"),
        ("0 0 * fri *", "month 'fri' is not within"),
        ("٣ * * * *", "minute '٣' is none of"),
        ("1,,2 * * * *", "minute '' is none of"),
    ],
)
def test_expression_of_another_kind_is_refused_with_the_field_that_is_wrong(expression: str, reason: str) -> None:
    with pytest.raises(ValueError) as caught:
        Schedule(expression)
    assert reason in str(caught.value)


FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
NAMES = {**{name.lower(): n for n, name in enumerate(calendar.month_abbr) if n}}
NAMES |= {name.lower(): (n + 1) % 7 for n, name in enumerate(calendar.day_abbr)}


def values(field: str, low: int, high: int) -> set[int]:
    """What cron's manual says a field matches, tried number by number."""

    def number(word: str) -> int:
        return NAMES[word] if word in NAMES else int(word)

    def matches(part: str, value: int) -> bool:
        span, _, step = part.partition("/")
        first, _, last = (f"{low}-{high}" if span == "*" else span).partition("-")
        end = number(last) if last else high if step else number(first)
        return number(first) <= value <= end and (value - number(first)) % int(step or 1) == 0

    return {value for value in range(low, high + 1) if any(matches(part, value) for part in field.lower().split(","))}


def oracle(expression: str, zone: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """The runs in ``(start, end]``, found by looking at the clock on the wall each minute."""
    _, hour, day, _, weekday = expression.split()
    minutes, hours, days, months, weekdays = (
        values(field, *limits) for field, limits in zip(expression.split(), FIELDS, strict=True)
    )
    either = not day.startswith("*") and not weekday.startswith("*")
    real_time = hour.startswith("*") or len(hours) == 24

    def matches(local: datetime) -> bool:
        by_day = local.day in days
        by_weekday = local.isoweekday() % 7 in weekdays or (local.isoweekday() == 7 and 7 in weekdays)
        on_date = (by_day or by_weekday) if either else (by_day and by_weekday)
        return local.minute in minutes and local.hour in hours and local.month in months and on_date

    found, instant, before = [], start, start.astimezone(zone).replace(tzinfo=None)
    while (instant := instant + MINUTE) <= end:
        shown = instant.astimezone(zone)
        local = shown.replace(tzinfo=None)
        skipped = [before + n * MINUTE for n in range(1, (local - before) // MINUTE)]
        if (matches(local) and (real_time or not shown.fold)) or (
            not real_time and any(matches(time) for time in skipped)
        ):
            found.append(instant)
        before = local
    return found


def parts(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    step = st.one_of(st.just(""), st.integers(1, high - low).map("/{}".format))
    span = st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}")
    return st.one_of(number.map(str), st.tuples(span, step).map("".join), st.tuples(number.map(str), step).map("".join))


def field(low: int, high: int) -> st.SearchStrategy[str]:
    stars = st.sampled_from(["*", "*", "*", "*/2", "*/7"] if high > 7 else ["*", "*"])
    return st.one_of(stars, st.lists(parts(low, high), min_size=1, max_size=3).map(",".join))


# Day of month and of week both restricted, one with a star and a step: implementations of cron disagree, so not here.
dates = st.one_of(
    st.just(("*", "*")),
    st.tuples(field(1, 31), st.just("*")),
    st.tuples(st.just("*"), field(0, 7)),
    st.tuples(st.lists(parts(1, 31), min_size=1, max_size=2).map(",".join), field(0, 7)),
)
months = st.one_of(st.just("*"), st.just("*"), field(1, 12), st.sampled_from(["mar,Oct", "JAN-dec", "2-4"]))
expressions = st.builds(
    lambda minute, hour, date, month: f"{minute} {hour} {date[0]} {month} {date[1]}",
    st.one_of(st.integers(0, 59).map(str), st.integers(0, 59).map(str), field(0, 59)),
    st.one_of(field(0, 23), st.sampled_from(["0", "1", "2", "3", "0-4"])),
    dates,
    months,
)


@given(transition=st.sampled_from(TRANSITIONS), offset=st.integers(-1500, 200), expression=expressions)
@example(TRANSITIONS[0], -600, "* * * * *")
@example(TRANSITIONS[1], 30, "*/20 * * * *")
@example(TRANSITIONS[1], 30, "45 2 * * *")
@example(TRANSITIONS[15], -600, "*/30 * * * *")
@example(TRANSITIONS[0], 0, "5 0-0 * * *")
@example(TRANSITIONS[17], 700, "15 */2 * * *")
def test_runs_are_those_that_a_look_at_the_wall_clock_each_minute_finds(
    transition: tuple[str, datetime], offset: int, expression: str
) -> None:
    zone = ZoneInfo(transition[0])
    start = transition[1] + offset * MINUTE
    end = start + timedelta(days=2)
    try:
        found = runs(expression, zone, start, end)
    except ValueError as error:
        assert "has no day" in str(error)
        return
    assert found == oracle(expression, zone, start, end)
    assert all(run.tzinfo is UTC for run in found)
    assert all(earlier < later for earlier, later in pairwise(found))


@given(
    zone=st.sampled_from(sorted({name for name, _ in TRANSITIONS})),
    seconds=st.integers(0, 60 * 365 * 86400),
    expression=expressions,
)
def test_each_run_is_later_than_the_last_and_no_clock_step_changes_the_next(
    zone: str, seconds: int, expression: str
) -> None:
    try:
        schedule = Schedule(expression)
    except ValueError:
        return
    start = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    first = schedule.next_after(start, ZoneInfo(zone))
    second = schedule.next_after(first, ZoneInfo(zone))
    assert start < first < second
    assert schedule.next_after(first - timedelta(seconds=1), ZoneInfo(zone)) == first
    assert schedule.next_after(start + (first - start) / 2, ZoneInfo(zone)) == first
