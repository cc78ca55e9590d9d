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

import errno
import fcntl
import logging
import math
import os
import struct
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from clr_client import blocks
from clr_client.disk import UNFINISHED, link
from clr_client.transport import PARTIAL_DIR

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
FICLONERANGE = 0x4020940D
"""linux/fs.h: _IOW(0x94, 13, struct file_clone_range)."""
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


def lay_out(
    older: Mapping[str, str],
    partials: Mapping[str, Path],
    mirror: Path,
    basis: Path,
    lengths: Mapping[str, int],
    spare: float = math.inf,
) -> None:
    """Prepare one transfer. What an earlier attempt prepared is used on.

    :param older: wanted path to path of its predecessor in the mirror.
    :param partials: by path in the mirror, the partial file that a cut transfer left; one that is joined is removed.
    :param lengths: by path, the length of the blocks in which rsync is going to compare, in bytes.
    :param spare: bytes that the volume can take besides the transfer. rsync completes a partial file where it lies, but
        writes what a joined one becomes beside it: where there is no room for that, the partial file is all it gets.
    """
    for path, predecessor in older.items():
        partial, target, old = partials.get(path), mirror / path, basis / path
        is_joined = _is_joined(target) and old.is_file()
        if partial is None and predecessor == path and not is_joined:
            continue
        try:
            if not is_joined:
                old.parent.mkdir(parents=True, exist_ok=True)
                old.unlink(missing_ok=True)
                link(mirror / predecessor, old)
            if partial is not None or is_joined:
                arrived = partial or target.parent / PARTIAL_DIR / target.name
                spare -= _use(arrived, old, target, lengths[path], spare)
        except OSError as error:
            log.warning("%s is fetched without an older version to build on: %s", path, error)


def block_sizes(
    wanted: Iterable[FileInfo],
    older: Mapping[str, str],
    partials: Mapping[str, Path],
    mirror: Path,
    basis: Path,
    wish: int,
) -> dict[str, int]:
    """Return for each wanted file in which blocks to compare it, in bytes, or ``blocks.WHOLE``.

    The larger of the file and of what it grows out of counts. What arrived is never sent again, so a file of which
    there is a part is compared, also where others are to come whole.

    :param wish: the setting.
    """
    found = {}
    for file in wanted:
        target, old = mirror / file.path, basis / file.path
        has_arrived = file.path in partials or _is_joined(target)
        if wish == blocks.WHOLE and not has_arrived:
            found[file.path] = blocks.WHOLE
            continue
        grows_out_of = old if old.is_file() else mirror / older[file.path] if file.path in older else None
        there = grows_out_of.stat() if grows_out_of and grows_out_of.is_file() else None
        is_moved = there is not None and (there.st_size, int(there.st_mtime)) == (file.size, file.mtime)
        size = max(file.size, there.st_size if there else 0)
        found[file.path] = blocks.block_size(size, wish or blocks.AUTO, is_moved=is_moved)
    return found


def _is_joined(target: Path) -> bool:
    """Whether the file in the mirror is what an earlier attempt joined, and not a version of the template."""
    return target.is_file() and target.stat().st_mtime == NEVER


def _use(partial: Path, old: Path, target: Path, block: int, spare: float) -> int:
    """Join a partial file with the old version unless ``spare`` bytes are too few; return how many that costs.

    rsync matches whole blocks only. What the partial file has beyond its last whole one could not be used and would
    move the old version's blocks, so it is left out.
    """
    arrived = partial.stat().st_size if partial.is_file() else 0
    useful, joined = whole_blocks(arrived, block), _joined_bytes(target, old)
    if max(useful, joined) > spare:
        if joined:
            _separate(partial, target, joined, arrived)
        return 0
    if useful <= joined:
        partial.unlink(missing_ok=True)
        return joined
    return _join(partial, old, target, useful, spare)


def _separate(partial: Path, target: Path, joined: int, arrived: int) -> None:
    """Undo a join: of what is there of the new file, the larger part becomes or stays the partial file."""
    if joined <= arrived:
        target.unlink()
        return
    partial.parent.mkdir(mode=0o700, exist_ok=True)
    target.replace(partial)
    os.truncate(partial, joined)


def _join(partial: Path, old: Path, target: Path, useful: int, spare: float) -> int:
    """Make ``target`` the partial file's ``useful`` bytes followed by the old version; return what that costs."""
    unfinished, cost = old.with_name(f"{UNFINISHED}{old.name}"), useful
    try:
        with partial.open("rb") as new, old.open("rb") as rest, unfinished.open("wb") as joined:
            if not _share(new.fileno(), rest.fileno(), joined.fileno(), useful):
                size = old.stat().st_size
                cost += size
                if cost > spare:
                    raise OSError(errno.ENOSPC, "there is no room for a copy of it")
                joined.truncate(0)
                _append(new.fileno(), joined.fileno(), useful)
                _append(rest.fileno(), joined.fileno(), size)
        os.utime(unfinished, (NEVER, NEVER))
        unfinished.rename(target)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    partial.unlink()
    return cost


def _share(partial: int, old: int, joined: int, useful: int) -> bool:
    """Join by sharing blocks, which takes no space; whether the file system (XFS, Btrfs) can do that.

    Only whole blocks of the file system can be shared, so less than one comes between the two parts.
    """
    block = os.fstatvfs(joined).f_bsize
    seam = -(-useful // block) * block
    whole = os.fstat(partial).st_size
    try:
        _clone(partial, joined, 0 if seam >= whole else seam, 0)
        os.ftruncate(joined, seam)
        _clone(old, joined, 0, seam)
    except OSError:
        return False
    return True


def _clone(source: int, target: int, length: int, offset: int) -> None:
    """Share the first ``length`` bytes of a file (0: all) with another, from ``offset`` on: ioctl_ficlonerange(2)."""
    fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, 0, length, offset))


def whole_blocks(arrived: int, block: int) -> int:
    """Return how much of what arrived to put before an old version: whole blocks of rsync's, all in bytes."""
    return arrived - arrived % block


def _joined_bytes(target: Path, old: Path) -> int:
    """Return how much of the new file an earlier join put before the old version."""
    if not (_is_joined(target) and old.is_file()):
        return 0
    return max(0, target.stat().st_size - old.stat().st_size)


def _append(source: int, target: int, size: int) -> None:
    """Append the next ``size`` bytes, within the kernel where that is possible."""
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
