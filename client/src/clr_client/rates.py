"""How fast the line may be used, by the clock on the wall."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import time

LEAST = 512
"""The lowest limit, in bytes per second: what rsync's --bwlimit takes as its lowest."""

_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)(?:([kmg])(i?b)?)?")
_PERIOD = re.compile(r"([^@]+)@(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)")
_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class Period:
    """A rate in bytes per second (0: no limit) from one minute of the day until before another, also over midnight."""

    rate: int
    start: int
    end: int

    def holds(self, minute: int) -> bool:
        """Whether a minute of the day lies in it."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end


@dataclass(frozen=True, slots=True)
class Rates:
    """The rate for each time of day: that of the first period that holds it, else ``otherwise``."""

    text: str
    otherwise: int
    periods: tuple[Period, ...] = ()

    def at(self, moment: time) -> int:
        """The rate at a time of day, in bytes per second; 0 is no limit."""
        minute = moment.hour * 60 + moment.minute
        return next((period.rate for period in self.periods if period.holds(minute)), self.otherwise)

    @property
    def least(self) -> int:
        """The lowest limit of the day, in bytes per second; 0 if there is never one."""
        return min(filter(None, self._all()), default=0)

    @property
    def most(self) -> int:
        """The highest limit of the day, in bytes per second; 0 if there is none at times."""
        return max(self._all()) if all(self._all()) else 0

    def _all(self) -> tuple[int, ...]:
        return self.otherwise, *(period.rate for period in self.periods)

    def __str__(self) -> str:
        return self.text


def parse(text: str) -> Rates:
    """Read ``RATE`` or ``RATE@HH:MM-HH:MM,...,RATE``: rates as rsync's --bwlimit takes them, the last one for the rest.

    :raises ValueError: it is not that.
    """
    text = text.strip().lower()
    *periods, rest = (part.strip() for part in text.split(","))
    return Rates(text, _rate(rest), tuple(_period(part) for part in periods))


def _rate(text: str) -> int:
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(text)
    unit = 1000 if match[3] == "b" else 1024
    rate = float(match[1]) * float(unit ** (" kmg".index(match[2]) if match[2] else 1))
    if 0 < rate < LEAST:
        raise ValueError(text)
    return round(rate)


def _period(text: str) -> Period:
    match = _PERIOD.fullmatch(text)
    if match is None:
        raise ValueError(text)
    start, end = (int(match[hour]) * 60 + int(match[hour + 1]) for hour in (2, 4))
    if max(int(match[3]), int(match[5])) > 59 or start >= _DAY or end > _DAY or start == end:
        raise ValueError(text)
    return Period(_rate(match[1]), start, end)
