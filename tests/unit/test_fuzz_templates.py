"""What lies in a library comes from elsewhere: any content is published rightly or held with a reason."""

from __future__ import annotations

import contextlib
import encodings.aliases
import io
import os
import tarfile
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from clr_client.content import checksums, metadata, ova, ovf
from clr_client.content.digests import DigestCache
from clr_client.content.items import MAX_PATH, SourceItem, group, ignored, scan
from clr_client.content.names import MAX_NAME, assign_names, display_name, flaw, fold, units
from clr_client.content.verify import verify
from clr_client.errors import HeldError
from clr_client.files import FileInfo
from clr_client.text import UNSAFE
from hypothesis import given
from hypothesis import strategies as st
from support.fuzz import damaged
from support.templates import envelope

OVF = envelope("vm", {"disk.vmdk": 4, "disk two.iso": 0})
MANIFEST = b"SHA256(vm.ovf)= " + b"ab" * 32 + b"\nSHA1 (disk.vmdk) = " + b"01" * 20 + b"\n"
TOML = b'name = "Golden"\ndescription = """\nTwo\nlines"""\n'


def archive(format_: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format_) as tar:
        for name, content in {"vm.ovf": envelope("vm", {"disk.vmdk": 4}), "disk.vmdk": b"disk", "n" * 150: b""}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


ARCHIVES = [archive(tarfile.GNU_FORMAT), archive(tarfile.PAX_FORMAT)]


def is_printable(error: HeldError) -> None:
    assert not UNSAFE.search(str(error))
    assert len(str(error)) < 1000


TOKENS = (b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"<a>" * 2000, b'<?xml version="1.0" encoding="utf-7"?>', b"]]>")


@given(
    damaged([OVF, OVF.decode().encode("utf-16"), OVF.decode().encode("utf-16-be")], TOKENS) | st.binary(max_size=200)
)
def test_any_envelope_is_read_or_refused_in_printable_words(data: bytes) -> None:
    try:
        found = ovf.parse(data)
        assert ovf.restore(found.dump()) == found
        assert "\n" not in found.dump()
        names = ovf.resolve(found, {"disk.vmdk": 4, "disk two.iso": 0})
        assert names <= {"disk.vmdk", "disk two.iso"}
    except HeldError as error:
        is_printable(error)


@pytest.mark.parametrize("encoding", sorted({*encodings.aliases.aliases.values(), "../x", "a" * 5000, "undefined"}))
def test_an_envelope_in_any_encoding_is_read_or_refused(encoding: str) -> None:
    head = f'<?xml version="1.0" encoding="{encoding}"?>'.encode()
    body = OVF.partition(b"?>")[2]
    with contextlib.suppress(HeldError):
        assert len(ovf.parse(head + body).references) == 2


@given(damaged([MANIFEST], [b"MD5", b"()", b"(../x)=", b"SHA512"]) | st.binary(max_size=200))
def test_any_manifest_is_read_or_refused_in_printable_words(data: bytes) -> None:
    try:
        entries = checksums.parse(data)
        assert all("/" not in entry.name and flaw(entry.name) is None for entry in entries)
    except HeldError as error:
        is_printable(error)


@given(
    damaged([TOML], [b"[[", b"a.b.c", b"1979-05-27T07:32:00Z", b"\\ud800", b"1e999", b"'''"]) | st.binary(max_size=200)
)
def test_any_metadata_is_read_or_refused_in_printable_words(data: bytes) -> None:
    try:
        found = metadata.parse(data)
        assert metadata.restore(found.dump()) == found
        assert found.name is None or (0 < units(found.name) <= MAX_NAME and flaw(found.name) is None)
        found.description.encode()
    except HeldError as error:
        is_printable(error)


@pytest.mark.parametrize(
    "text", ["a." * 8000 + "a = 1", "[" + "a." * 8000 + "a]", "\n".join(["a." * 400 + "a=1"] * 20)]
)
def test_metadata_does_not_keep_the_processor_busy(text: str) -> None:
    began = time.process_time()
    with pytest.raises(HeldError):
        metadata.parse(text.encode())
    assert time.process_time() - began < 5


