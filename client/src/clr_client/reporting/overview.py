"""`clr status`: the status file for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clr_client.reporting import status as statuses
from clr_client.text import printable, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from clr_client.settings import Settings

SHOWN_RUNS = 5


def as_json(path: Path) -> str:
    """Return the status file as it is defined, also when there is none yet."""
    return statuses.dump(statuses.load(path)).decode().rstrip()


def as_text(
    settings: Settings,
    path: Path,
    generations: Sequence[int] = (),
    *,
    library: Mapping[str, Any] | None = None,
    running_since: str = "",
    rolled_back_to: int | None = None,
) -> str:
    """Return what is published, what is held and why, the last runs, and when the next one is due.

    :param generations: numbers of those that can be rolled back to.
    :param library: what is published, if anything is.
    :param running_since: since when a run is at work, if one is.
    """
    status = statuses.load(path)
    lines = [_library(library) if library else "nothing published yet"]
    if running_since:
        lines.append(f"running since {_shown(running_since)}")
    if rolled_back_to is not None:
        lines.append(f"syncs are paused at generation {rolled_back_to}; clr rollback --release ends that")
    if generations:
        lines.append(f"generations kept: {', '.join(map(str, generations))}")
    lines += [f"held: {_shown(held['key'])}: {_shown(held['reason'])}{_serves(held)}" for held in status.held]
    lines += [f"damaged: {_shown(damage['path'])}: {_shown(_why(damage))}" for damage in status.damaged]
    if status.verification:
        ended, summary = status.verification["ended"], status.verification["summary"]
        lines.append(f"verified {_local(ended, settings)}: {_shown(summary)}")
    for run in status.runs[:SHOWN_RUNS]:
        text = f"failed: {run['error']}" if run["result"] == statuses.FAILED else run["summary"]
        lines.append(f"{_local(run['started'], settings)} ({_shown(run['trigger'])}) {_shown(text)}")
    following = settings.sync_schedule.next_after(datetime.now(UTC), settings.tz).astimezone(settings.tz)
    lines.append(f"next: {following:%a %Y-%m-%d %H:%M %Z}")
    if settings.verify_schedule:
        following = settings.verify_schedule.next_after(datetime.now(UTC), settings.tz).astimezone(settings.tz)
        lines.append(f"next verification: {following:%a %Y-%m-%d %H:%M %Z}")
    return "\n".join(map(printable, lines))


def _library(library: Mapping[str, Any]) -> str:
    known = {"name": "?", "version": "?", "generation": "?", "items": "?", "bytes": 0, **library}
    return (
        f"{_shown(known['name'])}: version {known['version']}, generation {known['generation']},"
        f" {known['items']} items, {size(known['bytes']) if isinstance(known['bytes'], int) else '?'}"
    )


def _shown(value: object) -> str:
    return printable(str(value))


def _serves(held: Mapping[str, Any]) -> str:
    return f" (version {held['serves']} stays published)" if held["serves"] else ""


def _why(damage: Mapping[str, Any]) -> str:
    return "; ".join(str(damage[name]) for name in ("reason", "hindrance") if damage.get(name))


def _local(text: object, settings: Settings) -> str:
    try:
        return f"{datetime.fromisoformat(str(text)).astimezone(settings.tz):%Y-%m-%d %H:%M}"
    except ValueError:
        return _shown(text)
