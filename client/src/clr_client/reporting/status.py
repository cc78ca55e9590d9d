"""``status.json``: what the last runs did, what is published, what is held. For monitoring and `clr status`."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from clr_client.text import printable, size, span

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from clr_client.integrity.damages import Damage

log = logging.getLogger("clr.status")

SCHEMA = 1
KEPT_RUNS = 50
MOST_NAMED, MOST_HELD = 100, 1000
"""Names of each kind that are kept of one run, and items shown as held now: how many there are a server decides."""
SUCCESS, PARTIAL, FAILED, PAUSED = RESULTS = ("success", "partial", "failed", "paused")
COUNTED = ("literal_bytes", "matched_bytes", "saved_bytes", "sent_bytes", "received_bytes", "seconds")
"""What of each run is added up over all runs."""
MOST_COUNTED = 1 << 62


@dataclass(frozen=True, slots=True)
class Held:
    """An item that cannot be published as it is at the server, and why. ``serves``: the version still published."""

    key: str
    reason: str
    serves: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one run did. Times are UTC, ISO 8601; bytes are rsync's own counts."""

    trigger: str
    started: str
    ended: str = ""
    seconds: float = 0.0
    result: str = SUCCESS
    error: str = ""
    peer: str = ""
    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    went_back: tuple[str, ...] = ()
    line: str = ""
    held: tuple[Held, ...] = ()
    mended: tuple[Damage, ...] = ()
    damaged: tuple[Damage, ...] = ()
    planned_bytes: int = 0
    literal_bytes: int = 0
    matched_bytes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    generation: int | None = None
    version: int | None = None
    run: str = ""

    @property
    def saved_bytes(self) -> int:
        """Bytes of the planned files that did not have to cross the line, because they were found here."""
        return min(self.matched_bytes, self.planned_bytes)

    @property
    def summary(self) -> str:
        """The run in one line."""
        if self.result == PAUSED:
            return f"paused: {self.error}"
        parts = [
            f"{len(self.added)} added, {len(self.updated)} updated, {len(self.removed)} removed, {len(self.held)} held"
        ]
        if self.mended or self.damaged:
            parts.append(f"{len(self.mended)} damaged files mended, {len(self.damaged)} left")
        if self.went_back:
            parts.append(f"{len(self.went_back)} went back in time ({', '.join(self.went_back)})")
        parts.append(self._crossed())
        parts.append(f"library version {self.version}" if self.version else "nothing published yet")
        parts.append(span(self.seconds))
        text = f"{self.result}: {'; '.join(parts)}"
        return f"{text} ({self.error})" if self.error else text

    def _crossed(self) -> str:
        if not self.planned_bytes:
            return "no file had to be fetched"
        crossed = self.sent_bytes + self.received_bytes
        if not crossed:  # rsync counts only the transfers that it ends itself
            return f"the transfer of {size(self.planned_bytes)} of changed files was cut"
        kinds = f"{size(self.literal_bytes)} new, {size(self.saved_bytes)} saved"
        return f"{size(crossed)} crossed the line for {size(self.planned_bytes)} of changed files ({kinds})"

    @property
    def facts(self) -> dict[str, Any]:
        """The run in numbers, for a log line as JSON."""
        names = ("added", "updated", "removed", "held", "went_back", "mended", "damaged")
        counts = {name: len(getattr(self, name)) for name in names}
        numbers = ("planned_bytes", "literal_bytes", "matched_bytes", "saved_bytes", "sent_bytes", "received_bytes")
        plain = ("result", "error", "trigger", "peer", *numbers, "seconds", "generation", "version")
        return {**counts, **{name: getattr(self, name) for name in plain}}


@dataclass(frozen=True, slots=True)
class Verification:
    """What one verification read and did. ``found`` is all damage met, ``damaged`` what could not be mended."""

    trigger: str
    started: str
    ended: str
    seconds: float
    bytes: int
    found: tuple[Damage, ...] = ()
    mended: tuple[Damage, ...] = ()
    damaged: tuple[Damage, ...] = ()
    error: str = ""
    run: str = ""

    @property
    def summary(self) -> str:
        """The verification in one line."""
        parts = [f"{size(self.bytes)} read in {span(self.seconds)}"]
        parts.append(f"{len(self.found)} found damaged" if self.found else "all is as published")
        if self.mended:
            parts.append(f"{len(self.mended)} mended")
        if self.damaged:
            parts.append(f"{len(self.damaged)} still damaged")
        return "; ".join(parts) + (f" ({self.error})" if self.error else "")


