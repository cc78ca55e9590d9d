"""From the mirror to a published generation: verify, build the next library, publish it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.content.digests import DigestCache
from clr_client.content.names import assign_names, fold
from clr_client.content.verify import VerifiedItem, verify
from clr_client.errors import HeldError, TreeError
from clr_client.integrity.damages import note
from clr_client.integrity.repair import rotten
from clr_client.plan import Action, parts
from clr_client.reporting.context import about
from clr_client.reporting.status import Held
from clr_client.store import Store, TreeSource
from clr_client.threads import to_end
from clr_client.vcsp.build import next_library
from clr_client.vcsp.model import FileContent, ItemContent, as_content

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clr_client.content.items import SourceItem
    from clr_client.plan import ItemPlan
    from clr_client.pull import Pulled
    from clr_client.settings import Settings
    from clr_client.vcsp.model import PublishedItem, PublishedLibrary

log = logging.getLogger("clr.sync")

ROTTEN = "its files here have changed by themselves, so they are fetched again"


@dataclass(frozen=True, slots=True)
class Selection:
    """What a library shall hold next, and what is held back with the reason."""

    contents: tuple[ItemContent, ...]
    held: tuple[Held, ...]


async def publish(
    settings: Settings,
    store: Store,
    published: PublishedLibrary | None,
    pulled: Pulled,
    original: PublishedLibrary | None = None,
) -> tuple[PublishedLibrary | None, tuple[Held, ...]]:
    """Verify what arrived, build the next library from it and from what stays, and publish it if it differs.

    :param original: an adopted library some of whose items may still wait to be published under their ids.
    :returns: the library as published now, None if there is none yet, and the items that are held.
    :raises StoreError: the volume cannot take the new generation; what was published stays.
    """
    verified, held = await _verify(store, published, pulled)
    while True:
        library, before, refused = _next(settings, store, published, original, pulled, verified, held)
        if library == published and store.current_number() is not None and store.holds(library):
            break
        if store.current_number() is None and not library.items and (held or pulled.stopped):
            return None, tuple(held)  # subscribers wait for a first library that has something in it
        sources = _tree_sources(store, library, before, {key: item for key, (item, _) in verified.items()})
        try:
            number = await to_end(lambda: store.publish(library, sources))  # noqa: B023 - awaited in this turn
        except TreeError as error:
            held.append(Held(error.key, error.message))
            del verified[error.key]
            continue
        log.info("published generation %d: library version %d, %d items", number, library.version, len(library.items))
        break
    serves = {item.key: item.version for item in library.items}
    return library, tuple(dataclasses.replace(item, serves=serves.get(item.key)) for item in (*held, *refused))


def _next(
    settings: Settings,
    store: Store,
    published: PublishedLibrary | None,
    original: PublishedLibrary | None,
    pulled: Pulled,
    verified: Mapping[str, tuple[VerifiedItem, SourceItem]],
    held: Iterable[Held],
) -> tuple[PublishedLibrary, PublishedLibrary | None, tuple[Held, ...]]:
    """Return the next library, the one that it follows, and what its names keep out."""
    contents = {key: content_of(*pair) for key, pair in verified.items()}
    before = _with_waiting(published, original, contents)
    stays = {item.key for item in pulled.plan.having(Action.LEAVE)} | {item.key for item in held}
    here = {item.key: item for item in before.items} if before else {}
    selection = select(before, contents, [key for key in stays if key in here and store.find_tree(here[key])])
    library = next_library(
        before,
        settings.library_name,
        selection.contents,
        now=datetime.now(UTC),
        href_style=settings.library_hrefs,
        per_item_generations=settings.library_generation_num == "item",
    )
    return library, before, selection.held


def _with_waiting(
    published: PublishedLibrary | None, original: PublishedLibrary | None, contents: Mapping[str, ItemContent]
) -> PublishedLibrary | None:
    """Add the items of an adopted library that could not be published so far and now can: their ids live on."""
    if published is None or original is None or original.id != published.id:
        return published or original
    keys, ids = {item.key for item in published.items}, {item.id for item in published.items}
    waiting = [item for item in original.items if item.key in contents and item.key not in keys and item.id not in ids]
    return dataclasses.replace(published, items=(*published.items, *waiting)) if waiting else published


async def _verify(
    store: Store, published: PublishedLibrary | None, pulled: Pulled
) -> tuple[dict[str, tuple[VerifiedItem, SourceItem]], list[Held]]:
    """Verify the items that should be published. One that cannot be is held; the others go on."""
    digests = pulled.digests or DigestCache.load(store.digests)
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_verify_items, store, published, pulled, digests, stop)
    finally:
        stop.set()
        try:
            digests.save(store.digests)
        except OSError as error:
            log.warning("digests cannot be kept, so files are read again next time: %s", error)


def _verify_items(
    store: Store, published: PublishedLibrary | None, pulled: Pulled, digests: DigestCache, stop: threading.Event
) -> tuple[dict[str, tuple[VerifiedItem, SourceItem]], list[Held]]:
    verified: dict[str, tuple[VerifiedItem, SourceItem]] = {}
    held: list[Held] = []
    here = {item.key: item for item in published.items} if published else {}
    for item in pulled.plan.items:
        if item.source is None or not _is_wanted(item, held):
            continue
        if reason := unfinished(item.source, pulled):
            held.append(Held(item.key, reason))
            continue
        try:
            found = verify(item.source, store.mirror, digests, stop=stop)
        except HeldError as error:
            if stop.is_set():
                break
            has_rotted = item.key in here and _note_rot(store, here[item.key], digests)
            held.append(Held(item.key, ROTTEN if has_rotted else error.message))
            continue
        differs = item.key in here and _sha256(found) != _digests(here[item.key])
        if differs and _note_rot(store, here[item.key], digests):
            held.append(Held(item.key, ROTTEN))
            continue
        verified[item.key] = found, item.source
        if item.action is not Action.KEEP:
            for warning in found.warnings:
                log.warning("%s: %s", item.key, warning, extra=about(item=item.key))
    return verified, held


def _note_rot(store: Store, item: PublishedItem, digests: DigestCache) -> bool:
    """Whether files of an item have changed by themselves, which is no new version of it; they are to be mended."""
    found = rotten(store, item, digests)
    for damage in found:
        note(store, damage)
    return bool(found)


def _is_wanted(item: ItemPlan, held: list[Held]) -> bool:
    if item.action in {Action.ADD, Action.UPDATE, Action.KEEP}:
        return True
    if item.source is not None and item.source.problem and item.note == item.source.problem:
        held.append(Held(item.key, item.source.problem))
    return False


def unfinished(source: SourceItem, pulled: Pulled) -> str:
    """Why an item's transfer is not known to be complete; empty when it is."""
    missing = [file for file in parts(source) if pulled.mirror.get(file.path) != file]
    if missing:
        why = pulled.stopped or next((line for line in pulled.problems if missing[0].name in line), "")
        return f"{missing[0].name} did not arrive whole: {why or 'it changed or was unreadable at the server'}"
    if any(file.path in pulled.unconfirmed for file in parts(source)):
        return "it arrived, but the line was cut before the server could confirm that it did not change meanwhile"
    return ""


