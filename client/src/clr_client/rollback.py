"""Publishing an older generation again: its items come back, and all versions still grow."""

from __future__ import annotations

import dataclasses
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.errors import ManifestError
from clr_client.store import TreeSource, replace_file
from clr_client.vcsp.build import next_library
from clr_client.vcsp.model import as_content

if TYPE_CHECKING:
    from clr_client.settings import Settings
    from clr_client.store import Store
    from clr_client.vcsp.model import PublishedItem, PublishedLibrary

log = logging.getLogger("clr.rollback")


def roll_back(settings: Settings, store: Store, number: int | None) -> int:
    """Publish generation ``number`` again (None: the one before the current) and keep syncs from publishing over it.

    :returns: the number of the new generation.
    :raises ManifestError: there is no such generation, or nothing was ever published.
    """
    with store.locked("rollback"):
        store.prepare()
        current = store.published()
        here = store.current_number()
        if current is None or here is None:
            raise ManifestError("nothing was ever published, so there is nothing to roll back to", "Run: clr sync")
        older = [kept for kept in store.generation_numbers() if kept < here]
        if number is None and not older:
            raise ManifestError("only one generation is kept, so there is none to roll back to", "See LIBRARY_KEEP")
        target = older[-1] if number is None else number
        wanted = store.read_generation(target)
        before = _revive(store, current, wanted)
        library = next_library(
            before,
            wanted.name,
            [as_content(item) for item in wanted.items],
            now=datetime.now(UTC),
            href_style=settings.library_hrefs,
            per_item_generations=settings.library_generation_num == "item",
        )
        if library is before and before != current:
            library = dataclasses.replace(before, version=current.version + 1)
        replace_file(store.pin, f"{target}\n".encode())
        if library == current:
            return here
        return store.publish(library, _sources(store, library, wanted))


def release(store: Store) -> bool:
    """Let syncs publish again; whether they were kept from it."""
    with store.locked("rollback"):
        was_pinned = store.pin.exists()
        store.pin.unlink(missing_ok=True)
        return was_pinned


def _revive(store: Store, current: PublishedLibrary, wanted: PublishedLibrary) -> PublishedLibrary:
    """Return ``current`` with the items of ``wanted`` that are gone since, one version above all they ever had."""
    keys = {item.key for item in current.items}
    ids = {item.id for item in current.items}
    newest: dict[str, PublishedItem] = {}
    for number in store.generation_numbers():
        for item in store.read_generation(number).items:
            if item.id not in newest or newest[item.id].version < item.version:
                newest[item.id] = item
    revived = [
        dataclasses.replace(newest[item.id], key=item.key, version=newest[item.id].version + 1)
        for item in wanted.items
        if item.key not in keys and item.id not in ids
    ]
    return dataclasses.replace(current, items=(*current.items, *revived))


def _sources(store: Store, library: PublishedLibrary, wanted: PublishedLibrary) -> dict[str, TreeSource]:
    trees = {item.key: (store.tree(item), item.files) for item in wanted.items}
    return {
        item.id: TreeSource({file.name: trees[item.key][0] / file.name for file in trees[item.key][1]})
        for item in library.items
    }
