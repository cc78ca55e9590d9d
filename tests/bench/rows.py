"""What a case of the benchmark yields, and the registry of cases."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.bench import Bench

    Case = Callable[[Bench], Iterable["Row"]]

CASES: dict[str, Case] = {}
"""Every case by its name, in the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement beside its baseline of the same run.

    ``ours`` and ``baseline`` are in ``unit``; without a baseline the target is for ``ours`` itself. ``limit`` is what
    `zstd --patch-from` needs. ``clr_memory`` and ``rsync_memory`` are the peaks, in bytes, of the client's Python
    process and of the largest program that it started.
    """

    name: str
    ours: float
    unit: str
    baseline: float | None = None
    against: str = ""
    target: float | None = None
    at_least: bool = False
    limit: float | None = None
    clr_memory: int = 0
    rsync_memory: int = 0
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours for the baseline."""
        return self.ours / self.baseline if self.baseline else None

    @property
    def verdict(self) -> str:
        """``pass``, ``MISS``, or nothing where there is no target."""
        measured = self.ours if self.baseline is None else self.ratio
        if self.target is None or measured is None:
            return ""
        good = measured >= self.target if self.at_least else measured <= self.target
        return "pass" if good else "MISS"


class UnavailableError(Exception):
    """This case cannot be measured on this machine, or the product cannot do that yet; says why."""


class RunError(Exception):
    """A program that was to be measured failed; says what it wrote."""


def case(function: Case) -> Case:
    """Register a case under its function's name."""
    CASES[function.__name__] = function
    return function


def chosen(names: str) -> list[str]:
    """Return the cases that a comma-separated list names, in their order; all for an empty list.

    :raises ValueError: there is no such case.
    """
    wanted = [name for name in re.split(r"[,\s]+", names) if name]
    unknown = [name for name in wanted if name not in CASES]
    if unknown:
        raise ValueError(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    return [name for name in CASES if not wanted or name in wanted]
