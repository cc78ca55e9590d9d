"""The library volume: one step from the old library to the new one, whatever breaks in between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pytest
from clr_client import lock, moments
from clr_client.errors import LockedError, ManifestError, StoreError
from clr_client.moments import Moment
from clr_client.store import PUBLISHED, STATE, Store, TreeSource
from clr_client.vcsp.model import ADOPTED
from support.templates import fake_template, pack_ova
from support.volume import Volume, publish_contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clr_client.vcsp.model import PublishedLibrary


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "library")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path / "library")


def read_as_subscriber(store: Store) -> dict[str, dict[str, bytes]]:
    """Read what is served, following hrefs only, and hold each size against what is promised."""
    root = store.current
    library = json.loads((root / "lib.json").read_bytes())
    items = json.loads((root / library["itemsHref"]).read_bytes())["items"]
    found: dict[str, dict[str, bytes]] = {}
    for item in items:
        assert json.loads((root / unquote(item["selfHref"])).read_bytes()) == item
        found[item["name"]] = {}
        for file in item["files"]:
            data = (root / unquote(file["hrefs"][0])).read_bytes()
            assert len(data) == file["size"]
            found[item["name"]][file["name"]] = data
    return found


def snapshot(store: Store) -> dict[str, bytes]:
    """Everything that readers can reach through ``current``."""
    library = store.published()
    assert library is not None
    root = store.current.resolve()
    found = {name: (root / name).read_bytes() for name in ("lib.json", "items.json", STATE)}
    for item in library.items:
        for path in store.tree(item).iterdir():
            found[f"{item.key}/{path.name}"] = path.read_bytes()
    return found


# ---------------------------------------------------------------- publishing


def test_nothing_is_published_at_first(store: Store) -> None:
    assert store.current_number() is None
    assert store.published() is None
    assert store.generation_numbers() == ()


def test_what_is_published_can_be_read_by_following_hrefs_only(store: Store) -> None:
    library = publish_contents(store, {"a": {"a.bin": b"1", "b.bin": b""}, "b/c": {"c.bin": b"33"}})
    assert read_as_subscriber(store) == {"a": {"a.bin": b"1", "b.bin": b""}, "b c": {"c.bin": b"33"}}
    assert store.published() == library
    assert store.current_number() == 1


def test_a_published_file_shares_its_bytes_with_the_mirror(volume: Volume) -> None:
    path = volume.put("a/disk.vmdk", b"x" * 1000)
    library = volume.sync()
    assert (volume.store.tree(library.items[0]) / "disk.vmdk").samefile(path)


def test_a_file_system_without_hard_links_gets_copies(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, reason in enumerate((errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)):

        def refuse(*_: object, reason: int = reason, **__: object) -> None:
            raise OSError(reason, os.strerror(reason))

        monkeypatch.setattr(os, "link", refuse)
        path = volume.put("a/disk.vmdk", b"x" * (1000 + number))
        library = volume.sync()
        copy = volume.store.tree(library.items[0]) / "disk.vmdk"
        assert copy.read_bytes() == path.read_bytes()
        assert not copy.samefile(path)


def test_an_older_generation_keeps_its_files_when_the_mirror_gets_a_new_version(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"old")
    old = volume.sync().items[0]
    volume.put("a/disk.vmdk", b"newer")
    new = volume.sync().items[0]
    assert (volume.store.tree(old) / "disk.vmdk").read_bytes() == b"old"
    assert (volume.store.tree(new) / "disk.vmdk").read_bytes() == b"newer"
    assert (volume.store.generations / "1" / "a" / "disk.vmdk").read_bytes() == b"old"
    assert (volume.store.generations / "2" / "a" / "disk.vmdk").read_bytes() == b"newer"


def test_an_unchanged_item_keeps_its_tree_and_an_unchanged_library_its_generation(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"a")
    volume.put("b/disk.vmdk", b"b")
    volume.sync()
    inode = volume.store.tree(volume.published().items[0]).stat().st_ino
    volume.put("b/disk.vmdk", b"changed")
    volume.sync()
    assert volume.versions() == {"a": 1, "b": 2}
    assert volume.store.tree(volume.published().items[0]).stat().st_ino == inode
    before = snapshot(volume.store)
    for _ in range(3):
        volume.sync()
    assert snapshot(volume.store) == before
    assert volume.store.current_number() == 2


def test_an_ova_is_unpacked_into_its_tree_and_its_readable_path_is_a_folder(volume: Volume, tmp_path: Path) -> None:
    fake_template(tmp_path / "web", disk_bytes=5000)
    pack_ova(tmp_path / "web", volume.mirror / "web.ova")
    (item,) = volume.sync().items
    assert item.name == "web"
    names = {path.name for path in volume.store.tree(item).iterdir()}
    assert names == {"web.ovf", "web-disk1.vmdk", "web.mf", "item.json"}
    assert (volume.store.current / "web.ova" / "web.ovf").read_bytes() == (tmp_path / "web" / "web.ovf").read_bytes()


# ---------------------------------------------------------------- readable paths


def test_nested_items_and_single_files_have_readable_paths(volume: Volume) -> None:
    paths = ["a/disk.vmdk", "a/b/c/disk.vmdk", "x/y/disk.vmdk", "tools.iso", "isos/one.iso", "isos/two.iso"]
    for path in paths:
        volume.put(path, path.encode())
    volume.sync()
    for path in paths:
        assert (volume.store.current / path).read_bytes() == path.encode()
    assert (volume.store.current / "a" / "item.json").is_file()
    assert (volume.store.current / "a" / "b" / "c" / "item.json").is_file()


HOSTILE = [
    "with space", "#hash", "50%25", "what?", 'quo"te', "apo'strophe", "a&b", "-n", "--help", "~", "$(id)", "`id`",
    "a;b", "ünïcode", "日本語", "e\u0301", "n" * 200, "items", "item", "mirror", "current", "2", "CON", "back\\slash",
    "trailing.", " leading", "*", "[a]",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_served_at_exactly_its_hrefs_and_its_readable_path(store: Store, name: str) -> None:
    publish_contents(store, {f"deep/{name}": {name: b"content"}})
    (files,) = read_as_subscriber(store).values()
    assert files == {name: b"content"}
    assert (store.current / "deep" / name / name).read_bytes() == b"content"


@pytest.mark.parametrize(
    "key", ["_items", "_items/x", "_ITEMS/x", "lib.json", "items.json/x", ".state.json", ".hidden/x"]
)
def test_a_key_that_looks_like_what_a_generation_holds_itself_gets_no_readable_path(store: Store, key: str) -> None:
    publish_contents(store, {key: {"f": b"1"}, "plain": {"g": b"2"}})
    assert len(read_as_subscriber(store)) == 2
    folder = store.current.resolve()
    assert {path.name for path in folder.iterdir()} == {"_items", "lib.json", "items.json", STATE, PUBLISHED, "plain"}
    uuids = {item.uuid for item in (store.published() or pytest.fail()).items}
    assert {path.name for path in store.items.iterdir()} == uuids


def test_an_item_whose_readable_path_is_taken_is_published_without_one(store: Store) -> None:
    """As when a file of a held item became a folder with an item of its own."""
    publish_contents(store, {"a": {"b": b"1", "c": b"2"}, "a/b": {"d": b"3"}, "a/b/e": {"f": b"4"}})
    assert len(read_as_subscriber(store)) == 3
    assert (store.current / "a" / "c").read_bytes() == b"2"


def test_a_folder_item_below_a_single_file_item_is_published_without_a_readable_path(store: Store) -> None:
    publish_contents(store, {"a": {"a": b"1"}}, single=True)
    publish_contents(store, {"a": {"a": b"1"}, "a/b": {"b": b"2"}}, single=True)
    assert len(read_as_subscriber(store)) == 2


# ---------------------------------------------------------------- recovery


def test_what_a_killed_run_left_unfinished_is_cleared_away(volume: Volume) -> None:
    volume.put("a/disk.vmdk")
    item = volume.sync().items[0]
    before = snapshot(volume.store)
    lefts = [
        volume.root / ".new-current",
        volume.store.generations / ".new-2",
        volume.store.items / item.uuid / ".new-2",
        volume.store.items / item.uuid / "2",
        volume.store.items / "11111111-1111-1111-1111-111111111111" / "1",
    ]
    (volume.root / ".new-status.json").write_text("half")
    for left in lefts:
        left.mkdir(parents=True)
        (left / "file").write_bytes(b"half")
    volume.store.prepare()
    assert not any(path.exists() for path in lefts)
    assert not lefts[-1].parent.exists()
    assert not (volume.root / ".new-status.json").exists()
    assert snapshot(volume.store) == before


def test_a_generation_that_was_made_but_never_published_is_dropped_and_its_versions_are_used_for_what_comes(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.put("a/disk.vmdk", b"one")
    volume.sync()
    volume.put("a/disk.vmdk", b"two, never published")

    def killed(_self: Store, _number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_flip", killed)
        volume.sync()
    assert volume.store.generation_numbers() == (1, 2)
    assert read_as_subscriber(volume.store) == {"a": {"disk.vmdk": b"one"}}
    assert volume.versions() == {"a": 1}
    volume.put("a/disk.vmdk", b"three")
    volume.sync()
    assert read_as_subscriber(volume.store) == {"a": {"disk.vmdk": b"three"}}
    assert volume.versions() == {"a": 2}


def test_a_lost_link_to_the_current_generation_is_made_again(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"1")
    volume.sync()
    volume.put("a/disk.vmdk", b"22")
    volume.sync()
    before = snapshot(volume.store)
    volume.store.current.unlink()
    volume.sync()
    assert volume.store.current_number() == 2
    assert snapshot(volume.store) == before


def test_looking_at_a_volume_changes_nothing_on_it(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"1")
    volume.sync()
    volume.store.current.unlink()
    before = sorted(str(path) for path in volume.root.rglob("*"))
    assert volume.published().items[0].key == "a"
    assert sorted(str(path) for path in volume.root.rglob("*")) == before


DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "from the future": lambda path: path.write_bytes(path.read_bytes().replace(b'"format": 1', b'"format": 99')),
    "not JSON": lambda path: path.write_bytes(b"\xff\xfe garbage"),
    "another JSON": lambda path: path.write_bytes(b"[]"),
}


@pytest.fixture
def published(volume: Volume) -> Volume:
    """Every kind of item at version 2 and above."""
    for number in range(2):
        volume.put("a/disk.vmdk", b"a%d" % number)
        volume.put("a/b/disk.vmdk", b"b%d" % number)
        volume.put("tools.iso", b"c%d" % number)
        volume.put("isos/one.iso", b"d%d" % number)
        fake_template(volume.mirror / "web", revision=number, disk_bytes=3000)
        volume.sync()
    return volume


def floor(library: PublishedLibrary) -> dict[str, tuple[str, int]]:
    return {item.key: (item.id, item.version) for item in library.items}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_record_is_read_back_from_the_manifests_with_ids_and_keys(published: Volume, damage: str) -> None:
    before = published.published()
    DAMAGES[damage](published.store.current / STATE)
    adopted = published.published()
    assert floor(adopted) == floor(before)
    assert {item.key: item.key_is_file for item in adopted.items} == {
        item.key: item.key_is_file for item in before.items
    }
    after = published.sync()
    assert after.id == before.id
    assert after.version > before.version
    assert published.ids() == {item.key: item.id for item in before.items}
    assert all(
        after_item.version > before_item.version
        for after_item, before_item in zip(after.items, before.items, strict=True)
    )
    assert published.store.published() == after
    assert (published.store.current / "tools.iso").read_bytes() == b"c1"


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "not JSON"])
def test_a_damaged_record_and_list_of_items_are_read_back_from_the_items_own_manifests(
    published: Volume, damage: str
) -> None:
    before = published.published()
    DAMAGES[damage](published.store.current / "items.json")
    DAMAGES["truncated"](published.store.current / STATE)
    assert floor(published.published()) == floor(before)
    published.sync()
    assert published.ids() == {item.key: item.id for item in before.items}
    assert len(read_as_subscriber(published.store)) == 5


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "not JSON"])
def test_a_damaged_generation_is_continued_from_the_one_before_above_all_its_versions(
    published: Volume, damage: str
) -> None:
    before = published.published()
    for name in ("lib.json", STATE):
        DAMAGES[damage](published.store.current / name)
    after = published.sync()
    assert after.id == before.id
    assert after.version > before.version
    for old, new in zip(before.items, after.items, strict=True):
        assert new.id == old.id
        assert new.version > old.version
        assert new.etag > old.etag
        assert all(file.generation_num > old.etag for file in new.files)
    assert len(read_as_subscriber(published.store)) == 5


def test_a_generation_that_vanished_is_continued_from_the_one_before_above_all_its_versions(published: Volume) -> None:
    before = published.published()
    shutil.rmtree(published.store.current.resolve())
    after = published.sync()
    assert after.version > before.version
    assert all(new.version > old.version for old, new in zip(before.items, after.items, strict=True))


def test_when_no_generation_can_be_read_the_library_is_not_started_over(published: Volume) -> None:
    for folder in published.store.generations.iterdir():
        for name in ("lib.json", STATE):
            (folder / name).write_bytes(b"\0" * 100)
    before = {path: path.read_bytes() for path in published.store.items.rglob("*") if path.is_file()}
    with pytest.raises(
        ManifestError, match=r"no generation on the volume can be read.*Restore the volume from a backup"
    ):
        published.sync()
    assert {path: path.read_bytes() for path in published.store.items.rglob("*") if path.is_file()} == before


def test_a_damaged_old_generation_neither_stops_syncs_nor_costs_files(published: Volume) -> None:
    for name in ("lib.json", STATE):
        (published.store.generations / "1" / name).write_bytes(b"damaged")
    trees = set(published.store.items.glob("*/*"))
    published.put("a/disk.vmdk", b"more")
    published.sync()
    assert trees < set(published.store.items.glob("*/*"))
    assert len(read_as_subscriber(published.store)) == 5


def test_lost_item_trees_are_built_again_with_the_same_versions(published: Volume) -> None:
    before = read_as_subscriber(published.store)
    versions = published.versions()
    for item in published.published().items[:2]:
        shutil.rmtree(published.store.tree(item))
    published.sync()
    assert read_as_subscriber(published.store) == before
    assert published.versions() == versions


def test_generations_alone_restored_from_a_backup_keep_ids_and_versions(published: Volume) -> None:
    before = read_as_subscriber(published.store)
    versions, ids = published.versions(), published.ids()
    shutil.rmtree(published.store.items)
    published.store.current.unlink()
    published.sync()
    assert (published.versions(), published.ids()) == (versions, ids)
    assert read_as_subscriber(published.store) == before


@pytest.mark.parametrize("lost", ["vanished", "damaged"])
def test_a_held_item_survives_a_lost_generation_with_the_files_it_had(published: Volume, lost: str) -> None:
    before = published.published()
    older = published.store.generations / "1" / "web"
    good = {path.name: path.read_bytes() for path in older.iterdir() if path.name != "item.json"}
    if lost == "vanished":
        shutil.rmtree(published.store.current.resolve())
    for name in ("lib.json", STATE):
        if lost == "damaged":
            (published.store.current / name).write_bytes(b"damaged")
    next((published.mirror / "web").glob("*.vmdk")).unlink()
    after = published.sync()
    assert [held.key for held in published.held] == ["web"]
    served = read_as_subscriber(published.store)["web"]
    assert served.keys() == good.keys()
    if lost == "vanished":
        assert served == good
    assert {item.id for item in after.items} == {item.id for item in before.items}


# ---------------------------------------------------------------- a full or failing volume

CALLS = ["link", "mkdir", "symlink", "rename", "fsync", "open", "unlink"]


class Faults:
    """Lets calls of ``os`` on paths below ``root`` through until the ``fatal``-th one, which fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, reason: int) -> None:
        self.root, self.reason = str(root), reason
        self.count = 0
        self.fatal: int | None = None
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            here = any(self.root in os.fspath(arg) for arg in args if isinstance(arg, str | os.PathLike))
            if here or real.__name__ == "fsync":
                self.count += 1
                if self.fatal is not None and self.count >= self.fatal:
                    raise OSError(self.reason, os.strerror(self.reason), str(args[0]))
            return real(*args, **kwargs)

        return call

    @contextlib.contextmanager
    def failing_from(self, number: int) -> Iterator[None]:
        self.count, self.fatal = 0, number
        try:
            yield
        finally:
            self.fatal = None


