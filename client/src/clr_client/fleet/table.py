"""The table of sites on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from clr_client.text import columns, shortened, size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from clr_client.fleet.rows import Row

HEAD: Final = ("SITE", "STATE", "VERSION", "ITEMS", "HELD", "LAST", "NEXT", "SENT", "SAVED", "FREE", "CERT", "NOTE")
RIGHT: Final = frozenset({"VERSION", "ITEMS", "HELD", "LAST", "NEXT", "SENT", "SAVED", "FREE", "CERT"})
LEAST_WANTED: Final = ("CERT", "SAVED", "SENT", "FREE", "ITEMS", "NEXT", "VERSION", "HELD", "LAST")
"""What goes first where there is no room."""
LEAST_NOTE: Final = 40
MOST_NAME: Final = 30
COLOURS: Final = {"bad": "red", "notice": "yellow", "good": "green"}


def lines(rows: Sequence[Row], now: datetime, *, width: int | None = None, colour: bool = False) -> list[str]:
    """Return the table, a head and a line for each row.

    :param width: columns of the terminal; None: as wide as it gets.
    """
    cells = [dict(zip(HEAD, HEAD, strict=True)), *(_cells(row, now) for row in rows)]
    wide = {name: max(columns(line[name]) for line in cells) for name in HEAD}
    names = _fitting(wide, width)
    room = None if width is None else width - sum(wide[name] + 2 for name in names if name != "NOTE")
    made = []
    for line, row in zip(cells, (None, *rows), strict=True):
        parts = []
        for name in names:
            text = line[name]
            if name == "NOTE":
                text = text if room is None else shortened(text, max(0, room))
            elif name in RIGHT:
                text = " " * (wide[name] - columns(text)) + text
            else:
                text += " " * (wide[name] - columns(text))
            if colour:
                text = _coloured(name, text, row)
            parts.append(text)
        made.append("  ".join(parts).rstrip())
    return made


def _coloured(name: str, text: str, row: Row | None) -> str:
    if row is None:
        return click.style(text, bold=True)
    return click.style(text, fg=COLOURS[row.level], bold=row.level == "bad") if name == "STATE" else text


def _fitting(wide: dict[str, int], width: int | None) -> list[str]:
    """The columns that there is room for beside a note that can be read."""
    names = list(HEAD)
    note = min(wide["NOTE"], LEAST_NOTE)
    for name in LEAST_WANTED:
        if width is None or sum(wide[kept] + 2 for kept in names if kept != "NOTE") + note <= width:
            break
        names.remove(name)
    return names


def summary(rows: Sequence[Row], now: datetime) -> str:
    """Return all of it in one line."""
    counts = {level: sum(row.level == level for row in rows) for level in COLOURS}
    words = {"good": "well", "notice": "to look at", "bad": "not well"}
    parts = [f"{counts[level]} {word}" for level, word in words.items() if counts[level]]
    sites = "1 site" if len(rows) == 1 else f"{len(rows)} sites"
    return f"{sites}: {', '.join(parts)} (read {now.astimezone():%H:%M:%S})"


def _cells(row: Row, now: datetime) -> dict[str, str]:
    texts = {
        "SITE": shortened(row.name, MOST_NAME),
        "STATE": row.state,
        "VERSION": _number(row.version),
        "ITEMS": _number(row.items),
        "HELD": _number(row.held),
        "LAST": past(row.last_success, now),
        "NEXT": future(row.next_sync, now),
        "SENT": amount(row.crossed_bytes),
        "SAVED": amount(row.saved_bytes),
        "FREE": amount(row.free_bytes),
        "CERT": future(row.certificate_until, now),
        "NOTE": row.note,
    }
    return {name: text or "-" if name != "NOTE" else text for name, text in texts.items()}


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def amount(value: int | None) -> str:
    """Return a number of bytes for people; nothing when it is unknown."""
    return "" if value is None else size(value)


def past(instant: datetime | None, now: datetime) -> str:
    """Return how long ago something was; nothing when it never was."""
    return "" if instant is None else brief((now - instant).total_seconds())


def future(instant: datetime | None, now: datetime) -> str:
    """Return how long something is still to come; nothing when it is unknown."""
    return "" if instant is None else brief((instant - now).total_seconds())


def brief(seconds: float) -> str:
    """Return a length of time in one unit: 40 s, 12 min, 5 h, 90 d; with a minus when it is over."""
    sign, whole = "-" if seconds <= -1 else "", int(abs(seconds))
    if whole < 60:
        return f"{sign}{whole} s"
    if whole < 3600:
        return f"{sign}{whole // 60} min"
    return f"{sign}{whole // 3600} h" if whole < 2 * 86400 else f"{sign}{whole // 86400} d"
