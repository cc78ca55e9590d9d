"""`clr status`: the document about the site, in words."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from clr_client.reporting import status as statuses
from clr_client.text import printable, size, span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from zoneinfo import ZoneInfo

SHOWN_RUNS = 5


def as_text(
    document: Mapping[str, Any], zone: ZoneInfo, generations: Sequence[int] = (), running_since: str = ""
) -> str:
    """Return how the site is, what is published, what is held and why, the last runs, and what comes next.

    :param document: see document.py.
    :param zone: in which times are shown.
    :param generations: numbers of those that can be rolled back to.
    :param running_since: since when anything at all is at work on the volume; empty when nothing is.
    """
    lines = [f"{document['site']}: {document['state']}", _library(document["library"])]
    if document["running"]:
        lines.append(_running(document["running"]))
    elif running_since:
        lines.append(f"running since {running_since}")
    if document["paused_at"] is not None:
        lines.append(f"syncs are paused at generation {document['paused_at']}; clr rollback --release ends that")
    if generations:
        lines.append(f"generations kept: {', '.join(map(str, generations))}")
    lines += [f"held: {held['key']}: {held['reason']}{_serves(held)}" for held in document["held"]]
    lines += [f"damaged: {damage['path']}: {_why(damage)}" for damage in document["damaged"]]
    if verification := document["verification"]:
        lines.append(f"verified {_local(verification['ended'], zone)}: {verification['summary']}")
    for run in document["runs"][:SHOWN_RUNS]:
        text = f"failed: {run['error']}" if run["result"] == statuses.FAILED else run["summary"]
        lines.append(f"{_local(run['started'], zone)} ({run['trigger']}) {text}")
    lines.append(f"next: {_local(document['next_sync'], zone, '%a %Y-%m-%d %H:%M %Z')}")
    if following := document["next_verification"]:
        lines.append(f"next verification: {_local(following, zone, '%a %Y-%m-%d %H:%M %Z')}")
    if found := document["certificate"]:
        until = _local(found["not_after"], zone)
        lines.append(f"certificate: {found['kind']}, until {until}, SHA-256 {found['sha256']}")
    if document["disk"]["total_bytes"]:
        free, total = size(document["disk"]["free_bytes"]), size(document["disk"]["total_bytes"])
        lines.append(f"disk: {free} of {total} free")
    return "\n".join(map(printable, lines))


def _library(library: Mapping[str, Any]) -> str:
    if not library:
        return "nothing published yet"
    known = {name: "?" if value is None else value for name, value in library.items()}
    return (
        f"{known['name']}: version {known['version']}, generation {known['generation']}, {known['items']} items,"
        f" {size(known['bytes']) if isinstance(known['bytes'], int) else '?'}"
    )


def _running(running: Mapping[str, Any]) -> str:
    text = f"running since {running['since']} ({running['trigger']}): {running['stage']}"
    if running["total_bytes"]:
        done, total = running["done_bytes"] or 0, running["total_bytes"]
        text += f"; {min(100, done * 100 // total)} % ({size(done)} of {size(total)})"
    if running["rate"]:
        text += f", {size(running['rate'])}/s"
    return text if running["left_seconds"] is None else f"{text}, {span(running['left_seconds'])} left"


def _serves(held: Mapping[str, Any]) -> str:
    return f" (version {held['serves']} stays published)" if held["serves"] else ""


def _why(damage: Mapping[str, Any]) -> str:
    return "; ".join(damage[name] for name in ("reason", "hindrance") if damage[name])


def _local(text: str, zone: ZoneInfo, form: str = "%Y-%m-%d %H:%M") -> str:
    try:
        return datetime.fromisoformat(text).astimezone(zone).strftime(form)
    except (ValueError, OverflowError):
        return text
