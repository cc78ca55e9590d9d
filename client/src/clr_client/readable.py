"""Readable paths of a generation: links under human names to the item trees, and the way back from them to keys."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from clr_client.vcsp.model import PublishedItem

log = logging.getLogger("clr.store")

RESERVED = frozenset({"_items", "_clr", "lib.json", "items.json"})
"""What a generation itself holds and the site's own page, in lower case; no readable path begins with it or a dot."""


def link_names(folder: Path, items: Iterable[PublishedItem]) -> None:
    """Give each item its readable path. Subscribers do not need it, so an item whose path is taken goes without."""
    by_key = {item.key: item for item in items}
    crowded = {parent for key in by_key for parent in _parents(key)}
    for key in sorted(by_key):
        top = key.partition("/")[0].lower()
        if top in RESERVED or top.startswith("."):
            continue
        try:
            _link_name(folder, by_key[key], is_crowded=key in crowded)
        except (FileExistsError, NotADirectoryError):
            log.warning("%s has no readable path, because another item lies in its way", key)


def _link_name(folder: Path, item: PublishedItem, *, is_crowded: bool) -> None:
    """Link an item's tree, or each of its files where other items lie below it."""
    tree = "../" * item.key.count("/") + f"../../items/{item.uuid}/{item.version}"
    place = folder / item.key
    place.parent.mkdir(parents=True, exist_ok=True)
    if item.key_is_file:
        place.symlink_to(f"{tree}/{item.files[0].name}")
    elif is_crowded:
        place.mkdir(exist_ok=True)
        for name in (*(file.name for file in item.files), "item.json"):
            (place / name).symlink_to(f"../{tree}/{name}")
    else:
        place.symlink_to(tree)


def _parents(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rpartition("/")[0]
        yield key


def read_links(folder: Path) -> dict[tuple[str, str], tuple[str, bool]]:
    """Read a generation's readable paths back: uuid and version of a tree to the item's key, and if it is a file's."""
    keys: dict[tuple[str, str], tuple[str, bool]] = {}
    for base, folders, names in os.walk(folder):
        here = Path(base)
        for path in (here / name for name in sorted([*folders, *names])):
            inside = path.readlink().parts if path.is_symlink() and path != folder / "_items" else ()
            inside = inside[inside.index("items") + 1 :] if "items" in inside else ()
            if len(inside) == 2:
                keys[inside[0], inside[1]] = path.relative_to(folder).as_posix(), False
            elif len(inside) == 3:
                is_listed = (here / "item.json").is_symlink()
                key = here if is_listed else path
                keys.setdefault((inside[0], inside[1]), (key.relative_to(folder).as_posix(), not is_listed))
    return keys
