"""Rolling back: the older content comes back under higher versions, and syncs wait."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import LockedError, ManifestError, StoreError
from clr_client.reporting import status as statuses
from clr_client.rollback import release, roll_back
from clr_client.store import STATE, Store
from hypothesis import given, settings
from hypothesis import strategies as st
from support.volume import Volume

if TYPE_CHECKING:
    from pathlib import Path

    from clr_client.vcsp.model import PublishedLibrary


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """Generation 1: a, b. Generation 2: a changed, b gone, c new. Generation 3: c changed."""
    volume = Volume(tmp_path / "library")
    volume.put("a/disk.vmdk", b"a1")
    volume.put("b/disk.vmdk", b"b1")
    volume.sync()
    volume.put("a/disk.vmdk", b"a2, bad")
    volume.put("c/disk.vmdk", b"c2")
    shutil.rmtree(volume.mirror / "b")
    volume.sync()
    volume.put("c/disk.vmdk", b"c3")
    volume.sync()
    return volume


def back(volume: Volume, number: int | None = None) -> int:
    return roll_back(volume.settings(), Store(volume.root), number)


def contents(volume: Volume) -> dict[str, bytes]:
    return {path: (volume.store.current / path / "disk.vmdk").read_bytes() for path in volume.versions()}


def test_a_generation_comes_back_with_its_content_and_higher_versions(volume: Volume) -> None:
    before, ids, library = volume.versions(), volume.ids(), volume.published()
    first = volume.store.read_generation(1)
    assert back(volume, 1) == 4
    assert volume.store.current_number() == 4
    assert contents(volume) == {"a": b"a1", "b": b"b1"}
    assert volume.published().version == library.version + 1
    assert volume.versions()["a"] == before["a"] + 1
    assert volume.ids()["a"] == ids["a"]
    old_a, new_a = (next(item for item in lib.items if item.key == "a") for lib in (library, volume.published()))
    assert new_a.etag > old_a.etag
    assert new_a.files[0].generation_num > old_a.files[0].generation_num
    assert {item.key: item.id for item in first.items} == volume.ids()


def test_a_removed_item_comes_back_with_the_same_id_and_a_higher_version(volume: Volume) -> None:
    old = next(item for item in volume.store.read_generation(1).items if item.key == "b")
    back(volume, 1)
    new = next(item for item in volume.published().items if item.key == "b")
    assert new.id == old.id
    assert new.version > old.version


def test_without_a_number_the_one_before_is_meant_and_then_the_one_before_that(volume: Volume) -> None:
    assert back(volume) == 4
    assert contents(volume) == {"a": b"a2, bad", "c": b"c2"}
    assert volume.store.rolled_back_to() == 2
    assert back(volume) == 5
    assert contents(volume) == {"a": b"a1", "b": b"b1"}
    assert volume.store.rolled_back_to() == 1
    with pytest.raises(ManifestError, match="no generation before 1 is kept"):
        back(volume)
    assert contents(volume) == {"a": b"a1", "b": b"b1"}


def test_rolling_back_to_what_is_published_only_makes_syncs_wait(volume: Volume) -> None:
    before = (volume.store.current / "lib.json").read_bytes()
    assert back(volume, 3) == 3
    assert (volume.store.current / "lib.json").read_bytes() == before
    assert volume.store.rolled_back_to() == 3


def test_a_rollback_killed_before_it_published_anything_did_not_happen(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> int:
        raise Killed

    with monkeypatch.context() as killing:
        killing.setattr(type(volume.store), "publish", kill)
        with pytest.raises(Killed):
            back(volume)
    assert volume.store.rolled_back_to() is None
    assert back(volume) == 4
    assert volume.store.rolled_back_to() == 2


def test_rolling_back_only_a_removal_grows_the_librarys_version_too(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "library")
    volume.put("a/disk.vmdk", b"a")
    volume.put("b/disk.vmdk", b"b")
    volume.sync()
    shutil.rmtree(volume.mirror / "b")
    second = volume.sync()
    back(volume, 1)
    assert volume.published().version > second.version
    assert contents(volume) == {"a": b"a", "b": b"b"}


def test_a_name_of_the_library_rolls_back_with_it(volume: Volume) -> None:
    volume.sync(LIBRARY_NAME="Renamed")
    back(volume)
    assert volume.published().name == "Test"


def test_a_release_lets_syncs_publish_again_and_versions_still_grow(volume: Volume) -> None:
    back(volume, 1)
    rolled = volume.published()
    assert release(volume.store)
    assert not volume.store.pin.exists()
    assert not release(volume.store)
    volume.sync()
    assert contents(volume) == {"a": b"a2, bad", "c": b"c3"}
    assert volume.published().version > rolled.version
    assert volume.versions()["a"] > next(item.version for item in rolled.items if item.key == "a")


@pytest.mark.parametrize("number", [9, 4])
def test_a_generation_that_is_not_kept_is_refused_and_those_that_are_kept_are_named(
    volume: Volume, number: int
) -> None:
    with pytest.raises(ManifestError, match=f"there is no generation {number}. Kept generations: 1, 2, 3"):
        back(volume, number)
    assert not volume.store.pin.exists()
    assert volume.store.current_number() == 3


def test_nothing_published_and_only_one_generation_are_refused(tmp_path: Path) -> None:
    volume = Volume(tmp_path / "library")
    with pytest.raises(ManifestError, match=r"nothing was ever published.*clr sync"):
        back(volume)
    volume.put("a/disk.vmdk")
    volume.sync()
    with pytest.raises(ManifestError, match=r"no generation before 1 is kept.*LIBRARY_KEEP"):
        back(volume)
    assert not volume.store.pin.exists()


def test_a_running_sync_is_not_disturbed(volume: Volume) -> None:
    with volume.store.locked("schedule"), pytest.raises(LockedError):
        back(volume)
    with volume.store.locked("schedule"), pytest.raises(LockedError):
        release(volume.store)


def test_a_generation_whose_files_are_gone_is_refused_and_syncs_do_not_wait_for_it(volume: Volume) -> None:
    item = next(item for item in volume.store.read_generation(1).items if item.key == "b")
    (volume.store.tree(item) / "disk.vmdk").unlink()
    with pytest.raises(StoreError, match="No such file"):
        back(volume, 1)
    assert not volume.store.pin.exists()
    assert volume.store.current_number() == 3


def test_a_generation_that_rotted_since_it_was_replaced_is_refused_and_nothing_changes(volume: Volume) -> None:
    published = volume.published()
    item = next(item for item in volume.store.read_generation(1).items if item.key == "a")
    (volume.store.tree(item) / "disk.vmdk").write_bytes(b"x1")
    with pytest.raises(StoreError, match=r"disk\.vmdk of 'a' is not what was published.*Nothing was changed"):
        back(volume, 1)
    assert volume.published() == published
    assert volume.store.rolled_back_to() is None
    assert back(volume, 2) == 4


def test_a_full_volume_is_told_as_one(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clr_client.store.replace_file", full)
    with pytest.raises(StoreError, match="Make room"):
        back(volume, 1)
    assert volume.store.current_number() == 3


def test_a_generation_whose_record_is_damaged_still_comes_back(volume: Volume) -> None:
    (volume.store.generations / "1" / STATE).write_bytes(b"damaged")
    (volume.store.generations / "2" / STATE).write_bytes(b"damaged")
    (volume.store.generations / "2" / "lib.json").write_bytes(b"damaged")
    back(volume, 1)
    assert contents(volume) == {"a": b"a1", "b": b"b1"}


def test_the_status_tells_what_is_published_after_a_rollback(volume: Volume) -> None:
    back(volume, 1)
    status = statuses.load(volume.store.status)
    assert status.library["generation"] == 4
    assert status.library["version"] == volume.published().version


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["change", "remove", "back", "sync"])), max_size=12))
def test_through_any_history_with_rollbacks_no_version_goes_down_and_no_changed_content_keeps_its_version(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str]]
) -> None:
    volume = Volume(tmp_path_factory.mktemp("history") / "library", LIBRARY_KEEP="100")
    volume.put("0/disk.vmdk", b"0")
    volume.sync()
    seen: dict[str, tuple[int, tuple[object, ...]]] = {}
    last: PublishedLibrary | None = None
    for count, (number, what) in enumerate(steps):
        if what == "change":
            volume.put(f"{number}/disk.vmdk", b"%d" % (count % 3))
            volume.sync()
        elif what == "remove" and (volume.mirror / str(number)).exists() and len(volume.versions()) > 1:
            shutil.rmtree(volume.mirror / str(number))
            volume.sync()
        elif what == "back" and number + 1 in volume.store.generation_numbers():
            back(volume, number + 1)
            release(volume.store)
        elif what == "sync":
            volume.sync()
        library = volume.published()
        assert last is None or library.version > last.version or library == last
        for item in library.items:
            version, content = seen.get(item.id, (0, ()))
            now = (item.name, *item.files)
            assert item.version > version or (item.version == version and now == content)
            seen[item.id] = item.version, now
            data = (volume.store.tree(item) / item.files[0].name).read_bytes()
            assert len(data) == item.files[0].size
        last = library
