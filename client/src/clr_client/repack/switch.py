"""New files for old: a step that a kill at any moment leaves either undone, or for the next run to complete.

What is new is made in a hidden folder of the template, which no server lists. One rename of that folder says that it
is complete; until then nothing else has changed, and from then on a run that finds it goes on where a killed one
stopped.

While the files are put in place, one after the other, a client may meet a mixture. It holds the item then, because the
manifest does not match, or, without a manifest, because a disk has another size than the OVF says. Where the OVF says
no size either, each mixture is a sound template: old and new disks have the same content.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from clr_client.disk import remove, sync_folder, write_file
from clr_client.errors import RepackError
from clr_client.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

UNFINISHED = ".clr-repack.new"
"""Folder in the template in which the new files are made."""
COMPLETE = ".clr-repack.ready"
"""What that folder is called once all in it is verified."""

_PLAN = "plan.json"


def begin(folder: Path) -> Path:
    """Make the folder for the new files of a template, and return it."""
    (folder / UNFINISHED).mkdir(mode=0o700)
    return folder / UNFINISHED


def commit(folder: Path, infos: Mapping[str, os.stat_result], dropped: Iterable[str], last: Iterable[str]) -> None:
    """Put the new files in the place of the old ones, which have the status ``infos``, in any order but for ``last``.

    They get the old ones' owners and modes, and a later time: a client's rsync compares whole seconds. ``dropped``
    files go away before.

    :raises RepackError: an old file was changed since its status was taken; then nothing is changed here.
    """
    stage = folder / UNFINISHED
    steps: list[dict[str, Any]] = [{"name": name, "old": _identity(infos[name]), "new": None} for name in dropped]
    order = {name: number for number, name in enumerate(last, 1)}
    for name in sorted(os.listdir(stage), key=lambda name: (order.get(name, 0), name)):
        old = infos[name]
        with contextlib.suppress(PermissionError):
            os.chown(stage / name, old.st_uid, old.st_gid)
        (stage / name).chmod(old.st_mode & 0o7777)
        later = max((stage / name).stat().st_mtime_ns, (old.st_mtime_ns // 10**9 + 1) * 10**9)
        os.utime(stage / name, ns=(later, later))
        steps.append({"name": name, "old": _identity(old), "new": _identity((stage / name).stat())})
    write_file(stage / _PLAN, json.dumps({"steps": steps}).encode())
    sync_folder(stage)
    for name, info in infos.items():
        if _status(folder / name) != _identity(info):
            raise RepackError(
                f"{printable(name)} was changed meanwhile", "Try again when nobody writes to the template"
            )
    stage.rename(folder / COMPLETE)
    sync_folder(folder)
    _put_in_place(folder)


def abandon(folder: Path) -> None:
    """Clear away new files that were not committed."""
    remove(folder / UNFINISHED)


def is_incomplete(folder: Path) -> bool:
    """Whether a run was killed while it put files in place."""
    return (folder / COMPLETE).exists()


def _identity(info: os.stat_result) -> list[int]:
    return [info.st_size, info.st_mtime_ns, info.st_ino]


def recover(folder: Path) -> bool:
    """Clear away what a killed run left, or complete what it had begun to put in place. True if it was completed."""
    abandon(folder)
    if not is_incomplete(folder):
        return False
    if _can_go_on(folder):
        _put_in_place(folder)
        return True
    # Somebody has replaced the template since: what was made of the old one is worth nothing.
    (folder / COMPLETE).rename(folder / UNFINISHED)
    abandon(folder)
    return False


def _can_go_on(folder: Path) -> bool:
    try:
        for step in _plan(folder):
            here, staged = _status(folder / step["name"]), _status(folder / COMPLETE / step["name"])
            if staged is not None and here == step["old"] and staged == step["new"]:
                continue
            if staged is None and here in (step["new"], step["old"] if step["new"] is None else step["new"]):
                continue
            return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def _plan(folder: Path) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = json.loads((folder / COMPLETE / _PLAN).read_bytes())["steps"]
    if any(not isinstance(step["name"], str) or "/" in step["name"] or step["name"][:1] in ("", ".") for step in steps):
        raise ValueError(steps)
    return steps


def _status(path: Path) -> list[int] | None:
    try:
        return _identity(path.lstat())
    except FileNotFoundError:
        return None


def _put_in_place(folder: Path) -> None:
    """Do the steps of the plan that are still to be done."""
    for step in _plan(folder):
        if step["new"] is None:
            (folder / step["name"]).unlink(missing_ok=True)
        elif (folder / COMPLETE / step["name"]).exists():
            (folder / COMPLETE / step["name"]).rename(folder / step["name"])
    sync_folder(folder)
    remove(folder / COMPLETE)
    sync_folder(folder)
