"""What an interrupted transfer leaves, found and made use of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clr_client.transport import PARTIAL_DIR, partials, rescue, strays
from clr_client.transport.leftovers import resume

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def never() -> bool:
    return False


def test_only_temporary_files_of_rsync_are_strays(tmp_path: Path) -> None:
    stray = write(tmp_path / "a" / ".disk.vmdk.aB3dE9", b"x")
    write(tmp_path / "a" / "disk.vmdk", b"x")
    write(tmp_path / "a" / "disk.aB3dE9", b"x")
    write(tmp_path / "a" / PARTIAL_DIR / ".odd.aB3dE9", b"x")
    (tmp_path / ".link.aB3dE9").symlink_to(stray)
    (tmp_path / ".folder.aB3dE9").mkdir()
    assert list(strays(tmp_path)) == [stray]


def test_partial_files_are_told_by_the_path_they_belong_to(tmp_path: Path) -> None:
    top = write(tmp_path / PARTIAL_DIR / "f", b"x")
    name = os.fsdecode(b"odd\n\xff")
    below = write(tmp_path / "a" / "b" / PARTIAL_DIR / name, b"x")
    (tmp_path / PARTIAL_DIR / "link").symlink_to(top)
    assert partials(tmp_path) == {"f": top, f"a/b/{name}": below}


def test_the_longer_of_a_stray_and_a_partial_file_is_kept(tmp_path: Path) -> None:
    write(tmp_path / ".long.aaaaaa", b"12345")
    write(tmp_path / PARTIAL_DIR / "long", b"123")
    write(tmp_path / ".short.aaaaaa", b"1")
    write(tmp_path / PARTIAL_DIR / "short", b"123")
    write(tmp_path / ".twice.aaaaaa", b"1")
    write(tmp_path / ".twice.bbbbbb", b"12")
    write(tmp_path / ".empty.aaaaaa", b"")
    rescue(tmp_path)
    assert list(strays(tmp_path)) == []
    kept = {path: partial.read_bytes() for path, partial in partials(tmp_path).items()}
    assert kept == {"long": b"12345", "short": b"123", "twice": b"12"}


def test_folders_for_partial_files_that_hold_none_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / PARTIAL_DIR).mkdir(parents=True)
    rescue(tmp_path)
    assert list((tmp_path / "a").iterdir()) == []


def test_the_old_version_is_put_behind_the_partial_file_once(tmp_path: Path) -> None:
    write(tmp_path / "a" / "f", b"old version")
    partial = write(tmp_path / "a" / PARTIAL_DIR / "f", b"new ver")
    for _ in range(3):
        resume(tmp_path, ["a/f", "a/absent"], None, never)
        assert partial.read_bytes() == b"new verold version"
    assert (tmp_path / "a" / "f").read_bytes() == b"old version"


def test_a_basis_stands_in_for_an_old_version_that_is_not_in_the_mirror(tmp_path: Path) -> None:
    mirror, basis = tmp_path / "mirror", tmp_path / "basis"
    write(basis / "a", b"basis")
    write(basis / "b", b"basis")
    write(mirror / "b", b"old")
    first = write(mirror / PARTIAL_DIR / "a", b"new ")
    second = write(mirror / PARTIAL_DIR / "b", b"new ")
    resume(mirror, ["a", "b"], basis, never)
    assert first.read_bytes() == b"new basis"
    assert second.read_bytes() == b"new old"


def test_partial_files_of_other_paths_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "f", b"old")
    partial = write(tmp_path / PARTIAL_DIR / "f", b"new")
    resume(tmp_path, ["g"], None, never)
    resume(tmp_path, ["f"], None, lambda: True)
    assert partial.read_bytes() == b"new"
