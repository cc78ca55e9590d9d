"""What is read out of an OVF envelope, and what is refused."""

from __future__ import annotations

import tracemalloc

import pytest
from clr_client.content.ovf import MAX_ENVELOPE, Envelope, Reference, parse, resolve, restore
from clr_client.errors import HeldError
from hypothesis import given
from hypothesis import strategies as st
from support.templates import envelope

NS = 'xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"'


def document(references: str = "", rest: str = "") -> bytes:
    return f"<Envelope {NS}><References>{references}</References>{rest}</Envelope>".encode()


def referenced(attributes: str, sizes: dict[str, int]) -> set[str]:
    return set(resolve(parse(document(f"<File {attributes}/>")), sizes))


def refusal(data: bytes) -> str:
    with pytest.raises(HeldError) as caught:
        parse(data)
    assert caught.value.message.isprintable()
    return caught.value.message


def test_references_are_read_with_their_declared_sizes():
    found = parse(envelope("vm", {"a.vmdk": 5, "b & 'c'.vmdk": 7}))
    assert found.references == (Reference("a.vmdk", 5), Reference("b & 'c'.vmdk", 7))
    assert not found.is_vapp_template


def test_references_are_found_whatever_prefix_the_tool_used():
    data = b"""<?xml version='1.0'?><o:Envelope xmlns:o='http://schemas.dmtf.org/ovf/envelope/2'>
        <o:References><o:File o:id='f' o:href='a.vmdk' o:size='9'/></o:References></o:Envelope>"""
    assert parse(data).references == (Reference("a.vmdk", 9),)


def test_attributes_without_prefix_are_read_too():
    assert parse(document("<File href='a.vmdk' size='3'/>")).references == (Reference("a.vmdk", 3),)


def test_only_files_in_references_count():
    inner = document("<File ovf:href='a'><Extra ovf:href='b'/></File><Info ovf:href='c'/>")
    assert parse(inner).references == (Reference("a"),)
    data = document("", "<Section><References><File ovf:href='x'/></References></Section><File ovf:href='y'/>")
    assert parse(data).references == ()


def test_a_virtual_system_collection_makes_a_vapp_template():
    assert parse(envelope("vm", {}, vapp=True)).is_vapp_template


def test_text_that_mentions_a_collection_makes_none():
    rest = "<VirtualSystem><Info>&lt;VirtualSystemCollection&gt;</Info></VirtualSystem>"
    assert not parse(document("", rest)).is_vapp_template


def test_an_empty_or_zero_size_means_undeclared():
    assert referenced("ovf:href='a' ovf:size='0'", {"a": 77}) == {"a"}
    assert referenced("ovf:href='a' ovf:size=''", {"a": 77}) == {"a"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "iso-8859-1"])
def test_any_encoding_that_xml_declares_is_read(encoding: str):
    declared = encoding.replace("-sig", "").replace("-le", "").replace("-be", "")
    text = f"<?xml version='1.0' encoding='{declared}'?>" + document("<File ovf:href='é.vmdk'/>").decode()
    data = text.encode(encoding)
    if encoding.startswith("utf-16-"):
        data = "\ufeff".encode(encoding) + data
    assert parse(data).references == (Reference("é.vmdk"),)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no element found"),
        (b"   ", "no element found"),
        (b"<Envelope", "unclosed token"),
        (b"<Envelope>", "no element found"),
        (b"not xml", "syntax error"),
        (b"\x00" * 100, "cannot be read"),
        (b"<html/>", "its root is html"),
        (b"<?xml version='1.0' encoding='klingon'?><Envelope/>", "cannot be read"),
        (b"<?xml version='1.0' encoding='utf-7'?><Envelope/>", "cannot be read"),
        (b"<?xml version='1.0' encoding='zip'?><Envelope/>", "cannot be read"),
        (document("<File/>"), "reference without href"),
        (document("<File ovf:href=''/>"), "reference without href"),
        (document("<File ovf:href='a' ovf:size='1e3'/>"), "size that is no number: 1e3"),
        (document("<File ovf:href='a' ovf:size='-1'/>"), "size that is no number"),
        (document("<File ovf:href='a' ovf:size='" + "9" * 5000 + "'/>"), "size that is no number"),
        (document("<File ovf:href='a' ovf:chunkSize='x'/>"), "chunkSize that is no number"),
        (document("<File ovf:href='a' ovf:compression='xz'/>"), "unknown compression xz"),
    ],
)
def test_what_is_no_envelope_is_held_with_a_reason(data: bytes, reason: str):
    assert reason in refusal(data)


