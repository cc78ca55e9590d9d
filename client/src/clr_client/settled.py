"""Whether there can be anything to do: not while all that decides about it is as it was when nothing was left to do.

A sync that had nothing to do leaves a note on the volume, ``settled.json``: a digest of what the server listed, and one
of everything here, taken *before* it looked at anything itself. While both come out the same, a sync would find nothing
to do again, so it need not read records, plan, verify every item and compute all manifests to find that out. Whatever
differs, no matter what or why, leads to a whole sync.

`clr publish` leaves such a note, too: a digest of the templates, taken before it read them, and one of all that it
wrote.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clr_client import __version__
from clr_client.disk import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from clr_client.settings import Settings
    from clr_client.store import Store
    from clr_client.transport import Listing
    from clr_client.values import Peer

log = logging.getLogger("clr.sync")

FORMAT = "content-library-rsync settled 1"
MANIFESTS = frozenset({"lib.json", "items.json", "item.json"})
READ = ("lib.json", "items.json", ".state.json")
"""What a sync reads of the published generation, to see whether readers find what is recorded."""
CHANGING = frozenset({"status.json", "progress.json", "running.json", "told.json", "settled.json", "known_hosts"})
"""Files of the volume that no decision of a sync depends on."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Digests of what there was to publish and of what is here, and a description of the library."""

    source: str
    here: str
    library: dict[str, Any]


def source_digest(peer: Peer | None, listing: Listing | None) -> str:
    """Return a digest of what a server listed; empty when there was none, or it could not list everything."""
    if listing is None or not listing.complete or listing.problems:
        return ""
    return _digest((str(peer), *(f"{file.path}\0{file.size}\0{file.mtime}" for file in listing.files)))


def volume_digest(store: Store, settings: Settings) -> str:
    """Return a digest of all that a sync goes by here; empty when nothing is published or it cannot be read. Blocking.

    That is: the release of this program, its settings (passwords and pins apart, which decide about no item), which
    files the volume holds, the status of everything in ``mirror/``, of each item's folder, of the known digests and of
    all generations' records, the notes of damage and of unconfirmed files, and the content of the published manifests.
    Content is not read, so what cannot be seen by size, time and inode is not noticed, as in any sync.
    """
    number = store.current_number()
    if number is None:
        return ""
    try:
        return _digest((FORMAT, __version__, *_chosen(settings), *_on_the_volume(store, number)))
    except OSError as error:
        log.debug("the volume is looked at by a whole sync: %s", error)
        return ""


def _chosen(settings: Settings) -> Iterator[str]:
    for field in dataclasses.fields(settings):
        if not field.metadata["secret"]:
            yield f"{field.name}={getattr(settings, field.name)!r}"


def _on_the_volume(store: Store, number: int) -> Iterator[str]:
    yield from sorted(set(os.listdir(store.root)) - CHANGING)
    for entry in _below(str(store.mirror)):  # the times of folders change with ours
        yield entry.path if entry.is_dir(follow_symlinks=False) else _status(entry)
    yield from _within(str(store.items))
    records = (store.generations / str(kept) / ".state.json" for kept in store.generation_numbers())
    yield from (_described(path, path.lstat()) for path in (store.generations, store.digests, *records))
    for name in READ:
        yield hashlib.sha256((store.generations / str(number) / name).read_bytes()).hexdigest()
    with suppress(FileNotFoundError):
        yield from sorted(os.listdir(store.damaged))
    with suppress(FileNotFoundError):
        yield store.unconfirmed.read_text(encoding="utf-8", errors="replace")


def folder_digest(folder: Path, name: str) -> str:
    """Return a digest of what `clr publish` goes by: its release, the library's name, and the templates in a folder.

    It is empty when they cannot be looked at.
    """
    try:
        files = (entry for entry in _below(str(folder), _is_no_template) if not entry.is_dir(follow_symlinks=False))
        return _digest((FORMAT, __version__, name, *map(_status, files)))
    except OSError:
        return ""


def _is_no_template(name: str) -> bool:
    return name.startswith(".") or name.lower() in MANIFESTS


def contents_digest(contents: Iterable[tuple[str, bytes]]) -> str:
    """Return a digest of files by path, in their order."""
    return _digest(f"{path}\0{hashlib.sha256(content).hexdigest()}" for path, content in contents)


def _below(folder: str, left_out: Callable[[str], bool] = lambda _: False) -> Iterator[os.DirEntry[str]]:
    """Yield everything in a folder and in those below it, without following links."""
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if not left_out(entry.name):
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    yield entry


def _within(folder: str) -> Iterator[str]:
    """Describe what lies directly in a folder; the time of a folder tells whether anything in it has changed."""
    with os.scandir(folder) as entries:
        yield from map(_status, sorted(entries, key=lambda entry: entry.name))


def _status(entry: os.DirEntry[str]) -> str:
    return _described(entry.path, entry.stat(follow_symlinks=False))


def _described(path: str | Path, info: os.stat_result) -> str:
    return f"{path}\0{info.st_size}\0{info.st_mtime_ns}\0{info.st_ino}"


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0\0".join(texts).encode("utf-8", "surrogateescape")).hexdigest()


def load(path: Path) -> Settled | None:
    """Return the note, None when there is none or it was damaged since it was written."""
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        if head.decode("ascii") != hashlib.sha256(body).hexdigest():
            return None
        return Settled(**json.loads(body))
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def save(path: Path, settled: Settled) -> None:
    """Write the note, in one step, if it is another. On a volume that takes none the next sync takes longer."""
    if load(path) == settled:
        return
    body = json.dumps(dataclasses.asdict(settled)).encode("ascii")
    try:
        replace_file(path, hashlib.sha256(body).hexdigest().encode("ascii") + b"\n" + body)
    except OSError as error:
        log.warning("the next run will look at every item again, also if nothing changes: %s", error)
