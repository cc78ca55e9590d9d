"""`clr fleet`: read all sites, show them, and say by the exit code whether all is well; once, or again and again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import click

from clr_client.disk import swap_file
from clr_client.errors import SitesError
from clr_client.fleet import rows as judged
from clr_client.fleet import table
from clr_client.fleet.reading import Fleet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from clr_client.fleet.rows import Row
    from clr_client.fleet.sites import Site

NOT_WELL: Final = 4


@dataclass(frozen=True, slots=True)
class View:
    """How sites are to be shown. ``html`` is a file to write as well; ``every`` are seconds, 0 for only once."""

    in_order_of_names: bool = False
    as_json: bool = False
    html: Path | None = None
    every: int = 0
    max_age: timedelta | None = None


def show(sites: Sequence[Site], view: View, timeout: float) -> int:
    """Read the sites and show them. Returns the exit code: 4 when a site is not well; watching ends with 0.

    :param timeout: seconds for each site, in all.
    :raises SitesError: the HTML file cannot be written.
    """
    fleet = Fleet(sites, timeout)
    try:
        while True:
            began = time.monotonic()
            found, now = _read(fleet, view)
            _tell(found, now, view)
            if not view.every:
                return NOT_WELL if any(row.level == "bad" for row in found) else 0
            time.sleep(max(0.0, view.every - (time.monotonic() - began)))
    except KeyboardInterrupt:
        if not view.every:
            raise
        return 0


def _read(fleet: Fleet, view: View) -> tuple[tuple[Row, ...], datetime]:
    readings = fleet.read()
    now = datetime.now(UTC)
    found = judged.rows(readings, now, view.max_age)
    return (judged.by_name(found) if view.in_order_of_names else found), now


def _tell(found: Sequence[Row], now: datetime, view: View) -> None:
    if view.html is not None:
        from clr_client.fleet.page import render

        try:
            swap_file(view.html, render(found, now, refresh=view.every))
        except OSError as error:
            raise SitesError(f"{view.html} cannot be written: {error.strerror or error}") from error
    if view.as_json:
        click.echo(json.dumps(judged.as_document(found, now), indent=2))
        return
    terminal = sys.stdout.isatty()
    size = shutil.get_terminal_size()
    is_plain = not terminal or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    lines = table.lines(found, now, width=size.columns if terminal else None, colour=not is_plain)
    if view.every and terminal:
        lines = _cut(lines, size.lines - 2)
        click.clear()
    click.echo("\n".join((*lines, table.summary(found, now))))


def _cut(lines: list[str], most: int) -> list[str]:
    """As many lines as a screen has, and how many there are more."""
    if len(lines) <= max(3, most):
        return lines
    kept = lines[: max(2, most - 1)]
    return [*kept, f"… {len(lines) - len(kept)} more"]
