"""Basis files: what rsync may build a new file from, so that only what is new crosses the line.

rsync takes the file at the target's own path as basis, else the one at the same path below ``basis/``. So:

- for a file that is new by name, ``basis/`` gets a hard link to its likeliest predecessor (a template rebuilt under a
  new folder name);
- for a file whose transfer was cut, what had arrived is joined with the old version and takes the target's place in the
  mirror. rsync alone would use the partial file *instead of* the old version and fetch again what the old version has.
  ``basis/`` keeps the old version, so that the next cut can be joined with it.

``basis/`` is thrown away when all files have arrived. All of this only spares the line: what fails is left out.
"""

from __future__ import annotations

import logging
import math
import os
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from clr_client.disk import UNFINISHED, link

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from clr_client.files import FileInfo

log = logging.getLogger("clr.seed")

LEAST_SIZE = 64 * 1024
"""Files below this many bytes are not worth a search."""
LEAST_LIKENESS = 0.6
MOST_COMPARISONS = 50_000
"""A few seconds' work."""
COMPARED = 200
"""Characters of a path, from its end, that are compared."""
PIECE = 1 << 20
LEAST_BLOCK = 700
MOST_BLOCK = 128 * 1024
"""Of rsync's blocks, in bytes (rsync.h: BLOCK_SIZE, MAX_BLOCK_SIZE)."""
NEVER = 1
"""Modification time (seconds since the epoch) of joined files: no template's, so that none is taken for complete."""


def predecessors(wanted: Iterable[FileInfo], have: Mapping[str, FileInfo]) -> dict[str, str]:
    """Choose for each wanted file the file here that it most likely grew out of.

    :param have: files of the mirror by path.
    :returns: wanted path to path of its predecessor: its own path when it is here; else the same name in the most
        similar folder; else the most similar path with the same suffix. Files without a likely one are left out.
    """
    wanted = list(wanted)
    found = {file.path: file.path for file in wanted if file.path in have}
    new = [file for file in wanted if file.path not in have and file.size >= LEAST_SIZE]
    candidates = [file for file in have.values() if file.size >= LEAST_SIZE]
    by_name: dict[str, list[str]] = {}
    by_suffix: dict[str, list[str]] = {}
    for file in candidates:
        by_name.setdefault(file.name, []).append(file.path)
        by_suffix.setdefault(file.suffix, []).append(file.path)
    comparisons = MOST_COMPARISONS
    for file in new:
        likely = by_name.get(file.name) or by_suffix.get(file.suffix, [])
        comparisons -= len(likely)
        if comparisons < 0:
            break
        likeness, path = max(((_likeness(file.path, path), path) for path in likely), default=(0.0, ""))
        if likeness >= LEAST_LIKENESS or path.rpartition("/")[2] == file.name:
            found[file.path] = path
    return found


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one[-COMPARED:], other[-COMPARED:], autojunk=False).ratio()


def lay_out(older: Mapping[str, str], partials: Mapping[str, Path], mirror: Path, basis: Path) -> None:
    """Prepare one transfer. What an earlier attempt prepared is used on.

    :param older: wanted path to path of its predecessor in the mirror.
    :param partials: by path in the mirror, the partial file that a cut transfer left; one that is joined is removed.
    """
    for path, predecessor in older.items():
        partial = partials.get(path)
        if partial is None and predecessor == path:
            continue
        target, old = mirror / path, basis / path
        try:
            if not (_is_joined(target) and old.is_file()):
                old.parent.mkdir(parents=True, exist_ok=True)
                old.unlink(missing_ok=True)
                link(mirror / predecessor, old)
            if partial is not None:
                _join(partial, old, target)
        except OSError as error:
            log.warning("%s is fetched without an older version to build on: %s", path, error)


def _is_joined(target: Path) -> bool:
    """Whether the file in the mirror is what an earlier attempt joined, and not a version of the template."""
    return target.is_file() and target.stat().st_mtime == NEVER


def _join(partial: Path, old: Path, target: Path) -> None:
    """Make ``target`` the partial file followed by the old version, unless it holds more of the new file already.

    rsync matches whole blocks only. What the partial file has beyond its last whole one could not be used and would
    move the old version's blocks, so it is left out.
    """
    old_size = old.stat().st_size
    useful = whole_blocks(partial.stat().st_size, old_size)
    if useful > _joined_bytes(target, old):
        unfinished = old.with_name(f"{UNFINISHED}{old.name}")
        try:
            with unfinished.open("wb") as joined:
                for part, size in ((partial, useful), (old, old_size)):
                    with part.open("rb") as source:
                        _append(source.fileno(), joined.fileno(), size)
            os.utime(unfinished, (NEVER, NEVER))
            unfinished.rename(target)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
    partial.unlink()


def block_length(size: int) -> int:
    """Return the length of the blocks, in bytes, in which rsync compares a basis file of ``size`` bytes.

    Source: ``sum_sizes_sqroot`` in rsync's generator.c.
    """
    return min(max(math.isqrt(size) & ~7, LEAST_BLOCK), MOST_BLOCK)


def whole_blocks(partial: int, old: int) -> int:
    """Return how much of a partial file to put before an old version, both sizes in bytes: whole blocks of the two."""
    useful = partial
    while excess := useful % block_length(useful + old):
        useful -= excess
    return useful


def _joined_bytes(target: Path, old: Path) -> int:
    """Return how much of the new file an earlier join put before the old version."""
    if not (_is_joined(target) and old.is_file()):
        return 0
    return max(0, target.stat().st_size - old.stat().st_size)


def _append(source: int, target: int, size: int) -> None:
    """Append the next ``size`` bytes, shared instead of copied where the file system can do that."""
    try:
        while size > 0 and (copied := os.copy_file_range(source, target, size)):
            size -= copied
    except OSError:
        pass  # not on this file system, or not between these files
    if size > 0:
        with os.fdopen(os.dup(source), "rb") as rest, os.fdopen(os.dup(target), "ab") as joined:
            while piece := rest.read(min(size, PIECE)):
                joined.write(piece)
                size -= len(piece)


def arrived_bytes(
    wanted: Iterable[FileInfo],
    partials: Mapping[str, Path],
    mirror: Path,
    basis: Path,
) -> int:
    """Return how many bytes of the wanted files earlier attempts brought, in partial or joined files."""
    total = 0
    for file in wanted:
        kept = partials[file.path].stat().st_size if file.path in partials else 0
        kept = max(kept, _joined_bytes(mirror / file.path, basis / file.path))
        total += min(kept, file.size)
    return total
