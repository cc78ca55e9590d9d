"""Publishing an older generation again: its items come back, and all versions still grow."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from clr_client.disk import sync_folder, unusable
from clr_client.errors import ManifestError, StoreError
from clr_client.integrity.audit import flaw
from clr_client.store import TreeSource
from clr_client.sync import describe_library, record
from clr_client.vcsp.build import next_library
from clr_client.vcsp.model import as_content

if TYPE_CHECKING:
    from clr_client.settings import Settings
    from clr_client.store import Store
    from clr_client.vcsp.model import PublishedItem, PublishedLibrary

log = logging.getLogger("clr.rollback")


def roll_back(settings: Settings, store: Store, number: int | None) -> int:
    """Publish generation ``number`` again (None: the one before) and keep syncs from publishing over it.

    :returns: the number of the new generation.
    :raises ManifestError: there is no such generation, or nothing was ever published.
    """
    with store.locked("rollback"):
        store.prepare()
        try:
            published = _roll_back(settings, store, number)
            record(store, lambda status: dataclasses.replace(status, published=True, library=describe_library(store)))
        except OSError as error:
            raise unusable(store.root, error) from error
        return published


def _roll_back(settings: Settings, store: Store, number: int | None) -> int:
    current = store.published()
    here = store.current_number()
    if current is None or here is None:
        raise ManifestError("nothing was ever published, so there is nothing to roll back to", "Run: clr sync")
    target = number or _before(store, here)
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
    _refuse_damaged(store, library, wanted, target)
    store.keep_to(target, 0 if library == current else here)
    try:
        return here if library == current else store.publish(library, _sources(store, library, wanted))
    finally:
        with suppress(OSError):  # else the next run does that
            store.settle_pin()


def _before(store: Store, here: int) -> int:
    """Return the generation before the current one; after a rollback, before the one rolled back to."""
    newest = store.rolled_back_to() or here
    older = [kept for kept in store.generation_numbers() if kept < newest]
    if not older:
        raise ManifestError(
            f"no generation before {newest} is kept, so there is none to roll back to", "See LIBRARY_KEEP"
        )
    return older[-1]


def release(store: Store) -> bool:
    """Let syncs publish again; whether they were kept from it.

    :raises StoreError: the volume cannot be written to; they are still kept from it.
    """
    with store.locked("rollback"):
        was_pinned = store.pin.exists()
        try:
            store.pin.unlink(missing_ok=True)
            sync_folder(store.root)
        except OSError as error:
            raise unusable(store.root, error) from error
        return was_pinned


def _revive(store: Store, current: PublishedLibrary, wanted: PublishedLibrary) -> PublishedLibrary:
    """Return ``current`` with the items of ``wanted`` that are gone since, one version above all they ever had."""
    keys = {item.key for item in current.items}
    ids = {item.id for item in current.items}
    newest: dict[str, PublishedItem] = {}
    for number in store.generation_numbers():
        with suppress(ManifestError):
            for item in store.read_generation(number).items:
                if item.id not in newest or newest[item.id].version < item.version:
                    newest[item.id] = item
    revived = [
        dataclasses.replace(newest[item.id], key=item.key, version=newest[item.id].version + 1)
        for item in wanted.items
        if item.key not in keys and item.id not in ids
    ]
    return dataclasses.replace(current, items=(*current.items, *revived))


def _refuse_damaged(store: Store, library: PublishedLibrary, wanted: PublishedLibrary, target: int) -> None:
    """Read what would come back, which no verification has read since it was replaced."""
    back = {item.key for item in library.items if not store.tree(item).is_dir()}
    for item in wanted.items:
        for file in item.files if item.key in back else ():
            if reason := flaw(store.tree(item) / file.name, file):
                raise StoreError(
                    f"generation {target} cannot come back: {file.name} of {item.name!r} {reason}",
                    "Nothing was changed. Name another generation: clr rollback NUMBER",
                )


def _sources(store: Store, library: PublishedLibrary, wanted: PublishedLibrary) -> dict[str, TreeSource]:
    trees = {item.key: (store.tree(item), item.files) for item in wanted.items}
    return {
        item.id: TreeSource({file.name: trees[item.key][0] / file.name for file in trees[item.key][1]})
        for item in library.items
    }