def test_a_volume_that_fails_at_any_step_of_publishing_serves_the_old_library_and_the_next_run_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = Faults(monkeypatch, tmp_path, errno.ENOSPC)
    failures = 0
    for step in range(1, 200):
        volume = Volume(tmp_path / str(step))
        volume.put("a/disk.vmdk", b"old")
        volume.put("isos/one.iso", b"old")
        volume.sync()
        old = read_as_subscriber(volume.store)
        volume.put("a/disk.vmdk", b"newer")
        volume.put("b/disk.vmdk", b"newer")
        library = volume.published()
        store = Store(volume.root)
        store.prepare()
        library, sources = _next(volume)
        try:
            with faults.failing_from(step):
                store.publish(library, sources)
            finished = True
        except StoreError as error:
            assert str(volume.root) in str(error)
            failures += 1
            finished = False
        served = read_as_subscriber(volume.store)
        assert served == old or served.keys() == {"a", "b", "one.iso"}
        if finished:
            break
        volume.sync()
        assert read_as_subscriber(volume.store) == {
            "a": {"disk.vmdk": b"newer"},
            "b": {"disk.vmdk": b"newer"},
            "one.iso": {"one.iso": b"old"},
        }
        assert volume.versions() == {"a": 2, "b": 1, "isos/one.iso": 1}
        assert not list(volume.root.rglob(".new-*"))
    else:
        pytest.fail("publishing never got through")
    assert failures > 15


