"""What can be wrong with the library volume, and with what a sync would bring to it."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from clr_client import filesystem, lock, update
from clr_client.disk import UNFINISHED
from clr_client.doctor.finding import Finding, Findings, ok, problem, skipped, warning
from clr_client.errors import Trouble
from clr_client.plan import Action, guard_removals, guard_source, guard_space
from clr_client.pull import RESERVE_BYTES, needed_bytes
from clr_client.text import printable, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clr_client.doctor.case import Case
    from clr_client.plan import Plan

SHOWN = 5
AHEAD_SECONDS = 24 * 3600
"""More than any mistake about time zones makes of a file's time."""

NO_HARD_LINKS = Trouble(
    "the file system of the library volume {root} has no hard links, so every file takes its space twice",
    "Use one that has, if space is short: ext4, XFS and Btrfs do",
)
CASELESS = Trouble(
    "the file system of the library volume {root} does not tell upper from lower case: of items whose names differ by"
    " that alone, one is held",
    "Use one that does, or rename at the server: ext4, XFS and Btrfs do",
)
SPLIT = Trouble(
    "{folder} is another file system than the library volume {root}, and hard links cannot join them",
    "Mount one file system for all of the library volume",
)
NO_INODES = Trouble(
    "the file system of the library volume {root} can take no more files, though it has space",
    "Remove files there, or use a file system made with more inodes (mkfs -N)",
)
LITTLE_ROOM = Trouble(
    "the library volume {root} has {free:,} bytes free, fewer than the {reserve:,} that a sync wants to have over",
    "Make room, choose fewer items (SYNC_EXCLUDE), or lower LIBRARY_KEEP and LIBRARY_GRACE",
)
NOTHING_CHOSEN = Trouble(
    "none of the server's {count} items is chosen by SYNC_INCLUDE and SYNC_EXCLUDE",
    "Correct the globs: * and ? stand for any letters, several globs are separated by commas",
)
ITEM_HELD = Trouble(
    "{key} cannot be published: {reason}",
    "Mend it at the server; the other items go on (docs/how-to/refused-or-held.md)",
)
IN_FUTURE = Trouble(
    "{file} at the server is dated {time} UTC, which is in the future here: one of the two clocks is wrong, or was",
    "Compare the clocks (date -u) at both ends; certificates and the schedule go by the one here",
)
CLOCK_BEHIND = Trouble(
    "the clock here says {now} UTC, which is before this program was made ({made} UTC)",
    "Set the clock, and let it be kept by NTP: certificates and the schedule go by it",
)


def clock(case: Case) -> Findings:
    """Whether the clock here can be right. What NTP would say is not known."""
    now, made = time.time(), (Path(__file__).parent.parent / "__init__.py").stat().st_mtime
    if now < made:
        return [problem(CLOCK_BEHIND, now=_utc(now), made=_utc(made))]
    files = [file for listing in case.listings.values() for file in listing.files]
    newest = max(files, key=lambda file: file.mtime, default=None)
    if newest and newest.mtime > now + AHEAD_SECONDS:
        return [warning(IN_FUTURE, file=newest.path, time=_utc(newest.mtime))]
    seen = f"; the newest file at the server is of {_utc(newest.mtime)}" if newest else ""
    return [ok(f"{_utc(now)} UTC{seen}")]


def _utc(seconds: float) -> str:
    with suppress(OverflowError, ValueError, OSError):
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
    return str(seconds)


def file_system(case: Case) -> Findings:
    """What the file system can do, tried in a folder that is removed again."""
    root = case.store.root
    if not root.is_dir():
        return [skipped(f"{root} is made by the first sync")]
    for last in (False, True):
        try:
            return list(_tried(case, root))
        except FileNotFoundError:  # a sync that begins clears away what it takes for left over
            if last:
                raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM):
                return [skipped(f"nothing can be tried in {root}: {error.strerror}")]
            raise
    return []


def _tried(case: Case, root: Path) -> Iterator[Finding]:
    with TemporaryDirectory(dir=root, prefix=f"{UNFINISHED}doctor-") as made:
        folder = Path(made)
        (folder / lock.NAME).touch()
        filesystem.refuse_without_links(root, folder)
        case.shares_files = filesystem.shares_files(folder)
        case.is_caseless = filesystem.is_caseless(folder)
    device = root.stat().st_dev
    store = case.store
    apart = [part for part in (store.mirror, store.items, store.generations) if part.is_dir()]
    apart = [part for part in apart if part.stat().st_dev != device]
    yield from (problem(SPLIT, folder=part, root=root) for part in apart)
    if not case.shares_files:
        yield warning(NO_HARD_LINKS, root=root)
    if case.is_caseless:
        yield warning(CASELESS, root=root)
    if case.shares_files and not case.is_caseless and not apart:
        yield ok(f"{root} has symbolic and hard links, and tells upper from lower case")


def plan(case: Case) -> Findings:
    """What a sync would do by the first listing there is, and what would keep it from that."""
    if not case.listings:
        return [skipped("no server could be listed")]
    listing = next(iter(case.listings.values()))
    settings, store = case.settings, case.store
    found = update.plan_for(settings, store, listing, update.mirrored(store), caseless=case.is_caseless)
    case.plan = found
    guard_source(found)
    guard_removals(found, published=_published(case), limit=settings.sync_max_delete)
    return [*_held(found), *_summary(found)]


def _published(case: Case) -> int:
    library = case.store.published() if case.store.generations.is_dir() else None
    return len(library.items) if library else 0


def _held(found: Plan) -> Iterator[Finding]:
    held = [item for item in found.items if item.source and item.source.problem and item.note == item.source.problem]
    for item in held[:SHOWN]:
        yield warning(ITEM_HELD, key=printable(item.key), reason=item.note)
    if len(held) > SHOWN:
        yield warning(ITEM_HELD, key=f"{len(held) - SHOWN} more items", reason="see clr plan")


def _summary(found: Plan) -> Iterator[Finding]:
    wanted = found.having(Action.ADD, Action.UPDATE, Action.KEEP)
    listed = [item for item in found.items if item.source]
    if not wanted and not any(item.source and item.source.problem for item in listed):
        yield warning(NOTHING_CHOSEN, count=len(listed))
        return
    counts = ", ".join(f"{action.value} {len(found.having(action))}" for action in Action if found.having(action))
    yield ok(f"a sync would {counts} items, and fetch {len(found.fetch)} files of at most {size(found.bytes)}")


def space(case: Case) -> Findings:
    """Whether the volume has room for the plan."""
    store = case.store
    root = store.root if store.root.is_dir() else next(part for part in store.root.parents if part.is_dir())
    room = os.statvfs(root)
    free = room.f_bavail * room.f_frsize
    needed = 0
    if case.plan and case.plan.fetch:
        needed = needed_bytes(case.plan, store, shares_files=case.shares_files)
    guard_space(needed, free)
    if room.f_files and not room.f_favail:
        return [problem(NO_INODES, root=root)]
    if free < RESERVE_BYTES:
        return [problem(LITTLE_ROOM, root=root, free=free, reserve=RESERVE_BYTES)]
    return [ok(f"{size(free)} free" + (f", and the plan needs {size(needed)}" if needed else ""))]
