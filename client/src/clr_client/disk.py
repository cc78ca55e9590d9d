"""Writing that survives a crash: every function forces what it wrote to disk, or replaces in one step."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from clr_client.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path

UNFINISHED = ".new-"
"""How names of unfinished files and folders begin; the next run clears them away."""

NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What a file system answers that has no links of the kind asked for."""


def write_file(path: Path, data: bytes) -> None:
    """Write a file and force it to disk."""
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new. A failure leaves nothing behind."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    try:
        write_file(unfinished, data)
        unfinished.rename(path)
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def swap_file(path: Path, data: bytes) -> None:
    """Replace a file in one step, without forcing it to disk: for what is worth nothing after a crash."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}")
    unfinished.write_bytes(data)
    unfinished.rename(path)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links; its content is forced to disk."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (*NO_LINKS, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(source, target, follow_symlinks=False)
    handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def unusable(root: Path, error: OSError, what: str = "the library volume") -> StoreError:
    """Say what is wrong with the volume and what to do."""
    return StoreError(f"{what} {root} cannot be used: {error}", remedy(error.errno))


def remedy(number: int | None) -> str:
    """Return what to do about a volume that answers with the error ``number`` (errno); may be empty."""
    remedies = {
        errno.ENOSPC: "Make room on the volume; what was published is still served",
        errno.EDQUOT: "Raise the quota; what was published is still served",
        errno.EROFS: "Mount it writable",
        errno.EACCES: "Give its owner to the user that the client runs as (SYNCER_UID)",
        errno.EPERM: "Give its owner to the user that the client runs as (SYNCER_UID)",
        errno.EIO: "The disk is failing; what was published is still served",
    }
    return remedies.get(number or 0, "")
