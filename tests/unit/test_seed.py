"""Basis files: which older file a new one is built from, and that nothing of a cut transfer is lost."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from clr_client import blocks as lengths
from clr_client import seed
from clr_client.files import FileInfo
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BLOCK = 700


def files(*paths: str, size: int = MIB) -> dict[str, FileInfo]:
    return {path: FileInfo(path, size, 1_700_000_000) for path in paths}


def predecessor(wanted: str, *have: str, size: int = MIB) -> str | None:
    return seed.predecessors(files(wanted, size=size).values(), files(*have)).get(wanted)


def test_a_file_that_is_here_is_its_own_predecessor_whatever_its_size() -> None:
    assert predecessor("a/b.ovf", "a/b.ovf", "a/c.ovf", size=10) == "a/b.ovf"


def test_a_file_of_a_folder_renamed_by_date_grows_out_of_the_same_name_in_the_most_similar_folder() -> None:
    have = ("ubuntu-2404-20260901/disk1.vmdk", "debian-12-20260901/disk1.vmdk", "windows/disk1.vmdk")
    assert predecessor("ubuntu-2404-20261001/disk1.vmdk", *have) == have[0]
    assert predecessor("debian-12-20261001/disk1.vmdk", *have) == have[1]


def test_the_same_name_in_an_unlike_folder_is_still_better_than_nothing() -> None:
    assert predecessor("brand-new/photon-disk1.vmdk", "z/photon-disk1.vmdk") == "z/photon-disk1.vmdk"


def test_a_renamed_disk_grows_out_of_the_most_similar_one_of_the_same_suffix() -> None:
    have = ("web-v1/web-v1-disk1.vmdk", "web-v1/web-v1-disk1.iso", "mail/mail.vmdk")
    assert predecessor("web-v2/web-v2-disk1.vmdk", *have) == have[0]


def test_a_file_that_resembles_nothing_here_has_no_predecessor() -> None:
    assert predecessor("photon/photon.vmdk", "x/y.iso", "qqqqqqqq/zzzzzzzzzz.vmdk") is None
    assert predecessor("photon/photon.vmdk") is None


def test_small_files_are_not_searched_for_and_do_not_serve() -> None:
    assert predecessor("b/x.ovf", "a/x.ovf", size=1000) is None
    assert seed.predecessors(files("b/x.ovf").values(), files("a/x.ovf", size=1000)) == {}


@pytest.mark.parametrize("name", ["disk1.vmdk", "disk{}.vmdk"])
def test_a_library_of_thousands_of_new_disks_is_planned_in_seconds(name: str) -> None:
    wanted = files(*(f"new-{number}/{name.format(number)}" for number in range(3000)))
    have = files(*(f"old-{number}/{name.format(number)}" for number in range(3000)))
    began = time.monotonic()
    found = seed.predecessors(wanted.values(), have)
    assert time.monotonic() - began < 20
    assert set(found.values()) <= set(have)


@pytest.mark.parametrize(
    ("size", "mtime", "wish", "block"),
    [(3000, 5, 0, 4096), (3000, 6, 0, 2048), (2999, 5, 0, 2048), (3000, 5, 512, 512)],
)
def test_what_has_the_size_and_time_of_its_predecessor_is_compared_in_longer_blocks(
    tmp_path: Path, size: int, mtime: int, wish: int, block: int
) -> None:
    mirror, older = tmp_path / "mirror", {"new/disk.vmdk": "old/disk.vmdk"}
    (mirror / "old").mkdir(parents=True)
    (mirror / "old" / "disk.vmdk").write_bytes(bytes(3000))
    os.utime(mirror / "old" / "disk.vmdk", (5.7, 5.7))
    wanted = [FileInfo("new/disk.vmdk", size, mtime)]
    found = seed.block_sizes(wanted, older, {}, mirror, tmp_path / "basis", wish or lengths.AUTO)
    assert found == {"new/disk.vmdk": block}


class Tree:
    """A mirror with one file's old version and what a cut transfer left of its new version."""

    def __init__(self, root: Path) -> None:
        self.mirror, self.basis = root / "mirror", root / "basis"
        self.target = self.mirror / "item" / "disk.vmdk"
        self.partial = self.mirror / "item" / ".clr-partial" / "disk.vmdk"
        self.old = self.basis / "item" / "disk.vmdk"
        self.partial.parent.mkdir(parents=True)

    def lay_out(self, predecessor: str = "item/disk.vmdk", spare: float = math.inf) -> None:
        partials = {"item/disk.vmdk": self.partial} if self.partial.exists() else {}
        path = "item/disk.vmdk"
        seed.lay_out({path: predecessor}, partials, self.mirror, self.basis, {path: BLOCK}, spare)

    def arrived(self, size: int = 10 * MIB) -> int:
        partials = {"item/disk.vmdk": self.partial} if self.partial.exists() else {}
        return seed.arrived_bytes([FileInfo("item/disk.vmdk", size, 5)], partials, self.mirror, self.basis)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_a_partial_file_an_older_version_in_its_own_place_needs_nothing(tree: Tree) -> None:
    tree.target.write_bytes(b"old")
    tree.lay_out()
    assert not tree.basis.exists()