def _next(volume: Volume) -> tuple[PublishedLibrary, dict[str, TreeSource]]:
    """The library that a sync would publish now, and where its new trees come from."""
    captured: list[tuple[PublishedLibrary, dict[str, TreeSource]]] = []

    class StoppedError(Exception):
        pass

    def capture(_self: Store, library: PublishedLibrary, sources: dict[str, TreeSource]) -> int:
        captured.append((library, sources))
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(Store, "publish", capture)
        volume.sync()
    return captured[0]


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (errno.ENOSPC, "Make room"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "writable"),
        (errno.EACCES, "SYNCER_UID"),
        (errno.EIO, "failing"),
    ],
)
def test_a_volume_that_cannot_be_used_says_what_to_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, reason: int, remedy: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason), str(store.root))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreError, match=remedy), store.locked("test"):
        pytest.fail("the lock was taken")
    with pytest.raises(StoreError, match=remedy):
        store.prepare()


def test_a_file_where_the_volume_should_be_is_refused(store: Store) -> None:
    store.root.write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be used"), store.locked("test"):
        pytest.fail("the lock was taken")


def test_files_that_are_gone_are_named_before_anything_changes(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"1")
    library = volume.sync()
    before = read_as_subscriber(volume.store)
    item = library.items[0]
    shutil.rmtree(volume.store.tree(item))
    with pytest.raises(StoreError, match="files of 'a' are gone"):
        volume.store.publish(library, {})
    assert volume.store.current_number() == 1
    assert before


