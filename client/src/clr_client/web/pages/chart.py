"""The chart of the last runs as numbers: where each bar lies. No text, no colours; pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH = 1000.0
HEIGHT = 100.0
"""Of the coordinates, which are stretched to whatever place there is: the units mean nothing."""
WIDEST = 48.0
OUTLIER = 8.0
"""So many times the middle of all values, above which a bar is cut: a first sync leaves the others to be seen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One value in one or two parts, stacked: the lower from ``y`` + ``upper`` on, the upper from ``y`` on.

    :param is_cut: the value is larger than the chart is high.
    """

    x: float
    width: float
    y: float
    upper: float
    lower: float
    is_cut: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars from left to right, and the value at the upper edge; 0 when all values are."""

    bars: tuple[Bar, ...]
    ceiling: float


def stacked(values: Sequence[tuple[float, float]], steps: Iterable[float]) -> Chart:
    """Return bars for pairs of a lower and an upper part, none negative.

    :param steps: round numbers in rising order, at which the upper edge may lie.
    """
    top = _ceiling([lower + upper for lower, upper in values], steps)
    slot = WIDTH / max(1, len(values))
    width = min(slot * 0.7, WIDEST)
    bars = []
    for number, (lower, upper) in enumerate(values):
        whole = lower + upper
        scale = HEIGHT / max(top, whole) if whole else 0.0
        bars.append(
            Bar(
                x=number * slot + (slot - width) / 2,
                width=width,
                y=HEIGHT - whole * scale,
                upper=upper * scale,
                lower=lower * scale,
                is_cut=whole > top,
            )
        )
    return Chart(tuple(bars), top)


def _ceiling(values: Sequence[float], steps: Iterable[float]) -> float:
    """Return a round number that no value exceeds which is not out of all proportion to the others."""
    seen = [value for value in values if value > 0]
    if not seen:
        return 0.0
    limit = OUTLIER * statistics.median_low(seen)
    largest = max(value for value in seen if value <= limit)
    return next((float(step) for step in steps if step >= largest), float(largest))