def test_a_new_name_gets_a_link_to_its_predecessor_and_the_mirror_stays(tree: Tree) -> None:
    other = tree.mirror / "older" / "disk.vmdk"
    other.parent.mkdir()
    other.write_bytes(b"old")
    tree.lay_out("older/disk.vmdk")
    tree.lay_out("older/disk.vmdk")
    assert tree.old.samefile(other)
    assert not tree.target.exists()


def blocks(content: str) -> bytes:
    """A block of rsync's for each character."""
    return b"".join(character.encode() * BLOCK for character in content)


def test_what_arrived_is_joined_with_the_old_version_and_is_never_taken_for_the_whole_file(tree: Tree) -> None:
    tree.target.write_bytes(b"old version")
    published = tree.target.parent / "published"
    os.link(tree.target, published)
    tree.partial.write_bytes(blocks("new"))
    tree.lay_out()
    assert tree.target.read_bytes() == blocks("new") + b"old version"
    assert int(tree.target.stat().st_mtime) == seed.NEVER
    assert published.read_bytes() == b"old version"
    assert tree.old.read_bytes() == b"old version"
    assert not tree.partial.exists()
    assert tree.arrived() == 3 * BLOCK


def test_what_rsync_cannot_match_is_left_out_so_that_the_old_versions_blocks_stay_where_they_were(tree: Tree) -> None:
    tree.target.write_bytes(blocks("old"))
    tree.partial.write_bytes(blocks("new") + b"the beginning of a block")
    tree.lay_out()
    assert tree.target.read_bytes() == blocks("newold")
    assert not tree.partial.exists()


def test_less_than_a_block_is_not_worth_a_join(tree: Tree) -> None:
    tree.target.write_bytes(b"old")
    tree.partial.write_bytes(b"n")
    tree.lay_out()
    assert tree.target.read_bytes() == b"old"
    assert not tree.partial.exists()


def test_a_second_cut_that_got_further_replaces_what_was_joined_and_a_shorter_one_does_not(tree: Tree) -> None:
    tree.target.write_bytes(b"old")
    for kept in ("0123", "01", "012345"):
        tree.partial.write_bytes(blocks(kept))
        tree.lay_out()
    assert tree.target.read_bytes() == blocks("012345") + b"old"
    tree.partial.write_bytes(blocks("0"))
    tree.lay_out()
    assert tree.target.read_bytes() == blocks("012345") + b"old"
    assert tree.arrived() == 6 * BLOCK


def test_a_new_version_that_came_between_two_cuts_is_not_taken_for_what_was_joined(tree: Tree) -> None:
    tree.target.write_bytes(b"v1")
    tree.partial.write_bytes(blocks("v2, cut"))
    tree.lay_out()
    whole = tree.target.with_name("arrived")
    whole.write_bytes(blocks("v2, which is much longer than v1"))
    whole.rename(tree.target)
    assert tree.arrived() == 0
    tree.partial.write_bytes(blocks("v3"))
    tree.lay_out()
    assert tree.target.read_bytes() == blocks("v3v2, which is much longer than v1")
    assert tree.arrived() == 2 * BLOCK


def test_a_joined_file_whose_basis_was_lost_still_serves(tree: Tree) -> None:
    tree.target.write_bytes(b"old")
    tree.partial.write_bytes(blocks("new"))
    tree.lay_out()
    shutil.rmtree(tree.basis)
    tree.partial.write_bytes(blocks("new 2"))
    tree.lay_out()
    assert tree.target.read_bytes() == blocks("new 2new") + b"old"


