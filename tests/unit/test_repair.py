"""Bit rot without a server: what is noted, where a file comes from, what is mended from the mirror and what is not."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from clr_client.content.digests import DigestCache
from clr_client.files import FileInfo
from clr_client.integrity import audit as auditing
from clr_client.integrity.audit import audit
from clr_client.integrity.damages import Damage, note, noted, strike_out
from clr_client.integrity.repair import GONE, NO_BETTER, OTHER, mend_here, origin, rotten, wanted
from clr_client.seed import NEVER
from clr_client.store import STATE
from clr_client.threads import LEAST_PRIORITY, in_background
from clr_client.transport import Listing
from clr_client.vcsp.model import PublishedFile, PublishedItem
from support.faultpoints import Kill, each, run
from support.templates import fake_template, pack_ova, replace
from support.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "library")
    volume.put("a/disk.vmdk", b"x" * 30_000)
    volume.put("tools.iso", b"iso")
    fake_template(tmp_path / "web", disk_bytes=3000)
    volume.mirror.mkdir(exist_ok=True)
    pack_ova(tmp_path / "web", volume.mirror / "web.ova")
    volume.sync()
    return volume


def tree(volume: Volume, key: str) -> Path:
    return volume.store.tree(next(item for item in volume.published().items if item.key == key))


def rot(path: Path, content: bytes) -> None:
    """Change a file's content in place; size and time stay."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def note_all(volume: Volume) -> list[Damage]:
    found = list(audit(volume.store))
    for damage in found:
        note(volume.store, damage)
    return found


# ---------------------------------------------------------------- what is noted


def test_a_note_is_kept_until_it_is_struck_out_and_a_newer_one_replaces_it(volume: Volume) -> None:
    one, other = Damage("items/x/1/b", "is not", "B"), Damage("items/x/1/a\x1bÄ", "is not")
    later = Damage("items/x/1/b", "is not", "B", "the line is down")
    for damage in (one, other, later):
        note(volume.store, damage)
    assert noted(volume.store) == (other, later)
    strike_out(volume.store, one)
    strike_out(volume.store, one)
    assert noted(volume.store) == (other,)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"path": 1}', b"[" * 100_000, b"\xff"])
def test_a_note_that_is_damaged_itself_is_passed_over(volume: Volume, content: bytes) -> None:
    note(volume.store, Damage("a", "b"))
    next(volume.store.damaged.iterdir()).write_bytes(content)
    assert noted(volume.store) == ()


def test_a_volume_that_takes_no_note_is_warned_about(volume: Volume, caplog: pytest.LogCaptureFixture) -> None:
    volume.store.damaged.write_bytes(b"in the way")
    note(volume.store, Damage("items/x/1/disk", "is not"))
    assert "items/x/1/disk cannot be noted" in caplog.text


# ---------------------------------------------------------------- what an audit reads


def test_a_tree_that_a_prune_removed_while_it_was_read_is_no_damage(volume: Volume) -> None:
    gone = tree(volume, "tools.iso")
    found = audit(volume.store, lambda done, _total, _name: remove() if done else None)

    def remove() -> None:
        if gone.is_dir():
            (volume.mirror / "tools.iso").unlink()
            volume.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")
            volume.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")

    # the order of items is by name: "a" is read first
    assert list(found) == []
    assert not gone.exists()


def test_the_disk_is_read_and_not_what_memory_remembers_of_it(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    volume.put("a/big", b"x" * 3_000_000)
    volume.sync()
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(auditing.os, "posix_fadvise", lambda _fd, offset, _size, advice: told.append((offset, advice)))
    reads: list[int] = []
    real = os.read
    monkeypatch.setattr(auditing.os, "read", lambda fd, size: reads.append(len(told)) or real(fd, size))
    file = PublishedFile("big", 3_000_000, "", 1)
    assert auditing.flaw(tree(volume, "a") / "big", file) == ""
    forgotten = [offset for offset, advice in told if advice == os.POSIX_FADV_DONTNEED]
    assert told[0] == (0, os.POSIX_FADV_DONTNEED)
    assert reads[0] > 0
    assert forgotten == [0, 0, 1 << 20, 2 << 20]


@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, Path.mkdir])
def test_what_is_no_regular_file_is_damage_and_never_followed_or_waited_for(
    volume: Volume, plant: Callable[[Path], object]
) -> None:
    path = tree(volume, "tools.iso") / "tools.iso"
    path.unlink()
    plant(path)
    assert [damage.path.rpartition("/")[2] for damage in note_all(volume)] == ["tools.iso"]
    assert [damage.path for damage in mend_here(volume.store).mended] == [path.relative_to(volume.root).as_posix()]
    assert path.read_bytes() == b"iso"
    assert not path.is_symlink()


