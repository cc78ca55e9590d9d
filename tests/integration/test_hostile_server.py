"""A server that was taken over: it gets nothing written outside the mirror, changes nothing that is served, ends in a
clear error, and leaves nothing behind that keeps an honest server from being followed again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest
from clr_client.errors import ClrError, GuardError, TransportError
from clr_client.reporting.status import Report
from clr_client.store import Store
from clr_client.text import UNSAFE
from support.fake_rsync import Deed, Entry, Play, Point, folder, library
from support.impostor import Impostor
from support.site import Site, cli_environment
from support.templates import fake_template

if TYPE_CHECKING:
    from collections.abc import Iterator

FULL = os.environ.get("CLR_FULL") == "1"
MIB = 1 << 20
NAMES = {"alpha", "beta"}
# What a run may change besides what it publishes.
CHANGING = (
    "mirror",
    "basis",
    "status.json",
    "progress.json",
    ".lock",
    "digests.json",
    "settled.json",
    "known_hosts",
    "unconfirmed.json",
)
NOISE = os.urandom(200_000)
EVIL = b"evil"

Outcome: TypeAlias = "Report | ClrError"
Snapshot: TypeAlias = "dict[str, tuple[int, str]]"


def snapshot(root: Path, *left_out: str) -> Snapshot:
    """Everything below a folder by path: mode and digest of the content, or where a link leads."""
    found: Snapshot = {}
    for base, folders, names in os.walk(root):
        inside = os.path.relpath(base, root)
        folders[:] = [name for name in folders if os.path.normpath(f"{inside}/{name}") not in left_out]
        for name in (*folders, *names):
            path = Path(base, name)
            if (relative := os.path.normpath(f"{inside}/{name}")) not in left_out:
                mode = path.lstat().st_mode
                content = str(path.readlink()) if path.is_symlink() else ""
                if stat.S_ISREG(mode):
                    with path.open("rb") as file:
                        content = hashlib.file_digest(file, "sha256").hexdigest()
                found[relative] = mode, content
    return found


@dataclass
class Victim:
    """A site that followed an honest server until it was taken over; all of it lies below ``root``."""

    root: Path
    server: Impostor
    site: Site
    before: Snapshot = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)

    @property
    def library(self) -> Path:
        return self.server.library

    def honest(self) -> tuple[Entry, ...]:
        """What the honest server lists."""
        entries = [folder(b".")]
        for path in sorted(self.library.rglob("*")):
            name = os.fsencode(path.relative_to(self.library))
            is_file = path.is_file()
            entries.append(Entry(name, path.read_bytes(), mtime=int(path.stat().st_mtime)) if is_file else folder(name))
        return tuple(entries)

    def outside(self) -> Snapshot:
        """Everything but what a run may change."""
        return snapshot(self.root, "server", "primary", *(f"site/library/{name}" for name in CHANGING))

    def attack(self, play: Play, **changes: str) -> Outcome:
        """Sync from the server as it is now. What was there before is there still, whatever came of it."""
        self.server.play(play)
        try:
            outcome: Outcome = self.site.sync(**changes)
        except ClrError as error:
            outcome = error
        after = self.outside()
        new = after.keys() - self.before.keys()
        assert all(path.startswith(("site/library/items/", "site/library/generations/")) for path in new)
        assert {path: after.get(path) for path in self.before if path != "site/library/current"} == {
            path: content for path, content in self.before.items() if path != "site/library/current"
        }
        for path in self.site.store.mirror.rglob("*"):
            assert path.is_dir() or (path.is_file() and not path.is_symlink())
            assert not path.name.startswith(".") or path.name == ".clr-partial" or "." in path.suffix
        if isinstance(outcome, ClrError):
            assert after == self.before
            assert not UNSAFE.search(str(outcome))
        return outcome

    def recovers(self) -> None:
        """The honest server is followed again, and subscribers find its library; what is here then is remembered."""
        self.server.be_honest()
        assert self.site.sync(allow_deletes=True).result == "success"
        assert self.site.versions().keys() == NAMES
        mirror = snapshot(self.site.store.mirror)
        assert {path: content for path, (_, content) in mirror.items()} == {
            path: content for path, (_, content) in snapshot(self.library).items()
        }
        for name in NAMES:
            for file in (self.library / name).iterdir():
                assert self.site.content(name, file.name) == file.read_bytes()
        self.before, self.served = self.outside(), self.site.manifests()


@pytest.fixture(scope="module")
def _victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    root = tmp_path_factory.mktemp("victim")
    with make_victim(root) as victim:
        yield victim


@pytest.fixture
def victim(_victim: Victim) -> Iterator[Victim]:
    yield _victim
    _victim.recovers()


class make_victim:  # noqa: N801 - reads as the function that it is
    """A victim in ``root``, with a stranger's file beside it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> Victim:
        for name in sorted(NAMES):
            fake_template(self.root / "primary" / name, disk_bytes=50_000)
        (self.root / "stranger").write_bytes(b"not yours")
        server = Impostor(self.root / "primary", self.root / "server")
        server.start()
        try:
            site = Site(self.root / "site", server, SYNC_TIMEOUT="30s", SYNC_WINDOW="120s")
            victim = Victim(self.root, server, site)
            victim.recovers()
        except BaseException:
            server.stop()
            raise
        self.server = server
        return victim

    def __exit__(self, *_: object) -> None:
        self.server.stop()