# ---------------------------------------------------------------- pruning


def age(store: Store, seconds: float) -> None:
    """Let all generations have been published that much earlier."""
    for folder in store.generations.iterdir():
        at = moments.load((folder / PUBLISHED).read_bytes())
        assert at is not None
        earlier = Moment(at.boot, at.uptime - seconds, at.wall - seconds)
        (folder / PUBLISHED).write_bytes(moments.dump(earlier))


def publish_three(volume: Volume) -> None:
    for number in range(3):
        volume.put("a/disk.vmdk", b"x" * number)
        volume.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="1h")


def prune_after(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, *, real: float, shown: float, restarted: bool = False
) -> tuple[int, ...]:
    """Prune with a grace of an hour ``real`` seconds later, when the clock on the wall shows ``shown`` more."""
    at = moments.now()
    later = Moment("another run" if restarted else at.boot, real if restarted else at.uptime + real, at.wall + shown)
    with monkeypatch.context() as patched:
        patched.setattr(moments, "now", lambda: later)
        volume.store.prune(1, timedelta(hours=1))
    return volume.store.generation_numbers()


@pytest.mark.parametrize("step", [0, 366 * 86400, -366 * 86400, -1_800_000_000], ids=["none", "year", "back", "1970"])
def test_a_step_of_the_clock_neither_shortens_nor_prolongs_the_grace(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    publish_three(volume)
    assert prune_after(volume, monkeypatch, real=3000, shown=3000 + step) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=3700, shown=3700 + step) == (3,)
    assert read_as_subscriber(volume.store) == {"a": {"disk.vmdk": b"xx"}}


