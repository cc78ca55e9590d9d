"""The site page: the document as HTML, with its style sheet and its script.

The page is complete without the script, which moves the progress bar, copies, filters, and shows times in the reader's
time zone. Nothing in it comes from another host, and no style or script stands in the HTML, so the strictest
Content-Security-Policy lets it work.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clr_client.text import size, span
from clr_client.web.pages import chart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Environment, Template

FOLDER = Path(__file__).parent
FIXED = ("style.css", "page.js", "icon.svg")
PLACE = "/_clr/"
"""Where the page and its files are served."""
SHOWN_RUNS = 24
REFRESH_SECONDS = 5
NAMED = 3
TYPES = {"vcsp.ovf": "OVF template", "vcsp.iso": "ISO image", "vcsp.other": "Files"}
STATES = {
    "never": "Never synced",
    "syncing": "Syncing",
    "success": "Up to date",
    "partial": "Partly up to date",
    "failed": "Sync failed",
    "paused": "Paused",
}
LIBRARY = ("name", "id", "version", "generation", "items", "bytes", "url", "changed")
UNTOLD = "The last sync was ended before it could say why; the log of the client tells more."
ROUND_BYTES = tuple(digit * 10**zeros // 2 for zeros in range(1, 19) for digit in (2, 3, 4, 6, 8, 10, 12, 16))
ROUND_SECONDS = (
    *(1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800),
    *(hours * 3600 for hours in (1, 2, 3, 6, 12, 24, 48, 96, 168)),
)


def render(document: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files of the site page by name, ``index.html`` among them, for a document of schema 1. Pure.

    Every text of the document is data: it is escaped, wherever it comes from.
    """
    page = _template().render(_view(document))
    return {"index.html": page.encode("utf-8", "backslashreplace"), **_fixed()}


def explain(document: Mapping[str, Any]) -> str:
    """Return what the state means for this site, and what to do about it, in a sentence or two."""
    state, runs, published = document["state"], document["runs"], document["published"]
    newest = runs[0] if runs else {}
    error = _sentence(newest.get("error", "")) if newest.get("result") == state else ""
    stays = "What was published before stays published." if published else "Nothing is published yet."
    if state == "syncing":
        if published:
            return "Subscribers keep what is published until everything new has arrived."
        return "This is the first sync. Subscribers can read the library as soon as it is done."
    if state == "success":
        return "The library is what the server has."
    if state == "partial":
        return error or "Some items are held back, for the reasons given below. Everything else is what the server has."
    if state == "failed":
        why = f"The last sync failed: {error}" if error else UNTOLD
        return f"{why} {stays}"
    if state == "paused":
        which = document["paused_at"]
        where = "An earlier generation" if which is None else f"Generation {which}"
        return f"{where} was published again by a rollback. Nothing is fetched until clr rollback --release ends that."
    return "What is published was here before the first sync." if published else "Nothing is published yet."


def deed(run: Mapping[str, Any]) -> str:
    """Return what a run did to the library, by names as far as they are few, or why it did nothing."""
    parts = [f"{verb} {_some(run[verb])}" for verb in ("added", "updated", "removed") if run[verb]]
    parts += [f"held {_some([held['key'] for held in run['held']])}"] if run["held"] else []
    parts += [f"{_files(run['mended'])} mended"] if run["mended"] else []
    parts += [f"{_files(run['damaged'])} left"] if run["damaged"] else []
    parts += [run["error"]] if run["error"] else []
    return "; ".join(parts) or "nothing had changed"


def _some(names: Sequence[str]) -> str:
    named = ", ".join(names[:NAMED])
    return f"{named} and {len(names) - NAMED} more" if len(names) > NAMED else named


def _files(damages: Sequence[object]) -> str:
    return f"{len(damages)} damaged file{'' if len(damages) == 1 else 's'}"


def folder(url: str) -> str:
    """Return the link to an item's folder or file on this site, whatever the text is."""
    return "/" + quote(url.lstrip("/\\"), safe="/%", errors="backslashreplace")


def _view(document: Mapping[str, Any]) -> dict[str, Any]:
    runs: Sequence[Mapping[str, Any]] = document["runs"][:SHOWN_RUNS]
    in_order = [{**run, "crossed": run["sent_bytes"] + run["received_bytes"]} for run in reversed(runs)]
    return {
        **document,
        "library": {**dict.fromkeys(LIBRARY), **document["library"]},
        "place": PLACE,
        "word": STATES.get(document["state"], document["state"]),
        "explanation": explain(document),
        "refresh": REFRESH_SECONDS,
        "types": TYPES,
        "browsing": any(str(item["url"] or "").endswith("/") for item in document["items"]),
        "in_order": in_order,
        "bytes_chart": chart.stacked([(run["crossed"], run["saved_bytes"]) for run in in_order], ROUND_BYTES),
        "time_chart": chart.stacked([(run["seconds"], 0) for run in in_order], ROUND_SECONDS),
    }


def environment() -> Environment:
    """Return what makes pages of the templates here: every text that is put into them is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _template() -> Template:
    made = environment()
    made.filters |= {
        "size": _size,
        "span": span,
        "utc": _utc,
        "folder": folder,
        "deed": deed,
        "percent": _percent,
        "short": lambda number: f"{number:.2f}".rstrip("0").rstrip("."),
    }
    return made.get_template("index.html")


@cache
def _fixed() -> dict[str, bytes]:
    return {name: (FOLDER / name).read_bytes() for name in FIXED}


def _size(count: float | None) -> str:
    return "unknown" if count is None else size(count)


def _utc(moment: object) -> str:
    try:
        return f"{datetime.fromisoformat(str(moment)).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError):
        return str(moment)


def _percent(part: float, whole: float) -> int:
    return min(100, int(100 * part / whole)) if whole > 0 else 0


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."