def regular(*names: bytes) -> tuple[Entry, ...]:
    """Small files, and the folders that they lie in."""
    return tuple(entry for entry in library(dict.fromkeys(names, EVIL)) if entry.name != b".")


def special(name: bytes, kind: int) -> Entry:
    return Entry(name, mode=kind | 0o644)


# --- the fake itself: what is refused below is refused for what is wrong with it ---


def test_what_the_fake_sends_honestly_arrives(victim: Victim) -> None:
    contents = {"new/disk": NOISE, "new/deeper/file": b"f", "top": b""}
    report = victim.attack(Play((*victim.honest(), *library(contents)[1:])))
    assert isinstance(report, Report)
    assert report.result == "success"
    assert victim.site.content("new", "disk") == NOISE
    assert victim.site.content("deeper", "file") == b"f"


# --- names ---


REFUSED: tuple[tuple[Entry, ...], ...] = (
    (Entry(b"../evil", EVIL),),
    (Entry(b"/tmp/evil", EVIL),),
    (folder(b"a"), Entry(b"a/../../evil", EVIL)),
    (folder(b"new"), Entry(b"new/.state.json", EVIL)),
    (Entry(b".lock", EVIL),),
    (folder(b"alpha/.clr-partial"), Entry(b"alpha/.clr-partial/alpha.ovf", EVIL)),
    (Entry(b"/".join([b"d" * 249] * 20), EVIL),),
    (Entry(b"", EVIL),),
    (Entry(b"new", EVIL, mode=0),),
    (Entry(b"new", EVIL, size=-1),),
    (Entry(b"new", EVIL, size=-(1 << 63)),),
)


def test_a_listing_that_no_honest_server_sends_is_refused_as_such(victim: Victim) -> None:
    for evil in REFUSED:
        error = victim.attack(Play((*victim.honest(), *evil)))
        assert isinstance(error, TransportError), evil
        assert not error.retryable, evil
        assert "no honest server" in str(error), evil
        assert victim.site.manifests() == victim.served


def test_names_that_cannot_be_published_are_held_with_a_reason_and_nothing_of_them_is_fetched(victim: Victim) -> None:
    evil = (
        *(b"a/new\nline", b"b/\x1b[31m\x07", b"c/\xff\xfe", b"d/" + b"n" * 256, b"_items/x", b"e/\xe2\x80\xae"),
        *(b"lib.json/x", b"f/item.json/g", b"/".join([b"d" * 254] * 16), b"/".join([b"d"] * 40)),
    )
    report = victim.attack(Play((*victim.honest(), *regular(*evil))))
    assert isinstance(report, Report)
    assert report.result == "partial"
    assert report.planned_bytes == 0
    assert len(report.held) == len(evil)
    assert not any(UNSAFE.search(held.reason) for held in report.held)
    assert victim.site.manifests() == victim.served


