"""The one document about a site that people and monitors see: its page, ``status.json``, metrics and messages.

Every field is described in docs/reference/status.md. Times are UTC, ISO 8601; bytes are whole numbers; what is unknown
is null; all text is safe to print.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clr_client import __version__, lock
from clr_client.errors import ClrError, WebServerError
from clr_client.integrity.damages import Damage
from clr_client.reporting import running
from clr_client.reporting import status as statuses
from clr_client.reporting.status import Held, Report, Verification
from clr_client.store import STATE, Store
from clr_client.text import printable
from clr_client.web import certificate
from clr_client.web.config import certificate_files, subscription_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clr_client.settings import Settings
    from clr_client.vcsp.model import PublishedItem

log = logging.getLogger("clr.status")

SCHEMA = 1
NEVER, SYNCING = "never", "syncing"
STATES = (NEVER, SYNCING, *statuses.RESULTS)

Stamp = tuple[Any, ...]


class Known:
    """What a document is made of and rarely changes, with the stamps that tell whether it did.

    Whoever describes a site every second keeps one: then a library of ten thousand items costs nothing each second.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[Stamp | None, Any]] = {}

    def get(self, name: str, stamp: Stamp | None, make: Callable[[], Any]) -> Any:  # noqa: ANN401 - whatever is made
        """Return what was made when ``stamp`` was the same, or else make it now."""
        if name not in self._kept or self._kept[name][0] != stamp:
            self._kept[name] = stamp, make()
        return self._kept[name][1]


def describe(settings: Settings, known: Known | None = None, now: datetime | None = None) -> dict[str, Any]:
    """Describe a site as it is now. Blocking; reads files and changes none.

    :param known: what an earlier call found out; without it everything is looked up.
    :returns: a document of its own, whose lists must not be changed.
    """
    known, now, store = known or Known(), now or datetime.now(UTC), Store(settings.clr_library_dir)
    number = store.current_number()
    told = known.get("status", _stamp(store.status), lambda: _history(store))
    library, items = known.get("library", _generation(store, number), lambda: _published(settings, store))
    at_work, killed = running.look(store.running, store.root)
    newest = told["runs"][0] if told["runs"] else None
    if newest and newest["run"] and newest["run"] in {at_work and at_work["run"], killed}:
        at_work, killed = None, ""  # it has ended, and is only about to clear away
    paused_at = store.rolled_back_to()
    state = newest["result"] if newest else NEVER
    state = statuses.FAILED if killed else state
    state = statuses.PAUSED if paused_at is not None else state
    return {
        "schema": SCHEMA,
        "written": _text(now),
        "site": printable(settings.site),
        "name": printable(settings.library_name),
        "state": SYNCING if at_work else state,
        "published": number is not None,
        "library": library or (told["library"] if number is not None else {}),
        "failures_in_row": told["failures_in_row"],
        "last_success": told["last_success"],
        "running": safe(at_work),
        "next_sync": _text(settings.sync_schedule.next_after(now, settings.tz)),
        "next_verification": (
            _text(settings.verify_schedule.next_after(now, settings.tz)) if settings.verify_schedule else None
        ),
        "paused_at": paused_at,
        "held": told["held"],
        "damaged": told["damaged"],
        "verification": told["verification"],
        "items": items,
        "runs": told["runs"],
        "totals": told["totals"],
        "certificate": _certificate(settings, known),
        "disk": _disk(store.root),
        "versions": known.get("versions", (), _versions),
    }


def signs(settings: Settings) -> Stamp:
    """Return what differs as soon as a document would say something new, at the cost of a few looks at files."""
    store = Store(settings.clr_library_dir)
    link = None
    with suppress(OSError):
        link = store.current.readlink().name
    files = (store.status, store.running, store.pin)
    is_held = store.running.exists() and lock.holder(store.root) is not None
    return link, is_held, *map(_stamp, files), _certificate_stamp(settings)


