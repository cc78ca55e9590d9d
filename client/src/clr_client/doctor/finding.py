"""What a check finds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from clr_client.doctor.case import Case
    from clr_client.errors import ClrError, Trouble


class Result(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """It works, and there is something to know or to better."""
    PROBLEM = "problem"
    """It does not work."""
    SKIPPED = "skipped"
    """It cannot be told; the text says why."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's: ``check`` is the name of what was checked, ``text`` may hold what others sent."""

    result: Result
    text: str
    remedy: str = ""
    check: str = ""


Findings: TypeAlias = Iterable[Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at, and what can be wrong with it.

    ``look`` raises ClrError for what is wrong, or returns findings; a plain function runs in a thread of its own.
    ``needs`` are names of checks without which this one makes no sense. ``remedy`` is for troubles that have none of
    their own. ``seconds`` is the longest that it may take. ``of_server``: once for each server.
    """

    name: str
    question: str
    look: Callable[[Case], Findings | Awaitable[Findings]]
    troubles: tuple[Trouble, ...]
    needs: tuple[str, ...] = ()
    remedy: str = ""
    seconds: float = 20.0
    of_server: bool = False


def ok(text: str) -> Finding:
    """What is as it should be."""
    return Finding(Result.OK, text)


def warning(trouble: Trouble, **known: object) -> Finding:
    """A trouble that leaves things working."""
    return Finding(Result.WARNING, *trouble.told(**known))


def problem(trouble: Trouble, **known: object) -> Finding:
    """A trouble that does not."""
    return Finding(Result.PROBLEM, *trouble.told(**known))


def failed(error: ClrError) -> Finding:
    """What an error says, as a problem."""
    return Finding(Result.PROBLEM, error.message, error.remedy)


def skipped(text: str) -> Finding:
    """What cannot be told now."""
    return Finding(Result.SKIPPED, text)
