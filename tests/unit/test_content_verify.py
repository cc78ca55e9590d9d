"""Whether an item is complete and sound, and what of it is published."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from dataclasses import replace as changed
from typing import TYPE_CHECKING

import pytest
from clr_client.content import digests
from clr_client.content.digests import DigestCache
from clr_client.content.items import SourceItem, group, scan
from clr_client.content.verify import VerifiedItem, verify
from clr_client.errors import HeldError

if TYPE_CHECKING:
    from pathlib import Path
from support.templates import envelope, fake_template, manifest, pack_ova


def items(root: Path) -> dict[str, SourceItem]:
    return {item.key: item for item in group(scan(root))}


def verified(root: Path, key: str, cache: DigestCache | None = None, **options) -> VerifiedItem:
    return verify(items(root)[key], root, cache or DigestCache(), **options)


def refusal(root: Path, key: str) -> str:
    with pytest.raises(HeldError) as caught:
        verified(root, key)
    assert str(caught.value).isprintable()
    return str(caught.value)


def write(root: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """Names of files opened for reading, in order."""
    seen: list[str] = []
    real = os.open

    def count(path, flags, mode=0o777, *, dir_fd=None):
        seen.append(os.path.basename(path))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", count)
    return seen


def test_a_complete_ovf_template_is_published_with_all_its_files(tmp_path):
    fake_template(tmp_path / "vm", disks=2)
    write(tmp_path, **{"vm/vm.nvram": b"nv", "vm/vm.cert": b"cert"})
    found = verified(tmp_path, "vm")
    assert (found.key, found.name, found.description, found.type) == ("vm", "vm", "", "vcsp.ovf")
    assert [file.name for file in found.files] == [
        "vm-disk1.vmdk",
        "vm-disk2.vmdk",
        "vm.cert",
        "vm.mf",
        "vm.nvram",
        "vm.ovf",
    ]
    for file in found.files:
        assert file.path == tmp_path / "vm" / file.name
        content = file.path.read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert found.archive is None
    assert found.warnings == ("vm.nvram is not listed in vm.mf",)
    assert not found.is_vapp_template


def test_a_template_without_manifest_is_published(tmp_path):
    fake_template(tmp_path / "vm", algorithm=None, vapp=True)
    found = verified(tmp_path, "vm")
    assert found.warnings == ()
    assert found.is_vapp_template


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["A.OVF"], "vcsp.ovf"),
        (["a.iso", "readme.txt"], "vcsp.iso"),
        (["a.ovf", "tools.iso"], "vcsp.ovf"),
        (["script.sh"], "vcsp.other"),
        (["a.ovf.txt", "iso", "ovf"], "vcsp.other"),
    ],
)
def test_the_type_follows_from_suffixes_in_any_case_and_ovf_beats_iso(tmp_path, names: list[str], kind: str):
    write(tmp_path, **{f"x/{name}": envelope("a", {}) for name in names})
    assert verified(tmp_path, "x").type == kind


def test_a_folder_named_like_a_template_makes_no_template(tmp_path):
    write(tmp_path, **{"golden.ovf-library/readme.txt": b"x", "b.ovf/readme.txt": b"x"})
    assert verified(tmp_path, "golden.ovf-library").type == "vcsp.other"
    assert verified(tmp_path, "b.ovf").type == "vcsp.other"


def test_a_loose_iso_is_an_item_of_its_whole_file_name(tmp_path):
    write(tmp_path, **{"Tools 1.ISO": b"iso"})
    found = verified(tmp_path, "Tools 1.ISO")
    assert (found.name, found.type, found.files[0].name) == ("Tools 1.ISO", "vcsp.iso", "Tools 1.ISO")


def test_a_missing_disk_holds_the_template(tmp_path):
    fake_template(tmp_path / "vm", algorithm=None)
    (tmp_path / "vm" / "vm-disk1.vmdk").unlink()
    assert refusal(tmp_path, "vm") == "vm-disk1.vmdk is referenced but not there"


def test_a_disk_still_being_copied_holds_the_template(tmp_path):
    fake_template(tmp_path / "vm", algorithm=None)
    os.truncate(tmp_path / "vm" / "vm-disk1.vmdk", 1000)
    assert "has 1000 bytes, but the OVF envelope says 65536" in refusal(tmp_path, "vm")


def test_an_envelope_that_references_outside_its_folder_holds_the_template(tmp_path):
    write(tmp_path, **{"vm/vm.ovf": envelope("vm", {"x": 1}, hrefs={"x": "../../etc/passwd"}), "secret": b"s"})
    assert "outside its folder" in refusal(tmp_path, "vm")


def test_a_percent_encoded_reference_finds_its_file(tmp_path):
    write(tmp_path, **{"vm/vm.ovf": envelope("vm", {"my disk": 1}, hrefs={"my disk": "my%20disk"}), "vm/my disk": b"1"})
    assert len(verified(tmp_path, "vm").files) == 2


def test_an_unreadable_envelope_holds_the_template(tmp_path):
    write(tmp_path, **{"vm/vm.ovf": b"<Envelope"})
    assert "cannot be read" in refusal(tmp_path, "vm")


def test_an_oversized_envelope_holds_the_template_unread(tmp_path, opens):
    write(tmp_path, **{"vm/vm.ovf": b""})
    os.truncate(tmp_path / "vm" / "vm.ovf", 1 << 30)
    assert "larger than 32768 KiB" in refusal(tmp_path, "vm")


def test_two_envelopes_in_one_folder_hold_it(tmp_path):
    write(tmp_path, **{"vm/a.ovf": envelope("a", {}), "vm/b.OVF": envelope("b", {})})
    assert "more than one .ovf in one folder: a.ovf and b.OVF" in refusal(tmp_path, "vm")


def test_a_loose_envelope_at_the_top_is_held_with_the_advice_to_give_it_a_folder(tmp_path):
    write(tmp_path, **{"vm.ovf": envelope("vm", {"vm.vmdk": 1}), "vm.vmdk": b"1"})
    assert refusal(tmp_path, "vm.ovf") == "vm.vmdk is referenced but not there (a template needs a folder of its own)"


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
def test_a_manifest_of_each_algorithm_is_checked(tmp_path, algorithm: str):
    fake_template(tmp_path / "vm", algorithm=algorithm)
    assert bool(verified(tmp_path, "vm").warnings) == (algorithm == "sha1")
    disk = tmp_path / "vm" / "vm-disk1.vmdk"
    content = bytearray(disk.read_bytes())
    content[500] ^= 1
    disk.write_bytes(content)
    assert f"vm-disk1.vmdk does not match its {algorithm.upper()} digest in vm.mf" in refusal(tmp_path, "vm")


def test_a_rewritten_envelope_does_not_match_the_old_manifest(tmp_path):
    fake_template(tmp_path / "vm")
    (tmp_path / "vm" / "vm.ovf").write_bytes(envelope("vm", {"vm-disk1.vmdk": 65536}, capacity=5))
    assert "vm.ovf does not match" in refusal(tmp_path, "vm")


def test_a_file_the_manifest_lists_and_the_envelope_does_not_reference_has_to_be_there(tmp_path):
    fake_template(tmp_path / "vm", algorithm=None)
    write(tmp_path, **{"vm/vm.nvram": b"nv"})
    names = ["vm.ovf", "vm-disk1.vmdk", "vm.nvram"]
    (tmp_path / "vm" / "vm.mf").write_bytes(manifest(tmp_path / "vm", names))
    (tmp_path / "vm" / "vm.nvram").unlink()
    assert refusal(tmp_path, "vm") == "vm.nvram is listed in the manifest but not there"


def test_a_malformed_manifest_holds_the_template(tmp_path):
    fake_template(tmp_path / "vm", algorithm=None)
    write(tmp_path, **{"vm/vm.mf": b"hello"})
    assert "malformed" in refusal(tmp_path, "vm")


def test_a_manifest_is_matched_to_its_envelope_in_any_case(tmp_path):
    fake_template(tmp_path / "vm", algorithm=None)
    write(tmp_path, **{"vm/VM.MF": b"hello"})
    assert "malformed" in refusal(tmp_path, "vm")


def test_a_manifest_of_another_name_is_a_plain_file_with_a_warning(tmp_path):
    fake_template(tmp_path / "vm")
    write(tmp_path, **{"vm/other.mf": b"hello"})
    found = verified(tmp_path, "vm")
    assert "other.mf was not checked: its name is not that of vm.ovf" in found.warnings
    assert "other.mf" in [file.name for file in found.files]


def test_a_manifest_without_template_is_a_plain_file(tmp_path):
    write(tmp_path, **{"x/x.mf": b"hello", "y.mf": b"hello"})
    assert verified(tmp_path, "x").type == "vcsp.other"
    assert verified(tmp_path, "y.mf").type == "vcsp.other"


def test_metadata_names_and_describes_an_item_and_is_not_published(tmp_path):
    fake_template(tmp_path / "vm")
    write(tmp_path, **{"vm/clr-item.toml": 'name = "Débian"\ndescription = "Twelve"\n'.encode()})
    found = verified(tmp_path, "vm")
    assert (found.name, found.description) == ("Débian", "Twelve")
    assert "clr-item.toml" not in [file.name for file in found.files]


def test_metadata_of_a_single_file_describes_that_file(tmp_path):
    write(tmp_path, **{"a.iso": b"a", "a.iso.clr-item.toml": b'description = "Tools"'})
    found = verified(tmp_path, "a.iso")
    assert (found.name, found.description, len(found.files)) == ("a.iso", "Tools", 1)
    assert list(items(tmp_path)) == ["a.iso"]


def test_wrong_metadata_holds_the_item_with_the_reason(tmp_path):
    fake_template(tmp_path / "vm")
    write(tmp_path, **{"vm/clr-item.toml": b"nmae = 'x'"})
    assert refusal(tmp_path, "vm") == "the metadata file has the unknown key nmae"
    write(tmp_path, **{"vm/clr-item.toml": b"#" * (65 << 10)})
    assert refusal(tmp_path, "vm") == "clr-item.toml is larger than 16 KiB"


def test_unused_metadata_is_told_as_a_warning(tmp_path):
    write(tmp_path, **{"isos/a.iso": b"a", "isos/clr-item.toml": b"name = 'x'"})
    found = verified(tmp_path, "isos/a.iso")
    assert found.name == "a.iso"
    assert "clr-item.toml is not used" in found.warnings[0]


def test_an_item_with_a_problem_is_held_for_it(tmp_path):
    write(tmp_path, **{"_items/a.ovf": b""})
    assert "reserved" in refusal(tmp_path, "_items")


def test_a_listed_file_that_did_not_arrive_holds_the_item(tmp_path):
    write(tmp_path, **{"x/a": b"a", "x/b": b"b"})
    item = items(tmp_path)["x"]
    (tmp_path / "x" / "b").unlink()
    with pytest.raises(HeldError, match="b is not here"):
        verify(item, tmp_path, DigestCache())


def test_a_folder_that_did_not_arrive_holds_the_item(tmp_path):
    write(tmp_path, **{"x/a": b"a"})
    item = items(tmp_path)["x"]
    with pytest.raises(HeldError, match="the folder x is not here"):
        verify(item, tmp_path / "x", DigestCache())


@pytest.mark.parametrize("field", ["size", "mtime"])
def test_a_file_that_is_not_the_version_listed_holds_the_item(tmp_path, field: str):
    write(tmp_path, **{"x/a": b"a"})
    item = items(tmp_path)["x"]
    listed = changed(item, files=(changed(item.files[0], **{field: 7}),))
    with pytest.raises(
        HeldError, match=r"a (has 1 bytes here, 7 at the source|is not the version that the source lists)"
    ):
        verify(listed, tmp_path, DigestCache())


def test_a_metadata_file_that_did_not_arrive_holds_the_item(tmp_path):
    write(tmp_path, **{"x/a": b"a", "x/clr-item.toml": b""})
    item = items(tmp_path)["x"]
    (tmp_path / "x" / "clr-item.toml").unlink()
    with pytest.raises(HeldError, match=r"clr-item\.toml is not here"):
        verify(item, tmp_path, DigestCache())


def test_a_link_in_the_place_of_a_file_or_folder_is_never_followed(tmp_path):
    write(tmp_path, **{"lib/x/a": b"a", "lib/deep/y/b": b"b", "outside/a": b"a", "outside/y/b": b"b"})
    root = tmp_path / "lib"
    found = items(root)
    (root / "x" / "a").unlink()
    (root / "x" / "a").symlink_to(tmp_path / "outside" / "a")
    with pytest.raises(HeldError, match="a is not a regular file"):
        verify(found["x"], root, DigestCache())
    (root / "deep" / "y" / "b").unlink()
    (root / "deep" / "y").rmdir()
    (root / "deep").rmdir()
    (root / "deep").symlink_to(tmp_path / "outside")
    with pytest.raises(HeldError, match="deep is not a folder"):
        verify(found["deep/y"], root, DigestCache())


def test_the_library_itself_may_be_reached_through_a_link(tmp_path):
    fake_template(tmp_path / "disk" / "vm")
    (tmp_path / "library").symlink_to(tmp_path / "disk")
    assert verified(tmp_path / "library", "vm").type == "vcsp.ovf"


def test_each_file_is_opened_once_and_an_unchanged_item_never_again(tmp_path, opens):
    fake_template(tmp_path / "lib" / "vm", algorithm="sha512")
    write(tmp_path / "lib", **{"vm/clr-item.toml": b"name = 'x'", "a.iso": b"iso"})
    fake_template(tmp_path / "t", name="o")
    pack_ova(tmp_path / "t", tmp_path / "lib" / "o" / "o.ova")
    cache = DigestCache()
    opens.clear()
    first = [verify(item, tmp_path / "lib", cache) for item in items(tmp_path / "lib").values()]
    assert sorted(opens) == ["a.iso", "clr-item.toml", "o.ova", "vm-disk1.vmdk", "vm.mf", "vm.ovf"]
    cache.save(tmp_path / "cache")
    cache = DigestCache.load(tmp_path / "cache")
    opens.clear()
    assert [verify(item, tmp_path / "lib", cache) for item in items(tmp_path / "lib").values()] == first
    assert opens == []


def test_a_held_template_with_a_wrong_digest_is_not_hashed_again_each_time(tmp_path, opens):
    fake_template(tmp_path / "vm")
    disk = tmp_path / "vm" / "vm-disk1.vmdk"
    disk.write_bytes(b"x" * disk.stat().st_size)
    cache = DigestCache()
    with pytest.raises(HeldError):
        verified(tmp_path, "vm", cache)
    opens.clear()
    with pytest.raises(HeldError, match="does not match"):
        verified(tmp_path, "vm", cache)
    assert opens == []


def test_an_ova_is_published_as_the_files_in_it(tmp_path):
    fake_template(tmp_path / "t", name="vm", vapp=True)
    pack_ova(tmp_path / "t", tmp_path / "lib" / "App" / "vm.OVA")
    write(tmp_path / "lib", **{"App/readme.txt": b"read", "App/clr-item.toml": b"description = 'd'"})
    found = verified(tmp_path / "lib", "App")
    assert (found.name, found.description, found.type, found.is_vapp_template) == ("App", "d", "vcsp.ovf", True)
    assert found.archive == tmp_path / "lib" / "App" / "vm.OVA"
    assert {file.name: file.path for file in found.files} == {
        "readme.txt": tmp_path / "lib" / "App" / "readme.txt",
        "vm-disk1.vmdk": None,
        "vm.mf": None,
        "vm.ovf": None,
    }
    for file in found.files:
        if file.path is None:
            content = (tmp_path / "t" / file.name).read_bytes()
            assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_an_ova_is_published_as_it_is_where_unpacking_is_not_wanted(tmp_path):
    fake_template(tmp_path / "t", name="vm")
    pack_ova(tmp_path / "t", tmp_path / "lib" / "vm.ova")
    found = verified(tmp_path / "lib", "vm.ova", unpack=False)
    assert (found.name, found.type, found.archive) == ("vm", "vcsp.other", None)
    assert [file.name for file in found.files] == ["vm.ova"]
    assert "cannot be deployed" in found.warnings[0]


def test_several_ovas_beside_other_files_are_published_as_they_are_with_advice(tmp_path):
    fake_template(tmp_path / "t", name="vm")
    for name in ("a.ova", "b.ova"):
        pack_ova(tmp_path / "t", tmp_path / "lib" / "x" / name)
    write(tmp_path / "lib", **{"x/readme.txt": b""})
    found = verified(tmp_path / "lib", "x")
    assert found.type == "vcsp.other"
    assert "give each a folder of its own" in found.warnings[0]


def test_a_name_both_in_the_archive_and_beside_it_holds_the_item(tmp_path):
    fake_template(tmp_path / "t", name="vm")
    pack_ova(tmp_path / "t", tmp_path / "lib" / "x" / "vm.ova")
    write(tmp_path / "lib", **{"x/VM.mf": b""})
    assert refusal(tmp_path / "lib", "x") == "VM.mf lies beside vm.ova and in it"


def test_a_broken_ova_is_held_and_not_read_again_until_it_changes(tmp_path, opens):
    write(tmp_path, **{"x/x.ova": b"no archive" * 100})
    cache = DigestCache()
    with pytest.raises(HeldError, match="no tar file"):
        verified(tmp_path, "x", cache)
    opens.clear()
    with pytest.raises(HeldError, match="no tar file"):
        verified(tmp_path, "x", cache)
    assert opens == []
    fake_template(tmp_path / "t", name="vm")
    pack_ova(tmp_path / "t", tmp_path / "x" / "x.ova")
    assert verified(tmp_path, "x", cache).type == "vcsp.ovf"


def test_a_stopped_verification_of_an_ova_is_not_taken_for_a_broken_one(tmp_path):
    fake_template(tmp_path / "t", name="vm")
    pack_ova(tmp_path / "t", tmp_path / "lib" / "x" / "x.ova")
    cache = DigestCache()
    stop = threading.Event()
    stop.set()
    with pytest.raises(HeldError, match="stopped"):
        verified(tmp_path / "lib", "x", cache, stop=stop)
    assert verified(tmp_path / "lib", "x", cache).type == "vcsp.ovf"


def test_a_read_error_in_an_ova_is_not_remembered_as_a_broken_archive(tmp_path, monkeypatch):
    fake_template(tmp_path / "t", name="vm")
    pack_ova(tmp_path / "t", tmp_path / "lib" / "x" / "x.ova")
    cache = DigestCache()
    with monkeypatch.context() as patch:

        def fail(*arguments):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(digests.os, "preadv", fail)
        with pytest.raises(HeldError, match="Input/output error"):
            verified(tmp_path / "lib", "x", cache)
    assert verified(tmp_path / "lib", "x", cache).type == "vcsp.ovf"


def test_several_isos_beside_other_files_are_one_item_with_a_warning(tmp_path):
    write(tmp_path, **{"x/a.iso": b"a", "x/b.iso": b"b", "x/SHA256SUMS": b""})
    found = verified(tmp_path, "x")
    assert (found.type, len(found.files)) == ("vcsp.iso", 3)
    assert "Cloud Director" in found.warnings[0]


def test_a_long_folder_name_becomes_a_name_of_80_characters(tmp_path):
    write(tmp_path, **{"n" * 90 + "/a": b"a"})
    assert len(verified(tmp_path, "n" * 90).name) == 80


@pytest.mark.parametrize("name", ["a b", "#1", "50%", "what?", "qu\"ote's & co", "-rf", "日本", "e\u0301", "x" * 250])
def test_strange_but_sound_names_of_folders_and_files_are_published_as_they_are(tmp_path, name: str):
    write(tmp_path, **{f"{name}/{name}": b"x"})
    (file,) = verified(tmp_path, name).files
    assert file.name == name
