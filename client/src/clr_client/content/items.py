"""Which files of a library tree make which item; whether it is sound is for ``verify`` to say."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.content.names import display_name, flaw, fold
from clr_client.disk import remedy
from clr_client.errors import StoreError
from clr_client.files import FileInfo
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

METADATA_NAME = "clr-item.toml"
MAX_DEPTH = 32
MAX_SEGMENT = 255
"""Bytes in one name, as most file systems have it."""
MAX_PATH = 3 << 10
"""Bytes in a file's path; Linux takes 4096 with those of the volume's own folders."""

# Dotfiles and dotfolders, also rsync's temporary files; manifests, which are ours to write; what ext4 and
# VMware leave behind; empty segments, which no listing has.
_IGNORED = re.compile(r"(?:^|/)(?:/|\Z|\.|lost\+found(?:/|\Z)|(?:lib|items|item)\.json\Z)|\.lck(?:/|\Z)", re.IGNORECASE)
# Folders at the top whose human path would hide what a generation itself holds there, and anywhere what it holds
# beside an item's files.
_RESERVED_AT_TOP = frozenset({"_items", "_clr", "lib.json", "items.json"})
_RESERVED = "item.json"


@dataclass(frozen=True, slots=True)
class SourceItem:
    """The files that are one item.

    ``key`` is the folder's path, or the file's for single-file items, relative to the library: the item's
    identity across syncs. ``files`` are what it is made of, sorted by path, without the ``metadata`` file.
    ``problem`` says why it can never be published as it is; ``notes`` are what its owner should know.
    """

    key: str
    files: tuple[FileInfo, ...]
    metadata: FileInfo | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def default_name(self) -> str:
        """The leaf folder's name, the file's name, or an OVA's without its suffix: at most 80 characters."""
        leaf = self.key.rpartition("/")[2]
        if self.files[0].path == self.key and self.files[0].suffix == ".ova":
            leaf = leaf[: -len(".ova")]
        return display_name(leaf)


def ignored(path: str) -> bool:
    """Whether a path of a library is never content: hidden, a manifest's name, a lock, ``lost+found``."""
    return _IGNORED.search(path) is not None


def is_metadata(name: str) -> bool:
    """Whether a base name is that of a metadata file, in any case."""
    lower = name.lower()
    return lower == METADATA_NAME or lower.endswith(f".{METADATA_NAME}")


def group(files: Iterable[FileInfo]) -> tuple[SourceItem, ...]:
    """Sort a library's files into items, ordered by key.

    A folder that directly holds files is an item, whatever lies in folders beneath it; so is a loose file at
    the top. A folder of only ISOs, and one of only OVAs if there are several, is one item per file.
    """
    folders: defaultdict[str, list[FileInfo]] = defaultdict(list)
    metadata: defaultdict[str, list[FileInfo]] = defaultdict(list)
    for path, file in sorted({file.path: file for file in files}.items()):
        if ignored(path):
            continue
        (metadata if is_metadata(file.name) else folders)[file.folder].append(file)

    items: list[SourceItem] = []
    for folder, members in folders.items():
        if folder == "" or _one_item_per_file(members):
            items += _single_items(members, metadata[folder])
        else:
            items.append(_folder_item(folder, members, metadata[folder]))
    return tuple(sorted(items, key=lambda item: item.key))


def _one_item_per_file(members: list[FileInfo]) -> bool:
    suffixes = {file.suffix for file in members}
    # A lone OVA is its folder's item, but a lone ISO is not: a second ISO must not make the first a new item.
    return suffixes == {".iso"} or (suffixes == {".ova"} and len(members) > 1)


def _single_items(members: list[FileInfo], metadata: list[FileInfo]) -> Iterable[SourceItem]:
    notes = tuple(
        f"{file.name} is not used: this folder is one item per file, so describe each in <file name>.{METADATA_NAME}"
        for file in metadata
        if file.folder and file.name.lower() == METADATA_NAME
    )
    for file in members:
        own = [other for other in metadata if other.name.lower() == f"{file.name.lower()}.{METADATA_NAME}"]
        yield _item(file.path, (file,), own, notes)


def _folder_item(folder: str, members: list[FileInfo], metadata: list[FileInfo]) -> SourceItem:
    own = [file for file in metadata if file.name.lower() == METADATA_NAME]
    notes = tuple(
        f"{printable(file.name)} is not used: this folder is one item, so describe it in {METADATA_NAME}"
        for file in metadata
        if file not in own
    )
    return _item(folder, tuple(members), own, notes)


def _item(key: str, files: tuple[FileInfo, ...], metadata: list[FileInfo], notes: tuple[str, ...]) -> SourceItem:
    problem = _problem(key, files)
    if problem is None and len(metadata) > 1:
        problem = f"two metadata files: {metadata[0].name} and {metadata[1].name}"
    return SourceItem(key, files, metadata[0] if metadata else None, problem, notes)


def _problem(key: str, files: tuple[FileInfo, ...]) -> str | None:
    segments = fold(key).split("/")
    if segments[0] in _RESERVED_AT_TOP:
        return f'the name "{segments[0]}" at the top of a library is reserved'
    if _RESERVED in segments:
        return f'the name "{_RESERVED}" is reserved'
    for path in (key, *(file.path for file in files)):
        if (reason := flaw(path)) is not None:
            return f'the name "{printable(path)}" {reason}'
    if len(segments) > MAX_DEPTH:
        return f"it lies more than {MAX_DEPTH} folders deep"
    if (reason := _too_long(files)) is not None:
        return reason
    if not SourceItem(key, files).default_name:
        return f'the name "{printable(key)}" is empty'
    seen: dict[str, str] = {}
    for file in files:
        other = seen.setdefault(fold(file.name), file.name)
        if other != file.name:
            return f'"{other}" and "{file.name}" differ only by case or Unicode form'
    return None


def _too_long(files: tuple[FileInfo, ...]) -> str | None:
    paths = [os.fsencode(file.path) for file in files]
    if any(len(segment) > MAX_SEGMENT for path in paths for segment in path.split(b"/")):
        return f"a name in its path is longer than {MAX_SEGMENT} bytes"
    if any(len(path) > MAX_PATH for path in paths):
        return f"a file's path is longer than {MAX_PATH} bytes"
    return None


def scan(root: Path) -> tuple[FileInfo, ...]:
    """List a local tree as rsync would: its regular files, sorted by path, without what ``group`` ignores.

    Links are never followed or listed. Raises StoreError for a folder that cannot be read, because what lies
    in it would look deleted. What is nested deeper than ``MAX_DEPTH`` can be no item and is left out.
    """
    found: list[FileInfo] = []
    pending = [("", 0)]
    while pending:
        folder, depth = pending.pop()
        if depth > MAX_DEPTH:
            continue
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if ignored(path):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append((path, depth + 1))
                    elif (info := _regular(entry)) is not None:
                        found.append(FileInfo(path, info.st_size, info.st_mtime_ns // 1_000_000_000))
        except OSError as error:
            if folder and isinstance(error, FileNotFoundError):
                continue  # gone since its parent was read
            place = printable(str(root / folder))
            raise StoreError(f"cannot read the folder {place}: {error.strerror}", remedy(error.errno)) from error
    return tuple(sorted(found, key=lambda file: file.path))


def _regular(entry: os.DirEntry[str]) -> os.stat_result | None:
    """The entry's status if it is a regular file; None if it is not, or is gone by now."""
    try:
        info = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return info if stat.S_ISREG(info.st_mode) else None
