"""`clr status`: the status file for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clr_client.reporting import status as statuses
from clr_client.text import printable, size

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.settings import Settings

SHOWN_RUNS = 5


def as_json(path: Path) -> str:
    """Return the status file as it is defined, also when there is none yet."""
    return statuses.dump(statuses.load(path)).decode().rstrip()


def as_text(settings: Settings, path: Path) -> str:
    """Return what is published, what is held and why, the last runs, and when the next one is due."""
    status = statuses.load(path)
    lines = [_library(status.library) if status.published else "nothing published yet"]
    lines += [f"held: {printable(held['key'])}: {printable(held['reason'])}{_serves(held)}" for held in status.held]
    for run in status.runs[:SHOWN_RUNS]:
        when = _local(run["started"], settings)
        text = f"failed: {printable(run['error'])}" if run["result"] == statuses.FAILED else run["summary"]
        lines.append(f"{when} ({run['trigger']}) {text}")
    following = settings.sync_schedule.next_after(datetime.now(UTC), settings.tz).astimezone(settings.tz)
    lines.append(f"next: {following:%a %Y-%m-%d %H:%M %Z}")
    return "\n".join(lines)


def _library(library: dict[str, Any]) -> str:
    return (
        f"{printable(library['name'])}: version {library['version']}, generation {library['generation']},"
        f" {library['items']} items, {size(library['bytes'])}"
    )


def _serves(held: dict[str, Any]) -> str:
    return f" (version {held['serves']} stays published)" if held["serves"] else ""


def _local(text: str, settings: Settings) -> str:
    return f"{datetime.fromisoformat(text).astimezone(settings.tz):%Y-%m-%d %H:%M}"
