"""`clr publish`: manifests for any plain directory, in place and incrementally, for people who host elsewhere."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from clr_client import settled
from clr_client.disk import unusable
from clr_client.errors import LockedError, StoreError
from clr_client.settled import Settled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from clr_client.reporting.status import Held

OnProgress: TypeAlias = "Callable[[int, int, str], object]"

SETTLED = ".clr-settled.json"


@dataclass(frozen=True, slots=True)
class Published:
    """What `clr publish` did: the library's name and version, how many items it has, whether its manifests changed,
    what is held, and warnings.
    """

    name: str
    version: int
    items: int
    changed: bool = False
    held: tuple[Held, ...] = ()
    warnings: tuple[str, ...] = ()


def publish_directory(
    folder: Path, name: str, on_progress: OnProgress = lambda _done, _total, _name: None
) -> Published:
    """Write lib.json, items.json and each item.json for the templates in ``folder``, reading only what changed.

    The data is there already; an item's manifest is written before the list of items, and lib.json last, so that no
    reader meets a reference to what is absent. Manifests of other tools are adopted: ids stay, versions grow.

    :param on_progress: told the bytes looked at so far, the bytes there are, and the name of the file.
    :raises StoreError: the folder cannot be read or written.
    :raises ManifestError: manifests in it cannot be understood.
    :raises LockedError: another process publishes the same folder.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder", "Name the folder that holds the templates")
    if (folder / "_items").is_symlink() or any(
        (near / "generations").is_dir() for near in (folder, *folder.resolve().parents)
    ):
        raise StoreError(
            f"{folder} belongs to a client's library volume, which syncs publish by themselves",
            "Name a plain folder of templates",
        )
    try:
        with _locked(folder):
            return _publish(folder, name, on_progress)
    except OSError as error:
        raise unusable(folder, error, "the folder") from error


def _publish(folder: Path, name: str, on_progress: OnProgress) -> Published:
    templates = settled.folder_digest(folder, name)
    note = settled.load(folder / SETTLED)
    if note is not None and note.source == templates and note.here == _digest_of(folder, note.library["files"]):
        known = note.library
        return Published(known["name"], known["version"], known["items"], warnings=tuple(known["warnings"]))

    from clr_client import catalogue  # much to load, and of no use while nothing changes

    done = catalogue.write(folder, name, on_progress)
    library = done.library
    published = Published(library.name, library.version, len(library.items), done.changed, done.held, done.warnings)
    if templates and not done.held:
        described = {
            "name": published.name,
            "version": published.version,
            "items": published.items,
            "warnings": list(done.warnings),
            "files": list(done.texts),
        }
        settled.save(folder / SETTLED, Settled(templates, settled.contents_digest(done.texts.items()), described))
    return published


def _digest_of(folder: Path, files: Iterable[str]) -> str:
    """Return a digest of what lies in a folder under these names, empty if one cannot be read."""
    try:
        return settled.contents_digest((file, _content(f"{folder}/{file}")) for file in files)
    except OSError:
        return ""


def _content(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - one of very many
        return file.read()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LockedError(f"another process publishes {folder} just now") from None
    finally:
        os.close(handle)
