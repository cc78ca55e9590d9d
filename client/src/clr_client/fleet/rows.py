"""What a site's status means: one row of the table, of the page and of the JSON, and how well the site is."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from clr_client.fleet.reading import UNREACHABLE, UNREADABLE, Reading
from clr_client.text import printable, size, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Level: TypeAlias = Literal["bad", "notice", "good"]

SCHEMA: Final = 1
STALE: Final = "stale"
_ANSWERED: Final = ("failed", STALE, "never", "partial", "paused", "syncing", "success")
_WORST_FIRST: Final = (UNREACHABLE, UNREADABLE, *_ANSWERED)
STATES: Final = frozenset(_ANSWERED) - {STALE}
_LEVELS: Final = ("bad", "notice", "good")
OVERDUE: Final = timedelta(hours=1)
"""A running client writes its status every minute and moves the next sync on as soon as it is due."""
SKEW_SECONDS: Final = 120.0
EXPIRES_SOON: Final = timedelta(days=14)
LITTLE_ROOM: Final = 0.05
LARGEST: Final = 2**63 - 1
LONGEST: Final = 300


@dataclass(frozen=True, slots=True)
class Row:
    """One site. Bytes and versions are None when unknown; all text is safe to print.

    ``problems`` make a site bad, ``notes`` only deserve a look. ``crossed_bytes`` is what the newest run sent and
    received over the line, ``saved_bytes`` what it did not have to.
    """

    name: str
    url: str
    state: str
    level: Level = "bad"
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    library: str = ""
    version: int | None = None
    generation: int | None = None
    items: int | None = None
    bytes: int | None = None
    held: int | None = None
    damaged: int | None = None
    last_success: datetime | None = None
    next_sync: datetime | None = None
    crossed_bytes: int | None = None
    saved_bytes: int | None = None
    free_bytes: int | None = None
    certificate_until: datetime | None = None
    clr: str = ""

    @property
    def note(self) -> str:
        """All that is to be said about the site, in one line."""
        return "; ".join((*self.problems, *self.notes))

    @property
    def tone(self) -> str:
        """The state whose colour fits."""
        if self.state in STATES and (self.level != "bad" or self.state not in {"success", "syncing"}):
            return self.state
        return "failed"

    @property
    def page(self) -> str:
        """The address of the site's own page."""
        return f"{self.url}_clr/"


def rows(readings: Iterable[Reading], now: datetime, max_age: timedelta | None = None) -> tuple[Row, ...]:
    """Judge what sites answered at ``now``, the worst first.

    :param max_age: a site whose last success is longer ago is bad, whatever it says of itself.
    """
    made = [_row(reading, now, max_age) for reading in readings]
    newest = max((_numbers(row.clr) for row in made), default=())
    return tuple(sorted((_compared(row, newest, made) for row in made), key=_badness))


