"""What is told to people: which events a document holds that nobody was told of yet, and the words for them. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from clr_client.reporting.status import FAILED, PARTIAL, SUCCESS
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

FAILURE, RECOVERY, HELD, FIRST = "failure", "recovery", "held", "first-success"
STALE, DAMAGED, CERTIFICATE, PAUSED = "stale", "damaged", "certificate", "paused"
KINDS = (FAILURE, RECOVERY, HELD, FIRST, STALE, DAMAGED, CERTIFICATE, PAUSED)

NAMED = 10
"""Items and files that one message names; it counts the others."""
NAME_LENGTH, REASON_LENGTH, ERROR_LENGTH, BODY_LENGTH = 100, 300, 1000, 8000
EXPIRES_SOON = {"own": timedelta(days=21), "acme": timedelta(days=7), "internal": timedelta(0)}
"""When each kind of certificate becomes news: Caddy renews its own in time, and its CA's every few hours."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something to be told once. ``headline`` is one line without the site's name, ``lines`` say more."""

    kind: str
    headline: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent. ``tone`` is apprise's: failure, warning, success or info."""

    subject: str
    body: str
    tone: str


@dataclass(frozen=True, slots=True)
class Told:
    """What was told already. Marks stand for items and files; times are as the document has them."""

    since: str = ""
    """When somebody began to look."""
    run: str = ""
    """The newest run that was looked at."""
    failing: bool = False
    succeeded: bool = False
    """A first success was told, or is long past."""
    held: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    verification: str = ""
    stale: str = ""
    """The last success that was said to be long ago."""
    certificate: str = ""
    paused: int | None = None


def events(
    told: Told, document: Mapping[str, Any], now: datetime, stale_at: Callable[[datetime, bool], datetime | None]
) -> tuple[tuple[Event, ...], Told]:
    """Return what is new in a document, and what is told once that was sent.

    :param now: aware.
    :param stale_at: says when a site is stale that last heard all from its server at the given time, and whether a sync
        is running; None for never.
    """
    if not told.since:
        since, old = now.astimezone(UTC).isoformat(timespec="seconds"), str(document["verification"].get("ended", ""))
        told = dataclasses.replace(told, since=since, verification=old)
    found: list[Event] = []
    for look in (_runs, _held, _damaged, _certificate, _paused):
        new, told = look(told, document, now)
        found += new
    new, told = _stale(told, document, now, stale_at)
    return (*found, *new), told


Found = tuple[list[Event], Told]


def identity(run: Mapping[str, Any]) -> str:
    """Return what tells a run from all others."""
    return f"{run.get('run', '')} {run.get('started', '')}".strip()