def test_files_named_like_ours_are_ignored_or_ordinary_templates(victim: Victim) -> None:
    ignored = (b"lib.json", b"items.json", b"new/item.json", b"new/LIB.JSON", b"lost+found/x")
    ordinary = (
        b"current",
        b"status.json",
        b"known_hosts",
        b"pinned",
        b"generations/1/disk",
        b"mirror/x",
        b"index.html",
    )
    listed = [entry for entry in regular(*ignored, *ordinary) if not entry.name.startswith(b"lost")]
    report = victim.attack(Play((*victim.honest(), *listed)))
    assert isinstance(report, Report)
    assert report.held == ()
    added = {"current", "status.json", "known_hosts", "pinned", "1", "mirror", "index.html"}
    assert victim.site.versions().keys() == NAMES | added
    assert victim.site.store.rolled_back_to() is None
    for name in NAMES:
        assert victim.site.versions()[name] == "1"


def test_links_devices_and_pipes_are_not_there(victim: Victim) -> None:
    kinds = (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
    evil = tuple(special(b"x%d" % number, kind) for number, kind in enumerate(kinds))
    report = victim.attack(Play((*victim.honest(), *evil)))
    assert isinstance(report, Report)
    assert report.result == "success"
    assert victim.site.manifests() == victim.served


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFREG, stat.S_IFIFO])
def test_something_else_in_the_place_of_a_templates_folder(victim: Victim, kind: int) -> None:
    kept = tuple(entry for entry in victim.honest() if not entry.name.startswith(b"alpha"))
    outcome = victim.attack(Play((*kept, Entry(b"alpha", EVIL, mode=kind | 0o644))), SYNC_MAX_DELETE="100%")
    assert isinstance(outcome, Report)
    assert victim.site.versions()["beta"] == "1"
    if kind == stat.S_IFREG:
        assert victim.site.content("alpha", "alpha") == EVIL
    else:
        assert victim.site.versions().keys() == {"beta"}


SLIPPED: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"../evil",), "outside the library"),
    ((b"/etc/passwd",), "outside the library"),
    ((b"alpha",), "as a file and as a folder"),
    ((b"new", b"new/file"), "as a file and as a folder"),
    ((b"beta/beta.ovf",), "contradicts itself"),
)


def test_entries_slipped_into_the_clients_own_output_are_refused(victim: Victim) -> None:
    for names, told in SLIPPED:
        lines = tuple(b"-rw-r--r--              4 2026/11/21 10:00:00 " + name for name in names)
        error = victim.attack(Play(victim.honest(), lines=lines))
        assert isinstance(error, TransportError), names
        assert told in str(error)


# --- sizes and contents ---


def test_sizes_that_fit_nowhere_are_refused_before_anything_is_fetched(victim: Victim) -> None:
    evil = (folder(b"new"), Entry(b"new/f", EVIL, size=1 << 62), Entry(b"new/g", EVIL, size=(1 << 63) - 1))
    error = victim.attack(Play((*victim.honest(), *evil)))
    assert isinstance(error, GuardError)
    assert not (victim.site.store.mirror / "new").exists()


def test_files_that_are_not_what_was_listed_are_held(victim: Victim) -> None:
    evil = (
        *(folder(b"less"), Entry(b"less/f", EVIL, size=1000)),
        *(folder(b"more"), Entry(b"more/f", EVIL, size=1, more=100_000)),
        *(folder(b"other"), Entry(b"other/f", EVIL, digest=b"x" * 16)),
    )
    report = victim.attack(Play((*victim.honest(), *evil)))
    assert isinstance(report, Report)
    assert {held.key for held in report.held} == {"less", "more", "other"}
    assert victim.site.manifests() == victim.served