def test_entities_external_references_and_any_dtd_are_refused():
    bomb = "<!DOCTYPE Envelope [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><Envelope>&b;</Envelope>"
    outside = "<!DOCTYPE Envelope [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><Envelope>&x;</Envelope>"
    remote = "<!DOCTYPE Envelope SYSTEM 'http://127.0.0.1:1/x.dtd'><Envelope/>"
    for text in (bomb, outside, remote):
        assert "DTD" in refusal(text.encode())


def test_an_envelope_over_the_limit_is_not_parsed():
    assert "larger than 32 MiB" in refusal(b" " * (MAX_ENVELOPE + 1))


def test_a_huge_envelope_costs_no_more_memory_than_a_small_one():
    data = document("", "<Section a='b'><Item>text</Item></Section>" * 100_000)
    tracemalloc.start()
    try:
        parse(data)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_endless_nesting_and_endless_references_are_refused():
    assert "nested too deeply" in refusal(b"<Envelope>" + b"<a>" * 100_000)
    assert "more than 10000 files" in refusal(document("<File ovf:href='a'/>" * 10_001))


@pytest.mark.parametrize(
    ("href", "file"),
    [
        ("a.vmdk", "a.vmdk"),
        ("my%20disk%231.vmdk", "my disk#1.vmdk"),
        ("caf%C3%A9.vmdk", "café.vmdk"),
        ("100%25.vmdk", "100%.vmdk"),
        ("100%.vmdk", "100%.vmdk"),
        ("a%20b.vmdk", "a%20b.vmdk"),
        ("a:b.vmdk", "a:b.vmdk"),
        ("-n.vmdk", "-n.vmdk"),
    ],
)
def test_hrefs_mean_the_file_of_that_name_or_of_the_decoded_one(href: str, file: str):
    assert referenced(f"ovf:href='{href}' ovf:size='4'", {file: 4}) == {file}


@pytest.mark.parametrize(
    "href",
    [
        "../../etc/passwd",
        "..",
        ".",
        "/etc/passwd",
        "sub/disk.vmdk",
        "./disk.vmdk",
        "%2e%2e%2fdisk.vmdk",
        "..%5cdisk.vmdk",
        r"..\disk.vmdk",
    ],
)
def test_a_reference_out_of_the_folder_is_held(href: str):
    with pytest.raises(HeldError, match="outside its folder"):
        referenced(f"ovf:href='{href}'", {"disk.vmdk": 1, "passwd": 1})


@pytest.mark.parametrize(
    "href",
    ["http://host/disk.vmdk", "HTTPS://host/d", "file:///etc/passwd", "ftp:x", "//host/disk.vmdk", "c:disk.vmdk"],
)
def test_a_remote_reference_is_held(href: str):
    with pytest.raises(HeldError, match="references a remote file"):
        referenced(f"ovf:href='{href}'", {"disk.vmdk": 1})


@pytest.mark.parametrize("href", ["a%00.vmdk", "a%0a.vmdk", "a%ff.vmdk", "a%1b.vmdk"])
def test_a_reference_to_a_name_that_cannot_be_published_is_held_and_shown_escaped(href: str):
    with pytest.raises(HeldError, match="whose name") as caught:
        referenced(f"ovf:href='{href}'", {"a.vmdk": 1})
    assert caught.value.message.isprintable()


def test_a_missing_disk_is_named():
    with pytest.raises(HeldError, match=r"^disk\.vmdk is referenced but not there$"):
        referenced("ovf:href='disk.vmdk'", {"other.vmdk": 1})


