"""What `clr publish` does where something may have changed: reads what is new and writes the folder's manifests."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from clr_client.content.digests import DigestCache
from clr_client.content.items import group, scan
from clr_client.content.verify import verify
from clr_client.disk import remove, replace_file
from clr_client.errors import HeldError, ManifestError
from clr_client.publishing import content_of, select
from clr_client.reporting.status import Held
from clr_client.vcsp import record
from clr_client.vcsp.build import next_library
from clr_client.vcsp.manifests import manifests, self_path
from clr_client.vcsp.model import ADOPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from clr_client.vcsp.model import ItemContent, PublishedItem, PublishedLibrary

log = logging.getLogger("clr.publish")

OnProgress: TypeAlias = "Callable[[int, int, str], object]"

STATE = ".clr-state.json"
DIGESTS = ".clr-digests.json"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """A folder's manifests as they are now: the library, their texts by path, and whether any of them changed."""

    library: PublishedLibrary
    texts: dict[str, bytes]
    changed: bool
    held: tuple[Held, ...]
    warnings: tuple[str, ...]


def write(folder: Path, name: str, on_progress: OnProgress) -> Catalogue:
    """Bring the manifests of a folder up to what is in it.

    :raises ManifestError: manifests in it cannot be understood.
    """
    previous = _previous(folder)
    here = {item.key: item for item in previous.items} if previous else {}
    contents, held, warnings = _contents(folder, on_progress)
    stays = [entry.key for entry in held if entry.key in here and _is_there(folder, here[entry.key])]
    selection = select(previous, contents, stays)
    library = next_library(previous, name, selection.contents, now=datetime.now(UTC), href_style="plain")
    texts = _texts(library)
    changed = [path for path, text in texts.items() if _replace(folder / path, text)]
    _drop_old_manifests(folder, here.values(), library)
    return Catalogue(library, texts, bool(changed), (*held, *selection.held), tuple(warnings))


def _previous(folder: Path) -> PublishedLibrary | None:
    state, lib, items = folder / STATE, folder / "lib.json", folder / "items.json"
    known: PublishedLibrary | None = None
    if state.is_file():
        try:
            known = record.load(state.read_bytes())
        except ManifestError as error:
            log.warning("%s: %s; ids and versions are taken from lib.json and items.json", state, error)
    if not lib.is_file():
        return known
    found = _item_manifests(folder) if known is None else ()
    try:
        published = record.adopt(lib.read_bytes(), items.read_bytes() if items.is_file() else None, found)
    except ManifestError as error:
        if known is None:
            raise ManifestError(
                f"{lib}: {error}", "Restore it from a backup, or remove it: then the library gets a new id"
            ) from error
        return known
    return published if known is None else _raised(known, published)


def _item_manifests(folder: Path) -> Iterator[bytes]:
    """Yield the item.json files of the items there are, for when the list of items is damaged."""
    places = {folder / item.key / "item.json" for item in group(scan(folder))}
    for path in sorted(places | set((folder / "_items").glob("*/*/item.json"))):
        if path.is_file():
            yield path.read_bytes()


def _raised(known: PublishedLibrary, published: PublishedLibrary) -> PublishedLibrary:
    """Return our record, above what is published: an older record must not take versions back."""
    if known.id.lower() != published.id.lower():
        return known
    newer = {item.id.lower(): item for item in published.items}
    items = []
    for item in known.items:
        seen = newer.get(item.id.lower(), item)
        if seen.version > item.version:
            item = dataclasses.replace(
                item,
                version=seen.version,
                content_version=max(item.content_version, seen.content_version),
                etag=max(item.etag, seen.etag),
                files=tuple(dataclasses.replace(file, digest="") for file in item.files),
            )
        items.append(item)
    if published.version <= known.version:
        return dataclasses.replace(known, items=tuple(items))
    return dataclasses.replace(known, version=published.version, href_style=ADOPTED, items=tuple(items))


def _contents(folder: Path, on_progress: OnProgress) -> tuple[dict[str, ItemContent], list[Held], list[str]]:
    digests = DigestCache.load(folder / DIGESTS)
    contents: dict[str, ItemContent] = {}
    held: list[Held] = []
    warnings: list[str] = []
    items = group(scan(folder))
    total = sum(file.size for item in items for file in item.files)
    done = 0

    def advance(name: str, count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total, name)

    for item in items:
        before = done
        try:
            found = verify(item, folder, digests, unpack=False, on_read=advance)
        except HeldError as error:
            held.append(Held(item.key, error.message))
        else:
            contents[item.key] = content_of(found, item)
            warnings += [f"{item.key}: {warning}" for warning in found.warnings]
        advance(item.key, before + sum(file.size for file in item.files) - done)
    digests.save(folder / DIGESTS)
    return contents, held, warnings


def _is_there(folder: Path, item: PublishedItem) -> bool:
    """Whether a held item's published files still lie there unchanged in size: only then can it stay published."""
    base = folder / (item.key.rpartition("/")[0] if item.key_is_file else item.key)
    try:
        return all((base / file.name).stat().st_size == file.size for file in item.files)
    except OSError:
        return False


def _texts(library: PublishedLibrary) -> dict[str, bytes]:
    """Return what is to be written by path, in that order: nothing is referenced before it is there."""
    texts = manifests(library)
    items = {self_path(library, item): texts.item[item.id] for item in library.items}
    return {**items, "items.json": texts.items, STATE: record.dump(library), "lib.json": texts.lib}


def _drop_old_manifests(folder: Path, before: Iterable[PublishedItem], library: PublishedLibrary) -> None:
    """Remove the manifests of items that are gone, and of single-file items' earlier versions."""
    current = {folder / self_path(library, item) for item in library.items}
    for manifest in (folder / item.key / "item.json" for item in before if not item.key_is_file):
        if manifest not in current:
            manifest.unlink(missing_ok=True)
    for manifest in (folder / "_items").glob("*/*/item.json"):
        if manifest not in current:
            remove(manifest.parent)
            with suppress(OSError):
                manifest.parent.parent.rmdir()


def _replace(path: Path, data: bytes) -> bool:
    """Replace a file unless it holds ``data`` already; whether it did."""
    if path.is_file() and path.read_bytes() == data:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
    return True
