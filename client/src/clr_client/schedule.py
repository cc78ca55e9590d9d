"""Cron expressions in local time, as instants in UTC.

croniter walks the calendar in naive local time; gaps and folds are resolved here with ``zoneinfo``, because its own
handling of daylight saving fires twice in 2.0 and still once too often in 7.0. The rule is Vixie cron's: a job whose
hour is a wildcard runs by real time; any other runs once per wall-clock time, in a gap at the first instant after it
and in a fold at its first pass.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from zoneinfo import ZoneInfo

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of month", 1, 31),
    ("month", 1, 12),
    ("day of week", 0, 7),
)
NAMES = {
    "month": ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "day of week": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Days of each month, in the year in which it has most."""
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - wall-clock times are naive on purpose
MINUTE = timedelta(minutes=1)
LONGEST_WAIT_YEARS = 9  # 29 February across a year that is no leap year, such as 2100


class Schedule:
    """A cron expression of five fields, or one of ``ALIASES``.

    Fields take ``*``, numbers, names (jan, fri), lists, ranges and steps. When day of month and day of week are both
    restricted, either may match.

    :raises ValueError: the text says what is wrong with the expression, or that its date never comes.
    """

    def __init__(self, expression: str) -> None:
        self.expression = " ".join(expression.split())
        text = self.expression.lower()
        if text.startswith("@") and text not in ALIASES:
            raise ValueError(f"{self.expression} is none of {' '.join(ALIASES)}")
        fields = ALIASES.get(text, text).split()
        if len(fields) != len(FIELDS):
            raise ValueError(f"{len(fields)} fields instead of five; daily is 0 0 * * *")
        values = [_values(field, *limits) for field, limits in zip(fields, FIELDS, strict=True)]
        self._by_real_time = fields[1].startswith("*") or len(values[1]) == 24  # hours of a day
        values[4] = {day % 7 for day in values[4]}
        plain = ["*" if field == "*" else _listed(numbers) for field, numbers in zip(fields, values, strict=True)]
        self._cron = " ".join(plain)
        if min(values[2]) > max(LONGEST[month - 1] for month in values[3]):
            raise ValueError(f"month {fields[3]} has no day {fields[2]}; a date that comes is 0 0 28 2 *")

    def __str__(self) -> str:
        return self.expression

    def __repr__(self) -> str:
        return f"Schedule({self.expression!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self.expression == other.expression

    def __hash__(self) -> int:
        return hash(self.expression)

    def next_after(self, instant: datetime, zone: ZoneInfo) -> datetime:
        """The first run strictly later than ``instant``, both aware; the answer is in UTC."""
        wall = instant.astimezone(zone).replace(tzinfo=None)
        first, *rest = _instants(wall, zone)
        fold = rest[0] - first if rest else timedelta()
        best: datetime | None = None
        for local in _walk(self._cron, wall.replace(second=0, microsecond=0) - fold - MINUTE):
            times = _instants(local, zone)
            if best is not None and (not times or times[0] >= best):
                break
            for time in times if self._by_real_time else times[:1] or [_after_gap(local, zone)]:
                if time > instant and (best is None or time < best):
                    best = time
        if best is None:
            raise AssertionError("croniter's walk has no end")
        return best


def _values(field: str, label: str, low: int, high: int) -> set[int]:
    """The numbers that a field stands for."""
    values: set[int] = set()
    for part in field.split(","):
        match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"{label} {part!r} is none of *, 5, 1-5, 1,5 and */5")
        start = low if match[1] is None else _number(match[1], label, low, high)
        end = high if match[1] is None or (match[3] and not match[2]) else start
        end = _number(match[2], label, low, high) if match[2] else end
        step = int(match[3] or 1)
        if end < start:
            raise ValueError(f"{label} {part!r} runs backwards; it is written {start}-{high},{low}-{end}")
        if not 1 <= step <= high - low:
            raise ValueError(f"{label} {part!r} has a step outside 1-{high - low}")
        values.update(range(start, end + 1, step))
    return values


def _listed(numbers: set[int]) -> str:
    """A field without ranges and steps: croniter 7.0 takes 0-0 for every hour, 2.0 does not."""
    return ",".join(map(str, sorted(numbers)))


def _number(word: str, label: str, low: int, high: int) -> int:
    names = NAMES.get(label, ())
    number = names.index(word) + min(low, 1) if word in names else int(word) if re.fullmatch(r"\d{1,4}", word) else -1
    if not low <= number <= high:
        raise ValueError(f"{label} {word!r} is not within {low}-{high}")
    return number


def _walk(cron: str, start: datetime) -> Iterator[datetime]:
    """The matching naive times later than ``start``, without end. Floats keep time zones out of croniter."""
    from croniter import croniter  # type: ignore[import-untyped] # much to load for commands that only check a setting

    iterator = croniter(cron, (start - EPOCH).total_seconds(), max_years_between_matches=LONGEST_WAIT_YEARS)
    while True:
        yield EPOCH + timedelta(seconds=round(iterator.get_next(float)))


def _instants(local: datetime, zone: ZoneInfo) -> list[datetime]:
    """The instants at which clocks in ``zone`` show ``local``: none in a gap, two in a fold, else one."""
    instants = []
    for fold in (0, 1):
        instant = local.replace(tzinfo=zone, fold=fold).astimezone(UTC)
        if instant not in instants and instant.astimezone(zone).replace(tzinfo=None) == local:
            instants.append(instant)
    return instants


def _after_gap(local: datetime, zone: ZoneInfo) -> datetime:
    """The first instant after the gap that ``local`` lies in."""
    after = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    before = local.replace(tzinfo=zone, fold=1).astimezone(UTC)
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + timedelta(seconds=(after - before) // timedelta(seconds=1) // 2)
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
