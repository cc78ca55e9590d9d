"""Re-hashing what is published against the digests recorded when it was. Only reads."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from clr_client.errors import ManifestError
from clr_client.integrity.damages import Damage
from clr_client.store import STATE
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.model import ADOPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clr_client.store import Store
    from clr_client.vcsp.model import PublishedFile, PublishedItem, PublishedLibrary

OnProgress: TypeAlias = "Callable[[int, int, str], object]"

_CHUNK = 1 << 20
CHANGED = "is not what was published"
UNREADABLE = "cannot be read"
UNKNOWN = "is damaged, so digests are unknown until the next sync"


def audit(store: Store, on_progress: OnProgress = lambda _done, _total, _name: None) -> Iterator[Damage]:
    """Yield every damage of the published generation: manifests by what they say, files by their digests. Blocking.

    No lock is needed: item trees do not change, and what a sync replaced or removed meanwhile is no damage.

    :param on_progress: told the bytes read so far, the bytes there are, and the name of the file; what it raises ends
        the audit.
    :raises ManifestError: nothing was ever published.
    """
    number = store.current_number()
    library = store.published()
    if library is None or number is None:
        raise ManifestError("nothing was ever published", "Run: clr sync")
    for damage in _audit_manifests(store, number, library):
        if store.current_number() == number:
            yield damage
    total = sum(file.size for item in library.items for file in item.files)
    done = 0

    def advance(name: str, count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total, name)

    for item in library.items:
        for file in item.files:
            path = store.tree(item) / file.name
            before = done
            if (reason := flaw(path, file, partial(advance, file.name))) and _is_published(store, item):
                yield Damage(path.relative_to(store.root).as_posix(), reason, item.name)
            if unread := before + file.size - done:
                advance(file.name, unread)


def _is_published(store: Store, item: PublishedItem) -> bool:
    now = store.published()
    return now is not None and any((item.id, item.version) == (other.id, other.version) for other in now.items)


def _audit_manifests(store: Store, number: int, library: PublishedLibrary) -> Iterator[Damage]:
    folder = store.generations / str(number)
    if library.href_style == ADOPTED:
        path = folder / STATE
        yield Damage(path.relative_to(store.root).as_posix(), UNKNOWN)
        return
    texts = manifests(library)
    expected = {
        folder / "lib.json": (texts.lib, ""),
        folder / "items.json": (texts.items, ""),
        **{store.tree(item) / "item.json": (texts.item[item.id], item.name) for item in library.items},
    }
    for path, (text, name) in expected.items():
        if reason := manifest_flaw(path, text):
            yield Damage(path.relative_to(store.root).as_posix(), reason, name)


def manifest_flaw(path: Path, text: bytes) -> str:
    """Say what is wrong with a manifest that shall mean the same as ``text``; empty when nothing is."""
    try:
        # by meaning: another release may have written it with other spaces
        return "" if json.loads(path.read_bytes()) == json.loads(text) else CHANGED
    except OSError as error:
        return f"{UNREADABLE}: {error.strerror}"
    except (ValueError, RecursionError):
        return CHANGED


def flaw(path: Path, file: PublishedFile, advance: Callable[[int], None] = lambda _count: None) -> str:
    """Say what is wrong with a file that shall be ``file``; empty when nothing is. A link is never followed.

    The kernel forgets the file's pages before, so that the disk is what is read, and after, so that what readers need
    stays in memory.

    :param advance: told the bytes of each piece that was read.
    """
    digest = hashlib.sha256()
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            info = os.fstat(descriptor)
            if not stat.S_ISREG(info.st_mode):
                return "is not a regular file"
            if info.st_size != file.size:
                return f"has {info.st_size} bytes instead of {file.size}"
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            position = 0
            while chunk := os.read(descriptor, _CHUNK):
                digest.update(chunk)
                os.posix_fadvise(descriptor, position, len(chunk), os.POSIX_FADV_DONTNEED)
                position += len(chunk)
                advance(len(chunk))
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"{UNREADABLE}: {error.strerror}"
    if position != file.size:
        return f"has {position} bytes instead of {file.size}"
    return "" if file.digest in {"", f"sha256:{digest.hexdigest()}"} else CHANGED