@pytest.mark.parametrize("wrong", [-1_800_000_000, 366 * 86400], ids=["1970", "a year ahead"])
def test_what_was_published_while_the_clock_was_wrong_has_its_whole_grace(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    at = moments.now()
    with monkeypatch.context() as patched:
        patched.setattr(moments, "now", lambda: Moment(at.boot, at.uptime, at.wall + wrong))
        publish_three(volume)
    assert prune_after(volume, monkeypatch, real=3000, shown=3000) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=3700, shown=3700) == (3,)


def test_over_a_restart_of_the_machine_the_clock_on_the_wall_measures_the_grace(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_three(volume)
    assert prune_after(volume, monkeypatch, real=60, shown=3000, restarted=True) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=60, shown=-86400, restarted=True) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=60, shown=3700, restarted=True) == (3,)


def test_generations_of_the_future_go_once_the_machine_has_run_for_the_grace_since_its_restart(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_three(volume)
    assert prune_after(volume, monkeypatch, real=3500, shown=-366 * 86400, restarted=True) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=3700, shown=-366 * 86400, restarted=True) == (3,)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b'{"boot": 1, "uptime": "x", "wall": null}'])
def test_a_generation_that_does_not_say_when_it_was_published_is_as_old_as_its_folder(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    publish_three(volume)
    for folder in volume.store.generations.iterdir():
        if content is None:
            (folder / PUBLISHED).unlink()
        else:
            (folder / PUBLISHED).write_bytes(content)
        os.utime(folder)
    assert prune_after(volume, monkeypatch, real=0, shown=3000) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=0, shown=-86400) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=0, shown=3700) == (3,)


