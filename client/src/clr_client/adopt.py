"""A directory that the original Content Library Rsync left becomes ours, with its library's identity.

The original kept one flat tree: folders of templates with lib.json, items.json and an item.json each. Everything in it
moves into ``mirror/`` by renames within the volume, so nothing has to cross the line again; ids and versions are read
from its manifests. An interrupted move is finished by the next start.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from clr_client.disk import sync_folder, unusable
from clr_client.errors import ManifestError, StoreError
from clr_client.vcsp import record

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.store import Store
    from clr_client.vcsp.model import PublishedLibrary

log = logging.getLogger("clr.adopt")

MOVING = ".adopting"
OURS = frozenset({"mirror", "items", "generations", "current", "basis", "damaged", "pinned"})
OUR_FILES = frozenset(
    {
        "status.json",
        "progress.json",
        "running.json",
        "told.json",
        "digests.json",
        "unconfirmed.json",
        "settled.json",
        "known_hosts",
    }
)


def move_original(store: Store) -> None:
    """Turn a flat tree with a lib.json into ``mirror/``; do nothing where there is none.

    :raises StoreError: the volume holds something that is neither ours nor an original's.
    """
    moving = store.root / MOVING
    try:
        if (store.root / "lib.json").is_file() and not store.current.is_symlink():
            log.info("adopting the library that the original Content Library Rsync left in %s", store.root)
            moving.mkdir(exist_ok=True)
            (store.root / "lib.json").rename(moving / "lib.json")
        if moving.is_dir():
            _finish(store, moving)
        elif not store.current.is_symlink():
            _refuse_foreign(store)
    except OSError as error:
        raise unusable(store.root, error) from error


def _finish(store: Store, moving: Path) -> None:
    """Move the rest beside lib.json, which went first and so marks a move that is under way."""
    for entry in sorted(store.root.iterdir()):
        if not entry.name.startswith(".") and entry.name not in OUR_FILES | {"lost+found"}:
            entry.rename(moving / entry.name)
    sync_folder(moving)
    moving.rename(store.mirror)
    sync_folder(store.root)


def _refuse_foreign(store: Store) -> None:
    known = OURS | OUR_FILES | {"lost+found"}
    names = (entry.name for entry in store.root.iterdir()) if store.root.is_dir() else ()
    foreign = sorted(name for name in names if not name.startswith(".") and name not in known)
    if foreign:
        raise StoreError(
            f"{store.root} holds files that are not this program's: {', '.join(foreign[:5])}",
            f"Mount an empty folder there; templates that are here already go into {store.mirror} to spare the line",
        )


def original_library(store: Store) -> PublishedLibrary | None:
    """Read the identity of an adopted original from the manifests in ``mirror/``; None where there was none."""
    try:
        lib = (store.mirror / "lib.json").read_bytes()
    except OSError:
        return None
    listed = store.mirror / "items.json"
    single = (path.read_bytes() for path in sorted(store.mirror.glob("*/item.json")))
    try:
        return record.adopt(lib, listed.read_bytes() if listed.is_file() else None, single)
    except ManifestError as error:
        raise ManifestError(
            f"the original's lib.json in {store.mirror} cannot be read: {error}",
            "Restore it from a backup to keep the library's id, or remove it: then the library is a new one and must be"
            " subscribed to again",
        ) from error


def manifest_paths(store: Store) -> set[str]:
    """Paths of the original's manifests in ``mirror/``."""
    found = [store.mirror / "lib.json", store.mirror / "items.json", *store.mirror.glob("*/item.json")]
    return {path.relative_to(store.mirror).as_posix() for path in found}


def waiting_library(store: Store) -> PublishedLibrary | None:
    """Return the adopted library as long as items of it are held: its manifests stay in ``mirror/`` until then."""
    try:
        return original_library(store)
    except ManifestError:
        return None
