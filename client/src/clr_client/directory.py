"""`clr publish`: manifests for any plain directory, in place and incrementally, for people who host elsewhere."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.content.digests import DigestCache
from clr_client.content.items import group, scan
from clr_client.content.verify import verify
from clr_client.errors import HeldError, ManifestError, StoreError
from clr_client.publishing import content_of, select
from clr_client.reporting.status import Held
from clr_client.store import remove, replace_file, unusable
from clr_client.vcsp import record
from clr_client.vcsp.build import next_library
from clr_client.vcsp.manifests import manifests, self_path

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.vcsp.model import ItemContent, PublishedItem, PublishedLibrary

log = logging.getLogger("clr.publish")

STATE = ".clr-state.json"
DIGESTS = ".clr-digests.json"


@dataclass(frozen=True, slots=True)
class Published:
    """What `clr publish` did: the library as it is now, whether its manifests changed, and what is held."""

    library: PublishedLibrary
    changed: bool
    held: tuple[Held, ...]


def publish_directory(folder: Path, name: str) -> Published:
    """Write lib.json, items.json and each item.json for the templates in ``folder``, reading only what changed.

    The data is there already; an item's manifest is written before the list of items, and lib.json last, so that no
    reader meets a reference to what is absent. Manifests of other tools are adopted: ids stay, versions grow.

    :raises StoreError: the folder cannot be read or written.
    :raises ManifestError: manifests in it cannot be understood.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder", "Name the folder that holds the templates")
    try:
        return _publish(folder, name)
    except OSError as error:
        raise unusable(folder, error) from error


def _publish(folder: Path, name: str) -> Published:
    previous = _previous(folder)
    here = {item.key: item for item in previous.items} if previous else {}
    contents, held = _contents(folder)
    stays = [entry.key for entry in held if entry.key in here and _is_there(folder, here[entry.key])]
    selection = select(previous, contents, stays)
    library = next_library(previous, name, selection.contents, now=datetime.now(UTC), href_style="plain")
    changed = _write(folder, library)
    return Published(library, changed, (*held, *selection.held))


def _previous(folder: Path) -> PublishedLibrary | None:
    state, lib, items = folder / STATE, folder / "lib.json", folder / "items.json"
    if state.is_file():
        try:
            return record.load(state.read_bytes())
        except ManifestError as error:
            log.warning("%s: %s; ids and versions are taken from lib.json and items.json", state, error)
    if not lib.is_file():
        return None
    return record.adopt(lib.read_bytes(), items.read_bytes() if items.is_file() else None)


def _contents(folder: Path) -> tuple[dict[str, ItemContent], list[Held]]:
    digests = DigestCache.load(folder / DIGESTS)
    contents: dict[str, ItemContent] = {}
    held: list[Held] = []
    for item in group(scan(folder)):
        try:
            contents[item.key] = content_of(verify(item, folder, digests, unpack=False), item)
        except HeldError as error:
            held.append(Held(item.key, error.message))
    digests.save(folder / DIGESTS)
    return contents, held


def _is_there(folder: Path, item: PublishedItem) -> bool:
    """Whether a held item's published files still lie there unchanged in size: only then can it stay published."""
    base = folder / (item.key.rpartition("/")[0] if item.key_is_file else item.key)
    try:
        return all((base / file.name).stat().st_size == file.size for file in item.files)
    except OSError:
        return False


def _write(folder: Path, library: PublishedLibrary) -> bool:
    texts = manifests(library)
    changed = False
    for item in library.items:
        place = folder / self_path(library, item)
        place.parent.mkdir(parents=True, exist_ok=True)
        changed |= _replace(place, texts.item[item.id])
    changed |= _replace(folder / "items.json", texts.items)
    changed |= _replace(folder / STATE, record.dump(library))
    changed |= _replace(folder / "lib.json", texts.lib)
    _drop_old_manifests(folder, library)
    return changed


def _drop_old_manifests(folder: Path, library: PublishedLibrary) -> None:
    """Remove the manifests of single-file items' earlier versions; those of folders were replaced in place."""
    current = {folder / self_path(library, item) for item in library.items}
    for manifest in (folder / "_items").glob("*/*/item.json"):
        if manifest not in current:
            remove(manifest.parent)
            with suppress(OSError):
                manifest.parent.parent.rmdir()


def _replace(path: Path, data: bytes) -> bool:
    """Replace a file unless it holds ``data`` already; whether it did."""
    if path.is_file() and path.read_bytes() == data:
        return False
    replace_file(path, data)
    return True
