"""Damage found on the volume, remembered until it is mended: a small file each below ``damaged/``.

One file each, so that a verification can note what it finds while a sync holds the lock and strikes out what it mended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.disk import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.store import Store

log = logging.getLogger("clr.verify")


@dataclass(frozen=True, slots=True)
class Damage:
    """A published file that is not what was published.

    :param path: where it lies, relative to the volume.
    :param reason: in what way it is damaged.
    :param item: name of the item that it belongs to, if to one.
    :param hindrance: why it could not be mended so far; empty when nobody tried.
    """

    path: str
    reason: str
    item: str = ""
    hindrance: str = ""

    def __str__(self) -> str:
        hindrance = f"; {self.hindrance}" if self.hindrance else ""
        return f"{self.path}: {self.reason}{hindrance}"


def noted(store: Store) -> tuple[Damage, ...]:
    """Return what is known to be damaged, sorted by path."""
    found = []
    for place in store.damaged.glob("[0-9a-f]*.json"):
        # a note that is damaged itself is left out: the next verification finds again what it said
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            fields = json.loads(place.read_bytes())
            found.append(Damage(*(str(fields[field.name]) for field in dataclasses.fields(Damage))))
    return tuple(sorted(found, key=lambda damage: damage.path))


def note(store: Store, damage: Damage) -> None:
    """Remember a damage, or what is known of it now. A volume that takes no note is only warned about."""
    try:
        store.damaged.mkdir(exist_ok=True)
        replace_file(_place(store, damage), json.dumps(dataclasses.asdict(damage)).encode())
    except OSError as error:
        log.warning("%s cannot be noted, so only a verification finds it again: %s", damage.path, error)


def strike_out(store: Store, damage: Damage) -> None:
    """Forget a damage that is mended, or that nothing published refers to any more."""
    _place(store, damage).unlink(missing_ok=True)


def _place(store: Store, damage: Damage) -> Path:
    return store.damaged / f"{hashlib.sha256(damage.path.encode()).hexdigest()[:16]}.json"
