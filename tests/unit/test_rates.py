"""The bandwidth limit by the time of day."""

from __future__ import annotations

from datetime import time

import pytest
from clr_client.rates import parse

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "moment", "rate"),
    [
        ("1.5m", time(3), 3 * MIB // 2),
        ("1m@08:00-18:00,0", time(7, 59, 59), 0),
        ("1m@08:00-18:00,0", time(8), MIB),
        ("1m@08:00-18:00,0", time(17, 59, 59), MIB),
        ("1m@08:00-18:00,0", time(18), 0),
        ("0@22:00-06:00,1m", time(23, 30), 0),
        ("0@22:00-06:00,1m", time(5, 59), 0),
        ("0@22:00-06:00,1m", time(6), MIB),
        ("2m@12:00-13:00,1m@08:00-18:00,0", time(12, 30), 2 * MIB),
        ("2m@12:00-13:00,1m@08:00-18:00,0", time(13), MIB),
        ("1m@18:00-24:00,0", time(23, 59, 59), MIB),
        ("1m@18:00-24:00,0", time(0), 0),
    ],
)
def test_the_first_period_that_holds_the_time_of_day_sets_the_rate(text: str, moment: time, rate: int) -> None:
    assert parse(text).at(moment) == rate


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("0", 0, 0), ("1m", MIB, MIB), ("1m@08:00-18:00,0", MIB, 0), ("1m@08:00-18:00,2m", MIB, 2 * MIB)],
)
def test_the_lowest_and_the_highest_limit_of_the_day(text: str, least: int, most: int) -> None:
    assert (parse(text).least, parse(text).most) == (least, most)
