"""What a sync would do: the source's listing held against what is here. Pure; `clr plan` prints it and stops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from clr_client.content.items import group
from clr_client.content.names import fold
from clr_client.errors import GuardError, Trouble
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from clr_client.content.items import SourceItem
    from clr_client.files import FileInfo
    from clr_client.settings import Settings
    from clr_client.values import DeleteLimit
    from clr_client.vcsp.model import PublishedLibrary


SHOWN = 5
NOT_CHOSEN = "not chosen by SYNC_INCLUDE and SYNC_EXCLUDE"
INCOMPLETE = "the server could not read all of its library"

EMPTY_SOURCE = Trouble(
    "the server's library is empty, so nothing was changed here",
    "Is its storage mounted? If it is meant to be empty: clr sync --allow-deletes",
)
TOO_MANY_GONE = Trouble(
    "{gone} of {published} items {why} ({names}), more than SYNC_MAX_DELETE={limit} allows to remove, so nothing was"
    " changed here",
    "If that is meant: clr sync --allow-deletes",
)
NO_ROOM = Trouble(
    "the plan needs {needed:,} bytes and the library volume has {free:,} free, so nothing was fetched",
    "Make room, choose fewer items (SYNC_EXCLUDE), or lower LIBRARY_KEEP and LIBRARY_GRACE",
)


class Action(StrEnum):
    """What becomes of one item."""

    ADD = "add"
    UPDATE = "update"
    REMOVE = "remove"
    KEEP = "keep"
    """Nothing changed at the source."""
    LEAVE = "leave"
    """Something changed, but a switch or an incomplete listing says to leave the item as it is."""
    SKIP = "skip"
    """At the source, not here, and not wanted here."""


@dataclass(frozen=True, slots=True)
class ItemPlan:
    """One item's part of the plan. ``fetch`` is what has to cross the line, ``source`` is None for a removal.

    ``older`` are those files of ``fetch`` that the source has with an earlier time than the one here.
    """

    key: str
    action: Action
    source: SourceItem | None = None
    fetch: tuple[FileInfo, ...] = ()
    note: str = ""
    older: tuple[FileInfo, ...] = ()

    @property
    def bytes(self) -> int:
        """Size of the files to fetch, in bytes: the most that can cross the line."""
        return sum(file.size for file in self.fetch)


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole library's plan, sorted by key."""

    items: tuple[ItemPlan, ...]

    def having(self, *actions: Action) -> tuple[ItemPlan, ...]:
        """Return the items with one of these actions."""
        return tuple(item for item in self.items if item.action in actions)

    @property
    def fetch(self) -> tuple[FileInfo, ...]:
        """All files to fetch, those of small items first so that these can be published early."""
        return tuple(
            file for item in sorted(self.items, key=lambda item: (item.bytes, item.key)) for file in item.fetch
        )

    @property
    def bytes(self) -> int:
        """Size of all files to fetch, in bytes."""
        return sum(item.bytes for item in self.items)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which items a site takes, and which kinds of change."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    add: bool = True
    update: bool = True
    delete: bool = True

    @classmethod
    def of(cls, settings: Settings) -> Choice:
        """Read the choice from the settings."""
        return cls(
            settings.sync_include,
            settings.sync_exclude,
            settings.sync_add,
            settings.sync_update,
            settings.sync_delete,
        )

    def selects(self, item: SourceItem) -> bool:
        """Whether the globs let this item come here, by its path or by its name."""
        names = (item.key, item.default_name)
        wanted = not self.include or any(fnmatchcase(name, glob) for glob in self.include for name in names)
        return wanted and not any(fnmatchcase(name, glob) for glob in self.exclude for name in names)


def make_plan(
    source: Iterable[FileInfo],
    published: PublishedLibrary | None,
    mirror: Mapping[str, FileInfo],
    choice: Choice,
    *,
    complete: bool = True,
    caseless: bool = False,
) -> Plan:
    """Hold the source against the mirror and what is published.

    :param source: the files that the server lists.
    :param mirror: the files of ``mirror/`` by path; a file counts as unchanged when size and mtime agree.
    :param complete: False when parts of the source could not be read; then nothing counts as gone.
    :param caseless: whether paths that differ only by case are one and the same on the volume.
    """
    here = {item.key for item in published.items} if published else set()
    listed = {file.path: file for file in source}
    items = group(listed.values())
    mirrored = {item.key: item for item in (items if listed == mirror else group(mirror.values()))}
    plans = []
    for item in _told_apart(items, here) if caseless else items:
        fetch = tuple(file for file in parts(item) if mirror.get(file.path) != file)
        old = mirrored.get(item.key)
        if item.key in here and not complete and old and _paths(old) - _paths(item):
            plans.append(ItemPlan(item.key, Action.LEAVE, item, note=INCOMPLETE))
        else:
            plan = _plan_item(item, fetch, choice, here=item.key in here, changed=old != item)
            older = tuple(file for file in plan.fetch if file.path in mirror and file.mtime < mirror[file.path].mtime)
            plans.append(replace(plan, older=older) if older else plan)
    for key in here - {plan.key for plan in plans}:
        if not complete:
            plans.append(ItemPlan(key, Action.LEAVE, note=INCOMPLETE))
        elif not choice.delete:
            plans.append(ItemPlan(key, Action.LEAVE, note="gone at the server; SYNC_DELETE=false keeps it"))
        else:
            plans.append(ItemPlan(key, Action.REMOVE))
    return Plan(tuple(sorted(plans, key=lambda plan: plan.key)))


