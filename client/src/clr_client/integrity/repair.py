"""Mending what is damaged: from the mirror where its copy is sound, else from the server.

The content comes back under the version that it has, so a subscriber that took the damaged file would keep it for good.
Therefore a damaged file is withdrawn as soon as that is certain: readers get 404 for it until it is mended, and one who
is in the middle of it reads on. It is kept in ``.damaged/`` of its tree until then.

In the mirror it gets a modification time that no template has: no sync takes it for complete, and rsync builds on it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client.content.digests import hash_file
from clr_client.content.items import scan
from clr_client.content.ova import unpack
from clr_client.disk import UNFINISHED, link, remove, replace_file, sync_folder
from clr_client.errors import ClrError, HeldError, ManifestError
from clr_client.integrity.audit import CHANGED, UNREADABLE, flaw, manifest_flaw
from clr_client.integrity.damages import Damage, note, noted, strike_out
from clr_client.plan import Action, ItemPlan
from clr_client.pull import fetch_again
from clr_client.reporting.context import about
from clr_client.seed import NEVER
from clr_client.store import STATE
from clr_client.threads import to_end
from clr_client.vcsp.manifests import manifests
from clr_client.vcsp.model import ADOPTED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from clr_client.content.digests import DigestCache
    from clr_client.pull import Job
    from clr_client.store import Store
    from clr_client.transport import Listing
    from clr_client.vcsp.model import PublishedFile, PublishedItem, PublishedLibrary

log = logging.getLogger("clr.verify")

ASIDE = ".damaged"
"""Folder in an item tree with the damaged files that were withdrawn from it. Not served, as nothing with a dot is."""
NO_BETTER = "the copy in mirror/ is no better, so it has to come from the server again"
GONE = "the server no longer has it; the next sync removes the item, or SYNC_DELETE=false keeps it as it is"
OTHER = "the server has another version of it now, which the next sync publishes"
NEXT_SYNC = "the next sync writes it anew"


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of the damage that was known: ``mended``, and what is ``left`` with the reason why."""

    mended: tuple[Damage, ...] = ()
    left: tuple[Damage, ...] = ()


def mend_here(store: Store, fetched: Collection[str] = ()) -> Mended:
    """Mend what can be mended without the server, withdraw the rest. Blocking; needs the lock.

    Known damage that nothing published refers to any more is forgotten.

    :param fetched: paths in the mirror that have just come from the server, so that they are what it has.
    """
    library = store.published()
    known = noted(store)
    if library is None or not known:
        return Mended()
    tried: list[tuple[Damage, bool]] = []
    files: dict[str, list[tuple[Damage, PublishedFile]]] = {}
    items = {item.uuid: item for item in library.items}
    for damage in known:
        top, *inside = damage.path.split("/")
        item = items.get(inside[0]) if top == "items" and len(inside) == 3 else None
        if item and (file := next((file for file in item.files if file.name == inside[2]), None)):
            files.setdefault(item.uuid, []).append((damage, file))
        else:
            tried += _rewrite(store, library, item, damage)
    for uuid, damages in files.items():
        tried += _mend_item(store, items[uuid], damages, fetched)
    for damage, is_mended in tried:
        if is_mended:
            strike_out(store, damage)
            log.warning("mended: %s (%s)", damage, damage.item or "manifest", extra=about(item=damage.item))
        else:
            note(store, damage)
    return Mended(
        tuple(damage for damage, is_mended in tried if is_mended),
        tuple(damage for damage, is_mended in tried if not is_mended),
    )


def _rewrite(
    store: Store, library: PublishedLibrary, item: PublishedItem | None, damage: Damage
) -> Iterator[tuple[Damage, bool]]:
    """Write a manifest anew from the record."""
    texts = manifests(library)
    folder = store.generations / str(store.current_number())
    expected = {folder / "lib.json": texts.lib, folder / "items.json": texts.items}
    if item is not None:
        expected[store.tree(item) / "item.json"] = texts.item[item.id]
    path = store.root / damage.path
    if library.href_style == ADOPTED and path in {*expected, folder / STATE}:
        yield dataclasses.replace(damage, hindrance=NEXT_SYNC), False
    elif path in expected and manifest_flaw(path, expected[path]):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, expected[path])
        except OSError as error:
            yield dataclasses.replace(damage, hindrance=f"it cannot be written: {error.strerror}"), False
        else:
            yield damage, True
    else:
        strike_out(store, damage)


