"""Re-hashing what is published against the digests recorded when it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.errors import ManifestError
from clr_client.store import STATE
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.model import ADOPTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clr_client.store import Store
    from clr_client.vcsp.model import PublishedFile, PublishedLibrary

_CHUNK = 1 << 20
CHANGED = "is not what was published"


@dataclass(frozen=True, slots=True)
class Damage:
    """A published file that is not what was published, and in what way. ``path`` is relative to the volume."""

    path: str
    reason: str


def audit(store: Store, on_progress: Callable[[int, int], object] = lambda _done, _total: None) -> Iterator[Damage]:
    """Yield every damage of the published generation: manifests by what they say, files by their digests. Blocking.

    :param on_progress: told the bytes read so far and the bytes there are.
    :raises ManifestError: nothing was ever published.
    """
    number = store.current_number()
    library = store.published()
    if library is None or number is None:
        raise ManifestError("nothing was ever published", "Run: clr sync")
    yield from _audit_manifests(store, number, library)
    total = sum(file.size for item in library.items for file in item.files)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    for item in library.items:
        for file in item.files:
            path = store.tree(item) / file.name
            if reason := _flaw(path, file, advance):
                yield Damage(path.relative_to(store.root).as_posix(), reason)


def _audit_manifests(store: Store, number: int, library: PublishedLibrary) -> Iterator[Damage]:
    folder = store.generations / str(number)
    if library.href_style == ADOPTED:
        path = folder / STATE
        yield Damage(path.relative_to(store.root).as_posix(), "is damaged, so digests are unknown until the next sync")
        return
    texts = manifests(library)
    expected = {
        folder / "lib.json": texts.lib,
        folder / "items.json": texts.items,
        **{store.tree(item) / "item.json": texts.item[item.id] for item in library.items},
    }
    for path, text in expected.items():
        try:
            # by meaning: another release may have written it with other spaces
            flaw = "" if json.loads(path.read_bytes()) == json.loads(text) else CHANGED
        except OSError as error:
            flaw = f"cannot be read: {error.strerror}"
        except ValueError:
            flaw = CHANGED
        if flaw:
            yield Damage(path.relative_to(store.root).as_posix(), flaw)


def _flaw(path: Path, file: PublishedFile, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size != file.size:
        return f"has {size} bytes instead of {file.size}"
    return "" if file.digest in {"", f"sha256:{digest.hexdigest()}"} else CHANGED