def dump(document: dict[str, Any]) -> bytes:
    """Return a document, or a part of one, as the text of a file."""
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def safe(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """Return a JSON value with all its text safe to print and to encode."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(name)): safe(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [safe(member) for member in value]
    return value


def _history(store: Store) -> dict[str, Any]:
    status = statuses.load(store.status)
    library = {name: status.library.get(name) for name in ("name", "id", "version", "generation", "items", "bytes")}
    told: dict[str, Any] = {
        "library": {**library, "url": None, "changed": None} if status.library else {},
        "failures_in_row": status.failures_in_row,
        "last_success": status.last_success,
        "held": [_fit(held, Held("", "")) for held in status.held],
        "damaged": [_fit(damage, Damage("", "")) for damage in status.damaged],
        "verification": _verification(status.verification) if status.verification else {},
        "runs": [_run(run) for run in status.runs],
        "totals": status.totals,
    }
    return {name: safe(value) for name, value in told.items()}


def _run(entry: dict[str, Any]) -> dict[str, Any]:
    """One run of the history with all its fields: what an earlier release did not write down is added."""
    fields = _fit(entry, Report("", ""))
    saved = min(fields["matched_bytes"], fields["planned_bytes"])
    result = fields["result"] if fields["result"] in statuses.RESULTS else statuses.FAILED
    return {"run": "", **_lists(fields), "result": result, "saved_bytes": saved, "summary": str(entry["summary"])}


def _verification(entry: dict[str, Any]) -> dict[str, Any]:
    fields = _fit(entry, Verification("", "", "", 0.0, 0))
    return {"run": "", **_lists(fields), "summary": str(entry["summary"])}


def _lists(fields: dict[str, Any]) -> dict[str, Any]:
    kinds: dict[str, Any] = {"held": Held("", ""), **dict.fromkeys(("found", "mended", "damaged"), Damage("", ""))}
    for name in kinds.keys() & fields.keys():
        fields[name] = [_fit(entry, kinds[name]) for entry in fields[name] if isinstance(entry, dict)]
    for name in {"added", "updated", "removed", "went_back"} & fields.keys():
        fields[name] = [str(text) for text in fields[name]]
    return fields


def _fit(entry: dict[str, Any], model: Any) -> dict[str, Any]:  # noqa: ANN401 - any of our dataclasses
    """Return the fields that ``model`` has, with its values where ``entry`` has none or one of another kind."""
    return {field.name: _like(getattr(model, field.name), entry.get(field.name)) for field in dataclasses.fields(model)}


def _like(default: Any, value: Any) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(default, tuple):
        return list(value) if isinstance(value, list | tuple) else []
    if isinstance(default, str):
        return value if isinstance(value, str) else default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return default
    return value if isinstance(default, float) else int(value)


def _published(settings: Settings, store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Describe what is published and its items; nothing while nothing is, or while it cannot be read."""
    number = store.current_number()
    try:
        library = store.published() if number is not None else None
        if library is None or number is None:
            return {}, []
        changed = store.published_at(number).wall
    except (OSError, ClrError) as error:
        log.warning("what is published cannot be described: %s", error)
        return {}, []
    folder = store.generations / str(number)
    items = [_item(item, store, folder, browse=settings.library_browse) for item in library.items]
    described = {
        "name": library.name,
        "id": library.id,
        "version": library.version,
        "generation": number,
        "items": len(items),
        "bytes": sum(item["bytes"] for item in items),
        "url": subscription_url(settings) or None,
        "changed": _text(datetime.fromtimestamp(changed, UTC)),
    }
    return safe(described), items


def _item(item: PublishedItem, store: Store, folder: Path, *, browse: bool) -> dict[str, Any]:
    changed = url = None
    with suppress(OSError):  # an item without its tree is mended by the next sync
        changed = _text(datetime.fromtimestamp((store.tree(item) / "item.json").stat().st_mtime, UTC))
    if (item.key_is_file or browse) and os.path.lexists(folder / item.key):
        url = quote(os.fsencode(item.key)) + ("" if item.key_is_file else "/")
    return {
        "name": printable(item.name),
        "type": item.type,
        "version": item.version,
        "files": len(item.files),
        "bytes": sum(file.size for file in item.files),
        "changed": changed,
        "url": url,
    }


def _certificate(settings: Settings, known: Known) -> dict[str, Any] | None:
    return known.get("certificate", _certificate_stamp(settings), lambda: _described(settings))  # type: ignore[no-any-return]


def _described(settings: Settings) -> dict[str, Any] | None:
    files = certificate_files(settings)
    if files is None:
        return None
    kind = "own" if settings.tls_custom_cert else "internal" if settings.tls_internal else "acme"
    try:
        found = certificate.describe(*files)
    except WebServerError as error:
        log.debug("the certificate cannot be described: %s", error)
        return None
    return {"kind": kind, "not_after": _text(found.not_after), "sha256": found.sha256, "sha1": found.sha1}


def _certificate_stamp(settings: Settings) -> Stamp:
    files = certificate_files(settings)
    return tuple(map(_stamp, files)) if files else ()


def _disk(root: Path) -> dict[str, int | None]:
    try:
        room = os.statvfs(root)
    except OSError:
        return {"free_bytes": None, "total_bytes": None}
    return {"free_bytes": room.f_bavail * room.f_frsize, "total_bytes": room.f_blocks * room.f_frsize}


def _versions() -> dict[str, str]:
    from clr_client import transport
    from clr_client.web import caddy

    return {"clr": __version__, **safe({**transport.versions(), **caddy.versions()})}


def _generation(store: Store, number: int | None) -> Stamp:
    return number, _stamp(store.generations / str(number) / STATE) if number is not None else None


def _stamp(path: Path) -> Stamp | None:
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_ino, seen.st_mtime_ns, seen.st_size


def _text(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="seconds")
