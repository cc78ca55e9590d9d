"""The library volume on small real file systems that are full, failing, read-only or lack something.

Whatever the disk does, what was published is served on byte for byte, the run says what is wrong and what to do, and
the next one with a sound disk brings the site up to the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import pytest
from clr_client import seed, transport
from clr_client.errors import ClrError, GuardError, StoreError, TransportError
from clr_client.pull import RESERVE_BYTES
from clr_client.rollback import release, roll_back
from clr_client.servers import link_to
from clr_client.store import Store
from clr_client.transport import PARTIAL_DIR
from clr_client.vcsp.subscriber import check
from support import disks
from support.disks import MIB, Disk
from support.server import Server, wait_until
from support.site import Site, get, running
from support.templates import fake_template, pack_ova, replace
from support.volume import Volume
from support.webserver import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DISK_BYTES = 1 * MIB


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "primary"
    for name in ("alpha", "beta"):
        fake_template(folder / name, disk_bytes=DISK_BYTES)
    replace(folder / "tools.iso", os.urandom(50_000))
    archive(folder, tmp_path, 0)
    return folder


def first_disk(name: str) -> bytes:
    return random.Random(f"{name}/0").randbytes(DISK_BYTES)


def archive(library: Path, tmp_path: Path, revision: int) -> None:
    made = fake_template(tmp_path / "made" / "golden", disk_bytes=DISK_BYTES, revision=revision).parent
    temporary = tmp_path / "golden.ova"
    pack_ova(made, temporary)
    replace(library / "golden.ova", temporary.read_bytes())


def change_everything(library: Path, tmp_path: Path, revision: int) -> None:
    for name in ("alpha", "beta"):
        fake_template(library / name, disk_bytes=DISK_BYTES, revision=revision)
    replace(library / "tools.iso", os.urandom(50_000))
    archive(library, tmp_path, revision)


def served(site: Site) -> dict[str, bytes]:
    """Everything that a subscriber can fetch, by path."""
    found = site.manifests()
    for item in json.loads(found["items.json"])["items"]:
        for file in item["files"]:
            href = file["hrefs"][0]
            found[href] = (site.library / "current" / href).read_bytes()
    return found


def assert_converged(site: Site, library: Path) -> None:
    """The site serves what the server has, and nothing unfinished lies about."""
    for name in ("alpha", "beta"):
        disk = f"{name}-disk1.vmdk"
        assert site.content(name, disk) == (library / name / disk).read_bytes()
    assert site.content("tools.iso", "tools.iso") == (library / "tools.iso").read_bytes()
    assert site.content("golden", "golden-disk1.vmdk") in (library / "golden.ova").read_bytes()
    assert unfinished(site) == []


def assert_a_strict_subscriber_takes_it(site: Site) -> None:
    with serving(site.library / "current") as url:
        report = check(f"{url}/lib.json", full=True)
    assert report.ok, report.problems


def unfinished(site: Site) -> list[str]:
    """What a failed run left that nobody needs."""
    left = [*site.library.rglob(".new-*"), *site.store.mirror.rglob(".*.??????"), *site.library.glob("basis")]
    return [str(path.relative_to(site.library)) for path in left]


def status(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.store.status.read_bytes())
    return found


# ---------------------------------------------------------------- a whole life on each file system


@pytest.fixture(params=["ext4", "btrfs", "sshfs without hard links"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "site" / "library"
    if request.param in disks.MAKERS:
        mounted: Any = disks.disk(request.param, place, megabytes=48)
    else:
        mounted = disks.without_hard_links(place, tmp_path / "behind")
    with mounted:
        yield place


@pytest.mark.usefixtures("volume")
def test_a_library_lives_on_every_file_system_through_change_rename_prune_and_rollback(
    library: Path, tmp_path: Path, site: Site
) -> None:
    site.environment |= {"LIBRARY_KEEP": "2", "LIBRARY_GRACE": "0"}
    assert site.sync().result == "success"
    first, ids = served(site), site.ids()
    assert site.sync().planned_bytes == 0
    assert served(site) == first
    change_everything(library, tmp_path, 1)
    (library / "beta").rename(library / "gamma")
    assert site.sync().result == "success"
    assert {name: (site.ids()[name], version) for name, version in site.versions().items()} == {
        **{name: (ids[name], "2") for name in ("alpha", "golden", "tools.iso")},
        "gamma": (site.ids()["gamma"], "1"),
    }
    roll_back(site.settings(), site.store, None)
    assert site.ids() == ids
    assert (site.content("beta", "beta-disk1.vmdk"), site.versions()["alpha"]) == (first_disk("beta"), "3")
    release(site.store)
    (library / "gamma").rename(library / "beta")
    assert site.sync().removed == ()
    assert site.store.generation_numbers() == (3, 4)
    assert_converged(site, library)
    assert_a_strict_subscriber_takes_it(site)


# ---------------------------------------------------------------- full, at each step of a run


class Step:
    """Does something to the disk right before one step of a run, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, place: str, action: Callable[[], object]) -> None:
        self.done = False
        owner, _, name = place.rpartition(".")
        target = resolve_name(owner)
        real = getattr(target, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.done:
                self.done = True
                action()
            return real(*args, **kwargs)

        monkeypatch.setattr(target, name, wrapper)


STEPS = {
    "listing": "clr_client.transport.list_source",
    "transfer": "clr_client.transport.fetch",
    "keeping digests": "clr_client.content.digests.DigestCache.save",
    "item trees": "clr_client.store.Store._build_tree",
    "unpacking an OVA": "clr_client.content.ova.unpack",
    "generation": "clr_client.store.Store._build_generation",
    "status": "clr_client.sync._record",
}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Disk]:
    with disks.disk("ext4", tmp_path / "site" / "library", megabytes=64) as mounted:
        yield mounted


