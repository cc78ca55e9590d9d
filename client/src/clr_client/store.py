"""The library volume: mirror, immutable item trees, generations, and the one rename that publishes.

::

    mirror/                     what the server has, as rsync left it; may be incomplete; never served
    items/<uuid>/<version>/     one immutable tree per version of an item: its files and its item.json
    generations/42/             lib.json, items.json, .state.json, and links to the item trees under human names
    current -> generations/42   replaced by one rename; what the web server's root points at

A generation holds the record of ids, versions and digests beside its manifests, so both change in the same instant.
Nothing under ``items`` or ``generations`` is written to once it has its final name.

What knows manifests and records is imported where it is needed: a sync that has nothing to do needs none of it.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from clr_client import filesystem, lock, moments
from clr_client.disk import UNFINISHED, link, remove, replace_file, sync_folder, unusable, write_file
from clr_client.errors import ClrError, HeldError, ManifestError, StoreError, TreeError
from clr_client.moments import Moment
from clr_client.readable import link_names, read_links

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager
    from datetime import timedelta

    from clr_client.vcsp.model import PublishedItem, PublishedLibrary

log = logging.getLogger("clr.store")

STATE = ".state.json"
RESERVE_BYTES = 128 * 1024
PUBLISHED = ".published.json"
"""When a generation was published, hence when the one before it was replaced."""


@dataclass(frozen=True, slots=True)
class TreeSource:
    """Where a new item tree's files come from: files to link, and an archive to unpack beside them."""

    files: Mapping[str, Path]
    unpack: Path | None = None