def test_a_kernel_that_does_not_tell_its_runs_apart_leaves_the_clock_on_the_wall(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(moments, "BOOT_ID", tmp_path / "nothing")
    publish_three(volume)
    assert prune_after(volume, monkeypatch, real=9999, shown=3000) == (1, 2, 3)
    assert prune_after(volume, monkeypatch, real=9999, shown=3700) == (3,)


def test_the_newest_generations_are_kept_and_older_ones_go_after_their_grace_with_their_trees(volume: Volume) -> None:
    environment = {"LIBRARY_KEEP": "2", "LIBRARY_GRACE": "1h"}
    for number in range(5):
        volume.put("a/disk.vmdk", b"x" * number)
        volume.sync(**environment)
    assert volume.store.generation_numbers() == (1, 2, 3, 4, 5)
    age(volume.store, 3500)
    volume.sync(**environment)
    assert volume.store.generation_numbers() == (1, 2, 3, 4, 5)
    age(volume.store, 200)
    volume.sync(**environment)
    assert volume.store.generation_numbers() == (4, 5)
    (item,) = volume.published().items
    assert {path.name for path in volume.store.tree(item).parent.iterdir()} == {"4", "5"}
    assert read_as_subscriber(volume.store) == {"a": {"disk.vmdk": b"xxxx"}}


def test_the_grace_of_a_generation_begins_when_it_is_replaced_not_when_it_was_made(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"1")
    volume.sync()
    age(volume.store, 1_000_000)
    volume.put("a/disk.vmdk", b"22")
    volume.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="1h")
    assert volume.store.generation_numbers() == (1, 2)


def test_the_published_generation_is_never_pruned(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"1")
    volume.sync()
    age(volume.store, 1_000_000)
    for _ in range(3):
        volume.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")
    assert read_as_subscriber(volume.store) == {"a": {"disk.vmdk": b"1"}}
    Store(volume.root / "empty").prune(1, timedelta(0))


def test_a_removed_items_trees_go_with_the_last_generation_that_names_them(volume: Volume) -> None:
    volume.put("a/disk.vmdk", b"1")
    volume.put("b/disk.vmdk", b"1")
    gone = volume.sync().items[1]
    shutil.rmtree(volume.mirror / "b")
    volume.sync(LIBRARY_KEEP="2")
    assert volume.store.tree(gone).is_dir()
    time.sleep(0.01)
    volume.sync(LIBRARY_KEEP="1", LIBRARY_GRACE="0")
    assert not volume.store.tree(gone).parent.exists()


