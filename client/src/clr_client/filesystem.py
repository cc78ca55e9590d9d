"""What the file system of a library volume can do."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clr_client import lock
from clr_client.disk import NO_LINKS, UNFINISHED
from clr_client.errors import StoreError, Trouble

if TYPE_CHECKING:
    from pathlib import Path

NO_SYMLINKS = Trouble(
    "the file system of the library volume {root} has no symbolic links, by which a library is published",
    "Use one that has: ext4, XFS and Btrfs do; FAT and exFAT do not",
)


def refuse_without_links(root: Path, folder: Path) -> None:
    """Refuse a file system on which nothing could be published, before anything is fetched for it.

    :param folder: an empty or other folder of the volume to try it in.
    :raises StoreError: it has no symbolic links, or does not follow them.
    """
    trial = folder / f"{UNFINISHED}link"
    try:
        trial.symlink_to(folder)
        found = trial.is_dir()
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        found = False
    finally:
        trial.unlink(missing_ok=True)
    if not found:
        raise StoreError(*NO_SYMLINKS.told(root=root))


def shares_files(root: Path) -> bool:
    """Whether a file can have a second name here; without hard links an item tree takes copies, and their space."""
    trial = root / f"{UNFINISHED}lock"
    try:
        trial.unlink(missing_ok=True)
        os.link(root / lock.NAME, trial)
        trial.unlink()
    except OSError as error:
        return error.errno not in NO_LINKS
    return True


def is_caseless(root: Path) -> bool:
    """Whether names that differ only by case mean the same file here."""
    return os.path.lexists(root / lock.NAME.upper())