class Store:
    """The library volume. All paths are below ``root``; everything that changes it needs the lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mirror = root / "mirror"
        self.items = root / "items"
        self.generations = root / "generations"
        self.current = root / "current"
        self.basis = root / "basis"
        self.status = root / "status.json"
        self.progress = root / "progress.json"
        self.running = root / "running.json"
        self.told = root / "told.json"
        self.known_hosts = root / "known_hosts"
        self.digests = root / "digests.json"
        self.unconfirmed = root / "unconfirmed.json"
        self.settled = root / "settled.json"
        self.damaged = root / "damaged"
        self.reserve = root / ".reserve"
        """Space that is given up so that the reason of a failure on a full volume can still be written down."""
        self.pin = root / "pinned"
        """Exists while a rollback keeps syncs from publishing; holds the generation rolled back to."""
        self._last_read: tuple[tuple[int, ...], PublishedLibrary] | None = None

    def locked(self, trigger: str) -> AbstractContextManager[None]:
        """Hold the volume for one run; see ``lock.hold``."""
        return lock.hold(self.root, trigger)

    def write_down(self, path: Path, data: bytes) -> None:
        """Replace a small file in one step, on a full volume at the cost of the reserve. Raises OSError."""
        try:
            replace_file(path, data)
        except OSError:
            self.reserve.unlink(missing_ok=True)
            replace_file(path, data)

    def prepare(self) -> None:
        """Make the folders and clear away what a killed run left unfinished.

        :raises StoreError: the volume cannot be written to.
        """
        try:
            for folder in (self.mirror, self.items, self.generations):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.generations):
                for left in folder.glob(f"{UNFINISHED}*"):
                    remove(left)
            if not self.current.is_symlink():
                filesystem.refuse_without_links(self.root, self.generations)
            self._settle_current()
            self.settle_pin()
            self._clear_trees(self.generation_numbers())
        except OSError as error:
            raise unusable(self.root, error) from error
        if not _has_size(self.reserve, RESERVE_BYTES):
            with suppress(OSError):  # a full volume; it has what it needs or will say what it lacks
                replace_file(self.reserve, bytes(RESERVE_BYTES))

    def _settle_current(self) -> None:
        """Drop generations that a killed run made but never published, and find a lost ``current`` again."""
        linked = self._linked_number()
        numbers = self.generation_numbers()
        if linked is not None:
            for number in numbers:
                if number > linked:
                    _discard(self.generations / str(number))
        elif numbers and (self.generations / str(numbers[-1]) / "lib.json").is_file():
            log.warning("the link to the published generation was lost; generation %d is published again", numbers[-1])
            self._flip(numbers[-1])

    def generation_numbers(self) -> tuple[int, ...]:
        """Numbers of the complete generations, oldest first."""
        names = os.listdir(self.generations) if self.generations.is_dir() else []
        return tuple(sorted(int(name) for name in names if name.isdecimal()))

    def current_number(self) -> int | None:
        """Return the number of the published generation, or None while nothing was ever published."""
        number = self._linked_number()
        return number if number and (self.generations / str(number) / "lib.json").is_file() else None

    def published(self) -> PublishedLibrary | None:
        """Return what is published, or None while nothing ever was. Changes nothing.

        A generation whose record is damaged is read back from its manifests. Where these are damaged too, the newest
        one before it serves, with versions raised by what may have been published since; so ids and versions survive.

        :raises ManifestError: there are generations, but none of them can be read.
        """
        numbers = self.generation_numbers()
        newest = self._linked_number() or (numbers[-1] if numbers else 0)
        reasons = []
        for number in reversed(numbers):
            if number > newest:
                continue
            try:
                library = self.read_generation(number)
            except ManifestError as error:
                reasons.append(str(error))
                continue
            if number == newest:
                return library
            log.warning("generation %d cannot be read; ids and versions are taken from generation %d", newest, number)
            return _lifted(library, newest - number)
        if reasons:
            raise ManifestError(
                f"no generation on the volume can be read ({'; '.join(reasons)})",
                "Restore the volume from a backup; starting over would give every item a new id",
            )
        return None

    def _linked_number(self) -> int | None:
        """Return the number that ``current`` names, whether or not that generation is there."""
        try:
            name = Path(self.current.readlink()).name
        except OSError:
            return None
        return int(name) if name.isdecimal() else None

    def holds(self, library: PublishedLibrary) -> bool:
        """Whether ``library`` is what readers find: its manifests, and the folder of every item's tree."""
        from clr_client.vcsp.manifests import manifests

        texts = manifests(library)
        try:
            served = [(self.current / name).read_bytes() for name in ("lib.json", "items.json")]
        except OSError:
            return False
        return served == [texts.lib, texts.items] and all(self.tree(item).is_dir() for item in library.items)

    def rolled_back_to(self) -> int | None:
        """Return the generation that a rollback keeps published, or None while syncs publish.

        A rollback that was killed before it published anything does not count.
        """
        return next((target for target, _ in self._pins()), None)

    def keep_to(self, target: int, replaced: int) -> None:
        """Note a rollback to generation ``target`` before its library is published.

        It counts as soon as ``replaced`` is not the published generation any more; until then the one before it does.
        """
        _write_pins(self.pin, [(target, replaced), *self._pins()[:1]])

    def settle_pin(self) -> None:
        """Forget a rollback that never published anything, lest what is published next counts as its.

        If it did publish, the one before it is forgotten.
        """
        text = self.pin.read_bytes() if self.pin.exists() else None
        pins = self._pins()[:1]
        if text is not None and not pins:
            self.pin.unlink()
            sync_folder(self.root)
        elif text is not None and len(text.splitlines()) > 1:
            _write_pins(self.pin, pins)

    def _pins(self) -> list[tuple[int, int]]:
        """Read which rollbacks count, newest first: the generation each is to, and the one that it replaced."""
        try:
            lines = self.pin.read_text(encoding="ascii").splitlines()
            pins = [(int(target), int(replaced)) for target, replaced in (line.split() for line in lines)]
        except (OSError, ValueError):
            return []
        return [pin for pin in pins if pin[1] != self._linked_number()]

    def read_generation(self, number: int) -> PublishedLibrary:
        """Read one generation's record.

        :raises ManifestError: neither its record nor its manifests can be read, or there is no such generation.
        """
        from clr_client.vcsp import record

        folder = self.generations / str(number)
        try:
            info = (folder / STATE).stat()
            identity = (number, info.st_ino, info.st_mtime_ns, info.st_size)
            if self._last_read is None or self._last_read[0] != identity:
                self._last_read = identity, record.load((folder / STATE).read_bytes())
            return self._last_read[1]
        except FileNotFoundError:
            if not folder.is_dir():
                raise ManifestError(f"there is no generation {number}", self._choices()) from None
            reason = "its record is missing"
        except OSError as error:
            reason = str(error)
        except ManifestError as error:
            reason = str(error)
        log.warning("generation %d: %s; ids and versions are taken from its manifests", number, reason)
        try:
            return self._adopt_generation(folder)
        except OSError as error:
            raise ManifestError(f"generation {number} cannot be read ({error})") from error

    def _choices(self) -> str:
        numbers = ", ".join(str(number) for number in self.generation_numbers())
        return f"Kept generations: {numbers or 'none'}"

    def _adopt_generation(self, folder: Path) -> PublishedLibrary:
        from clr_client.vcsp import record

        listed = folder / "items.json"
        links = read_links(folder)
        trees = (self.items / uuid / version / "item.json" for uuid, version in links)
        library = record.adopt(
            (folder / "lib.json").read_bytes(),
            listed.read_bytes() if listed.is_file() else None,
            (path.read_bytes() for path in trees if path.is_file()),
        )
        items = []
        for item in library.items:
            key, is_file = links.get((item.uuid, str(item.version)), (item.key, item.key_is_file))
            items.append(dataclasses.replace(item, key=key, key_is_file=is_file))
        return dataclasses.replace(library, items=tuple(items))

    def tree(self, item: PublishedItem) -> Path:
        """Folder of an item's immutable tree."""
        return Path(f"{self.items}/{item.uuid}/{item.version}")

    def find_tree(self, item: PublishedItem) -> Path | None:
        """Return the folder with an item's files: its tree, or where versions were lost, the newest that fits."""
        if self.tree(item).is_dir():
            return self.tree(item)
        folder = self.items / item.uuid
        names = os.listdir(folder) if folder.is_dir() else []
        for version in sorted((int(name) for name in names if name.isdecimal()), reverse=True):
            if all(_has_size(folder / str(version) / file.name, file.size) for file in item.files):
                return folder / str(version)
        return None

    def publish(self, library: PublishedLibrary, sources: Mapping[str, TreeSource]) -> int:
        """Make ``library`` what readers see, in one step, after everything it refers to is on disk.

        ``prepare`` has to come first in each run: a tree that is there counts as that version's.

        :param sources: for each item id whose tree is not there yet, where its files come from.
        :returns: the new generation's number.
        :raises TreeError: an archive is not, or no longer, what was verified.
        :raises StoreError: the volume is full or failing; what was published stays.
        """
        number = max(self._linked_number() or 0, *self.generation_numbers(), 0) + 1
        from clr_client.vcsp.manifests import manifests

        texts = manifests(library)
        try:
            for item in library.items:
                if not self.tree(item).is_dir():
                    if item.id not in sources:
                        raise StoreError(
                            f"the files of {item.name!r} are gone from the volume and cannot come again now",
                            "Leave it out (SYNC_EXCLUDE), or see why it is held: clr status",
                        )
                    self._build_tree(item, texts.item[item.id], sources[item.id])
            self._build_generation(number, library, texts.lib, texts.items)
            self._flip(number)
        except OSError as error:
            raise unusable(self.root, error) from error
        return number

    def _build_tree(self, item: PublishedItem, manifest: bytes, source: TreeSource) -> None:
        tree = self.tree(item)
        tree.parent.mkdir(exist_ok=True)
        unfinished = tree.with_name(UNFINISHED + tree.name)
        remove(unfinished)
        unfinished.mkdir()
        try:
            self._fill_tree(unfinished, item, manifest, source)
        except (OSError, ClrError):
            with suppress(OSError):  # room again, also on a volume that is full
                remove(unfinished)
            raise
        unfinished.rename(tree)
        sync_folder(tree.parent)
        sync_folder(self.items)

    def _fill_tree(self, unfinished: Path, item: PublishedItem, manifest: bytes, source: TreeSource) -> None:
        from clr_client.content.ova import unpack

        if source.unpack:
            packed = {file.name: file.digest for file in item.files if file.name not in source.files}
            try:
                unpack(
                    source.unpack,
                    unfinished,
                    expected={name: digest.removeprefix("sha256:") for name, digest in packed.items()},
                )
            except HeldError as error:
                raise TreeError(item.key, error.message) from error
        for name, path in source.files.items():
            link(path, unfinished / name)
        write_file(unfinished / "item.json", manifest)
        sync_folder(unfinished)

    def _build_generation(self, number: int, library: PublishedLibrary, lib: bytes, items: bytes) -> None:
        from clr_client.vcsp import record

        folder = self.generations / f"{UNFINISHED}{number}"
        folder.mkdir()
        (folder / "_items").symlink_to("../../items")
        link_names(folder, library.items)
        write_file(folder / STATE, record.dump(library))
        write_file(folder / "items.json", items)
        write_file(folder / "lib.json", lib)
        write_file(folder / PUBLISHED, moments.dump(moments.now()))
        sync_folder(folder)
        folder.rename(self.generations / str(number))
        sync_folder(self.generations)

    def _flip(self, number: int) -> None:
        unfinished = self.root / f"{UNFINISHED}current"
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(f"generations/{number}")
        unfinished.rename(self.current)
        sync_folder(self.root)

    def prune(self, keep: int, grace: timedelta) -> None:
        """Remove generations beyond the newest ``keep`` once they were replaced ``grace`` ago, and their trees.

        Steps of the clock on the wall do not count; see ``moments``.
        """
        current = self.current_number()
        if current is None:
            return
        numbers = self.generation_numbers()
        now = moments.now()
        kept = set(numbers[-keep:]) | {current}
        for number, successor in pairwise(numbers):
            replaced_for = self.published_at(successor).seconds_until(now)
            if number not in kept and replaced_for >= grace.total_seconds():
                _discard(self.generations / str(number))
            else:
                kept.add(number)
        if kept < set(numbers):
            self._clear_trees(sorted(kept))

    def published_at(self, number: int) -> Moment:
        """Say when a generation was published; of those of earlier releases the folder's time is all that is known."""
        folder = self.generations / str(number)
        with suppress(OSError):
            if moment := moments.load((folder / PUBLISHED).read_bytes()):
                return moment
        return Moment("", 0.0, folder.stat().st_mtime)

    def _clear_trees(self, numbers: Iterable[int]) -> None:
        """Remove unfinished trees, and those that no generation of these names; not while one cannot be read."""
        named: set[tuple[str, str]] = set()
        is_sure = True
        try:
            for number in numbers:
                named |= {(item.uuid, str(item.version)) for item in self.read_generation(number).items}
        except ManifestError as error:
            log.warning("no old files are removed: %s", error)
            is_sure = False
        for uuid in os.listdir(self.items):
            trees = sorted(os.listdir(self.items / uuid))  # unfinished ones first
            for tree in trees:
                if tree.startswith(UNFINISHED) or (is_sure and (uuid, tree) not in named):
                    _discard(self.items / uuid / tree)
            if is_sure and not any((uuid, tree) in named for tree in trees):
                (self.items / uuid).rmdir()

    def prune_mirror(self, keep: set[str]) -> None:
        """Remove files from the mirror that are not in ``keep`` (paths relative to it), and folders left empty."""
        top = f"{self.mirror}/"
        for folder, _, names in os.walk(self.mirror, topdown=False):
            inside = f"{folder}/".removeprefix(top)
            gone = [name for name in names if f"{inside}{name}" not in keep]
            for name in gone:
                Path(folder, name).unlink(missing_ok=True)
            if inside and len(gone) == len(names) and not os.listdir(folder):
                Path(folder).rmdir()

    def free_bytes(self) -> int:
        """Return how many bytes the volume can still take for an ordinary user."""
        room = os.statvfs(self.root)
        return room.f_bavail * room.f_frsize


def _write_pins(path: Path, pins: list[tuple[int, int]]) -> None:
    replace_file(path, "".join(f"{target} {replaced}\n" for target, replaced in pins).encode())


def _discard(folder: Path) -> None:
    """Remove a generation or an item tree; its name goes first, so that nobody meets half of it."""
    doomed = folder
    if not folder.name.startswith(UNFINISHED):
        doomed = folder.with_name(f"{UNFINISHED}{folder.name}")
        folder.rename(doomed)
    remove(doomed)


def _lifted(library: PublishedLibrary, lost: int) -> PublishedLibrary:
    """Return ``library`` as if ``lost`` unknown generations had followed it: each may have changed everything."""
    from clr_client.vcsp.model import ADOPTED

    items = (
        dataclasses.replace(
            item,
            version=item.version + lost,
            content_version=item.content_version + lost,
            etag=item.etag + lost,
            files=tuple(
                dataclasses.replace(file, digest="", generation_num=file.generation_num + lost) for file in item.files
            ),
        )
        for item in library.items
    )
    return dataclasses.replace(library, version=library.version + lost, href_style=ADOPTED, items=tuple(items))


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False