def test_reading_in_the_background_lets_everybody_else_go_first() -> None:
    def look(_stop: threading.Event) -> tuple[int, str]:
        thread = threading.get_native_id()
        said = subprocess.run(["ionice", "-p", str(thread)], capture_output=True, text=True, check=True)
        return os.getpriority(os.PRIO_PROCESS, thread), said.stdout.strip()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert asyncio.run(in_background(look)) == (LEAST_PRIORITY, "idle")
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_background_work_is_told_when_nobody_waits_for_it_any_more() -> None:
    told = threading.Event()

    def work(stop: threading.Event) -> None:
        assert stop.wait(60)
        told.set()

    async def cancelled() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_background(work), 0.1)

    asyncio.run(cancelled())
    assert told.wait(60)


# ---------------------------------------------------------------- where a file comes from


def item(key: str, *names: str, is_file: bool = False) -> PublishedItem:
    files = tuple(PublishedFile(name, 10, "sha256:x", 1) for name in names)
    id_ = "urn:uuid:00000000-0000-4000-8000-000000000001"
    return PublishedItem(key, id_, key, "", "vcsp.other", False, 1, 1, "2026-11-21T19:54Z", 1, files, is_file)


@pytest.mark.parametrize(
    ("found", "name", "paths", "expected"),
    [
        (item("a/b", "disk.vmdk"), "disk.vmdk", {"a/b/disk.vmdk"}, "a/b/disk.vmdk"),
        (item("x/tools.iso", "tools.iso", is_file=True), "tools.iso", set(), "x/tools.iso"),
        (item("web.ova", "web.ovf"), "web.ovf", {"web.ova"}, "web.ova"),
        (item("web.ova", "web.ovf"), "web.ovf", set(), "web.ova"),
        (item("web.ova", "web.ovf"), "web.ovf", {"web.ova/web.ovf"}, "web.ova/web.ovf"),
        (item("web.ova", "web.ovf", "x"), "x", {"web.ova/web.ovf"}, "web.ova/x"),
        (item("a", "web.ovf", "notes"), "web.ovf", {"a/Web.OVA", "a/notes", "a/b/c.ova"}, "a/Web.OVA"),
        (item("a", "web.ovf", "notes"), "notes", {"a/Web.OVA", "a/notes"}, "a/notes"),
        (item("a", "lost"), "lost", {"a/one.ova", "a/two.ova"}, "a/lost"),
        (item("a", "lost"), "lost", set(), "a/lost"),
    ],
)
def test_a_published_file_comes_from_its_own_path_or_from_the_archive_of_its_item(
    found: PublishedItem, name: str, paths: set[str], expected: str
) -> None:
    assert origin(found, name, paths) == expected


def test_only_what_the_server_may_have_unchanged_is_fetched_and_the_rest_has_a_reason(volume: Volume) -> None:
    library = volume.published()
    where = {known.key: f"items/{known.uuid}/{known.version}" for known in library.items}
    damages = [
        Damage(f"{where['a']}/disk.vmdk", "x"),
        Damage(f"{where['tools.iso']}/tools.iso", "x"),
        Damage(f"{where['web.ova']}/web.ovf", "x"),
        Damage(f"{where['web.ova']}/web-disk1.vmdk", "x"),
    ]
    listing = Listing((FileInfo("a/disk.vmdk", 1, 5), FileInfo("web.ova", 99, 5)), True, ())
    hindrances: dict[str, str] = {}
    plans = wanted(library, damages, listing, hindrances)
    assert [file.path for plan in plans for file in plan.fetch] == ["web.ova"]
    assert hindrances == {damages[0].path: OTHER, damages[1].path: GONE}