def select(published: PublishedLibrary | None, verified: Mapping[str, ItemContent], stays: Iterable[str]) -> Selection:
    """Choose what the next library holds. Pure.

    :param verified: what can be published, by key.
    :param stays: keys of items that stay as they are published, if they are.
    """
    here = {item.key: item for item in published.items} if published else {}
    contents = dict(verified)
    kept = {key: as_content(here[key]) for key in stays if key in here}
    names, clashes = assign_names(
        {key: content.name for key, content in (contents | kept).items()},
        {key: item.name for key, item in here.items() if key in contents or key in kept},
    )
    used = {fold(name) for name in names.values()}
    for key in clashes:
        contents.pop(key, None)
        kept.pop(key, None)
        if key in here and fold(here[key].name) not in used:  # adopted libraries may hold one name twice
            used.add(fold(here[key].name))
            kept[key] = as_content(here[key])
    chosen = [dataclasses.replace(content, name=names[key]) for key, content in contents.items()]
    return Selection((*chosen, *kept.values()), tuple(Held(key, reason) for key, reason in clashes.items()))


def content_of(item: VerifiedItem, source: SourceItem) -> ItemContent:
    """Return a verified item in the form that manifests are built from."""
    return ItemContent(
        key=item.key,
        name=item.name,
        description=item.description,
        type=item.type,
        is_vapp_template=item.is_vapp_template,
        files=tuple(FileContent(file.name, file.size, f"sha256:{file.sha256}") for file in item.files),
        key_is_file=source.files[0].path == item.key and item.archive is None,
    )


def _tree_sources(
    store: Store,
    library: PublishedLibrary,
    published: PublishedLibrary | None,
    verified: Mapping[str, VerifiedItem],
) -> dict[str, TreeSource]:
    """Say for each item without a tree where its files come from: the mirror, else the item's published tree."""
    before = {item.id: item for item in published.items} if published else {}
    sources = {}
    for item in library.items:
        if store.tree(item).is_dir():
            continue
        found = verified.get(item.key)
        if found and _sha256(found) == _digests(item):
            files = {file.name: file.path for file in found.files if file.path is not None}
            sources[item.id] = TreeSource(files, found.archive)
        elif item.id in before and (tree := store.find_tree(before[item.id])):
            sources[item.id] = TreeSource({file.name: tree / file.name for file in item.files})
    return sources


def _sha256(item: VerifiedItem) -> dict[str, str]:
    return {file.name: f"sha256:{file.sha256}" for file in item.files}


def _digests(item: PublishedItem) -> dict[str, str]:
    return {file.name: file.digest for file in item.files}
