"""The table of sites as one HTML file, which needs no other."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC
from functools import cache
from typing import TYPE_CHECKING

from clr_client.fleet.table import COLOURS, amount, future, past
from clr_client.web.pages import FOLDER, environment

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jinja2 import Template

    from clr_client.fleet.rows import Row


def render(rows: Sequence[Row], now: datetime, *, refresh: int = 0) -> bytes:
    """Return the page of all sites. Every text in it is data, and escaped.

    :param refresh: seconds after which a browser reads the file again; 0: never.
    """
    from markupsafe import Markup

    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _template().render(
        rows=rows,
        counts={level: sum(row.level == level for row in rows) for level in COLOURS},
        now=now.astimezone(UTC),
        refresh=refresh,
        style=Markup(style),  # noqa: S704 - our own file
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )
    return page.encode("utf-8", "backslashreplace")


@cache
def _template() -> Template:
    made = environment()
    made.filters |= {"amount": amount, "past": past, "future": future}
    return made.get_template("fleet.html")