def _told_apart(items: Iterable[SourceItem], here: Collection[str]) -> Iterator[SourceItem]:
    """Give a problem to each item whose path another one has in other letters; those that are ``here`` come first."""
    spelling: dict[str, str] = {}
    for item in sorted(items, key=lambda item: (item.key not in here, item.key)):
        segments = item.key.split("/")
        paths = ["/".join(segments[:end]) for end in range(1, len(segments) + 1)]
        other = next((spelling[fold(path)] for path in paths if spelling.get(fold(path), path) != path), None)
        if other is None:
            spelling |= {fold(path): path for path in paths}
            yield item
        else:
            yield replace(item, problem=f'the library volume cannot tell it from "{printable(other)}"')


def _plan_item(item: SourceItem, fetch: tuple[FileInfo, ...], choice: Choice, *, here: bool, changed: bool) -> ItemPlan:
    passed_over = Action.LEAVE if here else Action.SKIP
    if not choice.selects(item):
        action = Action.REMOVE if here and choice.delete else passed_over
        return ItemPlan(item.key, action, item, note=NOT_CHOSEN)
    if item.problem:
        return ItemPlan(item.key, passed_over, item, note=item.problem)
    if not here:
        if not choice.add:
            return ItemPlan(item.key, Action.SKIP, item, note="new; SYNC_ADD=false leaves it out")
        return ItemPlan(item.key, Action.ADD, item, fetch)
    if changed and not choice.update:
        return ItemPlan(item.key, Action.LEAVE, item, note="changed; SYNC_UPDATE=false leaves it as it is")
    return ItemPlan(item.key, Action.UPDATE if changed else Action.KEEP, item, fetch)


def _paths(item: SourceItem) -> set[str]:
    return {file.path for file in parts(item)}


def parts(item: SourceItem) -> tuple[FileInfo, ...]:
    """All files that have to be here before an item can be published, its metadata file included."""
    return (*item.files, item.metadata) if item.metadata else item.files


def guard(
    plan: Plan,
    *,
    published: int,
    limit: DeleteLimit,
    needed_bytes: int,
    free_bytes: int,
    allow_deletes: bool = False,
) -> None:
    """Refuse a plan that looks like a disaster at the source or could not fit here. Touches nothing.

    :param published: number of items published now.
    :param needed_bytes: what the volume must still take; ``free_bytes``: what it has.
    :raises GuardError: with the reason and the override.
    """
    if not allow_deletes:
        guard_source(plan)
        guard_removals(plan, published=published, limit=limit)
    guard_space(needed_bytes, free_bytes)


def guard_source(plan: Plan) -> None:
    """Refuse a source that has nothing. Raises GuardError."""
    if not any(item.source for item in plan.items):
        raise GuardError(*EMPTY_SOURCE.told())


def guard_removals(plan: Plan, *, published: int, limit: DeleteLimit) -> None:
    """Refuse to remove more than the limit allows. Raises GuardError."""
    gone = plan.having(Action.REMOVE)
    if limit.allows(len(gone), published):
        return
    names = ", ".join([*(item.key for item in gone[:SHOWN]), *(["..."] if len(gone) > SHOWN else [])])
    told = TOO_MANY_GONE.told(gone=len(gone), published=published, why=_why(gone), names=names, limit=limit)
    raise GuardError(*told)


def guard_space(needed_bytes: int, free_bytes: int) -> None:
    """Refuse a plan that the volume has no room for. Raises GuardError."""
    if needed_bytes > free_bytes:
        raise GuardError(*NO_ROOM.told(needed=needed_bytes, free=free_bytes))


def _why(gone: Iterable[ItemPlan]) -> str:
    notes = {item.note for item in gone}
    if notes == {NOT_CHOSEN}:
        return f"are {NOT_CHOSEN}"
    return f"are gone at the server or {NOT_CHOSEN}" if NOT_CHOSEN in notes else "are gone at the server"