@dataclass(frozen=True, slots=True)
class Status:
    """The whole of status.json. Field names are stable; ``schema`` grows when one changes its meaning."""

    schema: int = SCHEMA
    published: bool = False
    library: dict[str, Any] = field(default_factory=dict)
    failures_in_row: int = 0
    last_success: str = ""
    held: tuple[dict[str, Any], ...] = ()
    damaged: tuple[dict[str, Any], ...] = ()
    verification: dict[str, Any] = field(default_factory=dict)
    runs: tuple[dict[str, Any], ...] = ()
    totals: dict[str, Any] = field(default_factory=lambda: totals_since(None))

    def after(self, report: Report, library: dict[str, Any] | None) -> Status:
        """Return the status after one more run, newest first. ``library`` describes what is published now."""
        failed = report.result == FAILED
        got_nowhere = report.version is None
        return dataclasses.replace(
            self,
            published=library is not None,
            library=library or {},
            failures_in_row=self.failures_in_row + 1 if failed else 0,
            last_success=report.ended if report.result == SUCCESS else self.last_success,
            held=self.held if got_nowhere else tuple(dataclasses.asdict(held) for held in report.held[:MOST_HELD]),
            runs=(_plain(report), *self.runs)[:KEPT_RUNS],
            totals=_added(self.totals, report),
        )

    def knowing(self, damaged: Iterable[Damage], verification: Verification | None = None) -> Status:
        """Return the status with what is damaged now and, if there was one, the newest verification."""
        return dataclasses.replace(
            self,
            damaged=tuple(dataclasses.asdict(damage) for damage in islice(damaged, MOST_NAMED)),
            verification=_plain(verification) if verification else self.verification,
        )


def totals_since(moment: str | None) -> dict[str, Any]:
    """Return the totals of no run yet, counted since a moment (UTC, ISO 8601); None before the first run."""
    return {"since": moment, "runs": dict.fromkeys(RESULTS, 0), **dict.fromkeys(COUNTED, 0)}


def _added(totals: dict[str, Any], report: Report) -> dict[str, Any]:
    runs = {**totals["runs"], report.result: totals["runs"][report.result] + 1}
    sums = {name: round(totals[name] + getattr(report, name), 1) for name in COUNTED}
    return {"since": totals["since"] or report.started, "runs": runs, **sums}


def _totals(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """Return the totals that a file holds; those of a file without usable ones start anew."""
    try:
        numbers = {name: _count(value[name]) for name in COUNTED}
        runs = {name: int(_count(value["runs"][name])) for name in RESULTS}
        return {"since": datetime.fromisoformat(value["since"]).isoformat(), "runs": runs, **numbers}
    except (ValueError, TypeError, KeyError):
        return totals_since(None)


def _count(value: object) -> int | float:
    if not isinstance(value, int | float) or not 0 <= value < MOST_COUNTED:
        raise ValueError("not a count")
    return value


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep others from changing the status file at the same time: a verification ends while a sync is at work."""
    with ExitStack() as stack:
        with suppress(OSError):  # a full volume; what is at stake is history
            fcntl.flock(stack.enter_context(path.with_name(".lock-status").open("a")), fcntl.LOCK_EX)
        yield


def _plain(report: Report | Verification) -> dict[str, Any]:
    fields = dataclasses.asdict(report)
    lists = {name: value[:MOST_NAMED] for name, value in fields.items() if isinstance(value, tuple)}
    saved = {"saved_bytes": report.saved_bytes} if isinstance(report, Report) else {}
    return {**fields, **lists, **saved, "summary": printable(report.summary)}


def load(path: Path) -> Status:
    """Read the status; a missing or damaged one is an empty one, since nothing depends on it."""
    try:
        data = _shallow(json.loads(path.read_text(encoding="utf-8")))
        return Status(
            published=bool(data.get("published")),
            library={str(name): value for name, value in (data.get("library") or {}).items()},
            failures_in_row=int(data.get("failures_in_row", 0)),
            last_success=str(data.get("last_success", "")),
            held=_entries(data.get("held", ()), Held),
            damaged=tuple(value for value in data.get("damaged", ()) if isinstance(value, dict) and "path" in value),
            verification=_verification(data.get("verification")),
            runs=_entries(data.get("runs", ()), Report),
            totals=_totals(data.get("totals")),
        )
    except FileNotFoundError:
        return Status()
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        log.warning("%s cannot be read (%s); the history of runs starts anew", path, error)
        return Status()


def _shallow(value: Any, levels: int = 8) -> Any:  # noqa: ANN401 - any JSON
    """Return a JSON value; ValueError if it is nested deeper than a status ever is."""
    if not levels:
        raise ValueError("nested too deeply")
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _shallow(member, levels - 1)
    return value


def _entries(values: Iterable[Any], type_: type[Held | Report]) -> tuple[dict[str, Any], ...]:
    """Keep what has all the fields that such an entry needs."""
    needed = {item.name for item in dataclasses.fields(type_) if item.default is dataclasses.MISSING}
    needed |= {"serves"} if type_ is Held else {"result", "error", "summary"}
    return tuple(value for value in values if isinstance(value, dict) and needed <= value.keys())


def _verification(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) and {"ended", "summary"} <= value.keys() else {}


def dump(status: Status) -> bytes:
    """Return the status as JSON."""
    return (json.dumps(dataclasses.asdict(status), indent=2) + "\n").encode()