def test_a_new_file_that_was_cut_is_joined_with_its_predecessor(tree: Tree) -> None:
    other = tree.mirror / "older" / "disk.vmdk"
    other.parent.mkdir()
    other.write_bytes(b"old")
    tree.partial.write_bytes(blocks("new"))
    tree.lay_out("older/disk.vmdk")
    assert tree.target.read_bytes() == blocks("new") + b"old"
    assert other.read_bytes() == b"old"


@given(st.integers(0, 1 << 36), st.integers(1, 1 << 17))
def test_a_join_keeps_whole_blocks_and_loses_less_than_one(arrived: int, block: int) -> None:
    useful = seed.whole_blocks(arrived, block)
    assert useful % block == 0
    assert 0 <= arrived - useful < block


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=50), st.lists(st.text("abc", max_size=60), min_size=1, max_size=6))
def test_nothing_that_arrived_is_ever_lost(
    tmp_path_factory: pytest.TempPathFactory, old: bytes, cuts: list[str]
) -> None:
    tree = Tree(tmp_path_factory.mktemp("seed"))
    tree.target.write_bytes(old)
    best = b""
    for cut in map(blocks, cuts):
        tree.partial.write_bytes(cut)
        tree.lay_out()
        best = max(best, cut, key=len)
        content = tree.target.read_bytes()
        assert content.startswith(best) or len(content) - len(old) >= len(best)
        assert content.endswith(old)
        assert tree.arrived() == min(len(best), 10 * MIB)


@pytest.mark.parametrize("answer", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, 0])
def test_joining_works_where_the_file_system_cannot_share_bytes(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    real = os.copy_file_range
    calls = 0

    def sometimes(source: int, target: int, count: int) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            return real(source, target, 3)
        if answer:
            raise OSError(answer, "no")
        return 0

    monkeypatch.setattr(os, "copy_file_range", sometimes)
    tree.target.write_bytes(b"the old version")
    tree.partial.write_bytes(blocks("what arrived") + b"rest")
    tree.lay_out()
    assert tree.target.read_bytes() == blocks("what arrived") + b"the old version"


def test_a_full_volume_costs_the_old_version_but_neither_the_sync_nor_what_arrived(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(seed, "_append", full)
    tree.target.write_bytes(b"old")
    tree.partial.write_bytes(blocks("new"))
    tree.lay_out()
    assert tree.target.read_bytes() == b"old"
    assert tree.partial.read_bytes() == blocks("new")
    assert [path.name for path in tree.basis.rglob(".new-*")] == []
    assert "No space left" in caplog.text


ARRIVED, LONGER, OLD = b"n" * 7000, b"n" * 14_000, b"o" * 21_000
"""Whole blocks of rsync's, so that nothing is cut off when they are joined."""


@pytest.mark.parametrize("room", [0, 27_999])
def test_what_arrived_is_not_joined_where_the_volume_has_no_room_for_that(tree: Tree, room: int) -> None:
    tree.target.write_bytes(OLD)
    tree.partial.write_bytes(ARRIVED)
    tree.lay_out(spare=room)
    assert (tree.target.read_bytes(), tree.partial.read_bytes()) == (OLD, ARRIVED)
    assert [path.name for path in tree.basis.rglob(".new-*")] == []
    tree.lay_out(spare=28_000)
    assert tree.target.read_bytes() == ARRIVED + OLD


@pytest.mark.parametrize("since", [b"", b"n" * 700, LONGER])
def test_what_was_joined_is_a_partial_file_again_when_room_gets_short(tree: Tree, since: bytes) -> None:
    tree.target.write_bytes(OLD)
    tree.partial.write_bytes(ARRIVED)
    tree.lay_out()
    assert tree.target.read_bytes() == ARRIVED + OLD
    tree.partial.parent.mkdir(exist_ok=True)
    if since:
        tree.partial.write_bytes(since)
    tree.lay_out(spare=6999)
    assert (tree.partial.read_bytes(), tree.target.exists()) == (max(since, ARRIVED, key=len), False)
    assert tree.old.read_bytes() == OLD


def test_a_folder_of_an_earlier_layout_in_the_way_does_not_stop_the_sync(tree: Tree) -> None:
    tree.basis.mkdir()
    (tree.basis / "item").write_bytes(b"a file, where a folder is needed now")
    tree.target.write_bytes(b"old")
    tree.partial.write_bytes(b"new")
    tree.lay_out()
    assert tree.partial.exists()


def test_no_more_than_the_whole_file_counts_as_arrived(tree: Tree) -> None:
    tree.partial.write_bytes(b"x" * 100)
    assert tree.arrived(size=60) == 60