def _mend_item(
    store: Store, item: PublishedItem, damages: Sequence[tuple[Damage, PublishedFile]], fetched: Collection[str]
) -> Iterator[tuple[Damage, bool]]:
    mirrored = {file.path for file in scan(store.mirror)}
    for damage, file in damages:
        place, noted_at = store.tree(item) / file.name, store.root / damage.path
        now = dataclasses.replace(damage, path=place.relative_to(store.root).as_posix(), hindrance="")
        if now.path != damage.path:  # a newer version of the item was published since
            strike_out(store, damage)
        try:
            if flaw(place, file):
                _withdraw(store, item, file)
                _restore(store, item, file, origin(item, file.name, mirrored), fetched)
            elif noted_at not in _same_files(store, item, file):
                continue
            elif noted_at == place and not _is_withdrawn(place):
                strike_out(store, damage)
                log.info("%s is what was published, now that it was read again", now.path)
                continue
            _spread(store, item, file)
            yield now, True
        except HeldError as error:
            yield dataclasses.replace(now, hindrance=error.message), False
        except (OSError, ClrError) as error:
            yield dataclasses.replace(now, hindrance=f"it cannot be mended: {error}"), False


def origin(item: PublishedItem, name: str, paths: Collection[str]) -> str:
    """Return the path in the server's library that a file of an item comes from: its own, or its OVA's.

    :param paths: what is there, in the mirror or in a listing.
    """
    own = item.key if item.key_is_file else f"{item.key}/{name}"
    if own in paths or item.key_is_file:
        return own
    beside = [path for path in paths if path.rpartition("/")[0] == item.key and path.lower().endswith(".ova")]
    if item.key.lower().endswith(".ova") and not any(path.startswith(f"{item.key}/") for path in paths):
        return item.key
    return beside[0] if len(beside) == 1 else own


def _is_archive(path: str, name: str) -> bool:
    return path.rpartition("/")[2] != name


def _restore(store: Store, item: PublishedItem, file: PublishedFile, path: str, fetched: Collection[str]) -> None:
    """Put a sound file into its tree. Raises HeldError if the mirror has none; then its copy is trusted no more."""
    source, target = store.mirror / path, store.tree(item) / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.lstat().st_mtime == NEVER:
            raise HeldError(NO_BETTER)
        if _is_archive(path, file.name):
            _unpack(store, item, file, source)
        elif reason := flaw(source, file):
            raise HeldError(reason)
        else:
            _put(source, target)
    except FileNotFoundError:
        raise HeldError(NO_BETTER) from None
    except HeldError as error:
        if path in fetched:
            raise HeldError(OTHER) from error
        _distrust(source, error.message)
        raise HeldError(NO_BETTER) from error


def _unpack(store: Store, item: PublishedItem, file: PublishedFile, archive: Path) -> None:
    """Unpack a file from its archive, which must hold what was published. Raises HeldError."""
    mirrored = {path.relative_to(store.mirror).as_posix() for path in archive.parent.iterdir()}
    mirrored.add(archive.relative_to(store.mirror).as_posix())
    packed = [other for other in item.files if _is_archive(origin(item, other.name, mirrored), other.name)]
    folder = store.tree(item).with_name(f"{UNFINISHED}mended")
    remove(folder)
    folder.mkdir()
    try:
        expected = {other.name: other.digest.removeprefix("sha256:") for other in packed}
        unpack(archive, folder, expected=expected, only={file.name})
        (folder / file.name).rename(store.tree(item) / file.name)
        sync_folder(store.tree(item))
    finally:
        remove(folder)


def _put(source: Path, target: Path) -> None:
    """Give a sound file its place in a tree, in one step."""
    unfinished = target.parent / f"{UNFINISHED}mended"
    remove(unfinished)
    link(source, unfinished)
    unfinished.rename(target)
    sync_folder(target.parent)


def _distrust(path: Path, reason: str) -> None:
    """Keep syncs from taking a file of the mirror for complete. One that cannot be read is nothing to build on."""
    with suppress(FileNotFoundError):
        if UNREADABLE in reason:
            path.unlink()
        else:
            os.utime(path, (NEVER, NEVER), follow_symlinks=False)


def _same_files(store: Store, item: PublishedItem, file: PublishedFile) -> list[Path]:
    """Return where the same content of an item's file lies in the trees of all kept generations."""
    places = [store.tree(item) / file.name]
    for number in store.generation_numbers():
        with suppress(ManifestError):
            for other in store.read_generation(number).items:
                same = other.id == item.id and any(
                    (known.name, known.digest) == (file.name, file.digest) for known in other.files
                )
                if same and store.tree(other).is_dir():
                    places.append(store.tree(other) / file.name)
    return list(dict.fromkeys(places))