def test_pruning_the_mirror_takes_what_is_not_wanted_and_empty_folders_but_not_the_mirror(volume: Volume) -> None:
    for path in ("a/x", "a/y", "b/c/d", "top"):
        volume.put(path)
    (volume.mirror / "empty" / "deep").mkdir(parents=True)
    volume.store.prune_mirror({"a/x"})
    assert sorted(path.relative_to(volume.mirror).as_posix() for path in volume.mirror.rglob("*")) == ["a", "a/x"]
    volume.store.prune_mirror(set())
    assert volume.mirror.is_dir()


def test_pruning_the_mirror_never_follows_a_link(volume: Volume, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x")
    volume.put("a/x")
    (volume.mirror / "a" / "link").symlink_to(outside)
    volume.store.prune_mirror(set())
    assert (outside / "precious").exists()


def test_free_space_is_what_the_volume_says(volume: Volume) -> None:
    volume.store.prepare()
    room = os.statvfs(volume.root)
    assert abs(volume.store.free_bytes() - room.f_bavail * room.f_frsize) < 1 << 30


# ---------------------------------------------------------------- the lock

HOLDER = """
import sys, time
from pathlib import Path
from clr_client.store import Store
with Store(Path(sys.argv[1])).locked("schedule"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_told_since_when_the_first_runs_and_a_killed_one_holds_nothing(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            text = r"already running since 20\d\d-.*\+00:00 \(schedule\)"
            with pytest.raises(LockedError, match=text) as caught, store.locked("hand"):
                pytest.fail("the lock was taken twice")
            assert caught.value.exit_code == 5
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.wait()
    with store.locked("hand"):
        pass


def test_a_lock_whose_text_is_not_readable_is_still_a_lock(store: Store) -> None:
    with store.locked("first"):
        (store.root / ".lock").write_bytes(b"\xff garbage")
        with pytest.raises(LockedError, match="already running since a moment ago"), store.locked("second"):
            pytest.fail("the lock was taken twice")


def test_a_lock_file_left_by_a_dead_process_is_no_lock(store: Store) -> None:
    store.root.mkdir()
    (store.root / ".lock").write_text('{"since": "2020-01-01T00:00:00+00:00", "trigger": "x", "pid": 1}')
    with store.locked("new"):
        assert json.loads((store.root / ".lock").read_text())["trigger"] == "new"


def test_digests_of_what_is_published_are_those_of_its_files(published: Volume) -> None:
    for item in published.published().items:
        for file in item.files:
            data = (published.store.tree(item) / file.name).read_bytes()
            assert file.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_file_system_without_locks_is_refused_with_what_it_needs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match=r"cannot be locked.*must support flock"), store.locked("test"):
        pytest.fail("the lock was taken")


def test_damage_to_a_generation_that_was_read_before_is_seen(published: Volume) -> None:
    store = published.store
    before = store.published()
    path = store.current / STATE
    path.write_bytes(path.read_bytes().replace(b'"Test"', b'"Tost"'))
    after = store.published()
    assert before is not None
    assert after is not None
    assert (before.href_style, after.href_style) == ("tree", ADOPTED)
    assert after.name == "Test"


def test_trees_of_a_key_that_is_no_item_any_more_go_and_foreign_files_between_them_too(volume: Volume) -> None:
    volume.put("a/disk.vmdk")
    volume.sync()
    (volume.store.items / "stray").mkdir()
    (volume.store.items / "stray" / "file").write_bytes(b"x")
    volume.sync()
    assert len(list(volume.store.items.iterdir())) == 1


def test_a_full_volume_can_still_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with Store(tmp_path / "library").locked("test"):
        pass


def test_whether_a_run_holds_the_volume_is_told_with_its_beginning(tmp_path: Path) -> None:
    store = Store(tmp_path / "library")
    assert lock.running_since(store.root) == ""
    with store.locked("schedule"):
        assert re.fullmatch(r"20.* \(schedule\)", lock.running_since(store.root))
    assert lock.running_since(store.root) == ""