BLOCK = bytes(512)
NUMBERS = (b"\x80" + b"\xff" * 11, b"7" * 11 + b"\0", b"\xff" * 12, b"-0000000001\0")


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A damaged archive, half of the time with right checksums, so that what was damaged is believed."""
    data = bytearray(draw(damaged(ARCHIVES, (BLOCK, *NUMBERS))))
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            if draw(st.booleans()):
                data[start + 156 : start + 157] = draw(
                    st.sampled_from((b"0", b"1", b"2", b"3", b"5", b"L", b"x", b"g", b"S"))
                )
            if draw(st.booleans()):
                data[start + 124 : start + 136] = draw(st.sampled_from((*NUMBERS, data[start + 124 : start + 136])))
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)


@given(archives() | damaged(ARCHIVES))
def test_any_archive_is_unpacked_rightly_or_refused_and_nothing_is_written_elsewhere(data: bytes) -> None:
    with TemporaryDirectory() as folder:
        packed, target = Path(folder, "vm.ova"), Path(folder, "target")
        packed.write_bytes(data)
        target.mkdir()
        try:
            with packed.open("rb") as stream:
                found = ova.inspect(stream.fileno(), len(data))
            assert ova.restore(found.dump()) == found
            ova.unpack(packed, target, expected={member.name: member.sha256 for member in found.members})
            assert {file.name: file.stat().st_size for file in target.iterdir()} == {
                member.name: member.size for member in found.members
            }
        except HeldError as error:
            is_printable(error)
        assert {path.name for path in Path(folder).iterdir()} == {"vm.ova", "target"}
        assert all(path.is_file() and not path.is_symlink() for path in target.iterdir())


SEGMENTS = st.one_of(
    st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 0x2F} & set(name) and name not in (b".", b"..")),
    st.sampled_from(
        [
            *(b"lib.json", b"items.json", b"item.json", b"ITEM.JSON", b".state.json", b"_items", b"_clr", b"current"),
            *(b".clr-partial", b".new-1", b"lost+found", b"x.lck", b"clr-item.toml", b"index.html", b".htaccess"),
            *(b"vm.ovf", b"vm.ova", b"vm.iso", b"VM.OVF", "é".encode(), "e\u0301".encode(), b"-rf", b" ", b"%2e%2e"),
            *(b"n" * 255, b"n" * 256, "\U0001f4be".encode() * 63, b"\\..\\x", b"a:b", b"#?&%"),
        ]
    ),
)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map(b"/".join).map(os.fsdecode)


@given(st.lists(PATHS, max_size=12, unique=True))
def test_any_tree_is_sorted_into_items_with_distinct_harmless_names_or_problems(paths: list[str]) -> None:
    files = [FileInfo(path, 5, 7) for path in paths]
    items = group(files)
    for item in items:
        assert not any(ignored(file.path) for file in item.files)
        if item.problem is not None:
            assert not UNSAFE.search(item.problem)
            continue
        for file in item.files:
            file.path.encode()
            assert flaw(file.path) is None
            assert fold(file.name) not in ("lib.json", "items.json", "item.json")
        assert 0 < units(item.default_name) <= MAX_NAME
    sound = {item.key: item.default_name for item in items if item.problem is None}
    names, problems = assign_names(sound, {})
    assert names.keys() | problems.keys() == sound.keys()
    assert len({fold(name) for name in names.values()}) == len(names)
    assert not any(UNSAFE.search(problem) for problem in problems.values())


@given(st.text(max_size=200))
def test_a_display_name_is_short_harmless_and_its_own(text: str) -> None:
    name = display_name(text)
    assert units(name) <= MAX_NAME
    assert flaw(name) is None
    assert display_name(name) == name


def test_a_path_that_this_machine_could_not_hold_is_refused_with_its_item_alone() -> None:
    deep = "/".join(["d" * 250] * 14)
    problems = {item.key: item.problem for item in group([FileInfo(f"{deep}/f", 1, 1), FileInfo("vm/f", 1, 1)])}
    assert problems == {deep: f"a file's path is longer than {MAX_PATH} bytes", "vm": None}


@given(st.lists(st.tuples(PATHS, st.binary(max_size=20)), max_size=6))
def test_any_tree_that_a_disk_can_hold_is_verified_or_held(files: list[tuple[str, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for path, content in files:
            with contextlib.suppress(OSError):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(OVF if path.endswith(".ovf") else content)
        listed = scan(root)
        for item in group(listed):
            _verified(item, root)


def _verified(item: SourceItem, root: Path) -> None:
    try:
        found = verify(item, root, DigestCache())
    except HeldError as error:
        is_printable(error)
        return
    assert {file.name for file in found.files} == {file.name for file in item.files}
    assert flaw(found.name) is None