def _withdraw(store: Store, item: PublishedItem, file: PublishedFile) -> None:
    """Take a damaged file aside, under every name that it is served by."""
    place = store.tree(item) / file.name
    known = place if os.path.lexists(place) else _aside(place)
    if not os.path.lexists(known):
        return
    inode = known.lstat().st_ino
    for path in _same_files(store, item, file):
        if os.path.lexists(path) and path.lstat().st_ino == inode:
            _aside(path).parent.mkdir(exist_ok=True)
            remove(_aside(path))
            path.rename(_aside(path))
            sync_folder(_aside(path).parent)
            sync_folder(path.parent)


def _aside(path: Path) -> Path:
    return path.parent / ASIDE / path.name


def _is_withdrawn(path: Path) -> bool:
    return os.path.lexists(_aside(path))


def _spread(store: Store, item: PublishedItem, file: PublishedFile) -> None:
    """Put the mended file into the trees of older versions as well, and throw away the damaged one."""
    mended, *others = _same_files(store, item, file)
    for path in others:
        if not (os.path.lexists(path) and path.samefile(mended)) and flaw(path, file):
            remove(path)
            _put(mended, path)
    for path in (*others, mended):  # last of all what tells the next run, if this one is killed, that work was left
        if _is_withdrawn(path):
            remove(_aside(path))
            with suppress(OSError):  # others are in there still
                _aside(path).parent.rmdir()


async def mend(job: Job) -> Mended:
    """Mend all known damage, with the server's help where it is needed. Needs the lock."""
    store = job.store
    first = await to_end(lambda: mend_here(store))
    library = store.published()
    files = [damage for damage in first.left if damage.hindrance == NO_BETTER]
    if library is None or not files:
        return first
    hindrances: dict[str, str] = {}

    def choose(listing: Listing) -> tuple[ItemPlan, ...]:
        hindrances.clear()
        return wanted(library, files, listing, hindrances)

    try:
        pulled = await fetch_again(job, choose)
    except ClrError as error:
        hindrances = {damage.path: str(error) for damage in files}
        fetched: frozenset[str] = frozenset()
    else:
        fetched = frozenset(file.path for file in pulled.plan.fetch)
        for damage in files:
            name = damage.path.rpartition("/")[2]
            if problem := next((problem for problem in pulled.problems if name in problem), ""):
                hindrances.setdefault(damage.path, problem)
    second = await to_end(lambda: mend_here(store, fetched))
    left = []
    for damage in second.left:
        told = dataclasses.replace(damage, hindrance=hindrances.get(damage.path, damage.hindrance))
        note(store, told)
        left.append(told)
    return Mended((*first.mended, *second.mended), tuple(left))


def wanted(
    library: PublishedLibrary, damages: Sequence[Damage], listing: Listing, hindrances: dict[str, str]
) -> tuple[ItemPlan, ...]:
    """Choose what to fetch again, and say of the rest why not."""
    there = {file.path: file for file in listing.files}
    items = {item.uuid: item for item in library.items}
    plans: dict[str, ItemPlan] = {}
    for damage in damages:
        _, uuid, _, name = damage.path.split("/")
        item = items[uuid]
        path = origin(item, name, there)
        size = next(file.size for file in item.files if file.name == name)
        if path not in there:
            hindrances[damage.path] = GONE
        elif not _is_archive(path, name) and there[path].size != size:
            hindrances[damage.path] = OTHER
        else:
            fetch = {*(plans[item.key].fetch if item.key in plans else ()), there[path]}
            plans[item.key] = ItemPlan(item.key, Action.UPDATE, fetch=tuple(sorted(fetch)))
    return tuple(plans.values())


def rotten(store: Store, item: PublishedItem, digests: DigestCache) -> list[Damage]:
    """Return what of a published item has changed by itself.

    A file in the mirror that is the published one, the same inode, cannot be a new version: rsync makes a new file.
    """
    found = []
    mirrored = {item.key, *(f"{item.key}/{file.name}" for file in item.files)}
    for file in item.files:
        place, source = store.tree(item) / file.name, store.mirror / origin(item, file.name, mirrored)
        try:
            if not file.digest or not place.samefile(source):
                continue
            is_sound = f"sha256:{hash_file(source, {'sha256'}, digests)['sha256']}" == file.digest
            reason = "" if is_sound else CHANGED
        except OSError:
            continue  # not in the mirror, or not in the tree: nothing to compare
        except HeldError as error:
            reason = error.message
        if reason:
            found.append(Damage(place.relative_to(store.root).as_posix(), reason, item.name))
    return found
