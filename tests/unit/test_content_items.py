"""Which files make which item, by the rules of the documentation."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from clr_client.content.items import MAX_DEPTH, SourceItem, group, ignored, scan
from clr_client.content.names import flaw
from clr_client.errors import StoreError
from clr_client.files import FileInfo

if TYPE_CHECKING:
    import random
from hypothesis import given
from hypothesis import strategies as st


def files(*paths: str) -> list[FileInfo]:
    return [FileInfo(path, 1, 0) for path in paths]


def grouped(*paths: str) -> dict[str, list[str]]:
    return {item.key: [file.path for file in item.files] for item in group(files(*paths))}


def only(*paths: str) -> SourceItem:
    (item,) = group(files(*paths))
    return item


def test_a_folder_with_files_is_an_item_under_its_own_name():
    item = only("debian/debian.ovf", "debian/disk.vmdk")
    assert (item.key, item.default_name, item.problem) == ("debian", "debian", None)
    assert [file.name for file in item.files] == ["debian.ovf", "disk.vmdk"]


def test_nested_folders_are_items_of_their_own_named_by_the_leaf():
    found = group(files("linux/readme.txt", "linux/debian/12/d.ovf", "linux/debian/12/d.vmdk"))
    assert [(item.key, item.default_name) for item in found] == [("linux", "linux"), ("linux/debian/12", "12")]


def test_a_folder_without_files_of_its_own_is_no_item():
    assert list(grouped("a/b/c.ovf")) == ["a/b"]


def test_a_loose_file_at_the_top_is_an_item_under_its_whole_name():
    found = group(files("rescue.iso", "notes.txt"))
    assert [(item.key, item.default_name) for item in found] == [
        ("notes.txt", "notes.txt"),
        ("rescue.iso", "rescue.iso"),
    ]


@pytest.mark.parametrize("name", ["one.iso", "One.ISO"])
def test_a_folder_of_only_isos_is_one_item_per_iso_and_a_second_one_does_not_touch_the_first(name: str):
    first = only(f"isos/{name}")
    both = {item.key: item for item in group(files(f"isos/{name}", "isos/two.iso"))}
    assert first.key == f"isos/{name}"
    assert first.default_name == name
    assert both[first.key] == first
    assert set(both) == {first.key, "isos/two.iso"}


def test_an_iso_beside_other_files_belongs_to_the_folders_item():
    assert grouped("tools/a.iso", "tools/readme.txt") == {"tools": ["tools/a.iso", "tools/readme.txt"]}


def test_a_lone_ova_and_what_lies_beside_it_is_its_folders_item():
    assert grouped("app/app.ova", "app/readme.txt") == {"app": ["app/app.ova", "app/readme.txt"]}
    assert list(grouped("app/app.OVA")) == ["app"]


def test_a_folder_of_several_ovas_is_one_item_per_ova_named_without_suffix():
    found = group(files("apps/a.ova", "apps/b.OVA"))
    assert [(item.key, item.default_name) for item in found] == [("apps/a.ova", "a"), ("apps/b.OVA", "b")]


def test_a_loose_ova_is_named_without_suffix():
    assert only("app.v2.ova").default_name == "app.v2"


def test_a_folder_named_like_an_ova_keeps_its_name():
    assert only("x.ova/a.ovf").default_name == "x.ova"


@pytest.mark.parametrize(
    "path",
    [
        ".hidden",
        "a/.hidden",
        ".folder/a.ovf",
        "a/.clr-partial/a.vmdk",
        "a/.disk.vmdk.Xa81b2",
        "lib.json",
        "a/items.json",
        "a/Item.JSON",
        "lost+found/x",
        "a/vm.vmx.lck",
        "a/vm.vmx.lck/M1",
        "/etc/passwd",
        "a//b",
        "../b",
        "a/../b",
        "./b",
    ],
)
def test_hidden_files_manifests_locks_and_broken_paths_are_never_content(path: str):
    assert grouped(path, "a/real.ovf") == {"a": ["a/real.ovf"]}


def test_a_file_whose_name_only_ends_like_a_manifest_is_content():
    assert grouped("a/vm-item.json", "a/my-lib.json") == {"a": ["a/my-lib.json", "a/vm-item.json"]}


def test_a_folders_metadata_file_is_not_one_of_its_files():
    item = only("a/a.ovf", "a/clr-item.toml")
    assert item.metadata is not None
    assert item.metadata.path == "a/clr-item.toml"
    assert [file.name for file in item.files] == ["a.ovf"]
    assert item.notes == ()


def test_a_single_file_items_metadata_file_bears_its_name():
    item = only("isos/a.iso", "isos/a.iso.clr-item.toml")
    assert item.key == "isos/a.iso"
    assert item.metadata is not None
    assert item.metadata.path == "isos/a.iso.clr-item.toml"
    top = only("a.iso", "a.iso.clr-item.toml")
    assert top.metadata is not None


def test_a_metadata_file_that_describes_nothing_is_noted_and_never_published():
    (iso,) = group(files("isos/a.iso", "isos/clr-item.toml"))
    assert iso.metadata is None
    assert "one item per file" in iso.notes[0]
    folder = only("a/a.ovf", "a/a.ovf.clr-item.toml")
    assert folder.metadata is None
    assert "a.ovf.clr-item.toml is not used" in folder.notes[0]
    (top,) = group(files("a.iso", "clr-item.toml", "a.iso.clr-item.toml"))
    assert top.notes == ()
    assert group(files("clr-item.toml", "gone.iso.clr-item.toml", "empty/clr-item.toml")) == ()


def test_two_metadata_files_that_differ_by_case_are_a_problem():
    assert "two metadata files" in str(only("a/a.ovf", "a/clr-item.toml", "a/CLR-Item.toml").problem)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/\udce9.ovf", r'the name "a/\xe9.ovf" is not UTF-8'),
        ("a\udcff/b.ovf", r'the name "a\xff" is not UTF-8'),
        ("a/b\nc.ovf", r'the name "a/b\x0ac.ovf" holds the control character \x0a'),
        ("a/b\x1b[31m.ovf", r"holds the control character \x1b"),
        ("a/b\x07.ovf", r"holds the control character \x07"),
        ("a/b\x9b.ovf", r"holds the control character \x9b"),
        ("a/b\x7f.ovf", r"holds the control character \x7f"),
        ("a/fdp\u202efvo.ovf", r"holds the control character \u202e"),
        ("a/b\u2028.ovf", r"holds the control character \u2028"),
        ("_items/a.ovf", 'the name "_items" at the top of a library is reserved'),
        ("_ITEMS/a.ovf", "reserved"),
        ("_clr/deep/a.ovf", "reserved"),
        ("_clr", "reserved"),
        ("lib.json/a.ovf", "reserved"),
        ("items.json/x/a.ovf", "reserved"),
        ("a/item.json/b.ovf", 'the name "item.json" is reserved'),
        ("a/Item.JSON/b/c.ovf", "reserved"),
        (" /a.ovf", "is empty"),
    ],
)
def test_what_can_never_be_published_has_a_problem_in_printable_words(path: str, reason: str):
    item = only(path)
    assert item.problem is not None
    assert reason in item.problem
    assert item.problem.isprintable()
    assert item.default_name.isprintable()


def test_one_bad_name_is_a_problem_of_its_item_alone():
    found = {item.key: item.problem for item in group(files("bad/a\n.ovf", "good/a.ovf", "_items/x", "a/_items/y"))}
    assert found["bad"] and found["_items"]
    assert found["good"] is None
    assert found["a/_items"] is None


@pytest.mark.parametrize("pair", [("A.vmdk", "a.VMDK"), ("caf\u00e9.vmdk", "cafe\u0301.vmdk"), ("STRASSE", "straße")])
def test_file_names_that_differ_only_by_case_or_unicode_form_are_a_problem(pair: tuple[str, str]):
    assert "differ only by case or Unicode form" in str(only(*(f"a/{name}" for name in pair)).problem)


def test_the_same_file_name_in_two_items_is_no_problem():
    assert all(item.problem is None for item in group(files("a/x.ovf", "b/X.ovf")))


SEGMENT = st.one_of(
    st.sampled_from(
        ["a", "A", "b", ".c", "x.iso", "X.ISO", "y.iso", "x.ova", "y.ova", "x.ovf", "clr-item.toml", "_items"]
    ),
    st.text(st.characters(blacklist_characters="/"), min_size=1, max_size=8),
    st.binary(min_size=1, max_size=6).map(lambda raw: os.fsdecode(raw.replace(b"/", b"-"))),
)
PATHS = st.lists(st.lists(SEGMENT, min_size=1, max_size=3).map("/".join), max_size=12)


@given(PATHS, st.randoms(use_true_random=False))
def test_grouping_any_names_loses_nothing_and_does_not_depend_on_order(paths: list[str], order: random.Random):
    listing = files(*paths)
    items = group(listing)
    order.shuffle(listing)
    assert group(listing) == items
    keys = [item.key for item in items]
    assert keys == sorted(keys)
    placed = [file.path for item in items for file in item.files]
    described = [item.metadata.path for item in items if item.metadata]
    assert len(placed) == len(set(placed))
    for path in set(paths):
        if not ignored(path) and not path.lower().endswith("clr-item.toml"):
            assert path in placed
    assert not set(placed) & set(described)
    for item in items:
        assert list(item.files) == sorted(item.files)
        assert len({file.folder for file in item.files}) == 1
        assert len(item.default_name.encode("utf-16-le")) <= 160
        assert item.problem is None or flaw(item.problem) is None


def test_scan_lists_regular_files_with_whole_seconds_and_follows_no_link(tmp_path):
    (tmp_path / "item").mkdir()
    (tmp_path / "item" / "a.ovf").write_bytes(b"12345")
    os.utime(tmp_path / "item" / "a.ovf", ns=(0, 1_700_000_000_999_999_999))
    (tmp_path / "b.iso").write_bytes(b"")
    os.utime(tmp_path / "b.iso", (0, -5))
    (tmp_path / "secret").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    os.mkfifo(tmp_path / "item" / "pipe")
    (tmp_path / ".clr-partial").mkdir()
    (tmp_path / ".clr-partial" / "x").write_bytes(b"x")
    (tmp_path / "lib.json").write_bytes(b"{}")
    (tmp_path / "empty").mkdir()
    assert scan(tmp_path) == (FileInfo("b.iso", 0, -5), FileInfo("item/a.ovf", 5, 1_700_000_000))


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_scan_lists_names_that_are_not_utf8_so_that_their_item_is_held(tmp_path):
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    open(os.fsencode(tmp_path) + b"/caf\xe9/a.ovf", "wb").close()
    (item,) = group(scan(tmp_path))
    assert "not UTF-8" in str(item.problem)


def test_scan_of_a_missing_folder_is_an_error_and_not_an_empty_library(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read the folder .*nowhere"):
        scan(tmp_path / "nowhere")


def test_scan_of_an_unreadable_folder_is_an_error_because_its_items_would_look_deleted(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StoreError, match="locked: Permission denied"):
        scan(tmp_path)


def test_what_is_nested_deeper_than_an_item_may_lie_is_a_problem_of_its_own_and_left_out_of_a_scan(tmp_path):
    deep = tmp_path.joinpath(*["d"] * MAX_DEPTH)
    (deep / "d").mkdir(parents=True)
    (deep / "a.bin").write_bytes(b"a")
    (deep / "d" / "b.bin").write_bytes(b"b")
    assert [file.name for file in scan(tmp_path)] == ["a.bin"]
    paths = ["/".join(["d"] * MAX_DEPTH) + "/a.bin", "/".join(["d"] * (MAX_DEPTH + 1)) + "/b.bin"]
    problems = {item.files[0].name: item.problem for item in group(FileInfo(path, 1, 1) for path in paths)}
    assert problems["a.bin"] is None
    assert "deep" in problems["b.bin"]


def test_a_name_that_no_file_system_takes_is_a_problem_of_its_item():
    items = {item.key: item.problem for item in group([FileInfo("good/a.bin", 1, 1), FileInfo("x" * 256, 1, 1)])}
    assert items["good"] is None
    assert "255 bytes" in items["x" * 256]
