"""What an interrupted transfer leaves, found and made use of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from clr_client.transport import PARTIAL_DIR, partials, rescue, strays

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


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