# ---------------------------------------------------------------- what is mended here


def test_nothing_is_touched_where_nothing_is_noted(volume: Volume) -> None:
    rot(tree(volume, "tools.iso") / "tools.iso", b"ISO")
    assert mend_here(volume.store) == mend_here(Volume(volume.root / "empty").store)
    assert (tree(volume, "tools.iso") / "tools.iso").read_bytes() == b"ISO"


def test_a_damaged_file_that_the_mirror_shares_is_withdrawn_and_wanted_from_the_server(volume: Volume) -> None:
    path = tree(volume, "tools.iso") / "tools.iso"
    rot(path, b"ISO")
    note_all(volume)
    for _ in range(2):
        done = mend_here(volume.store)
        assert (done.mended, [damage.hindrance for damage in done.left]) == ((), [NO_BETTER])
        assert noted(volume.store) == done.left
    assert not path.exists()
    assert (path.parent / ".damaged" / "tools.iso").read_bytes() == b"ISO"
    mirrored = volume.mirror / "tools.iso"
    assert mirrored.stat().st_mtime == NEVER
    replace(mirrored, b"iso")
    assert len(mend_here(volume.store).mended) == 1
    assert path.samefile(mirrored)
    assert not (path.parent / ".damaged").exists()


def test_what_came_from_the_server_and_is_something_else_is_left_for_the_next_sync(volume: Volume) -> None:
    path = tree(volume, "tools.iso") / "tools.iso"
    rot(path, b"ISO")
    note_all(volume)
    mend_here(volume.store)
    volume.put("tools.iso", b"new")
    done = mend_here(volume.store, {"tools.iso"})
    assert [damage.hindrance for damage in done.left] == [OTHER]
    assert (volume.mirror / "tools.iso").stat().st_mtime != NEVER
    volume.sync()
    assert volume.versions()["tools.iso"] == 2
    assert mend_here(volume.store) == mend_here(volume.store)
    assert noted(volume.store) == ()


def test_damage_of_an_older_version_is_mended_from_the_newer_one_that_has_the_same_file(volume: Volume) -> None:
    volume.put("a/more", b"1")
    volume.sync()
    new, old = tree(volume, "a"), tree(volume, "a").with_name("1")
    replace(old / "disk.vmdk", b"y" * 30_000)
    note(volume.store, Damage((old / "disk.vmdk").relative_to(volume.root).as_posix(), auditing.CHANGED, "a"))
    assert mend_here(volume.store).left == ()
    assert (new / "disk.vmdk").samefile(old / "disk.vmdk")
    assert noted(volume.store) == ()


def test_a_record_that_is_damaged_is_left_to_the_next_sync(volume: Volume) -> None:
    path = volume.store.current / STATE
    path.write_bytes(b"{}")
    note_all(volume)
    done = mend_here(volume.store)
    assert [damage.hindrance for damage in done.left] == ["the next sync writes it anew"]
    volume.sync()
    assert mend_here(volume.store).left == ()
    assert list(audit(volume.store)) == []


def test_a_version_that_rotted_in_the_record_is_written_into_no_manifest_and_no_version_goes_back(
    volume: Volume,
) -> None:
    for number in range(2, 4):
        volume.put("tools.iso", bytes(number))
        volume.sync()
    before = volume.versions()
    manifests = [(volume.store.current / name).read_bytes() for name in ("lib.json", "items.json")]
    path = volume.store.current / STATE
    assert b'"version": 3' in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b'"version": 3', b'"version": 1'))
    assert [damage.path.rpartition("/")[2] for damage in note_all(volume)] == [STATE]
    mend_here(volume.store)
    assert [(volume.store.current / name).read_bytes() for name in ("lib.json", "items.json")] == manifests
    volume.sync()
    after = volume.versions()
    assert all(after[key] > before[key] for key in before)
    assert volume.published().version > 3
    assert list(audit(volume.store)) == []