def test_a_disk_whose_name_differs_only_by_case_is_missing_with_a_hint():
    with pytest.raises(HeldError, match=r"Disk\.vmdk is referenced but not there; disk\.VMDK differs by case"):
        referenced("ovf:href='Disk.vmdk'", {"disk.VMDK": 1})


def test_a_disk_that_is_shorter_than_declared_is_held():
    with pytest.raises(HeldError, match=r"disk\.vmdk has 5 bytes, but the OVF envelope says 6"):
        referenced("ovf:href='disk.vmdk' ovf:size='6'", {"disk.vmdk": 5})


def test_a_compressed_file_may_have_another_size_than_declared():
    assert referenced("ovf:href='d.gz' ovf:size='60' ovf:compression='gzip'", {"d.gz": 5}) == {"d.gz"}
    assert referenced("ovf:href='d' ovf:size='5' ovf:compression='identity'", {"d": 5}) == {"d"}


CHUNKED = "ovf:href='d.vmdk' ovf:size='25' ovf:chunkSize='10'"


def test_a_chunked_file_needs_all_its_pieces_with_their_sizes():
    pieces = {"d.vmdk.000000000": 10, "d.vmdk.000000001": 10, "d.vmdk.000000002": 5}
    assert referenced(CHUNKED, pieces) == set(pieces)
    with pytest.raises(HeldError, match=r"d\.vmdk\.000000002 is referenced but not there"):
        referenced(CHUNKED, {name: size for name, size in pieces.items() if not name.endswith("2")})
    with pytest.raises(HeldError, match=r"000000001 has 9 bytes, but the OVF envelope says 10"):
        referenced(CHUNKED, {**pieces, "d.vmdk.000000001": 9})
    with pytest.raises(HeldError, match=r"000000002 has 4 bytes, but the OVF envelope says 5"):
        referenced(CHUNKED, {**pieces, "d.vmdk.000000002": 4})


def test_a_chunked_and_compressed_file_needs_pieces_in_an_unbroken_row():
    attributes = CHUNKED + " ovf:compression='gzip'"
    assert referenced(attributes, {"d.vmdk.000000000": 3}) == {"d.vmdk.000000000"}
    with pytest.raises(HeldError, match="000000000 is referenced but not there"):
        referenced(attributes, {"d.vmdk": 25})


def test_a_chunked_file_of_absurd_size_costs_nothing():
    with pytest.raises(HeldError, match="000000001 is referenced"):
        referenced("ovf:href='d' ovf:size='999999999999999999' ovf:chunkSize='1'", {"d.000000000": 1})


def test_an_envelope_survives_the_cache():
    found = parse(document("<File ovf:href='é' ovf:size='5' ovf:chunkSize='2' ovf:compression='gzip'/>"))
    assert restore(found.dump()) == found == Envelope((Reference("é", 5, True, 2),), False)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_envelope_or_held(data: bytes):
    try:
        parse(data)
    except HeldError as error:
        assert str(error)


PIECES = [
    "<Envelope>", "</Envelope>", "<References>", "</References>", "<File ovf:href='a'/>", "<File href='%2e%2e'/>",
    "<!DOCTYPE x>", "<!--", "-->", "<![CDATA[", "]]>", "&lt;", "&#0;", "&x;", "<?xml version='1.1'?>", "\x00", "\ud7ff",
    "<a xmlns:b='", "'>", "<x:y/>", "é", " ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join), st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_any_jumble_of_markup_is_an_envelope_or_held(text: str, encoding: str):
    try:
        resolve(parse(text.encode(encoding, "replace")), {"a": 1})
    except HeldError as error:
        assert error.message.isprintable()


@given(st.text(max_size=40), st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 9), max_size=4))
def test_any_href_is_a_file_of_the_folder_or_held(href: str, sizes: dict[str, int]):
    try:
        names = resolve(Envelope((Reference(href),), False), sizes)
    except HeldError:
        return
    assert names <= sizes.keys()
