"""What a subscriber remembers and does with a newer library: the specification's algorithm, pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clr_client.errors import SubscriberError
from clr_client.vcsp.rules import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from clr_client.vcsp.rules import JsonObject, RemoteFile, RemoteItem, RemoteLibrary


@dataclass(frozen=True, slots=True)
class KnownItem:
    """An item as it was taken over: ``entry`` is its JSON object, ``files`` by name."""

    version: int
    entry: JsonObject
    files: Mapping[str, RemoteFile]


@dataclass(frozen=True, slots=True)
class Known:
    """What a subscriber remembers of a library: its items by id; removed items' ids and last versions."""

    id: str
    version: int
    items: Mapping[str, KnownItem] = field(default_factory=dict)
    gone: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """What to do for one item: load ``load``, keep its other files. ``is_new``: it was not known."""

    item: RemoteItem
    load: tuple[RemoteFile, ...]
    is_new: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """What to do to follow a library: items to take over, and the ids of those to remove."""

    take: tuple[Step, ...]
    remove: tuple[str, ...]


def newer(known: Known | None, library: RemoteLibrary) -> bool:
    """Whether there is something to follow: the version is the only thing that a subscriber looks at.

    Raises SubscriberError when the library is another one, or its version went back.
    """
    if known is None:
        return True
    if library.id != known.id:
        raise SubscriberError(f"The library is now {library.id}, no longer {known.id}: subscribers do not follow")
    if library.version < known.version:
        text = f"The library's version went back from {known.version} to {library.version}"
        raise SubscriberError(f"{text}: subscribers stop to follow")
    return library.version > known.version


def steps(known: Known | None, items: Iterable[RemoteItem]) -> Steps:
    """What to do to follow a library that grew.

    Files are loaded when they are new or their generation grew; without generationNum, vCenter compares etags
    as numbers. Raises SubscriberError when vCenter would fail at that, or would silently keep something
    stale: an item's version went back or its content changed without it, a removed item came back with no
    greater version.
    """
    before = known.items if known else {}
    gone: Mapping[str, int] = known.gone if known else {}
    take = []
    present = set()
    for item in items:
        present.add(item.id)
        if item.version <= gone.get(item.id, 0):
            text = f"Item {shown(item.name)} has the id of an item that was removed at version {gone[item.id]}"
            raise SubscriberError(f"{text}, and no greater version")
        old = before.get(item.id)
        if old is None:
            take.append(Step(item, item.files, is_new=True))
        elif _grew(old, item):
            take.append(Step(item, tuple(file for file in item.files if _is_stale(old, file, item)), is_new=False))
    return Steps(tuple(take), tuple(item_id for item_id in before if item_id not in present))


def _grew(old: KnownItem, item: RemoteItem) -> bool:
    if item.version < old.version:
        text = f"The version of item {shown(item.name)} went back from {old.version} to {item.version}"
        raise SubscriberError(text)
    if item.version == old.version and item.raw != old.entry:
        raise SubscriberError(f"Item {shown(item.name)} changed, but its version is still {item.version}")
    return item.version > old.version


def _is_stale(old: KnownItem, file: RemoteFile, item: RemoteItem) -> bool:
    """Whether ``file`` has to be loaded although the item is known."""
    kept = old.files.get(file.name)
    if kept is None:
        return True
    before, now = _generation(kept, item), _generation(file, item)
    if now < before:
        raise SubscriberError(f"The generation of {shown(file.name)} of item {shown(item.name)} went back")
    if now == before and file.size != kept.size:
        text = f"{shown(file.name)} of item {shown(item.name)} changed, but its generation is still {now}"
        raise SubscriberError(text)
    return now > before


def _generation(file: RemoteFile, item: RemoteItem) -> int:
    if file.generation is not None:
        return file.generation
    if file.etag.isdecimal():
        return int(file.etag)
    text = f"Item {shown(item.name)} cannot be updated: the etag {shown(file.etag)} is not a number"
    raise SubscriberError(text)