def by_name(found: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows in the order of their names."""
    return tuple(sorted(found, key=lambda row: (row.name.casefold(), row.name)))


def as_document(found: Iterable[Row], now: datetime) -> dict[str, Any]:
    """Return what programs get: schema 1, described in docs/how-to/fleet.md."""
    found = tuple(found)
    sites = []
    for row in found:
        fields = dataclasses.asdict(row)
        for name, value in fields.items():
            if isinstance(value, datetime):
                fields[name] = value.isoformat(timespec="seconds")
        sites.append(fields)
    counts = {level: sum(row.level == level for row in found) for level in _LEVELS}
    return {"schema": SCHEMA, "read": now.isoformat(timespec="seconds"), **counts, "sites": sites}


def _badness(row: Row) -> tuple[int, int, str, str]:
    return _LEVELS.index(row.level), _WORST_FIRST.index(row.state), row.name.casefold(), row.name


def _compared(row: Row, newest: tuple[int, ...], others: list[Row]) -> Row:
    """Add what only shows beside the other sites."""
    own = _numbers(row.clr)
    if not own or own >= newest:
        return row
    latest = next(other.clr for other in others if _numbers(other.clr) == newest)
    level: Level = "notice" if row.level == "good" else row.level
    return dataclasses.replace(row, level=level, notes=(*row.notes, f"runs clr {row.clr}, others {latest}"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")) if re.fullmatch(r"\d{1,9}(\.\d{1,9}){0,3}", version) else ()


def _row(reading: Reading, now: datetime, max_age: timedelta | None) -> Row:
    site = reading.site
    if reading.failure:
        return Row(site.name, site.url, reading.failure, problems=(_text(reading.reason),))
    told = _Object(reading.document)
    if told.count("schema") != SCHEMA or told.text("state") not in STATES:
        reason = "answers, but not with a status that this program knows"
        return Row(site.name, site.url, UNREADABLE, problems=(reason,))
    there = now + timedelta(seconds=reading.ahead)
    stale = _stale(told, there, max_age)
    problems = (*_failures(told), *stale, *_held(told), *_expired(told, there))
    deserving = _deserving(told, now, there, reading)
    state = told.text("state")
    if stale and state in {"success", "paused", "syncing"}:
        state = STALE
    run, library = told.first("runs"), told.object("library")
    return Row(
        site.name,
        site.url,
        state,
        "bad" if problems else "notice" if deserving else "good",
        problems,
        (*_transfer(told), *deserving),
        library=library.text("name"),
        version=library.count("version"),
        generation=library.count("generation"),
        items=library.count("items"),
        bytes=library.count("bytes"),
        held=len(told.objects("held")),
        damaged=len(told.objects("damaged")),
        last_success=told.instant("last_success"),
        next_sync=told.instant("next_sync"),
        crossed_bytes=_sum(run.count("sent_bytes"), run.count("received_bytes")),
        saved_bytes=run.count("saved_bytes"),
        free_bytes=told.object("disk").count("free_bytes"),
        certificate_until=told.object("certificate").instant("not_after"),
        clr=told.object("versions").text("clr"),
    )


def _failures(told: _Object) -> tuple[str, ...]:
    state, run = told.text("state"), told.first("runs")
    if state == "failed":
        times = told.count("failures_in_row") or 1
        return (_text(run.text("error") or "failed") + (f" ({times} times in a row)" if times > 1 else ""),)
    if state == "partial" and not told.objects("held") and not told.objects("damaged"):
        return (_text(run.text("error") or "done in part"),)
    if told.get("published") is not True and state != "syncing":
        return ("has published nothing yet",)
    return ()


def _held(told: _Object) -> tuple[str, ...]:
    found = []
    for name, label, reason in (("held", "key", "reason"), ("damaged", "path", "reason")):
        entries = told.objects(name)
        if entries:
            more = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
            found.append(f"{name}: {_text(entries[0].text(label))}: {_text(entries[0].text(reason))}{more}")
    return tuple(found)


def _stale(told: _Object, there: datetime, max_age: timedelta | None) -> tuple[str, ...]:
    """Why a site counts as stale: nobody keeps its status, or its last success is too long ago."""
    success, written, due = told.instant("last_success"), told.instant("written"), told.instant("next_sync")
    if max_age is not None and (success is None or there - success > max_age):
        since = f"{span((there - success).total_seconds())} ago" if success else "never"
        return (f"last success {since}",)
    if written and there - written > OVERDUE:
        return (f"its status is {span((there - written).total_seconds())} old: nobody keeps it",)
    if due and there - due > OVERDUE:
        return (f"the sync that was due {span((there - due).total_seconds())} ago did not begin",)
    return ()


def _expired(told: _Object, there: datetime) -> tuple[str, ...]:
    until = told.object("certificate").instant("not_after")
    if until and until <= there:
        return (f"its certificate expired {span((there - until).total_seconds())} ago",)
    return ()


def _transfer(told: _Object) -> tuple[str, ...]:
    """How far a running transfer is."""
    running = told.object("running")
    done, total, left = (running.count(name) for name in ("done_bytes", "total_bytes", "left_seconds"))
    if done is None or not total:
        return (_text(running.text("stage")),) if running.text("stage") else ()
    still = f", {span(left)} left" if left is not None else ""
    return (f"{min(100, done * 100 // total)} % of {size(total)}{still}",)


def _deserving(told: _Object, now: datetime, there: datetime, reading: Reading) -> tuple[str, ...]:
    """What is not wrong yet, or need not be."""
    found = []
    if reading.unverified:
        found.append(_text(reading.unverified))
    written = told.instant("written")
    ahead = reading.ahead
    if abs(ahead) <= SKEW_SECONDS and written and written > now:
        ahead = (written - now).total_seconds()
    if abs(ahead) > SKEW_SECONDS:
        found.append(f"its clock is {span(abs(ahead))} {'ahead' if ahead > 0 else 'behind'}")
    certificate, disk = told.object("certificate"), told.object("disk")
    until = certificate.instant("not_after")
    if until and certificate.text("kind") == "own" and timedelta() < until - there < EXPIRES_SOON:
        found.append(f"its certificate expires in {span((until - there).total_seconds())}")
    free, total = disk.count("free_bytes"), disk.count("total_bytes")
    if free is not None and total and free < total * LITTLE_ROOM:
        found.append(f"only {size(free)} of {size(total)} free")
    if told.text("state") == "paused":
        found.append(f"rolled back to generation {told.count('paused_at')}")
    return tuple(found)


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _text(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"


class _Object:
    """A JSON object that anybody may have written: every value is what is asked for, or nothing."""

    def __init__(self, value: object) -> None:
        self._value: Mapping[str, object] = value if isinstance(value, dict) else {}

    def get(self, name: str) -> object:
        return self._value.get(name)

    def text(self, name: str) -> str:
        value = self.get(name)
        return _text(value[: 4 * LONGEST]) if isinstance(value, str) else ""

    def count(self, name: str) -> int | None:
        value = self.get(name)
        if isinstance(value, float) and 0 <= value <= LARGEST:
            return int(value)
        return value if type(value) is int and 0 <= value <= LARGEST else None

    def instant(self, name: str) -> datetime | None:
        value = self.get(name)
        if not isinstance(value, str) or len(value) > 40:
            return None
        try:
            found = datetime.fromisoformat(value)
            return found.astimezone(UTC) if found.tzinfo else None
        except (ValueError, OverflowError):
            return None

    def object(self, name: str) -> _Object:
        return _Object(self.get(name))

    def objects(self, name: str) -> tuple[_Object, ...]:
        value = self.get(name)
        return tuple(_Object(entry) for entry in value) if isinstance(value, list) else ()

    def first(self, name: str) -> _Object:
        value = self.get(name)
        return _Object(value[0]) if isinstance(value, list) and value else _Object(None)