@pytest.fixture
def standing(small: Disk, site: Site) -> Disk:
    """A small disk with a library on it that was synced once."""
    site.sync()
    return small


FAILS_BEFORE = {"listing", "transfer", "item trees", "unpacking an OVA", "generation"}
"""Steps at which nothing new can be published without room; at the others the run may get by."""


@pytest.mark.parametrize("lack", ["bytes", "inodes"])
def test_a_disk_that_gets_full_at_any_step_leaves_the_old_library_and_the_next_run_with_room_converges(
    library: Path, tmp_path: Path, standing: Disk, site: Site, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    site.environment |= {"LIBRARY_KEEP": "1", "LIBRARY_GRACE": "0"}
    taken = standing.used
    for revision, step in enumerate(STEPS, 1):
        if lack == "inodes" and step not in {"transfer", "item trees", "generation"}:
            continue
        before = served(site)
        change_everything(library, tmp_path, revision)
        with monkeypatch.context() as patch:
            reached = Step(patch, STEPS[step], standing.fill if lack == "bytes" else standing.take_all_inodes)
            try:
                site.sync()
                failure = None
            except ClrError as error:
                failure = error
        assert reached.done, step
        if step in FAILS_BEFORE:
            assert failure is not None, step
            assert "Make room" in failure.remedy, step
            assert served(site) == before, step
        run = status(site)["runs"][0]
        assert (run["result"], run["error"]) == (("failed", str(failure)) if failure else ("success", "")), step
        standing.make_room()
        assert site.sync().result == "success", step
        assert_converged(site, library)
    assert_a_strict_subscriber_takes_it(site)
    assert standing.used < taken + 300_000


def test_a_quota_that_ends_in_mid_run_is_named_and_the_next_run_within_it_converges(
    library: Path, tmp_path: Path, server: Server
) -> None:
    with disks.disk("btrfs", tmp_path / "site" / "library") as disk:
        site = Site(tmp_path / "site", server)
        site.sync()
        disks.run("btrfs", "quota", "enable", str(disk.path))
        disks.run("btrfs", "quota", "rescan", "-w", str(disk.path))
        disks.run("btrfs", "qgroup", "limit", str(8 * MIB), "0/5", str(disk.path))
        before = served(site)
        replace(library / "large.iso", os.urandom(12 * MIB))
        with pytest.raises(TransportError, match="Raise the quota"):
            site.sync()
        assert served(site) == before
        assert "Raise the quota" in status(site)["runs"][0]["error"]
        disks.run("btrfs", "qgroup", "limit", "none", "0/5", str(disk.path))
        assert site.sync().added == ("large.iso",)
        assert_converged(site, library)


# ---------------------------------------------------------------- failing


@pytest.mark.parametrize(("kind", "step"), [("ext4", "transfer"), ("xfs", "keeping digests"), ("ext4", "generation")])
def test_a_disk_that_fails_in_mid_run_ends_it_with_the_reason_and_once_mended_the_next_run_converges(
    library: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, kind: str, step: str
) -> None:
    with disks.disk(kind, tmp_path / "site" / "library", megabytes=64) as disk:
        site = Site(tmp_path / "site", server)
        site.sync()
        before = served(site)
        change_everything(library, tmp_path, 1)
        with monkeypatch.context() as patch:
            reached = Step(patch, STEPS[step], disk.fail)
            with pytest.raises(ClrError, match="disk is failing"):
                site.sync()
        assert reached.done
        disk.remount()
        assert served(site) == before
        assert site.sync().result == "success"
        assert_converged(site, library)


def test_a_file_system_that_the_kernel_makes_read_only_in_mid_run_ends_it_and_is_served_on(
    library: Path, tmp_path: Path, standing: Disk, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = served(site)
    change_everything(library, tmp_path, 1)
    with monkeypatch.context() as patch:
        Step(patch, STEPS["transfer"], standing.abort)
        with pytest.raises(ClrError, match=r"Read-only file system.*Mount it writable"):
            site.sync()
    assert served(site) == before
    with pytest.raises(StoreError, match="Mount it writable"):
        site.sync()
    assert served(site) == before
    standing.remount()
    assert site.sync().result == "success"
    assert_converged(site, library)


def test_a_file_that_cannot_even_be_begun_here_is_no_trouble_at_the_server(standing: Disk, site: Site) -> None:
    settings = site.settings()
    standing.remount("ro")
    with pytest.raises(TransportError, match="Mount it writable"):
        asyncio.run(
            transport.fetch(
                link_to(settings.peers[0], settings, site.store),
                ["alpha/alpha-disk1.vmdk"],
                site.store.mirror,
                basis=None,
                block=4096,
                on_progress=lambda _: None,
            )
        )


def test_a_site_whose_disk_is_read_only_from_the_start_serves_its_library(standing: Disk, site: Site) -> None:
    expected = (site.library / "current" / "items.json").read_bytes()
    standing.remount("ro")
    with running(site):
        wait_until(lambda: get(site, "items.json") == (200, expected), what="the library")
        with pytest.raises(StoreError, match="Mount it writable"):
            site.sync()
        assert get(site, "items.json") == (200, expected)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_the_power_goes_at_any_step_of_publishing_and_the_library_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Only what was forced to disk outlives a power cut, so this fails for each fsync that is left out."""
    with disks.disk(kind, tmp_path / "library") as disk:
        outcomes = []
        for cut in range(1, 100):
            volume = Volume(disk.path / "volume")
            shutil.rmtree(volume.root, ignore_errors=True)
            volume.put("a/disk.vmdk", b"old" * 5000)
            volume.put("one.iso", b"old" * 5000)
            volume.sync()
            old = contents(volume)
            volume.put("a/disk.vmdk", b"newer" * 5000)
            volume.put("b/disk.vmdk", b"newer" * 5000)
            os.sync()
            with monkeypatch.context() as patch:
                calls = Calls(patch, cut, disk.fail)
                with contextlib.suppress(OSError, ClrError):
                    volume.sync()
            published = calls.count < cut
            if published:
                disk.fail()
            disk.remount()
            found = contents(volume)
            assert found in (old, {"a": b"newer" * 5000, "b": b"newer" * 5000, "one.iso": b"old" * 5000}), cut
            outcomes.append(found != old)
            if published:
                break
        assert outcomes == sorted(outcomes)
        assert (outcomes[0], outcomes[-1]) == (False, True)
        assert len(outcomes) > 15


class Calls:
    """Does something right before the ``fatal``-th call that changes a file system."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fatal: int, action: Callable[[], object]) -> None:
        self.count = 0
        for name in ("link", "mkdir", "symlink", "rename", "replace", "fsync", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name), fatal, action))

    def _wrap(self, real: Callable[..., Any], fatal: int, action: Callable[[], object]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == fatal:
                action()
            return real(*args, **kwargs)

        return call


def contents(volume: Volume) -> dict[str, bytes]:
    """What a reader finds by following hrefs: the content of each item's file by the item's name."""
    current = volume.root / "current"
    lib = json.loads((current / "lib.json").read_bytes())
    items = json.loads((current / lib["itemsHref"]).read_bytes())["items"]
    for item in items:
        assert json.loads((current / item["selfHref"]).read_bytes()) == item
    return {item["name"]: (current / item["files"][0]["hrefs"][0]).read_bytes() for item in items}


# ---------------------------------------------------------------- lacking something


def test_a_file_system_without_symbolic_links_is_refused_before_anything_is_fetched(
    server: Server, tmp_path: Path
) -> None:
    with disks.without_links(tmp_path / "site" / "library"):
        site = Site(tmp_path / "site", server)
        with pytest.raises(StoreError, match=r"no symbolic links.*exFAT"):
            site.sync()
        assert not any(site.store.mirror.rglob("*"))


def test_without_hard_links_the_space_of_copies_is_counted_before_anything_is_fetched(
    library: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "site", server)
    needed = sum(path.stat().st_size for path in library.rglob("*") if path.is_file())
    archives = (library / "golden.ova").stat().st_size
    monkeypatch.setattr(Store, "free_bytes", lambda _: needed + archives + RESERVE_BYTES)
    with disks.without_hard_links(site.library, tmp_path / "behind"):
        with pytest.raises(GuardError, match=f"needs {2 * needed + RESERVE_BYTES:,} bytes"):
            site.sync()
        assert not any(site.store.mirror.rglob("*"))
    assert site.sync().result == "success"


def test_templates_that_a_file_system_cannot_tell_apart_never_mix(
    library: Path, server: Server, tmp_path: Path
) -> None:
    with disks.without_case(tmp_path / "site" / "library"):
        site = Site(tmp_path / "site", server)
        site.sync()
        before = served(site)
        fake_template(library / "ALPHA", disk_bytes=DISK_BYTES // 2)
        replace(library / "beta" / "notes.txt", b"one")
        replace(library / "beta" / "NOTES.txt", b"other")
        for _ in range(2):
            report = site.sync()
            reasons = {held.key: held.reason for held in report.held}
            assert reasons.keys() == {"ALPHA", "beta"}
            assert reasons["ALPHA"] == 'the library volume cannot tell it from "alpha"'
            assert (report.planned_bytes, served(site)) == (0, before)
        fake_template(library / "alpha", disk_bytes=DISK_BYTES, revision=1)
        assert site.sync().updated == ("alpha",)


# ---------------------------------------------------------------- small


def test_a_source_that_grows_beyond_the_free_space_is_refused_before_anything_is_fetched(
    library: Path, standing: Disk, site: Site
) -> None:
    before, free = served(site), standing.free
    replace(library / "large.iso", os.urandom(free + MIB))
    with pytest.raises(GuardError, match=r"needs .* bytes .* free.*LIBRARY_KEEP"):
        site.sync()
    assert (served(site), (site.store.mirror / "large.iso").exists()) == (before, False)
    assert standing.free > free - MIB
    replace(library / "large.iso", os.urandom(2 * MIB))
    assert site.sync().added == ("large.iso",)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_arrived_and_the_old_version_are_joined_without_space_where_the_file_system_shares_blocks(
    tmp_path: Path, kind: str
) -> None:
    with disks.disk(kind, tmp_path / "volume", megabytes=256) as disk:
        mirror, basis = disk.path / "mirror", disk.path / "basis"
        target, partial = mirror / "a" / "disk.vmdk", mirror / "a" / PARTIAL_DIR / "disk.vmdk"
        old, new = os.urandom(24 * MIB + 77), os.urandom(16 * MIB + 777)
        partial.parent.mkdir(parents=True)
        target.write_bytes(old)
        partial.write_bytes(new)
        before = disk.used
        path = "a/disk.vmdk"
        seed.lay_out({path: path}, {path: partial}, mirror, basis, {path: 4096}, len(new))
        assert disk.used < before + MIB
        joined = target.read_bytes()
        arrived = len(joined) - len(old)
        assert joined.endswith(old)
        assert joined[: arrived - 4096] == new[: arrived - 4096]
        assert arrived > len(new) - 2 * 4096


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_room_for_one_template_is_enough_to_update_it_also_after_a_cut(
    library: Path, tmp_path: Path, server: Server, kind: str
) -> None:
    size, arrived = 40 * MIB, 20 * MIB + 12_345
    with disks.disk(kind, tmp_path / "site" / "library", megabytes=160) as disk:
        site = Site(tmp_path / "site", server, LIBRARY_KEEP="1", LIBRARY_GRACE="0")
        old = os.urandom(size)
        replace(library / "large.iso", old)
        site.sync()
        new = os.urandom(size // 2) + old[size // 2 :]
        replace(library / "large.iso", new)
        partial = site.store.mirror / PARTIAL_DIR / "large.iso"
        partial.parent.mkdir()
        partial.write_bytes(new[:arrived])
        disk.fill(leave=size - arrived + RESERVE_BYTES + MIB)
        report = site.sync()
        assert report.updated == ("large.iso",)
        assert site.content("large.iso", "large.iso") == new
        assert unfinished(site) == []
