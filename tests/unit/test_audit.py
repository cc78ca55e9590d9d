"""`clr verify`: what is published is held against what was published."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from clr_client.errors import ManifestError
from clr_client.integrity.audit import audit
from clr_client.store import STATE
from support.templates import fake_template
from support.volume import Volume

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "library")
    volume.put("a/disk.vmdk", b"x" * 3_000_000)
    volume.put("tools.iso", b"iso")
    fake_template(volume.mirror / "web", disk_bytes=3000)
    volume.sync()
    return volume


def tree(volume: Volume, key: str) -> Path:
    return volume.store.tree(next(item for item in volume.published().items if item.key == key))


def damages(volume: Volume) -> dict[str, str]:
    return {damage.path: damage.reason for damage in audit(volume.store)}


def inside(volume: Volume, path: Path) -> str:
    return path.resolve().relative_to(volume.root).as_posix()


def test_nothing_is_wrong_with_what_was_just_published(volume: Volume) -> None:
    assert damages(volume) == {}


def test_one_flipped_bit_is_found_though_size_and_time_are_the_same(volume: Volume) -> None:
    path = tree(volume, "a") / "disk.vmdk"
    before = path.stat()
    with path.open("r+b") as disk:
        disk.seek(2_000_000)
        disk.write(b"y")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damages(volume) == {inside(volume, path): "is not what was published"}


def test_missing_and_shortened_files_are_found(volume: Volume) -> None:
    missing = tree(volume, "web") / "web-disk1.vmdk"
    missing.unlink()
    short = tree(volume, "tools.iso") / "tools.iso"
    short.write_bytes(b"i")
    assert damages(volume) == {
        inside(volume, missing): "cannot be read: No such file or directory",
        inside(volume, short): "has 1 bytes instead of 3",
    }


def test_a_lost_tree_is_found_with_its_manifest(volume: Volume) -> None:
    shutil.rmtree(tree(volume, "a"))
    assert sorted(path.rpartition("/")[2] for path in damages(volume)) == ["disk.vmdk", "item.json"]


@pytest.mark.parametrize("name", ["lib.json", "items.json"])
def test_a_changed_manifest_is_found(volume: Volume, name: str) -> None:
    path = volume.store.current / name
    path.write_bytes(path.read_bytes().replace(b'"1"', b'"2"'))
    assert damages(volume) == {inside(volume, path): "is not what was published"}


def test_a_changed_manifest_of_an_item_is_found(volume: Volume) -> None:
    path = tree(volume, "web") / "item.json"
    path.write_bytes(b"{}")
    assert damages(volume) == {inside(volume, path): "is not what was published"}


def test_a_damaged_record_is_found_and_nothing_else_is_accused(volume: Volume) -> None:
    path = volume.store.current / STATE
    path.write_bytes(b"{}")
    assert damages(volume) == {inside(volume, path): "is damaged, so digests are unknown until the next sync"}
    volume.sync()
    assert damages(volume) == {}


def test_progress_counts_every_byte_once(volume: Volume) -> None:
    seen: list[tuple[int, int]] = []
    assert list(audit(volume.store, lambda done, total, _name: seen.append((done, total)))) == []
    total = sum(file.size for item in volume.published().items for file in item.files)
    assert seen[-1] == (total, total)
    assert len(seen) > 3
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_nothing_published_is_said(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="nothing was ever published"):
        list(audit(Volume(tmp_path / "empty").store))


def test_damage_is_mended_by_removing_the_tree_and_the_mirrors_copy_and_syncing_again(volume: Volume) -> None:
    path = tree(volume, "a") / "disk.vmdk"
    path.write_bytes(b"rotten")
    assert len(damages(volume)) == 1
    shutil.rmtree(tree(volume, "a"))
    volume.put("a/disk.vmdk", b"x" * 3_000_000)
    volume.sync()
    assert damages(volume) == {}
    assert volume.versions()["a"] == 1
