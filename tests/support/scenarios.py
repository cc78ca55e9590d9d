"""What can be interrupted: volumes at the beginning of a run that has something to do, and that run.

Each scenario is one of the ways in which the client changes a volume. All of it runs in child processes of
``faultpoints.run``, against a ``LocalSource``.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clr_client import settings as clr_settings
from clr_client import transport
from clr_client.errors import TransportError
from clr_client.rollback import release, roll_back
from clr_client.store import Store
from clr_client.sync import synchronise

from support import faultpoints
from support.local_source import LocalSource
from support.original import leave_original
from support.reading import Served, Witness, listing, read
from support.templates import fake_template, pack_ova, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from clr_client.reporting.status import Report

    from support.faultpoints import Ended, Fail, Kill

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMVb4VHXyr0vHUoDq3HDWcJpBFnJQmWkCcYGAfeEVFUX server"


class Bench:
    """A site's volume ``library`` that syncs from the folder ``source``, put back to where it began for each run."""

    def __init__(self, home: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        self.source = home / "source"
        self.library = home / "library"
        self.saved = home / "saved"
        self.parts = home / "parts"
        for folder in (self.source, self.library, self.parts):
            folder.mkdir(parents=True)
        self.do(scenario.begin, expect_success=True)
        subprocess.run(["cp", "-a", self.library, self.saved], check=True)
        self.before = read(self.library / "current")

    def reset(self) -> None:
        """Put the volume back to where the scenario begins, times and hard links included."""
        shutil.rmtree(self.library)
        subprocess.run(["cp", "-a", self.saved, self.library], check=True)

    def do(
        self, what: Callable[[Bench], object], fault: Kill | Fail | None = None, *, expect_success: bool = False
    ) -> Ended:
        """Do something with the volume in a process of its own, perhaps with a fault."""
        ended = faultpoints.run(lambda: what(self), self.library, fault)
        assert not (expect_success and (ended.error or ended.killed)), f"{ended.error}: {ended.text}\n{ended.log}"
        return ended

    def served(self) -> Served | None:
        """Read what is published now."""
        return read(self.library / "current")

    @property
    def store(self) -> Store:
        """Return the volume."""
        return Store(self.library)

    def settings(self, **changes: str) -> clr_settings.Settings:
        """Return the site's settings, with changes."""
        environment = {
            "SYNC_PEER": "primary",
            "SYNC_HOST_KEY": HOST_KEY,
            "SYNC_MAX_DELETE": "100%",
            "LIBRARY_NAME": "Test",
            "CLR_LIBRARY_DIR": str(self.library),
            "CLR_KEYS_DIR": str(self.library.parent / "keys"),
        }
        return clr_settings.load({**environment, **changes})[0]

    def sync(self, **changes: str) -> Report:
        """Sync once; in a child process only."""
        LocalSource(self.source).install()
        return asyncio.run(synchronise(self.settings(**changes), trigger="test"))

    def template(self, name: str, revision: int = 0) -> None:
        """Put a template of a few files at the source."""
        fake_template(self.source / name, revision=revision, disk_bytes=70_000)

    def archive(self, name: str, revision: int = 0) -> None:
        """Put an OVA at the source."""
        folder = self.parts / f"{name}-{revision}"
        fake_template(folder, name=name, revision=revision, disk_bytes=30_000)
        pack_ova(folder, self.source / f"{name}.ova")


@dataclass(frozen=True)
class Scenario:
    """``begin`` makes the volume; ``work`` is the run that meets the fault.

    ``again`` is what follows when that did not end well: the next run on schedule, or a person who repeats a command.
    ``middle`` ends where ``work`` publishes for the first time, if it does so twice. ``or_never``: nobody repeats it,
    so what did not get as far as publishing has to be as if it had never been tried.
    """

    begin: Callable[[Bench], object]
    work: Callable[[Bench], object]
    again: Callable[[Bench], object]
    middle: Callable[[Bench], object] | None = None
    or_never: bool = False


def _sync(bench: Bench) -> Report:
    return bench.sync()


def _sync_and_prune(bench: Bench) -> Report:
    return bench.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")


def _fill(bench: Bench) -> None:
    for name in ("same", "changed", "old-name", "removed"):
        bench.template(name)
    bench.archive("packed")
    replace(bench.source / "tools.iso", random.Random(0).randbytes(3000))


def _change(bench: Bench) -> None:
    bench.template("changed", revision=1)
    bench.template("added")
    (bench.source / "old-name").rename(bench.source / "old-name-2")
    shutil.rmtree(bench.source / "removed")
    bench.archive("packed", revision=1)
    replace(bench.source / "tools.iso", random.Random(1).randbytes(3000))


def _before_a_first_sync(bench: Bench) -> None:
    bench.template("one")
    bench.archive("two")
    replace(bench.source / "tools.iso", b"x" * 3000)


def _before_every_kind_of_change(bench: Bench) -> None:
    _fill(bench)
    bench.sync()
    _change(bench)


def _before_there_is_nothing_to_do(bench: Bench) -> None:
    _fill(bench)
    bench.sync()


def _before_it_is_known_that_nothing_has_changed(bench: Bench) -> None:
    _before_there_is_nothing_to_do(bench)
    bench.sync()


def _before_pruning(bench: Bench) -> None:
    for revision in range(3):
        bench.template("one", revision)
        bench.template(f"only-{revision}")
        bench.sync(LIBRARY_KEEP="9")
        shutil.rmtree(bench.source / f"only-{revision}")
    bench.sync(LIBRARY_KEEP="9")


def _before_joining(bench: Bench) -> None:
    """A transfer was cut twice: one file is joined, of another a part lies there, of a third rsync's temporary file."""
    _fill(bench)
    bench.sync()
    for name in ("changed", "same"):
        bench.template(name, revision=1)
    bench.template("added")
    for name, place in (
        ("changed", ".clr-partial/changed-disk1.vmdk"),
        ("same", ".same-disk1.vmdk.Xy12zQ"),
        ("added", ".clr-partial/added-disk1.vmdk"),
    ):
        part = bench.store.mirror / name / place
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes((bench.source / name / f"{name}-disk1.vmdk").read_bytes()[:40_000])


def _before_adoption(bench: Bench) -> None:
    for name in ("one", "two", "items"):
        bench.template(name)
    shutil.copytree(bench.source, bench.library, dirs_exist_ok=True)
    leave_original(bench.library)
    bench.template("two", revision=1)


def _sync_without_a_line(bench: Bench) -> None:
    async def refuse(link: transport.Link, on_files: Callable[[int], object] = lambda _: None) -> transport.Listing:
        raise TransportError(f"no line to {link.peer}")

    LocalSource(bench.source).install()
    transport.list_source = refuse
    try:
        asyncio.run(synchronise(bench.settings(SYNC_RETRIES="0"), trigger="test"))
    except TransportError:
        return


def _before_a_rollback(bench: Bench) -> None:
    _fill(bench)
    bench.sync()
    _change(bench)
    bench.sync()
    bench.template("added", revision=1)
    bench.sync()
    bench.template("added", revision=2)


def _roll_back(number: int) -> Callable[[Bench], object]:
    return lambda bench: roll_back(bench.settings(), bench.store, number)


def _roll_back_unless_done(number: int) -> Callable[[Bench], object]:
    def again(bench: Bench) -> object:
        if bench.store.rolled_back_to() != number:
            return roll_back(bench.settings(), bench.store, number)
        return bench.sync()

    return again


def _before_a_second_rollback(bench: Bench) -> None:
    _before_a_rollback(bench)
    _roll_back(2)(bench)


def _release(bench: Bench) -> object:
    return release(bench.store)


def _release_and_sync(bench: Bench) -> object:
    release(bench.store)
    return bench.sync()


SCENARIOS = {
    "a first sync": Scenario(_before_a_first_sync, _sync, _sync),
    "every kind of change": Scenario(_before_every_kind_of_change, _sync_and_prune, _sync_and_prune),
    "nothing to do": Scenario(_before_there_is_nothing_to_do, _sync, _sync),
    "nothing changed since": Scenario(_before_it_is_known_that_nothing_has_changed, _sync, _sync),
    "pruning": Scenario(_before_pruning, _sync_and_prune, _sync_and_prune),
    "joining what a cut left": Scenario(_before_joining, _sync, _sync),
    "adoption": Scenario(_before_adoption, _sync, _sync, _sync_without_a_line),
    "a rollback": Scenario(_before_a_rollback, _roll_back(1), _roll_back_unless_done(1)),
    "a rollback that nobody repeats": Scenario(_before_a_rollback, _roll_back(1), _sync, or_never=True),
    "a second rollback that nobody repeats": Scenario(_before_a_second_rollback, _roll_back(1), _sync, or_never=True),
    "a release": Scenario(_before_a_second_rollback, _release, _release_and_sync),
}


@dataclass(frozen=True)
class End:
    """How a volume ends: what it serves, and all that lies on it."""

    served: Served | None
    listing: dict[str, str]


class Reference:
    """What an undisturbed run publishes on its way (``stages``), at which ``points``, and how it ends."""

    def __init__(self, bench: Bench) -> None:
        scenario = bench.scenario
        self.stages = [bench.before]
        if scenario.middle:
            bench.reset()
            bench.do(scenario.middle, expect_success=True)
            self.stages.append(bench.served())
        bench.reset()
        self.points = bench.do(scenario.work, expect_success=True).points
        self.stages.append(bench.served())
        self.end = self._end(bench)
        bench.reset()
        self.end_without = self._end(bench) if scenario.or_never else self.end

    def _end(self, bench: Bench) -> End:
        bench.do(bench.scenario.again, expect_success=True)
        return End(bench.served(), listing(bench.library))


def hold_against(bench: Bench, good: Reference, *, in_part: bool = False) -> None:
    """Check what readers have after an interruption of ``work``, and what the next run makes of the volume.

    :param in_part: the run went on without some items, so each item is the old or the new one, and numbers differ.
    """
    witness = Witness()
    witness.see(bench.before)
    served = bench.served()
    witness.see(served)
    stages = [shown(stage) for stage in good.stages]
    in_part = in_part and shown(served) not in stages
    if in_part and served:
        known = [stage.contents.items() for stage in good.stages if stage]
        assert all(any(item in items for items in known) for item in served.contents.items()), "a mixture is served"
    else:
        assert shown(served) in stages, "neither the old nor the new library is served"
    end = good.end if in_part or shown(served) == stages[-1] else good.end_without
    bench.do(bench.scenario.again, expect_success=True)
    witness.see(bench.served())
    assert witness.last is not None
    assert end.served is not None
    if in_part:
        assert witness.last.contents == end.served.contents, "the next run ends with another library"
        differing = sorted(_places(listing(bench.library)) ^ _places(end.listing))
    else:
        assert shown(witness.last) == shown(end.served), "the next run ends with another library"
        differing = sorted(" ".join(entry) for entry in listing(bench.library).items() ^ end.listing.items())
    assert not differing, f"the volume is not that of an undisturbed run: {differing}"


def _places(entries: Iterable[str]) -> set[str]:
    return {re.sub(r"\d+", "0", path) for path in entries}


def shown(served: Served | None) -> object:
    """Return what of a library does not depend on chance and clock."""
    return served and (served.contents, served.versions)


_DECISIVE = re.compile(
    r"(rename|symlink|remove|write) (\.new-current|(\.new-)?pinned|\.adopting|lib\.json|generations/\S+\d)$"
)


def chosen(points: Sequence[str], what: str) -> list[int]:
    """Choose points by number: before and after those that decide what is published, and one by chance of those below
    each entry of the volume. All with CLR_FULL; CLR_SEED varies the choice.
    """
    numbers = range(1, len(points) + 1)
    if os.environ.get("CLR_FULL"):
        return list(numbers)
    seed = os.environ.get("CLR_SEED", "1")
    decisive = {number for number in numbers if _DECISIVE.search(points[number - 1])}
    taken = decisive | {number + 1 for number in decisive if number < len(points)}
    below: dict[str, list[int]] = {}
    for number in numbers:
        entry = points[number - 1].split()[2].partition("/")[0].removeprefix(".new-")
        below.setdefault(entry, []).append(number)
    taken |= {random.Random(f"{seed} {what} {entry}").choice(those) for entry, those in below.items()}
    print(f"{what}: {len(taken)} of {len(points)} points, CLR_SEED={seed}")
    return sorted(taken)