def test_a_full_volume_leaves_the_damage_noted_with_the_reason(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree(volume, "web.ova") / "web-disk1.vmdk"
    good = path.read_bytes()
    rot(path, b"y" * len(good))
    note_all(volume)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing:
        failing.setattr("clr_client.integrity.repair.unpack", full)
        done = mend_here(volume.store)
    assert "No space left on device" in done.left[0].hindrance
    assert len(mend_here(volume.store).mended) == 1
    assert path.read_bytes() == good


def test_a_kill_at_any_moment_of_mending_serves_no_wrong_byte_and_the_next_run_mends_the_rest(
    volume: Volume, tmp_path: Path
) -> None:
    volume.put("a/more", b"1")
    volume.sync()
    good = {path: path.read_bytes() for key in ("a", "tools.iso", "web.ova") for path in tree(volume, key).iterdir()}
    old = tree(volume, "a").with_name("1") / "disk.vmdk"
    good[old] = old.read_bytes()
    disk = tree(volume, "a") / "disk.vmdk"
    disk.write_bytes(b"y" * 30_000)  # and with it the older version and the mirror
    replace(volume.mirror / "a" / "disk.vmdk", good[disk])
    rot(tree(volume, "web.ova") / "web-disk1.vmdk", b"y" * 3000)
    (tree(volume, "tools.iso") / "item.json").write_bytes(b"{")
    bad = {path: path.read_bytes() for path in good if path.read_bytes() != good[path]}
    assert len(bad) == 4
    note_all(volume)
    struck = 0
    for fault in each(Kill):
        root = tmp_path / "killed"
        shutil.copytree(volume.root, root, symlinks=True, copy_function=os.link)
        for path in bad:  # what is written to in place must not be shared
            copy = root / path.relative_to(volume.root)
            copy.unlink()
            copy.write_bytes(bad[path])
        (root / old.relative_to(volume.root)).unlink()
        os.link(root / disk.relative_to(volume.root), root / old.relative_to(volume.root))
        killed = Volume(root)
        ended = run(lambda: mend_here(killed.store), root, fault)  # noqa: B023 - runs in this turn
        for path in good:
            served = root / path.relative_to(volume.root)
            assert not served.exists() or served.read_bytes() in (good[path], bad.get(path)), (fault, path)
        with killed.store.locked("test"):
            killed.store.prepare()
            assert mend_here(killed.store).left == ()
        for path, content in good.items():
            assert (root / path.relative_to(volume.root)).read_bytes() == content, (fault, path)
        assert list(audit(killed.store)) == []
        assert noted(killed.store) == ()
        assert not list(root.rglob(".damaged/*"))
        assert not list(root.glob("items/**/.new-*"))
        shutil.rmtree(root)
        if not ended.struck:
            break
        struck += 1
    assert struck > 20


# ---------------------------------------------------------------- rot that a sync meets


def test_a_mirrored_file_that_is_the_published_one_and_reads_differently_has_rotted(volume: Volume) -> None:
    library = volume.published()
    tools = next(known for known in library.items if known.key == "tools.iso")
    assert rotten(volume.store, tools, DigestCache()) == []
    rot(tree(volume, "tools.iso") / "tools.iso", b"ISO")
    assert [damage.reason for damage in rotten(volume.store, tools, DigestCache())] == [auditing.CHANGED]
    volume.put("tools.iso", b"new")
    assert rotten(volume.store, tools, DigestCache()) == []


def test_rot_that_a_sync_meets_holds_its_item_and_is_noted(volume: Volume) -> None:
    before = volume.versions()
    rot(tree(volume, "tools.iso") / "tools.iso", b"ISO")
    volume.store.digests.unlink()
    volume.sync()
    assert volume.versions() == before
    assert [held.key for held in volume.held] == ["tools.iso"]
    assert len(noted(volume.store)) == 1
