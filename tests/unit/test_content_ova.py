"""OVA archives: read strictly, unpacked into plain files, never outside the destination."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from clr_client.content import ova
from clr_client.content.digests import opened
from clr_client.content.ova import Contents, Member, unpack
from clr_client.errors import HeldError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.templates import envelope, fake_template, pack_ova

DISK = b"disk" * 1000
OVF = envelope("vm", {"vm.vmdk": len(DISK)})


def manifest(algorithm: str = "sha256", **files: bytes) -> bytes:
    given_files = files or {"vm.ovf": OVF, "vm.vmdk": DISK}
    return "".join(
        f"{algorithm.upper()}({name})= {hashlib.new(algorithm, content).hexdigest()}\n"
        for name, content in given_files.items()
    ).encode()


def entry(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def archive(path: Path, *entries: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT, **options) -> Path:
    with tarfile.open(path, "w", format=form, **options) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


def plain(path: Path, form: int = tarfile.USTAR_FORMAT) -> Path:
    return archive(path, entry("vm.ovf", OVF), entry("vm.mf", manifest()), entry("vm.vmdk", DISK), form=form)


def inspect(path: Path) -> Contents:
    with opened(path) as (descriptor, info):
        return ova.inspect(descriptor, info.st_size)


def refusal(path: Path, inside: Path | None = None) -> str:
    """The reason an archive is refused with, by reading and by unpacking alike."""
    with pytest.raises(HeldError) as caught:
        inspect(path)
    destination = (inside or path.parent) / "unpacked"
    destination.mkdir(parents=True, exist_ok=True)
    with pytest.raises(HeldError) as again:
        unpack(path, destination)
    assert caught.value.message == again.value.message
    assert caught.value.message.isprintable()
    return caught.value.message


def test_an_archive_is_verified_and_its_files_are_listed_in_order(tmp_path):
    found = inspect(plain(tmp_path / "vm.ova"))
    assert [member.name for member in found.members] == ["vm.ovf", "vm.mf", "vm.vmdk"]
    assert found.members[2] == Member("vm.vmdk", len(DISK), hashlib.sha256(DISK).hexdigest())
    assert (found.is_vapp_template, found.warnings) == (False, ())


def test_unpacking_writes_plain_synced_files_of_mode_0644(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    previous = os.umask(0o077)
    try:
        (tmp_path / "out").mkdir()
        unpack(plain(tmp_path / "vm.ova"), tmp_path / "out")
    finally:
        os.umask(previous)
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        "vm.ovf": OVF,
        "vm.mf": manifest(),
        "vm.vmdk": DISK,
    }
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()} == {0o644}
    assert len(synced) == 4


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_dialect_is_read_also_with_long_and_foreign_names(tmp_path, form: int):
    disk = "é" + "d" * 90 + ".vmdk" if form == tarfile.USTAR_FORMAT else "é" + "d" * 200 + ".vmdk"
    text = envelope("vm", {disk: 5})
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", text), entry(disk, b"12345"), form=form)
    assert [member.name for member in inspect(path).members] == ["vm.ovf", disk]


def test_the_manifest_may_come_last_and_name_any_algorithm(tmp_path):
    for algorithm in ("sha1", "sha384", "sha512"):
        path = archive(
            tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("VM.MF", manifest(algorithm))
        )
        assert bool(inspect(path).warnings) == (algorithm == "sha1")


def test_names_that_begin_with_the_current_folder_are_plain_names(tmp_path):
    path = archive(tmp_path / "vm.ova", entry("./vm.ovf", OVF), entry("./vm.vmdk", DISK))
    assert [member.name for member in inspect(path).members] == ["vm.ovf", "vm.vmdk"]


def altered(path: Path, header: int, fields: dict[int, bytes], *, signed: bool = False) -> Path:
    """Overwrite bytes of the header that begins at ``header``, which then adds up again."""
    data = bytearray(path.read_bytes())
    for place, value in fields.items():
        data[header + place : header + place + len(value)] = value
    data[header + 148 : header + 156] = b" " * 8
    block = data[header : header + 512]
    total = sum(byte - 256 if signed and byte > 127 else byte for byte in block)
    data[header + 148 : header + 156] = b"%06o\0 " % total
    path.write_bytes(data)
    return path


def header_of(path: Path, name: str, *, kind: bytes = b"0") -> int:
    """Where the header of a member, or of the extension before it, begins."""
    data = path.read_bytes()
    return next(
        place
        for place in range(0, len(data), 512)
        if data[place + 257 : place + 262] == b"ustar" and data[place + 156 : place + 157] == kind
        if name in data[place : place + 100].decode("utf-8", "replace")
    )


def test_numbers_in_base_256_are_read(tmp_path):
    path = plain(tmp_path / "vm.ova")
    altered(path, 0, {124: b"\x80" + len(OVF).to_bytes(11, "big")})
    assert len(inspect(path).members) == 3


def test_a_blank_number_is_zero(tmp_path):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("empty"))
    altered(path, header_of(path, "empty"), {124: b" " * 12})
    assert inspect(path).members[2].size == 0


@pytest.mark.parametrize("number", [b"-0000000001", b"0o7", b"9", b"\xff" * 12, b"1\x002"])
def test_a_number_that_is_none_is_refused(tmp_path, number: bytes):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("empty"))
    altered(path, header_of(path, "empty"), {124: number.ljust(12, b"\0")})
    assert refusal(path) == "the archive has a damaged header"


def test_a_size_in_a_pax_record_overrides_the_headers(tmp_path):
    disk = entry("vm.vmdk", DISK, pax_headers={"size": str(len(DISK)), "comment": "x"})
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), disk, entry("more", b"1"), form=tarfile.PAX_FORMAT)
    altered(path, header_of(path, "vm.vmdk"), {124: b"0" * 11})
    assert [member.size for member in inspect(path).members] == [len(OVF), len(DISK), 1]


def test_the_signed_checksums_of_old_tars_are_accepted(tmp_path):
    text = envelope("vm", {"é.vmdk": 5})
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", text), entry("é.vmdk", b"12345"))
    altered(path, header_of(path, "é.vmdk"), {}, signed=True)
    assert len(inspect(path).members) == 2


def test_what_old_gnu_tars_keep_in_the_place_of_the_prefix_is_no_path(tmp_path):
    path = plain(tmp_path / "vm.ova", tarfile.GNU_FORMAT)
    altered(path, header_of(path, "vm.vmdk"), {345: b"14000000000"})
    assert [member.name for member in inspect(path).members] == ["vm.ovf", "vm.mf", "vm.vmdk"]


def test_a_vapp_in_an_archive_is_recognised(tmp_path):
    text = envelope("vm", {}, vapp=True)
    assert inspect(archive(tmp_path / "vm.ova", entry("vm.ovf", text))).is_vapp_template


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/evil", "sub/evil", "..", ".", "", "a/../evil", "..\\evil", "C:\\evil", "./../evil", "././evil"],
)
def test_a_path_instead_of_a_name_is_refused_and_nothing_is_written_outside(tmp_path, name: str):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry(name, b"x"))
    assert "path instead of a file name" in refusal(path, tmp_path / "deep" / "down")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["deep", "vm.ova"]
    assert list((tmp_path / "deep" / "down" / "unpacked").iterdir()) == []


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_long_name_that_leads_outside_is_refused(tmp_path, form: int):
    path = archive(
        tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("../" * 50 + "é", b"x"), form=form
    )
    assert "path instead of a file name" in refusal(path)


def test_a_name_split_by_the_ustar_prefix_is_a_path(tmp_path):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("p" * 90 + "/" + "n" * 50))
    assert "path instead of a file name" in refusal(path)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.CONTTYPE, "unknown type"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (b"Z", "unknown type"),
    ],
)
def test_only_regular_files_are_accepted(tmp_path, kind: bytes, what: str):
    odd = entry("odd", type=kind, linkname="/etc/passwd")
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), odd)
    assert what in refusal(path)


def test_a_link_in_place_of_the_disk_is_refused(tmp_path):
    link = entry("vm.vmdk", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    assert "symbolic link" in refusal(archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), link))


def test_a_long_link_target_is_refused(tmp_path):
    link = entry("x", type=tarfile.SYMTYPE, linkname="/" + "l" * 300)
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), link, form=tarfile.GNU_FORMAT)
    assert "a link" in refusal(path)


@pytest.mark.parametrize("second", ["vm.vmdk", "VM.vmdk"])
def test_a_member_that_comes_twice_is_refused(tmp_path, second: str):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry(second, DISK))
    assert "twice" in refusal(path)


@pytest.mark.parametrize("name", ["item.json", "LIB.json", "items.json", ".htaccess", ".hidden", "x.lck", "lost+found"])
def test_a_member_with_the_name_of_something_of_ours_is_refused(tmp_path, name: str):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry(name, b"x"))
    assert "not allowed" in refusal(path)


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\nb", "\udce9.vmdk", "a\u202eb"])
def test_a_member_name_that_cannot_be_shown_is_refused_in_printable_words(tmp_path, name: str):
    path = archive(
        tmp_path / "vm.ova",
        *(entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry(name, b"x")),
        encoding="utf-8",
        errors="surrogateescape",
    )
    assert "whose name" in refusal(path)


def test_a_member_name_longer_than_a_file_system_takes_is_refused(tmp_path):
    entries = [entry("vm.ovf", OVF), entry("vm.vmdk", DISK)]
    fits = archive(tmp_path / "a.ova", *entries, entry("n" * 255), form=tarfile.PAX_FORMAT)
    assert len(inspect(fits).members) == 3
    assert "not allowed" in refusal(archive(tmp_path / "b.ova", *entries, entry("é" * 128), form=tarfile.PAX_FORMAT))


def test_the_envelope_has_to_come_first(tmp_path):
    path = archive(tmp_path / "vm.ova", entry("vm.vmdk", DISK), entry("vm.ovf", OVF))
    assert "does not begin with an .ovf" in refusal(path)


def test_two_envelopes_are_refused(tmp_path):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("b.ovf", OVF))
    assert "more than one .ovf: vm.ovf and b.ovf" in refusal(path)


def test_an_empty_archive_is_no_ova(tmp_path):
    assert "does not begin with an .ovf" in refusal(archive(tmp_path / "vm.ova"))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "truncated"), (b"x" * 600, "no tar file"), (b"PK\3\4" * 200, "no tar file")]
)
def test_what_is_no_tar_is_refused(tmp_path, content: bytes, reason: str):
    (tmp_path / "vm.ova").write_bytes(content)
    assert reason in refusal(tmp_path / "vm.ova")


def test_a_compressed_archive_is_named_as_such(tmp_path):
    with tarfile.open(tmp_path / "vm.ova", "w:gz") as tar:
        info, content = entry("vm.ovf", os.urandom(2000))
        tar.addfile(info, io.BytesIO(content))
    assert "compressed with gzip" in refusal(tmp_path / "vm.ova")


def test_an_archive_cut_anywhere_is_refused(tmp_path):
    whole = plain(tmp_path / "whole.ova").read_bytes()
    end = 512 + -(-len(OVF) // 512) * 512 + 1024 + 512 + -(-len(DISK) // 512) * 512
    for length in [*range(0, end, 256), end - 1, end, end + 511]:
        cut = tmp_path / "vm.ova"
        cut.write_bytes(whole[:length])
        with pytest.raises(HeldError):
            inspect(cut)
    (tmp_path / "vm.ova").write_bytes(whole[: end + 512])
    assert len(inspect(tmp_path / "vm.ova").members) == 3


@pytest.mark.parametrize("size", [len(DISK) + 10_240, 1 << 60])
def test_a_size_larger_than_the_archive_is_refused_without_being_believed(tmp_path, size: int):
    path = plain(tmp_path / "vm.ova", tarfile.GNU_FORMAT)
    altered(path, header_of(path, "vm.vmdk"), {124: b"\x80" + size.to_bytes(11, "big")})
    assert refusal(path) == 'the archive is truncated: "vm.vmdk" is cut off'


def test_an_extended_header_that_ends_after_the_archive_is_refused(tmp_path):
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("n" * 120, b""), form=tarfile.GNU_FORMAT)
    start = header_of(path, "LongLink", kind=b"L")
    path.write_bytes(path.read_bytes()[: start + 600])
    assert refusal(path) == "the archive is truncated in a header"


@pytest.mark.parametrize(
    "records",
    [
        b"12 comment=x",
        b"99 comment=x\n",
        b"3 comment=x\n",
        b"5 comment=x\n",
        b"comment=x\n",
        b"0 =\n",
    ],
)
def test_a_damaged_pax_record_is_refused(tmp_path, records: bytes):
    whole = entry("vm.ovf", OVF, pax_headers={"comment": "x"})
    path = archive(tmp_path / "vm.ova", whole, entry("vm.vmdk", DISK), form=tarfile.PAX_FORMAT)
    start = header_of(path, "@PaxHeader", kind=b"x")
    data = bytearray(path.read_bytes())
    data[start + 512 : start + 512 + len(records)] = records
    path.write_bytes(data)
    altered(path, start, {124: b"%011o" % len(records)})
    assert refusal(path) == "the archive has a damaged extended header"


def test_a_damaged_header_is_refused(tmp_path):
    path = plain(tmp_path / "vm.ova")
    data = bytearray(path.read_bytes())
    second = 512 + -(-len(OVF) // 512) * 512
    data[second + 10] ^= 0xFF
    path.write_bytes(data)
    assert f"damaged at byte {second}" in refusal(path)


@pytest.mark.parametrize(
    "headers", [{"GNU.sparse.major": "1"}, {"GNU.sparse.name": "x"}, {"size": "-1"}, {"size": "1e9"}, {"path": "../x"}]
)
def test_pax_records_that_play_tricks_are_refused(tmp_path, headers: dict[str, str]):
    disk = entry("vm.vmdk", DISK, pax_headers=headers)
    assert refusal(archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), disk, form=tarfile.PAX_FORMAT))


def test_a_global_pax_header_may_comment_but_not_rename(tmp_path):
    entries = [entry("vm.ovf", OVF), entry("vm.vmdk", DISK)]
    harmless = archive(tmp_path / "a.ova", *entries, form=tarfile.PAX_FORMAT, pax_headers={"comment": "made by x"})
    assert len(inspect(harmless).members) == 2
    for record in ({"path": "x"}, {"size": "1"}):
        renaming = archive(tmp_path / "b.ova", *entries, form=tarfile.PAX_FORMAT, pax_headers=record)
        assert "global header that renames" in refusal(renaming)


def test_an_extended_header_is_never_read_into_memory_whole(tmp_path):
    path = archive(
        tmp_path / "vm.ova", entry("vm.ovf", OVF, pax_headers={"comment": "c" * (2 << 20)}), form=tarfile.PAX_FORMAT
    )
    assert "too large" in refusal(path)


def test_archives_of_endless_members_or_headers_are_refused(tmp_path):
    many = archive(tmp_path / "many.ova", entry("vm.ovf", OVF), *(entry(f"f{number}") for number in range(1001)))
    assert "more than 1000 files" in refusal(many)
    info = tarfile.TarInfo("x")
    info.type = tarfile.XGLTYPE
    (tmp_path / "headers.ova").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) * 5000)
    assert "more than 4000 headers" in refusal(tmp_path / "headers.ova")


def test_a_missing_or_short_disk_in_the_archive_is_refused(tmp_path):
    assert "vm.vmdk is referenced but not there" in refusal(archive(tmp_path / "a.ova", entry("vm.ovf", OVF)))
    short = archive(tmp_path / "b.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK[:-1]))
    assert "has 3999 bytes, but the OVF envelope says 4000" in refusal(short)


def test_a_digest_that_does_not_match_the_archives_own_manifest_is_refused(tmp_path):
    wrong = manifest(**{"vm.ovf": OVF, "vm.vmdk": b"other"})
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.mf", wrong), entry("vm.vmdk", DISK))
    assert "vm.vmdk does not match its SHA256 digest in vm.mf" in refusal(path)


def test_a_manifest_of_files_that_are_not_in_the_archive_is_refused(tmp_path):
    more = manifest(**{"vm.ovf": OVF, "gone.vmdk": b""})
    path = archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.mf", more), entry("vm.vmdk", DISK))
    assert "gone.vmdk is listed in the manifest but not there" in refusal(path)


def test_an_envelope_or_manifest_in_the_archive_over_its_limit_is_refused(tmp_path):
    big = archive(tmp_path / "a.ova", entry("vm.ovf", b" " * ((32 << 20) + 1)))
    assert "vm.ovf in the archive is larger than 32 MiB" in refusal(big)
    long = archive(
        tmp_path / "b.ova", entry("vm.ovf", OVF), entry("vm.mf", b"\n" * ((4 << 20) + 1)), entry("vm.vmdk", DISK)
    )
    assert "vm.mf in the archive is larger than 4 MiB" in refusal(long)


def test_unpacking_never_writes_through_what_lies_in_the_destination(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "vm.vmdk").symlink_to(victim)
    with pytest.raises(StoreError, match=r"cannot unpack vm\.vmdk"):
        unpack(plain(tmp_path / "vm.ova"), tmp_path / "out")
    assert victim.read_bytes() == b"precious"


def test_unpacking_into_a_missing_folder_or_a_link_is_a_store_error(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for place in ("nowhere", "link"):
        with pytest.raises(StoreError, match="cannot unpack into"):
            unpack(plain(tmp_path / "vm.ova"), tmp_path / place)


def test_unpacking_what_is_not_the_verified_archive_is_refused(tmp_path):
    path = plain(tmp_path / "vm.ova")
    digests = {member.name: member.sha256 for member in inspect(path).members}
    for number, expected in enumerate([digests, {**digests, "vm.vmdk": "0" * 64}]):
        (tmp_path / str(number)).mkdir()
        if number == 0:
            unpack(path, tmp_path / "0", expected=expected)
        else:
            with pytest.raises(HeldError, match="not the one that was verified"):
                unpack(path, tmp_path / "1", expected=expected)


def test_a_full_disk_while_unpacking_is_a_store_error(tmp_path):
    with open("/dev/full", "wb") as full:
        real = os.open

        def opens(path, flags, mode=0o777, *, dir_fd=None):
            if path == "vm.vmdk":
                return os.dup(full.fileno())
            return real(path, flags, mode, dir_fd=dir_fd)

        (tmp_path / "out").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", opens)
            with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
                unpack(plain(tmp_path / "vm.ova"), tmp_path / "out")


def test_verification_can_be_stopped(tmp_path):
    stop = threading.Event()
    stop.set()
    path = plain(tmp_path / "vm.ova")
    with opened(path) as (descriptor, info), pytest.raises(HeldError, match="stopped"):
        ova.inspect(descriptor, info.st_size, stop=stop)
    (tmp_path / "out").mkdir()
    with pytest.raises(HeldError, match="stopped"):
        unpack(path, tmp_path / "out", stop=stop)


def test_contents_survive_the_cache(tmp_path):
    found = inspect(archive(tmp_path / "vm.ova", entry("vm.ovf", OVF), entry("vm.vmdk", DISK), entry("é.nvram", b"1")))
    assert ova.restore(found.dump()) == found


def test_the_template_makers_ova_is_sound(tmp_path):
    fake_template(tmp_path / "vm", disks=2)
    pack_ova(tmp_path / "vm", tmp_path / "vm.ova")
    assert [member.name for member in inspect(tmp_path / "vm.ova").members] == [
        "vm.ovf",
        "vm.mf",
        "vm-disk1.vmdk",
        "vm-disk2.vmdk",
    ]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Path]:
    folder = tmp_path_factory.mktemp("fuzz")

    def write(data: bytes) -> Path:
        (folder / "vm.ova").write_bytes(data)
        return folder / "vm.ova"

    return write


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), max_size=6),
    st.booleans(),
)
def test_a_damaged_archive_is_read_or_refused_and_never_a_crash(sound, form: int, damage, repair: bool):
    data = bytearray(plain(sound(b""), form).read_bytes())
    for place, value in damage:
        data[place] = value
        start = place // 512 * 512
        if repair and any(data[start : start + 512]):  # a header that adds up again goes deeper
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    try:
        found = inspect(sound(bytes(data)))
    except HeldError as error:
        assert str(error)
    else:
        assert sum(member.size for member in found.members) <= len(data)