def new_runs(last: str, runs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the indices of the runs that ended after the one whose identity is ``last``, oldest first.

    Of a history that does not hold that run only the newest counts: the rest may be old.
    """
    known = [identity(run) for run in runs]
    return list(reversed(range(known.index(last) if last in known else min(1, len(known)))))


def _runs(told: Told, document: Mapping[str, Any], now: datetime) -> Found:  # noqa: ARG001 - one form for all
    found: list[Event] = []
    runs = document["runs"]
    for index in new_runs(told.run, runs):
        run = runs[index]
        if run["result"] == FAILED and not told.failing:
            found.append(_failure(run, document))
            told = dataclasses.replace(told, failing=True)
        if went_through(run):
            if told.failing:
                found.append(Event(RECOVERY, "syncs work again", (clip(run["summary"], ERROR_LENGTH),)))
            told = dataclasses.replace(told, failing=False)
        if run["result"] == SUCCESS and not told.succeeded:
            if not _successes_before(index, document):
                found.append(_first(run, document))
            told = dataclasses.replace(told, succeeded=True)
        if run.get("mended"):
            found.append(_mended(run["mended"]))
        told = dataclasses.replace(told, run=identity(run))
    return found, told


def went_through(run: Mapping[str, Any]) -> bool:
    """Whether a run got to its end with a server, even if an item is held."""
    return run["result"] == SUCCESS or (run["result"] == PARTIAL and run.get("version") is not None)


def _successes_before(index: int, document: Mapping[str, Any]) -> int:
    results: list[bool] = [run["result"] == SUCCESS for run in document["runs"]]
    since, before = sum(results[: index + 1]), sum(results[index + 1 :])
    ever = int(document.get("totals", {}).get("runs", {}).get(SUCCESS, 0))
    return max(before, ever - since)


def _failure(run: Mapping[str, Any], document: Mapping[str, Any]) -> Event:
    reason = clip(run["error"], ERROR_LENGTH)
    lines = [f"The sync that began at {run['started']} failed: {reason}"]
    lines.append("What was published before is served on." if document["published"] else "Nothing is published yet.")
    lines.append("To find the cause: clr doctor")
    return Event(FAILURE, f"sync failed: {clip(run['error'], NAME_LENGTH)}", tuple(lines))


def _first(run: Mapping[str, Any], document: Mapping[str, Any]) -> Event:
    library = document.get("library") or {}
    name, items = clip(library.get("name", ""), NAME_LENGTH), library.get("items", 0)
    lines = [f"The library {name!r} is published: {items} items.", clip(run["summary"], ERROR_LENGTH)]
    if library.get("url"):
        lines.append(f"Subscription URL: {clip(library['url'], REASON_LENGTH)}")
    return Event(FIRST, "first sync succeeded", tuple(lines))


def _held(told: Told, document: Mapping[str, Any], now: datetime) -> Found:  # noqa: ARG001
    marks = {_mark(item["key"], re.sub(r"\d+", "#", item["reason"])): item for item in document["held"]}
    new = [item for mark, item in marks.items() if mark not in told.held]
    told = dataclasses.replace(told, held=tuple(sorted(marks)))
    if not new:
        return [], told
    head = f"{clip(new[0]['key'], NAME_LENGTH)} is held" if len(new) == 1 else f"{len(new)} items are held"
    lines = _listed(new, lambda item: f"{clip(item['key'], NAME_LENGTH)}: {_why_held(item)}")
    advice = "Mend them at the source; the next sync takes them. The other items go on."
    return [Event(HELD, head, (*lines, advice))], told


def _why_held(item: Mapping[str, Any]) -> str:
    serves = f" (version {item['serves']} stays published)" if item.get("serves") else ""
    return clip(item["reason"], REASON_LENGTH) + serves


def _damaged(told: Told, document: Mapping[str, Any], now: datetime) -> Found:  # noqa: ARG001
    found: list[Event] = []
    marks = {_mark(damage["path"]): damage for damage in document["damaged"]}
    if new := [damage for mark, damage in marks.items() if mark not in told.damaged]:
        head = "a file has rotted on the disk" if len(new) == 1 else f"{len(new)} files have rotted on the disk"
        advice = "They are served no longer; each sync tries to mend them, and now: clr verify --repair"
        found.append(Event(DAMAGED, head, (*_listed(new, _shown_damage), advice)))
    verification = document["verification"]
    ended = str(verification.get("ended", ""))
    if ended != told.verification and verification.get("mended"):
        found.append(_mended(verification["mended"]))
    return found, dataclasses.replace(told, damaged=tuple(sorted(marks)), verification=ended)


def _mended(mended: Sequence[Mapping[str, Any]]) -> Event:
    count = len(mended)
    head = "a file had rotted on the disk and is mended" if count == 1 else f"{count} rotten files are mended"
    return Event(DAMAGED, head, (*_listed(mended, _shown_damage), "Look at the disk: rot seldom comes alone."))


def _shown_damage(damage: Mapping[str, Any]) -> str:
    reasons = "; ".join(str(damage[name]) for name in ("reason", "hindrance") if damage.get(name))
    item = f" ({clip(damage['item'], NAME_LENGTH)})" if damage.get("item") else ""
    return f"{clip(damage['path'], REASON_LENGTH)}{item}: {clip(reasons, REASON_LENGTH)}"


def _certificate(told: Told, document: Mapping[str, Any], now: datetime) -> Found:
    known = document.get("certificate") or {}
    ends = time_of(known.get("not_after"))
    if ends is None:
        return [], told
    stage, left = "", ends - now
    if left <= timedelta(0):
        stage = "expired"
    elif left < EXPIRES_SOON.get(known.get("kind", ""), timedelta(0)):
        stage = "expires"
    mark = f"{stage} {known['not_after']}" if stage else ""
    changed, told = mark != told.certificate, dataclasses.replace(told, certificate=mark)
    if not mark or not changed:
        return [], told
    advice = "Replace it; the new one is taken up without a restart."
    if known.get("kind") != "own":
        advice = "The web server should have renewed it; its log lines say why it could not."
    lines = ("Subscribers refuse a site whose certificate has expired.", advice)
    return [Event(CERTIFICATE, f"the certificate {stage} on {ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC", lines)], told


def _paused(told: Told, document: Mapping[str, Any], now: datetime) -> Found:  # noqa: ARG001
    target = document["paused_at"]
    before, told = told.paused, dataclasses.replace(told, paused=target)
    if target == before:
        return [], told
    if target is None:
        return [Event(PAUSED, "syncs publish again", ("The rollback was released.",))], told
    line = "No sync publishes anything until: clr rollback --release"
    return [Event(PAUSED, f"rolled back to generation {target}; syncs are paused", (line,))], told


def _stale(
    told: Told, document: Mapping[str, Any], now: datetime, stale_at: Callable[[datetime, bool], datetime | None]
) -> Found:
    through = [run["ended"] for run in document["runs"] if went_through(run) and not run.get("error")]
    times = [time for time in map(time_of, (document["last_success"], *through[:1])) if time]
    last = max(times, default=None)
    since = last or time_of(told.since) or now
    mark = since.isoformat()
    deadline = stale_at(since, document["running"] is not None)
    if deadline is None or now < deadline or mark == told.stale:
        return [], told
    when = f"since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if last else "so far"
    lines = [f"The library may be out of date: no sync succeeded {when}."]
    if document["runs"]:
        lines.append(f"The last run: {clip(document['runs'][0]['summary'], ERROR_LENGTH)}")
    if document["paused_at"] is not None:
        lines.append(f"Syncs are paused at generation {document['paused_at']}: clr rollback --release")
    lines.append("To find the cause: clr doctor")
    return [Event(STALE, f"no sync succeeded {when}", tuple(lines))], dataclasses.replace(told, stale=mark)


def compose(found: Sequence[Event], site: str, link: str = "") -> Message:
    """Put events, one at least, into one message, the gravest first.

    :param link: the site's page, if it can be reached by a name.
    """
    ranks = (FAILURE, STALE, DAMAGED, CERTIFICATE, HELD, PAUSED, RECOVERY, FIRST)
    sorted_ = sorted(found, key=lambda event: ranks.index(event.kind))
    first = sorted_[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    shown = clip(site, NAME_LENGTH)
    paragraphs = ["\n".join((f"{shown}: {event.headline}", *event.lines)) for event in sorted_]
    if link:
        paragraphs.append(link)
    body = "\n\n".join(paragraphs)
    body = body if len(body) <= BODY_LENGTH else f"{body[: BODY_LENGTH - 1]}…"
    tones = {FAILURE: "failure", RECOVERY: "success", FIRST: "success", PAUSED: "info"}
    return Message(f"{shown}: {first.headline}{more}", body, tones.get(first.kind, "warning"))


def clip(text: object, length: int) -> str:
    """Return a text from elsewhere, harmless and of bounded length.

    ``@``, ``<`` and ``](`` get a word joiner, which nobody sees: by these a name would call everybody in a chat, or
    look like a link to somewhere else, and not every plug-in of apprise escapes them.
    """
    shown = printable(str(text))
    shown = shown if len(shown) <= length else f"{shown[: length - 1]}…"
    return re.sub(r"(@|<|\](?=\())", "\\1\u2060", shown)


def time_of(text: object) -> datetime | None:
    """Read a time of the document; None for none, or for one that cannot be read."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _listed(things: Iterable[Mapping[str, Any]], show: Callable[[Mapping[str, Any]], str]) -> list[str]:
    shown = [f"- {show(thing)}" for thing in things]
    return shown if len(shown) <= NAMED else [*shown[:NAMED], f"- and {len(shown) - NAMED} more: clr status"]


def _mark(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()[:16]
