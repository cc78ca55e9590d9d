"""What interrupted transfers leave in a mirror: partial files, and temporary files of an rsync that was
killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client.transport.rsync import PARTIAL_DIR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
# rsync writes NAME as .NAME.XXXXXX beside it. Dotfiles never come over, so nothing of the library is so called.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[A-Za-z0-9]{6}", re.DOTALL)


def strays(mirror: Path) -> Iterator[Path]:
    """Temporary files that a killed rsync left. Only right while no transfer runs: then they are in use."""
    for folder, _, names in os.walk(mirror):
        yield from _strays(folder, names)


def _strays(folder: str, names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        is_stray = _TEMPORARY.fullmatch(name) and not folder.endswith(f"/{PARTIAL_DIR}")
        if is_stray and _is_file(path := Path(folder, name)):
            yield path


def partials(mirror: Path) -> dict[str, Path]:
    """The partial files in a mirror, by the path (relative to it) that each of them is the beginning of."""
    found = {}
    for folder, _, names in os.walk(mirror):
        if folder.endswith(f"/{PARTIAL_DIR}"):
            parent = Path(folder)
            for name in names:
                if _is_file(parent / name):
                    found[str((parent.parent / name).relative_to(mirror))] = parent / name
    return found


def rescue(mirror: Path) -> int:
    """Turn what a killed rsync left into partial files, so that it is not sent again; return how many.

    A temporary file is the beginning of the new version, as a partial file is: the longer one is kept.
    Folders for partial files that are empty are removed. Call it while no transfer runs.

    :raises OSError: the mirror cannot be written.
    """
    count = 0
    found: list[Path] = []
    folders: list[str] = []
    for folder, _, names in os.walk(mirror):
        found += _strays(folder, names)
        if folder.endswith(f"/{PARTIAL_DIR}"):
            folders.append(folder)
    for stray in found:
        match = _TEMPORARY.fullmatch(stray.name)
        partial = stray.parent / PARTIAL_DIR / (match["name"] if match else stray.name)
        if stray.stat().st_size > (partial.stat().st_size if _is_file(partial) else 0):
            partial.parent.mkdir(mode=0o700, exist_ok=True)
            stray.replace(partial)
            count += 1
        else:
            stray.unlink()
    for folder in folders:
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return count


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