def test_a_file_without_end_does_not_fill_the_volume(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    error = victim.attack(Play((*victim.honest(), folder(b"new"), Entry(b"new/f", EVIL, size=10, more=-1))))
    assert isinstance(error, TransportError)
    assert "sends more than it listed" in str(error)
    assert kept_bytes(victim) < 70 * MIB

    # Nor does what it left keep the honest server's next template from being fetched.
    def room(store: Store) -> int:
        return 70 * MIB - kept_bytes(victim)

    monkeypatch.setattr(Store, "free_bytes", room)
    (victim.library / "gamma").mkdir()
    (victim.library / "gamma" / "disk").write_bytes(bytes(10 * MIB))
    victim.server.be_honest()
    try:
        assert victim.site.sync().result == "success"
        assert kept_bytes(victim) < 11 * MIB
    finally:
        shutil.rmtree(victim.library / "gamma")


def kept_bytes(victim: Victim) -> int:
    return sum(path.stat().st_size for path in victim.site.store.mirror.rglob("*") if path.is_file())


def test_many_files_that_are_larger_than_listed_do_not_fill_the_volume(victim: Victim) -> None:
    evil = (folder(b"new"), *(Entry(b"new/f%03d" % number, EVIL, more=30 * MIB) for number in range(100)))
    error = victim.attack(Play((*victim.honest(), *evil)))
    assert isinstance(error, TransportError)
    assert "sends more than it listed" in str(error)
    assert kept_bytes(victim) < 2500 * MIB


def test_files_that_nobody_asked_for_are_refused(victim: Victim) -> None:
    (victim.library / "alpha" / "more.txt").write_bytes(b"asked for")
    try:
        evil = (*regular(b"unasked/f"), Entry(b"alpha/unasked", EVIL))
        error = victim.attack(Play(victim.honest(), unasked=evil))
        assert isinstance(error, TransportError)
        assert "no honest server" in str(error)
        assert not (victim.site.store.mirror / "unasked").exists()
        assert not (victim.site.store.mirror / "alpha" / "unasked").exists()
    finally:
        (victim.library / "alpha" / "more.txt").unlink()


@pytest.mark.parametrize("files", [(folder(b"."),), (folder(b"."), *regular(b"new/f"))])
def test_a_mass_deletion_is_refused(victim: Victim, files: tuple[Entry, ...]) -> None:
    error = victim.attack(Play(files))
    assert isinstance(error, ClrError)
    assert victim.site.manifests() == victim.served
    assert (victim.site.store.mirror / "alpha").is_dir()


# --- silence, junk and floods ---

POINTS: tuple[Point, ...] = ("greeting", "seed", "list", "listed", "file", "data", "sum", "end")


def badly(victim: Victim, deed: Deed, point: Point) -> Play:
    """What does ``deed``; only in the fetch where it comes to that point there, so that there is a fetch."""
    in_fetch = point in ("file", "data", "sum", "end")
    new = (folder(b"new"), Entry(b"new/disk", NOISE))
    return Play((*victim.honest(), *new), deeds={point: deed}, only="fetch" if in_fetch else "")


def misbehaves(victim: Victim, deed: Deed, point: Point) -> None:
    outcome = victim.attack(badly(victim, deed, point))
    if isinstance(outcome, Report):  # all had arrived when it fell silent
        assert (point, outcome.result) == ("end", "partial")
    else:
        assert isinstance(outcome, TransportError)
        assert victim.site.manifests() == victim.served


def test_the_end_or_junk_at_any_point(victim: Victim) -> None:
    for number, point in enumerate(POINTS):
        misbehaves(victim, ("close", "junk")[number % 2], point)
        if FULL:
            misbehaves(victim, ("junk", "close")[number % 2], point)


def test_silence_at_any_point(victim: Victim) -> None:
    sites = []
    for point, address in zip(POINTS, victim.server.addresses, strict=True):
        home = victim.root / "server" / f"copy {point}"
        shutil.copytree(victim.site.home, home, symlinks=True)
        sites.append(Site(home, victim.server, SYNC_PEER=address, SYNC_TIMEOUT="5s"))
        victim.server.play(badly(victim, "hang", point), address)
    before = [snapshot(site.home, *(f"library/{name}" for name in CHANGING)) for site in sites]
    with ThreadPoolExecutor(len(sites)) as pool:
        costs = list(pool.map(run, sites))
    for site, cost, known in zip(sites, costs, before, strict=True):
        assert cost.code in (6, 75)
        assert re.search("nothing was heard for too long|nothing moved on the line", cost.log)
        assert "Traceback" not in cost.log
        after = snapshot(site.home, *(f"library/{name}" for name in CHANGING))
        assert {path for path, found in known.items() if after.get(path) != found} <= {"library/current"}
        assert cost.code == 6 or after.keys() - {"run.log"} == known.keys() - {"run.log"}


def test_endless_words_on_stderr_end_the_run(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clr_client.transport.runner.STDERR_LIMIT", MIB)
    error = victim.attack(Play(victim.honest(), deeds={"list": "words"}))
    assert isinstance(error, TransportError)
    assert len(str(error)) < 10_000


def test_endless_words_between_the_files_end_the_run(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clr_client.transport.listing.ListingParser.__init__.__defaults__", (1000, 1000, MIB))
    error = victim.attack(Play(victim.honest(), deeds={"list": "information"}))
    assert isinstance(error, TransportError)
    assert "larger than a library can be" in str(error)


def test_signs_of_life_without_a_listing_end_in_time(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clr_client.transport.transfer.MAX_SECONDS", 3.0)
    error = victim.attack(Play(victim.honest(), deeds={"list": "keep-alive"}))
    assert isinstance(error, TransportError)
    assert "did not end its listing" in str(error)


@pytest.mark.parametrize("deed", ["keep-alive", "information"] if FULL else ["keep-alive"])
def test_signs_of_life_without_content_end_with_the_window(victim: Victim, deed: Deed) -> None:
    new = (folder(b"new"), Entry(b"new/disk", NOISE))
    play = Play((*victim.honest(), *new), deeds={"data": deed}, only="fetch")
    report = victim.attack(play, SYNC_WINDOW="4s")
    assert isinstance(report, Report)
    assert "SYNC_WINDOW" in report.error
    assert victim.site.manifests() == victim.served


# --- how much it costs ---


@dataclass(frozen=True)
class Cost:
    """What a run took: its exit code, the largest of its processes in bytes, what it logged."""

    code: int
    peak: int
    log: str


MEASURE = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c", sys.argv[1]])
_, status, usage = os.wait4(pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def run(site: Site, *, changed: str = "", **environment: str) -> Cost:
    """Run `clr sync` as a process, with ``changed`` done to the program before; it has to end within two minutes.

    A process of its own measures it: a child's peak counts that of the process which it was forked from.
    """
    code = f"{changed}\nfrom clr_client.cli import main\nmain(['sync'])"
    output = site.home / "run.log"
    with output.open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, code],
            env=cli_environment(site) | environment,
            stdout=subprocess.PIPE,
            stderr=log,
            timeout=120,
            check=True,
        )
    *told, last = done.stdout.decode().splitlines()
    exit_code, peak = last.split()
    return Cost(int(exit_code), int(peak) * 1024, "\n".join(told) + output.read_text(errors="replace"))


def test_a_listing_without_end_ends_at_a_limit_of_memory(victim: Victim) -> None:
    limit = 1024 if FULL else 200
    victim.server.play(Play(endless=True))
    changed = f"import clr_client.transport.transfer as t; t.MAX_MEMORY = min(t.MAX_MEMORY, {limit << 20})"
    cost = run(victim.site, changed=changed, SYNC_TIMEOUT="60s")
    assert cost.code in (1, 75)
    assert "out of memory" in cost.log
    assert "Traceback" not in cost.log
    assert cost.peak < (limit + 100) * MIB


def test_very_many_names_that_cannot_be_published_cost_little(victim: Victim) -> None:
    count = 990_000 if FULL else 10_000
    names = tuple(Entry(b"x\n%d" % number, EVIL) for number in range(count))
    victim.server.play(Play((*victim.honest(), *names)))
    for _ in range(2):
        cost = run(victim.site, SYNC_TIMEOUT="60s")
        assert cost.code == 6
        assert cost.peak < 100 * MIB + count * 2000
        assert len(cost.log.splitlines()) < 2000
    assert victim.site.store.status.stat().st_size < 2 * MIB
